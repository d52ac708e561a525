"""What a custodian keeps, as the protocol needs it: an interface with its durability contract, and one in memory.

The contract, on which replay protection and the all-or-nothing visibility of deposits rest:

- `admit`, `prepare`, `commit` and `abandon` are durable and visible to every later call once they return, and have
  no effect at all when they raise;
- `view` is one snapshot: it never sees a part of a commit;
- the rows of `view` are those of the tick asked for and before;
- a store belongs to one key epoch: `view` and `prepare` in another are refused (`other-epoch`), never answered as zero.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from protocol import group
from protocol.errors import ProtocolError
from protocol.manifest import MAX_WINDOW_DAYS, SUM_INSURED, Rule
from protocol.messages import ISSUE, Commit, RangeProof
from protocol.range_tags import is_good
from protocol.sharing import Label, Share, add_shares, held_labels
from protocol.stamps import deposit_stamp
from protocol.token import IndexKey

DEPOSIT_DAYS = MAX_WINDOW_DAYS + 60
"""How old the day of a deposit may be: no rule's window is as long. A depositor keeps those to itself that are older
than any window; what it sent before has this long to reach a holder that was down.
"""
SUMMED_DAYS = DEPOSIT_DAYS + 14
"""From how many days ago on a range check sums: all that a holder may have accepted and not dropped."""
KEPT_DAYS = SUMMED_DAYS + 14
"""For how long custodians keep the rows of a day."""
AHEAD_DAYS = 800
"""How far ahead the day of a deposit may be: beyond the longest window it would count for ever."""
PENDING_SECONDS = 86_400
"""After how long without a repeat a pending deposit no longer keeps others of its depositor and person from being
judged: its depositor may have lost it. Once another stands that was judged so, it is given up for good.
"""


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
    """An attempt of a check that asks to be recorded; `today` is the custodian's own day, an ordinal.

    `statement_hash` is of all that attempts of one check have in common: the signed statement, and C.
    """

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
    """What a check reads: the rows of each person from a day on, and the stamps, as of one tick."""

    shard: int
    epoch: int
    tick: int
    persons: tuple[tuple[IndexKey, int], ...] = field(repr=False)


@dataclass(frozen=True)
class CustodyRow:
    """One committed deposit at one custodian; shares stand in order of the labels that its slot holds."""

    product: str
    day: int
    excluded: int
    amounts: tuple[int, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)

    def shares(self) -> list[Share]:
        """Return the shares of the amount."""
        return [Share(piece) for piece in self.amounts]


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
    """One snapshot: the rows of each person, and the running stamp sums by excluded slot."""

    persons: tuple[PersonRows, ...]
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
    range_key: bytes = field(repr=False)

    @property
    def chain(self) -> bytes:
        """The id of the issue of the deposit's policy: its own, or the one that it corrects."""
        return self.earlier or self.deposit_id


@dataclass(frozen=True)
class Kept:
    """A deposit id as a holder knows it: `tick` once committed, with its `proof`; `never` once given up."""

    tick: int | None
    never: bool
    envelope_hash: bytes
    proof: RangeProof | None = field(default=None, repr=False)


@dataclass(frozen=True)
class RangeAttempt:
    """A range check that asks to be recorded, by its header's hash, and to be told what it judges.

    `today` is the custodian's own day; rows from `first_day` on count, both ordinals.
    """

    header_hash: bytes
    today: int
    first_day: int


@dataclass(frozen=True)
class BaseRow:
    """A row that a range check sums: a committed one of the depositor and person, or the deposit itself.

    `in_chain`: it is of the policy that the deposit is of, its issue or a correction of it.
    """

    kind: int
    in_chain: bool
    row: CustodyRow


@dataclass(frozen=True)
class DepositBase:
    """What one deposit is judged by; `pending` has the excluded slot of every other deposit of its depositor and person
    that is pending.
    """

    rows: tuple[BaseRow, ...]
    pending: tuple[int, ...]

    @property
    def alone(self) -> bool:
        """Whether no other is pending."""
        return not self.pending


