"""Shares add up, open to nobody alone, and fall into groups that two of any four custodians hold."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import binary, deterministic

from protocol.errors import ProtocolError
from protocol.sharing import (
    GROUPS,
    HALF_RING,
    MAX_SLOTS,
    RING,
    SHARE_BYTES,
    Chosen,
    Label,
    Share,
    add_shares,
    group_sums,
    held_labels,
    label,
    labels,
    labels_of_sharing,
    plain_share,
    share,
    signed,
)

COMMITTEES = (5, 6, 7)
EVERY_A = [
    pytest.param(Chosen(slots, size), id=f"{slots} of {size}")
    for size in COMMITTEES
    for slots in combinations(range(size), 4)
]
sizes = st.integers(5, MAX_SLOTS)
amounts = st.integers(-HALF_RING, HALF_RING - 1)


@st.composite
def sharings(draw: st.DrawFn) -> tuple[int, int, int, bytes]:
    """Draw (value, slots, excluded, uniform bytes)."""
    size = draw(sizes)
    return draw(amounts), size, draw(st.integers(0, size - 1)), draw(binary((size - 2) * SHARE_BYTES))


# --- one sharing ---------------------------------------------------------------------------------------------------


@deterministic(100)
@given(sharings())
def test_the_shares_of_a_value_add_up_to_it(sharing: tuple[int, int, int, bytes]) -> None:
    value, size, excluded, uniform = sharing
    shares = share(value, size, excluded, uniform)
    assert tuple(shares) == labels_of_sharing(size, excluded)
    assert all(0 <= piece < RING for piece in shares.values())
    assert signed(sum(shares.values()) % RING) == value


@deterministic(100)
@given(sharings(), amounts, st.data())
def test_what_a_slot_holds_of_a_sharing_fits_every_other_value_too(
    sharing: tuple[int, int, int, bytes], other: int, data: st.DataObject
) -> None:
    # Perfect secrecy, constructed: the one share that the slot lacks moves by the difference. The map of the
    # randomness is a bijection, so the slot sees the same distribution whatever the value is.
    value, size, excluded, uniform = sharing
    slot = data.draw(st.sampled_from([slot for slot in range(size) if slot != excluded]))
    place = labels_of_sharing(size, excluded).index(label(excluded, slot)) * SHARE_BYTES
    moved = uniform
    if place < len(uniform):
        missing = int.from_bytes(uniform[place : place + SHARE_BYTES], "big") + other - value
        moved = uniform[:place] + (missing % RING).to_bytes(SHARE_BYTES, "big") + uniform[place + SHARE_BYTES :]
    real, imagined = share(value, size, excluded, uniform), share(other, size, excluded, moved)
    held = held_labels(size, excluded, slot)
    assert [real[name] for name in held] == [imagined[name] for name in held]
    assert signed(sum(imagined.values()) % RING) == other


@pytest.mark.parametrize("size", range(5, MAX_SLOTS + 1))
def test_every_slot_lacks_exactly_one_label_and_the_excluded_slot_has_none(size: int) -> None:
    for excluded in range(size):
        names = labels_of_sharing(size, excluded)
        assert len(set(names)) == size - 1
        assert held_labels(size, excluded, excluded) == ()
        for slot in set(range(size)) - {excluded}:
            assert set(names) - set(held_labels(size, excluded, slot)) == {label(excluded, slot)}
        for name in names:
            holders = [slot for slot in range(size) if name in held_labels(size, excluded, slot)]
            assert len(holders) == size - 2
            assert not set(holders) & set(name)


@pytest.mark.parametrize("size", COMMITTEES)
def test_any_two_holders_together_have_every_share(size: int) -> None:
    # What the specification states as breaking privacy: the threshold is one.
    for excluded in range(size):
        for pair in combinations([slot for slot in range(size) if slot != excluded], 2):
            held = {name for slot in pair for name in held_labels(size, excluded, slot)}
            assert held == set(labels_of_sharing(size, excluded))


def test_a_sharing_takes_exactly_its_randomness() -> None:
    for size in (0, 4 * SHARE_BYTES - 1, 4 * SHARE_BYTES + 1, 5 * SHARE_BYTES):
        with pytest.raises(ProtocolError, match="bad-randomness"):
            share(1, 6, 0, bytes(size))


def test_a_label_names_two_slots_whatever_their_order() -> None:
    assert label(3, 1) == label(1, 3) == (1, 3)
    with pytest.raises(ProtocolError, match="bad-label"):
        label(2, 2)


@deterministic(60)
@given(st.lists(sharings().filter(lambda sharing: sharing[1] <= 7), max_size=6))
def test_shares_of_one_label_add_up_over_deposits(drawn: list[tuple[int, int, int, bytes]]) -> None:
    parts = [share(value, 7, excluded % 7, (uniform * 2)[: 5 * SHARE_BYTES]) for value, _, excluded, uniform in drawn]
    totals = add_shares(parts)
    assert set(totals) <= set(labels(7))
    assert sum(totals.values()) % RING == sum(value for value, *_ in drawn) % RING


@deterministic(50)
@given(amounts)
def test_a_ring_element_reads_as_a_signed_number(value: int) -> None:
    assert signed(value % RING) == value


def test_a_ring_element_turns_negative_at_half_the_ring() -> None:
    assert [signed(value) for value in (0, HALF_RING - 1, HALF_RING, RING - 1)] == [0, HALF_RING - 1, -HALF_RING, -1]


# --- A, and the groups of labels that its pairs hold ---------------------------------------------------------------


@pytest.mark.parametrize("chosen", EVERY_A)
def test_any_four_slots_hold_each_label_at_least_twice(chosen: Chosen) -> None:
    for name in labels(chosen.committee_size):
        for excluded in name:
            holders = [slot for slot in chosen.slots if name in held_labels(chosen.committee_size, excluded, slot)]
            assert len(holders) >= 2


@pytest.mark.parametrize("chosen", EVERY_A)
def test_sender_and_voucher_of_a_label_are_its_two_lowest_holders_in_a(chosen: Chosen) -> None:
    for name in labels(chosen.committee_size):
        sender, voucher = chosen.group_of(name)
        holders = [position for position in range(4) if chosen.slots[position] not in name]
        assert (sender, voucher) in GROUPS
        assert sender < voucher
        assert [sender, voucher] == sorted(holders)[:2]


@pytest.mark.parametrize("chosen", EVERY_A)
def test_a_group_is_held_by_its_pair_alone_wholly(chosen: Chosen) -> None:
    # Sender and voucher each hold every label of their group: neither is the slot that a label excludes or leaves out.
    for name in labels(chosen.committee_size):
        pair = {chosen.slots[position] for position in chosen.group_of(name)}
        assert not pair & set(name)


@deterministic(40)
@given(st.sampled_from([param.values[0] for param in EVERY_A]), st.data())
def test_group_sums_over_a_add_up_to_the_whole_total(chosen: Chosen, data: st.DataObject) -> None:
    size = chosen.committee_size
    deposits = data.draw(
        st.lists(st.tuples(amounts, st.integers(0, size - 1), binary((size - 2) * SHARE_BYTES)), min_size=1, max_size=5)
    )
    by_slot = {slot: group_sums(chosen, slot, slot_sums(slot, size, deposits)) for slot in chosen.slots}
    total = 0
    for place, pair in enumerate(GROUPS):
        sender, voucher = (by_slot[chosen.slots[position]][place] for position in pair)
        assert sender is not None
        assert sender == voucher
        total += sender
        outside = [by_slot[chosen.slots[position]][place] for position in range(4) if position not in pair]
        assert outside == [None, None]
    assert total % RING == sum(value for value, *_ in deposits) % RING


def slot_sums(slot: int, size: int, deposits: list[tuple[int, int, bytes]]) -> dict[Label, Share]:
    parts = []
    for value, excluded, uniform in deposits:
        whole = share(value, size, excluded, uniform)
        parts.append({name: whole[name] for name in held_labels(size, excluded, slot)})
    return add_shares(parts)


@pytest.mark.parametrize("chosen", EVERY_A)
def test_each_label_is_counted_in_exactly_one_group(chosen: Chosen) -> None:
    # With the value 1 << (bit of the label) for each label, a group's sum shows which labels it counts.
    names = labels(chosen.committee_size)
    marks = {name: Share(1 << place) for place, name in enumerate(names)}
    counted = 0
    for place, pair in enumerate(GROUPS):
        slot = chosen.slots[pair[0]]
        held = {name: mark for name, mark in marks.items() if slot not in name}
        group = group_sums(chosen, slot, held)[place]
        assert group is not None
        assert counted & group == 0
        counted |= group
    assert counted == sum(marks.values())


@pytest.mark.parametrize(
    "slots",
    [(0, 1, 2, 2), (1, 0, 2, 3), (0, 1, 2, 6), (-1, 0, 1, 2), (0, 1, 2), (0, 1, 2, 3, 4)],
    ids=["a slot twice", "unsorted", "no such slot", "a negative slot", "three", "five"],
)
def test_a_choice_that_is_not_four_sorted_slots_of_the_committee_is_refused(slots: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="bad-choice"):
        Chosen(slots, 6)  # type: ignore[arg-type]  the point of the test


@pytest.mark.parametrize("size", range(5, MAX_SLOTS + 1))
@pytest.mark.parametrize("value", [-1, 0, 1])
def test_a_value_that_holders_know_is_borne_by_the_first_label_alone(size: int, value: int) -> None:
    for excluded in range(size):
        first, *others = labels_of_sharing(size, excluded)
        assert plain_share(value, size, excluded) == {first: value % RING, **dict.fromkeys(others, 0)}
