"""A malicious lookup service, in memory: every bit and every combination, which are too many for real agents."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import combinations, product
from typing import TypeVar

import pytest
from malicious_service import Blind
from test_check import Attempt, an_insider, an_outsider, attempt, one_shard
from test_deposit import BEFORE, Relay, entry
from test_store_outbox import PARTY, Store
from test_store_outbox import entry as issue_of
from world import LIMIT, NOW, RULE, World, name, person

from protocol import check as steps
from protocol import committee_keys
from protocol.check import Question, Verdict, Void, conclude, shard_of_person
from protocol.comparison import Disagreement, Part
from protocol.custody import Reading
from protocol.deposit import (
    accept_commit,
    batch_outcome,
    commit_call,
    draw_deposit_id,
    give_receipts,
    is_complete,
    make_deposit,
    read_receipts,
)
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import (
    CANCELLATION,
    CheckAnswer,
    CheckCall,
    CheckOutcome,
    CommitCall,
    DepositOutcome,
    PrepareCall,
    Relayed,
)
from protocol.sharing import Chosen
from protocol.stamps import acceptable_as_of, as_of_tick

M = TypeVar("M")
TICK = as_of_tick(NOW, 1)
WITHIN, EXCEEDS = (Verdict.WITHIN, None), (Verdict.EXCEEDS, None)
VOID = (Verdict.INDETERMINATE, Void.DISAGREEMENT)


@pytest.fixture
def world() -> World:
    return one_shard()


@pytest.fixture
def relay(world: World) -> Relay:
    """A deposit of the whole limit for person 1, evaluated by the service and not yet passed on."""
    depositor = an_insider(world)
    return Relay.start(world, make_deposit(world.party(depositor), entry(), world.random(16), world.random), depositor)


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store.open(database)
    yield opened
    opened.database.close()


def with_each_bit_flipped(data: bytes) -> Iterator[tuple[int, bytes]]:
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(flipped)


def decoded(kind: type[M], data: bytes) -> M | None:
    """Return the message, None where a decoder refuses it; that it does so cleanly is `test_encoding.py`'s."""
    try:
        return decode(kind, data)
    except ProtocolError:
        return None


def forced(made: Attempt, answers: dict[int, CheckAnswer], number: int = 1, tick: int = TICK) -> CheckOutcome:
    """Evaluate whatever there is under a header, without comparing, and return what comes out as the tags."""
    manifest, statement = made.world.manifest, made.statement
    key = answers[made.chosen[0]].committee_key
    header = encode(steps._header(manifest, statement, number, made.chosen, tick, key))
    a, b, c, d = made.chosen
    blind = Blind(Chosen((a, b, c, d), len(made.custodians)), (0,) * len(statement.lanes), under=header)
    tags = blind.evaluate_regardless({slot: answer.part for slot, answer in answers.items()})
    return CheckOutcome(check_id=statement.check_id, attempt=number, chosen=made.chosen, tags=tuple(tags), void=None)


# --- every bit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("who", [an_insider, an_outsider])
def test_an_outcome_with_any_bit_flipped_gives_no_other_verdict_and_none_where_it_was_flipped(
    who: Callable[[World], int], lanes: int
) -> None:
    world = one_shard()
    world.deposit(1, person(1), LIMIT)
    made = attempt(world, who(world), [Question(person(1), RULE, 1), Question(person(2), RULE, 1)][:lanes])
    good = encode(made.outcome())
    truth = [EXCEEDS, WITHIN][:lanes]
    assert made.read(decode(CheckOutcome, good)) == truth
    for bit, data in with_each_bit_flipped(good):
        outcome = decoded(CheckOutcome, data)
        if outcome is None:
            continue
        told = made.read(outcome)
        whole = decode(CheckOutcome, good)
        tampered = [outcome.tags[lane : lane + 1] != whole.tags[lane : lane + 1] for lane in range(lanes)]
        expected = [VOID if bad or not any(tampered) else true for bad, true in zip(tampered, truth, strict=True)]
        assert told == expected, bit


