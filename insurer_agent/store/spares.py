"""Connections of a pool that are free: the one used last goes out first."""

import time
from threading import Lock
from typing import Any

from psycopg import Connection, pq
from psycopg_pool import ConnectionPool

_Rows = Connection[tuple[Any, ...]]
_IDLE = pq.TransactionStatus.IDLE

_MOST = 4
"""How many are kept from the pool, which closes what it sees unused for long."""
_KEPT_SECONDS = 60.0
"""How long they are kept from it while any is used, as an agent's own works do all the time: the pool judges the age
of what is put back, and closes what then stays there unused."""


class Spares:
    """The pool hands its connections out in turns, and so to a server's process that has slept longest, with nothing of
    a check in the processor's caches. Here the same few are used again and again, and the others when those are out.

    The pool opens, checks, counts, renews and closes them all the same.
    """

    def __init__(self, pool: ConnectionPool[_Rows]) -> None:
        self._pool = pool
        self._lock = Lock()
        self._free: list[_Rows] = []
        self._asking = 0
        """How many ask the pool, and may wait there: what is given back is for them."""
        self._put_back_at = time.monotonic() + _KEPT_SECONDS
        self._is_closed = False

    def take(self) -> _Rows:
        """Return a connection that is to be given back. Raises what the pool does."""
        with self._lock:
            if self._free:
                return self._free.pop()
            self._asking += 1
        try:
            return self._pool.getconn()
        finally:
            with self._lock:
                self._asking -= 1

    def give_back(self, connection: _Rows) -> None:
        """Let others have a connection; the pool looks after one that is broken or in a transaction still."""
        is_kept = connection.pgconn.transaction_status == _IDLE
        if time.monotonic() >= self._put_back_at:
            self.put_back()
            is_kept = False
        with self._lock:
            if is_kept and not self._asking and len(self._free) < _MOST and not self._is_closed:
                self._free.append(connection)
                return
        self._pool.putconn(connection)

    def put_back(self) -> None:
        """Have the pool look at all that are free, and hand them out."""
        with self._lock:
            self._put_back_at = time.monotonic() + _KEPT_SECONDS
            free, self._free = self._free, []
        for connection in free:
            self._pool.putconn(connection)

    def close(self) -> None:
        """Keep nothing from the pool any more."""
        with self._lock:
            self._is_closed = True
        self.put_back()
