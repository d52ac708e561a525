"""The requester's story: an underwriter's question becomes one bit (SPEC.md, section 6, steps 1 and 5)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from insurer_agent.completeness import DirectoryView
from protocol.check import Question, Verdict, Void, ask, read_outcome
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.manifest import Rule, china_day
from protocol.messages import CheckOutcome
from protocol.party import Party, RandomBytes
from protocol.watermark import Completeness
from transport.internal import CONTENT_TYPE, service_message_of
from transport.peers import Call, Peers


@dataclass(frozen=True)
class LaneAnswer:
    """What the underwriter is told under one rule."""

    rule: Rule
    verdict: Verdict
    reason: Void | None


@dataclass(frozen=True)
class Answer:
    """What the underwriter is told of one check, a lane a rule. `as_of` is an ordinal."""

    check_id: bytes
    as_of: int
    completeness: Completeness
    lanes: tuple[LaneAnswer, ...]


class Requester:
    """Asks checks for the member's own underwriting."""

    def __init__(
        self, party: Party, peers: Peers, directory: DirectoryView, seconds: float, random: RandomBytes
    ) -> None:
        self._party = party
        self._peers = peers
        self._directory = directory
        self._seconds = seconds
        self._random = random

    def rules(self) -> list[Rule]:
        """Return the version in force today of every rule."""
        today = china_day(time.time())
        names = sorted({rule.id for rule in self._party.manifest.terms.rules if rule.valid_from <= today})
        return [self._party.manifest.current_rule(name, today) for name in names]

    def check(self, subject: Identity, rule_ids: Sequence[str], proposed: int) -> Answer:
        """Ask under each rule whether the subject's total with `proposed` fen more exceeds the rule's limit.

        Always comes back with verdicts, `INDETERMINATE` where none could be had before the deadline; refuses
        (`unknown-rule`, `manifest-expired`) what cannot be asked.
        """
        manifest, now, began = self._party.manifest, time.time(), time.monotonic()
        rules = [manifest.current_rule(rule_id, china_day(now)) for rule_id in rule_ids]
        manifest.require_current(manifest.hash, now)
        current = self._directory.now()  # before the check: what it says of then, the check sees
        questions = [Question(subject, rule, proposed) for rule in rules]
        pending, request = ask(self._party, questions, now, now + self._seconds, self._random)
        call = Call(manifest.terms.service_url, "/v1/checks", encode(request), {"Content-Type": CONTENT_TYPE})
        try:
            reply = self._peers.call(call, self._seconds - (time.monotonic() - began))
            outcome = service_message_of(CheckOutcome, call, reply, manifest.terms.service_signing_key)
            verdicts = read_outcome(pending, outcome, now + time.monotonic() - began)
        except ProtocolError as error:
            reason = {"timeout": Void.TIMEOUT, "unreachable": Void.SERVICE_UNAVAILABLE}.get(error.code, Void.REFUSED)
            verdicts = [(Verdict.INDETERMINATE, reason)] * len(rules)
        lanes = (_lane(rule, *given, current) for rule, given in zip(rules, verdicts, strict=True))
        return Answer(pending.check_id, pending.as_of, current, tuple(lanes))


def _lane(rule: Rule, verdict: Verdict, reason: Void | None, current: Completeness) -> LaneAnswer:
    """Where too few members' deposits are current a total may be too low: what exceeds does, nothing is within."""
    if verdict is Verdict.WITHIN and current.current < rule.min_current:
        return LaneAnswer(rule, Verdict.INDETERMINATE, Void.INCOMPLETE)
    return LaneAnswer(rule, verdict, reason)
