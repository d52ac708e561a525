"""An import in parts, on a cluster too, comes to what a plain one comes to; a worker that is killed is replaced."""

import io
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from consuming import ROOT, wait_until
from hypothesis import given
from hypothesis import strategies as st
from importing_house import House, Running, messy, without_progress, write
from strategies import deterministic

from insurer_agent.importer import import_files
from insurer_agent.intake.profile import Profile
from insurer_agent.partition import FileResult, NamedFile, Part, PartError, _import, import_part

SCRIPT = ROOT / "deploy" / "cluster_import.py"


@pytest.fixture
def house(database: str, tmp_path: Path) -> Iterator[House]:
    house = House.open(tmp_path / "state", database)
    yield house
    house.agent.database.close()


def command(house: House, *arguments: str | Path) -> list[str]:
    return [sys.executable, str(SCRIPT), "--state", str(house.state), *map(str, arguments)]


def of_files(told: str) -> list[str]:
    """Return the lines about files; the engine may say that processes of a slow machine are slow."""
    return [line for line in without_progress(told) if line.startswith(("one.csv:", "two.csv:"))]


def policies(numbers: Sequence[int], event: str = "issue", day: str = "2026-11-03") -> list[list[str]]:
    return [[f"N-{n}", "passport", f"E{n:07d}", "accident", f"{n + 1}", day, event] for n in numbers]


# --- parts ---------------------------------------------------------------------------------------------------------


def test_any_files_in_any_number_of_parts_in_any_order_come_to_the_same(house: House, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    @deterministic(25)
    @given(
        st.lists(st.lists(messy(), min_size=5, max_size=25), min_size=1, max_size=3),
        st.integers(1, 4).flatmap(lambda count: st.permutations(range(count))),
        st.booleans(),
    )
    def same(tables: list[list[list[str]]], order: list[int], cut_off: bool) -> None:  # noqa: FBT001 - drawn
        files = [write(tmp_path / f"file-{number}.csv", table) for number, table in enumerate(tables)]
        junk = tmp_path / "junk.csv"
        junk.write_text("junk\n")
        files.insert(1, junk)
        named = [NamedFile.of(file) for file in files]
        house.clear()
        if cut_off:  # a part whose worker was killed after its first file
            _import(house.agent, named[:1], Part(order[0], len(order)), Profile())
        totals = [FileResult() for _ in files]
        for number in order:
            part = _import(house.agent, named, Part(number, len(order)), Profile())
            for total, result in zip(totals, part, strict=True):
                total.add(result)
        in_parts = house.result()

        house.clear()
        report = io.StringIO()
        counts = import_files(house.agent, files, report)
        counted = sum((total.counts for total in totals), Counter[str]())
        seen.update(counts)
        if cut_off:  # what was refused the first time may be a repeat of what came after it
            assert (in_parts[:2], counted.total()) == (house.result()[:2], counts.total())
            return
        assert (in_parts, counted) == (house.result(), counts)
        told = [
            f"{file.name}:{row}: {code}: {reason}"
            for file, total in zip(files, totals, strict=True)
            for row, code, reason in total.rejected
        ]
        assert sorted(told) == sorted(line for line in report.getvalue().splitlines() if re.match(r"[^:]+:[0-9]", line))

    same()
    assert {"accepted", "corrected", "repeated", "rejected", "rejected files"} == set(seen)


def test_a_part_is_refused_without_a_database_for_all_and_with_another_file(house: House, tmp_path: Path) -> None:
    file = NamedFile.of(write(tmp_path / "file.csv", policies([1])))
    write(file.path, policies([2]))
    with pytest.raises(PartError, match="not the same file on all machines"):
        import_part(house.state, [file], Part(0, 1), Profile())
    settings = house.state / "config.toml"
    settings.write_text(
        "".join(line for line in settings.read_text().splitlines(keepends=True) if "database" not in line)
    )
    with pytest.raises(PartError, match="`database` must name"):
        import_part(house.state, [NamedFile.of(file.path)], Part(0, 1), Profile())
    file.path.unlink()
    assert house.deposits() == 0


# --- the recipe ----------------------------------------------------------------------------------------------------


def test_a_cluster_comes_to_what_a_plain_import_comes_to(house: House, tmp_path: Path) -> None:
    files = [
        write(
            tmp_path / "one.csv", [*policies(range(300)), *policies([5], day="2026-11-04"), *policies([900], "cancel")]
        ),
        write(tmp_path / "two.csv", [*policies(range(0, 300, 3), "cancel"), ["", "x"], *policies(range(290, 310))]),
    ]
    ended = subprocess.run(command(house, "--local", "2", *files), capture_output=True, text=True, check=False)
    in_parts = house.result()
    house.clear()
    report = io.StringIO()
    counts = import_files(house.agent, files, report)
    assert counts == Counter({"accepted": 310, "corrected": 100, "repeated": 10, "rejected": 3})
    assert in_parts == house.result()
    assert ended.returncode == 3
    assert sorted(of_files(ended.stderr)) == sorted(of_files(report.getvalue()))
    assert [path.name for path in house.state.iterdir() if path.is_dir()] == []


@pytest.mark.long
def test_a_worker_that_is_killed_is_replaced_and_nothing_counts_twice(house: House, tmp_path: Path) -> None:
    count = 3000
    files = [
        write(tmp_path / "one.csv", policies(range(count))),
        write(tmp_path / "two.csv", policies(range(0, count, 2), "cancel")),
    ]
    running = Running(command(house, "--local", "2", *files))
    wait_until(lambda: len(running.workers()) == 2)
    workers = running.workers()
    wait_until(lambda: house.deposits() > 0)
    for process in running.processes():
        listening = [one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
        assert set(listening) <= {"127.0.0.1"}
    wait_until(lambda: house.deposits() > 400)
    os.kill(workers[0].pid, signal.SIGKILL)
    assert 400 < house.deposits() < count
    status, told = running.end()
    assert status == 0
    assert house.deposits() == count + count // 2
    counts: Counter[str] = Counter()
    for line in of_files(told):
        counts.update({what: int(number) for number, what in map(str.split, line.split(": ")[1].split(", "))})
    assert counts.total() == count + count // 2
    assert set(counts) <= {"accepted", "corrected", "repeated"}
    assert import_files(house.agent, files, io.StringIO()) == Counter({"repeated": count + count // 2})


@pytest.mark.parametrize(
    ("arguments", "told"), [(["--scheduler", "tcp://10.0.0.7:8786"], "tls://"), (["--local", "0"], "from 1 to")]
)
def test_a_scheduler_that_others_could_reach_in_clear_and_no_workers_are_refused(
    house: House, tmp_path: Path, arguments: list[str], told: str
) -> None:
    file = write(tmp_path / "file.csv", policies([1]))
    ended = subprocess.run(command(house, *arguments, file), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert told in ended.stderr
