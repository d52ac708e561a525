"""The fault table: every remote write there is, once as failed and once as failed but persisted.

A remote write is a POST between agents and service, a transaction of the agent's database, or a command to Redis. Each
row is cut on the wire, once and again and again until it is mended. What must hold: the caller gets an error or a right
answer, and doing it again leads to exactly what a run without a fault leads to. Nothing counts twice, nothing is lost,
and no check is `within` for want of an answer. A write that has no row here fails the test of completeness.
"""

import ast
import datetime as dt
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from books import LIMIT, Place
from consuming import GROUP, QUICK, STREAM, policy
from embedded_redis import EmbeddedRedis
from live import wait_until
from opened import open_custody
from test_store_custody import A_DAY, admission, commit_of, judged, plain
from test_store_custody import proposed as a_proposed
from wired import ADMIN, MEMBERS, Wired, wired_alliance
from wires import Fault, Wire, is_post, redis_answered, says_ok

from insurer_agent.agent import load_manifest, open_manifests
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.policy import Event
from insurer_agent.intake.stream_entry import EntryMapping
from insurer_agent.keys import AgentKeys
from insurer_agent.policy_stream import PolicyStream
from insurer_agent.roles import Role
from insurer_agent.store import redis_idempotency
from insurer_agent.store.check_jobs import NewItem, Outcome, Part
from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.keyring import Keyring
from insurer_agent.store.manifests import Manifests
from insurer_agent.store.outbox import Attempt, Backlog, Lacking
from insurer_agent.store.own_answers import Counted, OwnLane
from insurer_agent.store.rechecks import FIRST, OpenLane, Spool
from insurer_agent.store.redis_idempotency import RedisIdempotency
from insurer_agent.store.register import PolicyEvent, PolicyName
from insurer_agent.stream_consumer import Consumer, lock_of
from protocol.check import Verdict
from protocol.committee_keys import CommitteeKey, holders, key_sets
from protocol.custody import PENDING_SECONDS, Kept, RangeAttempt, Reading
from protocol.deposit import make_deposit
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.identity import DocumentType, Identity
from protocol.manifest import Manifest, SignedManifest, china_day, hash_of, sign_terms, verify_manifest
from protocol.messages import UNDERWRITING
from protocol.secret import Secret
from protocol.stamps import as_of_tick, tick_at
from transport import internal
from transport.problems import Problem
from transport.redis_link import RedisLink
from transport.settings import load_pins

ROOT = Path(__file__).parent.parent
AGENT = ("insurer_agent", "transport")
SOURCES = (*AGENT, "service")
"""What talks to anything; `protocol` does not, as tests/test_purity.py shows."""
ONCE, UNTIL_MENDED = 1, 1_000
DAY = dt.date.fromordinal(china_day(time.time()) - 3)
SOMEONE = Identity(DocumentType.PASSPORT, "E10000001")
ISSUED = PolicyEvent("A-1", SOMEONE, "accident", Event.ISSUE, 5_000, DAY)
AMENDED = replace(ISSUED, event=Event.AMEND, amount=7_000, day=DAY + dt.timedelta(days=1))
OTHER = replace(ISSUED, policy_number="A-2")
AT_DAY = time.time() - 3 * 86_400
JOB_ID, JOB_KEY = bytes(range(16)), "an API key"
OTHER_KEY = CommitteeKey.named(0, None, 99, 1_700_000_000, Secret(bytes(32)))
"""Of a version of the committee that is not in use."""


@dataclass(frozen=True)
class Refused:
    """An error that the caller is told, by its code."""

    code: str


@dataclass(frozen=True)
class Case:
    """A transaction: what stands before it, what runs it, and how the caller does it again if that is otherwise."""

    act: Callable[[Wired, Any], object]
    arrange: Callable[[Wired], Any] = lambda _there: None
    again: Callable[[Wired, Any], object] | None = None

    def told(self, there: Wired, given: Any, *, again: bool = False) -> object:  # noqa: ANN401  whatever was arranged
        try:
            return (self.again or self.act if again else self.act)(there, given)
        except (Problem, ProtocolError, IntakeError) as error:
            return Refused(error.code)


# --- the agent's database ------------------------------------------------------------------------------------------


def put(there: Wired, query: str) -> None:
    """Change the first member's database past the wire."""
    there.aside.execute(query.encode())


def custody(there: Wired) -> PostgresCustody:
    return there.one.custodian._custody


def keyring(there: Wired) -> Keyring:
    put(there, "DELETE FROM committee_key WHERE committee_version = 99")
    return there.one.custodian._keyring


def applied(there: Wired) -> None:
    there.one.register.apply([ISSUED])


