"""An agent with a state directory, for tests of imports by several processes; messy files; commands that are killed."""

import csv
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from consuming import ROOT, make_state, wait_until
from hypothesis import strategies as st

from insurer_agent.agent import Agent
from insurer_agent.intake.policy import COLUMNS
from insurer_agent.store import outbox
from insurer_agent.store.database import Rows
from insurer_agent.store.register import Record
from protocol.encoding import decode


@dataclass(frozen=True)
class House:
    """An insurer's agent and the state directory with which the command runs."""

    state: Path
    agent: Agent

    @classmethod
    def open(cls, state: Path, dsn: str) -> "House":
        return cls(make_state(state, dsn), Agent.open(state, connections=2))

    def clear(self) -> None:
        self.agent.database.run(
            "clear", lambda at: at.execute("DELETE FROM policy; DELETE FROM policy_row; DELETE FROM deposit")
        )

    def result(self) -> tuple[Any, ...]:
        """Return all that an import leaves but what is drawn: records, what is due for each in order, rows known."""

        def transaction(connection: Rows) -> tuple[Any, ...]:
            sealed = connection.execute("SELECT policy_key, sealed FROM policy").fetchall()
            records = {bytes(key): decode(Record, self.agent.vault.open(bytes(key), one)) for key, one in sealed}
            keys = {record.issue_id: key for key, record in records.items()}
            rows = connection.execute("SELECT fingerprint FROM policy_row").fetchall()
            due = defaultdict(list)
            query = "SELECT deposit_id, shard, person_key, entry FROM deposit ORDER BY seq"
            for deposit_id, shard, person, entry in connection.execute(query).fetchall():
                made = outbox._entry(decode(outbox._StoredEntry, self.agent.vault.open(deposit_id, entry)))
                due[keys[made.earlier or deposit_id]].append((shard, bytes(person), replace(made, earlier=None)))
            known = {key: replace(record, issue_id=bytes(16)) for key, record in records.items()}
            return known, dict(due), {bytes(row) for (row,) in rows}

        return self.agent.database.run("read all", transaction)

    def deposits(self) -> int:
        return self.agent.outbox.backlog().unmade


def write(file: Path, rows: Sequence[Sequence[str]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    return file


GOOD = (
    ["A-1", "A-2", "A-3"],
    ["passport"],
    ["E0000001"] * 7 + ["E0000002"],
    ["accident"] * 7 + ["term_life"],
    ["10", "20", "30"],
    ["2026-11-03", "2026-11-04", "2026-11-05"],
    ["issue", "amend", "amend", "amend", "amend", "cancel"],
)
BAD = ["", "?", "2026-13-01", "-5"]


@st.composite
def messy(draw: st.DrawFn) -> list[str]:
    """Return a row that may be of a policy that others are of, and that may have a bad cell."""
    row = [draw(st.sampled_from(cells)) for cells in GOOD]
    if draw(st.integers(0, 15)) == 15:
        row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(BAD))
    return row


@contextmanager
def default_interrupts() -> Iterator[None]:
    """Have what is started within begin with SIGINT as a terminal gives it: a shell has what it puts in the background
    ignore it, which every child inherits, but no handler is.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Running:
    """A command, in a process group of its own, which an interrupt reaches even where the tests ignore theirs."""

    def __init__(self, command: Sequence[str]) -> None:
        with default_interrupts():
            self._process = subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
            )
        self.group = self._process.pid

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the group that are alive."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == self.group and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        return [process for process in self.processes() if any("spawn_main" in word for word in process.cmdline())]

    def end(self) -> tuple[int, str]:
        """Wait until it has ended, and all of its processes; return status and standard error."""
        _, told = self._process.communicate(timeout=60)
        wait_until(lambda: not self.processes(), 30)
        return self._process.returncode, told


def without_progress(told: str) -> list[str]:
    """Return the lines that do not depend on how fast the machine is."""
    return [line for line in told.splitlines() if " rows, " not in line and "parts are done" not in line]
