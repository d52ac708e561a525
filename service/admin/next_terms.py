"""The terms that are to follow a manifest: it, with what an admin wants changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from protocol.enrolment import read_enrolment
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, Member, Rule, Terms, hash_of, require_same_connections, require_succession
from service.admin.rules import RuleBook
from transport.settings import SettingsError

VALID_DAYS = 90


def next_terms(
    base: Terms,
    now: float,
    *,
    book: RuleBook | None = None,
    without: Sequence[str] = (),
    enrolments: Iterable[Mapping[str, Any]] = (),
    valid_days: int = VALID_DAYS,
) -> Terms:
    """Return consistent terms of the next serial, valid for so many days from `now`.

    The `book`'s versions of rules are added; what it does not name stays, and versions that are there already must read
    as they do. `without` are the ids of rules that end, with all their versions. An enrolment gives a member that there
    is another address.
    Raises `ProtocolError` with why agents would refuse them, or `SettingsError`.
    """
    issued_at = int(now)
    terms = replace(
        base,
        serial=base.serial + 1,
        previous=hash_of(base),
        issued_at=issued_at,
        valid_until=issued_at + valid_days * 86_400,
        products=_products(base, book),
        rules=_rules(base, book, without),
        members=_members(base, enrolments),
    )
    Manifest.of(terms)
    require_succession(base, terms)
    require_same_connections(base, terms)
    return terms


def _products(base: Terms, book: RuleBook | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*base.products, *(() if book is None else book.products))))


def _rules(base: Terms, book: RuleBook | None, without: Sequence[str]) -> tuple[Rule, ...]:
    unknown = set(without) - {rule.id for rule in base.rules}
    if unknown:
        raise SettingsError(f"there is no rule {min(unknown)} to end")
    rules = {(rule.id, rule.version): rule for rule in base.rules if rule.id not in without}
    for rule in () if book is None else book.rules:
        if rule.id in without:
            raise SettingsError(f"the rules file has {rule.id}, which is to end")
        before = rules.setdefault((rule.id, rule.version), rule)
        if before != rule:
            following = max(one.version for one in rules.values() if one.id == rule.id) + 1
            raise SettingsError(
                f"{rule.id} version {rule.version} reads otherwise in the newest manifest, and stays so: make it"
                f" version {following}, with a day of its own"
            )
    return tuple(rules.values())


def _members(base: Terms, enrolments: Iterable[Mapping[str, Any]]) -> tuple[Member, ...]:
    members = {member.id: member for member in base.members}
    for enrolment in enrolments:
        member, check = read_enrolment(dict(enrolment))
        if check != base.salt_check:
            raise ProtocolError("bad-enrolment", f"{member.id} does not hold the alliance's salt")
        if member.id not in members:
            raise SettingsError(f"{member.id} is no member; who joins later needs a new epoch, and a founding manifest")
        members[member.id] = member
    return tuple(members.values())
