"""What is deposited for a policy adds up to what the policy is worth, however and how often its events arrive."""

import csv
import datetime as dt
import io
import itertools
import json
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from world import IMPORT_NOW, make_world, name, person, seeded

from insurer_agent import importer
from insurer_agent.importer import import_files
from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.policy import COLUMNS, MAX_POLICY_NUMBER_CHARACTERS, Event, PolicyRow
from insurer_agent.intake.policy_file import read_policies
from insurer_agent.store import outbox as outbox_module
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.outbox import SPARE_DAYS, Outbox
from insurer_agent.store.register import Applied, PolicyEvent, Record, Register
from insurer_agent.store.vault import Vault, VaultError
from protocol.check import shard_of_person
from protocol.committee import excluded_slot
from protocol.deposit import Entry
from protocol.encoding import decode
from protocol.identity import Identity
from protocol.manifest import MAX_WINDOW_DAYS, china_day
from protocol.messages import AMENDMENT, CANCELLATION, COUNT_OF_KIND, ISSUE
from protocol.party import Party, RandomBytes
from protocol.secret import Secret
from transport.problems import Problem

if TYPE_CHECKING:
    from insurer_agent.agent import Agent

DATA = Path(__file__).parent / "data"
ISSUED_ON = dt.date(2026, 11, 3)
LATER = ISSUED_ON + dt.timedelta(days=20)
LATEST = LATER + dt.timedelta(days=1)
A_MILLION = 100_000_000
STORAGE_KEY = Secret(bytes(range(32)))
WORLD = make_world()


def clock() -> float:
    return IMPORT_NOW


ACCEPTED, CORRECTED, REPEATED = Applied.ACCEPTED, Applied.CORRECTED, Applied.REPEATED


@dataclass(frozen=True)
class Insurer:
    """The part of an agent that an import needs."""

    party: Party
    database: Database
    vault: Vault
    register: Register
    outbox: Outbox

    @classmethod
    def open(cls, dsn: str, *, size: int = 2, random: RandomBytes = secrets.token_bytes) -> "Insurer":
        """Return an agent's store; several on one database are several processes of one agent."""
        database, party = Database(dsn, size=size), WORLD.party(1)
        database.migrate()
        vault = Vault(STORAGE_KEY, "register", secrets.token_bytes)
        return cls(party, database, vault, Register(database, vault, party, random, clock), Outbox(database, vault))

    def import_files(self, *files: Path) -> Counter[str]:
        return import_files(cast("Agent", self), list(files), io.StringIO())

    def apply(self, *events: PolicyEvent) -> list[Applied | str]:
        """Apply events in one transaction; refusals are told by their code."""
        results = self.register.apply(events)
        return [result.code if isinstance(result, IntakeError) else result for result in results]

    def entries(self) -> list[tuple[bytes, Entry]]:
        """Return all deposits of the outbox in order, with their ids, opened as the product opens them."""

        def transaction(connection: Rows) -> list[tuple[bytes, Entry]]:
            found = connection.execute("SELECT deposit_id, entry FROM deposit ORDER BY seq").fetchall()
            opened = [(bytes(number), self.vault.open(number, sealed)) for number, sealed in found]
            stored = outbox_module._StoredEntry
            return [(number, outbox_module._entry(decode(stored, body))) for number, body in opened]

        return self.database.run("read outbox", transaction)

    def records(self) -> list[Record]:
        def transaction(connection: Rows) -> list[Record]:
            found = connection.execute("SELECT policy_key, sealed FROM policy").fetchall()
            return [decode(Record, self.vault.open(key, sealed)) for key, sealed in found]

        return self.database.run("read register", transaction)

    def deposited(self) -> dict[tuple[str, Identity, str], tuple[int, int]]:
        """Return by policy the sums of amounts and of counts that its deposits come to."""
        by_issue = {record.issue_id: record.policy_number for record in self.records()}
        sums: dict[tuple[str, Identity, str], tuple[int, int]] = {}
        for deposit_id, entry in self.entries():
            key = (by_issue[entry.earlier or deposit_id], entry.identity, entry.product)
            amount, count = sums.get(key, (0, 0))
            sums[key] = (amount + entry.amount, count + COUNT_OF_KIND[entry.kind])
        return sums

    def state(self) -> tuple[int, ...]:
        """Return how many rows the register and the outbox have."""

        def transaction(connection: Rows) -> tuple[int, ...]:
            query = "SELECT (SELECT count(*) FROM policy), (SELECT count(*) FROM policy_row), count(*) FROM deposit"
            return connection.execute(query.encode()).fetchone() or ()

        return self.database.run("count", transaction)

    def clear(self) -> None:
        self.database.run(
            "clear", lambda at: at.execute("DELETE FROM policy; DELETE FROM policy_row; DELETE FROM deposit")
        )


