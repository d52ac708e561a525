"""Connections that are free go out again, the last first, and the pool still bounds, judges and closes them."""

import threading
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from live import wait_until
from psycopg.pq import TransactionStatus

from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.store import spares
from insurer_agent.store.database import Database, Rows

SIZE = 6


@pytest.fixture(scope="module")
def place(postgres: EmbeddedPostgres) -> str:
    postgres.create_database("spares")
    return postgres.dsn("spares")


@pytest.fixture
def store(place: str) -> Iterator[Database]:
    database = Database(place, size=SIZE)
    database._pool.timeout = 20.0  # a busy machine may take long for another connection
    yield database
    database.close()


def taken(store: Database, count: int) -> list[Rows]:
    return [store.take() for _ in range(count)]


def give_back(store: Database, connections: list[Rows]) -> None:
    for connection in connections:
        store.give_back(connection)


def in_pool(store: Database) -> int:
    return store._pool.get_stats()["pool_available"]


def test_the_one_used_last_goes_out_first(store: Database) -> None:
    first, second = taken(store, 2)
    give_back(store, [first, second])
    for _ in range(5):
        assert store.take() is second
        store.give_back(second)
    assert taken(store, 2) == [second, first]
    give_back(store, [first, second])


def test_what_is_more_than_a_few_is_the_pools(store: Database) -> None:
    give_back(store, taken(store, SIZE))
    assert in_pool(store) == SIZE - spares._MOST
    every = taken(store, SIZE)
    assert len({id(connection) for connection in every}) == SIZE
    give_back(store, every)


def test_who_waits_is_given_what_comes_back(store: Database) -> None:
    every, found = taken(store, SIZE), []
    waiting = threading.Thread(target=lambda: found.append(store.take()))
    waiting.start()
    wait_until(lambda: store._pool.get_stats()["requests_waiting"] == 1, 20)
    store.give_back(every[0])
    waiting.join(20)
    assert found == every[:1]
    give_back(store, every)


def test_none_is_with_two_and_there_are_no_more_than_may_be(store: Database) -> None:
    out: Counter[int] = Counter()
    seen: list[int] = []

    def use() -> None:
        for _ in range(50):
            connection = store.take()
            out[id(connection)] += 1
            seen.append(out[id(connection)])
            assert connection.execute("SELECT 1").fetchone() == (1,)
            out[id(connection)] -= 1
            store.give_back(connection)

    threads = [threading.Thread(target=use) for _ in range(2 * SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [1] * (2 * SIZE * 50)
    assert len(out) <= SIZE


def test_one_in_a_transaction_comes_back_without_it_and_a_closed_one_not_at_all(store: Database) -> None:
    connection = store.take()
    connection.execute("BEGIN")
    store.give_back(connection)
    connection = store.take()
    assert connection.pgconn.transaction_status == TransactionStatus.IDLE
    connection.close()
    store.give_back(connection)
    assert store.run("plain", lambda another: another.execute("SELECT 1").fetchone()) == (1,)


def test_all_that_the_server_has_ended_are_replaced(store: Database, place: str) -> None:
    give_back(store, taken(store, SIZE))
    with psycopg.connect(place, autocommit=True) as aside:
        aside.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    for _ in range(SIZE):
        assert store.run("plain", lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)


def test_the_pool_judges_now_and_then_what_is_used_always(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = taken(store, 2)
    give_back(store, [first, second])
    store._pool.drain()  # all that are open now have reached their age
    third = store.take()
    assert third is second
    assert not first.closed
    monkeypatch.setattr(store._spares, "_put_back_at", 0.0)
    store.give_back(third)
    assert (first.closed, second.closed) == (True, True)
    assert store.run("plain", lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)


def test_all_are_closed_at_the_end_whenever_they_come_back(place: str) -> None:
    database = Database(place, size=SIZE)
    late, early = taken(database, 2)
    database.give_back(early)
    database.close()
    assert (early.closed, late.closed) == (True, False)
    database.give_back(late)
    assert late.closed


def test_migrating_again_waits_for_nothing(store: Database) -> None:
    store.migrate()
    store.migrate()
