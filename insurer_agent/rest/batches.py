"""Batches: many checks in one request, answered together and in order."""

import datetime as dt
from threading import BoundedSemaphore
from typing import Any

from flask import Flask, Response

from insurer_agent.agent import Agent
from insurer_agent.requester import Answer
from insurer_agent.rest.access import CHECKS, allow
from insurer_agent.rest.answers import CHINA, completeness_of, is_final
from insurer_agent.rest.items import Asked, Refused, read_items
from insurer_agent.rest.requests import Reply, Seat, answer_read, read_json
from insurer_agent.rest.schemas import MAX_BATCH, MAX_JOB, BatchAnswerSchema, LooseBatchSchema
from transport.problems import Problem

MAX_BATCH_BYTES = 2 << 20
_OF_THREADS = 8
_ANSWER = BatchAnswerSchema()


def serve(app: Flask, agent: Agent, places: BoundedSemaphore) -> None:
    """Add the endpoint. A batch under way holds one of `places`, as a check does, and few are under way at a time."""
    at_once = BoundedSemaphore(max(1, agent.settings.threads // _OF_THREADS))

    def read(api_key: str) -> tuple[Any, list[Any]]:
        body = read_json(MAX_BATCH_BYTES)
        checks = checks_of(body, MAX_BATCH, hint=f"POST /v1/checks/jobs takes up to {MAX_JOB}")
        agent.limits.checks.take(api_key, len(checks) - 1)  # the request itself was counted
        return body, checks

    def ask(checks: list[Any]) -> Reply:
        items = list(read_items(agent, checks))
        asked = {place: item for place, item in enumerate(items) if isinstance(item, Asked)}
        # Nobody waits for his turn among batches, which would take a thread.
        with Seat(at_once, 0), Seat(places, agent.settings.check_seconds / 2):
            given = agent.batches.ask([item.item for item in asked.values()], agent.settings.batch_seconds)
        answers = dict(zip(asked, given, strict=True))
        return Reply(_body(agent, items, answers), final=all(map(is_final, given)))

    @app.post("/v1/checks/batch")
    @allow(*CHECKS)
    def batch() -> Response:
        return answer_read(agent, agent.limits.checks, read, ask, bears_repeating=True)


def checks_of(body: Any, most: int, *, hint: str) -> list[Any]:  # noqa: ANN401  any JSON
    """Return the items of a request; refuse a request that has none, or more than `most`."""
    checks: list[Any] = LooseBatchSchema().load(body)["checks"]
    if len(checks) > most:
        raise Problem(422, "too-many-checks", f"there are more than {most} checks", hint=hint)
    return checks


def _body(agent: Agent, items: list[Asked | Refused], answers: dict[int, Answer]) -> Any:  # noqa: ANN401  JSON
    found = [answer.completeness for answer in answers.values()] or [agent.directory.now()]
    results = [
        item.body if isinstance(item, Refused) else item.told(answers[place]) for place, item in enumerate(items)
    ]
    return _ANSWER.dump(
        {
            "checked_at": dt.datetime.now(CHINA),
            "completeness": completeness_of(min(found, key=lambda one: one.current)),
            "results": results,
        }
    )
