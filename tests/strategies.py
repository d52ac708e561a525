"""How the protocol's properties are tested: a deterministic profile, and values of every message from its codecs."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from protocol import group
from protocol.encoding import POINT, SCALAR, Blob, Codec, Fixed, Maybe, Nested, Seq, Text, UInt

settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


EVERYDAY = os.environ.get("EVERYDAY") == "1"
"""Whether this is the everyday run of `make test`, which has less time than CI."""
SHARE = 0.4 if EVERYDAY else 1.0
"""Of the examples of a property, how many are tried."""


def deterministic(examples: int, *, always: bool = False) -> settings:
    """Return the settings of a property: the same examples in every run, that many, however slow the machine.

    An everyday run takes a share of them, and others than CI, unless it is `always` these.
    """
    return settings(settings.get_profile("ci"), max_examples=examples if always else max(1, round(examples * SHARE)))


def binary(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


POINTS = tuple(group.multiply_base(group.scalar_from_int(number)) for number in range(1, 40))
elements = st.sampled_from(POINTS)
scalars = st.integers(1, group.ORDER - 1).map(group.scalar_from_int)


def values_of(codec: Codec) -> st.SearchStrategy[Any]:
    """Return values that a codec can write. Sequences and blobs are kept short."""
    values: st.SearchStrategy[Any]
    match codec:
        case UInt():
            values = st.integers(codec._least, codec._most) | st.sampled_from([codec._least, codec._most])
        case Fixed():
            values = {id(POINT): elements, id(SCALAR): scalars}.get(id(codec), binary(codec.size))
        case Blob():
            values = st.binary(max_size=40)
        case Text():
            longest = st.just("x" * codec._count._most)
            values = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | longest
        case Maybe():
            values = st.none() | values_of(codec._codec)
        case Seq():
            least, most = codec._count._least, codec._count._most
            values = st.lists(values_of(codec._codec), min_size=least, max_size=min(most, least + 2)).map(tuple)
        case Nested():
            values = messages(codec._kind)
        case _:
            raise AssertionError(codec)
    return values


def messages(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Return messages of a kind, as its annotations describe it."""
    _, fields, _ = kind._wire
    return st.builds(kind, **{field: values_of(codec) for field, codec in fields})


def made_anew(patch: pytest.MonkeyPatch) -> None:
    """Have what writes and reads messages made at each use, by the codecs as they are then."""
    for name in ("write", "read"):
        patch.setattr(Codec, name, property(vars(Codec)[name].func))
