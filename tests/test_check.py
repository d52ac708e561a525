"""A check says what a plain sum says; whoever departs from the protocol gets no verdict, never a wrong one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from world import COUNT_RULE, LIMIT, NOW, RULE, TODAY, World, make_world, name, person, seeded

from protocol import comparison, group, signing, voprf
from protocol import token as prover
from protocol.check import (
    PURPOSE,
    Evaluation,
    PendingCheck,
    Question,
    Verdict,
    Void,
    accept_call,
    accept_request,
    answer_call,
    ask,
    call_for,
    check_context,
    conclude,
    evaluation_verifiers,
    read_outcome,
    run_check,
    shard_of_person,
    void_outcome,
)
from protocol.committee_keys import CommitteeKey
from protocol.comparison import Disagreement
from protocol.custody import Admission, Charge, CustodyRow, MemoryCustody, Proposed, Reading
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.identity import Identity
from protocol.manifest import Manifest, Rule, china_day
from protocol.messages import (
    AMENDMENT,
    CANCELLATION,
    ISSUE,
    UNDERWRITING,
    CheckAnswer,
    CheckCall,
    CheckEnvelope,
    CheckOutcome,
    CheckRequest,
    CheckStatement,
    Commit,
    RangeProof,
    SignedCheck,
    envelope_hash,
)
from protocol.party import Party, ServiceParty, random_scalar
from protocol.range_tags import range_tags
from protocol.secret import Secret
from protocol.sharing import Share
from protocol.stamps import as_of_tick, deposit_stamp
from protocol.token import IndexKey, Token

EXCEEDS, WITHIN, INDETERMINATE = Verdict.EXCEEDS, Verdict.WITHIN, Verdict.INDETERMINATE
TICK = as_of_tick(NOW, 1)
MEMBER = 1
"""The requester of most tests; `an_outsider` asks from outside the committee."""


# --- one attempt, step by step -------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """A check between the steps, so that a test can bend what passes between two of them."""

    world: World
    requester: Party
    pending: PendingCheck
    request: CheckRequest
    evaluation: Evaluation
    chosen: tuple[int, ...]

    @property
    def statement(self) -> CheckStatement:
        return self.request.signed.statement

    @property
    def custodians(self) -> tuple[str, ...]:
        return self.world.manifest.committee(self.statement.shard).slots

    @property
    def verifiers(self) -> tuple[int, ...]:
        """The two slots of A that verify the proof of C."""
        return tuple(self.chosen[place] for place in evaluation_verifiers(self.statement.check_id, 1))

    @property
    def trusting(self) -> tuple[int, ...]:
        """The two that do not."""
        return tuple(slot for slot in self.chosen if slot not in self.verifiers)

    def custodian(self, slot: int) -> Party:
        return self.world.members[self.custodians[slot]].party

    def call(self, slot: int) -> CheckCall:
        """Step 2, with the proof of C for all four: a bent call may have it verified by others."""
        return replace(call_for(self.evaluation, 1, self.chosen, TICK, slot), proof=self.evaluation.proof)

    def answer(
        self, slot: int, call: CheckCall | None = None, *, now: float = NOW, spent: tuple[int, ...] = ()
    ) -> CheckAnswer:
        """Step 3 at one custodian, without its record of replays."""
        member = self.world.members[self.custodians[slot]]
        accepted = accept_call(member.party, call or self.call(slot), now)
        view = member.custody.view(accepted.reading())
        key = member.committee_keys[self.statement.shard, accepted.omitted]
        return answer_call(member.party, accepted, key, view, spent)

    def outcome(self, calls: Mapping[int, CheckCall] | None = None) -> CheckOutcome:
        """Steps 3 and 4, with another call at some custodians."""
        answers = {slot: self.answer(slot, (calls or {}).get(slot)) for slot in self.chosen}
        return conclude(self.world.service, self.evaluation, 1, self.chosen, TICK, answers)

    def read(self, outcome: CheckOutcome, *, now: float = NOW) -> list[tuple[Verdict, Void | None]]:
        return read_outcome(self.pending, outcome, now)

    def refusal(self, call: CheckCall, *, slot: int | None = None, now: float = NOW) -> str:
        """Return the code with which a custodian refuses a call."""
        with pytest.raises(ProtocolError) as refused:
            accept_call(self.custodian(self.chosen[0] if slot is None else slot), call, now)
        return refused.value.code


def attempt(world: World, requester: int, questions: list[Question], *, now: float = NOW, seed: object = 1) -> Attempt:
    party, random = world.party(requester), seeded(("attempt", seed))
    pending, request = ask(party, questions, now, now + 2, random)
    evaluation = accept_request(world.service, request, now, random)
    slots = [entry.slot for entry in request.signed.statement.envelopes]
    return Attempt(world, party, pending, request, evaluation, tuple(slots[:4]))


def an_outsider(world: World, shard: int = 0) -> int:
    """Return a member that holds no slot of a shard."""
    return next(n for n in range(1, len(world.members) + 1) if name(n) not in world.manifest.committee(shard).slots)


def an_insider(world: World, shard: int = 0) -> int:
    return next(n for n in range(1, len(world.members) + 1) if name(n) in world.manifest.committee(shard).slots)


def one_shard(**options: object) -> World:
    return make_world(8, shards=1, **options)


def signed_by(party: Party, statement: CheckStatement) -> SignedCheck:
    return SignedCheck(statement=statement, signature=signing.sign(party.keys.signing, PURPOSE, encode(statement)))


def resealed(
    made: Attempt, change: Callable[[CheckEnvelope], CheckEnvelope], slots: tuple[int, ...] | None = None
) -> Attempt:
    """Return the attempt of a requester that puts something else into the envelopes of some slots and signs that."""
    statement, envelopes = made.statement, list(made.request.envelopes)
    hashes = list(statement.envelopes)
    for place, entry in enumerate(statement.envelopes):
        if slots is None or entry.slot in slots:
            custodian = made.custodian(entry.slot)
            opened = custodian.channel(statement.requester).open(PURPOSE, statement.check_id, envelopes[place])
            body = encode(change(decode(CheckEnvelope, opened)))
            channel = made.requester.channel(custodian.id)
            envelopes[place] = channel.seal(PURPOSE, statement.check_id, body, seeded(("reseal", place))(32))
            hashes[place] = replace(entry, hash=envelope_hash(envelopes[place]))
    return restated(replace_request(made, envelopes=tuple(envelopes)), envelopes=tuple(hashes))


def replace_request(made: Attempt, **changes: object) -> Attempt:
    request = replace(made.request, **changes)
    return replace(made, request=request, evaluation=replace(made.evaluation, request=request))


def restated(made: Attempt, **changes: object) -> Attempt:
    """Return the attempt of a requester that signs another statement."""
    return replace_request(made, signed=signed_by(made.requester, replace(made.statement, **changes)))


def lane_changed(body: CheckEnvelope, lane: int = 0, **changes: object) -> CheckEnvelope:
    lanes = list(body.lanes)
    lanes[lane] = replace(lanes[lane], **changes)
    return replace(body, lanes=tuple(lanes))


def person_changed(body: CheckEnvelope, place: int = 0, **changes: object) -> CheckEnvelope:
    persons = list(body.persons)
    persons[place] = replace(persons[place], **changes)
    return replace(body, persons=tuple(persons))


@pytest.fixture
def world() -> World:
    return one_shard()


@pytest.fixture
def made(world: World) -> Attempt:
    """An attempt about two persons, from outside the committee, that would be answered."""
    return attempt(world, an_outsider(world), [Question(person(1), RULE, 5), Question(person(2), COUNT_RULE, 5)])


def test_the_attempt_that_the_tests_below_bend_is_answered(made: Attempt) -> None:
    assert made.read(made.outcome()) == [(WITHIN, None), (WITHIN, None)]


# --- truth ---------------------------------------------------------------------------------------------------------


def plain_verdict(held: list[tuple[Identity, str, int, int, int]], question: Question, as_of: int) -> Verdict:
    """Say in the clear what a check must say. `held` has (person, product, day, amount, count)."""
    total = question.proposed if question.rule.measure == "sum_insured" else min(question.proposed, 1)
    for identity, product, day, amount, count in held:
        in_window = day > as_of - question.rule.window_days
        if identity == question.identity and product in question.rule.products and in_window:
            total += amount if question.rule.measure == "sum_insured" else count
    return EXCEEDS if total > question.rule.limit else WITHIN


WIDE_RULE = replace(RULE, id="both-products-7d", products=("accident", "term_life"), window_days=7, limit=LIMIT // 2)
days = st.sampled_from([-31, -30, -29, -28, -8, -7, -6, -1, 0, 1, 40]).map(lambda back: TODAY + back)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, str, int, int, str]], int, int, int]:
    """Draw (members, [(depositor, person, product, day, amount, what becomes of it)], requester, person, proposal)."""
    members = draw(st.sampled_from([5, 6, 7, 25]))
    member, persons = st.integers(1, members), st.integers(1, 2)
    about = st.sampled_from([1, LIMIT // 4, LIMIT // 2, LIMIT - 1, LIMIT, LIMIT + 1]) | st.integers(0, 2 * LIMIT)
    deposit = st.tuples(
        member,
        persons,
        st.sampled_from(["accident", "term_life", "group_accident"]),
        days,
        about,
        st.sampled_from(["kept", "kept", "cancelled", "raised", "lowered"]),
    )
    return members, draw(st.lists(deposit, max_size=5)), draw(member), draw(persons), draw(about)


@deterministic(60)
@given(histories())
def test_a_verdict_is_that_of_the_plain_sum(
    history: tuple[int, list[tuple[int, int, str, int, int, str]], int, int, int],
) -> None:
    members, deposits, requester, asked, proposed = history
    world = make_world(members, rules=(RULE, COUNT_RULE, WIDE_RULE), shards=1, seed=history)
    committee, held = world.manifest.committee(0).slots, []
    for depositor, whom, product, day, amount, fate in deposits:
        made, receipts = world.deposit(depositor, person(whom), amount, day=day, product=product)
        assert len(receipts) == len(committee) - 1
        held.append((person(whom), product, day, amount, 1))
        if fate != "kept":
            kind, difference, count = {
                "cancelled": (CANCELLATION, -amount, -1),
                "raised": (AMENDMENT, LIMIT // 3, 0),
                "lowered": (AMENDMENT, -amount // 2, 0),
            }[fate]
            _, receipts = world.deposit(
                depositor,
                person(whom),
                difference,
                day=day,
                product=product,
                kind=kind,
                earlier=made.deposit.deposit_id,
            )
            assert len(receipts) == len(committee) - 1
            held.append((person(whom), product, day, difference, count))
    questions = [Question(person(asked), rule, proposed) for rule in (RULE, COUNT_RULE, WIDE_RULE)]
    verdicts = run_check(world.party(requester), world.service, world.members, questions, NOW, world.random)
    assert verdicts == [(plain_verdict(held, question, TODAY), None) for question in questions]


@pytest.mark.parametrize(
    ("back", "verdict"), [(-400, EXCEEDS), (-1, EXCEEDS), (0, EXCEEDS), (29, EXCEEDS), (30, WITHIN), (31, WITHIN)]
)
def test_the_window_has_thirty_days_the_last_of_them_today_and_later_days_count(back: int, verdict: Verdict) -> None:
    world = one_shard()
    world.deposit(1, person(1), LIMIT, day=TODAY - back)
    assert world.check(2, person(1), 1)[0] is verdict


def test_exactly_at_the_limit_is_within_and_one_fen_more_exceeds(world: World) -> None:
    world.deposit(1, person(1), LIMIT - 500)
    assert world.check(2, person(1), 500)[0] is WITHIN
    assert world.check(2, person(1), 501)[0] is EXCEEDS


def test_only_the_rules_products_count(world: World) -> None:
    world.deposit(1, person(1), LIMIT, product="term_life")
    assert world.check(2, person(1), LIMIT)[0] is WITHIN
    world.deposit(1, person(1), 1, product="accident")
    assert world.check(2, person(1), LIMIT)[0] is EXCEEDS


def test_only_the_person_asked_about_counts(world: World) -> None:
    world.deposit(1, person(1), LIMIT)
    assert world.check(2, person(2), LIMIT)[0] is WITHIN


def test_a_count_rule_counts_policies_and_a_proposal_as_one(world: World) -> None:
    made = [world.deposit(depositor, person(1), LIMIT * 9) for depositor in (2, 3, 3)]
    for proposed in (0, 1, LIMIT * 9):
        assert world.check(2, person(1), proposed, rule=COUNT_RULE)[0] is (EXCEEDS if proposed else WITHIN)
    earlier = made[1][0].deposit.deposit_id
    world.deposit(3, person(1), -5, kind=AMENDMENT, earlier=earlier)
    assert world.check(2, person(1), 1, rule=COUNT_RULE)[0] is EXCEEDS
    world.deposit(3, person(1), -LIMIT, kind=CANCELLATION, earlier=earlier)
    assert world.check(2, person(1), 1, rule=COUNT_RULE)[0] is WITHIN


def test_a_deposit_counts_from_its_tick_on_once_that_is_closed_for_a_ticks_length(world: World) -> None:
    world.deposit(1, person(1), LIMIT, now=NOW)
    assert [world.check(2, person(1), 1, now=NOW + wait)[0] for wait in (0, 1, 2)] == [WITHIN, WITHIN, EXCEEDS]


def test_lanes_of_one_check_are_answered_each_by_its_own_rule_and_person(world: World) -> None:
    world.deposit(1, person(1), LIMIT)
    questions = [
        Question(person(1), RULE, 1),
        Question(person(1), RULE, 0),
        Question(person(2), RULE, 1),
        Question(person(1), COUNT_RULE, 1),
    ]
    verdicts = run_check(world.party(2), world.service, world.members, questions, NOW, world.random)
    assert [verdict for verdict, _ in verdicts] == [EXCEEDS, WITHIN, WITHIN, WITHIN]


def test_lanes_of_two_shards_are_two_checks() -> None:
    world = make_world(7, shards=2)
    shards = {shard_of_person(world.party(1), person(number)): number for number in range(20)}
    questions = [Question(person(number), RULE, 1) for number in shards.values()]
    with pytest.raises(ProtocolError, match="mixed-shards"):
        ask(world.party(1), questions, NOW, NOW + 2, world.random)


@pytest.mark.parametrize("rule", [RULE, COUNT_RULE], ids=["sum", "count"])
def test_a_proposal_that_is_negative_or_above_the_manifests_cap_is_not_asked_about(world: World, rule: Rule) -> None:
    cap = world.manifest.terms.deposit_cap
    for proposed, verdict in ((0, WITHIN), (cap, WITHIN if rule is COUNT_RULE else EXCEEDS)):
        assert world.check(1, person(1), proposed, rule=rule) == (verdict, None)
    good = Question(person(1), rule, 1)
    for proposed in (-1, -LIMIT, cap + 1, 2**47, 2**48, 2**48 + 1, -(2**48)):
        bad = Question(person(1), rule, proposed)
        for questions in ([bad], [good, bad], [bad, good]):
            with pytest.raises(ProtocolError, match="bad-amount"):
                ask(world.party(1), questions, NOW, NOW + 2, world.random)


def test_two_members_of_one_owner_neither_keep_nor_answer_for_each_other() -> None:
    owners = {name(1): "one owner", name(2): "one owner"}
    world = make_world(7, shards=1, owners=owners)
    slots = world.manifest.committee(0).slots
    (own,) = [slot for slot, holder in enumerate(slots) if holder in owners]
    for depositor in (1, 2):
        made, receipts = world.deposit(depositor, person(1), LIMIT // 2)
        assert made.excluded == own
        assert own not in receipts
    for requester in (1, 2):
        asked = attempt(world, requester, [Question(person(1), RULE, 0)])
        assert own not in asked.pending.slots
        assert world.check(requester, person(1), 0)[0] is WITHIN
        assert world.check(requester, person(1), 1)[0] is EXCEEDS


# --- who can be missing --------------------------------------------------------------------------------------------


def test_with_six_slots_any_one_member_can_be_unreachable_for_any_requester(world: World) -> None:
    world.deposit(1, person(1), LIMIT)
    for missing in range(1, 9):
        for requester in {1, an_outsider(world), 3} - {missing}:
            without = frozenset({name(missing)})
            assert world.check(requester, person(1), 0, without=without) == (WITHIN, None)
            assert world.check(requester, person(1), 1, without=without) == (EXCEEDS, None)


def test_too_few_custodians_are_no_verdict(world: World) -> None:
    slots = world.manifest.committee(0).slots
    insider, outsider = an_insider(world), an_outsider(world)
    others = [member for member in slots if member != name(insider)]
    assert world.check(insider, person(1), 1, without=frozenset(others[:1]))[0] is WITHIN
    void = (INDETERMINATE, Void.TOO_FEW_CUSTODIANS)
    assert world.check(insider, person(1), 1, without=frozenset(others[:2])) == void
    assert world.check(outsider, person(1), 1, without=frozenset(slots[:2]))[0] is WITHIN
    assert world.check(outsider, person(1), 1, without=frozenset(slots[:3])) == void


def test_with_five_groups_a_custodian_as_requester_needs_all_others() -> None:
    world = make_world(5, shards=1)
    for missing in range(2, 6):
        without = frozenset({name(missing)})
        assert world.check(1, person(1), 1, without=without) == (INDETERMINATE, Void.TOO_FEW_CUSTODIANS)
    assert world.check(1, person(1), 1) == (WITHIN, None)


# --- step 2: what the service refuses ------------------------------------------------------------------------------


def service_refusal(world: World, request: CheckRequest, *, now: float = NOW) -> str:
    with pytest.raises(ProtocolError) as refused:
        accept_request(world.service, request, now, seeded("service"))
    return refused.value.code


def test_the_service_refuses_a_request_that_another_signed_or_that_was_changed(world: World, made: Attempt) -> None:
    request = made.request
    forged = replace(request, signed=signed_by(world.party(3), made.statement))
    assert service_refusal(world, forged) == "bad-signature"
    other = replace(made.statement, issued_at=made.statement.issued_at + 1)
    assert service_refusal(world, replace(request, signed=replace(request.signed, statement=other))) == "bad-signature"
    stranger = replace(made.statement, requester="insurer-99")
    assert service_refusal(world, replace(request, signed=signed_by(made.requester, stranger))) == "unknown-member"


@pytest.mark.parametrize("wait", [61, -62, 3600])
def test_the_service_refuses_a_request_that_is_not_fresh(world: World, made: Attempt, wait: float) -> None:
    assert service_refusal(world, made.request, now=NOW + wait) == "stale"


def test_the_service_refuses_a_request_under_another_or_an_expired_manifest(world: World, made: Attempt) -> None:
    assert service_refusal(world, restated(made, manifest_hash=bytes(32)).request) == "other-manifest"
    late = world.manifest.terms.valid_until
    old = restated(made, issued_at=late)
    assert service_refusal(world, old.request, now=late) == "manifest-expired"


def test_whoever_limits_members_is_told_of_an_authentic_request_before_it_is_evaluated(
    world: World, made: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []
    evaluate = voprf.blind_evaluate

    def refuse(member: str, persons: int) -> None:
        told.append((member, persons))
        raise ProtocolError("too-many", "a limit")

    monkeypatch.setattr(voprf, "blind_evaluate", lambda *_: pytest.fail("evaluated before it was admitted"))
    with pytest.raises(ProtocolError, match="too-many"):
        accept_request(world.service, made.request, NOW, world.random, refuse)
    assert told == [(made.requester.id, 2)]
    unsigned = replace(made.request, signed=replace(made.request.signed, signature=bytes(64)))
    other = restated(made, manifest_hash=bytes(32)).request
    for bad, now in ((unsigned, NOW), (made.request, NOW + 61), (other, NOW)):
        with pytest.raises(ProtocolError, match=r"bad-signature|stale|other-manifest"):
            accept_request(world.service, bad, now, world.random, refuse)
    assert len(told) == 1  # nobody is charged for what he did not sign
    monkeypatch.setattr(voprf, "blind_evaluate", evaluate)
    accept_request(world.service, made.request, NOW, world.random, lambda *call: told.append(call))
    assert told == [(made.requester.id, 2)] * 2


def test_the_service_refuses_other_envelopes_than_those_signed(world: World, made: Attempt) -> None:
    envelopes = made.request.envelopes
    for bent in (
        (envelopes[1], envelopes[0], *envelopes[2:]),
        envelopes[:-1],
        (*envelopes, envelopes[0]),
        (envelopes[0] + b"!", *envelopes[1:]),
    ):
        assert service_refusal(world, replace(made.request, envelopes=bent)) == "bad-envelopes"


def test_the_service_refuses_envelopes_for_the_requesters_own_slot_or_not_for_all_others(world: World) -> None:
    made = attempt(world, an_insider(world), [Question(person(1), RULE, 5)])
    own = world.manifest.slot_of_group(0, made.requester.id)
    assert own is not None
    hashes = made.statement.envelopes
    for bent in (
        hashes[1:],
        tuple(sorted((*hashes, replace(hashes[0], slot=own)), key=lambda entry: entry.slot)),
        hashes[::-1],
        (*hashes[:-1], hashes[0]),
    ):
        assert service_refusal(world, restated(made, envelopes=bent).request) == "bad-envelopes"


# --- step 3: what a custodian refuses ------------------------------------------------------------------------------


def test_a_custodian_refuses_a_statement_that_the_requester_did_not_sign(world: World, made: Attempt) -> None:
    call = made.call(made.chosen[0])
    signature = call.signed.signature
    flipped = signature[:-1] + bytes([signature[-1] ^ 1])
    assert made.refusal(replace(call, signed=replace(call.signed, signature=flipped))) == "bad-signature"
    for changes in (
        {"requester": world.party(3).id},
        {"check_id": bytes(16)},
        {"shard": 1},
        {"manifest_hash": bytes(32)},
        {"as_of": TODAY - 1},
        {"issued_at": int(NOW) - 1},
        {"lanes": made.statement.lanes[::-1]},
        {"lanes": made.statement.lanes[:1]},
        {"persons": made.statement.persons[::-1]},
        {"envelopes": made.statement.envelopes[::-1]},
    ):
        bent = replace(call.signed, statement=replace(made.statement, **changes))
        assert made.refusal(replace(call, signed=bent)) == "bad-signature", changes


@pytest.mark.parametrize("wait", [61, -62])
def test_a_custodian_refuses_a_request_that_is_not_fresh(made: Attempt, wait: float) -> None:
    call = replace(made.call(made.chosen[0]), tick=as_of_tick(NOW + wait, 1))
    assert made.refusal(call, now=NOW + wait) == "stale"


@pytest.mark.parametrize("off", [-2, 2, 30, -30])
def test_a_custodian_refuses_an_as_of_day_more_than_a_day_from_its_own(made: Attempt, off: int) -> None:
    bent = resealed(restated(made, as_of=TODAY + off), lambda body: replace(body, as_of=TODAY + off))
    assert made.refusal(bent.call(made.chosen[0])) == "bad-day"


@pytest.mark.parametrize("off", [-1, 0, 1])
def test_a_custodian_takes_an_as_of_day_next_to_its_own(made: Attempt, off: int) -> None:
    bent = resealed(restated(made, as_of=TODAY + off), lambda body: replace(body, as_of=TODAY + off))
    assert bent.read(bent.outcome()) == [(WITHIN, None), (WITHIN, None)]


@deterministic(60)
@given(st.floats(0, 4e9))
def test_days_are_those_of_utc_plus_eight(now: float) -> None:
    china = datetime.fromtimestamp(now, timezone(timedelta(hours=8)))
    assert china_day(now) == china.date().toordinal()
    midnight = china.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    if midnight >= 1:
        assert china_day(midnight) == china_day(midnight - 1) + 1


@pytest.mark.parametrize(
    "tick", [int(NOW), int(NOW) + 1, int(NOW) + 1000, int(NOW) - 62, 0], ids=["open", "next", "far", "61 s old", "zero"]
)
def test_a_custodian_refuses_a_tick_that_is_open_or_more_than_a_minute_old(made: Attempt, tick: int) -> None:
    assert made.refusal(replace(made.call(made.chosen[0]), tick=tick)) == "bad-tick"


def test_a_custodian_takes_every_tick_that_is_closed_and_no_more_than_a_minute_old(made: Attempt) -> None:
    slot = made.chosen[0]
    for tick in (int(NOW) - 1, int(NOW) - 61):
        assert accept_call(made.custodian(slot), replace(made.call(slot), tick=tick), NOW).tick == tick


def test_a_custodian_refuses_another_manifest_and_an_expired_one(world: World, made: Attempt) -> None:
    bent = resealed(restated(made, manifest_hash=bytes(32)), lambda body: replace(body, manifest_hash=bytes(32)))
    assert made.refusal(bent.call(made.chosen[0])) == "other-manifest"
    late = world.manifest.terms.valid_until
    assert made.refusal(restated(made, issued_at=late).call(made.chosen[0]), now=late) == "manifest-expired"


@pytest.mark.parametrize(
    ("chosen", "own"),
    [
        ((0, 1, 2), 0),
        ((0, 1, 2, 3, 4), 0),
        ((1, 0, 2, 3), 0),
        ((0, 0, 1, 2), 0),
        ((0, 1, 2, 6), 0),
        ((1, 2, 3, 4), 0),
    ],
    ids=["three", "five", "unsorted", "a slot twice", "no such slot", "without this custodian"],
)
def test_a_custodian_refuses_an_a_that_is_not_four_sorted_slots_with_its_own(
    made: Attempt, chosen: tuple[int, ...], own: int
) -> None:
    assert made.refusal(replace(made.call(own), chosen=chosen), slot=own) == "bad-choice"


def test_a_custodian_refuses_an_a_with_the_requesters_own_slot(world: World) -> None:
    made = attempt(world, an_insider(world), [Question(person(1), RULE, 5)])
    own = world.manifest.slot_of_group(0, made.requester.id)
    for slot in made.pending.slots:
        others = [other for other in made.pending.slots if other != slot][:2]
        chosen = tuple(sorted((own, slot, *others)))
        assert made.refusal(replace(made.call(slot), chosen=chosen), slot=slot) == "bad-choice"


def test_a_member_outside_the_committee_answers_no_check(world: World, made: Attempt) -> None:
    outsider = next(party for party in map(world.party, range(1, 9)) if party.id not in made.custodians)
    with pytest.raises(ProtocolError, match="not-custodian"):
        accept_call(outsider, made.call(made.chosen[0]), NOW)


def test_a_custodian_refuses_the_envelope_of_another_slot_or_check(world: World, made: Attempt) -> None:
    one, two = made.chosen[:2]
    assert made.refusal(replace(made.call(one), envelope=made.call(two).envelope)) == "bad-envelopes"
    other = attempt(world, an_outsider(world), [Question(person(1), RULE, 5)], seed="other")
    assert made.refusal(replace(made.call(one), envelope=other.call(one).envelope)) == "bad-envelopes"


def test_a_custodian_refuses_an_envelope_that_it_cannot_open_though_it_is_signed(world: World, made: Attempt) -> None:
    # A requester may sign two envelopes swapped, one of another check, or one that is noise.
    one, two = made.chosen[:2]
    hashes, envelopes = made.statement.envelopes, made.request.envelopes
    swapped = (replace(hashes[0], hash=hashes[1].hash), replace(hashes[1], hash=hashes[0].hash), *hashes[2:])
    bent = restated(replace_request(made, envelopes=(envelopes[1], envelopes[0], *envelopes[2:])), envelopes=swapped)
    for slot in (one, two):
        assert made.refusal(bent.call(slot), slot=slot) == "bad-envelope"
    other = attempt(world, an_outsider(world), [Question(person(1), RULE, 5)], seed="other")
    bent = restated(replace_request(made, envelopes=other.request.envelopes), envelopes=other.statement.envelopes)
    assert made.refusal(bent.call(one)) == "bad-envelope"
    for noise in (b"", b"!", bytes(48), bytes(1000)):
        bent = restated(
            replace_request(made, envelopes=(noise, *envelopes[1:])),
            envelopes=(replace(hashes[0], hash=envelope_hash(noise)), *hashes[1:]),
        )
        assert made.refusal(bent.call(one)) == "bad-envelope"


def test_a_custodian_refuses_a_body_that_is_no_check_envelope(made: Attempt) -> None:
    slot = made.chosen[0]
    for body in (b"", bytes(100), encode(made.statement)):
        channel = made.requester.channel(made.custodian(slot).id)
        sealed = channel.seal(PURPOSE, made.statement.check_id, body, bytes(32))
        hashes = (replace(made.statement.envelopes[0], hash=envelope_hash(sealed)), *made.statement.envelopes[1:])
        bent = restated(replace_request(made, envelopes=(sealed, *made.request.envelopes[1:])), envelopes=hashes)
        assert made.refusal(bent.call(slot)) == "malformed"


@pytest.mark.parametrize(
    "change",
    [
        lambda body: replace(body, check_id=bytes(16)),
        lambda body: replace(body, shard=1),
        lambda body: replace(body, manifest_hash=bytes(32)),
        lambda body: replace(body, as_of=body.as_of - 1),
        lambda body: replace(body, issued_at=body.issued_at - 1),
        lambda body: replace(body, lanes=body.lanes[::-1]),
        lambda body: replace(body, lanes=body.lanes[:1]),
        lambda body: replace(body, lanes=(*body.lanes, body.lanes[0])),
        lambda body: replace(body, persons=body.persons[::-1]),
        lambda body: replace(body, persons=body.persons[:1]),
        lambda body: person_changed(body, blinded=body.persons[1].blinded),
        lambda body: lane_changed(body, person=1),
        lambda body: lane_changed(body, rule_id="another-rule"),
        lambda body: lane_changed(body, rule_version=2),
    ],
    ids=[
        "check id",
        "shard",
        "manifest",
        "as-of day",
        "issued at",
        "lanes swapped",
        "a lane missing",
        "a lane more",
        "persons swapped",
        "a person missing",
        "B",
        "a lane of another person",
        "rule",
        "rule version",
    ],
)
def test_a_custodian_refuses_an_envelope_that_says_something_else_than_the_statement(
    made: Attempt, change: Callable[[CheckEnvelope], CheckEnvelope]
) -> None:
    slot = made.chosen[0]
    assert made.refusal(resealed(made, change).call(slot)) == "unequal-fields"


def test_a_custodian_refuses_another_c_and_the_proof_of_another_check(world: World, made: Attempt) -> None:
    slot = made.verifiers[0]
    call = made.call(slot)
    other = attempt(world, an_outsider(world), [Question(person(1), RULE, 5), Question(person(2), RULE, 5)], seed=2)
    one, two = (Element(point) for point in call.evaluated)
    for bent in (
        replace(call, evaluated=other.evaluation.evaluated),
        replace(call, proof=other.evaluation.proof),
        replace(call, evaluated=other.evaluation.evaluated, proof=other.evaluation.proof),
        replace(call, evaluated=(two, one)),
        replace(call, evaluated=(one,)),
        replace(call, evaluated=(one, two, two)),
        replace(call, evaluated=(one, one)),
        replace(call, proof=replace(call.proof, challenge=call.proof.response)),
        replace(call, proof=None),
    ):
        assert made.refusal(bent, slot=slot) == "bad-evaluation"
    for trusting in made.trusting:
        for points in ((one,), (one, two, two)):
            bent = replace(made.call(trusting), evaluated=points)
            assert made.refusal(bent, slot=trusting) == "bad-evaluation"


def test_the_proof_of_c_goes_to_the_two_that_verify_it_and_is_made_for_them(made: Attempt) -> None:
    evaluation = replace(made.evaluation)
    calls = {slot: call_for(evaluation, 1, made.chosen, TICK, slot) for slot in made.trusting}
    assert "proof" not in vars(evaluation)
    calls |= {slot: call_for(evaluation, 1, made.chosen, TICK, slot) for slot in made.verifiers}
    assert {slot for slot, call in calls.items() if call.proof is not None} == set(made.verifiers)
    assert made.read(made.outcome(calls)) == made.read(made.outcome())


def test_a_custodian_refuses_c_made_with_another_key_even_under_a_proof_for_it(world: World, made: Attempt) -> None:
    slot = made.verifiers[0]
    secret, public = voprf.derive_key_pair(bytes(32), b"another service")
    blinded = [Element(point) for point in made.statement.persons]
    evaluated = [voprf.blind_evaluate(secret, point) for point in blinded]
    nonce = random_scalar(seeded("nonce"))
    for key in (public, world.manifest.blinding_key):
        proof = voprf.prove(secret, key, blinded, evaluated, nonce)
        bent = replace(made.call(slot), evaluated=tuple(evaluated), proof=proof)
        assert made.refusal(bent, slot=slot) == "bad-evaluation"


def test_a_custodian_refuses_the_d_and_proof_of_another_person_check_or_requester(world: World, made: Attempt) -> None:
    slot = made.chosen[0]
    custodian = made.custodian(slot)
    outsider = an_outsider(world)
    third = next(n for n in range(1, 9) if n != outsider and name(n) != custodian.id)
    donors = [
        attempt(world, outsider, [Question(person(1), RULE, 5)], seed="another check"),
        attempt(world, third, [Question(person(1), RULE, 5)], seed="another requester"),
    ]
    for donor in donors:
        channel = custodian.channel(donor.requester.id)
        sealed = decode(CheckEnvelope, channel.open(PURPOSE, donor.statement.check_id, donor.call(slot).envelope))
        seen = sealed.persons[0]
        # Its D and proof alone; and the attack in full, with the B that they belong to.
        bent = resealed(made, lambda body, seen=seen: person_changed(body, unblinder=seen.unblinder, proof=seen.proof))
        assert made.refusal(bent.call(slot)) == "bad-unblinder"
        aimed = resealed(
            restated(made, persons=(seen.blinded, made.statement.persons[1])),
            lambda body, seen=seen: person_changed(
                body, blinded=seen.blinded, unblinder=seen.unblinder, proof=seen.proof
            ),
        )
        aimed = replace(aimed, evaluation=accept_request(world.service, aimed.request, NOW, seeded("aimed")))
        assert made.refusal(aimed.call(slot)) == "bad-unblinder"
    swapped = resealed(
        made,
        lambda body: person_changed(body, unblinder=body.persons[1].unblinder, proof=body.persons[1].proof),
    )
    assert made.refusal(swapped.call(slot)) == "bad-unblinder"


def test_a_custodian_refuses_a_proposal_that_is_not_shared_as_its_committee_shares(made: Attempt) -> None:
    slot = next(slot for slot in made.chosen if proposal_at(made, slot))
    for change in (lambda shares: shares[:-1], lambda shares: (*shares, 5), lambda _: ()):
        bent = resealed(made, lambda body, change=change: lane_changed(body, proposal=change(body.lanes[0].proposal)))
        assert made.refusal(bent.call(slot), slot=slot) == "bad-proposal"


def test_the_slot_that_a_proposal_excludes_refuses_shares_of_it(world: World) -> None:
    for seed in range(50):
        made = attempt(world, an_outsider(world), [Question(person(1), RULE, 5)], seed=seed)
        for slot in made.chosen:
            if not proposal_at(made, slot):
                bent = resealed(made, lambda body: lane_changed(body, proposal=(1, 2, 3, 4)), (slot,))
                assert made.refusal(bent.call(slot), slot=slot) == "bad-proposal"
                return
    raise AssertionError("no check excluded a slot of its A")


def proposal_at(made: Attempt, slot: int) -> tuple[int, ...]:
    """Return the proposal's shares that a slot was sent."""
    channel = made.custodian(slot).channel(made.statement.requester)
    opened = channel.open(PURPOSE, made.statement.check_id, made.call(slot).envelope)
    return decode(CheckEnvelope, opened).lanes[0].proposal


