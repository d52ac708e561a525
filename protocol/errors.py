"""The one exception of the protocol: a step refused, with a stable code for programs and a hint for people."""


class ProtocolError(Exception):
    """A message or a state was refused.

    `code` is stable and may be matched on; `hint` says what a person can do. Neither ever holds an identity,
    an amount, a key or a share.
    """

    def __init__(self, code: str, hint: str) -> None:
        super().__init__(f"{code}: {hint}")
        self.code = code
        self.hint = hint
