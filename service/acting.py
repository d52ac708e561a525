"""Under which manifest the service acts: every request takes one party at its begin and stays with it."""

import threading
import time
from dataclasses import dataclass

from protocol.errors import ProtocolError
from protocol.manifest import Manifest, require_same_connections
from protocol.messages import FRESHNESS_SECONDS
from protocol.party import ServiceKeys, ServiceParty
from service.published import Published
from transport.manifests import AgeWarnings


@dataclass(frozen=True)
class _Acts:
    """A party, and the one before, which is good for checks until a monotonic time."""

    party: ServiceParty
    before: ServiceParty | None = None
    before_until: float = 0.0


class Acting:
    """The service under what is published; refuses (`other-keys`) a manifest that lists other keys than it holds."""

    def __init__(self, keys: ServiceKeys, published: Published) -> None:
        self.published = published
        self._keys = keys
        self._lock = threading.Lock()
        self._acts = _Acts(ServiceParty(keys, published.newest()[1]))
        self._warnings = AgeWarnings()

    def now(self) -> ServiceParty:
        """Return the party under the newest manifest, as of a second ago."""
        return self._newest().party

    def of_check(self, manifest_hash: bytes) -> ServiceParty:
        """Return the party that a check is judged by: under the manifest that it names, if that is the newest, or the
        one before for as long as a check is fresh; else under the newest, which refuses it.
        """
        acts = self._newest()
        if manifest_hash != acts.party.manifest.hash and (
            acts.before is None or manifest_hash != acts.before.manifest.hash
        ):
            self.published.look_again()  # its requester may know a newer one already
            acts = self._newest()
        before = acts.before
        if before is not None and manifest_hash == before.manifest.hash and time.monotonic() < acts.before_until:
            return before
        return acts.party

    def of_deposit(self, manifest_hash: bytes) -> ServiceParty:
        """Return the party that a deposit is judged by: under the manifest that it was made under, if that is the
        newest or was, with the same keys; else under the newest, which refuses it.
        """
        newest = self.now()
        if manifest_hash != newest.manifest.hash:
            self.published.look_again()
            newest = self.now()
        earlier = self.published.known(manifest_hash)
        if earlier is None or earlier.hash == newest.manifest.hash:
            return newest
        try:
            require_same_connections(earlier.terms, newest.manifest.terms)
        except ProtocolError:  # keys that were replaced are good for nothing
            return newest
        return ServiceParty(self._keys, earlier.under(newest.manifest))

    def _newest(self) -> _Acts:
        _, manifest = self.published.newest()
        if manifest is not self._acts.party.manifest:
            with self._lock:
                self._take_up(manifest)
        self._warnings.look(manifest)
        return self._acts

    def _take_up(self, manifest: Manifest) -> None:
        before = self._acts.party
        if manifest.terms.serial <= before.manifest.terms.serial:
            return
        try:
            require_same_connections(before.manifest.terms, manifest.terms)
        except ProtocolError:  # put in place as a file, where another process has begun: this one waits for its end
            return
        fresh = ServiceParty(self._keys, manifest)
        self._acts = _Acts(fresh, before, time.monotonic() + FRESHNESS_SECONDS)
