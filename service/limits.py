"""How much one member may ask of the service: checks, rechecks and deposits each have a rate. So have API keys.

With Redis a member has its rate over all workers and machines of the service; without it, or while it is away, in each
process. A limit is against a member whose systems run wild: nothing that safety rests on is in Redis.
"""

from protocol.comparison import MAX_LANES
from service.config import Settings
from transport.buckets import Buckets, Rate
from transport.problems import RateLimitedError
from transport.redis_link import RedisLink

SECONDS_AT_ONCE = 10
"""A member that was quiet for so long may make up for it at once."""


class RateLimit:
    """A token bucket a member: `rate` persons a second kept up, ten seconds' worth at once, `least` in any case."""

    def __init__(self, alliance: str, kind: str, rate: float, link: RedisLink | None = None, *, least: int = 1) -> None:
        most = max(least, int(rate * SECONDS_AT_ONCE))
        self._buckets = Buckets(("limit", alliance, kind), Rate(rate, most), link)

    def take(self, member: str, persons: int) -> None:
        """Count lanes or deposits; refuse (`rate-limited`) when the member's bucket has fewer left."""
        wait = self._buckets.take(member, persons)
        if wait > 0:
            raise RateLimitedError(wait)


def rate_limits(alliance: str, settings: Settings) -> tuple[RateLimit, RateLimit, RateLimit]:
    """Return the limits of checks, of rechecks, of which one may have all lanes at once, and of deposits."""
    link = None if settings.redis is None else RedisLink(settings.redis, "rate limits", settings.redis_seconds)
    return (
        RateLimit(alliance, "checks", settings.checks_a_second, link),
        RateLimit(alliance, "rechecks", settings.rechecks_a_second, link, least=MAX_LANES),
        RateLimit(alliance, "deposits", settings.deposits_a_second, link),
    )


def admin_rate(alliance: str, settings: Settings) -> RateLimit:
    """Return the limit of requests that one API key of an admin or auditor may make."""
    link = None if settings.redis is None else RedisLink(settings.redis, "rate limits", settings.redis_seconds)
    return RateLimit(alliance, "admin", settings.admin_requests_a_second, link)
