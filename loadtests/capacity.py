"""A model of a nation's alliance, from a bench's figures: cores, bandwidth and latency for so many checks a second.

    .venv/bin/python loadtests/capacity.py [--insurers 100] [--rate 1000] [--figures build/bench.json]

It is a model, not a measurement. It assumes:
- what a check takes of the processor is what the bench measured, on cores like that machine's: by role while one
  client asks, scaled to the whole that a steady load takes; what idle processes take is left out;
- insurers ask, and keep shares, in equal parts; the rate is that of the peak;
- checks arrive at random and take random times: each insurer's agent with its database, and the service, are queues of
  the kind M/M/c, c being the cores; the mean wait is Erlang's `C(c, a) * s / (c - a)`, a being the load in cores and s
  the mean time of service. Cores are so many that they are busy for no more than a part, `--busy`, of the time;
- a check waits for the slowest of its four custodians, for exponential times `1 + 1/2 + 1/3 + 1/4` times the mean;
- a round trip between two houses takes `--round-trip` ms; messages have the sizes measured, and `HEADERS` bytes more.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CUSTODIANS = 4
SLOWEST = sum(1 / number for number in range(1, CUSTODIANS + 1))
HEADERS = 400
"""Bytes of HTTP and TLS about a message, roughly."""
MOST_BUSY, _MOST_TIMES = 0.8, 16.0
"""How busy a server, and how long a wait, `waits_at_most` knows of: beyond, its terms cancel each other's digits."""


@dataclass(frozen=True)
class Cost:
    """What a check takes: core-ms of the requester, of the service, of one custodian, databases included, and bytes."""

    requester: float
    service: float
    custodian: float
    to_service: float
    from_service: float


@dataclass(frozen=True)
class Queue:
    """An M/M/c queue: c cores, and a mean time of service in ms."""

    cores: int
    load: float
    service_ms: float

    @property
    def busy(self) -> float:
        """Which part of the time a core is busy."""
        return self.load / self.cores

    @property
    def wait_ms(self) -> float:
        """Return the mean time before service begins, in ms."""
        return erlang_c(self.cores, self.load) * self.service_ms / (self.cores - self.load)


@dataclass(frozen=True)
class Capacity:
    """What the model says: the queues of one insurer and of the service, a check's mean latency, bits a second."""

    insurer: Queue
    service: Queue
    cores: int
    latency_ms: float
    service_mbit_in: float
    service_mbit_out: float
    insurer_mbit: float


