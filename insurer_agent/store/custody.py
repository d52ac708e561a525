"""A custodian's store in PostgreSQL: the contract of `protocol.custody.Custody`, kept.

`admit`, `prepare`, `commit` and `abandon` are one transaction each, durable once they return.
"""

import datetime as dt
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from insurer_agent.store import custody_stamps
from insurer_agent.store.custody_deposits import FACTS, CustodyDeposits, read_facts
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.partitions import PartitionsBusyError, arrange_partitions
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
from protocol.messages import Commit

log = logging.getLogger(__name__)

KEEP_CHECK_RECORDS_DAYS = 3
"""Replay records outlive the freshness of what they guard, 60 s, by far."""

_ROWS = (
    f"SELECT depositor, id_key, {FACTS}, shares FROM custody_row"  # noqa: S608  names of columns
    " WHERE token = ANY(%s) AND day >= %s AND tick <= %s AND shard = %s AND epoch = %s"
)


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
        check = (admission.requester, admission.check_id)

        def transaction(connection: Rows) -> tuple[int, ...]:
            spent: tuple[int, ...] = ()
            new = connection.execute(
                "INSERT INTO check_request (requester, check_id, statement_hash, tick, day) VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                (*check, admission.statement_hash, admission.tick, _day(admission.today)),
            ).rowcount
            if not new:
                row = connection.execute(
                    "SELECT statement_hash, tick, spent FROM check_request WHERE requester = %s AND check_id = %s",
                    check,
                ).fetchone()
                assert row is not None
                require_same_check((bytes(row[0]), row[1]), admission)
                spent = tuple(row[2])
            fresh = connection.execute(
                "INSERT INTO check_attempt (requester, check_id, attempt) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (*check, admission.attempt),
            ).rowcount
            if not fresh:
                raise ProtocolError("replayed", "this attempt was answered before")
            if new and (spent := self._charge(connection, admission)):
                connection.execute(
                    "UPDATE check_request SET spent = %s WHERE requester = %s AND check_id = %s", ([*spent], *check)
                )
            return spent

        return self._database.run("admit check", transaction)

    def _charge(self, connection: Rows, admission: Admission) -> tuple[int, ...]:
        """Charge what is not spent; return the places of what is."""
        # A statement for all lanes, not one a lane: a recheck has many. One budget is spread over days, a row each, so
        # checks on both sides of midnight must wait for each other: by locks, in order, so that none locks another up.
        group, keys = admission.requester_group, [(one.index, one.rule_id, one.occasion) for one in admission.charges]
        locks = {self._budget_lock(group, *key) for key in keys}
        connection.execute("SELECT pg_advisory_xact_lock(one) FROM unnest(%s::bigint[]) AS one", (sorted(locks),))
        first_days = [_day(admission.today - charge.budget_days + 1) for charge in admission.charges]
        rows = connection.execute(
            "SELECT (SELECT coalesce(sum(answers), 0) FROM budget WHERE requester_group = %s AND token = lane.token"
            " AND rule_id = lane.rule_id AND occasion = lane.occasion AND day >= lane.first_day)"
            " FROM unnest(%s::bytea[], %s::text[], %s::smallint[], %s::date[]) WITH ORDINALITY"
            " AS lane (token, rule_id, occasion, first_day, place) ORDER BY place",
            (group, *_columns(keys), first_days),
        )
        charged: Counter[tuple[bytes, str, int]] = Counter()
        spent = []
        for place, (key, charge, (answers,)) in enumerate(zip(keys, admission.charges, rows, strict=True)):
            if answers + charged[key] >= charge.budget:
                spent.append(place)
            else:
                charged[key] += 1
        if not charged:
            return tuple(spent)
        connection.execute(
            "INSERT INTO budget (requester_group, token, rule_id, occasion, day, answers)"
            " SELECT %s, token, rule_id, occasion, %s, answers"
            " FROM unnest(%s::bytea[], %s::text[], %s::smallint[], %s::integer[])"
            " AS lane (token, rule_id, occasion, answers)"
            " ON CONFLICT (requester_group, token, rule_id, occasion, day)"
            " DO UPDATE SET answers = budget.answers + EXCLUDED.answers",
            (group, _day(admission.today), *_columns(charged), [*charged.values()]),
        )
        return tuple(spent)

    def _budget_lock(self, group: str, token: bytes, rule_id: str, occasion: int) -> int:
        index = self._vault.index("budget", group.encode(), token, rule_id.encode(), bytes([occasion]))
        return int.from_bytes(index[:8], "big", signed=True)

    def view(self, reading: Reading) -> CustodyView:
        """See `Custody.view`: one snapshot of rows and stamps."""
        require_epoch(self._epoch, reading.epoch)

        def transaction(connection: Rows) -> CustodyView:
            rows = self._rows(connection, reading)
            persons = tuple(PersonRows(tuple(rows.get((bytes(index), first), ()))) for index, first in reading.persons)
            return CustodyView(persons, custody_stamps.shard_sums(connection, reading.shard, reading.tick))

        return self._database.run("read custody", transaction, snapshot=True)

    def _rows(self, connection: Rows, reading: Reading) -> dict[tuple[bytes, int], list[CustodyRow]]:
        """Return the rows of each person from a day on: one indexed read for all that begin on the same day."""
        rows: dict[tuple[bytes, int], list[CustodyRow]] = {}
        for first in sorted({first for _, first in reading.persons}):
            tokens = sorted({bytes(index) for index, day in reading.persons if day == first})
            found = connection.execute(
                _ROWS.encode(), (tokens, _day(first), reading.tick, reading.shard, reading.epoch)
            )
            for depositor, id_key, *values, sealed in found:
                facts = read_facts(values)
                row = self._deposits.open_row(depositor, bytes(id_key), facts, sealed)
                rows.setdefault((facts.token, first), []).append(row)
        return rows

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


def _columns(keys: Iterable[tuple[bytes, str, int]]) -> tuple[list[Any], ...]:
    """Return the keys' tokens, rule ids and occasions, each as a list."""
    return tuple([*column] for column in zip(*keys, strict=True))
