"""The binary search for a person's total, played against the protocol's own code by all that a requester can do.

It proposes, deposits baits of its own, does both, and spreads its questions over the members of its group, batches,
rechecks, shards and midnights, through the choices of A and the clocks that suit it best. Each answer halves what is
left at the most, and there are no more answers in any period than n*b/4 (n*b_r/4 by rechecks).
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import underwriting
import wired
from hypothesis import example, given
from hypothesis import strategies as st
from live import wait_for_ticks
from strategies import deterministic
from test_store_misc import opened
from underwriting import House, check, results, somebody, underwriting_house, yuan
from world import COUNT_RULE, LIMIT, RULE, TODAY, World, make_world, name, person

from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.own_answers import Counted
from insurer_agent.store.vault import Vault
from protocol import check as checking
from protocol.budget import most_answers
from protocol.check import (
    Question,
    Verdict,
    Void,
    accept_call,
    accept_request,
    answer_call,
    ask,
    call_for,
    conclude,
    read_outcome,
    shard_of_person,
)
from protocol.identity import DocumentType, Identity
from protocol.manifest import china_day
from protocol.messages import AMENDMENT, RECHECK, UNDERWRITING
from protocol.secret import Secret
from protocol.stamps import as_of_tick

SPACE = 1 << 24
"""The total is one of so many numbers of fen: 24 bits are to be found out."""
TOTAL = 11_184_810
DAYS = 3
TIGHT = replace(RULE, budget=3, recheck_budget=2, budget_days=DAYS)
MIDNIGHT = (TODAY - 719_163 + 1) * 86_400 - 8 * 3600
"""The end of the day of the tests, UTC+8, in Unix seconds."""
SPENT = (Verdict.INDETERMINATE, Void.BUDGET_EXHAUSTED)
ANSWERS = {Verdict.EXCEEDS: True, Verdict.WITHIN: False}
VICTIM = person(1)
OWNERS = {name(1): "one", name(2): "one"}
"""Two members that search together; they are charged as one."""
INSURER = 3
"""Who insures the person whose total is searched for."""


@dataclass
class Search:
    """What the attackers know: the total lies from `low` to `high`; and when they got each answer, by occasion.

    `order` has the slots in the order in which A is taken from them; `clocks` by how much each custodian's is ahead.
    """

    world: World
    rule: Any
    now: float = MIDNIGHT - 3600.0
    low: int = 0
    high: int = SPACE - 1
    policies: dict[int, bytes] = field(default_factory=dict)
    baits: dict[int, int] = field(default_factory=dict)
    answers: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """Occasion, and the days on which the four custodians charged it."""
    clocks: dict[int, float] = field(default_factory=dict)
    blind: int = 0

    @property
    def shard(self) -> int:
        return shard_of_person(self.world.party(1), VICTIM)

    def asked(
        self, member: int, proposals: Sequence[int], order: int, *, occasion: int = UNDERWRITING
    ) -> list[tuple[Verdict, Void | None]]:
        """Ask as `run_check` does, with an A of the attackers' choice and clocks that differ."""
        world, party = self.world, self.world.party(member)
        questions = [Question(VICTIM, self.rule, proposed) for proposed in proposals]
        pending, request = ask(party, questions, self.now, self.now + 2, world.random, occasion=occasion)
        evaluation = accept_request(world.service, request, self.now, world.random)
        statement = request.signed.statement
        slots = world.manifest.committee(statement.shard).slots
        free = [entry.slot for entry in statement.envelopes]
        start = order % len(free)
        chosen = tuple(sorted((free[start:] + free[:start])[:4]))
        tick = as_of_tick(self.now - 27, world.manifest.terms.tick_seconds)  # closed for whoever is behind
        given, days = {}, []
        for slot in chosen:
            custodian, clock = world.members[slots[slot]], self.now + self.clocks.get(slot, 0.0)
            accepted = accept_call(custodian.party, call_for(evaluation, 1, chosen, tick, slot), clock)
            spent, view = custodian.custody.admit_and_view(accepted.admission(), accepted.reading())
            key = custodian.committee_keys[statement.shard, accepted.omitted]
            given[slot] = answer_call(custodian.party, accepted, key, view, spent)
            days.append(china_day(clock))
        told = read_outcome(pending, conclude(world.service, evaluation, 1, chosen, tick, given), self.now)
        self.answers += [(occasion, tuple(days)) for verdict, _ in told if verdict in ANSWERS]
        self.now += 1
        return told

    def learn(self, guesses: Sequence[int], told: Sequence[tuple[Verdict, Void | None]]) -> None:
        """Take in whether the total is above each guess."""
        for guess, (verdict, reason) in zip(guesses, told, strict=True):
            assert verdict in ANSWERS or reason is Void.BUDGET_EXHAUSTED
            if verdict is Verdict.EXCEEDS:
                self.low = max(self.low, guess + 1)
            elif verdict is Verdict.WITHIN:
                self.high = min(self.high, guess)

    def middles(self, count: int) -> list[int]:
        """Return guesses that cut what is left into parts as equal as may be, no two alike."""
        left = self.high - self.low + 1
        return sorted({self.low - 1 + left * part // (count + 1) for part in range(1, count + 1)})

    def put_bait(self, member: int, amount: int) -> None:
        """Have policies of the attackers make their own cover that amount, by a new one of this member's if can be."""
        change = amount - sum(self.baits.values())
        if member not in self.policies and change > 0:
            made, _ = self.world.deposit(member, VICTIM, change, now=self.now)
            self.policies[member], self.baits[member] = made.deposit.deposit_id, change
        else:
            for holder in sorted(self.policies, key=lambda one: one != member):
                part = max(change, -self.baits[holder])  # no policy is below zero
                self.world.deposit(holder, VICTIM, part, kind=AMENDMENT, earlier=self.policies[holder], now=self.now)
                self.baits[holder] += part
                change -= part
        self.now += 120

    def step(self, member: int, how: str, order: int) -> None:
        """Ask once, somehow."""
        guesses = self.middles(3 if how == "batch" else 1)
        if how in ("bait", "recheck"):
            self.put_bait(member, LIMIT - guesses[0])
        elif how == "both":
            self.put_bait(member, (LIMIT - guesses[0]) // 2)
        if how == "recheck":
            told = self.asked(member, [0], order, occasion=RECHECK)
        else:
            proposals = [LIMIT - sum(self.baits.values()) - guess for guess in guesses]
            if any(proposed < 0 for proposed in proposals):
                self.put_bait(member, 1)
                proposals = [LIMIT - 1 - guess for guess in guesses]
            told = self.asked(member, proposals, order)
        self.learn(guesses, told)

    def step_elsewhere(self, order: int) -> None:
        """File a check in a shard that is not the person's: it tells of the proposal, and is charged to the person."""
        before = len(self.answers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checking, "shard_of_person", lambda *_: 1 - self.shard)
            for proposed, verdict in ((LIMIT, Verdict.WITHIN), (LIMIT + 1, Verdict.EXCEEDS)):
                (told,) = self.asked(1, [proposed], order)
                assert told in ((verdict, None), SPENT), "it depends on nothing that the person has"
        self.blind += len(self.answers) - before
        del self.answers[before:]

    def custodians(self) -> int:
        slots = self.world.manifest.committee(self.shard).slots
        return len(slots) - (self.world.manifest.slot_of_group(self.shard, name(1)) is not None)

    def require_bounded(self) -> None:
        """Require that no period has more answers than the bound, and that each has told one bit at the most."""
        budgets = {UNDERWRITING: self.rule.budget, RECHECK: self.rule.recheck_budget}
        days = sorted({day for _, charged in self.answers for day in charged})
        for first in days:
            within = range(first, first + self.rule.budget_days)
            for occasion, budget in budgets.items():
                got = sum(one == occasion and set(charged) <= set(within) for one, charged in self.answers)
                assert got <= most_answers(self.custodians(), budget)
        assert self.low <= TOTAL <= self.high
        assert (self.high - self.low + 1) << len(self.answers) >= SPACE


def a_world(**options: Any) -> World:  # noqa: ANN401  those of `make_world`
    world = make_world(8, rules=(TIGHT, COUNT_RULE), owners=OWNERS, **({"shards": 2} | options))
    world.deposit(INSURER, VICTIM, TOTAL, now=MIDNIGHT - 7200)
    return world


steps = st.tuples(
    st.sampled_from([1, 2]), st.sampled_from(["proposal", "bait", "both", "batch", "recheck", "shard"]),
    st.integers(0, 5), st.sampled_from([0.0, 0.0, 0.0, 40.0, 86_400.0]),
)  # fmt: skip
clocks = st.lists(st.floats(-25, 25), min_size=6, max_size=6)
GREEDY = [
    (1 + turn % 2, how, turn, 0.0) for turn, how in enumerate(["batch"] * 3 + ["both", "proposal", "recheck"] * 3)
]


@deterministic(7)
@given(st.lists(steps, min_size=8, max_size=14), clocks, st.sampled_from([MIDNIGHT - 3600.0, MIDNIGHT - 5.0]))
@example(GREEDY, [0.0] * 6, MIDNIGHT - 3600.0)
@example([*GREEDY, (1, "proposal", 1, 86_400.0 * DAYS), *GREEDY], [25.0, -25.0] * 3, MIDNIGHT - 5.0)
def test_whatever_is_done_in_whatever_order_a_period_gives_no_more_bits_than_the_bound(
    moves: list[tuple[int, str, int, float]], ahead: list[float], begin: float
) -> None:
    search = Search(a_world(seed=len(moves)), TIGHT, now=begin, clocks=dict(enumerate(ahead)))
    for member, how, order, later in moves:
        search.now += later
        if how == "shard":
            search.step_elsewhere(order)
        else:
            search.step(member, how, order)
    search.require_bounded()


@pytest.mark.parametrize("how", ["proposal", "bait", "both", "batch", "recheck"])
def test_each_way_of_searching_gets_all_that_the_bound_allows_in_a_period_and_goes_on_in_the_next(how: str) -> None:
    """With the A that suit it best: so the bound is no looser than it must be, and the search is a real one."""
    world = a_world(slots=5, shards=1)
    search = Search(world, TIGHT)
    budget, occasion = (TIGHT.recheck_budget, RECHECK) if how == "recheck" else (TIGHT.budget, UNDERWRITING)
    most = most_answers(search.custodians(), budget)
    for period in (1, 2):
        for turn in range(most + 3):
            search.step(1 + turn % 2, how, turn)
        assert [one for one, _ in search.answers] == [occasion] * (period * most)
        search.now += DAYS * 86_400
    search.require_bounded()
    if how != "batch":
        assert (search.high - search.low + 1) >> 1 < SPACE >> len(search.answers), "every answer was worth its bit"


def test_a_search_in_other_shards_tells_nothing_and_costs_the_same_budget() -> None:
    search = Search(a_world(slots=5), TIGHT)
    for turn in range(6):
        search.step_elsewhere(turn)
    assert search.blind >= TIGHT.budget
    for turn in range(6):
        search.step(1, "proposal", turn)
    search.require_bounded()
    shared = {custodian for committee in search.world.manifest.terms.committees for custodian in committee.slots}
    charged = 4 * (search.blind + len(search.answers))
    assert charged <= TIGHT.budget * len(shared - OWNERS.keys())


@contextlib.contextmanager
def on_postgresql(world: World, server: EmbeddedPostgres, label: str) -> Iterator[World]:
    """Have every custodian keep what it keeps in a database of its own."""
    with contextlib.ExitStack() as undo:
        for member in world.manifest.committee(0).slots:
            database = f"{label}_{member}".replace("-", "_")
            server.create_database(database)
            store = undo.enter_context(opened(server.dsn(database)))
            vault = Vault(Secret(bytes(32)), "custody", secrets.token_bytes)
            custody = PostgresCustody(store, vault, world.manifest.terms.tick_seconds, world.manifest.terms.epoch)
            world.members[member] = replace(world.members[member], custody=custody)
        yield world


def test_the_search_meets_the_same_bound_in_postgresql_over_midnights(postgres: EmbeddedPostgres) -> None:
    empty = make_world(8, shards=1, rules=(TIGHT, COUNT_RULE), owners=OWNERS, slots=5)
    with on_postgresql(empty, postgres, "searches") as world:
        world.deposit(INSURER, VICTIM, TOTAL, now=MIDNIGHT - 7200)
        search = Search(world, TIGHT, now=MIDNIGHT - 150.0, clocks={0: 25.0, 1: -25.0, 3: 20.0})
        most = most_answers(search.custodians(), TIGHT.budget)
        for turn, how in enumerate(["bait", "both", "batch", "recheck", "recheck"]):
            search.step(1 + turn % 2, how, turn)
        search.require_bounded()
        by_underwriting = sum(occasion == UNDERWRITING for occasion, _ in search.answers)
        assert TIGHT.budget <= by_underwriting <= most
        assert {day for _, charged in search.answers for day in charged} == {TODAY, TODAY + 1}


# --- through real agents -------------------------------------------------------------------------------------------

BUDGET = 4
"""Of five custodians outside the requester's group: 5 answers, and 2 by rechecks."""
AGENTS_RULE = replace(RULE, budget=BUDGET, recheck_budget=2)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wired, "make_world", partial(make_world, rules=(AGENTS_RULE, COUNT_RULE)))
        patch.setattr(underwriting, "SHARDS", 1)
        with underwriting_house(tmp_path_factory.mktemp("searches"), postgres) as house:
            yield house


@contextmanager
def counts_nothing(
    claim: bytes, occasion: int, lanes: Sequence[object], _now: float
) -> Iterator[Callable[[], Counted]]:
    """Stop nothing, as the agent of a member that searches does."""
    yield lambda: Counted(claim, occasion, underwriting.DAY, ((b"", ""),) * len(lanes), {})


@pytest.mark.parametrize("honest", [True, False])
def test_a_search_through_an_agent_ends_at_the_bound_whether_or_not_the_agent_counts(
    house: House, monkeypatch: pytest.MonkeyPatch, *, honest: bool
) -> None:
    whom = somebody()
    house.deposit([("insurer-03", whom, TOTAL)])
    if not honest:
        monkeypatch.setattr(house.agent.own_answers, "counting", counts_nothing)
        monkeypatch.setattr(house.agent.own_answers, "_notes_of", lambda *_: [])
    low, high, bits, refused, bait = 0, SPACE - 1, 0, 0, 0
    for turn in range(3 * BUDGET):
        middle = (low + high) // 2
        if turn == BUDGET // 2:  # the rest of the search is by a bait of its own, proposing the difference alone
            bait = LIMIT // 2
            house.deposit([("insurer-01", whom, bait)])
            wait_for_ticks()
        one = check(whom, yuan(LIMIT - bait - middle))
        body = results(house.batch([one]))[0] if turn % 3 == 2 else house.request("POST", "/v1/checks", one).body
        house.agent.own_answers.flush()
        if body["verdict"] == "indeterminate":
            assert body["reason"] == "budget-exhausted"
            refused += 1
            continue
        bits += 1
        low, high = (middle + 1, high) if body["exceeds_limit"] else (low, middle)
    subject, by_rechecks = Identity(DocumentType.PASSPORT, whom), 0
    for _ in range(6):
        (lane,) = house.agent.requester.recheck([(subject, AGENTS_RULE.id)]).lanes
        assert lane.reason in (None, Void.BUDGET_EXHAUSTED)
        by_rechecks += lane.reason is None
    assert BUDGET <= bits <= most_answers(5, BUDGET)
    assert 2 <= by_rechecks <= most_answers(5, 2)
    assert refused == 3 * BUDGET - bits
    assert low <= TOTAL <= high
    assert high - low + 1 >= SPACE >> bits
