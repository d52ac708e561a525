"""The requester's own count of the answers that it got, by which it knows what custodians would refuse (SPEC.md, 6.4).

A lane is counted before its check is sent, as under way; what came of it is noted after the answer, and one without a
verdict is given back. A crash of the database's machine may take the last moments' counts: custodians have theirs. A
check whose end nobody notes, as its process was killed, counts while it may be under way and then no more: what is
counted as answered was answered. Persons stand as HMACs.
"""

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

from insurer_agent.store.arrays import bytes_array, plain_array, text_array
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.locks import Lock
from insurer_agent.store.statements import Row, Statement, Value
from insurer_agent.store.vault import Vault
from protocol.budget import charged_from, latest_today
from transport.problems import Problem, fault

log = logging.getLogger(__name__)

PERSON_BYTES = 16
_LOCKS = 64
"""Of persons, as many as an agent's checks take turns by: a server has so many locks in all."""
_LINGER_SECONDS = 0.5
"""For how long what came of checks is gathered, to be noted together."""
_COUNT = Statement(
    "count_own_answers",
    "SELECT * FROM count_own_answers($1, $2, $3, $4::smallint, $5, $6::integer[], $7::bytea[], $8::text[],"
    " $9::bigint[], $10::integer[], $11::bigint[], $12::bigint[])",
)
_NOTE = b"""
WITH given AS (
    SELECT * FROM unnest(%s::bytea[], %s::text[], %s::smallint[], %s::date[], %s::bytea[], %s::smallint[])
        AS given (person_key, rule_id, occasion, day, claim, answers)
), back AS (
    DELETE FROM own_answer o USING given g WHERE g.answers = 0 AND o.answers IS NULL AND o.person_key = g.person_key
        AND o.rule_id = g.rule_id AND o.occasion = g.occasion AND o.day = g.day AND o.claim = g.claim
)
UPDATE own_answer o SET answers = g.answers FROM given g WHERE g.answers > 0 AND o.answers IS NULL
    AND o.person_key = g.person_key AND o.rule_id = g.rule_id AND o.occasion = g.occasion AND o.day = g.day
    AND o.claim = g.claim
"""


@dataclass(frozen=True)
class OwnLane:
    """A lane that is to be asked: whom it is about, and what its rule's budget is now.

    After `most` answers within `budget_days` there are no more, if the rule's budget was always the same; after
    `most_whatever` there are none, whatever it was.
    """

    person: bytes = field(repr=False)
    rule_id: str
    budget: int
    budget_days: int
    most: int
    most_whatever: int


@dataclass(frozen=True)
class Stopped:
    """A lane that is not asked: before the day `until`, an ordinal, there is no answer. `is_certain`, unless what is
    under way still is needed to say so.
    """

    until: int
    is_certain: bool


@dataclass(frozen=True)
class Counted:
    """A check that was counted: which of its lanes, by place, are not to be asked, and by what the others are known."""

    claim: bytes
    occasion: int
    day: dt.date
    keys: tuple[tuple[bytes, str], ...] = field(repr=False)
    stopped: dict[int, Stopped]


_Note = tuple[bytes, str, int, dt.date, bytes, int]


