"""A batch in memory: how it is cut into checks, and that it says what single checks and the plain sum say."""

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from test_recheck_run import GONE_INTO, a_relay, code_of
from world import COUNT_RULE, LIMIT, NOW, RULE, TODAY, World, make_world, person

from insurer_agent.batch import BATCH_LANES, IN_FLIGHT, Batches, Item, packed
from insurer_agent.check_jobs import CHECK_SECONDS
from insurer_agent.config import Settings as AgentSettings
from insurer_agent.custodian import Custodian
from insurer_agent.requester import Answer, Lane, LaneAnswer
from insurer_agent.rest.schemas import MAX_BATCH
from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.database import Database
from insurer_agent.store.idempotency import UNDER_WAY_SECONDS
from insurer_agent.store.keyring import Keyring
from insurer_agent.store.vault import Vault
from protocol.check import Question, Verdict, Void, accept_request, ask, call_for, run_check, shard_of_person
from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.messages import MAX_ATTEMPTS, CheckRequest
from protocol.secret import Secret
from protocol.stamps import as_of_tick
from protocol.watermark import Completeness
from service.config import Settings
from service.limits import SECONDS_AT_ONCE
from transport.peers import Peers
from transport.places import FEW_LANES

OWN = 1
WHOLE = Completeness(members=7, current=7, oldest=int(NOW))
RULES = (RULE, COUNT_RULE)


@dataclass
class Asker:
    """The requester's place, in front of a whole alliance in memory; `fails` says what becomes of which check."""

    world: World
    fails: Callable[[int], Void | ProtocolError | None] = lambda _check: None
    asked: list[list[Lane]] = field(default_factory=list)
    one: threading.Lock = field(default_factory=threading.Lock)

    def check_many(self, lanes: Sequence[Lane], seconds: float) -> Answer:
        assert seconds > 0
        with self.one:
            self.asked.append(list(lanes))
            failure = self.fails(len(self.asked))
            if isinstance(failure, ProtocolError):
                raise failure
            questions = [Question(who, self._rule(rule), amount) for who, rule, amount in lanes]
            world = self.world
            verdicts = (
                run_check(world.party(OWN), world.service, world.members, questions, NOW, world.random)
                if failure is None
                else [(Verdict.INDETERMINATE, failure)] * len(lanes)
            )
        told = (LaneAnswer(one.rule, *verdict) for one, verdict in zip(questions, verdicts, strict=True))
        return Answer(len(self.asked).to_bytes(16, "big"), TODAY, WHOLE, tuple(told))

    def unasked(self, lanes: Sequence[Lane], reason: Void) -> Answer:
        told = (LaneAnswer(self._rule(rule), Verdict.INDETERMINATE, reason) for _, rule, _ in lanes)
        return Answer(bytes(16), TODAY, WHOLE, tuple(told))

    def _rule(self, rule_id: str):  # type: ignore[no-untyped-def]  # noqa: ANN202  the manifest's
        return self.world.manifest.current_rule(rule_id, TODAY)

    def shard_of(self, who: Identity) -> int:
        return shard_of_person(self.world.party(OWN), who)


def asking(world: World, **change: object) -> tuple[Asker, Batches]:
    asker = Asker(world, **change)  # type: ignore[arg-type]  # what a test changes
    return asker, Batches(asker, asker.shard_of, threads=16)


def verdicts(answers: Sequence[Answer]) -> list[list[tuple[Verdict, Void | None]]]:
    return [[(lane.verdict, lane.reason) for lane in answer.lanes] for answer in answers]


# --- how it is cut ---------------------------------------------------------------------------------------------------

ITEMS = st.lists(
    st.builds(
        Item,
        st.integers(1, 12).map(person),
        st.sampled_from([(RULE.id,), (COUNT_RULE.id,), (RULE.id, COUNT_RULE.id), (COUNT_RULE.id, RULE.id)]),
        st.integers(0, 3),
    ),
    max_size=60,
)


@deterministic(200)
@given(ITEMS, st.integers(1, 20), st.integers(1, 4))
def test_every_item_is_answered_by_one_check_of_its_shard_and_no_check_asks_a_lane_twice(
    items: list[Item], most: int, shards: int
) -> None:
    packs = packed(items, lambda who: int(who.number[1:]) % shards, most)
    assert sorted(place for pack in packs for place in pack.items) == list(range(len(items)))
    asked = Counter(lane for pack in packs for lane in pack.lanes)
    assert set(asked) == {lane for item in items for lane in item.lanes}
    for pack in packs:
        lanes = list(pack.lanes)
        assert lanes, "no check is empty"
        assert list(pack.lanes.values()) == list(range(len(lanes)))
        assert len(lanes) <= max(most, 2)
        assert len({int(who.number[1:]) % shards for who, _, _ in lanes}) == 1
        for place, at in pack.items.items():
            assert [lanes[lane] for lane in at] == items[place].lanes
        told = dict(pack.answers(Answer(b"", 0, WHOLE, tuple(lanes))))  # type: ignore[arg-type]  # lanes as answers
        assert {place: list(answer.lanes) for place, answer in told.items()} == {
            place: items[place].lanes for place in pack.items
        }


