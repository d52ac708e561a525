"""What the intake refuses: one value of one row, or a whole file.

Both carry a stable `code` for programs and a `reason` for the insurer's data people. A reason is made of
fixed words and of names from the file format only, never of text from the file: reasons are logged, sent to
support and shown on screens, and any cell may hold a person's number (columns get swapped).
"""

from typing import Self


class _RefusedError(Exception):
    """A refusal with a stable `code` and a `reason` that quotes nothing from the file."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (self.code, self.reason)  # what is pickled by default lacks the code


class IntakeError(_RefusedError):
    """One value was refused. The row that holds it is rejected; the rest of its file goes on."""


class FileRejected(_RefusedError):  # noqa: N818 - an outcome beside RejectedRow, and named like it
    """No row of the file can be trusted, so none was read."""
