"""Reports are believed of their member alone, stay with the service, and only say which custodians to ask last."""

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from test_store_outbox import Store
from test_store_outbox import entry as outgoing
from world import NOW, make_world, name

import service.custodians
import service.directory
from insurer_agent.completeness import PUBLISH_SECONDS
from insurer_agent.store import outbox
from protocol import signing
from protocol.committee import preferred_choice
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.messages import FRESHNESS_SECONDS
from protocol.progress import MAX_PLACES, PURPOSE, Place, Report, SignedReport, accept_report, sign_report
from protocol.sharing import MAX_SLOTS
from protocol.watermark import Directory, SignedWatermark, sign_watermark
from service.custodians import BEHIND, Custodians, Trouble
from service.directory import REPORT_SECONDS, REREAD_SECONDS, DataDirectory
from transport.peers import Peers

WORLD = make_world()
MANIFEST = WORLD.manifest
MEMBERS = len(MANIFEST.terms.members)
PLACES = [(committee.shard, slot) for committee in MANIFEST.terms.committees for slot in range(len(committee.slots))]
Places = set[tuple[int, int]]


def watermark(member: int, now: float = NOW) -> SignedWatermark:
    return sign_watermark(WORLD.party(member), int(now), now)


def by(member: int, behind: Places | None = None, now: float = NOW) -> SignedReport:
    return sign_report(WORLD.party(member), watermark(member, now), behind or set())


def kept_of(member: int) -> Places:
    """Return the places that keep deposits of a member: all but its own."""
    return {(shard, slot) for shard, slot in PLACES if slot != MANIFEST.slot_of_group(shard, name(member))}


def resigned(report: Report, member: int = 1) -> SignedReport:
    """Return a report as it is under the member's own signature."""
    return SignedReport(
        report=report, signature=signing.sign(WORLD.party(member).keys.signing, PURPOSE, encode(report))
    )


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as refused:
        act()
    return refused.value.code


# --- a report ------------------------------------------------------------------------------------------------------


@deterministic(60)
@given(st.data(), st.integers(1, MEMBERS))
def test_a_report_says_the_places_that_its_member_named_each_once_and_in_order(data: Any, member: int) -> None:  # noqa: ANN401
    named = data.draw(st.lists(st.sampled_from(sorted(kept_of(member))), max_size=20))
    signed = decode(SignedReport, encode(sign_report(WORLD.party(member), watermark(member), named)))
    report = accept_report(MANIFEST, signed, NOW)
    assert [(place.shard, place.slot) for place in report.behind] == sorted(set(named))
    assert (report.member, report.issued_at) == (name(member), int(NOW))


def test_no_one_but_its_member_makes_or_bends_a_report() -> None:
    good, kept = by(1, {min(kept_of(1))}), sorted(kept_of(1))
    other = Place(shard=kept[1][0], slot=kept[1][1])
    accept_report(MANIFEST, good, NOW)
    bent = [
        replace(good, report=replace(good.report, behind=())),
        replace(good, report=replace(good.report, behind=(other,))),
        replace(good, report=replace(good.report, watermark=watermark(1, NOW - 5))),  # an old word in a new report
        replace(good, report=replace(good.report, watermark=watermark(2))),
        resigned(good.report, member=2),
        replace(good, signature=good.report.watermark.signature),  # a watermark's is for another purpose
    ]
    for signed in bent:
        assert refusal(lambda: accept_report(MANIFEST, signed, NOW)) == "bad-signature"  # noqa: B023  called at once
    data = encode(good)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            accept_report(MANIFEST, decode(SignedReport, bytes(flipped)), NOW)
        except ProtocolError:
            continue
        raise AssertionError(bit)


def test_a_report_of_another_time_or_alliance_is_refused() -> None:
    for late in (FRESHNESS_SECONDS + 1, -FRESHNESS_SECONDS - 1):
        assert refusal(lambda: accept_report(MANIFEST, by(1), NOW + late)) == "stale"  # noqa: B023  called at once
    other = Manifest.of(replace(MANIFEST.terms, alliance="another"))
    assert refusal(lambda: accept_report(other, by(1), NOW)) == "bad-watermark"


