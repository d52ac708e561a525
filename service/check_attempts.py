"""An attempt at a check between its departure and what comes of it (SPEC.md, 6, steps 2 to 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.check import Conclusion, Evaluation, call_for, conclude_together, is_proven_to
from protocol.committee import preferred_choice
from protocol.errors import ProtocolError
from protocol.messages import MANY_ROWS, RECHECK, CheckAnswer, CheckCall, CheckOutcome, CheckRequest
from protocol.party import ServiceParty
from protocol.sharing import CHOSEN

FLYING_LANES = 4
"""How many lanes a check has at most that leaves with others: they wait for all that a custodian does for it."""
ASKED_ALIKE = 4
"""How many checks that leave together ask the same custodians, but for those of each one's own group: a message that
brings several costs less than several messages. More would have four of a committee at work and the others idle."""
MAX_ENVELOPE = 16 << 10
"""Bytes that an envelope may have beside others in a message. One of 16 lanes has 7 KB."""
ANSWER_BYTES, ANSWER_LANE_BYTES = 8 << 10, 16 << 10
"""What a custodian's answer to a check may have: a lane has 13 KB of it, its garbled circuit and labels."""


def may_fly(request: CheckRequest) -> bool:
    """Tell whether a check may share messages with others: an underwriter's who waits, of the usual size."""
    statement = request.signed.statement
    few = statement.occasion != RECHECK and len(statement.lanes) <= FLYING_LANES
    return few and all(len(envelope) <= MAX_ENVELOPE for envelope in request.envelopes)


@dataclass(frozen=True)
class Free:
    """By what an attempt's A may be chosen anew when it leaves with others: the scores, and 16 random bytes."""

    scores: Mapping[int, float]
    nonce: bytes


class CheckAttempt:
    """What four custodians are asked, until when, what they say, and what comes of it.

    `place` is attempt, A and tick. `deadline` is the check's, by the monotonic clock; `most` is how many seconds
    custodians have from the departure on, if the deadline leaves so many. Where it is not `free`, A stands. One thread
    at a time writes to it, the one that makes the calls; who asks may read what there is at any time.
    """

    def __init__(
        self,
        service: ServiceParty,
        evaluation: Evaluation,
        place: tuple[int, tuple[int, ...], int],
        deadline: float,
        most: float,
        free: Free | None = None,
    ) -> None:
        self.service = service
        self.free = free
        self.evaluation = evaluation
        self.number, self.chosen, self.tick = place
        self.chosen_by = self.check_id
        """From which bytes A follows: the check's next attempt goes by the same, and asks as many of this A again as it
        may, as these have charged it."""
        self.deadline = deadline
        self._most = most
        self.seconds = 0.0
        """How long custodians have; 0 while it has not left."""
        self.answers: dict[int, CheckAnswer | ProtocolError] = {}
        """By slot, what was heard: an answer, or why there is none."""
        self.came: CheckOutcome | Exception | None = None
        """What four answers came to; an exception where they disagree, or are such as nothing can be made of."""
        self.is_over = False
        self.is_beside_others = False
        """Whether it has left with others, so that a custodian may have it come again alone."""

    @property
    def shard(self) -> int:
        """The shard of the check."""
        return self.evaluation.request.signed.statement.shard

    @property
    def check_id(self) -> bytes:
        """The check's id."""
        return self.evaluation.request.signed.statement.check_id

    @property
    def answer_bytes(self) -> int:
        """How long a custodian's answer may be."""
        return ANSWER_BYTES + len(self.evaluation.request.signed.statement.lanes) * ANSWER_LANE_BYTES

    @property
    def had_time(self) -> bool:
        """Whether a custodian that was not heard is to blame, and not that the attempt left late."""
        return self.seconds >= self._most / 2

    @property
    def is_to_come_alone(self) -> bool:
        """Whether a custodian has too much to read for it beside others."""
        codes = {said.code for said in self.answers.values() if isinstance(said, ProtocolError)}
        return self.is_beside_others and MANY_ROWS in codes

    def leave(self, now: float) -> bool:
        """Have it leave at this monotonic time; tell whether it does, as what has no time left asks nobody."""
        self.seconds = max(0.0, min(self.deadline - now, self._most))
        self.is_over = not self.seconds
        return not self.is_over

    def member(self, slot: int) -> str:
        """Return whose the slot is."""
        return self.service.manifest.committee(self.shard).slots[slot]

    def is_proven_to(self, slot: int) -> bool:
        """Tell whether a custodian of A verifies the service's proof, which is made when its call is."""
        return is_proven_to(self.check_id, self.number, self.chosen, slot)

    def call(self, slot: int) -> CheckCall:
        """Return what a custodian of A is sent."""
        return call_for(self.evaluation, self.number, self.chosen, self.tick, slot)


def choose_together(attempts: Sequence[CheckAttempt]) -> None:
    """Have attempts that leave together ask the same custodians, in groups of `ASKED_ALIKE` of one committee.

    Each group goes by the nonce of its first. It does not go by who asks: A is told to each requester, and would say of
    the others whose own slots it avoids. Nor by an id: its requester draws that, and would say whom the others ask.
    """
    by_committee: dict[tuple[str, ...], list[tuple[CheckAttempt, Free]]] = {}
    for attempt in attempts:
        if attempt.free is not None:
            slots = attempt.service.manifest.committee(attempt.shard).slots
            by_committee.setdefault(slots, []).append((attempt, attempt.free))
    for those in by_committee.values():
        for first in range(0, len(those), ASKED_ALIKE):
            alike = those[first : first + ASKED_ALIKE]
            nonce = alike[0][1].nonce
            for attempt, free in alike if len(alike) > 1 else ():
                chosen = preferred_choice(nonce, free.scores)
                if chosen is not None:
                    attempt.chosen, attempt.chosen_by = chosen, nonce


def settle(attempts: Sequence[CheckAttempt]) -> None:
    """End those of these attempts of which all four custodians were heard."""
    whole = [attempt for attempt in attempts if len(attempt.answers) == CHOSEN]
    if not whole:
        return
    answers = [
        {slot: said for slot, said in attempt.answers.items() if isinstance(said, CheckAnswer)} for attempt in whole
    ]
    answered = [(attempt, four) for attempt, four in zip(whole, answers, strict=True) if len(four) == CHOSEN]
    for (attempt, _), came in zip(answered, conclude_each(answered), strict=True):
        attempt.came = came
    for attempt in whole:
        attempt.is_over = True


def conclude_each(answered: Sequence[tuple[CheckAttempt, dict[int, CheckAnswer]]]) -> list[CheckOutcome | Exception]:
    """4. Compare, evaluate, return tags that only each requester can read; what one raises is that one's alone."""
    asked = [
        (attempt.service, Conclusion(attempt.evaluation, attempt.number, attempt.chosen, attempt.tick, answers))
        for attempt, answers in answered
    ]
    try:
        return [*conclude_together(asked)]
    except Exception:  # noqa: BLE001  whose it is shows when each is concluded by itself
        return [_concluded(service, one) for service, one in asked]


def _concluded(service: ServiceParty, one: Conclusion) -> CheckOutcome | Exception:
    try:
        (found,) = conclude_together([(service, one)])
    except Exception as error:  # noqa: BLE001  raised in the thread that asked
        return error
    return found
