"""A wire on loopback between two parties that can be cut at one write: before it arrives, or before its answer does.

A write FAILED if it never reached its server; it is PERSISTED if the server did it and only the answer was lost. The
caller cannot tell which.
"""

import contextlib
import enum
import select
import socket
import threading
from collections.abc import Callable
from typing import Self

READ_BYTES = 1 << 16
_IDLE_SECONDS = 0.2


class Fault(enum.Enum):
    FAILED = "failed"
    PERSISTED = "failed but persisted"


class Wire:
    """A proxy. `to` connects to the server behind it; `answered` tells whether its bytes end the answer of a write."""

    def __init__(self, to: Callable[[], socket.socket], answered: Callable[[bytes], bool]) -> None:
        self.to = to
        self._answered = answered
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._cut: tuple[Fault, Callable[[bytes], bool]] | None = None
        self._left = 0
        self.cuts = 0
        self.exchanges = 0
        """How often the caller wrote after the server had, or first: round trips."""
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(
        self, fault: Fault, writes: Callable[[bytes], bool], times: int, answered: Callable[[bytes], bool] | None = None
    ) -> None:
        """From now on, and so many times, cut the wire at what `writes` says is the write, of what the caller sends."""
        with self._lock:
            self._cut, self._left, self.cuts = (fault, writes), times, 0
            self._answered = answered or self._answered

    def mend(self) -> None:
        with self._lock:
            self._cut = None

    def close(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            if select.select([self._listener], [], [], _IDLE_SECONDS)[0]:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), self.to() as server:
            for end in (client, server):
                end.setblocking(True)  # noqa: FBT003  the name of the method says it
            self._carry(client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        loses_answer = asking = False
        while not self._stopping.is_set():
            ready, _, _ = select.select([client, server], [], [], _IDLE_SECONDS)
            if client in ready:
                data = client.recv(READ_BYTES)
                fault = self._fault_of(data)
                if data and not asking:
                    asking = True
                    with self._lock:
                        self.exchanges += 1
                if not data or fault is Fault.FAILED:
                    return
                loses_answer = loses_answer or fault is Fault.PERSISTED
                server.sendall(data)
            if server in ready:
                data, asking = server.recv(READ_BYTES), False
                if not data or (loses_answer and self._answered(data)):
                    return
                if not loses_answer:
                    client.sendall(data)

    def _fault_of(self, data: bytes) -> Fault | None:
        with self._lock:
            if self._cut is None or self._left == 0 or not self._cut[1](data):
                return None
            self._left -= 1
            self.cuts += 1
            return self._cut[0]


def http_answered(data: bytes) -> bool:
    """An HTTP server answers when it is done."""
    return data.startswith(b"HTTP/1.")


def is_post(path: str) -> Callable[[bytes], bool]:
    """Return what tells a POST to a path by its first bytes."""
    return lambda data: data.startswith(b"POST " + path.encode() + b" ")


def postgres_answered(data: bytes) -> bool:
    """A transaction is durable (or was none, where it had failed) when the server is ready for another."""
    return data.endswith(b"Z\0\0\0\5I")


def redis_answered(data: bytes) -> bool:
    """A command has run when its reply begins; of a transaction that is an array, after +OK and +QUEUED."""
    return any(line[:1] in (b"*", b":", b"-") for line in data.split(b"\r\n")[:-1])


def says_ok(data: bytes) -> bool:
    """A reply of Redis that says no more than that a command has run, or why not."""
    return data.startswith((b"+OK", b"-"))
