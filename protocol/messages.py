"""Every message of checks and deposits, with its wire form. Fields cannot be reordered or changed within a version."""

import hashlib
from collections.abc import Sequence
from typing import Annotated

from protocol import signing
from protocol.channel import MAC_BYTES
from protocol.committee_keys import KeyName
from protocol.comparison import MAX_LANES, TAG_BYTES, Part
from protocol.encoding import (
    HASH,
    ID,
    NAME,
    POINT,
    Blob,
    Fixed,
    Maybe,
    Nested,
    Seq,
    Text,
    UInt,
    decode,
    first_field,
    message,
)
from protocol.errors import ProtocolError
from protocol.manifest import DAY, FLAG
from protocol.sharing import CHOSEN, MAX_SLOTS, RING_BITS
from protocol.token import SchnorrProof
from protocol.voprf import DleqProof

MAX_ATTEMPTS = 3
MAX_DEPOSITS = 256
MAX_TOGETHER = 16
"""How many checks' calls a message takes to one custodian."""
ROWS_TOGETHER = 64
"""How many rows a custodian reads for a call beside others'. They wait for it, and by that time their requesters could
tell of a person with many, as one has who is baited: such a check is to come alone, and refused as `MANY_ROWS`.
"""
MANY_ROWS = "many-rows"
FRESHNESS_SECONDS = 60
"""How far a custodian lets the time of a signed message lie from its own clock."""

_ENVELOPE_HASH = hashlib.sha256(b"cover-lookup/v1 envelope")
"""To copy and go on with: OpenSSL looks a hash up each time that it begins one."""
SHARD = UInt(32)
SLOT = UInt(8, most=MAX_SLOTS - 1)
TIME = UInt(64)
TICK = UInt(64, most=(1 << 63) - 1)
UNDERWRITING, RECHECK = 1, 2
OCCASION = UInt(8, least=UNDERWRITING, most=RECHECK)
"""Why a check is made. A recheck is of persons as they stand, has no proposal, and has a budget of its own."""
PERSON = UInt(16, most=MAX_LANES - 1)
"""The place of a person among those of a check; there are no more persons than lanes."""
LANE = UInt(16, most=MAX_LANES - 1)
SHARES = Seq(UInt(RING_BITS), most=MAX_SLOTS)
SALTS = Seq(Fixed(32), most=MAX_SLOTS)
ENVELOPE = Blob(1 << 20)
SIGNATURE = Fixed(signing.SIGNATURE_BYTES)
MAC = Fixed(MAC_BYTES)


def require_fresh(issued_at: int, now: float) -> None:
    """Refuse (`stale`) a signed message whose time is too far from this clock, in either direction."""
    if abs(now - issued_at) > FRESHNESS_SECONDS:
        raise ProtocolError("stale", "the request is more than 60 s from this clock; check both clocks")


def envelope_hash(envelope: bytes) -> bytes:
    """Return the 32-byte hash by which statements and receipts name an envelope."""
    hashed = _ENVELOPE_HASH.copy()
    hashed.update(envelope)
    return hashed.digest()


# --- a check -------------------------------------------------------------------------------------------------------


@message("lane", version=2)
class Lane:
    """What the service sees of one lane: a person, by its place in the check, under a rule."""

    person: Annotated[int, PERSON]
    rule_id: Annotated[str, NAME]
    rule_version: Annotated[int, UInt(32)]


def require_lanes(persons: int, lanes: Sequence[Lane]) -> None:
    """Refuse (`bad-lanes`) lanes of persons that are none, that leave one out, or that ask one question twice."""
    asked = {(lane.person, lane.rule_id) for lane in lanes}
    if len(asked) != len(lanes) or {person for person, _ in asked} != set(range(persons)):
        raise ProtocolError("bad-lanes", "each person of a check has lanes, and each lane a person and rule of its own")


@message("slot's envelope hash", version=1)
class EnvelopeHash:
    """Which slot an envelope is for, and its hash."""

    slot: Annotated[int, SLOT]
    hash: Annotated[bytes, HASH]


