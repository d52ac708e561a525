"""A few places for work that can wait, so that it never takes all threads of a process from work that cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore

from protocol.errors import ProtocolError

FEW_LANES = 16
"""Up to so many lanes a check is an underwriter's who waits; one with more is of a batch, and takes its time."""
FOR_RECHECKS = 4
FOR_BATCHES = 2
FOR_KEYS = 4


class Places:
    """Places for one in `share` of a process's threads, one at least. Nobody waits for one: it takes a thread."""

    def __init__(self, threads: int, share: int = FOR_RECHECKS) -> None:
        self._free = BoundedSemaphore(max(1, threads // share))

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a place for the block; refuse (`busy`) if all are taken."""
        if not self._free.acquire(blocking=False):
            raise ProtocolError("busy", "too much at once of what can wait")
        try:
            yield
        finally:
            self._free.release()
