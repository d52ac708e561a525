"""The rows of a CSV file.

RFC 4180 with any delimiter, lines ending in CRLF or LF. A row's number is the physical line on which it starts, as an
editor shows it: the header counts, and so do blank lines and lines inside a quoted cell.

Nothing in a row can stop the file, and memory does not grow with it: a row has at most MAX_ROW_LINES physical
lines and MAX_ROW_BYTES bytes, a cell at most MAX_CELL_CHARACTERS. The same limits contain a quote that is
never closed: the row where it opened is rejected and reading goes on at the *next physical line*, so a stray
quote costs its own row and not the rest of the file.
"""

import codecs
import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.rows import MAX_CELL_CHARACTERS, RawRow, is_blank

MAX_ROW_LINES = 20
MAX_ROW_BYTES = 16 * 1024


class CsvRows:
    """A CSV file in an encoding ("utf-8" or "gb18030"), its cells apart by `delimiter`; see `rows.Source`."""

    ragged = False

    def __init__(self, path: Path, encoding: str, delimiter: str) -> None:
        self._path = path
        self._encoding = encoding
        self._delimiter = delimiter
        self._lines: PhysicalLines | None = None
        self._size = 0

    def fraction(self) -> float | None:
        """Return how much has been read, 0 to 1."""
        return min(1.0, self._lines.bytes / self._size) if self._lines and self._size else None

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows that are not blank; raise OSError where the file cannot be read."""
        with self._path.open("rb") as file:
            self._size = self._path.stat().st_size
            self._lines = lines = PhysicalLines(file)
            while first := lines.take():
                row = self._row(lines, first)
                if row.fault is not None or not is_blank(row.cells):
                    yield row

    def _row(self, lines: "PhysicalLines", first: bytes) -> RawRow:
        """Return the row that starts with the line `first`, just taken, and take the lines that belong to it."""
        number = lines.number
        if len(first) > MAX_ROW_BYTES:
            fault = IntakeError("row-too-long", f"row is longer than {MAX_ROW_BYTES} bytes")
            return RawRow(number, fault=fault, text=self._shown(first))
        taken = [first]
        complete = True

        def feed() -> Iterator[str]:
            # Asked for another line exactly as long as a quoted cell is open.
            nonlocal complete
            yield self._decode(first)
            while len(taken) < MAX_ROW_LINES and (line := lines.take()):
                taken.append(line)
                if sum(map(len, taken)) > MAX_ROW_BYTES:
                    break
                yield self._decode(line)
            complete = False

        try:
            cells = next(csv.reader(feed(), delimiter=self._delimiter, strict=True))
        except csv.Error:
            lines.give_back(taken[1:])
            if complete:
                fault = IntakeError("row-malformed", "row has a misplaced quote or line end")
            else:
                limits = f"{MAX_ROW_LINES} lines and {MAX_ROW_BYTES} bytes"
                fault = IntakeError("quote-unclosed", f"row opens a quote that is not closed within {limits}")
            return RawRow(number, fault=fault, text=self._shown(first))
        swallowed = max((cell.count(self._delimiter) for cell in cells if "\n" in cell), default=0)
        return RawRow(number, tuple(cells), _fault_of(cells), self._shown(b"".join(taken)), swallowed)

    def _decode(self, line: bytes) -> str:
        # Undecodable bytes are carried along as lone surrogates: in both encodings commas, quotes and line ends are
        # bytes of their own, so they are still known, and the fault costs the one row that has it (_fault_of).
        return line.decode(self._encoding, "surrogateescape")

    def _shown(self, line: bytes) -> str:
        return line.rstrip(b"\r\n").decode(self._encoding, "replace")


def _fault_of(cells: list[str]) -> IntakeError | None:
    for cell in cells:
        if "\0" in cell or not _is_encodable(cell):
            return IntakeError("encoding", "row is not text in the file's encoding")
        if len(cell) > MAX_CELL_CHARACTERS:
            return IntakeError("cell-too-long", f"a cell is longer than {MAX_CELL_CHARACTERS} characters")
    return None


def _is_encodable(cell: str) -> bool:
    if cell.isascii():
        return True
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


class PhysicalLines:
    """The lines of a file, numbered from 1, ends included; some can be given back and taken again.

    A line of more than MAX_ROW_BYTES is cut to MAX_ROW_BYTES + 1, by which it is known; the rest is skipped.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.number = 0  # of the line last taken
        self.bytes = 0  # read from the file
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
        self.bytes += len(line)
        if len(line) > MAX_ROW_BYTES:
            end = line
            while end and not end.endswith(b"\n"):
                end = self._file.readline(MAX_ROW_BYTES)
                self.bytes += len(end)
        return line
