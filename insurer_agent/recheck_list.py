"""The list of whom a recheck found: a private file, written whole or not at all."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from insurer_agent.intake.amounts import format_amount
from insurer_agent.intake.rejects import escape
from insurer_agent.store.register import Record
from protocol.check import Verdict
from protocol.manifest import Rule, day_of
from transport.settings import SettingsError

COLUMNS = (
    *("document_type", "document_number", "rule", "rule_version", "verdict", "reason"),
    *("policy_number", "product", "issued_on", "insured_amount"),
)


class RecheckList:
    """A list under way; it becomes the file when the block ends well after `finish`, and nothing is left otherwise.

    CSV with a row a policy, or JSON with an entry a person and rule, made `json_head` first. It holds personal data:
    only its owner can read it.
    """

    def __init__(self, path: Path, *, as_json: bool, force: bool) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._as_json = as_json
        self._force = force
        self._entries = 0
        self._finished = False
        self._text: TextIO

    def __enter__(self) -> Self:
        self._refuse_existing()
        try:
            self._partial.unlink(missing_ok=True)  # of a run that was killed
            descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._text = os.fdopen(descriptor, "w", encoding="utf-8", newline="")
            self._text.write('{"persons": [' if self._as_json else "\ufeff" + _line(COLUMNS))
        except OSError as error:
            raise self._cannot_write(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._text.close()
            self._partial.unlink(missing_ok=True)

    def put(self, policies: Sequence[Record], rule: Rule, verdict: Verdict, reason: str | None) -> None:
        """List a person with the own policies that count; raise SettingsError if it cannot be written."""
        head = {
            "document_type": policies[0].document_type,
            "document_number": policies[0].document_number,
            "rule": rule.id,
            "rule_version": rule.version,
            "verdict": verdict.value,
            "reason": reason,
        }
        try:
            if self._as_json:
                separator = ",\n" if self._entries else "\n"
                entry = head | {"policies": [_policy(record) for record in policies]}
                self._text.write(separator + json.dumps(entry, ensure_ascii=False))
            else:
                self._text.writelines(_line(_cells(head | _policy(record))) for record in policies)
        except OSError as error:
            raise self._cannot_write(error) from None
        self._entries += 1

    def finish(self) -> None:
        """Make it the file, durably; raise SettingsError if that cannot be."""
        self._refuse_existing()
        try:
            if self._as_json:
                self._text.write("\n]}\n")
            self._text.flush()
            os.fsync(self._text.fileno())
            self._text.close()
            self._partial.replace(self._path)
        except OSError as error:
            raise self._cannot_write(error) from None
        self._finished = True

    def _refuse_existing(self) -> None:
        if self._path.exists() and not self._force:
            raise SettingsError(f"{self._path} exists; see to it first, or use --force to overwrite it")

    def _cannot_write(self, error: OSError) -> SettingsError:
        return SettingsError(f"the list {self._path} cannot be written: {error.strerror}")


def _policy(record: Record) -> dict[str, Any]:
    return {
        "policy_number": record.policy_number,
        "product": record.product,
        "issued_on": day_of(record.day).isoformat(),
        "insured_amount": format_amount(record.current),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    """Return cells that Excel shows as they are; it may take the amounts, digits and a point, for numbers."""
    return [
        str(value) if name == "insured_amount" else escape("" if value is None else str(value))
        for name, value in row.items()
    ]


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return text.getvalue()
