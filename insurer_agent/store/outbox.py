"""The outbox: deposits on their way, kept until every holder has given its receipt.

A deposit's bytes are made once and stored before they are first sent, so a repeat is the same bytes: same id, same
shares, same salts. Nothing is handed out for a person while an earlier deposit of that person is unmade, nor anything
new for a shard while one that was sent is unmade: else a service that keeps one deposit from being made would see, by
what comes once it lets go, which are of the same person.

A deposit that is refused again and again, or whose row is damaged, is set aside: it is repeated once an hour and when
the agent starts, and its person's deposits wait for it, but no others. It is an alarm, and stays one until it is made.
"""

import datetime as dt
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from psycopg.types.json import Jsonb

from insurer_agent.store.database import APPLICATION_NAME, Database, Rows
from insurer_agent.store.vault import Vault, VaultError
from protocol.check import shard_of_person
from protocol.committee import excluded_slot
from protocol.custody import Kept
from protocol.deposit import Entry, MadeDeposit
from protocol.encoding import ID, Maybe, Text, UInt, decode, encode, message
from protocol.errors import ProtocolError
from protocol.identity import DocumentType, Identity
from protocol.manifest import DAY, MAX_WINDOW_DAYS, Manifest, china_day
from protocol.messages import KIND, Deposit
from protocol.party import Party

log = logging.getLogger(__name__)

_SIGN = 1 << 63
"""Amounts may be negative; they are stored with this added."""
MAX_BACKOFF_SECONDS = 60
SET_ASIDE_AFTER = 8
"""Refusals in a row: some three minutes, so that no fault that passes sets anything aside."""
SET_ASIDE_SECONDS = 3600
DAMAGED = "damaged"
SPARE_DAYS = 7
"""By how much the day of a deposit may be older than any window: clocks and days differ, and it may have to wait."""


_BEHIND = """
WITH RECURSIVE found AS (
    SELECT -1 AS shard, -1::smallint AS excluded, '[]'::jsonb AS had
    UNION ALL SELECT next.* FROM found, LATERAL (
        SELECT shard, excluded, jsonb_path_query_array(receipts, '$.keyvalue() ? (@.value != null).key') AS had
        FROM deposit WHERE made_at IS NOT NULL AND completed_at IS NULL
        AND (shard, excluded, jsonb_path_query_array(receipts, '$.keyvalue() ? (@.value != null).key'))
        > (found.shard, found.excluded, found.had) ORDER BY shard, excluded, had LIMIT 1
    ) AS next
)
SELECT shard, excluded, had FROM found WHERE shard >= 0"""
"""From one combination to the next in the index `deposit_behind`: few, however many deposits wait for a holder."""


_OUTGOING = "seq, deposit_id, shard, excluded, entry, made, manifest, attempts, receipts, made_at IS NOT NULL"


_RECORD = """
WITH said AS (
    SELECT * FROM unnest(
        %s::bigint[], %s::jsonb[], %s::bigint[], %s::text[], %s::boolean[], %s::boolean[], %s::boolean[]
    )
    AS said(seq, receipts, tick, reason, refused, made, complete)
), most AS (SELECT %s::integer AS refusals, %s::float8 AS pause, %s::float8 AS aside)
UPDATE deposit d SET
    receipts = d.receipts || said.receipts,
    tick = greatest(d.tick, said.tick),
    attempts = d.attempts + 1,
    last_reason = said.reason,
    refusals = CASE WHEN said.refused THEN d.refusals + 1 ELSE 0 END,
    set_aside_at = CASE WHEN said.refused AND d.refusals + 1 >= most.refusals
        THEN coalesce(d.set_aside_at, now()) ELSE d.set_aside_at END,
    next_attempt_at = now() + make_interval(secs => CASE
        WHEN d.made_at IS NULL AND NOT said.made
        AND (d.set_aside_at IS NOT NULL OR said.refused AND d.refusals + 1 >= most.refusals) THEN most.aside
        ELSE least(most.pause, 2 ^ least(d.attempts, 10)) END),
    made_at = CASE WHEN said.made THEN coalesce(d.made_at, now()) ELSE d.made_at END,
    completed_at = CASE WHEN said.complete THEN coalesce(d.completed_at, now()) ELSE d.completed_at END,
    made = CASE WHEN said.complete THEN NULL ELSE d.made END
FROM said, most WHERE d.seq = said.seq
RETURNING coalesce(d.set_aside_at = now(), false)"""
"""One statement for a batch, and one version of each row: each has as many entries in indexes as there are indexes."""


