"""Ed25519 signatures, each bound to what it is for."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import ProtocolError
from protocol.kdf import join
from protocol.secret import Secret
from protocol.sodium import ed25519_verifies

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
    if not ed25519_verifies(public, signature, signed_bytes(purpose, *parts)):
        raise ProtocolError("bad-signature", f"the signature of a {purpose} does not verify")
