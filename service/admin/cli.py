"""The command of the alliance's admins: `alliance`."""

import argparse
import json
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.admin.ca_commands import add_ca_commands
from service.admin.console_command import add_console_command
from service.admin.proposal_commands import add_proposal_commands
from transport.commands import run_command
from transport.settings import SettingsError, write_private

DEFAULT_SHARDS, DEFAULT_TICK_SECONDS = 4, 10

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.manifest import Terms


def _local(args: argparse.Namespace) -> int:
    from service.admin.local import LocalOptions, run_local

    return run_local(
        LocalOptions(
            members=args.members,
            policies=args.policies,
            state=args.state,
            port_base=args.port_base,
            shards=args.shards,
            database=args.database,
            capture=args.capture,
            rules=args.rules,
            redis=args.redis,
            tick_seconds=args.tick_seconds,
            jitter_seconds=args.jitter_seconds,
            plain_http=args.plain_http,
            admins=args.admins,
        )
    )


def _demo(args: argparse.Namespace) -> int:
    from service.admin.demo import run_demo

    return run_demo(root=args.root, keep=args.keep, members=args.members)


def _samples(args: argparse.Namespace) -> int:
    from protocol.manifest import china_day, day_of
    from service.admin.samples import make_samples

    today = day_of(china_day(time.time()))
    make_samples(args.directory, members=args.members, people=args.people, today=today, seed=args.seed)
    return 0


def _admin_key(args: argparse.Namespace) -> int:
    from protocol import signing
    from protocol.secret import Secret

    if args.file.exists():
        raise SettingsError(f"{args.file} exists")
    key = Secret(secrets.token_bytes(32))
    write_private(args.file, key.reveal().hex().encode() + b"\n")
    print(signing.public_key(key).hex())
    return 0


def _pins(args: argparse.Namespace) -> int:
    from protocol.manifest import AdminPins
    from service.admin.manifests import pins_json

    keys = {}
    for entry in args.admins:
        name, _, key = entry.partition("=")
        try:
            keys[name] = bytes.fromhex(key)
        except ValueError:
            raise SettingsError(f"{entry} is not name=public-key-in-hex") from None
    AdminPins(keys, args.threshold)
    print(pins_json(keys, args.threshold), end="")
    return 0


def _terms(file: Path) -> "Terms":
    from protocol.encoding import decode
    from protocol.manifest import SignedManifest, Terms

    return decode(Terms, decode(SignedManifest, file.read_bytes()).terms)


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise SettingsError(f"{file} does not hold a JSON object")
    return data


def _manifest_create(args: argparse.Namespace) -> int:
    from protocol.encoding import encode
    from service.admin.authority import alliance_of
    from service.admin.manifests import build_terms, unsigned
    from service.admin.rules import read_rules
    from transport.certificates import read_certificate, spki_hash

    previous = None if args.previous is None else _terms(args.previous)
    tls_authority = None
    if not args.plain_http:
        certificate = read_certificate(args.ca)
        if alliance_of(certificate) != args.alliance:
            raise SettingsError(f"{args.ca} is the CA of the alliance {alliance_of(certificate)}, not {args.alliance}")
        tls_authority = spki_hash(certificate)
    terms = build_terms(
        alliance=args.alliance,
        serial=args.serial,
        enrolments=[_json(file) for file in args.enrolments],
        service=_json(args.service),
        shards=args.shards or (previous.shards if previous else DEFAULT_SHARDS),
        expected_persons=args.expected_persons,
        tick_seconds=args.tick_seconds or (previous.tick_seconds if previous else DEFAULT_TICK_SECONDS),
        valid_days=args.valid_days,
        local=False,
        tls_authority=tls_authority,
        previous=previous,
        book=None if args.rules is None else read_rules(args.rules),
    )
    args.file.write_bytes(encode(unsigned(terms)))
    return 0


def _manifest_sign(args: argparse.Namespace) -> int:
    from protocol.encoding import decode, encode
    from protocol.manifest import SignedManifest
    from service.admin.manifests import add_signature, load_admin_key

    signed = decode(SignedManifest, args.file.read_bytes())
    args.file.write_bytes(encode(add_signature(signed, args.admin, load_admin_key(args.key))))
    return 0


