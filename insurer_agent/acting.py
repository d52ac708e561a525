"""Under which manifest a process of the agent acts: it asks the service for the newest and takes it up as it runs.

Each operation takes one party at its begin and stays with it, so no check mixes two manifests. Whatever the service
hands out, hides or bends, nothing is acted on that the admins whose keys this agent pins have not signed.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from functools import partial

from insurer_agent.store.manifests import Manifests
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, require_same_connections
from protocol.messages import FRESHNESS_SECONDS
from protocol.party import Party
from transport.http_answers import NOT_MODIFIED
from transport.internal import body_of
from transport.manifests import BY_HASH_PATH, NEWEST_PATH, AgeWarnings
from transport.peers import Call, Peers, Reply
from transport.settings import SettingsError

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 20.0
"""After how long the service is asked again: so that all agents have a new manifest within half a minute."""
_ASK_SECONDS = 2.0
_ASK_NOW_SECONDS = 0.4
"""How long the service is waited for while a call waits that is made under an unknown manifest."""
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Source:
    """Where newer manifests come from: the agent's database, which its other processes fill, and the service."""

    manifests: Manifests
    peers: Peers


@dataclass(frozen=True)
class _Acts:
    """A party, the one before, which is good for checks until a monotonic time, and those met in deposits since."""

    party: Party
    before: Party | None = None
    before_until: float = 0.0
    earlier: dict[bytes, Party] = field(default_factory=dict)


class Acting:
    """See the module. Without a source it acts under one manifest for good."""

    def __init__(self, party: Party, source: Source | None = None) -> None:
        self._acts = _Acts(party)
        self._source = source
        self._lock = threading.Lock()
        self._looked_at = -_LOOK_SECONDS
        self._warnings = AgeWarnings()

    def now(self) -> Party:
        """Return the party under the newest manifest: what an operation of this agent's own takes at its begin."""
        return self._acts.party

    def of_check(self, manifest_hash: bytes) -> Party:
        """Return the party that a call of a check is judged by: under the manifest that it names, if that is the
        newest, or the one before for as long as a check is fresh; else under the newest, which refuses it.
        """
        found = self._for_check(manifest_hash)
        if found is None:
            self._look(manifest_hash, deposit=False)
            found = self._for_check(manifest_hash)
        return found or self.now()

    def of_deposit(self, manifest_hash: bytes) -> Party:
        """Return the party that a deposit is judged by: under the manifest that it was made under, if that is the
        newest or one that the newest followed; else under the newest, which refuses it.
        """
        found = self._for_deposit(manifest_hash)
        if found is None:
            self._look(manifest_hash, deposit=True)
            found = self._for_deposit(manifest_hash)
        return found or self.now()

    def follow(self) -> None:
        """Take up the newest manifest, and say if it ends. Raises `ProtocolError` with why the service gave none."""
        try:
            with self._lock:
                if self._source is not None:
                    self._read_newest(self._source)
                    self._ask_newest(self._source, _ASK_SECONDS)
        finally:
            self._warnings.look(self.now().manifest)

    # --- which is which

    def _for_check(self, manifest_hash: bytes) -> Party | None:
        acts = self._acts
        if manifest_hash == acts.party.manifest.hash:
            return acts.party
        before = acts.before
        if before is not None and manifest_hash == before.manifest.hash and time.monotonic() < acts.before_until:
            return before
        return None

    def _for_deposit(self, manifest_hash: bytes) -> Party | None:
        acts = self._acts
        return acts.party if manifest_hash == acts.party.manifest.hash else acts.earlier.get(manifest_hash)

    # --- finding others

    def _look(self, manifest_hash: bytes, *, deposit: bool) -> None:
        """Look for a manifest that a call names, at most once a second; who comes meanwhile waits for what is found."""
        came = time.monotonic()
        with self._lock:
            if self._source is None or self._looked_at > came - _LOOK_SECONDS:
                return
            source = self._source
            steps = [partial(self._read_newest, source), partial(self._ask_newest, source, _ASK_NOW_SECONDS)]
            if deposit:
                steps.insert(1, partial(self._read_earlier, source, manifest_hash))
                steps.append(partial(self._ask_earlier, source, manifest_hash))
            try:
                for step in steps:
                    try:
                        step()
                    except ProtocolError as error:
                        log.warning("the manifest that a call names is not to be had: %s", error.code)
                    except SettingsError:
                        log.warning("the manifest that a call names is not for this agent's settings")
                    if self._for_deposit(manifest_hash) is not None:
                        return
            finally:
                self._looked_at = time.monotonic()

    def _read_newest(self, source: Source) -> None:
        """Take up what another process of this agent has taken."""
        self._take_up(source.manifests.newest())

    def _ask_newest(self, source: Source, seconds: float) -> None:
        manifest = self.now().manifest
        headers = {"If-None-Match": f'"{manifest.hash.hex()}"'}
        call = Call(manifest.terms.service_url, NEWEST_PATH, b"", headers, method="GET")
        reply = source.peers.call(call, seconds)
        if not (isinstance(reply, Reply) and reply.status == NOT_MODIFIED):
            self._take_up(source.manifests.take(body_of(reply), time.time()))

    def _read_earlier(self, source: Source, manifest_hash: bytes) -> None:
        self._take_earlier(source.manifests.by_hash(manifest_hash))

    def _ask_earlier(self, source: Source, manifest_hash: bytes) -> None:
        url = self.now().manifest.terms.service_url
        call = Call(url, BY_HASH_PATH + manifest_hash.hex(), b"", {}, method="GET")
        data = body_of(source.peers.call(call, _ASK_NOW_SECONDS))
        self._take_earlier(source.manifests.keep_earlier(data, manifest_hash))

    def _take_up(self, manifest: Manifest | None) -> None:
        party = self.now()
        if manifest is None or manifest.terms.serial <= party.manifest.terms.serial:
            return
        require_same_connections(party.manifest.terms, manifest.terms)  # put in place where another process has begun
        fresh = Party(party.id, party.keys, manifest)
        self._acts = _Acts(fresh, party, time.monotonic() + FRESHNESS_SECONDS)
        log.warning("the manifest of serial %d is in force", manifest.terms.serial)

    def _take_earlier(self, manifest: Manifest | None) -> None:
        acts = self._acts
        if manifest is not None and manifest.terms.serial < acts.party.manifest.terms.serial:
            require_same_connections(manifest.terms, acts.party.manifest.terms)  # as when it was kept
            earlier = manifest.under(acts.party.manifest)
            acts.earlier[manifest.hash] = Party(acts.party.id, acts.party.keys, earlier)
