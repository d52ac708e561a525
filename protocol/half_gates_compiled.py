"""Half-gates by compiled code: `half_gates.c`, with the AES of the OpenSSL that Python's own `hashlib` runs on.

It is plain C, loaded by `ctypes`: other threads run meanwhile, and building it takes a compiler alone.
"""

import ctypes
import hashlib
import sysconfig
from itertools import accumulate
from pathlib import Path

import numpy as np

from protocol.circuit import ANDS, INPUTS, Wires
from protocol.half_gates_arrays import Arrays, Block, Bytes, Keys, Streams
from protocol.sharing import RING_BITS

_LIBRARY = Path(__file__).with_name("_half_gates" + str(sysconfig.get_config_var("EXT_SUFFIX")))
_OPENSSL = (
    "EVP_CIPHER_CTX_new",
    "EVP_CIPHER_CTX_free",
    "EVP_aes_128_ecb",
    "EVP_aes_256_ctr",
    "EVP_EncryptInit_ex",
    "EVP_EncryptUpdate",
)
_BIND = "half_gates_bind_1"
_POINTER = ctypes.c_void_p


def load() -> "Compiled | None":
    """Return the compiled engine, or None where it is not built or Python has no OpenSSL that can be shared.

    Raises `RuntimeError` where what is built does not do what this version does.
    """
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        openssl = ctypes.CDLL(_openssl())
        functions = [ctypes.cast(getattr(openssl, name), _POINTER) for name in _OPENSSL]
    except (ImportError, OSError, AttributeError):
        return None
    try:
        bind = getattr(library, _BIND)
        compiled = Compiled(library, openssl)
        bind((_POINTER * len(functions))(*functions))
        is_good = _agrees(compiled)
    except AttributeError:  # it lacks a function
        is_good = False
    except OpensslRefusedError:
        return None
    if not is_good:
        raise RuntimeError(f"{_LIBRARY} was built of another half_gates.c: remove it, or build it anew by make setup")
    return compiled


class OpensslRefusedError(RuntimeError):
    """OpenSSL has no AES here, or no memory."""


def _openssl() -> str:
    """Return the file whose symbols include OpenSSL's: they are looked up in what it depends on, too."""
    import _hashlib  # noqa: PLC0415  absent where Python was built without OpenSSL

    return str(_hashlib.__file__)


