"""Half-gates garbling (Zahur, Rosulek, Evans 2015), with free XOR and point-and-permute.

The algebra, said once: a wire has a zero label `W0` and, with the lane's secret offset `R` (whose last bit is 1), the
label of bit v is `W0 ^ v*R`. The last bit of a label is its select bit. The evaluator holds one active label a wire.

The hash is `H(x, i) = pi(pi(x) ^ i) ^ pi(x)` with pi = AES-128 under a key of this garbling alone (tweakable circular
correlation robust: Guo, Katz, Wang, Yu 2020, section 7.4). Each AND takes two tweaks that nothing else takes.

Garbler and evaluator run the same circuit (`protocol.circuit`), their layers being mirror images: by compiled code a
lane at a time (`half_gates.c`), or where that is not built over arrays of all lanes (`protocol.half_gates_arrays`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from protocol import half_gates_compiled
from protocol.half_gates_arrays import Arrays, Keys, Streams

LABEL_BYTES = 16
AES_KEY_BYTES = 16


class Engine(Protocol):
    """What garbles and evaluates. All is bytes, of lanes one after the other:

    - `labels`: of each lane six numbers of 48 bits, the lowest first, 16 bytes a bit (4,608 bytes);
    - `offsets`: R of each lane, 16 bytes; its last bit is taken as 1, whatever was drawn;
    - `said`: of each lane the 16 bytes that the output says where it is 0, and where it is 1 (32 bytes);
    - `table`: of each lane 321 gates, the generator's half and the evaluator's, 16 bytes each (10,272 bytes);
    - `outputs`: `said` under the output labels' hashes, in the order of their select bits (32 bytes).

    Raises `ValueError` where a size is another.
    """

    name: str

    def streams(self, wanted: Streams) -> list[bytes]:
        """Return of each key (32 bytes) so many bytes of its stream (`protocol.kdf.stream`)."""

    def activate(self, labels: bytes, offsets: bytes, numbers: Sequence[int]) -> bytes:
        """Return the labels, as `labels`, of the bits of six numbers a lane."""

    def garble(self, keys: Keys, labels: bytes, offsets: bytes, said: bytes) -> tuple[bytes, bytes]:
        """Return `table` and `outputs`; `labels` are those of bit 0."""

    def evaluate(self, keys: Keys, labels: bytes, table: bytes, outputs: bytes) -> bytes:
        """Return of each lane the 16 bytes that its output says; `labels` are active. Nothing else is learnt."""


ENGINE: Engine = half_gates_compiled.load() or Arrays()


@dataclass(frozen=True)
class ZeroLabels:
    """The garbler's: labels of bit 0, and the offset of each lane, as in `Engine`. Secret."""

    labels: bytes = field(repr=False)
    offsets: bytes = field(repr=False)

    def activate(self, numbers: Sequence[int]) -> bytes:
        """Return the labels of the bits of ring elements, six a lane: active labels, which say nothing of the bits."""
        return ENGINE.activate(self.labels, self.offsets, numbers)
