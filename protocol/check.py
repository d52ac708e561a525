"""A check, told once: the requester asks, the service relays and evaluates blind, four custodians garble.

Read `run_check` at the end first: it is the whole check in memory, and what the live processes do with sockets and
databases between the same calls. Step numbers are those of SPEC.md, section 6.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, lru_cache, partial

from protocol import kdf, signing, voprf
from protocol.committee import excluded_slot, preferred_choice
from protocol.committee_keys import CommitteeKey, KeyName, require_key
from protocol.comparison import (
    Answered,
    Disagreement,
    Garbling,
    LaneInput,
    Seed,
    evaluate_together,
    garble_together,
    tags,
)
from protocol.custody import Admission, Charge, Custody, CustodyView, Reading
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.identity import Identity, shard_of
from protocol.manifest import SUM_INSURED, Manifest, Rule, china_day
from protocol.messages import (
    MAX_ATTEMPTS,
    RECHECK,
    UNDERWRITING,
    CheckAnswer,
    CheckCall,
    CheckEnvelope,
    CheckOutcome,
    CheckRequest,
    CheckStatement,
    EnvelopeHash,
    Header,
    Lane,
    SealedLane,
    SealedPerson,
    SignedCheck,
    envelope_hash,
    require_fresh,
    require_lanes,
)
from protocol.party import Party, RandomBytes, ServiceParty, random_scalar
from protocol.secret import Secret
from protocol.sharing import CHOSEN, GROUPS, SHARE_BYTES, Chosen, Label, Share, group_sums, held_labels, share
from protocol.stamps import acceptable_as_of, as_of_tick
from protocol.token import (
    Blind,
    IndexKey,
    Pseudonym,
    Token,
    blind_by,
    draw_blind,
    index_key,
    unblind,
    verify_unblinder,
)

PURPOSE = "check"
# To copy and go on with: OpenSSL looks a hash up each time that it begins one, which takes longer than a short one.
_STATEMENT_HASH = hashlib.sha256(kdf.join(b"cover-lookup/v1 check"))
_VERIFIERS_HASH = hashlib.sha256(kdf.join(b"cover-lookup/v1 evaluation verifiers"))


class Verdict(Enum):
    """What a check says of one lane. Everything that cannot be answered is `INDETERMINATE`, never `WITHIN`."""

    EXCEEDS = "exceeds"
    WITHIN = "within"
    INDETERMINATE = "indeterminate"


class Void(Enum):
    """Why a check is indeterminate: one public reason for every kind of disagreement, because reasons are oracles."""

    TIMEOUT = "timeout"
    TOO_FEW_CUSTODIANS = "too-few-custodians"
    DISAGREEMENT = "disagreement"
    BUDGET_EXHAUSTED = "budget-exhausted"
    SERVICE_UNAVAILABLE = "service-unavailable"
    REFUSED = "refused"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Question:
    """One lane as the requester means it: a person, a rule, and the cover that would be added, in fen."""

    identity: Identity
    rule: Rule
    proposed: int = field(repr=False)


@dataclass(frozen=True)
class PendingCheck:
    """What the requester keeps while it waits: s, to derive the tags, and what an answer must fit."""

    check_id: bytes
    seed: Secret
    lanes: int
    slots: tuple[int, ...]
    as_of: int
    deadline: float


# --- step 1: the requester -----------------------------------------------------------------------------------------


def shard_of_person(party: Party, identity: Identity) -> int:
    """Return the shard that a person's deposits and checks belong to."""
    return shard_of(party.keys.salt, identity, party.manifest.terms.shards)


def check_context(requester: str, check_id: bytes, person: int) -> bytes:
    """Return what the Schnorr proof of a person, by its place in the check, is bound to, besides B."""
    return kdf.join(b"check", requester.encode(), check_id, person.to_bytes(2, "big"))


def persons_of(questions: Sequence[Question]) -> tuple[list[Identity], list[int]]:
    """Return the persons of a check, and of each question the place of the person that it is about: one for all rules
    that a person is asked about under.

    Whoever is asked about more than once under one rule, as with several proposals, is as many persons.
    """
    times: dict[tuple[Identity, str], int] = {}
    known: dict[tuple[Identity, int], int] = {}
    persons, places = list[Identity](), list[int]()
    for question in questions:
        asked = (question.identity, question.rule.id)
        times[asked] = time = times.get(asked, 0) + 1
        place = known.setdefault((question.identity, time), len(persons))
        if place == len(persons):
            persons.append(question.identity)
        places.append(place)
    return persons, places


