"""The requester's story: a question becomes one bit (SPEC.md, section 6, steps 1 and 5).

Underwriters ask about one person with the cover proposed, or about many in a batch; a recheck asks about many insured
persons as they stand.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

from insurer_agent.acting import Acting
from insurer_agent.blinds import Blinds
from insurer_agent.completeness import DirectoryView
from insurer_agent.store.own_answers import OwnAnswers, OwnLane, Stopped
from protocol.budget import latest_today, most_answers, most_answers_whatever_was
from protocol.check import PendingCheck, Question, Verdict, Void, ask, read_outcome, shard_of_person
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.manifest import Rule, china_day
from protocol.messages import RECHECK, UNDERWRITING, CheckOutcome, CheckRequest
from protocol.party import Party, RandomBytes
from protocol.watermark import Completeness
from transport.internal import CONTENT_TYPE, service_message_of
from transport.peers import Call, Peers
from transport.places import FEW_LANES

RECHECK_LANES = 64
"""Persons and rules that a recheck has in one check. A custodian takes some 50 ms of a processor for them and the first
of A sends 0.8 MB: machines much slower still answer within the service's 3 s an attempt (`recheck_attempt_seconds`)."""
_BLINDS = 4
"""How many persons' blinds are drawn ahead: those of single checks, as who asks about many waits longer in any case."""
RECHECK_SECONDS = 12.0
"""How long the answer to a recheck is waited for; the service gives up after its own `recheck_seconds`, 9."""
THROTTLED = frozenset({"busy", "rate-limited"})
"""With what the service refuses a recheck or a batch for now; nobody was asked and nothing charged."""
Lane = tuple[Identity, str, int]
"""A person, a rule's id, and the cover proposed, in fen."""


class EndKind(Enum):
    """How the day is meant on which a spent budget has an answer again."""

    EARLIEST = "earliest"
    """There is none before, by the agent's own count; others of its group may have been charged later."""
    EXPECTED = "expected"
    """The same, if what the agent is asking just now is answered."""
    LATEST = "latest"
    """Custodians say that it is spent. By then all of it is there again, unless the group asks meanwhile."""


@dataclass(frozen=True)
class BudgetEnd:
    """The day, an ordinal, from whose beginning a spent budget has an answer again, and how that is meant."""

    day: int
    kind: EndKind


@dataclass(frozen=True)
class LaneAnswer:
    """What is told of one person under one rule; `until` where the budget is spent."""

    rule: Rule
    verdict: Verdict
    reason: Void | None
    until: BudgetEnd | None = None


@dataclass(frozen=True)
class Answer:
    """What is told of one check, a lane a person and rule. `as_of` is an ordinal."""

    check_id: bytes
    as_of: int
    completeness: Completeness
    lanes: tuple[LaneAnswer, ...]


