"""Policies from a CSV file, one row at a time, each either understood or rejected with a reason.

The format is RFC 4180 in UTF-8, with or without a byte order mark, lines ending in CRLF or LF. The header
names the columns of COLUMNS in any order; other columns are ignored. A row's number is the physical line on
which it starts, as an editor shows it: the header is 1, blank lines and lines inside a quoted cell count.

Nothing in a row can stop the file, and memory does not grow with it: a row has at most MAX_ROW_LINES physical
lines and MAX_ROW_BYTES bytes, a cell at most MAX_CELL_CHARACTERS. The same limits contain a quote that is
never closed: the row where it opened is rejected and reading goes on at the *next physical line*, so a stray
quote costs its own row and not the rest of the file.

Whether a policy is repeated, or amended or cancelled without having been issued, is the register's to say.
"""

import codecs
import csv
import datetime as dt
import enum
import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from insurer_agent.intake.amounts import parse_amount
from insurer_agent.intake.documents import fold, normalise, trim
from insurer_agent.intake.errors import FileRejected, IntakeError
from protocol.identity import Identity

COLUMNS = (
    "policy_number",
    "document_type",
    "document_number",
    "product",
    "insured_amount",
    "issued_on",
    "event",
)
MAX_ROW_LINES = 20
MAX_ROW_BYTES = 16 * 1024
MAX_CELL_CHARACTERS = 4096
MAX_POLICY_NUMBER_CHARACTERS = 64

_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
# Invisible in a policy number, so two that look alike would differ: controls, format characters, halves of surrogate
# pairs, separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class Event(enum.Enum):
    """What a row says happened to its policy."""

    ISSUE = "issue"
    CANCEL = "cancel"
    AMEND = "amend"


@dataclass(frozen=True)
class PolicyRow:
    """A row that was understood. What identifies or values a customer never appears in a repr.

    `amount` is in fen: of an issue the policy's, of an amendment the policy's from then on, of a cancellation
    what the row says, or 0 where it says nothing.
    """

    row: int
    policy_number: str = field(repr=False)
    insured: Identity
    product: str
    amount: int = field(repr=False)
    issued_on: dt.date
    event: Event


@dataclass(frozen=True)
class RejectedRow:
    """A row that was not: `code` is stable, `reason` is for people, and neither quotes the row."""

    row: int
    code: str
    reason: str


_EVENTS = {event.value: event for event in Event}


