"""Ticks and shard stamps: custodians that differ disagree alike for every person (SPEC.md, section 5).

Time is cut into ticks; the service names the tick of a commit and the tick as of which a check is answered. Each
custodian keeps, per shard and excluded slot, the running sum mod 2^256 of SHA-256(depositor, deposit id, tick) over
what it has committed. The stamp of a pair of slots is an HMAC, under the session key of one garbling, of the sums
of the slots excluded by neither: exactly the deposits of which both hold shares, whoever is insured.
"""

import hashlib
import hmac
from collections.abc import Mapping

from protocol.sharing import Label

STAMP_MODULUS = 1 << 256
STAMP_BYTES = 32
MAX_AS_OF_AGE = 60
"""Seconds that the tick of a check may lie back by a custodian's clock."""


def tick_at(now: float, tick_seconds: int) -> int:
    """Return the number of the tick that `now` (Unix seconds) falls into."""
    return int(now) // tick_seconds


def as_of_tick(now: float, tick_seconds: int) -> int:
    """Return the last tick that has been closed for a tick's length."""
    return tick_at(now, tick_seconds) - 2


def acceptable_as_of(tick: int, now: float, tick_seconds: int) -> bool:
    """Tell whether a custodian answers as of this tick: closed, and not more than 60 s old by its clock."""
    closed = (tick + 1) * tick_seconds <= now
    return closed and now - (tick + 1) * tick_seconds <= MAX_AS_OF_AGE


def deposit_stamp(depositor: str, deposit_id: bytes, tick: int) -> int:
    """Return what a committed deposit adds to the sum of its shard and excluded slot."""
    name = depositor.encode()
    data = len(name).to_bytes(2, "big") + name + deposit_id + tick.to_bytes(8, "big")
    return int.from_bytes(hashlib.sha256(b"cover-lookup/v1 deposit stamp" + data).digest(), "big")


def pair_stamp(session_key: bytes, pair: Label, committee_size: int, sums: Mapping[int, int]) -> bytes:
    """Return st of a pair of slots, 32 bytes; `sums` maps excluded slot to running sum, absent meaning zero."""
    body = b"".join(
        (sums.get(excluded, 0) % STAMP_MODULUS).to_bytes(STAMP_BYTES, "big")
        for excluded in range(committee_size)
        if excluded not in pair
    )
    return hmac.digest(session_key, b"stamp" + bytes(pair) + body, "sha256")