@pytest.fixture
def insurer(database: str) -> Iterator[Insurer]:
    opened = Insurer.open(database)
    yield opened
    opened.database.close()


@pytest.fixture
def another(database: str) -> Iterator[Insurer]:
    """Yield the same agent in another process, as far as its database can tell."""
    opened = Insurer.open(database)
    yield opened
    opened.database.close()


def event(
    kind: Event = Event.ISSUE,
    amount: int = A_MILLION,
    day: dt.date = ISSUED_ON,
    *,
    number: str = "A-1",
    whom: int = 1,
    product: str = "accident",
) -> PolicyEvent:
    return PolicyEvent(number, person(whom), product, kind, amount, day)


def amend(amount: int, day: dt.date = LATER, *, number: str = "A-1") -> PolicyEvent:
    return event(Event.AMEND, amount, day, number=number)


def cancel(day: dt.date = LATER, amount: int = 0) -> PolicyEvent:
    return event(Event.CANCEL, amount, day)


def write(file: Path, rows: Sequence[PolicyEvent]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for row in rows:
            insured = (row.insured.document_type.value, row.insured.number)
            yuan = f"{row.amount // 100}.{row.amount % 100:02d}"
            writer.writerow([row.policy_number, *insured, row.product, yuan, row.day, row.event.value])
    return file


# --- the canonical file --------------------------------------------------------------------------------------------

EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))["canonical.csv"]
CANONICAL = DATA / "canonical.csv"
CANONICAL_COUNTS = Counter({"accepted": 5, "corrected": 2, "repeated": 1, "rejected": 6})


def fen(yuan: str) -> int:
    whole, _, decimals = yuan.partition(".")
    return int(whole) * 100 + int(decimals.ljust(2, "0"))


def test_the_canonical_file_comes_to_what_is_expected(insurer: Insurer) -> None:
    report = io.StringIO()
    assert import_files(cast("Agent", insurer), [CANONICAL], report) == CANONICAL_COUNTS
    assert EXPECTED["ignored_repeats"] == CANONICAL_COUNTS["repeated"]
    rejected = dict(line.split(":", 3)[1::2] for line in report.getvalue().splitlines()[:-1])
    assert {row: reason.strip() for row, reason in rejected.items()} == EXPECTED["rejected_rows"]
    deposited = {number: amount for (number, _, _), (amount, _) in insurer.deposited().items()}
    assert deposited == {number: fen(yuan) for number, yuan in EXPECTED["net_by_policy"].items()}
    assert {number for (number, _, _), (_, count) in insurer.deposited().items() if not count} == {"A-0003"}


def test_importing_the_canonical_file_again_changes_nothing(insurer: Insurer, another: Insurer) -> None:
    insurer.import_files(CANONICAL)
    before = insurer.state(), insurer.entries(), insurer.records()
    for again in (insurer, another):
        assert again.import_files(CANONICAL) == Counter({"repeated": 8, "rejected": 6})
    assert (insurer.state(), insurer.entries(), insurer.records()) == before


def test_what_is_deposited_is_on_the_day_of_issue_and_names_the_issue(insurer: Insurer) -> None:
    insurer.import_files(CANONICAL)
    issues = {number: entry for number, entry in insurer.entries() if entry.kind == ISSUE}
    corrections = [entry for _, entry in insurer.entries() if entry.kind != ISSUE]
    assert {entry.earlier for entry in issues.values()} == {None}
    assert len(corrections) == 2
    for entry in corrections:
        assert entry.earlier is not None
        original = issues[entry.earlier]
        assert (entry.identity, entry.product, entry.day) == (original.identity, original.product, original.day)


