"""A member that deposits what it may not, in a live alliance: it is refused, or harms nobody but itself."""

import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pytest
from insiders import Insider
from live import LiveAlliance, wait_for_ticks
from malicious_member import (
    EXCEEDS,
    HELD,
    LIMIT,
    SHARDS,
    TABLES,
    WITHIN,
    Bending,
    Stage,
    forged,
    open_stage,
    proof_of,
    question,
    settled,
    strangers,
    tried,
)
from strategies import made_anew
from test_group import BAD_ENCODINGS

from protocol import check, deposit, group, signing
from protocol.committee import excluded_slot
from protocol.deposit import (
    PURPOSE,
    REFUSED,
    TOO_FEW,
    Entry,
    MadeDeposit,
    deposit_context,
    draw_deposit_id,
    is_complete,
    is_made,
    make_deposit,
    read_receipts,
)
from protocol.encoding import POINT, SCALAR, decode, encode
from protocol.errors import ProtocolError
from protocol.group import ORDER
from protocol.identity import Identity
from protocol.manifest import DAY, china_day
from protocol.messages import (
    AMENDMENT,
    CANCELLATION,
    ISSUE,
    MAX_DEPOSITS,
    BatchOutcome,
    DepositBatch,
    DepositEnvelope,
    SignedBatch,
)
from protocol.party import random_scalar
from protocol.sharing import RING, held_labels, share
from transport.internal import PREPARE, message_of
from transport.peers import Reply

pytestmark = pytest.mark.alliance

Change = Callable[[DepositEnvelope, int], DepositEnvelope]
"""What an attacker says to a slot in place of the honest body."""


@pytest.fixture(scope="module")
def stage(eight: LiveAlliance, pool: list[Identity]) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield open_stage(eight, pool, stack)


# --- the attacker's workshop ---------------------------------------------------------------------------------------


def entry(whom: Identity, amount: int = 1, **changes: object) -> Entry:
    return replace(Entry(whom, ISSUE, "accident", china_day(time.time()), amount), **changes)


def crafted(
    me: Insider,
    item: Entry,
    change: Change | None = None,
    *,
    slots: tuple[int, ...] | None = None,
    deposit_id: bytes | None = None,
) -> MadeDeposit:
    """Make a deposit as `make_deposit` does, with something else in the envelopes of some slots, or of all."""
    deposit_id = (
        draw_deposit_id(me.party, item.identity, item.earlier, secrets.token_bytes)
        if deposit_id is None
        else deposit_id
    )
    shard = deposit.shard_of_person(me.party, item.identity)
    holders = me.manifest.committee(shard).slots

    def bend(peer: str, padded: bytes) -> bytes:
        slot = holders.index(peer)
        if change is None or (slots is not None and slot not in slots):
            return padded
        return deposit._pad(encode(change(decode(DepositEnvelope, deposit._unpad(padded)), slot)), len(holders))

    return make_deposit(Bending(me.party, bend), item, deposit_id, secrets.token_bytes)  # type: ignore[arg-type]  stands for a Party


def facts(**changes: object) -> Change:
    return lambda body, _: replace(body, facts=replace(body.facts, **changes))


def valued(**values: int) -> Change:
    """Share any amounts or counts (`amounts=`, `counts=`), alike for all holders."""
    uniform = secrets.token_bytes(24)

    def change(body: DepositEnvelope, slot: int) -> DepositEnvelope:
        excluded = body.facts.excluded
        held = held_labels(6, excluded, slot)
        shares = {name: share(value, 6, excluded, uniform) for name, value in values.items()}
        return replace(body, **{name: tuple(whole[key] for key in held) for name, whole in shares.items()})

    return change


def batch_of(me: Insider, made: list[MadeDeposit], **changes: object) -> SignedBatch:
    """Sign a batch; `changes` are made to its fields before."""
    first, now = made[0], time.time()
    batch = DepositBatch(
        depositor=me.party.id,
        shard=first.shard,
        excluded=first.excluded,
        manifest_hash=me.manifest.hash,
        issued_at=int(now),
        made=0,
        deposits=tuple(item.deposit for item in made),
    )
    data = encode(replace(batch, **changes))
    return SignedBatch(batch=data, signature=signing.sign(me.party.keys.signing, PURPOSE, data))