class Requester:
    """Asks checks for the member's own underwriting, and of those whom it insures."""

    def __init__(
        self,
        acting: Acting,
        peers: Peers,
        directory: DirectoryView,
        own: OwnAnswers,
        seconds: float,
        random: RandomBytes,
    ) -> None:
        self._acting = acting
        self._peers = peers
        self._directory = directory
        self._own = own
        self._seconds = seconds
        self._random = random
        self._blinds = Blinds(_BLINDS, random)

    def prepare(self) -> None:
        """Do ahead what the next questions need, while nobody waits."""
        self._blinds.refill()

    def rules(self) -> list[Rule]:
        """Return the version in force today of every rule."""
        today, manifest = china_day(time.time()), self._acting.now().manifest
        names = sorted({rule.id for rule in manifest.terms.rules if rule.valid_from <= today})
        return [manifest.current_rule(name, today) for name in names]

    def check(self, subject: Identity, rule_ids: Sequence[str], proposed: int) -> Answer:
        """Ask under each rule whether the subject's total with `proposed` fen more exceeds the rule's limit.

        Always comes back with verdicts, `INDETERMINATE` where none could be had before the deadline; refuses
        (`unknown-rule`, `manifest-expired`) what cannot be asked.
        """
        lanes = [(subject, rule_id, proposed) for rule_id in rule_ids]
        return self._ask(lanes, UNDERWRITING, self._seconds, throttled=False)

    def check_many(self, lanes: Sequence[Lane], seconds: float) -> Answer:
        """Ask, within so many seconds, what `check` asks about persons of one shard.

        Comes back with a verdict a lane, as `check` does, and refuses what it refuses; also what the service does not
        take just now (`THROTTLED`).
        """
        return self._ask(lanes, UNDERWRITING, seconds, throttled=True)

    def unasked(self, lanes: Sequence[Lane], reason: Void) -> Answer:
        """Return the answer of a check that could not even be sent."""
        today, manifest = china_day(time.time()), self._acting.now().manifest
        rules = (manifest.current_rule(rule_id, today) for _, rule_id, _ in lanes)
        void = tuple(LaneAnswer(rule, Verdict.INDETERMINATE, reason) for rule in rules)
        return Answer(self._random(16), today, self._directory.now(), void)

    def recheck(self, lanes: Sequence[tuple[Identity, str]]) -> Answer:
        """Ask whether each person's total exceeds its rule's limit as it stands; all are of one shard.

        Comes back with a verdict a lane, as `check` does, and refuses what it refuses; also rules without a budget for
        rechecks (`recheck-not-allowed`), and what the service does not take just now (`THROTTLED`).
        """
        asked = [(subject, rule_id, 0) for subject, rule_id in lanes]
        return self._ask(asked, RECHECK, RECHECK_SECONDS, throttled=True)

    def _ask(self, asked: Sequence[Lane], occasion: int, seconds: float, *, throttled: bool) -> Answer:
        party, now, began = self._acting.now(), time.time(), time.monotonic()
        manifest, today = party.manifest, china_day(now)
        questions = [
            Question(subject, manifest.current_rule(rule_id, today), proposed) for subject, rule_id, proposed in asked
        ]
        manifest.require_unexpired(now)
        current = self._directory.now()  # before the check: what it says of then, the check sees
        make = partial(
            ask,
            party,
            now=now,
            deadline=now + seconds,
            random=self._random,
            occasion=occasion,
            take_blind=self._blinds.take,
        )
        made: tuple[PendingCheck, CheckRequest] | None = None
        with self._own.counting(self._random(16), occasion, _own_lanes(party, questions, occasion), now) as counting:
            if len(questions) <= FEW_LANES:  # asked while the database counts, and anew without what it stops
                try:
                    made = make(questions)
                except ProtocolError:
                    self._own.note(counting(), [])
                    raise
            counted = counting()
        sent = [place for place in range(len(questions)) if place not in counted.stopped]
        told = {place: _stopped(questions[place].rule, stop) for place, stop in counted.stopped.items()}
        if not sent:
            return Answer(self._random(16), today, current, _in_order(told))
        answered = list[int]()
        try:
            pending, request = made if made and not counted.stopped else make([questions[place] for place in sent])
            call = Call(manifest.terms.service_url, "/v1/checks", encode(request), {"Content-Type": CONTENT_TYPE})
            try:
                reply = self._peers.call(call, seconds - (time.monotonic() - began))
                outcome = service_message_of(CheckOutcome, call, reply, manifest.terms.service_signing_key)
                verdicts = read_outcome(pending, outcome, now + time.monotonic() - began)
            except ProtocolError as error:
                if throttled and error.code in THROTTLED:
                    raise
                reasons = {"timeout": Void.TIMEOUT, "unreachable": Void.SERVICE_UNAVAILABLE}
                verdicts = [(Verdict.INDETERMINATE, reasons.get(error.code, Void.REFUSED))] * len(sent)
            answered = [place for place, (_, reason) in zip(sent, verdicts, strict=True) if reason is None]
        finally:
            # Who waits for one check is answered first; batches, jobs and rechecks bear the trip.
            (self._own.note if throttled else self._own.note_soon)(counted, answered)
        for place, (verdict, reason) in zip(sent, verdicts, strict=True):
            told[place] = _told(questions[place].rule, verdict, reason, current, now)
        return Answer(pending.check_id, pending.as_of, current, _in_order(told))


def _own_lanes(party: Party, questions: Sequence[Question], occasion: int) -> list[OwnLane]:
    """Return what the lanes, all of one shard, are counted by; each custodian outside the group of this member has its
    own budget.
    """
    manifest, shard = party.manifest, shard_of_person(party, questions[0].identity)
    own = manifest.slot_of_group(shard, party.id)
    outside = len(manifest.committee(shard).slots) - (own is not None)
    lanes = []
    for question in questions:
        rule = question.rule
        budget = rule.recheck_budget if occasion == RECHECK else rule.budget
        most = most_answers(outside, budget), most_answers_whatever_was(outside, budget)
        lanes.append(OwnLane(question.identity.encode(), rule.id, budget, rule.budget_days, *most))
    return lanes


def _in_order(told: Mapping[int, LaneAnswer]) -> tuple[LaneAnswer, ...]:
    """Return the answers of all lanes, given by place."""
    return tuple([told[place] for place in range(len(told))])


def _stopped(rule: Rule, stop: Stopped) -> LaneAnswer:
    until = BudgetEnd(stop.until, EndKind.EARLIEST if stop.is_certain else EndKind.EXPECTED)
    return LaneAnswer(rule, Verdict.INDETERMINATE, Void.BUDGET_EXHAUSTED, until)


def _told(rule: Rule, verdict: Verdict, reason: Void | None, current: Completeness, now: float) -> LaneAnswer:
    """Return what is told of a lane that was asked.

    Where too few members' deposits are current a total may be too low: what exceeds does, nothing is within. A budget
    that custodians say is spent has its latest end.
    """
    if verdict is Verdict.WITHIN and current.current < rule.min_current:
        return LaneAnswer(rule, Verdict.INDETERMINATE, Void.INCOMPLETE)
    if reason is Void.BUDGET_EXHAUSTED:
        return LaneAnswer(rule, verdict, reason, BudgetEnd(latest_today(now) + rule.budget_days, EndKind.LATEST))
    return LaneAnswer(rule, verdict, reason)
