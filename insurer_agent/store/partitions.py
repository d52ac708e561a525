"""The partitions of committed deposits: a calendar month of days each, and one for days further ahead.

A check reads the partitions from its window's first day on; what is older than any window is dropped a month at a
time, whole, by its day alone: a policy's issue and corrections share their day, so none goes without the others.

Changing them takes the whole table for a moment, before anything is moved: a statement that was planned before a move
and runs after it would find the rows neither where they were nor where they are.
"""

import datetime as dt
from collections.abc import Iterable

import psycopg
from psycopg import sql

from insurer_agent.store.database import Rows
from insurer_agent.store.locks import Lock
from protocol.custody import KEPT_DAYS

_PREFIX = "custody_row_"
_MONTHS_AHEAD = 2
"""For later days there is one partition: rows of such days are few, and move when their month comes near."""
_PATIENCE = "250ms"
"""How long the table is waited for, while whoever comes later waits behind: a check has two seconds in all."""


class PartitionsBusyError(Exception):
    """Some transaction has been using the table for longer than others can be kept waiting; try again later."""


def arrange_partitions(connection: Rows, today: dt.date) -> list[str]:
    """Have a partition for every month that counts, and drop those in which no day does; return the dropped ones.

    Safe to run again and from several processes at once. Raises `PartitionsBusyError`.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (Lock.PARTITIONS,))
    have = {
        str(name)
        for (name,) in connection.execute(
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
            " WHERE inhparent = 'custody_row'::regclass"
        )
    }
    wanted = _months(today - dt.timedelta(days=KEPT_DAYS), today)
    missing = [first for first in wanted if _name(first) not in have]
    named = {name for name in have if name.removeprefix(_PREFIX).replace("_", "").isdigit()}
    old = sorted(name for name in named if name < _name(wanted[0]))
    if missing or old:
        try:
            _arrange(connection, missing, old, wanted[0])
        except psycopg.errors.LockNotAvailable:
            raise PartitionsBusyError from None
    return old


def _arrange(connection: Rows, missing: Iterable[dt.date], old: Iterable[str], oldest: dt.date) -> None:
    connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_PATIENCE)))
    connection.execute("LOCK TABLE ONLY custody_row IN ACCESS EXCLUSIVE MODE")
    # What was committed so late that its month was gone.
    connection.execute("DELETE FROM custody_row_later WHERE day < %s", (oldest,))
    for first in missing:
        _create(connection, first)
    for name in old:
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))


def _months(oldest: dt.date, today: dt.date) -> list[dt.date]:
    """Return the first days of all months from that of `oldest` to some months after `today`."""
    start, end = oldest.year * 12 + oldest.month - 1, today.year * 12 + today.month - 1 + _MONTHS_AHEAD
    return [dt.date(month // 12, month % 12 + 1, 1) for month in range(start, end + 1)]


def _name(first: dt.date) -> str:
    return f"{_PREFIX}{first:%Y_%m}"


def _create(connection: Rows, first: dt.date) -> None:
    """Make a month's partition, with the rows of its days that came before it."""
    end = (first + dt.timedelta(days=31)).replace(day=1)
    bounds = {"name": sql.Identifier(_name(first)), "first": sql.Literal(first), "end": sql.Literal(end)}
    for statement in (
        "CREATE TABLE {name} (LIKE custody_row INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
        (
            "WITH moved AS (DELETE FROM custody_row_later WHERE day >= {first} AND day < {end} RETURNING *)"
            " INSERT INTO {name} SELECT * FROM moved"
        ),
        "ALTER TABLE custody_row ATTACH PARTITION {name} FOR VALUES FROM ({first}) TO ({end})",
    ):
        connection.execute(sql.SQL(statement).format(**bounds))
