"""From a Redis stream into the register: at least once into a register that counts a repeat once, in stream order.

Of all consumers of a group one is at work, whoever holds a lock of the agent's database; the others stand by. With two
at work, a policy's second amendment could be applied before its first and the older amount would stand. The one at
work takes over all that is pending before it reads anything new, and applies nothing unless, after the reading, it
still holds the lock and nobody else has anything pending. So what is in the stream is applied in its order, through
retries, kills and takeovers. A group that Redis has lost begins again, and all that was taken is repeats; what was
refused is judged anew, and a correction that was too early then may be taken now, behind later ones.

An entry is acknowledged after the transaction that took it is durable. What cannot be decided stays pending.
"""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from insurer_agent.acting import Acting
from insurer_agent.importer import Applies
from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.policy import Event, PolicyRow, RejectedRow
from insurer_agent.intake.stream_entry import EntryMapping
from insurer_agent.policy_stream import FIRST, DeadLetter, PolicyStream, StreamEntry, gone_letter
from insurer_agent.store.database import Database
from insurer_agent.store.register import POLICY_UNKNOWN, Applied, PolicyEvent
from protocol.manifest import Manifest
from transport.redis_link import redis_fault

log = logging.getLogger(__name__)

MAX_WAITING = 500
"""Corrections of unknown policies that wait; of more, the oldest are rejected."""
_WAIT_SECONDS = 1.0  # for a new entry; an order to stop is obeyed after it
_STANDBY_SECONDS = 0.5
_FIRST_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Pace:
    """How many entries are taken at once, and how long what is waited for. Times in seconds.

    `claim`: what another consumer has left pending is taken over after that. `patience`: a correction of an unknown
    policy is tried that long, for producers that are not in order. `longest_pause`: of tries to reach Redis or the
    database. `report`: between two lines of the log.
    """

    batch: int = 500
    claim: float = 30.0
    patience: float = 60.0
    longest_pause: float = 30.0
    report: float = 60.0


@dataclass(frozen=True)
class _Understood:
    """An entry that was understood, and when (monotonic seconds) it was first taken up."""

    entry: StreamEntry
    event: PolicyEvent
    since: float


@dataclass
class _Tally:
    """What was told of last, and what has happened."""

    told_at: float
    told: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)


class NewestMapping(EntryMapping):
    """Reads entries by the products and the largest amount of the newest manifest: a consumer runs for months."""

    def __init__(self, acting: Acting) -> None:
        self._acting = acting
        self._take_up(acting.now().manifest)

    def _take_up(self, manifest: Manifest) -> None:
        self._manifest = manifest
        super().__init__(products=frozenset(manifest.terms.products), maximum=manifest.terms.deposit_cap)

    def policy(self, fields: Sequence[bytes]) -> PolicyRow | RejectedRow:
        """See `EntryMapping.policy`."""
        manifest = self._acting.now().manifest
        if manifest is not self._manifest:
            self._take_up(manifest)
        return super().policy(fields)


