"""Amounts as people and exports write them are exact, and what can be read in two ways is refused."""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from insurer_agent.intake.amounts import Unit, format_amount, parse_amount, read_amount
from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.rows import Number, Unusable, number_cell

MAXIMUM = 2**48 - 1
SCALES = {"": 1, "千": 10**3, "万": 10**4, "萬": 10**4, "百万": 10**6, "千万": 10**7, "亿": 10**8, "億": 10**8}
BEFORE = ("", "\N{YEN SIGN}", "\N{FULLWIDTH YEN SIGN}", "RMB", "CNY ", "人民币", "rmb ")
AFTER = ("", "元", "元整", "圆", "圓", " 元", "元人民币", "yuan", " RMB")

fen = st.integers(1, MAXIMUM) | st.sampled_from([1, 99, 100, 101, 10**12, MAXIMUM])


def read(text: str, unit: Unit = Unit.YUAN, minimum: int = 1) -> int:
    return read_amount(text, maximum=MAXIMUM, minimum=minimum, unit=unit)


def code_of(text: str, unit: Unit = Unit.YUAN) -> str:
    with pytest.raises(IntakeError) as refusal:
        read(text, unit)
    return refusal.value.code


def written(amount: int, scale: str) -> str | None:
    """Write fen in a scale, exactly, with as many decimals as that takes."""
    with localcontext() as context:
        context.prec = 60
        return f"{Decimal(amount) / 100 / SCALES[scale]:f}"


@given(
    amount=fen,
    scale=st.sampled_from(sorted(SCALES)),
    before=st.sampled_from(BEFORE),
    after=st.sampled_from(AFTER),
    wide=st.booleans(),
)
@deterministic(600)
def test_an_amount_comes_back_from_every_scale_currency_grouping_and_width(
    amount: int, scale: str, before: str, after: str, *, wide: bool
) -> None:
    whole, _, decimals = (written(amount, scale) or "").partition(".")
    number = f"{int(whole):,}" + ("." + decimals if decimals else "")
    if wide:
        number = "".join(chr(ord(character) + 0xFEE0) for character in number)
    assert read(f" {before}{number}{scale}{after}\N{IDEOGRAPHIC SPACE}") == amount


@given(fen)
@deterministic(300)
def test_a_plain_amount_is_what_programs_mean_by_it(amount: int) -> None:
    text = format_amount(amount)
    assert read(text) == parse_amount(text, maximum=MAXIMUM) == amount


