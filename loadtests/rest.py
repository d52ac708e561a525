"""A thin HTTP/1.1 client for loads: a kept connection, bytes out, bytes in. It shares the cores with what it loads."""

import contextlib
import json
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

_SECONDS = 30.0
_PIECE = 1 << 16


@dataclass(frozen=True)
class Door:
    """Where REST requests go: a base URL, an API key, and the CA whose certificate the server must show."""

    url: str
    api_key: str = field(repr=False)
    ca_file: str | None = None

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return a request as it goes over the wire."""
        parts = urlsplit(self.url)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", f"Authorization: Bearer {self.api_key}"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body

    def open(self) -> "Connection":
        """Return a connection, not made yet."""
        return Connection(self)

    def call(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  JSON
        """Call once, on a connection of its own, and return the JSON of the answer, which must be a good one."""
        with self.open() as connection:
            data = b"" if body is None else json.dumps(body).encode()
            status, answer = connection.exchange(self.request(method, path, data))
        if not 200 <= status < 300:  # noqa: PLR2004  success
            raise RuntimeError(f"{path} is answered with status {status}")
        return json.loads(answer)


class Connection:
    """A connection that is kept; one thread at a time uses it. One that the server closed meanwhile is made anew."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._socket: socket.socket | None = None
        self._context: ssl.SSLContext | None = None
        if urlsplit(door.url).scheme == "https":
            self._context = ssl.create_default_context(cafile=door.ca_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body of the answer."""
        if self._socket is not None:
            with contextlib.suppress(ConnectionError):
                return self._exchange(self._socket, request)
            self.close()
        self._socket = self._connect()
        return self._exchange(self._socket, request)

    def _connect(self) -> socket.socket:
        parts = urlsplit(self._door.url)
        assert parts.hostname is not None
        plain = socket.create_connection((parts.hostname, parts.port or 80), _SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain if self._context is None else self._context.wrap_socket(plain, server_hostname=parts.hostname)

    def _exchange(self, connection: socket.socket, request: bytes) -> tuple[int, bytes]:
        connection.sendall(request)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += _received(connection)
        head = data[:end].lower()
        at = head.index(b"content-length:") + len(b"content-length:")
        missing = end + 4 + int(head[at:].split(b"\r\n", 1)[0]) - len(data)
        pieces = [data[end + 4 :]]
        while missing > 0:
            pieces.append(_received(connection))
            missing -= len(pieces[-1])
        if b"\r\nconnection: close" in head:
            self.close()
        return int(head[9:12]), b"".join(pieces)


def _received(connection: socket.socket) -> bytes:
    piece = connection.recv(_PIECE)
    if not piece:
        raise ConnectionError("the server closed the connection")
    return piece
