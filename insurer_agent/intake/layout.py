"""Where a file's header is, and which of its columns are which."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import islice

from insurer_agent.intake.amounts import Unit
from insurer_agent.intake.documents import fold, trim
from insurer_agent.intake.errors import FileRejected
from insurer_agent.intake.policy import COLUMNS
from insurer_agent.intake.profile import Profile
from insurer_agent.intake.rejects import is_added, unescape
from insurer_agent.intake.rows import RawRow, text_of
from insurer_agent.intake.vocabulary import UNIT_HINT, column_of, unit_at_end, units_above

MAX_ROWS_ABOVE_HEADER = 30
"""Rows that are not blank: titles, remarks and dates above a header."""


@dataclass(frozen=True)
class Layout:
    """The header row, the place of each column that it names, and what its amounts count.

    `mended` says that this is a rejects file: two columns of it are ours, and its cells are escaped.
    """

    header: RawRow
    places: dict[str, int]
    unit: Unit
    mended: bool
    needed: int
    missing: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Say whether every column that is needed stands in the header once."""
        return not self.missing and not self.repeated

    def is_lost(self, row: RawRow) -> bool:
        """Say whether a row above the header may be a policy: a title has fewer cells than are needed."""
        if row.number >= self.header.number:
            return False
        return row.fault is not None or sum(bool(trim(text_of(cell))) for cell in row.cells) >= self.needed

    @property
    def rank(self) -> tuple[int, int]:
        """Return what is greater for a likelier header."""
        return len(self.places), -len(self.repeated)


def find_layout(rows: Iterable[RawRow], profile: Profile) -> Layout:
    """Return the layout as `_find_layout` does, and leave no file open, whatever was raised."""
    try:
        return _find_layout(rows, profile)
    finally:
        if isinstance(rows, Generator):
            rows.close()


def _find_layout(rows: Iterable[RawRow], profile: Profile) -> Layout:
    """Return the layout by the first row that names all columns; or, if none does, by the one that names most.

    Only the first rows of `rows` are taken. Raises FileRejected with file-empty, header-malformed, header-missing or
    column-unit.
    """
    first, best = None, None
    above: set[Unit | None] = set()
    for row in rows if profile.header_row else islice(rows, MAX_ROWS_ABOVE_HEADER):
        first = first or row
        if profile.header_row and row.number > profile.header_row:
            break
        if profile.header_row in (None, row.number):
            layout = _layout(row, profile)
            if layout.complete:
                # A header that names the same unit agrees with what stands above it; anything else is not clear.
                if profile.amount_unit is None and above - {Unit.YUAN, layout.unit}:
                    raise FileRejected("column-unit", f"above the header stands a unit of the amounts; {UNIT_HINT}")
                return layout
            if best is None or layout.rank > best.rank:
                best = layout
        above |= units_above([text_of(cell) for cell in row.cells] or [row.text])
    if first is None:
        raise FileRejected("file-empty", "the file has no header")
    if best is None:
        raise FileRejected("header-missing", "the profile's header row is blank or not in the file")
    if not best.places and first.fault is not None:
        raise FileRejected("header-malformed", f"the header cannot be read: {first.fault.reason}")
    return best


def require_complete(layout: Layout) -> Layout:
    """Return a complete layout, or raise FileRejected with column-missing or column-repeated.

    Reasons name our own columns only: the first row of a file without a header is a person's.
    """
    if layout.missing:
        raise FileRejected("column-missing", f"the header does not name: {', '.join(layout.missing)}")
    if layout.repeated:
        raise FileRejected(
            "column-repeated", f"the header names more than once: {', '.join(layout.repeated)}; choose in a profile"
        )
    return layout


def _layout(row: RawRow, profile: Profile) -> Layout:
    cells = [text_of(cell) for cell in row.cells] if row.fault is None else []
    mended = is_added(cells)
    if mended:
        cells = [unescape(cell) for cell in cells[:-2]]
    found: dict[str, list[int]] = {column: [] for column in COLUMNS}
    unit = None
    named = {_plain(header): column for column, header in profile.columns.items()}
    for place, cell in enumerate(cells):
        if _plain(cell) in named:
            column = named[_plain(cell)]
            found[column].append(place)
            if column == "insured_amount" and profile.amount_unit is None:
                unit = unit_at_end(cell)
        elif (known := column_of(cell)) and known[0] not in {*profile.columns, *profile.constants}:
            found[known[0]].append(place)
            unit = known[1] or unit
    needed = [column for column in COLUMNS if column not in profile.constants]
    return Layout(
        header=row,
        places={column: places[0] for column, places in found.items() if places},
        unit=profile.amount_unit or unit or Unit.YUAN,
        mended=mended,
        needed=len(needed),
        missing=tuple(column for column in needed if not found[column]),
        repeated=tuple(column for column in needed if len(found[column]) > 1),
    )


def _plain(header: str) -> str:
    return trim(fold(header))
