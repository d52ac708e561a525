"""What both Flask applications have in common: problem+json, binary messages, the service's signature."""

import logging
import time
from typing import TypeVar

from flask import Flask, Response, json, request
from gunicorn.http.errors import ParseException
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from protocol import signing
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import FRESHNESS_SECONDS
from transport.internal import CONTENT_TYPE, PURPOSE, SIGNATURE_HEADER, TIME_HEADER, signed_parts
from transport.problems import HINT_OF_CODE, HINT_OF_STATUS, STATUS_OF_CODE, Problem, RateLimitedError, fault
from transport.tls import Tls

M = TypeVar("M")

log = logging.getLogger(__name__)


def problem_response(problem: Problem) -> Response:
    """Return a problem as problem+json."""
    response = Response(json.dumps(problem.body()), status=problem.status, content_type="application/problem+json")
    if problem.status == 401:  # noqa: PLR2004  RFC 9110, section 11.6.1
        response.headers["WWW-Authenticate"] = 'Bearer realm="insurer agent"'
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(problem.retry_after)
    return response


def register(app: Flask) -> None:
    """Have every error of the app leave as problem+json, and no address be another's."""
    app.url_map.merge_slashes = False  # and a policy number may have two in a row

    @app.errorhandler(ParseException)
    def on_bad_framing(_error: ParseException) -> Response:
        detail = "the body is not framed as HTTP frames one"
        return problem_response(Problem(400, "bad-request", detail, hint=HINT_OF_STATUS[400]))

    @app.errorhandler(Problem)
    def on_problem(error: Problem) -> Response:
        return problem_response(error)

    @app.errorhandler(ProtocolError)
    def on_refusal(error: ProtocolError) -> Response:
        status, hint = STATUS_OF_CODE.get(error.code, 422), HINT_OF_CODE.get(error.code)
        retry_after = error.retry_after if isinstance(error, RateLimitedError) else None
        return problem_response(Problem(status, error.code, error.hint, hint=hint, retry_after=retry_after))

    @app.errorhandler(ValidationError)
    def on_invalid(error: ValidationError) -> Response:
        # The messages name fields and expectations; marshmallow does not repeat the values.
        return problem_response(
            Problem(
                422,
                "invalid-request",
                "the request does not fit the schema",
                hint="see errors, by field",
                errors=error.messages_dict,
            )
        )

    @app.errorhandler(HTTPException)
    def on_http(error: HTTPException) -> Response:
        code = (error.name or "error").lower().replace(" ", "-")
        status = error.code or 500
        response = problem_response(
            Problem(status, code, error.description or code, hint=HINT_OF_STATUS.get(status, "see the agent's log"))
        )
        for name, value in error.get_headers():
            if name.lower() == "allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def on_fault(error: Exception) -> Response:
        log.error("internal fault: %s", fault(error))
        detail = "the fault has been logged; nothing was half done"
        return problem_response(Problem(500, "internal-error", detail, hint="see the log of this server"))


def require_service(tls: Tls | None, public: bytes, recipient: str) -> None:
    """Refuse the current request unless the service made it to this agent.

    Over TLS its certificate says so (`not-the-service`), over plain HTTP its signature, of just now (`bad-signature`,
    `stale`).
    """
    if tls is not None:
        tls.require_service(request.environ)
        return
    try:
        issued_at = int(request.headers.get(TIME_HEADER, ""))
        signature = bytes.fromhex(request.headers.get(SIGNATURE_HEADER, ""))
    except ValueError:
        raise ProtocolError("bad-signature", "internal calls carry the service's time and signature") from None
    if not 0 <= issued_at < 1 << 63 or abs(time.time() - issued_at) > FRESHNESS_SECONDS:
        raise ProtocolError("stale", "the call is more than 60 s from this clock; check both clocks")
    signing.verify(public, signature, PURPOSE, *signed_parts(recipient, request.path, issued_at, request.get_data()))


def read_message(kind: type[M]) -> M:
    """Return the message of the current request's body."""
    if request.mimetype != CONTENT_TYPE:
        detail = f"the body's content type is {CONTENT_TYPE}"
        raise Problem(415, "unsupported-media-type", detail, hint="this endpoint is for the alliance's own processes")
    return decode(kind, request.get_data())


def message_response(value: object) -> Response:
    """Return a message as a response."""
    return Response(encode(value), content_type=CONTENT_TYPE)
