"""A real agent's TLS port: underwriting systems by API key or client certificate, and who cannot call its inside."""

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request

import psycopg
import pytest
from certified import DAY, House, certificate, member, new_key, running, tls_settings, urn
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from live import Answer, call, wait_until
from test_tls import is_let_in, stranger

from insurer_agent import cli as agent_cli
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.store.api_keys import REMEMBERED_SECONDS
from transport.certificates import SERVICE
from transport.internal import CHECK, CHECKS, COMMIT, COMMITTEE_KEY, CONTENT_TYPE, PREPARE
from transport.settings import SettingsError
from transport.tls import Tls, TlsSettings

HERE = member(1)
OWN_CA_KEY = new_key()
OWN_CA = certificate(None, OWN_CA_KEY, name="an insurer's own CA", ca=True)
KEY = new_key()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> House:
    house = House(tmp_path_factory.mktemp("tls"))
    postgres.create_database("tls_agent")
    state = house.state(HERE, database=postgres.dsn("tls_agent"), client_ca_file="own-ca.pem")
    (state / "own-ca.pem").write_bytes(OWN_CA.public_bytes(Encoding.PEM))
    return house


@pytest.fixture(scope="module")
def log(house: House) -> Iterator[Path]:
    with running("insurer_agent.cli", house, HERE) as file:
        yield file


def of_own_ca(name: str, **changes: Any) -> x509.Certificate:  # noqa: ANN401  what `certificate` takes
    return certificate((OWN_CA, OWN_CA_KEY), KEY, name=name, hosts=["underwriting.insurer.example"], **changes)


