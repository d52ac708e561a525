"""What admins and auditors do in the page, against a real service, and what a service that lies gets of them."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from consoles import ADMINS, DAY, WORLD, Bend, Console, Visit, bending, first_terms, visiting
from playwright.sync_api import Browser, expect
from world import RULE, seeded

from protocol.encoding import encode
from protocol.manifest import SignedManifest, Terms, china_day, hash_of, sign_terms
from service.admin.differences import difference
from service.api_keys import Action, ApiKeys, Role
from service.console_page import content

pytestmark = pytest.mark.browser

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none';"
    " base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
)
WRITES = "#sign, [data-action=publish], [data-action=withdraw]"


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    with Console(tmp_path).served() as served:
        yield served


@contextmanager
def at(browser: Browser, console: Console, **options: Any) -> Iterator[Visit]:  # noqa: ANN401  of `visiting`
    """Visit, and see that the page kept its policy and made no error of its own."""
    with visiting(browser, console.url, **options) as visit:
        yield visit
        assert visit.violations() == []
        assert [error for error in visit.errors if "the server responded with a status" not in error] == []
        assert {url.split("/")[2] for _, url, _, _ in visit.requests} == {console.url.split("/")[2]}


def posted(visit: Visit) -> list[tuple[str, Any]]:
    return [
        (url.split("/v1/admin/")[1], json.loads(body)) for method, url, _, body in visit.requests if method == "POST"
    ]


# --- the page itself -----------------------------------------------------------------------------------------------


def test_the_page_and_all_of_its_files_come_under_the_strict_policy(console: Console) -> None:
    client = console.app.test_client()
    for name in content():
        answer = client.get("/console" if name == "index.html" else f"/console/{name}")
        assert answer.status_code == 200
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Set-Cookie" not in answer.headers
    for other in ("/console/", "/console/../app.py", "/console/index.html", "/console/nothing.js"):
        assert client.get(other).status_code == 404
    assert client.post("/console").status_code == 405


def test_the_policy_stops_script_and_style_that_a_page_would_be_given(browser: Browser, console: Console) -> None:
    with visiting(browser, console.url) as visit:
        visit.open()
        ran = visit.run(
            "() => { const script = document.createElement('script');"
            " try { script.textContent = 'window.ran = true'; } catch { return 'refused' }"
            " document.body.append(script); return window.ran === true ? 'ran' : 'stopped' }"
        )
        assert ran == "refused"
        visit.run("() => { document.body.setAttribute('style', 'color: red') }")
        assert "style-src-attr" in visit.violations()[-1]
        assert visit.run("() => fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')") == "stopped"
        assert any(found.startswith("connect-src") for found in visit.violations())


def test_a_key_lives_in_the_pages_memory_alone(browser: Browser, console: Console) -> None:
    with at(browser, console) as visit:
        visit.sign_in(console.admin_key)
        assert visit.run("() => [localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert visit.context.cookies() == []
        assert console.admin_key not in visit.page.content()
        assert all(console.admin_key not in url + body for _, url, _, body in visit.requests)
        with_key = [url for _, url, headers, _ in visit.requests if "authorization" in headers]
        assert with_key
        assert all("/v1/admin/" in url for url in with_key)
        visit.page.locator("[data-action=sign-out]").click()
        expect(visit.page.locator("#sign-in")).to_be_visible()
        assert "insurer-01" not in visit.text()
        visit.sign_in(console.admin_key)
        visit.page.reload()
        expect(visit.page.locator("#sign-in")).to_be_visible()


@pytest.mark.parametrize(
    ("locale", "language", "other", "words", "other_words"),
    [
        ("zh-CN", "zh-CN", "en", ["成员", "登录"], ["Members", "Sign in"]),
        ("fr-FR", "en", "zh", ["Members", "Sign in"], ["成员", "登录"]),
    ],
)
def test_the_page_speaks_the_browsers_language_and_the_other(
    browser: Browser, console: Console, locale: str, language: str, other: str, words: list[str], other_words: list[str]
) -> None:
    with at(browser, console, language=locale) as visit:
        visit.open()
        assert visit.page.locator("html").get_attribute("lang") == language
        assert words[1] in visit.text()
        visit.speak(other)
        expect(visit.page.locator("#sign-in h2")).to_have_text(other_words[1])
        visit.sign_in(console.auditor_key).speak(other)
        expect(visit.page.locator("main h2")).to_have_text(other_words[0])
        assert visit.page.locator("[aria-pressed=true]").count() == 1
        chosen = visit.run(
            "async (locales) => locales.map((await import('/console/words.js')).languageOf)",
            ["zh", "zh-Hant-TW", "ZH-cn", "en-GB", "ja", "zha", "", None],
        )
        assert chosen == ["zh", "zh", "zh", "en", "en", "en", "en", "en"]


def test_all_words_are_there_in_both_languages_and_with_the_same_values() -> None:
    text = content()["words.js"].decode()
    entries = re.findall(r'"([\w-]+)":\s*\[\s*"((?:[^"\\]|\\.)*)",\s*"((?:[^"\\]|\\.)*)"\],', text)
    assert len(entries) == text.split("const WORDS")[1].split("};")[0].count('": [')
    for name, english, chinese in entries:
        assert sorted(set(re.findall(r"\{\d\}", english))) == sorted(set(re.findall(r"\{\d\}", chinese))), name
        assert not re.search(r"[\u4e00-\u9fff]", english), name
        assert re.search(r"[\u4e00-\u9fff]", chinese) or not re.search("[a-z]", english), name
    known = {name for name, _, _ in entries}
    used: set[str] = set()
    for name, data in content().items():
        if name.endswith(".js") and name != "words.js":
            used |= set(re.findall(r'\bsay(?:\.or)?\("([\w-]+)"', data.decode()))
    assert used <= known


# --- what is seen --------------------------------------------------------------------------------------------------


def test_members_show_whether_they_are_current_and_since_when_not(browser: Browser, console: Console) -> None:
    for number in range(1, 6):
        console.report(number, console.now - 60)
    console.report(6, console.now - 3 * 3600 - 1800)
    with at(browser, console) as visit:
        visit.sign_in(console.auditor_key)
        rows = visit.page.locator("tbody tr")
        expect(rows).to_have_count(7)
        assert "7 members, 5 current" in visit.text()
        first, second = rows.nth(0).inner_text(), rows.nth(1).inner_text()
        since = time.strftime("%Y-%m-%d %H:%M", time.gmtime(console.now - 3 * 3600 - 1800 + 8 * 3600))
        assert "insurer-06" in first
        assert re.search(rf"behind\s+since {since}, for 3 h 3\d min", first)
        assert "insurer-07" in second
        assert "has never reported" in second
        assert "current" in rows.nth(2).inner_text()
        visit.speak("zh")
        expect(visit.page.locator("caption")).to_have_text("共 7 家成员，5 家数据齐全")
        assert f"自 {since} 起，已 3 小时 3" in visit.text()


def test_rules_show_what_is_in_force_what_was_and_what_comes(browser: Browser, console: Console) -> None:
    terms = console.next_terms(console.raised())
    proposal = console.propose(terms)
    for admin in ("li-na", "zhang-min"):
        console.sign(proposal, terms, admin)
    assert console.call(f"/v1/admin/proposals/{proposal}/publish", {}).status_code == 200
    with at(browser, console) as visit:
        visit.sign_in(console.auditor_key).go("#/rules")
        rule = visit.page.locator("section.rule").filter(has_text="accident-30d").first
        expect(rule.locator("tbody tr")).to_have_count(3)
        texts = [row.inner_text() for row in rule.locator("tbody tr").all()]
        assert [re.search("in force|coming|past", text)[0] for text in texts] == ["coming", "in force", "past"]  # type: ignore[index]
        assert ["80,000,000.00 yuan" in texts[0], "50,000,000.00 yuan" in texts[1]] == [True, True]
        assert "30,000,000.00 yuan" in texts[2]
        assert "5 policies" in visit.text()
        visit.speak("zh")
        expect(visit.page.locator("main h2")).to_have_text("规则")
        assert "80,000,000.00 元" in visit.text()


def test_proposals_are_listed_with_state_and_signatures(browser: Browser, console: Console) -> None:
    terms = console.next_terms(console.raised())
    other = console.next_terms(console.raised(1))
    first, second = console.propose(terms, "raise it"), console.propose(other, "lower it")
    console.sign(first, terms, "zhang-min")
    console.call(f"/v1/admin/proposals/{second}/withdraw", {})
    with at(browser, console) as visit:
        visit.sign_in(console.auditor_key).go("#/proposals")
        rows = visit.page.locator("tbody tr")
        expect(rows).to_have_count(2)
        texts = {row.locator("a").inner_text(): row.inner_text() for row in rows.all()}
        assert all(part in texts[first] for part in ("open", "raise it", "1 of 2"))
        assert all(part in texts[second] for part in ("withdrawn", "lower it", "0 of 2"))
        rows.filter(has_text="raise it").locator("a").click()
        expect(visit.page.locator("h2 code")).to_have_text(first)


LIMITS = [
    (8_000_000_000, "LIMIT RAISED", ["50,000,000.00 yuan", "80,000,000.00 yuan", "80 million yuan"], "+60 %"),
    (500_000_000, "LIMIT LOWERED", ["50,000,000.00 yuan", "5,000,000.00 yuan", "5 million yuan"], "−90 %"),
    (50_000_000_000, "LIMIT RAISED", ["50,000,000.00 yuan", "500,000,000.00 yuan", "500 million yuan"], "+900 %"),
    (5_000_000_001, "LIMIT RAISED", ["50,000,000.00 yuan", "50,000,000.01 yuan"], "+0.00 %"),
]


def test_another_limit_stands_first_and_largest(browser: Browser, console: Console) -> None:
    new = replace(RULE, id="a-new-rule", measure="policy_count", limit=7, valid_from=china_day(console.now) + 1)
    with at(browser, console) as visit:
        visit.sign_in(console.auditor_key)
        for limit, kind, figures, by in LIMITS:
            proposal = console.propose(console.next_terms(new, console.raised(limit, window_days=60)))
            visit.review(proposal)
            expect(visit.page.locator("h2 code")).to_have_text(proposal)
            text = visit.text(".limit:has-text('accident-30d version 3')")
            assert all(part in text for part in (kind, by, *figures)), text
            sizes = visit.run(
                "() => Object.fromEntries([...document.querySelectorAll('body *')].filter((node) => node.textContent)"
                ".map((node) => [node.className, parseFloat(getComputedStyle(node).fontSize)]))"
            )
            assert sizes["figure fresh"] == max(sizes.values())
            text = visit.text(".limit:has-text('a-new-rule')")
            assert "LIMIT OF A NEW RULE" in text
            assert "7 policies" in text
            row = visit.page.locator("#difference tr").filter(has_text="Window").inner_text()
            assert "30 days" in row
            assert "60 days" in row


def test_a_rule_that_ends_and_one_by_another_measure_cannot_be_overlooked(browser: Browser, console: Console) -> None:
    rules = (console.terms.rules[1], console.terms.rules[3], console.raised(9, measure="policy_count"))
    proposal = console.propose(console.next_terms(rules=rules))
    with at(browser, console) as visit:
        visit.sign_in(console.admin_key).review(proposal)
        text = visit.text("#difference")
        assert "RULE VERSION REMOVED: all-accident-90d version 1" in text
        assert "THIS LIMIT ENDS" in text
        assert "LIMIT BY ANOTHER MEASURE" in text
        assert "9 policies" in text
        assert visit.page.locator("#sign input[type=checkbox]").count() == 3


# --- signing -------------------------------------------------------------------------------------------------------


def forms_of(key: bytes) -> list[str]:
    """Return what a private key would look like in a request."""
    return [
        key.hex(),
        key.hex().upper(),
        base64.b64encode(key).decode().rstrip("="),
        key.decode("latin-1"),
        base64.urlsafe_b64encode(key).decode().rstrip("="),
        key.hex()[:32],
        key.hex()[32:],
    ]


def test_two_admins_review_sign_and_publish(browser: Browser, console: Console) -> None:
    terms = console.next_terms(console.raised())
    proposal = console.propose(terms)
    with at(browser, console) as visit:
        visit.sign_in(console.admin_key).review(proposal)
        expect(visit.page.locator("#signer")).to_have_value("li-na")
        expect(visit.page.locator("[data-action=publish]")).to_have_count(0)
        visit.sign(console.key_files["li-na"])
        expect(visit.page.locator("#notice")).to_have_text("li-na has signed. 1 of 2 signatures that are needed.")
        signature = sign_terms(terms, "li-na", ADMINS["li-na"]).signature.hex()
        assert posted(visit) == [(f"proposals/{proposal}/signatures", {"admin": "li-na", "signature": signature})]
        expect(visit.page.locator("#key-file")).to_have_value("")
        assert "li-na" not in visit.page.locator("#signer").inner_text()
        assert_no_key_left(visit, console)
    with at(browser, console, language="zh-CN") as visit:
        visit.sign_in(console.second_key).review(proposal)
        visit.sign(console.key_files["wang-wei"])
        expect(visit.page.locator("#notice")).to_have_text("wang-wei 已签名。已有 2 个签名，需要 2 个。")
        visit.page.locator("[data-action=publish]").click()
        assert "发布不可撤销" in visit.text("dialog")
        assert "限额 50,000,000.00 元 → 80,000,000.00 元" in visit.text("dialog")
        visit.page.locator("dialog [data-action=cancel]").click()
        assert console.proposal(proposal)["state"] == "open"
        visit.page.locator("[data-action=publish]").click()
        visit.page.locator("dialog [data-action=confirm]").click()
        expect(visit.page.locator("#notice")).to_contain_text("已发布，序号 2")
        expect(visit.page.locator("header")).to_contain_text("序号 2")
        assert console.proposal(proposal)["state"] == "published"
        assert visit.page.locator(WRITES).count() == 0
        assert_no_key_left(visit, console)


def assert_no_key_left(visit: Visit, console: Console) -> None:
    """See that no private key is in what was sent, in the page, or anywhere that a page can keep things."""
    sent = "".join(f"{method} {url} {headers} {body}" for method, url, headers, body in visit.requests)
    sent += "".join(f"{path} {body.decode('latin-1')}" for _, path, body in console.asked)
    kept = visit.page.content() + str(visit.run("() => JSON.stringify([{...localStorage}, {...sessionStorage}])"))
    for key in ADMINS.values():
        assert not any(form in sent or form in kept for form in forms_of(key.reveal()))
    assert visit.run("() => [...document.querySelectorAll('input')].every((input) => !input.files?.length)")


def test_another_key_is_refused_before_anything_is_sent(browser: Browser, console: Console, tmp_path: Path) -> None:
    no_key = "The file is not an admin's key: it should hold 64 hexadecimal digits. Nothing was sent."
    nobody = "The key is that of no admin of this alliance. Nothing was sent."
    another = "The key is that of wang-wei, not of li-na. Nothing was sent."
    files = {
        console.key_files["wang-wei"].read_text(): another,
        seeded("nobody")(32).hex(): nobody,
        "-----BEGIN PRIVATE KEY-----": no_key,
        "0" * 5000: no_key,
    }
    proposal = console.propose(console.next_terms(console.raised()))
    with at(browser, console) as visit:
        visit.sign_in(console.admin_key).review(proposal)
        for contents, says in files.items():
            (tmp_path / "other.key").write_text(contents)
            visit.sign(tmp_path / "other.key", "li-na")
            expect(visit.page.locator("#sign-problem")).to_have_text(says)
            expect(visit.page.locator("#key-file")).to_have_value("")
        assert posted(visit) == []
        assert console.proposal(proposal)["signed_by"] == []


def test_nobody_signs_without_having_ticked_each_change_and_chosen_a_key(browser: Browser, console: Console) -> None:
    proposal = console.propose(
        console.next_terms(console.raised(), replace(RULE, id="another", valid_from=china_day(console.now)))
    )
    with at(browser, console) as visit:
        visit.sign_in(console.admin_key).review(proposal)
        boxes = visit.page.locator("#sign input[type=checkbox]")
        assert boxes.count() == 2
        assert "limit 50,000,000.00 yuan → 80,000,000.00 yuan" in visit.text("#sign")
        visit.page.locator("#key-file").set_input_files(console.key_files["li-na"])
        boxes.first.check()
        visit.page.locator("#sign button[type=submit]").click()
        assert visit.run("() => document.querySelector('#sign').checkValidity()") is False
        boxes.nth(1).check()
        visit.page.locator("#signer").select_option("")
        visit.page.locator("#sign button[type=submit]").click()
        assert visit.run("() => document.querySelector('#sign').checkValidity()") is False
        assert posted(visit) == []
        visit.sign(console.key_files["li-na"], "li-na")
        expect(visit.page.locator("#notice")).to_contain_text("li-na has signed")


def test_a_proposal_is_withdrawn_after_a_question(browser: Browser, console: Console) -> None:
    proposal = console.propose(console.next_terms(console.raised()))
    with at(browser, console) as visit:
        visit.sign_in(console.admin_key).review(proposal)
        visit.page.locator("[data-action=withdraw]").click()
        visit.page.keyboard.press("Escape")
        expect(visit.page.locator("dialog")).to_have_count(0)
        assert console.proposal(proposal)["state"] == "open"
        visit.page.locator("[data-action=withdraw]").click()
        visit.page.locator("dialog [data-action=confirm]").click()
        expect(visit.page.locator("#notice")).to_have_text("The proposal is withdrawn.")
        assert visit.page.locator(WRITES).count() == 0


def test_what_was_overtaken_meanwhile_is_told_and_not_published(browser: Browser, console: Console) -> None:
    terms, other = console.next_terms(console.raised()), console.next_terms(console.raised(1))
    proposal, rival = console.propose(terms), console.propose(other)
    for admin in ("li-na", "zhang-min"):
        console.sign(proposal, terms, admin)
        console.sign(rival, other, admin)
    with at(browser, console) as visit:
        visit.sign_in(console.admin_key).review(proposal)
        assert "other proposals of serial 2" in visit.text("#rivals")
        assert rival in visit.text("#rivals")
        assert "signed by li-na, zhang-min" in visit.text("#rivals")
        assert console.call(f"/v1/admin/proposals/{rival}/publish", {}).status_code == 200
        visit.page.locator("[data-action=publish]").click()
        visit.page.locator("dialog [data-action=confirm]").click()
        expect(visit.page.locator("main")).to_contain_text("propose anew with a higher version")
        visit.page.locator("[data-action=refresh]").click()
        expect(visit.page.locator("h2 .badge")).to_have_text("stale")
        assert visit.page.locator(WRITES).count() == 0


# --- roles ---------------------------------------------------------------------------------------------------------


def test_an_auditor_sees_all_and_has_no_button_that_writes(browser: Browser, console: Console) -> None:
    terms = console.next_terms(console.raised())
    proposal = console.propose(terms)
    for admin in ("li-na", "zhang-min"):
        console.sign(proposal, terms, admin)
    with at(browser, console) as visit:
        visit.sign_in(console.auditor_key).review(proposal)
        assert "LIMIT RAISED" in visit.text()
        assert "auditor, reads only" in visit.text("header")
        actions = {button.get_attribute("data-action") for button in visit.page.locator("button").all()}
        assert actions == {None, "sign-out", "refresh"}  # and the languages
        assert visit.page.locator("main :is(form, input, button)").count() == 0
        assert {method for method, _, _, _ in visit.requests} == {"GET"}


def test_a_key_of_a_narrower_scope_has_the_buttons_of_that_scope(browser: Browser, console: Console) -> None:
    key = console.keys.make("signer", Role.ADMIN, 1, seeded("signer"), [Action.READ, Action.SIGN])
    proposal = console.propose(console.next_terms(console.raised()))
    with at(browser, console) as visit:
        visit.sign_in(key).review(proposal)
        assert visit.page.locator("#sign").count() == 1
        assert visit.page.locator("[data-action=publish], [data-action=withdraw]").count() == 0


def test_an_expired_and_an_unknown_key_open_nothing(browser: Browser, console: Console) -> None:
    then = ApiKeys(console.state, lambda: time.time() - 40 * DAY)
    expired = then.make("formerly", Role.ADMIN, 30, seeded("formerly"))
    for key, says in ((expired, "The API key has expired."), ("cover_service_00", "The API key is not known")):
        with at(browser, console) as visit:
            visit.open()
            visit.page.locator("#api-key").fill(key)
            visit.page.locator("#sign-in button").click()
            expect(visit.page.locator("#sign-in-problem")).to_contain_text(says)
            expect(visit.page.locator("#api-key")).to_have_value("")
            assert "insurer-01" not in visit.text()
            visit.speak("zh")
            visit.page.locator("#api-key").fill(key)
            visit.page.locator("#sign-in button").click()
            expect(visit.page.locator("#sign-in-problem")).to_contain_text("API 密钥")


def test_a_key_that_ends_while_the_page_is_open_closes_it(browser: Browser, console: Console) -> None:
    with at(browser, console) as visit:
        visit.sign_in(console.admin_key)
        console.keys.revoke("li-na")
        visit.page.locator("[data-action=refresh]").click()
        expect(visit.page.locator("#sign-in")).to_be_visible()
        expect(visit.page.locator("#notice")).to_contain_text("The API key is not known, or was revoked.")
        assert "insurer-01" not in visit.text()


# --- a service that lies -------------------------------------------------------------------------------------------


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def signed(terms: Terms, *admins: str) -> str:
    return b64(encode(SignedManifest(encode(terms), tuple(sign_terms(terms, name, ADMINS[name]) for name in admins))))


def lies(console: Console, terms: Terms, proposal: str) -> dict[str, tuple[Bend, str]]:
    """Return what a service may say of a proposal instead, and what the page says that fails."""
    path = f"/v1/admin/proposals/{proposal}"
    good = console.proposal(proposal)
    higher = console.next_terms(console.raised(80_000_000_000))
    elsewhere = replace(console.terms, rules=(console.terms.rules[0], console.raised(8_000_000_000, version=2)))
    harmless = [change for change in good["difference"] if change["kind"] != "rule_added"]
    smaller = json.loads(json.dumps(good["difference"]).replace("80000000.00", "51000000.00"))
    other_hash = {"base_hash": hashlib.sha256(encode(elsewhere)).hexdigest()}
    false = {"admin": "zhang-min", "signature": "00" * 64}
    # Two admins signed it once; it was withdrawn, and has the raised limit already.
    unpublished = replace(console.terms, rules=(*console.terms.rules, console.raised(limit=7_000_000_000)))
    as_base = {"hash": hash_of(unpublished).hex(), "signed": signed(unpublished, "li-na", "wang-wei")}
    told = {"base": b64(encode(unpublished)), "base_hash": as_base["hash"], "base_signed": as_base["signed"]}
    told["difference"] = [change.plain() for change in difference(unpublished, terms)]
    years = console.next_terms(console.raised(), valid_until=console.now + 367 * DAY)
    ahead = console.next_terms(console.raised(), issued_at=console.now + 3600)
    rewritten = console.next_terms(rules=(replace(console.terms.rules[0], limit=1), *console.terms.rules[1:]))
    return {
        "a difference without the rule": (bending(path, difference=harmless), "another difference"),
        "a smaller limit": (bending(path, difference=smaller), "another difference"),
        "no difference": (bending(path, difference=None), "another difference"),
        "other terms": (bending(path, terms=b64(encode(higher))), "those of another proposal"),
        "one byte more": (bending(path, terms=b64(encode(terms) + b"\0")), "not terms of a manifest"),
        "no terms": (bending(path, terms=""), "not terms of a manifest"),
        "another serial": (bending(path, serial=7), "those of another proposal"),
        "another id": (bending(path, id="0" * 16), "those of another proposal"),
        "another base": (bending(path, base=b64(encode(elsewhere))), "not the one that the proposal names"),
        "another base and its hash": (
            bending(path, base=b64(encode(elsewhere)), **other_hash),
            "Too few admins have signed the manifest before",
        ),
        "a base signed by one": (
            bending(path, base_signed=signed(console.terms, "li-na")),
            "Too few admins have signed the manifest before",
        ),
        "another manifest in force": (bending("/v1/admin/manifest", hash="00" * 32), "not the one in force"),
        "a manifest in force signed by one": (
            bending("/v1/admin/manifest", signed=signed(console.terms, "li-na")),
            "not the one in force",
        ),
        "a false signature": (
            bending(path, signed_by=["zhang-min"], signatures=[false]),
            "A signature of this proposal",
        ),
        "a signature that is not there": (bending(path, signed_by=["zhang-min"]), "A signature of this proposal"),
        "terms that no agent takes": (
            lambda asked, answer: answer | {"terms": b64(encode(rewritten))} if asked == path else answer,
            "is rewritten",
        ),
        "a base that was signed and never published": (
            lambda asked, answer: (
                answer | (told if asked == path else as_base if asked == "/v1/admin/manifest" else {})
            ),
            "IT FOLLOWS ANOTHER MANIFEST",
        ),
        "terms of years": (bending(path, terms=b64(encode(years))), "366 days at most"),
        "terms from the future": (bending(path, terms=b64(encode(ahead))), "issued in the future"),
        "other admins": (
            bending("/v1/admin/overview", admins=[{"name": "mallory", "public_key": "00" * 32}], threshold=1),
            "Too few admins have signed",
        ),
    }


@pytest.fixture(scope="module")
def liar(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Console, Terms, str, Visit]]:
    with Console(tmp_path_factory.mktemp("liar")).served() as served, at(browser, served) as visit:
        terms = served.next_terms(served.raised())
        proposal = served.propose(terms)
        visit.sign_in(served.admin_key).review(proposal)
        yield served, terms, proposal, visit


LIES = [
    "a difference without the rule", "a smaller limit", "no difference", "other terms", "one byte more", "no terms",
    "another serial", "another id", "another base", "another base and its hash", "a base signed by one",
    "another manifest in force", "a manifest in force signed by one", "a false signature",
    "a signature that is not there", "terms that no agent takes", "other admins",
    "a base that was signed and never published", "terms of years", "terms from the future",
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_the_page_signs_nothing_of_which_the_service_lies_and_says_so_loudly(
    liar: tuple[Console, Terms, str, Visit], lie: str
) -> None:
    console, terms, proposal, visit = liar
    alarm = visit.page.locator("#alarm")
    expect(visit.page.locator("#sign")).to_be_visible()
    console.bend, says = lies(console, terms, proposal)[lie]
    visit.speak("en")
    expect(alarm).to_be_visible()
    assert alarm.get_attribute("role") == "alert"
    assert "DO NOT SIGN" in alarm.inner_text()
    assert says in alarm.inner_text()
    assert visit.page.locator("#sign, #key-file, [data-action=publish]").count() == 0
    visit.speak("zh")
    expect(alarm).to_contain_text("切勿签名")
    console.bend = None
    visit.page.locator("[data-action=refresh]").click()
    expect(visit.page.locator("#sign")).to_be_visible()
    assert alarm.count() == 0
    assert posted(visit) == []


def test_there_is_a_lie_of_each_kind(liar: tuple[Console, Terms, str, Visit]) -> None:
    assert sorted(lies(*liar[:3])) == sorted(LIES)


def test_a_service_that_publishes_something_else_is_found_out(browser: Browser, console: Console) -> None:
    terms = console.next_terms(console.raised())
    proposal = console.propose(terms)
    for admin in ("li-na", "zhang-min"):
        console.sign(proposal, terms, admin)
    with at(browser, console) as visit:
        visit.sign_in(console.admin_key).review(proposal)
        console.bend = bending(f"/v1/admin/proposals/{proposal}/publish", hash="00" * 32)
        visit.page.locator("[data-action=publish]").click()
        visit.page.locator("dialog [data-action=confirm]").click()
        expect(visit.page.locator("#notice[role=alert]")).to_contain_text("ANOTHER MANIFEST")


JUNK: dict[str, Callable[[Any], Any]] = {
    "a list": lambda _: [],
    "nothing": lambda _: {},
    "null": lambda _: None,
    "nulls": dict.fromkeys,
    "objects": lambda answer: {name: {"<b>": 1} for name in answer},
}


def test_an_answer_that_is_junk_is_said_to_be_and_stops_nothing(browser: Browser, console: Console) -> None:
    proposal = console.propose(console.next_terms(console.raised()))
    with at(browser, console) as visit:
        visit.sign_in(console.admin_key)
        places = ("/rules", "/proposals", f"/proposals/{proposal}", "/overview", "/manifest")
        for place, (what, bend) in [
            *zip(places, JUNK.items(), strict=True),
            *zip(places[2:], JUNK.items(), strict=False),
        ]:
            visit.go(f"#{place}" if place in places[:2] else f"#{places[2]}")
            expect(visit.page.locator("main h2")).to_be_visible()
            console.bend = lambda path, answer, bend=bend, place=place: bend(answer) if path.endswith(place) else answer
            visit.page.locator("[data-action=refresh]").click()
            # A proposal that is junk is one that is not to be signed, as far as it can be shown.
            expect(visit.page.locator("main .problem:not(:empty), #alarm").first).to_be_visible()
            assert visit.page.locator("#sign").count() == 0, (place, what)
            console.bend = None
            visit.page.locator("[data-action=refresh]").click()
            expect(visit.page.locator("main .problem:not(:empty), #alarm")).to_have_count(0)


# --- hostile text --------------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>"


def hostile_terms(now: int) -> Terms:
    """Return terms that are consistent and whose texts would be markup."""
    terms = first_terms(now)
    members = tuple(replace(one, group=f"{one.id} {HOSTILE}") for one in terms.members)
    return replace(terms, alliance="<b>alliance</b>{0}", members=members)


def test_texts_that_would_be_markup_are_shown_and_do_nothing(browser: Browser, tmp_path: Path) -> None:
    with Console(tmp_path, hostile_terms).served() as console:
        added = replace(RULE, id="added", valid_from=china_day(console.now))
        proposal = console.propose(console.next_terms(added), comment=f"{HOSTILE}<style>*{{display:none}}</style>")
        hidden = "\u202ecomment\u200b"
        dialogs: list[str] = []

        def bend(path: str, answer: Any) -> Any:  # noqa: ANN401  JSON
            if path.endswith("/overview"):
                members = [
                    one | {"id": f"{one['id']}<a href=javascript:alert(5)>", "url": HOSTILE}
                    for one in answer["members"]
                ]
                return answer | {"members": members, "name": HOSTILE}
            if path.endswith("/rules"):
                text = json.dumps(answer).replace('"accident"', '"<script>alert(2)</script>"')
                return json.loads(text.replace('"policies-30d"', '"\\"><svg onload=alert(3)>0"'))
            if path.endswith("/proposals"):
                return {"proposals": [one | {"proposed_by": HOSTILE, "comment": hidden} for one in answer["proposals"]]}
            return answer

        console.bend = bend
        with at(browser, console) as visit:
            visit.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
            visit.sign_in(console.admin_key)
            seen = {}
            for place in ("#/members", "#/rules", "#/proposals"):
                visit.go(place)
                expect(visit.page.locator("nav [aria-current]")).to_have_attribute("href", place)
                seen[place] = visit.text()
            seen["review"] = visit.review(proposal).text()
            visit.page.locator("details.whole > summary").click()
            for more in visit.page.locator("details.whole details > summary").all():
                more.click()
            seen["whole"] = visit.text()
            made = visit.run(
                "() => [...new Set([...document.querySelectorAll('body *')].map((node) => node.localName))].sort()"
            )
            assert not set(made) & {"img", "script", "svg", "iframe", "style", "b"}, made
            links = visit.run("() => [...document.querySelectorAll('a')].map((link) => link.getAttribute('href'))")
            assert all(link.startswith("#/") for link in links)
            visit.page.evaluate("(text) => { location.hash = text }", f"#/proposals/{HOSTILE}")
            expect(visit.page.locator("main h2")).to_have_text("Members")
        assert dialogs == []
        assert "<a href=javascript:alert(5)>" in seen["#/members"]
        assert HOSTILE in seen["#/members"]
        assert '"><svg onload=alert(3)>0' in seen["#/rules"]
        assert "\\u{202e}comment\\u{200b}" in seen["#/proposals"]
        assert "<script>alert(2)</script>" in seen["#/rules"]
        assert f"{HOSTILE}<style>" in seen["review"]
        assert "<b>alliance</b>{0}" in seen["whole"]
        assert f"insurer-01 {HOSTILE}" in seen["whole"]


# --- trouble -------------------------------------------------------------------------------------------------------


def test_a_write_whose_answer_is_lost_is_never_said_to_have_failed(browser: Browser, console: Console) -> None:
    proposal = console.propose(console.next_terms(console.raised()))
    with visiting(browser, console.url) as visit:
        visit.sign_in(console.admin_key).review(proposal)

        def lose(route: Any) -> None:  # noqa: ANN401  a route of playwright
            route.fetch()
            route.abort("connectionreset")

        visit.page.route("**/signatures", lose)
        visit.sign(console.key_files["li-na"], "li-na")
        expect(visit.page.locator("#sign-problem")).to_contain_text("may have been done")
        visit.page.locator("[data-action=refresh]").click()
        expect(visit.page.locator(".signed-of")).to_have_text("1 of 2 signatures that are needed")


def test_the_end_of_the_manifest_is_told_before_and_after(browser: Browser, console: Console) -> None:
    with at(browser, console) as visit:
        visit.sign_in(console.auditor_key)
        shown = visit.page.locator("main > :is(.note, .alarm)")
        assert shown.count() == 0
        for left, says, kind in ((13, "The manifest expires on", "note"), (-1, "THE MANIFEST EXPIRED ON", "alarm")):
            until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(console.now + left * DAY))
            manifest = console.call("/v1/admin/overview").get_json()["manifest"] | {"valid_until": until}
            console.bend = bending("/v1/admin/overview", manifest=manifest)
            visit.page.locator("[data-action=refresh]").click()
            expect(shown).to_contain_text(says)
            expect(shown).to_have_class(kind)


# --- on any screen, by any means -----------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["zh-CN", "en-GB"])
def test_nothing_runs_off_a_telephones_screen(browser: Browser, console: Console, language: str) -> None:
    console.report(1, console.now - 9000)
    proposal = console.propose(console.next_terms(console.raised(99_999_999_999_99)), comment="long" * 60)
    with at(browser, console, language=language, width=390) as visit:
        visit.sign_in(console.admin_key)
        for place in ("#/members", "#/rules", "#/proposals", f"#/proposals/{proposal}"):
            visit.go(place)
            expect(visit.page.locator("main h2")).to_be_visible()
            if place.count("/") > 1:
                expect(visit.page.locator("#hash")).to_be_visible()
            wide = "() => document.scrollingElement.scrollWidth"
            assert visit.run(wide) <= 390, place


def test_every_field_has_a_label_every_view_a_heading_and_keys_do_all(browser: Browser, console: Console) -> None:
    proposal = console.propose(console.next_terms(console.raised()))
    unlabelled = "() => [...document.querySelectorAll('input, select')].filter((field) => !field.labels.length).length"
    with at(browser, console) as visit:
        visit.open()
        assert visit.run(unlabelled) == 0
        visit.page.locator("#api-key").press_sequentially(console.admin_key)
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator("nav")).to_be_visible()
        visit.review(proposal)
        assert visit.run(unlabelled) == 0
        assert visit.run("() => document.querySelectorAll('h1').length") == 1
        assert visit.run("() => document.activeElement.localName") == "h2"
        levels = visit.run(
            "() => [...document.querySelectorAll('h1, h2, h3, h4')].map((node) => Number(node.localName[1]))"
        )
        assert all(after - before <= 1 for before, after in pairwise(levels))
        visit.page.locator("[data-action=withdraw]").focus()
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator("dialog")).to_be_visible()
        assert visit.run("() => document.activeElement.dataset.action") == "cancel"
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator("dialog")).to_have_count(0)
        assert console.proposal(proposal)["state"] == "open"


def test_the_world_has_the_members_that_these_tests_name() -> None:
    assert len(WORLD.members) == 7
