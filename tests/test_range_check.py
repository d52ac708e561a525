"""No deposit makes a policy or a depositor's sum negative or greater than the cap, whatever the depositor sends."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from range_committee import Item, RangeCommittee, Round, code
from strategies import deterministic
from world import NOW, RULE, TODAY

from protocol import comparison, range_check
from protocol.comparison import Disagreement, LaneInput
from protocol.custody import PENDING_SECONDS, SUMMED_DAYS, DepositBase, Kept
from protocol.deposit import REFUSED, UNPROVEN, batch_outcome, claimed_proofs, give_receipts, prepare_call
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.manifest import MAX_WINDOW_DAYS, POLICY_COUNT, china_day
from protocol.messages import AMENDMENT, CANCELLATION, ISSUE, Commit, HolderReceipts, RangeProof
from protocol.range_check import Lanes, answer_range, fits, header_hash
from protocol.range_tags import is_good, range_tags
from protocol.sharing import GROUPS, HALF_RING, MAX_SLOTS, RING, Chosen, Share, group_sums, label

CAP = RangeCommittee().cap
DAY_SECONDS = 86_400
FIRST_DAY = TODAY - SUMMED_DAYS

# --- whatever a depositor sends, against a plain model -------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What a depositor does next. `of` picks a deposit that it names; `measure` and `about` say its amount."""

    act: str
    of: int
    measure: str
    about: int
    whom: int
    place: tuple[str, int, int]
    lost: bool
    four: int


@dataclass
class Known:
    """A deposit as the model knows it."""

    item: Item
    amount: int
    prepared_at: float
    committed: bool = False

    @property
    def place(self) -> tuple[object, ...]:
        facts = self.item.facts
        return self.item.person, facts.product, facts.day, facts.excluded

    @property
    def chain(self) -> bytes:
        return self.item.facts.earlier or self.item.id


@dataclass
class Plain:
    """What holders must do, told in plain sums of integers."""

    known: list[Known] = field(default_factory=list)

    def standing(self, since: int, **same: object) -> list[Known]:
        return [
            one
            for one in self.known
            if one.committed
            and one.item.facts.day >= since
            and all({"whom": one.item.person, "chain": one.chain}[key] == value for key, value in same.items())
        ]

    def named_wrongly(self, new: Known) -> bool:
        named = [one for one in self.known if one.item.id == new.item.facts.earlier]
        return any(one.item.facts.kind != ISSUE or one.place != new.place for one in named)

    def may_stand(self, new: Known, now: float) -> bool:
        since, whom = china_day(now) - SUMMED_DAYS, new.item.person
        rest = [one for one in self.known if one is not new and one.item.person == whom]
        if any(not one.committed and one.prepared_at > now - PENDING_SECONDS for one in rest):
            return False
        chain = [one for one in self.standing(since, chain=new.chain) if one is not new]
        chain += [new] if new.item.facts.day >= since else []
        kinds = [one.item.facts.kind for one in chain]
        total = sum(one.amount for one in self.standing(since, whom=whom) if one is not new) + new.amount
        return (
            kinds.count(ISSUE) == 1
            and kinds.count(CANCELLATION) <= 1
            and sum(one.amount for one in chain) >= 0
            and total <= CAP
        )


places = st.tuples(
    st.sampled_from(["accident", "accident", "term_life"]),
    st.sampled_from([TODAY, TODAY, TODAY + 1, FIRST_DAY + 1, FIRST_DAY, FIRST_DAY - 1]),
    st.sampled_from([0, 0, 1]),
)
steps = st.builds(
    Step,
    act=st.sampled_from(["issue", "amend", "amend", "cancel", "forge", "misplace", "again", "wait"]),
    of=st.integers(0, 9),
    measure=st.sampled_from(["chain", "chain", "cap", "cap", "some", "ring"]),
    about=st.sampled_from([0, 0, 0, 1, -1]) | st.integers(-CAP, CAP),
    whom=st.sampled_from([1, 1, 1, 2]),
    place=places,
    lost=st.sampled_from([False, False, False, True]),
    four=st.integers(0, 14),
)


def amount_of(step: Step, plain: Plain, chain: bytes | None, now: float) -> int:
    """Return an amount, from -2^47 on: to a chain of nothing, to the cap, or any, give or take a little."""
    since = china_day(now) - SUMMED_DAYS
    start = {
        "chain": -sum(one.amount for one in plain.standing(0, chain=chain)),
        "cap": CAP - sum(one.amount for one in plain.standing(since, whom=step.whom)),
        "some": 1000,
        "ring": HALF_RING,
    }[step.measure]
    return (start + step.about + HALF_RING) % RING - HALF_RING


def item_of(step: Step, committee: RangeCommittee, plain: Plain, now: float) -> tuple[Item, int] | None:
    """Return the deposit that a step makes and its amount; None where there is nothing to name."""
    named = plain.known[step.of % len(plain.known)].item if plain.known else None
    kind = {"issue": ISSUE, "cancel": CANCELLATION}.get(step.act, AMENDMENT)
    earlier: bytes | None = None
    whom, (product_, day, excluded) = step.whom, step.place
    if step.act == "forge":
        earlier = bytes([255]) * 16
    elif step.act != "issue":
        if named is None:
            return None
        # Mostly the issue of a policy; at times a correction, which cannot be corrected.
        earlier = named.id if step.of == 9 else named.facts.earlier or named.id
        if step.act != "misplace":
            facts = named.facts
            whom, product_, day, excluded = named.person, facts.product, facts.day, facts.excluded
    amount = amount_of(replace(step, whom=whom), plain, earlier, now)
    made = committee.deposit(amount, kind, whom=whom, earlier=earlier, product=product_, day=day, excluded=excluded)
    return made, amount


