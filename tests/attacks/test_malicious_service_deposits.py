"""A malicious lookup service, live, with deposits and keys: each counts once and as made, or all are indeterminate."""

import contextlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request

import pytest
from answers import after_this_request
from insiders import Insider, service_replaced
from live import LiveAlliance, call, china_today, issue, wait_for_ticks, wait_until, write_policies
from malicious_service import (
    ABOVE,
    AT_LIMIT,
    EXCEEDS,
    POINT_OF_ITS_CHOICE,
    SECONDS,
    VOID,
    WITHIN,
    Attack,
    Attacker,
    Attempt,
    Batch,
    Scene,
    codes,
    evaluated_under_another_key,
    now_tick,
)
from psycopg.errors import DeadlockDetected
from werkzeug.wrappers import Response

from insurer_agent.agent import Agent
from protocol import comparison
from protocol.check import shard_of_person
from protocol.comparison import Disagreement
from protocol.custody import Kept
from protocol.deposit import (
    Decision,
    Entry,
    MadeDeposit,
    batch_outcome,
    draw_deposit_id,
    is_complete,
    make_deposit,
    read_receipts,
    sign_batch,
)
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.identity import DocumentType, Identity
from protocol.messages import (
    CANCELLATION,
    ISSUE,
    NEVER,
    BatchOutcome,
    CheckOutcome,
    CheckRequest,
    DepositBatch,
    DepositOutcome,
    KeyConfirmation,
    PrepareCall,
    Receipt,
    Relayed,
    SignedBatch,
)
from protocol.messages import Relay as RelayMessage
from service.relay import Relay
from transport import internal
from transport.internal import CHECK, CHECKS, COMMIT, COMMITTEE_KEY, CONTENT_TYPE, PREPARE

pytestmark = pytest.mark.alliance

MEMBERS, SHARDS = 7, 8
LIMIT = 5_000_000_000
HARMLESS, HELD_BACK, TWO_TICKS, UNPREPARED, OUTBOX, CORRECTED, KEYS, LOWERED = range(SHARDS)
"""Attacks that leave the holders of a shard unequal have a shard each."""


@dataclass
class Stage(Scene):
    """A scene with members whose hands the test plays; it draws persons of a shard as it needs them."""

    insiders: dict[int, Insider] | None = None
    numbers: Iterator[int] = itertools.count()  # noqa: RUF009  one count for all, so that no person comes twice

    def insider(self, number: int) -> Insider:
        assert self.insiders is not None
        return self.insiders[number]

    def keepers(self, shard: int) -> list[int]:
        """The members of a shard's committee, by slot."""
        return [int(member[-2:]) for member in self.insider(1).manifest.committee(shard).slots]

    def outsider(self, shard: int) -> int:
        (number,) = set(range(1, MEMBERS + 1)) - set(self.keepers(shard))
        return number

    def subject(self, shard: int) -> tuple[str, str]:
        """A person of the shard, unknown to all."""
        for number in self.numbers:
            subject = ("passport", f"E8{number:07d}")
            if shard_of_person(self.insider(1).party, identity(subject)) == shard:
                return subject
        raise AssertionError

    def make(
        self,
        depositor: int,
        subject: tuple[str, str],
        fen: int = LIMIT,
        not_before: int = 0,
        **changes: Any,  # noqa: ANN401  fields of an entry
    ) -> "Deposited":
        party = self.insider(depositor).party
        entry = replace(Entry(identity(subject), ISSUE, "accident", china_today().toordinal(), fen), **changes)
        made = make_deposit(
            party,
            entry,
            draw_deposit_id(party, entry.identity, entry.earlier, secrets.token_bytes),
            secrets.token_bytes,
            not_before=not_before,
        )
        return Deposited(self, depositor, subject, made)

    def counted(self, requester: int, subject: tuple[str, str], fen: int) -> None:
        """Assert that a person's total is exactly this, by the verdicts on both sides of the limit."""
        assert self.verdict((requester, subject), yuan(LIMIT - fen)) == WITHIN
        assert self.verdict((requester, subject), yuan(LIMIT - fen + 1)) == EXCEEDS


@dataclass(frozen=True)
class Deposited:
    """A deposit of an honest member, as it stands in its outbox."""

    stage: Stage
    depositor: int
    subject: tuple[str, str]
    made: MadeDeposit

    @property
    def requester(self) -> int:
        """A keeper of the shard that has not made the deposit."""
        return next(number for number in self.stage.keepers(self.made.shard)[::-1] if number != self.depositor)

    def signed(self, *others: "Deposited") -> SignedBatch:
        party = self.stage.insider(self.depositor).party
        return sign_batch(party, [self.made, *(other.made for other in others)], time.time())

    def taken(self, *others: "Deposited") -> Batch:
        return self.stage.service.take(self.signed(*others))

    def receipts(self, answers: dict[int, Any]) -> dict[int, Kept]:
        """Read what holders gave as the depositor does."""
        given = {slot: answer for slot, answer in answers.items() if not isinstance(answer, ProtocolError)}
        (outcome,) = batch_outcome([Decision(0, tuple(given), None)], given).outcomes
        return read_receipts(self.stage.insider(self.depositor).party, self.made, outcome)

    def complete(self, answers: dict[int, Any]) -> bool:
        return is_complete(self.stage.insider(self.depositor).manifest, self.made, self.receipts(answers))

    def committed(self, tick: int) -> Batch:
        """Have the holders prepare and commit it as the honest service does, but at a tick of the test's choice."""
        batch = self.taken()
        assert refusals(batch.prepare()) == [None] * len(batch.slots)
        assert self.complete(batch.commit(tick))
        return batch


def identity(subject: tuple[str, str]) -> Identity:
    return Identity(DocumentType(subject[0]), subject[1])


