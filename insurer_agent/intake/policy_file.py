"""Policies from a file of any format that is known, one row at a time, each understood or rejected with a reason.

The format is told by the file's first bytes and not by its name. Whether a policy is repeated, or amended or cancelled
without having been issued, is the register's to say.
"""

import datetime as dt
import stat
from collections.abc import Iterator
from pathlib import Path

from insurer_agent.intake.csv_dialect import open_csv
from insurer_agent.intake.dates import read_date
from insurer_agent.intake.errors import FileRejected, IntakeError
from insurer_agent.intake.layout import Layout, find_layout, require_complete
from insurer_agent.intake.mapping import Mapping
from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.intake.profile import Profile
from insurer_agent.intake.rejects import UNUSABLE, unescape
from insurer_agent.intake.rows import Cell, Number, RawRow, Source, Unusable, lost_digits, text_of

_ZIP, _PARQUET, _OLE = b"PK\x03\x04", b"PAR1", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
DEFAULT = Profile()


class PolicyFile:
    """A file of policies, or what is read like one, whose header has been found; its rows are read once, in order.

    Raises FileRejected with file-kind, file-empty, header-malformed, header-missing, column-missing,
    column-repeated or what the format's reader raises, and OSError if the file cannot be read.
    """

    def __init__(self, source: Source, layout: Layout, profile: Profile) -> None:
        self._source = source
        self._layout = require_complete(layout)
        self._profile = profile

    @classmethod
    def open(cls, path: Path, profile: Profile = DEFAULT) -> "PolicyFile":
        """Open a file of any format that is known."""
        return cls(*_open(path, profile), profile)

    @classmethod
    def of_source(cls, source: Source, profile: Profile = DEFAULT) -> "PolicyFile":
        """Take the rows of a source that is open already."""
        return cls(source, find_layout(source.rows(), profile), profile)

    @property
    def header(self) -> tuple[str, ...]:
        """Return the header as the file has it, without the columns that a rejects file adds."""
        cells = tuple(text_of(cell) for cell in self._layout.header.cells)
        return tuple(map(unescape, cells[:-2])) if self._layout.mended else cells

    def cells(self, row: RawRow, code: str) -> tuple[str, ...] | None:
        """Return the cells of a row rejected for `code`, as `header` has them and a rejects file shows them.

        None if the row could not be told apart into cells.
        """
        width = len(self._layout.header.cells)
        cells = [text_of(cell) for cell in row.cells]
        for column, place in self._layout.places.items():
            if place < len(cells):
                cells[place] = self._shown(column, row.cells[place], code)
        if len(cells) != width:
            if not self._source.ragged or not cells:
                return None
            cells = [*cells[:width], *[""] * (width - len(cells))]
        return tuple(map(unescape, cells[:-2])) if self._layout.mended else tuple(cells)

    def _shown(self, column: str, cell: Cell, code: str) -> str:
        if column == "issued_on" and isinstance(cell, Number):
            try:  # as text, a serial number would not tell its date system
                return read_date(cell, self._profile.date_format).isoformat()
            except IntakeError:
                return cell.digits
        # As text, nobody would doubt a number whose first zeros may be missing, or that was turned into a date.
        doubtful = (column == "document_number" and isinstance(cell, Number)) or (
            column in ("policy_number", "document_number") and isinstance(cell, dt.date)
        )
        unusable = isinstance(cell, Unusable) or (doubtful and code == lost_digits().code)
        return text_of(cell) + (UNUSABLE if unusable else "")

    def fraction(self) -> float | None:
        """Return how much has been read, 0 to 1; None if that is not known."""
        return self._source.fraction()

    def policies(self, *, products: frozenset[str] | None, maximum: int) -> Iterator[PolicyRow | RejectedRow]:
        """Yield every row that is not blank, but for titles above the header.

        `products` are the names that the alliance knows, None to take them as written; `maximum` is the largest
        amount in fen. Raises FileRejected or OSError where the file cannot be read on.
        """
        mapping = Mapping(self._layout, self._profile, products=products, maximum=maximum, ragged=self._source.ragged)
        for row in self._source.rows():
            if row.number > self._layout.header.number:
                yield mapping.policy(row)
            elif self._layout.is_lost(row):
                reason = "row stands above the header and has as many cells as a policy; move it below"
                yield RejectedRow(row.number, "row-above-header", reason, None, row)


def _open(path: Path, profile: Profile) -> tuple[Source, Layout]:
    if stat.S_ISFIFO(path.stat().st_mode) or stat.S_ISCHR(path.stat().st_mode):
        raise FileRejected("file-kind", "a pipe cannot be read twice, which is needed; save it to a file")
    with path.open("rb") as file:
        start = file.read(len(_OLE))
    if start.startswith(_OLE):
        raise FileRejected(
            "file-kind", "the file is an old or an encrypted Excel workbook; save it as XLSX, without password"
        )
    if not start.startswith((_ZIP, _PARQUET)):
        return open_csv(path, profile)
    source = _typed_source(path, profile, parquet=start.startswith(_PARQUET))
    return source, find_layout(source.rows(), profile)


def _typed_source(path: Path, profile: Profile, *, parquet: bool) -> Source:
    # Imported when needed: most files are CSV, and pyarrow alone takes longer to load than a small file to import.
    if parquet:
        from insurer_agent.intake.parquet_rows import ParquetRows  # noqa: PLC0415 - as said above

        return ParquetRows(path)
    from insurer_agent.intake.xlsx_rows import XlsxRows  # noqa: PLC0415 - as said above

    return XlsxRows(path, profile.sheet)


def read_policies(
    path: Path, *, products: frozenset[str] | None, maximum: int, profile: Profile = DEFAULT
) -> Iterator[PolicyRow | RejectedRow]:
    """Yield every row of the file in order; see `PolicyFile`, whose errors come at the first `next`."""
    yield from PolicyFile.open(path, profile).policies(products=products, maximum=maximum)