@message("check statement", version=2, kept=True)
class CheckStatement:
    """What the requester signs. `persons` are the blinded persons, B each."""

    requester: Annotated[str, NAME]
    check_id: Annotated[bytes, ID]
    occasion: Annotated[int, OCCASION]
    persons: Annotated[tuple[bytes, ...], Seq(POINT, least=1, most=MAX_LANES)]
    lanes: Annotated[tuple[Lane, ...], Seq(Nested(Lane), least=1, most=MAX_LANES)]
    shard: Annotated[int, SHARD]
    manifest_hash: Annotated[bytes, HASH]
    as_of: Annotated[int, DAY]
    issued_at: Annotated[int, TIME]
    envelopes: Annotated[tuple[EnvelopeHash, ...], Seq(Nested(EnvelopeHash), least=CHOSEN, most=MAX_SLOTS)]


@message("signed check", version=1, kept=True)
class SignedCheck:
    """A statement with the requester's Ed25519 signature."""

    statement: Annotated[CheckStatement, Nested(CheckStatement)]
    signature: Annotated[bytes, SIGNATURE]


@message("check request", version=1)
class CheckRequest:
    """Requester to service. Envelopes stand in the order of their hashes in the statement."""

    signed: Annotated[SignedCheck, Nested(SignedCheck)]
    envelopes: Annotated[tuple[bytes, ...], Seq(ENVELOPE, least=CHOSEN, most=MAX_SLOTS)]


@message("sealed person", version=1, kept=True)
class SealedPerson:
    """One person inside an envelope, for all lanes that are about it."""

    blinded: Annotated[bytes, POINT]
    unblinder: Annotated[bytes, POINT]
    proof: Annotated[SchnorrProof, Nested(SchnorrProof)]


@message("sealed lane", version=2)
class SealedLane:
    """One lane inside an envelope. `proposal` has the holder's shares in order of its held labels; none at slot e."""

    person: Annotated[int, PERSON]
    rule_id: Annotated[str, NAME]
    rule_version: Annotated[int, UInt(32)]
    proposal: Annotated[tuple[int, ...], SHARES]


@message("check envelope", version=2)
class CheckEnvelope:
    """The body of the requester's envelope to one custodian. `seed` is s, the same in all."""

    check_id: Annotated[bytes, ID]
    seed: Annotated[bytes, HASH]
    persons: Annotated[tuple[SealedPerson, ...], Seq(Nested(SealedPerson), least=1, most=MAX_LANES)]
    lanes: Annotated[tuple[SealedLane, ...], Seq(Nested(SealedLane), least=1, most=MAX_LANES)]
    shard: Annotated[int, SHARD]
    manifest_hash: Annotated[bytes, HASH]
    as_of: Annotated[int, DAY]
    issued_at: Annotated[int, TIME]


@message("check call", version=2)
class CheckCall:
    """Service to one custodian of A. `evaluated` has a C for each person, under one proof, which goes to the two of A
    that verify it (`evaluation_verifiers`).
    """

    signed: Annotated[SignedCheck, Nested(SignedCheck)]
    attempt: Annotated[int, UInt(8, least=1, most=MAX_ATTEMPTS)]
    chosen: Annotated[tuple[int, ...], Seq(SLOT, least=CHOSEN, most=CHOSEN)]
    tick: Annotated[int, TICK]
    evaluated: Annotated[tuple[bytes, ...], Seq(POINT, least=1, most=MAX_LANES)]
    proof: Annotated[DleqProof | None, Maybe(Nested(DleqProof))]
    envelope: Annotated[bytes, ENVELOPE]


@message("garbling header", version=2)
class Header:
    """What the label seed and the output mask are bound to."""

    check_id: Annotated[bytes, ID]
    attempt: Annotated[int, UInt(8, least=1, most=MAX_ATTEMPTS)]
    chosen: Annotated[tuple[int, ...], Seq(SLOT, least=CHOSEN, most=CHOSEN)]
    requester: Annotated[str, NAME]
    occasion: Annotated[int, OCCASION]
    shard: Annotated[int, SHARD]
    manifest_hash: Annotated[bytes, HASH]
    epoch: Annotated[int, UInt(32)]
    committee_key: Annotated[KeyName, Nested(KeyName)]
    as_of: Annotated[int, DAY]
    tick: Annotated[int, TICK]
    persons: Annotated[tuple[bytes, ...], Seq(HASH, least=1, most=MAX_LANES)]  # points that the statement has checked
    lanes: Annotated[tuple[Lane, ...], Seq(Nested(Lane), least=1, most=MAX_LANES)]


@message("check answer", version=2)
class CheckAnswer:
    """Custodian to service: the committee key it used, by name, and its part of the comparison.

    Of lanes whose budget is `spent` here, in order, the part has nothing that opens.
    """

    committee_key: Annotated[KeyName, Nested(KeyName)]
    spent: Annotated[tuple[int, ...], Seq(LANE, most=MAX_LANES)]
    part: Annotated[Part, Nested(Part)]


