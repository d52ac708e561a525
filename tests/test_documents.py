"""One person is one identity, however the number is written; anything else is refused without quoting it."""

import datetime as dt
import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum.cn import ric, uscc

from insurer_agent.intake.documents import normalise
from insurer_agent.intake.errors import IntakeError
from protocol.identity import DocumentType

EXPECTED = json.loads((Path(__file__).parent / "data" / "expected.json").read_text(encoding="utf-8"))
# p1 was born on 29 February 1962, which was no day; its check digit is right.
LEAP_DAY_OF_1962 = EXPECTED["people"]["p1"]
THIRTIETH_OF_FEBRUARY = "110199196202300037"
PEOPLE = list(EXPECTED["people"].values())
COMPANY = "91350100M000100Y43"
TYPES = [document_type.value for document_type in DocumentType]

DIGITS = st.sampled_from(string.digits)
CREDIT_ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"
INVISIBLE = st.sampled_from(["", " ", "\t", "\r\n", "\N{NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}", "\u200b", "\ufeff"])


def code_of(document_type: str, number: str) -> str:
    with pytest.raises(IntakeError) as refusal:
        normalise(document_type, number)
    return refusal.value.code


def full_width(text: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


@st.composite
def resident_ids(draw: st.DrawFn, *, first_year: int = 1800, last_year: int = 2099) -> str:
    """18 characters, any region code (real, renamed or never used) and any day."""
    region = draw(st.text(DIGITS, min_size=6, max_size=6))
    born = draw(st.dates(min_value=dt.date(first_year, 1, 1), max_value=dt.date(last_year, 12, 31)))
    order = draw(st.text(DIGITS, min_size=3, max_size=3))
    body = f"{region}{born:%Y%m%d}{order}"
    return body + ric.calc_check_digit(body + "0")


@st.composite
def credit_codes(draw: st.DrawFn) -> str:
    def some(alphabet: str, size: int) -> str:
        return draw(st.text(st.sampled_from(alphabet), min_size=size, max_size=size))

    body = some(CREDIT_ALPHABET, 2) + some(string.digits, 6) + some(CREDIT_ALPHABET, 9)
    return body + uscc.calc_check_digit(body)


def documents() -> st.SearchStrategy[tuple[str, str]]:
    """Valid documents of every type, in their canonical spelling."""
    alphabet = string.digits + string.ascii_uppercase
    return st.one_of(
        st.tuples(st.just("resident_id"), resident_ids()),
        st.tuples(st.just("organization"), credit_codes()),
        st.tuples(st.just("passport"), st.text(alphabet, min_size=5, max_size=20)),
        st.tuples(st.just("hk_macau_permit"), st.from_regex(r"[HM][0-9]{8}", fullmatch=True)),
        st.tuples(st.just("taiwan_permit"), st.from_regex(r"[0-9]{8}|[A-Z][0-9A-Z]{9}", fullmatch=True)),
    )


@st.composite
def spellings(draw: st.DrawFn) -> tuple[str, str, str]:
    """A document type, a canonical number and some way to write that number."""
    document_type, number = draw(documents())
    written = draw(INVISIBLE)
    for place, character in enumerate(number):
        forms = {character, character.lower(), full_width(character), full_width(character.lower())}
        hyphen = place > 0 and document_type != "passport" and draw(st.integers(0, 9)) == 0
        written += draw(st.sampled_from(["-", "\N{FULLWIDTH HYPHEN-MINUS}", "\N{EN DASH}"])) if hyphen else ""
        written += draw(st.sampled_from(sorted(forms))) + draw(INVISIBLE)
    return document_type, number, written


@given(spellings())
def test_every_spelling_of_a_number_is_the_same_identity(spelling: tuple[str, str, str]) -> None:
    document_type, number, written = spelling
    identity = normalise(document_type, written)
    assert identity.number == number
    assert identity.document_type.value == document_type


@given(spellings())
def test_a_canonical_number_is_its_own_canonical_form(spelling: tuple[str, str, str]) -> None:
    document_type, _, written = spelling
    identity = normalise(document_type, written)
    assert normalise(identity.document_type.value, identity.number) == identity


@given(resident_ids(first_year=1900, last_year=1999))
def test_15_and_18_digits_are_one_person(number: str) -> None:
    assert normalise("resident_id", number[:6] + number[8:17]) == normalise("resident_id", number)


@pytest.mark.parametrize("number", PEOPLE)
def test_the_people_of_the_samples_are_accepted(number: str) -> None:
    assert normalise("resident_id", number.lower()).number == number


def test_the_roman_numeral_ten_is_a_check_digit() -> None:
    x = "42010619750601018"
    assert normalise("resident_id", x + "\N{ROMAN NUMERAL TEN}").number == x + "X"
    assert normalise("resident_id", x + "\N{SMALL ROMAN NUMERAL TEN}").number == x + "X"


@given(resident_ids(), st.data())
def test_one_wrong_digit_of_a_resident_id_is_always_found(number: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, 17))
    others = set(string.digits if place < 17 else string.digits + "X") - {number[place]}
    other = data.draw(st.sampled_from(sorted(others)))
    assert code_of("resident_id", number[:place] + other + number[place + 1 :]) == "check-digit-wrong"


