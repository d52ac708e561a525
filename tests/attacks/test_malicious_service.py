"""A malicious lookup service, live: whatever it does with a check, real agents end at indeterminate or at the truth."""

import contextlib
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import pytest
from answers import after_this_request
from insiders import Insider, service_replaced
from live import LiveAlliance, issue, write_policies
from malicious_service import (
    ABOVE,
    AT_LIMIT,
    EXCEEDS,
    POINT_OF_ITS_CHOICE,
    REFUSED,
    TIMEOUT,
    VOID,
    WITHIN,
    Attack,
    Attacker,
    Attempt,
    Scene,
    codes,
    evaluated_under_another_key,
    insiders_ask,
    now_tick,
)
from werkzeug.wrappers import Response

from protocol import check as steps
from protocol import signing
from protocol.check import Question, Verdict, Void
from protocol.comparison import Disagreement
from protocol.encoding import POINT, Maybe, Nested, Seq, UInt, encode, message
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.identity import DocumentType, Identity
from protocol.messages import (
    ENVELOPE,
    SLOT,
    TICK,
    CheckAnswer,
    CheckCall,
    CheckOutcome,
    CheckRequest,
    EnvelopeHash,
    SignedCheck,
)
from protocol.secret import Secret
from protocol.sharing import MAX_SLOTS
from protocol.voprf import DleqProof
from transport import internal

pytestmark = pytest.mark.alliance

MEMBERS, SHARDS, PEOPLE = 6, 2, 24


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    root = tmp_path_factory.mktemp("service")
    subjects = [("passport", f"E7000{number:04d}") for number in range(PEOPLE)]
    for member in range(1, MEMBERS + 1):
        mine = subjects[member - 1 :: MEMBERS]
        rows = [issue(f"P-{number}", subject, "50000000.00") for number, subject in enumerate(mine)]
        write_policies(root / "policies", member, rows)
    alliance = LiveAlliance(
        MEMBERS, root / "policies", root / "state", "--plain-http", "--capture", "--shards", str(SHARDS)
    )
    alliance.start()
    try:
        with contextlib.ExitStack() as replaced:
            service = replaced.enter_context(service_replaced(alliance, Attacker))
            replaced.callback(service._custodians._peers.close)
            yield Scene(alliance, service, replaced.close, itertools.cycle(insiders_ask(alliance, subjects)))
    finally:
        alliance.stop()


# --- what custodians are sent --------------------------------------------------------------------------------------


@message("check call", version=2)
class LooseCall:
    """The wire form of a check call with attempts and A that the real one cannot be made to say."""

    signed: Annotated[SignedCheck, Nested(SignedCheck)]
    attempt: Annotated[int, UInt(8)]
    chosen: Annotated[tuple[int, ...], Seq(SLOT, most=MAX_SLOTS)]
    tick: Annotated[int, TICK]
    evaluated: Annotated[tuple[bytes, ...], Seq(POINT, most=4)]
    proof: Annotated[DleqProof | None, Maybe(Nested(DleqProof))]
    envelope: Annotated[bytes, ENVELOPE]


def loose(bent: CheckCall, **changes: object) -> LooseCall:
    return LooseCall(**{field.name: getattr(bent, field.name) for field in fields(bent)} | changes)


def restated(bent: CheckCall, **changes: object) -> CheckCall:
    return replace(bent, signed=replace(bent.signed, statement=replace(bent.signed.statement, **changes)))


def reruled(bent: CheckCall, **changes: object) -> CheckCall:
    return restated(bent, lanes=tuple(replace(lane, **changes) for lane in bent.signed.statement.lanes))


def resigned(bent: CheckCall, signature: bytes) -> CheckCall:
    return replace(bent, signed=replace(bent.signed, signature=signature))


def signed_by_the_service(bent: CheckCall, key: Secret) -> CheckCall:
    return resigned(bent, signing.sign(key, steps.PURPOSE, encode(bent.signed.statement)))


def evaluated_anew(bent: CheckCall, claimed: Element | None = None) -> CheckCall:
    points, proof = evaluated_under_another_key(list(bent.signed.statement.persons), claimed)
    return replace(bent, evaluated=points, proof=proof)


