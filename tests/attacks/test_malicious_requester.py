"""A member that asks what it may not, of a live alliance: it is refused, or learns what it might have asked anyway."""

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
from insiders import Insider
from live import LiveAlliance, wait_for_ticks
from malicious_member import (
    BUDGET,
    DISAGREEMENT,
    EXCEEDS,
    HELD,
    LEFT,
    LIMIT,
    SHARDS,
    WITHIN,
    Made,
    Stage,
    attacked,
    forged,
    lane_of,
    late,
    open_stage,
    person_of,
    proof_of,
    question,
    resealed,
    restated,
    signed_by,
    strangers,
    told,
    tried,
)
from strategies import made_anew
from test_group import BAD_ENCODINGS

from protocol import check, group
from protocol.check import PURPOSE, PendingCheck, Question, Verdict, Void, check_context, read_outcome
from protocol.committee import excluded_slot, preferred_choice
from protocol.comparison import MAX_LANES
from protocol.deposit import Entry, is_complete, make_deposit, read_receipts, sign_batch
from protocol.encoding import POINT, SCALAR, decode, encode
from protocol.errors import ProtocolError
from protocol.group import ORDER, Element
from protocol.identity import Identity
from protocol.manifest import china_day
from protocol.messages import ISSUE, CheckCall, CheckEnvelope, CheckOutcome, CheckRequest, CheckStatement
from protocol.party import random_scalar
from protocol.secret import Secret
from protocol.sharing import RING, held_labels, share
from protocol.token import SchnorrProof, unblind
from transport.internal import CHECK, CONTENT_TYPE, message_of
from transport.peers import Call
from transport.server import MAX_BODY

pytestmark = pytest.mark.alliance


@pytest.fixture(scope="module")
def stage(eight: LiveAlliance, pool: list[Identity]) -> Iterator[Stage]:
    with ExitStack() as stack:
        stack.callback(eight.stop)  # nobody else needs it
        yield open_stage(eight, pool, stack)


def test_the_honest_form_of_what_is_bent_below_is_answered_and_recorded_by_the_four_that_answered(stage: Stage) -> None:
    me, whom = attacked(stage)
    for proposed, verdict in ((LEFT, WITHIN), (LEFT + 1, EXCEEDS)):
        done = tried(stage, me, lambda proposed=proposed: forged(me, [question(me, whom, proposed)]))
        assert (done.refusal, done.verdicts) == (None, [verdict])
        assert [*done.said.values()] == [["ok"]] * 4
        assert done.changed == {member: {"check_request", "budget"} for member in done.said}
    stage.assert_right(whom)


# --- different things to different custodians ----------------------------------------------------------------------


def half(stage: Stage, whom: Identity) -> tuple[str, ...]:
    """Return three custodians of six: among any four there are both told and untold ones."""
    return stage.members[1].manifest.committee(stage.shard(whom)).slots[::2]


LIES: dict[str, Callable[[CheckEnvelope], CheckEnvelope]] = {
    "another check id": lambda body: replace(body, check_id=bytes(16)),
    "another shard": lambda body: replace(body, shard=(body.shard + 1) % 8),
    "another manifest": lambda body: replace(body, manifest_hash=bytes(32)),
    "another day": lambda body: replace(body, as_of=body.as_of - 1),
    "another time": lambda body: replace(body, issued_at=body.issued_at - 1),
    "lanes in another order": lambda body: replace(body, lanes=body.lanes[::-1]),
    "a lane less": lambda body: replace(body, lanes=body.lanes[:1]),
    "a lane more": lambda body: replace(body, lanes=(*body.lanes, body.lanes[0])),
    "persons in another order": lambda body: replace(body, persons=body.persons[::-1]),
    "a person less": lambda body: replace(body, persons=body.persons[:1]),
    "another person's B": lambda body: person_of(body, blinded=body.persons[1].blinded),
    "a lane of another person": lambda body: lane_of(body, person=1),
    "another rule": lambda body: lane_of(body, rule_id="another"),
    "another rule version": lambda body: lane_of(body, rule_version=2),
}


