"""Envelopes, receipts and committee keys are opened and believed by the one member, for the one thing, they are for."""

from dataclasses import replace

import pytest
from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from world import NOW, World, make_world, seeded

from protocol import committee_keys, kdf
from protocol.channel import OVERHEAD, Channel, sealing_public_key
from protocol.committee_keys import CommitteeKey, KeyEnvelope
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.party import Party
from protocol.secret import Secret

KEYS = {who: Secret(seeded(who)(32)) for who in ("alice", "bob", "carol")}
PUBLIC = {who: sealing_public_key(private) for who, private in KEYS.items()}
SALT = bytes(range(32))
BODY, HEADER = b"shares and salts", b"deposit id"


def channel(own: str, peer: str) -> Channel:
    return Channel(own, KEYS[own], peer, PUBLIC[peer])


ENVELOPE = channel("alice", "bob").seal("deposit", HEADER, BODY, SALT)


def is_refused(at: Channel, envelope: bytes, purpose: str = "deposit", header: bytes = HEADER) -> bool:
    try:
        at.open(purpose, header, envelope)
    except ProtocolError as refused:
        return refused.code == "bad-envelope"
    return False


# --- envelopes -----------------------------------------------------------------------------------------------------


@deterministic(50)
@given(st.text(max_size=20), st.binary(max_size=50), st.binary(max_size=200), st.binary(min_size=32, max_size=32))
def test_an_envelope_opens_to_what_was_sealed(purpose: str, header: bytes, body: bytes, salt: bytes) -> None:
    envelope = channel("alice", "bob").seal(purpose, header, body, salt)
    assert len(envelope) == len(body) + OVERHEAD
    assert channel("bob", "alice").open(purpose, header, envelope) == body


def test_an_envelope_opens_for_its_pair_and_direction_alone() -> None:
    assert not is_refused(channel("bob", "alice"), ENVELOPE)
    for own, peer in (("alice", "bob"), ("bob", "carol"), ("carol", "alice"), ("carol", "bob"), ("alice", "carol")):
        assert is_refused(channel(own, peer), ENVELOPE)


def test_an_envelope_opens_for_its_names_alone_though_the_keys_are_the_same() -> None:
    for own, peer in (("bob", "alicia"), ("bobby", "alice"), ("bo", "balice"), ("alice", "bob")):
        assert is_refused(Channel(own, KEYS["bob"], peer, PUBLIC["alice"]), ENVELOPE)


def test_an_envelope_opens_for_its_purpose_and_header_alone() -> None:
    bob = channel("bob", "alice")
    for purpose, header in (("check", HEADER), ("", HEADER), ("deposit", b""), ("deposit", HEADER + b"!")):
        assert is_refused(bob, ENVELOPE, purpose, header)


