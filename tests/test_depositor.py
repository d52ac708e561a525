"""The depositor's rounds against a relay on the wire, with clocks that are not the depositor's."""

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from test_store_outbox import Store, entry
from world import NOW, TODAY, World, make_world, person

import insurer_agent.depositor
from insurer_agent.acting import Acting
from insurer_agent.depositor import BATCH, Depositor
from insurer_agent.store.outbox import SPARE_DAYS, Backlog
from protocol.check import shard_of_person
from protocol.committee import preferred_choice
from protocol.comparison import Disagreement
from protocol.deposit import (
    accept_batch,
    accept_commit,
    accept_prepare,
    batch_outcome,
    claimed_proofs,
    commit_call,
    confirm,
    decide,
    give_receipts,
    opened_proofs,
    prepare_call,
)
from protocol.encoding import decode, encode
from protocol.manifest import MAX_WINDOW_DAYS
from protocol.messages import AMENDMENT, BatchOutcome, PrepareAnswer, RangeOrder, SignedBatch
from protocol.stamps import tick_at
from transport import internal
from transport.peers import Peers

TICK_SECONDS = 10


@dataclass
class Alliance:
    """The lookup service on the wire, the holders behind it in memory, and the clocks of all."""

    world: World
    depositor_now: float = NOW
    others_now: float = NOW
    passed: float = 0.0
    """The seconds that have passed by the depositor's other clock."""
    down: frozenset[int] = frozenset()
    """Slots that do not answer commits."""
    first_ticks: list[int] = field(default_factory=list)
    """The tick before which each deposit must not count, as its holders read it."""
    repeats: list[bool] = field(default_factory=list)
    """Of each batch, whether its depositor says that it counts already."""

    def deposit(self, signed: SignedBatch) -> BatchOutcome:
        """What the relay and the holders do, each step as in `run_deposit`."""
        world, now = self.world, self.others_now
        evaluated = accept_batch(world.service, signed, now, world.random)
        batch = evaluated.batch
        slots = world.manifest.committee(batch.shard).slots
        self.repeats.append(bool(batch.made))
        answers: dict[int, PrepareAnswer] = {}
        scores = {slot: float(slot in self.down) for slot in evaluated.slots}
        chosen = None if batch.made else preferred_choice(batch.deposits[0].deposit_id, scores)
        order = None if chosen is None else RangeOrder(world.random(16), chosen, int(now))
        for slot in evaluated.slots:
            holder = world.members[slots[slot]]
            key = holder.committee_keys[batch.shard, world.manifest.slot_of_group(batch.shard, batch.depositor)]
            accepted = accept_prepare(holder.party, prepare_call(evaluated, slot, order), key, now)
            self.first_ticks += [item.facts.not_before for item in accepted.good if slot == evaluated.slots[0]]
            prepared = holder.custody.prepare(accepted.proposed, now, accepted.attempt())
            answers[slot] = confirm(holder.party, accepted, prepared)
        try:
            opened = None if order is None else opened_proofs(world.manifest, evaluated, order, answers)
        except Disagreement:
            opened = None
        proofs = claimed_proofs(world.manifest, evaluated, answers) if opened is None else opened
        decisions = decide(world.manifest, evaluated, answers, proofs, tick_at(now, TICK_SECONDS))
        receipts = {}
        for slot in evaluated.slots:
            call = commit_call(evaluated, decisions, slot)
            if call is not None and slot not in self.down:
                holder = world.members[slots[slot]]
                commits = accept_commit(holder.party, call, now)
                states = holder.custody.commit(call.depositor, call.shard, commits)
                receipts[slot] = give_receipts(
                    holder.party, call.depositor, call.shard, [item.deposit_id for item in commits], states
                )
        return batch_outcome(decisions, receipts)


@pytest.fixture
def alliance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alliance]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = encode(there.deposit(decode(SignedBatch, body)))
            self.send_response(200)
            self.send_header("Content-Type", internal.CONTENT_TYPE)
            self.send_header("Content-Length", str(len(answer)))
            signing_key = there.world.service.keys.signing
            self.send_header(internal.SIGNATURE_HEADER, internal.sign_answer(signing_key, self.path, body, answer))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        there = Alliance(make_world(tick_seconds=TICK_SECONDS, service_url=url))
        clock = SimpleNamespace(time=lambda: there.depositor_now, monotonic=lambda: there.passed)
        monkeypatch.setattr(insurer_agent.depositor, "time", clock)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield there
        server.shutdown()
        thread.join()


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store.open(database)
    yield opened
    opened.database.close()


def depositor(alliance: Alliance, store: Store) -> Depositor:
    return Depositor(Acting(alliance.world.party(1)), Peers(), store.outbox, 10.0, alliance.world.random)


