"""Days as people, systems and spreadsheets write them; what can be read in two ways is refused.

A time of day is cut off. A moment that names its zone is of the day that it has in China, as all days of the
alliance are.
"""

import datetime as dt
import enum
import re

from insurer_agent.intake.documents import fold, trim
from insurer_agent.intake.errors import IntakeError
from insurer_agent.intake.rows import Cell, Number, Unusable, text_of

CHINA = dt.timezone(dt.timedelta(hours=8))
MAX_WRITTEN_LENGTH = 64  # characters after trimming

DAY_ZERO_1900 = dt.date(1899, 12, 30)
"""Serial 0 of the 1900 system, for serials from 61 on: Excel holds 1900 for a leap year, with serial 60."""
DAY_ZERO_1904 = dt.date(1904, 1, 1)
_FIRST_SERIAL_1900 = 61
_DAY_SECONDS = 86_400

# [0-9] and not \d, which takes the digits of every script.
_YEAR_FIRST = re.compile(r"([0-9]{4})([-/.])([0-9]{1,2})\2([0-9]{1,2})")
_CHINESE = re.compile(r"([0-9]{4})\s*年\s*([0-9]{1,2})\s*月\s*([0-9]{1,2})\s*[日号]?")
_COMPACT = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})")
_YEAR_LAST = re.compile(r"([0-9]{1,2})([-/.])([0-9]{1,2})\2([0-9]{4})")
_DAY_MONTH_NAME = re.compile(r"([0-9]{1,2})[-/ ]([A-Za-z]{3,9})\.?[-/, ]\s*([0-9]{4})")
_MONTH_NAME_DAY = re.compile(r"([A-Za-z]{3,9})\.?\s+([0-9]{1,2}),?\s+([0-9]{4})")
_SHORT_YEAR = re.compile(r"[0-9]{1,2}[-/.年][0-9]{1,2}[-/.月][0-9]{1,2}日?|[0-9]{1,2}[- ][A-Za-z]{3,9}[- ][0-9]{2}")
_SERIAL = re.compile(r"([0-9]{1,7})(?:\.[0-9]+)?")
_WRITTEN_NUMBER = re.compile(r"[0-9]{8}")
_LIKELY_SERIAL = re.compile(r"[0-9]{5}(?:\.[0-9]+)?")  # of 1927 to 2173
_TIME = re.compile(
    r"(?:[Tt]|\s+|(?<=[日号]))([0-9]{1,2})(?::|时)([0-9]{2})(?:分|(?::|分)([0-9]{2})(?:\.[0-9]{1,9})?秒?)?"
    r"\s*(AM|PM|am|pm)?\s*(Z|z|[+-][0-9]{2}:?[0-9]{2})?$"
)
_COMPACT_TIME = re.compile(r"(?<=^[0-9]{8})([0-9]{2})([0-9]{2})([0-9]{2})$")
EARLIEST = dt.date(1980, 1, 1)
MAX_DAYS_AHEAD = 732
"""Days before `EARLIEST`, or further ahead than this, are numbers or slips that were taken for days."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_NAMES = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november"),
    "december",
)
_NOON = 12


class DateFormat(enum.Enum):
    """How a column's days are written, where that cannot be seen. Days with the year first are always understood."""

    YEAR_FIRST = "year-first"
    DAY_FIRST = "day-first"
    MONTH_FIRST = "month-first"
    SERIAL_1900 = "serial-1900"
    SERIAL_1904 = "serial-1904"


_DAY_ZERO = {DateFormat.SERIAL_1900: DAY_ZERO_1900, DateFormat.SERIAL_1904: DAY_ZERO_1904}


def today_in_china() -> dt.date:
    """Return the day that it is."""
    return dt.datetime.now(CHINA).date()


def read_date(cell: Cell, written_as: DateFormat = DateFormat.YEAR_FIRST, *, today: dt.date | None = None) -> dt.date:
    """Return the day that a cell names; `today` is the clock's if it is not given.

    Raises IntakeError with date-empty, date-malformed, date-ambiguous, date-out-of-range or no-such-day, or the cell's
    own fault.
    """
    today = today or today_in_china()
    if isinstance(cell, Number):
        cell = _of_number(cell, written_as, today)
    day = _day_of_cell(cell, written_as)
    if not _is_likely(day, today):
        raise IntakeError("date-out-of-range", "date is before 1980 or more than two years ahead")
    return day


def _is_likely(day: dt.date, today: dt.date) -> bool:
    return day >= EARLIEST and (day - today).days <= MAX_DAYS_AHEAD


def _day_of_cell(cell: Cell, written_as: DateFormat) -> dt.date:
    match cell:
        case Unusable():
            raise cell.fault
        case dt.datetime():
            return _day_of(cell)
        case dt.date():
            return cell
        case _:
            return _of_text(text_of(cell), written_as)


