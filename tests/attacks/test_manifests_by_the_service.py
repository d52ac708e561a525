"""The service hands out whatever it likes for a manifest, to each custodian something else, and calls under any hash.

What custodians garble is what M admins signed, of the manifest that the requester's own signed request names, or
nothing opens.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from test_manifest import ADMINS, PINS, signed
from test_succession import after
from world import COUNT_RULE, LIMIT, NOW, RULE, TODAY, World, make_world, name, person

from insurer_agent.acting import Acting, Source
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.store.database import Database
from insurer_agent.store.manifests import Manifests
from protocol.check import (
    Question,
    Verdict,
    Void,
    accept_call,
    accept_request,
    answer_call,
    ask,
    call_for,
    conclude,
    read_outcome,
)
from protocol.comparison import Disagreement
from protocol.deposit import Entry, accept_batch, accept_prepare, confirm, make_deposit, prepare_call, sign_batch
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, SignedManifest, Terms
from protocol.messages import ISSUE, CheckAnswer
from protocol.party import Party, ServiceParty
from protocol.stamps import as_of_tick
from transport.manifests import BY_HASH_PATH, NEWEST_PATH, AgeWarnings
from transport.peers import Peers

FOREVER = int(NOW) + 365 * 86_400
LIMITS = {1: LIMIT, 2: LIMIT * 8 // 10, 3: LIMIT * 12 // 10}
TOTAL = LIMIT * 9 // 10
"""Of whom is asked about: above the second limit alone."""
ASKED = replace(RULE, budget=100_000)
RIGHT = {1: Verdict.WITHIN, 2: Verdict.EXCEEDS, 3: Verdict.WITHIN}
WHOM = person(1)


@dataclass
class Service:
    """What answers at the service's address: `newest` and `by_hash` say it; None is a refusal."""

    url: str = ""
    newest: bytes | None = None
    by_hash: Callable[[bytes], bytes | None] = lambda _: None
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> bytes | None:
        self.asked.append(path)
        if path == NEWEST_PATH:
            return self.newest
        return self.by_hash(bytes.fromhex(path.removeprefix(BY_HASH_PATH)))


@dataclass(frozen=True)
class Scene:
    """An alliance, its three manifests as the admins signed them, by serial, and the custodians' databases."""

    world: World
    service: Service
    chain: dict[int, bytes]
    manifests: dict[int, Manifest]
    databases: dict[str, Database]

    def begin(self, member: str, serial: int = 1) -> Acting:
        """Start a member's agent with a manifest in place that it has never had another than."""
        database = self.databases[member]
        database.run("forget", lambda connection: connection.execute("DELETE FROM manifest"))
        return self.restart(member, serial)

    def restart(self, member: str, serial: int = 1) -> Acting:
        kept = Manifests(self.databases[member], PINS, lambda _: None)
        manifest = kept.load(self.chain[serial], NOW)
        return Acting(Party(member, self.world.members[member].party.keys, manifest), Source(kept, Peers()))

    def taking(self, member: str, *serials: int) -> Acting:
        """Start a member's agent with the first manifest, and let it take these in turn."""
        acting = self.begin(member)
        for serial in serials:
            self.service.newest = self.chain[serial]
            acting.follow()
        return acting

    def hash(self, serial: int) -> bytes:
        return self.manifests[serial].hash