@given(st.integers(1, MAXIMUM // 10**4))
@deterministic(300)
def test_a_column_of_wan_counts_in_wan(amount: int) -> None:
    text = format_amount(amount)
    assert read(text, Unit.WAN) == amount * 10**4 == read(text + "万") == read(text + "万元", Unit.WAN)


@given(
    st.text(alphabet="0123456789,.万亿千百元\N{YEN SIGN}RMBe+- ", max_size=14) | st.text(max_size=20),
    st.sampled_from(Unit),
)
@deterministic(1500)
def test_any_text_is_an_amount_that_plain_arithmetic_agrees_with_or_refused(text: str, unit: Unit) -> None:
    try:
        amount = read(text, unit)
    except IntakeError:
        return
    assert 0 < amount <= MAXIMUM
    # Another way to the same: the digits as a decimal, times the scale that is written last.
    plain = "".join(character for character in text if character in "0123456789.")
    scale = next((scale for scale in sorted(SCALES, key=len, reverse=True) if scale and scale in text), "")
    if plain.isascii() and any("0" <= character <= "9" for character in plain):
        exact = Decimal(plain) * (SCALES[scale] if scale else 10**unit.value) * 100
        assert exact.quantize(Decimal(1), ROUND_HALF_EVEN) == exact == amount


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("5,000,000.00", 500_000_000),
        ("\N{YEN SIGN}500万", 500_000_000),
        ("1.2亿元", 12_000_000_000),
        ("人民币 1,200 万元整", 1_200_000_000),
        ("１２３．４５", 12_345),
        ("0.0001万", 100),
        ("0.000001万元", 1),
        ("3百万", 300_000_000),
        ("2千万元", 2_000_000_000),
        ("RMB5", 500),
    ],
)
def test_what_people_write(text: str, amount: int) -> None:
    assert read(text) == amount


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *(("", "amount-empty"), (" \N{IDEOGRAPHIC SPACE}", "amount-empty")),
        *((text, "amount-not-positive") for text in ("-5", "0", "-0.00", "\N{YEN SIGN}-5", "-5万", "0万")),
        *((text, "amount-not-plain-decimal") for text in ("1e9", "1E+9", "5x", "O5", "5 000", "5..0", "5.", ".5")),
        *(
            (text, "amount-not-plain-decimal")
            for text in ("1_000", "1亿2000万", "(5.00)", "5%", "5k", "3万亿", "9" * 65)
        ),
        *((text, "amount-not-plain-decimal") for text in ("1,0.5,0", "+5", "--5", "5-", "10\N{SUPERSCRIPT TWO}")),
        *((text, "amount-not-a-number") for text in ("abc", "五百万", "元", "-", "\N{ARABIC-INDIC DIGIT THREE}")),
        *(
            (text, "amount-currency")
            for text in ("$5", "USD 500", "5美元", "500港币", "\N{EURO SIGN}5", "HK$5", "5 jpy")
        ),
        *((text, "amount-grouping") for text in ("1,00", "500,0000", "1,000,00", "0001,000", "1,,000", "1,000,")),
        *(
            (text, "amount-not-whole-fen")
            for text in ("1.005", "1.000", "0.0000001万", "1.12345678901亿", "1.234567千")
        ),
        *((text, "amount-too-large") for text in ("2814749767107", "99999亿", "9" * 60)),
    ],
)
def test_what_can_be_read_in_two_ways_or_in_none_is_refused(text: str, code: str) -> None:
    assert code_of(text) == code


@pytest.mark.parametrize("text", ["5亿", "500千", "5000000元", "5百万", "5 yuan"])
def test_a_cell_does_not_gainsay_its_columns_unit(text: str) -> None:
    assert read(text) > 0
    assert code_of(text, Unit.WAN) == "amount-unit"


@pytest.mark.parametrize("text", ["-98765432.10", "98765432.1e1", "98765432101234567890", "9,8765432", "USD98765432"])
def test_no_refusal_shows_the_amount(text: str) -> None:
    with pytest.raises(IntakeError) as refusal:
        read(text)
    assert "98765432" not in repr(refusal.value)
    assert refusal.value.__context__ is None


# --- numbers of spreadsheets ---------------------------------------------------------------------------------------


@given(st.integers(0, 10**15 - 1), st.integers(0, 6))
@deterministic(800)
def test_a_decimal_of_15_digits_comes_back_from_a_binary_number(digits: int, places: int) -> None:
    decimal = Decimal(digits).scaleb(-places)
    cell = number_cell(float(decimal), "")
    assert isinstance(cell, Number)
    assert Decimal(cell.digits) == decimal
    assert "e" not in cell.digits.lower()


@given(st.floats(allow_nan=True, allow_infinity=True))
@deterministic(800)
def test_any_binary_number_is_a_plain_decimal_or_unusable(value: float) -> None:
    cell = number_cell(value, "")
    if isinstance(cell, Number):
        assert float(cell.digits) == value
        assert len(Decimal(cell.digits).normalize().as_tuple().digits) <= 15


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e15, 440305198807141127.0, float("nan"), float("inf"), 1 / 3])
def test_what_a_binary_number_does_not_tell_for_certain_is_unusable(value: float) -> None:
    cell = number_cell(value, "shown")
    assert isinstance(cell, Unusable)
    assert cell.fault.code == "number-lost-digits"
    assert "shown" not in repr(cell)