TakeBlind = Callable[[Element], Blind]


def fresh_blind(service_key: Element, random: RandomBytes) -> Blind:
    """Draw a blind."""
    return draw_blind(service_key, (random_scalar(random), random_scalar(random)))


def ask(
    party: Party,
    questions: list[Question],
    now: float,
    deadline: float,
    random: RandomBytes,
    *,
    occasion: int = UNDERWRITING,
    take_blind: TakeBlind | None = None,
) -> tuple[PendingCheck, CheckRequest]:
    """Step 1: blind each person once, share each proposal, seal one envelope per custodian, sign.

    `take_blind` gives blinds for the service's key, each once; without it they are drawn from `random`.

    All questions are about one shard; `deadline` is in Unix seconds. Nothing is sent to the requester's own group.
    A recheck has no proposal: refused (`bad-proposal`) are questions with one, and (`recheck-not-allowed`) rules
    without a budget for it.
    """
    if occasion == RECHECK:
        for question in questions:
            question.rule.require_recheck()
        if any(question.proposed for question in questions):
            raise ProtocolError("bad-proposal", "a recheck is of persons as they stand and proposes nothing")
    shards = {shard_of_person(party, question.identity) for question in questions}
    if len(shards) != 1:
        raise ProtocolError("mixed-shards", "the lanes of one check are in one shard")
    (shard,) = shards
    manifest, check_id, seed, as_of = party.manifest, random(16), random(32), china_day(now)
    if not all(0 <= question.proposed <= manifest.terms.deposit_cap for question in questions):
        raise ProtocolError("bad-amount", "the proposed cover is negative or above the manifest's cap")
    slots = manifest.committee(shard).slots
    own = manifest.slot_of_group(shard, party.id)
    excluded = excluded_slot(shard, own, len(slots), check_id)

    persons, places = persons_of(questions)
    lanes = [
        Lane(person=place, rule_id=question.rule.id, rule_version=question.rule.version)
        for place, question in zip(places, questions, strict=True)
    ]
    tokens, proposals = [], []
    for place, identity in enumerate(persons):
        drawn = fresh_blind(manifest.blinding_key, random) if take_blind is None else take_blind(manifest.blinding_key)
        tokens.append(blind_by(party.keys.salt, identity, drawn, check_context(party.id, check_id, place)))
    for question in questions:
        amount = question.proposed if question.rule.measure == SUM_INSURED else min(question.proposed, 1)
        proposals.append(share(amount, len(slots), excluded, random((len(slots) - 2) * SHARE_BYTES)))

    sealed = tuple(
        [SealedPerson(blinded=token.blinded, unblinder=token.unblinder, proof=token.proof) for token in tokens]
    )
    hashes, envelopes = [], []
    for slot, custodian in enumerate(slots):
        if slot == own:
            continue
        held = held_labels(len(slots), excluded, slot)
        body = CheckEnvelope(
            check_id=check_id,
            seed=seed,
            persons=sealed,
            lanes=tuple(
                [
                    SealedLane(
                        person=lane.person,
                        rule_id=lane.rule_id,
                        rule_version=lane.rule_version,
                        proposal=tuple([proposal[name] for name in held]) if occasion != RECHECK else (),
                    )
                    for lane, proposal in zip(lanes, proposals, strict=True)
                ]
            ),
            shard=shard,
            manifest_hash=manifest.hash,
            as_of=as_of,
            issued_at=int(now),
        )
        envelopes.append(party.channel(custodian).seal(PURPOSE, check_id, encode(body), random(32)))
        hashes.append(EnvelopeHash(slot=slot, hash=envelope_hash(envelopes[-1])))
    statement = CheckStatement(
        requester=party.id,
        check_id=check_id,
        occasion=occasion,
        persons=tuple([token.blinded for token in tokens]),
        lanes=tuple(lanes),
        shard=shard,
        manifest_hash=manifest.hash,
        as_of=as_of,
        issued_at=int(now),
        envelopes=tuple(hashes),
    )
    signature = signing.sign(party.keys.signing, PURPOSE, encode(statement))
    pending = PendingCheck(
        check_id, Secret(seed), len(questions), tuple([entry.slot for entry in hashes]), as_of, deadline
    )
    return pending, CheckRequest(
        signed=SignedCheck(statement=statement, signature=signature), envelopes=tuple(envelopes)
    )


