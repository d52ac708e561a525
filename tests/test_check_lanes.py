"""A check of many lanes: persons and rules, each answered by itself; what lanes of one person share."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from test_check import (
    EXCEEDS,
    WITHIN,
    Attempt,
    an_insider,
    an_outsider,
    attempt,
    one_shard,
    plain_verdict,
    resealed,
    restated,
    service_refusal,
)
from world import COUNT_RULE, LIMIT, NOW, RULE, TODAY, World, make_world, person

from protocol import check, comparison, voprf
from protocol.check import Question, Verdict, Void, accept_call, run_check
from protocol.encoding import encode
from protocol.manifest import Rule
from protocol.messages import CheckEnvelope, CheckRequest, SealedLane
from service.check_attempts import ANSWER_BYTES, ANSWER_LANE_BYTES
from transport.http_answers import MAX_ANSWER
from transport.server import MAX_BODY

WEEK_RULE = replace(RULE, id="both-products-7d", products=("accident", "term_life"), window_days=7, limit=LIMIT // 2)
RULES = (RULE, COUNT_RULE, WEEK_RULE)
BLOB = 1 << 20
"""What an envelope may have, as `messages.ENVELOPE` says."""


def asked(world: World, requester: int, questions: Sequence[Question]) -> list[tuple[Verdict, Void | None]]:
    return run_check(world.party(requester), world.service, world.members, list(questions), NOW, world.random)


# --- truth ---------------------------------------------------------------------------------------------------------


amounts = st.sampled_from([0, 1, LIMIT // 4, LIMIT // 2, LIMIT - 1, LIMIT, LIMIT + 1]) | st.integers(0, 2 * LIMIT)
deposits = st.tuples(
    st.integers(1, 7),
    st.integers(1, 3),
    st.sampled_from(["accident", "term_life", "group_accident"]),
    st.sampled_from([-31, -30, -29, -8, -7, -6, 0, 40]),
    amounts,
)
lanes_asked = st.tuples(st.integers(1, 4), st.sampled_from(RULES), amounts)


@deterministic(40)
@given(
    st.sampled_from([5, 6, 7]),
    st.lists(deposits, max_size=6),
    st.lists(lanes_asked, min_size=1, max_size=8),
    st.integers(1, 5),
)
def test_each_of_many_lanes_has_the_verdict_of_the_plain_sum_and_of_a_check_of_its_own(
    members: int,
    made: list[tuple[int, int, str, int, int]],
    lanes: list[tuple[int, Rule, int]],
    requester: int,
) -> None:
    world = make_world(members, rules=RULES, shards=1, seed=(members, len(made)))
    held = []
    for depositor, whom, product, back, amount in made:
        world.deposit(1 + depositor % members, person(whom), amount, day=TODAY + back, product=product)
        held.append((person(whom), product, TODAY + back, amount, 1))
    questions = [Question(person(whom), rule, proposed) for whom, rule, proposed in lanes]
    verdicts = asked(world, requester, questions)
    assert verdicts == [(plain_verdict(held, question, TODAY), None) for question in questions]
    assert verdicts == [asked(world, requester, [question])[0] for question in questions]


def test_one_person_under_all_rules_reads_the_longest_window_and_each_rule_sums_its_own() -> None:
    world = one_shard(rules=RULES)
    world.deposit(1, person(1), LIMIT // 2, day=TODAY - 29)
    world.deposit(2, person(1), LIMIT // 2, day=TODAY - 6, product="term_life")
    for rules in (RULES, RULES[::-1]):
        questions = [Question(person(1), rule, LIMIT // 2 + 1) for rule in rules]
        expected = {RULE.id: EXCEEDS, COUNT_RULE.id: WITHIN, WEEK_RULE.id: EXCEEDS}
        assert asked(world, 3, questions) == [(expected[rule.id], None) for rule in rules]
        below = [Question(person(1), rule, 0) for rule in rules]
        assert asked(world, 3, below) == [(WITHIN, None)] * 3


# --- what lanes of one person share --------------------------------------------------------------------------------


def test_questions_about_one_person_share_b_d_proof_index_and_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    world = one_shard(rules=RULES)
    questions = [Question(person(whom), rule, 5) for rule in RULES for whom in (1, 2)]
    made = attempt(world, an_outsider(world), questions)
    statement = made.statement
    assert len(statement.persons) == len(set(statement.persons)) == len(made.evaluation.evaluated) == 2
    assert [(lane.person, lane.rule_id) for lane in statement.lanes] == [
        (whom, rule.id) for rule in RULES for whom in (0, 1)
    ]
    work = dict.fromkeys(("verify_unblinder", "unblind", "index_key"), 0)
    for step in work:

        def counted(*given: object, step: str = step, real: object = getattr(check, step)) -> object:
            work[step] += 1
            return real(*given)  # type: ignore[operator]  the step itself

        monkeypatch.setattr(check, step, counted)
    slot = made.chosen[0]
    accepted = accept_call(made.custodian(slot), made.call(slot), NOW)
    assert set(work.values()) == {2}
    charges = accepted.admission().charges
    assert [(charge.index, charge.rule_id) for charge in charges] == [
        (accepted.persons[whom].index, rule.id) for rule in RULES for whom in (0, 1)
    ]
    first = RULE.window_start(statement.as_of)
    assert accepted.reading().persons == tuple((one.index, first) for one in accepted.persons)


def test_a_person_asked_about_twice_under_one_rule_is_two_persons_of_the_check() -> None:
    world = one_shard(rules=RULES)
    world.deposit(1, person(1), LIMIT)
    questions = [Question(person(1), rule, proposed) for proposed in (0, 1) for rule in (RULE, COUNT_RULE)]
    made = attempt(world, an_outsider(world), questions)
    assert len(set(made.statement.persons)) == 2
    assert [lane.person for lane in made.statement.lanes] == [0, 0, 1, 1]
    assert made.read(made.outcome()) == [(WITHIN, None), (WITHIN, None), (EXCEEDS, None), (WITHIN, None)]


def test_the_service_proves_its_evaluation_of_persons_and_not_of_lanes() -> None:
    world = one_shard(rules=RULES)
    made = attempt(world, an_outsider(world), [Question(person(1), rule, 5) for rule in RULES])
    persons = [check.Element(point) for point in made.statement.persons]
    key = world.manifest.blinding_key
    assert voprf.verify(key, persons, list(made.evaluation.evaluated), made.evaluation.proof)
    assert len(persons) == 1


# --- lanes that cannot be ------------------------------------------------------------------------------------------


BENT: dict[str, object] = {
    "no such person": lambda lanes: (replace(lanes[0], person=2), *lanes[1:]),
    "a person without a lane": lambda lanes: (replace(lanes[0], person=1), replace(lanes[1], person=1)),
    "one question twice": lambda lanes: (*lanes, lanes[0]),
    "one question twice, of another version": lambda lanes: (*lanes, replace(lanes[0], rule_version=2)),
    "a person less than there are": lambda lanes: lanes[:1],
}


@pytest.mark.parametrize("what", BENT)
def test_service_and_custodians_refuse_lanes_that_cannot_be_though_all_is_signed_and_sealed(what: str) -> None:
    bend, world = BENT[what], one_shard()
    made = attempt(world, an_outsider(world), [Question(person(1), RULE, 5), Question(person(2), COUNT_RULE, 5)])
    bent = resealed(
        restated(made, lanes=bend(made.statement.lanes)),  # type: ignore[operator]  a function
        lambda body: replace(body, lanes=bend(body.lanes)),  # type: ignore[operator]  a function
    )
    assert service_refusal(world, bent.request) == "bad-lanes"
    assert {bent.refusal(bent.call(slot), slot=slot) for slot in bent.chosen} == {"bad-lanes"}


def test_custodians_whose_envelopes_give_a_lane_to_another_person_open_no_tag() -> None:
    world = one_shard()
    world.deposit(1, person(1), LIMIT)
    made = attempt(world, an_outsider(world), [Question(person(1), RULE, 1), Question(person(2), COUNT_RULE, 0)])

    def swapped(body: CheckEnvelope) -> CheckEnvelope:
        return replace(body, lanes=tuple(replace(lane, person=1 - lane.person) for lane in body.lanes))

    bent = resealed(made, swapped)
    assert {bent.refusal(bent.call(slot), slot=slot) for slot in bent.chosen} == {"unequal-fields"}
    # A service that shows two custodians another statement, were it signed: header and seed are others, nothing opens.
    other = resealed(restated(made, lanes=swapped(made.statement).lanes), swapped)  # type: ignore[arg-type]  alike
    with pytest.raises(comparison.Disagreement):
        made.outcome({slot: other.call(slot) for slot in made.chosen[:2]})


# --- as many as there may be ---------------------------------------------------------------------------------------


def test_a_check_of_as_many_lanes_as_there_may_be_fits_every_bound_of_the_transport() -> None:
    long = "r" * 64
    world = one_shard(rules=(replace(RULE, id=long),))
    rule = world.manifest.terms.rules[0]
    questions = [Question(person(number), rule, 5) for number in range(comparison.MAX_LANES)]
    made = attempt(world, an_insider(world), questions[:1])
    token, lane = sealed_of(made)
    statement = replace(
        made.statement,
        persons=made.statement.persons * comparison.MAX_LANES,
        lanes=tuple(replace(made.statement.lanes[0], person=place) for place in range(comparison.MAX_LANES)),
    )
    body = replace(token, persons=token.persons * comparison.MAX_LANES, lanes=(lane,) * comparison.MAX_LANES)
    envelope = made.requester.channel(made.custodian(made.chosen[0]).id).seal(
        "check", bytes(16), encode(body), bytes(32)
    )
    assert len(envelope) < BLOB // 2
    signed = replace(made.request.signed, statement=statement)
    request = CheckRequest(signed=signed, envelopes=(envelope,) * 7)
    assert len(encode(request)) < MAX_BODY // 2
    call = replace(
        made.call(made.chosen[0]),
        signed=signed,
        evaluated=made.evaluation.evaluated * comparison.MAX_LANES,
        envelope=envelope,
    )
    assert len(encode(call)) < MAX_BODY // 4
    # The first of A sends the most; what it sends a lane is the same for each.
    answers = {count: len(encode(answer_of_first(world, questions[:count]))) for count in (1, 3)}
    a_lane = (answers[3] - answers[1]) // 2
    most = ANSWER_BYTES + comparison.MAX_LANES * ANSWER_LANE_BYTES
    assert answers[1] < ANSWER_BYTES + ANSWER_LANE_BYTES
    assert answers[1] + (comparison.MAX_LANES - 1) * a_lane < most <= 2 * MAX_ANSWER


def sealed_of(made: Attempt) -> tuple[CheckEnvelope, SealedLane]:
    """Return what is sealed to the first of A that holds shares, with a lane of the most shares."""
    kept: list[CheckEnvelope] = []
    resealed(made, lambda body: kept.append(body) or body)
    body = max(kept, key=lambda body: len(body.lanes[0].proposal))
    return body, replace(body.lanes[0], proposal=(body.lanes[0].proposal + (1,) * 7)[:7])


def answer_of_first(world: World, questions: list[Question]) -> object:
    made = attempt(world, an_insider(world), questions)
    return made.answer(made.chosen[0])
