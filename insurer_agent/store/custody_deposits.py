"""The deposits of others as a custodian keeps them: pending, then committed (SPEC.md, section 5).

All deposits of a call go through a few statements together, whatever their number. Changes to one depositor's deposits
take turns under an advisory lock, so that a repeat never races its first, and what a range check judges is what stands.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, TypeVar

from insurer_agent.store import custody_stamps
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.locks import Lock
from insurer_agent.store.vault import Vault
from protocol import kdf
from protocol.custody import (
    AHEAD_DAYS,
    KEPT_DAYS,
    PENDING_SECONDS,
    BaseRow,
    CustodyRow,
    DepositBase,
    Kept,
    Preparation,
    Proposed,
    RangeAttempt,
    RangeBase,
    Refusable,
    commit_refusal,
    not_prepared,
    range_not_shown,
    repeated,
    replayed_range,
    require_epoch,
    wrong_earlier,
)
from protocol.encoding import HASH, ID, decode, encode, message
from protocol.errors import ProtocolError
from protocol.messages import ISSUE, SHARES, Commit, RangeProof
from protocol.stamps import MAX_AS_OF_AGE, deposit_stamp

T = TypeVar("T")
KEEP_ATTEMPTS_DAYS = 3
"""Records of range checks outlive the freshness of what they guard, 60 s, by far."""


@message("kept shares", version=1)
class KeptShares:
    """What is sealed in a row of custody."""

    deposit_id: Annotated[bytes, ID]
    amounts: Annotated[tuple[int, ...], SHARES]
    counts: Annotated[tuple[int, ...], SHARES]


@message("pending shares", version=1)
class PendingShares:
    """What is sealed in a pending row: the range key goes once the deposit is committed."""

    deposit_id: Annotated[bytes, ID]
    amounts: Annotated[tuple[int, ...], SHARES]
    counts: Annotated[tuple[int, ...], SHARES]
    range_key: Annotated[bytes, HASH]


class Facts(NamedTuple):
    """The clear part of a row, as both tables have it; a tuple, as of each row that a check reads one is made."""

    shard: int
    epoch: int
    kind: int
    token: bytes
    product: str
    day: dt.date
    excluded: int
    chain_key: bytes
    envelope_hash: bytes
    not_before: int


FACTS = "shard, epoch, kind, token, product, day, excluded, chain_key, envelope_hash, not_before"


_GIVEN_UP = (
    "never = true, token = NULL, product = NULL, day = NULL, chain_key = NULL, sealed = NULL, envelope_hash = ''"
)
"""What becomes of a pending row whose id is given up for good."""


@dataclass(frozen=True)
class _Pending:
    facts: Facts
    sealed: bytes = field(repr=False)


@dataclass(frozen=True)
class _Committed:
    facts: Facts
    tick: int
    proof: bytes = field(repr=False)


_Asked = tuple[Proposed, bytes, Facts]
"""A deposit that is asked for, with the HMAC of its id and the clear part of its row."""


class CustodyDeposits:
    """Prepares, commits and gives up deposits; each a transaction, durable once it returns."""

    def __init__(self, database: Database, vault: Vault, tick_seconds: int, epoch: int) -> None:
        self._database = database
        self._vault = vault
        self._epoch = epoch
        self._fold_after = MAX_AS_OF_AGE // tick_seconds + 4

    # --- prepare

    def prepare(self, proposed: Sequence[Proposed], now: float, attempt: RangeAttempt | None) -> Preparation:
        """See `protocol.custody.Custody.prepare`."""
        if not proposed:
            return Preparation([], None)
        for item in proposed:
            require_epoch(self._epoch, item.epoch)
        depositor = proposed[0].depositor
        keys = [self.id_key(depositor, item.deposit_id) for item in proposed]
        facts = [self._facts(item, key) for item, key in zip(proposed, keys, strict=True)]
        asked = list(zip(proposed, keys, facts, strict=True))

        def transaction(connection: Rows) -> Preparation:
            if attempt is not None:
                self._record(connection, attempt)
            kept = self._keep(connection, depositor, asked, now)
            if attempt is None or any(isinstance(item, ProtocolError) for item in kept):
                return Preparation(kept, None)
            return Preparation(kept, self._base(connection, depositor, asked, now, attempt))

        return self._in_turn("prepare deposits", depositor, transaction)

    def _record(self, connection: Rows, attempt: RangeAttempt) -> None:
        new = connection.execute(
            "INSERT INTO range_attempt (header_key, day, passed) VALUES (%s, %s, '{}') ON CONFLICT DO NOTHING",
            (self._header_key(attempt.header_hash), dt.date.fromordinal(attempt.today)),
        ).rowcount
        if not new:
            raise replayed_range()

    def _keep(self, connection: Rows, depositor: str, asked: Sequence[_Asked], now: float) -> list[Refusable]:
        keys = [key for _, key, _ in asked] + [own.chain_key for item, _, own in asked if item.kind != ISSUE]
        pending, nevers = self._pending(connection, depositor, keys)
        committed = self._committed(connection, depositor, keys)
        standing = {key: one.facts for key, one in pending.items()} | {key: one.facts for key, one in committed.items()}
        kept: list[Refusable] = []
        new: dict[bytes, tuple[Facts, Proposed]] = {}
        again: dict[bytes, bytes] = {}
        for item, key, own in asked:
            known = pending.get(key) or committed.get(key)
            if key in nevers:
                kept.append(repeated(Kept(None, never=True, envelope_hash=b""), item.envelope_hash))
            elif key in new:
                state = Kept(None, never=False, envelope_hash=new[key][1].envelope_hash)
                kept.append(repeated(state, item.envelope_hash))
            elif known is not None:
                kept.append(repeated(self._state(depositor, key, known), item.envelope_hash))
                if isinstance(known, _Pending) and not isinstance(kept[-1], ProtocolError):
                    again[key] = self._seal(depositor, key, own, item)
            elif item.kind != ISSUE and not _corrects(own, standing.get(own.chain_key)):
                kept.append(wrong_earlier())
            else:
                new[key] = (own, item)
                standing[key] = own
                kept.append(Kept(None, never=False, envelope_hash=item.envelope_hash))
        if new:
            columns = f"COPY custody_pending (depositor, id_key, {FACTS}, sealed, prepared_at) FROM STDIN"
            with connection.cursor() as cursor, cursor.copy(columns.encode()) as copy:
                for key, (own, item) in new.items():
                    copy.write_row((depositor, key, *_values(own), self._seal(depositor, key, own, item), now))
        if again:
            connection.execute(
                "UPDATE custody_pending p SET sealed = a.sealed, prepared_at = %s"
                " FROM unnest(%s::bytea[], %s::bytea[]) AS a(id_key, sealed)"
                " WHERE p.depositor = %s AND p.id_key = a.id_key",
                (now, list(again), list(again.values()), depositor),
            )
        return kept

    def _facts(self, item: Proposed, key: bytes) -> Facts:
        return Facts(
            item.shard,
            item.epoch,
            item.kind,
            bytes(item.index),
            item.row.product,
            dt.date.fromordinal(item.row.day),
            item.row.excluded,
            key if item.earlier is None else self.id_key(item.depositor, item.earlier),
            item.envelope_hash,
            item.not_before,
        )

    def _seal(self, depositor: str, key: bytes, facts: Facts, item: Proposed) -> bytes:
        shares = PendingShares(
            deposit_id=item.deposit_id,
            amounts=item.row.amounts,
            counts=item.row.counts,
            range_key=item.range_key,
        )
        return self._vault.seal(_place(b"pending", depositor, key, facts), encode(shares))

    def _state(self, depositor: str, key: bytes, known: _Pending | _Committed) -> Kept:
        if isinstance(known, _Pending):
            return Kept(None, never=False, envelope_hash=known.facts.envelope_hash)
        proof = decode(RangeProof, self._vault.open(_place(b"proof", depositor, key, known.facts), known.proof))
        return Kept(known.tick, never=False, envelope_hash=known.facts.envelope_hash, proof=proof)

    def _base(
        self, connection: Rows, depositor: str, asked: Sequence[_Asked], now: float, attempt: RangeAttempt
    ) -> RangeBase:
        """Return what these deposits are judged by: rows of their depositor and persons, and what else is pending."""
        shard, tokens = asked[0][2].shard, sorted({own.token for _, _, own in asked})
        rows: dict[bytes, dict[bytes, tuple[int, bytes, CustodyRow]]] = {}
        found = connection.execute(
            f"SELECT id_key, {FACTS}, shares FROM custody_row"  # noqa: S608  names of columns
            " WHERE token = ANY(%s) AND day >= %s AND depositor = %s AND shard = %s",
            (tokens, dt.date.fromordinal(attempt.first_day), depositor, shard),
        )
        for id_key, *values, sealed in found:
            facts = read_facts(values)
            row = self.open_row(depositor, bytes(id_key), facts, sealed)
            rows.setdefault(facts.token, {})[bytes(id_key)] = (facts.kind, facts.chain_key, row)
        pending: dict[bytes, dict[bytes, int]] = {}
        passed: list[bytes] = []
        for id_key, token, excluded, prepared_at in connection.execute(
            "SELECT id_key, token, excluded, prepared_at FROM custody_pending"
            " WHERE token = ANY(%s) AND depositor = %s AND shard = %s AND NOT never",
            (tokens, depositor, shard),
        ):
            if prepared_at > now - PENDING_SECONDS:
                pending.setdefault(bytes(token), {})[bytes(id_key)] = excluded
            else:
                passed.append(bytes(id_key))
        if passed:
            connection.execute(
                "UPDATE range_attempt SET passed = %s WHERE header_key = %s",
                (passed, self._header_key(attempt.header_hash)),
            )
        bases = []
        for item, key, own in asked:
            judged = dict(rows.get(own.token, {}))
            if item.row.day >= attempt.first_day:
                judged.setdefault(key, (item.kind, own.chain_key, item.row))
            base = tuple(BaseRow(kind, chain == own.chain_key, row) for kind, chain, row in judged.values())
            others = (slot for other, slot in pending.get(own.token, {}).items() if other != key)
            bases.append(DepositBase(base, tuple(others)))
        return RangeBase(tuple(bases), custody_stamps.own_sums(connection, depositor, shard))

    # --- commit

    def commit(self, depositor: str, shard: int, commits: Sequence[Commit]) -> list[Refusable]:
        """See `protocol.custody.Custody.commit`."""
        if not commits:
            return []
        keys = [self.id_key(depositor, commit.deposit_id) for commit in commits]

        def transaction(connection: Rows) -> list[Refusable]:
            # The stamps of a shard are sums of group elements, which the database cannot add up: writers take turns.
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (Lock.STAMPS, shard))
            pending, _ = self._pending(connection, depositor, keys)
            others = [key for key in keys if key not in pending]
            headers = {commit.range_proof.header_hash for commit in commits}
            passed = self._passed(connection, headers)
            committed = self._committed(
                connection, depositor, [*others, *(key for ids in passed.values() for key in ids)]
            )
            work = _Commits(self._vault, depositor, pending, committed, passed)
            results = [work.commit(shard, commit, key) for commit, key in zip(commits, keys, strict=True)]
            work.write(connection)
            for token, ids in work.given_up:
                connection.execute(
                    f"UPDATE custody_pending SET {_GIVEN_UP} WHERE id_key = ANY(%s) AND token = %s",  # noqa: S608  columns
                    (list(ids), token),
                )
            if custody_stamps.apply_changes(connection, depositor, shard, work.changes):
                custody_stamps.fold(connection, shard, max(commit.tick for commit in commits) - self._fold_after)
            return results

        return self._in_turn("commit deposits", depositor, transaction)

    def _passed(self, connection: Rows, headers: Iterable[bytes]) -> dict[bytes, frozenset[bytes]]:
        """Return, by header's hash, what this holder passed over when it judged under that header, if anything."""
        keys = {self._header_key(header): header for header in headers}
        found = connection.execute(
            "SELECT header_key, passed FROM range_attempt WHERE header_key = ANY(%s) AND passed <> '{}'", (list(keys),)
        )
        return {keys[bytes(key)]: frozenset(map(bytes, passed)) for key, passed in found}

    # --- give up, forget

    def abandon(self, depositor: str, shard: int, deposit_ids: Sequence[bytes], now: float) -> list[Refusable]:
        """See `protocol.custody.Custody.abandon`."""
        keys = [self.id_key(depositor, deposit_id) for deposit_id in deposit_ids]

        def transaction(connection: Rows) -> list[Refusable]:
            committed = self._committed(connection, depositor, keys)
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO custody_pending (depositor, id_key, shard, envelope_hash, prepared_at, never)"  # noqa: S608  names of columns
                    f" VALUES (%s, %s, %s, '', %s, true) ON CONFLICT (id_key) DO UPDATE SET {_GIVEN_UP},"
                    " prepared_at = EXCLUDED.prepared_at",
                    [(depositor, key, shard, now) for key in keys if key not in committed],
                )
            return [
                self._state(depositor, key, committed[key])
                if key in committed
                else Kept(None, never=True, envelope_hash=b"")
                for key in keys
            ]

        return self._in_turn("abandon deposits", depositor, transaction)

    def forget_old(self, today: dt.date, now: float) -> None:
        """Drop what nothing is asked of any more: records of range checks, what was pending for too long, and ids that
        were given up so long ago that no day of a deposit that bore them is accepted any more.
        """

        def transaction(connection: Rows) -> None:
            limit = today - dt.timedelta(days=KEEP_ATTEMPTS_DAYS)
            connection.execute(
                "DELETE FROM range_attempt WHERE day < %s AND (passed = '{}' OR day < %s)",
                (limit, today - dt.timedelta(days=KEPT_DAYS)),
            )
            connection.execute(
                "DELETE FROM custody_pending WHERE prepared_at < %s AND (NOT never OR prepared_at < %s)",
                (now - KEPT_DAYS * 86_400, now - (KEPT_DAYS + AHEAD_DAYS) * 86_400),
            )

        self._database.run("forget old deposits", transaction)

    # --- shared

    def _in_turn(self, name: str, depositor: str, transaction: Callable[[Rows], T]) -> T:
        def locked(connection: Rows) -> T:
            connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (Lock.DEPOSITOR, depositor))
            return transaction(connection)

        return self._database.run(name, locked)

    def _header_key(self, header_hash: bytes) -> bytes:
        return self._vault.index("range header", header_hash)

    def id_key(self, depositor: str, deposit_id: bytes) -> bytes:
        """Return the HMAC by which a deposit id is known."""
        return self._vault.index("deposit id", depositor.encode(), deposit_id)

    def open_row(self, depositor: str, id_key: bytes, facts: Facts, sealed: bytes) -> CustodyRow:
        """Return a committed row's shares; raise `VaultError` where they were sealed for another row."""
        kept = decode(KeptShares, self._vault.open(_place(b"row", depositor, id_key, facts), sealed))
        return CustodyRow(facts.product, facts.day.toordinal(), facts.excluded, kept.amounts, kept.counts)

    @staticmethod
    def _pending(connection: Rows, depositor: str, keys: Iterable[bytes]) -> tuple[dict[bytes, _Pending], set[bytes]]:
        """Return what is pending of these, and which of them were given up."""
        found = connection.execute(
            f"SELECT id_key, never, sealed, {FACTS} FROM custody_pending"  # noqa: S608  names of columns
            " WHERE depositor = %s AND id_key = ANY(%s)",
            (depositor, list(keys)),
        ).fetchall()
        nevers = {bytes(key) for key, never, *_ in found if never}
        kept = (entry for entry in found if not entry[1])
        return {bytes(key): _Pending(read_facts(values), sealed or b"") for key, _, sealed, *values in kept}, nevers

    @staticmethod
    def _committed(connection: Rows, depositor: str, keys: Sequence[bytes]) -> dict[bytes, _Committed]:
        if not keys:
            return {}
        found = connection.execute(
            f"SELECT id_key, {FACTS}, tick, proof FROM custody_row"  # noqa: S608  names of columns
            " WHERE depositor = %s AND id_key = ANY(%s)",
            (depositor, list(keys)),
        )
        return {bytes(key): _Committed(read_facts(values), tick, bytes(proof)) for key, *values, tick, proof in found}


