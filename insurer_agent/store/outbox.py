"""The outbox: deposits on their way, kept until every holder has given its receipt.

A deposit's bytes are made once and stored before they are first sent, so a repeat is the same bytes: same id, same
shares, same salts. Nothing is handed out for a person while an earlier deposit of that person is unmade, nor anything
new for a shard while one of its deposits was sent and is unmade: else a service that keeps one deposit from being
made would see, by what comes once it lets go, which are of the same person.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from psycopg.types.json import Jsonb

from insurer_agent.store.database import Database, Rows
from insurer_agent.store.vault import Vault
from protocol.check import shard_of_person
from protocol.committee import excluded_slot
from protocol.custody import Kept
from protocol.deposit import Entry, MadeDeposit
from protocol.encoding import ID, Maybe, Text, UInt, decode, encode, message
from protocol.identity import DocumentType, Identity
from protocol.manifest import DAY
from protocol.messages import KIND, Deposit
from protocol.party import Party

_SIGN = 1 << 63
"""Amounts and counts may be negative; they are stored with this added."""
MAX_BACKOFF_SECONDS = 60


@message("deposit entry", version=1)
class _StoredEntry:
    document_type: Annotated[str, Text(32)]
    document_number: Annotated[str, Text(64)]
    kind: Annotated[int, KIND]
    product: Annotated[str, Text(64)]
    day: Annotated[int, DAY]
    amount: Annotated[int, UInt(64)]
    count: Annotated[int, UInt(64)]
    earlier: Annotated[bytes | None, Maybe(ID)]


@dataclass(frozen=True)
class Outgoing:
    """A deposit that is due: its place, and its bytes if they were made before."""

    seq: int
    deposit_id: bytes
    shard: int
    excluded: int
    entry: Entry | None
    made: MadeDeposit | None
    attempts: int


@dataclass(frozen=True)
class Backlog:
    """How many deposits are unmade (not counted yet), and how many are made but lack receipts."""

    unmade: int
    incomplete: int


def enqueue(connection: Rows, vault: Vault, party: Party, entry: Entry, deposit_id: bytes) -> None:
    """Put a deposit into the outbox, within the transaction that changes the register."""
    shard = shard_of_person(party, entry.identity)
    slots = len(party.manifest.committee(shard).slots)
    excluded = excluded_slot(shard, party.manifest.slot_of_group(shard, party.id), slots, deposit_id)
    stored = _StoredEntry(
        document_type=entry.identity.document_type.value,
        document_number=entry.identity.number,
        kind=entry.kind,
        product=entry.product,
        day=entry.day,
        amount=entry.amount + _SIGN,
        count=entry.count + _SIGN,
        earlier=entry.earlier,
    )
    connection.execute(
        "INSERT INTO deposit (deposit_id, person_key, shard, excluded, entry) VALUES (%s, %s, %s, %s, %s)",
        (
            deposit_id,
            vault.index("person", entry.identity.encode()),
            shard,
            excluded,
            vault.seal(deposit_id, encode(stored)),
        ),
    )


def is_visible(connection: Rows, vault: Vault, party: Party, person: Identity) -> bool:
    """Tell whether all deposits of a person are made, and for so long that checks are as of then."""
    row = connection.execute(
        "SELECT NOT EXISTS (SELECT FROM deposit WHERE person_key = %s"
        " AND (made_at IS NULL OR made_at > now() - make_interval(secs => %s)))",
        (vault.index("person", person.encode()), 2 * party.manifest.terms.tick_seconds),
    ).fetchone()
    return bool(row and row[0])


class Outbox:
    """What is due, and what became of it."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    def due(self, limit: int) -> list[Outgoing]:
        """Return deposits that are due, in order, none of them before what it waits for.

        Repeats of what counts already come last: for a holder that is down they grow many.
        """
        rows = self._database.run(
            "due deposits",
            lambda connection: connection.execute(
                "SELECT seq, deposit_id, shard, excluded, entry, made, attempts FROM deposit d"
                " WHERE completed_at IS NULL AND next_attempt_at <= now() AND (made IS NOT NULL OR NOT EXISTS ("
                "  SELECT 1 FROM deposit e WHERE e.person_key = d.person_key AND e.seq < d.seq AND e.made_at IS NULL)"
                "  AND NOT EXISTS ("
                "  SELECT 1 FROM deposit e WHERE e.shard = d.shard AND e.made IS NOT NULL AND e.made_at IS NULL))"
                " ORDER BY made_at IS NOT NULL, next_attempt_at, seq LIMIT %s",
                (limit,),
            ).fetchall(),
        )
        return [self._outgoing(*row) for row in rows]

    def _outgoing(
        self,
        seq: int,
        deposit_id: bytes,
        shard: int,
        excluded: int,
        entry: bytes | None,
        made: bytes | None,
        attempts: int,
    ) -> Outgoing:
        return Outgoing(
            seq,
            deposit_id,
            shard,
            excluded,
            None if entry is None else _entry(decode(_StoredEntry, self._vault.open(deposit_id, entry))),
            None if made is None else self._opened(shard, excluded, deposit_id, made),
            attempts,
        )

    def highest_tick(self) -> int:
        """Return the highest tick that a receipt has stated, 0 before the first."""
        row = self._database.run(
            "highest tick", lambda connection: connection.execute("SELECT max(tick) FROM deposit").fetchone()
        )
        return row[0] if row and row[0] is not None else 0

    def store_made(self, made: Mapping[int, MadeDeposit]) -> dict[int, MadeDeposit]:
        """Store the bytes of deposits, by seq, before they are first sent; erase their entries.

        Returns the bytes that count: where another sender has stored its own meanwhile, those.
        """

        def transaction(connection: Rows) -> dict[int, MadeDeposit]:
            stored = {}
            for seq, item in made.items():
                row = connection.execute(
                    "UPDATE deposit SET made = coalesce(made, %s), entry = NULL WHERE seq = %s AND completed_at IS NULL"
                    " RETURNING deposit_id, made",
                    (self._vault.seal(_made_place(item.deposit.deposit_id), encode(item.deposit)), seq),
                ).fetchone()
                if row is not None and row[1] is not None:
                    stored[seq] = self._opened(item.shard, item.excluded, *row)
            return stored

        return self._database.run("store made deposits", transaction) if made else {}

    def _opened(self, shard: int, excluded: int, deposit_id: bytes, sealed: bytes) -> MadeDeposit:
        return MadeDeposit(shard, excluded, decode(Deposit, self._vault.open(_made_place(deposit_id), sealed)))

    def record(
        self, outgoing: Outgoing, states: Mapping[int, Kept], *, made: bool, complete: bool, reason: str | None
    ) -> None:
        """Record what came of one attempt: receipts by slot, whether it is made and complete, or when to repeat."""
        receipts = {str(slot): kept.tick for slot, kept in states.items()}
        ticks = [kept.tick for kept in states.values() if kept.tick is not None]
        wait = min(MAX_BACKOFF_SECONDS, 2 ** min(outgoing.attempts, 10))

        def transaction(connection: Rows) -> None:
            connection.execute(
                "UPDATE deposit SET receipts = receipts || %s, tick = greatest(tick, %s), attempts = attempts + 1,"
                " last_reason = %s,"
                " made_at = CASE WHEN %s THEN coalesce(made_at, now()) ELSE made_at END,"
                " completed_at = CASE WHEN %s THEN coalesce(completed_at, now()) ELSE completed_at END,"
                " made = CASE WHEN %s THEN NULL ELSE made END,"
                " next_attempt_at = now() + make_interval(secs => %s) WHERE seq = %s",
                (Jsonb(receipts), max(ticks, default=None), reason, made, complete, complete, wait, outgoing.seq),
            )

        self._database.run("record deposit attempt", transaction)

    def backlog(self) -> Backlog:
        """Return how much is on its way."""
        row = self._database.run(
            "count backlog",
            lambda connection: connection.execute(
                "SELECT count(*) FILTER (WHERE made_at IS NULL), count(*) FROM deposit WHERE completed_at IS NULL"
            ).fetchone(),
        )
        assert row is not None
        return Backlog(unmade=row[0], incomplete=row[1] - row[0])


def _made_place(deposit_id: bytes) -> bytes:
    return b"made" + bytes(deposit_id)


def _entry(stored: _StoredEntry) -> Entry:
    return Entry(
        Identity(DocumentType(stored.document_type), stored.document_number),
        stored.kind,
        stored.product,
        stored.day,
        stored.amount - _SIGN,
        stored.count - _SIGN,
        stored.earlier,
    )
