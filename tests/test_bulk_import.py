"""An import that is killed is finished by the next; rejected rows are mended and imported; progress is told."""

import csv
import datetime as dt
import io
import json
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from formats import CHINESE, GOOD, changed, csv_bytes, saved, workbook
from hypothesis import given
from hypothesis import strategies as st
from importing import Insurer
from openpyxl.utils.datetime import CALENDAR_MAC_1904
from strategies import deterministic

from insurer_agent.dry_run import MAXIMUM, DryRegister
from insurer_agent.import_report import Report
from insurer_agent.importer import ROWS_A_TRANSACTION, Import
from insurer_agent.intake.policy import PolicyRow
from insurer_agent.intake.policy_file import PolicyFile, read_policies
from insurer_agent.intake.rejects import ADDED_COLUMNS, escape, is_added, is_rejects_file, unescape
from insurer_agent.rejects_file import make_way, rejects_paths
from insurer_agent.store.outbox import Backlog
from transport.settings import SettingsError

DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
SAMPLES = ("canonical.csv", "chinese_headers_gb18030.csv", "titled.xlsx")
COMMAND = [sys.executable, "-m", "insurer_agent.cli", "import"]


@pytest.fixture
def insurer(database: str) -> Iterator[Insurer]:
    opened = Insurer.open(database)
    yield opened
    opened.database.close()


def strings(**cells: str) -> list[str]:
    return [str(cell) for cell in changed(**cells)]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


# --- dry run -------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_of_each_sample_what_is_expected(tmp_path: Path) -> None:
    ended = run("--dry-run", "--json", *[DATA / name for name in SAMPLES], cwd=tmp_path)
    assert ended.returncode == 3
    result = json.loads(ended.stdout)
    assert list(result) == list(SAMPLES)
    for name in SAMPLES:
        assert result[name]["net_by_policy"] == EXPECTED[name]["net_by_policy"]
        assert result[name]["ignored_repeats"] == EXPECTED[name].get("ignored_repeats", 0)
        assert result[name]["rejected_rows"] == EXPECTED[name]["rejected_rows"]
        assert set(result[name]) == {"net_by_policy", "ignored_repeats", "rejected_rows"}
    assert list(tmp_path.iterdir()) == []
    secrets = [*EXPECTED["people"].values(), "A-0001", "B2026-1", "5000000"]
    assert [secret for secret in secrets if secret in ended.stderr] == []


def test_a_dry_run_takes_products_as_written_and_each_file_by_itself(tmp_path: Path) -> None:
    first = csv_bytes(list(CHINESE), strings(product="宠物险"), strings(), strings(policy_number="A-2"))
    (tmp_path / "first.csv").write_bytes(first)
    (tmp_path / "second.csv").write_bytes(csv_bytes(list(CHINESE), strings(event="退保"), strings(), strings()))
    (tmp_path / "third.csv").write_bytes(b"junk\n")
    ended = run("--dry-run", "--json", *[tmp_path / f"{name}.csv" for name in ("first", "second", "third")])
    assert ended.returncode == 1
    result = json.loads(ended.stdout)
    assert result["first.csv"]["net_by_policy"] == {"A-1": "10000000.00", "A-2": "5000000.00"}
    assert result["second.csv"]["net_by_policy"] == {"A-1": "0.00"}  # what comes before its issue waits for it
    assert result["second.csv"]["ignored_repeats"] == 1
    assert result["third.csv"].pop("rejected_file").startswith("column-missing: ")
    assert result["third.csv"] == {"net_by_policy": {}, "ignored_repeats": 0, "rejected_rows": {}}


