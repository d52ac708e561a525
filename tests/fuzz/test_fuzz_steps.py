"""Every step that takes another party's message: a refusal with a known code, or what is right to do; never else.

Messages are well formed, with any values, many of them close to those of an honest run; and whatever an attacker can
make itself (its signatures, seals and proofs) is made again over what was changed.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fuzzing import Tally, bent, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from strategies import messages
from test_check import TICK, Attempt, an_insider, an_outsider, attempt, resealed, signed_by
from test_deposit import BEFORE, Relay, entry, unpadded, unsealed
from world import COUNT_RULE, LIMIT, NOW, RULE, TODAY, make_world, name, person, seeded

from protocol import deposit as steps
from protocol import signing, voprf
from protocol.check import (
    Question,
    Verdict,
    Void,
    accept_call,
    accept_request,
    answer_call,
    conclude,
    evaluation_verifiers,
    read_outcome,
)
from protocol.committee import excluded_slot
from protocol.committee_keys import PURPOSE as KEY_PURPOSE
from protocol.committee_keys import CommitteeKey, KeyEnvelope, holders, receive
from protocol.comparison import Disagreement
from protocol.custody import AHEAD_DAYS, DEPOSIT_DAYS, Kept, MemoryCustody
from protocol.deposit import (
    ABANDON,
    PUBLIC_REFUSALS,
    PURPOSE,
    REFUSED,
    TOO_FEW,
    AcceptedDeposit,
    Decision,
    accept_abandon,
    accept_batch,
    accept_commit,
    accept_never,
    accept_prepare,
    batch_outcome,
    claimed_proofs,
    commit_call,
    confirm,
    decide,
    give_receipts,
    is_complete,
    is_made,
    make_deposit,
    opened_proofs,
    prepare_call,
    read_receipts,
    sign_abandon,
    sign_batch,
)
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.messages import (
    COMMITTED,
    COUNT_OF_KIND,
    FRESHNESS_SECONDS,
    ISSUE,
    RECHECK,
    Abandon,
    CheckAnswer,
    CheckCall,
    CheckEnvelope,
    CheckOutcome,
    CheckRequest,
    CheckStatement,
    Commit,
    CommitCall,
    DepositBatch,
    DepositEnvelope,
    DepositOutcome,
    EnvelopeHash,
    HolderReceipts,
    NeverCall,
    PrepareAnswer,
    PrepareCall,
    Prepared,
    RangeOrder,
    RangeProof,
    Receipt,
    ReceiptStatement,
    SignedAbandon,
    SignedBatch,
    envelope_hash,
)
from protocol.party import Party, random_scalar
from protocol.secret import Secret
from protocol.sharing import held_labels, plain_share
from service.config import Settings
from service.custodians import Custodians
from service.directory import DataDirectory
from service.relay import Relay as ServiceRelay
from transport.peers import Peers

pytest_plugins = ("fuzzing",)

WORLD = make_world(8, shards=1)
MANIFEST = WORLD.manifest
SLOTS = MANIFEST.committee(0).slots
OUTSIDER, INSIDER = an_outsider(WORLD), an_insider(WORLD)
WORLD.deposit(OUTSIDER, person(1), LIMIT)
MADE = attempt(WORLD, OUTSIDER, [Question(person(1), RULE, 1), Question(person(2), COUNT_RULE, 5)])
RIGHT = [(Verdict.EXCEEDS, None), (Verdict.WITHIN, None)]
NAMES = {*WORLD.members, "accident", "term_life", RULE.id, COUNT_RULE.id}
some = seeded("fuzz")


def signer(member: str) -> Party | None:
    """Return the member of that name, if there is one: whoever claims another name can sign for itself alone."""
    return WORLD.members[member].party if member in WORLD.members else None


def signed_check(statement: CheckStatement, by: str) -> Any:  # noqa: ANN401
    return signed_by(WORLD.members[by].party, statement)


# --- a check: step 2 -----------------------------------------------------------------------------------------------


def well_laid(statement: CheckStatement) -> bool:
    """Say whether each person has lanes, and each lane a person and rule of its own."""
    asked = [(lane.person, lane.rule_id) for lane in statement.lanes]
    return len(set(asked)) == len(asked) and sorted({one for one, _ in asked}) == list(range(len(statement.persons)))


def may_be_asked(request: CheckRequest, *, really: str) -> bool:
    """Say of a request, signed by `really`, whether a service may evaluate it."""
    statement = request.signed.statement
    slots = [slot for slot, member in enumerate(SLOTS) if member != statement.requester]
    return (
        statement.requester == really
        and statement.shard == 0
        and statement.manifest_hash == MANIFEST.hash
        and abs(NOW - statement.issued_at) <= FRESHNESS_SECONDS
        and well_laid(statement)
        and [item.slot for item in statement.envelopes] == slots
        and [item.hash for item in statement.envelopes] == [envelope_hash(item) for item in request.envelopes]
    )


def rehashed(request: CheckRequest) -> CheckRequest:
    """Return the request with the hashes of the envelopes that it has."""
    statement = request.signed.statement
    hashes = tuple(
        EnvelopeHash(slot=old.slot, hash=envelope_hash(item))
        for old, item in zip(statement.envelopes, request.envelopes, strict=False)
    )
    changed = replace(statement, envelopes=(*hashes, *statement.envelopes[len(hashes) :]))
    return replace(request, signed=replace(request.signed, statement=changed))


@pytest.mark.parametrize("really", [name(OUTSIDER), name(INSIDER)])
def test_a_service_evaluates_a_request_exactly_when_its_requester_may_ask_it(really: str, tally: Tally) -> None:
    asked = MADE if really == name(OUTSIDER) else attempt(WORLD, INSIDER, [Question(person(1), RULE, 1)])
    tried = []

    def accepted(request: CheckRequest) -> bool:
        tried.clear()
        evaluation = accept_request(WORLD.service, request, NOW, some, lambda *who: tried.append(who))
        lanes = request.signed.statement.lanes
        blinded = [Element(point) for point in request.signed.statement.persons]
        assert evaluation.request is request
        assert voprf.verify(MANIFEST.blinding_key, blinded, list(evaluation.evaluated), evaluation.proof)
        assert tried == [(really, len(lanes))]
        return True

    tally.tries(lambda: accepted(asked.request), lambda _: may_be_asked(asked.request, really=really), ())

    @fuzzed(4)
    @given(st.one_of(bent(asked.request, NAMES), messages(CheckRequest)), st.booleans(), st.booleans())
    def check(request: CheckRequest, again: bool, hashes: bool) -> None:  # noqa: FBT001
        request = rehashed(request) if hashes else request
        if again:
            request = replace(request, signed=signed_check(request.signed.statement, really))
        good = may_be_asked(request, really=really) and (
            again or request.signed == asked.request.signed or request.signed.statement == asked.statement
        )
        result = tally.tries(lambda: accepted(request), lambda _: good)
        if again and good:
            assert result is True, "what may be asked is not refused"
        if isinstance(result, ProtocolError) and result.code in ("bad-signature", "unknown-member", "stale"):
            assert tried == [], "nobody's budget of questions is spent by what another signed"

    check()
    assert tally.refused > 0


# --- a check: step 3 -----------------------------------------------------------------------------------------------


def served(slot: int, call: CheckCall) -> CheckAnswer:
    """Do what a custodian does with a call, and nothing to its store where it refuses."""
    member = WORLD.members[SLOTS[slot]]
    custody = deepcopy(member.custody)
    try:
        accepted = accept_call(member.party, call, NOW)
        spent = custody.admit(accepted.admission())
        view = custody.view(accepted.reading())
        return answer_call(member.party, accepted, member.committee_keys[0, accepted.omitted], view, spent)
    except ProtocolError:
        assert vars(custody) == vars(member.custody)
        raise


def may_be_answered(call: CheckCall, slot: int, opened: CheckEnvelope | None) -> bool:
    """Say whether a custodian may answer a call; `opened` is what its requester sealed."""
    statement = call.signed.statement
    requester = MANIFEST.members.get(statement.requester)
    if requester is None or opened is None or statement.shard != 0:
        return False
    own = SLOTS.index(requester.id) if requester.id in SLOTS else None
    rules = {rule.id: rule for rule in (RULE, COUNT_RULE)}
    held = held_labels(len(SLOTS), excluded_slot(0, own, len(SLOTS), statement.check_id), slot)
    if statement.occasion == RECHECK:  # which proposes nothing
        held = []
    return (
        statement.manifest_hash == MANIFEST.hash
        and abs(NOW - statement.issued_at) <= FRESHNESS_SECONDS
        and abs(statement.as_of - TODAY) <= 1
        and NOW - 61 <= call.tick <= NOW - 1
        and list(call.chosen) == sorted(set(call.chosen))
        and max(call.chosen) < len(SLOTS)
        and slot in call.chosen
        and own not in call.chosen
        and {item.slot: item.hash for item in statement.envelopes}.get(slot) == envelope_hash(call.envelope)
        and (opened.check_id, opened.shard, opened.as_of) == (statement.check_id, 0, statement.as_of)
        and (opened.manifest_hash, opened.issued_at) == (MANIFEST.hash, statement.issued_at)
        and tuple(one.blinded for one in opened.persons) == statement.persons
        and [(one.person, one.rule_id, one.rule_version) for one in opened.lanes]
        == [(one.person, one.rule_id, one.rule_version) for one in statement.lanes]
        and well_laid(statement)
        and all(lane.rule_id in rules and lane.rule_version == 1 for lane in statement.lanes)
        and all(len(lane.proposal) == len(held) for lane in opened.lanes)
    )


def well_answered(call: CheckCall) -> Callable[[CheckAnswer], bool]:
    lanes = len(call.signed.statement.lanes)

    def right(answer: CheckAnswer) -> bool:
        assert decode(CheckAnswer, encode(answer)) == answer
        return all(len(sent.labels) == lanes * 768 for sent in answer.part.sent)

    return right


def test_a_custodian_answers_no_call_that_a_service_has_bent(tally: Tally) -> None:
    slot = MADE.chosen[1]
    good, own = MADE.call(slot), MADE.custodian(slot)
    opened = decode(CheckEnvelope, own.channel(MADE.requester.id).open("check", MADE.statement.check_id, good.envelope))
    tally.tries(lambda: served(slot, good), well_answered(good), ())
    others = attempt(WORLD, OUTSIDER, [Question(person(3), RULE, 1), Question(person(2), COUNT_RULE, 5)], seed=2)
    good_id = MADE.statement.check_id

    @fuzzed(4)
    @given(st.one_of(bent(good, NAMES), bent(replace(good, envelope=others.call(slot).envelope)), messages(CheckCall)))
    def check(call: CheckCall) -> None:
        unsigned = call.signed == good.signed and may_be_answered(call, slot, opened)
        right = (call.evaluated, call.proof) == (good.evaluated, good.proof)
        # Two of the four verify the proof of C; the others come to another P, and open nothing with anybody.
        verifies = slot in call.chosen and call.chosen.index(slot) in evaluation_verifiers(good_id, call.attempt)
        honest = unsigned and (right or (not verifies and len(call.evaluated) == len(good.evaluated)))
        answered = tally.tries(lambda: served(slot, call), lambda answer: honest and well_answered(call)(answer))
        assert isinstance(answered, CheckAnswer) is honest

    check()
    assert tally.refused > 0


def test_a_custodian_answers_no_call_that_a_requester_has_bent_though_all_proofs_are_made_again(tally: Tally) -> None:
    slot = MADE.chosen[1]
    own, random = MADE.custodian(slot), seeded("service")

    def relayed(made: Attempt) -> CheckCall:
        """Return the call of an honest service, or of one that does not look at what it relays."""
        blinded = [Element(point) for point in made.statement.persons]
        key = WORLD.service.keys.blinding
        evaluated = [voprf.blind_evaluate(key, point) for point in blinded]
        proof = voprf.prove(key, MANIFEST.blinding_key, blinded, evaluated, random_scalar(random))
        call = made.call(slot)
        return replace(call, evaluated=tuple(evaluated), proof=proof)

    def sealed(statement: CheckStatement, body: CheckEnvelope) -> Attempt:
        """Return the check whose requester seals this body for the slot, and signs this statement with its hash."""
        channel = MADE.requester.channel(own.id)
        envelope = channel.seal("check", statement.check_id, encode(body), some(32))
        place = [item.slot for item in MADE.statement.envelopes].index(slot)
        envelopes = (*MADE.request.envelopes[:place], envelope, *MADE.request.envelopes[place + 1 :])
        hashes = tuple(
            replace(item, hash=envelope_hash(envelope)) if item.slot == slot else item for item in statement.envelopes
        )
        signed = signed_check(replace(statement, envelopes=hashes), MADE.requester.id)
        request = CheckRequest(signed=signed, envelopes=envelopes)
        return replace(MADE, request=request, evaluation=replace(MADE.evaluation, request=request))

    kept: list[CheckEnvelope] = []
    resealed(MADE, lambda body: kept.append(body) or body, (slot,))
    good = kept[0]
    tally.tries(lambda: served(slot, relayed(sealed(MADE.statement, good))), lambda _: True, ())
    shared = ("check_id", "shard", "manifest_hash", "as_of", "issued_at")

    @fuzzed(5)
    @given(
        st.just(MADE.statement) | bent(MADE.statement, NAMES) | messages(CheckStatement),
        st.just(good) | bent(good, NAMES) | messages(CheckEnvelope),
        st.booleans(),
    )
    def check(statement: CheckStatement, body: CheckEnvelope, alike: bool) -> None:  # noqa: FBT001
        if slot not in {item.slot for item in statement.envelopes}:
            statement = replace(statement, envelopes=MADE.statement.envelopes)
        if alike:  # the envelope says the same as the statement in all that stands in both
            body = replace(body, **{field: getattr(statement, field) for field in shared})
        made = sealed(statement, body)
        call = relayed(made)
        mine = made.statement.requester == MADE.requester.id and made.statement.check_id == good.check_id
        right = mine and body.persons == good.persons and may_be_answered(call, slot, body)
        answered = tally.tries(lambda: served(slot, call), lambda answer: right and well_answered(call)(answer))
        assert isinstance(answered, CheckAnswer) is right

    check()
    assert tally.accepted > 1
    assert tally.refused > 0


# --- a check: steps 4 and 5 ----------------------------------------------------------------------------------------

ANSWERS = {slot: MADE.answer(slot) for slot in MADE.chosen}


def concluded(answers: dict[int, CheckAnswer]) -> list[tuple[Verdict, Void | None]]:
    try:
        outcome = conclude(WORLD.service, MADE.evaluation, 1, MADE.chosen, TICK, answers)
    except Disagreement as odd:
        named = set(odd.slots)
        assert named <= set(MADE.chosen)
        raise ProtocolError("disagreement", odd.what) from None
    assert decode(CheckOutcome, encode(outcome)) == outcome
    return MADE.read(outcome)


def right_or_void(verdicts: list[tuple[Verdict, Void | None]]) -> bool:
    return len(verdicts) == 2 and all(
        got == right or (got[0] is Verdict.INDETERMINATE and got[1] is not None)
        for got, right in zip(verdicts, RIGHT, strict=True)
    )


def test_whatever_one_custodian_answers_no_lane_is_turned(tally: Tally) -> None:
    tally.tries(lambda: concluded(ANSWERS), lambda got: got == RIGHT, ())

    @fuzzed(4)
    @given(st.data(), st.sampled_from(MADE.chosen), st.booleans())
    def check(data: st.DataObject, slot: int, digest: bool) -> None:  # noqa: FBT001
        answer = data.draw(bent(ANSWERS[slot]) | messages(CheckAnswer))
        if digest and answer.part.garbled is not None:  # as a liar would
            part = replace(answer.part, garbled_digest=answer.part.garbled.digest())
            answer = replace(answer, part=part)
        tally.tries(lambda: concluded({**ANSWERS, slot: answer}), right_or_void, ("disagreement",))

    check()
    assert tally.refused > 0


def test_an_outcome_that_a_service_has_bent_is_the_right_verdict_or_none(tally: Tally) -> None:
    good = conclude(WORLD.service, MADE.evaluation, 1, MADE.chosen, TICK, ANSWERS)
    tally.tries(lambda: read_outcome(MADE.pending, good, NOW), lambda got: got == RIGHT, ())

    @fuzzed(10)
    @given(
        bent(good, {reason.value for reason in Void}) | messages(CheckOutcome),
        st.sampled_from([NOW, NOW + 2, NOW + 2.1, NOW + 1e6]),
    )
    def check(outcome: CheckOutcome, now: float) -> None:
        verdicts = tally.tries(lambda: read_outcome(MADE.pending, outcome, now), right_or_void, ())
        if now > NOW + 2:
            assert verdicts == [(Verdict.INDETERMINATE, Void.TIMEOUT)] * 2
        elif outcome.void is not None:
            assert {verdict for verdict, _ in verdicts} == {Verdict.INDETERMINATE}

    check()


# --- a deposit: step 2 ---------------------------------------------------------------------------------------------

DEPOSITS = [make_deposit(WORLD.party(INSIDER), entry(whom), some(16), some) for whom in (1, 2, 3)]
SIGNED = sign_batch(WORLD.party(INSIDER), DEPOSITS, BEFORE)
BATCH = decode(DepositBatch, SIGNED.batch)
EVALUATED = accept_batch(WORLD.service, SIGNED, BEFORE, some)
ORDER = RangeOrder(nonce=bytes(16), chosen=EVALUATED.slots[:4], issued_at=int(BEFORE))


def may_be_deposited(batch: DepositBatch) -> bool:
    ids = [item.deposit_id for item in batch.deposits]
    return (
        (batch.depositor, batch.shard, batch.manifest_hash) == (name(INSIDER), 0, MANIFEST.hash)
        and batch.excluded == SLOTS.index(name(INSIDER))
        and abs(BEFORE - batch.issued_at) <= FRESHNESS_SECONDS
        and len(ids) == len(set(ids))
        and all(len(item.envelopes) == len(SLOTS) - 1 for item in batch.deposits)
    )


def test_a_service_evaluates_a_batch_exactly_when_its_depositor_may_make_it(tally: Tally) -> None:
    keys = WORLD.party(INSIDER).keys

    def accepted(signed: SignedBatch) -> DepositBatch:
        made = accept_batch(WORLD.service, signed, BEFORE, some)
        call = prepare_call(made, made.slots[0], ORDER)
        assert decode(PrepareCall, encode(call)) == call
        return made.batch

    tally.tries(lambda: accepted(SIGNED), lambda got: got == BATCH, ())

    @fuzzed(4)
    @given(bent(BATCH, NAMES) | messages(DepositBatch), bent(SIGNED), st.integers(0, 3))
    def check(batch: DepositBatch, signed: SignedBatch, how: int) -> None:
        if how:
            data = encode(batch)
            signed = SignedBatch(batch=data, signature=signing.sign(keys.signing, PURPOSE, data))
        good = may_be_deposited(batch) if how else signed == SIGNED
        result = tally.tries(lambda: accepted(signed), lambda got: good and got == (batch if how else BATCH))
        assert isinstance(result, ProtocolError) is not good

    check()
    assert tally.refused > 0


# --- a deposit: step 3 ---------------------------------------------------------------------------------------------


Results = tuple[AcceptedDeposit | ProtocolError, ...]


def prepared(slot: int, call: PrepareCall) -> tuple[Results, PrepareAnswer, dict[Any, Any]]:
    """Do what a holder does with a call on a store of its own; return results, answer and what it then keeps."""
    member, custody = WORLD.members[SLOTS[slot]], MemoryCustody()
    accepted = accept_prepare(member.party, call, member.committee_keys[0, SLOTS.index(name(INSIDER))], BEFORE)
    answer = confirm(member.party, accepted, custody.prepare(accepted.proposed, BEFORE, accepted.attempt()))
    return accepted.deposits, answer, custody._deposits


def is_sharing(slot: int, body: DepositEnvelope) -> bool:
    """Tell whether a slot was given as many shares as it holds, and the count that follows from the kind."""
    held = held_labels(len(SLOTS), body.facts.excluded, slot)
    counts = plain_share(COUNT_OF_KIND[body.facts.kind], len(SLOTS), body.facts.excluded)
    return len(body.amounts) == len(body.salts) == len(held) and body.counts == tuple(counts[key] for key in held)


def garbles(slot: int, call: PrepareCall, results: Results) -> bool:
    """Tell whether a holder garbles: it is of A, which can be, just now, and refuses nothing."""
    order, slots = call.order, set(range(len(SLOTS))) - {SLOTS.index(name(INSIDER))}
    return (
        order is not None
        and slot in order.chosen
        and list(order.chosen) == sorted(set(order.chosen) & slots)
        and abs(BEFORE - order.issued_at) <= FRESHNESS_SECONDS
        and not any(isinstance(item, ProtocolError) for item in results)
    )


def only_good_is_kept(slot: int, call: PrepareCall, bodies: dict[int, DepositEnvelope]) -> Callable[[Any], bool]:
    """Say whether a holder kept of a call what it may; `bodies` has, by place, what the depositor really sealed."""

    def right(result: tuple[Results, PrepareAnswer, dict[Any, Any]]) -> bool:
        accepted, answer, deposits = result
        assert decode(PrepareAnswer, encode(answer)) == answer
        good = {
            place: body.facts
            for place, body in bodies.items()
            if body.facts.depositor == call.depositor == name(INSIDER)
            and body.facts.deposit_id == call.deposits[place].deposit_id
            and body.blinded == call.deposits[place].blinded
            and (body.facts.shard, body.facts.excluded) == (call.shard, call.excluded)
            and (body.facts.shard, body.facts.excluded) == (0, SLOTS.index(name(INSIDER)))
            and body.facts.manifest_hash == call.manifest_hash == MANIFEST.hash
            and body.facts.epoch == 1
            and (body.facts.kind == ISSUE) is (body.facts.earlier is None)
            and (body.facts.kind != ISSUE or body.facts.product in MANIFEST.terms.products)
            and TODAY - DEPOSIT_DAYS <= body.facts.day <= TODAY + AHEAD_DAYS
            and is_sharing(slot, body)
        }
        if (answer.garbled is not None) is not garbles(slot, call, accepted):
            return False
        for place, (item, told) in enumerate(zip(accepted, answer.answers, strict=True)):
            if isinstance(item, ProtocolError):
                assert told.refusal == item.code
                assert (told.confirmation, told.digests, told.tick) == (bytes(32), (), None)
            elif place not in good or item.facts != good[place]:
                return False
        kept = {item.proposed.deposit_id for item in accepted if isinstance(item, AcceptedDeposit)}
        return {deposit_id for _, deposit_id in deposits} == kept

    return right


def sealed_bodies(slot: int) -> dict[int, DepositEnvelope]:
    relays = [Relay(WORLD, made, EVALUATED) for made in DEPOSITS]
    return {place: unpadded(unsealed(relay, slot)) for place, relay in enumerate(relays)}


def reproven(call: PrepareCall) -> PrepareCall:
    """Return the call of a service that evaluates whatever blinded persons stand in it, and proves it."""
    blinded = [Element(item.blinded) for item in call.deposits]
    evaluated = [voprf.blind_evaluate(WORLD.service.keys.blinding, point) for point in blinded]
    proof = voprf.prove(WORLD.service.keys.blinding, MANIFEST.blinding_key, blinded, evaluated, random_scalar(some))
    deposits = tuple(replace(item, evaluated=point) for item, point in zip(call.deposits, evaluated, strict=True))
    return replace(call, deposits=deposits, proof=proof)


def test_a_holder_keeps_nothing_of_a_call_that_a_service_has_bent_but_what_was_left_whole(tally: Tally) -> None:
    slot = EVALUATED.slots[1]
    good, bodies = prepare_call(EVALUATED, slot, ORDER), sealed_bodies(slot)
    by_id = {body.facts.deposit_id: body for body in bodies.values()}
    tally.tries(lambda: prepared(slot, good), only_good_is_kept(slot, good, bodies), ())

    @fuzzed(4)
    @given(bent(good, NAMES) | messages(PrepareCall), st.booleans())
    def check(call: PrepareCall, again: bool) -> None:  # noqa: FBT001
        call = reproven(call) if again else call
        known = {place: by_id[item.deposit_id] for place, item in enumerate(call.deposits) if item.deposit_id in by_id}
        tally.tries(lambda: prepared(slot, call), only_good_is_kept(slot, call, known))

    check()
    assert tally.accepted > 1
    assert tally.refused > 0


def test_a_holder_keeps_of_what_a_depositor_seals_only_what_is_whole(tally: Tally) -> None:
    slot = EVALUATED.slots[1]
    good, bodies = prepare_call(EVALUATED, slot, ORDER), sealed_bodies(slot)
    channel = WORLD.party(INSIDER).channel(SLOTS[slot])
    kept = 0

    @fuzzed(5)
    @given(
        st.one_of(*[bent(bodies[0], NAMES, most=1)] * 4, messages(DepositEnvelope), bent(bodies[1], NAMES)),
        st.one_of(*[st.none()] * 3, st.binary(max_size=80)),
    )
    def check(body: DepositEnvelope, junk: bytes | None) -> None:
        nonlocal kept
        data = steps._pad(encode(body), len(SLOTS)) if junk is None else junk
        envelope = channel.seal(PURPOSE, good.deposits[0].deposit_id, data, some(32))
        call = replace(good, deposits=(replace(good.deposits[0], envelope=envelope), *good.deposits[1:]))
        known = {place: body for place, body in bodies.items() if place} | ({0: body} if junk is None else {})
        result = tally.tries(lambda: prepared(slot, call), only_good_is_kept(slot, call, known), ())
        assert sum(isinstance(item, AcceptedDeposit) for item in result[0]) >= 2, "the others do not suffer"
        kept += isinstance(result[0][0], AcceptedDeposit)

    check()
    assert 0 < kept < tally.inputs


# --- a deposit: steps 4 to 7 ---------------------------------------------------------------------------------------

TOLD = {slot: prepared(slot, prepare_call(EVALUATED, slot, ORDER))[1] for slot in EVALUATED.slots}


def proofs_of(answers: Mapping[int, PrepareAnswer]) -> Sequence[RangeProof | None]:
    """Return what a service commits with: what it opens, or what holders claim."""
    try:
        opened = opened_proofs(MANIFEST, EVALUATED, ORDER, answers)
    except Disagreement:
        opened = None
    return claimed_proofs(MANIFEST, EVALUATED, answers) if opened is None else opened


PROOFS = proofs_of(TOLD)
DECISIONS = [Decision(int(BEFORE), EVALUATED.slots, None, proof) for proof in PROOFS]
PUBLIC = PUBLIC_REFUSALS | {REFUSED, TOO_FEW}
NOW_TICK = int(BEFORE)


def legal(decisions: list[Decision], answered: set[int]) -> bool:
    for decision in decisions:
        if decision.tick is None:
            if decision.slots or decision.reason not in PUBLIC:
                return False
        elif (
            decision.tick > NOW_TICK or decision.reason or decision.proof is None or not set(decision.slots) <= answered
        ):
            return False
    return len(decisions) == len(DEPOSITS)


def test_whatever_holders_answer_a_service_commits_at_all_that_agree_or_says_a_public_reason(tally: Tally) -> None:
    codes = {*PUBLIC, "wrong-earlier", "a code\nthat nobody knows"}

    @fuzzed(5)
    @given(st.data(), st.lists(st.sampled_from(EVALUATED.slots), unique=True, max_size=5))
    def check(data: st.DataObject, liars: list[int]) -> None:
        lies = {slot: data.draw(bent(TOLD[slot], codes) | messages(PrepareAnswer)) for slot in liars[:2]}
        silent = set(liars[3:])
        answers = {slot: answer for slot, answer in {**TOLD, **lies}.items() if slot not in silent}
        decisions = tally.tries(
            lambda: decide(MANIFEST, EVALUATED, answers, proofs_of(answers), NOW_TICK),
            lambda got: legal(got, set(answers)),
            (),
        )
        for place, decision in enumerate(decisions):
            if decision.tick is not None:  # the liars among those that commit say what the honest ones said
                told = {answers[slot].answers[place].confirmation for slot in decision.slots}
                assert len(told) == 1
                assert len(decision.slots) >= len(SLOTS) - 2
        for slot in EVALUATED.slots:
            call = commit_call(EVALUATED, decisions, slot)
            assert call is None or decode(CommitCall, encode(call)) == call
        receipts = {slot: data.draw(messages(HolderReceipts)) for slot in answers}
        outcome = batch_outcome(decisions, receipts)
        assert decode(type(outcome), encode(outcome)) == outcome
        assert {item.reason for item in outcome.outcomes} <= PUBLIC | {None}

    check()
    assert decide(MANIFEST, EVALUATED, TOLD, PROOFS, NOW_TICK) == DECISIONS


SETTINGS = Settings(
    state=Path(),
    host="127.0.0.1",
    port=1,
    manifest=Path(),
    admins=Path(),
    workers=1,
    threads=2,
    check_seconds=1.0,
    attempt_seconds=1.0,
    recheck_seconds=1.0,
    recheck_attempt_seconds=1.0,
    deposit_seconds=1.0,
    checks_a_second=1.0,
    rechecks_a_second=1.0,
    deposits_a_second=1.0,
    redis=None,
    redis_seconds=1.0,
    capture=None,
)


def test_no_holder_writes_lines_of_its_own_into_the_services_log(
    caplog: pytest.LogCaptureFixture, tally: Tally, tmp_path: Path
) -> None:
    line = Custodians(WORLD.service, Peers(), DataDirectory(MANIFEST, tmp_path / "directory"))
    relay = ServiceRelay(WORLD.service, line, SETTINGS, some)
    texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=16)

    @fuzzed(2)
    @given(texts | st.sampled_from(["wrong-earlier", "x\n2026-01-01 WARNING service.relay: all is well"]))
    def check(refusal: str) -> None:
        caplog.clear()
        told = Prepared(confirmation=bytes(32), digests=(), tick=None, range_proof=None, refusal=refusal)
        answer = decode(PrepareAnswer, encode(PrepareAnswer(answers=(told,), garbled=None)))
        tally.tries(
            lambda: relay._note_dissent(0, {1: answer}),
            lambda _: len(caplog.messages) == 1 and caplog.messages[0].isprintable(),
            (),
        )
        assert SLOTS[1] in caplog.messages[0]

    check()


def a_holder() -> tuple[int, Party, MemoryCustody]:
    """Return a holder with a store of its own, in which the batch is prepared."""
    slot = EVALUATED.slots[1]
    member, custody = WORLD.members[SLOTS[slot]], MemoryCustody()
    key = member.committee_keys[0, SLOTS.index(name(INSIDER))]
    custody.prepare(accept_prepare(member.party, prepare_call(EVALUATED, slot, None), key, BEFORE).proposed, BEFORE)
    return slot, member.party, custody


def test_a_commit_makes_visible_what_was_prepared_and_nothing_else(tally: Tally) -> None:
    slot, _, _ = a_holder()
    good = commit_call(EVALUATED, DECISIONS, slot)
    assert good is not None
    ids = {item.deposit_id for item in BATCH.deposits}
    shown = {item.deposit_id: item.range_proof for item in good.commits}

    def committed(call: CommitCall) -> tuple[MemoryCustody, HolderReceipts | None]:
        _, party, custody = a_holder()
        before = deepcopy(vars(custody))
        try:
            kept = custody.commit(call.depositor, call.shard, accept_commit(party, call, BEFORE))
            given = give_receipts(party, call.depositor, call.shard, [one.deposit_id for one in call.commits], kept)
        except ProtocolError:
            assert vars(custody) == before
            raise
        assert decode(HolderReceipts, encode(given)) == given
        return custody, given

    def right(call: CommitCall) -> Callable[[tuple[MemoryCustody, HolderReceipts | None]], bool]:
        own = (call.depositor, call.shard) == (name(INSIDER), 0)
        expected, given_for = dict[bytes, int](), list[bool]()
        for item in call.commits if own else ():  # the first needs the deposit's proof, others may lower the tick
            if item.deposit_id in expected:
                expected[item.deposit_id] = min(item.tick, expected[item.deposit_id])
            elif shown.get(item.deposit_id) == item.range_proof:
                expected[item.deposit_id] = item.tick
            given_for.append(item.deposit_id in expected)

        def holds(result: tuple[MemoryCustody, HolderReceipts | None]) -> bool:
            custody, given = result
            ticks = {key[1]: kept.tick for key, (_, kept) in custody._deposits.items() if kept.tick is not None}
            receipts = [] if given is None else [item is not None for item in given.receipts]
            return (
                ticks == expected
                and {key[1] for key in custody._deposits} == ids
                and all(tick <= NOW_TICK for tick in ticks.values())
                and receipts == (given_for if own else [False] * len(call.commits))
            )

        return holds

    tally.tries(lambda: committed(good), right(good), ())

    @fuzzed(5)
    @given(bent(good, NAMES) | messages(CommitCall))
    def check(call: CommitCall) -> None:
        tally.tries(
            lambda: committed(call), right(call), ("future-tick", "unknown-shard", "not-custodian", "unknown-member")
        )

    check()
    assert tally.accepted > 1
    assert tally.refused > 0


def test_only_its_depositor_has_a_deposit_given_up_and_never_a_committed_one(tally: Tally) -> None:
    depositor = WORLD.party(INSIDER)
    ids = [item.deposit_id for item in BATCH.deposits]
    signed = sign_abandon(depositor, 0, BATCH.excluded, ids[1:], BEFORE)

    def abandoned(asked: SignedAbandon, *, relay: bool) -> set[bytes]:
        _, party, custody = a_holder()
        custody.commit(name(INSIDER), 0, [Commit(deposit_id=ids[2], tick=NOW_TICK, range_proof=PROOFS[2])])
        before = deepcopy(vars(custody))
        try:
            call = accept_abandon(WORLD.service, asked, BEFORE)[1] if relay else NeverCall(signed=asked)
            abandon = accept_never(party, call, BEFORE)
            kept = custody.abandon(abandon.depositor, abandon.shard, abandon.deposit_ids, BEFORE)
            given = give_receipts(party, abandon.depositor, abandon.shard, abandon.deposit_ids, kept)
        except ProtocolError:
            assert vars(custody) == before
            raise
        assert decode(HolderReceipts, encode(given)) == given
        assert custody._deposits[name(INSIDER), ids[2]][1].tick == NOW_TICK
        return {key[1] for key, (_, kept) in custody._deposits.items() if kept.never and key[0] == name(INSIDER)}

    tally.tries(lambda: abandoned(signed, relay=True), lambda never: never == {ids[1]}, ())

    @fuzzed(5)
    @given(
        bent(signed.abandon, NAMES) | messages(Abandon),
        bent(signed),
        st.sampled_from([None, name(INSIDER), name(OUTSIDER)]),
        st.booleans(),
    )
    def check(abandon: Abandon, unsigned: SignedAbandon, by: str | None, relay: bool) -> None:  # noqa: FBT001
        asked = unsigned
        if by is not None:
            key = WORLD.members[by].party.keys.signing
            asked = SignedAbandon(abandon=abandon, signature=signing.sign(key, ABANDON, encode(abandon)))
        own = asked.abandon.depositor == (by or name(INSIDER)) and (by is not None or asked == signed)
        fresh = abs(BEFORE - asked.abandon.issued_at) <= FRESHNESS_SECONDS
        mine = own and asked.abandon.depositor == name(INSIDER)
        expected = set(asked.abandon.deposit_ids) - {ids[2]} if mine else set()
        tally.tries(lambda: abandoned(asked, relay=relay), lambda never: own and fresh and never == expected)

    check()
    assert tally.refused > 0


def test_a_depositor_believes_each_holder_for_itself_alone(tally: Tally) -> None:
    made, depositor = DEPOSITS[0], WORLD.party(INSIDER)
    slots, liar = EVALUATED.slots, EVALUATED.slots[2]
    hashes = dict(zip(slots, map(envelope_hash, made.deposit.envelopes), strict=True))
    truth = {slot: Kept(NOW_TICK, never=False, envelope_hash=hashes[slot]) for slot in slots}
    receipts = tuple(
        give_receipts(WORLD.members[SLOTS[slot]].party, depositor.id, 0, [made.deposit.deposit_id], [kept]).receipts[0]
        for slot, kept in truth.items()
    )
    good = DepositOutcome(receipts=receipts, reason=None)

    def read(outcome: DepositOutcome) -> dict[int, Kept]:
        states = read_receipts(depositor, made, outcome)
        if is_complete(MANIFEST, made, states):
            assert is_made(MANIFEST, made, states)
        return states

    tally.tries(lambda: read(good), lambda got: got == truth and is_complete(MANIFEST, made, got), ())

    @fuzzed(5)
    @given(
        bent(good) | messages(DepositOutcome),
        messages(ReceiptStatement)
        | bent(
            ReceiptStatement(
                state=COMMITTED,
                depositor=depositor.id,
                shard=0,
                slot=liar,
                deposit_id=made.deposit.deposit_id,
                tick=NOW_TICK,
                envelope_hash=hashes[liar],
            ),
            NAMES,
        ),
        st.booleans(),
    )
    def check(outcome: DepositOutcome, statement: ReceiptStatement, lie: bool) -> None:  # noqa: FBT001
        if lie:  # a holder that MACs what it likes, under whatever slot
            mac = WORLD.members[SLOTS[liar]].party.channel(depositor.id).mac(PURPOSE, encode(statement))
            receipt = Receipt(slot=statement.slot, state=statement.state, tick=statement.tick, mac=mac)
            outcome = replace(outcome, receipts=(*outcome.receipts[:15], receipt))
        tally.tries(
            lambda: read(outcome),
            lambda got: all(kept == truth[slot] for slot, kept in got.items() if slot != liar or not lie),
            (),
        )

    check()


# --- committee keys ------------------------------------------------------------------------------------------------


def test_a_committee_key_is_taken_from_its_maker_alone_for_a_set_that_has_us(tally: Tally) -> None:
    good = KeyEnvelope(
        shard=0, omitted=None, committee_version=1, made_at=5, secret=bytes(range(32)), manifest_hash=MANIFEST.hash
    )

    @fuzzed(5)
    @given(bent(good) | messages(KeyEnvelope) | st.just(good), st.sampled_from(SLOTS), st.sampled_from(SLOTS))
    def check(body: KeyEnvelope, sender: str, holder: str) -> None:
        maker, party = WORLD.members[sender].party, WORLD.members[holder].party
        envelope = maker.channel(holder).seal(KEY_PURPOSE, MANIFEST.hash, encode(body), some(32))
        may = (
            (body.shard, body.committee_version) == (0, 1)
            and (body.omitted is None or body.omitted < len(SLOTS))
            and holders(MANIFEST, 0, body.omitted)[0] == sender
            and holder in holders(MANIFEST, 0, body.omitted)
        )
        expected = CommitteeKey.named(
            body.shard, body.omitted, body.committee_version, body.made_at, Secret(body.secret)
        )
        result = tally.tries(lambda: receive(party, sender, envelope), lambda key: may and key == expected)
        assert isinstance(result, ProtocolError) is not may

    check()
    assert tally.accepted > 0
    assert tally.refused > 0
