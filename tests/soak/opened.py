"""What the custodians of a live alliance hold, opened with the keys of all of them: the one place that knows how.

Nobody has all these keys but a test.
"""

import secrets
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from books import EMPTY, Person, Place

from insurer_agent.keys import AgentKeys
from insurer_agent.store.custody_deposits import FACTS, KeptShares, _place, read_facts
from insurer_agent.store.vault import Vault
from protocol.encoding import decode
from protocol.identity import DocumentType, Identity
from protocol.manifest import Manifest, SignedManifest, Terms
from protocol.sharing import RING, Label, held_labels, labels_of_sharing, signed
from protocol.token import Pseudonym, hash_identity, index_key
from protocol.voprf import blind_evaluate
from service.config import load_keys

_ROWS = f"SELECT depositor, id_key, tick, shares, {FACTS} FROM custody_row"  # noqa: S608  names of columns
_OTHERS = "SELECT depositor, never FROM custody_pending"


@dataclass(frozen=True)
class _Row:
    """A deposit as one custodian holds it, opened."""

    slot: int
    place: Place
    excluded: int
    shard: int
    tick: int
    amounts: dict[Label, int]
    counts: dict[Label, int]


@dataclass(frozen=True)
class Opened:
    """The sums of all deposits by place, how many there are by depositor, and what is not as it must be."""

    sums: dict[Place, tuple[int, int]]
    deposits: dict[str, int]
    rows: int
    faults: list[str] = field(default_factory=list)


def open_custody(state: Path, members: int, persons: Iterable[Person]) -> Opened:
    """Open all shares of a local alliance's state, and require every holder of a deposit to hold it alike."""
    terms = decode(Terms, decode(SignedManifest, (state / "service" / "manifest.bin").read_bytes()).terms)
    manifest = Manifest.of(terms)
    states = {f"insurer-{number:02d}": state / "members" / f"insurer-{number:02d}" for number in range(1, members + 1)}
    keys = {name: AgentKeys.load(place) for name, place in states.items()}
    indices = _indices(keys, state / "service", persons)
    held: dict[tuple[str, bytes], list[_Row]] = defaultdict(list)
    faults: list[str] = []
    for name, place in states.items():
        for depositor, deposit_id, row in _rows(manifest, name, place, keys[name], indices, faults):
            held[depositor, deposit_id].append(row)
    sums: dict[Place, tuple[int, int]] = {}
    deposits: dict[str, int] = defaultdict(int)
    for (depositor, deposit_id), rows in held.items():
        deposits[depositor] += 1
        place = rows[0].place
        fault = _fault(manifest, rows)
        if fault is not None:
            faults.append(f"deposit {deposit_id.hex()} of {depositor}: {fault}")
            continue
        fen, count = _opened([row.amounts for row in rows]), _opened([row.counts for row in rows])
        before, many = sums.get(place, EMPTY)
        sums[place] = (before + fen, many + count)
    return Opened(sums, dict(deposits), sum(map(len, held.values())), faults)


def _indices(keys: dict[str, AgentKeys], service: Path, persons: Iterable[Person]) -> dict[tuple[str, bytes], Person]:
    """Return whom each custodian's index of a person is of."""
    found, blinding = {}, load_keys(service).blinding
    for person in persons:
        identity = Identity(DocumentType(person[0]), person[1])
        for name, own in keys.items():
            pseudonym = Pseudonym(blind_evaluate(blinding, hash_identity(own.member.salt, identity)))
            found[name, bytes(index_key(own.member.index, pseudonym))] = person
    return found


def _rows(
    manifest: Manifest,
    name: str,
    state: Path,
    keys: AgentKeys,
    indices: dict[tuple[str, bytes], Person],
    faults: list[str],
) -> Iterator[tuple[str, bytes, _Row]]:
    vault = Vault(keys.storage, "custody", secrets.token_bytes)
    with psycopg.connect(_database(state)) as connection:
        for depositor, never in connection.execute(_OTHERS):
            faults.append(f"{name} holds a deposit of {depositor} that is {'given up' if never else 'not committed'}")
        rows = connection.execute(_ROWS.encode()).fetchall()
    for depositor, id_key, tick, shares, *values in rows:
        facts = read_facts(values)
        kept = decode(KeptShares, vault.open(_place(b"row", depositor, id_key, facts), shares))
        slot = manifest.own_slot(facts.shard, name)
        names = held_labels(len(manifest.committee(facts.shard).slots), facts.excluded, slot)
        person = indices.get((name, facts.token), ("unknown", ""))
        yield (
            depositor,
            kept.deposit_id,
            _Row(
                slot,
                (depositor, person, facts.product, facts.day),
                facts.excluded,
                facts.shard,
                tick,
                dict(zip(names, kept.amounts, strict=True)),
                dict(zip(names, kept.counts, strict=True)),
            ),
        )


def _database(state: Path) -> str:
    settings = tomllib.loads((state / "config.toml").read_text(encoding="utf-8"))
    dsn: str = settings["database"]
    return dsn


def _fault(manifest: Manifest, rows: list[_Row]) -> str | None:
    """Return what is wrong with a deposit as its holders have it, or None."""
    first = rows[0]
    slots = len(manifest.committee(first.shard).slots)
    if sorted(row.slot for row in rows) != [slot for slot in range(slots) if slot != first.excluded]:
        return f"held by slots {sorted(row.slot for row in rows)}"
    if len({(row.place, row.excluded, row.shard, row.tick) for row in rows}) > 1:
        return f"its holders differ: {sorted({(row.place, row.tick) for row in rows})}"
    for shares in ([row.amounts for row in rows], [row.counts for row in rows]):
        joined = {(name, share) for own in shares for name, share in own.items()}
        if sorted(name for name, _ in joined) != sorted(labels_of_sharing(slots, first.excluded)):
            return "its holders hold other shares of one label"
    return None


def _opened(shares: Iterable[dict[Label, int]]) -> int:
    """Return the value of a sharing of which each holder's shares are given, alike for each label."""
    whole = {name: share for own in shares for name, share in own.items()}
    return signed(sum(whole.values()) % RING)
