"""What the fuzz tests share: how much is tried, how messages are bent, and a tally of what came of it.

FUZZ_FACTOR multiplies the examples; above 1 they are random, at 1 the same in every run. FUZZ_REPORT names a file to
which each suite's tally is appended, a line of JSON a suite. An everyday run tries a share of the examples. A plugin of
pytest too, hence: PYTEST_DONT_REWRITE.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from strategies import SHARE, values_of

import protocol
from protocol.encoding import Blob, Codec, Maybe, Nested, Seq, Text, UInt
from protocol.errors import ProtocolError

T = TypeVar("T")
Place = tuple[str | int, ...]

FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
EXAMPLES = 30 * FACTOR * SHARE
MEMBERS = 6
PERSON = ("passport", "E10000001")
"""For whom each member of the alliance whose endpoints are fuzzed has deposited 5 million yuan."""

KNOWN_CODES = frozenset(
    code
    for source in Path(protocol.__path__[0]).glob("*.py")
    for code in re.findall(r'ProtocolError\(\s*"([a-z-]+)"', source.read_text(encoding="utf-8"))
)
"""Every code that the protocol's source refuses with."""

seeds = st.integers(0, 2**64 - 1)


def fuzzed(weight: float = 1.0, *, live: bool = False) -> settings:
    """Return the settings of a fuzz test that takes `weight` times the usual number of examples.

    A failure against `live` processes is not made smaller: what they hold and when it is would not be the same.
    """
    return settings(
        phases=[Phase.generate] if live else list(Phase),
        max_examples=max(1, round(EXAMPLES * weight)),
        deadline=None,
        derandomize=FACTOR == 1,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def chance(seed: int) -> Random:
    return Random(seed)  # noqa: S311  a reproducible choice of inputs, no secret


# --- the tally -----------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the inputs of one test. `wrong` counts what was accepted and should not have been."""

    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    crashed: int = 0
    wrong: int = 0
    codes: Counter[str] = field(default_factory=Counter)

    def tries(
        self, act: Callable[[], T], right: Callable[[T], bool], codes: Collection[str] = KNOWN_CODES
    ) -> T | ProtocolError:
        """Try one input: it is refused with one of the codes, or what comes of it is right. All else fails the test."""
        self.inputs += 1
        try:
            value = act()
        except ProtocolError as refusal:
            self.refuses(refusal.code, codes)
            return refusal
        except BaseException:
            self.crashed += 1
            raise
        self.accepts(right=right(value))
        return value

    def refuses(self, code: str, codes: Collection[str] = KNOWN_CODES) -> None:
        self.codes[code] += 1
        if code not in codes:
            self.crashed += 1
            raise AssertionError(f"refused with a code that is not expected here: {code}")
        self.refused += 1

    def accepts(self, *, right: bool) -> None:
        if not right:
            self.wrong += 1
            raise AssertionError("accepted, and should not have been")
        self.accepted += 1

    def add(self, other: "Tally") -> None:
        for name in ("inputs", "refused", "accepted", "crashed", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.codes.update(other.codes)


TALLIES: dict[str, dict[str, Tally]] = {}
"""By suite and test."""


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The tally of one fuzz test: nothing crashed, nothing was wrongly accepted, and something was tried."""
    suite, test = request.module.__name__.removeprefix("test_fuzz_"), request.node.originalname
    one, failed = Tally(), request.session.testsfailed
    yield one
    TALLIES.setdefault(suite, {}).setdefault(test, Tally()).add(one)
    if request.session.testsfailed > failed:
        return  # the test itself says why
    assert (one.crashed, one.wrong) == (0, 0)
    assert one.inputs > 0
    assert one.inputs == one.refused + one.accepted


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:  # noqa: ANN401  pytest's own
    report = os.environ.get("FUZZ_REPORT")
    for suite, tests in sorted(TALLIES.items()):
        total = Tally()
        for one in tests.values():
            total.add(one)
        if config.getoption("verbose") > 0:
            terminalreporter.section(f"fuzz: {suite}, factor {FACTOR}")
            for name, one in [*tests.items(), ("in all", total)]:
                terminalreporter.write_line(
                    f"{one.inputs:8} tried {one.refused:8} refused {one.accepted:8} accepted and right"
                    f" {one.crashed:3} crashed {one.wrong:3} wrongly accepted  {name}"
                )
        if report:
            line = {"suite": suite, "factor": FACTOR, **counts(total)}
            line["tests"] = {name: counts(one) for name, one in tests.items()}
            with Path(report).open("a", encoding="utf-8") as out:
                out.write(json.dumps(line, sort_keys=True) + "\n")


def counts(one: Tally) -> dict[str, Any]:
    return {
        "inputs": one.inputs,
        "refused": one.refused,
        "accepted": one.accepted,
        "crashed": one.crashed,
        "wrongly_accepted": one.wrong,
        "codes": dict(sorted(one.codes.items())),
    }


# --- bytes, bent ---------------------------------------------------------------------------------------------------

ABSURD = (0, 1, 2**8 - 1, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def bent_bytes(random: Random, data: bytes, other: bytes = b"") -> bytes:
    """Return other bytes: flipped, inserted, deleted, duplicated, spliced, in one to three places."""
    changed = data
    while changed == data:
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            changed = _bent_once(random, changed, other)
    return changed


def _bent_once(random: Random, data: bytes, other: bytes) -> bytes:
    at, size = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 8, 16, 32, 33, 64))
    head, piece, tail = data[:at], data[at : at + size], data[at + size :]
    return random.choice(
        (
            head + bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :],
            head + bytes([random.choice((0, 1, 2, 127, 128, 255))]) + data[at + 1 :],
            head + random.randbytes(size) + piece + tail,
            head + tail,
            head + piece + piece + tail,
            head + other[random.randrange(len(other) + 1) :],
            head + random.choice(ABSURD).to_bytes(4, "big") + data[at + 4 :],
            head + random.randbytes(len(piece)) + tail,
        )
    )


@dataclass(frozen=True)
class Count:
    """A count in an encoding: where it stands, its size in bytes, and the most that its codec takes."""

    at: int
    size: int
    most: int

    def set(self, data: bytes, value: int) -> bytes:
        return data[: self.at] + value.to_bytes(self.size, "big") + data[self.at + self.size :]

    def absurd(self, data: bytes) -> Iterator[bytes]:
        """Yield the encoding with this count as it cannot be or as far as it may be."""
        now, top = int.from_bytes(data[self.at : self.at + self.size], "big"), 256**self.size - 1
        values = {0, now - 1, now + 1, self.most, self.most + 1, top // 2, top} - {now}
        yield from (self.set(data, value) for value in sorted(values) if 0 <= value <= top)


def written(codec: Codec, value: object) -> bytes:
    """Return the encoding of a field."""
    out: list[bytes] = []
    codec.write(value, out)
    return b"".join(out)


def counts_of(value: object) -> tuple[bytes, list[Count]]:
    """Return a message's encoding and all counts in it."""
    out, found = bytearray(), list[Count]()
    _write(Nested(type(value)), value, out, found)
    return bytes(out), found


def _write(codec: Codec, value: Any, out: bytearray, found: list[Count]) -> None:  # noqa: ANN401  as in the product
    match codec:
        case Seq():
            found.append(Count(len(out), codec._count.size, codec._count._most))
            out += len(value).to_bytes(codec._count.size, "big")
            for item in value:
                _write(codec._codec, item, out, found)
        case Maybe() if value is not None:
            out.append(1)
            _write(codec._codec, value, out, found)
        case Nested():
            prefix, parts, _ = codec._kind._wire
            out += prefix
            for name, part in parts:
                _write(part, getattr(value, name), out, found)
        case Blob() | Text():
            found.append(Count(len(out), codec._count.size, codec._count._most))
            out += written(codec, value)
        case _:
            out += written(codec, value)


# --- messages, bent ------------------------------------------------------------------------------------------------


def places(value: object, codec: Codec | None = None) -> Iterator[tuple[Place, Codec]]:
    """Yield every place of a message, by field names and positions, with its codec."""
    match codec:
        case None:
            for name, part in type(value)._wire[1]:  # type: ignore[attr-defined]  a message has it
                yield from (((name, *place), found) for place, found in places(getattr(value, name), part))
        case Nested():
            yield (), codec
            yield from places(value)
        case Seq():
            yield (), codec
            for at, item in enumerate(value):  # type: ignore[arg-type]  a tuple
                yield from (((at, *place), found) for place, found in places(item, codec._codec))
        case Maybe() if value is not None:
            yield (), codec
            yield from places(value, codec._codec)
        case _:
            yield (), codec


def changed(value: Any, place: Place, new: object) -> Any:  # noqa: ANN401  any message
    """Return a message with another value at a place."""
    if not place:
        return new
    first, *rest = place
    if isinstance(first, int):
        return (*value[:first], changed(value[first], tuple(rest), new), *value[first + 1 :])
    return replace(value, **{first: changed(getattr(value, first), tuple(rest), new)})


def value_at(value: Any, place: Place) -> Any:  # noqa: ANN401  any message
    for step in place:
        value = value[step] if isinstance(step, int) else getattr(value, step)
    return value


def near(codec: Codec, value: Any, names: Collection[str] = ()) -> st.SearchStrategy[Any]:  # noqa: ANN401  any value
    """Return values that a codec can write, many of them close to this one; `names` are texts that mean something."""
    match codec:
        case UInt():
            close = [value + step for step in (-86_400, -61, -60, -1, 1, 60, 61) if value + step >= codec._least]
            return st.sampled_from([one for one in close if one <= codec._most]) | values_of(codec)
        case Text() if names:
            return st.sampled_from(sorted(names)) | values_of(codec)
        case Blob() if value:
            return seeds.map(lambda seed: bent_bytes(chance(seed), value)[: codec._count._most]) | values_of(codec)
        case Seq() if len(value) > codec._count._least:
            fewer = st.integers(0, len(value) - 1).map(lambda out: (*value[:out], *value[out + 1 :]))
            return fewer | st.permutations(value).map(tuple) | values_of(codec)
        case Seq() if value:
            doubled = st.integers(0, len(value) - 1).map(lambda out: (*value[:-1], value[out]))
            return doubled | st.permutations(value).map(tuple) | values_of(codec)
        case _:
            return values_of(codec)


def bent(value: T, names: Collection[str] = (), most: int = 2) -> st.SearchStrategy[T]:
    """Return the message with up to `most` of its places changed, at any depth."""

    @st.composite
    def build(draw: st.DrawFn) -> T:
        made = value
        for _ in range(draw(st.integers(1, most))):
            place, codec = draw(st.sampled_from(list(places(made))))
            made = changed(made, place, draw(near(codec, value_at(made, place), names)))
        return made

    return build()
