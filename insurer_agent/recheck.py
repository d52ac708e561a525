"""The recheck's story: who is insured here and now exceeds a limit, asked about in batches beside the underwriters.

Twenty applications on one day each read `within`, as no insurer's deposit is visible yet; asked about again by night
they do not. A run asks, in a random order within each shard,

1. everyone once, in checks of `RECHECK_LANES`, one at a time, resting after each for as long as it took;
2. again those without an answer, after a pause, twice, in smaller checks.

A run that is ended and made again asks everyone anew, which is safe: verdicts are of totals as they stand, and each
costs one more answer of the rule's `recheck_budget`, which is of such a size.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from insurer_agent.recheck_list import RecheckList
from insurer_agent.requester import RECHECK_LANES, THROTTLED, Answer, LaneAnswer
from insurer_agent.store.rechecks import FIRST, OpenLane, Spool, in_window
from protocol.check import Verdict, Void
from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.manifest import Rule
from protocol.watermark import Completeness

_SMALLER = 4
_RETRIED = tuple(reason.value for reason in Void if reason not in (Void.BUDGET_EXHAUSTED, Void.INCOMPLETE))
"""What another try soon may answer. Each costs an answer of the budget; the rest is for another night."""
_SILENT = frozenset({Void.TIMEOUT, Void.SERVICE_UNAVAILABLE})
_random = secrets.SystemRandom()


class Asks(Protocol):
    """The requester, as far as a recheck needs it."""

    def recheck(self, lanes: Sequence[tuple[Identity, str]]) -> Answer:
        """See `Requester.recheck`."""


@dataclass(frozen=True)
class Pace:
    """How a run takes turns with others, in seconds, and when it gives up.

    It waits as long as each check took, `rest` at most; longer each time, up to `longest`, where the service is busy or
    silent; `pauses` before asking again those without an answer. After `patience` such checks in a row a pass ends.
    """

    rest: float = 5.0
    first: float = 1.0
    longest: float = 30.0
    pauses: tuple[float, ...] = (15.0, 60.0)
    patience: int = 10
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Tally:
    """What came of a run, by rule id: persons that exceed, are within, and are indeterminate by reason."""

    exceeds: Counter[str] = field(default_factory=Counter)
    within: Counter[str] = field(default_factory=Counter)
    indeterminate: dict[str, Counter[str]] = field(default_factory=dict)
    completeness: Completeness | None = None
    """The least complete of all checks."""

    def see(self, found: Completeness) -> None:
        """Take note of how complete a check was."""
        if self.completeness is None or found.current < self.completeness.current:
            self.completeness = found


class Recheck:
    """One run over a spool that was collected; what must be listed goes to the list."""

    def __init__(
        self,
        requester: Asks,
        spool: Spool,
        listed: RecheckList,
        *,
        tell: Callable[[int], None],
        held: Callable[[], bool],
        pace: Pace,
    ) -> None:
        self._requester = requester
        self._spool = spool
        self._listed = listed
        self._tell = tell
        self._held = held
        self._pace = pace
        self._tally = Tally()
        self._done = 0
        self._silent = 0

    def run(self, rules: Sequence[Rule]) -> Tally:
        """Ask about all lanes, write the list's rows, and return what came of it; `tell` is told how many are done.

        Raises `ProtocolError` where nothing can be asked, `recheck-taken-over` when another process may have begun one.
        """
        versions = {rule.id: rule for rule in rules}
        most = RECHECK_LANES
        self._pass(most)
        for pause in self._pace.pauses:
            if not self._spool.next(FIRST, 1, _RETRIED):
                break
            self._pace.sleep(pause)
            most = max(1, most // _SMALLER)  # custodians that were too slow for more may do that much in time
            self._pass(most)
        for lane in self._spool.left(RECHECK_LANES):
            if not lane.policies:  # cancelled since the run began
                continue
            reason = lane.reason or Void.SERVICE_UNAVAILABLE.value
            self._tally.indeterminate.setdefault(lane.rule_id, Counter())[reason] += 1
            self._listed.put(lane.policies, versions[lane.rule_id], Verdict.INDETERMINATE, reason)
        return self._tally

    def _pass(self, most: int) -> None:
        place, self._silent = FIRST, 0
        while self._silent < self._pace.patience and (lanes := self._spool.next(place, most, _RETRIED)):
            if not self._held():
                raise ProtocolError("recheck-taken-over", "the database ended this recheck's lock; run it again")
            place = lanes[-1].place
            gone = [lane for lane in lanes if not lane.policies]
            asked = [lane for lane in lanes if lane.policies]
            self._settle(gone, self._answers(asked) if asked else [])

    def _settle(self, gone: list[OpenLane], answers: list[tuple[OpenLane, LaneAnswer, int]]) -> None:
        settled, unanswered = gone, []
        for lane, answer, as_of in answers:
            if answer.reason is not None:
                unanswered.append((lane, answer.reason.value))
                continue
            settled.append(lane)
            if answer.verdict is Verdict.EXCEEDS:
                counted = tuple(record for record in lane.policies if in_window(record, answer.rule, as_of))
                self._listed.put(counted or lane.policies, answer.rule, answer.verdict, None)
            (self._tally.exceeds if answer.verdict is Verdict.EXCEEDS else self._tally.within)[lane.rule_id] += 1
        self._spool.close(settled, unanswered)
        self._done += len(settled)
        self._tell(self._done)

    def _answers(self, lanes: list[OpenLane]) -> list[tuple[OpenLane, LaneAnswer, int]]:
        answer = self._paced(lanes)
        if answer is None:  # the service took none of it: nothing was charged, and the next pass asks again
            return []
        return [(lane, given, answer.as_of) for lane, given in zip(lanes, answer.lanes, strict=True)]

    def _paced(self, lanes: list[OpenLane]) -> Answer | None:
        """Ask one check when the service takes it, then rest; return None if it does not for as long as patience."""
        pause = self._pace.first
        for _ in range(self._pace.patience):
            began = time.monotonic()
            try:
                answer = self._requester.recheck([(lane.insured, lane.rule_id) for lane in lanes])
            except ProtocolError as error:
                if error.code not in THROTTLED:
                    raise
            else:
                self._tally.see(answer.completeness)
                if answer.lanes[0].reason not in _SILENT:
                    self._silent = 0
                    self._pace.sleep(min(self._pace.rest, time.monotonic() - began))
                    return answer
                self._silent += 1
                self._pace.sleep(min(self._pace.longest, self._pace.first * 2**self._silent))
                return answer
            self._pace.sleep(_random.uniform(pause / 2, pause))
            pause = min(2 * pause, self._pace.longest)
        self._silent = self._pace.patience
        return None