@pytest.mark.parametrize("number", PEOPLE)
def test_all_wrong_digits_of_the_sample_people_are_found(number: str) -> None:
    for place, right in enumerate(number):
        for other in string.digits if place < 17 else string.digits + "X":
            if other != right:
                changed = number[:place] + other + number[place + 1 :]
                assert code_of("resident_id", changed) == "check-digit-wrong"


@given(credit_codes(), st.data())
def test_one_wrong_character_of_a_credit_code_is_always_found(number: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, 17))
    others = set(string.digits if 2 <= place < 8 else CREDIT_ALPHABET) - {number[place]}
    other = data.draw(st.sampled_from(sorted(others)))
    assert code_of("organization", number[:place] + other + number[place + 1 :]) == "check-digit-wrong"


@pytest.mark.parametrize(
    "region",
    [
        "420106",  # Wuchang, in the library's table from 1983 only; this person was born in 1975
        "110103",  # Chongwen, abolished in 2010
        "441900",  # Dongguan, a city without districts
        "500226",  # Rongchang, a county until 2015
        "810000",  # residence permits of Hong Kong residents
        "000000",
    ],
)
def test_no_region_code_is_refused(region: str) -> None:
    body = f"{region}19750601018"
    number = body + ric.calc_check_digit(body + "0")
    assert normalise("resident_id", number).number == number


@pytest.mark.parametrize("day", ["19620230", "19750631", "20011301", "17991231", "00000101", "19750600"])
def test_a_birth_date_that_was_no_day_is_refused(day: str) -> None:
    body = f"110101{day}001"
    assert code_of("resident_id", body + ric.calc_check_digit(body + "0")) == "birth-date-wrong"


def test_a_birth_date_is_checked_in_15_digits() -> None:
    assert code_of("resident_id", "110101620230001") == "birth-date-wrong"


def test_a_leap_day_of_a_year_without_one_is_taken_as_registers_have_them() -> None:
    assert normalise("resident_id", LEAP_DAY_OF_1962).number == LEAP_DAY_OF_1962
    assert normalise("resident_id", "110101620229001").number.startswith("11010119620229001")


@pytest.mark.parametrize(
    "number",
    [
        COMPANY,
        "91110000600037341L",
        "Y" + (body := "1110000MB0123456") + uscc.calc_check_digit("Y" + body),  # authority "other"
        "N2" + (body := "350100MF1234567") + uscc.calc_check_digit("N2" + body),
    ],
)
def test_credit_codes_with_digits_and_with_letters_in_front_are_accepted(number: str) -> None:
    assert normalise("organization", number).number == number


@pytest.mark.parametrize(
    ("document_type", "written", "canonical"),
    [
        ("passport", " e12345678 ", "E12345678"),
        ("passport", "E 1234 5678", "E12345678"),
        ("hk_macau_permit", "h12345678", "H12345678"),
        ("hk_macau_permit", "H1234567800", "H12345678"),
        ("hk_macau_permit", "H12345678-03", "H12345678"),
        ("taiwan_permit", "01234567", "01234567"),
        ("taiwan_permit", "0123456701", "01234567"),
        ("taiwan_permit", "0123456702(B)", "01234567"),
        (
            "taiwan_permit",
            "0123456703\N{FULLWIDTH LEFT PARENTHESIS}d\N{FULLWIDTH RIGHT PARENTHESIS}",
            "01234567",
        ),
        ("taiwan_permit", "0123456704(1)", "01234567"),
        ("taiwan_permit", "0123456705B", "01234567"),
        ("taiwan_permit", "F290299977", "F290299977"),
        ("passport", "1" * 20 + " " * 200, "1" * 20),
    ],
)
def test_permits_and_passports_have_one_spelling_each(document_type: str, written: str, canonical: str) -> None:
    assert normalise(document_type, written).number == canonical


