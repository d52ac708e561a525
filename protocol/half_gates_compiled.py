"""Half-gates by compiled code: `half_gates.c`, with the AES of the OpenSSL that Python's own `hashlib` runs on.

It is plain C, loaded by `ctypes`: other threads run meanwhile, and building it takes a compiler alone.
"""

import ctypes
import hashlib
import struct
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from protocol import kdf
from protocol.circuit import ANDS, INPUTS
from protocol.half_gates_arrays import Arrays, Keys, Streams
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
_BIND = "half_gates_bind_2"
_POINTER = ctypes.c_void_p
_BLOCK_BYTES = 16
_LABELS_BYTES, _TABLE_BYTES = INPUTS * RING_BITS * _BLOCK_BYTES, ANDS * 2 * _BLOCK_BYTES
"""Of a lane: the labels of its six numbers, and its table."""


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

    def streams(self, wanted: Streams) -> list[bytes]:
        """Return of each key (32 bytes) its stream, as `protocol.kdf.stream`."""
        sizes = [size for _, size in wanted]
        if not 0 <= min(sizes) <= max(sizes) < 1 << 31:
            raise ValueError("a negative number of bytes, or too many")
        out = ctypes.create_string_buffer(sum(sizes))
        _require(self._streams(len(wanted), _joined(wanted, 32), _numbers(sizes), out))
        return kdf.cut(out.raw, sizes)

    def activate(self, labels: bytes, offsets: bytes, numbers: Sequence[int]) -> bytes:
        """Return the labels of the bits of numbers, six a lane."""
        lanes = len(offsets) // _BLOCK_BYTES
        _require_sizes(lanes, (labels, _LABELS_BYTES), (offsets, _BLOCK_BYTES))
        if len(numbers) != lanes * INPUTS:
            raise ValueError("another number of numbers")
        active = ctypes.create_string_buffer(len(labels))
        self._activate(lanes, labels, offsets, struct.pack(f"<{len(numbers)}Q", *numbers), active)
        return active.raw

    def garble(self, keys: Keys, labels: bytes, offsets: bytes, said: bytes) -> tuple[bytes, bytes]:
        """Return table and encrypted outputs."""
        lanes = _lanes(keys)
        _require_sizes(lanes, (labels, _LABELS_BYTES), (offsets, _BLOCK_BYTES), (said, 2 * _BLOCK_BYTES))
        table = ctypes.create_string_buffer(lanes * _TABLE_BYTES)
        outputs = ctypes.create_string_buffer(lanes * 2 * _BLOCK_BYTES)
        given = _joined(keys, 16), _counts(keys), labels, offsets, said
        _require(self._garble(len(keys), *given, table, outputs))
        return table.raw, outputs.raw

    def evaluate(self, keys: Keys, labels: bytes, table: bytes, outputs: bytes) -> bytes:
        """Return what the outputs say."""
        lanes = _lanes(keys)
        _require_sizes(lanes, (labels, _LABELS_BYTES), (table, _TABLE_BYTES), (outputs, 2 * _BLOCK_BYTES))
        said = ctypes.create_string_buffer(lanes * _BLOCK_BYTES)
        _require(self._evaluate(len(keys), _joined(keys, 16), _counts(keys), labels, table, outputs, said))
        return said.raw


def _joined(keys: Keys, size: int) -> bytes:
    joined = b"".join([key for key, _ in keys])
    if len(joined) != size * len(keys):
        raise ValueError(f"an AES key has {size} bytes here")
    return joined


def _counts(keys: Keys) -> ctypes.Array[ctypes.c_int32]:
    return _numbers([lanes for _, lanes in keys])


def _numbers(values: list[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)


def _lanes(keys: Keys) -> int:
    counts = [count for _, count in keys]
    if min(counts) < 0:
        raise ValueError("a negative number of lanes")
    return sum(counts)


def _require_sizes(lanes: int, *given: tuple[bytes, int]) -> None:
    """Refuse memory that is not what the library reads, so many bytes a lane: it takes our word for it."""
    for data, of_a_lane in given:
        if not isinstance(data, bytes) or len(data) != lanes * of_a_lane:
            raise ValueError("labels, or what belongs to them, of another size")


def _require(done: int) -> None:
    if not done:
        raise OpensslRefusedError("OpenSSL refused AES")


def _agrees(compiled: Compiled) -> bool:
    """Whether it does to two keys' lanes what is done over arrays."""
    lanes, size = 3, _LABELS_BYTES + 3 * _BLOCK_BYTES + 8 * INPUTS
    drawn = hashlib.shake_128(b"cover-lookup/v1 self-test of half-gates").digest(lanes * size + 32)
    pieces = kdf.cut(drawn, [lanes * _LABELS_BYTES, lanes * _BLOCK_BYTES, 2 * lanes * _BLOCK_BYTES, 8 * lanes * INPUTS])
    labels, offsets, said, numbers = pieces
    keys, wanted = [(drawn[-16:], 1), (drawn[-32:-16], 2)], [(drawn[:32], 33), (drawn[32:64], 16)]
    found = []
    for engine in (compiled, Arrays()):
        table, outputs = engine.garble(keys, labels, offsets, said)
        evaluated = engine.evaluate(keys, labels, table, outputs)
        active = engine.activate(labels, offsets, struct.unpack(f"<{lanes * INPUTS}Q", numbers))
        found.append((table, outputs, evaluated, active, *engine.streams(wanted)))
    return found[0] == found[1]
