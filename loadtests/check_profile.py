"""Where the processor time of a check goes: each step of `protocol/`, in one process, without I/O.

    .venv/bin/python loadtests/check_profile.py [--checks 50] [--rounds 5] [--lanes 1]

Checks of an alliance of six, step by step as in SPEC.md, section 6, about a person with three policies, with stores in
memory. Milliseconds of the processor a check, over all parties that take the step; medians of several rounds.
`bench.py` has the whole.
"""

import argparse
import json
import secrets
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from book import RULES_FILE
from in_memory import Alliance

from protocol.check import (
    Question,
    Verdict,
    accept_call,
    accept_request,
    answer_call,
    ask,
    call_for,
    conclude,
    read_outcome,
)
from protocol.committee import preferred_choice
from protocol.deposit import Entry, run_deposit
from protocol.encoding import decode, encode
from protocol.identity import DocumentType, Identity
from protocol.manifest import china_day
from protocol.messages import ISSUE, CheckAnswer, CheckCall
from protocol.stamps import as_of_tick
from service.admin.rules import read_rules

T = TypeVar("T")
M = TypeVar("M")
Clock = Callable[[], float]
Seconds = dict[str, float]
"""By step."""
Calls = dict[str, bytes]
Answers = dict[str, tuple[bytes, Seconds]]
AnswerAll = Callable[[Calls, float, Clock], Answers]
"""Has custodians answer the calls to them, by name."""
POLICIES = 3
PERSON = Identity(DocumentType.PASSPORT, "E00000001")
ASK = "1 requester: blind, share, seal, sign"
EVALUATE = "2 service: verify, evaluate, prove"
ACCEPT = "3 custodians: verify, open, unblind"
GARBLE = "3 custodians: sum, garble"
CONCLUDE = "4 service: compare, evaluate"
READ = "5 requester: read"
CRYPTOGRAPHY = (ASK, EVALUATE, ACCEPT, GARBLE, CONCLUDE, READ)
"""The steps whose sum is the cryptography of a check; the codec of messages and the stores in memory are beside it."""
MESSAGES = "all: encode and decode messages"
ADMIT, VIEW = "3 custodians: admit, durable", "3 custodians: read one snapshot"
"""Of stores in memory but for a profile that says otherwise."""


