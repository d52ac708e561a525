"""The comparison circuit, described once for garbling, evaluating and plain computing (SPEC.md, section 6.1).

Input: six 48-bit numbers a lane, `limit - x_1`, `-x_2`, ..., `-x_6` mod 2^48. Output: the sign bit of their sum,
which is 1 exactly when x_1 + ... + x_6 > limit, while |limit - total| < 2^47.

Wires are arrays of shape (lanes, numbers, 48, W), bit 0 the least significant: W is 2 for labels of 128 bits held as
two uint64, 1 for plain bits. XOR is the array's own; AND is handed in and works on shape (lanes, gates, W). Carry-save
adders bring six numbers to two in three layers; a tree of (generate, propagate) pairs brings the carry into the top
bit in six more. All gates of a layer are one call: ten calls for 321 ANDs a lane, whatever the number of lanes.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from protocol.sharing import GROUPS, RING_BITS

Wires = NDArray[np.uint64]
And = Callable[[Wires, Wires], Wires]

INPUTS = len(GROUPS)
_LOW = RING_BITS - 1
"""Bits below the sign bit: the carry out of the sign bit is never needed."""
ANDS = 4 * _LOW + _LOW + sum(2 * (width // 2) - 1 for width in (47, 24, 12, 6, 3, 2))
"""AND gates a lane: 321."""


def exceeds(numbers: Wires, land: And) -> Wires:
    """Return the sign bit's wire, shape (lanes, W), of the sum of `numbers`, shape (lanes, 6, 48, W)."""
    sums, carries = _save_carries(numbers[:, 0::3], numbers[:, 1::3], numbers[:, 2::3], land)
    one, two = _save_carries(sums[:, :1], sums[:, 1:], carries[:, :1], land)
    one, two = _save_carries(one, two, carries[:, 1:], land)
    left, right = one[:, 0], two[:, 0]
    propagate = left ^ right
    carry = _top_carry(land(left[:, :_LOW], right[:, :_LOW]), propagate[:, :_LOW], land)
    return propagate[:, _LOW] ^ carry


def _save_carries(a: Wires, b: Wires, c: Wires, land: And) -> tuple[Wires, Wires]:
    """Return (s, k) with a + b + c = s + k mod 2^48, each of shape (lanes, numbers, 48, W)."""
    lanes, count, _, words = a.shape
    a_xor_c = a ^ c
    left, right = a_xor_c[:, :, :_LOW], (b ^ c)[:, :, :_LOW]
    gates = (lanes, count * _LOW, words)
    majority = land(left.reshape(gates), right.reshape(gates)).reshape(left.shape) ^ c[:, :, :_LOW]
    carries = np.zeros_like(a)
    carries[:, :, 1:] = majority
    return a_xor_c ^ b, carries


def _top_carry(generate: Wires, propagate: Wires, land: And) -> Wires:
    """Return the carry out of all bits: (G, P) of neighbours combine as (Gh ^ Ph*Gl, Ph*Pl)."""
    while (width := generate.shape[1]) > 1:
        pairs = width // 2
        low, high = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        # The lowest block's own propagate is never used: nothing carries into bit 0.
        products = land(
            np.concatenate([propagate[:, high], propagate[:, high][:, 1:]], axis=1),
            np.concatenate([generate[:, low], propagate[:, low][:, 1:]], axis=1),
        )
        rest = slice(2 * pairs, width)
        carried = generate[:, high] ^ products[:, :pairs]
        unused = propagate[:, :1]
        generate = np.concatenate([carried, generate[:, rest]], axis=1)
        propagate = np.concatenate([unused, products[:, pairs:], propagate[:, rest]], axis=1)
    return generate[:, 0]


def plain_bits(numbers: NDArray[np.uint64]) -> Wires:
    """Return the bits of ring elements, shape (...) to (..., 48, 1)."""
    shifts = np.arange(RING_BITS, dtype=np.uint64)
    return ((numbers[..., None] >> shifts) & np.uint64(1))[..., None]
