"""Who may call which endpoint of the service. Deny by default: an endpoint that declares nobody is open to nobody.

Every endpoint of the application stands in the table of deploy/roles-of-the-service.md, which a test makes from here.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import StrEnum
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import Any, TypeVar

from flask import Flask, Response, g, request

from service.api_keys import Action, ApiKeys, Holder, Role
from service.audit import Act, AuditLog
from service.limits import RateLimit
from service.proposals import is_id
from transport.problems import Problem
from transport.tls import Tls

F = TypeVar("F", bound=Callable[..., Any])
_ATTRIBUTE = "_open_to"


class Caller(StrEnum):
    """Who calls without an API key: `anyone`, or a `member` of the alliance, by its certificate."""

    ANYONE = "anyone"
    MEMBER = "member"


def open_to(*whom: Caller | Role, to: Action = Action.READ) -> Callable[[F], F]:
    """Declare who may call an endpoint; for API keys, `to` do what."""

    def declare(view: F) -> F:
        setattr(view, _ATTRIBUTE, (frozenset(whom), to))
        return view

    return declare


def callers_of(app: Flask, endpoint: str) -> tuple[frozenset[Caller | Role], Action]:
    """Return who may call an endpoint, to do what: nobody, unless it says so."""
    found: tuple[frozenset[Caller | Role], Action] = getattr(
        app.view_functions[endpoint], _ATTRIBUTE, (frozenset(), Action.READ)
    )
    return found


def guard(
    app: Flask, tls: Tls | None, keys: ApiKeys, limit: RateLimit, places: BoundedSemaphore, audit: AuditLog
) -> None:
    """Have every request refused before its endpoint sees it, and before its body is read, that is not for its caller.

    Codes: `not-a-member` and its like where a member's certificate is needed; `unauthorized` and `api-key-expired`
    without a good key, `forbidden` with one of another role or scope, `rate-limited`, and `busy` where all `places`
    that holders of keys may take of the process's threads are taken: nobody waits for one, which would take a thread.
    Where one who may ask at this rate is refused what would write, the audit log has it.
    """

    @app.before_request
    def refuse_unless_open() -> None:
        if request.endpoint is None:  # no such address or method, which is said next
            return
        whom, action = callers_of(app, request.endpoint)
        if Caller.ANYONE in whom:
            return
        if Caller.MEMBER in whom:
            if tls is not None:
                tls.require_member(request.environ)
            return
        holder = _holder(keys)
        limit.take(holder.name, 1)
        if action is not Action.READ:
            g.acting = (holder.name, action)
        _require(holder, whom, action)
        if not places.acquire(blocking=False):
            raise Problem(503, "busy", "too much at once of what can wait", hint="try again shortly", retry_after=1)
        g.in_place = True
        g.holder = holder

    _write_down_refusals(app, audit)

    @app.teardown_request
    def leave(_error: BaseException | None) -> None:
        if g.pop("in_place", False):
            places.release()


def _write_down_refusals(app: Flask, audit: AuditLog) -> None:
    @app.after_request
    def write_down(response: Response) -> Response:
        if "acting" in g and response.status_code >= HTTPStatus.BAD_REQUEST:
            key, action = g.acting
            asked = (request.view_args or {}).get("proposal_id", "")
            proposal, admin = g.get("acting_on", asked if is_id(asked) else None), g.get("acting_as")
            code = str(response.get_json(force=True)["code"])
            with suppress(Problem):  # which the log says; the refusal stands
                audit.write(Act(int(time.time()), key, action, proposal, admin, code))
        return response


def holder() -> Holder:
    """Return whose API key the request bears, which the guard has found good."""
    found: Holder = g.holder
    return found


def acting(*, on: str | None = None, admin: str | None = None) -> None:
    """Say which proposal, or whose signature, the request is about, should it be refused."""
    if on is not None:
        g.acting_on = on
    if admin is not None:
        g.acting_as = admin


def _holder(keys: ApiKeys) -> Holder:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Problem(
            401,
            "unauthorized",
            "an API key of this service is needed",
            hint="send Authorization: Bearer <API key>; the operator makes one by lookup-service api-key make",
        )
    return keys.holder(key.strip())


def _require(holder: Holder, whom: Iterable[Caller | Role], action: Action) -> None:
    if holder.role not in whom:
        detail = f"this is not for API keys of the role {holder.role}"
        raise Problem(403, "forbidden", detail, hint="deploy/roles-of-the-service.md says which role may do what")
    if action not in holder.scope:
        detail = f"this API key is not to {action}"
        raise Problem(403, "forbidden", detail, hint="use a key whose scope has it; api-key list shows the scopes")
