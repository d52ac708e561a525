"""Rates hold over threads, processes and what becomes of Redis; and nobody waits for Redis."""

import logging
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from itertools import pairwise
from math import inf

import pytest
from consuming import wait_until
from embedded_redis import EmbeddedRedis
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from service.limits import RateLimit
from transport.buckets import Buckets, Rate, key_of
from transport.problems import RateLimitedError
from transport.redis_link import RedisAwayError, RedisLink
from transport.settings import SettingsError

PLACE = ("limit", "test", "checks")
SLOW = Rate(0.01, 5)
"""So slow that a test sees no more than a full bucket."""


@pytest.fixture
def redis(redis_server: EmbeddedRedis) -> EmbeddedRedis:
    with redis_server.client() as client:
        client.flushall()
    return redis_server


@pytest.fixture
def link(redis: EmbeddedRedis) -> Iterator[RedisLink]:
    with closing(RedisLink(redis.url, "tests", 0.05)) as link:
        yield link


def patient(redis: EmbeddedRedis) -> RedisLink:
    """Return a link that a busy machine does not make give up."""
    return RedisLink(redis.url, "tests", 20.0)


def taken(buckets: Buckets, tries: int, holder: str = "insurer-01") -> int:
    return sum(buckets.take(holder, 1) == 0 for _ in range(tries))


# --- in one process ------------------------------------------------------------------------------------------------

steps = st.tuples(st.sampled_from([0.0, 0.001, 0.1, 1.0, 7.0, 1000.0]) | st.floats(0, 20), st.integers(1, 12))


@settings(deadline=None)
@given(st.sampled_from([0.01, 0.3, 1.0, 3.0, 200.0, 1e4, 1e6]), st.integers(1, 50), st.lists(steps, max_size=30))
def test_a_bucket_gives_what_flows_in_and_tells_when_there_is_more(
    a_second: float, at_once: int, asked: list[tuple[float, int]]
) -> None:
    now = [1000.0]
    rate = Rate(a_second, at_once)
    buckets = Buckets(PLACE, rate, None, lambda: now[0])
    level, before = Fraction(at_once), int(now[0] * 1e6)
    for pause, count in asked:
        now[0] += pause
        at = int(now[0] * 1e6)
        level, before = min(Fraction(at_once), level + Fraction(at - before, rate.unit)), at
        wait = buckets.take("insurer-01", count)
        if count > at_once:
            assert wait == inf
        elif level >= count:
            assert wait == 0
            level -= count
        else:
            assert Fraction(round(wait * 1e6), rate.unit) == count - level
    assert taken(buckets, at_once + 1, "insurer-02") == at_once  # whatever another has done


@settings(deadline=None)
@given(st.floats(0.01, 1e6), st.integers(1, 200))
def test_a_rate_is_never_exceeded_by_rounding_and_what_fits_at_once_is_given(a_second: float, at_once: int) -> None:
    rate = Rate(a_second, at_once)
    assert 1e6 / rate.unit <= a_second
    assert taken(Buckets(PLACE, rate, None, lambda: 1.0), at_once + 1) == at_once


def test_many_holders_of_full_buckets_are_forgotten() -> None:
    now = [0.0]
    buckets = Buckets(PLACE, Rate(1.0, 2), None, lambda: now[0])
    for holder in range(25_000):
        now[0] += 0.001
        assert buckets.take(str(holder), 2) == 0
    assert len(buckets._full_at) <= 10_001
    assert buckets.take("24999", 1) > 0


def test_a_limit_refuses_with_the_seconds_after_which_it_fits() -> None:
    limit = RateLimit("test", "checks", 0.5)
    limit.take("insurer-01", 5)
    with pytest.raises(RateLimitedError, match="slow down") as refused:
        limit.take("insurer-01", 2)
    assert refused.value.retry_after in (3, 4)
    with pytest.raises(ProtocolError, match="rate-limited") as never:
        limit.take("insurer-01", 6)
    assert isinstance(never.value, RateLimitedError)
    assert never.value.retry_after is None
    limit.take("insurer-02", 5)


# --- shared through Redis ------------------------------------------------------------------------------------------


