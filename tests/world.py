"""A whole alliance in memory, seeded, for tests of the protocol."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from protocol import channel, committee_keys, comparison, garbling, group, signing
from protocol.check import MemberInMemory, Question, Verdict, Void, run_check
from protocol.committee import draw_committee
from protocol.comparison import Garbled, LaneInput, Part, Seed
from protocol.custody import Kept, MemoryCustody
from protocol.deposit import Entry, MadeDeposit, run_deposit
from protocol.group import Scalar
from protocol.identity import DocumentType, Identity, salt_check
from protocol.manifest import PERSON, Committee, Manifest, Member, Rule, Terms, china_day
from protocol.messages import ISSUE
from protocol.party import MemberKeys, Party, ServiceKeys, ServiceParty, random_scalar
from protocol.secret import Secret
from protocol.sharing import SHARE_BYTES, Chosen, Label, Share, add_shares, group_sums, held_labels, share
from protocol.stamps import deposit_stamp
from protocol.token import Pseudonym

NOW = 1_790_000_000.0
TODAY = china_day(NOW)
IMPORT_NOW = NOW + 64 * 86_400
"""The clock of imports: their files have policies of November 2026."""
LIMIT = 5_000_000_000
RULE = Rule(
    id="accident-30d",
    version=1,
    products=("accident",),
    subject_type=PERSON,
    window_days=30,
    measure="sum_insured",
    limit=LIMIT,
    currency="CNY",
    budget=50,
    recheck_budget=60,
    budget_days=30,
    valid_from=TODAY - 1000,
    min_current=0,
)
COUNT_RULE = replace(RULE, id="policies-30d", measure="policy_count", limit=3)


def seeded(seed: object) -> Callable[[int], bytes]:
    """Return a deterministic source of bytes."""
    key = hashlib.sha256(repr(seed).encode()).digest()
    counter = 0

    def draw(count: int) -> bytes:
        nonlocal counter
        counter += 1
        return hashlib.shake_256(key + counter.to_bytes(8, "big")).digest(count)

    return draw


def person(number: int) -> Identity:
    return Identity(DocumentType.PASSPORT, f"E{number:08d}")


@dataclass
class World:
    manifest: Manifest
    service: ServiceParty
    members: dict[str, MemberInMemory]
    random: Callable[[int], bytes]

    def party(self, number: int) -> Party:
        return self.members[name(number)].party

    def deposit(
        self,
        depositor: int,
        identity: Identity,
        amount: int,
        *,
        now: float = NOW - 60,
        day: int = TODAY,
        product: str = "accident",
        kind: int = ISSUE,
        earlier: bytes | None = None,
        without: frozenset[str] = frozenset(),
    ) -> tuple[MadeDeposit, dict[int, Kept]]:
        entry = Entry(identity, kind, product, day, amount, earlier)
        reachable = {key: value for key, value in self.members.items() if key not in without}
        return run_deposit(self.party(depositor), self.service, reachable, entry, now, self.random)

    def check(
        self,
        requester: int,
        identity: Identity,
        proposed: int,
        *,
        now: float = NOW,
        rule: Rule = RULE,
        without: frozenset[str] = frozenset(),
    ) -> tuple[Verdict, Void | None]:
        reachable = {key: value for key, value in self.members.items() if key not in without}
        questions = [Question(identity, rule, proposed)]
        return run_check(self.party(requester), self.service, reachable, questions, now, self.random)[0]


def name(number: int) -> str:
    return f"insurer-{number:02d}"


def make_world(
    members: int = 7,
    *,
    shards: int = 2,
    slots: int = 6,
    rules: tuple[Rule, ...] = (RULE, COUNT_RULE),
    seed: object = 0,
    owners: dict[str, str] | None = None,
    tick_seconds: int = 1,
    service_url: str = "http://127.0.0.1:1",
) -> World:
    random = seeded(seed)
    salt = Secret(random(32))
    keys = {name(i): MemberKeys.generate(salt, random) for i in range(1, members + 1)}
    groups = {member: (owners or {}).get(member, f"group of {member}") for member in keys}
    service_keys = ServiceKeys(Secret(random_scalar(random)), Secret(random(32)))
    terms = Terms(
        alliance="test",
        serial=1,
        previous=bytes(32),
        local=1,
        issued_at=int(NOW) - 1000,
        valid_until=int(NOW) + 10_000_000,
        tick_seconds=tick_seconds,
        shards=shards,
        expected_persons=0,
        deposit_cap=1_000_000_000_000,
        salt_check=salt_check(salt),
        plain_http=1,
        tls_authority=bytes(32),
        service_url=service_url,
        service_signing_key=signing.public_key(service_keys.signing),
        blinding_key=group.multiply_base(Scalar(service_keys.blinding.reveal())),
        epoch=1,
        products=("accident", "group_accident", "term_life"),
        rules=rules,
        members=tuple(
            Member(
                id=member,
                group=groups[member],
                url="http://127.0.0.1:1",
                signing_key=signing.public_key(own.signing),
                sealing_key=channel.sealing_public_key(own.sealing),
            )
            for member, own in keys.items()
        ),
        committees=tuple(
            Committee(shard=shard, version=1, slots=draw_committee(shard, groups, slots)) for shard in range(shards)
        ),
    )
    manifest = Manifest.of(terms)
    parties = {member: Party(member, own, manifest) for member, own in keys.items()}
    world = World(
        manifest,
        ServiceParty(service_keys, manifest),
        {member: MemberInMemory(party, MemoryCustody(), {}) for member, party in parties.items()},
        random,
    )
    for shard in range(shards):
        for omitted in committee_keys.key_sets(manifest, shard):
            hand_out(world, shard, omitted)
    return world


def hand_out(world: World, shard: int, omitted: int | None) -> None:
    """Make a committee key and hand it to all its holders, checking every confirmation."""
    maker, *others = committee_keys.holders(world.manifest, shard, omitted)
    party = world.members[maker].party
    key = committee_keys.make(party, shard, omitted, int(NOW), world.random)
    world.members[maker].committee_keys[shard, omitted] = key
    for other in others:
        envelope = committee_keys.seal(party, key, other, world.random(32))
        received = committee_keys.receive(world.members[other].party, maker, envelope)
        assert received.check_value(other) == key.check_value(other)
        world.members[other].committee_keys[shard, omitted] = received


# --- four custodians without the messages of a check ---------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """A value as a committee keeps it: shared with one slot excluded, in the stores of `visible` alone (None: all)."""

    value: int
    excluded: int
    visible: frozenset[int] | None = None


@dataclass(frozen=True)
class FourCustodians:
    """Any A of any committee, with the secrets of one garbling; what its custodians hold is each test's own."""

    chosen: Chosen
    limits: tuple[int, ...] = (LIMIT,)
    name: object = 0

    @property
    def header(self) -> bytes:
        return repr((self.chosen, self.limits, self.name)).encode()

    @property
    def tags(self) -> list[tuple[bytes, bytes]]:
        """Return (tag of within, tag of exceeds) a lane."""
        return comparison.tags(seeded(self.name)(32), bytes(16), 1, self.chosen.slots, len(self.limits))

    @property
    def seed(self) -> Seed:
        return Seed.derive(seeded(self.name)(32), bytes(32), self.header, (Pseudonym(bytes(32)),))

    def part(self, slot: int, lanes: Sequence[Sequence[Shared]], *, change: Mapping[Label, int] | None = None) -> Part:
        """Return what a custodian sends for the deposits of each lane; `change` is added to its first lane's sums."""
        size, inputs = self.chosen.committee_size, []
        stamps = dict.fromkeys(range(size), group.IDENTITY)
        for lane, (deposits, limit) in enumerate(zip(lanes, self.limits, strict=True)):
            parts = [{key: Share(value) for key, value in change.items()}] if change and lane == 0 else []
            for number, deposit in enumerate(deposits):
                if deposit.visible is None or slot in deposit.visible:
                    uniform = seeded((self.name, lane, number))((size - 2) * SHARE_BYTES)
                    whole = share(deposit.value, size, deposit.excluded, uniform)
                    parts.append({key: whole[key] for key in held_labels(size, deposit.excluded, slot)})
                    stamp = deposit_stamp("insurer-01", lane.to_bytes(8, "big") + number.to_bytes(8, "big"), 1)
                    stamps[deposit.excluded] = group.accumulate(stamps[deposit.excluded], [stamp])
            inputs.append(LaneInput(tuple(group_sums(self.chosen, slot, add_shares(parts))), limit))
        return comparison.garble(self.seed, self.tags, inputs, self.chosen, slot, stamps)

    def parts(self, lanes: Sequence[Sequence[Shared]]) -> dict[int, Part]:
        return {slot: self.part(slot, lanes) for slot in self.chosen.slots}

    def verdict(self, lane: int, tag: bytes) -> Verdict:
        """Read a lane's tag as the requester does."""
        within, exceeds = self.tags[lane]
        return {within: Verdict.WITHIN, exceeds: Verdict.EXCEEDS}.get(tag, Verdict.INDETERMINATE)

    def evaluate(self, parts: Mapping[int, Part]) -> list[Verdict]:
        """Evaluate as the service does and read the tags as the requester does."""
        opened = comparison.evaluate(parts, self.chosen, len(self.limits), self.header)
        return [self.verdict(lane, tag) for lane, tag in enumerate(opened)]

    def evaluate_regardless(self, parts: Mapping[int, Part]) -> list[Verdict]:
        """Evaluate as a service does that goes on although the custodians disagree."""
        lanes, ordered = len(self.limits), [parts[slot] for slot in self.chosen.slots]
        garbled = ordered[0].garbled
        assert garbled is not None
        groups = list(comparison._groups(ordered))
        said = opened(garbled, [sent.labels for _, sent, _ in groups], lanes)
        verdicts = []
        for lane, masked_tag in enumerate(said):
            joined = b"".join(
                comparison._xor(
                    vouched.masked[32 * lane : 32 * lane + 32],
                    comparison._voucher_pad(sent.labels[768 * lane : 768 * lane + 768], sent.stamp, place, lane),
                )
                for place, sent, vouched in groups
            )
            mask = comparison._output_mask(self.header, lane, joined)
            verdicts.append(self.verdict(lane, comparison._xor(masked_tag, mask)))
        return verdicts


def opened(garbled: Garbled, by_group: Sequence[bytes], lanes: int) -> list[bytes]:
    """Return of each lane what its output opens to, still masked, under the labels that were sent of each group."""
    labels = b"".join(one[768 * lane : 768 * lane + 768] for lane in range(lanes) for one in by_group)
    table, outputs = bytes(garbled.table), bytes(garbled.outputs)
    said = garbling.ENGINE.evaluate([(bytes(garbled.aes_key), lanes)], labels, table, outputs)
    return [said[at : at + 16] for at in range(0, len(said), 16)]
