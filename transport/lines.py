"""Sockets to and from peers, plain or TLS, that hold nobody up.

Those to peers never block (`transport.talks` waits for all of a fan-out at once); those from peers end in time.
"""

import errno
import socket
import ssl
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import urlsplit

HANDSHAKE_SECONDS = 6.0
"""How long a server gives a client for its whole handshake; an honest one takes milliseconds."""
STALL_SECONDS = 10.0
"""How long a server waits for a client's next bytes within a request, or for it to take the next of an answer."""
_SLACK_SECONDS = 0.05
"""How much later than asked reads may end: each other time that a socket is to wait is a call of the kernel."""
_LINGER_SECONDS = 0.2
_LINGERING = BoundedSemaphore(2)
"""As each takes a thread."""
_RECORD = 1 << 14
"""Bytes in the largest TLS record."""
Address = tuple[socket.AddressFamily, Any]
"""A family with what its sockets connect to."""


# --- the calling end ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Line:
    """A connection to a peer's host and port that never blocks. Over TLS it has the context that it was opened with."""

    host: str
    port: int

    sock: socket.socket | ssl.SSLSocket
    context: ssl.SSLContext | None

    @cached_property
    def certificate(self) -> bytes | None:
        """The peer's certificate (DER) once hands are shaken; its chain and host name are verified."""
        return self.sock.getpeercert(binary_form=True) if isinstance(self.sock, ssl.SSLSocket) else None


@lru_cache(maxsize=1024)
def place_of(url: str, *, secured: bool) -> tuple[str, int]:
    """Return host and port of `https://host[:port]`, or of `http://…`; raises `ValueError` for any other address."""
    parts = urlsplit(url)
    scheme, port = ("https", 443) if secured else ("http", 80)
    if parts.scheme != scheme or parts.hostname is None:
        raise ValueError("no address of this alliance")
    return parts.hostname, parts.port or port


def begin_line(place: tuple[str, int], address: Address, context: ssl.SSLContext | None) -> Line:
    """Begin to connect to one of a place's addresses; of TLS, hands are still to be shaken. Raises `OSError`."""
    family, sockaddr = address
    plain = socket.socket(family, socket.SOCK_STREAM)
    try:
        plain.setblocking(False)  # noqa: FBT003  the name of the method says it
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = plain.connect_ex(sockaddr)
        if begun not in (0, errno.EINPROGRESS):
            raise OSError(begun, "no connection")  # noqa: TRY301  it is closed as for any other fault
    except OSError:
        plain.close()
        raise
    return Line(*place, plain, context)


def secure(line: Line) -> Line:
    """Return a connected line as TLS on the same socket, its hands still to be shaken; raises `OSError`."""
    assert line.context is not None
    try:
        wrapped = line.context.wrap_socket(line.sock, do_handshake_on_connect=False, server_hostname=line.host)
    except (OSError, ValueError):
        line.sock.close()
        raise
    return Line(line.host, line.port, wrapped, line.context)


# --- the answering end --------------------------------------------------------------------------------------------


class _Bounded(socket.socket):
    """A client's connection as gunicorn's threads handle it, none of which it may keep by standing still.

    gunicorn 27 reads requests in a thread of its pool, with a blocking socket. Here a client that stalls counts as one
    that has hung up, which gunicorn knows how to end quietly.
    """

    read_by: float | None = None
    """When reads are to end, by the monotonic clock; see `read_within`."""

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001  as in the standard library
        """Where gunicorn would have it wait for ever, have it wait for so long."""
        if self.fileno() >= 0:  # gunicorn counts a connection twice where this fails
            self.settimeout(STALL_SECONDS if flag else 0.0)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Read a whole record, so that nothing is left where the poller does not see it; b"" if the client stalls."""
        try:
            if self.read_by is not None:
                self.wait_at_most(_left(self.read_by))
            return super().recv(max(buflen, _RECORD), flags)
        except TimeoutError:
            if self.read_by is not None and time.monotonic() >= self.read_by:
                raise
            self.close()
            return b""

    def wait_at_most(self, seconds: float) -> None:
        """Have each read and write wait for so long, but no longer than for a stall."""
        wanted = STALL_SECONDS if seconds > STALL_SECONDS - _SLACK_SECONDS else seconds
        if self.gettimeout() != wanted and self.fileno() >= 0:
            self.settimeout(wanted)

    def read_within(self, seconds: float) -> AbstractContextManager[None]:
        """Have the block's reads end by then, with `TimeoutError`, however the bytes come; the client can be answered.

        A stall's end alone is none: each byte begins it anew.
        """
        return _Reading(self, seconds)

    def send(self, data: Any, flags: int = 0) -> int:  # noqa: ANN401  as in the standard library
        """Write what the client takes, or end the connection if it takes nothing."""
        try:
            return super().send(data, flags)
        except TimeoutError:
            self.close()
            raise _hung_up() from None

    def sendall(self, data: Any, flags: int = 0) -> None:  # noqa: ANN401  as in the standard library; made of `send`
        """Write all, unless the client stalls or has stalled before."""
        try:
            super().sendall(data, flags)
        except OSError:
            if self.fileno() < 0:
                raise _hung_up() from None
            raise


class _Reading:
    """See `_Bounded.read_within`. A class, as every request is read so: made of a generator it takes twice as long."""

    def __init__(self, line: _Bounded, seconds: float) -> None:
        self._line, self._seconds, self._read_by = line, seconds, 0.0

    def __enter__(self) -> None:
        self._line.read_by = self._read_by = time.monotonic() + self._seconds

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._line.read_by = None
        self._line.wait_at_most(STALL_SECONDS)
        if kind is not None and issubclass(kind, Exception):  # whatever those in between make of it
            _left(self._read_by)


class ServerSocket(_Bounded):
    """A client's plain connection."""

    certificate = None

    @classmethod
    def of(cls, sock: socket.socket) -> "ServerSocket":
        """Take a connection over from a socket, which is closed to all others."""
        return cls(sock.family, sock.type, sock.proto, fileno=sock.detach())


class ServerTlsSocket(_Bounded, ssl.SSLSocket):
    """A client's TLS connection. gunicorn makes the handshake in a thread of its pool, too; here none waits in one."""

    @cached_property
    def certificate(self) -> bytes | None:
        """The client's certificate (DER) once hands are shaken, its chain verified; None if it showed none."""
        with suppress(OSError, ValueError):  # it has hung up meanwhile
            return self.getpeercert(binary_form=True)
        return None

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  as in the standard library
        """Do nothing: gunicorn would wait here."""

    def shake_hands(self) -> bool:
        """Go on with the handshake, without waiting; return whether it is done. What goes wrong ends the connection."""
        self.settimeout(0.0)
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                self._linger()
            self.close()
            raise _hung_up() from None
        return True

    def _linger(self) -> None:
        """Let the alert that says why arrive: what the client has still sent would have the kernel take it back."""
        if not _LINGERING.acquire(blocking=False):
            return
        try:
            with suppress(OSError):
                socket.socket.shutdown(self, socket.SHUT_WR)
                deadline = time.monotonic() + _LINGER_SECONDS
                while True:
                    self.settimeout(_left(deadline))
                    if not socket.socket.recv(self, _RECORD):
                        return
        finally:
            _LINGERING.release()


def _left(deadline: float) -> float:
    """Return the seconds until a deadline of the monotonic clock; raises `TimeoutError` when it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _hung_up() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "the client is gone")
