"""A Redis stream, and its consumer."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from doors import PAUSE_SECONDS, Door, Work, row
from embedded_redis import EmbeddedRedis
from live import COLUMNS
from redis.exceptions import RedisError

GROUP = "insurer-agent"


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


def _order(entry_id: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split(b"-"))
