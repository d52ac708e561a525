"""From raw rows, whatever their source, to policy events."""

import datetime as dt
import re

from insurer_agent.intake.amounts import read_amount
from insurer_agent.intake.dates import read_date
from insurer_agent.intake.documents import fold, normalise, trim
from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.layout import Layout
from insurer_agent.intake.policy import MAX_PRODUCT_BYTES, Event, PolicyRow, RejectedRow, normalise_policy_number
from insurer_agent.intake.profile import Profile
from insurer_agent.intake.rejects import UNUSABLE, unescape
from insurer_agent.intake.rows import Cell, Number, RawRow, Unusable, lost_digits, text_of
from insurer_agent.intake.vocabulary import squash
from protocol.identity import DocumentType, Identity

_EVENTS = {event.value: event for event in Event}
# What a spreadsheet leaves of a long number when it saves text: 4.40305E+17.
_SCIENTIFIC = re.compile(r"[0-9]{1,3}(?:(?:\.[0-9]*)?[Ee]\+|\.[0-9]*[Ee])[0-9]{1,3}")
# How exports have a spreadsheet take digits for text.
_WRAPPED = re.compile(r'="([^"]*)"')
# An 18-digit number of which a spreadsheet has kept the first 15 digits.
_ZEROS_AT_END = re.compile(r"[0-9]{15}000")
_MAY_BEGIN_WITH_ZERO = frozenset({DocumentType.PASSPORT.value, DocumentType.TAIWAN_PERMIT.value})


class Mapping:
    """How the rows of one file become policy events.

    `products` are the names that the alliance knows, None if that is not known; `maximum` is the largest amount in
    fen; `ragged` as in `rows.Source`.
    """

    def __init__(
        self, layout: Layout, profile: Profile, *, products: frozenset[str] | None, maximum: int, ragged: bool
    ) -> None:
        self._layout = layout
        self._profile = profile
        self._products = products
        self._maximum = maximum
        self._ragged = ragged
        self._width = len(layout.header.cells)

    def policy(self, row: RawRow) -> PolicyRow | RejectedRow:
        """Return the event of a row below the header, or why there is none."""
        policy_number = None
        try:
            cells = self._cells(row)
            policy_number = normalise_policy_number(_identifier(cells["policy_number"]))
            return self._policy(row, policy_number, cells)
        except IntakeError as fault:
            return RejectedRow(row.number, fault.code, fault.reason, policy_number, row)

    def _cells(self, row: RawRow) -> dict[str, Cell]:
        """Return the cells by column; constants are text."""
        if row.fault is not None:
            raise row.fault
        if row.swallowed >= max(1, self._width - 1):
            raise IntakeError("quote-swallows-rows", "a stray quote may have put other rows into one cell of this row")
        if len(row.cells) != self._width and not self._ragged:
            raise IntakeError("cell-count", "row does not have as many cells as the header")
        cells: dict[str, Cell] = dict(self._profile.constants)
        for column, place in self._layout.places.items():
            cell = row.cells[place] if place < len(row.cells) else ""
            cells[column] = _mended(cell) if self._layout.mended and isinstance(cell, str) else cell
        return cells

    def _policy(self, row: RawRow, policy_number: str, cells: dict[str, Cell]) -> PolicyRow:
        """Return the event that `cells`, by column, make. Of several faults the first in this order is told."""
        event = _EVENTS.get(self._profile.events.get(squash(_text(cells["event"])), ""))
        if event is None:
            raise IntakeError("event-unknown", "event is not issue, cancel or amend")
        product = self._profile.product(trim(_text(cells["product"])), self._products)
        if product is None or len(product.encode(errors="replace")) > MAX_PRODUCT_BYTES:
            raise IntakeError("product-unknown", "product is not known to the alliance")
        amount = self._amount(cells["insured_amount"], event)
        issued_on = self._issued_on(cells["issued_on"])
        insured = self._insured(cells["document_type"], cells["document_number"], typed=not row.text)
        return PolicyRow(row.number, policy_number, insured, product, amount, issued_on, event, row)

    def _amount(self, cell: Cell, event: Event) -> int:
        if isinstance(cell, dt.date):
            raise IntakeError("amount-not-a-number", "amount is a date")
        written = _text(cell)
        if event is Event.CANCEL and not trim(written):
            return 0  # a cancellation need not repeat the amount; the register knows it
        # Systems also export a cancelled policy with the amount it now has: zero.
        least = 0 if event is Event.CANCEL else 1
        return read_amount(written, maximum=self._maximum, minimum=least, unit=self._layout.unit)

    def _issued_on(self, cell: Cell) -> dt.date:
        return read_date(cell, self._profile.date_format)

    def _insured(self, kind: Cell, number: Cell, *, typed: bool) -> Identity:
        """Return the insured person; `typed` says that the file tells numbers from text, as CSV does not."""
        written = _identifier(number)
        document_type = self._profile.document_types.get(squash(_text(kind)), "")
        if (
            not typed
            and not self._profile.document_numbers_are_text
            and document_type == DocumentType.RESIDENT_ID.value
            and _ZEROS_AT_END.fullmatch(re.sub(r"[\s-]", "", fold(written)))
        ):
            reason = (
                "number may have lost its last digits in a spreadsheet; see document_numbers_are_text in the profile"
            )
            raise IntakeError(lost_digits().code, reason)
        if isinstance(number, Number) and document_type in _MAY_BEGIN_WITH_ZERO:
            raise IntakeError(
                "number-lost-digits", "number was stored as a number and may have lost zeros at its beginning"
            )
        return normalise(document_type, written)


def _identifier(cell: Cell) -> str:
    if isinstance(cell, dt.date):
        raise IntakeError(lost_digits().code, "number was turned into a date by the spreadsheet")
    text = trim(fold(_text(cell)))
    if wrapped := _WRAPPED.fullmatch(text):
        text = trim(wrapped[1])
    text = text.removeprefix("'")  # by which people have a spreadsheet take digits for text
    if text.startswith(("=", "'")):
        raise IntakeError("number-formula", "number begins like a formula or with several apostrophes")
    if _SCIENTIFIC.fullmatch(text):
        raise lost_digits()
    return text


def _mended(cell: str) -> str:
    if cell.endswith(UNUSABLE):
        raise IntakeError("cell-not-mended", "a cell that could not be relied on was not mended")
    return unescape(cell)


def _text(cell: Cell) -> str:
    if isinstance(cell, Unusable):
        raise cell.fault
    return text_of(cell)
