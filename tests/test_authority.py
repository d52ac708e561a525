"""The alliance's CA by its commands: what it issues, renews, revokes and refuses."""

import datetime as dt
import json
import ssl
import time
from pathlib import Path

import pytest
from certified import certificate, new_key, pem
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import given
from hypothesis import strategies as st
from live import write_policies

from insurer_agent import cli as agent_cli
from service import cli as service_cli
from service.admin import cli as admin_cli
from service.admin.authority import CertificateAuthority, read_request
from service.admin.local import LocalOptions, _Alliance
from transport.certificates import SERVICE, Authority, Certified, Holder, _holder, read_certificate, urn_of
from transport.settings import SettingsError

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    assert admin_cli.main(["ca-init", str(tmp_path / "ca"), "--alliance", "an alliance"]) == 0
    return tmp_path / "ca"


def made(tmp_path: Path, name: str = "insurer-01", url: str = "https://agent.insurer.example:8443") -> Path:
    """Return the state directory of a member, which has made its keys."""
    salt = tmp_path / "salt"
    if not salt.exists():
        assert agent_cli.main(["salt", str(salt)]) == 0
    arguments = ["--state", str(tmp_path / name), "--member", name, "--url", url, "--salt-file", str(salt)]
    assert agent_cli.main(["init", *arguments]) == 0
    return tmp_path / name


def issue(ca: Path, request: Path, out: Path, *more: str) -> int:
    return admin_cli.main(["ca-issue", str(ca), str(request), "--out", str(out), *(more or ("--member", "insurer-01"))])


def certified(ca: Path, file: Path) -> Certified | None:
    der = read_certificate(file).public_bytes(Encoding.DER)
    return Authority(read_certificate(ca / "ca.pem"), "an alliance").certified(der)


def test_a_member_gets_a_certificate_of_the_key_that_never_leaves_it(ca: Path, tmp_path: Path) -> None:
    state = made(tmp_path)
    assert (state / "tls.key").stat().st_mode & 0o777 == 0o600
    assert (ca / "ca.key").stat().st_mode & 0o777 == 0o600
    out = state / "tls.pem"
    assert issue(ca, state / "tls.csr", out) == 0
    found = certified(ca, out)
    assert found is not None
    assert found.holder == Holder("insurer-01")
    assert 89 < (found.valid_until - time.time()) / 86_400 <= 90
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(out, state / "tls.key")


def test_what_is_issued_is_as_rfc_5280_has_it_and_libraries_demand(ca: Path, tmp_path: Path) -> None:
    state = made(tmp_path)
    assert issue(ca, state / "tls.csr", state / "tls.pem") == 0
    root, leaf = read_certificate(ca / "ca.pem"), read_certificate(state / "tls.pem")
    store = PolicyBuilder().store(Store([root]))
    store.build_server_verifier(x509.DNSName("agent.insurer.example")).verify(leaf, [])
    store.build_client_verifier().verify(leaf, [])
    with pytest.raises(x509.verification.VerificationError):
        store.build_server_verifier(x509.DNSName("other.insurer.example")).verify(leaf, [])

    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (
        *(True, True, True, False),
    )
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert leaf.serial_number.bit_length() > 64
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)


