"""The agent's own policies: sealed, found by keyed HMACs; what an event means is decided here.

A policy's key is (policy number, insured, product): group policies and riders repeat the number. An event is applied
together with the deposit that it calls for, in one transaction, so that neither is ever without the other.
"""

import datetime as dt
import enum
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.policy import Event, PolicyRow
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.outbox import counts_still, enqueue, is_visible
from insurer_agent.store.vault import Vault
from protocol.deposit import Entry, draw_deposit_id
from protocol.encoding import ID, Text, UInt, decode, encode, message
from protocol.identity import DocumentType, Identity
from protocol.manifest import DAY, FLAG
from protocol.messages import AMENDMENT, CANCELLATION, ISSUE
from protocol.party import Party, RandomBytes

_BY_NUMBER = "SELECT policy_key, sealed FROM policy WHERE policy_number = %s ORDER BY policy_key"
_BY_NUMBER_LOCKED = "SELECT policy_key, sealed FROM policy WHERE policy_number = %s ORDER BY policy_key FOR UPDATE"
_FETCHED_ROWS = 2_000
POLICY_UNKNOWN = "policy-unknown"
POLICY_AMBIGUOUS = "policy-ambiguous"


class Applied(enum.Enum):
    """What came of an event that was not refused."""

    ACCEPTED = "accepted"
    CORRECTED = "corrected"
    REPEATED = "repeated"


@message("policy in the register", version=1)
class Record:
    """What is sealed in a row of the register. Amounts in fen; `current` is what counts now, 0 once cancelled.

    `corrected_on` is the day of the latest amendment, 0 without one.
    """

    policy_number: Annotated[str, Text(256)]
    document_type: Annotated[str, Text(32)]
    document_number: Annotated[str, Text(64)]
    product: Annotated[str, Text(64)]
    day: Annotated[int, DAY]
    issued: Annotated[int, UInt(48)]
    current: Annotated[int, UInt(48)]
    cancelled: Annotated[int, FLAG]
    corrected_on: Annotated[int, UInt(32)]
    issue_id: Annotated[bytes, ID]


@dataclass(frozen=True)
class PolicyEvent:
    """An issue, amendment or cancellation, however it was delivered; amounts in fen."""

    policy_number: str = field(repr=False)
    insured: Identity
    product: str
    event: Event
    amount: int = field(repr=False)
    day: dt.date

    @classmethod
    def of_row(cls, row: PolicyRow) -> "PolicyEvent":
        """Take the event out of a file's row."""
        return cls(row.policy_number, row.insured, row.product, row.event, row.amount, row.issued_on)

    def policy(self) -> tuple[bytes, ...]:
        """Return what tells its policy from every other."""
        return self.policy_number.encode(), self.insured.encode(), self.product.encode()

    def meaning(self) -> tuple[bytes, ...]:
        """Return what tells it from other events of its policy: a row that says the same is a repeat."""
        amount = b"" if self.event is Event.CANCEL else self.amount.to_bytes(8, "big")
        return self.event.value.encode(), amount, self.day.isoformat().encode()


@dataclass(frozen=True)
class PolicyName:
    """How a policy is named in a request: by its number, with insured and product where that is not enough."""

    number: str = field(repr=False)
    insured: Identity | None = None
    product: str | None = None


@dataclass(frozen=True)
class PolicyState:
    """A policy as it stands, and whether checks see it so: whether all its person's deposits are made."""

    record: Record
    visible: bool


