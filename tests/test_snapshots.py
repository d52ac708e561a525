"""A snapshot's differences become issues, amendments and cancellations, and a broken one cancels nothing."""

import datetime as dt
import io
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from importing import Insurer
from strategies import deterministic

from insurer_agent.intake.policy import Event
from insurer_agent.intake.policy_file import PolicyFile
from insurer_agent.intake.profile import Profile
from insurer_agent.snapshot_import import import_snapshot
from insurer_agent.store import snapshots
from insurer_agent.store.database import Rows
from insurer_agent.store.locks import Lock
from insurer_agent.store.register import PolicyEvent, PolicyName
from insurer_agent.store.snapshots import Change, Snapshot
from insurer_agent.store.vault import Vault
from protocol.identity import DocumentType, Identity
from protocol.secret import Secret
from transport.problems import Problem

if TYPE_CHECKING:
    from insurer_agent.agent import Agent

HEADER = "policy_number,document_type,document_number,product,insured_amount,issued_on\n"
BAD = "A-9,passport,E12345678,accident,abc,2026-11-03\n"
UNREADABLE = '"unclosed,passport\n'


def insured(number: int) -> Identity:
    return Identity(DocumentType.PASSPORT, f"E{number:07d}")


def line(number: int, amount: int, day: str = "2026-11-03") -> str:
    return f"A-{number},passport,E{number:07d},accident,{amount}.00,{day}\n"


@dataclass
class House:
    """An insurer that sends snapshots."""

    insurer: Insurer
    file: Path
    told: str = ""

    def snapshot(self, name: str = "daily") -> Snapshot:
        vault = Vault(Secret(bytes(range(32))), "register", secrets.token_bytes)
        return Snapshot(name, self.insurer.database, vault, self.insurer.register)

    def send(self, *lines: str, name: str = "daily", most: int | None = 20) -> Counter[str]:
        self.file.write_text(HEADER + "".join(lines), encoding="utf-8")
        report = io.StringIO()
        agent = cast("Agent", self.insurer)
        counts = import_snapshot(agent, self.file, self.snapshot(name), report, most_percent=most)
        self.told = report.getvalue()
        return counts

    def in_force(self) -> dict[int, int]:
        """Return the yuan in force by number, of those policies that were ever issued."""
        found = {}
        for number in range(40):
            for state in self.insurer.register.find(PolicyName(f"A-{number}", insured(number))):
                found[number] = state.record.current // 100
        return found

    def deposits(self) -> int:
        return self.insurer.outbox.backlog().unmade


@pytest.fixture
def house(database: str, tmp_path: Path) -> Iterator[House]:
    insurer = Insurer.open(database)
    yield House(insurer, tmp_path / "snapshot.csv")
    insurer.database.close()


TEN = [line(number, 100) for number in range(10)]


def test_differences_become_issues_amendments_and_cancellations(house: House) -> None:
    assert house.send(*TEN) == Counter({"accepted": 10})
    assert house.send(*TEN) == Counter({"repeated": 10})
    assert house.deposits() == 10
    counts = house.send(*TEN[1:8], line(8, 250), line(9, 100), line(10, 5))
    assert counts == Counter({"accepted": 1, "corrected": 1, "repeated": 8, "cancelled": 1})
    assert house.in_force() == {0: 0, **dict.fromkeys(range(1, 8), 100), 8: 250, 9: 100, 10: 5}
    assert house.deposits() == 13
    assert house.send(*TEN[1:8], line(8, 100), line(9, 100), line(10, 5))["corrected"] == 1  # back, on another day
    assert house.in_force()[8] == 100


def test_a_snapshot_that_would_cancel_too_much_changes_nothing_unless_allowed(house: House) -> None:
    house.send(*TEN)
    before = (house.in_force(), house.deposits())
    for lines in (TEN[3:], [], [line(20, 7)], [*TEN[3:], line(20, 7)]):
        assert house.send(*lines)["rejected files"] == 1
        assert "snapshot-incomplete" in house.told
        assert (house.in_force(), house.deposits()) == before
    assert house.send(*TEN[2:]) == Counter({"repeated": 8, "cancelled": 2})  # 20 percent is not more
    assert house.send(*TEN[9:], most=None) == Counter({"repeated": 1, "cancelled": 7})