# --- step 5: the requester reads the answer ------------------------------------------------------------------------


def read_outcome(pending: PendingCheck, outcome: CheckOutcome, now: float) -> list[tuple[Verdict, Void | None]]:
    """Step 5: return per lane the verdict, with the reason where it is indeterminate.

    A late answer, one with an A or an attempt that cannot be, a lane without a tag, or with one that is neither of its
    two, is indeterminate.
    """

    def void(reason: Void) -> list[tuple[Verdict, Void | None]]:
        return [(Verdict.INDETERMINATE, reason)] * pending.lanes

    if now > pending.deadline:
        return void(Void.TIMEOUT)
    if outcome.void is not None:
        known = {reason.value: reason for reason in Void}
        return void(known.get(outcome.void, Void.REFUSED))
    plausible = (
        outcome.check_id == pending.check_id
        and 1 <= outcome.attempt <= MAX_ATTEMPTS
        and len(outcome.chosen) == CHOSEN
        and list(outcome.chosen) == sorted(set(outcome.chosen) & set(pending.slots))
        and len(outcome.tags) == pending.lanes
    )
    if not plausible:
        return void(Void.DISAGREEMENT)
    expected = tags(pending.seed.reveal(), pending.check_id, outcome.attempt, outcome.chosen, pending.lanes)
    verdicts: list[tuple[Verdict, Void | None]] = []
    for tag, (within, exceeds) in zip(outcome.tags, expected, strict=True):
        if tag is None:
            verdicts.append((Verdict.INDETERMINATE, Void.BUDGET_EXHAUSTED))
        elif hmac.compare_digest(tag, exceeds):
            verdicts.append((Verdict.EXCEEDS, None))
        elif hmac.compare_digest(tag, within):
            verdicts.append((Verdict.WITHIN, None))
        else:
            verdicts.append((Verdict.INDETERMINATE, Void.DISAGREEMENT))
    return verdicts


# --- steps 2 and 4: the service ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """A request that the service accepted, with C of its persons alone."""

    request: CheckRequest
    evaluated: tuple[Element, ...]
    prove: Callable[[], voprf.DleqProof] = field(repr=False)

    @cached_property
    def proof(self) -> voprf.DleqProof:
        """The proof of C. Made when it is first asked for: two of A need none and are called before."""
        return self.prove()


Admit = Callable[[str, int], None]
"""Told an authenticated member and how many lanes it asks about, before the work is done; may refuse."""


def admit_all(_member: str, _lanes: int) -> None:
    """Refuse nobody."""


def accept_request(
    service: ServiceParty, request: CheckRequest, now: float, random: RandomBytes, admit: Admit = admit_all
) -> Evaluation:
    """Step 2, first half: authenticate the requester and evaluate its blinded persons."""
    statement, manifest = request.signed.statement, service.manifest
    _verify_statement(manifest, request.signed, now)
    admit(statement.requester, len(statement.lanes))
    own = manifest.slot_of_group(statement.shard, statement.requester)
    expected = [slot for slot in range(len(manifest.committee(statement.shard).slots)) if slot != own]
    if [entry.slot for entry in statement.envelopes] != expected:
        raise ProtocolError("bad-envelopes", "there is one envelope per custodian outside the requester's group")
    if [entry.hash for entry in statement.envelopes] != [envelope_hash(item) for item in request.envelopes]:
        raise ProtocolError("bad-envelopes", "an envelope is not the one that was signed")
    blinded = [Element(point) for point in statement.persons]
    evaluated = [voprf.blind_evaluate(service.keys.blinding, point) for point in blinded]
    nonce = random_scalar(random)
    prove = partial(voprf.prove, service.keys.blinding, manifest.blinding_key, blinded, evaluated, nonce)
    return Evaluation(request, tuple(evaluated), prove)


def call_for(evaluation: Evaluation, attempt: int, chosen: tuple[int, ...], tick: int, slot: int) -> CheckCall:
    """Step 2, second half: what one custodian of A is sent."""
    request = evaluation.request
    slots = [entry.slot for entry in request.signed.statement.envelopes]
    return CheckCall(
        signed=request.signed,
        attempt=attempt,
        chosen=chosen,
        tick=tick,
        evaluated=evaluation.evaluated,
        proof=evaluation.proof if is_proven_to(request.signed.statement.check_id, attempt, chosen, slot) else None,
        envelope=request.envelopes[slots.index(slot)],
    )