class Register:
    """Applies events to the register and puts the deposits they call for into the outbox."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        party: Party,
        random: RandomBytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._database = database
        self._vault = vault
        self._party = party
        self._random = random

    def apply(self, events: Sequence[PolicyEvent]) -> list[Applied | IntakeError]:
        """Apply events in their order, in one transaction, each with a result of its own."""
        keys = [self.policy_key(event) for event in events]
        fingerprints = [
            self._vault.index("row", key, *event.meaning()) for key, event in zip(keys, events, strict=True)
        ]

        def transaction(connection: Rows) -> list[Applied | IntakeError]:
            # Two processes that deliver one policy take turns; the row itself may not exist yet. All locks are taken
            # first and in one order, so that no two imports wait for each other.
            lock_policies(connection, keys)
            # Rows that were applied before are found all at once: a file that is imported again is gone through fast.
            found = connection.execute(
                "SELECT fingerprint FROM policy_row WHERE fingerprint = ANY(%s)", (fingerprints,)
            )
            known = {bytes(one) for (one,) in found}
            new = {key for key, fingerprint in zip(keys, fingerprints, strict=True) if fingerprint not in known}
            records = self.records(connection, new)
            results: list[Applied | IntakeError] = []
            changes: dict[bytes, Record] = {}
            fresh: list[bytes] = []
            with connection.pipeline():  # what is written is not waited for one by one
                for event, key, fingerprint in zip(events, keys, fingerprints, strict=True):
                    if fingerprint in known:
                        results.append(Applied.REPEATED)
                        continue
                    try:
                        require_in_order(event, records.get(key))
                        applied, changed, entry = decide(event, records.get(key), self._random)
                    except IntakeError as refusal:
                        results.append(refusal)
                        continue
                    if changed is not None and entry is not None:
                        records[key] = changes[key] = changed
                        self._enqueue(connection, changed, entry)
                    results.append(applied)
                    known.add(fingerprint)
                    fresh.append(fingerprint)
                # Statements cost more than all else here, so these two are of the whole transaction.
                if changes:
                    self._keep(connection, changes)
                if fresh:
                    query = "INSERT INTO policy_row (fingerprint) SELECT unnest(%s::bytea[])"
                    connection.execute(query, (fresh,))
            return results

        return self._database.run("apply policy events", transaction)

    def correct(self, name: PolicyName, event: Event, amount: int = 0) -> tuple[Applied, Record]:
        """Amend a policy to `amount` fen, or cancel it, and return what came of it with the policy as it stands.

        Says what shall be, not what happened: unlike a file's row, the same again after something else counts.
        Refuses (`IntakeError`: `policy-unknown`, `policy-ambiguous`, `policy-cancelled`) what cannot be.
        """

        def transaction(connection: Rows) -> tuple[Applied, Record]:
            key, record = self._named(connection, name)
            day = dt.date.fromordinal(record.day)
            meant = PolicyEvent(record.policy_number, insured_of(record), record.product, event, amount, day)
            applied, changed, entry = decide(meant, record, self._random)
            self.write(connection, key, changed, entry)
            return applied, changed or record

        return self._database.run("correct a policy", transaction)

    def find(self, name: PolicyName) -> list[PolicyState]:
        """Return the policies that the name fits, as they stand."""

        def transaction(connection: Rows) -> list[PolicyState]:
            return [
                PolicyState(record, visible=is_visible(connection, self._vault, self._party, insured_of(record)))
                for _, record in self._fitting(connection, name, lock=False)
            ]

        return self._database.run("find policies", transaction)

    def _named(self, connection: Rows, name: PolicyName) -> tuple[bytes, Record]:
        found = self._fitting(connection, name, lock=True)
        if not found:
            raise IntakeError(POLICY_UNKNOWN, "no such policy was issued")
        if len(found) > 1:
            raise IntakeError(POLICY_AMBIGUOUS, "several policies have this number; name subject and product too")
        return found[0]

    def _fitting(self, connection: Rows, name: PolicyName, *, lock: bool) -> list[tuple[bytes, Record]]:
        index = (self.number_index(name.number),)
        rows = connection.execute(_BY_NUMBER_LOCKED if lock else _BY_NUMBER, index).fetchall()
        records = [(bytes(key), decode(Record, self._vault.open(key, sealed))) for key, sealed in rows]
        return [
            (key, record)
            for key, record in records
            if name.insured in (None, insured_of(record)) and name.product in (None, record.product)
        ]

    def number_index(self, number: str) -> bytes:
        """Return the HMAC of a policy number, which several policies may share."""
        return self._vault.index("policy number", number.encode())

    def policy_key(self, event: PolicyEvent) -> bytes:
        """Return the key of an event's policy: an HMAC of its number, insured and product."""
        return self._vault.index("policy", *event.policy())

    def each(self, connection: Rows) -> Iterator[tuple[bytes, Record]]:
        """Yield every policy that was ever issued with its key, as it stands, in constant memory.

        All are of one snapshot where the transaction is.
        """
        with connection.cursor(name="register") as cursor:
            cursor.itersize = _FETCHED_ROWS
            for key, sealed in cursor.execute("SELECT policy_key, sealed FROM policy"):
                yield bytes(key), self._opened(key, sealed)

    def peek(self, connection: Rows, keys: Collection[bytes]) -> dict[bytes, Record]:
        """Return those policies that were ever issued, as they stand now."""
        rows = connection.execute("SELECT policy_key, sealed FROM policy WHERE policy_key = ANY(%s)", (list(keys),))
        return {bytes(key): self._opened(key, sealed) for key, sealed in rows}

    def _opened(self, key: bytes, sealed: bytes) -> Record:
        return decode(Record, self._vault.open(bytes(key), sealed))

    def records(self, connection: Rows, keys: Collection[bytes]) -> dict[bytes, Record]:
        """Return those policies that were ever issued, as they stand, and keep them from changing until the end."""
        query = "SELECT policy_key, sealed FROM policy WHERE policy_key = ANY(%s) ORDER BY policy_key FOR UPDATE"
        rows = connection.execute(query, (list(keys),))
        return {bytes(key): decode(Record, self._vault.open(bytes(key), sealed)) for key, sealed in rows}

    def settle(self, connection: Rows, event: PolicyEvent, policy_key: bytes, records: dict[bytes, Record]) -> Applied:
        """Do what `decide` says to a policy and to `records`, where it stands; raise IntakeError as it does."""
        applied, changed, entry = decide(event, records.get(policy_key), self._random)
        self.write(connection, policy_key, changed, entry)
        if changed is not None:
            records[policy_key] = changed
        return applied

    def write(self, connection: Rows, policy_key: bytes, changed: Record | None, entry: Entry | None) -> None:
        """Keep a policy's new record and put its deposit into the outbox, if `decide` has called for them and some
        window may still reach its day.
        """
        if changed is None or entry is None:
            return
        self._keep(connection, {policy_key: changed})
        self._enqueue(connection, changed, entry)

    def _keep(self, connection: Rows, changes: Mapping[bytes, Record]) -> None:
        sealed = [self._vault.seal(key, encode(record)) for key, record in changes.items()]
        numbers = [self.number_index(record.policy_number) for record in changes.values()]
        connection.execute(
            "INSERT INTO policy (policy_key, policy_number, sealed)"
            " SELECT * FROM unnest(%s::bytea[], %s::bytea[], %s::bytea[])"
            " ON CONFLICT (policy_key) DO UPDATE SET sealed = EXCLUDED.sealed",
            (list(changes), numbers, sealed),
        )

    def _enqueue(self, connection: Rows, changed: Record, entry: Entry) -> None:
        deposit_id = (
            changed.issue_id
            if entry.kind == ISSUE
            else draw_deposit_id(self._party, entry.identity, entry.earlier, self._random)
        )
        if counts_still(entry, self._clock()):
            enqueue(connection, self._vault, self._party, entry, deposit_id)


