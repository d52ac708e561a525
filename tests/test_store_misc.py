"""The small parts of the store: sealing, keys at rest, transactions that are done once or not at all, the manifest."""

import contextlib
import itertools
import json
import re
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from strategies import deterministic
from world import NOW, make_world, seeded

import insurer_agent
from insurer_agent.agent import load_manifest
from insurer_agent.config import Settings
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.keys import AgentKeys
from insurer_agent.roles import Role
from insurer_agent.store.api_keys import PREFIX, ApiKeys, Holder
from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.database import MAX_TRIES, Database, Rows
from insurer_agent.store.keyring import Keyring
from insurer_agent.store.locks import Lock
from insurer_agent.store.manifests import Manifests
from insurer_agent.store.server import database_server, find_dsn
from insurer_agent.store.vault import Vault, VaultError
from protocol import signing
from protocol.committee_keys import CommitteeKey
from protocol.custody import Admission, Charge, CustodyRow, Kept, Preparation, Proposed, RangeAttempt
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.manifest import AdminPins, AdminSignature, SignedManifest, Terms, hash_of, sign_terms
from protocol.messages import ISSUE, UNDERWRITING, Commit, RangeProof
from protocol.range_tags import range_tags
from protocol.secret import Secret
from protocol.token import IndexKey
from transport.problems import Problem
from transport.settings import SettingsError
from transport.tls import TlsSettings

T = TypeVar("T")
KEY = Secret(bytes(range(32)))
THREADS = 6
UNAVAILABLE = (503, "database-unavailable")


@pytest.fixture
def store(database: str) -> Iterator[Database]:
    with opened(database) as store:
        yield store


@contextlib.contextmanager
def opened(dsn: str, *, size: int = 2, migrated: bool = True) -> Iterator[Database]:
    store = Database(dsn, size=size)
    try:
        if migrated:
            store.migrate()
        yield store
    finally:
        store.close()


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


def at_once(actions: Sequence[Callable[[], T]]) -> list[T]:
    """Run every action in a thread of its own, all starting together."""
    start = threading.Barrier(len(actions))

    def run(action: Callable[[], T]) -> T:
        start.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


def one(store: Database, query: str) -> object:
    found = store.run("one", lambda connection: connection.execute(query.encode()).fetchone())
    assert found is not None
    return found[0]


# --- the vault -----------------------------------------------------------------------------------------------------


def vault(key: Secret = KEY, area: str = "register", seed: object = 0) -> Vault:
    return Vault(key, area, seeded(seed))


@deterministic(40)
@given(st.binary(max_size=40), st.binary(max_size=200))
def test_what_was_sealed_opens_in_its_place_alone_and_under_its_key_alone(place: bytes, value: bytes) -> None:
    sealed = vault().seal(place, value)
    assert vault(seed=1).open(place, sealed) == value
    others = [place + b"\x00", b"\x00" + place, place[1:] + b"x", place + value + b"x"]
    for other in others:
        with pytest.raises(VaultError):
            vault().open(other, sealed)
    for stranger in (vault(area="custody"), vault(area="register "), vault(Secret(bytes(32)))):
        with pytest.raises(VaultError):
            stranger.open(place, sealed)


def test_no_bit_of_a_sealed_value_can_be_changed() -> None:
    sealed = vault().seal(b"place", b"value")
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VaultError):
            vault().open(b"place", bytes(changed))


def test_no_byte_of_a_sealed_value_can_be_left_out_or_added() -> None:
    sealed = vault().seal(b"place", b"value")
    for changed in [*(sealed[:size] for size in range(len(sealed))), sealed + b"\x00", b"\x00" + sealed]:
        with pytest.raises(VaultError):
            vault().open(b"place", changed)


def test_equal_values_do_not_look_equal() -> None:
    keeper = vault()
    sealed = [keeper.seal(b"place", b"value") for _ in range(50)]
    assert len(set(sealed)) == len({value[:12] for value in sealed}) == 50


def test_a_refusal_to_open_says_nothing_of_the_value() -> None:
    with pytest.raises(VaultError) as refusal:
        vault().open(b"a place", b"sealed canary, so to say")
    assert "canary" not in str(refusal.value)
    assert refusal.value.__cause__ is None


INDEXED = st.tuples(st.text(max_size=4), st.lists(st.binary(max_size=4), max_size=4))


@deterministic(300)
@given(INDEXED, INDEXED)
def test_an_index_is_equal_for_the_same_kind_and_parts_alone(
    one: tuple[str, list[bytes]], other: tuple[str, list[bytes]]
) -> None:
    assert (vault().index(one[0], *one[1]) == vault(seed=1).index(other[0], *other[1])) == (one == other)


