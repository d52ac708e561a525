"""Sample policies of a whole alliance: one CSV file per insurer, as messy as real exports, the same for the same seed.

Most people are ordinary: a few covers at a few insurers, nowhere near the limit. The others are CASES, each of which
sits where one reading of the rules gives another verdict than the right one. A case says what it is meant to count,
so that a verdict can be compared with the intention; nobody here adds up files.

No number is anybody's: resident ids and credit codes name a district, 99, that does not exist; the rest are made up.
"""

import codecs
import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from random import Random

from stdnum.cn import ric, uscc

YUAN = 100  # fen
MILLION = 1_000_000 * YUAN
LIMIT = 50 * MILLION
FIRST_DAY = -29
"""The first day of the rule's window, counted from the as-of day."""
MIN_MEMBERS = 5

_COLUMNS = ("policy_number", "document_type", "document_number", "product", "insured_amount", "issued_on", "event")
_PRODUCTS = ("accident",) * 14 + ("group_accident",) * 4 + ("term_life",) * 2
_AMOUNTS = tuple(yuan * YUAN for yuan in (50_000, 100_000, 100_000, 200_000, 300_000, 500_000, 500_000, 1_000_000))
_LARGE_AMOUNTS = tuple(yuan * YUAN for yuan in (2_000_000, 3_000_000, 5_000_000))
_KINDS = ("resident_id",) * 20 + ("passport",) * 3 + ("hk_macau_permit", "taiwan_permit", "organization")


@dataclass(frozen=True)
class SamplePerson:
    """An insured. `spellings` are ways to write the number, the canonical one first; `case` names a special one.

    `total` is what a case is meant to count today under the rule accident-30d, in fen.
    """

    document_type: str
    spellings: tuple[str, ...] = field(repr=False)
    case: str | None = None
    total: int | None = field(default=None, repr=False)

    @property
    def identity(self) -> tuple[str, str]:
        """Document type and canonical number."""
        return self.document_type, self.spellings[0]


@dataclass(frozen=True)
class SamplePolicy:
    """A policy as it was issued; amount in fen."""

    insurer: str
    number: str
    person: SamplePerson
    product: str
    day: date
    fen: int = field(repr=False)


@dataclass(frozen=True)
class Samples:
    """What was written: the people, every policy as issued, and every amount that stands in a row that is no error."""

    today: date
    people: list[SamplePerson]
    policies: list[SamplePolicy]
    amounts: frozenset[int] = field(repr=False)
    rows: int

    def case(self, name: str) -> SamplePerson:
        """Return the person of a case."""
        return next(person for person in self.people if person.case == name)

    def policies_of(self, person: SamplePerson) -> list[SamplePolicy]:
        """Return a person's policies as they were issued."""
        return [policy for policy in self.policies if policy.person is person]


@dataclass(frozen=True)
class _Covers:
    """Covers of one case: `fen` in so many policies, on one day or spread over the last four weeks, and their fate.

    `fen` is the sum that the policies come to if they count; fates are those of `_Files.befall`.
    """

    fen: int
    policies: int
    day: int | None = None
    product: str = "accident"
    fate: str = ""


@dataclass(frozen=True)
class _Case:
    total: int
    covers: tuple[_Covers, ...] = ()
    kind: str = "resident_id"


