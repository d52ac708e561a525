"""Answers kept under the caller's Idempotency-Key, so that a request that is sent again is not done again.

As in draft-ietf-httpapi-idempotency-key-header: the same request under the same key gets the stored answer; another
request under it is refused; one that is still under way is refused for the moment. Keys belong to one API key.

They are in PostgreSQL, or in Redis (`redis_idempotency`) if the settings name one.
"""

from dataclasses import dataclass, field
from typing import Protocol

from insurer_agent.store.database import Database, Rows
from insurer_agent.store.vault import Vault
from protocol.party import RandomBytes
from transport.problems import Problem

KEPT_HOURS = 24
UNDER_WAY_SECONDS = 60
"""A request that began longer ago is given up: its process was killed, and another may take its place."""

CLAIM_BYTES = 16


@dataclass(frozen=True)
class Place:
    """Where the answer of a request under way belongs."""

    key_index: bytes
    request: bytes
    claim: bytes


@dataclass(frozen=True)
class StoredAnswer:
    """The answer that the first request of a key was given."""

    body: bytes = field(repr=False)


class IdempotencyAwayError(Problem):
    """Whether a request was made before cannot be told: it must not be done, unless doing it twice does no harm."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "idempotency-unavailable",
            "what was asked under Idempotency-Keys cannot be looked up; nothing was done",
            hint="send the same request again",
            retry_after=1,
        )


class Idempotency(Protocol):
    """Finds and keeps answers by Idempotency-Key."""

    def begin(self, api_key: str, key: str, request: bytes) -> Place | StoredAnswer:
        """Return the stored answer of this request, or the place to keep its answer in.

        Keys are each API key's own: one made anew under an old name is given nothing of the old one's.

        Refuses another request under the key (422, `idempotency-key-reused`), this one while it is under way
        (409, `idempotency-key-in-use`), and any while it cannot be told (503, `idempotency-unavailable`, or the
        database's).
        """

    def keep(self, place: Place, body: bytes) -> bool:
        """Keep the answer for those who ask again; return whether the place was still this request's."""

    def release(self, place: Place) -> None:
        """Forget the request: nothing came of it that should be given again."""

    def forget_old(self) -> None:
        """Drop answers past their time."""


def key_reused() -> Problem:
    """Return the refusal of another request under a key."""
    return Problem(
        422,
        "idempotency-key-reused",
        "another request was made under this Idempotency-Key",
        hint="use a new key for each request, and the same only to repeat one",
    )


def key_in_use() -> Problem:
    """Return the refusal of a request that is under way."""
    return Problem(
        409,
        "idempotency-key-in-use",
        "the first request under this Idempotency-Key is still under way",
        hint="try again shortly",
        retry_after=1,
    )


def indexes(vault: Vault, api_key: str, key: str, request: bytes) -> tuple[bytes, bytes]:
    """Return the HMACs, 32 bytes each, by which a key is found and its request is known."""
    return (
        vault.index("idempotency key", api_key.encode(errors="surrogatepass"), key.encode()),
        vault.index("idempotent request", request),
    )


class PostgresIdempotency:
    """`Idempotency` in the agent's database."""

    def __init__(self, database: Database, vault: Vault, random: RandomBytes) -> None:
        self._database = database
        self._vault = vault
        self._random = random

    def begin(self, api_key: str, key: str, request: bytes) -> Place | StoredAnswer:
        """See `Idempotency.begin`."""
        index, fingerprint = indexes(self._vault, api_key, key, request)
        place = Place(index, fingerprint, self._random(CLAIM_BYTES))

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
                raise key_reused()
            if row[2] is None:
                raise key_in_use()
            return StoredAnswer(self._vault.open(index, row[2]))

        return self._database.run("begin idempotent request", transaction)

    def keep(self, place: Place, body: bytes) -> bool:
        """See `Idempotency.keep`."""
        kept = self._database.run(
            "keep idempotent answer",
            lambda connection: (
                connection.execute(
                    "UPDATE idempotency SET answer = %s WHERE key_index = %s AND claim = %s",
                    (self._vault.seal(place.key_index, body), place.key_index, place.claim),
                ).rowcount
            ),
        )
        return kept == 1

    def release(self, place: Place) -> None:
        """See `Idempotency.release`."""
        self._database.run(
            "release idempotency key",
            lambda connection: connection.execute(
                "DELETE FROM idempotency WHERE key_index = %s AND claim = %s", (place.key_index, place.claim)
            ),
        )

    def forget_old(self) -> None:
        """See `Idempotency.forget_old`."""
        self._database.run(
            "forget idempotency keys",
            lambda connection: connection.execute(
                "DELETE FROM idempotency WHERE started_at < now() - make_interval(hours => %s)", (KEPT_HOURS,)
            ),
        )
