"""Days are read as people, systems and spreadsheets write them; what can be read in two ways is refused."""

import datetime as dt
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from insurer_agent.intake import dates
from insurer_agent.intake.dates import DAY_ZERO_1900, DAY_ZERO_1904, EARLIEST, DateFormat, of_serial
from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.rows import Number, Unusable

DAY = dt.date(2026, 11, 3)
TODAY = dt.date(2026, 11, 23)
LATEST = TODAY + dt.timedelta(days=dates.MAX_DAYS_AHEAD)
days = st.dates(EARLIEST, LATEST)
read_date = partial(dates.read_date, today=TODAY)
YEAR_FIRST = (
    "{y:04}-{m:02}-{d:02}",
    "{y:04}/{m}/{d}",
    "{y:04}.{m}.{d:02}",
    "{y:04}{m:02}{d:02}",
    "{y:04}年{m}月{d}日",
    "{y:04}年{m:02}月{d:02}号",
    "{y:04} 年 {m} 月 {d} 日",
    "{d}-{name}-{y:04}",
    "{d:02} {full} {y:04}",
    "{full} {d}, {y:04}",
)
TIMES = ("", " 23:59:59", "T00:00", " 10:30:00.123456", " 12:00:00 AM", "T23:59+08:00", " 0:00:00")
NAMES = ("Jan", "feb", "MAR", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
FULL = ("January", "February", "March", "April", "May", "June", "July", "August", "September")
FULL += ("October", "November", "December")


def written(form: str, day: dt.date) -> str:
    name, full = NAMES[day.month - 1], FULL[day.month - 1]
    return form.format(y=day.year, m=day.month, d=day.day, name=name, full=full)


def wide(text: str) -> str:
    return "".join(chr(ord(one) + 0xFEE0) if "!" <= one <= "~" else one for one in text)


def code_of(text: str, written_as: DateFormat = DateFormat.YEAR_FIRST) -> str:
    with pytest.raises(IntakeError) as refusal:
        read_date(text, written_as)
    assert not any(len(part) > 1 and part in refusal.value.reason for part in text.split())
    return refusal.value.code


@given(
    day=days,
    form=st.sampled_from(YEAR_FIRST),
    time=st.sampled_from(TIMES),
    written_as=st.sampled_from(DateFormat),
    full_width=st.booleans(),
)
@deterministic(800)
def test_a_day_comes_back_from_every_way_to_write_it_whatever_the_format(
    day: dt.date, form: str, time: str, written_as: DateFormat, *, full_width: bool
) -> None:
    text = written(form, day) + time
    assert read_date(wide(text) if full_width else f" {text}\N{NO-BREAK SPACE}", written_as) == day


@given(days, st.sampled_from("-/."))
@deterministic(300)
def test_the_order_of_day_and_month_is_the_profiles_to_say(day: dt.date, mark: str) -> None:
    day_first, month_first = f"{day.day}{mark}{day.month}{mark}{day:%Y}", f"{day.month}{mark}{day.day}{mark}{day:%Y}"
    assert read_date(day_first, DateFormat.DAY_FIRST) == day == read_date(month_first, DateFormat.MONTH_FIRST)
    assert code_of(day_first) == code_of(month_first) == "date-ambiguous"


@given(days, st.sampled_from(["", ".5", ".999999999"]))
@deterministic(300)
def test_serial_numbers_of_both_systems(day: dt.date, fraction: str) -> None:
    for zero, named in ((DAY_ZERO_1900, DateFormat.SERIAL_1900), (DAY_ZERO_1904, DateFormat.SERIAL_1904)):
        digits = f"{(day - zero).days}{fraction}"
        assert read_date(Number(digits, zero)) == day
        assert read_date(digits, named) == read_date(Number(digits), named) == day
        assert code_of(digits) == "date-ambiguous"  # a text file does not say which system it is


def test_known_serials() -> None:
    assert of_serial("46333", DAY_ZERO_1900) == of_serial("46333.0", DAY_ZERO_1900) == dt.date(2026, 11, 7)
    assert of_serial("61", DAY_ZERO_1900) == dt.date(1900, 3, 1)
    assert of_serial("46333.75", DAY_ZERO_1900) == dt.datetime(2026, 11, 7, 18)  # noqa: DTZ001 - serials have no zone
    assert of_serial("46333.999999", DAY_ZERO_1900).day == 7
    assert read_date(Number("44871", DAY_ZERO_1904)) == dt.date(2026, 11, 7)
    assert read_date(Number("20261107", DAY_ZERO_1900)) == dt.date(2026, 11, 7)  # no serial has eight digits


@pytest.mark.parametrize(
    "digits",
    [
        "60",
        "1",
        "0",
        "3.5",
        "9999999",
        "-46333",
        "2026",
        "202611",
        "5000000",
        "29220",
        "47087",
        "99999",
        "20261104.5",
        "20261103235959",
    ],
)
def test_numbers_that_need_not_be_a_day_are_refused(digits: str) -> None:
    with pytest.raises(IntakeError) as refusal:
        read_date(Number(digits, DAY_ZERO_1900))
    assert refusal.value.code == "date-ambiguous"


@pytest.mark.parametrize("day", [EARLIEST - dt.timedelta(days=1), LATEST + dt.timedelta(days=1)])
def test_days_that_no_policy_of_today_has_are_refused_however_they_are_written(day: dt.date) -> None:
    compact = f"{day:%Y%m%d}"
    for cell in (day, dt.datetime.combine(day, dt.time(1)), day.isoformat(), compact, Number(compact, DAY_ZERO_1900)):
        with pytest.raises(IntakeError) as refusal:
            read_date(cell)
        assert refusal.value.code == "date-out-of-range"
    assert read_date(EARLIEST) == EARLIEST
    assert read_date(LATEST) == LATEST


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "date-empty"),
        *(
            (text, "date-malformed")
            for text in ("abc", "2026", "2026-11", "2026-11/03", "2026-W45-2", "2026-11-03T25:00")
        ),
        *(
            (text, "date-malformed")
            for text in ("3-Foo-2026", "2026-11-03 10:61", "2026-11-03x", "2026-11-03 13:00 PM")
        ),
        *(
            (text, "date-malformed")
            for text in ("-46333", "2026-11-003", "9" * 70, "\N{ARABIC-INDIC DIGIT TWO}026-11-03")
        ),
        *((text, "no-such-day") for text in ("2026-13-06", "2026-02-29", "20260230", "2026年2月30日", "0000-01-01")),
        *((text, "no-such-day") for text in ("31-Nov-2026", "2026-00-10", "9999-12-31T23:00-08:00")),
        *(
            (text, "date-ambiguous")
            for text in ("03/11/2026", "25/12/2026", "26-11-03", "3-Nov-26", "03.11.26", "46333")
        ),
    ],
)
def test_what_is_no_day_or_may_be_two_is_refused(text: str, code: str) -> None:
    assert code_of(text) == code


def test_moments_are_of_their_day_in_china() -> None:
    assert read_date("2026-11-02T20:00:00Z") == DAY
    assert read_date("2026-11-03 23:00:00+08:00") == DAY
    assert read_date("2026-11-03 00:30 +0900") == dt.date(2026, 11, 2)
    assert read_date(dt.datetime(2026, 11, 2, 20, tzinfo=dt.UTC)) == DAY
    assert read_date(dt.datetime(2026, 11, 3, 20)) == DAY  # noqa: DTZ001 - as Parquet has it
    assert read_date("20261103235959") == DAY
    assert read_date("2026年11月3日10时30分") == DAY


def test_a_cell_that_is_unusable_says_why() -> None:
    fault = IntakeError("cell-merged", "merged")
    with pytest.raises(IntakeError) as refusal:
        read_date(Unusable("", fault))
    assert refusal.value is fault


@given(
    st.text(max_size=30) | st.text(alphabet="0123456789-/.年月日T: APMnov+Z", max_size=24), st.sampled_from(DateFormat)
)
@deterministic(1500)
def test_any_text_is_a_day_or_refused(text: str, written_as: DateFormat) -> None:
    try:
        day = read_date(text, written_as)
    except IntakeError:
        return
    assert type(day) is dt.date
