"""The agent's HTTP faces: REST for underwriting systems, and the calls of the lookup service."""

import datetime as dt
import json
from collections.abc import Callable
from threading import BoundedSemaphore
from typing import Any, TypeVar

from flask import Flask, Response, jsonify, request

from insurer_agent.agent import Agent
from insurer_agent.intake.amounts import format_amount, parse_amount
from insurer_agent.intake.documents import normalise
from insurer_agent.intake.errors import IntakeError
from insurer_agent.requester import Answer
from insurer_agent.schemas import CheckAnswerSchema, CheckRequestSchema, RuleSchema
from protocol.check import Verdict
from protocol.manifest import SUM_INSURED, Rule, day_of
from protocol.messages import CheckCall, CommitCall, PrepareCall, Relayed
from transport import internal, web
from transport.capture import capture_messages
from transport.problems import Problem
from transport.server import MAX_BODY

M = TypeVar("M")

MAX_JSON = 64 << 10
CHINA = dt.timezone(dt.timedelta(hours=8))


def make_app(agent: Agent) -> Flask:
    """Return the WSGI application of an agent."""
    app = Flask("insurer_agent")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    web.register(app)
    _underwriting(app, agent)
    _internal(app, agent)
    _health(app, agent)
    if agent.settings.capture is not None and agent.party.manifest.terms.local:
        capture_messages(app, agent.settings.capture)
    return app


def _underwriting(app: Flask, agent: Agent) -> None:
    # Checks wait for other agents, whose checks wait for this one's answers: half of the threads stay free for those.
    places = BoundedSemaphore(agent.settings.threads // 2)

    @app.post("/v1/checks")
    def check() -> Response:
        _require_api_key(agent)
        question = CheckRequestSchema().load(_json())
        amount = _amount(agent, question["proposed_amount"])
        subject = question["subject"]
        try:
            identity = normalise(subject["document_type"], subject["document_number"])
        except IntakeError as error:
            raise Problem(422, error.code, error.reason, hint="correct subject.document_number") from None
        if not places.acquire(timeout=agent.settings.check_seconds / 2):
            raise Problem(503, "busy", "too many checks at once", hint="try again shortly")
        try:
            answer = agent.requester.check(identity, question["rule"], amount)
        finally:
            places.release()
        return jsonify(_answer(answer, question["reference"]))

    @app.get("/v1/rules")
    def rules() -> Response:
        _require_api_key(agent)
        return jsonify({"rules": [_rule(rule) for rule in agent.requester.rules()]})

    @app.get("/v1/status")
    def status() -> Response:
        _require_api_key(agent)
        backlog = agent.outbox.backlog()
        return jsonify({"deposits_unmade": backlog.unmade, "deposits_incomplete": backlog.incomplete})


def _internal(app: Flask, agent: Agent) -> None:
    def serve(path: str, kind: type[M], answer: Callable[[M], object]) -> None:
        def handle() -> Response:
            web.require_service(agent.party.manifest.terms.service_signing_key, agent.party.id)
            return web.message_response(answer(web.read_message(kind)))

        app.add_url_rule(path, endpoint=path, view_func=handle, methods=["POST"])

    serve(internal.CHECK, CheckCall, agent.custodian.check)
    serve(internal.PREPARE, PrepareCall, agent.custodian.prepare)
    serve(internal.COMMIT, CommitCall, agent.custodian.commit)
    serve(internal.COMMITTEE_KEY, Relayed, agent.custodian.receive_key)


def _health(app: Flask, agent: Agent) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        missing = agent.custodian.missing_keys()
        if missing:
            raise Problem(503, "not-ready", f"{missing} committee keys have not arrived yet", hint="try again shortly")
        return jsonify({"status": "ready"})


def _require_api_key(agent: Agent) -> None:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or agent.api_keys.holder(key.strip()) is None:
        raise Problem(
            401, "unauthorized", "an API key of this agent is needed", hint="send Authorization: Bearer <API key>"
        )


def _json() -> Any:  # noqa: ANN401  any JSON value; the schema says which are good
    request.max_content_length = MAX_JSON
    hint = "send Content-Type: application/json, each name once"
    if not request.is_json:
        raise Problem(400, "not-json", "the body is not JSON", hint=hint)
    try:
        return json.loads(request.get_data(), object_pairs_hook=_each_name_once)
    except (ValueError, RecursionError):
        raise Problem(400, "not-json", "the body is not JSON", hint=hint) from None


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that stands twice: readers disagree on which of them counts."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _amount(agent: Agent, text: str) -> int:
    try:
        # Zero asks how things stand without new cover.
        return parse_amount(text, minimum=0, maximum=agent.party.manifest.terms.deposit_cap)
    except IntakeError as error:
        raise Problem(422, error.code, error.reason, hint='write yuan as in "3000000.00"') from None


def _answer(answer: Answer, reference: str | None) -> Any:  # noqa: ANN401  JSON
    exceeds = {Verdict.EXCEEDS: True, Verdict.WITHIN: False, Verdict.INDETERMINATE: None}[answer.verdict]
    return CheckAnswerSchema().dump(
        {
            "check_id": answer.check_id.hex(),
            "reference": reference,
            "rule": answer.rule.id,
            "rule_version": answer.rule.version,
            "verdict": answer.verdict.value,
            "exceeds_limit": exceeds,
            "reason": None if answer.reason is None else answer.reason.value,
            "window": {"first": day_of(answer.rule.window_start(answer.as_of)), "last": day_of(answer.as_of)},
            "checked_at": dt.datetime.now(CHINA),
        }
    )


def _rule(rule: Rule) -> Any:  # noqa: ANN401  JSON
    limit = format_amount(rule.limit) if rule.measure == SUM_INSURED else str(rule.limit)
    return RuleSchema().dump(
        {
            "id": rule.id,
            "version": rule.version,
            "products": list(rule.products),
            "window_days": rule.window_days,
            "measure": rule.measure,
            "limit": limit,
            "currency": rule.currency,
            "budget": rule.budget,
            "budget_days": rule.budget_days,
            "valid_from": day_of(rule.valid_from),
        }
    )