def yuan(fen: int) -> str:
    return f"{fen // 100}.{fen % 100:02d}"


def refusals(answers: dict[int, Any]) -> list[str | None]:
    """Return each holder's refusal of a call or of its first deposit, None where it confirmed."""
    return [
        answer.code if isinstance(answer, ProtocolError) else answer.answers[0].refusal for answer in answers.values()
    ]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("deposits")
    for member in range(1, MEMBERS + 1):
        write_policies(root / "policies", member, [])
    alliance = LiveAlliance(MEMBERS, root / "policies", root / "state", "--plain-http", "--shards", str(SHARDS))
    alliance.start()
    try:
        with contextlib.ExitStack() as opened, contextlib.ExitStack() as replaced:
            insiders = {number: opened.enter_context(Insider(alliance, number)) for number in range(1, MEMBERS + 1)}
            service = replaced.enter_context(service_replaced(alliance, Attacker))
            replaced.callback(service._custodians._peers.close)
            yield Stage(alliance, service, replaced.close, insiders=insiders)
    finally:
        alliance.stop()


# --- the first round -----------------------------------------------------------------------------------------------

Bend = Callable[[PrepareCall, int, Batch, Deposited], PrepareCall]
"""Told the honest call, its slot, the batch, and another deposit of the same depositor."""


def first(sent: PrepareCall, **changes: object) -> PrepareCall:
    return replace(sent, deposits=(replace(sent.deposits[0], **changes), *sent.deposits[1:]))


def evaluated_anew(sent: PrepareCall, claimed: Element | None = None) -> PrepareCall:
    points, proof = evaluated_under_another_key([item.blinded for item in sent.deposits], claimed)
    items = (replace(item, evaluated=point) for item, point in zip(sent.deposits, points, strict=True))
    return replace(sent, deposits=tuple(items), proof=proof)


def of_another_b(sent: PrepareCall, other: Batch) -> PrepareCall:
    """Put B, C and proof of another deposit, which hold, beside the envelope of this one."""
    theirs = other.evaluated
    blinded = theirs.batch.deposits[0].blinded
    return replace(first(sent, blinded=blinded, evaluated=theirs.evaluated[0]), proof=theirs.proof)


BENT_PREPARES: dict[str, tuple[Bend, str | None]] = {
    "nothing": (lambda sent, _s, _b, _o: sent, None),
    "C, a point of its choice": (
        lambda sent, _s, _b, _o: first(sent, evaluated=POINT_OF_ITS_CHOICE),
        "bad-evaluation",
    ),
    "C, of another deposit": (
        lambda sent, _s, _b, other: first(sent, evaluated=other.evaluated.evaluated[0]),
        "bad-evaluation",
    ),
    "C and proof, of another deposit": (
        lambda sent, _s, _b, other: replace(
            first(sent, evaluated=other.evaluated.evaluated[0]), proof=other.evaluated.proof
        ),
        "bad-evaluation",
    ),
    "proof, of another deposit": (
        lambda sent, _s, _b, other: replace(sent, proof=other.evaluated.proof),
        "bad-evaluation",
    ),
    "C under another key": (lambda sent, _s, _b, _o: evaluated_anew(sent), "bad-evaluation"),
    "C under another key, claimed for the true one": (
        lambda sent, _s, batch, _o: evaluated_anew(sent, batch.service._service.manifest.blinding_key),
        "bad-evaluation",
    ),
    "B, of another deposit, with its C and proof": (
        lambda sent, _s, _b, other: of_another_b(sent, other),
        "unequal-fields",
    ),
    "envelope, of another holder": (
        lambda sent, slot, batch, _o: first(sent, envelope=batch.call(after(batch, slot)).deposits[0].envelope),
        "bad-envelope",
    ),
    "envelope, of another deposit": (
        lambda sent, slot, _b, other: first(sent, envelope=other.call(slot).deposits[0].envelope),
        "bad-envelope",
    ),
    "deposit id": (lambda sent, _s, _b, _o: first(sent, deposit_id=bytes(16)), "bad-envelope"),
    "a shard that is none": (lambda sent, _s, _b, _o: replace(sent, shard=SHARDS), "unknown-shard"),
    "the last of all numbers for a shard": (lambda sent, _s, _b, _o: replace(sent, shard=2**32 - 1), "unknown-shard"),
    "manifest": (lambda sent, _s, _b, _o: replace(sent, manifest_hash=bytes(32)), "other-manifest"),
    "depositor, a stranger": (lambda sent, _s, _b, _o: replace(sent, depositor="insurer-99"), "unknown-member"),
    "A with the depositor's slot": (lambda sent, _s, batch, _o: ordered(sent, (0, *batch.slots[:3])), "bad-choice"),
    "A out of order": (lambda sent, _s, batch, _o: ordered(sent, batch.slots[3::-1]), "bad-choice"),
    "A with a slot twice": (
        lambda sent, _s, batch, _o: ordered(sent, (batch.slots[0], *batch.slots[:3])),
        "bad-choice",
    ),
    "A with a slot that is none": (lambda sent, _s, batch, _o: ordered(sent, (*batch.slots[:3], 6)), "bad-choice"),
    "a range check of a minute ago": (lambda sent, _s, _b, _o: at_time(sent, -62), "stale"),
    "a range check to come": (lambda sent, _s, _b, _o: at_time(sent, 62), "stale"),
}


def ordered(sent: PrepareCall, chosen: tuple[int, ...]) -> PrepareCall:
    assert sent.order is not None
    return replace(sent, order=replace(sent.order, chosen=chosen))


def at_time(sent: PrepareCall, seconds: int) -> PrepareCall:
    assert sent.order is not None
    return replace(sent, order=replace(sent.order, issued_at=int(time.time()) + seconds))


