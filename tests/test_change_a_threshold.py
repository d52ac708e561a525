"""Admins change a threshold by their commands alone, at a live service, and believe a bent one nothing."""

import base64
import datetime as dt
import json
import re
import shlex
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from certified import House, certificate, member, new_key, running, urn
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from governing import (
    ADMINS,
    DAY,
    KEYS,
    PINS,
    WORLD,
    Board,
    following,
    id_of,
    signature_of,
    signed,
    with_limit,
)
from live import wait_until
from werkzeug.serving import make_server
from world import RULE

from protocol.encoding import decode, encode
from protocol.enrolment import enrol
from protocol.manifest import Manifest, SignedManifest, Terms, china_day, day_of, verify_manifest
from service.admin import cli
from service.admin.local import LocalOptions, _Alliance
from service.admin.manifests import pins_json
from service.admin.remote import Line
from service.published import Published
from transport.certificates import SERVICE
from transport.problems import Problem
from transport.settings import SettingsError, load_pins, write_private

MILLION = 100_000_000
"""Yuan, in fen."""


def rules_file(
    place: Path, *, limit: int = 60_000_000, version: int = 2, day: str | None = None, name: str = RULE.id
) -> Path:
    """Write a rules file with one version of a rule; the limit is in yuan."""
    day = day_of(china_day(time.time())).isoformat() if day is None else day
    place.write_text(
        f"""
        products = ["accident"]
        [[rule]]
        id = "{name}"
        version = {version}
        products = ["accident"]
        window_days = 30
        measure = "sum_insured"
        limit = {limit}
        budget = 50
        recheck_budget = 60
        budget_days = 30
        valid_from = {day}
        """
    )
    return place


