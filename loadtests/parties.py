"""The cryptography of a check alone, its custodians in processes of their own, as in an alliance, and nothing else.

In one process the same code runs with its instructions and data at hand. In an alliance each party takes a turn of a
millisecond or two and finds them gone from the caches of the processor; this is what cryptography costs there.
"""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection

from check_profile import AnswerAll, Answers, Calls, Checks, Clock

_FORK = multiprocessing.get_context("fork")
"""So that each has the alliance as it stands: keys, and what is deposited."""


@contextmanager
def parties(checks: Checks) -> Iterator[AnswerAll]:
    """Have custodians answer in processes of their own for the block, all at once."""
    with ExitStack() as stack:
        lines: dict[str, Connection] = {}
        for name in checks.custodians:
            line, other = _FORK.Pipe()
            process = _FORK.Process(target=_serve, args=(checks, name, other), daemon=True)
            process.start()
            stack.callback(process.join, 10)
            lines[name] = stack.enter_context(closing(line))
            other.close()

        def answer_all(calls: Calls, now: float, _clock: Clock) -> Answers:
            for name, data in calls.items():
                lines[name].send((data, now))
            return {name: lines[name].recv() for name in calls}

        yield answer_all
        for line in lines.values():
            line.send(None)


def _serve(checks: Checks, name: str, line: Connection) -> None:
    while (asked := line.recv()) is not None:
        data, now = asked
        line.send(checks.answer(name, data, now, time.process_time))