def after(batch: Batch, slot: int) -> int:
    """Return the holder after this one, in turn."""
    return batch.slots[(batch.slots.index(slot) + 1) % len(batch.slots)]


@pytest.mark.parametrize("what", BENT_PREPARES)
def test_a_deposit_that_the_service_bent_is_refused_by_every_holder_and_made_once_it_is_not(
    stage: Stage, what: str
) -> None:
    bend, code = BENT_PREPARES[what]
    depositor = stage.keepers(HARMLESS)[0]
    mine, other = (stage.make(depositor, stage.subject(HARMLESS)) for _ in range(2))
    batch, others = mine.taken(), other.taken()
    order = batch.order()
    calls = {slot: bend(batch.call(slot, order), slot, batch, others) for slot in batch.slots}
    assert refusals(batch.send_prepares(calls, order)) == [code] * 5
    # What was refused is not there to be committed.
    tick = now_tick() - 5
    assert (mine.receipts(batch.commit(tick)) == {}) == (code is not None)
    mine.committed(tick)
    stage.counted(mine.requester, mine.subject, LIMIT)
    stage.counted(mine.requester, other.subject, 0)


def test_a_deposit_filed_under_another_shard_member_or_excluded_slot_is_refused_by_all(stage: Stage) -> None:
    keepers = stage.keepers(HARMLESS)
    mine = stage.make(keepers[0], stage.subject(HARMLESS))
    batch = mine.taken()
    sent = {slot: batch.call(slot) for slot in batch.slots}

    elsewhere = next(shard for shard in range(1, SHARDS) if stage.outsider(shard) in keepers[1:])
    expected = []
    for slot in batch.slots:
        here = stage.keepers(elsewhere)
        if keepers[slot] not in here:
            expected.append("not-custodian")
        else:
            expected.append("bad-excluded" if here.index(keepers[slot]) == mine.made.excluded else "unequal-fields")
    filed = {slot: replace(item, shard=elsewhere) for slot, item in sent.items()}
    assert refusals(batch.send_prepares(filed)) == expected

    stranger = f"insurer-{stage.outsider(HARMLESS):02d}"
    told = {slot: replace(item, depositor=stranger) for slot, item in sent.items()}
    assert refusals(batch.send_prepares(told)) == ["bad-envelope"] * 5

    moved = {slot: replace(item, excluded=batch.slots[0]) for slot, item in sent.items()}
    assert refusals(batch.send_prepares(moved)) == ["bad-excluded"] + ["unequal-fields"] * 4

    assert mine.receipts(batch.commit(now_tick() - 5)) == {}
    stage.counted(mine.requester, mine.subject, 0)
    mine.committed(now_tick() - 5)
    stage.counted(mine.requester, mine.subject, LIMIT)


def test_an_envelope_sent_to_the_slot_that_a_deposit_excludes_is_refused_there(stage: Stage) -> None:
    own = stage.make(stage.keepers(HARMLESS)[0], stage.subject(HARMLESS))
    outside = stage.make(stage.outsider(HARMLESS), stage.subject(HARMLESS))
    # The depositor's own agent takes nothing of it in any case; any other excluded one has no key for a lie either.
    for mine, code in ((own, "bad-excluded"), (outside, "bad-envelope")):
        batch, excluded = mine.taken(), mine.made.excluded
        assert excluded not in batch.slots
        for slot in batch.slots:
            sent = batch.call(slot)
            assert refusals(batch.send_prepares({excluded: sent})) == ["bad-excluded"]
        lied = replace(batch.call(batch.slots[0]), excluded=batch.slots[0])
        assert refusals(batch.send_prepares({excluded: lied})) == [code]
        assert codes(batch.commit(now_tick() - 5, [excluded])) == [None]
        assert mine.receipts(batch.commit(now_tick() - 5, [excluded])) == {}
        mine.committed(now_tick() - 5)
        stage.counted(stage.keepers(HARMLESS)[1], mine.subject, LIMIT)


def test_deposits_of_one_batch_do_not_stand_in_for_each_other(stage: Stage) -> None:
    depositor = stage.keepers(HARMLESS)[0]
    one, two = (stage.make(depositor, stage.subject(HARMLESS), fen) for fen in (LIMIT, 7))
    batch = one.taken(two)

    def swapped(sent: PrepareCall, *names: str) -> PrepareCall:
        a, b = sent.deposits
        from_b, from_a = ({name: getattr(item, name) for name in names} for item in (b, a))
        return replace(sent, deposits=(replace(a, **from_b), replace(b, **from_a)))

    for names, code in (
        (("evaluated",), "bad-evaluation"),
        (("envelope",), "bad-envelope"),
        (("deposit_id",), "bad-envelope"),
        (("blinded", "evaluated", "envelope"), "bad-evaluation"),
    ):
        calls = {slot: swapped(batch.call(slot), *names) for slot in batch.slots}
        assert refusals(batch.send_prepares(calls)) == [code] * 5, names
    one.committed(now_tick() - 5)
    two.committed(now_tick() - 5)
    stage.counted(one.requester, one.subject, LIMIT)
    stage.counted(one.requester, two.subject, 7)


# --- the second round ----------------------------------------------------------------------------------------------


