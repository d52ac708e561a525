"""What a row of any source comes to: a policy event that was understood, or a rejection with its reason."""

import datetime as dt
import enum
import unicodedata
from dataclasses import dataclass, field

from insurer_agent.intake.documents import trim
from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.rows import RawRow
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
MAX_POLICY_NUMBER_CHARACTERS = 64
MAX_PRODUCT_BYTES = 64

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
    what the row says, or 0 where it says nothing. `raw` is the row as the file has it.
    """

    row: int
    policy_number: str = field(repr=False)
    insured: Identity
    product: str
    amount: int = field(repr=False)
    issued_on: dt.date
    event: Event
    raw: RawRow | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class RejectedRow:
    """A row that was not: `code` is stable, `reason` is for people, and neither quotes the row; `raw` is the row.

    `policy_number` is its policy's, if that much was understood.
    """

    row: int
    code: str
    reason: str
    policy_number: str | None = field(default=None, repr=False, compare=False)
    raw: RawRow | None = field(default=None, repr=False, compare=False)


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
