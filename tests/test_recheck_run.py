"""A run of the recheck over a real register: whom it asks about, what it lists, what it does when answers fail."""

import csv
import datetime as dt
import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from world import COUNT_RULE, LIMIT, NOW, RULE, TODAY, World, make_world, person

from insurer_agent.custodian import Custodian
from insurer_agent.intake.policy import Event
from insurer_agent.recheck import Pace, Recheck, Tally
from insurer_agent.recheck_list import COLUMNS, RecheckList
from insurer_agent.requester import RECHECK_LANES, Answer, _told
from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.database import Database
from insurer_agent.store.keyring import Keyring
from insurer_agent.store.outbox import Outbox
from insurer_agent.store.rechecks import Extent, Spool
from insurer_agent.store.register import PolicyEvent, Record, Register
from insurer_agent.store.vault import Vault
from protocol.check import (
    Question,
    Verdict,
    Void,
    accept_request,
    ask,
    call_for,
    run_check,
    shard_of_person,
)
from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.manifest import Rule
from protocol.messages import RECHECK, UNDERWRITING
from protocol.secret import Secret
from protocol.stamps import as_of_tick
from protocol.watermark import Completeness
from service.config import Settings
from service.custodians import Custodians
from service.directory import DataDirectory
from service.relay import Relay
from transport.peers import Peers
from transport.settings import SettingsError

OWN = 1
WIDE = replace(RULE, id="both-90d", products=("accident", "group_accident"), window_days=90)
WHOLE = Completeness(members=7, current=7, oldest=int(NOW))
QUICK = Pace(sleep=lambda _seconds: None)


@dataclass
class Asker:
    """The requester's place, in front of a whole alliance in memory; `fails` says which checks go wrong, and how."""

    world: World
    fails: Callable[[int, int], Void | ProtocolError | None] = lambda _check, _lanes: None
    completeness: Completeness = WHOLE
    asked: list[list[tuple[Identity, str]]] = field(default_factory=list)

    def recheck(self, lanes: Sequence[tuple[Identity, str]]) -> Answer:
        self.asked.append(list(lanes))
        rules = [self.world.manifest.current_rule(rule_id, TODAY) for _, rule_id in lanes]
        failure = self.fails(len(self.asked), len(lanes))
        if isinstance(failure, ProtocolError):
            raise failure
        verdicts: list[tuple[Verdict, Void | None]] = [(Verdict.INDETERMINATE, failure)] * len(lanes)
        if failure is None:
            questions = [Question(who, rule, 0) for (who, _), rule in zip(lanes, rules, strict=True)]
            members, service, random = self.world.members, self.world.service, self.world.random
            verdicts = run_check(self.world.party(OWN), service, members, questions, NOW, random, occasion=RECHECK)
        answers = (_told(rule, *given, self.completeness, NOW) for rule, given in zip(rules, verdicts, strict=True))
        return Answer(bytes(16), TODAY, self.completeness, tuple(answers))


@dataclass
class House:
    """A member with a register, and the rest of the alliance in memory."""

    database: Database
    register: Register
    spool: Spool
    outbox: Outbox
    world: World
    directory: Path

    def issue(
        self, number: int, whom: int, amount: int, *, day: int = TODAY, product: str = "accident", deposit: bool = True
    ) -> PolicyEvent:
        issued_on = dt.date.fromordinal(day)
        event = PolicyEvent(f"=P-{number}", person(whom), product, Event.ISSUE, amount, issued_on)
        self.register.apply([event])
        if deposit:
            self.world.deposit(OWN, person(whom), amount, day=day, product=product)
        return event

    def run(
        self, asker: Asker | None = None, rules: Sequence[Rule] = (RULE,), *, as_json: bool = False, pace: Pace = QUICK
    ) -> tuple[Tally, list[dict[str, str]]]:
        """Run a recheck and return what came of it, and the list's rows."""
        path = self.directory / "list"
        self.spool.collect(rules, TODAY)
        told: list[int] = []
        with RecheckList(path, as_json=as_json, force=True) as listed:
            run = Recheck(
                asker or Asker(self.world), self.spool, listed, tell=told.append, held=lambda: True, pace=pace
            )
            tally = run.run(rules)
            listed.finish()
        assert told == sorted(told)
        return tally, [] if as_json else rows_of(path)

    def clear(self) -> None:
        self.database.run("clear", lambda at: at.execute("TRUNCATE policy, policy_row, deposit"))

    def open(self) -> dict[tuple[Identity, str], list[str]]:
        """Return the open lanes with their policies' numbers."""
        return {
            (lane.insured, lane.rule_id): sorted(record.policy_number for record in lane.policies)
            for lane in self.spool.left(7)
        }


