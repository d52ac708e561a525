"""A custodian's store in PostgreSQL: the contract of `protocol.custody.Custody`, kept.

`admit`, `prepare`, `commit` and `abandon` are one transaction each, durable once they return. Changes to one
depositor's deposits take turns under an advisory lock, so that a repeat never races its first.
"""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

from insurer_agent.store.database import Database, Rows
from insurer_agent.store.locks import Lock
from insurer_agent.store.vault import Vault
from protocol import group, kdf
from protocol.custody import (
    Admission,
    CustodyRow,
    CustodyView,
    Kept,
    PersonRows,
    Proposed,
    Reading,
    Refusable,
    early_tick,
    repeated,
    require_epoch,
    require_same_check,
    wrong_earlier,
)
from protocol.encoding import ID, decode, encode, message
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.messages import ISSUE, SHARES
from protocol.stamps import MAX_AS_OF_AGE, deposit_stamp

_FOLD_ROWS = 16
KEEP_CHECK_RECORDS_DAYS = 3
"""Replay records outlive the freshness of what they guard, 60 s, by far."""


@message("kept shares", version=1)
class KeptShares:
    """What is sealed in a row of custody."""

    deposit_id: Annotated[bytes, ID]
    amounts: Annotated[tuple[int, ...], SHARES]
    counts: Annotated[tuple[int, ...], SHARES]


def _day(ordinal: int) -> dt.date:
    return dt.date.fromordinal(ordinal)