def test_a_row_that_is_rejected_does_not_look_missing(house: House) -> None:
    house.send(*TEN)
    assert house.send(*TEN[:9], BAD) == Counter({"repeated": 9, "rejected": 1})
    assert house.in_force()[9] == 100
    assert house.send(*TEN[:8], UNREADABLE, BAD, most=50) == Counter({"repeated": 8, "rejected": 2})
    assert house.in_force()[8] == 100  # it may be the one that cannot be read
    assert "nothing is cancelled: 1 rejected rows" in house.told
    assert house.send(*TEN[:8], BAD)["cancelled"] == 1
    assert house.in_force()[8] == 0


def test_policies_of_files_rest_and_other_snapshots_are_not_touched(house: House) -> None:
    event = PolicyEvent("A-30", insured(30), "accident", Event.ISSUE, 700, dt.date(2026, 11, 3))
    house.insurer.register.apply([event])
    house.send(*TEN[:5], name="east")
    house.send(*TEN[5:], name="west")
    assert house.send(*TEN[:5], name="east") == Counter({"repeated": 5})
    assert house.in_force() == {**dict.fromkeys(range(10), 100), 30: 7}


def test_a_policy_that_moves_to_another_snapshot_is_not_cancelled(house: House) -> None:
    house.send(*TEN, name="old")
    house.send(*TEN[8:], name="new")
    assert house.send(*TEN[:8], name="old") == Counter({"repeated": 8})
    assert house.in_force() == dict.fromkeys(range(10), 100)
    assert house.send(*TEN[8:], name="new") == Counter({"repeated": 2})
    assert house.send(*TEN[9:], name="new", most=50)["cancelled"] == 1  # there it is missing now
    assert house.in_force()[8] == 0


def test_nothing_is_cancelled_where_a_rejected_row_names_no_known_policy(house: House) -> None:
    house.send(*TEN)
    misspelt = "9E+10,passport,E0000009,accident,x,2026-11-03\n"
    assert house.send(*TEN[:9], misspelt) == Counter({"repeated": 9, "rejected": 1})
    assert house.in_force()[9] == 100


def test_a_snapshot_goes_on_beside_an_agent_that_sends_deposits(house: House, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (Lock.DEPOSITS,))
        assert house.send(*TEN)["accepted"] == 10


def test_a_snapshot_takes_over_a_policy_that_a_file_has_issued(house: House) -> None:
    event = PolicyEvent("A-1", insured(1), "accident", Event.ISSUE, 700, dt.date(2026, 11, 3))
    house.insurer.register.apply([event])
    assert house.send(*TEN) == Counter({"accepted": 9, "corrected": 1})
    assert house.send(TEN[0], *TEN[2:])["cancelled"] == 1


def test_what_a_snapshot_cannot_say_is_rejected(house: House) -> None:
    house.send(*TEN)
    house.insurer.register.correct(PolicyName("A-1"), Event.CANCEL)
    counts = house.send(*TEN, line(3, 999), line(4, 100), line(5, 100, "2026-11-04"))
    assert counts == Counter({"repeated": 10, "rejected": 3})
    assert [told.split(": ")[1] for told in house.told.splitlines()[:3]] == [
        "policy-cancelled",
        "snapshot-conflict",
        "snapshot-conflict",
    ]
    assert house.send(*TEN[:5], line(5, 100, "2026-11-04"), *TEN[6:]) == Counter({"repeated": 8, "rejected": 2})
    assert "policy-conflict" in house.told
    assert house.in_force()[5] == 100


