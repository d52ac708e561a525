"""What a malicious service may try with range checks, with every party in memory: nothing counts but what may stand,
and no deposit is seen to be of the person of another.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import pytest
from ranges import (
    BEFORE,
    LACKS,
    MADE,
    NOT_SHOWN,
    TICK,
    Ranged,
    an_insider,
    an_outsider,
    entry,
    noise,
    one_shard,
    refusal_of,
)
from strategies import made_anew
from world import LIMIT, World, person

from protocol.committee_keys import CommitteeKey
from protocol.comparison import Disagreement
from protocol.deposit import Entry, accept_prepare, commit_call
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import AMENDMENT, CANCELLATION, CommitCall, PrepareCall, RangeOrder, RangeProof
from protocol.range_check import range_key
from protocol.range_tags import is_good
from protocol.secret import Secret
from protocol.token import Pseudonym, hash_identity
from protocol.voprf import blind_evaluate

BOTH = pytest.mark.parametrize("who", [an_insider, an_outsider])


# --- who garbles, and when -----------------------------------------------------------------------------------------


@BOTH
def test_one_header_is_garbled_once_and_refused_ever_after(who: Callable[[World], int]) -> None:
    ranged = Ranged.start(world := one_shard(), who(world), entry(1, LIMIT))
    order = ranged.order()
    first = ranged.prepare(order)
    for _ in range(2):
        assert [refusal_of(ranged, slot, ranged.call(slot, order)) for slot in ranged.slots] == [
            "replayed" if slot in order.chosen else None for slot in ranged.slots
        ]
    # Nor when other rows stand by then: two garblings over one seed would tell what they are.
    other = Ranged.start(world, who(world), entry(2), excluded=ranged.made[0].excluded)
    assert other.honestly() == MADE
    assert {refusal_of(ranged, slot, ranged.call(slot, order)) for slot in order.chosen} == {"replayed"}
    assert ranged.counted() == set()
    # What it opened before stands for as long as it is withheld: it was judged against less of this depositor's.
    proofs = ranged.opened(order, first)
    assert proofs is not None
    assert ranged.commit_with(proofs) == MADE


@BOTH
def test_a_choice_that_cannot_be_is_refused_and_nothing_of_the_call_is_kept(
    who: Callable[[World], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranged = Ranged.start(world := one_shard(), who(world), entry(1))
    slots, excluded = ranged.slots, ranged.made[0].excluded
    own = world.manifest.slot_of_group(0, ranged.depositor.id)
    assert own in {excluded, None}
    with_excluded = tuple(sorted((excluded, *slots[:3])))
    bad = [with_excluded, slots[3::-1], (slots[0], *slots[:3]), (*slots[:3], 6), (*slots[:3], 15)]
    for chosen in bad:
        order = ranged.order(chosen)
        assert {refusal_of(ranged, slot, ranged.call(slot, order)) for slot in slots} == {"bad-choice"}
    with monkeypatch.context() as permissive:  # three, five, or no slots are not even a message
        codec = dict(RangeOrder._wire[1])["chosen"]._count
        permissive.setattr(codec, "_least", 0)
        permissive.setattr(codec, "_most", 16)
        made_anew(permissive)
        others = [encode(ranged.call(slots[0], ranged.order(chosen))) for chosen in (slots[:3], slots, ())]
    for data in others:
        with pytest.raises(ProtocolError, match="malformed"):
            decode(PrepareCall, data)
    for seconds in (-61, 61, -(2**30), 2**40):
        order = ranged.order(issued_at=int(BEFORE) + seconds)
        assert {refusal_of(ranged, slot, ranged.call(slot, order)) for slot in slots} == {"stale"}
    assert {ranged.state(slot, ranged.ids[0]) for slot in slots} == {None}
    for seconds in (-60, 60):
        order = ranged.order(issued_at=int(BEFORE) + seconds)
        assert {refusal_of(ranged, slot, ranged.call(slot, order)) for slot in slots} == {None}


ORDERS: dict[str, Callable[[Ranged, RangeOrder], RangeOrder]] = {
    "another nonce": lambda ranged, order: ranged.order(order.chosen),
    "another time": lambda _, order: replace(order, issued_at=order.issued_at + 1),
    "another A": lambda ranged, order: replace(order, chosen=tuple(sorted({*order.chosen[:3], ranged.slots[4]}))),
}


@pytest.mark.parametrize("what", ORDERS)
def test_holders_that_are_told_different_orders_open_nothing(what: str) -> None:
    ranged = Ranged.start(world := one_shard(), an_outsider(world), entry(1))
    for place in range(4 if what != "another A" else 3):
        order = ranged.order()
        other = ORDERS[what](ranged, order)
        liar = order.chosen[place]
        calls = {slot: ranged.call(slot, other if slot == liar else order) for slot in ranged.slots}
        answers = {slot: ranged.prepare_at(slot, call) for slot, call in calls.items()}
        assert noise(ranged, order, answers)
        assert ranged.counted() == set()
    assert ranged.honestly() == MADE


def test_holders_that_are_told_different_deposits_open_nothing() -> None:
    world = one_shard()
    number = an_outsider(world)
    one = Ranged.start(world, number, entry(1))
    beside = Ranged.start(world, number, entry(2), excluded=one.made[0].excluded)
    more = Ranged.of(world, number, [*one.made, *beside.made])
    order = one.order()
    told = {slot: more if slot == order.chosen[1] else one for slot in order.chosen}
    answers = {slot: ranged.prepare_at(slot, ranged.call(slot, order)) for slot, ranged in told.items()}
    with pytest.raises(Disagreement):
        one.opened(order, answers)
    assert one.counted() == more.counted() == set()
    assert more.honestly() == MADE * 2


# --- what is made of garblings -------------------------------------------------------------------------------------


def test_every_mixture_of_the_garblings_of_two_attempts_is_noise_under_either_header() -> None:
    ranged = Ranged.start(world := one_shard(), an_outsider(world), entry(1))
    orders = [ranged.order(), ranged.order()]
    told = [ranged.prepare(order) for order in orders]
    for take in product((0, 1), repeat=4):
        mixed = {slot: told[which][slot] for slot, which in zip(orders[0].chosen, take, strict=True)}
        for which, order in enumerate(orders):
            if set(take) != {which}:
                assert ranged.commit_with(ranged.forced(order, mixed)) == NOT_SHOWN
    assert ranged.counted() == set()
    # Of one attempt they are good, under its own header.
    assert ranged.commit_with(ranged.forced(orders[1], told[1])) == MADE


def test_without_the_garbling_of_one_of_the_four_nothing_is_opened() -> None:
    ranged = Ranged.start(world := one_shard(), an_outsider(world), entry(1))
    order = ranged.order()
    answers = ranged.prepare(order)
    for slot in order.chosen:
        three = {other: answer for other, answer in answers.items() if other != slot}
        assert ranged.opened(order, three) is None
        with pytest.raises(Disagreement) as alarm:
            ranged.opened(order, {**three, slot: replace(answers[slot], garbled=None)})
        assert alarm.value == Disagreement((slot,), "no garbling")
        # Three together, with one of them in the place of the fourth, and whatever comes out.
        for other in order.chosen:
            if other != slot:
                with pytest.raises(Disagreement):
                    ranged.opened(order, {**three, slot: answers[other]})
    assert ranged.counted() == set()


# --- proofs --------------------------------------------------------------------------------------------------------


def test_no_proof_but_its_own_lets_a_deposit_count() -> None:
    world = one_shard()
    number = an_outsider(world)
    batch = Ranged.start(world, number, entry(1), entry(2), entry(3))
    elsewhere = Ranged.start(world, an_insider(world), entry(1))
    order = batch.order()
    answers = batch.prepare(order)
    one, two, three = batch.opened(order, answers) or []
    theirs = elsewhere.opened(mine := elsewhere.order(), elsewhere.prepare(mine)) or []
    kept = batch.opened(again := batch.order(), batch.prepare(again)) or []  # another attempt of the same deposits
    bent = [
        *(replace(one, **{name: bytes(16)}) for name in LACKS),
        *(replace(one, **{name: getattr(two, name)}) for name in LACKS),
        *(replace(one, **{name: getattr(kept[0], name)}) for name in (*LACKS, "header_hash")),
        replace(one, floor=one.ceiling, ceiling=one.floor),
        replace(one, ceiling=one.alone, alone=one.ceiling),
        RangeProof(header_hash=bytes(32), floor=bytes(16), ceiling=bytes(16), alone=bytes(16)),
        *theirs,
        two,
        three,
    ]
    for proof in bent:
        assert batch.commit_with([proof, three, two])[::3] == NOT_SHOWN
        assert batch.counted() == set()
    # Both attempts opened it: either proof is good, for this deposit alone, and the first that comes is kept.
    assert batch.commit_with([kept[0], two, three]) == [f"tick {TICK}"] * 15
    assert batch.commit_with([one, two, bent[0]], tick=TICK - 1) == [f"tick {TICK - 1}"] * 15


def test_a_good_proof_counts_in_no_other_shard_or_name_and_not_for_what_was_not_prepared() -> None:
    ranged = Ranged.start(world := one_shard(), an_outsider(world), entry(1))
    order = ranged.order()
    answers = ranged.prepare(order, ranged.slots[:4])
    proofs = ranged.opened(order, answers)
    assert proofs is not None
    (call,) = {commit_call(ranged.evaluated, ranged.decide(answers, proofs), slot) for slot in ranged.slots[:4]}
    assert call is not None
    for wrong in (
        replace(call, depositor=f"insurer-{an_insider(world):02d}"),
        replace(call, commits=(replace(call.commits[0], deposit_id=bytes(16)),)),
    ):
        for slot in ranged.slots:
            (state,) = ranged.commit_at(slot, wrong)
            assert isinstance(state, ProtocolError)
            assert state.code == "not-prepared"
    with pytest.raises(ProtocolError, match="unknown-shard"):
        ranged.commit_at(ranged.slots[0], replace(call, shard=1))
    holder = ranged.holder(ranged.slots[0])
    (state,) = holder.custody.commit(call.depositor, 1, call.commits)
    assert isinstance(state, ProtocolError)
    assert state.code == "not-prepared"
    (state,) = ranged.commit_at(ranged.slots[4], call)  # a holder that never got it
    assert isinstance(state, ProtocolError)
    assert ranged.counted() == set()
    assert ranged.commit_with(proofs, ranged.slots[:4]) == MADE[:4]


def test_a_proof_that_the_service_keeps_for_later_counts_what_the_depositor_meant_and_voids_no_other() -> None:
    # It was good when it was opened, and an honest depositor sends nothing for its person until it counts.
    world = one_shard()
    number = an_outsider(world)
    ranged = Ranged.start(world, number, entry(1, LIMIT))
    order = ranged.order()
    proofs = ranged.opened(order, ranged.prepare(order))
    assert proofs is not None
    between = Ranged.start(world, number, entry(2, 7))
    assert between.honestly() == MADE
    assert world.check(an_insider(world), person(1), 1)[0].value == "within"
    assert ranged.commit_with(proofs) == MADE
    assert world.check(an_insider(world), person(1), 1)[0].value == "exceeds"


@BOTH
def test_every_bit_of_a_proof_flipped_is_not_shown(who: Callable[[World], int]) -> None:
    ranged = Ranged.start(world := one_shard(), who(world), entry(1))
    order = ranged.order()
    answers = ranged.prepare(order)
    proofs = ranged.opened(order, answers)
    assert proofs is not None
    slot = ranged.slots[1]
    call = commit_call(ranged.evaluated, ranged.decide(answers, proofs), slot)
    assert call is not None
    data = encode(call)
    at = data.index(proofs[0].header_hash)
    ends = set()
    for bit in range(8 * at, 8 * (at + 32 + 3 * 16)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (state,) = ranged.commit_at(slot, decode(CommitCall, bytes(flipped)))
        ends.add(state.code if isinstance(state, ProtocolError) else "committed")
    assert ends == {"range-not-shown"}
    assert ranged.counted() == set()


def test_tags_of_a_range_check_name_nobody_unless_the_committee_key_is_known() -> None:
    """The service has the alliance's salt here, ks, all facts and all that it was sent."""
    world = one_shard()
    ranged = Ranged.start(world, an_outsider(world), entry(7))
    order = ranged.order()
    answers = ranged.prepare(order)
    (proof,) = ranged.opened(order, answers) or []
    key = ranged.holder(ranged.slots[0]).committee_keys[0, None]
    facts = accept_prepare(ranged.holder(0).party, ranged.call(0, None), key, BEFORE).good[0].facts
    salt, ks = world.party(1).keys.salt, world.service.keys.blinding
    persons = {number: blind_evaluate(ks, hash_identity(salt, person(number))) for number in range(1, 20)}

    def named(secrets: set[bytes]) -> set[int]:
        return {
            number
            for number, pseudonym in persons.items()
            for secret in secrets
            if is_good(range_key(CommitteeKey(key.name, Secret(secret)), facts, Pseudonym(pseudonym)), proof)
        }

    parts = [answer.garbled.part for answer in answers.values() if answer.garbled is not None]
    seen = {encode(order), proof.header_hash, salt.reveal(), ks.reveal(), world.service.keys.signing.reveal()}
    seen |= {part.session_check for part in parts} | {part.garbled_digest for part in parts}
    seen |= {item.confirmation for answer in answers.values() for item in answer.answers} | {bytes(32)}
    assert len(seen) > 8
    assert named(seen) == set()
    assert named(seen | {key.secret.reveal()}) == {7}


