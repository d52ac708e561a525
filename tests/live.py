"""A local alliance of real processes under test: started, asked, hurt and ended."""

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
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg

from protocol.stamps import as_of_tick, tick_at

COLUMNS = ("policy_number", "document_type", "document_number", "product", "insured_amount", "issued_on", "event")
START_SECONDS = 180
END_SECONDS = 30


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    content_type: str
    headers: Message = field(compare=False, repr=False)
    """Those that are not there are None."""


class LiveAlliance:
    def __init__(self, members: int, policies: Path, state: Path, *extra: str) -> None:
        self.members = members
        self.policies = policies
        self.state = state
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None
        self._restarted: list[subprocess.Popen[bytes]] = []
        self._context: ssl.SSLContext | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "service.admin.cli", "local", "--members", str(self.members)]
        command += ["--policies", str(self.policies), "--state", str(self.state), *self._extra]
        home = self.state.parent / "home"
        home.mkdir(exist_ok=True)
        with self._file("stdout").open("w") as output, self._file("stderr").open("a") as progress:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=progress, env=os.environ | {"HOME": str(home)}
            )
        deadline = time.monotonic() + START_SECONDS
        try:
            while not self.output.endswith("\n"):
                assert self._process.poll() is None, f"the alliance ended: {self.progress()}"
                assert time.monotonic() < deadline, f"the alliance is not ready: {self.progress()}"
                time.sleep(0.1)
        except BaseException:
            self.stop()
            raise

    def _file(self, kind: str) -> Path:
        return self.state.parent / f"{self.state.name}.{kind}"

    @property
    def output(self) -> str:
        return self._file("stdout").read_text(encoding="utf-8")

    def progress(self) -> str:
        return self._file("stderr").read_text(encoding="utf-8")

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = END_SECONDS) -> int:
        """End the alliance and return its exit status; fails if it takes longer, 30 s unless told."""
        for child in self._restarted:
            child.terminate()
        for child in self._restarted:
            child.wait(END_SECONDS)
        self._restarted.clear()
        assert self._process is not None
        self._process.send_signal(number)
        try:
            return self._process.wait(seconds)
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def local(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.state / "local.json").read_text(encoding="utf-8"))
        return data

    def member(self, number: int) -> dict[str, Any]:
        entry: dict[str, Any] = self.local["members"][number - 1]
        return entry

    def member_state(self, number: int) -> Path:
        return self.state / "members" / f"insurer-{number:02d}"

    def request(self, number: int, method: str, path: str, body: object = None, key: str | None = None) -> Answer:
        """Call a member's REST interface; `body` is JSON, or bytes as they are."""
        member = self.member(number)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {member['api_key'] if key is None else key}"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        return self.call(Request(member["url"] + path, data, headers, method=method))

    def call(self, request: Request) -> Answer:
        """Call a party as who trusts the alliance's CA and has no certificate."""
        return call(request, self.context)

    def context_of(self, state: Path) -> ssl.SSLContext:
        """Return what a caller has that shows the certificate in a party's state directory."""
        context = ssl.create_default_context(cafile=self.local["ca_file"])
        context.load_cert_chain(state / "tls.pem", state / "tls.key")
        return context

    @property
    def context(self) -> ssl.SSLContext | None:
        """What a caller of the alliance trusts; None if it speaks plain HTTP."""
        if self._context is None and self.local["ca_file"] is not None:
            self._context = ssl.create_default_context(cafile=self.local["ca_file"])
        return self._context

    def check(self, number: int, subject: tuple[str, str], proposed: str) -> dict[str, Any]:
        """Ask a check and return its answer, which must be a 200."""
        document_type, document_number = subject
        body = {
            "subject": {"document_type": document_type, "document_number": document_number},
            "rule": "accident-30d",
            "proposed_amount": proposed,
            "reference": "UW-1",
        }
        answer = self.request(number, "POST", "/v1/checks", body)
        assert answer.status == 200, answer
        verdict: dict[str, Any] = answer.body
        return verdict

    def verdict(self, number: int, subject: tuple[str, str], proposed: str) -> tuple[str, str | None]:
        answer = self.check(number, subject, proposed)
        assert answer["exceeds_limit"] == {"exceeds": True, "within": False, "indeterminate": None}[answer["verdict"]]
        return answer["verdict"], answer["reason"]

    def is_delivered(self, number: int) -> bool:
        """Tell whether all holders have all deposits of a member."""
        status = self.request(number, "GET", "/v1/status").body
        return not any(status[name] for name in ("deposits_unmade", "deposits_incomplete", "deposits_set_aside"))

    def kill(self, number: int) -> None:
        """Kill a member's processes outright, as a power cut would, and wait until its port is closed."""
        pids = pids_of(self.member_state(number))
        for pid in pids:
            if parent_of(pid) not in pids:  # gunicorn's master; its worker must not outlive it
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.answers(number))

    def restart(self, number: int) -> None:
        """Start a killed member again, as its operator would, and wait until it is ready."""
        log = (self.state.parent / f"restarted-{number}.log").open("ab")
        with log:
            command = [sys.executable, "-m", "insurer_agent.cli", "serve", "--state", str(self.member_state(number))]
            self._restarted.append(subprocess.Popen(command, stdout=log, stderr=log))
        wait_until(lambda: self.answers(number))

    def adopt(self, process: subprocess.Popen[bytes]) -> None:
        """End this process with the alliance."""
        self._restarted.append(process)

    def answers(self, number: int) -> bool:
        return self.ready_at(self.member(number)["url"])

    def ready_at(self, url: str) -> bool:
        return ready_at(url, self.context)

    def agent(self, number: int, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of a member's `insurer-agent`."""
        line = [sys.executable, "-m", "insurer_agent.cli", command, "--state", str(self.member_state(number))]
        return subprocess.run([*line, *arguments], capture_output=True, text=True, timeout=120, check=False)

    @contextlib.contextmanager
    def database(self, number: int) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        settings = tomllib.loads((self.member_state(number) / "config.toml").read_text(encoding="utf-8"))
        with psycopg.connect(settings["database"]) as connection:
            yield connection

    def captured(self, party: str) -> list[dict[str, Any]]:
        lines = (self.state / "capture" / f"{party}.jsonl").read_text(encoding="ascii").splitlines()
        return [json.loads(line) for line in lines]


def ready_at(url: str, context: ssl.SSLContext | None = None, path: str = "/readyz") -> bool:
    try:
        return call(Request(url + path), context).status == 200
    except (OSError, HTTPException):  # the latter where it was killed in the middle of its answer
        return False


def call(request: Request, context: ssl.SSLContext | None = None) -> Answer:
    try:
        with urlopen(request, timeout=10, context=context) as response:
            headers, data = response.headers, response.read()
            kind = headers.get_content_type()
            return Answer(
                response.status,
                json.loads(data) if data and kind == "application/json" else data or None,
                kind,
                headers,
            )
    except HTTPError as error:
        with error:
            data = error.read()
            body = json.loads(data) if data else None
            return Answer(error.code, body, error.headers.get_content_type(), error.headers)


def wait_until(condition: Any, seconds: float = 60) -> None:  # noqa: ANN401  any predicate
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.1)


def write_policies(directory: Path, member: int, rows: Iterable[tuple[str, ...]], name: str | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / (name or f"insurer-{member:02d}.csv")
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return file


def issue(number: str, subject: tuple[str, str], amount: str, *, day: dt.date | None = None) -> tuple[str, ...]:
    on = china_today() if day is None else day
    return (number, *subject, "accident", amount, on.isoformat(), "issue")


def china_today() -> dt.date:
    return dt.datetime.now(dt.timezone(dt.timedelta(hours=8))).date()


def wait_for_ticks() -> None:
    """Wait until checks are as of now: a deposit counts once its tick of 1 s has been closed for a tick's length."""
    done = tick_at(time.time(), 1)
    wait_until(lambda: as_of_tick(time.time(), 1) >= done)


def pids_of(state: Path) -> list[int]:
    """Return the server processes whose command line has this state directory: gunicorn's master and worker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\x00")
            except OSError:
                continue
            if b"serve" in line and str(state).encode() in line:
                found.append(int(entry.name))
    return sorted(found)


def parent_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return int(stat.rpartition(")")[2].split()[1])
