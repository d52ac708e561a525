"""The alliance's certificates: whom each names, and which have been revoked (SPEC.md, section 7).

A certificate is taken for a member's or the service's if the alliance's CA itself signed it: what other CAs that a TLS
library trusts have signed names nobody here, whatever stands in it.
"""

import hashlib
import logging
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from protocol.errors import ProtocolError
from transport.settings import SettingsError, write_private

log = logging.getLogger(__name__)

REVOCATIONS_PATH = "/v1/revocations"
LOOK_SECONDS = 1.0
"""How old what is known of a file may be."""
WARN_SECONDS = 3600.0
_KNOWN = 4096


@dataclass(frozen=True)
class Holder:
    """Whom a certificate names: a member of the alliance or, with None, its lookup service."""

    member: str | None

    def __str__(self) -> str:
        return "the lookup service" if self.member is None else self.member


SERVICE = Holder(None)


def urn_of(alliance: str, holder: Holder) -> str:
    """Return the name that stands in a certificate, percent-encoded: `urn:cover-lookup:ALLIANCE:member:ID`, say."""
    role = "service" if holder.member is None else f"member:{quote(holder.member, safe='')}"
    return f"urn:cover-lookup:{quote(alliance, safe='')}:{role}"


def host_of(url: str) -> x509.GeneralName:
    """Return the host of an address as certificates have it."""
    host = urlsplit(url).hostname or ""
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


@dataclass(frozen=True)
class Certified:
    """What a certificate of the alliance says. Times are Unix seconds."""

    holder: Holder
    serial: int
    valid_from: float
    valid_until: float


def spki_hash(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of a certificate's SubjectPublicKeyInfo, by which a manifest names the alliance's CA."""
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).digest()


def read_certificate(file: Path) -> x509.Certificate:
    """Return the certificate in a PEM file; raise `SettingsError` if there is none."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise SettingsError(f"the certificate {file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"{file} holds no whole PEM certificate; copy it anew from who issued it") from None


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Tell whether a CA itself signed a certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


class Authority:
    """The alliance's CA, as its parties know it."""

    def __init__(self, certificate: x509.Certificate, alliance: str) -> None:
        key = certificate.public_key()
        if not (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)):
            raise SettingsError("the key of the alliance's CA is not ECDSA P-256; alliance ca-init makes one")
        self.certificate = certificate
        self._key = key
        self._alliance = alliance
        self._known: dict[bytes, Certified | None] = {}

    def certified(self, der: bytes) -> Certified | None:
        """Return what a certificate says, or None if the CA did not itself issue it to a party of this alliance.

        Whether it is valid now and not revoked is another question.
        """
        try:
            return self._known[der]
        except KeyError:
            found = self._read(der)
        if len(self._known) >= _KNOWN:  # of certificates that no CA signed there may be any number
            self._known.clear()
        self._known[der] = found
        return found

    def _read(self, der: bytes) -> Certified | None:
        try:
            certificate = x509.load_der_x509_certificate(der)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
            return None
        holder = _holder(self._alliance, uri)
        if holder is None or constraints.ca or not is_issued_by(certificate, self.certificate):
            return None
        return Certified(
            holder,
            certificate.serial_number,
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )

    def revocation_list(self, pem: bytes) -> "RevocationList":
        """Return what a list says; refuse (`bad-revocations`) one that this CA did not sign whole."""
        try:
            crl = x509.load_pem_x509_crl(pem)
            number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
            after = crl.next_update_utc
            good = crl.issuer == self.certificate.subject and crl.is_signature_valid(self._key)
            # A critical extension means that the list does not stand for all certificates, or not alone.
            partial = any(item.critical or item.oid == ExtensionOID.DELTA_CRL_INDICATOR for item in crl.extensions)
        except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension):
            good = False
        if not good or partial or after is None:
            raise ProtocolError("bad-revocations", "the revocation list is damaged or not of the alliance's CA")
        return RevocationList(pem, number, frozenset(item.serial_number for item in crl), after.timestamp())


def _holder(alliance: str, uri: str) -> Holder | None:
    if uri == urn_of(alliance, SERVICE):
        return SERVICE
    prefix = urn_of(alliance, Holder(""))
    member = uri.removeprefix(prefix)
    # Member ids are letters, digits, dots and dashes, none of which is written otherwise.
    return Holder(member) if uri.startswith(prefix) and urn_of(alliance, Holder(member)) == uri and member else None


@dataclass(frozen=True)
class RevocationList:
    """What one of the CA's lists says; `next_update` in Unix seconds."""

    pem: bytes
    number: int
    serials: frozenset[int]
    next_update: float


class Revocations:
    """The newest revocation list that a party was given, in a file of its state directory.

    The file may be replaced at any time; an older list, or another of the same number, is refused.
    """

    def __init__(self, authority: Authority, file: Path) -> None:
        self._authority = authority
        self._file = file
        self._lock = threading.Lock()
        self._version: object = None
        self._held: RevocationList | None = None
        self._look_at = self._warn_at = 0.0
        try:
            self._read()
        except ProtocolError as error:
            raise SettingsError(f"{file}: {error.hint}; copy it anew, or remove it to get the service's") from None

    @property
    def newest(self) -> RevocationList | None:
        """The newest list, or None if there never was one."""
        now = time.monotonic()
        if now >= self._look_at:
            with self._lock:
                self._look_at = now + LOOK_SECONDS
                try:
                    self._read()
                except ProtocolError as error:
                    told = "%s is not taken, what was revoked before stays so: %s"
                    log.error(told, self._file, error.hint)  # noqa: TRY400  no fault of ours
                self._warn_if_old(now)
        return self._held

    def __contains__(self, serial: int) -> bool:
        newest = self.newest
        return newest is not None and serial in newest.serials

    def take(self, pem: bytes) -> bool:
        """Keep a list in place of an older one; return whether it is newer. Refuses (`bad-revocations`) bad ones."""
        given = self._authority.revocation_list(pem)
        newest = self.newest
        if newest is not None and given.number <= newest.number:
            return False
        write_private(self._file, pem)
        self._look_at = 0.0
        return True

    def _read(self) -> None:
        try:
            status = self._file.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if version == self._version:
                return
            pem = self._file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ProtocolError("bad-revocations", f"it cannot be read: {error.strerror}") from None
        self._version = version
        given, held = self._authority.revocation_list(pem), self._held
        if held is not None and (given.number, given.pem) != (held.number, held.pem) and given.number <= held.number:
            raise ProtocolError("bad-revocations", f"its number is {given.number}, and {held.number} was seen")
        self._held = given

    def _warn_if_old(self, now: float) -> None:
        if self._held is not None and self._held.next_update < time.time() and now >= self._warn_at:
            self._warn_at = now + WARN_SECONDS
            log.warning(
                "THE REVOCATION LIST IS OUT OF DATE: one newer than number %d should have come. Revoked certificates"
                " may be in use; have the alliance's admins make one (alliance ca-crl) and see that the service has it",
                self._held.number,
            )
