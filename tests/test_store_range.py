"""What a range check judges in PostgreSQL: whole or not at all, one at a time, and under a header once."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from test_store_custody import (
    A_DAY,
    EPOCH,
    TICK_SECONDS,
    VAULT,
    at_once,
    code_of,
    commit_of,
    count,
    deposit_id,
    dumped,
    judged,
    plain,
    prepare,
    proof_of,
    proposed,
)

from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.custody_deposits import KEEP_ATTEMPTS_DAYS
from insurer_agent.store.database import Database, Rows
from protocol.custody import AHEAD_DAYS, KEPT_DAYS, PENDING_SECONDS, Custody, MemoryCustody, RangeAttempt
from protocol.messages import AMENDMENT, Commit
from transport.problems import Problem

T = TypeVar("T")
DAY_SECONDS = 86_400


@pytest.fixture
def store(database: str) -> Iterator[Database]:
    opened = Database(database, size=4)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def custody(store: Database) -> PostgresCustody:
    return PostgresCustody(store, VAULT, TICK_SECONDS, EPOCH)


def attempt(number: int, *, today: int = A_DAY, first: int = A_DAY - 400) -> RangeAttempt:
    return RangeAttempt(number.to_bytes(32, "big"), today, first)


# --- whole or not at all -------------------------------------------------------------------------------------------


class Cut:
    """A connection whose server process is ended before one of its statements."""

    def __init__(self, connection: Rows, dsn: str, before: Iterator[bool]) -> None:
        self._connection, self._dsn, self._before = connection, dsn, before

    def _cut(self) -> None:
        if next(self._before):
            with psycopg.connect(self._dsn, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 10000)", (self._connection.info.backend_pid,))

    def execute(self, *arguments: Any) -> Any:  # noqa: ANN401  as of a connection
        self._cut()
        return self._connection.execute(*arguments)

    def cursor(self) -> Any:  # noqa: ANN401  as of a connection
        self._cut()
        return self._connection.cursor()


class CutDatabase(Database):
    """Loses the connection before the statement with this number of a transaction, each time or the first time."""

    def __init__(self, dsn: str, at: int, *, always: bool) -> None:
        super().__init__(dsn, size=1)
        self._dsn, self._at, self._always = dsn, at, always
        self.tries = self.cuts = 0

    def run(self, name: str, transaction: Callable[[Rows], T], *, snapshot: bool = False) -> T:
        def cut(connection: Rows) -> T:
            self.tries += 1
            return transaction(Cut(connection, self._dsn, self._statements()))  # type: ignore[arg-type]

        return super().run(name, cut, snapshot=snapshot)

    def _statements(self) -> Iterator[bool]:
        number = 0
        while True:
            ends = number == self._at and (self._always or self.tries == 1)
            self.cuts += ends
            number += 1
            yield ends


PREPARED = [proposed(number, whom=number % 2) for number in range(3)]
NEW = [proposed(7), proposed(8, kind=AMENDMENT, earlier=deposit_id(0)), PREPARED[1]]


def steps(custody: Custody) -> list[Callable[[], object]]:
    return [
        lambda: judged(custody.prepare(NEW, 10.0, attempt(2))),
        lambda: plain(custody.commit("insurer-01", 0, [commit_of(PREPARED[0], 3), commit_of(PREPARED[1], 5)])),
        lambda: plain(custody.abandon("insurer-01", 0, [deposit_id(1), deposit_id(2), deposit_id(9)], 10.0)),
    ]


def begin(custody: Custody) -> None:
    custody.prepare(PREPARED, 0.0, attempt(1))
    custody.commit("insurer-01", 0, [commit_of(PREPARED[0], 4)])


def clear(store: Database) -> None:
    tables = "custody_row, custody_pending, custody_stamp, custody_own_stamp, range_attempt"
    store.run("clear", lambda connection: connection.execute(f"TRUNCATE {tables}".encode()))


def come_to(lost: CutDatabase, step: int) -> object:
    """Return what a step comes to over a connection that ends, or the code of the fault that it is told as."""
    try:
        return steps(PostgresCustody(lost, VAULT, TICK_SECONDS, EPOCH))[step]()
    except Problem as problem:
        return problem.code
    finally:
        lost.close()


@pytest.mark.parametrize("step", [0, 1, 2], ids=["prepare", "commit", "abandon"])
def test_a_connection_that_ends_between_any_two_statements_leaves_nothing_half_done(
    database: str, store: Database, custody: PostgresCustody, step: int
) -> None:
    memory = MemoryCustody()
    begin(memory)
    expected = steps(memory)[step]()
    for at in itertools.count():
        clear(store)
        begin(custody)
        before = dumped(store)
        lost = CutDatabase(database, at, always=True)
        result = come_to(lost, step)
        if not lost.cuts:  # a transaction has no more statements
            assert result == expected
            break
        assert (result, lost.cuts) == ("database-unavailable", 2)
        assert dumped(store) == before
        once = CutDatabase(database, at, always=False)
        assert come_to(once, step) == expected
        assert (once.cuts, once.tries) == (1, 2)
        assert plain(custody.commit("insurer-01", 0, [commit_of(PREPARED[0], 4)]))[0].tick == (3 if step == 1 else 4)
    assert at >= 3


# --- one at a time -------------------------------------------------------------------------------------------------

ROUNDS = 6
PROGRAM = """
import sys
from test_store_custody import EPOCH, TICK_SECONDS, VAULT, proposed
from test_store_range import ROUNDS, attempt
from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.database import Database
database = Database(sys.stdin.readline().strip(), size=1)
custody, place = PostgresCustody(database, VAULT, TICK_SECONDS, EPOCH), int(sys.argv[1])
print("ready", flush=True)
for number in range(ROUNDS):
    sys.stdin.readline()
    mine = 2 * number + place
    base = custody.prepare([proposed(mine, whom=number)], 0.0, attempt(mine)).base
    print(int(base.deposits[0].alone), len(base.deposits[0].rows), flush=True)
