"""A deposit counts at all of its holders or at none, once, as it was made; and nothing about it comes back."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import POINTS, deterministic
from world import LIMIT, NOW, TODAY, World, make_world, name, person, seeded

from protocol import deposit as steps
from protocol import group, signing, voprf
from protocol import token as prover
from protocol.check import MemberInMemory, Verdict, Void, shard_of_person
from protocol.committee_keys import CommitteeKey
from protocol.comparison import Disagreement
from protocol.custody import AHEAD_DAYS, DEPOSIT_DAYS, Kept, MemoryCustody, Reading, Refusable
from protocol.deposit import (
    ABANDON,
    PURPOSE,
    TOO_FEW,
    UNPROVEN,
    AcceptedCall,
    AcceptedDeposit,
    Decision,
    Entry,
    EvaluatedBatch,
    MadeDeposit,
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
    deposit_context,
    draw_deposit_id,
    give_receipts,
    is_complete,
    is_made,
    make_deposit,
    only,
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
    AMENDMENT,
    CANCELLATION,
    COMMITTED,
    COUNT_OF_KIND,
    ISSUE,
    NEVER,
    Abandon,
    Commit,
    CommitCall,
    DepositBatch,
    DepositEnvelope,
    DepositFacts,
    DepositOutcome,
    NeverCall,
    PrepareAnswer,
    PrepareCall,
    RangeOrder,
    RangeProof,
    Receipt,
    ReceiptStatement,
    SignedAbandon,
    SignedBatch,
    envelope_hash,
)
from protocol.party import Party, random_scalar
from protocol.range_tags import range_tags
from protocol.sharing import CHOSEN, MAX_SLOTS, MIN_SLOTS, held_labels, plain_share
from protocol.token import SchnorrProof

EXCEEDS, WITHIN, INDETERMINATE = Verdict.EXCEEDS, Verdict.WITHIN, Verdict.INDETERMINATE
BEFORE = NOW - 60
Change = Callable[[Any], Any]


def entry(whom: int = 1, amount: int = LIMIT, **changes: object) -> Entry:
    return replace(Entry(person(whom), ISSUE, "accident", TODAY, amount), **changes)


@dataclass
class Relay:
    """A deposit between the steps: the service's side of it, so that a test can bend what passes."""

    world: World
    made: MadeDeposit
    evaluated: EvaluatedBatch

    @classmethod
    def start(cls, world: World, made: MadeDeposit, depositor: int, *, now: float = BEFORE) -> "Relay":
        signed = sign_batch(world.party(depositor), [made], now)
        return cls(world, made, accept_batch(world.service, signed, now, world.random))

    @property
    def slots(self) -> tuple[int, ...]:
        return self.evaluated.slots

    @property
    def depositor(self) -> Party:
        return self.world.members[self.evaluated.batch.depositor].party

    def holder(self, slot: int) -> MemberInMemory:
        return self.world.members[self.world.manifest.committee(self.made.shard).slots[slot]]

    def key(self, slot: int) -> CommitteeKey:
        """Return a holder's committee key for the depositor."""
        omitted = self.world.manifest.slot_of_group(self.made.shard, self.depositor.id)
        return self.holder(slot).committee_keys[self.made.shard, omitted]

    def order(self, slots: Sequence[int] | None = None) -> RangeOrder:
        """Return what four holders are told to garble: these, or the first ones."""
        chosen = tuple((self.slots if slots is None else slots)[:4])
        return RangeOrder(nonce=self.world.random(16), chosen=chosen, issued_at=int(BEFORE))

    def call(self, slot: int, order: RangeOrder | None = None) -> PrepareCall:
        return prepare_call(self.evaluated, slot, order)

    def accept(self, slot: int, call: PrepareCall | None = None) -> AcceptedCall:
        return accept_prepare(self.holder(slot).party, call or self.call(slot), self.key(slot), BEFORE)

    def accepted(self, slot: int, call: PrepareCall | None = None) -> tuple[AcceptedDeposit | ProtocolError, ...]:
        return self.accept(slot, call).deposits

    def prepare(self, slot: int, call: PrepareCall | None = None) -> PrepareAnswer:
        """Step 3 at one holder; it garbles nothing unless the call says so."""
        holder, accepted = self.holder(slot), self.accept(slot, call)
        prepared = holder.custody.prepare(accepted.proposed, BEFORE, accepted.attempt())
        return confirm(holder.party, accepted, prepared)

    def answers(self, slots: Sequence[int] | None = None, order: RangeOrder | None = None) -> dict[int, PrepareAnswer]:
        return {slot: self.prepare(slot, self.call(slot, order)) for slot in (self.slots if slots is None else slots)}

    def decide(
        self, slots: Sequence[int] | None = None, *, tick: int = int(BEFORE), chosen: Sequence[int] | None = None
    ) -> Decision:
        """Steps 3 and 4, over the holders that can be reached; `chosen` is A, the first four of them where not told."""
        reached = self.slots if slots is None else slots
        order = self.order(chosen or reached) if len(reached) >= CHOSEN else None
        answers = self.answers(reached, order)
        return self.decided(answers, self.opened(order, answers), tick)

    def opened(self, order: RangeOrder | None, answers: dict[int, PrepareAnswer]) -> Sequence[RangeProof | None]:
        """Return what the service opens, or else the proofs that holders claim."""
        found = None
        if order is not None:
            with contextlib.suppress(Disagreement):
                found = opened_proofs(self.world.manifest, self.evaluated, order, answers)
        return claimed_proofs(self.world.manifest, self.evaluated, answers) if found is None else found

    def decided(
        self, answers: dict[int, PrepareAnswer], proofs: Sequence[RangeProof | None] | None = None, tick: int = 5
    ) -> Decision:
        """Step 4 with given answers, and a good proof where none are given."""
        proofs = [self.proof()] if proofs is None else proofs
        return decide(self.world.manifest, self.evaluated, answers, proofs, tick)[0]

    def range_key(self, slot: int | None = None) -> bytes:
        (proposed,) = self.accept(self.slots[0] if slot is None else slot).proposed
        return proposed.range_key

    def proof(self, header: bytes = bytes(32)) -> RangeProof:
        """Return a proof that convinces the holders, as they alone could make it."""
        (floor, _), (ceiling, _), (alone, _) = range_tags(self.range_key(), header)
        return RangeProof(header_hash=header, floor=floor, ceiling=ceiling, alone=alone)

    def commit(self, decision: Decision, slots: Sequence[int] | None = None) -> dict[int, Kept]:
        """Steps 5 to 7, over the holders that the commit reaches; return the receipts that the depositor verified."""
        return read_receipts(self.depositor, self.made, self.outcome(decision, slots))

    def outcome(self, decision: Decision, slots: Sequence[int] | None = None) -> DepositOutcome:
        """Steps 5 and 6: return what the depositor is told."""
        given = {}
        for slot in self.slots if slots is None else slots:
            call = commit_call(self.evaluated, [decision], slot)
            if call is not None:
                given[slot] = give_receipts(
                    self.holder(slot).party, call.depositor, call.shard, self.ids, self.commit_at(slot, call)
                )
        return batch_outcome([decision], given).outcomes[0]

    def commit_at(self, slot: int, call: CommitCall | None = None) -> list[Refusable]:
        """Step 5 at one holder, with a good proof where no call is given."""
        holder, call = self.holder(slot), call or committing(self, slot)
        return holder.custody.commit(call.depositor, call.shard, accept_commit(holder.party, call, BEFORE))

    def abandon_at(self, slot: int) -> Receipt | None:
        signed = sign_abandon(self.depositor, self.made.shard, self.made.excluded, self.ids, BEFORE)
        _, call = accept_abandon(self.world.service, signed, BEFORE)
        holder = self.holder(slot)
        asked = accept_never(holder.party, call, BEFORE)
        kept = holder.custody.abandon(asked.depositor, asked.shard, asked.deposit_ids, BEFORE)
        return give_receipts(holder.party, asked.depositor, asked.shard, asked.deposit_ids, kept).receipts[0]

    @property
    def ids(self) -> list[bytes]:
        return [self.made.deposit.deposit_id]

    def visible(self) -> dict[int, set[int]]:
        """Return the stamp sums by holder and excluded slot: what checks see of any deposit."""
        reading = Reading(self.made.shard, 1, int(NOW), ())
        return {slot: set(self.holder(slot).custody.view(reading).stamp_sums.items()) for slot in self.slots}


def committing(relay: Relay, slot: int, tick: int = int(BEFORE)) -> CommitCall:
    """Return a commit call with a proof that holds."""
    call = commit_call(relay.evaluated, [Decision(tick, relay.slots, None, relay.proof())], slot)
    assert call is not None
    return call


@pytest.fixture
def world() -> World:
    return make_world(8, shards=1)


@pytest.fixture
def insider(world: World) -> int:
    return next(n for n in range(1, 9) if name(n) in world.manifest.committee(0).slots)


@pytest.fixture
def outsider(world: World) -> int:
    return next(n for n in range(1, 9) if name(n) not in world.manifest.committee(0).slots)


@pytest.fixture
def relay(world: World, insider: int) -> Relay:
    """A deposit of the whole limit for person 1, evaluated by the service and not yet passed on."""
    made = make_deposit(world.party(insider), entry(), world.random(16), world.random)
    return Relay.start(world, made, insider)


def others(world: World, *numbers: int) -> int:
    """Return a member that is none of these."""
    return next(n for n in range(1, len(world.members) + 1) if n not in numbers)


