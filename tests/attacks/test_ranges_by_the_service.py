"""What a malicious service may try with range checks, with every party in memory: nothing counts but what may stand,
and no deposit is seen to be of the person of another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
from ranges import (
    MADE,
    NOT_SHOWN,
    Ranged,
    an_outsider,
    entry,
    one_shard,
)
from world import World

from protocol.comparison import Disagreement
from protocol.deposit import Entry

# --- a commit that is held back from one holder ----------------------------------------------------------------------


@dataclass(frozen=True)
class HeldBack:
    """A deposit for person 1 that all holders have but one, from which the service has kept its commit."""

    world: World
    depositor: int
    held: Ranged
    lagging: int

    def next_is(self, item: Entry, excluded: int | None) -> tuple[Ranged, set[tuple[int, int, int]], list[str]]:
        """Let the depositor's next deposit come; return what the service sees of a range check with the laggard."""
        later = Ranged.start(self.world, self.depositor, item, excluded=excluded)
        others = [slot for slot in later.slots if slot not in (self.lagging, self.held.made[0].excluded)]
        # With the slot that the held one excludes, which has no stamp of it: there a holder that sees more would show.
        mine = [slot for slot in (self.lagging, self.held.made[0].excluded) if slot in later.slots]
        order = later.order(sorted([*mine, *others[: 4 - len(mine)]]))
        answers = later.prepare(order)
        with pytest.raises(Disagreement):
            later.opened(order, answers)
        unequal = later.unequal(order, answers)
        assert later.commit_with(later.forced(order, answers)) == NOT_SHOWN
        # Without it, all holders commit, the laggard too: what it lacks of others it does not ask after.
        again = later.order([slot for slot in later.slots if slot != self.lagging][:4])
        return later, unequal, later.honestly(again)


def held_back(depositor: Callable[[World], int], excluded: int | None, lagging: int) -> HeldBack:
    world = one_shard()
    number = depositor(world)
    for other in (1, 2, 3):  # of each person something is there already
        known = Ranged.start(world, number, entry(other, 100), excluded=excluded)
        assert known.honestly() == MADE
    held = Ranged.start(world, number, entry(1, 7), excluded=excluded)
    order = held.order()
    answers = held.prepare(order)
    proofs = held.opened(order, answers)
    assert proofs is not None
    done = held.commit(held.decide(answers, proofs), [slot for slot in held.slots if slot != lagging])
    assert len(done) == 4
    return HeldBack(world, number, held, lagging)


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
        _, unequal, done = story.next_is(entry(whom, 9), later)
        assert done == MADE
        seen.append(unequal)
    # Of every lane, the pairs of the laggard with each other slot that holds what it lacks.
    assert seen == [seen[0]] * 4
    assert {lane for lane, _, _ in seen[0]} == {0, 1, 2}
    assert all(lagging in (one, two) for _, one, two in seen[0])
    assert not any(excluded in (one, two) for _, one, two in seen[0])