@pytest.fixture(scope="module")
def scene(postgres: EmbeddedPostgres) -> Iterator[Scene]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = service.answer(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_port}"
    world = make_world(7, shards=1, service_url=service.url, rules=(ASKED, COUNT_RULE))
    first = replace(world.manifest.terms, valid_until=FOREVER)
    second_rule = replace(ASKED, version=2, limit=LIMITS[2], valid_from=TODAY)
    second = replace(after(first, rules=(ASKED, second_rule, COUNT_RULE)), valid_until=FOREVER)
    third_rule = replace(ASKED, version=3, limit=LIMITS[3], window_days=60, valid_from=TODAY)
    third = replace(after(second, rules=(*second.rules, third_rule)), valid_until=FOREVER)
    terms = {one.serial: one for one in (first, second, third)}
    databases = {}
    for member in world.members:
        postgres.create_database(f"manifests_{member.replace('-', '_')}")
        databases[member] = Database(postgres.dsn(f"manifests_{member.replace('-', '_')}"), size=2)
        databases[member].migrate()
    world.deposit(7, WHOM, TOTAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("insurer_agent.acting._LOOK_SECONDS", 0.0)
        yield Scene(
            world,
            service,
            {serial: signed(one, "admin-a", "admin-b") for serial, one in terms.items()},
            {serial: Manifest.of(one) for serial, one in terms.items()},
            databases,
        )
    for database in databases.values():
        database.close()
    server.shutdown()
    thread.join()
    server.server_close()
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        for member in world.members:
            connection.execute(f"DROP DATABASE manifests_{member.replace('-', '_')} WITH (FORCE)".encode())


def generous(terms: Terms) -> Terms:
    """Return terms with a limit that nobody comes to."""
    return replace(terms, rules=tuple(replace(rule, limit=LIMIT * 1000) for rule in terms.rules))


def with_signatures_of(data: bytes, terms: Terms) -> bytes:
    """Return other terms under the signatures of a manifest."""
    good = SignedManifest(terms=b"", signatures=decoded(data).signatures)
    return encode(replace(good, terms=encode(terms)))


def decoded(data: bytes) -> SignedManifest:
    return decode(SignedManifest, data)


def forgeries(scene: Scene) -> dict[str, bytes]:
    """Return what no agent may act on after the third manifest, or ever."""
    third = scene.manifests[3].terms
    fourth = replace(after(third), valid_until=FOREVER)
    other = replace(make_world(7, shards=1, seed="another", service_url=scene.service.url).manifest.terms, serial=9)
    return {
        "signed by one": signed(generous(fourth), "admin-a"),
        "signed by one, twice": signed(generous(fourth), "admin-a", "admin-a"),
        "signed by nobody": signed(generous(fourth)),
        "under the signatures of another": with_signatures_of(scene.chain[3], generous(fourth)),
        "the third, bent": with_signatures_of(scene.chain[3], generous(third)),
        "a fork of the third, signed by one": signed(generous(third), "admin-b"),
        "a fork of the third, signed by all": signed(generous(third), *ADMINS),
        "a fork of the second, signed by all": signed(generous(scene.manifests[2].terms), *ADMINS),
        "rules rewritten": signed(generous(fourth), *ADMINS),
        "another alliance's": signed(replace(generous(other), alliance="another"), *ADMINS),
        "another alliance's of this name": signed(generous(other), *ADMINS),
        "expired": signed(replace(fourth, valid_until=fourth.issued_at + 1), *ADMINS),
        "cut short": scene.chain[3][:-1],
        "nothing": b"",
        "no manifest": b"<html>",
    }


KINDS = sorted(
    {
        "signed by one",
        "signed by one, twice",
        "signed by nobody",
        "under the signatures of another",
        "the third, bent",
        "a fork of the third, signed by one",
        "a fork of the third, signed by all",
        "a fork of the second, signed by all",
        "rules rewritten",
        "another alliance's",
        "another alliance's of this name",
        "expired",
        "cut short",
        "nothing",
        "no manifest",
    }
)
HANDED = [*map(str, (1, 2, 3)), "refusal", *KINDS]
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["newest", "by hash"]), st.sampled_from(HANDED)),
        st.tuples(st.sampled_from(["check", "deposit"]), st.sampled_from(["1", "2", "3", *KINDS])),
        st.tuples(st.sampled_from(["follow", "restart"]), st.just("")),
    ),
    min_size=1,
    max_size=14,
)