def bent(relay: Relay, change: Callable[[DepositEnvelope], DepositEnvelope], slots: Sequence[int]) -> Relay:
    """Return the deposit of a depositor that puts something else into the envelopes of some holders."""
    size = len(relay.world.manifest.committee(relay.made.shard).slots)
    return resealed(relay, lambda padded: steps._pad(encode(change(unpadded(padded))), size), slots)


def resealed(relay: Relay, change: Callable[[bytes], bytes], slots: Sequence[int]) -> Relay:
    """Return the deposit of a depositor that seals other bytes, padding and all, for some holders."""
    made, depositor = relay.made, relay.depositor
    envelopes = list(made.deposit.envelopes)
    for place, slot in enumerate(relay.slots):
        if slot in slots:
            holder = relay.holder(slot).party
            sealed = change(unsealed(relay, slot))
            envelopes[place] = depositor.channel(holder.id).seal(
                PURPOSE, made.deposit.deposit_id, sealed, seeded(("bent", place))(32)
            )
    changed = replace(made, deposit=replace(made.deposit, envelopes=tuple(envelopes)))
    batch = replace(relay.evaluated.batch, deposits=(changed.deposit,))
    return replace(relay, made=changed, evaluated=replace(relay.evaluated, batch=batch))


def opened(relay: Relay, slot: int) -> DepositEnvelope:
    return unpadded(unsealed(relay, slot))


def unpadded(padded: bytes) -> DepositEnvelope:
    return decode(DepositEnvelope, steps._unpad(padded))


def unsealed(relay: Relay, slot: int) -> bytes:
    holder, place = relay.holder(slot).party, relay.slots.index(slot)
    envelope = relay.made.deposit.envelopes[place]
    channel = holder.channel(relay.depositor.id)
    return channel.open(PURPOSE, relay.made.deposit.deposit_id, envelope)


def first_changed(values: tuple[int, ...]) -> tuple[int, ...]:
    return ((values[0] + 1) % 2**48, *values[1:])


def refusal(relay: Relay, slot: int, call: PrepareCall | None = None) -> str:
    """Return the code with which a holder refuses the deposit, or the whole call."""
    try:
        (result,) = relay.accepted(slot, call)
    except ProtocolError as refused:
        return refused.code
    assert isinstance(result, ProtocolError)
    return result.code


# --- made ----------------------------------------------------------------------------------------------------------


def test_all_receipts_of_a_deposit_verify_and_it_counts(world: World, relay: Relay, outsider: int) -> None:
    decision = relay.decide()
    states = relay.commit(decision)
    assert set(states) == set(relay.slots) == set(range(6)) - {relay.made.excluded}
    assert {kept.tick for kept in states.values()} == {int(BEFORE)}
    assert is_made(world.manifest, relay.made, states)
    assert is_complete(world.manifest, relay.made, states)
    assert world.check(outsider, person(1), 0) == (WITHIN, None)
    assert world.check(outsider, person(1), 1) == (EXCEEDS, None)


def test_a_deposit_that_is_prepared_but_not_committed_does_not_count(world: World, relay: Relay, outsider: int) -> None:
    for slot in relay.slots:
        relay.prepare(slot)
    assert relay.visible() == {slot: set() for slot in relay.slots}
    assert world.check(outsider, person(1), LIMIT) == (WITHIN, None)


@pytest.mark.parametrize("place", range(5))
def test_with_one_holder_missing_a_deposit_is_made_and_checks_by_the_others_are_right(place: int) -> None:
    world = make_world(8, shards=1)
    slots = world.manifest.committee(0).slots
    depositor = next(n for n in range(1, 9) if name(n) in slots)
    missing = [slot for slot, member in enumerate(slots) if member != name(depositor)][place]
    without = frozenset({slots[missing]})
    made, states = world.deposit(depositor, person(1), LIMIT, without=without)
    assert len(states) == 4
    assert is_made(world.manifest, made, states)
    assert not is_complete(world.manifest, made, states)
    for requester in range(1, 9):
        if name(requester) not in without:
            assert world.check(requester, person(1), 1, without=without) == (EXCEEDS, None)
            assert world.check(requester, person(1), 0, without=without) == (WITHIN, None)


def test_with_two_holders_missing_a_deposit_is_not_made_and_not_visible(
    world: World, relay: Relay, outsider: int
) -> None:
    decision = relay.decide(relay.slots[:3])
    assert decision == Decision(None, (), "too-few-custodians")
    states = relay.commit(decision)
    assert states == {}
    assert not is_made(world.manifest, relay.made, states)
    assert relay.visible() == {slot: set() for slot in relay.slots}
    assert world.check(outsider, person(1), LIMIT) == (WITHIN, None)


def test_a_deposit_that_too_few_prepared_is_made_by_a_later_repetition(world: World, relay: Relay) -> None:
    relay.decide(relay.slots[:3])
    assert is_complete(world.manifest, relay.made, relay.commit(relay.decide()))


def test_repeated_prepare_and_commit_are_counted_once(world: World, relay: Relay, outsider: int) -> None:
    for _ in range(3):
        decision = relay.decide()
        for _ in range(2):
            assert is_complete(world.manifest, relay.made, relay.commit(decision))
    assert world.check(outsider, person(1), 0) == (WITHIN, None)
    assert len({frozenset(sums) for sums in relay.visible().values()}) == 1


def test_a_repetition_at_a_later_tick_keeps_the_first_tick(relay: Relay) -> None:
    relay.commit(relay.decide())
    again = relay.decide(tick=int(BEFORE) + 30)
    assert again.tick == int(BEFORE)
    assert {kept.tick for kept in relay.commit(again).values()} == {int(BEFORE)}


def test_two_relays_that_race_with_different_ticks_leave_all_holders_alike_in_any_order(
    world: World, insider: int, outsider: int
) -> None:
    ends = set()
    for number, order in enumerate(permutations(range(3), 3)):
        made = make_deposit(world.party(insider), entry(2, 1), bytes([number]) * 16, world.random)
        relay = Relay.start(world, made, insider)
        early, late = relay.decide(tick=int(BEFORE) - 7), relay.decide(tick=int(BEFORE) - 3)
        commits = [(early, relay.slots[:3]), (late, relay.slots), (early, relay.slots[2:])]
        for at in order:
            relay.commit(*commits[at])
        assert len({frozenset(sums) for sums in relay.visible().values()}) == 1
        ends.add(frozenset(kept.tick for kept in relay.commit(early).values()))
    assert ends == {frozenset({int(BEFORE) - 7})}
    assert world.check(outsider, person(2), LIMIT - 6) == (WITHIN, None)
    assert world.check(outsider, person(2), LIMIT - 5) == (EXCEEDS, None)


def test_a_batch_has_a_result_for_each_deposit(world: World, insider: int, outsider: int) -> None:
    party = world.party(insider)
    batch = [make_deposit(party, entry(number, LIMIT), bytes([number]) * 16, world.random) for number in (1, 2, 3)]
    evaluated = accept_batch(world.service, sign_batch(party, batch, BEFORE), BEFORE, world.random)
    relay = Relay(world, batch[1], evaluated)
    assert {slot: [item.refusal for item in relay.prepare(slot).answers] for slot in relay.slots} == {
        slot: [None] * 3 for slot in relay.slots
    }
    # The second one was given up at one holder meanwhile, which refuses it and garbles nothing for the others either.
    relay.abandon_at(relay.slots[0])
    order = relay.order()
    answers = relay.answers(order=order)
    assert [slot for slot, answer in answers.items() if answer.garbled is None] == [relay.slots[0], relay.slots[4]]
    decisions = decide(world.manifest, evaluated, answers, relay.opened(order, answers), int(BEFORE))
    assert [decision.reason for decision in decisions] == [TOO_FEW, "deposit-abandoned", TOO_FEW]
    assert [decision is UNPROVEN for decision in decisions] == [True, False, True]
    # What is settled is left out of the next attempt.
    evaluated = only(world.service, evaluated, [0, 2], world.random)
    batch.pop(1)
    relay, order = replace(relay, evaluated=evaluated), relay.order()
    answers = relay.answers(order=order)
    decisions = decide(world.manifest, evaluated, answers, relay.opened(order, answers), int(BEFORE))
    assert [decision.reason for decision in decisions] == [None, None]
    given = {}
    for slot in relay.slots:
        call = commit_call(evaluated, decisions, slot)
        assert call is not None
        ids = [commit.deposit_id for commit in call.commits]
        assert ids == [item.deposit.deposit_id for item in batch]
        given[slot] = give_receipts(
            relay.holder(slot).party, call.depositor, call.shard, ids, relay.commit_at(slot, call)
        )
    outcomes = batch_outcome(decisions, given).outcomes
    made = [
        is_complete(world.manifest, item, read_receipts(party, item, outcome))
        for item, outcome in zip(batch, outcomes, strict=True)
    ]
    assert made == [True, True]
    assert [world.check(outsider, person(number), 1)[0] for number in (1, 2, 3)] == [EXCEEDS, WITHIN, EXCEEDS]


def test_a_batch_has_one_shard_and_one_excluded_slot(world: World, outsider: int) -> None:
    made = [make_deposit(world.party(outsider), entry(), bytes([n]) * 16, world.random) for n in range(6)]
    assert len({item.excluded for item in made}) > 1
    with pytest.raises(ProtocolError, match="mixed-batch"):
        sign_batch(world.party(outsider), made, BEFORE)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_amount_above_the_manifests_cap_is_refused_by_who_makes_it(world: World, insider: int, sign: int) -> None:
    party, most = world.party(insider), sign * world.manifest.terms.deposit_cap
    assert make_deposit(party, entry(1, most), bytes(16), world.random).shard == 0
    for bad in (most + sign, sign * 2**47, sign * 2**48):
        with pytest.raises(ProtocolError, match="bad-amount"):
            make_deposit(party, entry(1, bad), bytes(16), world.random)


