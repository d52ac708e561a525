"""Connections and named, retried transactions."""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool, PoolTimeout

from insurer_agent.store.locks import Lock
from insurer_agent.store.statements import Row, Sent, Statement, Value
from transport.problems import Problem

T = TypeVar("T")
Rows = Connection[tuple[Any, ...]]

log = logging.getLogger(__name__)
_random = secrets.SystemRandom()

APPLICATION_NAME = "insurer-agent"
MAX_TRIES = 5
_PAUSE_SECONDS = 0.02
"""Before another try, at random and longer each time: one that is repeated at once meets the same other again."""
_OPTIONS = (
    r"-c default_transaction_isolation=read\ committed"  # who waits for his turn sees what was done before it
    " -c synchronous_commit=on -c statement_timeout=30s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s"
)
"""Whatever the role's defaults: an answer may leave only when its replay record cannot be lost any more, and no
statement, lock or forgotten transaction holds up the others for good."""
_FIRST_CONNECTION_SECONDS = 15.0


def _require_durable(connection: Rows) -> None:
    row = connection.execute("SELECT current_setting('fsync'), current_setting('full_page_writes')").fetchone()
    if row != ("on", "on"):
        raise Problem(503, "database-not-durable", "the database server runs with fsync or full_page_writes off")


class Database:
    """A pool of connections to the agent's PostgreSQL."""

    def __init__(self, dsn: str, *, size: int) -> None:
        # Failing fast beats queueing: a check has two seconds in all.
        options = f"{conninfo_to_dict(dsn).get('options') or ''} {_OPTIONS}"
        conninfo = make_conninfo(dsn, connect_timeout=5, application_name=APPLICATION_NAME, options=options)
        self._pool = ConnectionPool(
            conninfo,
            kwargs={"autocommit": True},  # transactions are begun by `run` alone
            min_size=1,
            max_size=size,
            timeout=1.0,
            open=False,
            name="agent",
        )
        self._pool.open()

    def close(self) -> None:
        """Close all connections."""
        self._pool.close(timeout=5)

    def migrate(self) -> None:
        """Create what is missing; safe to run from several processes at once."""
        schema = files("insurer_agent.store").joinpath("schema.sql").read_text(encoding="utf-8")

        def apply(connection: Rows) -> None:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (Lock.SCHEMA,))
            connection.execute(schema.encode())

        try:
            self._pool.wait(_FIRST_CONNECTION_SECONDS)  # many agents may start at once on a slow machine
        except PoolTimeout:
            raise Problem(503, "database-unavailable", "the agent's database cannot be reached") from None
        self.run("migrate", apply)
        self.run("check durability", _require_durable)

    def run(
        self, name: str, transaction: Callable[[Rows], T], *, snapshot: bool = False, one_statement: bool = False
    ) -> T:
        """Run a transaction; retry it when the server asks for that.

        It is durable once this returns, and without effect when it raises. With `snapshot` it is read-only and sees
        one state of the database. What consists of `one_statement` does so, and is a transaction, by itself: that saves
        trips to the server. Raises `Problem` (503, `database-unavailable`) when the server cannot be reached.
        """

        def once() -> T:
            with self._connection() as connection, nullcontext() if one_statement else connection.transaction():
                if snapshot:
                    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                return transaction(connection)

        return self._tried(name, once)

    @contextmanager
    def begun(
        self, name: str, statement: Statement, asked: Sequence[Sequence[Value]]
    ) -> Iterator[Callable[[], list[list[Row]]]]:
        """Have a statement run, once for each of these parameters and all in one transaction, while the block goes on.

        Yields what waits, and returns the rows of each: then it is done as by `run`. A block that ends without
        waiting knows nothing: the transaction may be done or not.
        """
        with ExitStack() as held:
            sent: Sent | psycopg.Error | None
            try:
                sent = held.enter_context(self._sent(statement, asked))
            except psycopg.Error as error:
                sent = error

            def once() -> list[list[Row]]:
                nonlocal sent
                begun, sent = sent, None
                if isinstance(begun, psycopg.Error):
                    raise begun
                if begun is not None:
                    return begun.rows()
                held.close()  # the connection of the try before is another's again
                with self._sent(statement, asked) as again:
                    return again.rows()

            @cache
            def outcome() -> list[list[Row]] | Problem:
                try:
                    return self._tried(name, once)
                except Problem as problem:
                    return problem

            def rows() -> list[list[Row]]:
                found = outcome()
                if isinstance(found, Problem):
                    raise found
                return found

            yield rows

    @contextmanager
    def _sent(self, statement: Statement, asked: Sequence[Sequence[Value]]) -> Iterator[Sent]:
        with self._connection() as connection:
            sent = statement.send(connection, asked)
            try:
                yield sent
            finally:
                if not sent.is_done:  # who uses it next must not meet these answers
                    connection.close()

    def _tried(self, name: str, once: Callable[[], T]) -> T:
        """Do it, and again where the server asks for that or a connection breaks."""
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return once()
            except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                log.warning("transaction %s: try %d of %d failed, retried", name, attempt, MAX_TRIES)
                time.sleep(_random.uniform(1, 2**attempt) * _PAUSE_SECONDS)
            except psycopg.OperationalError as error:
                # A connection that the server closed says nothing of the transaction unless it was in COMMIT;
                # what runs here bears being repeated, so one more try with a checked connection is safe.
                log.warning("transaction %s: the database is not answering (%s)", name, type(error).__name__)
                if attempt > 1:
                    break
                self._pool.check()
        raise Problem(503, "database-unavailable", "the agent's database does not answer", hint="try again shortly")

    @contextmanager
    def _connection(self) -> Iterator[Rows]:
        try:
            connection = self._pool.getconn()
        except PoolTimeout:
            raise psycopg.OperationalError("no connection in time") from None
        try:
            yield connection
        finally:
            self._pool.putconn(connection)  # which looks after one that is broken or in a transaction still

    @contextmanager
    def exclusively(self, lock: int) -> Iterator[bool]:
        """Hold an advisory lock of the whole database for the block; yields False if another process holds it."""
        with self.lease(lock) as held:
            yield held()

    @contextmanager
    def lease(self, lock: int) -> Iterator[Callable[[], bool]]:
        """Like `exclusively`, yielding what asks the server whether this process holds the lock, now and later.

        The server takes the lock back when the connection ends, which nobody notices who does not ask.
        """
        with self._connection() as connection:
            row = connection.execute("SELECT pg_try_advisory_lock(%s)", (lock,)).fetchone()
            taken = bool(row and row[0])
            try:
                yield lambda: taken and _answers(connection)
            finally:
                if taken and not connection.closed:
                    connection.execute("SELECT pg_advisory_unlock(%s)", (lock,))


def _answers(connection: Rows) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True
