"""Insured amounts: decimal yuan in files, whole fen everywhere else (1 yuan = 100 fen).

Fen are `int`: an amount is never a float, and never a Decimal whose context could round it. Programs write plain
decimals (`parse_amount`); people, in the files that they export, write amounts as `read_amount` takes them.
"""

import enum
import re

from insurer_agent.intake.documents import fold, trim
from insurer_agent.intake.errors import IntakeError

FEN_PER_YUAN = 100
MAX_WRITTEN_LENGTH = 64  # characters after trimming; bounds int(), whose time grows with the square of the digits

# [0-9] and not \d, which takes the digits of every script.
_PLAIN_DECIMAL = re.compile(r"(?P<minus>-?)(?P<yuan>[0-9]+)(?:\.(?P<decimals>[0-9]{1,2}))?")

_CURRENCY = "\N{YEN SIGN}|RMB|CNY|人民币"
_WRITTEN = re.compile(
    rf"(?P<sign>-?)(?:{_CURRENCY})?\s*(?P<minus>-?)(?P<whole>[0-9][0-9,]*)(?:\.(?P<decimals>[0-9]+))?"
    rf"\s*(?P<scale>百万|千万|[千万亿萬億])?\s*(?P<yuan>[元圆圓]整?|yuan)?\s*(?:{_CURRENCY})?",
    re.IGNORECASE,
)
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_ZEROS_OF_SCALE = {"千": 3, "万": 4, "萬": 4, "百万": 6, "千万": 7, "亿": 8, "億": 8}
# What the yen sign stands for is settled by the alliance: yuan. A yen, dollar or euro that says so is not.
_OTHER_CURRENCY = re.compile(
    r"[$\N{EURO SIGN}\N{POUND SIGN}]|USD|HKD|MOP|TWD|NTD|EUR|GBP|JPY|KRW|SGD|美元|美金|港元|港币|澳元|台币|欧元"
    "|英镑|日元|日圆|円|韩元|加元|新元|卢布",
    re.IGNORECASE,
)


class Unit(enum.Enum):
    """What a bare number in an amount column counts; the value is how many zeros a yuan figure has more."""

    YUAN = 0
    WAN = 4


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


def read_amount(text: str, *, maximum: int, minimum: int = 1, unit: Unit = Unit.YUAN) -> int:
    """Return the fen, `minimum` (0 or 1) to `maximum`, of an amount as people and exports write it.

    Beside plain decimals: thousands grouped by commas in threes, the currency before or after (the yen sign, RMB, CNY,
    人民币, 元), a scale (千, 万, 百万, 千万, 亿), full width. `unit` is what the column counts: a number that names
    no scale counts in it, and one that names a scale must not gainsay it. Nothing is rounded: more decimals than
    make whole fen are refused, zeros too, since "1.000" is a thousand to some.

    Raises IntakeError with amount-empty, amount-not-a-number, amount-not-plain-decimal, amount-currency,
    amount-grouping, amount-not-whole-fen, amount-unit, amount-not-positive or amount-too-large.
    """
    written = trim(fold(text))
    if not written:
        raise IntakeError("amount-empty", "amount is empty")
    parts = _WRITTEN.fullmatch(written) if len(written) <= MAX_WRITTEN_LENGTH else None
    if parts is None or (parts["sign"] and parts["minus"]):
        raise _not_an_amount(written)
    whole, decimals, scale = parts["whole"], parts["decimals"] or "", parts["scale"]
    if "," in whole and not _GROUPED.fullmatch(whole):
        raise IntakeError("amount-grouping", "amount has commas that do not group thousands")
    zeros = unit.value if scale is None else _ZEROS_OF_SCALE[scale]
    if unit is not Unit.YUAN and (zeros != unit.value or (scale is None and parts["yuan"])):
        raise IntakeError("amount-unit", "amount names another unit than its column")
    # Shift the point by moving digits: yuan have two decimals, and each zero of the scale allows one more.
    places = zeros + 2
    if len(decimals) > places:
        raise IntakeError("amount-not-whole-fen", "amount has more decimals than whole fen have")
    fen = int(whole.replace(",", "") + decimals.ljust(places, "0"))
    if parts["sign"] or parts["minus"] or fen < minimum:
        raise IntakeError("amount-not-positive", "amount is not positive")
    if fen > maximum:
        raise IntakeError("amount-too-large", "amount is larger than the largest that is accepted")
    return fen


def _not_an_amount(written: str) -> IntakeError:
    if _OTHER_CURRENCY.search(written):
        return IntakeError("amount-currency", "amount is in another currency than yuan")
    if not any("0" <= character <= "9" for character in written):
        return IntakeError("amount-not-a-number", "amount is not a number")
    return IntakeError("amount-not-plain-decimal", "amount is not a plain decimal")


def format_amount(fen: int) -> str:
    """Return the yuan of `fen` (0 or more) with two decimals, without grouping: 500000000 is "5000000.00"."""
    if fen < 0:
        raise ValueError("an amount is not negative")  # without the amount, which may be a customer's
    yuan, rest = divmod(fen, FEN_PER_YUAN)
    return f"{yuan}.{rest:02d}"