@dataclass(frozen=True)
class Told:
    """What the attacker has at hand for one custodian: its slot, the attempt, and an earlier check about the person."""

    slot: int
    attempt: Attempt
    old: Attempt

    def a_with(self, *odd: int) -> tuple[int, ...]:
        """Return a sorted A with this custodian, the slots given, and others of the true A."""
        others = [slot for slot in self.attempt.chosen if slot != self.slot]
        return tuple(sorted((self.slot, *odd, *others[: 3 - len(odd)])))


BENT_CALLS: dict[str, tuple[Callable[[CheckCall, Told], Any], str | None]] = {
    "nothing": (lambda sent, _: sent, None),
    "C, a point of its choice": (lambda sent, _: replace(sent, evaluated=(POINT_OF_ITS_CHOICE,)), "bad-evaluation"),
    "C, of another check": (lambda sent, at: replace(sent, evaluated=at.old.evaluation.evaluated), "bad-evaluation"),
    "proof, of another check": (lambda sent, at: replace(sent, proof=at.old.evaluation.proof), "bad-evaluation"),
    "C and proof, of another check": (
        lambda sent, at: replace(sent, evaluated=at.old.evaluation.evaluated, proof=at.old.evaluation.proof),
        "bad-evaluation",
    ),
    "C under another key": (lambda sent, _: evaluated_anew(sent), "bad-evaluation"),
    "C under another key, claimed for the true one": (
        lambda sent, at: evaluated_anew(sent, claimed=at.attempt.service._service.manifest.blinding_key),
        "bad-evaluation",
    ),
    "C twice": (lambda sent, _: replace(sent, evaluated=sent.evaluated * 2), "bad-evaluation"),
    "envelope, of another custodian": (
        lambda sent, at: replace(sent, envelope=at.attempt.call(at.attempt.spare).envelope),
        "bad-envelopes",
    ),
    "envelope, of another check": (
        lambda sent, at: replace(sent, envelope=at.old.call(at.slot).envelope),
        "bad-envelopes",
    ),
    "envelope, a bit of it": (
        lambda sent, _: replace(sent, envelope=sent.envelope[:-1] + bytes([sent.envelope[-1] ^ 1])),
        "bad-envelopes",
    ),
    "statement, of another check": (
        lambda sent, at: replace(sent, signed=at.old.evaluation.request.signed),
        "bad-envelopes",
    ),
    "signature, of another check": (
        lambda sent, at: resigned(sent, at.old.evaluation.request.signed.signature),
        "bad-signature",
    ),
    "day": (lambda sent, _: restated(sent, as_of=sent.signed.statement.as_of - 1), "bad-signature"),
    "day, signed by the service": (
        lambda sent, at: signed_by_the_service(
            restated(sent, as_of=sent.signed.statement.as_of - 1), at.attempt.service._service.keys.signing
        ),
        "bad-signature",
    ),
    "time": (lambda sent, _: restated(sent, issued_at=sent.signed.statement.issued_at + 1), "bad-signature"),
    "rule": (lambda sent, _: reruled(sent, rule_id="another-rule"), "bad-signature"),
    "version of the rule": (lambda sent, _: reruled(sent, rule_version=2), "bad-signature"),
    "B": (lambda sent, _: restated(sent, persons=(POINT_OF_ITS_CHOICE,)), "bad-signature"),
    "shard": (lambda sent, at: restated(sent, shard=(at.attempt.shard + 1) % SHARDS), "bad-signature"),
    "manifest": (lambda sent, _: restated(sent, manifest_hash=bytes(32)), "bad-signature"),
    "check id": (lambda sent, _: restated(sent, check_id=bytes(16)), "bad-signature"),
    "hashes of envelopes": (
        lambda sent, _: restated(sent, envelopes=sent.signed.statement.envelopes[::-1]),
        "bad-signature",
    ),
    "requester, a stranger": (lambda sent, _: restated(sent, requester="insurer-99"), "unknown-member"),
    "requester, another member": (
        lambda sent, at: restated(sent, requester=at.attempt.members[at.slot]),
        "bad-signature",
    ),
    "A permuted": (lambda sent, _: replace(sent, chosen=sent.chosen[::-1]), "bad-choice"),
    "A with a slot twice": (lambda sent, at: replace(sent, chosen=at.a_with(at.slot)), "bad-choice"),
    "A with the requester's slot": (lambda sent, at: replace(sent, chosen=at.a_with(at.attempt.own)), "bad-choice"),
    "A with a slot that is none": (lambda sent, at: replace(sent, chosen=at.a_with(6)), "bad-choice"),
    "A without the one that is asked": (
        lambda sent, at: replace(sent, chosen=tuple(sorted({*sent.chosen, at.attempt.spare} - {at.slot}))),
        "bad-choice",
    ),
    "A of five": (lambda sent, at: loose(sent, chosen=tuple(sorted((*sent.chosen, at.attempt.spare)))), "malformed"),
    "A of three": (lambda sent, _: loose(sent, chosen=sent.chosen[:3]), "malformed"),
    "attempt 0": (lambda sent, _: loose(sent, attempt=0), "malformed"),
    "attempt 4": (lambda sent, _: loose(sent, attempt=4), "malformed"),
    "attempt 255": (lambda sent, _: loose(sent, attempt=255), "malformed"),
    "a tick that is not closed": (lambda sent, _: replace(sent, tick=now_tick() + 1), "bad-tick"),
    "a tick of next year": (lambda sent, _: replace(sent, tick=sent.tick + 31_536_000), "bad-tick"),
    "the last of all ticks": (lambda sent, _: replace(sent, tick=2**63 - 1), "bad-tick"),
    "a tick of 63 s ago": (lambda sent, _: replace(sent, tick=now_tick() - 63), "bad-tick"),
    "tick 0": (lambda sent, _: replace(sent, tick=0), "bad-tick"),
}


