"""The blind comparison: garbled alike by four custodians, evaluated by the service (SPEC.md, section 6.1).

Common-seed garbling after Mohassel, Rosulek, Zhang (CCS 2015). From one label seed `g` all four of A garble the same
circuit. Each of the six groups (pairs of positions in A) is one input; its lower slot, the *sender*, sends the active
labels and the pair's stamp; its higher, the *voucher*, sends `K ^ H'(labels, stamp)` of what it holds itself, and
a digest of the same that only tells the service whom an alarm names. The output of a lane is one of two 16-byte tags
that the requester can derive; it is masked by SHA-256 over all six K, so it opens only if each sender and its
voucher agreed, whatever the service does. The mask is a hash and never the XOR of the K: that would be malleable, and
a custodian, who knows both tags, would flip the verdict.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated

from protocol import garbling, kdf
from protocol.circuit import INPUTS
from protocol.encoding import HASH, Blob, Fixed, Maybe, Nested, Seq, message
from protocol.garbling import AES_KEY_BYTES, LABEL_BYTES, ZeroLabels
from protocol.sharing import CHOSEN, GROUPS, RING, RING_BITS, Chosen
from protocol.stamps import pair_stamp
from protocol.token import Pseudonym

MAX_LANES = 1024
TAG_BYTES = 16
K_BYTES = 32
_LABELS_A_LANE, _KS_A_LANE = RING_BITS * LABEL_BYTES, INPUTS * K_BYTES
_TABLE_BYTES = 321 * 2 * LABEL_BYTES


@message("garbled circuit", version=1)
class Garbled:
    """What the first of A sends and the others hash: table, AES key, encrypted outputs, and per lane and group a
    hash of K, by which the service notices a doctored one; K has 256 random bits, so its hash tells nothing.
    """

    table: Annotated[bytes, Blob(MAX_LANES * _TABLE_BYTES)]
    aes_key: Annotated[bytes, Fixed(AES_KEY_BYTES)]
    outputs: Annotated[bytes, Blob(MAX_LANES * 2 * TAG_BYTES)]
    vouchers: Annotated[bytes, Blob(MAX_LANES * INPUTS * K_BYTES)]

    def digest(self) -> bytes:
        """Return the hash by which the other three of A confirm all parts."""
        parts = kdf.join(b"cover-lookup/v1 garbled circuit", self.table, self.aes_key, self.outputs, self.vouchers)
        return hashlib.sha256(parts).digest()


@message("sent group", version=1)
class Sent:
    """A sender's part of one group: active labels (lanes x 48 x 16 bytes, but for lanes that are withheld) and the
    pair's stamp.
    """

    labels: Annotated[bytes, Blob(MAX_LANES * _LABELS_A_LANE)]
    stamp: Annotated[bytes, HASH]


@message("vouched group", version=1)
class Vouched:
    """A voucher's part of one group: per lane that is not withheld the masked K and the digest, 32 bytes each."""

    masked: Annotated[bytes, Blob(MAX_LANES * K_BYTES)]
    digests: Annotated[bytes, Blob(MAX_LANES * K_BYTES)]


@message("comparison part", version=1)
class Part:
    """All that one custodian of A sends: position 0 sends three groups, 1 two, 2 one; vouching mirrors it."""

    session_check: Annotated[bytes, HASH]
    garbled: Annotated[Garbled | None, Maybe(Nested(Garbled))]
    garbled_digest: Annotated[bytes, HASH]
    sent: Annotated[tuple[Sent, ...], Seq(Nested(Sent), most=CHOSEN - 1)]
    vouched: Annotated[tuple[Vouched, ...], Seq(Nested(Vouched), most=CHOSEN - 1)]


@dataclass(frozen=True)
class LaneInput:
    """One lane at one custodian: its group sums in group order (None where it holds no share) and the limit."""

    groups: tuple[int | None, ...] = field(repr=False)
    limit: int


