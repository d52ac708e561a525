"""What a malicious depositor may try with range checks, with every party in memory: whatever it shares, what counts for
a person stays between nothing and the cap, policy by policy and in all.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranges import (
    BEFORE,
    MADE,
    NOT_SHOWN,
    TICK,
    VOID,
    Ranged,
    an_insider,
    an_outsider,
    entry,
    one_shard,
    refusal_of,
)
from strategies import deterministic
from world import COUNT_RULE, LIMIT, World, person

from protocol import deposit
from protocol.check import Verdict
from protocol.comparison import Disagreement
from protocol.custody import PENDING_SECONDS
from protocol.deposit import Entry, make_deposit
from protocol.encoding import decode, encode
from protocol.messages import AMENDMENT, CANCELLATION, ISSUE, DepositEnvelope, PrepareAnswer, RangeOrder, RangeProof
from protocol.sharing import HALF_RING, RING, held_labels, share

CAP = 1_000_000_000_000
BOTH = pytest.mark.parametrize("who", [an_insider, an_outsider])
Change = Callable[[DepositEnvelope, int], DepositEnvelope]


def lying(world: World, depositor: int, item: Entry, change: Change, *, excluded: int | None = None) -> Ranged:
    """Return a deposit of which every envelope says what `change` makes of the honest body, told the slot."""
    honest = Ranged.start(world, depositor, item, excluded=excluded)
    (made,), envelopes = honest.made, []
    for slot, sealed in zip(honest.slots, made.deposit.envelopes, strict=True):
        channel = honest.holder(slot).party.channel(honest.depositor.id)
        body = decode(DepositEnvelope, deposit._unpad(channel.open(deposit.PURPOSE, made.deposit.deposit_id, sealed)))
        padded = deposit._pad(encode(change(body, slot)), 6)
        sealing = honest.depositor.channel(honest.holder(slot).party.id)
        envelopes.append(sealing.seal(deposit.PURPOSE, made.deposit.deposit_id, padded, world.random(32)))
    bent = replace(made, deposit=replace(made.deposit, envelopes=tuple(envelopes)))
    return Ranged.of(world, depositor, [bent])


def valued(world: World, value: int, name: str = "amounts") -> Change:
    """Share any value, alike for all holders."""
    uniform = world.random(24)

    def change(body: DepositEnvelope, slot: int) -> DepositEnvelope:
        shares = share(value % RING, 6, body.facts.excluded, uniform)
        return replace(body, **{name: tuple(shares[key] for key in held_labels(6, body.facts.excluded, slot))})

    return change


def of_value(world: World, depositor: int, item: Entry) -> Ranged:
    """Return a deposit of any amount, which an honest depositor could not make."""
    return lying(world, depositor, replace(item, amount=0), valued(world, item.amount))


def given_up(ranged: Ranged) -> None:
    """Have all holders forget what is pending, so that it is not in the way of what comes next."""
    for slot in ranged.slots:
        ranged.holder(slot).custody.abandon(ranged.depositor.id, 0, ranged.ids, BEFORE)


# --- any amounts, any corrections ----------------------------------------------------------------------------------

AMOUNTS = st.sampled_from(
    [0, 1, -1, 5, -5, LIMIT, -LIMIT, CAP, CAP + 1, CAP - 5, -CAP, HALF_RING, HALF_RING - 1, -HALF_RING + 1, RING - 5]
) | st.integers(0, RING - 1)


@dataclass
class Books:
    """What should count: by depositor and person, the policies' amounts and whether they are in force."""

    policies: dict[tuple[int, int], dict[bytes, tuple[int, int]]] = field(default_factory=dict)

    def total(self, depositor: int, whom: int) -> int:
        return sum(amount for amount, _ in self.policies.get((depositor, whom), {}).values())

    def held(self, whom: int) -> tuple[int, int]:
        """Return all that counts for a person: amount and number of policies."""
        found = [item for (_, of), policies in self.policies.items() if of == whom for item in policies.values()]
        return sum(amount for amount, _ in found), sum(number for _, number in found)

    def takes(self, depositor: int, whom: int, kind: int, amount: int, policy: bytes) -> bool:
        """Take a deposit where it may stand; tell whether it may."""
        policies = self.policies.setdefault((depositor, whom), {})
        before, number = policies.get(policy, (0, 0)) if kind != ISSUE else (0, 0)
        after = number + {ISSUE: 1, CANCELLATION: -1, AMENDMENT: 0}[kind]
        value = (before + amount) % RING
        known = policy in policies if kind != ISSUE else True
        rest = self.total(depositor, whom) - before
        if not known or after not in (0, 1) or value + rest > CAP:
            return False
        policies[policy] = (value, after)
        return True


