"""A custodian's store in PostgreSQL does what the one in memory does, and goes on doing it in a crowd."""

import datetime as dt
import hashlib
import itertools
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from strategies import deterministic
from world import LIMIT, NOW, TODAY, World, make_world, name, person, seeded

from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.store.custody import KEEP_CHECK_RECORDS_DAYS, PostgresCustody
from insurer_agent.store.custody_deposits import FACTS, _place, read_facts
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.partitions import arrange_partitions
from insurer_agent.store.statements import Row, Statement, Value
from insurer_agent.store.vault import Vault, VaultError
from protocol import group
from protocol.check import Verdict, shard_of_person
from protocol.custody import (
    PENDING_SECONDS,
    Admission,
    BaseRow,
    Charge,
    Custody,
    CustodyRow,
    CustodyView,
    Kept,
    MemoryCustody,
    Preparation,
    Proposed,
    RangeAttempt,
    Reading,
    Refusable,
)
from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.messages import AMENDMENT, CANCELLATION, ISSUE, RECHECK, UNDERWRITING, Commit, RangeProof
from protocol.range_tags import range_tags
from protocol.secret import Secret
from protocol.sharing import SHARE_BYTES
from protocol.stamps import MAX_AS_OF_AGE, deposit_stamp
from protocol.token import IndexKey

T = TypeVar("T")

EPOCH = 1
TABLES = (
    "custody_pending",
    "custody_row",
    "custody_own_stamp",
    "custody_stamp",
    "range_attempt",
    "check_request",
    "budget",
)
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
    return PostgresCustody(store, VAULT, TICK_SECONDS, EPOCH)


def index(number: int) -> IndexKey:
    return IndexKey(seeded(("index", number))(32))


def deposit_id(number: int) -> bytes:
    return seeded(("deposit", number))(16)


def row(*, product: str = "accident", day: int = A_DAY, excluded: int = 0, value: int = 1) -> CustodyRow:
    return CustodyRow(product, day, excluded, (value, value + 1, value + 2, 0), (1, 0, 2**48 - 1, 5))


def proposed(number: int, *, depositor: str = "insurer-01", whom: int = 0, **fields: Any) -> Proposed:  # noqa: ANN401  of several types
    key = range_key(deposit_id(number))
    item = Proposed(depositor, deposit_id(number), ISSUE, None, 0, 1, index(whom), row(value=number), bytes(32), 0, key)
    return replace(item, **fields)


def range_key(number: bytes, version: int = 0) -> bytes:
    """Return the key of a deposit's range proof; another version, as under another committee key."""
    return seeded(("range key", number, version))(32)


def proof_of(number: bytes, version: int = 0, header: bytes = bytes(32)) -> RangeProof:
    """Return the tags that a range check opens for a deposit that is found good."""
    return RangeProof(header, *(good for good, _ in range_tags(range_key(number, version), header)))


def commit_of(item: Proposed | int, tick: int) -> Commit:
    number = item.deposit_id if isinstance(item, Proposed) else deposit_id(item)
    return Commit(number, tick, proof_of(number))


def prepare(custody: Custody, items: Sequence[Proposed]) -> list[Kept | str]:
    return plain(custody.prepare(items, 0.0).kept)


def given_up(custody: Custody, depositor: str, number: int) -> list[Kept | str]:
    return plain(custody.abandon(depositor, 0, [deposit_id(number)], 0.0))


def admission(check: int = 0, *, attempt: int = 1, today: int = A_DAY, **fields: Any) -> Admission:  # noqa: ANN401  of several types
    charges = (Charge(index(0), "rule", UNDERWRITING, budget=3, budget_days=30),)
    item = Admission("insurer-02", "group-02", check.to_bytes(16, "big"), bytes(32), attempt, today, charges, 100)
    return replace(item, **fields)


def code_of(action: Callable[[], object]) -> str | None:
    """Return the code with which an action is refused, or None."""
    try:
        action()
    except ProtocolError as refusal:
        return refusal.code
    return None


SPENT = "a lane is spent"


def admitted(custody: Custody, asked: Admission) -> str | None:
    """Return the code with which an admission is refused, that lanes of it are spent, or None where all are charged."""
    spent: list[tuple[int, ...]] = []
    return code_of(lambda: spent.append(custody.admit(asked))) or (SPENT if spent[0] else None)


def plain(results: Sequence[Refusable]) -> list[Kept | str]:
    """Replace refusals, which do not compare, by their codes."""
    return [item.code if isinstance(item, ProtocolError) else item for item in results]


def comparable(view: CustodyView) -> tuple[list[Counter[CustodyRow]], dict[int, int]]:
    """Return a view without what it leaves open: the order of rows, and whether an empty sum is told."""
    return [Counter(one.rows) for one in view.persons], {
        slot: total for slot, total in view.stamp_sums.items() if total != group.IDENTITY
    }


def judged(
    preparation: Preparation,
) -> tuple[list[Kept | str], tuple[list[tuple[Counter[BaseRow], Counter[int]]], dict] | None]:
    """Return a preparation without what it leaves open, as `comparable` does."""
    if preparation.base is None:
        return plain(preparation.kept), None
    deposits = [(Counter(base.rows), Counter(base.pending)) for base in preparation.base.deposits]
    sums = {slot: total for slot, total in preparation.base.stamp_sums.items() if total != group.IDENTITY}
    return plain(preparation.kept), (deposits, sums)


def refused_or(action: Callable[[], T]) -> T | tuple[list[str], None]:
    """Return what an action does, or in its place the code with which the whole of it is refused."""
    try:
        return action()
    except ProtocolError as refusal:
        return [refusal.code], None


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
FIRST_TICK = 1_000
RULES = ("sum", "number")
BUDGETS = st.fixed_dictionaries(
    {name: st.tuples(st.sampled_from([1, 1, 2, 3]), st.sampled_from([1, 2, 30])) for name in RULES}
)
"""By rule, the answers and the days of an admission: a rule has one budget in it."""
LANES = st.tuples(
    st.integers(0, 1).map(index),
    st.sampled_from(["sum", "sum", "sum", "number"]),
    st.sampled_from([UNDERWRITING, UNDERWRITING, UNDERWRITING, RECHECK]),
)
CHARGES = st.builds(
    lambda lanes, budgets: tuple(Charge(*lane, *budgets[lane[1]]) for lane in lanes),
    st.lists(LANES, min_size=1, max_size=3),
    BUDGETS,
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
    CHARGES,
    st.sampled_from([100, 100, 101]),
)
FAR_DAY = A_DAY + 200
"""In the partition of later days, until its month comes near."""
ROWS = st.builds(
    CustodyRow,
    st.sampled_from(["accident", "accident", "term_life"]),
    st.sampled_from([A_DAY, A_DAY, A_DAY + 1, FAR_DAY]),
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
    st.just(b""),
    st.sampled_from([0, FIRST_TICK - 2, FIRST_TICK + 50, 10**6]),
    st.sampled_from([0, 0, 0, 1]).map(lambda version: bytes([version])),
)
HEADERS = st.integers(0, 9).map(lambda number: bytes([number] * 32))
BAD = st.sampled_from(["", "", "", "", "floor", "ceiling", "alone", "header", "key"])