def test_a_report_that_names_what_keeps_none_of_its_deposits_is_refused() -> None:
    own = next((shard, slot) for shard, slot in PLACES if (shard, slot) not in kept_of(1))
    shards, slots = len(MANIFEST.terms.committees), len(MANIFEST.committee(0).slots)
    for shard, slot in (own, (0, slots), (0, MAX_SLOTS - 1), (shards, 0), ((1 << 32) - 1, 0)):
        signed = by(1, {min(kept_of(1)), (shard, slot)})
        assert refusal(lambda: accept_report(MANIFEST, signed, NOW)) == "bad-report"  # noqa: B023  called at once


def test_a_report_has_no_place_twice_none_out_of_order_and_not_more_than_there_can_be() -> None:
    good = by(1, kept_of(1)).report
    for behind in (good.behind[::-1], (*good.behind, good.behind[-1]), (good.behind[0], *good.behind)):
        signed = resigned(replace(good, behind=behind))
        assert refusal(lambda: accept_report(MANIFEST, signed, NOW)) == "bad-report"  # noqa: B023  called at once
    place = Place(shard=0, slot=0)
    assert refusal(lambda: encode(replace(good, behind=(place,) * (MAX_PLACES + 1)))) == "malformed"
    many = bytearray(encode(resigned(replace(good, behind=(place,) * 2))))
    at = bytes(many).index((2).to_bytes(4, "big") + encode(place))
    many[at : at + 4] = (MAX_PLACES + 1).to_bytes(4, "big")
    assert refusal(lambda: decode(SignedReport, bytes(many))) == "malformed"


# --- the service's directory ---------------------------------------------------------------------------------------


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (service.directory, service.custodians):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "directory"


def told(*members: int) -> Directory:
    return Directory(watermarks=tuple(watermark(member) for member in members))


def test_the_directory_keeps_the_newest_of_each_and_gives_the_watermarks_of_all(folder: Path, clock: Clock) -> None:
    one, worker = DataDirectory(MANIFEST, folder), DataDirectory(MANIFEST, folder)
    assert one.exchange(by(1)) == told(1)
    assert worker.exchange(by(2)) == told(1, 2)
    assert one.exchange(by(2, now=clock.now - 30)) == told(1, 2)  # an older one does not take its place
    assert refusal(lambda: one.exchange(resigned(by(3).report, member=2))) == "bad-signature"
    (folder / name(1)).write_bytes(b"damaged")
    assert one.exchange(by(2)) == told(2)
    assert one.exchange(by(1)) == told(1, 2)
    assert sorted(file.name for file in folder.iterdir()) == [name(1), name(2)]
    shutil.rmtree(folder)
    assert one.exchange(by(1)) == told(1)


def test_the_directory_hands_out_nothing_of_who_is_behind(folder: Path, clock: Clock) -> None:
    directory = DataDirectory(MANIFEST, folder)
    for member in range(1, MEMBERS + 1):
        given = directory.exchange(by(member, kept_of(member)))
    assert directory.behind() == set(PLACES)
    # Byte for byte what an alliance is told in which nobody is behind.
    assert encode(given) == encode(told(*range(1, MEMBERS + 1)))
    clock.now += 1
    silent = DataDirectory(MANIFEST, folder.with_name("other"))
    for member in range(1, MEMBERS + 1):
        assert directory.exchange(by(member, kept_of(member), clock.now)) is not None
        silent.exchange(by(member, now=clock.now))
    asked = by(1, now=clock.now)
    assert encode(directory.exchange(asked)) == encode(silent.exchange(asked))


def test_all_workers_know_who_is_behind_within_a_second_and_after_a_restart(folder: Path, clock: Clock) -> None:
    one, worker = DataDirectory(MANIFEST, folder), DataDirectory(MANIFEST, folder)
    first, second = sorted(kept_of(1) & kept_of(2))[:2]
    assert (one.behind(), worker.behind()) == (set(), set())
    one.exchange(by(1, {first}))
    one.exchange(by(2, {first, second}))
    clock.now += REREAD_SECONDS
    assert one.behind() == worker.behind() == DataDirectory(MANIFEST, folder).behind() == {first, second}
    clock.now += 10
    worker.exchange(by(2, set(), clock.now))
    assert one.behind() == {first}, "it stands until each who reported it says otherwise"
    one.exchange(by(1, set(), clock.now))
    clock.now += REREAD_SECONDS
    assert one.behind() == worker.behind() == set()


