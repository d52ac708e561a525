"""The page reads what Python writes, refuses what Python refuses, and makes of it the difference that Python makes."""

import base64
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from consoles import ADMINS, Console, Visit, visiting
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser
from strategies import deterministic, messages, values_of
from test_differences import HIDDEN
from test_manifest import BROKEN, TERMS
from test_succession import BENDS, DAY, FIRST, SECOND, after
from world import COUNT_RULE, NOW, RULE, TODAY, seeded

from protocol import signing
from protocol.encoding import UInt, decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import Committee, Member, Rule, SignedManifest, Terms, day_of, hash_of, sign_terms
from protocol.secret import Secret
from service.admin.differences import difference, time_text, yuan

pytestmark = pytest.mark.browser

KINDS = {"Terms": Terms, "Rule": Rule, "Member": Member, "Committee": Committee, "SignedManifest": SignedManifest}
READ = """async ([kind, data]) => {
  const { decode, fromBase64, hex, Malformed } = await import("/console/encoding.js");
  const kinds = await import("/console/terms.js");
  const shown = (value) => value instanceof Uint8Array ? hex(value) : Array.isArray(value) ? value.map(shown)
    : typeof value === "bigint" ? String(value)
    : typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([name, one]) => [name, shown(one)]))
    : value;
  try {
    return shown(decode(kinds[kind], fromBase64(data)));
  } catch (error) {
    if (error instanceof Malformed) return "malformed";
    throw error;
  }
}"""
COMPARE = """async ([base, terms, told, now]) => {
  const { decode, fromBase64, hex, sha256 } = await import("/console/encoding.js");
  const { Terms } = await import("/console/terms.js");
  const { difference, isTold, objections } = await import("/console/difference.js");
  const { isRoutine } = await import("/console/terms_shown.js");
  const [one, other] = [base, terms].map((data) => decode(Terms, fromBase64(data)));
  const entries = difference(one, other, now);
  const baseHash = hex(await sha256(fromBase64(base)));
  const told_again = entries.map(({ kind, what, fields }) => ({ kind, what, fields }));
  const found = objections(one, other, baseHash, now);
  return { told: isTold(entries, told), entries: told_again,
    objections: found.map(([code]) => code), details: found.map(([, detail]) => detail),
    weighty: entries.filter((entry) => !isRoutine(entry)).map(({ what }) => what) };
}"""
SIGN = """async ([file, admin, admins, terms]) => {
  const { sign } = await import("/console/signing.js");
  const { fromBase64, hex } = await import("/console/encoding.js");
  try {
    return hex(await sign(new File([fromBase64(file)], "key"), admin, admins, fromBase64(terms)));
  } catch (error) {
    return error.message;
  }
}"""


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    with Console(tmp_path_factory.mktemp("codec")).served() as console, visiting(browser, console.url) as visit:
        yield visit.open()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def shown(value: Any) -> Any:  # noqa: ANN401  any field of a message
    """Return a message as READ gives it: bytes in hex, numbers of 64 bits as text."""
    return _shown(asdict(value), type(value))


def _shown(value: Any, kind: type[Any]) -> Any:  # noqa: ANN401  as above
    wide = {name for name, codec in kind._wire[1] if isinstance(codec, UInt) and codec.size == 8}
    inner = {"rules": Rule, "members": Member, "committees": Committee}
    return {
        name: [_shown(one, inner[name]) for one in item]
        if name in inner
        else str(item)
        if name in wide
        else item.hex()
        if isinstance(item, bytes)
        else list(item)
        if isinstance(item, tuple)
        else item
        for name, item in value.items()
    }


@given(messages(Terms))
@deterministic(60)
def test_the_page_reads_any_terms_as_python_does(page: Visit, terms: Terms) -> None:
    assert page.run(READ, ["Terms", b64(encode(terms))]) == shown(terms)


def test_every_message_of_the_page_has_the_fields_of_pythons_in_their_order(page: Visit) -> None:
    names = page.run(
        "async (kinds) => { const all = await import('/console/terms.js');"
        " return Object.fromEntries(kinds.map((kind) => [kind, all[kind].fields])) }",
        list(KINDS),
    )
    assert names == {name: [item.name for item in fields(kind)] for name, kind in KINDS.items()}


