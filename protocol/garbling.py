"""Half-gates garbling over arrays of labels (Zahur, Rosulek, Evans 2015), with free XOR and point-and-permute.

The algebra, said once: a wire has a zero label `W0` and, with the lane's secret offset `R` (whose last bit is 1), the
label of bit v is `W0 ^ v*R`. The last bit of a label is its select bit. The evaluator holds one active label a wire.

The hash is `H(x, i) = pi(pi(x) ^ i) ^ pi(x)` with pi = AES-128 under a key of this garbling alone (tweakable circular
correlation robust: Guo, Katz, Wang, Yu 2020, section 7.4). Each AND takes two tweaks that nothing else takes.

Garbler and evaluator run the same circuit (`protocol.circuit`); `Garbler.land` and `Evaluator.land` are mirror images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol.circuit import ANDS, Wires, exceeds
from protocol.errors import ProtocolError

LABEL_BYTES = 16
AES_KEY_BYTES = 16
TWEAKS_PER_LANE = 1024
"""Two a gate (642), then one for the outputs: each lane has a range of tweaks of its own."""
_OUTPUT_TWEAK = np.array([1023, 0], dtype=np.uint64)
_ONE = np.uint64(1)
_WORD = np.dtype("<u8")

Block = NDArray[np.uint64]
"""128 bits as two little-endian uint64; the last axis."""
Keys = Sequence[tuple[bytes, int]]
"""AES keys, each with the number of lanes that are under it: garblings of their own, whose arrays are one."""


@dataclass(frozen=True)
class ZeroLabels:
    """The garbler's: labels of bit 0, (lanes, ..., 2), and the offset of each lane, (lanes, 2). Secret."""

    labels: Wires = field(repr=False)
    offsets: Wires = field(repr=False)

    def activate(self, bits: Wires) -> "ActiveLabels":
        """Return the labels of these bits, shape of `labels` with a last axis of 1."""
        spread = self.offsets.reshape(self.offsets.shape[0], *([1] * (self.labels.ndim - 2)), 2)
        return ActiveLabels(self.labels ^ (spread * bits))


@dataclass(frozen=True)
class ActiveLabels:
    """The evaluator's: one label a wire, (lanes, ..., 2). Says nothing about the bits."""

    labels: Wires = field(repr=False)


@dataclass(frozen=True)
class Table:
    """A garbled circuit's gates, (lanes, 321, 2, 2): per gate the generator's and the evaluator's half."""

    rows: Wires = field(repr=False)

    def encode(self) -> bytes:
        """Return 10,272 bytes a lane."""
        return self.rows.tobytes()

    @classmethod
    def decode(cls, data: bytes, lanes: int) -> "Table":
        """Read a table for that many lanes; refuse another length."""
        if len(data) != lanes * ANDS * 2 * LABEL_BYTES:
            raise ProtocolError("malformed", "a garbled table has the wrong length")
        return cls(np.frombuffer(data, dtype="<u8").reshape(lanes, ANDS, 2, 2))


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


class Garbler:
    """Garbles the comparison circuit for all lanes at once."""

    def __init__(self, keys: Keys, inputs: ZeroLabels) -> None:
        self._hash = _Hash(keys)
        self._offsets = inputs.offsets[:, None, :]
        self._gates = 0
        self._tweaks = _Tweaks([lanes for _, lanes in keys])
        self._rows = np.empty((len(inputs.labels), ANDS, 2, 2), dtype=np.uint64)
        self._output = exceeds(inputs.labels, self.land)
        self.table = Table(self._rows)

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
        rows = self._rows[:, layer]
        rows[:, :, 0] = halves[:, 0]
        np.bitwise_xor(halves[:, 1], left, out=rows[:, :, 1])
        chosen: Wires = hashed[:, 0] ^ select * halves
        zero: Wires = chosen[:, 0] ^ chosen[:, 1]
        return zero

    def encrypt_outputs(self, when_zero: Block, when_one: Block) -> Block:
        """Return two blocks a lane, (lanes, 2, 2), ordered by select bit: each opens under one output label."""
        lanes = self._output.shape[0]
        tweaks = self._tweaks.of_outputs()
        rows = np.empty((lanes, 2, 2), dtype=np.uint64)
        lane = np.arange(lanes)
        for bit, block in ((0, when_zero), (1, when_one)):
            active = self._output ^ np.uint64(bit) * self._offsets[:, 0]
            rows[lane, _select(active)[:, 0].astype(np.intp)] = self._hash(active, tweaks) ^ block
        return rows


class Evaluator:
    """Evaluates a garbled comparison: one active label a wire, nothing learnt but which output row opens."""

    def __init__(self, keys: Keys, inputs: ActiveLabels, table: Table) -> None:
        self._hash = _Hash(keys)
        self._rows = table.rows
        self._gates = 0
        self._tweaks = _Tweaks([lanes for _, lanes in keys])
        self._output = exceeds(inputs.labels, self.land)

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

    def open_outputs(self, rows: Block) -> Block:
        """Return the block that each lane's active output label opens, (lanes, 2)."""
        chosen = rows[np.arange(len(rows)), _select(self._output)[:, 0].astype(np.intp)]
        return chosen ^ self._hash(self._output, self._tweaks.of_outputs())
