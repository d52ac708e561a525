"""What all doors by which policies arrive have in common: each is told again until it has taken what it is told.

A door is a thread of one member. What it is given it tells the member's agent as a house would that must not lose
anything: whatever gave no clear answer is told again.
"""

import queue
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from books import Policy, Step

PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Work:
    """Steps of a policy that follow each other and are to be told now."""

    policy: Policy
    steps: Sequence[Step]

    def send(self) -> None:
        now = time.time()
        for step in self.steps:
            step.sent = step.sent or now


class Door(ABC):
    """A thread that tells a member's agent what it is given. `taken` is called with what the agent has; `fail` with
    what must never happen.
    """

    name = "door"

    def __init__(self, member: int, taken: Callable[[Work], None], fail: Callable[[str], None], seed: object) -> None:
        self.member = member
        self.counts: Counter[str] = Counter()
        self._taken = taken
        self._fail = fail
        self._chance = random.Random(repr((seed, self.name, member)))  # noqa: S311  a test's
        self._works: queue.Queue[Work] = queue.Queue()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, name=f"{self.name}-{member}") for _ in range(self.at_once)]

    at_once = 1

    def give(self, work: Work) -> None:
        self._works.put(work)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def tell_to_stop(self) -> None:
        self._stop.set()

    def stop(self) -> None:
        self.tell_to_stop()
        for thread in self._threads:
            thread.join(60)

    def _next(self) -> Work | None:
        try:
            return self._works.get(timeout=PAUSE_SECONDS)
        except queue.Empty:
            return None

    def _waiting(self) -> list[Work]:
        """Return all that there is to tell."""
        works = []
        while not self._works.empty():
            works.append(self._works.get())
        return works

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._round()
        except Exception as error:  # noqa: BLE001  a door that ends unseen would be a test of nothing
            self._fail(f"the door {self.name} of member {self.member} broke: {error!r}")

    @abstractmethod
    def _round(self) -> None:
        """Tell what is to be told now, or wait a moment for it."""

    def _finish(self, work: Work) -> None:
        now = time.time()
        for step in work.steps:
            step.taken = now
        work.policy.done += len(work.steps)
        self.counts[f"{self.name} steps"] += len(work.steps)
        self._taken(work)


def row(policy: Policy, step: Step) -> tuple[str, ...]:
    """Return a step as a file's row; a cancellation is without an amount."""
    amount = "" if step.event == "cancel" else yuan(step.fen)
    return (policy.number, *policy.person, policy.product, amount, step.day.isoformat(), step.event)


def yuan(fen: int) -> str:
    return f"{fen // 100}.{fen % 100:02d}"
