"""The outbox hands out each deposit in its turn, always as the same bytes, until it is complete."""

import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from world import NOW, TODAY, make_world, person

from insurer_agent import depositor as depositor_module
from insurer_agent.acting import Acting
from insurer_agent.depositor import Depositor
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.outbox import (
    MAX_BACKOFF_SECONDS,
    SET_ASIDE_AFTER,
    SET_ASIDE_SECONDS,
    Attempt,
    Backlog,
    Outbox,
    Outgoing,
    enqueue,
)
from insurer_agent.store.vault import Vault
from protocol.check import shard_of_person
from protocol.committee import draw_committee
from protocol.custody import Kept
from protocol.deposit import PURPOSE, Entry, MadeDeposit, _unpad, holder_slots, make_deposit, sign_batch
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import Committee, Manifest
from protocol.messages import AMENDMENT, ISSUE, DepositBatch, DepositEnvelope, DepositFacts, SignedBatch
from protocol.party import Party
from protocol.secret import Secret
from protocol.stamps import MAX_AS_OF_AGE, tick_at
from transport.peers import Peers

DAY = TODAY
WORLD = make_world()
PARTY = WORLD.party(1)
VAULT = Vault(Secret(bytes(range(32))), "register", secrets.token_bytes)
RECEIPT = Kept(7, never=False, envelope_hash=bytes(32))


@dataclass(frozen=True)
class Store:
    """An outbox with the hand that fills it and the clock that it reads."""

    database: Database
    outbox: Outbox

    @classmethod
    def open(cls, dsn: str, *, size: int = 2) -> "Store":
        database = Database(dsn, size=size)
        database.migrate()
        return cls(database, Outbox(database, VAULT))

    def put(self, *entries: Entry) -> list[bytes]:
        """Enqueue deposits in one transaction; return their ids."""
        numbers = [secrets.token_bytes(16) for _ in entries]

        def transaction(connection: Rows) -> None:
            for number, item in zip(numbers, entries, strict=True):
                enqueue(connection, VAULT, PARTY, item, number)

        self.database.run("enqueue", transaction)
        return numbers

    def due(self, limit: int = 1_000) -> list[Outgoing]:
        return self.outbox.due(limit)

    def sendable(self) -> list[Outgoing]:
        """Return what does not count yet and is due, and what counts and some holder lacks."""
        repeats = (self.outbox.repeats(lacking, 1_000) for lacking in self.outbox.lacking(PARTY.manifest))
        return self.due() + [item for found in repeats for item in found]

    def sendable_ids(self) -> list[bytes]:
        return [item.deposit_id for item in self.sendable()]

    def due_ids(self) -> list[bytes]:
        return [item.deposit_id for item in self.due()]

    def wait(self, seconds: int = 2 * MAX_BACKOFF_SECONDS) -> None:
        """Let that much time pass, as far as the outbox can tell."""
        query = "UPDATE deposit SET next_attempt_at = next_attempt_at - make_interval(secs => %s)"
        self.database.run("wait", lambda connection: connection.execute(query.encode(), (seconds,)))

    def column(self, name: str) -> list[object]:
        query = f"SELECT {name} FROM deposit ORDER BY seq"  # noqa: S608
        return self.database.run("column", lambda at: [line[0] for line in at.execute(query.encode())])

    def record(
        self, item: Outgoing, *, made: bool = False, complete: bool = False, slots: tuple[int, ...] = ()
    ) -> None:
        states = dict.fromkeys(slots, RECEIPT)
        reason = None if complete else "too-few-custodians"
        self.outbox.record([Attempt(item, states, made=made, complete=complete, reason=reason)])

    def make(self, item: Outgoing) -> MadeDeposit:
        """Make up a deposit that was handed out, and store it."""
        made = item.made or make_deposit(PARTY, item.entry or entry(0), item.deposit_id, secrets.token_bytes)
        self.outbox.store_made({} if item.made else {item.seq: made})
        return made


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store.open(database)
    yield opened
    opened.database.close()


def entry(whom: int, amount: int = 100, kind: int = ISSUE, earlier: bytes | None = None) -> Entry:
    return Entry(person(whom), kind, "accident", DAY, amount, earlier)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depositor_module, "time", SimpleNamespace(time=lambda: NOW, monotonic=time.monotonic))


# --- whose turn it is ----------------------------------------------------------------------------------------------


