"""Ticks and shard stamps: custodians that differ disagree alike for every person (SPEC.md, section 5).

Time is cut into ticks; the service names the tick of a commit and the tick as of which a check is answered. Each
custodian keeps, per shard and excluded slot, the running sum of Hash(depositor, deposit id, tick) over what it has
committed. The sum is taken in the group, so that whoever chooses ticks cannot make two different sets of deposits
have one sum: in a sum of integers mod 2^256 the generalised birthday attack (Wagner 2002) finds such sets. The stamp
of a pair of slots is an HMAC, under the session key of one garbling, of the sums of the slots excluded by neither:
exactly the deposits of which both hold shares, whoever is insured.
"""

import hashlib
import hmac
from collections.abc import Mapping

from protocol import group, kdf
from protocol.group import Element
from protocol.sharing import Label

MAX_AS_OF_AGE = 60
"""Seconds that the tick of a check may lie back by a custodian's clock."""
MIN_TICK_SECONDS = 5
"""Unless all is on one machine: a custodian refuses ticks that are not there yet by its own clock."""
MAX_TICK_SECONDS = 20
"""Longer ticks would be too old before they may be named."""


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


def deposit_stamp(depositor: str, deposit_id: bytes, tick: int) -> Element:
    """Return what a committed deposit adds to the sum of its shard and excluded slot."""
    data = kdf.join(b"cover-lookup/v1 deposit stamp", depositor.encode(), deposit_id, tick.to_bytes(8, "big"))
    return group.element_from_uniform(hashlib.sha512(data).digest())


def pair_stamp(session_key: bytes, pair: Label, committee_size: int, sums: Mapping[int, bytes]) -> bytes:
    """Return st of a pair of slots, 32 bytes; `sums` maps excluded slot to running sum, absent meaning the identity."""
    body = b"".join([sums.get(excluded, group.IDENTITY) for excluded in range(committee_size) if excluded not in pair])
    return hmac.digest(session_key, b"stamp" + bytes(pair) + body, "sha256")
