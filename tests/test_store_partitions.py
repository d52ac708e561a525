"""Deposits lie in partitions by months of days, which come and go without any check or range check noticing."""

import contextlib
import datetime as dt
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from test_store_custody import (
    EPOCH,
    TICK_SECONDS,
    VAULT,
    at_once,
    commit_of,
    count,
    index,
    judged,
    prepare,
    proposed,
    row,
)

from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.partitions import arrange_partitions
from protocol.custody import (
    AHEAD_DAYS,
    DEPOSIT_DAYS,
    KEPT_DAYS,
    SUMMED_DAYS,
    CustodyView,
    Proposed,
    RangeAttempt,
    Reading,
)
from protocol.manifest import MAX_WINDOW_DAYS

TODAY = dt.date(2026, 2, 28)
ALL_DAYS = range(TODAY.toordinal() - KEPT_DAYS, TODAY.toordinal() + AHEAD_DAYS + 1)
BATCH = 500


@pytest.fixture
def store(database: str) -> Iterator[Database]:
    opened = Database(database, size=8)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def custody(store: Database) -> PostgresCustody:
    return PostgresCustody(store, VAULT, TICK_SECONDS, EPOCH)


def arrange(store: Database, today: dt.date) -> list[str]:
    return store.run("arrange", lambda connection: arrange_partitions(connection, today))


def keep(custody: PostgresCustody, items: Sequence[Proposed]) -> None:
    """Keep deposits, committed."""
    for at in range(0, len(items), BATCH):
        batch = items[at : at + BATCH]
        prepare(custody, batch)
        custody.commit("insurer-01", 0, [commit_of(item, 5) for item in batch])


def on_days(days: Sequence[int], *, first: int = 0) -> list[Proposed]:
    return [proposed(number, row=row(day=day, value=number)) for number, day in enumerate(days, start=first)]


def view(custody: PostgresCustody, first: int) -> CustodyView:
    return custody.view(Reading(0, EPOCH, 9, ((index(0), first),)))


def seen(custody: PostgresCustody, first: int) -> list[int]:
    """Return the days of the rows that a check sees from a day on."""
    return sorted(item.day for item in view(custody, first).persons[0].rows)


def in_partitions(store: Database) -> list[tuple[str, dt.date]]:
    """Return where each row lies, and its day."""
    query = b"SELECT tableoid::regclass::text, day FROM custody_row ORDER BY day"
    return store.run("rows", lambda connection: connection.execute(query).fetchall())  # type: ignore[arg-type,return-value]


def partitions(store: Database) -> set[str]:
    query = b"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'custody_row'::regclass"
    return {name for (name,) in store.run("partitions", lambda connection: connection.execute(query).fetchall())}


def month_of(day: dt.date) -> str:
    return f"custody_row_{day:%Y_%m}"


# --- every day -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arranged", ["before", "after", "never"])
def test_a_deposit_of_any_day_that_holders_take_is_kept_and_seen(
    store: Database, custody: PostgresCustody, arranged: str
) -> None:
    if arranged == "before":
        assert arrange(store, TODAY) == []
    keep(custody, on_days(ALL_DAYS))
    if arranged == "after":
        assert arrange(store, TODAY) == []
    assert seen(custody, ALL_DAYS[0]) == list(ALL_DAYS)
    for first in (TODAY.toordinal() - 29, TODAY.toordinal() - MAX_WINDOW_DAYS + 1, TODAY.toordinal(), ALL_DAYS[-1]):
        assert seen(custody, first) == list(range(first, ALL_DAYS[-1] + 1))
    months = {month_of(dt.date.fromordinal(day)) for day in ALL_DAYS if day < dt.date(2026, 5, 1).toordinal()}
    expected = set() if arranged == "never" else months
    assert partitions(store) == expected | {"custody_row_later"}
    for where, day in in_partitions(store):
        assert where == (month_of(day) if month_of(day) in expected else "custody_row_later")


# --- time passes ---------------------------------------------------------------------------------------------------

