"""The samples are what they say: each case counts what it is meant to, and every file can be read."""

import datetime as dt
from pathlib import Path

import pytest
from oracle import canonical, plain_totals

from insurer_agent.intake.documents import normalise
from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.intake.policy_file import read_policies
from service.admin.samples import ACCUMULATOR, CASES, LIMIT, MILLION, Samples, make_samples

TODAY = dt.date(2026, 11, 23)
MEMBERS = 25
PRODUCTS = frozenset({"accident", "group_accident", "term_life"})
MAXIMUM = 10**12


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def samples(directory: Path) -> Samples:
    return make_samples(directory, members=MEMBERS, people=1000, today=TODAY, seed=1)


@pytest.fixture(scope="module")
def totals(samples: Samples, directory: Path) -> dict[tuple[str, str], int]:
    return plain_totals(directory, samples.today)


@pytest.fixture(scope="module")
def rows(samples: Samples, directory: Path) -> dict[str, list[PolicyRow | RejectedRow]]:
    """Every insurer's rows as its own intake reads them."""
    del samples
    files = sorted(directory.iterdir())
    return {file.stem: list(read_policies(file, products=PRODUCTS, maximum=MAXIMUM)) for file in files}


@pytest.mark.parametrize("name", CASES)
def test_a_case_counts_what_it_is_meant_to(samples: Samples, totals: dict[tuple[str, str], int], name: str) -> None:
    person = samples.case(name)
    assert totals.get(person.identity, 0) == person.total
    assert bool(samples.policies_of(person)) == (name != "newcomer")


def test_ordinary_people_are_far_from_the_limit(samples: Samples, totals: dict[tuple[str, str], int]) -> None:
    ordinary = [totals.get(person.identity, 0) for person in samples.people if person.case is None]
    assert 0 < max(ordinary) < LIMIT - 3 * MILLION
    assert ordinary.count(0) < len(ordinary) / 2


def test_the_motivating_case(samples: Samples, totals: dict[tuple[str, str], int]) -> None:
    person = samples.case(ACCUMULATOR)
    policies = samples.policies_of(person)
    insurers = {policy.insurer for policy in policies}
    assert totals[person.identity] > 100 * MILLION
    assert len(policies) == len(insurers) > 20
    assert len(insurers) < MEMBERS  # someone is left to ask who knows nothing of him
    assert max(policy.fen for policy in policies) < 6 * MILLION
    assert all(TODAY - dt.timedelta(days=29) <= policy.day < TODAY for policy in policies)


@pytest.mark.parametrize("members", [5, 7])
def test_a_small_alliance_has_the_same_cases(tmp_path: Path, members: int) -> None:
    few = make_samples(tmp_path, members=members, people=30, today=TODAY, seed=3)
    sums = plain_totals(tmp_path, TODAY)
    assert len(list(tmp_path.iterdir())) == members
    assert {name: sums.get(few.case(name).identity, 0) for name in CASES} == {
        name: case.total for name, case in CASES.items()
    }
    accumulated = few.policies_of(few.case(ACCUMULATOR))
    assert len({policy.insurer for policy in accumulated}) == len(accumulated) == members - 2
    assert max(policy.fen for policy in accumulated) < LIMIT


def test_an_alliance_is_not_too_small(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 5"):
        make_samples(tmp_path, members=4, people=30, today=TODAY, seed=3)


def test_the_same_seed_makes_the_same_files(samples: Samples, directory: Path, tmp_path: Path) -> None:
    again = make_samples(tmp_path / "same", members=MEMBERS, people=1000, today=TODAY, seed=1)
    make_samples(tmp_path / "other", members=MEMBERS, people=1000, today=TODAY, seed=2)
    assert again == samples
    for file in directory.iterdir():
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "other" / file.name).read_bytes() != file.read_bytes()


@pytest.mark.parametrize("seed", range(5))
def test_the_cases_hold_for_any_seed_and_day(tmp_path: Path, seed: int) -> None:
    today = dt.date(2024, 2, 28) + dt.timedelta(days=37 * seed)
    few = make_samples(tmp_path, members=5 + 4 * seed, people=10, today=today, seed=seed)
    sums = plain_totals(tmp_path, today)
    assert all(sums.get(few.case(name).identity, 0) == case.total for name, case in CASES.items())


def test_every_row_is_read_or_refused_for_what_is_wrong_in_it(
    samples: Samples, rows: dict[str, list[PolicyRow | RejectedRow]]
) -> None:
    everything = [row for of_insurer in rows.values() for row in of_insurer]
    rejected = [row for row in everything if isinstance(row, RejectedRow)]
    assert len(everything) == samples.rows > 2000
    assert len(rejected) == 5 * 13
    assert {row.code for row in rejected} == {
        "amount-grouping",
        "amount-not-positive",
        "amount-not-whole-fen",
        "birth-date-wrong",
        "check-digit-wrong",
        "date-ambiguous",
        "document-number-empty",
        "document-type-unknown",
        "event-unknown",
        "no-such-day",
        "number-lost-digits",
        "policy-number-empty",
        "product-unknown",
    }


def test_intake_and_oracle_agree_on_who_is_who(samples: Samples) -> None:
    for person in samples.people:
        for spelling in person.spellings:
            insured = normalise(person.document_type, spelling)
            assert (insured.document_type.value, insured.number) == person.identity
            assert canonical(person.document_type, spelling) == person.identity
    assert len({person.identity for person in samples.people}) == len(samples.people)
    assert {person.document_type for person in samples.people} == {
        "resident_id",
        "passport",
        "hk_macau_permit",
        "taiwan_permit",
        "organization",
    }


def test_the_files_are_as_messy_as_real_ones(rows: dict[str, list[PolicyRow | RejectedRow]], directory: Path) -> None:
    read = [(name, row) for name, of_insurer in rows.items() for row in of_insurer if isinstance(row, PolicyRow)]
    issues = [(name, row.policy_number, row.insured, row.product) for name, row in read if row.event.value == "issue"]
    numbers = {(name, number) for name, number, *_ in issues}
    assert len(numbers) < len(set(issues)) < len(issues)  # group policies and riders; repeats and conflicts
    assert {row.event.value for _, row in read} == {"issue", "cancel", "amend"}
    assert {row.product for _, row in read} == PRODUCTS
    assert any(row.issued_on > TODAY for _, row in read)
    assert any(row.event.value == "cancel" and row.amount == 0 for _, row in read)
    content = b"".join(file.read_bytes() for file in directory.iterdir())
    assert all(mark in content for mark in (b"\xef\xbb\xbf", b"\r\n", b'"', "\N{FULLWIDTH DIGIT ONE}".encode()))


def test_nothing_that_is_printed_shows_a_number_or_an_amount(samples: Samples) -> None:
    person = samples.case(ACCUMULATOR)
    shown = repr(person) + repr(samples.policies_of(person)[0])
    assert not any(spelling in shown for spelling in person.spellings)
    assert str(samples.policies_of(person)[0].fen) not in shown
