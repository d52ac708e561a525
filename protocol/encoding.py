"""Wire encoding: one description per message, from which encoder and decoder both follow.

A message is a frozen dataclass whose fields are annotated with their codec::

    @message("schnorr proof", version=1)
    class Proof:
        challenge: Annotated[bytes, SCALAR]
        response: Annotated[bytes, SCALAR]

    data = encode(proof)
    proof = decode(Proof, data)

Every encoding starts with a digest of the message's name and version and goes on with its fields in order, each of
fixed length or with its length before it. So it is injective over all messages, and no message reads as another.
Decoding refuses trailing bytes, wrong lengths and values out of range with `ProtocolError("malformed", ...)`.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import (
    Annotated,
    Any,
    Protocol,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from protocol import group
from protocol.errors import ProtocolError

M = TypeVar("M")


def malformed(what: str) -> ProtocolError:
    """Return the error for bytes that are no encoding; `what` names the place, never the bytes."""
    return ProtocolError("malformed", f"the message cannot be decoded: {what}")


class Reader:
    """A cursor over the bytes of one message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes; refuse when fewer are left."""
        end = self._at + count
        if end > len(self._data):
            raise malformed("it ends early")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def take_prefix(self, prefix: bytes) -> None:
        """Go on past these bytes; refuse others."""
        if not self._data.startswith(prefix, self._at):
            raise malformed("it is another message or another version")
        self._at += len(prefix)

    @property
    def at(self) -> int:
        """The place of the next byte."""
        return self._at

    def since(self, at: int) -> bytes:
        """Return what was read from a place on."""
        return self._data[at : self._at]

    def finish(self) -> None:
        """Refuse bytes left over."""
        if self._at != len(self._data):
            raise malformed("bytes are left over")


class Codec(Protocol):
    """How one field is written and read. `write` checks what `read` would refuse."""

    def write(self, value: Any, out: bytearray) -> None:
        """Append the encoding of `value`."""

    def read(self, reader: Reader) -> Any:
        """Read one value."""


class UInt:
    """An unsigned big-endian integer of 8 to 256 bits, no greater than `most`."""

    def __init__(self, bits: int, *, least: int = 0, most: int | None = None) -> None:
        self._size = bits // 8
        self._least = least
        self._most = (1 << bits) - 1 if most is None else most

    def _check(self, value: int) -> int:
        if not self._least <= value <= self._most:
            raise malformed("a number is out of range")
        return value

    def write(self, value: int, out: bytearray) -> None:
        """Append `value` in big-endian order."""
        out += self._check(value).to_bytes(self._size, "big")

    def read(self, reader: Reader) -> int:
        """Read a number and check its range."""
        return self._check(int.from_bytes(reader.take(self._size), "big"))

    def read_many(self, reader: Reader, count: int) -> list[int]:
        """Read that many numbers, as one by one."""
        data, size = reader.take(count * self._size), self._size
        values = [int.from_bytes(data[at : at + size], "big") for at in range(0, len(data), size)]
        if values and not self._least <= min(values) <= max(values) <= self._most:
            raise malformed("a number is out of range")
        return values


class Fixed:
    """Exactly `size` bytes, which `check` (if given) must accept."""

    def __init__(self, size: int, check: Callable[[bytes], bool] | None = None) -> None:
        self.size = size
        self._check = check

    def _checked(self, value: bytes) -> bytes:
        if len(value) != self.size:
            raise malformed("a field has the wrong length")
        if self._check is not None and not self._check(value):
            raise malformed("a point or scalar is not canonical")
        return value

    def write(self, value: bytes, out: bytearray) -> None:
        """Append the bytes."""
        out += self._checked(value)

    def read(self, reader: Reader) -> bytes:
        """Read and check the bytes."""
        return self._checked(reader.take(self.size))


class Blob:
    """Up to `most` bytes, their count (4 bytes) before them."""

    def __init__(self, most: int) -> None:
        self._count = UInt(32, most=most)

    def write(self, value: bytes, out: bytearray) -> None:
        """Append count and bytes."""
        self._count.write(len(value), out)
        out += value

    def read(self, reader: Reader) -> bytes:
        """Read count and bytes."""
        return reader.take(self._count.read(reader))


class Text:
    """1 to `most` bytes of UTF-8, their count before them: 1 byte, or 2 where `most` is above 255."""

    def __init__(self, most: int = 64) -> None:
        self._count = UInt(8 if most < 1 << 8 else 16, least=1, most=most)

    def write(self, value: str, out: bytearray) -> None:
        """Append count and bytes."""
        try:
            data = value.encode()
        except UnicodeEncodeError:
            raise malformed("a text is not Unicode") from None
        self._count.write(len(data), out)
        out += data

    def read(self, reader: Reader) -> str:
        """Read count and text."""
        try:
            return reader.take(self._count.read(reader)).decode()
        except UnicodeDecodeError:
            raise malformed("a text is not UTF-8") from None


class Maybe:
    """A value or None, told apart by one byte."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def write(self, value: Any, out: bytearray) -> None:
        """Append 0, or 1 and the value."""
        out.append(value is not None)
        if value is not None:
            self._codec.write(value, out)

    def read(self, reader: Reader) -> Any:
        """Read 0, or 1 and the value."""
        flag = reader.take(1)[0]
        if flag > 1:
            raise malformed("a flag is neither 0 nor 1")
        return self._codec.read(reader) if flag else None