def test_an_envelope_that_says_something_else_than_what_was_signed_is_refused_by_every_custodian_so_told(
    stage: Stage,
) -> None:
    me, whom = attacked(stage)
    questions, some = [question(me, whom), question(me, whom, 0)], half(stage, whom)
    for lie in LIES.values():
        tried(stage, me, lambda lie=lie: forged(me, questions, told(lie))).assert_refused_by_custodians(
            "unequal-fields"
        )
        done = tried(stage, me, lambda lie=lie: forged(me, questions, told(lie, some)))
        assert done.codes == {"ok", "unequal-fields"}
        assert {member for member, codes in done.said.items() if "unequal-fields" in codes} <= set(some)
        assert done.verdicts == [DISAGREEMENT] * 2
    stage.assert_right(whom)


def numbered(stage: Stage, whom: Identity, peer: str) -> int:
    return stage.members[1].manifest.committee(stage.shard(whom)).slots.index(peer)


def other_unblinder(me: Insider, body: CheckEnvelope, blinded: bytes) -> dict[str, object]:
    """Prove knowledge of another t for a B: another pseudonym, with a proof that holds."""
    t = random_scalar(secrets.token_bytes)
    unblinder = group.multiply(t, me.manifest.blinding_key)
    context = check_context(me.party.id, body.check_id, 0)
    return {"unblinder": unblinder, "proof": proof_of(me, t, blinded, unblinder, context)}


def test_custodians_that_were_each_given_another_seed_person_or_proposal_open_no_tag(stage: Stage) -> None:
    me, whom = attacked(stage, troubled=True)

    def seed(_slot: int, body: CheckEnvelope) -> CheckEnvelope:
        return replace(body, seed=secrets.token_bytes(32))

    def person(_slot: int, body: CheckEnvelope) -> CheckEnvelope:
        return person_of(body, **other_unblinder(me, body, body.persons[0].blinded))

    def proposal(slot: int, body: CheckEnvelope) -> CheckEnvelope:
        return lane_of(body, proposal=tuple((piece + slot + 1) % RING for piece in body.lanes[0].proposal))

    for bend in (seed, person, proposal):

        def each(peer: str, data: bytes, bend: Callable[[int, CheckEnvelope], CheckEnvelope] = bend) -> bytes:
            return encode(bend(numbered(stage, whom, peer), decode(CheckEnvelope, data)))

        done = tried(stage, me, lambda each=each: forged(me, [question(me, whom)], each))
        assert done.verdicts == [DISAGREEMENT]
        assert done.codes == {"ok"}  # each custodian by itself has nothing to refuse
    stage.assert_right(whom)


def test_a_requester_that_lies_to_one_custodian_gets_the_verdict_of_the_others_or_none(stage: Stage) -> None:
    me, whom = attacked(stage, troubled=True)
    seen = set()
    for peer in me.manifest.committee(stage.shard(whom)).slots:
        for bend in (
            told(lambda body: replace(body, seed=bytes(32)), (peer,)),
            told(lambda body: person_of(body, **other_unblinder(me, body, body.persons[0].blinded)), (peer,)),
            told(lambda body: person_of(body, unblinder=body.persons[0].blinded), (peer,)),
        ):
            done = tried(stage, me, lambda bend=bend: forged(me, [question(me, whom, LEFT + 1)], bend))
            assert done.verdicts[0] in {EXCEEDS, DISAGREEMENT}
            seen.add(done.verdicts[0])
    assert EXCEEDS in seen  # an attempt without the one that was lied to
    stage.assert_right(whom)


def proposing(me: Insider, values: list[int], offsets: dict[int, int] | None = None) -> Callable[[str, bytes], bytes]:
    """Share any value a lane as a proposal; `offsets` is added to the shares of slots in the first lane."""

    def bend(peer: str, data: bytes) -> bytes:
        body = decode(CheckEnvelope, data)
        slots = me.manifest.committee(body.shard).slots
        slot, own = slots.index(peer), me.manifest.slot_of_group(body.shard, me.party.id)
        excluded = excluded_slot(body.shard, own, len(slots), body.check_id)
        held = held_labels(len(slots), excluded, slot)
        for lane, value in enumerate(values):
            uniform = hashlib.shake_256(body.check_id + bytes([lane])).digest(6 * (len(slots) - 2))
            shares = share(value, len(slots), excluded, uniform)
            offset = (offsets or {}).get(slot, 0) if lane == 0 else 0
            body = lane_of(body, lane, proposal=tuple((shares[name] + offset) % RING for name in held))
        return encode(body)

    return bend


