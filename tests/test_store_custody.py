"""A custodian's store in PostgreSQL does what the one in memory does, and goes on doing it in a crowd."""

import itertools
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from psycopg.conninfo import make_conninfo
from strategies import deterministic
from world import LIMIT, NOW, TODAY, World, make_world, name, person, seeded

from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.store.custody import KEEP_CHECK_RECORDS_DAYS, PostgresCustody
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.vault import Vault, VaultError
from protocol.check import Verdict
from protocol.custody import (
    Admission,
    Charge,
    Custody,
    CustodyRow,
    CustodyView,
    Kept,
    MemoryCustody,
    Proposed,
    Reading,
    Refusable,
)
from protocol.errors import ProtocolError
from protocol.messages import AMENDMENT, CANCELLATION, ISSUE, envelope_hash
from protocol.secret import Secret
from protocol.sharing import SHARE_BYTES
from protocol.stamps import MAX_AS_OF_AGE, STAMP_MODULUS, deposit_stamp
from protocol.token import IndexKey

T = TypeVar("T")

TABLES = ("custody_deposit", "custody_stamp", "check_request", "check_attempt", "budget")
TICK_SECONDS = 20
WINDOW_TICKS = MAX_AS_OF_AGE // TICK_SECONDS + 1
"""How many ticks before its own a custodian may still be asked about."""
THREADS = 8
A_DAY = 700_000
VAULT = Vault(Secret(bytes(range(32))), "custody", seeded("vault"))


@pytest.fixture
def store(database: str) -> Iterator[Database]:
    opened = Database(database, size=THREADS)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def custody(store: Database) -> PostgresCustody:
    return PostgresCustody(store, VAULT, TICK_SECONDS)


def index(number: int) -> IndexKey:
    return IndexKey(seeded(("index", number))(32))


def deposit_id(number: int) -> bytes:
    return seeded(("deposit", number))(16)


def row(*, product: str = "accident", day: int = A_DAY, excluded: int = 0, value: int = 1) -> CustodyRow:
    return CustodyRow(product, day, excluded, (value, value + 1, value + 2, 0), (1, 0, 2**48 - 1, 5))


def proposed(number: int, *, depositor: str = "insurer-01", whom: int = 0, **fields: Any) -> Proposed:
    item = Proposed(depositor, deposit_id(number), ISSUE, None, 0, 1, index(whom), row(value=number), bytes(32))
    return replace(item, **fields)


def admission(check: int = 0, *, attempt: int = 1, today: int = A_DAY, **fields: Any) -> Admission:
    charges = (Charge(index(0), "rule", budget=3, budget_days=30),)
    item = Admission("insurer-02", "group-02", check.to_bytes(16, "big"), bytes(32), attempt, today, charges)
    return replace(item, **fields)


def code_of(action: Callable[[], object]) -> str | None:
    """Return the code with which an action is refused, or None."""
    try:
        action()
    except ProtocolError as refusal:
        return refusal.code
    return None


def plain(results: Sequence[Refusable]) -> list[Kept | str]:
    """Replace refusals, which do not compare, by their codes."""
    return [item.code if isinstance(item, ProtocolError) else item for item in results]


def comparable(view: CustodyView) -> tuple[list[Counter[CustodyRow]], dict[int, int]]:
    """Return a view without what it leaves open: the order of rows, and whether an empty sum is told."""
    return [Counter(lane.rows) for lane in view.lanes], {slot: total for slot, total in view.stamp_sums.items() if total}


def at_once(actions: Sequence[Callable[[], T]]) -> list[T]:
    """Run every action in a thread of its own, all starting together."""
    start = threading.Barrier(len(actions))

    def run(action: Callable[[], T]) -> T:
        start.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


def count(store: Database, query: str) -> int:
    found = store.run("count", lambda connection: connection.execute(query.encode()).fetchone())
    assert found is not None
    return int(found[0] or 0)


# --- the oracle ----------------------------------------------------------------------------------------------------

DEPOSITORS = ("insurer-01", "insurer-03")
IDS = st.integers(0, 5)
CHARGES = st.builds(
    Charge,
    st.integers(0, 1).map(index),
    st.sampled_from(["sum", "number"]),
    budget=st.integers(1, 3),
    budget_days=st.sampled_from([1, 2, 30]),
)
# Two of a kind in one admission, too: a person may stand in two lanes under one rule.
ADMISSIONS = st.builds(
    Admission,
    st.sampled_from(["insurer-02", "insurer-05"]),
    st.sampled_from(["group-02", "group-05"]),
    st.integers(0, 4).map(lambda number: bytes([number] * 16)),
    st.sampled_from([bytes(32), bytes([1] * 32)]),
    st.integers(1, 3),
    st.just(0),
    st.lists(CHARGES, min_size=1, max_size=3).map(tuple),
)
ROWS = st.builds(
    CustodyRow,
    st.sampled_from(["accident", "term_life"]),
    st.sampled_from([A_DAY, A_DAY + 1]),
    st.integers(0, 2),
    st.tuples(*[st.integers(0, 2**48 - 1)] * 3),
    st.tuples(*[st.integers(0, 2**48 - 1)] * 3),
)
ITEMS = st.builds(
    Proposed,
    st.just(""),
    IDS.map(deposit_id),
    st.sampled_from([ISSUE, ISSUE, AMENDMENT, CANCELLATION]),
    st.none() | IDS.map(deposit_id),
    st.integers(0, 1),
    st.just(1),
    st.integers(0, 1).map(index),
    ROWS,
    st.sampled_from([bytes(32), bytes([1] * 32)]),
)


