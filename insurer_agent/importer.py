"""Files into the register: every row applied, repeated or rejected with its reason; the rest goes on.

Rows are applied in transactions of ROWS_A_TRANSACTION. An import that ends at any point, by a kill too, is finished by
importing the file again: what was applied is known by its meaning, and counts as repeated.
"""

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO, runtime_checkable

from insurer_agent.agent import Agent
from insurer_agent.import_report import Report
from insurer_agent.intake.errors import FileRejected, IntakeError
from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.intake.policy_file import DEFAULT, PolicyFile
from insurer_agent.intake.profile import Profile
from insurer_agent.rejects_file import RejectsFile, rejects_paths
from insurer_agent.store.register import POLICY_UNKNOWN, Applied, PolicyEvent
from protocol.stamps import as_of_tick, tick_at

ROWS_A_TRANSACTION = 500
MAX_WAITING_ROWS = 100_000
_POLL_SECONDS = 0.2

Outcome = Applied | RejectedRow | IntakeError
"""What came of a row; of a rejected one the two latter, each with `code` and `reason`."""
Opens = Callable[[Path, Profile], PolicyFile]
"""What makes policies of a path: of the file, or of the query in it."""


class Applies(Protocol):
    """A register, or what stands for one."""

    def apply(self, events: Sequence[PolicyEvent]) -> list[Applied | IntakeError]:
        """Apply events in their order, each with a result of its own."""


@runtime_checkable
class Submits(Protocol):
    """Applies events while others are read; `depth` is how many results may be waited for at a time."""

    depth: int

    def submit(self, events: Sequence[PolicyEvent]) -> Callable[[], list[Applied | IntakeError]]:
        """Have events applied in their order, behind all that were submitted before; return what gives the results."""


class Import:
    """Files on their way into a register.

    `products` are those that the alliance knows, None to take them as written; `maximum` is the largest amount in fen;
    `opens` makes policies of a path; rows of which `only` does not say yes are passed over, as if they were not there.
    """

    def __init__(
        self,
        *,
        products: frozenset[str] | None,
        maximum: int,
        profile: Profile = DEFAULT,
        report: TextIO = sys.stderr,
        opens: Opens = PolicyFile.open,
        only: Callable[[PolicyRow | RejectedRow], bool] = lambda _row: True,
    ) -> None:
        self._products = products
        self._maximum = maximum
        self._profile = profile
        self._report = Report(report)
        self._opens = opens
        self._only = only

    def file(
        self,
        path: Path,
        register: Applies | Submits,
        *,
        rejects: Path | None = None,
        tell: Callable[[PolicyRow | RejectedRow, Outcome], None] = lambda _row, _outcome: None,
    ) -> tuple[Counter[str], str | None]:
        """Import one file, report progress, rejected rows and a summary; `tell` of each row what came of it.

        Returns the counts by outcome, and why the file was rejected whole or could not be read on, if it was so.
        """
        counts: Counter[str] = Counter()
        rejection = None
        try:
            with RejectsFile(rejects) as rejected:
                policies = self._opens(path, self._profile)
                rows = filter(self._only, policies.policies(products=self._products, maximum=self._maximum))
                _FileImport(path, self._report, register, rejected, tell, counts).run(policies, rows)
        except FileRejected as fault:
            rejection = f"{fault.code}: {fault.reason}"
        except OSError as error:
            rejection = f"cannot be read: {error.strerror or 'the system says no more'}"
        if rejection is not None:
            counts["rejected files"] += 1
            self._report.line(f"{path.name}: {rejection}")
        self._report.line(f"{path.name}: " + (_summary(counts) or "no rows"))
        return counts, rejection


def import_files(
    agent: Agent,
    files: list[Path],
    report: TextIO = sys.stderr,
    *,
    profile: Profile = DEFAULT,
    rejects: Path | None = None,
    opens: Opens = PolicyFile.open,
    workers: Submits | None = None,
) -> Counter[str]:
    """Import files into an agent's register, reporting as `Import.file` does; return the counts by outcome.

    `workers` of this register take the place of this process.
    """
    terms = agent.party.manifest.terms
    products = frozenset(terms.products)
    run = Import(products=products, maximum=terms.deposit_cap, profile=profile, report=report, opens=opens)
    paths = [None] * len(files) if rejects is None else rejects_paths(rejects, files)
    totals: Counter[str] = Counter()
    for file, path in zip(files, paths, strict=True):
        counts, _ = run.file(file, workers or agent.register, rejects=path)
        totals += counts
    return totals


