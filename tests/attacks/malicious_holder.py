"""What a malicious custodian says as a holder of deposits, and the deposits about which it does."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from malicious_custodian import LIMIT, Malicious, Stage
from malicious_custodian_says import flipped
from malicious_service import NO_PROOF

from insurer_agent.custodian import Custodian
from protocol.custody import Kept, Preparation
from protocol.deposit import (
    Entry,
    accept_prepare,
    confirm,
    give_receipts,
    is_complete,
    is_made,
    make_deposit,
    read_receipts,
    sign_batch,
)
from protocol.errors import ProtocolError
from protocol.identity import DocumentType, Identity
from protocol.manifest import china_day
from protocol.messages import ISSUE, CommitCall, HolderReceipts, PrepareAnswer, PrepareCall


@dataclass
class Policy:
    """A deposit of the limit for a person of whom nothing else is deposited, sent by another custodian of the shard."""

    stage: Stage
    shard: int
    person: tuple[str, str]
    depositor: int

    def __post_init__(self) -> None:
        party = self.stage.insiders[self.depositor].party
        identity = Identity(DocumentType(self.person[0]), self.person[1])
        entry = Entry(identity, ISSUE, "accident", china_day(time.time()), LIMIT)
        self.party, self.made = party, make_deposit(party, entry, secrets.token_bytes(16), secrets.token_bytes)

    def send(self) -> tuple[str | None, dict[int, Kept]]:
        """Send it, or send it again; return the reason that its depositor is told, and the receipts that it accepts."""
        outcome = self.stage.insiders[self.depositor].deposit(sign_batch(self.party, [self.made], time.time()))
        return outcome.outcomes[0].reason, read_receipts(self.party, self.made, outcome.outcomes[0])

    def state(self) -> tuple[str | None, str]:
        """Send it; return the reason and whether it is "complete", "made" or "unmade" then."""
        for _ in range(5):
            reason, states = self.send()
            if reason != "too-few-custodians":  # a busy machine
                break
        made = is_made(self.party.manifest, self.made, states), is_complete(self.party.manifest, self.made, states)
        return reason, {(True, True): "complete", (True, False): "made", (False, False): "unmade"}[made]


@dataclass
class Holder:
    """What the malicious custodian does as a holder, with the honest steps in pieces."""

    custodian: Malicious
    hashes: dict[bytes, bytes] = field(default_factory=dict)

    def confirm_unkept(self, call: PrepareCall) -> PrepareAnswer:
        party = self.custodian._party
        key = self.custodian._key(party, call.shard, party.manifest.slot_of_group(call.shard, call.depositor))
        accepted = accept_prepare(party, call, key, time.time())
        self.hashes |= {item.deposit_id: item.envelope_hash for item in accepted.proposed}
        kept = [Kept(None, never=False, envelope_hash=item.envelope_hash) for item in accepted.proposed]
        return confirm(party, accepted, Preparation(list(kept), None))

    def receipt_unkept(self, call: CommitCall) -> HolderReceipts:
        states = [Kept(one.tick, never=False, envelope_hash=self.hashes[one.deposit_id]) for one in call.commits]
        ids = [one.deposit_id for one in call.commits]
        return give_receipts(self.custodian._party, call.depositor, call.shard, ids, states)

    def prepared(self, call: PrepareCall, **changes: object) -> PrepareAnswer:
        """Keep it and say something else."""
        answer = Custodian.prepare(self.custodian, call)
        return replace(answer, answers=tuple(replace(one, **changes) for one in answer.answers))

    def judged(self, call: PrepareCall, **changes: object) -> PrepareAnswer:
        """Keep it, and where it is of the four that judge, garble something else."""
        answer = Custodian.prepare(self.custodian, call)
        if answer.garbled is None:
            return answer
        return replace(answer, garbled=replace(answer.garbled, part=replace(answer.garbled.part, **changes)))

    def other_digests(self, call: PrepareCall) -> PrepareAnswer:
        answer = Custodian.prepare(self.custodian, call)
        return replace(
            answer, answers=tuple(replace(one, digests=tuple(map(flipped, one.digests))) for one in answer.answers)
        )

    def receipts(self, call: CommitCall, **changes: object) -> HolderReceipts:
        """Commit, and receipt something else."""
        answer = Custodian.commit(self.custodian, call)
        return replace(answer, receipts=tuple(replace(one, **changes) for one in answer.receipts))

    def receipts_of(self, call: CommitCall, state: Callable[[Kept], Kept], ids: Callable[[bytes], bytes]) -> Any:  # noqa: ANN401  receipts
        """Commit, and MAC a receipt for another state or id."""
        custodian = self.custodian
        kept = [state(one) for one in custodian._custody.commit(call.depositor, call.shard, call.commits)]
        names = [ids(one.deposit_id) for one in call.commits]
        return give_receipts(custodian._party, call.depositor, call.shard, names, kept)

    def commit_earlier(self, call: CommitCall) -> HolderReceipts:
        commits = tuple(replace(one, tick=one.tick - 3) for one in call.commits)
        return Custodian.commit(self.custodian, replace(call, commits=commits))


def refuse(_: object) -> Any:  # noqa: ANN401  whatever a step returns
    raise ProtocolError("no", "not today")


def same(value: Any) -> Any:  # noqa: ANN401  any
    return value


HOLDING: dict[str, tuple[Callable[[Holder], Any], Callable[[Holder], Any], tuple[str | None, str]]] = {
    "confirms and receipts what it does not keep": (
        lambda h: h.confirm_unkept,
        lambda h: h.receipt_unkept,
        (None, "complete"),
    ),
    "refuses the call, as one with another clock or manifest does": (
        lambda _: refuse,
        lambda _: None,
        (None, "made"),
    ),
    "refuses each deposit": (
        lambda h: lambda call: h.prepared(call, refusal="wrong-earlier", digests=(), confirmation=bytes(32)),
        lambda _: None,
        ("refused", "unmade"),
    ),
    "says that it was given up": (
        lambda h: lambda call: h.prepared(call, refusal="deposit-abandoned", digests=(), confirmation=bytes(32)),
        lambda _: None,
        ("deposit-abandoned", "unmade"),
    ),
    "confirms other digests": (lambda h: h.other_digests, lambda _: None, ("refused", "unmade")),
    "confirms something else": (
        lambda h: lambda call: h.prepared(call, confirmation=bytes(32)),
        lambda _: None,
        ("refused", "unmade"),
    ),
    "confirms nothing": (lambda _: lambda _: PrepareAnswer(answers=(), garbled=None), lambda _: None, (None, "made")),
    "says that it was committed long ago": (
        lambda h: lambda call: h.prepared(call, tick=1),
        lambda _: None,
        (None, "complete"),
    ),
    "says that it was committed in the future": (
        lambda h: lambda call: h.prepared(call, tick=1 << 60),
        lambda _: None,
        (None, "complete"),
    ),
    "garbles nothing": (
        lambda h: lambda call: replace(Custodian.prepare(h.custodian, call), garbled=None),
        lambda _: None,
        (None, "complete"),
    ),
    "garbles under another session": (
        lambda h: lambda call: h.judged(call, session_check=bytes(32)),
        lambda _: None,
        (None, "complete"),
    ),
    "garbles no group": (
        lambda h: lambda call: h.judged(call, sent=(), vouched=()),
        lambda _: None,
        (None, "complete"),
    ),
    "claims a proof of its own making": (
        lambda h: lambda call: h.prepared(call, tick=1, range_proof=NO_PROOF),
        lambda _: None,
        (None, "complete"),
    ),
    "refuses to commit": (lambda _: None, lambda _: refuse, (None, "made")),
    "gives a receipt that is none": (
        lambda _: None,
        lambda h: lambda call: h.receipts(call, mac=bytes(32)),
        (None, "made"),
    ),
    "gives a receipt in the name of another": (
        lambda _: None,
        lambda h: lambda call: h.receipts(call, slot=0),
        (None, "made"),
    ),
    "gives a receipt for another tick": (
        lambda _: None,
        lambda h: lambda call: h.receipts_of(call, lambda kept: replace(kept, tick=kept.tick - 1), same),
        (None, "made"),
    ),
    "gives a receipt for another deposit": (
        lambda _: None,
        lambda h: lambda call: h.receipts_of(call, same, flipped),
        (None, "made"),
    ),
    "gives a receipt that says never": (
        lambda _: None,
        lambda h: lambda call: h.receipts_of(call, lambda _: Kept(None, never=True, envelope_hash=b""), same),
        (None, "made"),
    ),
    "gives no receipt": (lambda _: None, lambda _: lambda _: HolderReceipts(receipts=()), (None, "made")),
    "commits at an earlier tick": (lambda _: None, lambda h: h.commit_earlier, (None, "made")),
}
"""What it says at prepare and at commit (None: the truth), and what its depositor comes to."""
