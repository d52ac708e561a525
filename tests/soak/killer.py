"""Who is killed outright, at what point, and how it comes back."""

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
from embedded_redis import EmbeddedRedis
from file_doors import Files
from live import wait_until
from servers import Servers
from stream_door import Stream

from insurer_agent.embedded_postgres import EmbeddedPostgres

KINDS = (
    "agent",
    "agent-worker",
    "two-custodians",
    "service",
    "service-worker",
    "import",
    "consumer",
    "postgres",
    "postgres-backend",
    "redis",
    "redis-emptied",
)
"""What is killed. An agent is depositor, custodian and requester in one."""
IMPORT_SECONDS = 2.5
"""An import takes about that long, and is killed at any point of it."""


class Killer:
    """Kills one kind after the other. Use it from the main thread: PostgreSQL ends with the thread that started it."""

    def __init__(
        self,
        servers: Servers,
        postgres: EmbeddedPostgres,
        redis: tuple[EmbeddedRedis, Path],
        doors: tuple[list[Files], list[Stream]],
        meanwhile: Callable[[], None],
        seed: int,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._servers = servers
        self._postgres = postgres
        self._redis, self._redis_directory = redis
        self._files, self._streams = doors
        self._meanwhile = meanwhile
        self._chance = random.Random(repr((seed, "killer")))  # noqa: S311  a test's

    def strike(self, kind: str) -> None:
        """Kill at a random point, start again what was killed, and count it."""
        self._pause(0.1, 1.2)
        getattr(self, "_kill_" + kind.replace("-", "_"))()
        self.counts[f"killed: {kind}"] += 1

    def _pause(self, least: float, most: float) -> None:
        threading.Event().wait(self._chance.uniform(least, most))

    def _leave_down(self) -> None:
        """Leave what was killed down for a while, in which more arrives."""
        self._meanwhile()
        self._pause(0.3, 2.0)

    def _kill_agent(self) -> None:
        self._kill_servers([self._chance.choice(self._servers.agents)])

    def _kill_two_custodians(self) -> None:
        self._kill_servers(self._chance.sample(self._servers.agents, 2))

    def _kill_service(self) -> None:
        self._kill_servers([self._servers.service])

    def _kill_servers(self, states: list[Path]) -> None:
        self._servers.kill(states)
        self._leave_down()
        for state in states:
            self._servers.serve(state)

    def _kill_agent_worker(self) -> None:
        self._servers.kill_worker(self._chance.choice(self._servers.agents))

    def _kill_service_worker(self) -> None:
        self._servers.kill_worker(self._servers.service)

    def _kill_consumer(self) -> None:
        stream = self._chance.choice(self._streams)
        self._servers.kill_consumer(stream)
        self._leave_down()
        self._servers.consume(stream)

    def _kill_import(self) -> None:
        """Kill imports under way; their door runs them again."""
        for _ in range(3):
            wait_until(lambda: any(door.is_running for door in self._files), 120)
            door = self._chance.choice([door for door in self._files if door.is_running] or self._files)
            left = self._chance.uniform(0.1, IMPORT_SECONDS) - (time.monotonic() - door.began)
            threading.Event().wait(max(0.0, left))
            self.counts["imports killed"] += door.kill()

    def _kill_postgres_backend(self) -> None:
        """Kill one of the server's processes, in a transaction if there is one: all others end, and it recovers."""
        wait_until(self._has_killed_a_backend)

    def _has_killed_a_backend(self) -> bool:
        query = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'insurer-agent'"
            " ORDER BY xact_start IS NULL, random() LIMIT 1"
        )
        with psycopg.connect(self._postgres.dsn(), autocommit=True) as connection:
            row = connection.execute(query).fetchone()
        if row is None:
            return False
        try:
            os.kill(row[0], signal.SIGKILL)
        except ProcessLookupError:  # it ended meanwhile, as its agent was killed just before
            return False
        return True

    def _kill_postgres(self) -> None:
        process = self._postgres._process
        assert process is not None
        process.kill()
        process.wait()
        self._leave_down()
        self._postgres.start()

    def _kill_redis(self) -> None:
        self._redis.kill()
        self._leave_down()
        self._redis.start()

    def _kill_redis_emptied(self) -> None:
        """Have Redis come back with nothing: the houses tell it again all that they told."""
        with contextlib.ExitStack() as locks:
            for stream in self._streams:
                locks.enter_context(stream.lock)
            self._redis.kill()
            for file in self._redis_directory.glob("appendonly*"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            self._redis.start()
            for stream in self._streams:
                stream.tell_again()
