"""Custodians that disagree, or one that lies, get no tag opened but the right one, whatever the service does."""

from collections.abc import Iterator
from dataclasses import fields, replace
from hashlib import sha256
from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import POINTS, binary, deterministic
from world import LIMIT, FourCustodians, Shared

from protocol import comparison, group, kdf
from protocol.check import Verdict
from protocol.comparison import Disagreement, Garbled, Part, Seed, Sent, Vouched
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.sharing import Chosen, labels
from protocol.stamps import deposit_stamp, pair_stamp
from protocol.token import Pseudonym

A = Chosen((0, 2, 3, 5), 6)
EXCEEDS, WITHIN, INDETERMINATE = Verdict.EXCEEDS, Verdict.WITHIN, Verdict.INDETERMINATE
BASE = Shared(LIMIT - 1, 1)
LATE = Shared(2, 4)
"""With it the total is one fen above the limit, without it one below."""


def every_a(size: int) -> list[Chosen]:
    return [Chosen(slots, size) for slots in combinations(range(size), 4)]


def subsets(slots: tuple[int, ...]) -> Iterator[frozenset[int]]:
    return map(frozenset, chain.from_iterable(combinations(slots, count) for count in range(len(slots) + 1)))


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :]


def outcome(four: FourCustodians, parts: dict[int, Part]) -> list[Verdict] | None:
    """Return what the requester reads; None where the service noticed the disagreement itself."""
    try:
        return four.evaluate(parts)
    except Disagreement:
        return None


# --- a deposit that only some of A hold ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 6, 7])
def test_a_deposit_that_only_some_of_a_hold_opens_no_tag_for_any_a_and_any_subset(size: int) -> None:
    cases = split = 0
    for chosen in every_a(size)[:: 4 if size == 7 else 1]:
        for excluded in range(size):
            late, four = replace(LATE, excluded=excluded), FourCustodians(chosen)
            holders = tuple(slot for slot in chosen.slots if slot != excluded)
            with_it = {slot: four.part(slot, [[BASE, late]]) for slot in chosen.slots}
            without = {slot: four.part(slot, [[BASE, replace(late, visible=frozenset())]]) for slot in chosen.slots}
            for seen in subsets(holders):
                parts = {slot: (with_it if slot in seen else without)[slot] for slot in chosen.slots}
                noticed, regardless = outcome(four, parts), four.evaluate_regardless(parts)
                cases += 1
                if seen == frozenset(holders):
                    assert noticed == regardless == [EXCEEDS]
                elif not seen:
                    assert noticed == regardless == [WITHIN]
                else:
                    split += 1
                    assert noticed is None, (chosen, excluded, seen)
                    assert regardless == [INDETERMINATE], (chosen, excluded, seen)
    assert (cases, split) == {5: (240, 190), 6: (960, 780), 7: (720, 594)}[size]


@pytest.mark.parametrize("excluded", range(6))
def test_custodians_disagree_about_a_deposit_of_one_person_for_every_other_person_alike(excluded: int) -> None:
    # Else the service could hold one commit back and recognise its person in a later check by the disagreement.
    late = replace(LATE, excluded=excluded)
    four = FourCustodians(A, (LIMIT, LIMIT))
    holders = tuple(slot for slot in A.slots if slot != excluded)
    for seen in subsets(holders):
        if seen in (frozenset(), frozenset(holders)):
            continue
        named = []
        for lanes in ([[replace(late, visible=seen)], []], [[], [replace(late, visible=seen)]]):
            parts = four.parts(lanes)
            # Lane 1's deposit touches lane 0 through the stamps alone, and the other way round.
            assert four.evaluate_regardless(parts) == [INDETERMINATE, INDETERMINATE]
            with pytest.raises(Disagreement) as alarm:
                four.evaluate(parts)
            named.append(alarm.value)
        assert named[0] == named[1]