@dataclass(frozen=True)
class Conclusion:
    """What the service concludes one attempt from: A, the tick, and the answers of all of A by slot."""

    evaluation: Evaluation
    attempt: int
    chosen: tuple[int, ...]
    tick: int
    answers: Mapping[int, CheckAnswer]


def conclude_together(
    attempts: Sequence[tuple[ServiceParty, Conclusion]],
) -> list[CheckOutcome | Disagreement]:
    """Step 4: compare the four answers of each attempt, evaluate, and return the tags, or where they differ.

    A lane that any of the four says is spent has no tag. That they agree is seen first: which pseudonyms have a budget
    left is told of none but the one that all four came to.
    """
    found: list[CheckOutcome | Disagreement] = []
    answered: list[Answered] = []
    places: list[int] = []
    for place, (service, one) in enumerate(attempts):
        names = [one.answers[slot].committee_key for slot in one.chosen]
        if names.count(names[0]) == CHOSEN:
            answered.append(_answered(service, one, names[0]))
            places.append(place)
        odd = tuple([slot for slot, name in zip(one.chosen, names, strict=True) if names.count(name) < CHOSEN - 1])
        found.append(Disagreement(odd, "committee key"))  # unless there is something better below
    for place, comparison, opened in zip(places, answered, evaluate_together(answered), strict=True):
        found[place] = opened if isinstance(opened, Disagreement) else _told(attempts[place][1], comparison, opened)
    return found


def _answered(service: ServiceParty, one: Conclusion, key: KeyName) -> Answered:
    statement = one.evaluation.request.signed.statement
    size = len(service.manifest.committee(statement.shard).slots)
    return Answered(
        {slot: one.answers[slot].part for slot in one.chosen},
        _chosen(one.chosen, size),
        len(statement.lanes),
        encode(_header(service.manifest, statement, one.attempt, one.chosen, one.tick, key)),
        {slot: one.answers[slot].spent for slot in one.chosen},
    )


def _told(one: Conclusion, comparison: Answered, opened: list[bytes]) -> CheckOutcome:
    spent = set().union(*comparison.withheld.values())
    tags = tuple(None if lane in spent else tag for lane, tag in enumerate(opened))
    check_id = one.evaluation.request.signed.statement.check_id
    return CheckOutcome(check_id=check_id, attempt=one.attempt, chosen=one.chosen, tags=tags, void=None)


def conclude(
    service: ServiceParty,
    evaluation: Evaluation,
    attempt: int,
    chosen: tuple[int, ...],
    tick: int,
    answers: Mapping[int, CheckAnswer],
) -> CheckOutcome:
    """Do as `conclude_together` with one attempt; raise `Disagreement` where its answers differ."""
    (found,) = conclude_together([(service, Conclusion(evaluation, attempt, chosen, tick, answers))])
    if isinstance(found, Disagreement):
        raise found
    return found


def void_outcome(check_id: bytes, reason: Void) -> CheckOutcome:
    """Return the outcome of a check that cannot be answered."""
    return CheckOutcome(check_id=check_id, attempt=0, chosen=(), tags=(), void=reason.value)


# --- step 3: a custodian -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AcceptedPerson:
    """A person whose proofs held: the pseudonym and this custodian's index of it."""

    pseudonym: Pseudonym = field(repr=False)
    index: IndexKey = field(repr=False)


@dataclass(frozen=True)
class AcceptedLane:
    """A lane that may be answered: whom it is about, by place, the rule, the proposal's shares."""

    person: int
    rule: Rule
    proposal: Mapping[Label, Share] = field(repr=False)

    def budget(self, occasion: int) -> int:
        """Return how many answers the lane's rule allows on such an occasion."""
        return self.rule.recheck_budget if occasion == RECHECK else self.rule.budget