def test_machines_share_a_members_bucket_and_members_alliances_and_kinds_do_not(redis: EmbeddedRedis) -> None:
    here, there = patient(redis), patient(redis)
    with closing(here), closing(there):
        one, other = Buckets(PLACE, SLOW, here), Buckets(PLACE, SLOW, there)
        assert taken(one, 3) + taken(other, 7) == 5
        assert taken(one, 1) == 0
        assert taken(other, 7, "insurer-02") == 5
        assert taken(Buckets(("limit", "test", "deposits"), SLOW, here), 7) == 5
        assert taken(Buckets(("limit", "another", "checks"), SLOW, here), 7) == 5


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    parts = [("a:b", "c"), ("a", "b:c"), ("a", "b", "c"), ("a%3Ab", "c"), ("保险", "c"), ("", "a"), ("a", "")]
    assert len({key_of(*each) for each in parts}) == len(parts)
    assert all(key_of(*each).isascii() for each in parts)


def test_a_bucket_refills_at_its_rate_and_is_forgotten_when_it_is_full(redis: EmbeddedRedis) -> None:
    with closing(patient(redis)) as link, redis.client() as client:
        buckets = Buckets(PLACE, Rate(20.0, 4), link)
        assert taken(buckets, 4) == 4
        began = time.monotonic()
        wait = buckets.take("insurer-01", 3)
        assert 0 < wait <= 0.15
        assert 0 < client.pttl(key_of(*PLACE, "insurer-01")) <= 200
        wait_until(lambda: buckets.take("insurer-01", 3) == 0)
        assert time.monotonic() - began > wait * 0.9
        wait_until(lambda: client.dbsize() == 0)
        assert taken(buckets, 4) == 4


@pytest.mark.parametrize("held", [b"", b"junk", b"9e15", b"-1", b"nan", b"inf", b"99999999999999999999", b"0x10"])
def test_no_bucket_is_further_from_full_than_an_empty_one_whatever_was_there(redis: EmbeddedRedis, held: bytes) -> None:
    with closing(patient(redis)) as link, redis.client() as client:
        client.set(key_of(*PLACE, "insurer-01"), held)
        wait = Buckets(PLACE, SLOW, link).take("insurer-01", 1)
        assert 0 <= wait <= 100
        assert client.pttl(key_of(*PLACE, "insurer-01")) <= 500_000


RACED = Rate(200.0, 50)
RACE_SECONDS = 1.5


def race(url: str) -> tuple[int, float, float]:
    """Take as fast as can be with four threads; return how much was granted, and from when to when."""

    def run(buckets: Buckets) -> int:
        granted = 0
        while time.monotonic() < until:
            granted += 2 * (buckets.take("insurer-01", 2) == 0)
        return granted

    with closing(RedisLink(url, "tests", 20.0)) as link, ThreadPoolExecutor(4) as pool:
        buckets = Buckets(PLACE, RACED, link)
        began = time.time()
        until = time.monotonic() + RACE_SECONDS
        return sum(pool.map(run, [buckets] * 4)), began, time.time()


def test_over_processes_and_threads_no_more_is_granted_than_flows_in(redis: EmbeddedRedis) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        raced = pool.map(race, [redis.url] * 3)
    granted = sum(count for count, _, _ in raced)
    began, ended = min(start for _, start, _ in raced), max(end for _, _, end in raced)
    assert RACED.at_once <= granted <= RACED.a_second * (ended - began) + RACED.at_once


# --- Redis away ----------------------------------------------------------------------------------------------------


