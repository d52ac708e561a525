"""What a malicious custodian may try as one of the four that judge a deposit, with every party in memory: a deposit
that may not stand never does, one that may is made by another four, and the liar is named where it can be told.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from malicious_custodian_says import flipped, masks_swapped, one_less, one_more, one_twice, other_stamps, swapped
from ranges import BEFORE, MADE, NOT_SHOWN, TICK, VOID, Ranged, an_outsider, entry, one_shard
from test_bit_flips_of_messages import STRIDE, bits
from test_comparison import flipped as flipped_bit
from test_ranges_by_depositors import CAP, of_value
from world import World

from protocol.committee_keys import CommitteeKey
from protocol.comparison import Disagreement, Garbled, Part
from protocol.custody import Preparation, RangeBase
from protocol.deposit import UNPROVEN, AcceptedCall, accept_prepare, claimed_proofs, confirm
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import AMENDMENT, PrepareAnswer, RangeProof
from protocol.range_check import header_hash
from protocol.range_tags import range_tags
from protocol.secret import Secret
from protocol.sharing import RING

ALL, FIRST, SENDERS, VOUCHERS = range(4), range(1), range(3), range(1, 4)
Told = tuple[AcceptedCall, Preparation]
Lie = Callable[[Told], Told]
Bend = Callable[[PrepareAnswer, Told], PrepareAnswer]


# --- the attacker's workshop ---------------------------------------------------------------------------------------


def stories() -> tuple[World, dict[str, Ranged]]:
    """Return a deposit that may stand, and such that may not, each in one lane: what a lie could make of them."""
    world = one_shard()
    number = an_outsider(world)
    issue = Ranged.start(world, number, entry(1, 1000), excluded=5)
    assert issue.honestly() == MADE
    fix = entry(1, kind=AMENDMENT, earlier=issue.ids[0])
    beside, two = (
        Ranged.start(world, number, entry(4, 1), excluded=5),
        Ranged.start(world, number, entry(4), excluded=5),
    )
    beside.prepare(None)
    return world, {
        "good": Ranged.start(world, number, replace(fix, amount=-1000)),
        "below nothing": of_value(world, number, replace(entry(2), amount=-1)),
        "above the cap": of_value(world, number, replace(entry(3), amount=CAP + 1)),
        "not alone": two,
    }


def lying(ranged: Ranged, slot: int, order: object, lie: Lie, bend: Bend) -> PrepareAnswer:
    """Have a holder do its honest steps with something else in between."""
    holder = ranged.holder(slot)
    key = holder.committee_keys[0, ranged.world.manifest.slot_of_group(0, ranged.depositor.id)]
    accepted = accept_prepare(holder.party, ranged.call(slot, order), key, BEFORE)  # type: ignore[arg-type]  an order
    told = lie((accepted, holder.custody.prepare(accepted.proposed, BEFORE, accepted.attempt())))
    return bend(confirm(holder.party, *told), told)


def base(change: Callable[[RangeBase], RangeBase]) -> Lie:
    def lie(told: Told) -> Told:
        accepted, prepared = told
        assert prepared.base is not None
        return accepted, Preparation(prepared.kept, change(prepared.base))

    return lie


def deposit(**changes: object) -> Lie:
    return base(lambda it: replace(it, deposits=tuple(replace(one, **changes) for one in it.deposits)))


def shares(by: int) -> Lie:
    """Add to every share of every row."""

    def change(it: RangeBase) -> RangeBase:
        deposits = []
        for one in it.deposits:
            bent = (
                replace(row.row, amounts=tuple((piece + by) % RING for piece in row.row.amounts)) for row in one.rows
            )
            rows = tuple(replace(row, row=other) for row, other in zip(one.rows, bent, strict=True))
            deposits.append(replace(one, rows=rows))
        return replace(it, deposits=tuple(deposits))

    return base(change)


def header(**changes: object) -> Lie:
    def lie(told: Told) -> Told:
        accepted, prepared = told
        assert accepted.header is not None
        return replace(accepted, header=replace(accepted.header, **changes)), prepared

    return lie


def another_key(told: Told) -> Told:
    return replace(told[0], key=CommitteeKey(told[0].key.name, Secret(bytes(32)))), told[1]


def another_range_key(told: Told) -> Told:
    accepted, prepared = told
    good = tuple(replace(one, proposed=replace(one.proposed, range_key=bytes(32))) for one in accepted.good)
    return replace(accepted, deposits=good), prepared


def part(change: Callable[[Part], Part]) -> Bend:
    def bend(answer: PrepareAnswer, _: Told) -> PrepareAnswer:
        assert answer.garbled is not None
        return replace(answer, garbled=replace(answer.garbled, part=change(answer.garbled.part)))

    return bend


def circuit(change: Callable[[Garbled], Garbled]) -> Bend:
    def other(it: Part) -> Part:
        assert it.garbled is not None
        lie = change(it.garbled)
        return replace(it, garbled=lie, garbled_digest=lie.digest())

    return part(other)


def differences(told: Told) -> list[bytes]:
    """Return, a lane, the XOR of the good tag and the other, which every holder knows."""
    accepted, _ = told
    assert accepted.header is not None
    pairs = [pair for one in accepted.good for pair in range_tags(one.proposed.range_key, header_hash(accepted.header))]
    return [bytes(a ^ b for a, b in zip(*pair, strict=True)) for pair in pairs]


def xor(one: bytes, two: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, two, strict=True))


def turned_outputs(answer: PrepareAnswer, told: Told) -> PrepareAnswer:
    """Exchange the tags in the output rows: what opened the other would open the good one."""
    both = b"".join(piece * 2 for piece in differences(told))
    return circuit(lambda it: replace(it, outputs=xor(it.outputs, both)))(answer, told)


def turned_k(answer: PrepareAnswer, told: Told) -> PrepareAnswer:
    """XOR the difference of the tags into the K of every lane."""
    both = b"".join(piece * 2 for piece in differences(told))

    def bend(it: Part) -> Part:
        first, *rest = it.vouched
        return replace(it, vouched=(replace(first, masked=xor(first.masked, both)), *rest))

    return part(bend)(answer, told)


def honest(told: Told) -> Told:
    return told


def as_it_is(answer: PrepareAnswer, _: Told) -> PrepareAnswer:
    return answer


SUMS, CIRCUIT, SESSION, MALFORMED = "shares or stamps", "garbled circuit", "session", "a part is malformed"
LIES: dict[str, tuple[Lie, Bend, range, str]] = {
    # Nobody hears the last of four on rows that all four hold: of each label it is the third holder.
    "a fen more in every share": (shares(1), as_it_is, SENDERS, SUMS),
    "a quarter of the ring in every share": (shares(RING // 4), as_it_is, SENDERS, SUMS),
    "the cap less in every share": (shares(-CAP), as_it_is, SENDERS, SUMS),
    "no rows": (deposit(rows=()), as_it_is, SENDERS, SUMS),
    "two others that are pending": (deposit(pending=(5, 5)), as_it_is, ALL, SUMS),
    "no stamps": (base(lambda it: replace(it, stamp_sums={})), as_it_is, ALL, SUMS),
    "another nonce": (header(nonce=bytes(16)), as_it_is, ALL, SESSION),
    "another time": (header(issued_at=int(BEFORE) - 1), as_it_is, ALL, SESSION),
    "other deposits": (header(deposits=(bytes(16),)), as_it_is, ALL, SESSION),
    "another committee key under its name": (another_key, as_it_is, ALL, SESSION),
    "other tags": (another_range_key, as_it_is, ALL, CIRCUIT),
    "the tags exchanged": (honest, turned_outputs, FIRST, CIRCUIT),
    "the output rows exchanged": (
        honest,
        circuit(lambda it: replace(it, outputs=it.outputs[16:32] + it.outputs[:16] + it.outputs[32:])),
        FIRST,
        CIRCUIT,
    ),
    "another table": (honest, circuit(lambda it: replace(it, table=flipped(it.table))), FIRST, CIRCUIT),
    "another AES key": (honest, circuit(lambda it: replace(it, aes_key=bytes(16))), FIRST, CIRCUIT),
    "other hashes of K": (honest, circuit(lambda it: replace(it, vouchers=flipped(it.vouchers))), FIRST, CIRCUIT),
    "another digest": (honest, part(lambda it: replace(it, garbled_digest=bytes(32))), ALL, CIRCUIT),
    "another session": (honest, part(lambda it: replace(it, session_check=bytes(32))), ALL, SESSION),
    "K turned": (honest, turned_k, VOUCHERS, "a voucher's K"),
    "masked K exchanged": (honest, part(masks_swapped), range(2, 4), "a voucher's K"),
    "groups exchanged": (honest, part(swapped), ALL, SUMS),
    "a group twice": (honest, part(one_twice), ALL, SUMS),
    "other stamps": (honest, part(other_stamps), SENDERS, SUMS),
    "a group less": (honest, part(one_less), ALL, MALFORMED),
    "a group more": (honest, part(one_more), ALL, MALFORMED),
    "no circuit": (honest, part(lambda it: replace(it, garbled=None)), FIRST, MALFORMED),
    "nothing": (honest, lambda answer, _: replace(answer, garbled=None), ALL, "no garbling"),
    "another name of the committee key": (
        honest,
        lambda answer, _: replace(
            answer,
            garbled=replace(
                answer.garbled,
                committee_key=replace(answer.garbled.committee_key, made_at=1),  # type: ignore[type-var, union-attr]  it garbled
            ),
        ),
        ALL,
        "committee key",
    ),
}


@pytest.mark.parametrize("what", LIES)
def test_a_custodian_that_judges_otherwise_is_named_turns_no_deposit_and_another_four_make_it(what: str) -> None:
    lie, bend, positions, alarm = LIES[what]
    _, ranged = stories()
    bad = [story for story in ranged if story != "good"]
    for position in positions:
        for story in ("good", bad[position % len(bad)]):
            one = ranged[story]
            order = one.order()
            liar = order.chosen[position]
            answers = one.prepare(order, [slot for slot in one.slots if slot != liar])
            answers[liar] = lying(one, liar, order, lie, bend)
            with pytest.raises(Disagreement) as disagreement:
                one.opened(order, answers)
            assert disagreement.value.what == alarm
            assert liar in disagreement.value.slots
            assert len(disagreement.value.slots) <= (2 if alarm == SUMS else 1)
            if story != "good" and alarm not in {MALFORMED, "no garbling", "committee key"}:  # should the service go on
                assert one.commit_with(one.forced(order, answers)) == NOT_SHOWN
            assert one.counted() == set()
    # Another four, without the last liar.
    good = ranged["good"]
    others = [slot for slot in good.slots if slot != good.order().chosen[positions[-1]]]
    assert good.honestly(good.order(others[:4])) == MADE


def test_a_proof_or_tick_that_one_claims_for_what_is_not_made_lets_nothing_count() -> None:
    _, ranged = stories()
    for story, one in ranged.items():
        for position in range(4):
            order = one.order()
            answers = one.prepare(order)
            liar = order.chosen[position]
            (said,) = answers[liar].answers
            bad = RangeProof(header_hash=bytes(32), floor=bytes(16), ceiling=bytes(16), alone=bytes(16))
            told = replace(answers[liar], answers=(replace(said, tick=1, range_proof=bad),), garbled=None)
            mixed = {**answers, liar: told}
            assert claimed_proofs(one.world.manifest, one.evaluated, mixed) == [None]  # one alone is not heard
            assert one.decide(mixed, [None]) == [UNPROVEN]
            assert one.commit_with([bad]) == NOT_SHOWN  # nor believed
            assert one.counted() == set()
            # Beside what the four have opened its claim is not heard; the tick is, where it is lower.
            opened = one.opened(order, answers)
            assert opened is not None
            (decision,) = one.decide({**answers, liar: replace(told, garbled=answers[liar].garbled)}, opened)
            assert (decision.proof, decision.tick) == (opened[0], 1)
        assert one.honestly() == (MADE if story == "good" else NOT_SHOWN)


def test_a_claim_against_those_who_have_it_is_outvoted() -> None:
    _, ranged = stories()
    good = ranged["good"]
    order = good.order()
    answers = good.prepare(order)
    proofs = good.opened(order, answers)
    assert proofs is not None
    late = good.slots[4]
    assert good.commit_with(proofs, good.slots[:4]) == MADE[:4]
    again = good.prepare(None)
    for liar in good.slots[:4]:
        (said,) = again[liar].answers
        for lie in (RangeProof(bytes(32), bytes(16), bytes(16), bytes(16)), None):
            mixed = {**again, liar: replace(again[liar], answers=(replace(said, range_proof=lie),))}
            assert claimed_proofs(good.world.manifest, good.evaluated, mixed) == proofs
    # The late one verifies for itself what the others have kept, and counts from their tick on.
    assert good.commit_with(proofs, [late], tick=TICK) == MADE[:1]


def test_a_holder_that_lacks_earlier_deposits_voids_the_fours_that_it_is_of_and_no_other() -> None:
    world = one_shard()
    number = an_outsider(world)
    lacking = 2
    issue = Ranged.start(world, number, entry(1, 1000), excluded=5)
    order = issue.order((0, 1, 3, 4))
    answers = issue.prepare(order, order.chosen)
    proofs = issue.opened(order, answers)
    assert proofs is not None
    assert issue.commit_with(proofs, order.chosen) == MADE[:4]
    for item in (entry(1, 1), entry(2, 1), entry(1, -1000, kind=AMENDMENT, earlier=issue.ids[0])):
        later = Ranged.start(world, number, item, excluded=5 if item.earlier is None else None)
        for chosen in ((0, 1, 2, 3), (1, 2, 3, 4), (0, 2, 3, 4)):
            with pytest.raises(Disagreement) as alarm:
                later.opened(named := later.order(chosen), later.prepare(named))
            assert alarm.value == Disagreement((lacking,), SUMS)
        assert later.honestly(later.order((0, 1, 3, 4))) == MADE
    # It gets what it missed, and is of one mind with the others.
    assert issue.honestly(issue.order((0, 1, 3, 4))) in (MADE, [VOID])
    assert issue.commit_with(proofs) == MADE
    assert Ranged.start(world, number, entry(3), excluded=5).honestly(None) == MADE


# --- every bit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(4))
def test_no_bit_of_an_answer_flipped_turns_a_deposit_or_keeps_the_good_one_from_another_four(position: int) -> None:
    """Sampled, and exhaustive under LONG_TESTS=1, but the table: its bits are those of a check's."""
    _, ranged = stories()
    for story in ("good", "below nothing"):
        one = ranged[story]
        order = one.order()
        answers = one.prepare(order)
        slot, seen = order.chosen[position], Counter[str]()
        data = encode(answers[slot])
        table = answers[slot].garbled.part.garbled  # type: ignore[union-attr]  one of A
        skipped = range(0) if table is None else range(at := 8 * data.index(table.table), at + 8 * len(table.table))
        whole = [bit for bit in bits(data, STRIDE * 73 if STRIDE > 1 else 1) if bit not in skipped]
        own = answers[slot].garbled.part  # type: ignore[union-attr]  one of A
        few = [8 * data.index(piece) for piece in (own.session_check, own.garbled_digest)]
        whole += [at + bit for at in few for bit in range(0, 256, STRIDE)]
        head = 8 * (data.index(answers[slot].answers[0].confirmation) + 32 + 4 * 33)  # what is told of the deposit
        for bit in [*range(0, head, STRIDE), *whole, *list(skipped)[:: 8191 if STRIDE > 1 else 97]]:
            try:
                told = decode(PrepareAnswer, flipped_bit(data, bit))
                proofs = one.opened(order, {**answers, slot: told})
            except ProtocolError as refused:
                seen[refused.code] += 1
                continue
            except Disagreement as alarm:
                seen[alarm.what] += 1
                continue
            assert proofs is not None
            (decision,) = one.decide({**answers, slot: told}, proofs)
            seen[decision.reason or "as it is"] += 1
            assert decision.reason == "refused"  # what it confirms, or says of a share, is another thing
        assert {"malformed", SESSION, CIRCUIT, SUMS, "refused"} <= set(seen)
        assert seen["as it is"] == 0
        assert one.counted() == set()
    assert ranged["good"].honestly() == MADE
    assert ranged["below nothing"].honestly() == NOT_SHOWN
