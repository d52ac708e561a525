"""Mutual TLS between a real service and members: who is let in, who is believed, and for how long."""

import datetime as dt
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request

import pytest
from certified import DAY, House, certificate, member, new_key, pem, running, tls_settings, urn
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from live import call, wait_until

from insurer_agent.background import fetch_revocations
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.progress import sign_report
from protocol.watermark import Directory, sign_watermark
from transport import lines
from transport.certificates import SERVICE, Holder, Revocations
from transport.internal import CONTENT_TYPE, message_of, service_message_of
from transport.lines import ServerTlsSocket
from transport.peers import Call, Peers, Reply, Unreachable
from transport.settings import SettingsError, write_private
from transport.tls import Tls

PATH = "/v1/watermarks"
ONE, TWO = member(1), member(2)
REFUSED = Unreachable(timed_out=False)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def log(house: House) -> Iterator[Path]:
    """Have the service run; yield its log."""
    house.state(SERVICE, threads=2)
    with running("service.cli", house, SERVICE) as file:
        yield file


def report(house: House, number: int) -> Call:
    """Return what a member tells the service every ten seconds."""
    party = house.party(number)
    signed = sign_report(party, sign_watermark(party, int(time.time()) - 120, time.time()), ())
    return Call(house.url(SERVICE), PATH, encode(signed), {"Content-Type": CONTENT_TYPE})


def code_of(reply: Reply | Unreachable) -> str:
    try:
        message_of(Directory, reply)
    except ProtocolError as error:
        return error.code
    return "taken"


@contextmanager
def asking(house: House, shown: Holder) -> Iterator[Callable[[Call], str]]:
    """Yield what makes calls with a party's certificate and says what came of each."""
    peers = house.peers(shown)
    try:
        yield lambda call: code_of(peers.call(call, 5))
    finally:
        peers.close()


def stranger(house: House, name: str, shown: x509.Certificate, key: Any) -> ssl.SSLContext:  # noqa: ANN401  a private key
    """Return the context of a caller who trusts the CA and shows this certificate."""
    state = house.root / name
    state.mkdir()
    house.show(state, shown, key)
    context = house.context()
    context.load_cert_chain(state / "tls.pem", state / "tls.key")
    return context


def is_let_in(house: House, context: ssl.SSLContext, holder: Holder = SERVICE) -> bool:
    """Tell whether a handshake is finished: under TLS 1.3 a client knows by the first answer."""
    try:
        return call(Request(house.url(holder) + "/healthz"), context).status == 200
    except (ssl.SSLError, OSError):
        return False


# --- whom the service lets in ------------------------------------------------------------------------------------


def test_a_member_is_let_in_and_its_answer_needs_no_signature(house: House, log: Path) -> None:
    asked, peers = report(house, 1), house.peers(ONE)
    reply = peers.call(asked, 5)
    peers.close()
    assert isinstance(reply, Reply)
    assert (reply.status, reply.signature, reply.sender) == (200, "", SERVICE)
    key = house.manifest.terms.service_signing_key
    assert service_message_of(Directory, asked, reply, key).watermarks
    with pytest.raises(ProtocolError, match="bad-signature"):
        service_message_of(Directory, asked, replace(reply, sender=None), key)
    with pytest.raises(ProtocolError, match="bad-signature"):
        service_message_of(Directory, asked, replace(reply, sender=TWO), key)
    assert "PLAIN" not in log.read_text()


def test_a_member_cannot_send_what_another_signed(house: House, log: Path) -> None:
    with asking(house, ONE) as ask:
        assert ask(report(house, 2)) == "other-member"
        assert ask(report(house, 1)) == "taken"
    assert log.exists()


def test_the_service_itself_and_who_shows_nothing_are_no_members(house: House, log: Path) -> None:
    asked = report(house, 1)
    request = Request(asked.url + PATH, asked.body, dict(asked.headers), method="POST")
    for context in (house.context(), house.context(SERVICE)):
        assert call(request, context).body["code"] == "not-a-member"
    assert log.exists()