def test_all_that_is_handed_out_is_known(scene: Scene) -> None:
    assert sorted(forgeries(scene)) == KINDS


def hash_of(data: bytes) -> bytes:
    try:
        return Manifest.of(decoded_terms(data)).hash
    except ProtocolError:
        return b"\x07" * 32


def decoded_terms(data: bytes) -> Terms:
    return decode(Terms, decoded(data).terms)


@given(ACTIONS)
@deterministic(120)
def test_whatever_the_service_does_in_whatever_order_a_custodian_acts_under_signed_manifests_and_never_goes_back(
    scene: Scene, actions: list[tuple[str, str]]
) -> None:
    member = name(1)
    things = {**forgeries(scene), **{str(serial): data for serial, data in scene.chain.items()}}
    good = {manifest.hash: manifest for manifest in scene.manifests.values()}
    # The fork that all signed can be the first of its serial that a custodian sees: nobody could know better.
    admitted = {hash_of(things[kind]) for kind in KINDS if kind.startswith("a fork") and kind.endswith("by all")}
    scene.service.newest, scene.service.by_hash = None, lambda _: None
    acting, serial = scene.begin(member), 1
    for action, what in actions:
        handed = None if what == "refusal" else things.get(what)
        match action:
            case "newest":
                scene.service.newest = handed
            case "by hash":
                scene.service.by_hash = lambda _, handed=handed: handed
            case "follow":
                with contextlib.suppress(ProtocolError):
                    acting.follow()
            case "restart":
                acting = scene.restart(member)
            case "check":
                assert handed is not None
                used = acting.of_check(hash_of(handed)).manifest
                assert used.hash == acting.now().manifest.hash or used.hash == hash_of(handed)
                assert used.hash in good.keys() | admitted
            case "deposit":
                assert handed is not None
                used = acting.of_deposit(hash_of(handed)).manifest
                assert used.hash == acting.now().manifest.hash or used.hash == hash_of(handed)
                assert used.hash in good.keys() | admitted
                assert used.terms.serial <= acting.now().manifest.terms.serial
        now = acting.now().manifest
        assert now.hash in good.keys() | admitted
        assert now.terms.serial >= serial
        serial = now.terms.serial


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_signed_or_cannot_follow_is_refused_and_leaves_no_trace(scene: Scene, kind: str) -> None:
    acting = scene.taking(name(1), 2, 3)
    data = forgeries(scene)[kind]
    scene.service.newest, scene.service.by_hash = data, lambda _: data
    with pytest.raises(ProtocolError):
        acting.follow()
    for party in (acting.of_check(hash_of(data)), acting.of_deposit(hash_of(data)), scene.restart(name(1)).now()):
        assert party.manifest.hash == scene.hash(3)


# --- checks between custodians of several manifests ---------------------------------------------------------------


def verdict(scene: Scene, actings: dict[str, Acting], requester: Party) -> tuple[set[Verdict], set[int]]:
    """Have a service that accepts everything relay a check; return what its requester reads, whatever header the
    service evaluates by, and the limits that custodians garbled.
    """
    world, manifest = scene.world, requester.manifest
    rule = manifest.current_rule(ASKED.id, TODAY)
    pending, request = ask(requester, [Question(WHOM, rule, 0)], NOW, NOW + 2, world.random)
    bent = ServiceParty(world.service.keys, manifest)
    evaluation = accept_request(bent, request, NOW, world.random)
    slots = manifest.committee(0).slots
    chosen = tuple(entry.slot for entry in request.signed.statement.envelopes)[:4]
    tick, answers, limits, refusals = as_of_tick(NOW, 1), dict[int, CheckAnswer](), set[int](), set[str]()
    for slot in chosen:
        holder = world.members[slots[slot]]
        call = call_for(evaluation, 1, chosen, tick, slot)
        party = actings[slots[slot]].of_check(call.signed.statement.manifest_hash)
        try:
            accepted = accept_call(party, call, NOW)
        except ProtocolError as refusal:
            refusals.add(refusal.code)
            continue
        limits |= {lane.rule.limit for lane in accepted.lanes}
        spent, view = holder.custody.admit_and_view(accepted.admission(), accepted.reading())
        key = holder.committee_keys[0, accepted.omitted]
        answers[slot] = answer_call(party, accepted, key, view, spent)
    assert refusals <= {"other-manifest"}
    found = set()
    for one in scene.manifests.values():
        if len(answers) == len(chosen):
            try:
                outcome = conclude(ServiceParty(world.service.keys, one), evaluation, 1, chosen, tick, answers)
            except Disagreement:
                continue
            told, reason = read_outcome(pending, outcome, NOW)[0]
            assert reason in (None, Void.DISAGREEMENT)
            found.add(told)
    return found, limits


