"""The difference that an admin reads names every change of the terms, in words and numbers that people read."""

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
from governing import first_terms, next_version, with_limit
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic, messages

from protocol.encoding import encode
from protocol.manifest import POLICY_COUNT, Rule, Terms, day_of
from service.admin.differences import Change, Field, difference, harmless, limit_text, printed, time_text, yuan

TERMS = first_terms()
HIDDEN = "\u202e\u200b\u2066\ufeff\u00a0\u3000\u0301\u034f\u115f\u3164\uffa0\u2800\ufe0f\U000e0041\U000e0100\ue000"


def told(after: Terms) -> list[tuple[str, str]]:
    return [(change.kind, change.what) for change in difference(TERMS, after)]


def test_terms_that_are_the_same_have_no_difference() -> None:
    assert difference(TERMS, TERMS) == []
    assert list(printed([])) == ["nothing changes"]


def test_a_new_version_is_told_whole_beside_the_one_before() -> None:
    rule = next_version(TERMS, limit=6_000_000_000, min_current=4)
    (added,) = difference(TERMS, replace(TERMS, rules=(*TERMS.rules, rule)))
    assert (added.kind, added.what) == ("rule_added", "accident-30d version 2")
    assert {item.name for item in added.fields} == {item.name for item in fields(rule)} - {"id"}
    changed = {item.name: (item.before, item.after) for item in added.fields if item.changed}
    days = tuple(day_of(one.valid_from).isoformat() for one in (TERMS.rules[0], rule))
    assert changed == {
        "version": (1, 2),
        "limit": ("50000000.00", "60000000.00"),
        "min_current": (0, 4),
        "valid_from": days,
    }
    lines = list(printed([added]))
    assert lines[0] == "rule added: accident-30d version 2"
    assert "    * limit: 50000000.00 -> 60000000.00" in lines
    assert "      products: 'accident'" in lines


def test_a_version_in_the_place_of_one_that_ends_is_told_beside_it() -> None:
    rule = next_version(TERMS, limit=60_000_000_000)
    changes = difference(TERMS, replace(TERMS, rules=(*TERMS.rules[1:], rule)))
    assert [change.kind for change in changes] == ["rule_removed", "rule_added"]
    assert Field("limit", "50000000.00", "600000000.00") in changes[1].fields
    rewritten = replace(TERMS, rules=(replace(TERMS.rules[0], limit=1), *TERMS.rules[1:], rule))
    added = next(change for change in difference(TERMS, rewritten) if change.kind == "rule_added")
    assert Field("limit", "50000000.00", "600000000.00") in added.fields  # the one in force, not as it is rewritten


def test_many_things_in_another_order_are_told_at_once() -> None:
    rules = tuple(replace(TERMS.rules[0], version=version) for version in range(1, 1025))
    one, other = replace(TERMS, rules=rules), replace(TERMS, rules=rules[::-1])
    compared = Counter[str]()

    def count(self: Rule, other: object) -> bool:
        compared["rules"] += 1
        return equal(self, other)

    equal = Rule.__eq__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rule, "__eq__", count)
        assert [change.kind for change in difference(one, other)] == ["order_changed"]
    assert compared["rules"] < 20 * len(rules)


def test_a_rule_that_is_new_or_gone_is_told_with_one_side() -> None:
    rule = replace(TERMS.rules[0], id="new", measure=POLICY_COUNT, limit=7)
    (added,) = difference(TERMS, replace(TERMS, rules=(*TERMS.rules, rule)))
    assert {item.before for item in added.fields} == {None}
    assert next(item for item in added.fields if item.name == "limit") == Field("limit", None, "7")
    (removed,) = difference(TERMS, replace(TERMS, rules=TERMS.rules[1:]))
    assert (removed.kind, {item.after for item in removed.fields}) == ("rule_removed", {None})
    assert "    - limit: 50000000.00" in list(printed([removed]))


