"""Connections and named, retried transactions."""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.resources import files
from typing import Any, TypeVar

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool, PoolTimeout

from insurer_agent.store.locks import Lock
from insurer_agent.store.spares import Spares
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
        self._spares = Spares(self._pool)

    def close(self) -> None:
        """Close all connections."""
        self._spares.close()
        self._pool.close(timeout=5)

    def migrate(self) -> None:
        """Create what is missing; safe to run from several processes at once."""
        schema = files("insurer_agent.store").joinpath("schema.sql").read_text(encoding="utf-8")

        def apply(connection: Rows) -> None:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (Lock.SCHEMA,))
            connection.execute(schema.encode())

        self._spares.put_back()
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

        return self.tried(name, once)

    def begun(
        self, name: str, statement: Statement, asked: Sequence[Sequence[Value]]
    ) -> AbstractContextManager[Callable[[], list[list[Row]]]]:
        """Have a statement run, once for each of these parameters and all in one transaction, while the block goes on.

        Yields what waits, and returns the rows of each: then it is done as by `run`. A block that ends without
        waiting knows nothing: the transaction may be done or not.
        """
        return _Begun(self, name, statement, asked)

    def tried(self, name: str, once: Callable[[], T]) -> T:
        """Do a transaction, and again where the server asks for that or a connection breaks."""
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
                self._spares.put_back()
                self._pool.check()
        raise Problem(503, "database-unavailable", "the agent's database does not answer", hint="try again shortly")

    @contextmanager
    def _connection(self) -> Iterator[Rows]:
        connection = self.take()
        try:
            yield connection
        finally:
            self.give_back(connection)

    def take(self) -> Rows:
        """Return a connection that is to be given back. Raises `psycopg.OperationalError` if there is none in time."""
        try:
            return self._spares.take()
        except PoolTimeout:
            raise psycopg.OperationalError("no connection in time") from None

    def give_back(self, connection: Rows) -> None:
        """Let others have a connection; the pool looks after one that is broken or in a transaction still."""
        self._spares.give_back(connection)

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


class _Begun:
    """See `Database.begun`. A class, as every check begins some: made of generators it takes twice as long."""

    def __init__(self, database: Database, name: str, statement: Statement, asked: Sequence[Sequence[Value]]) -> None:
        self._database, self._name, self._statement, self._asked = database, name, statement, asked
        self._connection: Rows | None = None
        self._sent: Sent | None = None
        self._fault: psycopg.Error | None = None
        """Why it could not be sent, which is told to whom waits."""
        self._is_tried = False
        self._outcome: list[list[Row]] | Problem | None = None

    def __enter__(self) -> Callable[[], list[list[Row]]]:
        try:
            self._send()
        except psycopg.Error as error:
            self._fault = error
        except BaseException:
            self.__exit__()
            raise
        return self._rows

    def __exit__(self, *_: object) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if self._sent is not None and not self._sent.is_done:  # who uses it next must not meet these answers
                connection.close()
        finally:
            self._database.give_back(connection)

    def _send(self) -> Sent:
        self._sent = None
        self._connection = connection = self._database.take()
        self._sent = self._statement.send(connection, self._asked)
        return self._sent

    def _rows(self) -> list[list[Row]]:
        if self._outcome is None:
            try:
                self._outcome = self._database.tried(self._name, self._once)
            except Problem as problem:
                self._outcome = problem
        if isinstance(self._outcome, Problem):
            raise self._outcome
        return self._outcome

    def _once(self) -> list[list[Row]]:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault
        sent = self._sent
        if sent is None or self._is_tried:
            self.__exit__()  # the connection of the try before is another's again
            sent = self._send()
        self._is_tried = True
        return sent.rows()


def _answers(connection: Rows) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True
