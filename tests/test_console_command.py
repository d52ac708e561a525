"""`alliance console`: the page from an admin's own machine, the service's data through it, and nothing for others."""

import base64
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from certified import ADMIN, House, free_port, member, running
from consoles import Console, visiting
from flask import Flask, request
from live import ready_at, wait_until
from playwright.sync_api import Browser, expect
from serving import serving
from world import RULE, seeded

from protocol import signing
from protocol.encoding import encode
from protocol.manifest import AdminPins, Rule, china_day, hash_of
from service.admin.manifests import pins_json
from service.admin.own_console import MAX_BODY, make_console
from service.admin.remote import Line, Remote
from service.api_keys import ApiKeys, Role
from service.console_page import content
from service.proposals import id_of
from transport.certificates import SERVICE
from transport.settings import SettingsError, write_private

PORT = 8470
HERE = {"Host": f"127.0.0.1:{PORT}"}
PINS = AdminPins({"li-na": b"\x01" * 32}, 1)


class Heard:
    """A service that notes what it is sent, and answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.answer: tuple[Any, int, dict[str, str]] = ({"said": 1}, 200, {})
        self.app = Flask("heard", static_folder=None)

        @self.app.route("/<path:path>", methods=["GET", "POST", "PUT", "DELETE"])
        def hear(path: str) -> Any:  # noqa: ANN401  what Flask answers with
            self.requests.append((request.method, f"/{path}", request.get_data(), dict(request.headers)))
            return self.answer


@pytest.fixture
def heard() -> Iterator[tuple[Heard, Flask]]:
    service = Heard()
    with serving(service.app) as port:
        yield service, make_console(Line(f"http://127.0.0.1:{port}", None), PORT, PINS)


# --- what is passed on ---------------------------------------------------------------------------------------------


def test_what_is_under_admin_is_passed_on_and_answered_as_the_service_answers(heard: tuple[Heard, Flask]) -> None:
    service, app = heard
    client = app.test_client()
    sent = HERE | {"Authorization": "Bearer key", "Cookie": "a=b", "X-Forwarded-For": "elsewhere", "User-Agent": "me"}
    answer = client.post("/v1/admin/proposals/0123456789abcdef/signatures", json={"admin": "li-na"}, headers=sent)
    assert (answer.status_code, answer.get_json()) == (200, {"said": 1})
    assert answer.headers["Cache-Control"] == "no-store"
    ((method, path, body, headers),) = service.requests
    assert (method, path, json.loads(body)) == (
        "POST",
        "/v1/admin/proposals/0123456789abcdef/signatures",
        {"admin": "li-na"},
    )
    assert headers["Authorization"] == "Bearer key"
    assert not {"Cookie", "X-Forwarded-For", "Origin", "User-Agent"} & set(headers)
    service.answer = ({"code": "under-signed"}, 409, {"Set-Cookie": "a=b", "Content-Type": "text/html"})
    answer = client.get("/v1/admin/overview", headers=HERE)
    assert (answer.status_code, json.loads(answer.get_data())) == (409, {"code": "under-signed"})
    assert answer.content_type == "application/problem+json"
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/v1/manifest",
        "/v1/checks",
        "/healthz",
        "/v1/admin/",
        "/v1/admin/../manifest",
        "/v1/admin/%2e%2e/manifest",
        "/v1/admin/a//b",
        "/v1/admin/overview?x=1",
        "/v1/admin/a%0d%0ab",
        "/v1/admin/" + "a/" * 9 + "a",
        "/http://127.0.0.1/",
    ],
)
def test_nothing_else_is_passed_on(heard: tuple[Heard, Flask], path: str) -> None:
    service, app = heard
    for method in ("get", "post"):
        assert getattr(app.test_client(), method)(path, headers=HERE).status_code in {404, 405}
    assert app.test_client().delete("/v1/admin/overview", headers=HERE).status_code == 405
    assert service.requests == []


def test_more_than_a_signature_is_not_taken(heard: tuple[Heard, Flask]) -> None:
    service, app = heard
    answer = app.test_client().post("/v1/admin/proposals", data=b"x" * (MAX_BODY + 1), headers=HERE)
    assert answer.status_code == 413
    assert service.requests == []


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8470", "127.0.0.1", "127.0.0.1:8471", "localhost", "[::1]:8470", "0.0.0.0:8470"],
)
def test_a_name_that_was_made_to_lead_here_gets_nothing(heard: tuple[Heard, Flask], host: str) -> None:
    service, app = heard
    for path in ("/", "/console", "/console/home.js", "/v1/admin/overview"):
        answer = app.test_client().get(path, headers={"Host": host, "Authorization": "Bearer key"})
        assert (answer.status_code, json.loads(answer.get_data())["code"]) == (421, "other-host")
    assert service.requests == []


def test_another_page_cannot_ask(heard: tuple[Heard, Flask]) -> None:
    service, app = heard
    for origin in ("https://evil.example", "null", "http://127.0.0.1:8471", f"https://127.0.0.1:{PORT}"):
        answer = app.test_client().get("/v1/admin/overview", headers=HERE | {"Origin": origin})
        assert (answer.status_code, json.loads(answer.get_data())["code"]) == (403, "other-origin")
    assert service.requests == []
    own = HERE | {"Origin": f"http://127.0.0.1:{PORT}"}
    assert app.test_client().get("/v1/admin/overview", headers=own).status_code == 200


def test_it_serves_the_very_page_of_the_service_but_for_whom_it_pins(
    heard: tuple[Heard, Flask], tmp_path: Path
) -> None:
    service = Console(tmp_path).app.test_client()
    own = heard[1].test_client()
    for name in content():
        path = "/console" if name == "index.html" else f"/console/{name}"
        one, other = own.get(path, headers=HERE), service.get(path)
        assert (one.status_code, one.headers["Content-Security-Policy"]) == (
            200,
            other.headers["Content-Security-Policy"],
        )
        assert (one.get_data() == other.get_data()) == (name != "home.js")
    assert b'"li-na": "0101' in own.get("/console/home.js", headers=HERE).get_data()
    assert own.get("/", headers=HERE).headers["Location"] == "/console"


def test_a_service_that_is_not_there_is_said_not_to_be(tmp_path: Path) -> None:
    app = make_console(Line(f"http://127.0.0.1:{free_port()}", None), PORT, PINS)
    answer = app.test_client().get("/v1/admin/overview", headers=HERE)
    assert (answer.status_code, json.loads(answer.get_data())["code"]) == (502, "unreachable")
    with pytest.raises(SettingsError, match="plain HTTP"):
        Line("http://192.0.2.1:80", None)
    with pytest.raises(SettingsError, match="--ca"):
        Line("https://lookup.example", None)
    with pytest.raises(SettingsError, match="cannot be read"):
        Line("https://lookup.example", tmp_path / "none.pem")


# --- the command, to a real service over TLS -----------------------------------------------------------------------


@contextmanager
def own_console(url: str, ca: Path, pins: Path, home: Path) -> Iterator[str]:
    """Run the command; yield its address."""
    port = free_port()
    log = home / f"console-{port}.log"
    command = [sys.executable, "-m", "service.admin.cli", "console", "--url", url, "--ca", str(ca)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--pins", str(pins), "--port", str(port)], stdout=out, stderr=out, env={"TMPDIR": str(home)}
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or ready_at(address, None, "/console"))
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert not list(home.glob("alliance-console-*"))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


def raised(house: House, version: int, now: int) -> Rule:
    limit = RULE.limit + version * 1_000_000
    return replace(house.manifest.terms.rules[0], version=version, limit=limit, valid_from=china_day(now) + 1)


@pytest.mark.browser
def test_an_admin_signs_and_publishes_in_a_page_of_its_own_over_tls(
    browser: Browser, house: House, tmp_path: Path
) -> None:
    ca, key_file = house.root / "ca" / "ca.pem", tmp_path / "admin.key"
    write_private(key_file, ADMIN.reveal().hex().encode())
    pins, others = tmp_path / "admins.json", tmp_path / "others.json"
    pins.write_text(pins_json({"admin": signing.public_key(ADMIN)}, 1))
    others.write_text(pins_json({"admin": bytes(32)}, 1))
    with running("service.cli", house, SERVICE):
        state = house.state(SERVICE)
        keys = ApiKeys(state, lambda: house.manifest.terms.issued_at + 10)
        api_key = keys.make("admin", Role.ADMIN, 1, seeded("key"))
        write_private(tmp_path / "api-key", api_key.encode())
        remote = Remote(house.url(SERVICE), tmp_path / "api-key", ca)
        now = house.manifest.terms.issued_at + 5
        first = house.manifest.terms
        rules = (*first.rules, raised(house, 2, now))
        following = {"serial": first.serial + 1, "previous": hash_of(first)}
        terms = replace(first, issued_at=now, rules=rules, **following)
        body = {"terms": base64.b64encode(encode(terms)).decode(), "comment": "by page"}
        remote.post("/v1/admin/proposals", body)
        proposal = id_of(encode(terms))
        with own_console(house.url(SERVICE), ca, others, tmp_path) as url, visiting(browser, url) as visit:
            visit.sign_in(api_key)
            assert "The service names other admins" in visit.text("main .alarm")
            visit.review(proposal)
            assert visit.page.locator("#sign").count() == 0
            assert "another threshold, than you pin" in visit.text("#alarm")
        with own_console(house.url(SERVICE), ca, pins, tmp_path) as url, visiting(browser, url) as visit:
            visit.sign_in(api_key).review(proposal)
            assert "the admins' keys are those that you pin" in visit.text("footer")
            visit.sign(key_file)
            expect(visit.page.locator("#notice")).to_contain_text("admin has signed. 1 of 1")
            visit.page.locator("[data-action=publish]").click()
            visit.page.locator("dialog [data-action=confirm]").click()
            expect(visit.page.locator("#notice")).to_contain_text("Published as serial 2")
            assert visit.violations() == []
            assert visit.errors == []
            assert {address.split("/")[2] for _, address, _, _ in visit.requests} == {url.removeprefix("http://")}
        assert remote.get("/v1/admin/manifest")["serial"] == 2


def test_whoever_is_not_the_service_gets_no_key(house: House) -> None:
    context = house.tls(member(1)).server_context()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        port = listener.getsockname()[1]
        line = Line(f"https://127.0.0.1:{port}", house.root / "ca" / "ca.pem")
        app = make_console(line, PORT, PINS)
        answers: list[Any] = []
        caller = threading.Thread(
            target=lambda: answers.append(
                app.test_client().get("/v1/admin/overview", headers=HERE | {"Authorization": "Bearer key"})
            )
        )
        caller.start()
        plain, _ = listener.accept()
        with context.wrap_socket(plain, server_side=True) as secured:
            sent = secured.recv(1000)
        caller.join()
    assert sent == b""
    assert json.loads(answers[0].get_data())["code"] == "other-peer"


def test_without_pins_there_is_no_page(house: House) -> None:
    command = [sys.executable, "-m", "service.admin.cli", "console", "--url", house.url(SERVICE)]
    command += ["--ca", str(house.root / "ca" / "ca.pem"), "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "--pins" in done.stderr, done.stdout) == (2, True, "")


def test_a_port_that_is_taken_is_said_to_be(house: House, tmp_path: Path) -> None:
    pins = tmp_path / "admins.json"
    pins.write_text(pins_json({"admin": signing.public_key(ADMIN)}, 1))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "service.admin.cli", "console", "--url", house.url(SERVICE)]
        command += ["--ca", str(house.root / "ca" / "ca.pem"), "--pins", str(pins)]
        command += ["--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "take another with --port" in done.stderr
