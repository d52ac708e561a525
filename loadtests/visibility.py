"""How long after its issue a policy counts in every check: the whole way, jitter and ticks included.

    .venv/bin/python loadtests/visibility.py [--policies 300] [--minutes 5] [--members 6]

A local alliance with the ticks (10 s) and the jitter (up to 20 s) of one over machines. Policies are issued by REST at
random times; one is visible when `GET /v1/policies/<number>` says so, asked once a second: its deposit is made, and so
long ago that every check is as of then. Prints one JSON object, also to build/visibility.json. Bound: p99 within 60 s.
"""

import argparse
import json
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from local_alliance import LocalAlliance, issues, local_alliance

TICK_SECONDS, JITTER_SECONDS = 10, 20
LATEST_SECONDS = 180
_random = secrets.SystemRandom()


def main() -> int:
    """Issue, watch, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("build/visibility.json"))
    args = parser.parse_args()
    pace = ("--tick-seconds", str(TICK_SECONDS), "--jitter-seconds", str(JITTER_SECONDS))
    with tempfile.TemporaryDirectory() as root, local_alliance(args.members, Path(root), *pace) as alliance:
        seconds = sorted(_watch(alliance, args.policies, 60 * args.minutes))
    result = {
        "policies": len(seconds),
        "tick_seconds": TICK_SECONDS,
        "jitter_seconds": JITTER_SECONDS,
        "p50_s": round(statistics.median(seconds), 1),
        "p99_s": round(seconds[max(0, -(-99 * len(seconds) // 100) - 1)], 1),
        "most_s": round(seconds[-1], 1),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 0


def _watch(alliance: LocalAlliance, count: int, seconds: float) -> list[float]:
    """Issue `count` policies at random times within `seconds`; return after how long each was visible."""
    members = alliance.local["members"]
    began = time.monotonic()
    planned = sorted(_random.uniform(0, seconds) for _ in range(count))
    waiting: dict[str, tuple[dict[str, Any], float]] = {}
    taken: list[float] = []
    issued = 0
    while len(taken) < count:
        now = time.monotonic() - began
        while issued < count and planned[issued] <= now:
            member = members[issued % len(members)]
            (row,) = issues("V", 1, first_person=issued)
            number = f"V-{issued}"
            body = {
                "policy_number": number,
                "subject": {"document_type": row[1], "document_number": row[2]},
                "product": row[3],
                "insured_amount": row[4],
                "issued_on": row[5],
            }
            alliance.call(member, "POST", "/v1/policies", body)
            waiting[number] = (member, time.monotonic())
            issued += 1
        for number, (member, at) in list(waiting.items()):
            if alliance.call(member, "GET", f"/v1/policies/{number}")["policies"][0]["visible_to_checks"]:
                taken.append(time.monotonic() - at)
                del waiting[number]
            elif time.monotonic() - at > LATEST_SECONDS:
                raise TimeoutError(f"a policy is not visible after {LATEST_SECONDS} s")
        sys.stderr.write(f"\r{len(taken)} of {count} visible, {len(waiting)} on their way ")
        time.sleep(1)
    sys.stderr.write("\n")
    return taken


if __name__ == "__main__":
    sys.exit(main())
