"""A private check against a plain central one, in one run: latencies, processor time, rates, memory, in one table.

    .venv/bin/python loadtests/bench.py [--quick] [--parts latency rates deposits]

On this machine, all on loopback: the baseline of `central.py`, and alliances of six with all their parties, one by
mutual TLS on every hop and one by plain HTTP. Blocks of one client's checks at each of them alternate, so that what
else the machine does falls on all alike; a figure is the median of the blocks' medians, its noise how far apart those
lie. The cryptography of a check alone is timed between the blocks. Then the alliance by TLS is alone: its rate with
more and more clients, a load at half of that rate, batches, memory, deposits. What makes the load runs on the same
cores. Rates of REST and service are lifted beyond what the load reaches, as by the settings. Every verdict is compared
with that of a plain sum. Prints a table, and writes all figures to build/bench.json.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import check_profile
from book import RULES_FILE, policies, questions
from central import Central, central_check
from load import Blocks, closed_loop, one_client
from local_alliance import LocalAlliance, local_alliance
from rest import Connection, Door

MEMBERS = 6
PLAIN_OPTION = "--plain-http"
UNLIMITED = {
    f"{party}_{name}": value
    for party in ("INSURER_AGENT", "LOOKUP_SERVICE")
    for name, value in (("CHECKS_A_SECOND", "100000"),)
} | {"INSURER_AGENT_CHECKS_AT_ONCE": "1000000"}
"""Settings of agents and service, whose usual ones would end a load that is heavier than any member's."""
PARTS = ("latency", "rates", "deposits")


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int
    central_checks: int
    checks: int
    profiled: int
    warm_seconds: float
    steady_seconds: float


FULL = Effort(rounds=12, central_checks=400, checks=150, profiled=10, warm_seconds=10, steady_seconds=20)
QUICK = Effort(rounds=5, central_checks=200, checks=60, profiled=5, warm_seconds=4, steady_seconds=6)


@dataclass
class Subject:
    """One that is asked, by one client on a kept connection, with what its blocks gave."""

    door: Door
    checks: int
    blocks: Blocks = field(default_factory=lambda: Blocks([]))

    def __post_init__(self) -> None:
        self._connection: Connection = self.door.open()
        self._asked = questions()

    def block(self, *, keep: bool = True) -> None:
        """Ask a block of questions."""
        latencies = one_client(self.door, self._connection, self._asked, self.checks)
        if keep:
            self.blocks.blocks.append([1000 * latency for latency in latencies])


def main() -> int:
    """Run the parts that are asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, for development: about 3 minutes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    bench = Bench(QUICK if args.quick else FULL)
    with tempfile.TemporaryDirectory() as root:
        bench.run(Path(root), args.parts)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(bench.found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(bench.found, indent=1))
    return 0


class Bench:
    """One run; `found` are its figures."""

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self._began = time.monotonic()
        self.found: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "load_before": os.getloadavg()},
        }

    def run(self, root: Path, parts: tuple[str, ...]) -> None:
        """Measure."""
        with contextlib.ExitStack() as stack:
            self._say("filling the central table")
            central = stack.enter_context(central_check(root))
            alliances = stack.enter_context(self._alliances(root))
            if "latency" in parts:
                self._latency(central, alliances)

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self._began:6.0f} s  {text}\n")
        sys.stderr.flush()

    @contextlib.contextmanager
    def _alliances(self, root: Path) -> Iterator[dict[str, LocalAlliance]]:
        """Run an alliance by TLS and one by plain HTTP; only the latter where there is no TLS yet."""
        book = list(policies(MEMBERS))
        rows = {place + 1: [one.row() for one in book if one.member == place] for place in range(MEMBERS)}
        options = {"tls": [], "plain": [PLAIN_OPTION]} if knows_tls() else {"plain": []}
        with contextlib.ExitStack() as stack:
            started = {}
            for name, extra in options.items():
                self._say(f"starting an alliance of {MEMBERS} ({name}), and depositing {len(book)} policies")
                (root / name).mkdir()
                line = (*extra, "--rules", str(RULES_FILE))
                started[name] = stack.enter_context(
                    local_alliance(MEMBERS, root / name, *line, rows=rows, environment=UNLIMITED)
                )
            yield started

    # --- one client

    def _latency(self, central: Central, alliances: dict[str, LocalAlliance]) -> None:
        effort = self._effort
        doors = {name: alliance.door(alliance.local["members"][0]) for name, alliance in alliances.items()}
        subjects = {name: Subject(door, effort.checks) for name, door in doors.items()}
        subjects["central"] = Subject(central.door, effort.central_checks)
        checks, profiles = check_profile.Checks(), []
        used = dict.fromkeys(alliances, 0.0)
        check_profile.profile(checks, 3)
        self._say("warming up")
        for subject in subjects.values():  # every thread's connections, every statement prepared
            closed_loop([subject.door], 2 * MEMBERS, effort.warm_seconds)
            subject.block(keep=False)
        for number in range(effort.rounds):
            for name in ("central", *alliances):
                before = _spent(alliances[name]) if name in alliances else 0.0
                subjects[name].block()
                used[name] = used.get(name, 0.0) + (_spent(alliances[name]) - before if name in alliances else 0.0)
            profiles.append(check_profile.profile(checks, effort.profiled))
            told = "  ".join(f"{name} {subject.blocks.p50:.2f}" for name, subject in subjects.items())
            told += f"  cryptography {statistics.median(map(check_profile.cryptography, profiles)):.2f}"
            self._say(f"round {number + 1} of {effort.rounds}, ms so far: {told}")
        for name, subject in subjects.items():
            self._latencies(name, subject)
        steps = {step: round(statistics.median(one[step] for one in profiles), 4) for step in profiles[0]}
        self.found["crypto_core_ms_per_check"] = round(statistics.median(map(check_profile.cryptography, profiles)), 3)
        self.found["protocol_steps_core_ms"] = steps
        for name in alliances:
            self.found[f"core_ms_per_check_one_client_{name}"] = round(
                1000 * used[name] / effort.rounds / effort.checks, 2
            )

    def _latencies(self, name: str, subject: Subject) -> None:
        first, last = ("central_", "") if name == "central" else ("check_", f"_{name}")
        blocks = subject.blocks
        self.found[f"{first}p50_ms{last}"] = round(blocks.p50, 3)
        self.found[f"{first}p99_ms{last}"] = round(blocks.p99, 3)
        self.found[f"{first}noise_percent{last}"] = round(blocks.noise_percent, 1)


def _spent(alliance: LocalAlliance) -> float:
    return sum(alliance.processor_seconds().values())


def knows_tls() -> bool:
    """Return whether `alliance local` is by TLS unless told otherwise."""
    line = [sys.executable, "-m", "service.admin.cli", "local", "--help"]
    return PLAIN_OPTION in subprocess.run(line, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