def _manifest_show(args: argparse.Namespace) -> int:
    from protocol.encoding import decode
    from protocol.manifest import SignedManifest
    from service.admin.manifests import describe

    print(json.dumps(describe(decode(SignedManifest, args.file.read_bytes())), indent=2))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="alliance", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    local = command("local", _local, "Run a whole alliance on this machine until SIGINT or SIGTERM.")
    local.add_argument("--members", type=int, required=True, help="how many insurers, at least 5")
    local.add_argument("--policies", type=Path, required=True, help="directory with <member id>.csv for each member")
    local.add_argument("--state", type=Path, required=True, help="directory for everything that is written")
    local.add_argument("--port-base", type=int, help="first of the ports to use; any free ones unless given")
    local.add_argument("--shards", type=int, default=4)
    local.add_argument("--database", help="a PostgreSQL server to use instead of the embedded one")
    local.add_argument("--redis", metavar="URL", help="a Redis for rate limits and Idempotency-Keys; none unless given")
    local.add_argument("--tick-seconds", type=int, default=1, help="length of a tick; an alliance over machines has 10")
    local.add_argument(
        "--jitter-seconds", type=float, default=0.3, help="most that deposits wait; an agent's own is 20"
    )
    local.add_argument("--rules", type=Path, help="a TOML file of products and rules; see deploy/rules.toml")
    local.add_argument(
        "--admins", type=int, default=1, help="of whom more than half must sign a change of the manifest"
    )
    local.add_argument("--plain-http", action="store_true", help="without TLS: for measurements and debugging alone")
    local.add_argument("--capture", action="store_true", help="record what each party receives, under STATE/capture")

    demo = command("demo", _demo, "Make samples, run a local alliance over them, ask checks and show who saw what.")
    demo.add_argument("--root", type=Path, required=True, help="directory for everything that is written")
    demo.add_argument("--members", type=int, default=25)
    demo.add_argument("--keep", action="store_true", help="stay up until Ctrl-C")

    samples = command("samples", _samples, "Make sample policy files, <member id>.csv for each member.")
    samples.add_argument("directory", type=Path)
    samples.add_argument("--members", type=int, default=25)
    samples.add_argument("--people", type=int, default=1000)
    samples.add_argument("--seed", type=int, default=1)

    add_ca_commands(command)
    key = command("admin-key", _admin_key, "Make an admin's private key file and print its public key.")
    key.add_argument("file", type=Path)
    pins = command("pins", _pins, "Print the admins.json that members and service pin.")
    pins.add_argument("--threshold", type=int, required=True, help="how many admins must sign a manifest")
    pins.add_argument("admins", nargs="+", metavar="NAME=PUBLIC_KEY")
    _add_manifest_commands(command)
    add_proposal_commands(command)
    add_console_command(command)
    return parser


def _add_manifest_commands(command: "Callable[[str, object, str], argparse.ArgumentParser]") -> None:
    create = command("manifest-create", _manifest_create, "Make an unsigned manifest from the members' enrolments.")
    create.add_argument("file", type=Path, help="the manifest to write")
    create.add_argument("enrolments", type=Path, nargs="+", metavar="ENROLMENT", help="enrolment.json of each member")
    create.add_argument("--alliance", required=True)
    create.add_argument("--serial", type=int, default=1, help="greater than that of any manifest before")
    create.add_argument(
        "--previous", type=Path, help="the manifest before; its committees are kept, and its rules unless given"
    )
    create.add_argument("--service", type=Path, required=True, help="service.json of the lookup service")
    tls = create.add_mutually_exclusive_group(required=True)
    tls.add_argument("--ca", type=Path, metavar="CA_PEM", help="certificate of the alliance's CA, from ca-init")
    tls.add_argument("--plain-http", action="store_true", help="all parties speak plain HTTP, which protects nothing")
    create.add_argument("--rules", type=Path, help="a TOML file of products and rules; see deploy/rules.toml")
    create.add_argument("--shards", type=int, help=f"{DEFAULT_SHARDS} unless given, or as before")
    create.add_argument("--expected-persons", type=int, required=True, help="insured persons; 10,000 a shard at least")
    create.add_argument("--tick-seconds", type=int, help=f"{DEFAULT_TICK_SECONDS} unless given, or as before")
    create.add_argument("--valid-days", type=int, default=90)
    sign = command("manifest-sign", _manifest_sign, "Add an admin's signature to a manifest.")
    sign.add_argument("file", type=Path)
    sign.add_argument("--admin", required=True, help="the admin's name in admins.json")
    sign.add_argument("--key", type=Path, required=True, help="the admin's private key file")
    show = command("manifest-show", _manifest_show, "Print a manifest as JSON.")
    show.add_argument("file", type=Path)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `run_command`."""
    return run_command(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