@dataclass
class Sent:
    """What came of a batch: the service's refusal or each deposit's reason and completeness, and who keeps what."""

    refusal: str | None
    reasons: list[str | None]
    complete: list[bool]
    said: dict[str, list[Any]]
    changed: dict[str, set[str]]
    committed: bool
    outcome: BatchOutcome | None

    @property
    def codes(self) -> set[Any]:
        return {code for answers in self.said.values() for answer in answers for code in answer}

    def assert_refused(self, code: str) -> None:
        """The service refused the batch; no holder was called or keeps anything."""
        assert (self.refusal, self.said, self.changed) == (code, {}, {})

    def assert_refused_by_holders(self, code: str, public: str = REFUSED) -> None:
        """Every holder refused with this code; the depositor is told the public reason; nobody keeps anything."""
        assert self.codes == {code}
        assert len(self.said) == 5
        assert (set(self.reasons), self.complete.count(True), self.changed) == ({public}, 0, {})

    def assert_refused_together(self, code: str | None = None) -> None:
        """Some holders refused, or none by itself; together they committed nothing, and who refused keeps nothing."""
        assert self.codes <= {None, code}
        assert len(self.said) == 5
        assert (set(self.reasons), self.complete.count(True), self.committed) == ({REFUSED}, 0, False)

    def assert_not_shown(self) -> None:
        """Every holder kept it and four of them garbled; it did not stand, and nobody counts it."""
        assert self.codes == {None}
        assert (set(self.reasons), self.complete.count(True), self.committed) == ({REFUSED}, 0, False)
        assert set(self.changed) == set(self.said)
        assert {table for tables in self.changed.values() for table in tables} == {"custody_pending"}

    def assert_made(self) -> None:
        assert self.reasons == [None] * len(self.complete)
        assert all(self.complete)


def committed_rows(stage: Stage) -> list[list[str]]:
    """Return what checks see, at every member."""
    return [stage.rows(number, table) for number in stage.members for table in ("custody_row", "custody_stamp")]


def sent(
    stage: Stage, me: Insider, made: list[MadeDeposit], signed: SignedBatch | None = None, **changes: object
) -> Sent:
    before, visible, since = stage.stored(), committed_rows(stage), stage.marks()
    for _ in range(5):
        outcome, refusal = None, None
        try:
            outcome = me.deposit(batch_of(me, made, **changes) if signed is None else signed)
        except ProtocolError as refused:
            refusal = refused.code
        outcomes = () if outcome is None else outcome.outcomes
        complete = [
            is_complete(me.manifest, item, read_receipts(me.party, item, one))
            for item, one in zip(made, outcomes, strict=outcome is not None)
        ]
        # Sent again, as an outbox does, where a busy machine let a holder time out.
        if all(one.reason not in {None, TOO_FEW} or done for one, done in zip(outcomes, complete, strict=True)):
            break
    said, after = stage.said(since, PREPARE), stage.stored()
    changed = {
        member: {table for table in TABLES if tables[table] != before[member][table]}
        for member, tables in after.items()
        if tables != before[member]
    }
    # Whoever refused all of a batch keeps nothing of it, whatever the others did.
    assert set(changed) <= {member for member, answers in said.items() if any(None in codes for codes in answers)}
    return Sent(
        refusal, [one.reason for one in outcomes], complete, said, changed, committed_rows(stage) != visible, outcome
    )


def depositing(stage: Stage, *, inside: bool = False, troubled: bool = False) -> tuple[Insider, Identity]:
    """Return a depositor and a person that no test has touched yet, from outside or inside his shard's committee."""
    whom = stage.subject(troubled=troubled)
    shard = stage.shard(whom)
    return stage.members[stage.holders(shard)[1]] if inside else stage.outsider(shard), whom


def test_the_honest_form_of_what_is_bent_below_is_made_at_all_five_holders_and_counts(stage: Stage) -> None:
    for inside in (False, True):
        me, whom = depositing(stage, inside=inside)
        done = sent(stage, me, [crafted(me, entry(whom, 5))])
        done.assert_made()
        assert done.changed == {member: {"custody_row", "custody_stamp", "custody_own_stamp"} for member in done.said}
        assert len(done.said) == 5
        stage.expect(whom, held=HELD + 5)


# --- the same deposit again ----------------------------------------------------------------------------------------


