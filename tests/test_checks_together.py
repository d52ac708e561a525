"""Checks that leave together, to real custodians: each has its own right verdict, and none is the worse for another."""

import datetime as dt
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from socket import create_connection
from typing import TYPE_CHECKING, Any

import pytest
from live import wait_until
from serving import serving
from test_check import attempt as attempt_in_memory
from test_flights import SECONDS, until
from werkzeug.wrappers import Request, Response
from wired import Wired, wired_alliance
from world import COUNT_RULE, LIMIT, NOW, RULE, make_world, name, person

import service.check_attempts
from insurer_agent.agent import Agent
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.intake.policy import Event
from insurer_agent.rest import make_app
from insurer_agent.store.register import PolicyEvent
from protocol.check import (
    Conclusion,
    PendingCheck,
    Question,
    Verdict,
    Void,
    ask,
    conclude_together,
    read_outcome,
)
from protocol.committee import preferred_choice
from protocol.comparison import Disagreement
from protocol.encoding import decode, encode
from protocol.identity import Identity
from protocol.manifest import Manifest, china_day
from protocol.messages import (
    MAX_TOGETHER,
    RECHECK,
    CheckCall,
    CheckCalls,
    CheckOutcome,
    CheckReplies,
    CheckReply,
    CheckRequest,
)
from protocol.party import ServiceParty
from protocol.stamps import as_of_tick, tick_at
from service import check_attempts
from service.app import open_directory, open_service
from service.check_attempts import FLYING_LANES, MAX_ENVELOPE, CheckAttempt, may_fly
from service.custodians import Custodians, Trouble
from service.directory import DataDirectory
from service.flights import Flights
from service.relay import Relay
from transport.http_answers import MAX_ANSWER
from transport.internal import CHECK, CHECKS, CONTENT_TYPE
from transport.peers import Peers
from transport.server import MAX_BODY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

COVER = 3_000
COVERED = person(1)
WITHIN, EXCEEDS = (Verdict.WITHIN, None), (Verdict.EXCEEDS, None)
LIAR = name(3)
Bend = Callable[[str, Response], Response]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[Wired]:
    """Six agents, with 30 yuan of cover of one person that checks see."""
    root = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch, wired_alliance(root, postgres, patch) as alliance:
        wait_until(lambda: alliance.exchange_keys() == 0, 10)
        day = dt.date.fromordinal(china_day(time.time()) - 3)
        alliance.one.register.apply([PolicyEvent("P-1", COVERED, "accident", Event.ISSUE, COVER, day)])
        alliance.one.depositor.send_due()
        done = tick_at(time.time(), 1)
        wait_until(lambda: as_of_tick(time.time(), 1) >= done)
        yield alliance


@dataclass
class Asked:
    """A check, what it must come to, and what came of it."""

    pending: PendingCheck
    request: CheckRequest
    right: list[tuple[Verdict, Void | None]]
    came: CheckOutcome | Exception | None = None
    thread: threading.Thread | None = None

    @property
    def chosen(self) -> tuple[int, ...]:
        """A, of a service that knows of no trouble."""
        statement = self.request.signed.statement
        first = preferred_choice(statement.check_id, {entry.slot: 0.0 for entry in statement.envelopes})
        assert first is not None
        return first

    def read(self) -> list[tuple[Verdict, Void | None]]:
        """Wait for what came of it, and read it as the requester does."""
        assert self.thread is not None
        self.thread.join(2 * SECONDS)
        assert not self.thread.is_alive()
        assert isinstance(self.came, CheckOutcome), repr(self.came)
        return read_outcome(self.pending, self.came, time.time())

    def is_attempt(self, number: int) -> bool:
        return isinstance(self.came, CheckOutcome) and self.came.attempt == number


@pytest.fixture(autouse=True)
def fresh_budgets(there: Wired) -> None:
    for agent in there.agents.values():
        agent.database.run("fresh budgets", lambda connection: connection.execute("DELETE FROM budget"))


