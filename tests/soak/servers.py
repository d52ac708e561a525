"""The processes of the alliance in the hands of its operators: started again when they are gone, and ended at last."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from embedded_redis import EmbeddedRedis
from live import LiveAlliance, parent_of, pids_of, wait_until
from stream_door import Stream, consumer


class Servers:
    """Agents, service and consumers of streams."""

    def __init__(self, root: Path, alliance: LiveAlliance, redis: EmbeddedRedis) -> None:
        self.agents = [alliance.member_state(number) for number in range(1, alliance.members + 1)]
        self.service = alliance.state / "service"
        self._alliance = alliance
        self._root = root
        self._redis = redis
        self._streams: dict[int, Stream] = {}
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def serve(self, state: Path) -> None:
        """Start an agent or the service again."""
        module = "service.cli" if state == self.service else "insurer_agent.cli"
        name = f"serve {state.name}"
        self._forget(name)
        with (self._root / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", module, "serve", "--state", str(state)]
            self._started[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def consume(self, stream: Stream) -> None:
        """Start a stream's consumer, or start it again."""
        name = f"consume {stream.member}"
        self._forget(name)
        self._streams[stream.member] = stream
        state = self._alliance.member_state(stream.member)
        self._started[name] = consumer(state, stream, self._redis, self._root / f"{name}.log")

    def _forget(self, name: str) -> None:
        if name in self._started:
            self._started[name].wait(60)

    def kill(self, states: Iterable[Path]) -> None:
        """Kill servers outright, as a power cut would, and wait until they are gone."""
        for state in states:
            pids = pids_of(state)
            for pid in pids:
                if parent_of(pid) not in pids:  # gunicorn's master; its worker must not outlive it
                    os.kill(pid, signal.SIGKILL)
        for state in states:
            wait_until(lambda state=state: not pids_of(state))

    def kill_worker(self, state: Path) -> None:
        """Kill a server's worker alone: its master starts another."""
        pids = pids_of(state)
        for pid in pids:
            if parent_of(pid) in pids:
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: pid not in pids_of(state))

    def kill_consumer(self, stream: Stream) -> None:
        process = self._started[f"consume {stream.member}"]
        process.kill()
        process.wait()

    def tend(self) -> int:
        """Start again what has ended by itself, as a service manager does: at a start without its database, say."""
        found = 0
        for state in (*self.agents, self.service):
            started = self._started.get(f"serve {state.name}")
            if not pids_of(state) and (started is None or started.poll() is not None):  # one just begun has no name yet
                found += 1
                self.serve(state)
        for member, stream in self._streams.items():
            if self._started[f"consume {member}"].poll() is not None:
                found += 1
                self.consume(stream)
        return found

    def are_ready(self) -> bool:
        local = self._alliance.local
        return all(map(self._alliance.ready_at, [local["service_url"], *(entry["url"] for entry in local["members"])]))

    def end(self) -> None:
        for process in self._started.values():
            process.kill()
            process.wait()
