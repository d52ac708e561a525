"""Token buckets: how much each holder may take at once, and how much a second it may keep up.

A bucket is one number, the time `full_at` at which it is full again. Taking n moves it n / rate ahead of now or of
where it stood; that is refused if it would then be more than burst / rate away. So in any time t at most
rate * t + burst is taken, and a bucket that is full needs no memory. (The generic cell rate algorithm, ITU-T I.371.)

With Redis the bucket is one for all processes, by Redis' clock. While Redis is away each process has one of its own.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from urllib.parse import quote

from transport.redis_link import RedisAwayError, RedisLink

_MANY = 10_000
"""Holders above which full buckets are forgotten."""

_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local cost, span = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = tonumber(redis.call('GET', KEYS[1]) or now) or now
full_at = math.min(math.max(full_at, now), now + span) + cost
if full_at > now + span then
  return full_at - now - span
end
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
return 0
"""
"""Takes `cost` microseconds from a bucket of `span`; returns 0, or the microseconds until they are there. No bucket is
further from full than its span, whatever it was or the clock has done since.
"""


@dataclass(frozen=True)
class Rate:
    """What a holder may take: `a_second` kept up, `at_once` from a full bucket."""

    a_second: float
    at_once: int

    @property
    def unit(self) -> int:
        """Return the microseconds in which one flows in, rounded up so that the rate is never exceeded."""
        return math.ceil(1e6 / self.a_second)


class Buckets:
    """The buckets of one place, one a holder, shared through Redis where there is a link to one."""

    def __init__(
        self, place: Sequence[str], rate: Rate, link: RedisLink | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`place` tells these buckets from others in Redis; `clock` is that of this process's own."""
        self._place = place
        self._rate = rate
        self._link = link
        self._clock = clock
        self._lock = Lock()
        self._full_at: dict[str, int] = {}

    def take(self, holder: str, count: int) -> float:
        """Take `count` from a holder's bucket and return 0, or return the seconds until so many will be there.

        Infinite if a full bucket has fewer. Waits for Redis no longer than the link does.
        """
        if count > self._rate.at_once:
            return math.inf
        cost, span = count * self._rate.unit, self._rate.at_once * self._rate.unit
        if self._link is not None:
            try:
                return int(self._link.run(_TAKE, key_of(*self._place, holder), cost, span)) / 1e6
            except RedisAwayError:
                pass
        return self._take_here(holder, cost, span) / 1e6

    def _take_here(self, holder: str, cost: int, span: int) -> int:
        """Do as `_TAKE` does, in this process."""
        now = int(self._clock() * 1e6)
        with self._lock:
            full_at = max(self._full_at.get(holder, now), now) + cost
            if full_at > now + span:
                return full_at - now - span
            if len(self._full_at) >= _MANY:
                self._full_at = {name: at for name, at in self._full_at.items() if at > now}
            self._full_at[holder] = full_at
        return 0


def key_of(*parts: str) -> str:
    """Return the key in Redis that these parts have, and no others."""
    return ":".join(["cover-lookup", *(quote(part, safe="") for part in parts)])
