"""Rejected rows as a file to be mended and imported again; see `intake/rejects.py` for its form."""

import csv
import os
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.intake.policy_file import PolicyFile
from insurer_agent.intake.rejects import ADDED_COLUMNS, escape
from transport.settings import SettingsError


def rejects_paths(path: Path, files: list[Path]) -> list[Path]:
    """Return where the rejects of each file go: to `path`, or beside it where several files have each a header."""
    if len(files) == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{place}-{file.stem}{path.suffix}") for place, file in enumerate(files, 1)]


def make_way(paths: list[Path], files: list[Path], *, force: bool) -> None:
    """Refuse to overwrite rejects, which someone may be mending; with `force`, remove them, but never what is imported.

    Raises SettingsError.
    """
    imported = {file.resolve() for file in files}
    for path in paths:
        if path.resolve() in imported:
            raise SettingsError(f"{path} is to be imported; write its rejects elsewhere")
        if path.exists() and not force:
            raise SettingsError(f"{path} exists; import the rows mended in it first, or use --force to overwrite it")
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(path, error) from None


class RejectsFile:
    """Rejects of one file, made with the first of them. It holds personal data: only its owner can read it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._text: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._text is not None and self._path is not None:
            try:
                self._text.close()
            except OSError as failure:
                raise _cannot_write(self._path, failure) from None

    def put(self, file: PolicyFile, row: PolicyRow | RejectedRow, code: str, reason: str) -> None:
        """Write a row as the file has it; raise SettingsError if that is not possible."""
        if self._path is None or row.raw is None:
            return
        cells = file.cells(row.raw, code)
        if cells is None:  # the row as one text; someone will see what it should have been
            cells = (row.raw.text, *[""] * (len(file.header) - 1))
        try:
            if self._text is None:
                self._text = _create(self._path)
                self._write([*map(escape, file.header), *ADDED_COLUMNS])
            self._write([*map(escape, cells), str(row.row), reason])
        except OSError as error:
            raise _cannot_write(self._path, error) from None

    def flush(self) -> None:
        """Have what was put so far in the file."""
        if self._text is not None and self._path is not None:
            try:
                self._text.flush()
            except OSError as error:
                raise _cannot_write(self._path, error) from None

    def _write(self, cells: list[str]) -> None:
        assert self._text is not None
        csv.writer(self._text).writerow(cells)


def _create(path: Path) -> TextIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    text = os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", newline="")
    text.write("\ufeff")
    return text


def _cannot_write(path: Path, error: OSError) -> SettingsError:
    return SettingsError(f"the rejects file {path} cannot be written: {error.strerror}")
