"""Whoever blinds a person comes to one pseudonym, and nobody aims a token at a pseudonym that he has merely seen."""

import hmac
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import binary, deterministic, scalars

from protocol import group
from protocol import token as prover
from protocol.check import check_context
from protocol.deposit import deposit_context
from protocol.errors import ProtocolError
from protocol.group import Element, Scalar
from protocol.identity import DocumentType, Identity, shard_of
from protocol.secret import Secret
from protocol.token import SchnorrProof, Token, blind, hash_identity, index_key, unblind, verify_unblinder
from protocol.voprf import blind_evaluate

SALT = Secret(bytes(range(32)))
PERSON = Identity(DocumentType.PASSPORT, "E00000001")
SOMEBODY_ELSE = Identity(DocumentType.PASSPORT, "E00000002")
KS = Secret(group.scalar_from_int(1_234_567_890_123_456_789))
KS_PUBLIC = group.multiply_base(Scalar(KS.reveal()))
ID = bytes(range(16))
CONTEXT = check_context("insurer-01", ID, 0)

identities = st.builds(
    Identity, st.sampled_from(DocumentType), st.text(st.characters(codec="ascii"), min_size=1, max_size=20)
)


def scalar(number: int) -> Scalar:
    return group.scalar_from_int(number)


def token_of(identity: Identity, *, t: int = 77, nonce: int = 88, context: bytes = CONTEXT) -> Token:
    return blind(SALT, identity, KS_PUBLIC, context, (scalar(t), scalar(nonce)))


def prove_knowledge(t: Scalar, nonce: Scalar, blinded: Element, context: bytes) -> Token:
    """Prove knowledge of t for a B of one's own making, as a requester that departs from the protocol can."""
    honest = blind(SALT, PERSON, KS_PUBLIC, context, (t, nonce))
    commitment = group.multiply(nonce, KS_PUBLIC)
    challenge = prover._challenge(context, blinded, KS_PUBLIC, honest.unblinder, commitment)
    response = group.scalar_add(nonce, group.scalar_multiply(challenge, t))
    return Token(blinded, honest.unblinder, SchnorrProof(challenge=challenge, response=response))


# --- pseudonyms and index keys -------------------------------------------------------------------------------------


@deterministic(40)
@given(identities, scalars, scalars, scalars, binary(32))
def test_whoever_blinds_a_person_with_whatever_t_comes_to_one_pseudonym(
    identity: Identity, t: Scalar, nonce: Scalar, ks: Scalar, salt: bytes
) -> None:
    key, public = Secret(ks), group.multiply_base(ks)
    token = blind(Secret(salt), identity, public, CONTEXT, (t, nonce))
    pseudonym = unblind(blind_evaluate(key, token.blinded), token.unblinder)
    assert pseudonym == group.multiply(ks, hash_identity(Secret(salt), identity))


@deterministic(40)
@given(identities, identities)
def test_two_identities_have_one_pseudonym_exactly_when_they_are_equal(left: Identity, right: Identity) -> None:
    pseudonyms = [
        unblind(blind_evaluate(KS, token.blinded), token.unblinder)
        for token in (token_of(left, t=5), token_of(right, t=6))
    ]
    assert (pseudonyms[0] == pseudonyms[1]) == (left == right)


def test_a_number_does_not_run_into_its_document_type_or_salt() -> None:
    alike = [
        (Secret(b"\x08passport"), Identity(DocumentType.PASSPORT, "1")),
        (Secret(b""), Identity(DocumentType.PASSPORT, "\x08passport")),
        (Secret(b"\x08passport"), Identity(DocumentType.RESIDENT_ID, "1")),
        (Secret(b""), Identity(DocumentType.PASSPORT, "1")),
    ]
    assert len({hash_identity(salt, identity) for salt, identity in alike}) == len(alike)


def test_the_wire_form_of_an_identity_has_each_part_with_its_length_before_it() -> None:
    assert PERSON.encode() == b"\x08passport\x09E00000001"
    assert Identity(DocumentType.ORGANIZATION, "\u4fdd").encode() == b"\x0corganization\x03\xe4\xbf\x9d"
    for size in (0, 65):
        with pytest.raises(ProtocolError, match="identity-length"):
            Identity(DocumentType.PASSPORT, "1" * size)


@pytest.mark.parametrize("number", ["\ud800", "E1\udfff", "\udcff" * 70])
def test_a_number_that_is_no_unicode_is_no_identity(number: str) -> None:
    with pytest.raises(ProtocolError, match="identity-length"):
        Identity(DocumentType.PASSPORT, number)


