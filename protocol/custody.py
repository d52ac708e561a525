"""What a custodian keeps, as the protocol needs it: an interface with its durability contract, and one in memory.

The contract, on which replay protection and the all-or-nothing visibility of deposits rest:

- `admit`, `prepare`, `commit` and `abandon` are durable and visible to every later call once they return, and have
  no effect at all when they raise;
- `view` is one snapshot: it never sees a part of a commit;
- the rows of `view` are those of the tick asked for and before;
- a store belongs to one key epoch: `view` and `prepare` in another are refused (`other-epoch`), never answered as zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from protocol import group
from protocol.errors import ProtocolError
from protocol.manifest import SUM_INSURED, Rule
from protocol.messages import ISSUE
from protocol.sharing import Label, Share, add_shares, held_labels
from protocol.stamps import deposit_stamp
from protocol.token import IndexKey


@dataclass(frozen=True)
class Charge:
    """One lane's charge to the budget of (requester's group, person, rule, occasion)."""

    index: IndexKey = field(repr=False)
    rule_id: str
    occasion: int
    budget: int
    budget_days: int


@dataclass(frozen=True)
class Admission:
    """An attempt of a check that asks to be recorded; `today` is the custodian's own day, an ordinal."""

    requester: str
    requester_group: str
    check_id: bytes
    statement_hash: bytes
    attempt: int
    today: int
    charges: tuple[Charge, ...]
    tick: int


@dataclass(frozen=True)
class Reading:
    """What a check reads: the rows of each lane's person from a day on, and the stamps, as of one tick."""

    shard: int
    epoch: int
    tick: int
    lanes: tuple[tuple[IndexKey, int], ...] = field(repr=False)


