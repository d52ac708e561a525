"""A check and a deposit cost no more than their budgets (tests/data/costs.json), counted and not timed.

Who makes them dearer raises the budget in the same change, by `RENEW_COSTS=1 .venv/bin/pytest tests/test_costs.py`,
and so says it.
"""

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from urllib.request import Request

import pytest
from costs import ABOUT, LOOSE, complaints, costs, require_within_budget
from live import call, wait_until
from test_check import Attempt, attempt
from wired import Wired, wired_alliance
from world import COUNT_RULE, RULE, World, make_world, person

import protocol.check
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.roles import Role
from insurer_agent.store import api_keys, own_answers
from protocol.check import Question, Verdict
from protocol.comparison import Garbling, Seed, Tags, garble_together
from protocol.encoding import encode
from protocol.token import Token, verify_unblinder

RULES = {1: (RULE,), 2: (RULE, COUNT_RULE)}
TRIES = 5
ASKED_BEFORE = 12
"""So often is asked before it is counted: a statement is prepared the fifth time that a connection runs it."""


@pytest.fixture(scope="module")
def world() -> World:
    made = make_world(6, shards=1)
    for depositor in (2, 3):
        made.deposit(depositor, person(1), 100_000)
    return made


def asked(world: World, lanes: int) -> Attempt:
    return attempt(world, 1, [Question(person(1), rule, 100_000) for rule in RULES[lanes]])


def check(world: World, lanes: int) -> None:
    made = asked(world, lanes)
    assert made.read(made.outcome()) == [(Verdict.WITHIN, None)] * lanes


@pytest.mark.parametrize("lanes", RULES)
def test_a_check_costs_what_is_allowed(world: World, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = costs(lambda: world, lambda given: check(given, lanes), monkeypatch)
    require_within_budget(f"a check of {lanes} lanes", found)


def test_a_deposit_costs_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = costs(lambda: make_world(6, shards=1), lambda given: given.deposit(2, person(1), 100_000), monkeypatch)
    require_within_budget("a deposit", found)


@pytest.mark.parametrize("lanes", RULES)
def test_a_checks_messages_are_no_longer_than_allowed(world: World, lanes: int) -> None:
    made = asked(world, lanes)
    answers = [made.answer(slot) for slot in made.chosen]
    sizes = {
        "request": len(encode(made.request)),
        "call of a custodian": len(encode(made.call(made.chosen[0]))),
        "answer of the first of A": len(encode(answers[0])),
        "answers of the others": sum(len(encode(answer)) for answer in answers[1:]),
        "outcome": len(encode(made.outcome())),
    }
    require_within_budget(f"bytes of a check of {lanes} lanes", sizes)


# --- round trips ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[Wired]:
    with (
        pytest.MonkeyPatch.context() as patch,
        wired_alliance(tmp_path_factory.mktemp("costs"), postgres, patch) as there,
    ):
        wait_until(lambda: there.exchange_keys() == 0, 10)
        yield there


def asking(live: Wired, requester: str, patch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    """Return what asks a check and returns the round trips that it took."""
    live.agents[requester].directory._read_at = math.inf  # what is read now and then is no part of a check
    patch.setattr(api_keys, "REMEMBERED_SECONDS", math.inf)  # nor is a key
    patch.setattr(own_answers, "_LINGER_SECONDS", 30.0)  # nor what is noted of many checks at once
    key = live.agents[requester].api_keys.make(requester, secrets.token_bytes, roles=[Role.UNDERWRITER])
    body = (
        b'{"subject": {"document_type": "passport", "document_number": "E00000001"},'
        b' "rule": "accident-30d", "proposed_amount": "1000.00"}'
    )
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = Request(f"http://127.0.0.1:{live.wires[requester].port}/v1/checks", body, headers, method="POST")

    def trips() -> dict[str, int]:
        wires = live.wires | {"its database": live.to_postgres}
        for _ in range(TRIES):  # on a busy machine a custodian may be late, and another A is asked
            before = {name: wire.exchanges for name, wire in wires.items()}
            answer = call(request)
            if answer.body["verdict"] != "indeterminate":
                break
        assert (answer.status, answer.body["verdict"]) == (200, "within")
        return {name: wire.exchanges - before[name] for name, wire in wires.items()}

    for _ in range(ASKED_BEFORE):
        trips()
    return trips


def test_a_check_takes_the_round_trips_that_are_allowed(live: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first member's database is behind a wire: once the member asks, once it is a custodian of another's check.
    as_requester = asking(live, "insurer-01", monkeypatch)()
    trips = asking(live, "insurer-02", monkeypatch)
    as_custodian = next(found for found in iter(trips, None) if found["insurer-01"])
    custodians = sum(count for name, count in as_requester.items() if name.startswith("insurer-")) - 1
    found = {
        "calls of the service": as_requester["service"],
        "calls of custodians": custodians,
        "the requester's database": as_requester["its database"],
        "a custodian's database": as_custodian["its database"],
    }
    require_within_budget("round trips of a check", found)


# --- the guard itself ----------------------------------------------------------------------------------------------


def test_a_fifth_more_of_anything_is_noticed_and_so_is_room_for_it() -> None:
    budget = {"hashes": 100, **dict.fromkeys(ABOUT, 1000)}
    assert complaints(budget, budget) == []
    for name, allowed in budget.items():
        dearer, cheaper = budget | {name: int(1.2 * allowed)}, budget | {name: int(LOOSE * allowed) - 1}
        assert [name in told for told in complaints(dearer, budget)] == [True]
        assert [name in told for told in complaints(cheaper, budget)] == [True]
    assert complaints(budget | {"something new": 1}, budget) != []


def test_a_check_that_verifies_a_proof_twice_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(token: Token, blinding_key: object, context: bytes) -> bool:
        return verify_unblinder(token, blinding_key, context) and verify_unblinder(token, blinding_key, context)

    plain = costs(lambda: world, lambda given: check(given, 1), monkeypatch)
    monkeypatch.setattr(protocol.check, "verify_unblinder", twice)
    told = complaints(costs(lambda: world, lambda given: check(given, 1), monkeypatch), plain)
    assert any(one.startswith("multiplications in the group: ") for one in told)


def test_a_check_that_garbles_twice_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(asked: Sequence[tuple[Seed, Tags]]) -> list[Garbling]:
        garble_together(asked)
        return garble_together(asked)

    plain = costs(lambda: world, lambda given: check(given, 1), monkeypatch)
    monkeypatch.setattr(protocol.check, "garble_together", twice)
    told = complaints(costs(lambda: world, lambda given: check(given, 1), monkeypatch), plain)
    assert any(one.startswith("lanes garbled: ") for one in told)