@dataclass(frozen=True)
class Seed:
    """The label seed g with what it was derived from; equal at all of A or nothing opens."""

    secret: bytes = field(repr=False)
    header: bytes

    @classmethod
    def derive(
        cls, request_seed: bytes, committee_key: bytes, header: bytes, pseudonyms: tuple[Pseudonym, ...]
    ) -> "Seed":
        """Derive g = HKDF(s, committee key of C without the requester's group, header, all P)."""
        context = hashlib.sha512(kdf.join(header, *pseudonyms)).digest()
        return cls(kdf.derive(request_seed, "label seed", context, salt=committee_key), header)

    def key(self, label: str, size: int = 32) -> bytes:
        """Return the sub-key of that label."""
        return kdf.expand(self._extracted, label, size=size)

    @cached_property
    def _extracted(self) -> bytes:
        return kdf.extract(self.secret)


def tags(
    request_seed: bytes, check_id: bytes, attempt: int, chosen: tuple[int, ...], lanes: int
) -> list[tuple[bytes, bytes]]:
    """Return per lane (tag of "within", tag of "exceeds"), 16 bytes each.

    They follow from s, check id, attempt, A and the lane alone: the requester, told attempt and A with the answer,
    derives them without knowing header or pseudonyms.
    """
    key = kdf.derive(request_seed, "tags", check_id, bytes([attempt]), bytes(chosen))
    (stream,) = garbling.ENGINE.streams([(key, lanes * 2 * TAG_BYTES)])
    pieces = _pieces(stream, TAG_BYTES)
    return list(zip(pieces[0::2], pieces[1::2], strict=True))


@dataclass(frozen=True)
class Garbling:
    """What all four of A garble alike for one check, before anything that is stored comes into it. Secret."""

    seed: Seed
    wires: ZeroLabels
    vouchers: bytes = field(repr=False)
    """K of each lane and group."""
    circuit: Garbled

    def part(
        self,
        lanes: list[LaneInput],
        chosen: Chosen,
        slot: int,
        stamp_sums: Mapping[int, bytes],
        withheld: Collection[int] = (),
    ) -> Part:
        """Return one custodian's part of the comparison; `stamp_sums` maps excluded slot to running sum.

        Of lanes that it has `withheld` it sends what all four garble alike, and neither active labels nor masked K nor
        digests: without three of its K they open for nobody.
        """
        position = chosen.position(slot)
        told = [lane for lane in range(len(lanes)) if lane not in withheld]
        active = self.wires.activate(_inputs(lanes))
        session = self.seed.key("session")
        sent, vouched = [], []
        for place, pair in enumerate(GROUPS):
            if position not in pair:
                continue
            slots = (chosen.slots[pair[0]], chosen.slots[pair[1]])
            stamp = pair_stamp(session, slots, chosen.committee_size, stamp_sums)
            labels = _of_group(active, _LABELS_A_LANE, place, told)
            if position == pair[0]:
                sent.append(Sent(labels=labels, stamp=stamp))
            else:
                vouched.append(_vouch(labels, stamp, place, _of_group(self.vouchers, K_BYTES, place, told), told))
        return Part(
            session_check=hmac.digest(session, b"session check", "sha256"),
            garbled=self.circuit if position == 0 else None,
            garbled_digest=self.circuit.digest(),
            sent=tuple(sent),
            vouched=tuple(vouched),
        )


Tags = list[tuple[bytes, bytes]]
"""Of each lane what `tags` returns."""


def garble_together(asked: Sequence[tuple[Seed, Tags]]) -> list[Garbling]:
    """Garble several checks, each under its own seed and AES key, in one run over the lanes of all."""
    counts = [len(lane_tags) for _, lane_tags in asked]
    wires, vouchers = _drawn([(seed, count) for (seed, _), count in zip(asked, counts, strict=True)])
    keys = [(seed.key("AES key", AES_KEY_BYTES), count) for (seed, _), count in zip(asked, counts, strict=True)]
    said = [
        _masked(pair, _output_mask(seed.header, lane, own[lane * _KS_A_LANE : (lane + 1) * _KS_A_LANE]))
        for (seed, lane_tags), own in zip(asked, vouchers, strict=True)
        for lane, pair in enumerate(lane_tags)
    ]
    labels, offsets = (b"".join([getattr(one, name) for one in wires]) for name in ("labels", "offsets"))
    table, outputs = garbling.ENGINE.garble(keys, labels, offsets, b"".join(said))
    tables = kdf.cut(table, [count * _TABLE_BYTES for count in counts])
    pairs = kdf.cut(outputs, [count * 2 * TAG_BYTES for count in counts])
    made = []
    for place, (seed, _) in enumerate(asked):
        circuit = Garbled(
            table=tables[place],
            aes_key=keys[place][0],
            outputs=pairs[place],
            vouchers=b"".join([_voucher_hash(voucher) for voucher in _pieces(vouchers[place], K_BYTES)]),
        )
        made.append(Garbling(seed, wires[place], vouchers[place], circuit))
    return made


