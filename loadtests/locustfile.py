"""Loads on any alliance, by locust: smoke, an underwriting day with its peaks, a storm of deposits, saturation.

    locust -f loadtests/locustfile.py --headless --load smoke --local build/local/local.json
    COVER_API_KEY=… COVER_CA_FILE=ca.pem locust -f loadtests/locustfile.py --headless --load day --host https://agent:8443

Checks are about passports that begin with L and a random number: nobody's, unless deposits of this file are. A check
without a verdict is a failure, named by its reason. Checks spend budgets and `deposits` issues policies that stay, so
load an alliance that is there for it.
"""

import json
import random
import secrets
import ssl
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any, ClassVar

import locust.stats
from book import today
from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from rest import Door

LOADS = ("smoke", "day", "deposits", "saturation")
MINUTES = {"smoke": 1 / 6, "day": 10.0, "deposits": 5.0}
"""How long a load takes unless --minutes says; a search ends by itself."""
DAY = (2, 1, 1, 1, 1, 2, 5, 15, 45, 95, 100, 80, 45, 55, 90, 95, 80, 60, 45, 50, 60, 40, 20, 8)
"""The load of each hour, in percent of the peak: mornings and afternoons at the offices, evenings on phones."""
STORM = ((0.2, False), (0.6, True), (0.2, False))
"""Parts of a storm's time, and whether policies are issued: checks alone, both, checks again."""
STEP_SECONDS, STEP_USERS, LATEST_MS, GAIN = 15, 2, 1000, 1.03
"""A search for saturation adds users until a step brings less than 3 percent more, or one in 20 waits a second."""


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--load", choices=LOADS, default="smoke", env_var="COVER_LOAD", help="which load")
    parser.add_argument("--local", default="", env_var="COVER_LOCAL", help="the local.json of an `alliance local`")
    parser.add_argument("--api-key", default="", env_var="COVER_API_KEY", is_secret=True, help="without --local")
    parser.add_argument("--ca-file", default="", env_var="COVER_CA_FILE", help="the CA of the agent's certificate")
    parser.add_argument("--rule", default="accident-30d", env_var="COVER_RULE", help="which rule to ask under")
    parser.add_argument(
        "--peak", type=int, default=20, env_var="COVER_PEAK", help="users at the peak; one asks a second"
    )
    parser.add_argument(
        "--minutes", type=float, default=0, env_var="COVER_MINUTES", help="how long; else the load's own"
    )


def doors(options: Namespace) -> list[Door]:
    """Return the agents to load: those of a local alliance, or the one at --host."""
    if options.local:
        local = json.loads(Path(options.local).read_text(encoding="utf-8"))
        return [Door(member["url"], member["api_key"], local["ca_file"]) for member in local["members"]]
    if not options.host or not options.api_key:
        raise SystemExit("name an alliance: --local FILE, or --host URL with COVER_API_KEY")
    return [Door(options.host, options.api_key, options.ca_file or None)]


class Caller(FastHttpUser):
    """One who calls an agent's REST interface; callers take the agents in turn."""

    abstract = True
    _next: ClassVar[Callable[[], Door] | None] = None

    def __init__(self, environment: Environment) -> None:
        if Caller._next is None:
            Caller._next = cycle(doors(environment.parsed_options)).__next__
        door = Caller._next()
        self.host = door.url
        self.default_headers = {"Authorization": f"Bearer {door.api_key}"}
        self.ssl_context_factory = lambda: ssl.create_default_context(cafile=door.ca_file)
        super().__init__(environment)
        self.options: Any = environment.parsed_options


def _person() -> dict[str, str]:
    return {"document_type": "passport", "document_number": f"L{random.randrange(1_000_000):08d}"}  # noqa: S311  a load


class Underwriter(Caller):
    """Asks checks, one a second at random times; at saturation one after the other."""

    def wait_time(self) -> float:
        """Return how long to wait for the next."""
        return 0.0 if self.options.load == "saturation" else random.expovariate(1.0)

    @task
    def check(self) -> None:
        """Ask about a person."""
        amount = f"{random.randrange(1, 60) * 1_000_000}.00"  # noqa: S311  a load
        body = {"subject": _person(), "rule": self.options.rule, "proposed_amount": amount}
        with self.client.post("/v1/checks", json=body, catch_response=True) as response:
            if response.status_code != 200:  # noqa: PLR2004  the one status of success here
                response.failure(f"status {response.status_code}")
                return
            answer = response.json()
            if answer["verdict"] == "indeterminate":
                response.failure(f"indeterminate: {answer['reason']}")


class Depositor(Caller):
    """Issues policies, one after the other."""

    wait_time = constant(0)
    _run = secrets.token_hex(4)
    _number = count()

    @task
    def issue(self) -> None:
        """Issue a policy of today."""
        body = {
            "policy_number": f"LOAD-{self._run}-{next(self._number)}",
            "subject": _person(),
            "product": "accident",
            "insured_amount": "1000000.00",
            "issued_on": today().isoformat(),
        }
        self.client.post("/v1/policies", json=body)


Tick = tuple[int, float, list[type[Caller]]]


@dataclass
class Step:
    """A step of the search for saturation, and the requests that had been answered when it began."""

    users: int
    began: float
    answered: int


class Shape(LoadTestShape):
    """The load that --load names, over time."""

    def __init__(self) -> None:
        super().__init__()
        self._step: Step | None = None
        self._best = (0.0, 0)

    def tick(self) -> Any:  # noqa: ANN401  users, users started a second, their classes; None ends
        """Return the load of this moment."""
        assert self.runner is not None
        options: Any = self.runner.environment.parsed_options
        return getattr(self, f"_{options.load}")(options)

    def _part(self, options: Namespace) -> float:
        """Return which part of its time has gone by."""
        return float(self.get_run_time() / 60 / (options.minutes or MINUTES[options.load]))

    def _smoke(self, options: Namespace) -> Tick | None:
        return (2, 2, [Underwriter]) if self._part(options) < 1 else None

    def _day(self, options: Namespace) -> Tick | None:
        part = self._part(options)
        if part >= 1:
            return None
        return max(1, round(DAY[int(24 * part)] / 100 * options.peak)), options.peak, [Underwriter]

    def _deposits(self, options: Namespace) -> Tick | None:
        part, users = self._part(options), options.peak
        for length, storm in STORM:
            if part < length:
                # Of what locust adds for two classes, half is of each: as many users issue as had been asking.
                return (3 * users, users, [Underwriter, Depositor]) if storm else (users, users, [Underwriter])
            part -= length
        return None

    def _saturation(self, _options: Namespace) -> Tick | None:
        assert self.runner is not None
        total: locust.stats.StatsEntry = self.runner.stats.total
        now = time.monotonic()
        if self._step is None:
            self._step = Step(STEP_USERS, now, total.num_requests)
        elif now - self._step.began >= STEP_SECONDS:
            rate = (total.num_requests - self._step.answered) / (now - self._step.began)
            late = (total.get_current_response_time_percentile(0.95) or 0) > LATEST_MS
            print(f"{self._step.users} users: {rate:.1f} checks a second", flush=True)
            if late or rate < GAIN * self._best[0]:
                print(f"saturation: {max(self._best[0], rate):.1f} checks a second", flush=True)
                return None
            self._best = (rate, self._step.users)
            self._step = Step(self._step.users + STEP_USERS, now, total.num_requests)
        return self._step.users, STEP_USERS, [Underwriter]


__all__ = ["Depositor", "Shape", "Underwriter"]