@deterministic(120, always=True)
@given(st.sampled_from([(5, None), (6, None), (6, 2), (7, 0)]), st.lists(steps, min_size=1, max_size=9))
def test_a_deposit_counts_at_all_holders_exactly_when_its_policy_and_all_of_its_depositor_stay_in_range(
    size_and_slot: tuple[int, int | None], story: list[Step]
) -> None:
    committee, plain, now = RangeCommittee(*size_and_slot), Plain(), NOW
    for step in story:
        if step.act == "wait":
            now += DAY_SECONDS
            continue
        new = known_of(step, committee, plain, now)
        if new is not None:
            take(step, new, committee, plain, now)
            for one in plain.known:
                holders = {slot for slot in range(committee.size) if slot != one.item.facts.excluded}
                assert committee.committed(one.item) == (holders if one.committed else set())
    everything_in_range(committee, plain, now)


def known_of(step: Step, committee: RangeCommittee, plain: Plain, now: float) -> Known | None:
    """Return what is sent: something new, or what was sent before; None where there is nothing to name."""
    if step.act == "again":
        return plain.known[step.of % len(plain.known)] if plain.known else None
    made = item_of(step, committee, plain, now)
    return None if made is None else Known(*made, now)


def take(step: Step, new: Known, committee: RangeCommittee, plain: Plain, now: float) -> None:
    """Send a deposit to its holders, who must do as the model says, and tell the model."""
    holders = [slot for slot in range(committee.size) if slot != new.item.facts.excluded]
    fours = list(combinations(holders, 4))
    round_ = committee.round(new.item, chosen=fours[step.four % len(fours)], now=now).prepare_all()
    if step.act != "again":
        if plain.named_wrongly(new):
            # The holder that the issue excludes has nothing to hold this one against; the others do not let it stand.
            (issue,) = [one for one in plain.known if one.item.id == new.item.facts.earlier]
            for slot, answer in round_.answers.items():
                expected = None if slot == issue.item.facts.excluded else "wrong-earlier"
                assert answer.answers[0].refusal == expected
            (decision,) = round_.decisions()
            assert decision.tick is None
            return
        plain.known.append(new)
    assert {answer.answers[0].refusal for answer in round_.answers.values()} == {None}
    new.prepared_at = now
    good = plain.may_stand(new, now)
    (decision,) = decisions = round_.decisions()
    assert decision.proof is not None  # it opens, whatever it says
    if step.lost:
        return
    for slot in holders:
        (state,) = round_.commit(slot, decisions)
        if good or new.committed:
            assert isinstance(state, Kept)
        else:
            assert code(state) == "range-not-shown"
    new.committed |= good


def everything_in_range(committee: RangeCommittee, plain: Plain, now: float) -> None:
    """Assert that whatever a rule may sum of the depositor is of its range, and what the model says."""
    today = china_day(now)
    for products, days in product((("accident",), ("term_life",), ("accident", "term_life")), (1, 30, MAX_WINDOW_DAYS)):
        rule = replace(RULE, products=products, window_days=days)
        for whom in (1, 2):
            counted = [
                one for one in plain.standing(rule.window_start(today), whom=whom) if one.item.facts.product in products
            ]
            total = committee.total(whom, rule, today, now)
            assert total == sum(one.amount for one in counted)
            assert 0 <= total <= CAP
            policies = committee.total(whom, replace(rule, measure=POLICY_COUNT), today, now) if False else 0
            assert policies >= 0


# --- every A of every committee ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 6, 7])
@pytest.mark.parametrize("inside", [True, False])
def test_every_four_holders_find_the_same_of_a_deposit_at_the_edges(size: int, *, inside: bool) -> None:
    for slot in range(size):
        committee = RangeCommittee(size, slot if inside else None)

        def deposit(amount: int, kind: int = ISSUE, *, whom: int, earlier: bytes | None = None) -> Item:
            return committee.deposit(amount, kind, whom=whom, earlier=earlier, excluded=slot)  # noqa: B023 used at once

        two, three = deposit(700, whom=2), deposit(700, whom=3)
        assert all(committee.make(two, three))
        edges = [
            (deposit(-700, CANCELLATION, whom=2, earlier=two.id), True),
            (deposit(-701, CANCELLATION, whom=3, earlier=three.id), False),
            (deposit(committee.cap, whom=4), True),
            (deposit(committee.cap + 1, whom=5), False),
        ]
        items = [item for item, _ in edges]
        fours = list(combinations([other for other in range(size) if other != slot], 4))
        assert len(fours) == {5: 1, 6: 5, 7: 15}[size]
        for chosen in fours:
            round_ = committee.round(*items, chosen=chosen).prepare_all()
            opened = round_.opened()
            assert opened is not None
            for holder in round_.evaluated.slots:  # of A and outside it
                keys = [committee.accepted(item, holder).proposed.range_key for item in items]
                found = [is_good(key, proof) for key, proof in zip(keys, opened, strict=True)]
                assert found == [good for _, good in edges]


# --- a holder that lacks earlier deposits --------------------------------------------------------------------------


