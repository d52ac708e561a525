"""Errors as they are told to callers: a stable code, a hint, and the HTTP status that goes with each."""

from typing import Any

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

    def body(self) -> dict[str, Any]:
        """Return the members of the problem+json document (RFC 9457)."""
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
        return body


def fault(error: BaseException) -> str:
    """Return the kind and place of a fault for a log; its message is left out, as it may hold values of a request."""
    where, place = "unknown", error.__traceback__
    while place is not None:
        file = place.tb_frame.f_code.co_filename
        if "site-packages" not in file:  # the innermost place in our own code says most
            where = f"{file}:{place.tb_lineno}"
        place = place.tb_next
    return f"{type(error).__name__} at {where}"
