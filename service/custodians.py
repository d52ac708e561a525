"""The service's line to the custodians: signed calls, and what is known of who does not answer or lags behind."""

import time
from collections.abc import Mapping
from copy import copy
from enum import Enum
from typing import Self, TypeVar

from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.party import ServiceParty
from service.directory import DataDirectory
from transport import internal
from transport.certificates import Holder
from transport.peers import Call, Peers

M = TypeVar("M")

BEHIND = 0.5
"""The score of one that members report as behind: less than of one that this process saw fail, as members may lie."""


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
        self, shard: int, path: str, messages: Mapping[int, object], answer: type[M], seconds: float
    ) -> dict[int, M | ProtocolError]:
        """Send each slot its message at once; return each slot's answer, or why there is none."""
        slots = self._service.manifest.committee(shard).slots
        calls = [self._call(slots[slot], path, encode(message)) for slot, message in messages.items()]
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

    def _call(self, member: str, path: str, body: bytes) -> Call:
        manifest = self._service.manifest
        headers = {"Content-Type": internal.CONTENT_TYPE}
        if manifest.terms.plain_http:
            headers = internal.signed_headers(self._service.keys.signing, member, path, body, time.time())
        return Call(manifest.member(member).url, path, body, headers, to=Holder(member))

    def remember(self, member: str, shard: int, trouble: Trouble) -> None:
        """Ask this custodian of the shard last for a while."""
        _, seconds = trouble.value
        self._until[member, shard, trouble] = time.monotonic() + seconds

    def scores(self, shard: int, slots: list[int]) -> dict[int, float]:
        """Return how reluctantly each slot should be asked; 0 for no trouble known."""
        members, behind = self._service.manifest.committee(shard).slots, self._directory.behind()
        return {
            slot: max(BEHIND if (shard, slot) in behind else 0.0, self._noticed(members[slot], shard)) for slot in slots
        }

    def _noticed(self, member: str, shard: int) -> float:
        now = time.monotonic()
        noticed = (trouble for trouble in Trouble if self._until.get((member, shard, trouble), now) > now)
        return max((trouble.value[0] for trouble in noticed), default=0.0)
