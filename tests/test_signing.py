"""Signatures: what OpenSSL signs libsodium verifies, and it verifies nothing else."""

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from strategies import binary, deterministic

from protocol import signing
from protocol.errors import ProtocolError
from protocol.group import ORDER
from protocol.secret import Secret
from protocol.sodium import ed25519_verifies

# RFC 8032, section 7.1, TEST 1.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNED = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
    "655141438e7a100b"
)
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
]


def openssl_verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def test_the_vector_of_the_rfc_verifies() -> None:
    assert ed25519_verifies(PUBLIC, SIGNED, b"")
    assert not ed25519_verifies(PUBLIC, SIGNED, b"\x00")
    assert Ed25519PrivateKey.from_private_bytes(SEED).sign(b"") == SIGNED


@deterministic(80)
@given(binary(32), st.binary(max_size=300), st.sampled_from(["public", "signature", "message"]), st.integers(0, 10**6))
def test_two_libraries_say_the_same_of_a_signature_and_of_one_with_a_bit_flipped(
    seed: bytes, message: bytes, where: str, bit: int
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    parts = {"public": key.public_key().public_bytes_raw(), "signature": key.sign(message), "message": message}
    assert ed25519_verifies(**parts)
    assert openssl_verifies(**parts)
    if not parts[where]:
        return
    place, mask = divmod(bit % (8 * len(parts[where])), 8)
    bent = bytearray(parts[where])
    bent[place] ^= 1 << mask
    assert not ed25519_verifies(**parts | {where: bytes(bent)})
    assert not openssl_verifies(**parts | {where: bytes(bent)})


def test_a_scalar_out_of_range_is_no_other_form_of_a_signature() -> None:
    scalar = int.from_bytes(SIGNED[32:], "little") + ORDER
    assert not ed25519_verifies(PUBLIC, SIGNED[:32] + scalar.to_bytes(32, "little"), b"")


@pytest.mark.parametrize("public", SMALL_ORDER)
def test_a_key_of_small_order_verifies_nothing(public: str) -> None:
    key = bytes.fromhex(public)
    for commitment in (key, SIGNED[:32], bytes.fromhex(SMALL_ORDER[0])):
        for scalar in (bytes(32), SIGNED[32:]):
            assert not ed25519_verifies(key, commitment + scalar, b"anything")


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_keys_and_signatures_of_another_length_verify_nothing_and_are_not_read(size: int) -> None:
    assert not ed25519_verifies((PUBLIC * 2)[:size], SIGNED, b"")
    if size != 64:
        assert not ed25519_verifies(PUBLIC, (SIGNED * 2)[:size], b"")
    assert not ed25519_verifies(PUBLIC, SIGNED + bytes(1), b"")


def test_a_signature_is_for_its_purpose_and_parts_alone() -> None:
    signature = signing.sign(Secret(SEED), "check", b"one", b"two")
    signing.verify(PUBLIC, signature, "check", b"one", b"two")
    for purpose, parts in (("deposit", (b"one", b"two")), ("check", (b"onet", b"wo")), ("check", (b"one",))):
        with pytest.raises(ProtocolError, match="bad-signature"):
            signing.verify(PUBLIC, signature, purpose, *parts)