class Consumer:
    """A consumer of one group, run in one thread; `stop` ends it after the batch under way."""

    def __init__(
        self,
        stream: PolicyStream,
        database: Database,
        register: Applies,
        mapping: EntryMapping,
        *,
        lock: int,
        pace: Pace,
        stop: threading.Event,
    ) -> None:
        self._stream = stream
        self._database = database
        self._register = register
        self._mapping = mapping
        self._lock = lock
        self._pace = pace
        self._stop = stop
        self._waiting: list[_Understood] = []  # in the stream's order, pending in Redis
        self._since: dict[bytes, float] = {}  # by id; what waits does not begin anew when it is read again
        self._pause = _FIRST_PAUSE_SECONDS
        self._standing_by = False
        self._tally = _Tally(time.monotonic())

    def run(self) -> Counter[str]:
        """Consume until told to stop; return the counts of accepted, corrected, repeated and rejected entries.

        Survives every fault by trying again, after a pause that doubles while faults go on.
        """
        while not self._stop.is_set():
            try:
                with self._database.lease(self._lock) as held:
                    if held():
                        self._standing_by = False
                        self._lead(held)
                    else:
                        self._stand_by()
            except Exception as error:  # noqa: BLE001  the consumer must outlive any fault, and what is pending stays so
                pause = self._pause * random.uniform(0.5, 1)  # noqa: S311  not a secret
                self._pause = min(2 * self._pause, self._pace.longest_pause)
                log.warning("consuming failed, trying again in %.1f s: %s", pause, redis_fault(error))
                self._stop.wait(pause)
        self._tell()
        return self._tally.counts

    def _stand_by(self) -> None:
        if not self._standing_by:
            log.info("another consumer is at work; standing by")
        self._standing_by = True
        self._stop.wait(_STANDBY_SECONDS)

    def _lead(self, held: Callable[[], bool]) -> None:
        """Take what is pending, then what comes, until told to stop or another has had a hand in it."""
        self._waiting.clear()
        self._stream.open_group()
        while not self._stream.claim(self._pace.claim):
            if self._stop.wait(_STANDBY_SECONDS) or not held():
                return
        after = FIRST
        while entries := self._stream.own(after, self._pace.batch):
            if not held():
                return
            self._take(entries)
            after = entries[-1].id
            if self._stop.is_set():
                return
        while not self._stop.is_set():
            entries = self._stream.new(self._pace.batch, _WAIT_SECONDS)
            # Asked after the reading: whoever takes the lock from now on finds these entries pending.
            if not held() or self._stream.pending() != (ours := len(entries) + len(self._waiting), ours):
                log.warning("another consumer has had a hand in the group; beginning with what is pending")
                self._stop.wait(_FIRST_PAUSE_SECONDS)
                return
            self._take(entries)
            if time.monotonic() - self._tally.told_at > self._pace.report:
                self._tell()

    def _take(self, entries: Iterable[StreamEntry]) -> None:
        """Apply entries, with those that wait, in one transaction; then settle them with Redis in another."""
        now = time.monotonic()
        rejected: list[DeadLetter] = []
        events = list(self._waiting)
        for entry in entries:
            if isinstance(understood := self._understood(entry, now), DeadLetter):
                rejected.append(understood)
            else:
                events.append(understood)
        # Issues go first: one of a known policy changes nothing, and one of an unknown policy must come before its
        # corrections, which stay in the stream's order, also those that have waited for it.
        events.sort(key=lambda one: one.event.event is not Event.ISSUE)
        outcomes = self._register.apply([one.event for one in events]) if events else []
        taken, waiting, counts = [], [], Counter[str]()
        for one, outcome in zip(events, outcomes, strict=True):
            if isinstance(outcome, Applied):
                taken.append(one.entry.id)
                counts[outcome.value] += 1
            elif outcome.code == POLICY_UNKNOWN and now - one.since < self._pace.patience:
                waiting.append((one, outcome))
            else:
                rejected.append(_letter(one.entry, outcome))
        surplus = max(0, len(waiting) - MAX_WAITING)
        rejected += [_letter(one.entry, outcome) for one, outcome in waiting[:surplus]]
        counts["rejected"] = len(rejected)
        self._stream.settle(taken, rejected)
        self._waiting = [one for one, _ in waiting[surplus:]]
        self._since = {one.entry.id: one.since for one in self._waiting}
        self._tally.counts += counts
        self._pause = _FIRST_PAUSE_SECONDS

    def _understood(self, entry: StreamEntry, now: float) -> _Understood | DeadLetter:
        if entry.fields is None:
            return gone_letter(entry)
        row = self._mapping.policy(entry.fields)
        if isinstance(row, RejectedRow):
            return DeadLetter(entry, row.code, row.reason)
        return _Understood(entry, PolicyEvent.of_row(row), self._since.get(entry.id, now))

    def _tell(self) -> None:
        """Say what was done since the last time and how far behind we are: numbers only."""
        new = self._tally.counts - self._tally.told
        self._tally.told, self._tally.told_at = self._tally.counts.copy(), time.monotonic()
        try:
            lag = self._stream.lag()
        except Exception as error:  # noqa: BLE001  as in `run`; a report is not worth a stop
            behind = f"lag unknown, {redis_fault(error)}"
        else:
            undelivered = "" if lag.undelivered is None else f", {lag.undelivered} undelivered"
            behind = f"{lag.pending} pending{undelivered}, stream length {lag.length}"
        log.info(
            "%d taken: %d accepted, %d corrected, %d repeated, %d rejected; %d waiting, %s",
            new.total(),
            *(new[what] for what in ("accepted", "corrected", "repeated", "rejected")),
            len(self._waiting),
            behind,
        )


def lock_of(stream: str, group: str) -> int:
    """Return the advisory lock, 64 bits, of a group of a stream."""
    name = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in (stream, group))
    return int.from_bytes(sha256(b"policy stream" + name).digest()[:8], "big", signed=True)


def _letter(entry: StreamEntry, refusal: IntakeError) -> DeadLetter:
    return DeadLetter(entry, refusal.code, refusal.reason)
