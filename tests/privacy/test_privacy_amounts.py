"""Dictionaries over amounts, seeds and tags, as `test_privacy_attacks.py` has them over persons."""

import hmac
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from math import comb

import pytest
from world import LIMIT, FourCustodians, Shared, seeded
from worlds import (
    ASKER,
    CHECKS,
    KEEPER,
    SECOND,
    Recording,
    Step,
    name,
    recorded,
)
from worlds_attacker import (
    Dictionary,
    bytes_of,
    dictionary_of,
    found_in_envelopes,
    points_of,
    pseudonym_of,
    pseudonyms,
    rows_of,
    slot_of,
    values_of,
)
from worlds_seen import (
    kept_shares,
    seen_by_custodian,
    seen_by_service,
)

from insurer_agent.store import keyring
from protocol import comparison, half_gates_arrays
from protocol.check import _header
from protocol.comparison import Seed
from protocol.deposit import _share_digest
from protocol.encoding import encode
from protocol.garbling import ZeroLabels
from protocol.messages import CheckAnswer, CheckEnvelope, DepositEnvelope
from protocol.sharing import RING, SHARE_BYTES, Chosen, Label, held_labels, labels_of_sharing, plain_share, share
from protocol.token import Pseudonym
from transport.internal import CHECK, PREPARE

