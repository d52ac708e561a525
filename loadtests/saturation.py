"""What an alliance bears: its rate with more and more clients, a load at half of that, batches, memory under load.

And the same rate and tail of the central check, which says what a tail is worth on this machine.
"""

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from book import encoded, questions
from central import Central
from effort import Effort
from load import Run, closed_loop, open_loop
from local_alliance import LocalAlliance
from processes import memory_mb
from rest import Door

CLIENTS = (1, 2, 4, 6, 8, 12, 16)
"""How many ask at once, until one more step up brings no more."""
BATCH_PATH, BATCH = "/v1/checks/batch", 1000
Say = Callable[[str], None]


def measure_rates(alliance: LocalAlliance, effort: Effort, say: Say) -> dict[str, Any]:
    """Return the rate of single checks at saturation and the core-milliseconds of one, and latencies at half of it.

    The clients ask all members in turn, and their own processor time is on the same cores; it is told. Only answers
    with a verdict count. At half of saturation checks arrive at random times, and wait for nobody.
    """
    doors = [alliance.door(member) for member in alliance.local["members"]]
    closed_loop(doors, 2 * len(doors), effort.warm_seconds)
    steps = _steps(doors, effort.steady_seconds / 2, say)
    best = _best(steps)
    runs = [_spent(alliance, lambda: closed_loop(doors, best, effort.steady_seconds)) for _ in range(effort.repeats)]
    rates = [_rate(run) for run, _ in runs]
    most = statistics.median(rates)
    say(f"saturation: {most:.0f} checks a second with {best} clients")
    halves = [
        _spent(alliance, lambda: open_loop(doors, most / 2, effort.steady_seconds)) for _ in range(effort.repeats)
    ]
    tail = _tail([run for run, _ in halves])
    say(f"half of saturation: p50 {tail['half_p50_ms']:.1f} ms, p99 {tail['half_p99_ms']:.1f} ms")
    core = [1000 * spent / run.good for run, spent in runs]
    return {
        "single_per_s": round(most, 1),
        "single_per_s_noise_percent": _spread(rates),
        "single_clients": best,
        "single_by_clients": steps,
        "client_core_ms_per_check": round(_median(1000 * run.client_core_seconds / run.good for run, _ in runs), 3),
        "core_ms_per_check": round(statistics.median(core), 2),
        "core_ms_per_check_at_half": round(_median(1000 * spent / run.good for run, spent in halves), 2),
        "core_ms_noise_percent": _spread(core),
        "half_of_cores": round(_median(_cores_used(run, spent) for run, spent in halves), 3),
        "half_indeterminate": sum(run.indeterminate + run.refused for run, _ in halves),
    } | tail


def measure_central(central: Central, effort: Effort, say: Say) -> dict[str, Any]:
    """Return the same of the central check: its rate at saturation, and the tail at half of it, in shorter runs."""
    doors = [central.door]
    best = _best(_steps(doors, effort.steady_seconds / 6, lambda _: None))
    most = statistics.median(_rate(closed_loop(doors, best, effort.steady_seconds / 2)) for _ in range(effort.repeats))
    halves = [open_loop(doors, most / 2, effort.steady_seconds / 2) for _ in range(effort.repeats)]
    lost = sum(run.indeterminate + run.refused for run in halves)
    if lost:
        raise RuntimeError(f"{lost} of the central check's answers have no verdict")
    tail = _tail(halves)
    say(
        f"the central check: {most:.0f} a second with {best} clients; at half of that "
        f"p50 {tail['half_p50_ms']:.1f} ms, p99 {tail['half_p99_ms']:.1f} ms"
    )
    return {
        "central_per_s": round(most, 1),
        "central_clients": best,
        "central_client_core_ms_at_half": round(
            _median(1000 * run.client_core_seconds / run.good for run in halves), 3
        ),
    } | {f"central_{name}": value for name, value in tail.items()}


def _steps(doors: Sequence[Door], seconds: float, say: Say) -> list[dict[str, float]]:
    """Have more and more clients ask, each for so long."""
    steps = []
    for clients in CLIENTS:
        steps.append(_step(closed_loop(doors, clients, seconds), clients))
        say(f"{clients} clients: {steps[-1]}")
    return steps


def _best(steps: Sequence[dict[str, float]]) -> int:
    """Return with how many clients most was answered."""
    return int(max(steps, key=lambda step: step["per_s"])["clients"])


