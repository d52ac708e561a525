"""Deposits between the steps of their range check, every party in memory: what an attack on one needs in pieces."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from malicious_service import Blind
from world import NOW, TODAY, World, make_world, name, person

from protocol import comparison
from protocol.check import MemberInMemory
from protocol.comparison import Disagreement
from protocol.custody import Kept, Refusable
from protocol.deposit import (
    Decision,
    Entry,
    EvaluatedBatch,
    MadeDeposit,
    accept_batch,
    accept_commit,
    accept_prepare,
    commit_call,
    confirm,
    decide,
    draw_deposit_id,
    make_deposit,
    opened_proofs,
    prepare_call,
    sign_batch,
)
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.messages import (
    ISSUE,
    Commit,
    CommitCall,
    PrepareAnswer,
    PrepareCall,
    RangeAnswer,
    RangeOrder,
    RangeProof,
)
from protocol.party import Party
from protocol.range_check import choice, header_hash, range_header
from protocol.range_tags import LANES
from protocol.stamps import tick_at

BEFORE = NOW - 60
TICK = tick_at(BEFORE, 1)
GOOD, BAD, VOID = "good", "bad", "void"


def one_shard(seed: object = 0) -> World:
    """Eight members and one shard, of six of them."""
    return make_world(8, shards=1, seed=seed)


def an_outsider(world: World) -> int:
    return next(n for n in range(1, 9) if name(n) not in world.manifest.committee(0).slots)


def an_insider(world: World) -> int:
    return int(world.manifest.committee(0).slots[2][-2:])


def entry(number: int, amount: int = 5, **changes: object) -> Entry:
    return replace(Entry(person(number), ISSUE, "accident", TODAY, amount), **changes)


@dataclass(frozen=True)
class Ranged:
    """A batch that the service has evaluated, and all holders at hand."""

    world: World
    depositor: Party
    made: tuple[MadeDeposit, ...]
    evaluated: EvaluatedBatch
    now: float = BEFORE

    @classmethod
    def of(cls, world: World, depositor: int, made: Sequence[MadeDeposit], now: float = BEFORE) -> "Ranged":
        party = world.party(depositor)
        signed = sign_batch(party, made, now)
        return cls(world, party, tuple(made), accept_batch(world.service, signed, now, world.random), now)

    @classmethod
    def start(
        cls, world: World, depositor: int, *entries: Entry, excluded: int | None = None, now: float = BEFORE
    ) -> "Ranged":
        """Make a batch of deposits that exclude one slot: the one given, or that of the first."""
        party, made = world.party(depositor), list[MadeDeposit]()
        for item in entries:
            while True:
                deposit_id = draw_deposit_id(party, item.identity, item.earlier, world.random)
                one = make_deposit(party, item, deposit_id, world.random)
                if one.excluded == (excluded if excluded is not None or not made else made[0].excluded):
                    break
                if excluded is None and not made:
                    break
            made.append(one)
        return cls.of(world, depositor, made, now)

    @property
    def slots(self) -> tuple[int, ...]:
        return self.evaluated.slots

    @property
    def ids(self) -> tuple[bytes, ...]:
        return tuple(item.deposit.deposit_id for item in self.made)

    def order(self, chosen: Iterable[int] | None = None, **changes: object) -> RangeOrder:
        """Order a range check; of the first four holders unless others are given."""
        four = tuple(self.slots[:4] if chosen is None else chosen)
        order = RangeOrder(nonce=self.world.random(16), chosen=four, issued_at=int(self.now))
        return replace(order, **changes)

    def holder(self, slot: int) -> MemberInMemory:
        return self.world.members[self.world.manifest.committee(0).slots[slot]]

    def call(self, slot: int, order: RangeOrder | None) -> PrepareCall:
        return prepare_call(self.evaluated, slot, order)

    def prepare_at(self, slot: int, call: PrepareCall, now: float | None = None) -> PrepareAnswer:
        """Have a holder take a call; raises its refusal of the whole."""
        holder, at = self.holder(slot), self.now if now is None else now
        key = holder.committee_keys[0, self.world.manifest.slot_of_group(0, self.depositor.id)]
        accepted = accept_prepare(holder.party, call, key, at)
        return confirm(holder.party, accepted, holder.custody.prepare(accepted.proposed, at, accepted.attempt()))

    def prepare(self, order: RangeOrder | None, slots: Collection[int] | None = None) -> dict[int, PrepareAnswer]:
        """Have holders, all unless said otherwise, take the honest call."""
        return {slot: self.prepare_at(slot, self.call(slot, order)) for slot in slots or self.slots}

    def opened(self, order: RangeOrder, answers: Mapping[int, PrepareAnswer]) -> list[RangeProof] | None:
        return opened_proofs(self.world.manifest, self.evaluated, order, answers)

    def forced(
        self, order: RangeOrder, answers: Mapping[int, PrepareAnswer], under: int | None = None
    ) -> list[RangeProof]:
        """Evaluate whatever there is, without comparing, and return what comes out as the proofs."""
        parts: dict[int, RangeAnswer] = {}
        for slot in order.chosen:
            garbled = answers[slot].garbled
            assert garbled is not None
            parts[slot] = garbled
        call = self.call(order.chosen[0] if under is None else under, order)
        header = range_header(self.world.manifest, call, parts[order.chosen[0]].committee_key)
        assert header is not None
        four = choice(self.world.manifest, call, order.chosen)
        blind = Blind(four, (0,) * LANES * len(self.made), under=encode(header))
        tags = iter(blind.evaluate_regardless({slot: answer.part for slot, answer in parts.items()}))
        return [RangeProof(header_hash(header), *lanes) for lanes in zip(*(tags,) * LANES, strict=True)]  # type: ignore[arg-type, misc]  bytes: see Blind.verdict

    def unequal(self, order: RangeOrder, answers: Mapping[int, PrepareAnswer]) -> set[tuple[int, int, int]]:
        """Return what the service sees by the digests: the lane, sender and voucher (by slot) that contradict."""
        parts = [answers[slot].garbled.part for slot in order.chosen]  # type: ignore[union-attr]  all of A garbled
        found, size = set(), 48 * 16
        for place, sent, vouched in comparison._groups(parts):
            one, two = (order.chosen[position] for position in comparison.GROUPS[place])
            for lane in range(LANES * len(self.made)):
                labels = sent.labels[lane * size : (lane + 1) * size]
                digest = comparison._voucher_digest(labels, sent.stamp, place, lane)
                if digest != vouched.digests[32 * lane : 32 * lane + 32]:
                    found.add((lane, one, two))
        return found

    def decide(
        self, answers: Mapping[int, PrepareAnswer], proofs: Sequence[RangeProof | None], tick: int = TICK
    ) -> list[Decision]:
        return decide(self.world.manifest, self.evaluated, answers, proofs, tick)

    def commit(self, decisions: Sequence[Decision], slots: Collection[int] | None = None) -> dict[int, list[Refusable]]:
        """Have holders take the commit that follows from the decisions."""
        done = {}
        for slot in self.slots if slots is None else slots:
            call = commit_call(self.evaluated, decisions, slot)
            if call is not None:
                done[slot] = self.commit_at(slot, call)
        return done

    def commit_at(self, slot: int, call: CommitCall) -> list[Refusable]:
        holder = self.holder(slot)
        return holder.custody.commit(call.depositor, call.shard, accept_commit(holder.party, call, self.now))

    def commit_with(
        self, proofs: Sequence[RangeProof], slots: Collection[int] | None = None, tick: int = TICK
    ) -> list[str]:
        """Have holders commit every deposit with a proof of the service's choice; return what each is told: the tick,
        or the refusal's code.
        """
        call = CommitCall(
            depositor=self.depositor.id,
            shard=0,
            commits=tuple(
                Commit(deposit_id=deposit_id, tick=tick, range_proof=proof)
                for deposit_id, proof in zip(self.ids, proofs, strict=True)
            ),
        )
        return [told(state) for slot in slots or self.slots for state in self.commit_at(slot, call)]

    def honestly(self, order: RangeOrder | None = None, slots: Collection[int] | None = None) -> list[str]:
        """Do all that an honest service does in one attempt; return what holders say of each deposit."""
        order = self.order() if order is None else order
        answers = self.prepare(order, slots)
        try:
            proofs = self.opened(order, answers)
        except Disagreement:
            proofs = None
        if proofs is None:
            return [VOID]
        done = self.commit(self.decide(answers, proofs), slots)
        return [told(state) for states in done.values() for state in states]

    def counted(self) -> set[tuple[int, bytes]]:
        """Return which holders have committed which deposits of the batch."""
        return {
            (slot, deposit_id)
            for slot in self.slots
            for deposit_id in self.ids
            if (kept := self.state(slot, deposit_id)) is not None and kept.tick is not None
        }

    def state(self, slot: int, deposit_id: bytes) -> Kept | None:
        return self.holder(slot).custody._deposits.get((self.depositor.id, deposit_id), (None, None))[1]


def told(state: Refusable) -> str:
    return state.code if isinstance(state, ProtocolError) else f"tick {state.tick}"


MADE = [f"tick {TICK}"] * 5
NOT_SHOWN = ["range-not-shown"] * 5
LACKS = ("floor", "ceiling", "alone")
"""The lanes of a proof."""


def refusal_of(ranged: Ranged, slot: int, call: PrepareCall) -> str | None:
    """Return with which code a holder refuses a call, or its first deposit; None where it takes it."""
    try:
        return ranged.prepare_at(slot, call).answers[0].refusal
    except ProtocolError as refused:
        return refused.code


def noise(ranged: Ranged, order: RangeOrder, answers: Mapping[int, PrepareAnswer]) -> bool:
    """Tell whether the four do not agree, and what comes out if the service goes on lets no deposit count."""
    try:
        opened = ranged.opened(order, answers)
    except Disagreement:
        opened = None
    garbled = all(answers[slot].garbled is not None for slot in order.chosen)
    return opened is None and (not garbled or ranged.commit_with(ranged.forced(order, answers)) == NOT_SHOWN)
