"""Import many files into one agent's register with workers on several machines, by Dask.

python deploy/cluster_import.py --state DIR --scheduler tls://HOST:8786 [--parts N] [--profile FILE] FILE...
python deploy/cluster_import.py --state DIR --local 2 FILE...           # on this machine alone

Give the files in their order; each machine has them, and the state directory, under the same paths. See README.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from distributed import Client, KilledWorker, LocalCluster, as_completed

from insurer_agent.intake.profile import Profile
from insurer_agent.partition import FileResult, NamedFile, Part, PartError, import_part
from transport.commands import run_command
from transport.settings import SettingsError

REPEATS = 3
"""Of a part that fails, while the database is away, say; a worker that is lost is the engine's to replace."""
SOME_ROWS_REJECTED = 3
MOST = 1000


def cluster_import(
    client: Client, state: Path, files: Sequence[Path], *, parts: int | None = None, profile: Profile | None = None
) -> list[FileResult]:
    """Import files with all workers of a cluster, one part a thread unless told otherwise; return what came of each.

    What goes through the cluster is paths, digests, the profile, counts, and row numbers with reasons.
    """
    named = [NamedFile.of(path) for path in files]
    count = parts or sum(client.nthreads().values())
    if not count:
        raise SettingsError("the cluster has no workers")
    futures = [
        client.submit(import_part, state, named, Part(number, count), profile or Profile(), pure=False, retries=REPEATS)
        for number in range(count)
    ]
    totals = [FileResult() for _ in named]
    try:
        for done, future in enumerate(as_completed(futures), 1):
            for total, result in zip(totals, future.result(), strict=True):
                total.add(result)
            sys.stderr.write(f"{done} of {count} parts are done\n")
    except (PartError, KilledWorker, CancelledError, OSError) as error:
        told = str(error) if isinstance(error, PartError) else "the scheduler, or a worker again and again, was lost"
        raise SettingsError(f"{told}; import the files again to finish") from None
    return totals


@contextmanager
def local_client(workers: int, scratch: Path) -> Iterator[Client]:
    """Have a cluster of this machine's processes, which speak TLS on loopback under keys that end with it."""
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            protocol="tls",
            security=True,
            dashboard_address="127.0.0.1:0",
            local_directory=str(scratch),
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _client(args: argparse.Namespace) -> Iterator[Client]:
    if args.local is not None:
        with (
            tempfile.TemporaryDirectory(prefix="cluster-", dir=args.state) as scratch,
            local_client(args.local, Path(scratch)) as client,
        ):
            yield client
        return
    if not _is_private(args.scheduler):
        raise SettingsError("who reaches a scheduler can run code where the keys are: tls://, or a loopback address")
    try:
        client = Client(args.scheduler)
    except (OSError, TypeError):  # the latter without certificates
        raise SettingsError("the scheduler does not answer, or Dask's configuration names no TLS files") from None
    with client:
        yield client


def _is_private(address: str) -> bool:
    parts = urlsplit(address)
    try:
        return parts.scheme == "tls" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST):
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {MOST}")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    profile = Profile() if args.profile is None else Profile.load(args.profile)
    with _client(args) as client:
        results = cluster_import(
            client, args.state.absolute(), [file.absolute() for file in args.files], parts=args.parts, profile=profile
        )
    for file, result in zip(args.files, results, strict=True):
        for row, code, reason in result.rejected:
            sys.stderr.write(f"{file.name}:{row}: {code}: {reason}\n")
        if result.rejection is not None:
            sys.stderr.write(f"{file.name}: {result.rejection}\n")
        summary = ", ".join(f"{count} {what}" for what, count in sorted(result.counts.items()))
        sys.stderr.write(f"{file.name}: {summary or 'no rows'}\n")
    if any(result.rejection is not None for result in results):
        return 1
    return SOME_ROWS_REJECTED if any(result.counts["rejected"] for result in results) else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; statuses are those of insurer-agent import."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=_run)
    parser.add_argument("--state", type=Path, required=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--scheduler", metavar="ADDRESS")
    where.add_argument("--local", type=_number, metavar="WORKERS")
    parser.add_argument("--parts", type=_number, metavar="N", help="one for each thread of the workers, unless given")
    parser.add_argument("--profile", type=Path, metavar="FILE")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    return run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
