"""The runner of jobs: one check of a job after the other, beside the underwriters and never before them.

It rests after each check for as long as that took, and waits where the service is busy or away. An item without an
answer for a reason that passes is asked again, twice, in smaller checks: each time that custodians answer costs budget.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable

from insurer_agent.batch import BATCH_LANES, Asks, Pack, packed
from insurer_agent.recheck import Pace
from insurer_agent.requester import Answer
from insurer_agent.rest.items import Asked, problem_body, refusal, unknown_rule
from insurer_agent.store.check_jobs import CheckJobs, OpenItem, Outcome, Part
from protocol.check import Void
from protocol.errors import ProtocolError
from transport.problems import Problem

log = logging.getLogger(__name__)

CHECK_SECONDS = 27.0
"""How long the answer to one check is waited for; the service gives up on the largest after some 25."""
AGAIN_LANES = 64
PASSING = frozenset({Void.TIMEOUT, Void.TOO_FEW_CUSTODIANS, Void.DISAGREEMENT})
"""Why there is no answer that another try may bring."""


class JobRunner:
    """Asks what is due, for as long as this process is the one that does."""

    def __init__(self, requester: Asks, jobs: CheckJobs, known: Callable[[], set[str]], pace: Pace) -> None:
        """`known` returns the ids of the rules in force."""
        self._requester = requester
        self._jobs = jobs
        self._known = known
        self._pace = pace

    def run(self, held: Callable[[], bool]) -> None:
        """Work until nothing is due any more; `held` is asked whether this process may go on."""
        pause = self._pace.first
        while held() and (part := self._jobs.due(BATCH_LANES, AGAIN_LANES)) is not None:
            began = time.monotonic()
            if self._part(part):
                pause = self._pace.first
                self._pace.sleep(min(self._pace.rest, time.monotonic() - began))
            else:
                self._pace.sleep(pause)
                pause = min(2 * pause, self._pace.longest)

    def _part(self, part: Part) -> bool:
        """Ask a part and settle it; return whether the service took all of it."""
        known, asked, refused = self._known(), list[tuple[OpenItem, Asked]](), list[Outcome]()
        for item in part.items:
            read = None if item.asked is None else Asked.decode(item.asked)
            if read is None:
                detail = "what was asked cannot be read any more"
                damaged = Problem(500, "item-damaged", detail, hint="ask it again; see the agent's log")
                log.error("an item of a job is damaged")
                refused.append(refusal(problem_body(damaged, item.place, None)))
            elif known.issuperset(read.item.rules):
                asked.append((item, read))
            else:  # it was in force when the job was handed in
                refused.append(refusal(problem_body(unknown_rule(), item.place, read.reference)))
        if refused:
            self._jobs.settle(part.job_id, refused, [], tries=part.tries, pause=0)
        packs = packed([read.item for _, read in asked], lambda _: part.shard)
        return all(self._check(part, asked, pack) for pack in packs)

    def _check(self, part: Part, asked: list[tuple[OpenItem, Asked]], pack: Pack) -> bool:
        try:
            given = self._requester.check_many(list(pack.lanes), CHECK_SECONDS)
        except ProtocolError as error:
            log.warning("a check of a job was not taken: %s", error.code)
            return False
        if all(lane.reason is Void.SERVICE_UNAVAILABLE for lane in given.lanes):
            return False  # nobody was asked: the job waits until the service is back
        settled, again = list[Outcome](), list[OpenItem]()
        for place, answer in pack.answers(given):
            item, read = asked[place]
            if part.tries < len(self._pace.pauses) and any(lane.reason in PASSING for lane in answer.lanes):
                again.append(item)
            else:
                settled.append(_answered(item.place, read, answer))
        pause = self._pace.pauses[part.tries] if again else 0.0
        self._jobs.settle(part.job_id, settled, again, tries=part.tries + 1, pause=pause)
        return True


def _answered(place: int, read: Asked, answer: Answer) -> Outcome:
    counts = Counter(lane.verdict.value for lane in answer.lanes)
    return Outcome(place, json.dumps(read.told(answer)).encode(), counts)