# --- corrections ---------------------------------------------------------------------------------------------------


def correction(relay: Relay, depositor: int, item: Entry) -> Relay:
    world = relay.world
    made = make_deposit(world.party(depositor), item, world.random(16), world.random)
    return Relay.start(world, made, depositor)


def answers_of(relay: Relay) -> dict[int, str | None]:
    """Return the code with which each holder refuses a deposit at prepare; None where it confirms."""
    return {slot: relay.prepare(slot).answers[0].refusal for slot in relay.slots}


def test_a_correction_of_an_issue_is_made_and_counts(world: World, relay: Relay, insider: int, outsider: int) -> None:
    relay.commit(relay.decide())
    earlier = relay.made.deposit.deposit_id
    world.deposit(insider, person(1), -10, kind=AMENDMENT, earlier=earlier)
    assert world.check(outsider, person(1), 10) == (WITHIN, None)
    assert world.check(outsider, person(1), 11) == (EXCEEDS, None)
    world.deposit(insider, person(1), 10 - LIMIT, kind=CANCELLATION, earlier=earlier)
    assert world.check(outsider, person(1), LIMIT) == (WITHIN, None)


def test_a_correction_that_does_not_fit_the_issue_that_it_names_is_refused_by_every_holder_that_knows_it(
    relay: Relay, insider: int
) -> None:
    good = entry(kind=AMENDMENT, amount=-1, earlier=relay.made.deposit.deposit_id)
    unfit = [{"identity": person(2)}, {"product": "term_life"}, {"day": TODAY - 1}]
    for known in (relay.prepare, relay.commit_at):
        for slot in relay.slots:
            known(slot)
        before = relay.visible()
        for changes in unfit:
            bad = correction(relay, insider, replace(good, **changes))
            assert answers_of(bad) == dict.fromkeys(relay.slots, "wrong-earlier"), changes
            decision = bad.decide()
            assert decision == Decision(None, (), "refused")
            assert bad.commit(decision) == {}
            assert bad.commit(Decision(int(BEFORE), bad.slots, None, bad.proof())) == {}  # nothing was kept
        assert relay.visible() == before
        assert answers_of(correction(relay, insider, good)) == dict.fromkeys(relay.slots)


@pytest.mark.parametrize("kind", [AMENDMENT, CANCELLATION])
def test_holding_an_issue_back_from_a_holder_makes_no_difference_to_its_answer_for_a_correction(
    world: World, relay: Relay, insider: int, kind: int
) -> None:
    # A service that could tell would know which of later corrections belong to the issue that it held back.
    item = entry(kind=kind, amount=-1, earlier=relay.made.deposit.deposit_id)
    fix = correction(relay, insider, item)
    for slot in relay.slots:
        holder, given = relay.holder(slot), []
        for told in ("nothing", "prepare", "prepare and commit", "abandon", "prepare and abandon"):
            world.members[holder.party.id] = replace(holder, custody=MemoryCustody())
            if "prepare" in told:
                assert relay.prepare(slot).answers[0].refusal is None
            if "commit" in told:
                (kept,) = relay.commit_at(slot)
                assert isinstance(kept, Kept)
            if "abandon" in told:
                relay.abandon_at(slot)
            first = fix.prepare(slot)
            assert first.answers[0].refusal is None, told
            assert fix.prepare(slot) == first  # a repetition tells no more
            order = fix.order(sorted([slot, *(other for other in fix.slots if other != slot)][:CHOSEN]))
            judged = fix.prepare(slot, fix.call(slot, order))
            assert judged.answers == first.answers
            assert judged.garbled is not None  # in the same way, whatever it knows; it opens for holders alone
            (kept,) = fix.commit_at(slot)
            assert isinstance(kept, Kept)
            given.append((first, len(encode(judged)), kept))
        assert given == [given[0]] * 5
        world.members[holder.party.id] = holder


def test_a_correction_is_made_at_all_holders_though_one_was_not_told_of_its_issue(
    world: World, relay: Relay, insider: int, outsider: int
) -> None:
    lagging, *others_ = relay.slots
    relay.commit(relay.decide(others_), others_)
    assert len(others_) == CHOSEN
    item = entry(kind=AMENDMENT, amount=-10, earlier=relay.made.deposit.deposit_id)
    fix = correction(relay, insider, item)
    assert fix.decide() is UNPROVEN  # with the lagging one in A, which holds other deposits
    decision = fix.decide(chosen=others_)
    assert (decision.tick, decision.slots) == (int(BEFORE), relay.slots)
    assert is_complete(world.manifest, fix.made, fix.commit(decision))
    # Right without the lagging holder, and with all of them once that has the issue too.
    slots = world.manifest.committee(0).slots
    for without in (frozenset({slots[lagging]}), frozenset({slots[relay.made.excluded]})):
        assert world.check(outsider, person(1), 10, without=without) == (WITHIN, None)
        assert world.check(outsider, person(1), 11, without=without) == (EXCEEDS, None)
        relay.commit(relay.decide(), [lagging])


def test_a_correction_of_what_no_holder_knows_is_refused_no_sooner_than_at_its_commit(
    world: World, relay: Relay, insider: int
) -> None:
    relay.commit(relay.decide())
    other = others(world, insider)
    unknown = entry(kind=AMENDMENT, amount=-1, earlier=bytes(16))
    another_members = replace(unknown, earlier=relay.made.deposit.deposit_id)
    for depositor, item in ((insider, unknown), (other, another_members)):
        fix = correction(relay, depositor, item)
        assert set(answers_of(fix).values()) == {None}
        decision = fix.decide()
        assert decision.proof is not None
        assert fix.outcome(decision) == DepositOutcome(receipts=(), reason="refused")
        assert {
            refused_code(state) for slot in fix.slots for state in fix.commit_at(slot, told(fix, decision, slot))
        } == {"range-not-shown"}


@pytest.mark.parametrize(
    ("kind", "earlier"),
    [(ISSUE, bytes(16)), (AMENDMENT, None), (CANCELLATION, None)],
    ids=["an issue with", "an amendment without", "a cancellation without"],
)
def test_an_issue_that_names_an_earlier_one_and_a_correction_that_names_none_are_refused(
    relay: Relay, insider: int, kind: int, earlier: bytes | None
) -> None:
    bad = correction(relay, insider, entry(kind=kind, amount=1, earlier=earlier))
    assert answers_of(bad) == dict.fromkeys(relay.slots, "bad-kind")
    assert bad.decide() == Decision(None, (), "refused")
    assert relay.visible() == {slot: set() for slot in relay.slots}


def told(relay: Relay, decision: Decision, slot: int) -> CommitCall:
    call = commit_call(relay.evaluated, [decision], slot)
    assert call is not None
    return call


def refused_code(state: Refusable) -> str:
    assert isinstance(state, ProtocolError)
    return state.code


def test_a_correction_of_a_correction_is_refused(world: World, relay: Relay, insider: int) -> None:
    relay.commit(relay.decide())
    first, _ = world.deposit(insider, person(1), -1, kind=AMENDMENT, earlier=relay.made.deposit.deposit_id)
    second = correction(relay, insider, entry(kind=AMENDMENT, amount=-1, earlier=first.deposit.deposit_id))
    assert answers_of(second) == dict.fromkeys(relay.slots, "wrong-earlier")
    assert second.decide().reason == "refused"


def test_an_outsider_corrects_its_deposits_at_the_holders_of_the_issue(world: World, outsider: int) -> None:
    for whom in range(1, 9):
        issue, _ = world.deposit(outsider, person(whom), LIMIT)
        earlier = issue.deposit.deposit_id
        made, states = world.deposit(outsider, person(whom), -LIMIT, kind=CANCELLATION, earlier=earlier)
        assert made.excluded == issue.excluded
        assert is_complete(world.manifest, made, states)
        assert world.check(others(world, outsider), person(whom), LIMIT) == (WITHIN, None)


def test_a_correction_that_excludes_another_slot_than_its_issue_is_refused(world: World, outsider: int) -> None:
    # By every holder, not only by the slot that has no issue: that one may be down.
    issue, _ = world.deposit(outsider, person(1), LIMIT)
    party, item = world.party(outsider), entry(kind=AMENDMENT, amount=-1, earlier=issue.deposit.deposit_id)
    reasons = set()
    for number in range(40):
        made = make_deposit(party, item, bytes([number]) * 16, world.random)
        relay = Relay.start(world, made, outsider)
        up = [slot for slot in relay.slots if slot != issue.excluded]
        codes = {relay.prepare(slot).answers[0].refusal for slot in up}
        reasons.add((made.excluded == issue.excluded, *codes, relay.decide(up).reason))
    assert reasons == {(True, None, None), (False, "wrong-earlier", "refused")}


def test_ids_of_corrections_are_drawn_until_they_exclude_the_issues_slot(world: World, insider: int) -> None:
    for number in range(1, 9):
        earlier, party = bytes([number]) * 16, world.party(number)
        issue = make_deposit(party, entry(), earlier, world.random)
        drawn = draw_deposit_id(party, person(1), earlier, world.random)
        assert make_deposit(party, entry(), drawn, world.random).excluded == issue.excluded
        assert drawn != earlier
    fresh = {draw_deposit_id(world.party(insider), person(1), None, world.random) for _ in range(20)}
    assert len(fresh) == 20


