"""An alliance's CA and its parties' state directories, for tests of TLS; and certificates that nobody should make."""

import datetime as dt
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from live import ready_at, wait_until
from world import make_world

from insurer_agent.keys import AgentKeys
from protocol import signing
from protocol.encoding import encode
from protocol.manifest import Manifest
from protocol.party import Party
from protocol.secret import Secret
from service.admin.authority import CertificateAuthority, read_request
from service.admin.manifests import add_signature, pins_json, unsigned
from service.config import save_keys
from transport.certificates import SERVICE, Holder, spki_hash, urn_of
from transport.peers import Peers
from transport.settings import write_private
from transport.tls import Tls, TlsSettings
from transport.tls_files import make_request

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
ALLIANCE = "test alliance"
MEMBERS = 6
DAY = dt.timedelta(days=1)
ADMIN = Secret(bytes(range(32)))
WORLD = make_world(MEMBERS, shards=1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def member(number: int) -> Holder:
    return Holder(f"insurer-{number:02d}")


class House:
    """The parties' files. Nothing runs by itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.authority = CertificateAuthority.create(root / "ca", ALLIANCE)
        self.ports = {holder: free_port() for holder in [SERVICE, *map(member, range(1, MEMBERS + 1))]}
        now = int(dt.datetime.now(dt.UTC).timestamp())
        terms = replace(
            WORLD.manifest.terms,
            alliance=ALLIANCE,
            plain_http=0,
            tls_authority=spki_hash(self.authority.certificate),
            service_url=self.url(SERVICE),
            members=tuple(replace(one, url=self.url(Holder(one.id))) for one in WORLD.manifest.terms.members),
            issued_at=now - 10,
            valid_until=now + 86_400,
        )
        self.manifest = Manifest.of(terms)

    def url(self, holder: Holder) -> str:
        return f"https://127.0.0.1:{self.ports[holder]}"

    def party(self, number: int) -> Party:
        name = f"insurer-{number:02d}"
        return Party(name, WORLD.party(number).keys, self.manifest)

    def state(self, holder: Holder, **settings: object) -> Path:
        """Return a party's state directory, with all that it needs to start."""
        state = self.root / (holder.member or "service")
        if state.exists():
            return state
        state.mkdir(mode=0o700)
        (state / "manifest.bin").write_bytes(encode(add_signature(unsigned(self.manifest.terms), "admin", ADMIN)))
        (state / "admins.json").write_text(pins_json({"admin": signing.public_key(ADMIN)}, threshold=1))
        if holder.member is None:
            save_keys(WORLD.service.keys, state)
        else:
            AgentKeys(WORLD.members[holder.member].party.keys, ADMIN).save(state)
            settings |= {"member_id": holder.member, "allow_local": True}
        settings |= {"port": self.ports[holder]}
        (state / "config.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        (state / "ca.pem").write_bytes((self.root / "ca" / "ca.pem").read_bytes())
        self.hand_out_revocations(state)
        request = read_request(make_request(state))
        issued = self.authority.issue(request, holder, self.url(holder), 90)
        write_private(state / "tls.pem", issued.public_bytes(Encoding.PEM))
        return state

    def hand_out_revocations(self, *states: Path) -> None:
        for state in states:
            write_private(state / "crl.pem", self.authority.revocation_list())

    def tls(self, holder: Holder) -> Tls:
        return Tls(tls_settings(self.state(holder)), self.manifest, holder)

    def peers(self, holder: Holder) -> Peers:
        return Peers(self.tls(holder))

    def context(self, holder: Holder | None = None, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """Return what a caller has who trusts the CA, and perhaps shows a party's certificate."""
        context = ssl.create_default_context(cafile=str(self.root / "ca" / "ca.pem"))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if holder is not None:
            context.load_cert_chain(self.state(holder) / "tls.pem", self.state(holder) / "tls.key")
        return context

    @property
    def ca(self) -> tuple[x509.Certificate, Key]:
        """The CA's certificate and key, in whatever hands."""
        key = load_pem_private_key((self.root / "ca" / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return self.authority.certificate, key

    def show(self, state: Path, certificate: x509.Certificate, key: Key) -> None:
        """Have a party's directory hold this certificate with its key."""
        write_private(state / "tls.key", pem(key))
        write_private(state / "tls.pem", certificate.public_bytes(Encoding.PEM))


def tls_settings(state: Path) -> TlsSettings:
    return TlsSettings.taken_from({"tls_key": "tls.key", "tls_certificate": "tls.pem", "ca_file": "ca.pem"}, state)


def pem(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(
    issuer: tuple[x509.Certificate, Key] | None,
    key: Key,
    *,
    name: str = "anyone",
    uris: Sequence[str] = (),
    hosts: Sequence[str] = ("127.0.0.1",),
    since: dt.timedelta = -DAY,
    until: dt.timedelta = DAY,
    ca: bool = False,
) -> x509.Certificate:
    """Return any certificate, of itself unless it has an issuer."""
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by, signer = (subject, key) if issuer is None else (issuer[0].subject, issuer[1])
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    usage |= {"encipher_only": False, "decipher_only": False}
    usage |= {"digital_signature": not ca, "key_cert_sign": ca, "crl_sign": ca}
    builder = (
        x509.CertificateBuilder(by, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + since)
        .not_valid_after(now + until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    return builder.sign(signer, SHA256())


def urn(holder: Holder) -> str:
    return urn_of(ALLIANCE, holder)


@contextmanager
def running(module: str, house: House, holder: Holder) -> Iterator[Path]:
    """Run `service.cli` or `insurer_agent.cli` over a state directory; yield its log."""
    state = house.state(holder)
    file = house.root / f"{state.name}.log"
    with file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "serve", "--state", str(state)], stdout=log, stderr=log
        )
    try:
        context = house.context()
        url = house.url(holder)
        wait_until(lambda: process.poll() is not None or healthy(url, context))
        assert process.poll() is None, file.read_text()
        yield file
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def healthy(url: str, context: ssl.SSLContext) -> bool:
    return ready_at(url, context, "/healthz")
