"""What is told of a check: verdicts with advice, as JSON of the shape that `CheckAnswerSchema` and its like describe.

It is written here and not by these schemas, which take longer for an answer than all else that REST does: what is told
is the agent's own, and tests hold it against them.
"""

import datetime as dt
from typing import Any

from insurer_agent.requester import Answer, BudgetEnd, EndKind, LaneAnswer
from protocol.check import Verdict, Void
from protocol.manifest import day_of
from protocol.watermark import Completeness

CHINA = dt.timezone(dt.timedelta(hours=8))
RETRY_SECONDS = {
    Void.TIMEOUT: 2,
    Void.DISAGREEMENT: 15,
    Void.TOO_FEW_CUSTODIANS: 15,
    Void.SERVICE_UNAVAILABLE: 15,
    Void.REFUSED: 60,
    Void.INCOMPLETE: 60,
}
"""After how long another answer is likely. A spent budget is not in it: a day says when that ends."""

_EXCEEDS_LIMIT = {Verdict.EXCEEDS: True, Verdict.WITHIN: False, Verdict.INDETERMINATE: None}


def is_final(given: Answer) -> bool:
    """Tell whether every verdict is one: who repeats a request is given such an answer again."""
    return all(lane.verdict is not Verdict.INDETERMINATE for lane in given.lanes)


def body_of(given: Answer, reference: str | None, *, one_rule: bool) -> dict[str, Any]:
    """Return the answer to a check; of `one_rule` the verdict stands in it, else one result a rule."""
    now = dt.datetime.now(CHINA)
    completeness = completeness_of(given.completeness)
    oldest: dt.datetime | None = completeness["oldest"]
    whole = {
        "check_id": given.check_id.hex(),
        "reference": reference,
        "checked_at": now.isoformat(),
        "completeness": completeness | {"oldest": None if oldest is None else oldest.isoformat()},
    }
    results = [_result(lane, given.as_of, now) for lane in given.lanes]
    return whole | (results[0] if one_rule else {"results": results})


def completeness_of(found: Completeness) -> dict[str, Any]:
    """Return how complete deposits are, to be dumped."""
    oldest = None if found.oldest is None else dt.datetime.fromtimestamp(found.oldest, CHINA)
    return {"members": found.members, "current": found.current, "oldest": oldest}


def _result(lane: LaneAnswer, as_of: int, now: dt.datetime) -> dict[str, Any]:
    return {
        "rule": lane.rule.id,
        "rule_version": lane.rule.version,
        "verdict": lane.verdict.value,
        "exceeds_limit": _EXCEEDS_LIMIT[lane.verdict],
        "reason": None if lane.reason is None else lane.reason.value,
        "budget_until": None if lane.until is None else dt.date.fromordinal(lane.until.day).isoformat(),
        "budget_until_is": None if lane.until is None else lane.until.kind.value,
        "window": {"from": day_of(lane.rule.window_start(as_of)).isoformat(), "to": day_of(as_of).isoformat()},
    } | _advice(lane, now)


def _advice(lane: LaneAnswer, now: dt.datetime) -> dict[str, Any]:
    """Return what an underwriting system should do; `refer` is to a person, who alone may decline."""
    if lane.verdict is Verdict.WITHIN:
        return {"advice": "proceed", "retry_after": None}
    if lane.verdict is Verdict.EXCEEDS:
        return {"advice": "refer", "retry_after": None}
    if lane.reason is Void.BUDGET_EXHAUSTED:
        return {"advice": "refer", "retry_after": _seconds_to_a_budget(lane.until, now)}
    assert lane.reason is not None
    return {"advice": "retry", "retry_after": RETRY_SECONDS[lane.reason]}


def _seconds_to_a_budget(until: BudgetEnd | None, now: dt.datetime) -> int:
    """Return after how many seconds a spent budget may have an answer again, which is at a midnight.

    Where the own count does not say, it can be the next one, as days leave the budget's period one by one.
    """
    day = (now + dt.timedelta(days=1)).date()
    if until is not None and until.kind is EndKind.EARLIEST:
        day = max(day, dt.date.fromordinal(until.day))
    return int((dt.datetime.combine(day, dt.time(), CHINA) - now).total_seconds()) + 1