class PostgresCustody:
    """See `protocol.custody.Custody`."""

    def __init__(self, database: Database, vault: Vault, tick_seconds: int, epoch: int) -> None:
        self._database = database
        self._vault = vault
        self._epoch = epoch
        self._fold_after = MAX_AS_OF_AGE // tick_seconds + 4

    # --- checks

    def admit(self, admission: Admission) -> None:
        """See `Custody.admit`: request hash, attempt and budget in one transaction."""
        check = (admission.requester, admission.check_id)

        def transaction(connection: Rows) -> None:
            new = connection.execute(
                "INSERT INTO check_request (requester, check_id, statement_hash, tick, day) VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                (*check, admission.statement_hash, admission.tick, _day(admission.today)),
            ).rowcount
            if not new:
                row = connection.execute(
                    "SELECT statement_hash, tick FROM check_request WHERE requester = %s AND check_id = %s", check
                ).fetchone()
                assert row is not None
                require_same_check((bytes(row[0]), row[1]), admission)
            fresh = connection.execute(
                "INSERT INTO check_attempt (requester, check_id, attempt) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (*check, admission.attempt),
            ).rowcount
            if not fresh:
                raise ProtocolError("replayed", "this attempt was answered before")
            if new:
                self._charge(connection, admission)

        self._database.run("admit check", transaction)

    def _charge(self, connection: Rows, admission: Admission) -> None:
        # A statement for all lanes, not one a lane: a recheck has many. One budget is spread over days, a row each, so
        # checks on both sides of midnight must wait for each other: by locks, in order, so that none locks another up.
        group, keys = admission.requester_group, [(one.index, one.rule_id, one.occasion) for one in admission.charges]
        locks = {self._budget_lock(group, *key) for key in keys}
        connection.execute("SELECT pg_advisory_xact_lock(one) FROM unnest(%s::bigint[]) AS one", (sorted(locks),))
        first_days = [_day(admission.today - charge.budget_days + 1) for charge in admission.charges]
        rows = connection.execute(
            "SELECT (SELECT coalesce(sum(answers), 0) FROM budget WHERE requester_group = %s AND token = lane.token"
            " AND rule_id = lane.rule_id AND occasion = lane.occasion AND day >= lane.first_day)"
            " FROM unnest(%s::bytea[], %s::text[], %s::smallint[], %s::date[]) WITH ORDINALITY"
            " AS lane (token, rule_id, occasion, first_day, place) ORDER BY place",
            (group, *_columns(keys), first_days),
        )
        charged: Counter[tuple[bytes, str, int]] = Counter()
        for key, charge, (spent,) in zip(keys, admission.charges, rows, strict=True):
            if spent + charged[key] >= charge.budget:
                raise ProtocolError("budget-exhausted", "the query budget for this person and rule is spent")
            charged[key] += 1
        connection.execute(
            "INSERT INTO budget (requester_group, token, rule_id, occasion, day, answers)"
            " SELECT %s, token, rule_id, occasion, %s, answers"
            " FROM unnest(%s::bytea[], %s::text[], %s::smallint[], %s::integer[])"
            " AS lane (token, rule_id, occasion, answers)"
            " ON CONFLICT (requester_group, token, rule_id, occasion, day)"
            " DO UPDATE SET answers = budget.answers + EXCLUDED.answers",
            (group, _day(admission.today), *_columns(charged), [*charged.values()]),
        )

    def _budget_lock(self, group: str, token: bytes, rule_id: str, occasion: int) -> int:
        index = self._vault.index("budget", group.encode(), token, rule_id.encode(), bytes([occasion]))
        return int.from_bytes(index[:8], "big", signed=True)

    def view(self, reading: Reading) -> CustodyView:
        """See `Custody.view`: one snapshot of rows and stamps."""
        require_epoch(self._epoch, reading.epoch)

        def transaction(connection: Rows) -> CustodyView:
            lanes = tuple(PersonRows(self._rows(connection, reading, index, first)) for index, first in reading.lanes)
            found = connection.execute(
                "SELECT excluded, sum FROM custody_stamp WHERE shard = %s AND tick <= %s", (reading.shard, reading.tick)
            )
            return CustodyView(lanes, _totals((excluded, bytes(total)) for excluded, total in found))

        return self._database.run("read custody", transaction, snapshot=True)

    def _rows(self, connection: Rows, reading: Reading, index: bytes, first: int) -> tuple[CustodyRow, ...]:
        found = connection.execute(
            "SELECT depositor, id_key, product, day, excluded, shares FROM custody_deposit"
            " WHERE token = %s AND day >= %s AND tick <= %s AND shard = %s AND epoch = %s",
            (index, _day(first), reading.tick, reading.shard, reading.epoch),
        )
        rows = []
        for depositor, id_key, product, day, excluded, sealed in found:
            place = _place(depositor, id_key, reading.shard, index, product, day, excluded)
            kept = decode(KeptShares, self._vault.open(place, sealed or b""))
            rows.append(CustodyRow(product, day.toordinal(), excluded, kept.amounts, kept.counts))
        return tuple(rows)

    # --- deposits

    def prepare(self, proposed: Sequence[Proposed]) -> list[Refusable]:
        """See `Custody.prepare`."""
        if not proposed:
            return []
        for item in proposed:
            require_epoch(self._epoch, item.epoch)
        return self._in_turn(
            "prepare deposits",
            proposed[0].depositor,
            lambda connection: [self._prepare(connection, item) for item in proposed],
        )

    def _prepare(self, connection: Rows, item: Proposed) -> Refusable:
        id_key = self._id_key(item.depositor, item.deposit_id)
        known = self._kept(connection, item.depositor, id_key)
        if known is not None:
            return repeated(known, item.envelope_hash)
        if item.kind != ISSUE and not self._fits_issue(connection, item):
            return wrong_earlier()
        shares = KeptShares(deposit_id=item.deposit_id, amounts=item.row.amounts, counts=item.row.counts)
        row, day = item.row, _day(item.row.day)
        place = _place(item.depositor, id_key, item.shard, item.index, row.product, day, row.excluded)
        connection.execute(
            "INSERT INTO custody_deposit (depositor, id_key, shard, epoch, kind, token, product, day, excluded,"
            " shares, envelope_hash, not_before) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                item.depositor,
                id_key,
                item.shard,
                item.epoch,
                item.kind,
                item.index,
                item.row.product,
                _day(item.row.day),
                item.row.excluded,
                self._vault.seal(place, encode(shares)),
                item.envelope_hash,
                item.not_before,
            ),
        )
        return Kept(None, never=False, envelope_hash=item.envelope_hash)

    def _fits_issue(self, connection: Rows, item: Proposed) -> bool:
        """Tell whether the deposit that a correction names fits it, or is not here (yet)."""
        row = connection.execute(
            "SELECT kind, shard, epoch, token, product, day, excluded FROM custody_deposit"
            " WHERE depositor = %s AND id_key = %s AND NOT never",
            (item.depositor, self._id_key(item.depositor, item.earlier or b"")),
        ).fetchone()
        fitting = (ISSUE, item.shard, item.epoch, item.index, item.row.product, _day(item.row.day), item.row.excluded)
        return row is None or tuple(row) == fitting

    def commit(self, depositor: str, shard: int, commits: Sequence[tuple[bytes, int]]) -> list[Refusable]:
        """See `Custody.commit`."""
        if not commits:
            return []

        def transaction(connection: Rows) -> list[Refusable]:
            # The stamps of a shard are sums of group elements, which the database cannot add up: writers take turns.
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (Lock.STAMPS, shard))
            changes: dict[tuple[int, int], bytes] = {}
            results = [self._commit(connection, depositor, shard, *commit, changes) for commit in commits]
            for (excluded, tick), change in changes.items():
                self._add_stamp(connection, shard, excluded, tick, change)
            self._fold(connection, shard, max(tick for _, tick in commits) - self._fold_after)
            return results

        return self._in_turn("commit deposits", depositor, transaction)

    def _commit(
        self,
        connection: Rows,
        depositor: str,
        shard: int,
        deposit_id: bytes,
        tick: int,
        changes: dict[tuple[int, int], bytes],
    ) -> Refusable:
        id_key = self._id_key(depositor, deposit_id)
        row = connection.execute(
            "SELECT excluded, tick, not_before, envelope_hash FROM custody_deposit"
            " WHERE depositor = %s AND id_key = %s AND shard = %s AND NOT never",
            (depositor, id_key, shard),
        ).fetchone()
        if row is None:
            return ProtocolError("not-prepared", "this deposit is not prepared here")
        excluded, before, not_before, envelope_hash = row
        if tick < not_before:
            return early_tick()
        lower = tick if before is None else min(tick, before)
        if lower != before:
            for at, sign in ((lower, +1), (before, -1)):
                if at is not None:
                    stamp = deposit_stamp(depositor, deposit_id, at)
                    total = changes.get((excluded, at), group.IDENTITY)
                    changes[excluded, at] = group.accumulate(total, [stamp], sign=sign)
            connection.execute(
                "UPDATE custody_deposit SET tick = %s WHERE depositor = %s AND id_key = %s", (lower, depositor, id_key)
            )
        return Kept(lower, never=False, envelope_hash=bytes(envelope_hash))

    @staticmethod
    def _add_stamp(connection: Rows, shard: int, excluded: int, tick: int, change: bytes) -> None:
        key = (shard, excluded, tick)
        row = connection.execute(
            "SELECT sum FROM custody_stamp WHERE shard = %s AND excluded = %s AND tick = %s", key
        ).fetchone()
        total = group.IDENTITY if row is None else bytes(row[0])
        connection.execute(
            "INSERT INTO custody_stamp (shard, excluded, tick, sum) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (shard, excluded, tick) DO UPDATE SET sum = EXCLUDED.sum",
            (*key, group.accumulate(total, [Element(change)])),
        )

    @staticmethod
    def _fold(connection: Rows, shard: int, before: int) -> None:
        """Fold ticks that no check may name any more into the newest of them: the sums as of later ticks stay."""
        old = connection.execute(
            "SELECT excluded, sum, tick FROM custody_stamp WHERE shard = %s AND tick < %s", (shard, before)
        ).fetchall()
        if len(old) <= _FOLD_ROWS:
            return
        newest = max(tick for _, _, tick in old)
        connection.execute("DELETE FROM custody_stamp WHERE shard = %s AND tick < %s", (shard, before))
        for excluded, total in _totals((excluded, bytes(part)) for excluded, part, _ in old).items():
            connection.execute(
                "INSERT INTO custody_stamp (shard, excluded, tick, sum) VALUES (%s, %s, %s, %s)",
                (shard, excluded, newest, total),
            )

    def abandon(self, depositor: str, shard: int, deposit_ids: Sequence[bytes]) -> list[Refusable]:
        """See `Custody.abandon`."""

        def transaction(connection: Rows) -> list[Refusable]:
            return [self._abandon(connection, depositor, shard, deposit_id) for deposit_id in deposit_ids]

        return self._in_turn("abandon deposits", depositor, transaction)

    def _abandon(self, connection: Rows, depositor: str, shard: int, deposit_id: bytes) -> Refusable:
        id_key = self._id_key(depositor, deposit_id)
        known = self._kept(connection, depositor, id_key)
        if known is not None and known.tick is not None:
            return known
        connection.execute(
            "INSERT INTO custody_deposit (depositor, id_key, shard, envelope_hash, never) VALUES (%s, %s, %s, '', true)"
            " ON CONFLICT (depositor, id_key) DO UPDATE SET never = true, token = NULL, shares = NULL,"
            " envelope_hash = ''",
            (depositor, id_key, shard),
        )
        return Kept(None, never=True, envelope_hash=b"")

    # --- shared

    def _in_turn(self, name: str, depositor: str, transaction: Callable[[Rows], list[Refusable]]) -> list[Refusable]:
        def locked(connection: Rows) -> list[Refusable]:
            connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (Lock.DEPOSITOR, depositor))
            return transaction(connection)

        return self._database.run(name, locked)

    def _id_key(self, depositor: str, deposit_id: bytes) -> bytes:
        return self._vault.index("deposit id", depositor.encode(), deposit_id)

    @staticmethod
    def _kept(connection: Rows, depositor: str, id_key: bytes) -> Kept | None:
        row: tuple[Any, ...] | None = connection.execute(
            "SELECT tick, never, envelope_hash FROM custody_deposit WHERE depositor = %s AND id_key = %s",
            (depositor, id_key),
        ).fetchone()
        return None if row is None else Kept(row[0], row[1], bytes(row[2]))

    def forget_old_checks(self, today: int) -> None:
        """Drop replay records and charges that can no longer matter."""

        def transaction(connection: Rows) -> None:
            limit = _day(today - KEEP_CHECK_RECORDS_DAYS)
            connection.execute(
                "WITH old AS (DELETE FROM check_request WHERE day < %s RETURNING requester, check_id)"
                " DELETE FROM check_attempt a USING old"
                " WHERE a.requester = old.requester AND a.check_id = old.check_id",
                (limit,),
            )
            connection.execute("DELETE FROM budget WHERE day < %s", (_day(today - 400),))

        self._database.run("forget old checks", transaction)


def _columns(keys: Iterable[tuple[bytes, str, int]]) -> tuple[list[Any], ...]:
    """Return the keys' tokens, rule ids and occasions, each as a list."""
    return tuple([*column] for column in zip(*keys, strict=True))


def _totals(parts: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    """Add up stamps by excluded slot."""
    totals: dict[int, bytes] = {}
    for excluded, part in parts:
        totals[excluded] = group.accumulate(totals.get(excluded, group.IDENTITY), [Element(part)])
    return totals


def _place(depositor: str, id_key: bytes, shard: int, token: bytes, product: str, day: dt.date, excluded: int) -> bytes:
    """Return what shares are sealed for: moved to another person, product or day they do not open."""
    clear = (depositor.encode(), product.encode(), day.isoformat().encode(), b"%d %d" % (shard, excluded))
    return kdf.join(bytes(id_key), bytes(token), *clear)
