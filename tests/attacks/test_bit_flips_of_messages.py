"""Every single bit of a message of a check or deposit is flipped: refused, noticed or void, never the other verdict.

Most of it is exhaustive. What takes long is sampled with a fixed stride, a wider one in an everyday run, and exhaustive
under LONG_TESTS=1.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from strategies import EVERYDAY
from test_check import TICK, Attempt, attempt, one_shard
from test_comparison import flipped
from test_deposit import BEFORE, Relay, entry
from world import LIMIT, NOW, RULE, World, make_world, person, seeded

from protocol import deposit, signing
from protocol.check import PURPOSE, Question, Verdict, Void, accept_call, accept_request, conclude, void_outcome
from protocol.comparison import Disagreement
from protocol.deposit import accept_batch, make_deposit, opened_proofs, sign_batch
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import CheckAnswer, CheckCall, CheckOutcome, CheckRequest, PrepareCall, SignedBatch
from transport.internal import CONTENT_TYPE, service_message_of, sign_answer
from transport.peers import Call, Reply

EXCEEDS, WITHIN, INDETERMINATE = Verdict.EXCEEDS, Verdict.WITHIN, Verdict.INDETERMINATE
TRUTHS = (WITHIN, EXCEEDS)
STRIDE = 1 if os.environ.get("LONG_TESTS") == "1" else 37 if EVERYDAY else 11
"""Of what takes longest one bit in so many is flipped: odd, so that every place in a byte is met."""


def bits(data: bytes, stride: int = 1) -> range:
    """Return every bit's number, or one in `stride` from an offset that the length gives."""
    return range(int.from_bytes(seeded(("bits", len(data)))(4), "big") % stride, len(data) * 8, stride)


# --- a whole check, and what one reads of another ------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> World:
    made = make_world(8, shards=1)
    made.deposit(1, person(1), LIMIT - 1000)
    made.deposit(2, person(1), 1000)
    return made


def asked(world: World, truth: Verdict) -> Attempt:
    """Ask at the limit, or one fen above it, as a member that keeps the shard."""
    keeper = int(world.manifest.committee(0).slots[2][-2:])
    return attempt(world, keeper, [Question(person(1), RULE, TRUTHS.index(truth))], seed=truth)


def refusal_of(act: Callable[[], object]) -> str:
    """Return the code of a refusal, or "accepted"."""
    try:
        act()
    except ProtocolError as refused:
        return refused.code
    return "accepted"


# --- (2) a custodian's answer, as the service reads it -------------------------------------------------------------


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("position", range(4))
def test_every_bit_of_an_answer_is_refused_or_an_alarm(world: World, position: int, truth: Verdict) -> None:
    made = asked(world, truth)
    answers = {slot: made.answer(slot) for slot in made.chosen}
    slot = made.chosen[position]
    data = encode(answers[slot])
    # All but the table, of which every bit is flipped above, fit into a run of CI.
    stride = STRIDE if position == 0 or EVERYDAY else 1
    seen: Counter[str] = Counter()
    for bit in bits(data, stride):
        seen[judged(made, answers, slot, flipped(data, bit))] += 1
    assert sum(seen.values()) == len(bits(data, stride))
    expected = {"malformed", "committee key", "session", "garbled circuit"}
    expected |= {"shares or stamps"} | ({"a voucher's K"} if position else set())
    assert set(seen) == expected
    assert judged(made, answers, slot, data) == truth.value


def judged(made: Attempt, answers: dict[int, CheckAnswer], slot: int, data: bytes) -> str:
    """Return how a check ends with these bytes as one custodian's answer: why not, or the verdict."""
    try:
        answer = decode(CheckAnswer, data)
        outcome = conclude(made.world.service, made.evaluation, 1, made.chosen, TICK, {**answers, slot: answer})
    except ProtocolError as refused:
        return refused.code
    except Disagreement as alarm:
        return alarm.what
    return made.read(outcome)[0][0].value


# --- (3) the outcome, as the requester reads it --------------------------------------------------------------------


@pytest.mark.parametrize("truth", TRUTHS)
def test_every_bit_of_an_outcome_is_refused_or_reads_as_a_disagreement(world: World, truth: Verdict) -> None:
    # No flip leaves the verdict right: the check, attempt and A are in the tags, and there is no slack in the encoding.
    made = asked(world, truth)
    data = encode(made.outcome())
    assert made.read(decode(CheckOutcome, data)) == [(truth, None)]
    seen: Counter[object] = Counter()
    for bit in bits(data):
        try:
            seen[made.read(decode(CheckOutcome, flipped(data, bit)))[0]] += 1
        except ProtocolError as refused:
            seen[refused.code] += 1
    assert set(seen) == {"malformed", (INDETERMINATE, Void.DISAGREEMENT)}
    assert sum(seen.values()) == len(data) * 8
    # Every bit of check id, attempt and tag, at the least, is read and found to be another's.
    assert seen[INDETERMINATE, Void.DISAGREEMENT] >= 8 * (16 + 1 + 16)