class Compiled:
    """Garbles and evaluates by the compiled library."""

    name = "compiled"

    def __init__(self, library: ctypes.CDLL, openssl: ctypes.CDLL) -> None:
        self._openssl = openssl  # stays loaded: the library calls it
        self._garble, self._evaluate = library.half_gates_garble, library.half_gates_evaluate
        self._streams, self._activate = library.half_gates_streams, library.half_gates_activate
        self._garble.argtypes = [ctypes.c_int, *[_POINTER] * 7]
        self._evaluate.argtypes = [ctypes.c_int, *[_POINTER] * 6]
        self._streams.argtypes = [ctypes.c_int, *[_POINTER] * 3]
        self._activate.argtypes, self._activate.restype = [ctypes.c_int, *[_POINTER] * 4], None

    def streams(self, wanted: Streams) -> list[Bytes]:
        """Return of each key (32 bytes) its stream, as `protocol.kdf.stream`, all in one stretch of memory."""
        sizes = [size for _, size in wanted]
        if not 0 <= min(sizes) <= max(sizes) < 1 << 31:
            raise ValueError("a negative number of bytes, or too many")
        out, ends = np.empty(sum(sizes), dtype=np.uint8), [*accumulate(sizes)]
        _require(self._streams(len(wanted), _joined(wanted, 32), _numbers(sizes), _address(out)))
        return [out[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def activate(self, labels: Wires, offsets: Block, numbers: Wires) -> Wires:
        """Return the labels of the bits of numbers, (lanes, 6): shape of `labels`."""
        lanes = len(labels)
        _require_shape(labels, lanes, INPUTS, RING_BITS, 2)
        _require_shape(offsets, lanes, 2)
        _require_shape(numbers, lanes, INPUTS)
        active = np.empty_like(labels)
        self._activate(lanes, _address(labels), _address(offsets), _address(numbers), _address(active))
        return active

    def garble(self, keys: Keys, labels: Wires, offsets: Block) -> tuple[Wires, Block, Block]:
        """Return (table, output zero labels, hashes of both output labels): as `protocol.garbling.Engine` says."""
        lanes = _lanes(keys, labels)
        rows, output, pads = _empty(lanes, ANDS, 2, 2), _empty(lanes, 2), _empty(lanes, 2, 2)
        _require_shape(offsets, lanes, 2)
        given = _joined(keys, 16), _counts(keys), _address(labels), _address(offsets)
        _require(self._garble(len(keys), *given, _address(rows), _address(output), _address(pads)))
        return rows, output, pads

    def evaluate(self, keys: Keys, labels: Wires, rows: Wires) -> tuple[Block, Block]:
        """Return (active output labels, their hashes)."""
        lanes = _lanes(keys, labels)
        output, pads = _empty(lanes, 2), _empty(lanes, 2)
        _require_shape(rows, lanes, ANDS, 2, 2)
        given = _joined(keys, 16), _counts(keys), _address(labels), _address(rows)
        _require(self._evaluate(len(keys), *given, _address(output), _address(pads)))
        return output, pads


def _empty(*shape: int) -> Wires:
    return np.empty(shape, dtype=np.uint64)


def _joined(keys: Keys, size: int) -> bytes:
    joined = b"".join([key for key, _ in keys])
    if len(joined) != size * len(keys):
        raise ValueError(f"an AES key has {size} bytes here")
    return joined


def _counts(keys: Keys) -> ctypes.Array[ctypes.c_int32]:
    return _numbers([lanes for _, lanes in keys])


def _numbers(values: list[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)


def _lanes(keys: Keys, labels: Wires) -> int:
    counts = [count for _, count in keys]
    if min(counts) < 0:
        raise ValueError("a negative number of lanes")
    lanes = sum(counts)
    _require_shape(labels, lanes, INPUTS, RING_BITS, 2)
    return lanes


def _require_shape(array: Wires, *shape: int) -> None:
    """Refuse memory that is not what the library reads: it takes our word for it."""
    if array.shape != shape or array.dtype != np.uint64 or not array.flags.c_contiguous:
        raise ValueError("labels of another shape")


def _address(array: Wires | Bytes) -> int:
    address: int = array.__array_interface__["data"][0]  # `array.ctypes` makes two objects more to say the same
    return address


def _require(done: int) -> None:
    if not done:
        raise OpensslRefusedError("OpenSSL refused AES")


def _agrees(compiled: Compiled) -> bool:
    """Whether it does to two keys' lanes what is done over arrays."""
    drawn = hashlib.shake_128(b"cover-lookup/v1 self-test of half-gates").digest(3 * (INPUTS * RING_BITS + 1) * 16 + 32)
    blocks = np.frombuffer(drawn, dtype="<u8").reshape(-1, 2)
    keys = [(drawn[-16:], 1), (drawn[-32:-16], 2)]
    offsets = blocks[:3].copy()
    offsets[:, 0] |= np.uint64(1)
    labels = blocks[3:-2].reshape(3, INPUTS, RING_BITS, 2)
    garbled, expected = compiled.garble(keys, labels, offsets), Arrays().garble(keys, labels, offsets)
    evaluated, opened = compiled.evaluate(keys, labels, garbled[0]), Arrays().evaluate(keys, labels, expected[0])
    wanted = [(drawn[:32], 33), (drawn[32:64], 16)]
    pairs: list[tuple[Wires | Bytes, Wires | Bytes]] = [*zip(garbled, expected, strict=True)]
    pairs += zip(evaluated, opened, strict=True)
    numbers = blocks[: 3 * INPUTS, 0].reshape(3, INPUTS).copy()
    pairs.append((compiled.activate(labels, offsets, numbers), Arrays().activate(labels, offsets, numbers)))
    pairs += zip(compiled.streams(wanted), Arrays().streams(wanted), strict=True)
    return all(np.array_equal(ours, theirs) for ours, theirs in pairs)
