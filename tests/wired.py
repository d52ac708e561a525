"""An alliance in one process for tests of faults: real agents and service, real databases, and a wire before each.

Nothing runs by itself: a test tells a member to hand out keys, send deposits or publish its watermark.
"""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from werkzeug.serving import make_server
from wires import Wire, http_answered, postgres_answered
from world import make_world

import insurer_agent.agent
from insurer_agent.agent import Agent
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.keys import AgentKeys
from insurer_agent.rest import make_app
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.statements import Row, Statement, Value
from protocol import signing
from protocol.encoding import encode
from protocol.manifest import SignedManifest, hash_of, sign_terms
from protocol.secret import Secret
from service.app import make_app as make_service_app
from service.config import save_keys

ADMIN = Secret(bytes(range(32)))
"""The key of the one admin."""
FIRST_SERIAL = 2
MEMBERS = 6
Past = psycopg.Connection[tuple[Any, ...]]
SEALED = frozenset(
    {
        "sealed",
        "shares",
        "proof",
        "made",
        "entry",
        "claim",
        "answer",
        "hash",
        "deposit_id",
        "value",
        "next_attempt_at",
        "seq",
    }
)
"""Columns of which only is compared whether they are empty: random, or times."""
NOT_COMPARED = frozenset({"attempts", "refusals", "last_reason"})
"""What a transaction that was done and is done once more may well count twice: it is about attempts."""


STATEMENTS = (b"P", b"B", b"Q")
"""How the messages begin with which a statement comes, as against those that open a connection."""


class NamedDatabase(Database):
    """A database of which a test knows what transaction is running."""

    def __init__(self, dsn: str, *, size: int) -> None:
        super().__init__(dsn, size=size)
        self._pool.timeout = 3.0  # each cut takes a connection, and a busy machine may take long for the next
        self.running = ""
        self.commit = b""

    def run(
        self,
        name: str,
        transaction: Callable[[Rows], Any],
        *,
        snapshot: bool = False,
        one_statement: bool = False,
    ) -> Any:  # noqa: ANN401  as there
        self.running, self.commit = name, b"" if one_statement else b"COMMIT\0"
        return super().run(name, transaction, snapshot=snapshot, one_statement=one_statement)

    @contextlib.contextmanager
    def begun(
        self, name: str, statement: Statement, asked: Sequence[Sequence[Value]]
    ) -> Iterator[Callable[[], list[list[Row]]]]:
        self.running, self.commit = name, b""
        with super().begun(name, statement, asked) as rows:
            yield rows

    def commits(self, name: str) -> Callable[[bytes], bool]:
        """Return what tells the COMMIT of a transaction, or its one statement, which commits itself."""

        def tells(data: bytes) -> bool:
            return self.running == name and (self.commit in data if self.commit else data.startswith(STATEMENTS))

        return tells


@dataclass(frozen=True)
class Wired:
    """The alliance. `wires` leads to each party by its name; `to_postgres` from the first member to its database."""

    root: Path
    agents: dict[str, Agent]
    wires: dict[str, Wire]
    to_postgres: Wire
    empty: NamedDatabase
    """A database that is nobody's, behind the same wire."""
    aside: Past
    """The first member's database, past the wire."""
    aside_empty: Past

    @property
    def one(self) -> Agent:
        return self.agents["insurer-01"]

    @property
    def database(self) -> NamedDatabase:
        assert isinstance(self.one.database, NamedDatabase)
        return self.one.database

    def exchange_keys(self) -> int:
        """Have every member hand out its committee keys; return how many are still missing."""
        return sum([agent.custodian.exchange_keys() for agent in self.agents.values()])

    def forget_keys(self) -> None:
        for agent in self.agents.values():
            agent.database.run("forget", lambda connection: connection.execute("DELETE FROM committee_key"))
            agent.custodian._keyring._cache.clear()

    def make_due(self) -> None:
        """Have what is to be sent again be due now, and no holder that gave no receipt be waited for."""
        self.one.depositor._holds._held.clear()
        self.aside.execute("UPDATE deposit SET next_attempt_at = now()")

    def clear(self) -> None:
        """Empty the first member's database but for what it needs to work."""
        with self.aside.transaction():
            for table in _tables(self.aside):
                if table not in ("setting", "committee_key", "manifest"):
                    self.aside.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))

    def state(self) -> dict[str, list[str]]:
        """Return what stands in the first member's tables, without what is random or a time, and the other's tables."""
        found = {table: sorted(map(repr, _rows(self.aside, table))) for table in _tables(self.aside)}
        return found | {"of the empty database": _tables(self.aside_empty)}


