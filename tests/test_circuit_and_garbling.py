"""The circuit computes the comparison, and garbled it computes the same, at the limit and at the ring's edges."""

import sys
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from Crypto.Cipher import AES
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import deterministic
from world import LIMIT, FourCustodians, Shared, seeded

from protocol import garbling, half_gates_arrays, half_gates_compiled
from protocol.check import Verdict
from protocol.circuit import ANDS, INPUTS, exceeds, plain_bits
from protocol.garbling import Engine, ZeroLabels
from protocol.half_gates_arrays import Arrays, _Hash, _Tweaks
from protocol.half_gates_compiled import Compiled
from protocol.sharing import HALF_RING, RING, RING_BITS, Chosen

EXCEEDS, WITHIN = Verdict.EXCEEDS, Verdict.WITHIN
ring = st.integers(0, RING - 1)
edges = st.sampled_from([0, 1, 2, HALF_RING - 1, HALF_RING, HALF_RING + 1, RING - 2, RING - 1])
numbers = st.lists(ring | edges, min_size=INPUTS, max_size=INPUTS)


def plain(rows: list[list[int]]) -> list[int]:
    """Run the circuit on bits in clear."""
    bits = plain_bits(np.array(rows, dtype=np.uint64))
    return [int(bit[0]) for bit in exceeds(bits, np.bitwise_and)]


def negated(total: list[int], limit: int) -> list[int]:
    """Return the circuit's six numbers for six groups' sums."""
    return [((limit if place == 0 else 0) - value) % RING for place, value in enumerate(total)]


# --- the circuit on plain bits -------------------------------------------------------------------------------------


@deterministic(150)
@given(st.lists(numbers, min_size=1, max_size=5))
def test_the_circuit_is_the_sign_of_the_sum(rows: list[list[int]]) -> None:
    assert plain(rows) == [int(sum(row) % RING >= HALF_RING) for row in rows]


@deterministic(100)
@given(
    st.lists(ring, min_size=INPUTS - 1, max_size=INPUTS - 1), st.integers(0, 2**46), st.integers(-HALF_RING, HALF_RING)
)
def test_the_circuit_says_whether_shares_of_a_total_exceed_a_limit(
    shares: list[int], limit: int, difference: int
) -> None:
    total = limit + max(-HALF_RING + 1, min(difference, HALF_RING - 1))
    groups = [*shares, (total - sum(shares)) % RING]
    assert plain([negated(groups, limit)]) == [int(total > limit)]


@pytest.mark.parametrize("limit", [0, 1, LIMIT, 2**46 - 1])
@pytest.mark.parametrize("difference", [-HALF_RING + 1, -1, 0, 1, 2, HALF_RING - 1])
def test_the_circuit_is_right_at_the_limit_and_at_the_edges_of_the_ring(limit: int, difference: int) -> None:
    groups = [(limit + difference) % RING, 0, 0, 0, 0, 0]
    for turn in range(INPUTS):
        assert plain([negated(groups[turn:] + groups[:turn], limit)]) == [int(difference > 0)]


@pytest.mark.parametrize("place", range(INPUTS))
def test_every_bit_of_every_input_counts(place: int) -> None:
    # The sum is one below the sign bit; each single bit added carries up to it and turns it.
    rows = []
    for bit in range(RING_BITS):
        row = [0] * INPUTS
        row[place] = 1 << bit
        row[(place + 1) % INPUTS] = (HALF_RING - (1 << bit)) % RING
        rows.append(row)
    below = [[value - 1 if at == (place + 1) % INPUTS else value for at, value in enumerate(row)] for row in rows]
    below[-1][(place + 1) % INPUTS] = RING - 1
    assert plain(rows) == [1] * RING_BITS
    assert plain(below) == [0] * RING_BITS


def test_the_circuit_has_321_ands_in_ten_layers() -> None:
    layers = []

    def count(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint64]:
        layers.append(left.shape[1])
        return left & right

    exceeds(plain_bits(np.zeros((1, INPUTS), dtype=np.uint64)), count)
    assert sum(layers) == ANDS == 321
    assert len(layers) == 10


