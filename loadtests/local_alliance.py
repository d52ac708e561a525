"""A local alliance to load: real processes on loopback, with what each process group has used of the processor."""

import contextlib
import csv
import datetime as dt
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

COLUMNS = ("policy_number", "document_type", "document_number", "product", "insured_amount", "issued_on", "event")
START_SECONDS = 300
END_SECONDS = 60
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class LocalAlliance:
    """A running alliance; `state` is its directory."""

    state: Path

    @property
    def local(self) -> dict[str, Any]:
        """What `alliance local` says of itself."""
        data: dict[str, Any] = json.loads((self.state / "local.json").read_text(encoding="utf-8"))
        return data

    @cached_property
    def context(self) -> ssl.SSLContext | None:
        """What a caller trusts: the alliance's CA; None over plain HTTP."""
        file = self.local["ca_file"]
        return None if file is None else ssl.create_default_context(cafile=file)

    def member_state(self, member: dict[str, Any]) -> Path:
        """Return a member's state directory."""
        return Path(member["state"])

    def status(self, member: dict[str, Any]) -> dict[str, Any]:
        """Return a member's /v1/status."""
        data: dict[str, Any] = self.call(member, "GET", "/v1/status")
        return data

    def call(self, member: dict[str, Any], method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  JSON
        """Call a member's REST interface with its API key and return the JSON that it answers."""
        headers = {"Authorization": f"Bearer {member['api_key']}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = Request(member["url"] + path, data, headers, method=method)  # noqa: S310  our own loopback
        with urlopen(request, timeout=30, context=self.context) as response:  # noqa: S310  as above
            return json.load(response)

    def start_import(self, member: dict[str, Any], file: Path) -> subprocess.Popen[bytes]:
        """Start importing a file at a member."""
        line = [sys.executable, "-m", "insurer_agent.cli", "import", "--state", member["state"], str(file)]
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def processor_seconds(self) -> dict[str, float]:
        """Return the processor time, in seconds, that service, agents and PostgreSQL have used so far."""
        used = {"service": 0.0, "agents": 0.0, "postgres": 0.0}
        root = str(self.state)
        owners = {root + "/service": "service", root + "/members": "agents", root + "/postgres": "postgres"}
        lines = {pid: _command(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))}  # noqa: PTH208  proc
        for pid, line in lines.items():
            whose = next((kind for place, kind in owners.items() if place in line), None)
            if whose is None and line.startswith("postgres:"):
                whose = "postgres"
            if whose is not None and " import" not in line:
                used[whose] += _seconds(pid)
        return used


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\x00", b" ").decode(errors="replace")
    except OSError:
        return ""


def _seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


@contextlib.contextmanager
def local_alliance(members: int, root: Path, *extra: str) -> Iterator[LocalAlliance]:
    """Run a local alliance without policies for the block, under `root`, and end it."""
    policies = root / "policies"
    for number in range(1, members + 1):
        write_policies(policies / f"insurer-{number:02d}.csv", [])
    command = [sys.executable, "-m", "service.admin.cli", "local", "--members", str(members)]
    command += ["--policies", str(policies), "--state", str(root / "alliance"), *extra]
    with (root / "alliance.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # it ends when the alliance does
        if line != b"ready\n":
            raise RuntimeError(f"the alliance did not start; see {root / 'alliance.log'}")
        yield LocalAlliance((root / "alliance").resolve())
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
