"""The underwriter's face: checks, the rules in force, and how far the agent's own deposits are."""

import datetime as dt
import time
from threading import BoundedSemaphore
from typing import Any

from flask import Flask, Response, jsonify

from insurer_agent.agent import Agent
from insurer_agent.intake.amounts import format_amount
from insurer_agent.rest.access import ANY, CHECKS, STATUS, allow
from insurer_agent.rest.answers import CHINA, body_of, completeness_of, is_final
from insurer_agent.rest.requests import Reply, Seat, amount_of, answer, subject_of
from insurer_agent.rest.schemas import (
    CheckRequestSchema,
    CompletenessSchema,
    EndingKeySchema,
    ManifestSchema,
    RuleSchema,
)
from protocol.manifest import SUM_INSURED, Manifest, Rule, day_of
from transport.manifests import Age

_REQUEST = CheckRequestSchema()


def serve(app: Flask, agent: Agent, places: BoundedSemaphore) -> None:
    """Add the endpoints; each check under way holds one of `places`."""

    def ask(question: dict[str, Any]) -> Reply:
        amount = amount_of(agent, "proposed_amount", question["proposed_amount"], minimum=0)  # 0: as things stand
        subject = subject_of(question["subject"])
        rules = [question["rule"]] if "rule" in question else question["rules"]
        with Seat(places, agent.settings.check_seconds / 2):
            given = agent.requester.check(subject, rules, amount)
        body = body_of(given, question["reference"], one_rule="rule" in question)
        return Reply(body, final=is_final(given))

    @app.post("/v1/checks")
    @allow(*CHECKS)
    def check() -> Response:
        response = answer(agent, agent.limits.checks, _REQUEST, ask, bears_repeating=True)
        response.call_on_close(agent.requester.prepare)  # when it has been sent
        return response

    @app.get("/v1/rules")
    @allow(*ANY)
    def rules() -> Response:
        return jsonify({"rules": [_rule(rule) for rule in agent.requester.rules()]})

    @app.get("/v1/status")
    @allow(*STATUS)
    def status() -> Response:
        backlog = agent.outbox.backlog()
        return jsonify(
            {
                "deposits_unmade": backlog.unmade,
                "deposits_incomplete": backlog.incomplete,
                "deposits_set_aside": backlog.set_aside,
                "completeness": CompletenessSchema().dump(completeness_of(agent.directory.now())),
                "manifest": ManifestSchema().dump(_manifest(agent.party.manifest)),
                "api_keys_ending": EndingKeySchema(many=True).dump(agent.api_keys.ending(dt.datetime.now(CHINA))),
            }
        )


def _manifest(manifest: Manifest) -> dict[str, Any]:
    return {
        "serial": manifest.terms.serial,
        "hash": manifest.hash.hex(),
        "valid_until": dt.datetime.fromtimestamp(manifest.terms.valid_until, CHINA),
        "state": Age.of(manifest, time.time()).value,
    }


def _rule(rule: Rule) -> Any:  # noqa: ANN401  JSON
    limit = format_amount(rule.limit) if rule.measure == SUM_INSURED else str(rule.limit)
    return RuleSchema().dump(
        {
            "id": rule.id,
            "version": rule.version,
            "products": list(rule.products),
            "subject_type": rule.subject_type,
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
