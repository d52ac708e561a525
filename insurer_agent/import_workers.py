"""Worker processes of an import, each with keys and a connection of its own, for files that take one process long.

The parent reads and understands the rows, some 30 microseconds each; what takes several times as long, the register's
HMACs, seals and statements, is the workers'. All events of a policy go to one worker, in their order, and what comes
of an event depends on its policy's earlier ones alone: so it is what one process would make of it.

Whoever is killed, nothing is half done: a worker's transactions are whole or not at all, and importing the file again
finishes it. A worker ends with its parent, and the import with any of its workers.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from insurer_agent.importer import ROWS_A_TRANSACTION
from insurer_agent.intake.errors import IntakeError
from insurer_agent.store.register import Applied, PolicyEvent
from transport.problems import Problem
from transport.settings import SettingsError

Results = list[Applied | IntakeError]

ROWS_UNDER_WAY = 2000
"""In all workers' transactions together, about: each has a lock, and a server as it comes has room for some 6,000."""
_END_SECONDS = 10.0


class Workers:
    """So many processes that apply events to the register of the agent in `state`; a context manager.

    Events wait in order, in memory that does not grow: who submits has no more than `depth` results to come. A worker
    that ends too early, or cannot go on, is a `Problem` of every result that it owes; leaving the block with an
    exception ends all workers at once.
    """

    def __init__(self, state: Path, count: int) -> None:
        self.depth = 2 * count
        self._state = state
        self._count = count
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self._workers.append(_Worker(self._state, min(ROWS_A_TRANSACTION, ROWS_UNDER_WAY // self._count)))
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(at_once=kind is not None)

    def _end(self, *, at_once: bool) -> None:
        for worker in self._workers:
            worker.dismiss(at_once=at_once)
        for worker in self._workers:
            worker.join()

    @property
    def pids(self) -> list[int]:
        """Return the processes' numbers."""
        return [worker.pid for worker in self._workers]

    def submit(self, events: Sequence[PolicyEvent]) -> Callable[[], Results]:
        """Have events applied in their order; return what waits for their results, each event's own.

        What is returned raises `Problem`.
        """
        shares: dict[int, list[int]] = {}
        for place, event in enumerate(events):
            # Python's own hash is keyed anew by every process: nobody's choice of numbers keeps one worker busy.
            shares.setdefault(hash(event.policy()) % self._count, []).append(place)
        owed = [
            (places, self._workers[worker].submit([events[place] for place in places]))
            for worker, places in shares.items()
        ]

        def results() -> Results:
            found = {place: one for places, part in owed for place, one in zip(places, part.result(), strict=True)}
            return [found[place] for place in range(len(events))]

        return results


class _Worker:
    """One process, and the thread that takes its results: so a worker never waits for its parent."""

    def __init__(self, state: Path, rows: int) -> None:
        context = get_context("spawn")  # this process has threads, which a fork would lose
        jobs, self._jobs = context.Pipe(duplex=False)
        self._results, results = context.Pipe(duplex=False)
        self._owed: SimpleQueue[Future[Results] | None] = SimpleQueue()
        self._process = context.Process(target=_work, args=(state, rows, jobs, results), daemon=True)
        resource_tracker.ensure_running()  # starting it later would unblock the signal
        # Ctrl-C goes to all processes of a terminal: it is the parent's alone, who ends the workers.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        jobs.close()
        results.close()
        self._thread = threading.Thread(target=self._take_results, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def submit(self, events: list[PolicyEvent]) -> Future[Results]:
        """Send events; wait while the worker has enough to do."""
        future: Future[Results] = Future()
        self._owed.put(future)
        with suppress(OSError):  # it is gone: the future says so
            self._jobs.send(events)
        return future

    def _take_results(self) -> None:
        gone: Problem | None = None
        while (future := self._owed.get()) is not None:
            if gone is None:
                gone = self._take(future)
            if gone is not None:
                future.set_exception(gone)
        self._results.close()

    def _take(self, future: Future[Results]) -> Problem | None:
        try:
            result: Results | str = self._results.recv()
        except (EOFError, OSError):
            detail = "a worker of the import has ended unexpectedly; import the file again to finish it"
            return Problem(500, "worker-ended", detail)
        if isinstance(result, str):
            return Problem(503, "worker-failed", result)
        future.set_result(result)
        return None

    def dismiss(self, *, at_once: bool) -> None:
        """Have the process end, when it has done what it was given, or at once."""
        self._jobs.close()
        self._owed.put(None)
        if at_once:
            self._process.kill()

    def join(self) -> None:
        """Wait until the process has ended; end it if it does not."""
        self._process.join(_END_SECONDS)
        self._process.kill()
        self._process.join()
        self._thread.join()


def _work(state: Path, rows: int, jobs: Connection, results: Connection) -> None:
    """Apply batches of events to the register until the parent sends no more; what runs in a worker."""
    from insurer_agent.agent import Agent  # noqa: PLC0415 - the parent that imports this module has its own

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        agent = Agent.open(state, connections=1)
        try:
            while batches := _batches(jobs, rows):
                applied = iter(agent.register.apply([event for batch in batches for event in batch]))
                for batch in batches:
                    results.send([next(applied) for _ in batch])
        finally:
            agent.database.close()
    except BrokenPipeError:  # there is no parent
        return
    except Problem as problem:
        results.send(problem.detail)
    except SettingsError as error:
        results.send(str(error))


def _batches(jobs: Connection, rows: int) -> list[list[PolicyEvent]]:
    """Return the next batch, with more until it has so many `rows` if they wait already; none at the end."""
    try:
        batches = [jobs.recv()]
        while sum(map(len, batches)) < rows and jobs.poll():
            batches.append(jobs.recv())
    except EOFError:
        return []
    return batches


def _end_with_parent() -> None:
    """End this process when its parent has ended, in whatever way: nobody is left to hear of its work."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
