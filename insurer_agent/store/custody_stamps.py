"""Running sums of deposit stamps (SPEC.md, section 5): group elements, which the database cannot add up.

Of a shard by tick, for checks; of one depositor alone, for the range checks of his deposits.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

from insurer_agent.store.database import Rows
from protocol import group
from protocol.group import Element

_FOLD_ROWS = 16
Changes = dict[tuple[int, int], bytes]
"""By excluded slot and tick, what is to be added."""


def change(changes: Changes, excluded: int, tick: int, stamp: Element, *, sign: int) -> None:
    """Note a stamp that is to be added (+1) or taken off (-1)."""
    total = changes.get((excluded, tick), group.IDENTITY)
    changes[excluded, tick] = group.accumulate(total, [stamp], sign=sign)


def apply_changes(connection: Rows, depositor: str, shard: int, changes: Changes) -> bool:
    """Add what was noted to the sums of the shard and of the depositor; the caller's turn at both is taken.

    Tells whether the shard has had nothing of one of the ticks before.
    """
    fresh = False
    for (excluded, tick), amount in changes.items():
        key = (shard, excluded, tick)
        row = connection.execute(
            "SELECT sum FROM custody_stamp WHERE shard = %s AND excluded = %s AND tick = %s", key
        ).fetchone()
        connection.execute(
            "INSERT INTO custody_stamp (shard, excluded, tick, sum) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (shard, excluded, tick) DO UPDATE SET sum = EXCLUDED.sum",
            (*key, _plus(row, amount)),
        )
        fresh |= row is None
    for excluded, amount in totals((excluded, amount) for (excluded, _), amount in changes.items()).items():
        own = (depositor, shard, excluded)
        row = connection.execute(
            "SELECT sum FROM custody_own_stamp WHERE depositor = %s AND shard = %s AND excluded = %s", own
        ).fetchone()
        connection.execute(
            "INSERT INTO custody_own_stamp (depositor, shard, excluded, sum) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (depositor, shard, excluded) DO UPDATE SET sum = EXCLUDED.sum",
            (*own, _plus(row, amount)),
        )
    return fresh


def _plus(row: tuple[bytes] | None, amount: bytes) -> bytes:
    return group.accumulate(group.IDENTITY if row is None else bytes(row[0]), [Element(amount)])


def own_sums(connection: Rows, depositor: str, shard: int) -> Mapping[int, bytes]:
    """Return a depositor's sums by excluded slot, of all that is committed."""
    found = connection.execute(
        "SELECT excluded, sum FROM custody_own_stamp WHERE depositor = %s AND shard = %s", (depositor, shard)
    )
    return {excluded: bytes(total) for excluded, total in found}


def fold(connection: Rows, shard: int, before: int) -> None:
    """Fold ticks that no check may name any more into the newest of them: the sums as of later ticks stay."""
    old = connection.execute(
        "SELECT excluded, sum, tick FROM custody_stamp WHERE shard = %s AND tick < %s", (shard, before)
    ).fetchall()
    if len(old) <= _FOLD_ROWS:
        return
    newest = max(tick for _, _, tick in old)
    connection.execute("DELETE FROM custody_stamp WHERE shard = %s AND tick < %s", (shard, before))
    for excluded, total in totals((excluded, bytes(part)) for excluded, part, _ in old).items():
        connection.execute(
            "INSERT INTO custody_stamp (shard, excluded, tick, sum) VALUES (%s, %s, %s, %s)",
            (shard, excluded, newest, total),
        )


@lru_cache(maxsize=512)
def known_totals(parts: tuple[tuple[int, bytes], ...]) -> Mapping[int, bytes]:
    """As `totals`, remembered: between two commits all checks of a shard add up the same."""
    return MappingProxyType(totals(parts))


def totals(parts: Iterable[tuple[int, bytes]]) -> dict[int, bytes]:
    """Add up sums by excluded slot."""
    found: dict[int, bytes] = {}
    for excluded, part in parts:
        found[excluded] = group.accumulate(found.get(excluded, group.IDENTITY), [Element(part)])
    return found
