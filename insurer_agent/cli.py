"""The command of an insurer: `insurer-agent`."""

import argparse
import json
import os
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transport.commands import run_command
from transport.settings import SettingsError, write_private

if TYPE_CHECKING:
    from insurer_agent.importer import Opens
    from insurer_agent.intake.profile import Profile
    from insurer_agent.store.api_keys import ApiKeys

# Commands import what they need when they run: `init` is run many times by a local alliance and must be quick.


QUERY_DSN = "POLICY_DSN"
"""The variable for the database of `import --query-file`: a password on the command line stands in `ps`."""
SOME_ROWS_REJECTED = 3
"""The exit status of an import that left rows out, so that a nightly job notices."""


def _init(args: argparse.Namespace) -> int:
    from insurer_agent.keys import AgentKeys
    from protocol.enrolment import enrol
    from protocol.secret import Secret

    salt = _read_salt(args.salt_file)
    args.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = AgentKeys.generate(Secret(salt))
    keys.save(args.state)
    enrolment = enrol(keys.member, args.member, args.group or args.member, args.url)
    path = args.state / "enrolment.json"
    path.write_text(json.dumps(enrolment, indent=1) + "\n", encoding="utf-8")
    print(path)
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
    from transport.server import serve

    settings = Settings.load(args.state)

    def app() -> Flask:
        agent = Agent.open(args.state)
        background.start(agent)
        return make_app(agent)

    with database_server(settings, own=True):
        Agent.open(args.state, connections=1).database.close()  # what is wrong is said here, before any worker starts
        serve(
            app,
            host=settings.host,
            port=settings.port,
            state=settings.state,
            workers=settings.workers,
            threads=settings.threads,
        )
    return 0


def _import(args: argparse.Namespace) -> int:
    from insurer_agent.intake.profile import Profile
    from insurer_agent.rejects_file import make_way, rejects_paths

    if args.json and not args.dry_run:
        raise SettingsError("--json goes with --dry-run")
    if bool(args.files) == (args.query_file is not None):
        raise SettingsError("name files to import, or a query with --query-file")
    opens = _opens(args)
    args.files = args.files or [args.query_file]
    if args.snapshot is not None and (args.dry_run or len(args.files) > 1):
        raise SettingsError("a snapshot is one file, and is compared with the register: not with --dry-run")
    profile = Profile() if args.profile is None else Profile.load(args.profile)
    if args.rejects is not None:
        make_way(rejects_paths(args.rejects, args.files), args.files, force=args.force)
    if args.dry_run:
        return _dry_run(args, profile, opens)
    if args.state is None:
        raise SettingsError("--state is needed, unless with --dry-run")
    return _import_into_register(args, profile, opens)


def _opens(args: argparse.Namespace) -> "Opens":
    """Return what makes policies of the paths that are named: files, or a query's."""
    from insurer_agent.intake.policy_file import PolicyFile
    from insurer_agent.sql_rows import open_query

    if args.query_file is None:
        return PolicyFile.open
    dsn = args.dsn or os.environ.get(QUERY_DSN)
    if not dsn:
        raise SettingsError(f"--query-file needs the database: --dsn, or {QUERY_DSN} in the environment")
    return partial(open_query, dsn=dsn)


def _import_into_register(args: argparse.Namespace, profile: "Profile", opens: "Opens") -> int:
    from insurer_agent.agent import Agent
    from insurer_agent.config import Settings
    from insurer_agent.importer import import_files, wait_until_deposited
    from insurer_agent.snapshot_import import import_snapshot
    from insurer_agent.store.server import database_server

    with database_server(Settings.load(args.state)):
        agent = Agent.open(args.state, connections=2)
        if args.snapshot is None:
            counts = import_files(agent, args.files, profile=profile, rejects=args.rejects, opens=opens)
        else:
            snapshot, most = agent.snapshot(args.snapshot), None if args.allow_cancellations else args.max_cancellations
            counts = import_snapshot(
                agent, args.files[0], snapshot, profile=profile, rejects=args.rejects, opens=opens, most_percent=most
            )
        deposited = args.wait is None or wait_until_deposited(agent, args.wait)
        agent.database.close()
    return _import_status(counts, failed=not deposited)


def _dry_run(args: argparse.Namespace, profile: "Profile", opens: "Opens") -> int:
    from insurer_agent.dry_run import MAXIMUM, DryRun
    from insurer_agent.importer import Import
    from insurer_agent.rejects_file import rejects_paths

    if args.json and len({file.name for file in args.files}) < len(args.files):
        raise SettingsError("two files have the same name, by which --json tells them apart")
    run = Import(products=None, maximum=MAXIMUM, profile=profile, opens=opens)
    paths = [None] * len(args.files) if args.rejects is None else rejects_paths(args.rejects, args.files)
    totals: Counter[str] = Counter()
    results = {}
    for file, rejects in zip(args.files, paths, strict=True):
        dry = DryRun()
        counts, dry.rejection = run.file(file, dry.register, rejects=rejects, tell=dry.outcome)
        totals += counts
        if args.json:
            results[file.name] = dry.result()
    if args.json:
        print(json.dumps(results, indent=1))
    return _import_status(totals)