class OwnAnswers:
    """The count, one for all processes of an agent."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._notes: list[_Note] = []
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._thread: threading.Thread | None = None

    def counting(
        self, claim: bytes, occasion: int, lanes: Sequence[OwnLane], now: float
    ) -> AbstractContextManager[Callable[[], Counted]]:
        """Count the lanes, one at least, of a check that is about to be sent, known by `claim`, 16 bytes of its own, in
        one trip while the block goes on; yields what waits for the count and returns it.

        Those that custodians would certainly refuse, or would if what is under way is answered, are stopped, and not
        counted. Counting the same check again changes nothing.
        """
        keys = tuple([(self._key(lane.person), lane.rule_id) for lane in lanes])
        day = dt.date.fromordinal(charged_from(now))
        persons, rules = zip(*keys, strict=True)
        limits = [(lane.budget, lane.budget_days, lane.most, lane.most_whatever) for lane in lanes]
        locks = sorted({person[0] % _LOCKS for person in persons})
        asked: tuple[Value, ...] = (
            claim,
            day,
            dt.date.fromordinal(latest_today(now)),
            occasion,
            int(Lock.OWN_ANSWERS),
            plain_array(locks),
            bytes_array(persons),
            text_array(rules),
            *[plain_array(column) for column in zip(*limits, strict=True)],
        )
        begun = self._database.begun("count own answers", _COUNT, [asked])
        return _Counting(begun, partial(Counted, claim, occasion, day, keys))

    def note(self, counted: Counted, answered: Iterable[int]) -> None:
        """Do as `put`; a failure is logged alone, as the answers are right all the same."""
        try:
            self.put(counted, answered)
        except Problem as problem:
            log.warning("what came of a check is not counted: %s", problem.code)

    def put(self, counted: Counted, answered: Iterable[int]) -> None:
        """Note what came of a check: the places of its lanes that were answered. The others are given back."""
        self._write(self._notes_of(counted, answered))

    def note_soon(self, counted: Counted, answered: Iterable[int]) -> None:
        """Do as `note` within about a second, when the answer has left."""
        with self._lock:
            self._notes += self._notes_of(counted, answered)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="own answers", daemon=True)
                self._thread.start()
        if not self._some.is_set():
            self._some.set()

    def flush(self) -> None:
        """Note what waits to be."""
        with self._lock:
            notes, self._notes = self._notes, []
        self._write(notes)

    def _run(self) -> None:
        while True:
            self._some.wait()
            time.sleep(_LINGER_SECONDS)
            self._some.clear()
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001  the thread must outlive any fault, the database's above all
                log.warning("what came of checks is not counted: %s", fault(error))

    def _notes_of(self, counted: Counted, answered: Iterable[int]) -> list[_Note]:
        got = {key: 0 for place, key in enumerate(counted.keys) if place not in counted.stopped}
        for place in answered:
            got[counted.keys[place]] += 1
        return [
            (person, rule, counted.occasion, counted.day, counted.claim, many) for (person, rule), many in got.items()
        ]

    def _write(self, notes: Sequence[_Note]) -> None:
        if not notes:
            return
        persons, rules, occasions, days, claims, answers = zip(*sorted(notes), strict=True)
        given = (
            bytes_array(persons),
            text_array(rules),
            plain_array(occasions),
            plain_array(days),
            bytes_array(claims),
            plain_array(answers),
        )
        self._database.run("note own answers", lambda connection: connection.execute(_NOTE, given), one_statement=True)

    def forget_old(self, before: int) -> None:
        """Drop what was asked before a day, an ordinal: no rule's budget looks back so far."""

        def transaction(connection: Rows) -> None:
            connection.execute("DELETE FROM own_answer WHERE day < %s", (dt.date.fromordinal(before),))

        self._database.run("forget own answers", transaction)

    def _key(self, person: bytes) -> bytes:
        return self._vault.index("person asked about", person)[:PERSON_BYTES]


class _Counting:
    """See `OwnAnswers.counting`. A class, as every check has one: made of a generator it takes twice as long."""

    def __init__(
        self,
        begun: AbstractContextManager[Callable[[], list[list[Row]]]],
        counted: Callable[[dict[int, Stopped]], Counted],
    ) -> None:
        self._begun = begun
        self._counted = counted

    def __enter__(self) -> Callable[[], Counted]:
        self._rows = self._begun.__enter__()
        return self._wait

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begun.__exit__(kind, error, trace)

    def _wait(self) -> Counted:
        (stops,) = self._rows()
        return self._counted({place: Stopped(until.toordinal(), is_certain) for place, until, is_certain in stops})
