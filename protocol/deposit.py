"""A deposit, told once: an insurer shares a policy among custodians that agree on it before it counts.

Read `run_deposit` at the end first: it is the whole deposit in memory. Step numbers are those of SPEC.md, section 5.
Deposits travel in batches of one shard and one excluded slot, so that the same n-1 custodians hold all of a batch
and one proof of the service covers it.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from protocol import kdf, signing, voprf
from protocol.check import Admit, MemberInMemory, admit_all, shard_of_person
from protocol.committee import excluded_slot, preferred_choice
from protocol.committee_keys import CommitteeKey, require_key
from protocol.comparison import Disagreement
from protocol.custody import (
    AHEAD_DAYS,
    DEPOSIT_DAYS,
    SUMMED_DAYS,
    CustodyRow,
    Kept,
    Preparation,
    Proposed,
    RangeAttempt,
    Refusable,
)
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.identity import Identity
from protocol.manifest import Manifest, china_day
from protocol.messages import (
    COMMITTED,
    COUNT_OF_KIND,
    ISSUE,
    NEVER,
    Abandon,
    BatchOutcome,
    Commit,
    CommitCall,
    Deposit,
    DepositBatch,
    DepositEnvelope,
    DepositFacts,
    DepositOutcome,
    EvaluatedDeposit,
    HolderReceipts,
    NeverCall,
    PrepareAnswer,
    PrepareCall,
    Prepared,
    RangeHeader,
    RangeOrder,
    RangeProof,
    Receipt,
    ReceiptStatement,
    SignedAbandon,
    SignedBatch,
    envelope_hash,
    require_fresh,
)
from protocol.party import Party, RandomBytes, ServiceParty, random_scalar
from protocol.range_check import Lanes, answer_range, header_hash, open_range, range_header, range_key
from protocol.sharing import CHOSEN, SHARE_BYTES, Label, held_labels, labels_of_sharing, plain_share, share
from protocol.stamps import tick_at
from protocol.token import Pseudonym, Token, blind, index_key, unblind, verify_unblinder

PURPOSE = "deposit"
ABANDON = "abandon"
REFUSED = "refused"
TOO_FEW = "too-few-custodians"
PUBLIC_REFUSALS = frozenset({"other-manifest", "manifest-expired", "deposit-abandoned", "deposit-reused"})
"""Refusals that depend on nothing but the depositor's own bytes; all others reach it as `refused`."""


@dataclass(frozen=True)
class Entry:
    """What a depositor shares: a policy's issue, or a correction of one by its difference.

    `kind` is ISSUE, CANCELLATION or AMENDMENT; `amount` in fen may be negative; `day` is the original day of issue, an
    ordinal; `earlier` the deposit id of the issue that is corrected.
    """

    identity: Identity
    kind: int
    product: str
    day: int
    amount: int = field(repr=False)
    earlier: bytes | None = None


@dataclass(frozen=True)
class MadeDeposit:
    """A deposit ready to be sent, and sent again unchanged, with where it goes and the manifest it was made under."""

    shard: int
    excluded: int
    deposit: Deposit
    manifest_hash: bytes


# --- step 1: the depositor -----------------------------------------------------------------------------------------


def deposit_context(depositor: str, deposit_id: bytes) -> bytes:
    """Return what the Schnorr proof of a deposit is bound to, besides B."""
    return kdf.join(b"deposit", depositor.encode(), deposit_id)


def draw_deposit_id(party: Party, identity: Identity, earlier: bytes | None, random: RandomBytes) -> bytes:
    """Return a fresh deposit id; for a correction, one that excludes the slot that its issue excludes.

    Otherwise the slot that the issue excluded would hold the correction without the issue. Takes about n draws.
    """
    if earlier is None:
        return random(16)
    shard = shard_of_person(party, identity)
    own, size = party.manifest.slot_of_group(shard, party.id), len(party.manifest.committee(shard).slots)
    wanted = excluded_slot(shard, own, size, earlier)
    while excluded_slot(shard, own, size, deposit_id := random(16)) != wanted:
        pass
    return deposit_id


