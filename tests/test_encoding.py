"""Every message has one encoding, and every other byte string is refused as malformed and in no other way."""

import importlib
import pkgutil
import re
import tracemalloc
from dataclasses import fields, replace
from random import Random
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import POINTS, deterministic, messages, values_of

import protocol
from protocol import encoding, group
from protocol.encoding import (
    HASH,
    ID,
    POINT,
    PREFIX_BYTES,
    SCALAR,
    Blob,
    Codec,
    Fixed,
    Maybe,
    Nested,
    Seq,
    Text,
    UInt,
    decode,
    encode,
    first_field,
    malformed,
    message,
)
from protocol.errors import ProtocolError
from protocol.manifest import Terms
from protocol.messages import (
    CheckCall,
    CheckOutcome,
    CheckReplies,
    CheckStatement,
    CommitCall,
    DepositEnvelope,
    Lane,
    PrepareAnswer,
    SealedPerson,
)
from protocol.token import SchnorrProof
from protocol.voprf import DleqProof


def message_kinds() -> list[type[Any]]:
    """Return every message class of the package."""
    modules = [
        importlib.import_module(f"protocol.{module.name}")
        for module in pkgutil.iter_modules(protocol.__path__)
        if not module.name.startswith("_")
    ]
    found = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    return sorted((kind for kind in found if hasattr(kind, "_wire")), key=lambda kind: kind.__name__)


KINDS = message_kinds()
KEPT = [kind for kind in KINDS if kind._wire[2]]


def anew(value: Any) -> Any:  # noqa: ANN401  a message, or what a field has
    """Return a value made anew, with no encoding kept."""
    if isinstance(value, tuple):
        return tuple(anew(one) for one in value)
    if not hasattr(value, "_wire"):
        return value
    return replace(value, **{field.name: anew(getattr(value, field.name)) for field in fields(value)})


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def is_malformed(kind: type[Any], data: bytes) -> bool:
    """Tell whether decoding refuses the bytes, as it refuses all: any other exception fails the test."""
    try:
        decode(kind, data)
    except ProtocolError as refused:
        return refused.code == "malformed"
    return False


# --- all messages --------------------------------------------------------------------------------------------------


def test_the_messages_of_all_modules_are_found() -> None:
    assert {"Terms", "KeyEnvelope", "Part", "CheckCall", "SchnorrProof", "DleqProof", "DepositFacts"} <= {
        kind.__name__ for kind in KINDS
    }
    assert len(KINDS) >= 45


def test_no_two_messages_begin_alike() -> None:
    assert len({kind._wire[0] for kind in KINDS}) == len(KINDS)


@every_kind
def test_a_message_decodes_to_what_was_encoded(kind: type[Any]) -> None:
    @deterministic(15)
    @given(messages(kind))
    def check(value: Any) -> None:  # noqa: ANN401
        data = encode(value)
        assert decode(kind, data) == value
        assert encode(decode(kind, data)) == data

    check()


@every_kind
def test_every_truncation_and_every_byte_more_is_refused(kind: type[Any]) -> None:
    @deterministic(3)
    @given(messages(kind), st.binary(min_size=1, max_size=3))
    def check(value: Any, more: bytes) -> None:  # noqa: ANN401
        data = encode(value)
        step = 1 + len(data) // 400
        assert all(is_malformed(kind, data[:size]) for size in [*range(0, len(data), step), len(data) - 1])
        assert is_malformed(kind, data + more)
        assert is_malformed(kind, data + b"\x00")
        assert is_malformed(kind, more + data)

    check()


@every_kind
def test_equal_encodings_are_of_equal_values(kind: type[Any]) -> None:
    @deterministic(15)
    @given(messages(kind), messages(kind))
    def check(left: Any, right: Any) -> None:  # noqa: ANN401
        assert (encode(left) == encode(right)) == (left == right)

    check()


