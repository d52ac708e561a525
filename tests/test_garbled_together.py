"""Several checks in one run, at a custodian and at the service, are what each is alone; a fault of one is its alone."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from test_check import Attempt, attempt
from test_store_custody import A_DAY, EPOCH, VAULT, admission, commit_of, index, proposed
from world import LIMIT, NOW, RULE, FourCustodians, Shared, World, make_world, name, person, seeded

from insurer_agent.custodian import Custodian
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.database import Database
from protocol.check import (
    Conclusion,
    Question,
    Verdict,
    accept_call,
    conclude_together,
    garble_calls,
    shard_of_person,
)
from protocol.comparison import (
    Answered,
    Disagreement,
    Garbling,
    Part,
    evaluate,
    evaluate_together,
    garble_together,
)
from protocol.custody import Admission, Charge, MemoryCustody, Reading
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.messages import UNDERWRITING, CheckOutcome, CheckReply
from protocol.sharing import Chosen
from protocol.stamps import as_of_tick
from transport.peers import Peers

CHOSEN_SLOTS = [Chosen((0, 1, 2, 3), 6), Chosen((1, 2, 4, 5), 6), Chosen((0, 2, 3, 4), 5)]


def four(number: int, lanes: int) -> FourCustodians:
    return FourCustodians(CHOSEN_SLOTS[number % 3], tuple(LIMIT + lane for lane in range(lanes)), number)


def bytes_of(garbling: Garbling) -> tuple[bytes, bytes, bytes]:
    return encode(garbling.circuit), garbling.wires.labels, garbling.vouchers


@deterministic(25)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_checks_garbled_together_are_garbled_as_alone(lanes: list[int]) -> None:
    fours = [four(number, count) for number, count in enumerate(lanes)]
    together = garble_together([(one.seed, one.tags) for one in fours])
    alone = [garble_together([(one.seed, one.tags)])[0] for one in fours]
    assert [bytes_of(one) for one in together] == [bytes_of(one) for one in alone]


def parts(one: FourCustodians, over: Sequence[bool]) -> dict[int, Part]:
    return one.parts([[Shared(LIMIT + lane + int(is_over), 4)] for lane, is_over in enumerate(over)])


@deterministic(25)
@given(st.lists(st.tuples(st.lists(st.booleans(), min_size=1, max_size=3), st.booleans()), min_size=1, max_size=6))
def test_checks_evaluated_together_open_as_alone_and_who_disagrees_is_told_apart(
    asked: list[tuple[list[bool], bool]],
) -> None:
    answered = []
    for number, (over, is_bent) in enumerate(asked):
        one = four(number, len(over))
        given_parts = parts(one, over)
        if is_bent:
            slot = one.chosen.slots[number % 4]
            given_parts[slot] = replace(given_parts[slot], garbled_digest=bytes(32))
        answered.append((one, Answered(given_parts, one.chosen, len(over), one.header)))
    found = evaluate_together([comparison for _, comparison in answered])
    for (over, is_bent), (one, comparison), opened in zip(asked, answered, found, strict=True):
        if is_bent:
            assert isinstance(opened, Disagreement)
            with pytest.raises(Disagreement) as raised:
                evaluate(comparison.parts, comparison.chosen, comparison.lanes, comparison.header)
            assert raised.value == opened
            continue
        assert not isinstance(opened, Disagreement)
        told = [one.verdict(lane, tag) for lane, tag in enumerate(opened)]
        assert told == [Verdict.EXCEEDS if is_over else Verdict.WITHIN for is_over in over]


def test_the_tags_of_one_check_are_none_of_another() -> None:
    ones = [four(number, 1) for number in (0, 3)]
    first, second = (parts(one, [False]) for one in ones)
    swapped = [Answered(second, ones[0].chosen, 1, ones[0].header), Answered(first, ones[1].chosen, 1, ones[1].header)]
    for one, opened in zip(ones, evaluate_together(swapped), strict=True):
        assert not isinstance(opened, Disagreement)
        assert one.verdict(0, opened[0]) is Verdict.INDETERMINATE


# --- whole checks -----------------------------------------------------------------------------------------------------


ONE = person(1)


def another(world: World) -> Identity:
    """Return a person of another shard."""
    party = world.party(1)
    several = (person(number) for number in range(2, 100))
    return next(one for one in several if shard_of_person(party, one) != shard_of_person(party, ONE))


@pytest.fixture(scope="module")
def world() -> World:
    made = make_world(7, shards=2)
    made.deposit(2, ONE, LIMIT - 5)
    made.deposit(3, another(made), LIMIT)
    return made


def attempts(world: World) -> list[Attempt]:
    two = another(world)
    asked = [(4, ONE, 5), (5, ONE, 6), (6, two, 0), (7, two, 1), (4, ONE, 6)]
    return [
        attempt(world, requester, [Question(whom, RULE, proposed)], seed=("together", place))
        for place, (requester, whom, proposed) in enumerate(asked)
    ]


RIGHT = [Verdict.WITHIN, Verdict.EXCEEDS, Verdict.WITHIN, Verdict.EXCEEDS, Verdict.EXCEEDS]


def test_attempts_of_several_members_and_shards_are_concluded_together(world: World) -> None:
    made = attempts(world)
    assert len({one.statement.shard for one in made}) == 2
    tick = made[0].call(made[0].chosen[0]).tick
    concluded = conclude_together(
        [
            (
                world.service,
                Conclusion(one.evaluation, 1, one.chosen, tick, {slot: one.answer(slot) for slot in one.chosen}),
            )
            for one in made
        ]
    )
    verdicts = []
    for one, outcome in zip(made, concluded, strict=True):
        assert isinstance(outcome, CheckOutcome)
        verdicts += [verdict for verdict, _ in one.read(outcome)]
    assert verdicts == RIGHT


def test_a_check_of_which_custodians_disagree_is_concluded_beside_others(world: World) -> None:
    made = attempts(world)
    tick = made[0].call(made[0].chosen[0]).tick
    answers = [{slot: one.answer(slot) for slot in one.chosen} for one in made]
    bent, key = made[1].chosen[0], answers[1][made[1].chosen[0]]
    answers[1][bent] = replace(key, committee_key=replace(key.committee_key, made_at=key.committee_key.made_at + 1))
    answers[3][made[3].chosen[1]] = answers[3][made[3].chosen[2]]
    concluded = conclude_together(
        [
            (world.service, Conclusion(one.evaluation, 1, one.chosen, tick, given_answers))
            for one, given_answers in zip(made, answers, strict=True)
        ]
    )
    told = [
        "disagree" if isinstance(outcome, Disagreement) else one.read(outcome)[0][0]
        for one, outcome in zip(made, concluded, strict=True)
    ]
    assert told == [RIGHT[0], "disagree", RIGHT[2], "disagree", RIGHT[4]]


def test_a_custodian_garbles_calls_together_as_alone(world: World) -> None:
    slot = attempts(world)[0].chosen[0]
    mine = world.manifest.committee(attempts(world)[0].statement.shard).slots[slot]
    member, asked = world.members[mine], []
    for one in attempts(world):
        if mine in [one.custodians[place] for place in one.chosen]:
            accepted = accept_call(member.party, one.call(one.custodians.index(mine)), NOW)
            asked.append((member.party, accepted, member.committee_keys[one.statement.shard, accepted.omitted]))
    assert len(asked) > 1
    views = [member.custody.view(accepted.reading()) for _, accepted, _ in asked]
    together = [one.answer(view) for one, view in zip(garble_calls(asked), views, strict=True)]
    alone = [garble_calls([one])[0].answer(view) for one, view in zip(asked, views, strict=True)]
    assert [encode(one) for one in together] == [encode(one) for one in alone]


# --- the custodian's store --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(postgres: EmbeddedPostgres) -> str:
    postgres.create_database("together")
    return postgres.dsn("together")


@pytest.fixture(scope="module")
def kept(place: str) -> Iterator[Database]:
    store = Database(place, size=3)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def database(place: str, kept: Database) -> Database:
    with psycopg.connect(place, autocommit=True) as aside:
        aside.execute("TRUNCATE check_request, budget")
    return kept


calls = st.tuples(
    st.integers(0, 3),  # the check
    st.integers(1, 3),  # its attempt
    st.lists(st.integers(0, 2), min_size=1, max_size=3),  # whom its lanes are about
    st.sampled_from([100, 100, 101]),  # its tick
    st.sampled_from([bytes(32), bytes(32), bytes(31) + b"\1"]),  # its statement's hash
)


@deterministic(40)
@given(messages=st.lists(st.lists(calls, min_size=1, max_size=6), min_size=1, max_size=4))
def test_calls_admitted_together_are_admitted_as_one_after_the_other(
    place: str, kept: Database, messages: list[list[tuple[int, int, list[int], int, bytes]]]
) -> None:
    with psycopg.connect(place, autocommit=True) as aside:
        aside.execute("TRUNCATE check_request, budget")
    stored, memory = PostgresCustody(kept, VAULT, 1, EPOCH), MemoryCustody()
    reading = Reading(0, EPOCH, 100, ((index(0), A_DAY),))
    for message in messages:
        asked = [
            admission(
                check,
                attempt=number,
                tick=tick,
                statement_hash=statement,
                charges=tuple(Charge(index(whom), "rule", UNDERWRITING, 2, 30) for whom in persons),
            )
            for check, number, persons, tick, statement in message
        ]
        order = sorted(range(len(asked)), key=lambda at, asked=asked: asked[at].check_id)
        expected: dict[int, object] = {at: told(partial(memory.admit, asked[at])) for at in order}
        with stored.admitting([(one, reading) for one in asked]) as admitted:
            found = {at: told(lambda at=at, admitted=admitted: admitted(at)[1]) for at in range(len(asked))}
        assert found == expected


def told(action: object) -> object:
    assert callable(action)
    try:
        return action()
    except ProtocolError as refusal:
        return refusal.code


class _Keys:
    """The committee keys of a member of a world, as a keyring gives them."""

    def __init__(self, world: World, member: str) -> None:
        self._keys = world.members[member].committee_keys

    def current(self, shard: int, omitted: int | None, _version: int) -> object:
        return self._keys[shard, omitted]


def test_a_call_that_is_refused_is_refused_beside_others(world: World, database: Database) -> None:
    now = time.time()
    made = [
        attempt(world, requester, [Question(ONE, RULE, 5)], now=now, seed=("live", requester))
        for requester in (4, 5, 6, 7)
    ]
    shard = made[0].statement.shard
    slots = world.manifest.committee(shard).slots
    common = set(range(len(slots))).intersection(*(one.chosen for one in made))
    mine = min(common)
    party = world.members[slots[mine]].party
    store = PostgresCustody(database, VAULT, 1, EPOCH)
    keys = _Keys(world, party.id)
    custodian = Custodian(party, store, keys, Peers(), seeded("unused"), threads=4)  # type: ignore[arg-type]
    tick = as_of_tick(now, world.manifest.terms.tick_seconds)
    calls_ = [replace(one.call(mine), tick=tick) for one in made]
    bent = replace(calls_[1], envelope=calls_[0].envelope)
    several = [calls_[0], bent, calls_[0], calls_[2], calls_[3]]
    replies = custodian.check_together([(party, call) for call in several])
    assert [_code(reply) for reply in replies] == [None, "bad-envelopes", "replayed", None, None]
    again = custodian.check_together([(party, call) for call in (calls_[1], calls_[3])])
    assert [_code(reply) for reply in again] == [None, "replayed"]
    assert name(4) in {one.statement.requester for one in made}


def _code(reply: CheckReply) -> str | None:
    assert (reply.answer is None) is not (reply.refusal is None)
    return reply.refusal


def test_a_database_that_is_away_is_told_to_each(world: World, database: Database) -> None:
    now = time.time()
    made = attempt(world, 4, [Question(ONE, RULE, 5)], now=now, seed="away")
    mine = made.chosen[0]
    party = made.custodian(mine)
    nowhere = Database("host=127.0.0.1 port=1 dbname=none connect_timeout=1", size=1)
    try:
        store = PostgresCustody(nowhere, VAULT, 1, EPOCH)
        keys = _Keys(world, party.id)
        custodian = Custodian(party, store, keys, Peers(), seeded("unused"), threads=4)  # type: ignore[arg-type]
        call = replace(made.call(mine), tick=as_of_tick(now, world.manifest.terms.tick_seconds))
        replies = custodian.check_together([(party, call), (party, call)])
    finally:
        nowhere.close()
    assert [_code(reply) for reply in replies] == ["database-unavailable", "database-unavailable"]
    assert database.run("here", lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)


@pytest.mark.parametrize("checks", [1, 4, 16])
def test_messages_of_checks_under_several_rules_do_not_lock_each_other_up(
    database: Database, checks: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one group, so that they share 64 locks, and in both orders of the same checks' attempts."""
    stored, ends = PostgresCustody(database, VAULT, 1, EPOCH), list[int]()

    def message(number: int, attempt: int) -> list[tuple[Admission, Reading]]:
        asked = []
        for check in range(checks):
            persons = [index(1000 * number + 10 * check + place) for place in range(2)]
            charges = tuple(
                Charge(whom, rule_id, UNDERWRITING, 50, 30) for whom in persons for rule_id in ("rule", "other")
            )
            one = admission(10_000 + 100 * number + check, attempt=attempt, charges=charges)
            asked.append((one, Reading(0, EPOCH, 100, tuple((whom, A_DAY) for whom in persons))))
        return asked if attempt == 1 else asked[::-1]

    def send(attempt: int) -> None:
        for number in range(30):
            with stored.admitting(message(number, attempt)) as admitted:
                ends.extend(len(admitted(at)[1]) for at in range(checks))

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(send, attempt) for attempt in (1, 2, 3)]:
            done.result(60)
    assert ends == 90 * checks * [0]
    assert not [record for record in caplog.records if "retried" in record.getMessage()]


