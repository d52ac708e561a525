"""A recheck in memory: persons as they stand, on a budget of their own, and nothing else that a check is not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from test_check import (
    EXCEEDS,
    TICK,
    WITHIN,
    Attempt,
    an_outsider,
    lane_changed,
    one_shard,
    resealed,
    restated,
)
from world import COUNT_RULE, LIMIT, NOW, RULE, World, make_world, name, person, seeded

from protocol.check import (
    Question,
    Verdict,
    Void,
    accept_call,
    accept_request,
    ask,
    conclude,
    run_check,
)
from protocol.comparison import Disagreement
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, Rule
from protocol.messages import RECHECK, UNDERWRITING, CheckEnvelope, CheckStatement

TIGHT = replace(RULE, budget=2, recheck_budget=3)
NONE = replace(RULE, recheck_budget=0)


def rechecked(world: World, requester: int, *rules: Rule, whom: int = 1) -> list[tuple[Verdict, Void | None]]:
    questions = [Question(person(whom), rule, 0) for rule in rules]
    return run_check(
        world.party(requester), world.service, world.members, questions, NOW, world.random, occasion=RECHECK
    )


def code_of(act: Callable[[], object]) -> str | None:
    try:
        act()
    except ProtocolError as refused:
        return refused.code
    return None


def attempted(world: World, occasion: int, *questions: Question) -> Attempt:
    """Return an attempt from outside the committee, of either occasion."""
    requester = an_outsider(world)
    party, random = world.party(requester), seeded(("attempt", occasion))
    pending, request = ask(party, list(questions), NOW, NOW + 2, random, occasion=occasion)
    evaluation = accept_request(world.service, request, NOW, random)
    slots = [entry.slot for entry in request.signed.statement.envelopes]
    return Attempt(world, party, pending, request, evaluation, tuple(slots[:4]))


@pytest.fixture
def made() -> Attempt:
    return attempted(one_shard(), RECHECK, Question(person(1), RULE, 0), Question(person(2), COUNT_RULE, 0))


# --- truth ---------------------------------------------------------------------------------------------------------


@deterministic(40)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(0, LIMIT)), min_size=1, max_size=4), st.integers(1, 7))
def test_a_recheck_says_of_the_plain_sum_what_an_underwriter_is_told_without_a_proposal(
    policies: list[tuple[int, int]], requester: int
) -> None:
    world = make_world(7, shards=1, seed=policies)
    for member, amount in policies:
        world.deposit(member, person(1), amount)
    expected = [
        (EXCEEDS if sum(amount for _, amount in policies) > LIMIT else WITHIN, None),
        (EXCEEDS if len(policies) > COUNT_RULE.limit else WITHIN, None),
    ]
    assert rechecked(world, requester, RULE, COUNT_RULE) == expected
    assert [world.check(requester, person(1), 0, rule=rule) for rule in (RULE, COUNT_RULE)] == expected


def test_twenty_applications_on_one_day_each_read_within_and_the_recheck_finds_them() -> None:
    """A deposit counts some seconds after its policy: whoever applies everywhere at once is found by night alone."""
    world = make_world(25, shards=1)
    each = LIMIT // 10
    assert {world.check(member, person(1), each) for member in range(1, 21)} == {(WITHIN, None)}
    for member in range(1, 21):
        world.deposit(member, person(1), each)
    assert [rechecked(world, member, RULE) for member in range(1, 21)] == [[(EXCEEDS, None)]] * 20


# --- no proposal ---------------------------------------------------------------------------------------------------


def test_a_recheck_with_a_proposal_is_not_asked_and_is_refused_by_every_custodian(made: Attempt) -> None:
    world = made.world
    proposal = [Question(person(1), RULE, 0), Question(person(1), RULE, 1)]
    assert code_of(lambda: ask(world.party(1), proposal, NOW, NOW + 2, world.random, occasion=RECHECK)) == (
        "bad-proposal"
    )
    assert made.read(made.outcome()) == [(WITHIN, None), (WITHIN, None)]
    for shares in ((0,), (0, 0, 0, 0), (1, 2, 3, 4), (0,) * 5):
        for lane in (0, 1):
            bent = resealed(made, lambda body, lane=lane, shares=shares: lane_changed(body, lane, proposal=shares))
            assert {bent.refusal(bent.call(slot), slot=slot) for slot in bent.chosen} == {"bad-proposal"}


def test_an_underwriters_check_without_shares_of_a_proposal_is_refused_by_all_that_should_hold_some() -> None:
    made = attempted(one_shard(), UNDERWRITING, Question(person(1), RULE, 0))
    bent = resealed(made, lambda body: lane_changed(body, proposal=()))
    refusals = [code_of(lambda slot=slot: bent.answer(slot)) for slot in bent.chosen]
    assert set(refusals) <= {"bad-proposal", None}
    assert refusals.count("bad-proposal") >= 3, "all but the slot that the sharing excludes"


def test_the_envelope_of_a_recheck_has_no_share_in_it_and_all_have_one_length(made: Attempt) -> None:
    for place, entry in enumerate(made.statement.envelopes):
        channel = made.custodian(entry.slot).channel(made.requester.id)
        opened = channel.open("check", made.statement.check_id, made.request.envelopes[place])
        assert [lane.proposal for lane in decode(CheckEnvelope, opened).lanes] == [(), ()]
    assert len({len(envelope) for envelope in made.request.envelopes}) == 1


# --- one occasion --------------------------------------------------------------------------------------------------


def test_custodians_that_are_told_different_occasions_agree_on_nothing() -> None:
    """At the slot that the sharing excludes either occasion is well-formed, so header and seed must tell them apart."""
    world = one_shard()
    as_asked = attempted(world, RECHECK, Question(person(1), RULE, 0))
    other = restated(as_asked, occasion=UNDERWRITING)
    header_of = {occasion: replace(as_asked.statement, occasion=occasion) for occasion in (RECHECK, UNDERWRITING)}
    assert encode(header_of[RECHECK]) != encode(header_of[UNDERWRITING])
    told = {}
    for slot in as_asked.chosen:
        refused = code_of(lambda slot=slot: other.answer(slot))
        assert refused in {"bad-proposal", None}
        told[slot] = other.call(slot) if refused is None else as_asked.call(slot)
    excluded = [slot for slot, call in told.items() if call.signed.statement.occasion == UNDERWRITING]
    if not excluded:
        pytest.fail("the seed should exclude a slot of A")
    answers = {slot: as_asked.answer(slot, call) for slot, call in told.items()}
    with pytest.raises(Disagreement):
        conclude(world.service, as_asked.evaluation, 1, as_asked.chosen, TICK, answers)


def test_the_service_and_custodians_refuse_an_occasion_that_the_requester_did_not_sign(made: Attempt) -> None:
    forged = replace(made.request.signed, statement=replace(made.statement, occasion=UNDERWRITING))
    request = replace(made.request, signed=forged)
    assert code_of(lambda: accept_request(made.world.service, request, NOW, made.world.random)) == "bad-signature"
    assert {made.refusal(replace(made.call(slot), signed=forged), slot=slot) for slot in made.chosen} == {
        "bad-signature"
    }


@pytest.mark.parametrize("occasion", [0, 3, 255])
def test_there_are_two_occasions(made: Attempt, occasion: int) -> None:
    data = bytearray(encode(made.statement))
    place = data.index(made.statement.check_id) + 16
    assert data[place] == RECHECK
    data[place] = occasion
    assert code_of(lambda: decode(CheckStatement, bytes(data))) == "malformed"


def test_a_check_that_was_recorded_is_not_asked_again_as_the_other_occasion(made: Attempt) -> None:
    slot = made.chosen[0]
    member = made.world.members[made.custodians[slot]]
    member.custody.admit(accept_call(member.party, made.call(slot), NOW).admission())
    accepted = accept_call(member.party, as_underwriting(made).call(slot), NOW)
    assert code_of(lambda: member.custody.admit(accepted.admission())) == "check-id-reused"


def as_underwriting(made: Attempt) -> Attempt:
    """Return the recheck's lanes as an underwriter's check under the same id, with shares of nothing."""
    party, random = made.requester, seeded("other")

    def draw(count: int) -> bytes:
        return made.statement.check_id if count == 16 else random(count)

    questions = [Question(person(1), RULE, 0)]
    pending, request = ask(party, questions, NOW, NOW + 2, draw)
    evaluation = accept_request(made.world.service, request, NOW, random)
    return replace(made, pending=pending, request=request, evaluation=evaluation)


# --- a budget of its own -------------------------------------------------------------------------------------------


SPENT = (Verdict.INDETERMINATE, Void.BUDGET_EXHAUSTED)


def asked_until_spent(act: Callable[[], tuple[Verdict, Void | None]], most: int = 40) -> int:
    for spent in range(most):
        if act() == SPENT:
            return spent
    raise AssertionError("the budget is never spent")


@pytest.mark.parametrize("first", [UNDERWRITING, RECHECK])
def test_a_spent_budget_of_either_occasion_leaves_the_others_whole(first: int) -> None:
    """Of five members four are asked, always the same: each answer is charged at all of them."""
    worlds = [make_world(5, shards=1, rules=(TIGHT,), seed="spent") for _ in range(2)]

    def asks(world: World) -> dict[int, Callable[[], tuple[Verdict, Void | None]]]:
        return {
            UNDERWRITING: lambda: world.check(1, person(1), 1, rule=TIGHT),
            RECHECK: lambda: rechecked(world, 1, TIGHT)[0],
        }

    second = RECHECK if first == UNDERWRITING else UNDERWRITING
    budgets = {UNDERWRITING: TIGHT.budget, RECHECK: TIGHT.recheck_budget}
    spent, fresh = asks(worlds[0]), asks(worlds[1])
    assert asked_until_spent(spent[first]) == budgets[first]
    assert asked_until_spent(spent[second]) == budgets[second]
    assert asked_until_spent(fresh[second]) == budgets[second]


def test_a_group_gets_no_more_rechecks_of_a_person_than_the_budget_of_four_custodians_allows() -> None:
    world = make_world(8, shards=1, rules=(TIGHT,), owners={name(1): "one", name(2): "one"})
    answered = sum(rechecked(world, who, TIGHT) != [SPENT] for who in (1, 2) * 10)
    slots = 6 - (world.manifest.slot_of_group(0, name(1)) is not None)
    assert TIGHT.recheck_budget <= answered <= slots * TIGHT.recheck_budget // 4
    assert rechecked(world, 3, TIGHT) == [(WITHIN, None)], "another group has a budget of its own"


def test_a_rule_without_a_recheck_budget_is_asked_about_by_nobody_and_refused_by_every_custodian() -> None:
    world = one_shard(rules=(NONE,))
    question = [Question(person(1), NONE, 0)]
    assert code_of(lambda: ask(world.party(1), question, NOW, NOW + 2, world.random, occasion=RECHECK)) == (
        "recheck-not-allowed"
    )
    assert world.check(1, person(1), 0, rule=NONE) == (WITHIN, None)
    # A requester that asks all the same, as a manifest with a budget would let it.
    made = attempted(world, RECHECK, Question(person(1), RULE, 0))
    assert {made.refusal(made.call(slot), slot=slot) for slot in made.chosen} == {"recheck-not-allowed"}


def test_the_hash_that_admins_sign_covers_the_recheck_budget() -> None:
    terms = make_world(5).manifest.terms
    assert Manifest.of(terms).hash != Manifest.of(replace(terms, rules=(NONE, COUNT_RULE))).hash


# --- what others see -----------------------------------------------------------------------------------------------


def seen(world: World, whom: int, occasion: int) -> tuple[list[int], list[tuple[str, int, int, int]]]:
    """Return lengths of what the service is sent and returns, and what custodians are told but the blinded points."""
    made = attempted(world, occasion, Question(person(whom), RULE, 0))
    outcome = made.outcome()
    sizes = [len(encode(made.request)), len(encode(outcome)), *(len(encode(made.call(slot))) for slot in made.chosen)]
    statement = made.statement
    told = [
        (statement.requester, statement.occasion, statement.as_of, len(encode(made.answer(slot))))
        for slot in made.chosen
    ]
    return sizes, told


def test_service_and_custodians_see_the_same_of_a_recheck_whatever_the_person_holds() -> None:
    little, much = one_shard(), one_shard()
    little.deposit(1, person(1), 5)
    for member in (1, 2, 3):
        much.deposit(member, person(1), LIMIT)
    assert rechecked(little, an_outsider(little), RULE) == [(WITHIN, None)]
    assert rechecked(much, an_outsider(much), RULE) == [(EXCEEDS, None)]
    assert seen(little, 1, RECHECK) == seen(much, 1, RECHECK)
    assert seen(little, 1, RECHECK) != seen(little, 1, UNDERWRITING), "the occasion is told to all"


def test_a_recheck_blinds_each_person_anew_so_the_service_links_no_night_to_another() -> None:
    world = one_shard()
    requests = [
        ask(world.party(1), [Question(person(1), RULE, 0)], NOW, NOW + 2, world.random, occasion=RECHECK)[1]
        for _ in range(2)
    ]
    one, two = (request.signed.statement.persons[0] for request in requests)
    assert one != two
