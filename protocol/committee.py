"""Who keeps which shard: rendezvous hashing over the members (SPEC.md, section 4)."""

import hashlib
import math
from collections.abc import Mapping

from protocol import kdf
from protocol.errors import ProtocolError
from protocol.sharing import CHOSEN, MIN_SLOTS

DEFAULT_SLOTS = 6


def _weight(purpose: bytes, *parts: bytes) -> bytes:
    """Rendezvous weight: SHA-256 over length-prefixed parts; the highest wins."""
    return hashlib.sha256(b"cover-lookup/v1 rendezvous" + kdf.join(purpose, *parts)).digest()


def draw_committee(shard: int, groups: Mapping[str, str], slots: int = DEFAULT_SLOTS) -> tuple[str, ...]:
    """Return the members of a shard's committee by slot.

    `groups` maps member id to ownership group. Slots go to the groups of highest weight, at most one member of a
    group, so that affiliated members never hold two slots. Fewer groups than `slots` make a smaller committee.
    """
    tag = shard.to_bytes(4, "big")
    owners = sorted(set(groups.values()), key=lambda owner: _weight(b"group", tag, owner.encode()), reverse=True)
    if len(owners) < MIN_SLOTS:
        raise ProtocolError("too-few-groups", "an alliance has members of at least 5 ownership groups")
    return tuple(
        max(
            (member for member, of in groups.items() if of == owner),
            key=lambda member: _weight(b"member", tag, member.encode()),
        )
        for owner in owners[:slots]
    )


def excluded_slot(shard: int, own_slot: int | None, slots: int, message_id: bytes) -> int:
    """Return the slot that a deposit or a proposal excludes: the originator's group's own, else one by its id."""
    if own_slot is not None:
        return own_slot
    tag = shard.to_bytes(4, "big")
    return max(range(slots), key=lambda slot: _weight(b"excluded", tag, message_id, bytes([slot])))


def preferred_choice(check_id: bytes, scores: Mapping[int, float], refused: float = math.inf) -> tuple[int, ...] | None:
    """Return four slots, sorted: those of lowest score, spread evenly over checks by their id.

    `scores` maps candidate slots to how reluctantly they should be asked; those with `refused` or more are not.
    None if fewer than four are left.
    """
    candidates = [slot for slot, score in scores.items() if score < refused]
    ranked = sorted(candidates, key=lambda slot: (scores[slot], _weight(b"choice", check_id, bytes([slot]))))
    return tuple(sorted(ranked[:CHOSEN])) if len(ranked) >= CHOSEN else None
