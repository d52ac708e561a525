"""The form of a rejects file: the rejected rows as they were, with two columns more, for people to mend in Excel.

It is CSV in UTF-8 with a byte order mark. Excel would run a cell that starts like a formula, and would turn an 18-digit
document number into 4.4E+17 and a date into its own. So such a cell gets an apostrophe in front, and so does one
that has one already; when the file is imported, by which its two last columns tell it, each cell loses one. What
is written therefore comes back as it was, whatever it was.
"""

import re
from collections.abc import Sequence

ROW_COLUMN = "rejected_row"
REASON_COLUMN = "rejected_reason"
ADDED_COLUMNS = (ROW_COLUMN, REASON_COLUMN)

# Formulas start with = + - @, after white space at most; and whatever Excel takes for a number, date or truth value.
_TO_ESCAPE = re.compile(
    r"\s*[-=+@'\uff1d\uff0b\uff0d\uff20]|.*[0-9].*|\s*(?:true|false)\s*|[\t\r\n]", re.IGNORECASE | re.DOTALL
)
# Short plain numbers, and numbers after one or two letters: no month, so no date.
_HARMLESS = re.compile(r"[1-9][0-9]{0,10}(?:\.[0-9]*[1-9])?|[A-Za-z]{1,2}(?:-?[0-9]+)+")


UNUSABLE = " (unusable)"
"""What is put behind a cell that could not be relied on, such as a number without its last digits: without that, it
would come back as text that nobody doubts."""


def escape(cell: str) -> str:
    """Return a cell that Excel shows and saves as it is."""
    return "'" + cell if _TO_ESCAPE.match(cell) and not _HARMLESS.fullmatch(cell) else cell


def unescape(cell: str) -> str:
    """Return the cell that `escape` was given."""
    return cell.removeprefix("'")


def is_added(header: Sequence[str]) -> bool:
    """Say whether a header is of a rejects file."""
    return tuple(header[-2:]) == ADDED_COLUMNS


def is_rejects_file(first_line: bytes) -> bool:
    """Say whether a text file that starts with this line is a rejects file, whatever a profile says of its layout.

    A spreadsheet may have saved it in another encoding, without its mark or with another delimiter.
    """
    names = first_line.rstrip(b"\r\n").replace(b'"', b"").replace(b";", b",").replace(b"\t", b",")
    return names.endswith(",".join(ADDED_COLUMNS).encode())
