"""Loads of checks on REST doors: one client, several in a closed loop, and arrivals at random at a rate.

Every answer's verdict is compared with the plain sum's. An indeterminate one is counted; a wrong one ends the run.
"""

import json
import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from book import Question, encoded, questions
from rest import Connection, Door

PATH = "/v1/checks"
Ask = Callable[[Question], tuple[bytes, list[str]]]
"""Makes of a question the body of a request, and the verdicts that its answer must have."""


def plainly(question: Question) -> tuple[bytes, list[str]]:
    """Ask under the one rule of the question."""
    return encoded(question.body), [question.verdict]


def under(rules: tuple[str, ...]) -> Ask:
    """Return what asks under several rules, of which the others' limits are above every total."""

    def ask(question: Question) -> tuple[bytes, list[str]]:
        body = {name: value for name, value in question.body.items() if name != "rule"} | {"rules": list(rules)}
        return encoded(body), [question.verdict] + (len(rules) - 1) * ["within"]

    return ask


@dataclass
class Run:
    """What came of a load: a latency in seconds per request, how long it took, and what the load itself used."""

    latencies: list[float] = field(default_factory=list)
    indeterminate: int = 0
    refused: int = 0
    seconds: float = 0.0
    client_core_seconds: float = 0.0

    @property
    def good(self) -> int:
        """How many were answered with a verdict."""
        return len(self.latencies) - self.indeterminate - self.refused

    def ms(self, part: float) -> float:
        """Return the latency, in milliseconds, within which this part of the requests was answered."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[max(0, math.ceil(part * len(ordered)) - 1)]

    def took(self, latency: float, answer: tuple[int, bytes], verdicts: list[str]) -> None:
        """Note a request's latency and judge its answer."""
        status, body = answer
        self.latencies.append(latency)
        if status != 200:  # noqa: PLR2004  the one status of success here
            self.refused += 1
            return
        told = json.loads(body)
        found = [one["verdict"] for one in told.get("results", [told])]
        if "indeterminate" in found:
            self.indeterminate += 1
        elif found != verdicts:
            raise RuntimeError(f"the verdicts are {found} and not {verdicts}")


def one_client(
    door: Door, connection: Connection, asked: Iterator[Question], count: int, ask: Ask = plainly
) -> list[float]:
    """Ask so many questions one after the other; return the latencies, in seconds. Every one must be answered."""
    run = Run()
    for _ in range(count):
        body, verdicts = ask(next(asked))
        request = door.request("POST", PATH, body)
        began = time.perf_counter()
        answer = connection.exchange(request)
        run.took(time.perf_counter() - began, answer, verdicts)
    if run.refused or run.indeterminate:
        raise RuntimeError(f"{run.refused} of {count} requests were refused, {run.indeterminate} indeterminate")
    return run.latencies


def closed_loop(doors: Sequence[Door], clients: int, seconds: float) -> Run:
    """Have so many clients ask one question after the other, for so long; they spread over the doors."""
    until = time.monotonic() + seconds
    lock, run, asked = threading.Lock(), Run(), questions()

    def client(number: int) -> None:
        door = doors[number % len(doors)]
        with door.open() as connection:
            while time.monotonic() < until:
                with lock:
                    question = next(asked)
                _request(door, connection, question, time.perf_counter(), run, lock)

    return _timed(run, client, clients)


def open_loop(doors: Sequence[Door], rate: float, seconds: float, clients: int = 32) -> Run:
    """Have questions arrive at random at so many a second; a latency counts from the arrival, waiting included."""
    arrivals, at = [], 0.0
    while (at := at + random.expovariate(rate)) < seconds:
        arrivals.append(at)
    lock, run, asked, left = threading.Lock(), Run(), questions(), iter(arrivals)
    began = time.perf_counter()

    def client(number: int) -> None:
        door = doors[number % len(doors)]
        with door.open() as connection:
            while True:
                with lock:
                    arrival = next(left, None)
                    question = next(asked)
                if arrival is None:
                    return
                due = began + arrival
                if (wait := due - time.perf_counter()) > 0:
                    time.sleep(wait)
                _request(door, connection, question, due, run, lock)

    return _timed(run, client, clients)


def _request(
    door: Door, connection: Connection, question: Question, began: float, run: Run, lock: threading.Lock
) -> None:
    body, verdicts = plainly(question)
    answer = connection.exchange(door.request("POST", PATH, body))
    latency = time.perf_counter() - began
    with lock:
        run.took(latency, answer, verdicts)


def _timed(run: Run, client: Callable[[int], None], clients: int) -> Run:
    """Run the clients, a thread each; raise what one of them raised."""
    faults: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            client(number)
        except BaseException as error:  # noqa: BLE001  raised below
            faults.append(error)

    used, began = time.process_time(), time.perf_counter()
    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.seconds, run.client_core_seconds = time.perf_counter() - began, time.process_time() - used
    if faults:
        raise faults[0]
    return run


@dataclass(frozen=True)
class Blocks:
    """Latencies of one subject by block, in milliseconds."""

    blocks: list[list[float]]

    @property
    def p50(self) -> float:
        """The median of the blocks' medians."""
        return statistics.median(map(statistics.median, self.blocks))

    @property
    def p99(self) -> float:
        """What 99 of 100 of all took no longer than."""
        ordered = sorted(value for block in self.blocks for value in block)
        return ordered[max(0, math.ceil(0.99 * len(ordered)) - 1)]

    @property
    def noise_percent(self) -> float:
        """How far apart the blocks' medians lie, from the least to the most, against their median."""
        medians = [statistics.median(block) for block in self.blocks]
        return 100 * (max(medians) - min(medians)) / self.p50