class Seq:
    """`least` to `most` values of one codec as a tuple, their count (4 bytes) before them."""

    def __init__(self, codec: Codec, *, least: int = 0, most: int) -> None:
        self._codec = codec
        self._count = UInt(32, least=least, most=most)

    def write(self, values: tuple[Any, ...], out: bytearray) -> None:
        """Append count and values."""
        self._count.write(len(values), out)
        for value in values:
            self._codec.write(value, out)

    def read(self, reader: Reader) -> tuple[Any, ...]:
        """Read count and values."""
        count = self._count.read(reader)
        if isinstance(self._codec, UInt):
            return tuple(self._codec.read_many(reader, count))
        return tuple([self._codec.read(reader) for _ in range(count)])


class Nested:
    """A message within a message."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind

    def write(self, value: Any, out: bytearray) -> None:
        """Append the message with its own prefix."""
        if type(value) is not self._kind:
            raise malformed("a nested message is of another kind")
        _write(value, out)

    def read(self, reader: Reader) -> Any:
        """Read a message of the kind."""
        return _read(self._kind, reader)


ID = Fixed(16)
HASH = Fixed(32)
_is_element = lru_cache(maxsize=1024)(group.is_element)
"""A point that a process passes on to several others, or meets again in an envelope, is checked once."""
POINT = Fixed(group.POINT_BYTES, _is_element)
SCALAR = Fixed(group.SCALAR_BYTES, group.is_scalar)
NAME = Text(64)

PREFIX_BYTES = 8


@dataclass_transform(frozen_default=True)
def message(name: str, *, version: int, kept: bool = False) -> Callable[[type[M]], type[M]]:
    """Make a class a frozen dataclass with a wire form. Fields cannot be reordered or changed within a version.

    Values of one that is `kept` keep their encoding, for what is written many times over.
    """

    def apply(cls: type[M]) -> type[M]:
        made = dataclasses.dataclass(frozen=True, repr=False)(cls)
        made.__repr__ = lambda _: f"<{name}>"  # type: ignore[method-assign]  # messages may hold secrets
        fields = []
        for field_name, hint in get_type_hints(made, include_extras=True).items():
            if get_origin(hint) is not Annotated:
                raise TypeError(f"{cls.__name__}.{field_name} has no codec")
            fields.append((field_name, get_args(hint)[1]))
        prefix = hashlib.sha256(f"cover-lookup/{name}/{version}".encode()).digest()[:PREFIX_BYTES]
        made._wire = (prefix, tuple(fields), kept)  # type: ignore[attr-defined]  # noqa: SLF001  read by _write and _read alone
        return made

    return apply


_KEPT = "_encoded"
"""Where a kept message has its encoding: there is one for each value, and a frozen value stays what it is."""


def _wire(kind: type[Any]) -> tuple[bytes, tuple[tuple[str, Codec], ...], bool]:
    wire: tuple[bytes, tuple[tuple[str, Codec], ...], bool] = kind._wire  # noqa: SLF001  set by @message
    return wire


def _write(value: Any, out: bytearray) -> None:
    prefix, fields, is_kept = _wire(type(value))
    values, begin = value.__dict__, len(out)
    if is_kept and _KEPT in values:
        out += values[_KEPT]
        return
    out += prefix
    for name, codec in fields:
        codec.write(values[name], out)
    if is_kept:
        values[_KEPT] = bytes(out[begin:])


def _read(kind: type[M], reader: Reader) -> M:
    prefix, fields, is_kept = _wire(kind)
    begin = reader.at
    reader.take_prefix(prefix)
    value = kind.__new__(kind)
    values = value.__dict__  # past the frozen class's own way, which takes longer than all the rest
    for name, codec in fields:
        values[name] = codec.read(reader)
    if is_kept:
        values[_KEPT] = reader.since(begin)
    return value


def encode(value: object) -> bytes:
    """Return the wire form of a message."""
    out = bytearray()
    _write(value, out)
    return bytes(out)


def first_field(kind: type[Any], data: bytes) -> Any:
    """Return the first field of the message of that kind that `data` begins to encode; the rest is not read."""
    prefix, fields, _ = _wire(kind)
    reader = Reader(data)
    reader.take_prefix(prefix)
    return fields[0][1].read(reader)


def decode(kind: type[M], data: bytes) -> M:
    """Return the message of that kind that `data` encodes; refuse everything else."""
    reader = Reader(data)
    value = _read(kind, reader)
    reader.finish()
    return value
