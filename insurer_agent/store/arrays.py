"""Arrays as PostgreSQL reads them: psycopg's own way with lists takes longer than the rest of a small statement."""

from collections.abc import Iterable


def text_array(values: Iterable[str]) -> str:
    """Return an array of texts, or of what PostgreSQL reads from texts."""
    return "{" + ",".join('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values) + "}"


def bytes_array(values: Iterable[bytes]) -> str:
    """Return an array of bytea."""
    return text_array("\\x" + value.hex() for value in values)