@every_kind
def test_changed_bytes_are_refused_or_are_the_one_encoding_of_another_value(kind: type[Any]) -> None:
    @deterministic(8)
    @given(messages(kind), st.data())
    def check(value: Any, data: st.DataObject) -> None:  # noqa: ANN401
        encoded = encode(value)
        for _ in range(12):
            at = data.draw(st.integers(0, len(encoded) - 1))
            changed = bytearray(encoded)
            changed[at] ^= data.draw(st.integers(1, 255))
            try:
                other = decode(kind, bytes(changed))
            except ProtocolError as refused:
                assert refused.code == "malformed"  # noqa: PT017  either outcome is right
                continue
            assert at >= PREFIX_BYTES
            assert other != value
            assert encode(anew(other)) == bytes(changed)

    check()


@every_kind
def test_arbitrary_bytes_are_decoded_or_refused_as_malformed_and_nothing_else(kind: type[Any]) -> None:
    prefix = kind._wire[0]

    @deterministic(30)
    @given(st.binary(max_size=300), st.booleans())
    def check(body: bytes, prefixed: bool) -> None:  # noqa: FBT001
        data = prefix + body if prefixed else body
        try:
            value = decode(kind, data)
        except ProtocolError as refused:
            assert refused.code == "malformed"  # noqa: PT017  either outcome is right
        else:
            assert encode(anew(value)) == data

    check()


@every_kind
def test_no_message_reads_as_another_kind(kind: type[Any]) -> None:
    @deterministic(2)
    @given(messages(kind))
    def check(value: Any) -> None:  # noqa: ANN401
        data = encode(value)
        assert [other for other in KINDS if not is_malformed(other, data)] == [kind]

    check()


@message("lane", version=3)
class LaterLane:
    """A later version of a message, of the same fields."""

    person: Annotated[int, UInt(16)]
    rule_id: Annotated[str, Text()]
    rule_version: Annotated[int, UInt(32)]


def test_another_version_of_a_message_is_refused() -> None:
    fields = {"person": 0, "rule_id": "rule", "rule_version": 1}
    older, later = encode(Lane(**fields)), encode(LaterLane(**fields))
    assert older[PREFIX_BYTES:] == later[PREFIX_BYTES:]
    assert is_malformed(Lane, later)
    assert is_malformed(LaterLane, older)
    assert is_malformed(LaterLane, b"")


def test_the_hint_of_a_refusal_never_quotes_the_bytes() -> None:
    secret = b"\xff\xfe 310101199001011234"
    for data in (secret, encode(Lane(person=0, rule_id="r", rule_version=1)) + secret):
        with pytest.raises(ProtocolError) as refused:
            decode(Lane, data)
        assert "3101" not in str(refused.value)


# --- codecs, at their edges ----------------------------------------------------------------------------------------


def written(codec: Codec, value: object) -> bytes:
    out: list[bytes] = []
    codec.write(value, out)
    return b"".join(out)


def reads(codec: Codec, data: bytes) -> object:
    value, end = codec.read(data, 0)
    if end != len(data):
        raise malformed("bytes are left over")
    return value


