"""The items of a batch or a job: each is a check's request, and one that is bad is told so in its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from marshmallow import ValidationError

from insurer_agent.agent import Agent
from insurer_agent.batch import Item
from insurer_agent.requester import Answer
from insurer_agent.rest.answers import body_of
from insurer_agent.rest.requests import amount_of, subject_of
from insurer_agent.rest.schemas import MAX_REFERENCE, CheckRequestSchema
from transport.problems import HINT_OF_CODE, STATUS_OF_CODE, Problem

_REQUEST = CheckRequestSchema()


@dataclass(frozen=True)
class Asked:
    """An item that can be asked, and how its answer is told."""

    item: Item
    reference: str | None
    one_rule: bool

    def told(self, given: Answer) -> Any:  # noqa: ANN401  JSON
        """Return what `POST /v1/checks` answers."""
        return body_of(given, self.reference, one_rule=self.one_rule)


@dataclass(frozen=True)
class Refused:
    """An item that cannot be asked."""

    body: dict[str, Any]


def read_items(agent: Agent, raw: Sequence[Any]) -> list[Asked | Refused]:
    """Return what each item of a request is, in order."""
    known = {rule.id for rule in agent.requester.rules()}
    return [_read(agent, known, place, item) for place, item in enumerate(raw)]


def _read(agent: Agent, known: set[str], place: int, raw: Any) -> Asked | Refused:  # noqa: ANN401  any JSON
    try:
        return _asked(agent, known, raw)
    except ValidationError as error:
        problem = Problem(
            422, "invalid-request", "the item does not fit the schema", hint="see errors", errors=error.messages_dict
        )
    except Problem as error:
        problem = error
    reference = raw.get("reference") if isinstance(raw, dict) else None
    known_by = reference if isinstance(reference, str) and len(reference) <= MAX_REFERENCE else None
    return Refused(problem_body(problem, place, known_by))


def _asked(agent: Agent, known: set[str], raw: Any) -> Asked:  # noqa: ANN401  any JSON
    loaded: dict[str, Any] = _REQUEST.load(raw)
    rules = (loaded["rule"],) if "rule" in loaded else tuple(loaded["rules"])
    if not known.issuperset(rules):
        raise unknown_rule()
    amount = amount_of(agent, "proposed_amount", loaded["proposed_amount"], minimum=0)
    return Asked(Item(subject_of(loaded["subject"]), rules, amount), loaded["reference"], "rule" in loaded)


def unknown_rule() -> Problem:
    """Return the refusal of a rule that is not in force."""
    code = "unknown-rule"
    return Problem(STATUS_OF_CODE[code], code, "no such rule is in force", hint=HINT_OF_CODE[code])


def problem_body(problem: Problem, place: int, reference: str | None) -> dict[str, Any]:
    """Return what is told in the place of an item's answer."""
    return problem.body() | {"index": place, "reference": reference}
