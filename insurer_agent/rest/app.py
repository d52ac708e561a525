"""The agent's WSGI application, put together from its faces."""

from collections.abc import Callable
from threading import BoundedSemaphore
from typing import TypeVar

from flask import Flask, Response, jsonify

from insurer_agent.agent import Agent
from insurer_agent.rest import access, api_keys, batches, checks, jobs, pages, policies
from protocol.messages import (
    CheckAnswer,
    CheckCall,
    CheckCalls,
    CheckReplies,
    CommitCall,
    PrepareAnswer,
    PrepareCall,
    Relayed,
)
from transport import internal, web
from transport.capture import Capture
from transport.message_face import Answer, Asked, MessageFace, answer_of, read_message, require_service
from transport.problems import Problem
from transport.server import MAX_BODY

M = TypeVar("M")


def make_app(agent: Agent) -> Flask:
    """Return the WSGI application of an agent."""
    app = web.PlainFlask("insurer_agent", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    web.register(app)
    access.guard(app, agent)
    # Checks wait for other agents, whose checks wait for this one's answers: half of the threads stay free for those.
    places = BoundedSemaphore(agent.settings.threads // 2)
    checks.serve(app, agent, places)
    batches.serve(app, agent, places)
    jobs.serve(app, agent)
    policies.serve(app, agent)
    api_keys.serve(app, agent)
    _health(app, agent)
    pages.serve(app)
    captured = agent.settings.capture if agent.party.manifest.terms.local else None
    _internal(MessageFace(app, None if captured is None else Capture(captured)), agent)
    return app


def _internal(face: MessageFace, agent: Agent) -> None:
    def serve(path: str, kind: type[M], answer: Callable[[M], object]) -> None:
        def handle(request: Asked) -> Answer:
            require_service(request, agent.tls, agent.party.manifest.terms.service_signing_key, agent.party.id)
            return answer_of(answer(read_message(request, kind)))

        face.add(path, handle)

    custodian, acting = agent.custodian, agent.acting

    def check(call: CheckCall) -> CheckAnswer:
        return custodian.under(acting.of_check(call.signed.statement.manifest_hash)).check(call)

    def checks(several: CheckCalls) -> CheckReplies:
        parties = [acting.of_check(call.signed.statement.manifest_hash) for call in several.calls]
        return CheckReplies(replies=tuple(custodian.check_together(list(zip(parties, several.calls, strict=True)))))

    def prepare(call: PrepareCall) -> PrepareAnswer:
        return custodian.under(acting.of_deposit(call.manifest_hash)).prepare(call)

    serve(internal.CHECK, CheckCall, check)
    serve(internal.CHECKS, CheckCalls, checks)
    serve(internal.PREPARE, PrepareCall, prepare)
    serve(internal.COMMIT, CommitCall, lambda call: custodian.under(acting.now()).commit(call))
    serve(internal.COMMITTEE_KEY, Relayed, lambda call: custodian.under(acting.now()).receive_key(call))


def _health(app: Flask, agent: Agent) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        missing = agent.custodian.missing_keys()
        if missing:
            detail = f"{missing} committee keys have not arrived yet"
            raise Problem(503, "not-ready", detail, hint="try again shortly", retry_after=1)
        return jsonify({"status": "ready"})
