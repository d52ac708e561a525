"""A party's TLS key, made where it is used and never leaving it, and the requests for certificates of it."""

import argparse
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from transport.certificates import read_certificate
from transport.settings import SettingsError, refuse_readable_by_others, write_private

KEY_FILE, CERTIFICATE_FILE, REQUEST_FILE, CA_FILE, CRL_FILE = "tls.key", "tls.pem", "tls.csr", "ca.pem", "crl.pem"
"""What stands in a party's state directory."""
NEXT_KEY_FILE = "tls.key.next"
"""A new key until its certificate is put in place."""


def pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM without a passphrase: nobody is there to enter one when a party starts."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_request(state: Path, key_file: str = KEY_FILE) -> Path:
    """Have a key in a state directory, made now unless it is there, and write tls.csr for it; return its path.

    A request holds nothing but the key: what a certificate says is the admins' to write.
    """
    file = state / key_file
    key = load_key(file) if file.exists() else ec.generate_private_key(ec.SECP256R1())
    if not file.exists():
        write_private(file, pem_of_key(key))
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    path = state / REQUEST_FILE
    path.write_bytes(request.public_bytes(Encoding.PEM))
    return path


def load_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Read an ECDSA key; raise `SettingsError` if it cannot be used."""
    try:
        refuse_readable_by_others(file)
        key = load_pem_private_key(file.read_bytes(), None)
    except OSError as error:
        raise SettingsError(f"the TLS key {file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise SettingsError(
            f"the TLS key {file} is damaged, or needs a passphrase, which nobody is there to enter"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError(f"the TLS key {file} is not an ECDSA key; the alliance's CA takes no other")
    return key


def require_fit(file: Path, certificate: x509.Certificate) -> None:
    """Refuse (`SettingsError`) a key file that is not the one that a certificate was issued for."""
    if _info(load_key(file).public_key()) != _info(certificate.public_key()):
        raise SettingsError(f"the TLS key {file} is not the one that the certificate was issued for")


def install(state: Path, certificate_file: Path) -> Path:
    """Put a certificate in place, with the new key if it is for that; return its path.

    A server that runs takes both up within a second. Raises `SettingsError` if it fits neither key.
    """
    certificate, following = read_certificate(certificate_file), state / NEXT_KEY_FILE
    try:
        require_fit(state / KEY_FILE, certificate)
    except SettingsError:
        if not following.exists():
            raise
        require_fit(following, certificate)
        following.replace(state / KEY_FILE)
    path = state / CERTIFICATE_FILE
    write_private(path, certificate.public_bytes(Encoding.PEM))
    return path


def add_tls_commands(command: Callable[[str, object, str], argparse.ArgumentParser]) -> None:
    """Add `tls-request` and `tls-install` to a party's commands."""
    request = command("tls-request", _request, "Write tls.csr, a request for a certificate of this party's TLS key.")
    request.add_argument("--new-key", action="store_true", help="of a new key, which takes effect with its certificate")
    put = command("tls-install", _install, "Put a certificate that was issued for tls.csr in place; no restart needed.")
    put.add_argument("certificate", type=Path)


def _request(args: argparse.Namespace) -> int:
    if args.new_key:
        (args.state / NEXT_KEY_FILE).unlink(missing_ok=True)
    print(make_request(args.state, NEXT_KEY_FILE if args.new_key else KEY_FILE))  # noqa: T201  what a command does
    return 0


def _install(args: argparse.Namespace) -> int:
    print(install(args.state, args.certificate))  # noqa: T201  as above
    return 0


def _info(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
