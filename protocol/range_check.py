"""The range check of a deposit: no member erases or inflates what others hold (SPEC.md, section 5.1).

A deposit is pending, and never summed in checks, until four of its holders have garbled and the service has opened,
blind, that it may stand. The circuit and the garbling are those of a check (`protocol.comparison`), three lanes a
deposit, and of each lane the tag of `within` is the good one::

    floor     the policy with this change, its issue and all that correct it:  -amount > 0      is false
    ceiling   all that this depositor has deposited for the person:            amount  > cap    is false
    alone     other deposits of this depositor and person that are pending:    number  > 0      is false

So every policy stays between 0 and the cap, and so does the depositor's sum: a step changes one policy, the others are
not negative, and no sum leaves the ring's half; and of two that come at once, each of which by itself could fit, none
stands. Counts need no garbling: they follow from the kinds, which holders see, and a deposit whose policy was not
issued once, or is cancelled twice, gets lanes that cannot be good: inputs that its depositor cannot foresee, so that
one custodian's objection is heard, whatever the shares are that it holds.

What is pending is counted in the groups of those pairs of slots that both hold it, as stamps are: a holder from which
the service keeps a commit disagrees with the same others, whoever the next deposit is for. (Did it give a bad lane by
itself, it would disagree about that one person with the slot, too, that the deposit excludes and has no stamp of it.)

The tags follow from the committee key, the deposit's facts and pseudonym, and the header's hash: every holder can tell
whether a deposit was found good, in A or not, at once or later; neither the service nor the depositor can.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol import kdf
from protocol.committee_keys import CommitteeKey, KeyName
from protocol.comparison import Disagreement, LaneInput, Part, Seed, evaluate, garble
from protocol.custody import BaseRow, DepositBase, RangeBase
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.messages import COUNT_OF_KIND, ISSUE, DepositFacts, PrepareCall, RangeAnswer, RangeHeader, RangeProof
from protocol.range_tags import LANES, range_tags
from protocol.sharing import CHOSEN, GROUPS, RING, SHARE_BYTES, Chosen, add_shares, group_sums, held_labels
from protocol.token import Pseudonym


@dataclass(frozen=True)
class Lanes:
    """One holder's part in a range check: its header, and per deposit the pseudonym, the range key and the base."""

    header: RangeHeader
    pseudonyms: tuple[Pseudonym, ...]
    range_keys: tuple[bytes, ...]
    base: RangeBase


def range_key(key: CommitteeKey, facts: DepositFacts, pseudonym: Pseudonym) -> bytes:
    """Return the 32 bytes from which a deposit's tags follow, under whatever header; `key` is without its group."""
    return kdf.derive(key.secret.reveal(), "range key", encode(facts), encode(key.name), pseudonym)


def range_header(manifest: Manifest, call: PrepareCall, key_name: KeyName) -> RangeHeader | None:
    """Return what a range check is bound to; None where the call asks for none. Refuses (`bad-choice`) another A."""
    order = call.order
    if order is None:
        return None
    chosen = choice(manifest, call, order.chosen)
    return RangeHeader(
        nonce=order.nonce,
        chosen=chosen.slots,
        issued_at=order.issued_at,
        depositor=call.depositor,
        shard=call.shard,
        excluded=call.excluded,
        manifest_hash=call.manifest_hash,
        epoch=manifest.terms.epoch,
        committee_key=key_name,
        deposits=tuple(item.deposit_id for item in call.deposits),
        blinded=tuple(item.blinded for item in call.deposits),
    )


def choice(manifest: Manifest, call: PrepareCall, slots: Sequence[int]) -> Chosen:
    """Return A of a range check: four holders, sorted, outside the depositor's group."""
    if len(slots) != CHOSEN:
        raise ProtocolError("bad-choice", "a range check takes four custodians")
    chosen = Chosen((slots[0], slots[1], slots[2], slots[3]), len(manifest.committee(call.shard).slots))
    if {call.excluded, manifest.slot_of_group(call.shard, call.depositor)} & set(chosen.slots):
        raise ProtocolError("bad-choice", "the excluded slot, and the depositor's group, judge nothing of a deposit")
    return chosen


def header_hash(header: RangeHeader) -> bytes:
    """Return the 32 bytes by which a range check is known: what a custodian answers once, and tags are made from."""
    return hashlib.sha256(kdf.join(b"cover-lookup/v1 range header", encode(header))).digest()


# --- a holder ------------------------------------------------------------------------------------------------------


