"""A few places for work that can wait, so that it never takes all threads of a process from work that cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore

from protocol.errors import ProtocolError

_OF_THREADS = 4


class Places:
    """Places for one in four of a process's threads, one at least; nobody waits for one, which would take a thread."""

    def __init__(self, threads: int) -> None:
        self._free = BoundedSemaphore(max(1, threads // _OF_THREADS))

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a place for the block; refuse (`busy`) if all are taken."""
        if not self._free.acquire(blocking=False):
            raise ProtocolError("busy", "too many rechecks at once")
        try:
            yield
        finally:
            self._free.release()
