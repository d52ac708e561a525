"""The requester's own count of its answers: exact, durable, and stopped by it is only what custodians would refuse."""

import datetime as dt
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import underwriting
import wired
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import deterministic
from test_store_custody import at_once
from test_store_misc import dumped, opened
from underwriting import House, check, results, somebody, underwriting_house
from wires import Fault
from world import COUNT_RULE, NOW, RULE, TODAY, make_world

from insurer_agent.background import job_runner
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.recheck import Pace
from insurer_agent.requester import EndKind
from insurer_agent.rest.answers import CHINA
from insurer_agent.store.database import Database
from insurer_agent.store.own_answers import Counted, OwnAnswers, OwnLane
from insurer_agent.store.vault import Vault
from protocol.budget import charged_from, latest_today, most_answers, most_answers_whatever_was
from protocol.check import Verdict, Void
from protocol.errors import ProtocolError
from protocol.identity import DocumentType, Identity
from protocol.manifest import china_day, day_of
from protocol.messages import FRESHNESS_SECONDS, RECHECK, UNDERWRITING, require_fresh
from protocol.secret import Secret

DAY = 86_400
SPENT = "budget-exhausted"


@pytest.fixture
def store(database: str) -> Iterator[Database]:
    with opened(database, size=8) as store:
        yield store


def own_of(store: Database) -> OwnAnswers:
    return OwnAnswers(store, Vault(Secret(bytes(32)), "own answers", secrets.token_bytes))


def lane(person: int = 1, *, custodians: int = 5, budget: int = 4, days: int = 30, rule: str = RULE.id) -> OwnLane:
    most = most_answers(custodians, budget), most_answers_whatever_was(custodians, budget)
    return OwnLane(b"person %d" % person, rule, budget, days, *most)


def counted_as(own: OwnAnswers, claim: bytes, occasion: int, lanes: Sequence[OwnLane], now: float) -> Counted:
    with own.counting(claim, occasion, lanes, now) as count:
        return count()


def counted(own: OwnAnswers, *lanes: OwnLane, now: float = NOW, occasion: int = UNDERWRITING) -> Counted:
    return counted_as(own, secrets.token_bytes(16), occasion, lanes or (lane(),), now)


def answered(own: OwnAnswers, *lanes: OwnLane, now: float = NOW, times: int = 1) -> None:
    for _ in range(times):
        one = counted(own, *lanes, now=now)
        assert not one.stopped
        own.note(one, range(len(lanes or (lane(),))))


# --- what is certain -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("custodians", [4, 5, 6, 7])
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_no_choice_of_custodians_gives_more_answers_than_the_bound_and_some_choice_gives_as_many(
    custodians: int, budget: int
) -> None:
    def most(left: tuple[int, ...], known: dict[tuple[int, ...], int]) -> int:
        """Return how many answers can still be had of custodians that have so many left each."""
        if left not in known:
            choices = itertools.combinations([place for place, one in enumerate(left) if one], 4)
            after = (tuple(sorted(one - (place in chosen) for place, one in enumerate(left))) for chosen in choices)
            known[left] = max((1 + most(one, known) for one in after), default=0)
        return known[left]

    assert most((budget,) * custodians, {}) == most_answers(custodians, budget)


@deterministic(300)
@given(st.integers(4, 7), st.integers(1, 9), st.lists(st.integers(0, 34), max_size=60), st.integers(1, 30))
def test_after_so_many_answers_there_are_no_more_whatever_the_budget_was_before(
    custodians: int, budget: int, choices: list[int], before: int
) -> None:
    """Custodians gave `before` answers each at first, and `budget` now."""
    sets = list(itertools.combinations(range(custodians), 4))
    charged: Counter[int] = Counter()
    for choice in choices:
        chosen = sets[choice % len(sets)]
        if all(charged[one] < before for one in chosen):
            charged.update(chosen)
    answers = sum(charged.values()) // 4
    may_have_more = sum(charged[one] < budget for one in range(custodians)) >= 4
    if answers >= most_answers_whatever_was(custodians, budget):
        assert not may_have_more
    if before == budget and answers >= most_answers(custodians, budget):
        assert not may_have_more
    assert most_answers(custodians, budget) <= most_answers_whatever_was(custodians, budget)


