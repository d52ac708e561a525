"""A wrapper for bytes that must not be printed, logged, pickled or compared in variable time."""

import hmac


class Secret:
    """Secret bytes. `reveal()` is the one way out, so that every use can be found by its name."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the bytes; the caller must not let them reach a log, a message in clear or an exception."""
        return self._value

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
