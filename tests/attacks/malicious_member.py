"""What a malicious member works with: a live alliance, every member's keys, and requests that `ask` would not make."""

import base64
import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg
from insiders import Insider
from live import LiveAlliance, issue, write_policies

from protocol import group, signing
from protocol import token as prover
from protocol.check import PURPOSE, PendingCheck, Question, Verdict, Void, ask, read_outcome
from protocol.check import shard_of_person as shard_of
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.group import Element, Scalar
from protocol.identity import DocumentType, Identity
from protocol.messages import (
    CheckEnvelope,
    CheckRequest,
    CheckStatement,
    PrepareAnswer,
    SignedCheck,
    envelope_hash,
)
from protocol.party import Party, random_scalar
from protocol.token import SchnorrProof
from transport.internal import CHECK, PREPARE

MEMBERS, SHARDS, BUDGET = 8, 8, 50
PEOPLE = 100
HELD, LIMIT = 3_000_000_000, 5_000_000_000
LEFT = LIMIT - HELD
"""What is left for every person of the pool below the limit, in fen."""
EXCEEDS, WITHIN = (Verdict.EXCEEDS, None), (Verdict.WITHIN, None)
DISAGREEMENT = (Verdict.INDETERMINATE, Void.DISAGREEMENT)
TABLES = (
    "custody_pending",
    "custody_row",
    "custody_stamp",
    "custody_own_stamp",
    "check_request",
    "budget",
    "committee_key",
)
"""All that a custodian keeps, but its records of range checks: one that it refuses it has on record all the same."""
Rows = psycopg.Connection[tuple[Any, ...]]
Bend = Callable[[str, bytes], bytes]
"""What an attacker seals for a custodian in place of the honest body."""


# --- the attacker's workshop ---------------------------------------------------------------------------------------


def subject_of(identity: Identity) -> tuple[str, str]:
    return "passport", identity.number


def alliance_of_eight(root: Path) -> LiveAlliance:
    """Return eight members, to be started, of whom three have each insured all persons for 10 million yuan."""
    for member in range(1, MEMBERS + 1):
        numbers = range(PEOPLE) if member <= 3 else ()
        rows = [issue(f"A-{n}", ("passport", f"E10{n:06d}"), "10000000.00") for n in numbers]
        write_policies(root / "policies", member, rows)
    return LiveAlliance(
        MEMBERS, root / "policies", root / "state", "--plain-http", "--capture", "--shards", str(SHARDS)
    )


@dataclass
class Stage:
    """A live alliance with the keys of every member, and persons that no test has asked about yet."""

    alliance: LiveAlliance
    members: dict[int, Insider]
    databases: dict[int, Rows]
    pool: list[Identity]
    totals: dict[Identity, int] = field(default_factory=dict)
    """What persons that were touched must be found to hold, once checks are as of now."""

    def expect(self, *persons: Identity, held: int = HELD) -> None:
        self.totals.update(dict.fromkeys(persons, held))

    def subject(self, *, troubled: bool = False) -> Identity:
        """Take a person of the pool: one of the fullest shard where an attack changes who is asked next, else another.

        He is of the shard with most persons left, so that another is left there too.
        """
        left = Counter(map(self.shard, self.pool))
        places = [n for n, person in enumerate(self.pool) if (self.shard(person) == self.fullest) == troubled]
        return self.pool.pop(max(places, key=lambda place: left[self.shard(self.pool[place])]))

    def neighbour(self, whom: Identity) -> Identity:
        """Take another person of the same shard."""
        place = next(n for n, person in enumerate(self.pool) if self.shard(person) == self.shard(whom))
        return self.pool.pop(place)

    @cached_property
    def fullest(self) -> int:
        return Counter(map(self.shard, self.pool)).most_common(1)[0][0]

    def shard(self, identity: Identity) -> int:
        return shard_of(self.members[1].party, identity)

    def holders(self, shard: int) -> list[int]:
        return [int(holder[-2:]) for holder in self.members[1].manifest.committee(shard).slots]

    def outsider(self, shard: int, place: int = 0) -> Insider:
        outside = [number for number in self.members if number not in self.holders(shard)]
        return self.members[outside[place]]

    def stored(self) -> dict[str, dict[str, str]]:
        """Return, by member and table, a digest of all rows."""
        return {
            f"insurer-{number:02d}": {table: digest(self.rows(number, table)) for table in TABLES}
            for number in self.members
        }

    def rows(self, number: int, table: str, where: str = "true", *values: object) -> list[str]:
        """Return a member's rows of a table as sorted texts."""
        query = f"SELECT t::text FROM {table} t WHERE {where} ORDER BY 1"  # noqa: S608  of our own names
        return [row for (row,) in self.databases[number].execute(query.encode(), values)]

    def marks(self) -> dict[str, int]:
        files = (self.alliance.state / "capture").glob("insurer-*.jsonl")
        return {file.stem: file.stat().st_size for file in files}

    def said(self, since: Mapping[str, int], path: str) -> dict[str, list[Any]]:
        """Return what each custodian answered since then: codes of refusals, "ok", or the codes a prepare gave."""
        said: dict[str, list[Any]] = {}
        for file in sorted((self.alliance.state / "capture").glob("insurer-*.jsonl")):
            with file.open("rb") as lines:
                lines.seek(since.get(file.stem, 0))
                for entry in map(json.loads, lines):
                    if entry["path"] == path:
                        body = base64.b64decode(entry["response"])
                        said.setdefault(file.stem, []).append(meaning(path, entry["status"], body))
        return said

    def assert_right(self, *persons: Identity, held: int = HELD) -> None:
        """The alliance answers rightly about these persons: asked by a member, through its own agent."""
        for person in persons:
            asker = int(self.outsider(self.shard(person), 1).party.id[-2:])
            for proposed, verdict in ((LIMIT - held, "within"), (LIMIT - held + 1, "exceeds")):
                found = settled(self.alliance, asker, person, proposed)
                assert found == (verdict, None), f"shard {self.shard(person)}, {held}: {found}, not {verdict}"


