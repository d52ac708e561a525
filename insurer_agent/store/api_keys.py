"""API keys of underwriting systems: shown once when made, stored as a hash."""

import datetime as dt
import hashlib
from dataclasses import dataclass

import psycopg

from insurer_agent.store.database import Database, Rows
from protocol.party import RandomBytes
from transport.problems import Problem

PREFIX = "cover_"


@dataclass(frozen=True)
class ApiKeyEntry:
    """What is known of a key besides its hash; `last_used_at` is to the hour."""

    name: str
    created_at: dt.datetime
    last_used_at: dt.datetime | None


class ApiKeys:
    """Makes, lists and revokes keys, and finds out whose a presented key is.

    A key has 256 random bits, so a plain hash is enough: there is nothing to guess.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self, name: str, random: RandomBytes, *, replace: bool = False) -> str:
        """Return a new key under a name; refuse (`name-in-use`) one that has a key, unless that is to end."""
        key = PREFIX + random(32).hex()

        def transaction(connection: Rows) -> int:
            if replace:
                connection.execute("DELETE FROM api_key WHERE name = %s", (name,))
            return connection.execute(
                "INSERT INTO api_key (name, hash) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING", (name, _hash(key))
            ).rowcount

        if self._database.run("make api key", transaction) == 0:
            raise Problem(
                409, "name-in-use", f"there is an API key named {name}", hint="revoke it, or take another name"
            )
        return key

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

        def transaction(connection: Rows) -> psycopg.rows.TupleRow | None:
            row = connection.execute(
                "SELECT name, last_used_at IS NULL OR last_used_at < now() - interval '1 hour' FROM api_key"
                " WHERE hash = %s",
                (_hash(key),),
            ).fetchone()
            if row is not None and row[1]:
                connection.execute(
                    "UPDATE api_key SET last_used_at = date_trunc('hour', now()) WHERE name = %s", row[:1]
                )
            return row

        row = self._database.run("find api key", transaction)
        return None if row is None else str(row[0])


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
