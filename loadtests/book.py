"""The policies that a bench deposits and the questions that it asks about them, with the verdict of a plain sum.

A thousand persons have one to three policies each, at different insurers. Of those who are asked about, two of three
have policies, and every other one of them is a fen above the limit with the cover proposed.
"""

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

COLUMNS = ("policy_number", "document_type", "document_number", "product", "insured_amount", "issued_on", "event")
RULE, LIMIT, WINDOW_DAYS = "accident-30d", Decimal(50_000_000), 30
FURTHER_RULES = ("all-accident-90d", "accident-policies-30d")
PERSONS = 1000
UNKNOWN = 3
"""Of so many questions one is about a person without policies."""
_CHINA = dt.timezone(dt.timedelta(hours=8))
RULES_FILE = Path(__file__).with_name("rules.toml")
"""For `alliance local --rules`."""


def today() -> dt.date:
    """Return the day, in China."""
    return dt.datetime.now(_CHINA).date()


@dataclass(frozen=True)
class Policy:
    """A policy of the bench; `member` counts from 0."""

    number: str
    person: int
    member: int
    amount: Decimal

    @property
    def document(self) -> str:
        """The number of the person's passport."""
        return f"E{self.person:08d}"

    def row(self) -> tuple[str, ...]:
        """Return the policy as a row of a file, in the order of `COLUMNS`."""
        return (self.number, "passport", self.document, "accident", str(self.amount), today().isoformat(), "issue")


def policies(members: int, persons: int = PERSONS) -> Iterator[Policy]:
    """Yield the policies of all persons."""
    for person in range(persons):
        for place in range(1 + person % 3):
            yield Policy(f"B-{person}-{place}", person, (person + place) % members, _amount(person))


def _amount(person: int) -> Decimal:
    return Decimal(10_000_000 + 1000 * person)


@dataclass(frozen=True)
class Question:
    """A question of one person, and the verdict that is right."""

    body: dict[str, Any]
    verdict: str


def questions(persons: int = PERSONS) -> Iterator[Question]:
    """Yield questions without end."""
    for number in count():
        if number % UNKNOWN == UNKNOWN - 1:
            yield question(f"G{number:08d}", Decimal(3_000_000), "within")
        else:
            person = number % persons
            left = LIMIT - (1 + person % 3) * _amount(person)
            above = number % 2
            yield question(f"E{person:08d}", left + Decimal(above) / 100, "exceeds" if above else "within")


def question(document: str, proposed: Decimal, verdict: str) -> Question:
    """Return a question about the holder of a passport."""
    subject = {"document_type": "passport", "document_number": document}
    return Question({"subject": subject, "rule": RULE, "proposed_amount": f"{proposed:.2f}"}, verdict)


def encoded(body: object) -> bytes:
    """Return a body as JSON."""
    return json.dumps(body).encode()