FIRST_DAYS = st.dates(dt.date(2023, 12, 1), dt.date(2025, 3, 31))
STEPS = st.lists(st.sampled_from([0, 1, 27, 28, 30, 31, 45, 200, 420, 800]), min_size=2, max_size=6)
NEW_DAYS = st.lists(st.integers(-DEPOSIT_DAYS, AHEAD_DAYS), min_size=1, max_size=30)


def put(store: Database, days: Sequence[dt.date], numbers: Iterator[int]) -> None:
    """Put rows of these days into the table, each with an id of its own."""
    rows = [(next(numbers).to_bytes(4, "big"), day) for day in days]
    columns = "depositor, id_key, shard, epoch, kind, token, product, day, excluded, chain_key, shares, proof"
    query = (
        f"INSERT INTO custody_row ({columns}, envelope_hash, not_before, tick)"  # noqa: S608  names of columns
        " VALUES ('insurer-01', %s, 0, 1, 1, '', 'accident', %s, 0, '', '', '', '', 0, 5)"
    )
    store.run("put", lambda connection: connection.cursor().executemany(query.encode(), rows))


def ids(store: Database) -> dict[bytes, tuple[str, dt.date]]:
    query = b"SELECT id_key, tableoid::regclass::text, day FROM custody_row"
    found = store.run("ids", lambda connection: connection.execute(query).fetchall())
    assert len({number for number, _, _ in found}) == len(found)
    return {bytes(number): (where, day) for number, where, day in found}


def test_as_time_passes_months_come_rows_move_once_and_only_what_is_old_goes(store: Database) -> None:
    @deterministic(8)
    @given(FIRST_DAYS, STEPS, st.data())
    def holds(first: dt.date, steps: list[int], data: st.DataObject) -> None:
        for name in partitions(store) - {"custody_row_later"}:
            store.run("drop", lambda connection, name=name: connection.execute(f"DROP TABLE {name}".encode()))
        store.run("clear", lambda connection: connection.execute("DELETE FROM custody_row"))
        numbers, today = itertools.count(), first
        arrange(store, today)
        for step in steps:
            put(store, [today + dt.timedelta(days=ahead) for ahead in data.draw(NEW_DAYS)], numbers)
            today += dt.timedelta(days=step)
            before, months = ids(store), partitions(store)
            dropped = arrange(store, today)
            oldest = (today - dt.timedelta(days=KEPT_DAYS)).replace(day=1)
            after = ids(store)
            assert {number: day for number, (_, day) in after.items()} == {
                number: day for number, (_, day) in before.items() if day >= oldest
            }
            assert dropped == sorted(name for name in months if name < month_of(oldest))
            have = partitions(store)
            assert have >= {month_of(oldest), month_of(today), "custody_row_later"}
            assert all(
                where == (month_of(day) if month_of(day) in have else "custody_row_later")
                for where, day in after.values()
            )
            assert not {where for where, _ in after.values() if where not in have}
            assert arrange(store, today) == []
            assert (ids(store), partitions(store)) == (after, have)

    holds()


def test_no_check_and_no_range_check_sees_a_month_go(store: Database, custody: PostgresCustody) -> None:
    arrange(store, TODAY)
    today = TODAY.toordinal() + 120
    days = [*range(today - KEPT_DAYS - 70, today - MAX_WINDOW_DAYS + 40), today, today + 40]
    keep(custody, on_days(days))
    headers = itertools.count()

    def all_seen() -> list[Any]:
        views = [view(custody, today - window + 1) for window in (1, 30, 365, MAX_WINDOW_DAYS)]
        asked = [proposed(number, row=row(day=today, value=number)) for number in (5_000, 5_001)]
        for first in range(today - SUMMED_DAYS - 1, today - SUMMED_DAYS + 2):  # clocks differ
            attempt = RangeAttempt(next(headers).to_bytes(32, "big"), today, first)
            views.append(judged(custody.prepare(asked, 0.0, attempt)))
        return [
            (sorted(one.persons[0].rows, key=lambda item: item.amounts), one.stamp_sums)
            if isinstance(one, CustodyView)
            else one
            for one in views
        ]

    before, rows = all_seen(), count(store, "SELECT count(*) FROM custody_row")
    assert custody.forget_old_deposits(today, 0.0) != []
    assert count(store, "SELECT count(*) FROM custody_row") < rows
    assert all_seen() == before