def test_no_mixture_of_custodians_manifests_answers_under_another_than_the_requesters(scene: Scene) -> None:
    """Each custodian has been led to any state of the three manifests; the service then offers it what it likes."""
    paths = ((), (2,), (3,), (2, 3))
    combinations = list(itertools.product(paths, repeat=2))
    said = {serial: set[Verdict]() for serial in scene.manifests}
    for serial, manifest in scene.manifests.items():
        requester = Party(name(7), scene.world.members[name(7)].party.keys, manifest)
        for some, others in combinations:
            members = manifest.committee(0).slots
            actings = {
                member: scene.taking(member, *(some if place % 2 else others)) for place, member in enumerate(members)
            }
            for handed in (None, *scene.chain.values()):
                scene.service.newest = handed
                found, limits = verdict(scene, actings, requester)
                assert limits <= {LIMITS[serial]}
                assert found <= {RIGHT[serial], Verdict.INDETERMINATE}
                said[serial] |= found
    assert all(RIGHT[serial] in found for serial, found in said.items())


def test_the_manifest_before_is_good_for_checks_for_a_minute_and_those_before_it_never(scene: Scene) -> None:
    acting = scene.taking(name(1), 2)
    scene.service.newest = None
    assert acting.of_check(scene.hash(1)).manifest.hash == scene.hash(1)
    assert 0 < acting._acts.before_until - time.monotonic() <= 60
    acting._acts = replace(acting._acts, before_until=time.monotonic() - 0.001)
    assert acting.of_check(scene.hash(1)).manifest.hash == scene.hash(2)
    acting = scene.taking(name(1), 2, 3)
    scene.service.by_hash = lambda _: scene.chain[1]
    assert acting.of_check(scene.hash(2)).manifest.hash == scene.hash(2)
    assert acting.of_check(scene.hash(1)).manifest.hash == scene.hash(3)


# --- deposits under earlier manifests ------------------------------------------------------------------------------


def prepared(scene: Scene, member: str, acting: Acting, manifest: Manifest, now: float) -> str | None:
    """Have a member be asked to hold a deposit made under a manifest; return why it refuses, or None."""
    world = scene.world
    depositor = Party(name(7), world.members[name(7)].party.keys, manifest)
    slot = manifest.own_slot(0, member)
    while True:  # until the deposit does not exclude it
        made = make_deposit(depositor, Entry(person(5), ISSUE, "accident", TODAY, 100), world.random(16), world.random)
        if made.excluded != slot:
            break
    evaluated = accept_batch(
        ServiceParty(world.service.keys, manifest.under(scene.manifests[3])),
        sign_batch(depositor, [made], now),
        now,
        world.random,
    )
    call = prepare_call(evaluated, slot, None)
    party = acting.of_deposit(call.manifest_hash)
    key = world.members[member].committee_keys[0, manifest.slot_of_group(0, depositor.id)]
    try:
        accepted = accept_prepare(party, call, key, now)
    except ProtocolError as refusal:
        return refusal.code
    (result,) = accepted.deposits
    assert not isinstance(result, ProtocolError)
    kept = scene.world.members[member].custody.prepare(accepted.proposed, now, accepted.attempt())
    (answer,) = confirm(party, accepted, kept).answers
    return answer.refusal


