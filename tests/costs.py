"""What a piece of the protocol costs, in counts that no other load on the machine can blur.

Counted are primitives (multiplications in the group, hashes, signatures, AES calls), lanes garbled, Python calls, and
executed lines of `protocol/`. The first are the same on every machine; calls and lines may differ a little between
versions of Python.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, TypeVar

import pytest

import protocol
from protocol import encoding, garbling
from protocol.garbling import Engine
from protocol.half_gates_arrays import Keys, Streams

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


class CountedEngine:
    """Garbles as the engine it stands for, and counts lanes."""

    def __init__(self, engine: Engine, counts: Counter[str]) -> None:
        self._engine, self._counts, self.name = engine, counts, engine.name

    def streams(self, wanted: Streams) -> list[bytes]:
        return self._engine.streams(wanted)

    def activate(self, labels: bytes, offsets: bytes, numbers: Sequence[int]) -> bytes:
        return self._engine.activate(labels, offsets, numbers)

    def garble(self, keys: Keys, labels: bytes, offsets: bytes, said: bytes) -> tuple[bytes, bytes]:
        self._counts["lanes garbled"] += sum(lanes for _, lanes in keys)
        return self._engine.garble(keys, labels, offsets, said)

    def evaluate(self, keys: Keys, labels: bytes, table: bytes, outputs: bytes) -> bytes:
        self._counts["lanes evaluated"] += sum(lanes for _, lanes in keys)
        return self._engine.evaluate(keys, labels, table, outputs)


def costs(prepare: Callable[[], T], work: Callable[[T], object], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Run work, each time on what is prepared anew, to warm it, and to count calls, lines and lanes; return all."""
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
    with monkeypatch.context() as patched:
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