def with_place(there: Wired) -> Any:  # noqa: ANN401  its type is the store's own
    return there.one.idempotency.begin("an API key", "a key", b"a request")


def with_api_key(there: Wired) -> str:
    return there.one.api_keys.make("someone", secrets.token_bytes, roles=Role)


def own_counted(there: Wired) -> Counted:
    lane = OwnLane(b"someone", "a rule", 4, 30, 5, 6)
    with there.one.own_answers.counting(bytes(16), UNDERWRITING, [lane, lane], AT_DAY) as counted:
        return counted()


def with_made(there: Wired) -> Any:  # noqa: ANN401  a deposit as the outbox hands it out, and its bytes
    applied(there)
    (item,) = there.one.outbox.due(10)
    assert item.entry is not None
    return item, make_deposit(there.one.party, item.entry, item.deposit_id, secrets.token_bytes)


def with_stored(there: Wired) -> Any:  # noqa: ANN401  as above
    item, made = with_made(there)
    there.one.outbox.store_made({item.seq: made})
    return item


def with_aside(there: Wired) -> None:
    applied(there)
    put(there, "UPDATE deposit SET set_aside_at = now(), next_attempt_at = now() + interval '1 hour'")


def range_attempt(today: int = DAY.toordinal()) -> RangeAttempt:
    """Return a range check under the header that the proofs of `commit_of` name."""
    return RangeAttempt(bytes(32), today, A_DAY)


def with_prepared(there: Wired) -> None:
    """Have deposits pending whose range check has passed a third over, as lost: their commit gives it up."""
    custody(there).prepare([a_proposed(3)], 0.0)
    custody(there).prepare([a_proposed(1), a_proposed(2)], PENDING_SECONDS + 1.0, range_attempt())


def with_recorded(there: Wired) -> Lacking:
    record(there, with_stored(there))
    (lacking,) = there.one.outbox.lacking(there.one.party.manifest)
    return lacking


def spool(there: Wired) -> Spool:
    """Return what a recheck has still to ask: each time of the same run."""
    return Spool(there.database, there.one.register, there.one.vault, lambda _: 0, bytes)


def collected(there: Wired) -> object:
    return spool(there).collect(there.one.party.manifest.terms.rules, DAY.toordinal())


def with_lanes(there: Wired) -> list[OpenLane]:
    there.one.register.apply([ISSUED, replace(OTHER, insured=Identity(DocumentType.PASSPORT, "E10000002"))])
    collected(there)
    return spool(there).next(FIRST, 10)


def make_job(there: Wired) -> object:
    new = [NewItem(place, 0, b"someone", b"what is asked") for place in range(2)]
    there.one.jobs.make(JOB_ID, JOB_KEY, [*new, Outcome(2, b"a problem", {"problems": 1})], as_csv=False)
    return done_of(there)


def done_of(there: Wired) -> object:
    job = there.one.jobs.find(JOB_ID, JOB_KEY)
    return None if job is None else (job.total, job.done, job.counts)


def with_job(there: Wired) -> Part:
    make_job(there)
    part = there.one.jobs.due(10, 10)
    assert part is not None
    return part


def with_snapshot(there: Wired) -> Any:  # noqa: ANN401  its type is the store's own
    snapshot = there.one.snapshot("all")
    snapshot.begin()
    snapshot.see([ISSUED, OTHER], [])
    return snapshot


def with_missing(there: Wired) -> Any:  # noqa: ANN401  as above
    with_snapshot(there).apply([ISSUED, OTHER])
    snapshot = there.one.snapshot("all")
    snapshot.begin()
    snapshot.see([ISSUED], [])
    return snapshot


def without_tables(there: Wired) -> None:
    there.aside_empty.execute("DROP SCHEMA public CASCADE")
    there.aside_empty.execute("CREATE SCHEMA public")


def with_old(there: Wired) -> None:
    """Have what no check and no deposit is asked of any more, and no partition for the days of now."""
    custody(there).admit(admission(today=DAY.toordinal() - 500))
    custody(there).prepare([a_proposed(1)], 0.0, range_attempt(DAY.toordinal() - 500))
    put(there, f"DROP TABLE IF EXISTS custody_row_{DAY:%Y_%m}")
    put(
        there,
        "CREATE TABLE IF NOT EXISTS custody_row_2001_01 PARTITION OF custody_row"
        " FOR VALUES FROM ('2001-01-01') TO ('2001-02-01')",
    )


def forget_old(there: Wired, _: object) -> None:
    there.one.custodian.forget_old(AT_DAY)


