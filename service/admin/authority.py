"""The alliance's certificate authority: a directory of its admins, and what it issues, renews and revokes.

ca.key is the one secret. ca.pem goes to every party, crl.pem to the service, which hands it on. `issued/` keeps every
certificate; who holds one and what is revoked is read from these files, and there is no other record. What stands in
a certificate comes from the admins' own words, never from a request: of that, the key alone is taken.
"""

import datetime as dt
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import ProtocolError
from transport.certificates import Authority, Certified, Holder, RevocationList, host_of, read_certificate, urn_of
from transport.settings import SettingsError, refuse_readable_by_others, write_private
from transport.tls_files import CA_FILE, CRL_FILE, pem_of_key

CA_DAYS = 3650
ISSUE_DAYS = 90
CRL_DAYS = 30
"""A list is good for so long: whoever is given no newer one by then is warned."""
KEY_FILE = "ca.key"
NAME_CHARACTERS = 64
"""The most that X.520 has for a name."""
_CLOCKS = dt.timedelta(minutes=5)
"""Before now, since when a certificate is valid: clocks of several machines differ."""


@dataclass(frozen=True)
class Issued:
    """A certificate that was issued, and whether it has been revoked."""

    certificate: x509.Certificate
    certified: Certified
    revoked: bool

    @property
    def hosts(self) -> list[str]:
        """The hosts that it is for."""
        names = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


class CertificateAuthority:
    """The alliance's CA with its key. Make one anew with `create`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.certificate = read_certificate(directory / CA_FILE)
        self.alliance = alliance_of(self.certificate)
        self._key = _ca_key(directory / KEY_FILE, self.certificate)
        self._authority = Authority(self.certificate, self.alliance)

    @classmethod
    def create(cls, directory: Path, alliance: str) -> "CertificateAuthority":
        """Make key, certificate and an empty revocation list; refuse a directory that has a key."""
        if (directory / KEY_FILE).exists():
            raise SettingsError(f"{directory / KEY_FILE} exists; with another, all certificates and manifests are void")
        if not (0 < len(alliance) <= NAME_CHARACTERS and alliance.isprintable()):
            raise SettingsError(f"an alliance's name has 1 to {NAME_CHARACTERS} characters that print")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        key, now = ec.generate_private_key(ec.SECP256R1()), _now()
        name = _subject(alliance, "certificate authority")
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - _CLOCKS)
            .not_valid_after(now + dt.timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        write_private(directory / KEY_FILE, pem_of_key(key))
        _write(directory / CA_FILE, certificate.public_bytes(Encoding.PEM))
        made = cls(directory)
        made._publish({}, 1)
        return made

    # --- certificates

    def issue(self, request: x509.CertificateSigningRequest, holder: Holder, url: str, days: int) -> x509.Certificate:
        """Issue a certificate for a request's key, to a party that is found at `url`. Raises `SettingsError`."""
        names = [x509.UniformResourceIdentifier(urn_of(self.alliance, holder)), host_of(url)]
        return self._sign(request.public_key(), holder, x509.SubjectAlternativeName(names), days)

    def renew(
        self, old: x509.Certificate, request: x509.CertificateSigningRequest | None, days: int
    ) -> x509.Certificate:
        """Issue a certificate for the same party and host as an old one, and its key unless a request has another."""
        known = self._authority.certified(old.public_bytes(Encoding.DER))
        if known is None:
            raise SettingsError("the old certificate was not issued by this CA")
        if known.serial in self._list().serials:
            raise SettingsError("the old certificate has been revoked; issue another with ca-issue")
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return self._sign(old.public_key() if request is None else request.public_key(), known.holder, names, days)

    def _sign(self, key: object, holder: Holder, names: x509.SubjectAlternativeName, days: int) -> x509.Certificate:
        if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
            raise SettingsError("the request's key is not ECDSA P-256; init and tls-request make one that is")
        now = _now()
        until = now + dt.timedelta(days=days)
        if not now < until <= self.certificate.not_valid_after_utc:
            raise SettingsError(
                f"a certificate ends before the CA's, on {self.certificate.not_valid_after_utc:%Y-%m-%d}"
            )
        ca_key = self._key.public_key()
        common = "lookup service" if holder.member is None else holder.member
        certificate = (
            x509.CertificateBuilder()
            .issuer_name(self.certificate.subject)
            .subject_name(_subject(self.alliance, common))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCKS)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage("digital_signature"), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(names, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key), critical=False)
            .sign(self._key, SHA256())
        )
        folder = self._directory / "issued"
        folder.mkdir(mode=0o700, exist_ok=True)
        _write(folder / f"{certificate.serial_number:x}.pem", certificate.public_bytes(Encoding.PEM))
        return certificate

    def issued(self) -> Iterator[Issued]:
        """Yield all certificates that were issued, by holder and date."""
        revoked, found = self._list().serials, []
        for file in (self._directory / "issued").glob("*.pem"):
            certificate = read_certificate(file)
            certified = self._authority.certified(certificate.public_bytes(Encoding.DER))
            if certified is not None:
                found.append(Issued(certificate, certified, certified.serial in revoked))
        yield from sorted(found, key=lambda one: (str(one.certified.holder), one.certified.valid_from))

    # --- revocation

    def revoke(self, serials: set[int]) -> int:
        """Revoke certificates and write crl.pem; return its number."""
        before = self._read_list()
        revoked = {item.serial_number: item.revocation_date_utc for item in before}
        return self._publish({serial: _now() for serial in serials} | revoked, self._list().number + 1)

    def publish(self) -> int:
        """Write crl.pem anew, with new dates; return its number."""
        return self.revoke(set())

    def revocation_list(self) -> bytes:
        """Return crl.pem."""
        return (self._directory / CRL_FILE).read_bytes()

    def _publish(self, revoked: dict[int, dt.datetime], number: int) -> int:
        now = _now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(now + dt.timedelta(days=CRL_DAYS))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for serial, at in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
            builder = builder.add_revoked_certificate(entry)
        _write(self._directory / CRL_FILE, builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM))
        return number

    def _list(self) -> RevocationList:
        try:
            return self._authority.revocation_list(self.revocation_list())
        except OSError as error:
            raise SettingsError(f"{self._directory / CRL_FILE} cannot be read: {error.strerror}") from None
        except ProtocolError as error:
            raise SettingsError(f"{self._directory / CRL_FILE}: {error.hint}; restore it from its backup") from None

    def _read_list(self) -> x509.CertificateRevocationList:
        return x509.load_pem_x509_crl(self._list().pem)