def sealed(item: Proposed, depositor: str, shard: int) -> Proposed:
    """Return a deposit as one of this depositor and shard: an envelope's hash says what is in it."""
    own = replace(item, depositor=depositor, shard=shard, range_key=b"", envelope_hash=b"")
    content = hashlib.sha256(repr((own, own.index, own.row.amounts, own.row.counts)).encode()).digest()
    return replace(own, envelope_hash=content, range_key=range_key(own.deposit_id, sum(item.range_key)))


def shown(number: bytes, tick: int, header: bytes, bad: str) -> Commit:
    """Return a commit with a range proof, or one that is wrong in one thing."""
    proof = proof_of(number, int(bad == "key"), header)
    lanes = ("floor", "ceiling", "alone")
    if bad in lanes:
        others = dict(zip(lanes, (other for _, other in range_tags(range_key(number), header)), strict=True))
        proof = replace(proof, **{bad: others[bad]})
    return Commit(number, tick, replace(proof, header_hash=bytes([99] * 32)) if bad == "header" else proof)


class CustodyMachine(RuleBasedStateMachine):
    """Does the same to both stores. Its clock only goes forward; ticks and days are taken from it."""

    store: ClassVar[Database]
    seen: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        for table in TABLES:
            self.store.run("clear", lambda connection, table=table: connection.execute(f"DELETE FROM {table}"))  # noqa: S608
        kept = PostgresCustody(self.store, VAULT, TICK_SECONDS, EPOCH)
        self.stores: tuple[Custody, Custody] = (MemoryCustody(), kept)
        self.tick = FIRST_TICK
        self.today = A_DAY
        self.now = 0.0
        self.fresh = itertools.count(1_000)
        self.headers = itertools.count(1_000)
        self.asked: list[Admission] = []
        self.made: list[Proposed] = []
        self.judged: dict[tuple[str, bytes], bytes] = {}
        self.flooded = False

    def both(self, action: Callable[[Custody], T]) -> T:
        expected, had = (action(custody) for custody in self.stores)
        assert had == expected
        return had

    @rule(admission=ADMISSIONS, days=st.sampled_from([0, 0, 0, 1, 2, 29]))
    def admit(self, admission: Admission, days: int) -> None:
        self.today += days
        self.asked.append(admission)
        self.admitted(admission)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), change=st.sampled_from(["nothing", "tick", "statement_hash", "attempt", "check_id"]))
    def ask_again(self, data: st.DataObject, change: str) -> None:
        """Ask what was asked before, but for one thing."""
        earlier = data.draw(st.sampled_from(self.asked))
        fresh = next(self.fresh)
        others = {
            "tick": 102,
            "statement_hash": bytes([2] * 32),
            "attempt": fresh % 100,
            "check_id": fresh.to_bytes(16),
        }
        self.admitted(replace(earlier, **{change: others[change]}) if change in others else earlier)

    def admitted(self, admission: Admission) -> None:
        asked = replace(admission, today=self.today)
        reading = Reading(0, 1, self.tick, ((index(0), A_DAY), (index(1), A_DAY)))

        def answer(custody: Custody) -> tuple[object, object]:
            if asked.check_id[0] % 2:
                return custody.admit(asked), None
            spent, view = custody.admit_and_view(asked, reading)
            return spent, comparable(view)

        outcome = self.both(lambda custody: refused_or(lambda: answer(custody)))
        (spent, _), lanes = outcome, len(asked.charges)
        self.seen[spent[0] if isinstance(spent, list) else SPENT if spent else "admitted"] += 1
        self.seen["partly spent"] += isinstance(spent, tuple) and 0 < len(spent) < lanes

    def prepared(self, items: Sequence[Proposed], attempt: RangeAttempt | None) -> list[Kept | str]:
        def prepare(custody: Custody) -> object:
            return judged(custody.prepare(items, self.now, attempt))

        kept, base = self.both(lambda custody: refused_or(lambda: prepare(custody)))
        self.note(kept)
        self.made += items
        for rows, pending in () if base is None else base[0]:
            self.seen["not alone" if pending else "alone"] += 1
            self.seen["judged with others"] += sum(rows.values()) > 1
        if attempt is not None and base is not None:
            self.judged |= {(item.depositor, item.deposit_id): attempt.header_hash for item in items}
        return kept

    @rule(
        depositor=st.sampled_from(DEPOSITORS),
        shard=st.integers(0, 1),
        items=st.lists(ITEMS, min_size=1, max_size=4),
        later=st.sampled_from([0, 0, 1, PENDING_SECONDS]),
        header=st.none() | st.just(b"") | HEADERS,
        first=st.sampled_from([0, 0, 1, 2]),
    )
    def prepare(
        self, depositor: str, shard: int, items: list[Proposed], later: int, header: bytes | None, first: int
    ) -> None:
        self.now += later
        own = [sealed(item, depositor, shard) for item in items]
        self.prepared(own, self.attempt(header, first))

    def attempt(self, header: bytes | None, first: int) -> RangeAttempt | None:
        """Return a range check under a header that may have been seen; one of no bytes is fresh."""
        if header is None:
            return None
        return RangeAttempt(header or next(self.headers).to_bytes(32, "big"), self.today, A_DAY + first)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), twice=st.booleans(), version=st.integers(0, 1), later=st.sampled_from([0, 1]))
    def repeat(self, data: st.DataObject, later: int, version: int, *, twice: bool) -> None:
        self.now += later
        item = data.draw(st.sampled_from(self.made))
        again = replace(item, range_key=range_key(item.deposit_id, version))
        self.prepared([again] * (2 if twice else 1), self.attempt(b"", 0))

    @rule(depositor=st.sampled_from(DEPOSITORS), shard=st.integers(0, 1), issue=ITEMS, correction=ITEMS)
    def correct(self, depositor: str, shard: int, issue: Proposed, correction: Proposed) -> None:
        own = [
            replace(issue, kind=ISSUE, earlier=None, range_key=b""),
            replace(correction, kind=AMENDMENT, earlier=issue.deposit_id, range_key=b""),
        ]
        self.prepared([sealed(item, depositor, shard) for item in own], self.attempt(b"", 0))

    @rule(
        depositor=st.sampled_from(DEPOSITORS),
        shard=st.integers(0, 1),
        commits=st.lists(
            st.tuples(IDS.map(deposit_id), st.integers(0, 2 * WINDOW_TICKS), HEADERS, BAD), min_size=1, max_size=5
        ),
        later=st.sampled_from([0, 1, 100]),
    )
    def commit(self, depositor: str, shard: int, commits: list[tuple[bytes, int, bytes, str]], later: int) -> None:
        self.tick += later
        named = [shown(number, self.tick - ago, header, bad) for number, ago, header, bad in commits]
        self.committed(depositor, shard, named)

    def committed(self, depositor: str, shard: int, commits: Sequence[Commit]) -> None:
        self.note(self.both(lambda custody: plain(custody.commit(depositor, shard, commits))))

    @precondition(lambda self: self.made)
    @rule(data=st.data(), most=st.integers(1, 3), ago=st.integers(0, 2), bad=BAD)
    def finish(self, data: st.DataObject, most: int, ago: int, bad: str) -> None:
        """Commit what was prepared, under the header of the check that judged it last."""
        first = data.draw(st.sampled_from(self.made))
        depositor, shard = first.depositor, first.shard
        own = [item.deposit_id for item in self.made if (item.depositor, item.shard) == (depositor, shard)]
        numbers = {first.deposit_id: 0} | dict.fromkeys(data.draw(st.lists(st.sampled_from(own), max_size=most)), 0)
        headers = {number: self.judged.get((depositor, number), bytes(32)) for number in numbers}
        self.committed(
            depositor, shard, [shown(number, self.tick - ago, header, bad) for number, header in headers.items()]
        )

    @rule(
        depositor=st.sampled_from(DEPOSITORS),
        shard=st.integers(0, 1),
        issues=st.tuples(ITEMS, ITEMS),
        same=st.sampled_from([True, True, False]),
        waited=st.sampled_from([PENDING_SECONDS - 1, PENDING_SECONDS, PENDING_SECONDS + 1]),
        meanwhile=st.sampled_from(["nothing", "nothing", "repeat", "finish", "abandon"]),
        under=st.sampled_from(["judged", "judged", "judged", "other"]),
    )
    def lose(
        self,
        depositor: str,
        shard: int,
        issues: tuple[Proposed, Proposed],
        waited: int,
        meanwhile: str,
        under: str,
        *,
        same: bool,
    ) -> None:
        """Leave a deposit pending, judge and commit another of its person a day later; the first comes again."""
        lost, other = (
            sealed(
                replace(
                    item, deposit_id=deposit_id(next(self.fresh)), kind=ISSUE, earlier=None, not_before=0, range_key=b""
                ),
                depositor,
                shard,
            )
            for item in (issues[0], replace(issues[1], index=issues[0].index if same else issues[1].index))
        )
        self.prepared([lost], None)
        self.now += waited
        attempt = self.attempt(b"", 0)
        assert attempt is not None
        self.prepared([other], attempt)
        if meanwhile == "repeat":
            self.prepared([lost], None)
        elif meanwhile == "finish":
            self.committed(depositor, shard, [shown(lost.deposit_id, self.tick, bytes(32), "")])
        elif meanwhile == "abandon":
            self.note(self.both(lambda custody: plain(custody.abandon(depositor, shard, [lost.deposit_id], self.now))))
        header = attempt.header_hash if under == "judged" else bytes([7] * 32)
        self.committed(depositor, shard, [shown(other.deposit_id, self.tick, header, "")])
        (state,) = self.prepared([lost], self.attempt(b"", 0))
        if meanwhile != "abandon":
            self.seen["passed over" if state == "deposit-abandoned" else "not passed over"] += 1

    @rule(depositor=st.sampled_from(DEPOSITORS), shard=st.integers(0, 1), ids=st.lists(IDS, max_size=2))
    def abandon(self, depositor: str, shard: int, ids: list[int]) -> None:
        numbers = [deposit_id(number) for number in ids]
        self.note(self.both(lambda custody: plain(custody.abandon(depositor, shard, numbers, self.now))))

    @rule(days=st.sampled_from([0, 100, 150, 250]))
    def upkeep(self, days: int) -> None:
        """Make partitions for the months, and move there what lies in that of later days; nothing is seen of it."""
        today = dt.date.fromordinal(A_DAY + days)
        self.store.run("arrange", lambda connection: arrange_partitions(connection, today))

    @precondition(lambda self: not self.flooded)
    @rule(shard=st.integers(0, 1), again=st.integers(0, 69))
    def flood(self, shard: int, again: int) -> None:
        """Commit at so many ticks that old ones are folded, then give one of the folded a lower tick."""
        self.flooded = True
        items = [
            proposed(number, shard=shard, row=row(excluded=number % 2, value=number))
            for number in itertools.islice(self.fresh, 75)
        ]
        self.both(lambda custody: plain(custody.prepare(items, self.now).kept))
        begin, self.tick = self.tick, self.tick + 100
        commits = [commit_of(item, begin + place + 1) for place, item in enumerate(items)]
        commits[-1] = commit_of(items[-1], self.tick)
        self.both(lambda custody: plain(custody.commit("insurer-01", shard, commits)))
        stamps = f"SELECT count(*) FROM custody_stamp WHERE shard = {shard}"  # noqa: S608
        self.seen["folded"] += count(self.store, stamps) < len(items)
        lowered = [commit_of(items[again], begin)]
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


