"""Flights: what waits leaves together and in order, as many at once as there may be; nothing is lost."""

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import MAX_TOGETHER
from service.flights import FlightFailedError, Flights

SECONDS = 30.0
"""Longer than anything takes here, unless it is lost."""


@dataclass(eq=False)
class Asked:
    """An attempt, named; what comes of it is its name."""

    name: int
    deadline: float = field(default_factory=lambda: time.monotonic() + SECONDS)
    came: int | None = None
    is_over: bool = False

    def end(self) -> None:
        self.came = self.name
        self.is_over = True


class BrokenError(Exception):
    """A flight failed."""


@dataclass
class Airport:
    """Flights, each of which goes on, step by step, when the test says so."""

    most: int = 1
    patience: float = float("inf")
    flown: list[list[int]] = field(default_factory=list)
    leaders: list[list[int]] = field(default_factory=list)
    """By flight, the threads that did its steps, by the names of their own attempts."""
    closed: list[list[int]] = field(default_factory=list)
    own: dict[int, int] = field(default_factory=dict)
    ended: dict[int, BaseException | None] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.flights = Flights[Asked](self.most, self.fly, self.patience)
        self.steps: dict[int, threading.Semaphore] = {}
        self.fail: set[int] = set()

    def fly(self, attempts: Sequence[Asked]) -> Generator[None]:
        names = [one.name for one in attempts]
        self.flown.append(names)
        led: list[int] = []
        self.leaders.append(led)
        try:
            for one in attempts:
                led.append(self.own[threading.get_ident()])
                assert self.steps[one.name].acquire(timeout=SECONDS)
                if one.name in self.fail:
                    raise BrokenError
                one.end()
                yield
        except GeneratorExit:
            self.closed.append(names)
            raise

    def board(self, asked: Asked) -> threading.Thread:
        """Have a thread ask, and return it when it has left or waits."""
        self.steps[asked.name] = threading.Semaphore(0)
        flown, waiting = len(self.flown), len(self.flights._waiting)

        def ask() -> None:
            self.own[threading.get_ident()] = asked.name
            try:
                self.flights.make(asked)
            except BaseException as error:  # noqa: BLE001  told where it is asked for
                self.ended[asked.name] = error
            else:
                self.ended[asked.name] = None

        thread = threading.Thread(target=ask)
        self.threads.append(thread)
        thread.start()
        until(lambda: len(self.flown) > flown or len(self.flights._waiting) > waiting)
        return thread

    def let(self, *names: int) -> None:
        """Let what is asked under these names be answered."""
        for name in names:
            self.steps[name].release()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.0005)


@contextmanager
def airport(most: int = 1, patience: float = float("inf")) -> Iterator[Airport]:
    """Have flights; at the end all threads have returned and all places are free."""
    made = Airport(most, patience)
    yield made
    for thread in made.threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert made.flights._free == most
    assert not made.flights._waiting


def test_what_finds_a_place_leaves_at_once_alone_in_its_own_thread() -> None:
    here: list[int] = []

    def fly(attempts: Sequence[Asked]) -> Generator[None]:
        here.append(threading.get_ident())
        for one in attempts:
            one.end()
        yield

    flights, before = Flights[Asked](1, fly), threading.active_count()
    for name in range(3):
        asked = Asked(name)
        flights.make(asked)
        assert asked.came == name
    assert here == [threading.get_ident()] * 3
    assert threading.active_count() == before


@given(st.integers(1, 3), st.integers(0, 40))
@settings(max_examples=12, deadline=None)
def test_what_waits_leaves_together_in_order_when_a_flight_ends(most: int, waiting: int) -> None:
    with airport(most) as there:
        for name in range(most + waiting):
            there.board(Asked(name))
        assert there.flown == [[name] for name in range(most)]
        assert len(there.flights._waiting) == waiting
        names = list(range(most, most + waiting))
        groups = [names[at : at + MAX_TOGETHER] for at in range(0, waiting, MAX_TOGETHER)]
        there.let(0)  # one place alone is given free
        for number, group in enumerate(groups):
            until(lambda: len(there.flown) > most + number)  # noqa: B023  called at once
            assert there.flown[most:] == groups[: number + 1]
            there.let(*group)
        there.let(*range(1, most))
    assert there.ended == dict.fromkeys(range(most + waiting))


