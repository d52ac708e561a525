"""Policy events from a stream: an entry's one field `policy` is a JSON object, read by the rules of a file's row."""

from collections.abc import Sequence
from typing import Any

from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.layout import find_layout
from insurer_agent.intake.mapping import Mapping
from insurer_agent.intake.policy import COLUMNS, PolicyRow, RejectedRow
from insurer_agent.intake.profile import Profile
from insurer_agent.intake.rows import MAX_CELL_CHARACTERS, RawRow
from transport.json_text import parse_json

FIELD = b"policy"
MAX_JSON = 64 << 10
_MAY_LACK = "insured_amount"
"""A cancellation need not repeat the amount; of other events the mapping refuses an empty one."""
_NAME_AND_VALUE = 2
_ROW = 1  # an entry is a table of one row


class EntryMapping:
    """How entries become policy events.

    `products` are the names that the alliance knows; `maximum` is the largest amount in fen.
    """

    def __init__(self, *, products: frozenset[str], maximum: int) -> None:
        profile = Profile()
        layout = find_layout([RawRow(0, COLUMNS)], profile)
        self._mapping = Mapping(layout, profile, products=products, maximum=maximum, ragged=False)

    def policy(self, fields: Sequence[bytes]) -> PolicyRow | RejectedRow:
        """Return the event of an entry's `fields`, names and values in turn, or why there is none.

        All values are strings, amounts too: a JSON number is a float to many writers, and may have been rounded.
        Refuses with entry-fields, entry-too-long, not-json, not-an-object, name-unknown, name-missing, value-not-text,
        cell-too-long or a code of a row.
        """
        try:
            cells = _cells(fields)
        except IntakeError as fault:
            return RejectedRow(_ROW, fault.code, fault.reason)
        return self._mapping.policy(RawRow(_ROW, cells))


def _cells(fields: Sequence[bytes]) -> tuple[str, ...]:
    """Return an entry's cells in the order of COLUMNS."""
    if len(fields) != _NAME_AND_VALUE or fields[0] != FIELD:
        raise IntakeError("entry-fields", "an entry has one field, policy")
    if len(fields[1]) > MAX_JSON:
        raise IntakeError("entry-too-long", f"the field policy is longer than {MAX_JSON} bytes")
    try:
        policy = parse_json(fields[1])
    except (ValueError, RecursionError):
        raise IntakeError("not-json", "the field policy is not JSON in UTF-8 with each name once") from None
    if not isinstance(policy, dict):
        raise IntakeError("not-an-object", "the field policy is not a JSON object")
    if not policy.keys() <= set(COLUMNS):
        raise IntakeError("name-unknown", f"the object has another name than {', '.join(COLUMNS)}")
    return tuple(_cell(policy, column) for column in COLUMNS)


def _cell(policy: dict[str, Any], column: str) -> str:
    value = policy.get(column, "" if column == _MAY_LACK else None)
    if column not in policy and column != _MAY_LACK:
        raise IntakeError("name-missing", f"the object lacks {column}")
    if not isinstance(value, str):
        raise IntakeError("value-not-text", f"{column} is not a JSON string")
    if len(value) > MAX_CELL_CHARACTERS:
        raise IntakeError("cell-too-long", f"{column} is longer than {MAX_CELL_CHARACTERS} characters")
    return value