OF_TWO = {what for what, (_, code) in BENT_CALLS.items() if code == "bad-evaluation"} - {"C twice"}
"""What two of the four refuse: the others do not look at the proof, come to another P and open nothing with anybody."""


@pytest.mark.parametrize("what", BENT_CALLS)
def test_a_call_that_the_service_bent_is_refused_by_every_custodian_that_verifies_it(scene: Scene, what: str) -> None:
    bend, code = BENT_CALLS[what]
    earlier: list[Attempt] = []
    given: list[list[str | None]] = []
    verifiers: list[tuple[int, int]] = []

    def keep(request: CheckRequest) -> CheckOutcome:
        earlier.append(scene.service.begin(request))
        return earlier[-1].voided()

    def bent(request: CheckRequest) -> CheckOutcome:
        attempt = scene.service.begin(request)
        verifiers.append(steps.evaluation_verifiers(request.signed.statement.check_id, attempt.number))
        told = {slot: Told(slot, attempt, earlier[-1]) for slot in attempt.chosen}
        answers = attempt.send({slot: bend(attempt.call(slot), told[slot]) for slot in attempt.chosen})
        given.append(codes(answers))
        return attempt.voided() if any(given[-1]) else attempt.outcome(answers)

    assert scene.attacked(keep, bent) == [VOID, EXCEEDS if code is None else VOID]
    assert given[-1] == [code if what not in OF_TWO or place in verifiers[-1] else None for place in range(4)]


def test_a_check_that_the_service_kept_for_more_than_a_minute_is_refused(scene: Scene) -> None:
    with Insider(scene.alliance, 1) as insider:
        for age, code in ((50, None), (62, "stale")):
            now = time.time() - age
            person = Identity(DocumentType.PASSPORT, "E70000000")
            question = Question(person, insider.manifest.terms.rules[0], 1)
            _, request = steps.ask(insider.party, [question], now, now + 2, secrets.token_bytes)
            assert codes(scene.service.begin(request, now=now).answers()) == [code] * 4


# --- custodians that are told different things ---------------------------------------------------------------------


def told_attempt(attempt: Attempt, slot: int) -> CheckCall:
    return replace(attempt.call(slot), attempt=2, proof=attempt.evaluation.proof)  # whoever verifies in attempt 2


def told_tick(attempt: Attempt, slot: int) -> CheckCall:
    return replace(attempt.call(slot), tick=attempt.tick - 1)


def told_choice(attempt: Attempt, slot: int) -> CheckCall:
    # The spare one is the last, so the place of all others stays as it was: else their parts would not fit at all.
    return replace(attempt.call(slot), chosen=(*attempt.chosen[:3], attempt.spare))