def test_one_custodian_that_lacks_a_deposit_is_the_one_whom_the_alarm_names() -> None:
    for excluded in (0, 1, 4, 5):
        for lacking in set(A.slots) - {excluded}:
            seen = frozenset(A.slots) - {lacking}
            with pytest.raises(Disagreement) as alarm:
                FourCustodians(A).evaluate(FourCustodians(A).parts([[replace(LATE, excluded=excluded, visible=seen)]]))
            assert alarm.value.slots == (lacking,)


def test_two_deposits_split_two_ways_open_no_tag() -> None:
    # Their amounts cancel in the total, so only what each custodian holds differs.
    for one, two in combinations(list(subsets(A.slots))[1:-1], 2):
        four = FourCustodians(A)
        parts = four.parts([[BASE, Shared(5, 1, one), Shared(-5, 1, two)]])
        assert outcome(four, parts) is None
        assert four.evaluate_regardless(parts) == [INDETERMINATE]


def test_a_deposit_at_another_tick_disagrees_although_the_sums_are_equal() -> None:
    four, lanes = FourCustodians(A), [[BASE]]
    parts = four.parts(lanes)
    inputs = [comparison.LaneInput((0, None, None, 0, 0, None), LIMIT)]
    # The one deposit of the lane, as `FourCustodians` names it, at tick 2 where the others have tick 1.
    later = group.accumulate(group.IDENTITY, [deposit_stamp("insurer-01", bytes(16), 2)])
    for slot in A.slots:
        other = comparison.garble(four.seed, four.tags, inputs, A, slot, {1: later})
        mixed = {**parts, slot: replace(parts[slot], sent=stamped(parts[slot], other), vouched=other.vouched)}
        assert outcome(four, mixed) is None
        assert four.evaluate_regardless(mixed) == [INDETERMINATE]


def stamped(part: Part, other: Part) -> tuple[Sent, ...]:
    """Return a part's labels with another's stamps."""
    return tuple(Sent(labels=mine.labels, stamp=its.stamp) for mine, its in zip(part.sent, other.sent, strict=True))


# --- one custodian that lies ---------------------------------------------------------------------------------------

HONEST = FourCustodians(A)
OVER = [[Shared(LIMIT + 1, 1)]]
UNDER = [[Shared(LIMIT, 1)]]
TRUTH = [pytest.param(OVER, EXCEEDS, id="over the limit"), pytest.param(UNDER, WITHIN, id="at the limit")]


@pytest.mark.parametrize(("lanes", "truth"), TRUTH)
@pytest.mark.parametrize("slot", A.slots)
def test_a_custodian_that_changes_one_share_opens_no_tag(lanes: list[list[Shared]], truth: Verdict, slot: int) -> None:
    parts = HONEST.parts(lanes)
    assert HONEST.evaluate(parts) == [truth]
    changed = 0
    for name in labels(6):
        if slot in name:
            continue
        for by in (1, -1, LIMIT, -LIMIT, 2**47):
            lie = HONEST.part(slot, lanes, change={name: by})
            mixed = {**parts, slot: lie}
            # A label that two others of A send and vouch for is not this custodian's to change.
            if slot not in {A.slots[position] for position in A.group_of(name)}:
                assert lie == parts[slot]
                continue
            changed += 1
            assert outcome(HONEST, mixed) is None
            assert HONEST.evaluate_regardless(mixed) == [INDETERMINATE]
    assert changed > 10