@dataclass(frozen=True)
class CustodyRow:
    """One committed deposit at one custodian; shares stand in order of the labels that its slot holds."""

    product: str
    day: int
    excluded: int
    amounts: tuple[int, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class PersonRows:
    """The rows of one person that a custodian holds in a shard."""

    rows: tuple[CustodyRow, ...]

    def sums(
        self, rule: Rule, as_of: int, committee_size: int, slot: int, proposal: Mapping[Label, Share]
    ) -> dict[Label, Share]:
        """Return the slot's sums label by label: the rule's products, from the window's first day on, no upper end,
        plus the shares of the proposal.
        """
        parts: list[Mapping[Label, Share]] = [proposal]
        for row in self.rows:
            if row.product in rule.products and row.day >= rule.window_start(as_of):
                shares = row.amounts if rule.measure == SUM_INSURED else row.counts
                names = held_labels(committee_size, row.excluded, slot)
                parts.append({name: Share(piece) for name, piece in zip(names, shares, strict=True)})
        return add_shares(parts)


@dataclass(frozen=True)
class CustodyView:
    """One snapshot: the rows of each lane's person, and the running stamp sums by excluded slot."""

    lanes: tuple[PersonRows, ...]
    stamp_sums: Mapping[int, bytes]


@dataclass(frozen=True)
class Proposed:
    """A deposit that a holder has verified and is asked to keep, not yet visible."""

    depositor: str
    deposit_id: bytes
    kind: int
    earlier: bytes | None
    shard: int
    epoch: int
    index: IndexKey = field(repr=False)
    row: CustodyRow
    envelope_hash: bytes
    not_before: int


@dataclass(frozen=True)
class Kept:
    """A deposit id as a holder knows it: `tick` once committed, `never` once given up."""

    tick: int | None
    never: bool
    envelope_hash: bytes


Refusable = Kept | ProtocolError
"""What came of one deposit of a batch: its state, or why it was refused."""


class Custody(Protocol):
    """A custodian's store; see the contract above."""

    def admit(self, admission: Admission) -> None:
        """Record an attempt, and on the first one of a check the request's hash and the budget's charges.

        Refuses another request under the same check id (`check-id-reused`), another tick than an earlier attempt's
        (`other-tick`), an attempt seen before (`replayed`) and a spent budget (`budget-exhausted`).
        """

    def view(self, reading: Reading) -> CustodyView:
        """Return one snapshot."""

    def prepare(self, proposed: Sequence[Proposed]) -> list[Refusable]:
        """Keep deposits unseen, each with a result of its own.

        Repeats are answered with their state. Refused: another envelope under a known id (`deposit-reused`), an id
        given up (`deposit-abandoned`), and a correction that names a deposit which is no issue of the same depositor,
        person, product, day and excluded slot (`wrong-earlier`). One whose issue is not here is kept: a refusal would
        show the service, which can hold an issue back from one holder, which corrections are its own.
        """

    def commit(self, depositor: str, shard: int, commits: Sequence[tuple[bytes, int]]) -> list[Refusable]:
        """Make deposits visible from a tick on, each with its stamp, in one transaction.

        Refused: an id that is not prepared (`not-prepared`) and a tick before the deposit's `not_before`
        (`early-tick`). A deposit that is committed already keeps the lower of the two ticks: two relays that raced
        named different ones, and every holder comes to the same in any order.
        """

    def abandon(self, depositor: str, shard: int, deposit_ids: Sequence[bytes]) -> list[Refusable]:
        """Give ids up for good, known or not, unless they are committed."""


class MemoryCustody:
    """A custody in memory, for `run_check`, `run_deposit` and tests."""

    def __init__(self) -> None:
        self._checks: dict[tuple[str, bytes], tuple[bytes, int]] = {}
        self._attempts: set[tuple[str, bytes, int]] = set()
        self._charges: dict[tuple[str, IndexKey, str, int, int], int] = {}
        self._deposits: dict[tuple[str, bytes], tuple[Proposed | None, Kept]] = {}
        self._epoch: int | None = None

    def admit(self, admission: Admission) -> None:
        """See `Custody`."""
        check = (admission.requester, admission.check_id)
        known = self._checks.get(check)
        if known is not None:
            require_same_check(known, admission)
        if (*check, admission.attempt) in self._attempts:
            raise ProtocolError("replayed", "this attempt was answered before")
        if known is None:
            self._charge(admission)
            self._checks[check] = (admission.statement_hash, admission.tick)
        self._attempts.add((*check, admission.attempt))

    def _charge(self, admission: Admission) -> None:
        charges = dict(self._charges)
        for charge in admission.charges:
            key = (admission.requester_group, charge.index, charge.rule_id, charge.occasion)
            first = admission.today - charge.budget_days + 1
            spent = sum(count for (*at, day), count in charges.items() if tuple(at) == key and day >= first)
            if spent >= charge.budget:
                raise ProtocolError("budget-exhausted", "the query budget for this person and rule is spent")
            charges[*key, admission.today] = charges.get((*key, admission.today), 0) + 1
        self._charges = charges

    def view(self, reading: Reading) -> CustodyView:
        """See `Custody`."""
        self._bind(reading.epoch)
        committed = [
            (proposed, kept.tick)
            for proposed, kept in self._deposits.values()
            if proposed is not None
            and kept.tick is not None
            and kept.tick <= reading.tick
            and proposed.shard == reading.shard
        ]
        stamps: dict[int, bytes] = {}
        for proposed, tick in committed:
            slot = proposed.row.excluded
            stamp = deposit_stamp(proposed.depositor, proposed.deposit_id, tick)
            stamps[slot] = group.accumulate(stamps.get(slot, group.IDENTITY), [stamp])
        lanes = tuple(
            PersonRows(tuple(p.row for p, _ in committed if p.index == index and p.row.day >= first))
            for index, first in reading.lanes
        )
        return CustodyView(lanes, stamps)

    def prepare(self, proposed: Sequence[Proposed]) -> list[Refusable]:
        """See `Custody`."""
        for item in proposed:
            self._bind(item.epoch)
        return [self._prepare(item) for item in proposed]

    def _bind(self, epoch: int) -> None:
        self._epoch = epoch if self._epoch is None else self._epoch
        require_epoch(self._epoch, epoch)

    def _prepare(self, item: Proposed) -> Refusable:
        key = (item.depositor, item.deposit_id)
        if key in self._deposits:
            return repeated(self._deposits[key][1], item.envelope_hash)
        if item.kind != ISSUE:
            original, _ = self._deposits.get((item.depositor, item.earlier or b""), (None, None))
            if original is not None and not corrects(item, original):
                return wrong_earlier()
        self._deposits[key] = (item, Kept(None, never=False, envelope_hash=item.envelope_hash))
        return self._deposits[key][1]

    def commit(self, depositor: str, shard: int, commits: Sequence[tuple[bytes, int]]) -> list[Refusable]:
        """See `Custody`."""
        results: list[Refusable] = []
        for deposit_id, tick in commits:
            proposed, kept = self._deposits.get((depositor, deposit_id), (None, None))
            if proposed is None or kept is None or kept.never or proposed.shard != shard:
                results.append(ProtocolError("not-prepared", "this deposit is not prepared here"))
                continue
            if tick < proposed.not_before:
                results.append(early_tick())
                continue
            lower = tick if kept.tick is None else min(tick, kept.tick)
            self._deposits[depositor, deposit_id] = (proposed, replace(kept, tick=lower))
            results.append(self._deposits[depositor, deposit_id][1])
        return results

    def abandon(self, depositor: str, shard: int, deposit_ids: Sequence[bytes]) -> list[Refusable]:
        """See `Custody`."""
        del shard  # an id is unique over shards
        results: list[Refusable] = []
        for deposit_id in deposit_ids:
            proposed, kept = self._deposits.get(
                (depositor, deposit_id), (None, Kept(None, never=True, envelope_hash=b""))
            )
            if kept.tick is None:
                kept = Kept(None, never=True, envelope_hash=b"")
                proposed = None
            self._deposits[depositor, deposit_id] = (proposed, kept)
            results.append(kept)
        return results


def require_same_check(known: tuple[bytes, int], admission: Admission) -> None:
    """Refuse an attempt of another request under a known check id, or as of another tick.

    One check is charged once: were another attempt as of a later tick, a replay after a bait deposit would be another
    question that two of the four answer free of charge.
    """
    statement_hash, tick = known
    if statement_hash != admission.statement_hash:
        raise ProtocolError("check-id-reused", "another request was made under this check id")
    if tick != admission.tick:
        raise ProtocolError("other-tick", "all attempts of a check are as of one tick")


def require_epoch(own: int, asked: int) -> None:
    """Refuse what belongs to another key epoch than the store."""
    if own != asked:
        raise ProtocolError("other-epoch", "the store is of another key epoch; it must be re-keyed first")


def repeated(kept: Kept, envelope_hash: bytes) -> Refusable:
    """Return the answer to a deposit id that is known already."""
    if kept.never:
        return ProtocolError("deposit-abandoned", "this deposit was given up for good; it needs a new id")
    if kept.envelope_hash != envelope_hash:
        return ProtocolError("deposit-reused", "another deposit was made under this id")
    return kept


def corrects(item: Proposed, original: Proposed) -> bool:
    """Tell whether a correction names an issue of the same depositor, person, product, day and excluded slot."""
    return (
        original.kind == ISSUE
        and (item.depositor, item.shard, item.epoch, item.index)
        == (original.depositor, original.shard, original.epoch, original.index)
        and (item.row.product, item.row.day) == (original.row.product, original.row.day)
        and item.row.excluded == original.row.excluded
    )


def wrong_earlier() -> ProtocolError:
    """Return the refusal of a correction that does not fit the issue that it names."""
    return ProtocolError("wrong-earlier", "this does not correct the policy that it names")


def early_tick() -> ProtocolError:
    """Return the refusal of a commit at a tick before what the depositor knew to be counted."""
    return ProtocolError("early-tick", "a deposit does not count from before those that were made before it")