@pytest.mark.parametrize(
    ("codec", "value", "data"),
    [
        (UInt(8), 255, "ff"),
        (UInt(16), 1, "0001"),
        (UInt(48), 2**48 - 1, "ffffffffffff"),
        (UInt(256), 1, "00" * 31 + "01"),
        (Fixed(3), b"abc", "616263"),
        (Blob(5), b"", "00000000"),
        (Blob(5), b"ab", "000000026162"),
        (Text(), "寿", "03e5afbf"),
        (Text(255), "x" * 255, "ff" + "78" * 255),
        (Text(256), "寿", "0003e5afbf"),
        (Text(256), "x" * 256, "0100" + "78" * 256),
        (Text(65535), "x", "000178"),
        (Maybe(UInt(8)), None, "00"),
        (Maybe(UInt(8)), 0, "0100"),
        (Seq(UInt(8), most=3), (), "00000000"),
        (Seq(UInt(8), most=3), (1, 2), "000000020102"),
    ],
    ids=str,
)
def test_the_wire_form_of_each_codec(codec: Codec, value: object, data: str) -> None:
    assert written(codec, value) == bytes.fromhex(data)
    assert reads(codec, bytes.fromhex(data)) == value


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (UInt(8), 256),
        (UInt(8), -1),
        (UInt(8, least=1), 0),
        (UInt(8, most=3), 4),
        (UInt(48), 2**48),
        (Fixed(3), b"ab"),
        (Fixed(3), b"abcd"),
        (Blob(2), b"abc"),
        (Text(), ""),
        (Text(2), "abc"),
        (Text(2), "寿"),
        (Text(), "\ud800"),
        (Text(), "a\udfffb"),
        (Text(255), "x" * 256),
        (Text(300), "x" * 301),
        (Text(300), "寿" * 101),
        (Seq(UInt(8), most=2), (1, 2, 3)),
        (Seq(UInt(8), least=1, most=2), ()),
        (Seq(UInt(8), most=2), (256,)),
        (Maybe(UInt(8)), 256),
        (Nested(Lane), LaterLane(person=0, rule_id="r", rule_version=1)),
        (Fixed(32, group.is_element), bytes(32)),
        (Fixed(32, group.is_scalar), b"\xff" * 32),
    ],
    ids=str,
)
def test_a_value_that_could_not_be_read_is_not_written(codec: Codec, value: object) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        written(codec, value)


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (UInt(8), ""),
        (UInt(8, least=1), "00"),
        (UInt(8, most=3), "04"),
        (UInt(48), "ffffffffff"),
        (Blob(2), "00000003616263"),
        (Blob(2), "0000000261"),
        (Blob(2), "ffffffff"),
        (Text(), "00"),
        (Text(2), "03616263"),
        (Text(), "02ff41"),
        (Text(), "02c080"),
        (Text(), "03eda080"),
        (Text(256), "0000"),
        (Text(256), "0378"),
        (Text(256), "010178" + "78" * 256),
        (Text(256), "00ff78"),
        (Maybe(UInt(8)), "02"),
        (Maybe(UInt(8)), "ff00"),
        (Maybe(UInt(8)), "01"),
        (Maybe(UInt(8)), "0000"),
        (Seq(UInt(8), most=2), "00000003010203"),
        (Seq(UInt(8), most=2), "ffffffff"),
        (Seq(UInt(8), least=1, most=2), "00000000"),
        (Seq(UInt(8), most=2), "0000000201"),
        (Seq(UInt(8), most=2), "000000010102"),
    ],
    ids=str,
)
def test_bytes_that_no_value_is_written_as_are_refused(codec: Codec, data: str) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        reads(codec, bytes.fromhex(data))


def test_points_and_scalars_of_a_message_are_checked_when_read_and_when_written() -> None:
    good = encode(DleqProof(challenge=group.scalar_from_int(1), response=group.scalar_from_int(2)))
    order = group.ORDER.to_bytes(32, "little")
    assert is_malformed(DleqProof, good[:PREFIX_BYTES] + order + good[PREFIX_BYTES + 32 :])
    assert is_malformed(DleqProof, good[:-32] + order)
    with pytest.raises(ProtocolError, match="malformed"):
        encode(DleqProof(challenge=order, response=group.scalar_from_int(2)))
    proof = SchnorrProof(challenge=group.scalar_from_int(1), response=group.scalar_from_int(2))
    fields = {"blinded": POINTS[0], "unblinder": POINTS[1], "proof": proof}
    one = encode(SealedPerson(**fields))
    for at in (PREFIX_BYTES, PREFIX_BYTES + 32):
        assert is_malformed(SealedPerson, one[:at] + bytes(32) + one[at + 32 :])
    for point in ("blinded", "unblinder"):
        with pytest.raises(ProtocolError, match="malformed"):
            encode(SealedPerson(**fields | {point: bytes(32)}))


