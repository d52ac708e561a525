"""One party's end of every TLS connection: its certificate, whom it trusts, and whom not any more (SPEC.md, section 7).

TLS 1.3 and no other, no resumption: each connection verifies both certificates anew, and takes a millisecond of either
side's processor, once. What is asked of a request is a function of its WSGI environment.
"""

import logging
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from transport.certificates import (
    LOOK_SECONDS,
    SERVICE,
    WARN_SECONDS,
    Authority,
    Certified,
    Holder,
    Revocations,
    host_of,
    read_certificate,
    spki_hash,
)
from transport.lines import ServerTlsSocket
from transport.settings import SettingsError
from transport.tls_files import CA_FILE, CERTIFICATE_FILE, CRL_FILE, KEY_FILE, require_fit

log = logging.getLogger(__name__)

Environ = Mapping[str, Any]
_WARN_DAYS = 14


@dataclass(frozen=True)
class TlsSettings:
    """Where a party's TLS files are, and whether it agrees to have none; `client_ca_file` is of an insurer's own CA."""

    tls_key: Path = Path(KEY_FILE)
    tls_certificate: Path = Path(CERTIFICATE_FILE)
    ca_file: Path = Path(CA_FILE)
    crl_file: Path = Path(CRL_FILE)
    client_ca_file: Path | None = None
    allow_plain_http: bool = False

    @classmethod
    def taken_from(cls, values: dict[str, Any], state: Path) -> Self:
        """Take these settings out of all; paths are relative to the state directory."""
        taken = {name: values.pop(name) for name in cls.__dataclass_fields__ if name in values}
        paths = {name: state / value for name, value in taken.items() if isinstance(value, str)}
        return cls(**{"crl_file": state / CRL_FILE} | taken | paths)


@dataclass(frozen=True)
class _Contexts:
    own: Certified
    server: ssl.SSLContext
    client: ssl.SSLContext


class Tls:
    """A party's certificate, key and trust. Files that change are read again, without a restart; bad ones are not."""

    def __init__(self, settings: TlsSettings, manifest: Manifest, own: Holder) -> None:
        self._settings = settings
        self._manifest = manifest
        self._own = own
        certificate = read_certificate(settings.ca_file)
        if spki_hash(certificate) != manifest.terms.tls_authority:
            raise SettingsError(
                f"{settings.ca_file} is not the CA that the manifest names: get ca.pem from the alliance's admins"
            )
        self.authority = Authority(certificate, manifest.terms.alliance)
        self.revocations = Revocations(self.authority, settings.crl_file)
        self._lock = threading.Lock()
        self._version, self._look_at, self._warn_at = self._versions(), 0.0, 0.0
        self._contexts = self._build()

    # --- contexts

    def server_context(self) -> ssl.SSLContext:
        """Return the context of the newest files for connections that are taken."""
        return self._current().server

    def client_context(self) -> ssl.SSLContext:
        """Return the context of the newest files for connections that are made."""
        return self._current().client

    def _current(self) -> _Contexts:
        now = time.monotonic()
        if now >= self._look_at:
            with self._lock:
                self._look_at = now + LOOK_SECONDS
                version = self._versions()
                if version != self._version:
                    self._version = version
                    self._renew()
                self._warn_if_it_ends(now)
        return self._contexts

    def _renew(self) -> None:
        try:
            self._contexts = self._build()
        except SettingsError as error:  # the next of several files may be on its way
            log.error("new TLS files are not taken, those before stay in use: %s", error)  # noqa: TRY400  no fault of ours

    def _versions(self) -> tuple[object, ...]:
        files = (self._settings.tls_key, self._settings.tls_certificate, self._settings.client_ca_file)
        return tuple(_version(file) for file in files if file is not None)

    def _warn_if_it_ends(self, now: float) -> None:
        days = (self._contexts.own.valid_until - time.time()) / 86_400
        revoked = self._contexts.own.serial in self.revocations
        if (revoked or days < _WARN_DAYS) and now >= self._warn_at:
            self._warn_at = now + WARN_SECONDS
            when = "IS REVOKED" if revoked else f"ENDS IN {days:.1f} DAYS"
            log.warning("THIS PARTY'S CERTIFICATE %s: have the alliance's admins issue another", when)

    def _build(self) -> _Contexts:
        settings = self._settings
        own = _own_certificate(settings, self.authority, self._own, self._manifest)
        if own.serial in self.revocations:
            raise SettingsError(f"{settings.tls_certificate} has been revoked; {_ISSUE}")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (server, client):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
            context.set_alpn_protocols(["http/1.1"])
            context.load_verify_locations(cadata=self.authority.certificate.public_bytes(Encoding.DER))
            try:
                context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=lambda: "")
            except (OSError, ValueError):
                raise SettingsError(f"{settings.tls_certificate} and {settings.tls_key} changed just now") from None
        server.verify_mode = ssl.CERT_OPTIONAL  # monitoring and who has an API key show none
        server.num_tickets = 0
        server.sslsocket_class = ServerTlsSocket
        if settings.client_ca_file is not None:
            server.load_verify_locations(cadata=self._client_authorities(settings.client_ca_file))
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        return _Contexts(own, server, client)

    def _client_authorities(self, file: Path) -> bytes:
        try:
            found = x509.load_pem_x509_certificates(file.read_bytes())
        except OSError as error:
            raise SettingsError(f"client_ca_file {file} cannot be read: {error.strerror}") from None
        except ValueError:
            raise SettingsError(f"client_ca_file {file} holds no whole PEM certificates") from None
        if any(spki_hash(one) == self._manifest.terms.tls_authority for one in found):
            raise SettingsError(f"client_ca_file {file} is the alliance's CA; it takes the insurer's own")
        return b"".join(one.public_bytes(Encoding.DER) for one in found)

    # --- who is at the other end

    def require_good(self, certified: Certified) -> None:
        """Refuse a certificate that is revoked (`certificate-revoked`) or not valid now (`certificate-expired`).

        Asked at every use of a connection, as one may outlive its certificate.
        """
        if certified.serial in self.revocations:
            raise ProtocolError("certificate-revoked", f"the certificate of {certified.holder} has been revoked")
        if not certified.valid_from <= time.time() <= certified.valid_until:
            raise ProtocolError("certificate-expired", f"the certificate of {certified.holder} is not valid now")

    def require_peer(self, der: bytes | None, expected: Holder) -> None:
        """Refuse (also `other-peer`) whoever answers at a peer's address with a certificate that is not the peer's."""
        certified = None if der is None else self.authority.certified(der)
        if certified is None or certified.holder != expected:
            raise ProtocolError("other-peer", f"the certificate shown there is not that of {expected}")
        self.require_good(certified)

    def peer(self, environ: Environ) -> Holder | None:
        """Return which party of the alliance sends a request; None for anyone else. Refuses as `require_good`."""
        der = client_certificate(environ)
        certified = None if der is None else self.authority.certified(der)
        if certified is None:
            return None
        self.require_good(certified)
        return certified.holder

    def is_of_alliance(self, der: bytes) -> bool:
        """Tell whether a certificate is that of any party of the alliance, and still good."""
        certified = self.authority.certified(der)
        try:
            if certified is not None:
                self.require_good(certified)
        except ProtocolError:
            return False
        return certified is not None

    def is_of_service(self, der: bytes) -> bool:
        """Tell whether a certificate is the service's; whether it is still good is another question."""
        certified = self.authority.certified(der)
        return certified is not None and certified.holder == SERVICE

    def require_service(self, environ: Environ) -> None:
        """Refuse (`not-the-service`) a request on a connection that the service's certificate did not open."""
        if self.peer(environ) != SERVICE:
            raise ProtocolError("not-the-service", "only the alliance's lookup service calls here")

    def require_member(self, environ: Environ) -> str:
        """Return the id of the member that sends a request; refuse (`not-a-member`, `unknown-member`) others."""
        holder = self.peer(environ)
        if holder is None or holder.member is None:
            raise ProtocolError("not-a-member", "only members of the alliance call here, with their certificates")
        return self._manifest.member(holder.member).id

    def require_sender(self, environ: Environ, named: str) -> None:
        """Refuse (`other-member`) a message that names another member than the one that sends it."""
        if self.require_member(environ) != named:
            raise ProtocolError("other-member", "the message is of another member than the connection")

    def outsider(self, environ: Environ) -> bytes | None:
        """Return the client certificate (DER) of the insurer's own CA with which a request came, or None."""
        der = client_certificate(environ)
        if der is None or self.authority.certified(der) is not None:
            return None
        # A connection may outlive the certificate that opened it.
        return der if x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp() > time.time() else None