def test_what_was_put_in_is_handed_out_as_it_was(store: Store) -> None:
    entries = [entry(1, 1), entry(2, 10**12), entry(3, -(10**12), AMENDMENT, secrets.token_bytes(16)), entry(4, 0)]
    numbers = store.put(*entries)
    due = store.due()
    assert [item.entry for item in due] == entries
    assert [item.deposit_id for item in due] == numbers
    for item in due:
        made = make_deposit(PARTY, item.entry or entry(0), item.deposit_id, secrets.token_bytes)
        assert (item.shard, item.excluded, item.made, item.attempts) == (made.shard, made.excluded, None, 0)


def test_deposits_are_due_in_the_order_in_which_they_came(store: Store) -> None:
    numbers = [number for whom in range(6) for number in store.put(entry(2 * whom), entry(2 * whom + 1))]
    assert store.due_ids() == numbers
    assert [item.deposit_id for item in store.due(5)] == numbers[:5]
    assert store.due(0) == []


def test_those_that_wait_longest_come_first(store: Store) -> None:
    numbers = store.put(*[entry(whom) for whom in range(3)])
    first, _, _ = store.due()
    store.record(first)
    assert store.due_ids() == numbers[1:]
    store.wait()
    assert store.due_ids() == [*numbers[1:], numbers[0]]


def test_nothing_is_handed_out_for_a_person_while_an_earlier_deposit_is_unmade(store: Store) -> None:
    issue, correction, last = store.put(entry(1), entry(1, -5, AMENDMENT), entry(1, 6))
    assert store.due_ids() == [issue]
    (item,) = store.due()
    store.make(item)  # made up is not made: no holder has said that it has it
    assert store.due_ids() == [issue]
    store.record(item)
    assert store.due_ids() == []  # nor is it made by waiting for its turn
    store.wait()
    assert store.due_ids() == [issue]
    store.record(replace(item, attempts=1), made=True, slots=(0, 1, 2, 3))
    assert store.due_ids() == [correction]
    store.wait()
    (found,) = (item for item in store.due() if item.deposit_id == correction)
    store.make(found)
    store.record(found, made=True, complete=True)
    assert last in store.due_ids()


def test_nothing_new_is_handed_out_for_a_shard_while_one_of_its_deposits_was_sent_and_is_unmade(store: Store) -> None:
    shards: dict[int, list[int]] = {}
    for whom in range(40):
        shards.setdefault(shard_of_person(PARTY, person(whom)), []).append(whom)
    here, there, *_ = shards.values()
    first, second = store.put(entry(here[0]), entry(here[1]))
    assert store.due_ids() == [first, second]  # one round: neither was sent
    for item in store.due():
        store.make(item)
        store.record(item, made=item.deposit_id == second)
    third, fourth = store.put(entry(here[2]), entry(there[0]))
    assert store.sendable_ids() == [fourth, second]  # the second counts, and whoever lacks it is tried by the depositor
    store.wait()
    assert set(store.sendable_ids()) == {first, second, fourth}
    (held,) = (item for item in store.due() if item.deposit_id == first)
    store.record(held, made=True)
    assert third in store.due_ids()


def test_the_highest_tick_is_that_of_all_receipts(store: Store) -> None:
    assert store.outbox.highest_tick() == 0
    store.put(entry(1), entry(2), entry(3))
    for item, tick in zip(store.due(), (9, 12, 10), strict=True):
        states = {0: replace(RECEIPT, tick=tick), 1: RECEIPT, 2: replace(RECEIPT, tick=None, never=True)}
        store.outbox.record([Attempt(item, states, made=True)])
    assert store.outbox.highest_tick() == 12


@dataclass
class Plain:
    """What a plain list knows of a deposit."""

    number: bytes
    whom: int
    sent: bool = False
    made: bool = False
    complete: bool = False

    def may_be_sent(self, all_of_them: list["Plain"]) -> bool:
        """Tell whether it was sent before, or waits for none: of its person or, if sent, of its shard."""
        before = all_of_them[: all_of_them.index(self)]
        unmade = [other for other in before if other.whom == self.whom and not other.made]
        under_way = [other for other in all_of_them if other.sent and not other.made and other.shard == self.shard]
        return self.sent or not (unmade or under_way)

    @property
    def shard(self) -> int:
        return shard_of_person(PARTY, person(self.whom))


