"""The relay's story: what the lookup service does with a check, a deposit, a committee key (SPEC.md, 5 and 6).

It sees blinded persons and sealed envelopes, and returns tags that it cannot read.
"""

import logging
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Self, TypeVar

from protocol import signing
from protocol.check import Void, accept_request, void_outcome
from protocol.committee import preferred_choice
from protocol.comparison import Disagreement
from protocol.deposit import (
    PUBLIC_REFUSALS,
    REFUSED,
    TOO_FEW,
    UNPROVEN,
    Decision,
    EvaluatedBatch,
    accept_batch,
    batch_outcome,
    claimed_proofs,
    commit_call,
    decide,
    only,
    opened_proofs,
    prepare_call,
)
from protocol.encoding import encode
from protocol.errors import ProtocolError, is_code
from protocol.messages import (
    MAX_ATTEMPTS,
    RECHECK,
    RELAY_PURPOSE,
    BatchOutcome,
    CheckAnswer,
    CheckOutcome,
    CheckRequest,
    DepositOutcome,
    HolderReceipts,
    KeyConfirmation,
    PrepareAnswer,
    RangeOrder,
    RangeProof,
    Relayed,
    SignedBatch,
    SignedRelay,
    require_fresh,
)
from protocol.party import RandomBytes, ServiceParty
from protocol.sharing import CHOSEN
from protocol.stamps import as_of_tick, tick_at
from service.check_attempts import CheckAttempt, Free, may_fly
from service.config import Settings
from service.custodians import Custodians, Trouble
from service.flights import Flights
from service.limits import RateLimit, rate_limits
from transport import internal
from transport.places import FEW_LANES, FOR_BATCHES, FOR_KEYS, Places

M = TypeVar("M")

log = logging.getLogger(__name__)

_OUT = 100.0
"""The score of a custodian that is not asked again in this check."""
_ODD = 1.0
"""The score of one that disagreed: asked again only if there is no other."""
_PATIENCE = 0.15
"""For how long a check waits for others' to be answered: some custodian may be slow that it does not ask."""
NO_ANSWER = {"unreachable", "timeout", "not-ready", "busy", "database-unavailable", "internal-error", "malformed"}
"""What a peer says that is out of order: as good as no answer, and no refusal."""


