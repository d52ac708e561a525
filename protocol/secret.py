"""A wrapper for bytes that must not be printed, logged, pickled or compared in variable time."""

import hmac
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


class Secret:
    """Secret bytes. `reveal()` and `once()` are the ways out, so that every use can be found by its name."""

    __slots__ = ("_made", "_value")

    def __init__(self, value: bytes) -> None:
        self._value = value
        self._made: dict[object, object] = {}

    def reveal(self) -> bytes:
        """Return the bytes; the caller must not let them reach a log, a message in clear or an exception."""
        return self._value

    def once(self, make: Callable[[bytes], T]) -> T:
        """Return what `make` makes of the bytes, such as a parsed key; it is made once, and as secret as they are."""
        if make not in self._made:
            self._made[make] = make(self._value)
        return cast("T", self._made[make])

    def __len__(self) -> int:
        return len(self._value)

    def __repr__(self) -> str:
        return "Secret(<redacted>)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        raise TypeError("a secret is not hashable")

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")
