"""What admins did at the service, and tried to do: an append-only log of lines that auditors read.

A line of JSON an act: its number, time, the API key's name, act, proposal, the admin whose signature it was, and the
code of a refusal. Acts that write are told before they are done, so that none is done in silence; there is no key
and nothing of a request's body but what is known otherwise: a proposal's id and a pinned admin's name.
"""

import fcntl
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.file_lock import locked
from transport.problems import Problem
from transport.settings import sync_folder

log = logging.getLogger(__name__)

MAX_FILE = 4 << 20
MAX_FILES = 64
"""With the one that is written; then the oldest is removed."""
PAGE = 500
_FILE, _LOCK = "admin-audit.log", ".admin-audit.lock"
_FULL = "admin-audit.*.log"
"""Of earlier files, by the number of their first line, twelve digits."""
_TAIL = 16 << 10


@dataclass(frozen=True)
class Act:
    """What the holder of an API key did or, where it has a code, was refused. `at` is in Unix seconds."""

    at: int
    key: str
    act: str
    proposal: str | None = None
    admin: str | None = None
    code: str | None = None


class AuditLog:
    """The log in a state directory. All of the service's workers share it."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._file = state / _FILE

    def write(self, act: Act) -> None:
        """Add a line, durably; refuse (`audit-unwritable`) where that cannot be."""
        try:
            with locked(self._state / _LOCK, fcntl.LOCK_EX):
                self._write(act)
        except OSError as error:
            log.error("the audit log cannot be written: %s", error.strerror)  # noqa: TRY400  no fault of ours
            hint = (
                "the operator looks after the state directory's file system; nothing is done that is not written down"
            )
            raise Problem(503, "audit-unwritable", "the audit log cannot be written", hint=hint) from None

    def page(self, after: int) -> list[tuple[int, Act]]:
        """Return up to `PAGE` acts whose numbers are above `after`, by number; refuse (`audit-unreadable`)."""
        try:
            with locked(self._state / _LOCK, fcntl.LOCK_SH):
                found: list[tuple[int, Act]] = []
                for file in self._files(after):
                    found += [one for one in map(_parsed, file.read_bytes().splitlines()) if one and one[0] > after]
                    if len(found) >= PAGE:
                        break
        except OSError as error:
            log.error("the audit log cannot be read: %s", error.strerror)  # noqa: TRY400  as above
            hint = "the operator looks after the files admin-audit*.log of the state directory"
            raise Problem(503, "audit-unreadable", "the audit log cannot be read", hint=hint) from None
        return found[:PAGE]

    # --- files

    def _write(self, act: Act) -> None:
        number, size, whole = self._end()
        if size >= MAX_FILE:
            self._begin_another()
            size = 0
        line = json.dumps({"number": number + 1} | asdict(act), ensure_ascii=False).encode() + b"\n"
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line if whole or not size else b"\n" + line)
            file.flush()
            os.fsync(file.fileno())
        if not size:
            sync_folder(self._state)

    def _end(self) -> tuple[int, int, bool]:
        """Return the number of the last line, the size of the file that is written, and whether it ends with a line."""
        size, data = 0, b""
        try:
            with self._file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL))
                data = file.read()
        except FileNotFoundError:
            pass
        numbers = [one[0] for one in map(_parsed, data.splitlines()) if one]  # a line that was cut off by _TAIL is none
        if not numbers:  # it begins, or is damaged
            every = [one for file in self._files(0) for one in map(_parsed, file.read_bytes().splitlines())]
            numbers = [one[0] for one in every if one]
        return max(numbers, default=0), size, data.endswith(b"\n")

    def _begin_another(self) -> None:
        """Put the file that is full beside, under the number of its first line, and remove what is too old."""
        with self._file.open("rb") as file:
            first = next((one[0] for one in map(_parsed, file) if one), 0)
        full = self._full()
        self._file.replace(self._state / f"admin-audit.{first:012d}.log")
        for old in full[: max(0, len(full) + 2 - MAX_FILES)]:
            old.unlink(missing_ok=True)

    def _full(self) -> list[Path]:
        return sorted(self._state.glob(_FULL))

    def _files(self, after: int) -> list[Path]:
        """Return the files, oldest first, from the one that has the line after `after`."""
        full = self._full()
        first = max((place for place, file in enumerate(full) if _first(file) <= after + 1), default=0)
        return full[first:] + ([self._file] if self._file.exists() else [])


def _first(file: Path) -> int:
    digits = file.name.split(".")[1]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _parsed(line: bytes) -> tuple[int, Act] | None:
    """Return a line's number and act; None for one that was cut short by a crash."""
    try:
        entry: dict[str, Any] = json.loads(line)
        return int(entry.pop("number")), Act(**entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