@pytest.mark.parametrize(("lanes", "truth"), TRUTH)
@pytest.mark.parametrize("slot", A.slots)
def test_no_single_bit_of_a_part_can_be_flipped_for_another_verdict(
    lanes: list[list[Shared]], truth: Verdict, slot: int
) -> None:
    parts = HONEST.parts(lanes)
    data = encode(parts[slot])
    step = max(1, len(data) * 8 // 300)
    refused = noticed = 0
    for bit in chain(range(0, 64 * 8, 13), range(7, len(data) * 8, step + step % 2 + 1)):
        try:
            lie = decode(Part, flipped(data, bit))
        except ProtocolError:
            refused += 1
            continue
        assert spoilt(parts, slot, lie), bit
        noticed += 1
    assert refused > 0
    assert noticed > 200
    assert HONEST.evaluate(parts) == [truth]


@pytest.mark.parametrize(("lanes", "truth"), TRUTH)
def test_no_single_bit_of_a_part_gives_the_other_verdict_even_if_the_service_goes_on(
    lanes: list[list[Shared]], truth: Verdict
) -> None:
    other = WITHIN if truth is EXCEEDS else EXCEEDS
    parts, seen = HONEST.parts(lanes), set()
    for slot in A.slots:
        data = encode(parts[slot])
        for bit in range(11, len(data) * 8, max(1, len(data) * 8 // 150) | 1):
            try:
                lie = decode(Part, flipped(data, bit))
            except ProtocolError:
                continue
            try:
                (verdict,) = HONEST.evaluate_regardless({**parts, slot: lie})
            except (AssertionError, IndexError, ProtocolError):  # a part without what evaluating takes
                continue
            assert verdict is not other
            seen.add(verdict)
    assert seen == {truth, INDETERMINATE}  # flips that only the comparison notices, and flips that spoil the tag


def spoilt(parts: dict[int, Part], slot: int, lie: Part) -> bool:
    """Tell whether a lie is noticed by the service."""
    return lie != parts[slot] and outcome(HONEST, {**parts, slot: lie}) is None


def lies(part: Part) -> Iterator[tuple[str, Part]]:
    """Yield a part with each field changed in turn, named."""
    yield "session check", replace(part, session_check=flipped(part.session_check, 0))
    yield "digest of the circuit", replace(part, garbled_digest=flipped(part.garbled_digest, 255))
    if part.garbled is not None:
        for field in fields(Garbled):
            data = getattr(part.garbled, field.name)
            for bit in (0, len(data) * 4, len(data) * 8 - 1):
                lie = replace(part.garbled, **{field.name: flipped(data, bit)})
                yield f"{field.name}, bit {bit}", replace(part, garbled=lie)
                yield f"{field.name}, bit {bit}, digest too", replace(part, garbled=lie, garbled_digest=lie.digest())
            lie = replace(part.garbled, **{field.name: data[:-1] if field.name != "aes_key" else bytes(16)})
            yield f"{field.name} short or zero, digest too", replace(part, garbled=lie, garbled_digest=lie.digest())
        yield "no circuit", replace(part, garbled=None)
    else:
        garbled = Garbled(
            table=bytes(comparison._TABLE_BYTES), aes_key=bytes(16), outputs=bytes(32), vouchers=bytes(6 * 32)
        )
        yield "a circuit too many", replace(part, garbled=garbled)
    for name in ("sent", "vouched"):
        groups = getattr(part, name)
        for place, one in enumerate(groups):
            for field in fields(one):
                data = getattr(one, field.name)
                for bit in (0, len(data) * 8 - 1):
                    lie = replace(one, **{field.name: flipped(data, bit)})
                    yield f"{name} {place}, {field.name}", replace(part, **{name: replaced(groups, place, lie)})
                if field.name != "stamp":
                    lie = replace(one, **{field.name: data[:-1]})
                    yield f"{name} {place}, {field.name} short", replace(part, **{name: replaced(groups, place, lie)})
            yield f"{name} {place} missing", replace(part, **{name: groups[:place] + groups[place + 1 :]})
            yield f"{name} {place} twice", replace(part, **{name: (*groups, one)})
        if len(groups) > 1:
            yield f"{name} in another order", replace(part, **{name: groups[::-1]})


def replaced(values: tuple[object, ...], place: int, value: object) -> tuple[object, ...]:
    return (*values[:place], value, *values[place + 1 :])


@pytest.mark.parametrize(("lanes", "truth"), TRUTH)
@pytest.mark.parametrize("slot", A.slots)
def test_a_custodian_that_changes_any_field_opens_no_tag(lanes: list[list[Shared]], truth: Verdict, slot: int) -> None:
    parts = HONEST.parts(lanes)
    count = 0
    for what, lie in lies(parts[slot]):
        assert spoilt(parts, slot, lie), what
        count += 1
    assert count > 20
    assert HONEST.evaluate(parts) == [truth]


@pytest.mark.parametrize(("position", "field"), [(0, "sent"), (3, "vouched")])
def test_the_alarm_names_a_custodian_that_lies_in_all_its_groups(position: int, field: str) -> None:
    parts, slot = HONEST.parts(OVER), A.slots[position]
    if field == "sent":
        lie = replace(parts[slot], sent=tuple(replace(g, stamp=flipped(g.stamp, 3)) for g in parts[slot].sent))
    else:
        lie = replace(parts[slot], vouched=tuple(replace(g, digests=bytes(32)) for g in parts[slot].vouched))
    with pytest.raises(Disagreement) as alarm:
        HONEST.evaluate({**parts, slot: lie})
    assert alarm.value.slots == (slot,)


@pytest.mark.parametrize("slot", A.slots)
def test_the_alarm_names_the_one_custodian_of_another_session_or_circuit(slot: int) -> None:
    parts = HONEST.parts(OVER)
    for field in ("session_check", "garbled_digest"):
        with pytest.raises(Disagreement) as alarm:
            HONEST.evaluate({**parts, slot: replace(parts[slot], **{field: bytes(32)})})
        assert alarm.value.slots == (slot,)


def test_with_two_against_two_the_alarm_names_all() -> None:
    parts = HONEST.parts(OVER)
    for slot in A.slots[:2]:
        parts[slot] = replace(parts[slot], session_check=bytes(32))
    with pytest.raises(Disagreement) as alarm:
        HONEST.evaluate(parts)
    assert alarm.value.slots == A.slots


def test_an_alarm_says_nothing_of_labels_or_shares() -> None:
    parts = HONEST.parts(OVER)
    parts[2] = HONEST.part(2, OVER, change={(0, 1): 5, (1, 3): 5, (1, 5): 5})
    with pytest.raises(Disagreement) as alarm:
        HONEST.evaluate(parts)
    assert alarm.value.what == "shares or stamps"
    assert vars(alarm.value) == {"slots": (2,), "what": "shares or stamps"}
    assert str(alarm.value) == "slots (2,): shares or stamps"
    assert alarm.value.args == ("slots (2,): shares or stamps",)


def test_disagreements_are_equal_exactly_when_they_name_the_same() -> None:
    one, other = Disagreement((1, 2), "session"), (Disagreement((1,), "session"), Disagreement((1, 2), "a part"))
    assert one == Disagreement((1, 2), "session")
    assert hash(one) == hash(Disagreement((1, 2), "session"))
    assert all(one != another for another in (*other, (1, 2), None, ValueError("session")))
    assert len({one, *other, Disagreement((1, 2), "session")}) == 3


# --- doctoring K to turn the verdict -------------------------------------------------------------------------------


@pytest.mark.parametrize(("lanes", "truth"), TRUTH)
@pytest.mark.parametrize("slot", A.slots[1:])
def test_a_voucher_that_xors_the_difference_of_the_tags_into_its_k_opens_no_tag(
    lanes: list[list[Shared]], truth: Verdict, slot: int
) -> None:
    # Every custodian knows both tags. With a mask that were the XOR of the K this would turn the verdict, had the
    # service no hash of K to compare, or did it not compare.
    parts = HONEST.parts(lanes)
    within, exceeds = HONEST.tags[0]
    difference = bytes(a ^ b for a, b in zip(within, exceeds, strict=True))
    for place, vouched in enumerate(parts[slot].vouched):
        for shift in range(17):
            spread = bytes(shift) + difference + bytes(16 - shift)
            masked = bytes(a ^ b for a, b in zip(vouched.masked, spread, strict=True))
            lie = Vouched(masked=masked, digests=vouched.digests)
            mixed = {**parts, slot: replace(parts[slot], vouched=replaced(parts[slot].vouched, place, lie))}
            with pytest.raises(Disagreement) as alarm:
                HONEST.evaluate(mixed)
            assert alarm.value == Disagreement((slot,), "a voucher's K")
            # If the service goes on regardless, the hashed mask spoils the tag.
            assert HONEST.evaluate_regardless(mixed) == [INDETERMINATE]
    assert HONEST.evaluate(parts) == [truth]


def test_a_first_custodian_that_doctors_the_hashes_of_k_is_the_one_whom_the_alarm_names() -> None:
    # Else it could have the blame put on a voucher.
    parts = HONEST.parts(OVER)
    garbled = parts[0].garbled
    assert garbled is not None
    for bit in range(0, len(garbled.vouchers) * 8, 97):
        lie = replace(garbled, vouchers=flipped(garbled.vouchers, bit))
        for part in (replace(parts[0], garbled=lie), replace(parts[0], garbled=lie, garbled_digest=lie.digest())):
            with pytest.raises(Disagreement) as alarm:
                HONEST.evaluate({**parts, 0: part})
            assert alarm.value == Disagreement((0,), "garbled circuit")
            # No tag hangs on the hashes.
            assert HONEST.evaluate_regardless({**parts, 0: part}) == [EXCEEDS]


@pytest.mark.parametrize("field", ["table", "outputs", "vouchers"])
def test_a_first_custodian_whose_circuit_has_a_wrong_size_is_the_one_whom_the_alarm_names(field: str) -> None:
    parts = HONEST.parts(OVER)
    garbled = parts[0].garbled
    assert garbled is not None
    data = getattr(garbled, field)
    for wrong in (data[:-1], data[:-32], data + data[:32], b""):
        lie = replace(garbled, **{field: wrong})
        mixed = {slot: replace(part, garbled_digest=lie.digest()) for slot, part in parts.items()}
        with pytest.raises(Disagreement) as alarm:
            HONEST.evaluate({**mixed, 0: replace(mixed[0], garbled=lie)})
        assert alarm.value == Disagreement((0,), "a part is malformed")


def test_the_hashes_are_of_the_k_of_each_lane_and_group_and_show_none() -> None:
    four = FourCustodians(A, (LIMIT,) * 3)
    parts = four.parts([[], [], []])
    garbled = parts[0].garbled
    assert garbled is not None
    stream = kdf.stream(four.seed.key("K"), 3 * 6 * 32)
    every_k = [stream[at : at + 32] for at in range(0, len(stream), 32)]
    hashes = [sha256(b"cover-lookup/v1 voucher hash" + k).digest() for k in every_k]
    assert garbled.vouchers == b"".join(hashes)
    assert len({*every_k, *hashes}) == 2 * 3 * 6
    sent = b"".join(encode(part) for part in parts.values())
    assert not any(k in sent for k in every_k)


def test_a_k_of_another_lane_or_group_is_no_k_of_this_one() -> None:
    four = FourCustodians(A, (LIMIT,) * 2)
    parts = four.parts([[Shared(LIMIT + 1, 1)], [Shared(LIMIT, 1)]])
    stream = kdf.stream(four.seed.key("K"), 2 * 6 * 32)
    every_k = {
        (lane, place): stream[(at := (6 * lane + place) * 32) : at + 32] for lane in (0, 1) for place in range(6)
    }
    for place, (sender, voucher) in enumerate(comparison.GROUPS):
        slot = A.slots[voucher]
        vouched, sent = parts[slot].vouched[sender], parts[A.slots[sender]].sent[voucher - sender - 1]
        for lane, swapped in (((0), (1, place)), (0, (0, (place + 1) % 6)), (1, (1, (place + 5) % 6))):
            pad = comparison._voucher_pad(sent.labels[768 * lane : 768 * lane + 768], sent.stamp, place, lane)
            masked = bytearray(vouched.masked)
            assert masked[32 * lane : 32 * lane + 32] == comparison._xor(pad, every_k[lane, place])
            masked[32 * lane : 32 * lane + 32] = comparison._xor(pad, every_k[swapped])
            lie = replace(
                parts[slot], vouched=replaced(parts[slot].vouched, sender, replace(vouched, masked=bytes(masked)))
            )
            with pytest.raises(Disagreement) as alarm:
                four.evaluate({**parts, slot: lie})
            assert alarm.value == Disagreement((slot,), "a voucher's K")
            expected = [EXCEEDS, WITHIN]
            expected[lane] = INDETERMINATE
            assert four.evaluate_regardless({**parts, slot: lie}) == expected


def test_a_first_custodian_that_swaps_the_outputs_is_noticed_and_cannot_turn_the_verdict_by_itself() -> None:
    parts = HONEST.parts(OVER)
    garbled = parts[0].garbled
    assert garbled is not None
    swapped = replace(garbled, outputs=garbled.outputs[16:] + garbled.outputs[:16])
    within, exceeds = HONEST.tags[0]
    difference = int.from_bytes(within, "big") ^ int.from_bytes(exceeds, "big")
    other = (int.from_bytes(garbled.outputs, "big") ^ (difference << 128 | difference)).to_bytes(32, "big")
    for lie in (swapped, replace(garbled, outputs=other)):
        mixed = {**parts, 0: replace(parts[0], garbled=lie, garbled_digest=lie.digest())}
        assert outcome(HONEST, mixed) is None
    # That the service compares is what stops the second: with the service, a custodian forges verdicts.
    assert HONEST.evaluate_regardless({**parts, 0: replace(parts[0], garbled=replace(garbled, outputs=other))}) == [
        WITHIN
    ]


# --- several lanes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", A.slots)
def test_a_custodian_that_poisons_one_lane_of_several_turns_no_lane(slot: int) -> None:
    four = FourCustodians(A, (LIMIT,) * 3)
    lanes = [[Shared(LIMIT + 1, 1)], [Shared(LIMIT, 1)], [Shared(LIMIT + 5, 4)]]
    truth = [EXCEEDS, WITHIN, EXCEEDS]
    parts = four.parts(lanes)
    assert four.evaluate(parts) == truth
    lie = four.part(slot, lanes, change={name: 3 for name in labels(6) if slot not in name})
    assert outcome(four, {**parts, slot: lie}) is None
    assert four.evaluate_regardless({**parts, slot: lie}) == [INDETERMINATE, WITHIN, EXCEEDS]


def test_a_doctored_k_spoils_its_own_lane_alone() -> None:
    four = FourCustodians(A, (LIMIT,) * 3)
    lanes = [[Shared(LIMIT + 1, 1)], [Shared(LIMIT, 1)], [Shared(LIMIT + 5, 4)]]
    parts = four.parts(lanes)
    for lane in range(3):
        vouched = parts[5].vouched[0]
        lie = replace(vouched, masked=flipped(vouched.masked, lane * 256 + 9))
        mixed = {**parts, 5: replace(parts[5], vouched=replaced(parts[5].vouched, 0, lie))}
        expected = [EXCEEDS, WITHIN, EXCEEDS]
        expected[lane] = INDETERMINATE
        with pytest.raises(Disagreement) as alarm:
            four.evaluate(mixed)
        assert alarm.value == Disagreement((5,), "a voucher's K")
        assert four.evaluate_regardless(mixed) == expected


def test_swapping_lanes_within_a_part_opens_no_tag_of_another_lane() -> None:
    four = FourCustodians(A, (LIMIT, LIMIT))
    parts = four.parts([[Shared(LIMIT + 1, 1)], [Shared(0, 1)]])

    def halves_swapped(data: bytes) -> bytes:
        return data[len(data) // 2 :] + data[: len(data) // 2]

    swapped = {
        slot: replace(
            part,
            sent=tuple(replace(group, labels=halves_swapped(group.labels)) for group in part.sent),
            vouched=tuple(
                Vouched(masked=halves_swapped(group.masked), digests=halves_swapped(group.digests))
                for group in part.vouched
            ),
        )
        for slot, part in parts.items()
    }
    assert outcome(four, swapped) is None
    assert four.evaluate_regardless(swapped) == [INDETERMINATE, INDETERMINATE]


# --- what the garbling is bound to ---------------------------------------------------------------------------------


def test_parts_of_two_garblings_do_not_mix() -> None:
    one, two = FourCustodians(A, name="one"), FourCustodians(A, name="two")
    left, right = one.parts(OVER), two.parts(OVER)
    for taken in subsets(A.slots):
        if taken in (frozenset(), frozenset(A.slots)):
            continue
        mixed = {slot: (left if slot in taken else right)[slot] for slot in A.slots}
        for four in (one, two):
            assert outcome(four, mixed) is None
            assert four.evaluate_regardless(mixed) == [INDETERMINATE]


def test_a_service_that_evaluates_under_another_header_opens_nothing() -> None:
    parts = HONEST.parts(OVER)
    (tag,) = comparison.evaluate(parts, A, 1, HONEST.header + b"!")
    assert HONEST.verdict(0, tag) is INDETERMINATE


def test_the_label_seed_depends_on_everything_it_is_derived_from() -> None:
    one, two = (Pseudonym(bytes([byte]) * 32) for byte in (1, 2))
    seeds = {
        Seed.derive(seed, key, header, pseudonyms).secret
        for seed in (bytes(32), b"\x01" + bytes(31))
        for key in (bytes(32), b"\x01" + bytes(31))
        for header in (b"header", b"heade")
        for pseudonyms in ((one,), (two,), (one, two), (two, one), (one, one))
    }
    assert len(seeds) == 2 * 2 * 2 * 5


def test_sub_keys_of_a_seed_are_unequal_and_do_not_print() -> None:
    seed = HONEST.seed
    assert len({seed.key(name) for name in ("wire labels", "offsets", "AES key", "K", "session")}) == 5
    assert seed.secret.hex() not in repr(seed)
    assert repr(seed.secret) not in repr(seed)


def test_pads_digests_masks_and_stamps_are_apart_by_domain_group_lane_and_pair() -> None:
    # Even where labels, stamps or sums are equal: none stands for another.
    derived = [
        make(bytes(768), bytes(32), place, lane)
        for make in (comparison._voucher_pad, comparison._voucher_digest)
        for place in range(6)
        for lane in (0, 1, 256)
    ]
    assert len(set(derived)) == 2 * 6 * 3
    masks = {comparison._output_mask(header, lane, bytes(192)) for header in (b"", b"h") for lane in (0, 1, 256)}
    assert len(masks) == 6
    assert len({pair_stamp(bytes(32), pair, 6, {}) for pair in combinations(range(6), 2)}) == 15


@pytest.mark.parametrize("pair", [(0, 1), (2, 5)])
def test_a_stamp_covers_the_sums_of_every_slot_that_the_pair_holds_and_of_no_other(pair: tuple[int, int]) -> None:
    empty = pair_stamp(bytes(32), pair, 6, {})
    for excluded in range(6):
        assert (pair_stamp(bytes(32), pair, 6, {excluded: POINTS[0]}) == empty) == (excluded in pair)
        assert pair_stamp(bytes(32), pair, 6, {excluded: group.IDENTITY}) == empty
    one, two, none = POINTS[0], POINTS[1], group.IDENTITY
    both = group.accumulate(one, [two])
    splits = ((one, two), (two, one), (both, none), (none, both))
    sums = [pair_stamp(bytes(32), (0, 1), 6, {2: left, 3: right}) for left, right in splits]
    assert len(set(sums)) == 4
    assert pair_stamp(b"k" * 32, pair, 6, {}) != empty


Stamped = tuple[str, bytes, int]
stamped_deposits = st.tuples(
    st.sampled_from(["insurer-01", "insurer-02", "\u4fdd"]), binary(16), st.integers(0, 2**64 - 1)
)


def sum_of(deposits: list[Stamped]) -> bytes:
    return group.accumulate(group.IDENTITY, [deposit_stamp(*deposit) for deposit in deposits])


@deterministic(60)
@given(st.lists(stamped_deposits, max_size=8).flatmap(lambda some: st.tuples(st.just(some), st.permutations(some))))
def test_equal_multisets_of_deposits_have_equal_sums_in_whatever_order(
    both: tuple[list[Stamped], list[Stamped]],
) -> None:
    one, other = both
    assert sum_of(one) == sum_of(other)
    halves = sum_of(one[::2]), [deposit_stamp(*deposit) for deposit in one[1::2]]
    assert group.accumulate(*halves) == sum_of(other)
    assert (sum_of(one) == group.IDENTITY) == (not one)


@deterministic(60)
@given(st.lists(stamped_deposits, min_size=1, max_size=5), st.lists(stamped_deposits, min_size=1, max_size=5))
def test_unequal_multisets_of_deposits_have_unequal_sums(one: list[Stamped], other: list[Stamped]) -> None:
    assert (sum_of(one) == sum_of(other)) == (sorted(one) == sorted(other))
    assert sum_of([*one, one[0]]) != sum_of(one)


@deterministic(60)
@given(st.lists(stamped_deposits, max_size=4), stamped_deposits, st.integers(0, 63))
def test_another_tick_depositor_or_id_is_another_sum_and_moving_a_tick_and_back_restores_it(
    rest: list[Stamped], deposit: Stamped, bit: int
) -> None:
    depositor, deposit_id, tick = deposit
    before = sum_of([*rest, deposit])
    changed: list[Stamped] = [
        (depositor, deposit_id, tick ^ (1 << bit)),
        (depositor + "x", deposit_id, tick),
        (depositor[:-1], deposit_id, tick),
        (depositor, flipped(deposit_id, bit), tick),
    ]
    assert len({before, *(sum_of([*rest, other]) for other in changed)}) == 5
    was, moved = deposit_stamp(*deposit), deposit_stamp(*changed[0])
    away = group.accumulate(group.accumulate(before, [was], sign=-1), [moved])
    assert away == sum_of([*rest, changed[0]])
    assert group.accumulate(group.accumulate(away, [moved], sign=-1), [was]) == before


@deterministic(20)
@given(stamped_deposits)
def test_a_stamp_is_an_element_of_the_group(deposit: Stamped) -> None:
    # Sums of integers mod 2^256 would let whoever chooses ticks find two sets with one sum (Wagner 2002).
    assert group.is_element(deposit_stamp(*deposit))


def test_tags_follow_from_seed_check_attempt_choice_and_lane_and_no_two_are_equal() -> None:
    variants = [
        (bytes(32), bytes(16), 1, (0, 1, 2, 3)),
        (b"\x01" * 32, bytes(16), 1, (0, 1, 2, 3)),
        (bytes(32), b"\x01" * 16, 1, (0, 1, 2, 3)),
        (bytes(32), bytes(16), 2, (0, 1, 2, 3)),
        (bytes(32), bytes(16), 1, (0, 1, 2, 4)),
    ]
    seen = {tag for variant in variants for pair in comparison.tags(*variant, 50) for tag in pair}
    assert len(seen) == len(variants) * 50 * 2
    assert comparison.tags(*variants[0], 3) == comparison.tags(*variants[0], 50)[:3]


def test_what_one_custodian_sends_has_neither_tag_in_it() -> None:
    parts = HONEST.parts(OVER)
    for part in parts.values():
        for tag in HONEST.tags[0]:
            assert tag not in encode(part)