@pytest.mark.parametrize("told", [told_attempt, told_tick, told_choice])
@pytest.mark.parametrize("places", [(), (0,), (1, 2), (0, 1, 2)], ids=str)
def test_custodians_told_different_things_answer_and_what_is_made_of_their_answers_is_noise(
    scene: Scene, told: Callable[[Attempt, int], CheckCall], places: tuple[int, ...]
) -> None:
    noticed: list[bool] = []

    def torn(request: CheckRequest) -> CheckOutcome:
        attempt = scene.service.begin(request)
        odd = {attempt.chosen[place] for place in places}
        calls = {slot: told(attempt, slot) if slot in odd else attempt.call(slot) for slot in attempt.chosen}
        answers = attempt.send(calls)
        assert codes(answers) == [None] * 4
        try:
            attempt.outcome(answers)
        except Disagreement:
            noticed.append(True)
        return attempt.forced(answers)

    # Told alike, they come to the verdict by the very same forced evaluation.
    assert scene.attacked(torn) == [VOID if places else EXCEEDS]
    assert any(noticed) == bool(places)


def test_parts_of_two_attempts_of_one_check_make_noise_and_have_no_label_in_common(scene: Scene) -> None:
    ends: dict[str, Attempt] = {}

    def mixed(how: str) -> Attack:
        def attack(request: CheckRequest) -> CheckOutcome:
            first = scene.service.begin(request)
            swapped = (*first.chosen[:3], first.spare) if how == "another A" else first.chosen
            second = replace(first, number=2, chosen=swapped)
            one, two = first.answers(), second.answers()
            assert codes(one) + codes(two) == [None] * 8
            for slot in set(one) & set(two):
                assert not blocks(one[slot]) & blocks(two[slot])
            ends[how] = second
            if how in ("first", "second"):
                return first.outcome(one) if how == "first" else second.outcome(two)
            return first.forced({slot: two[slot] if slot == first.chosen[1] else one[slot] for slot in first.chosen})

        return attack

    told = scene.attacked(*(mixed(how) for how in ("first", "second", "the same A", "another A")))
    assert told == [EXCEEDS, EXCEEDS, VOID, VOID]
    assert ends["another A"].chosen != ends["the same A"].chosen


def blocks(answer: CheckAnswer | ProtocolError) -> set[bytes]:
    """Return every 16 bytes that a custodian sent: labels, table rows, K, digests."""
    assert isinstance(answer, CheckAnswer)
    part = answer.part
    data = [sent.labels for sent in part.sent] + [vouched.masked + vouched.digests for vouched in part.vouched]
    data += [part.session_check, part.garbled_digest] + [sent.stamp for sent in part.sent]
    if part.garbled is not None:
        data += [part.garbled.table, part.garbled.aes_key, part.garbled.outputs, part.garbled.vouchers]
    return {piece[at : at + 16] for piece in data for at in range(0, len(piece), 16)}


def test_an_attempt_is_answered_once_however_often_and_under_whatever_a_and_tick_it_is_asked(scene: Scene) -> None:
    def attack(request: CheckRequest) -> CheckOutcome:
        attempt = scene.service.begin(request)
        answers = attempt.answers()
        asked = attempt.chosen[0]
        for again in (attempt.call(asked), told_choice(attempt, asked)):
            assert codes(attempt.send({asked: again})) == ["replayed"]
        assert codes(attempt.send({asked: told_tick(attempt, asked)})) == ["other-tick"]
        fresh = replace(attempt, number=2)
        with ThreadPoolExecutor(6) as pool:
            raced = list(pool.map(lambda _: once(fresh, asked), range(6)))
        assert sorted(raced, key=str) == [None] + ["replayed"] * 5
        return attempt.outcome(answers)

    def once(attempt: Attempt, slot: int) -> str | None:
        try:
            return codes(attempt.send({slot: attempt.call(slot)}))[0]
        finally:
            scene.service._custodians._peers.close()

    assert scene.attacked(attack) == [EXCEEDS]


# --- what the requester is sent ------------------------------------------------------------------------------------

