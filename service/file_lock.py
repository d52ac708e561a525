"""One at a time over all processes of the service that share a folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(file: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a file's lock (flock(2)) for the block, by a description of its own, which excludes threads, too."""
    with file.open("ab") as lock:
        fcntl.flock(lock, how)
        yield
