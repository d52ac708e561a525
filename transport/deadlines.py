"""An end to reading a request's body: that of a stall is none, as each byte that comes begins it anew."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from transport.problems import HINT_OF_STATUS, Problem

_TIMEOUT = 408


@contextmanager
def read_within(seconds: float, line: socket.socket | None) -> Iterator[None]:
    """Have the block read from a client's connection for so long at most; refuse (`request-timeout`) what takes longer.

    What the client sends after that is not read, and it can still be answered. `line` is None where there is none.
    """
    if line is None:
        yield
        return
    ended = threading.Event()

    def end() -> None:
        ended.set()
        with suppress(OSError):  # it has hung up meanwhile
            # Not the TLS connection's own, which ends it under whoever reads. To that one the client has hung up.
            socket.socket.shutdown(line, socket.SHUT_RD)

    clock = threading.Timer(seconds, end)
    clock.daemon = True
    clock.start()
    try:
        yield
    except Exception:
        if not ended.is_set():
            raise
    finally:
        clock.cancel()
    if ended.is_set():
        detail = f"the body took more than {seconds:g} s"
        raise Problem(_TIMEOUT, "request-timeout", detail, hint=HINT_OF_STATUS[_TIMEOUT])
