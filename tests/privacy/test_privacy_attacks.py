"""The best that a party can do with all that it holds: dictionaries over persons, amounts, seeds and tags.

The party has its keys, its database opened with them, and every message of the worlds of `worlds.py`. Each attack
fails on that and succeeds once the protection it meets is taken away, so it is the protection that stops it.
"""

import hmac
import re
from collections.abc import Iterable, Sequence

import pytest
from world import seeded
from worlds import (
    ASKER,
    FIRST,
    KEEPER,
    OWN_TABLES,
    SECOND,
    Recording,
    identity,
    name,
    recorded,
)
from worlds_attacker import (
    Dictionary,
    Values,
    bytes_of,
    clear_forms,
    custody_of,
    dictionary_of,
    found,
    found_in_envelopes,
    ks_of,
    persons_found,
    points_of,
    pseudonyms,
    scalars_of,
    secrets_of_repeated_nonces,
    values_of,
    with_inverses,
)
from worlds_seen import (
    seen_by_custodian,
    seen_by_requester,
    seen_by_service,
)

from protocol import group
from protocol.encoding import decode
from protocol.group import Element, Scalar
from protocol.manifest import SignedManifest, Terms
from protocol.messages import CheckEnvelope, DepositEnvelope
from protocol.party import random_scalar
from protocol.secret import Secret
from protocol.sodium import rbcl
from protocol.token import Pseudonym, SchnorrProof, blind, index_key
from protocol.voprf import DleqProof, prove
from transport.internal import CHECK

