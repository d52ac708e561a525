"""The items of a batch or a job: each is a check's request, and one that is bad is told so in its place."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from marshmallow import ValidationError

from insurer_agent.agent import Agent
from insurer_agent.batch import Item
from insurer_agent.intake.documents import fold
from insurer_agent.requester import Answer
from insurer_agent.rest.answers import body_of
from insurer_agent.rest.requests import amount_of, subject_of
from insurer_agent.rest.schemas import MAX_REFERENCE, CheckRequestSchema
from insurer_agent.store.check_jobs import Outcome
from protocol.identity import DocumentType, Identity
from transport.problems import HINT_OF_CODE, STATUS_OF_CODE, Problem

_REQUEST = CheckRequestSchema()
PROBLEMS = "problems"
"""As what an item of a job counts that nobody can be asked about; others count by their verdicts."""
_ZEROS_AT_END = re.compile(r"[0-9]{15}000")


@dataclass(frozen=True)
class Asked:
    """An item that can be asked, and how its answer is told."""

    item: Item
    reference: str | None
    one_rule: bool

    def encode(self) -> bytes:
        """Return the item as it is kept, sealed, until it is asked."""
        subject = self.item.subject
        kept = (
            subject.document_type.value,
            subject.number,
            self.item.rules,
            self.item.proposed,
            self.reference,
            self.one_rule,
        )
        return json.dumps(kept).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Asked":
        """Return what `encode` was given."""
        document, number, rules, proposed, reference, one_rule = json.loads(data)
        subject = Identity(DocumentType(document), number)
        return cls(Item(subject, tuple(rules), proposed), reference, one_rule)

    def told(self, given: Answer) -> Any:  # noqa: ANN401  JSON
        """Return what `POST /v1/checks` answers."""
        return body_of(given, self.reference, one_rule=self.one_rule)


@dataclass(frozen=True)
class Refused:
    """An item that cannot be asked."""

    body: dict[str, Any]


def read_items(agent: Agent, raw: Iterable[Any], *, typed: bool = True) -> Iterator[Asked | Refused]:
    """Yield what each item of a request is, in order; `typed` says that they come from what tells numbers from text.

    CSV does not: a resident id of which a spreadsheet has kept the first 15 digits is refused there, as by the import.
    """
    known = {rule.id for rule in agent.requester.rules()}
    return (_read(agent, known, place, item, typed=typed) for place, item in enumerate(raw))


def _read(agent: Agent, known: set[str], place: int, raw: Any, *, typed: bool) -> Asked | Refused:  # noqa: ANN401  any JSON
    try:
        return _asked(agent, known, raw, typed=typed)
    except ValidationError as error:
        problem = Problem(
            422, "invalid-request", "the item does not fit the schema", hint="see errors", errors=error.messages_dict
        )
    except Problem as error:
        problem = error
    reference = raw.get("reference") if isinstance(raw, dict) else None
    known_by = reference if isinstance(reference, str) and len(reference) <= MAX_REFERENCE else None
    return Refused(problem_body(problem, place, known_by))


def _asked(agent: Agent, known: set[str], raw: Any, *, typed: bool) -> Asked:  # noqa: ANN401  any JSON
    loaded: dict[str, Any] = _REQUEST.load(raw)
    if not typed and _may_lack_digits(loaded["subject"]):
        detail, hint = "the number may have lost its last digits in a spreadsheet", "send it as JSON if it is right"
        raise Problem(422, "number-lost-digits", detail, hint=hint)
    rules = (loaded["rule"],) if "rule" in loaded else tuple(loaded["rules"])
    if not known.issuperset(rules):
        raise unknown_rule()
    amount = amount_of(agent, "proposed_amount", loaded["proposed_amount"], minimum=0)
    return Asked(Item(subject_of(loaded["subject"]), rules, amount), loaded["reference"], "rule" in loaded)


def _may_lack_digits(subject: dict[str, str]) -> bool:
    number = re.sub(r"[\s-]", "", fold(subject["document_number"]))
    return subject["document_type"] == DocumentType.RESIDENT_ID.value and _ZEROS_AT_END.fullmatch(number) is not None


def unknown_rule() -> Problem:
    """Return the refusal of a rule that is not in force."""
    code = "unknown-rule"
    return Problem(STATUS_OF_CODE[code], code, "no such rule is in force", hint=HINT_OF_CODE[code])


def problem_body(problem: Problem, place: int, reference: str | None) -> dict[str, Any]:
    """Return what is told in the place of an item's answer."""
    return problem.body() | {"index": place, "reference": reference}


def refusal(problem: dict[str, Any]) -> Outcome:
    """Return the outcome of a job's item that nobody can be asked about, of its problem."""
    return Outcome(problem["index"], json.dumps(problem).encode(), {PROBLEMS: 1})
