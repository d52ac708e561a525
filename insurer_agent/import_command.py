"""The command `insurer-agent import`."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transport.settings import SettingsError

if TYPE_CHECKING:
    from insurer_agent.importer import Opens
    from insurer_agent.intake.profile import Profile

# As in cli.py, what a command needs is imported when it runs.

QUERY_DSN = "POLICY_DSN"
"""The variable for the database of `import --query-file`: a password on the command line stands in `ps`."""
MAX_WORKERS = 64
SOME_ROWS_REJECTED = 3
"""The exit status of an import that left rows out, so that a nightly job notices."""


def add_import_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command; `command` takes its name, what it runs, its help, and whether it needs a state directory."""
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
    importing.add_argument(
        "--workers",
        type=int,
        metavar="N",
        default=1,
        help="have N processes apply what this one reads, for large files on several cores (1: this one does all)",
    )
    importing.add_argument("--wait", type=float, metavar="SECONDS", help="wait until all deposits count in checks")


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
    if args.state is None and not args.dry_run:
        raise SettingsError("--state is needed, unless with --dry-run")
    if not 1 <= args.workers <= MAX_WORKERS:
        raise SettingsError(f"--workers is a number from 1 to {MAX_WORKERS}")
    if args.workers > 1 and (args.dry_run or args.snapshot is not None):
        raise SettingsError(
            "--workers is for policies on their way into the register: not with --dry-run or --snapshot"
        )
    profile = Profile() if args.profile is None else Profile.load(args.profile)
    if args.rejects is not None:
        make_way(rejects_paths(args.rejects, args.files), args.files, force=args.force)
    if args.dry_run:
        return _dry_run(args, profile, opens)
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
    from insurer_agent.import_workers import Workers
    from insurer_agent.importer import import_files, wait_until_deposited
    from insurer_agent.snapshot_import import import_snapshot
    from insurer_agent.store.server import database_server

    with database_server(Settings.load(args.state)):
        agent = Agent.open(args.state, connections=2)
        if args.snapshot is None:
            with nullcontext() if args.workers == 1 else Workers(args.state, args.workers) as workers:
                counts = import_files(
                    agent, args.files, profile=profile, rejects=args.rejects, opens=opens, workers=workers
                )
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