def test_any_course_of_things_hands_out_what_a_plain_list_says(database: str) -> None:
    store = Store.open(database)
    steps = st.one_of(
        st.tuples(st.just("put"), st.lists(st.integers(0, 5), min_size=1, max_size=3)),
        st.tuples(st.sampled_from(["refused", "made", "complete"]), st.integers(0, 4)),
    )

    @deterministic(40)
    @given(st.lists(steps, max_size=14))
    def holds(course: list[tuple[str, list[int] | int]]) -> None:
        store.database.run("clear", lambda connection: connection.execute("DELETE FROM deposit"))
        plain: list[Plain] = []
        for what, which in course:
            if isinstance(which, list):
                numbers = store.put(*[entry(whom) for whom in which])
                plain += [Plain(number, whom) for number, whom in zip(numbers, which, strict=True)]
            elif due := store.sendable():
                item = due[which % len(due)]
                (known,) = (known for known in plain if known.number == item.deposit_id)
                store.make(item)
                known.sent = True
                known.made |= what != "refused"
                known.complete = what == "complete"
                store.record(item, made=known.made, complete=known.complete)
            store.wait()
            expected = {known.number for known in plain if not known.complete and known.may_be_sent(plain)}
            assert set(store.sendable_ids()) == expected
            unmade = sum(not known.made for known in plain)
            assert store.outbox.backlog() == Backlog(unmade, sum(not known.complete for known in plain) - unmade)
            assert store.outbox.any_open() is any(not known.complete for known in plain)

    try:
        holds()
    finally:
        store.database.close()


# --- set aside ---------------------------------------------------------------------------------------------------


def refuse(store: Store, deposit_id: bytes, times: int) -> None:
    for _ in range(times):
        (item,) = (item for item in store.due() if item.deposit_id == deposit_id)
        store.make(item)
        store.outbox.record([Attempt(item, refused=True, reason="refused")])
        store.wait()