@dataclass(frozen=True)
class AcceptedCheck:
    """A call that a custodian may answer once it has recorded the attempt and charged the budget.

    `statement_hash` is of the signed statement and of C: a check has one pseudonym a person at a custodian, in all
    attempts, so whoever answers is who was charged.
    """

    statement: CheckStatement
    statement_hash: bytes
    requester_group: str
    slot: int
    chosen: Chosen
    omitted: int | None
    attempt: int
    tick: int
    seed: Secret
    epoch: int
    today: int
    persons: tuple[AcceptedPerson, ...]
    lanes: tuple[AcceptedLane, ...]

    def admission(self) -> Admission:
        """Return what must be recorded, durably, before the answer leaves."""
        statement = self.statement
        charges = tuple(
            [
                Charge(
                    self.persons[lane.person].index,
                    lane.rule.id,
                    statement.occasion,
                    lane.budget(statement.occasion),
                    lane.rule.budget_days,
                )
                for lane in self.lanes
            ]
        )
        return Admission(
            statement.requester,
            self.requester_group,
            statement.check_id,
            self.statement_hash,
            self.attempt,
            self.today,
            charges,
            self.tick,
        )

    def reading(self) -> Reading:
        """Return what must be read, in one snapshot: of each person what any of its lanes sums."""
        first: dict[int, int] = {}
        for lane in self.lanes:
            start = lane.rule.window_start(self.statement.as_of)
            first[lane.person] = min(start, first.get(lane.person, start))
        persons = tuple([(person.index, first[place]) for place, person in enumerate(self.persons)])
        return Reading(self.statement.shard, self.epoch, self.tick, persons)


@lru_cache(maxsize=64)  # of one check it is asked for every call
def evaluation_verifiers(check_id: bytes, attempt: int) -> tuple[int, int]:
    """Return the two positions in A that verify the service's proof of C.

    All four bind the P that they come to, so nothing opens unless two have seen that it is of the true C. Nobody
    chooses which: they follow from a hash, and the load spreads. The requester's proof of D is verified by all four:
    one that is a custodian too would else learn by the time of an answer whose pseudonym it is that it saw.
    """
    hashed = _VERIFIERS_HASH.copy()
    hashed.update(kdf.join(check_id, bytes([attempt])))
    return GROUPS[int.from_bytes(hashed.digest()[:8], "big") % len(GROUPS)]


def is_proven_to(check_id: bytes, attempt: int, chosen: tuple[int, ...], slot: int) -> bool:
    """Tell whether a slot of A verifies the service's proof of C."""
    return slot in [chosen[place] for place in evaluation_verifiers(check_id, attempt)]


def accept_call(party: Party, call: CheckCall, now: float) -> AcceptedCheck:
    """Step 3, first half: verify signature, envelope, freshness, manifest, A, the proofs of D and, as one of two, of C,
    and that every field that stands in both the envelope and the signed statement is equal. Unblinds; touches no store.
    """
    statement, manifest = call.signed.statement, party.manifest
    encoded, today = _verify_statement(manifest, call.signed, now), china_day(now)
    if abs(statement.as_of - today) > 1:
        raise ProtocolError("bad-day", "the as-of day is not within a day of the custodian's clock")
    if not acceptable_as_of(call.tick, now, manifest.terms.tick_seconds):
        raise ProtocolError("bad-tick", "the tick is not closed yet or more than 60 s old")
    slot = manifest.own_slot(statement.shard, party.id)
    slots = manifest.committee(statement.shard).slots
    chosen = _chosen(call.chosen, len(slots))
    omitted = manifest.slot_of_group(statement.shard, statement.requester)
    if slot not in chosen.slots or omitted in chosen.slots:
        raise ProtocolError("bad-choice", "A has this custodian in it and nobody of the requester's group")

    hashes = {entry.slot: entry.hash for entry in statement.envelopes}
    if hashes.get(slot) != envelope_hash(call.envelope):
        raise ProtocolError("bad-envelopes", "the envelope is not the one that was signed")
    opened = party.channel(statement.requester).open(PURPOSE, statement.check_id, call.envelope)
    body = decode(CheckEnvelope, opened)
    _require_equal_fields(statement, body)

    verifies = is_proven_to(statement.check_id, call.attempt, chosen.slots, slot)
    if len(call.evaluated) != len(statement.persons) or (verifies and not _is_proven(manifest, call)):
        raise ProtocolError("bad-evaluation", "the service's proof of its evaluation does not hold")
    excluded = excluded_slot(statement.shard, omitted, len(slots), statement.check_id)
    held = held_labels(len(slots), excluded, slot) if statement.occasion != RECHECK else []  # which proposes nothing
    persons = []
    for place, (person, point) in enumerate(zip(body.persons, call.evaluated, strict=True)):
        token = Token(Element(person.blinded), Element(person.unblinder), person.proof)
        context = check_context(statement.requester, statement.check_id, place)
        if not verify_unblinder(token, manifest.blinding_key, context):
            raise ProtocolError("bad-unblinder", "the requester's proof of its unblinding element does not hold")
        pseudonym = unblind(Element(point), token.unblinder)
        persons.append(AcceptedPerson(pseudonym, index_key(party.keys.index, pseudonym)))
    lanes = []
    for lane in body.lanes:
        if len(lane.proposal) != len(held):
            raise ProtocolError("bad-proposal", "the proposal is not shared as this committee shares")
        shares = {name: Share(piece) for name, piece in zip(held, lane.proposal, strict=True)}
        lanes.append(AcceptedLane(lane.person, _rule_of(manifest, lane, statement), shares))
    hashed = _STATEMENT_HASH.copy()
    hashed.update(kdf.join(encoded, call.signed.signature, *call.evaluated))
    return AcceptedCheck(
        statement,
        hashed.digest(),
        manifest.member(statement.requester).group,
        slot,
        chosen,
        omitted,
        call.attempt,
        call.tick,
        Secret(body.seed),
        manifest.terms.epoch,
        today,
        tuple(persons),
        tuple(lanes),
    )


