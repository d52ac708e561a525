"""What daily snapshots of all policies in force say by what they leave out: which policies are no more.

Of a snapshot's name is kept which policies it had. A snapshot is gone through twice: first all of it is seen and
nothing changes, so that one that would cancel too much can be refused; then each of its policies is made to stand as
it says, and those that it no longer has are cancelled. A run that is killed at any point is finished by the next,
since every step says what shall be. Policies that no snapshot of the name ever had are not touched.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace

from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.policy import Event
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.register import (
    Applied,
    PolicyEvent,
    Record,
    Register,
    insured_of,
    lock_policies,
)
from insurer_agent.store.vault import Vault

CANCELLATIONS_A_TRANSACTION = 500

_MISSING = b"""
    FROM snapshot_policy AS had WHERE snapshot = %(snapshot)s AND NOT EXISTS
    (SELECT 1 FROM snapshot_seen AS seen WHERE seen.snapshot = had.snapshot AND seen.policy_key = had.policy_key)
"""


@dataclass(frozen=True)
class Change:
    """How many policies the snapshots of a name had until now, and how many of these the present one lacks."""

    had: int
    missing: int

    def cancels_more_than(self, percent: int) -> bool:
        """Say whether more than so many of a hundred policies would be cancelled."""
        return self.missing * 100 > self.had * percent


class Snapshot:
    """The snapshots of one name; one process at a time goes through one."""

    def __init__(self, name: str, database: Database, vault: Vault, register: Register) -> None:
        self._database = database
        self._vault = vault
        self._register = register
        self._snapshot = vault.index("snapshot", name.encode())

    def begin(self) -> None:
        """Forget what an earlier run has seen."""
        query = "DELETE FROM snapshot_seen WHERE snapshot = %s"
        self._database.run("begin a snapshot", lambda connection: connection.execute(query, (self._snapshot,)))

    def see(self, events: Sequence[PolicyEvent], numbers: Sequence[str]) -> int:
        """Note that the snapshot has these policies, and all known ones of `numbers`, of rows not understood.

        Returns how many of the numbers are of no known policy: they may be those of known ones, misspelt.
        """
        keys = [self._register.policy_key(event) for event in events]
        indices = [self._register.number_index(number) for number in numbers]

        def transaction(connection: Rows) -> int:
            self._see(connection, events, keys)
            connection.execute(
                "INSERT INTO snapshot_seen (snapshot, policy_key)"
                " SELECT %s, policy_key FROM policy WHERE policy_number = ANY(%s) ON CONFLICT DO NOTHING",
                (self._snapshot, indices),
            )
            row = connection.execute(
                "SELECT count(*) FROM unnest(%s::bytea[]) AS number"
                " WHERE NOT EXISTS (SELECT FROM policy WHERE policy_number = number)",
                (indices,),
            ).fetchone()
            assert row is not None
            return int(row[0])

        return self._database.run("see a snapshot", transaction)

    def change(self) -> Change:
        """Return what would be cancelled, once all of the snapshot was seen."""

        def transaction(connection: Rows) -> Change:
            parameters = {"snapshot": self._snapshot}
            had = connection.execute(
                "SELECT count(*) FROM snapshot_policy WHERE snapshot = %(snapshot)s", parameters
            ).fetchone()
            missing = connection.execute(b"SELECT count(*) " + _MISSING, parameters).fetchone()
            assert had is not None
            assert missing is not None
            return Change(had[0], missing[0])

        return self._database.run("compare a snapshot", transaction)

    def apply(self, events: Sequence[PolicyEvent]) -> list[Applied | IntakeError]:
        """Make policies stand as the snapshot has them, in one transaction: issued, amended, or as they are.

        Each has a result of its own, as of `Register.apply`; `snapshot-conflict` is a policy of which an earlier row
        says otherwise, `policy-cancelled` one that was cancelled before, which stays so.
        """
        keys = [self._register.policy_key(event) for event in events]

        def transaction(connection: Rows) -> list[Applied | IntakeError]:
            lock_policies(connection, keys)
            self._see(connection, events, keys)  # a query may give others the second time; they are not missing
            query = "SELECT policy_key, meaning FROM snapshot_seen WHERE snapshot = %s AND policy_key = ANY(%s)"
            found = connection.execute(query, (self._snapshot, keys))
            meanings = {bytes(key): bytes(meaning) for key, meaning in found}
            records = self._register.records(connection, set(keys))
            results: list[Applied | IntakeError] = []
            with connection.pipeline():
                for event, key in zip(events, keys, strict=True):
                    try:
                        meant = self._meant(event, records.get(key), meanings[key])
                        results.append(self._register.settle(connection, meant, key, records))
                    except IntakeError as refusal:
                        results.append(refusal)
                        continue
                    connection.execute(
                        "INSERT INTO snapshot_policy (snapshot, policy_key) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                        (self._snapshot, key),
                    )
            return results

        return self._database.run("apply a snapshot", transaction)

    def cancel_missing(self) -> tuple[bool, int]:
        """Cancel some of the policies that the snapshot lacks, in one transaction, but those that another has.

        Returns whether there may be more, and how many were cancelled.
        """

        def transaction(connection: Rows) -> tuple[bool, int]:
            parameters = {"snapshot": self._snapshot, "most": CANCELLATIONS_A_TRANSACTION}
            found = connection.execute(b"SELECT policy_key " + _MISSING + b" LIMIT %(most)s", parameters).fetchall()
            keys = sorted(bytes(key) for (key,) in found)
            lock_policies(connection, keys)
            moved = connection.execute(
                "SELECT DISTINCT policy_key FROM snapshot_policy WHERE snapshot <> %s AND policy_key = ANY(%s)",
                (self._snapshot, keys),
            ).fetchall()
            gone = sorted(set(keys) - {bytes(key) for (key,) in moved})
            records = self._register.records(connection, gone)
            for key, record in list(records.items()):
                self._register.settle(connection, _cancellation(record), key, records)
            connection.execute(
                "DELETE FROM snapshot_policy WHERE snapshot = %s AND policy_key = ANY(%s)", (self._snapshot, keys)
            )
            return bool(keys), len(gone)

        return self._database.run("cancel what a snapshot lacks", transaction)

    def _see(self, connection: Rows, events: Sequence[PolicyEvent], keys: Sequence[bytes]) -> None:
        first: dict[bytes, bytes] = {}
        for event, key in zip(events, keys, strict=True):
            first.setdefault(key, self._meaning(event))
        connection.execute(
            "INSERT INTO snapshot_seen (snapshot, policy_key, meaning)"
            " SELECT %s, * FROM unnest(%s::bytea[], %s::bytea[]) ON CONFLICT (snapshot, policy_key)"
            " DO UPDATE SET meaning = COALESCE(snapshot_seen.meaning, EXCLUDED.meaning)",
            (self._snapshot, list(first), list(first.values())),
        )

    def _meant(self, event: PolicyEvent, record: Record | None, first_meaning: bytes) -> PolicyEvent:
        """Return what a row that says what is in force calls for, as the policy stands; raise IntakeError."""
        if self._meaning(event) != first_meaning:
            raise IntakeError("snapshot-conflict", "an earlier row has the same policy otherwise")
        if record is None:
            return event
        if record.cancelled:
            reason = "a policy that was cancelled is in force; issue it under another number"
            raise IntakeError("policy-cancelled", reason)
        # An issue on another day is a conflict, which the register will say.
        return replace(event, event=Event.AMEND) if record.day == event.day.toordinal() else event

    def _meaning(self, event: PolicyEvent) -> bytes:
        return self._vault.index("snapshot row", *event.policy(), *event.meaning())


def _cancellation(record: Record) -> PolicyEvent:
    day = dt.date.fromordinal(record.day)
    return PolicyEvent(record.policy_number, insured_of(record), record.product, Event.CANCEL, 0, day)