def forgotten(there: Wired, given: object) -> None:
    forget_old(there, given)
    months, found = {f"custody_row_{DAY:%Y_%m}", "custody_row_2001_01"}, there.state()
    assert months & found.keys() == {f"custody_row_{DAY:%Y_%m}"}
    assert found["check_request"] == found["range_attempt"] == found["custody_pending"] == []


def record(there: Wired, item: Any) -> None:  # noqa: ANN401  as above
    states = {slot: Kept(7, never=False, envelope_hash=b"") for slot in (1, 2)}
    there.one.outbox.record([Attempt(item, states, made=True)])


def reread(there: Wired) -> object:
    there.one.directory._read_at = float("-inf")
    return there.one.directory.now().members


def loaded(there: Wired) -> object:
    keys = AgentKeys.load(there.one.settings.state)
    return load_manifest(there.one.settings, keys, there.database).terms.serial


def manifests(there: Wired) -> Manifests:
    return open_manifests(there.one.settings, AgentKeys.load(there.one.settings.state), there.database)


def verified(there: Wired, data: bytes) -> Manifest:
    return verify_manifest(data, load_pins(there.one.settings.admins))


def another(there: Wired, serials: int) -> bytes:
    """Return a manifest that follows that of the file, or that it follows; the latter alone is known."""
    put(there, "DELETE FROM manifest")
    loaded(there)
    terms = there.one.party.manifest.terms
    previous = hash_of(terms) if serials > 0 else bytes(32)  # as `wired` has made the one that it follows
    terms = replace(terms, serial=terms.serial + serials, previous=previous, issued_at=terms.issued_at + serials)
    signature = sign_terms(terms, "admin", ADMIN)
    return encode(SignedManifest(terms=encode(terms), signatures=(signature,)))


def newest(there: Wired) -> object:
    found = manifests(there).newest()
    return found and found.terms.serial


AT = Reading(shard=0, epoch=1, tick=10, persons=((a_proposed(1).index, 1),))