class Gate:
    """An attempt that takes a place until it is told to give it free."""

    deadline = float("inf")

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.is_over = False


@dataclass
class Service:
    """The relay, one flight at a time, and how many checks each had; `custodians` is its line to real agents."""

    there: Wired
    relay: Relay
    custodians: Custodians
    flown: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.flights: Flights[Any] = Flights(1, self.fly)
        self.relay._flights = self.flights

    def fly(self, attempts: Sequence[Any]) -> Generator[None]:
        if isinstance(attempts[0], Gate):
            assert attempts[0].opened.wait(SECONDS)
            attempts[0].is_over = True
            yield
            return
        self.flown.append(len(attempts))
        yield from self.custodians.fly(attempts)

    def slot(self, member: str) -> int:
        return self.there.one.party.manifest.committee(0).slots.index(member)

    def ask(
        self,
        requester: int,
        *proposed: int,
        without: str | None = None,
        of: str | None = None,
        of_whom: Identity = COVERED,
    ) -> Asked:
        """Return a check of a lane a proposal, with that custodian in its first A, or without that one."""
        party, now = self.there.agents[name(requester)].party, time.time()
        whom = [of_whom, *(person(100 + number) for number in range(1, len(proposed)))]
        questions = [Question(*pair) for pair in zip(whom, [RULE] * len(proposed), proposed, strict=True)]
        covers = [COVER if of_whom == COVERED else 0, *[0] * (len(proposed) - 1)]
        right = [EXCEEDS if cover + more > LIMIT else WITHIN for cover, more in zip(covers, proposed, strict=True)]
        while True:
            asked = Asked(*ask(party, questions, now, now + 60, secrets.token_bytes), right)
            if (of is None or self.slot(of) in asked.chosen) and (
                without is None or self.slot(without) not in asked.chosen
            ):
                return asked

    def send(self, asked: Asked) -> None:
        """Have the relay asked in a thread of its own."""

        def run() -> None:
            try:
                asked.came = self.relay.check(asked.request)
            except Exception as error:  # noqa: BLE001  told where it is read
                asked.came = error

        asked.thread = threading.Thread(target=run)
        asked.thread.start()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Have the one place taken for the block."""
        gate = Gate()
        holding = threading.Thread(target=self.flights.make, args=(gate,))
        holding.start()
        try:
            until(lambda: not self.flights._free)
            yield
        finally:
            gate.opened.set()
            holding.join(SECONDS)

    def together(self, *several: Asked) -> None:
        """Have checks leave together, in this order."""
        with self.busy():
            for number, asked in enumerate(several, start=1):
                self.send(asked)
                until(lambda: len(self.flights._waiting) == number)  # noqa: B023  called at once


@pytest.fixture(autouse=True)
def each_asks_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each check ask the custodians that follow from its own id, which tests choose; but where they say so."""
    monkeypatch.setattr(check_attempts, "ASKED_ALIKE", 1)


@contextmanager
def serving_checks(there: Wired, **changes: Any) -> Iterator[Service]:  # noqa: ANN401  settings
    settings, acting = open_service(there.root / "service")
    settings = replace(settings, check_seconds=25.0, attempt_seconds=20.0)
    settings = replace(settings, **changes)
    party, peers = acting.now(), Peers()
    custodians = Custodians(party, peers, open_directory(settings, party))
    yield Service(there, Relay(party, custodians, settings, secrets.token_bytes), custodians)
    peers.close()


class Between:
    """An agent with something before it that may hold its answers back or change them."""

    def __init__(self, app: "WSGIApplication", bend: Bend) -> None:
        self._app = app
        self._bend = bend

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Any:  # noqa: ANN401  as WSGI's
        response = Response.from_app(self._app, environ, buffered=True)
        return self._bend(environ["PATH_INFO"], response)(environ, start_response)


