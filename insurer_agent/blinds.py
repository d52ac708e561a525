"""Blinds drawn ahead, while nobody waits: half of what a question takes of a processor knows no person yet."""

import threading
from collections import deque

from protocol.check import fresh_blind
from protocol.group import Element
from protocol.party import RandomBytes
from protocol.token import Blind


class Blinds:
    """A few blinds for the service's key, each given once; safe to share between threads.

    None is drawn before the first is asked for, so that processes that come of one never have the same.
    """

    def __init__(self, most: int, random: RandomBytes) -> None:
        self._random = random
        self._drawn = deque[Blind](maxlen=most)
        self._key: Element | None = None
        self._refilling = threading.Lock()

    def take(self, service_key: Element) -> Blind:
        """Return a blind that nobody else has had, drawn now if there is none for this key."""
        self._key = service_key
        try:
            while (drawn := self._drawn.popleft()).service_key != service_key:
                pass  # of a key that the service no longer has
        except IndexError:
            return fresh_blind(service_key, self._random)
        return drawn

    def refill(self) -> None:
        """Draw what is missing, unless another thread is at it."""
        if self._refilling.acquire(blocking=False):
            try:
                while self._key is not None and len(self._drawn) < (self._drawn.maxlen or 0):
                    self._drawn.append(fresh_blind(self._key, self._random))
            finally:
                self._refilling.release()
