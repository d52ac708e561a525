"""The rows of one sheet of an XLSX workbook, under the numbers that the spreadsheet program shows.

Of a formula the value is taken that the program kept. Hidden rows count like others: a filter left on must not hide
policies. A merged cell has its value in its first place; its other places are empty in the file and are refused
where they matter, since nobody knows whether the value is meant for all.
"""

import re
import zipfile
from bisect import bisect_right
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from insurer_agent.intake.dates import DAY_ZERO_1900, DAY_ZERO_1904, of_serial
from insurer_agent.intake.errors import FileRejected, IntakeError
from insurer_agent.intake.rows import MAX_CELL_CHARACTERS, Cell, RawRow, Unusable, is_blank, number_cell
from insurer_agent.intake.xlsx_package import (
    MAX_ITEMS,
    Nested,
    Parts,
    Workbook,
    damaged,
    local,
    parsed,
    read_workbook,
    refuse_damage,
)

MAX_COLUMNS = 1024
"""Columns further to the right are not looked at."""
MAX_ROW_NUMBER = 1 << 20
MIN_POLICY_CELLS = 3
"""Cells that each row of policies has, since no profile can make them constants: hidden lists of words have fewer."""

_REFERENCE = re.compile(r"([A-Z]{1,3})([0-9]{1,7})")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[Ee][+-]?[0-9]{1,3})?")
_MERGED = re.compile(rb'mergeCell\s+ref="([A-Z]{1,3})([0-9]{1,7}):([A-Z]{1,3})([0-9]{1,7})"')
_MERGED_BYTES = 64