@given(st.data())
@deterministic(150)
def test_bytes_that_are_bent_read_alike_or_are_refused_alike(page: Visit, data: st.DataObject) -> None:
    # The group's point aside: to the page it is 32 bytes, and agents check it.
    good = encode(replace(FIRST, rules=(RULE, SECOND), members=FIRST.members[:1], committees=FIRST.committees[:1]))
    point = good.index(FIRST.blinding_key)
    at = data.draw(st.integers(0, len(good) - 1).filter(lambda place: not point <= place < point + 32))
    match data.draw(st.sampled_from(["bit", "byte", "cut", "more", "twice"])):
        case "bit":
            bent = bytearray(good)
            bent[at] ^= 1 << data.draw(st.integers(0, 7))
        case "byte":
            bent = bytearray(good)
            bent[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xC0, 0xFF]))
        case "cut":
            bent = bytearray(good[:at])
        case "more":
            bent = bytearray(good + b"\x00")
        case _:
            bent = bytearray(good[:at] + good[at : at + 1] + good[at:])
    try:
        expected = shown(decode(Terms, bytes(bent)))
    except ProtocolError:
        expected = "malformed"
    assert page.run(READ, ["Terms", b64(bytes(bent))]) == expected


@pytest.mark.parametrize(
    "text", ["\ufeffbegins with a mark", "\U0001f600", "\u0000", "\u202e", "ends in nothing\u200b"]
)
def test_text_is_read_to_the_last_character(page: Visit, text: str) -> None:
    terms = replace(FIRST, alliance=text)
    assert page.run(READ, ["Terms", b64(encode(terms))])["alliance"] == text


@pytest.mark.parametrize("bad", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_what_is_not_utf8_is_refused(page: Visit, bad: bytes) -> None:
    data = encode(replace(FIRST, alliance="x" * len(bad))).replace(b"x" * len(bad), bad, 1)
    with pytest.raises(ProtocolError):
        decode(Terms, data)
    assert page.run(READ, ["Terms", b64(data)]) == "malformed"


def test_a_count_of_billions_is_refused_at_once(page: Visit) -> None:
    good = encode(replace(FIRST, committees=()))
    assert good.endswith(bytes(4))
    assert page.run(READ, ["Terms", b64(good[:-4] + b"\xff" * 4)]) == "malformed"
    assert page.run(READ, ["Terms", b64(good[:-4] + b"\x00\x00\x10\x00")]) == "malformed"


@pytest.mark.parametrize("letters", ["AA", "AAA", "A===", "AAAA\n", "_-__", "AB==", " AAAA"])
def test_base64_has_one_reading(page: Visit, letters: str) -> None:
    code = "async (text) => { const { fromBase64 } = await import('/console/encoding.js');"
    code += " try { return Array.from(fromBase64(text)) } catch (error) { return error.constructor.name } }"
    assert page.run(code, letters) == "Malformed"


# --- differences ---------------------------------------------------------------------------------------------------


def compared(page: Visit, base: Terms, terms: Terms, now: float = NOW) -> dict[str, Any]:
    told = [change.plain() for change in difference(base, terms)]
    found: dict[str, Any] = page.run(COMPARE, [b64(encode(base)), b64(encode(terms)), told, now])
    return found


@given(messages(Terms), messages(Terms), st.data())
@deterministic(60)
def test_the_page_finds_every_difference_that_python_finds(
    page: Visit, base: Terms, other: Terms, data: st.DataObject
) -> None:
    names = [item.name for item in fields(Terms)]
    taken = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=6))
    terms = replace(base, **{name: getattr(other, name) for name in taken})
    found = compared(page, base, terms)
    assert found["told"], found["entries"]
    if base != terms:
        assert found["entries"]


@given(st.data())
@deterministic(50)
def test_a_field_of_a_rule_a_member_or_a_committee_that_is_another_is_told(page: Visit, data: st.DataObject) -> None:
    things = data.draw(st.sampled_from(["rules", "members", "committees"]))
    items = list(getattr(FIRST, things))
    index = data.draw(st.integers(0, len(items) - 1))
    name, codec = data.draw(st.sampled_from([*type(items[index])._wire[1]]))
    items[index] = replace(items[index], **{name: data.draw(values_of(codec))})
    found = compared(page, FIRST, replace(FIRST, **{things: tuple(items)}))
    assert found["told"], found["entries"]
    assert bool(found["entries"]) == (items != list(getattr(FIRST, things)))


def test_things_in_another_order_are_told(page: Visit) -> None:
    terms = replace(FIRST, rules=FIRST.rules[::-1], members=(*FIRST.members[1:], FIRST.members[0]))
    found = compared(page, FIRST, terms)
    assert found["told"]
    assert [entry["kind"] for entry in found["entries"]] == ["order_changed", "order_changed"]


