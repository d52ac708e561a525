"""The arithmetic of the capacity model: queues as the books have them, loads that add up."""

import bisect
import heapq
import math
import random

import pytest
from capacity import CUSTODIANS, HEADERS, Cost, capacity, cost_of, erlang_c, tail_of_one_server, waits_at_most
from hypothesis import given
from hypothesis import strategies as st

COST = Cost(requester=2.0, service=3.0, custodian=5.0, to_service=20_000, from_service=5_000)
positive = st.floats(0.1, 50)


@pytest.mark.parametrize(
    ("cores", "load", "waits"),
    [(1, 0.5, 0.5), (1, 0.9, 0.9), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (5, 0.0, 0.0)],
)
def test_who_waits_is_what_erlang_says(cores: int, load: float, waits: float) -> None:
    assert erlang_c(cores, load) == pytest.approx(waits)


@given(cores=st.integers(1, 40), part=st.floats(0.01, 0.98))
def test_who_waits_is_the_sum_over_the_states_of_the_queue(cores: int, part: float) -> None:
    load = part * cores
    busy = load**cores / math.factorial(cores) / (1 - part)
    below = sum(load**number / math.factorial(number) for number in range(cores))
    assert erlang_c(cores, load) == pytest.approx(busy / (below + busy))


@pytest.mark.parametrize("load", [2.0, 3.0, -0.1])
def test_a_queue_that_cannot_keep_up_has_no_wait(load: float) -> None:
    with pytest.raises(ValueError, match="grows without end"):
        erlang_c(2, load)


@given(busy=st.floats(0.05, 0.8), times=st.floats(0, 6))
def test_waits_at_one_server_are_those_that_the_queue_itself_gives(busy: float, times: float) -> None:
    # Takacs: the wait's distribution F has F'(t) = busy * (F(t) - F(t - 1)), and F(0) = 1 - busy.
    assert waits_at_most(busy, 0) == pytest.approx(1 - busy)
    assert 1 - busy - 1e-9 <= waits_at_most(busy, times) <= waits_at_most(busy, times + 0.5) + 1e-9 <= 1 + 2e-9
    step, begin = 1e-5, math.floor(times) + 0.5  # where the distribution has no kink
    slope = (waits_at_most(busy, begin + step) - waits_at_most(busy, begin - step)) / (2 * step)
    before = waits_at_most(busy, begin - 1) if begin >= 1 else 0.0
    assert slope == pytest.approx(busy * (waits_at_most(busy, begin) - before), abs=1e-6)


@pytest.mark.parametrize(
    ("busy", "ratio"), [(0.0, 1.0), (0.5, 4.34), (0.7, 4.33), (0.7263, 4.50), (0.79, 4.945), (0.8, 5.0)]
)
def test_the_tail_of_one_server_has_digits_up_to_four_fifths_of_its_load(busy: float, ratio: float) -> None:
    assert tail_of_one_server(busy) == pytest.approx(ratio, abs=0.02)


@given(busy=st.floats(0, 0.8))
def test_the_tail_of_one_server_is_of_its_times_of_waiting(busy: float) -> None:
    tail = tail_of_one_server(busy)
    assert 1 <= tail < 5.1
    # p50 is the time within which half are answered: so many times of service, one of which is its own.
    half, last = (
        bisect.bisect_left(range(16_001), part, key=lambda number: waits_at_most(busy, number / 1000)) / 1000
        for part in (0.5, 0.99)
    )
    assert tail == pytest.approx((1 + last) / (1 + half), abs=0.01)


@pytest.mark.parametrize(("busy", "times"), [(0.81, 1), (-0.1, 1), (0.5, 16.1), (0.5, -1)])
def test_there_are_no_waits_where_the_sum_has_no_digits(busy: float, times: float) -> None:
    with pytest.raises(ValueError, match="no digits"):
        waits_at_most(busy, times)


@pytest.mark.parametrize(("servers", "busy", "ratio"), [(1, 0.5, 4.34), (1, 0.7, 4.33), (2, 0.5, 2.56), (2, 0.7, 3.53)])
def test_servers_that_take_each_as_long_have_such_tails(servers: int, busy: float, ratio: float) -> None:
    # By 400,000 random arrivals, each to the server that is free first.
    random_ = random.Random(5)  # noqa: S311  no secret
    at, free, taken = 0.0, [0.0] * servers, []
    for _ in range(400_000):
        at += random_.expovariate(servers * busy)
        begin = max(at, heapq.heappop(free))
        heapq.heappush(free, begin + 1)
        taken.append(begin + 1 - at)
    taken.sort()
    assert taken[int(0.99 * len(taken))] / taken[len(taken) // 2] == pytest.approx(ratio, rel=0.05)


def test_a_check_is_one_question_one_relay_and_four_answers() -> None:
    found = capacity(COST, insurers=100, rate=1000, busy=0.5, round_trip=10)
    assert found.insurer.load == pytest.approx(10 * (2 + 4 * 5) / 1000)
    assert found.service.load == pytest.approx(3.0)
    assert (found.insurer.cores, found.service.cores, found.cores) == (1, 6, 106)
    assert found.service_mbit_in == pytest.approx(160)
    assert found.service_mbit_out == pytest.approx(40)
    assert found.insurer_mbit == pytest.approx(2)
    one_core = found.insurer.load / (1 - found.insurer.load) * (2 + 4 * 5) / 5  # M/M/1
    assert found.insurer.wait_ms == pytest.approx(one_core)
    assert found.latency_ms == pytest.approx(20 + 2 + 3 + 5 + found.service.wait_ms + (1 + 25 / 12) * one_core)


@given(
    cost=st.builds(Cost, positive, positive, positive, positive, positive),
    insurers=st.integers(5, 400),
    rate=st.floats(1, 5000),
    busy=st.floats(0.1, 0.9),
)
def test_no_core_is_busier_than_it_may_be_and_all_work_is_done(
    cost: Cost, insurers: int, rate: float, busy: float
) -> None:
    found = capacity(cost, insurers, rate, busy, 0)
    assert found.insurer.busy <= busy * (1 + 1e-9)
    assert found.service.busy <= busy * (1 + 1e-9)
    work = rate * (cost.requester + cost.service + CUSTODIANS * cost.custodian) / 1000
    assert insurers * found.insurer.load + found.service.load == pytest.approx(work)
    assert found.latency_ms >= cost.requester + cost.service + cost.custodian


def test_the_cost_is_read_from_a_benchs_figures_and_scaled_to_a_steady_load() -> None:
    roles = {
        "requester": 2.0,
        "requester's database": 1.0,
        "service": 3.0,
        "custodians": 10.0,
        "custodians' databases": 4.0,
        "commands": 0.0,
    }
    sizes = {"CheckRequest": 2000, "CheckCall": 4000, "CheckAnswer": 16_000, "CheckOutcome": 60}
    figures = {"check_p50_ms_tls": 9.0, "check_core_ms_by_role_tls": roles, "message_bytes": sizes}
    assert cost_of(figures) == Cost(3.0, 3.0, 3.5, 18_000 + 5 * HEADERS, 4060 + 5 * HEADERS)
    steady = cost_of(figures | {"core_ms_per_check": 40.0})
    assert (steady.requester, steady.service, steady.custodian) == (6.0, 6.0, 7.0)
