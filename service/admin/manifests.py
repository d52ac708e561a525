"""Making, signing and showing manifests, from the enrolments that members made themselves."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from protocol import signing
from protocol.committee import DEFAULT_SLOTS, draw_committee
from protocol.encoding import decode, encode
from protocol.enrolment import read_enrolment
from protocol.errors import ProtocolError
from protocol.manifest import (
    PERSON,
    SUM_INSURED,
    Committee,
    Manifest,
    Rule,
    SignedManifest,
    Terms,
    china_day,
    day_of,
    hash_of,
    require_succession,
    sign_terms,
)
from protocol.secret import Secret
from service.admin.rules import RuleBook
from transport.settings import SettingsError, refuse_readable_by_others

DEFAULT_PRODUCTS = ("accident", "group_accident", "term_life")
DEPOSIT_CAP = 1_000_000_000_000
"""Ten billion yuan, in fen: far above any one person's cover at one insurer."""


def default_rules(today: int) -> tuple[Rule, ...]:
    """Return the rules of a local alliance: `accident-30d`, 50 million yuan of accident cover in 30 days."""
    return (
        Rule(
            id="accident-30d",
            version=1,
            products=("accident",),
            subject_type=PERSON,
            window_days=30,
            measure=SUM_INSURED,
            limit=5_000_000_000,
            currency="CNY",
            budget=50,
            recheck_budget=60,
            budget_days=30,
            valid_from=today - 366,
            min_current=0,
        ),
    )


def build_terms(
    *,
    alliance: str,
    serial: int,
    enrolments: Sequence[Mapping[str, Any]],
    service: Mapping[str, str],
    shards: int,
    expected_persons: int,
    tick_seconds: int,
    valid_days: int,
    local: bool,
    tls_authority: bytes | None,
    previous: Terms | None = None,
    book: RuleBook | None = None,
) -> Terms:
    """Return consistent terms; refuse (`bad-manifest`) contradictions, and what cannot follow the `previous` ones.

    Committees are drawn by rendezvous hashing, or kept as they are in the `previous` terms: agents refuse others, and
    another length of ticks. `tls_authority` names the alliance's CA; with None all parties speak plain HTTP. Products
    and rules are those of the `book`, else the previous ones, else the default.
    """
    if previous and (previous.shards, previous.tick_seconds) != (shards, tick_seconds):
        raise ProtocolError("bad-manifest", "shards and ticks stay as they are in the manifest before")
    try:
        service_keys = [bytes.fromhex(service[name]) for name in ("signing_key", "blinding_key")]
        service_url = str(service["url"])
    except (KeyError, TypeError, ValueError):
        raise SettingsError("the service's file should hold url, signing_key and blinding_key") from None
    members, checks = zip(*(read_enrolment(dict(item)) for item in enrolments), strict=True)
    if len(set(checks)) != 1:
        raise ProtocolError("bad-enrolment", "the members do not hold one and the same salt")
    groups = {member.id: member.group for member in members}
    now = int(time.time())
    if book is None and previous:
        book = RuleBook(previous.products, previous.rules)
    elif book is None:
        book = RuleBook(DEFAULT_PRODUCTS, default_rules(china_day(now)))
    terms = Terms(
        alliance=alliance,
        serial=serial,
        previous=hash_of(previous) if previous else bytes(32),
        local=int(local),
        issued_at=now,
        valid_until=now + valid_days * 86_400,
        tick_seconds=tick_seconds,
        shards=shards,
        expected_persons=expected_persons,
        deposit_cap=DEPOSIT_CAP,
        salt_check=checks[0],
        plain_http=int(tls_authority is None),
        tls_authority=tls_authority or bytes(32),
        service_url=service_url,
        service_signing_key=service_keys[0],
        blinding_key=service_keys[1],
        epoch=1,
        products=book.products,
        rules=book.rules,
        members=members,
        committees=previous.committees
        if previous
        else tuple(
            Committee(shard=shard, version=1, slots=draw_committee(shard, groups, DEFAULT_SLOTS))
            for shard in range(shards)
        ),
    )
    Manifest.of(terms)
    if previous is not None:
        require_succession(previous, terms)
    return terms


def add_signature(signed: SignedManifest, admin: str, key: Secret) -> SignedManifest:
    """Return the manifest with one admin's signature more (or renewed)."""
    terms = decode(Terms, signed.terms)
    others = tuple(entry for entry in signed.signatures if entry.admin != admin)
    return SignedManifest(terms=signed.terms, signatures=(*others, sign_terms(terms, admin, key)))


def unsigned(terms: Terms) -> SignedManifest:
    """Return terms that nobody has signed yet."""
    return SignedManifest(terms=encode(terms), signatures=())


def pins_json(admins: Mapping[str, bytes], threshold: int) -> str:
    """Return the file by which agents pin the admins' public keys."""
    keys = {name: key.hex() for name, key in sorted(admins.items())}
    return json.dumps({"threshold": threshold, "keys": keys}, indent=1) + "\n"


def load_admin_key(file: Path) -> Secret:
    """Read an admin's private key (64 hexadecimal digits); raise `SettingsError` if it cannot be used."""
    try:
        refuse_readable_by_others(file)
        key = Secret(bytes.fromhex(file.read_text(encoding="ascii").strip()))
        signing.public_key(key)
    except OSError as error:
        raise SettingsError(f"the admin key {file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"the admin key {file} should hold 64 hexadecimal digits") from None
    return key


def describe(signed: SignedManifest) -> dict[str, Any]:
    """Return a manifest as people read it: JSON values, keys in hex, days and amounts written out."""
    terms = decode(Terms, signed.terms)
    shown = _plain(asdict(terms))
    for rule in shown["rules"]:
        rule["valid_from"] = day_of(rule["valid_from"]).isoformat()
    return {
        "hash": Manifest.of(terms).hash.hex(),
        "signed_by": [entry.admin for entry in signed.signatures],
        "terms": shown,
    }


def _plain(value: Any) -> Any:  # noqa: ANN401  any field of a manifest
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