def test_a_replayed_deposit_is_counted_once_and_another_under_its_id_is_refused(stage: Stage) -> None:
    me, whom = depositing(stage)
    other = stage.neighbour(whom)
    made = crafted(me, entry(whom, 5))
    signed = batch_of(me, [made])
    done = sent(stage, me, [made], signed)
    done.assert_made()
    for again in (signed, None):
        repeated = sent(stage, me, [made], again)
        assert (repeated.reasons, repeated.complete, repeated.changed) == ([None], [True], {})
        assert repeated.outcome == done.outcome  # the same receipts, at the same tick
    deposit_id = made.deposit.deposit_id
    today = china_day(time.time())
    for what in (
        crafted(me, entry(whom, 5), deposit_id=deposit_id),
        crafted(me, entry(whom, LIMIT), deposit_id=deposit_id),
        crafted(me, entry(other, 5), deposit_id=deposit_id),
        crafted(me, entry(whom, 5, day=today - 1), deposit_id=deposit_id),
        crafted(me, entry(whom, 5, product="term_life"), deposit_id=deposit_id),
        crafted(me, entry(whom, -5, kind=CANCELLATION, earlier=deposit_id), deposit_id=deposit_id),
    ):
        sent(stage, me, [what]).assert_refused_by_holders("deposit-reused", public="deposit-reused")
    # Envelopes of the first beside others: who has the first repeats its answer, who gets another refuses it.
    mixed = (*made.deposit.envelopes[:2], *what.deposit.envelopes[2:])
    done = sent(stage, me, [replace(made, deposit=replace(made.deposit, envelopes=mixed))])
    assert (done.codes, done.reasons, done.changed) == ({None, "unequal-fields"}, [REFUSED], {})
    stage.expect(whom, held=HELD + 5)
    stage.expect(other)


def test_two_deposits_that_race_under_one_id_are_made_once_or_not_at_all(stage: Stage) -> None:
    for _ in range(4):  # of other persons: what a race leaves pending is in the way of what comes for the same one
        me, whom = depositing(stage)
        deposit_id = secrets.token_bytes(16)
        made = [crafted(me, entry(whom, amount), deposit_id=deposit_id) for amount in (1, 2)]
        amounts = raced(me, dict(zip((1, 2), made, strict=True)), times=2)
        assert len(amounts) <= 1
        stage.expect(whom, held=HELD + sum(amounts))


def raced(me: Insider, made: dict[int, MadeDeposit], *, times: int = 1) -> set[int]:
    """Send deposits at once, each so many times; return the amounts of those that are made."""

    def post(signed: SignedBatch) -> BatchOutcome:
        try:
            return me.deposit(signed)
        finally:
            me._peers.close()  # this thread's connection

    sending = list(made.items()) * times
    with ThreadPoolExecutor(len(sending)) as pool:
        outcomes = list(pool.map(post, [batch_of(me, [item]) for _, item in sending]))
    amounts = set()
    for (amount, item), outcome in zip(sending, outcomes, strict=True):
        (one,) = outcome.outcomes
        assert one.reason in {None, "deposit-reused", REFUSED, TOO_FEW}
        if is_made(me.manifest, item, read_receipts(me.party, item, one)):
            amounts.add(amount)
    return amounts


# --- different things to different holders -------------------------------------------------------------------------


def unequal(name: str) -> Change:
    def change(body: DepositEnvelope, _: int) -> DepositEnvelope:
        values = getattr(body, name)
        first = bytes(32) if name == "salts" else (values[0] + LIMIT) % RING
        return replace(body, **{name: (first, *values[1:])})

    return change


def reproved(me: Insider, deposit_id: bytes) -> Change:
    """Prove knowledge of another t for the same B: another pseudonym, with a proof that holds."""
    t = random_scalar(secrets.token_bytes)
    unblinder = group.multiply(t, me.manifest.blinding_key)

    def change(body: DepositEnvelope, _: int) -> DepositEnvelope:
        proof = proof_of(me, t, body.blinded, unblinder, deposit_context(me.party.id, deposit_id))
        return replace(body, unblinder=unblinder, proof=proof)

    return change


def test_holders_that_are_told_different_things_commit_nothing(stage: Stage) -> None:
    me, whom = depositing(stage)
    today, deposit_id = china_day(time.time()), secrets.token_bytes(16)
    lies: dict[str, tuple[Change, str | None]] = {
        "amounts": (unequal("amounts"), None),
        "counts": (unequal("counts"), "bad-sharing"),
        "salts": (unequal("salts"), None),
        "another person": (reproved(me, deposit_id), None),
        "product": (facts(product="term_life"), None),
        "day": (facts(day=today - 1), None),
        "kind and earlier": (facts(kind=AMENDMENT, earlier=bytes(16)), None),
        "kind": (facts(kind=CANCELLATION), "bad-kind"),
        "earlier": (facts(earlier=bytes(16)), "bad-kind"),
        "deposit id": (facts(deposit_id=bytes(16)), "unequal-fields"),
        "depositor": (facts(depositor="insurer-01" if me.party.id != "insurer-01" else "insurer-02"), "unequal-fields"),
        "shard": (facts(shard=(stage.shard(whom) + 1) % SHARDS), "unequal-fields"),
        "epoch": (facts(epoch=2), "unequal-fields"),
        "manifest": (facts(manifest_hash=bytes(32)), "unequal-fields"),
        "excluded slot": (facts(excluded=6), "unequal-fields"),
    }
    for what, (lie, code) in lies.items():
        drawn = deposit_id if what == "another person" else secrets.token_bytes(16)
        plain = crafted(me, entry(whom, LIMIT), deposit_id=drawn)
        slot = next(n for n in range(6) if n != plain.excluded)
        done = sent(stage, me, [crafted(me, entry(whom, LIMIT), lie, slots=(slot,), deposit_id=drawn)])
        done.assert_refused_together(code)
        liars = {member for member, answers in done.said.items() if answers != [(None,)]}
        assert (what, liars) == (what, set() if code is None else {me.manifest.committee(plain.shard).slots[slot]})
    stage.expect(whom)