def rules(house: House, shown: x509.Certificate | None, name: str = "", key: str = "") -> Answer:
    context = house.context() if shown is None else stranger(house, name, shown, KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return call(Request(house.url(HERE) + "/v1/rules", headers=headers), context)


def api_key(house: House, action: str, *arguments: str) -> int:
    roles = ["--role", "underwriter"] if action == "make" else []
    return agent_cli.main(["api-key", action, *arguments, *roles, "--state", str(house.state(HERE))])


def register(house: House, name: str, shown: x509.Certificate, *more: str) -> int:
    file = house.root / f"{name}.pem"
    file.write_bytes(shown.public_bytes(Encoding.PEM))
    return api_key(house, "make", name, "--certificate", str(file), *more)


def test_a_client_certificate_that_is_registered_stands_for_an_api_key(
    house: House, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = of_own_ca("registered")
    assert rules(house, shown, "r1").status == 401
    assert register(house, "underwriting", shown) == 0
    (fingerprint,) = re.fullmatch(r"SHA-256 ([0-9a-f]{64})\n", capsys.readouterr().out).groups()  # type: ignore[union-attr]
    assert rules(house, shown, "r2").status == 200
    assert rules(house, of_own_ca("another"), "r3").status == 401
    for bearer in (fingerprint, f"certificate {fingerprint}"):
        assert rules(house, None, key=bearer).status == 401, "who knows the certificate has not its key"
    assert rules(house, shown, "r4", key="cover_wrong").status == 401
    assert register(house, "another-name", shown) == 2
    assert register(house, "underwriting", of_own_ca("another")) == 2
    assert api_key(house, "list") == 0
    assert "underwriting" in capsys.readouterr().out
    # A name goes over to another certificate, or the command does nothing.
    assert register(house, "policies", of_own_ca("third")) == 0
    assert register(house, "policies", shown, "--replace") == 2
    assert "or the certificate has another name" in capsys.readouterr().err
    assert api_key(house, "revoke", "policies") == 0
    assert api_key(house, "revoke", "underwriting") == 0
    wait_until(lambda: rules(house, shown, f"r5-{secrets.token_hex(4)}").status == 401, 2 * REMEMBERED_SECONDS)
    assert "Traceback" not in log.read_text()


def test_a_client_certificate_has_roles_and_counts_no_longer_than_it_is_good(
    house: House, log: Path, postgres: EmbeddedPostgres
) -> None:
    shown = of_own_ca("by-certificate")
    assert register(house, "by-certificate", shown, "--days", "1095") == 0
    context = stranger(house, "roles-1", shown, KEY)
    assert call(Request(house.url(HERE) + "/v1/rules"), context).status == 200
    for method, path in (("GET", "/v1/status"), ("POST", "/v1/policies"), ("GET", "/v1/api-keys")):
        answer = call(Request(house.url(HERE) + path, method=method), context)
        assert (answer.status, answer.body["code"]) == (403, "forbidden-role")
    query = "SELECT expires_at FROM api_key WHERE name = 'by-certificate'"
    with psycopg.connect(postgres.dsn("tls_agent")) as connection:
        assert connection.execute(query).fetchone() == (shown.not_valid_after_utc,)
        connection.execute("UPDATE api_key SET expires_at = now() WHERE name = 'by-certificate'")

    def code() -> str | None:
        body = call(Request(house.url(HERE) + "/v1/rules"), context).body
        return body.get("code") if isinstance(body, dict) else None

    wait_until(lambda: code() == "api-key-expired", 2 * REMEMBERED_SECONDS)
    assert log.exists()


def test_an_api_key_is_as_good_over_tls_whatever_certificate_comes_with_it(
    house: House, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert api_key(house, "make", "by-key") == 0
    key = capsys.readouterr().out.strip()
    assert rules(house, None, key=key).status == 200
    assert rules(house, of_own_ca("not registered"), "k1", key=key).status == 200
    request = Request(house.url(HERE) + "/v1/rules", headers={"Authorization": f"Bearer {key}"})
    assert call(request, house.context(member(2))).status == 200
    assert log.exists()


def test_certificates_of_the_alliance_are_no_api_keys(
    house: House, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for holder in (member(1), member(2), SERVICE):
        assert call(Request(house.url(HERE) + "/v1/rules"), house.context(holder)).status == 401
    file = house.state(member(2)) / "tls.pem"
    assert api_key(house, "make", "a-member", "--certificate", str(file)) == 2
    assert "is of the alliance's CA" in capsys.readouterr().err
    assert log.exists()


def test_of_other_cas_and_times_no_client_certificate_is_taken(house: House, log: Path) -> None:
    assert is_let_in(house, stranger(house, "o1", of_own_ca("good"), KEY), HERE)
    other = new_key()
    bad = [
        of_own_ca("expired", until=-DAY / 2),
        of_own_ca("not yet valid", since=DAY / 2),
        certificate((certificate(None, other, name="an insurer's own CA", ca=True), other), KEY),
    ]
    for place, shown in enumerate(bad):
        assert not is_let_in(house, stranger(house, f"bad-{place}", shown, KEY), HERE)
    assert "Traceback" not in log.read_text()


def test_nobody_but_the_service_calls_an_agents_inside(house: House, log: Path) -> None:
    forged = of_own_ca("lookup service", uris=[urn(SERVICE)])
    callers = {
        "nobody": house.context(),
        "another member": house.context(member(2)),
        "the member itself": house.context(HERE),
        "the service, says the insurer's own CA": stranger(house, "forged", forged, KEY),
        "an underwriting system": stranger(house, "plain", of_own_ca("plain"), KEY),
    }
    for path in (CHECK, CHECKS, PREPARE, COMMIT, COMMITTEE_KEY):
        request = Request(house.url(HERE) + path, b"x", {"Content-Type": CONTENT_TYPE}, method="POST")
        for name, context in callers.items():
            answer = call(request, context)
            assert (answer.status, answer.body["code"]) == (403, "not-the-service"), name
        assert call(request, house.context(SERVICE)).body["code"] == "malformed"
    assert log.exists()


def test_the_insurers_own_ca_is_another_than_the_alliances(house: House, tmp_path: Path) -> None:
    settings = tls_settings(house.state(HERE))
    own, nothing = house.state(HERE) / "own-ca.pem", tmp_path / "none.pem"
    both = tmp_path / "both.pem"
    both.write_bytes(own.read_bytes() + settings.ca_file.read_bytes())
    short = tmp_path / "short.pem"
    short.write_bytes(own.read_bytes()[:200])
    for file, told in (
        (settings.ca_file, "takes the insurer's own"),
        (both, "takes the insurer's own"),
        (nothing, "cannot be read"),
        (short, "no whole PEM"),
    ):
        with pytest.raises(SettingsError, match=told):
            Tls(TlsSettings(**{**vars(settings), "client_ca_file": file}), house.manifest, HERE)


def test_without_the_insurers_own_ca_no_client_certificate_can_be_registered(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text('member_id = "insurer-01"\nport = 1\n', encoding="utf-8")
    file = str(house.state(HERE) / "own-ca.pem")
    assert (
        agent_cli.main(["api-key", "make", "x", "--role", "auditor", "--certificate", file, "--state", str(tmp_path)])
        == 2
    )
    assert "client_ca_file is not set" in capsys.readouterr().err
