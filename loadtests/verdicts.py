"""The same verdicts every way: random questions asked one by one and in batches, by TLS and by plain HTTP."""

import json
import random
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from book import LIMIT, PERSONS, Question, encoded, policies, question
from load import PATH
from local_alliance import MEMBERS, LocalAlliance
from rest import Door
from saturation import BATCH_PATH

CASES = 1000
_NEAR = 3
"""Every other case is within so many fen of the limit."""


def random_questions(chance: random.Random) -> Iterator[Question]:
    """Yield questions without end about persons of the book and others, at the limit and anywhere."""
    totals = dict.fromkeys((f"E{person:08d}" for person in range(PERSONS)), Decimal(0))
    for policy in policies(MEMBERS):
        totals[policy.document] += policy.amount
    while True:
        document = f"E{chance.randrange(PERSONS * 6 // 5):08d}"
        total = totals.get(document, Decimal(0))
        fen = chance.randint(0, int(200 * LIMIT))
        if chance.random() < 1 / 2:
            fen = max(0, int(100 * (LIMIT - total)) + chance.randint(-_NEAR, _NEAR))
        proposed = Decimal(fen) / 100
        yield question(document, proposed, "exceeds" if total + proposed > LIMIT else "within")


def measure_verdicts(alliances: Mapping[str, LocalAlliance], seed: int) -> dict[str, Any]:
    """Ask the same cases each way of each alliance; raise where a verdict is not that of the plain sum.

    Return how many there were. A check that timed out has no verdict and is asked again, once.
    """
    source = random_questions(random.Random(seed))  # noqa: S311  no secret
    cases, asked_again = [next(source) for _ in range(CASES)], 0
    for name, alliance in alliances.items():
        door = alliance.door(alliance.local["members"][1])
        for way, told in (("one by one", _singly(door, cases)), ("a batch", _in_a_batch(door, cases))):
            for case, verdict in zip(cases, told, strict=True):
                found = verdict
                if found == "indeterminate":
                    (found,), asked_again = _singly(door, [case]), asked_again + 1
                if found != case.verdict:
                    raise RuntimeError(f"{way} by {name}: {found} and not {case.verdict}")
    return {"verdict_cases": CASES, "verdict_ways": 2 * len(alliances), "verdicts_asked_again": asked_again}


def _singly(door: Door, cases: list[Question]) -> list[str]:
    with door.open() as connection:
        answers = [connection.exchange(door.request("POST", PATH, encoded(case.body))) for case in cases]
    return [json.loads(body)["verdict"] for _, body in answers]


def _in_a_batch(door: Door, cases: list[Question]) -> list[str]:
    told = door.call("POST", BATCH_PATH, {"checks": [case.body for case in cases]})
    return [one["verdict"] for one in told["results"]]