@dataclass(frozen=True)
class RangeBase:
    """What a range check judges: a base for each deposit, and the depositor's own stamp sums by excluded slot."""

    deposits: tuple[DepositBase, ...]
    stamp_sums: Mapping[int, bytes]


@dataclass(frozen=True)
class Preparation:
    """What came of the deposits of a call, one by one, and the base of its range check where one was asked for and
    nothing was refused.
    """

    kept: list["Refusable"]
    base: RangeBase | None


Refusable = Kept | ProtocolError
"""What came of one deposit of a batch: its state, or why it was refused."""


class Custody(Protocol):
    """A custodian's store; see the contract above."""

    def admit(self, admission: Admission) -> tuple[int, ...]:
        """Record an attempt, and on the first one of a check the request's hash and the budget's charges.

        Return the places, in order, of charges whose budget is spent: they are not charged, the others are, and so it
        stays for all attempts of the check. Refuses another request under the same check id (`check-id-reused`),
        another tick than an earlier attempt's (`other-tick`) and an attempt seen before (`replayed`).
        """

    def view(self, reading: Reading) -> CustodyView:
        """Return one snapshot."""

    def admit_and_view(self, admission: Admission, reading: Reading) -> tuple[tuple[int, ...], CustodyView]:
        """Do both: record an attempt, durably, and return what is spent, with one snapshot. Refuses as `admit`."""

    def prepare(self, proposed: Sequence[Proposed], now: float, attempt: RangeAttempt | None = None) -> Preparation:
        """Keep deposits of one depositor and shard pending and unseen, each with a result of its own.

        With `attempt`, record it and return, in the same transaction, what the range check judges; refuses a header
        that it has seen (`replayed`): garbled twice over different rows, one seed would tell what the rows are.

        Repeats are answered with their state. Refused: another envelope under a known id (`deposit-reused`), an id
        given up (`deposit-abandoned`), and a correction that names a deposit which is no issue of the same depositor,
        person, product, day and excluded slot (`wrong-earlier`). One whose issue is not here is kept: a refusal would
        show the service, which can hold an issue back from one holder, which corrections are its own.
        """

    def commit(self, depositor: str, shard: int, commits: Sequence[Commit]) -> list[Refusable]:
        """Make deposits visible from a tick on, each with its stamp, in one transaction.

        What a range check of the deposit passed over here, as pending for too long, is given up for good, and where it
        has been committed since the deposit is refused (`range-not-shown`): they were not judged together.

        Refused: an id that is not prepared (`not-prepared`), a tick before the deposit's `not_before` (`early-tick`),
        and one whose proof does not hold (`range-not-shown`). A deposit that is committed already keeps its first
        proof and the lower of the two ticks: two relays that raced named different ones, and every holder comes to the
        same in any order.
        """

    def abandon(self, depositor: str, shard: int, deposit_ids: Sequence[bytes], now: float) -> list[Refusable]:
        """Give ids up for good, known or not, unless they are committed."""