TRANSACTIONS = {
    # Policies
    "apply policy events": Case(lambda there, _: there.one.register.apply([ISSUED, AMENDED, OTHER])),
    "correct a policy": Case(
        lambda there, _: there.one.register.correct(PolicyName("A-1"), Event.AMEND, 9_000)[1].current, applied
    ),
    "find policies": Case(lambda there, _: len(there.one.register.find(PolicyName("A-1"))), applied),
    "begin a snapshot": Case(lambda _, snapshot: snapshot.begin(), with_snapshot),
    "see a snapshot": Case(lambda _, snapshot: snapshot.see([AMENDED], ["A-1", "A-9"]), with_missing),
    "compare a snapshot": Case(lambda _, snapshot: snapshot.change(), with_missing),
    "apply a snapshot": Case(lambda _, snapshot: snapshot.apply([ISSUED, OTHER]), with_snapshot),
    "cancel what a snapshot lacks": Case(lambda _, snapshot: snapshot.cancel_missing(), with_missing),
    # Requests
    "begin idempotent request": Case(lambda there, _: type(with_place(there))),
    "keep idempotent answer": Case(lambda there, place: there.one.idempotency.keep(place, b"an answer"), with_place),
    "release idempotency key": Case(lambda there, place: there.one.idempotency.release(place), with_place),
    "forget idempotency keys": Case(
        lambda there, _: there.one.idempotency.forget_old(),
        lambda there: (with_place(there), put(there, "UPDATE idempotency SET started_at = now() - interval '2 days'")),
    ),
    "make api key": Case(
        lambda there, _: there.one.api_keys.holder(with_api_key(there)),
        # A key whose making was told to have failed is made again in its place: nobody has seen it.
        again=lambda there, _: there.one.api_keys.holder(
            there.one.api_keys.make("someone", secrets.token_bytes, roles=Role, replace=True)
        ),
    ),
    "list api keys": Case(lambda there, _: [one.name for one in there.one.api_keys.entries()], with_api_key),
    "revoke api key": Case(lambda there, _: there.one.api_keys.revoke("someone"), with_api_key),
    "find api key": Case(lambda there, key: there.one.api_keys.holder(key), with_api_key),
    # What was asked
    "count own answers": Case(lambda there, _: own_counted(there).stopped),
    "note own answers": Case(lambda there, one: there.one.own_answers.put(one, [0]), own_counted),
    "forget own answers": Case(
        lambda there, _: there.one.own_answers.forget_old(DAY.toordinal() + 9),
        lambda there: (own_counted(there), put(there, "UPDATE own_answer SET day = '2001-01-01'")),
    ),
    # The outbox
    "look for open deposits": Case(lambda there, _: there.one.outbox.any_open(), applied),
    "due deposits": Case(lambda there, _: len(there.one.outbox.due(10)), applied),
    "set damaged deposits aside": Case(
        lambda there, _: len(there.one.outbox.due(10)),
        lambda there: (applied(there), put(there, "UPDATE deposit SET entry = 'damaged'")),
    ),
    "retry deposits set aside": Case(
        lambda there, _: (there.one.outbox.retry_set_aside(), len(there.one.outbox.due(10))), with_aside
    ),
    "list deposits set aside": Case(lambda there, _: len(there.one.outbox.set_aside()), with_aside),
    "highest tick": Case(
        lambda there, _: there.one.outbox.highest_tick(), lambda there: record(there, with_stored(there))
    ),
    "store made deposits": Case(
        lambda there, made: there.one.outbox.store_made({made[0].seq: made[1]}) == {made[0].seq: made[1]}, with_made
    ),
    "record deposit attempts": Case(record, with_stored),
    "count backlog": Case(lambda there, _: there.one.outbox.backlog(), applied),
    "find what is lacking": Case(lambda there, _: there.one.outbox.lacking(there.one.party.manifest), with_recorded),
    "repeated deposits": Case(
        lambda there, lacking: [item.receipts for item in there.one.outbox.repeats(lacking, 10)], with_recorded
    ),
    "find watermark": Case(lambda there, _: there.one.outbox.complete_until(60) <= time.time() + 1, applied),
    # Custody
    "admit check": Case(lambda there, _: custody(there).admit(admission())),
    "admit check and read custody": Case(
        lambda there, _: custody(there).admit_and_view(admission(), AT),
        lambda there: (with_prepared(there), custody(there).commit("insurer-01", 0, [commit_of(1, 9)])),
    ),
    "read custody": Case(
        lambda there, _: custody(there).view(AT),
        lambda there: (with_prepared(there), custody(there).commit("insurer-01", 0, [commit_of(1, 9)])),
    ),
    "prepare deposits": Case(
        lambda there, _: judged(
            custody(there).prepare([a_proposed(1), a_proposed(2, whom=1)], PENDING_SECONDS + 1.0, range_attempt())
        ),
        lambda there: custody(there).prepare([a_proposed(1), a_proposed(3)], 0.0),
    ),
    "commit deposits": Case(
        lambda there, _: plain(custody(there).commit("insurer-01", 0, [commit_of(n, 9) for n in (1, 2)])),
        with_prepared,
    ),
    "abandon deposits": Case(
        lambda there, _: plain(
            custody(there).abandon("insurer-01", 0, [a_proposed(n).deposit_id for n in (2, 4)], AT_DAY)
        ),
        with_prepared,
    ),
    "forget old checks": Case(forget_old, with_old, forgotten),
    "forget old deposits": Case(forget_old, with_old, forgotten),
    "arrange partitions": Case(forget_old, with_old, forgotten),
    "find committee key": Case(
        lambda there, _: there.one.custodian._keyring.find(0, None, 99) is not None,
        lambda there: keyring(there).keep(OTHER_KEY),
    ),
    "keep committee key": Case(lambda there, _: there.one.custodian._keyring.keep(OTHER_KEY) == OTHER_KEY, keyring),
    "confirm committee key": Case(
        lambda there, _: there.one.custodian._keyring.confirm(OTHER_KEY, "insurer-02"),
        lambda there: keyring(there).keep(OTHER_KEY),
    ),
    # Rechecks
    "collect whom to check again": Case(lambda there, _: collected(there), with_lanes),
    "count open lanes": Case(lambda there, _: spool(there).extent(), with_lanes),
    "read open lanes": Case(
        lambda there, _: [(lane.place, len(lane.policies)) for lane in spool(there).next(FIRST, 10)], with_lanes
    ),
    "close lanes": Case(
        lambda there, lanes: spool(there).close(lanes[:1], [(lane, "no-answer") for lane in lanes[1:]]), with_lanes
    ),
    "forget a recheck": Case(lambda there, _: spool(there).forget(), with_lanes),
    # Jobs
    "make a check job": Case(lambda there, _: make_job(there)),
    "find a check job": Case(lambda there, _: done_of(there), with_job),
    "look for open check jobs": Case(lambda there, _: there.one.jobs.any_open(), with_job),
    "read open items of a check job": Case(lambda there, _: there.one.jobs.due(10, 10), with_job),
    "settle items of a check job": Case(
        lambda there, part: (
            there.one.jobs.settle(JOB_ID, [Outcome(0, b"{}", {"within": 1})], part.items[1:], tries=1, pause=0.0),
            done_of(there),
        ),
        with_job,
    ),
    "read answers of a check job": Case(lambda there, _: there.one.jobs.answers(JOB_ID, -1, 10), with_job),
    "remove a check job": Case(lambda there, _: there.one.jobs.remove(JOB_ID, JOB_KEY), with_job),
    "forget check jobs": Case(
        lambda there, _: (there.one.jobs.forget_old(), done_of(there)),
        lambda there: (with_job(there), put(there, "UPDATE check_job SET created_at = now() - interval '8 days'")),
    ),
    # The agent's own
    "keep directory": Case(
        lambda there, _: there.one.directory.exchange(),
        lambda there: put(there, "DELETE FROM setting WHERE name = 'directory'"),
    ),
    "read directory": Case(lambda there, _: reread(there), lambda there: there.one.directory.exchange()),
    "load manifest": Case(lambda there, _: loaded(there), lambda there: put(there, "DELETE FROM manifest")),
    "take manifest": Case(
        lambda there, data: manifests(there).take(data, time.time()).terms.serial, lambda there: another(there, +1)
    ),
    "keep an earlier manifest": Case(
        lambda there, data: manifests(there).keep_earlier(data, verified(there, data).hash).terms.serial,
        lambda there: another(there, -1),
    ),
    "newest manifest": Case(lambda there, _: newest(there), lambda there: another(there, +1)),
    "manifest by hash": Case(
        lambda there, _: manifests(there).by_hash(there.one.party.manifest.hash) is not None,
        lambda there: another(there, +1),
    ),
    "migrate": Case(lambda there, _: there.empty.migrate(), without_tables),
    "check durability": Case(lambda there, _: there.empty.migrate(), without_tables),
}
"""By the name of the transaction. Those that only read have a row, too: nobody has to say which they are."""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres, patch: pytest.MonkeyPatch
) -> Iterator[Wired]:
    """One agent and the service."""
    with wired_alliance(tmp_path_factory.mktemp("bench"), postgres, patch, present=1) as there:
        yield there


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("name", list(TRANSACTIONS))
def test_a_transaction_that_fails_is_told_or_right_and_the_same_once_repeated(
    bench: Wired, name: str, fault: Fault
) -> None:
    case = TRANSACTIONS[name]
    bench.clear()
    given = case.arrange(bench)
    right = [case.told(bench, given), case.told(bench, given, again=True)]
    state = bench.state()
    database = bench.empty if case.arrange is without_tables else bench.database
    for times in (ONCE, UNTIL_MENDED):
        bench.clear()
        given = case.arrange(bench)
        bench.to_postgres.cut(fault, database.commits(name), times)
        told = case.told(bench, given)
        assert bench.to_postgres.cuts > 0, "nothing was cut"
        bench.to_postgres.mend()
        assert isinstance(told, Refused) or (times == ONCE and told in right)
        case.told(bench, given, again=True)
        assert bench.state() == state


