"""Half-gates over arrays of labels: all gates of a layer, of all lanes, in a dozen array operations.

What `half_gates.c` does a lane at a time, told once more: that is what runs where it has been built, and this is what
it must equal to the bit. Shapes and algebra are those of `protocol.garbling`.
"""

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol import kdf
from protocol.circuit import ANDS, INPUTS, Wires, exceeds, plain_bits
from protocol.sharing import RING_BITS

TWEAKS_PER_LANE = 1024
"""Two a gate (642), then one for the outputs: each lane has a range of tweaks of its own."""
_OUTPUT_TWEAK = np.array([1023, 0], dtype=np.uint64)
_ONE = np.uint64(1)
_LAST_BIT = np.array([1, 0], dtype=np.uint64)
_WORD = np.dtype("<u8")
_BLOCK_BYTES = 16

Block = NDArray[np.uint64]
"""128 bits as two little-endian uint64; the last axis."""
Keys = Sequence[tuple[bytes, int]]
"""AES keys, each with the number of lanes that are under it: garblings of their own, whose arrays are one."""
Streams = Sequence[tuple[bytes, int]]
"""Keys, each with the number of bytes that are wanted of its stream."""


class Arrays:
    """Garbles and evaluates by NumPy; see `protocol.garbling.Engine`."""

    name = "over arrays"

    def streams(self, wanted: Streams) -> list[bytes]:
        """Return of each key (32 bytes) its stream, `protocol.kdf.stream`."""
        return [kdf.stream(key, size) for key, size in wanted]

    def activate(self, labels: bytes, offsets: bytes, numbers: Sequence[int]) -> bytes:
        """Return the labels of the bits of numbers, six a lane."""
        drawn = _offsets(offsets)
        bits = plain_bits(np.array(numbers, dtype=np.uint64).reshape(len(drawn), INPUTS))
        active: Wires = _labels(labels, len(drawn)) ^ (drawn[:, None, None] * bits)
        return active.tobytes()

    def garble(self, keys: Keys, labels: bytes, offsets: bytes, said: bytes) -> tuple[bytes, bytes]:
        """Return table and encrypted outputs."""
        drawn = _offsets(offsets)
        run = _Garbling(keys, _labels(labels, len(drawn)), drawn)
        by_bit = run.pads ^ _blocks(said, len(drawn), 2)
        rows, lane, zero = np.empty_like(by_bit), np.arange(len(drawn)), _row(run.output)
        rows[lane, zero] = by_bit[:, 0]
        rows[lane, 1 - zero] = by_bit[:, 1]  # an offset's last bit is 1
        return run.rows.tobytes(), rows.tobytes()

    def evaluate(self, keys: Keys, labels: bytes, table: bytes, outputs: bytes) -> bytes:
        """Return what the outputs say."""
        lanes = sum([count for _, count in keys])
        run = _Evaluation(keys, _labels(labels, lanes), _blocks(table, lanes, ANDS, 2))
        said: Block = _blocks(outputs, lanes, 2)[np.arange(lanes), _row(run.output)] ^ run.pads
        return said.tobytes()


def _blocks(data: bytes, *shape: int) -> Wires:
    return np.frombuffer(data, _WORD).reshape(*shape, 2)


def _labels(data: bytes, lanes: int) -> Wires:
    return _blocks(data, lanes, INPUTS, RING_BITS)