def client_certificate(environ: Environ) -> bytes | None:
    """Return the verified certificate (DER) with which a request came, or None: over plain HTTP there is none."""
    sock = environ.get("gunicorn.socket")
    return sock.certificate if isinstance(sock, ServerTlsSocket) else None


def open_tls(settings: TlsSettings, manifest: Manifest, own: Holder) -> Tls | None:
    """Return a party's TLS, or None where the manifest has all speak plain HTTP and this party agrees to it.

    Raises `SettingsError` with what to change.
    """
    require_agreed(settings, manifest)
    return None if manifest.terms.plain_http else Tls(settings, manifest, own)


def require_agreed(settings: TlsSettings, manifest: Manifest) -> None:
    """Refuse (`SettingsError`) a manifest of plain HTTP, unless the party's own settings allow that."""
    if manifest.terms.plain_http and not settings.allow_plain_http:
        raise SettingsError(
            "the manifest has all parties speak plain HTTP, which anyone on the wire can read and change: have the"
            " admins make one with --ca, or set allow_plain_http = true here"
        )


def warn_if_plain(tls: Tls | None) -> None:
    """Say in one line at a start that connections are open to all."""
    if tls is None:
        log.warning("PLAIN HTTP: NOTHING PROTECTS THE CONNECTIONS OF THIS PARTY. It is for trials on one machine alone")


_RENEW = "have the alliance's admins renew it (alliance ca-renew) and put it in place"
_ISSUE = "have the alliance's admins issue another (alliance ca-issue)"


def _own_certificate(settings: TlsSettings, authority: Authority, own: Holder, manifest: Manifest) -> Certified:
    """Return what this party's certificate says; refuse one that its peers would refuse."""
    file = settings.tls_certificate
    certificate = read_certificate(file)
    certified = authority.certified(certificate.public_bytes(Encoding.DER))
    if certified is None:
        raise SettingsError(f"{file} was not issued by the CA in {settings.ca_file} to a party of this alliance")
    if certified.holder != own:
        raise SettingsError(f"{file} is the certificate of {certified.holder}, and this is {own}")
    if certified.valid_from > time.time():
        raise SettingsError(f"{file} is not valid yet; set this machine's clock")
    if certified.valid_until < time.time():
        raise SettingsError(f"{file} has expired; {_RENEW}")
    require_fit(settings.tls_key, certificate)
    url = manifest.terms.service_url if own.member is None else manifest.member(own.member).url
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if host_of(url) not in names:
        raise SettingsError(f"{file} is for another host than that of {url}, where the manifest says that {own} is")
    return certified


def _version(file: Path) -> object:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