def test_any_history_has_the_results_that_it_has_in_memory(store: Database) -> None:
    seen: Counter[str] = Counter()
    machine = type("Machine", (CustodyMachine,), {"store": store, "seen": seen})
    run_state_machine_as_test(machine, settings=settings(deterministic(60), stateful_step_count=30))
    outcomes = {
        "admitted",
        "check-id-reused",
        "other-tick",
        "replayed",
        SPENT,
        "partly spent",
        "deposit-reused",
        "deposit-abandoned",
    }
    outcomes |= {"wrong-earlier", "not-prepared", "early-tick", "never", "kept", "rows seen", "folded"}
    outcomes |= {"range-not-shown", "alone", "not alone", "judged with others", "passed over", "not passed over"}
    assert {outcome for outcome in outcomes if not seen[outcome]} == set()


def test_a_commit_of_nothing_is_nothing(custody: PostgresCustody) -> None:
    assert custody.commit("insurer-01", 0, []) == MemoryCustody().commit("insurer-01", 0, []) == []


CORRECTION = proposed(2, kind=AMENDMENT, earlier=deposit_id(1), row=row(value=9))


@pytest.mark.parametrize(
    ("correction", "fits"),
    [
        (CORRECTION, True),
        (replace(CORRECTION, kind=CANCELLATION), True),
        (replace(CORRECTION, index=index(1)), False),
        (replace(CORRECTION, shard=1), False),
        (replace(CORRECTION, row=row(product="term_life")), False),
        (replace(CORRECTION, row=row(day=A_DAY + 1)), False),
        (replace(CORRECTION, row=row(excluded=1)), False),
        (replace(CORRECTION, earlier=deposit_id(3)), False),  # which is a correction itself
        (replace(CORRECTION, earlier=deposit_id(4)), True),  # which was given up: it is not here
        (replace(CORRECTION, earlier=deposit_id(5)), True),  # which never came
        (replace(CORRECTION, earlier=None), True),
        (replace(CORRECTION, depositor="insurer-03"), True),  # another depositor's issue is none of its own
    ],
)
@pytest.mark.parametrize("committed", [True, False])
def test_a_correction_fits_the_issue_that_it_names_in_every_field(
    custody: PostgresCustody, correction: Proposed, *, fits: bool, committed: bool
) -> None:
    for stored in (MemoryCustody(), custody):
        third = replace(CORRECTION, deposit_id=deposit_id(3), range_key=range_key(deposit_id(3)))
        prepare(stored, [proposed(1), third, proposed(4)])
        given_up(stored, "insurer-01", 4)
        if committed:
            stored.commit("insurer-01", 0, [commit_of(1, 5), commit_of(3, 5)])
        expected = [Kept(None, never=False, envelope_hash=bytes(32))] if fits else ["wrong-earlier"]
        assert prepare(stored, [correction]) == expected