def test_attempts_of_an_earlier_schema_are_not_answered_again(place: str, database: Database) -> None:
    stored, asked = PostgresCustody(database, VAULT, 1, EPOCH), admission(77)
    assert stored.admit(asked) == ()
    with psycopg.connect(place, autocommit=True) as aside:
        aside.execute("UPDATE check_request SET attempts = '{}'")
        aside.execute("CREATE TABLE check_attempt (requester text, check_id bytea, attempt smallint)")
        aside.execute("INSERT INTO check_attempt SELECT requester, check_id, 1 FROM check_request")
    database.migrate()
    assert told(lambda: stored.admit(asked)) == "replayed"
    assert stored.admit(replace(asked, attempt=2)) == ()
    with psycopg.connect(place, autocommit=True) as aside:
        assert aside.execute("SELECT to_regclass('check_attempt')").fetchone() == (None,)


def test_a_call_that_would_read_many_rows_is_refused_beside_others_and_recorded(database: Database) -> None:
    stored, asked = PostgresCustody(database, VAULT, 1, EPOCH), admission(88)
    reading = Reading(0, EPOCH, 100, ((index(0), A_DAY),))
    deposits = [proposed(number) for number in range(3)]
    stored.prepare(deposits, 0.0)
    stored.commit(deposits[0].depositor, 0, [commit_of(number, 50) for number in range(3)])
    with stored.admitting([(asked, reading), (admission(89), reading)], 2) as admitted:
        assert [told(lambda at=at: admitted(at)) for at in range(2)] == ["many-rows", "many-rows"]
    assert told(lambda: stored.admit(asked)) == "replayed"
    with stored.admitting([(replace(asked, attempt=2), reading)], 3) as admitted:
        view, spent = admitted(0)
    assert (len(view.persons[0].rows), spent) == (3, ())