def test_what_every_holder_is_told_alike_but_does_not_fit_is_refused_by_every_holder(stage: Stage) -> None:
    me, whom = depositing(stage, inside=True)
    other = stage.neighbour(whom)
    theirs = group.multiply_base(random_scalar(secrets.token_bytes))
    cases: list[tuple[Change, str]] = [
        (facts(epoch=0), "unequal-fields"),
        (facts(epoch=2), "unequal-fields"),
        (facts(manifest_hash=bytes(32)), "unequal-fields"),
        (facts(shard=(stage.shard(whom) + 1) % SHARDS), "unequal-fields"),
        (facts(excluded=0), "unequal-fields"),
        (facts(product="fire"), "unknown-product"),
        (facts(product="ACCIDENT"), "unknown-product"),
        (facts(kind=AMENDMENT), "bad-kind"),
        (facts(kind=CANCELLATION), "bad-kind"),
        (facts(earlier=secrets.token_bytes(16)), "bad-kind"),
        (lambda body, _: replace(body, blinded=theirs), "unequal-fields"),
        (lambda body, _: replace(body, unblinder=theirs), "bad-unblinder"),
        (lambda body, _: replace(body, proof=replace(body.proof, challenge=bytes(32))), "bad-unblinder"),
        (lambda body, _: replace(body, amounts=body.amounts[:-1]), "bad-sharing"),
        (lambda body, _: replace(body, counts=(*body.counts, 1)), "bad-sharing"),
        (lambda body, _: replace(body, counts=body.counts[:-1]), "bad-sharing"),
        (lambda body, _: replace(body, amounts=(), counts=(), salts=()), "bad-sharing"),
    ]
    for change, code in cases:
        sent(stage, me, [crafted(me, entry(whom, LIMIT), change)]).assert_refused_by_holders(code)
    # B of one person and D of another, with the proof that was made for that D.
    deposit_id = secrets.token_bytes(16)
    bodies: dict[int, DepositEnvelope] = {}
    crafted(me, entry(other), lambda body, slot: bodies.setdefault(slot, body), deposit_id=deposit_id)
    swap: Change = lambda body, slot: replace(body, unblinder=bodies[slot].unblinder, proof=bodies[slot].proof)  # noqa: E731  a change is one expression
    sent(stage, me, [crafted(me, entry(whom), swap, deposit_id=deposit_id)]).assert_refused_by_holders("bad-unblinder")
    # With a proof of its own for another D the deposit is made, under a pseudonym that is nobody's.
    nobody = sent(stage, me, [crafted(me, entry(whom, LIMIT), reproved(me, deposit_id), deposit_id=deposit_id)])
    nobody.assert_made()
    stage.expect(whom, other)


def test_points_scalars_days_and_padding_that_cannot_be_are_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, whom = depositing(stage)
    bad_points = [data for _, data in BAD_ENCODINGS]
    unreduced = (ORDER + 1).to_bytes(32, "little")
    with monkeypatch.context() as permissive:
        for codec in (POINT, SCALAR):
            permissive.setattr(codec, "_check", None)
        permissive.setattr(DAY, "_least", 0)
        permissive.setattr(DAY, "_most", 2**32 - 1)
        made_anew(permissive)
        changes: list[Change] = [
            *(lambda body, _, p=point: replace(body, unblinder=p) for point in (*bad_points[::7], bytes(32))),
            lambda body, _: replace(body, blinded=bytes(32)),
            lambda body, _: replace(body, proof=replace(body.proof, challenge=unreduced)),
            lambda body, _: replace(body, proof=replace(body.proof, response=unreduced)),
            facts(day=0),
            facts(day=2**32 - 1),
        ]
        made = [crafted(me, entry(whom), change) for change in changes]
        good = crafted(me, entry(whom))
        blinded = [
            batch_of(me, [replace(good, deposit=replace(good.deposit, blinded=point))])
            for point in (*bad_points, bytes(32))
        ]
    for item in made:
        sent(stage, me, [item]).assert_refused_by_holders("malformed")
    before = stage.stored()
    for signed in blinded:
        with pytest.raises(ProtocolError, match="malformed"):
            me.deposit(signed)
    assert stage.stored() == before
    # Sealed as they are, without padding, with a byte more, or empty.
    for bend in (
        lambda _, body: deposit._unpad(body),
        lambda _, body: body + b"!",
        lambda *_: b"",
        lambda *_: bytes(900),
    ):
        item = make_deposit(Bending(me.party, bend), entry(whom), secrets.token_bytes(16), secrets.token_bytes)  # type: ignore[arg-type]  stands for a Party
        sent(stage, me, [item]).assert_refused_by_holders("malformed")
    stage.expect(whom)