@contextmanager
def bent(there: Wired, bend: Bend) -> Iterator[None]:
    """Have the liar's answers bent for the block, on connections that are made in it."""
    wire = there.wires[LIAR]
    before = wire.to
    with serving(Between(make_app(there.agents[LIAR]), bend)) as port:
        wire.to = lambda: create_connection(("127.0.0.1", port))
        try:
            yield
        finally:
            wire.to = before


def test_checks_that_wait_leave_together_and_each_requester_gets_its_own_verdict(there: Wired) -> None:
    with serving_checks(there) as at:
        several = [at.ask(1, LIMIT - COVER + number % 2) for number in range(7)]
        several.append(at.ask(1, *(LIMIT - COVER + 1 if lane % 3 else LIMIT + lane for lane in range(FLYING_LANES))))
        before = sum(wire.exchanges for wire in there.wires.values())
        at.together(*several)
        assert [asked.read() for asked in several] == [asked.right for asked in several]
        assert {EXCEEDS, WITHIN} == {verdict for asked in several for verdict in asked.right}
        assert at.flown == [8]
        members = {slot for asked in several for slot in asked.chosen}
        assert sum(wire.exchanges for wire in there.wires.values()) - before == len(members) <= 6
        assert all(asked.is_attempt(1) for asked in several)


def test_checks_that_leave_together_ask_the_same_where_they_may(there: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_attempts, "ASKED_ALIKE", 4)
    with serving_checks(there) as at:
        for requesters, most in (((1, 1, 1, 1), 4), ((1, 2), 5), ((1, 2, 1, 2), 5), ((1, 2, 3, 4), 5), ((1,) * 8, 5)):
            several = [at.ask(who, LIMIT - COVER + who % 2) for who in requesters]
            before = sum(wire.exchanges for wire in there.wires.values())
            at.together(*several)
            assert [asked.read() for asked in several] == [asked.right for asked in several]
            assert at.flown.pop() == len(requesters)
            messages = sum(wire.exchanges for wire in there.wires.values()) - before
            assert messages <= most  # a fifth stands in where one of the four is somebody's own, or is of other four
            assert all(asked.is_attempt(1) for asked in several)


def test_whom_a_check_asks_that_leaves_with_others_says_nothing_of_who_they_are(
    there: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_attempts, "ASKED_ALIKE", 4)
    with serving_checks(there) as at:
        drawn = list[bytes]()

        def random(size: int) -> bytes:
            drawn.append(secrets.token_bytes(size))
            return drawn[-1]

        at.relay._random = random
        for _ in range(4):
            drawn.clear()
            first = at.ask(1, LIMIT - COVER)
            several = [first, *(at.ask(who, LIMIT - COVER) for who in (2, 3, 4))]
            at.together(*several)
            for asked in several:
                assert asked.read() == asked.right
                assert isinstance(asked.came, CheckOutcome)
                # It follows from what the service drew for the first, and from which slots its own requester may ask.
                own = {entry.slot: 0.0 for entry in asked.request.signed.statement.envelopes}
                assert asked.came.chosen == preferred_choice(next(one for one in drawn if len(one) == 16), own)


def test_a_custodian_that_lags_is_not_asked_by_checks_that_leave_together_either(
    there: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_attempts, "ASKED_ALIKE", 4)
    with serving_checks(there) as at:
        at.custodians.remember(LIAR, 0, Trouble.LAGS)
        several = [at.ask(1, LIMIT - COVER + number % 2) for number in range(4)]
        before = there.wires[LIAR].exchanges
        at.together(*several)
        assert [asked.read() for asked in several] == [asked.right for asked in several]
        assert there.wires[LIAR].exchanges == before


def test_a_check_leaves_alone_where_nothing_is_under_way(there: Wired) -> None:
    with serving_checks(there) as at:
        for number in range(3):
            asked = at.ask(1, LIMIT - COVER + number % 2)
            at.send(asked)
            assert asked.read() == asked.right
        assert at.flown == [1, 1, 1]