def test_a_deposit_goes_where_the_protocol_sends_it_and_a_correction_where_its_issue_went(insurer: Insurer) -> None:
    manifest, own_slots = insurer.party.manifest, set()
    for whom in range(12):
        issued = event(whom=whom)
        insurer.apply(issued, replace(issued, event=Event.AMEND, amount=5), replace(issued, event=Event.CANCEL))
    places = insurer.database.run(
        "places", lambda connection: connection.execute("SELECT deposit_id, shard, excluded FROM deposit").fetchall()
    )
    excluded_of = {bytes(deposit_id): excluded for deposit_id, _, excluded in places}
    entries = dict(insurer.entries())
    for deposit_id, shard, excluded in places:
        entry = entries[bytes(deposit_id)]
        assert shard == shard_of_person(insurer.party, entry.identity)
        own, slots = manifest.slot_of_group(shard, insurer.party.id), len(manifest.committee(shard).slots)
        assert excluded == excluded_slot(shard, own, slots, bytes(deposit_id))
        assert excluded == excluded_of[entry.earlier or bytes(deposit_id)]
        own_slots.add(own is None)
    assert own_slots == {True, False}  # it sits in the committee of one shard and not in that of the other


# --- what an event means -------------------------------------------------------------------------------------------


def test_an_issue_is_deposited_as_it_is(insurer: Insurer) -> None:
    assert insurer.apply(event()) == [ACCEPTED]
    ((deposit_id, entry),) = insurer.entries()
    assert entry == Entry(person(1), ISSUE, "accident", ISSUED_ON.toordinal(), A_MILLION)
    assert [record.issue_id for record in insurer.records()] == [deposit_id]