class Desk:
    """An admin's machine: what he has been given, and his own key."""

    def __init__(self, folder: Path, url: str, api_key: str, ca: Path | None, pins: str | None = None) -> None:
        folder.mkdir()
        self.folder = folder
        write_private(folder / "api.key", api_key.encode() + b"\n")
        (folder / "admins.json").write_text(pins_json(KEYS, 2) if pins is None else pins)
        for name, key in ADMINS.items():
            write_private(folder / f"{name}.key", key.reveal().hex().encode() + b"\n")
        self._remote = ["--url", url, "--api-key", str(folder / "api.key")]
        self._remote += [] if ca is None else ["--ca", str(ca)]

    def line(self, name: str, *arguments: str) -> list[str]:
        pins = [] if name in {"proposals", "withdraw"} else ["--pins", str(self.folder / "admins.json")]
        return [name, *arguments, *self._remote, *pins]

    def run(self, name: str, *arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command as a process of its own."""
        line = [sys.executable, "-m", "service.admin.cli", *self.line(name, *arguments)]
        return subprocess.run(line, input=typed, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    house = House(tmp_path_factory.mktemp("house"))
    state = house.state(SERVICE, workers=2, admin_requests_a_second=1000)
    (state / "manifest.bin").write_bytes(signed(house.manifest.terms, "ann", "bo"))
    (state / "admins.json").write_text(pins_json(KEYS, 2))
    return house


@pytest.fixture(scope="module")
def service(house: House) -> Iterator[House]:
    with running("service.cli", house, SERVICE):
        yield house


def api_key(house: House, name: str, role: str) -> str:
    line = [sys.executable, "-m", "service.cli", "api-key", "make", name, "--role", role, "--days", "7"]
    line += ["--state", str(house.state(SERVICE))]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def desk_of(house: House, place: Path, role: str = "admin") -> Desk:
    key = api_key(house, f"{role} {place}"[-64:].strip(), role)
    return Desk(place, house.url(SERVICE), key, house.root / "ca" / "ca.pem")


def handed_out(house: House) -> Manifest:
    """Return what members' agents get as the newest manifest: at most a second after it is published, by any worker."""
    state = house.state(SERVICE)
    newest = Published(state / "manifests", PINS, state / "manifest.bin").newest()[1]
    request = Request(house.url(SERVICE) + "/v1/manifest")
    got: list[Manifest] = []

    def is_newest() -> bool:
        with urlopen(request, timeout=10, context=house.context(member(1))) as answer:
            got.append(verify_manifest(answer.read(), PINS))
        return got[-1].hash == newest.hash

    wait_until(is_newest, 10)
    return got[-1]


def test_admins_propose_review_sign_twice_and_publish_and_members_get_it(service: House, tmp_path: Path) -> None:
    ann, bo = desk_of(service, tmp_path / "ann"), desk_of(service, tmp_path / "bo")
    auditor = desk_of(service, tmp_path / "eve", "auditor")
    before = handed_out(service)
    rules = rules_file(tmp_path / "rules.toml")

    tried = ann.run("propose", "--rules", str(rules), "--dry-run")
    assert (tried.returncode, tried.stdout.splitlines()[-1]) == (0, "nothing has been proposed"), tried
    made = ann.run("propose", "--rules", str(rules), "--comment", "as agreed on Tuesday")
    assert made.returncode == 0, made
    assert "    * limit: 50000000.00 -> 60000000.00" in made.stdout.splitlines()
    proposal = made.stdout.splitlines()[-1].removeprefix("proposed ")

    listed = bo.run("proposals").stdout.splitlines()[1].split("\t")
    assert (listed[:4], listed[6]) == (
        [proposal, "open", str(before.terms.serial + 1), "0 of 2"],
        "as agreed on Tuesday",
    )
    reviewed = json.loads(auditor.run("review", proposal, "--json").stdout)
    assert reviewed["base"] == {"serial": before.terms.serial, "hash": before.hash.hex()}
    assert reviewed["difference"][0]["what"] == "accident-30d version 2"

    refused = auditor.run(
        "approve", proposal, "--admin", "ann", "--key", str(auditor.folder / "ann.key"), typed="yes\n"
    )
    assert (refused.returncode, "forbidden" in refused.stderr) == (2, True)
    doubtful = ann.run("approve", proposal, "--admin", "ann", "--key", str(ann.folder / "ann.key"), typed="no\n")
    assert (doubtful.returncode, doubtful.stderr) == (2, "alliance: nothing has been signed\n")
    first = ann.run("approve", proposal, "--admin", "ann", "--key", str(ann.folder / "ann.key"), typed="yes\n")
    assert first.stdout.endswith("Sign this? Type yes: signed; 1 of 2 signatures are there\n"), first
    early = ann.run("publish", proposal)
    assert (early.returncode, "under-signed" in early.stderr) == (2, True)

    signer = tmp_path / "hsm.py"
    signer.write_text(
        "import sys\n"
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey\n"
        "key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(open(sys.argv[1]).read()))\n"
        "print(key.sign(sys.stdin.buffer.read()).hex())\n"
    )
    command = shlex.join([sys.executable, str(signer), str(bo.folder / "bo.key")])
    second = bo.run("approve", proposal, "--admin", "bo", "--signer", command, "--reviewed", reviewed["hash"])
    assert (second.returncode, second.stdout.splitlines()[-1]) == (0, "signed; 2 of 2 signatures are there"), second
    published = bo.run("publish", proposal)
    assert published.returncode == 0, published

    manifest = handed_out(service)
    assert published.stdout == f"published: serial {manifest.terms.serial}, hash {manifest.hash.hex()}\n"
    assert manifest.hash.hex() == reviewed["hash"]
    assert manifest.terms.serial == before.terms.serial + 1
    assert manifest.current_rule("accident-30d", china_day(time.time())).limit == 60 * MILLION
    assert auditor.run("proposals").stdout.splitlines()[1].split("\t")[1] == "published"


def test_the_steps_in_the_readme_are_what_a_new_admin_types(service: House, tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Changing a threshold") :]
    steps: str = re.findall(r"```\n(.*?)```", section, re.DOTALL)[1]
    before = handed_out(service)
    state = service.state(SERVICE)
    for name, number in (("ann", 1), ("bo", 2)):
        write_private(tmp_path / f"admin-{number}.key", ADMINS[name].reveal().hex().encode())
    # What is another here: places, names, and that nobody sits there to copy the id and to type yes.
    here = {
        "$PWD/.venv/bin": str(Path(sys.executable).parent),
        "https://127.0.0.1:8500": service.url(SERVICE),
        "build/local/service": str(state),
        "build/local/ca": str(service.root / "ca"),
        "build/local/admin": str(tmp_path),
        "--admin admin-1": "--admin ann",
        "--admin admin-2": "--admin bo",
        "ID=0acdde84399d3cc9": 'ID=$(alliance proposals "${SERVICE[@]}" | sed -n 2p | cut -f1)',
        "alliance approve": "echo yes | alliance approve",
        "version = 2 ": f"version = {before.current_rule(RULE.id, china_day(time.time())).version + 1} ",
    }
    for written, meant in here.items():
        assert written in steps, written
        steps = steps.replace(written, meant)
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", steps],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = handed_out(service)
    lines = done.stdout.splitlines()
    assert lines[-1] == f"published: serial {before.terms.serial + 1}, hash {after.hash.hex()}"
    assert after.current_rule(RULE.id, china_day(time.time())).limit == 60 * MILLION
    shown = section[section.index("rule added:") : section.index("…\nsigned")].splitlines()
    assert {line for line in shown if "->" not in line} <= {line.replace("version 3", "version 2") for line in lines}


def test_a_stale_and_a_withdrawn_proposal_are_refused_by_the_live_service(service: House, tmp_path: Path) -> None:
    desk = desk_of(service, tmp_path / "desk")
    ids = []
    for days in (61, 62, 63):
        made = call(desk, "propose", "--valid-days", str(days))
        ids.append(made.splitlines()[-1].removeprefix("proposed "))
        for admin in ("ann", "chen"):
            approve(desk, ids[-1], admin)
    assert call(desk, "withdraw", ids[0]).startswith("withdrawn")
    assert "proposal-withdrawn" in refusal(desk, "publish", ids[0])
    assert call(desk, "publish", ids[1]).startswith("published")
    assert "stale-proposal" in refusal(desk, "publish", ids[2])
    assert "stale-proposal" in refusal(desk, "withdraw", ids[2])


def test_nobody_but_the_service_is_given_the_api_key(service: House, tmp_path: Path) -> None:
    desk = desk_of(service, tmp_path / "desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("http.client.HTTPConnection.request", lambda *_: pytest.fail("it was sent"))
        other = House(tmp_path / "other")
        desk._remote[-1] = str(other.root / "ca" / "ca.pem")
        assert "not trusted" in refusal(desk, "proposals")
    key = new_key()
    impostor = certificate(service.ca, key, uris=[urn(member(1))])  # a member's, for the same host
    with tls_server(service, impostor, key, tmp_path) as url:
        desk._remote[1] = url
        desk._remote[-1] = str(service.root / "ca" / "ca.pem")
        assert "not that of the lookup service" in refusal(desk, "proposals")


def test_a_service_whose_certificate_was_revoked_is_not_given_the_api_key(tmp_path: Path) -> None:
    house, key, folder = House(tmp_path / "house"), new_key(), tmp_path / "shown"
    folder.mkdir()
    stolen = certificate(house.ca, key, uris=[urn(SERVICE)])
    crl = house.root / "ca" / "crl.pem"
    good = crl.read_bytes()
    # Only the last of these has revoked it: the others do not count, though each is a list.
    lists = {
        "out of date": revocation_list(house.ca, stolen.serial_number, days=-1),
        "not of the alliance's CA": revocation_list(House(tmp_path / "other").ca, stolen.serial_number),
        "damaged": good[:-60],
        "has been revoked": revocation_list(house.ca, stolen.serial_number),
    }
    with tls_server(house, stolen, key, folder) as url:
        desk = Desk(tmp_path / "desk", url, "cover_service_key", house.root / "ca" / "ca.pem")
        for expected, data in lists.items():
            crl.write_bytes(data)
            assert expected in refusal(desk, "proposals", "--crl", str(crl))
        line = Line(url, house.root / "ca" / "ca.pem", crl)  # as a page that has been served for long has it
        crl.write_bytes(lists["out of date"])
        with pytest.raises(Problem, match=r"bad-revocations: .* out of date"):
            line.exchange("GET", "/v1/admin/rules", None, {})
        crl.unlink()
        assert "cannot be read" in refusal(desk, "proposals", "--crl", str(crl))
    desk._remote[1] = "http://127.0.0.1:1"
    assert "plain HTTP" in refusal(desk, "proposals", "--crl", str(crl))


def test_a_service_that_is_in_no_revocation_list_is_believed(service: House, tmp_path: Path) -> None:
    desk = desk_of(service, tmp_path / "desk")
    assert call(desk, "proposals", "--crl", str(service.root / "ca" / "crl.pem")).startswith("id\t")


def revocation_list(ca: Any, serial: int, *, days: int = 30) -> bytes:  # noqa: ANN401  as certificate()
    """Return a list of a CA that has one certificate and is good for so many days."""
    (issuer, key) = ca
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    end = now + dt.timedelta(days=days)
    entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
    builder = (
        x509.CertificateRevocationListBuilder().issuer_name(issuer.subject).last_update(min(now, end - dt.timedelta(1)))
    )
    builder = builder.next_update(end).add_extension(x509.CRLNumber(7), critical=False)
    return builder.add_revoked_certificate(entry).sign(key, SHA256()).public_bytes(Encoding.PEM)


@contextmanager
def tls_server(house: House, shown: Any, key: Any, folder: Path) -> Iterator[str]:  # noqa: ANN401  as certificate()
    """Serve anyone who comes with a certificate, and fail the test if a request comes."""
    house.show(folder, shown, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem", folder / "tls.key")
    came: list[Any] = []

    def app(environ: Any, start: Any) -> list[bytes]:  # noqa: ANN401  WSGI
        came.append(environ.get("HTTP_AUTHORIZATION"))
        start("200 OK", [])
        return [b"{}"]

    with serving(app, context) as port:
        yield f"https://127.0.0.1:{port}"
    assert came == []


@contextmanager
def serving(app: Any, context: Any = None) -> Iterator[int]:  # noqa: ANN401  WSGI
    server = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=context)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


# --- commands in this process --------------------------------------------------------------------------------------

OUTPUT: list[pytest.CaptureFixture[str]] = []


@pytest.fixture(autouse=True)
def _output(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    OUTPUT.append(capsys)
    yield
    OUTPUT.pop()


def call(desk: Desk, name: str, *arguments: str) -> str:
    """Run a command that must succeed; return what it prints."""
    status = cli.main(desk.line(name, *arguments))
    told = OUTPUT[-1].readouterr()
    assert status == 0, told.err
    return told.out


def refusal(desk: Desk, name: str, *arguments: str) -> str:
    """Run a command that must be refused; return what it says."""
    status = cli.main(desk.line(name, *arguments))
    told = OUTPUT[-1].readouterr()
    assert status == 2, told.out
    assert told.err.count("\n") == 1
    return told.err


def approve(desk: Desk, proposal: str, admin: str) -> str:
    shown = json.loads(call(desk, "review", proposal, "--json"))
    return call(
        desk,
        "approve",
        proposal,
        "--admin",
        admin,
        "--key",
        str(desk.folder / f"{admin}.key"),
        "--reviewed",
        shown["hash"],
    )


Bend = Callable[[str, Any], Any]


class Bent:
    """A service whose answers are bent on their way, and a desk that asks it."""

    def __init__(self, board: Board, place: Path, port: int) -> None:
        self.board = board
        self.bend: Bend = lambda _path, body: body
        self.answers: dict[str, Any] = {}
        """What is answered, by path, without asking."""
        self.desk = Desk(place, f"http://127.0.0.1:{port}", board.admin, None)


@pytest.fixture
def bent(tmp_path: Path) -> Iterator[Bent]:
    board = Board(tmp_path / "service")
    found: list[Bent] = []

    def app(environ: Any, start: Any) -> list[bytes]:  # noqa: ANN401  WSGI
        if environ["PATH_INFO"] in found[0].answers:
            data = json.dumps(found[0].answers[environ["PATH_INFO"]]).encode()
            start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(data)))])
            return [data]
        status: list[Any] = []
        chunks = board.app(environ, lambda *given: status.extend(given))
        data = b"".join(chunks)
        if status[0].startswith("2"):
            value = found[0].bend(environ["PATH_INFO"], json.loads(data))
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
        start(status[0], [("Content-Type", "application/json"), ("Content-Length", str(len(data)))])
        return [data]

    with serving(app) as port:
        found.append(Bent(board, tmp_path / "desk", port))
        yield found[0]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_bent_service_makes_nobody_sign_what_he_has_not_seen(bent: Bent) -> None:
    board, desk = bent.board, bent.desk
    terms, evil = with_limit(board.terms), with_limit(board.terms, 10**9)
    for one in (terms, evil):
        board.propose(one)
    stolen = decode(SignedManifest, signed(board.terms, "ann", "bo")).signatures
    forged = SignedManifest(encode(replace(board.terms, rules=evil.rules)), stolen)
    alone = signed(replace(board.terms, valid_until=board.terms.valid_until + 1), "ann")
    older = signed(following(board.terms, serial=9), "ann", "bo")
    # Two admins signed it once; it was withdrawn, and has the change in it already.
    unpublished = signed(replace(board.terms, rules=terms.rules), "ann", "bo")
    bends = {
        "terms of another proposal": {"terms": b64(encode(evil))},
        "no good terms": {"terms": None},
        "no good base_signed": {"base_signed": "!"},
        "does not verify": {"base_signed": b64(encode(forged))},
        "fewer pinned admins": {"base_signed": b64(alone)},
        "not next to": {"base_signed": b64(older)},
        "follows another manifest": {"base_signed": b64(unpublished)},
    }
    for expected, bend in bends.items():
        bent.bend = lambda _path, body, bend=bend: body | bend
        for name in ("review", "approve"):
            more = ["--admin", "ann", "--key", str(desk.folder / "ann.key")] if name == "approve" else []
            told = refusal(desk, name, id_of(terms), *more)
            assert expected in told
    assert board.get(f"proposals/{id_of(terms)}")["signed_by"] == []