@deterministic(100)
@given(INDEXED, st.integers(0, 8), st.integers(0, 8))
def test_an_index_is_another_when_a_boundary_is_moved(said: tuple[str, list[bytes]], cut: int, again: int) -> None:
    whole = b"".join(said[1])
    assume(cut != again and max(cut, again) <= len(whole))
    assert vault().index(said[0], whole[:cut], whole[cut:]) != vault().index(said[0], whole[:again], whole[again:])


def test_an_index_depends_on_key_and_area() -> None:
    indexes = [
        keeper.index("kind", b"part")
        for keeper in (vault(), vault(area="custody"), vault(Secret(bytes(32))), vault(Secret(bytes(32)), "custody"))
    ]
    assert {len(index) for index in indexes} == {32}
    assert len(set(indexes)) == 4


# --- committee keys at rest ----------------------------------------------------------------------------------------


def committee_key(made_at: int, *, shard: int = 0, omitted: int | None = None, version: int = 1) -> CommitteeKey:
    secret = Secret(seeded(("key", made_at, shard, omitted, version))(32))
    return CommitteeKey.named(shard, omitted, version, made_at, secret)


def keyring(store: Database) -> Keyring:
    return Keyring(store, vault(area="custody", seed=secrets.token_bytes(8)))


def found(ring: Keyring, shard: int = 0, omitted: int | None = None, version: int = 1) -> CommitteeKey | None:
    held = ring.find(shard, omitted, version)
    return None if held is None else held.key


@pytest.mark.parametrize("made_at", list(itertools.permutations([5, 6, 70])))
def test_the_first_key_stands_in_whatever_order_they_come(store: Database, made_at: tuple[int, ...]) -> None:
    ring = keyring(store)
    for moment in made_at:
        assert ring.keep(committee_key(moment)) == committee_key(made_at[0])
        assert found(ring) == found(keyring(store)) == committee_key(made_at[0])


def test_keys_of_other_shards_slots_and_versions_are_kept_apart(store: Database) -> None:
    ring = keyring(store)
    places = list(itertools.product((0, 1), (None, 0, 1, 5), (1, 2)))
    keys = {place: committee_key(7, shard=place[0], omitted=place[1], version=place[2]) for place in places}
    for key in keys.values():
        ring.keep(key)
    assert {place: found(ring, *place) for place in places} == keys
    assert found(ring, 2) is None
    assert found(ring, version=3) is None


def test_a_key_of_the_same_making_stays_as_it_is(store: Database) -> None:
    ring, key = keyring(store), committee_key(5)
    ring.keep(key)
    ring.confirm(key, "insurer-02")
    ring.keep(CommitteeKey.named(0, None, 1, 5, Secret(bytes(32))))
    held = ring.find(0, None, 1)
    assert held is not None
    assert (held.key, held.confirmed_by) == (key, frozenset({"insurer-02"}))


def test_that_there_is_no_key_yet_is_not_remembered(store: Database) -> None:
    ring = keyring(store)
    with pytest.raises(ProtocolError) as refusal:
        ring.current(0, None, 1)
    assert refusal.value.code == "not-ready"
    ring.keep(committee_key(5))
    assert ring.current(0, None, 1) == committee_key(5)
    with pytest.raises(ProtocolError, match="not-ready"):
        ring.current(0, 0, 1)


