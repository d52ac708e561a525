"""A custodian in an attacker's hands, for tests: the honest one with its keys, until it is told what to do instead."""

import contextlib
import datetime as dt
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

from answers import Change, after_this_request, environ
from insiders import Insider, agent_replaced, service_replaced
from live import LiveAlliance, china_today, issue, write_policies
from werkzeug.wrappers import Response

from insurer_agent.agent import Agent
from insurer_agent.custodian import Custodian
from protocol.check import AcceptedCheck, Void, accept_call, answer_call, shard_of_person
from protocol.committee_keys import CommitteeKey
from protocol.comparison import Part
from protocol.custody import CustodyView
from protocol.identity import DocumentType, Identity
from protocol.messages import (
    CheckAnswer,
    CheckCall,
    CheckOutcome,
    CheckRequest,
    CommitCall,
    HolderReceipts,
    KeyConfirmation,
    PrepareAnswer,
    PrepareCall,
    Relayed,
)
from protocol.party import Party
from protocol.sharing import RING, Label, Share, labels
from service.check_attempts import CheckAttempt
from service.relay import Relay
from transport.internal import CONTENT_TYPE

WITHIN, EXCEEDS = ("within", None), ("exceeds", None)
LIMIT = 5_000_000_000
MEMBERS, SHARDS, PEOPLE = 7, 8, 56
LIAR, DEAD = 3, 5
PLACES: dict[int, tuple[tuple[int, ...], int | None]] = {
    0: ((0,), None),
    1: ((1, 2, 7), 0),
    2: ((1, 2, 7), 3),
    3: ((4,), None),
}
"""Where the liar comes to stand at each position of A: in which shards, and who asks, by slot, if it matters."""
ALL = tuple(PLACES)
AT_LIMIT, ABOVE = "0.00", "0.01"
TRUTHS = ((AT_LIMIT, WITHIN), (ABOVE, EXCEEDS))
"""Beside 50 million yuan that count for every person of the stage."""


@dataclass
class Asked:
    """One attempt of a check at the malicious custodian, which knows all that an honest one would."""

    custodian: "Malicious"
    call: CheckCall
    accepted: AcceptedCheck
    key: CommitteeKey
    view: CustodyView

    @property
    def party(self) -> Party:
        return self.custodian._party

    @property
    def position(self) -> int:
        return self.accepted.chosen.position(self.accepted.slot)

    @property
    def mine(self) -> list[Label]:
        """The labels that it sends or vouches for; what it says of others nobody hears."""
        chosen, slot = self.accepted.chosen, self.accepted.slot
        every = labels(chosen.committee_size)
        return [name for name in every if slot not in name and self.position in chosen.group_of(name)]

    def honest(self) -> CheckAnswer:
        return answer_call(self.party, self.accepted, self.key, self.view)

    def answer(self, accepted: AcceptedCheck, *, view: CustodyView | None = None) -> CheckAnswer:
        """Answer another check than was asked, from a snapshot of its own."""
        seen = self.custodian._custody.view(accepted.reading()) if view is None else view
        return answer_call(self.party, accepted, self.key, seen)

    def with_rule(self, **changes: object) -> CheckAnswer:
        """Sum and compare under another rule than the manifest's."""
        lanes = tuple(replace(lane, rule=replace(lane.rule, **changes)) for lane in self.accepted.lanes)
        return self.answer(replace(self.accepted, lanes=lanes))

    def adding(self, by: int, names: Iterable[Label]) -> CheckAnswer:
        """Add to shares of these labels."""
        lanes = []
        for lane in self.accepted.lanes:
            bent = {name: Share((lane.proposal.get(name, 0) + by) % RING) for name in names}
            lanes.append(replace(lane, proposal={**lane.proposal, **bent}))
        return self.answer(replace(self.accepted, lanes=tuple(lanes)))

    def with_statement(self, **changes: object) -> CheckAnswer:
        return self.answer(replace(self.accepted, statement=replace(self.accepted.statement, **changes)))

    def spent(self, *lanes: int) -> CheckAnswer:
        """Claim that the budgets of lanes are spent."""
        if max(lanes) < len(self.accepted.lanes):
            return answer_call(self.party, self.accepted, self.key, self.view, lanes)
        return replace(self.honest(), spent=lanes)

    def with_part(self, change: Callable[[Part], Part]) -> CheckAnswer:
        answer = self.honest()
        return replace(answer, part=change(answer.part))