def digest(rows: list[str]) -> str:
    return f"{len(rows)} {hashlib.sha256(repr(rows).encode()).hexdigest()}"


def meaning(path: str, status: int, body: bytes) -> Any:  # noqa: ANN401  a code, or a code a deposit
    if status != 200:
        return json.loads(body)["code"]
    return tuple(item.refusal for item in decode(PrepareAnswer, body).answers) if path == PREPARE else "ok"


LATE = {("indeterminate", "timeout"), ("indeterminate", "too-few-custodians")}
"""What a busy machine makes of a check; where three custodians are late at once they are too few."""


def settled(alliance: LiveAlliance, member: int, person: Identity, proposed: int) -> tuple[str, str | None]:
    """Return a verdict, asked for again where a busy machine let a check time out: that is no wrong verdict."""
    for _ in range(5):
        verdict = alliance.verdict(member, subject_of(person), f"{proposed // 100}.{proposed % 100:02d}")
        if verdict not in LATE:
            break
    return verdict


def late(verdicts: list[tuple[Verdict, Void | None]]) -> bool:
    return any((verdict.value, None if void is None else void.value) in LATE for verdict, void in verdicts)


def open_stage(alliance: LiveAlliance, pool: list[Identity], stack: ExitStack) -> Stage:
    if not alliance.runs:
        alliance.start()
    members = {number: stack.enter_context(Insider(alliance, number)) for number in range(1, MEMBERS + 1)}
    databases = {number: stack.enter_context(alliance.database(number)) for number in members}
    for database in databases.values():
        database.autocommit = True
    return Stage(alliance, members, databases, pool)


@dataclass
class Bending:
    """Stands where a `Party` stands and seals what the attack puts into envelopes."""

    party: Party
    bend: Bend

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever a Party has
        return getattr(self.party, name)

    def channel(self, peer: str) -> Any:  # noqa: ANN401  as much of a Channel as sealing takes
        channel, bend = self.party.channel(peer), self.bend

        class Sealing:
            def seal(self, purpose: str, header: bytes, body: bytes, salt: bytes) -> bytes:
                return channel.seal(purpose, header, bend(peer, body), salt)

        return Sealing()


def honest(_peer: str, body: bytes) -> bytes:
    return body


def told(change: Callable[[CheckEnvelope], CheckEnvelope], peers: tuple[str, ...] | None = None) -> Bend:
    """Change the body for some custodians, or for all."""

    def bend(peer: str, body: bytes) -> bytes:
        return encode(change(decode(CheckEnvelope, body))) if peers is None or peer in peers else body

    return bend


def lane_of(body: CheckEnvelope, lane: int = 0, **changes: object) -> CheckEnvelope:
    lanes = list(body.lanes)
    lanes[lane] = replace(lanes[lane], **changes)
    return replace(body, lanes=tuple(lanes))


def person_of(body: CheckEnvelope, place: int = 0, **changes: object) -> CheckEnvelope:
    persons = list(body.persons)
    persons[place] = replace(persons[place], **changes)
    return replace(body, persons=tuple(persons))


def signed_by(party: Party, statement: CheckStatement) -> SignedCheck:
    return SignedCheck(statement=statement, signature=signing.sign(party.keys.signing, PURPOSE, encode(statement)))


