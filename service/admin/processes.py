"""Child processes of a local alliance: started on loopback, watched, and ended by their own process ids."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

END_SECONDS = 12.0


class ProcessFailedError(Exception):
    """A process of the alliance ended, or did not become ready; the text names its log."""


class Processes:
    """The children, in the order of their start; ended in the reverse order."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[tuple[str, subprocess.Popen[bytes]]] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `python -m module arguments` in a session of its own, so that Ctrl-C reaches the parent alone."""
        with (self._logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(  # noqa: S603  our own interpreter and modules
                [*_orphan_guard(), sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )
        self._children.append((name, child))
        return child

    def check(self) -> None:
        """Raise `ProcessFailedError` if a child has ended."""
        for name, child in self._children:
            if child.poll() is not None:
                raise ProcessFailedError(f"{name} ended with status {child.returncode}; see {self.log_of(name)}")

    def ended(self) -> list[tuple[str, int]]:
        """Return the children that have ended, with their status."""
        return [(name, child.returncode) for name, child in self._children if child.poll() is not None]

    def log_of(self, name: str) -> Path:
        """Return the log file of a child."""
        return self._logs / f"{name}.log"

    def end(self) -> None:
        """End all children: SIGTERM newest first, then SIGKILL for those that do not heed it in time.

        The database, started first, is ended after all others have gone.
        """
        for batch in (self._children[1:][::-1], self._children[:1]):
            for _, child in batch:
                if child.poll() is None:
                    child.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + END_SECONDS
            for _, child in batch:
                try:
                    child.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    _kill_group(child)
                    child.wait()


def _orphan_guard() -> list[str]:
    """Return a prefix that has the child told to end (SIGTERM) should this process be killed outright."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    # The child leads a session of its own: its process id is the group's, and gunicorn's workers are in it.
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        child.kill()


def run_all(
    commands: Sequence[tuple[str, list[str]]], *, at_once: int, logs: Path, good: tuple[int, ...] = (0,)
) -> Iterator[str]:
    """Run `python -m module arguments` commands, a few at once, each with a log of its own.

    Yields the last line of each one's log as it ends; raises `ProcessFailedError` when one ends with a status that is
    not `good`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running = list(commands), list[tuple[str, Path, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name, arguments = waiting.pop(0)
                file = logs / f"{name.replace(' ', '-')}.log"
                with file.open("wb") as log:
                    child = subprocess.Popen(  # noqa: S603  our own interpreter and modules
                        [*_orphan_guard(), sys.executable, "-m", *arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=log,
                        env=_environment(),
                    )
                running.append((name, file, child))
            for entry in list(running):
                name, file, child = entry
                if child.poll() is not None:
                    running.remove(entry)
                    last = (file.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[-1]
                    if child.returncode not in good:
                        raise ProcessFailedError(f"{name} failed with status {child.returncode}: {last}; see {file}")
                    yield last
            time.sleep(0.02)
    finally:
        for _, _, child in running:
            child.kill()
            child.wait()


def _environment() -> dict[str, str]:
    """Return the environment without settings that are meant for one agent or service."""
    prefixes = ("INSURER_AGENT_", "LOOKUP_SERVICE_", "PG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    # Many small processes share few cores: one thread each for linear algebra that they do not do.
    return kept | {"PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