@deterministic(10)
@given(messages(CheckCall), messages(CheckOutcome))
def test_attempts_beyond_the_third_or_three_custodians_cannot_be_said(call: CheckCall, outcome: CheckOutcome) -> None:
    for changes in ({"attempt": 0}, {"attempt": 4}, {"chosen": (0, 1, 2)}, {"chosen": (0, 1, 2, 16)}, {"tick": 2**64}):
        with pytest.raises(ProtocolError, match="malformed"):
            encode(type(call)(**{**vars(call), **changes}))
    with pytest.raises(ProtocolError, match="malformed"):
        encode(type(outcome)(**{**vars(outcome), "tags": (bytes(15),)}))


@deterministic(10)
@given(messages(CheckStatement))
def test_a_check_has_at_least_one_lane_and_four_envelopes(statement: CheckStatement) -> None:
    for changes in (
        {"lanes": ()},
        {"envelopes": statement.envelopes[:3]},
        {"lanes": statement.lanes * 1025},
        {"persons": ()},
        {"persons": statement.persons * 1025},
    ):
        with pytest.raises(ProtocolError, match="malformed"):
            encode(type(statement)(**{**vars(statement), **changes}))


@every_kind
@deterministic(5)
@given(st.data())
def test_a_message_prints_as_its_name_alone(kind: type[Any], data: st.DataObject) -> None:
    one, other = (data.draw(messages(kind)) for _ in range(2))
    assert re.fullmatch(r"<[a-z']+( [a-z']+)*>", repr(one))
    assert repr(one) == repr(other) == str(one) == f"{other}"


def test_messages_print_as_the_names_by_which_they_are_told_apart_on_the_wire() -> None:
    @message("whatever it is called", version=7)
    class Odd:
        secret: Annotated[bytes, Fixed(3)]

    assert repr(Odd(secret=b"abc")) == "<whatever it is called>"
    assert len({repr(kind.__new__(kind)) for kind in KINDS}) == len(KINDS)


def test_a_message_is_immutable_and_takes_annotated_fields_alone() -> None:
    lane = Lane(person=0, rule_id="r", rule_version=1)
    with pytest.raises(AttributeError):
        lane.rule_id = "other"  # type: ignore[misc]  the point of the test
    with pytest.raises(TypeError, match="has no codec"):

        @message("no codec", version=1)
        class NoCodec:
            plain: int


def test_values_are_drawn_for_every_codec_that_messages_use() -> None:
    codecs = {codec for kind in KINDS for _, codec in kind._wire[1]}
    assert {ID, HASH} <= codecs
    for codec in codecs:
        values_of(codec)


@pytest.mark.parametrize("kind", KEPT, ids=lambda kind: kind.__name__)
def test_a_message_that_keeps_its_encoding_is_written_as_one_that_does_not(kind: type[Any]) -> None:
    @deterministic(40)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        value = data.draw(messages(kind))
        encoded = encode(value)
        read = decode(kind, encoded)
        assert [encode(one) for one in (value, read, anew(value), anew(read))] == 4 * [encoded]
        assert value == read == anew(read)
        for field in fields(kind):
            other = replace(read, **{field.name: getattr(data.draw(messages(kind)), field.name)})
            assert (encode(other) == encoded) is (other == read)

    check()


def test_what_is_written_many_times_over_keeps_its_encoding_and_nothing_else_does() -> None:
    assert {kind.__name__ for kind in KEPT} == {
        *("CheckStatement", "SignedCheck", "SealedPerson"),  # signed, and sent on to four
        *("DepositFacts", "KeyName", "RangeHeader"),  # several keys, tags and statements of a deposit are made of it
    }


# --- against a plain implementation --------------------------------------------------------------------------------


@message("proof of a test", version=1)
class Inner:
    """A message of one run."""

    number: Annotated[int, UInt(16, most=999)]
    point: Annotated[bytes, POINT]


@message("note of a test", version=1, kept=True)
class Note:
    """A message that keeps its encoding, and has no run."""

    text: Annotated[str, Text(300)]
    number: Annotated[int, UInt(64)]


