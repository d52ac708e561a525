"""One client's checks, in blocks that alternate between the baseline and alliances, and what further rules take."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import check_profile
from book import FURTHER_RULES, RULE, questions
from central import Central
from effort import Effort
from load import Ask, Blocks, closed_loop, one_client, plainly, under
from local_alliance import MEMBERS, ROLES, LocalAlliance
from parties import parties
from rest import Connection, Door


@dataclass
class Subject:
    """One that is asked, by one client on a kept connection, with what its blocks gave."""

    door: Door
    checks: int
    blocks: Blocks = field(default_factory=lambda: Blocks([]))

    def __post_init__(self) -> None:
        self._connection: Connection = self.door.open()
        self._asked = questions()

    def warm(self, seconds: float) -> None:
        """Ask until every thread has its connections and every statement is prepared."""
        closed_loop([self.door], 2 * MEMBERS, seconds)
        one_client(self.door, self._connection, self._asked, self.checks)

    def block(self) -> None:
        """Ask a block of questions."""
        self.blocks.blocks.append(self.ask(plainly, self.checks))

    def ask(self, how: Ask, count: int) -> list[float]:
        """Ask so many questions in a way; return the latencies, in milliseconds."""
        return [1000 * latency for latency in one_client(self.door, self._connection, self._asked, count, how)]


def measure_latency(
    central: Central, alliances: Mapping[str, LocalAlliance], effort: Effort, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return p50, p99 and noise of each, in milliseconds; the cryptography of a check, timed between the blocks,
    custodians in processes of their own; and the core-milliseconds of a check, a client alone asking.
    """
    subjects = {"central": Subject(central.door, effort.central_checks)}
    for name, alliance in alliances.items():
        subjects[name] = Subject(alliance.door(alliance.local["members"][0]), effort.checks)
    say("warming up")
    for subject in subjects.values():
        subject.warm(effort.warm_seconds)
    clocks = {"central": central.core_seconds} | {name: one.core_seconds for name, one in alliances.items()}
    checks, profiles, used = check_profile.Checks(), [], dict.fromkeys(subjects, 0.0)
    alone: list[float] = []
    roles: dict[str, Counter[str]] = {name: Counter() for name in alliances}
    with parties(checks) as answer_all:
        check_profile.profile(checks, effort.profiled, answer_all=answer_all)
        for number in range(effort.rounds):
            for name, subject in subjects.items():
                before, was = clocks[name](), _roles(alliances.get(name))
                subject.block()
                used[name] += clocks[name]() - before
                if name in alliances:
                    roles[name].update({role: spent - was[role] for role, spent in _roles(alliances[name]).items()})
            profiles.append(check_profile.profile(checks, effort.profiled, answer_all=answer_all))
            alone.append(check_profile.cryptography(check_profile.profile(checks, effort.profiled)))
            told = "  ".join(f"{name} {subject.blocks.p50:.2f}" for name, subject in subjects.items())
            say(f"round {number + 1} of {effort.rounds}, ms so far: {told}")
    found: dict[str, Any] = {}
    for name, subject in subjects.items():
        first, last = ("central", "") if name == "central" else ("check", f"_{name}")
        found[f"{first}_p50_ms{last}"] = round(subject.blocks.p50, 3)
        found[f"{first}_p99_ms{last}"] = round(subject.blocks.p99, 3)
        found[f"{first}_noise_percent{last}"] = round(subject.blocks.noise_percent, 1)
        found[f"{first}_core_ms_one_client{last}"] = round(1000 * used[name] / effort.rounds / subject.checks, 2)
    found["crypto_core_ms_per_check"] = round(statistics.median(map(check_profile.cryptography, profiles)), 3)
    found["crypto_core_ms_in_one_process"] = round(statistics.median(alone), 3)
    found["crypto_noise_percent"] = round(_spread([check_profile.cryptography(one) for one in profiles]), 1)
    found["protocol_core_ms"] = {
        step: round(statistics.median(one[step] for one in profiles), 4) for step in profiles[0]
    }
    for name, spent in roles.items():
        asked = effort.rounds * subjects[name].checks
        found[f"check_core_ms_by_role_{name}"] = {role: round(1000 * spent[role] / asked, 3) for role in ROLES}
    found["message_bytes"] = checks.message_bytes()
    return found


def _roles(alliance: LocalAlliance | None) -> dict[str, float]:
    return {} if alliance is None else alliance.seconds_by_role(alliance.local["members"][0]["id"])


def measure_further_rules(alliance: LocalAlliance, effort: Effort, say: Callable[[str], None]) -> dict[str, Any]:
    """Return how much longer a check under two rules takes than one under one, and a third, in percent: questions under
    each number of rules take turns, and the figure is the median over blocks. Also of the cryptography, in one process.
    """
    say("further rules in a check")
    subject = Subject(alliance.door(alliance.local["members"][0]), effort.checks)
    ways = [under((RULE, *FURTHER_RULES)[: lanes + 1]) for lanes in range(1 + len(FURTHER_RULES))]
    for way in ways:
        subject.ask(way, effort.checks)
    profiled = [check_profile.Checks(lanes + 1) for lanes in range(len(ways))]
    more: list[list[float]] = [[] for _ in ways]
    core: list[list[float]] = [[] for _ in ways]
    for _ in range(effort.rounds):
        taken: list[list[float]] = [[] for _ in ways]
        for _ in range(effort.checks // 2):
            for place, way in enumerate(ways):
                taken[place] += subject.ask(way, 1)
        for place, latencies in enumerate(taken):
            more[place].append(100 * (statistics.median(latencies) / statistics.median(taken[0]) - 1))
        spent = [check_profile.cryptography(check_profile.profile(checks, effort.profiled)) for checks in profiled]
        for place, value in enumerate(spent):
            core[place].append(100 * (value / spent[0] - 1))
    return {
        "further_rule_percent": round(statistics.median(more[1]), 1),
        "further_rule_noise_points": round(max(more[1]) - min(more[1]), 1),
        "further_rule_percent_of_two": round(statistics.median(more[2]), 1),
        "further_rule_crypto_percent": round(statistics.median(core[1]), 1),
    }


def _spread(values: list[float]) -> float:
    """Return how far apart values lie, in percent of their median."""
    return 100 * (max(values) - min(values)) / statistics.median(values)