# --- the batch -----------------------------------------------------------------------------------------------------


def test_a_batch_that_is_not_its_signers_not_fresh_or_not_in_shape_is_refused_by_the_service(stage: Stage) -> None:
    me, whom = depositing(stage, inside=True)
    shard = stage.shard(whom)
    made, other = crafted(me, entry(whom)), stage.outsider(shard)
    one, own = made.deposit, made.excluded
    assert stage.holders(shard)[own] == int(me.party.id[-2:])  # a depositor in the committee excludes its own slot
    theirs = batch_of(other, [made])
    for changes, code in (
        ({"depositor": other.party.id}, "bad-signature"),
        ({"depositor": "insurer-99"}, "unknown-member"),
        ({"manifest_hash": bytes(32)}, "other-manifest"),
        ({"issued_at": int(time.time()) - 62}, "stale"),
        ({"issued_at": int(time.time()) + 90}, "stale"),
        ({"issued_at": 0}, "stale"),
        ({"issued_at": 2**64 - 1}, "stale"),
        ({"shard": SHARDS}, "unknown-shard"),
        ({"excluded": (own + 1) % 6}, "bad-excluded"),
        ({"excluded": 6}, "bad-batch"),
        ({"deposits": (one, one)}, "bad-batch"),
        ({"deposits": (one, crafted(me, entry(whom), deposit_id=one.deposit_id).deposit)}, "bad-batch"),
        ({"deposits": (replace(one, envelopes=one.envelopes[1:]),)}, "bad-batch"),
        ({"deposits": (replace(one, envelopes=(*one.envelopes, one.envelopes[0])),)}, "bad-batch"),
        ({"deposits": (replace(one, envelopes=()),)}, "bad-batch"),
    ):
        sent(stage, me, [made], **changes).assert_refused(code)
    for signed, code in (
        (replace(theirs, batch=batch_of(me, [made]).batch), "bad-signature"),
        (replace(batch_of(me, [made]), signature=bytes(64)), "bad-signature"),
        (replace(batch_of(me, [made]), batch=b""), "malformed"),
    ):
        sent(stage, me, [made], signed).assert_refused(code)
    # Under the name of a member outside the committee, which signs it, its own slot is not the one to exclude.
    drawn = iter(lambda: crafted(me, entry(whom)), None)
    foreign = next(item for item in drawn if excluded_by(other, item) != own)
    sent(stage, other, [foreign], batch_of(other, [foreign])).assert_refused("bad-excluded")
    sent(stage, me, [made]).assert_made()
    stage.expect(whom, held=HELD + 1)


def excluded_by(me: Insider, made: MadeDeposit) -> int:
    own, size = me.manifest.slot_of_group(made.shard, me.party.id), len(me.manifest.committee(made.shard).slots)
    return excluded_slot(made.shard, own, size, made.deposit.deposit_id)


def test_a_batch_of_no_deposits_or_of_more_than_there_may_be_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, whom = depositing(stage, inside=True)
    persons = list(islice(strangers(stage, stage.shard(whom)), MAX_DEPOSITS))
    made = [crafted(me, entry(person)) for person in persons]
    one = made[0].deposit
    with monkeypatch.context() as permissive:
        count = dict(DepositBatch._wire[1])["deposits"]._count
        permissive.setattr(count, "_least", 0)
        permissive.setattr(count, "_most", 4096)
        made_anew(permissive)
        more = (*(item.deposit for item in made), replace(one, deposit_id=bytes(16)))
        batches = [batch_of(me, made, deposits=deposits) for deposits in ((), more)]
    for signed in batches:
        sent(stage, me, made, signed).assert_refused("malformed")
    # As many as there may be are taken; a busy machine may not have done with them in time.
    assert {one.reason for one in me.deposit(batch_of(me, made)).outcomes} <= {None, TOO_FEW}
    for at in range(0, MAX_DEPOSITS, 32):
        sent(stage, me, made[at : at + 32]).assert_made()
    stage.expect(whom)
    stage.expect(persons[0], persons[-1], held=1)