_HEAVY = 49 * MILLION  # within the limit, and above it with 3 million more
_HEAVY_COVERS = _Covers(_HEAVY, 10)
ACCUMULATOR = "accumulator"
"""The motivating case: more than 100 million from more than 20 insurers (of 22 members or more) within a month."""
CASES = {
    "newcomer": _Case(0),
    "room-for-3-million": _Case(47 * MILLION, (_Covers(47 * MILLION, 10),)),
    "at-the-limit": _Case(LIMIT, (_Covers(LIMIT, 11),)),
    "one-fen-above": _Case(LIMIT + 1, (_Covers(LIMIT + 1, 11),)),
    "two-generations-of-id": _Case(_HEAVY, (_HEAVY_COVERS,), "old_resident_id"),
    "passport": _Case(_HEAVY, (_HEAVY_COVERS,), "passport"),
    "hk-macau-permit": _Case(_HEAVY, (_HEAVY_COVERS,), "hk_macau_permit"),
    "taiwan-permit": _Case(_HEAVY, (_HEAVY_COVERS,), "taiwan_permit"),
    "organization": _Case(_HEAVY, (_HEAVY_COVERS,), "organization"),
    "first-day-of-window": _Case(_HEAVY, (_Covers(_HEAVY, 10, FIRST_DAY),)),
    "day-before-window": _Case(1 * MILLION, (_Covers(_HEAVY, 10, FIRST_DAY - 1), _Covers(1 * MILLION, 1))),
    "future-dated": _Case(_HEAVY, (_Covers(25 * MILLION, 5), _Covers(24 * MILLION, 5, +20))),
    "cancelled": _Case(9 * MILLION, (_Covers(9 * MILLION, 2), _Covers(45 * MILLION, 9, fate="cancel"))),
    "cancelled-late": _Case(_HEAVY, (_HEAVY_COVERS, _Covers(40 * MILLION, 8, -45, fate="cancel"))),
    "amended-down": _Case(12 * MILLION, (_Covers(12 * MILLION, 10, fate="amend-down"),)),
    "amended-up": _Case(_HEAVY, (_Covers(_HEAVY, 10, fate="amend-up"),)),
    "amended-late": _Case(2 * MILLION, (_Covers(2 * MILLION, 1), _Covers(60 * MILLION, 9, -45, fate="amend-up"))),
    "amended-then-cancelled": _Case(
        3 * MILLION, (_Covers(3 * MILLION, 1), _Covers(48 * MILLION, 8, fate="amend-and-cancel"))
    ),
    "other-products": _Case(
        2 * MILLION,
        (
            _Covers(80 * MILLION, 8, product="group_accident"),
            _Covers(40 * MILLION, 4, product="term_life"),
            _Covers(2 * MILLION, 1),
        ),
    ),
    "rider": _Case(_HEAVY, (_Covers(_HEAVY, 10, fate="rider"),)),
    "conflict": _Case(5 * MILLION, (_Covers(5 * MILLION, 1, fate="conflict"),)),
    "repeated": _Case(30 * MILLION, (_Covers(30 * MILLION, 6, fate="repeat"),)),
    ACCUMULATOR: _Case(104_600_000 * YUAN, (_Covers(104_600_000 * YUAN, 23, fate="everywhere"),)),
}


_ERRORS: tuple[dict[str, str], ...] = (
    {"document_number": "110199196202300037"},  # 30 February
    {"document_number": "110199198807141120"},  # check digit
    {"document_number": ""},
    {"document_number": "1.10199198807E+17"},  # a spreadsheet's doing
    {"document_type": "drivers_licence"},
    {"policy_number": " "},
    {"product": "travel"},
    {"insured_amount": "1,00,000.00"},
    {"insured_amount": "0.00"},
    {"insured_amount": "800000.005"},
    {"issued_on": "03/11/2026"},
    {"issued_on": "2026-02-30"},
    {"event": "renew"},
    {"event": "cancel"},  # of a policy that was never issued
    {"event": "amend"},
)
"""What is wrong in rows that an insurer must refuse; five insurers have all kinds between them."""