def make_deposit(
    party: Party, entry: Entry, deposit_id: bytes, random: RandomBytes, *, not_before: int = 0
) -> MadeDeposit:
    """Step 1: blind the person, share amount and count, salt a digest per label, seal one envelope per holder.

    `not_before` is the highest tick of all receipts that the depositor has had, whomever they were for: a tick of
    this person's earlier deposits alone would tell the holders of this one of those that exclude them.
    """
    manifest, shard = party.manifest, shard_of_person(party, entry.identity)
    if abs(entry.amount) > manifest.terms.deposit_cap:
        raise ProtocolError("bad-amount", "the amount of a deposit is above the manifest's cap")
    slots = manifest.committee(shard).slots
    excluded = excluded_slot(shard, manifest.slot_of_group(shard, party.id), len(slots), deposit_id)
    scalars = (random_scalar(random), random_scalar(random))
    token = blind(
        party.keys.salt, entry.identity, manifest.blinding_key, deposit_context(party.id, deposit_id), scalars
    )
    amounts = share(entry.amount, len(slots), excluded, random((len(slots) - 2) * SHARE_BYTES))
    counts = plain_share(COUNT_OF_KIND[entry.kind], len(slots), excluded)
    salts = {name: random(32) for name in labels_of_sharing(len(slots), excluded)}
    facts = DepositFacts(
        kind=entry.kind,
        depositor=party.id,
        deposit_id=deposit_id,
        earlier=entry.earlier,
        shard=shard,
        manifest_hash=manifest.hash,
        epoch=manifest.terms.epoch,
        product=entry.product,
        day=entry.day,
        excluded=excluded,
        not_before=not_before,
    )
    envelopes = []
    for slot, custodian in enumerate(slots):
        if slot == excluded:
            continue
        held = held_labels(len(slots), excluded, slot)
        body = DepositEnvelope(
            facts=facts,
            blinded=token.blinded,
            unblinder=token.unblinder,
            proof=token.proof,
            amounts=tuple(amounts[name] for name in held),
            counts=tuple(counts[name] for name in held),
            salts=tuple(salts[name] for name in held),
        )
        padded = _pad(encode(body), len(slots))
        envelopes.append(party.channel(custodian).seal(PURPOSE, deposit_id, padded, random(32)))
    deposit = Deposit(deposit_id=deposit_id, blinded=token.blinded, envelopes=tuple(envelopes))
    return MadeDeposit(shard, excluded, deposit, manifest.hash)


def _pad(body: bytes, slots: int) -> bytes:
    """Pad a body to a length that depends on the committee's size alone: else it would tell kind and product."""
    return (body + b"\x80").ljust(512 + 128 * slots, b"\x00")


def _unpad(padded: bytes) -> bytes:
    body, mark, rest = padded.rpartition(b"\x80")
    if not mark or any(rest):
        raise ProtocolError("malformed", "the padding of an envelope is not well formed")
    return body


def sign_batch(party: Party, made: Sequence[MadeDeposit], now: float, *, repeat: bool = False) -> SignedBatch:
    """Return the request for deposits of one shard, excluded slot and manifest, signed at `now`.

    `repeat`: all of them count already and some holder lacks them.
    """
    places = {(item.shard, item.excluded, item.manifest_hash) for item in made}
    if len(places) != 1:
        raise ProtocolError("mixed-batch", "a batch has one shard, one excluded slot and one manifest")
    ((shard, excluded, manifest_hash),) = places
    batch = encode(
        DepositBatch(
            depositor=party.id,
            shard=shard,
            excluded=excluded,
            manifest_hash=manifest_hash,
            issued_at=int(now),
            made=int(repeat),
            deposits=tuple(item.deposit for item in made),
        )
    )
    return SignedBatch(batch=batch, signature=signing.sign(party.keys.signing, PURPOSE, batch))


def sign_abandon(party: Party, shard: int, excluded: int, deposit_ids: Sequence[bytes], now: float) -> SignedAbandon:
    """Return the request that every holder give these ids up for good."""
    abandon = Abandon(
        depositor=party.id, shard=shard, excluded=excluded, issued_at=int(now), deposit_ids=tuple(deposit_ids)
    )
    return SignedAbandon(abandon=abandon, signature=signing.sign(party.keys.signing, ABANDON, encode(abandon)))


# --- step 2: the service evaluates and passes on -------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluatedBatch:
    """A batch that the service accepted, with C and the proof over it."""

    batch: DepositBatch
    slots: tuple[int, ...]
    evaluated: tuple[Element, ...]
    proof: voprf.DleqProof


