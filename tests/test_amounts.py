"""Amounts are exact, and what is not a plain decimal of yuan is refused without quoting it."""

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insurer_agent.intake.amounts import format_amount, parse_amount
from insurer_agent.intake.errors import IntakeError

MAXIMUM = 2**47


def code_of(text: str) -> str:
    with pytest.raises(IntakeError) as refusal:
        parse_amount(text, maximum=MAXIMUM)
    return refusal.value.code


@given(st.integers(1, MAXIMUM))
def test_amounts_round_trip(fen: int) -> None:
    assert parse_amount(format_amount(fen), maximum=MAXIMUM) == fen


@given(
    st.integers(1, MAXIMUM),
    st.integers(0, 9),
    st.sampled_from(["", " ", "\t", "\N{IDEOGRAPHIC SPACE}", "\ufeff"]),
)
def test_width_zeros_and_white_space_do_not_matter(fen: int, zeros: int, around: str) -> None:
    written = "0" * zeros + format_amount(fen)
    wide = "".join(chr(ord(character) + 0xFEE0) for character in written)
    assert parse_amount(f"{around}{wide}{around}", maximum=MAXIMUM) == fen


@pytest.mark.parametrize(
    ("text", "fen"),
    [
        ("5000000.00", 500_000_000),
        ("300000.50", 30_000_050),
        ("1200000", 120_000_000),
        ("0.5", 50),
        ("0.05", 5),
        ("007", 700),
    ],
)
def test_yuan_become_fen(text: str, fen: int) -> None:
    assert parse_amount(text, maximum=MAXIMUM) == fen


def test_format_has_two_decimals_and_no_grouping() -> None:
    assert [format_amount(fen) for fen in (0, 5, 50, 500_000_000)] == ["0.00", "0.05", "0.50", "5000000.00"]


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "5.", ".5", "1.234", "1e9", "1E9", "+5", "--5", "-5.", "-1e9", "- 5", "5-"),
        *("1,000", "1 000", "1_000", "0x10", "inf", "nan", "5\n6", "5\x00", "5%", "5.0.0", "1" * 65),
        "\N{YEN SIGN}5",
        "5\N{CJK UNIFIED IDEOGRAPH-4E07}",  # wan, ten thousand
        "\N{ARABIC-INDIC DIGIT THREE}",
        "10\N{SUPERSCRIPT TWO}",
        "\N{CIRCLED DIGIT FIVE}",
        "5\N{VULGAR FRACTION ONE HALF}",
        "\N{MINUS SIGN}5",
    ],
)
def test_what_is_not_a_plain_decimal_is_refused(text: str) -> None:
    assert code_of(text) == "amount-not-plain-decimal"


@pytest.mark.parametrize("text", ["-5.00", "-0", "0", "0.0", "000.00", "\N{FULLWIDTH HYPHEN-MINUS}5"])
def test_what_is_not_positive_is_refused(text: str) -> None:
    assert code_of(text) == "amount-not-positive"


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_the_maximum_is_the_largest_amount(maximum: int, excess: int) -> None:
    assert parse_amount(format_amount(maximum), maximum=maximum) == maximum
    with pytest.raises(IntakeError) as refusal:
        parse_amount(format_amount(maximum + excess), maximum=maximum)
    assert refusal.value.code == "amount-too-large"


@given(st.text())
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    try:
        fen = parse_amount(text, maximum=MAXIMUM)
    except IntakeError:
        return
    assert 0 < fen <= MAXIMUM


@pytest.mark.parametrize("text", ["-98765432.10", "98765432.1e1", "98765432101234567890"])
def test_no_refusal_shows_the_amount(text: str) -> None:
    with pytest.raises(IntakeError) as refusal:
        parse_amount(text, maximum=MAXIMUM)
    assert refusal.value.__context__ is None
    shown = "".join([repr(refusal.value), *traceback.format_exception(refusal.value)])
    assert "98765432" not in shown
    assert str(MAXIMUM) not in shown


def test_a_negative_amount_is_not_formatted_and_not_shown() -> None:
    with pytest.raises(ValueError, match=r"^an amount is not negative$"):
        format_amount(-98765432)
