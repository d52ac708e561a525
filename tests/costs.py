"""What a piece of the protocol costs, in counts that no other load on the machine can blur.

Counted are primitives (multiplications in the group, hashes, signatures, AES calls), operations on arrays and their
elements, Python calls, and executed lines of `protocol/`. The first are the same on every machine; calls and lines
may differ a little between versions of Python.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, TypeVar

import numpy as np
import pytest

import protocol
from protocol import encoding, garbling
from protocol.circuit import Wires
from protocol.garbling import Engine
from protocol.half_gates_arrays import Block, Bytes, Keys, Streams

T = TypeVar("T")

BUDGETS = Path(__file__).parent / "data" / "costs.json"
RENEW = "RENEW_COSTS"
ABOUT = frozenset({"Python calls", "lines of protocol/"})
"""Counts that may be 5 percent above their budget; all others may not be above it at all."""
TOLERANCE = 1.05
LOOSE = 0.85
"""A count below this part of its budget leaves room for what is saved to be lost again unseen."""
_PROTOCOL = str(Path(protocol.__file__).parent) + os.sep
_GROUP = {
    "crypto_scalarmult_ristretto255": "multiplications in the group",
    "crypto_scalarmult_ristretto255_base": "multiplications of the base point",
    "crypto_core_ristretto255_from_hash": "maps to the group",
    "crypto_core_ristretto255_is_valid_point": "points checked",
    "crypto_core_ristretto255_add": "points added",
    "crypto_core_ristretto255_sub": "points added",
    "ed25519_verifies": "signatures verified",
}
_CALLS_INTO_C = {
    "openssl_sha256": "hashes",
    "openssl_sha512": "hashes",
    "hmac_digest": "hashes",
    "sign": "signatures made",
    "exchange": "key exchanges",
    "encrypt": "envelopes sealed",
    "decrypt": "envelopes opened",
    "derive": "keys derived",
    "create_encryption_ctx": "AES keys scheduled",
}


class CountedArray(np.ndarray[Any, Any]):
    """An array whose operations, and whose results' elements, are counted."""

    counts: ClassVar[Counter[str]] = Counter()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as NumPy calls it
        if "out" in kwargs:
            kwargs["out"] = tuple(map(_plain, kwargs["out"]))
        result = getattr(ufunc, method)(*map(_plain, inputs), **kwargs)
        self.counts["array operations"] += 1
        self.counts["array elements"] += np.size(result)
        return result.view(CountedArray) if isinstance(result, np.ndarray) else result

    def tobytes(self, order: Any = "C") -> bytes:  # noqa: ANN401  as NumPy's
        self.counts["array bytes copied out"] += self.nbytes
        return super().tobytes(order)


class CountedEngine:
    """Garbles as the engine it stands for, and counts lanes."""

    def __init__(self, engine: Engine, counts: Counter[str]) -> None:
        self._engine, self._counts, self.name = engine, counts, engine.name

    def streams(self, wanted: Streams) -> list[Bytes]:
        return [np.frombuffer(one, dtype=np.uint8) for one in self._engine.streams(wanted)]  # which is counted

    def activate(self, labels: Wires, offsets: Block, numbers: Wires) -> Wires:
        return np.frombuffer(self._engine.activate(*map(_plain, (labels, offsets, numbers))), "<u8").reshape(
            labels.shape
        )

    def garble(self, keys: Keys, labels: Wires, offsets: Block) -> tuple[Wires, Block, Block]:
        self._counts["lanes garbled"] += len(labels)
        return self._engine.garble(keys, *map(_plain, (labels, offsets)))

    def evaluate(self, keys: Keys, labels: Wires, rows: Wires) -> tuple[Block, Block]:
        self._counts["lanes evaluated"] += len(labels)
        return self._engine.evaluate(keys, *map(_plain, (labels, rows)))


def _plain(value: Any) -> Any:  # noqa: ANN401  what a ufunc takes
    return value.view(np.ndarray) if isinstance(value, CountedArray) else value


def costs(prepare: Callable[[], T], work: Callable[[T], object], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Run work, each time on what is prepared anew, to warm it, and to count calls, lines and arrays; return all."""
    counts: ClassVar[Counter[str]] = Counter()

    def on_call(frame: FrameType, event: str, argument: Any) -> None:  # noqa: ANN401  as sys.setprofile
        if event == "call":
            counts["Python calls"] += 1
            name = _GROUP.get(frame.f_code.co_name)
        else:
            name = _CALLS_INTO_C.get(argument.__name__) if event == "c_call" else None
        if name is not None:
            counts[name] += 1

    def on_line(frame: FrameType, event: str, _argument: object) -> Any:  # noqa: ANN401  as sys.settrace
        if not frame.f_code.co_filename.startswith(_PROTOCOL):
            return None
        counts["lines of protocol/"] += event == "line"
        return on_line

    work(prepare())
    _run_under(sys.setprofile, sys.getprofile(), on_call, partial(work, prepare()))
    _run_under(sys.settrace, sys.gettrace(), on_line, partial(work, prepare()))
    given = prepare()
    CountedArray.counts = counts
    with monkeypatch.context() as patched:
        for name in ("frombuffer", "zeros", "empty", "arange", "array", "stack", "concatenate"):
            patched.setattr(np, name, _counted(getattr(np, name)))
        patched.setattr(garbling, "ENGINE", CountedEngine(garbling.ENGINE, counts))
        work(given)
    return dict(sorted(counts.items()))


def _run_under(put: Callable[[Any], None], before: object, hook: object, work: Callable[[], object]) -> None:
    encoding._is_element.cache_clear()  # the points of the run before, which were the same; all parties are one process
    put(hook)
    try:
        work()
    finally:
        put(before)


def _counted(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: make(*args, **kwargs).view(CountedArray)


def complaints(counts: Mapping[str, int], budget: Mapping[str, int]) -> list[str]:
    """Return what is above its budget, and what is so far below that the budget guards nothing."""
    found = []
    for name in sorted(counts.keys() | budget.keys()):
        count, allowed = counts.get(name, 0), budget.get(name, 0)
        if count > allowed * (TOLERANCE if name in ABOUT else 1):
            found.append(f"{name}: {count}, and {allowed} are allowed")
        elif count < allowed * LOOSE:
            found.append(f"{name}: {count}, far fewer than the {allowed} allowed; {RENEW}=1 keeps what was saved")
    return found


def require_within_budget(what: str, counts: Mapping[str, int]) -> None:
    """Fail where a piece costs more than its budget. With RENEW_COSTS=1 the counts become the budget instead."""
    budgets = json.loads(BUDGETS.read_text(encoding="utf-8")) if BUDGETS.exists() else {}
    if os.environ.get(RENEW):
        budgets[what] = dict(counts)
        BUDGETS.write_text(json.dumps(budgets, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    found = complaints(counts, budgets[what])
    assert not found, f"{what} costs other than {BUDGETS.name} says:\n" + "\n".join(found)
