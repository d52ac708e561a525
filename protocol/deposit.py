"""A deposit, told once: an insurer shares a policy among custodians that agree on it before it counts.

Read `run_deposit` at the end first: it is the whole deposit in memory. Step numbers are those of SPEC.md, section 5.
Deposits travel in batches of one shard and one excluded slot, so that the same n-1 custodians hold all of a batch
and one proof of the service covers it.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protocol import kdf, signing, voprf
from protocol.check import Admit, MemberInMemory, admit_all, shard_of_person
from protocol.committee import excluded_slot
from protocol.committee_keys import CommitteeKey
from protocol.custody import CustodyRow, Kept, Proposed, Refusable
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.identity import Identity
from protocol.manifest import Manifest
from protocol.messages import (
    COMMITTED,
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
    Receipt,
    ReceiptStatement,
    SignedAbandon,
    SignedBatch,
    envelope_hash,
    require_fresh,
)
from protocol.party import Party, RandomBytes, ServiceParty, random_scalar
from protocol.sharing import SHARE_BYTES, Label, held_labels, labels_of_sharing, share
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

    `kind` is ISSUE, CANCELLATION or AMENDMENT; `amount` in fen and `count` (+1, -1, 0) may be negative; `day` is the
    original day of issue, an ordinal; `earlier` the deposit id of the issue that is corrected.
    """

    identity: Identity
    kind: int
    product: str
    day: int
    amount: int = field(repr=False)
    count: int
    earlier: bytes | None = None


@dataclass(frozen=True)
class MadeDeposit:
    """A deposit ready to be sent, and sent again unchanged, with where it goes."""

    shard: int
    excluded: int
    deposit: Deposit


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
    if abs(entry.amount) > manifest.terms.deposit_cap or abs(entry.count) > 1:
        raise ProtocolError("bad-amount", "the amount of a deposit is above the manifest's cap")
    slots = manifest.committee(shard).slots
    excluded = excluded_slot(shard, manifest.slot_of_group(shard, party.id), len(slots), deposit_id)
    scalars = (random_scalar(random), random_scalar(random))
    token = blind(
        party.keys.salt, entry.identity, manifest.blinding_key, deposit_context(party.id, deposit_id), scalars
    )
    amounts, counts = (
        share(value, len(slots), excluded, random((len(slots) - 2) * SHARE_BYTES))
        for value in (entry.amount, entry.count)
    )
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
    return MadeDeposit(shard, excluded, deposit)


def _pad(body: bytes, slots: int) -> bytes:
    """Pad a body to a length that depends on the committee's size alone: else it would tell kind and product."""
    return (body + b"\x80").ljust(512 + 128 * slots, b"\x00")


def _unpad(padded: bytes) -> bytes:
    body, mark, rest = padded.rpartition(b"\x80")
    if not mark or any(rest):
        raise ProtocolError("malformed", "the padding of an envelope is not well formed")
    return body


