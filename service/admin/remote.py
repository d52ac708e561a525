"""An admin's line to the lookup service: its REST interface, by address, API key and the alliance's CA.

Nothing that the service says is relied on here but for what to show; see `service.admin.review`.
"""

import http.client
import ipaddress
import json
import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding

from protocol.errors import ProtocolError, is_code
from service.admin.authority import alliance_of
from service.admin.differences import harmless
from transport.certificates import SERVICE, Authority, read_certificate
from transport.problems import Problem
from transport.settings import SettingsError, refuse_readable_by_others

SECONDS = 30.0
MAX_ANSWER = 32 << 20
_KEY = re.compile(r"[!-~]{1,200}")
_OK, _NOT_GOOD = 200, 300


class Line:
    """A line to the service. Over TLS 1.3 the alliance's CA must vouch that it is the service, before a key is sent.

    With a file of the CA's revocation list it must not have revoked the certificate either; the file is read anew each
    time, and refused once it is out of date.
    """

    def __init__(self, url: str, ca_file: Path | None, crl_file: Path | None = None) -> None:
        """Read the CA, and the list; raise `SettingsError` where they or the address cannot be used."""
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            raise SettingsError(f"{url} is no address of a service") from None
        if parts.scheme not in {"https", "http"} or not self._host or parts.path not in {"", "/"} or parts.query:
            raise SettingsError(f"{url} is no address of a service, such as https://lookup.example:8443")
        self._context: ssl.SSLContext | None = None
        if parts.scheme == "https":
            if ca_file is None:
                raise SettingsError("--ca FILE: ca.pem of the alliance says whom to trust")
            certificate = read_certificate(ca_file)
            self._authority = Authority(certificate, alliance_of(certificate))
            self._context = _context(certificate.public_bytes(Encoding.DER))
        elif not _is_loopback(self._host):
            raise SettingsError("over plain HTTP an API key goes to this machine alone; give the https:// address")
        elif crl_file is not None:
            raise SettingsError("--crl FILE: over plain HTTP there is no certificate that could be revoked")
        self._crl_file = crl_file
        self._revoked()

    def exchange(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Send a request; return its answer's status and body.

        Raises `Problem` (`unreachable`, `other-peer`, `certificate-revoked`, `bad-revocations`).
        """
        connection = self._connection()
        try:
            connection.connect()
            self._require_service(connection)
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER + 1)
        except ssl.SSLCertVerificationError as error:
            raise _unreachable(f"its certificate is not trusted: {error.verify_message}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(str(error) or type(error).__name__) from None
        finally:
            connection.close()
        if len(data) > MAX_ANSWER:
            raise _unreachable("its answer is too long")
        return answer.status, data

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=SECONDS)
        return http.client.HTTPSConnection(self._host, self._port, timeout=SECONDS, context=self._context)

    def _require_service(self, connection: http.client.HTTPConnection) -> None:
        """Refuse whoever answers with a certificate that is not the service's, before the key is sent."""
        if isinstance(connection.sock, ssl.SSLSocket):
            der = connection.sock.getpeercert(binary_form=True)
            certified = None if der is None else self._authority.certified(der)
            if certified is None or certified.holder != SERVICE:
                raise Problem(502, "other-peer", "the certificate shown there is not that of the lookup service")
            try:
                revoked = self._revoked()
            except SettingsError as error:  # it was good at the start
                raise Problem(502, "bad-revocations", str(error)) from None
            if certified.serial in revoked:
                detail = (
                    "the certificate shown there has been revoked: whoever has it is not the lookup service any more"
                )
                raise Problem(502, "certificate-revoked", detail)

    def _revoked(self) -> frozenset[int]:
        """Return the serials that the CA's list has; raise `SettingsError` where there is a file that is no good."""
        file = self._crl_file
        if file is None:
            return frozenset()
        try:
            newest = self._authority.revocation_list(file.read_bytes())
        except OSError as error:
            raise SettingsError(f"the revocation list {file} cannot be read: {error.strerror}") from None
        except ProtocolError as error:
            raise SettingsError(f"{file}: {error.hint}; get crl.pem anew from who keeps the CA") from None
        if newest.next_update < time.time():
            raise SettingsError(f"the revocation list {file} is out of date; alliance ca-crl makes the next")
        return newest.serials


class Remote:
    """The service as an API key's holder sees it, over a `Line`."""

    def __init__(self, url: str, api_key_file: Path, ca_file: Path | None, crl_file: Path | None = None) -> None:
        """Read key, CA and list; raise `SettingsError` where they or the address cannot be used."""
        self._line = Line(url, ca_file, crl_file)
        self._key = _api_key(api_key_file)

    def get(self, path: str) -> dict[str, Any]:
        """Return what a GET gives. Raises `Problem` with what the service says, or why there is no answer."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return what a POST gives, as `get` does."""
        return self._ask("POST", path, json.dumps(body).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        return _answer(*self._line.exchange(method, path, body, headers))


def _context(ca: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=ca)
    return context


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _api_key(file: Path) -> str:
    try:
        refuse_readable_by_others(file)
        key = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise SettingsError(f"the API key {file} cannot be read: {error.strerror}") from None
    except ValueError:
        key = ""
    if not _KEY.fullmatch(key):
        raise SettingsError(f"{file} should hold an API key, as lookup-service api-key make gives it")
    return key


def _unreachable(why: str) -> Problem:
    return Problem(502, "unreachable", f"the service gave no good answer: {harmless(why)}")


def _answer(status: int, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _unreachable(f"status {status}, and no JSON")
    if _OK <= status < _NOT_GOOD:
        return value
    code, detail, hint = (str(value.get(name) or "") for name in ("code", "detail", "hint"))
    code = code if is_code(code) else "error"
    told = harmless(f"{detail}; {hint}" if hint else detail)
    raise Problem(status, code, f"{code}: {told}" if told else code)
