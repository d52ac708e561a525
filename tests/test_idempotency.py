"""Idempotency-Keys, kept in PostgreSQL or in Redis by one contract: once, again as it was, and never another's."""

import multiprocessing
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import pytest
from consuming import wait_until
from embedded_redis import EmbeddedRedis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import seeded

from insurer_agent.store.database import Database
from insurer_agent.store.idempotency import (
    KEPT_HOURS,
    Idempotency,
    IdempotencyAwayError,
    Place,
    PostgresIdempotency,
    StoredAnswer,
)
from insurer_agent.store.redis_idempotency import RedisIdempotency
from insurer_agent.store.vault import Vault
from protocol.secret import Secret
from transport.problems import Problem
from transport.redis_link import RedisLink

STORAGE_KEY = Secret(bytes(range(32)))
API_KEY = "cover_" + "5a" * 32
DAY = KEPT_HOURS * 3600
REQUEST = b'["POST", "/v1/checks", {"subject": {"document_number": "E77777777"}, "proposed_amount": "7654321.00"}]'
ANSWER = b'{"status": 200, "body": {"verdict": "within", "reference": "MARK-7"}}'


@dataclass(frozen=True)
class Backend:
    """Where answers are kept; `age` has that many seconds pass there."""

    open: Callable[[], Idempotency]
    age: Callable[[int], None]

    @property
    def store(self) -> Idempotency:
        return self.open()


def postgres_store(dsn: str) -> PostgresIdempotency:
    return PostgresIdempotency(Database(dsn, size=4), vault(), secrets.token_bytes)


def redis_store(url: str, seconds: float = 20.0) -> RedisIdempotency:
    return RedisIdempotency(RedisLink(url, "tests", seconds), ("agent", "insurer-01"), vault(), secrets.token_bytes)


def vault() -> Vault:
    return Vault(STORAGE_KEY, "idempotency", secrets.token_bytes)


@pytest.fixture
def redis(redis_server: EmbeddedRedis) -> EmbeddedRedis:
    with redis_server.client() as client:
        client.flushall()
    return redis_server


