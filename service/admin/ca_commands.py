"""Commands of the alliance's certificate authority: `alliance ca-…`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from transport.settings import SettingsError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from transport.certificates import Holder

# As in cli.py, commands import what they need when they run.


def add_ca_commands(command: Callable[[str, object, str], argparse.ArgumentParser]) -> None:
    """Add the commands."""

    def ca_command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = command(name, run, text)
        sub.add_argument("directory", type=Path, metavar="DIR", help="the CA's directory; it holds its private key")
        return sub

    init = ca_command("ca-init", _init, "Make the alliance's certificate authority.")
    init.add_argument("--alliance", required=True, metavar="NAME", help="as in its manifests")
    issue = ca_command("ca-issue", _issue, "Issue a certificate for a request of a member or the service.")
    issue.add_argument("request", type=Path, help="tls.csr, of which the key alone is taken")
    _add_holder(issue)
    issue.add_argument("--url", help="where it is found; else as in enrolment.json or service.json beside the request")
    renew = ca_command(
        "ca-renew", _renew, "Issue a certificate with an old one's names and key, or the key of a request."
    )
    renew.add_argument("certificate", type=Path, help="the old one, expired or not")
    renew.add_argument("--request", type=Path, help="tls.csr of a new key")
    for sub in (issue, renew):
        sub.add_argument("--out", type=Path, required=True, help="the certificate to write")
        sub.add_argument("--days", type=int, default=90)
    revoke = ca_command("ca-revoke", _revoke, "Revoke certificates and write crl.pem, which goes to the service.")
    _add_holder(revoke).add_argument("--serial", help="in hexadecimal, as ca-list shows it")
    ca_command("ca-crl", _crl, "Write crl.pem anew, with new dates: every 30 days at least.")
    ca_command("ca-list", _list, "List all certificates that were issued.")


def _add_holder(parser: argparse.ArgumentParser) -> "argparse._MutuallyExclusiveGroup":
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--member", metavar="ID", help="the member's id")
    whose.add_argument("--service", action="store_true", help="the lookup service")
    return whose


def _holder(args: argparse.Namespace) -> "Holder":
    from transport.certificates import SERVICE, Holder

    return SERVICE if args.service else Holder(args.member)


def _init(args: argparse.Namespace) -> int:
    from service.admin.authority import CertificateAuthority

    CertificateAuthority.create(args.directory, args.alliance)
    print(args.directory / "ca.pem")
    return 0


def _issue(args: argparse.Namespace) -> int:
    from service.admin.authority import CertificateAuthority, read_request

    holder, url = _holder(args), args.url
    if url is None:
        url = _url_beside(args.request, holder)
    authority, request = CertificateAuthority(args.directory), read_request(args.request)
    return _write(args.out, authority.issue(request, holder, url, args.days))


def _url_beside(request: Path, holder: "Holder") -> str:
    """Return the address in the enrolment that lies beside a request."""
    from protocol.enrolment import read_enrolment

    file = request.with_name("service.json" if holder.member is None else "enrolment.json")
    try:
        data = json.loads(file.read_bytes())
        if holder.member is None:
            return str(data["url"])
        member = read_enrolment(data)[0]
    except OSError:
        raise SettingsError(f"there is no {file} to say where {holder} is found; give --url") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SettingsError(f"{file} does not say where {holder} is found; give --url") from None
    if member.id != holder.member:
        raise SettingsError(f"{file} is the enrolment of {member.id}, not of {holder}")
    return member.url


def _renew(args: argparse.Namespace) -> int:
    from service.admin.authority import CertificateAuthority, read_request
    from transport.certificates import read_certificate

    authority, old = CertificateAuthority(args.directory), read_certificate(args.certificate)
    request = None if args.request is None else read_request(args.request)
    return _write(args.out, authority.renew(old, request, args.days))


def _write(file: Path, certificate: "Certificate") -> int:
    from cryptography.hazmat.primitives.serialization import Encoding

    file.write_bytes(certificate.public_bytes(Encoding.PEM))
    print(f"{file}: serial {certificate.serial_number:x}, until {certificate.not_valid_after_utc:%Y-%m-%d}")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    from service.admin.authority import CertificateAuthority

    authority = CertificateAuthority(args.directory)
    issued = [one.certified for one in authority.issued() if not one.revoked]
    if args.serial is None:
        holder = _holder(args)
        serials = {one.serial for one in issued if one.holder == holder}
    else:
        try:
            wanted = int(args.serial, 16)
        except ValueError:
            raise SettingsError(f"{args.serial} is no serial number in hexadecimal") from None
        serials = {one.serial for one in issued if one.serial == wanted}
    if not serials:
        raise SettingsError("no such certificate, or it is revoked already; see ca-list")
    number = authority.revoke(serials)
    print(f"{len(serials)} revoked; give {args.directory / 'crl.pem'}, number {number}, to the service's operator")
    return 0


def _crl(args: argparse.Namespace) -> int:
    from service.admin.authority import CertificateAuthority

    number = CertificateAuthority(args.directory).publish()
    print(f"give {args.directory / 'crl.pem'}, number {number}, to the service's operator")
    return 0


def _list(args: argparse.Namespace) -> int:
    from service.admin.authority import CertificateAuthority

    print("serial\tfrom\tuntil\tstate\tholder\thosts")
    for one in CertificateAuthority(args.directory).issued():
        start, end = one.certificate.not_valid_before_utc, one.certificate.not_valid_after_utc
        state = "revoked" if one.revoked else "good"
        hosts = ", ".join(one.hosts)
        print(f"{one.certified.serial:x}\t{start:%Y-%m-%d}\t{end:%Y-%m-%d}\t{state}\t{one.certified.holder}\t{hosts}")
    return 0
