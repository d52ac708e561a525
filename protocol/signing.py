"""Ed25519 signatures, each bound to what it is for."""

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.errors import ProtocolError
from protocol.kdf import join
from protocol.secret import Secret

SIGNATURE_BYTES = 64


def public_key(private: Secret) -> bytes:
    """Return the 32-byte public key of a 32-byte private seed."""
    return private.once(Ed25519PrivateKey.from_private_bytes).public_key().public_bytes_raw()


def sign(private: Secret, purpose: str, *parts: bytes) -> bytes:
    """Return 64 bytes: the signature (RFC 8032) of the purpose and the parts, injectively joined."""
    return private.once(Ed25519PrivateKey.from_private_bytes).sign(signed_bytes(purpose, *parts))


def signed_bytes(purpose: str, *parts: bytes) -> bytes:
    """Return what is signed of a purpose and parts, injectively joined; for a signer that holds the key elsewhere."""
    return join(b"cover-lookup/v1", purpose.encode(), *parts)


def verify(public: bytes, signature: bytes, purpose: str, *parts: bytes) -> None:
    """Refuse (`bad-signature`) unless the holder of `public` signed these parts for this purpose."""
    try:
        _parsed(public).verify(signature, signed_bytes(purpose, *parts))
    except (InvalidSignature, ValueError):
        raise ProtocolError("bad-signature", f"the signature of a {purpose} does not verify") from None


@lru_cache(maxsize=8192)
def _parsed(public: bytes) -> Ed25519PublicKey:
    """Return a key as the library takes it; those of a manifest's members are used again and again."""
    return Ed25519PublicKey.from_public_bytes(public)