Say = Callable[[CheckOutcome, Attempt, CheckOutcome], CheckOutcome]
"""Told the true outcome, its attempt, and the true outcome of an earlier check of the same member about the person."""

OUTCOMES: dict[str, Say] = {
    "the tag of an earlier check": lambda true, _a, old: replace(true, tags=old.tags),
    "the outcome of an earlier check": lambda _t, _a, old: old,
    "another check's id": lambda true, _a, old: replace(true, check_id=old.check_id),
    "a random tag": lambda true, _a, _o: replace(true, tags=(secrets.token_bytes(16),)),
    "zeros": lambda true, _a, _o: replace(true, tags=(bytes(16),)),
    "the tag twice": lambda true, _a, _o: replace(true, tags=true.tags * 2),
    "no tag": lambda true, _a, _o: replace(true, tags=()),
    "a thousand tags": lambda true, _a, _o: replace(true, tags=true.tags * 1000),
    "attempt 0": lambda true, _a, _o: replace(true, attempt=0),
    "attempt 2": lambda true, _a, _o: replace(true, attempt=2),
    "attempt 4": lambda true, _a, _o: replace(true, attempt=4),
    "attempt 255": lambda true, _a, _o: replace(true, attempt=255),
    "no A": lambda true, _a, _o: replace(true, chosen=()),
    "A of three": lambda true, _a, _o: replace(true, chosen=true.chosen[:3]),
    "A permuted": lambda true, _a, _o: replace(true, chosen=true.chosen[::-1]),
    "A with a slot twice": lambda true, _a, _o: replace(true, chosen=(true.chosen[0], *true.chosen[:3])),
    "another A": lambda true, a, _o: replace(true, chosen=tuple(sorted({*true.chosen[1:], a.spare}))),
    "A with the requester's own slot": lambda true, a, _o: replace(
        true, chosen=tuple(sorted({*true.chosen[1:], a.own}))
    ),
}


@pytest.mark.parametrize("what", OUTCOMES)
def test_an_outcome_that_is_not_this_checks_own_is_no_verdict(scene: Scene, what: str) -> None:
    earlier: list[CheckOutcome] = []

    def true_one(request: CheckRequest) -> CheckOutcome:
        attempt = scene.service.begin(request)
        earlier.append(attempt.outcome(attempt.answers()))
        return earlier[-1]

    def false_one(request: CheckRequest) -> CheckOutcome:
        attempt = scene.service.begin(request)
        return OUTCOMES[what](attempt.outcome(attempt.answers()), attempt, earlier[0])

    assert scene.attacked(true_one, false_one) == [EXCEEDS, VOID]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        *((void.value, ("indeterminate", void.value)) for void in Void if void is not Void.TIMEOUT),
        ("within", REFUSED),
        ("exceeds", REFUSED),
        ("\x00", REFUSED),
    ],
)
def test_a_reason_beside_the_true_tag_is_no_verdict(scene: Scene, reason: str, told: tuple[str, str | None]) -> None:
    def attack(request: CheckRequest) -> CheckOutcome:
        attempt = scene.service.begin(request)
        return replace(attempt.outcome(attempt.answers()), void=reason)

    assert scene.attacked(attack) == [told]


def altered(scene: Scene, change: Callable[[Response, bytes], Response]) -> Attack:
    """Return the attack that answers truly and then has its way with the HTTP response, told the request's bytes."""

    def attack(request: CheckRequest) -> CheckOutcome:
        attempt = scene.service.begin(request)
        answers = attempt.answers()
        # An agent whose kept connection breaks makes its call once more: custodians do not answer it again.
        outcome = attempt.voided() if {"replayed", "other-tick"} & {*codes(answers)} else attempt.outcome(answers)
        after_this_request(lambda response: change(response, encode(request)))
        return outcome

    return attack


def signed(scene: Scene, response: Response, request: bytes, *, path: str = "/v1/checks") -> Response:
    key = scene.service._service.keys.signing
    response.headers[internal.SIGNATURE_HEADER] = internal.sign_answer(key, path, request, response.get_data())
    return response


def with_body(response: Response, body: bytes) -> Response:
    response.set_data(body)
    return response


def with_header(response: Response, name: str, value: str) -> Response:
    response.headers[name] = value
    return response


