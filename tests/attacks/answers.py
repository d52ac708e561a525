"""A malicious party's hand on its own HTTP answers: binary messages go beside Flask and what Flask has for that."""

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask
from werkzeug.wrappers import Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Change = Callable[[Response], Response]
_now = threading.local()


def after_this_request(change: Change) -> None:
    """Have the answer to the request under way changed before it leaves."""
    _now.changes.append(change)


def environ() -> dict[str, Any]:
    """Return the WSGI environment of the request under way."""
    found: dict[str, Any] = _now.environ
    return found


class Bent:
    """An application whose answers can be changed."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        _now.environ, _now.changes = environ, []
        response = Response.from_app(self._app, environ, buffered=True)
        for change in _now.changes:
            response = change(response)
        return response(environ, start_response)
