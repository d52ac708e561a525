"""Worlds that a party must not tell apart: one live alliance plays them, and what each party gets is kept.

Six members in five groups, so that every committee has all five groups, a requester's group is outside of A, and A is
always the other four: what two scripts leave is comparable one for one. Members 1 and 6 have one owner; whichever of
the two holds no slot of the shard (the `outsider`) keeps nothing of it, the other is its `affiliate`.
"""

import base64
import contextlib
import datetime as dt
import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psycopg
from live import LiveAlliance, china_today, issue, wait_for_ticks, wait_until, write_policies

from insurer_agent.keys import AgentKeys
from insurer_agent.store.vault import Vault
from protocol.check import shard_of_person
from protocol.committee import DEFAULT_SLOTS, draw_committee
from protocol.encoding import decode
from protocol.identity import DocumentType, Identity
from protocol.manifest import POLICY_COUNT, Committee, Terms, verify_manifest
from protocol.messages import (
    BatchOutcome,
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
    SignedBatch,
    SignedRelay,
)
from protocol.party import Party, ServiceKeys
from service.admin import local
from service.config import load_keys
from transport.internal import CHECK, COMMIT, COMMITTEE_KEY, PREPARE
from transport.settings import load_pins

MEMBERS, SHARDS = 6, 4
FIRST, SECOND, ASKER, KEEPER = 2, 3, 4, 5
"""The two depositors of every script, a custodian that also asks, and one that does nothing but keep."""
CHECKS, DEPOSITS = "/v1/checks", "/v1/deposits"
KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    CHECKS: (CheckRequest, CheckOutcome),
    DEPOSITS: (SignedBatch, BatchOutcome),
    CHECK: (CheckCall, CheckAnswer),
    PREPARE: (PrepareCall, PrepareAnswer),
    COMMIT: (CommitCall, HolderReceipts),
    "/v1/relay": (SignedRelay, KeyConfirmation),
    COMMITTEE_KEY: (Relayed, KeyConfirmation),
}
LATE_TABLES = {"own_answer", "api_key"}
"""What a member stores of its own checks, which it may complete after the step; and the hour when its key was used."""
OWN_TABLES = {"policy", "policy_row", "deposit"} | LATE_TABLES
"""What a member stores of its own policies and checks; all other tables are a custodian's or the agent's."""
PEOPLE = 300
WATERMARKS = "/v1/watermarks"
Subject = tuple[str, str]


def subject(number: int) -> Subject:
    return ("passport", f"W{number:08d}")


def identity(person: Subject) -> Identity:
    return Identity(DocumentType(person[0]), person[1])


def name(member: int) -> str:
    return f"insurer-{member:02d}"


# --- what is recorded ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exchange:
    """A binary message that a party was sent and what it answered."""

    path: str
    status: int
    request: bytes
    response: bytes

    @property
    def call(self) -> Any:  # noqa: ANN401  one of the messages of KINDS
        return decode(KINDS[self.path][0], self.request)

    @property
    def answer(self) -> Any:  # noqa: ANN401  as above
        return decode(KINDS[self.path][1], self.response)


@dataclass(frozen=True)
class Row:
    table: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One deposit or check by one member, and what it left with everybody."""

    member: int
    exchanges: Mapping[str, Sequence[Exchange]]
    rows: Mapping[int, Sequence[Row]]
    logs: Mapping[str, Sequence[str]]
    admin: Mapping[str, bytes]
    answer: Mapping[str, Any] | None = None

    def of(self, party: str, path: str) -> list[Exchange]:
        return [item for item in self.exchanges[party] if item.path == path]


@dataclass(frozen=True)
class Recording:
    """What the worlds left. `history` has every step in its order, the alliance's start first."""

    shard: int
    outsider: int
    affiliate: int
    people: Sequence[Subject]
    parties: Mapping[int, Party]
    vaults: Mapping[int, Vault]
    stored: Mapping[int, Sequence[Row]]
    service: ServiceKeys
    worlds: Mapping[str, Sequence[Step]]
    persons: Mapping[str, Sequence[Subject]]
    history: Sequence[Step] = field(repr=False)

    @property
    def custodians(self) -> list[int]:
        return [self.affiliate, FIRST, SECOND, ASKER, KEEPER]