def test_confirmations_are_of_the_key_that_stands(store: Database) -> None:
    ring, key, other = keyring(store), committee_key(5), committee_key(6)
    ring.keep(key)
    ring.keep(other)
    ring.confirm(other, "insurer-02")
    held = ring.find(0, None, 1)
    assert held is not None
    assert held.confirmed_by == frozenset()
    holders = [f"insurer-{number:02d}" for number in range(2, 2 + THREADS // 2)]
    at_once([lambda holder=holder: keyring(store).confirm(key, holder) for holder in holders * 2])
    held = ring.find(0, None, 1)
    assert held is not None
    assert held.confirmed_by == frozenset(holders)
    assert one(store, "SELECT max(cardinality(confirmed_by)) FROM committee_key") == len(holders)


def test_committee_keys_stand_sealed_and_each_in_its_place(store: Database) -> None:
    ring = keyring(store)
    keys = [committee_key(5, omitted=None), committee_key(5, omitted=0), committee_key(6, omitted=0)]
    for key in keys:
        ring.keep(key)
    had = dumped(store)
    for key in keys:
        secret = key.secret.reveal()
        assert secret not in had
        assert secret.hex().encode() not in had
    for change in ("omitted = 1 - omitted", "made_at = made_at + 100", "shard = 9", "committee_version = 9"):

        def tampered(connection: Rows, change: str = change) -> None:
            connection.execute(f"UPDATE committee_key SET {change}".encode())  # noqa: S608
            with pytest.raises(VaultError):
                Keyring(Within(connection), vault(area="custody")).find(*place(connection))
            raise Problem(0, "undo", "undo")

        with pytest.raises(Problem, match="undo"):
            store.run("tamper", tampered)
    with pytest.raises(VaultError):
        Keyring(store, vault(Secret(bytes(32)), "custody")).find(0, None, 1)


class Within(Database):
    """A database that does everything within one transaction of another."""

    def __init__(self, connection: Rows) -> None:
        self._connection_of_other = connection

    def run(self, name: str, transaction: Callable[[Rows], T], *, snapshot: bool = False) -> T:
        del name, snapshot
        return transaction(self._connection_of_other)


def place(connection: Rows) -> tuple[int, int | None, int]:
    row = connection.execute("SELECT shard, omitted, committee_version FROM committee_key LIMIT 1").fetchone()
    assert row is not None
    return (row[0], None if row[1] < 0 else row[1], row[2])


# --- API keys ------------------------------------------------------------------------------------------------------


FIRST, SECOND = (Holder(name, frozenset(Role)) for name in ("underwriting", "claims"))


def made(keys: ApiKeys, name: str, *, replace: bool = False) -> str:
    return keys.make(name, secrets.token_bytes, roles=Role, replace=replace)


def test_an_api_key_is_found_by_its_value_alone(store: Database) -> None:
    keys = ApiKeys(store)
    key = made(keys, "underwriting")
    other = made(keys, "claims")
    assert key.startswith(PREFIX)
    assert len(key) == len(PREFIX) + 64
    assert (keys.holder(key), keys.holder(other)) == (FIRST, SECOND)
    strangers = ["", PREFIX, "underwriting", key[:-1], key + "0", key.upper(), " " + key, key.removeprefix(PREFIX)]
    strangers += [PREFIX + bytes(32).hex(), "\x00", "\u4fdd\u9669", "%", "' OR '1'='1"]
    assert [keys.holder(stranger) for stranger in strangers] == [None] * len(strangers)
    digest = one(store, "SELECT encode(hash, 'hex') FROM api_key WHERE name = 'underwriting'")
    assert keys.holder(str(digest)) is None  # who reads the table cannot present what stands there
    assert keys.holder(PREFIX + str(digest)) is None


def test_a_name_has_one_key_and_a_new_one_ends_it_only_when_told(store: Database) -> None:
    keys = ApiKeys(store)
    old, other = (
        made(keys, "underwriting"),
        made(keys, "claims"),
    )
    with pytest.raises(Problem, match="name-in-use"):
        made(keys, "underwriting")
    assert keys.holder(old) == FIRST
    new = made(keys, "underwriting", replace=True)
    assert [keys.holder(key) for key in (old, new, other)] == [None, FIRST, SECOND]
    assert one(store, "SELECT count(*) FROM api_key") == 2


def test_a_revoked_key_opens_nothing_and_the_list_says_which_are_used(store: Database) -> None:
    keys = ApiKeys(store)
    used, unused = (
        made(keys, "underwriting"),
        made(keys, "claims"),
    )
    assert keys.holder(used) == FIRST
    listed = {entry.name: entry.last_used_at is not None for entry in keys.entries()}
    assert listed == {"claims": False, "underwriting": True}
    keys.revoke("underwriting")
    assert (keys.holder(used), keys.holder(unused)) == (None, SECOND)
    assert [entry.name for entry in keys.entries()] == ["claims"]
    with pytest.raises(Problem, match="unknown-name"):
        keys.revoke("underwriting")


def test_an_api_key_stands_nowhere_in_the_database(store: Database) -> None:
    drawn = []

    def random(count: int) -> bytes:
        drawn.append(secrets.token_bytes(count))
        return drawn[-1]

    key = ApiKeys(store).make("underwriting", random, roles=Role)
    had = dumped(store)
    assert b"underwriting" in had
    for secret in (key.encode(), key.removeprefix(PREFIX).encode(), drawn[0]):
        assert [spelling for spelling in (secret, secret[::-1], secret.hex().encode()) if spelling in had] == []


# --- transactions --------------------------------------------------------------------------------------------------


def tables(store: Database) -> set[str]:
    query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    return {row[0] for row in store.run("tables", lambda connection: connection.execute(query).fetchall())}


def test_migrating_again_keeps_what_there_is(database: str, store: Database) -> None:
    before = tables(store)
    key = made(ApiKeys(store), "underwriting")
    store.migrate()
    with opened(database) as again:
        assert tables(again) == before
        assert ApiKeys(again).holder(key) == FIRST


def test_many_processes_may_migrate_an_empty_database_at_once(database: str) -> None:
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(opened(database, size=1, migrated=False)) for _ in range(THREADS)]
        at_once([store.migrate for store in stores])
        assert tables(stores[0]) >= {
            "setting",
            "api_key",
            "policy",
            "deposit",
            "custody_pending",
            "custody_row",
            "budget",
        }


SETTINGS = "SELECT count(*) FROM setting"


def put(connection: Rows, name: str = "name") -> None:
    connection.execute("INSERT INTO setting (name, value) VALUES (%s, '')", (name,))


class CrashError(Exception):
    """Nothing that the product knows."""


@pytest.mark.parametrize("error", [CrashError(), ProtocolError("code", "hint"), KeyboardInterrupt()])
def test_a_transaction_that_raises_leaves_nothing_behind_and_is_not_repeated(
    store: Database, error: BaseException
) -> None:
    tries = []

    def transaction(connection: Rows) -> None:
        tries.append(put(connection))
        raise error

    with pytest.raises(type(error)):
        store.run("raises", transaction)
    assert len(tries) == 1
    assert one(store, SETTINGS) == 0


def test_a_failed_statement_leaves_nothing_behind_and_is_not_repeated(store: Database) -> None:
    tries = []

    def transaction(connection: Rows) -> None:
        tries.append(put(connection))
        put(connection)

    with pytest.raises(psycopg.errors.UniqueViolation):
        store.run("fails", transaction)
    assert len(tries) == 1
    assert one(store, SETTINGS) == 0


def test_a_connection_is_as_good_as_new_after_a_transaction_that_raised(database: str) -> None:
    with opened(database, size=1) as store:
        for _ in range(4):
            with pytest.raises(psycopg.Error):
                store.run("fails", lambda connection: connection.execute("SELECT 1/0"))
            assert one(store, "SELECT current_setting('transaction_isolation')") == "read committed"
            assert one(store, SETTINGS) == 0


def test_a_snapshot_is_one_state_that_cannot_be_written(database: str, store: Database) -> None:
    def transaction(connection: Rows) -> tuple[object, object]:
        before = connection.execute(SETTINGS).fetchone()
        with opened(database) as other:
            other.run("meanwhile", put)
        return before, connection.execute(SETTINGS).fetchone()

    assert store.run("reads", transaction, snapshot=True) == ((0,), (0,))
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        store.run("writes", lambda connection: put(connection, "other"), snapshot=True)
    assert one(store, SETTINGS) == 1


@pytest.mark.parametrize("error", [psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected])
def test_a_transaction_is_repeated_when_the_server_asks_for_that_but_not_for_ever(
    store: Database, error: type[psycopg.Error]
) -> None:
    tries = []

    def until(success: int) -> Callable[[Rows], int]:
        def transaction(connection: Rows) -> int:
            put(connection)
            tries.append(1)
            if len(tries) < success:
                raise error
            return len(tries)

        return transaction

    assert store.run("at last", until(MAX_TRIES)) == MAX_TRIES
    assert one(store, SETTINGS) == 1
    store.run("clear", lambda connection: connection.execute("DELETE FROM setting"))
    tries.clear()
    with pytest.raises(Problem) as problem:
        store.run("never", until(MAX_TRIES + 1))
    assert (problem.value.status, problem.value.code) == UNAVAILABLE
    assert (len(tries), one(store, SETTINGS)) == (MAX_TRIES, 0)


def test_a_real_deadlock_ends_with_both_transactions_done(database: str) -> None:
    met = threading.Barrier(2)
    with opened(database) as store:
        store.run("rows", lambda connection: (put(connection, "a"), put(connection, "b")))

        def change(*names: str) -> list[int]:
            tries = []

            def transaction(connection: Rows) -> None:
                tries.append(1)
                for place, name in enumerate(names):
                    if place and len(tries) == 1:
                        met.wait(20)
                    connection.execute("UPDATE setting SET value = value || '\\x01' WHERE name = %s", (name,))

            store.run("change", transaction)
            return tries

        tries = at_once([lambda: change("a", "b"), lambda: change("b", "a")])
        # How often the one that the server ends meets the other again is the scheduler's; a transaction has MAX_TRIES.
        fewest, most = sorted(map(len, tries))
        assert fewest == 1
        assert 2 <= most <= MAX_TRIES
        assert one(store, "SELECT string_agg(encode(value, 'hex'), ',') FROM setting") == "0101,0101"


def kill_connections(dsn: str) -> None:
    """End every connection of an agent to the database, and wait until they are gone."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'insurer-agent'"
        )


def test_connections_that_died_unnoticed_are_replaced(database: str) -> None:
    with opened(database, size=THREADS) as store:
        start = threading.Barrier(THREADS)
        at_once([lambda: store.run("fill the pool", lambda _: start.wait(20))] * THREADS)
        for _ in range(3):
            kill_connections(database)
            assert one(store, SETTINGS) == 0
            assert at_once([lambda: one(store, SETTINGS)] * THREADS) == [0] * THREADS


class Forgetful:
    """A way to a server on which, when told to, the answer to a commit is lost together with the connection."""

    def __init__(self, dsn: str) -> None:
        target = conninfo_to_dict(dsn)
        self._target = (str(target["host"]), int(str(target["port"])))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = make_conninfo(dsn, port=self._listener.getsockname()[1])
        self.to_lose = 0
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                lost = threading.Event()
                self._start(self._forward, client, server, lost)
                self._start(self._answer, server, client, lost)

    def _forward(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if self.to_lose and (b"COMMIT" in data or b"admit_check" in data):  # which commits itself
                    self.to_lose -= 1
                    lost.set()
                server.sendall(data)
        self._end(server, client)

    def _answer(self, server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if lost.is_set():  # the server has committed: nothing else can be on its way
                    break
                client.sendall(data)
        self._end(client, server)

    @staticmethod
    def _end(*sockets: socket.socket) -> None:
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._end(*self._sockets)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()


@pytest.fixture
def forgetful(database: str) -> Iterator[Forgetful]:
    way = Forgetful(database)
    yield way
    way.close()


def custody_on(store: Database) -> PostgresCustody:
    return PostgresCustody(store, vault(area="custody", seed=secrets.token_bytes(8)), 10, 1)


def admission(budget: int = 1) -> Admission:
    charges = (Charge(IndexKey(bytes(32)), "rule", UNDERWRITING, budget, 30),)
    return Admission("insurer-02", "group-02", bytes(16), bytes(32), 1, 739_000, charges, 100)


def test_an_attempt_whose_commit_was_not_heard_of_is_charged_once_and_not_answered(forgetful: Forgetful) -> None:
    with opened(forgetful.dsn) as store:
        forgetful.to_lose = 1
        with pytest.raises(ProtocolError, match="replayed"):  # never answered twice, then rather not at all
            custody_on(store).admit(admission())
        assert one(store, "SELECT sum(answers) FROM budget") == 1
        assert forgetful.to_lose == 0


def test_a_deposit_whose_commit_was_not_heard_of_counts_once(forgetful: Forgetful) -> None:
    row = CustodyRow("accident", 739_000, 0, (1, 2, 3), (1, 2, 3))
    item = Proposed("insurer-01", bytes(16), ISSUE, None, 0, 1, IndexKey(bytes(32)), row, bytes(32), 0, bytes(32))
    proof = RangeProof(bytes(32), *(good for good, _ in range_tags(item.range_key, bytes(32))))
    with opened(forgetful.dsn) as store:
        forgetful.to_lose = 1
        pending = Kept(None, never=False, envelope_hash=bytes(32))
        assert custody_on(store).prepare([item], 0.0) == Preparation([pending], None)
        forgetful.to_lose = 1
        made = Kept(5, never=False, envelope_hash=bytes(32), proof=proof)
        assert custody_on(store).commit("insurer-01", 0, [Commit(bytes(16), 5, proof)]) == [made]
        assert one(store, "SELECT count(*) FROM custody_pending") == 0
        assert one(store, "SELECT count(*) FROM custody_row") == 1
        assert one(store, "SELECT count(DISTINCT sum) FROM custody_stamp") == 1
        assert one(store, "SELECT count(DISTINCT sum) FROM custody_own_stamp") == 1
        assert forgetful.to_lose == 0


def test_a_range_check_whose_record_was_not_heard_of_is_not_garbled(forgetful: Forgetful) -> None:
    row = CustodyRow("accident", 739_000, 0, (1, 2, 3), (1, 2, 3))
    item = Proposed("insurer-01", bytes(16), ISSUE, None, 0, 1, IndexKey(bytes(32)), row, bytes(32), 0, bytes(32))
    with opened(forgetful.dsn) as store:
        forgetful.to_lose = 1
        with pytest.raises(ProtocolError, match="replayed"):  # never garbled twice, then rather not at all
            custody_on(store).prepare([item], 0.0, RangeAttempt(bytes(32), 739_000, 738_000))
        assert one(store, "SELECT count(*) FROM range_attempt") == 1
        assert custody_on(store).prepare([item], 0.0, RangeAttempt(bytes([1] * 32), 739_000, 738_000)).base is not None
        assert forgetful.to_lose == 0


def test_a_commit_that_was_never_heard_of_is_told_as_a_fault_within_bounds(forgetful: Forgetful) -> None:
    with opened(forgetful.dsn) as store:
        forgetful.to_lose = 1_000
        begin = time.monotonic()
        with pytest.raises(Problem) as problem:
            store.run("put", lambda connection: put(connection, secrets.token_hex(4)))
        assert (problem.value.status, problem.value.code) == UNAVAILABLE
        assert time.monotonic() - begin < 20
        forgetful.to_lose = 0


def test_commits_wait_for_the_disk_whatever_is_the_default_of_database_or_role(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for whom in ("DATABASE " + connection.info.dbname, "ROLE " + connection.info.user):
            connection.execute(f"ALTER {whom} SET synchronous_commit = off".encode())
    try:
        with psycopg.connect(database) as connection:
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
        with opened(database) as store:
            assert one(store, "SELECT current_setting('synchronous_commit')") == "on"
    finally:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {connection.info.user} RESET synchronous_commit".encode())


def test_a_server_that_may_lose_what_it_committed_is_refused(database: str) -> None:
    for setting in ("fsync", "full_page_writes"):
        with psycopg.connect(database, autocommit=True) as connection:
            # The server of the tests cannot be told to be careless, so it is made to say that it is.
            name = connection.info.dbname
            connection.execute(f"ALTER DATABASE {name} SET search_path = public, pg_catalog".encode())
            connection.execute(
                "CREATE OR REPLACE FUNCTION public.current_setting(text) RETURNS text LANGUAGE sql"
                f" AS $$ SELECT CASE $1 WHEN '{setting}' THEN 'off' ELSE pg_catalog.current_setting($1) END $$".encode()
            )
        with opened(database, migrated=False) as store:
            with pytest.raises(Problem) as problem:
                store.migrate()
            assert problem.value.code == "database-not-durable"


def test_only_one_is_let_in(database: str, store: Database) -> None:
    with opened(database) as other, store.exclusively(77) as held:
        assert held
        with other.exclusively(77) as also, store.exclusively(77) as twice, other.exclusively(78) as elsewhere:
            assert (also, twice, elsewhere) == (False, False, True)


def test_of_many_at_once_one_is_let_in(database: str) -> None:
    together = threading.Barrier(THREADS)

    def enter(store: Database) -> bool:
        with store.exclusively(77) as held:
            together.wait(20)  # nobody leaves before all have tried
            return held

    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(opened(database, size=1)) for _ in range(THREADS)]
        for _ in range(3):
            results = at_once([lambda store=store: enter(store) for store in stores])
            assert Counter(results) == Counter({True: 1, False: THREADS - 1})


def test_who_leaves_in_whatever_way_lets_the_next_in(database: str, store: Database) -> None:
    def enter_and(leave: BaseException) -> None:
        with store.exclusively(77) as held:
            assert held
            raise leave

    with opened(database, size=1) as other:
        for error in (CrashError(), KeyboardInterrupt()):
            with pytest.raises(type(error)):
                enter_and(error)
            with other.exclusively(77) as held:
                assert held
        assert one(other, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        # The connection that was lent out is an ordinary one again: it does not commit each statement.
        with pytest.raises(CrashError):
            other.run("raises", put_and_crash)
        assert one(other, SETTINGS) == 0


def put_and_crash(connection: Rows) -> None:
    put(connection)
    raise CrashError


def test_who_loses_the_connection_that_holds_the_lock_is_told_when_leaving(database: str, store: Database) -> None:
    let_in = []

    def lose_the_lock(other: Database) -> None:
        with store.exclusively(77) as held:
            let_in.append(held)
            kill_connections(database)
            one(other, SETTINGS)  # on a new connection
            with other.exclusively(77) as also:
                let_in.append(also)

    with opened(database, size=1) as other, pytest.raises(psycopg.OperationalError):
        lose_the_lock(other)
    assert let_in == [True, True]  # both, for a while: what is done under the lock must bear that
    assert one(store, SETTINGS) == 0
    with store.exclusively(77) as held:
        assert held


# --- the server goes and comes back --------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_down_is_told_within_bounds_and_what_was_durable_is_there_when_it_is_back(
    tmp_path: Path,
) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", port=free_port())
    server.start()
    try:
        with opened(server.dsn(), size=3) as store:
            custody = custody_on(store)
            custody.admit(admission())
            assert server._process is not None
            server._process.send_signal(signal.SIGQUIT)  # at once, as in a crash
            server._process.wait(20)
            for _ in range(2):
                begin = time.monotonic()
                with pytest.raises(Problem) as problem:
                    custody.admit(admission())
                assert (problem.value.status, problem.value.code) == UNAVAILABLE
                assert time.monotonic() - begin < 10
            server.stop()
            server.start()
            deadline = time.monotonic() + 30
            while True:
                try:
                    assert one(store, "SELECT sum(answers) FROM budget") == 1
                    break
                except Problem:
                    assert time.monotonic() < deadline, "the database is back, and not found again"
            with pytest.raises(ProtocolError, match="replayed"):
                custody.admit(admission())
    finally:
        server.stop()


def test_no_two_uses_of_an_advisory_lock_share_a_number() -> None:
    numbers = re.findall(
        r"7_?261_?\d{3}", "".join(file.read_text("utf-8") for file in Path(insurer_agent.__path__[0]).rglob("*.py"))
    )
    assert len(numbers) == len(Lock) == len({int(lock) for lock in Lock})


def test_a_server_that_never_was_is_told_within_bounds() -> None:
    begin = time.monotonic()
    with opened(f"postgresql://nobody:canary@127.0.0.1:{free_port()}/none", migrated=False) as store:
        with pytest.raises(Problem) as problem:
            store.migrate()
        assert (problem.value.status, problem.value.code) == UNAVAILABLE
        assert "canary" not in str(problem.value)
    assert time.monotonic() - begin < 20


def test_more_at_once_than_there_are_connections_wait_their_turn(database: str) -> None:
    with opened(database, size=2) as store:
        counts = at_once([lambda: one(store, SETTINGS)] * 12)
    assert counts == [0] * 12


# --- the manifest that was seen ------------------------------------------------------------------------------------

WORLD = make_world()
ADMINS = {f"admin-{number}": Secret(seeded(("admin", number))(32)) for number in range(3)}
MEMBER = "insurer-01"
KEYS = AgentKeys(WORLD.members[MEMBER].party.keys, KEY)


def terms(serial: int = 5, **changes: object) -> Terms:
    return replace(WORLD.manifest.terms, serial=serial, valid_until=int(NOW) + 365 * 86_400, **changes)


@pytest.fixture
def configured(tmp_path: Path) -> Settings:
    pins = {"threshold": 2, "keys": {name: signing.public_key(key).hex() for name, key in ADMINS.items()}}
    (tmp_path / "admins.json").write_text(json.dumps(pins), encoding="utf-8")
    return Settings(
        state=tmp_path,
        member_id=MEMBER,
        host="127.0.0.1",
        port=1,
        database="",
        manifest=tmp_path / "manifest.bin",
        admins=tmp_path / "admins.json",
        allow_local=True,
        workers=1,
        threads=4,
        check_seconds=2,
        deposit_seconds=10,
        deposit_jitter_seconds=0,
        redis=None,
        redis_seconds=1,
        checks_a_second=1,
        checks_at_once=1,
        policies_a_second=1,
        policies_at_once=1,
        capture=None,
        tls=TlsSettings(allow_plain_http=True),
    )


def load(settings: Settings, store: Database, what: Terms, *admins: str) -> str:
    """Put a manifest in place and load it; return its serial, or why it is refused."""
    signatures: tuple[AdminSignature, ...] = tuple(
        sign_terms(what, name, ADMINS[name]) for name in admins or ("admin-0", "admin-2")
    )
    settings.manifest.write_bytes(encode(SignedManifest(terms=encode(what), signatures=signatures)))
    try:
        return str(load_manifest(settings, KEYS, store).terms.serial)
    except SettingsError as refusal:
        return str(refusal)


def test_an_older_or_a_forked_manifest_is_refused_from_then_on(
    database: str, store: Database, configured: Settings
) -> None:
    assert load(configured, store, terms(5)) == "5"
    assert load(configured, store, terms(5), "admin-1", "admin-2") == "5"  # the same, signed by others
    assert "(manifest-older)" in load(configured, store, terms(4))
    assert "(manifest-forked)" in load(configured, store, terms(5, alliance="other"))
    assert load(configured, store, terms(5)) == "5"
    assert load(configured, store, terms(9)) == "9"
    with opened(database) as restarted:
        assert load(configured, restarted, terms(5)) == "9"  # the file is that of before: a newer one has come since
        assert "(manifest-older)" in load(configured, restarted, terms(6))
        assert "(manifest-forked)" in load(configured, restarted, terms(9, tick_seconds=2))
        assert load(configured, restarted, terms(9)) == "9"
        assert load(configured, restarted, terms(2**64 - 1)) == str(2**64 - 1)


@pytest.mark.parametrize("broken", ["under-signed", "expired", "unreadable"])
def test_a_manifest_that_is_refused_is_not_remembered(store: Database, configured: Settings, broken: str) -> None:
    assert load(configured, store, terms(5)) == "5"
    if broken == "under-signed":
        assert "(under-signed)" in load(configured, store, terms(9), "admin-1")
    elif broken == "expired":
        expired = replace(terms(9), valid_until=int(time.time()) - 1)
        assert "(manifest-expired)" in load(configured, store, expired)
    else:
        configured.manifest.write_bytes(b"\x00" * 50)
        with pytest.raises(SettingsError, match="malformed"):
            load_manifest(configured, KEYS, store)
        configured.manifest.unlink()
        with pytest.raises(SettingsError, match="cannot be read"):
            load_manifest(configured, KEYS, store)
    assert load(configured, store, terms(5)) == "5"


def test_of_forks_loaded_at_once_one_is_taken(database: str, store: Database, configured: Settings) -> None:
    deadline = time.monotonic() + 20
    with psycopg.connect(database) as third, ThreadPoolExecutor(2) as pool:
        third.execute("LOCK TABLE setting IN SHARE MODE")  # what was seen can be read, and nothing remembered yet
        loading = [
            pool.submit(
                load,
                replace(configured, manifest=configured.state / f"{fork}.bin"),
                store,
                terms(5, alliance=fork),
            )
            for fork in ("one", "other")
        ]
        while third.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() != (2,):
            assert time.monotonic() < deadline
        third.rollback()
        results = [result.result() for result in loading]
    assert sorted("(manifest-forked)" in result for result in results) == [False, True]
    assert "5" in results


def test_a_local_manifest_and_one_of_another_salt_are_refused(store: Database, configured: Settings) -> None:
    assert "allow_local" in load(replace(configured, allow_local=False), store, terms(5))
    assert "allow_plain_http" in load(replace(configured, tls=TlsSettings()), store, terms(5))
    assert "salt" in load(configured, store, terms(6, salt_check=bytes(32)))


def test_a_manifest_that_does_not_fit_does_not_stand_in_the_way_of_the_right_one(
    store: Database, configured: Settings
) -> None:
    other_alliance = terms(1_000, alliance="other", salt_check=bytes(32))
    assert "salt" in load(configured, store, other_alliance)
    assert load(configured, store, terms(5)) == "5"


def test_a_manifest_of_another_epoch_or_other_committees_is_refused_and_not_remembered(
    database: str, store: Database, configured: Settings
) -> None:
    assert load(configured, store, terms(5)) == "5"
    committees = WORLD.manifest.terms.committees
    turned = replace(committees[0], slots=committees[0].slots[1:] + committees[0].slots[:1])
    renewed = replace(committees[0], version=2)
    first, *rest = WORLD.manifest.terms.members
    others = [
        terms(9, epoch=2),
        terms(9, blinding_key=make_world(seed=1).manifest.terms.blinding_key),
        terms(9, committees=(turned, *committees[1:])),
        terms(9, committees=(renewed, *committees[1:])),
        terms(9, shards=1, committees=committees[:1]),
        terms(9, tick_seconds=2),
        terms(9, members=(replace(first, group="another owner"), *rest)),
    ]
    with opened(database) as restarted:
        for other in others:
            assert "(other-epoch)" in load(configured, restarted, other)
        assert load(configured, restarted, terms(6, previous=hash_of(terms(5)), rules=())) == "6"


def test_an_embedded_server_that_was_killed_is_started_again(configured: Settings) -> None:
    left_behind = configured.state / "postgres" / "agent-dsn"
    left_behind.parent.mkdir(mode=0o700)
    left_behind.write_text(f"host=127.0.0.1 port={free_port()} user=postgres password=x dbname=insurer_agent")
    settings = replace(configured, database=None)
    with database_server(settings), opened(find_dsn(settings)) as store:
        assert one(store, SETTINGS) == 0


def test_an_agent_is_not_served_from_a_server_that_ends_with_another_command(configured: Settings) -> None:
    settings = replace(configured, database=None)
    with (
        database_server(settings),
        pytest.raises(SettingsError, match="another command"),
        database_server(settings, own=True),
    ):
        pass
    with database_server(settings, own=True), database_server(settings):
        find_dsn(settings)


def test_the_options_of_a_connection_string_are_kept(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA elsewhere")
    with opened(make_conninfo(database, options="-c search_path=elsewhere")) as store:
        assert one(store, "SELECT count(*) FROM pg_tables WHERE schemaname = 'elsewhere'")
        assert one(store, "SELECT current_setting('synchronous_commit')") == "on"


def test_an_earlier_manifest_that_no_neighbour_names_and_one_from_the_future_are_not_kept(store: Database) -> None:
    def signed(what: Terms) -> bytes:
        names = ("admin-0", "admin-2")
        return encode(SignedManifest(encode(what), tuple(sign_terms(what, name, ADMINS[name]) for name in names)))

    pins = AdminPins({name: signing.public_key(key) for name, key in ADMINS.items()}, 2)
    kept = Manifests(store, pins, lambda _manifest: None)
    published, rival = terms(6, previous=hash_of(terms(5))), terms(6, previous=hash_of(terms(5)), expected_persons=1)
    kept.load(signed(terms(7, previous=hash_of(published))), time.time())
    with pytest.raises(ProtocolError, match="other-previous"):
        kept.keep_earlier(signed(rival), hash_of(rival))
    assert kept.keep_earlier(signed(published), hash_of(published)).hash == hash_of(published)
    with pytest.raises(ProtocolError, match="other-previous"):
        kept.keep_earlier(signed(terms(5, expected_persons=1)), hash_of(terms(5, expected_persons=1)))
    ahead = terms(8, issued_at=int(time.time()) + 3600, previous=hash_of(terms(7, previous=hash_of(published))))
    for take in (kept.take, kept.load):
        with pytest.raises(ProtocolError, match="manifest-from-the-future"):
            take(signed(ahead), time.time())
