"""The command of an insurer: `insurer-agent`."""

import argparse
import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from insurer_agent.consume_command import add_consume_command
from insurer_agent.import_command import add_import_command
from insurer_agent.recheck_command import add_recheck_command
from insurer_agent.roles import DAYS, MAX_DAYS, Role
from transport.commands import command_maker, hand_out, run_command
from transport.settings import SettingsError, write_private
from transport.tls_files import add_tls_commands

if TYPE_CHECKING:
    from insurer_agent.store.api_keys import ApiKeys
    from insurer_agent.store.database import Database

# Commands import what they need when they run: `init` is run many times by a local alliance and must be quick.


SOME_SET_ASIDE = 3
"""The exit status of `outbox` while deposits are set aside, so that monitoring notices."""


def _init(args: argparse.Namespace) -> int:
    from insurer_agent.keys import AgentKeys
    from protocol.enrolment import enrol
    from protocol.secret import Secret
    from transport.tls_files import make_request

    salt = _read_salt(args.salt_file)
    args.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = AgentKeys.generate(Secret(salt))
    keys.save(args.state)
    enrolment = enrol(keys.member, args.member, args.group or args.member, args.url)
    path = args.state / "enrolment.json"
    path.write_text(json.dumps(enrolment, indent=1) + "\n", encoding="utf-8")
    print(path)
    if urlsplit(args.url).scheme == "https":
        print(make_request(args.state))
    return 0