@deterministic(300)
@given(
    st.floats(NOW, NOW + 3 * DAY), st.floats(-FRESHNESS_SECONDS - 2, FRESHNESS_SECONDS + 2), st.floats(0, 40 * DAY),
    st.floats(-FRESHNESS_SECONDS - 2, FRESHNESS_SECONDS + 2), st.integers(1, 30),
)  # fmt: skip
def test_what_counts_here_stands_in_the_period_of_every_custodian_whose_clock_may_answer(
    asked_at: float, skew: float, later: float, other_skew: float, days: int
) -> None:
    def taken(at: float, clock: float) -> bool:
        try:
            require_fresh(int(at), clock)
        except ProtocolError:
            return False
        return True

    charged_at, now = asked_at + skew, asked_at + later
    assume(taken(asked_at, charged_at) and taken(now, now + other_skew))
    if charged_from(asked_at) > latest_today(now) - days:
        assert china_day(charged_at) >= china_day(now + other_skew) - days + 1


# --- the count in the database -------------------------------------------------------------------------------------


def test_what_is_answered_counts_and_what_is_not_is_given_back(store: Database) -> None:
    own = own_of(store)
    for _ in range(3):
        one = counted(own)
        assert not one.stopped
        own.note(one, [])
    answered(own, times=5)
    (stop,) = counted(own).stopped.values()
    assert (stop.is_certain, stop.until) == (True, charged_from(NOW) + 30)
    assert not counted(own, lane(2)).stopped
    assert not counted(own, lane(rule="another")).stopped
    assert not counted(own, occasion=RECHECK).stopped
    assert not counted(own, lane(custodians=6)).stopped, "6 * 4 / 4 is one more"


def test_what_is_under_way_counts_and_is_no_certainty_and_after_its_time_it_does_not(store: Database) -> None:
    own = own_of(store)
    under_way = [counted(own) for _ in range(5)]
    (stop,) = counted(own).stopped.values()
    assert (stop.is_certain, stop.until) == (False, charged_from(NOW) + 30)
    own.note(under_way[0], [])
    assert not counted(own).stopped, "what is given back may be asked by another"
    assert counted(own).stopped
    change = "UPDATE own_answer SET asked_at = now() - interval '91 seconds'"
    store.run("as if killed", lambda connection: connection.execute(change))
    assert not counted(own).stopped
    own.note(under_way[1], [0])
    found = store.run("read", lambda at: at.execute("SELECT sum(answers) FROM own_answer").fetchone())
    assert found == (1,), "what was answered is noted whenever that comes"


def test_counting_and_noting_again_change_nothing(store: Database) -> None:
    own, claim = own_of(store), secrets.token_bytes(16)
    lanes = [lane(), lane(), lane(2)]

    def state() -> Any:  # noqa: ANN401  rows
        query = "SELECT person_key, lanes, answers FROM own_answer ORDER BY 1"
        return store.run("read", lambda at: at.execute(query).fetchall())

    one = counted_as(own, claim, UNDERWRITING, lanes, NOW)
    before = state()
    assert counted_as(own, claim, UNDERWRITING, lanes, NOW) == one
    assert state() == before
    own.note(one, [0, 2])
    before = state()
    assert sorted(answers for _, _, answers in before) == [1, 1]
    own.note(one, [0, 1, 2])
    own.note(one, [])
    assert state() == before


def test_many_processes_at_once_count_no_more_than_may_be(store: Database) -> None:
    owns = [own_of(store) for _ in range(8)]
    found = at_once([partial(counted, own, *([lane()] * 2)) for own in owns])
    assert sum(2 - len(one.stopped) for one in found) == 5
    assert all(not stop.is_certain for one in found for stop in one.stopped.values())


def test_what_waits_to_be_noted_is_noted_soon_and_once(store: Database) -> None:
    own = own_of(store)
    for one in [counted(own) for _ in range(5)]:
        own.note_soon(one, [0])
    own.flush()
    (stop,) = counted(own).stopped.values()
    assert stop.is_certain
    own.flush()
    store.close()
    own.note(one, [0])  # is logged alone: the answer was right


