"""Asks checks all the time, on the edge of what is known to be right, and judges every answer by the plain sum."""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from books import LIMIT, Books, Person, verdict_of
from doors import yuan
from live import LiveAlliance, china_today

from protocol.stamps import as_of_tick, tick_at

TICK_SECONDS = 1
BUDGET = 40
"""Checks of one person by one member; ten of its budget are left for the end."""
TRIES = 12
"""Checks of which one must be answered once all is calm, however busy the machine."""


class Judge:
    """A verdict is right if it is so of some total between those before and after the operations under way."""

    def __init__(self, alliance: LiveAlliance, books: Books, fail: Callable[[str], None], seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._alliance = alliance
        self._books = books
        self._fail = fail
        self._members = range(1, alliance.members + 1)
        self._chance = random.Random(repr((seed, "judge")))  # noqa: S311  a test's
        self._asked: Counter[tuple[Person, int]] = Counter()
        self._calm = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="judge")
        self.people: list[Person] = []
        """Whom to ask about."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._calm.set()
        self._thread.join(60)

    def _ask(self) -> None:
        try:
            while not self._calm.wait(self._chance.uniform(0.05, 0.3)):
                if self.people:
                    self._ask_one(self._chance.choice(self.people), self._chance.choice(self._members))
        except Exception as error:  # noqa: BLE001  a judge that ends unseen would be a test of nothing
            self._fail(f"the judge broke: {error!r}")

    def _ask_one(self, person: Person, member: int) -> None:
        if self._asked[person, member] >= BUDGET:
            return
        self._asked[person, member] += 1
        self._look(person)
        low, high = self.span(person)
        edges = [LIMIT - high, LIMIT - high, LIMIT - low + 1, LIMIT - low + 1, LIMIT - low]
        self.verdict(person, member, max(0, self._chance.choice(edges)))

    def span(self, person: Person) -> tuple[int, int]:
        """Return between which totals in fen a check's would lie that is asked and answered now."""
        now = time.time()
        return self._books.span(person, as_of_tick(now, TICK_SECONDS), now, china_today())

    def verdict(self, person: Person, member: int, proposed: int) -> str:
        """Ask a check and return its verdict, having noted it if it was wrong."""
        began = time.time()
        body = {
            "subject": dict(zip(("document_type", "document_number"), person, strict=True)),
            "rule": "accident-30d",
            "proposed_amount": yuan(proposed),
            "reference": "soak",
        }
        try:
            answer = self._alliance.request(member, "POST", "/v1/checks", body)
        except (OSError, ValueError):
            self.counts["checks without an answer"] += 1
            return "indeterminate"
        if answer.status != 200:
            self.counts[f"checks with status {answer.status}"] += 1
            if answer.status < 500:
                self._fail(f"a check was refused: {answer.status} {answer.body}")
            return "indeterminate"
        verdict: str = answer.body["verdict"]
        self.counts[f"checks {verdict}"] += 1
        if verdict == "indeterminate":
            self.counts[f"indeterminate: {answer.body['reason']}"] += 1
            return verdict
        as_of = as_of_tick(began, TICK_SECONDS)
        low, high = self._books.span(person, as_of, time.time(), china_today())
        right = verdict_of(low, high, proposed)
        self.counts["checks that only one verdict was right for"] += right is not None
        if right not in (None, verdict):
            self._fail(
                f"member {member} was told {verdict} of {person}, {proposed} fen proposed, while the total was"
                f" {low} to {high} fen: from {began} on, as of tick {as_of}, at {answer.body['checked_at']}"
            )
        return verdict

    def _look(self, person: Person) -> None:
        """Find out which of a person's policies checks must see by now, from the agents that took them."""
        for member in self._members:
            mine = [policy for policy in self._books.of(person) if policy.member == member and policy.done]
            steps = [step for policy in mine for step in policy.steps[: policy.done] if step.counts_from is None]
            if not steps:
                continue
            with contextlib.suppress(OSError, ValueError):
                answer = self._alliance.request(member, "GET", f"/v1/policies/{mine[-1].number}")
                now = tick_at(time.time(), TICK_SECONDS)
                if answer.status == 404:
                    self._fail(f"member {member} does not know {mine[-1].number}, which it took")
                if answer.status == 200 and all(item["visible_to_checks"] for item in answer.body["policies"]):
                    for step in steps:
                        step.counts_from = min(now, step.counts_from or now)  # it may be settled meanwhile

    def settle(self, person: Person) -> None:
        """Require both verdicts of a person of whom nothing is under way: at the limit, and one fen above."""
        low, high = self.span(person)
        if low != high:
            self._fail(f"the books of {person} are not closed: {low} to {high}")
        for proposed in sorted({max(0, LIMIT - low), max(0, LIMIT - low + 1)}):
            right = verdict_of(low, high, proposed)
            if (told := self._clear(person, proposed)) != right:
                self._fail(f"{person} with {proposed} fen more: {right} is right, and {told} was told")

    def _clear(self, person: Person, proposed: int) -> str:
        """Return a verdict, asked for again where a busy machine let a check time out."""
        for attempt in range(TRIES):
            member = self._members[(int(person[1][1:]) + attempt) % len(self._members)]
            verdict = self.verdict(person, member, proposed)
            if verdict != "indeterminate":
                return verdict
            threading.Event().wait(0.2)
        return "indeterminate"