def test_a_store_of_another_epoch_neither_reads_nor_keeps(store: Database, custody: PostgresCustody) -> None:
    prepare(custody, [proposed(1)])
    custody.commit("insurer-01", 0, [commit_of(1, 5)])
    later = PostgresCustody(store, VAULT, TICK_SECONDS, EPOCH + 1)
    for stored, epoch in ((custody, EPOCH + 1), (later, EPOCH)):
        reading = Reading(0, epoch, 9, ((index(0), 1),))
        assert code_of(lambda stored=stored, reading=reading: stored.view(reading)) == "other-epoch"
        batch = [proposed(2, epoch=stored._epoch), proposed(3, epoch=epoch)]
        assert code_of(lambda stored=stored, batch=batch: prepare(stored, batch)) == "other-epoch"
    assert count(store, "SELECT count(*) FROM custody_pending") == 0
    assert count(store, "SELECT count(*) FROM custody_row") == 1


@pytest.mark.parametrize("tick_seconds", [1, 7, 20, 60])
def test_folding_keeps_the_stamps_of_every_tick_that_may_still_be_asked_for(store: Database, tick_seconds: int) -> None:
    memory, postgres = stores = (MemoryCustody(), PostgresCustody(store, VAULT, tick_seconds, EPOCH))
    reach = MAX_AS_OF_AGE // tick_seconds + 1
    items = [proposed(number, row=row(excluded=number % 3)) for number in range(220)]
    begin = 50_000
    for stored in stores:
        prepare(stored, items)
        for item, tick in zip(items, itertools.count(begin), strict=False):
            stored.commit(item.depositor, 0, [commit_of(item, tick)])
    last = begin + len(items) - 1
    for tick in range(last - reach, last + 2):
        reading = Reading(0, 1, tick, ((index(0), 1),))
        assert comparable(postgres.view(reading)) == comparable(memory.view(reading))
    assert count(store, "SELECT count(*) FROM custody_stamp") < len(items)


# --- attempts and budgets in a crowd -------------------------------------------------------------------------------


def recorded(store: Database) -> dict[str, int]:
    return {
        "requests": count(store, "SELECT count(*) FROM check_request"),
        "attempts": count(store, "SELECT coalesce(sum(cardinality(attempts)), 0) FROM check_request"),
        "charges": count(store, "SELECT sum(answers) FROM budget"),
    }


@pytest.mark.parametrize("budget", [1, 5, 20])
def test_exactly_the_budget_passes_however_many_ask_at_once(
    store: Database, custody: PostgresCustody, budget: int
) -> None:
    charges = (Charge(index(0), "rule", UNDERWRITING, budget, 30),)

    def ask(first: int) -> list[str | None]:
        mine = [admission(first * 100 + number, charges=charges) for number in range(4)]
        return [admitted(custody, item) for item in mine]

    codes = Counter(itertools.chain(*at_once([lambda first=first: ask(first) for first in range(THREADS)])))
    assert codes == Counter({None: budget, SPENT: 4 * THREADS - budget})
    assert recorded(store) == {"requests": 4 * THREADS, "attempts": 4 * THREADS, "charges": budget}


def test_a_budget_of_each_occasion_is_spent_by_itself_however_many_ask_at_once(
    store: Database, custody: PostgresCustody
) -> None:
    memory, budgets = MemoryCustody(), {UNDERWRITING: 2, RECHECK: 5}

    def asked(number: int) -> Admission:
        occasion = (UNDERWRITING, RECHECK)[number % 2]
        return admission(number, charges=(Charge(index(0), "rule", occasion, budgets[occasion], 30),))

    every = [asked(number) for number in range(4 * THREADS)]
    expected = Counter(admitted(memory, item) for item in every)
    assert expected == Counter({None: 7, SPENT: 4 * THREADS - 7})
    parts = [every[place::THREADS] for place in range(THREADS)]
    had = at_once([lambda part=part: [admitted(custody, item) for item in part] for part in parts])
    assert Counter(itertools.chain(*had)) == expected
    spent = store.run(
        "read", lambda connection: connection.execute("SELECT occasion, sum(answers) FROM budget GROUP BY 1").fetchall()
    )
    assert dict(spent) == budgets


def test_checks_of_the_same_persons_in_any_order_do_not_lock_each_other_up(
    store: Database, custody: PostgresCustody
) -> None:
    charges = [Charge(index(number), "rule", UNDERWRITING, 1_000, 30) for number in range(6)]

    def ask(first: int) -> None:
        for number in range(4):
            turned = charges[first % 6 :] + charges[: first % 6]
            custody.admit(admission(first * 100 + number, charges=tuple(turned if number % 2 else reversed(turned))))

    at_once([lambda first=first: ask(first) for first in range(THREADS)])
    assert recorded(store) == {"requests": 4 * THREADS, "attempts": 4 * THREADS, "charges": 6 * 4 * THREADS}