def test_a_negative_or_huge_proposal_answers_one_bit_about_the_number_that_it_is_in_the_ring(stage: Stage) -> None:
    # It moves the limit that the requester compares with, its own and nobody else's, at the price of any answer.
    me, whom = attacked(stage)
    values = [0, LEFT, LEFT + 1, -1, LEFT - RING, LEFT + 1 - RING, RING // 2, RING // 2 + LEFT + 1, RING - 1, -LIMIT]
    expected = [EXCEEDS if (LEFT - value) % RING >= RING // 2 else WITHIN for value in values]
    assert expected[:4] == [WITHIN, WITHIN, EXCEEDS, WITHIN]
    questions = [question(me, whom, 0)] * len(values)
    done = tried(stage, me, lambda: forged(me, questions, proposing(me, values)))
    assert done.verdicts == expected
    stage.assert_right(whom)


def test_a_poisoned_lane_turns_no_other_lane(stage: Stage) -> None:
    me, whom = attacked(stage, troubled=True)
    values = [LEFT + 1, LEFT, LEFT + 1]
    questions, right = [question(me, whom, value) for value in values], [EXCEEDS, WITHIN, EXCEEDS]
    clean = tried(stage, me, lambda: forged(me, questions, proposing(me, values)))
    assert clean.verdicts == right
    everyone = dict(enumerate(range(1, 7)))
    done = tried(stage, me, lambda: forged(me, questions, proposing(me, values, everyone)))
    assert done.verdicts == [DISAGREEMENT] * 3
    for slot in range(6):
        done = tried(stage, me, lambda slot=slot: forged(me, questions, proposing(me, values, {slot: LIMIT})))
        assert done.verdicts in (right, [DISAGREEMENT] * 3)
    stage.assert_right(whom)


# --- one check id, replays, the budget -----------------------------------------------------------------------------


def of_id(stage: Stage, check_id: bytes) -> list[int]:
    """Return how many statements each member keeps under a check id."""
    return [len(stage.rows(number, "check_request", "check_id = %s", check_id)) for number in stage.members]


def test_another_statement_under_a_check_id_is_refused_and_of_many_at_once_at_most_one_is_answered(
    stage: Stage,
) -> None:
    me, whom = attacked(stage)
    check_id = secrets.token_bytes(16)
    first = tried(stage, me, lambda: forged(me, [question(me, whom)], check_id=check_id))
    assert first.verdicts == [WITHIN]
    for other in (
        lambda: forged(me, [question(me, whom, LEFT + 1)], check_id=check_id),
        lambda: forged(me, [question(me, whom)] * 5, check_id=check_id),
    ):
        tried(stage, me, other).assert_refused_by_custodians("check-id-reused")

    def race(item: Made) -> tuple[Verdict, Void | None]:
        try:
            return read_outcome(item[0], me.check(item[1]), time.time())[0]
        finally:
            me._peers.close()  # this thread's connection

    for _ in range(3):
        check_id = secrets.token_bytes(16)
        items = [forged(me, [question(me, whom, LEFT + 1)], check_id=check_id) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            verdicts = list(pool.map(race, items))
        assert all(verdict in {EXCEEDS, DISAGREEMENT} or late([verdict]) for verdict in verdicts)
        assert verdicts.count(EXCEEDS) <= 1
        assert set(of_id(stage, check_id)) <= {0, 1}
    stage.assert_right(whom)


def test_a_replayed_request_is_refused_whoever_sends_it_and_no_other_may_sign_it(stage: Stage) -> None:
    me, whom = attacked(stage)
    victim = stage.outsider(stage.shard(whom), 1)
    mine: list[Made] = []
    assert tried(stage, me, lambda: mine.append(forged(me, [question(me, whom)])) or mine[-1]).verdicts == [WITHIN]
    theirs: list[Made] = []
    asked = tried(stage, victim, lambda: theirs.append(forged(victim, [question(victim, whom)])) or theirs[-1])
    assert asked.verdicts == [WITHIN]
    for sender, again in ((me, mine[-1]), (victim, theirs[-1]), (me, theirs[-1])):
        # By then another tick may be the last one closed.
        tried(stage, sender, lambda again=again: again).assert_refused_by_custodians("replayed", "other-tick")
    pending, request = theirs[-1]
    statement = request.signed.statement
    resigned = replace(request, signed=signed_by(me.party, statement))
    tried(stage, me, lambda: (pending, resigned)).assert_refused("bad-signature")
    own_name = restated(me.party, request, requester=me.party.id)
    tried(stage, me, lambda: (pending, own_name)).assert_refused_by_custodians("bad-envelope")
    for name, code in ((victim.party.id, "bad-signature"), ("insurer-99", "unknown-member")):
        tried(stage, me, lambda name=name: forged(me, [question(me, whom)], requester=name)).assert_refused(code)
    stage.assert_right(whom)


def test_a_search_by_proposals_gets_a_bit_an_answer_and_no_more_answers_than_the_budget_allows(stage: Stage) -> None:
    me, whom = attacked(stage)
    void = (Verdict.INDETERMINATE, Void.BUDGET_EXHAUSTED)
    low, high, answers = 0, LIMIT, 0
    while low < high:
        middle = (low + high + 1) // 2
        (verdict,) = ask_once(me, [question(me, whom, middle)])
        assert verdict in {EXCEEDS, WITHIN} or late([verdict])
        answers += verdict in {EXCEEDS, WITHIN}
        low, high = (middle, high) if verdict == WITHIN else (low, middle - 1) if verdict == EXCEEDS else (low, high)
    assert low == LEFT  # 33 bits are 33 answers: what the budget is there to bound
    for lanes in (3, 1):
        ended = 0
        while ended < 3:  # each check takes another four of the six, which may have spent more or less
            verdicts = ask_once(me, [question(me, whom, LEFT)] * lanes)
            assert set(verdicts) <= {WITHIN, void} or late(verdicts)
            answers += verdicts.count(WITHIN)
            ended += verdicts[0] == void
    assert BUDGET <= answers <= 6 * BUDGET // 4
    stage.assert_right(whom)  # another group has a budget of its own


def ask_once(me: Insider, questions: list[Question]) -> list[tuple[Verdict, Void | None]]:
    pending, request = forged(me, questions)
    return read_outcome(pending, me.check(request), time.time())


def chosen_by(check_id: bytes, scores: dict[int, float]) -> tuple[int, ...]:
    chosen = preferred_choice(check_id, scores)
    assert chosen is not None
    return chosen


def put_off(stage: Stage, me: Insider, shard: int, slots: tuple[int, ...]) -> None:
    """Have the service ask these slots last for some seconds: a check that lies to one of them names it."""
    scores, people = dict.fromkeys(range(6), 0.0), strangers(stage, shard)
    ids = iter(lambda: secrets.token_bytes(16), b"")
    for slot in slots:
        peer = me.manifest.committee(shard).slots[slot]
        lie = told(lambda body: replace(body, seed=bytes(32)), (peer,))
        for _ in range(5):
            check_id = next(item for item in ids if slot in chosen_by(item, scores))
            pending, request = forged(me, [question(me, next(people), 0)], lie, check_id=check_id)
            verdicts = read_outcome(pending, me.check(request), time.time())
            if not late(verdicts):
                break
        assert verdicts == [WITHIN]  # of the second attempt
        scores[slot] = 1.0


# --- what the service refuses --------------------------------------------------------------------------------------


def test_the_service_refuses_another_manifest_another_time_and_an_unknown_shard(stage: Stage) -> None:
    me, whom = attacked(stage)
    old = told(lambda body: replace(body, manifest_hash=bytes(32)))
    tried(stage, me, lambda: forged(me, [question(me, whom)], old, manifest_hash=bytes(32))).assert_refused(
        "other-manifest"
    )
    for at in (-62, -3600, 62, 3600):
        tried(stage, me, lambda at=at: forged(me, [question(me, whom)], at=at)).assert_refused("stale")
    for issued_at in (0, 2**64 - 1):
        bend = told(lambda body, issued_at=issued_at: replace(body, issued_at=issued_at))
        made = tried(stage, me, lambda b=bend, i=issued_at: forged(me, [question(me, whom)], b, issued_at=i))
        made.assert_refused("stale")
    for at in (-50, 50):
        assert tried(stage, me, lambda at=at: forged(me, [question(me, whom)], at=at)).verdicts == [WITHIN]
    for shard in (SHARDS, 2**32 - 1):
        tried(stage, me, lambda shard=shard: forged(me, [question(me, whom)], shard=shard)).assert_refused(
            "unknown-shard"
        )
    stage.assert_right(whom)


def test_the_service_refuses_envelopes_swapped_missing_too_many_or_for_the_requesters_own_slot(stage: Stage) -> None:
    whom = stage.subject()
    me = stage.members[stage.holders(stage.shard(whom))[2]]
    pending, request = forged(me, [question(me, whom)])
    envelopes, hashes = request.envelopes, request.signed.statement.envelopes
    assert [entry.slot for entry in hashes] == [0, 1, 3, 4, 5]
    own = replace(hashes[0], slot=2)
    bent = {
        "two swapped": replace(request, envelopes=(envelopes[1], envelopes[0], *envelopes[2:])),
        "one missing": replace(request, envelopes=envelopes[:-1]),
        "one missing, as signed": resealed(me.party, request, envelopes[:-1]),
        "one too many": replace(request, envelopes=(*envelopes, envelopes[0])),
        "one for its own slot": restated(
            me.party,
            replace(request, envelopes=(*envelopes[:2], envelopes[0], *envelopes[2:])),
            envelopes=(*hashes[:2], own, *hashes[2:]),
        ),
        "its own slot's for another": restated(me.party, request, envelopes=(*hashes[:2], own, *hashes[3:])),
        "a slot twice": restated(me.party, request, envelopes=(*hashes[:-1], hashes[0])),
        "another order": restated(me.party, request, envelopes=hashes[::-1]),
        "one byte more": replace(request, envelopes=(envelopes[0] + b"!", *envelopes[1:])),
    }
    for what, item in bent.items():
        done = tried(stage, me, lambda item=item: (pending, item))
        assert (what, done.refusal, done.said, done.changed) == (what, "bad-envelopes", {}, {})
    assert tried(stage, me, lambda: (pending, request)).verdicts == [WITHIN]

    # Signed as swapped, they reach their custodians, who cannot open them.
    def turned() -> Made:
        pending, request = forged(me, [question(me, whom)])
        return pending, resealed(me.party, request, (*request.envelopes[1:], request.envelopes[0]))

    tried(stage, me, turned).assert_refused_by_custodians("bad-envelope")
    stage.assert_right(whom)


def post(me: Insider, body: bytes) -> str:
    """Return the code with which the service refuses bytes."""
    with pytest.raises(ProtocolError) as refused:
        message_of(CheckOutcome, me.post("/v1/checks", body))
    return refused.value.code


def test_bytes_that_are_no_check_request_are_refused_and_reach_nobody(stage: Stage) -> None:
    me, whom = attacked(stage)
    good = encode(forged(me, [question(me, whom)])[1])
    before, since = stage.stored(), stage.marks()
    cuts = [0, 1, 7, 8, 24, *range(40, len(good), 200), len(good) - 1]
    assert {post(me, good[:cut]) for cut in cuts} == {"malformed"}
    assert {post(me, good + more) for more in (b"\0", b"!", good, bytes(1 << 16))} == {"malformed"}
    assert post(me, bytes(MAX_BODY)) == "malformed"
    path, url = "/v1/checks", me.manifest.terms.service_url
    for kind in ("application/json", "application/octet-stream", "text/plain", "application/vnd.cover-lookup-2", ""):
        reply = me._peers.call(Call(url, path, good, {"Content-Type": kind}), 5)
        with pytest.raises(ProtocolError, match="unsupported-media-type"):
            message_of(CheckOutcome, reply)
    assert (stage.stored(), stage.said(since, CHECK)) == (before, {})
    verdicts = read_outcome(*read_back(me, good), time.time())
    assert verdicts == [DISAGREEMENT] or late(verdicts)  # the bytes as they were are a request
    stage.assert_right(whom)


def test_a_body_over_the_limit_is_refused_by_the_length_that_it_states(stage: Stage) -> None:
    parts = urlsplit(stage.members[1].manifest.terms.service_url)
    before = stage.stored()
    assert parts.hostname is not None
    line = HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        line.putrequest("POST", "/v1/checks")
        for header, value in (("Content-Type", CONTENT_TYPE), ("Content-Length", str(MAX_BODY + 1))):
            line.putheader(header, value)
        line.endheaders(b"x" * 1000)  # the length that is stated is enough
        with line.getresponse() as answer:
            assert (answer.status, json.load(answer)["code"]) == (413, "request-entity-too-large")
    finally:
        line.close()
    assert stage.stored() == before


def read_back(me: Insider, data: bytes) -> tuple[PendingCheck, CheckOutcome]:
    """Send bytes; read the outcome as whoever does not know their seed."""
    outcome = message_of(CheckOutcome, me.post("/v1/checks", data))
    statement = decode(CheckRequest, data).signed.statement
    slots = tuple(entry.slot for entry in statement.envelopes)
    return PendingCheck(
        statement.check_id, Secret(bytes(32)), len(statement.lanes), slots, statement.as_of, time.time() + 2
    ), outcome


def test_no_lanes_and_more_lanes_than_there_may_be_are_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    me, whom = attacked(stage)
    pending, request = forged(me, [question(me, whom)])
    (lane,), statement = request.signed.statement.lanes, request.signed.statement
    with monkeypatch.context() as permissive:
        for kind in (CheckStatement, CheckEnvelope):
            count = dict(kind._wire[1])["lanes"]._count
            permissive.setattr(count, "_least", 0)
            permissive.setattr(count, "_most", 4096)
        made_anew(permissive)
        bodies = [
            encode(replace(request, signed=signed_by(me.party, replace(statement, lanes=(lane,) * lanes))))
            for lanes in (0, 1, MAX_LANES + 1)
        ]
    before = stage.stored()
    assert post(me, bodies[0]) == post(me, bodies[2]) == "malformed"
    assert stage.stored() == before
    assert bodies[1] == encode(request)
    assert tried(stage, me, lambda: (pending, request)).verdicts == [WITHIN]


# --- what custodians refuse ----------------------------------------------------------------------------------------


def test_custodians_refuse_a_day_that_is_not_within_one_of_theirs_and_a_rule_that_is_not_in_force(stage: Stage) -> None:
    me, whom = attacked(stage)
    today, good = china_day(time.time()), question(me, whom, LEFT + 1)
    for off, code in ((-366, "bad-day"), (-2, "bad-day"), (2, "bad-day"), (10_000, "bad-day"), (-1, None), (1, None)):
        bend = told(lambda body, off=off: replace(body, as_of=today + off))
        done = tried(stage, me, lambda bend=bend, off=off: forged(me, [good], bend, as_of=today + off))
        if code is None:
            assert done.verdicts == [EXCEEDS]
        else:
            done.assert_refused_by_custodians(code)
    for changes, code in (
        ({"version": 2}, "other-rule"),
        ({"version": 0}, "other-rule"),
        ({"id": "accident-7d"}, "unknown-rule"),
        ({"id": "ACCIDENT-30D"}, "unknown-rule"),
    ):
        other = replace(good, rule=replace(good.rule, **changes))
        tried(stage, me, lambda other=other: forged(me, [other])).assert_refused_by_custodians(code)
    # Its own idea of limit, window, products, measure or budget changes nothing.
    lenient = replace(good.rule, limit=LIMIT * 2, window_days=1, products=("term_life",), budget=10**6)
    done = tried(stage, me, lambda: forged(me, [replace(good, rule=lenient)]))
    assert done.verdicts == [EXCEEDS]
    stage.assert_right(whom)


def outside_of_two(stage: Stage) -> tuple[Insider, Identity, int]:
    """Return a requester outside of two shards, a person of one, and the other shard: 8 members keep 6 places in 8."""
    for me in stage.members.values():
        outside = [shard for shard in range(SHARDS) if me.manifest.slot_of_group(shard, me.party.id) is None]
        whom = next((person for person in stage.pool if stage.shard(person) in outside), None)
        if len(outside) > 1 and whom is not None:
            stage.pool.remove(whom)
            return me, whom, next(shard for shard in outside if shard != stage.shard(whom))
    raise AssertionError("no member is outside of two shards")


def test_a_check_in_a_shard_that_is_not_the_persons_tells_the_requester_of_its_own_proposal_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, whom, elsewhere = outside_of_two(stage)
    shard = stage.shard(whom)
    for other in range(SHARDS):
        with monkeypatch.context() as attackers:
            attackers.setattr(check, "shard_of_person", lambda *_, other=other: other)
            values = [0, LEFT, LEFT + 1, LIMIT, LIMIT + 1]
            done = tried(stage, me, lambda values=values: forged(me, [question(me, whom, v) for v in values]))
        limit = LEFT if other == shard else LIMIT
        assert done.verdicts == [WITHIN if value <= limit else EXCEEDS for value in values]
    # A shard that is said to the service alone is refused by the custodians of that shard.
    done = tried(stage, me, lambda: forged(me, [question(me, whom)], shard=elsewhere))
    assert done.codes <= {"bad-envelope", "unequal-fields"}
    assert (done.verdicts, done.changed) == ([DISAGREEMENT], {})
    stage.assert_right(whom)


def bad_points() -> list[bytes]:
    point = group.multiply_base(group.scalar_from_int(5))
    return [*(data for _, data in BAD_ENCODINGS), bytes(32), point[:31] + bytes([point[31] | 0x80])]


def test_points_and_scalars_that_are_not_canonical_are_refused_wherever_they_stand(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, whom = attacked(stage)

    def unreduced(body: CheckEnvelope, name: str) -> SchnorrProof:
        proof = body.persons[0].proof
        value = int.from_bytes(getattr(proof, name), "little") + ORDER
        return replace(proof, **{name: value.to_bytes(32, "little")})

    with monkeypatch.context() as permissive:
        for codec in (POINT, SCALAR):
            permissive.setattr(codec, "_check", None)
        made_anew(permissive)
        statements = []
        for point in bad_points():
            bend = told(lambda body, point=point: person_of(body, blinded=point))
            _, request = forged(me, [question(me, whom)], bend)
            statements.append(encode(restated(me.party, request, persons=(point,))))
        bends = [
            *(told(lambda body, p=point: person_of(body, unblinder=p)) for point in bad_points()[::6]),
            *(
                told(lambda body, n=name: person_of(body, proof=unreduced(body, n)))
                for name in ("challenge", "response")
            ),
        ]
        made = [forged(me, [question(me, whom)], bend) for bend in bends]
    before = stage.stored()
    assert {post(me, body) for body in statements} == {"malformed"}
    assert stage.stored() == before
    void = (Verdict.INDETERMINATE, Void.TOO_FEW_CUSTODIANS)  # of what is malformed nobody says who made it so
    for item in made:
        done = tried(stage, me, lambda item=item: item)
        assert (done.codes, done.verdicts, done.changed) == ({"malformed"}, [void], {})
    zero = told(lambda body: person_of(body, proof=SchnorrProof(challenge=bytes(32), response=bytes(32))))
    tried(stage, me, lambda: forged(me, [question(me, whom)], zero)).assert_refused_by_custodians("bad-unblinder")
    for bend in (lambda _, body: body + b"!", lambda _, body: body[:-1], lambda *_: b"", lambda *_: bytes(400)):
        done = tried(stage, me, lambda bend=bend: forged(me, [question(me, whom)], bend))
        assert (done.codes, done.verdicts, done.changed) == ({"malformed"}, [void], {})
    stage.assert_right(whom)


# --- aiming at a pseudonym -----------------------------------------------------------------------------------------


def seen_by(stage: Stage, me: Insider, victim: Insider, whom: Identity) -> tuple[CheckCall, CheckEnvelope]:
    """Return a call about the person that a requester saw as a custodian, and what was sealed to it."""
    for _ in range(20):
        check_id = secrets.token_bytes(16)
        pending, request = forged(victim, [question(victim, whom)], check_id=check_id)
        if read_outcome(pending, victim.check(request), time.time()) != [WITHIN]:
            continue
        for entry in reversed(stage.alliance.captured(me.party.id)):
            if entry["path"] == CHECK and entry["status"] == 200:
                call = decode(CheckCall, base64.b64decode(entry["request"]))
                if call.signed.statement.check_id == check_id:
                    opened = me.party.channel(victim.party.id).open(PURPOSE, check_id, call.envelope)
                    return call, decode(CheckEnvelope, opened)
    raise AssertionError("it was never among the four")


def aimed(me: Insider, whom: Identity, point: bytes, unblinder: bytes, prove: Callable[[bytes], SchnorrProof]) -> Made:
    """Ask with a B, a D and a proof of the attacker's choice; the proof is told the check id."""
    bend = told(lambda body: person_of(body, blinded=point, unblinder=unblinder, proof=prove(body.check_id)))
    pending, request = forged(me, [question(me, whom)], bend)
    return pending, restated(me.party, request, persons=(point,))


def proof_by(me: Insider, t: group.Scalar, point: bytes, unblinder: bytes) -> Callable[[bytes], SchnorrProof]:
    return lambda check_id: proof_of(me, t, point, unblinder, check_context(me.party.id, check_id, 0))


def test_a_requester_cannot_aim_a_check_at_a_pseudonym_that_it_saw_as_a_custodian(stage: Stage) -> None:
    whom = stage.subject()
    shard = stage.shard(whom)
    me, victim = stage.members[stage.holders(shard)[0]], stage.outsider(shard)
    call, body = seen_by(stage, me, victim, whom)
    seen, own = body.persons[0], next(strangers(stage, shard))
    pseudonym, key = unblind(Element(call.evaluated[0]), Element(seen.unblinder)), me.manifest.blinding_key
    t = random_scalar(secrets.token_bytes)
    base, mine = group.multiply_base(t), group.multiply(t, key)
    # C of B = t*G is t*Ks, so with this D a custodian would come to the pseudonym; the attacker lacks D's logarithm.
    aim = group.subtract(mine, Element(pseudonym))
    moved, moved_d = group.add(Element(seen.blinded), base), group.add(Element(seen.unblinder), mine)
    attacks = {
        "replayed": (seen.blinded, seen.unblinder, lambda _: seen.proof),
        "replayed, proof of another t": (seen.blinded, seen.unblinder, proof_by(me, t, seen.blinded, seen.unblinder)),
        "blinded again": (moved, moved_d, lambda _: seen.proof),
        "blinded again, proof of what was added": (moved, moved_d, proof_by(me, t, moved, moved_d)),
        "aimed, proof of another check": (base, aim, lambda _: seen.proof),
        "aimed, proof of t": (base, aim, proof_by(me, t, base, aim)),
        "aimed, proof of another D": (base, aim, proof_by(me, t, base, mine)),
        "aimed at the pseudonym as B": (pseudonym, mine, proof_by(me, t, pseudonym, aim)),
    }
    for what, (point, unblinder, prove) in attacks.items():
        done = tried(stage, me, lambda p=point, d=unblinder, f=prove: aimed(me, own, p, d, f))
        assert (what, done.codes) == (what, {"bad-unblinder"})
        done.assert_refused_by_custodians("bad-unblinder")
    # With a logarithm that it knows the same workshop makes a proof that holds: nobody's pseudonym, and no rows.
    nobody = proof_by(me, t, base, mine)
    done = tried(stage, me, lambda: aimed(me, own, base, mine, nobody))
    done.assert_refused_by_custodians("identity-element")
    done = tried(stage, me, lambda: aimed(me, own, seen.blinded, mine, proof_by(me, t, seen.blinded, mine)))
    assert (done.codes, done.verdicts) == ({"ok"}, [WITHIN])
    stage.assert_right(whom)


# --- the budget's bound and replays at other custodians ------------------------------------------------------------


def bait(me: Insider, whom: Identity) -> None:
    """Insure the person for one fen more, and wait until checks count it."""
    entry = Entry(whom, ISSUE, "accident", china_day(time.time()), 1)
    made = make_deposit(me.party, entry, secrets.token_bytes(16), secrets.token_bytes)
    (outcome,) = me.deposit(sign_batch(me.party, [made], time.time())).outcomes
    assert is_complete(me.manifest, made, read_receipts(me.party, made, outcome))
    wait_for_ticks()


def answered_twice(stage: Stage) -> tuple[list[tuple[Verdict, Void | None]], list[tuple[Verdict, Void | None]]]:
    """Ask the whole budget's worth at the limit; replay it after a bait deposit, with two of the first four put off."""
    me, whom = attacked(stage)
    ids = iter(lambda: secrets.token_bytes(16), b"")
    check_id = next(item for item in ids if chosen_by(item, dict.fromkeys(range(6), 0.0)) == (0, 1, 2, 3))
    pending, request = forged(me, [question(me, whom)] * BUDGET, check_id=check_id)
    first = read_outcome(pending, me.check(request), time.time())
    bait(me, whom)
    put_off(stage, me, stage.shard(whom), (2, 3))
    second = read_outcome(replace(pending, deadline=time.time() + 10), me.check(request), time.time())
    stage.assert_right(whom, held=HELD + 1)
    return first, second


# Last in the file: custodians of its shard are asked in another order for some seconds.
def test_a_replay_gets_no_answers_beyond_the_budgets_bound(stage: Stage) -> None:
    # The replay goes to the two of six that did not answer at first, with two that refuse it; its second attempt goes
    # to the first two and the two put off, for whom it is fresh, and charged already.
    for _ in range(4):
        first, second = answered_twice(stage)
        if not late(first + second):
            break
    assert first == [WITHIN] * BUDGET
    answers = sum(verdict in {WITHIN, EXCEEDS} for verdict in first + second)
    assert answers <= 6 * BUDGET // 4, f"{answers} answers, of which {second.count(EXCEEDS)} are new"