def test_a_holder_that_lacks_a_deposit_voids_alike_for_every_person_until_it_has_caught_up() -> None:
    committee = RangeCommittee(6, 5)
    earlier = committee.deposit(700)
    committee.round(earlier, chosen=(1, 2, 3, 4)).run([1, 2, 3, 4])  # slot 0 was down
    assert committee.committed(earlier) == {1, 2, 3, 4}
    for whom in (1, 2):  # he whose deposit it lacks, and another
        for chosen in combinations(range(5), 4):
            round_ = committee.round(committee.deposit(1, whom=whom), chosen=chosen).prepare_all()
            if 0 in chosen:
                with pytest.raises(Disagreement, match="shares or stamps"):
                    round_.opened()
                assert round_.decisions() == [UNPROVEN]
            else:
                assert round_.opened() is not None
            for slot in range(5):
                committee.stores[slot].abandon(committee.depositor, 0, [round_.items[0].id], NOW)
        made = committee.deposit(1, whom=whom)
        assert committee.make(made, chosen=(1, 2, 3, 4)) == [{0, 1, 2, 3, 4}]
    # It is given what it lacks with the proof that the others have kept, and is good for A again.
    assert committee.round(earlier, order=False).run() == [{0, 1, 2, 3, 4}]
    assert committee.make(committee.deposit(1, whom=3), chosen=(0, 1, 2, 3)) == [{0, 1, 2, 3, 4}]


def test_a_committee_of_five_proves_nothing_until_the_lagging_holder_has_caught_up() -> None:
    committee = RangeCommittee(5, 4)
    earlier = committee.deposit(700)
    assert committee.make(earlier) == [{0, 1, 2, 3}]
    more = [committee.deposit(10, whom=whom) for whom in (1, 2)]
    # One was brought up behind the others: it has the deposit prepared, not committed.
    late = committee.deposit(5, whom=3)
    round_ = committee.round(late).prepare_all()
    decisions = round_.decisions()
    for slot in (0, 1, 2):
        round_.commit(slot, decisions)
    for item in more:
        assert committee.round(item).prepare_all().decisions() == [UNPROVEN]
    assert committee.round(late, order=False).run() == [{0, 1, 2, 3}]
    for item in more:
        assert committee.make(item) == [{0, 1, 2, 3}]


def test_without_stamps_the_service_would_see_whose_deposit_it_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "pair_stamp", lambda *_: bytes(32))
    committee = RangeCommittee(6, 5)
    committee.round(committee.deposit(700), chosen=(1, 2, 3, 4)).run([1, 2, 3, 4])
    with pytest.raises(Disagreement):
        committee.round(committee.deposit(1), chosen=(0, 1, 2, 3)).prepare_all().opened()
    assert committee.round(committee.deposit(1, whom=2), chosen=(0, 1, 2, 3)).prepare_all().opened() is not None


def test_other_depositors_deposits_of_a_person_neither_count_nor_hold_up() -> None:
    one, other = RangeCommittee(6, 5), RangeCommittee(6, 4)
    other.stores = one.stores
    first, pending = other.deposit(CAP), other.deposit(-CAP, AMENDMENT, earlier=bytes(16))
    assert other.make(first) == [{0, 1, 2, 3, 5}]
    other.round(pending).prepare_all()
    mine = one.deposit(CAP)
    assert one.make(mine) == [{0, 1, 2, 3, 4}]
    assert one.make(one.deposit(1)) == [set()]
    stolen = other.deposit(-1, AMENDMENT, earlier=mine.id)
    assert other.make(stolen) == [set()]
    assert one.total(1) == 2 * CAP


# --- two at once ---------------------------------------------------------------------------------------------------


def two_at_once(first_at: tuple[bool, ...]) -> tuple[RangeCommittee, list[set[int]]]:
    """Run two deposits of a person that fit each by itself; holders take the first one first, or second."""
    committee = RangeCommittee(6, 5)
    rounds = [committee.round(committee.deposit(CAP - 5)), committee.round(committee.deposit(6))]
    for slot, in_order in zip(range(5), first_at, strict=True):
        for round_ in rounds if in_order else rounds[::-1]:
            round_.prepare(slot)
    shown = []
    for round_ in rounds:
        decisions = round_.decisions()
        for slot in range(5):
            round_.commit(slot, decisions)
        shown.append(committee.committed(round_.items[0]))
    return committee, shown


@pytest.mark.parametrize(
    "first_at", [(*four, last) for four in product((True, False), repeat=4) for last in (four[0],)]
)
def test_of_two_deposits_of_one_person_at_once_never_both_are_committed_at_any_holder(
    first_at: tuple[bool, ...],
) -> None:
    committee, (one, two) = two_at_once(first_at)
    everyone = {0, 1, 2, 3, 4}
    if len(set(first_at[:4])) == 1:
        assert (one, two) == ((everyone, set()) if first_at[0] else (set(), everyone))
    else:
        assert (one, two) == (set(), set())
    assert 0 <= committee.total(1) <= CAP


def test_without_the_rule_of_one_pending_deposit_both_would_be_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_check, "_pending", lambda _, chosen, slot: group_sums(chosen, slot, {}))
    committee, shown = two_at_once((True,) * 5)
    assert shown == [{0, 1, 2, 3, 4}] * 2
    assert committee.total(1) == CAP + 1


@pytest.mark.parametrize(
    ("size", "own", "places", "fours", "ahead"),
    [
        (7, 6, (6, 6), ((0, 1, 2, 3), (2, 3, 4, 5)), {0, 1}),
        (6, None, (5, 0), ((0, 1, 2, 3), (2, 3, 4, 5)), {0, 1}),
    ],
    ids=["of one that keeps a slot", "of one that keeps none"],
)
def test_shares_that_leave_a_holder_without_say_do_not_let_two_at_once_through(
    size: int, own: int | None, places: tuple[int, int], fours: tuple[tuple[int, ...], ...], ahead: set[int]
) -> None:
    # All of the first one is in shares that two holders stand for, who took it first; the others took the second first.
    committee = RangeCommittee(size, own)
    items = [committee.deposit(amount, excluded=slot) for amount, slot in zip((CAP - 5, 6), places, strict=True)]
    pair = label(places[0], 4)
    items[0] = replace(items[0], amounts={**dict.fromkeys(items[0].amounts, Share(0)), pair: Share(CAP - 5)})
    one, two = (committee.round(item, chosen=four) for item, four in zip(items, fours, strict=True))
    for slot in range(size):
        for round_ in (one, two) if slot in ahead else (two, one):
            if slot in round_.evaluated.slots:
                round_.prepare(slot)
    for round_ in (one, two):
        decisions = round_.decisions()
        for slot in round_.evaluated.slots:
            round_.commit(slot, decisions)
    assert not committee.committed(one.items[0]) or not committee.committed(two.items[0])
    with pytest.raises(Disagreement, match="shares or stamps"):
        one.opened()


