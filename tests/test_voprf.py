"""The vectors of RFC 9497 pass through the functions that the parties call, and no forged proof passes.

A proof's weights are not the RFC's, and are made so for its vectors.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic, scalars

from protocol import group, voprf
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.group import Element, Scalar
from protocol.secret import Secret

SUITES = json.loads((Path(__file__).parent / "data" / "voprf-ristretto255.json").read_text())


class Vector(NamedTuple):
    """One vector; batches are lists of one or more."""

    mode: int
    secret: Secret
    public: str | None
    inputs: list[bytes]
    blinds: list[Scalar]
    blinded: list[str]
    evaluated: list[str]
    outputs: list[str]
    proof: dict[str, str] | None


def vectors() -> list[Any]:
    def parts(vector: dict[str, Any], name: str) -> list[str]:
        return vector[name].split(",")

    return [
        pytest.param(
            Vector(
                suite["mode"],
                Secret(bytes.fromhex(suite["skSm"])),
                suite.get("pkSm"),
                [bytes.fromhex(item) for item in parts(vector, "Input")],
                [group.scalar(bytes.fromhex(item)) for item in parts(vector, "Blind")],
                parts(vector, "BlindedElement"),
                parts(vector, "EvaluationElement"),
                parts(vector, "Output"),
                vector.get("Proof"),
            ),
            id=f"mode {suite['mode']}, vector {number}, batch of {vector['Batch']}",
        )
        for suite in SUITES
        for number, vector in enumerate(suite["vectors"], start=1)
    ]


def finalize(data: bytes, blind: Scalar, evaluated: Element) -> bytes:
    """Finalize of RFC 9497, section 3.3.1: the multiplicative unblinding that the protocol itself never does."""
    unblinded = group.multiply(group.scalar_invert(blind), evaluated)
    sized = b"".join(len(part).to_bytes(2, "big") + part for part in (data, unblinded))
    return hashlib.sha512(sized + b"Finalize").digest()


def test_there_are_vectors_of_both_modes_and_of_a_batch() -> None:
    shapes = {(vector.values[0].mode, len(vector.values[0].inputs)) for vector in vectors()}
    assert shapes == {(voprf.MODE_OPRF, 1), (voprf.MODE_VOPRF, 1), (voprf.MODE_VOPRF, 2)}


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: f"mode {suite['mode']}")
def test_key_derivation_is_that_of_the_rfc(suite: dict[str, Any]) -> None:
    seed, info = bytes.fromhex(suite["seed"]), bytes.fromhex(suite["keyInfo"])
    secret, public = voprf.derive_key_pair(seed, info, suite["mode"])
    assert secret.reveal().hex() == suite["skSm"]
    assert public == group.multiply_base(Scalar(secret.reveal()))
    if "pkSm" in suite:
        assert public.hex() == suite["pkSm"]


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: f"mode {suite['mode']}")
def test_the_domain_of_hash_to_group_is_that_of_the_rfc(suite: dict[str, Any]) -> None:
    assert b"HashToGroup-" + voprf.context_string(suite["mode"]) == bytes.fromhex(suite["groupDST"])


@pytest.mark.parametrize("vector", vectors())
def test_blinded_elements_are_those_of_the_rfc(vector: Vector) -> None:
    blinded = [
        group.multiply(blind, voprf.hash_to_group(data, vector.mode))
        for data, blind in zip(vector.inputs, vector.blinds, strict=True)
    ]
    assert [point.hex() for point in blinded] == vector.blinded


@pytest.mark.parametrize("vector", vectors())
def test_evaluated_elements_and_outputs_are_those_of_the_rfc(vector: Vector) -> None:
    evaluated = [voprf.blind_evaluate(vector.secret, Element(bytes.fromhex(item))) for item in vector.blinded]
    assert [point.hex() for point in evaluated] == vector.evaluated
    outputs = [finalize(*each) for each in zip(vector.inputs, vector.blinds, evaluated, strict=True)]
    assert [output.hex() for output in outputs] == vector.outputs


@pytest.mark.parametrize("vector", [vector for vector in vectors() if vector.values[0].proof is not None])
def test_proofs_are_those_of_the_rfc(vector: Vector) -> None:
    assert vector.proof is not None
    assert vector.public is not None
    public = Element(bytes.fromhex(vector.public))
    blinded = [Element(bytes.fromhex(item)) for item in vector.blinded]
    evaluated = [Element(bytes.fromhex(item)) for item in vector.evaluated]
    nonce = group.scalar(bytes.fromhex(vector.proof["r"]))
    proof = voprf.prove(vector.secret, public, blinded, evaluated, nonce, as_in_rfc=True)
    assert (proof.challenge + proof.response).hex() == vector.proof["proof"]
    assert encode(proof).endswith(bytes.fromhex(vector.proof["proof"]))
    assert voprf.verify(public, blinded, evaluated, proof, as_in_rfc=True)


# --- what a service that cheats could try --------------------------------------------------------------------------

SECRET, PUBLIC = voprf.derive_key_pair(bytes(32), b"the service")
OTHER_SECRET, OTHER_PUBLIC = voprf.derive_key_pair(bytes(32), b"another service")
BLINDED = [voprf.hash_to_group(b"person %d" % number) for number in range(3)]
EVALUATED = [voprf.blind_evaluate(SECRET, point) for point in BLINDED]
NONCE = group.scalar_from_int(987_654_321)
PROOF = voprf.prove(SECRET, PUBLIC, BLINDED, EVALUATED, NONCE)
STRANGER = voprf.hash_to_group(b"a stranger")


def weight_of(place: int, bent: Element, *, as_in_rfc: bool) -> int:
    """Return the weight of one of two pairs in which this is what was evaluated, the other being true; of 8 bits."""
    evaluated = replaced(EVALUATED[:2], place, bent)
    return 1 + voprf._weights(PUBLIC, BLINDED[:2], evaluated, as_in_rfc=as_in_rfc)[place][0]


@pytest.mark.parametrize("as_in_rfc", [True, False])
def test_what_is_wrong_with_two_pairs_does_not_cancel_as_each_weight_is_bound_to_both(
    as_in_rfc: bool,  # noqa: FBT001  a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The birthday attack on the weights, which are cut to 8 bits for it: C_0 is off by a*G and C_1 by -b*G, with
    # a*d_0 = b*d_1. In the RFC a pair's weight stays what it is whatever the other is; here it does not.
    found: list[dict[int, tuple[int, Element]]] = [{}, {}]
    for place, move in enumerate((group.add, group.subtract)):
        for off in range(1, 600):
            bent = move(EVALUATED[place], group.multiply_base(group.scalar_from_int(off)))
            found[place][off * weight_of(place, bent, as_in_rfc=as_in_rfc)] = off, bent
    both = found[0].keys() & found[1].keys()
    assert len(both) > 3
    whole = voprf._weights

    def cut(public: Element, blinded: list[Element], evaluated: list[Element], **how: bool) -> list[Scalar]:
        return [group.scalar_from_int(1 + weight[0]) for weight in whole(public, blinded, evaluated, **how)]

    monkeypatch.setattr(voprf, "_weights", cut)
    accepted = []
    for product in sorted(both):
        bent = [found[place][product][1] for place in (0, 1)]
        proof = voprf.prove(SECRET, PUBLIC, BLINDED[:2], bent, NONCE, as_in_rfc=as_in_rfc)
        accepted.append(voprf.verify(PUBLIC, BLINDED[:2], bent, proof, as_in_rfc=as_in_rfc))
    assert accepted == [as_in_rfc] * len(both)


def test_every_weight_is_bound_to_every_pair() -> None:
    weights = voprf._weights(PUBLIC, BLINDED, EVALUATED)
    assert len(set(weights)) == 3
    for place in range(3):
        for pair in ((replaced(BLINDED, place, STRANGER), EVALUATED), (BLINDED, replaced(EVALUATED, place, STRANGER))):
            assert not set(weights) & set(voprf._weights(PUBLIC, *pair))
    assert not set(weights) & set(voprf._weights(PUBLIC, BLINDED[:2], EVALUATED[:2]))


def replaced(points: list[Element], place: int, point: Element) -> list[Element]:
    return [*points[:place], point, *points[place + 1 :]]


@deterministic(25)
@given(st.integers(1, 6), scalars, scalars)
def test_an_honest_proof_holds_for_any_key_and_batch(size: int, key: Scalar, nonce: Scalar) -> None:
    secret, public = Secret(key), group.multiply_base(key)
    blinded = [voprf.hash_to_group(bytes([number])) for number in range(size)]
    evaluated = [voprf.blind_evaluate(secret, point) for point in blinded]
    assert voprf.verify(public, blinded, evaluated, voprf.prove(secret, public, blinded, evaluated, nonce))


@pytest.mark.parametrize("place", range(3))
def test_a_proof_is_refused_when_any_element_is_another(place: int) -> None:
    assert voprf.verify(PUBLIC, BLINDED, EVALUATED, PROOF)
    assert not voprf.verify(PUBLIC, BLINDED, replaced(EVALUATED, place, STRANGER), PROOF)
    assert not voprf.verify(PUBLIC, replaced(BLINDED, place, STRANGER), EVALUATED, PROOF)


@pytest.mark.parametrize("place", range(3))
def test_evaluating_one_element_with_another_key_is_refused_even_if_the_proof_is_made_for_it(place: int) -> None:
    bent = replaced(EVALUATED, place, voprf.blind_evaluate(OTHER_SECRET, BLINDED[place]))
    for secret in (SECRET, OTHER_SECRET):
        assert not voprf.verify(PUBLIC, BLINDED, bent, voprf.prove(secret, PUBLIC, BLINDED, bent, NONCE))


def test_errors_that_cancel_in_the_plain_sum_do_not_cancel_in_the_proof() -> None:
    bent = [group.add(EVALUATED[0], STRANGER), group.subtract(EVALUATED[1], STRANGER), EVALUATED[2]]
    assert not voprf.verify(PUBLIC, BLINDED, bent, PROOF)
    assert not voprf.verify(PUBLIC, BLINDED, bent, voprf.prove(SECRET, PUBLIC, BLINDED, bent, NONCE))


def test_a_proof_is_refused_under_another_key() -> None:
    assert not voprf.verify(OTHER_PUBLIC, BLINDED, EVALUATED, PROOF)
    evaluated = [voprf.blind_evaluate(OTHER_SECRET, point) for point in BLINDED]
    proof = voprf.prove(OTHER_SECRET, OTHER_PUBLIC, BLINDED, evaluated, NONCE)
    assert voprf.verify(OTHER_PUBLIC, BLINDED, evaluated, proof)
    assert not voprf.verify(PUBLIC, BLINDED, evaluated, proof)


def test_a_proof_is_refused_when_the_order_is_swapped() -> None:
    for left, right in ((0, 1), (0, 2), (1, 2)):
        order = list(range(3))
        order[left], order[right] = right, left
        blinded, evaluated = [BLINDED[at] for at in order], [EVALUATED[at] for at in order]
        assert not voprf.verify(PUBLIC, BLINDED, evaluated, PROOF)
        assert not voprf.verify(PUBLIC, blinded, EVALUATED, PROOF)
        assert not voprf.verify(PUBLIC, blinded, evaluated, PROOF)


def test_a_proof_of_another_batch_is_refused() -> None:
    for size in (1, 2):
        part = voprf.prove(SECRET, PUBLIC, BLINDED[:size], EVALUATED[:size], NONCE)
        assert voprf.verify(PUBLIC, BLINDED[:size], EVALUATED[:size], part)
        assert not voprf.verify(PUBLIC, BLINDED, EVALUATED, part)
        assert not voprf.verify(PUBLIC, BLINDED[:size], EVALUATED[:size], PROOF)


@pytest.mark.parametrize("bit", range(0, 256, 5))
def test_a_proof_is_refused_when_a_bit_of_challenge_or_response_is_flipped(bit: int) -> None:
    def flipped(data: bytes) -> bytes:
        return (int.from_bytes(data, "little") ^ (1 << bit)).to_bytes(32, "little")

    challenge = voprf.DleqProof(challenge=flipped(PROOF.challenge), response=PROOF.response)
    response = voprf.DleqProof(challenge=PROOF.challenge, response=flipped(PROOF.response))
    assert not voprf.verify(PUBLIC, BLINDED, EVALUATED, challenge)
    assert not voprf.verify(PUBLIC, BLINDED, EVALUATED, response)


def test_a_proof_with_an_unreduced_or_zero_scalar_is_refused() -> None:
    def plus_order(data: bytes) -> bytes:
        return (int.from_bytes(data, "little") + group.ORDER).to_bytes(32, "little")

    for challenge, response in (
        (plus_order(PROOF.challenge), PROOF.response),
        (PROOF.challenge, plus_order(PROOF.response)),
        (bytes(32), PROOF.response),
        (PROOF.challenge, bytes(32)),
        (bytes(32), bytes(32)),
    ):
        assert not voprf.verify(PUBLIC, BLINDED, EVALUATED, voprf.DleqProof(challenge=challenge, response=response))


def test_a_proof_of_nothing_or_of_unequal_numbers_of_elements_is_refused() -> None:
    assert not voprf.verify(PUBLIC, [], [], PROOF)
    assert not voprf.verify(PUBLIC, BLINDED, EVALUATED[:2], PROOF)
    assert not voprf.verify(PUBLIC, BLINDED[:2], EVALUATED, PROOF)
    with pytest.raises(ProtocolError, match="proof-shape"):
        voprf.prove(SECRET, PUBLIC, [], [], NONCE)
