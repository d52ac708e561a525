"""An alliance of six in one process, for profiles step by step: parties, keys, and stores, in memory unless told."""

import secrets
import time
from collections.abc import Callable

from protocol import committee_keys
from protocol.check import MemberInMemory
from protocol.custody import Custody, MemoryCustody
from protocol.enrolment import enrol
from protocol.manifest import Manifest
from protocol.party import MemberKeys, Party, ServiceParty
from protocol.secret import Secret
from service.admin.manifests import build_terms
from service.admin.rules import RuleBook
from service.config import generate_keys, public_keys

MEMBERS = 6


class Alliance:
    """Six members and the service, one shard; insurer-01 deposits and asks. `store` opens a member's custody."""

    def __init__(
        self, book: RuleBook | None = None, store: Callable[[str, Manifest], Custody] = lambda *_: MemoryCustody()
    ) -> None:
        random, salt = secrets.token_bytes, Secret(secrets.token_bytes(32))
        keys = {f"insurer-{number:02d}": MemberKeys.generate(salt, random) for number in range(1, MEMBERS + 1)}
        service = generate_keys()
        terms = build_terms(
            alliance="profile",
            serial=1,
            enrolments=[enrol(own, name, name, "http://127.0.0.1:1") for name, own in keys.items()],
            service={"url": "http://127.0.0.1:1", **public_keys(service)},
            shards=1,
            expected_persons=0,
            tick_seconds=1,
            valid_days=1,
            local=True,
            tls_authority=None,
            book=book,
        )
        self.manifest = Manifest.of(terms)
        self.service = ServiceParty(service, self.manifest)
        self.parties = {name: Party(name, own, self.manifest) for name, own in keys.items()}
        self.stores = {name: store(name, self.manifest) for name in keys}
        self.insurer = self.parties["insurer-01"]
        self.keys = {slot: self._key(slot) for slot in range(len(self.manifest.committee(0).slots))}
        self.omitted = self.manifest.slot_of_group(0, self.insurer.id)
        assert self.omitted is not None
        self.key = self.keys[self.omitted]

    def _key(self, omitted: int) -> committee_keys.CommitteeKey:
        maker = self.parties[committee_keys.holders(self.manifest, 0, omitted)[0]]
        return committee_keys.make(maker, 0, omitted, int(time.time()), secrets.token_bytes)

    def members(self) -> dict[str, MemberInMemory]:
        """Return the members as `run_check` and `run_deposit` take them."""
        keys: dict[tuple[int, int | None], committee_keys.CommitteeKey]
        keys = {(0, slot): key for slot, key in self.keys.items()}
        return {name: MemberInMemory(party, self.stores[name], keys) for name, party in self.parties.items()}