def test_terms_from_the_future_are_not_signed(bent: Bent) -> None:
    board, desk = bent.board, bent.desk
    ahead = following(board.terms, issued_at=int(time.time()) + 3600)
    terms = with_limit(board.terms)
    board.propose(terms)
    answer = board.get(f"proposals/{id_of(terms)}")
    bent.answers[f"/v1/admin/proposals/{id_of(ahead)}"] = answer | {"terms": b64(encode(ahead))}
    assert "issued in the future" in refusal(desk, "review", id_of(ahead))


def test_terms_that_changed_since_the_review_are_not_signed(bent: Bent) -> None:
    board, desk = bent.board, bent.desk
    terms = with_limit(board.terms)
    board.propose(terms)
    arguments = ["--admin", "ann", "--key", str(desk.folder / "ann.key"), "--reviewed"]
    assert "not those that were reviewed" in refusal(desk, "approve", id_of(terms), *arguments, "00" * 32)
    assert board.get(f"proposals/{id_of(terms)}")["signed_by"] == []


def test_the_difference_and_the_signers_are_worked_out_here(bent: Bent) -> None:
    board, desk = bent.board, bent.desk
    terms = with_limit(board.terms)
    board.propose(terms)
    board.sign(terms, "chen")
    lies = {"difference": [], "signed_by": ["ann", "bo"], "comment": "\x1b[2Jnothing\nchanges"}
    fake = [signature_of(terms, "ann") | {"admin": "bo"}, {"admin": 7}, "x", {"admin": "stranger", "signature": "00"}]
    bent.bend = lambda _path, body: body | lies | {"signatures": [*body["signatures"], *fake]}
    shown = call(desk, "review", id_of(terms))
    assert "    * limit: 50000000.00 -> 50000001.00" in shown.splitlines()
    assert "signed   by chen; 2 are needed" in shown.splitlines()
    assert "\x1b" not in shown
    assert json.loads(call(desk, "review", id_of(terms), "--json"))["signed_by"] == ["chen"]
    bent.bend = lambda _path, body: {"proposals": [one | {"comment": "\x1b[2J"} for one in body["proposals"]]}
    assert "\x1b" not in call(desk, "proposals")


