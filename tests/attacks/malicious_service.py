"""The service in an attacker's hands, for tests: an honest relay with its keys, until it is told what to do instead."""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from insiders import Insider
from live import LiveAlliance
from world import FourCustodians

from protocol import check as steps
from protocol import group, voprf
from protocol.check import Evaluation, Void, accept_request, call_for, conclude, void_outcome
from protocol.comparison import Disagreement
from protocol.deposit import EvaluatedBatch, accept_batch, claimed_proofs, opened_proofs, prepare_call
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.identity import DocumentType, Identity
from protocol.messages import (
    BatchOutcome,
    CheckAnswer,
    CheckCall,
    CheckOutcome,
    CheckRequest,
    Commit,
    CommitCall,
    HolderReceipts,
    KeyConfirmation,
    PrepareAnswer,
    PrepareCall,
    RangeOrder,
    RangeProof,
    SignedBatch,
    SignedRelay,
)
from protocol.party import random_scalar
from protocol.sharing import Chosen
from protocol.stamps import as_of_tick, tick_at
from protocol.voprf import DleqProof
from service.relay import Relay
from transport import internal

AT_LIMIT, ABOVE = "0.00", "0.01"
"""Beside 50 million yuan deposited for a person."""
WITHIN, EXCEEDS = ("within", None), ("exceeds", None)
VOID, REFUSED, TIMEOUT = (("indeterminate", reason) for reason in ("disagreement", "refused", "timeout"))
POINT_OF_ITS_CHOICE = group.multiply_base(group.scalar_from_int(7))
SECONDS = 1.5

Attack = Callable[[CheckRequest], CheckOutcome]
Person = tuple[int, tuple[str, str]]
"""A member that asks, and whom it asks about."""


class BusyError(Exception):
    """A custodian did not answer in time: the machine is busy, and the attack has to be made again."""


class Attacker(Relay):
    """The malicious service. An attack that fails by its own fault is kept, so that no test takes it for a refusal."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401  those of `Relay`
        super().__init__(*arguments)
        self.attack: Attack | None = None
        self.deposit_attack: Callable[[SignedBatch], BatchOutcome] | None = None
        self.relay_attack: Callable[[SignedRelay], KeyConfirmation] | None = None
        self.faults: list[Exception] = []

    def check(self, request: CheckRequest) -> CheckOutcome:
        if self.attack is None:
            return super().check(request)
        try:
            return self.attack(request)
        except BusyError:
            return void_outcome(request.signed.statement.check_id, Void.TIMEOUT)
        except Exception as fault:
            self.faults.append(fault)
            raise

    def deposit(self, signed: SignedBatch) -> BatchOutcome:
        return super().deposit(signed) if self.deposit_attack is None else self.deposit_attack(signed)

    def relay(self, signed: SignedRelay) -> KeyConfirmation:
        return super().relay(signed) if self.relay_attack is None else self.relay_attack(signed)

    def begin(self, request: CheckRequest, *, now: float | None = None) -> "Attempt":
        """Take a check as of a time: the first four of its custodians, the tick that an honest service names."""
        at = time.time() if now is None else now
        evaluation = accept_request(self._service, request, at, secrets.token_bytes)
        slots = [entry.slot for entry in request.signed.statement.envelopes]
        tick = as_of_tick(time.time(), self._service.manifest.terms.tick_seconds)
        return Attempt(self, evaluation, tuple(slots[:4]), tick)

    def take(self, signed: SignedBatch) -> "Batch":
        return Batch(self, accept_batch(self._service, signed, time.time(), secrets.token_bytes))

    def send(self, shard: int, path: str, calls: dict[int, Any], kind: type[Any]) -> dict[int, Any]:
        """Send each slot its message; return each answer, or the refusal."""
        answers = self._custodians.call(shard, path, calls, kind, SECONDS)
        if any(code in ("timeout", "unreachable") for code in codes(answers)):
            raise BusyError
        return answers


@dataclass(frozen=True)
class Attempt:
    """One attempt of a check between the steps of the service."""

    service: Attacker
    evaluation: Evaluation
    chosen: tuple[int, ...]
    tick: int
    number: int = 1

    @property
    def shard(self) -> int:
        return self.evaluation.request.signed.statement.shard

    @property
    def members(self) -> tuple[str, ...]:
        """The committee, by slot."""
        return self.service._service.manifest.committee(self.shard).slots

    @property
    def own(self) -> int:
        """The slot of the requester's group."""
        slots = {entry.slot for entry in self.evaluation.request.signed.statement.envelopes}
        return next(slot for slot in range(len(self.members)) if slot not in slots)

    @property
    def spare(self) -> int:
        """The one custodian that A leaves out."""
        slots = [entry.slot for entry in self.evaluation.request.signed.statement.envelopes]
        return next(slot for slot in slots if slot not in self.chosen)

    def call(self, slot: int) -> CheckCall:
        return call_for(self.evaluation, self.number, self.chosen, self.tick, slot)

    def send(self, calls: dict[int, Any]) -> dict[int, CheckAnswer | ProtocolError]:
        return self.service.send(self.shard, internal.CHECK, calls, CheckAnswer)

    def answers(self) -> dict[int, CheckAnswer | ProtocolError]:
        return self.send({slot: self.call(slot) for slot in self.chosen})

    def outcome(self, answers: dict[int, Any]) -> CheckOutcome:
        """Compare and evaluate as the honest service does."""
        return conclude(self.service._service, self.evaluation, self.number, self.chosen, self.tick, answers)

    def forced(self, answers: dict[int, Any]) -> CheckOutcome:
        """Evaluate whatever there is, without comparing, and return what comes out as the tags."""
        statement, manifest = self.evaluation.request.signed.statement, self.service._service.manifest
        key = answers[self.chosen[0]].committee_key
        header = encode(steps._header(manifest, statement, self.number, self.chosen, self.tick, key))
        four = Chosen(self.chosen, len(self.members))  # type: ignore[arg-type]  four of them
        blind = Blind(four, (0,) * len(statement.lanes), under=header)
        tags = blind.evaluate_regardless({slot: answer.part for slot, answer in answers.items()})
        return self.said(tags=tuple(tags))

    def said(self, *, tags: tuple[bytes, ...], **changes: object) -> CheckOutcome:
        check_id = self.evaluation.request.signed.statement.check_id
        whole = CheckOutcome(check_id=check_id, attempt=self.number, chosen=self.chosen, tags=tags, void=None)
        return replace(whole, **changes)

    def voided(self) -> CheckOutcome:
        return void_outcome(self.evaluation.request.signed.statement.check_id, Void.DISAGREEMENT)