Lie = Callable[[Asked], CheckAnswer]


class Malicious(Custodian):
    """The build. A lie that fails by its own fault is kept, so that no test takes it for a refusal."""

    lie: Lie | None = None
    line: Change | None = None
    """What becomes of the HTTP answer."""
    prepare_attack: Callable[[PrepareCall], PrepareAnswer] | None = None
    commit_attack: Callable[[CommitCall], HolderReceipts] | None = None
    key_attack: Callable[[Relayed], KeyConfirmation] | None = None

    def __init__(self, agent: Agent) -> None:
        honest = agent.custodian
        peers, random, threads = honest._peers, honest._random, agent.settings.threads
        super().__init__(honest._party, honest._custody, honest._keyring, peers, random, threads=threads)
        self.told: dict[Key, tuple[int, bool]] = {}
        """Where in A it stood, and whether what it said was another thing than the truth."""
        self.positions: set[int] = set()
        self.faults: list[Exception] = []

    def check(self, call: CheckCall) -> CheckAnswer:
        if self.line is not None:
            after_this_request(self.line)
        if self.lie is None:
            return super().check(call)
        try:
            accepted = accept_call(self._party, call, time.time())
            key = self._key(self._party, accepted.statement.shard, accepted.omitted)
            self._custody.admit(accepted.admission())
            asked = Asked(self, call, accepted, key, self._custody.view(accepted.reading()))
            answer = self.lie(asked)
        except Exception as fault:
            self.faults.append(fault)
            raise
        key = (accepted.statement.check_id, accepted.attempt)
        self.told[key] = (asked.position, answer != asked.honest())
        self.positions.add(asked.position)
        return answer

    def prepare(self, call: PrepareCall) -> PrepareAnswer:
        return super().prepare(call) if self.prepare_attack is None else self.prepare_attack(call)

    def commit(self, call: CommitCall) -> HolderReceipts:
        return super().commit(call) if self.commit_attack is None else self.commit_attack(call)

    def receive_key(self, relayed: Relayed) -> KeyConfirmation:
        return super().receive_key(relayed) if self.key_attack is None else self.key_attack(relayed)


# --- what it says instead of an HTTP answer ------------------------------------------------------------------------


def saying(pieces: Callable[[bytes], Iterable[bytes]], *, pause: float = 0.0, reset: bool = False) -> Change:
    """Write bytes of its own to the connection in place of an answer, and break it off, with a reset or without."""

    def change(response: Response) -> Response:
        line: socket.socket = environ()["werkzeug.socket"]
        with contextlib.suppress(OSError):  # the service may have heard enough before all is said
            for piece in pieces(response.get_data()):
                line.sendall(piece)
                time.sleep(pause)
        if reset:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # What the server would write after that goes nowhere.
        ours, theirs = socket.socketpair()
        os.dup2(ours.fileno(), line.fileno())
        ours.close()
        theirs.close()
        return response

    return change


def raw(body: bytes, *, status: str = "200 OK", length: object = None, headers: str = "") -> bytes:
    """Return an HTTP answer with the length that is said."""
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {size}\r\n{headers}\r\n"
    return head.encode() + body


def problem(body: bytes, status: int = 500) -> Change:
    """Answer with a problem of its own making."""
    return lambda _: Response(body, status=status, content_type="application/problem+json")


# --- the service, honest, and the stage ----------------------------------------------------------------------------


Key = tuple[bytes, int]
"""Check id and attempt."""


