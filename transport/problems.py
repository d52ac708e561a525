"""Errors over HTTP: problem+json (RFC 9457) with a stable code and a hint, from one table."""

import logging
from typing import Any

from flask import Flask, Response, json
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from protocol.errors import ProtocolError

log = logging.getLogger(__name__)

STATUS_OF_CODE = {
    "unknown-rule": 404,
    "budget-exhausted": 429,
    "replayed": 409,
    "check-id-reused": 409,
    "bad-signature": 401,
    "stale": 401,
    "unknown-member": 403,
    "not-custodian": 404,
    "other-manifest": 409,
    "manifest-expired": 503,
    "not-ready": 503,
    "rate-limited": 429,
    "unreachable": 502,
    "timeout": 504,
}
"""HTTP status of a protocol refusal; 422 for all that are not listed."""


class Problem(Exception):  # noqa: N818  the term of RFC 9457
    """An error to be told to the caller. Nothing in it may be secret or name a person."""

    def __init__(
        self, status: int, code: str, detail: str, *, hint: str | None = None, errors: dict[str, Any] | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.hint = hint
        self.errors = errors

    def response(self) -> Response:
        """Return the problem+json response."""
        body: dict[str, Any] = {
            "type": f"urn:cover-lookup:problem:{self.code}",
            "title": self.code.replace("-", " "),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.hint is not None:
            body["hint"] = self.hint
        if self.errors is not None:
            body["errors"] = self.errors
        response = Response(json.dumps(body), status=self.status, content_type="application/problem+json")
        if self.status == 401:  # noqa: PLR2004  RFC 9110, section 11.6.1
            response.headers["WWW-Authenticate"] = 'Bearer realm="insurer agent"'
        return response


def fault(error: BaseException) -> str:
    """Return the kind and place of a fault for a log; its message is left out, as it may hold values of a request."""
    where, place = "unknown", error.__traceback__
    while place is not None:
        file = place.tb_frame.f_code.co_filename
        if "site-packages" not in file:  # the innermost place in our own code says most
            where = f"{file}:{place.tb_lineno}"
        place = place.tb_next
    return f"{type(error).__name__} at {where}"


def register(app: Flask) -> None:
    """Have every error of the app leave as problem+json."""

    @app.errorhandler(Problem)
    def on_problem(error: Problem) -> Response:
        return error.response()

    @app.errorhandler(ProtocolError)
    def on_refusal(error: ProtocolError) -> Response:
        return Problem(STATUS_OF_CODE.get(error.code, 422), error.code, error.hint).response()

    @app.errorhandler(ValidationError)
    def on_invalid(error: ValidationError) -> Response:
        # The messages name fields and expectations; marshmallow does not repeat the values.
        return Problem(
            422,
            "invalid-request",
            "the request does not fit the schema",
            hint="see errors, by field",
            errors=error.messages_dict,
        ).response()

    @app.errorhandler(HTTPException)
    def on_http(error: HTTPException) -> Response:
        code = (error.name or "error").lower().replace(" ", "-")
        response = Problem(error.code or 500, code, error.description or code).response()
        for name, value in error.get_headers():
            if name.lower() == "allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def on_fault(error: Exception) -> Response:
        log.error("internal fault: %s", fault(error))
        return Problem(500, "internal-error", "the fault has been logged; nothing was half done").response()