# --- a commit that is held back from one holder ----------------------------------------------------------------------


@dataclass(frozen=True)
class HeldBack:
    """A deposit for person 1 that all holders have but one, from which the service has kept its commit."""

    world: World
    depositor: int
    held: Ranged
    lagging: int
    known: dict[int, Ranged]
    """By person, an issue that all holders have."""

    def next_is(self, item: Entry, excluded: int | None) -> tuple[set[tuple[int, int, int]], list[str]]:
        """Let the depositor's next deposit come; return what the service sees of a range check with the laggard, and
        what comes of one without.
        """
        later = Ranged.start(self.world, self.depositor, item, excluded=excluded)
        others = [slot for slot in later.slots if slot not in (self.lagging, self.held.made[0].excluded)]
        # With the slot that the held one excludes, which has no stamp of it: there a holder that sees more would show.
        mine = [slot for slot in (self.lagging, self.held.made[0].excluded) if slot in later.slots]
        order = later.order(sorted([*mine, *others[: 4 - len(mine)]]))
        answers = later.prepare(order)
        with pytest.raises(Disagreement) as alarm:
            later.opened(order, answers)
        assert alarm.value == Disagreement((self.lagging,), "shares or stamps")
        unequal = later.unequal(order, answers)
        assert later.commit_with(later.forced(order, answers)) == NOT_SHOWN
        # Without it, all holders commit, the laggard too: what it lacks of others it does not ask after.
        again = later.order([slot for slot in later.slots if slot != self.lagging][:4])
        return unequal, later.honestly(again)