@message("check calls", version=1)
class CheckCalls:
    """Service to one custodian: calls of several checks that leave together, each judged by itself."""

    calls: Annotated[tuple[CheckCall, ...], Seq(Nested(CheckCall), least=1, most=MAX_TOGETHER)]


@message("check reply", version=1)
class CheckReply:
    """What came of one of several calls: an answer, or the code of a refusal; one of the two."""

    answer: Annotated[CheckAnswer | None, Maybe(Nested(CheckAnswer))]
    refusal: Annotated[str | None, Maybe(Text(64))]


@message("check replies", version=1)
class CheckReplies:
    """Custodian to service: a reply for each call, in their order."""

    replies: Annotated[tuple[CheckReply, ...], Seq(Nested(CheckReply), least=1, most=MAX_TOGETHER)]


@message("check outcome", version=2)
class CheckOutcome:
    """Service to requester: a tag a lane, opened by attempt `attempt` of custodians `chosen`; or a void and why.

    A lane without a tag is void by itself: its budget is spent at one of `chosen`.
    """

    check_id: Annotated[bytes, ID]
    attempt: Annotated[int, UInt(8)]
    chosen: Annotated[tuple[int, ...], Seq(SLOT, most=CHOSEN)]
    tags: Annotated[tuple[bytes | None, ...], Seq(Maybe(Fixed(TAG_BYTES)), most=MAX_LANES)]
    void: Annotated[str | None, Maybe(Text(64))]


# --- a deposit -----------------------------------------------------------------------------------------------------

ISSUE, CANCELLATION, AMENDMENT = 1, 2, 3
KIND = UInt(8, least=ISSUE, most=AMENDMENT)
COUNT_OF_KIND = {ISSUE: 1, CANCELLATION: -1, AMENDMENT: 0}
"""How many policies a deposit adds."""


@message("deposit facts", version=1, kept=True)
class DepositFacts:
    """What every holder of a deposit must agree on, besides P and the shares.

    No holder commits it at a tick before `not_before`, the highest that a receipt has told its depositor: otherwise
    the service could have a correction count earlier than what it corrects.
    """

    kind: Annotated[int, KIND]
    depositor: Annotated[str, NAME]
    deposit_id: Annotated[bytes, ID]
    earlier: Annotated[bytes | None, Maybe(ID)]
    shard: Annotated[int, SHARD]
    manifest_hash: Annotated[bytes, HASH]
    epoch: Annotated[int, UInt(32)]
    product: Annotated[str, NAME]
    day: Annotated[int, DAY]
    excluded: Annotated[int, SLOT]
    not_before: Annotated[int, TICK]


@message("deposit envelope", version=1)
class DepositEnvelope:
    """The body of the depositor's envelope to one holder.

    Shares of the amount and of the count, and the salt of each label's digest, stand in order of the held labels.
    """

    facts: Annotated[DepositFacts, Nested(DepositFacts)]
    blinded: Annotated[bytes, POINT]
    unblinder: Annotated[bytes, POINT]
    proof: Annotated[SchnorrProof, Nested(SchnorrProof)]
    amounts: Annotated[tuple[int, ...], SHARES]
    counts: Annotated[tuple[int, ...], SHARES]
    salts: Annotated[tuple[bytes, ...], SALTS]


@message("deposit", version=1)
class Deposit:
    """One deposit as the service sees it: envelopes in order of the holders' slots (all but the excluded one)."""

    deposit_id: Annotated[bytes, ID]
    blinded: Annotated[bytes, POINT]
    envelopes: Annotated[tuple[bytes, ...], Seq(ENVELOPE, most=MAX_SLOTS)]


@message("deposit batch", version=1)
class DepositBatch:
    """Deposits of one member that share shard and excluded slot, so that the same custodians hold all of them.

    With `made`, they count already and some holder lacks them: it is given the proof that others have kept, and
    nothing is garbled again.
    """

    depositor: Annotated[str, NAME]
    shard: Annotated[int, SHARD]
    excluded: Annotated[int, SLOT]
    manifest_hash: Annotated[bytes, HASH]
    issued_at: Annotated[int, TIME]
    made: Annotated[int, FLAG]
    deposits: Annotated[tuple[Deposit, ...], Seq(Nested(Deposit), least=1, most=MAX_DEPOSITS)]