def test_what_the_service_says_stands_last_under_its_name_and_looks_like_nothing_else(bent: Bent) -> None:
    board, desk = bent.board, bent.desk
    terms = with_limit(board.terms)
    board.propose(terms)
    blank = "\u3164\u2800 \u3000" * 40
    lies = {
        "state": "open\nhash     " + "0" * 64,
        "proposed_by": f"ann{blank}signed   by ann, bo; 2 are needed",
        "comment": "\u202eevil\u200b\x1b[2J" + "x" * 10_000 + "END",
    }
    bent.bend = lambda _path, body: body | lies
    for shown in (call(desk, "review", id_of(terms)), approve(desk, id_of(terms), "ann")):
        lines = shown.splitlines()
        assert lines[0] == f"proposal {id_of(terms)}"
        (hashed,) = (place for place, line in enumerate(lines) if line.startswith("hash "))
        assert lines[hashed + 1] == "What the service says of it, which nothing vouches for:"
        said = [line for line in lines if line.startswith("  | ")]
        assert lines[hashed + 2 : hashed + 2 + len(said)] == said
        assert said[0] == "  | state   open hash " + "0" * 54
        assert "  | by      ann signed by ann, bo; 2 are needed" in said
        assert any(line.startswith("  | comment \\u202eevil\\u200b\\u001b[2Jxxx") for line in said)
        assert all(len(line) <= 80 for line in said)
        assert sum(line.count("x") for line in said) <= 500
        assert "END" not in shown
        assert not {"\u202e", "\u200b", "\x1b", "\u3164"} & set(shown)
    bent.bend = lambda _path, body: body | {"state": None, "proposed_by": 7, "comment": ""}
    assert call(desk, "review", id_of(terms)).splitlines()[-3:] == ["  | state   ", "  | by      7", "  | comment "]


