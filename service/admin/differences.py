"""The difference between two terms of a manifest as people read it: what an admin signs, in the words of the business.

A difference is data: changes, each of some fields with their values before and after. It is taken from the terms
themselves and covers every field of them, so that what it does not name is as it was.
"""

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from unicodedata import category

from protocol.manifest import SUM_INSURED, Rule, Terms, day_of

Value = str | int | list[str] | None
"""A field's value as it is read; None where there is none."""
_SCALES = {"rules", "members", "committees"}


@dataclass(frozen=True)
class Field:
    """A field with its value before and after."""

    name: str
    before: Value
    after: Value

    @property
    def changed(self) -> bool:
        """Tell whether it is another."""
        return self.before != self.after


@dataclass(frozen=True)
class Change:
    """What happened to one thing: `kind` such as `rule_added`, `what` such as `accident-30d version 2`.

    A rule's new version is told with all of its fields, beside those of the version before.
    """

    kind: str
    what: str
    fields: tuple[Field, ...]

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        told = [{"field": item.name, "before": item.before, "after": item.after} for item in self.fields]
        return {"kind": self.kind, "what": self.what, "fields": told}


def difference(before: Terms, after: Terms) -> list[Change]:
    """Return all that changes from one manifest's terms to another's: rules first, then members, then the rest."""
    return [
        *_rules(before, after),
        *_things("member", {one.id: one for one in before.members}, {one.id: one for one in after.members}),
        *_things(
            "committee",
            {f"of shard {one.shard}": one for one in before.committees},
            {f"of shard {one.shard}": one for one in after.committees},
        ),
        *_orders(before, after),
        *_terms(before, after),
    ]


def _rules(before: Terms, after: Terms) -> Iterator[Change]:
    old = {(rule.id, rule.version): rule for rule in before.rules}
    new = {(rule.id, rule.version): rule for rule in after.rules}
    for key in sorted(old.keys() | new.keys()):
        what = f"{key[0]} version {key[1]}"
        if key not in old:
            # Also one that ends with this manifest: what takes its place is no new rule.
            earlier = max((one for one in old.keys() | new.keys() if one[0] == key[0] and one < key), default=None)
            rule = None if earlier is None else old.get(earlier) or new[earlier]
            yield Change("rule_added", what, _fields(rule, new[key]))
        elif key not in new:
            yield Change("rule_removed", what, _fields(old[key], None))
        elif old[key] != new[key]:
            yield Change("rule_changed", what, _changed(old[key], new[key]))


def _things(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield Change(f"{kind}_added", name, _fields(None, new[name]))
        elif name not in new:
            yield Change(f"{kind}_removed", name, _fields(old[name], None))
        elif old[name] != new[name]:
            yield Change(f"{kind}_changed", name, _changed(old[name], new[name]))


def _orders(before: Terms, after: Terms) -> Iterator[Change]:
    """Yield what has the same things in another order, which the manifest's hash covers too."""
    for name in sorted(_SCALES):
        old, new = getattr(before, name), getattr(after, name)
        known, kept = set(old), set(new)
        if [one for one in new if one in known] != [one for one in old if one in kept]:
            yield Change("order_changed", name, ())


def _terms(before: Terms, after: Terms) -> Iterator[Change]:
    for item in fields(Terms):
        if item.name not in _SCALES:
            old, new = (readable(terms, item.name) for terms in (before, after))
            if getattr(before, item.name) != getattr(after, item.name):
                yield Change("term_changed", item.name, (Field(item.name, old, new),))


def _fields(old: Any, new: Any) -> tuple[Field, ...]:  # noqa: ANN401  a rule, member or committee
    kind = type(new if old is None else old)
    return tuple(
        Field(
            item.name,
            None if old is None else readable(old, item.name),
            None if new is None else readable(new, item.name),
        )
        for item in fields(kind)
        if item.name != "id"
    )


def _changed(old: Any, new: Any) -> tuple[Field, ...]:  # noqa: ANN401  as above
    return tuple(item for item in _fields(old, new) if item.changed)


def readable(of: Any, name: str) -> Value:  # noqa: ANN401  terms, or a rule, member or committee
    """Return the value of a field as people read it.

    Sums are yuan with two decimals, days ISO 8601, times RFC 3339 in UTC, keys and hashes hex.
    """
    value = getattr(of, name)
    if name == "limit":
        return limit_text(of)
    if name == "deposit_cap":
        return yuan(value)
    if name == "valid_from":
        return day_of(value).isoformat()
    if name in {"issued_at", "valid_until"}:
        return time_text(value)
    return _plain(value)


def limit_text(rule: Rule) -> str:
    """Return a rule's limit: yuan with two decimals, or a count of policies."""
    return yuan(rule.limit) if rule.measure == SUM_INSURED else str(rule.limit)


def yuan(fen: int) -> str:
    """Return an amount in yuan with two decimals."""
    return f"{fen // 100}.{fen % 100:02d}"


def time_text(seconds: float) -> str:
    """Return Unix seconds as RFC 3339 in UTC; those that no calendar has as they are."""
    try:
        return dt.datetime.fromtimestamp(int(seconds), dt.UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return f"{int(seconds)} s"


def _plain(value: bytes | str | int | Sequence[str]) -> Value:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str | int):
        return value
    return list(value)


# --- for a terminal ------------------------------------------------------------------------------------------------


def printed(changes: Sequence[Change]) -> Iterator[str]:
    """Yield the lines in which a command shows a difference."""
    if not changes:
        yield "nothing changes"
    for change in changes:
        kind = change.kind.replace("_", " ")
        if change.kind == "term_changed":
            (item,) = change.fields
            yield f"{kind}: {item.name}: {_shown(item.before)} -> {_shown(item.after)}"
        else:
            yield f"{kind}: {harmless(change.what)}"
            yield from map(_line, change.fields)


def _line(item: Field) -> str:
    before, after = (_shown(value) for value in (item.before, item.after))
    if not item.changed:
        return f"      {item.name}: {after}"
    if item.before is None:
        return f"    + {item.name}: {after}"
    if item.after is None:
        return f"    - {item.name}: {before}"
    return f"    * {item.name}: {before} -> {after}"


def _shown(value: Value) -> str:
    if value is None:
        return "-"
    return ", ".join(harmless(repr(item)) for item in value) if isinstance(value, list) else harmless(str(value))


_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159\U000e0100-\U000e01ef"
"""What prints as nothing, though it counts as a letter, a mark or a sign."""
_HIDDEN = re.compile(f"[{_BLANK}]|^ +| +$| {{2,}}")


def harmless(text: str) -> str:
    """Return a text that others wrote without what a terminal would obey and what a reader would not see.

    Characters that do not print or are blank, marks that combine with others, and blanks at the ends or side by side
    are shown by their numbers.
    """
    spelt = _HIDDEN.sub(lambda found: "".join(map(_number, found[0])), text)
    return "".join(_number(one) if not one.isprintable() or category(one)[0] == "M" else one for one in spelt)


def _number(character: str) -> str:
    return f"\\u{ord(character):04x}"
