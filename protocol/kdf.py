"""Key derivation: HKDF-SHA256 with a label for each use, and the stream that long random arrays are cut from."""

from collections.abc import Sequence
from itertools import accumulate

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

_SHA256 = SHA256()


def join(*parts: bytes) -> bytes:
    """Join byte strings injectively: each with its length (4 bytes) before it."""
    pieces: list[bytes] = []
    for part in parts:
        pieces += (len(part).to_bytes(4, "big"), part)
    return b"".join(pieces)


def derive(secret: bytes, label: str, *context: bytes, salt: bytes = b"", size: int = 32) -> bytes:
    """Return `size` bytes: HKDF-SHA256 (RFC 5869) with the label and context, injectively joined, as info."""
    return expand(extract(secret, salt), label, *context, size=size)


def extract(secret: bytes, salt: bytes = b"") -> bytes:
    """Return HKDF-Extract's 32 bytes (RFC 5869, section 2.2), for several that are expanded from one secret."""
    return HKDF.extract(_SHA256, salt or None, secret)


def expand(key: bytes, label: str, *context: bytes, size: int = 32) -> bytes:
    """Return `size` bytes of what was extracted: HKDF-Expand (RFC 5869, section 2.3), labelled as `derive` is."""
    return HKDFExpand(_SHA256, size, join(b"cover-lookup/v1", label.encode(), *context)).derive(key)


def stream(key: bytes, size: int) -> bytes:
    """Return `size` pseudorandom bytes: AES-256-CTR from zero under a 32-byte key that is used for this alone."""
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Return pieces of these sizes, one after the other."""
    return [data[end - size : end] for end, size in zip(accumulate(sizes), sizes, strict=True)]
