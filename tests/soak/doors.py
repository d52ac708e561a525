"""The doors by which policies arrive: files, snapshots, REST, a Redis stream. Each is told again until it has them.

A door is a thread of one member. What it is given it tells the member's agent as a house would that must not lose
anything: whatever gave no clear answer is told again.
"""

import csv
import http.client
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from books import Policy, Step
from embedded_redis import EmbeddedRedis
from live import COLUMNS
from redis.exceptions import RedisError

GROUP = "insurer-agent"
PAUSE_SECONDS = 0.2
ANSWER_SECONDS = 15


@dataclass(frozen=True)
class Work:
    """Steps of a policy that follow each other and are to be told now."""

    policy: Policy
    steps: Sequence[Step]

    def send(self) -> None:
        now = time.time()
        for step in self.steps:
            step.sent = step.sent or now


class Door:
    """A thread that tells a member's agent what it is given. `taken` is called with what the agent has; `fail` with
    what must never happen.
    """

    name = "door"

    def __init__(self, member: int, taken: Callable[[Work], None], fail: Callable[[str], None], seed: object) -> None:
        self.member = member
        self.counts: Counter[str] = Counter()
        self._taken = taken
        self._fail = fail
        self._chance = random.Random(repr((seed, self.name, member)))  # noqa: S311  a test's
        self._works: queue.Queue[Work] = queue.Queue()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, name=f"{self.name}-{member}") for _ in range(self.at_once)]

    at_once = 1

    def give(self, work: Work) -> None:
        self._works.put(work)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _next(self) -> Work | None:
        try:
            return self._works.get(timeout=PAUSE_SECONDS)
        except queue.Empty:
            return None

    def _waiting(self) -> list[Work]:
        """Return all that there is to tell."""
        works = []
        while not self._works.empty():
            works.append(self._works.get())
        return works

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._round()
        except Exception as error:  # noqa: BLE001  a door that ends unseen would be a test of nothing
            self._fail(f"the door {self.name} of member {self.member} broke: {error!r}")

    def _round(self) -> None:
        raise NotImplementedError

    def _finish(self, work: Work) -> None:
        now = time.time()
        for step in work.steps:
            step.taken = now
        work.policy.done += len(work.steps)
        self.counts[f"{self.name} steps"] += len(work.steps)
        self._taken(work)


