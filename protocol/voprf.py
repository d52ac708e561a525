"""HashToGroup, BlindEvaluate and the batched DLEQ proof of RFC 9497, suite ristretto255-SHA512, mode VOPRF.

The proof is the RFC's but for one thing: the weight of a pair is bound to all pairs of the batch (`_weights`).

The algebra: the service holds `ks` and publishes `Ks = ks*G`. For blinded elements B_i it returns C_i = ks*B_i and
one proof that log_G(Ks) = log_B_i(C_i) for every i. RFC 9497's multiplicative blinding is in the tests alone, for
the RFC's vectors; the protocol blinds additively (`protocol.token`).
"""

import hashlib
from typing import Annotated

from protocol import group
from protocol.encoding import SCALAR, message
from protocol.errors import ProtocolError
from protocol.group import Element, Scalar
from protocol.secret import Secret

MODE_OPRF = 0
MODE_VOPRF = 1


def context_string(mode: int) -> bytes:
    """Return CreateContextString(mode, identifier), RFC 9497, section 3.1."""
    return b"OPRFV1-" + bytes([mode]) + b"-" + group.SUITE


def hash_to_group(data: bytes, mode: int = MODE_VOPRF) -> Element:
    """Map bytes to an element: HashToGroup of RFC 9497, section 4.1."""
    uniform = group.expand_message(data, b"HashToGroup-" + context_string(mode))
    return group.element(group.element_from_uniform(uniform))


def hash_to_scalar(data: bytes, dst: bytes | None = None) -> Scalar:
    """Map bytes to a scalar: HashToScalar of RFC 9497, section 4.1, under its own tag unless `dst` is given."""
    tag = b"HashToScalar-" + context_string(MODE_VOPRF) if dst is None else dst
    return group.scalar_from_uniform(group.expand_message(data, tag))


def derive_key_pair(seed: bytes, info: bytes, mode: int = MODE_VOPRF) -> tuple[Secret, Element]:
    """Derive (private scalar, public element) from 32 random bytes: RFC 9497, section 3.2.1."""
    derive_input = seed + _sized(info)
    dst = b"DeriveKeyPair" + context_string(mode)
    for counter in range(256):
        candidate = hash_to_scalar(derive_input + bytes([counter]), dst)
        if any(candidate):
            return Secret(candidate), group.multiply_base(candidate)
    raise ProtocolError("derive-key-pair", "no key can be derived from this seed; take another")


def blind_evaluate(key: Secret, blinded: Element) -> Element:
    """Return ks*B: BlindEvaluate of RFC 9497, section 3.3.2."""
    return group.multiply(Scalar(key.reveal()), blinded)


@message("dleq proof", version=1)
class DleqProof:
    """The proof (c, s) of RFC 9497, section 2.2.1: 64 bytes of scalars."""

    challenge: Annotated[bytes, SCALAR]
    response: Annotated[bytes, SCALAR]


def prove(
    key: Secret,
    public: Element,
    blinded: list[Element],
    evaluated: list[Element],
    nonce: Scalar,
    *,
    as_in_rfc: bool = False,
) -> DleqProof:
    """Prove that every evaluated[i] = ks * blinded[i]: GenerateProof with k = ks, A = G, B = Ks.

    `nonce` is a fresh uniform scalar, used once. `as_in_rfc` has the RFC's own weights, for its vectors alone.
    """
    composite_m = _weighted_sum(blinded, _weights(public, blinded, evaluated, as_in_rfc=as_in_rfc))
    composite_z = group.multiply(Scalar(key.reveal()), composite_m)
    t2 = group.multiply_base(nonce)
    t3 = group.multiply(nonce, composite_m)
    challenge = _challenge(public, composite_m, composite_z, t2, t3)
    response = group.scalar_subtract(nonce, group.scalar_multiply(challenge, Scalar(key.reveal())))
    return DleqProof(challenge=challenge, response=response)


def verify(
    public: Element, blinded: list[Element], evaluated: list[Element], proof: DleqProof, *, as_in_rfc: bool = False
) -> bool:
    """Tell whether the proof holds: VerifyProof of RFC 9497, section 2.2.2."""
    try:
        weights = _weights(public, blinded, evaluated, as_in_rfc=as_in_rfc)
        composite_m = _weighted_sum(blinded, weights)
        composite_z = _weighted_sum(evaluated, weights)
        challenge, response = group.scalar(proof.challenge), group.scalar(proof.response)
        t2 = group.add(group.multiply_base(response), group.multiply(challenge, public))
        t3 = group.add(group.multiply(response, composite_m), group.multiply(challenge, composite_z))
    except ProtocolError:  # an identity or a zero scalar has probability 2^-252 in an honest proof
        return False
    return _challenge(public, composite_m, composite_z, t2, t3) == proof.challenge


def _weights(
    public: Element, blinded: list[Element], evaluated: list[Element], *, as_in_rfc: bool = False
) -> list[Scalar]:
    """Return the d_i of ComputeComposites, RFC 9497, section 2.2.1, with all pairs in its seed.

    In the RFC d_i follows from the i-th pair alone. Whoever makes the proof then bends n pairs such that what is wrong
    with them cancels, by the generalised birthday attack (Wagner 2002): n * 2^(252 / (1 + log2 n)) steps, 2^33 for the
    1,024 persons of a check, and a deposit's batch can wait for that.
    """
    if not blinded or len(blinded) != len(evaluated):
        raise ProtocolError("proof-shape", "a proof covers one evaluated element per blinded one, at least one")
    pairs = b"" if as_in_rfc else b"".join([c + d for c, d in zip(blinded, evaluated, strict=True)])
    seed = hashlib.sha512(_sized(public) + _sized(b"Seed-" + context_string(MODE_VOPRF)) + pairs).digest()
    return [
        hash_to_scalar(_sized(seed) + index.to_bytes(2, "big") + _sized(c) + _sized(d) + b"Composite")
        for index, (c, d) in enumerate(zip(blinded, evaluated, strict=True))
    ]


def _weighted_sum(points: list[Element], weights: list[Scalar]) -> Element:
    total: Element | None = None
    for point, weight in zip(points, weights, strict=True):
        term = group.multiply(weight, point)
        total = term if total is None else group.add(total, term)
    assert total is not None
    return total


def _challenge(public: Element, m: Element, z: Element, t2: Element, t3: Element) -> Scalar:
    return hash_to_scalar(b"".join([_sized(part) for part in (public, m, z, t2, t3)]) + b"Challenge")


def _sized(part: bytes) -> bytes:
    return len(part).to_bytes(2, "big") + part
