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
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import (
    Annotated,
    Any,
    Protocol,
    TypeGuard,
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


class Codec(Protocol):
    """How one field is written and read. `write` checks what `read` would refuse."""

    def write(self, value: Any, out: list[bytes]) -> None:
        """Append the encoding of `value`, in one piece or more."""

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        """Return the value that begins at that place of the data, and the place where it ends."""


def _taken(data: bytes, at: int, count: int) -> tuple[bytes, int]:
    """Return so many bytes and the place where they end; refuse when fewer are left."""
    end = at + count
    if end > len(data):
        raise malformed("it ends early")
    return data[at:end], end


@lru_cache(maxsize=64)
def _alike(form: str, count: int) -> struct.Struct:
    """Return how so many fields of one form are read; who asks has seen that there are so many."""
    return struct.Struct(f">{count}{form}" if len(form) == 1 else ">" + form * count)


class UInt:
    """An unsigned big-endian integer of 8 to 256 bits, no greater than `most`."""

    def __init__(self, bits: int, *, least: int = 0, most: int | None = None) -> None:
        self._size = bits // 8
        self._least = least
        self._most = (1 << bits) - 1 if most is None else most
        self.form = {8: "B", 16: "H", 32: "I", 64: "Q"}.get(bits)
        """The code by which `struct` reads and writes it, together with its neighbours; None where it knows none."""
        self.refuses = (self._least, self._most) != (0, (1 << bits) - 1)
        self._raw = self.form or f"{self._size}s"
        self._unpack = struct.Struct(">" + self._raw).unpack_from

    def require(self, value: int) -> None:
        """Refuse a number out of range."""
        if not self._least <= value <= self._most:
            raise malformed("a number is out of range")

    def write(self, value: int, out: list[bytes]) -> None:
        """Append `value` in big-endian order."""
        if not self._least <= value <= self._most:
            raise malformed("a number is out of range")
        out.append(value.to_bytes(self._size, "big"))

    def read(self, data: bytes, at: int) -> tuple[int, int]:
        """Read a number and check its range."""
        try:
            (value,) = self._unpack(data, at)
        except struct.error:
            raise malformed("it ends early") from None
        if self.form is None:
            value = int.from_bytes(value, "big")
        if not self._least <= value <= self._most:
            raise malformed("a number is out of range")
        return value, at + self._size

    def write_many(self, values: tuple[int, ...], out: list[bytes]) -> None:
        """Append numbers, as one by one."""
        self.require(min(values))
        self.require(max(values))
        out += [value.to_bytes(self._size, "big") for value in values]

    def read_many(self, data: bytes, at: int, count: int) -> tuple[tuple[int, ...], int]:
        """Read that many numbers, as one by one."""
        end = at + count * self._size
        if end > len(data):
            raise malformed("it ends early")
        values = _alike(self._raw, count).unpack_from(data, at)
        if self.form is None:
            values = tuple(map(int.from_bytes, values))
        self.require(min(values))
        self.require(max(values))
        return values, end


class Fixed:
    """Exactly `size` bytes, which `check` (if given) must accept."""

    def __init__(self, size: int, check: Callable[[bytes], bool] | None = None) -> None:
        self.size = size
        self.form = f"{size}s"
        self.refuses = check is not None
        self._check = check

    def require(self, value: bytes) -> None:
        """Refuse bytes that are not so many, or that are not accepted."""
        if len(value) != self.size:
            raise malformed("a field has the wrong length")
        if self._check is not None and not self._check(value):
            raise malformed("a point or scalar is not canonical")

    def write(self, value: bytes, out: list[bytes]) -> None:
        """Append the bytes."""
        self.require(value)
        out.append(value)

    def read(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Read and check the bytes."""
        end = at + self.size
        value = data[at:end]
        self.require(value)
        return value, end

    def write_many(self, values: tuple[bytes, ...], out: list[bytes]) -> None:
        """Append pieces of bytes, as one by one."""
        for value in values:
            self.require(value)
        out += values

    def read_many(self, data: bytes, at: int, count: int) -> tuple[tuple[bytes, ...], int]:
        """Read that many pieces of bytes, as one by one."""
        end = at + count * self.size
        if end > len(data):
            raise malformed("it ends early")
        values = _alike(self.form, count).unpack_from(data, at)
        if self.refuses:
            for value in values:
                self.require(value)
        return values, end


class Blob:
    """Up to `most` bytes, their count (4 bytes) before them."""

    def __init__(self, most: int) -> None:
        self._count = UInt(32, most=most)

    def write(self, value: bytes, out: list[bytes]) -> None:
        """Append count and bytes."""
        self._count.write(len(value), out)
        out.append(value)

    def read(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Read count and bytes."""
        count, at = self._count.read(data, at)
        return _taken(data, at, count)


class Text:
    """1 to `most` bytes of UTF-8, their count before them: 1 byte, or 2 where `most` is above 255."""

    def __init__(self, most: int = 64) -> None:
        self._count = UInt(8 if most < 1 << 8 else 16, least=1, most=most)

    def write(self, value: str, out: list[bytes]) -> None:
        """Append count and bytes."""
        try:
            data = value.encode()
        except UnicodeEncodeError:
            raise malformed("a text is not Unicode") from None
        self._count.write(len(data), out)
        out.append(data)

    def read(self, data: bytes, at: int) -> tuple[str, int]:
        """Read count and text."""
        count, at = self._count.read(data, at)
        piece, end = _taken(data, at, count)
        try:
            return piece.decode(), end
        except UnicodeDecodeError:
            raise malformed("a text is not UTF-8") from None


class Maybe:
    """A value or None, told apart by one byte."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def write(self, value: Any, out: list[bytes]) -> None:
        """Append 0, or 1 and the value."""
        if value is None:
            out.append(b"\x00")
        else:
            out.append(b"\x01")
            self._codec.write(value, out)

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        """Read 0, or 1 and the value."""
        flag = data[at : at + 1]
        if flag == b"\x00":
            return None, at + 1
        if flag != b"\x01":
            raise malformed("a flag is neither 0 nor 1" if flag else "it ends early")
        return self._codec.read(data, at + 1)


class Seq:
    """`least` to `most` values of one codec as a tuple, their count (4 bytes) before them."""

    def __init__(self, codec: Codec, *, least: int = 0, most: int) -> None:
        self._codec = codec
        self._count = UInt(32, least=least, most=most)
        self._plain = codec if isinstance(codec, UInt | Fixed) else None

    def write(self, values: tuple[Any, ...], out: list[bytes]) -> None:
        """Append count and values."""
        self._count.write(len(values), out)
        if self._plain is None:
            write = self._codec.write
            for value in values:
                write(value, out)
        elif values:
            self._plain.write_many(values, out)

    def read(self, data: bytes, at: int) -> tuple[tuple[Any, ...], int]:
        """Read count and values."""
        count, at = self._count.read(data, at)
        if not count:
            return (), at
        if self._plain is not None:
            return self._plain.read_many(data, at, count)
        values, read = [], self._codec.read
        for _ in range(count):
            value, at = read(data, at)
            values.append(value)
        return tuple(values), at


class Nested:
    """A message within a message, with its own prefix."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        layout = _layout(kind)
        self.write, self.read = layout.write, layout.read


def _has_form(codec: Codec) -> TypeGuard[UInt | Fixed]:
    return isinstance(codec, UInt | Fixed) and codec.form is not None


_ANOTHER = "it is another message or another version"


class _Layout:
    """How a message is written and read: in steps, each of one field or of a run of neighbours that have a form.

    A step has the field's name, or None and the names of a run; what writes or reads; and what is checked of a run.
    """

    def __init__(self, kind: type[Any], prefix: bytes, fields: Sequence[tuple[str, Codec]], *, is_kept: bool) -> None:
        self._kind, self._prefix, self._is_kept = kind, prefix, is_kept
        self._writing: list[tuple[Any, ...]] = []
        self._reading: list[tuple[Any, ...]] = []
        for _, neighbours in groupby(fields, lambda field: _has_form(field[1])):
            run = list(neighbours)
            codecs = [codec for _, codec in run if _has_form(codec)]
            if len(codecs) > 1:
                self._add_run(tuple(name for name, _ in run), codecs)
            else:
                self._writing += [(name, None, codec.write, (), ()) for name, codec in run]
                self._reading += [(name, (), codec.read, 0, ()) for name, codec in run]

    def _add_run(self, names: tuple[str, ...], codecs: list[UInt | Fixed]) -> None:
        run = struct.Struct(">" + "".join(str(codec.form) for codec in codecs))
        lengths = tuple((place, codec.size) for place, codec in enumerate(codecs) if isinstance(codec, Fixed))
        checks = tuple((place, codec.require) for place, codec in enumerate(codecs) if codec.refuses)
        self._writing.append((None, itemgetter(*names), run.pack, lengths, checks))
        self._reading.append((None, names, run.unpack_from, run.size, checks))

    def write(self, value: Any, out: list[bytes]) -> None:
        """Append a message of the kind; refuse another."""
        if type(value) is not self._kind:
            raise malformed("a nested message is of another kind")
        values, begin = value.__dict__, len(out)
        if self._is_kept and _KEPT in values:
            out.append(values[_KEPT])
            return
        out.append(self._prefix)
        for name, take, write, lengths, checks in self._writing:
            if name is not None:
                write(values[name], out)
                continue
            run = take(values)
            for place, length in lengths:  # bytes of another length would be padded or cut
                if len(run[place]) != length:
                    raise malformed("a field has the wrong length")
            for place, check in checks:
                check(run[place])
            try:
                out.append(write(*run))
            except struct.error:
                raise malformed("a field is out of range") from None
        if self._is_kept:
            values[_KEPT] = b"".join(out[begin:])
            out[begin:] = [values[_KEPT]]

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        """Read a message of the kind."""
        if not data.startswith(self._prefix, at):
            raise malformed(_ANOTHER)
        begin, at = at, at + PREFIX_BYTES
        value = object.__new__(self._kind)
        values = value.__dict__  # past the frozen class's own way, which takes longer than all the rest
        for name, names, read, size, checks in self._reading:
            if name is not None:
                values[name], at = read(data, at)
                continue
            try:
                run = read(data, at)
            except struct.error:
                raise malformed("it ends early") from None
            for place, check in checks:
                check(run[place])
            for each, one in zip(names, run):  # noqa: B905  there are as many, and to check it takes long
                values[each] = one
            at += size
        if self._is_kept:
            values[_KEPT] = data[begin:at]
        return value, at


ID = Fixed(16)
HASH = Fixed(32)
_is_element = lru_cache(maxsize=1024)(group.is_element)
"""A point that a process passes on to several others, or meets again in an envelope, is checked once."""
POINT = Fixed(group.POINT_BYTES, _is_element)
SCALAR = Fixed(group.SCALAR_BYTES, group.is_scalar)
NAME = Text(64)

PREFIX_BYTES = 8
_kinds: dict[bytes, type[Any]] = {}


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
        made._wire = (prefix, tuple(fields), kept)  # type: ignore[attr-defined]  # noqa: SLF001  for `first_field`, and for tests
        made._layout = _Layout(made, prefix, fields, is_kept=kept)  # type: ignore[attr-defined]  # noqa: SLF001  for `_layout` alone
        _kinds.setdefault(prefix, made)
        return made

    return apply


_KEPT = "_encoded"
"""Where a kept message has its encoding: there is one for each value, and a frozen value stays what it is."""


def _layout(kind: type[Any]) -> _Layout:
    layout: _Layout = kind._layout  # noqa: SLF001  set by @message
    return layout


def encode(value: object) -> bytes:
    """Return the wire form of a message."""
    out: list[bytes] = []
    _layout(type(value)).write(value, out)
    return b"".join(out)


def first_field(kind: type[Any], data: bytes) -> Any:
    """Return the first field of the message of that kind that `data` begins to encode; the rest is not read."""
    prefix, fields, _ = kind._wire  # noqa: SLF001  set by @message
    if not data.startswith(prefix):
        raise malformed(_ANOTHER)
    value, _ = fields[0][1].read(data, PREFIX_BYTES)
    return value


def kind_of(data: bytes) -> type[Any] | None:
    """Return the kind of message as which `data` begins, of those that are imported; for who looks on."""
    return _kinds.get(data[:PREFIX_BYTES])


def decode(kind: type[M], data: bytes) -> M:
    """Return the message of that kind that `data` encodes; refuse everything else."""
    value: M
    value, end = _layout(kind).read(data, 0)
    if end != len(data):
        raise malformed("bytes are left over")
    return value
