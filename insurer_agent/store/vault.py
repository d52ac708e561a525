"""Encryption and keyed HMACs for what stands in the database, under a key that stands elsewhere."""

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol import kdf
from protocol.party import RandomBytes
from protocol.secret import Secret

_NONCE_BYTES = 12


class VaultError(Exception):
    """A sealed value does not open: the storage key is another one, or the database was tampered with."""


class Vault:
    """Seals and indexes values of one area ("register", "custody", ...), each area under keys of its own.

    AES-256-GCM with random nonces: good for 2^32 values an area before the key must be changed.
    """

    def __init__(self, storage_key: Secret, area: str, random: RandomBytes) -> None:
        self._aead = AESGCM(kdf.derive(storage_key.reveal(), "vault seal", area.encode()))
        index_key = kdf.derive(storage_key.reveal(), "vault index", area.encode())
        self._indexing = hmac.new(index_key, digestmod="sha256")  # to copy: OpenSSL looks a hash up each time by name
        self._random = random

    def seal(self, place: bytes, value: bytes) -> bytes:
        """Encrypt a value for one place (its row's key), outside of which it does not open."""
        nonce = self._random(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, value, place)

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """Decrypt; raise `VaultError` for anything but what was sealed for this place."""
        try:
            return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise VaultError("a stored value does not open under this storage key") from None

    def index(self, kind: str, *parts: bytes) -> bytes:
        """Return 32 bytes: the keyed HMAC by which a value is found without being shown."""
        indexing = self._indexing.copy()
        indexing.update(kdf.join(kind.encode(), *parts))
        return indexing.digest()
