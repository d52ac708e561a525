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

Each hop of a check writes and reads a handful of messages, a hundred fields. So of each kind a writer and a reader are
made when they are first used, as functions in Python's own code, as `dataclasses` makes its `__init__`: neighbours of
fixed length by one `struct`, messages within messages in line.
"""

import dataclasses
import hashlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import count, groupby
from typing import Annotated, Any, TypeGuard, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from protocol import group
from protocol.errors import ProtocolError

M = TypeVar("M")
Write = Callable[[Any, list[bytes]], None]
"""Appends the encoding of a value, in one piece or more; refuses what could not be read."""
Read = Callable[[bytes, int], tuple[Any, int]]
"""Returns the value that begins at that place of the data, and the place where it ends."""


def malformed(what: str) -> ProtocolError:
    """Return the error for bytes that are no encoding; `what` names the place, never the bytes."""
    return ProtocolError("malformed", f"the message cannot be decoded: {what}")


_SHORT = "it ends early"
_RANGE = "a number is out of range"
_LENGTH = "a field has the wrong length"


class _Code:
    """A writer or reader that is being made: lines of Python, and the objects that they name.

    In it are `out`, the list of what has been written, or `data` and `at`, what is read from which place on. No line
    has anything of a message's content, but for its fields' names.
    """

    def __init__(self) -> None:
        self._names: dict[str, Any] = {"malformed": malformed, "new": object.__new__, "alike": _alike}
        self._lines: list[str] = []
        self._depth = 2
        self._numbers = count()

    def add(self, line: str) -> None:
        """Add a line."""
        self._lines.append("    " * self._depth + line)

    @contextmanager
    def under(self, head: str) -> Iterator[None]:
        """Add what stands under a line that ends in a colon."""
        self.add(head)
        self._depth += 1
        yield
        self._depth -= 1

    def refuse(self, condition: str, what: str) -> None:
        """Add that the message is malformed if so."""
        self.add(f"if {condition}: raise malformed({what!r})")

    def variable(self) -> str:
        """Return a name that nothing else has."""
        return f"v{next(self._numbers)}"

    def bound(self, value: object) -> str:
        """Return a name for an object."""
        name = f"c{next(self._numbers)}"
        self._names[name] = value
        return name

    def writer(self) -> Write:
        """Return the function that writes `value`."""
        errors = {"(struct.error, OverflowError)": _RANGE, "UnicodeEncodeError": "a text is not Unicode"}
        write: Write = self._function("value, out", errors)
        return write

    def reader(self) -> Read:
        """Return the function that reads `value`."""
        self.add("return value, at")
        errors = {"struct.error": _SHORT, "UnicodeDecodeError": "a text is not UTF-8"}
        read: Read = self._function("data, at", errors)
        return read

    def _function(self, parameters: str, errors: dict[str, str]) -> Any:
        lines = [f"def made({parameters}):", "    try:", *self._lines]
        for error, what in errors.items():
            lines += [f"    except {error}:", f"        raise malformed({what!r}) from None"]
        made: dict[str, Any] = {}
        exec("\n".join(lines), self._names | {"struct": struct}, made)  # noqa: S102  our own lines
        return made["made"]


@lru_cache(maxsize=64)
def _alike(form: str, many: int) -> struct.Struct:
    """Return how so many fields of one form are read; who asks has seen that there are so many."""
    return struct.Struct(f">{many}{form}" if len(form) == 1 else ">" + form * many)


class Codec(ABC):
    """How one field is written and read. `writing` and `reading` add the lines for a value that has a name."""

    @abstractmethod
    def writing(self, code: _Code, value: str) -> None:
        """Append the value to `out`, or refuse what `reading` would."""

    @abstractmethod
    def reading(self, code: _Code, value: str) -> None:
        """Read the value from `data`, and move `at` behind it."""

    @cached_property
    def write(self) -> Write:
        """What writes the field alone."""
        code = _Code()
        self.writing(code, "value")
        return code.writer()

    @cached_property
    def read(self) -> Read:
        """What reads the field alone."""
        code = _Code()
        self.reading(code, "value")
        return code.reader()


class UInt(Codec):
    """An unsigned big-endian integer of 8 to 256 bits, no greater than `most`."""

    def __init__(self, bits: int, *, least: int = 0, most: int | None = None) -> None:
        self.size = bits // 8
        self._least = least
        self._most = (1 << bits) - 1 if most is None else most
        self.form = {8: "B", 16: "H", 32: "I", 64: "Q"}.get(bits)
        """The code by which `struct` writes and reads it, together with its neighbours; None where it knows none."""
        self._is_whole = (self._least, self._most) == (0, (1 << bits) - 1)

    def judging(self, code: _Code, least: str, greatest: str = "") -> None:
        """Refuse a number, or one of several, out of range, but for what its size refuses itself."""
        if not self._is_whole:
            code.refuse(f"{least} < {self._least} or {greatest or least} > {self._most}", _RANGE)

    def writing(self, code: _Code, value: str) -> None:
        """Append `value` in big-endian order."""
        self.judging(code, value)
        if self.form is None:
            code.add(f"out.append({value}.to_bytes({self.size}, 'big'))")
        else:
            code.add(f"out.append({code.bound(struct.Struct('>' + self.form).pack)}({value}))")

    def reading(self, code: _Code, value: str) -> None:
        """Read a number and check its range."""
        if self.form is None:
            code.refuse(f"at + {self.size} > len(data)", _SHORT)
            code.add(f"{value} = int.from_bytes(data[at:at + {self.size}], 'big')")
        else:
            code.add(f"({value},) = {code.bound(struct.Struct('>' + self.form).unpack_from)}(data, at)")
        code.add(f"at += {self.size}")
        self.judging(code, value)

    def writing_many(self, code: _Code, values: str) -> None:
        """Append numbers, at least one, as one by one."""
        self.judging(code, f"min({values})", f"max({values})")
        if self.form is None:
            code.add(f"out += [one.to_bytes({self.size}, 'big') for one in {values}]")
        else:
            code.add(f"out.append(alike({self.form!r}, len({values})).pack(*{values}))")

    def reading_many(self, code: _Code, values: str, many: str) -> None:
        """Read that many numbers, at least one, as one by one."""
        raw = self.form or f"{self.size}s"
        code.refuse(f"at + {self.size} * {many} > len(data)", _SHORT)
        code.add(f"{values} = alike({raw!r}, {many}).unpack_from(data, at)")
        code.add(f"at += {self.size} * {many}")
        if self.form is None:
            code.add(f"{values} = tuple([int.from_bytes(one, 'big') for one in {values}])")
        self.judging(code, f"min({values})", f"max({values})")


class Fixed(Codec):
    """Exactly `size` bytes, which `check` (if given) must accept."""

    def __init__(self, size: int, check: Callable[[bytes], bool] | None = None) -> None:
        self.size = size
        self.form = f"{size}s"
        self._check = check

    def judging(self, code: _Code, value: str) -> None:
        """Refuse bytes that are not accepted."""
        if self._check is not None:
            code.refuse(f"not {code.bound(self._check)}({value})", "a point or scalar is not canonical")

    def measuring(self, code: _Code, value: str) -> None:
        """Refuse bytes that are not so many: `struct` would pad or cut them."""
        code.refuse(f"len({value}) != {self.size}", _LENGTH)

    def writing(self, code: _Code, value: str) -> None:
        """Append the bytes."""
        self.measuring(code, value)
        self.judging(code, value)
        code.add(f"out.append({value})")

    def reading(self, code: _Code, value: str) -> None:
        """Read and check the bytes."""
        code.add(f"{value} = data[at:at + {self.size}]")
        self.measuring(code, value)
        code.add(f"at += {self.size}")
        self.judging(code, value)

    def writing_many(self, code: _Code, values: str) -> None:
        """Append pieces of bytes, as one by one."""
        one = code.variable()
        with code.under(f"for {one} in {values}:"):
            self.measuring(code, one)
            self.judging(code, one)
        code.add(f"out += {values}")

    def reading_many(self, code: _Code, values: str, many: str) -> None:
        """Read that many pieces of bytes, as one by one."""
        code.refuse(f"at + {self.size} * {many} > len(data)", _SHORT)
        code.add(f"{values} = alike({self.form!r}, {many}).unpack_from(data, at)")
        code.add(f"at += {self.size} * {many}")
        if self._check is not None:
            one = code.variable()
            with code.under(f"for {one} in {values}:"):
                self.judging(code, one)


class Blob(Codec):
    """Up to `most` bytes, their count (4 bytes) before them."""

    def __init__(self, most: int) -> None:
        self._count = UInt(32, most=most)

    def writing(self, code: _Code, value: str) -> None:
        """Append count and bytes."""
        many = code.variable()
        code.add(f"{many} = len({value})")
        self._count.writing(code, many)
        code.add(f"out.append({value})")

    def reading(self, code: _Code, value: str) -> None:
        """Read count and bytes."""
        _reading_counted(code, self._count, value)


class Text(Codec):
    """1 to `most` bytes of UTF-8, their count before them: 1 byte, or 2 where `most` is above 255."""

    def __init__(self, most: int = 64) -> None:
        self._count = UInt(8 if most < 1 << 8 else 16, least=1, most=most)

    def writing(self, code: _Code, value: str) -> None:
        """Append count and bytes."""
        text, many = code.variable(), code.variable()
        code.add(f"{text} = {value}.encode()")
        code.add(f"{many} = len({text})")
        self._count.writing(code, many)
        code.add(f"out.append({text})")

    def reading(self, code: _Code, value: str) -> None:
        """Read count and text."""
        _reading_counted(code, self._count, value)
        code.add(f"{value} = {value}.decode()")


def _reading_counted(code: _Code, counted: UInt, value: str) -> None:
    many = code.variable()
    counted.reading(code, many)
    code.add(f"{many} += at")
    code.refuse(f"{many} > len(data)", _SHORT)
    code.add(f"{value} = data[at:{many}]")
    code.add(f"at = {many}")


class Maybe(Codec):
    """A value or None, told apart by one byte."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def writing(self, code: _Code, value: str) -> None:
        """Append 0, or 1 and the value."""
        with code.under(f"if {value} is None:"):
            code.add("out.append(b'\\0')")
        with code.under("else:"):
            code.add("out.append(b'\\1')")
            self._codec.writing(code, value)

    def reading(self, code: _Code, value: str) -> None:
        """Read 0, or 1 and the value."""
        flag = code.variable()
        UInt(8, most=1).reading(code, flag)
        with code.under(f"if {flag}:"):
            self._codec.reading(code, value)
        with code.under("else:"):
            code.add(f"{value} = None")


