"""An import tells what became of every row, and no line of what it tells names a person or an amount."""

import csv
import errno
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from importing import Insurer
from strategies import deterministic

from insurer_agent import importer
from insurer_agent.importer import wait_until_deposited
from insurer_agent.intake.policy import COLUMNS, MAX_POLICY_NUMBER_CHARACTERS
from insurer_agent.store.outbox import Attempt, Backlog
from insurer_agent.store.register import Register
from insurer_agent.store.vault import Vault
from protocol.secret import Secret
from transport.problems import Problem

if TYPE_CHECKING:
    from insurer_agent.agent import Agent

HEADER = ",".join(COLUMNS)
DATA = Path(__file__).parent / "data"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def insurer(database: str) -> Iterator[Insurer]:
    opened = Insurer.open(database)
    yield opened
    opened.database.close()


def row(
    number: str = "A-1",
    document_type: str = "passport",
    document: str = "E12345678",
    product: str = "accident",
    amount: str = "1000.00",
    day: str = "2026-11-03",
    event: str = "issue",
) -> list[str]:
    return [number, document_type, document, product, amount, day, event]


def write(file: Path, *rows: Sequence[str], header: str = HEADER) -> Path:
    with file.open("w", encoding="utf-8", newline="") as text:
        text.write(header + "\n")
        csv.writer(text, lineterminator="\n").writerows(rows)
    return file


# --- what is told --------------------------------------------------------------------------------------------------


def test_rejected_rows_are_told_with_file_row_and_reason_and_a_summary_ends_each_file(insurer: Insurer) -> None:
    insurer.import_files(DATA / "canonical.csv")
    assert insurer.told() == [
        "canonical.csv:10: amount-not-positive: amount is not positive",
        "canonical.csv:11: check-digit-wrong: check digit is wrong",
        "canonical.csv:12: no-such-day: no such day",
        "canonical.csv:13: document-number-empty: document number is empty",
        "canonical.csv:14: amount-not-plain-decimal: amount is not a plain decimal",
        "canonical.csv:15: policy-unknown: cancels a policy that was never issued",
        "canonical.csv: 5 accepted, 2 corrected, 6 rejected, 1 repeated",
    ]
    insurer.import_files(DATA / "canonical.csv")
    assert insurer.told()[-1] == "canonical.csv: 6 rejected, 8 repeated"


def test_every_file_has_its_own_summary_and_the_counts_are_of_all(insurer: Insurer, tmp_path: Path) -> None:
    first = write(tmp_path / "first.csv", row("A"), row("B"), row("B", amount="0"))
    second = write(tmp_path / "second.csv", row("A"), row("C"), row("B", amount="7", event="amend"))
    assert insurer.import_files(first, second, first) == Counter(
        {"accepted": 3, "corrected": 1, "repeated": 3, "rejected": 2}
    )
    assert insurer.told() == [
        "first.csv:4: amount-not-positive: amount is not positive",
        "first.csv: 2 accepted, 1 rejected",
        "second.csv: 1 accepted, 1 corrected, 1 repeated",
        "first.csv:4: amount-not-positive: amount is not positive",
        "first.csv: 1 rejected, 2 repeated",
    ]


def test_a_file_without_rows_says_so(insurer: Insurer, tmp_path: Path) -> None:
    assert insurer.import_files(write(tmp_path / "none.csv")) == Counter()
    assert insurer.told() == ["none.csv: no rows"]


def test_no_files_are_nothing(insurer: Insurer) -> None:
    assert insurer.import_files() == Counter()
    assert insurer.told() == []


REFUSED_BY_THE_REGISTER = [
    row("A", amount="1"),
    row("A", amount="2"),
    row("A", amount="1", day="2026-11-04"),
    row("B", event="amend"),
    row("B", event="cancel"),
    row("A", event="cancel"),
    row("A", amount="5", event="amend"),
]


