"""The manifest: what the alliance's admins have agreed on and signed (SPEC.md, section 7).

Every agent and the service act on one manifest and refuse messages made under another. It is encoded with the strict
codec of `protocol.encoding` rather than as JSON, so that what is signed has one reading only; `describe` in
`service.admin` shows it to people.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from itertools import pairwise
from typing import Annotated

from protocol import signing
from protocol.encoding import HASH, NAME, POINT, Blob, Fixed, Nested, Seq, Text, UInt, decode, encode, message
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.secret import Secret
from protocol.sharing import HALF_RING, MAX_SLOTS, MIN_SLOTS
from protocol.stamps import MAX_TICK_SECONDS, MIN_TICK_SECONDS

PERSONS_A_SHARD = 10_000
MAX_WINDOW_DAYS = 366
MAX_VALID_DAYS = 366
CLOCK_SECONDS = 300
"""How far ahead of one's own clock a manifest may have been issued."""
SUM_INSURED = "sum_insured"
POLICY_COUNT = "policy_count"
PERSON = "person"
SUBJECT_TYPES = frozenset({PERSON})
"""Of whom a rule's totals are. One so far; an unknown one is refused, as nobody would sum it as it is meant."""
DAY = UInt(32, least=1, most=date.max.toordinal())
FLAG = UInt(8, most=1)
_PURPOSE = "manifest"


@message("member", version=1)
class Member:
    """An insurer: its ownership group (affiliated members share one), public keys and where its agent answers."""

    id: Annotated[str, NAME]
    group: Annotated[str, NAME]
    url: Annotated[str, Text(200)]
    signing_key: Annotated[bytes, Fixed(32)]
    sealing_key: Annotated[bytes, Fixed(32)]


@message("rule", version=2)
class Rule:
    """A threshold: is the sum over `products` in the last `window_days` days, with the proposal, above `limit`?

    The sum is that of one subject of the `subject_type`. A rule is not changed: another version of it comes with a day
    of its own, `valid_from`, and what a version says stands for good (`require_succession`).
    `limit` is in fen for `sum_insured`, in policies for `policy_count`. A requester's group gets `budget` answers for
    one person in `budget_days` days from each custodian, and `recheck_budget` more by rechecks (0: there are none).
    Days are proleptic Gregorian ordinals. Where fewer than `min_current` members' deposits are current
    (`protocol.watermark`), nobody is told `within`.
    """

    id: Annotated[str, NAME]
    version: Annotated[int, UInt(32, least=1)]
    products: Annotated[tuple[str, ...], Seq(NAME, least=1, most=64)]
    subject_type: Annotated[str, NAME]
    window_days: Annotated[int, UInt(16, least=1, most=MAX_WINDOW_DAYS)]
    measure: Annotated[str, NAME]
    limit: Annotated[int, UInt(48)]
    currency: Annotated[str, NAME]
    budget: Annotated[int, UInt(32, least=1)]
    recheck_budget: Annotated[int, UInt(32)]
    budget_days: Annotated[int, UInt(16, least=1, most=MAX_WINDOW_DAYS)]
    valid_from: Annotated[int, DAY]
    min_current: Annotated[int, UInt(16)]

    def require_recheck(self) -> None:
        """Refuse (`recheck-not-allowed`) where the rule has no budget for rechecks."""
        if not self.recheck_budget:
            raise ProtocolError("recheck-not-allowed", f"the rule {self.id} has no budget for rechecks")

    def window_start(self, as_of: int) -> int:
        """Return the first day of the window, an ordinal; the as-of day is its last, and later days count too."""
        return as_of - (self.window_days - 1)


@message("committee", version=1)
class Committee:
    """The custodians of a shard, by slot."""

    shard: Annotated[int, UInt(32)]
    version: Annotated[int, UInt(32, least=1)]
    slots: Annotated[tuple[str, ...], Seq(NAME, least=MIN_SLOTS, most=MAX_SLOTS)]