@pytest.fixture(params=["compiled", "over arrays"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Have one of the two garble."""
    chosen: Engine = Arrays() if request.param == "over arrays" else compiled()
    monkeypatch.setattr(garbling, "ENGINE", chosen)
    return chosen


# --- the hash, against another library's AES ------------------------------------------------------------------------


def pi(key: bytes, block: int) -> int:
    return int.from_bytes(AES.new(key, AES.MODE_ECB).encrypt(block.to_bytes(16, "little")), "little")


def slow_hash(key: bytes, label: int, tweak: int) -> int:
    """H(x, i) = pi(pi(x) ^ i) ^ pi(x), in plain integers."""
    once = pi(key, label)
    return pi(key, once ^ tweak) ^ once


def as_blocks(data: bytes, *shape: int) -> NDArray[np.uint64]:
    return np.frombuffer(data, dtype="<u8").reshape(*shape, 2)


@deterministic(40)
@given(
    st.binary(min_size=16, max_size=16),
    st.lists(st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 2**64 - 1)), min_size=1, max_size=8),
)
def test_the_garbling_hash_is_that_of_an_independent_aes(key: bytes, pairs: list[tuple[int, int]]) -> None:
    labels = as_blocks(b"".join(label.to_bytes(16, "little") for label, _ in pairs), len(pairs))
    hashed = _Hash([(key, len(pairs))])(labels, np.array([[tweak, 0] for _, tweak in pairs], dtype=np.uint64))
    assert [int.from_bytes(row.tobytes(), "little") for row in hashed] == [slow_hash(key, *pair) for pair in pairs]


def test_no_two_gates_or_outputs_of_a_garbling_share_a_tweak() -> None:
    lanes = 64
    tweaks = _Tweaks([lanes])
    used = np.concatenate([tweaks.of_gates(slice(ANDS)).reshape(-1, 2), tweaks.of_outputs()])
    assert len(np.unique(used, axis=0)) == len(used) == lanes * (2 * ANDS + 1)
    assert not used[:, 1].any()


def test_garblings_that_are_computed_together_have_the_tweaks_that_each_has_alone() -> None:
    together, layer = _Tweaks([1, 3, 2]), slice(7, 91)
    for at, lanes in ((0, 1), (1, 3), (4, 2)):
        alone, of = _Tweaks([lanes]), slice(at, at + lanes)
        assert np.array_equal(together.of_gates(layer)[of], alone.of_gates(layer))
        assert np.array_equal(together.of_outputs()[of], alone.of_outputs())
    assert np.array_equal(_Tweaks([1, 1]).of_gates(layer), _Tweaks([1]).of_gates(layer))


# --- half-gates in plain integers, one lane, as an oracle -----------------------------------------------------------


def slow_circuit(inputs: list[list[int]], land: Callable[[int, int], int]) -> int:
    """Describe the circuit a second time, gate by gate on single wires, and return its output wire."""
    low = RING_BITS - 1

    def save_carries(triples: list[tuple[list[int], list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
        saved = []
        for a, b, c in triples:
            majority = [land(a[bit] ^ c[bit], b[bit] ^ c[bit]) ^ c[bit] for bit in range(low)]
            saved.append(([x ^ y ^ z for x, y, z in zip(a, b, c, strict=True)], [0, *majority]))
        return saved

    (sum_1, carry_1), (sum_2, carry_2) = save_carries([(inputs[0], inputs[1], inputs[2]), tuple(inputs[3:])])
    ((one, two),) = save_carries([(sum_1, sum_2, carry_1)])
    ((one, two),) = save_carries([(one, two, carry_2)])
    generate = [land(one[bit], two[bit]) for bit in range(low)]
    propagate = [left ^ right for left, right in zip(one, two, strict=True)]
    top, spans = propagate.pop(), list(zip(generate, propagate, strict=True))
    while len(spans) > 1:
        pairs = [(spans[at], spans[at + 1]) for at in range(0, len(spans) - 1, 2)]
        carried = [land(high[1], low_[0]) ^ high[0] for low_, high in pairs]
        through = [0, *(land(high[1], low_[1]) for low_, high in pairs[1:])]
        spans = [*zip(carried, through, strict=True), *spans[2 * len(pairs) :]]
    return top ^ spans[0][0]


def slow_evaluate(key: bytes, inputs: list[list[int]], table: list[tuple[int, int]], lane: int = 0) -> int:
    """Evaluate half-gates (Zahur, Rosulek, Evans 2015) wire by wire; return the active output label."""
    gates = iter(enumerate(table))

    def land(left: int, right: int) -> int:
        gate, (generator, evaluator) = next(gates)
        tweak = 1024 * lane + 2 * gate
        active = slow_hash(key, left, tweak) ^ slow_hash(key, right, tweak + 1)
        if left & 1:
            active ^= generator
        if right & 1:
            active ^= evaluator ^ left
        return active

    output = slow_circuit(inputs, land)
    assert next(gates, None) is None
    return output


def zero_labels(lanes: int, name: bytes) -> ZeroLabels:
    draw = seeded(name)
    offsets = draw(16 * lanes)
    return ZeroLabels(draw(16 * lanes * INPUTS * RING_BITS), offsets)


@deterministic(60)
@given(numbers)
def test_the_circuit_told_twice_is_one_circuit(row: list[int]) -> None:
    bits = [[value >> bit & 1 for bit in range(RING_BITS)] for value in row]
    assert [slow_circuit(bits, int.__and__)] == plain([row])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("difference", [-12_345, 0, 1])
def test_a_slow_evaluator_with_another_aes_opens_what_the_fast_one_opens(
    seed: int, difference: int, engine: Engine
) -> None:
    draw = seeded((seed, difference))
    groups = [int.from_bytes(draw(6), "big") for _ in range(INPUTS)]
    limit = (sum(groups) - difference) % RING
    row = negated(groups, limit)
    key, wires, lanes = draw(16), zero_labels(2, b"slow"), 2  # the second lane, so that its tweaks differ from gates'
    table, outputs = engine.garble([(key, lanes)], wires.labels, wires.offsets, lanes * (b"\x55" * 16 + b"\xaa" * 16))
    active = wires.activate([0] * INPUTS + row)

    words = iter(numbers_of(active[len(active) // 2 :]))
    labels = [[next(words) for _ in range(RING_BITS)] for _ in range(INPUTS)]
    halves = numbers_of(table[len(table) // 2 :])
    output = slow_evaluate(key, labels, list(zip(halves[::2], halves[1::2], strict=True)), lane=1)
    opened = numbers_of(outputs)[2 + (output & 1)] ^ slow_hash(key, output, 1024 + 1023)
    expected = b"\xaa" * 16 if difference > 0 else b"\x55" * 16
    assert opened.to_bytes(16, "little") == expected
    assert engine.evaluate([(key, lanes)], active, table, outputs)[16:] == expected


def numbers_of(data: bytes) -> list[int]:
    """Return labels as plain integers."""
    return [int.from_bytes(data[at : at + 16], "little") for at in range(0, len(data), 16)]


# --- garbled is plain ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2, 3, 16, 100, 1000])
def test_garbled_lanes_open_as_the_plain_circuit_says(lanes: int, engine: Engine) -> None:
    draw = seeded(lanes)
    rows = [
        [int.from_bytes(draw(6), "big") if lane % 3 else (lane * 7 + place) % 5 for place in range(INPUTS)]
        for lane in range(lanes)
    ]
    rows[0] = [HALF_RING - 1, 1, 0, 0, 0, 0]
    wires, key = zero_labels(lanes, b"plain"), draw(16)
    table, outputs = engine.garble([(key, lanes)], wires.labels, wires.offsets, lanes * (b"0" * 16 + b"1" * 16))
    active = wires.activate([value for row in rows for value in row])
    assert engine.evaluate([(key, lanes)], active, table, outputs) == b"".join(b"%d" % bit * 16 for bit in plain(rows))


def test_lanes_have_tables_of_their_own(engine: Engine) -> None:
    wires = zero_labels(1, b"own")
    table, _ = engine.garble([(bytes(16), 2)], 2 * wires.labels, 2 * wires.offsets, bytes(64))
    blocks = numbers_of(table)
    assert len(set(blocks)) == len(blocks) == 2 * 2 * ANDS  # tweaks alone keep equal lanes apart


def test_the_last_bit_of_an_offset_is_one_whatever_was_drawn(engine: Engine) -> None:
    # Else the select bits of a wire's two labels would not differ, and both outputs would stand in one place.
    wires, key, said = zero_labels(1, b"even"), bytes(16), b"0" * 16 + b"1" * 16
    even, odd = (bytes([wires.offsets[0] & 0xFE | bit]) + wires.offsets[1:] for bit in (0, 1))
    assert engine.garble([(key, 1)], wires.labels, even, said) == engine.garble([(key, 1)], wires.labels, odd, said)
    for value in (0, RING - 1):
        row = [value, 0, 0, 0, 0, 0]
        assert engine.activate(wires.labels, even, row) == engine.activate(wires.labels, odd, row)
    ones = engine.activate(wires.labels, even, [RING - 1] * INPUTS)
    assert {a ^ b for a, b in zip(numbers_of(wires.labels), numbers_of(ones), strict=True)} == set(numbers_of(odd))


def test_labels_and_offsets_do_not_print() -> None:
    assert repr(zero_labels(1, b"print")) == "ZeroLabels()"


# --- compiled, and over arrays --------------------------------------------------------------------------------------


def compiled() -> Compiled:
    engine = half_gates_compiled.load()
    assert engine is not None, "half_gates.c is not built (make setup, with a C compiler), or Python has no OpenSSL"
    return engine


def test_what_is_compiled_is_what_garbles() -> None:
    assert garbling.ENGINE.name == compiled().name == "compiled"


@deterministic(60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any), st.integers(0, 2**32))
def test_compiled_and_over_arrays_are_alike_to_the_bit(counts: list[int], seed: int) -> None:
    draw, lanes = seeded(seed), sum(counts)
    keys, wires, said = [(draw(16), count) for count in counts], zero_labels(lanes, draw(16)), draw(32 * lanes)
    garbled, other = (engine.garble(keys, wires.labels, wires.offsets, said) for engine in (compiled(), Arrays()))
    assert garbled == other
    rows = [int.from_bytes(draw(6), "big") for _ in range(INPUTS * lanes)]
    active, other = (engine.activate(wires.labels, wires.offsets, rows) for engine in (compiled(), Arrays()))
    assert active == other
    opened, other = (engine.evaluate(keys, active, *garbled) for engine in (compiled(), Arrays()))
    assert opened == other
    bits = plain([rows[at : at + INPUTS] for at in range(0, len(rows), INPUTS)])
    assert opened == b"".join(said[32 * lane + 16 * bit :][:16] for lane, bit in enumerate(bits))


@deterministic(40)
@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 300)), min_size=1, max_size=5))
def test_streams_are_aes_256_ctr_from_zero(wanted: list[tuple[bytes, int]]) -> None:
    expected = [AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0).encrypt(bytes(size)) for key, size in wanted]
    for engine in (compiled(), Arrays()):
        assert engine.streams(wanted) == expected


def test_memory_of_another_size_is_refused_before_it_is_read() -> None:
    engine, wires, key, said = compiled(), zero_labels(2, b"size"), bytes(16), bytes(64)
    labels, offsets, row = wires.labels, wires.offsets, [0] * INPUTS
    table, outputs = engine.garble([(key, 2)], labels, offsets, said)
    bad: list[Callable[[], object]] = [
        lambda: engine.garble([(key, 3)], labels, offsets, said),
        lambda: engine.garble([(key, 1), (key, 2)], labels, offsets, said),
        lambda: engine.garble([(key, 2)], labels, offsets[:16], said),
        lambda: engine.garble([(key, 2)], labels[1:], offsets, said),
        lambda: engine.garble([(key, 2)], bytearray(labels), offsets, said),  # type: ignore[arg-type]  the point
        lambda: engine.garble([(key, 2)], labels, offsets, said[1:]),
        lambda: engine.garble([(key[:15], 2)], labels, offsets, said),
        lambda: engine.garble([(key, 3), (key, -1)], labels, offsets, said),
        lambda: engine.streams([(bytes(32), 5), (bytes(32), -1)]),
        lambda: engine.streams([(bytes(31), 5)]),
        lambda: engine.streams([(bytes(32), (1 << 32) + 5)]),
        lambda: engine.activate(labels, offsets, row),
        lambda: engine.activate(labels, offsets[:16], row),
        lambda: engine.activate(labels, offsets[:-1], 2 * row),
        lambda: engine.activate(labels[:-16], offsets, 2 * row),
        lambda: engine.evaluate([(key, 2)], labels, table[:-1], outputs),
        lambda: engine.evaluate([(key, 2)], labels[:-16], table, outputs),
        lambda: engine.evaluate([(key, 2)], labels, table, outputs[:-1]),
        lambda: engine.evaluate([(key, 1)], labels, table, outputs),
        lambda: engine.evaluate([(key, 3), (key, -1)], labels, table, outputs),
    ]
    for call in bad:
        with pytest.raises(ValueError, match=r"another (size|number)|(16|32) bytes|negative"):
            call()


def test_a_build_that_does_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A gate's right input taken for its left: what the library of another version might do.
    honest = half_gates_arrays.exceeds
    monkeypatch.setattr(half_gates_arrays, "exceeds", lambda x, land: honest(x, lambda left, right: land(right, left)))
    with pytest.raises(RuntimeError, match="build it anew"):
        half_gates_compiled.load()


@pytest.mark.parametrize("missing", ["_LIBRARY", "_OPENSSL", "_hashlib", "AES"])
def test_without_the_library_or_openssl_labels_are_garbled_over_arrays(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "_hashlib":
        monkeypatch.setitem(sys.modules, "_hashlib", None)
    elif missing == "AES":
        monkeypatch.setattr(Compiled, "garble", lambda *_: half_gates_compiled._require(0))
    else:
        absent = {"_LIBRARY": "absent.so", "_OPENSSL": ("EVP_absent",)}[missing]
        monkeypatch.setattr(half_gates_compiled, missing, absent)
    assert half_gates_compiled.load() is None


def test_a_build_of_another_interface_is_not_even_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_gates_compiled, "_BIND", "half_gates_bind_0")
    with pytest.raises(RuntimeError, match="build it anew"):
        half_gates_compiled.load()


# --- garbled by four custodians from real shares --------------------------------------------------------------------

EVERY_A = [Chosen(slots, size) for size in (5, 6, 7) for slots in combinations(range(size), 4)]


@pytest.mark.parametrize("chosen", EVERY_A, ids=lambda chosen: f"{chosen.slots} of {chosen.committee_size}")
def test_at_the_limit_is_within_and_one_fen_more_exceeds_for_every_a(chosen: Chosen) -> None:
    size = chosen.committee_size
    deposits = [Shared(LIMIT // size + 7 * slot, slot) for slot in range(size)]
    rest = LIMIT - sum(deposit.value for deposit in deposits)
    four = FourCustodians(chosen, (LIMIT, LIMIT, LIMIT, 0, 0))
    lanes = [
        [*deposits, Shared(rest, 0)],
        [*deposits, Shared(rest + 1, size - 1)],
        [*deposits, Shared(rest + 1, 2), Shared(-1, 1)],
        [],
        [Shared(1, 3)],
    ]
    assert four.evaluate(four.parts(lanes)) == [WITHIN, EXCEEDS, WITHIN, WITHIN, EXCEEDS]


@pytest.mark.parametrize("limit", [0, LIMIT, 2**46 - 1])
def test_the_ring_carries_right_up_to_its_edges(limit: int) -> None:
    differences = [-HALF_RING + 1, -HALF_RING // 2, -1, 0, 1, HALF_RING // 2, HALF_RING - 1]
    four = FourCustodians(Chosen((0, 2, 3, 5), 6), (limit,) * len(differences))
    verdicts = four.evaluate(four.parts([[Shared(limit + difference, 1)] for difference in differences]))
    assert verdicts == [EXCEEDS if difference > 0 else WITHIN for difference in differences]


@deterministic(60)
@given(
    st.sampled_from(EVERY_A),
    st.lists(st.tuples(st.integers(-(10**12), 10**12), st.integers(0, 4)), max_size=6),
    st.integers(0, 2**46 - 1) | st.just(LIMIT),
)
def test_four_custodians_garble_the_sum_of_any_deposits_and_corrections(
    chosen: Chosen, deposits: list[tuple[int, int]], limit: int
) -> None:
    four = FourCustodians(chosen, (limit,))
    total = sum(value for value, _ in deposits)
    assert four.evaluate(four.parts([[Shared(*deposit) for deposit in deposits]])) == [
        EXCEEDS if total > limit else WITHIN
    ]


@pytest.mark.parametrize("lanes", [1, 7, 1000])
def test_many_lanes_are_answered_each_for_itself(lanes: int) -> None:
    limits = tuple(LIMIT + lane for lane in range(lanes))
    four = FourCustodians(Chosen((1, 2, 4, 5), 6), limits)
    offsets = [(lane * 7919) % 5 - 2 for lane in range(lanes)]
    held = [
        [Shared(limit + offset, lane % 6)] for lane, (limit, offset) in enumerate(zip(limits, offsets, strict=True))
    ]
    assert four.evaluate(four.parts(held)) == [EXCEEDS if offset > 0 else WITHIN for offset in offsets]