@message("signed deposit batch", version=1)
class SignedBatch:
    """Depositor to service: the encoded batch and the depositor's signature of it."""

    batch: Annotated[bytes, Blob(64 << 20)]
    signature: Annotated[bytes, SIGNATURE]

    @property
    def depositor(self) -> str:
        """Whose batch it says it is; nothing else of it is decoded, which takes time."""
        name: str = first_field(DepositBatch, self.batch)
        return name

    @property
    def manifest_hash(self) -> bytes:
        """The manifest that it says it was made under; all of it is decoded."""
        return decode(DepositBatch, self.batch).manifest_hash


@message("evaluated deposit", version=1)
class EvaluatedDeposit:
    """One deposit on its way to one holder."""

    deposit_id: Annotated[bytes, ID]
    blinded: Annotated[bytes, POINT]
    evaluated: Annotated[bytes, POINT]
    envelope: Annotated[bytes, ENVELOPE]


@message("range order", version=1)
class RangeOrder:
    """Which four holders garble the range check of a prepare call; `nonce` is fresh for each attempt."""

    nonce: Annotated[bytes, ID]
    chosen: Annotated[tuple[int, ...], Seq(SLOT, least=CHOSEN, most=CHOSEN)]
    issued_at: Annotated[int, TIME]


@message("range header", version=1, kept=True)
class RangeHeader:
    """What a range check's label seed, output mask and tags are bound to. The sums begin at a day that follows from
    `issued_at`, so that all of A sum alike.
    """

    nonce: Annotated[bytes, ID]
    chosen: Annotated[tuple[int, ...], Seq(SLOT, least=CHOSEN, most=CHOSEN)]
    issued_at: Annotated[int, TIME]
    depositor: Annotated[str, NAME]
    shard: Annotated[int, SHARD]
    excluded: Annotated[int, SLOT]
    manifest_hash: Annotated[bytes, HASH]
    epoch: Annotated[int, UInt(32)]
    committee_key: Annotated[KeyName, Nested(KeyName)]
    deposits: Annotated[tuple[bytes, ...], Seq(ID, least=1, most=MAX_DEPOSITS)]
    blinded: Annotated[tuple[bytes, ...], Seq(HASH, least=1, most=MAX_DEPOSITS)]  # points that the call has checked


@message("range proof", version=1)
class RangeProof:
    """The tags that a range check opened for a deposit, and the hash of the header that they are made from."""

    header_hash: Annotated[bytes, HASH]
    floor: Annotated[bytes, Fixed(TAG_BYTES)]
    ceiling: Annotated[bytes, Fixed(TAG_BYTES)]
    alone: Annotated[bytes, Fixed(TAG_BYTES)]


@message("range answer", version=1)
class RangeAnswer:
    """One of A to the service: the committee key it used, by name, and its part of the garbling."""

    committee_key: Annotated[KeyName, Nested(KeyName)]
    part: Annotated[Part, Nested(Part)]


@message("prepare call", version=1)
class PrepareCall:
    """Service to one holder, first round: evaluated deposits, with one proof over all of them, and who garbles."""

    depositor: Annotated[str, NAME]
    shard: Annotated[int, SHARD]
    excluded: Annotated[int, SLOT]
    manifest_hash: Annotated[bytes, HASH]
    deposits: Annotated[tuple[EvaluatedDeposit, ...], Seq(Nested(EvaluatedDeposit), least=1, most=MAX_DEPOSITS)]
    proof: Annotated[DleqProof, Nested(DleqProof)]
    order: Annotated[RangeOrder | None, Maybe(Nested(RangeOrder))]


@message("prepared deposit", version=1)
class Prepared:
    """A holder's answer for one deposit, for the service alone: it depends on P and on shares.

    Either `refusal`, a code; or `confirmation`, `digests` (one per held label, in order) and, where the deposit was
    committed before, its tick and the proof that it was committed with.
    """

    confirmation: Annotated[bytes, MAC]
    digests: Annotated[tuple[bytes, ...], Seq(HASH, most=MAX_SLOTS)]
    tick: Annotated[int | None, Maybe(TICK)]
    range_proof: Annotated[RangeProof | None, Maybe(Nested(RangeProof))]
    refusal: Annotated[str | None, Maybe(Text(64))]


@message("prepare answer", version=1)
class PrepareAnswer:
    """One answer per deposit of the call, in its order; of A, where nothing of the call is refused, a garbling too."""

    answers: Annotated[tuple[Prepared, ...], Seq(Nested(Prepared), most=MAX_DEPOSITS)]
    garbled: Annotated[RangeAnswer | None, Maybe(Nested(RangeAnswer))]