# --- between agents and service --------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """The plain sum of what the first member has deposited."""

    there: Wired
    sums: dict[Place, tuple[int, int]]
    covered: tuple[str, str] = ("passport", "E30000000")
    asked: int = 0

    def issue(self) -> None:
        number = len(self.sums)
        self.add(("passport", f"E2{number:07d}"), 1_000_000 + number)

    def add(self, person: tuple[str, str], fen: int) -> None:
        insured = Identity(DocumentType(person[0]), person[1])
        event = PolicyEvent(f"P-{len(self.sums)}", insured, "accident", Event.ISSUE, fen, DAY)
        self.there.one.register.apply([event])
        self.sums["insurer-01", person, "accident", DAY] = (fen, 1)

    def deliver(self) -> None:
        """Send again what is not everywhere, as often as it takes."""
        for _ in range(5):
            if self.there.one.outbox.backlog() == Backlog(0, 0):
                return
            self.there.make_due()
            self.there.one.depositor.send_due()
        pytest.fail(f"not delivered: {self.there.one.outbox.backlog()}")

    def require_plain(self) -> None:
        """Require that what the custodians hold, opened, is the plain sum, and every deposit is there once."""
        persons = [person for _, person, _, _ in self.sums]
        opened = open_custody(self.there.root, MEMBERS, persons)
        assert opened.faults == []
        assert opened.sums == self.sums
        assert opened.deposits == {"insurer-01": len(self.sums)}

    def verdict(self, proposed: int) -> Verdict:
        self.asked += 1  # in turn, as each member has a budget
        agent = self.there.agents[f"insurer-{1 + self.asked % MEMBERS:02d}"]
        insured = Identity(DocumentType(self.covered[0]), self.covered[1])
        (lane,) = agent.requester.check(insured, ["accident-30d"], proposed).lanes
        assert (lane.verdict is Verdict.INDETERMINATE) == (lane.reason is not None)
        return lane.verdict

    def require_right_verdicts(self) -> None:
        for proposed, right in ((LIMIT - 3_000, Verdict.WITHIN), (LIMIT - 2_999, Verdict.EXCEEDS)):
            told = Verdict.INDETERMINATE
            while told is Verdict.INDETERMINATE:
                assert self.asked < 250, "no answer, until the budget was spent"
                told = self.verdict(proposed)
            assert told is right