def test_any_other_word_of_the_service_is_noticed(page: Visit) -> None:
    base, terms = FIRST, after(FIRST, rules=(RULE, SECOND, COUNT_RULE))
    told = [change.plain() for change in difference(base, terms)]
    limit = next(item for item in told[0]["fields"] if item["field"] == "limit")
    bent: list[Any] = [[], told[1:], told[:-1], [*told, told[0]], None, {}, "", [None], [{"kind": "rule_added"}]]
    for name in ("before", "after"):
        items = [item | ({name: "1.00"} if item == limit else {}) for item in told[0]["fields"]]
        bent += [[told[0] | {"fields": items}, *told[1:]]]
    bent.append([told[0] | {"what": "accident-30d version 3"}, *told[1:]])
    bent.append([told[0] | {"kind": "rule_changed"}, *told[1:]])
    for one in bent:
        assert not page.run(COMPARE, [b64(encode(base)), b64(encode(terms)), one])["told"], one
    assert page.run(COMPARE, [b64(encode(base)), b64(encode(terms)), told[::-1]])["told"]


# --- what agents would refuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BENDS)
def test_the_page_objects_to_what_agents_refuse(page: Visit, what: str) -> None:
    bend, _ = BENDS[what]
    assert compared(page, FIRST, bend(after(FIRST)))["objections"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rules": (RULE, SECOND, COUNT_RULE)},
        {"rules": (RULE,)},
        {"rules": (*FIRST.rules, replace(RULE, id="new", valid_from=TODAY))},
        {"products": (*FIRST.products, "travel")},
        {"deposit_cap": FIRST.deposit_cap + 1},
        {"members": (replace(FIRST.members[0], url="https://elsewhere.example"), *FIRST.members[1:])},
    ],
)
def test_the_page_does_not_object_to_what_they_take(page: Visit, changes: dict[str, Any]) -> None:
    assert compared(page, FIRST, after(FIRST, **changes))["objections"] == []


def test_the_page_objects_to_what_parties_cannot_take_up_while_they_run(page: Visit) -> None:
    for changes in ({"tls_authority": bytes(32)}, {"plain_http": 1}, {"service_signing_key": bytes(32)}, {"local": 0}):
        assert "lasting-term" in compared(page, FIRST, after(FIRST, **changes))["objections"]
    assert compared(page, FIRST, after(FIRST, serials=2))["objections"] == ["serial-skipped"]
    other = replace(after(FIRST), previous=hash_of(replace(FIRST, rules=())))
    assert compared(page, FIRST, other)["objections"] == ["other-previous"]
    late = after(FIRST, rules=(RULE, SECOND, replace(SECOND, version=3, valid_from=TODAY + 9), COUNT_RULE))
    early = replace(late, rules=(*late.rules[:1], replace(SECOND, valid_from=TODAY + 10), *late.rules[2:]))
    assert compared(page, FIRST, late)["objections"] == []
    assert compared(page, FIRST, early)["objections"] == ["bad-manifest"]


@pytest.mark.parametrize("what", BROKEN)
def test_the_page_objects_to_what_contradicts_itself(page: Visit, what: str) -> None:
    bend, hint = BROKEN[what]
    found = compared(page, TERMS, bend(TERMS))
    assert "bad-manifest" in found["objections"]
    assert any(hint in detail for detail in found["details"]), found["details"]


def test_an_address_that_opens_something_else_is_objected_to(page: Visit) -> None:
    for url in ("javascript:x", "https://a b", "https://x.example/path", "https://x.example:0", "https://x.example\n"):
        assert compared(page, FIRST, after(FIRST, service_url=url))["objections"] == ["bad-manifest"]


def test_what_changes_with_every_manifest_is_routine_within_bounds(page: Visit) -> None:
    assert compared(page, FIRST, after(FIRST, days=3), NOW + 3 * DAY)["weighty"] == []
    ahead = compared(page, FIRST, after(FIRST, days=3))
    assert (ahead["objections"], ahead["weighty"]) == (["from-the-future"], ["issued_at", "valid_until"])
    assert compared(page, FIRST, after(FIRST, days=3), NOW + 3 * DAY - 300)["objections"] == []
    assert compared(page, FIRST, after(FIRST, days=3), NOW + 3 * DAY - 301)["objections"] == ["from-the-future"]
    years = replace(after(FIRST), valid_until=FIRST.issued_at + 367 * DAY)
    assert compared(page, FIRST, years)["weighty"] == ["valid_until"]


def test_a_version_in_the_place_of_one_that_ends_is_told_beside_it(page: Visit) -> None:
    found = compared(page, FIRST, after(FIRST, rules=(replace(SECOND, limit=RULE.limit * 10), COUNT_RULE)))
    assert found["told"]
    added = next(entry for entry in found["entries"] if entry["kind"] == "rule_added")
    assert {"field": "limit", "before": "50000000.00", "after": "500000000.00"} in added["fields"]


# --- signatures ----------------------------------------------------------------------------------------------------


def admins() -> list[dict[str, str]]:
    return [{"name": name, "public_key": signing.public_key(key).hex()} for name, key in ADMINS.items()]


