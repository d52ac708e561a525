"""How much a bench measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Rounds of blocks, how many checks a block has, checks profiled a round, and the lengths of loads in seconds."""

    rounds: int
    central_checks: int
    checks: int
    profiled: int
    warm_seconds: float
    steady_seconds: float
    repeats: int
    deposits: int
    deposit_rounds: int


FULL = Effort(
    rounds=12,
    central_checks=1000,
    checks=300,
    profiled=20,
    warm_seconds=10,
    steady_seconds=30,
    repeats=5,
    deposits=1500,
    deposit_rounds=3,
)
QUICK = Effort(
    rounds=5,
    central_checks=400,
    checks=150,
    profiled=10,
    warm_seconds=5,
    steady_seconds=6,
    repeats=2,
    deposits=400,
    deposit_rounds=1,
)