def answer_range(manifest: Manifest, lanes: Lanes, key: CommitteeKey, slot: int) -> RangeAnswer:
    """Return a holder's part of the garbling, as each of A makes it."""
    header, size = lanes.header, len(manifest.committee(lanes.header.shard).slots)
    chosen = Chosen((header.chosen[0], header.chosen[1], header.chosen[2], header.chosen[3]), size)
    encoded, digest = encode(header), header_hash(header)
    context = hashlib.sha512(kdf.join(encoded, *lanes.pseudonyms)).digest()
    secret = kdf.derive(header.nonce, "range label seed", context, salt=key.secret.reveal())
    tags = [pair for one in lanes.range_keys for pair in range_tags(one, digest)]
    inputs = [
        lane
        for base, one in zip(lanes.base.deposits, lanes.range_keys, strict=True)
        for lane in lane_inputs(base, objection(one, digest), chosen, slot, manifest.terms.deposit_cap)
    ]
    part = garble(Seed(secret, encoded), tags, inputs, chosen, slot, lanes.base.stamp_sums)
    return RangeAnswer(committee_key=key.name, part=part)


def objection(key: bytes, digest: bytes) -> tuple[int, ...]:
    """Return, in group order, what a holder puts in for a deposit that does not fit; `key` is the deposit's range key.

    Were it nothing, a depositor could make nothing of the shares that one custodian garbles, and the others would not
    notice that this one objects.
    """
    data = kdf.derive(key, "range objection", digest, size=len(GROUPS) * SHARE_BYTES)
    return tuple(int.from_bytes(data[at : at + SHARE_BYTES], "big") for at in range(0, len(data), SHARE_BYTES))


def lane_inputs(
    base: DepositBase, objected: Sequence[int], chosen: Chosen, slot: int, cap: int
) -> tuple[LaneInput, LaneInput, LaneInput]:
    """Return one deposit's lanes at a holder: floor, ceiling, alone."""
    alone = LaneInput(tuple(_pending(base, chosen, slot)), 0)
    if not fits(base):
        pairs = (tuple(chosen.slots[position] for position in pair) for pair in GROUPS)
        values = (value if slot in pair else None for pair, value in zip(pairs, objected, strict=True))
        bad = LaneInput(tuple(values), (sum(objected) - 1) % RING)  # the sum is one above the limit
        return bad, bad, alone
    policy = _sums([row for row in base.rows if row.in_chain], chosen, slot)
    floor = LaneInput(tuple(None if total is None else -total % RING for total in policy), 0)
    return floor, LaneInput(tuple(_sums(base.rows, chosen, slot)), cap), alone


def _pending(base: DepositBase, chosen: Chosen, slot: int) -> list[int | None]:
    """Return, in group order, how many other pending deposits both slots of a group hold."""
    pairs = ({chosen.slots[position] for position in pair} for pair in GROUPS)
    return [sum(excluded not in pair for excluded in base.pending) if slot in pair else None for pair in pairs]


def fits(base: DepositBase) -> bool:
    """Tell what holders see in clear: that the policy was issued once, is cancelled at most once, and that corrections
    are of its product, day and slot.
    """
    chain = [item for item in base.rows if item.in_chain]
    places = {(item.row.product, item.row.day, item.row.excluded) for item in chain}
    issued = sum(item.kind == ISSUE for item in chain)
    in_force = sum(COUNT_OF_KIND[item.kind] for item in chain)
    return issued == 1 and in_force in (0, 1) and len(places) == 1


def _sums(rows: Sequence[BaseRow], chosen: Chosen, slot: int) -> list[int | None]:
    shares = (
        dict(zip(held_labels(chosen.committee_size, item.row.excluded, slot), item.row.shares(), strict=True))
        for item in rows
    )
    return group_sums(chosen, slot, add_shares(shares))


# --- the service ---------------------------------------------------------------------------------------------------


def open_range(manifest: Manifest, call: PrepareCall, answers: Mapping[int, RangeAnswer]) -> list[RangeProof]:
    """Evaluate the four parts; return per deposit of the call the tags, which the service cannot read.

    `call` is what any of A was sent, `answers` has the parts of all of A by slot. Raises `Disagreement`.
    """
    assert call.order is not None
    slots = call.order.chosen
    names = [answers[slot].committee_key for slot in slots]
    if len(set(names)) != 1:
        raise Disagreement(
            tuple(slot for slot, name in zip(slots, names, strict=True) if names.count(name) < CHOSEN - 1),
            "committee key",
        )
    header = range_header(manifest, call, names[0])
    assert header is not None
    parts: dict[int, Part] = {slot: answers[slot].part for slot in slots}
    tags = evaluate(parts, choice(manifest, call, slots), LANES * len(call.deposits), encode(header))
    digest = header_hash(header)
    return [
        RangeProof(header_hash=digest, floor=floor, ceiling=ceiling, alone=alone)
        for floor, ceiling, alone in zip(*(iter(tags),) * LANES, strict=True)
    ]