def test_who_has_most_time_left_does_the_work_for_all() -> None:
    with airport() as there:
        there.board(Asked(0))
        now = time.monotonic()
        for name, seconds in ((1, 20), (2, 30), (3, 25)):
            there.board(Asked(name, now + seconds))
        there.let(0)
        until(lambda: len(there.leaders) > 1)
        until(lambda: there.leaders[1] == [2])
        there.let(1, 2, 3)
    assert there.flown == [[0], [1, 2, 3]]
    assert there.leaders[1] == [2, 2, 3], "the one whose own attempt was over went on"


def test_who_is_answered_does_not_wait_for_others_whoever_leads() -> None:
    with airport() as there:
        there.board(Asked(0))
        now = time.monotonic()
        first, second, third = (
            there.board(Asked(name, now + seconds)) for name, seconds in ((1, 30), (2, 20), (3, 10))
        )
        there.let(0, 1)
        first.join(SECONDS)  # which led
        assert (second.is_alive(), third.is_alive()) == (True, True)
        there.let(2)
        second.join(SECONDS)
        assert third.is_alive()
        there.let(3)
    assert there.leaders[1] == [1, 2, 3]
    assert there.ended == dict.fromkeys(range(4))


def test_what_waits_in_vain_ends_at_its_deadline_and_is_carried_by_no_flight() -> None:
    with airport() as there:
        there.board(Asked(0))
        late, patient = Asked(1, time.monotonic() + 0.1), Asked(2)
        there.board(late).join(SECONDS)
        assert (late.came, late.is_over, there.ended[1]) == (None, False, None)
        there.board(patient)
        there.let(0, 2)
    assert there.flown == [[0], [2]]
    assert patient.came == 2


def test_who_is_carried_leaves_at_its_deadline_and_the_flight_goes_on() -> None:
    with airport() as there:
        there.board(Asked(0))
        hasty, patient = Asked(1, time.monotonic() + 0.5), Asked(2)
        thread = there.board(hasty)
        there.board(patient)
        there.let(0)
        until(lambda: len(there.flown) > 1)
        thread.join(SECONDS)
        assert (hasty.came, there.ended[1]) == (None, None)
        assert 2 not in there.ended
        there.let(1, 2)
    assert patient.came == 2


def test_a_flight_that_nobody_waits_for_any_more_is_ended() -> None:
    with airport() as there:
        there.board(Asked(0))
        leader, hasty = Asked(1), Asked(2, time.monotonic() + 1.0)
        there.board(leader)
        thread = there.board(hasty)
        there.let(0)
        until(lambda: len(there.flown) > 1)
        thread.join(SECONDS)
        there.let(1)
    assert there.closed[-1] == [1, 2]
    assert leader.came == 1


def test_a_flight_that_fails_is_an_error_to_all_that_it_carries_but_those_that_it_had_answered() -> None:
    with airport() as there:
        there.board(Asked(0))
        now = time.monotonic()
        for name, seconds in ((1, 10), (2, 30), (3, 20)):
            there.board(Asked(name, now + seconds))
        there.fail = {2}
        there.let(0, 1, 2)
        for thread in there.threads:
            thread.join(SECONDS)
        there.board(Asked(4))
        there.let(4)
    assert there.flown == [[0], [1, 2, 3], [4]], "the place is free again"
    assert there.ended[1] is None
    assert isinstance(there.ended[2], BrokenError)
    assert isinstance(there.ended[3], FlightFailedError)
    assert isinstance(there.ended[3].__cause__, BrokenError)


ASKING, TIMES = 24, 150
SILENT = 50
"""Of an attempt whose name is a multiple of this nothing is heard until its flight ends."""