class MemoryCustody:
    """A custody in memory, for `run_check`, `run_deposit` and tests."""

    def __init__(self) -> None:
        self._checks: dict[tuple[str, bytes], tuple[bytes, int]] = {}
        self._spent: dict[tuple[str, bytes], tuple[int, ...]] = {}
        self._attempts: set[tuple[str, bytes, int]] = set()
        self._charges: dict[tuple[str, IndexKey, str, int, int], int] = {}
        self._deposits: dict[tuple[str, bytes], tuple[Proposed | None, Kept]] = {}
        self._prepared_at: dict[tuple[str, bytes], float] = {}
        self._ranges: dict[bytes, set[tuple[str, bytes]]] = {}
        self._epoch: int | None = None

    def admit(self, admission: Admission) -> tuple[int, ...]:
        """See `Custody`."""
        check = (admission.requester, admission.check_id)
        known = self._checks.get(check)
        if known is not None:
            require_same_check(known, admission)
        if (*check, admission.attempt) in self._attempts:
            raise ProtocolError("replayed", "this attempt was answered before")
        if known is None:
            self._checks[check] = (admission.statement_hash, admission.tick)
            self._spent[check] = tuple(
                place for place, charge in enumerate(admission.charges) if not self._pays(admission, charge)
            )
        self._attempts.add((*check, admission.attempt))
        return self._spent[check]

    def _pays(self, admission: Admission, charge: Charge) -> bool:
        """Charge one lane; tell whether there was something left."""
        key = (admission.requester_group, charge.index, charge.rule_id, charge.occasion)
        first = admission.today - charge.budget_days + 1
        answers = sum(count for (*at, day), count in self._charges.items() if tuple(at) == key and day >= first)
        if answers >= charge.budget:
            return False
        self._charges[*key, admission.today] = self._charges.get((*key, admission.today), 0) + 1
        return True

    def view(self, reading: Reading) -> CustodyView:
        """See `Custody`."""
        self._bind(reading.epoch)
        committed = [(proposed, tick) for proposed, tick in self._committed() if tick <= reading.tick]
        persons = tuple(
            PersonRows(
                tuple(
                    proposed.row
                    for proposed, _ in committed
                    if (proposed.index, proposed.shard) == (index, reading.shard) and proposed.row.day >= first
                )
            )
            for index, first in reading.persons
        )
        return CustodyView(persons, _stamp_sums(committed, reading.shard))

    def admit_and_view(self, admission: Admission, reading: Reading) -> tuple[tuple[int, ...], CustodyView]:
        """See `Custody`."""
        return self.admit(admission), self.view(reading)

    def _committed(self) -> list[tuple[Proposed, int]]:
        return [
            (proposed, kept.tick)
            for proposed, kept in self._deposits.values()
            if proposed is not None and kept.tick is not None
        ]

    def prepare(self, proposed: Sequence[Proposed], now: float, attempt: RangeAttempt | None = None) -> Preparation:
        """See `Custody`."""
        for item in proposed:
            self._bind(item.epoch)
        if attempt is not None:
            if attempt.header_hash in self._ranges:
                raise replayed_range()
            self._ranges[attempt.header_hash] = set()
        kept = [self._prepare(item, now) for item in proposed]
        if attempt is None or any(isinstance(item, ProtocolError) for item in kept):
            return Preparation(kept, None)
        bases = tuple(self._base(item, now, attempt) for item in proposed)
        own = [item for item in self._committed() if item[0].depositor == proposed[0].depositor]
        return Preparation(kept, RangeBase(bases, _stamp_sums(own, proposed[0].shard)))

    def _bind(self, epoch: int) -> None:
        self._epoch = epoch if self._epoch is None else self._epoch
        require_epoch(self._epoch, epoch)

    def _prepare(self, item: Proposed, now: float) -> Refusable:
        key = (item.depositor, item.deposit_id)
        if key in self._deposits:
            kept = repeated(self._deposits[key][1], item.envelope_hash)
        elif item.kind != ISSUE and not corrects(item, self._deposits.get((item.depositor, item.chain), (None,))[0]):
            kept = wrong_earlier()
        else:
            kept = Kept(None, never=False, envelope_hash=item.envelope_hash)
        if isinstance(kept, Kept):
            self._deposits[key] = (item, kept)
            self._prepared_at[key] = now
        return kept

    def _base(self, item: Proposed, now: float, attempt: RangeAttempt) -> DepositBase:
        own = (item.depositor, item.deposit_id)
        same = {
            key: (other, kept)
            for key, (other, kept) in self._deposits.items()
            if other is not None
            and (other.depositor, other.shard, other.index) == (item.depositor, item.shard, item.index)
        }
        rows = (
            BaseRow(other.kind, other.chain == item.chain, other.row)
            for key, (other, kept) in same.items()
            if (kept.tick is not None or key == own) and other.row.day >= attempt.first_day
        )
        others = {key: other for key, (other, kept) in same.items() if kept.tick is None and key != own}
        passed = {key for key in others if self._prepared_at[key] <= now - PENDING_SECONDS}
        self._ranges[attempt.header_hash] |= passed
        pending = (other.row.excluded for key, other in others.items() if key not in passed)
        return DepositBase(tuple(rows), tuple(pending))

    def commit(self, depositor: str, shard: int, commits: Sequence[Commit]) -> list[Refusable]:
        """See `Custody`."""
        results: list[Refusable] = []
        for commit in commits:
            proposed, kept = self._deposits.get((depositor, commit.deposit_id), (None, None))
            if proposed is None or kept is None or kept.never or proposed.shard != shard:
                results.append(not_prepared())
                continue
            refusal = commit_refusal(commit, proposed.not_before, None if kept.tick is not None else proposed.range_key)
            if refusal is not None:
                results.append(refusal)
                continue
            if kept.tick is None:
                passed = self._passed(proposed, commit.range_proof.header_hash)
                if any(self._deposits[key][1].tick is not None for key in passed):
                    results.append(range_not_shown())
                    continue
                for key in passed:
                    self._deposits[key] = (None, Kept(None, never=True, envelope_hash=b""))
            lower = commit.tick if kept.tick is None else min(commit.tick, kept.tick)
            kept = replace(kept, tick=lower, proof=kept.proof or commit.range_proof)
            self._deposits[depositor, commit.deposit_id] = (proposed, kept)
            results.append(kept)
        return results

    def _passed(self, judged: Proposed, header_hash: bytes) -> list[tuple[str, bytes]]:
        """Return what was passed over when this deposit was judged under a header, and was not given up since."""
        known = ((key, self._deposits[key][0]) for key in self._ranges.get(header_hash, set()))
        return [key for key, other in known if other is not None and other.index == judged.index]

    def abandon(self, depositor: str, shard: int, deposit_ids: Sequence[bytes], now: float) -> list[Refusable]:
        """See `Custody`."""
        del shard, now  # an id is unique over shards
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