def make_samples(directory: Path, *, members: int, people: int, today: date, seed: int) -> Samples:
    """Write insurer-01.csv and so on into `directory`: CASES, and `people` ordinary insured of two policies or so."""
    if members < MIN_MEMBERS:
        raise ValueError(f"an alliance has at least {MIN_MEMBERS} members")
    rng = Random(seed)  # noqa: S311  samples are to be the same again, not secret
    files = _Files(rng, members, today)
    for name, case in CASES.items():
        _write_case(files, name, case)
    ordinary = [files.person(rng.choice(_KINDS)) for _ in range(people)]
    for person in ordinary:
        _write_ordinary(files, person)
    for place, insurer in enumerate(files.insurers):
        _write_group_policy(files, insurer, rng.sample(ordinary, min(8, people)))
        for wrong in _ERRORS[place % MIN_MEMBERS :: MIN_MEMBERS]:
            files.put_error(insurer, wrong)
    directory.mkdir(parents=True, exist_ok=True)
    rows = files.save(directory)
    return Samples(today, files.people, files.policies, frozenset(files.amounts), rows)


# --- documents -----------------------------------------------------------------------------------------------------


def _resident_id(rng: Random, first_year: int = 1945, years: int = 60) -> tuple[str, ...]:
    born = date(first_year, 1, 1) + timedelta(days=rng.randrange(365 * years))
    body = f"{rng.choice((11, 12, 21, 31, 32, 33, 37, 42, 44, 51))}0199{born:%Y%m%d}{rng.randrange(1, 1000):03d}"
    number = body + ric.calc_check_digit(body + "0")
    if number.endswith("000"):  # as of a number whose last digits are lost
        body = body[:-1] + "1"
        number = body + ric.calc_check_digit(body + "0")
    spellings = [number, _full_width(number), f"{number[:6]} {number[6:14]} {number[14:]}", number.lower()]
    if born < date(2000, 1, 1):
        spellings.insert(1, body[:6] + body[8:])  # the first generation: neither century nor check digit
    return tuple(spellings)


def _credit_code(rng: Random) -> tuple[str, ...]:
    body = "91110199M" + "".join(rng.choices("0123456789ABCDEFGHJKLMNPQRTUWXY", k=8))
    number = body + uscc.calc_check_digit(body + "0")
    return number, number.lower(), f"{number[:8]}-{number[8:17]}-{number[17]}", _full_width(number)


def _passport(rng: Random) -> tuple[str, ...]:
    number = f"ZZ{rng.randrange(10**7):07d}"
    return number, f" {number.lower()} ", f"{number[:2]} {number[2:]}", _full_width(number)


def _hk_macau_permit(rng: Random) -> tuple[str, ...]:
    number = f"{rng.choice('HM')}99{rng.randrange(10**6):06d}"
    return number, number + "00", f"{number.lower()}-03", _full_width(number)


def _taiwan_permit(rng: Random) -> tuple[str, ...]:
    number = f"99{rng.randrange(10**6):06d}"
    return number, number + "01", number + "02(B)", _full_width(number)


_MAKERS: dict[str, Callable[[Random], tuple[str, ...]]] = {
    "resident_id": _resident_id,
    "old_resident_id": lambda rng: _resident_id(rng, 1950, 45),
    "passport": _passport,
    "hk_macau_permit": _hk_macau_permit,
    "taiwan_permit": _taiwan_permit,
    "organization": _credit_code,
}


