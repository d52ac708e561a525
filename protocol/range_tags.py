"""The tags of a range check, two a lane, as holders derive them and a proof bears them (SPEC.md, section 5.1)."""

import hmac

from protocol import kdf
from protocol.comparison import TAG_BYTES
from protocol.messages import RangeProof

LANES = 3
"""Lanes a deposit: floor, ceiling, alone."""


def range_tags(range_key: bytes, header_hash: bytes) -> list[tuple[bytes, bytes]]:
    """Return per lane of a deposit (the good tag, the other), 16 bytes each."""
    data = kdf.derive(range_key, "range tags", header_hash, size=LANES * 2 * TAG_BYTES)
    pieces = [data[at : at + TAG_BYTES] for at in range(0, len(data), TAG_BYTES)]
    return list(zip(pieces[0::2], pieces[1::2], strict=True))


def is_good(range_key: bytes, proof: RangeProof) -> bool:
    """Tell whether a proof has the good tag of every lane, under the header that it names."""
    good = b"".join(tag for tag, _ in range_tags(range_key, proof.header_hash))
    return hmac.compare_digest(good, proof.floor + proof.ceiling + proof.alone)
