"""A private check against a plain central one, and what an alliance bears, in one run and one table.

    .venv/bin/python loadtests/bench.py [--quick] [--parts latency rules rates batches deposits]

All on this machine, on loopback: the baseline of `central.py`, and alliances of six with all their parties, one by
mutual TLS on every hop and one by plain HTTP. Blocks of one client's checks at each of them alternate, so that what
else the machine does falls on all alike; a figure is the median of the blocks' medians, its noise how far apart those
lie. The cryptography of a check alone is timed between the blocks, in this process. Then come the central check's rate
with more and more clients and a load at half of that, the alliances standing idle beside it; and, alone, those of the
alliance by TLS, batches, memory, deposits. What makes the load runs on the same cores. A thousand random cases are
asked one by one and in a batch, by TLS and by plain HTTP. The limits of REST and service on one caller's rate are
lifted, as settings can. Every verdict is compared with that of a plain sum.

Prints a table; all figures are in build/bench.json, and build/check-time.svg shows where a check's time goes.
"""

import argparse
import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from book import RULES_FILE, policies
from central import central_check
from check_picture import picture
from check_steps import check_steps
from deposits import drain
from effort import FULL, QUICK, Effort
from local_alliance import MEMBERS, LocalAlliance, local_alliance
from memory import read_ns
from one_client import measure_further_rules, measure_latency
from processes import machine_core_seconds
from saturation import measure_batches, measure_central, measure_rates, worker_memory
from targets import beside, table
from verdicts import measure_verdicts

PLAIN_OPTION = "--plain-http"
PICTURE = "check-time.svg"
PARTS = ("latency", "rules", "rates", "batches", "deposits")
REST_SECONDS = 5
UNLIMITED = {
    "INSURER_AGENT_CHECKS_A_SECOND": "1000000",
    "INSURER_AGENT_CHECKS_AT_ONCE": "10000000",
    "LOOKUP_SERVICE_CHECKS_A_SECOND": "1000000",
}
"""Settings whose usual values would end a load that is heavier than any one caller's."""


def main() -> int:
    """Run the parts that are asked for, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, for development: some 3 minutes")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="all unless given; the central rate takes both latency and rates",
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    bench, busy, began = Bench(QUICK if args.quick else FULL, args.parts), machine_core_seconds(), time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        figures = bench.run(Path(root))
    seconds = time.monotonic() - began
    used = sum(os.times()[:4])  # this process and all that it started, which have ended
    figures["seconds"] = round(seconds)
    figures["machine"]["cores_used_by_others"] = round((machine_core_seconds() - busy - used) / seconds, 2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if "check_steps_ms" in figures:
        args.out.with_name(PICTURE).write_text(picture(figures), encoding="utf-8")
    print(table(figures))
    for line in beside(figures):
        print(f"\n{line}")
    if "verdict_cases" in figures:
        ways, cases = figures["verdict_ways"], figures["verdict_cases"]
        print(f"\n{cases} random cases have the plain sum's verdicts, each of {ways} ways: TLS or not, single or batch")
    machine = figures["machine"]
    others = f"others used {machine['cores_used_by_others']} of {machine['cores']} cores meanwhile"
    print(f"\n{figures['seconds']} s; the load before was {machine['load_before']}; {others}; see {args.out}")
    return 0


class Bench:
    """One run of so much effort."""

    def __init__(self, effort: Effort, parts: Sequence[str]) -> None:
        self._effort = effort
        self._parts = parts
        self._began = time.monotonic()

    def run(self, root: Path) -> dict[str, Any]:
        """Return all figures."""
        effort, parts, say = self._effort, self._parts, self._say
        machine = {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2), "read_ns_by_mb": read_ns()}
        figures: dict[str, Any] = {"machine": machine}
        names = ["tls", "plain"] if knows_tls() else ["plain"]
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(self._alliance(root, names[0]))
            figures |= {f"idle_{name}": value for name, value in _at_rest(first).items()}
            if "latency" in parts:
                with contextlib.ExitStack() as more:
                    alliances = {names[0]: first}
                    for name in names[1:]:
                        alliances[name] = more.enter_context(self._alliance(root, name))
                    say("filling the central table")
                    central = more.enter_context(central_check(root))
                    figures |= measure_latency(central, alliances, effort, say)
                    if "rates" in parts:
                        figures |= measure_central(central, effort, say)
                    say("a thousand random cases, one by one and in a batch, at each alliance")
                    figures |= measure_verdicts(alliances, secrets.randbits(32))
                    say("steps of a check")
                    figures["check_steps_ms"] = check_steps(root, effort.checks)
            if "rules" in parts:
                figures |= measure_further_rules(first, effort, say)
            if "rates" in parts:
                figures |= measure_rates(first, effort, say)
            if "batches" in parts:
                figures |= measure_batches(first, effort, say)
            figures |= {"agent_mb": worker_memory(first)["rss"], "agent_mb_pss": worker_memory(first)["pss"]}
            if "deposits" in parts:
                figures |= self._deposits(first, root)
        machine["read_ns_by_mb_at_the_end"] = read_ns()
        return figures

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self._began:6.0f} s  {text}\n")
        sys.stderr.flush()

    @contextlib.contextmanager
    def _alliance(self, root: Path, name: str) -> Iterator[LocalAlliance]:
        """Run an alliance with the policies of the book, by TLS or by plain HTTP."""
        book = list(policies(MEMBERS))
        rows = {place + 1: [one.row() for one in book if one.member == place] for place in range(MEMBERS)}
        options = [PLAIN_OPTION] if name == "plain" and knows_tls() else []
        options += ["--rules", str(RULES_FILE)]
        self._say(f"starting an alliance of {MEMBERS} ({name}), and depositing {len(book)} policies")
        (root / name).mkdir()
        with local_alliance(MEMBERS, root / name, *options, rows=rows, environment=UNLIMITED) as alliance:
            yield alliance

    def _deposits(self, alliance: LocalAlliance, root: Path) -> dict[str, Any]:
        rounds = []
        for number in range(self._effort.deposit_rounds):
            rounds.append(drain(alliance, root, 100 + number, self._effort.deposits))
            self._say(f"deposits, round {number + 1} of {self._effort.deposit_rounds}: {rounds[-1]}")
        rates = [one["deposits_per_s"] for one in rounds]
        return {
            "deposits_per_s": statistics.median(rates),
            "deposits_noise_percent": round(100 * (max(rates) - min(rates)) / statistics.median(rates), 1),
            "core_ms_per_deposit": statistics.median(one["core_ms_per_deposit"] for one in rounds),
        }


def _at_rest(alliance: LocalAlliance) -> dict[str, float]:
    """Return what an alliance uses that nobody asks: cores, and the memory of an agent's worker, in MB."""
    before = alliance.core_seconds()
    time.sleep(REST_SECONDS)
    memory = worker_memory(alliance)
    cores = (alliance.core_seconds() - before) / REST_SECONDS
    return {"cores": round(cores, 3), "agent_mb": memory["rss"], "agent_mb_pss": memory["pss"]}


def knows_tls() -> bool:
    """Return whether `alliance local` is by TLS unless told otherwise."""
    line = [sys.executable, "-m", "service.admin.cli", "local", "--help"]
    return PLAIN_OPTION in subprocess.run(line, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
