"""API keys of underwriting systems: shown once when made, stored as a hash."""

import hashlib

import psycopg

from insurer_agent.store.database import Database, Rows
from protocol.party import RandomBytes

PREFIX = "cover_"


class ApiKeys:
    """Makes keys and finds out whose a presented key is.

    A key has 256 random bits, so a plain hash is enough: there is nothing to guess.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self, name: str, random: RandomBytes) -> str:
        """Return a new key under a name; an older one of that name ends."""
        key = PREFIX + random(32).hex()

        def transaction(connection: Rows) -> None:
            connection.execute(
                "INSERT INTO api_key (name, hash) VALUES (%s, %s)"
                " ON CONFLICT (name) DO UPDATE SET hash = EXCLUDED.hash, created_at = now()",
                (name, _hash(key)),
            )

        self._database.run("make api key", transaction)
        return key

    def holder(self, key: str) -> str | None:
        """Return the name of a key's holder, or None if the key is unknown."""

        def transaction(connection: Rows) -> psycopg.rows.TupleRow | None:
            return connection.execute("SELECT name FROM api_key WHERE hash = %s", (_hash(key),)).fetchone()

        row = self._database.run("find api key", transaction)
        return None if row is None else str(row[0])


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