class Checks:
    """An alliance that is asked about one person under so many rules, step by step."""

    def __init__(self, lanes: int = 1, alliance: Alliance | None = None) -> None:
        self._alliance = alliance or Alliance(read_rules(RULES_FILE))
        self._rules = self._alliance.manifest.terms.rules[:lanes]
        self._bytes: dict[str, list[int]] = defaultdict(list)
        members = self._alliance.members()
        for number in range(POLICIES):
            depositor = self._alliance.parties[f"insurer-{2 + number:02d}"]
            entry = Entry(PERSON, ISSUE, "accident", china_day(time.time()), 100_000)
            run_deposit(depositor, self._alliance.service, members, entry, time.time() - 30, secrets.token_bytes)

    def message_bytes(self) -> dict[str, int]:
        """Return how long the messages of a check are, all of a kind together."""
        self.step_by_step()
        return {kind: sum(sizes) for kind, sizes in self._bytes.items()}

    @property
    def custodians(self) -> list[str]:
        """The members that may be asked."""
        slots = self._alliance.manifest.committee(0).slots
        return [name for name in slots if name != self._alliance.insurer.id]

    def answer(self, name: str, data: bytes, now: float, clock: Clock) -> tuple[bytes, Seconds]:
        """Answer a call as a custodian does; return the answer and the seconds of each step."""
        alliance, taken = self._alliance, _Taken(clock)
        party, store = alliance.parties[name], alliance.stores[name]
        call = taken.by(MESSAGES, lambda: decode(CheckCall, data))
        accepted = taken.by(ACCEPT, lambda: accept_call(party, call, now))
        taken.by(ADMIT, lambda: store.admit(accepted.admission()))
        view = taken.by(VIEW, lambda: store.view(accepted.reading()))
        answer = taken.by(GARBLE, lambda: answer_call(party, accepted, alliance.key, view))
        return taken.by(MESSAGES, lambda: encode(answer)), taken.seconds

    def one_after_the_other(self, calls: Calls, now: float, clock: Clock) -> Answers:
        """Have custodians answer in this process, in turn."""
        return {name: self.answer(name, data, now, clock) for name, data in calls.items()}

    def step_by_step(self, clock: Clock = time.process_time, answer_all: AnswerAll | None = None) -> Seconds:
        """Run one check and return the seconds of each step, over all parties that take it."""
        answer_all = answer_all or self.one_after_the_other
        taken = _Taken(clock)

        def noted(value: object, data: bytes) -> bytes:
            self._bytes[type(value).__name__].append(len(data))
            return data

        def sent(value: M) -> M:
            data = noted(value, taken.by(MESSAGES, lambda: encode(value)))
            return taken.by(MESSAGES, lambda: decode(type(value), data))

        self._bytes.clear()
        alliance, random, now = self._alliance, secrets.token_bytes, time.time()
        asked = [Question(PERSON, rule, 100_000) for rule in self._rules]
        pending, request = taken.by(ASK, lambda: ask(alliance.insurer, asked, now, now + 2, random))
        request = sent(request)
        evaluation = taken.by(EVALUATE, lambda: accept_request(alliance.service, request, now, random))
        statement = request.signed.statement
        names = alliance.manifest.committee(0).slots
        chosen = preferred_choice(statement.check_id, dict.fromkeys((one.slot for one in statement.envelopes), 0.0))
        assert chosen is not None
        tick = as_of_tick(now, alliance.manifest.terms.tick_seconds)
        built = {names[slot]: call_for(evaluation, 1, chosen, tick, slot) for slot in chosen}
        calls = {name: noted(call, taken.by(MESSAGES, partial(encode, call))) for name, call in built.items()}
        answers = {}
        for name, (data, seconds) in answer_all(calls, now, clock).items():
            taken.add(seconds)
            answer = taken.by(MESSAGES, partial(decode, CheckAnswer, data))
            noted(answer, data)
            answers[names.index(name)] = answer
        outcome = taken.by(CONCLUDE, lambda: conclude(alliance.service, evaluation, 1, chosen, tick, answers))
        outcome = sent(outcome)
        verdicts = taken.by(READ, lambda: read_outcome(pending, outcome, now))
        if verdicts != [(Verdict.WITHIN, None)] * len(asked):
            raise RuntimeError(f"the verdicts are {verdicts}")
        return taken.seconds


class _Taken:
    """What steps have taken."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds: Seconds = defaultdict(float)

    def by(self, step: str, work: Callable[[], T]) -> T:
        began = self._clock()
        result = work()
        self.seconds[step] += self._clock() - began
        return result

    def add(self, seconds: Seconds) -> None:
        for step, more in seconds.items():
            self.seconds[step] += more


def profile(
    checks: Checks, count: int, clock: Clock = time.process_time, answer_all: AnswerAll | None = None
) -> dict[str, float]:
    """Return the milliseconds of each step, a check, by a clock: the medians of so many checks."""
    taken = defaultdict(list)
    for _ in range(count):
        for step, seconds in checks.step_by_step(clock, answer_all).items():
            taken[step].append(1000 * seconds)
    return {step: statistics.median(values) for step, values in taken.items()}


def cryptography(found: dict[str, float]) -> float:
    """Return the sum of the steps that are cryptography."""
    return sum(found[step] for step in CRYPTOGRAPHY)


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=int, default=50, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, default=1, help="rules that the person is asked about, 1 to 3")
    parser.add_argument("--out", type=Path, default=Path("build/check_profile.json"))
    args = parser.parse_args()
    checks = Checks(args.lanes)
    profile(checks, 5)  # warm
    rounds = [profile(checks, args.checks) for _ in range(args.rounds)]
    result = {step: round(statistics.median(one[step] for one in rounds), 3) for step in rounds[0]}
    result["cryptography"] = round(cryptography(result), 3)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