@pytest.mark.parametrize("bit", range(8 * len(ENVELOPE)))
def test_an_envelope_with_any_bit_flipped_is_refused(bit: int) -> None:
    flipped = bytearray(ENVELOPE)
    flipped[bit // 8] ^= 1 << bit % 8
    assert is_refused(channel("bob", "alice"), bytes(flipped))


def test_an_envelope_cut_or_lengthened_is_refused() -> None:
    bob = channel("bob", "alice")
    assert all(is_refused(bob, ENVELOPE[:size]) for size in range(len(ENVELOPE)))
    assert is_refused(bob, ENVELOPE + b"\x00")


def test_another_salt_makes_another_envelope_throughout() -> None:
    other = channel("alice", "bob").seal("deposit", HEADER, BODY, SALT[::-1])
    assert other[32 : 32 + len(BODY)] != ENVELOPE[32 : 32 + len(BODY)]


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_sealing_takes_a_salt_of_32_bytes(size: int) -> None:
    with pytest.raises(ProtocolError, match="bad-randomness"):
        channel("alice", "bob").seal("deposit", HEADER, BODY, bytes(size))


@deterministic(20)
@given(st.text(min_size=1, max_size=10), st.binary(max_size=20), st.binary(max_size=100))
def test_another_library_opens_an_envelope_by_the_specification(purpose: str, header: bytes, body: bytes) -> None:
    # X25519, then HKDF-SHA256 over salt, label, purpose, both names and both keys, then AES-256-GCM.
    envelope = channel("alice", "bob").seal(purpose, header, body, SALT)
    private = X25519PrivateKey.from_private_bytes(KEYS["bob"].reveal())
    shared = private.exchange(X25519PublicKey.from_public_bytes(PUBLIC["alice"]))
    direction = sized(b"alice", b"bob", PUBLIC["alice"], PUBLIC["bob"])
    context = sized(b"cover-lookup/v1", b"envelope", purpose.encode(), direction)
    key = HKDF(shared, 32, envelope[:32], SHA256, context=context)
    cipher = AES.new(key, AES.MODE_GCM, nonce=bytes(12))
    cipher.update(header)
    assert cipher.decrypt_and_verify(envelope[32:-16], envelope[-16:]) == body


def sized(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


@deterministic(50)
@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_joining_is_injective(left: list[bytes], right: list[bytes]) -> None:
    assert (kdf.join(*left) == kdf.join(*right)) == (left == right)


# --- receipts ------------------------------------------------------------------------------------------------------


def believes(at: Channel, purpose: str, statement: bytes, mac: bytes) -> bool:
    try:
        at.check_mac(purpose, statement, mac)
    except ProtocolError as refused:
        assert refused.code == "bad-receipt"  # noqa: PT017  either outcome is looked at
        return False
    return True


def test_a_receipt_is_believed_by_its_pair_in_its_direction_for_its_purpose_and_statement_alone() -> None:
    mac = channel("alice", "bob").mac("deposit", b"committed")
    bob = channel("bob", "alice")
    assert believes(bob, "deposit", b"committed", mac)
    assert not believes(channel("alice", "bob"), "deposit", b"committed", mac)  # no reflection
    assert not believes(channel("carol", "alice"), "deposit", b"committed", mac)
    assert not believes(channel("bob", "carol"), "deposit", b"committed", mac)
    assert not believes(bob, "check", b"committed", mac)
    assert not believes(bob, "deposit", b"committed!", mac)
    for bent in (b"", mac[:-1], mac + b"\x00", bytes(32)):
        assert not believes(bob, "deposit", b"committed", bent)
    for bit in range(256):
        flipped = (int.from_bytes(mac, "big") ^ (1 << bit)).to_bytes(32, "big")
        assert not believes(bob, "deposit", b"committed", flipped)


def test_an_envelopes_key_is_not_a_receipts_key() -> None:
    # Both are derived under a label of their own: a receipt says nothing about envelopes.
    shared = X25519PrivateKey.from_private_bytes(KEYS["alice"].reveal()).exchange(
        X25519PublicKey.from_public_bytes(PUBLIC["bob"])
    )
    assert len({kdf.derive(shared, label, b"x") for label in ("envelope", "receipt")}) == 2


# --- keys of small order -------------------------------------------------------------------------------------------

P = 2**255 - 19
SMALL_ORDER = {
    "zero": 0,
    "one": 1,
    "order 8": 325606250916557431795983626356110631294008115727848805560023387167927233504,
    "order 8, the other": 39382357235489614581723060781553021112529911719440698176882885853963445705823,
    "minus one": P - 1,
    "p": P,
    "p + 1": P + 1,
}


@pytest.mark.parametrize("point", SMALL_ORDER.values(), ids=SMALL_ORDER)
def test_a_peer_key_of_small_order_is_refused(point: int) -> None:
    with pytest.raises(ProtocolError, match="bad-sealing-key"):
        Channel("alice", KEYS["alice"], "bob", point.to_bytes(32, "little"))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_peer_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="bad-sealing-key"):
        Channel("alice", KEYS["alice"], "bob", b"\x09" * size)


# --- committee keys ------------------------------------------------------------------------------------------------


@pytest.fixture
def world() -> World:
    return make_world(8, shards=2)


def slots_of(world: World, shard: int = 0) -> tuple[str, ...]:
    return world.manifest.committee(shard).slots


def refusal(world: World, receiver: str, maker: str, envelope: bytes) -> str:
    with pytest.raises(ProtocolError) as refused:
        committee_keys.receive(world.members[receiver].party, maker, envelope)
    return refused.value.code


def sealed_body(world: World, sender: str, receiver: str, **changes: object) -> bytes:
    """Return an envelope with whatever key a member likes to hand out."""
    body = KeyEnvelope(
        shard=0,
        omitted=None,
        committee_version=1,
        made_at=int(NOW),
        secret=bytes(32),
        manifest_hash=world.manifest.hash,
    )
    data = encode(replace(body, **changes))
    own = world.members[sender].party.channel(receiver)
    return own.seal(committee_keys.PURPOSE, world.manifest.hash, data, bytes(32))


def test_all_holders_of_a_set_have_one_key_and_nobody_else_has_it(world: World) -> None:
    for shard in (0, 1):
        for omitted in committee_keys.key_sets(world.manifest, shard):
            holders = committee_keys.holders(world.manifest, shard, omitted)
            held = {member: world.members[member].committee_keys.get((shard, omitted)) for member in world.members}
            assert {key.secret.reveal() for key in held.values() if key is not None} == {
                held[holders[0]].secret.reveal()  # type: ignore[union-attr]  its maker has it
            }
            assert {member for member, key in held.items() if key is not None} == set(holders)


def test_the_key_without_a_slot_is_not_known_to_that_slot(world: World) -> None:
    for omitted in range(6):
        assert slots_of(world)[omitted] not in committee_keys.holders(world.manifest, 0, omitted)
        assert (0, omitted) not in world.members[slots_of(world)[omitted]].committee_keys


def test_keys_of_different_sets_differ_in_value_and_name(world: World) -> None:
    keys = [
        key
        for shard in (0, 1)
        for omitted in committee_keys.key_sets(world.manifest, shard)
        for key in [
            world.members[committee_keys.holders(world.manifest, shard, omitted)[0]].committee_keys[shard, omitted]
        ]
    ]
    assert len({key.secret.reveal() for key in keys}) == len({key.name.id for key in keys}) == 14


def test_an_id_and_a_check_value_follow_from_the_key_and_differ_for_different_keys() -> None:
    one, same, two = (CommitteeKey.named(0, None, 1, 5, Secret(bytes([byte]) * 32)) for byte in (1, 1, 2))
    assert one.name == same.name
    assert one.name.id != two.name.id
    assert one.check_value("a") == same.check_value("a")
    assert len({one.check_value("a"), one.check_value("b"), two.check_value("a")}) == 3
    renamed = CommitteeKey(two.name, one.secret)
    assert renamed.check_value("a") not in (one.check_value("a"), two.check_value("a"))


def test_only_the_lowest_slot_of_a_set_makes_its_key(world: World) -> None:
    for omitted in (None, 0, 1):
        maker = 1 if omitted == 0 else 0
        for slot, member in enumerate(slots_of(world)):
            party = world.members[member].party
            if slot == maker:
                assert committee_keys.make(party, 0, omitted, 5, world.random).name.omitted == omitted
            else:
                with pytest.raises(ProtocolError, match="not-maker"):
                    committee_keys.make(party, 0, omitted, 5, world.random)


def test_a_key_from_a_member_that_is_not_the_lowest_slot_of_its_set_is_refused(world: World) -> None:
    slots = slots_of(world)
    outsider = next(member for member in world.members if member not in slots)
    for sender in (slots[1], slots[5], outsider):
        for omitted in (None, 1 if sender == slots[5] else 4, 15):
            envelope = sealed_body(world, sender, slots[3], omitted=omitted)
            assert refusal(world, slots[3], sender, envelope) == "not-maker"
    assert refusal(world, slots[3], slots[0], sealed_body(world, slots[0], slots[3], omitted=0)) == "not-maker"
    right = sealed_body(world, slots[1], slots[3], omitted=0)
    assert committee_keys.receive(world.members[slots[3]].party, slots[1], right).name.omitted == 0


def test_a_key_for_a_set_without_us_or_for_no_set_is_refused(world: World) -> None:
    slots = slots_of(world)
    outsider = next(member for member in world.members if member not in slots)
    assert refusal(world, slots[3], slots[0], sealed_body(world, slots[0], slots[3], omitted=3)) == "not-maker"
    assert refusal(world, outsider, slots[0], sealed_body(world, slots[0], outsider)) == "not-maker"
    for omitted in (6, 15, 255):
        assert (
            refusal(world, slots[3], slots[0], sealed_body(world, slots[0], slots[3], omitted=omitted)) == "not-maker"
        )
    assert refusal(world, slots[3], slots[0], sealed_body(world, slots[0], slots[3], shard=2)) == "unknown-shard"


def test_a_key_for_another_version_of_the_committee_is_refused(world: World) -> None:
    slots = slots_of(world)
    for version in (0, 2):
        envelope = sealed_body(world, slots[0], slots[3], committee_version=version)
        assert refusal(world, slots[3], slots[0], envelope) == "other-committee"


def test_a_key_envelope_of_another_manifest_receiver_or_purpose_is_refused(world: World) -> None:
    slots = slots_of(world)
    envelope = sealed_body(world, slots[0], slots[3])
    assert refusal(world, slots[4], slots[0], envelope) == "bad-envelope"
    assert refusal(world, slots[3], slots[1], envelope) == "bad-envelope"
    newer = Manifest.of(replace(world.manifest.terms, serial=2))
    receiver = Party(slots[3], world.members[slots[3]].party.keys, newer)
    with pytest.raises(ProtocolError, match="bad-envelope"):
        committee_keys.receive(receiver, slots[0], envelope)
    other = world.members[slots[0]].party.channel(slots[3]).seal("check", world.manifest.hash, b"", bytes(32))
    assert refusal(world, slots[3], slots[0], other) == "bad-envelope"


def test_a_key_does_not_print(world: World) -> None:
    key = world.members[slots_of(world)[0]].committee_keys[0, None]
    assert key.secret.reveal().hex() not in repr(key)
    assert repr(key.secret.reveal()) not in repr(key)