def test_a_file_that_ends_in_the_middle_changes_nothing(house: House) -> None:
    house.send(*TEN)

    def opens(path: Path, profile: Profile) -> PolicyFile:
        path.unlink(missing_ok=True)
        return PolicyFile.open(path, profile)

    report = io.StringIO()
    counts = import_snapshot(cast("Agent", house.insurer), house.file, house.snapshot(), report, opens=opens)
    assert counts == Counter({"rejected files": 1})
    assert house.in_force() == dict.fromkeys(range(10), 100)


class Killed(BaseException):
    """What a kill does, at a place."""


@pytest.mark.parametrize("transactions", range(8))
def test_a_run_that_dies_is_finished_by_the_next(
    house: House, monkeypatch: pytest.MonkeyPatch, transactions: int
) -> None:
    monkeypatch.setattr(snapshots, "CANCELLATIONS_A_TRANSACTION", 1)
    house.send(*TEN)
    wanted = [*TEN[3:9], line(9, 5), line(10, 5)]
    database, left = house.insurer.database, transactions
    run = database.run

    def dies(name: str, transaction: Callable[[Rows], object], *, snapshot: bool = False) -> object:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        return run(name, transaction, snapshot=snapshot)

    monkeypatch.setattr(database, "run", dies)
    with pytest.raises(Killed):
        house.send(*wanted, most=50)
    monkeypatch.setattr(database, "run", run)
    house.send(*wanted, most=50)
    assert house.in_force() == {0: 0, 1: 0, 2: 0, **dict.fromkeys(range(3, 9), 100), 9: 5, 10: 5}
    assert house.deposits() == 10 + 3 + 2


def test_an_event_column_is_not_looked_at(house: House) -> None:
    house.file.write_text(HEADER.replace("\n", ",event\n") + TEN[0].replace("\n", ",退保\n"), encoding="utf-8")
    for columns in ({}, {"event": "event"}):
        agent = cast("Agent", house.insurer)
        profile = Profile(columns=columns)
        import_snapshot(agent, house.file, house.snapshot(), io.StringIO(), profile=profile)
    assert house.in_force() == {0: 100}


def test_one_snapshot_at_a_time(house: House, database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (Lock.SNAPSHOT,))
        with pytest.raises(Problem, match="snapshot-under-way"):
            house.send(*TEN)


def test_the_guard_is_exact() -> None:
    assert not Change(100, 20).cancels_more_than(20)
    assert Change(100, 21).cancels_more_than(20)
    assert not Change(0, 0).cancels_more_than(0)
    assert Change(1, 1).cancels_more_than(99)


def test_the_state_shows_no_policy_and_no_name(house: House, database: str) -> None:
    house.send(*TEN, name="CANARY")
    with psycopg.connect(database) as connection:
        for query in (b"SELECT t::text FROM snapshot_policy AS t", b"SELECT t::text FROM snapshot_seen AS t"):
            rows = connection.execute(query).fetchall()
            assert len(rows) == 10
            assert not any(word in text for (text,) in rows for word in ("CANARY", b"CANARY".hex(), b"A-1".hex()))


def test_any_row_of_snapshots_leaves_what_the_last_one_says(database: str, tmp_path: Path) -> None:
    insurer = Insurer.open(database)
    house = House(insurer, tmp_path / "snapshot.csv")

    def holds(days: list[dict[int, int]]) -> None:
        insurer.clear()
        insurer.database.run("clear", lambda at: at.execute("DELETE FROM snapshot_policy"))
        gone: set[int] = set()
        last: dict[int, int] = {}
        for day in days:
            house.send(*[line(number, amount) for number, amount in day.items()], most=None)
            gone |= set(last) - set(day)
            last = {number: amount for number, amount in day.items() if number not in gone}
            assert {number: amount for number, amount in house.in_force().items() if amount} == last

    try:
        deterministic(25)(given(st.lists(st.dictionaries(st.integers(0, 5), st.integers(1, 3)), max_size=5))(holds))()
    finally:
        insurer.database.close()