@message("everything", version=1)
class Everything:
    """Every codec: alone, beside others that are read with it, in a sequence, and where it may be missing."""

    first: Annotated[int, UInt(8, least=3, most=9)]
    hash: Annotated[bytes, HASH]
    whole: Annotated[int, UInt(32)]
    time: Annotated[int, UInt(64, most=(1 << 63) - 1)]
    scalar: Annotated[bytes, SCALAR]
    amount: Annotated[int, UInt(48, most=1 << 40)]
    id: Annotated[bytes, ID]
    name: Annotated[str, Text()]
    short: Annotated[int, UInt(16)]
    inner: Annotated[Inner, Nested(Inner)]
    note: Annotated[Note, Nested(Note)]
    wide: Annotated[int, UInt(256)]
    blob: Annotated[bytes, Blob(40)]
    lanes: Annotated[tuple[int, ...], Seq(UInt(8, most=200), most=5)]
    sums: Annotated[tuple[int, ...], Seq(UInt(48), most=5)]
    points: Annotated[tuple[bytes, ...], Seq(POINT, least=1, most=5)]
    hashes: Annotated[tuple[bytes, ...], Seq(HASH, most=5)]
    names: Annotated[tuple[str, ...], Seq(Text(), most=5)]
    inners: Annotated[tuple[Inner, ...], Seq(Nested(Inner), most=5)]
    perhaps: Annotated[tuple[int | None, ...], Seq(Maybe(UInt(32, least=1)), most=5)]
    missing: Annotated[Note | None, Maybe(Nested(Note))]
    lists: Annotated[tuple[int, ...] | None, Maybe(Seq(UInt(16), most=5))]
    mac: Annotated[bytes, Fixed(3)]
    last: Annotated[int, UInt(32, least=1, most=7)]


COMPARED = [Everything, Inner, Note, CheckStatement, CheckReplies, PrepareAnswer, DepositEnvelope, CommitCall, Terms]
REFUSED = object()


def plainly_written(codec: Codec, value: Any) -> bytes:  # noqa: ANN401  what a field has
    """Return the encoding of a field, one by one as the description says; the reference for what is faster."""
    match codec:
        case UInt():
            assert codec._least <= value <= codec._most
            data = value.to_bytes(codec.size, "big")
        case Fixed():
            assert len(value) == codec.size
            assert codec._check is None or codec._check(value)
            data = value
        case Blob():
            data = plainly_written(codec._count, len(value)) + value
        case Text():
            text = value.encode("utf-8", errors="surrogatepass")
            assert text.decode(errors="replace").encode() == text
            data = plainly_written(codec._count, len(text)) + text
        case Maybe():
            data = b"\x00" if value is None else b"\x01" + plainly_written(codec._codec, value)
        case Seq():
            data = plainly_written(codec._count, len(value))
            data += b"".join(plainly_written(codec._codec, each) for each in value)
        case Nested():
            assert type(value) is codec._kind
            prefix, parts, _ = codec._kind._wire
            data = prefix + b"".join(plainly_written(part, getattr(value, name)) for name, part in parts)
        case _:
            raise TypeError(codec)
    return data


def plainly_read(codec: Codec, rest: list[int]) -> Any:  # noqa: ANN401  what a field has
    """Read a field from the bytes that are left and take them away, one by one as the description says."""

    def taken(count: int) -> bytes:
        assert count <= len(rest)
        data = bytes(rest[:count])
        del rest[:count]
        return data

    value: Any
    match codec:
        case UInt():
            value = int.from_bytes(taken(codec.size), "big")
            assert codec._least <= value <= codec._most
        case Fixed():
            value = taken(codec.size)
            assert codec._check is None or codec._check(value)
        case Blob():
            value = taken(plainly_read(codec._count, rest))
        case Text():
            data = taken(plainly_read(codec._count, rest))
            value = data.decode(errors="replace")
            assert value.encode() == data
        case Maybe():
            flag = taken(1)
            assert flag in (b"\x00", b"\x01")
            value = plainly_read(codec._codec, rest) if flag == b"\x01" else None
        case Seq():
            value = tuple([plainly_read(codec._codec, rest) for _ in range(plainly_read(codec._count, rest))])
        case Nested():
            prefix, parts, _ = codec._kind._wire
            assert taken(PREFIX_BYTES) == prefix
            value = codec._kind(**{name: plainly_read(part, rest) for name, part in parts})
        case _:
            raise TypeError(codec)
    return value


