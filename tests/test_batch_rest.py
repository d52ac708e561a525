"""`POST /v1/checks/batch` on real agents, in one process: what it answers, refuses, counts and gives again."""

import random
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live import Answer, wait_until
from underwriting import SHARDS, House, check, results, somebody, underwriting_house, yuan
from world import COUNT_RULE, LIMIT, RULE

from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.limits import RequestLimit
from insurer_agent.requester import Requester
from insurer_agent.rest.schemas import MAX_BATCH, BatchAnswerSchema, CheckAnswerSchema, ChecksAnswerSchema
from protocol.check import shard_of_person
from protocol.identity import DocumentType, Identity
from transport.buckets import Buckets, Rate

BATCHES = 2
"""At a time, of an agent with 16 threads."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[House]:
    with underwriting_house(tmp_path_factory.mktemp("batch"), postgres) as house:
        yield house


# --- what it answers -------------------------------------------------------------------------------------------------


def test_a_batch_says_what_single_checks_and_the_plain_sum_say(house: House) -> None:
    chance = random.Random(7)  # noqa: S311  to be repeatable
    people = [somebody() for _ in range(40)]
    policies = [
        (f"insurer-{chance.randint(1, 6):02d}", chance.choice(people), chance.choice([1, LIMIT // 2, LIMIT - 1, LIMIT]))
        for _ in range(60)
    ]
    house.deposit(policies)
    asked, plain = [], []
    for _ in range(150):
        whom, amount = chance.choice(people), chance.choice([0, 1, 2, LIMIT // 2, LIMIT // 2 + 1, LIMIT])
        held = [fen for _, who, fen in policies if who == whom]
        verdict_of = {
            RULE.id: sum(held) + amount > LIMIT,
            COUNT_RULE.id: len(held) + (amount > 0) > COUNT_RULE.limit,
        }
        rules = chance.choice([[RULE.id], [COUNT_RULE.id], [COUNT_RULE.id, RULE.id]])
        asked.append(check(whom, yuan(amount), **({"rule": rules[0]} if len(rules) == 1 else {"rules": rules})))
        plain.append([(rule, "exceeds" if verdict_of[rule] else "within") for rule in rules])
    shards = {
        shard_of_person(house.agent.party, Identity(DocumentType.PASSPORT, one["subject"]["document_number"]))
        for one in asked
    }
    assert shards == set(range(SHARDS))

    def told(body: dict[str, Any]) -> list[tuple[str, str]]:
        return [(one["rule"], one["verdict"]) for one in body.get("results", [body])]

    assert [told(one) for one in results(house.batch(asked))] == plain
    some = chance.sample(range(len(asked)), 25)
    singles = [told(house.request("POST", "/v1/checks", asked[place]).body) for place in some]
    assert singles == [plain[place] for place in some]


def test_each_answer_is_the_body_that_a_single_check_gets(house: House) -> None:
    one, several = check(somebody(), reference="UW-1"), check(somebody(), rules=[COUNT_RULE.id, RULE.id])
    answer = house.batch([one, several])
    whole, (first, second) = answer.body, results(answer)
    assert BatchAnswerSchema().validate(whole) == {}
    assert CheckAnswerSchema().validate(first) == {}
    assert ChecksAnswerSchema().validate(second) == {}
    single = house.request("POST", "/v1/checks", one).body
    assert first | {"check_id": "", "checked_at": ""} == single | {"check_id": "", "checked_at": ""}
    assert [result["rule"] for result in second["results"]] == [COUNT_RULE.id, RULE.id]
    assert (first["reference"], second["reference"]) == ("UW-1", None)
    assert whole["completeness"] == first["completeness"]


def test_a_bad_item_is_told_in_its_place_and_voids_no_other(house: House) -> None:
    good = check(somebody(), reference="good")
    bad: list[tuple[object, str]] = [
        (check("???", reference="bad"), "document-number-malformed"),
        (check(somebody(), "1,000"), "amount-not-plain-decimal"),
        (check(somebody(), "-1"), "amount-not-positive"),
        (check(somebody(), "99999999999999.00"), "amount-too-large"),
        (check(somebody(), rule="no-such"), "unknown-rule"),
        (check(somebody(), rules=[RULE.id, "no-such"]), "unknown-rule"),
        (check(somebody(), more=1), "invalid-request"),
        (check(somebody()) | {"rules": [RULE.id]}, "invalid-request"),
        ({}, "invalid-request"),
        (None, "invalid-request"),
        ([good], "invalid-request"),
        ("x", "invalid-request"),
        (check(somebody(), reference="x" * 129), "invalid-request"),
    ]
    mixed = [entry for item, _ in bad for entry in (good, item)] + [good]
    found = results(house.batch(mixed))
    assert [one["verdict"] for one in found[::2]] == ["within"] * (len(bad) + 1)
    for place, (one, (_, code)) in enumerate(zip(found[1::2], bad, strict=True)):
        assert (one["code"], one["index"]) == (code, 2 * place + 1)
        assert one["hint"]
        assert "verdict" not in one
    assert found[1]["reference"] == "bad"
    single = house.request("POST", "/v1/checks", bad[0][0]).body
    assert found[1] == single | {"index": 1, "reference": "bad"}


def test_a_batch_of_bad_items_alone_asks_nobody(house: House) -> None:
    before = house.spent()
    answer = house.batch([None, check("?")])
    assert [one["code"] for one in results(answer)] == ["invalid-request", "document-number-malformed"]
    assert answer.body["completeness"]["members"] == 6
    assert house.spent() == before


def test_the_same_item_twice_is_charged_once(house: House) -> None:
    item, before = check(somebody()), house.spent()
    found = results(house.batch([item | {"reference": str(n)} for n in range(20)]))
    assert [(one["verdict"], one["reference"]) for one in found] == [("within", str(n)) for n in range(20)]
    assert house.spent() - before == 4


def test_a_thousand_persons_are_answered_at_once_by_default(house: House) -> None:
    checks = [check(somebody(), reference=str(n)) for n in range(MAX_BATCH)]
    found = results(house.batch(checks))
    assert [one["reference"] for one in found] == [str(n) for n in range(MAX_BATCH)]
    assert {one["verdict"] for one in found} == {"within"}


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "not-json"),
        (b"[]", 422, "invalid-request"),
        (b"{}", 422, "invalid-request"),
        (b'{"checks": []}', 422, "invalid-request"),
        (b'{"checks": null}', 422, "invalid-request"),
        (b'{"checks": {}}', 422, "invalid-request"),
        (b'{"checks": [{}], "rule": "accident-30d"}', 422, "invalid-request"),
        (b'{"checks": [' + b"1," * MAX_BATCH + b"1]}", 422, "too-many-checks"),
        (b" " * ((2 << 20) + 1), 413, "request-entity-too-large"),
    ],
)
def test_what_is_no_batch_is_refused_whole(house: House, body: bytes, status: int, code: str) -> None:
    before = house.spent()
    answer = house.request("POST", "/v1/checks/batch", body)
    assert (answer.status, answer.body["code"]) == (status, code)
    assert answer.body["hint"]
    assert house.spent() == before


def test_without_a_good_api_key_or_as_another_content_nothing_is_read(house: House) -> None:
    assert house.batch([check(somebody())], Authorization="Bearer cover_none").status == 401
    assert house.batch([check(somebody())], Content_Type="text/plain").status == 415


def test_a_batch_counts_as_many_requests_as_it_has_items(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = Buckets(("test",), Rate(0.001, 10), None)
    monkeypatch.setattr(house.agent.limits, "checks", RequestLimit(buckets, house.agent.vault))
    bad = [None] * 8
    assert house.batch(bad).status == 200
    refused = house.batch([None] * 3)
    assert (refused.status, refused.body["code"]) == (429, "rate-limited")
    assert refused.body["retry_after"] > 0
    never = house.batch([None] * 12)
    assert never.status == 429


def test_while_batches_take_their_places_another_is_busy_and_single_checks_go_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, str]] = []
    under_way: list[object] = []
    real = house.agent.batches.ask

    def meanwhile(items: Any, seconds: float) -> Any:  # noqa: ANN401  as there
        under_way.append(items)
        if len(under_way) <= BATCHES:  # each of them asks within the one before
            answer = house.batch([check(somebody())])
            told.append((answer.status, answer.body.get("code", "answered")))
            single = house.request("POST", "/v1/checks", check(somebody()))
            assert (single.status, single.body["verdict"]) == (200, "within")
        return real(items, seconds)

    monkeypatch.setattr(house.agent.batches, "ask", meanwhile)
    assert house.batch([check(somebody())]).status == 200
    assert told == [(503, "busy"), (200, "answered")]


# --- what is missing -------------------------------------------------------------------------------------------------


def test_what_is_missing_at_the_deadline_is_indeterminate(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Requester, "check_many", lambda self, lanes, _: Requester._ask(self, lanes, 1, 0.0, throttled=True)
    )
    found = results(house.batch([check(somebody(), rules=[RULE.id, COUNT_RULE.id]), check(somebody())]))
    lanes = [*found[0]["results"], found[1]]
    assert {(one["verdict"], one["exceeds_limit"], one["reason"], one["advice"]) for one in lanes} == {
        ("indeterminate", None, "timeout", "retry")
    }


def test_custodians_that_are_away_leave_no_item_within(house: House) -> None:
    wires = [house.there.wires[f"insurer-{number:02d}"] for number in (4, 5, 6)]
    ends = [wire.to for wire in wires]
    for wire in wires:
        wire.to = refuse
    try:
        found = results(house.batch([check(somebody()) for _ in range(40)]))
    finally:
        for wire, end in zip(wires, ends, strict=True):
            wire.to = end
    assert {one["verdict"] for one in found} == {"indeterminate"}
    assert {one["reason"] for one in found} <= {"timeout", "too-few-custodians", "service-unavailable"}


def refuse() -> Any:  # noqa: ANN401  a socket, if it came to that
    raise ConnectionRefusedError


# --- the same batch again --------------------------------------------------------------------------------------------


def test_the_same_batch_under_one_key_is_answered_as_it_was_and_asks_nobody(house: House) -> None:
    asked = [check(somebody(), reference="a"), None, check(somebody(), rules=[RULE.id])]
    first = wait_for_verdicts(lambda key: house.batch(asked, Idempotency_Key=key))
    key, answer = first
    spent = house.spent()
    again = house.batch([dict(reversed(one.items())) if one else one for one in asked], Idempotency_Key=key)
    assert again.body == answer.body
    assert again.headers["Idempotency-Replayed"] == "true"
    assert house.spent() == spent
    other = house.batch(asked[:2], Idempotency_Key=key)
    assert (other.status, other.body["code"]) == (422, "idempotency-key-reused")


def wait_for_verdicts(ask: Callable[[str], Answer]) -> tuple[str, Answer]:
    """Ask under new keys until the answer is kept: after custodians were away, some may not be asked at once."""
    answers: list[tuple[str, Answer]] = []

    def kept() -> bool:
        key = secrets.token_hex(8)
        answers.append((key, ask(key)))
        return answers[-1][1].headers["Idempotency-Kept"] is None

    wait_until(kept)
    return answers[-1]


def test_a_batch_with_an_indeterminate_item_is_asked_anew(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [check(somebody())]
    with monkeypatch.context() as patch:
        patch.setattr(
            Requester, "check_many", lambda self, lanes, _: Requester._ask(self, lanes, 1, 0.0, throttled=True)
        )
        void = house.batch(asked, Idempotency_Key="void")
    assert void.headers["Idempotency-Kept"] == "false"
    again = house.batch(asked, Idempotency_Key="void")
    assert again.headers["Idempotency-Replayed"] is None
    assert results(again)[0]["verdict"] == "within"