class XlsxRows:
    """A sheet: the one that is named, else the only visible one that is not empty; see `rows.Source`.

    Raises FileRejected with xlsx-damaged, xlsx-too-large, sheet-missing, sheet-unclear or file-empty.
    """

    ragged = True

    def __init__(self, path: Path, sheet: str | None) -> None:
        self._path = path
        self._sheet = sheet
        self._part: str | None = None
        self._read = 0
        self._size = 0

    def fraction(self) -> float | None:
        """Return how much has been read, 0 to 1."""
        return self._read / self._size if self._size else None

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows that are not blank."""
        with self._path.open("rb") as file, refuse_damage(), zipfile.ZipFile(file) as archive:
            parts = Parts(archive)
            workbook = read_workbook(parts, MAX_CELL_CHARACTERS)
            part = self._part = self._part or self._choose(parts, workbook)
            merged = _Merged(parts.chunks(part))
            for row in self._rows(parts, workbook, part):
                yield RawRow(row.number, merged.mark(row.number, row.cells))

    def _choose(self, parts: Parts, workbook: Workbook) -> str:
        if self._sheet is not None:
            for sheet in workbook.sheets:
                if sheet.name == self._sheet:
                    return sheet.part
            raise FileRejected("sheet-missing", "the workbook has no sheet of the name in the profile")
        visible = dict.fromkeys(sheet.part for sheet in workbook.sheets if not sheet.hidden)
        filled = list(islice((part for part in visible if self._is_filled(parts, workbook, part, 1)), 2))
        if not filled:
            raise FileRejected("file-empty", "the workbook has no visible sheet with anything in it")
        if len(filled) > 1:
            raise FileRejected("sheet-unclear", "the workbook has several sheets; name one in a profile")
        hidden = dict.fromkeys(sheet.part for sheet in workbook.sheets if sheet.part not in visible)
        if any(self._is_filled(parts, workbook, part, MIN_POLICY_CELLS) for part in hidden):
            raise FileRejected(
                "sheet-unclear", "a hidden sheet may hold policies; delete it or name a sheet in a profile"
            )
        return filled[0]

    def _is_filled(self, parts: Parts, workbook: Workbook, part: str, least: int) -> bool:
        """Say whether a sheet has a row of at least so many cells that hold something."""
        rows = self._rows(parts, workbook, part)
        return any(sum(not is_blank((cell,)) for cell in row.cells) >= least for row in rows)

    def _rows(self, parts: Parts, workbook: Workbook, part: str) -> Iterator[RawRow]:
        self._size, self._read = parts.size(part), 0
        handler = _SheetHandler(workbook)

        def counted() -> Iterator[bytes]:
            for chunk in parts.chunks(part):
                self._read += len(chunk)
                yield chunk

        for _ in parsed(counted(), handler):
            yield from handler.rows
            handler.rows.clear()


class _SheetHandler(Nested):
    """Collects in `rows` those that have been told of to the end."""

    def __init__(self, workbook: Workbook) -> None:
        super().__init__()
        self.rows: list[RawRow] = []
        self._workbook = workbook
        self._day_zero = DAY_ZERO_1904 if workbook.from_1904 else DAY_ZERO_1900
        self._row = 0
        self._cells: dict[int, Cell] = {}
        self._column = 0
        self._kind = ""
        self._style = 0
        self._formula = False
        self._text: list[str] | None = None  # while inside a value
        self._value = ""
        self._length = 0
        self._phonetic = False

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: ANN401, N802 - the name and type are SAX's
        """Take notice of rows, cells and values."""
        super().startElement(name, attrs)
        match local(name):
            case "row":
                number = int(attrs.get("r", self._row + 1))
                if not self._row < number <= MAX_ROW_NUMBER:
                    raise damaged()
                self._row, self._column, self._cells = number, 0, {}
            case "c":
                self._start_cell(attrs)
            case "f":
                self._formula = True
            case "v" | "t":
                self._text = []
            case "rPh":
                self._phonetic = True

    def _start_cell(self, attrs: Any) -> None:  # noqa: ANN401 - SAX's
        reference = attrs.get("r")
        if reference is None:
            self._column += 1
        elif parts := _REFERENCE.fullmatch(reference):
            self._column = _column(parts[1])
        else:
            raise damaged()
        self._kind, self._style = attrs.get("t", "n"), int(attrs.get("s", 0))
        self._formula, self._value, self._length, self._phonetic = False, "", 0, False

    def characters(self, content: str) -> None:
        """Collect a value's pieces, up to a cell's length."""
        if self._text is not None and not self._phonetic and self._length <= MAX_CELL_CHARACTERS:
            self._text.append(content[: MAX_CELL_CHARACTERS + 1 - self._length])
            self._length += len(content)

    def endElement(self, name: str) -> None:  # noqa: N802 - SAX's
        """Keep what is whole."""
        super().endElement(name)
        match local(name):
            case "v" | "t":
                self._value += "".join(self._text or ())
                self._text = None
            case "rPh":
                self._phonetic = False
            case "c" if self._column <= MAX_COLUMNS:
                cell = self._cell()
                if cell != "":
                    self._cells[self._column] = cell
            case "row":
                width = max(self._cells, default=0)
                cells = tuple(self._cells.get(column, "") for column in range(1, width + 1))
                if not is_blank(cells):
                    self.rows.append(RawRow(self._row, cells))

    def _cell(self) -> Cell:
        value, kind = self._value, self._kind
        if kind == "s" and value:
            place = int(value)
            if place < 0:
                raise damaged()
            value = self._workbook.strings[place]
        if len(value) > MAX_CELL_CHARACTERS:
            fault = IntakeError("cell-too-long", f"a cell is longer than {MAX_CELL_CHARACTERS} characters")
            return Unusable(value[:MAX_CELL_CHARACTERS], fault)
        if not value:
            fault = IntakeError("formula-without-value", "a formula has no value; open the file and save it again")
            return Unusable("", fault) if self._formula else ""
        match kind:
            case "n":
                return self._number(value)
            case "e":
                return Unusable(value, IntakeError("cell-error", "a cell shows an error"))
            case "b":
                return "TRUE" if value == "1" else "FALSE"
            case _:
                return value

    def _number(self, written: str) -> Cell:
        if not _NUMBER.fullmatch(written.strip()):
            raise damaged()
        if self._style in self._workbook.doubtful_styles:
            reason = "a number's format scales it, or shows a percentage, another currency or unit; write it plainly"
            return Unusable(written, IntakeError("number-format", reason))
        if self._style not in self._workbook.date_styles:
            return number_cell(float(written), written, self._day_zero)
        try:
            # A time of day is a fraction, of as many digits as there are.
            return of_serial(f"{Decimal(written):f}", self._day_zero)
        except IntakeError as fault:
            return Unusable(written, fault)


class _Merged:
    """The merged cells of a sheet. They stand behind its rows, so the sheet is searched for them beforehand."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        ranges: set[tuple[int, int, int, int]] = set()
        tail = b""
        for chunk in chunks:
            for left, top, right, bottom in _MERGED.findall(tail + chunk):
                if len(ranges) < MAX_ITEMS:
                    ranges.add((int(top), int(bottom), _column(left.decode()), _column(right.decode())))
            tail = (tail + chunk)[-_MERGED_BYTES:]
        self._ranges = sorted(ranges)
        self._tops = [top for top, *_ in self._ranges]
        self._open: list[tuple[int, int, int, int]] = []
        self._next = 0

    def mark(self, number: int, cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
        """Return a row's cells, those unusable that are empty as a part of a merged cell; rows come in order."""
        if not self._ranges:
            return cells
        reached = bisect_right(self._tops, number)
        self._open = [one for one in [*self._open, *self._ranges[self._next : reached]] if one[1] >= number]
        self._next = reached
        if len(self._open) > MAX_COLUMNS:  # merged cells do not overlap, so a row has no more than columns
            raise damaged()
        fault = IntakeError("cell-merged", "a cell is merged with another; unmerge it and fill every row")
        marked = list(cells)
        for _, _, left, right in self._open:
            for column in range(left, min(right, len(marked)) + 1):
                if marked[column - 1] == "":
                    marked[column - 1] = Unusable("", fault)
        return tuple(marked)


def _column(letters: str) -> int:
    column = 0
    for letter in letters:
        column = column * 26 + ord(letter) - ord("A") + 1
    return column