@pytest.fixture(scope="module")
def ledger(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres, patch: pytest.MonkeyPatch
) -> Iterator[Ledger]:
    """Six agents and the service, with 30 yuan of cover of one person that checks see."""
    with wired_alliance(tmp_path_factory.mktemp("alliance"), postgres, patch) as there:
        wait_until(lambda: there.exchange_keys() == 0, 10)
        opened = Ledger(there, {})
        opened.add(opened.covered, 3_000)
        opened.deliver()
        done = tick_at(time.time(), 1)
        wait_until(lambda: as_of_tick(time.time(), 1) >= done)
        yield opened


def a_deposit(ledger: Ledger) -> Callable[[], None]:
    ledger.issue()

    def act() -> None:
        ledger.there.one.depositor.send_due()

    return act


def a_check(ledger: Ledger) -> Callable[[], None]:
    def act() -> None:
        assert ledger.verdict(LIMIT - 3_000) in (Verdict.WITHIN, Verdict.INDETERMINATE)
        assert ledger.verdict(LIMIT - 2_999) in (Verdict.EXCEEDS, Verdict.INDETERMINATE)

    return act


def checks_together(ledger: Ledger) -> Callable[[], None]:
    """Have several asked at once, of which the service, that has one flight, has all but the first leave together."""
    asked = [(LIMIT - 3_000, Verdict.WITHIN), (LIMIT - 2_999, Verdict.EXCEEDS)] * 2

    def act() -> None:
        with ThreadPoolExecutor(len(asked)) as pool:
            told = pool.map(ledger.verdict, [proposed for proposed, _ in asked])
            for verdict, (_, right) in zip(told, asked, strict=True):
                assert verdict in (right, Verdict.INDETERMINATE)

    return act


def a_key_exchange(ledger: Ledger) -> Callable[[], None]:
    ledger.there.forget_keys()

    def act() -> None:
        ledger.there.exchange_keys()

    return act


def a_watermark(ledger: Ledger) -> Callable[[], None]:
    def act() -> None:
        with suppress(ProtocolError):
            ledger.there.one.directory.exchange()

    return act


TO_SERVICE = {
    "/v1/deposits": a_deposit,
    "/v1/checks": a_check,
    "/v1/relay": a_key_exchange,
    "/v1/watermarks": a_watermark,
}
TO_AGENT = {
    internal.PREPARE: a_deposit,
    internal.COMMIT: a_deposit,
    internal.CHECK: a_check,
    internal.CHECKS: checks_together,
    internal.COMMITTEE_KEY: a_key_exchange,
}


def require_as_without_fault(ledger: Ledger) -> None:
    """Do everything again until it is done, and require what a run without a fault leads to."""
    there = ledger.there
    wait_until(lambda: there.exchange_keys() == 0, 10)
    manifest = there.one.party.manifest
    for omitted in key_sets(manifest, 0):
        maker, *others = holders(manifest, 0, omitted)
        made = there.agents[maker].custodian._keyring.find(0, omitted, manifest.committee(0).version)
        assert made is not None
        assert made.confirmed_by == set(others)
        for other in others:
            held = there.agents[other].custodian._keyring.find(0, omitted, manifest.committee(0).version)
            assert held is not None
            assert held.key == made.key
    ledger.deliver()
    ledger.require_plain()
    there.one.directory.exchange()
    there.one.directory._read_at = float("-inf")
    assert there.one.directory.now().members == MEMBERS
    assert list(there.one.directory._until) == ["insurer-01"]
    ledger.require_right_verdicts()


@pytest.mark.parametrize("times", [ONCE, UNTIL_MENDED])
@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("path", list(TO_SERVICE))
def test_a_call_to_the_service_that_fails_changes_nothing_once_repeated(
    ledger: Ledger, path: str, fault: Fault, times: int
) -> None:
    act = TO_SERVICE[path](ledger)
    wire = ledger.there.wires["service"]
    wire.cut(fault, is_post(path), times)
    act()
    assert wire.cuts > 0, "nothing was cut"
    wire.mend()
    require_as_without_fault(ledger)


