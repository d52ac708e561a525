"""A manifest is accepted only as the admins signed it, consistent, current and never an older or another one."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from world import COUNT_RULE, NOW, RULE, TODAY, make_world, name, seeded

from protocol import signing
from protocol.committee import draw_committee, excluded_slot, preferred_choice
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.manifest import (
    CLOCK_SECONDS,
    MAX_VALID_DAYS,
    AdminPins,
    AdminSignature,
    Manifest,
    SignedManifest,
    Terms,
    open_manifest,
    sign_terms,
)
from protocol.secret import Secret

WORLD = make_world(7, shards=2)
TERMS = WORLD.manifest.terms
ADMINS = {admin: Secret(seeded(admin)(32)) for admin in ("admin-a", "admin-b", "admin-c")}
KEYS = {admin: signing.public_key(private) for admin, private in ADMINS.items()}
PINS = AdminPins(KEYS, 2)
Bend = Callable[[Terms], Terms]


def signed(terms: Terms, *admins: str, extra: tuple[AdminSignature, ...] = ()) -> bytes:
    signatures = tuple(sign_terms(terms, admin, ADMINS[admin]) for admin in admins)
    return encode(SignedManifest(terms=encode(terms), signatures=(*signatures, *extra)))


def refusal(data: bytes, pins: AdminPins = PINS, **known: object) -> str:
    with pytest.raises(ProtocolError) as refused:
        open_manifest(data, pins, NOW, **known)
    return refused.value.code


# --- signatures ----------------------------------------------------------------------------------------------------


def test_any_two_of_three_pinned_admins_make_a_manifest() -> None:
    for admins in (*combinations(ADMINS, 2), tuple(ADMINS)):
        manifest = open_manifest(signed(TERMS, *admins), PINS, NOW)
        assert manifest.terms == TERMS
        assert manifest.hash == WORLD.manifest.hash


@pytest.mark.parametrize("admins", [(), ("admin-a",), ("admin-c",)])
def test_fewer_admins_than_the_threshold_are_refused(admins: tuple[str, ...]) -> None:
    assert refusal(signed(TERMS, *admins)) == "under-signed"


def test_the_same_admin_twice_counts_once() -> None:
    assert refusal(signed(TERMS, "admin-a", "admin-a")) == "under-signed"


def test_one_key_pinned_under_two_names_counts_once() -> None:
    pins = AdminPins({"admin-a": KEYS["admin-a"], "alias": KEYS["admin-a"], "admin-b": KEYS["admin-b"]}, 2)
    alias = sign_terms(TERMS, "alias", ADMINS["admin-a"])
    assert refusal(signed(TERMS, "admin-a", extra=(alias,)), pins) == "under-signed"
    assert open_manifest(signed(TERMS, "admin-b", extra=(alias,)), pins, NOW).terms == TERMS


def test_an_admin_who_is_not_pinned_is_ignored() -> None:
    stranger = sign_terms(TERMS, "stranger", Secret(bytes(32)))
    noise = AdminSignature(admin="nobody", signature=bytes(64))
    assert refusal(signed(TERMS, "admin-a", extra=(stranger, noise))) == "under-signed"
    assert open_manifest(signed(TERMS, "admin-a", "admin-b", extra=(stranger, noise)), PINS, NOW).terms == TERMS


def test_a_bad_signature_of_a_pinned_admin_is_refused_however_many_good_ones_there_are() -> None:
    other = sign_terms(replace(TERMS, serial=2), "admin-c", ADMINS["admin-c"])
    stolen = AdminSignature(admin="admin-c", signature=sign_terms(TERMS, "admin-a", ADMINS["admin-a"]).signature)
    for bad in (AdminSignature(admin="admin-c", signature=bytes(64)), other, stolen):
        assert refusal(signed(TERMS, "admin-a", "admin-b", extra=(bad,))) == "bad-signature"


def test_signatures_of_other_terms_or_for_another_purpose_are_refused() -> None:
    signatures = tuple(sign_terms(TERMS, admin, private) for admin, private in ADMINS.items())
    other = encode(SignedManifest(terms=encode(replace(TERMS, serial=2)), signatures=signatures))
    assert refusal(other) == "bad-signature"
    purposes = tuple(
        AdminSignature(admin=admin, signature=signing.sign(private, "check", encode(TERMS)))
        for admin, private in ADMINS.items()
    )
    assert refusal(encode(SignedManifest(terms=encode(TERMS), signatures=purposes))) == "bad-signature"


@pytest.mark.parametrize("threshold", [0, -1, 4])
def test_a_threshold_that_cannot_be_or_means_nothing_is_refused(threshold: int) -> None:
    with pytest.raises(ProtocolError, match="bad-pins"):
        AdminPins(KEYS, threshold)


def test_a_threshold_above_the_number_of_distinct_keys_is_refused() -> None:
    with pytest.raises(ProtocolError, match="bad-pins"):
        AdminPins({"a": KEYS["admin-a"], "b": KEYS["admin-a"]}, 2)


def test_bytes_that_are_no_signed_manifest_are_refused() -> None:
    good = signed(TERMS, *ADMINS)
    for data in (b"", good[:-1], good + b"!", encode(TERMS)):
        assert refusal(data) == "malformed"
    noise = b"no terms"
    signatures = tuple(
        AdminSignature(admin=admin, signature=signing.sign(private, "manifest", noise))
        for admin, private in ADMINS.items()
    )
    assert refusal(encode(SignedManifest(terms=noise, signatures=signatures))) == "malformed"


# --- time and order ------------------------------------------------------------------------------------------------


def test_an_expired_manifest_is_refused() -> None:
    data = signed(TERMS, *ADMINS)
    assert open_manifest(data, PINS, TERMS.valid_until - 1).terms == TERMS
    for late in (TERMS.valid_until, TERMS.valid_until + 1e9):
        with pytest.raises(ProtocolError, match="manifest-expired"):
            open_manifest(data, PINS, late)


def test_a_manifest_from_the_future_is_refused() -> None:
    for ahead, refused in ((CLOCK_SECONDS, False), (CLOCK_SECONDS + 1, True), (86_400, True)):
        data = signed(replace(TERMS, issued_at=int(NOW) + ahead), *ADMINS)
        if refused:
            assert refusal(data) == "manifest-from-the-future"
        else:
            assert open_manifest(data, PINS, NOW).terms.issued_at == int(NOW) + ahead


def test_an_older_serial_and_a_fork_at_the_same_serial_are_refused() -> None:
    newer = replace(TERMS, serial=5)
    data, manifest = signed(newer, *ADMINS), Manifest.of(newer)
    assert open_manifest(data, PINS, NOW, 4).hash == manifest.hash
    assert open_manifest(data, PINS, NOW, 5, manifest.hash).hash == manifest.hash
    assert refusal(data, newest_serial=6) == "manifest-older"
    fork = replace(newer, shards=1, committees=newer.committees[:1])
    assert refusal(signed(fork, *ADMINS), newest_serial=5, newest_hash=manifest.hash) == "manifest-forked"


def test_a_message_made_under_another_manifest_is_refused_before_and_after_expiry() -> None:
    manifest = WORLD.manifest
    manifest.require_current(manifest.hash, NOW)
    for now in (NOW, TERMS.valid_until):
        with pytest.raises(ProtocolError, match="other-manifest"):
            manifest.require_current(bytes(32), now)
    with pytest.raises(ProtocolError, match="manifest-expired"):
        manifest.require_current(manifest.hash, TERMS.valid_until)


def test_the_hash_covers_every_field() -> None:
    hashes = {
        Manifest.of(terms).hash
        for terms in (
            TERMS,
            replace(TERMS, alliance="other"),
            replace(TERMS, serial=2),
            replace(TERMS, serial=2, previous=bytes(range(32))),
            replace(TERMS, valid_until=TERMS.valid_until + 1),
            replace(TERMS, tick_seconds=2),
            replace(TERMS, deposit_cap=TERMS.deposit_cap - 1),
            replace(TERMS, epoch=2),
            replace(TERMS, rules=TERMS.rules[::-1]),
            replace(TERMS, rules=(replace(RULE, limit=RULE.limit + 1), COUNT_RULE)),
            replace(TERMS, products=TERMS.products[::-1]),
            replace(TERMS, committees=(replace(TERMS.committees[0], version=2), TERMS.committees[1])),
            replace(TERMS, members=TERMS.members[::-1]),
        )
    }
    assert len(hashes) == 13


# --- consistency: each rule broken once ----------------------------------------------------------------------------


def member_changed(place: int, **changes: object) -> Bend:
    def bend(terms: Terms) -> Terms:
        members = list(terms.members)
        members[place] = replace(members[place], **changes)
        return replace(terms, members=tuple(members))

    return bend


def committee_changed(slots: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Bend:
    def bend(terms: Terms) -> Terms:
        first = terms.committees[0]
        return replace(terms, committees=(replace(first, slots=slots(first.slots)), *terms.committees[1:]))

    return bend


def rule_changed(**changes: object) -> Bend:
    return lambda terms: replace(terms, rules=(replace(RULE, **changes), *terms.rules[1:]))


ONE_OWNER = tuple(replace(member, group=f"group {place % 4}") for place, member in enumerate(TERMS.members))
SLOTS = TERMS.committees[0].slots


def owned_together(terms: Terms) -> Terms:
    """Give two members that are never in one committee the same owner."""
    left_out = {next(item.id for item in terms.members if item.id not in one.slots) for one in terms.committees}
    pair = sorted(left_out | {SLOTS[0], SLOTS[1]} - left_out, key=lambda member: member not in left_out)[:2]
    members = tuple(replace(item, group="both" if item.id in pair else item.group) for item in terms.members)
    return replace(terms, members=members)


def over_tls(terms: Terms) -> Terms:
    members = tuple(replace(one, url=one.url.replace("http", "https")) for one in terms.members)
    url = terms.service_url.replace("http", "https")
    return replace(terms, plain_http=0, tls_authority=bytes(range(32)), members=members, service_url=url)


BROKEN: dict[str, tuple[Bend, str]] = {
    "http without the flag": (lambda terms: replace(terms, plain_http=0, tls_authority=bytes(range(32))), "https://"),
    "one http address among all": (
        lambda terms: member_changed(2, url="http://127.0.0.1:1")(over_tls(terms)),
        "https://",
    ),
    "one https address where all are plain": (member_changed(2, url="https://127.0.0.1:1"), "an address is http://"),
    "TLS under no CA": (lambda terms: replace(over_tls(terms), tls_authority=bytes(32)), "names the alliance's CA"),
    "a CA for plain HTTP": (lambda terms: replace(terms, tls_authority=bytes(range(32))), "names the alliance's CA"),
    "two members have one id": (member_changed(0, id=name(2)), "two members have one id"),
    "too few groups": (lambda terms: replace(terms, members=ONE_OWNER), "5 ownership groups"),
    "one signing key twice": (
        member_changed(0, signing_key=TERMS.members[1].signing_key),
        "two members share a key",
    ),
    "one sealing key twice": (
        member_changed(0, sealing_key=TERMS.members[1].sealing_key),
        "two members share a key",
    ),
    "a shard without a committee": (
        lambda terms: replace(terms, committees=terms.committees[:1]),
        "one committee for each shard",
    ),
    "a committee too many": (lambda terms: replace(terms, shards=1), "one committee for each shard"),
    "committees out of order": (
        lambda terms: replace(terms, committees=terms.committees[::-1]),
        "one committee for each shard",
    ),
    "one committee twice": (
        lambda terms: replace(terms, committees=(terms.committees[0],) * 2),
        "one committee for each shard",
    ),
    "a stranger in a committee": (committee_changed(lambda slots: (*slots[1:], "nobody")), "unknown member"),
    "a member with two slots": (committee_changed(lambda slots: (*slots[1:], slots[-1])), "two slots of one"),
    "an owner with two slots": (
        member_changed(int(SLOTS[0][-2:]) - 1, group=f"group of {SLOTS[1]}"),
        "two slots of one",
    ),
    "shards with too few persons": (
        lambda terms: replace(terms, local=0, expected_persons=19_999),
        "10,000 persons",
    ),
    "ticks too short for several machines": (
        lambda terms: replace(terms, local=0, expected_persons=20_000, tick_seconds=4),
        "at least 5 seconds",
    ),
    "a product twice": (
        lambda terms: replace(terms, products=(*terms.products, "accident")),
        "product is listed twice",
    ),
    "a rule's version twice": (lambda terms: replace(terms, rules=(RULE, RULE)), "version is listed twice"),
    "a rule of an unknown product": (rule_changed(products=("accident", "fire")), "unknown product"),
    "a rule that names a product twice": (rule_changed(products=("accident", "accident")), "product twice"),
    "an unknown measure": (rule_changed(measure="premium"), "unknown measure"),
    "a limit too large for the ring": (rule_changed(limit=2**46 - 7 * TERMS.deposit_cap), "below 2^46"),
    "too large for all members of one owner": (
        lambda terms: rule_changed(limit=2**46 - 7 * TERMS.deposit_cap)(owned_together(terms)),
        "members x deposit cap",  # each of them has a range of its own
    ),
    "a cap too large for the ring": (lambda terms: replace(terms, deposit_cap=2**46 // 7), "below 2^46"),
    "a term that has ended before it began": (
        lambda terms: replace(terms, issued_at=terms.valid_until),
        "never be valid",
    ),
    "a term of years": (
        lambda terms: replace(terms, valid_until=terms.issued_at + MAX_VALID_DAYS * 86_400 + 1),
        "366 days at most",
    ),
}
LOOK_ALIKES = ("accident ", " accident", "\u0430ccident", "accid\u200bent", "accident\n", "", "-", "acc ident", "险")
BROKEN |= {
    f"the product {like!r}": (
        lambda terms, like=like: replace(rule_changed(products=(like,))(terms), products=(*terms.products, like)),
        "ASCII letters",
    )
    for like in LOOK_ALIKES
    if like
}
BROKEN |= {f"the rule {like!r}": (rule_changed(id=like), "ASCII letters") for like in LOOK_ALIKES if like}
BROKEN |= {
    f"the currency {like!r}": (rule_changed(currency=like), "three capital letters")
    for like in ("cny", "CN", "CNYY", "\u0421NY", "CNY ", "CNY\n")
}


def test_addresses_are_https_unless_all_parties_agree_to_plain_http() -> None:
    assert Manifest.of(over_tls(TERMS)).terms.service_url.startswith("https://")
    for what in ("http without the flag", "one http address among all", "one https address where all are plain"):
        with pytest.raises(ProtocolError, match="bad-manifest"):
            Manifest.of(BROKEN[what][0](TERMS))


@pytest.mark.parametrize("what", BROKEN)
def test_a_manifest_that_contradicts_itself_is_refused_whoever_signed_it(what: str) -> None:
    bend, hint = BROKEN[what]
    with pytest.raises(ProtocolError, match=f"bad-manifest.*{hint}".replace("^", r"\^")):
        Manifest.of(bend(TERMS))
    assert refusal(signed(bend(TERMS), *ADMINS)) == "bad-manifest"


def test_the_edges_of_those_rules_are_accepted() -> None:
    for bend in (
        rule_changed(limit=2**46 - 7 * TERMS.deposit_cap - 1),
        rule_changed(version=2),
        lambda terms: replace(terms, rules=()),
        lambda terms: replace(terms, issued_at=terms.valid_until - 1),
        lambda terms: replace(terms, valid_until=terms.issued_at + MAX_VALID_DAYS * 86_400),
        lambda terms: replace(terms, products=(*terms.products, "A.b_c-9")),
        rule_changed(currency="USD"),
        lambda terms: replace(terms, tick_seconds=20),
        lambda terms: replace(terms, local=0, expected_persons=20_000, tick_seconds=5),
        over_tls,
    ):
        assert Manifest.of(bend(TERMS)).hash != WORLD.manifest.hash


@pytest.mark.parametrize(
    "bend",
    [
        committee_changed(lambda slots: slots[:4]),
        rule_changed(window_days=0),
        rule_changed(window_days=367),
        rule_changed(budget=0),
        rule_changed(products=()),
        rule_changed(version=0),
        lambda terms: replace(terms, tick_seconds=0),
        lambda terms: replace(terms, tick_seconds=21),
        lambda terms: replace(terms, tick_seconds=60),
        lambda terms: replace(terms, blinding_key=bytes(32)),
        lambda terms: replace(terms, serial=0),
        lambda terms: replace(terms, local=2),
        lambda terms: replace(terms, products=(), rules=()),
    ],
    ids=range(13),
)
def test_a_manifest_with_a_number_or_key_out_of_range_is_refused(bend: Bend) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        Manifest.of(bend(TERMS))


# --- look-ups ------------------------------------------------------------------------------------------------------


def test_the_rule_in_force_is_the_newest_version_that_has_begun() -> None:
    versions = [replace(RULE, version=number, valid_from=TODAY + 10 * number) for number in (1, 2, 3)]
    manifest = Manifest.of(replace(TERMS, rules=tuple(versions[::-1])))
    in_force = [manifest.current_rule(RULE.id, TODAY + day).version for day in (10, 19, 20, 29, 30, 1000)]
    assert in_force == [1, 1, 2, 2, 3, 3]
    for rule, day in ((RULE.id, TODAY + 9), ("another", TODAY + 100)):
        with pytest.raises(ProtocolError, match="unknown-rule"):
            manifest.current_rule(rule, day)


def test_look_ups_of_what_is_not_there_are_refused() -> None:
    manifest = WORLD.manifest
    for call, code in (
        (lambda: manifest.member("nobody"), "unknown-member"),
        (lambda: manifest.committee(2), "unknown-shard"),
        (lambda: manifest.slot_of_group(0, "nobody"), "unknown-member"),
        (lambda: manifest.own_slot(0, "nobody"), "not-custodian"),
    ):
        with pytest.raises(ProtocolError, match=code):
            call()


def test_a_slot_is_the_groups_for_every_member_of_it_but_one_members_own() -> None:
    world = make_world(7, shards=1, owners={name(1): "one", name(2): "one"})
    slots = [world.manifest.slot_of_group(0, name(number)) for number in (1, 2)]
    assert slots[0] == slots[1] is not None
    (holder,) = set(world.manifest.committee(0).slots) & {name(1), name(2)}
    assert world.manifest.own_slot(0, holder) == slots[0]
    (other,) = {name(1), name(2)} - {holder}
    with pytest.raises(ProtocolError, match="not-custodian"):
        world.manifest.own_slot(0, other)


# --- the draw ------------------------------------------------------------------------------------------------------


def alliance(members: int, *, of_one_owner: int = 1) -> dict[str, str]:
    return {name(number): f"group {number // of_one_owner}" for number in range(members)}


@deterministic(60)
@given(st.integers(5, 30), st.integers(0, 10_000), st.integers(1, 3), st.integers(5, 9))
def test_a_committee_has_distinct_groups_and_as_many_as_it_can(groups: int, shard: int, each: int, slots: int) -> None:
    members = alliance(groups * each, of_one_owner=each)
    committee = draw_committee(shard, members, slots)
    owners = [members[member] for member in committee]
    assert len(set(owners)) == len(owners) == min(slots, groups)


@deterministic(30)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_draw_depends_on_nothing_but_shard_members_and_groups(shard: int, shuffler: object) -> None:
    members = alliance(25)
    names = list(members)
    shuffler.shuffle(names)  # type: ignore[attr-defined]  a random.Random
    shuffled = {member: members[member] for member in names}
    assert draw_committee(shard, shuffled) == draw_committee(shard, members)


def test_two_shards_have_different_committees() -> None:
    assert len({draw_committee(shard, alliance(25)) for shard in range(50)}) == 50


def test_every_member_of_an_alliance_of_twenty_five_keeps_some_shard_and_none_keeps_most() -> None:
    kept = Counter(member for shard in range(64) for member in draw_committee(shard, alliance(25)))
    assert set(kept) == set(alliance(25))
    assert max(kept.values()) < 64 / 2
    affiliated = Counter(
        member for shard in range(64) for member in draw_committee(shard, alliance(25, of_one_owner=2))
    )
    assert set(affiliated) == set(alliance(25))


def test_a_member_that_leaves_moves_only_the_slots_that_it_held() -> None:
    members = alliance(25)
    rest = {member: owner for member, owner in members.items() if member != name(3)}
    for shard in range(64):
        before, after = set(draw_committee(shard, members)), set(draw_committee(shard, rest))
        assert len(before - after) == (name(3) in before)
        if name(3) not in before:
            assert draw_committee(shard, members) == draw_committee(shard, rest)


@pytest.mark.parametrize("groups", range(5))
def test_fewer_than_five_groups_are_no_alliance_however_many_members(groups: int) -> None:
    members = {name(number): f"group {number % groups}" for number in range(20)} if groups else {}
    with pytest.raises(ProtocolError, match="too-few-groups"):
        draw_committee(0, members)


@deterministic(100)
@given(st.integers(0, 100), st.integers(5, 16), st.binary(min_size=16, max_size=16))
def test_the_excluded_slot_is_the_groups_own_or_follows_from_shard_and_id(shard: int, slots: int, id_: bytes) -> None:
    for own in range(slots):
        assert excluded_slot(shard, own, slots, id_) == own
    assert excluded_slot(shard, None, slots, id_) in range(slots)
    assert excluded_slot(shard, None, slots, id_) == excluded_slot(shard, None, slots, id_)


def test_excluded_slots_and_choices_are_spread_evenly() -> None:
    ids = [number.to_bytes(16, "big") for number in range(1200)]
    excluded = Counter(excluded_slot(0, None, 6, id_) for id_ in ids)
    assert set(excluded) == set(range(6))
    assert all(150 < count < 250 for count in excluded.values())
    alike = dict.fromkeys(range(6), 0.0)
    choices = Counter(slot for id_ in ids for slot in preferred_choice(id_, alike) or ())
    assert all(700 < count < 900 for count in choices.values())


def test_a_choice_is_four_sorted_candidates_or_none() -> None:
    for count in range(4, 8):
        chosen = preferred_choice(bytes(16), dict.fromkeys(range(count), 0.0))
        assert chosen is not None
        assert len(set(chosen)) == 4
        assert list(chosen) == sorted(chosen)
    for count in range(4):
        assert preferred_choice(bytes(16), dict.fromkeys(range(count), 0.0)) is None


@deterministic(60)
@given(st.dictionaries(st.integers(0, 15), st.floats(0, 10), max_size=10), st.floats(0, 10))
def test_a_choice_prefers_those_of_lowest_score_and_takes_none_that_is_refused(
    scores: dict[int, float], refused: float
) -> None:
    chosen = preferred_choice(bytes(16), scores, refused)
    eligible = {slot for slot, score in scores.items() if score < refused}
    if chosen is None:
        assert len(eligible) < 4
    else:
        assert set(chosen) <= eligible
        assert max(scores[slot] for slot in chosen) <= min(
            (scores[slot] for slot in eligible - set(chosen)), default=10.0
        )
