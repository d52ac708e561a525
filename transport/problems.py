"""Errors as they are told to callers: a stable code, a hint, and the HTTP status that goes with each."""

import math
from typing import Any

from protocol.errors import ProtocolError

STATUS_OF_CODE = {
    "unknown-rule": 404,
    "replayed": 409,
    "check-id-reused": 409,
    "bad-signature": 401,
    "stale": 401,
    "unknown-member": 403,
    "not-the-service": 403,
    "not-a-member": 403,
    "other-member": 403,
    "certificate-revoked": 403,
    "certificate-expired": 403,
    "no-revocations": 404,
    "unknown-manifest": 404,
    "not-custodian": 404,
    "other-manifest": 409,
    "manifest-expired": 503,
    "not-ready": 503,
    "rate-limited": 429,
    "busy": 503,
    "unreachable": 502,
    "timeout": 504,
}
"""HTTP status of a protocol refusal; 422 for all that are not listed."""

HINT_OF_CODE = {
    "unknown-rule": "GET /v1/rules of the agent lists the rules in force",
    "manifest-expired": "have the alliance's admins publish the next manifest",
    "other-manifest": "agents take up the newest manifest by themselves; see their logs if they do not",
    "stale": "set this machine's clock and the other's by a time server",
    "bad-signature": "calls are signed by a party of the manifest; check its keys and addresses",
    "unknown-member": "the manifest lists the members; compare it with this member's id",
    "not-the-service": "this endpoint is for the alliance's lookup service and its certificate",
    "not-a-member": "show the certificate that the alliance's CA issued to this member's agent",
    "other-member": "send messages of one's own with one's own certificate",
    "certificate-revoked": "ask the alliance's admins why, and for a new certificate",
    "certificate-expired": "have the alliance's admins renew the certificate; set the clocks of both machines",
    "no-revocations": "the service's operator puts the admins' crl.pem into its state directory",
    "unknown-manifest": "GET /v1/manifest of the service is the newest",
    "not-custodian": "the manifest lists each shard's custodians",
    "rate-limited": "send less at once, or ask the operator for a higher rate",
    "busy": "try again shortly",
    "recheck-not-allowed": "GET /v1/rules of the agent says which rules have a recheck_budget",
    "bad-manifest": "alliance propose makes terms that are consistent, from what is to change",
    "other-alliance": "alliance propose starts from the newest manifest of this alliance",
    "other-epoch": "alliance propose changes rules, addresses and how long a manifest is valid; SPEC.md, 7.2",
    "other-connections": "put such a manifest in place as a file, at all parties at once; SPEC.md, 7.2",
    "other-previous": "alliance propose makes terms that name the newest manifest by its hash; propose again",
    "manifest-from-the-future": "set this machine's clock and the admin's by a time server",
    "cap-lowered": "leave the cap as it is",
    "rule-rewritten": "make it another version of the rule, with a day of its own",
    "rule-version-order": "give the new version a number above all that the rule has had",
    "rule-back-dated": "let the new version be in force from today, in UTC+8, or from a day to come",
    "malformed": "both sides must run versions that know this message",
}
"""What to do about a protocol refusal."""
HINT_OF_STATUS = {
    400: "send a well-formed HTTP request",
    404: "GET /openapi.json of an agent lists its endpoints",
    405: "the Allow header names the methods that this address has",
    408: "send the whole body without pause",
    411: "send a Content-Length",
    413: "send less at once",
    414: "send a shorter address",
    415: "send the content type that the endpoint takes",
    431: "send fewer and shorter headers",
}
"""What to do about a request that no endpoint was asked with."""


class Problem(Exception):  # noqa: N818  the term of RFC 9457
    """An error to be told to the caller. Nothing in it may be secret or name a person."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        hint: str | None = None,
        errors: dict[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.hint = hint
        self.errors = errors
        self.retry_after = retry_after

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
        if self.retry_after is not None:
            body["retry_after"] = self.retry_after
        return body


class RateLimitedError(ProtocolError):
    """A refusal (`rate-limited`) of more than a rate allows; `retry_after` seconds later it fits, unless it never does.

    `wait` is in seconds, and infinite for what is more than may come at once.
    """

    def __init__(self, wait: float) -> None:
        never = math.isinf(wait)
        super().__init__("rate-limited", "more than may be asked at once" if never else "too much at once; slow down")
        self.retry_after = None if never else max(1, math.ceil(wait))


def fault(error: BaseException) -> str:
    """Return the kind and place of a fault for a log; its message is left out, as it may hold values of a request."""
    where, place = "unknown", error.__traceback__
    while place is not None:
        file = place.tb_frame.f_code.co_filename
        if "site-packages" not in file:  # the innermost place in our own code says most
            where = f"{file}:{place.tb_lineno}"
        place = place.tb_next
    return f"{type(error).__name__} at {where}"
