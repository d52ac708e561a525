"""Files and snapshots: `insurer-agent import`, run again until it ends well."""

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from doors import PAUSE_SECONDS, Door, Work, row
from live import COLUMNS

COLLECT_SECONDS = (0.2, 1.5)
"""How long more is waited for, as each import is a process."""


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

    def tell_to_stop(self) -> None:
        super().tell_to_stop()
        self.kill()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def _round(self) -> None:
        first = self._next()
        if first is None:
            return
        self._stop.wait(self._chance.uniform(*COLLECT_SECONDS))
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