def test_what_the_register_refuses_is_told_like_what_the_intake_does(insurer: Insurer, tmp_path: Path) -> None:
    insurer.import_files(write(tmp_path / "file.csv", *REFUSED_BY_THE_REGISTER))
    assert insurer.told() == [
        "file.csv:3: policy-conflict: issues a known policy with another amount; amend it instead",
        "file.csv:4: policy-conflict: issues a known policy with another day",
        "file.csv:8: policy-cancelled: amends a policy that was cancelled",
        # These have waited for the end of the file: their issues might have stood below them.
        "file.csv:5: policy-unknown: amends a policy that was never issued",
        "file.csv:6: policy-unknown: cancels a policy that was never issued",
        "file.csv: 1 accepted, 1 corrected, 5 rejected",
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 500])
def test_rows_are_told_by_their_own_numbers_however_many_make_a_transaction(
    insurer: Insurer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(importer, "ROWS_A_TRANSACTION", size)
    rows = [row("A"), row("A", amount="x"), row("B\nB"), row("B"), row("C", event="cancel"), row("B", amount="9")]
    insurer.import_files(write(tmp_path / "file.csv", *rows, [""], row("D", day="1"), row("A")))
    assert [line.split(": ")[0] for line in insurer.told()[:-1]] == [
        f"file.csv:{number}"
        for number in (3, 4, 8, 10, 7)  # the seventh has waited for its issue
    ]


@pytest.mark.parametrize("most", [0, 1, 2, 3, 100])
def test_no_more_rows_wait_for_their_issues_than_memory_is_meant_for(
    insurer: Insurer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(importer, "ROWS_A_TRANSACTION", 2)
    monkeypatch.setattr(importer, "MAX_WAITING_ROWS", most)
    numbers = ("A", "B", "C", "D")
    rows = [row(number, event="cancel") for number in numbers] + [row(number) for number in numbers]
    waited = min(most, len(numbers))
    counts = insurer.import_files(write(tmp_path / "file.csv", *rows))
    assert counts == Counter({"accepted": 4}) + Counter({"corrected": waited, "rejected": 4 - waited})
    assert [line.split(": ")[0] for line in insurer.told()[:-1]] == [f"file.csv:{2 + n}" for n in range(waited, 4)]


def test_a_file_of_several_transactions_is_imported_whole(insurer: Insurer, tmp_path: Path) -> None:
    count = 2 * importer.ROWS_A_TRANSACTION + 3
    rows = [row(f"N-{number}", document=f"E{number:07d}") for number in range(count)]
    file = write(tmp_path / "file.csv", *rows)
    assert insurer.import_files(file) == Counter({"accepted": count})
    assert insurer.outbox.backlog() == Backlog(count, 0)


# --- what is never told --------------------------------------------------------------------------------------------

CANARY = "CANARY4405240877"
SECRET_CELLS = (
    "CANARY4405240877",
    "440524188001010014",
    "440524188001010015",
    "8765432109.87",
    "876543.2109",
    "-8765432109.87",
    "2026-13-87",
    'CANARY"4405240877',
    "CANARY\n4405240877",
    "\u202eCANARY4405240877",
    "\uff23\uff21\uff2e\uff21\uff32\uff39",
    "",
)
GOOD_CELLS = (
    ("A-1", "A-2"),
    ("passport", "resident_id", "organization"),
    ("E12345678", "110101194903070014"),
    ("accident", "term_life"),
    ("1000.00", "20", ""),
    ("2026-11-03", "2026-11-04"),
    ("issue", "amend", "cancel"),
)
ALLOWED = re.compile(r"file\.csv(:[0-9]+: [a-z0-9-]+: [A-Za-z0-9 ,;.'-]+|: [0-9a-z ,]+)")
FRAGMENTS = ("CANARY", "\uff23\uff21", "4405", "8765", "E1234", "110101", "1000", "A-1", "A-2", "-87", "-03", "2026")


def test_no_line_names_a_person_an_amount_or_a_policy_whatever_stands_in_whatever_cell(
    database: str, tmp_path: Path
) -> None:
    insurer = Insurer.open(database)
    told: Counter[str] = Counter()

    def check(rows: Sequence[Sequence[str]], end: str, style: int) -> None:
        insurer.clear()
        file = tmp_path / "file.csv"
        with file.open("w", encoding="utf-8", newline="") as text:
            text.write(HEADER + end)
            csv.writer(text, lineterminator=end, quoting=style, escapechar="\\").writerows(rows)
        counts = insurer.import_files(file)
        lines = insurer.told()
        assert len(lines) == counts["rejected"] + counts["rejected files"] + 1
        for line in lines:
            assert ALLOWED.fullmatch(line)
            assert [fragment for fragment in FRAGMENTS if fragment in line] == []
            told[line.split(": ")[1]] += 1

    cells = st.tuples(*[st.sampled_from([*good * 4, *SECRET_CELLS]) for good in GOOD_CELLS])
    styles = st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_NONE])
    try:
        for kind, style in product(("passport", "resident_id"), (csv.QUOTE_ALL, csv.QUOTE_NONE)):
            good = row(document_type=kind, document="110101194903070014")
            changed = [(place, cell) for place in range(len(COLUMNS)) for cell in SECRET_CELLS]
            check([[*good[:place], cell, *good[place + 1 :]] for place, cell in changed], "\n", style)
        check(REFUSED_BY_THE_REGISTER, "\n", csv.QUOTE_MINIMAL)
        deterministic(40)(given(st.lists(cells, max_size=8), st.sampled_from(["\n", "\r\n"]), styles)(check))()
    finally:
        insurer.database.close()
    # Faults of the file's cells, of its shape and of the register's history were all among them.
    faults = {"policy-unknown", "amount-not-plain-decimal", "amount-too-large", "check-digit-wrong", "no-such-day"}
    faults |= {"event-unknown", "document-number-length", "product-unknown", "policy-number-malformed", "cell-count"}
    assert faults - set(told) == set()


