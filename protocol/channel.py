"""Sealed envelopes and receipts between two members, relayed by a service that can neither open nor make them.

A pair of members shares X25519(own private, other's public). Each envelope has a fresh 32-byte salt; its key is
HKDF over salt, both names, both keys, direction and purpose; the body is AES-256-GCM with the header as associated
data. The nonce is zero because no key ever seals twice. A receipt is an HMAC under a key of the same derivation.
"""

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol import kdf
from protocol.errors import ProtocolError
from protocol.secret import Secret

SALT_BYTES = 32
MAC_BYTES = 32
OVERHEAD = SALT_BYTES + 16
"""Bytes that sealing adds."""
_NONCE = bytes(12)


def sealing_public_key(private: Secret) -> bytes:
    """Return the 32-byte X25519 public key of a 32-byte private key."""
    return X25519PrivateKey.from_private_bytes(private.reveal()).public_key().public_bytes_raw()


class Channel:
    """What one member shares with another. Keeps the Diffie-Hellman value, so make one and reuse it."""

    def __init__(self, own_name: str, own_private: Secret, peer_name: str, peer_public: bytes) -> None:
        private = X25519PrivateKey.from_private_bytes(own_private.reveal())
        try:
            self._shared = private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise ProtocolError("bad-sealing-key", f"the sealing key of {peer_name} has small order") from None
        own_public = private.public_key().public_bytes_raw()
        self._outward = kdf.join(own_name.encode(), peer_name.encode(), own_public, peer_public)
        self._inward = kdf.join(peer_name.encode(), own_name.encode(), peer_public, own_public)
        self._mac_keys: dict[tuple[str, bytes], bytes] = {}

    def seal(self, purpose: str, header: bytes, body: bytes, salt: bytes) -> bytes:
        """Return salt (32 fresh random bytes) || ciphertext of `body`; `header` is authenticated, not sent."""
        if len(salt) != SALT_BYTES:
            raise ProtocolError("bad-randomness", "an envelope takes a salt of 32 bytes")
        key = kdf.derive(self._shared, "envelope", purpose.encode(), self._outward, salt=salt)
        return salt + AESGCM(key).encrypt(_NONCE, body, header)

    def open(self, purpose: str, header: bytes, envelope: bytes) -> bytes:
        """Return the body; refuse (`bad-envelope`) what this peer did not seal to us for this purpose and header."""
        salt = envelope[:SALT_BYTES]
        key = kdf.derive(self._shared, "envelope", purpose.encode(), self._inward, salt=salt)
        try:
            return AESGCM(key).decrypt(_NONCE, envelope[SALT_BYTES:], header)
        except (InvalidTag, ValueError):
            raise ProtocolError("bad-envelope", f"the envelope of a {purpose} cannot be opened") from None

    def mac(self, purpose: str, statement: bytes) -> bytes:
        """Return 32 bytes by which the peer knows that we make this statement to it."""
        return hmac.digest(self._mac_key(purpose, self._outward), statement, "sha256")

    def check_mac(self, purpose: str, statement: bytes, mac: bytes) -> None:
        """Refuse (`bad-receipt`) unless the peer made this statement to us."""
        expected = hmac.digest(self._mac_key(purpose, self._inward), statement, "sha256")
        if not hmac.compare_digest(expected, mac):
            raise ProtocolError("bad-receipt", f"the authentication of a {purpose} does not verify")

    def _mac_key(self, purpose: str, direction: bytes) -> bytes:
        if (purpose, direction) not in self._mac_keys:
            self._mac_keys[purpose, direction] = kdf.derive(self._shared, "receipt", purpose.encode(), direction)
        return self._mac_keys[purpose, direction]