def accept_batch(
    service: ServiceParty, signed: SignedBatch, now: float, random: RandomBytes, admit: Admit = admit_all
) -> EvaluatedBatch:
    """Step 2: authenticate the depositor, check the shape, evaluate the blinded persons.

    `admit` is told depositor and number of deposits before any is evaluated, and may refuse.
    """
    batch, manifest = decode(DepositBatch, signed.batch), service.manifest
    _authenticate(manifest, batch.depositor, batch.issued_at, now, signed.signature, PURPOSE, signed.batch)
    manifest.require_current(batch.manifest_hash, now)
    slots = holder_slots(manifest, batch.shard, batch.excluded)
    ids = {deposit.deposit_id for deposit in batch.deposits}
    if len(ids) != len(batch.deposits) or any(len(item.envelopes) != len(slots) for item in batch.deposits):
        raise ProtocolError("bad-batch", "a batch has distinct ids and one envelope per holder")
    for deposit in batch.deposits:
        _require_excluded(manifest, batch.depositor, batch.shard, batch.excluded, deposit.deposit_id)
    admit(batch.depositor, len(batch.deposits))
    blinded = [Element(deposit.blinded) for deposit in batch.deposits]
    evaluated = [voprf.blind_evaluate(service.keys.blinding, point) for point in blinded]
    return EvaluatedBatch(batch, slots, tuple(evaluated), _prove(service, blinded, evaluated, random))


def only(service: ServiceParty, whole: EvaluatedBatch, places: Sequence[int], random: RandomBytes) -> EvaluatedBatch:
    """Return those deposits of a batch, with a proof over them alone: what is asked again without what was settled."""
    deposits = tuple(whole.batch.deposits[place] for place in places)
    evaluated = tuple(whole.evaluated[place] for place in places)
    blinded = [Element(deposit.blinded) for deposit in deposits]
    proof = _prove(service, blinded, evaluated, random)
    return EvaluatedBatch(replace(whole.batch, deposits=deposits), whole.slots, evaluated, proof)


def _prove(
    service: ServiceParty, blinded: Sequence[Element], evaluated: Sequence[Element], random: RandomBytes
) -> voprf.DleqProof:
    key = service.manifest.blinding_key
    return voprf.prove(service.keys.blinding, key, list(blinded), list(evaluated), random_scalar(random))


def holder_slots(manifest: Manifest, shard: int, excluded: int) -> tuple[int, ...]:
    """Return the slots that hold a deposit: all but the excluded one."""
    return tuple(slot for slot in range(len(manifest.committee(shard).slots)) if slot != excluded)


def prepare_call(evaluated: EvaluatedBatch, slot: int, order: RangeOrder | None) -> PrepareCall:
    """Return what one holder is sent in the first round; `order` names who garbles the range check."""
    batch, place = evaluated.batch, evaluated.slots.index(slot)
    return PrepareCall(
        depositor=batch.depositor,
        shard=batch.shard,
        excluded=batch.excluded,
        manifest_hash=batch.manifest_hash,
        deposits=tuple(
            EvaluatedDeposit(
                deposit_id=deposit.deposit_id,
                blinded=deposit.blinded,
                evaluated=point,
                envelope=deposit.envelopes[place],
            )
            for deposit, point in zip(batch.deposits, evaluated.evaluated, strict=True)
        ),
        proof=evaluated.proof,
        order=order,
    )


# --- step 3: a holder verifies and confirms ------------------------------------------------------------------------


@dataclass(frozen=True)
class AcceptedDeposit:
    """A deposit that a holder verified, with what it must keep and what it confirms to the service."""

    proposed: Proposed
    pseudonym: Pseudonym = field(repr=False)
    facts: DepositFacts
    digests: tuple[bytes, ...]


@dataclass(frozen=True)
class AcceptedCall:
    """A prepare call that a holder verified: a result for each deposit, and what it garbles, if it is of A and nothing
    was refused.
    """

    slot: int
    key: CommitteeKey
    deposits: tuple[AcceptedDeposit | ProtocolError, ...]
    header: RangeHeader | None
    today: int

    @property
    def good(self) -> list[AcceptedDeposit]:
        """The deposits that were not refused."""
        return [item for item in self.deposits if isinstance(item, AcceptedDeposit)]

    @property
    def proposed(self) -> list[Proposed]:
        """What the store is asked to keep."""
        return [item.proposed for item in self.good]

    def attempt(self) -> RangeAttempt | None:
        """Return what the store must record, durably, before a garbling leaves."""
        if self.header is None:
            return None
        first_day = china_day(self.header.issued_at) - SUMMED_DAYS
        return RangeAttempt(header_hash(self.header), self.today, first_day)