def test_a_receipt_of_a_tick_to_come_counts_when_it_has_come_and_no_correction_may_count_before_it(
    alliance: Alliance, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    # A depositor whose clock is slow. Did the issue count as made now, its correction could count before it.
    (issued,) = store.put(entry(1))
    store.put(entry(1, -50, AMENDMENT, issued))
    alliance.others_now = NOW + 25
    tick = tick_at(alliance.others_now, TICK_SECONDS)
    one = depositor(alliance, store)
    with caplog.at_level(logging.ERROR):
        assert one.send_due() == 1
    assert "check the clocks" in caplog.text
    assert store.outbox.backlog() == Backlog(2, 0)
    alliance.depositor_now = alliance.others_now
    store.wait()
    assert one.send_due() == 1
    assert store.outbox.backlog() == Backlog(1, 0)
    assert store.outbox.highest_tick() == tick
    store.wait()
    assert one.send_due() == 1
    assert store.outbox.backlog() == Backlog(0, 0)
    assert alliance.first_ticks[-1] == tick


def test_clocks_that_differ_by_less_than_a_tick_hold_nothing_up(alliance: Alliance, store: Store) -> None:
    (issued,) = store.put(entry(1))
    store.put(entry(1, -50, AMENDMENT, issued))
    alliance.others_now = NOW + 9
    one = depositor(alliance, store)
    assert one.send_due() == one.send_due() == 1
    assert store.outbox.backlog() == Backlog(0, 0)


def test_a_deposit_that_cannot_be_made_holds_up_none_of_other_persons(
    alliance: Alliance, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(entry(1, alliance.world.manifest.terms.deposit_cap + 1), entry(2))
    assert depositor(alliance, store).send_due() == 2
    assert store.outbox.backlog() == Backlog(1, 0)
    assert store.column("last_reason") == ["bad-amount", None]
    assert "cannot be made: bad-amount" in caplog.text


def test_a_deposit_is_made_when_enough_holders_have_receipted_it_in_whatever_attempts(
    alliance: Alliance, store: Store
) -> None:
    store.put(entry(1))
    (item,) = store.due()
    slots = [slot for slot in range(6) if slot != item.excluded]
    one = depositor(alliance, store)
    alliance.down = frozenset(slots[2:])
    assert one.send_due() == 1
    assert store.outbox.backlog() == Backlog(1, 0)
    alliance.down = frozenset({*slots[:2], slots[4]})
    store.wait()
    assert one.send_due() == 1
    assert store.outbox.backlog() == Backlog(0, 1)
    alliance.down = frozenset()
    store.wait()
    assert one.send_due() == 1
    assert store.outbox.backlog() == Backlog(0, 0)
    assert alliance.repeats == [False, False, True]


def test_what_has_waited_until_no_window_reaches_its_day_is_not_sent(alliance: Alliance, store: Store) -> None:
    days = [TODAY - MAX_WINDOW_DAYS - SPARE_DAYS - late for late in (1, 0)]
    store.put(*[replace(entry(whom), day=day) for whom, day in enumerate(days)])
    assert depositor(alliance, store).send_due() == 2
    assert store.outbox.backlog() == Backlog(0, 0)
    assert len(alliance.first_ticks) == 1


def test_a_holder_that_is_down_is_tried_with_one_batch_longer_and_longer_apart_and_gets_all_once_it_answers(
    alliance: Alliance, store: Store
) -> None:
    party = alliance.world.party(1)
    shard = next(number for number in (0, 1) if alliance.world.manifest.slot_of_group(number, party.id) is not None)
    whom = [number for number in range(4 * BATCH) if shard_of_person(party, person(number)) == shard][: BATCH + 3]
    store.put(*map(entry, whom))
    one = depositor(alliance, store)
    (excluded,) = {item.excluded for item in store.due()}
    alliance.down = frozenset({(excluded + 1) % 6})
    one.send_due()
    assert store.outbox.backlog() == Backlog(0, len(whom))
    assert one.send_due() == len(whom)  # nothing was known of it: all are tried
    sent = []
    for _ in range(12):
        assert one.send_due() == 0
        assert not one.anything_due()
        waited = 0
        while not one.anything_due():
            alliance.passed, waited = alliance.passed + 1, waited + 1
        sent.append((one.send_due(), waited))
    assert {count for count, _ in sent} == {BATCH}
    assert [waited for _, waited in sent] == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]
    alliance.down = frozenset()
    alliance.passed += 60
    assert one.send_due() == BATCH
    assert one.send_due() == len(whom) - BATCH
    assert store.outbox.backlog() == Backlog(0, 0)