@pytest.mark.parametrize("common_first", [True, False])
def test_two_at_once_in_the_largest_committee_meet_in_the_one_holder_that_both_fours_have(
    *, common_first: bool
) -> None:
    committee = RangeCommittee(MAX_SLOTS)
    fours, places = ((0, 1, 2, 3), (3, 4, 5, 6)), (6, 0)  # that they exclude different slots lets all slots judge
    items = [committee.deposit(amount, excluded=slot) for amount, slot in zip((CAP - 5, 6), places, strict=True)]
    one, two = (committee.round(item, chosen=four) for item, four in zip(items, fours, strict=True))
    for slot in range(MAX_SLOTS):
        for round_ in (one, two) if slot < 3 or (slot == 3 and common_first) else (two, one):
            if slot in round_.evaluated.slots:
                round_.prepare(slot)
    for round_ in (one, two):
        decisions = round_.decisions()
        for slot in round_.evaluated.slots:
            round_.commit(slot, decisions)
    assert bool(committee.committed(items[0])) is common_first
    assert bool(committee.committed(items[1])) is not common_first
    assert committee.total(1) <= CAP


def test_any_two_fours_of_the_slots_of_a_committee_have_one_in_common() -> None:
    fours = [set(four) for four in combinations(range(MAX_SLOTS), 4)]
    assert all(one & other for one, other in combinations(fours, 2))


