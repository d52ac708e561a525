"""Commands by which admins change the manifest: `alliance propose`, `proposals`, `review`, `approve`, `publish`, …

They work from an admin's own machine. The service is told what it needs and believed nothing: what is shown is worked
out here, what is signed are the bytes that were shown, and a signature is verified here before it is sent.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transport.settings import SettingsError

if TYPE_CHECKING:
    from protocol.manifest import AdminPins
    from service.admin.remote import Remote
    from service.admin.review import Review

SIGNER_SECONDS = 300
MAX_WORDS = 500
"""Characters of each of the service's words that are shown."""
WORDS_IN_LINE = 64
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and marks that are blank, which Python takes for printable."""

# As in cli.py, commands import what they need when they run.


def add_proposal_commands(command: Callable[[str, object, str], argparse.ArgumentParser]) -> None:
    """Add the commands."""

    def remote(name: str, run: object, text: str, *, pins: bool = True) -> argparse.ArgumentParser:
        sub = command(name, run, text)
        sub.add_argument("--url", required=True, help="the lookup service's address, https://…")
        sub.add_argument("--ca", type=Path, metavar="CA_PEM", help="ca.pem of the alliance")
        sub.add_argument(
            "--crl", type=Path, metavar="CRL_PEM", help="crl.pem of the alliance: a certificate in it is refused"
        )
        sub.add_argument(
            "--api-key", type=Path, required=True, metavar="FILE", help="file with an API key of the service"
        )
        sub.add_argument("--pins", type=Path, required=pins, metavar="FILE", help="admins.json, as members pin it")
        return sub

    def of_one(name: str, run: object, text: str, *, pins: bool = True) -> argparse.ArgumentParser:
        sub = remote(name, run, text, pins=pins)
        sub.add_argument("id", metavar="ID", help="of the proposal, as `alliance proposals` lists it")
        return sub

    propose = remote("propose", _propose, "Propose the next manifest: the newest, with what is asked for changed.")
    propose.add_argument(
        "--rules", type=Path, metavar="FILE", help="TOML as deploy/rules.toml, of rules to add versions of"
    )
    propose.add_argument(
        "--end-rule", action="append", default=[], metavar="ID", help="a rule to end, with all versions"
    )
    propose.add_argument(
        "--enrolment", action="append", default=[], type=Path, metavar="FILE", help="a member's new address"
    )
    propose.add_argument("--valid-days", type=int, default=90, help="how long it is valid; 90 unless given")
    propose.add_argument("--comment", default="", help="a line for the other admins")
    propose.add_argument("--dry-run", action="store_true", help="show what would change, and propose nothing")
    listing = remote("proposals", _proposals, "List the proposals, newest first.", pins=False)
    shown = of_one("review", _review, "Show what a proposal changes, worked out here from what would be signed.")
    for sub in (listing, shown):
        sub.add_argument("--json", action="store_true", help="as JSON")
    approve = of_one("approve", _approve, "Show what a proposal changes, and sign it.")
    approve.add_argument("--admin", required=True, help="the admin's name in admins.json")
    key = approve.add_mutually_exclusive_group(required=True)
    key.add_argument("--key", type=Path, metavar="FILE", help="the admin's private key file")
    signer = "command that signs in place of a key file: it reads the bytes and prints 128 hex digits of Ed25519"
    key.add_argument("--signer", metavar="COMMAND", help=signer)
    approve.add_argument(
        "--reviewed", metavar="HASH", help="sign without asking, if the terms have the hash that review gave"
    )
    of_one("publish", _publish, "Make a proposal that enough admins signed the newest manifest.")
    of_one("withdraw", _withdraw, "Take an open proposal back.", pins=False)


def _remote(args: argparse.Namespace) -> "Remote":
    from service.admin.remote import Remote

    return Remote(args.url, args.api_key, args.ca, args.crl)


def _pins(args: argparse.Namespace) -> "AdminPins":
    from transport.settings import load_pins

    return load_pins(args.pins)


def _fetched(args: argparse.Namespace) -> "Review":
    from service.admin.review import review

    return review(_remote(args), args.id, _pins(args), time.time())


def _propose(args: argparse.Namespace) -> int:
    from base64 import b64encode

    from protocol.encoding import encode
    from service.admin.differences import difference, printed
    from service.admin.next_terms import next_terms
    from service.admin.review import newest
    from service.admin.rules import read_rules
    from service.proposals import id_of

    remote = _remote(args)
    base = newest(remote, _pins(args)).terms
    terms = next_terms(
        base,
        time.time(),
        book=None if args.rules is None else read_rules(args.rules),
        without=args.end_rule,
        enrolments=[_enrolment(file) for file in args.enrolment],
        valid_days=args.valid_days,
    )
    _print(printed(difference(base, terms)))
    if args.dry_run:
        print("nothing has been proposed")
        return 0
    data = encode(terms)
    remote.post("/v1/admin/proposals", {"terms": b64encode(data).decode(), "comment": args.comment})
    print(f"proposed {id_of(data)}")
    return 0


def _proposals(args: argparse.Namespace) -> int:
    from service.admin.differences import harmless
    from service.admin.review import listed

    answer = _remote(args).get("/v1/admin/proposals")
    if args.json:
        print(json.dumps(answer, indent=1))
        return 0
    print("id\tstate\tserial\tsigned\tproposed\tby\tcomment")
    for one in listed(answer):
        signed = f"{len(one['signed_by'])} of {one.get('threshold')}"
        cells = (one["id"], one["state"], one["serial"], signed, one["proposed_at"], one["proposed_by"], one["comment"])
        print("\t".join(harmless(str(cell)) for cell in cells))
    return 0


def _review(args: argparse.Namespace) -> int:
    found = _fetched(args)
    if args.json:
        print(json.dumps(_plain(found), indent=1))
    else:
        _show(found)
    return 0


def _approve(args: argparse.Namespace) -> int:
    from protocol.errors import ProtocolError
    from protocol.manifest import bytes_to_sign, verify_signature

    pins, remote = _pins(args), _remote(args)
    public = pins.keys.get(args.admin)
    if public is None:
        raise SettingsError(f"{args.pins} has no admin named {args.admin}")
    found = _fetched(args)
    _show(found)
    for other in _rivals(remote, found, args.admin):
        print(f"NOTE     {args.admin} has signed {other}, too, of the same serial: whichever is published first counts")
    _require_reviewed(found, args.reviewed)
    message = bytes_to_sign(found.data)
    signature = _signed_by_command(args.signer, message) if args.key is None else _signed_by_file(args.key, message)
    try:
        verify_signature(public, signature, found.data)
    except ProtocolError:
        raise SettingsError(f"that is not the key of {args.admin}: nothing has been sent") from None
    body = {"admin": args.admin, "signature": signature.hex()}
    remote.post(f"/v1/admin/proposals/{found.id}/signatures", body)
    good = _fetched(args).signed_by
    print(f"signed; {len(good)} of {pins.threshold} signatures are there")
    return 0


def _publish(args: argparse.Namespace) -> int:
    from service.admin.review import newest

    found, remote = _fetched(args), _remote(args)
    remote.post(f"/v1/admin/proposals/{found.id}/publish", {})
    manifest = newest(remote, _pins(args))
    if manifest.hash.hex() != found.hash:
        raise SettingsError("the service says that it is published, and shows another manifest as the newest")
    print(f"published: serial {manifest.terms.serial}, hash {manifest.hash.hex()}")
    return 0


def _withdraw(args: argparse.Namespace) -> int:
    from service.proposals import is_id
    from transport.problems import Problem

    if not is_id(args.id):
        raise Problem(404, "unknown-proposal", "a proposal's id has 16 hexadecimal digits")
    _remote(args).post(f"/v1/admin/proposals/{args.id}/withdraw", {})
    print("withdrawn; what was signed could still be put in place by who has a copy, until its serial is taken")
    return 0


# --- helpers -------------------------------------------------------------------------------------------------------


def _enrolment(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise SettingsError(f"{file} does not hold an enrolment")
    return data


def _print(lines: Any) -> None:  # noqa: ANN401  any iterable of lines
    for line in lines:
        print(line)


def _plain(found: "Review") -> dict[str, Any]:
    return {
        "id": found.id,
        "hash": found.hash,
        "serial": found.terms.serial,
        "base": {"serial": found.base.terms.serial, "hash": found.base.hash.hex()},
        "state": found.state,
        "comment": found.comment,
        "proposed_by": found.proposed_by,
        "signed_by": found.signed_by,
        "threshold": found.signatures_wanted,
        "difference": [change.plain() for change in found.changes],
    }


def _show(found: "Review") -> None:
    from service.admin.differences import harmless, printed, time_text

    base = found.base.terms
    print(f"proposal {found.id}")
    print(
        f"changes  the manifest of serial {base.serial}, which is signed by enough admins that you pin, issued", end=" "
    )
    print(f"{time_text(base.issued_at)}, of hash")
    print(f"         {found.base.hash.hex()}")
    _print(printed(found.changes))
    signed = ", ".join(map(harmless, found.signed_by)) or "nobody"
    print(f"signed   by {signed}; {found.signatures_wanted} are needed")
    print(f"hash     {found.hash}")
    print("What the service says of it, which nothing vouches for:")
    for name, text in (("state", found.state), ("by", found.proposed_by), ("comment", found.comment)):
        _print(_quoted(name, text))


def _quoted(name: str, text: str) -> list[str]:
    """Return the service's words as lines that none of them can be taken for another's: a mark before each."""
    from service.admin.differences import harmless

    shown = harmless(" ".join("".join(" " if one in _BLANK else one for one in text).split())[:MAX_WORDS])
    lines = [shown[start : start + WORDS_IN_LINE] for start in range(0, len(shown), WORDS_IN_LINE)]
    return [f"  | {name if not place else '':8}{line}" for place, line in enumerate(lines or [""])]


def _require_reviewed(found: "Review", reviewed: str | None) -> None:
    """Have a person say yes to what was just shown, or the hash of what was shown to it before be the same."""
    if reviewed is not None:
        if reviewed.lower() != found.hash:
            raise SettingsError("the terms are not those that were reviewed: nothing has been signed")
        return
    sys.stdout.write("Sign this? Type yes: ")
    sys.stdout.flush()
    if sys.stdin.readline().strip() != "yes":
        raise SettingsError("nothing has been signed")


def _rivals(remote: "Remote", found: "Review", admin: str) -> list[str]:
    """Return the ids of other proposals of that serial which, as the service says, an admin has signed."""
    from service.admin.review import listed
    from service.proposals import is_id

    entries = listed(remote.get("/v1/admin/proposals"))
    signed = [one for one in entries if one["serial"] == found.terms.serial and admin in one["signed_by"]]
    return [one["id"] for one in signed if is_id(one["id"]) and one["id"] != found.id]


def _signed_by_file(file: Path, message: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from service.admin.manifests import load_admin_key

    return Ed25519PrivateKey.from_private_bytes(load_admin_key(file).reveal()).sign(message)


def _signed_by_command(line: str, message: bytes) -> bytes:
    import shlex
    import subprocess

    try:
        done = subprocess.run(  # noqa: S603  the admin's own command, without a shell
            shlex.split(line), input=message, stdout=subprocess.PIPE, timeout=SIGNER_SECONDS, check=False
        )
    except ValueError:
        raise SettingsError(f"--signer {line}: the quotes do not match") from None
    except (OSError, IndexError, subprocess.TimeoutExpired) as error:
        raise SettingsError(f"--signer {line}: {error}") from None
    if done.returncode:
        raise SettingsError(f"--signer {line} ended with status {done.returncode}: nothing has been signed")
    try:
        return bytes.fromhex(done.stdout.decode("ascii").strip())
    except ValueError:
        raise SettingsError(f"--signer {line} gave no signature in hexadecimal digits") from None
