"""API keys of the insurer's systems, shown once when made, or client certificates in their place; stored as hashes.

Each has roles, and ends by itself.
"""

import datetime as dt
import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from insurer_agent.roles import DAYS, MAX_DAYS, Role
from insurer_agent.store.database import Database, Rows
from protocol.party import RandomBytes
from transport.problems import Problem

PREFIX = "cover_"
ENDING_DAYS = 30
"""Keys that end within so many days are warned of."""
MAX_NAME = 128
REMEMBERED_SECONDS = 5.0
"""For how long a process goes by what it read of a key: a revocation counts within that time."""
MAX_REMEMBERED = 1_024
_FIND = """
WITH found AS (SELECT * FROM api_key WHERE hash = %s), noted AS (
    UPDATE api_key SET last_used_at = date_trunc('hour', now()) FROM found
        WHERE api_key.name = found.name AND (found.expires_at IS NULL OR found.expires_at > now())
            AND (found.last_used_at IS NULL OR found.last_used_at < now() - interval '1 hour')
)
SELECT name, roles, coalesce(expires_at <= now(), false),
    extract(epoch FROM least(expires_at, date_trunc('hour', now()) + interval '1 hour') - now())::float FROM found
"""
_ENTRY = "name, roles, created_at, last_used_at, expires_at"


@dataclass(frozen=True)
class ApiKeyEntry:
    """What is known of a key besides its hash; `last_used_at` is to the hour. Made before keys ended, it does not."""

    name: str
    roles: tuple[Role, ...]
    created_at: dt.datetime
    last_used_at: dt.datetime | None
    expires_at: dt.datetime | None


@dataclass(frozen=True)
class Holder:
    """Whose a key is that was presented, and what it may do; one that has ended may nothing."""

    name: str
    roles: frozenset[Role]
    has_ended: bool = False


