"""The policy system's face: policies as they are issued, amended and cancelled.

Each request says what shall be, so sending it again changes nothing. A policy counts in checks once its deposit is
made, within about a minute; `visible_to_checks` tells.
"""

import datetime as dt
from functools import partial
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, jsonify

from insurer_agent.agent import Agent
from insurer_agent.intake.amounts import format_amount
from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.policy import Event, normalise_policy_number
from insurer_agent.rest.access import POLICIES, allow, caller
from insurer_agent.rest.requests import Reply, amount_of, answer, subject_of
from insurer_agent.rest.schemas import (
    AmendmentSchema,
    CancellationSchema,
    PolicyAnswerSchema,
    PolicySchema,
    PolicyStateSchema,
)
from insurer_agent.store.register import POLICY_AMBIGUOUS, POLICY_UNKNOWN, Applied, PolicyEvent, PolicyName, Record
from transport.problems import Problem

STATUS_OF_REFUSAL = {POLICY_UNKNOWN: 404, POLICY_AMBIGUOUS: 409, "policy-conflict": 409, "policy-cancelled": 409}
"""HTTP status of what the register refuses; 422 for all that are not listed."""
HINT_OF_REFUSAL = {
    POLICY_UNKNOWN: "issue it first, by POST /v1/policies",
    POLICY_AMBIGUOUS: "send subject and product as they were issued",
    "policy-conflict": "amend it instead, by PUT /v1/policies/<number>",
    "policy-cancelled": "a cancelled policy stays so; issue a new one under another number",
    "product-unknown": "GET /v1/rules lists the products that rules count",
}

_POLICY, _AMENDMENT, _CANCELLATION = PolicySchema(), AmendmentSchema(), CancellationSchema()


def serve(app: Flask, agent: Agent) -> None:
    """Add the endpoints."""
    limit = agent.limits.policies

    @app.post("/v1/policies")
    @allow(*POLICIES)
    def issue_policy() -> Response:
        response = answer(agent, limit, _POLICY, partial(_issue, agent))
        body = response.get_json()
        response.headers["Location"] = "/v1/policies/" + quote(body["policy_number"], safe="")
        return response

    # A policy number may have slashes in it, which WSGI servers hand on unescaped.
    @app.get("/v1/policies/<path:number>")
    @allow(*POLICIES)
    def find_policies(number: str) -> Response:
        limit.take(caller().mark)
        states = agent.register.find(PolicyName(_number(number)))
        if not states:
            raise _refusal(IntakeError(POLICY_UNKNOWN, "no such policy was issued"))
        bodies = [_policy(state.record) | {"visible_to_checks": state.visible} for state in states]
        return jsonify({"policies": PolicyStateSchema(many=True).dump(bodies)})

    @app.put("/v1/policies/<path:number>")
    @allow(*POLICIES)
    def amend_policy(number: str) -> Response:
        return answer(agent, limit, _AMENDMENT, partial(_correct, agent, number, Event.AMEND))

    @app.post("/v1/policies/<path:number>/cancellation")
    @allow(*POLICIES)
    def cancel_policy(number: str) -> Response:
        return answer(agent, limit, _CANCELLATION, partial(_correct, agent, number, Event.CANCEL))


def _issue(agent: Agent, body: dict[str, Any]) -> Reply:
    number = _number(body["policy_number"])
    product = _product(agent, body["product"])
    amount = amount_of(agent, "insured_amount", body["insured_amount"], minimum=1)
    event = PolicyEvent(number, subject_of(body["subject"]), product, Event.ISSUE, amount, body["issued_on"])
    (result,) = agent.register.apply([event])
    if isinstance(result, IntakeError):
        raise _refusal(result)
    (state,) = agent.register.find(PolicyName(number, event.insured, product))
    return Reply(_answered(result, state.record), 201 if result is Applied.ACCEPTED else 200)


def _correct(agent: Agent, number: str, event: Event, body: dict[str, Any]) -> Reply:
    insured = subject_of(body["subject"]) if "subject" in body else None
    product = _product(agent, body["product"]) if "product" in body else None
    amount = amount_of(agent, "insured_amount", body["insured_amount"], minimum=1) if event is Event.AMEND else 0
    try:
        applied, record = agent.register.correct(PolicyName(_number(number), insured, product), event, amount)
    except IntakeError as error:
        raise _refusal(error) from None
    return Reply(_answered(applied, record))


def _number(text: str) -> str:
    try:
        return normalise_policy_number(text)
    except IntakeError as error:
        raise Problem(422, error.code, error.reason, hint="correct policy_number") from None


def _product(agent: Agent, product: str) -> str:
    if product not in agent.party.manifest.terms.products:
        raise _refusal(IntakeError("product-unknown", "product is not known to the alliance"))
    return product


def _refusal(error: IntakeError) -> Problem:
    status = STATUS_OF_REFUSAL.get(error.code, 422)
    return Problem(status, error.code, error.reason, hint=HINT_OF_REFUSAL.get(error.code))


def _answered(applied: Applied, record: Record) -> Any:  # noqa: ANN401  JSON
    return PolicyAnswerSchema().dump(_policy(record) | {"outcome": applied.value})


def _policy(record: Record) -> dict[str, Any]:
    return {
        "policy_number": record.policy_number,
        "product": record.product,
        "insured_amount": format_amount(record.current),
        "issued_on": dt.date.fromordinal(record.day),
        "status": "cancelled" if record.cancelled else "in_force",
    }