@dataclass(frozen=True)
class GarbledCheck:
    """An accepted call, garbled as all four of A garble it: all but what is stored comes into it."""

    accepted: AcceptedCheck
    key: CommitteeKey
    garbling: Garbling

    def answer(self, view: CustodyView, spent: tuple[int, ...] = ()) -> CheckAnswer:
        """Step 3, the end: sum labels over the window, add the proposal, and answer, once the attempt is recorded.

        `view` is one snapshot of the store; `spent` are the lanes that the store did not charge, for which nothing is
        sent that opens.
        """
        accepted, statement = self.accepted, self.accepted.statement
        inputs, size, slot = [], accepted.chosen.committee_size, accepted.slot
        for lane in accepted.lanes:
            sums = view.persons[lane.person].sums(lane.rule, statement.as_of, size, slot, lane.proposal)
            inputs.append(LaneInput(tuple(group_sums(accepted.chosen, slot, sums)), lane.rule.limit))
        part = self.garbling.part(inputs, accepted.chosen, slot, view.stamp_sums, spent)
        return CheckAnswer(committee_key=self.key.name, spent=spent, part=part)


def garble_calls(calls: Sequence[tuple[Party, AcceptedCheck, CommitteeKey]]) -> list[GarbledCheck]:
    """Step 3, in between: garble accepted calls, each under its own seed, while the store records them.

    A key is the committee key without the requester's group; refuses (`other-committee-key`) another.
    """
    seeds = []
    for party, accepted, key in calls:
        statement, shown = accepted.statement, accepted.seed.reveal()
        require_key(party.manifest, key, statement.shard, accepted.omitted)
        slots, pseudonyms = accepted.chosen.slots, tuple([person.pseudonym for person in accepted.persons])
        header = encode(_header(party.manifest, statement, accepted.attempt, slots, accepted.tick, key.name))
        seed = Seed.derive(shown, key.secret.reveal(), header, pseudonyms)
        seeds.append((seed, tags(shown, statement.check_id, accepted.attempt, slots, len(accepted.lanes))))
    return [
        GarbledCheck(accepted, key, garbling)
        for (_, accepted, key), garbling in zip(calls, garble_together(seeds), strict=True)
    ]


def answer_call(
    party: Party, accepted: AcceptedCheck, key: CommitteeKey, view: CustodyView, spent: tuple[int, ...] = ()
) -> CheckAnswer:
    """Step 3, second half, of one call: garble it, and answer."""
    (garbled,) = garble_calls([(party, accepted, key)])
    return garbled.answer(view, spent)


# --- shared by the steps -------------------------------------------------------------------------------------------


def _verify_statement(manifest: Manifest, signed: SignedCheck, now: float) -> bytes:
    """Return the statement's encoding, which is what was signed."""
    statement = signed.statement
    member, encoded = manifest.member(statement.requester), encode(statement)
    signing.verify(member.signing_key, signed.signature, PURPOSE, encoded)
    manifest.require_current(statement.manifest_hash, now)
    require_fresh(statement.issued_at, now)
    require_lanes(len(statement.persons), statement.lanes)
    return encoded


def _is_proven(manifest: Manifest, call: CheckCall) -> bool:
    blinded = [Element(point) for point in call.signed.statement.persons]
    evaluated = [Element(point) for point in call.evaluated]
    return call.proof is not None and voprf.verify(manifest.blinding_key, blinded, evaluated, call.proof)


