"""What each person's accident cover comes to, added up the plain way from the insurers' files.

It shares no code with the product: it knows everything, and any verdict can be compared with it.
"""

import csv
import datetime as dt
import re
import unicodedata
from pathlib import Path

Person = tuple[str, str]
"""Document type and canonical number."""

PRODUCTS = ("accident", "group_accident", "term_life")
WINDOW_DAYS = 30
RESIDENT_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
CREDIT_ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"


def plain_totals(directory: Path, today: dt.date) -> dict[Person, int]:
    """Return in fen what counts under the rule accident-30d, per person with any policy that was not refused."""
    totals: dict[Person, int] = {}
    for file in sorted(directory.glob("insurer-*.csv")):
        for (_, person, product), policy in _policies(file).items():
            counts = product == "accident" and policy.day >= today - dt.timedelta(days=WINDOW_DAYS - 1)
            totals[person] = totals.get(person, 0) + (policy.fen if counts else 0)
    return totals


class _Policy:
    def __init__(self, fen: int, day: dt.date) -> None:
        self.fen = fen
        self.day = day
        self.cancelled = False


def _policies(file: Path) -> dict[tuple[str, Person, str], _Policy]:
    policies: dict[tuple[str, Person, str], _Policy] = {}
    with file.open(encoding="utf-8-sig", newline="") as text:
        for row in csv.DictReader(text):
            number, event = row["policy_number"].strip(), row["event"]
            person = canonical(row["document_type"], row["document_number"])
            fen, day = _fen(row["insured_amount"]), _day(row["issued_on"])
            if event == "cancel" and row["insured_amount"] == "":
                fen = 0
            if not number or person is None or fen is None or day is None or row["product"] not in PRODUCTS:
                continue
            key = (number, person, row["product"])
            if event == "issue" and key not in policies:  # else a repeat, or a conflict
                policies[key] = _Policy(fen, day)
            elif event == "cancel" and key in policies:
                policies[key].cancelled = True
                policies[key].fen = 0
            elif event == "amend" and key in policies and not policies[key].cancelled:
                policies[key].fen = fen  # and the day stays
    return policies


def canonical(document_type: str, written: str) -> Person | None:
    """Return the person that a number stands for, or None."""
    number = re.sub(r"\s", "", unicodedata.normalize("NFKC", written)).upper()
    if document_type != "passport":
        number = number.replace("-", "")
    if document_type == "resident_id" and re.fullmatch("[0-9]{15}", number):
        number = number[:6] + "19" + number[6:]
        number += _check_digit(number)
    elif document_type == "hk_macau_permit":
        number = number[:9]  # then renewals
    elif document_type == "taiwan_permit":
        number = number[:8]  # then issues
    return (document_type, number) if number and _is_sound(document_type, number) else None


def _is_sound(document_type: str, number: str) -> bool:
    if document_type == "resident_id":
        formed = re.fullmatch("[0-9]{17}[0-9X]", number) is not None
        born = f"{number[6:10]}-{number[10:12]}-{number[12:14]}"
        return formed and number[17] == _check_digit(number) and _day(born) is not None
    if document_type == "organization":
        weighed = sum(CREDIT_ALPHABET.index(number[place]) * pow(3, place, 31) for place in range(17))
        return len(number) == 18 and number[17] == CREDIT_ALPHABET[-weighed % 31]
    return document_type in ("passport", "hk_macau_permit", "taiwan_permit")


def _check_digit(number: str) -> str:
    remainder = sum(int(digit) * weight for digit, weight in zip(number, RESIDENT_WEIGHTS, strict=False)) % 11
    return "10X98765432"[remainder]


def _fen(written: str) -> int | None:
    parts = re.fullmatch(r"([0-9]+)(?:\.([0-9]{1,2}))?", unicodedata.normalize("NFKC", written).strip())
    if parts is None:
        return None
    return int(parts[1]) * 100 + int((parts[2] or "").ljust(2, "0")) or None


def _day(written: str) -> dt.date | None:
    try:
        return dt.date(*map(int, written.split("-")))
    except (TypeError, ValueError):
        return None
