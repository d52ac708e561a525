"""API keys of underwriting systems, shown once when made, or client certificates in their place; stored as hashes."""

import datetime as dt
import hashlib
from dataclasses import dataclass

import psycopg

from insurer_agent.store.database import Database, Rows
from protocol.party import RandomBytes
from transport.problems import Problem

PREFIX = "cover_"
_FIND = """
WITH found AS (SELECT name, last_used_at FROM api_key WHERE hash = %s), noted AS (
    UPDATE api_key SET last_used_at = date_trunc('hour', now()) FROM found
        WHERE api_key.name = found.name
            AND (found.last_used_at IS NULL OR found.last_used_at < now() - interval '1 hour')
)
SELECT name FROM found
"""


@dataclass(frozen=True)
class ApiKeyEntry:
    """What is known of a key besides its hash; `last_used_at` is to the hour."""

    name: str
    created_at: dt.datetime
    last_used_at: dt.datetime | None


class ApiKeys:
    """Makes, lists and revokes keys, and finds out whose a presented key is.

    A key has 256 random bits, so a plain hash is enough: there is nothing to guess. A certificate is stored by its own
    SHA-256 in the same place. That hash is no secret, but no key has it: no text is encoded as a certificate is.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self, name: str, random: RandomBytes, *, replace: bool = False) -> str:
        """Return a new key under a name; refuse (`name-in-use`) one that has a key, unless that is to end."""
        key = PREFIX + random(32).hex()
        self._put(name, _hash(key), replace=replace)
        return key

    def register(self, name: str, certificate: bytes, *, replace: bool = False) -> None:
        """Have a client certificate (DER) be good as a key under a name; refuses as `make`."""
        self._put(name, hashlib.sha256(certificate).digest(), replace=replace)

    def _put(self, name: str, digest: bytes, *, replace: bool) -> None:
        def transaction(connection: Rows) -> None:
            if replace:
                connection.execute("DELETE FROM api_key WHERE name = %s", (name,))
            made = connection.execute(
                "INSERT INTO api_key (name, hash) VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, digest)
            ).rowcount
            if made == 0:
                detail = f"there is an API key named {name}, or the certificate has another name"
                raise Problem(409, "name-in-use", detail, hint="revoke it, or take another name")

        self._database.run("make api key", transaction)

    def entries(self) -> list[ApiKeyEntry]:
        """Return all keys that are good, by name."""

        def transaction(connection: Rows) -> list[psycopg.rows.TupleRow]:
            return connection.execute("SELECT name, created_at, last_used_at FROM api_key ORDER BY name").fetchall()

        return [ApiKeyEntry(*row) for row in self._database.run("list api keys", transaction)]

    def revoke(self, name: str) -> None:
        """End a key, from the next request on; refuse (`unknown-name`) a name that has none."""

        def transaction(connection: Rows) -> int:
            return connection.execute("DELETE FROM api_key WHERE name = %s", (name,)).rowcount

        if self._database.run("revoke api key", transaction) == 0:
            raise Problem(404, "unknown-name", f"there is no API key named {name}")

    def holder(self, key: str) -> str | None:
        """Return the name of a key's holder, or None if the key is unknown; note the hour of its use."""
        return self._find(_hash(key))

    def holder_of_certificate(self, certificate: bytes) -> str | None:
        """Return the name that a client certificate (DER) is registered under, as `holder` does of a key."""
        return self._find(hashlib.sha256(certificate).digest())

    def _find(self, digest: bytes) -> str | None:
        row = self._database.run(
            "find api key",
            lambda connection: connection.execute(_FIND, (digest,)).fetchone(),
            one_statement=True,
        )
        return None if row is None else str(row[0])


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