def test_a_custodian_refuses_a_rule_that_is_unknown_or_of_another_version_or_not_yet_in_force() -> None:
    later = replace(RULE, version=2, limit=LIMIT // 2, valid_from=TODAY)
    future = replace(RULE, id="future", valid_from=TODAY + 1)
    world = one_shard(rules=(RULE, later, future))
    outsider = an_outsider(world)

    def code(rule: Rule) -> str:
        made = attempt(world, outsider, [Question(person(1), rule, 5)])
        return made.refusal(made.call(made.chosen[0]))

    assert code(RULE) == "other-rule"
    assert code(replace(later, version=3)) == "other-rule"
    assert code(replace(RULE, id="no such rule")) == "unknown-rule"
    assert code(future) == "unknown-rule"
    made = attempt(world, outsider, [Question(person(1), later, LIMIT // 2 + 1)])
    assert made.read(made.outcome()) == [(EXCEEDS, None)]


def test_the_limit_and_window_are_those_of_the_manifest_whatever_the_requester_thinks(world: World) -> None:
    world.deposit(1, person(1), LIMIT, day=TODAY - 29)
    lenient = replace(RULE, limit=LIMIT * 2, window_days=1, products=("term_life",))
    assert world.check(2, person(1), 1, rule=lenient)[0] is EXCEEDS


def test_a_custodian_answers_with_no_other_key_than_the_one_for_this_requester(world: World) -> None:
    made = attempt(world, an_insider(world), [Question(person(1), RULE, 5)])
    slot = made.chosen[0]
    member = world.members[made.custodians[slot]]
    accepted = accept_call(member.party, made.call(slot), NOW)
    view = member.custody.view(accepted.reading())
    for (shard, omitted), key in member.committee_keys.items():
        if omitted != accepted.omitted:
            with pytest.raises(ProtocolError, match="other-key"):
                answer_call(member.party, accepted, key, view)
        else:
            assert answer_call(member.party, accepted, key, view).committee_key.shard == shard


def test_a_custodian_answers_with_no_key_of_another_committee_version_or_shard(world: World, made: Attempt) -> None:
    slot = made.chosen[0]
    member = world.members[made.custodians[slot]]
    accepted = accept_call(member.party, made.call(slot), NOW)
    view, key = member.custody.view(accepted.reading()), member.committee_keys[0, accepted.omitted]
    assert key.name.committee_version == 1
    for changes in ({"committee_version": 0}, {"committee_version": 2}, {"shard": 1}):
        with pytest.raises(ProtocolError, match="other-key"):
            answer_call(member.party, accepted, CommitteeKey(replace(key.name, **changes), key.secret), view)
    assert answer_call(member.party, accepted, key, view).committee_key == key.name


# --- the header: custodians that were told different things open no tag -------------------------------------------


def other_attempt(made: Attempt, slot: int) -> CheckCall:
    return replace(made.call(slot), attempt=2)


def other_choice(made: Attempt, slot: int) -> CheckCall:
    spare = next(other for other in made.pending.slots if other not in made.chosen)
    dropped = next(other for other in made.chosen[::-1] if other != slot)
    return replace(made.call(slot), chosen=tuple(sorted({*made.chosen, spare} - {dropped})))


def other_tick(made: Attempt, slot: int) -> CheckCall:
    return replace(made.call(slot), tick=TICK - 1)


@pytest.mark.parametrize("bend", [other_attempt, other_choice, other_tick])
def test_custodians_told_another_attempt_choice_or_tick_open_no_tag(
    made: Attempt, bend: Callable[[Attempt, int], CheckCall]
) -> None:
    for told in (made.chosen[:1], made.chosen[3:], made.chosen[:2], made.chosen[1:]):
        with pytest.raises(Disagreement):
            made.outcome({slot: bend(made, slot) for slot in told})


def test_a_requester_that_tells_custodians_different_things_opens_no_tag(made: Attempt) -> None:
    def another_person(body: CheckEnvelope) -> CheckEnvelope:
        random, context = seeded("other"), check_context(made.requester.id, made.statement.check_id, 0)
        scalars = (random_scalar(random), random_scalar(random))
        # The signed B cannot change, so the other pseudonym comes of another t for the same B.
        token = proven(made, body.persons[0].blinded, scalars, context)
        return person_changed(body, unblinder=token.unblinder, proof=token.proof)

    bends: dict[str, Callable[[CheckEnvelope], CheckEnvelope]] = {
        "another person": another_person,
        "another seed": lambda body: replace(body, seed=bytes(32)),
        "another proposal": lambda body: lane_changed(
            body, proposal=tuple((piece + 1) % 2**48 for piece in body.lanes[0].proposal)
        ),
    }
    for what, bend in bends.items():
        for told in combinations(made.chosen, 1):
            if what == "another proposal" and not proposal_at(made, told[0]):
                continue
            bent = resealed(made, bend, told)
            with pytest.raises(Disagreement):
                bent.outcome()


def proven(made: Attempt, blinded: bytes, scalars: tuple[Any, Any], context: bytes) -> Token:
    """Prove knowledge of another t for a B that was made with a first one."""
    t, nonce = scalars
    key = made.world.manifest.blinding_key
    unblinder, commitment = group.multiply(t, key), group.multiply(nonce, key)
    challenge = prover._challenge(context, Element(blinded), key, unblinder, commitment)
    response = group.scalar_add(nonce, group.scalar_multiply(challenge, t))
    return Token(Element(blinded), unblinder, prover.SchnorrProof(challenge=challenge, response=response))


def test_custodians_told_two_statements_under_one_check_id_open_no_tag(made: Attempt) -> None:
    for changes in ({"as_of": TODAY - 1}, {"issued_at": int(NOW) - 1}):
        other = resealed(restated(made, **changes), lambda body, changes=changes: replace(body, **changes))
        for told in (made.chosen[:1], made.chosen[2:]):
            calls = {slot: other.call(slot) for slot in told}
            if "as_of" in changes:
                with pytest.raises(Disagreement):
                    made.outcome(calls)
            else:
                # The time of issue selects nothing, so it is not in the header; the verdict is the same one.
                assert made.read(made.outcome(calls)) == [(WITHIN, None)] * 2


def test_custodians_with_unequal_committee_keys_open_no_tag(world: World, made: Attempt) -> None:
    other = make_world(8, shards=1, seed="other keys")
    assert other.manifest.committee(0).slots == made.custodians
    for told in (made.chosen[:1], made.chosen[1:]):
        answers = {slot: made.answer(slot) for slot in made.chosen}
        for slot in told:
            member = world.members[made.custodians[slot]]
            accepted = accept_call(member.party, made.call(slot), NOW)
            key = other.members[made.custodians[slot]].committee_keys[0, None]
            # Its own name shows another key; under the name of the right key it disagrees all the same.
            for shown in (key, replace(key, name=answers[made.chosen[0]].committee_key)):
                view = member.custody.view(accepted.reading())
                answers[slot] = answer_call(member.party, accepted, shown, view)
                with pytest.raises(Disagreement):
                    conclude(world.service, made.evaluation, 1, made.chosen, TICK, answers)


def test_the_service_cannot_evaluate_under_another_attempt_choice_or_tick_than_was_garbled(made: Attempt) -> None:
    world, answers = made.world, {slot: made.answer(slot) for slot in made.chosen}
    for number, tick in ((2, TICK), (3, TICK), (1, TICK - 1)):
        outcome = conclude(world.service, made.evaluation, number, made.chosen, tick, answers)
        assert made.read(outcome) == [(INDETERMINATE, Void.DISAGREEMENT)] * 2


def test_parts_of_two_attempts_of_one_check_do_not_mix(made: Attempt) -> None:
    first = {slot: made.answer(slot) for slot in made.chosen}
    second = {slot: made.answer(slot, other_attempt(made, slot)) for slot in made.chosen}
    for taken in combinations(made.chosen, 2):
        answers = {slot: (second if slot in taken else first)[slot] for slot in made.chosen}
        for number in (1, 2):
            with pytest.raises(Disagreement):
                conclude(made.world.service, made.evaluation, number, made.chosen, TICK, answers)


def test_two_attempts_of_a_check_have_no_label_or_session_in_common(made: Attempt) -> None:
    # Were labels to repeat, a service could learn from two attempts which bits of the shares are alike.
    for bend in (other_attempt, other_tick):
        for slot in made.chosen:
            one, two = made.answer(slot).part, made.answer(slot, bend(made, slot)).part
            assert one.session_check != two.session_check
            for left, right in zip(one.sent, two.sent, strict=True):
                pieces = [
                    {data[at : at + 16] for at in range(0, len(data), 16)} for data in (left.labels, right.labels)
                ]
                assert not pieces[0] & pieces[1]
            for mine, other in zip(one.vouched, two.vouched, strict=True):
                assert mine.masked != other.masked


# --- what a custodian records: replays and the budget -------------------------------------------------------------


def admission(
    *, attempt: int = 1, check: int = 1, statement: int = 1, today: int = TODAY, lanes: int = 1, budget: int = 3
) -> Admission:
    charges = tuple(Charge(IndexKey(bytes([lane]) * 32), "rule", UNDERWRITING, budget, 30) for lane in range(lanes))
    ids = (bytes([check]) * 16, bytes([statement]) * 32)
    return Admission("insurer-01", "a group", *ids, attempt, today, charges, 100)


SPENT = (0,)


def admit_refusal(custody: MemoryCustody, asked: Admission) -> str:
    with pytest.raises(ProtocolError) as refused:
        custody.admit(asked)
    return refused.value.code


def test_an_attempt_is_answered_once() -> None:
    custody = MemoryCustody()
    for number in (1, 2, 3):
        custody.admit(admission(attempt=number))
        assert admit_refusal(custody, admission(attempt=number)) == "replayed"
    assert admit_refusal(custody, admission(attempt=1)) == "replayed"


def test_another_request_under_a_check_id_is_refused_but_not_that_of_another_requester() -> None:
    custody = MemoryCustody()
    custody.admit(admission(statement=1))
    for number in (1, 2, 3):
        assert admit_refusal(custody, admission(statement=2, attempt=number)) == "check-id-reused"
    custody.admit(replace(admission(statement=2), requester="insurer-02"))


def test_all_attempts_of_a_check_are_as_of_one_tick() -> None:
    custody = MemoryCustody()
    custody.admit(admission(attempt=1))
    assert admit_refusal(custody, replace(admission(attempt=2), tick=101)) == "other-tick"
    custody.admit(admission(attempt=2))


def test_the_budget_is_spent_after_exactly_that_many_checks() -> None:
    custody = MemoryCustody()
    for check in range(3):
        assert custody.admit(admission(check=check)) == ()
    assert custody.admit(admission(check=9)) == SPENT


def test_a_spent_lane_stays_so_for_its_check_and_another_is_charged_when_the_budget_is_released() -> None:
    custody = MemoryCustody()
    for check in range(3):
        custody.admit(admission(check=check))
    for later in (0, 1, 29):
        assert custody.admit(admission(check=9 + later, today=TODAY + later)) == SPENT
    assert custody.admit(admission(check=9, attempt=2, today=TODAY + 30)) == SPENT
    assert custody.admit(admission(check=8, today=TODAY + 30)) == ()


def test_a_second_attempt_of_a_check_is_not_charged_again() -> None:
    custody = MemoryCustody()
    for check in range(3):
        for number in (1, 2, 3):
            assert custody.admit(admission(check=check, attempt=number)) == ()
    assert custody.admit(admission(check=9)) == SPENT


def test_every_lane_that_can_be_paid_for_is_charged_and_no_other() -> None:
    custody = MemoryCustody()
    for check in (1, 2):
        custody.admit(admission(check=check, lanes=1))
    same = replace(admission(check=3), charges=admission().charges * 2)
    assert custody.admit(same) == (1,)
    assert custody.admit(admission(check=4, lanes=2)) == (0,)
    one, other = admission(lanes=2).charges
    assert custody.admit(replace(admission(check=5), charges=(replace(other, budget=1),))) == (0,)
    assert custody.admit(replace(admission(check=6), charges=(one, other, other, other))) == (0, 3)


def test_budgets_of_other_groups_rules_and_persons_are_apart() -> None:
    custody = MemoryCustody()
    for check in range(3):
        custody.admit(admission(check=check))
    charge = admission().charges[0]
    for fresh in (
        replace(admission(check=10), requester_group="another group"),
        replace(admission(check=11), charges=(replace(charge, rule_id="another rule"),)),
        replace(admission(check=12), charges=(replace(charge, index=IndexKey(b"\x07" * 32)),)),
    ):
        assert custody.admit(fresh) == ()
    assert custody.admit(replace(admission(check=13), requester="insurer-02")) == SPENT


def reason_of_check(world: World, requester: int) -> Void | None:
    """Return why there is no answer, None for one."""
    verdict, reason = world.check(requester, person(1), 1, rule=world.manifest.terms.rules[0])
    assert (verdict is WITHIN) is (reason is None)
    return reason


def test_a_group_gets_no_more_answers_about_a_person_than_the_budget_of_four_custodians_allows() -> None:
    world = make_world(8, shards=1, rules=(replace(RULE, budget=2),), owners={name(1): "one", name(2): "one"})
    reasons = [reason_of_check(world, requester) for requester in (1, 2) * 6]
    assert set(reasons) == {None, Void.BUDGET_EXHAUSTED}
    slots = 6 - (world.manifest.slot_of_group(0, name(1)) is not None)
    assert 2 <= reasons.count(None) <= slots * 2 // 4


def test_what_a_call_asks_to_be_recorded_is_what_replays_are_told_by(world: World, made: Attempt) -> None:
    slot = made.chosen[0]
    recorded = accept_call(made.custodian(slot), made.call(slot), NOW).admission()
    assert (recorded.requester, recorded.check_id) == (made.requester.id, made.statement.check_id)
    assert (recorded.attempt, recorded.today) == (1, TODAY)
    assert [charge.rule_id for charge in recorded.charges] == [RULE.id, COUNT_RULE.id]
    assert len({charge.index for charge in recorded.charges}) == 2
    again = accept_call(made.custodian(slot), other_attempt(made, slot), NOW).admission()
    assert replace(again, attempt=1) == recorded
    restamped = resealed(restated(made, issued_at=int(NOW) - 1), lambda body: replace(body, issued_at=int(NOW) - 1))
    other = accept_call(made.custodian(slot), restamped.call(slot), NOW).admission()
    assert other.statement_hash != recorded.statement_hash
    custody = world.members[made.custodians[slot]].custody
    custody.admit(recorded)
    assert admit_refusal(custody, recorded) == "replayed"  # type: ignore[arg-type]  a MemoryCustody
    assert admit_refusal(custody, other) == "check-id-reused"  # type: ignore[arg-type]  a MemoryCustody


# --- step 5: what the requester refuses ----------------------------------------------------------------------------


def test_an_outcome_past_its_deadline_is_no_verdict(made: Attempt) -> None:
    outcome = made.outcome()
    assert made.read(outcome, now=NOW + 2) == [(WITHIN, None)] * 2
    assert made.read(outcome, now=NOW + 2.001) == [(INDETERMINATE, Void.TIMEOUT)] * 2


def test_an_outcome_that_cannot_be_is_no_verdict(world: World) -> None:
    made = attempt(world, an_insider(world), [Question(person(1), RULE, 5), Question(person(2), RULE, 5)])
    own = world.manifest.slot_of_group(0, made.requester.id)
    good = made.outcome()
    one, two = good.tags
    assert made.read(good) == [(WITHIN, None)] * 2
    a, b, c, _ = good.chosen
    bent = {
        "another check": replace(good, check_id=bytes(16)),
        "attempt 0": replace(good, attempt=0),
        "attempt 2": replace(good, attempt=2),
        "attempt 4": replace(good, attempt=4),
        "attempt 255": replace(good, attempt=255),
        "no choice": replace(good, chosen=()),
        "three": replace(good, chosen=(a, b, c)),
        "a slot twice": replace(good, chosen=(a, a, b, c)),
        "unsorted": replace(good, chosen=good.chosen[::-1]),
        "no such slot": replace(good, chosen=(a, b, c, 15)),
        "the requester's own slot": replace(good, chosen=tuple(sorted((own, a, b, c)))),
        "another choice": replace(good, chosen=made.pending.slots[1:5]),
        "no tags": replace(good, tags=()),
        "one tag": replace(good, tags=(one,)),
        "three tags": replace(good, tags=(one, two, one)),
    }
    for what, outcome in bent.items():
        assert made.read(outcome) == [(INDETERMINATE, Void.DISAGREEMENT)] * 2, what


@pytest.mark.parametrize("number", [0, 4, 255])
def test_tags_that_fit_an_attempt_that_cannot_be_are_no_verdict(made: Attempt, number: int) -> None:
    assert made.read(fitting(made, 3, made.chosen)) == [(WITHIN, None)] * 2
    assert made.read(fitting(made, number, made.chosen)) == [(INDETERMINATE, Void.DISAGREEMENT)] * 2


def test_tags_that_fit_a_choice_that_cannot_be_are_no_verdict(world: World) -> None:
    made = attempt(world, an_insider(world), [Question(person(1), RULE, 5)])
    own = world.manifest.slot_of_group(0, made.requester.id)
    assert own is not None
    a, b, c, d = made.chosen
    assert made.read(fitting(made, 1, (a, b, c, d))) == [(WITHIN, None)]
    for chosen in (tuple(sorted((own, a, b, c))), (b, a, c, d), (a, a, b, c), (a, b, c), (a, b, c, 15)):
        assert made.read(fitting(made, 1, chosen)) == [(INDETERMINATE, Void.DISAGREEMENT)]


def fitting(made: Attempt, number: int, chosen: tuple[int, ...]) -> CheckOutcome:
    """Return an outcome with the tags of "within" for any attempt and choice: the work of whoever knows s."""
    lane_tags = comparison.tags(
        made.pending.seed.reveal(), made.statement.check_id, number, chosen, len(made.statement.lanes)
    )
    within = tuple(pair[0] for pair in lane_tags)
    return CheckOutcome(check_id=made.statement.check_id, attempt=number, chosen=chosen, tags=within, void=None)


def test_the_tag_of_another_lane_or_attempt_or_a_tag_changed_is_no_verdict(made: Attempt) -> None:
    good = made.outcome()
    one, two = good.tags
    assert made.read(replace(good, tags=(two, one))) == [(INDETERMINATE, Void.DISAGREEMENT)] * 2
    assert made.read(replace(good, tags=(one, one))) == [(WITHIN, None), (INDETERMINATE, Void.DISAGREEMENT)]
    assert made.read(replace(good, tags=(two, two))) == [(INDETERMINATE, Void.DISAGREEMENT), (WITHIN, None)]
    for bit in range(0, 128, 9):
        changed = (int.from_bytes(one, "big") ^ (1 << bit)).to_bytes(16, "big")
        assert made.read(replace(good, tags=(changed, two))) == [(INDETERMINATE, Void.DISAGREEMENT), (WITHIN, None)]
    answers = {slot: made.answer(slot, other_attempt(made, slot)) for slot in made.chosen}
    second = conclude(made.world.service, made.evaluation, 2, made.chosen, TICK, answers)
    assert made.read(second) == [(WITHIN, None)] * 2
    assert made.read(replace(good, tags=second.tags)) == [(INDETERMINATE, Void.DISAGREEMENT)] * 2
    assert made.read(replace(second, tags=good.tags)) == [(INDETERMINATE, Void.DISAGREEMENT)] * 2


def test_the_tags_of_another_check_are_no_verdict(world: World, made: Attempt) -> None:
    questions = [Question(person(1), RULE, 5), Question(person(2), COUNT_RULE, 5)]
    other = attempt(world, an_outsider(world), questions, seed="other")
    stolen = replace(other.outcome(), check_id=made.statement.check_id)
    assert made.read(stolen) == [(INDETERMINATE, Void.DISAGREEMENT)] * 2


@pytest.mark.parametrize("reason", [reason.value for reason in Void])
def test_a_void_outcome_is_indeterminate_with_its_reason(made: Attempt, reason: str) -> None:
    outcome = void_outcome(made.statement.check_id, Void(reason))
    assert made.read(outcome) == [(INDETERMINATE, Void(reason))] * 2


def test_a_void_outcome_with_tags_or_an_unknown_reason_is_still_indeterminate(made: Attempt) -> None:
    good = made.outcome()
    for reason in ("disagreement", "within", "whatever"):
        verdicts = made.read(replace(good, void=reason))
        assert [verdict for verdict, _ in verdicts] == [INDETERMINATE] * 2
    assert made.read(replace(good, void="whatever")) == [(INDETERMINATE, Void.REFUSED)] * 2


def test_reasons_say_the_same_for_every_kind_of_disagreement(made: Attempt) -> None:
    assert {void for _, void in made.read(replace(made.outcome(), tags=(bytes(16), bytes(16))))} == {Void.DISAGREEMENT}
    assert void_outcome(bytes(16), Void.DISAGREEMENT).void == "disagreement"


# --- what leaks ----------------------------------------------------------------------------------------------------


def test_what_the_service_sees_of_a_check_has_no_unblinder_proof_seed_share_or_tag(world: World, made: Attempt) -> None:
    sees = encode(made.request) + b"".join(encode(made.answer(slot)) for slot in made.chosen)
    slot = made.chosen[0]
    channel = made.custodian(slot).channel(made.requester.id)
    body = decode(CheckEnvelope, channel.open(PURPOSE, made.statement.check_id, made.call(slot).envelope))
    for one in body.persons:
        assert one.blinded in sees
    proofs = [part for one in body.persons for part in (one.unblinder, one.proof.challenge, one.proof.response)]
    for secret in (body.seed, *proofs):
        assert secret not in sees
    lane_tags = comparison.tags(body.seed, made.statement.check_id, 1, made.chosen, 2)
    assert not any(tag in sees for pair in lane_tags for tag in pair)
    assert world.members[made.custodians[slot]].party.keys.salt.reveal() not in sees


def test_two_checks_about_one_person_show_the_service_nothing_in_common(world: World) -> None:
    one, two = (attempt(world, an_outsider(world), [Question(person(1), RULE, 5)], seed=seed) for seed in (1, 2))
    assert one.statement.persons != two.statement.persons
    assert one.evaluation.evaluated != two.evaluation.evaluated


def test_states_that_hold_secrets_do_not_print_them(made: Attempt) -> None:
    slot = made.chosen[0]
    accepted = accept_call(made.custodian(slot), made.call(slot), NOW)
    printed = repr(
        (made.pending, accepted, accepted.admission(), accepted.reading(), Question(person(1), RULE, 424242))
    )
    seed = made.pending.seed.reveal()
    for secret in (seed, accepted.persons[0].pseudonym, accepted.persons[0].index):
        assert repr(secret)[2:-1] not in printed
        assert secret.hex() not in printed
    assert "424242" not in printed
    assert person(1).number not in printed


# --- a service and members under unequal manifests ------------------------------------------------------------------


def test_a_service_or_member_under_a_manifest_with_other_keys_does_not_start(world: World) -> None:
    terms = world.manifest.terms
    other = make_world(8, shards=1, seed="other")
    with pytest.raises(ProtocolError, match="other-keys"):
        ServiceParty(other.service.keys, world.manifest)
    with pytest.raises(ProtocolError, match="other-keys"):
        Party(name(1), other.party(1).keys, world.manifest)
    with pytest.raises(ProtocolError, match="other-keys"):
        Party(name(2), world.party(1).keys, world.manifest)
    with pytest.raises(ProtocolError, match="unknown-member"):
        Party("insurer-99", world.party(1).keys, world.manifest)
    for salt in (bytes(32), other.party(1).keys.salt.reveal(), world.party(1).keys.salt.reveal()[:-1], b""):
        with pytest.raises(ProtocolError, match="other-salt"):
            Party(name(1), replace(world.party(1).keys, salt=Secret(salt)), world.manifest)
    with pytest.raises(ProtocolError, match="other-salt"):
        Party(name(1), world.party(1).keys, Manifest.of(replace(terms, salt_check=bytes(32))))
    half = Manifest.of(replace(terms, service_signing_key=other.manifest.terms.service_signing_key))
    with pytest.raises(ProtocolError, match="other-keys"):
        ServiceParty(world.service.keys, half)


def test_a_snapshot_has_no_rows_after_its_tick_of_another_shard_or_before_its_first_day() -> None:
    world = make_world(7, shards=1)
    made, _ = world.deposit(1, person(1), 5, now=NOW - 10, day=TODAY - 5)
    slot = next(slot for slot in range(6) if slot != made.excluded)
    member = world.members[world.manifest.committee(0).slots[slot]]
    asked = attempt(world, 1, [Question(person(1), RULE, 5)])
    chosen = asked.chosen if slot in asked.chosen else tuple(sorted((*asked.chosen[:3], slot)))
    call = replace(asked.call(slot), chosen=chosen) if slot in asked.pending.slots else None
    assert call is not None
    index = accept_call(member.party, call, NOW).persons[0].index
    reading = Reading(0, 1, int(NOW) - 10, ((index, TODAY - 5),))
    assert len(member.custody.view(reading).persons[0].rows) == 1
    assert set(member.custody.view(reading).stamp_sums) == {made.excluded}
    for other in (replace(reading, tick=int(NOW) - 11), replace(reading, shard=1)):
        view = member.custody.view(other)
        assert (view.persons[0].rows, dict(view.stamp_sums)) == ((), {})
    later = member.custody.view(replace(reading, persons=((index, TODAY - 4),)))
    assert later.persons[0].rows == ()
    assert set(later.stamp_sums) == {made.excluded}  # stamps are of the shard, whoever is asked about


def kept(epoch: int, number: int = 1) -> Proposed:
    row = CustodyRow("accident", TODAY, 0, (Share(1),) * 4, (Share(1),) * 4)
    index = IndexKey(bytes(32))
    return Proposed("insurer-01", bytes([number]) * 16, ISSUE, None, 0, epoch, index, row, bytes(32), 0, bytes(32))


def committed(number: int, tick: int) -> Commit:
    """Return a commit of `kept`, with a proof that convinces its holder."""
    proof = RangeProof(bytes(32), *(good for good, _ in range_tags(bytes(32), bytes(32))))
    return Commit(deposit_id=bytes([number]) * 16, tick=tick, range_proof=proof)


def test_a_store_is_of_the_first_epoch_that_it_sees_and_refuses_any_other() -> None:
    def view_in(epoch: int) -> Reading:
        return Reading(0, epoch, TICK, ((IndexKey(bytes(32)), TODAY),))

    for epoch in (1, 2, 7):
        viewed, prepared = MemoryCustody(), MemoryCustody()
        assert viewed.view(view_in(epoch)).persons[0].rows == ()
        prepared.prepare([kept(epoch)], NOW)
        for custody in (viewed, prepared):
            for other in {1, 2, 7, epoch - 1, epoch + 1} - {epoch}:
                with pytest.raises(ProtocolError, match="other-epoch"):
                    custody.view(view_in(other))
                with pytest.raises(ProtocolError, match="other-epoch"):
                    custody.prepare([kept(other, 2)], NOW)
            custody.prepare([kept(epoch)], NOW)
            custody.commit("insurer-01", 0, [committed(1, TICK)])
            view = custody.view(view_in(epoch))
            assert len(view.persons[0].rows) == 1  # what was refused has left nothing
            assert dict(view.stamp_sums) == {0: deposit_stamp("insurer-01", bytes([1]) * 16, TICK)}


def test_a_deposit_moved_to_an_earlier_tick_leaves_the_sum_of_a_store_that_had_it_there_at_first() -> None:
    stores = {}
    for ticks in ((TICK,), (TICK - 5,), (TICK, TICK - 5), (TICK - 5, TICK), (TICK - 5, TICK - 5)):
        custody = MemoryCustody()
        for number in (1, 2, 3):
            custody.prepare([kept(1, number)], NOW)
        custody.commit("insurer-01", 0, [committed(number, TICK) for number in (1, 2)])
        for tick in ticks:
            custody.commit("insurer-01", 0, [committed(3, tick)])
        stores[ticks] = custody.view(Reading(0, 1, TICK, ())).stamp_sums[0]
    late, *early = stores.values()
    assert set(early) == {early[0]}
    assert late != early[0]
    assert all(group.is_element(total) for total in stores.values())
