"""What a requester can say for certain of the custodians' budget from its own answers alone (SPEC.md, section 6.4).

Every answer was charged at four custodians of those outside the requester's group; each of them gives `budget` answers
in `budget_days` days. What others of the group were charged, and what was charged without an answer, only adds to it.
"""

from protocol.manifest import china_day
from protocol.messages import FRESHNESS_SECONDS
from protocol.sharing import CHOSEN

_MARGIN = FRESHNESS_SECONDS + 1
"""By how much a custodian's clock may differ from a requester's whose signed time, in whole seconds, it accepts."""


def most_answers(custodians: int, budget: int) -> int:
    """Return how many answers there are at most, n*b/4, where each of n custodians always gave b.

    As many can be had, of whatever A there were: after one less, four custodians may have one left each.
    """
    return custodians * budget // CHOSEN


def most_answers_whatever_was(custodians: int, budget: int) -> int:
    """Return after how many answers there are certainly no more, whatever the budget was when they were given.

    For another answer four custodians must have been charged less than b. Each answer so far took at least 8 - n of its
    four from them, as there are but n - 4 others.
    """
    others = CHOSEN - (custodians - CHOSEN)
    return CHOSEN * (budget - 1) // others + 1


def charged_from(asked_at: float) -> int:
    """Return the first day, an ordinal, on which a custodian may have charged what was asked then."""
    return china_day(asked_at - _MARGIN)


def latest_today(now: float) -> int:
    """Return the latest day, an ordinal, that it may be at a custodian that takes what is asked now."""
    return china_day(now + _MARGIN)