@deterministic(40)
@given(
    st.permutations([(which, slot) for which in (0, 1) for slot in range(5)]),
    st.lists(st.tuples(st.integers(2, 10), st.integers(0, 1), st.integers(0, 4)), max_size=10),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_whenever_two_deposits_come_and_commits_are_passed_on_no_holder_shows_both(
    calls: list[tuple[int, int]], commits: list[tuple[int, int, int]], left_out: tuple[int, int]
) -> None:
    committee = RangeCommittee(6, 5)
    rounds = [
        committee.round(committee.deposit(CAP - 5), chosen=[slot for slot in range(5) if slot != left_out[0]]),
        committee.round(committee.deposit(6), chosen=[slot for slot in range(5) if slot != left_out[1]]),
    ]
    for done, (which, slot) in enumerate(calls, start=1):
        rounds[which].prepare(slot)
        for after, other, holder in commits:
            round_ = rounds[other]
            if after == done and set(round_.chosen) <= set(round_.answers) and len(round_.answers) >= 4:
                round_.commit(holder, round_.decisions())
    one, two = (committee.committed(round_.items[0]) for round_ in rounds)
    assert not one or not two


def test_a_pending_deposit_holds_up_others_of_its_person_for_a_day_after_its_last_repeat() -> None:
    committee, now = RangeCommittee(6, 5), NOW
    lost = committee.deposit(1)
    committee.round(lost).prepare_all()
    committee.round(lost, now=now + PENDING_SECONDS - 1).prepare_all()
    for wait, good in ((PENDING_SECONDS - 1, False), (PENDING_SECONDS, True)):
        item = committee.deposit(5)
        assert committee.make(item, now=now + PENDING_SECONDS - 1 + wait) == [{0, 1, 2, 3, 4} if good else set()]
        for slot in range(5):
            committee.stores[slot].abandon(committee.depositor, 0, [item.id], now)


def test_what_was_passed_over_as_lost_does_not_come_back_beside_what_was_judged_without_it() -> None:
    # Two holders have committed it, which is what it takes for a kept proof to be used, and no other did.
    committee, later = RangeCommittee(6), NOW + PENDING_SECONDS
    lost = committee.deposit(CAP, excluded=5)
    round_ = committee.round(lost)
    decisions = round_.prepare_all().decisions()
    for slot in (0, 1):
        round_.commit(slot, decisions)
    # A day later four judge another, of whom none is of those two; it excludes another slot than the first.
    other = committee.deposit(CAP, excluded=0)
    assert committee.make(other, chosen=(2, 3, 4, 5), now=later) == [{1, 2, 3, 4, 5}]
    again = committee.round(lost, now=later, order=False).prepare_all()
    assert claimed_proofs(committee.manifest, again.evaluated, again.answers) == [decisions[0].proof]
    refusals = {slot: answer.answers[0].refusal for slot, answer in again.answers.items()}
    assert refusals == {0: None, 1: None} | dict.fromkeys((2, 3, 4), "deposit-abandoned")
    assert again.run() == [{0, 1}]
    assert [code(state) for slot in (2, 3, 4) for state in round_.commit(slot, decisions)] == ["not-prepared"] * 3


@pytest.mark.parametrize("lost_first", [True, False])
def test_of_what_was_passed_over_and_what_was_judged_without_it_one_stands_in_whatever_order_they_are_committed(
    *, lost_first: bool
) -> None:
    committee, later = RangeCommittee(6, 5), NOW + PENDING_SECONDS
    rounds = [
        committee.round(committee.deposit(CAP), now=now, chosen=(0, 1, 2, 3)).prepare_all() for now in (NOW, later)
    ]
    for round_ in rounds if lost_first else rounds[::-1]:
        decisions = round_.decisions()
        for slot in round_.evaluated.slots:
            round_.commit(slot, decisions)
    first, second = rounds if lost_first else rounds[::-1]
    assert committee.committed(first.items[0]) == {0, 1, 2, 3, 4}
    # The one that judged nothing knows nothing: it shows both, and no four of all have an answer with it.
    assert committee.committed(second.items[0]) == {4}


def test_what_comes_back_between_the_rounds_of_what_was_judged_without_it_keeps_that_from_standing() -> None:
    committee, later = RangeCommittee(6), NOW + PENDING_SECONDS
    lost, other = committee.deposit(CAP, excluded=5), committee.deposit(CAP, excluded=0)
    begun = committee.round(lost).prepare_all()
    for slot in (0, 1):
        begun.commit(slot, begun.decisions())
    judged = committee.round(other, chosen=(2, 3, 4, 5), now=later).prepare_all()
    opened = judged.decisions()
    assert opened[0].proof is not None
    assert committee.round(lost, now=later, order=False).run() == [{0, 1, 2, 3, 4}]
    for slot in judged.evaluated.slots:
        judged.commit(slot, opened)
    assert committee.committed(other) == {1, 5}  # not the four that it takes, and not alike


def test_a_deposit_that_came_to_two_holders_by_two_rounds_is_finished_by_the_proof_of_one() -> None:
    committee = RangeCommittee(6, 5)
    item = committee.deposit(5)
    for slot, four in ((0, (0, 1, 2, 3)), (1, (1, 2, 3, 4))):
        round_ = committee.round(item, chosen=four).prepare_all()
        round_.commit(slot, round_.decisions())
    assert committee.committed(item) == {0, 1}
    assert committee.make(item, chosen=(0, 1, 2, 3)) == [{0, 1, 2, 3, 4}]


def test_a_holder_that_lacks_a_commit_gives_up_nothing_of_what_others_have() -> None:
    committee, later = RangeCommittee(6, 5), NOW + PENDING_SECONDS
    made, last = committee.deposit(CAP - 5), committee.deposit(5)
    round_ = committee.round(made)
    decisions = round_.prepare_all().decisions()
    for slot in (1, 2, 3, 4):
        round_.commit(slot, decisions)
    assert committee.make(last, chosen=(0, 1, 2, 3), now=later) == [set()]
    assert committee.make(last, chosen=(1, 2, 3, 4), now=later) == [{0, 1, 2, 3, 4}]
    assert committee.round(made, now=later, order=False).run() == [{0, 1, 2, 3, 4}]
    assert committee.total(1, now=later) == CAP


def test_two_deposits_of_one_person_in_one_call_are_neither_good() -> None:
    committee = RangeCommittee(6, 5)
    assert committee.make(committee.deposit(1), committee.deposit(2)) == [set(), set()]
    assert committee.make(committee.deposit(1, whom=2), committee.deposit(2, whom=3)) == [{0, 1, 2, 3, 4}] * 2


# --- replays -------------------------------------------------------------------------------------------------------


def test_a_header_is_garbled_once_and_a_second_call_with_it_changes_nothing() -> None:
    committee = RangeCommittee(6, 5)
    round_ = committee.round(committee.deposit(1))
    other = committee.round(committee.deposit(2, whom=2))
    other.run()
    for slot in round_.chosen:
        round_.prepare(slot)
        assert round_.answers.pop(slot).garbled is not None
        with pytest.raises(ProtocolError, match="replayed"):
            round_.prepare(slot)
        assert slot not in round_.answers
    (outside,) = set(range(5)) - set(round_.chosen)
    for _ in range(2):  # one that garbles nothing has nothing to replay
        assert round_.prepare(outside).garbled is None


def test_one_header_garbled_over_two_bases_would_show_the_offset_of_its_labels() -> None:
    # What the record of headers is for: with the offset R the service would read all inputs off the table.
    committee = RangeCommittee(6, 5)
    round_ = committee.round(committee.deposit(1))
    accepted = round_.accept(0)
    attempt = accepted.attempt()
    assert attempt is not None
    assert accepted.header is not None
    labels = []
    for store in (committee.stores[0], RangeCommittee(6, 5).stores[0]):
        base = store.prepare(accepted.proposed, NOW, attempt).base
        assert base is not None
        if labels:
            (deposit,) = base.deposits
            row = replace(deposit.rows[0].row, amounts=tuple(piece ^ 0b1101 for piece in deposit.rows[0].row.amounts))
            base = replace(base, deposits=(replace(deposit, rows=(replace(deposit.rows[0], row=row),)),))
        lanes = Lanes(accepted.header, (accepted.good[0].pseudonym,), (accepted.proposed[0].range_key,), base)
        labels.append(answer_range(committee.manifest, lanes, committee.key, 0).part.sent[0].labels)
    one, two = ([data[at : at + 16] for at in range(0, 768, 16)] for data in labels)
    differences = {bytes(a ^ b for a, b in zip(left, right, strict=True)) for left, right in zip(one, two, strict=True)}
    assert len(differences - {bytes(16)}) == 1


def test_headers_that_differ_in_anything_have_other_hashes() -> None:
    header = RangeCommittee(6, 5).round(RangeCommittee(6, 5).deposit(1)).accept(0).header
    assert header is not None
    others = [
        replace(header, nonce=bytes(16)),
        replace(header, chosen=(0, 1, 2, 4)),
        replace(header, issued_at=header.issued_at + 1),
        replace(header, depositor="insurer-99"),
        replace(header, shard=1),
        replace(header, excluded=4),
        replace(header, manifest_hash=bytes(32)),
        replace(header, epoch=2),
        replace(header, committee_key=replace(header.committee_key, made_at=1)),
        replace(header, deposits=(bytes(16),)),
        replace(header, deposits=header.deposits * 2),
        replace(header, blinded=header.blinded * 2),
    ]
    assert len({header_hash(one) for one in (header, *others)}) == len(others) + 1


# --- one of A lies -------------------------------------------------------------------------------------------------


def flipped(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


Lie = Callable[[comparison.Part], comparison.Part | None]


def in_garbled(name: str) -> Lie:
    def lie(part: comparison.Part) -> comparison.Part | None:
        if part.garbled is None:
            return None
        garbled = replace(part.garbled, **{name: flipped(getattr(part.garbled, name))})
        return replace(part, garbled=garbled, garbled_digest=garbled.digest())

    return lie


def in_first(where: str, name: str) -> Lie:
    def lie(part: comparison.Part) -> comparison.Part | None:
        pieces = getattr(part, where)
        return (
            replace(part, **{where: (replace(pieces[0], **{name: flipped(getattr(pieces[0], name))}), *pieces[1:])})
            if pieces
            else None
        )

    return lie


LIES: dict[str, Lie] = {
    "session": lambda part: replace(part, session_check=flipped(part.session_check)),
    "digest": lambda part: replace(part, garbled_digest=flipped(part.garbled_digest)),
    "no table": lambda part: replace(part, garbled=None) if part.garbled else None,
    **{name: in_garbled(name) for name in ("table", "aes_key", "outputs", "vouchers")},
    "labels": in_first("sent", "labels"),
    "stamp": in_first("sent", "stamp"),
    "K": in_first("vouched", "masked"),
    "digests": in_first("vouched", "digests"),
}


@pytest.mark.parametrize("amount", [700, CAP + 1, -1], ids=["in range", "above", "below"])
def test_a_lie_of_one_of_a_voids_its_garbling_and_four_others_settle_the_deposit(amount: int) -> None:
    committee = RangeCommittee(6, 5)
    item = committee.deposit(amount)
    good = 0 <= amount <= CAP
    for liar in range(4):
        for lie in LIES.values():
            round_ = committee.round(item).prepare_all()
            answer = round_.answers[liar]
            assert answer.garbled is not None
            bent = lie(answer.garbled.part)
            if bent is None:
                continue
            round_.answers[liar] = replace(answer, garbled=replace(answer.garbled, part=bent))
            with pytest.raises(Disagreement) as alarm:
                round_.opened()
            assert liar in alarm.value.slots
            assert len(alarm.value.slots) <= 2
            assert round_.decisions() == [UNPROVEN]
        others = [slot for slot in range(5) if slot != liar]
        (decision,) = committee.round(item, chosen=others).prepare_all().decisions()
        assert decision.proof is not None
        key = committee.accepted(item, 0).proposed.range_key
        assert is_good(key, decision.proof) is good
    assert committee.make(item) == [{0, 1, 2, 3, 4} if good else set()]


def alarm_or_proofs(round_: Round) -> tuple[tuple[int, ...], list[RangeProof]]:
    """Return the slots that an alarm names, or what the service opens."""
    try:
        return (), round_.opened() or []
    except Disagreement as alarm:
        return alarm.slots, []


@pytest.mark.parametrize("liar", range(4))
def test_another_share_or_another_key_at_one_of_a_makes_no_proof_good(liar: int) -> None:
    committee = RangeCommittee(6, 5)
    item = committee.deposit(CAP + 1)
    key, voided = committee.accepted(item, 0).proposed.range_key, 0
    for pair in [pair for pair in item.amounts if liar not in pair]:
        lie = replace(item, amounts={**item.amounts, pair: (item.amounts[pair] - 1) % RING})
        round_ = committee.round(item)
        for slot in range(5):
            (replace(round_, items=(lie,)) if slot == liar else round_).prepare(slot)
        slots, proofs = alarm_or_proofs(round_)
        assert slots == () or liar in slots
        voided += slots != ()
        assert not any(is_good(key, proof) for proof in proofs)  # where two others of A stand for that share
        assert round_.decisions()[0].tick is None  # the holders' digests differ
        for store in committee.stores.values():
            store._deposits.clear()
    assert voided == (4, 4, 2, 0)[liar]
    round_ = committee.round(item).prepare_all()
    answer = round_.answers[liar].garbled
    assert answer is not None
    other = replace(answer, committee_key=replace(answer.committee_key, id=bytes(16)))
    round_.answers[liar] = replace(round_.answers[liar], garbled=other)
    with pytest.raises(Disagreement, match="committee key") as alarm:
        round_.opened()
    assert alarm.value.slots == (liar,)


def test_one_of_a_that_garbles_nothing_leaves_the_deposit_to_four_others() -> None:
    committee = RangeCommittee(6, 5)
    item = committee.deposit(5)
    round_ = committee.round(item).prepare_all()
    round_.answers[0] = replace(round_.answers[0], garbled=None)
    with pytest.raises(Disagreement, match="no garbling") as alarm:
        round_.opened()
    assert alarm.value.slots == (0,)
    assert round_.decisions() == [UNPROVEN]
    del round_.answers[0]
    assert round_.decisions() == [UNPROVEN]
    assert committee.make(item, chosen=(1, 2, 3, 4)) == [{0, 1, 2, 3, 4}]


# --- proofs --------------------------------------------------------------------------------------------------------


def proven(*items: Item, committee: RangeCommittee) -> Round:
    round_ = committee.round(*items).prepare_all()
    assert round_.opened() is not None
    return round_


def test_a_proof_that_is_bent_in_any_bit_or_of_something_else_convinces_no_holder() -> None:
    committee = RangeCommittee(6, 5)
    item, other = committee.deposit(5), committee.deposit(5, whom=2)
    round_ = proven(item, other, committee=committee)
    again = proven(item, other, committee=committee)
    (proof, others), (second, _) = round_.opened() or (), again.opened() or ()
    bent = [
        replace(proof, **{name: bytes(byte ^ (1 << bit if at == place else 0) for at, byte in enumerate(data))})
        for name in ("header_hash", "floor", "ceiling", "alone")
        for data in (getattr(proof, name),)
        for place in range(len(data))
        for bit in range(8)
    ]
    assert len(bent) == 640
    key = committee.accepted(item, 0).proposed.range_key
    (_, bad_floor), (_, bad_ceiling), (_, bad_alone) = range_tags(key, proof.header_hash)
    bent += [
        replace(proof, floor=proof.ceiling, ceiling=proof.floor),
        replace(proof, ceiling=proof.floor),
        replace(proof, floor=proof.ceiling),
        replace(proof, floor=bad_floor),
        replace(proof, ceiling=bad_ceiling),
        replace(proof, alone=bad_alone),
        replace(proof, alone=proof.floor),
        replace(proof, floor=bad_floor, ceiling=bad_ceiling, alone=bad_alone),
        replace(proof, floor=bytes(16), ceiling=bytes(16)),
        replace(proof, header_hash=second.header_hash),  # the tags of one header under another
        replace(second, header_hash=proof.header_hash),
        others,  # of another deposit of the batch
        replace(others, floor=proof.floor),
        replace(others, ceiling=proof.ceiling),
        *(replace(proof, floor=bytes([n]) * 16, ceiling=bytes([n]) * 16) for n in range(1, 20)),
    ]
    assert proof not in bent
    for slot in range(5):  # of A, and the one outside it
        commits = [Commit(deposit_id=item.id, tick=int(NOW), range_proof=one) for one in bent]
        states = committee.stores[slot].commit(committee.depositor, 0, commits)
        assert {code(state) for state in states} == {"range-not-shown"}
        assert committee.committed(item) == set(range(slot))
        for good in (proof, second):  # any header's will do, once
            (state,) = committee.stores[slot].commit(
                committee.depositor, 0, [Commit(deposit_id=item.id, tick=int(NOW), range_proof=good)]
            )
            assert isinstance(state, Kept)
            assert state.proof == proof


def test_what_a_sends_has_neither_tag_in_it_and_what_is_opened_is_never_alike() -> None:
    committee = RangeCommittee(6, 5)
    items = committee.deposit(5), committee.deposit(CAP + 1, whom=2)
    seen = set()
    for _ in range(3):
        round_ = proven(*items, committee=committee)
        for item, proof in zip(items, round_.opened() or (), strict=True):
            seen |= {proof.floor, proof.ceiling, proof.alone}
            key = committee.accepted(item, 0).proposed.range_key
            for answer in round_.answers.values():
                assert answer.garbled is None or all(
                    tag not in encode(answer.garbled.part)
                    for pair in range_tags(key, proof.header_hash)
                    for tag in pair
                )
    assert len(seen) == 18


def test_a_holder_outside_a_and_one_that_was_down_verify_the_same_proof() -> None:
    committee = RangeCommittee(6, 5)
    item = committee.deposit(5)
    round_ = committee.round(item)
    round_.run([0, 1, 2, 3])
    late = committee.round(item, order=False).prepare_all()
    assert late.answers[4].answers[0].range_proof is None
    (claimed,) = claimed_proofs(committee.manifest, late.evaluated, late.answers)
    assert claimed == (round_.opened() or [None])[0]
    # A service that tells it something else tells it nothing; a holder that claims another is outvoted.
    assert claimed is not None
    lie = replace(claimed, floor=bytes(16))
    (state,) = committee.stores[4].commit(
        committee.depositor, 0, [Commit(deposit_id=item.id, tick=int(NOW), range_proof=lie)]
    )
    assert code(state) == "range-not-shown"
    answer = late.answers[0]
    late.answers[0] = replace(answer, answers=(replace(answer.answers[0], range_proof=lie),))
    assert claimed_proofs(committee.manifest, late.evaluated, late.answers) == [claimed]
    (decision,) = late.decisions()
    assert (decision.tick, decision.slots) == (int(NOW), (0, 1, 2, 3, 4))
    late.commit(4, [decision])
    assert committee.committed(item) == {0, 1, 2, 3, 4}


def test_a_claim_without_any_commit_behind_it_convinces_nobody() -> None:
    committee = RangeCommittee(6, 5)
    bad = committee.deposit(CAP + 1)
    round_ = proven(bad, committee=committee)
    (proof,) = round_.opened() or ()
    late = committee.round(bad, order=False).prepare_all()
    late.answers = {
        slot: replace(answer, answers=(replace(answer.answers[0], range_proof=proof, tick=5),))
        for slot, answer in late.answers.items()
    }
    decisions = late.decisions()
    assert decisions[0].proof == proof
    for slot in range(5):
        assert [code(state) for state in late.commit(slot, decisions)] == ["range-not-shown"]


def test_a_deposit_that_all_holders_refuse_at_commit_is_told_as_refused() -> None:
    committee = RangeCommittee(6, 5)
    good, bad = committee.deposit(5), committee.deposit(CAP + 1, whom=2)
    round_ = proven(good, bad, committee=committee)
    decisions = round_.decisions()
    receipts: dict[int, HolderReceipts] = {}
    for slot in range(5):
        party = committee.world.members[committee.slots[slot]].party
        states = round_.commit(slot, decisions)
        receipts[slot] = give_receipts(party, committee.depositor, 0, [good.id, bad.id], states)
    told = batch_outcome(decisions, receipts).outcomes
    assert [(len(one.receipts), one.reason) for one in told] == [(5, None), (0, REFUSED)]


def test_the_depositors_own_group_has_no_key_from_which_tags_follow() -> None:
    for own in range(6):
        committee = RangeCommittee(6, own)
        assert committee.key.name.omitted == own
        assert (0, own) not in committee.world.members[committee.depositor].committee_keys


def test_tags_follow_from_all_that_a_deposit_is() -> None:
    committee = RangeCommittee(6, 5)
    item = committee.deposit(5)
    facts = item.facts
    pseudonym = committee.accepted(item, 0).pseudonym
    keys = [
        range_check.range_key(committee.key, one, pseudonym)
        for one in (
            facts,
            replace(facts, kind=AMENDMENT),
            replace(facts, earlier=bytes(16)),
            replace(facts, product="term_life"),
            replace(facts, day=facts.day + 1),
            replace(facts, deposit_id=bytes(16)),
            replace(facts, excluded=1),
            replace(facts, not_before=1),
        )
    ]
    keys.append(range_check.range_key(RangeCommittee(6, 4).key, facts, pseudonym))
    keys.append(range_check.range_key(committee.key, facts, committee.accepted(replace(item, person=2), 0).pseudonym))
    assert len(set(keys)) == len(keys)


# --- days ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("back", "summed"), [(SUMMED_DAYS - 1, True), (SUMMED_DAYS, True), (SUMMED_DAYS + 1, False)])
def test_rows_of_days_that_no_window_reaches_are_summed_by_no_holder(back: int, *, summed: bool) -> None:
    committee, then = RangeCommittee(6, 5), NOW - 20 * DAY_SECONDS
    old = committee.deposit(CAP, day=TODAY - back)
    assert committee.make(old, now=then) == [{0, 1, 2, 3, 4}]
    assert committee.make(committee.deposit(1)) == [set() if summed else {0, 1, 2, 3, 4}]


def test_all_of_a_sum_from_the_same_day_whatever_their_clocks_say() -> None:
    committee = RangeCommittee(6, 5)
    round_ = committee.round(committee.deposit(1))
    days = set()
    for slot, ahead in zip(round_.chosen, (0, 1, -1, 0), strict=True):
        attempt = replace(round_.accept(slot), today=TODAY + ahead).attempt()
        assert attempt is not None
        days.add(attempt.first_day)
    assert days == {TODAY - SUMMED_DAYS}


# --- lanes ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_in_clear_gets_lanes_that_cannot_be_good() -> None:
    committee = RangeCommittee(6, 5)
    round_ = committee.round(committee.deposit(5))
    base = committee.stores[0].prepare(round_.accept(0).proposed, NOW, round_.accept(0).attempt()).base
    assert base is not None
    (one,) = base.deposits
    (issue,) = one.rows
    correction, cancelled = replace(issue, kind=AMENDMENT), replace(issue, kind=CANCELLATION)
    elsewhere = [
        replace(correction, row=replace(issue.row, **changes))
        for changes in ({"product": "term_life"}, {"day": TODAY - 1}, {"excluded": 4})
    ]
    fitting = [(issue,), (issue, correction, correction), (issue, cancelled), (issue, cancelled, correction)]
    fitting.append((issue, replace(issue, in_chain=False)))
    unfit = [(), (correction,), (issue, issue), (issue, cancelled, cancelled), (issue, issue, cancelled)]
    unfit += [(issue, row) for row in elsewhere]
    for rows in fitting:
        assert fits(replace(one, rows=rows))
    chosen = range_check.choice(committee.manifest, prepare_call(round_.evaluated, 0, round_.order), round_.chosen)
    for rows in unfit:
        assert not fits(replace(one, rows=rows))
        objected = range_check.objection(round_.accept(0).proposed[0].range_key, bytes(32))
        values: set[tuple[int, int]] = set()
        for slot in chosen.slots:
            floor, ceiling, _ = range_check.lane_inputs(replace(one, rows=rows), objected, chosen, slot, CAP)
            assert floor == ceiling
            values |= {(place, value) for place, value in enumerate(floor.groups) if value is not None}
            assert (sum(objected) - floor.limit) % RING == 1
        assert values == set(enumerate(objected))  # of all of A the same, and none that its depositor foresees


def test_each_other_pending_deposit_is_counted_by_the_pairs_that_both_hold_it() -> None:
    committee = RangeCommittee(6)
    round_ = committee.round(committee.deposit(5, excluded=5))
    base = committee.stores[0].prepare(round_.accept(0).proposed, NOW, round_.accept(0).attempt()).base
    assert base is not None
    pending = replace(base.deposits[0], pending=(1, 4, 4))
    chosen = range_check.choice(committee.manifest, prepare_call(round_.evaluated, 0, round_.order), round_.chosen)
    counted = [range_check.lane_inputs(pending, (0,) * 6, chosen, slot, CAP)[2].groups for slot in chosen.slots]
    both = [2, 3, 3, 2, 2, 3]  # (0,1), (0,2), (0,3), (1,2), (1,3), (2,3); one of the three excludes slot 1
    for slot, groups in enumerate(counted):
        for pair, expected, value in zip(GROUPS, both, groups, strict=True):
            assert value == (expected if slot in pair else None)


def test_without_one_of_the_lanes_what_it_keeps_out_would_be_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = range_check.lane_inputs
    for place, amount in ((0, -1), (1, CAP + 1)):
        committee = RangeCommittee(6, 5)
        assert committee.make(committee.deposit(amount)) == [set()]

        def without(
            base: DepositBase, objected: tuple[int, ...], chosen: Chosen, slot: int, cap: int, place: int = place
        ) -> tuple[LaneInput, ...]:
            empty = LaneInput(tuple(group_sums(chosen, slot, {})), 0)
            return tuple(
                empty if at == place else lane for at, lane in enumerate(lanes(base, objected, chosen, slot, cap))
            )

        with monkeypatch.context() as patch:
            patch.setattr(range_check, "lane_inputs", without)
            assert committee.make(committee.deposit(amount, whom=2)) == [{0, 1, 2, 3, 4}]
