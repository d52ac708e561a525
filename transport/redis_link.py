"""A line to Redis that holds up nobody: one hard limit on the wait for an answer, and a rest after a failure.

What is kept in Redis is shared by all processes and may be gone at any time; nothing that safety rests on is in it. So
whoever asks has another way to go on, or refuses, when there is no answer.
"""

import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any

from marshmallow import ValidationError

from transport.problems import fault
from transport.settings import SettingsError

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

REST_SECONDS = 1.0
"""How long nobody asks after a failure; then one does, and the others go without until it has had an answer."""
LOG_SECONDS = 60.0
_CONNECTIONS = 8
_SOCKET_SECONDS = 1.0
"""What each step of a new connection may take at least, behind the backs of those who wait for less."""
_CODE = re.compile(r"[A-Z]{2,20}\b")

log = logging.getLogger(__name__)


class RedisAwayError(Exception):
    """Redis gave no answer in time, refused, or rests after having done so."""


class RedisLink:
    """Runs scripts on one key; safe to share between threads. Connects when first asked."""

    def __init__(self, url: str, use: str, seconds: float) -> None:
        """Answers come within `seconds` or not at all; `use` names it in the log. Raises `SettingsError`."""
        from redis import Redis

        pool = connection_pool(url, max(_SOCKET_SECONDS, seconds))
        self._redis: Any = Redis(connection_pool=pool)  # annotated for awaiting too, where it is at all
        self._use = use
        self._seconds = seconds
        # Sockets have time limits of each step, and names take as long as their servers like. So others wait on them.
        self._workers = ThreadPoolExecutor(_CONNECTIONS, "redis")
        self._lock = Lock()
        self._failing = False
        self._rests_until = 0.0
        self._told_at, self._told = -LOG_SECONDS, False

    def run(self, script: str, key: str, *arguments: bytes | str | float) -> Any:  # noqa: ANN401  the script's answer
        """Run a Lua script on a key and return its answer; raises `RedisAwayError`.

        After that error the script may have run, or still run: of what it does, once or never must both be well.
        """
        if not self._may_ask():
            raise RedisAwayError
        asked = self._workers.submit(self._redis.eval, script, 1, key, *arguments)
        try:
            answer = asked.result(self._seconds)
        except _faults() as error:
            asked.cancel()
            self._has_failed(error)
            raise RedisAwayError from None
        self._has_answered()
        return answer

    def close(self) -> None:
        """End the connections."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._redis.close()

    def _may_ask(self) -> bool:
        now = time.monotonic()
        with self._lock:
            if now < self._rests_until:
                return False
            if self._failing:
                self._rests_until = now + REST_SECONDS
            return True

    def _has_failed(self, error: BaseException) -> None:
        now = time.monotonic()
        with self._lock:
            self._failing, self._rests_until = True, now + REST_SECONDS
            tell = now - self._told_at >= LOG_SECONDS
            if tell:
                self._told_at, self._told = now, True
        if tell:
            log.warning("Redis does not answer, going on without it for %s: %s", self._use, redis_fault(error))

    def _has_answered(self) -> None:
        if not self._failing:
            return
        with self._lock:
            tell, self._told = self._told, False
            self._failing, self._rests_until = False, 0.0
        if tell:
            log.warning("Redis answers again for %s", self._use)


def connection_pool(url: str, seconds: float) -> "ConnectionPool":
    """Return connections to a URL whose every step may take `seconds`; connects nowhere yet.

    Commands are never sent again by the client, and replies are bytes (RESP2). Raises `SettingsError`, which does not
    quote the URL, if it is none of Redis.
    """
    from redis.backoff import NoBackoff
    from redis.connection import ConnectionPool, parse_url
    from redis.exceptions import RedisError
    from redis.retry import Retry

    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]  # it has no annotations
    except ValueError:
        raise SettingsError("the Redis URL is not redis://, rediss:// or unix:// with what belongs there") from None
    options |= {
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
    }
    pool = ConnectionPool(**options)
    try:
        pool.make_connection()
    except (TypeError, ValueError, RedisError):
        raise SettingsError("the Redis URL has an option that is not known") from None
    return pool


def is_redis_url(url: str) -> None:
    """Validate a setting: raise marshmallow's `ValidationError`, which does not quote it, if it is no Redis URL."""
    try:
        connection_pool(url, _SOCKET_SECONDS)
    except SettingsError as error:
        raise ValidationError(f"{error}: redis://user:password@host:port/number, say") from None


def warn_unless_redis_answers(url: str) -> None:
    """Log a warning if Redis cannot be used at a start, which goes on: it may come later."""
    from redis import Redis

    client: Any = Redis(connection_pool=connection_pool(url, _SOCKET_SECONDS))
    try:
        client.eval("return 1", 0)
    except _faults() as error:
        log.warning("Redis does not answer at the start, going on without it until it does: %s", redis_fault(error))
    finally:
        client.close()


def redis_fault(error: BaseException) -> str:
    """Return the kind and place of a fault for a log, with Redis' own code; never its text, which quotes arguments."""
    from redis.exceptions import RedisError

    found = _CODE.match(str(error)) if isinstance(error, RedisError) else None
    return fault(error) + (f" ({found[0]})" if found else "")


def _faults() -> tuple[type[Exception], ...]:
    """Return what Redis raises. No answer in time is an OSError; the last comes of a host name no resolver takes."""
    from redis.exceptions import RedisError

    return RedisError, OSError, UnicodeError