# --- playing -------------------------------------------------------------------------------------------------------


class _Grouped(local._Alliance):
    """A local alliance whose first and last member have one owner."""

    def _sign(self, terms: Terms) -> Any:  # noqa: ANN401  as in the class above
        owner = {name(1): "owner of two", name(MEMBERS): "owner of two"}
        members = tuple(replace(member, group=owner.get(member.id, member.group)) for member in terms.members)
        groups = {member.id: member.group for member in members}
        drawn = tuple(
            Committee(shard=shard, version=1, slots=draw_committee(shard, groups, DEFAULT_SLOTS))
            for shard in range(SHARDS)
        )
        another = replace(terms.rules[0], id="policies-30d", measure=POLICY_COUNT, limit=100)
        rules = (*terms.rules, another)
        return super()._sign(replace(terms, members=members, committees=drawn, rules=rules))


class Player:
    """Plays scripts in an alliance, one step at a time, and keeps what each step left."""

    def __init__(self, root: Path) -> None:
        self.alliance = LiveAlliance(MEMBERS, root / "policies", root / "state", "--capture", "--shards", str(SHARDS))
        state, self._root, self._numbers = self.alliance.state, root, itertools.count(1)
        for member in range(1, MEMBERS + 1):
            write_policies(root / "policies", member, [])
        options = local.LocalOptions(MEMBERS, root / "policies", state, None, SHARDS, None, capture=True)
        _Grouped(options)._manifest()
        (state / "alliance.json").write_text(json.dumps({"members": MEMBERS, "shards": SHARDS}), encoding="utf-8")
        pins = load_pins(state / "service" / "admins.json")
        manifest = verify_manifest((state / "service" / "manifest.bin").read_bytes(), pins)
        self.keys = {member: AgentKeys.load(self.alliance.member_state(member)) for member in range(1, MEMBERS + 1)}
        self.parties = {member: Party(name(member), keys.member, manifest) for member, keys in self.keys.items()}
        self.history: list[Step] = []

    def persons(self, shard: int) -> Iterator[Subject]:
        """Return persons of a shard, in order."""
        party = self.parties[1]
        return (person for person in map(subject, range(PEOPLE)) if shard_of_person(party, identity(person)) == shard)

    def open(self, stack: contextlib.ExitStack) -> None:
        self.alliance.start()
        stack.callback(self.alliance.stop)
        self._databases = {
            member: stack.enter_context(self.alliance.database(member)) for member in range(1, MEMBERS + 1)
        }
        self._parties = ["service", *map(name, range(1, MEMBERS + 1))]
        self._captured, self._logged = dict.fromkeys(self._parties, 0), dict.fromkeys(self._parties, 0)
        self._rows: dict[int, list[Row]] = {member: [] for member in self._databases}
        wait_until(lambda: all(self._all_are_current(member) for member in self._databases))
        self._step(0)

    def _all_are_current(self, member: int) -> bool:
        told = self.alliance.request(member, "GET", "/v1/status").body["completeness"]
        return bool(told["current"] == told["members"])

    def deposit(self, member: int, *rows: tuple[str, ...]) -> Step:
        """Have a member's agent import rows and wait until every holder has given its receipt for each."""
        file = write_policies(self._root, member, rows, name=f"{next(self._numbers)}.csv")
        done = self.alliance.agent(member, "import", str(file))
        assert done.returncode == 0, done.stderr
        wait_until(lambda: self.alliance.is_delivered(member))
        return self._step(member)

    def check(self, member: int, person: Subject, proposed: str, rule: str = "accident-30d") -> Step:
        body = {
            "subject": {"document_type": person[0], "document_number": person[1]},
            "rule": rule,
            "proposed_amount": proposed,
        }
        answer = self.alliance.request(member, "POST", CHECKS, body)
        assert answer.status == 200, answer
        return self._step(member, answer.body)

    def _step(self, member: int, answer: Mapping[str, Any] | None = None) -> Step:
        """Return what came since the step before."""
        exchanges, logs, rows = {}, {}, {}
        for party in self._parties:
            with contextlib.suppress(FileNotFoundError):
                # Watermarks come at regular times whatever happens; `test_watermark.py` looks at what they say.
                lines = [line for line in self.alliance.captured(party) if line["path"] != WATERMARKS]
                exchanges[party], self._captured[party] = lines[self._captured[party] :], len(lines)
            text = (self.alliance.state / "logs" / f"{party}.log").read_text(encoding="utf-8").splitlines()
            logs[party], self._logged[party] = text[self._logged[party] :], len(text)
        for number, connection in self._databases.items():
            found = stored_rows(connection)
            before = [(row.table, *row.values.items()) for row in self._rows[number]]
            rows[number] = [row for row in found if (row.table, *row.values.items()) not in before]
            self._rows[number] = found
        step = Step(
            member,
            {party: [_exchange(line) for line in exchanges.get(party, [])] for party in self._parties},
            rows,
            logs,
            self._admin(),
            answer,
        )
        self.history.append(step)
        return step

    def _admin(self) -> dict[str, bytes]:
        """Return all that an admin handles, and all that the service tells any member that asks."""
        state = self.alliance.state
        files = [
            *state.glob("admin/*"),
            *state.glob("ca/*.*"),
            *state.glob("ca/issued/*"),
            *state.glob("members/*/enrolment.json"),
            *state.glob("service/service.json"),
        ]
        files += [*state.glob("*/**/admins.json"), *state.glob("*/**/manifest.bin")]
        held = {str(file.relative_to(state)): file.read_bytes() for file in sorted(files)}
        context = self.alliance.context_of(self.alliance.member_state(1))
        for path in ("/v1/manifest", "/v1/revocations", "/healthz", "/readyz"):
            with urlopen(self.alliance.local["service_url"] + path, timeout=10, context=context) as response:
                held[path] = response.read()
        return held

    def stored(self) -> dict[int, list[Row]]:
        return dict(self._rows)