def holder_place(party: Party, call: PrepareCall, now: float) -> tuple[int, int | None]:
    """Return a holder's own slot and that of the depositor's group, which names the committee key of the call; refuses
    a call under another manifest and one that is none of this member's business.
    """
    manifest = party.manifest
    manifest.require_current(call.manifest_hash, now)
    slot, omitted = manifest.own_slot(call.shard, party.id), manifest.slot_of_group(call.shard, call.depositor)
    if slot in (call.excluded, omitted):
        raise ProtocolError("bad-excluded", "the excluded slot, and the depositor's group, get nothing of a deposit")
    return slot, omitted


def accept_prepare(party: Party, call: PrepareCall, key: CommitteeKey, now: float) -> AcceptedCall:
    """Step 3, first half: verify both proofs of every deposit, open its envelope, compare every field.

    `key` is the committee key without the depositor's group. Refuses the whole call where the service's proof fails or
    its A cannot be; else each deposit has a result of its own.
    """
    manifest = party.manifest
    slot, omitted = holder_place(party, call, now)
    require_key(manifest, key, call.shard, omitted)
    header = range_header(manifest, call, key.name)
    if header is not None:
        require_fresh(header.issued_at, now)
    blinded = [Element(item.blinded) for item in call.deposits]
    evaluated = [Element(item.evaluated) for item in call.deposits]
    if not voprf.verify(manifest.blinding_key, blinded, evaluated, call.proof):
        raise ProtocolError("bad-evaluation", "the service's proof of its evaluation does not hold")
    today = china_day(now)
    results: list[AcceptedDeposit | ProtocolError] = []
    for item in call.deposits:
        try:
            results.append(_accept_deposit(party, call, slot, item, key, today))
        except ProtocolError as refusal:
            results.append(refusal)
    judged = header is not None and slot in header.chosen and not any(isinstance(one, ProtocolError) for one in results)
    return AcceptedCall(slot, key, tuple(results), header if judged else None, today)


def _accept_deposit(
    party: Party, call: PrepareCall, slot: int, item: EvaluatedDeposit, key: CommitteeKey, today: int
) -> AcceptedDeposit:
    manifest = party.manifest
    opened = party.channel(call.depositor).open(PURPOSE, item.deposit_id, item.envelope)
    body = decode(DepositEnvelope, _unpad(opened))
    facts = body.facts
    same = (
        (facts.depositor, facts.deposit_id, facts.shard) == (call.depositor, item.deposit_id, call.shard)
        and (facts.excluded, facts.manifest_hash) == (call.excluded, call.manifest_hash)
        and facts.epoch == manifest.terms.epoch
        and body.blinded == item.blinded
    )
    if not same:
        raise ProtocolError("unequal-fields", "the envelope and the call say different things")
    _require_excluded(manifest, facts.depositor, facts.shard, facts.excluded, facts.deposit_id)
    if (facts.kind == ISSUE) != (facts.earlier is None):
        raise ProtocolError("bad-kind", "a correction names its issue, an issue names none")
    if facts.kind == ISSUE and facts.product not in manifest.terms.products:  # one retired since is still corrected
        raise ProtocolError("unknown-product", "the product is not in the manifest")
    if not today - DEPOSIT_DAYS <= facts.day <= today + AHEAD_DAYS:
        raise ProtocolError("bad-day", "the day of a deposit is too long ago to count, or too far ahead")
    size = len(manifest.committee(facts.shard).slots)
    held = held_labels(size, facts.excluded, slot)
    counts = plain_share(COUNT_OF_KIND[facts.kind], size, facts.excluded)
    if not len(held) == len(body.amounts) == len(body.salts) or body.counts != tuple(counts[name] for name in held):
        raise ProtocolError("bad-sharing", "the deposit is not shared as this committee shares")
    token = Token(Element(body.blinded), Element(body.unblinder), body.proof)
    if not verify_unblinder(token, manifest.blinding_key, deposit_context(facts.depositor, facts.deposit_id)):
        raise ProtocolError("bad-unblinder", "the depositor's proof of its unblinding element does not hold")
    pseudonym = unblind(Element(item.evaluated), token.unblinder)
    digests = tuple(
        _share_digest(facts.deposit_id, name, amount, count, salt)
        for name, amount, count, salt in zip(held, body.amounts, body.counts, body.salts, strict=True)
    )
    proposed = Proposed(
        depositor=facts.depositor,
        deposit_id=facts.deposit_id,
        kind=facts.kind,
        earlier=facts.earlier,
        shard=facts.shard,
        epoch=facts.epoch,
        index=index_key(party.keys.index, pseudonym),
        row=CustodyRow(facts.product, facts.day, facts.excluded, body.amounts, body.counts),
        envelope_hash=envelope_hash(item.envelope),
        not_before=facts.not_before,
        range_key=range_key(key, facts, pseudonym),
    )
    return AcceptedDeposit(proposed, pseudonym, facts, digests)


