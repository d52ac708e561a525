"""An import by several processes comes to what one process comes to, whoever is killed, and leaves none behind."""

import io
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from consuming import ROOT, wait_until
from hypothesis import given
from hypothesis import strategies as st
from importing_house import House, Running, messy, without_progress, write
from strategies import deterministic

from insurer_agent import importer
from insurer_agent.import_workers import Workers
from insurer_agent.importer import ROWS_A_TRANSACTION, Import, Submits, import_files
from insurer_agent.intake.errors import FileRejected, IntakeError
from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.intake.policy_file import PolicyFile
from insurer_agent.intake.profile import Profile
from transport.problems import Problem


@pytest.fixture
def house(database: str, tmp_path: Path) -> Iterator[House]:
    house = House.open(tmp_path / "state", database)
    yield house
    house.agent.database.close()


# --- the same as one process ---------------------------------------------------------------------------------------


class CutFile(PolicyFile):
    """A file that cannot be read on after so many rows."""

    rows = 0

    def policies(self, *, products: frozenset[str] | None, maximum: int) -> Iterator[PolicyRow | RejectedRow]:
        for number, row in enumerate(super().policies(products=products, maximum=maximum)):
            if number == self.rows:
                raise FileRejected("cut", "the file ends here")
            yield row


def opens(cut: int) -> Callable[[Path, Profile], PolicyFile]:
    def open_cut(path: Path, profile: Profile) -> PolicyFile:
        file = CutFile.open(path, profile)
        assert isinstance(file, CutFile)
        file.rows = cut
        return file

    return open_cut


