"""The service's line to the custodians: signed calls, and a short memory of who did not answer or lags behind."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.party import ServiceParty
from transport import internal
from transport.peers import Call, Peers

M = TypeVar("M")

REMEMBER_SECONDS = 5.0
"""How long a custodian that did not answer, or that others disagree with, is asked only if it must be."""


@dataclass
class _Trouble:
    until: float
    score: float


class Custodians:
    """Calls custodians by slot of a shard."""

    def __init__(self, service: ServiceParty, peers: Peers) -> None:
        self._service = service
        self._peers = peers
        self._troubles: dict[tuple[str, int], _Trouble] = {}

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
                    self.remember(slots[slot], shard, 2.0)
        return results

    def call_member(self, member: str, path: str, message: object, answer: type[M], seconds: float) -> M:
        """Send one member a message and return its answer; raises `ProtocolError` with why there is none."""
        return internal.message_of(answer, self._peers.call(self._call(member, path, encode(message)), seconds))

    def _call(self, member: str, path: str, body: bytes) -> Call:
        headers = internal.signed_headers(self._service.keys.signing, member, path, body, time.time())
        return Call(self._service.manifest.member(member).url, path, body, headers)

    def remember(self, member: str, shard: int, score: float) -> None:
        """Ask this custodian of the shard last for a while."""
        self._troubles[member, shard] = _Trouble(time.monotonic() + REMEMBER_SECONDS, score)

    def scores(self, shard: int, slots: list[int]) -> dict[int, float]:
        """Return how reluctantly each slot should be asked; 0 for no trouble known."""
        members, now = self._service.manifest.committee(shard).slots, time.monotonic()
        troubles = {slot: self._troubles.get((members[slot], shard)) for slot in slots}
        return {slot: trouble.score if trouble and trouble.until > now else 0.0 for slot, trouble in troubles.items()}