def held_back(depositor: Callable[[World], int], excluded: int | None, lagging: int) -> HeldBack:
    world = one_shard()
    number = depositor(world)
    known = {other: Ranged.start(world, number, entry(other, 100), excluded=excluded) for other in (1, 2, 3)}
    for issue in known.values():
        assert issue.honestly() == MADE
    held = Ranged.start(world, number, entry(1, 7), excluded=excluded)
    order = held.order()
    answers = held.prepare(order)
    proofs = held.opened(order, answers)
    assert proofs is not None
    done = held.commit(held.decide(answers, proofs), [slot for slot in held.slots if slot != lagging])
    assert len(done) == 4
    return HeldBack(world, number, held, lagging, known)


PLACES = [
    (excluded, later, lagging)
    for excluded, later, lagging in product(range(6), range(6), range(6))
    if lagging not in (excluded, later)
]


@pytest.mark.parametrize(("excluded", "later", "lagging"), [*PLACES[::40], (1, 4, 0), (0, 4, 1), (2, 5, 0)])
def test_by_a_commit_held_back_the_service_does_not_see_which_later_deposit_is_of_its_person(
    excluded: int, later: int, lagging: int
) -> None:
    seen = []
    for whom in (1, 2, 3, 4):  # 4 is new
        story = held_back(an_outsider, excluded, lagging)
        unequal, done = story.next_is(entry(whom, 9), later)
        assert done == MADE
        seen.append(unequal)
    # Of every lane, the pairs of the laggard with each other slot that holds what it lacks.
    assert seen == [seen[0]] * 4
    assert {lane for lane, _, _ in seen[0]} == {0, 1, 2}
    assert all(lagging in (one, two) for _, one, two in seen[0])
    assert not any(excluded in (one, two) for _, one, two in seen[0])


@pytest.mark.parametrize("who", [an_insider, an_outsider])
def test_nor_whether_it_corrects_what_was_held_back_or_something_else_or_nothing(who: Callable[[World], int]) -> None:
    seen, own = [], who is an_insider
    for number in range(6):
        story = held_back(who, None if own else 1, 0)
        held, known = story.held.ids[0], {whom: issue.ids[0] for whom, issue in story.known.items()}
        item = (
            entry(1, -7, kind=CANCELLATION, earlier=held),
            entry(1, 5, kind=AMENDMENT, earlier=held),
            entry(1, -1, kind=AMENDMENT, earlier=known[1]),
            entry(2, -100, kind=CANCELLATION, earlier=known[2]),
            entry(4, 9),
            entry(1, 9),
        )[number]
        unequal, done = story.next_is(item, None if own else 1)
        assert done == MADE
        seen.append(unequal)
    assert seen == [seen[0]] * 6
    assert seen[0]
