"""What an agent does without waiting callers: hands out committee keys, empties the outbox, asks the checks of jobs,
tells how far it is, forgets.

It runs in threads of each worker process; advisory locks of the database let one process do each work.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable

from insurer_agent.acting import FOLLOW_SECONDS
from insurer_agent.agent import Agent
from insurer_agent.check_jobs import JobRunner
from insurer_agent.completeness import PUBLISH_SECONDS
from insurer_agent.recheck import Pace
from insurer_agent.store.locks import Lock
from protocol.errors import ProtocolError
from protocol.manifest import china_day
from transport.certificates import REVOCATIONS_PATH
from transport.internal import body_of
from transport.peers import Call, Peers
from transport.problems import fault
from transport.tls import Tls

log = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_UPKEEP_SECONDS = 60.0
_FIRST_SECONDS = 0.25
REVOCATIONS_SECONDS = 50.0
"""So that with what a look at the file takes, a revocation is everywhere within a minute."""
_MISSING_SECONDS = 5.0
JOB_PACE = Pace()
_random = secrets.SystemRandom()


def start(agent: Agent) -> None:
    """Start the threads; they end with their process."""
    # Watermarks go out at regular times, which tell nothing: so not between deposits.
    works = (
        (_deposits, Lock.DEPOSITS, None),
        (_watermarks, Lock.WATERMARKS, None),
        (_check_jobs, Lock.CHECK_JOBS, agent.jobs.any_open),
    )
    follow(agent)
    for work, lock, is_wanted in works:
        threading.Thread(target=_run, args=(agent, work, lock, is_wanted), name=work.__name__, daemon=True).start()
    if agent.tls is not None:
        # In every process: an agent's machines share their database, not their state directories.
        args = (agent, agent.tls, Peers(agent.tls))
        threading.Thread(target=_revocations, args=args, name=_revocations.__name__, daemon=True).start()


def follow(agent: Agent) -> None:
    """Start the thread that takes up newer manifests, in every process: each acts under its own."""
    threading.Thread(target=_manifests, args=(agent,), name=_manifests.__name__, daemon=True).start()


Held = Callable[[], bool]
"""Asks the database whether the lock is still this process's."""


def _run(agent: Agent, work: Callable[[Agent, Held], None], lock: Lock, is_wanted: Callable[[], bool] | None) -> None:
    while True:
        try:
            if is_wanted is None or is_wanted():  # one question less than taking the lock for nothing
                with agent.database.lease(lock) as held:
                    if held():
                        work(agent, held)
        except Exception as error:  # noqa: BLE001  the threads must outlive any fault, the database's above all
            log.warning("background work failed, trying again: %s", fault(error))
        time.sleep(_RETRY_SECONDS)


def _manifests(agent: Agent) -> None:
    while True:
        try:
            agent.acting.follow()
        except ProtocolError as error:
            if error.code not in ("unreachable", "timeout"):  # as all others who call the service say
                log.warning("no newer manifest was had of the service: %s", error.code)
        except Exception as error:  # noqa: BLE001  as in `_run`
            log.warning("no newer manifest was taken: %s", fault(error))
        time.sleep(FOLLOW_SECONDS)


def _revocations(agent: Agent, tls: Tls, peers: Peers) -> None:
    while True:
        try:
            fetch_revocations(agent, tls, peers)
        except ProtocolError as error:
            log.warning("the service gave no revocation list: %s", error.code)
        except Exception as error:  # noqa: BLE001  as in `_run`; the disk may be full
            log.warning("the revocation list is not kept: %s", fault(error))
        time.sleep(REVOCATIONS_SECONDS)


def fetch_revocations(agent: Agent, tls: Tls, peers: Peers) -> None:
    """Keep the service's revocation list if it is newer than this party's; raises `ProtocolError`."""
    url = agent.party.manifest.terms.service_url
    reply = peers.call(Call(url, REVOCATIONS_PATH, b"", {}, method="GET"), agent.settings.check_seconds)
    if tls.revocations.take(body_of(reply)):
        log.warning("a newer revocation list is in force")


def _watermarks(agent: Agent, held: Held) -> None:
    pause = _FIRST_SECONDS
    while held():
        try:
            agent.directory.exchange()
        except ProtocolError as error:
            log.warning("the directory took no watermark: %s", error.code)
        pause = min(2 * pause, PUBLISH_SECONDS)  # soon again at first: the others have just begun, too
        time.sleep(pause)


def _check_jobs(agent: Agent, held: Held) -> None:
    """Return when nothing is due, so that no connection is held for nothing."""
    job_runner(agent).run(held)


def job_runner(agent: Agent, pace: Pace = JOB_PACE) -> JobRunner:
    """Return what asks the checks of an agent's jobs."""
    return JobRunner(agent.requester, agent.jobs, lambda: {rule.id for rule in agent.requester.rules()}, pace)


def _deposits(agent: Agent, held: Held) -> None:
    """Return when the lock is lost: another process may send by now, and two would send what one must wait with."""
    agent.outbox.retry_set_aside()
    pause = _FIRST_SECONDS
    while held():
        # Deposits go out while some custodian is without its keys: they are repeated until it has them.
        pause = _UPKEEP_SECONDS if _upkeep(agent) else min(2 * pause, _MISSING_SECONDS)
        _empty_outbox(agent, held, until=time.monotonic() + pause)


def _upkeep(agent: Agent) -> bool:
    """Return whether all committee keys are where they belong."""
    missing = agent.custodian.under(agent.party).exchange_keys()
    agent.custodian.forget_old(time.time())
    agent.idempotency.forget_old()
    agent.jobs.forget_old()
    longest = max((rule.budget_days for rule in agent.party.manifest.terms.rules), default=0)
    agent.own_answers.forget_old(china_day(time.time()) - longest - 1)
    return missing == 0


def _empty_outbox(agent: Agent, held: Held, until: float) -> None:
    while time.monotonic() < until:
        if not agent.depositor.anything_due():
            time.sleep(_IDLE_SECONDS)
            continue
        if not held():
            return
        # Deposits leave in batches at irregular times, so that none points to the check before it.
        time.sleep(_random.uniform(0, agent.settings.deposit_jitter_seconds))
        agent.depositor.send_due()
