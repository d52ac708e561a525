"""What every format's reader gives, whatever the format: rows of cells under the file's own row numbers."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from insurer_agent.intake.documents import trim
from insurer_agent.intake.errors import IntakeError

MAX_CELL_CHARACTERS = 4096
MAX_EXACT_DIGITS = 15
"""Significant digits of a decimal that a 64-bit floating-point number, and so every spreadsheet, is sure to keep."""


@dataclass(frozen=True)
class Number:
    """A number of a typed format. `digits` is a plain decimal: -?[0-9]+(.[0-9]+)?, without needless zeros.

    `day_zero` is the day of serial number 0 in a spreadsheet's date system; None outside spreadsheets.
    """

    digits: str = field(repr=False)
    day_zero: dt.date | None = None


@dataclass(frozen=True)
class Unusable:
    """A cell whose value is not to be relied on, with why; the row is rejected if the cell's column is needed.

    `text` is what the file has, for the insurer's own eyes.
    """

    text: str = field(repr=False)
    fault: IntakeError


Cell = str | Number | dt.date | Unusable
"""One cell; an empty one is "". A datetime, with or without a zone, is a date too."""


@dataclass(frozen=True)
class RawRow:
    """One row that is not blank, as the file has it.

    `number` is the file's own, from 1, header included; formats that name their columns elsewhere have a header 0.
    Where the cells could not be told apart there are none: `fault` says why, and `text` is what stands there.
    `swallowed` is the most delimiters in one cell of several lines: as many as between a row's cells may be a row.
    """

    number: int
    cells: tuple[Cell, ...] = field(default=(), repr=False)
    fault: IntakeError | None = None
    text: str = field(default="", repr=False)
    swallowed: int = 0


class Source(Protocol):
    """A file, or a query, that is read once from its beginning, in memory that does not grow with it."""

    @property
    def ragged(self) -> bool:
        """Say whether rows may be shorter or longer than the header without anything being wrong."""

    def rows(self) -> Iterator[RawRow]:
        """Yield the rows in order, header included; raise FileRejected or OSError where the file cannot be read on."""

    def fraction(self) -> float | None:
        """Return how much has been read, 0 to 1; None if that is not known."""


def text_of(cell: Cell) -> str:
    """Return a cell as a text file has it: a number plainly, a day as YYYY-MM-DD, with its time if it has one."""
    match cell:
        case str():
            return cell
        case Number():
            return cell.digits
        case Unusable():
            return cell.text
        case dt.datetime():
            return cell.isoformat(sep=" ")
        case _:
            return cell.isoformat()


def is_blank(cells: tuple[Cell, ...]) -> bool:
    """Say whether no cell holds anything."""
    return not any(trim(cell) if isinstance(cell, str) else True for cell in cells)


def number_cell(value: float, text: str, day_zero: dt.date | None = None) -> Number | Unusable:
    """Return a 64-bit floating-point number as the decimal that was put in, which it must tell for certain.

    A decimal of up to 15 significant digits comes back from such a number; of more, as of an 18-digit document
    number, or in the outcome of a calculation such as 0.1 + 0.2, nobody knows what was meant.
    """
    exact = Decimal(repr(value)) if abs(value) < 10**MAX_EXACT_DIGITS else None  # of infinities and NaN: None
    if exact is None or len(exact.normalize().as_tuple().digits) > MAX_EXACT_DIGITS:
        return Unusable(text, lost_digits())
    return decimal_cell(exact, text, day_zero)


def decimal_cell(value: Decimal, text: str, day_zero: dt.date | None = None) -> Number | Unusable:
    """Return an exact decimal as a cell."""
    if not value.is_finite() or value.adjusted() > MAX_CELL_CHARACTERS or value.adjusted() < -MAX_CELL_CHARACTERS:
        return Unusable(text, IntakeError("number-out-of-range", "number is out of range"))
    digits = f"{value:f}"
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return Number("0" if digits == "-0" else digits, day_zero)


def lost_digits() -> IntakeError:
    """Return the fault of a number whose digits the file has not all kept."""
    return IntakeError("number-lost-digits", "number was stored by the spreadsheet as a number and has lost digits")