def test_a_member_that_is_in_no_manifest_is_let_in_nowhere(house: House, log: Path) -> None:
    key = new_key()
    shown = certificate(house.ca, key, uris=[urn(Holder("insurer-99"))])
    asked = report(house, 1)
    request = Request(asked.url + PATH, asked.body, dict(asked.headers), method="POST")
    assert call(request, stranger(house, "unlisted", shown, key)).body["code"] == "unknown-member"
    assert log.exists()


def test_certificates_that_are_not_good_now_or_not_of_the_ca_fail_the_handshake(house: House, log: Path) -> None:
    key, other = new_key(), new_key()
    named: dict[str, Any] = {"uris": [urn(ONE)]}
    own_ca = certificate(None, other, name="certificate authority", ca=True)
    namesake = x509.CertificateBuilder(
        house.authority.certificate.subject,
        house.authority.certificate.subject,
        other.public_key(),
        1,
        dt.datetime.now(dt.UTC) - DAY,
        dt.datetime.now(dt.UTC) + DAY,
    ).sign(other, house.authority.certificate.signature_hash_algorithm)
    member_as_ca = (certificate(house.ca, other, **named), other)
    sub_ca = (certificate(house.ca, other, name="below", ca=True), other)
    cases = {
        "good": certificate(house.ca, key, **named),
        "expired": certificate(house.ca, key, **named, until=-DAY / 2),
        "not-yet-valid": certificate(house.ca, key, **named, since=DAY / 2),
        "wrong-ca": certificate((own_ca, other), key, **named),
        "wrong-ca-of-its-name": certificate((namesake, other), key, **named),
        "self-signed": certificate(None, key, **named),
        "by-a-member": certificate(member_as_ca, key, **named),
        "by-a-ca-below": certificate(sub_ca, key, **named),
    }
    let_in = {name for name, shown in cases.items() if is_let_in(house, stranger(house, name, shown, key))}
    assert let_in == {"good"}
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["urn:cover-lookup:another:member:insurer-01"],
        ["urn:cover-lookup:test%20alliance:member:"],
        ["urn:cover-lookup:test%20alliance:member:insurer-01:x"],
        ["urn:cover-lookup:test%20alliance:Service"],
        ["urn:cover-lookup:test%20alliance:member:insurer%2D01"],
        ["urn:cover-lookup:test%20alliance:member:insurer-01", "urn:cover-lookup:test%20alliance:service"],
    ],
)
def test_a_certificate_that_does_not_name_one_party_of_this_alliance_names_nobody(
    house: House, log: Path, uris: list[str]
) -> None:
    key = new_key()
    context = stranger(house, secrets.token_hex(4), certificate(house.ca, key, uris=uris), key)
    assert is_let_in(house, context)
    assert call(Request(house.url(SERVICE) + "/v1/manifest"), context).body["code"] == "not-a-member"
    assert log.exists()


