"""What a malicious requester or depositor may try that is exhaustive rather than live, with every party in memory."""

from dataclasses import replace
from itertools import chain, combinations

import pytest
from strategies import made_anew
from test_check import (
    EXCEEDS,
    INDETERMINATE,
    WITHIN,
    Attempt,
    an_insider,
    an_outsider,
    attempt,
    lane_changed,
    one_shard,
    person_changed,
    proposal_at,
    resealed,
    restated,
)
from test_deposit import Relay, bent, entry, opened
from test_group import BAD_ENCODINGS
from world import LIMIT, NOW, RULE, World, make_world, name, person, seeded

from protocol import check, group
from protocol.check import PURPOSE, Question, Verdict, Void, accept_request
from protocol.comparison import Disagreement
from protocol.deposit import Decision, is_complete, make_deposit
from protocol.encoding import POINT, SCALAR, decode
from protocol.errors import ProtocolError
from protocol.group import ORDER, Element
from protocol.messages import CheckCall, CheckEnvelope
from protocol.party import random_scalar
from protocol.sharing import RING, held_labels, share
from protocol.token import SchnorrProof, unblind

DISAGREEMENT = (Verdict.INDETERMINATE, Void.DISAGREEMENT)


def subsets(slots: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return every subset but none and all."""
    return list(chain.from_iterable(combinations(slots, size) for size in range(1, len(slots))))


# --- aiming at a pseudonym -----------------------------------------------------------------------------------------


def aimed_at(world: World, victim: Attempt, spy: int) -> Attempt:
    """Return a check by a custodian that knows a pseudonym P: B = t*G, whose C is t*Ks, and D = C - P."""
    slot = victim.custodians.index(name(spy))
    call, channel = victim.call(slot), world.party(spy).channel(victim.requester.id)
    body = decode(CheckEnvelope, channel.open(PURPOSE, victim.statement.check_id, call.envelope))
    pseudonym = unblind(Element(call.evaluated[0]), Element(body.persons[0].unblinder))
    t = random_scalar(seeded("aim"))
    blinded, mine = group.multiply_base(t), group.multiply(t, world.manifest.blinding_key)
    unblinder = group.subtract(mine, Element(pseudonym))
    made = attempt(world, spy, [Question(person(9), RULE, 1)])
    aimed = resealed(
        restated(made, persons=(blinded,)),
        lambda sealed: person_changed(sealed, blinded=blinded, unblinder=unblinder, proof=body.persons[0].proof),
    )
    return replace(aimed, evaluation=accept_request(world.service, aimed.request, NOW, seeded("service")))


def test_without_the_proof_on_d_a_custodian_would_ask_about_a_pseudonym_that_it_saw_and_with_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = one_shard()
    world.deposit(2, person(1), LIMIT)
    victim = attempt(world, an_outsider(world), [Question(person(1), RULE, 0)])
    spy = next(n for n in range(1, 9) if name(n) == victim.custodians[victim.chosen[0]])
    aimed = aimed_at(world, victim, spy)
    assert {aimed.refusal(aimed.call(slot), slot=slot) for slot in aimed.chosen} == {"bad-unblinder"}
    monkeypatch.setattr(check, "verify_unblinder", lambda *_: True)
    assert aimed.read(aimed.outcome()) == [(EXCEEDS, None)]  # the total of a person whom it cannot name
    untouched = attempt(world, spy, [Question(person(9), RULE, 1)])
    assert untouched.read(untouched.outcome()) == [(WITHIN, None)]


def test_every_bad_point_and_scalar_in_an_envelope_is_refused_as_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = one_shard()
    made = attempt(world, an_outsider(world), [Question(person(1), RULE, 5)])
    relay = Relay.start(world, make_deposit(world.party(1), entry(), bytes(16), world.random), 1)
    at, slot = made.chosen[0], relay.slots[0]
    points = [*(data for _, data in BAD_ENCODINGS), bytes(32)]
    scalars = [(value % 2**256).to_bytes(32, "little") for value in (ORDER, ORDER + 1, 2**255, 2**256 - 1)]
    bad = [
        *({"unblinder": point} for point in points),
        *({"proof": SchnorrProof(challenge=scalar, response=bytes(32))} for scalar in scalars),
        *({"proof": SchnorrProof(challenge=bytes(32), response=scalar)} for scalar in scalars),
    ]
    with monkeypatch.context() as permissive:
        for codec in (POINT, SCALAR):
            permissive.setattr(codec, "_check", None)
        made_anew(permissive)
        calls = [
            resealed(made, lambda body, changes=changes: person_changed(body, **changes)).call(at) for changes in bad
        ]
        deposits = [bent(relay, lambda body, changes=changes: replace(body, **changes), [slot]) for changes in bad]
    assert {made.refusal(call, slot=at) for call in calls} == {"malformed"}
    for item in deposits:
        (refused,) = item.accepted(slot)
        assert isinstance(refused, ProtocolError)
        assert refused.code == "malformed"
    assert len(calls) == len(deposits) == 30 + 8
    zero = resealed(
        made, lambda body: person_changed(body, proof=SchnorrProof(challenge=bytes(32), response=bytes(32)))
    )
    assert made.refusal(zero.call(at), slot=at) == "bad-unblinder"


# --- proposals -----------------------------------------------------------------------------------------------------


def shared_as(made: Attempt, value: int, slot: int, lane: int = 0) -> tuple[int, ...]:
    """Return a slot's shares of a proposal of any value, the same sharing for all slots."""
    size, id_ = len(made.custodians), made.statement.check_id
    own = made.world.manifest.slot_of_group(made.statement.shard, made.requester.id)
    excluded = check.excluded_slot(made.statement.shard, own, size, id_)
    shares = share(value, size, excluded, seeded((id_, lane))((size - 2) * 6))
    return tuple(shares[key] for key in held_labels(size, excluded, slot))


def proposing(made: Attempt, values: dict[int, int], lane: int = 0) -> dict[int, CheckCall]:
    """Return the calls of custodians that are each given shares of another value."""
    return {
        slot: resealed(
            made,
            lambda body, slot=slot, value=value: lane_changed(body, lane, proposal=shared_as(made, value, slot, lane)),
            (slot,),
        ).call(slot)
        for slot, value in values.items()
    }


@pytest.mark.parametrize("asker", [an_outsider, an_insider])
def test_of_two_proposals_told_to_different_custodians_a_verdict_is_that_of_the_one_that_senders_and_vouchers_got(
    asker: object,
) -> None:
    # The garbled value is the senders', and it opens only where the vouchers have it too: no third value comes of two.
    world = one_shard()
    world.deposit(2, person(1), LIMIT - 10)
    right = {10: (WITHIN, None), 11: (EXCEEDS, None)}
    ends = set()
    for seed in range(6):
        made = attempt(world, asker(world), [Question(person(1), RULE, 10)], seed=seed)  # type: ignore[operator]  a function
        for first, second in ((10, 11), (11, 10)):
            whole = proposing(made, dict.fromkeys(made.chosen, first))
            assert made.read(made.outcome(whole)) == [right[first]]
            for some in subsets(made.chosen):
                calls = proposing(made, {slot: second if slot in some else first for slot in made.chosen})
                (verdict,) = outcome_of(made, calls)
                assert verdict in {right[first], right[second], DISAGREEMENT}
                holders = {slot for slot in made.chosen if proposal_at(made, slot)}
                if not holders & set(some):
                    assert verdict == right[first]
                ends.add((verdict == DISAGREEMENT, len(some)))
    assert {(True, 1), (True, 2), (True, 3)} <= ends


def outcome_of(made: Attempt, calls: dict[int, CheckCall]) -> list[tuple[Verdict, Void | None]]:
    try:
        return made.read(made.outcome(calls))
    except Disagreement:
        return [DISAGREEMENT] * len(made.statement.lanes)


def test_a_proposal_that_is_no_amount_is_compared_as_the_number_that_it_is_in_the_ring() -> None:
    world = one_shard()
    world.deposit(2, person(1), LIMIT - 10)
    made = attempt(world, an_outsider(world), [Question(person(1), RULE, 10)])
    for value in (0, 10, 11, -1, -LIMIT, RING - 1, RING // 2, RING // 2 + 10, RING // 2 + 11, RING + 11, 1 << 60):
        exceeds = (10 - value) % RING >= RING // 2
        calls = proposing(made, dict.fromkeys(made.chosen, value))
        assert made.read(made.outcome(calls)) == [(EXCEEDS if exceeds else WITHIN, None)]


@pytest.mark.parametrize("poisoned", range(3))
def test_a_lane_told_to_custodians_otherwise_voids_the_check_or_leaves_every_other_lane_right(poisoned: int) -> None:
    world = one_shard()
    world.deposit(2, person(1), LIMIT - 10)
    proposals = (11, 10, 11)
    made = attempt(world, an_outsider(world), [Question(person(1), RULE, value) for value in proposals])
    right = [(EXCEEDS, None), (WITHIN, None), (EXCEEDS, None)]
    assert made.read(made.outcome()) == right
    voids = 0
    for some in subsets(made.chosen):
        calls = {}
        for slot in some:
            value = proposing(made, {slot: LIMIT}, poisoned)[slot]
            calls[slot] = value
        verdicts = outcome_of(made, calls)
        others = [verdict for lane, verdict in enumerate(verdicts) if lane != poisoned]
        assert others in ([DISAGREEMENT] * 2, [verdict for lane, verdict in enumerate(right) if lane != poisoned])
        voids += verdicts == [DISAGREEMENT] * 3
    assert voids


# --- a shard that is not the person's --------------------------------------------------------------------------------


def test_answers_in_every_shard_are_charged_to_one_budget_of_the_person(monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise as many budgets as shards; that only one of them has the person's rows would be luck.
    budget = 4
    world = make_world(5, shards=3, rules=(replace(RULE, budget=budget),))
    answers = {}
    for shard in (0, 1, 2):
        monkeypatch.setattr(check, "shard_of_person", lambda *_, shard=shard: shard)
        answers[shard] = 0
        for _ in range(2 * budget):
            verdict = world.check(1, person(1), 1, rule=world.manifest.terms.rules[0])
            assert verdict in ((WITHIN, None), (INDETERMINATE, Void.BUDGET_EXHAUSTED))
            answers[shard] += verdict == (WITHIN, None)
    assert sum(answers.values()) == budget


# --- deposits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["amounts", "salts"])
def test_whichever_holders_are_sent_another_sharing_they_commit_nothing_together(field: str) -> None:
    world = make_world(8, shards=1)
    for some in subsets((0, 1, 2, 3, 4)):
        made = make_deposit(world.party(1), entry(), world.random(16), world.random)
        relay = Relay.start(world, made, 1)
        other = make_deposit(world.party(1), entry(), made.deposit.deposit_id, world.random)
        second = replace(relay, made=other)
        told = [relay.slots[place] for place in some]
        for slot in told:
            body = opened(second, slot)
            relay = bent(relay, lambda first, body=body: replace(first, **{field: getattr(body, field)}), [slot])
        decision = relay.decide()
        assert decision == Decision(None, (), "refused")
        assert relay.commit(decision) == {}
        assert relay.visible() == {slot: set() for slot in relay.slots}
        for slot in relay.slots:  # what is pending is in the way of what comes next
            relay.abandon_at(slot)
    assert world.check(2, person(1), LIMIT) == (WITHIN, None)
    honest = Relay.start(world, make_deposit(world.party(1), entry(), world.random(16), world.random), 1)
    assert is_complete(world.manifest, honest.made, honest.commit(honest.decide()))
    assert world.check(2, person(1), 1) == (EXCEEDS, None)