class _AtOnce:
    """Applies events before others are read."""

    depth = 0

    def __init__(self, register: Applies) -> None:
        self._register = register

    def submit(self, events: Sequence[PolicyEvent]) -> Callable[[], list[Applied | IntakeError]]:
        results = self._register.apply(events)
        return lambda: results


@dataclass(frozen=True)
class _Chunk:
    """Rows on their way; `fraction` of the file was read with them, and `results` are of those that were understood."""

    rows: list[PolicyRow | RejectedRow]
    fraction: float | None
    results: Callable[[], list[Applied | IntakeError]]


class _FileImport:
    """One file on its way into a register."""

    def __init__(
        self,
        path: Path,
        report: Report,
        register: Applies | Submits,
        rejects: RejectsFile,
        tell: Callable[[PolicyRow | RejectedRow, Outcome], None],
        counts: Counter[str],
    ) -> None:
        self._name = path.name
        self._report = report
        self._register = register if isinstance(register, Submits) else _AtOnce(register)
        self._rejects = rejects
        self._tell = tell
        self._counts = counts

    def run(self, file: PolicyFile, policies: Iterator[PolicyRow | RejectedRow]) -> None:
        self._report.begin()
        # Exports are not always in order of time: what corrects a policy that is not known yet waits for the file's
        # end, so that the same file comes to the same whether it is imported once or twice.
        waiting: list[PolicyRow] = []
        rows = 0
        for chunk in self._applied(file, policies):
            waiting += self._settle(file, chunk, may_wait=MAX_WAITING_ROWS - len(waiting))
            rows += len(chunk.rows)
            self._report.progress(self._name, rows, chunk.fraction)
        waiting.sort(key=lambda row: row.issued_on)
        for chunk in self._applied(file, iter([*waiting])):
            self._settle(file, chunk, may_wait=0)

    def _applied(self, file: PolicyFile, rows: Iterator[PolicyRow | RejectedRow]) -> Iterator[_Chunk]:
        """Have rows applied and yield them, all in order, as many at a time as make a transaction.

        Where the file cannot be read on, what was read before counts, and then the error is raised.
        """
        under_way: deque[_Chunk] = deque()
        try:
            for chunk in _chunks(rows):
                events = [PolicyEvent.of_row(row) for row in chunk if isinstance(row, PolicyRow)]
                under_way.append(_Chunk(chunk, file.fraction(), self._register.submit(events)))
                if len(under_way) > self._register.depth:
                    yield under_way.popleft()
        except (FileRejected, OSError):
            yield from under_way
            raise
        yield from under_way

    def _settle(self, file: PolicyFile, chunk: _Chunk, *, may_wait: int) -> list[PolicyRow]:
        """Count and report what came of rows; return those, `may_wait` at most, that wait instead."""
        waiting: list[PolicyRow] = []
        results = iter(chunk.results())
        for row in chunk.rows:
            outcome: Outcome = row if isinstance(row, RejectedRow) else next(results)
            if isinstance(outcome, Applied):
                self._counts[outcome.value] += 1
            elif isinstance(row, PolicyRow) and outcome.code == POLICY_UNKNOWN and len(waiting) < may_wait:
                waiting.append(row)
                continue
            else:
                self._counts["rejected"] += 1
                self._report.line(f"{self._name}:{row.row}: {outcome.code}: {outcome.reason}")
                self._rejects.put(file, row, outcome.code, outcome.reason)
            self._tell(row, outcome)
        self._rejects.flush()
        return waiting


def _chunks(rows: Iterator[PolicyRow | RejectedRow]) -> Iterator[list[PolicyRow | RejectedRow]]:
    chunk: list[PolicyRow | RejectedRow] = []
    try:
        for row in rows:
            chunk.append(row)
            if len(chunk) == ROWS_A_TRANSACTION:
                yield chunk
                chunk = []
    except (FileRejected, OSError):
        if chunk:
            yield chunk
        raise
    if chunk:
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