def test_what_is_committed_after_its_month_has_gone_goes_with_the_next(
    store: Database, custody: PostgresCustody
) -> None:
    arrange(store, TODAY)
    late = TODAY.toordinal() - DEPOSIT_DAYS
    prepare(custody, on_days([late]))
    later = TODAY + dt.timedelta(days=70)
    arrange(store, later)
    custody.commit("insurer-01", 0, [commit_of(0, 5)])
    assert in_partitions(store) == [("custody_row_later", dt.date.fromordinal(late))]
    arrange(store, later + dt.timedelta(days=31))
    assert in_partitions(store) == []


# --- others at the same time ---------------------------------------------------------------------------------------


def test_several_processes_may_arrange_at_once(database: str, store: Database, custody: PostgresCustody) -> None:
    keep(custody, on_days(ALL_DAYS))
    with contextlib.ExitStack() as stack:
        stores = [store, *(Database(database, size=1) for _ in range(3))]
        for other in stores[1:]:
            stack.callback(other.close)
        for today in (TODAY, TODAY + dt.timedelta(days=100)):
            have = partitions(store)
            results = at_once([lambda other=other: arrange(other, today) for other in stores])  # noqa: B023  it has ended
            gone = sorted(have - partitions(store))
            assert Counter(itertools.chain(*results)) == Counter(gone)
    first = (TODAY + dt.timedelta(days=100 - KEPT_DAYS)).replace(day=1).toordinal()
    assert seen(custody, 1) == list(range(first, ALL_DAYS[-1] + 1))


def waiting(dsn: str, how_many: int) -> None:
    """Wait until so many transactions of this database wait for a lock."""
    deadline = time.monotonic() + 20
    query = (
        "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND datname = current_database()"
    )
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute(query.encode()).fetchone() != (how_many,):
            assert time.monotonic() < deadline


@pytest.mark.parametrize("asked", ["view", "range check", "repeat"])
def test_what_is_asked_while_rows_move_finds_them(
    database: str, store: Database, custody: PostgresCustody, asked: str
) -> None:
    """A statement planned before the move and run after it would look where nothing lies any more."""
    arrange(store, TODAY)
    moving = dt.date(2026, 5, 10).toordinal()
    keep(custody, on_days([TODAY.toordinal(), moving, moving + 1]))
    attempt = RangeAttempt(bytes(32), TODAY.toordinal(), TODAY.toordinal())

    def ask() -> object:
        if asked == "view":
            return seen(custody, TODAY.toordinal())
        if asked == "repeat":
            return [kept.tick for kept in custody.prepare(on_days([moving], first=1), 0.0).kept]  # type: ignore[union-attr]
        base = custody.prepare(on_days([moving + 2], first=3), 0.0, attempt).base
        assert base is not None
        return sorted(item.row.day for item in base.deposits[0].rows)

    with psycopg.connect(database) as connection, ThreadPoolExecutor(1) as pool:
        assert arrange_partitions(connection, dt.date(2026, 3, 5)) == []  # one month comes, none goes
        answer = pool.submit(ask)
        waiting(database, 1)
        connection.commit()
        expected = {
            "view": [TODAY.toordinal(), moving, moving + 1],
            "range check": [TODAY.toordinal(), moving, moving + 1, moving + 2],
            "repeat": [5],
        }
        assert answer.result() == expected[asked]
    assert [where for where, _ in in_partitions(store)][1] == month_of(dt.date.fromordinal(moving))


