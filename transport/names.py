"""Where peers' hosts are: names resolved beside their callers, who wait for a resolver no longer than they can."""

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from transport.lines import Address

FRESH_SECONDS = 30.0
_AT_ONCE = 8
"""Look-ups under way at most: each is a thread, and one whose resolver is silent stays for a while."""


@dataclass
class _Known:
    addresses: Sequence[Address] = ()
    until: float = 0.0
    done: threading.Event | None = None


class Names:
    """Looks hosts up, each by one thread at a time, and remembers them; safe to share between threads."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], _Known] = {}
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(_AT_ONCE)

    def begin(self, place: tuple[str, int]) -> threading.Event | None:
        """Begin to look a place up, unless it is known; return what is set when that is done."""
        with self._lock:
            known = self._known.setdefault(place, _Known())
            if known.until > time.monotonic():
                return None
            if not known.addresses and (literal := _literal(place)):
                known.addresses, known.until = literal, float("inf")
                return None
            if known.done is None and self._free.acquire(blocking=False):
                known.done = threading.Event()
                try:
                    threading.Thread(target=self._look_up, args=(place, known), name="names", daemon=True).start()
                except RuntimeError:  # no more threads just now
                    known.done = None
                    self._free.release()
            return known.done

    def addresses(self, place: tuple[str, int], done: threading.Event | None, deadline: float) -> Sequence[Address]:
        """Return where a place is, waiting until the deadline at most; then what was known before.

        Raises `OSError` where the place has no address, and `TimeoutError` where none is known yet.
        """
        arrived = done is None or done.wait(max(0.0, deadline - time.monotonic()))
        with self._lock:
            addresses = self._known[place].addresses
        if not addresses:
            raise OSError("no such host") if arrived else TimeoutError
        return addresses

    def _look_up(self, place: tuple[str, int], known: _Known) -> None:
        try:
            found = _resolved(place, 0)
        except (OSError, ValueError):
            found = []
        finally:
            self._free.release()
        with self._lock:
            done, known.done = known.done, None
            if found:
                known.addresses, known.until = found, time.monotonic() + FRESH_SECONDS
        if done is not None:
            done.set()


def _literal(place: tuple[str, int]) -> list[Address]:
    try:
        return _resolved(place, socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        return []


def _resolved(place: tuple[str, int], flags: int) -> list[Address]:
    found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM, flags=flags)
    return [(socket.AddressFamily(family), sockaddr) for family, _, _, _, sockaddr in found]