def test_other_budgets_before_make_less_certain(store: Database) -> None:
    """Under a larger budget a few custodians may have given all: others may have some left when it is made smaller."""
    own = own_of(store)
    answered(own, lane(custodians=6, budget=4), times=4)
    smaller = lane(custodians=6, budget=3)
    assert (most_answers(6, 3), most_answers_whatever_was(6, 3)) == (4, 5)
    answered(own, smaller)
    (stop,) = counted(own, smaller).stopped.values()
    assert stop.is_certain
    answered(own, lane(7, custodians=6, budget=3), times=4)
    assert counted(own, lane(7, custodians=6, budget=3)).stopped
    assert not counted(own, lane(7, custodians=6, budget=3, days=29)).stopped


@dataclass
class Plain:
    """The count as it is written in SPEC.md, by lists."""

    rows: list[tuple[str, int, int, bool]] = field(default_factory=list)
    """Whom it is about, the day, how many answers, and whether under way."""

    def stopped(self, whom: list[str], today: int, day: int, one: OwnLane) -> dict[int, tuple[int, bool]]:
        found, asked = {}, list[str]()
        for place, who in enumerate(whom):
            rows = [row for row in self.rows if row[0] == who and row[1] > today - one.budget_days]
            before = [at for _, at, answers, _ in rows for _ in range(answers)]
            if len(before) + asked.count(who) < one.most:
                asked.append(who)
                continue
            taken = min(whom.count(who), max(one.most - len(before), 0))
            days = sorted([*before, *[day] * taken])
            until = days[len(days) - one.most] + one.budget_days
            sure = sum(answers for _, _, answers, under_way in rows if not under_way) >= one.most
            found[place] = (until, sure)
        return found


checks = st.tuples(
    st.integers(0, 9), st.lists(st.sampled_from(["1", "2"]), min_size=1, max_size=4),
    st.sampled_from(["all", "none", "some", "under way"]),
)  # fmt: skip


@deterministic(25)
@given(st.lists(checks, max_size=14), st.integers(1, 4), st.integers(1, 12))
def test_the_count_is_that_of_a_plain_list(
    shared: Database, asked: list[tuple[int, list[str], str]], budget: int, days: int
) -> None:
    own, plain, now = own_of(shared), Plain(), NOW
    shared.run("clear", lambda connection: connection.execute("DELETE FROM own_answer"))
    for later, whom, outcome in asked:
        now += later * DAY
        lanes = [lane(int(who), budget=budget, days=days) for who in whom]
        today, day = latest_today(now), charged_from(now)
        one = counted(own, *lanes, now=now)
        told = {place: (stop.until, stop.is_certain) for place, stop in one.stopped.items()}
        assert told == plain.stopped(whom, today, day, lanes[0])
        sent = [place for place in range(len(whom)) if place not in one.stopped]
        got = {"all": sent, "none": [], "some": sent[::2], "under way": sent}[outcome]
        if outcome != "under way":
            own.note(one, got)
        for who in {whom[place] for place in sent}:
            answers = sum(whom[place] == who for place in got)
            if answers:
                plain.rows.append((who, day, answers, outcome == "under way"))


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres) -> Iterator[Database]:
    postgres.create_database("own_answers")
    with opened(postgres.dsn("own_answers")) as store:
        yield store


def test_persons_and_rules_stand_there_as_hmacs_and_old_days_go(store: Database) -> None:
    own = own_of(store)
    answered(own)
    answered(own, now=NOW + 40 * DAY)
    had = dumped(store)
    assert b"person 1" not in had
    assert b"person 1".hex().encode() not in had
    own.forget_old(TODAY + 5)
    found = store.run("read", lambda at: at.execute("SELECT day FROM own_answer").fetchall())
    assert found == [(day_of(charged_from(NOW + 40 * DAY)),)]
    other = OwnAnswers(store, Vault(Secret(bytes([1] * 32)), "own answers", secrets.token_bytes))
    assert not counted(other, lane(budget=1)).stopped, "under another key nobody is known"


# --- a real agent --------------------------------------------------------------------------------------------------

TIGHT = replace(RULE, budget=4, recheck_budget=2)
"""Of five custodians outside the requester's group: 5 answers, and 2 by rechecks."""
MOST = 5


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wired, "make_world", partial(make_world, rules=(TIGHT, COUNT_RULE)))
        patch.setattr(underwriting, "SHARDS", 1)
        with underwriting_house(tmp_path_factory.mktemp("own"), postgres) as house:
            yield house


