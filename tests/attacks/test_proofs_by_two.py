"""The proof of C is verified by two of the four, that of D by all: whoever bends either opens nothing by it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, combinations

import pytest
from test_check import (
    EXCEEDS,
    INDETERMINATE,
    TICK,
    WITHIN,
    Attempt,
    an_insider,
    an_outsider,
    attempt,
    one_shard,
    person_changed,
    resealed,
    restated,
)
from test_malicious_member_in_memory import aimed_at
from test_malicious_service_in_memory import forced
from world import LIMIT, NOW, RULE, World, name, person, seeded

from protocol import check, group, voprf
from protocol.check import Question, Void, accept_call, accept_request, call_for, conclude, evaluation_verifiers
from protocol.comparison import Disagreement
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.messages import CheckAnswer, CheckCall
from protocol.party import random_scalar
from protocol.sharing import GROUPS

VOID = (INDETERMINATE, Void.DISAGREEMENT)
OFFSET = group.multiply_base(group.scalar_from_int(7))


def subsets(slots: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(slots, size) for size in range(1, len(slots) + 1))


@pytest.fixture(scope="module")
def made() -> Attempt:
    """A check of a person whose total exceeds the limit with what is proposed."""
    world = one_shard()
    world.deposit(1, person(1), LIMIT)
    return attempt(world, an_outsider(world), [Question(person(1), RULE, 1)])


# --- who verifies --------------------------------------------------------------------------------------------------


def test_two_positions_verify_and_over_many_checks_each_pair_as_often_as_any_other() -> None:
    ids = [seeded(number)(16) for number in range(1200)]
    for number in (1, 2, 3):
        pairs = Counter(evaluation_verifiers(check_id, number) for check_id in ids)
        assert set(pairs) == set(GROUPS)
        assert all(120 < count < 290 for count in pairs.values())
    apart = sum(evaluation_verifiers(check_id, 1) != evaluation_verifiers(check_id, 2) for check_id in ids)
    assert apart > len(ids) // 2


def test_of_the_four_exactly_those_two_look_at_the_proof_of_c(made: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = voprf.verify
    for slot in made.chosen:
        monkeypatch.setattr(voprf, "verify", lambda *given, slot=slot: looked.append(slot) or real(*given))
        accept_call(made.custodian(slot), made.call(slot), NOW)
    assert tuple(looked) == made.verifiers
    assert len(set(looked)) == 2


# --- a service that bends C ----------------------------------------------------------------------------------------


def another_key(made: Attempt, call: CheckCall) -> CheckCall:
    secret, public = voprf.derive_key_pair(bytes(32), b"another service")
    blinded = [Element(point) for point in made.statement.persons]
    points = [voprf.blind_evaluate(secret, point) for point in blinded]
    proof = voprf.prove(secret, public, blinded, points, random_scalar(seeded("nonce")))
    return replace(call, evaluated=tuple(points), proof=proof)


def moved(_made: Attempt, call: CheckCall) -> CheckCall:
    """P and a point of the service's choice: the same for all checks of a person."""
    return replace(call, evaluated=tuple(group.add(Element(point), OFFSET) for point in call.evaluated))


def of_another_check(made: Attempt, call: CheckCall) -> CheckCall:
    other = attempt(made.world, an_insider(made.world), [Question(person(1), RULE, 1)], seed="other")
    return replace(call, evaluated=other.evaluation.evaluated, proof=other.evaluation.proof)


def chosen_point(_made: Attempt, call: CheckCall) -> CheckCall:
    return replace(call, evaluated=(OFFSET,) * len(call.evaluated))


BENDS = [another_key, moved, of_another_check, chosen_point]


def answers_to(made: Attempt, calls: dict[int, CheckCall]) -> tuple[dict[int, CheckAnswer], dict[int, str]]:
    answers, refusals = {}, {}
    for slot, call in calls.items():
        try:
            answers[slot] = made.answer(slot, call)
        except ProtocolError as refused:
            refusals[slot] = refused.code
    return answers, refusals


@pytest.mark.parametrize("bend", BENDS)
def test_a_c_that_is_bent_for_any_of_the_four_is_refused_by_who_verifies_and_opens_nothing(
    made: Attempt, bend: Callable[[Attempt, CheckCall], CheckCall]
) -> None:
    honest = {slot: made.answer(slot) for slot in made.chosen}
    assert made.read(forced(made, honest)) == [(EXCEEDS, None)]
    for some in subsets(made.chosen):
        calls = {slot: bend(made, made.call(slot)) for slot in some}
        answers, refusals = answers_to(made, calls)
        assert refusals == {slot: "bad-evaluation" for slot in some if slot in made.verifiers}
        # The service takes what it has of an honest round besides, in every mixture that has a bent answer in it.
        for taken in subsets(tuple(answers)):
            mixed = honest | {slot: answers[slot] for slot in taken}
            with pytest.raises(Disagreement):
                conclude(made.world.service, made.evaluation, 1, made.chosen, TICK, mixed)
            assert made.read(forced(made, mixed)) == [VOID]


