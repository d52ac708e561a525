"""The depositor's story: the outbox becomes deposits that every holder has receipted (SPEC.md, section 5)."""

import logging
import time
from collections.abc import Iterable
from itertools import groupby

from insurer_agent.acting import Acting
from insurer_agent.store.outbox import Attempt, Lacking, Outbox, Outgoing, counts_still
from protocol.custody import Kept
from protocol.deposit import REFUSED, MadeDeposit, is_complete, is_made, make_deposit, read_receipts, sign_batch
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.messages import BatchOutcome, DepositOutcome
from protocol.party import Party, RandomBytes
from protocol.stamps import MAX_AS_OF_AGE, tick_at
from transport.internal import CONTENT_TYPE, service_message_of
from transport.peers import Call, Peers

log = logging.getLogger(__name__)

ROUND = 2048
BATCH = 128
_FIRST_HOLD_SECONDS, _MOST_HOLD_SECONDS = 1.0, 60.0
FINAL = frozenset({REFUSED, "deposit-abandoned", "deposit-reused"})
"""Reasons that concern the one deposit; others pass, or concern all."""


class Depositor:
    """Sends what is due, and again what is not receipted by all holders."""

    def __init__(self, acting: Acting, peers: Peers, outbox: Outbox, seconds: float, random: RandomBytes) -> None:
        self._acting = acting
        self._peers = peers
        self._outbox = outbox
        self._seconds = seconds
        self._random = random
        self._holds = _Holds()

    def send_due(self) -> int:
        """Send one round of what is due, and what holders that can be reached still lack; return how many were sent."""
        party = self._acting.now()
        lacking, due = self._outbox.lacking(party.manifest), self._outbox.due(ROUND)
        self._send(party, due)
        return len(due) + sum(self._repeat(party, one) for one in lacking)

    def _repeat(self, party: Party, lacking: Lacking) -> int:
        """Send again what counts already to whom it is lacking at: a batch to try, all where a receipt comes."""
        if not self._holds.allow(lacking, time.monotonic()):
            return 0
        due = self._outbox.repeats(lacking, BATCH if self._holds.doubt(lacking) else ROUND)
        attempts = self._send(party, due)
        reached = {slot for attempt in attempts for slot, kept in attempt.states.items() if kept.tick is not None}
        evened = any(attempt.complete for attempt in attempts)
        self._holds.note(lacking, reached, time.monotonic(), evened=evened)
        return len(due)

    def _send(self, party: Party, due: list[Outgoing]) -> list[Attempt]:
        now, fresh = time.time(), {}
        not_before = self._not_before(party, now)
        for item in due:
            if item.made is None and item.entry is not None:
                if not counts_still(item.entry, now):  # it has waited until no rule's window reaches its day
                    self._outbox.record([Attempt(item, made=True, complete=True)])
                    continue
                try:
                    fresh[item.seq] = make_deposit(
                        party, item.entry, item.deposit_id, self._random, not_before=not_before
                    )
                except ProtocolError as error:
                    log.warning("a deposit of shard %d cannot be made: %s", item.shard, error.code)
                    self._outbox.record([Attempt(item, refused=True, reason=error.code)])
        # Stored before the first byte leaves, so that a repeat is the same bytes.
        stored = self._outbox.store_made(fresh)
        ready = [(item, item.made or stored.get(item.seq)) for item in due]
        attempts: list[Attempt] = []
        for counts in (False, True):  # what counts already needs no range check
            sent = [(item, made) for item, made in ready if made is not None and item.counts is counts]
            for batch in batches(sent, self._random):
                attempts += self._send_batch(party, batch, repeat=counts)
        return attempts

    def anything_due(self) -> bool:
        """Tell whether a round would send anything."""
        if not self._outbox.any_open():
            return False
        now, manifest = time.monotonic(), self._acting.now().manifest
        return bool(self._outbox.due(1)) or any(
            self._holds.allow(lacking, now) for lacking in self._outbox.lacking(manifest)
        )

    def _not_before(self, party: Party, now: float) -> int:
        """Return the tick before which a deposit made at `now` must not count: after all that has been made.

        Not lower than what no check may be as of any more, so holders do not see since when nothing was deposited.
        """
        floor = tick_at(now - MAX_AS_OF_AGE, party.manifest.terms.tick_seconds)
        return max(floor, self._outbox.highest_tick())

    def _send_batch(self, party: Party, batch: list[tuple[Outgoing, MadeDeposit]], *, repeat: bool) -> list[Attempt]:
        made = [deposit for _, deposit in batch]
        signed = sign_batch(party, made, time.time(), repeat=repeat)
        manifest = party.manifest
        call = Call(manifest.terms.service_url, "/v1/deposits", encode(signed), {"Content-Type": CONTENT_TYPE})
        try:
            reply = self._peers.call(call, self._seconds)
            key = manifest.terms.service_signing_key
            outcomes = service_message_of(BatchOutcome, call, reply, key).outcomes
        except ProtocolError as error:
            outcomes = tuple(DepositOutcome(receipts=(), reason=error.code) for _ in made)
        if len(outcomes) != len(made):
            outcomes = tuple(DepositOutcome(receipts=(), reason="malformed") for _ in made)
        for reason in sorted({outcome.reason for outcome in outcomes if outcome.reason is not None}):
            log.warning("deposits of shard %d are not made yet: %s", made[0].shard, reason)
        current = tick_at(time.time(), manifest.terms.tick_seconds) + 1  # clocks may differ by a tick
        attempts = []
        for (item, deposit), outcome in zip(batch, outcomes, strict=True):
            told = read_receipts(party, deposit, outcome)
            # Such a receipt counts once its time has come. Else it would not enter the first tick of a correction.
            states = {slot: kept for slot, kept in told.items() if kept.tick is None or kept.tick <= current}
            if len(states) < len(told):
                log.error("a receipt states a tick in the future; check the clocks of service and custodians")
            had = {slot: Kept(tick, never=False, envelope_hash=b"") for slot, tick in item.receipts.items()}
            attempts.append(
                Attempt(
                    item,
                    states,
                    made=is_made(manifest, deposit, had | states),
                    complete=is_complete(manifest, deposit, had | states),
                    refused=outcome.reason in FINAL,
                    reason=outcome.reason,
                )
            )
        self._outbox.record(attempts)
        return attempts


