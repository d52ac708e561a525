"""Who may ask what: every endpoint declares its roles, or is public by its name here; one that does neither is refused.

The table of all endpoints stands in `deploy/agent-roles.md`; a test makes it from the application and compares.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flask import Flask, Request, g, request

from insurer_agent.agent import Agent
from insurer_agent.roles import Role
from transport.problems import Problem

V = TypeVar("V", bound=Callable[..., Any])

CHECKS = (Role.UNDERWRITER,)
POLICIES = (Role.DATA_OPERATOR,)
STATUS = (Role.DATA_OPERATOR, Role.AUDITOR, Role.ADMIN)
KEY_NAMES = (Role.AUDITOR, Role.ADMIN)
KEYS = (Role.ADMIN,)
ANY = tuple(Role)
PUBLIC = frozenset({"healthz", "readyz", "openapi", "/docs", "/docs/try.js", "/docs/try.css"})
"""Endpoints, by Flask's names, that ask nobody who he is: they say nothing of persons, policies or checks."""
_ROLES = "roles_that_may"
_CALLER = "caller"


@dataclass(frozen=True)
class Caller:
    """Whose request it is: the name of the API key or certificate, and `mark`, by which what is his is known."""

    name: str
    mark: str = field(repr=False)
    """The key itself, or the certificate's hash."""


def allow(*roles: Role) -> Callable[[V], V]:
    """Declare who may ask an endpoint. Goes next to the view, below its address."""

    def declare(view: V) -> V:
        setattr(view, _ROLES, frozenset(roles))
        return view

    return declare


def roles_of(app: Flask, endpoint: str) -> frozenset[Role] | None:
    """Return who may ask an endpoint; None: nobody has said."""
    return getattr(app.view_functions[endpoint], _ROLES, None)


def table(app: Flask) -> dict[tuple[str, str], frozenset[Role] | None]:
    """Return who may ask each (method, address); None is all."""
    found = {}
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            roles = roles_of(app, rule.endpoint)
            found[method, rule.rule] = None if rule.endpoint in PUBLIC else roles or frozenset()
    return found


def guard(app: Flask, agent: Agent) -> None:
    """Have every request refused unless its endpoint is public, or its caller has one of the endpoint's roles.

    Refuses what bears no good key (`unauthorized`) or one that has ended (`api-key-expired`) before it says whether the
    role fits (`forbidden-role`).
    """

    @app.before_request
    def require() -> None:
        asked = current_request()
        endpoint = asked.endpoint
        if endpoint is None or endpoint in PUBLIC:
            return  # there is no such address, which is said to all
        roles = roles_of(app, endpoint)
        if not roles:
            detail = "the endpoint does not say who may ask it, so nobody may"
            raise Problem(403, "forbidden-role", detail, hint="report this as a fault of the agent")
        setattr(g, _CALLER, _caller(agent, asked, roles))


def current_request() -> Request:
    """Return the request that is being answered, and not Flask's stand-in for it, which looks for it at every touch."""
    return request._get_current_object()  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001  so Flask documents it


def caller() -> Caller:
    """Return whose request it is that is being answered."""
    found: Caller = getattr(g, _CALLER)
    return found


def _caller(agent: Agent, request: Request, roles: frozenset[Role]) -> Caller:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    key, holder, mark = key.strip(), None, ""
    if scheme.lower() == "bearer":
        holder, mark = agent.api_keys.holder(key), key
    elif not scheme and agent.tls is not None and (certificate := agent.tls.outsider(request.environ)) is not None:
        holder = agent.api_keys.holder_of_certificate(certificate)
        mark = f"certificate {hashlib.sha256(certificate).hexdigest()}"  # no API key reads so
    if holder is None:
        detail = "an API key of this agent is needed, or a registered client certificate"
        raise Problem(401, "unauthorized", detail, hint="send Authorization: Bearer <API key>")
    if holder.has_ended:
        hint = "have an admin of the agent make another: insurer-agent api-key make NAME --role ROLE --replace"
        raise Problem(401, "api-key-expired", "the API key, or the certificate's registration, has ended", hint=hint)
    if not roles & holder.roles:
        needed = " or ".join(role.value for role in Role if role in roles)
        detail = "the API key has no role that may do this"
        raise Problem(403, "forbidden-role", detail, hint=f"use a key with the role {needed}")
    return Caller(holder.name, mark)
