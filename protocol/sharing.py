"""Replicated sharing over the ring Z_2^48, labelled by pairs of slots (SPEC.md, section 4).

A committee has slots 0 to n-1. A sharing excludes one slot e: the value is the sum of n-1 uniform shares, labelled
{e, m} for each slot m other than e, and share {e, m} goes to every slot except e and m. So slot e gets nothing,
every other slot lacks exactly one share, and each share is held by n-2 slots. Shares of one label add up over
sharings. In any four slots at least two hold each label.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import NewType

from protocol.errors import ProtocolError

RING_BITS = 48
RING = 1 << RING_BITS
HALF_RING = RING >> 1
SHARE_BYTES = RING_BITS // 8
MIN_SLOTS = 5
MAX_SLOTS = 7
"""Any two sets of four slots have a custodian in common."""
CHOSEN = 4
"""How many custodians answer a check: always four."""

Label = tuple[int, int]
"""An unordered pair of slots, the smaller first."""
Share = NewType("Share", int)
"""An element of Z_2^48."""


def label(first: int, second: int) -> Label:
    """Return the label of two different slots."""
    if first == second:
        raise ProtocolError("bad-label", "a label names two different slots")
    return (first, second) if first < second else (second, first)


def labels(slots: int) -> list[Label]:
    """Return all n(n-1)/2 labels of a committee in order."""
    return list(combinations(range(slots), 2))


@cache
def labels_of_sharing(slots: int, excluded: int) -> tuple[Label, ...]:
    """Return the n-1 labels of a sharing that excludes a slot, in order of the other slot."""
    return tuple(label(excluded, other) for other in range(slots) if other != excluded)


@cache
def held_labels(slots: int, excluded: int, slot: int) -> tuple[Label, ...]:
    """Return the n-2 labels of a sharing that a slot holds; none for the excluded slot."""
    return tuple(pair for pair in labels_of_sharing(slots, excluded) if slot not in pair)


def share(value: int, slots: int, excluded: int, uniform: bytes) -> dict[Label, Share]:
    """Share `value` mod 2^48 excluding a slot.

    `uniform` holds (n-2) * 6 fresh random bytes: all shares but the last, which makes the sum right.
    """
    names = labels_of_sharing(slots, excluded)
    if len(uniform) != (len(names) - 1) * SHARE_BYTES:
        raise ProtocolError("bad-randomness", "a sharing takes six random bytes per share but one")
    shares = [int.from_bytes(uniform[at : at + SHARE_BYTES], "big") for at in range(0, len(uniform), SHARE_BYTES)]
    shares.append((value - sum(shares)) % RING)
    return {name: Share(piece) for name, piece in zip(names, shares, strict=True)}


def plain_share(value: int, slots: int, excluded: int) -> dict[Label, Share]:
    """Share a value that holders know anyway, excluding a slot: the first label bears it, the others nothing."""
    names = labels_of_sharing(slots, excluded)
    return {name: Share(value % RING if name == names[0] else 0) for name in names}


def add_shares(parts: Iterable[Mapping[Label, Share]]) -> dict[Label, Share]:
    """Add shares label by label, mod 2^48."""
    totals: dict[Label, int] = {}
    for part in parts:
        for name, piece in part.items():
            totals[name] = totals.get(name, 0) + piece
    return {name: Share(total % RING) for name, total in totals.items()}


def signed(value: int) -> int:
    """Read a ring element as an integer from -2^47 to 2^47 - 1."""
    return value - RING if value >= HALF_RING else value


@dataclass(frozen=True)
class Chosen:
    """A: the four slots that answer a check, sorted; refuses anything else.

    Each label is garbled as part of one of six groups, the pairs of positions (0,1), (0,2), (0,3), (1,2), (1,3),
    (2,3): the pair of its two lowest holders in A, the lower being its sender, the other its voucher. That it is
    the two lowest matters: other choices let a late deposit split unseen between them.
    """

    slots: tuple[int, int, int, int]
    committee_size: int = field(repr=False)

    def __post_init__(self) -> None:
        if list(self.slots) != sorted(set(self.slots)) or len(self.slots) != CHOSEN:
            raise ProtocolError("bad-choice", "a check takes four distinct slots, sorted")
        if self.slots[0] < 0 or self.slots[-1] >= self.committee_size:
            raise ProtocolError("bad-choice", "a chosen slot is not in the committee")

    def group_of(self, name: Label) -> Label:
        """Return the positions (sender, voucher) in A that a label is garbled by."""
        holders = [position for position, slot in enumerate(self.slots) if slot not in name]
        return (holders[0], holders[1])

    def position(self, slot: int) -> int:
        """Return the place of a slot in A, 0 to 3."""
        return self.slots.index(slot)


GROUPS: tuple[Label, ...] = tuple(combinations(range(CHOSEN), 2))
"""The six (sender, voucher) pairs of positions in A, in group order."""


def group_sums(chosen: Chosen, slot: int, sums: Mapping[Label, Share]) -> list[int | None]:
    """Return, in group order, the ring sums of the groups that `slot` holds (sender or voucher), else None.

    `sums` has the slot's sum for labels that it holds; a label without rows counts as zero.
    """
    position = chosen.position(slot)
    totals: list[int | None] = [0 if position in pair else None for pair in GROUPS]
    places = _places(chosen)
    for name, value in sums.items():
        before = totals[places[name]]
        if before is not None:
            totals[places[name]] = (before + value) % RING
    return totals


@cache
def _places(chosen: Chosen) -> dict[Label, int]:
    """Return, by label, the place of its group."""
    return {name: GROUPS.index(chosen.group_of(name)) for name in labels(chosen.committee_size)}
