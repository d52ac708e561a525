"""The binary messages' way into an application: beside Flask, whose routing and contexts they do not need.

Every hop of a check and a deposit comes this way, so it does no more than HTTP asks for. Errors leave as everywhere, as
problem+json.
"""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from flask import Flask
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge
from werkzeug.wsgi import get_input_stream

from protocol import signing
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import FRESHNESS_SECONDS
from transport import web
from transport.capture import Capture
from transport.internal import CONTENT_TYPE, PURPOSE, SIGNATURE_HEADER, TIME_HEADER, signed_parts
from transport.peer_requests import PeerRequest, answer_bytes
from transport.problems import Problem
from transport.tls import Tls

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

M = TypeVar("M")
Headers = list[tuple[str, str]]
Answer = tuple[bytes, Headers]
"""An answer's body, and what headers it has besides type and length."""


class Asked:
    """A request as messages need it, to a path without a query; its body has at most `most` bytes, or reading it is
    refused.
    """

    def __init__(self, environ: "WSGIEnvironment", path: str, most: int) -> None:
        self.environ = environ
        self.path = path
        self._most = most
        self._body: bytes | None = None

    @property
    def is_message(self) -> bool:
        """Whether the body says that it is a message."""
        said = self.header("Content-Type")
        return said == CONTENT_TYPE or said.partition(";")[0].strip().lower() == CONTENT_TYPE

    def header(self, name: str) -> str:
        """Return a header, or nothing."""
        key = name.upper().replace("-", "_")
        return str(self.environ.get(key if key == "CONTENT_TYPE" else "HTTP_" + key, ""))

    @property
    def body(self) -> bytes:
        """The body. Raises what werkzeug and gunicorn do of one that is too long or breaks off."""
        if self._body is None:
            self._body = self._read()
        return self._body

    def _read(self) -> bytes:
        return get_input_stream(self.environ, max_content_length=self._most).read()


class _PeerAsked(Asked):
    """What a peer asked, as it was read, without an environment in between."""

    def __init__(self, request: PeerRequest, line: object, path: str, most: int) -> None:
        super().__init__({"gunicorn.socket": line}, path, most)
        self._request = request

    def header(self, name: str) -> str:
        return self._request.header(name)

    def _read(self) -> bytes:
        if len(self._request.body) > self._most:
            raise RequestEntityTooLarge
        return bytes(self._request.body)


class MessageFace:
    """Takes the POSTs to the paths that it serves, and passes all else on to the application."""

    def __init__(self, app: Flask, capture: Capture | None) -> None:
        self._beyond = app.wsgi_app
        self._most = app.config["MAX_CONTENT_LENGTH"]
        self._capture = capture
        self._paths: dict[str, Callable[[Asked], Answer]] = {}
        app.wsgi_app = self  # type: ignore[method-assign]  # as Flask has middleware put in place

    def add(self, path: str, handle: Callable[[Asked], Answer]) -> None:
        """Have POSTs to a path handled; what it raises leaves as a problem."""
        self._paths[path] = handle

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request, PEP 3333."""
        path = environ["PATH_INFO"]
        if not self.serves(path):
            return self._beyond(environ, start_response)
        status, headers, body = self.answer(Asked(environ, path, self._most), environ["REQUEST_METHOD"])
        start_response(status, headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def serves(self, path: str) -> bool:
        """Tell whether a path is of messages."""
        return path in self._paths

    def answer(self, request: Asked, method: str) -> tuple[str, Headers, bytes]:
        """Return status, headers and body of the answer to a request of a path that is served."""
        try:
            body, headers = self._paths[request.path](request) if method == "POST" else _not_allowed()
        except Exception as error:  # noqa: BLE001  the application's own last resort
            problem = web.error_response(error)
            body = problem.get_data()
            self._record(request, body, problem.status_code)
            return problem.status, list(problem.headers), body
        self._record(request, body, 200)
        return "200 OK", [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body))), *headers], body

    def answer_peer(self, request: PeerRequest, line: object, *, stays: bool) -> bytes | None:
        """Return the bytes of the answer to what a peer asked on a line; None if the path is not of messages."""
        path = request.path
        if request.method != "POST" or not self.serves(path):
            return None
        status, headers, body = self.answer(_PeerAsked(request, line, path, self._most), request.method)
        return answer_bytes(status, headers, body, stays=stays)

    def _record(self, request: Asked, answer: bytes, status: int) -> None:
        if self._capture is None or not request.is_message:
            return
        try:
            body = request.body
        except (HTTPException, ParseException):  # one that was cut off or is too large was refused, not received
            return
        self._capture.record(request.path, body, answer, status)


def _not_allowed() -> Answer:
    raise MethodNotAllowed(["POST"])


def read_message(request: Asked, kind: type[M]) -> M:
    """Return the message of a request's body."""
    if not request.is_message:
        detail = f"the body's content type is {CONTENT_TYPE}"
        raise Problem(415, "unsupported-media-type", detail, hint="this endpoint is for the alliance's own processes")
    return decode(kind, request.body)


def answer_of(value: object) -> Answer:
    """Return a message as an answer."""
    return encode(value), []


def require_service(request: Asked, tls: Tls | None, public: bytes, recipient: str) -> None:
    """Refuse a request unless the service made it to this agent.

    Over TLS its certificate says so (`not-the-service`), over plain HTTP its signature, of just now (`bad-signature`,
    `stale`).
    """
    if tls is not None:
        tls.require_service(request.environ)
        return
    try:
        issued_at = int(request.header(TIME_HEADER))
        signature = bytes.fromhex(request.header(SIGNATURE_HEADER))
    except ValueError:
        raise ProtocolError("bad-signature", "internal calls carry the service's time and signature") from None
    if not 0 <= issued_at < 1 << 63 or abs(time.time() - issued_at) > FRESHNESS_SECONDS:
        raise ProtocolError("stale", "the call is more than 60 s from this clock; check both clocks")
    signing.verify(public, signature, PURPOSE, *signed_parts(recipient, request.path, issued_at, request.body))