def test_a_deposit_of_another_shard_or_with_envelopes_swapped_is_refused_and_those_beside_it_are_made(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, whom = depositing(stage, inside=True)
    shard = stage.shard(whom)
    good = crafted(me, entry(whom, 5))
    elsewhere = []
    for other in (n for n in range(SHARDS) if n != shard):
        with monkeypatch.context() as attackers:
            attackers.setattr(deposit, "shard_of_person", lambda *_, other=other: other)
            elsewhere.append(crafted(me, entry(whom, LIMIT)))
    turned = crafted(me, entry(whom, LIMIT))
    envelopes = turned.deposit.envelopes
    turned = replace(turned, deposit=replace(turned.deposit, envelopes=(*envelopes[1:], envelopes[0])))
    bad = [*elsewhere, turned]
    place = {"shard": shard, "excluded": good.excluded}
    done = sent(stage, me, [good, *(replace(item, **place) for item in bad)])
    assert done.complete == [True] + [False] * len(bad)
    assert done.reasons == [None] + [REFUSED] * len(bad)
    assert done.codes == {None, "bad-envelope", "unequal-fields"}
    for answers in done.said.values():
        (first, *others), *alone = answers
        assert first is None
        assert None not in others
        assert set(alone) == {(None,)}  # nothing was garbled beside what was refused: it comes again without that
    stage.expect(whom, held=HELD + 5)


# --- corrections ---------------------------------------------------------------------------------------------------


def test_a_correction_of_another_person_product_day_or_slot_or_of_a_correction_is_refused(stage: Stage) -> None:
    me, whom = depositing(stage)
    other = stage.neighbour(whom)
    today = china_day(time.time())
    issue = crafted(me, entry(whom, 100))
    sent(stage, me, [issue]).assert_made()
    earlier = issue.deposit.deposit_id
    good = entry(whom, 1, kind=AMENDMENT, earlier=earlier)
    unfit = (
        {"identity": other},
        {"product": "term_life"},
        {"day": today - 1},
        {"day": today + 1},
        {"identity": other, "kind": CANCELLATION},
    )
    for changes in unfit:
        sent(stage, me, [crafted(me, replace(good, **changes))]).assert_refused_by_holders("wrong-earlier")
    drawn = (crafted(me, good, deposit_id=secrets.token_bytes(16)) for _ in range(1000))
    elsewhere = next(item for item in drawn if item.excluded != issue.excluded)
    sent(stage, me, [elsewhere]).assert_refused_together("wrong-earlier")
    fitting = crafted(me, good)
    sent(stage, me, [fitting]).assert_made()
    again = replace(good, earlier=fitting.deposit.deposit_id)
    sent(stage, me, [crafted(me, again)]).assert_refused_by_holders("wrong-earlier")
    stage.expect(whom, held=HELD + 101)
    stage.expect(other)


def test_a_correction_of_anothers_deposit_or_of_itself_or_of_nothing_known_never_counts(stage: Stage) -> None:
    # A holder that does not know what is corrected keeps it, as the service may have held the issue back from it; and
    # the range check finds no issue. Each of another person, as what is pending is in the way of what comes next.
    for number in range(4):
        me, whom = depositing(stage)
        other = stage.outsider(stage.shard(whom), 1)
        theirs = crafted(other, entry(whom, 100))
        sent(stage, other, [theirs]).assert_made()
        rows = rows_of(stage, other)
        itself = secrets.token_bytes(16)
        item, deposit_id = (
            (entry(whom, 1, kind=AMENDMENT, earlier=theirs.deposit.deposit_id), None),
            (entry(whom, 0, kind=CANCELLATION, earlier=theirs.deposit.deposit_id), None),
            (entry(whom, 10, kind=AMENDMENT, earlier=secrets.token_bytes(16)), None),
            (entry(whom, 1000, kind=AMENDMENT, earlier=itself), itself),
        )[number]
        fix = crafted(me, item, deposit_id=deposit_id)
        sent(stage, me, [fix]).assert_not_shown()
        assert sent(stage, me, [fix]).reasons == [REFUSED]
        assert rows_of(stage, other) == rows
        stage.expect(whom, held=HELD + 100)


def rows_of(stage: Stage, depositor: Insider) -> list[list[str]]:
    """Return what each member counts of a depositor."""
    return [stage.rows(number, "custody_row", "depositor = %s", depositor.party.id) for number in stage.members]


def test_a_deposit_in_a_shard_that_is_not_the_persons_counts_for_nobody(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, whom = depositing(stage)
    other = next(person for person in stage.pool if stage.shard(person) != stage.shard(whom))
    with monkeypatch.context() as attackers:
        for module in (deposit, check):
            attackers.setattr(module, "shard_of_person", lambda *_: stage.shard(other))
        sent(stage, me, [crafted(me, entry(whom, LIMIT))]).assert_made()
        wait_for_ticks()
        # It shows to whoever asks in that shard, which no honest member does for this person.
        assert tried(stage, me, lambda: forged(me, [question(me, whom, 1)])).verdicts == [EXCEEDS]
    assert tried(stage, me, lambda: forged(me, [question(me, whom)])).verdicts == [WITHIN]
    stage.expect(whom, other)


# --- what comes back -----------------------------------------------------------------------------------------------


def shape_of(me: Insider, signed: SignedBatch) -> tuple[object, ...]:
    """Send a batch; return all that comes back but MACs, and of ticks only how many a deposit has."""
    reply = me.post("/v1/deposits", encode(signed), seconds=15.0)
    outcome = message_of(BatchOutcome, reply)
    assert isinstance(reply, Reply)
    ticks = tuple(len({receipt.tick for receipt in one.receipts}) for one in outcome.outcomes)
    bare = tuple(
        replace(one, receipts=tuple(replace(item, tick=0, mac=bytes(32)) for item in one.receipts))
        for one in outcome.outcomes
    )
    return len(reply.body), reply.status, reply.content_type, encode(replace(outcome, outcomes=bare)), ticks


def test_what_comes_back_is_the_same_bytes_but_macs_and_tick_whoever_is_insured_and_for_whatever(stage: Stage) -> None:
    me, whom = depositing(stage, inside=True)
    shard, cap = stage.shard(whom), me.manifest.terms.deposit_cap
    nobody, another = islice(strangers(stage, shard), 2)
    stories = []
    for person, amount, product in ((whom, 1, "accident"), (nobody, 0, "accident"), (another, cap, "term_life")):
        item = entry(person, amount, product=product)
        issue = crafted(me, item)
        earlier = issue.deposit.deposit_id
        slot = next(n for n in range(6) if n != issue.excluded)
        steps = [
            [issue],
            [issue],
            [crafted(me, item, deposit_id=earlier)],
            [crafted(me, replace(item, amount=0, kind=AMENDMENT, earlier=earlier))],
            [crafted(me, replace(item, amount=0, kind=AMENDMENT, earlier=earlier, day=item.day - 1))],
            [crafted(me, item, reproved(me, bytes(16)))],
            [crafted(me, replace(item, amount=-1), valued(amounts=-1))],
            [crafted(me, item, unequal("amounts"), slots=(slot,))],
            [crafted(me, item, unequal("salts"), slots=(slot,)), crafted(me, item), issue],
        ]
        stories.append([shape_of(me, batch_of(me, made)) for made in steps])
    assert stories[0] == stories[1] == stories[2]
    assert len(set(stories[0])) == 4  # made, refused, known, and a batch with all of these differ among themselves


# --- amounts that erase or inflate what others hold: range checks ----------------------------------------------------


@pytest.mark.parametrize("amount", [-1, -HELD, 1 - RING // 2, RING // 2, RING - HELD, "the cap and a fen more"])
def test_a_negative_or_huge_deposit_is_kept_pending_and_never_counts(stage: Stage, amount: int | str) -> None:
    me, whom = depositing(stage)
    value = me.manifest.terms.deposit_cap + 1 if isinstance(amount, str) else amount % RING
    bad = crafted(me, entry(whom), valued(amounts=value))
    sent(stage, me, [bad]).assert_not_shown()
    assert sent(stage, me, [bad]).reasons == [REFUSED]  # nor when it comes again
    stage.expect(whom)


def test_a_forged_count_is_refused_by_every_holder(stage: Stage) -> None:
    me, whom = depositing(stage)
    for count in (0, 1, -1, 2, -3, RING // 2):  # even the true one, where it is not shared as all do it
        lie = crafted(me, entry(whom, 5), valued(counts=count % RING))
        sent(stage, me, [lie]).assert_refused_by_holders("bad-sharing")
    issue = crafted(me, entry(whom, 5))
    sent(stage, me, [issue]).assert_made()
    wrong = crafted(me, entry(whom, -5, kind=AMENDMENT, earlier=issue.deposit.deposit_id), facts(kind=CANCELLATION))
    sent(stage, me, [wrong]).assert_refused_together("bad-sharing")  # one holder has no share that bears the count
    stage.expect(whom, held=HELD + 5)


def test_a_correction_takes_off_no_more_than_is_there(stage: Stage) -> None:
    for lie, kind in ((-6, CANCELLATION), (-HELD, CANCELLATION), (-6, AMENDMENT), (RING // 2, AMENDMENT)):
        me, whom = depositing(stage)
        issues = [crafted(me, entry(whom, amount)) for amount in (5, 1000)]  # what is left of another policy is no help
        for issue in issues:
            sent(stage, me, [issue]).assert_made()
        fix = entry(whom, 0, kind=kind, earlier=issues[0].deposit.deposit_id)
        sent(stage, me, [crafted(me, fix, valued(amounts=lie % RING))]).assert_not_shown()
        stage.expect(whom, held=HELD + 1005)


def test_small_steps_reach_the_cap_and_no_further_and_what_is_cancelled_leaves_room(stage: Stage) -> None:
    me, neighbour = depositing(stage)
    cap, whom = me.manifest.terms.deposit_cap, next(strangers(stage, stage.shard(neighbour)))

    def made(item: Entry) -> bytes:
        policy = crafted(me, item)
        sent(stage, me, [policy]).assert_made()
        return policy.deposit.deposit_id

    first = made(entry(whom, cap // 2))
    made(entry(whom, cap // 2 - 1))
    made(entry(whom, 1))
    made(entry(whom, -cap // 2, kind=CANCELLATION, earlier=first))
    made(entry(whom, cap // 2))
    sent(stage, me, [crafted(me, entry(whom, 1))]).assert_not_shown()
    wait_for_ticks()  # it is more than any limit
    asker = int(stage.outsider(stage.shard(whom), 1).party.id[-2:])
    assert settled(stage.alliance, asker, whom, 0) == ("exceeds", None)


def test_a_policy_is_cancelled_once_and_of_two_that_come_at_once_none_stands(stage: Stage) -> None:
    me, whom = depositing(stage)
    issue = crafted(me, entry(whom, 5))
    sent(stage, me, [issue]).assert_made()
    off = entry(whom, -5, kind=CANCELLATION, earlier=issue.deposit.deposit_id)
    sent(stage, me, [crafted(me, off)]).assert_made()
    sent(stage, me, [crafted(me, replace(off, amount=0))]).assert_not_shown()
    stage.expect(whom)

    other = stage.neighbour(whom)
    both = [crafted(me, entry(other, amount)) for amount in (1, 2)]
    while both[1].excluded != both[0].excluded:
        both[1] = crafted(me, entry(other, 2))
    sent(stage, me, both).assert_not_shown()  # in one batch, each of which could stand by itself
    stage.expect(other)


def test_deposits_of_one_person_that_race_are_not_made_beside_each_other(stage: Stage) -> None:
    for _ in range(3):
        me, neighbour = depositing(stage)
        cap, whom = me.manifest.terms.deposit_cap, next(strangers(stage, stage.shard(neighbour)))
        amounts = raced(me, {amount: crafted(me, entry(whom, amount)) for amount in (cap - 1, cap - 2, cap - 3)})
        assert len(amounts) <= 1
        stage.expect(neighbour)


def test_a_correction_that_comes_before_its_issue_waits_for_one_that_it_fits(stage: Stage) -> None:
    me, whom = depositing(stage)
    other = stage.neighbour(whom)
    earlier = secrets.token_bytes(16)
    fix = crafted(me, entry(whom, 7, kind=AMENDMENT, earlier=earlier))
    sent(stage, me, [fix]).assert_not_shown()
    issue = crafted(me, entry(other, 5, product="accident"), deposit_id=earlier)
    assert issue.excluded == fix.excluded
    sent(stage, me, [issue]).assert_made()
    assert sent(stage, me, [fix]).reasons == [REFUSED]  # it is not of this person
    again = crafted(me, entry(whom, 7, kind=AMENDMENT, earlier=earlier))
    sent(stage, me, [again]).assert_refused_by_holders("wrong-earlier")
    stage.expect(whom)
    stage.expect(other, held=HELD + 5)


# Last in the file: what was committed against the rules would count by now.
def test_after_all_of_this_every_person_has_the_total_that_was_deposited_for_him(stage: Stage) -> None:
    assert stage.totals
    wait_for_ticks()
    for person, held in stage.totals.items():
        stage.assert_right(person, held=held)
    stage.assert_right(*stage.pool[:8])
