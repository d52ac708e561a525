"""The table of SPEC.md, section 2, cell by cell: no party tells apart worlds that differ in what it may not see.

A live alliance plays scripts (`worlds.py`); what a party was sent, opened, stored and logged in one is compared with
what it was in another: lengths, counts, order, which values are equal, and every value that is not random. Each
comparison has a twin that shows it told apart what the party may see. The attacks are in
`test_privacy_attacks.py` and `test_privacy_amounts.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from world import seeded
from worlds import (
    ASKER,
    DEPOSITS,
    FIRST,
    KEEPER,
    MEMBERS,
    SECOND,
    Recording,
    Step,
    name,
    recorded,
)
from worlds_seen import seen_at_all, seen_by_custodian, seen_by_requester, seen_by_service, view

from insurer_agent.depositor import BATCH, batches
from insurer_agent.store.outbox import Outgoing
from protocol.deposit import MadeDeposit
from protocol.encoding import decode, encode
from protocol.manifest import SignedManifest, Terms
from protocol.messages import Deposit, DepositBatch

pytestmark = pytest.mark.alliance

ROOT = Path(__file__).parents[2]
REQUESTER, CUSTODIAN, SERVICE, ADMIN = (
    "member as requester",
    "member as custodian",
    "lookup service",
    "alliance admin",
)
IDENTITY, AMOUNTS, WHO_INSURES, VERDICT, CHECK_MADE, DEPOSIT_MADE = (
    "identity of the applicant",
    "amounts, the total",
    "who insures the person",
    "the verdict",
    "that a check was made",
    "that a deposit was made",
)
_CUSTODIANS = (
    "a_custodian_does_not_tell_another_person_other_amounts_and_another_verdict_apart",
    "a_custodian_tells_apart_what_it_may_see",
)
_SERVICE = (
    "the_service_does_not_tell_another_person_other_amounts_and_another_verdict_apart",
    "the_service_does_not_tell_apart_whether_deposits_and_checks_are_about_one_person",
    "the_service_tells_apart_what_it_may_see",
)
_ADMIN = (
    "all_that_an_admin_handles_is_byte_for_byte_the_same_in_every_world",
    "an_admin_tells_another_manifest_apart",
)
CELLS: dict[tuple[str, str], tuple[str, ...]] = {
    (IDENTITY, REQUESTER): (
        "nothing_of_a_check_reaches_its_requesters_group_or_a_member_that_keeps_nothing_of_the_shard",
        "a_requester_finds_its_applicant_among_the_rows_that_it_keeps_only_with_c",
    ),
    (IDENTITY, CUSTODIAN): (*_CUSTODIANS, "a_custodians_dictionary_names_nobody_unless_it_has_ks"),
    (IDENTITY, SERVICE): (*_SERVICE[::2], "the_services_dictionary_names_nobody_even_with_the_salt_unless_it_has_d"),
    (IDENTITY, ADMIN): (*_ADMIN, "an_admins_dictionary_names_nobody_even_with_the_salt_unless_it_is_told_a_token"),
    (AMOUNTS, REQUESTER): (
        "a_requester_does_not_tell_other_insurers_and_amounts_of_one_verdict_apart",
        "a_requester_tells_the_verdict_apart",
        "a_requester_opens_no_comparison_without_the_committee_key_that_leaves_it_out",
    ),
    (AMOUNTS, CUSTODIAN): (
        *_CUSTODIANS,
        "a_custodians_own_shares_fit_every_amount_and_with_another_custodians_only_the_true_one",
        "the_shares_of_one_custodian_do_not_point_to_the_amount_over_many_deposits",
    ),
    (AMOUNTS, SERVICE): (
        *_SERVICE[::2],
        "digests_of_shares_open_no_amount_unless_the_salt_of_the_last_is_known",
        "labels_of_a_comparison_open_no_total_unless_the_label_seed_is_known",
    ),
    (AMOUNTS, ADMIN): _ADMIN,
    (WHO_INSURES, REQUESTER): (
        "a_requester_does_not_tell_other_insurers_and_amounts_of_one_verdict_apart",
        "a_requester_finds_its_applicant_among_the_rows_that_it_keeps_only_with_c",
    ),
    (WHO_INSURES, CUSTODIAN): _CUSTODIANS,
    (WHO_INSURES, SERVICE): (
        *_SERVICE[1:],
        "a_batch_tells_that_its_deposits_are_of_different_persons_and_no_more",
        "the_service_links_no_deposit_to_a_check_of_the_same_person_unless_they_are_not_blinded",
    ),
    (WHO_INSURES, ADMIN): _ADMIN,
    (VERDICT, REQUESTER): (
        "a_requester_does_not_tell_other_insurers_and_amounts_of_one_verdict_apart",
        "a_requester_tells_the_verdict_apart",
    ),
    (VERDICT, CUSTODIAN): (*_CUSTODIANS, "no_custodian_holds_the_tag_of_a_verdict_unless_it_is_told_the_answer"),
    (VERDICT, SERVICE): (
        *_SERVICE[::2],
        "the_service_reads_no_tag_unless_it_has_the_requesters_seed",
        "which_output_row_opens_says_nothing_of_the_verdict_unless_the_permute_bit_is_known",
    ),
    (VERDICT, ADMIN): _ADMIN,
    (CHECK_MADE, REQUESTER): (
        "nothing_of_a_check_reaches_its_requesters_group_or_a_member_that_keeps_nothing_of_the_shard",
    ),
    (CHECK_MADE, CUSTODIAN): _CUSTODIANS,
    (CHECK_MADE, SERVICE): _SERVICE,
    (CHECK_MADE, ADMIN): _ADMIN,
    (DEPOSIT_MADE, REQUESTER): (
        "nothing_of_a_deposit_reaches_its_depositors_group_or_a_member_that_keeps_nothing_of_the_shard",
    ),
    (DEPOSIT_MADE, CUSTODIAN): _CUSTODIANS,
    (DEPOSIT_MADE, SERVICE): (
        *_SERVICE,
        "the_service_does_not_tell_kinds_products_and_days_of_deposits_apart",
        "a_batch_tells_that_its_deposits_are_of_different_persons_and_no_more",
    ),
    (DEPOSIT_MADE, ADMIN): _ADMIN,
}
"""The tests of each cell, without `test_`."""


def cells_of_the_table() -> dict[tuple[str, str], str]:
    text = (ROOT / "protocol" / "SPEC.md").read_text(encoding="utf-8")
    section = text[text.index("## 2. Parties") : text.index("**Claim.**")]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    return {(row[0], party): cell for row in rows for party, cell in zip(head[1:], row[1:], strict=True)}


def test_every_cell_of_the_table_has_its_tests_and_they_exist() -> None:
    cells = cells_of_the_table()
    assert len(cells) == 6 * 4
    assert set(cells) == set(CELLS)
    texts = [
        Path(__file__).with_name(f"test_privacy_{part}.py").read_text("utf-8")
        for part in ("worlds", "attacks", "amounts")
    ]
    there = {found for text in texts for found in re.findall(r"^def test_(\w+)\(", text, re.MULTILINE)}
    named = {test for tests in CELLS.values() for test in tests}
    assert named <= there
    assert all(CELLS.values())


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return recorded(tmp_path_factory.getbasetemp())


def steps(worlds: Recording, world: str, *places: int) -> list[Step]:
    played = worlds.worlds[world]
    return [played[place] for place in places] if places else list(played)


def as_custodian(worlds: Recording, member: int, these: Sequence[Step]) -> Any:  # noqa: ANN401  something to compare
    return view(these, worlds.history, partial(seen_by_custodian, worlds, member, comparing=True))


def as_service(worlds: Recording, these: Sequence[Step]) -> Any:  # noqa: ANN401  as above
    return view(these, worlds.history, partial(seen_by_service, comparing=True))


def as_requester(worlds: Recording, member: int, these: Sequence[Step]) -> Any:  # noqa: ANN401  as above
    return view(these, worlds.history, partial(seen_by_requester, member))


ISSUED, AMENDED, BY_ANOTHER, ASKED, ASKED_BY_ANOTHER = range(5)
"""The steps of the worlds `little` and `much`; `scattered` has the same members do the same about other persons."""


def test_the_worlds_are_what_they_are_meant_to_be(worlds: Recording) -> None:
    verdicts = {
        world: [step.answer["verdict"] for step in played if step.answer is not None]
        for world, played in worlds.worlds.items()
    }
    assert verdicts["little"] == ["within", "within"]
    assert verdicts["much"] == ["exceeds", "exceeds"]
    assert verdicts["scattered"] == ["exceeds", "within"]
    assert verdicts["grown"] == verdicts["elsewhere"] == verdicts["other rule"] == ["within"]
    assert not set(worlds.persons["little"]) & set(worlds.persons["much"])
    makers = [[step.member for step in worlds.worlds[world]] for world in ("little", "much", "scattered")]
    assert makers == [[FIRST, FIRST, SECOND, worlds.outsider, ASKER]] * 3


# --- a custodian ---------------------------------------------------------------------------------------------------


def test_a_custodian_does_not_tell_another_person_other_amounts_and_another_verdict_apart(worlds: Recording) -> None:
    for member in worlds.custodians:
        little, much = (as_custodian(worlds, member, steps(worlds, world)) for world in ("little", "much"))
        assert little == much
        assert sum(len(step) for step in little) > 20, "it saw the deposits and checks of others"


DIFFERENCES = [
    ("depositor", [("little", ISSUED)], [("little", BY_ANOTHER)]),
    ("kind", [("little", ISSUED)], [("little", AMENDED)]),
    ("product", [("little", ISSUED)], [("scattered", ISSUED)]),
    ("day", [("little", ISSUED)], [("scattered", AMENDED)]),
    ("pseudonym of two deposits", [("little", ISSUED), ("little", AMENDED)], [("little", ISSUED), ("much", AMENDED)]),
    ("pseudonym of two checks", [("much", ASKED), ("much", ASKED_BY_ANOTHER)], [("much", ASKED), ("grown", 1)]),
    ("requester", [("little", ASKED)], [("little", ASKED_BY_ANOTHER)]),
    ("rule", [("little", ASKED)], [("other rule", 0)]),
    ("shard", [("little", ASKED)], [("elsewhere", 0)]),
]


@pytest.mark.parametrize(("_what", "left", "right"), DIFFERENCES, ids=[entry[0] for entry in DIFFERENCES])
def test_a_custodian_tells_apart_what_it_may_see(
    worlds: Recording, _what: str, left: list[tuple[str, int]], right: list[tuple[str, int]]
) -> None:
    views = [
        as_custodian(worlds, KEEPER, [worlds.worlds[world][place] for world, place in side]) for side in (left, right)
    ]
    assert views[0] != views[1]


# --- the service ---------------------------------------------------------------------------------------------------


def test_the_service_does_not_tell_another_person_other_amounts_and_another_verdict_apart(worlds: Recording) -> None:
    little, much = (as_service(worlds, steps(worlds, world)) for world in ("little", "much"))
    assert little == much
    assert all(little), "it saw something of every step"


def test_the_service_does_not_tell_apart_whether_deposits_and_checks_are_about_one_person(worlds: Recording) -> None:
    assert as_service(worlds, steps(worlds, "little")) == as_service(worlds, steps(worlds, "scattered"))


def test_the_service_does_not_tell_kinds_products_and_days_of_deposits_apart(worlds: Recording) -> None:
    issued = as_service(worlds, steps(worlds, "little", ISSUED))
    for world, place in (("little", AMENDED), ("scattered", ISSUED), ("scattered", AMENDED)):
        assert as_service(worlds, steps(worlds, world, place)) == issued
    assert as_service(worlds, steps(worlds, "grown", 0)) == as_service(worlds, steps(worlds, "grown", 2))


def test_a_batch_tells_that_its_deposits_are_of_different_persons_and_no_more(worlds: Recording) -> None:
    """An issue and its amendment in one file, and two persons' issues in one file: these may share a batch."""
    one, two = (
        [len(decode(DepositBatch, item.call.batch).deposits) for item in step.of("service", DEPOSITS)]
        for step in steps(worlds, "at once")
    )
    assert one == [1, 1]
    assert two in ([2], [1, 1])
    if two == one:
        assert as_service(worlds, steps(worlds, "at once", 0)) == as_service(worlds, steps(worlds, "at once", 1))


