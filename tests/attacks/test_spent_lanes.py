"""A lane whose budget is spent: void by itself, nothing that opens is sent of it, and nobody makes more of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from test_check import EXCEEDS, TICK, WITHIN, Attempt, an_outsider, attempt, one_shard, resealed
from test_malicious_service_in_memory import forced
from world import COUNT_RULE, LIMIT, NOW, RULE, World, name, person

from protocol import comparison
from protocol.check import Question, Verdict, Void, accept_call, answer_call, conclude, run_check
from protocol.custody import PersonRows
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.messages import CheckAnswer

TIGHT = replace(RULE, budget=2)
SPENT = (Verdict.INDETERMINATE, Void.BUDGET_EXHAUSTED)


def asked(world: World, requester: int, questions: Sequence[Question]) -> list[tuple[Verdict, Void | None]]:
    return run_check(world.party(requester), world.service, world.members, list(questions), NOW, world.random)


def code_of(act: Callable[[], object]) -> str | None:
    try:
        act()
    except ProtocolError as refused:
        return refused.code
    return None


def spent_at(made: Attempt, slots: Sequence[int], *lanes: int) -> dict[int, CheckAnswer]:
    """Return the four answers, of which those of some slots find some lanes spent."""
    return {slot: made.answer(slot, spent=lanes if slot in slots else ()) for slot in made.chosen}


def told(made: Attempt, answers: dict[int, CheckAnswer]) -> list[tuple[Verdict, Void | None]]:
    return made.read(conclude(made.world.service, made.evaluation, 1, made.chosen, TICK, answers))


@pytest.fixture(scope="module")
def three() -> Attempt:
    """Three lanes of two persons, of which the first and the last exceed."""
    world = one_shard()
    world.deposit(1, person(1), LIMIT)
    questions = [Question(person(1), RULE, 1), Question(person(2), RULE, 1), Question(person(1), COUNT_RULE, LIMIT)]
    for _ in range(3):
        world.deposit(2, person(1), 1)
    return attempt(world, an_outsider(world), questions)


TRUTH = [(EXCEEDS, None), (WITHIN, None), (EXCEEDS, None)]


def test_a_spent_lane_is_indeterminate_and_those_beside_it_have_their_verdicts() -> None:
    world = one_shard(rules=(TIGHT, COUNT_RULE))
    world.deposit(1, person(1), LIMIT)
    both = [Question(person(whom), rule, 1) for rule in (TIGHT, COUNT_RULE) for whom in (1, 2)]
    for _ in range(2 * 6 // 4 + 1):
        world.check(2, person(1), 1, rule=TIGHT)
    assert asked(world, 2, both) == [SPENT, (WITHIN, None), (WITHIN, None), (WITHIN, None)]
    assert asked(world, 3, both) == [(EXCEEDS, None), (WITHIN, None), (WITHIN, None), (WITHIN, None)]


@deterministic(20)
@given(st.integers(1, 3), st.lists(st.tuples(st.sets(st.integers(1, 3), min_size=1), st.booleans()), max_size=8))
def test_of_whatever_is_asked_in_whatever_batches_no_question_has_more_answers_than_the_bound(
    budget: int, batches: list[tuple[set[int], bool]]
) -> None:
    """n*b/4 of a committee of n, about each person under each rule; and b before any is refused."""
    rules = (replace(RULE, budget=budget), replace(COUNT_RULE, budget=budget))
    world, answered, refused = one_shard(rules=rules, seed=budget), Counter[object](), Counter[object]()
    for persons, two in batches * 3:
        questions = [Question(person(whom), rule, 1) for whom in persons for rule in (rules if two else rules[:1])]
        for question, verdict in zip(questions, asked(world, 1, questions), strict=True):
            of = (question.identity, question.rule.id)
            assert verdict in ((WITHIN, None), SPENT)
            assert verdict == (WITHIN, None) or answered[of] + refused[of] >= budget
            (answered if verdict == (WITHIN, None) else refused)[of] += 1
    slots = 6 - (world.manifest.slot_of_group(0, name(1)) is not None)
    assert all(count <= slots * budget // 4 for count in answered.values())


@pytest.mark.parametrize("lanes", [(0,), (1,), (0, 2), (0, 1, 2)], ids=str)
def test_what_one_custodian_finds_spent_opens_for_nobody_and_the_rest_does(
    three: Attempt, lanes: tuple[int, ...]
) -> None:
    expected = [SPENT if lane in lanes else truth for lane, truth in enumerate(TRUTH)]
    for slot in three.chosen:
        assert told(three, spent_at(three, (slot,), *lanes)) == expected
    assert told(three, spent_at(three, three.chosen, *lanes)) == expected
    first, second = three.chosen[:2]
    apart = spent_at(three, (first,), 0) | {second: three.answer(second, spent=(2,))}
    assert told(three, apart) == [SPENT, TRUTH[1], SPENT]


def test_what_is_garbled_is_the_same_whatever_is_spent_and_what_is_sent_lacks_the_spent_lanes_alone(
    three: Attempt,
) -> None:
    for position, slot in enumerate(three.chosen):
        whole, less = three.answer(slot).part, three.answer(slot, spent=(1,)).part
        assert (less.garbled, less.garbled_digest, less.session_check) == (
            whole.garbled,
            whole.garbled_digest,
            whole.session_check,
        )
        assert len(less.sent) == 3 - position
        for mine, other in zip(whole.sent, less.sent, strict=True):
            assert (other.labels, other.stamp) == (mine.labels[:768] + mine.labels[2 * 768 :], mine.stamp)
        for vouched, left in zip(whole.vouched, less.vouched, strict=True):
            assert left.masked == vouched.masked[:32] + vouched.masked[64:]
            assert left.digests == vouched.digests[:32] + vouched.digests[64:]


def test_of_a_spent_lane_the_service_is_sent_nothing_that_depends_on_what_the_person_has(three: Attempt) -> None:
    world, differ = three.world, set()
    for slot in three.chosen:
        member = world.members[three.custodians[slot]]
        accepted = accept_call(member.party, three.call(slot), NOW)
        view, key = member.custody.view(accepted.reading()), member.committee_keys[0, None]
        poor = replace(view, persons=(PersonRows(()), *view.persons[1:]))
        for spent in ((0, 2), (2,), ()):
            one, other = (answer_call(member.party, accepted, key, seen, spent) for seen in (view, poor))
            if encode(one) != encode(other):
                differ.add((slot, spent))
    assert differ == {(slot, spent) for slot in three.chosen for spent in ((2,), ())}


def test_a_service_that_takes_a_spent_lane_for_one_that_was_sent_opens_nothing_more(three: Attempt) -> None:
    """It knows of three custodians all, of the fourth nothing of one lane: it puts in zeros, or another lane's."""
    for slot in three.chosen:
        answers = spent_at(three, (slot,), 0)
        part = answers[slot].part

        def padded(data: bytes, size: int, by: str) -> bytes:
            return (bytes(size) if by == "zeros" else data[:size]) + data

        for by in ("zeros", "another lane's"):
            forged = replace(
                part,
                sent=tuple(replace(one, labels=padded(one.labels, 768, by)) for one in part.sent),
                vouched=tuple(
                    replace(one, masked=padded(one.masked, 32, by), digests=padded(one.digests, 32, by))
                    for one in part.vouched
                ),
            )
            lie = answers | {slot: replace(answers[slot], spent=(), part=forged)}
            with pytest.raises(comparison.Disagreement):
                told(three, lie)
            assert three.read(forced(three, lie))[0] == (Verdict.INDETERMINATE, Void.DISAGREEMENT)


