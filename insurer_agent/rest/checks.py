"""The underwriter's face: checks, the rules in force, and how far the agent's own deposits are."""

import datetime as dt
from threading import BoundedSemaphore
from typing import Any

from flask import Flask, Response, jsonify

from insurer_agent.agent import Agent
from insurer_agent.intake.amounts import format_amount
from insurer_agent.requester import Answer, LaneAnswer
from insurer_agent.rest.requests import Reply, amount_of, answer, require_api_key, subject_of
from insurer_agent.rest.schemas import (
    CheckAnswerSchema,
    CheckRequestSchema,
    ChecksAnswerSchema,
    CompletenessSchema,
    RuleSchema,
)
from protocol.check import Verdict, Void
from protocol.manifest import SUM_INSURED, Rule, day_of
from protocol.watermark import Completeness
from transport.problems import Problem

CHINA = dt.timezone(dt.timedelta(hours=8))
RETRY_SECONDS = {
    Void.TIMEOUT: 2,
    Void.DISAGREEMENT: 15,
    Void.TOO_FEW_CUSTODIANS: 15,
    Void.SERVICE_UNAVAILABLE: 15,
    Void.REFUSED: 60,
    Void.INCOMPLETE: 60,
}
"""After how long another answer is likely. A spent budget is not in it: it can end at midnight at the earliest."""


def serve(app: Flask, agent: Agent) -> None:
    """Add the endpoints."""
    # Checks wait for other agents, whose checks wait for this one's answers: half of the threads stay free for those.
    places = BoundedSemaphore(agent.settings.threads // 2)

    def ask(question: dict[str, Any]) -> Reply:
        amount = amount_of(agent, "proposed_amount", question["proposed_amount"], minimum=0)  # 0: as things stand
        subject = subject_of(question["subject"])
        rules = [question["rule"]] if "rule" in question else question["rules"]
        if not places.acquire(timeout=agent.settings.check_seconds / 2):
            raise Problem(503, "busy", "too many checks at once", hint="try again shortly", retry_after=1)
        try:
            given = agent.requester.check(subject, rules, amount)
        finally:
            places.release()
        final = all(lane.verdict is not Verdict.INDETERMINATE for lane in given.lanes)
        return Reply(_body(given, question), final=final)

    @app.post("/v1/checks")
    def check() -> Response:
        return answer(agent, agent.limits.checks, CheckRequestSchema, ask, bears_repeating=True)

    @app.get("/v1/rules")
    def rules() -> Response:
        require_api_key(agent)
        return jsonify({"rules": [_rule(rule) for rule in agent.requester.rules()]})

    @app.get("/v1/status")
    def status() -> Response:
        require_api_key(agent)
        backlog = agent.outbox.backlog()
        return jsonify(
            {
                "deposits_unmade": backlog.unmade,
                "deposits_incomplete": backlog.incomplete,
                "deposits_set_aside": backlog.set_aside,
                "completeness": CompletenessSchema().dump(_completeness(agent.directory.now())),
            }
        )


def _body(given: Answer, question: dict[str, Any]) -> Any:  # noqa: ANN401  JSON
    now = dt.datetime.now(CHINA)
    whole = {
        "check_id": given.check_id.hex(),
        "reference": question["reference"],
        "checked_at": now,
        "completeness": _completeness(given.completeness),
    }
    results = [_result(lane, given.as_of, now) for lane in given.lanes]
    if "rule" in question:
        return CheckAnswerSchema().dump(whole | results[0])
    return ChecksAnswerSchema().dump(whole | {"results": results})


def _completeness(found: Completeness) -> dict[str, Any]:
    oldest = None if found.oldest is None else dt.datetime.fromtimestamp(found.oldest, CHINA)
    return {"members": found.members, "current": found.current, "oldest": oldest}


def _result(lane: LaneAnswer, as_of: int, now: dt.datetime) -> dict[str, Any]:
    return {
        "rule": lane.rule.id,
        "rule_version": lane.rule.version,
        "verdict": lane.verdict.value,
        "exceeds_limit": {Verdict.EXCEEDS: True, Verdict.WITHIN: False, Verdict.INDETERMINATE: None}[lane.verdict],
        "reason": None if lane.reason is None else lane.reason.value,
        "window": {"first": day_of(lane.rule.window_start(as_of)), "last": day_of(as_of)},
    } | _advice(lane, now)


def _advice(lane: LaneAnswer, now: dt.datetime) -> dict[str, Any]:
    """Return what an underwriting system should do; `refer` is to a person, who alone may decline."""
    if lane.verdict is Verdict.WITHIN:
        return {"advice": "proceed", "retry_after": None}
    if lane.verdict is Verdict.EXCEEDS:
        return {"advice": "refer", "retry_after": None}
    if lane.reason is Void.BUDGET_EXHAUSTED:
        midnight = (now + dt.timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return {"advice": "refer", "retry_after": int((midnight - now).total_seconds()) + 1}
    assert lane.reason is not None
    return {"advice": "retry", "retry_after": RETRY_SECONDS[lane.reason]}


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
            "recheck_budget": rule.recheck_budget,
            "budget_days": rule.budget_days,
            "valid_from": day_of(rule.valid_from),
            "min_current": rule.min_current,
        }
    )
