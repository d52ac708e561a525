"""Tokens: additively blinded identities, pseudonyms and index keys (SPEC.md, section 3).

The algebra, said once::

    H  = HashToGroup(salt || identity)        known to members who know the person
    B  = H + t*G                              what the service sees: uniform, t never leaves its maker
    D  = t*Ks                                 the unblinding element, in sealed envelopes alone
    C  = ks*B                                 the service's evaluation
    P  = C - D = ks*H                         the pseudonym: the same for all who blind the person
    T  = kj*P                                 custodian j's index of the person, under its own scalar

Blinding is additive because whoever removes a multiplicative blind learns H and inverts it by dictionary; testing a
guess of H against (B, D, P) is the DDH problem. A Schnorr proof of knowledge of t for (Ks, D) keeps a member that
is a custodian too from aiming a check at a pseudonym it has seen (D = C - P would need the logarithm of H).
"""

from dataclasses import dataclass, field
from typing import Annotated, NewType

from protocol import group
from protocol.encoding import SCALAR, message
from protocol.errors import ProtocolError
from protocol.group import Element, Scalar
from protocol.identity import Identity
from protocol.secret import Secret
from protocol.voprf import hash_to_group, hash_to_scalar

Pseudonym = NewType("Pseudonym", bytes)
"""P = ks*H; 32 bytes. Held in memory by custodians, never stored, never sent."""
IndexKey = NewType("IndexKey", bytes)
"""T = kj*P; 32 bytes. The key of a custodian's rows."""

_SCHNORR_TAG = b"cover-lookup/v1 Schnorr proof of the unblinding element"


@message("schnorr proof", version=1)
class SchnorrProof:
    """(c, z) with c = Hash(context, Ks, D, z*Ks - c*D): knowledge of t with D = t*Ks; 64 bytes of scalars."""

    challenge: Annotated[bytes, SCALAR]
    response: Annotated[bytes, SCALAR]


@dataclass(frozen=True)
class Token:
    """A blinded identity with what opens it: `blinded` for the service, the rest for sealed envelopes."""

    blinded: Element
    unblinder: Element = field(repr=False)
    proof: SchnorrProof = field(repr=False)


def hash_identity(salt: Secret, identity: Identity) -> Element:
    """Return H, the group element of a person; whoever has it and C can test guesses, so it stays in memory."""
    return hash_to_group(salt.reveal() + identity.encode())


@dataclass(frozen=True)
class Blind:
    """All of a token that does not depend on whom it is of: t, t*G, D, and nonce and commitment of the proof. Secret,
    and for one token alone.
    """

    service_key: Element
    scalar: Scalar = field(repr=False)
    mask: Element = field(repr=False)
    unblinder: Element = field(repr=False)
    nonce: Scalar = field(repr=False)
    commitment: Element = field(repr=False)


def draw_blind(service_key: Element, randomness: tuple[Scalar, Scalar]) -> Blind:
    """Return a blind; `randomness` is (t, Schnorr nonce), two fresh uniform scalars."""
    scalar, nonce = randomness
    mask, unblinder = group.multiply_base(scalar), group.multiply(scalar, service_key)
    return Blind(service_key, scalar, mask, unblinder, nonce, group.multiply(nonce, service_key))


def blind_by(salt: Secret, identity: Identity, drawn: Blind, context: bytes) -> Token:
    """Return the token of a person by a blind that no other token has.

    `context` says what the proof is for; B is added to it here, so it binds the proof to (originator, message id, lane,
    B).
    """
    blinded = group.add(hash_identity(salt, identity), drawn.mask)
    challenge = _challenge(context, blinded, drawn.service_key, drawn.unblinder, drawn.commitment)
    response = group.scalar_add(drawn.nonce, group.scalar_multiply(challenge, drawn.scalar))
    return Token(blinded, drawn.unblinder, SchnorrProof(challenge=challenge, response=response))


def blind(
    salt: Secret, identity: Identity, service_key: Element, context: bytes, randomness: tuple[Scalar, Scalar]
) -> Token:
    """Return the token of a person by a blind that is drawn just now, as `draw_blind` and `blind_by` do."""
    return blind_by(salt, identity, draw_blind(service_key, randomness), context)


def verify_unblinder(token: Token, service_key: Element, context: bytes) -> bool:
    """Tell whether the token's maker knew t with D = t*Ks, for this context and this B."""
    try:
        challenge, response = group.scalar(token.proof.challenge), group.scalar(token.proof.response)
        commitment = group.subtract(group.multiply(response, service_key), group.multiply(challenge, token.unblinder))
    except ProtocolError:
        return False
    expected = _challenge(context, token.blinded, service_key, token.unblinder, commitment)
    return expected == challenge


def unblind(evaluated: Element, unblinder: Element) -> Pseudonym:
    """Return P = C - D; refuse the identity."""
    return Pseudonym(group.subtract(evaluated, unblinder))


def index_key(custodian_key: Secret, pseudonym: Pseudonym) -> IndexKey:
    """Return T = kj*P."""
    return IndexKey(group.multiply(Scalar(custodian_key.reveal()), Element(pseudonym)))


def _challenge(context: bytes, blinded: Element, key: Element, unblinder: Element, commitment: Element) -> Scalar:
    context_part = len(context).to_bytes(4, "big") + context
    return hash_to_scalar(context_part + blinded + key + unblinder + commitment, _SCHNORR_TAG)
