"""How far members' deposits are complete: signed watermarks, and what a check's answer says of them (SPEC.md, 6.3).

A total can only be as whole as what the members have deposited. Each member signs, every few seconds, the time before
which all policies that it took in are made. The service keeps the newest of each and hands all of them out; it can
withhold some or give old ones, and then less counts as complete, never more.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from protocol import signing
from protocol.encoding import NAME, Nested, Seq, encode, message
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.messages import SIGNATURE, TIME, require_fresh
from protocol.party import Party

PURPOSE = "watermark"
STEP_SECONDS = 60
"""Watermarks are whole minutes, a minute back: finer ones would tell the service when a policy was taken in."""
CURRENT_SECONDS = 600
"""A member whose deposits are complete up to less than this ago is current."""


@message("watermark", version=1)
class Watermark:
    """A member's word, at `issued_at`, that all policies it took in before `complete_until` are made (Unix seconds)."""

    alliance: Annotated[str, NAME]
    member: Annotated[str, NAME]
    issued_at: Annotated[int, TIME]
    complete_until: Annotated[int, TIME]


@message("signed watermark", version=1)
class SignedWatermark:
    """A watermark and its member's signature."""

    watermark: Annotated[Watermark, Nested(Watermark)]
    signature: Annotated[bytes, SIGNATURE]


@message("directory", version=1)
class Directory:
    """The newest watermarks that the service has, at most one a member."""

    watermarks: Annotated[tuple[SignedWatermark, ...], Seq(Nested(SignedWatermark), most=4096)]


@dataclass(frozen=True)
class Completeness:
    """Of how many members the deposits are current, and the oldest watermark; None where a member has none."""

    members: int
    current: int
    oldest: int | None


def sign_watermark(party: Party, complete_until: int, now: float) -> SignedWatermark:
    """Return a member's watermark, signed at `now`: how far it is complete, in whole minutes, a minute back."""
    watermark = Watermark(
        alliance=party.manifest.terms.alliance,
        member=party.id,
        issued_at=int(now),
        complete_until=min(complete_until, int(now) - STEP_SECONDS) // STEP_SECONDS * STEP_SECONDS,
    )
    return SignedWatermark(watermark=watermark, signature=signing.sign(party.keys.signing, PURPOSE, encode(watermark)))


def accept_watermark(manifest: Manifest, signed: SignedWatermark, now: float) -> Watermark:
    """Return a watermark that its member made just now; refuse (`bad-watermark`, `stale`) any other."""
    watermark = verified(manifest, signed)
    require_fresh(watermark.issued_at, now)
    return watermark


def verified(manifest: Manifest, signed: SignedWatermark) -> Watermark:
    """Return a watermark that a member of this alliance signed at whatever time; refuse (`bad-watermark`) another."""
    watermark = signed.watermark
    if watermark.alliance != manifest.terms.alliance or watermark.complete_until > watermark.issued_at:
        raise ProtocolError("bad-watermark", "the watermark is of another alliance, or ahead of its own time")
    signing.verify(manifest.member(watermark.member).signing_key, signed.signature, PURPOSE, encode(watermark))
    return watermark


def newest(manifest: Manifest, signed: Iterable[SignedWatermark]) -> dict[str, int]:
    """Return how far each member is complete, by its newest good watermark; what does not verify counts as none."""
    found: dict[str, Watermark] = {}
    for item in signed:
        try:
            watermark = verified(manifest, item)
        except ProtocolError:
            continue
        if watermark.issued_at >= found.get(watermark.member, watermark).issued_at:
            found[watermark.member] = watermark
    return {member: watermark.complete_until for member, watermark in found.items()}


def completeness(manifest: Manifest, until: dict[str, int], now: float) -> Completeness:
    """Return what an answer says at `now`, from how far each member is complete."""
    members = [member.id for member in manifest.terms.members]
    # A time ahead of this clock by more than clocks may differ is no better than none.
    known = [until[member] for member in members if member in until and until[member] <= now + CURRENT_SECONDS]
    return Completeness(
        members=len(members),
        current=len([time for time in known if time > now - CURRENT_SECONDS]),
        oldest=min(known) if len(known) == len(members) else None,
    )
