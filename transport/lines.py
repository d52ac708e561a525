"""Sockets to and from peers, plain or TLS, that hold nobody up: every read, write and handshake ends in time."""

import errno
import selectors
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

CONNECT_SECONDS = 0.25
HANDSHAKE_SECONDS = 3.0
"""How long a server waits for a client's whole handshake: it takes a thread, and an honest one milliseconds."""
STALL_SECONDS = 10.0
"""How long a server waits for a client's next bytes within a request, or for it to take the next of an answer."""
_LINGER_SECONDS = 0.2
_RECORD = 1 << 14
"""Bytes in the largest TLS record."""


# --- the calling end ---------------------------------------------------------------------------------------------


class DeadlineSocket(socket.socket):
    """A socket whose reads and writes end at a deadline, however slowly the peer drips its bytes."""

    deadline = 0.0

    def recv_into(self, *args: Any, **kwargs: Any) -> int:  # noqa: ANN401  as in the standard library
        """Read as the standard library does, for no longer than until the deadline."""
        self.settimeout(left(self.deadline))
        count: int = super().recv_into(*args, **kwargs)
        return count

    def sendall(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  as above
        """Write as the standard library does, for no longer than until the deadline."""
        self.settimeout(left(self.deadline))
        super().sendall(*args, **kwargs)


class DeadlineTlsSocket(ssl.SSLSocket):
    """The same over TLS."""

    deadline = 0.0

    def recv_into(self, *args: Any, **kwargs: Any) -> int:  # noqa: ANN401  as above
        """Read as the standard library does, for no longer than until the deadline."""
        self.settimeout(left(self.deadline))
        return super().recv_into(*args, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> int:  # noqa: ANN401  as above; `sendall` is made of it
        """Write as the standard library does, for no longer than until the deadline."""
        self.settimeout(left(self.deadline))
        return super().send(*args, **kwargs)


def left(deadline: float) -> float:
    """Return the seconds until a deadline of the monotonic clock; raises `TimeoutError` when it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


@dataclass(frozen=True, eq=False)
class Line:
    """A connection to a peer's host and port. Over TLS it has the context that it was opened with."""

    host: str
    port: int

    sock: DeadlineSocket | DeadlineTlsSocket
    context: ssl.SSLContext | None

    @cached_property
    def certificate(self) -> bytes | None:
        """The peer's certificate (DER) once hands are shaken; its chain and host name are verified."""
        return self.sock.getpeercert(binary_form=True) if isinstance(self.sock, DeadlineTlsSocket) else None


def begin_line(url: str, context: ssl.SSLContext | None, deadline: float) -> Line:
    """Connect to `https://host[:port]`, or without a context to `http://…`; of TLS, hands are still to be shaken.

    Raises `OSError` where nobody answers, and `ValueError` for any other address.
    """
    parts = urlsplit(url)
    scheme, port = ("http", 80) if context is None else ("https", 443)
    if parts.scheme != scheme or parts.hostname is None:
        raise ValueError("no address of this alliance")
    place = (parts.hostname, parts.port or port)
    plain = socket.create_connection(place, min(CONNECT_SECONDS, left(deadline)))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is None:
        return Line(*place, DeadlineSocket(plain.family, plain.type, plain.proto, plain.detach()), None)
    plain.setblocking(False)  # noqa: FBT003  the name of the method says it
    try:
        wrapped = context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=parts.hostname)
    except (OSError, ValueError):
        plain.close()
        raise
    assert isinstance(wrapped, DeadlineTlsSocket)
    return Line(*place, wrapped, context)


def shake_hands(lines: Iterable[Line], deadline: float) -> Iterator[tuple[Line, OSError | None]]:
    """Make the handshakes of all lines at once; yield each line when it is open, or with what went wrong.

    One peer that does not answer holds up none of the others.
    """
    with selectors.DefaultSelector() as selector:
        ready: list[Line] = []
        for line in lines:
            selector.register(line.sock, selectors.EVENT_READ, line)
            ready.append(line)
        while ready or selector.get_map():
            for line in ready:
                done, fault = _step(selector, line)
                if done:
                    selector.unregister(line.sock)
                    yield line, fault
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                for key in list(selector.get_map().values()):
                    yield key.data, TimeoutError()
                return
            ready = [key.data for key, _ in selector.select(seconds)] if selector.get_map() else []


def _step(selector: selectors.BaseSelector, line: Line) -> tuple[bool, OSError | None]:
    try:
        if isinstance(line.sock, DeadlineTlsSocket):
            line.sock.do_handshake()
    except ssl.SSLWantReadError:
        selector.modify(line.sock, selectors.EVENT_READ, line)
        return False, None
    except ssl.SSLWantWriteError:
        selector.modify(line.sock, selectors.EVENT_WRITE, line)
        return False, None
    except OSError as error:
        return True, error
    return True, None


# --- the answering end --------------------------------------------------------------------------------------------


class ServerTlsSocket(ssl.SSLSocket):
    """A client's TLS connection as gunicorn's threads handle it, none of which it may keep by standing still.

    gunicorn 27 makes the handshake and reads requests in a thread of its pool, with a blocking socket. Here a handshake
    has an end, and a client that stalls counts as one that has hung up, which gunicorn knows how to end quietly.
    """

    _certificate: bytes | None = None

    @property
    def certificate(self) -> bytes | None:
        """The client's certificate (DER), whose chain is verified; None if it showed none."""
        if self._certificate is None:
            with suppress(OSError, ValueError):  # it has hung up meanwhile
                self._certificate = self.getpeercert(binary_form=True)
        return self._certificate

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  as in the standard library
        """Shake hands in time, or end the connection."""
        self.settimeout(HANDSHAKE_SECONDS)
        try:
            super().do_handshake(block)
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                self._linger()
            self.close()
            raise _hung_up() from None
        self.settimeout(STALL_SECONDS)

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001  as in the standard library
        """Where gunicorn would have it wait for ever, have it wait for so long."""
        if self.fileno() >= 0:  # gunicorn counts a connection twice where this fails
            self.settimeout(STALL_SECONDS if flag else 0.0)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Read a whole record, so that nothing is left where the poller does not see it; b"" if the client stalls."""
        try:
            return super().recv(max(buflen, _RECORD), flags)
        except TimeoutError:
            self.close()
            return b""

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

    def _linger(self) -> None:
        """Let the alert that says why arrive: what the client has still sent would have the kernel take it back."""
        with suppress(OSError):
            socket.socket.shutdown(self, socket.SHUT_WR)
            deadline = time.monotonic() + _LINGER_SECONDS
            while True:
                self.settimeout(left(deadline))
                if not socket.socket.recv(self, _RECORD):
                    return


def _hung_up() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "the client is gone")