def asked_of_the_service(house: House, act: Callable[[], Any]) -> int:
    """Return how many calls of the service an act makes."""
    wire = house.there.wires["service"]
    before = wire.exchanges
    act()
    return wire.exchanges - before


@pytest.fixture(autouse=True)
def _directory_is_read(request: pytest.FixtureRequest) -> None:
    """Have the directory read, now and then, in no test of what is sent."""
    if "house" in request.fixturenames:
        request.getfixturevalue("house").agent.directory._read_at = float("inf")


def use_up(house: House, whom: str) -> list[dict[str, Any]]:
    """Ask until the budget is spent; return all answers."""
    told = []
    while not told or told[-1]["reason"] != SPENT:
        answer = house.request("POST", "/v1/checks", check(whom))
        assert answer.status == 200
        told.append(answer.body)
        house.agent.own_answers.flush()
    return told


def own_count(house: House, whom: str) -> int:
    key = house.agent.own_answers._key(Identity(DocumentType.PASSPORT, whom).encode())
    query = "SELECT coalesce(sum(answers), 0) FROM own_answer WHERE person_key = %s"
    return int(house.there.aside.execute(query, (key,)).fetchone()[0])  # type: ignore[index]  # it has a row


def test_an_agent_stops_what_would_be_refused_before_it_sends_and_says_until_when(house: House) -> None:
    whom = somebody()
    told = use_up(house, whom)
    got = [one for one in told if one["verdict"] == "within"]
    assert TIGHT.budget <= len(got) <= MOST
    assert own_count(house, whom) == len(got)
    assert all(one["budget_until"] is one["budget_until_is"] is None for one in got)
    # Whom custodians know as spent, and the own count does not.
    house.there.aside.execute("DELETE FROM own_answer")
    for agent in house.there.agents.values():
        agent.database.run("spend", lambda connection: connection.execute("UPDATE budget SET answers = 99"))
    answer = house.request("POST", "/v1/checks", check(whom)).body
    until = china_day(time.time()) + TIGHT.budget_days
    assert (answer["reason"], answer["budget_until_is"]) == (SPENT, EndKind.LATEST.value)
    assert answer["budget_until"] in {day_of(until).isoformat(), day_of(until + 1).isoformat()}
    assert 0 < answer["retry_after"] <= DAY + 1

    other = Identity(DocumentType.PASSPORT, somebody())
    answers = [house.agent.requester.check(other, [TIGHT.id], 1) for _ in range(TIGHT.budget)]
    house.agent.own_answers.flush()
    assert all(one.lanes[0].verdict is Verdict.WITHIN for one in answers)
    house.there.aside.execute("UPDATE own_answer SET answers = 2 WHERE claim = (SELECT min(claim) FROM own_answer)")
    spent = house.spent()

    def stop() -> None:
        one = house.request("POST", "/v1/checks", check(other.number)).body
        assert (one["verdict"], one["exceeds_limit"], one["reason"], one["advice"]) == (
            "indeterminate",
            None,
            SPENT,
            "refer",
        )
        assert one["budget_until_is"] == EndKind.EARLIEST.value
        day = dt.date.fromisoformat(one["budget_until"])
        assert day.toordinal() in {until - 1, until}
        left = dt.datetime.combine(day, dt.time(), CHINA) - dt.datetime.now(CHINA)
        assert abs(one["retry_after"] - left.total_seconds()) < 60
        assert len(one["check_id"]) == 32

    assert asked_of_the_service(house, stop) == 0
    assert house.spent() == spent


def test_what_is_stopped_leaves_what_is_asked_beside_it(house: House) -> None:
    whom, fresh = somebody(), somebody()
    use_up(house, whom)
    house.there.aside.execute("UPDATE own_answer SET answers = 9")
    several = check(whom, rules=[COUNT_RULE.id, TIGHT.id])
    body = house.request("POST", "/v1/checks", several).body
    assert [(one["verdict"], one["reason"]) for one in body["results"]] == [("within", None), ("indeterminate", SPENT)]
    both = results(house.batch([check(whom), check(fresh), several]))
    assert [one.get("reason") for one in both] == [SPENT, None, None]
    assert both[1]["verdict"] == "within"
    assert [one["budget_until_is"] for one in both[2]["results"]] == [None, "earliest"]
    assert asked_of_the_service(house, lambda: house.batch([check(whom)] * 3)) == 0


