"""The one exception of the protocol: a step refused, with a stable code for programs and a hint for people."""

MAX_CODE = 64


def is_code(text: str) -> bool:
    """Tell whether a text that a peer sent has the form of a code; nothing else of a refusal is repeated or logged."""
    return 0 < len(text) <= MAX_CODE and text.isascii() and text.replace("-", "").isalnum()


class ProtocolError(Exception):
    """A message or a state was refused.

    `code` is stable and may be matched on; `hint` says what a person can do. Neither ever holds an identity,
    an amount, a key or a share.
    """

    def __init__(self, code: str, hint: str) -> None:
        super().__init__(f"{code}: {hint}")
        self.code = code
        self.hint = hint
