"""A local alliance to load: real processes on loopback, with what each process group has used of the processor."""

import contextlib
import csv
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from book import COLUMNS
from processes import command, core_seconds, parent, tree
from rest import Door

MEMBERS = 6
ROLES = ("requester", "requester's database", "service", "custodians", "custodians' databases", "commands")
"""Of `seconds_by_role`; what PostgreSQL does for all is among the custodians'."""
START_SECONDS = 300
END_SECONDS = 60


@dataclass(frozen=True)
class LocalAlliance:
    """A running alliance; `state` is its directory, `pid` the process of `alliance local`."""

    state: Path
    pid: int

    @property
    def local(self) -> dict[str, Any]:
        """What `alliance local` says of itself."""
        data: dict[str, Any] = json.loads((self.state / "local.json").read_text(encoding="utf-8"))
        return data

    def member_state(self, member: dict[str, Any]) -> Path:
        """Return a member's state directory."""
        return Path(member["state"])

    def door(self, member: dict[str, Any]) -> Door:
        """Return where a member's REST interface is."""
        return Door(member["url"], member["api_key"], self.local["ca_file"])

    def status(self, member: dict[str, Any]) -> dict[str, Any]:
        """Return a member's /v1/status."""
        data: dict[str, Any] = self.call(member, "GET", "/v1/status")
        return data

    def call(self, member: dict[str, Any], method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  JSON
        """Call a member's REST interface with its API key and return the JSON that it answers."""
        return self.door(member).call(method, path, body)

    def start_import(self, member: dict[str, Any], file: Path) -> subprocess.Popen[bytes]:
        """Start importing a file at a member."""
        line = [sys.executable, "-m", "insurer_agent.cli", "import", "--state", member["state"], str(file)]
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def processor_seconds(self) -> dict[str, float]:
        """Return the processor time, in seconds, that service, agents, PostgreSQL and commands have used so far."""
        used = {"service": 0.0, "agents": 0.0, "postgres": 0.0, "commands": 0.0}
        for pid in tree(self.pid):
            used[self._whose(command(pid))] += core_seconds([pid])
        return used

    def seconds_by_role(self, requester: str) -> dict[str, float]:
        """Return the same by role while that member alone asks: its agent and the others', and their connections."""
        used = dict.fromkeys(ROLES, 0.0)
        database, state = requester.replace("-", "_"), f"/members/{requester} "
        for pid in tree(self.pid):
            line = command(pid)
            whose = self._whose(line)
            if whose == "agents":
                whose = "requester" if state in line else "custodians"
            elif whose == "postgres":
                whose = "requester's database" if f" {database} " in line else "custodians' databases"
            used[whose] += core_seconds([pid])
        return used

    def core_seconds(self) -> float:
        """Return the processor time, in seconds, that all of its processes have used so far."""
        return core_seconds(tree(self.pid))

    def _whose(self, line: str) -> str:
        if " serve " in line:
            return "service" if f"{self.state}/service" in line else "agents"
        return "postgres" if "postgres" in line else "commands"

    def service_processes(self) -> list[int]:
        """Return the processes of the service."""
        return [pid for pid in tree(self.pid) if self._whose(command(pid)) == "service"]

    def agent_workers(self) -> list[int]:
        """Return the processes of agents that answer requests: those that serve and have no child that does."""
        serving = [pid for pid in tree(self.pid) if self._whose(command(pid)) == "agents"]
        masters = {parent(pid) for pid in serving}
        return [pid for pid in serving if pid not in masters]


@contextlib.contextmanager
def local_alliance(
    members: int,
    root: Path,
    *extra: str,
    rows: Mapping[int, list[tuple[str, ...]]] = MappingProxyType({}),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[LocalAlliance]:
    """Run a local alliance for the block, under `root`, and end it; `rows` are policies of members, counted from 1."""
    policies = root / "policies"
    for number in range(1, members + 1):
        write_policies(policies / f"insurer-{number:02d}.csv", rows.get(number, []))
    command = [sys.executable, "-m", "service.admin.cli", "local", "--members", str(members)]
    command += ["--policies", str(policies), "--state", str(root / "alliance"), *extra]
    with (root / "alliance.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=os.environ | environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # it ends when the alliance does
        if line != b"ready\n":
            raise RuntimeError(f"the alliance did not start; see {root / 'alliance.log'}")
        yield LocalAlliance((root / "alliance").resolve(), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_SECONDS)
        finally:
            process.kill()
            process.wait()


def write_policies(file: Path, rows: list[tuple[str, ...]]) -> Path:
    """Write a policy file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return file


def issues(prefix: str, count: int, first_person: int) -> list[tuple[str, ...]]:
    """Return rows that each issue a policy for another person."""
    day = dt.datetime.now(dt.timezone(dt.timedelta(hours=8))).date().isoformat()
    return [
        (f"{prefix}-{number}", "passport", f"E{first_person + number:08d}", "accident", "1000.00", day, "issue")
        for number in range(count)
    ]


def wait_for(condition: Any, seconds: float, what: str) -> None:  # noqa: ANN401  any predicate
    """Wait until a condition holds; raise `TimeoutError` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.2)