def test_one_key_under_two_names_is_one_signer(bent: Bent) -> None:
    board, desk = bent.board, bent.desk
    terms = with_limit(board.terms)
    board.propose(terms)
    board.sign(terms, "ann")
    (desk.folder / "admins.json").write_text(pins_json(KEYS | {"another": KEYS["ann"]}, 2))
    twice = [signature_of(terms, "ann") | {"admin": name} for name in ("ann", "another")]
    bent.bend = lambda _path, body: body | {"signatures": twice}
    assert "signed   by ann; 2 are needed" in call(desk, "review", id_of(terms)).splitlines()


def test_who_signs_two_proposals_of_one_serial_is_told(bent: Bent) -> None:
    board, desk = bent.board, bent.desk
    one, two = with_limit(board.terms), with_limit(board.terms, 300)
    for terms in (one, two):
        board.propose(terms)
    assert "NOTE" not in approve(desk, id_of(one), "ann")
    assert f"NOTE     ann has signed {id_of(one)}, too" in approve(desk, id_of(two), "ann")
    assert "NOTE" not in approve(desk, id_of(two), "bo")


def test_what_is_said_to_be_published_must_be_shown(bent: Bent) -> None:
    board, desk = bent.board, bent.desk
    terms = with_limit(board.terms)
    board.propose(terms)
    board.sign(terms, "ann", "bo")
    old = signed(board.terms, "ann", "bo")
    bent.bend = lambda path, body: body | {"signed": b64(old)} if path.endswith("/manifest") else body
    assert "shows another manifest" in refusal(desk, "publish", id_of(terms))