def sign_batch(party: Party, made: Sequence[MadeDeposit], now: float) -> SignedBatch:
    """Return the request for deposits of one shard and excluded slot, signed at `now`."""
    places = {(item.shard, item.excluded) for item in made}
    if len(places) != 1:
        raise ProtocolError("mixed-batch", "a batch has one shard and one excluded slot")
    ((shard, excluded),) = places
    batch = encode(
        DepositBatch(
            depositor=party.id,
            shard=shard,
            excluded=excluded,
            manifest_hash=party.manifest.hash,
            issued_at=int(now),
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
    proof = voprf.prove(service.keys.blinding, manifest.blinding_key, blinded, evaluated, random_scalar(random))
    return EvaluatedBatch(batch, slots, tuple(evaluated), proof)


def holder_slots(manifest: Manifest, shard: int, excluded: int) -> tuple[int, ...]:
    """Return the slots that hold a deposit: all but the excluded one."""
    return tuple(slot for slot in range(len(manifest.committee(shard).slots)) if slot != excluded)


def prepare_call(evaluated: EvaluatedBatch, slot: int) -> PrepareCall:
    """Return what one holder is sent in the first round."""
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
    )


# --- step 3: a holder verifies and confirms ------------------------------------------------------------------------


@dataclass(frozen=True)
class AcceptedDeposit:
    """A deposit that a holder verified, with what it must keep and what it confirms to the service."""

    proposed: Proposed
    pseudonym: Pseudonym = field(repr=False)
    facts: DepositFacts
    digests: tuple[bytes, ...]


def accept_prepare(party: Party, call: PrepareCall, now: float) -> list[AcceptedDeposit | ProtocolError]:
    """Step 3, first half: verify both proofs of every deposit, open its envelope, compare every field.

    Refuses the whole call where the service's proof fails; else each deposit has a result of its own.
    """
    manifest = party.manifest
    manifest.require_current(call.manifest_hash, now)
    slot = manifest.own_slot(call.shard, party.id)
    if slot in (call.excluded, manifest.slot_of_group(call.shard, call.depositor)):
        raise ProtocolError("bad-excluded", "the excluded slot, and the depositor's group, get nothing of a deposit")
    blinded = [Element(item.blinded) for item in call.deposits]
    evaluated = [Element(item.evaluated) for item in call.deposits]
    if not voprf.verify(manifest.blinding_key, blinded, evaluated, call.proof):
        raise ProtocolError("bad-evaluation", "the service's proof of its evaluation does not hold")
    results: list[AcceptedDeposit | ProtocolError] = []
    for item in call.deposits:
        try:
            results.append(_accept_deposit(party, call, slot, item))
        except ProtocolError as refusal:
            results.append(refusal)
    return results


def _accept_deposit(party: Party, call: PrepareCall, slot: int, item: EvaluatedDeposit) -> AcceptedDeposit:
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
    size = len(manifest.committee(facts.shard).slots)
    held = held_labels(size, facts.excluded, slot)
    if not len(held) == len(body.amounts) == len(body.counts) == len(body.salts):
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
    )
    return AcceptedDeposit(proposed, pseudonym, facts, digests)


def confirm(
    accepted: Sequence[AcceptedDeposit | ProtocolError], kept: Sequence[Refusable], key: CommitteeKey
) -> PrepareAnswer:
    """Step 3, second half: confirm what was kept, to the service alone.

    `kept` has the store's result for each accepted deposit, in order. `key` is the committee key without the
    depositor's group.
    """
    confirmation_key = kdf.derive(key.secret.reveal(), "deposit confirmation")
    results, answers = iter(kept), []
    for item in accepted:
        outcome = item if isinstance(item, ProtocolError) else next(results)
        if isinstance(item, ProtocolError) or isinstance(outcome, ProtocolError):
            assert isinstance(outcome, ProtocolError)
            answers.append(Prepared(confirmation=bytes(32), digests=(), tick=None, refusal=outcome.code))
            continue
        statement = kdf.join(item.pseudonym, encode(item.facts), encode(key.name))
        answers.append(
            Prepared(
                confirmation=hmac.digest(confirmation_key, statement, "sha256"),
                digests=item.digests,
                tick=outcome.tick,
                refusal=None,
            )
        )
    return PrepareAnswer(answers=tuple(answers))


def _share_digest(deposit_id: bytes, name: Label, amount: int, count: int, salt: bytes) -> bytes:
    shares = amount.to_bytes(SHARE_BYTES, "big") + count.to_bytes(SHARE_BYTES, "big")
    return hashlib.sha256(kdf.join(b"cover-lookup/v1 share digest", salt, deposit_id, bytes(name), shares)).digest()


# --- step 4: the service compares and commits ----------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What the service does with one deposit: commit at `tick` to `slots`, or nothing, for `reason`."""

    tick: int | None
    slots: tuple[int, ...]
    reason: str | None


