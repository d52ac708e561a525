"""Flights: what waits together leaves together, and only what waits.

A process has so many flights under way at once. While it has fewer, an attempt leaves at once and alone, in its own
thread. Others wait, and when a flight ends, those that wait longest leave together as the next. Who has waited for long
leaves in any case: a custodian that is slow would else hold up what never asks it. One of the threads that are carried
does the work for all, the one with most time left, and when its own attempt is over it leaves what there is to do to
another: nobody waits for what others asked, and there is no thread beside those that ask.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Generic, Protocol, TypeVar

from protocol.messages import MAX_TOGETHER


class Attempt(Protocol):
    """What a flight carries."""

    @property
    def deadline(self) -> float:
        """When who asks stops waiting, by the monotonic clock."""

    @property
    def is_over(self) -> bool:
        """Whether all has come of it that will. It stays so."""


A = TypeVar("A", bound=Attempt)


class FlightFailedError(Exception):
    """The flight that carried an attempt ended by an error, which is the cause, before the attempt was over."""


class _Seat(Generic[A]):
    """An attempt that waits or is carried, and how its thread is called: it leads, its attempt is over, or all failed.

    All but `called` is changed under the lock of the flights alone.
    """

    def __init__(self, attempt: A) -> None:
        self.attempt = attempt
        self.called = threading.Event()
        self.flight: _Flight[A] | None = None
        self.leads = False


class _Flight(Generic[A]):
    """Attempts under way together: `seats` has those that are not over and whose threads still wait."""

    def __init__(self, seats: list[_Seat[A]], steps: Generator[None]) -> None:
        self.seats = seats
        self.steps = steps
        self.error: BaseException | None = None
        for seat in seats:
            seat.flight = self


class Flights(Generic[A]):
    """At most `most` flights at once, and beyond them those of who has waited for `patience` seconds.

    `fly` takes the attempts of one, in the order in which they came, and yields whenever some may be over; it is run by
    one thread at a time and closed when none is left that waits.
    """

    def __init__(
        self, most: int, fly: Callable[[Sequence[A]], Generator[None]], patience: float = float("inf")
    ) -> None:
        self._fly = fly
        self._patience = patience
        self._lock = threading.Lock()
        self._free = most
        """Below zero by the flights of who would not wait any more."""
        self._waiting: deque[_Seat[A]] = deque()
        """Empty while a place is free: whoever ends a flight hands its place on."""

    def make(self, attempt: A) -> None:
        """Have an attempt flown; return when it is over or its deadline has come, with what had come of it by then.

        What has left may take longer where its thread does the work for others, by no more than their flight takes.
        Raises what `fly` raises, and `FlightFailedError` where another thread ran it.
        """
        seat = _Seat(attempt)
        with self._lock:
            if self._free > 0:
                self._free -= 1
                seat.leads = True
                _Flight([seat], self._fly([attempt]))
            else:
                self._waiting.append(seat)
        if not seat.leads:
            self._wait(seat)
        if seat.leads:
            self._lead(seat)
        elif seat.flight is not None and seat.flight.error is not None and not attempt.is_over:
            raise FlightFailedError("the flight that carried an attempt failed") from seat.flight.error

    def _wait(self, seat: _Seat[A]) -> None:
        """Wait until called, or until the deadline; leave without a place when patience ends."""
        deadline = seat.attempt.deadline
        seat.called.wait(max(0.0, min(self._patience, deadline - time.monotonic())))
        with self._lock:
            if seat.flight is None and time.monotonic() < deadline:
                self._free -= 1
                self._depart(seat)
                seat.leads = True
        if not seat.leads:
            seat.called.wait(max(0.0, deadline - time.monotonic()))
            with self._lock:  # from here on nobody makes it lead who has not
                self._leave(seat)

    def _depart(self, first: _Seat[A]) -> _Flight[A]:
        """Have one that waits leave, with those that wait longest."""
        self._waiting.remove(first)
        seats = [first, *(self._waiting.popleft() for _ in range(min(MAX_TOGETHER - 1, len(self._waiting))))]
        return _Flight(seats, self._fly([seat.attempt for seat in seats]))

    def _leave(self, seat: _Seat[A]) -> None:
        if seat.flight is None:
            self._waiting.remove(seat)
        elif not seat.leads and seat in seat.flight.seats:
            seat.flight.seats.remove(seat)

    def _lead(self, seat: _Seat[A]) -> None:
        """Go on with a flight until one's own attempt is over; then another does, or it ends."""
        flight = seat.flight
        assert flight is not None
        try:
            while not self._handed_on(flight, seat):
                next(flight.steps)
        except StopIteration:
            self._end(flight)
        except BaseException as error:
            flight.error = error
            self._end(flight)
            raise

    def _handed_on(self, flight: _Flight[A], own: _Seat[A]) -> bool:
        """Call those whose attempts are over; where one's own is, have another lead and tell so."""
        with self._lock:
            self._call(flight, [seat for seat in flight.seats if seat.attempt.is_over])
            if own in flight.seats:
                return False
            if flight.seats:
                self._have_led(flight)
                return True
        flight.steps.close()
        return False  # what is closed has no next step

    def _end(self, flight: _Flight[A]) -> None:
        """Call all that are still there, and hand the flight's place to those that wait."""
        with self._lock:
            self._call(flight, list(flight.seats))
            self._free += 1
            if self._waiting and self._free > 0:
                self._free -= 1
                self._have_led(self._depart(self._waiting[0]))

    def _call(self, flight: _Flight[A], seats: list[_Seat[A]]) -> None:
        for seat in seats:
            flight.seats.remove(seat)
            seat.called.set()

    def _have_led(self, flight: _Flight[A]) -> None:
        """Give a flight to the thread that may work longest."""
        leader = max(flight.seats, key=lambda seat: seat.attempt.deadline)
        leader.leads = True
        leader.called.set()