def test_a_lane_that_is_spent_is_not_charged_those_beside_it_are_and_so_it_stays_in_every_attempt(
    store: Database, custody: PostgresCustody
) -> None:
    spent, other = (Charge(index(number), "rule", UNDERWRITING, budget, 30) for number, budget in ((0, 1), (1, 2)))
    assert custody.admit(admission(1, charges=(spent,))) == ()
    assert custody.admit(admission(2, charges=(other, spent, other))) == (1,)
    assert recorded(store) == {"requests": 2, "attempts": 2, "charges": 3}
    store.run("release", lambda connection: connection.execute("DELETE FROM budget"))
    for attempt in (2, 3):
        assert custody.admit(admission(2, charges=(other, spent, other), attempt=attempt)) == (1,)
    assert recorded(store)["charges"] == 0
    assert custody.admit(admission(3, charges=(other, spent, other))) == ()
    assert custody.admit(admission(4, charges=(other, spent))) == (0, 1)
    assert code_of(lambda: custody.admit(admission(4, charges=(other, spent)))) == "replayed"


def test_a_database_of_before_lanes_were_spent_apart_is_brought_up_to_date(store: Database) -> None:
    store.run("older", lambda connection: connection.execute("ALTER TABLE check_request DROP COLUMN spent"))
    for _ in range(2):
        store.migrate()
    custody = PostgresCustody(store, VAULT, TICK_SECONDS, EPOCH)
    charge = Charge(index(0), "rule", UNDERWRITING, 1, 30)
    assert custody.admit(admission(1, charges=(charge, charge))) == (1,)
    assert custody.admit(admission(1, charges=(charge, charge), attempt=2)) == (1,)


def test_one_attempt_asked_for_by_many_at_once_passes_once(store: Database, custody: PostgresCustody) -> None:
    for check in range(5):
        for attempt in (1, 2, 3):
            asked = admission(check, attempt=attempt, charges=(Charge(index(check), "rule", UNDERWRITING, 1, 30),))
            codes = at_once([lambda asked=asked: code_of(lambda: custody.admit(asked))] * THREADS)
            assert Counter(codes) == Counter({None: 1, "replayed": THREADS - 1})
    assert recorded(store) == {"requests": 5, "attempts": 15, "charges": 5}


def test_of_many_requests_under_one_check_id_at_once_one_stands(store: Database, custody: PostgresCustody) -> None:
    asked = [admission(statement_hash=bytes([number] * 32), attempt=1 + number % 3) for number in range(THREADS)]
    codes = Counter(at_once([lambda item=item: code_of(lambda: custody.admit(item)) for item in asked]))
    assert codes == Counter({None: 1, "check-id-reused": THREADS - 1})
    assert recorded(store) == {"requests": 1, "attempts": 1, "charges": 1}


def test_all_attempts_of_a_check_at_once_are_charged_once(store: Database, custody: PostgresCustody) -> None:
    asked = [admission(attempt=1 + number % 3) for number in range(6)]
    codes = Counter(at_once([lambda item=item: code_of(lambda: custody.admit(item)) for item in asked]))
    assert codes == Counter({None: 3, "replayed": 3})
    assert recorded(store) == {"requests": 1, "attempts": 3, "charges": 1}


def test_a_check_that_is_recorded_after_the_first_of_the_next_day_counts_that_one_too(custody: PostgresCustody) -> None:
    memory = MemoryCustody()
    charges = (Charge(index(0), "rule", UNDERWRITING, 1, 30),)
    late, early = admission(1, today=A_DAY + 1, charges=charges), admission(2, today=A_DAY, charges=charges)
    for stored in (memory, custody):
        stored.admit(late)
    assert admitted(memory, early) == admitted(custody, early) == SPENT


def test_two_checks_at_midnight_do_not_both_have_the_last_answer(store: Database, custody: PostgresCustody) -> None:
    charged, go_on = threading.Event(), threading.Event()

    class Slow:
        """Is about to commit for as long as the test likes."""

        @contextmanager
        def begun(
            self, name: str, statement: Statement, asked: Sequence[Sequence[Value]]
        ) -> Iterator[Callable[[], list[list[Row]]]]:
            def held(connection: Rows) -> list[list[Row]]:
                result = statement.send(connection, asked).rows()
                charged.set()
                assert go_on.wait(20)
                return result

            yield lambda: store.run(name, held)

    slow = PostgresCustody(Slow(), VAULT, TICK_SECONDS, EPOCH)  # type: ignore[arg-type]  # all of it that `admit` takes
    before, after = (
        admission(day, today=A_DAY + day, charges=(Charge(index(0), "rule", UNDERWRITING, 1, 30),)) for day in (0, 1)
    )
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: admitted(slow, before))
        assert charged.wait(20)
        second = pool.submit(lambda: admitted(custody, after))
        wait([second], timeout=0.5)  # it may wait for the first, or not
        go_on.set()
        assert Counter([first.result(), second.result()]) == Counter({None: 1, SPENT: 1})


def test_old_replay_records_go_and_what_can_still_matter_stays(store: Database, custody: PostgresCustody) -> None:
    charges = (Charge(index(0), "rule", UNDERWRITING, 2, 366),)
    custody.admit(admission(1, today=A_DAY, charges=charges))
    custody.admit(admission(2, today=A_DAY + KEEP_CHECK_RECORDS_DAYS, charges=charges))
    custody.admit(admission(2, today=A_DAY + KEEP_CHECK_RECORDS_DAYS, attempt=2, charges=charges))
    custody.forget_old_checks(A_DAY + KEEP_CHECK_RECORDS_DAYS)
    assert recorded(store) == {"requests": 2, "attempts": 3, "charges": 2}
    custody.forget_old_checks(A_DAY + KEEP_CHECK_RECORDS_DAYS + 1)
    assert recorded(store) == {"requests": 1, "attempts": 2, "charges": 2}
    custody.forget_old_checks(A_DAY + 366)
    asked = admission(3, today=A_DAY + 365, charges=charges)
    assert custody.admit(asked) == (0,)  # both still lie within the 366 days
    assert custody.admit(admission(4, today=A_DAY + 366, charges=charges)) == ()
    custody.forget_old_checks(A_DAY + 800)
    assert recorded(store) == {"requests": 0, "attempts": 0, "charges": 0}


# --- deposits in a crowd -------------------------------------------------------------------------------------------


