"""How much one API key may ask of the REST interface: checks and policies each have a rate.

With Redis a key has its rate over all workers; without it, or while it is away, in each process.
"""

from insurer_agent.config import Settings
from insurer_agent.store.vault import Vault
from transport.buckets import Buckets, Rate
from transport.problems import RateLimitedError
from transport.redis_link import RedisLink


class RequestLimit:
    """A token bucket an API key, which stands in Redis as an HMAC."""

    def __init__(self, buckets: Buckets, vault: Vault) -> None:
        self._buckets = buckets
        self._vault = vault

    def take(self, api_key: str, count: int = 1) -> None:
        """Count a request, or the many that a batch is; refuse it (`rate-limited`) when the key's bucket has fewer."""
        wait = self._buckets.take(self._vault.index("limited api key", api_key.encode()).hex(), count)
        if wait > 0:
            raise RateLimitedError(wait)


class RequestLimits:
    """The limits of an agent: of `checks`, and of all that is asked about `policies`."""

    def __init__(self, settings: Settings, alliance: str, vault: Vault) -> None:
        link = None if settings.redis is None else RedisLink(settings.redis, "rate limits", settings.redis_seconds)

        def limit(kind: str, rate: Rate) -> RequestLimit:
            return RequestLimit(Buckets(("agent", alliance, settings.member_id, kind), rate, link), vault)

        self.checks = limit("checks", Rate(settings.checks_a_second, settings.checks_at_once))
        self.policies = limit("policies", Rate(settings.policies_a_second, settings.policies_at_once))