def test_a_dry_run_without_json_says_it_to_people(tmp_path: Path) -> None:
    ended = run("--dry-run", DATA / "titled.xlsx", cwd=tmp_path)
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == [
        "titled.xlsx:6: number-lost-digits: number was stored by the spreadsheet as a number and has lost digits",
        "titled.xlsx: 2 accepted, 1 rejected",
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--json", "x.csv"], "--json goes with --dry-run"),
        (["x.csv"], "--state is needed"),
        (["--dry-run", "--json", "x.csv", "a/x.csv"], "same name"),
        (["--dry-run", "--profile", "none.toml", "x.csv"], "none.toml cannot be read"),
        (["--dry-run", "--rejects", "x.csv", "--force", "x.csv"], "to be imported"),
    ],
)
def test_wrong_use_is_told(tmp_path: Path, arguments: list[str], told: str) -> None:
    (tmp_path / "x.csv").write_bytes(csv_bytes(list(CHINESE)))
    ended = run(*arguments, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert told in ended.stderr
    assert (tmp_path / "x.csv").exists()


# --- rejected rows -------------------------------------------------------------------------------------------------

NASTY = ("=1+1", "+1", "-1", "@x", "\t=1", "'", "''x", "'=1", " =1", "007", "110101194903070015", "Mar-1", "1/2")
NASTY += ("1e5", "TRUE", "", "x,y", 'a"b', "two\nlines", "0", "1.50", "\ufeffx", "＝1", " ", "\r", "12345678901")


@given(st.text(max_size=12) | st.sampled_from(NASTY) | st.text(alphabet="'=+-@ \t0123456789.,eE", max_size=8))
@deterministic(600)
def test_what_is_escaped_comes_back_and_is_no_formula_or_long_number(cell: str) -> None:
    escaped = escape(cell)
    assert unescape(escaped) == cell
    assert not escaped.lstrip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
    if escaped == cell and any("0" <= character <= "9" for character in cell):
        assert len(cell) <= 12 or not cell.isdecimal()


@given(
    rows=st.lists(
        st.tuples(*[st.sampled_from([good, good, *NASTY]) for good in GOOD], st.sampled_from(NASTY)),
        min_size=1,
        max_size=6,
    )
)
@deterministic(60)
def test_rejected_rows_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    directory = tmp_path_factory.mktemp("rejects")
    text = io.StringIO(newline="")
    csv.writer(text).writerows([(*CHINESE, "=备注"), *rows])
    (directory / "file.csv").write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    told = Import(products=None, maximum=MAXIMUM, report=io.StringIO())

    def reject(source: str, target: str) -> list[tuple[tuple[str, ...], str]]:
        rejected: dict[int, str] = {}
        register = DryRegister()
        told.file(
            directory / source,
            register,
            rejects=directory / target,
            tell=lambda row, outcome: rejected.update({row.row: getattr(outcome, "code", "")}),
        )
        file = PolicyFile.open(directory / source)
        assert file.header == (*CHINESE, "=备注")
        every = file.policies(products=None, maximum=MAXIMUM)
        return [
            (file.cells(row.raw, rejected[row.row]) or (), rejected[row.row])
            for row in every
            if row.raw and rejected.get(row.row)
        ]

    first = reject("file.csv", "rejects.csv")
    if first:
        assert reject("rejects.csv", "again.csv") == first
        assert read_cells(directory / "again.csv") == read_cells(directory / "rejects.csv")


def read_cells(file: Path) -> list[list[str]]:
    """Return a rejects file's cells without the row numbers, which are of the file before it."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        return [[*row[:-2], row[-1]] for row in csv.reader(text)]


def test_rejects_of_a_spreadsheet_are_mended_and_imported(insurer: Insurer, tmp_path: Path) -> None:
    source, rejects = tmp_path / "policies.xlsx", tmp_path / "rejects.csv"
    bad = [changed(policy_number="A-2", insured_amount="abc"), changed(policy_number="A-3", document_number=1.1e17)]
    source.write_bytes(saved(workbook(["2026年11月"], CHINESE, GOOD, *bad)))
    assert insurer.import_files(source, rejects=rejects) == Counter({"accepted": 1, "rejected": 2})
    assert stat.S_IMODE(rejects.stat().st_mode) == 0o600
    written = rejects.read_bytes()
    assert written.startswith(b"\xef\xbb\xbf")
    assert is_rejects_file(written.splitlines()[0])
    with rejects.open(encoding="utf-8-sig", newline="") as text:
        header, first, second = csv.reader(text)
    assert header == [*CHINESE, *ADDED_COLUMNS]
    assert is_added(header)
    assert first == [
        "A-2",
        "身份证",
        "'110101194903070014",
        "意外险",
        "abc",
        "'2026-11-03",
        "承保",
        "4",
        "amount is not a number",
    ]
    assert (second[0], second[2], second[7]) == ("A-3", "'1.1e+17 (unusable)", "5")
    mended = written.decode().replace("abc", "6万")
    # As a Chinese Excel saves it: in its own encoding, without the mark.
    (tmp_path / "mended.csv").write_bytes(mended.removeprefix("\ufeff").encode("gb18030"))
    assert insurer.import_files(tmp_path / "mended.csv") == Counter({"accepted": 1, "rejected": 1})
    assert insurer.outbox.backlog() == Backlog(2, 0)


def test_a_serial_day_comes_back_as_the_day_that_it_was(insurer: Insurer, tmp_path: Path) -> None:
    source, rejects = tmp_path / "policies.xlsx", tmp_path / "rejects.csv"
    book = workbook(CHINESE, changed(issued_on=44871, product="?"))
    book.epoch = CALENDAR_MAC_1904
    source.write_bytes(saved(book))
    insurer.import_files(source, rejects=rejects)
    assert read_cells(rejects)[1][5] == "'2026-11-07"


LOST = (
    {"document_number": 440305198807141000},
    {"document_number": 12345678, "document_type": "护照"},
    {"policy_number": 1234567890123456},
    {"policy_number": "#N/A"},
    {"policy_number": dt.date(2026, 3, 5)},
    {"document_number": dt.date(2026, 3, 5), "document_type": "护照"},
    {"policy_number": "=A1"},
    {"insured_amount": 100 / 3},
)


@pytest.mark.parametrize("cells", LOST)
def test_what_could_not_be_relied_on_is_not_believed_when_it_comes_back_as_text(
    insurer: Insurer, tmp_path: Path, cells: dict[str, object]
) -> None:
    source, rejects, again = (tmp_path / name for name in ("policies.xlsx", "rejects.csv", "again.csv"))
    source.write_bytes(saved(workbook(CHINESE, changed(**cells))))
    assert insurer.import_files(source, rejects=rejects) == Counter({"rejected": 1})
    assert insurer.import_files(rejects, rejects=again) == Counter({"rejected": 1})
    assert read_cells(again)[1][:-1] == read_cells(rejects)[1][:-1]
    text = rejects.read_text(encoding="utf-8-sig")
    number = next(iter(cells))
    good = "110101194903070014" if number == "document_number" else "77"
    mended = text.replace(next(cell for cell in read_cells(rejects)[1] if cell.endswith(" (unusable)")), good)
    again.write_text(mended.replace("护照", "身份证"), encoding="utf-8-sig")
    assert insurer.import_files(again) == Counter({"accepted": 1})


def test_a_row_that_could_not_be_told_apart_is_in_the_rejects_as_one_text(insurer: Insurer, tmp_path: Path) -> None:
    content = csv_bytes(list(CHINESE), [*GOOD, "one more"], ['"unclosed', *GOOD], [], list(GOOD), ["A-1", "short"])
    (tmp_path / "file.csv").write_bytes(content)
    counts = insurer.import_files(tmp_path / "file.csv", rejects=tmp_path / "rejects.csv")
    assert counts == Counter({"accepted": 1, "rejected": 3})
    with (tmp_path / "rejects.csv").open(encoding="utf-8-sig", newline="") as text:
        _, *rows = csv.reader(text)
    lines = content.decode().splitlines()
    assert [unescape(row[0]) for row in rows] == [lines[1], lines[2], lines[5]]
    assert [row[-2] for row in rows] == ["2", "3", "6"]
    assert {len(row) for row in rows} == {9}


def test_rows_that_the_register_refuses_are_in_the_rejects_too(insurer: Insurer, tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.csv"
    insurer.import_files(DATA / "canonical.csv", rejects=rejects)
    with rejects.open(encoding="utf-8-sig", newline="") as text:
        assert [row[-2] for row in csv.reader(text)][1:] == ["10", "11", "12", "13", "14", "15"]


def test_rejects_are_not_overwritten_unless_forced(tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.csv"
    rejects.write_text("someone's work", encoding="utf-8")
    refused = run("--dry-run", "--rejects", rejects, DATA / "canonical.csv")
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert rejects.read_text(encoding="utf-8") == "someone's work"
    assert run("--dry-run", "--rejects", rejects, "--force", DATA / "canonical.csv").returncode == 3
    assert stat.S_IMODE(rejects.stat().st_mode) == 0o600
    rejects.chmod(0o644)
    good = tmp_path / "good.csv"
    good.write_bytes(csv_bytes(list(CHINESE), list(GOOD)))
    assert run("--dry-run", "--rejects", rejects, "--force", good).returncode == 0
    assert not rejects.exists()  # nothing was rejected, and old rejects would mislead


def test_several_files_have_rejects_of_their_own(tmp_path: Path) -> None:
    files = [Path("a/x.csv"), Path("b/x.csv")]
    paths = rejects_paths(tmp_path / "r.csv", files)
    assert [path.name for path in paths] == ["r-1-x.csv", "r-2-x.csv"]
    paths[1].touch()
    with pytest.raises(SettingsError, match="r-2-x"):
        make_way(paths, files, force=False)


def test_a_rejects_file_that_cannot_be_written_ends_the_import(tmp_path: Path) -> None:
    ended = run("--dry-run", "--rejects", tmp_path / "none" / "rejects.csv", DATA / "canonical.csv")
    assert ended.returncode == 2
    assert "cannot be written" in ended.stderr


# --- kill -9 -------------------------------------------------------------------------------------------------------


def many(path: Path, count: int) -> Path:
    header = "policy_number,document_type,document_number,product,insured_amount,issued_on,event\n"
    rows = [f"N-{number},passport,E{number:07d},accident,{number + 1}.00,2026-11-03,issue\n" for number in range(count)]
    rows += [f"N-{number},passport,E{number:07d},accident,,2026-11-04,cancel\n" for number in range(0, count, 7)]
    path.write_text(header + "".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("transactions", [0, 1, 3])
def test_an_import_that_is_killed_is_finished_by_the_next_and_counts_each_row_once(
    database: str, insurer: Insurer, tmp_path: Path, transactions: int
) -> None:
    count = 4 * ROWS_A_TRANSACTION + 11
    file = many(tmp_path / "many.csv", count)
    cancelled = len(range(0, count, 7))
    program = [sys.executable, str(Path(__file__).parent / "importing.py"), database, str(file)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(program, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        for _ in range(transactions):
            assert child.stdout.readline() == b"%d\n" % ROWS_A_TRANSACTION
        child.kill()  # in the middle of the next transaction, or of starting
    done = insurer.outbox.backlog().unmade
    assert done % ROWS_A_TRANSACTION == 0  # each transaction whole or not at all
    assert done >= transactions * ROWS_A_TRANSACTION
    counts = insurer.import_files(file)
    assert counts == Counter({"accepted": count - done, "repeated": done, "corrected": cancelled}) - Counter()
    assert insurer.outbox.backlog() == Backlog(count + cancelled, 0)
    assert insurer.import_files(file) == Counter({"repeated": count + cancelled})
    assert insurer.outbox.backlog() == Backlog(count + cancelled, 0)


# --- progress ------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_plain_line_now_and_then_where_there_is_no_terminal() -> None:
    now = iter([0.0, 100.0, 105.0, 110.0, 115.0, 3730.0])
    stream = io.StringIO()
    report = Report(stream, lambda: next(now))
    report.begin()
    for rows in (500, 10_000, 11_000, 2_000_000):
        report.progress("file.csv", rows, 0.25 if rows < 1_000_000 else None)
    assert stream.getvalue().splitlines() == [
        "file.csv: 10,000 rows, 1,000 a second, 25%, about 30 s left",
        "file.csv: 2,000,000 rows, 551 a second",
    ]


def test_progress_renews_itself_on_a_terminal_and_gives_way_to_lines() -> None:
    now = iter([0.0, 0.0, 0.4, 1.0, 1.2, 4000.0])
    stream = Terminal()
    report = Report(stream, lambda: next(now))
    report.begin()
    report.progress("f", 1, 0.5)
    report.progress("f", 1000, 0.5)
    report.line("f:7: no-such-day: no such day")
    report.progress("f", 1200, 0.5)
    report.progress("f", 4_000_000, 0.5)
    told = stream.getvalue()
    assert "\n".join(part for part in told.split("\r") if part.strip()) == (
        "f: 1,000 rows, 1,000 a second, 50%, about 1 s left\n"
        "f:7: no-such-day: no such day\n"
        "f: 4,000,000 rows, 1,000 a second, 50%, about 1 h 6 min left"
    )


def test_how_much_was_read_is_known_in_every_format() -> None:
    for name in SAMPLES:
        file = PolicyFile.open(DATA / name)
        rows = list(file.policies(products=None, maximum=10**12))
        assert file.fraction() == 1.0
        assert any(isinstance(row, PolicyRow) for row in rows)
    assert len(list(read_policies(DATA / "titled.xlsx", products=None, maximum=10**12))) == 3
