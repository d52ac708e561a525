"""Ed25519 signatures, each bound to what it is for."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.errors import ProtocolError
from protocol.kdf import join
from protocol.secret import Secret

SIGNATURE_BYTES = 64


def public_key(private: Secret) -> bytes:
    """Return the 32-byte public key of a 32-byte private seed."""
    return Ed25519PrivateKey.from_private_bytes(private.reveal()).public_key().public_bytes_raw()


def sign(private: Secret, purpose: str, *parts: bytes) -> bytes:
    """Return 64 bytes: the signature (RFC 8032) of the purpose and the parts, injectively joined."""
    key = Ed25519PrivateKey.from_private_bytes(private.reveal())
    return key.sign(join(b"cover-lookup/v1", purpose.encode(), *parts))


def verify(public: bytes, signature: bytes, purpose: str, *parts: bytes) -> None:
    """Refuse (`bad-signature`) unless the holder of `public` signed these parts for this purpose."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, join(b"cover-lookup/v1", purpose.encode(), *parts))
    except (InvalidSignature, ValueError):
        raise ProtocolError("bad-signature", f"the signature of a {purpose} does not verify") from None
