"""Files into the register: every row applied, repeated or rejected with its reason; the rest goes on."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from insurer_agent.agent import Agent
from insurer_agent.intake.errors import FileRejected
from insurer_agent.intake.policy_csv import PolicyRow, RejectedRow, read_policies
from insurer_agent.store.register import POLICY_UNKNOWN, Applied, PolicyEvent
from protocol.stamps import as_of_tick, tick_at

ROWS_A_TRANSACTION = 500
MAX_WAITING_ROWS = 100_000
_POLL_SECONDS = 0.2


def import_files(agent: Agent, files: list[Path], report: TextIO = sys.stderr) -> Counter[str]:
    """Import files and report progress and rejected rows; return the counts by outcome."""
    totals: Counter[str] = Counter()
    for file in files:
        counts: Counter[str] = Counter()
        try:
            _import(agent, file, counts, report)
        except FileRejected as rejection:
            counts["rejected files"] += 1
            print(f"{file.name}: {rejection.code}: {rejection.reason}", file=report)
        except OSError as error:
            counts["rejected files"] += 1
            print(f"{file.name}: cannot be read: {error.strerror}", file=report)
        print(f"{file.name}: " + (_summary(counts) or "no rows"), file=report, flush=True)
        totals += counts
    return totals


def _import(agent: Agent, file: Path, counts: Counter[str], report: TextIO) -> None:
    terms = agent.party.manifest.terms
    rows = read_policies(file, products=frozenset(terms.products), maximum=terms.deposit_cap)
    # Exports are not always in order of time: what corrects a policy that is not known yet waits for the file's end,
    # so that the same file comes to the same whether it is imported once or twice.
    waiting: list[PolicyRow | RejectedRow] = []
    for chunk in _chunks(rows):
        waiting += _apply(agent, file, chunk, counts, report, may_wait=MAX_WAITING_ROWS - len(waiting))
    for chunk in _chunks(iter(waiting)):
        _apply(agent, file, chunk, counts, report, may_wait=0)


def _apply(
    agent: Agent,
    file: Path,
    chunk: list[PolicyRow | RejectedRow],
    counts: Counter[str],
    report: TextIO,
    *,
    may_wait: int,
) -> list[PolicyRow]:
    """Apply rows in one transaction, count and report them; return those, `may_wait` at most, that wait instead."""
    waiting: list[PolicyRow] = []
    good = [row for row in chunk if isinstance(row, PolicyRow)]
    results = iter(agent.register.apply([PolicyEvent.of_row(row) for row in good]))
    for row in chunk:
        outcome = row if isinstance(row, RejectedRow) else next(results)
        if isinstance(outcome, Applied):
            counts[outcome.value] += 1
        elif isinstance(row, PolicyRow) and outcome.code == POLICY_UNKNOWN and len(waiting) < may_wait:
            waiting.append(row)
        else:
            counts["rejected"] += 1
            print(f"{file.name}:{row.row}: {outcome.code}: {outcome.reason}", file=report)
    return waiting


def _chunks(rows: Iterator[PolicyRow | RejectedRow]) -> Iterator[list[PolicyRow | RejectedRow]]:
    while chunk := list(islice(rows, ROWS_A_TRANSACTION)):
        yield chunk


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def _wait_for_ticks(tick_seconds: int) -> None:
    """Wait until checks are as of now: a deposit counts once its tick has been closed for a tick's length."""
    done = tick_at(time.time(), tick_seconds)
    while as_of_tick(time.time(), tick_seconds) < done:
        time.sleep(_POLL_SECONDS)


def wait_until_deposited(agent: Agent, seconds: float, report: TextIO = sys.stderr) -> bool:
    """Wait until every deposit is receipted by all its holders and counts in checks; report progress; False if late."""
    deadline, shown = time.monotonic() + seconds, 0.0
    while True:
        backlog = agent.outbox.backlog()
        if backlog.unmade == backlog.incomplete == 0:
            _wait_for_ticks(agent.party.manifest.terms.tick_seconds)
            return True
        if time.monotonic() > deadline:
            print(f"{backlog.unmade} deposits are not made, {backlog.incomplete} lack receipts", file=report)
            return False
        if time.monotonic() - shown > 1:
            print(f"{backlog.unmade} deposits to make", file=report, flush=True)
            shown = time.monotonic()
        time.sleep(_POLL_SECONDS)