_Place = tuple[int, int, int | None]
"""Shard, excluded slot, and the slot that lacks something."""


class _Holds:
    """Which slots of a shard are not asked for a while, as they gave no receipt: with a holder down for a day, what it
    lacks grows to many deposits, and each repeat costs all holders.
    """

    def __init__(self) -> None:
        self._held: dict[_Place, tuple[float, float]] = {}

    @staticmethod
    def _places(lacking: Lacking) -> list[_Place]:
        # By the excluded slot, too: what one holder refuses of some must not keep others of it waiting.
        slots: list[int | None] = [*lacking.slots] or [None]  # None: ticks differ
        return [(lacking.shard, lacking.excluded, slot) for slot in slots]

    def allow(self, lacking: Lacking, now: float) -> bool:
        """Tell whether one of those that lack something may be asked by now."""
        return any(self._held.get(place, (0.0, now))[1] <= now for place in self._places(lacking))

    def doubt(self, lacking: Lacking) -> bool:
        """Tell whether all of them gave no receipt when they were last asked."""
        return all(place in self._held for place in self._places(lacking))

    def note(self, lacking: Lacking, reached: set[int], now: float, *, evened: bool) -> None:
        """Note what came of asking: who gave receipts, and whether ticks were made equal."""
        for place in self._places(lacking):
            if (place[2] in reached) if place[2] is not None else evened:
                self._held.pop(place, None)
            else:
                pause = min(2 * self._held.get(place, (_FIRST_HOLD_SECONDS / 2, 0.0))[0], _MOST_HOLD_SECONDS)
                self._held[place] = (pause, now + pause)


def batches(
    ready: list[tuple[Outgoing, MadeDeposit]], random: RandomBytes
) -> Iterable[list[tuple[Outgoing, MadeDeposit]]]:
    """Group by shard, excluded slot and manifest, which a batch has in common, and cut to random sizes.

    Two deposits of one person never share a batch, as the later waits for the earlier. Were batches as large as can
    be, one that follows by itself would tell the service that its person was in the one before. So a coin decides, each
    time, whether as many go as can or any number of them: often enough whole, as a batch costs all holders something.
    """

    def place(entry: tuple[Outgoing, MadeDeposit]) -> tuple[int, int, bytes]:
        return (entry[1].shard, entry[1].excluded, entry[1].manifest_hash)

    for _, group in groupby(sorted(ready, key=place), key=place):
        items = list(group)
        while items:
            most, drawn = min(BATCH, len(items)), random(9)
            size = most if drawn[8] & 1 else 1 + int.from_bytes(drawn[:8], "big") % most
            yield items[:size]
            items = items[size:]