class ApiKeys:
    """Makes, lists and revokes keys, and finds out whose a presented key is.

    A key has 256 random bits, so a plain hash is enough: there is nothing to guess. A certificate is stored by its own
    SHA-256 in the same place. That hash is no secret, but no key has it: no text is encoded as a certificate is.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is in seconds, of any beginning, and goes forward."""
        self._database = database
        self._clock = clock
        self._remembered = _Memory()

    def make(
        self, name: str, random: RandomBytes, *, roles: Iterable[Role], days: int = DAYS, replace: bool = False
    ) -> str:
        """Return a new key under a name, with roles, good for so many days.

        Refuses a name that has a key, unless that is to end (`name-in-use`), or that is none (`bad-name`), no roles
        (`no-roles`), and days out of range (`bad-days`).
        """
        return self.make_ending(name, random, roles=roles, days=days, replace=replace)[0]

    def make_ending(
        self, name: str, random: RandomBytes, *, roles: Iterable[Role], days: int = DAYS, replace: bool = False
    ) -> tuple[str, dt.datetime]:
        """Do as `make`; return when the key ends, too."""
        key = PREFIX + random(32).hex()
        return key, self._put(name, _hash(key), roles, days, replace=replace)

    def register(
        self,
        name: str,
        certificate: bytes,
        *,
        roles: Iterable[Role],
        days: int = DAYS,
        until: dt.datetime | None = None,
        replace: bool = False,
    ) -> None:
        """Have a client certificate (DER) be good as a key under a name, `until` its own end at most; refuses as
        `make`.
        """
        self._put(name, hashlib.sha256(certificate).digest(), roles, days, until=until, replace=replace)

    def _put(
        self,
        name: str,
        digest: bytes,
        roles: Iterable[Role],
        days: int,
        *,
        until: dt.datetime | None = None,
        replace: bool,
    ) -> dt.datetime:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            detail = f"a name has 1 to {MAX_NAME} printable characters"
            raise Problem(422, "bad-name", detail, hint="name the system that has the key")
        if not 1 <= days <= MAX_DAYS:
            raise Problem(422, "bad-days", f"a key is good for 1 to {MAX_DAYS} days", hint="make another when it ends")
        granted = set(roles)
        if not granted:
            raise Problem(422, "no-roles", "a key without a role may nothing", hint=f"give it one of {_names(Role)}")
        in_order = [role.value for role in Role if role in granted]

        def transaction(connection: Rows) -> dt.datetime:
            if replace:
                connection.execute("DELETE FROM api_key WHERE name = %s", (name,))
            made = connection.execute(
                "INSERT INTO api_key (name, hash, roles, expires_at)"
                " VALUES (%s, %s, %s, least(now() + make_interval(days => %s), %s)) ON CONFLICT DO NOTHING"
                " RETURNING expires_at",
                (name, digest, in_order, days, until),
            ).fetchone()
            if made is None:
                detail = f"there is an API key named {name}, or the certificate has another name"
                raise Problem(409, "name-in-use", detail, hint="revoke it, or take another name")
            ends: dt.datetime = made[0]
            return ends

        ends = self._database.run("make api key", transaction)
        self._remembered.forget()
        return ends

    def entries(self) -> list[ApiKeyEntry]:
        """Return all keys there are, those that have ended too, by name."""
        query = f"SELECT {_ENTRY} FROM api_key ORDER BY name"  # noqa: S608  a text above
        rows: list[Any] = self._database.run(
            "list api keys", lambda connection: connection.execute(query.encode()).fetchall()
        )
        return [ApiKeyEntry(name, _roles(roles), *times) for name, roles, *times in rows]

    def ending(self, now: dt.datetime) -> list[ApiKeyEntry]:
        """Return the keys that have ended, end within `ENDING_DAYS`, or never do, as they were made before keys did."""
        soon = now + dt.timedelta(days=ENDING_DAYS)
        return [entry for entry in self.entries() if entry.expires_at is None or entry.expires_at <= soon]

    def revoke(self, name: str) -> None:
        """End a key, in every process within `REMEMBERED_SECONDS`; refuse (`unknown-name`) a name that has none."""

        def transaction(connection: Rows) -> int:
            return connection.execute("DELETE FROM api_key WHERE name = %s", (name,)).rowcount

        if not _can_be_stored(name) or self._database.run("revoke api key", transaction) == 0:
            raise Problem(404, "unknown-name", f"there is no API key named {name}", hint="see the list of keys")
        self._remembered.forget()

    def holder(self, key: str) -> Holder | None:
        """Return whose a key is, or None if it is unknown; note the hour of its use."""
        return self._find(_hash(key))

    def holder_of_certificate(self, certificate: bytes) -> Holder | None:
        """Return whom a client certificate (DER) is registered for, as `holder` does of a key."""
        return self._find(hashlib.sha256(certificate).digest())

    def _find(self, digest: bytes) -> Holder | None:
        began = self._clock()
        known = self._remembered.find(digest, began)
        if known is not None:
            return known
        row = self._database.run(
            "find api key",
            lambda connection: connection.execute(_FIND, (digest,)).fetchone(),
            one_statement=True,
        )
        if row is None:
            return None
        name, roles, has_ended, good_for = row
        if has_ended:
            return Holder(name, frozenset(), has_ended=True)
        holder = Holder(name, frozenset(_roles(roles)))
        # No longer than to the key's end, nor past the hour, by the database's clock, so that `last_used_at` is right.
        self._remembered.keep(digest, holder, began + min(good_for, REMEMBERED_SECONDS))
        return holder


class _Memory:
    """Keys that were good a moment ago, by their hashes, in this process alone. Unknown ones are not kept: who sends
    many would drive out the good.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Holder, float]] = {}
        self._lock = threading.Lock()

    def find(self, digest: bytes, now: float) -> Holder | None:
        holder, until = self._known.get(digest, (None, now))
        return holder if now < until else None

    def keep(self, digest: bytes, holder: Holder, until: float) -> None:
        with self._lock:
            self._known.pop(digest, None)
            while len(self._known) >= MAX_REMEMBERED:
                del self._known[next(iter(self._known))]  # the one that was read longest ago
            self._known[digest] = (holder, until)

    def forget(self) -> None:
        with self._lock:
            self._known.clear()


def _roles(names: Iterable[str]) -> tuple[Role, ...]:
    """Return the roles that this version knows; others may nothing."""
    known = set(names)
    return tuple(role for role in Role if role.value in known)


def _can_be_stored(name: str) -> bool:
    return "\x00" not in name and name.encode(errors="replace").decode() == name


def _names(roles: Iterable[Role]) -> str:
    return ", ".join(role.value for role in roles)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