def garble(
    seed: Seed,
    lane_tags: Tags,
    lanes: list[LaneInput],
    chosen: Chosen,
    slot: int,
    stamp_sums: Mapping[int, bytes],
) -> Part:
    """Garble one check, and return one custodian's part of it, as `Garbling.part` does."""
    (garbling,) = garble_together([(seed, lane_tags)])
    return garbling.part(lanes, chosen, slot, stamp_sums)


def _vouch(labels: bytes, stamp: bytes, place: int, vouchers: bytes, told: list[int]) -> Vouched:
    """Vouch for the lanes `told`, whose labels and K stand one after the other."""
    masked, digests = bytearray(), bytearray()
    for at, lane in enumerate(told):
        piece = labels[at * _LABELS_A_LANE : (at + 1) * _LABELS_A_LANE]
        masked += _xor(vouchers[at * K_BYTES : (at + 1) * K_BYTES], _voucher_pad(piece, stamp, place, lane))
        digests += _voucher_digest(piece, stamp, place, lane)
    return Vouched(masked=bytes(masked), digests=bytes(digests))


class Disagreement(Exception):  # noqa: N818  it names what happened, and is no fault of this program
    """Custodians of A sent parts that do not belong together; `slots` are those an alarm names."""

    def __init__(self, slots: tuple[int, ...], what: str) -> None:
        super().__init__(f"slots {slots}: {what}")
        self.slots = slots
        self.what = what

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Disagreement) and (self.slots, self.what) == (other.slots, other.what)

    def __hash__(self) -> int:
        return hash((self.slots, self.what))


@dataclass(frozen=True)
class Answered:
    """What four custodians answered of one check: the part of each slot of A, and by slot the lanes it has withheld."""

    parts: Mapping[int, Part]
    chosen: Chosen
    lanes: int
    header: bytes
    withheld: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def evaluate_together(answered: Sequence[Answered]) -> list[list[bytes] | Disagreement]:
    """Compare the four parts of each check and return one 16-byte tag a lane, or where they do not match.

    The service learns nothing from a tag; where parts disagreed in a way that it does not notice, the tag is noise. So
    it is of lanes that any of A has withheld: they are not compared, and do not open. All that match are evaluated in
    one run over the arrays of all.
    """
    found: list[list[bytes] | Disagreement] = []
    matching: list[_Matching] = []
    places: list[int] = []
    for place, one in enumerate(answered):
        try:
            matching.append(_matched(one))
            places.append(place)
            found.append([])
        except Disagreement as disagreement:
            found.append(disagreement)
    if not matching:
        return found
    said = garbling.ENGINE.evaluate(
        [(one.garbled.aes_key, one.answered.lanes) for one in matching],
        b"".join([one.labels for one in matching]),
        b"".join([one.garbled.table for one in matching]),
        b"".join([one.garbled.outputs for one in matching]),
    )
    opened = iter(_pieces(said, TAG_BYTES))
    for place, match in zip(places, matching, strict=True):
        header, vouchers = match.answered.header, match.vouchers
        found[place] = [
            _xor(next(opened), _output_mask(header, lane, b"".join(vouchers.get(lane, ()))))
            for lane in range(match.answered.lanes)
        ]
    return found


def evaluate(parts: Mapping[int, Part], chosen: Chosen, lanes: int, header: bytes) -> list[bytes]:
    """Do as `evaluate_together` with one check; raise `Disagreement` where its parts do not match."""
    (found,) = evaluate_together([Answered(parts, chosen, lanes, header)])
    if isinstance(found, Disagreement):
        raise found
    return found