def _tables(connection: Past) -> list[str]:
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
    return [name for (name,) in connection.execute(query)]


def _rows(connection: Past, table: str) -> Iterator[dict[str, object]]:
    cursor = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
    assert cursor.description is not None
    names = [column.name for column in cursor.description]
    for row in cursor:
        yield {
            name: value is not None if name in SEALED or name.endswith("_at") else value
            for name, value in zip(names, row, strict=True)
            if name not in NOT_COMPARED
        }


@contextlib.contextmanager
def wired_alliance(
    root: Path, server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, present: int = MEMBERS, shards: int = 1
) -> Iterator[Wired]:
    """Have the alliance for the block, with its first members `present`."""
    monkeypatch.setattr(insurer_agent.agent, "Database", NamedDatabase)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    with contextlib.ExitStack() as undo:
        wires: dict[str, Wire] = {}
        targets: dict[str, int] = {}

        def wire(name: str, answered: Callable[[bytes], bool]) -> Wire:
            return undo.enter_context(Wire(lambda: socket.create_connection(("127.0.0.1", targets[name])), answered))

        names = [f"insurer-{number:02d}" for number in range(1, MEMBERS + 1)]
        wires = {name: wire(name, http_answered) for name in [*names, "service"]}
        targets["postgres"] = int(conninfo_to_dict(server.dsn())["port"] or 0)
        to_postgres = wire("postgres", postgres_answered)
        states = _make_states(root, server, wires, to_postgres, shards)

        def served(name: str, app: Any) -> None:  # noqa: ANN401  a WSGI application
            http = make_server("127.0.0.1", 0, app, threaded=True)
            targets[name] = http.server_port
            thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            undo.callback(thread.join)
            undo.callback(http.shutdown)

        served("service", make_service_app(states["service"]))
        agents = {}
        for name in names[:present]:
            agents[name] = Agent.open(states[name], connections=4)
            undo.callback(agents[name].database.close)
            served(name, make_app(agents[name]))
        empty = NamedDatabase(make_conninfo(server.dsn("empty"), port=to_postgres.port), size=2)
        undo.callback(empty.close)
        past = [
            undo.enter_context(psycopg.connect(server.dsn(name), autocommit=True))
            for name in (f"{root.name}_insurer_01", "empty")
        ]
        there = Wired(root, agents, wires, to_postgres, empty, *past)
        yield there


def _make_states(
    root: Path, server: EmbeddedPostgres, wires: dict[str, Wire], to_postgres: Wire, shards: int
) -> dict[str, Path]:
    """Write what each party has in its state directory, as a local alliance lays them out."""
    world, admin, now = make_world(MEMBERS, shards=shards), ADMIN, int(time.time())

    def url(name: str) -> str:
        return f"http://127.0.0.1:{wires[name].port}"

    members = tuple(replace(member, url=url(member.id)) for member in world.manifest.terms.members)
    terms = replace(
        world.manifest.terms,
        serial=FIRST_SERIAL,
        members=members,
        service_url=url("service"),
        issued_at=now - 10,
        valid_until=now + 86_400,
    )
    terms = replace(terms, previous=hash_of(replace(terms, serial=FIRST_SERIAL - 1, issued_at=now - 11)))
    signed = encode(SignedManifest(terms=encode(terms), signatures=(sign_terms(terms, "admin", admin),)))
    pins = json.dumps({"threshold": 1, "keys": {"admin": signing.public_key(admin).hex()}})
    server.create_database("empty")
    states = {}
    for name in wires:
        states[name] = root / "service" if name == "service" else root / "members" / name
        states[name].mkdir(parents=True, mode=0o700)
        (states[name] / "manifest.bin").write_bytes(signed)
        (states[name] / "admins.json").write_text(pins)
        settings: dict[str, object] = {"port": 1, "allow_plain_http": True}
        if name == "service":
            save_keys(world.service.keys, states[name])
            settings |= {"flights": 1}  # so that of few checks at once some leave together
        else:
            AgentKeys(world.members[name].party.keys, Secret(bytes(range(32)))).save(states[name])
            database = f"{root.name}_{name}".replace("-", "_")
            server.create_database(database)
            dsn = server.dsn(database)
            if name == "insurer-01":
                dsn = make_conninfo(dsn, port=to_postgres.port)
            settings |= {"member_id": name, "database": dsn, "allow_local": True}
        lines = (f"{setting} = {json.dumps(value)}\n" for setting, value in settings.items())
        (states[name] / "config.toml").write_text("".join(lines))
    return states