def confirm(party: Party, accepted: AcceptedCall, prepared: Preparation) -> PrepareAnswer:
    """Step 3, second half: confirm what was kept, and garble if of A, to the service alone."""
    confirmation_key = kdf.derive(accepted.key.secret.reveal(), "deposit confirmation")
    results, answers = iter(prepared.kept), []
    for item in accepted.deposits:
        outcome = item if isinstance(item, ProtocolError) else next(results)
        if isinstance(item, ProtocolError) or isinstance(outcome, ProtocolError):
            assert isinstance(outcome, ProtocolError)
            answers.append(Prepared(bytes(32), digests=(), tick=None, range_proof=None, refusal=outcome.code))
            continue
        statement = kdf.join(item.pseudonym, encode(item.facts), encode(accepted.key.name))
        answers.append(
            Prepared(
                confirmation=hmac.digest(confirmation_key, statement, "sha256"),
                digests=item.digests,
                tick=outcome.tick,
                range_proof=outcome.proof,
                refusal=None,
            )
        )
    garbled = None
    if accepted.header is not None and prepared.base is not None:
        pseudonyms = tuple(item.pseudonym for item in accepted.good)
        lanes = Lanes(accepted.header, pseudonyms, tuple(item.range_key for item in accepted.proposed), prepared.base)
        garbled = answer_range(party.manifest, lanes, accepted.key, accepted.slot)
    return PrepareAnswer(answers=tuple(answers), garbled=garbled)


def _share_digest(deposit_id: bytes, name: Label, amount: int, count: int, salt: bytes) -> bytes:
    shares = amount.to_bytes(SHARE_BYTES, "big") + count.to_bytes(SHARE_BYTES, "big")
    return hashlib.sha256(kdf.join(b"cover-lookup/v1 share digest", salt, deposit_id, bytes(name), shares)).digest()


# --- step 4: the service compares and commits ----------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What the service does with one deposit: commit at `tick` to `slots` with `proof`, or nothing, for `reason`."""

    tick: int | None
    slots: tuple[int, ...]
    reason: str | None
    proof: RangeProof | None = field(default=None, repr=False)


UNPROVEN = Decision(None, (), TOO_FEW)
"""Holders agree, but no four of them have shown that it may stand."""


def opened_proofs(
    manifest: Manifest, evaluated: EvaluatedBatch, order: RangeOrder, answers: Mapping[int, PrepareAnswer]
) -> list[RangeProof] | None:
    """Step 4: evaluate what A garbled; None where one of A did not answer, or refuses a deposit of the call.

    Raises `Disagreement`, too where one of A refuses nothing and has garbled nothing.
    """
    garbled = {slot: answers[slot].garbled for slot in order.chosen if slot in answers}
    owing = (slot for slot, part in garbled.items() if part is None)
    silent = tuple(slot for slot in owing if all(item.refusal is None for item in answers[slot].answers))
    if silent:
        raise Disagreement(silent, "no garbling")
    parts = {slot: part for slot, part in garbled.items() if part is not None}
    if len(parts) < len(order.chosen):
        return None
    return open_range(manifest, prepare_call(evaluated, order.chosen[0], order), parts)