@dataclass(frozen=True)
class Attempted:
    """One attempt as the service saw it: A by member, the outcome or why there is none, and whom it noted for what."""

    key: Key
    chosen: tuple[str, ...]
    outcome: CheckOutcome | Void
    noted: tuple[tuple[str, str], ...]

    def compared(self) -> bool:
        """Tell whether all four answered: on a busy machine one may not, in time."""
        return not any(what.startswith("did not answer") for _, what in self.noted)


class Watched(Relay):
    """The honest service, whose memory of custodians in trouble is cleared before each check.

    So the malicious one is asked as often as any other; else it would be asked last for five seconds.
    """

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401  those of `Relay`
        super().__init__(*arguments)
        self.attempts: list[Attempted] = []
        self._noted: list[tuple[str, str]] = []

    def check(self, request: CheckRequest) -> CheckOutcome:
        self._custodians._until.clear()
        return super().check(request)

    def _attempt(self, attempt: CheckAttempt, *rest: Any, **how: Any) -> Any:  # noqa: ANN401  as in `Relay`
        self._noted = []
        outcome = super()._attempt(attempt, *rest, **how)
        asked = tuple(attempt.member(slot) for slot in attempt.chosen)
        self.attempts.append(Attempted((attempt.check_id, attempt.number), asked, outcome, tuple(self._noted)))
        return outcome

    def _note(self, shard: int, slot: int, what: str) -> None:
        self._noted.append((self._service.manifest.committee(shard).slots[slot], what))
        super()._note(shard, slot, what)


@dataclass
class Stage:
    """A live alliance with one malicious custodian and an honest service under observation."""

    alliance: LiveAlliance
    number: int
    custodian: Malicious
    service: Watched
    insiders: dict[int, Insider]
    people: dict[int, Iterator[tuple[str, str]]] = field(repr=False)
    """By shard, persons of whom exactly the limit counts."""
    bring_the_real_ones_back: Callable[[], None]
    turns: Iterator[int] = field(repr=False)

    @property
    def name(self) -> str:
        return self.custodian._party.id

    def keepers(self, shard: int) -> list[int]:
        return [int(member[-2:]) for member in self.custodian._party.manifest.committee(shard).slots]

    def askers(self, shard: int) -> list[int]:
        """Return who keeps the shard, but the malicious member: of each the group's slot is left out of A."""
        return [number for number in self.keepers(shard) if number != self.number]

    def ask(
        self, asker: int, person: tuple[str, str], amount: str, *, but: Sequence[str] = ("timeout",)
    ) -> tuple[str, str | None]:
        """Return what a member is told, asked again where a busy machine let it time out: that is no verdict."""
        for _ in range(5):
            self.service.attempts.clear()
            verdict = self.alliance.verdict(asker, person, amount)
            if verdict[1] not in but:
                break
        return verdict

    def shard(self, person: tuple[str, str]) -> int:
        return shard_of_person(self.insiders[1].party, Identity(DocumentType(person[0]), person[1]))

    def persons_of(self, shard: int, first: int) -> Iterator[tuple[str, str]]:
        """Return persons of a shard of whom nothing is deposited."""
        numbers = (("passport", f"E{number:08d}") for number in range(first, first + 10_000))
        return (person for person in numbers if self.shard(person) == shard)