@dataclass(frozen=True)
class Blind(FourCustodians):
    """Evaluates parts under any header and leaves the tags unread: the service cannot read them."""

    under: bytes = b""

    @property
    def header(self) -> bytes:
        return self.under

    def verdict(self, _lane: int, tag: bytes) -> Any:  # noqa: ANN401  bytes where the parent has a verdict
        return tag


NO_PROOF = RangeProof(header_hash=bytes(32), floor=bytes(16), ceiling=bytes(16), alone=bytes(16))


@dataclass
class Batch:
    """A batch of deposits between the steps of the service. It keeps the proofs that it could open, or was told."""

    service: Attacker
    evaluated: EvaluatedBatch
    proofs: list[RangeProof | None] = field(default_factory=list)

    @property
    def shard(self) -> int:
        return self.evaluated.batch.shard

    @property
    def slots(self) -> tuple[int, ...]:
        return self.evaluated.slots

    @property
    def ids(self) -> tuple[bytes, ...]:
        return tuple(item.deposit_id for item in self.evaluated.batch.deposits)

    def order(self, chosen: Iterable[int] | None = None, **changes: Any) -> RangeOrder:  # noqa: ANN401  fields
        """Order a range check, of the first four holders unless others are given."""
        four = tuple(self.slots[:4] if chosen is None else chosen)
        return replace(RangeOrder(nonce=secrets.token_bytes(16), chosen=four, issued_at=int(time.time())), **changes)

    def call(self, slot: int, order: RangeOrder | None = None) -> PrepareCall:
        return prepare_call(self.evaluated, slot, order)

    def prepare(self, slots: Iterable[int] | None = None, order: RangeOrder | None = None) -> dict[int, Any]:
        """Have holders prepare it, four of them with a range check where there are four."""
        asked = tuple(slots or self.slots)
        if order is None and len(asked) >= 4:
            order = self.order(asked[:4])
        return self.send_prepares({slot: self.call(slot, order) for slot in asked}, order)

    def send_prepares(self, calls: dict[int, Any], order: RangeOrder | None = None) -> dict[int, Any]:
        """Send holders a prepare call each, and open what was garbled if it was ordered so."""
        answers = self.service.send(self.shard, internal.PREPARE, calls, PrepareAnswer)
        told = {slot: answer for slot, answer in answers.items() if isinstance(answer, PrepareAnswer)}
        opened = None
        if order is not None:
            with contextlib.suppress(Disagreement):
                opened = opened_proofs(self.service._service.manifest, self.evaluated, order, told)
        found = claimed_proofs(self.service._service.manifest, self.evaluated, told) if opened is None else opened
        if any(proof is not None for proof in found):
            self.proofs = list(found)
        return answers

    def commit(self, tick: int, slots: Iterable[int] | None = None) -> dict[int, Any]:
        call = self.commit_call(tick)
        return self.send_commits(dict.fromkeys(slots or self.slots, call))

    def commit_call(self, *ticks: int) -> CommitCall:
        """Return the call that commits every deposit of the batch, once at each tick."""
        proofs = [proof or NO_PROOF for proof in self.proofs] or [NO_PROOF] * len(self.ids)
        commits = tuple(
            Commit(deposit_id=item, tick=tick, range_proof=proof)
            for tick in ticks
            for item, proof in zip(self.ids, proofs, strict=True)
        )
        return CommitCall(depositor=self.evaluated.batch.depositor, shard=self.shard, commits=commits)

    def send_commits(self, calls: dict[int, Any]) -> dict[int, Any]:
        return self.service.send(self.shard, internal.COMMIT, calls, HolderReceipts)