BODIES: dict[str, tuple[Callable[[bytes], bytes], tuple[str, str | None]]] = {
    "as it is": (lambda body: body, EXCEEDS),
    "nothing": (lambda _: b"", REFUSED),
    "a byte less": (lambda body: body[:-1], REFUSED),
    "half of it": (lambda body: body[: len(body) // 2], REFUSED),
    "a byte more": (lambda body: body + b"\x00", REFUSED),
    "itself twice": (lambda body: body * 2, REFUSED),
    "a megabyte more": (lambda body: body + bytes(1 << 20), REFUSED),
    "a lane count of four thousand millions": (lambda body: body[:-23] + b"\xff" * 4 + body[-19:], REFUSED),
    "another message": (lambda _: encode(void_message()), REFUSED),
    "a verdict in words": (lambda _: b'{"verdict": "within"}', REFUSED),
}


def void_message() -> object:
    return EnvelopeHash(slot=0, hash=bytes(32))


@pytest.mark.parametrize("what", BODIES)
def test_an_answer_that_is_cut_short_lengthened_or_no_outcome_is_no_verdict_though_it_is_signed(
    scene: Scene, what: str
) -> None:
    change, told = BODIES[what]
    attack = altered(
        scene, lambda response, request: signed(scene, with_body(response, change(response.get_data())), request)
    )
    assert scene.attacked(attack) == [told]


SIGNATURES: dict[str, Callable[[Scene, Response, bytes], Response]] = {
    "none": lambda _s, response, _r: with_header(response, internal.SIGNATURE_HEADER, ""),
    "no hex": lambda _s, response, _r: with_header(response, internal.SIGNATURE_HEADER, "x" * 128),
    "a short one": lambda _s, response, _r: with_header(response, internal.SIGNATURE_HEADER, "00"),
    "for another request": lambda scene, response, request: signed(scene, response, request + b"!"),
    "for another path": lambda scene, response, request: signed(scene, response, request, path="/v1/deposits"),
    "for another answer": lambda scene, response, request: with_header(
        response,
        internal.SIGNATURE_HEADER,
        internal.sign_answer(scene.service._service.keys.signing, "/v1/checks", request, b"another"),
    ),
    "by a member": lambda scene, response, request: with_header(
        response, internal.SIGNATURE_HEADER, members_signature(scene, request, response.get_data())
    ),
}


def members_signature(scene: Scene, request: bytes, answer: bytes) -> str:
    with Insider(scene.alliance, 1) as insider:
        return internal.sign_answer(insider.party.keys.signing, "/v1/checks", request, answer)


@pytest.mark.parametrize("what", SIGNATURES)
def test_the_true_answer_without_the_services_signature_of_it_is_no_verdict(scene: Scene, what: str) -> None:
    attack = altered(scene, lambda response, request: SIGNATURES[what](scene, response, request))
    assert scene.attacked(attack) == [REFUSED]


def problem(response: Response, status: int, body: bytes) -> Response:
    response.status_code, response.content_type = status, "application/problem+json"
    return with_body(response, body)


STATUSES: dict[str, tuple[Callable[[Response], Response], str]] = {
    "500": (lambda response: problem(response, 500, b'{"code": "internal-error"}'), "refused"),
    "a problem with the code of a verdict": (lambda response: problem(response, 422, b'{"code": "within"}'), "refused"),
    "a problem that is no object": (lambda response: problem(response, 422, b'["within"]'), "refused"),
    "a problem that is no JSON": (lambda response: problem(response, 422, b"\xff{"), "refused"),
    "a problem nested deeper than a parser goes": (lambda response: problem(response, 422, b"[" * 100_000), "refused"),
    "a redirection": (lambda response: with_header(problem(response, 302, b"{}"), "Location", "/v1/checks"), "refused"),
    "the outcome under another status": (lambda response: set_status(response, 201), "refused"),
    "a length of more than an answer may have": (
        lambda response: with_header(response, "Content-Length", str((64 << 20) + 1)),
        "service-unavailable",
    ),
    "no length": (lambda response: with_header(response, "Content-Length", "-1"), "service-unavailable"),
}


def set_status(response: Response, status: int) -> Response:
    response.status_code = status
    return response


@pytest.mark.parametrize("what", STATUSES)
def test_an_http_answer_that_is_none_is_no_verdict_and_no_fault(scene: Scene, what: str) -> None:
    change, reason = STATUSES[what]
    assert scene.attacked(altered(scene, lambda response, _: change(response))) == [("indeterminate", reason)]


def test_no_bit_of_an_outcome_flipped_and_signed_gives_a_verdict(scene: Scene) -> None:
    size = 8 * len(
        encode(CheckOutcome(check_id=bytes(16), attempt=1, chosen=(0, 1, 2, 3), tags=(bytes(16),), void=None))
    )

    def flipping(bit: int) -> Attack:
        def change(response: Response, request: bytes) -> Response:
            body = bytearray(response.get_data())
            assert len(body) * 8 == size
            body[bit // 8] ^= 1 << bit % 8
            return signed(scene, with_body(response, bytes(body)), request)

        return altered(scene, change)

    told = scene.attacked(*(flipping(bit) for bit in range(0, size, size // 24)))
    assert set(told) <= {VOID, REFUSED}
    assert len(told) >= 24


def test_an_answer_that_is_dropped_or_comes_after_the_deadline_is_a_timeout(scene: Scene) -> None:
    come = threading.Event()

    def late(request: CheckRequest) -> CheckOutcome:
        attempt = scene.service.begin(request)
        outcome = attempt.outcome(attempt.answers())
        come.wait(30)
        return outcome

    person = next(scene.people)
    scene.service.attack = late
    try:
        began = time.monotonic()
        assert scene.alliance.verdict(*person, ABOVE) == TIMEOUT
        assert 1.9 < time.monotonic() - began < 4
    finally:
        scene.service.attack = None
        come.set()
    assert scene.verdict(person, ABOVE, None) == EXCEEDS


# --- two lanes -----------------------------------------------------------------------------------------------------


def test_lanes_that_the_service_swaps_going_out_are_refused_and_coming_back_are_no_verdict(scene: Scene) -> None:
    swapped = {
        "going out": lambda sent: replace(sent, evaluated=sent.evaluated[::-1]),
        "one for both": lambda sent: replace(sent, evaluated=sent.evaluated[:1] * 2),
    }
    with Insider(scene.alliance, 1) as insider:
        identities = [Identity(DocumentType.PASSPORT, f"E7000{number:04d}") for number in range(PEOPLE)]
        shard = steps.shard_of_person(insider.party, identities[0])
        alike = [item for item in identities if steps.shard_of_person(insider.party, item) == shard][:2]
        rule = insider.manifest.terms.rules[0]
        questions = [Question(identity, rule, proposed) for identity, proposed in zip(alike, (0, 1), strict=True)]

        def asked() -> tuple[steps.PendingCheck, Attempt]:
            now = time.time()
            pending, request = steps.ask(insider.party, questions, now, now + 10, secrets.token_bytes)
            return pending, scene.service.begin(request)

        for bend in swapped.values():
            _, attempt = asked()
            calls = {slot: bend(attempt.call(slot)) for slot in attempt.chosen}
            check_id = attempt.evaluation.request.signed.statement.check_id
            verifiers = steps.evaluation_verifiers(check_id, attempt.number)
            assert codes(attempt.send(calls)) == [
                "bad-evaluation" if place in verifiers else None for place in range(4)
            ]
        pending, attempt = asked()
        outcome = attempt.outcome(attempt.answers())
        true, void = [(Verdict.WITHIN, None), (Verdict.EXCEEDS, None)], (Verdict.INDETERMINATE, Void.DISAGREEMENT)
        one, two = outcome.tags
        for tags, verdicts in {
            (one, two): true,
            (two, one): [void, void],
            (one, one): [true[0], void],
            (two, two): [void, true[1]],
        }.items():
            assert steps.read_outcome(pending, replace(outcome, tags=tags), time.time()) == verdicts


def test_with_the_real_service_back_every_verdict_is_right(scene: Scene) -> None:
    scene.bring_the_real_service_back()
    for _ in range(PEOPLE // 2):
        person = next(scene.people)
        assert scene.verdict(person, AT_LIMIT) == WITHIN
        assert scene.verdict(person, ABOVE) == EXCEEDS
