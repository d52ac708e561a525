"""The binary messages' way into an application: beside Flask, whose routing and contexts they do not need.

Every hop of a check and a deposit comes this way, so it does no more than HTTP asks for. Errors leave as everywhere, as
problem+json.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from flask import Flask
from werkzeug.exceptions import MethodNotAllowed
from werkzeug.wrappers import Request, Response

from protocol.encoding import decode, encode
from transport import web
from transport.capture import Capture
from transport.internal import CONTENT_TYPE
from transport.problems import Problem

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

M = TypeVar("M")
Headers = list[tuple[str, str]]
Answer = tuple[bytes, Headers]
"""An answer's body, and what headers it has besides type and length."""


class MessageFace:
    """Takes the POSTs to the paths that it serves, and passes all else on to the application."""

    def __init__(self, app: Flask, capture: Capture | None) -> None:
        self._beyond = app.wsgi_app
        self._most = app.config["MAX_CONTENT_LENGTH"]
        self._capture = capture
        self._paths: dict[str, Callable[[Request], Answer]] = {}
        app.wsgi_app = self  # type: ignore[method-assign]  # as Flask has middleware put in place

    def add(self, path: str, handle: Callable[[Request], Answer]) -> None:
        """Have POSTs to a path handled; what it raises leaves as a problem."""
        self._paths[path] = handle

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request, PEP 3333."""
        handle = self._paths.get(environ["PATH_INFO"])
        if handle is None:
            return self._beyond(environ, start_response)
        request = Request(environ, populate_request=False)
        request.max_content_length = self._most
        try:
            body, headers = handle(request) if request.method == "POST" else _not_allowed()
        except Exception as error:  # noqa: BLE001  the application's own last resort
            problem: Response = web.error_response(error)
            if self._capture is not None:
                self._capture.record(request, problem.get_data(), problem.status_code)
            return problem(environ, start_response)
        if self._capture is not None:
            self._capture.record(request, body, 200)
        start_response("200 OK", [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body))), *headers])
        return [body]


def _not_allowed() -> Answer:
    raise MethodNotAllowed(["POST"])


def read_message(request: Request, kind: type[M]) -> M:
    """Return the message of a request's body."""
    if request.mimetype != CONTENT_TYPE:
        detail = f"the body's content type is {CONTENT_TYPE}"
        raise Problem(415, "unsupported-media-type", detail, hint="this endpoint is for the alliance's own processes")
    return decode(kind, request.get_data())


def answer_of(value: object) -> Answer:
    """Return a message as an answer."""
    return encode(value), []
