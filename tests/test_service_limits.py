"""Members' rates at the lookup service, over its workers and machines: real processes, and one Redis."""

import json
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from embedded_redis import EmbeddedRedis
from live import ready_at, wait_until
from world import RULE, make_world, name, person

from protocol import signing
from protocol.check import Question, ask
from protocol.encoding import encode
from protocol.manifest import Manifest
from protocol.party import Party
from protocol.secret import Secret
from service.admin.manifests import add_signature, pins_json, unsigned
from service.config import save_keys
from transport.internal import CONTENT_TYPE

WORLD = make_world(5, shards=1, slots=5)
NOW = int(time.time())
TERMS = replace(WORLD.manifest.terms, alliance="保 险:alliance", issued_at=NOW - 10, valid_until=NOW + 86_400)
RATE, AT_ONCE = 1.0, 10


@dataclass(frozen=True)
class Told:
    status: int
    problem: dict[str, Any]
    retry_after: str | None


@dataclass(frozen=True)
class Machine:
    """One machine of the service."""

    url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def ask(self, request: bytes) -> Told:
        """Send a check on a connection of its own, which any worker may take."""
        message = Request(self.url + "/v1/checks", request, {"Content-Type": CONTENT_TYPE}, method="POST")
        try:
            with urlopen(message, timeout=30) as answer:
                answer.read()
                return Told(answer.status, {}, None)
        except HTTPError as error:
            with error:
                return Told(error.code, json.load(error), error.headers["Retry-After"])


def check_of(member: int, lanes: int = 1) -> bytes:
    party = Party(name(member), WORLD.party(member).keys, Manifest.of(TERMS))
    questions = [Question(person(number), RULE, 1) for number in range(lanes)]
    return encode(ask(party, questions, time.time(), time.time() + 2, secrets.token_bytes)[1])


@contextmanager
def machine(state: Path, redis_url: str, workers: int) -> Iterator[Machine]:
    state.mkdir(mode=0o700)
    admin = Secret(bytes(range(32)))
    save_keys(WORLD.service.keys, state)
    (state / "manifest.bin").write_bytes(encode(add_signature(unsigned(TERMS), "admin", admin)))
    (state / "admins.json").write_text(pins_json({"admin": signing.public_key(admin)}, threshold=1))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings: dict[str, object] = {
        "port": port,
        "allow_plain_http": True,
        "workers": workers,
        "checks_a_second": RATE,
        "redis": redis_url,
        "redis_seconds": 2,
    }
    (state / "config.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    here = Machine(f"http://127.0.0.1:{port}", state / "log")
    with here.log_file.open("ab") as log:
        command = [sys.executable, "-m", "service.cli", "serve", "--state", str(state)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: ready_at(here.url))
        yield here
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def granted(machines: list[Machine], member: int, tries: int) -> tuple[int, float]:
    """Ask the machines in turn, several at once; return how many checks were taken, and in how many seconds."""
    request = check_of(member)
    began = time.time()
    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(lambda number: machines[number % len(machines)].ask(request), range(tries)))
    assert {answer.status for answer in told} <= {200, 429}
    for answer in told:
        if answer.status == 429:
            assert answer.problem["code"] == "rate-limited"
            assert answer.problem["hint"]
            assert answer.retry_after == str(answer.problem["retry_after"]) == "1"
    return sum(answer.status == 200 for answer in told), time.time() - began


def test_workers_and_machines_share_a_members_limit_and_have_one_each_while_redis_is_away(
    redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    with redis_server.client() as client:
        client.flushall()
    with ExitStack() as stack:
        with redis_server.killed():
            first = stack.enter_context(machine(tmp_path / "first", redis_server.url, workers=2))
            assert first.log.count("Redis does not answer at the start") == 1
        second = stack.enter_context(machine(tmp_path / "second", redis_server.url, workers=1))
        both = [first, first, second]
        with redis_server.client() as client:

            def shared() -> bool:
                first.ask(check_of(5))
                return client.dbsize() > 0

            wait_until(shared)

        count, seconds = granted(both, 1, 60)
        assert AT_ONCE <= count <= AT_ONCE + RATE * seconds
        assert granted(both, 2, AT_ONCE)[0] == AT_ONCE

        never = second.ask(check_of(3, lanes=AT_ONCE + 1))
        assert (never.status, never.problem["code"], never.retry_after) == (429, "rate-limited", None)
        assert second.ask(check_of(3, lanes=AT_ONCE)).status == 200

        with redis_server.stopped():
            assert first.ask(check_of(4)).status == 200  # after the wait for Redis, here 2 s
        with redis_server.killed():
            count, seconds = granted(both, 1, 60)
            assert AT_ONCE < count <= 3 * (AT_ONCE + RATE * seconds)
        assert second.log.count("going on without it for rate limits") == 1
        assert second.log.count("at the start") == 0
    logs = first.log + second.log
    assert redis_server.url not in logs
    assert "insurer-0" not in logs.replace(": insurer-0", "")  # but of custodians that did not answer