def test_a_header_that_is_a_persons_row_is_not_told(insurer: Insurer, tmp_path: Path) -> None:
    first = ",".join(row("CANARY-1", document=CANARY, amount="8765.43"))
    file = write(tmp_path / "file.csv", row("B"), header=first)
    assert insurer.import_files(file) == Counter({"rejected files": 1})
    lines = insurer.told()
    assert [fragment for fragment in ("CANARY", "8765") if fragment in "".join(lines)] == []
    assert lines == [
        f"file.csv: column-missing: the header does not name: {', '.join(COLUMNS)}",
        "file.csv: 1 rejected files",
    ]


# --- what does not stop the rest -----------------------------------------------------------------------------------


def bad_files(directory: Path) -> dict[str, Path]:
    files = {name: directory / f"{name}.csv" for name in ("missing", "directory", "empty", "short", "bytes", "quote")}
    files["directory"].mkdir()
    files["empty"].write_bytes(b"")
    write(files["short"], row("X"), header=HEADER.replace(",event", ""))
    files["bytes"].write_bytes(b"\xff\xfe" + HEADER.encode("utf-16-le"))
    files["quote"].write_bytes(b'"' + HEADER.encode() + b"\n" + ",".join(row("Y")).encode() + b"\n")
    return files


def test_files_that_cannot_be_read_do_not_stop_the_others(insurer: Insurer, tmp_path: Path) -> None:
    bad = bad_files(tmp_path)
    good = [write(tmp_path / f"good-{number}.csv", row(f"N-{number}")) for number in range(len(bad) + 1)]
    files = [file for pair in zip(good, bad.values(), strict=False) for file in pair] + good[-1:]
    counts = insurer.import_files(*files)
    assert counts == Counter({"accepted": len(good), "rejected files": len(bad)})
    assert insurer.outbox.backlog() == Backlog(len(good), 0)
    lines = insurer.told()
    assert [line for line in lines if line.startswith("good")] == [f"{file.name}: 1 accepted" for file in good]
    told = {line.split(".csv")[0]: line.split(": ", 1)[1] for line in reversed(lines) if "rejected files" not in line}
    assert {name: told[name] for name in bad} == {
        "missing": f"cannot be read: {os.strerror(errno.ENOENT)}",
        "directory": f"cannot be read: {os.strerror(errno.EISDIR)}",
        "empty": "file-empty: the file has no header",
        "short": "column-missing: the header does not name: event",
        "bytes": told["bytes"],
        "quote": told["quote"],
    }
    for name in ("bytes", "quote"):
        assert told[name].startswith("header-malformed: ")
    assert [line for line in lines if "rejected files" in line] == [f"{name}.csv: 1 rejected files" for name in bad]