live = pytest.mark.alliance


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return recorded(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def dictionary(worlds: Recording) -> Dictionary:
    """All persons there could be, with the salt that every member has."""
    return dictionary_of(worlds.people, worlds.parties[1].keys.salt)


# --- identity ------------------------------------------------------------------------------------------------------


@live
def test_a_custodians_dictionary_names_nobody_unless_it_has_ks(worlds: Recording, dictionary: Dictionary) -> None:
    """All that a custodian ever got, opened and keeps: B, C, D, both proofs, P, T, and its keys."""
    after_start = worlds.history[1:]
    seen = [seen_by_custodian(worlds, KEEPER, step) for step in after_start]
    messages, keys = [values_of(item) for item in seen], worlds.parties[KEEPER].keys
    public = worlds.parties[KEEPER].manifest.blinding_key
    own = [Scalar(keys.index.reveal()), *scalars_of([keys.signing.reveal(), keys.sealing.reveal()])]
    assert sum(len(points_of(values)) for values in messages) > 100
    assert persons_found(dictionary, messages, own) == set()
    for kind, many in ((SchnorrProof, 15), (DleqProof, 12)):  # of checks half of those who are called have the latter
        proofs = found(kind, seen)
        assert len(proofs) > many
        solved = {group.multiply(scalar, public) for scalar in secrets_of_repeated_nonces(proofs)}
        assert not solved & {point for values in messages for point in points_of(values)}
    assert persons_found(dictionary, messages, [ks_of(worlds)]) == set(worlds.persons["all"])


@live
def test_every_custodians_dictionary_names_nobody_in_any_byte_that_it_holds(
    worlds: Recording, dictionary: Dictionary
) -> None:
    for member in worlds.custodians:
        steps = [*worlds.worlds["little"], *worlds.worlds["much"]]
        seen, keys = [seen_by_custodian(worlds, member, step) for step in steps], worlds.parties[member].keys
        own = [Scalar(keys.index.reveal())]
        assert persons_found(dictionary, [values_of(item) for item in seen], own) == set()
        rows = [row for row in worlds.stored[member] if row.table not in OWN_TABLES]
        exchanges = [item for step in worlds.history for item in step.exchanges[name(member)]]
        held = bytes_of(exchanges, rows, *seen)
        forms = clear_forms(dictionary, [keys.salt, keys.signing, keys.sealing, keys.index])
        assert {forms[form] for form in forms if form in held} == set()
        # A token that every member could compute would name its person.
        planted = hmac.digest(keys.salt.reveal(), identity(worlds.people[7]).encode(), "sha256")
        assert {forms[form] for form in forms if form in held + planted} == {worlds.people[7]}


@live
def test_the_services_dictionary_names_nobody_even_with_the_salt_unless_it_has_d(
    worlds: Recording, dictionary: Dictionary
) -> None:
    steps, own = worlds.history[1:], [ks_of(worlds), *scalars_of([worlds.service.signing.reveal()])]
    messages = [values_of(seen_by_service(step)) for step in steps]
    assert sum(len(points_of(values)) for values in messages) > 50
    assert persons_found(dictionary, messages, own) == set()
    forms = clear_forms(dictionary, [worlds.parties[1].keys.salt, worlds.service.signing, worlds.service.blinding])
    exchanges = [item for step in worlds.history for party in step.exchanges for item in step.exchanges[party]]
    held = bytes_of(exchanges)
    assert [form for form in forms if form in held] == []

    envelopes = [
        found_in_envelopes(worlds, KEEPER, step, CheckEnvelope)
        + found_in_envelopes(worlds, KEEPER, step, DepositEnvelope)
        for step in steps
    ]
    leaked = [
        [
            *values,
            *(body.persons[0].unblinder if isinstance(body, CheckEnvelope) else body.unblinder for body in bodies),
        ]
        for values, bodies in zip(messages, envelopes, strict=True)
    ]
    assert persons_found(dictionary, leaked, own) == set(worlds.persons["all"])


@live
def test_an_admins_dictionary_names_nobody_even_with_the_salt_unless_it_is_told_a_token(
    worlds: Recording, dictionary: Dictionary
) -> None:
    held = worlds.history[-1].admin
    terms = decode(Terms, decode(SignedManifest, held["service/manifest.bin"]).terms)
    written = b" ".join(held.values()).decode("latin-1")
    hexadecimal = [bytes.fromhex(text) for text in re.findall(r"\b[0-9a-f]{64}\b", written)]
    assert len(hexadecimal) > 3 * 6
    values = [*values_of(terms), *hexadecimal]
    own = [Scalar(group.scalar_from_uniform(bytes.fromhex(held["admin/admin-1.key"].decode()).ljust(64, b"\0")))]
    assert persons_found(dictionary, [values], own) == set()
    forms = clear_forms(dictionary, [worlds.parties[1].keys.salt])
    assert [form for form in forms if form in b"|".join([*held.values(), *hexadecimal])] == []
    told = dictionary[worlds.people[9]]
    assert persons_found(dictionary, [[*values, told]], own) == {worlds.people[9]}


def test_the_same_dictionary_names_the_person_under_multiplicative_blinding_and_not_under_additive() -> None:
    random = seeded("blinding")
    salt, ks, t, nonce = Secret(random(32)), *(random_scalar(random) for _ in range(3))
    dictionary = dictionary_of([("passport", f"E{number}") for number in range(60)], salt)
    person = ("passport", "E42")
    token = blind(salt, identity(person), group.multiply_base(ks), b"context", (t, nonce))
    evaluated = group.multiply(ks, token.blinded)
    sent = [evaluated, group.subtract(evaluated, token.unblinder), *values_of(token)]
    assert persons_found(dictionary, [sent], []) == set()
    # The custodian is sent 1/t instead of D, and takes it off: P = 1/t * ks*t*H. It takes it off B as well.
    blinded = group.multiply(t, dictionary[person])
    evaluated, unblinder = group.multiply(ks, blinded), group.scalar_invert(t)
    sent = [blinded, evaluated, unblinder, group.multiply(unblinder, evaluated)]
    assert persons_found(dictionary, [sent], []) == {person}


def test_proofs_give_neither_t_nor_ks_unless_a_nonce_is_used_twice() -> None:
    random = seeded("nonces")
    salt, ks = Secret(random(32)), random_scalar(random)
    public, t = group.multiply_base(ks), [random_scalar(random) for _ in range(2)]

    def solved(nonces: Sequence[Scalar]) -> tuple[bool, bool]:
        tokens = [
            blind(salt, identity(("passport", "E1")), public, context, (blind_scalar, nonce))
            for context, blind_scalar, nonce in zip((b"1", b"2"), (t[0], t[0]), nonces, strict=True)
        ]
        points = [group.multiply_base(blind_scalar) for blind_scalar in t]
        evaluations = [
            prove(Secret(ks), public, [point], [group.multiply(ks, point)], nonce)
            for point, nonce in zip(points, nonces, strict=True)
        ]
        blinds = list(secrets_of_repeated_nonces([token.proof for token in tokens]))
        keys = list(secrets_of_repeated_nonces(evaluations))
        minus = group.scalar_subtract(group.scalar_from_int(0), ks)
        return t[0] in blinds, minus in keys

    assert solved([random_scalar(random), random_scalar(random)]) == (False, False)
    assert solved([random_scalar(random)] * 2) == (True, True)


# --- who insures the person ----------------------------------------------------------------------------------------


@live
def test_a_requester_finds_its_applicant_among_the_rows_that_it_keeps_only_with_c(
    worlds: Recording, dictionary: Dictionary
) -> None:
    """It knows the person, t and D, and keeps rows of the shard: with C it would know which are the person's."""
    step, keys = worlds.worlds["little"][-1], worlds.parties[ASKER].keys
    (body,) = found_in_envelopes(worlds, KEEPER, step, CheckEnvelope)
    unblinder = Element(body.persons[0].unblinder)
    everything = [(seen_by_custodian(worlds, ASKER, one), seen_by_requester(ASKER, one)) for one in worlds.history]
    held = points_of([*values_of(everything, body), *values_of(dictionary[worlds.persons["little"][0]])])

    def insurers(points: Iterable[Element]) -> list[str]:
        candidates = [
            candidate for point in points for candidate in (point, rbcl.crypto_core_ristretto255_sub(point, unblinder))
        ]
        tokens = {index_key(keys.index, Pseudonym(one)) for one in candidates if group.is_element(one)}
        return sorted(row.values["depositor"] for row in custody_of(worlds, ASKER) if row.values["token"] in tokens)

    # The pseudonyms in others' messages find rows, too, but not whose they are.
    others = {point for one in worlds.history for point in pseudonyms(worlds, ASKER, one)}
    guesses = [point for point in held if point not in others]
    assert len(guesses) > 100
    assert insurers(guesses) == []
    (evaluated,) = step.of(name(KEEPER), CHECK)[0].call.evaluated
    expected = [name(FIRST), name(FIRST), name(SECOND), name(worlds.outsider), name(worlds.outsider)]
    assert insurers([*guesses, Element(evaluated)]) == sorted(expected)


@live
def test_the_service_links_no_deposit_to_a_check_of_the_same_person_unless_they_are_not_blinded(
    worlds: Recording, dictionary: Dictionary
) -> None:
    """Equality and rescaling, over B, C and all else of a deposit and a check, by every scalar that the service has."""
    *deposits, check, _ = worlds.worlds["little"]
    shared = {worlds.parties[1].manifest.blinding_key}
    own = [ks_of(worlds), *scalars_of([worlds.service.signing.reveal()])]

    def linked(left: Values, right: Values) -> bool:
        factors = with_inverses([*own, *scalars_of(left), *scalars_of(right)])
        multiples = [
            {group.multiply(factor, point) for point in points_of(values) if point not in shared for factor in factors}
            for values in (left, right)
        ]
        return bool(multiples[0] & multiples[1])

    constant = set(values_of(seen_by_service(worlds.worlds["first use"][0])))
    asked = [value for value in values_of(seen_by_service(check)) if value not in constant]
    for step in deposits:
        sent = [value for value in values_of(seen_by_service(step)) if value not in constant]
        assert points_of(sent)
        assert not linked(sent, asked)
        bare = dictionary[worlds.persons["little"][0]]
        assert linked([*sent, bare], [*asked, group.multiply(ks_of(worlds), bare)])