def _read_salt(file: Path) -> bytes:
    try:
        return bytes.fromhex(file.read_text(encoding="ascii").strip())
    except OSError as error:
        raise SettingsError(f"the salt file {file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"the salt file {file} should hold 64 hexadecimal digits") from None


def _salt(args: argparse.Namespace) -> int:
    if args.file.exists():
        raise SettingsError(f"{args.file} exists; a second salt would split the alliance")
    write_private(args.file, secrets.token_bytes(32).hex().encode() + b"\n")
    return 0


def _serve(args: argparse.Namespace) -> int:
    from flask import Flask

    from insurer_agent import background
    from insurer_agent.agent import Agent
    from insurer_agent.config import Settings
    from insurer_agent.rest import make_app
    from insurer_agent.store.server import database_server
    from transport.redis_link import warn_unless_redis_answers
    from transport.server import serve
    from transport.tls import warn_if_plain

    settings = Settings.load(args.state)

    def app() -> Flask:
        agent = Agent.open(args.state)
        background.start(agent)
        return make_app(agent)

    with database_server(settings, own=True):
        agent = Agent.open(args.state, connections=1)  # what is wrong is said here, before any worker starts
        agent.database.close()
        warn_if_plain(agent.tls)
        if settings.redis is not None:
            warn_unless_redis_answers(settings.redis)
        serve(
            app,
            host=settings.host,
            port=settings.port,
            state=settings.state,
            workers=settings.workers,
            threads=settings.threads,
            tls=agent.tls,
            files=settings.tls,
            inner=None if agent.tls is None else agent.tls.is_of_service,
            messages=(b"/internal/v1/",),
            rest=(b"/v1/checks ",),
        )
    return 0


@contextmanager
def _database(state: Path) -> Iterator["Database"]:
    from insurer_agent.config import Settings
    from insurer_agent.store.database import Database
    from insurer_agent.store.server import database_server, find_dsn

    settings = Settings.load(state)
    with database_server(settings):
        database = Database(find_dsn(settings), size=1)
        database.migrate()
        try:
            yield database
        finally:
            database.close()


@contextmanager
def _api_keys(state: Path) -> Iterator["ApiKeys"]:
    from insurer_agent.store.api_keys import ApiKeys

    with _database(state) as database:
        yield ApiKeys(database)


def _outbox(args: argparse.Namespace) -> int:
    from insurer_agent.keys import AgentKeys
    from insurer_agent.store.outbox import Outbox
    from insurer_agent.store.vault import Vault

    keys = AgentKeys.load(args.state)
    with _database(args.state) as database:
        outbox = Outbox(database, Vault(keys.storage, "register", secrets.token_bytes))
        if args.retry:
            outbox.retry_set_aside()
        backlog, aside = outbox.backlog(), outbox.set_aside()
    print(f"{backlog.unmade} deposits are not made, {backlog.incomplete} made but not at all holders")
    print(f"{len(aside)} of those not made are set aside")
    if aside:
        print("number\tshard\tattempts\tsince\treason")
    for item in aside:
        print(f"{item.seq}\t{item.shard}\t{item.attempts}\t{item.since:%Y-%m-%dT%H:%M%z}\t{item.reason}")
    return SOME_SET_ASIDE if aside else 0


def _make_api_key(args: argparse.Namespace) -> int:
    if args.certificate is not None:
        return _register_certificate(args)
    with _api_keys(args.state) as keys:
        key = keys.make(args.name, secrets.token_bytes, roles=_roles(args), days=args.days, replace=args.replace)
    hand_out(key, args.file)
    return 0


def _roles(args: argparse.Namespace) -> list[Role]:
    return [Role(name) for name in args.role]


def _register_certificate(args: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    from insurer_agent.config import Settings
    from transport.certificates import is_issued_by, read_certificate

    settings = Settings.load(args.state)
    if settings.tls.client_ca_file is None:
        raise SettingsError("client_ca_file is not set: no client certificate can be shown to this agent")
    certificate = read_certificate(args.certificate)
    if is_issued_by(certificate, read_certificate(settings.tls.ca_file)):
        raise SettingsError(f"{args.certificate} is of the alliance's CA, which is for members and the service alone")
    with _api_keys(args.state) as keys:
        keys.register(
            args.name,
            certificate.public_bytes(Encoding.DER),
            roles=_roles(args),
            days=args.days,
            until=certificate.not_valid_after_utc,
            replace=args.replace,
        )
    print(f"SHA-256 {certificate.fingerprint(SHA256()).hex()}")
    return 0


def _list_api_keys(args: argparse.Namespace) -> int:
    with _api_keys(args.state) as keys:
        entries = keys.entries()
    now = datetime.now(UTC)
    print("made\tlast used\tends\troles\tname")
    for entry in entries:
        used = "never" if entry.last_used_at is None else f"{entry.last_used_at:%Y-%m-%dT%H:00%z}"
        ends = "never" if entry.expires_at is None else f"{entry.expires_at:%Y-%m-%dT%H:%M%z}"
        ended = " (ended)" if entry.expires_at is not None and entry.expires_at <= now else ""
        roles = ",".join(role.value for role in entry.roles)
        print(f"{entry.created_at:%Y-%m-%dT%H:%M%z}\t{used}\t{ends}{ended}\t{roles}\t{entry.name}")
    if any(entry.expires_at is None for entry in entries):
        print("keys that never end were made before keys had roles and an end: replace them", file=sys.stderr)
    return 0


def _revoke_api_key(args: argparse.Namespace) -> int:
    with _api_keys(args.state) as keys:
        keys.revoke(args.name)
    return 0


def _postgres(args: argparse.Namespace) -> int:
    from insurer_agent.embedded_postgres import run_until_stopped

    run_until_stopped(args.state, args.port, args.create_database)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="insurer-agent", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = command_maker(commands, "the agent's")
    salt = command(
        "salt",
        _salt,
        "Make the alliance's salt: one member does, and hands it to the other members alone.",
        state=False,
    )
    salt.add_argument("file", type=Path)
    init = command("init", _init, "Make this member's keys, and enrolment.json and tls.csr for the alliance's admins.")
    init.add_argument("--member", required=True, help="member id, for example insurer-01")
    init.add_argument("--group", help="ownership group; the member id unless given")
    init.add_argument("--url", required=True, help="where the lookup service reaches this agent")
    init.add_argument("--salt-file", type=Path, required=True, help="the alliance's salt")
    command("serve", _serve, "Serve underwriting systems and the lookup service until stopped.")
    add_tls_commands(command)
    add_import_command(command)
    add_consume_command(command)
    add_recheck_command(command)
    outbox = command("outbox", _outbox, "Say what is on its way. Status 3: deposits are set aside, and need a person.")
    outbox.add_argument("--retry", action="store_true", help="have those set aside sent again now")
    _add_api_key_commands(commands)
    postgres = command("postgres", _postgres, "Run the embedded PostgreSQL until stopped.")
    postgres.add_argument("--port", type=int, default=0)
    postgres.add_argument("--create-database", action="append", default=[], metavar="NAME")
    return parser


def _add_api_key_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "Make, list and revoke the API keys of underwriting and policy systems."
    parser = commands.add_parser("api-key", help=text, description=text)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    action = command_maker(actions, "the agent's")
    make = action("make", _make_api_key, "Make a key under a name that has none, and print it, once.")
    make.add_argument("name")
    roles = [role.value for role in Role]
    make.add_argument("--role", required=True, action="append", choices=roles, help="what it may do; may be repeated")
    make.add_argument("--days", type=int, default=DAYS, help=f"for how long it is good ({DAYS}; at most {MAX_DAYS})")
    make.add_argument("--replace", action="store_true", help="end the key that the name has")
    where = make.add_mutually_exclusive_group()
    where.add_argument("--file", type=Path, help="write the key to this file instead, readable by its owner alone")
    where.add_argument(
        "--certificate", type=Path, help="make no key: have this client certificate, of client_ca_file, be good as one"
    )
    action(
        "list",
        _list_api_keys,
        "List the keys' names, roles, when they were made, end and, to the hour, were last used.",
    )
    revoke = action(
        "revoke", _revoke_api_key, "End a key: requests that bear it are refused, within five seconds everywhere."
    )
    revoke.add_argument("name")


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `run_command`."""
    return run_command(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
