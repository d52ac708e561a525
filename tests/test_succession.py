"""What may follow a manifest: more rules and later versions of them, under the same keys; never another past."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from test_manifest import PINS, TERMS, WORLD, signed
from world import COUNT_RULE, NOW, RULE, TODAY, make_world

from protocol.errors import ProtocolError
from protocol.manifest import (
    Manifest,
    Rule,
    Terms,
    hash_of,
    open_manifest,
    require_same_connections,
    require_succession,
    verify_manifest,
)

DAY = 86_400


def after(previous: Terms, *, days: int = 0, serials: int = 1, **changes: object) -> Terms:
    """Return terms that follow, issued so many days later."""
    issued_at = previous.issued_at + days * DAY
    return replace(
        previous,
        serial=previous.serial + serials,
        previous=hash_of(previous),
        issued_at=issued_at,
        valid_until=issued_at + 30 * DAY,
        **changes,
    )


def refusal(previous: Terms, terms: Terms, earlier: Sequence[Terms] = ()) -> str | None:
    Manifest.of(terms)
    try:
        require_succession(previous, terms, earlier)
    except ProtocolError as refused:
        return refused.code
    return None


FIRST = replace(
    TERMS,
    issued_at=int(NOW),
    valid_until=int(NOW) + 30 * DAY,
    plain_http=0,
    tls_authority=b"\x01" * 32,
    service_url="https://service.example",
    members=tuple(replace(member, url=f"https://{member.id}.example") for member in TERMS.members),
    rules=(RULE, COUNT_RULE),
)
SECOND = replace(RULE, version=2, limit=RULE.limit // 2, valid_from=TODAY)


def test_what_stays_the_same_and_what_grows_may_follow() -> None:
    moved = replace(FIRST.members[0], url="https://elsewhere.example")
    good: list[dict[str, object]] = [
        {},
        {"rules": (RULE, SECOND, COUNT_RULE)},
        {"rules": (RULE, replace(SECOND, valid_from=TODAY + 7), COUNT_RULE)},
        {"rules": (SECOND, COUNT_RULE)},  # nobody is asked by the first any more
        {"rules": (RULE,)},
        {"rules": ()},
        {"rules": (*FIRST.rules, replace(RULE, id="new", valid_from=TODAY))},
        {"products": (*FIRST.products, "travel")},
        {"deposit_cap": FIRST.deposit_cap + 1},
        {"service_url": "https://elsewhere.example"},
        {"members": (moved, *FIRST.members[1:])},
    ]
    for changes in good:
        assert refusal(FIRST, after(FIRST, **changes)) is None, changes
        require_same_connections(FIRST, after(FIRST, **changes))


UNPUBLISHED = after(FIRST, rules=(RULE, SECOND, COUNT_RULE))
"""Signed by M admins, and withdrawn."""
OTHER = make_world(7, shards=2, seed="another alliance").manifest.terms
BENDS: dict[str, tuple[Callable[[Terms], Terms], str]] = {
    "alliance": (lambda terms: replace(terms, alliance="another"), "other-alliance"),
    "the same serial": (
        lambda terms: replace(terms, serial=FIRST.serial, previous=FIRST.previous, rules=()),
        "manifest-older",
    ),
    "issued earlier": (lambda terms: replace(terms, issued_at=FIRST.issued_at - 1), "manifest-older"),
    "another that was signed": (
        lambda terms: replace(terms, previous=hash_of(replace(FIRST, rules=(SECOND,)))),
        "other-previous",
    ),
    "none before": (lambda terms: replace(terms, previous=bytes(32)), "other-previous"),
    "epoch": (lambda terms: replace(terms, epoch=2), "other-epoch"),
    "Ks": (lambda terms: replace(terms, blinding_key=OTHER.blinding_key), "other-epoch"),
    "salt": (lambda terms: replace(terms, salt_check=bytes(32)), "other-epoch"),
    "ticks": (lambda terms: replace(terms, tick_seconds=terms.tick_seconds + 1), "other-epoch"),
    "shards": (lambda terms: replace(terms, shards=1, committees=terms.committees[:1]), "other-epoch"),
    "slots": (
        lambda terms: replace(
            terms,
            committees=(
                replace(terms.committees[0], slots=terms.committees[0].slots[::-1]),
                *terms.committees[1:],
            ),
        ),
        "other-epoch",
    ),
    "a committee's version": (
        lambda terms: replace(terms, committees=(replace(terms.committees[0], version=2), *terms.committees[1:])),
        "other-epoch",
    ),
    "owner": (
        lambda terms: replace(terms, members=(replace(terms.members[0], group="elsewhere"), *terms.members[1:])),
        "other-epoch",
    ),
    "cap": (lambda terms: replace(terms, deposit_cap=terms.deposit_cap - 1), "cap-lowered"),
    "limit": (lambda terms: replace(terms, rules=(replace(RULE, limit=1), COUNT_RULE)), "rule-rewritten"),
    "products": (
        lambda terms: replace(terms, rules=(replace(RULE, products=(terms.products[-1],)), COUNT_RULE)),
        "rule-rewritten",
    ),
    "window": (lambda terms: replace(terms, rules=(replace(RULE, window_days=31), COUNT_RULE)), "rule-rewritten"),
    "budget": (lambda terms: replace(terms, rules=(replace(RULE, budget=51), COUNT_RULE)), "rule-rewritten"),
    "the day of a version": (
        lambda terms: replace(terms, rules=(replace(RULE, valid_from=TODAY), COUNT_RULE)),
        "rule-rewritten",
    ),
    "in force before it was issued": (
        lambda terms: replace(terms, rules=(RULE, replace(SECOND, valid_from=TODAY - 1), COUNT_RULE)),
        "rule-back-dated",
    ),
    "a new rule in force before it was issued": (
        lambda terms: replace(terms, rules=(*FIRST.rules, replace(RULE, id="new"))),
        "rule-back-dated",
    ),
}


@pytest.mark.parametrize("what", BENDS)
def test_nothing_else_may(what: str) -> None:
    bend, code = BENDS[what]
    assert refusal(FIRST, bend(after(FIRST))) == code


def test_what_follows_one_that_was_signed_and_never_published_is_not_taken_after_the_one_that_was() -> None:
    published = after(FIRST, rules=(RULE, COUNT_RULE))
    meant = after(UNPUBLISHED)  # no rule is new in it, beside what was never published
    assert refusal(UNPUBLISHED, meant) is None
    assert refusal(published, meant) == "other-previous"
    assert refusal(FIRST, meant) is None  # of the serial between nothing is known here
    assert refusal(FIRST, meant, (published,)) == "other-previous"


def test_a_version_that_was_taken_out_comes_back_neither_as_another_nor_in_the_place_of_one() -> None:
    second = after(FIRST, rules=(RULE, SECOND, COUNT_RULE))
    third = after(second, rules=(COUNT_RULE,))
    again = replace(SECOND, limit=SECOND.limit + 1)
    assert refusal(third, after(third, rules=(again,)), (FIRST, second)) == "rule-rewritten"
    assert refusal(third, after(third, rules=(SECOND,)), (FIRST, second)) == "rule-version-order"
    assert refusal(third, after(third, rules=(replace(SECOND, version=3),)), (FIRST, second)) is None
    fourth = after(second, rules=(replace(SECOND, version=4), COUNT_RULE))
    assert refusal(fourth, after(fourth, rules=(replace(SECOND, version=3), *fourth.rules))) == "rule-version-order"


def test_who_missed_manifests_takes_the_next_all_the_same() -> None:
    second = after(FIRST, days=3, rules=(RULE, replace(SECOND, valid_from=TODAY + 3), COUNT_RULE))
    third = after(second, days=20)
    assert refusal(FIRST, second) is None
    assert refusal(second, third) is None
    assert refusal(FIRST, third) is None
    assert refusal(FIRST, after(FIRST, days=3, rules=second.rules)) is None
    late = after(FIRST, days=20, rules=second.rules)
    assert refusal(FIRST, late) == "rule-back-dated"


def test_later_versions_come_into_force_later() -> None:
    coming = replace(SECOND, valid_from=TODAY + 7)
    sooner = replace(SECOND, version=3, valid_from=TODAY + 6)
    with pytest.raises(ProtocolError, match="bad-manifest"):
        Manifest.of(after(FIRST, rules=(RULE, coming, sooner)))
    Manifest.of(after(FIRST, rules=(RULE, coming, replace(sooner, valid_from=coming.valid_from))))


def test_a_rule_of_an_unknown_type_of_subject_is_refused() -> None:
    with pytest.raises(ProtocolError, match="bad-manifest"):
        Manifest.of(replace(FIRST, rules=(replace(RULE, subject_type="vehicle"),)))


@pytest.mark.parametrize(
    "bend",
    [
        lambda terms: replace(terms, tls_authority=b"\x02" * 32),
        lambda terms: replace(terms, service_signing_key=OTHER.service_signing_key),
        lambda terms: replace(terms, local=1 - terms.local),
        lambda terms: replace(
            terms, members=(replace(terms.members[0], signing_key=OTHER.members[0].signing_key), *terms.members[1:])
        ),
        lambda terms: replace(
            terms, members=(replace(terms.members[0], sealing_key=OTHER.members[0].sealing_key), *terms.members[1:])
        ),
    ],
)
def test_what_parties_cannot_take_up_while_they_run_is_told_apart(bend: Callable[[Terms], Terms]) -> None:
    terms = bend(after(FIRST))
    require_succession(FIRST, terms)
    with pytest.raises(ProtocolError, match="other-connections"):
        require_same_connections(FIRST, terms)


Steps = list[tuple[str, int, int, int]]
STEPS: st.SearchStrategy[Steps] = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2)), max_size=12
)


@given(STEPS)
@deterministic(200)
def test_whatever_chain_of_manifests_is_taken_an_answer_names_one_meaning(steps: Steps) -> None:
    """Each step puts a version into a rule's place; those refused are left out. What was said once stands for good."""
    taken, said = [replace(FIRST, rules=())], dict[tuple[str, int], Rule]()
    for rule_id, version, limit, days in steps:
        rule = replace(RULE, id=rule_id, version=version, limit=limit, valid_from=TODAY + days)
        others = tuple(one for one in taken[-1].rules if one.id != rule_id or limit == 0)
        terms = after(taken[-1], rules=tuple({(one.id, one.version): one for one in (*others, rule)}.values()))
        try:
            Manifest.of(terms)
            require_succession(taken[-1], terms, taken[:-1])
        except ProtocolError:
            continue
        taken.append(terms)
        for one in terms.rules:
            assert said.setdefault((one.id, one.version), one) == one
    highest: dict[str, int] = {}
    for before, terms in pairwise(taken):
        for one in set(terms.rules) - set(before.rules):
            assert one.version > highest.get(one.id, 0)
            highest[one.id] = one.version


def test_an_earlier_manifest_is_as_good_as_long_as_the_newest() -> None:
    earlier, newest = Manifest.of(FIRST), Manifest.of(after(FIRST, days=20))
    late = FIRST.valid_until + 1
    with pytest.raises(ProtocolError, match="manifest-expired"):
        earlier.require_current(earlier.hash, late)
    earlier.under(newest).require_current(earlier.hash, late)
    with pytest.raises(ProtocolError, match="manifest-expired"):
        earlier.under(newest).require_current(earlier.hash, newest.terms.valid_until)
    with pytest.raises(ProtocolError, match="other-manifest"):
        earlier.under(newest).require_current(newest.hash, NOW)


def test_a_manifest_of_any_age_is_verified_like_one_that_is_acted_on() -> None:
    data = signed(TERMS, "admin-a", "admin-b")
    assert verify_manifest(data, PINS) == open_manifest(data, PINS, NOW) == WORLD.manifest
    with pytest.raises(ProtocolError, match="manifest-expired"):
        open_manifest(data, PINS, TERMS.valid_until)
    with pytest.raises(ProtocolError, match="under-signed"):
        verify_manifest(signed(TERMS, "admin-a"), PINS)
