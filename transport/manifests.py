"""Where the service hands out manifests, and how long one is good still: that one is withheld nothing else shows."""

import logging
import time
from enum import Enum

from protocol.manifest import Manifest

log = logging.getLogger(__name__)

NEWEST_PATH = "/v1/manifest"
BY_HASH_PATH = "/v1/manifests/"
"""Followed by a hash in hex."""
ENDING_DAYS = 14
_WARN_SECONDS = {"ending": 86_400.0, "expired": 600.0}


class Age(Enum):
    """What is to be done about a manifest: nothing, have the next one signed, or nothing works until it is."""

    GOOD = "good"
    ENDING = "ending"
    EXPIRED = "expired"

    @classmethod
    def of(cls, manifest: Manifest, now: float) -> "Age":
        """Return a manifest's age at a time, Unix seconds."""
        left = manifest.terms.valid_until - now
        if left <= 0:
            return cls.EXPIRED
        return cls.ENDING if left < ENDING_DAYS * 86_400 else cls.GOOD


class AgeWarnings:
    """Says in the log once a day that a manifest ends, and every ten minutes that it has."""

    def __init__(self) -> None:
        self._told: tuple[bytes, Age] | None = None
        self._again_at = 0.0

    def look(self, manifest: Manifest) -> None:
        """Say what is to be said of a manifest now."""
        now = time.time()
        age = Age.of(manifest, now)
        if age is Age.GOOD or (self._told == (manifest.hash, age) and time.monotonic() < self._again_at):
            return
        self._told, self._again_at = (manifest.hash, age), time.monotonic() + _WARN_SECONDS[age.value]
        serial, days = manifest.terms.serial, (manifest.terms.valid_until - now) / 86_400
        if age is Age.EXPIRED:
            log.error(
                "THE MANIFEST (SERIAL %d) HAS EXPIRED, %.1f DAYS AGO: NO CHECK AND NO DEPOSIT IS TAKEN. Have the"
                " alliance's admins publish the next; if they have, it is withheld from this party",
                serial,
                -days,
            )
        else:
            log.warning(
                "the manifest (serial %d) ends in %.1f days: have the alliance's admins publish the next; if they have,"
                " it is withheld from this party",
                serial,
                days,
            )