def test_batches_of_different_persons_are_cut_at_random() -> None:
    made = MadeDeposit(0, 1, Deposit(deposit_id=bytes(16), blinded=bytes(32), envelopes=()), bytes(32))
    ready = [(Outgoing(seq, bytes(16), 0, 1, None, made, 0), made) for seq in range(300)]
    random = seeded("cuts")
    cuts = [[len(batch) for batch in batches(ready[:count], random)] for count in (2, 300) for _ in range(60)]
    assert {sum(sizes) for sizes in cuts} == {2, 300}
    assert {tuple(sizes) for sizes in cuts if sum(sizes) == 2} == {(2,), (1, 1)}
    assert max(max(sizes) for sizes in cuts) <= BATCH
    whole = [sizes for sizes in cuts if sum(sizes) == 300]
    assert len({tuple(sizes) for sizes in whole}) > len(whole) // 2
    assert {sizes[0] == BATCH for sizes in whole} == {True, False}
    assert min(sizes[-1] for sizes in whole) < BATCH // 8  # as one that follows by itself may be


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("little", ASKED), ("little", ASKED_BY_ANOTHER)),
        (("little", ASKED), ("other rule", 0)),
        (("little", ASKED), ("elsewhere", 0)),
        (("little", ISSUED), ("little", BY_ANOTHER)),
        (("little", ISSUED), ("grown", 0)),
        (("little", ISSUED), ("little", ASKED)),
    ],
    ids=["requester", "rule", "shard", "depositor", "excluded slot", "deposit or check"],
)
def test_the_service_tells_apart_what_it_may_see(
    worlds: Recording, left: tuple[str, int], right: tuple[str, int]
) -> None:
    assert as_service(worlds, steps(worlds, *left)) != as_service(worlds, steps(worlds, *right))