class Relay:
    """The service at work. Keeps nothing but a short memory of custodians in trouble and of members' rates."""

    def __init__(self, service: ServiceParty, custodians: Custodians, settings: Settings, random: RandomBytes) -> None:
        self._service = service
        self._custodians = custodians
        self._settings = settings
        self._random = random
        self._checks, self._rechecks, self._deposits = rate_limits(service.manifest.terms.alliance, settings)
        self._recheck_places = Places(settings.threads)
        self._batch_places = Places(settings.threads, FOR_BATCHES)
        self._deposit_places = Places(settings.threads, FOR_BATCHES)
        self._key_places = Places(settings.threads, FOR_KEYS)
        self._flights = Flights(settings.flights, custodians.fly, _PATIENCE)

    def under(self, service: ServiceParty) -> Self:
        """Return this relay acting under another manifest, with the same memory, rates, places and flights."""
        if service is self._service:
            return self
        other = copy(self)
        other._service, other._custodians = service, self._custodians.under(service)  # noqa: SLF001  its own
        return other

    # --- a check

    def check(self, request: CheckRequest) -> CheckOutcome:
        """Relay a check: up to three attempts, each with four custodians, within the deadline.

        Rechecks have times, a rate and places of their own, and checks of batches times and places: underwriters who
        wait are served beside them, and where many wait their checks leave together.
        """
        settings, lanes = self._settings, len(request.signed.statement.lanes)
        if request.signed.statement.occasion == RECHECK:
            with self._recheck_places.taken():
                return self._check(request, self._rechecks, settings.recheck_seconds, settings.recheck_attempt_seconds)
        if lanes <= FEW_LANES:
            return self._check(request, self._checks, settings.check_seconds, settings.attempt_seconds)
        more = lanes * settings.lane_seconds
        with self._batch_places.taken():
            most = settings.check_seconds + MAX_ATTEMPTS * more
            return self._check(request, self._checks, most, settings.attempt_seconds + more)

    def _check(self, request: CheckRequest, rate: RateLimit, most: float, most_an_attempt: float) -> CheckOutcome:
        deadline = time.monotonic() + most
        # 2. Authenticate, evaluate the blinded persons, prove it.
        evaluation = accept_request(self._service, request, time.time(), self._random, rate.take)
        statement = request.signed.statement
        slots = [entry.slot for entry in statement.envelopes]
        scores = self._custodians.scores(statement.shard, slots)
        chosen_by = statement.check_id
        void, tried, alone = Void.TOO_FEW_CUSTODIANS, set[tuple[int, ...]](), not may_fly(request)
        tick = as_of_tick(time.time(), self._service.manifest.terms.tick_seconds)  # one for all attempts
        for number in range(1, MAX_ATTEMPTS + 1):
            chosen = preferred_choice(chosen_by, scores, refused=_OUT)
            if chosen is None or chosen in tried or time.monotonic() >= deadline:  # another attempt takes another A
                break
            # Another attempt is to take another A, so only the first one's may be chosen anew.
            free = Free(dict(scores), self._random(16)) if number == 1 and not alone else None
            attempt = CheckAttempt(
                self._service, evaluation, (number, chosen, tick), deadline, most_an_attempt, free=free
            )
            outcome = self._attempt(attempt, scores, alone=alone)
            tried.add(attempt.chosen)
            if free is not None:  # those after it go by what the first went by
                chosen_by = attempt.chosen_by
            if isinstance(outcome, CheckOutcome):
                return outcome
            if outcome is None:
                alone, void = True, Void.TIMEOUT
                tried.discard(attempt.chosen)
            else:
                void = outcome
        return void_outcome(statement.check_id, void)

    def _attempt(self, attempt: CheckAttempt, scores: dict[int, float], *, alone: bool) -> CheckOutcome | Void | None:
        """Ask four custodians; return the outcome, or why there is none, with `scores` raised for the next attempt.

        None if custodians would have it come alone, be it to the same four.
        """
        if alone:
            for _ in self._custodians.fly([attempt]):
                pass
        else:
            self._flights.make(attempt)
        return None if attempt.is_to_come_alone else self._came(attempt, scores)

    def _came(self, attempt: CheckAttempt, scores: dict[int, float]) -> CheckOutcome | Void:
        """4. Return the tags, that only the requester can read, or why there are none, as `_attempt`."""
        if not attempt.seconds:  # it waited for others all its time: no custodian is to blame
            return Void.TIMEOUT
        came, refusals = attempt.came, self._refusals_of(attempt)
        for slot, code in refusals.items():
            scores[slot] = _OUT
            self._note(attempt.shard, slot, f"did not answer a check: {code}")
        if refusals:
            return _void_of(set(refusals.values()), remaining=sum(score < _OUT for score in scores.values()))
        if isinstance(came, Disagreement):
            self._note_disagreement(attempt.shard, came, scores)
            return Void.DISAGREEMENT
        if came is None:  # the deadline came after the last answer, and before it was compared
            return Void.TIMEOUT
        if isinstance(came, Exception):
            raise came
        if any(tag is not None for tag in came.tags):
            return came
        spent = [slot for slot, said in attempt.answers.items() if isinstance(said, CheckAnswer) and said.spent]
        for slot in spent:  # others may have answers left
            scores[slot] = _OUT
            self._note(attempt.shard, slot, "did not answer a check: budget-exhausted")
        return Void.BUDGET_EXHAUSTED

    def _refusals_of(self, attempt: CheckAttempt) -> dict[int, str]:
        """Return by slot why there is no answer; one that gave none in its time is asked last for a while."""
        refusals = {}
        for slot in attempt.chosen:
            said = attempt.answers.get(slot)
            if not isinstance(said, CheckAnswer):
                refusals[slot] = code = "timeout" if said is None else said.code
                if code == "unreachable" or (code == "timeout" and attempt.had_time):
                    self._custodians.remember(attempt.member(slot), attempt.shard, Trouble.NO_ANSWER)
        return refusals

    # --- a deposit

    def deposit(self, signed: SignedBatch) -> BatchOutcome:
        """Relay a batch of deposits: prepare with a range check, compare, commit; up to three times for what has found
        no four holders that agree, each time with another four. One that finds no place is refused and comes again.
        """
        with self._deposit_places.taken():
            return self._deposit(signed)

    def _deposit(self, signed: SignedBatch) -> BatchOutcome:
        deadline = time.monotonic() + self._settings.deposit_seconds
        # 2. Authenticate, evaluate the blinded persons, prove it.
        evaluated = accept_batch(self._service, signed, time.time(), self._random, self._deposits.take)
        whole, scores = evaluated.batch, self._custodians.scores(evaluated.batch.shard, list(evaluated.slots))
        outcomes: dict[bytes, DepositOutcome] = {}
        tried = set[tuple[int, ...]]()
        for _ in range(MAX_ATTEMPTS):
            order = None if evaluated.batch.made else self._order(scores)
            left = deadline - time.monotonic()
            if left <= 0 or (order is not None and order.chosen in tried):
                break
            if order is not None:
                tried.add(order.chosen)
            decisions, found = self._round(evaluated, order, left, scores)
            ids = [deposit.deposit_id for deposit in evaluated.batch.deposits]
            outcomes |= zip(ids, found.outcomes, strict=True)
            refused = any(decision.reason not in (None, TOO_FEW) for decision in decisions)
            again = [place for place, decision in enumerate(decisions) if decision is UNPROVEN]
            if not again or order is None:
                break
            if refused:  # nothing was garbled for what was refused beside them: the same four may well agree
                tried.discard(order.chosen)
            evaluated = only(self._service, evaluated, again, self._random)
        return BatchOutcome(
            outcomes=tuple(
                outcomes.get(deposit.deposit_id, DepositOutcome(receipts=(), reason=TOO_FEW))
                for deposit in whole.deposits
            )
        )

    def _order(self, scores: dict[int, float]) -> RangeOrder | None:
        """Name four holders for a range check; None where there are no four."""
        nonce = self._random(16)
        chosen = preferred_choice(nonce, scores, refused=_OUT)
        return None if chosen is None else RangeOrder(nonce=nonce, chosen=chosen, issued_at=int(time.time()))

    def _round(
        self, evaluated: EvaluatedBatch, order: RangeOrder | None, seconds: float, scores: dict[int, float]
    ) -> tuple[list[Decision], BatchOutcome]:
        """Prepare a batch and commit what may stand; `scores` are raised for the next attempt."""
        batch = evaluated.batch
        # 3. Every holder verifies and keeps, unseen; A garbles.
        calls = {slot: prepare_call(evaluated, slot, order) for slot in evaluated.slots}
        answered = self._custodians.call(batch.shard, internal.PREPARE, calls, PrepareAnswer, seconds / 2)
        answers = {slot: answer for slot, answer in answered.items() if isinstance(answer, PrepareAnswer)}
        for slot in evaluated.slots:
            if slot not in answers:
                scores[slot] = _OUT
        refusals = self._refusals(batch.shard, answered)
        if refusals and not answers:
            outcome = _refused(evaluated, refusals)
            return [Decision(None, (), REFUSED) for _ in batch.deposits], outcome
        # 4. Evaluate, compare, name the tick.
        tick = tick_at(time.time(), self._service.manifest.terms.tick_seconds)
        self._note_dissent(batch.shard, answers)
        proofs = self._proofs(evaluated, order, answers, scores)
        decisions = decide(self._service.manifest, evaluated, answers, proofs, tick)
        # 5. Commit; 6. gather the receipts.
        return decisions, self._commit(evaluated, decisions, seconds / 2)

    def _proofs(
        self,
        evaluated: EvaluatedBatch,
        order: RangeOrder | None,
        answers: dict[int, PrepareAnswer],
        scores: dict[int, float],
    ) -> Sequence[RangeProof | None]:
        """Return what the range check opened, or else the proofs that holders kept of what they committed before."""
        opened = None
        if order is not None:
            try:
                opened = opened_proofs(self._service.manifest, evaluated, order, answers)
            except Disagreement as disagreement:
                self._note_disagreement(evaluated.batch.shard, disagreement, scores)
        return claimed_proofs(self._service.manifest, evaluated, answers) if opened is None else opened

    def _note_disagreement(self, shard: int, disagreement: Disagreement, scores: dict[int, float]) -> None:
        """Name the custodians of an alarm, and ask them last from now on."""
        for slot in disagreement.slots:
            scores[slot] += _ODD
            if len(disagreement.slots) < CHOSEN:
                member = self._service.manifest.committee(shard).slots[slot]
                self._custodians.remember(member, shard, Trouble.LAGS)
            self._note(shard, slot, f"disagrees about: {disagreement.what}")

    def _commit(self, evaluated: EvaluatedBatch, decisions: list[Decision], seconds: float) -> BatchOutcome:
        shard = evaluated.batch.shard
        built = {slot: commit_call(evaluated, decisions, slot) for slot in evaluated.slots}
        commits = {slot: call for slot, call in built.items() if call is not None}
        answered = self._custodians.call(shard, internal.COMMIT, commits, HolderReceipts, seconds)
        receipts = {slot: answer for slot, answer in answered.items() if isinstance(answer, HolderReceipts)}
        for slot, answer in answered.items():
            if isinstance(answer, ProtocolError):
                self._note(shard, slot, f"did not commit deposits: {answer.code}")
        for slot in evaluated.slots:
            if commits and slot not in receipts:
                # It lacks what the others now show: left out of A, from here on by the depositors' reports, until it
                # has caught up. A later commit that it takes does not show that.
                self._custodians.remember(self._service.manifest.committee(shard).slots[slot], shard, Trouble.LAGS)
        if not receipts:
            decisions = [replace(decision, reason=decision.reason or TOO_FEW) for decision in decisions]
        return batch_outcome(decisions, receipts)

    def _note_dissent(self, shard: int, answers: dict[int, PrepareAnswer]) -> None:
        """Name holders that refuse deposits of a batch: one alone can hold up all of a shard."""
        for slot, answer in answers.items():
            refusals = {item.refusal for item in answer.answers if item.refusal is not None}
            codes = sorted(code if is_code(code) else "no code" for code in refusals)
            if codes:
                self._note(shard, slot, f"refuses deposits: {', '.join(codes)}")

    def _refusals(self, shard: int, answers: dict[int, M | ProtocolError]) -> set[str]:
        """Return the codes with which holders refused a whole call; having had no answer is no refusal.

        One that refuses the whole, as with a clock or a manifest of its own, counts as one that is down.
        """
        codes = set()
        for slot, answer in answers.items():
            if isinstance(answer, ProtocolError):
                self._note(shard, slot, f"did not take a deposit: {answer.code}")
                if answer.code not in NO_ANSWER:
                    codes.add(answer.code)
        return codes

    # --- a committee key

    def relay(self, signed: SignedRelay) -> KeyConfirmation:
        """Pass a sealed committee key from its maker to a holder, who is another, and the check value back."""
        relay = signed.relay
        sender = self._service.manifest.member(relay.sender)
        signing.verify(sender.signing_key, signed.signature, RELAY_PURPOSE, encode(relay))
        require_fresh(relay.issued_at, time.time())
        if relay.sender == relay.recipient:
            raise ProtocolError("bad-relay", "a committee key goes to another member than its maker")
        message = Relayed(sender=relay.sender, envelope=relay.envelope)
        with self._key_places.taken():
            return self._custodians.call_member(
                relay.recipient, internal.COMMITTEE_KEY, message, KeyConfirmation, self._settings.attempt_seconds
            )

    def _note(self, shard: int, slot: int, what: str) -> None:
        log.warning("shard %d: %s %s", shard, self._service.manifest.committee(shard).slots[slot], what)


def _void_of(codes: set[str], remaining: int) -> Void:
    """Return the public reason of an attempt in which custodians refused or did not answer."""
    if codes <= NO_ANSWER:
        return Void.TOO_FEW_CUSTODIANS if remaining < CHOSEN else Void.TIMEOUT
    return Void.DISAGREEMENT


def _refused(evaluated: EvaluatedBatch, codes: set[str]) -> BatchOutcome:
    (code,) = codes if len(codes) == 1 else (REFUSED,)
    reason = code if code in PUBLIC_REFUSALS else REFUSED
    return BatchOutcome(outcomes=tuple(DepositOutcome(receipts=(), reason=reason) for _ in evaluated.batch.deposits))