def test_no_name_of_a_request_gets_into_a_certificate(ca: Path, tmp_path: Path) -> None:
    key = new_key()
    wanted = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(urn_of("an alliance", SERVICE)), x509.DNSName("evil.example")]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lookup service")]))
        .add_extension(wanted, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    (tmp_path / "tls.csr").write_bytes(request.public_bytes(Encoding.PEM))
    out = tmp_path / "out.pem"
    assert issue(ca, tmp_path / "tls.csr", out, "--member", "insurer-07", "--url", "https://10.0.0.7:8443") == 0
    leaf, found = read_certificate(out), certified(ca, out)
    assert found is not None
    assert found.holder == Holder("insurer-07")
    assert "service" not in leaf.subject.rfc4514_string()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == ["10.0.0.7"]


def test_where_a_party_is_found_is_read_from_what_lies_beside_its_request(
    ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, out = made(tmp_path), tmp_path / "out.pem"
    assert issue(ca, state / "tls.csr", out, "--member", "insurer-02") == 2
    assert "is the enrolment of insurer-01, not of insurer-02" in capsys.readouterr().err
    assert issue(ca, state / "tls.csr", out, "--service") == 2
    assert "give --url" in capsys.readouterr().err
    enrolment = json.loads((state / "enrolment.json").read_text())
    (state / "enrolment.json").write_text(json.dumps(enrolment | {"url": "https://evil.example"}))
    assert issue(ca, state / "tls.csr", out) == 2
    assert not out.exists()
    service = tmp_path / "service"
    assert service_cli.main(["init", "--state", str(service), "--url", "https://lookup.example"]) == 0
    assert issue(ca, service / "tls.csr", out, "--service") == 0
    found = certified(ca, out)
    assert found is not None
    assert found.holder == SERVICE


def test_requests_that_are_none_and_keys_of_other_kinds_are_refused(
    ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    builder, good = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])), new_key()
    der = bytearray(builder.sign(good, SHA256()).public_bytes(Encoding.DER))
    der[-3] ^= 1
    requests = {
        "RSA": builder.sign(rsa.generate_private_key(65537, 2048), SHA256()),
        "P-384": builder.sign(ec.generate_private_key(ec.SECP384R1()), SHA256()),
    }
    files = {name: one.public_bytes(Encoding.PEM) for name, one in requests.items()}
    files["cut short"] = builder.sign(good, SHA256()).public_bytes(Encoding.PEM)[:-60]
    files["nothing"] = b""
    files["another's signature"] = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    for name, data in files.items():
        (tmp_path / "tls.csr").write_bytes(data)
        assert issue(ca, tmp_path / "tls.csr", tmp_path / "out.pem", "--service", "--url", "https://x") == 2, name
        assert "request" in capsys.readouterr().err
    (tmp_path / "tls.csr").write_bytes(builder.sign(good, SHA256()).public_bytes(Encoding.PEM))
    for days in ("0", "-1", "40000"):
        arguments = ("--service", "--url", "https://x", "--days", days)
        assert issue(ca, tmp_path / "tls.csr", tmp_path / "out.pem", *arguments) == 2
    assert not (tmp_path / "out.pem").exists()