@message("manifest", version=2)
class Terms:
    """The signed body of a manifest. `serial` grows with every manifest; times are Unix seconds.

    `previous` is the hash of the manifest that it follows, zero in a first one: who signs it and who takes it mean the
    same change.
    `tls_authority` is the SHA-256 of the SubjectPublicKeyInfo of the alliance's CA, which issues certificates to
    members and service; zero in a manifest of `plain_http`, under which nobody speaks TLS.
    """

    alliance: Annotated[str, NAME]
    serial: Annotated[int, UInt(64, least=1)]
    previous: Annotated[bytes, HASH]
    local: Annotated[int, FLAG]
    issued_at: Annotated[int, UInt(64)]
    valid_until: Annotated[int, UInt(64)]
    tick_seconds: Annotated[int, UInt(16, least=1, most=MAX_TICK_SECONDS)]
    shards: Annotated[int, UInt(32, least=1, most=4096)]
    expected_persons: Annotated[int, UInt(64)]
    deposit_cap: Annotated[int, UInt(48, least=1)]
    salt_check: Annotated[bytes, HASH]
    plain_http: Annotated[int, FLAG]
    tls_authority: Annotated[bytes, HASH]
    service_url: Annotated[str, Text(200)]
    service_signing_key: Annotated[bytes, Fixed(32)]
    blinding_key: Annotated[bytes, POINT]
    epoch: Annotated[int, UInt(32, least=1)]
    products: Annotated[tuple[str, ...], Seq(NAME, least=1, most=256)]
    rules: Annotated[tuple[Rule, ...], Seq(Nested(Rule), most=1024)]
    members: Annotated[tuple[Member, ...], Seq(Nested(Member), most=4096)]
    committees: Annotated[tuple[Committee, ...], Seq(Nested(Committee), most=4096)]


@message("signature of an admin", version=1)
class AdminSignature:
    """An admin's name, as the agents pin it, and its Ed25519 signature of the terms."""

    admin: Annotated[str, NAME]
    signature: Annotated[bytes, Fixed(signing.SIGNATURE_BYTES)]


@message("signed manifest", version=1)
class SignedManifest:
    """The encoded terms with the signatures of admins."""

    terms: Annotated[bytes, Blob(16 << 20)]
    signatures: Annotated[tuple[AdminSignature, ...], Seq(Nested(AdminSignature), most=256)]


@dataclass(frozen=True)
class AdminPins:
    """The admins whose keys an agent pins, and how many of them must have signed."""

    keys: dict[str, bytes]
    threshold: int

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= len(set(self.keys.values())):
            raise ProtocolError("bad-pins", "the signature threshold is between 1 and the number of admin keys")


@dataclass(frozen=True)
class Manifest:
    """Terms that were found consistent, with their hash and the look-ups that the protocol needs.

    `valid_until` is the terms', but for an earlier manifest that stands beside a newer one (`under`).
    """

    terms: Terms
    hash: bytes = field(repr=False)
    valid_until: int

    @classmethod
    def of(cls, terms: Terms) -> "Manifest":
        """Check the terms for consistency and take their hash; refuse (`bad-manifest`) contradictions."""
        _check(terms)
        return cls(terms, hash_of(terms), terms.valid_until)

    def under(self, newest: "Manifest") -> "Manifest":
        """Return this earlier manifest, good as long as the newest is: deposits made under it are taken till then."""
        return replace(self, valid_until=newest.valid_until)

    @cached_property
    def members(self) -> dict[str, Member]:
        """Members by id."""
        return {member.id: member for member in self.terms.members}

    @cached_property
    def committees(self) -> dict[int, Committee]:
        """Committees by shard."""
        return {committee.shard: committee for committee in self.terms.committees}

    @cached_property
    def versions(self) -> dict[str, list[Rule]]:
        """The versions of each rule by its id, the newest first."""
        found: dict[str, list[Rule]] = {}
        for rule in sorted(self.terms.rules, key=lambda rule: rule.version, reverse=True):
            found.setdefault(rule.id, []).append(rule)
        return found

    @cached_property
    def group_slots(self) -> dict[int, dict[str, int]]:
        """By shard, the slot that each ownership group holds there."""
        return {
            shard: {self.members[holder].group: slot for slot, holder in enumerate(committee.slots)}
            for shard, committee in self.committees.items()
        }

    @property
    def blinding_key(self) -> Element:
        """Ks, the public key of the service's evaluation."""
        return Element(self.terms.blinding_key)

    def member(self, member_id: str) -> Member:
        """Return a member; refuse (`unknown-member`) others."""
        try:
            return self.members[member_id]
        except KeyError:
            raise ProtocolError("unknown-member", "this member is not in the manifest") from None

    def committee(self, shard: int) -> Committee:
        """Return the committee of a shard; refuse (`unknown-shard`) others."""
        try:
            return self.committees[shard]
        except KeyError:
            raise ProtocolError("unknown-shard", "this shard is not in the manifest") from None

    def slot_of_group(self, shard: int, member_id: str) -> int | None:
        """Return the slot of the shard that the member's ownership group holds, or None."""
        owner = self.member(member_id).group
        return self.group_slots[self.committee(shard).shard].get(owner)

    def own_slot(self, shard: int, member_id: str) -> int:
        """Return the slot that this very member holds; refuse (`not-custodian`) if none."""
        slots = self.committee(shard).slots
        if member_id not in slots:
            raise ProtocolError("not-custodian", "this member keeps nothing of that shard")
        return slots.index(member_id)

    def current_rule(self, rule_id: str, as_of: int) -> Rule:
        """Return the version of a rule in force on a day; refuse (`unknown-rule`) if there is none."""
        for rule in self.versions.get(rule_id, ()):
            if rule.valid_from <= as_of:
                return rule
        raise ProtocolError("unknown-rule", "no rule of that id is in force on that day")

    def require_current(self, manifest_hash: bytes, now: float) -> None:
        """Refuse a message made under another manifest, and any once this one has expired."""
        if manifest_hash != self.hash:
            raise ProtocolError("other-manifest", "the message was made under another manifest; fetch the newest")
        self.require_unexpired(now)

    def require_unexpired(self, now: float) -> None:
        """Refuse (`manifest-expired`) a manifest that has expired."""
        if now >= self.valid_until:
            raise ProtocolError("manifest-expired", "the manifest has expired; the alliance must sign a new one")

    def require_issued(self, now: float) -> None:
        """Refuse (`manifest-from-the-future`) a manifest issued further ahead of `now` than clocks differ."""
        if self.terms.issued_at > now + CLOCK_SECONDS:
            hint = "the manifest was issued in the future; set the clocks of both machines"
            raise ProtocolError("manifest-from-the-future", hint)