def test_a_shard_follows_from_salt_and_identity_and_shards_are_filled_evenly() -> None:
    digest = hmac.digest(SALT.reveal(), b"shard" + PERSON.encode(), "sha256")
    assert shard_of(SALT, PERSON, 7) == int.from_bytes(digest, "big") % 7
    persons = [Identity(DocumentType.RESIDENT_ID, str(number)) for number in range(800)]
    filled = Counter(shard_of(SALT, identity, 4) for identity in persons)
    assert set(filled) == set(range(4))
    assert all(140 < count < 260 for count in filled.values())
    assert any(shard_of(SALT, identity, 4) != shard_of(Secret(bytes(32)), identity, 4) for identity in persons)


@deterministic(25)
@given(scalars, scalars)
def test_two_blindings_of_a_person_show_nothing_in_common(one: Scalar, two: Scalar) -> None:
    left, right = (blind(SALT, PERSON, KS_PUBLIC, CONTEXT, (t, scalar(9))) for t in (one, two))
    assert (left.blinded == right.blinded) == (one == two)
    assert (left.unblinder == right.unblinder) == (one == two)


@deterministic(25)
@given(scalars, scalars)
def test_the_index_is_the_custodians_multiple_and_differs_between_custodians(one: Scalar, two: Scalar) -> None:
    token = token_of(PERSON)
    pseudonym = unblind(blind_evaluate(KS, token.blinded), token.unblinder)
    assert index_key(Secret(one), pseudonym) == group.multiply(one, Element(pseudonym))
    assert (index_key(Secret(one), pseudonym) == index_key(Secret(two), pseudonym)) == (one == two)


def test_a_pseudonym_that_is_the_identity_is_refused() -> None:
    t = scalar(1234)
    empty = prove_knowledge(t, scalar(9), group.multiply_base(t), CONTEXT)  # B = t*G: nobody's
    assert verify_unblinder(empty, KS_PUBLIC, CONTEXT)
    with pytest.raises(ProtocolError, match="identity-element"):
        unblind(blind_evaluate(KS, empty.blinded), empty.unblinder)


# --- the proof of knowledge of t -----------------------------------------------------------------------------------


@deterministic(40)
@given(identities, scalars, scalars, st.binary(max_size=40))
def test_an_honest_proof_holds(identity: Identity, t: Scalar, nonce: Scalar, context: bytes) -> None:
    token = blind(SALT, identity, KS_PUBLIC, context, (t, nonce))
    assert verify_unblinder(token, KS_PUBLIC, context)


@pytest.mark.parametrize(
    "context",
    [
        check_context("insurer-02", ID, 0),
        check_context("insurer-01", ID[::-1], 0),
        check_context("insurer-01", ID, 1),
        deposit_context("insurer-01", ID),
        b"",
    ],
    ids=["another requester", "another check", "another lane", "a deposit", "nothing"],
)
def test_a_proof_is_refused_in_another_context(context: bytes) -> None:
    token = token_of(PERSON)
    assert verify_unblinder(token, KS_PUBLIC, CONTEXT)
    assert not verify_unblinder(token, KS_PUBLIC, context)


def test_contexts_are_injective() -> None:
    contexts = {
        check_context(requester, check_id, lane)
        for requester, check_id, lane in product(("a", "ab"), (b"b" + bytes(15), bytes(15) + b"b"), (0, 1, 256))
    } | {deposit_context(requester, check_id) for requester, check_id in product(("a", "ab"), (bytes(16), bytes(18)))}
    assert len(contexts) == 2 * 2 * 3 + 2 * 2


def test_a_proof_is_refused_with_another_b_or_d_or_key() -> None:
    token, other = token_of(PERSON), token_of(SOMEBODY_ELSE, t=78, nonce=89)
    assert not verify_unblinder(Token(other.blinded, token.unblinder, token.proof), KS_PUBLIC, CONTEXT)
    assert not verify_unblinder(Token(token.blinded, other.unblinder, token.proof), KS_PUBLIC, CONTEXT)
    assert not verify_unblinder(token, group.multiply_base(scalar(5)), CONTEXT)


@pytest.mark.parametrize("bit", range(0, 256, 7))
def test_a_proof_is_refused_with_a_bit_of_challenge_or_response_flipped(bit: int) -> None:
    token = token_of(PERSON)

    def flipped(data: bytes) -> bytes:
        return (int.from_bytes(data, "little") ^ (1 << bit)).to_bytes(32, "little")

    proofs = (
        SchnorrProof(challenge=flipped(token.proof.challenge), response=token.proof.response),
        SchnorrProof(challenge=token.proof.challenge, response=flipped(token.proof.response)),
    )
    for proof in proofs:
        assert not verify_unblinder(Token(token.blinded, token.unblinder, proof), KS_PUBLIC, CONTEXT)