class CustodyMachine(RuleBasedStateMachine):
    """Does the same to both stores. Its clock only goes forward; ticks and days are taken from it."""

    store: ClassVar[Database]
    seen: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        for table in TABLES:
            self.store.run("clear", lambda connection, table=table: connection.execute(f"DELETE FROM {table}"))  # noqa: S608
        self.stores: tuple[Custody, Custody] = (MemoryCustody(), PostgresCustody(self.store, VAULT, TICK_SECONDS))
        self.tick = 1_000
        self.today = A_DAY
        self.fresh = itertools.count(1_000)

    def both(self, action: Callable[[Custody], T]) -> T:
        expected, had = (action(custody) for custody in self.stores)
        assert had == expected
        return had

    @rule(admission=ADMISSIONS, days=st.sampled_from([0, 0, 0, 1, 2, 29]))
    def admit(self, admission: Admission, days: int) -> None:
        self.today += days
        asked = replace(admission, today=self.today)
        refusal = self.both(lambda custody: code_of(lambda: custody.admit(asked)))
        self.seen[refusal or "admitted"] += 1

    @rule(depositor=st.sampled_from(DEPOSITORS), items=st.lists(ITEMS, max_size=4))
    def prepare(self, depositor: str, items: list[Proposed]) -> None:
        own = [replace(item, depositor=depositor) for item in items]
        self.note(self.both(lambda custody: plain(custody.prepare(own))))

    @rule(
        depositor=st.sampled_from(DEPOSITORS),
        shard=st.integers(0, 1),
        commits=st.lists(st.tuples(IDS.map(deposit_id), st.integers(0, 2 * WINDOW_TICKS)), min_size=1, max_size=5),
        later=st.sampled_from([0, 1, 100]),
    )
    def commit(self, depositor: str, shard: int, commits: list[tuple[bytes, int]], later: int) -> None:
        self.tick += later
        named = [(number, self.tick - ago) for number, ago in commits]
        self.note(self.both(lambda custody: plain(custody.commit(depositor, shard, named))))

    @rule(depositor=st.sampled_from(DEPOSITORS), shard=st.integers(0, 1), ids=st.lists(IDS, max_size=2))
    def abandon(self, depositor: str, shard: int, ids: list[int]) -> None:
        numbers = [deposit_id(number) for number in ids]
        self.note(self.both(lambda custody: plain(custody.abandon(depositor, shard, numbers))))

    @precondition(lambda self: self.seen["floods"] < 12)
    @rule(shard=st.integers(0, 1), again=st.integers(0, 69))
    def flood(self, shard: int, again: int) -> None:
        """Commit at so many ticks that old ones are folded, then give one of the folded a lower tick."""
        self.seen["floods"] += 1
        items = [
            proposed(number, shard=shard, row=row(excluded=number % 2, value=number))
            for number in itertools.islice(self.fresh, 75)
        ]
        self.both(lambda custody: plain(custody.prepare(items)))
        begin, self.tick = self.tick, self.tick + 100
        commits = [(item.deposit_id, begin + place + 1) for place, item in enumerate(items)]
        commits[-1] = (items[-1].deposit_id, self.tick)
        self.both(lambda custody: plain(custody.commit("insurer-01", shard, commits)))
        stamps = f"SELECT count(*) FROM custody_stamp WHERE shard = {shard}"  # noqa: S608
        self.seen["folded"] += count(self.store, stamps) < len(items)
        lowered = [(items[again].deposit_id, begin)]
        assert self.both(lambda custody: plain(custody.commit("insurer-01", shard, lowered)))[0].tick == begin

    @rule(shard=st.integers(0, 1), ago=st.integers(-1, WINDOW_TICKS), first=st.sampled_from([0, 1]))
    def view(self, shard: int, ago: int, first: int) -> None:
        reading = Reading(shard, 1, self.tick - ago, ((index(0), A_DAY), (index(1), A_DAY + first)))
        lanes, _ = self.both(lambda custody: comparable(custody.view(reading)))
        self.seen["rows seen"] += sum(map(len, lanes))

    def teardown(self) -> None:
        for shard in (0, 1):
            for ago in range(-1, WINDOW_TICKS + 1):
                self.view(shard, ago, 0)

    def note(self, results: list[Kept | str]) -> None:
        for result in results:
            self.seen[result if isinstance(result, str) else "never" if result.never else "kept"] += 1


def test_any_history_has_the_results_that_it_has_in_memory(database: str) -> None:
    # Durability is not what is compared here, and waiting for the disk would take most of the time.
    opened = Database(make_conninfo(database, options="-c synchronous_commit=off"), size=1)
    opened.migrate()
    seen: Counter[str] = Counter()
    machine = type("Machine", (CustodyMachine,), {"store": opened, "seen": seen})
    try:
        run_state_machine_as_test(machine, settings=replace_steps(60, 30))
    finally:
        opened.close()
    outcomes = {"admitted", "check-id-reused", "replayed", "budget-exhausted", "deposit-reused", "deposit-abandoned"}
    outcomes |= {"unknown-earlier", "not-prepared", "never", "kept", "rows seen", "folded"}
    assert {outcome for outcome in outcomes if not seen[outcome]} == set()


def replace_steps(examples: int, steps: int) -> Any:  # noqa: ANN401  hypothesis's settings
    from hypothesis import settings  # noqa: PLC0415

    return settings(deterministic(examples), stateful_step_count=steps)
