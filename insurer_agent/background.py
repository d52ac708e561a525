"""What an agent does without being asked: hands out committee keys, empties the outbox, forgets old records.

It runs in a thread of each worker process; an advisory lock of the database lets one of them do the work.
"""

import logging
import secrets
import threading
import time

from insurer_agent.agent import Agent
from protocol.manifest import china_day
from transport.problems import fault

log = logging.getLogger(__name__)

_LOCK = 7_261_004
_IDLE_SECONDS = 0.25
_RETRY_SECONDS = 1.0
_UPKEEP_SECONDS = 60.0
_random = secrets.SystemRandom()


def start(agent: Agent) -> threading.Thread:
    """Start the thread; it ends with its process."""
    thread = threading.Thread(target=_run, args=(agent,), name="background", daemon=True)
    thread.start()
    return thread


def _run(agent: Agent) -> None:
    while True:
        try:
            with agent.database.exclusively(_LOCK) as held:
                while held:
                    _upkeep(agent)
                    _empty_outbox(agent, until=time.monotonic() + _UPKEEP_SECONDS)
        except Exception as error:  # noqa: BLE001  the thread must outlive any fault, the database's above all
            log.warning("background work failed, trying again: %s", fault(error))
        time.sleep(_RETRY_SECONDS)


def _upkeep(agent: Agent) -> None:
    # Deposits go out while some custodian is still without its keys: they are repeated until it has them.
    for _ in range(10):
        if agent.custodian.exchange_keys() == 0:
            break
        time.sleep(_RETRY_SECONDS / 2)
    agent.custodian.forget_old_checks(china_day(time.time()))
    agent.idempotency.forget_old()


def _empty_outbox(agent: Agent, until: float) -> None:
    while time.monotonic() < until:
        if agent.depositor.send_due() == 0:
            time.sleep(_IDLE_SECONDS)
        else:
            # Deposits leave in batches at irregular times, so that none points to the check before it.
            time.sleep(_random.uniform(0, agent.settings.deposit_jitter_seconds))