@pytest.mark.parametrize("victims", [1, MEMBERS])
@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("path", list(TO_AGENT))
def test_a_call_to_custodians_that_fails_changes_nothing_once_repeated(
    ledger: Ledger, path: str, fault: Fault, victims: int
) -> None:
    act = TO_AGENT[path](ledger)
    wires = [ledger.there.wires[f"insurer-{number:02d}"] for number in range(MEMBERS, MEMBERS - victims, -1)]
    for wire in wires:
        wire.cut(fault, is_post(path), UNTIL_MENDED)
    for _ in range(5):  # a check does not ask all of them
        act()
        if any(wire.cuts for wire in wires):
            break
    assert any(wire.cuts for wire in wires), "nothing was cut"
    for wire in wires:
        wire.mend()
    require_as_without_fault(ledger)


# --- Redis -----------------------------------------------------------------------------------------------------------

COMMANDS = {
    "XGROUP CREATE": (b"XGROUP", says_ok),
    "XAUTOCLAIM": (b"XAUTOCLAIM", redis_answered),
    "XREADGROUP": (b"XREADGROUP", redis_answered),
    "XACK": (b"XACK", redis_answered),
    "XADD": (b"XADD", redis_answered),
}
"""What a consumer tells Redis to change. XADD, of dead letters, and XACK go in one transaction."""
READS = {"XPENDING", "XINFO GROUPS", "XLEN"}


@pytest.fixture
def redis_wire(redis_server: EmbeddedRedis) -> Iterator[Wire]:
    with redis_server.client() as client:
        client.flushall()

    def to() -> socket.socket:
        upstream = socket.socket(socket.AF_UNIX)
        upstream.connect(redis_server.url.removeprefix("unix://"))
        return upstream

    with Wire(to, redis_answered) as wire:
        yield wire


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_command_to_redis_that_fails_changes_nothing_once_repeated(
    bench: Wired, redis_server: EmbeddedRedis, redis_wire: Wire, command: str, fault: Fault
) -> None:
    bench.clear()
    bench.to_postgres.mend()
    events = [policy("A-1"), policy("A-1", "amend", "2000.00"), policy("A-2"), policy("A-3", amount="nothing")]
    with redis_server.client() as client:
        for event in events:
            client.xadd(STREAM, {"policy": json.dumps(event)})
        word, answered = COMMANDS[command]
        redis_wire.cut(fault, lambda data: word in data, 2, answered)
        consume(bench, redis_wire, lambda: redis_wire.cuts > 0 and is_settled(client))
        letters = client.xrange(f"{STREAM}:rejected")
        assert [fields[b"rejected_code"] for _, fields in letters] == [b"amount-not-a-number"]
    found = [state.record for number in ("A-1", "A-2", "A-3") for state in bench.one.register.find(PolicyName(number))]
    assert [(record.policy_number, record.current) for record in found] == [("A-1", 200_000), ("A-2", 100_000)]
    assert bench.one.outbox.backlog() == Backlog(3, 0)


def is_settled(client: Any) -> bool:  # noqa: ANN401  Redis' client
    groups = client.xinfo_groups(STREAM)
    if not groups or groups[0]["pending"]:
        return False
    return bool(groups[0]["last-delivered-id"] == client.xinfo_stream(STREAM)["last-generated-id"])


def consume(there: Wired, wire: Wire, until: Callable[[], bool]) -> None:
    """Have the first member's consumer at work until then."""
    stop = threading.Event()
    stream = PolicyStream(f"redis://127.0.0.1:{wire.port}", STREAM, GROUP, "here")
    terms = there.one.party.manifest.terms
    mapping = EntryMapping(products=frozenset(terms.products), maximum=terms.deposit_cap)
    lock = lock_of(STREAM, GROUP)
    worker = Consumer(stream, there.database, there.one.register, mapping, lock=lock, pace=QUICK, stop=stop)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(until, 30)
    finally:
        stop.set()
        thread.join(30)
        stream.close()


ASKED = ("an API key", "a key", b"a request")
SCRIPTS: dict[str, Callable[[RedisIdempotency, Any], object]] = {
    "_BEGIN": lambda keys, _: type(keys.begin(*ASKED)),
    "_KEEP": lambda keys, place: keys.keep(place, b"an answer"),
    "_RELEASE": lambda keys, place: keys.release(place),
}
"""What an agent has Redis do for Idempotency-Keys, by the name of the script."""
LIMITS = {("transport/buckets.py", "_TAKE")}
"""Has no row: a take that is lost is made good in the process, and may count twice against its holder; that no more is
granted than flows in, with Redis there or away, is what tests/test_buckets.py shows.
"""