def stored_rows(connection: psycopg.Connection[tuple[Any, ...]]) -> list[Row]:
    """Return every row of every table, in the order in which they were last written."""
    tables = connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    found = []
    for (table,) in sorted(tables.fetchall()):
        cursor = connection.execute(f'SELECT * FROM "{table}" ORDER BY xmin::text::bigint, ctid'.encode())  # noqa: S608  names of our own schema
        names = [column.name for column in cursor.description or ()]
        found += [Row(table, dict(zip(names, values, strict=True))) for values in cursor if values[0] != "directory"]
    connection.rollback()
    return found


def _exchange(line: Mapping[str, Any]) -> Exchange:
    request, response = (base64.b64decode(line[part]) for part in ("request", "response"))
    return Exchange(line["path"], line["status"], request, response)


# --- the scripts ---------------------------------------------------------------------------------------------------


def event(
    number: str, person: Subject, amount: str, kind: str, product: str = "accident", days: int = 0
) -> tuple[str, ...]:
    """Return a row of any kind; `days` back from today."""
    row = issue(number, person, amount, day=china_today() - dt.timedelta(days=days))
    return (*row[:3], product, *row[4:6], kind)


def _plain(player: Player, outsider: int, amounts: tuple[str, str, str], people: Iterator[Subject]) -> list[Step]:
    """Two insurers deposit for one person, one of them twice; two others ask about the person."""
    person = next(people)
    return [
        player.deposit(FIRST, event("P-1", person, amounts[0], "issue")),
        player.deposit(FIRST, event("P-1", person, amounts[1], "amend")),
        player.deposit(SECOND, event("P-2", person, amounts[2], "issue")),
        *_asked(player, outsider, (person, person)),
    ]


def _scattered(player: Player, outsider: int, people: Iterator[Subject]) -> list[Step]:
    """The same members deposit and ask, but each time about somebody else, under other products, days and kinds."""
    first, second, third, fourth = (next(people) for _ in range(4))
    return [
        player.deposit(FIRST, event("P-1", first, "700.00", "issue", "group_accident")),
        player.deposit(FIRST, event("P-2", second, "80000000.00", "issue", days=3)),
        player.deposit(SECOND, event("P-3", third, "5.00", "issue", "term_life", days=9)),
        *_asked(player, outsider, (second, fourth)),
    ]


