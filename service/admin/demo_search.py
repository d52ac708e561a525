"""The demonstration's search of everything that any party received for every identity and every amount.

Text is looked for in all bytes as they came. An amount in binary is six bytes, of which two or three are zeros: so much
stands somewhere in every few hundred megabytes, where a field ends and the length of the next begins. So the binary
forms are looked for in the messages' fields, each by itself, and in whole where bytes are no message.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

import numpy as np

from protocol.encoding import decode, kind_of
from protocol.errors import ProtocolError
from service.admin import demo_view as view
from service.admin.samples import LIMIT, Samples

KEY_BYTES = 6
BYTE = 255
_CHUNK = 1 << 22
_SEAM = b"\xff" * KEY_BYTES


@dataclass(frozen=True)
class Exchange:
    """One HTTP exchange as a party saw it."""

    party: str
    request: bytes = field(repr=False)
    response: bytes = field(repr=False)


@dataclass(frozen=True)
class Forms:
    """The ways to write what is looked for: `text` as UTF-8, `numbers` as six bytes, of either order."""

    text: frozenset[bytes] = field(repr=False)
    numbers: frozenset[bytes] = field(repr=False)


Piece = tuple[str, bytes]
"""Bytes, and the place where they were found."""


def search_all(exchanges: Sequence[Exchange], samples: Samples, files: Path, proposals: set[int]) -> view.Search:
    """Look for every identity, policy number and amount in everything captured, and in the insurers' files."""
    identities = {spelling.strip() for person in samples.people for spelling in person.spellings}
    identities |= {spelling.upper() for spelling in identities} | {policy.number for policy in samples.policies}
    fen = samples.amounts | proposals | {person.total for person in samples.people if person.total}
    amounts = forms_of(fen - {LIMIT})  # which is no secret: it stands in the manifest
    needles = Forms(amounts.text | {identity.encode() for identity in identities}, amounts.numbers)
    content = b"\n".join(file.read_bytes() for file in files.glob("*.csv"))
    return view.Search(
        parties=len({exchange.party for exchange in exchanges}),
        exchanges=len(exchanges),
        size=sum(len(exchange.request) + len(exchange.response) for exchange in exchanges),
        identities=len(identities),
        amounts=len(amounts.text) + len(amounts.numbers),
        found=places_of(exchanges, needles),
        found_in_files=len(occurring(content, needles.text | needles.numbers)),
    )


def forms_of(amounts: Iterable[int]) -> Forms:
    """Return the forms of amounts, in fen: as text in fen, in yuan and grouped; as the 48-bit number that is shared."""
    text, numbers = set(), set()
    for fen in amounts:
        yuan = f"{fen // 100}.{fen % 100:02d}"
        text |= {form.encode() for form in (str(fen), yuan, yuan.removesuffix(".00"), view.money(fen))}
        numbers |= {fen.to_bytes(KEY_BYTES, "big"), fen.to_bytes(KEY_BYTES, "little")}
    return Forms(frozenset(form for form in text if len(form) >= KEY_BYTES), frozenset(numbers))


def places_of(exchanges: Iterable[Exchange], forms: Forms) -> tuple[str, ...]:
    """Return where something looked for occurs, once for each form and place; never what it is."""
    whole = [
        (f"{exchange.party}, {side}", data)
        for exchange in exchanges
        for side, data in (("received", exchange.request), ("answered", exchange.response))
    ]
    single = [piece for place, data in whole for piece in _pieces(place, data)]
    found = {f"{place}: text" for place in _places(whole, forms.text)}
    found |= {f"{place}: an amount in binary" for place in _places(single, forms.numbers)}
    return tuple(sorted(found))


def _places(pieces: Sequence[Piece], needles: frozenset[bytes]) -> Iterator[str]:
    hits = occurring(_SEAM.join(data for _, data in pieces), needles)
    for place, data in pieces if hits else ():
        yield from (place for needle in hits if needle in data)


def _pieces(place: str, value: object) -> Iterator[Piece]:
    """Yield the fields of a message, and of the messages within it; other bytes as they are."""
    if isinstance(value, bytes):
        message = _message(value)
        yield from [(place, value)] if message is None else _pieces(f"{place}, {type(message).__name__}", message)
    elif isinstance(value, str):
        yield place, value.encode()
    elif isinstance(value, int):
        yield place, value.to_bytes(max(KEY_BYTES, (value.bit_length() + 7) // 8), "big")
    elif isinstance(value, tuple):
        if value and all(isinstance(one, int) and 0 <= one <= BYTE for one in value):
            yield place, bytes(value)
        for one in value:
            yield from _pieces(place, one)
    elif is_dataclass(value):
        for each in fields(value):
            yield from _pieces(f"{place}.{each.name}", getattr(value, each.name))


def _message(data: bytes) -> object | None:
    kind = kind_of(data)
    with suppress(ProtocolError):
        return None if kind is None else decode(kind, data)
    return None


def occurring(data: bytes, needles: Iterable[bytes]) -> set[bytes]:
    """Return the needles, of at least six bytes each, that occur in data.

    One pass for all of them: places whose first two bytes start some needle, then six, then the whole needle.
    """
    by_key: dict[int, list[bytes]] = defaultdict(list)
    for needle in needles:
        by_key[int.from_bytes(needle[:KEY_BYTES], "big")].append(needle)
    keys = np.array(sorted(by_key), dtype=np.uint64)
    starts = np.zeros(1 << 16, dtype=bool)
    starts[(keys >> np.uint64(32)).astype(np.int64)] = True
    found: set[bytes] = set()
    for begin in range(0, len(data), _CHUNK):
        piece = np.frombuffer(data[begin : begin + _CHUNK + KEY_BYTES - 1], dtype=np.uint8)
        if len(piece) < KEY_BYTES:
            break
        first = piece[: 1 - KEY_BYTES].astype(np.int64)
        places = np.flatnonzero(starts[first << 8 | piece[1 : len(first) + 1]])
        here = np.zeros(len(places), dtype=np.uint64)
        for offset in range(KEY_BYTES):
            here = here << np.uint64(8) | piece[places + offset]
        for place in places[np.isin(here, keys)]:
            at = begin + int(place)
            key = int.from_bytes(data[at : at + KEY_BYTES], "big")
            found.update(needle for needle in by_key[key] if data.startswith(needle, at))
    return found
