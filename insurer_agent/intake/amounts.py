"""Insured amounts: decimal yuan in files, whole fen everywhere else (1 yuan = 100 fen).

Fen are `int`: an amount is never a float, and never a Decimal whose context could round it.
"""

import re

from insurer_agent.intake.documents import fold, trim
from insurer_agent.intake.errors import IntakeError

FEN_PER_YUAN = 100
MAX_WRITTEN_LENGTH = 64  # characters after trimming; bounds int(), whose time grows with the square of the digits

# [0-9] and not \d, which takes the digits of every script.
_PLAIN_DECIMAL = re.compile(r"(?P<minus>-?)(?P<yuan>[0-9]+)(?:\.(?P<decimals>[0-9]{1,2}))?")


def parse_amount(text: str, *, maximum: int, minimum: int = 1) -> int:
    """Return the fen, `minimum` (0 or 1) to `maximum`, of a plain decimal of yuan with at most two decimals.

    Full-width digits, leading zeros and surrounding white space are accepted. Exponents, plus signs,
    grouping, currency marks, bare points ("5.", ".5") and digits of other scripts are not: "1,000" is a
    thousand to one country and one to another, and rounding is not for us to choose. Raises IntakeError with
    amount-not-plain-decimal, amount-not-positive or amount-too-large.
    """
    written = trim(fold(text))
    parts = _PLAIN_DECIMAL.fullmatch(written) if len(written) <= MAX_WRITTEN_LENGTH else None
    if parts is None:
        raise IntakeError("amount-not-plain-decimal", "amount is not a plain decimal")
    # One decimal is tenths: "0.5" is 50 fen.
    fen = int(parts["yuan"]) * FEN_PER_YUAN + int((parts["decimals"] or "").ljust(2, "0"))
    if parts["minus"] or fen < minimum:
        raise IntakeError("amount-not-positive", "amount is not positive")
    if fen > maximum:
        raise IntakeError("amount-too-large", "amount is larger than the largest that is accepted")
    return fen


def format_amount(fen: int) -> str:
    """Return the yuan of `fen` (0 or more) with two decimals, without grouping: 500000000 is "5000000.00"."""
    if fen < 0:
        raise ValueError("an amount is not negative")  # without the amount, which may be a customer's
    yuan, rest = divmod(fen, FEN_PER_YUAN)
    return f"{yuan}.{rest:02d}"
