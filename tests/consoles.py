"""The admins' page under test: a real service over loopback whose answers a test may bend, and a real Chromium."""

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from flask import Flask, Response, request
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect
from serving import serving
from world import RULE, make_world, seeded

from protocol import signing
from protocol.encoding import encode
from protocol.manifest import Rule, SignedManifest, Terms, china_day, hash_of, sign_terms
from protocol.progress import sign_report
from protocol.secret import Secret
from protocol.watermark import sign_watermark
from service.admin.manifests import pins_json
from service.api_keys import ApiKeys, Role
from service.app import make_app
from service.config import save_keys
from service.directory import DataDirectory
from service.proposals import id_of

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
OLDEST_CHROMIUM = 137
"""WebCrypto has Ed25519 by itself from there on."""
INSTALL = "no Chromium was found: apt-get install --no-install-recommends chromium (137 or newer)"
SWITCHES = [
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MILLISECONDS = 15_000
expect.set_options(timeout=WAIT_MILLISECONDS)
ADMINS = {name: Secret(seeded(name)(32)) for name in ("li-na", "wang-wei", "zhang-min")}
THRESHOLD = 2
WORLD = make_world(7, shards=2)
DAY = 86_400
Bend = Callable[[str, Any], Any]
"""Takes a path and the JSON that a good service answers there; returns what is answered in its place."""


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


@contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    found = find_chromium()
    assert found is not None, INSTALL
    browser = playwright.chromium.launch(executable_path=found, headless=True, args=SWITCHES)
    try:
        assert int(browser.version.split(".")[0]) >= OLDEST_CHROMIUM, INSTALL
        yield browser
    finally:
        browser.close()


def first_terms(now: int) -> Terms:
    """Return what is in force: a rule with a past version, and one that has none."""
    old = replace(RULE, valid_from=china_day(now) - 400, limit=3_000_000_000)
    rules = (
        old,
        replace(RULE, version=2, valid_from=china_day(now) - 90),
        replace(RULE, id="all-accident-90d", products=("accident", "group_accident"), window_days=90, min_current=5),
        replace(RULE, id="policies-30d", measure="policy_count", limit=5),
    )
    return replace(WORLD.manifest.terms, rules=rules, issued_at=now - DAY, valid_until=now + 60 * DAY)


class Console:
    """A service of one process, its keys, and what it was asked."""

    def __init__(self, root: Path, terms: Callable[[int], Terms] = first_terms) -> None:
        self.state = root / "service"
        self.now = int(time.time())
        self.terms = terms(self.now)
        self.bend: Bend | None = None
        self.asked: list[tuple[str, str, bytes]] = []
        self.key_files = {name: root / f"{name}.key" for name in ADMINS}
        self._prepare()
        self.keys = ApiKeys(self.state, time.time)
        self.admin_key = self.keys.make("li-na", Role.ADMIN, 30, seeded("admin"))
        self.second_key = self.keys.make("wang-wei", Role.ADMIN, 30, seeded("second"))
        self.auditor_key = self.keys.make("auditor", Role.AUDITOR, 30, seeded("auditor"))
        self.app = make_app(self.state)
        self._listen(self.app)

    def _prepare(self) -> None:
        self.state.mkdir(parents=True, mode=0o700)
        save_keys(WORLD.service.keys, self.state)
        signatures = tuple(sign_terms(self.terms, name, ADMINS[name]) for name in ("li-na", "wang-wei"))
        (self.state / "manifest.bin").write_bytes(
            encode(SignedManifest(terms=encode(self.terms), signatures=signatures))
        )
        public = {name: signing.public_key(private) for name, private in ADMINS.items()}
        (self.state / "admins.json").write_text(pins_json(public, THRESHOLD))
        (self.state / "config.toml").write_text("port = 1\nallow_plain_http = true\nadmin_requests_a_second = 1000.0\n")
        for name, file in self.key_files.items():
            file.write_text(ADMINS[name].reveal().hex() + "\n")
            file.chmod(0o600)

    def _listen(self, app: Flask) -> None:
        @app.before_request
        def note() -> None:
            self.asked.append((request.method, request.path, request.get_data()))

        @app.after_request
        def bent(response: Response) -> Response:
            if self.bend is not None and response.is_json:
                response.set_data(json.dumps(self.bend(request.path, json.loads(response.get_data()))))
            return response

    @contextmanager
    def served(self) -> Iterator[Self]:
        with serving(self.app) as port:
            self.url = f"http://127.0.0.1:{port}"
            yield self

    # --- what stands there

    def report(self, member: int, complete_until: float) -> None:
        """Have a member's watermark be in the directory."""
        party = replace(WORLD.party(member), manifest=replace(WORLD.manifest, terms=self.terms))
        watermark = sign_watermark(party, int(complete_until), self.now)
        DataDirectory(party.manifest, self.state / "directory").exchange(sign_report(party, watermark, set()))

    def next_terms(self, *rules: Rule, **changes: Any) -> Terms:  # noqa: ANN401  fields of terms
        changes.setdefault("rules", (*self.terms.rules, *rules))
        changes = {"serial": self.terms.serial + 1, "previous": hash_of(self.terms), "issued_at": self.now} | changes
        return replace(self.terms, **changes)

    def raised(self, limit: int = 8_000_000_000, **changes: Any) -> Rule:  # noqa: ANN401  fields of a rule
        """Return the next version of the rule in force, with another limit."""
        return replace(RULE, **({"version": 3, "limit": limit, "valid_from": china_day(self.now) + 5} | changes))

    def propose(self, terms: Terms, comment: str = "As agreed on Monday") -> str:
        data = encode(terms)
        body = {"terms": base64.b64encode(data).decode(), "comment": comment}
        answer = self.call("/v1/admin/proposals", body)
        assert answer.status_code == 201, answer.get_data()
        return id_of(data)

    def sign(self, proposal: str, terms: Terms, admin: str) -> None:
        body = {"admin": admin, "signature": sign_terms(terms, admin, ADMINS[admin]).signature.hex()}
        answer = self.call(f"/v1/admin/proposals/{proposal}/signatures", body)
        assert answer.status_code == 200, answer.get_data()

    def proposal(self, proposal: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call(f"/v1/admin/proposals/{proposal}").get_json()
        return found

    def call(self, path: str, body: object = None, key: str | None = None) -> Any:  # noqa: ANN401  werkzeug's answer
        bend, self.bend = self.bend, None
        headers = {"Authorization": f"Bearer {key or self.admin_key}"}
        try:
            client = self.app.test_client()
            return client.get(path, headers=headers) if body is None else client.post(path, json=body, headers=headers)
        finally:
            self.bend = bend


@dataclass
class Visit:
    """A page in a browser, and all that it did: requests, violations of its policy, errors."""

    page: Page
    context: BrowserContext
    url: str
    requests: list[tuple[str, str, dict[str, str], str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, place: str = "") -> Self:
        self.page.goto(f"{self.url}/console{place}")
        return self

    def sign_in(self, key: str, place: str = "") -> Self:
        self.open(place)
        self.page.locator("#api-key").fill(key)
        self.page.locator("#sign-in button").click()
        expect(self.page.locator("nav")).to_be_visible()
        return self

    def go(self, place: str) -> Self:
        self.page.evaluate("(place) => { location.hash = place }", place)
        return self

    def review(self, proposal: str) -> Self:
        self.go(f"#/proposals/{proposal}")
        expect(self.page.locator("#hash")).to_be_visible()
        return self

    def speak(self, language: str) -> Self:
        self.page.locator(f"[data-language={language}]").click()
        return self

    def tick_all(self) -> None:
        for box in self.page.locator("#sign input[type=checkbox]").all():
            box.check()

    def sign(self, file: Path, admin: str | None = None) -> None:
        self.tick_all()
        if admin is not None:
            self.page.locator("#signer").select_option(admin)
        self.page.locator("#key-file").set_input_files(file)
        self.page.locator("#sign button[type=submit]").click()

    def text(self, selector: str = "#page") -> str:
        return self.page.locator(selector).inner_text()

    def run(self, code: str, argument: object = None) -> Any:  # noqa: ANN401  any JSON value
        """Run an asynchronous function in the page, which may import the page's modules."""
        return self.page.evaluate(code, argument)

    def violations(self) -> list[str]:
        found: list[str] = self.page.evaluate("window.violations")
        return found


@contextmanager
def visiting(
    browser: Browser, url: str, *, language: str = "en-GB", width: int = 1280, height: int = 900
) -> Iterator[Visit]:
    context = browser.new_context(locale=language, viewport={"width": width, "height": height})
    context.set_default_timeout(WAIT_MILLISECONDS)
    page = context.new_page()
    visit = Visit(page, context, url)
    page.add_init_script(
        "window.violations = [];"
        "addEventListener('securitypolicyviolation', (event) =>"
        " violations.push(event.violatedDirective + event.blockedURI))"
    )
    context.on(
        "request",
        lambda sent: visit.requests.append((sent.method, sent.url, sent.headers, sent.post_data or "")),
    )
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
    try:
        yield visit
    finally:
        context.close()


def bending(path: str, **values: Any) -> Bend:  # noqa: ANN401  JSON values
    """Return what gives an object at a path other values."""
    return lambda asked, answer: answer | values if asked == path else answer