def claimed_proofs(
    manifest: Manifest, evaluated: EvaluatedBatch, answers: Mapping[int, PrepareAnswer]
) -> list[RangeProof | None]:
    """Step 4: return the proofs that holders have kept of what they committed before, where n-4 of them have: the one
    that most of them have, as two rounds may each have come to some holders.

    Any four of the deposit's holders have one of these among them. If fewer have committed it, four others are left to
    judge it anew.
    """
    enough = len(manifest.committee(evaluated.batch.shard).slots) - CHOSEN
    found: list[RangeProof | None] = []
    for place in range(len(evaluated.batch.deposits)):
        claims = [answer.answers[place].range_proof for answer in _whole(evaluated, answers).values()]
        proofs = [claim for claim in claims if claim is not None]
        found.append(max(proofs, key=proofs.count) if len(proofs) >= enough else None)
    return found


def _whole(evaluated: EvaluatedBatch, answers: Mapping[int, PrepareAnswer]) -> dict[int, PrepareAnswer]:
    count = len(evaluated.batch.deposits)
    return {slot: answer for slot, answer in answers.items() if len(answer.answers) == count}


def decide(
    manifest: Manifest,
    evaluated: EvaluatedBatch,
    answers: Mapping[int, PrepareAnswer],
    proofs: Sequence[RangeProof | None],
    tick: int,
) -> list[Decision]:
    """Step 4: per deposit, commit when all holders that answered agree, at most one holder did not answer, and there is
    a proof that it may stand.

    A deposit that some holder committed before keeps that tick.
    """
    size = len(manifest.committee(evaluated.batch.shard).slots)
    answers = _whole(evaluated, answers)
    return [
        _decide(
            size,
            evaluated.batch.excluded,
            {slot: answer.answers[place] for slot, answer in answers.items()},
            proof,
            tick,
        )
        for place, proof in enumerate(proofs)
    ]


def _decide(size: int, excluded: int, answers: Mapping[int, Prepared], proof: RangeProof | None, tick: int) -> Decision:
    refusals = sorted({answer.refusal for answer in answers.values() if answer.refusal is not None})
    if refusals:
        public = refusals[0] if len(refusals) == 1 and refusals[0] in PUBLIC_REFUSALS else REFUSED
        return Decision(None, (), public)
    if len(answers) < size - 2:
        return Decision(None, (), TOO_FEW)
    digests: dict[Label, set[bytes]] = {}
    for slot, answer in answers.items():
        held = held_labels(size, excluded, slot)
        if len(answer.digests) != len(held):
            return Decision(None, (), REFUSED)
        for name, digest in zip(held, answer.digests, strict=True):
            digests.setdefault(name, set()).add(digest)
    agreed = len({answer.confirmation for answer in answers.values()}) == 1
    if not agreed or any(len(values) > 1 for values in digests.values()):
        return Decision(None, (), REFUSED)
    if proof is None:
        return UNPROVEN
    earlier = [answer.tick for answer in answers.values() if answer.tick is not None]
    return Decision(min(tick, *earlier) if earlier else tick, tuple(sorted(answers)), None, proof)


def commit_call(evaluated: EvaluatedBatch, decisions: Sequence[Decision], slot: int) -> CommitCall | None:
    """Return what one holder is told to commit; None if nothing."""
    commits = tuple(
        Commit(deposit_id=deposit.deposit_id, tick=decision.tick, range_proof=decision.proof)
        for deposit, decision in zip(evaluated.batch.deposits, decisions, strict=True)
        if decision.tick is not None and decision.proof is not None and slot in decision.slots
    )
    batch = evaluated.batch
    return CommitCall(depositor=batch.depositor, shard=batch.shard, commits=commits) if commits else None


def batch_outcome(decisions: Sequence[Decision], receipts: Mapping[int, HolderReceipts]) -> BatchOutcome:
    """Step 6: gather what the depositor is told. `receipts` has the holders that answered their commit call.

    A deposit that all of them refuse is `refused`, like one that does not stand the range check.
    """
    cursors = {slot: iter(answer.receipts) for slot, answer in receipts.items()}
    outcomes = []
    for decision in decisions:
        had = [next(cursors[slot], None) for slot in decision.slots if slot in cursors]
        good = tuple(item for item in had if item is not None)
        reason = REFUSED if had and not good else decision.reason
        outcomes.append(DepositOutcome(receipts=good, reason=reason))
    return BatchOutcome(outcomes=tuple(outcomes))


