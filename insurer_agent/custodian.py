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

from insurer_agent.store.custody import Admitted, PostgresCustody
from insurer_agent.store.keyring import Keyring
from protocol import committee_keys, signing
from protocol.check import AcceptedCheck, GarbledCheck, accept_call, garble_calls
from protocol.committee_keys import CommitteeKey
from protocol.deposit import accept_commit, accept_prepare, confirm, give_receipts, holder_place
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.manifest import china_day
from protocol.messages import (
    RECHECK,
    RELAY_PURPOSE,
    ROWS_TOGETHER,
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
from transport.problems import Problem, fault

log = logging.getLogger(__name__)

_RELAY_SECONDS = 2.0
_Accepted = tuple[Party, AcceptedCheck, CommitteeKey]


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
        places = self._places_of(call)
        if places is None:
            return self._check(call)
        with places.taken():
            return self._check(call)

    def _check(self, call: CheckCall) -> CheckAnswer:
        (answer,) = self._answer([(self._party, call)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def check_together(self, calls: Sequence[tuple[Party, CheckCall]]) -> list[CheckReply]:
        """Answer attempts of several checks, each under its party, as `check` does; a refusal is of that call alone.

        Those of underwriters who wait are answered in one go, and each other by itself where there is a place for it.
        """
        places = [self._places_of(call) for _, call in calls]
        waiting = [number for number, of_call in enumerate(places) if of_call is None]
        found = dict(zip(waiting, self._answer([calls[number] for number in waiting]), strict=True))
        for number, of_call in enumerate(places):
            if of_call is not None:
                try:
                    with of_call.taken():
                        (found[number],) = self._answer([calls[number]])
                except ProtocolError as error:
                    found[number] = error
        return [_reply(found[number]) for number in range(len(calls))]

    def _places_of(self, call: CheckCall) -> Places | None:
        """Return the places of a check that can wait."""
        if call.signed.statement.occasion == RECHECK:
            return self._recheck_places
        return self._batch_places if len(call.signed.statement.lanes) > FEW_LANES else None

    def _answer(self, calls: Sequence[tuple[Party, CheckCall]]) -> list[CheckAnswer | Exception]:
        found: dict[int, CheckAnswer | Exception] = {}
        accepted: dict[int, _Accepted] = {}
        now = time.time()
        for place, (party, call) in enumerate(calls):
            try:
                # 3a. Signature, envelope, freshness, manifest, A, proofs of D and, as one of two, of C, equal fields.
                judged = accept_call(party, call, now)
                key = self._key(party, judged.statement.shard, judged.omitted)
            except Exception as error:  # noqa: BLE001  of this call alone, whatever it is; its caller is told
                found[place] = error
            else:
                accepted[place] = party, judged, key
        if accepted:
            most_rows = ROWS_TOGETHER if len(calls) > 1 else None
            found |= zip(accepted, self._admit_and_garble(list(accepted.values()), most_rows), strict=True)
        return [found[place] for place in range(len(calls))]

    def _admit_and_garble(self, accepted: Sequence[_Accepted], most_rows: int | None) -> list[CheckAnswer | Exception]:
        views: list[Admitted | Exception] = []
        is_small = sum([len(one.lanes) for _, one, _ in accepted]) <= FEW_LANES
        # 3b. Request hash, attempt and budget, durable before anything is answered; no lane is answered unpaid. Rows
        # and stamps of one snapshot.
        asked = [(one.admission(), one.reading()) for _, one, _ in accepted]
        with self._custody.admitting(asked, most_rows) as admitted:
            # 3c. Garble: nothing that is stored comes into it, so a little is done while the database is at work, and
            # what takes long when its connection is free again.
            garbled = garble_calls(accepted) if is_small else []
            for number in range(len(accepted)):
                try:
                    views.append(admitted(number))
                except Exception as error:  # noqa: BLE001  of this check alone, whatever it is; its caller is told
                    views.append(error)
        garbled = garbled or garble_calls(accepted)
        # 3d. Sum, add the proposal, activate labels.
        return [
            view if isinstance(view, Exception) else _answered(one, view)
            for one, view in zip(garbled, views, strict=True)
        ]

    # --- deposits

    def prepare(self, call: PrepareCall) -> PrepareAnswer:
        """Verify deposits and keep them unseen; confirm, and garble if of A, to the service alone."""
        now = time.time()
        # 3a. Both proofs, envelopes, equal fields; who garbles.
        _, omitted = holder_place(self._party, call, now)
        key = self._key(self._party, call.shard, omitted)
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

    def _hand_out(self, key: CommitteeKey, holder: str) -> bool:
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

    def _key(self, party: Party, shard: int, omitted: int | None) -> CommitteeKey:
        return self._keyring.current(shard, omitted, party.manifest.committee(shard).version)


def _answered(garbled: GarbledCheck, admitted: Admitted) -> CheckAnswer | Exception:
    try:
        return garbled.answer(*admitted)
    except Exception as error:  # noqa: BLE001  as above
        return error


def _reply(answer: CheckAnswer | Exception) -> CheckReply:
    if isinstance(answer, CheckAnswer):
        return CheckReply(answer=answer, refusal=None)
    if isinstance(answer, ProtocolError | Problem):
        return CheckReply(answer=None, refusal=answer.code)
    log.error("internal fault: %s", fault(answer))
    return CheckReply(answer=None, refusal="internal-error")
