"""The intake loses nothing and counts nothing twice, whoever is killed at whatever point. `make soak` runs it longer.

SOAK_ROUNDS: so many rounds, a kill each; SOAK_MINUTES: rounds until then; SOAK_SEED: repeats a run as far as it was
chance and not timing; SOAK_REPORT: a file for the tally.
"""

import json
import os
import random
import secrets
import sys
import time
from pathlib import Path

import pytest
from killer import KINDS
from storm import Storm

pytestmark = [pytest.mark.alliance, pytest.mark.soak]

ROUNDS = int(os.environ.get("SOAK_ROUNDS") or 0)
MINUTES = float(os.environ.get("SOAK_MINUTES") or 0)
SEED = int(os.environ.get("SOAK_SEED") or 0)
LONG = bool(ROUNDS or MINUTES)
SETTLE_EVERY = 2 * len(KINDS)


def test_kills_at_any_point_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    seed = SEED or (secrets.randbelow(1_000_000) + 1 if LONG else 20261126)
    tell(f"seed {seed}")
    deadline = time.monotonic() + (60 * MINUTES or float("inf"))
    rounds = ROUNDS or (10**9 if MINUTES else len(KINDS))
    order = random.Random(repr((seed, "order")))  # noqa: S311  a test's
    with Storm(tmp_path, 7 if LONG else 6, seed, tell) as storm:
        done, kinds = 0, list[str]()
        try:
            storm.feed(40, 16)
            while done < rounds and time.monotonic() < deadline and not storm.faults:
                kinds = kinds or order.sample(KINDS, len(KINDS))
                kind = kinds.pop()
                storm.feed(8, 4 if LONG else 1)
                storm.strike(kind)
                done += 1
                tell(f"round {done}: {kind}")
                if LONG and done % SETTLE_EVERY == 0:
                    storm.settle()
            storm.settle()
        finally:
            summary = {"rounds": done} | storm.summary()
            tell(json.dumps(summary, indent=1))
            if report := os.environ.get("SOAK_REPORT"):
                Path(report).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        again = f"make soak SEED={seed} ROUNDS={done}" if LONG else "pytest tests/soak"
        assert storm.faults == [], f"{again}\n" + "\n".join(storm.faults)
        assert done < len(KINDS) or all(storm.killer.counts[f"killed: {kind}"] for kind in KINDS)
        assert storm.judge.counts["checks that only one verdict was right for"] > 0


def tell(what: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")
