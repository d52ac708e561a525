"""What both applications have in common: errors as problem+json."""

import logging

from flask import Flask, Response, json
from gunicorn.http.errors import ParseException
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from protocol.errors import ProtocolError
from transport.problems import HINT_OF_CODE, HINT_OF_STATUS, STATUS_OF_CODE, Problem, RateLimitedError, fault

log = logging.getLogger(__name__)


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
