"""JSON as every interface reads it."""

import json
from typing import Any


def parse_json(text: bytes) -> Any:  # noqa: ANN401  any JSON value; the caller says which are good
    """Return the value of UTF-8 JSON; raise ValueError or RecursionError.

    An object in which a name stands twice is refused: readers disagree on which of them counts.
    """
    return _DECODER.decode(text.decode("utf-8"))


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_each_name_once)
