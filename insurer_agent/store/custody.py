"""A custodian's store in PostgreSQL: the contract of `protocol.custody.Custody`, kept.

`admit`, `prepare`, `commit` and `abandon` are one transaction each, durable once they return.
"""

import datetime as dt
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from insurer_agent.store import custody_stamps
from insurer_agent.store.custody_deposits import FACTS, CustodyDeposits, read_facts
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.partitions import PartitionsBusyError, arrange_partitions
from insurer_agent.store.vault import Vault
from protocol.custody import (
    Admission,
    Charge,
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
from protocol.messages import Commit

log = logging.getLogger(__name__)

KEEP_CHECK_RECORDS_DAYS = 3
"""Replay records outlive the freshness of what they guard, 60 s, by far."""

_ADMISSION = (
    "admit_check(%s, %s, %s::smallint, %s, %s, %s, %s,"
    " %s::bigint[], %s::bytea[], %s::text[], %s::smallint[], %s::date[], %s::bigint[])"
)
_READING = "read_custody(%s, %s, %s::bytea[], %s, %s)"
_ADMIT = f"SELECT * FROM {_ADMISSION}".encode()  # noqa: S608  texts above
_VIEW = f"SELECT * FROM {_READING}".encode()  # noqa: S608  as above
_ADMIT_AND_VIEW = f"SELECT a.*, v.* FROM {_ADMISSION} a LEFT JOIN LATERAL {_READING} v ON a.is_new".encode()  # noqa: S608  as above
_LOCKS_A_GROUP = 64
_OF_ADMISSION = 4
"""Columns that `admit_check` returns."""
_EXCLUDED = FACTS.split(", ").index("excluded")


_BYTEA = "\\x"


def _array(values: Iterable[str]) -> str:
    """Return an array as PostgreSQL reads it: psycopg's own way with lists takes a check twice the time."""
    return "{" + ",".join('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values) + "}"


def _of_reading(reading: Reading) -> tuple[object, ...]:
    tokens = sorted({index.hex() for index, _ in reading.persons})
    first_day = _day(min(first for _, first in reading.persons))
    return reading.shard, reading.tick, _array(_BYTEA + token for token in tokens), first_day, reading.epoch


def _admitted(admission: Admission, row: Sequence[Any]) -> tuple[int, ...]:
    statement_hash, tick, spent, fresh, *_ = row
    require_same_check((statement_hash, tick), admission)
    if not fresh:
        raise ProtocolError("replayed", "this attempt was answered before")
    return tuple(spent)


def _day(ordinal: int) -> dt.date:
    return dt.date.fromordinal(ordinal)


class PostgresCustody:
    """See `protocol.custody.Custody`."""

    def __init__(self, database: Database, vault: Vault, tick_seconds: int, epoch: int) -> None:
        self._database = database
        self._vault = vault
        self._epoch = epoch
        self._deposits = CustodyDeposits(database, vault, tick_seconds, epoch)

    # --- checks

    def admit(self, admission: Admission) -> tuple[int, ...]:
        """See `Custody.admit`: request hash, attempt and budget in one transaction."""
        asked = self._of_admission(admission)
        row = self._database.run(
            "admit check",
            lambda connection: connection.execute(_ADMIT, asked, binary=True).fetchone(),
            one_statement=True,
        )
        assert row is not None
        return _admitted(admission, row)

    def admit_and_view(self, admission: Admission, reading: Reading) -> tuple[tuple[int, ...], CustodyView]:
        """See `Custody.admit_and_view`: one trip to the database, which every check makes."""
        require_epoch(self._epoch, reading.epoch)
        asked = (*self._of_admission(admission), *_of_reading(reading))
        found = self._database.run(
            "admit check and read custody",
            lambda connection: connection.execute(_ADMIT_AND_VIEW, asked, binary=True).fetchall(),
            one_statement=True,
        )
        spent = _admitted(admission, found[0])
        rows = [row[_OF_ADMISSION:] for row in found]
        return spent, self._viewed(reading, rows if any(value is not None for value in rows[0]) else [])

    def _of_admission(self, admission: Admission) -> tuple[object, ...]:
        group, charges = admission.requester_group, admission.charges
        return (
            admission.requester,
            admission.check_id,
            admission.attempt,
            admission.statement_hash,
            admission.tick,
            _day(admission.today),
            group,
            _array(map(str, self._budget_locks(group, charges))),
            _array(_BYTEA + one.index.hex() for one in charges),
            _array(one.rule_id for one in charges),
            _array(str(one.occasion) for one in charges),
            _array(_day(admission.today - one.budget_days + 1).isoformat() for one in charges),
            _array(str(one.budget) for one in charges),
        )

    def _budget_locks(self, group: str, charges: Sequence[Charge]) -> list[int]:
        """Return the locks of budgets, of 64 that a group has (a server has so many in all, and a check many lanes).

        They are in order, so that none locks another up.
        """
        all_of_group = self._vault.index("budgets", group.encode())[:7]
        keys = ((one.index, one.rule_id.encode(), bytes([one.occasion])) for one in charges)
        ones = {self._vault.index("budget", group.encode(), *key)[0] % _LOCKS_A_GROUP for key in keys}
        return sorted(int.from_bytes(all_of_group + bytes([one]), "big", signed=True) for one in ones)

    def view(self, reading: Reading) -> CustodyView:
        """See `Custody.view`: one snapshot of rows and stamps."""
        require_epoch(self._epoch, reading.epoch)
        found = self._database.run(
            "read custody",
            lambda connection: connection.execute(_VIEW, _of_reading(reading), binary=True).fetchall(),
            one_statement=True,
        )
        return self._viewed(reading, found)

    def _viewed(self, reading: Reading, found: Sequence[Sequence[Any]]) -> CustodyView:
        stamps, rows = list[tuple[int, bytes]](), dict[bytes, list[CustodyRow]]()
        for depositor, id_key, *values, sealed in found:
            if depositor is None:
                stamps.append((values[_EXCLUDED], sealed))
                continue
            facts = read_facts(values)
            rows.setdefault(facts.token, []).append(self._deposits.open_row(depositor, id_key, facts, sealed))
        persons = (
            PersonRows(tuple(row for row in rows.get(bytes(index), ()) if row.day >= first))
            for index, first in reading.persons
        )
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
            connection.execute(
                "WITH old AS (DELETE FROM check_request WHERE day < %s RETURNING requester, check_id)"
                " DELETE FROM check_attempt a USING old"
                " WHERE a.requester = old.requester AND a.check_id = old.check_id",
                (limit,),
            )
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
