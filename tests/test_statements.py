"""Statements that go to the server past psycopg's cursors do what its own do, also when something goes wrong."""

import datetime as dt
import gc
import logging
import threading
import weakref
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import wait_until
from strategies import deterministic

from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.store.database import Database
from insurer_agent.store.statements import Statement
from transport.problems import Problem

NOTE = Statement("note", "INSERT INTO noted (number, word, day, data) VALUES ($1, $2, $3, $4) RETURNING *")
DIVIDE = Statement("divide", "SELECT 10 / $1::integer")
DAY = dt.date(2026, 2, 28)


@pytest.fixture(scope="module")
def place(postgres: EmbeddedPostgres) -> str:
    postgres.create_database("statements")
    return postgres.dsn("statements")


@pytest.fixture
def store(place: str) -> Iterator[Database]:
    with psycopg.connect(place, autocommit=True) as aside:
        aside.execute("DROP TABLE IF EXISTS noted")
        aside.execute("CREATE TABLE noted (number bigint PRIMARY KEY, word text, day date, data bytea)")
    database = Database(place, size=2)
    yield database
    database.close()


def noted(place: str) -> list[int]:
    with psycopg.connect(place, autocommit=True) as aside:
        return [number for (number,) in aside.execute("SELECT number FROM noted ORDER BY number")]


def end_backends(place: str) -> None:
    with psycopg.connect(place, autocommit=True) as aside:
        aside.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


values = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))),
    st.dates(),
    st.binary(),
)


@deterministic(60)
@given(rows=st.lists(values, min_size=1, max_size=20, unique_by=lambda row: row[0]))
def test_what_is_sent_comes_back_as_it_was(place: str, rows: list[tuple[int, str, dt.date, bytes]]) -> None:
    echo = Statement("echo", "SELECT $1::bigint, $2::text, $3::date, $4::bytea")
    with psycopg.connect(place, autocommit=True) as connection:
        assert echo.send(connection, rows).rows() == [[row] for row in rows]
        asked = [connection.execute("SELECT %s::bigint, %s::text, %s::date, %s::bytea", row).fetchall() for row in rows]
        assert asked == [[row] for row in rows]


def test_several_are_one_transaction(store: Database, place: str) -> None:
    with store.begun("note", NOTE, [(1, "one", DAY, b"\0"), (2, "two", DAY, b"\1")]) as rows:
        assert rows() == [[(1, "one", DAY, b"\0")], [(2, "two", DAY, b"\1")]]
        assert rows() == [[(1, "one", DAY, b"\0")], [(2, "two", DAY, b"\1")]]  # asked again, it is what it was
    assert noted(place) == [1, 2]
    with (
        pytest.raises(psycopg.errors.UniqueViolation),
        store.begun("note", NOTE, [(3, "three", DAY, b""), (1, "one", DAY, b""), (4, "four", DAY, b"")]) as rows,
    ):
        rows()
    assert noted(place) == [1, 2]


def test_a_connection_is_good_after_an_error(store: Database) -> None:
    for _ in range(10):
        with pytest.raises(psycopg.errors.DivisionByZero), store.begun("divide", DIVIDE, [(5,), (0,), (2,)]) as rows:
            rows()
        with store.begun("divide", DIVIDE, [(5,), (2,)]) as rows:
            assert rows() == [[(2,)], [(5,)]]
        assert store.run("plain", lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)


def test_who_does_not_wait_leaves_nothing_for_the_next(store: Database) -> None:
    for number in range(1, 9):
        with store.begun("divide", DIVIDE, [(number,)]):
            pass
        with pytest.raises(RuntimeError, match="of the block"), store.begun("divide", DIVIDE, [(number,)]):
            raise RuntimeError("of the block")
        with store.begun("divide", DIVIDE, [(10,)]) as rows:
            assert rows() == [[(1,)]]


def test_what_psycopg_has_forgotten_is_prepared_again(store: Database, place: str) -> None:
    with store.begun("note", NOTE, [(1, "one", DAY, b"")]) as rows:
        rows()
    store.run("forget", lambda connection: connection.execute("DEALLOCATE ALL"), one_statement=True)
    with store.begun("note", NOTE, [(2, "two", DAY, b"")]) as rows:
        assert [[number for number, *_ in found] for found in rows()] == [[2]]
    assert noted(place) == [1, 2]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_connection_that_breaks_is_made_good_by_another(store: Database, place: str, when: str) -> None:
    with store.begun("note", NOTE, [(1, "one", DAY, b"")]) as rows:
        rows()
    if when == "before":
        end_backends(place)
    with store.begun("divide", DIVIDE, [(5,)]) as rows:
        if when == "meanwhile":
            end_backends(place)
        assert rows() == [[(2,)]]


def test_nothing_is_kept_of_a_connection_that_is_closed(store: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "psycopg.pool")  # what is logged of a connection is kept, with it, by pytest
    seen = []
    for _ in range(10):
        with store.begun("divide", DIVIDE, [(10,)]) as rows:
            assert rows() == [[(1,)]]
        connection = store.take()
        seen.append(weakref.ref(connection))
        connection.close()
        store.give_back(connection)
        del connection
    gc.collect()
    alive = [one for one in seen if one() is not None]
    assert len(alive) <= 4  # what the pool's three threads did last, and `rows`


def test_what_cannot_be_written_leaves_the_connection_to_others(store: Database) -> None:
    for _ in range(3):  # of two connections
        with pytest.raises(UnicodeEncodeError), store.begun("note", NOTE, [(1, "\ud800", DAY, b"")]):
            raise AssertionError
    with store.begun("divide", DIVIDE, [(5,)]) as rows:
        assert rows() == [[(2,)]]


def test_what_waits_for_a_lock_is_waited_for(store: Database, place: str) -> None:
    wait_for = Statement("wait", "SELECT 1 FROM (SELECT pg_advisory_xact_lock($1)) waited")
    with psycopg.connect(place) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(77)")
        with store.begun("wait", wait_for, [(77,)]) as rows:
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            with psycopg.connect(place, autocommit=True) as aside:
                wait_until(lambda: aside.execute(waiting).fetchone() == (1,), 20)
            holder.commit()
            assert rows() == [[(1,)]]


def test_two_that_lock_each_other_up_are_both_done(store: Database) -> None:
    both = Statement("both", "SELECT 1 FROM (SELECT pg_advisory_xact_lock($1)) waited")
    first, go_on = threading.Barrier(2), []

    def take(order: list[int]) -> None:
        first.wait(20)
        for _ in range(20):
            with store.begun("both", both, [(number,) for number in order]) as rows:
                go_on.append(rows())

    threads = [threading.Thread(target=take, args=(order,)) for order in ([1, 2, 3], [3, 2, 1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert go_on == 40 * [[[(1,)], [(1,)], [(1,)]]]


def test_more_than_the_line_holds_is_sent_while_its_answers_come(place: str) -> None:
    echo = Statement("long", "SELECT $1::bytea")
    asked = [(bytes([number]) * 300_000,) for number in range(30)]
    with psycopg.connect(place, autocommit=True) as connection:
        assert echo.send(connection, asked).rows() == [[row] for row in asked]


def test_no_server_is_told_as_such() -> None:
    nowhere = Database("host=127.0.0.1 port=1 dbname=none connect_timeout=1", size=1)
    try:
        with pytest.raises(Problem, match="database-unavailable"), nowhere.begun("divide", DIVIDE, [(1,)]) as rows:
            rows()
    finally:
        nowhere.close()