@message("deposit entry", version=1)
class _StoredEntry:
    document_type: Annotated[str, Text(32)]
    document_number: Annotated[str, Text(64)]
    kind: Annotated[int, KIND]
    product: Annotated[str, Text(64)]
    day: Annotated[int, DAY]
    amount: Annotated[int, UInt(64)]
    earlier: Annotated[bytes | None, Maybe(ID)]


@dataclass(frozen=True)
class Outgoing:
    """A deposit that is due: its place, its bytes if they were made before, the ticks of its receipts by slot, and
    whether it counts already and only some holder lacks it.
    """

    seq: int
    deposit_id: bytes
    shard: int
    excluded: int
    entry: Entry | None
    made: MadeDeposit | None
    attempts: int
    receipts: Mapping[int, int] = field(default_factory=dict)
    counts: bool = False


@dataclass(frozen=True)
class Attempt:
    """What came of sending a deposit: its holders' states by slot, and whether it was refused, for `reason`."""

    outgoing: Outgoing
    states: Mapping[int, Kept] = field(default_factory=dict)
    made: bool = False
    complete: bool = False
    refused: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Lacking:
    """Deposits that count, of one shard and excluded slot, that have the same holders' receipts: `slots` lack them.

    With none lacking, the holders have them at unequal ticks.
    """

    shard: int
    excluded: int
    had: tuple[str, ...]
    slots: frozenset[int]


@dataclass(frozen=True)
class SetAside:
    """A deposit set aside, as its operator is shown it: nothing of the policy."""

    seq: int
    shard: int
    attempts: int
    reason: str
    since: dt.datetime


@dataclass(frozen=True)
class Backlog:
    """How many deposits are unmade (not counted yet), how many made but lack receipts, how many unmade set aside."""

    unmade: int
    incomplete: int
    set_aside: int = 0


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


