"""Half-gates garbling (Zahur, Rosulek, Evans 2015), with free XOR and point-and-permute.

The algebra, said once: a wire has a zero label `W0` and, with the lane's secret offset `R` (whose last bit is 1), the
label of bit v is `W0 ^ v*R`. The last bit of a label is its select bit. The evaluator holds one active label a wire.

The hash is `H(x, i) = pi(pi(x) ^ i) ^ pi(x)` with pi = AES-128 under a key of this garbling alone (tweakable circular
correlation robust: Guo, Katz, Wang, Yu 2020, section 7.4). Each AND takes two tweaks that nothing else takes.

Garbler and evaluator run the same circuit (`protocol.circuit`), their layers being mirror images: by compiled code a
lane at a time (`half_gates.c`), or where that is not built over arrays of all lanes (`protocol.half_gates_arrays`).
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol import half_gates_compiled
from protocol.circuit import ANDS, Wires
from protocol.errors import ProtocolError
from protocol.half_gates_arrays import Arrays, Block, Bytes, Keys, Streams

LABEL_BYTES = 16
AES_KEY_BYTES = 16
_ONE = np.uint64(1)


class Engine(Protocol):
    """What garbles and evaluates; labels are as in `ZeroLabels` and `ActiveLabels`, in one stretch of memory."""

    name: str

    def streams(self, wanted: Streams) -> list[Bytes]:
        """Return of each key (32 bytes) so many bytes of its stream (`protocol.kdf.stream`), the caller's own."""

    def activate(self, labels: Wires, offsets: Block, numbers: Wires) -> Wires:
        """Return the labels of the bits of numbers, (lanes, 6)."""

    def garble(self, keys: Keys, labels: Wires, offsets: Block) -> tuple[Wires, Block, Block]:
        """Return the table as in `Table`, the output zero labels (lanes, 2), and of both output labels their hashes, by
        bit (lanes, 2, 2).
        """

    def evaluate(self, keys: Keys, labels: Wires, rows: Wires) -> tuple[Block, Block]:
        """Return (active output labels (lanes, 2), their hashes (lanes, 2))."""


ENGINE: Engine = half_gates_compiled.load() or Arrays()


@dataclass(frozen=True)
class ZeroLabels:
    """The garbler's: labels of bit 0, (lanes, ..., 2), and the offset of each lane, (lanes, 2). Secret."""

    labels: Wires = field(repr=False)
    offsets: Wires = field(repr=False)

    def activate(self, numbers: Wires) -> "ActiveLabels":
        """Return the labels of the bits of ring elements, (lanes, 6)."""
        return ActiveLabels(ENGINE.activate(self.labels, self.offsets, numbers))


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


def _select(labels: Block) -> NDArray[np.intp]:
    """Return the select bit of each label, (lanes,)."""
    return (labels[:, 0] & _ONE).astype(np.intp)


class Garbler:
    """Garbles the comparison circuit for all lanes at once."""

    def __init__(self, keys: Keys, inputs: ZeroLabels) -> None:
        rows, self._output, self._pads = ENGINE.garble(keys, inputs.labels, inputs.offsets)
        self.table = Table(rows)

    def encrypt_outputs(self, when_zero: Block, when_one: Block) -> Block:
        """Return two blocks a lane, (lanes, 2, 2), ordered by select bit: each opens under one output label."""
        rows, lane, zero = np.empty_like(self._pads), np.arange(len(self._pads)), _select(self._output)
        rows[lane, zero] = self._pads[:, 0] ^ when_zero
        rows[lane, 1 - zero] = self._pads[:, 1] ^ when_one  # an offset's last bit is 1
        return rows


class Evaluator:
    """Evaluates a garbled comparison: one active label a wire, nothing learnt but which output row opens."""

    def __init__(self, keys: Keys, inputs: ActiveLabels, table: Table) -> None:
        self._output, self._pads = ENGINE.evaluate(keys, inputs.labels, table.rows)

    def open_outputs(self, rows: Block) -> Block:
        """Return the block that each lane's active output label opens, (lanes, 2)."""
        opened: Block = rows[np.arange(len(rows)), _select(self._output)] ^ self._pads
        return opened
