"""Which encoding and delimiter a CSV file has, by looking at all of it and at its header."""

import codecs
from pathlib import Path

from insurer_agent.intake.csv_rows import CsvRows, PhysicalLines
from insurer_agent.intake.errors import FileRejected
from insurer_agent.intake.layout import Layout, find_layout
from insurer_agent.intake.profile import Profile
from insurer_agent.intake.rejects import is_rejects_file

DELIMITERS = (",", ";", "\t")
MAX_LINES_WEIGHED = 10_000
"""Lines that are not ASCII; further ones would not change the outcome."""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def open_csv(path: Path, profile: Profile) -> tuple[CsvRows, Layout]:
    """Return a CSV file's rows with the layout of its header; raise FileRejected or OSError.

    The delimiter is the one by which the header names most columns: counting characters would be misled by titles
    and amounts.
    """
    with path.open("rb") as file:
        start = file.readline(64 * 1024)
    if start.startswith(_UTF16):
        raise FileRejected("header-malformed", "the file is UTF-16; save it as CSV UTF-8")
    encoding, delimiter = profile.encoding, profile.delimiter
    if is_rejects_file(start):  # of our making, whatever the file was like that its rows came from
        encoding, delimiter = None, None
        profile = profile.of_rejects()
    if start.startswith(codecs.BOM_UTF8):
        encoding = "utf-8"
    elif encoding is None:
        encoding = _likelier_encoding(path)
    best: tuple[CsvRows, Layout] | None = None
    fault: FileRejected | None = None
    for one in DELIMITERS if delimiter is None else (delimiter,):
        rows = CsvRows(path, encoding, one)
        try:
            layout = find_layout(rows.rows(), profile)
        except FileRejected as rejection:
            fault = fault or rejection
            continue
        if best is None or layout.rank > best[1].rank:
            best = rows, layout
    if fault is not None and (best is None or not best[1].places):
        raise fault
    assert best is not None  # each delimiter has led to a layout or a fault
    return best


def _likelier_encoding(path: Path) -> str:
    """Return the encoding of which more lines are: UTF-8 shows itself, since hardly any other text is valid UTF-8."""
    utf8 = gb18030 = 0
    with path.open("rb") as file:
        lines = PhysicalLines(file)
        while (line := lines.take()) and utf8 + gb18030 < MAX_LINES_WEIGHED:
            if line.isascii():
                continue
            if _is(line, "utf-8"):
                utf8 += 1
            elif _is(line, "gb18030"):
                gb18030 += 1
    return "gb18030" if gb18030 > utf8 else "utf-8"


def _is(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