def test_any_files_come_to_the_same_with_three_workers(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()

    def imported(files: list[Path], cut: int, workers: Submits | None) -> tuple[Any, ...]:
        house.clear()
        report, rejects = io.StringIO(), tmp_path / "rejects.csv"
        for path in tmp_path.glob("rejects*"):
            path.unlink()
        counts = import_files(house.agent, files, report, rejects=rejects, opens=opens(cut), workers=workers)
        seen.update(counts)
        seen.update(line.split(": ")[1] for line in report.getvalue().splitlines())
        written = {path.name: path.read_bytes() for path in tmp_path.glob("rejects*")}
        return counts, without_progress(report.getvalue()), written, house.result()

    with Workers(house.state, 3) as workers:

        @deterministic(60)
        @given(
            st.lists(st.lists(messy(), min_size=5, max_size=30), min_size=1, max_size=2),
            st.sampled_from([1, 2, 3, 500]),
            st.sampled_from([0, 1, 3, 100_000]),
            st.sampled_from([4, 11, 10_000, 10_000]),
        )
        def same(tables: list[list[list[str]]], transaction: int, waiting: int, cut: int) -> None:
            monkeypatch.setattr(importer, "ROWS_A_TRANSACTION", transaction)
            monkeypatch.setattr(importer, "MAX_WAITING_ROWS", waiting)
            files = [write(tmp_path / f"file-{number}.csv", table) for number, table in enumerate(tables)]
            assert imported(files, cut, workers) == imported(files, cut, None)

        same()
    outcomes = {"accepted", "corrected", "repeated", "rejected", "rejected files"}
    assert outcomes | {"policy-unknown", "policy-superseded", "policy-conflict", "policy-cancelled", "cut"} <= set(seen)


def test_what_was_read_before_a_file_fails_counts_however_many_make_a_transaction(house: House, tmp_path: Path) -> None:
    rows = [[f"N-{n}", "passport", f"E{n:07d}", "accident", "5", "2026-11-03", "issue"] for n in range(700)]
    file = write(tmp_path / "file.csv", rows)
    with Workers(house.state, 2) as workers:
        for cut in (499, 501, 699):
            house.clear()
            counts = import_files(house.agent, [file], io.StringIO(), opens=opens(cut), workers=workers)
            assert counts == Counter({"accepted": cut, "rejected files": 1})
            assert house.deposits() == cut


def test_the_parent_is_never_further_ahead_than_memory_is_meant_for(house: House, tmp_path: Path) -> None:
    count = 20 * ROWS_A_TRANSACTION
    rows = [[f"N-{n}", "passport", f"E{n % 9:07d}", "accident", "5", "2026-11-03", "amend"] for n in range(count)]
    read, told, ahead = 0, 0, 0

    class Counted(PolicyFile):
        def policies(self, *, products: frozenset[str] | None, maximum: int) -> Iterator[PolicyRow | RejectedRow]:
            nonlocal read
            for row in super().policies(products=products, maximum=maximum):
                read += 1
                yield row

    def tell(*_: object) -> None:
        nonlocal told, ahead
        ahead, told = max(ahead, read - told), told + 1

    with Workers(house.state, 2) as workers, pytest.MonkeyPatch.context() as patch:
        patch.setattr(importer, "MAX_WAITING_ROWS", 0)
        run = Import(products=None, maximum=10**9, report=io.StringIO(), opens=Counted.open)
        counts, _ = run.file(write(tmp_path / "file.csv", rows), workers, tell=tell)
        assert counts == Counter({"rejected": count})
        assert ROWS_A_TRANSACTION < ahead <= (workers.depth + 1) * ROWS_A_TRANSACTION


def test_refusals_cross_from_one_process_to_another() -> None:
    for kind in (IntakeError, FileRejected):
        factory, arguments = kind("some-code", "a reason").__reduce__()
        again = factory(*arguments)
        assert (type(again), again.code, again.reason) == (kind, "some-code", "a reason")


# --- workers that cannot go on -------------------------------------------------------------------------------------


def test_a_worker_that_cannot_open_the_agent_says_why(house: House, tmp_path: Path) -> None:
    (house.state / "keys.json").write_text("{}")
    file = write(tmp_path / "file.csv", [["A", "passport", "E0000001", "accident", "5", "2026-11-03", "issue"]])
    with pytest.raises(Problem, match=r"keys\.json is damaged"), Workers(house.state, 2) as workers:
        import_files(house.agent, [file], io.StringIO(), workers=workers)
    assert not any(psutil.pid_exists(pid) for pid in workers.pids)


@pytest.mark.parametrize(
    "arguments", [["--dry-run", "--workers", "2"], ["--snapshot", "x", "--workers", "2"], ["--workers", "0"]]
)
def test_workers_are_refused_where_they_cannot_help(house: House, tmp_path: Path, arguments: list[str]) -> None:
    file = write(tmp_path / "file.csv", [])
    ended = subprocess.run(command(house, file, *arguments), capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--workers is" in ended.stderr


# --- the command, under kills --------------------------------------------------------------------------------------

COUNT = 6 * ROWS_A_TRANSACTION + 11
CANCELLED = len(range(0, COUNT, 7))


def many(path: Path) -> Path:
    rows = [[f"N-{n}", "passport", f"E{n:07d}", "accident", f"{n + 1}", "2026-11-03", "issue"] for n in range(COUNT)]
    late = [[f"N-{n}", "passport", f"E{n:07d}", "accident", "", "2026-11-04", "cancel"] for n in range(0, COUNT, 7)]
    return write(path, [*late[:9], *rows, *late[9:]])


def command(house: House, file: Path, *arguments: str) -> list[str]:
    program = [sys.executable, "-m", "insurer_agent.cli", "import", "--state", str(house.state)]
    return [*program, *arguments, str(file)]


def kill_the_parent(running: Running) -> None:
    os.kill(running.group, signal.SIGKILL)


def kill_a_worker(running: Running) -> None:
    os.kill(running.workers()[0].pid, signal.SIGKILL)


def interrupt(running: Running) -> None:
    os.killpg(running.group, signal.SIGINT)


@pytest.mark.parametrize("transactions", [0, 1])
@pytest.mark.parametrize(
    ("kill", "status", "told"),
    [
        (kill_the_parent, -signal.SIGKILL, ""),
        (kill_a_worker, 2, "insurer-agent: a worker of the import has ended unexpectedly; import the file again"),
        (interrupt, -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_whoever_is_killed_no_process_stays_and_the_next_import_finishes(
    house: House, tmp_path: Path, kill: Callable[[Running], None], status: int, told: str, transactions: int
) -> None:
    file = many(tmp_path / "many.csv")
    running, least = Running(command(house, file, "--workers", "2")), transactions * ROWS_A_TRANSACTION // 2
    wait_until(lambda: house.deposits() >= least if least else len(running.workers()) == 2)
    kill(running)
    ended, said = running.end()
    assert ended == status
    assert told in said
    if kill is kill_a_worker or least:  # at the very beginning, its workers may say that their parent is gone
        assert said.count("Traceback") == (kill is interrupt)
    done = house.deposits()
    assert least <= done < COUNT + CANCELLED
    counts = import_files(house.agent, [file], io.StringIO())
    assert counts["repeated"] == done
    assert counts.total() == house.deposits() == COUNT + CANCELLED
    assert import_files(house.agent, [file], io.StringIO()) == Counter({"repeated": COUNT + CANCELLED})


def test_the_command_ends_like_that_of_one_process(house: House, tmp_path: Path) -> None:
    rows = [["A", "passport", "E0000001", "accident", amount, "2026-11-03", "issue"] for amount in ("5", "6", "x")]
    file = write(tmp_path / "file.csv", rows)
    ended = [
        subprocess.run(command(house, file, *arguments), capture_output=True, text=True, check=False, cwd=ROOT)
        for arguments in (["--workers", "2"], ["--rejects", str(tmp_path / "rejects.csv"), "--workers", "2"], [])
    ]
    assert [one.returncode for one in ended] == [3, 3, 3]
    refused = [
        "file.csv:3: policy-conflict: issues a known policy with another amount; amend it instead",
        "file.csv:4: amount-not-a-number: amount is not a number",
    ]
    assert [without_progress(one.stderr) for one in ended] == [
        [*refused, "file.csv: 1 accepted, 2 rejected"],
        [*refused, "file.csv: 2 rejected, 1 repeated"],
        [*refused, "file.csv: 2 rejected, 1 repeated"],
    ]
    assert len((tmp_path / "rejects.csv").read_text(encoding="utf-8-sig").splitlines()) == 3