@pytest.mark.parametrize("entries", [None, 7, "x", {}, [7], [{}], [{"id": "x"}], [[]]])
def test_a_list_of_proposals_that_is_none_is_told(bent: Bent, entries: Any) -> None:  # noqa: ANN401  any JSON
    bent.bend = lambda _path, _body: {"proposals": entries}
    assert "no good list" in refusal(bent.desk, "proposals")


@pytest.mark.parametrize("data", [b"", b"[]", b"<html>", b"\xff", b"[" * 100_000, b'{"terms": 7}'])
def test_an_answer_that_is_none_is_told(bent: Bent, data: bytes) -> None:
    terms = with_limit(bent.board.terms)
    bent.board.propose(terms)
    bent.bend = lambda _path, _body: data
    told = refusal(bent.desk, "review", id_of(terms))
    assert "no good" in told
    assert "no JSON" in told or "terms" in told


def test_whoever_cannot_be_reached_or_is_not_meant_is_told(bent: Bent, tmp_path: Path) -> None:
    for url, expected in {
        "http://127.0.0.1:1": "no good answer",
        "https://127.0.0.1:1": "--ca FILE",
        "http://lookup.example": "to this machine alone",
        "ftp://127.0.0.1": "no address",
        "http://127.0.0.1:99999": "no address",
        "http://127.0.0.1/v1": "no address",
    }.items():
        desk = Desk(tmp_path / str(len(list(tmp_path.iterdir()))), url, "cover_service_key", None)
        assert expected in refusal(desk, "proposals")
    (bent.desk.folder / "api.key").chmod(0o644)
    assert "chmod 600" in refusal(bent.desk, "proposals")
    write_private(bent.desk.folder / "api.key", b"two words\nand a line")
    assert "should hold an API key" in refusal(bent.desk, "proposals")