def read_policies(path: Path, *, products: frozenset[str], maximum: int) -> Iterator[PolicyRow | RejectedRow]:
    """Yield every row of the file in order; blank rows (no cell holds anything) are left out.

    `products` are the names that the alliance knows, matched as they are; `maximum` is the largest amount in
    fen. Raises, at the first `next`, FileRejected with file-empty, header-malformed, column-missing or
    column-repeated; at any `next`, OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        records = _records(_PhysicalLines(file))
        header = next(records, None)
        if header is None:
            raise FileRejected("file-empty", "the file has no header")
        places = _places(header)
        for record in records:
            outcome: PolicyRow | RejectedRow
            try:
                cells = _known_cells(record, len(header.cells), places)
                outcome = _policy_row(record.row, cells, products=products, maximum=maximum)
            except IntakeError as error:
                outcome = RejectedRow(record.row, error.code, error.reason)
            yield outcome


def _places(header: "_Record") -> dict[str, int]:
    """Return the place of each column of COLUMNS.

    Reasons name our own columns only: the first row of a file without a header is a person's.
    """
    if header.fault is not None:
        raise FileRejected("header-malformed", f"the header cannot be read: {header.fault.reason}")
    names = [trim(cell) for cell in header.cells]
    if missing := [column for column in COLUMNS if column not in names]:
        raise FileRejected("column-missing", f"the header does not name: {', '.join(missing)}")
    if repeated := [column for column in COLUMNS if names.count(column) > 1]:
        raise FileRejected("column-repeated", f"the header names more than once: {', '.join(repeated)}")
    return {column: names.index(column) for column in COLUMNS}


def _known_cells(record: "_Record", width: int, places: dict[str, int]) -> dict[str, str]:
    if record.fault is not None:
        raise record.fault
    if len(record.cells) != width:
        raise IntakeError("cell-count", "row does not have as many cells as the header")
    return {column: record.cells[place] for column, place in places.items()}


def _policy_row(row: int, cells: dict[str, str], *, products: frozenset[str], maximum: int) -> PolicyRow:
    """Return the row that `cells`, by column, make. Of several faults the first in this order is told."""
    policy_number = normalise_policy_number(cells["policy_number"])
    event = _EVENTS.get(trim(fold(cells["event"])).lower())
    if event is None:
        raise IntakeError("event-unknown", "event is not issue, cancel or amend")
    product = trim(cells["product"])
    if product not in products:
        raise IntakeError("product-unknown", "product is not known to the alliance")
    if event is Event.CANCEL and not trim(cells["insured_amount"]):
        amount = 0  # a cancellation need not repeat the amount; the register knows it
    else:
        # Systems also export a cancelled policy with the amount it now has: zero.
        amount = parse_amount(cells["insured_amount"], maximum=maximum, minimum=0 if event is Event.CANCEL else 1)
    issued_on = _day(cells["issued_on"])
    insured = normalise(cells["document_type"], cells["document_number"])
    return PolicyRow(row, policy_number, insured, product, amount, issued_on, event)


def normalise_policy_number(cell: str) -> str:
    """Return a policy number as the register knows it; raise IntakeError, policy-number-empty, -length, -malformed."""
    # Case is kept: the number is the insurer's own, and only the insurer knows whether its case has meaning.
    number = trim(unicodedata.normalize("NFKC", cell))
    if not number:
        raise IntakeError("policy-number-empty", "policy number is empty")
    if len(number) > MAX_POLICY_NUMBER_CHARACTERS:
        raise IntakeError(
            "policy-number-length", f"policy number is longer than {MAX_POLICY_NUMBER_CHARACTERS} characters"
        )
    if any(unicodedata.category(character) in _UNPRINTABLE for character in number):
        raise IntakeError("policy-number-malformed", "policy number has control or invisible characters")
    return number


def _day(cell: str) -> dt.date:
    # Not dt.date.fromisoformat, which also takes 20261103 and 2026-W45-2.
    parts = _DATE.fullmatch(trim(fold(cell)))
    if parts is None:
        raise IntakeError("date-malformed", "date is not written YYYY-MM-DD")
    try:
        return dt.date(*map(int, parts.groups()))
    except ValueError:
        raise IntakeError("no-such-day", "no such day") from None


@dataclass(frozen=True)
class _Record:
    """The cells of one row, or the fault for which they could not be told apart."""

    row: int
    cells: Sequence[str] = field(default=(), repr=False)
    fault: IntakeError | None = None


def _records(lines: "_PhysicalLines") -> Iterator[_Record]:
    while first := lines.take():
        record = _record(lines, first)
        if record.fault is not None or any(trim(cell) for cell in record.cells):
            yield record


def _record(lines: "_PhysicalLines", first: bytes) -> _Record:
    """Return the row that starts with the line `first`, just taken, and take the lines that belong to it."""
    row = lines.number
    if len(first) > MAX_ROW_BYTES:
        return _Record(row, fault=IntakeError("row-too-long", f"row is longer than {MAX_ROW_BYTES} bytes"))
    taken = [first]
    complete = True

    def feed() -> Iterator[str]:
        # Asked for another line exactly as long as a quoted cell is open.
        nonlocal complete
        yield _decode(first)
        while len(taken) < MAX_ROW_LINES and (line := lines.take()):
            taken.append(line)
            if sum(map(len, taken)) > MAX_ROW_BYTES:
                break
            yield _decode(line)
        complete = False

    try:
        cells = next(csv.reader(feed(), strict=True))
    except csv.Error:
        lines.give_back(taken[1:])
        if complete:
            fault = IntakeError("row-malformed", "row has a misplaced quote or line end")
        else:
            limits = f"{MAX_ROW_LINES} lines and {MAX_ROW_BYTES} bytes"
            fault = IntakeError("quote-unclosed", f"row opens a quote that is not closed within {limits}")
        return _Record(row, fault=fault)
    return _Record(row, cells, _fault_of(cells))


def _fault_of(cells: list[str]) -> IntakeError | None:
    if any("\0" in cell or not _is_encodable(cell) for cell in cells):
        return IntakeError("encoding", "row is not UTF-8 text")
    if any(len(cell) > MAX_CELL_CHARACTERS for cell in cells):
        return IntakeError("cell-too-long", f"a cell is longer than {MAX_CELL_CHARACTERS} characters")
    return None


def _decode(line: bytes) -> str:
    # Undecodable bytes are carried along as lone surrogates: UTF-8 uses ASCII bytes for ASCII alone, so
    # commas, quotes and line ends are still known, and the fault costs the one row that has it (_fault_of).
    return line.decode("utf-8", "surrogateescape")


def _is_encodable(cell: str) -> bool:
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


class _PhysicalLines:
    """The lines of a file, numbered from 1, ends included; some can be given back and taken again.

    A line of more than MAX_ROW_BYTES is cut to MAX_ROW_BYTES + 1, by which it is known; the rest is skipped.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.number = 0  # of the line last taken
        self._file = file
        self._given_back: deque[bytes] = deque()

    def take(self) -> bytes:
        """Return the next line, or b"" at the end of the file."""
        line = self._given_back.popleft() if self._given_back else self._read()
        if self.number == 0 and len(line) <= MAX_ROW_BYTES:  # a cut line must stay known as one
            line = line.removeprefix(codecs.BOM_UTF8)
        if line:
            self.number += 1
        return line

    def give_back(self, lines: list[bytes]) -> None:
        """Have the last `lines` taken again."""
        self._given_back.extendleft(reversed(lines))
        self.number -= len(lines)

    def _read(self) -> bytes:
        line = self._file.readline(MAX_ROW_BYTES + 1)
        if len(line) > MAX_ROW_BYTES:
            end = line
            while end and not end.endswith(b"\n"):
                end = self._file.readline(MAX_ROW_BYTES)
        return line