def accept_abandon(service: ServiceParty, signed: SignedAbandon, now: float) -> tuple[tuple[int, ...], NeverCall]:
    """Authenticate an abandon request; return the holders' slots and what each is sent."""
    abandon = signed.abandon
    _authenticate(
        service.manifest,
        abandon.depositor,
        abandon.issued_at,
        now,
        signed.signature,
        ABANDON,
        encode(abandon),
    )
    slots = holder_slots(service.manifest, abandon.shard, abandon.excluded)
    return slots, NeverCall(signed=signed)


# --- step 5: a holder commits and gives its receipt ----------------------------------------------------------------


def accept_commit(party: Party, call: CommitCall, now: float) -> list[Commit]:
    """Step 5: refuse ticks in the future by this custodian's clock; return what the store is asked to commit."""
    party.manifest.member(call.depositor)
    party.manifest.own_slot(call.shard, party.id)
    current = tick_at(now, party.manifest.terms.tick_seconds)
    if any(commit.tick > current for commit in call.commits):
        raise ProtocolError("future-tick", "the tick of a commit lies in the future; check both clocks")
    return list(call.commits)


def accept_never(party: Party, call: NeverCall, now: float) -> Abandon:
    """Refuse a call to give deposits up that their depositor did not sign, just now; return what it asks for."""
    abandon = call.signed.abandon
    _authenticate(
        party.manifest, abandon.depositor, abandon.issued_at, now, call.signed.signature, ABANDON, encode(abandon)
    )
    if party.manifest.own_slot(abandon.shard, party.id) == abandon.excluded:
        raise ProtocolError("bad-excluded", "the excluded slot gets nothing of a deposit")
    return abandon


def give_receipts(
    party: Party, depositor: str, shard: int, deposit_ids: Sequence[bytes], kept: Sequence[Refusable]
) -> HolderReceipts:
    """Step 5: MAC for the depositor what the store now holds, "committed" or a final "never"."""
    slot = party.manifest.own_slot(shard, party.id)
    receipts: list[Receipt | None] = []
    for deposit_id, state in zip(deposit_ids, kept, strict=True):
        if isinstance(state, ProtocolError) or (state.tick is None and not state.never):
            receipts.append(None)
            continue
        statement = _receipt_statement(depositor, shard, slot, deposit_id, state)
        mac = party.channel(depositor).mac(PURPOSE, encode(statement))
        receipts.append(Receipt(slot=slot, state=statement.state, tick=statement.tick, mac=mac))
    return HolderReceipts(receipts=tuple(receipts))


def _receipt_statement(depositor: str, shard: int, slot: int, deposit_id: bytes, kept: Kept) -> ReceiptStatement:
    committed = kept.tick is not None
    return ReceiptStatement(
        state=COMMITTED if committed else NEVER,
        depositor=depositor,
        shard=shard,
        slot=slot,
        deposit_id=deposit_id,
        tick=kept.tick if kept.tick is not None else 0,
        envelope_hash=kept.envelope_hash if committed else bytes(32),
    )


# --- step 7: the depositor reads the receipts ----------------------------------------------------------------------


def read_receipts(party: Party, made: MadeDeposit, outcome: DepositOutcome) -> dict[int, Kept]:
    """Step 7: return, by slot, what holders have MACed; forged or misplaced receipts count as none."""
    slots = holder_slots(party.manifest, made.shard, made.excluded)
    holders = party.manifest.committee(made.shard).slots
    hashes = {slot: envelope_hash(item) for slot, item in zip(slots, made.deposit.envelopes, strict=True)}
    states: dict[int, Kept] = {}
    for receipt in outcome.receipts:
        if receipt.slot not in hashes:
            continue
        committed = receipt.state == COMMITTED
        kept = Kept(receipt.tick if committed else None, not committed, hashes[receipt.slot] if committed else b"")
        statement = _receipt_statement(party.id, made.shard, receipt.slot, made.deposit.deposit_id, kept)
        try:
            party.channel(holders[receipt.slot]).check_mac(PURPOSE, encode(statement), receipt.mac)
        except ProtocolError:
            continue
        states[receipt.slot] = kept
    return states