def _asked(player: Player, outsider: int, persons: tuple[Subject, Subject]) -> list[Step]:
    wait_for_ticks()
    return [player.check(outsider, persons[0], "1000000.00"), player.check(ASKER, persons[1], "1000000.00")]


def _grown(player: Player, outsider: int, person: Subject) -> list[Step]:
    """Another insurer covers the person, whose total stays within; then it cancels."""
    number = f"P-{len(player.history)}"  # another one should the script be played again
    issued = player.deposit(outsider, event(number, person, "10000000.00", "issue"))
    wait_for_ticks()
    asked = player.check(ASKER, person, "1000000.00")
    return [issued, asked, player.deposit(outsider, event(number, person, "10000000.00", "cancel"))]


def _at_once(player: Player, people: Iterator[Subject]) -> list[Step]:
    """Two deposits in one file: of one person, then of two."""
    one, other, third = (next(people) for _ in range(3))
    same = [event("P-4", one, "1.00", "issue"), event("P-4", one, "2.00", "amend")]
    return [
        player.deposit(FIRST, *same),
        player.deposit(FIRST, *(event("P-5", who, "1.00", "issue") for who in (other, third))),
    ]


def _undisturbed(steps: Sequence[Step]) -> bool:
    """Tell whether a busy machine left the steps alone: no check timed out, and no deposit was sent twice."""
    asked = [step.answer["reason"] for step in steps if step.answer is not None]
    sent = [row.values["attempts"] for step in steps for row in step.rows[step.member] if row.table == "deposit"]
    return set(asked) <= {None} and set(sent) <= {1}


@functools.cache
def recorded(base: Path) -> Recording:
    """Play all worlds, once in a session, and end the alliance."""
    root = Path(tempfile.mkdtemp(dir=base, prefix="worlds-"))
    player = Player(root)
    shard, elsewhere = 0, 1
    slots = player.parties[1].manifest.committee(shard).slots
    affiliate, outsider = (1, MEMBERS) if name(1) in slots else (MEMBERS, 1)
    people, others = player.persons(shard), player.persons(elsewhere)
    somebody = next(people)
    for member in range(1, MEMBERS + 1):
        write_policies(root / "policies", member, [issue("W-1", somebody, "1000.00")])
    worlds: dict[str, list[Step]] = {}
    persons: dict[str, list[Subject]] = {}
    used = [somebody]

    def taken(source: Iterator[Subject]) -> Iterator[Subject]:
        for person in source:
            used.append(person)
            yield person

    def play(world: str, script: Callable[[], list[Step]]) -> None:
        for _ in range(4):
            before = len(used)
            worlds[world] = script()
            persons[world] = used[before:]
            if _undisturbed(worlds[world]):
                return
        raise AssertionError(f"the machine is too busy: world {world} was disturbed each time")

    with contextlib.ExitStack() as stack:
        player.open(stack)
        # The first use of each committee key is not compared: from then on its name is known to all.
        play("first use", lambda: [player.check(member, somebody, "1.00") for member in (outsider, ASKER)])
        play("little", lambda: _plain(player, outsider, ("1000000.00", "1200000.00", "2000000.00"), taken(people)))
        (person,) = persons["little"]
        play("much", lambda: _plain(player, outsider, ("49000000.00", "31234567.89", "45000000.00"), taken(people)))
        play("scattered", lambda: _scattered(player, outsider, taken(people)))
        play("grown", lambda: _grown(player, outsider, person))
        play("elsewhere", lambda: [player.check(outsider, next(taken(others)), "1000000.00")])
        play("other rule", lambda: [player.check(outsider, person, "1", rule="policies-30d")])
        play("at once", lambda: _at_once(player, taken(people)))
        stored = player.stored()
    return Recording(
        shard=shard,
        outsider=outsider,
        affiliate=affiliate,
        people=[subject(number) for number in range(PEOPLE)],
        parties=player.parties,
        vaults={member: Vault(keys.storage, "custody", bytes) for member, keys in player.keys.items()},
        stored=stored,
        service=load_keys(player.alliance.state / "service"),
        worlds=worlds,
        persons=persons | {"all": used},
        history=player.history,
    )