def _require_equal_fields(statement: CheckStatement, body: CheckEnvelope) -> None:
    same = (
        body.check_id == statement.check_id
        and body.shard == statement.shard
        and body.manifest_hash == statement.manifest_hash
        and body.as_of == statement.as_of
        and body.issued_at == statement.issued_at
        and tuple([person.blinded for person in body.persons]) == statement.persons
        and [(lane.person, lane.rule_id, lane.rule_version) for lane in body.lanes]
        == [(lane.person, lane.rule_id, lane.rule_version) for lane in statement.lanes]
    )
    if not same:
        raise ProtocolError("unequal-fields", "the envelope and the signed statement say different things")


def _rule_of(manifest: Manifest, lane: SealedLane, statement: CheckStatement) -> Rule:
    rule = manifest.current_rule(lane.rule_id, statement.as_of)
    if rule.version != lane.rule_version:
        raise ProtocolError("other-rule", "another version of the rule is in force on that day")
    if statement.occasion == RECHECK:
        rule.require_recheck()
    return rule


def _chosen(slots: tuple[int, ...], committee_size: int) -> Chosen:
    if len(slots) != CHOSEN:
        raise ProtocolError("bad-choice", "a check takes four custodians")
    return Chosen((slots[0], slots[1], slots[2], slots[3]), committee_size)


def _header(
    manifest: Manifest,
    statement: CheckStatement,
    attempt: int,
    chosen: tuple[int, ...],
    tick: int,
    key: KeyName,
) -> Header:
    return Header(
        check_id=statement.check_id,
        attempt=attempt,
        chosen=chosen,
        requester=statement.requester,
        occasion=statement.occasion,
        shard=statement.shard,
        manifest_hash=statement.manifest_hash,
        epoch=manifest.terms.epoch,
        committee_key=key,
        as_of=statement.as_of,
        tick=tick,
        persons=statement.persons,
        lanes=statement.lanes,
    )


# --- the whole check in memory -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberInMemory:
    """A member with its custody and committee keys in memory, by (shard, omitted slot)."""

    party: Party
    custody: Custody
    committee_keys: dict[tuple[int, int | None], CommitteeKey] = field(repr=False)


def run_check(
    requester: Party,
    service: ServiceParty,
    members: Mapping[str, MemberInMemory],
    questions: list[Question],
    now: float,
    random: RandomBytes,
    *,
    occasion: int = UNDERWRITING,
) -> list[tuple[Verdict, Void | None]]:
    """Run a check from question to verdict, every party in this process. `members` are those that can be reached."""
    # 1. The requester blinds, shares, seals and signs.
    pending, request = ask(requester, questions, now, now + 2, random, occasion=occasion)

    # 2. The service evaluates the blinded persons, picks A among the custodians it can reach, names a tick.
    evaluation = accept_request(service, request, now, random)
    statement = request.signed.statement
    slots = service.manifest.committee(statement.shard).slots
    reachable = [entry.slot for entry in statement.envelopes if slots[entry.slot] in members]
    chosen = preferred_choice(statement.check_id, dict.fromkeys(reachable, 0.0))
    if chosen is None:
        return read_outcome(pending, void_outcome(statement.check_id, Void.TOO_FEW_CUSTODIANS), now)
    tick = as_of_tick(now, service.manifest.terms.tick_seconds)

    # 3. Each custodian of A verifies, records, charges each lane (or finds it spent), reads one snapshot, and garbles.
    answers = {}
    for slot in chosen:
        custodian = members[slots[slot]]
        accepted = accept_call(custodian.party, call_for(evaluation, 1, chosen, tick, slot), now)
        spent, view = custodian.custody.admit_and_view(accepted.admission(), accepted.reading())
        key = custodian.committee_keys[statement.shard, accepted.omitted]
        answers[slot] = answer_call(custodian.party, accepted, key, view, spent)

    # 4. The service compares, evaluates, and returns one tag a lane, that it cannot read, or that the lane is spent.
    try:
        outcome = conclude(service, evaluation, 1, chosen, tick, answers)
    except Disagreement:
        outcome = void_outcome(statement.check_id, Void.DISAGREEMENT)

    # 5. The requester, who knows s, tells the two tags apart.
    return read_outcome(pending, outcome, now)
