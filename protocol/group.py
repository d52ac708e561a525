"""The group ristretto255 (RFC 9496) with the operations that the protocol uses, over libsodium.

This is the one module that knows the library: another library or suite takes its place by offering these names.
Elements and scalars travel as their canonical 32-byte encodings. An `Element` is a valid group element other than
the identity; a `Scalar` is a canonical integer mod L (little-endian), and not zero unless said otherwise.

Functions raise `ProtocolError("identity-element")` where a result would be the identity: the protocol refuses it
everywhere, and libsodium's multiplication reports it as an error.
"""

import hashlib
from collections.abc import Iterable
from typing import NewType

from protocol.errors import ProtocolError
from protocol.sodium import rbcl

Element = NewType("Element", bytes)
"""Canonical encoding of a group element, never the identity; 32 bytes."""
Scalar = NewType("Scalar", bytes)
"""Canonical little-endian encoding of an integer mod L; 32 bytes."""

POINT_BYTES = 32
SCALAR_BYTES = 32
UNIFORM_BYTES = 64
ORDER = 2**252 + 27742317777372353535851937790883648493
IDENTITY = bytes(POINT_BYTES)
"""The encoding of the identity; no `Element`, but where sums start."""
SUITE = b"ristretto255-SHA512"


def is_element(data: bytes) -> bool:
    """Tell whether `data` canonically encodes an element other than the identity."""
    return (
        len(data) == POINT_BYTES
        and data[-1] < 1 << 7  # libsodium ignores the top bit, so an element would have two encodings
        and data != IDENTITY
        and bool(rbcl.crypto_core_ristretto255_is_valid_point(data))
    )


def is_scalar(data: bytes) -> bool:
    """Tell whether `data` is a canonical scalar (libsodium itself accepts unreduced ones); zero is one."""
    return len(data) == SCALAR_BYTES and int.from_bytes(data, "little") < ORDER


def element(data: bytes) -> Element:
    """Return `data` as an element; refuse the identity and non-canonical encodings."""
    if not is_element(data):
        raise ProtocolError("bad-element", "a group element is malformed or the identity")
    return Element(data)


def scalar(data: bytes) -> Scalar:
    """Return `data` as a scalar; refuse non-canonical encodings and zero."""
    if not is_scalar(data) or not any(data):
        raise ProtocolError("bad-scalar", "a scalar is zero or not reduced")
    return Scalar(data)


def scalar_from_uniform(uniform: bytes) -> Scalar:
    """Reduce 64 uniform bytes (little-endian) mod L."""
    return Scalar(rbcl.crypto_core_ristretto255_scalar_reduce(uniform))


def scalar_from_int(value: int) -> Scalar:
    """Return a small public integer as a scalar."""
    return Scalar((value % ORDER).to_bytes(SCALAR_BYTES, "little"))


def element_from_uniform(uniform: bytes) -> Element:
    """Map 64 uniform bytes to the group: the one-way map of RFC 9496, section 4.3.4."""
    return Element(rbcl.crypto_core_ristretto255_from_hash(uniform))


def multiply(factor: Scalar, point: Element) -> Element:
    """Return factor * point; constant time in the factor."""
    try:
        return Element(rbcl.crypto_scalarmult_ristretto255(factor, point))
    except RuntimeError:
        raise ProtocolError("identity-element", "a product is the identity or a point is malformed") from None


def multiply_base(factor: Scalar) -> Element:
    """Return factor * G; constant time."""
    try:
        return Element(rbcl.crypto_scalarmult_ristretto255_base(factor))
    except RuntimeError:
        raise ProtocolError("identity-element", "a product is the identity") from None


def add(left: Element, right: Element) -> Element:
    """Return left + right; refuse the identity."""
    return _not_identity(rbcl.crypto_core_ristretto255_add(left, right))


def subtract(left: Element, right: Element) -> Element:
    """Return left - right; refuse the identity."""
    return _not_identity(rbcl.crypto_core_ristretto255_sub(left, right))


def accumulate(total: bytes, points: Iterable[Element], *, sign: int = 1) -> bytes:
    """Return total + sign * (sum of points); total and result may be the identity."""
    combine = rbcl.crypto_core_ristretto255_add if sign > 0 else rbcl.crypto_core_ristretto255_sub
    for point in points:
        total = combine(total, point)
    return total


def _not_identity(point: bytes) -> Element:
    if point == IDENTITY:
        raise ProtocolError("identity-element", "a sum is the identity")
    return Element(point)


def scalar_add(left: Scalar, right: Scalar) -> Scalar:
    """Return left + right mod L."""
    return Scalar(rbcl.crypto_core_ristretto255_scalar_add(left, right))


def scalar_subtract(left: Scalar, right: Scalar) -> Scalar:
    """Return left - right mod L."""
    return Scalar(rbcl.crypto_core_ristretto255_scalar_sub(left, right))


def scalar_multiply(left: Scalar, right: Scalar) -> Scalar:
    """Return left * right mod L."""
    return Scalar(rbcl.crypto_core_ristretto255_scalar_mul(left, right))


def scalar_invert(value: Scalar) -> Scalar:
    """Return 1 / value mod L."""
    return Scalar(rbcl.crypto_core_ristretto255_scalar_invert(value))


def expand_message(message: bytes, dst: bytes) -> bytes:
    """Return 64 bytes: expand_message_xmd of RFC 9380, section 5.3.1, with SHA-512 and one output block."""
    dst_prime = dst + bytes([len(dst)])
    b_0 = hashlib.sha512(bytes(128) + message + UNIFORM_BYTES.to_bytes(2, "big") + b"\x00" + dst_prime).digest()
    return hashlib.sha512(b_0 + b"\x01" + dst_prime).digest()