def rows_of(path: Path) -> list[dict[str, str]]:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("\ufeff")
    return list(csv.DictReader(text.removeprefix("\ufeff").splitlines()))


def house_of(dsn: str, directory: Path, world: World) -> House:
    database, party = Database(dsn, size=2), world.party(OWN)
    database.migrate()
    vault = Vault(Secret(bytes(range(32))), "register", secrets.token_bytes)
    register = Register(database, vault, party, secrets.token_bytes)
    spool = Spool(database, register, vault, partial(shard_of_person, party), secrets.token_bytes)
    return House(database, register, spool, Outbox(database, vault), world, directory)


@pytest.fixture
def house(database: str, tmp_path: Path) -> Iterator[House]:
    made = house_of(database, tmp_path, make_world(7, shards=2, rules=(RULE, COUNT_RULE, WIDE)))
    yield made
    made.database.close()


def escaped(text: str) -> str:
    return f"'{text}"


# --- whom it asks about --------------------------------------------------------------------------------------------

POLICIES = st.lists(
    st.tuples(
        st.integers(1, 4),  # the insured
        st.sampled_from(["accident", "group_accident", "term_life"]),
        st.sampled_from([-90, -89, -30, -29, -1, 0, 1, 40]),  # days from today
        st.sampled_from(["kept", "kept", "cancelled", "amended"]),
    ),
    max_size=8,
)


@deterministic(40)
@given(POLICIES)
def test_those_are_asked_about_who_have_a_policy_in_force_of_the_rules_products_and_window(
    shared_house: House, policies: list[tuple[int, str, int, str]]
) -> None:
    house = shared_house
    house.clear()
    expected: dict[tuple[Identity, str], list[str]] = {}
    for number, (whom, product, days, fate) in enumerate(policies):
        event = house.issue(number, whom, 500, day=TODAY + days, product=product, deposit=False)
        if fate == "cancelled":
            house.register.apply([replace(event, event=Event.CANCEL)])
            continue
        if fate == "amended":
            house.register.apply([replace(event, event=Event.AMEND, amount=0)])
        for rule in (RULE, COUNT_RULE, WIDE):
            if product in rule.products and days > -rule.window_days:
                expected.setdefault((person(whom), rule.id), []).append(event.policy_number)
    extent = house.spool.collect((RULE, COUNT_RULE, WIDE), TODAY)
    assert house.open() == expected
    assert extent == Extent(len({whom for whom, _ in expected}), len(expected))
    house.spool.forget()
    assert house.spool.extent() == Extent(0, 0)