def test_a_commit_that_names_a_future_tick_another_shard_or_another_depositor_changes_nothing(stage: Stage) -> None:
    mine = stage.make(stage.keepers(HARMLESS)[0], stage.subject(HARMLESS))
    batch = mine.taken()
    assert mine.receipts(batch.commit(now_tick() - 5)) == {}  # nothing is prepared yet
    assert refusals(batch.prepare()) == [None] * 5
    for tick in (now_tick() + 3, now_tick() + 86_400, 2**63 - 1):
        assert codes(batch.commit(tick)) == ["future-tick"] * 5
    good = batch.commit_call(now_tick() - 5)
    another = next(number for number in stage.keepers(HARMLESS) if number not in (mine.depositor, mine.requester))
    for wrong in (
        replace(good, shard=HELD_BACK),
        replace(good, depositor=f"insurer-{another:02d}"),
        replace(good, depositor="insurer-99"),
        replace(good, commits=(replace(good.commits[0], deposit_id=bytes(16)),)),
    ):
        answers = batch.send_commits(dict.fromkeys(batch.slots, wrong))
        given = [answer.receipts for answer in answers.values() if not isinstance(answer, ProtocolError)]
        assert set(given) <= {(None,)}
        assert set(codes(answers)) <= {None, "not-custodian", "unknown-member"}
    stage.counted(mine.requester, mine.subject, 0)
    assert mine.complete(batch.send_commits(dict.fromkeys(batch.slots, good)))
    stage.counted(mine.requester, mine.subject, LIMIT)