def _tail(halves: Sequence[Run]) -> dict[str, float]:
    """Return p50 and p99 of loads at half of saturation, medians of theirs, and how much one is of the other."""
    tails = [run.ms(0.99) / run.ms(0.5) for run in halves]
    return {
        "half_p50_ms": round(_median(run.ms(0.5) for run in halves), 2),
        "half_p99_ms": round(_median(run.ms(0.99) for run in halves), 2),
        "p99_over_p50": round(statistics.median(tails), 2),
        "p99_over_p50_noise_percent": _spread(tails),
    }


def _cores_used(run: Run, spent: float) -> float:
    """Return which part of the machine's cores a load and what makes it have used."""
    return (spent + run.client_core_seconds) / run.seconds / (os.cpu_count() or 1)


def _rate(run: Run) -> float:
    return run.good / run.seconds


def measure_batches(alliance: LocalAlliance, effort: Effort, say: Say) -> dict[str, Any]:
    """Return the checks a second of batches of 1,000, sent one after the other and two at once; the better counts.

    What is indeterminate is not counted as answered, and why is told.
    """
    doors = [alliance.door(member) for member in alliance.local["members"]]
    if not _has_batches(doors[0]):
        say("no batches here yet")
        return {"batch_per_s": None}
    for door in doors:
        _batch(door)
    void: Counter[str] = Counter()
    alone = [_batches(doors, 1, void) for _ in range(effort.repeats)]
    both = [_batches(doors, 2, void) for _ in range(effort.repeats)]
    say(f"batches: {statistics.median(alone):.0f} checks a second, two at once {statistics.median(both):.0f}")
    better = max(alone, both, key=statistics.median)
    return {
        "batch_per_s": round(statistics.median(better), 1),
        "batch_per_s_noise_percent": _spread(better),
        "batch_per_s_one_at_a_time": round(statistics.median(alone), 1),
        "batch_indeterminate": dict(void),
        "batch_checks": BATCH * len(doors) * (len(alone) + len(both)),
    }


def _batches(doors: list[Door], clients: int, void: Counter[str]) -> float:
    """Send a batch to every member, `clients` at once; return verdicts a second."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        told = list(pool.map(_batch, doors))
    seconds = time.perf_counter() - began
    void.update(reason for reasons in told for reason in reasons)
    return (BATCH * len(doors) - sum(map(len, told))) / seconds


def _batch(door: Door) -> list[str]:
    """Send a batch; return the reasons of what is indeterminate. Every verdict must be right."""
    asked = list(islice(questions(), BATCH))
    request = door.request("POST", BATCH_PATH, encoded({"checks": [one.body for one in asked]}))
    with door.open() as connection:
        status, body = connection.exchange(request)
    if status != 200:  # noqa: PLR2004  the one status of success here
        raise RuntimeError(f"a batch is answered with status {status}: {body[:200]!r}")
    void = []
    for one, told in zip(asked, json.loads(body)["results"], strict=True):
        if told["verdict"] == "indeterminate":
            void.append(told["reason"])
        elif told["verdict"] != one.verdict:
            raise RuntimeError(f"a verdict of a batch is {told['verdict']} and not {one.verdict}")
    return void


def _has_batches(door: Door) -> bool:
    with door.open() as connection:
        status, _ = connection.exchange(door.request("POST", BATCH_PATH, b"{}"))
    return status != 404  # noqa: PLR2004  what is not there


def worker_memory(alliance: LocalAlliance) -> dict[str, float]:
    """Return the memory of the largest worker of an agent, in MB."""
    found = [memory_mb(pid) for pid in alliance.agent_workers()]
    return {kind: max(one[kind] for one in found) for kind in ("rss", "pss")}


def _spent(alliance: LocalAlliance, load: Callable[[], Run]) -> tuple[Run, float]:
    """Return what came of a load, and the processor time of all parties, in seconds."""
    before = alliance.core_seconds()
    run = load()
    return run, alliance.core_seconds() - before


def _step(run: Run, clients: int) -> dict[str, float]:
    return {
        "clients": clients,
        "per_s": round(_rate(run), 1),
        "p50_ms": round(run.ms(0.5), 1),
        "p99_ms": round(run.ms(0.99), 1),
        "indeterminate": run.indeterminate + run.refused,
    }


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _spread(values: Sequence[float]) -> float:
    """Return how far apart values lie, in percent of their median."""
    return round(100 * (max(values) - min(values)) / statistics.median(values), 1)