class Files(Door):
    """`insurer-agent import` of a file of all that is waiting, run again until it ends well; some files come twice."""

    name = "file"
    options: tuple[str, ...] = ()
    twice = 0.2

    def __init__(
        self, member: int, taken: Callable[[Work], None], fail: Callable[[str], None], seed: object, state: Path
    ) -> None:
        super().__init__(member, taken, fail, seed)
        self._state = state
        self._folder = state.parent.parent.parent / "files"
        self._folder.mkdir(exist_ok=True)
        self._process: subprocess.Popen[str] | None = None
        self._files = 0
        self.began = 0.0

    def kill(self) -> bool:
        """Kill the import under way; return whether there was one."""
        process = self._process
        if process is None or process.poll() is not None:
            return False
        process.send_signal(signal.SIGKILL)
        return True

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def _round(self) -> None:
        first = self._next()
        if first is None:
            return
        works = [first, *self._waiting()]
        self._files += 1
        file = self._folder / f"{self.name}-{self.member:02d}-{self._files}.csv"
        self._write(file, works)
        for work in works:
            work.send()
        while not self._stop.is_set() and not self._imported(file):
            self._stop.wait(PAUSE_SECONDS)
        if self._stop.is_set():
            return
        if self._chance.random() < self.twice:
            self._imported(file)
        for work in works:
            self._finish(work)
        self.counts[f"{self.name} imports"] += 1

    def _write(self, file: Path, works: Sequence[Work]) -> None:
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(COLUMNS)
            writer.writerows(row(work.policy, step) for work in works for step in work.steps)

    def _imported(self, file: Path) -> bool:
        command = [sys.executable, "-m", "insurer_agent.cli", "import", "--state", str(self._state), *self.options]
        self._process = subprocess.Popen(
            [*command, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.began = time.monotonic()
        try:
            told, _ = self._process.communicate()
            status = self._process.returncode
        finally:
            self._process = None
        if status == 3:
            self._fail(f"member {self.member}: rows of {file.name} were rejected: {told[-2000:]}")
        if status not in (0, 3):
            self.counts[f"{self.name} imports again"] += 1
        return status in (0, 3)


class Snapshots(Files):
    """`insurer-agent import --snapshot`: a dump of all policies in force, without events."""

    name = "snapshot"
    options = ("--snapshot", "all", "--allow-cancellations")

    def __init__(
        self, member: int, taken: Callable[[Work], None], fail: Callable[[str], None], seed: object, state: Path
    ) -> None:
        super().__init__(member, taken, fail, seed, state)
        self._in_force: dict[str, tuple[str, ...]] = {}

    def _write(self, file: Path, works: Sequence[Work]) -> None:
        for work in works:
            policy, step = work.policy, work.steps[-1]
            if step.count:
                self._in_force[policy.number] = (*row(policy, step)[:5], policy.day.isoformat())
            else:
                self._in_force.pop(policy.number, None)
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(COLUMNS[:6])
            writer.writerows(self._in_force.values())


class Rest(Door):
    """POST, PUT and cancellation under an Idempotency-Key, repeated until answered; some answers are not waited for."""

    name = "rest"
    at_once = 2
    lost = 0.15

    def __init__(
        self,
        member: int,
        taken: Callable[[Work], None],
        fail: Callable[[str], None],
        seed: object,
        place: tuple[str, str],
    ) -> None:
        super().__init__(member, taken, fail, seed)
        self._url, self._key = place

    def _round(self) -> None:
        work = self._next()
        if work is None:
            return
        (step,) = work.steps
        request = _request(work.policy, step)
        key, patience = str(uuid.UUID(int=self._chance.getrandbits(128))), time.monotonic() + self._chance.uniform(2, 8)
        loses = self._chance.random() < self.lost
        work.send()
        while not self._stop.is_set():
            status, body = self._ask(*request, key=key, loses=loses)
            loses = False
            if status in (200, 201):
                self._require_right(work.policy, step, body)
                self._finish(work)
                return
            if status == 409 and body.get("code") == "idempotency-key-in-use":
                # Whoever was killed holds the key for a minute; what shall be may as well be said under another.
                if time.monotonic() > patience:
                    key = str(uuid.UUID(int=self._chance.getrandbits(128)))
            elif status is not None and status < 500:
                self._fail(f"member {self.member}: {step.event} of {work.policy.number} was refused: {status} {body}")
                return
            self.counts["rest requests again"] += 1
            self._stop.wait(PAUSE_SECONDS)

    def _ask(
        self, method: str, path: str, body: dict[str, object], *, key: str, loses: bool
    ) -> tuple[int | None, dict[str, str]]:
        """Return status and JSON, or None for no answer; one that `loses` hangs up before it."""
        parts = urlsplit(self._url)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=ANSWER_SECONDS)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json", "Idempotency-Key": key}
        try:
            connection.request(method, path, json.dumps(body), headers)
            if loses:
                return None, {}
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None, {}
        finally:
            connection.close()

    def _require_right(self, policy: Policy, step: Step, body: dict[str, str]) -> None:
        status = "in_force" if step.count else "cancelled"
        told = (body["policy_number"], body["insured_amount"], body["status"])
        if told != (policy.number, yuan(step.fen), status):
            self._fail(f"member {self.member}: {step.event} of {policy.number} was answered with {told}")


class Stream(Door):
    """A producer of a Redis stream, which keeps a log of all that it has told and tells it again to an empty Redis."""

    name = "stream"

    def __init__(
        self,
        member: int,
        taken: Callable[[Work], None],
        fail: Callable[[str], None],
        seed: object,
        redis: EmbeddedRedis,
    ) -> None:
        super().__init__(member, taken, fail, seed)
        self._redis = redis
        self._log: list[str] = []
        self._ids: list[bytes] = []
        self._open: list[tuple[Work, int]] = []  # with the place of its last entry in the log
        self.lock = threading.RLock()
        """Held by whoever adds, and while Redis is taken away for good."""

    @property
    def key(self) -> str:
        return f"policies-{self.member:02d}"

    def tell_again(self) -> None:
        """Tell an empty Redis all that was told before, in its order; call it with the lock."""
        self._ids = [self._add(entry) for entry in self._log]
        self.counts["stream entries again"] += len(self._ids)

    def rejected(self) -> list[dict[bytes, bytes]]:
        """Return the dead letters."""
        with self._redis.client() as client:
            return [fields for _, fields in client.xrange(f"{self.key}:rejected")]

    def _round(self) -> None:
        first = self._next()
        for work in [*([first] if first else []), *self._waiting()]:
            work.send()
            with self.lock:
                for step in work.steps:
                    entry = json.dumps(dict(zip(COLUMNS, row(work.policy, step), strict=True)))
                    self._log.append(entry)
                    self._ids.append(self._add(entry))
                self._open.append((work, len(self._log) - 1))
        try:
            with self.lock:
                done = self._acknowledged()
        except RedisError:
            self._stop.wait(PAUSE_SECONDS)
            return
        for work in done:
            self._finish(work)

    def _acknowledged(self) -> list[Work]:
        if not self._open:
            return []
        with self._redis.client() as client:
            groups = client.xinfo_groups(self.key)
            last = groups[0]["last-delivered-id"] if groups else b"0-0"
            found = client.xpending_range(self.key, GROUP, "-", "+", 100_000) if groups else []
        pending = {entry["message_id"] for entry in found}
        done = [
            (work, place)
            for work, place in self._open
            if _order(self._ids[place]) <= _order(last) and not pending & set(self._ids_of(work, place))
        ]
        self._open = [item for item in self._open if item not in done]
        return [work for work, _ in done]

    def _ids_of(self, work: Work, place: int) -> list[bytes]:
        return self._ids[place + 1 - len(work.steps) : place + 1]

    def _add(self, entry: str) -> bytes:
        """Add an entry; one whose answer is lost is added once more, as a producer must."""
        while True:
            try:
                with self._redis.client() as client:
                    return bytes(client.xadd(self.key, {"policy": entry}))
            except RedisError:
                self.counts["stream entries again"] += 1
                if self._stop.wait(PAUSE_SECONDS):
                    raise


def consumer(state: Path, stream: Stream, redis: EmbeddedRedis, log: Path) -> subprocess.Popen[bytes]:
    """Start `insurer-agent consume` for a stream, as its operator would."""
    command = [sys.executable, "-m", "insurer_agent.cli", "consume", "--state", str(state), "--stream", stream.key]
    command += ["--batch", "20", "--claim-after", "1", "--consumer", "here"]
    with log.open("ab") as file:
        environment = os.environ | {"POLICY_REDIS_URL": redis.url}
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


def row(policy: Policy, step: Step) -> tuple[str, ...]:
    """Return a step as a file's row; a cancellation is without an amount."""
    amount = "" if step.event == "cancel" else yuan(step.fen)
    return (policy.number, *policy.person, policy.product, amount, step.day.isoformat(), step.event)


def yuan(fen: int) -> str:
    return f"{fen // 100}.{fen % 100:02d}"


def _request(policy: Policy, step: Step) -> tuple[str, str, dict[str, object]]:
    subject = dict(zip(("document_type", "document_number"), policy.person, strict=True))
    if step.event == "issue":
        body = {"policy_number": policy.number, "subject": subject, "product": policy.product}
        return "POST", "/v1/policies", body | {"insured_amount": yuan(step.fen), "issued_on": policy.day.isoformat()}
    path = "/v1/policies/" + quote(policy.number, safe="")
    if step.event == "amend":
        return "PUT", path, {"insured_amount": yuan(step.fen)}
    return "POST", path + "/cancellation", {}


def _order(entry_id: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split(b"-"))