class Storm:
    """Many threads ask at once, with little time and much, and flights take their time at random; some fail."""

    def __init__(self, most: int) -> None:
        self._chance = random.Random(most)  # noqa: S311  repeatable, not secret
        self._lock = threading.Lock()
        self._under_way = 0
        self.most_under_way = 0
        self.flown = Counter[int]()
        self.sizes = Counter[int]()
        self.told = Counter[str]()
        self.problems: list[str] = []
        self.flights = Flights[Asked](most, self.fly)

    def fly(self, attempts: Sequence[Asked]) -> Generator[None]:
        with self._lock:
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)
            self.flown.update(one.name for one in attempts)
            self.sizes[len(attempts)] += 1
            order, fails = list(attempts), self._chance.random() < 0.08
            self._chance.shuffle(order)
            pauses = [self._chance.choice((0.0, 0.0, 0.0002, 0.002)) for _ in order]
        try:
            for one, pause in zip(order, pauses, strict=True):
                time.sleep(pause)
                if fails and pause:
                    raise BrokenError
                if one.name % SILENT:
                    one.end()
                yield
        finally:
            with self._lock:
                self._under_way -= 1

    def ask(self, first: int) -> None:
        chance = random.Random(first)  # noqa: S311  as above
        for name in range(first, first + TIMES):
            asked = Asked(name, time.monotonic() + chance.choice((SECONDS, SECONDS, 0.02, 0.004, 0.001, 0.0)))
            told = self._told(asked)
            with self._lock:
                self.told[told] += 1

    def _told(self, asked: Asked) -> str:
        try:
            self.flights.make(asked)
        except (BrokenError, FlightFailedError) as error:
            if asked.is_over and isinstance(error, FlightFailedError):
                self.problems.append(f"{asked.name} failed though it was answered")
            return type(error).__name__
        if asked.came is not None:
            if asked.came != asked.name:
                self.problems.append(f"{asked.name} got {asked.came}")
            return "answered"
        if time.monotonic() >= asked.deadline:
            return "late"
        if asked.name % SILENT:
            self.problems.append(f"{asked.name} is lost")
        return "silent"


@pytest.fixture
def restless() -> Iterator[None]:
    """Have threads take turns a thousand times as often as they do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("most", [1, 2, 5])
def test_of_thousands_of_attempts_at_random_times_each_gets_what_is_its_own(most: int) -> None:
    storm = Storm(most)
    threads = [threading.Thread(target=storm.ask, args=(1000 * number,)) for number in range(ASKING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * SECONDS)
        assert not thread.is_alive(), "it waits for ever"
    assert storm.problems == []
    assert storm.told.total() == ASKING * TIMES
    assert min(storm.told[kind] for kind in ("answered", "late", "BrokenError", "FlightFailedError")) > 0
    assert set(storm.flown.values()) == {1}, "none flew twice"
    assert max(storm.sizes) <= MAX_TOGETHER
    assert sum(count for size, count in storm.sizes.items() if size > 1) > 100
    assert storm.most_under_way == most
    assert (storm.flights._free, len(storm.flights._waiting)) == (most, 0)


def test_who_has_waited_for_long_leaves_beyond_the_places() -> None:
    with airport(patience=0.05) as at:
        at.board(Asked(0))
        at.board(Asked(1))
        until(lambda: len(at.flown) > 1)
        assert at.flown == [[0], [1]]
        assert at.flights._free == -1
        at.let(1)
        until(lambda: at.flights._free == 0)
        at.let(0)
    assert at.flown == [[0], [1]]


def test_flights_beyond_the_places_are_made_up_for_before_others_leave_by_a_place() -> None:
    with airport(patience=0.05) as at:
        at.board(Asked(0))
        for number in (1, 2):
            at.board(Asked(number))
            until(lambda: len(at.flown) == number + 1)  # noqa: B023  called at once
        at.let(0, 1)
        until(lambda: at.flights._free == 0)
        at.let(2)
        until(lambda: at.flights._free == 1)
        at.board(Asked(3))
        at.let(3)
    assert at.flown == [[0], [1], [2], [3]]
