"""Answers kept under the caller's Idempotency-Key in Redis, as `idempotency` keeps them in PostgreSQL.

An entry is bytes, found by the HMAC of API key and Idempotency-Key: the claim of whose request it is (16 bytes), the
HMAC of the request (32), and once it is answered the second of that (8) and the sealed answer, which opens only there.
So nothing is to be read in Redis, and whoever writes there gives nobody the answer to another request, or an old one.
Redis drops what is past its time, and what it has lost is as if it had not been asked.

While Redis is away nothing is kept elsewhere: a request that PostgreSQL took meanwhile would not be known here again.
A request of which it cannot be told whether it was made before gets `IdempotencyAwayError`; see `rest.requests`.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from insurer_agent.store.idempotency import (
    CLAIM_BYTES,
    KEPT_HOURS,
    UNDER_WAY_SECONDS,
    IdempotencyAwayError,
    Place,
    StoredAnswer,
    indexes,
    key_in_use,
    key_reused,
)
from insurer_agent.store.vault import Vault, VaultError
from protocol.party import RandomBytes
from transport.buckets import key_of
from transport.redis_link import RedisAwayError, RedisLink

PATIENCE = 4
"""How many times as long as a limit it waits for Redis: without an answer a request is refused, or not kept."""
KEPT_SECONDS = KEPT_HOURS * 3600
_REQUEST_END = CLAIM_BYTES + 32
_HEAD = _REQUEST_END + 8
_CLOCKS_APART = 60

_BEGIN = """
local held = redis.call('GET', KEYS[1])
if held then return held end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
"""
_KEEP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'EX', ARGV[3])
return 1
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

log = logging.getLogger(__name__)


class RedisIdempotency:
    """`Idempotency` in Redis, under keys that begin with the parts `place`."""

    def __init__(
        self,
        link: RedisLink,
        place: tuple[str, ...],
        vault: Vault,
        random: RandomBytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._place = place
        self._vault = vault
        self._random = random
        self._clock = clock

    def begin(self, api_key: str, key: str, request: bytes) -> Place | StoredAnswer:
        """See `Idempotency.begin`."""
        index, fingerprint = indexes(self._vault, api_key, key, request)
        place = Place(index, fingerprint, self._random(CLAIM_BYTES))
        held = bytes(self._run(_BEGIN, place, _head(place), UNDER_WAY_SECONDS))
        if held == _head(place):
            return place
        if held[CLAIM_BYTES:_REQUEST_END] != fingerprint:
            raise key_reused()
        if len(held) == _REQUEST_END:
            raise key_in_use()
        return self._opened(place, held)

    def keep(self, place: Place, body: bytes) -> bool:
        """See `Idempotency.keep`."""
        at = int(self._clock()).to_bytes(8, "big")
        sealed = self._vault.seal(_sealing_place(place, at), body)
        return bool(self._run(_KEEP, place, _head(place), at + sealed, KEPT_SECONDS))

    def release(self, place: Place) -> None:
        """See `Idempotency.release`."""
        self._run(_RELEASE, place, _head(place))

    def forget_old(self) -> None:
        """See `Idempotency.forget_old`; Redis does it by itself."""

    def _run(self, script: str, place: Place, *arguments: bytes | int) -> Any:  # noqa: ANN401  the script's answer
        try:
            return self._link.run(script, key_of(*self._place, place.key_index.hex()), *arguments)
        except RedisAwayError:
            raise IdempotencyAwayError from None

    def _opened(self, place: Place, held: bytes) -> StoredAnswer:
        at = held[_REQUEST_END:_HEAD]
        try:
            answer = StoredAnswer(self._vault.open(_sealing_place(place, at), held[_HEAD:]))
        except VaultError:
            log.warning("an answer in Redis does not open: it was damaged, or put there by another")
            raise IdempotencyAwayError from None
        if int.from_bytes(at, "big") < self._clock() - KEPT_SECONDS - _CLOCKS_APART:
            log.warning("an answer in Redis is past its time: it was put back there")
            raise IdempotencyAwayError
        return answer


def _head(place: Place) -> bytes:
    return place.claim + place.request


def _sealing_place(place: Place, at: bytes) -> bytes:
    return place.key_index + place.request + at
