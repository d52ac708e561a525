"""What each party sees of a step of `worlds.py`, and how two worlds look to it: all but what is random, and times."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from worlds import CHECKS, LATE_TABLES, MEMBERS, OWN_TABLES, Exchange, Recording, Row, Step, name

from insurer_agent.store.custody_deposits import Facts, KeptShares, _place
from protocol.check import PURPOSE as CHECK_PURPOSE
from protocol.deposit import PURPOSE as DEPOSIT_PURPOSE
from protocol.deposit import _unpad
from protocol.encoding import decode, encode
from protocol.group import Element
from protocol.messages import (
    CheckCall,
    CheckEnvelope,
    DepositBatch,
    DepositEnvelope,
    PrepareCall,
    RangeProof,
    SignedBatch,
)
from protocol.token import unblind

# --- what a party sees ---------------------------------------------------------------------------------------------


def seen_by_service(step: Step, *, comparing: bool = False) -> list[Any]:
    """Return what the service is sent and answers, what it sends custodians and is answered, and what it logs.

    For `comparing` two worlds without the proofs of C: to whom of A they go follows from a check's id alone.
    """
    parties = ["service", *map(name, range(1, MEMBERS + 1))]
    exchanges = [item for party in parties for item in step.exchanges[party]]
    return [_plainly(item, comparing=comparing) for item in exchanges] + _log(step, "service")


def seen_by_custodian(recording: Recording, member: int, step: Step, *, comparing: bool = False) -> list[Any]:
    """Return what a member is sent, opens, keeps and logs as a custodian; its own policies are no part of it.

    `comparing` is as for the service.
    """
    seen: list[Any] = []
    for item in step.exchanges[name(member)]:
        seen += [*_plainly(item, comparing=comparing), *opened(recording, member, item)]
    for row in step.rows[member]:
        if row.table in {"custody_stamp", "custody_own_stamp"}:  # sums: how many rows follows from time and depositor
            continue
        if row.table not in OWN_TABLES:
            seen += [row.table, dict(row.values)]
        if row.table == "custody_row":
            seen += [kept_shares(recording, member, row), kept_proof(recording, member, row)]
    return seen + _log(step, name(member))


def seen_by_requester(member: int, step: Step) -> list[Any]:
    """Return what a member is answered to its own checks."""
    if step.member != member or step.answer is None:
        return []
    return [dict(step.answer), *(_plainly(item)[-2:] for item in step.of("service", CHECKS))]


def seen_at_all(member: int, step: Step) -> list[Any]:
    """Return whatever reached a member that it did not begin itself: messages, rows, lines of its log."""
    own = OWN_TABLES if step.member == member else LATE_TABLES
    rows = [row for row in step.rows[member] if row.table not in own]
    return [*step.exchanges[name(member)], *rows, *_log(step, name(member))]


def _plainly(item: Exchange, *, comparing: bool = False) -> list[Any]:
    answer = item.answer if item.status == 200 else item.response.decode()
    call, length = item.call, len(item.request)
    if comparing and isinstance(call, CheckCall) and call.proof is not None:
        length -= len(encode(call.proof))
        call = replace(call, proof=None)
    if isinstance(call, SignedBatch):  # its bytes hold the time; its length is compared with the request's
        call = [call.signature, decode(DepositBatch, call.batch)]
    return [item.path, item.status, length, call, len(item.response), answer]


def _log(step: Step, party: str) -> list[str]:
    return [re.sub(r"^\[?[0-9-]{10} [0-9:,+ ]+\]?( \[[0-9]+\])?", "", line) for line in step.logs[party]]


def opened(recording: Recording, member: int, item: Exchange) -> list[Any]:
    """Return the bodies of the envelopes in a call that a custodian was sent, and the pseudonyms that it computed."""
    party, call, found = recording.parties[member], item.call, list[Any]()
    if isinstance(call, CheckCall):
        statement = call.signed.statement
        sealed = party.channel(statement.requester).open(CHECK_PURPOSE, statement.check_id, call.envelope)
        body = decode(CheckEnvelope, sealed)
        found.append(body)
        for one, point in zip(body.persons, call.evaluated, strict=True):
            found.append(unblind(Element(point), Element(one.unblinder)))
    if isinstance(call, PrepareCall):
        for deposit in call.deposits:
            sealed = party.channel(call.depositor).open(DEPOSIT_PURPOSE, deposit.deposit_id, deposit.envelope)
            body = decode(DepositEnvelope, _unpad(sealed))
            found += [len(sealed), body, unblind(Element(deposit.evaluated), Element(body.unblinder))]
    return found


def kept_shares(recording: Recording, member: int, row: Row) -> KeptShares:
    """Open a row of custody with the storage key of its custodian."""
    place = sealed_for(b"row", row)
    return decode(KeptShares, recording.vaults[member].open(place, row.values["shares"]))


def kept_proof(recording: Recording, member: int, row: Row) -> RangeProof:
    """Open the range proof that a row was committed with."""
    place = sealed_for(b"proof", row)
    return decode(RangeProof, recording.vaults[member].open(place, row.values["proof"]))


def sealed_for(what: bytes, row: Row) -> bytes:
    facts = Facts(**{name: row.values[name] for name in Facts._fields})
    return _place(what, row.values["depositor"], row.values["id_key"], facts)


# --- comparing what two worlds left --------------------------------------------------------------------------------

TIMES = {
    "issued_at",
    "tick",
    "not_before",
    "made_at",
    "completed_at",
    "next_attempt_at",
    "checked_at",
    "created_at",
    "oldest",
    "seq",
}
"""When something was is no part of a comparison; in what order it was is."""
RANDOM = {"amounts", "proposal"}
SMALL = 8


class Ledger:
    """Names each random value by its first place in a view, so that what is equal to what can be compared, too.

    What the party saw before the view stands for itself. Long values are taken in blocks of 16 bytes.
    """

    def __init__(self, known: set[bytes]) -> None:
        self.known = known
        self.names: dict[bytes, int] = {}

    def name(self, value: bytes) -> Any:  # noqa: ANN401  something to compare
        if len(value) < SMALL:
            return value
        if len(value) > 64:
            return (len(value), tuple(self.name(value[at : at + 16]) for at in range(0, len(value) - 15, 16)))
        return value if value in self.known else (len(value), self.names.setdefault(value, len(self.names)))

    def shape(self, value: Any, field_name: str = "") -> Any:  # noqa: ANN401  any message, row or value
        """Return what two worlds are compared by: structure, lengths, order, equalities, and what is not random."""
        if is_dataclass(value):
            parts = {part.name: getattr(value, part.name) for part in fields(value)}
            return (type(value).__name__, self.shape(parts))
        if isinstance(value, Mapping):
            return [(key, "a time" if key in TIMES else self.shape(item, key)) for key, item in value.items()]
        if isinstance(value, list | tuple):
            return [self.shape(item, field_name) for item in value]
        if field_name in RANDOM:
            value = b"share " + value.to_bytes(8, "big")
        elif field_name == "check_id" and isinstance(value, str):
            value = bytes.fromhex(value)
        return self.name(bytes(value)) if isinstance(value, bytes | memoryview) else value


def view(steps: Sequence[Step], history: Sequence[Step], seen: Any) -> Any:  # noqa: ANN401  a function of a step
    """Return how steps look to a party that saw all of the history before them."""
    before = Ledger(set())
    for step in itertools.takewhile(lambda step: step is not steps[0], history):
        before.shape(seen(step))
    ledger = Ledger(set(before.names))
    return [ledger.shape(seen(step)) for step in steps]