def decide(
    manifest: Manifest, evaluated: EvaluatedBatch, answers: Mapping[int, PrepareAnswer], tick: int
) -> list[Decision]:
    """Step 4: per deposit, commit when all holders that answered agree and at most one holder did not answer.

    A deposit that some holder committed before keeps that tick.
    """
    size, count = len(manifest.committee(evaluated.batch.shard).slots), len(evaluated.batch.deposits)
    answers = {slot: answer for slot, answer in answers.items() if len(answer.answers) == count}
    return [
        _decide(
            size,
            evaluated.batch.excluded,
            {slot: answer.answers[place] for slot, answer in answers.items()},
            tick,
        )
        for place in range(len(evaluated.batch.deposits))
    ]


def _decide(size: int, excluded: int, answers: Mapping[int, Prepared], tick: int) -> Decision:
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
    earlier = [answer.tick for answer in answers.values() if answer.tick is not None]
    return Decision(min(tick, *earlier) if earlier else tick, tuple(sorted(answers)), None)


def commit_call(evaluated: EvaluatedBatch, decisions: Sequence[Decision], slot: int) -> CommitCall | None:
    """Return what one holder is told to commit; None if nothing."""
    commits = tuple(
        Commit(deposit_id=deposit.deposit_id, tick=decision.tick)
        for deposit, decision in zip(evaluated.batch.deposits, decisions, strict=True)
        if decision.tick is not None and slot in decision.slots
    )
    batch = evaluated.batch
    return CommitCall(depositor=batch.depositor, shard=batch.shard, commits=commits) if commits else None


def batch_outcome(decisions: Sequence[Decision], receipts: Mapping[int, HolderReceipts]) -> BatchOutcome:
    """Step 6: gather what the depositor is told. `receipts` has the holders that answered their commit call."""
    cursors = {slot: iter(answer.receipts) for slot, answer in receipts.items()}
    outcomes = []
    for decision in decisions:
        had = [next(cursors[slot], None) for slot in decision.slots if slot in cursors]
        outcomes.append(
            DepositOutcome(receipts=tuple(item for item in had if item is not None), reason=decision.reason)
        )
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


def accept_commit(party: Party, call: CommitCall, now: float) -> list[tuple[bytes, int]]:
    """Step 5: refuse ticks in the future by this custodian's clock; return (deposit id, tick) for the store."""
    party.manifest.member(call.depositor)
    party.manifest.own_slot(call.shard, party.id)
    current = tick_at(now, party.manifest.terms.tick_seconds)
    if any(commit.tick > current for commit in call.commits):
        raise ProtocolError("future-tick", "the tick of a commit lies in the future; check both clocks")
    return [(commit.deposit_id, commit.tick) for commit in call.commits]


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

    # 2. The service evaluates and passes an envelope to each holder.
    evaluated = accept_batch(service, signed, now, random)
    manifest, holders = service.manifest, service.manifest.committee(made.shard).slots
    reached = [slot for slot in evaluated.slots if holders[slot] in members]

    # 3. Each holder verifies both proofs, keeps the deposit unseen, confirms to the service alone.
    answers = {}
    for slot in reached:
        holder = members[holders[slot]]
        accepted = accept_prepare(holder.party, prepare_call(evaluated, slot), now)
        kept = holder.custody.prepare([item.proposed for item in accepted if isinstance(item, AcceptedDeposit)])
        key = holder.committee_keys[made.shard, manifest.slot_of_group(made.shard, depositor.id)]
        answers[slot] = confirm(accepted, kept, key)

    # 4. The service compares the confirmations and names the tick.
    decisions = decide(manifest, evaluated, answers, tick_at(now, manifest.terms.tick_seconds))

    # 5. Each holder makes the deposit visible in one transaction and gives a receipt.
    receipts = {}
    for slot in reached:
        call = commit_call(evaluated, decisions, slot)
        if call is not None:
            holder = members[holders[slot]]
            commits = accept_commit(holder.party, call, now)
            states = holder.custody.commit(call.depositor, call.shard, commits)
            ids = [deposit_id for deposit_id, _ in commits]
            receipts[slot] = give_receipts(holder.party, call.depositor, call.shard, ids, states)

    # 6. The service gathers the receipts, 7. the depositor verifies them.
    outcome = batch_outcome(decisions, receipts).outcomes[0]
    return made, read_receipts(depositor, made, outcome)
