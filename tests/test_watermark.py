"""Watermarks are believed of their member alone; the service can only make an alliance look less complete."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import wait_until
from strategies import deterministic
from test_store_outbox import SET_ASIDE_AFTER, Store, entry, refuse
from world import NOW, RULE, make_world, name

from insurer_agent.acting import Acting
from insurer_agent.completeness import DirectoryView
from insurer_agent.requester import _told
from protocol.check import Verdict, Void
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.messages import FRESHNESS_SECONDS
from protocol.watermark import (
    CURRENT_SECONDS,
    STEP_SECONDS,
    Completeness,
    Directory,
    SignedWatermark,
    accept_watermark,
    completeness,
    newest,
    sign_watermark,
)
from transport.peers import Peers

WORLD = make_world()
MANIFEST = WORLD.manifest
MEMBERS = len(MANIFEST.terms.members)
SETTLED = 80


def by(member: int, until: float = NOW, now: float = NOW) -> SignedWatermark:
    return sign_watermark(WORLD.party(member), int(until), now)


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as refused:
        act()
    return refused.value.code


# --- a watermark ---------------------------------------------------------------------------------------------------


def test_a_watermark_is_whole_minutes_a_minute_back_so_that_it_does_not_tell_when_a_policy_came() -> None:
    for now in (NOW, NOW + 17.3, NOW + 59.9):
        told = by(1, now - 5, now).watermark
        assert told.complete_until % STEP_SECONDS == 0
        assert now - 2 * STEP_SECONDS < told.complete_until <= now - STEP_SECONDS
        assert told.complete_until == by(1, now, now).watermark.complete_until
    assert by(1, NOW - 1000).watermark.complete_until == int(NOW - 1000) // STEP_SECONDS * STEP_SECONDS


def bent(signed: SignedWatermark, **changes: Any) -> SignedWatermark:  # noqa: ANN401  fields of a watermark
    return replace(signed, watermark=replace(signed.watermark, **changes))


def test_no_one_but_its_member_makes_or_bends_a_watermark() -> None:
    good = by(1)
    assert accept_watermark(MANIFEST, good, NOW) == good.watermark
    for changes in ({"member": name(2)}, {"complete_until": good.watermark.complete_until + 60}, {"issued_at": 1}):
        assert refusal(lambda: accept_watermark(MANIFEST, bent(good, **changes), NOW)) in {  # noqa: B023  called at once
            "bad-signature",
            "bad-watermark",
        }
    assert refusal(lambda: accept_watermark(MANIFEST, bent(good, member="insurer-99"), NOW)) == "unknown-member"
    data = encode(good)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            read = decode(SignedWatermark, bytes(flipped))
        except ProtocolError:
            continue
        assert newest(MANIFEST, [read]) == {}, bit


def test_a_watermark_of_another_alliance_or_time_is_refused() -> None:
    other = Manifest.of(replace(MANIFEST.terms, alliance="another"))
    assert refusal(lambda: accept_watermark(other, by(1), NOW)) == "bad-watermark"
    for late in (FRESHNESS_SECONDS + 1, -FRESHNESS_SECONDS - 1):
        assert refusal(lambda: accept_watermark(MANIFEST, by(1), NOW + late)) == "stale"  # noqa: B023  called at once


# --- what an answer says -------------------------------------------------------------------------------------------


@deterministic(200)
@given(
    st.lists(
        st.tuples(st.integers(1, MEMBERS), st.integers(0, 3 * CURRENT_SECONDS), st.integers(0, 2 * CURRENT_SECONDS)),
        max_size=12,
    )
)
def test_an_answer_counts_each_member_once_by_its_newest_word(told: list[tuple[int, int, int]]) -> None:
    words = [by(member, NOW - back, NOW - said) for member, back, said in told]
    last: dict[int, tuple[float, int]] = {}
    for (member, _, _), word in zip(told, words, strict=True):
        mark = word.watermark
        if member not in last or mark.issued_at >= last[member][0]:
            last[member] = (mark.issued_at, mark.complete_until)
    until = [complete for _, complete in last.values()]
    found = completeness(MANIFEST, newest(MANIFEST, words), NOW)
    assert found == Completeness(
        members=MEMBERS,
        current=sum(complete > NOW - CURRENT_SECONDS for complete in until),
        oldest=min(until) if len(until) == MEMBERS else None,
    )


def test_a_service_that_withholds_replays_or_doubles_watermarks_makes_nobody_more_current() -> None:
    old, fresh = by(1, NOW - 5000, NOW - 5000), by(1)
    assert completeness(MANIFEST, newest(MANIFEST, [fresh] * 9), NOW).current == 1
    for given_out in ([], [old], [old, old]):
        assert completeness(MANIFEST, newest(MANIFEST, given_out), NOW).current == 0
    assert newest(MANIFEST, [fresh, old]) == newest(MANIFEST, [old, fresh]) == newest(MANIFEST, [fresh])
    everyone = [by(member) for member in range(1, MEMBERS + 1)]
    later = NOW + 2 * CURRENT_SECONDS  # the whole directory is kept back
    assert completeness(MANIFEST, newest(MANIFEST, everyone), later).current == 0


def test_a_watermark_far_ahead_of_the_clock_is_as_none() -> None:
    ahead = by(1, NOW + 10_000, NOW + 10_000)
    assert completeness(MANIFEST, newest(MANIFEST, [ahead]), NOW) == Completeness(MEMBERS, 0, None)


@pytest.mark.parametrize("current", [0, 3, 4, MEMBERS])
def test_below_a_rules_floor_nothing_is_within_and_what_exceeds_still_does(current: int) -> None:
    rule, seen = replace(RULE, min_current=4), Completeness(MEMBERS, current, None)
    within = _told(rule, Verdict.WITHIN, None, seen, NOW)
    expected = (Verdict.WITHIN, None) if current >= 4 else (Verdict.INDETERMINATE, Void.INCOMPLETE)
    assert (within.verdict, within.reason) == expected
    assert _told(rule, Verdict.EXCEEDS, None, seen, NOW).verdict is Verdict.EXCEEDS
    void = _told(rule, Verdict.INDETERMINATE, Void.TIMEOUT, seen, NOW)
    assert (void.verdict, void.reason) == (Verdict.INDETERMINATE, Void.TIMEOUT)
    assert _told(RULE, Verdict.WITHIN, None, seen, NOW).verdict is Verdict.WITHIN


# --- how far a member's own deposits are ---------------------------------------------------------------------------


@pytest.fixture
def store(database: str) -> Any:  # noqa: ANN401  an iterator of stores
    opened = Store.open(database)
    yield opened
    opened.database.close()


def aged(store: Store, deposit_id: bytes, seconds: int) -> None:
    query = "UPDATE deposit SET created_at = now() - make_interval(secs => %s) WHERE deposit_id = %s"
    store.database.run("age", lambda connection: connection.execute(query, (seconds, deposit_id)))


def back(store: Store) -> float:
    """Return how many seconds the watermark lies back by the database's clock."""
    row = store.database.run("now", lambda at: at.execute("SELECT extract(epoch FROM now())::float8").fetchone())
    assert row is not None
    return float(row[0]) - store.outbox.complete_until(SETTLED)