def test_a_service_that_shifts_or_invents_spent_lanes_turns_no_verdict(three: Attempt) -> None:
    for slot in three.chosen:
        answers = spent_at(three, (slot,), 0)
        for spent in ((1,), (2,)):  # the pieces of lanes 1 and 2 taken for those of others
            with pytest.raises(comparison.Disagreement):
                told(three, answers | {slot: replace(answers[slot], spent=spent)})
        for spent in ((), (0, 1), (0, 0), (1, 0), (3,), (0, 1, 2, 3)):
            with pytest.raises(comparison.Disagreement, match="malformed"):
                told(three, answers | {slot: replace(answers[slot], spent=spent)})
    good = conclude(three.world.service, three.evaluation, 1, three.chosen, TICK, spent_at(three, ()))
    assert three.read(replace(good, tags=(None, *good.tags[1:]))) == [SPENT, *TRUTH[1:]]
    assert three.read(replace(good, tags=good.tags[1:])) == [(Verdict.INDETERMINATE, Void.DISAGREEMENT)] * 3


def test_whether_a_lane_is_spent_is_told_only_where_all_four_came_to_the_same_person(three: Attempt) -> None:
    """Otherwise two custodians that come to another pseudonym would tell whether that one's budget is spent."""
    other = resealed(three, lambda body: replace(body, seed=bytes(32)), three.chosen[:2])
    for lanes in ((), (0,), (0, 1, 2)):
        answers = spent_at(three, ())
        for slot in three.chosen[:2]:
            answers[slot] = three.answer(slot, other.call(slot), spent=lanes)
        with pytest.raises(comparison.Disagreement):
            told(three, answers)


def test_a_spent_lane_is_sent_in_no_attempt_of_its_check() -> None:
    world = one_shard(rules=(TIGHT, COUNT_RULE))
    made = attempt(world, an_outsider(world), [Question(person(1), TIGHT, 1), Question(person(1), COUNT_RULE, 1)])
    slot = made.chosen[0]
    member = world.members[made.custodians[slot]]
    accepted = accept_call(member.party, made.call(slot), NOW)
    for number in range(2):
        earlier = replace(accepted, statement=replace(accepted.statement, check_id=bytes([number] * 16)))
        assert member.custody.admit(earlier.admission()) == ()
    for number in (1, 2, 3):
        again = accept_call(member.party, replace(made.call(slot), attempt=number), NOW)
        assert member.custody.admit(again.admission()) == (0,)
        assert code_of(lambda again=again: member.custody.admit(again.admission())) == "replayed"