def alliance_of(certificate: x509.Certificate) -> str:
    """Return the name of the alliance whose CA has this certificate; raise `SettingsError` if it is none of ours."""
    names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if len(names) != 1:
        raise SettingsError("the certificate is not that of an alliance's CA; alliance ca-init makes one")
    return str(names[0].value)


def read_request(file: Path) -> x509.CertificateSigningRequest:
    """Return a certificate request whose own key has signed it; raise `SettingsError` otherwise."""
    try:
        request = x509.load_pem_x509_csr(file.read_bytes())
        if request.is_signature_valid:
            return request
    except OSError as error:
        raise SettingsError(f"the request {file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, InvalidSignature):
        pass
    raise SettingsError(f"{file} is no whole certificate request that its own key has signed")


def _ca_key(file: Path, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    try:
        refuse_readable_by_others(file)
        key = load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        raise SettingsError(f"the CA's key {file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise SettingsError(f"the CA's key {file} is damaged; restore it from its backup") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise SettingsError(f"{file} is not the key of {file.with_name(CA_FILE)}")
    return key


def _subject(alliance: str, name: str) -> x509.Name:
    attributes = ((NameOID.ORGANIZATION_NAME, alliance), (NameOID.COMMON_NAME, name))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def _usage(*allowed: str) -> x509.KeyUsage:
    names = [
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ]
    return x509.KeyUsage(**{name: name in allowed for name in names})


def _now() -> dt.datetime:
    return dt.datetime.fromtimestamp(int(time.time()), dt.UTC)


def _write(file: Path, data: bytes) -> None:
    """Write a file that all may read, whole or not at all."""
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    fresh.write_bytes(data)
    fresh.replace(file)