def test_partitions_wait_for_another_time_while_the_table_is_in_use_and_no_check_fails_meanwhile(
    database: str, store: Database, custody: PostgresCustody
) -> None:
    arrange(store, TODAY)
    keep(custody, on_days(range(TODAY.toordinal() - KEPT_DAYS, TODAY.toordinal() + 100)))
    have, later = partitions(store), TODAY.toordinal() + 40
    expected = seen(custody, TODAY.toordinal())
    going = threading.Event()
    going.set()

    def checks() -> int:
        number = 0
        while going.is_set():
            assert seen(custody, TODAY.toordinal()) == expected
            number += 1
        return number

    with ThreadPoolExecutor(2) as pool, psycopg.connect(database) as long_reader:
        long_reader.execute("SELECT count(*) FROM custody_row")
        busy = [pool.submit(checks) for _ in range(2)]
        try:
            assert [custody.forget_old_deposits(later, 0.0) for _ in range(3)] == [[], [], []]
            assert partitions(store) == have
            long_reader.rollback()
            assert _until(lambda: custody.forget_old_deposits(later, 0.0)) == [min(have - {"custody_row_later"})]
        finally:
            going.clear()
        assert all(done.result() > 0 for done in busy)
    assert partitions(store) - have == {"custody_row_2026_05", "custody_row_2026_06"}


def _until(action: Callable[[], list[str]]) -> list[str]:
    """Repeat until something comes of it: checks may be in the way once more."""
    deadline = time.monotonic() + 20
    while not (found := action()):
        assert time.monotonic() < deadline
    return found


# --- how a person is looked up -------------------------------------------------------------------------------------


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (node, what it scans) of all leaves that read a partition or an index of one."""
    if "Plans" not in plan:
        yield plan["Node Type"], plan.get("Relation Name") or plan["Index Name"]
    for child in plan.get("Plans", []):
        yield from scans(child)


@pytest.mark.parametrize("window", [30, MAX_WINDOW_DAYS])
@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("at_most", ["NULL", "65"])
def test_a_person_is_looked_up_by_the_index_of_the_months_of_the_window(
    store: Database, custody: PostgresCustody, window: int, plans: str, at_most: str
) -> None:
    arrange(store, TODAY)
    numbers = itertools.count()
    put(store, [dt.date.fromordinal(day) for day in ALL_DAYS for _ in range(3)], numbers)
    keep(custody, on_days([TODAY.toordinal()], first=20_000))
    first = TODAY - dt.timedelta(days=window - 1)

    def explain(connection: Rows) -> dict[str, Any]:
        connection.execute("UPDATE custody_row SET token = sha256(id_key) WHERE token = ''")
        connection.execute("ANALYZE custody_row")
        connection.execute(f"SET LOCAL plan_cache_mode = {plans}".encode())
        connection.execute("SET LOCAL enable_seqscan = off")
        source = connection.execute("SELECT prosrc FROM pg_proc WHERE proname = 'read_custody'").fetchone()
        assert source is not None
        query = source[0].partition("RETURN QUERY")[2].partition(";")[0]
        for place, name in enumerate(("tokens", "first_day", "until", "of_shard", "of_epoch", "at_most"), start=1):
            query = query.replace(name, f"${place}")
        connection.execute(f"PREPARE rows (bytea[], date, bigint, integer, integer, bigint) AS {query}".encode())
        asked = f"(ARRAY['\\x{bytes(index(0)).hex()}'::bytea], '{first}', 9, 0, 1, {at_most})"
        found = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE rows {asked}".encode()).fetchone()
        assert found is not None
        return dict(found[0][0]["Plan"])

    read = set(scans(store.run("explain", explain)))
    read.remove(("Bitmap Index Scan", "custody_stamp_pkey"))
    months = {name for name in partitions(store) if month_of(first) <= name}
    assert {what.removesuffix("_token_day_idx") for _, what in read} == months
    assert {node for node, _ in read} <= {"Index Scan", "Bitmap Index Scan"}
    assert len(months) == (5 if window == 30 else 16)