class _Commits:
    """The commits of one call, gathered and then written together."""

    def __init__(
        self,
        vault: Vault,
        depositor: str,
        pending: Mapping[bytes, _Pending],
        committed: Mapping[bytes, _Committed],
        passed: Mapping[bytes, frozenset[bytes]],
    ) -> None:
        self._vault = vault
        self._depositor = depositor
        self._pending = dict(pending)
        self._committed = dict(committed)
        self._shares: dict[bytes, bytes] = {}
        self._lowered: set[bytes] = set()
        self._passed = passed
        self.given_up: list[tuple[bytes, frozenset[bytes]]] = []
        """What was passed over when something that now stands was judged, with its person's token. A holder that lacks
        a commit passes nothing over for good: under its header nothing opens.
        """
        self.changes: custody_stamps.Changes = {}

    def commit(self, shard: int, commit: Commit, key: bytes) -> Refusable:
        """Return the state that a commit leads to, or its refusal."""
        known = self._committed.get(key)
        if known is not None and known.facts.shard == shard:
            return commit_refusal(commit, known.facts.not_before, None) or self._lower(commit, key, known)
        pending = self._pending.get(key)
        if known is not None or pending is None or pending.facts.shard != shard:
            return not_prepared()
        facts = pending.facts
        kept = decode(PendingShares, self._vault.open(self._place(b"pending", key, facts), pending.sealed))
        refusal = commit_refusal(commit, facts.not_before, kept.range_key)
        if refusal is not None:
            return refusal
        passed = self._passed.get(commit.range_proof.header_hash, frozenset())
        if any(other in self._committed and self._committed[other].facts.token == facts.token for other in passed):
            return range_not_shown()  # it has been committed since: they were not judged together
        if passed:
            self.given_up.append((facts.token, passed))
            lost = {other for other in passed & self._pending.keys() if self._pending[other].facts.token == facts.token}
            self._pending = {other: one for other, one in self._pending.items() if other not in lost}
        shares = KeptShares(deposit_id=kept.deposit_id, amounts=kept.amounts, counts=kept.counts)
        self._shares[key] = self._vault.seal(self._place(b"row", key, facts), encode(shares))
        proof = self._vault.seal(self._place(b"proof", key, facts), encode(commit.range_proof))
        self._committed[key] = _Committed(facts, commit.tick, proof)
        self._stamp(commit, facts.excluded, commit.tick, +1)
        return Kept(commit.tick, never=False, envelope_hash=facts.envelope_hash, proof=commit.range_proof)

    def _lower(self, commit: Commit, key: bytes, known: _Committed) -> Kept:
        tick = min(commit.tick, known.tick)
        if tick != known.tick:
            self._stamp(commit, known.facts.excluded, tick, +1)
            self._stamp(commit, known.facts.excluded, known.tick, -1)
            self._committed[key] = _Committed(known.facts, tick, known.proof)
            self._lowered.add(key)
        proof = decode(RangeProof, self._vault.open(self._place(b"proof", key, known.facts), known.proof))
        return Kept(tick, never=False, envelope_hash=known.facts.envelope_hash, proof=proof)

    def _stamp(self, commit: Commit, excluded: int, tick: int, sign: int) -> None:
        stamp = deposit_stamp(self._depositor, commit.deposit_id, tick)
        custody_stamps.change(self.changes, excluded, tick, stamp, sign=sign)

    def _place(self, what: bytes, key: bytes, facts: Facts) -> bytes:
        return _place(what, self._depositor, key, facts)

    def write(self, connection: Rows) -> None:
        """Move what was pending, and change the ticks that are lower now."""
        if self._shares:
            connection.execute(
                "DELETE FROM custody_pending WHERE depositor = %s AND id_key = ANY(%s)",
                (self._depositor, list(self._shares)),
            )
            columns = f"COPY custody_row (depositor, id_key, {FACTS}, shares, proof, tick) FROM STDIN"
            with connection.cursor() as cursor, cursor.copy(columns.encode()) as copy:
                for key, shares in self._shares.items():
                    row = self._committed[key]
                    copy.write_row((self._depositor, key, *_values(row.facts), shares, row.proof, row.tick))
        lowered = self._lowered - self._shares.keys()
        if lowered:
            connection.execute(
                "UPDATE custody_row r SET tick = l.tick FROM unnest(%s::bytea[], %s::bigint[]) AS l(id_key, tick)"
                " WHERE r.depositor = %s AND r.id_key = l.id_key",
                (list(lowered), [self._committed[key].tick for key in lowered], self._depositor),
            )


