"""The service's line to the custodians: signed calls, and what is known of who does not answer or lags behind."""

import time
from collections.abc import Generator, Mapping, Sequence
from copy import copy
from enum import Enum
from typing import Self, TypeVar

from protocol.encoding import encode
from protocol.errors import ProtocolError, is_code
from protocol.messages import CheckAnswer, CheckCalls, CheckReplies, CheckReply
from protocol.party import ServiceParty
from service.check_attempts import CheckAttempt, choose_together, settle
from service.directory import DataDirectory
from transport import internal
from transport.certificates import Holder
from transport.http_answers import MAX_ANSWER
from transport.peers import Call, LateCall, Peers, Reply, Unreachable

M = TypeVar("M")

Asked = list[tuple[CheckAttempt, int]]
"""Attempts that ask one member in one message, and its slot in each."""

BEHIND = 0.5
"""The score of one that members report as behind: less than of one that this process saw fail, as members may lie."""

_MALFORMED = ProtocolError("malformed", "the custodian does not say to each call that it answers or refuses it")


class Trouble(Enum):
    """What was noticed of a custodian of a shard: its score, and for how many seconds it is remembered."""

    LAGS = (1.0, 20.0)
    """It disagreed, or missed a commit: remembered until the depositors have reported who lacks what, every 10 s."""
    NO_ANSWER = (2.0, 5.0)


class Custodians:
    """Calls custodians by slot of a shard."""

    def __init__(self, service: ServiceParty, peers: Peers, directory: DataDirectory) -> None:
        self._service = service
        self._peers = peers
        self._directory = directory
        self._until: dict[tuple[str, int, Trouble], float] = {}

    def under(self, service: ServiceParty) -> Self:
        """Return this line with the addresses of another manifest and the same memory."""
        other = copy(self)
        other._service = service  # noqa: SLF001  its own
        return other

    def call(
        self,
        shard: int,
        path: str,
        messages: Mapping[int, object],
        answer: type[M],
        seconds: float,
        most: int = MAX_ANSWER,
    ) -> dict[int, M | ProtocolError]:
        """Send each slot its message at once; return each slot's answer, of `most` bytes, or why there is none."""
        slots = self._service.manifest.committee(shard).slots
        calls = [self._call(slots[slot], path, encode(message), most) for slot, message in messages.items()]
        results: dict[int, M | ProtocolError] = {}
        for slot, reply in zip(messages, self._peers.exchange(calls, seconds), strict=True):
            try:
                results[slot] = internal.message_of(answer, reply)
            except ProtocolError as error:
                results[slot] = error
                if error.code in ("unreachable", "timeout"):
                    self.remember(slots[slot], shard, Trouble.NO_ANSWER)
        return results

    def call_member(self, member: str, path: str, message: object, answer: type[M], seconds: float) -> M:
        """Send one member a message and return its answer; raises `ProtocolError` with why there is none."""
        return internal.message_of(answer, self._peers.call(self._call(member, path, encode(message)), seconds))

    def _call(self, member: str, path: str, body: bytes, most: int = MAX_ANSWER) -> Call:
        return _call(self._service, member, path, body, most)

    def fly(self, attempts: Sequence[CheckAttempt]) -> Generator[None]:
        """Ask the four custodians of each attempt, each member in one message; yield whenever some may be over.

        An attempt is over when its own four have been heard. One that has no time left does not leave.
        """
        now = time.monotonic()
        leaving = [attempt for attempt in attempts if attempt.leave(now)]
        for attempt in leaving:
            attempt.is_beside_others = len(leaving) > 1
        choose_together(leaving)
        messages: dict[tuple[str, str], Asked] = {}
        for attempt in leaving:
            for slot in attempt.chosen:
                member = attempt.member(slot)
                url = attempt.service.manifest.member(member).url  # which is another under another manifest
                messages.setdefault((member, url), []).append((attempt, slot))
        # Who needs no proof of C is called first, and is at work while it is made.
        ordered = sorted(messages.items(), key=lambda message: any(one.is_proven_to(slot) for one, slot in message[1]))
        asked = [those for _, those in ordered]
        calls = [_check_call(member, url, those) for (member, url), those in ordered]
        seconds = max((attempt.seconds for attempt in leaving), default=0.0)
        for place, reply in self._peers.replies(calls, seconds):
            for (attempt, slot), said in zip(asked[place], _answers(reply, len(asked[place])), strict=True):
                attempt.answers[slot] = said
            settle([attempt for attempt, _ in asked[place]])
            yield

    def remember(self, member: str, shard: int, trouble: Trouble) -> None:
        """Ask this custodian of the shard last for a while."""
        _, seconds = trouble.value
        self._until[member, shard, trouble] = time.monotonic() + seconds

    def scores(self, shard: int, slots: list[int]) -> dict[int, float]:
        """Return how reluctantly each slot should be asked; 0 for no trouble known."""
        members, behind = self._service.manifest.committee(shard).slots, self._directory.behind()
        if not behind and max(list(self._until.values()), default=0.0) <= time.monotonic():
            return dict.fromkeys(slots, 0.0)
        return {
            slot: max(BEHIND if (shard, slot) in behind else 0.0, self._noticed(members[slot], shard)) for slot in slots
        }

    def _noticed(self, member: str, shard: int) -> float:
        now = time.monotonic()
        noticed = (trouble for trouble in Trouble if self._until.get((member, shard, trouble), now) > now)
        return max((trouble.value[0] for trouble in noticed), default=0.0)


def _call(service: ServiceParty, member: str, path: str, body: bytes, most: int) -> Call:
    manifest = service.manifest
    headers = {"Content-Type": internal.CONTENT_TYPE}
    if manifest.terms.plain_http:
        headers = internal.signed_headers(service.keys.signing, member, path, body, time.time())
    return Call(manifest.member(member).url, path, body, headers, to=Holder(member), most=most)


def _check_call(member: str, url: str, asked: Asked) -> LateCall:
    first, slot = asked[0]
    most = sum(attempt.answer_bytes for attempt, _ in asked)

    def make() -> Call:
        if len(asked) == 1:
            return _call(first.service, member, internal.CHECK, encode(first.call(slot)), most)
        body = encode(CheckCalls(calls=tuple(attempt.call(slot) for attempt, slot in asked)))
        return _call(first.service, member, internal.CHECKS, body, most)

    return LateCall(url, Holder(member), most, make)


def _answers(reply: Reply | Unreachable, count: int) -> Sequence[CheckAnswer | ProtocolError]:
    """Return what a custodian says to each of so many calls; what it says to all of them is said to each."""
    try:
        if count == 1:
            return [internal.message_of(CheckAnswer, reply)]
        replies = internal.message_of(CheckReplies, reply).replies
    except ProtocolError as error:
        return [error] * count
    return [_answer(one) for one in replies] if len(replies) == count else [_MALFORMED] * count


def _answer(reply: CheckReply) -> CheckAnswer | ProtocolError:
    if reply.answer is not None and reply.refusal is None:
        return reply.answer
    if reply.answer is None and reply.refusal is not None and is_code(reply.refusal):
        return ProtocolError(reply.refusal, "the custodian refused this call")
    return _MALFORMED