@deterministic(100)
@given(ITEMS, st.integers(1, 3))
def test_all_that_is_asked_about_a_person_stands_in_one_check_where_it_fits(items: list[Item], shards: int) -> None:
    packs = packed(items, lambda who: int(who.number[1:]) % shards, 8)
    of_person: dict[Identity, set[Lane]] = {}
    for item in items:
        of_person.setdefault(item.subject, set()).update(item.lanes)
    for who, lanes in of_person.items():
        if len(lanes) <= 8:
            assert sum(any(lane[0] == who for lane in pack.lanes) for pack in packs) == 1


def test_a_thousand_persons_of_two_shards_are_few_checks() -> None:
    items = [Item(person(number), (RULE.id,), 1) for number in range(1000)]
    packs = packed(items, lambda who: int(who.number[1:]) % 2)
    assert [len(pack.lanes) for pack in packs] == [256, 244, 256, 244]
    assert BATCH_LANES == 256


# --- what it says ----------------------------------------------------------------------------------------------------

POLICIES = st.lists(
    st.tuples(st.integers(1, 7), st.integers(1, 5), st.sampled_from([1, LIMIT // 2, LIMIT - 1, LIMIT])), max_size=8
)
ASKED = st.lists(
    st.tuples(
        st.integers(1, 5),
        st.sampled_from([(RULE,), (COUNT_RULE, RULE)]),
        st.sampled_from([0, 1, 2, LIMIT // 2, LIMIT // 2 + 1, LIMIT, LIMIT + 1]),
    ),
    min_size=1,
    max_size=6,
)


@deterministic(20)
@given(POLICIES, ASKED)
def test_a_batch_says_what_single_checks_and_the_plain_sum_say(
    policies: list[tuple[int, int, int]], asked: list[tuple[int, tuple[object, ...], int]]
) -> None:
    world = make_world(7, shards=2, seed=(policies, asked))
    for member, whom, amount in policies:
        world.deposit(member, person(whom), amount)
    items = [Item(person(whom), tuple(rule.id for rule in rules), amount) for whom, rules, amount in asked]  # type: ignore[attr-defined]  # rules
    _, batches = asking(world)
    plain, single = [], []
    for whom, rules, amount in asked:
        held = [policy for _, who, policy in policies if who == whom]
        sums = {RULE: sum(held) + amount > LIMIT, COUNT_RULE: len(held) + (amount > 0) > COUNT_RULE.limit}
        plain.append([(Verdict.EXCEEDS if sums[rule] else Verdict.WITHIN, None) for rule in rules])  # type: ignore[index]  # as above
        single.append([world.check(OWN, person(whom), amount, rule=rule) for rule in rules])  # type: ignore[arg-type]  # as above
    assert verdicts(batches.ask(items, 60)) == plain == single


def test_the_same_item_many_times_is_asked_once_and_answered_each_time() -> None:
    world = make_world(7, shards=2)
    world.deposit(2, person(1), LIMIT)
    asker, batches = asking(world)
    items = [Item(person(1), (RULE.id,), 1), Item(person(2), (RULE.id,), 1)] * 100
    answers = batches.ask(items, 60)
    assert verdicts(answers) == [[(Verdict.EXCEEDS, None)], [(Verdict.WITHIN, None)]] * 100
    assert sorted(len(lanes) for lanes in asker.asked) in ([2], [1, 1])
    assert len({answer.check_id for answer in answers[::2]}) == 1


# --- what fails ------------------------------------------------------------------------------------------------------


def test_checks_that_have_no_answer_leave_the_others_theirs() -> None:
    world = make_world(7, shards=1)
    asker, batches = asking(world, fails=lambda check: Void.TIMEOUT if check == 1 else None)
    answers = batches.ask([Item(person(number), (RULE.id,), 1) for number in range(BATCH_LANES + 3)], 60)
    reasons = Counter(reason for ((_, reason),) in verdicts(answers))
    assert reasons in (
        Counter({Void.TIMEOUT: BATCH_LANES, None: 3}),
        Counter({Void.TIMEOUT: 3, None: BATCH_LANES}),
    )
    assert len(asker.asked) == 2


@pytest.mark.parametrize("code", ["busy", "rate-limited"])
def test_what_the_service_does_not_take_just_now_is_sent_again(code: str) -> None:
    world = make_world(5, shards=1)
    asker, batches = asking(world, fails=lambda check: ProtocolError(code, "not now") if check <= 2 else None)
    assert verdicts(batches.ask([Item(person(1), (RULE.id,), 1)], 60)) == [[(Verdict.WITHIN, None)]]
    assert len(asker.asked) == 3


def test_what_is_missing_at_the_deadline_is_a_timeout_and_never_within() -> None:
    asker, batches = asking(make_world(5, shards=1), fails=lambda _: ProtocolError("busy", "not now"))
    items = [Item(person(number), (RULE.id, COUNT_RULE.id), 1) for number in range(3)]
    assert verdicts(batches.ask(items, 0.2)) == [[(Verdict.INDETERMINATE, Void.TIMEOUT)] * 2] * 3
    assert asker.asked
    before = len(asker.asked)
    assert verdicts(batches.ask(items, 0)) == [[(Verdict.INDETERMINATE, Void.TIMEOUT)] * 2] * 3
    assert len(asker.asked) == before


def test_what_cannot_be_asked_at_all_is_refused() -> None:
    _, batches = asking(make_world(5, shards=1), fails=lambda _: ProtocolError("manifest-expired", "too old"))
    with pytest.raises(ProtocolError, match="manifest-expired"):
        batches.ask([Item(person(1), (RULE.id,), 1)], 60)


def test_as_many_checks_are_under_way_as_may_be_and_no_more() -> None:
    world, free, all_there = (
        make_world(5, shards=1),
        threading.BoundedSemaphore(IN_FLIGHT),
        threading.Barrier(IN_FLIGHT),
    )
    asker = Asker(world)

    class Counting(Asker):
        def check_many(self, lanes: Sequence[Lane], seconds: float) -> Answer:
            assert seconds > 0
            assert free.acquire(blocking=False)
            all_there.wait(30)
            free.release()
            return asker.unasked(lanes, Void.TIMEOUT)

    batches = Batches(Counting(world), lambda who: int(who.number[1:]), threads=16)
    items = [Item(person(number), (RULE.id,), 1) for number in range(3 * IN_FLIGHT)]
    assert len(batches.ask(items, 60)) == len(items)


# --- beside underwriters who wait ------------------------------------------------------------------------------------


def questions_of(world: World, lanes: int) -> CheckRequest:
    questions = [Question(person(number), RULE, 1) for number in range(lanes)]
    return ask(world.party(OWN), questions, NOW, NOW + 2, world.random)[1]


def test_while_all_places_for_batches_are_taken_service_and_custodians_take_single_checks(
    database: str, tmp_path: Path
) -> None:
    world = make_world(7, shards=1)
    relay = a_relay(world, tmp_path)
    few, many = questions_of(world, FEW_LANES), questions_of(world, FEW_LANES + 1)
    with relay._batch_places.taken(), relay._batch_places.taken():
        assert code_of(lambda: relay.check(many)) == "busy"
        assert code_of(lambda: relay.check(few)) in GONE_INTO
    assert code_of(lambda: relay.check(many)) in GONE_INTO

    slots = world.manifest.committee(0).slots
    chosen = tuple(entry.slot for entry in few.signed.statement.envelopes)[:4]
    store = Database(database, size=2)
    store.migrate()
    vault = Vault(Secret(bytes(range(32))), "custody", secrets.token_bytes)
    party = world.members[slots[chosen[0]]].party
    custody, keyring = PostgresCustody(store, vault, 1, 1), Keyring(store, vault)
    custodian = Custodian(party, custody, keyring, Peers(), secrets.token_bytes, threads=4)
    few_call, many_call = (
        call_for(accept_request(world.service, request, NOW, world.random), 1, chosen, as_of_tick(NOW, 1), chosen[0])
        for request in (few, many)
    )
    with custodian._batch_places.taken(), custodian._batch_places.taken():
        assert code_of(lambda: custodian.check(many_call)) == "busy"
        assert code_of(lambda: custodian.check(few_call)) in GONE_INTO
    assert code_of(lambda: custodian.check(many_call)) in GONE_INTO
    store.close()


def test_a_check_of_a_batch_has_time_by_its_lanes_and_a_single_one_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, given_time = make_world(5, shards=1), []
    relay = a_relay(world, tmp_path)
    monkeypatch.setattr(relay, "_check", lambda _request, _rate, *seconds: given_time.append(seconds))
    for lanes in (1, FEW_LANES, 100):
        relay.check(questions_of(world, lanes))
    assert given_time == [(1.0, 1.0), (1.0, 1.0), (10.0, 4.0)]


def test_by_default_a_member_and_an_api_key_may_ask_several_batches_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('port = 1\nmember_id = "insurer-01"\n')
    agent = AgentSettings.load(tmp_path)
    (tmp_path / "config.toml").write_text("port = 1\n")
    service = Settings.load(tmp_path)
    assert min(agent.checks_a_second, service.checks_a_second) >= 1500
    assert min(agent.checks_at_once, service.checks_a_second * SECONDS_AT_ONCE) >= 10 * MAX_BATCH
    largest = service.attempt_seconds + BATCH_LANES * service.lane_seconds
    assert MAX_ATTEMPTS * largest < CHECK_SECONDS < agent.batch_seconds < UNDER_WAY_SECONDS
