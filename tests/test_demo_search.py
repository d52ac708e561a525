"""The demonstration's search of all that parties received: it finds what is there, and says where and not what."""

import dataclasses
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding import HASH, NAME, Blob, Nested, Seq, UInt, encode, message
from service.admin.demo_search import Exchange, forms_of, occurring, places_of

FEN = 1_234_567_890
FORMS = forms_of([FEN])
NOTHING = b'{"status": "ok"}'


@given(st.data())
def test_it_finds_in_one_pass_what_looking_for_each_finds(data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=200))
    parts = st.tuples(st.integers(0, 200), st.integers(6, 12)).map(lambda part: content[part[0] : sum(part)])
    drawn = data.draw(st.lists(st.one_of(st.binary(min_size=6, max_size=9), parts)))
    needles = {needle for needle in drawn if len(needle) >= 6}
    assert occurring(content, needles) == {needle for needle in needles if needle in content}


def test_it_finds_what_lies_across_the_chunks_in_which_it_goes() -> None:
    content = bytes(range(251)) * ((1 << 22) // 251 + 2)
    needle = b"across a seam"
    for at in range((1 << 22) - 14, (1 << 22) + 2):
        there = content[:at] + needle + content[at + len(needle) :]
        assert occurring(there, {needle, b"not there"}) == {needle}


@pytest.mark.parametrize("form", sorted(FORMS.text), ids=repr)
def test_an_amount_as_text_is_found_in_any_bytes(form: bytes) -> None:
    assert len(FORMS.text) == 3  # 12345678.90, 1234567890 and 12,345,678.90
    seen = [Exchange("insurer-01", NOTHING, b"\x07\x00" + form + b"\x99"), Exchange("insurer-02", NOTHING, NOTHING)]
    assert places_of(seen, FORMS) == ("insurer-01, answered: text",)


@pytest.mark.parametrize("order", ["big", "little"])
def test_an_amount_in_binary_is_found_where_there_is_no_message(order: Literal["big", "little"]) -> None:
    seen = [Exchange("lookup", b"\x07" + FEN.to_bytes(6, order) + b"\x07", NOTHING)]
    assert places_of(seen, FORMS) == ("lookup, received: an amount in binary",)


@message("leaf of a searched message", version=1)
class Leaf:
    head: Annotated[bytes, HASH]
    body: Annotated[bytes, Blob(1000)]
    number: Annotated[int, UInt(64)]
    numbers: Annotated[tuple[int, ...], Seq(UInt(48), most=10)]
    octets: Annotated[tuple[int, ...], Seq(UInt(8), most=20)]


@message("searched message", version=1)
class Outer:
    name: Annotated[str, NAME]
    sealed: Annotated[bytes, Blob(1000)]
    leaf: Annotated[Leaf, Nested(Leaf)]


LEAF = Leaf(bytes(range(32)), b"body", 7, (1, 2), (3, 4))
ORDERS = st.sampled_from(["big", "little"])


@given(
    ORDERS,
    st.sampled_from(["head", "body", "number", "numbers", "octets"]),
    st.sampled_from(["sealed", "leaf"]),
    st.binary(max_size=20),
)
def test_an_amount_in_a_field_is_found_and_its_place_named(
    order: Literal["big", "little"], field: str, within: str, before: bytes
) -> None:
    form = FEN.to_bytes(6, order)
    value = {
        "head": (before + form).ljust(32, b"-"),
        "body": before + form + b"more",
        "number": FEN,
        "numbers": (5, int.from_bytes(form, "big"), 6),
        "octets": (9, *form, 9),
    }[field]
    leaf = dataclasses.replace(LEAF, **{field: value})
    outer = Outer("name", encode(leaf), LEAF) if within == "sealed" else Outer("name", b"sealed", leaf)
    found = places_of([Exchange("insurer-09", NOTHING, encode(outer))], FORMS)
    there = {"sealed": "sealed, Leaf", "leaf": "leaf"}[within]
    assert found == (f"insurer-09, answered, Outer.{there}.{field}: an amount in binary",)


@given(st.integers(8, (1 << 24) - 1))  # more than any number of LEAF
def test_the_end_of_a_field_with_a_length_behind_it_is_no_amount(fen: int) -> None:
    """Three random bytes before the zeros of a length: some small amount, read from its low end."""
    form = fen.to_bytes(6, "little")
    data = encode(dataclasses.replace(LEAF, head=b"\x99" * 29 + form[:3]))
    assert form in data
    assert places_of([Exchange("insurer-09", data, NOTHING)], forms_of([fen])) == ()


@given(ORDERS, st.integers(1, 20))
def test_a_message_that_is_cut_is_searched_in_whole(order: Literal["big", "little"], cut: int) -> None:
    data = encode(dataclasses.replace(LEAF, body=FEN.to_bytes(6, order)))[:-cut]
    assert places_of([Exchange("lookup", data, b"")], FORMS) == ("lookup, received: an amount in binary",)