@dataclass(frozen=True)
class _Matching:
    """Parts that belong together, as far as the service can see: active labels of all lanes, K by lane."""

    answered: Answered
    garbled: Garbled
    labels: bytes
    vouchers: dict[int, list[bytes]]


def _matched(answered: Answered) -> _Matching:
    """Compare the parts of one check; raise `Disagreement` where they do not match."""
    chosen, lanes = answered.chosen, answered.lanes
    gone = {slot: answered.withheld.get(slot, ()) for slot in chosen.slots}
    ordered = [_in_place(answered.parts[slot], chosen, slot, lanes, gone[slot]) for slot in chosen.slots]
    silent = set().union(*gone.values())
    told = [lane for lane in range(lanes) if lane not in silent]
    _compare(ordered, chosen, told)
    garbled = ordered[0].garbled
    assert garbled is not None  # _in_place refused otherwise
    by_group: list[list[bytes]] = []
    vouchers: dict[int, list[bytes]] = {lane: [] for lane in told}
    for place, sent, vouched in _groups(ordered):
        by_group.append(_pieces(sent.labels, _LABELS_A_LANE))
        for lane in told:
            labels = by_group[place][lane]
            masked = vouched.masked[lane * K_BYTES : (lane + 1) * K_BYTES]
            voucher = _xor(masked, _voucher_pad(labels, sent.stamp, place, lane))
            at = (lane * INPUTS + place) * K_BYTES
            if not hmac.compare_digest(_voucher_hash(voucher), garbled.vouchers[at : at + K_BYTES]):
                raise Disagreement((chosen.slots[GROUPS[place][1]],), "a voucher's K")
            vouchers[lane].append(voucher)
    active = b"".join([labels for of_lane in zip(*by_group, strict=True) for labels in of_lane])
    return _Matching(answered, garbled, active, vouchers)


def _in_place(part: Part, chosen: Chosen, slot: int, lanes: int, withheld: tuple[int, ...]) -> Part:
    """Return a part in which each lane's pieces stand in its place, with zeros for what is withheld."""
    if list(withheld) != sorted({*withheld} & {*range(lanes)}) or not _well_shaped(
        part, chosen.position(slot), lanes, lanes - len(withheld)
    ):
        raise Disagreement((slot,), "a part is malformed")
    if not withheld:
        return part

    def spread(data: bytes, size: int) -> bytes:
        told = iter(_pieces(data, size))
        return b"".join([bytes(size) if lane in withheld else next(told) for lane in range(lanes)])

    return replace(
        part,
        sent=tuple(replace(one, labels=spread(one.labels, _LABELS_A_LANE)) for one in part.sent),
        vouched=tuple(
            replace(one, masked=spread(one.masked, K_BYTES), digests=spread(one.digests, K_BYTES))
            for one in part.vouched
        ),
    )


def _groups(parts: list[Part]) -> list[tuple[int, Sent, Vouched]]:
    """Return (group index, sender's part, voucher's part) of the six groups."""
    return [
        (place, parts[sender].sent[voucher - sender - 1], parts[voucher].vouched[sender])
        for place, (sender, voucher) in enumerate(GROUPS)
    ]


def _compare(parts: list[Part], chosen: Chosen, told: list[int]) -> None:
    """Compare what must be alike of all lanes, and of the lanes `told` what senders and vouchers say."""
    slots = chosen.slots
    first = parts[0].garbled
    assert first is not None  # _in_place
    # The slots that an alarm names are those outside the majority; with no majority, all.
    for what, values in (
        ("session", [part.session_check for part in parts]),
        ("garbled circuit", [part.garbled_digest for part in parts]),
    ):
        odd = _outside_majority(values)
        if odd:
            raise Disagreement(tuple(slots[position] for position in odd), what)
    if not hmac.compare_digest(first.digest(), parts[0].garbled_digest):
        raise Disagreement((slots[0],), "garbled circuit")
    pairs = []
    for place, sent, vouched in _groups(parts):
        expected, digests = bytearray(), bytearray()
        for lane in told:
            labels = sent.labels[lane * _LABELS_A_LANE : (lane + 1) * _LABELS_A_LANE]
            expected += _voucher_digest(labels, sent.stamp, place, lane)
            digests += vouched.digests[lane * K_BYTES : (lane + 1) * K_BYTES]
        if not hmac.compare_digest(expected, digests):
            pairs.append(GROUPS[place])
    if pairs:
        common = set(pairs[0]).intersection(*pairs[1:]) if len(pairs) > 1 else set(pairs[0])
        raise Disagreement(tuple(sorted(slots[position] for position in common or {0, 1, 2, 3})), "shares or stamps")