@pytest.mark.parametrize("shard", [SHARDS, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_commit_of_a_shard_that_is_none_is_refused_as_such(stage: Stage, shard: int) -> None:
    mine = stage.make(stage.keepers(HARMLESS)[0], stage.subject(HARMLESS))
    batch = mine.taken()
    assert refusals(batch.prepare()) == [None] * 5
    wrong = replace(batch.commit_call(now_tick() - 5), shard=shard)
    assert codes(batch.send_commits(dict.fromkeys(batch.slots, wrong))) == ["unknown-shard"] * 5


def test_prepares_and_commits_replayed_reordered_and_raced_count_once(stage: Stage) -> None:
    mine = stage.make(stage.keepers(HARMLESS)[0], stage.subject(HARMLESS))
    batch, tick = mine.taken(), now_tick() - 5
    assert mine.receipts(batch.commit(tick)) == {}
    assert refusals(batch.prepare()) == [None] * 5

    def raced(turn: int) -> None:
        try:
            for _ in range(3):
                assert refusals(batch.prepare()) == [None] * 5
                assert len(mine.receipts(batch.commit(tick + turn % 3))) == 5
        finally:
            stage.service._custodians._peers.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(raced, range(4)))
    # One call that names the deposit twice, at two ticks, in both orders; and the first tick of all again.
    for ticks in ((tick, tick - 3), (tick - 3, tick)):
        answers = batch.send_commits(dict.fromkeys(batch.slots, batch.commit_call(*ticks)))
        assert {receipt.tick for answer in answers.values() for receipt in answer.receipts[1:]} == {tick - 3}
    again = mine.receipts(batch.commit(tick + 2))
    assert {kept.tick for kept in again.values()} == {tick - 3}
    assert len(again) == 5
    for requester in stage.keepers(HARMLESS)[1:]:
        stage.counted(requester, mine.subject, LIMIT)


# --- a shard whose holders are left unequal ------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What the service sees of an attempt: what an alarm says, and the pairs that do not match."""

    alarm: tuple[tuple[int, ...], str] | None
    pairs: tuple[tuple[int, int], ...]


def choosing(stage: Stage, choose: Callable[[Attempt], tuple[int, ...]], seen: list[Seen]) -> Attack:
    """Return the attack that has four of its choice answer, and evaluates whether they agree or not."""

    def attack(request: CheckRequest) -> CheckOutcome:
        attempt = stage.service.begin(request)
        attempt = replace(attempt, chosen=choose(attempt))
        answers = attempt.answers()
        assert codes(answers) == [None] * 4
        alarm = None
        try:
            attempt.outcome(answers)
        except Disagreement as disagreement:
            alarm = (disagreement.slots, disagreement.what)
        ordered = [answers[slot].part for slot in attempt.chosen]
        unequal = tuple(
            comparison.GROUPS[place]
            for place, sent, vouched in comparison._groups(ordered)
            if comparison._voucher_digest(sent.labels, sent.stamp, place, 0) != vouched.digests
        )
        seen.append(Seen(alarm, unequal))
        return attempt.forced(answers)

    return attack


def candidates(attempt: Attempt) -> list[int]:
    return [entry.slot for entry in attempt.evaluation.request.signed.statement.envelopes]


def with_slot(slot: int) -> Callable[[Attempt], tuple[int, ...]]:
    return lambda attempt: tuple(sorted([slot, *(other for other in candidates(attempt) if other != slot)][:4]))


def without_slot(slot: int) -> Callable[[Attempt], tuple[int, ...]]:
    return lambda attempt: tuple(other for other in candidates(attempt) if other != slot)[:4]


def leaving_out(place: int, chosen: list[tuple[int, ...]]) -> Callable[[Attempt], tuple[int, ...]]:
    """Return the choice of all candidates but one, which adds to `chosen` what it chose."""

    def choose(attempt: Attempt) -> tuple[int, ...]:
        slots = candidates(attempt)
        chosen.append((*slots[:place], *slots[place + 1 :]))
        return chosen[-1]

    return choose


@pytest.mark.parametrize(
    ("shard", "told"), [(HELD_BACK, "prepared"), (UNPREPARED, "nothing")], ids=["held back", "never prepared"]
)
def test_a_commit_kept_from_one_custodian_makes_everyone_of_the_shard_indeterminate_alike_until_it_is_delivered(
    stage: Stage, shard: int, told: str
) -> None:
    depositor = stage.keepers(shard)[0]
    known = stage.make(depositor, stage.subject(shard))
    known.committed(now_tick() - 5)
    mine, strangers = stage.make(depositor, stage.subject(shard)), [stage.subject(shard) for _ in range(3)]
    people = {mine.subject: LIMIT, known.subject: LIMIT} | dict.fromkeys(strangers, 0)
    batch, tick = mine.taken(), now_tick() - 5
    lagging, *others = batch.slots
    batch.prepare(batch.slots if told == "prepared" else others)
    # The service commits without the agreement, or the answer, of one.
    assert set(mine.receipts(batch.commit(tick, others))) == set(others)

    evidence: set[Seen] = set()
    for subject, total in people.items():
        person, amounts = (mine.requester, subject), (yuan(LIMIT - total), yuan(LIMIT - total + 1))
        seen: list[Seen] = []
        for amount in amounts:
            assert stage.verdict(person, amount, choosing(stage, with_slot(lagging), seen)) == VOID
        # An honest relay finds the four that agree.
        stage.counted(mine.requester, subject, total)
        rest: list[Seen] = []
        agreed = [stage.verdict(person, amount, choosing(stage, without_slot(lagging), rest)) for amount in amounts]
        assert agreed == [WITHIN, EXCEEDS]
        assert set(rest) == {Seen(None, ())}
        # Whoever is asked about, and whatever the verdict were, the service sees the same.
        assert set(seen) == {Seen(((lagging,), "shares or stamps"), seen[0].pairs)}
        evidence |= set(seen)
    assert len(evidence) == 1

    late = [lagging]
    assert refusals(batch.prepare(late)) == [None]
    assert set(mine.receipts(batch.commit(tick, late))) == {lagging}
    for subject, total in people.items():
        again: list[Seen] = []
        person, amounts = (mine.requester, subject), (yuan(LIMIT - total), yuan(LIMIT - total + 1))
        told_now = [stage.verdict(person, amount, choosing(stage, with_slot(lagging), again)) for amount in amounts]
        assert told_now == [WITHIN, EXCEEDS]
        assert set(again) == {Seen(None, ())}


def test_a_commit_split_between_two_ticks_voids_every_a_that_is_not_of_one_tick_until_the_outbox_has_repeated_it(
    stage: Stage,
) -> None:
    mine = stage.make(stage.keepers(TWO_TICKS)[0], stage.subject(TWO_TICKS))
    batch, tick = mine.taken(), now_tick() - 5
    assert refusals(batch.prepare()) == [None] * 5
    early, late = batch.slots[:2], batch.slots[2:]
    given = batch.commit(tick - 1, early) | batch.commit(tick, late)
    assert len(mine.receipts(given)) == 5
    assert not mine.complete(given)  # so the outbox repeats it

    def every_a(subject: tuple[str, str]) -> list[tuple[bool, tuple[str, str | None]]]:
        """Return for each A whether its holders were told one tick, and what comes of a question above the limit."""
        told = []
        for place in range(5):
            chosen: list[tuple[int, ...]] = []
            answer = stage.verdict((mine.requester, subject), ABOVE, choosing(stage, leaving_out(place, chosen), []))
            told.append((len({slot in early for slot in chosen[-1] if slot in batch.slots}) == 1, answer))
        return told

    stranger = stage.subject(TWO_TICKS)
    for subject, truth in ((mine.subject, EXCEEDS), (stranger, WITHIN)):
        told = every_a(subject)
        assert {answer for alike, answer in told if not alike} == {VOID}
        assert {answer for alike, answer in told if alike} <= {truth}
    outcome = stage.service.deposit(mine.signed()).outcomes[0]  # the honest relay, called by the outbox once more
    states = read_receipts(stage.insider(mine.depositor).party, mine.made, outcome)
    assert {kept.tick for kept in states.values()} == {tick - 1}
    assert len(states) == 5
    for subject, truth in ((mine.subject, EXCEEDS), (stranger, WITHIN)):
        assert {answer for _, answer in every_a(subject)} == {truth}


def test_a_deposit_whose_tick_the_service_lowers_at_each_holder_apart_voids_all_of_the_shard_until_all_have_the_lowest(
    stage: Stage,
) -> None:
    # It is complete, so no outbox repeats it: the shard stays void for as long as nobody tells all holders one tick.
    mine, stranger = stage.make(stage.keepers(LOWERED)[0], stage.subject(LOWERED)), stage.subject(LOWERED)
    tick = now_tick() - 5
    batch = mine.committed(tick)
    for less, slot in enumerate(batch.slots, start=1):
        assert mine.receipts(batch.commit(tick - less, [slot]))[slot].tick == tick - less
    for subject in (mine.subject, stranger):
        for amount in (AT_LIMIT, ABOVE):
            for place in range(5):
                attack = choosing(stage, leaving_out(place, []), [])
                assert stage.verdict((mine.requester, subject), amount, attack) == VOID
    assert mine.complete(batch.commit(tick - 5))
    stage.counted(mine.requester, mine.subject, LIMIT)
    stage.counted(mine.requester, stranger, 0)


def test_a_cancellation_that_the_service_commits_at_an_earlier_tick_than_its_issue_never_counts_without_it(
    stage: Stage,
) -> None:
    # A person has 50 million and a fen from one member. Another one's policy of 50 million is issued and cancelled.
    first_keeper, second_keeper = stage.keepers(CORRECTED)[:2]
    subject = stage.subject(CORRECTED)
    tick = now_tick() - 5
    stage.make(first_keeper, subject, LIMIT + 1).committed(tick - 10)
    issued = stage.make(second_keeper, subject, LIMIT)
    issued.committed(tick)
    earlier = issued.made.deposit.deposit_id
    cancelled = stage.make(second_keeper, subject, -LIMIT, tick, kind=CANCELLATION, earlier=earlier)
    batch = cancelled.taken()
    assert refusals(batch.prepare()) == [None] * 5
    assert cancelled.receipts(batch.commit(tick - 5)) == {}

    def between(request: CheckRequest) -> CheckOutcome:
        attempt = replace(stage.service.begin(request), tick=tick - 1)  # before the issue
        answers = attempt.answers()
        assert codes(answers) == [None] * 4
        return attempt.forced(answers)

    person = (cancelled.requester, subject)
    assert stage.verdict(person, AT_LIMIT) == EXCEEDS
    assert stage.verdict(person, AT_LIMIT, between) == EXCEEDS
    assert cancelled.complete(batch.commit(tick))
    assert cancelled.receipts(batch.commit(tick - 1)) == {}  # nor is it lowered below its issue's
    assert stage.verdict(person, AT_LIMIT, between) == EXCEEDS


# --- the outbox of a real agent ------------------------------------------------------------------------------------


def with_receipts(*receipts: Receipt, reason: str | None = None) -> DepositOutcome:
    return DepositOutcome(receipts=receipts, reason=reason)


LIES: dict[str, Callable[[tuple[Receipt, ...], tuple[Receipt, ...]], DepositOutcome]] = {
    # Told the true receipts of a deposit, and those of another one of the same member.
    "refused": lambda _t, _o: with_receipts(reason="refused"),
    "given up, without a word of the holders": lambda _t, _o: with_receipts(reason="deposit-abandoned"),
    "known under another envelope": lambda _t, _o: with_receipts(reason="deposit-reused"),
    "receipts of another deposit": lambda _t, other: with_receipts(*other),
    "receipts of its own making": lambda true, _: with_receipts(*(replace(item, mac=bytes(32)) for item in true)),
    "receipts of another tick": lambda true, _: with_receipts(*(replace(item, tick=item.tick - 1) for item in true)),
    "receipts that say never": lambda true, _: with_receipts(*(replace(item, state=NEVER, tick=0) for item in true)),
    "receipts under each other's slots": lambda true, _: with_receipts(
        *(replace(one, slot=two.slot) for one, two in zip(true, (*true[1:], true[0]), strict=True))
    ),
    "one receipt five times": lambda true, _: with_receipts(*true[:1] * 5),
    "three receipts": lambda true, _: with_receipts(*true[:3]),
}


def unsigned(outcome: BatchOutcome) -> BatchOutcome:
    def drop(response: Response) -> Response:
        del response.headers[internal.SIGNATURE_HEADER]
        return response

    after_this_request(drop)
    return outcome


UNSTORABLE = "a reason that no database takes"
WHOLE_LIES: dict[str, Callable[[BatchOutcome], BatchOutcome]] = {
    "no outcomes": lambda true: replace(true, outcomes=()),
    "an outcome more": lambda true: replace(true, outcomes=(*true.outcomes, true.outcomes[0])),
    "the truth, unsigned": unsigned,
    UNSTORABLE: lambda true: replace(true, outcomes=tuple(with_receipts(reason="\x00") for _ in true.outcomes)),
}


@dataclass
class Liar:
    """A service that commits what the outbox sends as it should, and says something else."""

    stage: Stage
    other: tuple[Receipt, ...]
    whole: str | None
    sent: dict[bytes, list[bytes]]
    """By deposit id, what the outbox has sent, each time."""
    told: list[str]

    def deposit(self, signed: SignedBatch) -> BatchOutcome:
        for item in decode(DepositBatch, signed.batch).deposits:
            self.sent.setdefault(item.deposit_id, []).append(encode(item))
        true = Relay.deposit(self.stage.service, signed)
        if self.whole is not None:
            self.told.append(self.whole)
            return WHOLE_LIES[self.whole](true)
        lies = list(itertools.islice(itertools.cycle(LIES), len(true.outcomes)))
        self.told.extend(lies)
        outcomes = zip(lies, true.outcomes, strict=True)
        return replace(true, outcomes=tuple(LIES[what](outcome.receipts, self.other) for what, outcome in outcomes))

    def has_told(self, depositor: int, *lies: str, times: int = 2) -> bool:
        """Tell whether each lie was told that often; what is told twice was taken in once."""
        hurry(self.stage, depositor)
        return all(self.told.count(what) >= times for what in lies)


def hurry(stage: Stage, depositor: int) -> None:
    """Have an outbox not wait for as long as it would before it repeats what is not complete."""
    # The agent locks rows in another order; where the server ends this, it is done again by whoever waits.
    with contextlib.suppress(DeadlockDetected), stage.alliance.database(depositor) as connection:
        connection.execute("UPDATE deposit SET next_attempt_at = now() WHERE completed_at IS NULL")


def backlog(stage: Stage, depositor: int) -> tuple[int, int]:
    """Return how many deposits are unmade and how many incomplete, as the agent says."""
    status = stage.alliance.request(depositor, "GET", "/v1/status").body
    return status["deposits_unmade"], status["deposits_incomplete"]


def delivered(stage: Stage, depositor: int) -> bool:
    hurry(stage, depositor)
    return backlog(stage, depositor) == (0, 0)


def test_whatever_the_service_says_of_deposits_that_it_committed_the_outbox_repeats_them_and_each_counts_once(
    stage: Stage, tmp_path: Path
) -> None:
    depositor, requester = stage.keepers(OUTBOX)[:2]
    other = stage.service.deposit(stage.make(depositor, stage.subject(OUTBOX), 7).signed()).outcomes[0].receipts
    assert len(other) == 5
    subjects = [stage.subject(OUTBOX) for _ in LIES]
    rows = [issue(f"P-{number}", subject, "50000000.00") for number, subject in enumerate(subjects)]
    liar = Liar(stage, other, None, {}, [])
    stage.service.deposit_attack = liar.deposit
    try:
        assert stage.alliance.agent(depositor, "import", str(write_policies(tmp_path, depositor, rows))).returncode == 0
        wait_until(lambda: liar.has_told(depositor, *LIES))
        assert backlog(stage, depositor) == (len(LIES), 0)
        for what in WHOLE_LIES:
            liar.whole = what
            times = 1 if what == UNSTORABLE else 2  # the outbox rests for a second after this one
            wait_until(partial(liar.has_told, depositor, what, times=times))
            assert backlog(stage, depositor) == (len(LIES), 0), what
    finally:
        stage.service.deposit_attack = None
    wait_until(lambda: delivered(stage, depositor))
    assert len(liar.sent) == len(LIES)
    for copies in liar.sent.values():
        assert len(copies) > len(WHOLE_LIES)
        assert len(set(copies)) == 1, "the same id, shares and envelopes, each time"
    wait_for_ticks()
    for subject in subjects:
        stage.counted(requester, subject, LIMIT)
    for number in stage.keepers(OUTBOX)[1:]:
        with stage.alliance.database(number) as connection:
            found = connection.execute("SELECT count(*) FROM custody_row WHERE shard = %s", (OUTBOX,)).fetchone()
        assert found == (1 + len(LIES),), "one row a deposit"


# --- committee keys ------------------------------------------------------------------------------------------------


@dataclass
class Keys:
    """The keys of a shard on their way from their maker, with whatever the service does to them."""

    stage: Stage
    maker: Agent
    sent: list[Relayed]
    """What the maker handed out in the first round, in order, with its recipients beside it."""
    recipients: list[str]
    confirmations: list[KeyConfirmation]
    codes: list[str]

    def deliver(self, recipient: str, sender: str, envelope: bytes) -> KeyConfirmation:
        message, line = Relayed(sender=sender, envelope=envelope), self.stage.service._custodians
        try:
            return line.call_member(recipient, COMMITTEE_KEY, message, KeyConfirmation, SECONDS)
        except ProtocolError as refusal:
            self.codes.append(refusal.code)
            raise

    def honestly(self, _place: int, relay: RelayMessage) -> KeyConfirmation:
        confirmation = self.deliver(relay.recipient, relay.sender, relay.envelope)
        self.recipients.append(relay.recipient)
        self.sent.append(Relayed(sender=relay.sender, envelope=relay.envelope))
        self.confirmations.append(confirmation)
        return confirmation

    def to_another_holder(self, _place: int, relay: RelayMessage) -> KeyConfirmation:
        other = next(item for item in self.recipients if item != relay.recipient)
        return self.deliver(other, relay.sender, relay.envelope)

    def as_from_another_member(self, _place: int, relay: RelayMessage) -> KeyConfirmation:
        other = next(item for item in self.recipients if item != relay.recipient)
        return self.deliver(relay.recipient, other, relay.envelope)

    def with_a_bit_flipped(self, _place: int, relay: RelayMessage) -> KeyConfirmation:
        return self.deliver(relay.recipient, relay.sender, relay.envelope[:-1] + bytes([relay.envelope[-1] ^ 1]))

    def another_key_of_that_holder(self, place: int, relay: RelayMessage) -> KeyConfirmation:
        places = [at for at, item in enumerate(self.recipients) if item == relay.recipient and at != place]
        return self.deliver(relay.recipient, relay.sender, self.sent[places[0]].envelope)

    def an_old_confirmation_of_another_key(self, place: int, relay: RelayMessage) -> KeyConfirmation:
        self.deliver(relay.recipient, relay.sender, relay.envelope)
        return self.confirmations[place - 1]

    def a_confirmation_of_its_own(self, _place: int, _relay: RelayMessage) -> KeyConfirmation:
        return KeyConfirmation(check_value=secrets.token_bytes(32))

    def nothing_at_all(self, _place: int, _relay: RelayMessage) -> KeyConfirmation:
        raise ProtocolError("timeout", "dropped")

    def round(self, attack: Callable[[int, RelayMessage], KeyConfirmation]) -> int:
        """Have the maker hand out its keys under an attack; return how many stay unconfirmed."""
        place = itertools.count()
        self.codes.clear()
        self.stage.service.relay_attack = lambda signed: attack(next(place), signed.relay)
        try:
            return self.maker.custodian.exchange_keys()
        finally:
            self.stage.service.relay_attack = None

    def forget_confirmations(self) -> None:
        with self.stage.alliance.database(self.stage.keepers(KEYS)[0]) as connection:
            connection.execute("UPDATE committee_key SET confirmed_by = '{}' WHERE shard = %s", (KEYS,))

    def held(self) -> list[Any]:
        """Return what every keeper of the shard holds, who confirmed it left out."""
        found = []
        for number in self.stage.keepers(KEYS):
            with self.stage.alliance.database(number) as connection:
                rows = connection.execute(
                    "SELECT omitted, made_at, sealed FROM committee_key WHERE shard = %s ORDER BY omitted", (KEYS,)
                )
                found.append(rows.fetchall())
        return found


@pytest.fixture
def keys(stage: Stage) -> Iterator[Keys]:
    maker = Agent.open(stage.alliance.member_state(stage.keepers(KEYS)[0]))
    try:
        yield Keys(stage, maker, [], [], [], [])
    finally:
        maker.custodian._peers.close()
        maker.database.close()


KEYS_HANDED_OUT = 5 + 5 * 4
"""By the lowest slot of six: the key of all to five, the keys without one other slot to four each."""


def test_committee_keys_that_the_service_swaps_bends_or_drops_are_not_confirmed_and_replace_none(keys: Keys) -> None:
    before = keys.held()
    keys.forget_confirmations()
    assert keys.round(keys.honestly) == 0
    assert len(keys.sent) == KEYS_HANDED_OUT
    for attack, code in (
        (keys.to_another_holder, "bad-envelope"),
        (keys.as_from_another_member, "bad-envelope"),
        (keys.with_a_bit_flipped, "bad-envelope"),
        (keys.another_key_of_that_holder, None),
        (keys.an_old_confirmation_of_another_key, None),
        (keys.a_confirmation_of_its_own, None),
        (keys.nothing_at_all, None),
    ):
        keys.forget_confirmations()
        assert keys.round(attack) == KEYS_HANDED_OUT, attack.__name__
        assert keys.codes == ([] if code is None else [code] * KEYS_HANDED_OUT), attack.__name__
        assert keys.held() == before
    assert keys.round(keys.honestly) == 0
    assert keys.held() == before


def test_a_custodian_whose_key_the_service_withholds_or_bends_is_not_ready_and_takes_it_when_it_comes(
    keys: Keys,
) -> None:
    stage, holder = keys.stage, keys.stage.keepers(KEYS)[3]
    keys.forget_confirmations()
    assert keys.round(keys.honestly) == 0
    with stage.alliance.database(holder) as connection:  # as if the key of all had never come
        connection.execute("DELETE FROM committee_key WHERE shard = %s AND omitted = -1", (KEYS,))
    for attack in (keys.nothing_at_all, keys.to_another_holder, keys.with_a_bit_flipped):
        keys.forget_confirmations()
        assert keys.round(attack) == KEYS_HANDED_OUT
        assert not stage.alliance.answers(holder)
    assert keys.round(keys.honestly) == 0
    assert stage.alliance.answers(holder)
    mine = stage.make(stage.outsider(KEYS), stage.subject(KEYS))
    mine.committed(now_tick() - 5)
    stage.counted(mine.requester, mine.subject, LIMIT)


# --- calls that the service did not make ---------------------------------------------------------------------------

Forge = Callable[[Stage, str, str, bytes], dict[str, str]]
"""Told the agent, the path and the body, return the headers."""


def by_the_service(stage: Stage, agent: str, path: str, body: bytes, *, at: float = 0) -> dict[str, str]:
    key = stage.service._service.keys.signing
    return internal.signed_headers(key, agent, path, body, time.time() + at)


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


TIME, SIGNATURE = internal.TIME_HEADER, internal.SIGNATURE_HEADER
FORGERIES: dict[str, tuple[Forge, str]] = {
    "nothing": (by_the_service, "malformed"),  # and so the body is read
    "without headers": (lambda *_: {"Content-Type": CONTENT_TYPE}, "bad-signature"),
    "without a signature": (lambda *to: without(by_the_service(*to), SIGNATURE), "bad-signature"),
    "without a time": (lambda *to: without(by_the_service(*to), TIME), "bad-signature"),
    "a signature that is no hex": (lambda *to: by_the_service(*to) | {SIGNATURE: "x" * 128}, "bad-signature"),
    "a signature cut short": (lambda *to: by_the_service(*to) | {SIGNATURE: "00" * 63}, "bad-signature"),
    "a member's signature": (
        lambda stage, agent, path, body: internal.signed_headers(
            stage.insider(2).party.keys.signing, agent, path, body, time.time()
        ),
        "bad-signature",
    ),
    "for another agent": (
        lambda stage, _a, path, body: by_the_service(stage, "insurer-02", path, body),
        "bad-signature",
    ),
    "for another path": (
        lambda stage, agent, path, body: by_the_service(stage, agent, COMMIT if path == CHECK else CHECK, body),
        "bad-signature",
    ),
    "of another body": (lambda stage, agent, path, _b: by_the_service(stage, agent, path, b"y"), "bad-signature"),
    "of an answer, not a call": (
        lambda stage, agent, path, body: (
            by_the_service(stage, agent, path, body)
            | {SIGNATURE: internal.sign_answer(stage.service._service.keys.signing, path, body, body)}
        ),
        "bad-signature",
    ),
    "of another time": (lambda *to: by_the_service(*to) | {TIME: str(int(time.time()) + 7)}, "bad-signature"),
    "62 s old": (lambda *to: by_the_service(*to, at=-62), "stale"),
    "62 s early": (lambda *to: by_the_service(*to, at=62), "stale"),
    "a time before all": (lambda *to: by_the_service(*to) | {TIME: "-1"}, "stale"),
    "a time that no clock shows": (lambda *to: by_the_service(*to) | {TIME: "9" * 30}, "stale"),
    "a time of five thousand digits": (lambda *to: by_the_service(*to) | {TIME: "9" * 5000}, "bad-signature"),
    "a time in words": (lambda *to: by_the_service(*to) | {TIME: "now"}, "bad-signature"),
}


@pytest.mark.parametrize("path", [CHECK, CHECKS, PREPARE, COMMIT, COMMITTEE_KEY])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_an_agent_reads_no_call_but_what_the_service_signed_just_now_for_it_path_and_body(
    stage: Stage, forgery: str, path: str
) -> None:
    forge, code = FORGERIES[forgery]
    headers = forge(stage, "insurer-01", path, b"x")
    answer = call(Request(stage.alliance.member(1)["url"] + path, b"x", headers, method="POST"))
    assert (answer.status, answer.body["code"]) == (422 if code == "malformed" else 401, code)


def test_with_the_real_service_back_totals_are_what_was_deposited(stage: Stage) -> None:
    stage.bring_the_real_service_back()
    deposited = {}
    for shard in range(SHARDS):
        depositor, *others = stage.keepers(shard)
        mine = stage.make(depositor, stage.subject(shard))
        with stage.insider(depositor) as insider:
            (outcome,) = insider.deposit(mine.signed()).outcomes
        states = read_receipts(insider.party, mine.made, outcome)
        assert is_complete(insider.manifest, mine.made, states)
        deposited[shard] = (others[-1], mine.subject)
    wait_for_ticks()
    for requester, subject in deposited.values():
        stage.counted(requester, subject, LIMIT)