@message("commit", version=1)
class Commit:
    """A deposit that its holders agreed on, the tick from which it counts, and what its range check opened."""

    deposit_id: Annotated[bytes, ID]
    tick: Annotated[int, TICK]
    range_proof: Annotated[RangeProof, Nested(RangeProof)]


@message("commit call", version=1)
class CommitCall:
    """Service to one holder, second round."""

    depositor: Annotated[str, NAME]
    shard: Annotated[int, SHARD]
    commits: Annotated[tuple[Commit, ...], Seq(Nested(Commit), least=1, most=MAX_DEPOSITS)]


COMMITTED, NEVER = 1, 2


@message("receipt statement", version=1)
class ReceiptStatement:
    """What a holder MACs for the depositor. A final "never" has tick 0 and an empty envelope hash."""

    state: Annotated[int, UInt(8, least=COMMITTED, most=NEVER)]
    depositor: Annotated[str, NAME]
    shard: Annotated[int, SHARD]
    slot: Annotated[int, SLOT]
    deposit_id: Annotated[bytes, ID]
    tick: Annotated[int, TICK]
    envelope_hash: Annotated[bytes, HASH]


@message("receipt", version=1)
class Receipt:
    """A holder's word to the depositor, through the service, that a deposit is committed or never will be."""

    slot: Annotated[int, SLOT]
    state: Annotated[int, UInt(8, least=COMMITTED, most=NEVER)]
    tick: Annotated[int, TICK]
    mac: Annotated[bytes, MAC]


@message("receipts of one holder", version=1)
class HolderReceipts:
    """Holder to service: a receipt per deposit of a commit or never call, in its order; None where refused."""

    receipts: Annotated[tuple[Receipt | None, ...], Seq(Maybe(Nested(Receipt)), most=MAX_DEPOSITS)]


@message("deposit outcome", version=1)
class DepositOutcome:
    """What came of one deposit: the receipts that were had, and a coarse reason where there are too few."""

    receipts: Annotated[tuple[Receipt, ...], Seq(Nested(Receipt), most=MAX_SLOTS)]
    reason: Annotated[str | None, Maybe(Text(64))]


@message("batch outcome", version=1)
class BatchOutcome:
    """Service to depositor: one outcome per deposit, in the batch's order. Nothing in it depends on P, C or a share."""

    outcomes: Annotated[tuple[DepositOutcome, ...], Seq(Nested(DepositOutcome), most=MAX_DEPOSITS)]


@message("abandon request", version=1)
class Abandon:
    """Depositor to service: have every holder say "never" to these deposits."""

    depositor: Annotated[str, NAME]
    shard: Annotated[int, SHARD]
    excluded: Annotated[int, SLOT]
    issued_at: Annotated[int, TIME]
    deposit_ids: Annotated[tuple[bytes, ...], Seq(ID, least=1, most=MAX_DEPOSITS)]


@message("signed abandon request", version=1)
class SignedAbandon:
    """An abandon request with the depositor's signature."""

    abandon: Annotated[Abandon, Nested(Abandon)]
    signature: Annotated[bytes, SIGNATURE]


@message("never call", version=1)
class NeverCall:
    """Service to one holder: give these deposits up for good unless they are committed; the depositor's own word."""

    signed: Annotated[SignedAbandon, Nested(SignedAbandon)]


# --- relayed between members ---------------------------------------------------------------------------------------

RELAY_PURPOSE = "relay"


@message("relay request", version=1)
class Relay:
    """Member to service: pass a sealed committee key on to its holder and bring the check value back."""

    sender: Annotated[str, NAME]
    recipient: Annotated[str, NAME]
    issued_at: Annotated[int, TIME]
    envelope: Annotated[bytes, Blob(4096)]


@message("signed relay request", version=1)
class SignedRelay:
    """A relay request with the sender's signature."""

    relay: Annotated[Relay, Nested(Relay)]
    signature: Annotated[bytes, SIGNATURE]


@message("relayed envelope", version=1)
class Relayed:
    """Service to holder: an envelope and the member it is from."""

    sender: Annotated[str, NAME]
    envelope: Annotated[bytes, Blob(4096)]


@message("confirmation of a committee key", version=1)
class KeyConfirmation:
    """Holder to maker, through the service: the check value."""

    check_value: Annotated[bytes, HASH]
