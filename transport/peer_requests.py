"""HTTP/1.1 as a server of the alliance hears it from its peers: requests that state their length, read by llhttp.

gunicorn's own parser and environment, made for whoever comes, take three times as long (loadtests/http_servers.py).
Messages of whoever has shown a certificate of the alliance, and over plain HTTP of anyone, are read by this module
instead, and so are an underwriter's checks: a handful of headers, one body, one answer in one piece. `MessageFace`
answers those of its paths without an environment; the rest of the application sees the one of WSGI (PEP 3333).
"""

import io
import re
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

MAX_HEAD = 16 << 10
MAX_LINE, MAX_HEADERS = 4000, 100
"""What gunicorn takes, too."""
_READ_BYTES = 64 << 10
_LENGTH = re.compile(rb"[0-9]{1,9}")
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
"""What bytes are answered with that are no request."""
TOO_LONG = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class BadRequestError(Exception):
    """Bytes that are no request as peers of an alliance make them."""


class TooLongError(BadRequestError):
    """A request says that its body is longer than it may be."""


class PeerRequest:
    """One request, whose body has at most `most` bytes; it is `whole` when all has been taken."""

    def __init__(self, most: int) -> None:
        self.whole = False
        self.stays = True
        self._most = most
        self.method = ""
        self.body = bytearray()
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        # The parser and this know each other: it is let go of at the end, or both would stay until the collector comes.
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)

    def take(self, data: bytes) -> None:
        """Take what has been read next; raises `BadRequestError`, and then takes no more."""
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except BadRequestError:
            self._parser = None
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._parser = None
            if isinstance(error.__context__, BadRequestError):  # of a callback, which the parser wraps
                raise error.__context__ from None
            raise BadRequestError(type(error).__name__) from None
        if self.whole:
            self._parser = None
        elif not self.method:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._parser = None
                raise BadRequestError("the head is too long")

    @property
    def path(self) -> str:
        """What is asked for, without a query."""
        return unquote_to_bytes(self._target.partition(b"?")[0]).decode("latin-1")

    def header(self, name: str) -> str:
        """Return a header, all that bear the name as one, or nothing."""
        wanted = name.lower().encode()
        return ",".join([value.decode("latin-1") for each, value in self._headers if each.lower() == wanted])

    def environ(self) -> Environ:
        """Return the request's part of a WSGI environment; whose it is and by what scheme it came, the server says."""
        _, _, query = self._target.partition(b"?")
        found: Environ = {
            "REQUEST_METHOD": self.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": self.path,
            "RAW_URI": self._target.decode("latin-1"),
            "QUERY_STRING": query.decode("latin-1"),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.input": io.BytesIO(self.body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }
        for name, value in self._headers:
            key = name.decode("latin-1").upper().replace("-", "_")
            key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key
            text = value.decode("latin-1")
            found[key] = f"{found[key]},{text}" if key in found else text
        return found

    # --- what the parser tells

    def on_message_begin(self) -> None:
        """Refuse a second request that comes before the first is answered."""
        if self.whole:
            raise BadRequestError("more than one request")

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if b"_" in name:  # which in the environment is another's name
            raise BadRequestError("a header's name")
        self._headers.append((name, value.strip(b" \t")))  # llhttp leaves what stands behind it

    def on_headers_complete(self) -> None:
        """Judge the head."""
        assert self._parser is not None
        names = [name.lower() for name, _ in self._headers]
        lengths = [value for name, (_, value) in zip(names, self._headers, strict=True) if name == b"content-length"]
        unusual = {b"transfer-encoding", b"upgrade", b"expect"}.intersection(names)
        if unusual or len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
            raise BadRequestError("a body without a plain length")
        if self._parser.get_http_version() != "1.1" or not self._target.startswith(b"/") or names.count(b"host") > 1:
            raise BadRequestError("another version or kind of request")
        lines = [len(self._target), *[len(name) + len(value) for name, value in self._headers]]
        if max(lines) > MAX_LINE or len(lines) > MAX_HEADERS or sum(lines) > MAX_HEAD:
            raise BadRequestError("the head is too long")
        if lengths and int(lengths[0]) > self._most:
            raise TooLongError("the body is too long")
        self.method = self._parser.get_method().decode("ascii")
        self.stays = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self.body += body

    def on_message_complete(self) -> None:
        """Take note of the end."""
        self.whole = True


class Heard:
    """A socket of which what is read is kept, for another to read it again."""

    def __init__(self, sock: socket.socket) -> None:
        self.data = bytearray()
        self._sock = sock

    def recv(self, size: int = _READ_BYTES) -> bytes:
        """Read on."""
        data = self._sock.recv(size)
        self.data += data
        return data


def read_request(sock: socket.socket | Heard, most: int, begin: bytes) -> PeerRequest:
    """Read one request from a blocking socket, of which these first bytes are read.

    Raises `BadRequestError`; of one whose body is too long nothing but the head is read.
    """
    request = PeerRequest(most)
    request.take(begin)
    while not request.whole:
        data = sock.recv(_READ_BYTES)
        if not data:
            raise BadRequestError("it breaks off")
        request.take(data)
    return request


def answer_request(
    application: Application, environ: Environ, *, stays: bool, more: Iterable[tuple[str, str]] = ()
) -> tuple[bytes, Callable[[], None]]:
    """Have an application answer; return the answer's bytes, with `more` headers and where the connection does not stay
    one that says so, and what is to be called when they have been sent (PEP 3333's `close`).
    """
    status, headers = "", list[tuple[str, str]]()

    def start_response(told: str, given: list[tuple[str, str]], _exc_info: object = None) -> Callable[[bytes], None]:
        nonlocal status
        status = told
        headers[:] = [*given, *more]
        return parts.append

    parts: list[bytes] = []
    answered = application(environ, start_response)
    close: Callable[[], None] = getattr(answered, "close", lambda: None)
    try:
        parts += answered
    except BaseException:
        close()
        raise
    body, has_none = b"".join(parts), status.startswith(("204", "304"))
    if not has_none and "content-length" not in [name.lower() for name, _ in headers]:
        headers.append(("Content-Length", str(len(body))))
    has_none = has_none or environ["REQUEST_METHOD"] == "HEAD"
    return answer_bytes(status, headers, b"" if has_none else body, stays=stays), close


def answer_bytes(status: str, headers: list[tuple[str, str]], body: bytes, *, stays: bool) -> bytes:
    """Return an answer as it is sent; it says where the connection does not stay."""
    lines = [f"HTTP/1.1 {status}", *[f"{name}: {value}" for name, value in headers]]
    if not stays:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + body