def is_made(manifest: Manifest, made: MadeDeposit, states: Mapping[int, Kept]) -> bool:
    """Tell whether n-2 holders have committed the deposit."""
    needed = len(manifest.committee(made.shard).slots) - 2
    return sum(kept.tick is not None for kept in states.values()) >= needed


def is_complete(manifest: Manifest, made: MadeDeposit, states: Mapping[int, Kept]) -> bool:
    """Tell whether all n-1 holders have committed it at one tick, so that nothing needs repeating."""
    ticks = [kept.tick for kept in states.values()]
    return len(ticks) == len(manifest.committee(made.shard).slots) - 1 and None not in ticks and len(set(ticks)) == 1


# --- shared by the steps -------------------------------------------------------------------------------------------


def _authenticate(
    manifest: Manifest, member: str, issued_at: int, now: float, signature: bytes, purpose: str, signed: bytes
) -> None:
    signing.verify(manifest.member(member).signing_key, signature, purpose, signed)
    require_fresh(issued_at, now)


def _require_excluded(manifest: Manifest, depositor: str, shard: int, excluded: int, deposit_id: bytes) -> None:
    own = manifest.slot_of_group(shard, depositor)
    size = len(manifest.committee(shard).slots)
    if excluded != excluded_slot(shard, own, size, deposit_id):
        raise ProtocolError("bad-excluded", "the excluded slot is not the one that shard and deposit id give")


# --- the whole deposit in memory -----------------------------------------------------------------------------------


def run_deposit(
    depositor: Party,
    service: ServiceParty,
    members: Mapping[str, MemberInMemory],
    entry: Entry,
    now: float,
    random: RandomBytes,
    *,
    not_before: int = 0,
) -> tuple[MadeDeposit, dict[int, Kept]]:
    """Run one deposit from policy to receipts, every party in this process. `members` are those that can be reached.

    Returns the deposit, with its id, and the verified receipts by slot.
    """
    # 1. The depositor blinds, shares, seals and signs.
    deposit_id = draw_deposit_id(depositor, entry.identity, entry.earlier, random)
    made = make_deposit(depositor, entry, deposit_id, random, not_before=not_before)
    signed = sign_batch(depositor, [made], now)

    # 2. The service evaluates, picks A among the holders it can reach, passes an envelope to each.
    evaluated = accept_batch(service, signed, now, random)
    manifest, holders = service.manifest, service.manifest.committee(made.shard).slots
    reached = [slot for slot in evaluated.slots if holders[slot] in members]
    chosen = preferred_choice(deposit_id, dict.fromkeys(reached, 0.0))
    order = None if chosen is None else RangeOrder(nonce=random(16), chosen=chosen, issued_at=int(now))

    # 3. Each holder verifies both proofs, keeps the deposit pending, confirms to the service alone; those of A garble.
    answers = {}
    for slot in reached:
        holder = members[holders[slot]]
        key = holder.committee_keys[made.shard, manifest.slot_of_group(made.shard, depositor.id)]
        accepted = accept_prepare(holder.party, prepare_call(evaluated, slot, order), key, now)
        prepared = holder.custody.prepare(accepted.proposed, now, accepted.attempt())
        answers[slot] = confirm(holder.party, accepted, prepared)

    # 4. The service evaluates what A garbled, compares the confirmations, and names the tick.
    try:
        opened = opened_proofs(manifest, evaluated, order, answers) if order is not None else None
    except Disagreement:
        opened = None
    proofs = opened if opened is not None else claimed_proofs(manifest, evaluated, answers)
    decisions = decide(manifest, evaluated, answers, proofs, tick_at(now, manifest.terms.tick_seconds))

    # 5. Each holder that the proof convinces makes the deposit visible in one transaction and gives a receipt.
    receipts = {}
    for slot in reached:
        call = commit_call(evaluated, decisions, slot)
        if call is not None:
            holder = members[holders[slot]]
            commits = accept_commit(holder.party, call, now)
            states = holder.custody.commit(call.depositor, call.shard, commits)
            ids = [commit.deposit_id for commit in commits]
            receipts[slot] = give_receipts(holder.party, call.depositor, call.shard, ids, states)

    # 6. The service gathers the receipts, 7. the depositor verifies them.
    outcome = batch_outcome(decisions, receipts).outcomes[0]
    return made, read_receipts(depositor, made, outcome)