# --- a requester, and members that something is none of the business of --------------------------------------------


def test_a_requester_does_not_tell_other_insurers_and_amounts_of_one_verdict_apart(worlds: Recording) -> None:
    """One applicant, one proposal: 3.2 million from two insurers, then 13.2 million from three."""
    before, after = steps(worlds, "little", ASKED_BY_ANOTHER), steps(worlds, "grown", 1)
    assert as_requester(worlds, ASKER, before) == as_requester(worlds, ASKER, after)
    assert all(as_requester(worlds, ASKER, before))


def test_a_requester_tells_the_verdict_apart(worlds: Recording) -> None:
    """And nothing else: the views of two applicants with two totals differ in the bit alone."""
    within, exceeds = (
        as_requester(worlds, ASKER, steps(worlds, world, ASKED_BY_ANOTHER))[0] for world in ("little", "much")
    )
    assert within[1:] == exceeds[1:]
    differing = [left[0] for left, right in zip(within[0], exceeds[0], strict=True) if left != right]
    assert sorted(differing) == ["advice", "exceeds_limit", "verdict"]


def strangers(worlds: Recording, step: Step) -> set[int]:
    """Return the members whom nothing of a step may reach: its maker's group, and who holds no slot of the shard."""
    return {worlds.outsider, step.member} | ({worlds.affiliate} if step.member == worlds.outsider else set())