STEPS = st.lists(
    st.tuples(
        st.sampled_from([an_insider, an_outsider]),
        st.integers(1, 2),
        st.sampled_from([ISSUE, ISSUE, CANCELLATION, AMENDMENT, AMENDMENT]),
        AMOUNTS,
        st.integers(-1, 3),
    ),
    min_size=3,
    max_size=7,
)


def test_whatever_two_depositors_share_only_what_may_stand_counts() -> None:
    tried: Counter[bool] = Counter()

    @deterministic(15, always=True)  # enough of both kinds are asked for below
    @given(STEPS)
    def check(steps: list[tuple[Callable[[World], int], int, int, int, int]]) -> None:
        world, books, issued = one_shard(), Books(), dict[int, list[tuple[int, bytes]]]()
        for who, whom, kind, amount, place in steps:
            number = who(world)
            mine = issued.setdefault(number, [])
            earlier = None
            if kind != ISSUE:
                earlier = mine[place % len(mine)][1] if mine and place >= 0 else world.random(16)
                whom = {policy: of for of, policy in mine}.get(earlier, whom)  # noqa: PLW2901  of its own person
            ranged = of_value(world, number, entry(whom, amount, kind=kind, earlier=earlier))
            policy = earlier or ranged.ids[0]
            may = books.takes(number, whom, kind, amount, policy)
            assert ranged.honestly() == (MADE if may else NOT_SHOWN)
            tried[may] += 1
            if may and kind == ISSUE:
                mine.append((whom, policy))
            if not may:
                given_up(ranged)
        for whom in (1, 2):
            assert_held(world, whom, *books.held(whom))

    check()
    assert min(tried.values()) > 10


def assert_held(world: World, whom: int, amount: int, number: int) -> None:
    """The verdicts on both sides of the limits are those of this total."""
    asker = an_insider(world)
    if amount <= LIMIT:
        assert world.check(asker, person(whom), LIMIT - amount) == (Verdict.WITHIN, None)
    assert world.check(asker, person(whom), max(0, LIMIT - amount + 1)) == (Verdict.EXCEEDS, None)
    counted = Verdict.WITHIN if number + 1 <= COUNT_RULE.limit else Verdict.EXCEEDS  # a proposal is one policy
    assert world.check(asker, person(whom), 1, rule=COUNT_RULE) == (counted, None)


