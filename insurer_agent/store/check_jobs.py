"""Jobs: many checks that were handed in together and are asked in the background, and their answers until they are old.

What is asked and what is answered is sealed; a person is known by an HMAC of the job's own, which brings his items
together, in an order that is nobody's. A job belongs to the API key that handed it in. What was settled is settled: an
agent that is killed goes on with what is not.
"""

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from insurer_agent.store.database import Database, Rows
from insurer_agent.store.locks import Lock
from insurer_agent.store.vault import Vault, VaultError
from transport.problems import Problem

KEPT_DAYS = 7
MAX_OPEN = 20
"""Jobs of one API key that are not done."""
MAX_KEPT = 1000
"""Jobs of one API key in all, done or not."""
_AT_ONCE = dt.datetime.fromtimestamp(0, dt.UTC)
"""Due by the database's clock, whatever this machine's says."""
_NOWHERE = -1
"""The shard of what nobody is asked about."""
_OLDEST_DUE = (
    "SELECT job_id FROM check_job j WHERE finished_at IS NULL AND created_at > now() - make_interval(days => %s)"
    " AND EXISTS (SELECT FROM check_job_item i WHERE i.job_id = j.job_id AND i.due_at <= now())"
    " ORDER BY created_at, job_id LIMIT 1"
)
_COPY = "COPY check_job_item (job_id, place, shard, person_key, sealed, answer, due_at) FROM STDIN"


@dataclass(frozen=True)
class NewItem:
    """An item of a job that is handed in: whom it is about, and what is asked."""

    place: int
    shard: int
    subject: bytes = field(repr=False)
    asked: bytes = field(repr=False)


@dataclass(frozen=True)
class OpenItem:
    """An item to be asked; `asked` is None where its row is damaged."""

    place: int
    asked: bytes | None = field(repr=False)


@dataclass(frozen=True)
class Part:
    """Items of one job and shard that are due, `tries` of which have brought no answer yet."""

    job_id: bytes
    shard: int
    tries: int
    items: tuple[OpenItem, ...]


@dataclass(frozen=True)
class Outcome:
    """What an item is answered, and what that counts as, by verdict."""

    place: int
    answer: bytes = field(repr=False)
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """How far a job is. `counts` are of what is done, by verdict."""

    job_id: bytes
    as_csv: bool
    total: int
    done: int
    counts: Mapping[str, int]
    created_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None

    @property
    def expires_at(self) -> dt.datetime:
        """When it is removed, whether done or not."""
        return self.created_at + dt.timedelta(days=KEPT_DAYS)


