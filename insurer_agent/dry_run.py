"""What an import would do, without keys, manifest or database: each file by itself, into an empty register."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from insurer_agent.importer import Outcome
from insurer_agent.intake.amounts import format_amount
from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.store.register import Applied, PolicyEvent, Record, decide
from protocol.encoding import decode, encode

MAXIMUM = 2**48 - 1
"""The largest amount in fen that a register holds; a manifest's may be less."""


class DryRegister:
    """A register in memory, of which the policies and what their rows said are kept and nothing else."""

    def __init__(self) -> None:
        self._policies: dict[bytes, bytes] = {}  # encoded, which takes a fraction of the memory
        self._rows: set[bytes] = set()

    def apply(self, events: Sequence[PolicyEvent]) -> list[Applied | IntakeError]:
        """Apply events in their order, each with a result of its own, as `Register.apply` does."""
        return [self._apply(event) for event in events]

    def _apply(self, event: PolicyEvent) -> Applied | IntakeError:
        key = _digest(*event.policy())
        row = _digest(key, *event.meaning())
        if row in self._rows:
            return Applied.REPEATED
        try:
            known = self._policies.get(key)
            applied, changed, _ = decide(event, None if known is None else decode(Record, known), bytes)
        except IntakeError as refusal:
            return refusal
        self._rows.add(row)
        if changed is not None:
            self._policies[key] = encode(changed)
        return applied

    def net_by_policy(self) -> dict[str, str]:
        """Return what each policy number's policies come to in yuan, the cancelled ones with nothing."""
        sums: dict[str, int] = defaultdict(int)
        for encoded in self._policies.values():
            record = decode(Record, encoded)
            sums[record.policy_number] += record.current
        return {number: format_amount(fen) for number, fen in sums.items()}


class DryRun:
    """What came of one file; `outcome` is told of each row."""

    def __init__(self) -> None:
        self.register = DryRegister()
        self.rejection: str | None = None
        self._repeats = 0
        self._rejected: dict[int, str] = {}

    def outcome(self, row: PolicyRow | RejectedRow, outcome: Outcome) -> None:
        """Note what came of a row."""
        if isinstance(outcome, Applied):
            self._repeats += outcome is Applied.REPEATED
        else:
            self._rejected[row.row] = outcome.reason

    def result(self) -> dict[str, Any]:
        """Return amounts in yuan by policy number, how many rows repeat others, and reasons by row number.

        A file that was rejected whole, or from some row on, has its reason as `rejected_file`.
        """
        result: dict[str, Any] = {
            "net_by_policy": self.register.net_by_policy(),
            "ignored_repeats": self._repeats,
            "rejected_rows": {str(row): reason for row, reason in sorted(self._rejected.items())},
        }
        return result if self.rejection is None else result | {"rejected_file": self.rejection}


def _digest(*parts: bytes) -> bytes:
    whole = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hashlib.blake2b(whole, digest_size=16).digest()