def _corrects(own: Facts, issue: Facts | None) -> bool:
    """Tell whether a correction fits the issue that it names, or that one is not here (yet)."""
    return issue is None or (
        issue.kind == ISSUE
        and (own.shard, own.epoch, own.token) == (issue.shard, issue.epoch, issue.token)
        and (own.product, own.day, own.excluded) == (issue.product, issue.day, issue.excluded)
    )


def _values(facts: Facts) -> tuple[Any, ...]:
    """Return the columns `FACTS`."""
    return (
        facts.shard,
        facts.epoch,
        facts.kind,
        facts.token,
        facts.product,
        facts.day,
        facts.excluded,
        facts.chain_key,
        facts.envelope_hash,
        facts.not_before,
    )


def read_facts(values: Sequence[Any]) -> Facts:
    """Return facts from the columns `FACTS`."""
    shard, epoch, kind, token, product, day, excluded, chain_key, envelope_hash, not_before = values
    return Facts(
        shard,
        epoch,
        kind,
        bytes(token),
        product,
        day,
        excluded,
        bytes(chain_key),
        bytes(envelope_hash),
        not_before,
    )


def _place(what: bytes, depositor: str, id_key: bytes, facts: Facts) -> bytes:
    """Return what a value is sealed for: moved to another person, product or day it does not open."""
    clear = (depositor.encode(), facts.product.encode(), facts.day.isoformat().encode())
    return kdf.join(what, id_key, facts.token, *clear, b"%d %d" % (facts.shard, facts.excluded))
