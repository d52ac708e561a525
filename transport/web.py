"""What both applications have in common: errors as problem+json."""

import logging
from collections.abc import Callable
from typing import Any

from flask import Flask, Request, Response, json
from flask.sessions import NullSession, SessionInterface
from gunicorn.http.errors import ParseException
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter
from werkzeug.wsgi import get_host

from protocol.errors import ProtocolError
from transport.problems import HINT_OF_CODE, HINT_OF_STATUS, STATUS_OF_CODE, Problem, RateLimitedError, fault

log = logging.getLogger(__name__)


class _NoSessions(SessionInterface):
    """Every request has the same session, which is empty and takes nothing."""

    _none = NullSession()

    def open_session(self, _app: Flask, _request: Request) -> NullSession:
        return self._none


class PlainFlask(Flask):
    """Flask without what an interface for machines has no use for, and which each request would pay for: sessions,
    views that are coroutines, and hosts as parts of addresses.
    """

    session_interface = _NoSessions()

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a view as it is: none is a coroutine."""
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Return what finds a request's view; addresses are matched as Flask does, without a look for subdomains."""
        if request is None or "HTTP_UPGRADE" in request.environ:
            return super().create_url_adapter(request)
        host = get_host(request.environ)
        return self.url_map.bind(host, path_info=request.path, default_method=request.method)


class WholeResponse(Response):
    """A response with a body in one piece, whose status allows one: its headers are all there when it is made."""

    def get_wsgi_headers(self, _environ: Any) -> Any:  # noqa: ANN401  as werkzeug has it
        """Return the headers as they are: there is no length to find out, and none to take away."""
        return self.headers


def problem_response(problem: Problem) -> Response:
    """Return a problem as problem+json."""
    response = Response(json.dumps(problem.body()), status=problem.status, content_type="application/problem+json")
    if problem.status == 401:  # noqa: PLR2004  RFC 9110, section 11.6.1
        response.headers["WWW-Authenticate"] = 'Bearer realm="cover lookup"'
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(problem.retry_after)
    return response


def register(app: Flask) -> None:
    """Have every error of the app leave as problem+json, and no address be another's."""
    app.url_map.merge_slashes = False  # and a policy number may have two in a row
    app.register_error_handler(Exception, error_response)
    app.register_error_handler(HTTPException, error_response)  # which Flask would answer by itself otherwise


def error_response(error: Exception) -> Response:
    """Return what an error leaves as; one that nobody foresaw is logged without what it says."""
    match error:
        case Problem():
            return problem_response(error)
        case ProtocolError():
            status, hint = STATUS_OF_CODE.get(error.code, 422), HINT_OF_CODE.get(error.code)
            retry_after = error.retry_after if isinstance(error, RateLimitedError) else None
            return problem_response(Problem(status, error.code, error.hint, hint=hint, retry_after=retry_after))
        case ValidationError():
            # The messages name fields and expectations; marshmallow does not repeat the values.
            detail, hint = "the request does not fit the schema", "see errors, by field"
            return problem_response(
                Problem(422, "invalid-request", detail, hint=hint, errors=error.messages_dict),
            )
        case ParseException():
            detail = "the body is not framed as HTTP frames one"
            return problem_response(Problem(400, "bad-request", detail, hint=HINT_OF_STATUS[400]))
        case HTTPException():
            return _http_response(error)
        case _:
            log.error("internal fault: %s", fault(error))
            detail = "the fault has been logged; nothing was half done"
            return problem_response(Problem(500, "internal-error", detail, hint="see the log of this server"))


def _http_response(error: HTTPException) -> Response:
    code = (error.name or "error").lower().replace(" ", "-")
    status = error.code or 500
    response = problem_response(
        Problem(status, code, error.description or code, hint=HINT_OF_STATUS.get(status, "see the agent's log"))
    )
    for name, value in error.get_headers():
        if name.lower() == "allow":
            response.headers[name] = value
    return response
