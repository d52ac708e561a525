"""A committee's stores and deposits of one depositor, without envelopes, tokens and service: what a range check is of.

The steps after an envelope is opened are the protocol's own; what comes before them is told here as it comes out.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count

from strategies import POINTS
from world import NOW, RULE, TODAY, World, make_world, seeded

from protocol.comparison import Disagreement
from protocol.custody import CustodyRow, MemoryCustody, Proposed, Reading, Refusable
from protocol.deposit import (
    AcceptedCall,
    AcceptedDeposit,
    Decision,
    EvaluatedBatch,
    claimed_proofs,
    commit_call,
    confirm,
    decide,
    holder_slots,
    opened_proofs,
    prepare_call,
)
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.manifest import Manifest, Rule, china_day
from protocol.messages import (
    COUNT_OF_KIND,
    ISSUE,
    Deposit,
    DepositBatch,
    DepositFacts,
    PrepareAnswer,
    RangeOrder,
    RangeProof,
)
from protocol.range_check import range_header, range_key
from protocol.sharing import CHOSEN, RING, SHARE_BYTES, Label, Share, held_labels, plain_share, share, signed
from protocol.stamps import tick_at
from protocol.token import IndexKey, Pseudonym
from protocol.voprf import DleqProof

NO_PROOF = DleqProof(challenge=bytes(32), response=bytes(32))
_numbers = count(1)


@cache
def world_of(size: int) -> World:
    """Return an alliance with one shard of that many slots and one member more; its stores are nobody's."""
    return make_world(size + 1, shards=1, slots=size, seed=("range", size))


@dataclass(frozen=True)
class Item:
    """A deposit: what all holders know of it, and the shares of its amount."""

    facts: DepositFacts
    person: int
    amounts: dict[Label, Share] = field(repr=False)

    @property
    def id(self) -> bytes:
        return self.facts.deposit_id


class RangeCommittee:
    """The stores of a committee, for deposits of the member of slot `own`, or of one that has none."""

    def __init__(self, size: int = 6, own: int | None = None) -> None:
        self.world, self.size, self.own = world_of(size), size, own
        self.manifest: Manifest = self.world.manifest
        self.slots = self.manifest.committee(0).slots
        outsider = next(member for member in self.world.members if member not in self.slots)
        self.depositor = outsider if own is None else self.slots[own]
        holder = self.slots[0 if own != 0 else 1]
        self.key = self.world.members[holder].committee_keys[0, own]
        self.stores = {slot: MemoryCustody() for slot in range(size)}
        self.cap = self.manifest.terms.deposit_cap
        self.random = seeded(("range committee", size, own))

    def deposit(
        self,
        amount: int,
        kind: int = ISSUE,
        *,
        whom: int = 1,
        earlier: bytes | None = None,
        product: str = "accident",
        day: int = TODAY,
        excluded: int | None = None,
    ) -> Item:
        """Return a deposit of any amount of the ring; a depositor in the committee excludes its own slot."""
        slot = (excluded or 0) if self.own is None else self.own
        facts = DepositFacts(
            kind=kind,
            depositor=self.depositor,
            deposit_id=next(_numbers).to_bytes(16, "big"),
            earlier=earlier,
            shard=0,
            manifest_hash=self.manifest.hash,
            epoch=1,
            product=product,
            day=day,
            excluded=slot,
            not_before=0,
        )
        return Item(facts, whom, share(amount, self.size, slot, self.random((self.size - 2) * SHARE_BYTES)))

    def accepted(self, item: Item, slot: int) -> AcceptedDeposit:
        """Return what a holder has after it opened and verified a deposit."""
        facts, held = item.facts, held_labels(self.size, item.facts.excluded, slot)
        counts = plain_share(COUNT_OF_KIND[facts.kind], self.size, facts.excluded)
        pseudonym = Pseudonym(POINTS[item.person])
        row = CustodyRow(
            facts.product,
            facts.day,
            facts.excluded,
            tuple(item.amounts[pair] for pair in held),
            tuple(counts[pair] for pair in held),
        )
        proposed = Proposed(
            depositor=facts.depositor,
            deposit_id=facts.deposit_id,
            kind=facts.kind,
            earlier=facts.earlier,
            shard=0,
            epoch=1,
            index=IndexKey(bytes([slot, item.person]) * 16),
            row=row,
            envelope_hash=facts.deposit_id * 2,
            not_before=0,
            range_key=range_key(self.key, facts, pseudonym),
        )
        digests = tuple(item.amounts[pair].to_bytes(32, "big") for pair in held)
        return AcceptedDeposit(proposed, pseudonym, facts, digests)

    def round(self, *items: Item, chosen: Sequence[int] | None = None, now: float = NOW, order: bool = True) -> "Round":
        """Return a first round for deposits that exclude one slot; A is the first four holders where not told."""
        (excluded,) = {item.facts.excluded for item in items}
        holders = holder_slots(self.manifest, 0, excluded)
        deposits = tuple(Deposit(deposit_id=item.id, blinded=POINTS[item.person], envelopes=()) for item in items)
        batch = DepositBatch(
            depositor=self.depositor,
            shard=0,
            excluded=excluded,
            manifest_hash=self.manifest.hash,
            issued_at=int(now),
            made=int(not order),
            deposits=tuple(
                Deposit(deposit_id=one.deposit_id, blinded=one.blinded, envelopes=(b"",) * len(holders))
                for one in deposits
            ),
        )
        evaluated = EvaluatedBatch(batch, holders, tuple(Element(POINTS[item.person]) for item in items), NO_PROOF)
        asked = RangeOrder(
            nonce=self.random(16), chosen=tuple(sorted((chosen or holders)[:CHOSEN])), issued_at=int(now)
        )
        return Round(self, items, evaluated, asked if order else None, now)

    def make(self, *items: Item, chosen: Sequence[int] | None = None, now: float = NOW) -> list[set[int]]:
        """Run both rounds; return per deposit the holders that show it."""
        return self.round(*items, chosen=chosen, now=now).run()

    def committed(self, item: Item) -> set[int]:
        """Return the holders that show a deposit."""
        return {
            slot
            for slot, store in self.stores.items()
            if (known := store._deposits.get((self.depositor, item.id))) is not None and known[1].tick is not None
        }

    def total(self, whom: int, rule: Rule = RULE, as_of: int = TODAY, now: float = NOW) -> int:
        """Reconstruct what a rule counts of a person, from the shares of all holders, which must be alike."""
        labels: dict[Label, set[int]] = {}
        for slot, store in self.stores.items():
            index = IndexKey(bytes([slot, whom]) * 16)
            view = store.view(Reading(0, 1, tick_at(now, 1), ((index, rule.window_start(as_of)),)))
            for pair, piece in view.persons[0].sums(rule, as_of, self.size, slot, {}).items():
                labels.setdefault(pair, set()).add(piece)
        assert all(len(pieces) == 1 for pieces in labels.values())
        return signed(sum(piece for pieces in labels.values() for piece in pieces) % RING)