def counts_still(entry: Entry, now: float) -> bool:
    """Tell whether the day of a deposit is recent enough for any rule: holders refuse those that are much older."""
    return entry.day >= china_day(now) - MAX_WINDOW_DAYS - SPARE_DAYS


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

    def any_open(self) -> bool:
        """Tell whether some deposit is not complete, whether or not it is due: one small question, often asked."""
        return self._database.run(
            "look for open deposits",
            lambda connection: connection.execute("SELECT any_deposit_is_open()").fetchone() == (True,),
            one_statement=True,
        )

    def due(self, limit: int) -> list[Outgoing]:
        """Return deposits that do not count yet and are due, in order, none of them before what it waits for."""
        return self._outgoing(
            "due deposits",
            f"SELECT {_OUTGOING} FROM deposit d"  # noqa: S608  names of columns
            " WHERE completed_at IS NULL AND made_at IS NULL AND next_attempt_at <= now() AND (made IS NOT NULL OR"
            " NOT EXISTS ("
            "  SELECT 1 FROM deposit e WHERE e.person_key = d.person_key AND e.seq < d.seq AND e.made_at IS NULL)"
            " AND NOT EXISTS ("
            "  SELECT 1 FROM deposit e WHERE e.shard = d.shard AND e.made IS NOT NULL AND e.made_at IS NULL"
            "  AND e.set_aside_at IS NULL))"
            " ORDER BY next_attempt_at, seq LIMIT %s",
            (limit,),
        )

    def lacking(self, manifest: Manifest) -> list[Lacking]:
        """Return by whom deposits that count are lacking still: a few combinations, however many deposits wait."""
        rows = self._database.run(
            "find what is lacking",
            lambda connection: connection.execute(
                _BEHIND,
                prepare=False,  # a plan from when the table was empty would sort all of it
            ).fetchall(),
            one_statement=True,
        )
        return [
            Lacking(
                shard,
                excluded,
                tuple(had),
                frozenset(
                    slot
                    for slot in range(len(manifest.committee(shard).slots))
                    if slot != excluded and str(slot) not in had
                ),
            )
            for shard, excluded, had in rows
        ]

    def repeats(self, lacking: Lacking, limit: int) -> list[Outgoing]:
        """Return deposits of a combination, those first whose last attempt is longest ago."""
        return self._outgoing(
            "repeated deposits",
            f"SELECT {_OUTGOING} FROM deposit"  # noqa: S608  names of columns
            " WHERE made_at IS NOT NULL AND completed_at IS NULL AND shard = %s AND excluded = %s"
            " AND jsonb_path_query_array(receipts, '$.keyvalue() ? (@.value != null).key') = %s"
            " ORDER BY next_attempt_at LIMIT %s",
            (lacking.shard, lacking.excluded, Jsonb(list(lacking.had)), limit),
        )

    def _outgoing(self, name: str, query: str, values: tuple[object, ...]) -> list[Outgoing]:
        rows = self._database.run(
            name, lambda connection: connection.execute(query.encode(), values).fetchall(), one_statement=True
        )
        found, damaged = [], []
        for seq, deposit_id, shard, excluded, entry, made, manifest, attempts, receipts, counts in rows:
            try:
                found.append(
                    Outgoing(
                        seq,
                        deposit_id,
                        shard,
                        excluded,
                        None if entry is None else _entry(decode(_StoredEntry, self._vault.open(deposit_id, entry))),
                        None if made is None else self._opened(shard, excluded, deposit_id, made, manifest),
                        attempts,
                        {int(slot): tick for slot, tick in receipts.items() if tick is not None},
                        counts,
                    )
                )
            except (VaultError, ProtocolError):
                damaged.append(seq)
        if damaged:
            self._set_aside(damaged)
        return found

    def _set_aside(self, damaged: list[int]) -> None:
        log.error("%d deposits of the outbox do not open: they are set aside as damaged", len(damaged))
        self._database.run(
            "set damaged deposits aside",
            lambda connection: connection.execute(
                "UPDATE deposit SET set_aside_at = coalesce(set_aside_at, now()), last_reason = %s,"
                " next_attempt_at = now() + make_interval(secs => %s) WHERE seq = ANY(%s)",
                (DAMAGED, SET_ASIDE_SECONDS, damaged),
            ),
        )

    def retry_set_aside(self) -> None:
        """Have all that is set aside sent again now: whoever restarts an agent may have mended the cause."""
        self._database.run(
            "retry deposits set aside",
            lambda connection: connection.execute(
                "UPDATE deposit SET next_attempt_at = now() WHERE set_aside_at IS NOT NULL AND made_at IS NULL"
            ),
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
                    "UPDATE deposit SET manifest = CASE WHEN made IS NULL THEN %s ELSE manifest END,"
                    " made = coalesce(made, %s), entry = NULL WHERE seq = %s AND completed_at IS NULL"
                    " RETURNING deposit_id, made, manifest",
                    (
                        item.manifest_hash,
                        self._vault.seal(_made_place(item.deposit.deposit_id), encode(item.deposit)),
                        seq,
                    ),
                ).fetchone()
                if row is not None and row[1] is not None:
                    stored[seq] = self._opened(item.shard, item.excluded, *row)
            return stored

        return self._database.run("store made deposits", transaction) if made else {}

    def _opened(self, shard: int, excluded: int, deposit_id: bytes, sealed: bytes, manifest_hash: bytes) -> MadeDeposit:
        deposit = decode(Deposit, self._vault.open(_made_place(deposit_id), sealed))
        return MadeDeposit(shard, excluded, deposit, bytes(manifest_hash))

    def record(self, attempts: Sequence[Attempt]) -> None:
        """Record what came of a batch, in one transaction: receipts, whether made and complete, or when to repeat."""
        columns = zip(*map(_recorded, attempts), strict=True) if attempts else ()

        def transaction(connection: Rows) -> int:
            rows = connection.execute(_RECORD, (*values, SET_ASIDE_AFTER, MAX_BACKOFF_SECONDS, SET_ASIDE_SECONDS))
            return sum(fresh for (fresh,) in rows)

        values = [list(column) for column in columns]
        if values and (fresh := self._database.run("record deposit attempts", transaction)):
            log.error("%d deposits are refused again and again: they are set aside; see insurer-agent outbox", fresh)

    def backlog(self) -> Backlog:
        """Return how much is on its way."""
        row = self._database.run(
            "count backlog",
            lambda connection: connection.execute(
                "SELECT count(*) FILTER (WHERE made_at IS NULL), count(*),"
                " count(*) FILTER (WHERE made_at IS NULL AND set_aside_at IS NOT NULL)"
                " FROM deposit WHERE completed_at IS NULL"
            ).fetchone(),
        )
        assert row is not None
        return Backlog(unmade=row[0], incomplete=row[1] - row[0], set_aside=row[2])

    def complete_until(self, settled_seconds: int) -> float:
        """Return the time, Unix seconds, before which all policies taken in are made, and so for `settled_seconds`.

        The agent's transactions under way may still bring one that is older than they are.
        """
        row = self._database.run(
            "find watermark",
            lambda connection: connection.execute(
                "SELECT extract(epoch FROM least("
                "(SELECT min(created_at) FROM deposit"
                " WHERE made_at IS NULL OR made_at > now() - make_interval(secs => %s)),"
                " (SELECT min(xact_start) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = %s)))::float8",
                (settled_seconds, APPLICATION_NAME),
            ).fetchone(),
        )
        assert row is not None
        return float(row[0])

    def behind(self, manifest: Manifest) -> set[tuple[int, int]]:
        """Return each (shard, slot) whose receipt some deposit that is made still lacks.

        A receipt of another tick than the others' is none that is lacking: the next repeat puts it right.
        """
        return {(one.shard, slot) for one in self.lacking(manifest) for slot in one.slots}

    def set_aside(self) -> list[SetAside]:
        """Return what is set aside and unmade, the oldest first."""
        rows = self._database.run(
            "list deposits set aside",
            lambda connection: connection.execute(
                "SELECT seq, shard, attempts, coalesce(last_reason, ''), set_aside_at FROM deposit"
                " WHERE set_aside_at IS NOT NULL AND made_at IS NULL ORDER BY seq"
            ).fetchall(),
        )
        return [SetAside(*row) for row in rows]


def _recorded(attempt: Attempt) -> tuple[object, ...]:
    """Return the values of `_RECORD` for one deposit."""
    ticks = {str(slot): kept.tick for slot, kept in attempt.states.items()}
    highest = max((tick for tick in ticks.values() if tick is not None), default=None)
    place = attempt.outgoing.seq
    return place, Jsonb(ticks), highest, attempt.reason, attempt.refused, attempt.made, attempt.complete


def _made_place(deposit_id: bytes) -> bytes:
    return b"made" + bytes(deposit_id)


def _entry(stored: _StoredEntry) -> Entry:
    return Entry(
        Identity(DocumentType(stored.document_type), stored.document_number),
        stored.kind,
        stored.product,
        stored.day,
        stored.amount - _SIGN,
        stored.earlier,
    )