# --- what holders refuse -------------------------------------------------------------------------------------------


def test_another_deposit_under_a_known_id_is_refused_and_changes_nothing(
    world: World, relay: Relay, insider: int, outsider: int
) -> None:
    relay.commit(relay.decide())
    for amount in (LIMIT, 0, 2 * LIMIT):
        made = make_deposit(world.party(insider), entry(1, amount), relay.made.deposit.deposit_id, world.random)
        assert Relay.start(world, made, insider).decide() == Decision(None, (), "deposit-reused")
    assert world.check(outsider, person(1), 0) == (WITHIN, None)


def test_one_id_may_be_used_by_two_depositors(world: World, relay: Relay, insider: int, outsider: int) -> None:
    relay.commit(relay.decide())
    other = others(world, insider, outsider)
    made = make_deposit(world.party(other), entry(1, 1), relay.made.deposit.deposit_id, world.random)
    second = Relay.start(world, made, other)
    assert is_complete(world.manifest, made, second.commit(second.decide()))
    assert world.check(outsider, person(1), 0) == (EXCEEDS, None)


def test_an_abandoned_deposit_is_refused_ever_after_and_gets_no_receipt_but_never(
    world: World, relay: Relay, outsider: int
) -> None:
    decision = relay.decide()
    receipts = [relay.abandon_at(slot) for slot in relay.slots]
    assert {receipt.state for receipt in receipts if receipt is not None} == {NEVER}
    assert relay.commit(decision) == {}
    assert relay.decide() == Decision(None, (), "deposit-abandoned")
    assert relay.visible() == {slot: set() for slot in relay.slots}
    outcome = DepositOutcome(receipts=tuple(receipt for receipt in receipts if receipt), reason=None)
    states = read_receipts(relay.depositor, relay.made, outcome)
    assert {kept.never for kept in states.values()} == {True}
    assert len(states) == len(relay.slots)
    assert not is_made(world.manifest, relay.made, states)
    assert world.check(outsider, person(1), LIMIT) == (WITHIN, None)


def test_an_id_that_was_abandoned_before_it_came_is_refused_when_it_comes(relay: Relay) -> None:
    for slot in relay.slots:
        receipt = relay.abandon_at(slot)
        assert receipt is not None
        assert receipt.state == NEVER
    assert relay.decide() == Decision(None, (), "deposit-abandoned")


def test_a_committed_deposit_is_not_given_up(relay: Relay) -> None:
    states = relay.commit(relay.decide())
    before = relay.visible()
    for slot in relay.slots:
        receipt = relay.abandon_at(slot)
        assert receipt is not None
        assert (receipt.state, receipt.tick) == (COMMITTED, states[slot].tick)
    assert relay.visible() == before


def test_a_commit_of_what_was_not_prepared_is_refused_and_gets_no_receipt(relay: Relay) -> None:
    assert relay.commit(Decision(int(BEFORE), relay.slots, None, relay.proof())) == {}
    relay.prepare(relay.slots[0])
    call = committing(relay, relay.slots[0])
    for other in (replace(call, depositor=name(7)), replace(call, shard=1)):
        (state,) = relay.holder(relay.slots[0]).custody.commit(other.depositor, other.shard, other.commits)
        assert refused_code(state) == "not-prepared"


@pytest.mark.parametrize("field", ["amounts", "counts", "salts"])
def test_holders_that_were_sent_unequal_shares_or_salts_refuse_together(
    relay: Relay, outsider: int, field: str
) -> None:
    for slot in relay.slots:
        change: Callable[[DepositEnvelope], DepositEnvelope]
        if field == "salts":

            def change(body: DepositEnvelope) -> DepositEnvelope:
                return replace(body, salts=(bytes(32), *body.salts[1:]))
        else:

            def change(body: DepositEnvelope) -> DepositEnvelope:
                return replace(body, **{field: first_changed(getattr(body, field))})

        unequal = bent(relay, change, [slot])
        assert refusal_of(unequal) == "refused"
        assert unequal.visible() == {slot: set() for slot in relay.slots}
        for holder in relay.slots:
            relay.abandon_at(holder)  # so that the next one is not refused for its id
        relay = Relay.start(relay.world, renamed(relay), number_of(relay.depositor))
    assert relay.world.check(outsider, person(1), LIMIT) == (WITHIN, None)


def refusal_of(relay: Relay) -> str | None:
    decision = relay.decide()
    assert relay.commit(decision) == {}
    return decision.reason


def renamed(relay: Relay) -> MadeDeposit:
    return make_deposit(relay.depositor, entry(), relay.world.random(16), relay.world.random)


def number_of(party: Party) -> int:
    return int(party.id.removeprefix("insurer-"))


def test_a_depositor_that_names_two_persons_is_refused(relay: Relay) -> None:
    other = make_deposit(relay.depositor, entry(2), relay.made.deposit.deposit_id, relay.world.random)
    second = replace(relay, made=other)
    # Another D for the same B is another pseudonym; its proof is of this very deposit, but of the other B.
    stolen = opened(second, relay.slots[0])
    unequal = bent(relay, lambda body: replace(body, unblinder=stolen.unblinder, proof=stolen.proof), relay.slots[:1])
    assert refusal(unequal, relay.slots[0]) == "bad-unblinder"
    assert refusal_of(unequal) == "refused"


def test_holders_that_come_to_different_pseudonyms_refuse_together(relay: Relay) -> None:
    # A depositor can prove two blinds for one B: each holder's proofs hold, and only their comparison shows it.
    key, blinded = relay.world.manifest.blinding_key, Element(relay.made.deposit.blinded)
    t, nonce = (random_scalar(relay.world.random) for _ in range(2))
    unblinder, commitment = group.multiply(t, key), group.multiply(nonce, key)
    context = deposit_context(relay.depositor.id, relay.made.deposit.deposit_id)
    challenge = prover._challenge(context, blinded, key, unblinder, commitment)
    response = group.scalar_add(nonce, group.scalar_multiply(challenge, t))
    proof = SchnorrProof(challenge=challenge, response=response)
    slot = relay.slots[0]
    unequal = bent(relay, lambda body: replace(body, unblinder=unblinder, proof=proof), [slot])
    (accepted,) = unequal.accepted(slot)
    assert isinstance(accepted, AcceptedDeposit)
    assert refusal_of(unequal) == "refused"
    assert unequal.visible() == {slot: set() for slot in relay.slots}


def retold(relay: Relay, body: DepositEnvelope, facts: DepositFacts) -> DepositEnvelope:
    """Return the body of the third holder with other facts, and the count that goes with their kind."""
    counts = plain_share(COUNT_OF_KIND[facts.kind], 6, facts.excluded)
    return replace(
        body, facts=facts, counts=tuple(counts[pair] for pair in held_labels(6, facts.excluded, relay.slots[2]))
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda facts: replace(facts, kind=AMENDMENT), "bad-kind"),
        (lambda facts: replace(facts, earlier=bytes(16)), "bad-kind"),
        (lambda facts: replace(facts, kind=AMENDMENT, earlier=bytes(16)), None),
        (lambda facts: replace(facts, product="term_life"), None),
        (lambda facts: replace(facts, day=facts.day - 1), None),
    ],
    ids=["kind", "earlier", "kind and earlier", "product", "day"],
)
def test_holders_that_were_told_different_facts_refuse_together(relay: Relay, change: Change, code: str | None) -> None:
    unequal = bent(relay, lambda body: retold(relay, body, change(body.facts)), relay.slots[2:3])
    # The one that was told something else has nothing to refuse by itself, but for the first two.
    assert answers_of(unequal) == {slot: code if slot == relay.slots[2] else None for slot in relay.slots}
    assert refusal_of(unequal) == "refused"
    assert unequal.visible() == {slot: set() for slot in relay.slots}