@BOTH
def test_what_erases_or_inflates_what_others_hold_is_not_shown(who: Callable[[World], int]) -> None:
    world = one_shard()
    other = next(n for n in range(1, 9) if n not in (an_insider(world), an_outsider(world)))
    assert Ranged.start(world, other, entry(1, LIMIT)).honestly() == MADE
    for amount in (-1, -LIMIT, CAP + 1, HALF_RING, HALF_RING + LIMIT, RING - LIMIT, CAP - RING // 2):
        bad = of_value(world, who(world), entry(1, amount))
        assert bad.honestly() == NOT_SHOWN
        assert bad.honestly() == NOT_SHOWN  # nor when it comes again
        given_up(bad)
    assert_held(world, 1, LIMIT, 1)


@BOTH
def test_a_correction_takes_off_no_more_than_its_own_policy_has(who: Callable[[World], int]) -> None:
    world = one_shard()
    issue, beside = (Ranged.start(world, who(world), entry(1, amount)) for amount in (5, 1000))
    assert issue.honestly() == beside.honestly() == MADE
    for kind, amount in ((CANCELLATION, -6), (AMENDMENT, -6), (AMENDMENT, -1005), (AMENDMENT, CAP), (CANCELLATION, 1)):
        bad = of_value(world, who(world), entry(1, amount, kind=kind, earlier=issue.ids[0]))
        expected = MADE if (kind, amount) == (CANCELLATION, 1) else NOT_SHOWN  # its own policy's, below the cap
        assert bad.honestly() == expected
        given_up(bad)
    second = Ranged.start(world, who(world), entry(1, 0, kind=CANCELLATION, earlier=issue.ids[0]))
    assert second.honestly() == NOT_SHOWN
    assert_held(world, 1, 1006, 1)


@BOTH
def test_small_steps_reach_the_cap_and_no_further(who: Callable[[World], int]) -> None:
    world = one_shard()
    for amount in (CAP - 9, *(2,) * 4, 1):
        assert Ranged.start(world, who(world), entry(1, amount)).honestly() == MADE
    assert Ranged.start(world, who(world), entry(1, 1)).honestly() == NOT_SHOWN
    # Another person has a cap of its own, and so has another depositor of the same.
    assert Ranged.start(world, who(world), entry(2, CAP)).honestly() == MADE
    assert Ranged.start(world, 8 if who(world) != 8 else 7, entry(1, CAP)).honestly() == MADE


def test_a_correction_of_anothers_issue_of_itself_or_of_nothing_is_not_shown_and_shows_nothing() -> None:
    world = one_shard()
    me, other = an_outsider(world), an_insider(world)
    theirs = Ranged.start(world, other, entry(1, 100))
    assert theirs.honestly() == MADE
    party, itself = world.party(me), world.random(16)
    own = make_deposit(party, entry(1, 5, kind=AMENDMENT, earlier=itself), itself, world.random)
    for ranged in (
        Ranged.start(world, me, entry(1, 5, kind=AMENDMENT, earlier=theirs.ids[0])),
        Ranged.start(world, me, entry(1, 0, kind=CANCELLATION, earlier=theirs.ids[0])),
        Ranged.start(world, me, entry(1, 0, kind=AMENDMENT, earlier=world.random(16))),
        Ranged.of(world, me, [own]),
    ):
        # Every holder takes it, and all four garble alike: the service sees nothing of why until it commits.
        assert {refusal_of(ranged, slot, ranged.call(slot, None)) for slot in ranged.slots} == {None}
        assert ranged.honestly() == NOT_SHOWN
        given_up(ranged)
    assert_held(world, 1, 100, 1)


def test_counts_that_do_not_follow_from_the_kind_are_refused() -> None:
    world = one_shard()
    for value in (0, 1, 2, -1, HALF_RING):  # even the right one, shared in another way than all share it
        bad = lying(world, an_outsider(world), entry(1), valued(world, value, "counts"))
        assert {refusal_of(bad, slot, bad.call(slot, bad.order())) for slot in bad.slots} == {"bad-sharing"}
    other_kind = lying(
        world,
        an_outsider(world),
        entry(1, 0, kind=AMENDMENT, earlier=bytes(16)),
        lambda body, _: replace(body, facts=replace(body.facts, kind=CANCELLATION)),
    )
    told = [refusal_of(other_kind, slot, other_kind.call(slot, None)) for slot in other_kind.slots]
    assert Counter(told) == {"bad-sharing": 4, None: 1}  # one holder has no share that bears the count


# --- at once -------------------------------------------------------------------------------------------------------


def test_of_several_that_are_pending_for_one_person_none_stands_until_the_others_are_made_or_forgotten() -> None:
    world = one_shard()
    number = an_outsider(world)
    for excluded in (0, 3):  # one slot or another: what the four do not all hold they do not all count
        one = Ranged.start(world, number, entry(1, CAP), excluded=0)
        two = Ranged.start(world, number, entry(1, CAP - 1), excluded=excluded)
        one.prepare(None)
        assert two.honestly() == NOT_SHOWN
        assert one.honestly() == NOT_SHOWN
        later = replace(two, now=BEFORE + PENDING_SECONDS + 1)
        refreshed = Ranged.of(world, number, two.made, later.now)
        assert refreshed.honestly()[0].startswith("tick")  # its depositor has lost the other, or gave it up
        # What was passed over as lost is given up by those that judged so and hold it.
        judged = [slot for slot in one.slots if slot in refreshed.slots[:4]]
        states = {slot: one.state(slot, one.ids[0]) for slot in one.slots}
        assert [slot for slot, state in states.items() if state is not None and state.never] == judged
        assert {refusal_of(one, slot, one.call(slot, one.order())) for slot in judged} == {"deposit-abandoned"}
        assert one.honestly() == [VOID]
        assert not one.counted()
        given_up(one)
        off = entry(1, -(CAP - 1), kind=CANCELLATION, earlier=two.ids[0])
        assert Ranged.start(world, number, off).honestly() == MADE
    batch = Ranged.start(world, number, entry(1, 1), entry(1, 2), entry(2, 3))
    assert batch.honestly() == ["range-not-shown", "range-not-shown", f"tick {TICK}"] * 5


@dataclass
class Racing:
    """One of several deposits whose rounds the service relays at the same time, holder by holder in any order."""

    ranged: Ranged
    order: RangeOrder
    answers: dict[int, PrepareAnswer] = field(default_factory=dict)
    proofs: list[RangeProof] | None = None

    def prepared(self, slot: int) -> None:
        self.answers[slot] = self.ranged.prepare_at(slot, self.ranged.call(slot, self.order))
        if len(self.answers) == len(self.ranged.slots):
            try:
                self.proofs = self.ranged.opened(self.order, self.answers)
            except Disagreement:
                self.proofs = None

    def committed(self, slot: int) -> None:
        if self.proofs is not None:
            self.ranged.commit_with(self.proofs, [slot])


def interleaved(random: Random, racing: list[Racing]) -> Iterator[Callable[[], None]]:
    """Yield the steps of all, each deposit's commits after all of its prepares, else in any order."""
    waiting = [
        [
            *((one.prepared, slot) for slot in random.sample(one.ranged.slots, 5)),
            *((one.committed, slot) for slot in random.sample(one.ranged.slots, 5)),
        ]
        for one in racing
    ]
    # One may be ahead, or they go side by side.
    leads = [random.choice((1, 1, 3)) for _ in waiting]
    while any(waiting):
        place = random.choice([n for n, steps in enumerate(waiting) if steps for _ in range(leads[n])])
        step, slot = waiting[place].pop(0)
        yield lambda step=step, slot=slot: step(slot)


@BOTH
def test_deposits_whose_rounds_are_relayed_at_once_in_any_order_never_count_beside_each_other(
    who: Callable[[World], int],
) -> None:
    ends: Counter[int] = Counter()
    for seed in range(25):
        random, world = Random(seed), one_shard(seed)  # noqa: S311  a reproducible order, no secret
        number = who(world)
        racing = []
        for amount in (CAP, CAP - 1):
            ranged = Ranged.start(world, number, entry(1, amount))
            racing.append(Racing(ranged, ranged.order(sorted(random.sample(ranged.slots, 4)))))
        for step in interleaved(random, racing):
            step()
        counted = [bool(one.ranged.counted()) for one in racing]
        assert sum(counted) <= 1
        ends[sum(counted)] += 1
    assert ends[0] > 0
    assert ends[1] > 0