def test_a_limit_holds_in_each_process_while_redis_is_away_and_in_all_when_it_is_back(
    redis: EmbeddedRedis, link: RedisLink, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    buckets = Buckets(PLACE, SLOW, link)
    assert taken(buckets, 3) == 3
    with redis.killed():
        assert taken(buckets, 50) == 5
        told = [record.message for record in caplog.records]
    assert len(told) == 1
    assert "going on without it for tests: ConnectionError at" in told[0]
    with redis.client() as client:
        client.flushall()

        def shared() -> bool:
            buckets.take("insurer-02", 1)
            return bool(client.exists(key_of(*PLACE, "insurer-02")))

        wait_until(shared)
    assert caplog.records[-1].message == "Redis answers again for tests"
    assert taken(buckets, 7, "insurer-03") == 5


def test_redis_that_hangs_is_waited_for_once_and_not_by_every_check(redis: EmbeddedRedis, link: RedisLink) -> None:
    buckets = Buckets(PLACE, SLOW, link)
    buckets.take("insurer-01", 1)
    with redis.stopped(), ThreadPoolExecutor(8) as pool:
        began = time.monotonic()
        assert sum(pool.map(lambda number: taken(buckets, 1, f"m-{number % 10}"), range(400))) == 50
        assert time.monotonic() - began < 2.0  # 400 waits of 50 ms by eight threads would be 2.5 s
    wait_until(lambda: link_answers(link))


def test_after_a_rest_one_asks_and_the_others_go_without_until_it_has_had_an_answer(
    redis: EmbeddedRedis, link: RedisLink
) -> None:
    with redis.killed():
        assert not link_answers(link)
        link._rests_until = 0.0  # as if a second had passed
        assert [link._may_ask() for _ in range(3)] == [True, False, False]
    link._rests_until = 0.0
    wait_until(lambda: link_answers(link))
    assert [link._may_ask() for _ in range(3)] == [True, True, True]


def link_answers(link: RedisLink) -> bool:
    try:
        return bool(link.run("return 1", "any"))
    except RedisAwayError:
        return False


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1", "redis://no-such-host.invalid:6379", "rediss://127.0.0.1:1/0", "unix:///nowhere/s"]
)
def test_a_redis_that_never_answers_costs_nothing_but_the_sharing(url: str) -> None:
    with closing(RedisLink(url, "tests", 0.05)) as link:
        assert taken(Buckets(PLACE, SLOW, link), 20) == 5


def test_redis_that_has_forgotten_gives_a_full_bucket_and_no_more(redis: EmbeddedRedis) -> None:
    with closing(patient(redis)) as link, redis.client() as client:
        buckets = Buckets(PLACE, SLOW, link)
        for _ in range(2):
            assert taken(buckets, 9) == 5
            client.flushall()
            client.script_flush()


@pytest.mark.parametrize("command", ["SLAVEOF", "CONFIG"])
def test_redis_that_takes_no_writes_is_as_good_as_away(redis: EmbeddedRedis, link: RedisLink, command: str) -> None:
    def heal() -> None:
        client.execute_command("SLAVEOF", "NO", "ONE")
        client.config_set("maxmemory", 0)

    with redis.client() as client:
        try:
            if command == "SLAVEOF":
                client.execute_command("SLAVEOF", "127.0.0.1", "1")
            else:
                client.config_set("maxmemory", 1)
            assert taken(Buckets(PLACE, SLOW, link), 20) == 5
        finally:
            heal()
        wait_until(lambda: link_answers(link))


def test_a_user_that_may_do_what_the_operators_guide_says_is_enough(
    redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.client() as client:
        commands = ["+eval", "+get", "+set", "+del", "+time"]
        client.acl_setuser(
            "cover", enabled=True, passwords=["+s3cret"], keys=["cover-lookup:limit:*"], commands=commands
        )
    try:
        with closing(RedisLink(redis.url.replace("unix://", "unix://cover:s3cret@"), "tests", 20.0)) as link:
            assert taken(Buckets(PLACE, SLOW, link), 9) == 5
        with redis.client() as client:
            assert client.dbsize() == 1
        with closing(RedisLink(redis.url.replace("unix://", "unix://cover:wr0ng@"), "tests", 20.0)) as link:
            assert taken(Buckets(PLACE, SLOW, link), 9) == 5  # in this process
    finally:
        with redis.client() as client:
            client.acl_deluser("cover")
    assert "AuthenticationError" in caplog.text
    assert not any(secret in caplog.text for secret in ("s3cret", "wr0ng", redis.url))


@pytest.mark.parametrize(
    "url", ["", "redis", "http://127.0.0.1", "redis://127.0.0.1:s3cret", "redis://h?s3cret=1", "redis://h?db=s3cret"]
)
def test_what_is_no_url_of_redis_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(SettingsError, match="the Redis URL") as refused:
        RedisLink(url, "tests", 1.0)
    assert "s3cret" not in str(refused.value)


def test_waits_that_are_told_are_in_order(redis: EmbeddedRedis) -> None:
    with closing(patient(redis)) as link:
        buckets = Buckets(PLACE, SLOW, link)
        assert buckets.take("insurer-01", 5) == 0
        waits = [buckets.take("insurer-01", count) for count in range(1, 6)]
    assert all(99 < later - earlier <= 100 for earlier, later in pairwise(waits))
    assert waits[0] <= 100