@pytest.mark.parametrize("changes", [{"kind": CANCELLATION}, {"earlier": bytes(15) + b"!"}, {"day": TODAY - 1}])
def test_holders_that_were_told_different_facts_of_a_correction_refuse_together(
    relay: Relay, insider: int, changes: dict[str, object]
) -> None:
    fix = correction(relay, insider, entry(kind=AMENDMENT, amount=-1, earlier=bytes(16)))
    unequal = bent(fix, lambda body: retold(fix, body, replace(body.facts, **changes)), relay.slots[2:3])
    assert set(answers_of(unequal).values()) == {None}
    assert refusal_of(unequal) == "refused"
    assert unequal.visible() == {slot: set() for slot in relay.slots}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda body: replace(body, facts=replace(body.facts, depositor="insurer-08")), "unequal-fields"),
        (lambda body: replace(body, facts=replace(body.facts, deposit_id=bytes(16))), "unequal-fields"),
        (lambda body: replace(body, facts=replace(body.facts, shard=1)), "unequal-fields"),
        (lambda body: replace(body, facts=replace(body.facts, manifest_hash=bytes(32))), "unequal-fields"),
        (lambda body: replace(body, facts=replace(body.facts, epoch=2)), "unequal-fields"),
        (
            lambda body: replace(body, facts=replace(body.facts, excluded=(body.facts.excluded + 1) % 6)),
            "unequal-fields",
        ),
        (lambda body: replace(body, blinded=POINTS[0]), "unequal-fields"),
        (lambda body: replace(body, facts=replace(body.facts, kind=CANCELLATION)), "bad-kind"),
        (lambda body: replace(body, facts=replace(body.facts, earlier=bytes(16))), "bad-kind"),
        (lambda body: replace(body, facts=replace(body.facts, product="fire")), "unknown-product"),
        (lambda body: replace(body, amounts=body.amounts[:-1]), "bad-sharing"),
        (lambda body: replace(body, counts=(*body.counts, 1)), "bad-sharing"),
        (lambda body: replace(body, facts=replace(body.facts, day=TODAY - DEPOSIT_DAYS - 1)), "bad-day"),
        (lambda body: replace(body, facts=replace(body.facts, day=TODAY + AHEAD_DAYS + 1)), "bad-day"),
        (lambda body: replace(body, salts=()), "bad-sharing"),
        (lambda body: replace(body, unblinder=POINTS[0]), "bad-unblinder"),
        (lambda body: replace(body, proof=replace(body.proof, challenge=body.proof.response)), "bad-unblinder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_holder_refuses_an_envelope_that_does_not_fit_its_call(relay: Relay, change: Change, code: str) -> None:
    slot = relay.slots[1]
    assert refusal(bent(relay, change, [slot]), slot) == code


@pytest.mark.parametrize(
    "change",
    [
        steps._unpad,
        lambda _: b"",
        lambda padded: bytes(len(padded)),
        lambda padded: padded + b"!",
        lambda padded: padded[:-1] + b"\x01",
        lambda padded: padded[:-1] + b"\x80",
        lambda padded: steps._unpad(padded).ljust(len(padded), b"\x00"),
        lambda padded: steps._unpad(padded) + b"\x7f" + bytes(40),
        lambda padded: steps._unpad(padded)[:-1] + b"\x80" + bytes(40),
        lambda padded: steps._unpad(padded) + b"\x80\x80" + bytes(40),
        lambda padded: b"\x80" + bytes(len(padded) - 1),
    ],
    ids=[
        *("none", "empty", "zeros", "a byte more", "a byte that is not zero", "a mark at the end", "no mark"),
        *("another mark", "a body cut short", "two marks", "no body"),
    ],
)
def test_a_holder_refuses_malformed_padding(relay: Relay, change: Callable[[bytes], bytes]) -> None:
    slot = relay.slots[1]
    (unchanged,) = resealed(relay, lambda padded: padded, [slot]).accepted(slot)
    assert isinstance(unchanged, AcceptedDeposit)
    assert refusal(resealed(relay, change, [slot]), slot) == "malformed"


@deterministic(100)
@given(
    st.binary(max_size=200) | st.binary(max_size=20).map(lambda data: data + b"\x80" + bytes(30)), st.integers(5, 16)
)
def test_padding_is_taken_off_as_it_was_put_on_and_has_one_length(body: bytes, slots: int) -> None:
    padded = steps._pad(body, slots)
    assert len(padded) == 512 + 128 * slots
    assert steps._unpad(padded) == body


def test_a_holder_refuses_an_envelope_of_another_holder_deposit_or_depositor(
    world: World, relay: Relay, insider: int, outsider: int
) -> None:
    one, two = relay.slots[:2]
    call, other_call = relay.call(one), relay.call(two)
    swapped = replace(call, deposits=(replace(call.deposits[0], envelope=other_call.deposits[0].envelope),))
    assert refusal(relay, one, swapped) == "bad-envelope"
    again = Relay.start(world, renamed(relay), insider)
    later = again.call(one)
    moved = replace(call, deposits=(replace(call.deposits[0], envelope=later.deposits[0].envelope),))
    assert refusal(relay, one, moved) == "bad-envelope"
    # Of a depositor outside the committee, its envelope is as little his as its committee key is theirs.
    stranger = replace(call, depositor=name(outsider))
    assert refusal(relay, one, stranger) == "other-key"
    key = relay.holder(one).committee_keys[0, None]
    (result,) = accept_prepare(relay.holder(one).party, stranger, key, BEFORE).deposits
    assert isinstance(result, ProtocolError)
    assert result.code == "bad-envelope"


@pytest.mark.parametrize("attack", ["another C", "another key", "the proof of another deposit", "a C for one alone"])
def test_a_holder_refuses_a_c_that_the_service_bent(world: World, relay: Relay, insider: int, attack: str) -> None:
    slot = relay.slots[0]
    call = relay.call(slot)
    (item,) = call.deposits
    blinded = Element(item.blinded)
    other = Relay.start(world, renamed(relay), insider)
    secret, public = voprf.derive_key_pair(bytes(32), b"another service")
    evaluated = voprf.blind_evaluate(secret, blinded)
    proof = voprf.prove(secret, public, [blinded], [evaluated], random_scalar(world.random))
    bends = {
        "another C": replace(call, deposits=(replace(item, evaluated=other.evaluated.evaluated[0]),)),
        "another key": replace(call, deposits=(replace(item, evaluated=evaluated),), proof=proof),
        "the proof of another deposit": replace(call, proof=other.evaluated.proof),
        "a C for one alone": replace(call, deposits=(item, replace(item, evaluated=evaluated))),
    }
    assert refusal(relay, slot, bends[attack]) == "bad-evaluation"


def test_a_c_that_was_bent_for_one_holder_reaches_no_store_and_the_others_make_the_deposit(
    world: World, relay: Relay, outsider: int
) -> None:
    first, *rest = relay.slots
    (item,) = relay.call(first).deposits
    call = replace(relay.call(first), deposits=(replace(item, evaluated=POINTS[3]),))
    with pytest.raises(ProtocolError, match="bad-evaluation"):
        relay.prepare(first, call)
    states = relay.commit(relay.decide(rest))
    assert set(states) == set(rest)
    assert relay.visible()[first] == set()
    without = frozenset({world.manifest.committee(0).slots[first]})
    assert world.check(outsider, person(1), 0, without=without) == (WITHIN, None)
    assert world.check(outsider, person(1), 1, without=without) == (EXCEEDS, None)


def test_the_excluded_slot_and_members_outside_the_committee_keep_nothing(
    world: World, relay: Relay, outsider: int
) -> None:
    call = relay.call(relay.slots[0])
    with pytest.raises(ProtocolError, match="bad-excluded"):
        accept_prepare(relay.holder(relay.made.excluded).party, call, relay.key(relay.slots[0]), BEFORE)
    with pytest.raises(ProtocolError, match="not-custodian"):
        accept_prepare(world.party(outsider), call, relay.key(relay.slots[0]), BEFORE)


def test_a_wrong_excluded_slot_is_refused_by_service_and_holders(world: World, relay: Relay, insider: int) -> None:
    wrong = relay.slots[0]
    party, batch = world.party(insider), relay.evaluated.batch
    forged = replace(batch, excluded=wrong)
    signed = SignedBatch(batch=encode(forged), signature=signing.sign(party.keys.signing, PURPOSE, encode(forged)))
    with pytest.raises(ProtocolError, match="bad-excluded"):
        accept_batch(world.service, signed, BEFORE, world.random)
    # With a service that passes it on, the holders refuse it themselves.
    slot = relay.slots[1]
    consistent = bent(relay, lambda body: replace(body, facts=replace(body.facts, excluded=wrong)), [slot])
    call = replace(consistent.call(slot), excluded=wrong)
    assert refusal(consistent, slot, call) == "bad-excluded"


def test_an_excluded_slot_for_an_outsider_is_the_one_that_its_deposit_id_gives(world: World, outsider: int) -> None:
    made = [make_deposit(world.party(outsider), entry(), bytes([n]) * 16, world.random) for n in range(40)]
    assert {item.excluded for item in made} == set(range(6))
    again = [make_deposit(world.party(outsider), entry(), bytes([n]) * 16, world.random) for n in range(40)]
    assert [item.excluded for item in again] == [item.excluded for item in made]


def test_a_holder_refuses_another_or_an_expired_manifest(world: World, relay: Relay) -> None:
    slot = relay.slots[0]
    call = relay.call(slot)
    assert refusal(relay, slot, replace(call, manifest_hash=bytes(32))) == "other-manifest"
    with pytest.raises(ProtocolError, match="manifest-expired"):
        accept_prepare(relay.holder(slot).party, call, relay.key(slot), world.manifest.terms.valid_until)


def test_a_holder_refuses_a_commit_at_a_tick_in_the_future(relay: Relay) -> None:
    relay.decide()
    holder = relay.holder(relay.slots[0])
    for tick, ok in ((int(BEFORE), True), (int(BEFORE) + 1, False), (2**64 - 1, False)):
        call = committing(relay, relay.slots[0], tick)
        if ok:
            asked = Commit(deposit_id=relay.ids[0], tick=tick, range_proof=relay.proof())
            assert accept_commit(holder.party, call, BEFORE) == [asked]
        else:
            with pytest.raises(ProtocolError, match="future-tick"):
                accept_commit(holder.party, call, BEFORE)


# --- what the service refuses --------------------------------------------------------------------------------------


def resigned(relay: Relay, **changes: object) -> SignedBatch:
    batch = encode(replace(relay.evaluated.batch, **changes))
    return SignedBatch(batch=batch, signature=signing.sign(relay.depositor.keys.signing, PURPOSE, batch))


def test_the_service_refuses_a_batch_that_its_depositor_did_not_sign(world: World, relay: Relay, insider: int) -> None:
    signed = sign_batch(world.party(insider), [relay.made], BEFORE)
    other = world.party(others(world, insider))
    bad = [
        replace(signed, signature=bytes(64)),
        replace(signed, signature=signing.sign(other.keys.signing, PURPOSE, signed.batch)),
        replace(signed, signature=signing.sign(world.party(insider).keys.signing, ABANDON, signed.batch)),
        resigned(relay, depositor=other.id),
    ]
    for item in bad:
        with pytest.raises(ProtocolError, match="bad-signature"):
            accept_batch(world.service, item, BEFORE, world.random)


def test_the_service_refuses_a_batch_that_is_stale_or_of_another_manifest_or_shape(world: World, relay: Relay) -> None:
    deposit = relay.made.deposit
    cases: list[tuple[dict[str, object], str]] = [
        ({"issued_at": int(BEFORE) - 61}, "stale"),
        ({"issued_at": int(BEFORE) + 61}, "stale"),
        ({"manifest_hash": bytes(32)}, "other-manifest"),
        ({"shard": 1}, "unknown-shard"),
        ({"excluded": (relay.made.excluded + 1) % 6}, "bad-excluded"),
        ({"deposits": (deposit, deposit)}, "bad-batch"),
        ({"deposits": (replace(deposit, envelopes=deposit.envelopes[1:]),)}, "bad-batch"),
        ({"deposits": (replace(deposit, envelopes=(*deposit.envelopes, b"")),)}, "bad-batch"),
    ]
    for changes, code in cases:
        with pytest.raises(ProtocolError, match=code):
            accept_batch(world.service, resigned(relay, **changes), BEFORE, world.random)


def test_the_service_refuses_bytes_that_are_no_batch(world: World, relay: Relay) -> None:
    good = sign_batch(relay.depositor, [relay.made], BEFORE)
    for data in (b"", good.batch[:-1], good.batch + b"!", encode(relay.made.deposit)):
        signature = signing.sign(relay.depositor.keys.signing, PURPOSE, data)
        with pytest.raises(ProtocolError, match="malformed"):
            accept_batch(world.service, SignedBatch(batch=data, signature=signature), BEFORE, world.random)


def test_the_service_commits_nothing_that_any_holder_refused_or_confirmed_otherwise(relay: Relay) -> None:
    answers = relay.answers()
    slot = relay.slots[2]
    (good,) = answers[slot].answers
    lies = [
        replace(good, refusal="bad-unblinder"),
        replace(good, confirmation=bytes(32)),
        replace(good, digests=good.digests[:-1]),
        replace(good, digests=()),
        replace(good, digests=good.digests[::-1]),
        *(
            replace(good, digests=(*good.digests[:place], bytes(32), *good.digests[place + 1 :]))
            for place in range(len(good.digests))
        ),
    ]
    for lie in lies:
        told = {**answers, slot: PrepareAnswer(answers=(lie,), garbled=None)}
        assert relay.decided(told) == Decision(None, (), "refused")
    assert relay.decided(answers) == Decision(5, relay.slots, None, relay.proof())
    assert relay.decided(answers, [None]) is UNPROVEN


def test_an_abandon_request_is_authenticated_and_fresh(world: World, relay: Relay, insider: int) -> None:
    signed = sign_abandon(world.party(insider), 0, relay.made.excluded, relay.ids, BEFORE)
    slots, call = accept_abandon(world.service, signed, BEFORE)
    assert slots == relay.slots
    assert call == NeverCall(signed=signed)
    assert call.signed.abandon.deposit_ids == tuple(relay.ids)
    forged = replace(signed, abandon=replace(signed.abandon, depositor=name(others(world, insider))))
    with pytest.raises(ProtocolError, match="bad-signature"):
        accept_abandon(world.service, forged, BEFORE)
    for wait in (61, -62):
        with pytest.raises(ProtocolError, match="stale"):
            accept_abandon(world.service, signed, BEFORE + wait)


def test_a_holder_gives_up_nothing_but_what_its_depositor_asked_just_now(
    world: World, relay: Relay, insider: int
) -> None:
    depositor, other, excluded = world.party(insider), world.party(others(world, insider)), relay.made.excluded
    signed = sign_abandon(depositor, 0, excluded, relay.ids, BEFORE)
    holder = relay.holder(relay.slots[0]).party
    for wait in (0, 60, -60):
        assert accept_never(holder, NeverCall(signed=signed), BEFORE + wait) == signed.abandon

    def code(party: Party, call: SignedAbandon, now: float = BEFORE) -> str:
        with pytest.raises(ProtocolError) as refused:
            accept_never(party, NeverCall(signed=call), now)
        return refused.value.code

    def by(party: Party, abandon: Abandon, purpose: str = ABANDON) -> SignedAbandon:
        signature = signing.sign(party.keys.signing, purpose, encode(abandon))
        return SignedAbandon(abandon=abandon, signature=signature)

    for wait in (61, -62, 3600):
        assert code(holder, signed, BEFORE + wait) == "stale"
    more = replace(signed.abandon, deposit_ids=(*signed.abandon.deposit_ids, bytes(16)))
    for forged in (
        replace(signed, abandon=more),
        replace(signed, abandon=replace(signed.abandon, issued_at=int(BEFORE) + 1)),
        replace(signed, abandon=replace(signed.abandon, excluded=(excluded + 1) % 6)),
        replace(signed, abandon=replace(signed.abandon, depositor=other.id)),
        replace(signed, signature=bytes(64)),
        by(other, signed.abandon),
        by(depositor, signed.abandon, PURPOSE),
    ):
        assert code(holder, forged) == "bad-signature"
    assert code(holder, by(depositor, replace(signed.abandon, depositor="insurer-99"))) == "unknown-member"
    assert code(holder, by(depositor, replace(signed.abandon, shard=1))) == "unknown-shard"
    assert code(relay.holder(excluded).party, signed) == "bad-excluded"
    outside = next(party for n in range(1, 9) if (party := world.party(n)).id not in world.manifest.committee(0).slots)
    assert code(outside, signed) == "not-custodian"


@pytest.mark.parametrize("answers", [0, 2, 3])
def test_a_holder_with_a_wrong_number_of_answers_is_as_one_that_did_not_answer(relay: Relay, answers: int) -> None:
    told, proof = relay.answers(), relay.proof()
    for number, slot in enumerate(relay.slots, start=1):
        told[slot] = PrepareAnswer(answers=told[slot].answers * answers, garbled=None)
        decision = relay.decided(told)
        expected = Decision(5, relay.slots[1:], None, proof) if number == 1 else Decision(None, (), TOO_FEW)
        assert decision == expected
        without = {key: answer for key, answer in told.items() if len(answer.answers) == 1}
        assert relay.decided(without) == decision


def test_the_tick_is_the_earliest_claimed_and_never_later_than_the_services_own(relay: Relay) -> None:
    answers = relay.answers()
    for claimed, tick in (
        ((), 100),
        ((100,), 100),
        ((101,), 100),
        ((2**64 - 1, 101), 100),
        ((99,), 99),
        ((2**64 - 1, 99, 98), 98),
        ((0, 2**64 - 1), 0),
    ):
        told = dict(answers)
        for slot, claim in zip(relay.slots, claimed, strict=False):
            told[slot] = PrepareAnswer(answers=(replace(answers[slot].answers[0], tick=claim),), garbled=None)
        assert relay.decided(told, tick=100) == Decision(tick, relay.slots, None, relay.proof())


def test_whoever_limits_members_is_told_of_an_authentic_batch_before_it_is_evaluated(
    world: World, relay: Relay, insider: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []
    evaluate = voprf.blind_evaluate

    def refuse(member: str, persons: int) -> None:
        told.append((member, persons))
        raise ProtocolError("too-many", "a limit")

    monkeypatch.setattr(voprf, "blind_evaluate", lambda *_: pytest.fail("evaluated before it was admitted"))
    party = world.party(insider)
    batch = [make_deposit(party, entry(number), bytes([number]) * 16, world.random) for number in (1, 2, 3)]
    signed = sign_batch(party, batch, BEFORE)
    with pytest.raises(ProtocolError, match="too-many"):
        accept_batch(world.service, signed, BEFORE, world.random, refuse)
    assert told == [(party.id, 3)]
    for bad, now in (
        (replace(signed, signature=bytes(64)), BEFORE),
        (signed, BEFORE + 61),
        (resigned(relay, manifest_hash=bytes(32)), BEFORE),
    ):
        with pytest.raises(ProtocolError, match=r"bad-signature|stale|other-manifest"):
            accept_batch(world.service, bad, now, world.random, refuse)
    assert len(told) == 1  # nobody is charged for what he did not sign
    monkeypatch.setattr(voprf, "blind_evaluate", evaluate)
    accept_batch(world.service, signed, BEFORE, world.random, lambda *call: told.append(call))
    assert told == [(party.id, 3)] * 2


# --- receipts ------------------------------------------------------------------------------------------------------


def test_forged_and_misplaced_receipts_count_as_none(world: World, relay: Relay, insider: int) -> None:
    decision = relay.decide()
    given = {}
    for slot in relay.slots:
        call = commit_call(relay.evaluated, [decision], slot)
        assert call is not None
        given[slot] = give_receipts(
            relay.holder(slot).party, call.depositor, call.shard, relay.ids, relay.commit_at(slot, call)
        )
    (outcome,) = batch_outcome([decision], given).outcomes
    one, two = outcome.receipts[:2]

    def read(*receipts: Receipt) -> dict[int, Kept]:
        return read_receipts(relay.depositor, relay.made, DepositOutcome(receipts=receipts, reason=None))

    assert set(read(one)) == {one.slot}
    for forged in (
        replace(one, mac=bytes(32)),
        replace(one, mac=two.mac),
        replace(one, slot=two.slot),
        replace(one, slot=relay.made.excluded),
        replace(one, slot=15),
        replace(one, tick=one.tick + 1),
        replace(one, state=NEVER),
        replace(one, state=NEVER, tick=0),
    ):
        assert read(forged) == {}
    second = Relay.start(world, renamed(relay), insider)
    states = second.commit(second.decide())
    assert len(states) == 5
    assert read_receipts(relay.depositor, second.made, outcome) == {}  # receipts of the first are none of the second
    envelope = relay.made.deposit.envelopes
    resealed = replace(relay.made, deposit=replace(relay.made.deposit, envelopes=(envelope[0] + b"!", *envelope[1:])))
    assert set(read_receipts(relay.depositor, resealed, outcome)) == set(relay.slots[1:])


def test_the_same_receipt_many_times_is_one_receipt(world: World, relay: Relay) -> None:
    holder = relay.slots[0]
    states = relay.commit(relay.decide(), [holder])
    assert set(states) == {holder}
    receipt = relay.abandon_at(holder)  # the holder repeats what it holds: committed
    assert receipt is not None
    again = read_receipts(relay.depositor, relay.made, DepositOutcome(receipts=(receipt,) * 5, reason=None))
    assert again == states
    assert not is_made(world.manifest, relay.made, again)


def test_a_deposit_is_made_by_four_receipts_and_complete_by_five_at_one_tick(world: World, relay: Relay) -> None:
    states = relay.commit(relay.decide())
    for missing in relay.slots:
        four = {slot: kept for slot, kept in states.items() if slot != missing}
        assert is_made(world.manifest, relay.made, four)
        assert not is_complete(world.manifest, relay.made, four)
        three = dict(list(four.items())[1:])
        assert not is_made(world.manifest, relay.made, three)
        odd = {**states, missing: replace(states[missing], tick=3)}
        assert is_made(world.manifest, relay.made, odd)
        assert not is_complete(world.manifest, relay.made, odd)
        never = {**states, missing: Kept(None, never=True, envelope_hash=b"")}
        assert not is_complete(world.manifest, relay.made, never)


# --- nothing that depends on P, C or a share comes back ------------------------------------------------------------


def test_what_comes_back_to_the_depositor_is_the_same_whoever_is_insured_and_however_it_is_shared() -> None:
    # Two alliances with other salts, blinding keys and shares; the same deposits and the same faults in both.
    seen = []
    for seed in ("one", "two"):
        world = make_world(8, shards=1, seed=seed)
        depositor = next(n for n in range(1, 9) if name(n) in world.manifest.committee(0).slots)
        party, story = world.party(depositor), []
        for whom, amount in ((1, LIMIT), (1, LIMIT), (2, 0)):
            made = make_deposit(party, entry(whom, amount), world.random(16), world.random)
            relay = Relay.start(world, made, depositor)
            decision = relay.decide()
            story.append((decision.reason, len(relay.commit(decision))))
            again = relay.decide(relay.slots[1:])
            story.append((again.reason, len(relay.commit(again))))
            other = make_deposit(party, entry(3), made.deposit.deposit_id, world.random)
            story.append((Relay.start(world, other, depositor).decide().reason, 0))
        for earlier, whom in ((made.deposit.deposit_id, 1), (made.deposit.deposit_id, 2), (bytes(16), 3)):
            fix = correction(relay, depositor, entry(whom, -1, kind=AMENDMENT, earlier=earlier))
            told = fix.outcome(fix.decide())
            story.append((told.reason, len(told.receipts)))
        unequal = bent(Relay.start(world, renamed(relay), depositor), unequal_amounts, [relay.slots[0]])
        story.append((unequal.decide().reason, 0))
        seen.append(story)
    assert seen[0] == seen[1]
    assert {reason for reason, _ in seen[0]} == {None, "deposit-reused", "refused"}


def unequal_amounts(body: DepositEnvelope) -> DepositEnvelope:
    return replace(body, amounts=first_changed(body.amounts))


def test_every_refusal_that_depends_on_more_than_the_depositors_own_bytes_reaches_it_as_refused(relay: Relay) -> None:
    answers = relay.answers()
    (good,) = answers[relay.slots[0]].answers

    def reason(*codes: str) -> str | None:
        told = dict(answers)
        for slot, code in zip(relay.slots, codes, strict=False):
            told[slot] = PrepareAnswer(answers=(replace(good, refusal=code),), garbled=None)
        return relay.decided(told).reason

    for code in (
        "wrong-earlier",
        "bad-kind",
        "bad-unblinder",
        "identity-element",
        "bad-sharing",
        "malformed",
        "anything",
    ):
        assert reason(code) == "refused"
    for code in ("deposit-reused", "deposit-abandoned", "other-manifest", "manifest-expired"):
        assert reason(code) == code
    assert reason("deposit-reused", "wrong-earlier") == "refused"


def test_a_receipt_follows_from_ids_slot_tick_and_the_envelopes_hash_alone(relay: Relay) -> None:
    decision, slot = relay.decide(), relay.slots[0]
    call, holder = commit_call(relay.evaluated, [decision], slot), relay.holder(slot).party
    assert call is not None
    (given,) = give_receipts(holder, call.depositor, 0, relay.ids, relay.commit_at(slot, call)).receipts
    statement = ReceiptStatement(
        state=COMMITTED,
        depositor=relay.depositor.id,
        shard=0,
        slot=slot,
        deposit_id=relay.ids[0],
        tick=int(BEFORE),
        envelope_hash=envelope_hash(relay.made.deposit.envelopes[0]),
    )
    mac = holder.channel(relay.depositor.id).mac(PURPOSE, encode(statement))
    assert given == Receipt(slot=slot, state=COMMITTED, tick=int(BEFORE), mac=mac)


# --- a commit that was held back from one custodian ----------------------------------------------------------------


@pytest.mark.parametrize("place", range(5))
def test_a_commit_held_back_from_one_custodian_voids_checks_of_every_person_until_it_has_caught_up(
    world: World, relay: Relay, insider: int, outsider: int, place: int
) -> None:
    lagging = relay.slots[place]
    decision = relay.decide()
    relay.commit(decision, [slot for slot in relay.slots if slot != lagging])
    slots = world.manifest.committee(0).slots
    # A is forced to have the lagging one and three others in it, or four others.
    for dropped in relay.slots:
        without = frozenset({slots[dropped], slots[relay.made.excluded]}) - {name(outsider)}
        expected = {1: (EXCEEDS, None), 2: (WITHIN, None), 3: (WITHIN, None)}
        for whom, right in expected.items():
            void = (INDETERMINATE, Void.DISAGREEMENT)
            assert world.check(outsider, person(whom), 1, without=without) == (right if dropped == lagging else void)
    # Caught up with the original tick, everything is right again, for every person and every A.
    states = relay.commit(relay.decide(tick=int(BEFORE)), [lagging])
    assert {kept.tick for kept in states.values()} == {int(BEFORE)}
    for dropped in relay.slots:
        without = frozenset({slots[dropped], slots[relay.made.excluded]})
        assert world.check(outsider, person(1), 1, without=without) == (EXCEEDS, None)
        assert world.check(outsider, person(2), 1, without=without) == (WITHIN, None)
    assert world.check(insider, person(1), 0) == (WITHIN, None)


def test_a_holder_that_caught_up_with_another_tick_still_disagrees(world: World, relay: Relay, outsider: int) -> None:
    lagging = relay.slots[0]
    decision = relay.decide()
    relay.commit(decision, relay.slots[1:])
    relay.commit(replace(decision, tick=int(BEFORE) - 1), [lagging])
    slots = world.manifest.committee(0).slots
    without = frozenset({slots[relay.made.excluded], slots[relay.slots[4]]})
    for whom in (1, 2):
        assert world.check(outsider, person(whom), 1, without=without) == (INDETERMINATE, Void.DISAGREEMENT)


def test_a_deposit_in_one_shard_does_not_touch_the_checks_of_another() -> None:
    world = make_world(8, shards=2)
    one_of = {shard_of_person(world.party(1), person(number)): number for number in range(1, 12)}
    made = make_deposit(world.party(1), entry(one_of[0]), world.random(16), world.random)
    relay = Relay.start(world, made, 1)
    relay.commit(relay.decide(), relay.slots[:2])
    asked = {
        shard: {world.check(requester, person(whom), 1)[0] for requester in (3, 4, 5)} for shard, whom in one_of.items()
    }
    assert INDETERMINATE in asked[0]
    assert asked[1] == {WITHIN}


# --- what others see -----------------------------------------------------------------------------------------------


def test_what_the_service_sees_of_a_deposit_has_no_share_salt_unblinder_or_proof_in_it(relay: Relay) -> None:
    answers = relay.answers(order=relay.order())
    sees = encode(relay.evaluated.batch) + b"".join(encode(answer) for answer in answers.values())
    assert decode(DepositBatch, encode(relay.evaluated.batch)) == relay.evaluated.batch
    for slot in relay.slots:
        body = opened(relay, slot)
        for secret in (body.unblinder, body.proof.challenge, body.proof.response, *body.salts):
            assert secret not in sees
        assert relay.range_key(slot) not in sees
        for piece in body.amounts:
            assert piece.to_bytes(6, "big") not in sees


@pytest.mark.parametrize("size", range(MIN_SLOTS, MAX_SLOTS + 1))
def test_envelopes_have_one_length_whatever_the_deposit(size: int) -> None:
    world = make_world(size + 1, shards=1, slots=size)
    party, cap = world.party(1), world.manifest.terms.deposit_cap
    made = [
        make_deposit(party, Entry(person(whom), kind, product, day, amount, earlier), bytes([draw]) * 16, world.random)
        for draw, (kind, earlier) in enumerate(
            [(ISSUE, None), (ISSUE, bytes(16)), (AMENDMENT, bytes(16)), (CANCELLATION, b"\x80" * 16)]
        )
        for product in ("a", "accident", "x" * 64, "\u4fdd" * 21)
        for whom, amount, day in ((1, 0, TODAY), (2, cap, 1), (3, -cap, TODAY + 1000))
    ]
    lengths = {len(envelope) for item in made for envelope in item.deposit.envelopes}
    bare = len(party.channel(name(2)).seal(PURPOSE, bytes(16), b"", bytes(32)))
    assert lengths == {bare + 512 + 128 * size}


@pytest.mark.parametrize("size", range(MIN_SLOTS, MAX_SLOTS + 1))
def test_the_longest_body_that_can_be_said_fits_into_the_padding(relay: Relay, size: int) -> None:
    body = opened(relay, relay.slots[0])
    facts = replace(body.facts, kind=AMENDMENT, depositor="d" * 64, product="p" * 64, earlier=bytes(16))
    shares = (2**48 - 1,) * (size - 2)
    longest = replace(body, facts=facts, amounts=shares, counts=shares, salts=(b"\xff" * 32,) * (size - 2))
    assert len(steps._pad(encode(longest), size)) == 512 + 128 * size


def test_no_holder_gets_the_share_that_it_lacks(relay: Relay) -> None:
    bodies = {slot: opened(relay, slot) for slot in relay.slots}
    everything = {piece for body in bodies.values() for piece in body.amounts}
    salts = {salt for body in bodies.values() for salt in body.salts}
    assert len(everything) == len(salts) == 5
    for body in bodies.values():
        assert len(everything - set(body.amounts)) == 1
        assert len(salts - set(body.salts)) == 1
    assert sum(everything) % 2**48 == LIMIT


def test_confirmations_of_two_deposits_of_one_person_show_the_service_nothing_in_common(
    world: World, relay: Relay, insider: int
) -> None:
    second = Relay.start(world, renamed(relay), insider)
    one, two = (item.prepare(item.slots[0]).answers[0] for item in (relay, second))
    assert one.confirmation != two.confirmation
    assert not set(one.digests) & set(two.digests)
    assert relay.evaluated.evaluated != second.evaluated.evaluated


def test_an_entry_and_what_a_holder_keeps_do_not_print_amount_number_or_shares(relay: Relay) -> None:
    item = entry(1, 31_415_926)
    assert "31415926" not in repr(item)
    assert item.identity.number not in repr(item)
    (accepted,) = relay.accepted(relay.slots[0])
    assert isinstance(accepted, AcceptedDeposit)
    printed = repr(accepted)
    assert repr(accepted.pseudonym) not in printed
    assert repr(accepted.proposed.index) not in printed
    assert not any(str(piece) in printed for piece in accepted.proposed.row.amounts)


# --- the range check, through envelopes and proofs -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ago", "accepted"),
    [(DEPOSIT_DAYS, True), (DEPOSIT_DAYS + 1, False), (-AHEAD_DAYS, True), (-AHEAD_DAYS - 1, False)],
)
def test_the_day_of_a_deposit_has_bounds_by_the_holders_clock(
    world: World, insider: int, ago: int, *, accepted: bool
) -> None:
    made = make_deposit(world.party(insider), entry(day=TODAY - ago), world.random(16), world.random)
    decision = Relay.start(world, made, insider).decide()
    assert decision.reason == (None if accepted else "refused")


@deterministic(25)
@given(st.lists(st.sampled_from([0, 1, 2, 2**47, 2**48 - 1]), min_size=4, max_size=4), st.integers(0, 4))
def test_a_count_is_shared_in_one_way_and_holders_refuse_any_other(counts: list[int], place: int) -> None:
    relay = counted_relay()
    slot = relay.slots[place]
    plain = opened(relay, slot).counts
    code = None if tuple(counts) == plain else "bad-sharing"
    changed = bent(relay, lambda body: replace(body, counts=tuple(counts)), [slot])
    (result,) = changed.accepted(slot)
    assert (result.code if isinstance(result, ProtocolError) else None) == code
    assert sum(plain) in (0, 1)


@cache
def counted_relay() -> Relay:
    world = make_world(8, shards=1)
    insider = next(n for n in range(1, 9) if name(n) in world.manifest.committee(0).slots)
    return Relay.start(world, make_deposit(world.party(insider), entry(), bytes(16), world.random), insider)


def test_a_range_check_that_is_asked_for_twice_is_answered_once(relay: Relay) -> None:
    order, slot = relay.order(), relay.slots[0]
    assert relay.prepare(slot, relay.call(slot, order)).garbled is not None
    with pytest.raises(ProtocolError, match="replayed"):
        relay.prepare(slot, relay.call(slot, order))
    assert relay.prepare(slot, relay.call(slot, relay.order())).garbled is not None


def test_holders_refuse_an_order_whose_a_or_time_cannot_be(relay: Relay) -> None:
    slot = relay.slots[0]
    one, two, three, four = relay.slots[:4]
    for chosen in (
        (one, two, three),
        (one, two, four, three),
        (one, one, two, three),
        tuple(sorted((one, two, three, relay.made.excluded))),
        (one, two, three, 6),
        (one, two, three, 15),
        (*relay.slots,),
    ):
        order = RangeOrder(nonce=bytes(16), chosen=chosen, issued_at=int(BEFORE))
        assert refusal(relay, slot, relay.call(slot, order)) == "bad-choice"
    for late in (61, -62):
        order = replace(relay.order(), issued_at=int(BEFORE) + late)
        assert refusal(relay, slot, relay.call(slot, order)) == "stale"


def test_holders_refuse_a_call_under_another_committee_key(relay: Relay) -> None:
    slot = relay.slots[0]
    call, holder = relay.call(slot, relay.order()), relay.holder(slot)
    for key in holder.committee_keys.values():
        if key != relay.key(slot):
            with pytest.raises(ProtocolError, match="other-key"):
                accept_prepare(holder.party, call, key, BEFORE)


def test_a_holder_that_refuses_something_of_a_call_garbles_nothing_of_it(world: World, relay: Relay) -> None:
    slot = relay.slots[0]
    bad = bent(relay, lambda body: replace(body, salts=()), [slot])
    order = bad.order()
    answers = bad.answers(order=order)
    assert [holder for holder, answer in answers.items() if answer.garbled is not None] == list(relay.slots[1:4])
    assert opened_proofs(world.manifest, bad.evaluated, order, answers) is None


def test_the_service_makes_no_proof_by_itself(world: World, relay: Relay, insider: int) -> None:
    batch = [make_deposit(world.party(insider), entry(whom), world.random(16), world.random) for whom in (2, 3)]
    evaluated = accept_batch(world.service, sign_batch(world.party(insider), batch, BEFORE), BEFORE, world.random)
    pair = replace(relay, made=batch[0], evaluated=evaluated)
    order = pair.order()
    answers = pair.answers(order=order)
    first, second = opened_proofs(world.manifest, evaluated, order, answers) or ()
    made_up = replace(first, floor=world.random(16), ceiling=world.random(16))
    mixed = [
        replace(first, floor=second.floor),
        replace(first, ceiling=second.ceiling),
        replace(second, header_hash=bytes(32)),
    ]
    for proof in (second, made_up, *mixed):
        decisions = [Decision(int(BEFORE), pair.slots, None, proof), UNPROVEN]
        for slot in pair.slots:
            call = commit_call(evaluated, decisions, slot)
            assert call is not None
            assert [refused_code(state) for state in pair.commit_at(slot, call)] == ["range-not-shown"]
    decisions = [Decision(int(BEFORE), pair.slots, None, proof) for proof in (first, second)]
    call = commit_call(evaluated, decisions, pair.slots[4])  # the one outside A
    assert call is not None
    assert all(isinstance(state, Kept) for state in pair.commit_at(pair.slots[4], call))


@pytest.mark.parametrize(("amount", "more"), [(0, 1), (1, 0)], ids=["at the cap and one more", "one more at once"])
def test_a_depositor_that_seals_what_its_own_agent_would_refuse_is_refused_by_all_holders(
    world: World, insider: int, outsider: int, amount: int, more: int
) -> None:
    cap, party = world.manifest.terms.deposit_cap, world.party(insider)
    for index, (whom, value) in enumerate(((1, cap + amount), (1, more), (2, -1), (3, 2**46 // 8 - 1))):
        made = sealed_regardless(party, entry(whom, value), world)
        relay = Relay.start(world, made, insider)
        decision = relay.decide()
        assert decision.proof is not None
        outcome = relay.outcome(decision)
        good = index == 0 and amount == 0
        assert (len(outcome.receipts), outcome.reason) == ((5, None) if good else (0, "refused"))
    assert world.check(outsider, person(2), LIMIT) == (WITHIN, None)


def sealed_regardless(party: Party, item: Entry, world: World) -> MadeDeposit:
    """Return what a depositor makes that heeds no cap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "abs", lambda _: 0, raising=False)
        return make_deposit(party, item, world.random(16), world.random)