def test_a_certificate_is_renewed_with_its_names_and_its_key_or_a_new_one(
    ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = made(tmp_path)
    old, fresh = tmp_path / "old.pem", tmp_path / "fresh.pem"
    assert issue(ca, state / "tls.csr", old) == 0
    assert agent_cli.main(["tls-install", "--state", str(state), str(old)]) == 0
    renew = ["ca-renew", str(ca), str(old), "--out", str(fresh)]
    assert admin_cli.main([*renew, "--days", "120"]) == 0
    first, second = read_certificate(old), read_certificate(fresh)
    assert first.public_key() == second.public_key()
    assert certified(ca, fresh) != certified(ca, old)
    san = x509.SubjectAlternativeName
    assert first.extensions.get_extension_for_class(san) == second.extensions.get_extension_for_class(san)
    assert agent_cli.main(["tls-install", "--state", str(state), str(fresh)]) == 0
    assert read_certificate(state / "tls.pem") == second

    before = (state / "tls.key").read_bytes()
    assert agent_cli.main(["tls-request", "--state", str(state), "--new-key"]) == 0
    assert (state / "tls.key").read_bytes() == before, "a new key takes effect with its certificate"
    assert admin_cli.main([*renew, "--request", str(state / "tls.csr")]) == 0
    assert agent_cli.main(["tls-install", "--state", str(state), str(fresh)]) == 0
    assert (state / "tls.key").read_bytes() != before
    assert (state / "tls.key").stat().st_mode & 0o777 == 0o600
    assert agent_cli.main(["tls-request", "--state", str(state)]) == 0
    assert read_request(state / "tls.csr").public_key() == read_certificate(state / "tls.pem").public_key()
    capsys.readouterr()
    assert agent_cli.main(["tls-install", "--state", str(state), str(old)]) == 2
    assert "not the one that the certificate was issued for" in capsys.readouterr().err


def test_what_was_revoked_is_listed_numbered_and_not_renewed(
    ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, other = made(tmp_path), made(tmp_path, "insurer-02")
    outs = [tmp_path / f"{number}.pem" for number in range(3)]
    for out in outs[:2]:
        assert issue(ca, state / "tls.csr", out) == 0
    assert issue(ca, other / "tls.csr", outs[2], "--member", "insurer-02") == 0
    authority = Authority(read_certificate(ca / "ca.pem"), "an alliance")
    serials = [read_certificate(out).serial_number for out in outs]

    def listed() -> tuple[int, set[int]]:
        found = authority.revocation_list((ca / "crl.pem").read_bytes())
        return found.number, set(found.serials)

    assert listed() == (1, set())
    assert admin_cli.main(["ca-revoke", str(ca), "--serial", f"{serials[2]:x}"]) == 0
    assert listed() == (2, {serials[2]})
    assert admin_cli.main(["ca-revoke", str(ca), "--member", "insurer-01"]) == 0
    assert listed() == (3, set(serials))
    assert admin_cli.main(["ca-crl", str(ca)]) == 0
    assert listed() == (4, set(serials))
    capsys.readouterr()
    for nothing in (
        ("--member", "insurer-01"),
        ("--member", "x"),
        ("--serial", "12"),
        ("--serial", "zz"),
        ("--service",),
    ):
        assert admin_cli.main(["ca-revoke", str(ca), *nothing]) == 2
    assert listed() == (4, set(serials))
    assert admin_cli.main(["ca-renew", str(ca), str(outs[0]), "--out", str(tmp_path / "x.pem")]) == 2
    assert "has been revoked" in capsys.readouterr().err
    assert admin_cli.main(["ca-list", str(ca)]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]
    assert {(line[0], line[3], line[4], line[5]) for line in lines} == {
        (f"{serial:x}", "revoked", holder, "agent.insurer.example")
        for serial, holder in zip(serials, ["insurer-01", "insurer-01", "insurer-02"], strict=True)
    }


def test_a_ca_is_made_once_and_used_with_its_own_key_alone(
    ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert admin_cli.main(["ca-init", str(ca), "--alliance", "an alliance"]) == 2
    assert "exists" in capsys.readouterr().err
    assert admin_cli.main(["ca-init", str(tmp_path / "other"), "--alliance", "x" * 65]) == 2
    assert admin_cli.main(["ca-init", str(tmp_path / "other"), "--alliance", "a\nb"]) == 2
    assert not (tmp_path / "other" / "ca.key").exists()
    key = (ca / "ca.key").read_bytes()
    for spoil, told in (
        (lambda: (ca / "ca.key").chmod(0o644), "chmod 600"),
        (lambda: (ca / "ca.key").write_bytes(key[:-60]), "is damaged"),
        (lambda: (ca / "ca.key").write_bytes(pem(new_key())), "is not the key of"),
        ((ca / "ca.key").unlink, "cannot be read"),
    ):
        spoil()
        with pytest.raises(SettingsError, match=told):
            CertificateAuthority(ca)
        (ca / "ca.key").write_bytes(key)
        (ca / "ca.key").chmod(0o600)
    (ca / "crl.pem").unlink()
    with pytest.raises(SettingsError, match=r"crl\.pem cannot be read"):
        CertificateAuthority(ca).publish()


def test_a_certificate_of_another_ca_is_not_renewed(
    ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = certificate(None, new_key(), uris=[urn_of("an alliance", SERVICE)])
    (tmp_path / "x.pem").write_bytes(shown.public_bytes(Encoding.PEM))
    assert admin_cli.main(["ca-renew", str(ca), str(tmp_path / "x.pem"), "--out", str(tmp_path / "y.pem")]) == 2
    assert "not issued by this CA" in capsys.readouterr().err


@given(NAMES, NAMES, IDS | st.none())
def test_a_name_in_a_certificate_is_of_one_alliance_and_one_party(
    alliance: str, other: str, member: str | None
) -> None:
    uri = urn_of(alliance, Holder(member))
    assert uri.isascii()
    assert _holder(alliance, uri) == Holder(member)
    if other != alliance:
        assert _holder(other, uri) is None


def test_a_local_alliance_renews_what_is_about_to_end_when_it_is_brought_back(tmp_path: Path) -> None:
    for number in range(1, 6):
        write_policies(tmp_path / "policies", number, [])
    options = LocalOptions(5, tmp_path / "policies", tmp_path / "state", None, 1, None, capture=False)
    alliance = _Alliance(options)
    alliance._manifest()
    states = [alliance._state / "service", *map(alliance._member, alliance._ids)]
    before = [read_certificate(state / "tls.pem") for state in states]
    ending = CertificateAuthority(alliance._state / "ca").renew(before[2], None, 3)
    (states[2] / "tls.pem").write_bytes(ending.public_bytes(Encoding.PEM))
    alliance._renew_certificates()
    after = [read_certificate(state / "tls.pem") for state in states]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True, True, True]
    assert after[2].not_valid_after_utc - ending.not_valid_after_utc > dt.timedelta(days=20)
    assert after[2].public_key() == before[2].public_key()
    assert {(state / "crl.pem").read_bytes() for state in states} == {(alliance._state / "ca" / "crl.pem").read_bytes()}