def erlang_c(cores: int, load: float) -> float:
    """Return the probability that an arrival waits, of c cores under a load of `load` cores; load < cores."""
    if not 0 <= load < cores:
        raise ValueError("a queue that is loaded as much as it can bear grows without end")
    blocked = 1.0  # Erlang's B, by its recursion
    for number in range(1, cores + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked / (1 - load / cores * (1 - blocked))


def waits_at_most(busy: float, times: float) -> float:
    """Return the probability that an arrival waits for no more than so many times of service (Erlang 1909).

    One server that takes each as long, one at a time (M/D/1), busy for that part of the time. `busy` is up to 0.8 and
    `times` up to 16: else `ValueError`.
    """
    if not (0 <= busy <= MOST_BUSY and 0 <= times <= _MOST_TIMES):
        raise ValueError("the sum has no digits left there")
    terms = [
        (-busy * (times - number)) ** number / math.factorial(number) * math.exp(busy * (times - number))
        for number in range(math.floor(times) + 1)
    ]
    return (1 - busy) * math.fsum(terms)


def tail_of_one_server(busy: float) -> float:
    """Return p99 over p50 of the time from arrival to answer, at such a server; `busy` is up to 0.8."""

    def within(part: float) -> float:
        least, most = 0.0, _MOST_TIMES  # which fewer than one in a hundred wait for
        while most - least > 1e-6:  # noqa: PLR2004  digits that nobody reads
            middle = (least + most) / 2
            least, most = (least, middle) if waits_at_most(busy, middle) >= part else (middle, most)
        return 1 + most

    return within(0.99) / within(0.5)


def cost_of(figures: Mapping[str, Any]) -> Cost:
    """Read what a check takes from a bench's figures; the whole is that of a steady load where it was measured."""
    roles = next(
        figures[f"check_core_ms_by_role_{name}"] for name in ("tls", "plain") if f"check_p50_ms_{name}" in figures
    )
    whole = sum(roles.values())
    scale = figures.get("core_ms_per_check", whole) / whole
    sizes = figures["message_bytes"]
    return Cost(
        requester=scale * (roles["requester"] + roles["requester's database"]),
        service=scale * roles["service"],
        custodian=scale * (roles["custodians"] + roles["custodians' databases"]) / CUSTODIANS,
        to_service=sizes["CheckRequest"] + sizes["CheckAnswer"] + (1 + CUSTODIANS) * HEADERS,
        from_service=sizes["CheckOutcome"] + sizes["CheckCall"] + (1 + CUSTODIANS) * HEADERS,
    )


def capacity(cost: Cost, insurers: int, rate: float, busy: float, round_trip: float) -> Capacity:
    """Return cores and latency for so many insurers and checks a second, all of them together."""
    own = rate / insurers
    insurer_load = own * (cost.requester + CUSTODIANS * cost.custodian) / 1000
    # An agent serves 1 question of its own for 4 of others: the mean time of service is that of the mixture.
    mixture = (cost.requester + CUSTODIANS * cost.custodian) / (1 + CUSTODIANS)
    insurer = Queue(_cores(insurer_load, busy), insurer_load, mixture)
    service_load = rate * cost.service / 1000
    service = Queue(_cores(service_load, busy), service_load, cost.service)
    served = cost.requester + cost.service + cost.custodian
    waited = insurer.wait_ms + service.wait_ms + SLOWEST * insurer.wait_ms
    bits = 8 * rate / 1e6
    return Capacity(
        insurer=insurer,
        service=service,
        cores=insurers * insurer.cores + service.cores,
        latency_ms=served + waited + 2 * round_trip,
        service_mbit_in=bits * cost.to_service,
        service_mbit_out=bits * cost.from_service,
        insurer_mbit=bits * (cost.to_service + cost.from_service) / insurers,
    )


def _cores(load: float, busy: float) -> int:
    return max(1, math.ceil(load / busy))


def main() -> int:
    """Print what the model says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--insurers", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1000, help="checks a second, all insurers together")
    parser.add_argument("--busy", type=float, default=0.5, help="most of the time that a core is busy")
    parser.add_argument("--round-trip", type=float, default=10, help="between two houses, in ms")
    parser.add_argument("--figures", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    cost = cost_of(json.loads(args.figures.read_text(encoding="utf-8")))
    found = capacity(cost, args.insurers, args.rate, args.busy, args.round_trip)
    insurer, service = found.insurer, found.service
    print(f"A model, see `{Path(__file__).name} --help`: {args.insurers} insurers, {args.rate:g} checks a second")
    print(f"a check takes {cost.requester:.1f} core-ms of its requester, {cost.service:.1f} of the service, and")
    print(f"  {cost.custodian:.1f} of each of four custodians, databases included")
    print(f"each insurer: {insurer.load:.2f} cores' work on {insurer.cores}, and {found.insurer_mbit:.2f} Mbit/s")
    print(
        f"the service:  {service.load:.2f} cores' work on {service.cores}, {found.service_mbit_in:.0f} Mbit/s in, "
        f"{found.service_mbit_out:.0f} out"
    )
    print(
        f"the alliance: {found.cores} cores; mean latency {found.latency_ms:.1f} ms, of which "
        f"{2 * args.round_trip:g} are on the way between houses and "
        f"{service.wait_ms + (1 + SLOWEST) * insurer.wait_ms:.1f} waiting for a core"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