def _stamp_sums(committed: Iterable[tuple[Proposed, int]], shard: int) -> dict[int, bytes]:
    sums: dict[int, bytes] = {}
    for proposed, tick in committed:
        if proposed.shard == shard:
            slot = proposed.row.excluded
            stamp = deposit_stamp(proposed.depositor, proposed.deposit_id, tick)
            sums[slot] = group.accumulate(sums.get(slot, group.IDENTITY), [stamp])
    return sums


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


def corrects(item: Proposed, original: Proposed | None) -> bool:
    """Tell whether a correction names an issue of the same depositor, person, product, day and excluded slot, or one
    that is not here (yet).
    """
    return original is None or (
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


def not_prepared() -> ProtocolError:
    """Return the refusal of a commit of what is not kept here."""
    return ProtocolError("not-prepared", "this deposit is not prepared here")


def replayed_range() -> ProtocolError:
    """Return the refusal of a range check that was garbled before."""
    return ProtocolError("replayed", "this range check was answered before")


def commit_refusal(commit: Commit, not_before: int, range_key: bytes | None) -> ProtocolError | None:
    """Return why a deposit cannot be committed so, or None; `range_key` is None where it is committed already.

    One code for every proof that does not hold: what a lane opened is for holders alone.
    """
    if commit.tick < not_before:
        return early_tick()
    if range_key is not None and not is_good(range_key, commit.range_proof):
        return range_not_shown()
    return None


def range_not_shown() -> ProtocolError:
    """Return the refusal of a deposit of which it is not shown that it may stand beside what stands."""
    return ProtocolError("range-not-shown", "the range check of this deposit has not opened as good")