def test_a_deposit_that_arrives_many_times_at_once_is_kept_once(store: Database, custody: PostgresCustody) -> None:
    one, other = proposed(1), proposed(1, envelope_hash=bytes([1] * 32))
    results = at_once([lambda item=item: prepare(custody, [item])[0] for item in [one, other] * (THREADS // 2)])
    assert count(store, "SELECT count(*) FROM custody_pending") == 1
    kept = {item.envelope_hash for item in results if isinstance(item, Kept)}
    assert len(kept) == 1
    assert Counter(isinstance(item, Kept) for item in results) == {True: THREADS // 2, False: THREADS // 2}


def test_a_deposit_committed_and_given_up_at_once_is_one_of_the_two(custody: PostgresCustody) -> None:
    for number in range(12):
        prepare(custody, [proposed(number)])
        commit = [lambda number=number: plain(custody.commit("insurer-01", 0, [commit_of(number, 5)]))[0]]
        abandon = [lambda number=number: given_up(custody, "insurer-01", number)[0]]
        results = set(at_once(commit * 2 + abandon * 2))
        proof = proof_of(deposit_id(number))
        kept, never = (
            Kept(5, never=False, envelope_hash=bytes(32), proof=proof),
            Kept(None, never=True, envelope_hash=b""),
        )
        assert results in ({kept}, {"not-prepared", never})


def test_commits_that_race_with_different_ticks_all_end_at_the_lowest(custody: PostgresCustody) -> None:
    memory = MemoryCustody()
    items = [proposed(number, row=row(excluded=number % 2)) for number in range(10)]
    named = [[commit_of(item, 30 - thread) for item in items] for thread in range(THREADS)]
    for stored in (memory, custody):
        prepare(stored, items)
    at_once([lambda commits=commits: custody.commit("insurer-01", 0, commits) for commits in named])
    for commits in named:
        memory.commit("insurer-01", 0, commits)
    for tick in range(20, 32):
        reading = Reading(0, 1, tick, ((index(0), 1),))
        assert comparable(custody.view(reading)) == comparable(memory.view(reading))


def test_depositors_that_commit_and_fold_at_once_lose_no_stamp(store: Database, custody: PostgresCustody) -> None:
    memory = MemoryCustody()
    each = 90

    def items_of(depositor: str) -> list[Proposed]:
        return [proposed(number, depositor=depositor, row=row(excluded=number % 2)) for number in range(each)]

    def work(stored: Custody, depositor: str) -> None:
        items = items_of(depositor)
        prepare(stored, items)
        # Every tick is a hot row of all depositors, and every commit from the 65th tick on folds old ones.
        for place in range(0, each, 6):
            commits = [commit_of(item, place + at) for at, item in enumerate(items[place : place + 6])]
            stored.commit(depositor, 0, commits)
        stored.commit(depositor, 0, [commit_of(items[-1], each - 2), commit_of(items[0], 0)])

    depositors = [name(number) for number in range(1, 5)]
    at_once([lambda depositor=depositor: work(custody, depositor) for depositor in depositors])
    for depositor in depositors:
        work(memory, depositor)
    assert count(store, "SELECT count(*) FROM custody_stamp") < each
    for tick in range(each - WINDOW_TICKS, each + 1):
        reading = Reading(0, 1, tick, ((index(0), 1),))
        assert comparable(custody.view(reading)) == comparable(memory.view(reading))


# --- durable, and one snapshot -------------------------------------------------------------------------------------


def test_what_was_answered_is_seen_by_others_at_once(database: str, custody: PostgresCustody) -> None:
    def elsewhere(action: Callable[[PostgresCustody], T]) -> T:
        other = Database(database, size=1)
        try:
            return action(PostgresCustody(other, VAULT, TICK_SECONDS, EPOCH))
        finally:
            other.close()

    custody.admit(admission())
    assert elsewhere(lambda other: code_of(lambda: other.admit(admission()))) == "replayed"
    prepare(custody, [proposed(1), proposed(2)])
    assert elsewhere(lambda other: prepare(other, [proposed(1, envelope_hash=b"x" * 32)])) == ["deposit-reused"]
    custody.abandon("insurer-01", 0, [deposit_id(2)], 0.0)
    assert elsewhere(lambda other: prepare(other, [proposed(2)])) == ["deposit-abandoned"]
    custody.commit("insurer-01", 0, [commit_of(1, 7)])
    view = elsewhere(lambda other: other.view(Reading(0, 1, 7, ((index(0), 1),))))
    assert comparable(view) == ([Counter([row(value=1)])], {0: deposit_stamp("insurer-01", deposit_id(1), 7)})


@dataclass
class Interrupted(Sequence[tuple[IndexKey, int]]):
    """The persons of a reading; between what is asked about them and what is made of the answer, something happens."""

    persons: tuple[tuple[IndexKey, int], ...]
    meanwhile: Callable[[], object]
    happened: list[object] = field(default_factory=list)
    gone_through: int = 0

    def __iter__(self) -> Iterator[tuple[IndexKey, int]]:
        self.gone_through += 1
        if self.gone_through == 2:  # for what is asked, for what is made of the answer
            self.happened.append(self.meanwhile())
        yield from self.persons

    def __len__(self) -> int:
        return len(self.persons)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401  as of Sequence
        return self.persons[place]


def test_a_commit_between_the_persons_of_a_view_is_not_half_seen(custody: PostgresCustody) -> None:
    items = [proposed(number, whom=number % 2) for number in range(4)]
    prepare(custody, items)
    custody.commit("insurer-01", 0, [commit_of(items[0], 5), commit_of(items[1], 9)])
    persons = ((index(0), 1), (index(1), 2))
    plain_reading = Reading(0, 1, 8, persons)
    before = comparable(custody.view(plain_reading))
    # Two appear, and one that lay in the future of the reading is moved before it.
    later = [commit_of(item, 6) for item in items[1:]]
    interrupted = Interrupted(persons, lambda: custody.commit("insurer-01", 0, later))
    assert comparable(custody.view(replace(plain_reading, persons=interrupted))) == before
    assert len(interrupted.happened) == 1
    after = comparable(custody.view(plain_reading))
    assert [sum(lane.values()) for lane in after[0]] == [2, 2]
    assert after[1] == {0: total_stamp([(items[0], 5), *((item, 6) for item in items[1:])])}


def total_stamp(commits: Sequence[tuple[Proposed, int]]) -> bytes:
    stamps = [deposit_stamp(item.depositor, item.deposit_id, tick) for item, tick in commits]
    return group.accumulate(group.IDENTITY, stamps)


def test_rows_and_stamps_of_every_view_agree_while_others_commit(custody: PostgresCustody) -> None:
    persons, depositors, batches, size, tick = 3, [name(1), name(2)], 15, 4, 50
    items = {
        depositor: [
            proposed(
                place * 1_000 + number,
                depositor=depositor,
                index=index(number % persons),
                row=row(excluded=place, value=place * 1_000 + number),
            )
            for number in range(batches * size)
        ]
        for place, depositor in enumerate(depositors)
    }
    by_value = {item.row.amounts[0]: item for own in items.values() for item in own}
    reading = Reading(0, 1, tick, tuple((index(whom), 1) for whom in range(persons)))
    writing = [True] * len(depositors)

    def write(place: int) -> int:
        own = items[depositors[place]]
        try:
            prepare(custody, own)
            for at in range(0, len(own), size):
                batch = own[at : at + size]
                # First a tick that the reading does not reach, then, by another relay, the one that it does.
                custody.commit(depositors[place], 0, [commit_of(item, tick + 1) for item in batch])
                custody.commit(depositors[place], 0, [commit_of(item, tick) for item in batch])
        finally:
            writing[place] = False
        return 0

    def read() -> int:
        views = 0
        while any(writing):
            view, views = custody.view(reading), views + 1
            seen = [by_value[item.amounts[0]] for one in view.persons for item in one.rows]
            for place, depositor in enumerate(depositors):
                own = [item for item in seen if item.depositor == depositor]
                assert len(own) % size == 0
                assert view.stamp_sums.get(place, group.IDENTITY) == total_stamp([(item, tick) for item in own])
        return views

    views = at_once([lambda: write(0), lambda: write(1), read, read])
    assert min(views[2:]) > 0
    assert sum(len(one.rows) for one in custody.view(reading).persons) == 2 * batches * size


# --- what stands in the tables -------------------------------------------------------------------------------------

VIEW_ALL = Reading(0, 1, 10, ((index(0), 1),))


def tamper(store: Database, statement: str, *values: object) -> None:
    changed = store.run("tamper", lambda connection: connection.execute(statement.encode(), values).rowcount)
    assert changed > 0


def with_two_rows(custody: PostgresCustody) -> None:
    for depositor, number in (("insurer-01", 1), ("insurer-01", 2), ("insurer-03", 3)):
        prepare(custody, [proposed(number, depositor=depositor, row=row(value=number * 100))])
        custody.commit(depositor, 0, [commit_of(number, 5)])


SWAP = """
    UPDATE custody_row a SET shares = b.shares FROM custody_row b
    WHERE a.ctid <> b.ctid AND a.depositor {} 'insurer-01' AND b.depositor = 'insurer-01'
"""


@pytest.mark.parametrize(
    "statement",
    [
        SWAP.format("="),
        SWAP.format("<>"),
        "UPDATE custody_row SET depositor = 'insurer-09' WHERE depositor = 'insurer-03'",
        "UPDATE custody_row SET id_key = sha256(id_key) WHERE depositor = 'insurer-03'",
        "UPDATE custody_row SET shares = set_byte(shares, 0, 255 - get_byte(shares, 0))",
        "UPDATE custody_row SET shares = set_byte(shares, length(shares) - 1, 255 - get_byte(shares, 20))",
        "UPDATE custody_row SET shares = substr(shares, 1, length(shares) - 1)",
        "UPDATE custody_row SET shares = substr(shares, 1, 8)",
        "UPDATE custody_row SET shares = ''",
        "UPDATE custody_row SET shares = shares || '\\x00'",
    ],
)
def test_shares_that_were_moved_or_changed_do_not_open(
    store: Database, custody: PostgresCustody, statement: str
) -> None:
    with_two_rows(custody)
    assert len(custody.view(VIEW_ALL).persons[0].rows) == 3
    tamper(store, statement)
    with pytest.raises(VaultError):
        custody.view(VIEW_ALL)


PENDING_SWAP = """
    UPDATE custody_pending a SET sealed = b.sealed FROM custody_pending b WHERE a.id_key <> b.id_key
"""


@pytest.mark.parametrize(
    "statement",
    [
        PENDING_SWAP,
        "UPDATE custody_pending SET product = 'term_life'",
        "UPDATE custody_pending SET day = day + 1",
        "UPDATE custody_pending SET token = sha256(token)",
        "UPDATE custody_pending SET excluded = 3",
        "UPDATE custody_pending SET sealed = set_byte(sealed, 20, 255 - get_byte(sealed, 20))",
        "UPDATE custody_pending p SET sealed = r.shares FROM custody_row r",
        "UPDATE custody_pending p SET sealed = r.proof FROM custody_row r",
        "UPDATE custody_pending SET sealed = NULL",
    ],
)
def test_what_is_pending_and_was_moved_or_changed_is_not_committed(
    store: Database, custody: PostgresCustody, statement: str
) -> None:
    with_two_rows(custody)
    prepare(custody, [proposed(7), proposed(8)])
    tamper(store, statement)
    before = dumped(store)
    with pytest.raises(VaultError):
        custody.commit("insurer-01", 0, [commit_of(7, 5), commit_of(8, 5)])
    assert dumped(store) == before


@pytest.mark.parametrize(
    "statement",
    [
        SWAP.format("=").replace("shares", "proof"),
        SWAP.format("<>").replace("shares", "proof"),
        "UPDATE custody_row SET proof = shares",
        "UPDATE custody_row SET product = 'term_life'",
        "UPDATE custody_row SET proof = set_byte(proof, 20, 255 - get_byte(proof, 20))",
    ],
)
def test_a_proof_that_was_moved_or_changed_is_not_told(
    store: Database, custody: PostgresCustody, statement: str
) -> None:
    with_two_rows(custody)
    items = [
        proposed(number, depositor=depositor, row=row(value=number * 100))
        for depositor, number in (("insurer-01", 1), ("insurer-01", 2), ("insurer-03", 3))
    ]
    for item in items:
        (kept,) = prepare(custody, [item])
        assert kept == Kept(5, never=False, envelope_hash=bytes(32), proof=proof_of(item.deposit_id))
    tamper(store, statement)

    def repeat_all() -> None:
        for item in items:
            prepare(custody, [item])

    with pytest.raises(VaultError):
        repeat_all()


def test_the_range_key_of_a_deposit_goes_when_it_is_committed(store: Database, custody: PostgresCustody) -> None:
    prepare(custody, [proposed(1), proposed(2)])
    refused = Commit(deposit_id(2), 5, proof_of(deposit_id(1)))
    assert plain(custody.commit("insurer-01", 0, [commit_of(1, 5), refused]))[1] == "range-not-shown"
    opened = store.run("read", lambda at: at.execute(f"SELECT {FACTS}, shares FROM custody_row").fetchall())  # noqa: S608
    ((*facts, shares),) = opened
    place = _place(b"row", "insurer-01", custody._deposits.id_key("insurer-01", deposit_id(1)), read_facts(facts))
    assert range_key(deposit_id(1)) not in VAULT.open(place, shares)
    assert count(store, "SELECT count(*) FROM custody_pending") == 1  # that of the other, which may yet be shown


def test_another_storage_key_opens_nothing(store: Database, custody: PostgresCustody) -> None:
    with_two_rows(custody)
    other = PostgresCustody(store, Vault(Secret(bytes(32)), "custody", seeded("other")), TICK_SECONDS, EPOCH)
    with pytest.raises(VaultError):
        other.view(VIEW_ALL)
    # Nor does it know the ids: the deposit is another one to it.
    assert plain(other.commit("insurer-01", 0, [commit_of(1, 5)])) == ["not-prepared"]


def dumped(store: Database) -> bytes:
    """Return all that stands in all tables: as PostgreSQL shows it, and byte strings as they are."""

    def transaction(connection: Rows) -> bytes:
        pieces = []
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            for line in connection.execute(f"SELECT t::text, t.* FROM {table} t".encode()):  # noqa: S608
                pieces += [bytes(cell) if isinstance(cell, bytes | memoryview) else str(cell).encode() for cell in line]
        return b"\n".join(pieces)

    return store.run("dump", transaction)


def spellings(value: bytes) -> list[bytes]:
    """Return the ways in which a byte string might stand in a dump."""
    return [value, value[::-1], value.hex().encode(), value.hex().upper().encode()]


def test_no_deposit_id_and_no_share_stands_in_any_table(store: Database, custody: PostgresCustody) -> None:
    amounts = tuple(int.from_bytes(seeded(("amount", place))(SHARE_BYTES), "big") for place in range(4))
    counts = tuple(int.from_bytes(seeded(("count", place))(SHARE_BYTES), "big") for place in range(4))
    body = CustodyRow("accident", A_DAY, 0, amounts, counts)
    prepare(custody, [proposed(number, row=body) for number in range(4)])
    custody.commit("insurer-01", 0, [commit_of(0, 5), commit_of(1, 5)])
    custody.commit("insurer-01", 0, [commit_of(1, 4)])
    prepare(custody, [proposed(5, kind=CANCELLATION, earlier=deposit_id(0), row=body)])
    custody.abandon("insurer-01", 0, [deposit_id(2), deposit_id(9)], 0.0)
    custody.admit(admission())
    had = dumped(store)
    assert index(0) in had  # so a dump does show what stands there
    for number in (0, 1, 2, 3, 5, 9):
        assert [spelling for spelling in spellings(deposit_id(number)) if spelling in had] == []
    for share in amounts + counts:
        words = [*spellings(share.to_bytes(SHARE_BYTES, "big")), str(share).encode()]
        assert [word for word in words if word in had] == []


def test_a_deposit_that_was_given_up_leaves_no_person_and_no_share(store: Database, custody: PostgresCustody) -> None:
    prepare(custody, [proposed(1)])
    custody.abandon("insurer-01", 0, [deposit_id(1)], 0.0)
    assert index(0) not in dumped(store)
    nothing = "never AND sealed IS NULL AND token IS NULL AND chain_key IS NULL AND product IS NULL AND day IS NULL"
    assert count(store, f"SELECT count(*) FROM custody_pending WHERE {nothing}") == 1  # noqa: S608  a constant


# --- in an alliance ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoOnDisk:
    """An alliance in memory two of whose custodians keep what they hold in databases of their own."""

    world: World
    shard: int
    depositor: int
    databases: tuple[Database, Database]


@pytest.fixture
def two_on_disk(postgres: EmbeddedPostgres, store: Database) -> Iterator[TwoOnDisk]:
    world, shard = make_world(8), 0
    slots = world.manifest.committee(shard).slots
    depositor = next(number for number in range(1, 9) if name(number) not in slots)
    other_name = f"test_{secrets.token_hex(8)}"
    postgres.create_database(other_name)
    other = Database(postgres.dsn(other_name), size=2)
    other.migrate()
    databases = (store, other)
    for member, opened in zip(slots[:2], databases, strict=True):
        held = world.members[member]
        vault = Vault(Secret(seeded(("storage", member))(32)), "custody", seeded(("vault", member)))
        kept = PostgresCustody(opened, vault, world.manifest.terms.tick_seconds, world.manifest.terms.epoch)
        world.members[member] = replace(held, custody=kept)
    yield TwoOnDisk(world, shard, depositor, databases)
    other.close()


def persons_of(world: World, shard: int) -> Iterator[Identity]:
    return (whom for whom in map(person, itertools.count()) if shard_of_person(world.party(1), whom) == shard)


def test_custodians_on_disk_and_in_memory_answer_a_check_together(two_on_disk: TwoOnDisk) -> None:
    world, depositor = two_on_disk.world, two_on_disk.depositor
    whom = next(persons_of(world, two_on_disk.shard))
    slots = world.manifest.committee(two_on_disk.shard).slots
    without = frozenset(slots[4:])  # so that the four that answer are these two and two in memory
    issue, _ = world.deposit(depositor, whom, LIMIT, now=NOW - 60)
    world.deposit(depositor, whom, 7, now=NOW - 50, day=TODAY - 29)
    assert world.check(depositor, whom, 0, without=without) == (Verdict.EXCEEDS, None)
    assert world.check(depositor, whom, 0, without=without, now=NOW - 53) == (Verdict.WITHIN, None)
    world.deposit(
        depositor,
        whom,
        -8,
        kind=AMENDMENT,
        earlier=issue.deposit.deposit_id,
        now=NOW - 40,
    )
    assert world.check(depositor, whom, 1, without=without) == (Verdict.WITHIN, None)
    assert world.check(depositor, whom, 2, without=without) == (Verdict.EXCEEDS, None)


def windows(values: Sequence[bytes], size: int = 8) -> set[bytes]:
    return {value[at : at + size] for value in values for at in range(len(value) - size + 1)}


def test_two_custodians_databases_have_no_byte_string_in_common(two_on_disk: TwoOnDisk) -> None:
    world, depositor = two_on_disk.world, two_on_disk.depositor
    for whom in itertools.islice(persons_of(world, two_on_disk.shard), 4):
        made, _ = world.deposit(depositor, whom, LIMIT)
        earlier = made.deposit.deposit_id
        world.deposit(depositor, whom, -LIMIT, kind=CANCELLATION, earlier=earlier, now=NOW - 50)
        world.check(depositor, whom, 5)
    few = frozenset(world.manifest.committee(two_on_disk.shard).slots[2:])
    for whom in itertools.islice(persons_of(world, two_on_disk.shard), 4, 12):
        world.deposit(depositor, whom, LIMIT, without=few)  # which stays pending
    least = {"custody_row": 4, "custody_pending": 2, "range_attempt": 2}  # each of the two is excluded from some

    def columns(connection: Rows) -> list[bytes]:
        had = []
        for query in (
            "SELECT id_key, token, chain_key, shares, proof, envelope_hash FROM custody_row",
            "SELECT id_key, token, chain_key, sealed, envelope_hash FROM custody_pending",
            "SELECT header_key FROM range_attempt",
        ):
            found = connection.execute(query.encode()).fetchall()
            assert len(found) > least[query.split()[-1]]
            had += [bytes(cell) for line in found for cell in line]
        return had

    one, other = (windows(opened.run("read all", columns)) for opened in two_on_disk.databases)
    assert one
    assert other
    assert one & other == set()
