"""Answers kept under the caller's Idempotency-Key, so that a request that is sent again is not done again.

As in draft-ietf-httpapi-idempotency-key-header: the same request under the same key gets the stored answer; another
request under it is refused; one that is still under way is refused for the moment. Keys belong to one API key.
"""

from dataclasses import dataclass, field

from insurer_agent.store.database import Database, Rows
from insurer_agent.store.vault import Vault
from protocol.party import RandomBytes
from transport.problems import Problem

KEPT_HOURS = 24
UNDER_WAY_SECONDS = 60
"""A request that began longer ago is given up: its process was killed, and another may take its place."""


@dataclass(frozen=True)
class Place:
    """Where the answer of a request under way belongs."""

    key_index: bytes
    claim: bytes


@dataclass(frozen=True)
class StoredAnswer:
    """The answer that the first request of a key was given."""

    body: bytes = field(repr=False)


class Idempotency:
    """Finds and keeps answers by Idempotency-Key."""

    def __init__(self, database: Database, vault: Vault, random: RandomBytes) -> None:
        self._database = database
        self._vault = vault
        self._random = random

    def begin(self, api_key: str, key: str, request: bytes) -> Place | StoredAnswer:
        """Return the stored answer of this request, or the place to keep its answer in.

        Keys are each API key's own: one made anew under an old name is given nothing of the old one's.

        Refuses another request under the key (422, `idempotency-key-reused`), and this one while it is under way
        (409, `idempotency-key-in-use`).
        """
        index = self._vault.index("idempotency key", api_key.encode(errors="surrogatepass"), key.encode())
        fingerprint = self._vault.index("idempotent request", request)
        place = Place(index, self._random(16))

        def transaction(connection: Rows) -> Place | StoredAnswer:
            connection.execute(
                "DELETE FROM idempotency WHERE key_index = %s AND (started_at < now() - make_interval(hours => %s)"
                " OR (answer IS NULL AND started_at < now() - make_interval(secs => %s)))",
                (index, KEPT_HOURS, UNDER_WAY_SECONDS),
            )
            row = connection.execute(
                "INSERT INTO idempotency (key_index, request, claim) VALUES (%s, %s, %s)"
                " ON CONFLICT (key_index) DO UPDATE SET key_index = EXCLUDED.key_index"
                " RETURNING request, claim, answer",
                (index, fingerprint, place.claim),
            ).fetchone()
            assert row is not None
            if bytes(row[1]) == place.claim:
                return place
            if bytes(row[0]) != fingerprint:
                raise Problem(
                    422,
                    "idempotency-key-reused",
                    "another request was made under this Idempotency-Key",
                    hint="use a new key for each request, and the same only to repeat one",
                )
            if row[2] is None:
                raise Problem(
                    409,
                    "idempotency-key-in-use",
                    "the first request under this Idempotency-Key is still under way",
                    hint="try again shortly",
                    retry_after=1,
                )
            return StoredAnswer(self._vault.open(index, row[2]))

        return self._database.run("begin idempotent request", transaction)

    def keep(self, place: Place, body: bytes) -> None:
        """Keep the answer for those who ask again."""
        self._database.run(
            "keep idempotent answer",
            lambda connection: connection.execute(
                "UPDATE idempotency SET answer = %s WHERE key_index = %s AND claim = %s",
                (self._vault.seal(place.key_index, body), place.key_index, place.claim),
            ),
        )

    def release(self, place: Place) -> None:
        """Forget the request: nothing came of it that should be given again."""
        self._database.run(
            "release idempotency key",
            lambda connection: connection.execute(
                "DELETE FROM idempotency WHERE key_index = %s AND claim = %s", (place.key_index, place.claim)
            ),
        )

    def forget_old(self) -> None:
        """Drop answers past their time."""
        self._database.run(
            "forget idempotency keys",
            lambda connection: connection.execute(
                "DELETE FROM idempotency WHERE started_at < now() - make_interval(hours => %s)", (KEPT_HOURS,)
            ),
        )
