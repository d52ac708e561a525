"""Every single bit of all four parts of a comparison is flipped: it is noticed, and the other tag never opens.

In an everyday run, of tables and labels, which are nine tenths of a part, one bit in STRIDE.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
from numpy.typing import NDArray
from strategies import EVERYDAY
from test_comparison import flipped, replaced
from world import LIMIT, FourCustodians, Shared, opened

from protocol import comparison
from protocol.check import Verdict
from protocol.comparison import Disagreement, Part
from protocol.sharing import GROUPS, Chosen, labels

EXCEEDS, WITHIN, INDETERMINATE = Verdict.EXCEEDS, Verdict.WITHIN, Verdict.INDETERMINATE
TRUTHS = (WITHIN, EXCEEDS)
OTHER = {WITHIN: EXCEEDS, EXCEEDS: WITHIN}


A = Chosen((0, 2, 3, 5), 6)
LANES = 512
Where = tuple[int, str, int | None, str]
"""Position in A, "part", "garbled", "sent" or "vouched", which of these, and the field."""
FIELDS = {
    "part": ("session_check", "garbled_digest"),
    "garbled": ("table", "aes_key", "outputs", "vouchers"),
    "sent": ("labels", "stamp"),
    "vouched": ("masked", "digests"),
}
SHARED_BY_LANES = {"session_check", "garbled_digest", "aes_key", "stamp"}
STRIDE = 37 if EVERYDAY else 1
"""Odd, so that every place in a byte is met."""


def bits_of(field: str, size: int) -> range:
    """Return the bits of a field of so many bytes that are flipped."""
    return range(0, 8 * size, STRIDE if field in ("table", "labels") else 1)


LARGE = len(bits_of("table", 10_272)) + 6 * len(bits_of("labels", 768))
BITS = LARGE + 8 * (4 * (32 + 32) + (16 + 32 + 6 * 32) + 6 * 32 + 6 * (32 + 32))
"""Of the four parts of one lane: two hashes each; circuit; six groups sent and vouched for."""


@dataclass(frozen=True)
class Batch(FourCustodians):
    """Leaves the tags unread, so that the many of a batch are compared at once; keeps what does not change."""

    @property
    def header(self) -> bytes:
        return b"one comparison of many lanes"

    def verdict(self, _lane: int, tag: bytes) -> bytes:  # type: ignore[override]  a verdict in the parent
        return tag

    @cached_property
    def pairs(self) -> list[tuple[bytes, bytes]]:
        return self.tags

    def circuit(self, parts: dict[int, Part]) -> list[bytes]:
        """Return what the output rows open to, under their masks: of `evaluate_regardless` what a table bears on."""
        lanes, ordered = len(self.limits), [parts[slot] for slot in self.chosen.slots]
        garbled = ordered[0].garbled
        assert garbled is not None
        groups = [sent.labels for _, sent, _ in comparison._groups(ordered)]
        return opened(garbled, groups, lanes)

    def read(self, tags: Iterable[bytes]) -> list[Verdict]:
        return [
            {within: WITHIN, exceeds: EXCEEDS}.get(tag, INDETERMINATE)
            for tag, (within, exceeds) in zip(tags, self.pairs, strict=True)
        ]


def as_blocks(pieces: Iterable[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(pieces), dtype="<u8").reshape(LANES, 2)


def alternating(lanes: int) -> list[list[Shared]]:
    """Return lanes at the limit and one above it, in turn, each over two sharings that reach all six groups."""
    return [[Shared(LIMIT - 7, 1), Shared(7 + lane % 2, 4)] for lane in range(lanes)]


def places(parts: dict[int, Part]) -> Iterator[Where]:
    for position, slot in enumerate(A.slots):
        part = parts[slot]
        yield from ((position, "part", None, field) for field in FIELDS["part"])
        if part.garbled is not None:
            yield from ((position, "garbled", None, field) for field in FIELDS["garbled"])
        for kind in ("sent", "vouched"):
            for place in range(len(getattr(part, kind))):
                yield from ((position, kind, place, field) for field in FIELDS[kind])


def field_of(parts: dict[int, Part], where: Where) -> bytes:
    position, kind, place, field = where
    part = parts[A.slots[position]]
    holder = part if kind == "part" else getattr(part, kind)
    data: bytes = getattr(holder if place is None else holder[place], field)
    return data


def with_field(parts: dict[int, Part], where: Where, data: bytes | bytearray) -> dict[int, Part]:
    """Return the parts with one field of one of them changed."""
    position, kind, place, field = where
    slot = A.slots[position]
    part = parts[slot]
    if kind == "part":
        return {**parts, slot: replace(part, **{field: data})}
    holder = getattr(part, kind)
    lie = (
        replace(holder, **{field: data})
        if place is None
        else replaced(holder, place, replace(holder[place], **{field: data}))
    )
    return {**parts, slot: replace(part, **{kind: lie})}


def alarm_of(where: Where) -> Disagreement:
    """Return what the service says of a flip there, and whom it names."""
    position, kind, place, field = where
    if kind == "sent" or field == "digests":
        pair = (position, position + 1 + (place or 0)) if kind == "sent" else (place or 0, position)
        assert pair in GROUPS
        return Disagreement((A.slots[pair[0]], A.slots[pair[1]]), "shares or stamps")
    what = {"session_check": "session", "masked": "a voucher's K"}.get(field, "garbled circuit")
    return Disagreement((A.slots[position],), what)


SPOILT, SPARED = {INDETERMINATE}, {None}
REGARDLESS = {
    "session_check": SPARED,
    "garbled_digest": SPARED,
    "table": SPOILT | SPARED,
    "aes_key": SPOILT,
    "outputs": SPOILT | SPARED,
    "vouchers": SPARED,
    "labels": SPOILT,
    "stamp": SPOILT,
    "masked": SPOILT,
    "digests": SPARED,
}
"""What comes of flips in a field if the service goes on regardless: the tag is noise, or (None) the right one.