@pytest.mark.parametrize(
    ("bend", "expected"),
    [
        (
            lambda t: replace(t, rules=(replace(t.rules[0], limit=1), *t.rules[1:])),
            ("rule_changed", "accident-30d version 1"),
        ),
        (lambda t: replace(t, rules=t.rules[::-1]), ("order_changed", "rules")),
        (lambda t: replace(t, members=t.members[::-1]), ("order_changed", "members")),
        (lambda t: replace(t, members=t.members[1:]), ("member_removed", "insurer-01")),
        (
            lambda t: replace(t, members=(replace(t.members[0], url="https://x.example"), *t.members[1:])),
            ("member_changed", "insurer-01"),
        ),
        (lambda t: replace(t, members=(*t.members, replace(t.members[0], id="new"))), ("member_added", "new")),
        (lambda t: replace(t, committees=()), ("committee_removed", "of shard 0")),
        (
            lambda t: replace(t, committees=(replace(t.committees[0], version=2),)),
            ("committee_changed", "of shard 0"),
        ),
        (lambda t: replace(t, products=t.products[::-1]), ("term_changed", "products")),
        (lambda t: replace(t, deposit_cap=1), ("term_changed", "deposit_cap")),
        (lambda t: replace(t, service_url="https://x.example"), ("term_changed", "service_url")),
    ],
)
def test_each_change_is_named(bend: Callable[[Terms], Terms], expected: tuple[str, str]) -> None:
    assert told(bend(TERMS)) == [expected]


def test_products_are_told_apart_from_one_whose_name_has_a_comma() -> None:
    two, one = ("accident", "group_accident"), ("accident, group_accident",)
    terms = [replace(TERMS, rules=(replace(TERMS.rules[0], id="new", products=names),)) for names in (two, one)]
    first, second = (next(change for change in difference(TERMS, one) if change.kind == "rule_added") for one in terms)
    assert "\n".join(printed([first])) != "\n".join(printed([second]))


def test_a_next_manifest_tells_its_rule_first_and_then_serial_and_times() -> None:
    assert told(with_limit(TERMS)) == [
        ("rule_added", "accident-30d version 2"),
        ("term_changed", "serial"),
        ("term_changed", "previous"),
        ("term_changed", "issued_at"),
        ("term_changed", "valid_until"),
    ]


def test_values_are_as_people_read_them() -> None:
    assert [yuan(fen) for fen in (0, 1, 99, 100, 5_000_000_001)] == ["0.00", "0.01", "0.99", "1.00", "50000000.01"]
    assert limit_text(replace(TERMS.rules[0], measure=POLICY_COUNT, limit=5)) == "5"
    assert time_text(0) == "1970-01-01T00:00:00Z"
    assert time_text(2**64 - 1) == f"{2**64 - 1} s"
    assert harmless("a\x1b[2Jb\n\u202ec") == "a\\u001b[2Jb\\u000a\\u202ec"
    for hidden in HIDDEN:
        assert harmless(f"a{hidden}b") == f"a\\u{ord(hidden):04x}b"
    assert harmless(" a  b ") == "\\u0020a\\u0020\\u0020b\\u0020"
    assert harmless("保险 alliance café <b>") == "保险 alliance café <b>"


@deterministic(40)
@given(st.lists(messages(Terms), min_size=2, max_size=2, unique_by=encode))
def test_any_two_terms_that_are_not_the_same_have_a_difference_that_prints(two: list[Terms]) -> None:
    changes = difference(*two)
    assert changes
    assert difference(two[0], two[0]) == []
    assert all("\n" not in line and "\x1b" not in line for line in printed(changes))


@deterministic(40)
@given(st.data())
def test_any_one_field_that_changes_is_told(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([item.name for item in fields(Terms)]))
    other = data.draw(messages(Terms))
    after = replace(TERMS, **{name: getattr(other, name)})
    changes = difference(TERMS, after)
    assert bool(changes) == (encode(after) != encode(TERMS))
    assert all(isinstance(change, Change) and change.plain()["kind"] == change.kind for change in changes)
