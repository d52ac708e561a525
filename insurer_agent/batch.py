"""A batch's story: many questions at once become few checks, each of one shard, several of them under way at a time.

A person under a rule and amount is asked about once, however often a batch has it, and all that is asked about a person
stands in one check where that fits.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from insurer_agent.requester import THROTTLED, Answer, Lane
from protocol.check import Void
from protocol.errors import ProtocolError
from protocol.identity import Identity

BATCH_LANES = 256
"""Persons and rules that a batch has in one check. Custodians take some 1 ms of a processor for each, together, and the
first of A sends 10 KB."""
IN_FLIGHT = 4
"""Checks of batches that one process has under way at a time, and no more than one in four of its threads."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


@dataclass(frozen=True)
class Item:
    """One question: a person under one or several rules, with the cover that would be added, in fen."""

    subject: Identity = field(repr=False)
    rules: tuple[str, ...]
    proposed: int = field(repr=False)

    @property
    def lanes(self) -> list[Lane]:
        """What must be asked."""
        return [(self.subject, rule, self.proposed) for rule in self.rules]


@dataclass
class Pack:
    """One check: lanes of one shard, no two alike, and by item the lanes that answer it."""

    lanes: dict[Lane, int] = field(default_factory=dict, repr=False)
    items: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def add(self, place: int, item: Item) -> None:
        """Have the check answer an item."""
        self.items[place] = tuple([self.lanes.setdefault(lane, len(self.lanes)) for lane in item.lanes])

    def fits(self, items: Sequence[Item], most: int) -> bool:
        """Tell whether the check has no more lanes than `most` with these items, too."""
        more = {lane for item in items for lane in item.lanes if lane not in self.lanes}
        return len(self.lanes) + len(more) <= most

    def answers(self, given: Answer) -> Iterator[tuple[int, Answer]]:
        """Yield the answer of each item."""
        for place, lanes in self.items.items():
            yield place, replace(given, lanes=tuple(given.lanes[lane] for lane in lanes))


def packed(items: Sequence[Item], shard_of: Callable[[Identity], int], most: int = BATCH_LANES) -> list[Pack]:
    """Return the checks that answer all items, of up to `most` lanes each, or of one item if that alone has more."""
    persons: dict[Identity, list[int]] = {}
    for place, item in enumerate(items):
        persons.setdefault(item.subject, []).append(place)
    shards: dict[int, list[list[int]]] = {}
    for person, places in persons.items():
        shards.setdefault(shard_of(person), []).append(places)
    return [pack for group in shards.values() for pack in _packs(items, group, most)]


def _packs(items: Sequence[Item], persons: Sequence[Sequence[int]], most: int) -> list[Pack]:
    packs = [Pack()]
    for places in persons:
        if packs[-1].lanes and not packs[-1].fits([items[place] for place in places], most):
            packs.append(Pack())
        for place in places:
            if packs[-1].lanes and not packs[-1].fits([items[place]], most):
                packs.append(Pack())
            packs[-1].add(place, items[place])
    return packs


class Asks(Protocol):
    """The requester, as far as a batch needs it."""

    def check_many(self, lanes: Sequence[Lane], seconds: float) -> Answer:
        """See `Requester.check_many`."""

    def unasked(self, lanes: Sequence[Lane], reason: Void) -> Answer:
        """See `Requester.unasked`."""


class Batches:
    """Asks whole batches; the threads that ask stay, as each keeps its connection to the service."""

    def __init__(self, requester: Asks, shard_of: Callable[[Identity], int], *, threads: int) -> None:
        self._requester = requester
        self._shard_of = shard_of
        self._pool = ThreadPoolExecutor(max(1, min(IN_FLIGHT, threads // 4)), thread_name_prefix="batch")

    def ask(self, items: Sequence[Item], seconds: float) -> list[Answer]:
        """Return the answer of each item, in order, within so many seconds: what is missing then is a `TIMEOUT`.

        Refuses (`ProtocolError`) what cannot be asked at all, as `Requester.check` does.
        """
        deadline = time.monotonic() + seconds
        packs = packed(items, self._shard_of)
        under_way = [self._pool.submit(self._asked, list(pack.lanes), deadline) for pack in packs]
        try:
            answers = {
                place: answer
                for pack, asked in zip(packs, under_way, strict=True)
                for place, answer in pack.answers(asked.result())
            }
        finally:
            for asked in under_way:  # where one is refused nobody reads the others
                asked.cancel()
        return [answers[place] for place in range(len(items))]

    def _asked(self, lanes: list[Lane], deadline: float) -> Answer:
        """Ask one check as soon as the service takes it."""
        pause = _FIRST_PAUSE
        while (left := deadline - time.monotonic()) > 0:
            try:
                return self._requester.check_many(lanes, left)
            except ProtocolError as error:
                if error.code not in THROTTLED:
                    raise
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE)
        return self._requester.unasked(lanes, Void.TIMEOUT)