def test_an_older_report_and_a_damaged_one_say_nothing(folder: Path, clock: Clock) -> None:
    directory, place = DataDirectory(MANIFEST, folder), min(kept_of(1))
    directory.exchange(by(1, {place}))
    directory.exchange(by(1, set(), clock.now - 30))
    assert directory.behind() == {place}
    (folder / name(1)).write_bytes(b"damaged")
    clock.now += REREAD_SECONDS
    assert directory.behind() == set()
    shutil.rmtree(folder)
    clock.now += REREAD_SECONDS
    assert directory.behind() == set()


def test_the_last_word_of_a_member_that_is_down_stands_for_a_day(folder: Path, clock: Clock) -> None:
    directory, place = DataDirectory(MANIFEST, folder), min(kept_of(1))
    directory.exchange(by(1, {place}))
    clock.now += REPORT_SECONDS - 2
    assert directory.behind() == {place}
    clock.now += 2 + REREAD_SECONDS
    assert directory.behind() == set()


# --- whom the service prefers --------------------------------------------------------------------------------------


def custodians(folder: Path) -> Custodians:
    return Custodians(WORLD.service, Peers(), DataDirectory(MANIFEST, folder))


def test_who_is_behind_is_asked_after_all_without_trouble_and_before_those_that_fail(
    folder: Path, clock: Clock
) -> None:
    (shard, behind), line = min(kept_of(1)), custodians(folder)
    slots = MANIFEST.committee(shard).slots
    odd, dead = (behind + 1) % len(slots), (behind + 2) % len(slots)
    DataDirectory(MANIFEST, folder).exchange(by(1, {(shard, behind)}))
    line.remember(slots[odd], shard, Trouble.LAGS)
    line.remember(slots[dead], shard, Trouble.LAGS)
    line.remember(slots[dead], shard, Trouble.NO_ANSWER)
    line.remember(slots[dead], shard, Trouble.LAGS)  # to lag as well makes it no better
    scores = line.scores(shard, list(range(len(slots))))
    well = {slot for slot in scores if slot not in {behind, odd, dead}}
    assert {scores[slot] for slot in well} == {0.0}
    assert 0.0 < scores[behind] == BEHIND < scores[odd] < scores[dead]
    other = line.scores(1 - shard, list(range(len(slots))))
    assert set(other.values()) == {0.0}, "of this shard alone"
    clock.now += Trouble.NO_ANSWER.value[1]
    assert line.scores(shard, [dead, odd]) == {dead: Trouble.LAGS.value[0], odd: Trouble.LAGS.value[0]}
    clock.now += Trouble.LAGS.value[1]
    assert line.scores(shard, [odd, dead, behind]) == {odd: 0.0, dead: 0.0, behind: BEHIND}


def test_a_missed_commit_is_remembered_until_reports_must_have_come(folder: Path, clock: Clock) -> None:
    (shard, slot), line = min(kept_of(1)), custodians(folder)
    line.remember(MANIFEST.committee(shard).slots[slot], shard, Trouble.LAGS)
    clock.now += PUBLISH_SECONDS + REREAD_SECONDS
    assert line.scores(shard, [slot])[slot] > BEHIND


@deterministic(60)
@given(st.data(), st.binary(min_size=16, max_size=16))
def test_a_member_that_lies_costs_preference_and_stops_no_check(
    tmp_path_factory: pytest.TempPathFactory,
    data: Any,  # noqa: ANN401
    check_id: bytes,
) -> None:
    """Whatever a member names, all are asked where four are needed, and whom nobody names come first."""
    lies = data.draw(st.sets(st.sampled_from(sorted(kept_of(3)))))
    folder = tmp_path_factory.mktemp("lies") / "directory"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(service.directory, "time", Clock())
        DataDirectory(MANIFEST, folder).exchange(by(3, lies))
        for committee in MANIFEST.terms.committees:
            slots = data.draw(st.sets(st.integers(0, 5), min_size=4))
            scores = custodians(folder).scores(committee.shard, sorted(slots))
            chosen = preferred_choice(check_id, scores)
            assert chosen is not None
            named = {slot for slot in slots if (committee.shard, slot) in lies}
            assert len(named & set(chosen)) == max(0, 4 - len(slots - named))