def plainly_decoded(kind: type[Any], data: bytes) -> Any:  # noqa: ANN401  a message, or REFUSED
    rest = list(data)
    try:
        value = plainly_read(Nested(kind), rest)
    except AssertionError:
        return REFUSED
    return REFUSED if rest else value


def decoded(kind: type[Any], data: bytes) -> Any:  # noqa: ANN401  a message, or REFUSED
    try:
        return decode(kind, data)
    except ProtocolError as refused:
        assert refused.code == "malformed"  # noqa: PT017  either outcome may be right
        return REFUSED


compared = pytest.mark.parametrize("kind", COMPARED, ids=lambda kind: kind.__name__)


@compared
def test_values_are_written_and_read_as_plainly(kind: type[Any]) -> None:
    @deterministic(25)
    @given(messages(kind))
    def check(value: Any) -> None:  # noqa: ANN401
        data = plainly_written(Nested(kind), value)
        assert encode(value) == data
        assert decode(kind, data) == plainly_decoded(kind, data) == value
        assert encode(decode(kind, data)) == data
        name, codec = kind._wire[1][0]
        first = getattr(value, name)
        needed = data[: PREFIX_BYTES + len(plainly_written(codec, first))]
        assert first_field(kind, data) == first_field(kind, needed) == first
        with pytest.raises(ProtocolError, match="malformed"):
            first_field(kind, needed[:-1])

    check()


