"""What a member reports every few seconds: its watermark, and which custodians lack deposits that it has made.

The watermark is for all; where deposits are missing is for the service alone, which asks such custodians last (SPEC.md,
6.3). The service relays every deposit and every receipt itself, so it reads nothing new in a report. A member that
reports what is not so makes the service prefer other custodians, and no more.
"""

from collections.abc import Iterable
from typing import Annotated

from protocol import signing
from protocol.encoding import Nested, Seq, encode, message
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.messages import SHARD, SIGNATURE, SLOT
from protocol.party import Party
from protocol.watermark import SignedWatermark, accept_watermark

PURPOSE = "progress report"
MAX_PLACES = 1 << 16
"""As many as the slots of 4,096 shards."""


@message("place", version=1)
class Place:
    """A slot of a shard's committee."""

    shard: Annotated[int, SHARD]
    slot: Annotated[int, SLOT]


@message("progress report", version=1)
class Report:
    """A member's watermark, which names member, alliance and time, and the places, in order, that lack a deposit."""

    watermark: Annotated[SignedWatermark, Nested(SignedWatermark)]
    behind: Annotated[tuple[Place, ...], Seq(Nested(Place), most=MAX_PLACES)]

    @property
    def member(self) -> str:
        """The member whose report it is."""
        return self.watermark.watermark.member

    @property
    def issued_at(self) -> int:
        """When it was made, Unix seconds by the member's clock."""
        return self.watermark.watermark.issued_at


@message("signed progress report", version=1)
class SignedReport:
    """A report and its member's signature, which binds the places to the watermark and so to its time."""

    report: Annotated[Report, Nested(Report)]
    signature: Annotated[bytes, SIGNATURE]


def sign_report(party: Party, watermark: SignedWatermark, behind: Iterable[tuple[int, int]]) -> SignedReport:
    """Return a member's report around its watermark; `behind` has (shard, slot) in any order."""
    places = tuple(Place(shard=shard, slot=slot) for shard, slot in sorted(set(behind)))
    report = Report(watermark=watermark, behind=places)
    return SignedReport(report=report, signature=signing.sign(party.keys.signing, PURPOSE, encode(report)))


def accept_report(manifest: Manifest, signed: SignedReport, now: float) -> Report:
    """Return a report that its member made just now; refuse any other.

    Raises `ProtocolError`: what `accept_watermark` raises; `bad-signature`; `bad-report` where places are not in order,
    or one is no slot of the alliance or is the member's own group's, which keeps none of its deposits.
    """
    report = signed.report
    accept_watermark(manifest, report.watermark, now)
    signing.verify(manifest.member(report.member).signing_key, signed.signature, PURPOSE, encode(report))
    before = (-1, -1)
    for place in report.behind:
        here = (place.shard, place.slot)
        if here <= before or not _keeps(manifest, report.member, place):
            raise ProtocolError("bad-report", "the report names places out of order, or such as keep nothing of it")
        before = here
    return report


def _keeps(manifest: Manifest, member: str, place: Place) -> bool:
    """Tell whether a place is a slot that keeps deposits of this member."""
    return (
        place.shard < manifest.terms.shards
        and place.slot < len(manifest.committee(place.shard).slots)
        and place.slot != manifest.slot_of_group(place.shard, member)
    )