def test_one_that_custodians_refuse_is_refused_alone(there: Wired) -> None:
    with serving_checks(there) as at:
        replayed = at.ask(1, LIMIT - COVER)
        at.send(replayed)
        assert replayed.read() == replayed.right
        again = replace(replayed, came=None)
        several = [at.ask(1, LIMIT - COVER), again, at.ask(1, LIMIT - COVER + 1), at.ask(1, LIMIT - COVER)]
        at.together(*several)
        assert again.read() == [(Verdict.INDETERMINATE, Void.DISAGREEMENT)]
        others = [asked for asked in several if asked is not again]
        assert [asked.read() for asked in others] == [asked.right for asked in others]
        assert at.flown[:2] == [1, 4]


@pytest.mark.parametrize("place", [0, 3])
def test_a_custodian_that_says_nothing_holds_up_none_but_those_that_ask_it(there: Wired, place: int) -> None:
    released = threading.Event()

    def hold(_path: str, answer: Response) -> Response:
        assert released.wait(SECONDS)
        return answer

    with bent(there, hold), serving_checks(there) as at:
        several = [at.ask(1, LIMIT - COVER + number % 2, without=LIAR) for number in (0, 3, 4)]
        held = at.ask(1, LIMIT - COVER, of=LIAR)
        several.insert(place, held)
        at.together(*several)
        others = [asked for asked in several if asked is not held]
        assert [asked.read() for asked in others] == [asked.right for asked in others]
        assert held.came is None
        released.set()
        assert held.read() == held.right
        assert at.flown == [4]
        assert all(asked.is_attempt(1) for asked in several)


def test_a_custodian_that_does_not_answer_in_time_counts_as_such_for_each_check(there: Wired) -> None:
    released = threading.Event()

    def hold(_path: str, answer: Response) -> Response:
        released.wait(SECONDS)
        return answer

    with bent(there, hold), serving_checks(there, attempt_seconds=1.5) as at:
        several = [at.ask(1, LIMIT - COVER + number % 2, of=LIAR) for number in (0, 1, 3)]
        at.together(*several)
        assert [asked.read() for asked in several] == [asked.right for asked in several]
        assert all(asked.is_attempt(2) for asked in several)
        assert [key[0] for key in at.custodians._until if key[2] is Trouble.NO_ANSWER] == [LIAR]
        released.set()


def replies(bend: Callable[[tuple[CheckReply, ...]], tuple[CheckReply, ...]]) -> Bend:
    """Return what changes the replies to several calls."""

    def change(path: str, answer: Response) -> Response:
        assert (path, answer.status_code) == (CHECKS, 200)
        told = decode(CheckReplies, answer.data).replies
        return Response(encode(CheckReplies(replies=bend(told))), content_type=CONTENT_TYPE)

    return change


def problem(status: int, code: str) -> Bend:
    body = f'{{"code": "{code}"}}'
    return lambda _path, _answer: Response(body, status, content_type="application/problem+json")


