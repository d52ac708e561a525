"""Holes that reviewers found, each shut: the test is the failing example that they gave."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from strategies import deterministic, scalars
from test_check import an_outsider, attempt, one_shard
from test_comparison import HONEST, OVER, flipped, replaced
from test_deposit import Relay, entry, opened
from world import LIMIT, NOW, RULE, World, make_world, name, person

from protocol import group
from protocol.check import MemberInMemory, Question, Verdict
from protocol.committee_keys import KeyEnvelope
from protocol.comparison import Disagreement
from protocol.deposit import TOO_FEW, make_deposit
from protocol.errors import ProtocolError
from protocol.identity import DocumentType, Identity
from protocol.manifest import Manifest
from protocol.messages import CANCELLATION, PrepareAnswer
from protocol.party import Party, ServiceParty
from protocol.secret import Secret


def under(world: World, manifest: Manifest) -> World:
    members = {
        key: MemberInMemory(Party(key, member.party.keys, manifest), member.custody, member.committee_keys)
        for key, member in world.members.items()
    }
    return World(manifest, ServiceParty(world.service.keys, manifest), members, world.random)


@deterministic(60)
@given(scalars)
def test_an_element_with_its_top_bit_set_is_no_element(factor: group.Scalar) -> None:
    point = group.multiply_base(factor)
    assert not group.is_element(point[:31] + bytes([point[31] | 0x80]))


def test_the_identity_with_its_top_bit_set_is_no_element() -> None:
    assert not group.is_element(bytes(31) + b"\x80")


def test_an_outsider_can_correct_its_deposit() -> None:
    world = make_world(8, shards=1)
    slots = world.manifest.committee(0).slots
    outsider = next(n for n in range(1, 9) if name(n) not in slots)
    for who in range(6):
        made, _ = world.deposit(outsider, person(who), LIMIT)
        earlier = made.deposit.deposit_id
        _, states = world.deposit(outsider, person(who), -LIMIT, kind=CANCELLATION, earlier=earlier)
        assert len(states) == 5


@pytest.mark.parametrize("tick_seconds", [1, 10, 20])
def test_every_tick_length_of_a_manifest_can_be_checked(tick_seconds: int) -> None:
    world = make_world(7, shards=1, tick_seconds=tick_seconds)
    for second in range(60):
        assert world.check(1, person(1), 1, now=NOW + second) == (Verdict.WITHIN, None)


def test_a_store_of_another_epoch_is_refused_not_zero() -> None:
    world = make_world(7, shards=1)
    world.deposit(1, person(1), 2 * LIMIT)
    newer = under(world, Manifest.of(replace(world.manifest.terms, epoch=2, serial=2)))
    try:
        verdict, _ = newer.check(2, person(1), 1)
    except ProtocolError:
        return
    assert verdict is not Verdict.WITHIN


def test_a_proposal_or_amount_that_the_ring_cannot_hold_is_refused() -> None:
    world = make_world(7, shards=1)
    verdict = Verdict.INDETERMINATE
    with contextlib.suppress(ProtocolError):
        verdict, _ = world.check(1, person(1), 2**48)
    assert verdict is not Verdict.WITHIN
    with contextlib.suppress(ProtocolError):
        world.deposit(1, person(2), 2**48)
        verdict, _ = world.check(2, person(2), 1)
        assert verdict is not Verdict.WITHIN


def test_a_member_with_another_salt_does_not_start() -> None:
    world = make_world(7, shards=1)
    with pytest.raises(ProtocolError):
        Party(name(1), replace(world.party(1).keys, salt=Secret(bytes(32))), world.manifest)


def test_a_disagreement_passes_through_a_context_manager() -> None:
    @contextlib.contextmanager
    def transaction() -> Iterator[None]:
        yield

    with pytest.raises(Disagreement), transaction():
        raise Disagreement((1,), "session")


def test_a_holder_that_answers_too_little_is_one_that_did_not_answer_not_a_crash() -> None:
    world = make_world(7, shards=1)
    made = make_deposit(world.party(1), entry(), world.random(16), world.random)
    relay = Relay.start(world, made, 1)
    answers = relay.answers()
    answers[relay.slots[0]] = PrepareAnswer(answers=(), garbled=None)
    decision = relay.decided(answers)
    assert (decision.tick, decision.slots) == (5, relay.slots[1:])
    answers[relay.slots[1]] = PrepareAnswer(answers=(), garbled=None)
    decision = relay.decided(answers)
    assert (decision.tick, decision.slots, decision.reason) == (None, (), TOO_FEW)


def test_a_stale_committee_key_is_not_answered_with() -> None:
    world = one_shard()
    c = world.manifest.committees[0]
    newer = under(world, Manifest.of(replace(world.manifest.terms, serial=2, committees=(replace(c, version=2),))))
    made = attempt(newer, an_outsider(newer), [Question(person(1), RULE, 1)])
    with pytest.raises((ProtocolError, KeyError)):
        made.outcome()


def test_a_holder_that_claims_a_future_tick_does_not_name_it_for_all() -> None:
    world = make_world(7, shards=1)
    made = make_deposit(world.party(1), entry(), world.random(16), world.random)
    relay = Relay.start(world, made, 1)
    answers = relay.answers()
    lie = replace(answers[relay.slots[0]].answers[0], tick=2**64 - 1)
    answers[relay.slots[0]] = PrepareAnswer(answers=(lie,), garbled=None)
    assert relay.decided(answers, tick=int(NOW)).tick == int(NOW)


def test_bodies_of_envelopes_do_not_print_their_secrets() -> None:
    world = make_world(7, shards=1)
    relay = Relay.start(world, make_deposit(world.party(1), entry(), world.random(16), world.random), 1)
    body = opened(relay, relay.slots[0])
    key = KeyEnvelope(
        shard=0, omitted=None, committee_version=1, made_at=1, secret=b"committee secret" * 2, manifest_hash=bytes(32)
    )
    assert "committee secret" not in repr(key)
    assert not any(str(piece) in repr(body) for piece in body.amounts)


def test_a_number_that_is_no_unicode_is_refused_as_such() -> None:
    with pytest.raises(ProtocolError):
        Identity(DocumentType.PASSPORT, "\ud800")


def test_a_doctored_k_is_noticed_by_the_service() -> None:
    parts = HONEST.parts(OVER)
    lie = replace(parts[5].vouched[0], masked=flipped(parts[5].vouched[0].masked, 9))
    with pytest.raises(Disagreement, match="slots \\(5,\\): a voucher's K"):
        HONEST.evaluate({**parts, 5: replace(parts[5], vouched=replaced(parts[5].vouched, 0, lie))})