def test_the_watermark_stops_before_the_oldest_deposit_that_is_not_made(store: Store) -> None:
    assert abs(back(store)) < 5
    old, new = store.put(entry(1), entry(2))
    aged(store, old, 5000)
    aged(store, new, 3000)
    assert 5000 <= back(store) < 5005
    (item,) = (item for item in store.due() if item.deposit_id == old)
    store.make(item)
    store.record(item, made=True)
    assert 5000 <= back(store) < 5005, "a check may still be as of before"
    later = "UPDATE deposit SET made_at = made_at - make_interval(secs => %s)"
    store.database.run("later", lambda connection: connection.execute(later, (SETTLED + 1,)))
    assert 3000 <= back(store) < 3005
    refuse(store, new, SET_ASIDE_AFTER)
    assert 3000 <= back(store) < 3010, "what is set aside holds it for good"


def test_the_watermark_waits_for_transactions_that_may_still_bring_a_policy(database: str, store: Store) -> None:
    other = Store.open(database)
    try:

        def slow(connection: Any) -> float:  # noqa: ANN401  a connection
            connection.execute("SELECT 1")
            before = store.outbox.complete_until(SETTLED)
            while (
                store.database.run("now", lambda at: at.execute("SELECT extract(epoch FROM now())::float8").fetchone())[
                    0
                ]
                < before + 1
            ):
                pass
            return before - store.outbox.complete_until(SETTLED)

        assert other.database.run("slow", slow) == 0
    finally:
        other.database.close()


def test_sessions_of_others_in_the_database_do_not_hold_the_watermark(database: str, store: Store) -> None:
    with psycopg.connect(database, application_name="report") as connection:
        (before,) = connection.execute("SELECT extract(epoch FROM now())::float8").fetchone() or (0.0,)
        wait_until(lambda: store.outbox.complete_until(SETTLED) > before + 0.1)


def test_what_a_member_was_told_outlives_its_process_and_damage_counts_as_nothing(store: Store) -> None:
    def view() -> DirectoryView:
        return DirectoryView(Acting(WORLD.party(1)), Peers(), store.database, store.outbox, 1.0)

    assert view().now() == Completeness(MEMBERS, 0, None)
    with pytest.raises(ProtocolError):  # there is no service
        view().exchange()
    keep = "INSERT INTO setting (name, value) VALUES ('directory', %s) ON CONFLICT (name) DO UPDATE SET value = %s"
    data = encode(Directory(watermarks=tuple(by(member) for member in range(1, MEMBERS + 1))))
    store.database.run("keep", lambda at: at.execute(keep, (data, data)))
    assert view().now().oldest == by(1).watermark.complete_until
    store.database.run("keep", lambda at: at.execute(keep, (b"junk", b"junk")))
    assert view().now() == Completeness(MEMBERS, 0, None)