database.close()
"""


def test_of_two_processes_that_prepare_for_one_person_at_once_one_finds_it_alone(store: Database) -> None:
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    here = Path(__file__).parent
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    with (
        subprocess.Popen([*command, "0"], **options, cwd=here) as one,
        subprocess.Popen([*command, "1"], **options, cwd=here) as two,
    ):
        both = (one, two)

        def say(line: str) -> None:
            for process in both:
                assert process.stdin is not None
                process.stdin.write(line + "\n")
                process.stdin.flush()

        def hear() -> list[str]:
            return [process.stdout.readline() for process in both if process.stdout is not None]

        say(store._pool.conninfo)
        assert hear() == ["ready\n"] * 2
        for _ in range(ROUNDS):
            say("")
            assert sorted(hear()) == ["0 1\n", "1 1\n"]
    assert (one.returncode, two.returncode) == (0, 0)


def test_of_many_range_checks_under_one_header_at_once_one_is_garbled(
    store: Database, custody: PostgresCustody
) -> None:
    asked = [
        lambda number=number: code_of(lambda: custody.prepare([proposed(number)], 0.0, attempt(1)))
        for number in range(4)
    ]
    assert Counter(at_once(asked)) == Counter({None: 1, "replayed": 3})
    assert count(store, "SELECT count(*) FROM custody_pending") == 1  # a call that is refused keeps nothing


def test_a_call_with_a_refused_deposit_is_recorded_and_judges_nothing(custody: PostgresCustody) -> None:
    prepare(custody, [proposed(1)])
    batch = [proposed(2), proposed(1, envelope_hash=bytes([1] * 32))]
    preparation = custody.prepare(batch, 0.0, attempt(1))
    assert plain(preparation.kept)[1] == "deposit-reused"
    assert preparation.base is None
    assert code_of(lambda: custody.prepare(batch[:1], 0.0, attempt(1))) == "replayed"


# --- on record -----------------------------------------------------------------------------------------------------


def test_a_header_is_on_record_before_its_base_is_told_and_refused_ever_after(
    database: str, store: Database, custody: PostgresCustody
) -> None:
    heads = itertools.count()
    base = custody.prepare([proposed(1)], 0.0, attempt(next(heads))).base
    assert base is not None
    assert count(store, "SELECT count(*) FROM range_attempt") == 1
    restarted = Database(database, size=1)
    try:
        restarted.migrate()
        after = PostgresCustody(restarted, VAULT, TICK_SECONDS, EPOCH)
        for items in ([proposed(1)], [proposed(2, depositor="insurer-03")]):
            assert code_of(lambda items=items: after.prepare(items, 0.0, attempt(0))) == "replayed"  # type: ignore[misc]
        assert after.prepare([proposed(1)], 0.0, attempt(next(heads))).base == base
    finally:
        restarted.close()


def test_records_of_range_checks_are_forgotten_when_they_can_no_longer_be_fresh(
    store: Database, custody: PostgresCustody
) -> None:
    custody.prepare([proposed(1)], 0.0, attempt(1))
    custody.forget_old_deposits(A_DAY + KEEP_ATTEMPTS_DAYS, 0.0)
    assert code_of(lambda: custody.prepare([proposed(1)], 0.0, attempt(1))) == "replayed"
    custody.forget_old_deposits(A_DAY + KEEP_ATTEMPTS_DAYS + 1, 0.0)
    assert count(store, "SELECT count(*) FROM range_attempt") == 0


def test_what_is_pending_is_forgotten_after_the_days_that_rows_are_kept_and_what_was_given_up_later(
    store: Database, custody: PostgresCustody
) -> None:
    custody.prepare([proposed(1), proposed(2)], 0.0)
    custody.abandon("insurer-01", 0, [deposit_id(2)], DAY_SECONDS)
    pending, never = KEPT_DAYS * DAY_SECONDS, (KEPT_DAYS + AHEAD_DAYS + 1) * DAY_SECONDS
    left = []
    for now in (pending, pending + 1, never, never + 1):
        custody.forget_old_deposits(A_DAY, float(now))
        left.append(count(store, "SELECT count(*) FROM custody_pending"))
    assert left == [2, 1, 1, 0]


@pytest.mark.parametrize("later", [0, PENDING_SECONDS - 1, PENDING_SECONDS])
def test_a_pending_deposit_keeps_others_from_being_judged_for_a_day_after_it_was_last_asked_for(
    custody: PostgresCustody, later: int
) -> None:
    for stored in (MemoryCustody(), custody):
        stored.prepare([proposed(1)], 0.0)
        stored.prepare([proposed(1)], 50.0)
        base = stored.prepare([proposed(2)], 50.0 + later, attempt(1)).base
        assert base is not None
        assert base.deposits[0].alone == (later == PENDING_SECONDS)


def test_what_a_range_check_passed_over_is_given_up_once_what_it_judged_is_committed_under_its_header(
    custody: PostgresCustody,
) -> None:
    lost, of_another, judged_now = proposed(1), proposed(2, whom=1), proposed(3)
    for stored in (MemoryCustody(), custody):
        stored.prepare([lost, of_another], 0.0)
        stored.prepare([judged_now, proposed(4, whom=1)], float(PENDING_SECONDS), attempt(1))
        stored.prepare([judged_now], float(PENDING_SECONDS), attempt(2))
        number = judged_now.deposit_id
        # Under a header that this holder did not judge: it may lack what the others have.
        stored.prepare([proposed(5, whom=2)], 0.0)
        stored.commit("insurer-01", 0, [Commit(deposit_id(5), 1, proof_of(deposit_id(5), header=bytes([9] * 32)))])
        assert plain(stored.prepare([lost], float(PENDING_SECONDS)).kept) == plain(stored.prepare([lost], 0.0).kept)
        stored.commit("insurer-01", 0, [Commit(number, 1, proof_of(number, header=attempt(1).header_hash))])
        assert plain(stored.prepare([lost, of_another], 0.0).kept)[0] == "deposit-abandoned"
        assert plain(stored.prepare([of_another], 0.0).kept) != ["deposit-abandoned"]
        assert plain(stored.commit("insurer-01", 0, [commit_of(lost, 2)])) == ["not-prepared"]


def test_what_was_judged_without_what_has_been_committed_since_is_refused(custody: PostgresCustody) -> None:
    lost, judged_now = proposed(1), proposed(3)
    for stored in (MemoryCustody(), custody):
        stored.prepare([lost], 0.0)
        stored.prepare([judged_now], float(PENDING_SECONDS), attempt(1))
        number, header = judged_now.deposit_id, attempt(1).header_hash
        under = Commit(number, 2, proof_of(number, header=header))
        assert plain(stored.commit("insurer-01", 0, [commit_of(lost, 1), under]))[1] == "range-not-shown"
        assert plain(stored.commit("insurer-01", 0, [under])) == ["range-not-shown"]
    again = [proposed(5, whom=1), proposed(6, whom=1)]
    for stored in (MemoryCustody(), custody):
        stored.prepare(again[:1], 0.0)
        stored.prepare(again[1:], float(PENDING_SECONDS), attempt(2))
        number, header = again[1].deposit_id, attempt(2).header_hash
        commits = [Commit(number, 2, proof_of(number, header=header)), commit_of(again[0], 1)]
        assert plain(stored.commit("insurer-01", 0, commits))[1] == "not-prepared"
