"""The rows of a query at the insurer's own database, fetched a part at a time; see `intake/rows.Source`.

The query runs in a transaction that can only read. A query has no row for its header, so its first row is number 1.
"""

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from insurer_agent.intake.errors import FileRejected, IntakeError
from insurer_agent.intake.policy_file import PolicyFile
from insurer_agent.intake.profile import Profile
from insurer_agent.intake.rows import (
    MAX_CELL_CHARACTERS,
    Cell,
    Number,
    RawRow,
    Unusable,
    decimal_cell,
    is_blank,
    lost_digits,
    number_cell,
    text_of,
)

ROWS_A_FETCH = 2000
MAX_QUERY_BYTES = 1 << 20
_CONNECT_SECONDS = 10
_FLOAT4 = 700
"""PostgreSQL's type of 32-bit floating-point numbers, which cannot tell 16777216 from 16777217."""


class SqlRows:
    """A query of PostgreSQL. Raises FileRejected, query-failed, without the server's message, which may quote data."""

    ragged = False

    def __init__(self, dsn: str, query: str) -> None:
        self._dsn = dsn
        self._query = query

    def fraction(self) -> float | None:
        """Return None: how much a query will give is not known."""
        return None

    def rows(self) -> Iterator[RawRow]:
        """Yield the columns' names as row 0, then the rows that are not blank."""
        try:
            with psycopg.connect(self._dsn, connect_timeout=_CONNECT_SECONDS) as connection:
                connection.read_only = True
                with connection.cursor("policies") as cursor:
                    cursor.itersize = ROWS_A_FETCH
                    cursor.execute(sql.SQL(self._query))
                    described = cursor.description or ()
                    yield RawRow(0, tuple(column.name for column in described))
                    inexact = [place for place, column in enumerate(described) if column.type_code == _FLOAT4]
                    for number, values in enumerate(cursor, 1):
                        cells = tuple(map(_cell, values))
                        if inexact:
                            cells = tuple(_without_float4(cell, place in inexact) for place, cell in enumerate(cells))
                        if not is_blank(cells):
                            yield RawRow(number, cells)
        except psycopg.OperationalError as error:
            state = f", SQLSTATE {error.sqlstate}" if error.sqlstate else ""
            raise FileRejected("query-failed", f"the database cannot be reached or has failed{state}") from None
        except psycopg.Error as error:
            state = (
                f"database refuses the query, SQLSTATE {error.sqlstate}" if error.sqlstate else "query cannot be run"
            )
            raise FileRejected("query-failed", f"the {state}") from None


def open_query(file: Path, profile: Profile, *, dsn: str) -> PolicyFile:
    """Return the policies that the query in a file gives; raise FileRejected or OSError."""
    with file.open("rb") as source:
        text = source.read(MAX_QUERY_BYTES + 1)
    try:
        query = text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileRejected("query-failed", "the query file is not UTF-8 text") from None
    if len(text) > MAX_QUERY_BYTES:
        raise FileRejected("query-failed", "the query file is too long")
    # A cursor takes one statement, without its mark at the end.
    return PolicyFile.of_source(SqlRows(dsn, query.strip().rstrip(";")), profile)


def _without_float4(cell: Cell, inexact: bool) -> Cell:  # noqa: FBT001 - what it says of the cell
    return Unusable(text_of(cell), lost_digits()) if inexact and cell != "" else cell


def _cell(value: Any) -> Cell:  # noqa: ANN401, PLR0911 - what a query gives; a return for each type
    match value:
        case None:
            return ""
        case str():
            if len(value) > MAX_CELL_CHARACTERS:
                fault = IntakeError("cell-too-long", f"a cell is longer than {MAX_CELL_CHARACTERS} characters")
                return Unusable(value[:MAX_CELL_CHARACTERS], fault)
            return value
        case bool():
            return str(value)
        case int():
            return Number(str(value))
        case Decimal():
            return decimal_cell(value, str(value))
        case float():
            return number_cell(value, repr(value))
        case dt.date():
            return value
        case _:
            return Unusable("", IntakeError("cell-type", "column has a type that is not read"))
