"""Statements that every check makes: sent by libpq's pipeline mode, so that the agent works on while the server does.

A statement is prepared once a connection; several of one kind go to the server in one trip and are one transaction; and
their rows are waited for later.
"""

import datetime as dt
import select
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import psycopg.abc
from psycopg import Connection, pq
from psycopg.adapt import Transformer

Value = bytes | str | int | dt.date | None
Row = tuple[Any, ...]
_GOOD = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
_SYNCED = pq.ExecStatus.PIPELINE_SYNC
_TEXT, _BINARY = int(pq.Format.TEXT), int(pq.Format.BINARY)


@dataclass(frozen=True)
class _Known:
    """What is known of a connection: how its rows are read, which takes long to find out, what waits for its answers,
    and what it has prepared.
    """

    reader: psycopg.abc.Transformer
    waiting: select.poll
    prepared: set[bytes] = field(default_factory=set)


_KNOWN = "known_statements"
"""Where a connection has what is known of it. The reader leads back to the connection: nothing else may lead to it."""


class Statement:
    """A statement with parameters $1, $2, … whose types follow from it: a function's arguments, or with casts."""

    def __init__(self, name: str, sql: str) -> None:
        self._name = name.encode()
        self._sql = sql.encode()

    def send(self, connection: Connection[Any], asked: Sequence[Sequence[Value]]) -> "Sent":
        """Send the statement once for each of these parameters, as one transaction; the connection is idle and in
        autocommit. Raises `psycopg.OperationalError` if the connection is broken.
        """
        known: _Known | None = getattr(connection, _KNOWN, None)
        if known is None:
            known = _Known(Transformer.from_context(connection), select.poll())
            known.waiting.register(connection.pgconn.socket, select.POLLIN)
            setattr(connection, _KNOWN, known)
        prepares = self._name not in known.prepared
        given = [_written(values) for values in asked]  # what cannot be written is not begun
        server = connection.pgconn
        server.enter_pipeline_mode()
        if prepares:
            server.send_prepare(self._name, self._sql)
        for written, forms in given:
            server.send_query_prepared(self._name, written, forms, _BINARY)
        server.pipeline_sync()
        return Sent(self, connection, asked, known, prepares=prepares)

    def note(self, known: _Known, *, is_prepared: bool) -> None:
        """Note whether a connection has the statement prepared."""
        (known.prepared.add if is_prepared else known.prepared.discard)(self._name)


class Sent:
    """Statements under way; `rows` ends them."""

    def __init__(
        self,
        statement: Statement,
        connection: Connection[Any],
        asked: Sequence[Sequence[Value]],
        known: _Known,
        *,
        prepares: bool,
    ) -> None:
        self._statement = statement
        self._connection = connection
        self._asked = asked
        self._known = known
        self._prepares = prepares
        self.is_done = False
        """Whether nothing more comes, so that the connection is free for others."""
        self._flush()

    def rows(self) -> list[list[Row]]:
        """Wait; return the rows of each statement, durable with all that they did. Raises `psycopg.Error`, with no
        effect unless the connection broke.
        """
        server, reader = self._connection.pgconn, self._known.reader
        found: list[list[Row]] = []
        fault: psycopg.Error | None = None
        is_prepared = True  # what is prepared stays so, whatever becomes of the transaction
        for place in range(self._prepares + len(self._asked)):
            result = self._result()
            if result is None or result.status not in _GOOD:
                if fault is None:  # what comes after one that failed is refused for that alone
                    fault = _error(result)
                    forgotten = isinstance(fault, psycopg.errors.InvalidSqlStatementName)
                    is_prepared = place >= self._prepares and not forgotten
            elif place >= self._prepares:
                reader.set_pgresult(result)
                found.append(reader.load_rows(0, result.ntuples, tuple))
            while result is not None:
                result = self._result()
        synced = self._result()
        if synced is None or synced.status != _SYNCED:
            raise psycopg.OperationalError("the connection is out of step")
        reader.set_pgresult(None)
        server.exit_pipeline_mode()
        self.is_done = True
        self._statement.note(self._known, is_prepared=is_prepared)
        if isinstance(fault, psycopg.errors.InvalidSqlStatementName) and not self._prepares:
            # After a ROLLBACK psycopg has all forgotten that was prepared on a connection. Nothing was done.
            again = self._statement.send(self._connection, self._asked)
            try:
                return again.rows()
            finally:
                self.is_done = again.is_done
        if fault is not None:
            raise fault
        return found

    def _flush(self) -> None:
        """Send what is still here; what arrives meanwhile is taken in, or both ends would wait for each other."""
        server, waiting = self._connection.pgconn, self._known.waiting
        while server.flush():
            waiting.modify(server.socket, select.POLLIN | select.POLLOUT)
            try:
                waiting.poll()
            finally:
                waiting.modify(server.socket, select.POLLIN)
            server.consume_input()

    def _result(self) -> pq.abc.PGresult | None:
        server = self._connection.pgconn
        while server.is_busy():
            self._known.waiting.poll()
            server.consume_input()
        return server.get_result()


def _written(values: Sequence[Value]) -> tuple[list[bytes | None], list[int]]:
    """Return parameters as they are sent, with their formats."""
    written = [value if value is None or isinstance(value, bytes) else str(value).encode() for value in values]
    return written, [_BINARY if isinstance(value, bytes) else _TEXT for value in values]


def _error(result: pq.abc.PGresult | None) -> psycopg.Error:
    state = None if result is None else result.error_field(pq.DiagnosticField.SQLSTATE)
    if state is None:
        return psycopg.OperationalError("the server gave no result")
    try:
        return psycopg.errors.lookup(state.decode())("the server refused a statement")
    except KeyError:
        return psycopg.DatabaseError("the server refused a statement")