def _offsets(data: bytes) -> Block:
    """Return offsets as they are drawn, but for their last bits: select bits of a wire's two labels differ."""
    return _blocks(data, len(data) // _BLOCK_BYTES) | _LAST_BIT


def _row(output: Block) -> NDArray[np.intp]:
    """Return the row of each lane's outputs that its output label stands for, (lanes,)."""
    return (output[:, 0] & _ONE).astype(np.intp)


class _Hash:
    """H(x, i) for arrays of labels, lanes first, under the AES key of each lane."""

    def __init__(self, keys: Keys) -> None:
        # ECB over independent blocks is the fixed-key permutation itself, not a mode of encryption here.
        self._ciphers = [(Cipher(algorithms.AES(key), modes.ECB()).encryptor(), lanes) for key, lanes in keys]  # noqa: S305

    def __call__(self, labels: Wires, tweaks: Wires) -> Wires:
        """Return the hashes of contiguous labels, (lanes, ..., 2), under tweaks of 128 bits that fit their shape."""
        once = self._pi(labels)
        return self._pi(once ^ tweaks) ^ once

    def _pi(self, blocks: Wires) -> Wires:
        data = blocks.tobytes()
        if len(self._ciphers) == 1:
            permuted = self._ciphers[0][0].update(data)
        else:
            view, a_lane, at, pieces = memoryview(data), len(data) // len(blocks), 0, []
            for cipher, lanes in self._ciphers:
                pieces.append(cipher.update(view[at : at + lanes * a_lane]))
                at += lanes * a_lane
            permuted = b"".join(pieces)
        return np.frombuffer(permuted, _WORD).reshape(blocks.shape)


def _select(labels: Wires) -> Wires:
    """Return the select bit of each label as 0 or 1, keeping the last axis (of 1)."""
    return labels[..., :1] & _ONE


def _gates() -> Wires:
    """Return the tweaks of a lane's gates, (2, 321, 2): the generator's half's, then the evaluator's, one more."""
    tweaks = np.zeros((2, ANDS, 2), dtype=np.uint64)
    tweaks[..., 0] = np.arange(2 * ANDS, dtype=np.uint64).reshape(ANDS, 2).T
    tweaks.flags.writeable = False
    return tweaks


_GATES = _gates()


class _Tweaks:
    """The tweaks of garblings with so many lanes each; lanes are counted anew under each AES key."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._lanes = np.zeros((sum(counts), 2), dtype=np.uint64)
        self._lanes[:, 0] = [TWEAKS_PER_LANE * lane for count in counts for lane in range(count)]
        self._is_one_each = max(counts) == 1

    def of_gates(self, layer: slice) -> Wires:
        """Return those of a layer, (lanes, 2, gates, 2), or with one lane for all where they have the same."""
        gates = _GATES[None, :, layer]
        return gates if self._is_one_each else gates ^ self._lanes[:, None, None]

    def of_outputs(self) -> Wires:
        """Return those of the outputs, (lanes, 2)."""
        return self._lanes ^ _OUTPUT_TWEAK


class _Garbling:
    def __init__(self, keys: Keys, labels: Wires, offsets: Block) -> None:
        self._hash = _Hash(keys)
        self._offsets = offsets[:, None, :]
        self._gates = 0
        self._tweaks = _Tweaks([lanes for _, lanes in keys])
        self.rows = np.empty((len(labels), ANDS, 2, 2), dtype=np.uint64)
        self.output = exceeds(labels, self.land)
        both = np.stack([self.output, self.output ^ offsets], axis=1)
        self.pads = self._hash(both, self._tweaks.of_outputs()[:, None])

    def land(self, left: Wires, right: Wires) -> Wires:
        """Garble one layer of ANDs: zero labels in, zero labels out, (lanes, gates, 2)."""
        lanes, gates, _ = left.shape
        layer = slice(self._gates, self._gates + gates)
        self._gates += gates
        labels = np.empty((lanes, 2, 2, gates, 2), dtype=np.uint64)  # by bit, then left and right
        zeros = labels[:, 0]
        zeros[:, 0], zeros[:, 1] = left, right
        np.bitwise_xor(zeros, self._offsets[:, None], out=labels[:, 1])
        hashed = self._hash(labels, self._tweaks.of_gates(layer)[:, None])
        select = _select(zeros)
        halves = hashed[:, 0] ^ hashed[:, 1]
        halves[:, 0] ^= select[:, 1] * self._offsets  # the generator's; the evaluator's is sent with the left label
        rows = self.rows[:, layer]
        rows[:, :, 0] = halves[:, 0]
        np.bitwise_xor(halves[:, 1], left, out=rows[:, :, 1])
        chosen: Wires = hashed[:, 0] ^ select * halves
        zero: Wires = chosen[:, 0] ^ chosen[:, 1]
        return zero


class _Evaluation:
    def __init__(self, keys: Keys, labels: Wires, rows: Wires) -> None:
        self._hash = _Hash(keys)
        self._rows = rows
        self._gates = 0
        self._tweaks = _Tweaks([lanes for _, lanes in keys])
        self.output = exceeds(labels, self.land)
        self.pads = self._hash(self.output, self._tweaks.of_outputs())

    def land(self, left: Wires, right: Wires) -> Wires:
        """Evaluate one layer of ANDs: active labels in, active labels out, (lanes, gates, 2)."""
        lanes, gates, _ = left.shape
        layer = slice(self._gates, self._gates + gates)
        self._gates += gates
        labels = np.empty((lanes, 2, gates, 2), dtype=np.uint64)
        labels[:, 0], labels[:, 1] = left, right
        halves = np.empty_like(labels)
        rows = self._rows[:, layer]
        halves[:, 0] = rows[:, :, 0]
        np.bitwise_xor(rows[:, :, 1], left, out=halves[:, 1])
        chosen = self._hash(labels, self._tweaks.of_gates(layer))
        chosen ^= _select(labels) * halves
        active: Wires = chosen[:, 0] ^ chosen[:, 1]
        return active