@pytest.fixture
def holder(scene: Scene) -> str:
    return next(member for member in scene.manifests[1].committee(0).slots if member != name(7))


def test_a_holder_takes_deposits_under_all_manifests_before_its_own_and_none_that_is_newer(
    scene: Scene, holder: str
) -> None:
    acting = scene.taking(holder, 2, 3)
    scene.service.newest = None
    for serial in (1, 2, 3):
        assert prepared(scene, holder, acting, scene.manifests[serial], NOW) is None
    acting = scene.taking(holder, 2)
    scene.service.newest = None
    scene.service.by_hash = lambda _: scene.chain[3]
    assert prepared(scene, holder, acting, scene.manifests[3], NOW) == "other-manifest"
    scene.service.newest = scene.chain[3]
    assert prepared(scene, holder, acting, scene.manifests[3], NOW) is None


def test_a_holder_that_missed_a_manifest_has_it_of_the_service_and_keeps_it(scene: Scene, holder: str) -> None:
    acting = scene.begin(holder, 3)
    scene.service.newest = scene.chain[3]
    chain = {scene.hash(serial): data for serial, data in scene.chain.items()}
    scene.service.by_hash = chain.get
    assert prepared(scene, holder, acting, scene.manifests[1], NOW) is None
    scene.service.by_hash = lambda _: None
    assert prepared(scene, holder, acting, scene.manifests[1], NOW) is None
    assert prepared(scene, holder, scene.restart(holder, 3), scene.manifests[1], NOW) is None
    assert prepared(scene, holder, acting, scene.manifests[2], NOW) == "other-manifest"


@pytest.mark.parametrize("knows", ["it took", "it is told of"])
def test_keys_that_were_replaced_are_good_for_no_deposit_under_a_manifest_that_lists_them(
    scene: Scene, holder: str, knows: str
) -> None:
    third = scene.manifests[3].terms
    members = tuple(
        replace(one, signing_key=bytes(32), sealing_key=bytes(31) + b"\1") if one.id == name(7) else one
        for one in third.members
    )
    rekeyed = Manifest.of(replace(after(third, members=members), valid_until=FOREVER))
    scene.begin(holder, 3)
    database = scene.databases[holder]
    if knows == "it is told of":
        database.run("forget", lambda connection: connection.execute("DELETE FROM manifest"))
    kept = Manifests(database, PINS, lambda _: None)
    manifest = kept.load(signed(rekeyed.terms, "admin-a", "admin-b"), NOW)
    assert manifest.hash == rekeyed.hash
    acting = Acting(Party(holder, scene.world.members[holder].party.keys, manifest), Source(kept, Peers()))
    scene.service.newest, scene.service.by_hash = None, lambda _: scene.chain[3]
    assert acting.of_deposit(scene.hash(3)).manifest.hash == rekeyed.hash
    assert prepared(scene, holder, acting, scene.manifests[3], NOW) == "other-manifest"


def test_what_was_signed_and_never_published_says_nothing_of_what_may_come_next(scene: Scene, holder: str) -> None:
    """The service hides two manifests and hands out another of the first one, withdrawn, that used up versions."""
    first, third = scene.manifests[1].terms, scene.manifests[3].terms
    used_up = replace(ASKED, id="another", version=9, limit=1, valid_from=TODAY)
    withdrawn = Manifest.of(replace(after(first, rules=(*first.rules, used_up)), valid_until=FOREVER))
    fourth = Manifest.of(replace(after(third), valid_until=FOREVER))
    another = replace(ASKED, id="another", version=2, limit=LIMIT, valid_from=TODAY)
    fifth = Manifest.of(replace(after(fourth.terms, rules=(*third.rules, another)), valid_until=FOREVER))
    acting = scene.begin(holder)
    scene.service.newest, scene.service.by_hash = None, lambda _: signed(withdrawn.terms, "admin-a", "admin-b")
    scene.databases[holder].run("forget", lambda connection: connection.execute("DELETE FROM manifest"))
    scene.service.newest = signed(fourth.terms, "admin-a", "admin-b")
    acting.follow()
    assert acting.of_deposit(withdrawn.hash).manifest.hash == withdrawn.hash
    scene.service.newest = signed(fifth.terms, "admin-a", "admin-b")
    acting.follow()
    assert acting.now().manifest.hash == fifth.hash
    scene.service.by_hash = lambda _: scene.chain[2]
    assert acting.of_deposit(scene.hash(2)).manifest.hash == scene.hash(2)