live = pytest.mark.alliance


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return recorded(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def dictionary(worlds: Recording) -> Dictionary:
    """All persons there could be, with the salt that every member has."""
    return dictionary_of(worlds.people, worlds.parties[1].keys.salt)


# --- amounts and the total -----------------------------------------------------------------------------------------

CANDIDATES = [*range(0, 10_000_000_000, 50_000_000), 3_123_456_789]
"""Amounts in fen that an attacker tries; those of the scripts are among them."""


def amounts_that_fit(held: Mapping[Label, int], names: Sequence[Label]) -> list[int]:
    """Return the candidates of which the shares can be: with one share unknown there is always one that completes."""
    missing = [label for label in names if label not in held]
    return [amount for amount in CANDIDATES if missing or (amount - sum(held.values())) % RING == 0]


@live
def test_a_custodians_own_shares_fit_every_amount_and_with_another_custodians_only_the_true_one(
    worlds: Recording, dictionary: Dictionary
) -> None:
    for world, amount in (("little", 200_000_000), ("much", 4_500_000_000)):
        by_label: dict[int, dict[Label, int]] = {}
        for member in (KEEPER, ASKER):
            (row,) = [
                row
                for row in rows_of(worlds, member, worlds.persons[world][0], dictionary)
                if row.values["depositor"] == name(SECOND)
            ]
            excluded = row.values["excluded"]
            names = held_labels(5, excluded, slot_of(worlds, member))
            by_label[member] = dict(zip(names, kept_shares(worlds, member, row).amounts, strict=True))
            assert amounts_that_fit(by_label[member], labels_of_sharing(5, excluded)) == CANDIDATES
        assert amounts_that_fit(by_label[KEEPER] | by_label[ASKER], labels_of_sharing(5, excluded)) == [amount]


def test_the_shares_of_one_custodian_do_not_point_to_the_amount_over_many_deposits() -> None:
    """The attacker takes the amount whose missing share looks least random, the smallest; by chance 1 time in 64."""
    amounts, trials = [(number + 1) * 1_000_000_00 for number in range(64)], 2000

    def hits(uniform: Callable[[int], bytes]) -> int:
        right = 0
        for trial in range(trials):
            amount = amounts[trial % 64]
            shares = share(amount, 5, 0, uniform(3 * SHARE_BYTES))
            held = sum(shares[label] for label in held_labels(5, 0, 1))
            right += min(amounts, key=lambda guess: (guess - held) % RING) == amount
        return right

    random = seeded("shares")
    assert tail(trials, hits(random), 1 / 64) > 1e-6
    assert hits(bytes) == trials


def tail(trials: int, hits: int, chance: float) -> float:
    """Return the exact binomial chance of as many hits or more."""
    return sum(
        comb(trials, k) * Fraction(chance) ** k * (1 - Fraction(chance)) ** (trials - k)
        for k in range(hits, trials + 1)
    )


@live
def test_digests_of_shares_open_no_amount_unless_the_salt_of_the_last_is_known(worlds: Recording) -> None:
    """Even beside all shares but the last: the service with one custodian's envelope."""
    for world, amount in (("little", 100_000_000), ("much", 4_900_000_000)):
        step = worlds.worlds[world][0]
        (body,) = found_in_envelopes(worlds, KEEPER, step, DepositEnvelope)
        (other,) = found_in_envelopes(worlds, ASKER, step, DepositEnvelope)
        mine, theirs = (held_labels(5, body.facts.excluded, slot_of(worlds, member)) for member in (KEEPER, ASKER))
        (last,) = set(theirs) - set(mine)
        digest = step.of(name(ASKER), PREPARE)[0].answer.answers[0].digests[theirs.index(last)]

        def opened_amounts(
            salts: Iterable[bytes], body: DepositEnvelope = body, digest: bytes = digest, last: Label = last
        ) -> list[int]:
            return [
                amount
                for amount in CANDIDATES
                for salt in salts
                if digest
                == _share_digest(
                    body.facts.deposit_id,
                    last,
                    (amount - sum(body.amounts)) % RING,
                    plain_share(1, 5, body.facts.excluded)[last],
                    salt,
                )
            ]

        known = values_of(seen_by_service(step), seen_by_custodian(worlds, KEEPER, step), body)
        salts = {value for value in known if len(value) == 32} | {bytes(32)}
        assert len(salts) > 20
        assert set(body.salts) <= salts
        assert opened_amounts(salts) == []
        assert opened_amounts([other.salts[theirs.index(last)]]) == [amount]


def totals(
    worlds: Recording, step: Step, seeds: Iterable[bytes], keys: Iterable[bytes], points: Iterable[bytes]
) -> list[int]:
    """Return the total that the labels of a check's four answers say, for each guess that gives its label seed."""
    calls = {item.call.chosen: item for party in step.exchanges for item in step.of(party, CHECK)}
    (chosen,) = calls
    call = calls[chosen].call
    manifest, statement = worlds.parties[1].manifest, call.signed.statement
    slots = manifest.committee(statement.shard).slots
    answers: list[CheckAnswer] = [step.of(slots[slot], CHECK)[0].answer for slot in chosen]
    header = encode(_header(manifest, statement, call.attempt, chosen, call.tick, answers[0].committee_key))
    read = []
    for secret, key, point in itertools.product(seeds, keys, points):
        seed = Seed.derive(secret, key, header, (Pseudonym(point),))
        if hmac.digest(seed.key("session"), b"session check", "sha256") != answers[0].part.session_check:
            continue
        zero = labels_of(zero_labels(seed).labels)
        inputs = 0
        for place, sent, _ in comparison._groups([answer.part for answer in answers]):
            pairs = zip(labels_of(sent.labels), zero[48 * place : 48 * place + 48], strict=True)
            inputs += sum(1 << at for at, (active, of_zero) in enumerate(pairs) if active != of_zero)
        rule = manifest.current_rule(statement.lanes[0].rule_id, statement.as_of)
        read.append((rule.limit - inputs) % RING)
    return read


def labels_of(data: bytes) -> list[bytes]:
    return [data[at : at + 16] for at in range(0, len(data), 16)]


def zero_labels(seed: Seed) -> ZeroLabels:
    """Return both labels of every input wire, as a custodian derives them from the label seed."""
    return comparison._drawn([(seed, 1)])[0][0]


def committee_keys_of(worlds: Recording, member: int) -> dict[tuple[int, int], bytes]:
    """Open the committee keys that a member holds, by (shard, omitted slot)."""
    found_keys = {}
    for row in worlds.stored[member]:
        if row.table == "committee_key":
            shard, omitted, version, made_at = (
                row.values[column] for column in ("shard", "omitted", "committee_version", "made_at")
            )
            place = keyring._place(shard, None if omitted < 0 else omitted, version, made_at)
            found_keys[shard, omitted] = worlds.vaults[member].open(place, row.values["sealed"])
    return found_keys


WITH_PROPOSAL = {"little": 320_000_000 + 100_000_000, "much": 3_123_456_789 + 4_500_000_000 + 100_000_000}


@live
def test_labels_of_a_comparison_open_no_total_unless_the_label_seed_is_known(
    worlds: Recording, dictionary: Dictionary
) -> None:
    """The service guesses requester's seed, committee key and pseudonym from all that it holds of the check."""
    for world, total in WITH_PROPOSAL.items():
        step = worlds.worlds[world][-2]
        held = [value for value in values_of(seen_by_service(step)) if len(value) == 32]
        points = points_of(held)
        assert len(held) > 20
        assert totals(worlds, step, held, held, points) == []
        (body,) = found_in_envelopes(worlds, KEEPER, step, CheckEnvelope)
        pseudonym = pseudonym_of(worlds, worlds.persons[world][0], dictionary)
        assert totals(worlds, step, [body.seed], held, [*points, pseudonym]) == [], "s alone is not enough"
        omitted = slot_of(worlds, worlds.affiliate)  # the requester's group
        key = committee_keys_of(worlds, KEEPER)[worlds.shard, omitted]
        assert totals(worlds, step, [body.seed], [*held, key], [*points, pseudonym]) == [total]


@live
def test_a_requester_opens_no_comparison_without_the_committee_key_that_leaves_it_out(worlds: Recording) -> None:
    """Were it given the four answers as well: it knows s, its own keys and all pseudonyms that it saw."""
    for world, total in WITH_PROPOSAL.items():
        step = worlds.worlds[world][-1]
        (body,) = found_in_envelopes(worlds, KEEPER, step, CheckEnvelope)
        own = list(committee_keys_of(worlds, ASKER).values())
        known = sorted({point for one in worlds.history for point in pseudonyms(worlds, ASKER, one)})
        assert len(own) == 4 * 5
        assert totals(worlds, step, [body.seed], own, known) == []
        key = committee_keys_of(worlds, KEEPER)[worlds.shard, slot_of(worlds, ASKER)]
        assert totals(worlds, step, [body.seed], [*own, key], known) == [total]


# --- the verdict ---------------------------------------------------------------------------------------------------


def verdict_of(step: Step, seeds: Iterable[bytes]) -> list[str]:
    """Return what the tag of a check's answer says under each seed that explains it."""
    outcome = step.of("service", CHECKS)[0].answer
    read = []
    for seed in seeds:
        ((within, exceeds),) = comparison.tags(seed, outcome.check_id, outcome.attempt, outcome.chosen, 1)
        read += [{within: "within", exceeds: "exceeds"}[tag] for tag in outcome.tags if tag in (within, exceeds)]
    return read


def asked(worlds: Recording) -> list[Step]:
    return [
        step for world in ("little", "much", "scattered") for step in worlds.worlds[world] if step.answer is not None
    ]


@live
def test_the_service_reads_no_tag_unless_it_has_the_requesters_seed(worlds: Recording) -> None:
    for step in asked(worlds):
        held = [value for value in values_of(seen_by_service(step)) if len(value) == 32]
        keys = [worlds.service.blinding.reveal(), worlds.service.signing.reveal()]
        assert verdict_of(step, [*held, *keys]) == []
        (body,) = found_in_envelopes(worlds, KEEPER, step, CheckEnvelope)
        assert step.answer is not None
        assert verdict_of(step, [*held, body.seed]) == [step.answer["verdict"]]


@live
def test_no_custodian_holds_the_tag_of_a_verdict_unless_it_is_told_the_answer(worlds: Recording) -> None:
    """It knows both tags, as it garbles them; which of the two came out is in nothing that it ever gets."""
    for step in asked(worlds):
        for member in set(worlds.custodians) - {step.member, worlds.affiliate}:
            (body,) = found_in_envelopes(worlds, member, step, CheckEnvelope)
            outcome = step.of("service", CHECKS)[0]
            at = outcome.answer
            ((within, exceeds),) = comparison.tags(body.seed, at.check_id, at.attempt, at.chosen, 1)
            exchanges = [item for one in worlds.history for item in one.exchanges[name(member)]]
            held = bytes_of(exchanges, worlds.stored[member])
            assert len(held) > 30_000
            assert within not in held
            assert exceeds not in held
            told = held + outcome.response
            assert step.answer is not None
            assert (within in told, exceeds in told) == (not step.answer["exceeds_limit"], step.answer["exceeds_limit"])


def test_which_output_row_opens_says_nothing_of_the_verdict_unless_the_permute_bit_is_known() -> None:
    """400 garblings, half of either verdict: the row's number agrees with the verdict as often as a coin does."""
    agreeing = explained = 0
    for number in range(400):
        exceeds = number % 2
        four = FourCustodians(Chosen((0, 1, 2, 3), 5), name=("rows", number))
        parts = four.parts([[Shared(LIMIT + exceeds, excluded=number % 5)]])
        ordered = [parts[slot] for slot in four.chosen.slots]
        garbled = ordered[0].garbled
        assert garbled is not None
        keys, zero = [(garbled.aes_key, 1)], zero_labels(four.seed)
        active = half_gates_arrays._labels(b"".join(sent.labels for _, sent, _ in comparison._groups(ordered)), 1)
        evaluation = half_gates_arrays._Evaluation(keys, active, half_gates_arrays._blocks(garbled.table, 1, 321, 2))
        garbling = half_gates_arrays._Garbling(
            keys, half_gates_arrays._labels(zero.labels, 1), half_gates_arrays._offsets(zero.offsets)
        )
        row, permute = (int(half_gates_arrays._row(run.output)[0]) for run in (evaluation, garbling))
        agreeing += row == exceeds
        explained += row ^ permute == exceeds
    assert min(tail(400, agreeing, 0.5), tail(400, 400 - agreeing, 0.5)) > 1e-6
    assert explained == 400
    assert tail(400, explained, 0.5) < 1e-100
