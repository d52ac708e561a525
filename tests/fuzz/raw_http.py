"""HTTP byte by byte: what no client library would send, and every answer that comes back."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from transport.internal import CONTENT_TYPE


@dataclass(frozen=True)
class Told:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The stable code of a problem, whose document must be whole; or that gunicorn itself would not read it."""
        if self.headers.get("content-type") == "text/html":
            assert self.headers["connection"] == "close"
            return "not-http"
        assert self.headers["content-type"] == "application/problem+json", self
        problem = json.loads(self.body)
        assert (problem["status"], problem["type"]) == (self.status, f"urn:cover-lookup:problem:{problem['code']}")
        assert problem["detail"]
        code: str = problem["code"]
        return code


def talk(url: str, data: bytes, *, seconds: float = 15.0) -> list[Told]:
    """Send bytes, end what we send, and return all answers that came before the other side closed."""
    parts, came = urlsplit(url), bytearray()
    with socket.create_connection((parts.hostname, parts.port), seconds) as line:
        with suppress(ConnectionError):  # it may have heard enough before we have said all
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while piece := line.recv(1 << 16):
                came += piece
    return list(told(bytes(came)))


def told(data: bytes) -> Iterator[Told]:
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if not status.startswith("HTTP/1.1 1"):
            size = int(headers["content-length"])
            assert len(data) >= size, "an answer is cut short"
            yield Told(int(status.split(" ")[1]), headers, data[:size])
            data = data[size:]


def request(
    method: str, path: str | bytes, body: bytes = b"", *headers: tuple[str, str | bytes], sized: bool = True
) -> bytes:
    """Return a request; all headers but Host are as given, and Content-Length unless it is not `sized`."""
    raw = [method.encode("latin-1") + b" " + (path.encode() if isinstance(path, str) else path) + b" HTTP/1.1"]
    lines: list[tuple[str, str | bytes]] = [("Host", "127.0.0.1"), *headers]
    if sized:
        lines.append(("Content-Length", str(len(body))))
    raw += [name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()) for name, value in lines]
    return b"\r\n".join(raw) + b"\r\n\r\n" + body


BINARY = ("Content-Type", CONTENT_TYPE)


CHUNKED = ("Transfer-Encoding", "chunked")


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def one(url: str, data: bytes) -> Told:
    (answer,) = talk(url, data)
    return answer