@pytest.mark.parametrize("kind", [*KINDS, "2", "3", "refusal"])
def test_no_other_manifest_than_the_one_that_a_deposit_names_is_taken_for_it(
    scene: Scene, holder: str, kind: str
) -> None:
    acting = scene.begin(holder, 3)
    things = {**forgeries(scene), **{str(serial): data for serial, data in scene.chain.items()}}
    scene.service.newest, scene.service.by_hash = scene.chain[3], lambda _: things.get(kind)
    assert prepared(scene, holder, acting, scene.manifests[1], NOW) == "other-manifest"
    # A deposit of a malicious depositor, under the forgery itself: what none or one admin signed is no history either.
    if not kind.endswith("by all") and kind in KINDS:
        assert acting.of_deposit(hash_of(things[kind])).manifest.hash == scene.hash(3)


def test_a_deposit_outlives_the_manifest_that_it_was_made_under(scene: Scene, holder: str) -> None:
    short = replace(scene.manifests[1].terms, valid_until=int(NOW) + 60)
    old = Manifest.of(short)
    acting = scene.begin(holder, 3)
    scene.service.newest = scene.chain[3]
    scene.service.by_hash = lambda _: signed(short, "admin-b", "admin-c")
    assert prepared(scene, holder, acting, old, NOW + 600) is None


# --- between the processes of one agent, and withheld manifests ---------------------------------------------------


def test_what_one_process_has_taken_the_others_find_in_their_database(scene: Scene) -> None:
    one = scene.taking(name(1))
    another = scene.restart(name(1))
    scene.service.newest = scene.chain[2]
    one.follow()
    scene.service.newest, scene.service.asked = None, []
    assert another.of_check(scene.hash(2)).manifest.hash == scene.hash(2)
    assert scene.service.asked == []
    assert another.of_check(scene.hash(1)).manifest.hash == scene.hash(1)


def test_unknown_manifests_are_asked_for_once_a_second_at_most(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    acting = scene.begin(name(1))
    monkeypatch.setattr("insurer_agent.acting._LOOK_SECONDS", 3600.0)
    scene.service.newest, scene.service.asked = None, []
    for number in range(50):
        assert acting.of_check(bytes([number]) * 32).manifest.hash == scene.hash(1)
        assert acting.of_deposit(bytes([number]) * 32).manifest.hash == scene.hash(1)
    assert scene.service.asked in ([], [NEWEST_PATH])


def test_a_withheld_manifest_is_noticed_by_the_end_of_the_one_that_stays(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """The service may say for ever that there is no newer one: whoever waits for it says so in time."""
    day, now = 86_400, int(time.time())
    warnings = AgeWarnings()

    def said(days: float) -> list[str]:
        caplog.clear()
        for _ in range(3):
            warnings.look(Manifest.of(replace(scene.manifests[1].terms, valid_until=int(now + days * day))))
        return [record.levelname for record in caplog.records]

    assert said(14.1) == []
    assert said(13.9) == ["WARNING"]
    assert said(0.1) == ["WARNING"]
    assert said(-0.1) == ["ERROR"]
    assert "WITHHELD" in caplog.text.upper()
