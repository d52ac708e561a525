"""A custodian's store in PostgreSQL: the contract of `protocol.custody.Custody`, kept.

`admit`, `prepare`, `commit` and `abandon` are one transaction each, durable once they return.
"""

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from insurer_agent.store import custody_stamps
from insurer_agent.store.arrays import bytes_array, plain_array, text_array
from insurer_agent.store.custody_deposits import FACTS, CustodyDeposits, read_facts
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.partitions import PartitionsBusyError, arrange_partitions
from insurer_agent.store.statements import Row, Statement, Value
from insurer_agent.store.vault import Vault
from protocol.custody import (
    Admission,
    CustodyRow,
    CustodyView,
    PersonRows,
    Preparation,
    Proposed,
    RangeAttempt,
    Reading,
    Refusable,
    require_epoch,
    require_same_check,
)
from protocol.errors import ProtocolError
from protocol.messages import MANY_ROWS, Commit

log = logging.getLogger(__name__)

KEEP_CHECK_RECORDS_DAYS = 3
"""Replay records outlive the freshness of what they guard, 60 s, by far."""

_ADMISSION = (
    "admit_check($1, $2, $3::smallint, $4, $5, $6, $7,"
    " $8::bigint[], $9::bytea[], $10::text[], $11::smallint[], $12::date[], $13::bigint[])"
)
_ADMIT = Statement("admit_check", f"SELECT * FROM {_ADMISSION}")  # noqa: S608  a text above
_VIEW = Statement("read_custody", "SELECT * FROM read_custody($1, $2, $3::bytea[], $4, $5, NULL)")
_ADMIT_AND_VIEW = Statement(
    "admit_and_view",
    f"SELECT a.*, v.* FROM {_ADMISSION} a"  # noqa: S608  a text above
    " LEFT JOIN LATERAL read_custody($14, $15, $16::bytea[], $17, $18, $19) v ON a.is_new",
)
_LOCKS_A_GROUP = 64
_OF_ADMISSION = 4
"""Columns that `admit_check` returns."""
Admitted = tuple[CustodyView, tuple[int, ...]]
"""One snapshot, and which lanes are spent."""
_EXCLUDED = FACTS.split(", ").index("excluded")


def _of_reading(reading: Reading) -> tuple[Value, ...]:
    tokens, first_days = zip(*reading.persons, strict=True)
    return reading.shard, reading.tick, bytes_array(sorted(set(tokens))), _day(min(first_days)), reading.epoch


def _admitted(admission: Admission, row: Sequence[Any]) -> tuple[int, ...]:
    statement_hash, tick, spent, fresh, *_ = row
    require_same_check((statement_hash, tick), admission)
    if not fresh:
        raise ProtocolError("replayed", "this attempt was answered before")
    return tuple(spent)


def _day(ordinal: int) -> dt.date:
    return dt.date.fromordinal(ordinal)


class _Admitting:
    """See `PostgresCustody.admitting`."""

    def __init__(
        self,
        begun: AbstractContextManager[Callable[[], list[list[Row]]]],
        admitted: Callable[[list[list[Row]], int], Admitted],
    ) -> None:
        self._begun, self._admitted = begun, admitted

    def __enter__(self) -> Callable[[int], Admitted]:
        rows, admitted = self._begun.__enter__(), self._admitted
        return lambda place: admitted(rows(), place)

    def __exit__(self, *_: object) -> None:
        self._begun.__exit__(None, None, None)


