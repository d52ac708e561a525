"""Persistent HTTP connections to peers, on which all requests are written before any answer is read.

One thread, several peers, no thread pool: a fan-out to four custodians takes as long as the slowest. Connections are
kept per thread and peer.
"""

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

CONNECT_SECONDS = 0.25
LAST_MOMENT_SECONDS = 0.01
MAX_ANSWER = 64 << 20


@dataclass(frozen=True)
class Call:
    """A POST to a peer: base URL, path, body and headers."""

    url: str
    path: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """What a peer answered."""

    status: int
    body: bytes = field(repr=False)
    content_type: str
    signature: str = ""


@dataclass(frozen=True)
class Unreachable:
    """No answer was had: the peer refused the connection, broke it off, or `timed_out`."""

    timed_out: bool


class _DeadlineSocket(socket.socket):
    """A socket whose reads end at a deadline, however slowly the peer drips its bytes."""

    deadline = 0.0

    def recv_into(self, *args: Any, **kwargs: Any) -> int:  # noqa: ANN401  as in the standard library
        """Read as the standard library does, for no longer than until the deadline."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
        count: int = super().recv_into(*args, **kwargs)
        return count


class _Connection(HTTPConnection):
    def connect(self) -> None:
        """Connect, and put a deadline on the socket."""
        super().connect()
        plain = self.sock
        self.sock = _DeadlineSocket(plain.family, plain.type, plain.proto, plain.detach())


class _FaultError(Exception):
    def __init__(self, *, timed_out: bool) -> None:
        super().__init__()
        self.timed_out = timed_out


class Peers:
    """Calls to peers; safe to share between threads."""

    def __init__(self) -> None:
        self._local = threading.local()

    def close(self) -> None:
        """Close the connections of the calling thread."""
        for url in list(self._local.__dict__.get("connections", {})):
            self._drop(url)

    def call(self, call: Call, seconds: float) -> Reply | Unreachable:
        """Make one call and wait for at most that long."""
        return self.exchange([call], seconds)[0]

    def exchange(self, calls: Sequence[Call], seconds: float) -> list[Reply | Unreachable]:
        """Write all calls, then read all answers, in at most `seconds`; results stand in the order of the calls.

        A call on a kept connection that the peer has closed meanwhile is made once more on a new one, so a call must
        bear being made twice.
        """
        deadline = time.monotonic() + seconds
        connections: list[tuple[HTTPConnection, bool] | _FaultError] = []
        for call in calls:
            try:
                connections.append(self._write(call, deadline))
            except _FaultError as fault:
                connections.append(fault)
        replies: list[Reply | Unreachable] = []
        for call, connection in zip(calls, connections, strict=True):
            try:
                if isinstance(connection, _FaultError):
                    raise connection
                replies.append(self._read(call, *connection, deadline))
            except _FaultError as fault:
                self._drop(call.url)
                replies.append(Unreachable(fault.timed_out))
        return replies

    def _write(self, call: Call, deadline: float) -> tuple[HTTPConnection, bool]:
        """Write a call; return its connection and whether it had been used before."""
        connection, reused = self._connection(call.url)
        try:
            self._send(connection, call, deadline)
        except _FaultError as fault:
            self._drop(call.url)
            if fault.timed_out or not reused:
                raise
            connection, reused = self._connection(call.url)[0], False
            self._send(connection, call, deadline)
        return connection, reused

    def _read(self, call: Call, connection: HTTPConnection, reused: bool, deadline: float) -> Reply:  # noqa: FBT001  from _write alone
        try:
            return self._receive(connection, deadline)
        except _FaultError as fault:
            self._drop(call.url)
            if fault.timed_out or not reused:
                raise
            connection = self._connection(call.url)[0]
            self._send(connection, call, deadline)
            return self._receive(connection, deadline)

    def _connection(self, url: str) -> tuple[HTTPConnection, bool]:
        kept: dict[str, HTTPConnection] = self._local.__dict__.setdefault("connections", {})
        if url in kept:
            return kept[url], True
        try:
            parts = urlsplit(url)
            if parts.scheme != "http" or parts.hostname is None:
                raise _FaultError(timed_out=False)
            kept[url] = _Connection(parts.hostname, parts.port or 80)
        except (ValueError, HTTPException):
            raise _FaultError(timed_out=False) from None
        return kept[url], False

    def _drop(self, url: str) -> None:
        kept: dict[str, HTTPConnection] = self._local.__dict__.get("connections", {})
        connection = kept.pop(url, None)
        if connection is not None:
            connection.close()

    @staticmethod
    def _send(connection: HTTPConnection, call: Call, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _FaultError(timed_out=True)
        try:
            if connection.sock is None:
                connection.timeout = min(CONNECT_SECONDS, left)
                connection.connect()
            connection.sock.settimeout(left)
            connection.request("POST", call.path, call.body, dict(call.headers))
        except TimeoutError:
            raise _FaultError(timed_out=True) from None
        except (OSError, HTTPException, UnicodeError):  # the last from a host name that no resolver takes
            raise _FaultError(timed_out=False) from None

    @staticmethod
    def _receive(connection: HTTPConnection, deadline: float) -> Reply:
        # An answer that arrived while a slower peer was waited for still counts: a moment is left to take it in.
        if not isinstance(connection.sock, _DeadlineSocket):
            raise _FaultError(timed_out=False)
        connection.sock.deadline = max(deadline, time.monotonic() + LAST_MOMENT_SECONDS)
        try:
            response: HTTPResponse = connection.getresponse()
            if response.length is None or response.length > MAX_ANSWER:
                raise _FaultError(timed_out=False)  # our peers state the length of every answer
            body = response.read()
        except TimeoutError:
            raise _FaultError(timed_out=True) from None
        except (OSError, HTTPException):
            raise _FaultError(timed_out=False) from None
        signature = response.headers.get("Lookup-Signature", "")
        return Reply(response.status, body, response.headers.get_content_type(), signature)