def _import_status(counts: Counter[str], *, failed: bool = False) -> int:
    if counts["rejected files"] or failed:
        return 1
    return SOME_ROWS_REJECTED if counts["rejected"] else 0


@contextmanager
def _api_keys(state: Path) -> Iterator["ApiKeys"]:
    from insurer_agent.config import Settings
    from insurer_agent.store.api_keys import ApiKeys
    from insurer_agent.store.database import Database
    from insurer_agent.store.server import database_server, find_dsn

    settings = Settings.load(state)
    with database_server(settings):
        database = Database(find_dsn(settings), size=1)
        database.migrate()
        try:
            yield ApiKeys(database)
        finally:
            database.close()


def _make_api_key(args: argparse.Namespace) -> int:
    with _api_keys(args.state) as keys:
        key = keys.make(args.name, secrets.token_bytes, replace=args.replace)
    if args.file is None:
        print(key)
    else:
        write_private(args.file, key.encode() + b"\n")
    return 0


def _list_api_keys(args: argparse.Namespace) -> int:
    with _api_keys(args.state) as keys:
        entries = keys.entries()
    print("made\tlast used\tname")
    for entry in entries:
        used = "never" if entry.last_used_at is None else f"{entry.last_used_at:%Y-%m-%dT%H:00%z}"
        print(f"{entry.created_at:%Y-%m-%dT%H:%M%z}\t{used}\t{entry.name}")
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

    def command(name: str, run: object, text: str, *, state: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if state:
            sub.add_argument("--state", type=Path, required=True, help="the agent's state directory")
        return sub

    salt = command(
        "salt",
        _salt,
        "Make the alliance's salt: one member does, and hands it to the other members alone.",
        state=False,
    )
    salt.add_argument("file", type=Path)
    init = command("init", _init, "Make this member's keys, and the enrolment that the alliance's admins need.")
    init.add_argument("--member", required=True, help="member id, for example insurer-01")
    init.add_argument("--group", help="ownership group; the member id unless given")
    init.add_argument("--url", required=True, help="where the lookup service reaches this agent")
    init.add_argument("--salt-file", type=Path, required=True, help="the alliance's salt")
    command("serve", _serve, "Serve underwriting systems and the lookup service until stopped.")
    _add_import_command(command)
    _add_api_key_commands(commands)
    postgres = command("postgres", _postgres, "Run the embedded PostgreSQL until stopped.")
    postgres.add_argument("--port", type=int, default=0)
    postgres.add_argument("--create-database", action="append", default=[], metavar="NAME")
    return parser


def _add_import_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    importing = command(
        "import",
        _import,
        "Import policies from CSV, XLSX and Parquet files; importing a file twice changes nothing."
        " Status 3: some rows were rejected; 1: a file could not be read, or not to its end.",
        state=False,
    )
    importing.add_argument("--state", type=Path, help="the agent's state directory; not needed with --dry-run")
    importing.add_argument("files", type=Path, nargs="*", metavar="FILE")
    importing.add_argument(
        "--query-file", type=Path, metavar="FILE", help="import what this query of a PostgreSQL database gives instead"
    )
    importing.add_argument(
        "--dsn", help=f"the database of the query; better in {QUERY_DSN} in the environment, if it has a password"
    )
    importing.add_argument("--profile", type=Path, metavar="FILE", help="how the files are laid out, in TOML")
    importing.add_argument("--dry-run", action="store_true", help="only say what would come of each file by itself")
    importing.add_argument("--json", action="store_true", help="with --dry-run: say it as JSON, on standard output")
    importing.add_argument(
        "--rejects", type=Path, metavar="FILE", help="write rejected rows here, to be mended; it holds personal data"
    )
    importing.add_argument("--force", action="store_true", help="overwrite the file of rejected rows")
    importing.add_argument(
        "--snapshot",
        metavar="NAME",
        help="the file has all policies in force: cancel those that NAME had and now lacks",
    )
    importing.add_argument(
        "--max-cancellations", type=int, metavar="PERCENT", default=20, help="refuse a snapshot that cancels more (20)"
    )
    importing.add_argument("--allow-cancellations", action="store_true", help="let a snapshot cancel any number")
    importing.add_argument("--wait", type=float, metavar="SECONDS", help="wait until all deposits count in checks")


def _add_api_key_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "Make, list and revoke the API keys of underwriting and policy systems."
    parser = commands.add_parser("api-key", help=text, description=text)
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--state", type=Path, required=True, help="the agent's state directory")
        return sub

    make = action("make", _make_api_key, "Make a key under a name that has none, and print it, once.")
    make.add_argument("name")
    make.add_argument("--replace", action="store_true", help="end the key that the name has")
    make.add_argument("--file", type=Path, help="write the key to this file instead, readable by its owner alone")
    action("list", _list_api_keys, "List the keys' names, when they were made and, to the hour, last used.")
    revoke = action("revoke", _revoke_api_key, "End a key: the next request that bears it is refused.")
    revoke.add_argument("name")


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `run_command`."""
    return run_command(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