def hash_of(terms: Terms) -> bytes:
    """Return the hash of terms, by which messages and the next manifest name them."""
    return hashlib.sha256(encode(terms)).digest()


def sign_terms(terms: Terms, admin: str, private: Secret) -> AdminSignature:
    """Return an admin's signature of the terms."""
    return AdminSignature(admin=admin, signature=signing.sign(private, _PURPOSE, encode(terms)))


def bytes_to_sign(terms: bytes) -> bytes:
    """Return what an admin's key signs of encoded terms, for a signer that holds the key elsewhere (RFC 8032)."""
    return signing.signed_bytes(_PURPOSE, terms)


def verify_signature(public: bytes, signature: bytes, terms: bytes) -> None:
    """Refuse (`bad-signature`) unless the admin of this key signed the encoded terms."""
    signing.verify(public, signature, _PURPOSE, terms)


def verify_manifest(data: bytes, pins: AdminPins) -> Manifest:
    """Decode, verify and check a signed manifest, whatever its age: one that was in force once.

    Refuses one that is malformed, inconsistent, or signed by fewer than the threshold of pinned admins.
    """
    signed = decode(SignedManifest, data)
    good: set[bytes] = set()
    for entry in signed.signatures:
        key = pins.keys.get(entry.admin)
        if key is not None:
            verify_signature(key, entry.signature, signed.terms)
            good.add(key)
    if len(good) < pins.threshold:
        raise ProtocolError("under-signed", "fewer pinned admins have signed the manifest than are needed")
    return Manifest.of(decode(Terms, signed.terms))


def open_manifest(
    data: bytes, pins: AdminPins, now: float, newest_serial: int = 0, newest_hash: bytes | None = None
) -> Manifest:
    """Decode, verify and check a signed manifest that is to be acted on.

    Refuses what `verify_manifest` refuses, and one that has expired, is from the future, is older than
    `newest_serial`, or of that serial with another hash (a fork).
    """
    manifest = verify_manifest(data, pins)
    if manifest.terms.serial < newest_serial:
        raise ProtocolError("manifest-older", "a newer manifest has been seen; rollback is refused")
    if manifest.terms.serial == newest_serial and newest_hash not in (None, manifest.hash):
        raise ProtocolError("manifest-forked", "another manifest of the same serial has been seen")
    manifest.require_unexpired(now)
    manifest.require_issued(now)
    return manifest


