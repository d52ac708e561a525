"""Binary messages over HTTP, and the service's signatures on its calls to custodians and its answers to agents.

Over TLS both ends of a connection have shown who they are, and nothing needs a signature. Over plain HTTP the service
signs recipient, path, time and body's hash of every call to an agent, and its answers with the hash of what they
answer. Agents refuse what it did not sign, calls for another agent or more than 60 s from their clock. A call that is
replayed within those 60 s meets the replay records of checks and the idempotence of deposits.
"""

import hashlib
import json
from typing import TypeVar

from protocol import signing
from protocol.encoding import decode
from protocol.errors import ProtocolError, is_code
from protocol.secret import Secret
from transport.certificates import SERVICE
from transport.peers import Call, Reply, Unreachable

M = TypeVar("M")

CONTENT_TYPE = "application/vnd.cover-lookup"
TIME_HEADER = "Lookup-Time"
SIGNATURE_HEADER = "Lookup-Signature"
PURPOSE = "internal call"
_ANSWER = "answer of the service"

CHECK = "/internal/v1/check"
CHECKS = "/internal/v1/checks"
"""Calls of several checks at once."""
PREPARE = "/internal/v1/prepare"
COMMIT = "/internal/v1/commit"
COMMITTEE_KEY = "/internal/v1/committee-key"


def signed_parts(recipient: str, path: str, issued_at: int, body: bytes) -> tuple[bytes, ...]:
    """Return what the service signs of a call."""
    return recipient.encode(), path.encode(), issued_at.to_bytes(8, "big"), hashlib.sha256(body).digest()


def signed_headers(private: Secret, recipient: str, path: str, body: bytes, now: float) -> dict[str, str]:
    """Return the headers of a call from the service to an agent."""
    signature = signing.sign(private, PURPOSE, *signed_parts(recipient, path, int(now), body))
    return {"Content-Type": CONTENT_TYPE, TIME_HEADER: str(int(now)), SIGNATURE_HEADER: signature.hex()}


def sign_answer(private: Secret, path: str, request: bytes, answer: bytes) -> str:
    """Return the header by which an agent knows that the service gave this answer to this very request."""
    return signing.sign(private, _ANSWER, *_answer_parts(path, request, answer)).hex()


def _answer_parts(path: str, request: bytes, answer: bytes) -> tuple[bytes, ...]:
    return path.encode(), hashlib.sha256(request).digest(), hashlib.sha256(answer).digest()


def service_message_of(kind: type[M], call: Call, reply: Reply | Unreachable, public: bytes) -> M:
    """As `message_of`, for an answer of the service: refuse (`bad-signature`) what it did not sign for this call.

    An answer of a TLS connection that the service's certificate opened has no signature and needs none.
    """
    message = message_of(kind, reply)
    assert isinstance(reply, Reply)
    if reply.sender == SERVICE:
        return message
    try:
        signature = bytes.fromhex(reply.signature)
    except ValueError:
        raise ProtocolError("bad-signature", "the answer bears no signature of the service") from None
    signing.verify(public, signature, _ANSWER, *_answer_parts(call.path, call.body, reply.body))
    return message


def message_of(kind: type[M], reply: Reply | Unreachable) -> M:
    """Return the message of a peer's answer.

    Raises `ProtocolError`: `unreachable`, `timeout`, the code that the peer refused with, or `malformed`.
    """
    return decode(kind, body_of(reply))


def body_of(reply: Reply | Unreachable) -> bytes:
    """Return the body of a peer's answer; raises as `message_of`."""
    if isinstance(reply, Unreachable):
        raise ProtocolError("timeout" if reply.timed_out else "unreachable", "the peer gave no answer")
    if reply.status != 200:  # noqa: PLR2004  the one status of success here
        raise ProtocolError(_code_of(reply), f"the peer refused with status {reply.status}")
    return reply.body


def _code_of(reply: Reply) -> str:
    """Return the stable code of a problem, or `refused` where there is none to trust."""
    if reply.content_type == "application/problem+json":
        try:
            code = json.loads(reply.body).get("code")
        except (ValueError, AttributeError, RecursionError):
            code = None
        if isinstance(code, str) and is_code(code):
            return code
    return "refused"
