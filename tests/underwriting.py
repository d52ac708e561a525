"""An alliance in one process of which a test asks the first member's REST interface as an underwriting system does."""

import contextlib
import datetime as dt
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request

import pytest
from live import Answer, call, wait_until
from wired import Wired, wired_alliance
from world import RULE

from insurer_agent.agent import Agent
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.intake.policy import Event
from insurer_agent.roles import Role
from insurer_agent.store.register import PolicyEvent
from protocol.identity import DocumentType, Identity
from protocol.manifest import china_day
from protocol.stamps import as_of_tick, tick_at

SHARDS = 2
BOTH = (Role.UNDERWRITER, Role.DATA_OPERATOR)
"""The roles of a system that asks checks and hands in policies."""
PEOPLE = iter(range(1, 100_000))
DAY = dt.date.fromordinal(china_day(time.time()))


@dataclass(frozen=True)
class House:
    """The alliance, and the first member's address and API key."""

    there: Wired
    key: str

    @property
    def agent(self) -> Agent:
        return self.there.one

    def request(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        url = f"http://127.0.0.1:{self.there.wires['insurer-01'].port}{path}"
        sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return call(Request(url, data, sent, method=method))

    def batch(self, checks: object, **headers: str) -> Answer:
        return self.request("POST", "/v1/checks/batch", {"checks": checks}, **headers)

    def spent(self) -> int:
        """Return how many answers custodians have charged."""
        query = "SELECT coalesce(sum(answers), 0) FROM budget"
        agents = self.there.agents.values()
        return sum(agent.database.run("count", lambda at: int(at.execute(query).fetchone()[0])) for agent in agents)  # type: ignore[index]  # it has a row

    def deposit(self, policies: list[tuple[str, str, int]]) -> None:
        """Have members, by their names, insure persons by number, until checks see it."""
        for number, (member, whom, fen) in enumerate(policies):
            insured = Identity(DocumentType.PASSPORT, whom)
            event = PolicyEvent(f"P-{number}-{whom}", insured, "accident", Event.ISSUE, fen, DAY)
            self.there.agents[member].register.apply([event])
        for agent in self.there.agents.values():
            wait_until(lambda agent=agent: deliver(agent))
        done = tick_at(time.time(), 1)
        wait_until(lambda: as_of_tick(time.time(), 1) >= done)


def deliver(agent: Agent) -> bool:
    agent.depositor.send_due()
    backlog = agent.outbox.backlog()
    return (backlog.unmade, backlog.incomplete) == (0, 0)


@contextlib.contextmanager
def underwriting_house(root: Path, server: EmbeddedPostgres) -> Iterator[House]:
    """Have the alliance for the block, ready to be asked."""
    with pytest.MonkeyPatch.context() as patch, wired_alliance(root, server, patch, shards=SHARDS) as there:
        wait_until(lambda: there.exchange_keys() == 0, 10)
        yield House(there, there.one.api_keys.make("underwriting", secrets.token_bytes, roles=BOTH))


def somebody() -> str:
    return f"B{next(PEOPLE):08d}"


def check(whom: str, amount: str = "1.00", **change: object) -> dict[str, Any]:
    subject = {"document_type": "passport", "document_number": whom}
    body: dict[str, Any] = {"subject": subject, "rule": RULE.id, "proposed_amount": amount} | change
    if "rules" in body:
        del body["rule"]
    return body


def yuan(fen: int) -> str:
    return f"{fen // 100}.{fen % 100:02d}"


def results(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.body["results"]
    return found