def require_succession(previous: Terms, terms: Terms, earlier: Iterable[Terms] = ()) -> None:
    """Refuse terms that cannot follow the `previous` ones; `earlier` are those before these, as far as they are known.

    The codes: `other-alliance`; `manifest-older`; `other-previous`, where the manifest of the serial just before is
    known and is not the one that the terms say they follow; `other-epoch`, where stored rows would be missed or not
    opened;
    `cap-lowered`, after which deposits above it could not be corrected; `rule-rewritten`; `rule-version-order`, for a
    new version that is not above all that its rule has had; `rule-back-dated`, for one that would have been in force
    before its manifest was issued. Where manifests between the two are not known the latter asks for the day when the
    previous one was issued.
    """
    if terms.alliance != previous.alliance:
        raise ProtocolError("other-alliance", "the manifest is another alliance's")
    if terms.serial <= previous.serial or terms.issued_at < previous.issued_at:
        hint = "the manifest has no higher serial than the one before, or was issued earlier"
        raise ProtocolError("manifest-older", hint)
    earlier = tuple(earlier)
    if any(one.serial + 1 == terms.serial and hash_of(one) != terms.previous for one in (*earlier, previous)):
        raise ProtocolError("other-previous", "the manifest follows another one of the serial before")
    if _lasting(terms) != _lasting(previous):
        hint = "keys, epoch, committees, members' owners and length of ticks stay as in the manifest before"
        raise ProtocolError("other-epoch", hint)
    if terms.deposit_cap < previous.deposit_cap:
        raise ProtocolError("cap-lowered", "the cap of deposits is not lower than in the manifest before")
    _require_rules_follow(previous, terms, earlier)


def _require_rules_follow(previous: Terms, terms: Terms, earlier: Iterable[Terms]) -> None:
    known = {(rule.id, rule.version): rule for one in (*earlier, previous) for rule in one.rules}
    highest: dict[str, int] = {}
    for rule_id, version in known:
        highest[rule_id] = max(version, highest.get(rule_id, 0))
    before = {(rule.id, rule.version) for rule in previous.rules}
    direct = terms.serial == previous.serial + 1
    first_day = china_day(terms.issued_at if direct else previous.issued_at)
    for rule in terms.rules:
        place = (rule.id, rule.version)
        if known.get(place, rule) != rule:
            raise ProtocolError("rule-rewritten", f"{rule.id} version {rule.version} said something else before")
        if place in before:
            continue
        if rule.version <= highest.get(rule.id, 0):
            hint = f"{rule.id} has had a version {highest[rule.id]}; a new one is above it"
            raise ProtocolError("rule-version-order", hint)
        if rule.valid_from < first_day:
            hint = f"{rule.id} version {rule.version} is new, and in force from the day of its manifest at the earliest"
            raise ProtocolError("rule-back-dated", hint)


def require_same_connections(previous: Terms, terms: Terms) -> None:
    """Refuse (`other-connections`) terms that parties cannot take up while they run: with another CA, other keys of a
    member or the service, plain HTTP in place of TLS, or without the floor of persons a shard. Such a manifest is put
    in place by all parties at once, as a file.
    """

    def of(terms: Terms) -> tuple[object, ...]:
        keys = tuple((member.signing_key, member.sealing_key) for member in terms.members)
        return terms.tls_authority, terms.plain_http, terms.service_signing_key, terms.local, keys

    if of(terms) != of(previous):
        hint = "another CA, other keys or ways to connect are put in place by all parties at once, as a file"
        raise ProtocolError("other-connections", hint)


def _lasting(terms: Terms) -> tuple[object, ...]:
    """Return what the databases of agents are bound to."""
    members = [(member.id, member.group) for member in terms.members]
    bound = (terms.epoch, terms.blinding_key, terms.salt_check, terms.shards, terms.tick_seconds)
    return (*bound, terms.committees, members)