def restated(party: Party, request: CheckRequest, **changes: object) -> CheckRequest:
    return replace(request, signed=signed_by(party, replace(request.signed.statement, **changes)))


def resealed(party: Party, request: CheckRequest, envelopes: tuple[bytes, ...]) -> CheckRequest:
    """Return the request with other envelopes, and their hashes signed."""
    slots = [entry.slot for entry in request.signed.statement.envelopes]
    entries = zip(request.signed.statement.envelopes, slots, envelopes, strict=False)
    hashes = tuple(replace(entry, slot=slot, hash=envelope_hash(item)) for entry, slot, item in entries)
    return restated(party, replace(request, envelopes=envelopes), envelopes=hashes)


def proof_of(me: Insider, t: Scalar, blinded: bytes, unblinder: bytes, context: bytes) -> SchnorrProof:
    """Prove that D is t*Ks, for any B; of a D that is not, this is the best that there is."""
    key, nonce = me.manifest.blinding_key, random_scalar(secrets.token_bytes)
    commitment = group.multiply(nonce, key)
    challenge = prover._challenge(context, Element(blinded), key, Element(unblinder), commitment)
    response = group.scalar_add(nonce, group.scalar_multiply(challenge, t))
    return SchnorrProof(challenge=challenge, response=response)


Made = tuple[PendingCheck, CheckRequest]


def forged(
    me: Insider,
    questions: list[Question],
    bend: Bend = honest,
    *,
    check_id: bytes | None = None,
    at: float = 0.0,
    **changes: object,
) -> Made:
    """Make a check as `ask` does, with bent bodies and another signed statement."""

    def random(count: int) -> bytes:
        return check_id if check_id is not None and count == 16 else secrets.token_bytes(count)

    now = time.time()
    pending, request = ask(Bending(me.party, bend), questions, now + at, now + 2, random)  # type: ignore[arg-type]  stands for a Party
    return pending, restated(me.party, request, **changes) if changes else request


@dataclass
class Tried:
    """What came of an attack: the service's refusal or the verdicts, what custodians said, which of them kept what."""

    refusal: str | None
    verdicts: list[tuple[Verdict, Void | None]]
    said: dict[str, list[Any]]
    changed: dict[str, set[str]]

    @property
    def codes(self) -> set[Any]:
        return {code for codes in self.said.values() for code in codes}

    def assert_refused(self, code: str) -> None:
        """The service refused it; no custodian was asked or keeps anything."""
        assert (self.refusal, self.said, self.changed) == (code, {}, {})

    def assert_refused_by_custodians(self, *codes: str) -> None:
        """Every custodian asked refused with one of these, which the requester is not told; nothing is kept."""
        assert self.codes
        assert self.codes <= set(codes)
        assert len(self.said) >= 4
        assert set(self.verdicts) == {DISAGREEMENT}
        assert self.changed == {}


def tried(stage: Stage, me: Insider, make: Callable[[], Made]) -> Tried:
    """Send an attack; make and send it again where a busy machine let it time out."""
    for _ in range(5):
        before, since = stage.stored(), stage.marks()
        pending, request = make()
        try:
            outcome, refusal = me.check(request), None
            verdicts = read_outcome(pending, outcome, time.time())
        except ProtocolError as refused:
            verdicts, refusal = [], refused.code
        said, after = stage.said(since, CHECK), stage.stored()
        changed = {
            member: {table for table in TABLES if tables[table] != before[member][table]}
            for member, tables in after.items()
            if tables != before[member]
        }
        # Whoever refused keeps nothing, whatever the others did.
        assert set(changed) <= {member for member, codes in said.items() if "ok" in codes}
        # What is malformed counts as no answer, so it is not made again.
        if not late(verdicts) or "malformed" in {code for codes in said.values() for code in codes}:
            break
    return Tried(refusal, verdicts, said, changed)


def question(me: Insider, whom: Identity, proposed: int = LEFT) -> Question:
    """Ask, unless said otherwise, exactly at the limit; one fen more exceeds it."""
    (rule,) = me.manifest.terms.rules
    return Question(whom, rule, proposed)


def attacked(stage: Stage, *, troubled: bool = False) -> tuple[Insider, Identity]:
    """Return a requester from outside the shard of a person that nobody has asked about yet, and that person."""
    whom = stage.subject(troubled=troubled)
    return stage.outsider(stage.shard(whom)), whom


def strangers(stage: Stage, shard: int) -> Iterator[Identity]:
    """Yield persons of a shard that nobody has insured."""
    for number in range(10_000):
        person = Identity(DocumentType.PASSPORT, f"X{secrets.randbelow(10**8):08d}{number}")
        if stage.shard(person) == shard:
            yield person