MALFORMED: dict[str, tuple[str, Bend]] = {
    "one too few": ("malformed", replies(lambda told: told[1:])),
    "one too many": ("malformed", replies(lambda told: (*told, told[0]))),
    "both": ("malformed", replies(lambda told: tuple(replace(one, refusal="busy") for one in told))),
    "none": ("malformed", replies(lambda told: tuple(replace(one, answer=None) for one in told))),
    "no code": ("malformed", replies(lambda told: tuple(CheckReply(answer=None, refusal="a\nb") for _ in told))),
    "each refused": (
        "wrong-tick",
        replies(lambda told: tuple(CheckReply(answer=None, refusal="wrong-tick") for _ in told)),
    ),
    "each busy": ("busy", replies(lambda told: tuple(CheckReply(answer=None, refusal="busy") for _ in told))),
    "bytes of no message": ("malformed", lambda _path, answer: Response(answer.data[1:], content_type=CONTENT_TYPE)),
    "an answer to one": (
        "malformed",
        lambda _path, answer: Response(
            encode(decode(CheckReplies, answer.data).replies[0].answer), content_type=CONTENT_TYPE
        ),
    ),
    "all refused": ("stale", problem(400, "stale")),
    "not ready": ("not-ready", problem(503, "not-ready")),
    "no code of a problem": ("refused", problem(403, "a\\nb")),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_whatever_a_custodian_says_instead_counts_against_it_for_each_check_that_it_was_asked(
    there: Wired, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    code, bend = MALFORMED[what]
    once = lambda path, answer: bend(path, answer) if path == CHECKS else answer  # noqa: E731  as short
    with bent(there, once), serving_checks(there) as at:
        several = [at.ask(1, LIMIT - COVER + number % 2, of=LIAR) for number in (0, 1)]
        several.append(at.ask(1, LIMIT - COVER + 1, without=LIAR))
        at.together(*several)
        assert [asked.read() for asked in several] == [asked.right for asked in several]
        assert [asked.is_attempt(1) for asked in several] == [False, False, True]
        told = [line for line in caplog.messages if "did not answer a check" in line]
        assert told == [f"shard 0: {LIAR} did not answer a check: {code}"] * 2


def test_replies_in_another_order_void_what_they_are_not_for_and_no_verdict_is_wrong(there: Wired) -> None:
    with bent(there, replies(lambda told: told[::-1])), serving_checks(there) as at:
        several = [at.ask(1, LIMIT - COVER + number, of=LIAR) for number in (0, 1)]
        at.together(*several)
        for asked in several:
            assert asked.read() in (asked.right, [(Verdict.INDETERMINATE, Void.DISAGREEMENT)])
            assert not asked.is_attempt(1)


def test_what_nothing_can_be_made_of_is_an_error_of_that_check_alone(
    there: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_checks(there) as at:
        several = [at.ask(1, LIMIT - COVER + number % 2) for number in range(3)]
        fault, broken = ValueError("an array of another shape"), several[1].request

        def failing(attempts: list[tuple[ServiceParty, Conclusion]]) -> list[CheckOutcome | Disagreement]:
            if any(one.evaluation.request is broken for _, one in attempts):
                raise fault
            return conclude_together(attempts)

        monkeypatch.setattr(service.check_attempts, "conclude_together", failing)
        at.together(*several)
        assert [several[place].read() for place in (0, 2)] == [several[place].right for place in (0, 2)]
        with pytest.raises(AssertionError):
            several[1].read()
        assert several[1].came is fault
        assert at.flown == [3]


@pytest.mark.parametrize("alike", [1, 4])
def test_a_person_with_many_rows_comes_again_alone_and_nobody_waits_for_what_is_read(
    there: Wired, monkeypatch: pytest.MonkeyPatch, alike: int
) -> None:
    monkeypatch.setattr("insurer_agent.custodian.ROWS_TOGETHER", 0)
    monkeypatch.setattr(check_attempts, "ASKED_ALIKE", alike)
    with serving_checks(there) as at:
        many = [at.ask(requester, LIMIT - COVER + place) for place, requester in enumerate((1, 2))]
        few = at.ask(4, LIMIT + 1, of_whom=person(777))
        at.together(many[0], few, many[1])
        assert [one.read() for one in (*many, few)] == [[WITHIN], [EXCEEDS], [EXCEEDS]]
        assert at.flown == [3]  # what is to come alone does not wait for a place
        outcomes = [one.came for one in (*many, few)]
        assert all(isinstance(one, CheckOutcome) for one in outcomes)
        assert [one.attempt for one in outcomes] == [2, 2, 1]
        if alike == 1:
            assert [one.chosen for one in outcomes] == [one.chosen for one in (*many, few)]
        for one in (*many, few):  # the same four as in the first attempt, as these have charged it
            charged, chosen = charged_and_chosen(there, one)
            assert charged == chosen


def has_charged(agent: Agent, check_id: bytes) -> bool:
    statement = "SELECT 1 FROM check_request WHERE check_id = %s"
    return (
        agent.database.run("look", lambda connection: connection.execute(statement, (check_id,)).fetchone()) is not None
    )


def charged_and_chosen(there: Wired, asked: Asked) -> tuple[set[str], set[str]]:
    """Return who has charged a check, and whom the attempt asked that came of it."""
    assert isinstance(asked.came, CheckOutcome)
    check_id, slots = asked.request.signed.statement.check_id, there.one.party.manifest.committee(0).slots
    charged = {who for who, agent in there.agents.items() if has_charged(agent, check_id)}
    return charged, {slots[slot] for slot in asked.came.chosen}


@pytest.mark.parametrize("alike", [1, 4])
def test_after_an_attempt_that_failed_the_next_asks_three_of_its_four_again(
    there: Wired, monkeypatch: pytest.MonkeyPatch, alike: int
) -> None:
    monkeypatch.setattr(check_attempts, "ASKED_ALIKE", alike)

    def refuse(_path: str, _answer: Response) -> Response:
        return Response("", 503)

    with bent(there, refuse), serving_checks(there) as at:
        several = [at.ask(1, LIMIT - COVER + number % 2) for number in range(4)]
        at.together(*several)
        assert [asked.read() for asked in several] == [asked.right for asked in several]
        for asked in several:
            charged, chosen = charged_and_chosen(there, asked)
            assert charged >= chosen
            assert len(charged) <= 5


def attempts_by(nonce: bytes, scores: dict[int, float]) -> list[tuple[int, ...]]:
    """Return whom a check's attempts ask by a nonce where each one's first custodian disagrees, up to one tried."""
    scores, asked = dict(scores), list[tuple[int, ...]]()
    while len(asked) < 3:
        chosen = preferred_choice(nonce, scores)
        if chosen is None or chosen in asked:
            break
        asked.append(chosen)
        scores[chosen[0]] += 1.0
    return asked


def test_every_next_attempt_goes_by_what_the_first_went_by(there: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_slots, expected = list[tuple[int, ...]](), list[tuple[int, ...]]()

    def fail(attempt: CheckAttempt, scores: dict[int, float], **_: Any) -> Void:  # noqa: ANN401  as in `Relay`
        if attempt.free is not None:  # as when it leaves with others
            assert len(scores) == 5  # of six, a third attempt would ask the same four by any nonce
            nonces = (secrets.token_bytes(16) for _ in range(1000))
            nonce = next(one for one in nonces if len(attempts_by(one, scores)) == 3)  # others come to whom they asked
            expected.extend(attempts_by(nonce, scores))
            attempt.chosen, attempt.chosen_by = preferred_choice(nonce, scores) or (), nonce
        asked_slots.append(attempt.chosen)
        scores[attempt.chosen[0]] += 1.0
        return Void.DISAGREEMENT

    with serving_checks(there) as at:
        monkeypatch.setattr(at.relay, "_attempt", fail)
        for _ in range(20):
            at.relay.check(at.ask(1, LIMIT).request)
        assert asked_slots == expected
        assert len(asked_slots) == 3 * 20


def test_a_check_that_waits_all_its_time_is_a_timeout_for_which_no_custodian_is_to_blame(
    there: Wired, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_checks(there, check_seconds=0.3) as at:
        asked = at.ask(1, LIMIT - COVER)
        with at.busy():
            at.send(asked)
            assert asked.read() == [(Verdict.INDETERMINATE, Void.TIMEOUT)]
        assert (at.flown, at.custodians._until) == ([], {})
        assert not any(record.name == "service.relay" for record in caplog.records)


def test_custodians_that_had_hardly_any_time_are_not_remembered_as_silent(there: Wired) -> None:
    released = threading.Event()

    def hold(_path: str, answer: Response) -> Response:
        released.wait(SECONDS)
        return answer

    with bent(there, hold), serving_checks(there, check_seconds=0.7) as at:
        several = [at.ask(1, LIMIT - COVER, of=LIAR) for _ in range(2)]
        at.together(*several)
        assert [asked.read() for asked in several] == [[(Verdict.INDETERMINATE, Void.TIMEOUT)]] * 2
        assert at.custodians._until == {}
        released.set()


# --- who shares a message ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("addresses", [1, 2])
def test_calls_to_a_member_share_a_message_across_shards_and_manifests_at_one_address(
    tmp_path: Path, addresses: int
) -> None:
    world, taken = make_world(6, shards=2), list[Sequence[CheckCall]]()

    def take(environ: "WSGIEnvironment", start_response: "StartResponse") -> Any:  # noqa: ANN401  as WSGI's
        asked = Request(environ)
        alone = asked.path == CHECK
        taken.append([decode(CheckCall, asked.data)] if alone else decode(CheckCalls, asked.data).calls)
        return Response("", 503)(environ, start_response)

    with serving(take) as one, serving(take) as other:

        def under(serial: int, port: int) -> ServiceParty:
            terms = world.manifest.terms
            members = tuple(replace(member, url=f"http://127.0.0.1:{port}") for member in terms.members)
            return ServiceParty(world.service.keys, Manifest.of(replace(terms, serial=serial, members=members)))

        services = [under(1, one), under(2, one if addresses == 1 else other)]
        asked = [attempt_in_memory(world, 1, [Question(person(number), RULE, 0)]) for number in range(1, 9)]
        attempts = [
            CheckAttempt(party, made.evaluation, (1, made.chosen, 1), time.monotonic() + SECONDS, SECONDS)
            for party in services
            for made in asked
        ]
        peers = Peers()
        line = Custodians(world.service, peers, DataDirectory(world.manifest, tmp_path / "directory"))
        for _ in line.fly(attempts):
            pass
        peers.close()
    assert len({attempt.shard for attempt in attempts}) == 2
    members = {attempt.member(slot) for attempt in attempts for slot in attempt.chosen}
    assert len(taken) == addresses * len(members)
    assert max(map(len, taken)) > 2
    assert sum(map(len, taken)) == 4 * len(attempts)
    assert all(attempt.is_over for attempt in attempts)


def test_what_is_long_or_can_wait_flies_with_none_and_all_that_flies_fits_into_a_message() -> None:
    world = make_world(6, shards=1)
    whom = [person(number) for number in range(1, FLYING_LANES + 2)]
    few, many = (
        attempt_in_memory(world, 1, [Question(one, RULE, 0) for one in whom[:lanes]]).request
        for lanes in (FLYING_LANES, FLYING_LANES + 1)
    )
    assert (may_fly(few), may_fly(many)) == (True, False)
    _, recheck = ask(world.party(1), [Question(whom[0], RULE, 0)], NOW, NOW + 2, world.random, occasion=RECHECK)
    assert not may_fly(recheck)
    largest = replace(few, envelopes=(bytes(MAX_ENVELOPE),) * len(few.envelopes))
    assert may_fly(largest)
    assert not may_fly(replace(few, envelopes=(*few.envelopes[1:], bytes(MAX_ENVELOPE + 1))))
    made = attempt_in_memory(world, 1, [Question(one, rule, 0) for one in whom[:8] for rule in (RULE, COUNT_RULE)])
    call = replace(made.call(made.chosen[0]), envelope=bytes(MAX_ENVELOPE))
    assert len(encode(CheckCalls(calls=(call,) * MAX_TOGETHER))) < MAX_BODY
    attempt = CheckAttempt(world.service, made.evaluation, (1, made.chosen, 1), 0.0, 1.0)
    assert len(encode(CheckReply(answer=made.answer(made.chosen[0]), refusal=None))) < attempt.answer_bytes
    assert MAX_TOGETHER * attempt.answer_bytes < MAX_ANSWER