def test_a_batch_about_one_person_gets_no_more_and_what_it_cannot_tell_it_says_so(house: House) -> None:
    whom = somebody()
    told = results(house.batch([check(whom, f"{amount}.00") for amount in range(1, 12)]))
    within = [one for one in told if one["verdict"] == "within"]
    expected = [one for one in told if one["budget_until_is"] == EndKind.EXPECTED.value]
    assert len(within) == own_count(house, whom) <= MOST
    assert len(expected) == len(told) - MOST
    assert {one["reason"] for one in told} == {None, SPENT}
    again = results(house.batch([check(whom, "99.00")]))
    assert again[0]["verdict"] == "within" or again[0]["reason"] == SPENT


def test_many_checks_at_once_send_no_more_than_may_be_answered(house: House) -> None:
    whom = somebody()
    with ThreadPoolExecutor(12) as pool:
        sent = asked_of_the_service(
            house, lambda: list(pool.map(lambda _: house.request("POST", "/v1/checks", check(whom)), range(12)))
        )
    assert sent <= MOST
    house.agent.own_answers.flush()
    assert own_count(house, whom) <= MOST


def test_jobs_and_rechecks_are_counted_and_stopped_too(house: House) -> None:
    whom, subject = (name := somebody()), Identity(DocumentType.PASSPORT, name)
    job = house.request("POST", "/v1/checks/jobs", {"checks": [check(whom, f"{amount}.00") for amount in range(9)]})
    runner = job_runner(house.agent, Pace(pauses=(0.0, 0.0), sleep=lambda _: None))
    runner.run(lambda: True)
    lines = house.request("GET", f"/v1/checks/jobs/{job.body['job_id']}/result").body.decode().splitlines()
    stopped = [line for line in lines if '"budget_until_is": "expected"' in line]
    assert len(stopped) == 9 - MOST
    assert all(SPENT in line for line in stopped)
    columns = house.request("GET", f"/v1/checks/jobs/{job.body['job_id']}/result?format=csv").body.decode()
    assert columns.splitlines()[0].endswith(",budget_until,budget_until_is")
    assert ",expected" in columns

    told = []
    while not told or told[-1].reason is None:
        (one,) = house.agent.requester.recheck([(subject, TIGHT.id)]).lanes
        told.append(one)
    assert len(told) - 1 == 2 == most_answers(5, TIGHT.recheck_budget)
    assert told[-1].reason is Void.BUDGET_EXHAUSTED
    assert told[-1].until is not None
    assert told[-1].until.kind is EndKind.EARLIEST
    assert asked_of_the_service(house, lambda: house.agent.requester.recheck([(subject, TIGHT.id)])) == 0


def test_what_brings_no_verdict_is_given_back(house: House) -> None:
    whom = somebody()
    # A proposal above the cap, of which nothing leaves; and an answer that does not come.
    with pytest.raises(ProtocolError, match="bad-amount"):
        house.agent.requester.check(Identity(DocumentType.PASSPORT, whom), [TIGHT.id], 1 << 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(house.agent.requester, "_seconds", 0.0)
        for _ in range(2 * MOST):
            body = house.request("POST", "/v1/checks", check(whom)).body
            assert body["reason"] == "timeout"
            house.agent.own_answers.flush()
    assert own_count(house, whom) == 0
    assert house.request("POST", "/v1/checks", check(whom)).body["verdict"] == "within"


def test_without_the_count_nothing_is_asked(house: House) -> None:
    to_postgres = house.there.to_postgres

    def ask() -> None:
        answer = house.request("POST", "/v1/checks", check(somebody()))
        assert (answer.status, answer.body["code"]) == (503, "database-unavailable")

    assert house.request("GET", "/v1/rules").status == 200  # so that the key is remembered
    to_postgres.cut(Fault.FAILED, lambda _: True, 1_000)
    try:
        assert asked_of_the_service(house, ask) == 0
        assert to_postgres.cuts > 0
    finally:
        to_postgres.mend()