def test_every_bit_of_a_void_outcome_is_refused_or_stays_void(world: World) -> None:
    made = asked(world, EXCEEDS)
    for reason in Void:
        data = encode(void_outcome(made.statement.check_id, reason))
        for bit in bits(data):
            try:
                ((verdict, why),) = made.read(decode(CheckOutcome, flipped(data, bit)))
            except ProtocolError as refused:
                assert refused.code == "malformed"  # noqa: PT017  one of many: no context manager each
            else:
                # A text that is no known reason reads as "refused"; no reason at all is a disagreement.
                assert verdict is INDETERMINATE
                assert why in {reason, Void.REFUSED, Void.DISAGREEMENT}


@pytest.mark.parametrize("where", ["request", "answer", "signature"])
def test_every_bit_of_a_signed_answer_and_of_what_it_answers_is_refused_by_the_agent(world: World, where: str) -> None:
    made = asked(world, EXCEEDS)
    request, answer = b"the request", encode(made.outcome())
    key, public = world.service.keys.signing, world.manifest.terms.service_signing_key
    signature = bytes.fromhex(sign_answer(key, "/v1/checks", request, answer))

    def read(sent: dict[str, bytes]) -> str:
        call = Call("http://127.0.0.1:1", "/v1/checks", sent["request"], {})
        reply = Reply(200, sent["answer"], CONTENT_TYPE, sent["signature"].hex())
        return refusal_of(lambda: service_message_of(CheckOutcome, call, reply, public))

    honest = {"request": request, "answer": answer, "signature": signature}
    assert read(honest) == "accepted"
    codes = {read({**honest, where: flipped(honest[where], bit)}) for bit in bits(honest[where])}
    assert codes == ({"malformed", "bad-signature"} if where == "answer" else {"bad-signature"})


# --- (4) the service's calls, as a custodian reads them ------------------------------------------------------------

CALL_CODES = {
    "malformed",
    "unknown-member",
    "bad-signature",
    "bad-choice",
    "bad-tick",
    "bad-evaluation",
    "bad-envelopes",
}