@pytest.mark.parametrize("proposal", ["..", "../../healthz", "0" * 16, "x", "A" * 16])
def test_an_id_that_is_none_goes_nowhere(bent: Bent, proposal: str) -> None:
    for name in ("review", "publish", "withdraw"):
        assert "proposal" in refusal(bent.desk, name, proposal)


def test_signing_with_what_is_not_this_admins_key_sends_nothing(bent: Bent, tmp_path: Path) -> None:
    board, desk = bent.board, bent.desk
    terms = with_limit(board.terms)
    board.propose(terms)
    loud = tmp_path / "loud.py"
    loud.write_text("import sys\nsys.stdin.buffer.read()\nprint('00' * 64)\n")
    ways = {
        "is not the key of ann": ["--key", str(desk.folder / "bo.key")],
        "not the key of ann": ["--signer", shlex.join([sys.executable, str(loud)])],
        "no signature in hex": ["--signer", "cat"],
        "ended with status 1": ["--signer", "false"],
        "quotes do not match": ["--signer", "'"],
        "--signer /nowhere/signer": ["--signer", "/nowhere/signer"],
        "--signer": ["--signer", ""],
    }
    digest = Manifest.of(terms).hash.hex()
    for expected, way in ways.items():
        assert expected in refusal(desk, "approve", id_of(terms), "--admin", "ann", *way, "--reviewed", digest)
    told = refusal(desk, "approve", id_of(terms), "--admin", "stranger", "--key", str(desk.folder / "bo.key"))
    assert "has no admin named stranger" in told
    assert board.get(f"proposals/{id_of(terms)}")["signed_by"] == []


def test_a_local_alliance_may_have_admins_of_whom_more_than_half_sign(tmp_path: Path) -> None:
    policies, state = tmp_path / "policies", tmp_path / "state"
    policies.mkdir()
    for number in range(1, 6):
        (policies / f"insurer-{number:02d}.csv").touch()
        (state / "members" / f"insurer-{number:02d}").mkdir(parents=True)
    (state / "service").mkdir()
    (state / "alliance.json").write_text(json.dumps({"members": 5, "shards": 1, "admins": 3}))
    alone = LocalOptions(
        members=5, policies=policies, state=state, port_base=None, shards=1, database=None, capture=False
    )
    alliance = _Alliance(replace(alone, admins=3))
    signed_by_two = alliance._sign(WORLD.manifest.terms)
    pins = load_pins(state / "service" / "admins.json")
    assert (sorted(pins.keys), pins.threshold) == (["admin-1", "admin-2", "admin-3"], 2)
    assert verify_manifest(encode(signed_by_two), pins).terms == WORLD.manifest.terms
    assert (state / "admin" / "admin-3.key").stat().st_mode & 0o077 == 0
    with pytest.raises(SettingsError, match="with 3 admins"):
        _Alliance(alone)
    with pytest.raises(SettingsError, match="1 to 9"):
        _Alliance(replace(alone, admins=0))


# --- what may be proposed ------------------------------------------------------------------------------------------