def _outside_majority(values: list[bytes]) -> list[int]:
    """Return the positions whose value is not the one that at least three hold; all when there is no such value."""
    for value in values:
        if values.count(value) >= len(values) - 1:
            return [position for position, other in enumerate(values) if other != value]
    return list(range(len(values)))


def _well_shaped(part: Part, position: int, lanes: int, told: int) -> bool:
    return (
        (part.garbled is not None) == (position == 0)
        and (part.garbled is None or len(part.garbled.table) == lanes * _TABLE_BYTES)
        and (part.garbled is None or len(part.garbled.outputs) == lanes * 2 * TAG_BYTES)
        and (part.garbled is None or len(part.garbled.vouchers) == lanes * INPUTS * K_BYTES)
        and len(part.sent) == CHOSEN - 1 - position
        and len(part.vouched) == position
        and {len(one.labels) for one in part.sent} <= {told * _LABELS_A_LANE}
        and {size for one in part.vouched for size in (len(one.masked), len(one.digests))} <= {told * K_BYTES}
    )


def _inputs(lanes: list[LaneInput]) -> list[int]:
    """Return of each lane limit - x_1, -x_2, ..., -x_6; groups that this custodian does not hold count as zero."""
    return [
        ((lane.limit if place == 0 else 0) - (value or 0)) % RING
        for lane in lanes
        for place, value in enumerate(lane.groups)
    ]


def _drawn(seeds: Sequence[tuple[Seed, int]]) -> tuple[list[ZeroLabels], list[bytes]]:
    """Return of each seed, with its number of lanes, what its streams say: the labels, and K of each lane and group."""
    sizes = {"wire labels": INPUTS * _LABELS_A_LANE, "offsets": LABEL_BYTES, "K": _KS_A_LANE}
    wanted = [(seed.key(name), lanes * size) for seed, lanes in seeds for name, size in sizes.items()]
    streams = garbling.ENGINE.streams(wanted)
    wires = [ZeroLabels(*both) for both in zip(streams[::3], streams[1::3], strict=True)]
    return wires, streams[2::3]


def _of_group(data: bytes, size: int, place: int, lanes: Sequence[int]) -> bytes:
    """Return what of these lanes belongs to one group, `size` bytes each; `data` has the six groups of every lane."""
    starts = [(lane * INPUTS + place) * size for lane in lanes]
    return b"".join([data[start : start + size] for start in starts])


def _masked(pair: tuple[bytes, bytes], mask: bytes) -> bytes:
    within, exceeds = pair
    return _xor(within, mask) + _xor(exceeds, mask)


def _output_mask(header: bytes, lane: int, vouchers: bytes) -> bytes:
    data = kdf.join(b"cover-lookup/v1 output mask", header, lane.to_bytes(2, "big"), vouchers)
    return hashlib.sha256(data).digest()[:TAG_BYTES]


def _voucher_pad(labels: bytes, stamp: bytes, place: int, lane: int) -> bytes:
    return hashlib.sha256(
        b"cover-lookup/v1 voucher pad" + bytes([place]) + lane.to_bytes(2, "big") + stamp + labels
    ).digest()


def _voucher_digest(labels: bytes, stamp: bytes, place: int, lane: int) -> bytes:
    return hashlib.sha256(
        b"cover-lookup/v1 voucher digest" + bytes([place]) + lane.to_bytes(2, "big") + stamp + labels
    ).digest()


def _voucher_hash(voucher: bytes) -> bytes:
    return hashlib.sha256(b"cover-lookup/v1 voucher hash" + voucher).digest()


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "little") ^ int.from_bytes(right, "little")).to_bytes(len(left), "little")
