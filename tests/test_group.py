"""What is no canonical element other than the identity, or no reduced scalar, never gets into the group."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import binary, deterministic, scalars

from protocol import group
from protocol.encoding import POINT, SCALAR
from protocol.errors import ProtocolError
from protocol.group import ORDER, Element, Scalar

G = group.multiply_base(group.scalar_from_int(1))
IDENTITY = bytes(32)

# RFC 9496, appendix A.1: 0*G to 15*G.
MULTIPLES = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76",
    "6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919",
    "94741f5d5d52755ece4f23f044ee27d5d1ea1e2bd196b462166b16152a9d0259",
    "da80862773358b466ffadfe0b3293ab3d9fd53c5ea6c955358f568322daf6a57",
    "e882b131016b52c1d3337080187cf768423efccbb517bb495ab812c4160ff44e",
    "f64746d3c92b13050ed8d80236a7f0007c3b3f962f5ba793d19a601ebb1df403",
    "44f53520926ec81fbd5a387845beb7df85a96a24ece18738bdcfa6a7822a176d",
    "903293d8f2287ebe10e2374dc1a53e0bc887e592699f02d077d5263cdd55601c",
    "02622ace8f7303a31cafc63f8fc48fdc16e1c8c8d234b2f0d6685282a9076031",
    "20706fd788b2720a1ed2a5dad4952b01f413bcf0e7564de8cdc816689e2db95f",
    "bce83f8ba5dd2fa572864c24ba1810f9522bc6004afe95877ac73241cafdab42",
    "e4549ee16b9aa03099ca208c67adafcafa4c3f3e4e5303de6026e3ca8ff84460",
    "aa52e000df2e16f55fb1032fc33bc42742dad6bd5a8fc0be0167436c5948501f",
    "46376b80f409b29dc2b5f6f0c52591990896e5716f41477cd30085ab7f10301e",
    "e0c418f7c8d9c4cdd7395b93ea124f3ad99021bb681dfc3302a9d99a2e53e64e",
]

# RFC 9496, appendix A.3: encodings that a decoder must refuse, by the reason.
BAD = {
    "the field element is not reduced": """
        00ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff
        ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
        f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
        edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
    """,
    "the field element is negative": """
        0100000000000000000000000000000000000000000000000000000000000000
        01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
        ed57ffd8c914fb201471d1c3d245ce3c746fcbe63a3679d51b6a516ebebe0e20
        c34c4e1826e5d403b78e246e88aa051c36ccf0aafebffe137d148a2bf9104562
        c940e5a4404157cfb1628b108db051a8d439e1a421394ec4ebccb9ec92a8ac78
        47cfc5497c53dc8e61c91d17fd626ffb1c49e2bca94eed052281b510b1117a24
        f1c6165d33367351b0da8f6e4511010c68174a03b6581212c71c0e1d026c3c72
        87260f7a2f12495118360f02c26a470f450dadf34a413d21042b43b9d93e1309
    """,
    "x squared is no square": """
        26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371
        4eac077a713c57b4f4397629a4145982c661f48044dd3f96427d40b147d9742f
        de6a7b00deadc788eb6b6c8d20c0ae96c2f2019078fa604fee5b87d6e989ad7b
        bcab477be20861e01e4a0e295284146a510150d9817763caf1a6f4b422d67042
        2a292df7e32cababbd9de088d1d1abec9fc0440f637ed2fba145094dc14bea08
        f4a9e534fc0d216c44b218fa0c42d99635a0127ee2e53c712f70609649fdff22
        8268436f8c4126196cf64b3c7ddbda90746a378625f9813dd9b8457077256731
        2810e5cbc2cc4d4eece54f61c6f69758e289aa7ab440b3cbeaa21995c2f4232b
    """,
    "x times y is negative": """
        3eb858e78f5a7254d8c9731174a94f76755fd3941c0ac93735c07ba14579630e
        a45fdc55c76448c049a1ab33f17023edfb2be3581e9c7aade8a6125215e04220
        d483fe813c6ba647ebbfd3ec41adca1c6130c2beeee9d9bf065c8d151c5f396e
        8a2e1d30050198c65a54483123960ccc38aef6848e1ec8f5f780e8523769ba32
        32888462f8b486c68ad7dd9610be5192bbeaf3b443951ac1a8118419d9fa097b
        227142501b9d4355ccba290404bde41575b037693cef1f438c47f8fbf35d1165
        5c37cc491da847cfeb9281d407efc41e15144c876e0170b499a96a22ed31e01e
        445425117cb8c90edcbc7c1cc0e74f747f2c1efa5630a967c64f287792a48a4b
    """,
    "y is zero": """
        ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
    """,
}
BAD_ENCODINGS = [(reason, bytes.fromhex(text)) for reason, block in BAD.items() for text in block.split()]


# --- a slow decoder in plain integers, as an oracle ----------------------------------------------------------------

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
SQRT_MINUS_ONE = pow(2, (P - 1) // 4, P)


def inverse_square_root(value: int) -> int | None:
    """Return the non-negative 1/sqrt(value) in the field of 2^255 - 19; None where there is none."""
    root = pow(value, (P + 3) // 8, P)
    for candidate in (root, root * SQRT_MINUS_ONE % P):
        if value and candidate * candidate % P == value:
            inverse = pow(candidate, -1, P)
            return min(inverse, P - inverse, key=lambda number: number & 1)
    return None


def why_not(data: bytes) -> str | None:
    """Decode as RFC 9496, section 4.3.1; return None if `data` is a point, else why it is not."""
    s = int.from_bytes(data, "little")
    if s >= P:
        return "the field element is not reduced"
    if s & 1:
        return "the field element is negative"
    u1, u2 = (1 - s * s) % P, (1 + s * s) % P
    v = (-D * u1 * u1 - u2 * u2) % P
    inverse = inverse_square_root(v * u2 * u2 % P)
    if inverse is None:
        return "x squared is no square"
    den_x = inverse * u2 % P
    den_y = inverse * den_x * v % P
    x = 2 * s * den_x % P
    x = P - x if x & 1 else x
    y = u1 * den_y % P
    if x * y % P & 1:
        return "x times y is negative"
    return "y is zero" if y == 0 else None


@pytest.mark.parametrize(("reason", "encoding"), BAD_ENCODINGS, ids=lambda value: str(value)[:40])
def test_bad_encodings_of_the_rfc_are_bad_for_the_reason_stated(reason: str, encoding: bytes) -> None:
    assert why_not(encoding) == reason


@pytest.mark.parametrize(("reason", "encoding"), BAD_ENCODINGS, ids=lambda value: str(value)[:40])
def test_bad_encodings_of_the_rfc_are_refused(reason: str, encoding: bytes) -> None:
    assert not group.is_element(encoding), reason
    with pytest.raises(ProtocolError, match="bad-element"):
        group.element(encoding)
    with pytest.raises(ProtocolError, match="malformed"):
        POINT.read(encoding, 0)


def test_there_are_as_many_bad_encodings_as_in_the_rfc() -> None:
    assert len({encoding for _, encoding in BAD_ENCODINGS}) == 29


@pytest.mark.parametrize("factor", range(1, 16))
def test_small_multiples_of_the_base_are_those_of_the_rfc(factor: int) -> None:
    point = group.multiply_base(group.scalar_from_int(factor))
    assert point.hex() == MULTIPLES[factor]
    assert group.element(point) == point
    assert group.multiply(group.scalar_from_int(factor), G) == point


@deterministic(300)
@given(st.integers(0, 2**256 - 1).map(lambda value: value.to_bytes(32, "little")))
def test_an_element_is_what_a_slow_decoder_takes_for_one(data: bytes) -> None:
    assert group.is_element(data) == (why_not(data) is None and data != IDENTITY)


@deterministic(60)
@given(scalars, st.integers(0, 255))
def test_an_element_with_one_bit_flipped_is_what_a_slow_decoder_takes_it_for(factor: Scalar, bit: int) -> None:
    point = group.multiply_base(factor)
    assert why_not(point) is None
    assert group.is_element(point)
    flipped = (int.from_bytes(point, "little") ^ (1 << bit)).to_bytes(32, "little")
    assert group.is_element(flipped) == (why_not(flipped) is None and flipped != IDENTITY)


def test_every_second_encoding_of_a_small_field_element_is_refused() -> None:
    # The 19 field elements that also fit as s + p.
    for s in range(19):
        again = (s + P).to_bytes(32, "little")
        assert not group.is_element(again)
        with pytest.raises(ProtocolError, match="bad-element"):
            group.element(again)


@deterministic(100)
@given(scalars.map(group.multiply_base) | st.integers(0, P - 1).map(lambda value: value.to_bytes(32, "little")))
def test_an_encoding_with_its_top_bit_set_is_no_element_whatever_the_rest(data: bytes) -> None:
    again = data[:31] + bytes([data[31] | 0x80])
    assert why_not(again) == "the field element is not reduced"
    assert not group.is_element(again)
    with pytest.raises(ProtocolError, match="malformed"):
        POINT.read(again, 0)


# --- the identity --------------------------------------------------------------------------------------------------


def test_the_identity_is_no_element() -> None:
    assert why_not(IDENTITY) is None  # a point, which the protocol refuses all the same
    assert not group.is_element(IDENTITY)
    with pytest.raises(ProtocolError, match="bad-element"):
        group.element(IDENTITY)
    with pytest.raises(ProtocolError, match="malformed"):
        POINT.read(IDENTITY, 0)
    with pytest.raises(ProtocolError, match="malformed"):
        POINT.write(IDENTITY, [])


@deterministic(30)
@given(scalars)
def test_a_sum_or_difference_that_is_the_identity_is_refused(factor: Scalar) -> None:
    point = group.multiply_base(factor)
    negative = group.multiply_base(group.scalar_subtract(Scalar(bytes(32)), factor))
    with pytest.raises(ProtocolError, match="identity-element"):
        group.add(point, negative)
    with pytest.raises(ProtocolError, match="identity-element"):
        group.subtract(point, point)


@deterministic(40)
@given(st.lists(st.integers(1, ORDER - 1), max_size=6), st.integers(0, 2**32))
def test_accumulated_points_add_as_their_scalars_do_and_may_come_to_the_identity(factors: list[int], salt: int) -> None:
    points = [group.multiply_base(group.scalar_from_int(factor)) for factor in factors]
    total = group.accumulate(group.IDENTITY, points)
    expected = sum(factors) % ORDER
    assert total == (group.multiply_base(group.scalar_from_int(expected)) if expected else IDENTITY)
    assert group.accumulate(total, points, sign=-1) == group.IDENTITY == IDENTITY
    assert group.accumulate(total, []) == total
    more = group.multiply_base(group.scalar_from_int(salt + 1))
    assert group.accumulate(group.accumulate(total, [more]), [more], sign=-1) == total


@pytest.mark.parametrize("factor", [0, ORDER, 2 * ORDER])
def test_a_product_that_is_the_identity_is_refused(factor: int) -> None:
    zero = Scalar(factor.to_bytes(32, "little"))
    with pytest.raises(ProtocolError, match="identity-element"):
        group.multiply(zero, G)
    with pytest.raises(ProtocolError, match="identity-element"):
        group.multiply_base(zero)


@pytest.mark.parametrize("point", [IDENTITY, b"\xff" * 32, BAD_ENCODINGS[-1][1]], ids=["identity", "ones", "y is zero"])
def test_nothing_is_computed_from_what_is_no_element(point: bytes) -> None:
    bad = Element(point)
    with pytest.raises(ProtocolError, match="identity-element"):
        group.multiply(group.scalar_from_int(3), bad)
    if point != IDENTITY:
        with pytest.raises(ProtocolError, match="identity-element"):
            group.add(G, bad)
        with pytest.raises(ProtocolError, match="identity-element"):
            group.subtract(G, bad)


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
def test_an_element_or_scalar_of_another_length_is_refused(size: int) -> None:
    assert not group.is_element((G * 3)[:size])
    assert not group.is_scalar(bytes(size))
    with pytest.raises(ProtocolError, match="bad-element"):
        group.element((G * 3)[:size])
    with pytest.raises(ProtocolError, match="bad-scalar"):
        group.scalar(b"\x01" + bytes(size - 1) if size else b"")


# --- scalars -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [ORDER, ORDER + 1, 2 * ORDER - 1, 2 * ORDER, 2**252 * 2, 2**255 - 20, 2**255 - 1, 2**255, 2**256 - 1],
    ids=lambda value: hex(value)[:12],
)
def test_scalars_that_are_not_reduced_are_refused(value: int) -> None:
    data = value.to_bytes(32, "little")
    assert not group.is_scalar(data)
    with pytest.raises(ProtocolError, match="bad-scalar"):
        group.scalar(data)
    with pytest.raises(ProtocolError, match="malformed"):
        SCALAR.read(data, 0)


def test_the_library_itself_would_take_scalars_that_are_not_reduced() -> None:
    # If this ever fails, libsodium has become strict, and the checks above guard against less than they say.
    assert group.multiply_base(Scalar((ORDER + 5).to_bytes(32, "little"))).hex() == MULTIPLES[5]


def test_zero_is_a_canonical_encoding_but_no_scalar_to_compute_with() -> None:
    assert group.is_scalar(bytes(32))
    with pytest.raises(ProtocolError, match="bad-scalar"):
        group.scalar(bytes(32))


@deterministic(100)
@given(st.integers(0, 2**256 - 1))
def test_a_scalar_is_canonical_exactly_below_the_order(value: int) -> None:
    assert group.is_scalar(value.to_bytes(32, "little")) == (value < ORDER)


@deterministic(50)
@given(st.integers(1, ORDER - 1), st.integers(1, ORDER - 1))
def test_scalars_compute_as_integers_modulo_the_order(left: int, right: int) -> None:
    one, two = group.scalar_from_int(left), group.scalar_from_int(right)
    assert group.scalar_add(one, two) == group.scalar_from_int(left + right)
    assert group.scalar_subtract(one, two) == group.scalar_from_int(left - right)
    assert group.scalar_multiply(one, two) == group.scalar_from_int(left * right)
    assert group.scalar_invert(one) == group.scalar_from_int(pow(left, -1, ORDER))


@deterministic(50)
@given(binary(64))
def test_uniform_bytes_are_reduced_modulo_the_order(uniform: bytes) -> None:
    reduced = group.scalar_from_uniform(uniform)
    assert int.from_bytes(reduced, "little") == int.from_bytes(uniform, "little") % ORDER


@deterministic(25)
@given(st.integers(1, ORDER - 1), st.integers(1, ORDER - 1))
def test_products_of_the_base_add_as_their_scalars_do(left: int, right: int) -> None:
    one, two = (group.multiply_base(group.scalar_from_int(value)) for value in (left, right))
    if (left + right) % ORDER:
        assert group.add(one, two) == group.multiply_base(group.scalar_from_int(left + right))
    if left != right:
        assert group.subtract(one, two) == group.multiply_base(group.scalar_from_int(left - right))
    assert group.multiply(group.scalar_from_int(left), two) == group.multiply_base(group.scalar_from_int(left * right))


def test_the_map_to_the_group_is_that_of_the_rfc() -> None:
    # RFC 9496, appendix A.2: SHA-512 of a text, mapped.
    uniform = bytes.fromhex(
        "5d1be09e3d0c82fc538112490e35701979d99e06ca3e2b5b54bffe8b4dc772c1"
        "4d98b696a1bbfb5ca32c436cc61c16563790306c79eaca7705668b47dffe5bb6"
    )
    expected = "3066f82a1a747d45120d1740f14358531a8f04bbffe6a819f86dfe50f44a0a46"
    assert group.element_from_uniform(uniform).hex() == expected
