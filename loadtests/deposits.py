"""How many range-checked deposits a second an alliance of six makes with all its parties on this machine.

    .venv/bin/python loadtests/deposits.py [--policies 2000] [--members 6] [--rounds 3]

Every member imports the same number of policies while the service is held; then it is let go, and what is measured is
the time in which the members' outboxes empty, and the processor time that service, agents and PostgreSQL use for it.
`deposit_profile.py` has the cryptography alone, step by step. Prints one JSON object, also to build/deposits.json.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from local_alliance import MEMBERS, LocalAlliance, issues, local_alliance, wait_for, write_policies

DRAIN_SECONDS = 900


def main() -> int:
    """Run the rounds and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=int, default=2000, help="a member and round")
    parser.add_argument("--members", type=int, default=MEMBERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/deposits.json"))
    args = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as root, local_alliance(args.members, Path(root)) as alliance:
        for number in range(args.rounds):
            rounds.append(drain(alliance, Path(root), number, args.policies))
            _say(f"round {number + 1} of {args.rounds}: {rounds[-1]}")
    result = {
        "members": args.members,
        "policies_a_member_and_round": args.policies,
        "deposits_per_s": statistics.median(one["deposits_per_s"] for one in rounds),
        "core_ms_per_deposit": statistics.median(one["core_ms_per_deposit"] for one in rounds),
        "rounds": rounds,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0


def drain(alliance: LocalAlliance, root: Path, number: int, policies: int) -> dict[str, Any]:
    """Import so many policies a member of persons of that round, `number`, and measure how fast they are deposited."""
    members = alliance.local["members"]
    service = alliance.service_processes()
    for pid in service:
        os.kill(pid, signal.SIGSTOP)
    try:
        imports = []
        for place, member in enumerate(members):
            rows = issues(f"R{number}-{member['id']}", policies, first_person=(number * 100 + place) * 100_000)
            imports.append(alliance.start_import(member, write_policies(root / f"{member['id']}.csv", rows)))
        statuses = [process.wait() for process in imports]
        if any(statuses):
            raise RuntimeError(f"an import ended with status {max(statuses)}")
    finally:
        for pid in service:
            os.kill(pid, signal.SIGCONT)
    wait_for(lambda: _unmade(alliance) < len(members) * policies, 120, "no deposit is made")
    used, began, first = alliance.processor_seconds(), time.monotonic(), _unmade(alliance)
    wait_for(lambda: _unmade(alliance) == 0, DRAIN_SECONDS, "deposits are not made")
    seconds = time.monotonic() - began
    spent = {name: after - used[name] for name, after in alliance.processor_seconds().items()}
    return {
        "deposits": first,
        "seconds": round(seconds, 2),
        "deposits_per_s": round(first / seconds, 1),
        "core_ms_per_deposit": round(1000 * sum(spent.values()) / first, 2),
        "core_ms_by_party": {name: round(1000 * value / first, 2) for name, value in spent.items()},
    }


def _unmade(alliance: LocalAlliance) -> int:
    return sum(int(alliance.status(member)["deposits_unmade"]) for member in alliance.local["members"])


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
