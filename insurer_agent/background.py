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
_FIRST_SECONDS = 0.25
_MISSING_SECONDS = 5.0
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
                pause = _FIRST_SECONDS
                if held:
                    agent.outbox.retry_set_aside()
                while held:
                    # Deposits go out while some custodian is without its keys: they are repeated until it has them.
                    pause = _UPKEEP_SECONDS if _upkeep(agent) else min(2 * pause, _MISSING_SECONDS)
                    _empty_outbox(agent, until=time.monotonic() + pause)
        except Exception as error:  # noqa: BLE001  the thread must outlive any fault, the database's above all
            log.warning("background work failed, trying again: %s", fault(error))
        time.sleep(_RETRY_SECONDS)


def _upkeep(agent: Agent) -> bool:
    """Return whether all committee keys are where they belong."""
    missing = agent.custodian.exchange_keys()
    agent.custodian.forget_old_checks(china_day(time.time()))
    agent.idempotency.forget_old()
    return missing == 0


def _empty_outbox(agent: Agent, until: float) -> None:
    while time.monotonic() < until:
        if not agent.depositor.anything_due():
            time.sleep(_IDLE_SECONDS)
            continue
        # Deposits leave in batches at irregular times, so that none points to the check before it.
        time.sleep(_random.uniform(0, agent.settings.deposit_jitter_seconds))
        agent.depositor.send_due()