def signed(page: Visit, file: bytes, terms: Terms, admin: str = "li-na") -> str:
    named = next(one for one in admins() if one["name"] == admin)
    answer: str = page.run(SIGN, [b64(file), named, admins(), b64(encode(terms))])
    return answer


@given(messages(Terms), st.sampled_from(sorted(ADMINS)))
@deterministic(15)
def test_the_page_signs_byte_for_byte_as_python_does(page: Visit, terms: Terms, admin: str) -> None:
    file = ADMINS[admin].reveal().hex().encode() + b"\n"
    assert signed(page, file, terms, admin) == sign_terms(terms, admin, ADMINS[admin]).signature.hex()


def test_a_key_file_is_read_as_the_command_reads_it_and_no_other_is(page: Visit) -> None:
    digits = ADMINS["li-na"].reveal().hex().encode()
    good = sign_terms(FIRST, "li-na", ADMINS["li-na"]).signature.hex()
    for file in (digits, digits.upper(), digits + b"\r\n", b"  " + digits + b"\n\n"):
        assert signed(page, file, FIRST) == good
    bad = [b"", b"\n", digits[:-1], digits + b"0", digits[:-1] + b"g", b"0x" + digits[2:], b" " * 64, digits * 40]
    bad += [
        digits[:32] + b" " + digits[32:],
        digits[:-2] + "é".encode(),
        bytes.fromhex(digits.decode()),
        b"+" + digits[1:],
    ]
    for file in bad:
        assert signed(page, file, FIRST) == "not-a-key", file
    assert signed(page, ADMINS["wang-wei"].reveal().hex().encode(), FIRST) == "key-of-another"
    assert signed(page, Secret(seeded("nobody")(32)).reveal().hex().encode(), FIRST) == "key-of-nobody"


# --- how values are written ----------------------------------------------------------------------------------------


def written(page: Visit, name: str, *values: object) -> Any:  # noqa: ANN401  what a function gives
    code = "async ([name, values]) => (await import('/console/writing.js'))[name](...values)"
    return page.run(code, [name, list(values)])


@given(st.integers(0, (1 << 48) - 1), st.integers(1, 3_652_059), st.integers(0, 1 << 40))
@deterministic(60)
def test_amounts_days_and_times_are_written_exactly(page: Visit, fen: int, day: int, seconds: int) -> None:
    assert written(page, "yuanPlain", fen) == yuan(fen)
    assert written(page, "yuan", yuan(fen)) == f"{fen // 100:,}.{fen % 100:02d}"
    assert written(page, "day", day) == day_of(day).isoformat()
    assert written(page, "rfc3339", seconds) == time_text(seconds)


@pytest.mark.parametrize(
    ("fen", "english", "chinese"),
    [
        (5_000_000_000, "50 million yuan", "5,000 万元"),
        (500_000_000_00, "500 million yuan", "5 亿元"),
        (123_450_000_00, "123.45 million yuan", "12,345 万元"),
        (100_000_00, "100 thousand yuan", "10 万元"),
        (1, "", ""),
        (0, "", ""),
    ],
)
def test_round_amounts_are_told_in_words(page: Visit, fen: int, english: str, chinese: str) -> None:
    assert written(page, "inWords", fen, "en") == english
    assert written(page, "inWords", fen, "zh") == chinese


def test_times_are_told_in_utc_plus_8(page: Visit) -> None:
    assert written(page, "time", "2026-11-26T16:30:59Z") == "2026-11-27 00:30"
    assert written(page, "time", "2026-11-26T16:30:59Z", 19) == "2026-11-27 00:30:59"
    assert written(page, "time", "no time") == "no time"


def test_no_character_hides(page: Visit) -> None:
    assert written(page, "visible", "保额 accident-30d café <b>") == "保额 accident-30d café <b>"
    for hidden in ("\u202e", "\u200b", "\u2066", "\ufeff", "\u00a0", "\u0000", "\n", "\ue000", "\u2028", "\U000e0041"):
        assert written(page, "visible", f"a{hidden}b") == f"a\\u{{{ord(hidden):x}}}b"
    for hidden in HIDDEN:
        assert written(page, "visible", f"a{hidden}b") == f"a\\u{{{ord(hidden):x}}}b"
    assert written(page, "visible", " a  b ") == r"\u{20}a\u{20}\u{20}b\u{20}"
    assert written(page, "quoted", "accident") == "'accident'"
    assert written(page, "quoted", "a', 'b") == r"'a\', \'b'"
    assert written(page, "quoted", "accident ") == r"'accident\u{20}'"


def test_the_files_of_the_page_make_no_markup_of_data() -> None:
    folder = Path(__file__).parent.parent / "service" / "console"
    for file in folder.glob("*.js"):
        text = file.read_text(encoding="utf-8")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "localStorage",
        ):
            assert word not in text, (file.name, word)
