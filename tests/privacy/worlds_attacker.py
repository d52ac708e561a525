"""What an attacker makes of all that it holds: its values, their combinations, its dictionary of persons."""

import hashlib
import hmac
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import TypeVar

from worlds import (
    Exchange,
    Recording,
    Row,
    Step,
    Subject,
    identity,
    name,
)
from worlds_seen import (
    Ledger,
    opened,
)

from protocol import group
from protocol.group import Element, Scalar
from protocol.secret import Secret
from protocol.sodium import rbcl
from protocol.token import Pseudonym, SchnorrProof, hash_identity, index_key
from protocol.voprf import DleqProof, blind_evaluate

# --- what an attacker holds, and its dictionary of persons ---------------------------------------------------------

M = TypeVar("M")
Values = list[bytes]
Dictionary = dict[Subject, Element]
"""Persons with their H, for whoever has the salt."""


def values_of(*seen: object) -> Values:
    """Return every value of up to 64 bytes in what was seen, and the halves of those of 64."""
    ledger = Ledger(set())
    ledger.shape(list(seen))
    found = list(ledger.names)
    return found + [half for value in found if len(value) == 64 for half in (value[:32], value[32:])]


def points_of(values: Iterable[bytes]) -> list[Element]:
    return [Element(value) for value in dict.fromkeys(values) if group.is_element(value)]


def scalars_of(values: Iterable[bytes]) -> list[Scalar]:
    return [Scalar(value) for value in dict.fromkeys(values) if group.is_scalar(value) and any(value)]


def with_inverses(scalars: Iterable[Scalar]) -> list[Scalar]:
    return [group.scalar_from_int(1), *(one for scalar in scalars for one in (scalar, group.scalar_invert(scalar)))]


def combinations_of(messages: Sequence[Values], scalars: Sequence[Scalar]) -> Iterator[bytes]:
    """Return every a*p, a*p + q and a*p - q of points of one message, a any scalar of it or of the attacker's own,
    and all sums and differences of two points of any messages.
    """
    combine = rbcl.crypto_core_ristretto255_add, rbcl.crypto_core_ristretto255_sub
    everywhere: dict[Element, None] = {}
    for values in messages:
        points = points_of(values)
        everywhere |= dict.fromkeys(points)
        for factor in with_inverses([*scalars, *scalars_of(values)]):
            for point in points:
                scaled = group.multiply(factor, point)
                yield scaled
                for operation in combine:
                    yield from (operation(scaled, other) for other in points)
    for left, right in itertools.combinations(everywhere, 2):
        yield from (operation(left, right) for operation in (*combine, lambda a, b: combine[1](b, a)))


def found(kind: type[M], *seen: object) -> list[M]:
    """Return every message of a kind in what was seen, however deep."""
    inner: list[M] = []
    for item in seen:
        if isinstance(item, kind):
            inner.append(item)
        elif is_dataclass(item):
            inner += found(kind, *(getattr(item, part.name) for part in fields(item)))
        elif isinstance(item, list | tuple):
            inner += found(kind, *item)
    return inner


def secrets_of_repeated_nonces(proofs: Sequence[SchnorrProof | DleqProof]) -> Iterator[Scalar]:
    """Return what two proofs of one nonce are solved by: z = r + c*t, twice, gives t; s = r - c*k gives -k."""
    for one, other in itertools.combinations(
        dict.fromkeys((Scalar(p.challenge), Scalar(p.response)) for p in proofs), 2
    ):
        if one[0] != other[0]:
            slope = group.scalar_invert(group.scalar_subtract(one[0], other[0]))
            yield group.scalar_multiply(group.scalar_subtract(one[1], other[1]), slope)


def persons_found(dictionary: Dictionary, messages: Sequence[Values], scalars: Sequence[Scalar]) -> set[Subject]:
    """Return the persons whose H, or a multiple of it, is a combination of what the attacker holds."""
    factors = with_inverses(scalars)
    targets = {group.multiply(factor, point): person for person, point in dictionary.items() for factor in factors}
    return {targets[point] for point in combinations_of(messages, scalars) if point in targets}


def dictionary_of(people: Iterable[Subject], salt: Secret) -> Dictionary:
    return {person: hash_identity(salt, identity(person)) for person in people}


def clear_forms(dictionary: Dictionary, keys: Sequence[Secret]) -> dict[bytes, Subject]:
    """Return what would name a person, stood it anywhere: the number, its hashes, its HMACs under keys held."""
    forms = {}
    for person, point in dictionary.items():
        encoded = identity(person).encode()
        forms |= dict.fromkeys((person[1].encode(), bytes(point), hashlib.sha256(encoded).digest()), person)
        macs = (
            hmac.digest(key.reveal(), kind + encoded, "sha256") for key in keys for kind in (b"", b"person", b"shard")
        )
        forms |= dict.fromkeys(macs, person)
    return forms


def bytes_of(exchanges: Iterable[Exchange], rows: Iterable[Row] = (), *more: object) -> bytes:
    parts = [part for item in exchanges for part in (item.request, item.response)]
    parts += [value for row in rows for value in row.values.values() if isinstance(value, bytes)]
    return b"|".join([*parts, *values_of(*more)])


def ks_of(worlds: Recording) -> Scalar:
    return Scalar(worlds.service.blinding.reveal())


def pseudonym_of(worlds: Recording, person: Subject, dictionary: Dictionary) -> Pseudonym:
    return Pseudonym(blind_evaluate(worlds.service.blinding, dictionary[person]))


def rows_of(worlds: Recording, member: int, person: Subject, dictionary: Dictionary) -> list[Row]:
    """Return what a custodian keeps of a person: the tests know ks, and so whose rows are whose."""
    token = index_key(worlds.parties[member].keys.index, pseudonym_of(worlds, person, dictionary))
    return [row for row in custody_of(worlds, member) if row.values["token"] == token]


def custody_of(worlds: Recording, member: int) -> list[Row]:
    return [row for row in worlds.stored[member] if row.table == "custody_row"]


def slot_of(worlds: Recording, member: int) -> int:
    return worlds.parties[member].manifest.own_slot(worlds.shard, name(member))


def found_in_envelopes(worlds: Recording, member: int, step: Step, kind: type[M]) -> list[M]:
    return found(kind, [opened(worlds, member, item) for item in step.exchanges[name(member)]])


def pseudonyms(worlds: Recording, member: int, step: Step) -> list[Element]:
    return [
        Element(value)
        for item in step.exchanges[name(member)]
        for value in opened(worlds, member, item)
        if isinstance(value, bytes)
    ]