@pytest.mark.parametrize(
    ("document_type", "number", "code"),
    [
        ("identity card", "110101194903070014", "document-type-unknown"),
        ("", "110101194903070014", "document-type-unknown"),
        ("110101194903070014", "resident_id", "document-type-unknown"),
        ("resident_id", "", "document-number-empty"),
        ("passport", " \N{IDEOGRAPHIC SPACE}\u200b\ufeff\t", "document-number-empty"),
        ("resident_id", "11010119490307001", "document-number-length"),
        ("resident_id", "1101011949030700144", "document-number-length"),
        ("resident_id", "0" * 129, "document-number-length"),
        ("resident_id", "1.10101194903E+17", "document-number-length"),
        ("resident_id", "110101194903070.14", "document-number-malformed"),
        ("resident_id", "X10101194903070014", "document-number-malformed"),
        ("resident_id", "11010149030700X", "document-number-malformed"),
        ("resident_id", "11010119490307001\N{ARABIC-INDIC DIGIT FOUR}", "document-number-malformed"),
        ("resident_id", "11010119490307001\N{SUPERSCRIPT FOUR}", "document-number-malformed"),
        ("resident_id", "11010119490307--0014", "document-number-length"),
        ("resident_id", "440305198807141120", "check-digit-wrong"),
        ("organization", "91350100M000100Y4", "document-number-length"),
        ("organization", "91350100M000100I43", "document-number-malformed"),
        ("organization", "913501O0M000100Y43", "document-number-malformed"),
        ("organization", "91A50100M000100Y43", "document-number-malformed"),
        ("organization", "91350100M000100Y44", "check-digit-wrong"),
        ("passport", "E123", "document-number-length"),
        ("passport", "E" + "1" * 20, "document-number-length"),
        ("passport", "E1234-5678", "document-number-malformed"),
        ("passport", "12345678.0", "document-number-malformed"),
        ("passport", "'E12345678", "document-number-malformed"),
        ("passport", "\N{CYRILLIC CAPITAL LETTER IE}12345678", "document-number-malformed"),
        ("passport", "E1234567\N{LATIN SMALL LETTER SHARP S}", "document-number-malformed"),
        ("passport", "E1234567\N{SUPERSCRIPT TWO}", "document-number-malformed"),
        ("passport", "E1234567\N{CIRCLED DIGIT TWO}", "document-number-malformed"),
        ("passport", "E1234\x005678", "document-number-malformed"),
        ("passport", "E1234\ud8005678", "document-number-malformed"),
        ("hk_macau_permit", "A12345678", "document-number-malformed"),
        ("hk_macau_permit", "H123456780", "document-number-malformed"),
        ("hk_macau_permit", "-H12345678", "document-number-malformed"),
        ("taiwan_permit", "012345670", "document-number-malformed"),
        ("taiwan_permit", "01234567011", "document-number-malformed"),
        ("taiwan_permit", "0123456701(BC)", "document-number-malformed"),
        ("taiwan_permit", "012345670A", "document-number-malformed"),
    ],
)
def test_what_is_not_understood_is_refused(document_type: str, number: str, code: str) -> None:
    assert code_of(document_type, number) == code


@given(st.sampled_from(TYPES), st.text())
def test_any_text_is_normalised_or_refused(document_type: str, number: str) -> None:
    try:
        identity = normalise(document_type, number)
    except IntakeError:
        return
    assert identity.number.isascii()
    assert identity.number == identity.number.upper().strip()


REFUSALS = {
    "document-type-unknown: document type is not known",
    "document-number-empty: document number is empty",
    "document-number-length: document number does not have the length of its type",
    "document-number-malformed: document number does not have the form of its type",
    "check-digit-wrong: check digit is wrong",
    "birth-date-wrong: birth date in the document number is no calendar day",
}


@given(st.sampled_from([*TYPES, None]), st.one_of(st.text(), spellings().map(lambda spelling: spelling[2])))
def test_nothing_that_is_raised_or_printed_shows_a_number(document_type: str | None, number: str) -> None:
    try:
        identity = normalise(number if document_type is None else document_type, number)
    except IntakeError as error:
        refusal = error
    else:
        assert repr(identity) == f"Identity(document_type={identity.document_type!r})"
        return
    assert str(refusal) in REFUSALS
    assert refusal.args == (str(refusal),)
    assert refusal.__context__ is None  # nor does a chained exception, whatever prints it


def test_a_birth_date_does_not_show_either() -> None:
    with pytest.raises(IntakeError) as refusal:
        normalise("resident_id", THIRTIETH_OF_FEBRUARY)
    assert str(refusal.value) in REFUSALS
    assert refusal.value.__context__ is None