def require_in_order(event: PolicyEvent, record: Record | None) -> None:
    """Refuse (`policy-superseded`) a row that amends a policy as of a day before that of its last amendment.

    What stands is what the latest one says, in whatever order rows come; on one day, the one that came last.
    """
    if event.event is not Event.AMEND or record is None or record.cancelled or event.amount == record.current:
        return
    if event.day.toordinal() < record.corrected_on:
        raise IntakeError("policy-superseded", "an amendment of a later day is known already")


def lock_policies(connection: Rows, keys: Sequence[bytes]) -> None:
    """Have this transaction wait for its turn at policies, whether they exist yet or not."""
    locks = sorted({int.from_bytes(key[:8], "big", signed=True) for key in keys})
    connection.execute("SELECT pg_advisory_xact_lock(one) FROM unnest(%s::bigint[]) AS one", (locks,))


def decide(
    event: PolicyEvent, record: Record | None, random: RandomBytes
) -> tuple[Applied, Record | None, Entry | None]:
    """Return what comes of an event, with the policy's new record and the deposit, if it changes anything.

    `record` is the policy as it stands, None if it was never issued; `random` draws the id of an issue. Raises
    IntakeError with policy-unknown, policy-conflict or policy-cancelled.
    """
    if event.event is Event.ISSUE:
        return _issue(event, record, random)
    if record is None:
        verb = "cancels" if event.event is Event.CANCEL else "amends"
        raise IntakeError(POLICY_UNKNOWN, f"{verb} a policy that was never issued")
    if event.event is Event.CANCEL:
        if record.cancelled:
            return Applied.REPEATED, None, None
        entry = _correction(event, record, CANCELLATION, -record.current)
        return Applied.CORRECTED, replace(record, current=0, cancelled=1), entry
    if record.cancelled:
        raise IntakeError("policy-cancelled", "amends a policy that was cancelled")
    if event.amount == record.current:
        return Applied.REPEATED, None, None
    entry = _correction(event, record, AMENDMENT, event.amount - record.current)
    corrected_on = max(record.corrected_on, event.day.toordinal())
    return Applied.CORRECTED, replace(record, current=event.amount, corrected_on=corrected_on), entry


def _issue(
    event: PolicyEvent, record: Record | None, random: RandomBytes
) -> tuple[Applied, Record | None, Entry | None]:
    if record is not None:
        if event.amount != record.issued:
            raise IntakeError("policy-conflict", "issues a known policy with another amount; amend it instead")
        if event.day.toordinal() != record.day:
            raise IntakeError("policy-conflict", "issues a known policy with another day")
        return Applied.REPEATED, None, None
    new = Record(
        policy_number=event.policy_number,
        document_type=event.insured.document_type.value,
        document_number=event.insured.number,
        product=event.product,
        day=event.day.toordinal(),
        issued=event.amount,
        current=event.amount,
        cancelled=0,
        corrected_on=0,
        issue_id=random(16),
    )
    entry = Entry(event.insured, ISSUE, event.product, new.day, event.amount)
    return Applied.ACCEPTED, new, entry


def _correction(event: PolicyEvent, record: Record, kind: int, amount: int) -> Entry:
    """Return a deposit of the difference: on the original day, whatever date the event bears."""
    return Entry(insured_of(record), kind, event.product, record.day, amount, earlier=record.issue_id)


def insured_of(record: Record) -> Identity:
    """Return whom a policy insures."""
    return Identity(DocumentType(record.document_type), record.document_number)