def assert_reaches_its_custodians_alone(worlds: Recording, *, checked: bool) -> None:
    found = set()
    for world in ("little", "much", "scattered", "grown"):
        for step in worlds.worlds[world]:
            if (step.answer is not None) == checked:
                away = strangers(worlds, step)
                reached = {member for member in range(1, MEMBERS + 1) if seen_at_all(member, step)}
                assert reached == set(range(1, MEMBERS + 1)) - away
                found |= {(step.member, member) for member in away}
    assert (worlds.outsider, worlds.affiliate) in found, "an affiliate's turn came"


def test_nothing_of_a_check_reaches_its_requesters_group_or_a_member_that_keeps_nothing_of_the_shard(
    worlds: Recording,
) -> None:
    assert_reaches_its_custodians_alone(worlds, checked=True)


def test_nothing_of_a_deposit_reaches_its_depositors_group_or_a_member_that_keeps_nothing_of_the_shard(
    worlds: Recording,
) -> None:
    assert_reaches_its_custodians_alone(worlds, checked=False)


# --- an admin ------------------------------------------------------------------------------------------------------


def test_all_that_an_admin_handles_is_byte_for_byte_the_same_in_every_world(worlds: Recording) -> None:
    first, *others = [step.admin for step in worlds.history]
    assert len(others) > 20
    assert all(other == first for other in others)
    expected = {f"members/{name(member)}/enrolment.json" for member in range(1, MEMBERS + 1)}
    expected |= {"admin/admin-1.key", "service/manifest.bin", "service/service.json", "/v1/manifest", "/readyz"}
    expected |= {"ca/ca.key", "ca/ca.pem", "ca/crl.pem", "/v1/revocations"}
    assert expected <= set(first)


def test_an_admin_tells_another_manifest_apart(worlds: Recording) -> None:
    held = dict(worlds.history[0].admin)
    signed = decode(SignedManifest, held["service/manifest.bin"])
    terms = decode(Terms, signed.terms)
    other = replace(signed, terms=encode(replace(terms, serial=terms.serial + 1)))
    assert held | {"service/manifest.bin": encode(other)} != held