@pytest.fixture(params=["postgresql", "redis"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "postgresql":
        dsn: str = request.getfixturevalue("database")
        with closing(Database(dsn, size=4)) as database:
            database.migrate()

            def age(seconds: int) -> None:
                change = "UPDATE idempotency SET started_at = started_at - make_interval(secs => %s)"
                database.run("age", lambda connection: connection.execute(change, (seconds,)))

            yield Backend(partial(postgres_store, dsn), age)
        return
    server: EmbeddedRedis = request.getfixturevalue("redis")
    with server.client() as client:

        def age(seconds: int) -> None:
            for key in client.scan_iter():
                client.pexpire(key, client.pttl(key) - seconds * 1000)

        yield Backend(partial(redis_store, server.url), age)


@pytest.fixture
def store(backend: Backend) -> Iterator[Idempotency]:
    store = backend.store
    yield store
    close(store)


def close(store: Idempotency) -> None:
    if isinstance(store, PostgresIdempotency):
        store._database.close()
    else:
        assert isinstance(store, RedisIdempotency)
        store._link.close()


def begun(store: Idempotency, key: str = "K-1", request: bytes = REQUEST, api_key: str = API_KEY) -> Place:
    place = store.begin(api_key, key, request)
    assert isinstance(place, Place)
    return place


def told(store: Idempotency, key: str = "K-1", request: bytes = REQUEST) -> str:
    """Return the stored answer, or the code of the refusal."""
    try:
        found = store.begin(API_KEY, key, request)
    except Problem as problem:
        return problem.code
    assert isinstance(found, StoredAnswer)
    return found.body.decode()


# --- the contract --------------------------------------------------------------------------------------------------


def test_a_request_is_answered_again_as_it_was_and_another_under_its_key_is_refused(store: Idempotency) -> None:
    place = begun(store)
    assert told(store) == "idempotency-key-in-use"
    assert told(store, request=b"other") == "idempotency-key-reused"
    assert store.keep(place, ANSWER)
    assert told(store) == ANSWER.decode()
    assert told(store, request=b"other") == "idempotency-key-reused"
    begun(store, key="K-2")
    begun(store, api_key=API_KEY[:-1] + "b")


def test_a_request_that_came_to_nothing_leaves_its_key_free(store: Idempotency) -> None:
    store.release(begun(store))
    assert store.keep(begun(store, request=b"other"), ANSWER)
    assert told(store, request=b"other") == ANSWER.decode()


def test_a_request_whose_process_was_killed_is_taken_over_after_a_minute(backend: Backend, store: Idempotency) -> None:
    first = begun(store)
    backend.age(55)
    assert told(store) == "idempotency-key-in-use"
    backend.age(6)
    second = begun(store)
    assert not store.keep(first, b"late")  # it was not killed after all
    store.release(first)
    assert told(store) == "idempotency-key-in-use"
    assert store.keep(second, ANSWER)
    assert not store.keep(first, b"late")
    assert told(store) == ANSWER.decode()


def test_an_answer_is_kept_for_a_day(backend: Backend, store: Idempotency) -> None:
    assert store.keep(begun(store), ANSWER)
    backend.age(DAY - 60)
    assert told(store) == ANSWER.decode()
    backend.age(61)
    store.forget_old()
    begun(store, request=b"other")


def raced(opened: Callable[[], Idempotency], keys: list[str]) -> list[tuple[str, str]]:
    """Begin each key with four threads and keep an answer where it is ours; return what became of each."""
    store = opened()

    def one(key: str) -> tuple[str, str]:
        try:
            place = store.begin(API_KEY, key, REQUEST)
        except Problem as problem:
            return key, problem.code
        if isinstance(place, StoredAnswer):
            return key, place.body.decode()
        return key, "done" if store.keep(place, ANSWER) else "not kept"

    with ThreadPoolExecutor(4) as pool:
        became = list(pool.map(one, [key for key in keys for _ in range(4)]))
    close(store)
    return became


def test_of_requests_at_once_over_threads_and_processes_one_is_done(backend: Backend) -> None:
    keys = [f"K-{number}" for number in range(60)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        became = [one for each in pool.starmap(raced, [(backend.open, keys)] * 2) for one in each]
    assert sorted(key for key, what in became if what == "done") == sorted(keys)
    assert {what for _, what in became} <= {"done", "idempotency-key-in-use", ANSWER.decode()}


operations = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "ask", "keep", "release", "hour", "minute", "day"]), st.integers(0, 5)),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations)
def test_whatever_is_asked_kept_and_let_go_in_whatever_order_is_as_the_contract_says(
    backend: Backend, store: Idempotency, asked: list[tuple[str, int]]
) -> None:
    names = secrets.token_hex(4)  # keys of this example alone
    under_way: dict[str, tuple[Place, bytes]] = {}
    answers: dict[str, tuple[bytes, bytes, int]] = {}
    now = 0
    for what, number in asked:
        key, request = f"{names}-{number % 2}", b"request %d" % (number % 3)
        if what in ("minute", "hour", "day"):
            passed = {"minute": 61, "hour": 3600, "day": DAY + 1}[what]
            backend.age(passed)
            now += passed
            under_way.clear()
            answers = {name: kept for name, kept in answers.items() if kept[2] + DAY > now}
        elif what == "ask":
            standing = under_way[key][1] if key in under_way else answers[key][1] if key in answers else None
            if standing is None:
                under_way[key] = (begun(store, key, request), request)
            elif standing != request:
                assert told(store, key, request) == "idempotency-key-reused"
            else:
                assert told(store, key, request) == (
                    answers[key][0].decode() if key in answers else "idempotency-key-in-use"
                )
        elif key in under_way:
            place, made = under_way.pop(key)
            if what == "keep":
                answers[key] = (secrets.token_hex(4).encode(), made, now)
                assert store.keep(place, answers[key][0])
            else:
                store.release(place)


# --- Redis away, forgetful or written to by another ----------------------------------------------------------------