class PostgresCustody:
    """See `protocol.custody.Custody`."""

    def __init__(self, database: Database, vault: Vault, tick_seconds: int, epoch: int) -> None:
        self._database = database
        self._vault = vault
        self._epoch = epoch
        self._deposits = CustodyDeposits(database, vault, tick_seconds, epoch)
        self._locks_of_groups: dict[str, bytes] = {}
        """What the numbers of a group's locks begin with; there are as many as groups in the manifests."""

    # --- checks

    def admit(self, admission: Admission) -> tuple[int, ...]:
        """See `Custody.admit`: request hash, attempt and budget in one transaction."""
        asked = self._of_admission(admission, sorted(self._budget_locks(admission)))
        with self._database.begun("admit check", _ADMIT, [asked]) as rows:
            ((row,),) = rows()
        return _admitted(admission, row)

    def admit_and_view(self, admission: Admission, reading: Reading) -> tuple[tuple[int, ...], CustodyView]:
        """See `Custody.admit_and_view`: one trip to the database, which every check makes."""
        with self.admitting([(admission, reading)]) as admitted:
            view, spent = admitted(0)
        return spent, view

    def admitting(
        self, asked: Sequence[tuple[Admission, Reading]], most_rows: int | None = None
    ) -> AbstractContextManager[Callable[[int], Admitted]]:
        """Do `admit_and_view` for attempts of several checks, in one trip and one transaction, while the block goes on.

        Yields what waits for it and returns what came of one, by place; each is refused by itself, also (`many-rows`)
        one that would read more rows than `most_rows`. A block that never asks knows nothing: they may be recorded.
        """
        for _, reading in asked:
            require_epoch(self._epoch, reading.epoch)
        # In one order everywhere, so that none locks another up: first all budgets' locks, then the checks.
        order = sorted(range(len(asked)), key=lambda place: (asked[place][0].requester, asked[place][0].check_id))
        locks = set().union(*[self._budget_locks(admission) for admission, _ in asked])
        limit = None if most_rows is None else most_rows + 1
        given: list[tuple[Value, ...]] = []
        for place in order:
            admission, reading = asked[place]
            given.append((*self._of_admission(admission, () if given else sorted(locks)), *_of_reading(reading), limit))
        begun = self._database.begun("admit check and read custody", _ADMIT_AND_VIEW, given)
        return _Admitting(begun, partial(self._admitted, asked, order, most_rows))

    def _admitted(
        self,
        asked: Sequence[tuple[Admission, Reading]],
        order: Sequence[int],
        most_rows: int | None,
        rows: list[list[Row]],
        place: int,
    ) -> Admitted:
        (admission, reading), found = asked[place], rows[order.index(place)]
        spent = _admitted(admission, found[0])
        if most_rows is not None and sum([row[_OF_ADMISSION] is not None for row in found]) > most_rows:
            raise ProtocolError(MANY_ROWS, "this check takes long, and is to come alone")
        seen = [row[_OF_ADMISSION:] for row in found]
        has_none = seen[0].count(None) == len(seen[0])  # what the join gives to an attempt that reads nothing
        return self._viewed(reading, [] if has_none else seen), spent

    def _of_admission(self, admission: Admission, locks: Sequence[int]) -> tuple[Value, ...]:
        today = admission.today
        charges = [
            (one.index, one.rule_id, one.occasion, _day(today - one.budget_days + 1), one.budget)
            for one in admission.charges
        ]
        tokens, rule_ids, occasions, first_days, budgets = zip(*charges, strict=True)
        return (
            admission.requester,
            admission.check_id,
            admission.attempt,
            admission.statement_hash,
            admission.tick,
            _day(today),
            admission.requester_group,
            plain_array(locks),
            bytes_array(tokens),
            text_array(rule_ids),
            plain_array(occasions),
            plain_array(first_days),
            plain_array(budgets),
        )

    def _budget_locks(self, admission: Admission) -> set[int]:
        """Return the locks of budgets, of 64 that a group has (a server has so many in all, and a check many lanes)."""
        group = admission.requester_group.encode()
        begin = self._locks_of_groups.get(admission.requester_group)
        if begin is None:
            begin = self._locks_of_groups[admission.requester_group] = self._vault.index("budgets", group)[:7]
        locks = set()
        for one in admission.charges:
            key = self._vault.index("budget", group, one.index, one.rule_id.encode(), bytes([one.occasion]))
            locks.add(int.from_bytes(begin + bytes([key[0] % _LOCKS_A_GROUP]), "big", signed=True))
        return locks

    def view(self, reading: Reading) -> CustodyView:
        """See `Custody.view`: one snapshot of rows and stamps."""
        require_epoch(self._epoch, reading.epoch)
        with self._database.begun("read custody", _VIEW, [_of_reading(reading)]) as rows:
            (found,) = rows()
        return self._viewed(reading, found)

    def _viewed(self, reading: Reading, found: Sequence[Sequence[Any]]) -> CustodyView:
        stamps: list[tuple[int, bytes]] = []
        rows: dict[bytes, list[CustodyRow]] = {}
        for depositor, id_key, *values, sealed in found:
            if depositor is None:
                stamps.append((values[_EXCLUDED], sealed))
                continue
            facts = read_facts(values)
            rows.setdefault(facts.token, []).append(self._deposits.open_row(depositor, id_key, facts, sealed))
        persons = [
            PersonRows(tuple([row for row in rows.get(index, ()) if row.day >= first]))
            for index, first in reading.persons
        ]
        return CustodyView(tuple(persons), custody_stamps.known_totals(tuple(sorted(stamps))))

    # --- deposits

    def prepare(self, proposed: Sequence[Proposed], now: float, attempt: RangeAttempt | None = None) -> Preparation:
        """See `Custody.prepare`."""
        return self._deposits.prepare(proposed, now, attempt)

    def commit(self, depositor: str, shard: int, commits: Sequence[Commit]) -> list[Refusable]:
        """See `Custody.commit`."""
        return self._deposits.commit(depositor, shard, commits)

    def abandon(self, depositor: str, shard: int, deposit_ids: Sequence[bytes], now: float) -> list[Refusable]:
        """See `Custody.abandon`."""
        return self._deposits.abandon(depositor, shard, deposit_ids, now)

    # --- what is old

    def forget_old_checks(self, today: int) -> None:
        """Drop replay records and charges that can no longer matter."""

        def transaction(connection: Rows) -> None:
            limit = _day(today - KEEP_CHECK_RECORDS_DAYS)
            connection.execute("DELETE FROM check_request WHERE day < %s", (limit,))
            connection.execute("DELETE FROM budget WHERE day < %s", (_day(today - 400),))

        self._database.run("forget old checks", transaction)

    def forget_old_deposits(self, today: int, now: float) -> list[str]:
        """Drop whole months of days that no window reaches, and make room for those to come; return the dropped.

        Where others use the table for long, that is left for the next time.
        """
        self._deposits.forget_old(_day(today), now)
        try:
            return self._database.run(
                "arrange partitions", lambda connection: arrange_partitions(connection, _day(today))
            )
        except PartitionsBusyError:
            log.info("the months of deposits are arranged another time: the table is in use")
            return []