@contextlib.contextmanager
def staged(root: Path) -> Iterator[Stage]:
    """Start an alliance and put the malicious custodian and the observed service into it."""
    subjects = [("passport", f"E8000{number:04d}") for number in range(PEOPLE)]
    today, rows = china_today(), {member: [] for member in range(1, MEMBERS + 1)}
    for place, subject in enumerate(subjects):
        # 50 million that count, by two members; and cover before the window and of another product, that does not.
        one, two = 1 + place % MEMBERS, 1 + (place + 3) % MEMBERS
        rows[one].append(issue(f"P-{place}", subject, "20000000.00"))
        rows[two].append(issue(f"Q-{place}", subject, "30000000.00", day=today - dt.timedelta(days=10)))
        rows[two].append(issue(f"R-{place}", subject, "5000000.00", day=today - dt.timedelta(days=40)))
        number, *who, _, amount, day, event = issue(f"S-{place}", subject, "7000000.00")
        rows[one].append((number, *who, "term_life", amount, day, event))
    for member, mine in rows.items():
        write_policies(root / "policies", member, mine)
    alliance = LiveAlliance(
        MEMBERS, root / "policies", root / "state", "--plain-http", "--capture", "--shards", str(SHARDS)
    )
    alliance.start()
    with contextlib.ExitStack() as stack:
        stack.callback(alliance.stop)
        insiders = {number: stack.enter_context(Insider(alliance, number)) for number in range(1, MEMBERS + 1)}
        replaced = stack.enter_context(contextlib.ExitStack())
        service = replaced.enter_context(service_replaced(alliance, Watched))
        custodian = replaced.enter_context(agent_replaced(alliance, LIAR, Malicious))
        made = Stage(alliance, LIAR, custodian, service, insiders, {}, replaced.close, count())
        by_shard = {shard: [one for one in subjects if made.shard(one) == shard] for shard in range(SHARDS)}
        made.people |= {shard: cycle(some) for shard, some in by_shard.items()}
        yield made


# --- asked ---------------------------------------------------------------------------------------------------------


def places(stage: Stage, position: int) -> Iterator[tuple[int, tuple[str, str]]]:
    """Return who asks about whom for the custodian to stand there in A, sooner or later; no more than sixty."""
    shards, slot = PLACES[position]
    pairs = [
        (asker, shard)
        for shard in shards
        for asker in (stage.askers(shard) if slot is None else [stage.keepers(shard)[slot]])
    ]
    return ((asker, next(stage.people[shard])) for asker, shard in islice(cycle(pairs), 60))


def lied_to(stage: Stage, lie: Lie, positions: tuple[int, ...] = ALL) -> list[Attempted]:
    """Have the custodian lie at each position of A, about totals at the limit and about some just above it.

    Every verdict is right. Returns the attempts in which it stood and lied.
    """
    found, sides = [], cycle(TRUTHS if next(stage.turns) % 2 else TRUTHS[::-1])
    stage.custodian.lie = lambda asked: lie(asked) if asked.position in positions else asked.honest()
    # A lie that can be told from one position alone is told from there about both.
    for position in positions * (2 if len(positions) == 1 else 1):
        amount, truth = next(sides)
        for asker, person in places(stage, position):
            verdict = stage.ask(asker, person, amount)
            assert verdict == truth, verdict
            assert stage.custodian.faults == []
            compared = [item for item in stage.service.attempts if stage.name in item.chosen and item.compared()]
            told = [stage.custodian.told[attempt.key] for attempt in compared]
            # A lie that nobody hears, of what two others stand for, is none.
            assert [isinstance(item.outcome, CheckOutcome) for item in compared] == [not lied for _, lied in told]
            found += [attempt for attempt, (_, lied) in zip(compared, told, strict=True) if lied]
            if (position, True) in told:
                break
        else:
            raise AssertionError(f"the lie was never told at position {position}")
    return found


def assert_passed_over(
    stage: Stage, change: Change, code: str, sides: tuple[tuple[str, tuple[str, None]], ...] = TRUTHS
) -> None:
    """Ask until it was asked and answered thus: the service knows why, takes another A, and the verdict is right."""
    stage.custodian.line = change
    why = f"did not answer a check: {code}"
    for position, (amount, truth) in enumerate(sides):
        for asker, person in places(stage, position):
            verdict = stage.ask(asker, person, amount)
            assert verdict == truth, verdict
            assert isinstance(stage.service.attempts[-1].outcome, CheckOutcome)
            met = [item for item in stage.service.attempts if stage.name in item.chosen]
            assert all(not isinstance(item.outcome, CheckOutcome) for item in met)
            # On a busy machine it may not have come to answer.
            said = {what for item in met for member, what in item.noted if member == stage.name}
            assert said <= {why, "did not answer a check: timeout"}
            if any((stage.name, why) in item.noted for item in met):
                break
        else:
            raise AssertionError("the custodian was never asked")