def test_while_redis_is_away_nobody_is_told_that_a_request_is_new(redis: EmbeddedRedis) -> None:
    store = redis_store(redis.url)
    with closing(store._link):
        place = begun(store)
        with redis.killed():
            assert told(store) == told(store, "K-2") == "idempotency-unavailable"
            for lost in (partial(store.keep, place, ANSWER), partial(store.release, place)):
                with pytest.raises(IdempotencyAwayError):
                    lost()
        wait_until(lambda: told(store) != "idempotency-unavailable")
        assert told(store) == "idempotency-key-in-use"
        assert store.keep(place, ANSWER)
        assert told(store) == ANSWER.decode()
        begun(store, "K-2")


def test_a_request_that_redis_took_after_all_is_under_way_until_it_lapses(redis: EmbeddedRedis) -> None:
    store = redis_store(redis.url, 0.2)
    with closing(store._link), redis.client() as client:
        begun(store, "K-0")
        with redis.stopped():
            assert told(store) == "idempotency-unavailable"
        wait_until(lambda: client.dbsize() == 2)
        wait_until(lambda: told(store) == "idempotency-key-in-use")
        client.flushall()
        begun(store)


def test_what_redis_has_forgotten_is_new_and_an_answer_under_way_is_not_kept(redis: EmbeddedRedis) -> None:
    store = redis_store(redis.url)
    with closing(store._link), redis.client() as client:
        assert store.keep(begun(store), ANSWER)
        place = begun(store, "K-2")
        client.flushall()
        assert not store.keep(place, ANSWER)
        begun(store)
        second = begun(store, "K-2", b"other")
        assert not store.keep(place, ANSWER)
        assert store.keep(second, b"{}")
        assert told(store, "K-2", b"other") == "{}"


def test_whoever_writes_in_redis_gives_nobody_a_wrong_or_an_old_answer(redis: EmbeddedRedis) -> None:
    now = [time.time()]
    link = RedisLink(redis.url, "tests", 20.0)
    store = RedisIdempotency(link, ("agent", "insurer-01"), vault(), secrets.token_bytes, lambda: now[0])
    with closing(link), redis.client() as client:
        assert store.keep(begun(store), ANSWER)
        (key,) = client.scan_iter()
        good = client.get(key)
        assert store.keep(begun(store, "K-2", b"other"), b"another answer")
        (other_key,) = set(client.scan_iter()) - {key}
        other = client.get(other_key)
        random = seeded("where to damage")
        bent = [bytes([*good[:at], good[at] ^ 1 << bit, *good[at + 1 :]]) for at in range(len(good)) for bit in (0, 7)]
        junk = [b"", b"x", good[:-1], good[:55], good[:56], good + b"\0", other, good[:48] + other[48:], random(80)]
        junk.append(good[:16] + other[16:48] + good[48:])  # the answer filed as that to the other request
        for value in (*bent, *junk):
            client.set(key, value)
            said = told(store), told(store, request=b"other")
            assert said[0] in {"idempotency-unavailable", "idempotency-key-reused", ANSWER.decode()}
            assert said[1] in {"idempotency-unavailable", "idempotency-key-reused"}
            assert said[0] != ANSWER.decode() or value[16:] == good[16:]  # of the claim nothing depends any more
        client.set(key, good)
        now[0] += DAY + 61
        assert told(store) == "idempotency-unavailable"


def test_nothing_that_is_sent_to_redis_or_kept_there_is_to_be_read(redis: EmbeddedRedis) -> None:
    store = redis_store(redis.url)
    with closing(store._link), redis.watched() as seen:
        place = begun(store, "K-CANARY")
        told(store, "K-CANARY")
        store.keep(place, ANSWER)
        assert told(store, "K-CANARY") == ANSWER.decode()
        store.release(begun(store, "K-CANARY-2"))
        text = seen()
    assert text.count("EVAL") >= 5
    assert place.key_index.hex() in text
    for mark in ("CANARY", "E77777777", "7654321", "within", "MARK-7", "cover_", API_KEY[6:], "/v1/checks"):
        assert mark not in text