_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:.]{2,45}\])(:(?P<port>[0-9]{1,5}))?"
)
_NARROW = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of names that are compared and read: no two of them look alike."""
_CURRENCY = re.compile(r"[A-Z]{3}")
_LAST_PORT = 65_535


def _is_address(url: str, scheme: str) -> bool:
    """Tell whether a text is `scheme://host[:port]` and no more: members choose their own, all others call it."""
    parts = _ADDRESS.fullmatch(url)
    return parts is not None and parts["scheme"] == scheme and 0 < int(parts["port"] or 1) <= _LAST_PORT


def _check(terms: Terms) -> None:
    def require(condition: bool, hint: str) -> None:  # noqa: FBT001  a local shorthand
        if not condition:
            raise ProtocolError("bad-manifest", hint)

    groups = {member.id: member.group for member in terms.members}
    require(all(_NARROW.fullmatch(name) for name in groups), "a member id is letters, digits, dots and dashes")
    scheme = "http" if terms.plain_http else "https"
    require(
        all(_is_address(url, scheme) for url in (terms.service_url, *(member.url for member in terms.members))),
        f"an address is {scheme}://, a host and perhaps a port, nothing after it; http:// takes --plain-http",
    )
    require(
        bool(terms.plain_http) == (terms.tls_authority == bytes(32)),
        "a manifest names the alliance's CA, unless all parties speak plain HTTP",
    )
    names = (*terms.products, *(name for rule in terms.rules for name in (rule.id, *rule.products)))
    require(
        all(_NARROW.fullmatch(name) for name in names),
        "a product and a rule's id are ASCII letters, digits, dots and dashes, 64 at most",
    )
    texts = (*groups.values(), terms.alliance)
    require(all(text.isprintable() for text in texts), "a name has characters that do not print")
    require(len(groups) == len(terms.members), "two members have one id")
    require(len(set(groups.values())) >= MIN_SLOTS, "an alliance has members of at least 5 ownership groups")
    for what in ("signing_key", "sealing_key"):
        require(len({getattr(member, what) for member in terms.members}) == len(groups), "two members share a key")
    require(
        [committee.shard for committee in terms.committees] == list(range(terms.shards)),
        "there is one committee for each shard, in order",
    )
    for committee in terms.committees:
        owners = [groups.get(member) for member in committee.slots]
        require(None not in owners, "a committee names an unknown member")
        require(len(set(owners)) == len(owners), "a committee has two slots of one ownership group")
    require(
        bool(terms.local) or terms.expected_persons >= terms.shards * PERSONS_A_SHARD,
        "each shard has at least 10,000 persons",
    )
    require(
        bool(terms.local) or terms.tick_seconds >= MIN_TICK_SECONDS,
        "ticks are at least 5 seconds: clocks of several machines differ",
    )
    require(len(set(terms.products)) == len(terms.products), "a product is listed twice")
    require(
        len({(rule.id, rule.version) for rule in terms.rules}) == len(terms.rules),
        "a rule's version is listed twice",
    )
    for rule in terms.rules:
        require(set(rule.products) <= set(terms.products), "a rule names an unknown product")
        require(len(set(rule.products)) == len(rule.products), "a rule names a product twice")
        require(rule.min_current <= len(groups), "a rule needs more current members than there are")
        require(_CURRENCY.fullmatch(rule.currency) is not None, "a currency is three capital letters")
        require(rule.measure in (SUM_INSURED, POLICY_COUNT), "a rule has an unknown measure")
        require(rule.subject_type in SUBJECT_TYPES, "a rule is of an unknown type of subject")
    ordered = sorted(terms.rules, key=lambda rule: (rule.id, rule.version))
    require(
        all(one.id != then.id or one.valid_from <= then.valid_from for one, then in pairwise(ordered)),
        "a later version of a rule is in force before an earlier one",
    )
    largest = max((rule.limit for rule in terms.rules), default=0)
    require(
        len(groups) * terms.deposit_cap + largest < HALF_RING // 2,
        "members x deposit cap plus the largest limit must stay below 2^46",
    )
    require(terms.issued_at < terms.valid_until, "the manifest would never be valid")
    require(
        terms.valid_until - terms.issued_at <= MAX_VALID_DAYS * 86_400,
        f"a manifest is valid for {MAX_VALID_DAYS} days at most",
    )


def day_of(ordinal: int) -> date:
    """Return the calendar day of an ordinal."""
    return date.fromordinal(ordinal)


_EPOCH_DAY = date(1970, 1, 1).toordinal()
_UTC_PLUS_8_SECONDS = 8 * 3600


def china_day(now: float) -> int:
    """Return the ordinal of the calendar day in UTC+8 (Asia/Shanghai has no other offset) at `now`, Unix seconds."""
    return _EPOCH_DAY + int(now + _UTC_PLUS_8_SECONDS) // 86_400
