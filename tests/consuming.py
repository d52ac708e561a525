"""The part of an insurer that a stream's consumer needs, for tests; a state directory with which the command runs."""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from embedded_redis import EmbeddedRedis
from world import World, make_world

from insurer_agent.intake.stream_entry import EntryMapping
from insurer_agent.keys import AgentKeys
from insurer_agent.policy_stream import PolicyStream
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.outbox import Outbox
from insurer_agent.store.register import Record, Register
from insurer_agent.store.vault import Vault
from insurer_agent.stream_consumer import Consumer, Pace, lock_of
from protocol import signing
from protocol.encoding import decode, encode
from protocol.manifest import SignedManifest, sign_terms
from protocol.secret import Secret

STREAM = "policies"
GROUP = "insurer-agent"
STORAGE_KEY = Secret(bytes(range(32)))
WORLD: World = make_world()
ROOT = Path(__file__).parent.parent
QUICK = Pace(batch=50, claim=0.5, patience=0.6, longest_pause=0.4)


def policy(number: str = "A-1", event: str = "issue", amount: str | None = "1000.00", **other: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return an entry's object; a cancellation may be without an amount."""
    made = {
        "policy_number": number,
        "document_type": "passport",
        "document_number": "E12345678",
        "product": "accident",
        "issued_on": "2026-11-03",
        "event": event,
    }
    return made | ({} if amount is None else {"insured_amount": amount}) | other


@dataclass(frozen=True)
class House:
    """An insurer with a register and a Redis."""

    redis: EmbeddedRedis
    database: Database
    vault: Vault
    register: Register
    outbox: Outbox

    @classmethod
    def open(cls, redis: EmbeddedRedis, dsn: str) -> "House":
        database = Database(dsn, size=4)
        database.migrate()
        vault = Vault(STORAGE_KEY, "register", secrets.token_bytes)
        register = Register(database, vault, WORLD.party(1), secrets.token_bytes)
        return cls(redis, database, vault, register, Outbox(database, vault))

    def send(self, *policies: Mapping[str, Any] | bytes | str) -> list[bytes]:
        """Add entries, all at once, and return their ids."""
        with self.redis.client() as client:
            pipeline = client.pipeline(transaction=True)
            for one in policies:
                pipeline.xadd(STREAM, {"policy": json.dumps(one) if isinstance(one, Mapping) else one})
            return list(pipeline.execute())

    def stream(self, consumer: str = "here") -> PolicyStream:
        return PolicyStream(self.redis.url, STREAM, GROUP, consumer)

    def consumer(
        self, stop: threading.Event, name: str = "here", pace: Pace = QUICK, database: Database | None = None
    ) -> Consumer:
        return Consumer(
            self.stream(name),
            database or self.database,
            self.register if database is None else Register(database, self.vault, WORLD.party(1), secrets.token_bytes),
            EntryMapping(products=frozenset(WORLD.manifest.terms.products), maximum=WORLD.manifest.terms.deposit_cap),
            lock=lock_of(STREAM, GROUP),
            pace=pace,
            stop=stop,
        )

    @contextmanager
    def consuming(self, name: str = "here", pace: Pace = QUICK, database: Database | None = None) -> Iterator[Consumer]:
        """Have a consumer at work for the block."""
        stop = threading.Event()
        consumer = self.consumer(stop, name, pace, database)
        thread = threading.Thread(target=consumer.run)
        thread.start()
        try:
            yield consumer
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()

    def settled(self) -> bool:
        """Tell whether all entries were delivered and acknowledged."""
        with self.redis.client() as client:
            if not client.exists(STREAM):
                return False
            groups = client.xinfo_groups(STREAM)
            if not groups or groups[0]["pending"]:
                return False
            return bool(groups[0]["last-delivered-id"] == client.xinfo_stream(STREAM)["last-generated-id"])

    def pending(self) -> int:
        """Return how many entries were delivered and not acknowledged."""
        with self.redis.client() as client:
            return sum(group["pending"] for group in client.xinfo_groups(STREAM))

    def undelivered(self) -> int:
        """Return how many entries no consumer was given yet."""
        with self.redis.client() as client:
            groups = client.xinfo_groups(STREAM)
            last = groups[0]["last-delivered-id"] if groups else b"0-0"
            return len(client.xrange(STREAM, b"(" + last))

    def dead_letters(self) -> list[dict[bytes, bytes]]:
        with self.redis.client() as client:
            return [fields for _, fields in client.xrange(f"{STREAM}:rejected")]

    def codes(self) -> list[str]:
        return [letter[b"rejected_code"].decode() for letter in self.dead_letters()]

    def in_force(self) -> dict[str, int]:
        """Return the fen that each policy is worth, by number."""

        def transaction(connection: Rows) -> dict[str, int]:
            rows = connection.execute("SELECT policy_key, sealed FROM policy").fetchall()
            records = [decode(Record, self.vault.open(bytes(key), sealed)) for key, sealed in rows]
            return {record.policy_number: record.current for record in records}

        return self.database.run("read register", transaction)

    def deposits(self) -> int:
        return self.outbox.backlog().unmade


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def make_state(state: Path, dsn: str) -> Path:
    """Make the state directory of WORLD's first member, with which the real command runs."""
    state.mkdir(mode=0o700)
    party, admin = WORLD.party(1), Secret(bytes(range(32)))
    AgentKeys(party.keys, STORAGE_KEY).save(state)
    now = int(time.time())
    terms = replace(WORLD.manifest.terms, issued_at=now - 10, valid_until=now + 86_400)
    signed = SignedManifest(terms=encode(terms), signatures=(sign_terms(terms, "admin", admin),))
    (state / "manifest.bin").write_bytes(encode(signed))
    pins = {"threshold": 1, "keys": {"admin": signing.public_key(admin).hex()}}
    (state / "admins.json").write_text(json.dumps(pins))
    settings = {"member_id": party.id, "port": 1, "database": dsn, "allow_local": True, "allow_plain_http": True}
    (state / "config.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    return state


class Command:
    """`insurer-agent consume` as a process of its own."""

    def __init__(self, state: Path, url: str, log: Path, arguments: Iterable[str] = ()) -> None:
        self._log = log
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONPATH": str(ROOT), "REDIS": url}
        command = [sys.executable, "-m", "insurer_agent.cli", "consume", "--state", str(state), "--stream", STREAM]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*command, "--redis-url-env", "REDIS", *arguments], stdout=file, stderr=file, env=environment
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