@pytest.mark.parametrize("whole", [True, False], ids=["in one transaction", "in one each"])
def test_corrections_bear_the_original_day_and_the_difference(insurer: Insurer, *, whole: bool) -> None:
    events = [event(), amend(3 * A_MILLION), amend(A_MILLION // 2, LATEST), cancel(ISSUED_ON, 77)]
    results = insurer.apply(*events) if whole else [insurer.apply(item)[0] for item in events]
    assert results == [ACCEPTED, CORRECTED, CORRECTED, CORRECTED]
    (issue_id, _), *corrections = insurer.entries()
    day = ISSUED_ON.toordinal()
    assert [entry for _, entry in corrections] == [
        Entry(person(1), AMENDMENT, "accident", day, 2 * A_MILLION, issue_id),
        Entry(person(1), AMENDMENT, "accident", day, -5 * A_MILLION // 2, issue_id),
        Entry(person(1), CANCELLATION, "accident", day, -A_MILLION // 2, issue_id),
    ]
    assert len({deposit_id for deposit_id, _ in insurer.entries()}) == 4


@pytest.mark.parametrize(
    ("events", "results"),
    [
        ([event(), event()], [ACCEPTED, REPEATED]),
        ([event(), event(amount=A_MILLION + 1)], [ACCEPTED, "policy-conflict"]),
        ([event(), event(day=LATER)], [ACCEPTED, "policy-conflict"]),
        ([event(), amend(5), event()], [ACCEPTED, CORRECTED, REPEATED]),
        ([event(), amend(5), event(amount=5)], [ACCEPTED, CORRECTED, "policy-conflict"]),
        ([event(), cancel(), event()], [ACCEPTED, CORRECTED, REPEATED]),
        ([event(), cancel(), event(day=LATER)], [ACCEPTED, CORRECTED, "policy-conflict"]),
        ([cancel()], ["policy-unknown"]),
        ([amend(5)], ["policy-unknown"]),
        ([event(), cancel(), amend(5)], [ACCEPTED, CORRECTED, "policy-cancelled"]),
        ([event(), cancel(), cancel()], [ACCEPTED, CORRECTED, REPEATED]),
        ([event(), cancel(), cancel(ISSUED_ON)], [ACCEPTED, CORRECTED, REPEATED]),
        ([event(), cancel(), cancel(amount=A_MILLION)], [ACCEPTED, CORRECTED, REPEATED]),
        ([event(), amend(5), amend(5)], [ACCEPTED, CORRECTED, REPEATED]),
        ([event(), amend(5), amend(5, ISSUED_ON)], [ACCEPTED, CORRECTED, REPEATED]),
        ([event(), amend(A_MILLION)], [ACCEPTED, REPEATED]),
        ([event(), amend(5), amend(6), amend(5, LATEST)], [ACCEPTED, CORRECTED, CORRECTED, CORRECTED]),
        ([event(), amend(5), amend(6, ISSUED_ON)], [ACCEPTED, CORRECTED, "policy-superseded"]),
    ],
)
def test_a_row_is_applied_repeated_or_refused(
    insurer: Insurer, events: list[PolicyEvent], results: list[Applied | str]
) -> None:
    assert insurer.apply(*events) == results
    # Only what was applied was deposited.
    assert len(insurer.entries()) == sum(result in (ACCEPTED, CORRECTED) for result in results)
    insurer.clear()
    assert [insurer.apply(item)[0] for item in events] == results


def test_an_amendment_that_says_what_an_earlier_one_said_is_taken_for_its_repeat(insurer: Insurer) -> None:
    # 5, 6 and 5 again on one day cannot be told from a file that was sent twice.
    assert insurer.apply(event(), amend(5), amend(6), amend(5)) == [ACCEPTED, CORRECTED, CORRECTED, REPEATED]
    assert insurer.deposited() == {("A-1", person(1), "accident"): (6, 1)}


@pytest.mark.parametrize("killed", [False, True])
def test_what_stands_is_what_the_latest_amendment_says_in_whatever_order_a_file_has_them(
    database: str, tmp_path: Path, *, killed: bool
) -> None:
    header = "policy_number,document_type,document_number,product,insured_amount,issued_on,event\n"
    days = [dt.date(2026, 9, 3), dt.date(2026, 10, 3), dt.date(2026, 11, 3)]
    what = zip(("issue", "amend", "amend"), ("100.00", "300.00", "200.00"), days, strict=True)
    lines = [f"A-1,passport,E1234567,accident,{amount},{day},{event}\n" for event, amount, day in what]
    between = [f"B-{number},passport,E1234567,accident,1.00,2026-09-03,issue\n" for number in range(600)]
    for order in itertools.permutations(lines):
        for gap in range(2):
            mixed = [*order[: gap + 1], *between, *order[gap + 1 :]]
            (tmp_path / "all.csv").write_text(header + "".join(mixed), encoding="utf-8")
            (tmp_path / "part.csv").write_text(header + "".join(mixed[:500]), encoding="utf-8")
            insurer = Insurer.open(database)
            try:
                insurer.database.run("clear", lambda at: at.execute("TRUNCATE policy, policy_row, deposit"))
                if killed:
                    insurer.import_files(tmp_path / "part.csv")
                insurer.import_files(tmp_path / "all.csv")
                (total,) = (sums for key, sums in insurer.deposited().items() if key[0] == "A-1")
                assert total == (20_000, 1), order
            finally:
                insurer.database.close()


def test_one_number_with_another_person_or_product_is_another_policy(insurer: Insurer) -> None:
    others = [event(), event(whom=2), event(product="term_life"), event(number="a-1"), event(number="A-1 ")]
    assert insurer.apply(*others) == [ACCEPTED] * 5
    assert insurer.apply(cancel()) == [CORRECTED]
    assert sum(amount for amount, _ in insurer.deposited().values()) == 4 * A_MILLION


def test_the_largest_amounts_and_the_first_and_last_day_are_kept_exactly(insurer: Insurer) -> None:
    cap = insurer.party.manifest.terms.deposit_cap
    first = dt.date.fromordinal(china_day(IMPORT_NOW) - MAX_WINDOW_DAYS - SPARE_DAYS)
    for number, day in (("first", first), ("last", dt.date.max)):
        issue, up, down = (event(amount=amount, day=day, number=number) for amount in (1, cap, 1))
        insurer.apply(issue, replace(up, event=Event.AMEND), replace(down, event=Event.AMEND, day=max(day, LATER)))
    amounts = [(entry.day, entry.amount) for _, entry in insurer.entries()]
    days = (first.toordinal(), dt.date.max.toordinal())
    assert amounts == [(day, amount) for day in days for amount in (1, cap - 1, 1 - cap)]


@pytest.mark.parametrize("days", [1, 1_000, None])
def test_what_no_window_reaches_any_more_is_on_record_and_not_deposited(insurer: Insurer, days: int | None) -> None:
    recent = dt.date.fromordinal(china_day(IMPORT_NOW) - MAX_WINDOW_DAYS - SPARE_DAYS)
    day = dt.date.min if days is None else recent - dt.timedelta(days=days)
    old = [event(day=day, amount=1), replace(event(day=day), event=Event.AMEND, amount=7), cancel()]
    assert insurer.apply(*old, event(day=recent, number="B")) == [ACCEPTED, CORRECTED, CORRECTED, ACCEPTED]
    assert [entry.day for _, entry in insurer.entries()] == [recent.toordinal()]
    records = {record.policy_number: (record.day, record.current, record.cancelled) for record in insurer.records()}
    assert records == {"A-1": (day.toordinal(), 0, 1), "B": (recent.toordinal(), A_MILLION, 0)}
    assert insurer.apply(*old) == [REPEATED] * 3


def test_results_stand_in_the_order_of_the_events_whatever_is_refused_between(insurer: Insurer) -> None:
    events = [amend(5, number="B"), event(), cancel(), amend(5), event(whom=2), cancel(), event(amount=1)]
    assert insurer.apply(*events) == [
        "policy-unknown",
        ACCEPTED,
        CORRECTED,
        "policy-cancelled",
        ACCEPTED,
        REPEATED,
        "policy-conflict",
    ]


# --- against a plain model -----------------------------------------------------------------------------------------

EVENTS = st.builds(
    PolicyEvent,
    st.sampled_from(["A", "B"]),
    st.sampled_from([person(1), person(2)]),
    st.sampled_from(["accident", "accident", "term_life"]),
    st.sampled_from([Event.ISSUE, Event.AMEND, Event.AMEND, Event.CANCEL]),
    st.integers(1, 4).map(lambda tens: tens * 10),
    st.sampled_from([ISSUED_ON, LATER]),
)


@dataclass
class PlainPolicy:
    issued: int
    day: dt.date
    current: int
    events: int = 1
    cancelled: bool = False
    corrected_on: dt.date = dt.date.min


def plain_model(
    events: Sequence[PolicyEvent], *, in_order: bool = False
) -> dict[tuple[str, Identity, str], PlainPolicy]:
    """Return what policies are worth after events, of which one that says what an earlier one said is its repeat.

    Of a file, whose amendments are `in_order`, one as of a day before the last amendment's is superseded.
    """
    policies: dict[tuple[str, Identity, str], PlainPolicy] = {}
    applied = set()
    for item in events:
        key = (item.policy_number, item.insured, item.product)
        meaning = (key, item.event, item.day, item.event is not Event.CANCEL and item.amount)
        policy = policies.get(key)
        if meaning in applied:
            continue
        if policy is None:
            if item.event is Event.ISSUE:
                policies[key] = PlainPolicy(item.amount, item.day, item.amount)
                applied.add(meaning)
        elif item.event is not Event.ISSUE and not policy.cancelled:
            cancelled = item.event is Event.CANCEL
            changes = cancelled or item.amount != policy.current
            if changes and not cancelled:
                if in_order and item.day < policy.corrected_on:
                    continue
                policy.corrected_on = max(policy.corrected_on, item.day)
            applied.add(meaning)
            policy.events += changes
            policy.current, policy.cancelled = (0, True) if cancelled else (item.amount, False)
    return policies


def test_any_sequence_of_events_is_deposited_as_a_plain_sum_says(database: str) -> None:
    insurer = Insurer.open(database)

    @deterministic(80)
    @given(st.lists(st.lists(EVENTS, max_size=6), max_size=5))
    def holds(chunks: list[list[PolicyEvent]]) -> None:
        insurer.clear()
        results = [insurer.apply(*chunk) for chunk in chunks]
        events = [item for chunk in chunks for item in chunk]
        assert [len(result) for result in results] == [len(chunk) for chunk in chunks]
        expected = plain_model(events)
        sums = {key: (policy.current, int(not policy.cancelled)) for key, policy in expected.items()}
        assert insurer.deposited() == sums
        assert len(insurer.entries()) == sum(policy.events for policy in expected.values())
        days = {key: policy.day.toordinal() for key, policy in expected.items()}
        numbers = {record.issue_id: record.policy_number for record in insurer.records()}
        for deposit_id, entry in insurer.entries():
            assert entry.day == days[numbers[entry.earlier or deposit_id], entry.identity, entry.product]
        # All of it once more changes nothing, unless something was refused for want of its issue.
        unknown = any("policy-unknown" in result for result in results)
        before = insurer.deposited()
        for chunk in chunks:
            again = insurer.apply(*chunk)
            assert unknown or not {ACCEPTED, CORRECTED} & set(again)
        assert unknown or insurer.deposited() == before

    try:
        holds()
    finally:
        insurer.database.close()


def test_any_file_imported_again_changes_nothing_whatever_the_order_of_its_rows(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "ROWS_A_TRANSACTION", 3)
    insurer = Insurer.open(database)

    @deterministic(60)
    @given(st.lists(EVENTS, min_size=1, max_size=12))
    def holds(rows: list[PolicyEvent]) -> None:
        insurer.clear()
        file = write(tmp_path / "policies.csv", rows)
        counts = insurer.import_files(file)
        assert sum(counts.values()) == len(rows)
        deposited, entries = insurer.deposited(), insurer.entries()
        # What corrects a policy above its issue is applied last.
        issued, waits, known = [], [], set()
        for item in rows:
            key = (item.policy_number, item.insured, item.product)
            known |= {key} if item.event is Event.ISSUE else set()
            (issued if key in known else waits).append(item)
        expected = plain_model(issued + waits, in_order=True)
        assert deposited == {key: (policy.current, int(not policy.cancelled)) for key, policy in expected.items()}
        again = insurer.import_files(file)
        assert (
            again == Counter({"rejected": counts["rejected"], "repeated": len(rows) - counts["rejected"]}) - Counter()
        )
        assert (insurer.deposited(), insurer.entries()) == (deposited, entries)

    try:
        holds()
    finally:
        insurer.database.close()


def test_every_policy_number_that_a_file_may_hold_can_be_kept(insurer: Insurer, tmp_path: Path) -> None:
    rare = "\U00020000" * MAX_POLICY_NUMBER_CHARACTERS
    file = write(tmp_path / "policies.csv", [event(), event(number=rare)])
    rows = list(read_policies(file, products=frozenset({"accident"}), maximum=A_MILLION))
    assert all(isinstance(row, PolicyRow) for row in rows)  # the intake takes it
    assert insurer.import_files(file) == Counter({"accepted": 2})


# --- several at once -----------------------------------------------------------------------------------------------


def some_policies(count: int) -> list[PolicyEvent]:
    issues = [event(number=f"N-{number}", whom=number % 40, amount=100 + number) for number in range(count)]
    amendments = [replace(item, event=Event.AMEND, amount=item.amount * 2, day=LATER) for item in issues[::3]]
    return issues + amendments


def test_one_file_imported_by_several_at_once_counts_once(database: str, tmp_path: Path) -> None:
    file = write(tmp_path / "policies.csv", some_policies(60))
    insurers = [Insurer.open(database) for _ in range(4)]
    start = threading.Barrier(len(insurers))

    def run(insurer: Insurer) -> Counter[str]:
        start.wait()
        return insurer.import_files(file)

    try:
        with ThreadPoolExecutor(len(insurers)) as pool:
            counts = sum(pool.map(run, insurers), Counter[str]())
        assert counts == Counter({"accepted": 60, "corrected": 20, "repeated": 3 * 80})
        assert len(insurers[0].entries()) == 80
        assert sum(amount for amount, _ in insurers[0].deposited().values()) == sum(
            policy.current for policy in plain_model(some_policies(60)).values()
        )
    finally:
        for insurer in insurers:
            insurer.database.close()


PROGRAM = """
import sys
from pathlib import Path
from test_store_register import Insurer
insurer = Insurer.open(sys.stdin.readline().strip())
print("ready", flush=True)
sys.stdin.readline()
counts = insurer.import_files(Path(sys.argv[1]))
insurer.database.close()
print(counts["accepted"], counts["corrected"], counts["repeated"], counts["rejected"])
"""


def test_one_file_imported_by_two_processes_at_once_counts_once(insurer: Insurer, tmp_path: Path) -> None:
    file = write(tmp_path / "policies.csv", some_policies(60))
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(file)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parent}
    with (
        subprocess.Popen(command, **options) as one,  # type: ignore[call-overload]
        subprocess.Popen(command, **options) as two,  # type: ignore[call-overload]
    ):
        for process in (one, two):
            process.stdin.write(insurer.database._pool.conninfo + "\n")
            process.stdin.flush()
        assert [process.stdout.readline() for process in (one, two)] == ["ready\n"] * 2
        outputs = [process.communicate("\n", timeout=60)[0] for process in (one, two)]
    assert [sum(column) for column in zip(*(map(int, output.split()) for output in outputs), strict=True)] == [
        60,
        20,
        80,
        0,
    ]
    assert len(insurer.entries()) == 80


def test_policies_imported_forwards_and_backwards_at_once_do_not_lock_each_other_up(
    insurer: Insurer, another: Insurer, caplog: pytest.LogCaptureFixture
) -> None:
    events = [event(number=f"N-{number}", whom=number) for number in range(9)]
    lock = int.from_bytes(insurer.register.policy_key(events[4])[:8], "big", signed=True)
    deadline = time.monotonic() + 20
    conninfo = insurer.database._pool.conninfo
    with psycopg.connect(conninfo, autocommit=True) as third, ThreadPoolExecutor(2) as pool:
        third.execute("SELECT pg_advisory_lock(%s)", (lock,))  # so that both come as far as they can
        results = [
            pool.submit(each.register.apply, rows) for each, rows in ((insurer, events), (another, events[::-1]))
        ]
        while third.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() != (2,):
            assert time.monotonic() < deadline
        third.execute("SELECT pg_advisory_unlock(%s)", (lock,))
        assert Counter(outcome for result in results for outcome in result.result()) == Counter(
            {ACCEPTED: len(events), REPEATED: len(events)}
        )
    assert len(insurer.entries()) == len(events)
    assert [record.getMessage() for record in caplog.records] == []  # neither was given up for the other and retried


# --- crashes -------------------------------------------------------------------------------------------------------


def kill_connections(dsn: str) -> None:
    """End every connection of an agent to the database, and wait until they are gone."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'insurer-agent'"
        )


@dataclass
class Crashing:
    """A source of random bytes, of which an event takes one draw or more, with something that happens at some draws."""

    crash: Callable[[], object]
    at: range
    draws: int = 0

    def __call__(self, count: int, /) -> bytes:
        self.draws += 1
        if self.draws in self.at:
            self.crash()
        return secrets.token_bytes(count)


class CrashError(Exception):
    """Nothing that the product knows."""


def crash() -> None:
    raise CrashError


EVENTS_TO_CRASH = [event(), amend(5), event(number="B"), event(number="C")]


@pytest.fixture
def before(insurer: Insurer) -> tuple[object, ...]:
    insurer.apply(event(number="before"), amend(7, number="before"))
    return insurer.state(), insurer.entries(), insurer.records()


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_crash_in_the_middle_changes_neither_register_nor_outbox(
    insurer: Insurer, before: tuple[object, ...], at: int
) -> None:
    crashing = Crashing(crash, range(at, at + 1))
    register = Register(insurer.database, insurer.vault, insurer.party, crashing, clock)
    with pytest.raises(CrashError):
        register.apply(EVENTS_TO_CRASH)
    assert (insurer.state(), insurer.entries(), insurer.records()) == before
    assert insurer.apply(*EVENTS_TO_CRASH) == [ACCEPTED, CORRECTED, ACCEPTED, ACCEPTED]


def test_events_that_stop_coming_in_the_middle_change_nothing(insurer: Insurer, before: tuple[object, ...]) -> None:
    class Broken(list[PolicyEvent]):
        def __iter__(self) -> Iterator[PolicyEvent]:
            yield event()
            raise CrashError

    with pytest.raises(CrashError):
        insurer.register.apply(Broken())
    assert (insurer.state(), insurer.entries(), insurer.records()) == before


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_transaction_whose_connection_dies_is_done_once_on_another(
    database: str, insurer: Insurer, before: tuple[object, ...], at: int
) -> None:
    crashing = Crashing(lambda: kill_connections(database), range(at, at + 1))
    register = Register(insurer.database, insurer.vault, insurer.party, crashing, clock)
    assert register.apply(EVENTS_TO_CRASH) == [ACCEPTED, CORRECTED, ACCEPTED, ACCEPTED]
    assert len(insurer.entries()) == len(cast("list[object]", before[1])) + 4
    assert insurer.deposited()["A-1", person(1), "accident"] == (5, 1)


def test_a_transaction_whose_connections_all_die_changes_nothing(
    database: str, insurer: Insurer, another: Insurer, before: tuple[object, ...]
) -> None:
    crashing = Crashing(lambda: kill_connections(database), range(1, 1_000))
    register = Register(insurer.database, insurer.vault, insurer.party, crashing, clock)
    with pytest.raises(Problem) as problem:
        register.apply(EVENTS_TO_CRASH)
    assert (problem.value.status, problem.value.code) == (503, "database-unavailable")
    assert (another.state(), another.entries(), another.records()) == before


# --- what stands in the tables -------------------------------------------------------------------------------------


def dumped(database: Database) -> bytes:
    """Return all that stands in all tables: as PostgreSQL shows it, and byte strings as they are."""

    def transaction(connection: Rows) -> bytes:
        pieces = []
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            for line in connection.execute(f"SELECT t::text, t.* FROM {table} t".encode()):  # noqa: S608
                pieces += [bytes(cell) if isinstance(cell, bytes | memoryview) else str(cell).encode() for cell in line]
        return b"\n".join(pieces)

    return database.run("dump", transaction)


def spellings(value: bytes) -> list[bytes]:
    """Return the ways in which a byte string might stand in a dump."""
    return [value, value[::-1], value.hex().encode(), value.hex().upper().encode()]


def test_no_policy_and_no_person_stands_in_clear_in_any_table(insurer: Insurer) -> None:
    amounts = (123_456_789_01, 876_543_210_98)
    issued = PolicyEvent("CANARY-77", person(31), "accident", Event.ISSUE, amounts[0], ISSUED_ON)
    insurer.apply(issued, replace(issued, event=Event.AMEND, amount=amounts[1]))
    had = dumped(insurer.database)
    for deposit_id, _ in insurer.entries():
        assert deposit_id in had  # so a dump does show what stands there
    for secret in (b"CANARY-77", b"CANARY", person(31).number.encode(), person(31).encode()):
        assert [spelling for spelling in spellings(secret) if spelling in had] == []
    for amount in (*amounts, amounts[1] - amounts[0]):
        words = [*spellings(amount.to_bytes(6, "big")), str(amount).encode(), str(amount // 100).encode()]
        assert [word for word in words if word in had] == []


def test_what_was_sealed_for_one_policy_does_not_open_for_another(insurer: Insurer) -> None:
    insurer.apply(event(), event(number="B"))
    swap = "UPDATE policy a SET sealed = b.sealed FROM policy b WHERE a.policy_key <> b.policy_key"
    insurer.database.run("tamper", lambda connection: connection.execute(swap.encode()))
    for number in ("A-1", "B"):
        with pytest.raises(VaultError):
            insurer.apply(amend(5, number=number))
    with pytest.raises(VaultError):
        insurer.records()


def test_two_insurers_find_nothing_in_common_in_their_registers(insurer: Insurer) -> None:
    vault = Vault(Secret(seeded("another key")(32)), "register", secrets.token_bytes)
    other = replace(
        insurer, vault=vault, register=Register(insurer.database, vault, WORLD.party(2), secrets.token_bytes)
    )
    other = replace(other, outbox=Outbox(insurer.database, vault))
    assert name(2) != insurer.party.id
    for each in (insurer, other):
        assert each.apply(event()) == [ACCEPTED]  # the same policy in one database: neither knows the other's

    def transaction(connection: Rows) -> list[bytes]:
        query = "SELECT policy_key FROM policy UNION ALL SELECT fingerprint FROM policy_row"
        query += " UNION ALL SELECT DISTINCT person_key FROM deposit"
        return [bytes(key) for (key,) in connection.execute(query.encode())]

    keys = insurer.database.run("keys", transaction)
    pieces = [key[at : at + 8] for key in keys for at in range(len(key) - 7)]
    assert len(keys) == 6
    assert len(set(pieces)) == len(pieces)