@linux_only
def test_a_file_that_fails_while_it_is_read_does_not_stop_the_others(insurer: Insurer, tmp_path: Path) -> None:
    good = write(tmp_path / "good.csv", row())
    failing = Path("/proc/self/mem")  # can be opened, and fails at the first read
    assert insurer.import_files(failing, good) == Counter({"accepted": 1, "rejected files": 1})
    assert insurer.told() == [
        f"mem: cannot be read: {os.strerror(errno.EIO)}",
        "mem: 1 rejected files",
        "good.csv: 1 accepted",
    ]


def test_no_row_stops_the_rest_of_its_file_or_the_other_files(insurer: Insurer, tmp_path: Path) -> None:
    rare = row("\U00020000" * MAX_POLICY_NUMBER_CHARACTERS)
    files = [write(tmp_path / "rare.csv", row("A"), rare, row("B")), write(tmp_path / "other.csv", row("C"))]
    counts = insurer.import_files(*files)
    assert counts["accepted"] >= 3
    assert counts["accepted"] + counts["rejected"] == 4


# --- a database that fails -----------------------------------------------------------------------------------------


def test_an_import_that_loses_its_database_is_finished_by_the_next(
    database: str, insurer: Insurer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "ROWS_A_TRANSACTION", 4)
    file = write(tmp_path / "file.csv", *[row(f"N-{number}", document=f"E{number:07d}") for number in range(10)])
    draws = 0

    def random(count: int) -> bytes:
        nonlocal draws
        draws += 1
        if draws > 6:  # in the second transaction, and whenever it is tried again
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'insurer-agent'"
                )
        return secrets.token_bytes(count)

    vault = Vault(Secret(bytes(range(32))), "register", secrets.token_bytes)
    register = Register(insurer.database, vault, insurer.party, random)
    failing = Insurer(insurer.party, insurer.database, register, insurer.outbox)
    with pytest.raises(Problem, match="database-unavailable"):
        failing.import_files(file)
    healthy = Insurer.open(database)
    try:
        assert healthy.outbox.backlog() == Backlog(4, 0)
        assert healthy.import_files(file) == Counter({"accepted": 6, "repeated": 4})
        assert healthy.outbox.backlog() == Backlog(10, 0)
    finally:
        healthy.database.close()


# --- until everything is deposited ---------------------------------------------------------------------------------


def wait(insurer: Insurer, seconds: float) -> bool:
    return wait_until_deposited(cast("Agent", insurer), seconds, insurer.report)


def test_with_nothing_on_its_way_there_is_nothing_to_wait_for(insurer: Insurer) -> None:
    assert wait(insurer, 0)
    assert insurer.told() == []


def test_waiting_in_vain_ends_in_time_and_tells_what_is_left(insurer: Insurer, tmp_path: Path) -> None:
    insurer.import_files(write(tmp_path / "file.csv", row("A"), row("B", document="E7654321")))
    insurer.told()
    assert not wait(insurer, 0)
    assert insurer.told()[-1] == "2 deposits are not made, 0 lack receipts"
    for place, item in enumerate(insurer.outbox.due(10)):
        insurer.outbox.record([Attempt(item, made=True, complete=place == 0)])
    assert not wait(insurer, 0.3)
    assert insurer.told()[-1] == "0 deposits are not made, 1 lack receipts"
    query = "UPDATE deposit SET completed_at = now()"
    insurer.database.run("complete", lambda connection: connection.execute(query.encode()))
    assert wait(insurer, 0)