@pytest.mark.long  # as in `test_bit_flips_of_messages.py`, and goes on regardless
@pytest.mark.parametrize("verifies", [True, False])
def test_a_call_with_any_bit_flipped_is_refused_or_makes_its_custodian_disagree(
    world: World,
    verifies: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    made = attempt(world, an_insider(world), [Question(person(1), RULE, 5)])
    answers = {slot: made.answer(slot) for slot in made.chosen}
    assert made.read(forced(made, answers)) == [WITHIN]
    slot, taken, codes = (made.verifiers if verifies else made.trusting)[0], set(), set()
    free = {"attempt", "tick", "chosen", *(() if verifies else ("evaluated", "proof"))}
    for _, data in with_each_bit_flipped(encode(made.call(slot))):
        bent = decoded(CheckCall, data)
        if bent is None:
            continue
        try:
            answer = made.answer(slot, bent)
        except ProtocolError as refused:
            codes.add(refused.code)
            continue
        honest = made.call(slot)
        (changed,) = (field.name for field in fields(bent) if getattr(bent, field.name) != getattr(honest, field.name))
        taken.add(changed)
        if changed == "proof":  # two others look at it
            assert answer == answers[slot]
            continue
        with pytest.raises(Disagreement):
            conclude(world.service, made.evaluation, 1, made.chosen, TICK, {**answers, slot: answer})
        if bent.chosen == honest.chosen:
            assert made.read(forced(made, {**answers, slot: answer})) == [VOID]
    assert taken == free
    assert codes - {"bad-evaluation"} == {"bad-signature", "bad-envelopes", "bad-choice", "bad-tick", "unknown-member"}
    assert ("bad-evaluation" in codes) is verifies


@pytest.mark.long  # as in `test_bit_flips_of_messages.py`
def test_a_prepare_with_any_bit_flipped_is_refused(relay: Relay) -> None:
    slot = relay.slots[1]
    call = relay.call(slot)  # an order of a range check: `test_bit_flips_of_messages.py`
    assert relay.prepare(slot, call).answers[0].refusal is None
    codes = set()
    for _, data in with_each_bit_flipped(encode(call)):
        bent = decoded(PrepareCall, data)
        if bent is not None:
            codes.add(refused_deposit(relay, slot, bent))
    assert codes == {
        "bad-envelope",
        "bad-evaluation",
        "other-key",  # that of another depositor
        "other-manifest",
        "unequal-fields",
        "unknown-member",
        "unknown-shard",
    }
    assert relay.visible() == {slot: set() for slot in relay.slots}


def refused_deposit(relay: Relay, slot: int, bent: PrepareCall) -> str:
    """Return the code with which a holder refuses a deposit, or the call; fail if it does not."""
    try:
        (result,) = relay.accepted(slot, bent)
    except ProtocolError as refused:
        return refused.code
    assert isinstance(result, ProtocolError)
    return result.code


def test_a_commit_with_any_bit_flipped_commits_nothing_or_is_told_by_its_tick(relay: Relay) -> None:
    decision = relay.decide()
    slot = relay.slots[1]
    holder, call = relay.holder(slot), commit_call(relay.evaluated, [decision], slot)
    assert call is not None
    prepared, ends = holder.custody, set()
    honest = relay.visible()[slot]
    for _, data in with_each_bit_flipped(encode(call)):
        bent = decoded(CommitCall, data)
        if bent is None:
            continue
        custody = copy.deepcopy(prepared)
        try:
            commits = accept_commit(holder.party, bent, BEFORE)
        except ProtocolError as refused:
            ends.add(refused.code)
            continue
        (kept,) = custody.commit(bent.depositor, bent.shard, commits)
        stamps = custody.view(Reading(relay.made.shard, 1, int(NOW), ())).stamp_sums
        if isinstance(kept, ProtocolError):
            ends.add(kept.code)
            assert stamps == {}
            continue
        ends.add("an earlier tick")
        assert kept.tick is not None
        assert kept.tick < int(BEFORE)
        assert dict(stamps) != honest  # so it disagrees with the other holders, whoever is asked about
    assert ends == {
        "future-tick",
        "not-prepared",
        "range-not-shown",
        "unknown-member",
        "unknown-shard",
        "an earlier tick",
    }


def test_receipts_with_any_bit_flipped_are_the_true_ones_or_none(world: World, relay: Relay) -> None:
    decision, given = relay.decide(), {}
    for slot in relay.slots:
        call = commit_call(relay.evaluated, [decision], slot)
        assert call is not None
        kept = relay.commit_at(slot, call)
        given[slot] = give_receipts(relay.holder(slot).party, call.depositor, call.shard, relay.ids, kept)
    (outcome,) = batch_outcome([decision], given).outcomes
    truth = read_receipts(relay.depositor, relay.made, outcome)
    assert set(truth) == set(relay.slots)
    for _, data in with_each_bit_flipped(encode(outcome)):
        bent = decoded(DepositOutcome, data)
        if bent is not None:
            read = read_receipts(relay.depositor, relay.made, bent)
            assert read.items() <= truth.items()
            assert len(read) >= len(truth) - 1
            assert is_complete(world.manifest, relay.made, read) == (bent.receipts == outcome.receipts)


def test_a_committee_key_with_any_bit_flipped_on_its_way_or_its_way_back_is_refused(world: World) -> None:
    maker, holder, *_ = committee_keys.holders(world.manifest, 0, None)
    parties = {member: world.members[member].party for member in (maker, holder)}
    key = world.members[maker].committee_keys[0, None]
    envelope = committee_keys.seal(parties[maker], key, holder, world.random(32))
    codes = set()
    for _, data in with_each_bit_flipped(encode(Relayed(sender=maker, envelope=envelope))):
        bent = decoded(Relayed, data)
        if bent is not None:
            with pytest.raises(ProtocolError) as refused:
                committee_keys.receive(parties[holder], bent.sender, bent.envelope)
            codes.add(refused.value.code)
    assert codes == {"bad-envelope", "unknown-member"}
    # Each holder's confirmation is its own; none stands for another's, nor for that of another key.
    held = world.members[holder].committee_keys
    values = [held[place].check_value(member) for place in sorted(held, key=str) for member in world.members]
    assert len(set(values)) == len(values)


# --- attempts ------------------------------------------------------------------------------------------------------


def test_no_two_garblings_that_a_service_can_have_of_one_check_share_sixteen_bytes(world: World) -> None:
    made = attempt(world, an_outsider(world), [Question(person(1), RULE, 5)])
    slot, seen, garblings = 2, set(), 0
    choices = [chosen for chosen in combinations(range(6), 4) if slot in chosen]
    for number, chosen, tick in product((1, 2, 3), choices, (TICK, TICK - 1)):
        part = made.answer(slot, replace(made.call(slot), attempt=number, chosen=chosen, tick=tick)).part
        mine = blocks(part)
        assert not mine & seen, (number, chosen, tick)
        seen |= mine
        garblings += 1
    assert garblings == 3 * 10 * 2


def blocks(part: Part) -> set[bytes]:
    """Return every 16 bytes of a part that are labels, table rows, stamps, K or digests."""
    data = [sent.labels + sent.stamp for sent in part.sent]
    data += [vouched.masked + vouched.digests for vouched in part.vouched]
    data += [part.session_check, part.garbled_digest]
    if part.garbled is not None:
        data += [part.garbled.table, part.garbled.aes_key, part.garbled.outputs, part.garbled.vouchers]
    return {piece[at : at + 16] for piece in data for at in range(0, len(piece), 16)}


@pytest.mark.parametrize("pair", list(combinations([(1, TICK), (2, TICK), (3, TICK), (1, TICK - 1)], 2)), ids=str)
def test_every_mixture_of_the_parts_of_two_garblings_is_noise_under_either_header(
    world: World, pair: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    world.deposit(1, person(1), LIMIT)
    made = attempt(world, an_outsider(world), [Question(person(1), RULE, 1), Question(person(2), RULE, 1)])
    told = [
        {slot: made.answer(slot, replace(made.call(slot), attempt=number, tick=tick)) for slot in made.chosen}
        for number, tick in pair
    ]
    for take in product((0, 1), repeat=4):
        mixed = {slot: told[which][slot] for slot, which in zip(made.chosen, take, strict=True)}
        for which, (number, tick) in enumerate(pair):
            pure = set(take) == {which}
            read = made.read(forced(made, mixed, number, tick))
            assert read == ([EXCEEDS, WITHIN] if pure else [VOID, VOID]), (take, number, tick)


# --- ticks ---------------------------------------------------------------------------------------------------------


def asked_as_of(made: Attempt, tick: int) -> list[tuple[Verdict, Void | None]]:
    answers = {slot: made.answer(slot, replace(made.call(slot), tick=tick)) for slot in made.chosen}
    return made.read(conclude(made.world.service, made.evaluation, 1, made.chosen, tick, answers))


def test_by_naming_an_old_tick_the_service_hides_what_was_committed_within_the_last_minute_and_nothing_older(
    world: World,
) -> None:
    oldest = int(NOW) - 61
    world.deposit(1, person(1), LIMIT, now=float(oldest))
    world.deposit(1, person(2), LIMIT, now=NOW - 20)
    made = attempt(world, an_outsider(world), [Question(person(1), RULE, 1), Question(person(2), RULE, 1)])
    acceptable = [tick for tick in range(int(NOW) - 100, int(NOW) + 100) if acceptable_as_of(tick, NOW, 1)]
    assert (acceptable[0], acceptable[-1]) == (oldest, int(NOW) - 1)
    for tick in acceptable:
        assert asked_as_of(made, tick) == [EXCEEDS, EXCEEDS if tick >= int(NOW) - 20 else WITHIN]
    for tick in (oldest - 1, acceptable[-1] + 1):
        assert made.refusal(replace(made.call(made.chosen[0]), tick=tick)) == "bad-tick"


@pytest.mark.parametrize("how", ["at once", "by a second commit"])
def test_no_tick_that_the_service_names_makes_a_cancellation_count_without_its_issue(world: World, how: str) -> None:
    # Another member's policy alone is above the limit; this one's is issued and cancelled, and adds nothing.
    one, two, *_ = (n for n in range(1, 9) if name(n) in world.manifest.committee(0).slots)
    world.deposit(one, person(1), LIMIT + 1, now=NOW - 50)
    issued, receipts = world.deposit(two, person(1), LIMIT, now=NOW - 10)
    tick = max(kept.tick for kept in receipts.values() if kept.tick is not None)
    earlier = issued.deposit.deposit_id
    item = entry(1, -LIMIT, kind=CANCELLATION, earlier=earlier)
    made_id = draw_deposit_id(world.party(two), person(1), earlier, world.random)
    relay = Relay.start(
        world, make_deposit(world.party(two), item, made_id, world.random, not_before=tick), two, now=NOW - 5
    )
    for tick in (int(NOW) - 5, int(NOW) - 30)[how == "at once" :]:
        decision = relay.decide()
        for slot in relay.slots:
            call = commit_call(relay.evaluated, [replace(decision, tick=tick)], slot)
            assert call is not None
            with contextlib.suppress(ProtocolError):  # a holder may refuse it
                relay.holder(slot).custody.commit(
                    call.depositor, call.shard, accept_commit(relay.holder(slot).party, call, NOW)
                )
    asked = attempt(world, an_outsider(world), [Question(person(1), RULE, 0)])
    for tick in range(int(NOW) - 40, int(NOW)):
        assert asked_as_of(asked, tick) == [EXCEEDS], tick - int(NOW)


# --- what the order of the outbox shows ----------------------------------------------------------------------------


def test_what_comes_while_a_deposit_is_held_back_and_after_does_not_show_which_are_of_its_person(
    store: Store,
) -> None:
    shard = [whom for whom in range(40) if shard_of_person(PARTY, person(whom)) == 0]
    later_one, same_person = [(shard[0], shard[2]), (shard[1],)], [(shard[0], shard[2], shard[0]), ()]
    assert [one_held_back(store, *put) for put in (later_one, same_person)] == [[2, 1, 1, 1, 1, 0]] * 2


def one_held_back(store: Store, first: tuple[int, ...], then: tuple[int, ...]) -> list[int]:
    """Return how many deposits a service sees round by round that has the first of them made in the fourth alone."""
    (held, *_), seen = store.put(*map(issue_of, first)), []
    for number in range(6):
        due = store.due()
        seen.append(len(due))
        for item in due:
            store.make(item)
            let_go = item.deposit_id != held or number >= 3
            store.record(item, made=let_go, complete=let_go)
        if number == 0:
            store.put(*map(issue_of, then))
        store.wait()
    assert store.outbox.backlog().unmade == 0
    return seen