def test_a_proof_with_an_unreduced_or_zero_scalar_is_refused() -> None:
    token = token_of(PERSON)
    challenge, response = token.proof.challenge, token.proof.response

    def plus_order(data: bytes) -> bytes:
        return (int.from_bytes(data, "little") + group.ORDER).to_bytes(32, "little")

    for pair in ((plus_order(challenge), response), (challenge, plus_order(response)), (bytes(32), response)):
        proof = SchnorrProof(challenge=pair[0], response=pair[1])
        assert not verify_unblinder(Token(token.blinded, token.unblinder, proof), KS_PUBLIC, CONTEXT)


def test_an_unblinder_that_is_no_element_is_refused() -> None:
    token = token_of(PERSON)
    for bad in (bytes(32), b"\xff" * 32):
        assert not verify_unblinder(Token(token.blinded, Element(bad), token.proof), KS_PUBLIC, CONTEXT)


def test_a_prover_that_fits_d_to_a_challenge_drawn_before_is_refused() -> None:
    # With D left out of the hash, D = (z*Ks - R) / c would pass for any R, without a logarithm of D being known.
    blinded, commitment = token_of(PERSON).blinded, hash_identity(SALT, SOMEBODY_ELSE)
    for guess in (KS_PUBLIC, commitment, token_of(PERSON).unblinder):
        challenge, response = prover._challenge(CONTEXT, blinded, KS_PUBLIC, guess, commitment), scalar(99)
        fitted = group.multiply(
            group.scalar_invert(challenge), group.subtract(group.multiply(response, KS_PUBLIC), commitment)
        )
        proof = SchnorrProof(challenge=challenge, response=response)
        assert not verify_unblinder(Token(blinded, fitted, proof), KS_PUBLIC, CONTEXT)


# --- the attack: a member that is a custodian too aims a check at a pseudonym it has seen --------------------------


def test_without_a_proof_a_check_could_be_aimed_at_any_pseudonym_seen() -> None:
    # Why the proof is there: B = b*G and D = b*Ks - P' unblind to P', with no knowledge of the person.
    seen = unblind(blind_evaluate(KS, token_of(PERSON).blinded), token_of(PERSON).unblinder)
    aimed = aim_at(Element(seen), 4321)
    assert unblind(blind_evaluate(KS, aimed[0]), aimed[1]) == seen


def aim_at(pseudonym: Element, b: int) -> tuple[Element, Element]:
    """Return (B, D) that unblind to a pseudonym."""
    own = scalar(b)
    return group.multiply_base(own), group.subtract(group.multiply(own, KS_PUBLIC), pseudonym)


def test_no_recombination_of_what_an_attacker_saw_or_made_aims_a_token_at_a_pseudonym() -> None:
    # The attacker has seen two tokens of other requesters (their B, D, c, z) and makes honest ones of its own, one
    # of them with the b of the attack as its t, in the very context of its own check.
    attack = check_context("insurer-05", ID, 0)
    seen = [token_of(PERSON), token_of(PERSON, t=99, nonce=98, context=check_context("insurer-02", ID, 1))]
    pseudonym = Element(unblind(blind_evaluate(KS, seen[0].blinded), seen[0].unblinder))
    blinded, unblinder = aim_at(pseudonym, 4321)
    own = [
        token_of(SOMEBODY_ELSE, t=4321, nonce=55, context=attack),
        token_of(SOMEBODY_ELSE, t=17, nonce=55, context=attack),
        prove_knowledge(scalar(4321), scalar(66), blinded, attack),
    ]
    assert verify_unblinder(own[2], KS_PUBLIC, attack)
    known = [*seen, *own]
    contexts = [CONTEXT, check_context("insurer-02", ID, 1), attack]
    candidates = [
        (context, Token(b, d, SchnorrProof(challenge=c, response=z)))
        for context, b, d, c, z in product(
            contexts,
            {blinded, *(token.blinded for token in known)},
            {unblinder, *(token.unblinder for token in known)},
            {token.proof.challenge for token in known},
            {token.proof.response for token in known},
        )
    ]
    aimed = [(context, token) for context, token in candidates if unblind_or_none(token) == pseudonym]
    assert len(aimed) > 100  # the attack is among what is tried ...
    passing = [(context, token) for context, token in candidates if verify_unblinder(token, KS_PUBLIC, context)]
    assert len(passing) == len(known)  # ... and what passes is each token as it was made, and nothing else
    assert [token for context, token in passing if context == attack and (context, token) in aimed] == []


def unblind_or_none(token: Token) -> bytes | None:
    try:
        return unblind(blind_evaluate(KS, token.blinded), token.unblinder)
    except ProtocolError:
        return None
