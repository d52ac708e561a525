"""The plain sum, kept by the test: what every policy was told to be, since when, and what each person's total comes to.

It shares no code with the product. While operations are under way a total is not one number but an interval: each
policy counts as any of its steps from the last that a check must see to the last that was sent.
"""

import datetime as dt
import threading
from collections import defaultdict
from dataclasses import dataclass, field

Person = tuple[str, str]
Place = tuple[str, Person, str, dt.date]
"""Depositor, person, product and day of issue: what a custodian may see deposits apart by."""

LIMIT = 5_000_000_000
COUNTED_PRODUCT = "accident"
WINDOW_DAYS = 30
EMPTY = (0, 0)


@dataclass
class Step:
    """One thing that a policy is told to be, by one door: worth `fen`, and `count` policies (0 once cancelled)."""

    event: str
    fen: int
    count: int
    day: dt.date
    door: str
    sent: float | None = None
    taken: float | None = None
    counts_from: int | None = None
    """A check as of this tick or a later one sees it; None until that is known."""


@dataclass
class Policy:
    """A policy of a member and all its steps, in the order in which they are told."""

    member: int
    number: str
    person: Person
    product: str
    day: dt.date
    steps: list[Step]
    done: int = 0
    """How many steps were taken in, as the house that sent them was told."""

    def next_steps(self) -> list[Step]:
        """Return what may be sent now: a door that keeps the order gets all that follows by it."""
        left = self.steps[self.done :]
        if left and left[0].door in ("file", "stream"):
            together = [step.door == left[0].door for step in left]
            return left[: together.index(False) if False in together else len(left)]
        return left[:1]

    def stands_at(self) -> tuple[int, int]:
        """Return the fen and the count of the last step that was taken in."""
        return self._after(self.done)

    def _after(self, steps: int) -> tuple[int, int]:
        return EMPTY if steps == 0 else (self.steps[steps - 1].fen, self.steps[steps - 1].count)

    def span(self, as_of: int, ended: float) -> tuple[int, int]:
        """Return the least and the most that may count in a check that is as of a tick or later, and has `ended`."""
        seen = sum(step.counts_from is not None and step.counts_from <= as_of for step in self.steps)
        sent = sum(step.sent is not None and step.sent <= ended for step in self.steps)
        may = [self._after(steps)[0] for steps in range(seen, max(seen, sent) + 1)]
        return min(may), max(may)

    def is_counted(self, today: dt.date) -> bool:
        return self.product == COUNTED_PRODUCT and self.day > today - dt.timedelta(days=WINDOW_DAYS)


@dataclass
class Books:
    """All policies; safe to read and to add to from several threads."""

    policies: list[Policy] = field(default_factory=list)
    _of: dict[Person, list[Policy]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, policy: Policy) -> None:
        with self._lock:
            self.policies.append(policy)
            self._of[policy.person].append(policy)

    def of(self, person: Person) -> list[Policy]:
        with self._lock:
            return list(self._of[person])

    def persons(self) -> list[Person]:
        with self._lock:
            return list(self._of)

    def span(self, person: Person, as_of: int, ended: float, today: dt.date) -> tuple[int, int]:
        """Return between which totals in fen a check's lay."""
        spans = [policy.span(as_of, ended) for policy in self.of(person) if policy.is_counted(today)]
        return sum(low for low, _ in spans), sum(high for _, high in spans)

    def sums(self) -> dict[Place, tuple[int, int]]:
        """Return the fen and the number of policies in force by depositor, person, product and day, all taken in."""
        sums: dict[Place, tuple[int, int]] = {}
        for policy in self.policies:
            place = (f"insurer-{policy.member:02d}", policy.person, policy.product, policy.day)
            (fen, count), (before, many) = policy.stands_at(), sums.get(place, EMPTY)
            sums[place] = (before + fen, many + count)
        return sums

    def changes(self) -> dict[str, int]:
        """Return how many deposits each depositor owes for them: one a step that changed something."""
        changes: dict[str, int] = defaultdict(int)
        for policy in self.policies:
            for before, step in enumerate(policy.steps):
                changes[f"insurer-{policy.member:02d}"] += policy._after(before) != (step.fen, step.count)
        return dict(changes)


def verdict_of(low: int, high: int, proposed: int) -> str | None:
    """Return the verdict that a total between two calls for, or None where either is right."""
    if high + proposed <= LIMIT:
        return "within"
    return "exceeds" if low + proposed > LIMIT else None