Right where no tag hangs on it: on what only the comparison reads, a gate's row or an output's row that is not opened.
"""


@pytest.mark.parametrize("truth", TRUTHS)
def test_every_bit_of_every_part_when_flipped_is_an_alarm_that_names_who_may_have_flipped_it(truth: Verdict) -> None:
    four = FourCustodians(A)
    parts = four.parts([[Shared(LIMIT - 7, 1), Shared(7 + TRUTHS.index(truth), 4)]])
    header, tried = four.header, 0
    for where in places(parts):
        data, expected = field_of(parts, where), alarm_of(where)
        for bit in bits_of(where[-1], len(data)):
            lie = with_field(parts, where, flipped(data, bit))
            try:
                opened = comparison.evaluate(lie, A, 1, header)
            except Disagreement as alarm:
                assert alarm == expected, (where, bit)  # noqa: PT017  one of a hundred thousand: no context manager each
                tried += 1
                continue
            raise AssertionError((where, bit, four.verdict(0, opened[0])))
    assert tried == BITS
    assert four.evaluate(parts) == [truth]


def test_no_bit_of_a_part_that_lanes_share_gives_the_other_verdict_if_the_service_goes_on() -> None:
    four = Batch(A, (LIMIT,) * 2)
    parts, tried = four.parts(alternating(2)), 0
    for where in places(parts):
        if where[-1] not in SHARED_BY_LANES:
            continue
        data, seen = field_of(parts, where), set()
        for bit in range(len(data) * 8):
            verdicts = four.read(four.evaluate_regardless(with_field(parts, where, flipped(data, bit))))
            seen |= {against(truth, verdict) for truth, verdict in zip(TRUTHS, verdicts, strict=True)}
            tried += 1
        assert seen == REGARDLESS[where[-1]], where
    assert tried == 8 * (4 * (32 + 32) + 16 + 6 * 32)
    assert four.read(four.evaluate_regardless(parts)) == list(TRUTHS)


def test_no_bit_of_a_lane_of_a_part_gives_the_other_verdict_if_the_service_goes_on() -> None:
    # One bit a lane: lanes are independent, so one evaluation tries 256 bits, each at the limit and one above it.
    four = Batch(A, (LIMIT,) * LANES)
    parts, tried = four.parts(alternating(LANES)), 0
    truths = list(TRUTHS) * (LANES // 2)
    tags = four.evaluate_regardless(parts)
    assert four.read(tags) == truths
    masks = as_blocks(tags) ^ as_blocks(four.circuit(parts))
    outcomes: dict[str, Counter[Verdict | None]] = {}
    for where in places(parts):
        if where[-1] in SHARED_BY_LANES:
            continue
        data = bytearray(field_of(parts, where))
        lanes = np.frombuffer(data, dtype=np.uint8).reshape(LANES, -1)
        seen, lie = outcomes.setdefault(where[-1], Counter()), with_field(parts, where, data)
        bits = np.array(bits_of(where[-1], lanes.shape[1]))
        for first in range(0, len(bits), LANES // 2):
            flips = np.repeat(bits[first : first + LANES // 2], 2)
            at, bent = (np.arange(len(flips)), flips // 8), (1 << flips % 8).astype(np.uint8)
            lanes[at] ^= bent
            # What the first of A sends is no part of the masks: they are those of the honest parts.
            garbled = where[1] == "garbled"
            said = map(bytes, as_blocks(four.circuit(lie)) ^ masks) if garbled else four.evaluate_regardless(lie)
            verdicts = four.read(said)
            lanes[at] ^= bent
            # The lanes left over are as they were.
            assert verdicts[len(flips) :] == truths[len(flips) :]
            seen.update(against(*both) for both in zip(truths[: len(flips)], verdicts, strict=False))
            tried += len(flips)
    assert {field: set(seen) for field, seen in outcomes.items()} == {field: REGARDLESS[field] for field in outcomes}
    assert tried == 2 * (BITS - 8 * (4 * (32 + 32) + 16 + 6 * 32))


def against(truth: Verdict, verdict: Verdict) -> Verdict | None:
    """Return None for the right verdict; the other one fails."""
    assert verdict is not OTHER[truth]
    return None if verdict is truth else verdict


def test_the_other_tag_is_told_apart_when_it_is_opened() -> None:
    # The harness would see it: with the difference of the tags put on both rows, going on regardless turns the verdict.
    four = Batch(A, (LIMIT,) * 2)
    parts = four.parts(alternating(2))
    where: Where = (0, "garbled", None, "outputs")
    rows = np.frombuffer(field_of(parts, where), dtype=np.uint8).reshape(2, 2, 16).copy()
    for lane, (within, exceeds) in enumerate(four.pairs):
        rows[lane] ^= np.frombuffer(bytes(a ^ b for a, b in zip(within, exceeds, strict=True)), dtype=np.uint8)
    turned = with_field(parts, where, rows.tobytes())
    assert four.read(four.evaluate_regardless(turned)) == [OTHER[truth] for truth in TRUTHS]
    with pytest.raises(Disagreement, match="slots \\(0,\\): garbled circuit"):
        four.evaluate(turned)


def test_it_takes_a_sender_and_its_voucher_that_lie_alike_to_turn_a_verdict() -> None:
    # So a share that is off by a fen matters, and it is the other holder's word that stops it.
    four, lanes = FourCustodians(A), [[Shared(LIMIT, 1)]]
    parts, turned = four.parts(lanes), 0
    for label in labels(6):
        sender, voucher = (A.slots[position] for position in A.group_of(label))
        lies = {slot: four.part(slot, lanes, change={label: 1}) for slot in (sender, voucher)}
        for slot, lie in lies.items():
            with pytest.raises(Disagreement, match="shares or stamps"):
                four.evaluate({**parts, slot: lie})
        assert four.evaluate({**parts, **lies}) == [EXCEEDS]
        turned += 1
    assert turned == 15