def test_other_versions_of_tls_and_plain_http_are_refused(house: House, log: Path) -> None:
    assert is_let_in(house, house.context(version=ssl.TLSVersion.TLSv1_3))
    assert not is_let_in(house, house.context(version=ssl.TLSVersion.TLSv1_2))
    place = ("127.0.0.1", house.ports[SERVICE])
    with socket.create_connection(place, 10) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        heard = b"".join(iter(lambda: line.recv(1 << 16), b""))
    assert b"HTTP" not in heard
    context = house.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(place, 10) as line, context.wrap_socket(line, server_hostname="127.0.0.1") as secured:
        assert (secured.version(), secured.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
    assert "Traceback" not in log.read_text()


def test_who_begins_a_handshake_and_stops_takes_no_thread_for_good(house: House, log: Path) -> None:
    place = ("127.0.0.1", house.ports[SERVICE])
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01"  # of 512 bytes, the first few
    stalled = [socket.create_connection(place, 10) for _ in range(2)]  # the service has two threads
    try:
        for line in stalled:
            line.sendall(hello)
        began = time.monotonic()
        assert is_let_in(house, house.context())
        assert time.monotonic() - began < 4 * lines.HANDSHAKE_SECONDS
        for line in stalled:
            with suppress(ConnectionError):
                assert line.recv(1) == b""
    finally:
        for line in stalled:
            line.close()
    assert "Traceback" not in log.read_text()


def test_requests_that_come_in_one_record_are_all_answered(house: House, log: Path) -> None:
    with (
        socket.create_connection(("127.0.0.1", house.ports[SERVICE]), 10) as line,
        house.context().wrap_socket(line, server_hostname="127.0.0.1") as secured,
    ):
        request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 3900 + b"\r\n\r\n"
        secured.sendall(request * 4)  # 15.8 kB: one record, which gunicorn would read in two pieces
        heard = b""
        while heard.count(b"HTTP/1.1 200 OK") < 4:
            piece = secured.recv(1 << 16)
            assert piece
            heard += piece
    assert log.exists()


# --- revocation ---------------------------------------------------------------------------------------------------


def test_a_revoked_member_is_refused_on_the_connection_that_it_has_and_on_new_ones(house: House, log: Path) -> None:
    state, service = house.state(member(3)), house.state(SERVICE)
    older = house.authority.revocation_list()
    with asking(house, member(3)) as ask, asking(house, ONE) as another:
        assert (ask(report(house, 3)), another(report(house, 1))) == ("taken", "taken")
        certified = house.tls(member(3)).authority.certified(der_of(state / "tls.pem"))
        assert certified is not None
        house.authority.revoke({certified.serial})
        house.hand_out_revocations(service)
        wait_until(lambda: ask(report(house, 3)) == "certificate-revoked", 5)
        with asking(house, member(3)) as anew:
            assert anew(report(house, 3)) == "certificate-revoked"
        assert another(report(house, 1)) == "taken"
        # An older list put back does not let it in again.
        write_private(service / "crl.pem", older)
        wait_until(lambda: ask(report(house, 3)) == "certificate-revoked" and "was seen" in log.read_text(), 5)
        # Nor does a damaged one.
        write_private(service / "crl.pem", house.authority.revocation_list()[:-40])
        wait_until(lambda: ask(report(house, 3)) == "certificate-revoked" and "damaged" in log.read_text(), 5)
    house.hand_out_revocations(service)


def der_of(file: Path) -> bytes:
    return x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(Encoding.DER)


def test_agents_get_the_services_list_and_the_newest_stands(house: House, log: Path) -> None:
    tls = house.tls(TWO)
    agent: Any = SimpleNamespace(party=house.party(2), settings=SimpleNamespace(check_seconds=5.0))
    peers = Peers(tls)
    before = tls.revocations.newest
    assert before is not None
    number = house.authority.publish()
    house.hand_out_revocations(house.state(SERVICE))

    def newest() -> int:
        fetch_revocations(agent, tls, peers)
        found = tls.revocations.newest
        assert found is not None
        return found.number

    wait_until(lambda: newest() == number, 5)
    peers.close()
    assert number > before.number
    assert (house.state(TWO) / "crl.pem").read_bytes() == house.authority.revocation_list()
    assert not tls.revocations.take(before.pem), "an older one is not taken back"
    assert log.exists()


def test_only_whole_lists_of_the_ca_for_all_its_certificates_are_taken(house: House, tmp_path: Path) -> None:
    authority = house.tls(ONE).authority
    key, now = new_key(), dt.datetime.now(dt.UTC)

    def listed(signer: Any, *more: tuple[x509.ExtensionType, bool], number: bool = True) -> bytes:  # noqa: ANN401  a key
        builder = x509.CertificateRevocationListBuilder(authority.certificate.subject, now - DAY, now + DAY)
        for extension, critical in [*([(x509.CRLNumber(7), False)] if number else []), *more]:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(signer, authority.certificate.signature_hash_algorithm).public_bytes(Encoding.PEM)

    partly = x509.IssuingDistributionPoint(
        None,
        None,
        only_contains_user_certs=True,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )
    good = listed(house.ca[1])
    assert authority.revocation_list(good).number == 7
    for bad in (
        *(listed(key), listed(house.ca[1], number=False), listed(house.ca[1], (partly, True))),
        *(
            listed(house.ca[1], (x509.DeltaCRLIndicator(1), False)),
            good[:-60],
            good[60:],
            b"",
            b"-----BEGIN X509 CRL-----",
        ),
    ):
        with pytest.raises(ProtocolError, match="bad-revocations"):
            authority.revocation_list(bad)
        (tmp_path / "crl.pem").write_bytes(bad)
        with pytest.raises(SettingsError, match=r"crl\.pem"):
            Revocations(authority, tmp_path / "crl.pem")


def test_a_list_that_is_out_of_date_is_kept_to_and_said(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = dt.datetime.now(dt.UTC)
    entry = x509.RevokedCertificateBuilder(77, now - 3 * DAY).build()
    builder = x509.CertificateRevocationListBuilder(
        house.authority.certificate.subject, now - 2 * DAY, now - DAY, revoked_certificates=[entry]
    )
    old = builder.add_extension(x509.CRLNumber(1), critical=False).sign(
        house.ca[1], house.authority.certificate.signature_hash_algorithm
    )
    (tmp_path / "crl.pem").write_bytes(old.public_bytes(Encoding.PEM))
    revocations = Revocations(house.tls(ONE).authority, tmp_path / "crl.pem")
    assert 77 in revocations
    assert 78 not in revocations
    assert caplog.text.count("OUT OF DATE") == 1


# --- whom a member believes -----------------------------------------------------------------------------------------


@contextmanager
def answering(house: House, shown: x509.Certificate, key: Any, holder: Holder = SERVICE) -> Iterator[str]:  # noqa: ANN401  a private key
    """Answer everything at a party's address of another host name, with any certificate; yield the URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = house.root / secrets.token_hex(4)
    folder.mkdir()
    house.show(folder, shown, key)
    context.load_cert_chain(folder / "tls.pem", folder / "tls.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                with suppress(OSError), context.wrap_socket(plain, server_side=True) as line:
                    while line.recv(1 << 16):
                        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok")

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert holder is not None


def test_only_the_partys_own_certificate_is_believed_at_its_address(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    key, other = new_key(), new_key()
    named: dict[str, Any] = {"uris": [urn(SERVICE)]}
    cases = {
        "good": certificate(house.ca, key, **named),
        "of a member": certificate(house.ca, key, uris=[urn(TWO)]),
        "of another alliance": certificate(house.ca, key, uris=["urn:cover-lookup:another:service"]),
        "of nobody": certificate(house.ca, key),
        "for another host": certificate(house.ca, key, **named, hosts=["127.0.0.2", "localhost"]),
        "expired": certificate(house.ca, key, **named, until=-DAY / 2),
        "not yet valid": certificate(house.ca, key, **named, since=DAY / 2),
        "of another CA": certificate((certificate(None, other, ca=True), other), key, **named),
        "of itself": certificate(None, key, **named),
    }
    peers, found = house.peers(ONE), {}
    for name, shown in cases.items():
        with answering(house, shown, key) as url:
            found[name] = peers.call(Call(url, "/x", b"", {}), 5)
            peers.close()
    assert {name for name, reply in found.items() if reply != REFUSED} == {"good"}
    assert caplog.text.count("no TLS with the lookup service") == len(cases) - 1


def test_a_member_is_called_by_its_own_name(house: House) -> None:
    key = new_key()
    peers = house.peers(SERVICE)
    with answering(house, certificate(house.ca, key, uris=[urn(TWO)]), key) as url:
        told = [peers.call(Call(url, "/x", b"", {}, to=member(number)), 5) for number in (1, 2)]
        peers.close()  # a server of one connection at a time
        told.append(peers.call(Call(url, "/x", b"", {}, to=ONE), 5))
    assert told == [REFUSED, Reply(200, b"ok", "text/plain", "", TWO), REFUSED]


def test_a_revoked_peer_is_not_called_any_more_on_the_connection_that_there_is_either(house: House) -> None:
    key = new_key()
    shown = certificate(house.ca, key, uris=[urn(TWO)])
    state, peers = house.state(SERVICE), house.peers(SERVICE)
    with answering(house, shown, key) as url:
        there = Call(url, "/x", b"", {}, to=TWO)
        assert isinstance(peers.call(there, 5), Reply)
        house.authority.revoke({shown.serial_number})
        house.hand_out_revocations(state)
        wait_until(lambda: peers.call(there, 5) == REFUSED, 5)
        assert peers.call(there, 5) == REFUSED
        peers.close()


def test_over_tls_no_other_scheme_is_called_and_over_plain_http_no_tls(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        for peers, scheme in ((house.peers(ONE), "http"), (Peers(), "https")):
            assert peers.call(Call(f"{scheme}://{place}", "/x", b"", {}), 1) == REFUSED
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


# --- one's own certificate -----------------------------------------------------------------------------------------


def cut(state: Path, name: str, count: int) -> None:
    write_private(state / name, (state / name).read_bytes()[:-count])


def shows(**changes: Any) -> Callable[[House, Path], None]:  # noqa: ANN401  what `certificate` takes
    """Have a certificate of the CA that is not as it should be, with its key."""

    def spoil(house: House, state: Path) -> None:
        key = new_key()
        house.show(state, certificate(house.ca, key, **{"uris": [urn(member(4))]} | changes), key)

    return spoil


def shows_that_of_another_ca(house: House, state: Path) -> None:
    key, other = new_key(), new_key()
    shown = certificate((certificate(None, other, ca=True), other), key, uris=[urn(member(4))])
    house.show(state, shown, key)


def has_another_ca(_: House, state: Path) -> None:
    shown = certificate(None, new_key(), ca=True)
    write_private(state / "ca.pem", shown.public_bytes(Encoding.PEM))


def revoke_own(house: House, state: Path) -> None:
    house.authority.revoke({x509.load_pem_x509_certificate((state / "tls.pem").read_bytes()).serial_number})
    house.hand_out_revocations(state)


SPOILT: dict[str, tuple[Callable[[House, Path], object], str]] = {
    "another CA": (has_another_ca, "not the CA that the manifest names"),
    "no CA": (lambda _, state: (state / "ca.pem").unlink(), "cannot be read"),
    "a CA cut short": (lambda _, state: cut(state, "ca.pem", 200), "no whole PEM certificate"),
    "a certificate cut short": (lambda _, state: cut(state, "tls.pem", 200), "no whole PEM certificate"),
    "expired": (shows(until=-DAY / 2), "has expired; have the alliance's admins renew it"),
    "not yet valid": (shows(since=DAY / 2), "set this machine's clock"),
    "another's": (shows(uris=[urn(TWO)]), "is the certificate of insurer-02, and this is insurer-04"),
    "by another CA": (shows_that_of_another_ca, "was not issued by the CA"),
    "another host": (shows(hosts=["insurer.example"]), "is for another host than that of https://127.0.0.1"),
    "another key": (
        lambda _, state: write_private(state / "tls.key", pem(new_key())),
        "not the one that the certificate was issued for",
    ),
    "a key cut short": (lambda _, state: cut(state, "tls.key", 60), "is damaged"),
    "a readable key": (lambda _, state: (state / "tls.key").chmod(0o640), "chmod 600"),
    "no key": (lambda _, state: (state / "tls.key").unlink(), "cannot be read"),
    "revoked": (revoke_own, "has been revoked; have the alliance's admins issue another"),
    "a revocation list cut short": (lambda _, state: cut(state, "crl.pem", 60), "remove it to get the service's"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_party_does_not_start_with_files_that_others_would_refuse(house: House, what: str, tmp_path: Path) -> None:
    state, (spoil, told) = tmp_path / "state", SPOILT[what]
    state.mkdir()
    for name in ("ca.pem", "tls.pem", "tls.key", "crl.pem"):
        write_private(state / name, (house.state(member(4)) / name).read_bytes())
    Tls(tls_settings(state), house.manifest, member(4))
    spoil(house, state)
    with pytest.raises(SettingsError, match=told):
        Tls(tls_settings(state), house.manifest, member(4))


def test_a_new_certificate_is_used_without_a_restart_and_a_bad_one_is_not(house: House, log: Path) -> None:
    state = house.state(SERVICE)
    before = (state / "tls.pem").read_bytes()

    def shown() -> bytes | None:
        with (
            socket.create_connection(("127.0.0.1", house.ports[SERVICE]), 10) as line,
            house.context().wrap_socket(line, server_hostname="127.0.0.1") as secured,
        ):
            return secured.getpeercert(binary_form=True)

    assert shown() == der_of(state / "tls.pem")
    with asking(house, ONE) as ask:
        assert ask(report(house, 1)) == "taken"
        renewed = house.authority.renew(x509.load_pem_x509_certificate(before), None, 90)
        write_private(state / "tls.pem", renewed.public_bytes(Encoding.PEM))
        wait_until(lambda: shown() == renewed.public_bytes(Encoding.DER), 5)
        assert ask(report(house, 1)) == "taken", "on the connection that it has"
    write_private(state / "tls.pem", before[:-100])
    wait_until(lambda: is_let_in(house, house.context()) and "new TLS files are not taken" in log.read_text(), 5)
    assert shown() == renewed.public_bytes(Encoding.DER)
    write_private(state / "tls.pem", renewed.public_bytes(Encoding.PEM))


def test_a_member_shows_its_new_certificate_on_new_connections_from_then_on(house: House, log: Path) -> None:
    state, service = house.state(member(5)), house.state(SERVICE)
    with asking(house, member(5)) as ask:
        assert ask(report(house, 5)) == "taken"
        old, key = x509.load_pem_x509_certificate((state / "tls.pem").read_bytes()), new_key()
        renewed = certificate(house.ca, key, uris=[urn(member(5))])
        house.show(state, renewed, key)
        house.authority.revoke({old.serial_number})
        house.hand_out_revocations(service)
        wait_until(lambda: ask(report(house, 5)) == "taken", 5)
        with asking(house, member(5)) as anew:
            wait_until(lambda: anew(report(house, 5)) == "taken", 5)
        wait_until(lambda: revoked_at(house, old), 5)
        assert ask(report(house, 5)) == "taken", "the old one is revoked, and nobody shows it any more"
    assert log.exists()


def revoked_at(house: House, shown: x509.Certificate) -> bool:
    found = house.tls(SERVICE).revocations.newest
    return found is not None and shown.serial_number in found.serials


# --- sockets that end in time -----------------------------------------------------------------------------------------


def test_a_client_that_stalls_counts_as_one_that_has_hung_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "STALL_SECONDS", 0.2)
    context, heard = house.tls(SERVICE).server_context(), []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            line = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            assert isinstance(line, ServerTlsSocket)
            line.do_handshake()
            line.setblocking(True)  # noqa: FBT003  as gunicorn does
            heard.append(line.recv(8192))
            heard.append(line.recv(8192))
            heard.append(line.fileno())
            line.setblocking(True)  # noqa: FBT003  as gunicorn does with what is closed
            try:
                line.sendall(b"x")
            except ConnectionResetError:
                heard.append("reset")

        thread = threading.Thread(target=serve)
        thread.start()
        place = listener.getsockname()
        with (
            socket.create_connection(place, 10) as plain,
            house.context().wrap_socket(plain, server_hostname="127.0.0.1") as line,
        ):
            line.sendall(b"POST /v1/che")
            thread.join(10)
    assert heard == [b"POST /v1/che", b"", -1, "reset"]
