"""How much faster `insurer-agent import` is with several worker processes, on this machine.

.venv/bin/python loadtests/import_workers.py [--rows 100000] [--workers 1 2] [--rounds 3]

Imports one file, of issues and a few corrections, into empty registers of a PostgreSQL of its own beside it, with each
number of workers in turn, so that what else the machine does falls on all alike. Prints rows a second, start included,
and each round's ratios to the first number of workers; the summaries must be equal. Everything is in a directory of its
own, removed at the end.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from insurer_agent.embedded_postgres import EmbeddedPostgres

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from consuming import make_state  # noqa: E402 - an agent's state directory, as tests make it

COLUMNS = "policy_number,document_type,document_number,product,insured_amount,issued_on,event"
CORRECTED = 20
"""Of so many policies one is amended."""


def make_file(file: Path, rows: int) -> Path:
    """Write a file of so many rows: persons with one policy or two, amendments at the end."""
    with file.open("w", encoding="utf-8") as text:
        text.write(COLUMNS + "\n")
        issues = rows * CORRECTED // (CORRECTED + 1)
        for number in range(rows):
            event, policy, amount = ("issue", number, 1000) if number < issues else ("amend", number - issues, 2000)
            person, day = policy * 2 // 3, 1 + policy % 28
            text.write(f"P-{policy:08d},passport,E{person:08d},accident,{amount + policy},2026-10-{day:02d},{event}\n")
    return file


def import_once(state: Path, file: Path, workers: int) -> tuple[float, str]:
    """Run the command; return seconds and its summary."""
    command = [sys.executable, "-m", "insurer_agent.cli", "import", "--state", str(state), "--workers", str(workers)]
    began = time.perf_counter()
    ended = subprocess.run([*command, str(file)], check=True, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    return time.perf_counter() - began, ended.stderr.splitlines()[-1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ratios: dict[int, list[float]] = {workers: [] for workers in args.workers}
    summaries = set()
    with tempfile.TemporaryDirectory() as directory, EmbeddedPostgres(Path(directory) / "postgres") as server:
        file = make_file(Path(directory) / "policies.csv", args.rows)
        for place in range(args.rounds):
            first = None
            for workers in args.workers:
                name = f"import_{place}_{workers}"
                server.create_database(name)
                seconds, summary = import_once(make_state(Path(directory) / name, server.dsn(name)), file, workers)
                first = first or seconds
                summaries.add(summary)
                ratios[workers].append(first / seconds)
                print(f"round {place + 1}, {workers} workers: {args.rows / seconds:,.0f} rows a second", flush=True)
    print(*summaries, sep="\n")
    for workers, found in ratios.items():
        each = ", ".join(f"{ratio:.2f}" for ratio in found)
        print(f"{workers} workers: {statistics.median(found):.2f} times as fast as {args.workers[0]} ({each})")
    if len(summaries) > 1:
        sys.exit("the summaries differ")


if __name__ == "__main__":
    main()