class CheckJobs:
    """The jobs of an agent."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    def make(self, job_id: bytes, api_key: str, items: Iterable[NewItem | Outcome], *, as_csv: bool) -> None:
        """Take in a job whole, with what is settled at once; refuse (`too-many-jobs`) one beside many others."""
        owner = self._owner(api_key)
        rows, counts, settled = list[tuple[object, ...]](), Counter[str](), 0
        for item in items:  # sealed one by one: there may be very many
            if isinstance(item, NewItem):
                person, asked = self._person(job_id, item), self._asked(job_id, item)
                rows.append((job_id, item.place, item.shard, person, asked, None, _AT_ONCE))
            else:
                rows.append((job_id, item.place, _NOWHERE, b"", None, self._answer(job_id, item), None))
                counts.update(item.counts)
                settled += 1
        tally, is_done = self._sealed_tally(job_id, counts), settled == len(rows)

        def transaction(connection: Rows) -> None:
            taking_turns = int.from_bytes(owner[:4], "big", signed=True)
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (Lock.NEW_CHECK_JOB, taking_turns))
            kept, still_open = connection.execute(
                "SELECT count(*), count(*) FILTER (WHERE finished_at IS NULL) FROM check_job"
                " WHERE owner = %s AND job_id <> %s AND created_at > now() - make_interval(days => %s)",
                (owner, job_id, KEPT_DAYS),
            ).fetchone() or (0, 0)
            if kept >= MAX_KEPT or (still_open >= MAX_OPEN and not is_done):
                detail = f"of one API key {MAX_OPEN} jobs are not done, or {MAX_KEPT} are kept"
                raise Problem(429, "too-many-jobs", detail, hint="wait for one, or delete one", retry_after=60)
            made = connection.execute(
                "INSERT INTO check_job (job_id, owner, as_csv, total, done, sealed, started_at, finished_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, CASE WHEN %s THEN now() END, CASE WHEN %s THEN now() END)"
                " ON CONFLICT (job_id) DO NOTHING",
                (job_id, owner, as_csv, len(rows), settled, tally, is_done, is_done),
            ).rowcount
            if made == 0:  # by an earlier try, whose completion was not told
                return
            with connection.cursor() as cursor, cursor.copy(_COPY) as into:
                for one in rows:
                    into.write_row(one)

        self._database.run("make a check job", transaction)

    def find(self, job_id: bytes, api_key: str) -> Job | None:
        """Return how far a job of this API key is."""
        row = self._database.run(
            "find a check job",
            lambda connection: connection.execute(
                "SELECT as_csv, total, done, sealed, created_at, started_at, finished_at FROM check_job"
                " WHERE job_id = %s AND owner = %s AND created_at > now() - make_interval(days => %s)",
                (job_id, self._owner(api_key), KEPT_DAYS),
            ).fetchone(),
        )
        if row is None:
            return None
        as_csv, total, done, sealed, *times = row
        return Job(job_id, as_csv, total, done, self._tally(job_id, sealed), *times)

    def remove(self, job_id: bytes, api_key: str) -> bool:
        """Cancel a job of this API key and remove all of it; return whether there was one."""
        query = "DELETE FROM check_job WHERE job_id = %s AND owner = %s"
        return bool(
            self._database.run(
                "remove a check job",
                lambda connection: connection.execute(query, (job_id, self._owner(api_key))).rowcount,
            )
        )

    def answers(self, job_id: bytes, after: int, most: int) -> list[tuple[int, bytes]]:
        """Return up to `most` answers after a place, by their places."""
        rows = self._database.run(
            "read answers of a check job",
            lambda connection: connection.execute(
                "SELECT place, answer FROM check_job_item WHERE job_id = %s AND place > %s AND due_at IS NULL"
                " ORDER BY place LIMIT %s",
                (job_id, after, most),
            ).fetchall(),
        )
        return [(place, self._vault.open(_at(b"answer", job_id, place), answer)) for place, answer in rows]

    def any_open(self) -> bool:
        """Tell whether some job is not finished, whether or not anything of it is due."""
        return self._database.run(
            "look for open check jobs",
            lambda connection: (
                connection.execute("SELECT EXISTS (SELECT FROM check_job WHERE finished_at IS NULL)").fetchone()
                == (True,)
            ),
            one_statement=True,
        )

    def due(self, most: int, most_again: int) -> Part | None:
        """Return what the oldest job with anything due should ask next: up to `most` items, fewer of those that had no
        answer.
        """

        def transaction(connection: Rows) -> tuple[bytes, list[Any]] | None:
            job = connection.execute(_OLDEST_DUE, (KEPT_DAYS,)).fetchone()
            if job is None:
                return None
            connection.execute("UPDATE check_job SET started_at = now() WHERE job_id = %s AND started_at IS NULL", job)
            rows = connection.execute(
                "SELECT place, shard, tries, sealed FROM check_job_item WHERE job_id = %s AND due_at <= now()"
                " ORDER BY tries, shard, person_key, place LIMIT %s",
                (*job, most),
            ).fetchall()
            return bytes(job[0]), rows

        found = self._database.run("read open items of a check job", transaction)
        if found is None or not found[1]:
            return None
        job_id, rows = found
        _, shard, tries, _ = rows[0]
        rows = [row for row in rows if row[1:3] == (shard, tries)][: most_again if tries else most]
        return Part(job_id, shard, tries, tuple(self._opened(job_id, row[0], row[3]) for row in rows))

    def settle(
        self, job_id: bytes, settled: Sequence[Outcome], again: Sequence[OpenItem], *, tries: int, pause: float
    ) -> None:
        """Keep answers, and have what found none asked `again`, that being its `tries`, after a pause in seconds.

        What was settled before, or is of a job that was removed meanwhile, stays as it is.
        """
        answers = [(self._answer(job_id, one), job_id, one.place) for one in settled]

        def transaction(connection: Rows) -> None:
            row = connection.execute("SELECT sealed FROM check_job WHERE job_id = %s FOR UPDATE", (job_id,)).fetchone()
            if row is None:
                return
            counts, done = self._tally(job_id, row[0]), 0
            with connection.cursor() as cursor:
                for one, values in zip(settled, answers, strict=True):
                    cursor.execute(
                        "UPDATE check_job_item SET answer = %s, sealed = NULL, due_at = NULL"
                        " WHERE job_id = %s AND place = %s AND due_at IS NOT NULL",
                        values,
                    )
                    if cursor.rowcount:
                        counts.update(one.counts)
                        done += 1
                cursor.executemany(
                    "UPDATE check_job_item SET tries = %s, due_at = now() + make_interval(secs => %s)"
                    " WHERE job_id = %s AND place = %s AND due_at IS NOT NULL",
                    [(tries, pause, job_id, one.place) for one in again],
                )
            connection.execute(
                "UPDATE check_job SET done = done + %s, sealed = %s,"
                " finished_at = CASE WHEN done + %s = total THEN coalesce(finished_at, now()) END WHERE job_id = %s",
                (done, self._sealed_tally(job_id, counts), done, job_id),
            )

        self._database.run("settle items of a check job", transaction)

    def forget_old(self) -> None:
        """Remove jobs past their time."""
        self._database.run(
            "forget check jobs",
            lambda connection: connection.execute(
                "DELETE FROM check_job WHERE created_at <= now() - make_interval(days => %s)", (KEPT_DAYS,)
            ),
        )

    def _owner(self, api_key: str) -> bytes:
        return self._vault.index("owner of a check job", api_key.encode(errors="surrogatepass"))

    def _person(self, job_id: bytes, item: NewItem) -> bytes:
        return self._vault.index("person of a check job", job_id, item.subject)

    def _asked(self, job_id: bytes, item: NewItem) -> bytes:
        return self._vault.seal(_at(b"asked", job_id, item.place), item.asked)

    def _answer(self, job_id: bytes, item: Outcome) -> bytes:
        return self._vault.seal(_at(b"answer", job_id, item.place), item.answer)

    def _opened(self, job_id: bytes, place: int, sealed: bytes) -> OpenItem:
        try:
            return OpenItem(place, self._vault.open(_at(b"asked", job_id, place), sealed))
        except VaultError:
            return OpenItem(place, None)

    def _sealed_tally(self, job_id: bytes, counts: Mapping[str, int]) -> bytes:
        return self._vault.seal(_at(b"tally", job_id, 0), json.dumps(counts).encode())

    def _tally(self, job_id: bytes, sealed: bytes) -> Counter[str]:
        return Counter(json.loads(self._vault.open(_at(b"tally", job_id, 0), sealed)))


def _at(kind: bytes, job_id: bytes, place: int) -> bytes:
    return kind + job_id + place.to_bytes(4, "big")
