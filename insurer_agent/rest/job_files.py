"""The files of jobs: checks as CSV, and answers as JSON lines or as CSV that Excel opens.

Answers name items by `index`, 0 for the first, and `reference`: no document and no amount stands in them.
"""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from insurer_agent.intake.rejects import escape
from transport.problems import Problem

COLUMNS = ("document_type", "document_number", "rule", "proposed_amount")
OPTIONAL = "reference"
ANSWER_COLUMNS = (
    *("index", "reference", "rule", "rule_version", "verdict", "advice", "reason", "window_from", "window_to"),
    *("checked_at", "check_id", "members", "current", "problem", "detail", "budget_until", "budget_until_is"),
)
CSV, JSON_LINES = "text/csv", "application/x-ndjson"
FORMATS = {"csv": CSV, "jsonl": JSON_LINES}
_HINT = f"send UTF-8 with commas, under a header that names {', '.join(COLUMNS)}, and {OPTIONAL} if you like"


def read_csv(data: bytes) -> tuple[int, Iterator[Any]]:
    """Return how many rows there are, and them as a request has its items; blank lines are none.

    Refuses (`csv-malformed`, `csv-header`) what is no CSV, or has other columns. A row with too few cells, or too many,
    is an item that is bad.
    """
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        rows = [row for row in reader if row]
    except (UnicodeDecodeError, csv.Error):
        raise Problem(422, "csv-malformed", "the body is no CSV in UTF-8", hint=_HINT) from None
    header = [name.strip() for name in rows[0]] if rows else []
    if sorted(header) not in (sorted(COLUMNS), sorted((*COLUMNS, OPTIONAL))):
        raise Problem(422, "csv-header", "the columns are others", hint=_HINT)
    return len(rows) - 1, (_item(header, row) for row in rows[1:])


def _item(header: list[str], row: list[str]) -> Any:  # noqa: ANN401  JSON
    if len(row) != len(header):
        return {f"{len(row)} cells": None}  # which is no field, as the item's problem says
    cells = dict(zip(header, row, strict=True))
    subject = {name: cells.pop(name).strip() for name in ("document_type", "document_number")}
    return {"subject": subject, **cells, "rule": cells["rule"].strip(), OPTIONAL: cells.get(OPTIONAL) or None}


def json_lines(answers: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield a line an item: what POST /v1/checks answers, or the item's problem, with its `index`."""
    for place, answer in answers:
        yield json.dumps({"index": place} | json.loads(answer)).encode() + b"\n"


def csv_lines(answers: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield the header, and a row an item and rule; an item that was bad has a `problem` and no verdict.

    Cells that Excel would run as formulas, or take for numbers and dates, have an apostrophe in front.
    """
    yield b"\xef\xbb\xbf" + _line(ANSWER_COLUMNS)
    for place, answer in answers:
        body = json.loads(answer)
        for result in body.get("results", [body]):
            yield _line([escape(cell) for cell in _cells(place, body, result)])


def _cells(place: int, body: dict[str, Any], result: dict[str, Any]) -> list[str]:
    found = body | result | body.get("completeness", {}) | {"index": place, "problem": body.get("code")}
    window = result.get("window", {})
    found |= {"window_from": window.get("from"), "window_to": window.get("to")}
    return ["" if found.get(name) is None else str(found[name]) for name in ANSWER_COLUMNS]


def _line(cells: Any) -> bytes:  # noqa: ANN401  a sequence of text
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode(errors="replace")