@compared
def test_truncations_and_bit_flips_are_refused_or_read_as_plainly(kind: type[Any]) -> None:
    outcomes = set()

    @deterministic(20)
    @given(messages(kind), st.integers(0, 1 << 64))
    def check(value: Any, seed: int) -> None:  # noqa: ANN401
        random, data = Random(seed), encode(value)  # noqa: S311  which bits are flipped is no secret
        bent = [data[: random.randrange(len(data))] for _ in range(40)]
        for at in random.choices(range(8 * len(data)), k=120):
            flipped = bytearray(data)
            flipped[at // 8] ^= 1 << at % 8
            bent.append(bytes(flipped))
        for _ in range(20):
            at, count = random.randrange(len(data)), random.randrange(5)
            bent.append(data[:at] + random.choice([bytes(count), b"\xff" * count]) + data[at + random.randrange(5) :])
        for changed in bent:
            expected = plainly_decoded(kind, changed)
            assert decoded(kind, changed) == expected
            outcomes.add(expected is REFUSED)

    check()
    assert outcomes == {True, False}


@deterministic(4)
@given(messages(Everything), st.data())
def test_what_one_field_cannot_have_is_not_written_whatever_is_beside_it(
    value: Everything, data: st.DataObject
) -> None:
    worse = Note(text="x", number=1)
    bad: dict[str, list[Any]] = {
        "first": [2, 10, 256, -1],
        "hash": [b"", bytes(31), bytes(33), bytes(64)],
        "whole": [-1, 1 << 32, 1 << 64],
        "time": [-1, 1 << 63, 1 << 64],
        "scalar": [bytes(31), bytes(33), b"\xff" * 32],
        "amount": [-1, (1 << 40) + 1, 1 << 48],
        "id": [bytes(15), bytes(17)],
        "name": ["", "x" * 65, "\ud800"],
        "short": [-1, 1 << 16],
        "inner": [worse, replace(value.inner, number=1000), replace(value.inner, point=bytes(32))],
        "note": [value.inner, Note(text="", number=1), Note(text="x", number=1 << 64)],
        "wide": [-1, 1 << 256],
        "blob": [bytes(41)],
        "lanes": [(1,) * 6, (201,), (0, 256), (-1, 0)],
        "sums": [(1,) * 6, (0, 1 << 48), (-1, 0)],
        "points": [(), (POINTS[0],) * 6, (POINTS[0], bytes(32)), (POINTS[0], POINTS[1][:31])],
        "hashes": [(bytes(32),) * 6, (bytes(31), bytes(33)), (bytes(64),)],
        "names": [("x", ""), ("x",) * 6],
        "inners": [(value.inner, worse), (worse,)],
        "perhaps": [(0,), (None, 1 << 32)],
        "missing": [value.inner],
        "lists": [(1 << 16,), (1,) * 6],
        "mac": [b"ab", b"abcd"],
        "last": [0, 8, 1 << 32],
    }
    assert list(bad) == [name for name, _ in Everything._wire[1]]
    for name, wrong in bad.items():
        for one in wrong:
            with pytest.raises(ProtocolError, match="malformed"):
                encode(replace(value, **{name: one}))
    # Two wrongs of one run, which together have the right length.
    with pytest.raises(ProtocolError, match="malformed"):
        encode(replace(value, hash=bytes(33), scalar=bytes(31)))
    other = data.draw(messages(Everything))
    assert (encode(other) == encode(value)) is (other == value)


@pytest.mark.parametrize(
    "codec",
    [
        Blob((1 << 32) - 1),
        *(Seq(one, most=(1 << 32) - 1) for one in (UInt(8), UInt(64), UInt(48), HASH, POINT, Text(), Nested(Inner))),
        *(Seq(one, most=(1 << 32) - 1) for one in (Maybe(UInt(8)), Blob(9))),
    ],
    ids=str,
)
def test_a_count_of_what_is_not_there_is_refused_before_memory_is_taken_for_it(codec: Codec) -> None:
    assert callable(codec.read)  # made by now, which takes memory too
    for count in ((1 << 32) - 1, 1 << 31, 1 << 24):
        data = count.to_bytes(4, "big") + bytes(64)
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError, match="malformed"):
                reads(codec, data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 64 << 10


def test_a_point_is_refused_each_time_and_no_more_are_remembered_than_are_meant_to_be() -> None:
    remembered = encoding._is_element
    remembered.cache_clear()
    bad, good = bytes(31) + b"\x80", POINTS[0]
    for _ in range(3):
        assert is_malformed(Inner, encode(Inner(number=1, point=good))[:-32] + bad)
        assert decode(Inner, encode(Inner(number=1, point=good))).point == good
        with pytest.raises(ProtocolError, match="malformed"):
            encode(Inner(number=1, point=bad))
    assert remembered.cache_info().misses == 2
    start = encode(Inner(number=1, point=good))[:-32]
    for number in range(3000):
        point = number.to_bytes(32, "big")
        assert is_malformed(Inner, start + point) is not group.is_element(point)
    assert remembered.cache_info().currsize == remembered.cache_info().maxsize == 1024


def test_the_code_that_is_made_has_nothing_but_descriptions_in_it() -> None:
    """What is made of a kind is the same whatever was read or written before, and names its fields alone."""
    source: list[str] = []

    class Seen(encoding._Code):
        def add(self, line: str) -> None:
            source.append(line)
            super().add(line)

    for kind in KINDS:
        code = Seen()
        encoding._layout(kind).reading(code, "value")
        encoding._layout(kind).writing(code, "value")
    words = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"'[^']*'", "", "\n".join(source))))
    names = {name for kind in KINDS for name, _ in kind._wire[1]}
    made = {word for word in words if re.fullmatch(r"[vc]\d+", word)}
    python = "if or for in else is not None type len min max int tuple range from_bytes to_bytes encode decode raise"
    ours = "malformed out append data at value new alike unpack_from pack get setdefault join __dict__ one b"
    assert words - names - made <= {*re.findall(r"\w+", python + " " + ours)}