def test_what_is_refused_again_and_again_is_set_aside_and_holds_up_its_person_alone(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    here = [whom for whom in range(40) if shard_of_person(PARTY, person(whom)) == 0]
    bad, later, other = store.put(entry(here[0]), entry(here[0], -5, AMENDMENT), entry(here[1]))
    refuse(store, bad, SET_ASIDE_AFTER - 1)
    (item,) = (item for item in store.due() if item.deposit_id == bad)
    store.outbox.record([Attempt(item, reason="too-few-custodians")])  # no refusal: it counts from the beginning
    store.wait()
    refuse(store, bad, SET_ASIDE_AFTER - 1)
    assert store.outbox.backlog() == Backlog(3, 0)
    assert store.due_ids() == [bad]
    refuse(store, bad, 1)
    assert "1 deposits are refused again and again" in caplog.text
    assert store.outbox.backlog() == Backlog(3, 0, set_aside=1)
    assert store.due_ids() == [other]
    (aside,) = store.outbox.set_aside()
    assert (aside.shard, aside.attempts, aside.reason) == (0, 2 * SET_ASIDE_AFTER, "refused")
    store.wait(SET_ASIDE_SECONDS - 5 * MAX_BACKOFF_SECONDS)
    assert store.due_ids() == [other]
    store.outbox.retry_set_aside()
    assert set(store.due_ids()) == {bad, other}
    (item,) = (item for item in store.due() if item.deposit_id == bad)
    store.record(item, made=True)
    assert store.outbox.set_aside() == []
    assert store.outbox.backlog() == Backlog(2, 1)
    assert set(store.due_ids()) == {later, other}


@pytest.mark.parametrize("column", ["entry", "made"])
def test_a_damaged_row_is_set_aside_and_the_others_go_on(
    store: Store, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = store.put(entry(1), entry(2))
    if column == "made":
        store.make(store.due()[0])
    store.database.run(
        "damage",
        lambda at: at.execute(
            f"UPDATE deposit SET {column} = set_byte({column}, 20, get_byte({column}, 20) # 1) WHERE deposit_id = %s",  # noqa: S608
            (bad,),
        ),
    )
    store.due()  # finds the damage
    assert store.due_ids() == [good]
    assert "do not open" in caplog.text
    assert [item.reason for item in store.outbox.set_aside()] == ["damaged"]
    assert store.outbox.backlog() == Backlog(2, 0, set_aside=1)


def test_receipts_of_several_attempts_are_put_together(store: Store) -> None:
    store.put(entry(1))
    for slots in ((0,), (1, 2)):
        store.record(store.due()[0], slots=slots)
        store.wait()
    assert store.due()[0].receipts == {0: 7, 1: 7, 2: 7}


# --- the same bytes ------------------------------------------------------------------------------------------------


def test_a_deposit_is_made_up_once_and_handed_out_as_the_same_bytes_ever_after(database: str, store: Store) -> None:
    store.put(entry(1))
    (item,) = store.due()
    made = store.make(item)
    elsewhere = Store.open(database)
    try:
        for attempts, each in enumerate((store, elsewhere, store)):
            (again,) = each.due()
            assert (again.made, again.entry, again.attempts) == (made, None, attempts)
            each.record(again, slots=(attempts,), made=attempts > 1)
            each.wait()
    finally:
        elsewhere.database.close()


def test_the_entry_is_erased_when_the_bytes_are_stored_and_the_bytes_when_all_have_receipted(store: Store) -> None:
    store.put(entry(1))
    (item,) = store.due()
    assert [sealed is None for sealed in store.column("entry") + store.column("made")] == [False, True]
    store.make(item)
    assert [sealed is None for sealed in store.column("entry") + store.column("made")] == [True, False]
    store.record(item, made=True)
    assert [sealed is None for sealed in store.column("entry") + store.column("made")] == [True, False]
    store.record(item, made=True, complete=True)
    assert [sealed is None for sealed in store.column("entry") + store.column("made")] == [True, True]
    store.wait()
    assert store.due() == []


def test_other_bytes_never_take_the_place_of_those_stored(store: Store) -> None:
    store.put(entry(1))
    (item,) = store.due()
    made = store.make(item)
    assert item.entry is not None
    other = make_deposit(PARTY, item.entry, item.deposit_id, secrets.token_bytes)
    assert other != made
    store.outbox.store_made({item.seq: other})
    assert store.due()[0].made == made


def test_storing_nothing_is_nothing(store: Store) -> None:
    store.outbox.store_made({})
    assert store.due() == []


@dataclass
class Wire:
    """A lookup service that takes all deposits and answers none, as a depositor sees it on the wire."""

    url: str
    bodies: list[bytes] = field(default_factory=list)

    def deposits(self) -> list[bytes]:
        """Return what was sent for each deposit, in the order in which it was sent."""
        batches = [decode(DepositBatch, decode(SignedBatch, body).batch) for body in self.bodies]
        return [encode(deposit) for batch in batches for deposit in batch.deposits]

    def manifests(self) -> set[bytes]:
        """Return under which manifests batches were sent."""
        return {decode(SignedBatch, body).manifest_hash for body in self.bodies}


@pytest.fixture
def wire() -> Iterator[Wire]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        seen = Wire(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield seen
        server.shutdown()
        thread.join()


def depositor(store: Store, wire: Wire, **changes: Any) -> Depositor:  # noqa: ANN401  of several types
    manifest = Manifest.of(replace(WORLD.manifest.terms, service_url=wire.url, **changes))
    return Depositor(Acting(Party(PARTY.id, PARTY.keys, manifest)), Peers(), store.outbox, 10.0, secrets.token_bytes)


def test_what_is_sent_again_is_byte_for_byte_what_was_sent_first(database: str, store: Store, wire: Wire) -> None:
    store.put(*[entry(whom) for whom in range(5)], entry(0, 6))
    after_restart = Store.open(database)
    try:
        for each in (store, store, after_restart):
            assert depositor(each, wire).send_due() == 5
            each.wait()
    finally:
        after_restart.database.close()
    assert sorted(Counter(wire.deposits()).values()) == [3] * 5
    assert store.column("attempts") == [3] * 5 + [0]


def test_what_was_made_under_an_earlier_manifest_is_sent_unchanged_under_it_and_apart_from_what_is_new(
    store: Store, wire: Wire
) -> None:
    store.put(*[entry(whom) for whom in range(3)])
    depositor(store, wire).send_due()
    earlier, under = set(wire.deposits()), wire.manifests()
    assert under == {Manifest.of(replace(WORLD.manifest.terms, service_url=wire.url)).hash}
    wire.bodies.clear()
    store.put(*[entry(whom) for whom in range(10, 13)])
    store.wait()
    for item in store.due():  # or what is new would wait for what is not made
        if item.made is not None:
            store.outbox.record([Attempt(item, {0: RECEIPT}, made=True)])
    store.wait()
    after = depositor(store, wire, serial=9)
    assert after.send_due() == 6
    assert len(wire.bodies) >= 2
    for body in wire.bodies:
        batch = decode(DepositBatch, decode(SignedBatch, body).batch)
        sent = {encode(deposit) for deposit in batch.deposits}
        assert sent <= earlier if batch.manifest_hash in under else not sent & earlier
    assert wire.manifests() == under | {after._acting.now().manifest.hash}
    assert earlier < set(wire.deposits())


def test_a_batch_is_of_one_manifest(store: Store) -> None:
    store.put(entry(1))
    item = store.due()[0]
    made = store.make(item)
    other = replace(made, manifest_hash=bytes(32))
    with pytest.raises(ProtocolError, match="mixed-batch"):
        sign_batch(PARTY, [made, other], NOW)
    assert decode(DepositBatch, sign_batch(PARTY, [other], NOW).batch).manifest_hash == bytes(32)


def test_a_deposit_does_not_count_before_what_receipts_have_told_and_tells_nothing_older(
    store: Store, wire: Wire
) -> None:
    now = tick_at(NOW, 1)
    store.put(entry(0))
    depositor(store, wire).send_due()  # no receipt yet: nothing that a check may still be as of
    store.wait()
    (item,) = store.due()
    recent = replace(RECEIPT, tick=now - 3)
    store.outbox.record([Attempt(item, {0: recent}, made=True, complete=True)])
    store.put(entry(1))
    depositor(store, wire).send_due()
    first, second = (facts_in(body) for body in wire.bodies)
    assert first.not_before == now - MAX_AS_OF_AGE
    assert second.not_before == now - 3


def facts_in(body: bytes) -> DepositFacts:
    """Open what the first holder of a batch's one deposit is sent, as that holder does."""
    batch = decode(DepositBatch, decode(SignedBatch, body).batch)
    (deposit,), slots = batch.deposits, WORLD.manifest.committee(batch.shard).slots
    holder = WORLD.members[slots[holder_slots(WORLD.manifest, batch.shard, batch.excluded)[0]]].party
    sealed = holder.channel(batch.depositor).open(PURPOSE, deposit.deposit_id, deposit.envelopes[0])
    return decode(DepositEnvelope, _unpad(sealed)).facts


def test_two_senders_that_take_a_deposit_at_once_send_the_same_bytes(store: Store, wire: Wire) -> None:
    # As when the lock of the background work is lost with its connection: the one that held it does not notice.
    store.put(entry(1))
    one, two = depositor(store, wire), depositor(store, wire)
    of_one, of_two = store.due(), store.due()
    one._send(one._acting.now(), of_one)
    two._send(two._acting.now(), of_two)
    assert len(wire.deposits()) == 2
    assert len(set(wire.deposits())) == 1


def test_a_sender_that_comes_after_all_have_receipted_sends_nothing(store: Store, wire: Wire) -> None:
    store.put(entry(1))
    late, item = store.due(), store.due()[0]
    store.make(item)
    store.record(item, made=True, complete=True)
    late_one = depositor(store, wire)
    late_one._send(late_one._acting.now(), late)
    assert store.column("made") == [None]
    assert wire.deposits() == []


def test_bytes_whose_storing_fails_are_not_sent(store: Store, wire: Wire) -> None:
    store.put(entry(1))
    due = store.due()
    store.database.run("break", lambda at: at.execute("ALTER TABLE deposit ADD CHECK (made IS NULL)"))
    sender = depositor(store, wire)
    with pytest.raises(psycopg.Error):
        sender._send(sender._acting.now(), due)
    assert wire.bodies == []


def test_deposits_that_were_not_made_up_yet_go_where_a_new_manifest_sends_them(store: Store, wire: Wire) -> None:
    store.put(*[entry(whom) for whom in range(8)])
    owners = {member.id: member.group for member in WORLD.manifest.terms.members}
    committees = tuple(Committee(shard=shard, version=2, slots=draw_committee(shard, owners)) for shard in range(4))
    assert depositor(store, wire, serial=2, shards=4, committees=committees).send_due() == 8
    assert len(wire.deposits()) == 8


# --- what came of it -----------------------------------------------------------------------------------------------


def test_receipts_of_several_attempts_come_together(store: Store) -> None:
    store.put(entry(1))
    (item,) = store.due()
    for states in ({0: 7, 3: 7}, {4: 9}, {3: 6}, {}):
        kept = {slot: replace(RECEIPT, tick=tick) for slot, tick in states.items()}
        store.outbox.record([Attempt(item, kept, made=False)])
    assert store.column("receipts") == [{"0": 7, "3": 6, "4": 9}]


def test_the_time_at_which_a_deposit_was_made_is_set_once(store: Store) -> None:
    store.put(entry(1))
    (item,) = store.due()
    store.record(item)
    assert store.column("made_at") == [None]
    store.record(item, made=True)
    (made_at,) = store.column("made_at")
    assert made_at is not None
    for made, complete in ((True, False), (False, False), (True, True)):
        store.record(item, made=made, complete=complete)
        assert store.column("made_at") == [made_at]
    assert store.column("completed_at") != [None]


def test_a_deposit_that_is_complete_stays_so_whatever_is_recorded_late(store: Store) -> None:
    store.put(entry(1))
    (item,) = store.due()
    store.make(item)
    store.record(item, made=True, complete=True)
    store.record(item, made=True)
    store.wait()
    assert store.due() == []
    assert store.outbox.backlog() == Backlog(0, 0)


def test_the_wait_for_the_next_attempt_doubles_up_to_its_bound(store: Store) -> None:
    store.put(entry(1))
    (item,) = store.due()
    waits = []
    for attempts in (*range(9), 10, 11, 30, 100_000):

        def now(connection: Rows) -> float:
            found = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
            assert found is not None
            return float(found[0])

        before = store.database.run("clock", now)
        store.record(replace(item, attempts=attempts))
        after = store.database.run("clock", now)
        (planned,) = store.column("extract(epoch FROM next_attempt_at)::float8")
        assert isinstance(planned, float)
        waits.append(next(wait for wait in range(200) if before + wait <= planned <= after + wait))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60]
    assert store.column("attempts") == [13]


def test_every_attempt_is_counted_and_the_last_reason_kept(store: Store) -> None:
    store.put(entry(1))
    for attempts, reason in enumerate(["refused", "too-few-custodians", None]):
        (item,) = store.due()
        assert item.attempts == attempts
        store.outbox.record([Attempt(item, reason=reason)])
        assert store.column("last_reason") == [reason]
        store.wait()


def test_the_backlog_tells_unmade_from_incomplete(store: Store) -> None:
    assert store.outbox.backlog() == Backlog(0, 0)
    store.put(*[entry(whom) for whom in range(4)], entry(0))
    assert store.outbox.backlog() == Backlog(5, 0)
    first, second, third, _ = store.due()
    store.record(first, made=True)
    store.record(second, made=True, complete=True)
    store.record(third)
    assert store.outbox.backlog() == Backlog(3, 1)


# --- what stands in the tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["entry", "made"])
def test_what_was_sealed_for_one_deposit_does_not_open_in_the_place_of_another(store: Store, column: str) -> None:
    store.put(entry(1, 5), entry(2, 6))
    if column == "made":
        for item in store.due():
            store.make(item)
    assert len(store.due()) == 2
    swap = f"UPDATE deposit a SET {column} = b.{column} FROM deposit b WHERE a.seq <> b.seq"  # noqa: S608
    store.database.run("tamper", lambda connection: connection.execute(swap.encode()))
    assert store.due() == []
    assert [item.reason for item in store.outbox.set_aside()] == ["damaged", "damaged"]


def test_persons_are_told_apart_and_not_told(store: Store) -> None:
    store.put(entry(1), entry(2), entry(1, 6))
    keys = store.column("person_key")
    assert keys[0] == keys[2] != keys[1]
    shown = "|".join(str(text) for text in store.column("deposit::text"))
    for whom in (1, 2):
        for secret in (person(whom).number, person(whom).number.encode().hex()):
            assert secret not in shown


def test_envelopes_on_their_way_do_not_stand_in_clear(store: Store) -> None:
    store.put(entry(1))
    made = store.make(store.due()[0])
    (stored,) = store.column("made")
    assert isinstance(stored, bytes)
    assert [envelope for envelope in made.deposit.envelopes if envelope in stored] == []