# --- what a member reports -----------------------------------------------------------------------------------------


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store.open(database)
    yield opened
    opened.database.close()


Row = tuple[int, int, dict[int, int | None], bool, bool]
"""Shard, excluded slot, tick by slot, whether made, whether complete."""

rows = st.tuples(
    st.integers(0, 1),
    st.integers(0, 5),
    st.dictionaries(st.integers(0, 5), st.none() | st.integers(1, 3), max_size=6),
    st.booleans(),
    st.booleans(),
)


def fill(store: Store, filled: list[Row]) -> None:
    query = (
        "INSERT INTO deposit (deposit_id, person_key, shard, excluded, receipts, made_at, completed_at)"
        " VALUES (%s, '', %s, %s, %s::jsonb, CASE WHEN %s THEN now() END, CASE WHEN %s THEN now() END)"
    )

    def transaction(connection: Any) -> None:  # noqa: ANN401  a connection
        connection.execute("TRUNCATE deposit")
        for shard, excluded, receipts, made, complete in filled:
            told = json.dumps(receipts)
            connection.execute(query, (secrets.token_bytes(16), shard, excluded, told, made, made and complete))

    store.database.run("fill", transaction)


def test_a_member_reports_each_place_that_lacks_the_receipt_of_a_made_deposit_and_no_other(database: str) -> None:
    store = Store.open(database)

    @deterministic(120)
    @given(st.lists(rows, max_size=12))
    def check(filled: list[Row]) -> None:
        fill(store, filled)
        assert store.outbox.behind(MANIFEST) == {
            (shard, slot)
            for shard, excluded, receipts, made, complete in filled
            if made and not complete
            for slot in range(6)
            if slot != excluded and receipts.get(slot) is None
        }

    try:
        check()
    finally:
        store.database.close()


def test_a_place_is_reported_from_the_deposit_being_made_until_its_receipt_has_come(store: Store) -> None:
    store.put(*[outgoing(number) for number in range(3)])
    assert store.outbox.behind(MANIFEST) == set()
    items = store.due()
    lacking = set()
    for item in items:
        store.make(item)
        holders = [slot for slot in range(6) if slot != item.excluded]
        store.record(item, made=True, slots=tuple(holders[1:]))
        lacking.add((item.shard, holders[0]))
    assert store.outbox.behind(MANIFEST) == lacking
    accept_report(MANIFEST, by(1, store.outbox.behind(MANIFEST)), NOW)
    for item in items:
        store.record(item, made=True, complete=True, slots=tuple(slot for slot in range(6) if slot != item.excluded))
    assert store.outbox.behind(MANIFEST) == set()


def test_of_many_deposits_that_wait_for_a_holder_only_a_few_rows_are_read(store: Store) -> None:
    """A holder is down, and so each deposit of two shards lacks one receipt."""
    many = 20_000

    def transaction(connection: Any) -> Any:  # noqa: ANN401  a connection, and a plan as JSON
        connection.execute(
            "INSERT INTO deposit (deposit_id, person_key, shard, excluded, receipts, made_at)"
            " SELECT sha256(n::text::bytea), sha256(n::text::bytea), mod(n, 2), mod(n, 5),"
            " (SELECT jsonb_object_agg(slot, n) FROM generate_series(0, 4) slot WHERE slot <> mod(n, 5)), now()"
            " FROM generate_series(1, %s) n",
            (many,),
        )
        return connection.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + outbox._BEHIND).fetchone()[0][0]

    plan = store.database.run("fill", transaction)
    assert store.outbox.behind(MANIFEST) == {(0, 5), (1, 5)}
    read = [node for node in nodes(plan["Plan"]) if node.get("Index Name") == "deposit_behind"]
    assert len(read) == 1
    assert read[0]["Actual Rows"] * read[0]["Actual Loops"] <= 2 * 5 + 1
    assert not [node for node in nodes(plan["Plan"]) if node["Node Type"] in {"Sort", "Seq Scan"}]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)