def codes(answers: dict[int, Any]) -> list[str | None]:
    """Return each custodian's refusal, None where it answered."""
    return [answer.code if isinstance(answer, ProtocolError) else None for answer in answers.values()]


def evaluated_under_another_key(
    blinded: list[bytes], claimed: Element | None = None
) -> tuple[tuple[Element, ...], DleqProof]:
    """Return C and a proof under a key of the attacker's own, claimed to be of the key given or of that one."""
    secret, public = voprf.derive_key_pair(bytes(32), b"another key")
    before = [Element(point) for point in blinded]
    after = [voprf.blind_evaluate(secret, point) for point in before]
    proof = voprf.prove(secret, claimed or public, before, after, random_scalar(secrets.token_bytes))
    return tuple(after), proof


def now_tick() -> int:
    """Return the current tick of a local alliance, of one second."""
    return tick_at(time.time(), 1)


@dataclass
class Scene:
    """A live alliance under a malicious service, and persons that members ask about."""

    alliance: LiveAlliance
    service: Attacker
    bring_the_real_service_back: Callable[[], None]
    people: Iterator[Person] = field(default_factory=lambda: iter(()))

    def verdict(self, person: Person, amount: str, attack: Attack | None = None) -> tuple[str, str | None]:
        """Have a member ask about a person; where a busy machine let it time out, again: that is no verdict."""
        self.service.attack = attack
        try:
            for _ in range(5):
                verdict = self.alliance.verdict(*person, amount)
                if verdict != TIMEOUT:
                    break
        finally:
            self.service.attack = None
        faults = list(self.service.faults)
        self.service.faults.clear()
        assert faults == []
        return verdict

    def attacked(self, *attacks: Attack) -> list[tuple[str, str | None]]:
        """Return what a member is told under each attack about what is above the limit; then, under none, the truth."""
        person = next(self.people)
        told = [self.verdict(person, ABOVE, attack) for attack in attacks]
        assert self.verdict(person, AT_LIMIT) == WITHIN
        assert self.verdict(person, ABOVE) == EXCEEDS
        return told


def insiders_ask(alliance: LiveAlliance, subjects: list[tuple[str, str]]) -> list[tuple[int, tuple[str, str]]]:
    """Return for each person a member that keeps its shard, so that a slot is its own group's."""
    with Insider(alliance, 1) as insider:
        pairs = []
        for place, subject in enumerate(subjects):
            shard = steps.shard_of_person(insider.party, Identity(DocumentType(subject[0]), subject[1]))
            keepers = insider.manifest.committee(shard).slots
            pairs.append((int(keepers[place % len(keepers)][-2:]), subject))
    return pairs