@pytest.fixture(scope="module")
def shared_house(postgres: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    name = f"recheck_{secrets.token_hex(4)}"
    postgres.create_database(name)  # type: ignore[attr-defined]  # the fixture's server
    made = house_of(postgres.dsn(name), tmp_path_factory.mktemp("house"), make_world(7, shards=2))  # type: ignore[attr-defined]  # as above
    yield made
    made.database.close()


def test_a_check_has_lanes_of_one_shard_and_no_more_than_it_may_and_each_lane_once(house: House) -> None:
    for whom in range(80):
        house.issue(whom, whom, 1, deposit=False)
    asker = Asker(house.world)
    tally, rows = house.run(asker, (RULE, WIDE))
    assert Counter(lane for lanes in asker.asked for lane in lanes) == Counter(
        (person(whom), rule.id) for whom in range(80) for rule in (RULE, WIDE)
    )
    for lanes in asker.asked:
        assert len(lanes) <= RECHECK_LANES
        assert len({shard_of_person(house.world.party(OWN), who) for who, _ in lanes}) == 1
    assert len(asker.asked) <= 4
    assert (tally.within, tally.exceeds, tally.indeterminate) == (Counter({RULE.id: 80, WIDE.id: 80}), Counter(), {})
    assert rows == []


def test_the_order_of_persons_is_another_in_each_run(house: House) -> None:
    for whom in range(20):
        house.issue(whom, whom, 1, deposit=False)
    orders = []
    for _ in range(2):
        again = replace(house, spool=house_spool(house))
        again.spool.collect((RULE,), TODAY)
        orders.append([lane.insured for lane in again.spool.left(50)])
    assert sorted(map(str, orders[0])) == sorted(map(str, orders[1]))
    assert orders[0] != orders[1]


def house_spool(house: House) -> Spool:
    old = house.spool
    return Spool(old._database, old._register, old._vault, old._shard_of, secrets.token_bytes)


def test_a_policy_that_is_cancelled_while_the_run_goes_on_is_neither_asked_about_nor_listed(house: House) -> None:
    event = house.issue(1, 1, LIMIT + 1)
    house.issue(2, 2, LIMIT + 1)
    house.spool.collect((RULE,), TODAY)
    house.register.apply([replace(event, event=Event.CANCEL)])
    asker = Asker(house.world)
    with RecheckList(house.directory / "list", as_json=False, force=False) as listed:
        run = Recheck(asker, house.spool, listed, tell=lambda _: None, held=lambda: True, pace=QUICK)
        assert run.run((RULE,)).exceeds == Counter({RULE.id: 1})
        listed.finish()
    assert asker.asked == [[(person(2), RULE.id)]]


def test_the_spool_holds_no_identity(house: House) -> None:
    house.issue(1, 1, 5)
    house.spool.collect((RULE,), TODAY)
    rows = house.database.run("read", lambda at: at.execute("SELECT t::text FROM recheck_lane t").fetchall())
    assert len(rows) == 1
    assert person(1).number not in rows[0][0]
    assert person(1).number.encode().hex() not in rows[0][0]


# --- what it lists -------------------------------------------------------------------------------------------------


def test_those_that_exceed_are_listed_with_the_own_policies_that_count_and_nobody_else(house: House) -> None:
    house.issue(1, 1, LIMIT // 2)
    house.issue(2, 1, 100, day=TODAY - 29)
    house.issue(3, 1, 700, day=TODAY - 30)  # before the window
    house.issue(4, 2, LIMIT)  # exactly at the limit
    house.issue(5, 3, 5, product="term_life")
    house.world.deposit(2, person(1), LIMIT // 2)
    house.world.deposit(3, person(9), 9 * LIMIT)  # of others alone
    tally, rows = house.run(rules=(RULE, COUNT_RULE))
    assert (tally.exceeds, tally.within) == (Counter({RULE.id: 1}), Counter({RULE.id: 1, COUNT_RULE.id: 2}))
    plain = {"document_type": "passport", "document_number": person(1).number, "rule": escaped(RULE.id)}
    plain |= {"rule_version": "1", "verdict": "exceeds", "reason": "", "product": "accident"}
    assert sorted(rows, key=lambda row: row["policy_number"]) == [
        plain | {"policy_number": "'=P-1", "insured_amount": "25000000.00", "issued_on": escaped(day_text(0))},
        plain | {"policy_number": "'=P-2", "insured_amount": "1.00", "issued_on": escaped(day_text(29))},
    ]
    assert tuple(rows[0]) == COLUMNS


def day_text(back: int) -> str:
    return dt.date.fromordinal(TODAY - back).isoformat()


def test_the_list_as_json_has_an_entry_a_person_and_rule(house: House) -> None:
    assert house.run(as_json=True)[0].exceeds == Counter()
    assert json.loads((house.directory / "list").read_text("utf-8")) == {"persons": []}
    house.issue(1, 1, LIMIT)
    house.issue(2, 1, 1)
    house.issue(3, 2, LIMIT + 1)
    house.run(as_json=True)
    entries = json.loads((house.directory / "list").read_text("utf-8"))["persons"]
    assert sorted((entry["document_number"], len(entry["policies"])) for entry in entries) == [
        (person(1).number, 2),
        (person(2).number, 1),
    ]
    assert {entry["verdict"] for entry in entries} == {"exceeds"}
    assert sorted(policy["policy_number"] for entry in entries for policy in entry["policies"]) == [
        "=P-1",
        "=P-2",
        "=P-3",
    ]


def a_record() -> Record:
    return Record("P-1", "passport", "E1", "accident", TODAY, 1, 1, 0, 0, bytes(16))


def test_the_list_is_private_whole_or_not_there_and_never_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"

    def write(*, force: bool = False, ends: bool = True) -> None:
        with RecheckList(path, as_json=False, force=force) as listed:
            listed.put([a_record()], RULE, Verdict.EXCEEDS, None)
            if not ends:
                raise KeyboardInterrupt
            listed.finish()

    with pytest.raises(KeyboardInterrupt):
        write(ends=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "list.csv.partial").write_bytes(b"of a run that was killed")
    write()
    assert [file.name for file in tmp_path.iterdir()] == ["list.csv"]
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="--force"):
        write()
    with pytest.raises(KeyboardInterrupt):
        write(force=True, ends=False)
    assert path.read_bytes() == before
    write(force=True)
    with (
        pytest.raises(SettingsError, match="cannot be written"),
        RecheckList(tmp_path / "nowhere" / "list", as_json=False, force=False),
    ):
        raise AssertionError


# --- when answers fail ---------------------------------------------------------------------------------------------


def listed(rows: list[dict[str, str]]) -> Counter[tuple[str, str]]:
    return Counter((row["verdict"], row["reason"]) for row in rows)


def test_who_has_no_answer_is_asked_again_twice_in_smaller_checks_and_listed_as_indeterminate(house: House) -> None:
    for whom in range(6):
        house.issue(whom, whom, LIMIT + 1 if whom == 0 else 1)
    paused: list[float] = []
    pace = replace(QUICK, sleep=paused.append)
    for reason in (Void.TIMEOUT, Void.DISAGREEMENT, Void.TOO_FEW_CUSTODIANS, Void.SERVICE_UNAVAILABLE, Void.REFUSED):
        asker = Asker(house.world, fails=lambda _check, _lanes, reason=reason: reason)
        tally, rows = house.run(asker, pace=pace)
        assert tally.indeterminate == {RULE.id: Counter({reason.value: 6})}
        assert (tally.within, tally.exceeds) == (Counter(), Counter())
        assert listed(rows) == Counter({("indeterminate", reason.value): 6})
        assert Counter(lane for lanes in asker.asked for lane in lanes) == Counter(
            {(person(whom), RULE.id): 3 for whom in range(6)}
        )
        assert set(pace.pauses) < set(paused)
        once = Asker(house.world, fails=lambda check, _lanes, reason=reason: reason if check == 1 else None)
        tally, rows = house.run(once)
        assert (tally.within, tally.exceeds, tally.indeterminate) == (Counter({RULE.id: 5}), Counter({RULE.id: 1}), {})
        assert listed(rows) == Counter({("exceeds", ""): 1})


def test_custodians_that_are_too_slow_for_a_whole_check_are_asked_smaller_ones(house: House) -> None:
    for whom in range(70):
        house.issue(whom, whom, 1, deposit=False)
    slow = Asker(house.world, fails=lambda _check, lanes: Void.TIMEOUT if lanes > RECHECK_LANES // 16 else None)
    tally, _ = house.run(slow)
    assert (tally.within, tally.indeterminate) == (Counter({RULE.id: 70}), {})


def test_a_service_that_stays_silent_is_given_up_and_nobody_reads_as_within(house: House) -> None:
    for whom in range(12):
        house.issue(whom, whom, 1, deposit=False)
    monitored = replace(QUICK, patience=1)
    silent = Asker(house.world, fails=lambda _check, _lanes: Void.SERVICE_UNAVAILABLE)
    tally, rows = house.run(silent, pace=monitored)
    assert len(silent.asked) == 3, "one check a pass"
    assert tally.indeterminate == {RULE.id: Counter({"service-unavailable": 12})}, "those never asked about, too"
    assert listed(rows) == Counter({("indeterminate", "service-unavailable"): 12})


@pytest.mark.parametrize("code", ["busy", "rate-limited"])
def test_a_service_that_will_not_just_now_is_waited_for_longer_each_time(house: House, code: str) -> None:
    house.issue(1, 1, LIMIT + 1)
    paused: list[float] = []
    busy = Asker(house.world, fails=lambda check, _lanes: ProtocolError(code, "") if check <= 5 else None)
    tally, _ = house.run(busy, pace=replace(QUICK, sleep=paused.append))
    assert tally.exceeds == Counter({RULE.id: 1})
    for number, pause in enumerate(paused[:5]):
        assert 2**number / 2 <= pause <= 2**number
    always = Asker(house.world, fails=lambda _check, _lanes: ProtocolError(code, ""))
    tally, rows = house.run(always)
    assert len(always.asked) == 3 * QUICK.patience
    assert listed(rows) == Counter({("indeterminate", "service-unavailable"): 1})


def test_what_cannot_be_asked_ends_the_run_with_its_reason_and_no_list(house: House) -> None:
    house.issue(1, 1, 1)
    expired = Asker(house.world, fails=lambda _check, _lanes: ProtocolError("manifest-expired", "it has expired"))
    with pytest.raises(ProtocolError, match="manifest-expired"):
        house.run(expired)
    assert list(house.directory.iterdir()) == []


def test_a_run_whose_lock_the_database_ended_stops(house: House) -> None:
    house.issue(1, 1, 1)
    house.spool.collect((RULE,), TODAY)
    asker = Asker(house.world)
    with RecheckList(house.directory / "list", as_json=False, force=False) as under_way:
        run = Recheck(asker, house.spool, under_way, tell=lambda _: None, held=lambda: False, pace=QUICK)
        with pytest.raises(ProtocolError, match="recheck-taken-over"):
            run.run((RULE,))
    assert asker.asked == []


def test_where_too_few_members_are_current_nobody_is_within_and_who_exceeds_does(database: str, tmp_path: Path) -> None:
    strict = replace(RULE, min_current=5)
    house = house_of(database, tmp_path, make_world(7, shards=1, rules=(strict,)))
    house.issue(1, 1, LIMIT + 1)
    house.issue(2, 2, 1)
    asker = Asker(house.world, completeness=replace(WHOLE, current=4))
    tally, rows = house.run(asker, (strict,))
    assert (tally.exceeds, tally.indeterminate) == (Counter({RULE.id: 1}), {RULE.id: Counter({"incomplete": 1})})
    assert listed(rows) == Counter({("exceeds", ""): 1, ("indeterminate", "incomplete"): 1})
    assert len(asker.asked) == 1, "another answer within the hour would cost as much and say the same"
    assert tally.completeness is not None
    assert tally.completeness.current == 4
    house.database.close()


def test_one_person_whose_budget_is_spent_keeps_no_other_from_an_answer(database: str, tmp_path: Path) -> None:
    tight = replace(RULE, recheck_budget=5)
    house = house_of(database, tmp_path, make_world(5, shards=1, rules=(tight,)))
    for whom in range(60):
        house.issue(whom, whom, LIMIT + 1 if whom == 7 else 1)
    world, spent = house.world, [Question(person(3), tight, 0)]
    for _ in range(5):  # of five members the same four answer
        run_check(world.party(OWN), world.service, world.members, spent, NOW, world.random, occasion=RECHECK)
    asker = Asker(world)
    tally, rows = house.run(asker, (tight,))
    assert tally.indeterminate == {RULE.id: Counter({"budget-exhausted": 1})}
    assert (tally.exceeds, tally.within) == (Counter({RULE.id: 1}), Counter({RULE.id: 58}))
    assert {row["document_number"]: row["verdict"] for row in rows} == {
        person(3).number: "indeterminate",
        person(7).number: "exceeds",
    }
    asked = Counter(who for lanes in asker.asked for who, _ in lanes)
    assert set(asked.values()) == {1}
    house.database.close()


# --- room for underwriters -----------------------------------------------------------------------------------------


def code_of(act: Callable[[], object]) -> str | None:
    try:
        act()
    except ProtocolError as refused:
        return refused.code
    return None


GONE_INTO = {"stale", "manifest-expired"}
"""With what a check of the world's time is refused by the machine's clock, once it was looked at."""
SERVICE = Settings(
    state=Path(),
    host="127.0.0.1",
    port=1,
    manifest=Path(),
    admins=Path(),
    workers=1,
    threads=4,
    check_seconds=1.0,
    attempt_seconds=1.0,
    recheck_seconds=1.0,
    recheck_attempt_seconds=1.0,
    deposit_seconds=1.0,
    checks_a_second=0.1,
    rechecks_a_second=0.1,
    deposits_a_second=0.1,
    redis=None,
    redis_seconds=1.0,
    capture=None,
)


def a_relay(world: World, folder: Path) -> Relay:
    line = Custodians(world.service, Peers(), DataDirectory(world.manifest, folder / "directory"))
    return Relay(world.service, line, SERVICE, world.random)


def test_while_all_places_for_rechecks_are_taken_service_and_custodians_take_underwriters_checks(
    database: str, tmp_path: Path
) -> None:
    world = make_world(7, shards=1)
    relay = a_relay(world, tmp_path)
    requests = {}
    for occasion in (RECHECK, UNDERWRITING):
        question = [Question(person(1), RULE, 0)]
        _, requests[occasion] = ask(world.party(OWN), question, NOW, NOW + 2, world.random, occasion=occasion)
    with relay._recheck_places.taken():
        assert code_of(lambda: relay.check(requests[RECHECK])) == "busy"
        assert code_of(lambda: relay.check(requests[UNDERWRITING])) in GONE_INTO
    assert code_of(lambda: relay.check(requests[RECHECK])) in GONE_INTO

    slots = world.manifest.committee(0).slots
    chosen = tuple(entry.slot for entry in requests[RECHECK].signed.statement.envelopes)[:4]
    party = world.members[slots[chosen[0]]].party
    store = Database(database, size=2)
    store.migrate()
    vault = Vault(Secret(bytes(range(32))), "custody", secrets.token_bytes)
    custody, keyring = PostgresCustody(store, vault, 1, 1), Keyring(store, vault)
    custodian = Custodian(party, custody, keyring, Peers(), secrets.token_bytes, threads=4)
    calls = {
        occasion: call_for(
            accept_request(world.service, request, NOW, world.random), 1, chosen, as_of_tick(NOW, 1), chosen[0]
        )
        for occasion, request in requests.items()
    }
    with custodian._recheck_places.taken():
        assert code_of(lambda: custodian.check(calls[RECHECK])) == "busy"
        assert code_of(lambda: custodian.check(calls[UNDERWRITING])) in GONE_INTO
    assert code_of(lambda: custodian.check(calls[RECHECK])) in GONE_INTO
    store.close()


def test_rechecks_have_a_rate_of_their_own_at_which_a_whole_check_always_fits(tmp_path: Path) -> None:
    world = make_world(5, shards=1)
    relay = a_relay(world, tmp_path)
    relay._rechecks.take("insurer-01", 1024)
    assert code_of(lambda: relay._rechecks.take("insurer-01", 1024)) == "rate-limited"
    relay._checks.take("insurer-01", 1)