@dataclass
class Round:
    """A batch on its way: holders prepare it one by one, in whatever order a test likes."""

    committee: RangeCommittee
    items: tuple[Item, ...]
    evaluated: EvaluatedBatch
    order: RangeOrder | None
    now: float
    answers: dict[int, PrepareAnswer] = field(default_factory=dict)

    @property
    def chosen(self) -> tuple[int, ...]:
        return () if self.order is None else self.order.chosen

    def accept(self, slot: int) -> AcceptedCall:
        header = range_header(
            self.committee.manifest, prepare_call(self.evaluated, slot, self.order), self.committee.key.name
        )
        deposits = tuple(self.committee.accepted(item, slot) for item in self.items)
        return AcceptedCall(
            slot, self.committee.key, deposits, header if slot in self.chosen else None, china_day(self.now)
        )

    def prepare(self, slot: int) -> PrepareAnswer:
        accepted = self.accept(slot)
        prepared = self.committee.stores[slot].prepare(accepted.proposed, self.now, accepted.attempt())
        party = self.committee.world.members[self.committee.slots[slot]].party
        self.answers[slot] = confirm(party, accepted, prepared)
        return self.answers[slot]

    def prepare_all(self, slots: Sequence[int] | None = None) -> "Round":
        for slot in self.evaluated.slots if slots is None else slots:
            self.prepare(slot)
        return self

    def opened(self) -> list[RangeProof] | None:
        """Return what the service opens; raises `Disagreement`."""
        assert self.order is not None
        return opened_proofs(self.committee.manifest, self.evaluated, self.order, self.answers)

    def decisions(self) -> list[Decision]:
        proofs: Sequence[RangeProof | None] | None = None
        if self.order is not None:
            with contextlib.suppress(Disagreement):
                proofs = self.opened()
        if proofs is None:
            proofs = claimed_proofs(self.committee.manifest, self.evaluated, self.answers)
        return decide(self.committee.manifest, self.evaluated, self.answers, proofs, tick_at(self.now, 1))

    def commit(self, slot: int, decisions: Sequence[Decision]) -> list[Refusable]:
        call = commit_call(self.evaluated, decisions, slot)
        return [] if call is None else self.committee.stores[slot].commit(call.depositor, 0, call.commits)

    def run(self, slots: Sequence[int] | None = None) -> list[set[int]]:
        """Prepare, decide and commit at those holders; return per deposit who shows it."""
        decisions = self.prepare_all(slots).decisions()
        for slot in self.evaluated.slots if slots is None else slots:
            self.commit(slot, decisions)
        return [self.committee.committed(item) for item in self.items]


def code(state: Refusable) -> str:
    """Return the code of a refusal."""
    assert isinstance(state, ProtocolError), state
    return state.code