class Seq(Codec):
    """`least` to `most` values of one codec as a tuple, their count (4 bytes) before them."""

    def __init__(self, codec: Codec, *, least: int = 0, most: int) -> None:
        self._codec = codec
        self._count = UInt(32, least=least, most=most)

    def writing(self, code: _Code, value: str) -> None:
        """Append count and values."""
        many, one = code.variable(), code.variable()
        code.add(f"{many} = len({value})")
        self._count.writing(code, many)
        if isinstance(self._codec, UInt | Fixed):
            with code.under(f"if {many}:"):
                self._codec.writing_many(code, value)
        else:
            with code.under(f"for {one} in {value}:"):
                self._codec.writing(code, one)

    def reading(self, code: _Code, value: str) -> None:
        """Read count and values."""
        many, one, place = code.variable(), code.variable(), code.variable()
        self._count.reading(code, many)
        code.add(f"{value} = ()")
        with code.under(f"if {many}:"):
            if isinstance(self._codec, UInt | Fixed):
                self._codec.reading_many(code, value, many)
            else:
                code.add(f"{value} = []")
                with code.under(f"for {place} in range({many}):"):
                    self._codec.reading(code, one)
                    code.add(f"{value}.append({one})")
                code.add(f"{value} = tuple({value})")


class Nested(Codec):
    """A message within a message, with its own prefix."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind

    def writing(self, code: _Code, value: str) -> None:
        """Append the message, prefix and all."""
        _layout(self._kind).writing(code, value)

    def reading(self, code: _Code, value: str) -> None:
        """Read the message, prefix and all."""
        _layout(self._kind).reading(code, value)


def _has_form(codec: Codec) -> TypeGuard[UInt | Fixed]:
    return isinstance(codec, UInt | Fixed) and codec.form is not None


_ANOTHER = "it is another message or another version"
_KEPT = "_encoded"
"""Where a kept message has its encoding: there is one for each value, and a frozen value stays what it is."""


class _Layout(Codec):
    """How a message is written and read: its prefix and its fields, of which neighbours that have a form go at once."""

    def __init__(self, kind: type[Any], prefix: bytes, fields: Sequence[tuple[str, Codec]], *, is_kept: bool) -> None:
        self._kind, self._prefix, self._is_kept = kind, prefix, is_kept
        self._runs: list[list[tuple[str, Codec]]] = []
        """Neighbours that have a form; and by themselves those that have none."""
        for formed, neighbours in groupby(fields, lambda field: _has_form(field[1])):
            run = list(neighbours)
            self._runs += [run] if formed else [[field] for field in run]
        if not self._runs or not _has_form(self._runs[0][0][1]):
            self._runs.insert(0, [])  # of the prefix alone

    def writing(self, code: _Code, value: str) -> None:
        """Append a message of the kind; refuse another."""
        code.refuse(f"type({value}) is not {code.bound(self._kind)}", "a nested message is of another kind")
        if not self._is_kept:
            self._writing_fields(code, value)
            return
        kept, begin = code.variable(), code.variable()
        code.add(f"{kept} = {value}.__dict__.get({_KEPT!r})")
        with code.under(f"if {kept} is not None:"):
            code.add(f"out.append({kept})")
        with code.under("else:"):
            code.add(f"{begin} = len(out)")
            self._writing_fields(code, value)
            code.add(f"out[{begin}:] = [{value}.__dict__.setdefault({_KEPT!r}, b''.join(out[{begin}:]))]")

    def _writing_fields(self, code: _Code, value: str) -> None:
        for place, run in enumerate(self._runs):
            names = [code.variable() for _ in run]
            for (name, _), one in zip(run, names, strict=True):
                code.add(f"{one} = {value}.{name}")
            codecs = [codec for _, codec in run if _has_form(codec)]
            if run and not codecs:
                run[0][1].writing(code, names[0])
                continue
            for codec, one in zip(codecs, names, strict=True):
                if isinstance(codec, Fixed):
                    codec.measuring(code, one)
                codec.judging(code, one)
            if place == 0:
                names.insert(0, code.bound(self._prefix))
            code.add(f"out.append({code.bound(_together(codecs, has_prefix=place == 0).pack)}({', '.join(names)}))")

    def reading(self, code: _Code, value: str) -> None:
        """Read a message of the kind."""
        begin, values, prefix = code.variable(), code.variable(), code.variable()
        if self._is_kept:
            code.add(f"{begin} = at")
        read = []
        for place, run in enumerate(self._runs):
            names = [code.variable() for _ in run]
            read += [(name, one) for (name, _), one in zip(run, names, strict=True)]
            codecs = [codec for _, codec in run if _has_form(codec)]
            if run and not codecs:
                run[0][1].reading(code, names[0])
                continue
            together = _together(codecs, has_prefix=place == 0)
            taken = [prefix, *names] if place == 0 else names
            code.add(f"{', '.join(taken)}, = {code.bound(together.unpack_from)}(data, at)")
            code.add(f"at += {together.size}")
            if place == 0:
                code.refuse(f"{prefix} != {code.bound(self._prefix)}", _ANOTHER)
            for codec, one in zip(codecs, names, strict=True):
                codec.judging(code, one)
        code.add(f"{value} = new({code.bound(self._kind)})")
        # Past the frozen class's own way, which takes longer than all the rest.
        code.add(f"{values} = {value}.__dict__")
        for name, one in read:
            code.add(f"{values}[{name!r}] = {one}")
        if self._is_kept:
            code.add(f"{values}[{_KEPT!r}] = data[{begin}:at]")


def _together(codecs: Sequence[UInt | Fixed], *, has_prefix: bool) -> struct.Struct:
    prefix = f"{PREFIX_BYTES}s" if has_prefix else ""
    return struct.Struct(">" + prefix + "".join([str(codec.form) for codec in codecs]))


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