def _full_width(text: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


# --- what happens --------------------------------------------------------------------------------------------------


def _write_case(files: "_Files", name: str, case: _Case) -> None:
    person = files.person(case.kind, name, case.total)
    for covers in case.covers:
        count = min(covers.policies, len(files.insurers) - 2) if covers.fate == "everywhere" else covers.policies
        chosen = files.rng.sample(files.insurers, min(count, len(files.insurers)))
        for place, fen in enumerate(_parts(files.rng, covers.fen, count)):
            day = files.rng.randint(-27, -1) if covers.day is None else covers.day
            first = {"amend-up": fen // 5, "amend-down": fen * 5}.get(covers.fate, fen)
            product = "group_accident" if covers.fate == "rider" else covers.product
            spelling = person.spellings[place % len(person.spellings)]
            policy = files.issue(person, chosen[place % len(chosen)], first, day, product=product, spelling=spelling)
            files.befall(policy, covers.fate, fen)


def _parts(rng: Random, fen: int, count: int) -> list[int]:
    """Split a sum into unequal parts, all but the last in whole ten thousands of yuan."""
    step = 10_000 * YUAN
    parts: list[int] = []
    for left in range(count, 1, -1):
        parts.append(int((fen - sum(parts)) / left * rng.uniform(0.96, 1.04)) // step * step)
    return [*parts, fen - sum(parts)]


def _write_ordinary(files: "_Files", person: SamplePerson) -> None:
    rng = files.rng
    for _ in range(rng.choices((0, 1, 2, 3, 4, 6), (2, 44, 26, 14, 9, 5))[0]):
        fen = rng.choice(_LARGE_AMOUNTS if rng.random() < 0.08 else _AMOUNTS)  # noqa: PLR2004  an arbitrary share
        odd = rng.randrange(100_000) if rng.random() < 0.1 else 0  # noqa: PLR2004  an arbitrary share
        day = rng.choice((rng.randint(-120, -31), rng.randint(-29, 0), FIRST_DAY - 1, FIRST_DAY, rng.randint(1, 25)))
        policy = files.issue(person, rng.choice(files.insurers), fen + odd, day, product=rng.choice(_PRODUCTS))
        fates = ("", "cancel", "amend-up", "amend-down", "amend-and-cancel", "repeat", "rider", "conflict")
        changed = {"amend-up": policy.fen * 2, "amend-down": policy.fen // 2 + 1}
        fate = rng.choices(fates, (78, 6, 4, 3, 1, 4, 3, 1))[0]
        files.befall(policy, fate, changed.get(fate, policy.fen))


def _write_group_policy(files: "_Files", insurer: str, insured: list[SamplePerson]) -> None:
    """One number for many insured, some of whom have a rider of another product under the same number."""
    number, day = files.new_number(insurer), files.rng.randint(-40, 0)
    for person in insured:
        policy = files.issue(person, insurer, 300_000 * YUAN, day, product="group_accident", number=number)
        if files.rng.randrange(2):
            files.befall(policy, "rider", 200_000 * YUAN)


class _Files:
    """The rows of all insurers. Each has a place between 0 and 1 in its file, so that people and events mingle."""

    def __init__(self, rng: Random, members: int, today: date) -> None:
        self.rng = rng
        self.today = today
        self.insurers = [f"insurer-{number + 1:02d}" for number in range(members)]
        self.people: list[SamplePerson] = []
        self.policies: list[SamplePolicy] = []
        self.amounts: set[int] = set()
        self._rows: dict[str, list[tuple[float, list[str]]]] = {insurer: [] for insurer in self.insurers}
        self._places: dict[SamplePolicy, float] = {}
        self._numbers: set[str] = set()
        self._serial = 0

    def person(self, kind: str, case: str | None = None, total: int | None = None) -> SamplePerson:
        """Make a person whom nobody knows yet."""
        spellings = _MAKERS[kind](self.rng)
        while spellings[0] in self._numbers:
            spellings = _MAKERS[kind](self.rng)
        self._numbers.add(spellings[0])
        document_type = kind.removeprefix("old_")
        self.people.append(SamplePerson(document_type, tuple(dict.fromkeys(spellings)), case, total))
        return self.people[-1]

    def new_number(self, insurer: str) -> str:
        """Return a policy number that is not in use."""
        self._serial += 1
        return f"P{insurer[-2:]}-{self._serial:06d}"

    def issue(
        self,
        person: SamplePerson,
        insurer: str,
        fen: int,
        day: int,
        *,
        product: str = "accident",
        number: str | None = None,
        spelling: str | None = None,
    ) -> SamplePolicy:
        """Issue a policy on a day counted from today."""
        issued_on = self.today + timedelta(days=day)
        policy = SamplePolicy(insurer, number or self.new_number(insurer), person, product, issued_on, fen)
        self.policies.append(policy)
        self._places[policy] = self.rng.uniform(0, 0.7)
        self._event(policy, "issue", fen, policy.day, spelling)
        return policy

    def befall(self, policy: SamplePolicy, fate: str, fen: int) -> None:
        """Let happen to a policy what `fate` says; `fen` is the new amount, or a rider's."""
        lately = max(policy.day, self.today - timedelta(days=self.rng.randrange(3)))
        if fate in ("amend-up", "amend-down"):
            self._event(policy, "amend", fen, lately)
        elif fate == "amend-and-cancel":
            self._event(policy, "amend", fen // 2 + YUAN, lately)
        if fate in ("cancel", "amend-and-cancel"):
            self._event(policy, "cancel", 0 if self.rng.randrange(2) else policy.fen, lately)
        if fate == "conflict":
            self._event(policy, "issue", policy.fen + 47 * MILLION, policy.day)
        elif fate == "rider":
            day = (policy.day - self.today).days
            product = "accident" if policy.product != "accident" else "group_accident"
            self.issue(policy.person, policy.insurer, fen, day, product=product, number=policy.number)
        elif fate == "repeat" or (fate == "cancel" and self.rng.randrange(8) == 0):
            self._event(policy, "issue", policy.fen, policy.day)  # an export of everything, after the event

    def _event(self, policy: SamplePolicy, event: str, fen: int, day: date, spelling: str | None = None) -> None:
        """Write a row behind the policy's earlier ones, in some spelling."""
        self._places[policy] = self.rng.uniform(self._places[policy], 1)
        self.amounts |= {fen} - {0}
        written = spelling or self.rng.choice((*policy.person.spellings[:1] * 4, *policy.person.spellings))
        amount = self._amount(fen) if fen else ""
        cells = [policy.number, policy.person.document_type, written, policy.product, amount, day.isoformat(), event]
        self._rows[policy.insurer].append((self._places[policy], cells))

    def _amount(self, fen: int) -> str:
        plain = f"{fen // YUAN}.{fen % YUAN:02d}"
        ways = [plain, plain, plain, f" {plain}", _full_width(plain), plain.removesuffix("0")]
        return self.rng.choice(ways if fen % YUAN else [*ways, plain.removesuffix(".00")])

    def put_error(self, insurer: str, wrong: dict[str, str]) -> None:
        """Put a row with something wrong at any place of an insurer's file."""
        number, document = self.new_number(insurer), _resident_id(self.rng)[0]
        cells = (number, "resident_id", document, "accident", "100000.00", self.today.isoformat(), "issue")
        row = dict(zip(_COLUMNS, cells, strict=True)) | wrong
        self._rows[insurer].append((self.rng.random(), list(row.values())))

    def save(self, directory: Path) -> int:
        """Write the files, each insurer's in a fashion of its own, and return how many rows they have."""
        for place, (insurer, rows) in enumerate(self._rows.items()):
            cells = [list(_COLUMNS), *(row for _, row in sorted(rows, key=lambda entry: entry[0]))]
            (directory / f"{insurer}.csv").write_bytes(_FASHIONS[place % len(_FASHIONS)](cells))
        return sum(map(len, self._rows.values()))


def _csv(rows: list[list[str]], end: str = "\n", *, quote_all: bool = False) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL)
    writer.writerows(rows)
    return text.getvalue().encode()


def _rearranged(rows: list[list[str]]) -> bytes:
    """Return a file with its columns in another order, one more, and line ends inside cells."""
    branches = ("branch", *("north gate,\nsecond floor" for _ in rows[1:]))
    return _csv([[*reversed(row), branch] for row, branch in zip(rows, branches, strict=True)])


_FASHIONS: tuple[Callable[[list[list[str]]], bytes], ...] = (
    _csv,
    lambda rows: codecs.BOM_UTF8 + _csv(rows, "\r\n"),
    _rearranged,
    lambda rows: _csv(rows, quote_all=True),
    lambda rows: _csv([rows[0], [], *rows[1:], []]),
)
"""The fashions in which insurers write their files."""