@pytest.mark.parametrize("bend", BENDS)
def test_those_that_do_not_verify_a_bent_c_come_to_nobody_and_have_no_rows_of_anybody(
    made: Attempt, bend: Callable[[Attempt, CheckCall], CheckCall]
) -> None:
    world, rows = made.world, Counter[str]()
    for slot in made.trusting:
        member = world.members[made.custodians[slot]]
        for what, call in (("true", made.call(slot)), ("bent", bend(made, made.call(slot)))):
            accepted = accept_call(member.party, call, NOW)
            rows[what] += sum(len(one.rows) for one in member.custody.view(accepted.reading()).persons)
            (charge,) = accepted.admission().charges
            assert charge.index == accepted.persons[0].index
    assert rows["true"] > 0
    assert rows["bent"] == 0


def test_a_bent_c_is_refused_as_long_as_one_of_the_two_is_honest(made: Attempt) -> None:
    bad, good = made.verifiers
    answers, refusals = answers_to(made, {slot: moved(made, made.call(slot)) for slot in made.chosen if slot != bad})
    assert refusals == {good: "bad-evaluation"}
    assert set(answers) == set(made.trusting)


def test_one_check_has_one_c_at_a_custodian_so_that_who_is_charged_is_who_is_answered() -> None:
    """Else a service could have budgets of nobody charged at first, and with a requester have answers for nothing."""
    world = one_shard()
    made = attempt(world, an_outsider(world), [Question(person(1), RULE, 1)])
    for slot in made.trusting:
        member = world.members[made.custodians[slot]]
        bent = accept_call(member.party, moved(made, made.call(slot)), NOW)
        assert member.custody.admit(bent.admission()) == ()
        for number in (1, 2, 3):
            true = accept_call(member.party, replace(made.call(slot), attempt=number), NOW)
            assert true.persons != bent.persons
            with pytest.raises(ProtocolError, match="check-id-reused"):
                member.custody.admit(true.admission())
    for slot in made.verifiers:  # whose proof is another, but C the same, are attempts of one check
        member = world.members[made.custodians[slot]]
        again = accept_request(world.service, made.request, NOW, seeded("again"))
        assert again.proof != made.evaluation.proof
        for number, evaluation in ((1, made.evaluation), (2, again)):
            call = call_for(evaluation, number, made.chosen, TICK, slot)
            assert member.custody.admit(accept_call(member.party, call, NOW).admission()) == ()


# --- a requester that bends D --------------------------------------------------------------------------------------


def seen_and_aimed(world: World) -> tuple[Attempt, Attempt]:
    """Return a check that a custodian saw, and its own, aimed at the pseudonym that it came to."""
    victim = attempt(world, an_outsider(world), [Question(person(1), RULE, 0)])
    spy = next(number for number in range(1, 9) if name(number) == victim.custodians[victim.chosen[0]])
    return victim, aimed_at(world, victim, spy)


def test_a_d_that_is_aimed_at_a_pseudonym_is_refused_at_every_position_before_anything_is_recorded() -> None:
    world = one_shard()
    world.deposit(2, person(1), LIMIT)
    _, aimed = seen_and_aimed(world)
    roles = set()
    for number in (1, 2, 3):
        for slot in aimed.chosen:
            roles.add(aimed.chosen.index(slot) in evaluation_verifiers(aimed.statement.check_id, number))
            call = replace(aimed.call(slot), attempt=number)
            assert aimed.refusal(call, slot=slot) == "bad-unblinder"
    assert roles == {True, False}


@pytest.mark.parametrize("role", ["verifiers", "trusting"])
def test_a_d_bent_for_two_of_the_four_alone_is_refused_by_them(role: str) -> None:
    world = one_shard()
    world.deposit(2, person(1), LIMIT)
    made = attempt(world, an_insider(world), [Question(person(1), RULE, 1)])
    some = getattr(made, role)
    bent = resealed(made, lambda body: person_changed(body, unblinder=OFFSET), some)
    answers, refusals = answers_to(bent, {slot: bent.call(slot) for slot in bent.chosen})
    assert refusals == dict.fromkeys(some, "bad-unblinder")
    assert set(answers) == set(bent.chosen) - set(some)


def test_were_d_too_verified_by_two_the_others_would_look_up_whom_a_custodian_saw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing would open; but the time of the answer would be of the one that was aimed at.

    By a person for whom it has deposited a thousand policies itself the requester would so come to know under which
    pseudonym it keeps, as a custodian, what others deposited for him.
    """
    world = one_shard()
    world.deposit(2, person(1), LIMIT)
    victim, aimed = seen_and_aimed(world)
    with monkeypatch.context() as trusting:
        trusting.setattr(check, "verify_unblinder", lambda *_: True)
        for slot in set(aimed.trusting) & set(victim.chosen):
            custodian = aimed.custodian(slot)
            looked_up = accept_call(custodian, aimed.call(slot), NOW)
            assert looked_up.persons == accept_call(custodian, victim.call(slot), NOW).persons
    assert set(aimed.trusting) & set(victim.chosen)


def test_the_honest_check_beside_all_this_is_answered(made: Attempt) -> None:
    assert made.read(made.outcome()) == [(EXCEEDS, None)]
    bent = restated(made, issued_at=int(NOW) - 1)
    assert {bent.refusal(bent.call(slot), slot=slot) for slot in bent.chosen} == {"unequal-fields"}
    assert made.world.check(2, person(2), 1) == (WITHIN, None)