def keys_in_redis(there: Wired, url: str) -> RedisIdempotency:
    return RedisIdempotency(RedisLink(url, "the fault table", 20.0), ("keys",), there.one.vault, secrets.token_bytes)


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("name", list(SCRIPTS))
def test_a_script_in_redis_that_fails_is_told_and_the_same_once_repeated(
    bench: Wired, redis_server: EmbeddedRedis, redis_wire: Wire, name: str, fault: Fault
) -> None:
    near, far = keys_in_redis(bench, redis_server.url), keys_in_redis(bench, f"redis://127.0.0.1:{redis_wire.port}")

    def told(keys: RedisIdempotency) -> object:
        try:
            return SCRIPTS[name](keys, place)
        except Problem as problem:
            return Refused(problem.code)

    with redis_server.client() as client, closing(near._link), closing(far._link):

        def arrange() -> object:
            client.flushall()
            return None if name == "_BEGIN" else near.begin(*ASKED)

        place = arrange()
        first, second = told(near), told(near)
        state = {key: client.strlen(key) for key in client.scan_iter()}
        place = arrange()
        script = str(getattr(redis_idempotency, name)).encode()
        redis_wire.cut(fault, lambda data: script in data, ONCE, lambda _: True)
        assert told(far) == Refused("idempotency-unavailable")
        assert redis_wire.cuts == ONCE
        assert told(near) == (first if fault is Fault.FAILED else second)
        assert {key: client.strlen(key) for key in client.scan_iter()} == state


# --- the table is whole -------------------------------------------------------------------------------------------


def calls(*folders: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in the sources, with the name of what is called."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                    yield node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id, node


NAMING = ("run", "begun", "_in_turn", "_outgoing")
"""What is called with the name of a transaction first."""


def test_every_transaction_has_a_row() -> None:
    named = set()
    for called, node in calls("insurer_agent"):
        if called in NAMING and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                named.add(first.value)
            elif called == "run" and "database" in ast.unparse(node.func):
                assert ast.unparse(first) == "name", f"a transaction's name stands in {NAMING}"
    assert named == set(TRANSACTIONS), "a transaction without a row in TRANSACTIONS, or a row without one"


def test_nothing_else_opens_a_connection_to_the_database() -> None:
    opened = {ast.unparse(node.func) for called, node in calls(*AGENT) if called == "connect"}
    assert opened <= {"psycopg.connect", "super().connect", "connection.connect"}
    files = {
        str(file.relative_to(ROOT))
        for folder in AGENT
        for file in (ROOT / folder).rglob("*.py")
        if re.search(r"psycopg\.connect\(|ConnectionPool\(", file.read_text(encoding="utf-8"))
    }
    # The server's own life and its look whether it answers, and queries of a policy system, in transactions that
    # cannot write; Redis has a pool of its own.
    assert files == {
        "insurer_agent/embedded_postgres.py",
        "insurer_agent/sql_rows.py",
        "insurer_agent/store/database.py",
        "insurer_agent/store/server.py",
        "transport/redis_link.py",
    }


def test_every_call_between_agents_and_service_has_a_row() -> None:
    served = {
        ast.unparse(node.args[0]).strip("'") for called, node in calls("service") if called == "serve" and node.args
    }
    served = {path for path in served if path.startswith("/")}
    assert served == set(TO_SERVICE)
    paths = {value for name, value in vars(internal).items() if name.isupper() and str(value).startswith("/")}
    assert paths == set(TO_AGENT)


def test_every_command_to_redis_has_a_row() -> None:
    source = (ROOT / "insurer_agent/policy_stream.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found = {word for word in words if re.fullmatch(r"X[A-Z]+( [A-Z]+)?", word)}
    found |= {name.upper().replace("_", " ") for name in re.findall(r"\.(x[a-z_]+)\(", source)}
    assert found == set(COMMANDS) | READS


def test_every_script_in_redis_has_a_row_and_nothing_else_writes_there() -> None:
    scripts, talking, evaluating = set(), set(), set()
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            tree, name = ast.parse(file.read_text(encoding="utf-8")), str(file.relative_to(ROOT))
            for node in ast.walk(tree):
                match node:
                    case ast.Assign(targets=[ast.Name(id=called)], value=ast.Constant(value=str(text))):
                        scripts |= {(name, called)} if "redis.call" in text else set()
                    case ast.ImportFrom(module="redis", names=names):
                        talking |= {name} if "Redis" in {one.name for one in names} else set()
                    case ast.Import(names=names):
                        talking |= {name} if "redis" in {one.name.split(".")[0] for one in names} else set()
                    case ast.Attribute(attr="eval" | "evalsha" | "register_script" | "execute_command"):
                        evaluating.add(name)
    assert scripts == {("insurer_agent/store/redis_idempotency.py", name) for name in SCRIPTS} | LIMITS
    assert talking == {"insurer_agent/policy_stream.py", "transport/redis_link.py"}
    assert evaluating == talking