@pytest.mark.parametrize("verifies", [True, False])
def test_every_bit_of_a_check_call_is_refused_or_is_of_attempt_a_or_tick_and_opens_nothing(
    world: World,
    verifies: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    made = asked(world, EXCEEDS)
    answers = {slot: made.answer(slot) for slot in made.chosen}
    slot = (made.verifiers if verifies else made.trusting)[0]
    call = made.call(slot)
    data, custodian = encode(call), made.custodian(slot)
    seen: Counter[str] = Counter()
    fields = set()
    # One of two does not look at the proof of C: it comes to another P, and agrees with nobody.
    free = ("attempt", "chosen", "tick", *(() if verifies else ("evaluated", "proof")))
    for bit in bits(data):
        try:
            bent = decode(CheckCall, flipped(data, bit))
            accept_call(custodian, bent, NOW)
        except ProtocolError as refused:
            seen[refused.code] += 1
            continue
        seen["accepted"] += 1
        # Attempt, A and tick are the service's to name. They are in the seed: it gets a garbling of its own.
        changed = {field for field in free if getattr(bent, field) != getattr(call, field)}
        fields |= changed
        assert replace(bent, **{field: getattr(call, field) for field in free}) == call
        if changed == {"proof"}:
            assert encode(made.answer(slot, bent)) == encode(answers[slot])
            continue
        assert judged(made, answers, slot, encode(made.answer(slot, bent))) in {"session", "a part is malformed"}
    assert sum(seen.values()) == len(data) * 8
    assert set(seen) == CALL_CODES - (set() if verifies else {"bad-evaluation"}) | {"accepted"}
    assert fields == set(free)
    assert judged(made, answers, slot, encode(made.answer(slot, call))) == EXCEEDS.value


PREPARE_CODES = {
    "malformed",
    "unknown-member",
    "unknown-shard",
    "other-manifest",
    "bad-excluded",
    "bad-evaluation",
    "bad-envelope",
    "unequal-fields",
    "other-key",
    "bad-choice",
    "stale",
}


def test_every_bit_of_a_prepare_call_is_refused_or_is_of_the_order_and_opens_nothing() -> None:
    relay = deposited(one_shard())
    excluded = relay.made.excluded
    # One that a single bit turns into the excluded slot.
    slot = next(slot for slot in relay.slots if (slot ^ excluded).bit_count() == 1)
    order = relay.order()
    data, envelope = encode(relay.call(slot, order)), relay.call(slot).deposits[0].envelope
    inside = range(data.index(envelope) * 8, (data.index(envelope) + len(envelope)) * 8)

    def read(sent: bytes) -> None:
        (result,) = relay.accepted(slot, decode(PrepareCall, sent))
        if isinstance(result, ProtocolError):
            raise result

    # Every bit of an envelope is flipped below; of those in the call, some.
    sampled = [bit for bit in bits(data) if bit not in inside] + list(inside[:: STRIDE * 3 if STRIDE > 1 else 1])
    seen, answers = Counter[str](), relay.answers(order=order)
    for bit in sampled:
        code = refusal_of(lambda bit=bit: read(flipped(data, bit)))
        seen[code] += 1
        if code == "accepted":  # nonce, A and time are the service's to name: it gets a garbling of its own
            bent = decode(PrepareCall, flipped(data, bit))
            assert replace(bent, order=order) == relay.call(slot, order)
            told = {**answers, slot: relay.prepare(slot, bent)}
            with pytest.raises(Disagreement):
                opened_proofs(relay.world.manifest, relay.evaluated, order, told)
    assert set(seen) == PREPARE_CODES | {"accepted"}
    assert seen["accepted"] >= 8 * 16  # the nonce
    assert set(relay.commit(relay.decide())) == set(relay.slots)


def deposited(world: World) -> Relay:
    return Relay.start(world, make_deposit(world.party(1), entry(), world.random(16), world.random), 1)


def test_every_bit_of_a_sealed_envelope_is_refused(world: World) -> None:
    made, relay = asked(world, EXCEEDS), deposited(world)
    slot = relay.slots[0]
    cases = [
        (
            made.custodian(made.chosen[0]),
            made.requester.id,
            PURPOSE,
            made.statement.check_id,
            made.request.envelopes[0],
        ),
        (
            relay.holder(slot).party,
            relay.depositor.id,
            deposit.PURPOSE,
            relay.made.deposit.deposit_id,
            relay.made.deposit.envelopes[0],
        ),
    ]
    for custodian, sender, purpose, header, envelope in cases:
        channel = custodian.channel(sender)

        def read(sent: bytes, purpose: str = purpose, header: bytes = header, channel: object = channel) -> str:
            return refusal_of(lambda: channel.open(purpose, header, sent))  # type: ignore[attr-defined]  a Channel

        assert read(envelope) == "accepted"
        assert {read(flipped(envelope, bit)) for bit in bits(envelope)} == {"bad-envelope"}
        assert {read(envelope, header=flipped(header, bit)) for bit in bits(header)} == {"bad-envelope"}


# --- (5) a member's requests, as the service reads them ------------------------------------------------------------


def test_every_bit_of_a_check_request_is_refused_by_the_service(world: World) -> None:
    made = asked(world, EXCEEDS)
    data = encode(made.request)

    def read(sent: bytes) -> None:
        accept_request(world.service, decode(CheckRequest, sent), NOW, world.random)

    envelopes = len(data) - sum(map(len, made.request.envelopes))
    sampled = [bit for bit in bits(data) if bit < envelopes * 8 or bit % STRIDE == 0]
    seen = Counter(refusal_of(lambda bit=bit: read(flipped(data, bit))) for bit in sampled)
    assert set(seen) == {"malformed", "unknown-member", "bad-signature", "bad-envelopes"}
    assert refusal_of(lambda: read(data)) == "accepted"


def test_every_bit_of_a_signed_batch_is_refused_by_the_service(world: World) -> None:
    relay = deposited(world)
    signed = sign_batch(relay.depositor, [relay.made], BEFORE)
    data = encode(signed)

    def read(sent: bytes) -> None:
        accept_batch(world.service, decode(SignedBatch, sent), BEFORE, world.random)

    seen = {refusal_of(lambda bit=bit: read(flipped(data, bit))) for bit in outside_envelopes(relay, data)}
    assert seen == {"malformed", "unknown-member", "bad-signature"}
    assert refusal_of(lambda: read(data)) == "accepted"


def test_flipped_bits_of_a_batch_that_its_depositor_signs_again_get_past_the_signature(world: World) -> None:
    # So it is the signature that refused them above. What the service then accepts is the depositor's own to change.
    relay = deposited(world)
    data = sign_batch(relay.depositor, [relay.made], BEFORE).batch
    key, seen = relay.depositor.keys.signing, set()
    for bit in outside_envelopes(relay, data):
        batch = flipped(data, bit)
        signed = SignedBatch(batch=batch, signature=signing.sign(key, deposit.PURPOSE, batch))
        seen.add(refusal_of(lambda signed=signed: accept_batch(world.service, signed, BEFORE, world.random)))
    refusals = {"malformed", "unknown-member", "unknown-shard", "other-manifest", "stale", "bad-excluded", "bad-batch"}
    # A bit of its name makes it another member, whose signature that is not.
    assert seen == refusals | {"bad-signature", "accepted"}


def outside_envelopes(relay: Relay, data: bytes) -> list[int]:
    """Return every bit but those of envelopes, and some of these: a sealed byte is as good as another here."""
    envelopes = relay.made.deposit.envelopes
    first, last = data.index(envelopes[0]) * 8, (data.index(envelopes[-1]) + len(envelopes[-1])) * 8
    return [*range(first), *range(first, last, STRIDE * 9 if STRIDE > 1 else 1), *range(last, len(data) * 8)]
