"""Arrays as PostgreSQL reads them: psycopg's own way with lists takes longer than the rest of a small statement."""

import datetime as dt
from collections.abc import Iterable


def text_array(values: Iterable[str]) -> str:
    """Return an array of texts."""
    quoted = ['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]
    return "{" + ",".join(quoted) + "}"


def plain_array(values: Iterable[int | dt.date]) -> str:
    """Return an array of numbers or days, none of which needs quotes."""
    return "{" + ",".join(map(str, values)) + "}"


def bytes_array(values: Iterable[bytes]) -> str:
    """Return an array of bytea."""
    return "{" + ",".join(['"\\\\x' + value.hex() + '"' for value in values]) + "}"
