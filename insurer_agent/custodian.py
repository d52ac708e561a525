"""The custodian's story: keeps others' tokens and shares, and answers checks over them, blind.

Each method is one call of the service (SPEC.md, sections 5 and 6). What a call needs recorded is committed before the
answer leaves.
"""

import hmac
import logging
import time
from collections.abc import Sequence
from copy import copy
from typing import Self

from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.keyring import Keyring
from protocol import committee_keys, signing
from protocol.check import accept_call, answer_call
from protocol.deposit import accept_commit, accept_prepare, confirm, give_receipts, holder_place
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.manifest import china_day
from protocol.messages import (
    RECHECK,
    RELAY_PURPOSE,
    CheckAnswer,
    CheckCall,
    CheckReply,
    CommitCall,
    HolderReceipts,
    KeyConfirmation,
    PrepareAnswer,
    PrepareCall,
    Relay,
    Relayed,
    SignedRelay,
)
from protocol.party import Party, RandomBytes
from transport.internal import CONTENT_TYPE, service_message_of
from transport.peers import Call, Peers
from transport.places import FEW_LANES, FOR_BATCHES, Places
from transport.problems import Problem

log = logging.getLogger(__name__)

_RELAY_SECONDS = 2.0


class Custodian:
    """The member as a holder of others' deposits."""

    def __init__(
        self,
        party: Party,
        custody: PostgresCustody,
        keyring: Keyring,
        peers: Peers,
        random: RandomBytes,
        *,
        threads: int,
    ) -> None:
        self._party = party
        self._custody = custody
        self._keyring = keyring
        self._peers = peers
        self._random = random
        self._recheck_places = Places(threads)
        self._batch_places = Places(threads, FOR_BATCHES)

    def under(self, party: Party) -> Self:
        """Return this custodian acting under another manifest, with the same store and the same places."""
        if party is self._party:
            return self
        other = copy(self)
        other._party = party  # noqa: SLF001  its own
        return other

    # --- checks

    def check(self, call: CheckCall) -> CheckAnswer:
        """Answer one attempt of a check; refuses (`busy`) a recheck or a check of a batch while many are under way."""
        if call.signed.statement.occasion == RECHECK:
            with self._recheck_places.taken():
                return self._check(call)
        if len(call.signed.statement.lanes) > FEW_LANES:
            with self._batch_places.taken():
                return self._check(call)
        return self._check(call)

    def check_together(self, calls: Sequence[tuple[Party, CheckCall]]) -> list[CheckReply]:
        """Answer attempts of several checks, each under its party, as `check` does; a refusal is of that call alone."""
        return [self._reply(party, call) for party, call in calls]

    def _reply(self, party: Party, call: CheckCall) -> CheckReply:
        try:
            return CheckReply(answer=self.under(party).check(call), refusal=None)
        except (ProtocolError, Problem) as error:
            return CheckReply(answer=None, refusal=error.code)

    def _check(self, call: CheckCall) -> CheckAnswer:
        # 3a. Signature, envelope, freshness, manifest, A, the proofs of D and, as one of two, of C, equal fields.
        accepted = accept_call(self._party, call, time.time())
        key = self._key(accepted.statement.shard, accepted.omitted)
        # 3b. Request hash, attempt and budget, durable before anything is answered; no lane is answered unpaid. Rows
        # and stamps of one snapshot.
        spent, view = self._custody.admit_and_view(accepted.admission(), accepted.reading())
        # 3c. Sum, add the proposal, garble.
        return answer_call(self._party, accepted, key, view, spent)

    # --- deposits

    def prepare(self, call: PrepareCall) -> PrepareAnswer:
        """Verify deposits and keep them unseen; confirm, and garble if of A, to the service alone."""
        now = time.time()
        # 3a. Both proofs, envelopes, equal fields; who garbles.
        _, omitted = holder_place(self._party, call, now)
        key = self._key(call.shard, omitted)
        accepted = accept_prepare(self._party, call, key, now)
        for item in accepted.deposits:
            if isinstance(item, ProtocolError):
                log.warning("deposit of %s refused: %s", call.depositor, item.code)
        # 3b. Kept pending, and the range check on record, durable before anything is answered.
        prepared = self._custody.prepare(accepted.proposed, now, accepted.attempt())
        # 3c. Confirm; of A, garble.
        return confirm(self._party, accepted, prepared)

    def commit(self, call: CommitCall) -> HolderReceipts:
        """Make deposits visible from their tick on, and give receipts for the depositor."""
        commits = accept_commit(self._party, call, time.time())
        kept = self._custody.commit(call.depositor, call.shard, commits)
        for state in kept:
            if isinstance(state, ProtocolError):
                log.warning("commit of a deposit of %s refused: %s", call.depositor, state.code)
        return give_receipts(self._party, call.depositor, call.shard, [item.deposit_id for item in commits], kept)

    # --- committee keys

    def receive_key(self, relayed: Relayed) -> KeyConfirmation:
        """Keep a committee key from its maker and confirm what is kept: the first of a committee's version stands."""
        key = committee_keys.receive(self._party, relayed.sender, relayed.envelope)
        kept = self._keyring.keep(key)
        return KeyConfirmation(check_value=kept.check_value(self._party.id))

    def exchange_keys(self) -> int:
        """Make the keys that this member makes and hand them out; return how many are missing or unconfirmed here."""
        missing = 0
        for shard in self._own_shards():
            for omitted in committee_keys.key_sets(self._party.manifest, shard):
                holders = committee_keys.holders(self._party.manifest, shard, omitted)
                if self._party.id in holders:
                    missing += self._exchange_key(shard, omitted, holders)
        return missing

    def _exchange_key(self, shard: int, omitted: int | None, holders: list[str]) -> int:
        version = self._party.manifest.committee(shard).version
        held = self._keyring.find(shard, omitted, version)
        if holders[0] != self._party.id:
            return 0 if held is not None else 1
        if held is None:
            self._keyring.keep(committee_keys.make(self._party, shard, omitted, int(time.time()), self._random))
            held = self._keyring.find(shard, omitted, version)
            assert held is not None
        unconfirmed = [holder for holder in holders[1:] if holder not in held.confirmed_by]
        return sum(not self._hand_out(held.key, holder) for holder in unconfirmed)

    def _hand_out(self, key: committee_keys.CommitteeKey, holder: str) -> bool:
        envelope = committee_keys.seal(self._party, key, holder, self._random(32))
        relay = Relay(sender=self._party.id, recipient=holder, issued_at=int(time.time()), envelope=envelope)
        signature = signing.sign(self._party.keys.signing, RELAY_PURPOSE, encode(relay))
        body = encode(SignedRelay(relay=relay, signature=signature))
        call = Call(self._party.manifest.terms.service_url, "/v1/relay", body, {"Content-Type": CONTENT_TYPE})
        try:
            reply = self._peers.call(call, _RELAY_SECONDS)
            public = self._party.manifest.terms.service_signing_key
            confirmation = service_message_of(KeyConfirmation, call, reply, public)
        except ProtocolError:
            return False
        if not hmac.compare_digest(confirmation.check_value, key.check_value(holder)):
            log.error("%s confirmed another committee key of shard %d than it was sent", holder, key.name.shard)
            return False
        self._keyring.confirm(key, holder)
        return True

    def missing_keys(self) -> int:
        """Return how many committee keys this member should hold and does not."""
        manifest = self._party.manifest
        return sum(
            self._keyring.find(shard, omitted, manifest.committee(shard).version) is None
            for shard in self._own_shards()
            for omitted in committee_keys.key_sets(manifest, shard)
            if self._party.id in committee_keys.holders(manifest, shard, omitted)
        )

    def forget_old(self, now: float) -> None:
        """Drop replay records, charges and deposits that can no longer matter."""
        today = china_day(now)
        self._custody.forget_old_checks(today)
        for month in self._custody.forget_old_deposits(today, now):
            log.info("deposits of days that no window reaches are dropped: %s", month)

    def _own_shards(self) -> list[int]:
        committees = self._party.manifest.terms.committees
        return [committee.shard for committee in committees if self._party.id in committee.slots]

    def _key(self, shard: int, omitted: int | None) -> committee_keys.CommitteeKey:
        return self._keyring.current(shard, omitted, self._party.manifest.committee(shard).version)