def test_what_a_rules_file_does_not_name_stays_as_it_is(bent: Bent, tmp_path: Path) -> None:
    board, desk = bent.board, bent.desk
    rules = rules_file(tmp_path / "rules.toml", name="new-rule", version=1, limit=1_000_000)
    shown = call(desk, "propose", "--rules", str(rules))
    (entry,) = board.get("proposals")["proposals"]
    terms = decode(Terms, base64.b64decode(board.get(f"proposals/{entry['id']}")["terms"]))
    assert terms.rules[:-1] == board.terms.rules
    assert (terms.rules[-1].id, terms.rules[-1].limit) == ("new-rule", MILLION)
    assert terms.products == board.terms.products
    assert "rule added: new-rule version 1" in shown.splitlines()
    assert (terms.valid_until - terms.issued_at) == 90 * DAY
    call(desk, "propose", "--end-rule", "policies-30d", "--valid-days", "30")
    ended = board.get("proposals")["proposals"]
    kinds = [change["kind"] for one in ended for change in board.get(f"proposals/{one['id']}")["difference"]]
    assert kinds.count("rule_removed") == 1


def test_what_agents_would_refuse_is_not_even_proposed(bent: Bent, tmp_path: Path) -> None:
    board, desk = bent.board, bent.desk
    yesterday = day_of(china_day(time.time()) - 1).isoformat()
    files = {
        "make it version 2": rules_file(tmp_path / "1.toml", version=1),
        "in force from the day": rules_file(tmp_path / "2.toml", day=yesterday),
        "stay below 2^46": rules_file(tmp_path / "3.toml", limit=700_000_000_000),
        "cannot be read": tmp_path / "missing.toml",
    }
    for expected, file in files.items():
        assert expected in refusal(desk, "propose", "--rules", str(file))
    assert "no rule unknown to end" in refusal(desk, "propose", "--end-rule", "unknown")
    rules = rules_file(tmp_path / "4.toml")
    assert "which is to end" in refusal(desk, "propose", "--rules", str(rules), "--end-rule", RULE.id)
    assert "never be valid" in refusal(desk, "propose", "--valid-days", "0")
    assert board.get("proposals") == {"proposals": []}


def test_a_member_may_move_and_nothing_else_of_it_may_change(bent: Bent, tmp_path: Path) -> None:
    board, desk = bent.board, bent.desk
    party = WORLD.party(1)
    group = board.terms.members[0].group

    def enrolment(name: str, owner: str, url: str, keys: Any = party.keys) -> str:  # noqa: ANN401  a member's keys
        file = tmp_path / "enrolment.json"
        file.write_text(json.dumps(enrol(keys, name, owner, url)))
        return str(file)

    moved = enrolment(party.id, group, "http://127.0.0.1:7")
    shown = call(desk, "propose", "--enrolment", moved).splitlines()
    assert shown[:2] == ["member changed: insurer-01", "    * url: http://127.0.0.1:1 -> http://127.0.0.1:7"]
    stranger = enrolment("stranger", group, "http://127.0.0.1:7")
    assert "is no member" in refusal(desk, "propose", "--enrolment", stranger)
    assert "owners" in refusal(
        desk, "propose", "--enrolment", enrolment(party.id, "another owner", "http://127.0.0.1:7")
    )
    (tmp_path / "enrolment.json").write_text("[]")
    assert "does not hold an enrolment" in refusal(desk, "propose", "--enrolment", str(tmp_path / "enrolment.json"))


def test_a_version_that_comes_later_is_not_in_force_before_its_day(bent: Bent, tmp_path: Path) -> None:
    board, desk = bent.board, bent.desk
    day = china_day(time.time()) + 5
    call(desk, "propose", "--rules", str(rules_file(tmp_path / "rules.toml", day=day_of(day).isoformat())))
    (entry,) = board.get("proposals")["proposals"]
    for admin in ("ann", "bo"):
        approve(desk, entry["id"], admin)
    assert call(desk, "publish", entry["id"]).startswith("published: serial 2")
    manifest = board.newest()
    assert manifest.current_rule(RULE.id, day - 1).version == 1
    assert manifest.current_rule(RULE.id, day).version == 2