def of_serial(digits: str, day_zero: dt.date) -> dt.date:
    """Return the day of a spreadsheet's serial number, with its time, to the second, if it has one.

    `digits` is a plain decimal. Raises IntakeError, no-such-day.
    """
    whole, _, fraction = digits.partition(".")
    days = int(whole) if len(whole) <= MAX_WRITTEN_LENGTH else 0
    if days < (_FIRST_SERIAL_1900 if day_zero == DAY_ZERO_1900 else 1):
        raise _no_such_day()
    try:
        day = day_zero + dt.timedelta(days=days)
    except OverflowError:
        raise _no_such_day() from None
    if not fraction.strip("0"):
        return day
    # What is rounded never makes the next day.
    seconds = min((int(fraction[:9].ljust(9, "0")) * _DAY_SECONDS + 500_000_000) // 1_000_000_000, _DAY_SECONDS - 1)
    return dt.datetime.combine(day, dt.time()) + dt.timedelta(seconds=seconds)


def _day_of_serial(digits: str, day_zero: dt.date) -> dt.date:
    day = of_serial(digits, day_zero)
    return day.date() if isinstance(day, dt.datetime) else day


def _day_of(moment: dt.datetime) -> dt.date:
    if moment.tzinfo is None:
        return moment.date()
    try:
        return moment.astimezone(CHINA).date()
    except OverflowError:
        raise _no_such_day() from None


def _of_number(cell: Number, written_as: DateFormat, today: dt.date) -> Cell:
    """Return the day of a number that is not shown as one, or its eight digits; raise IntakeError, date-ambiguous."""
    day_zero = _DAY_ZERO.get(written_as, cell.day_zero)
    if day_zero is not None and _LIKELY_SERIAL.fullmatch(cell.digits):
        day = _day_of_serial(cell.digits, day_zero)
        if _is_likely(day, today):
            return day
    if not _WRITTEN_NUMBER.fullmatch(cell.digits):
        raise IntakeError("date-ambiguous", "date is a number that need not be a day")
    return cell.digits


def _of_text(text: str, written_as: DateFormat) -> dt.date:
    written = trim(fold(text))
    if not written:
        raise IntakeError("date-empty", "date is empty")
    if len(written) > MAX_WRITTEN_LENGTH:
        raise _malformed()
    if written_as in _DAY_ZERO and _SERIAL.fullmatch(written):
        return _day_of_serial(written, _DAY_ZERO[written_as])
    if _LIKELY_SERIAL.fullmatch(written):
        raise IntakeError("date-ambiguous", "date is a serial number; name its date system in the profile")
    time = _TIME.search(written) or _COMPACT_TIME.search(written)
    if time is None:
        return _written_day(written, written_as)
    day = _written_day(trim(written[: time.start()]), written_as)
    return _day_at(day, *time.groups())


def _written_day(written: str, written_as: DateFormat) -> dt.date:
    if parts := _YEAR_FIRST.fullmatch(written):
        return _date(parts[1], parts[3], parts[4])
    if parts := _CHINESE.fullmatch(written) or _COMPACT.fullmatch(written):
        return _date(*parts.groups())
    if parts := _YEAR_LAST.fullmatch(written):
        if written_as is DateFormat.DAY_FIRST:
            return _date(parts[4], parts[3], parts[1])
        if written_as is DateFormat.MONTH_FIRST:
            return _date(parts[4], parts[1], parts[3])
        raise IntakeError("date-ambiguous", "day or month may come first; name the order in the profile")
    if parts := _DAY_MONTH_NAME.fullmatch(written):
        return _date(parts[3], _month(parts[2]), parts[1])
    if parts := _MONTH_NAME_DAY.fullmatch(written):
        return _date(parts[3], _month(parts[1]), parts[2])
    if _SHORT_YEAR.fullmatch(written):
        raise IntakeError("date-ambiguous", "the year does not have four digits")
    raise _malformed()


def _month(name: str) -> str:
    lower = name.lower()
    if lower in _MONTH_NAMES:
        return str(_MONTH_NAMES.index(lower) + 1)
    if lower == "sept":
        return "9"
    if lower in _MONTHS:
        return str(_MONTHS.index(lower) + 1)
    raise _malformed()


def _date(year: str, month: str, day: str) -> dt.date:
    try:
        return dt.date(int(year), int(month), int(day))
    except ValueError:
        raise _no_such_day() from None


def _day_at(
    day: dt.date, hour: str, minute: str, second: str | None, half: str | None = None, zone: str | None = None
) -> dt.date:
    """Return the day in China of a time on `day`; `half` is AM or PM, `zone` Z or an offset."""
    hours = int(hour)
    if half is not None:
        if not 1 <= hours <= _NOON:
            raise _malformed()
        hours = hours % _NOON + (_NOON if half.lower() == "pm" else 0)
    try:
        time = dt.time(hours, int(minute), int(second or "0"))
        if zone is None:
            return day
        offset = dt.timedelta()
        if zone not in "Zz":
            offset = dt.timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:])) * (-1 if zone[0] == "-" else 1)
        return _day_of(dt.datetime.combine(day, time, dt.timezone(offset)))
    except ValueError:
        raise _malformed() from None


def _malformed() -> IntakeError:
    return IntakeError("date-malformed", "date is not written in a form that is known, such as YYYY-MM-DD")


def _no_such_day() -> IntakeError:
    return IntakeError("no-such-day", "no such day")
