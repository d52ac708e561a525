"""The agent's REST interface, whole, on a live alliance: policies, checks under several rules, keys, repeats."""

import base64
import datetime as dt
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from embedded_redis import EmbeddedRedis
from live import Answer, LiveAlliance, china_today, wait_for_ticks, wait_until, write_policies

from insurer_agent.agent import Agent
from insurer_agent.rest import make_app
from insurer_agent.rest.access import table
from insurer_agent.rest.answers import RETRY_SECONDS
from insurer_agent.rest.openapi import document
from insurer_agent.store.api_keys import REMEMBERED_SECONDS
from protocol.encoding import decode
from protocol.messages import CheckRequest

pytestmark = pytest.mark.alliance

MEMBERS = 6
RULES = Path(__file__).parent.parent / "deploy" / "rules.toml"
PEOPLE = iter(range(1, 1000))


BY_BACKEND = {"redis": 1, "postgresql": 2}
"""Members that keep answers under Idempotency-Keys in the one and in the other."""
LIMITED = 3
"""A member whose API keys may ask little, over two workers."""


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory, redis_server: EmbeddedRedis) -> Iterator[LiveAlliance]:
    root = tmp_path_factory.mktemp("rest")
    with redis_server.client() as client:
        client.flushall()
    for number in range(1, MEMBERS + 1):
        write_policies(root / "policies", number, [])
    options = ("--capture", "--rules", str(RULES), "--redis", redis_server.url)
    alliance = LiveAlliance(MEMBERS, root / "policies", root / "state", *options)
    alliance.start()
    try:
        config = alliance.member_state(BY_BACKEND["postgresql"]) / "config.toml"
        lines = config.read_text().splitlines(keepends=True)
        config.write_text("".join(line for line in lines if not line.startswith("redis")))
        alliance.kill(BY_BACKEND["postgresql"])
        alliance.restart(BY_BACKEND["postgresql"])
        yield alliance
    finally:
        alliance.stop()


@pytest.fixture(params=list(BY_BACKEND))
def member(request: pytest.FixtureRequest) -> int:
    """Each of the two members."""
    return BY_BACKEND[request.param]


def somebody() -> dict[str, str]:
    return {"document_type": "passport", "document_number": f"R{next(PEOPLE):07d}"}


def policy(subject: dict[str, str], amount: str = "30000000.00", **change: object) -> dict[str, object]:
    number = f"P-{secrets.token_hex(6)}"
    body = {"policy_number": number, "subject": subject, "product": "accident", "insured_amount": amount}
    return body | {"issued_on": china_today().isoformat()} | change


def request(
    alliance: LiveAlliance,
    method: str,
    path: str,
    body: object = None,
    *,
    member: int = 1,
    key: str | None = None,
    **headers: str | None,
) -> Answer:
    entry = alliance.member(member)
    sent = {"Authorization": f"Bearer {entry['api_key'] if key is None else key}", "Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    return alliance.call(
        Request(entry["url"] + path, None if body is None else json.dumps(body).encode(), sent, method=method)
    )


def at(number: object) -> str:
    return f"/v1/policies/{quote(str(number), safe='')}"


def wait_until_visible(alliance: LiveAlliance, number: object, member: int = 1) -> None:
    def visible() -> bool:
        states = request(alliance, "GET", at(number), member=member).body["policies"]
        return all(state["visible_to_checks"] for state in states)

    wait_until(visible)
    wait_for_ticks()


def question(subject: dict[str, str], proposed: str, **change: object) -> dict[str, object]:
    return {"subject": subject, "rule": "accident-30d", "proposed_amount": proposed} | change


def verdict(alliance: LiveAlliance, subject: dict[str, str], proposed: str, member: int = 2) -> str:
    said: str = request(alliance, "POST", "/v1/checks", question(subject, proposed), member=member).body["verdict"]
    return said


def assert_total(alliance: LiveAlliance, subject: dict[str, str], yuan: int) -> None:
    """Find the person's total by asking at the limit and one fen above."""
    left = 50_000_000 - yuan
    assert verdict(alliance, subject, f"{left}.00") == "within"
    assert verdict(alliance, subject, f"{left}.01") == "exceeds"


# --- policies ------------------------------------------------------------------------------------------------------


def test_a_policy_is_issued_amended_and_cancelled_and_checks_follow(alliance: LiveAlliance) -> None:
    subject = somebody()
    body = policy(subject)
    number = body["policy_number"]
    issued = request(alliance, "POST", "/v1/policies", body)
    assert (issued.status, issued.body["outcome"], issued.body["status"]) == (201, "accepted", "in_force")
    wait_until_visible(alliance, number)
    assert_total(alliance, subject, 30_000_000)

    amended = request(alliance, "PUT", at(number), {"insured_amount": "12000000.5"})
    assert (amended.status, amended.body["outcome"], amended.body["insured_amount"]) == (
        200,
        "corrected",
        "12000000.50",
    )
    back = request(alliance, "PUT", at(number), {"insured_amount": "30000000"})
    assert back.body["outcome"] == "corrected"  # the same as before something else is not the same again
    assert request(alliance, "PUT", at(number), {"insured_amount": "12000000"}).status == 200
    wait_until_visible(alliance, number)
    assert_total(alliance, subject, 12_000_000)

    cancelled = request(alliance, "POST", at(number) + "/cancellation", {})
    assert (cancelled.status, cancelled.body["status"], cancelled.body["insured_amount"]) == (200, "cancelled", "0.00")
    wait_until_visible(alliance, number)
    assert_total(alliance, subject, 0)


@pytest.mark.long
def test_each_policy_request_may_be_sent_again(alliance: LiveAlliance) -> None:
    subject = somebody()
    body = policy(subject)
    number = body["policy_number"]
    answers = [request(alliance, "POST", "/v1/policies", body) for _ in range(3)]
    assert [(answer.status, answer.body["outcome"]) for answer in answers] == [
        (201, "accepted"),
        (200, "repeated"),
        (200, "repeated"),
    ]
    for _ in range(2):
        changed = request(alliance, "PUT", at(number), {"insured_amount": "7000000"})
        assert changed.body["insured_amount"] == "7000000.00"
    assert changed.body["outcome"] == "repeated"
    wait_until_visible(alliance, number)
    assert_total(alliance, subject, 7_000_000)
    outcomes = [request(alliance, "POST", at(number) + "/cancellation", {}).body["outcome"] for _ in range(2)]
    assert outcomes == ["corrected", "repeated"]
    again = request(alliance, "POST", "/v1/policies", body)
    assert (again.status, again.body["outcome"], again.body["status"]) == (200, "repeated", "cancelled")
    wait_until_visible(alliance, number)
    assert_total(alliance, subject, 0)


def test_requests_for_one_policy_at_once_count_once(alliance: LiveAlliance) -> None:
    subject = somebody()
    body = policy(subject, "10000000")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: request(alliance, "POST", "/v1/policies", body), range(8)))
    assert sorted(answer.body["outcome"] for answer in answers) == ["accepted", *["repeated"] * 7]
    with ThreadPoolExecutor(8) as pool:
        changes = [{"insured_amount": f"{amount}000000"} for amount in (8, 9) * 4]
        answers = list(pool.map(lambda change: request(alliance, "PUT", at(body["policy_number"]), change), changes))
    assert {answer.status for answer in answers} == {200}
    wait_until_visible(alliance, body["policy_number"])
    (state,) = request(alliance, "GET", at(body["policy_number"])).body["policies"]
    assert_total(alliance, subject, int(float(state["insured_amount"])))


def test_a_number_that_several_policies_share_needs_subject_and_product(alliance: LiveAlliance) -> None:
    first, second = somebody(), somebody()
    body = policy(first, "5000000", policy_number="G 2026/007//团")
    for one in (body, body | {"subject": second}, body | {"product": "group_accident"}):
        assert request(alliance, "POST", "/v1/policies", one).status == 201
    address = at(body["policy_number"])
    assert len(request(alliance, "GET", address).body["policies"]) == 3
    for change in ({}, {"product": "accident"}, {"subject": first}):
        refused = request(alliance, "PUT", address, {"insured_amount": "1.00"} | change)
        assert (refused.status, refused.body["code"]) == (409, "policy-ambiguous")
        assert request(alliance, "POST", address + "/cancellation", change).status == 409
    named = {"subject": first, "product": "accident"}
    assert request(alliance, "PUT", address, {"insured_amount": "6000000"} | named).body["outcome"] == "corrected"
    wrong = request(alliance, "POST", address + "/cancellation", {"subject": somebody()})
    assert (wrong.status, wrong.body["code"]) == (404, "policy-unknown")
    assert request(alliance, "POST", address + "/cancellation", {"subject": second}).body["outcome"] == "corrected"
    states = request(alliance, "GET", address).body["policies"]
    found = sorted((state["product"], state["insured_amount"], state["status"]) for state in states)
    assert found == [
        ("accident", "0.00", "cancelled"),
        ("accident", "6000000.00", "in_force"),
        ("group_accident", "5000000.00", "in_force"),
    ]


def test_what_does_not_fit_a_policy_is_refused_and_changes_nothing(alliance: LiveAlliance) -> None:
    subject = somebody()
    body = policy(subject, "9000000")
    number = body["policy_number"]
    assert request(alliance, "POST", "/v1/policies", body).status == 201
    tomorrow = (china_today() + dt.timedelta(days=1)).isoformat()
    refusals = [
        request(alliance, "POST", "/v1/policies", body | {"insured_amount": "9000001"}),
        request(alliance, "POST", "/v1/policies", body | {"issued_on": tomorrow}),
        request(alliance, "PUT", at("never-issued"), {"insured_amount": "1"}),
        request(alliance, "POST", at("never-issued") + "/cancellation", {}),
        request(alliance, "GET", at("never-issued")),
        request(alliance, "PUT", at(number), {"insured_amount": "0"}),
        request(alliance, "PUT", at(number), {"insured_amount": "1", "product": "no such"}),
    ]
    told = [(answer.status, answer.body["code"]) for answer in refusals]
    assert told == [
        (409, "policy-conflict"),
        (409, "policy-conflict"),
        (404, "policy-unknown"),
        (404, "policy-unknown"),
        (404, "policy-unknown"),
        (422, "amount-not-positive"),
        (422, "product-unknown"),
    ]
    assert all(answer.body["hint"] for answer in refusals)
    wait_until_visible(alliance, number)
    assert_total(alliance, subject, 9_000_000)
    request(alliance, "POST", at(number) + "/cancellation", {})
    late = request(alliance, "PUT", at(number), {"insured_amount": "1"})
    assert (late.status, late.body["code"]) == (409, "policy-cancelled")


def test_a_file_and_the_interface_speak_of_the_same_policy(alliance: LiveAlliance, tmp_path: Path) -> None:
    subject = somebody()
    who = (subject["document_type"], subject["document_number"])
    day = china_today().isoformat()
    row = ("BOTH-1", *who, "accident", "8000000.00", day, "issue")
    file = write_policies(tmp_path, 1, [row])
    assert alliance.agent(1, "import", str(file)).returncode == 0
    assert request(alliance, "POST", "/v1/policies", policy(subject, "8000000", policy_number="BOTH-1")).status == 200
    assert request(alliance, "PUT", at("BOTH-1"), {"insured_amount": "5000000"}).body["outcome"] == "corrected"
    night = write_policies(tmp_path, 2, [row, ("BOTH-1", *who, "accident", "5000000.00", day, "amend")])
    assert "2 repeated" in alliance.agent(1, "import", str(night)).stderr
    wait_until_visible(alliance, "BOTH-1")
    assert_total(alliance, subject, 5_000_000)


# --- checks --------------------------------------------------------------------------------------------------------


def test_several_rules_are_one_check_with_a_verdict_each(alliance: LiveAlliance) -> None:
    subject = somebody()
    bodies = [policy(subject, "40000000"), policy(subject, "30000000", product="group_accident")]
    for body in bodies:
        request(alliance, "POST", "/v1/policies", body)
        wait_until_visible(alliance, body["policy_number"])
    rules = ["accident-policies-30d", "accident-30d", "all-accident-90d"]
    asked = question(subject, "10000000.00", rules=rules, reference="UW-7")
    del asked["rule"]
    before = len(alliance.captured("service"))
    answer = request(alliance, "POST", "/v1/checks", asked, member=3).body
    assert [(result["rule"], result["verdict"]) for result in answer["results"]] == [
        ("accident-policies-30d", "within"),
        ("accident-30d", "within"),
        ("all-accident-90d", "within"),
    ]
    asked["proposed_amount"] = "10000000.01"
    answer = request(alliance, "POST", "/v1/checks", asked, member=3).body
    assert [result["verdict"] for result in answer["results"]] == ["within", "exceeds", "exceeds"]
    assert [result["advice"] for result in answer["results"]] == ["proceed", "refer", "refer"]
    assert (answer["reference"], len(answer["check_id"])) == ("UW-7", 32)
    assert "verdict" not in answer
    sent = [entry for entry in alliance.captured("service")[before:] if entry["path"] == "/v1/checks"]
    assert [len(decode(CheckRequest, base64.b64decode(entry["request"])).signed.statement.lanes) for entry in sent] == [
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"rules": ["accident-30d"]}, 422, "invalid-request"),
        ({"rule": None}, 422, "invalid-request"),
        ({"rule": "…", "rules": None}, 422, "invalid-request"),
        ({"rules": []}, 422, "invalid-request"),
        ({"rules": ["accident-30d", "accident-30d"]}, 422, "invalid-request"),
        ({"rules": ["accident-30d", "no-such"]}, 404, "unknown-rule"),
        ({"rules": ["accident-30d", 7]}, 422, "invalid-request"),
        ({"rules": [f"rule-{number}" for number in range(17)]}, 422, "invalid-request"),
        ({"rules": "accident-30d"}, 422, "invalid-request"),
    ],
)
def test_rules_are_named_in_one_way_and_once(
    alliance: LiveAlliance, change: dict[str, Any], status: int, code: str
) -> None:
    asked = question(somebody(), "1.00")
    if "rule" not in change and change != {"rules": ["accident-30d"]}:
        del asked["rule"]
    answer = request(alliance, "POST", "/v1/checks", asked | change)
    assert (answer.status, answer.body["code"]) == (status, code)
    assert answer.body["hint"]


def test_advice_refers_what_exceeds_and_says_when_to_ask_again(alliance: LiveAlliance) -> None:
    subject = somebody()
    within = request(alliance, "POST", "/v1/checks", question(subject, "50000000")).body
    assert (within["verdict"], within["advice"], within["retry_after"]) == ("within", "proceed", None)
    exceeds = request(alliance, "POST", "/v1/checks", question(subject, "50000000.01")).body
    assert (exceeds["verdict"], exceeds["advice"], exceeds["retry_after"]) == ("exceeds", "refer", None)
    for member in (4, 5, 6):
        alliance.kill(member)
    try:
        void = request(alliance, "POST", "/v1/checks", question(subject, "1"), Idempotency_Key="void").body
        assert (void["verdict"], void["exceeds_limit"], void["advice"]) == ("indeterminate", None, "retry")
        assert void["retry_after"] in RETRY_SECONDS.values()
    finally:
        for member in (4, 5, 6):
            alliance.restart(member)

    def answered() -> bool:
        again = request(alliance, "POST", "/v1/checks", question(subject, "1"), Idempotency_Key="void").body
        return bool(again["verdict"] == "within")  # an indeterminate answer was not kept under the key

    wait_until(answered)


def test_a_spent_budget_is_referred_and_ends_no_sooner_than_the_day(alliance: LiveAlliance) -> None:
    subject = somebody()
    rules = ["accident-30d", "accident-policies-30d"]
    last: dict[str, Any] = {}
    for _ in range(90):  # 50 answers of each custodian, four of five a check
        last = request(alliance, "POST", "/v1/checks", question(subject, "1.00"), member=5).body
        if last["reason"] == "budget-exhausted":
            break
    assert (last["verdict"], last["reason"], last["advice"]) == ("indeterminate", "budget-exhausted", "refer")
    now = dt.datetime.fromisoformat(last["checked_at"])
    midnight = dt.datetime.combine(now.date() + dt.timedelta(days=1), dt.time(), now.tzinfo)
    assert 0 <= last["retry_after"] - (midnight - now).total_seconds() <= 1
    both = question(subject, "1.00", rules=rules)
    del both["rule"]
    results = request(alliance, "POST", "/v1/checks", both, member=5).body["results"]
    assert [(result["verdict"], result["reason"]) for result in results] == [
        ("indeterminate", "budget-exhausted"),
        ("within", None),
    ]


# --- many checks -----------------------------------------------------------------------------------------------------


def test_a_batch_is_answered_at_once_and_in_order(alliance: LiveAlliance) -> None:
    over = somebody()
    body = policy(over, "50000000")
    assert request(alliance, "POST", "/v1/policies", body).status == 201
    wait_until_visible(alliance, body["policy_number"])
    asked = [question(over if place % 3 == 0 else somebody(), "0.01", reference=str(place)) for place in range(120)]
    for _ in range(5):
        found = request(alliance, "POST", "/v1/checks/batch", {"checks": asked}, member=2).body["results"]
        reasons = {one["reason"] for one in found}
        if "timeout" not in reasons:  # a busy machine
            break
    assert reasons == {None}
    assert [(one["reference"], one["verdict"]) for one in found] == [
        (str(place), "within" if place % 3 else "exceeds") for place in range(120)
    ]


@pytest.mark.long
def test_a_job_goes_on_after_its_agent_was_killed(alliance: LiveAlliance) -> None:
    over = somebody()
    body = policy(over, "50000000")
    assert request(alliance, "POST", "/v1/policies", body).status == 201
    wait_until_visible(alliance, body["policy_number"])
    asked = [question(over if place == 7 else somebody(), "0.01", reference=str(place)) for place in range(400)]
    job = request(alliance, "POST", "/v1/checks/jobs", {"checks": asked}, member=6).headers["Location"]

    def done() -> int:
        count: int = request(alliance, "GET", job, member=6).body["done"]
        return count

    wait_until(lambda: done() > 0)
    alliance.kill(6)
    alliance.restart(6)
    assert 0 < done() <= len(asked)
    wait_until(lambda: done() == len(asked), 120)
    with urlopen(
        Request(
            alliance.member(6)["url"] + job + "/result",
            headers={"Authorization": f"Bearer {alliance.member(6)['api_key']}"},
        ),
        timeout=10,
        context=alliance.context,
    ) as response:
        found = [json.loads(line) for line in response]
    assert [(one["index"], one["reference"], one["verdict"]) for one in found] == [
        (place, str(place), "exceeds" if place == 7 else "within") for place in range(len(asked))
    ]
    assert request(alliance, "DELETE", job, member=6).status == 204
    assert request(alliance, "GET", job, member=6).status == 404


# --- the same request again ----------------------------------------------------------------------------------------


def budget_spent(alliance: LiveAlliance) -> int:
    spent = 0
    for member in range(1, MEMBERS + 1):
        with alliance.database(member) as connection:
            row = connection.execute("SELECT coalesce(sum(answers), 0) FROM budget").fetchone()
            assert row is not None
            spent += int(row[0])
    return spent


def test_the_same_check_under_one_key_is_answered_as_it_was_and_asks_nobody(
    alliance: LiveAlliance, member: int
) -> None:
    subject = somebody()
    asked = question(subject, "50000000", reference="UW-9")
    first = request(alliance, "POST", "/v1/checks", asked, member=member, Idempotency_Key="K-1")
    assert first.body["verdict"] == "within"
    body = policy(subject, "1.00")
    request(alliance, "POST", "/v1/policies", body)
    wait_until_visible(alliance, body["policy_number"])
    spent = budget_spent(alliance)
    reordered = dict(reversed(asked.items()))
    again = request(alliance, "POST", "/v1/checks", reordered, member=member, Idempotency_Key="K-1")
    assert again.body == first.body
    assert (first.headers["Idempotency-Replayed"], again.headers["Idempotency-Replayed"]) == (None, "true")
    assert (first.headers["Idempotency-Kept"], again.headers["Idempotency-Kept"]) == (None, None)
    assert budget_spent(alliance) == spent
    other = request(alliance, "POST", "/v1/checks", asked, member=member, Idempotency_Key="K-2")
    assert other.body["verdict"] == "exceeds"
    assert budget_spent(alliance) == spent + 4


def test_another_request_under_a_key_is_refused(alliance: LiveAlliance, member: int) -> None:
    subject = somebody()
    asked = question(subject, "1.00")
    assert request(alliance, "POST", "/v1/checks", asked, member=member, Idempotency_Key="K-3").status == 200
    for method, path, body in (
        ("POST", "/v1/checks", asked | {"proposed_amount": "1.01"}),
        ("POST", "/v1/policies", policy(subject)),
        ("PUT", at("any"), {"insured_amount": "1"}),
    ):
        refused = request(alliance, method, path, body, member=member, Idempotency_Key="K-3")
        assert (refused.status, refused.body["code"]) == (422, "idempotency-key-reused")
    other = api_key(alliance, "make", "claims", member=member).stdout.strip()
    again = request(alliance, "POST", "/v1/checks", asked, member=member, key=other, Idempotency_Key="K-3")
    assert (again.status, again.headers["Idempotency-Replayed"]) == (200, None)


def test_a_refused_request_leaves_its_key_free(alliance: LiveAlliance, member: int) -> None:
    asked = question(somebody(), "1.00")
    wrong = asked | {"rule": "no-such-rule"}
    assert request(alliance, "POST", "/v1/checks", wrong, member=member, Idempotency_Key="K-4").status == 404
    assert request(alliance, "POST", "/v1/checks", asked, member=member, Idempotency_Key="K-4").status == 200


def test_requests_under_one_key_at_once_are_one(alliance: LiveAlliance, member: int) -> None:
    asked = question(somebody(), "1.00")

    def ask(_: int) -> Answer:
        return request(alliance, "POST", "/v1/checks", asked, member=member, Idempotency_Key="K-5")

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    told = [answer.body["code"] for answer in answers if answer.status != 200]
    assert set(told) <= {"idempotency-key-in-use"}
    assert len({answer.body["check_id"] for answer in answers if answer.status == 200}) == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "tab\there", "caf\u00e9"])
def test_a_malformed_key_is_refused(alliance: LiveAlliance, member: int, key: str) -> None:
    asked = question(somebody(), "1.00")
    refused = request(alliance, "POST", "/v1/checks", asked, member=member, Idempotency_Key=key)
    assert (refused.status, refused.body["code"]) == (400, "idempotency-key-malformed")


def test_what_is_kept_for_repeats_shows_neither_key_nor_answer(alliance: LiveAlliance) -> None:
    member = BY_BACKEND["postgresql"]
    asked = question(somebody(), "1.00", reference="MARK-7")
    request(alliance, "POST", "/v1/checks", asked, member=member, Idempotency_Key="K-CANARY")
    with alliance.database(member) as connection:
        rows = connection.execute("SELECT * FROM idempotency").fetchall()
    kept = b"".join(bytes(value) for row in rows for value in row if isinstance(value, bytes))
    assert len(rows) >= 3
    assert all(mark not in kept for mark in (b"K-CANARY", b"MARK-7", b"within", b"accident"))
    with alliance.database(BY_BACKEND["redis"]) as connection:
        assert connection.execute("SELECT * FROM idempotency").fetchall() == []


# --- Redis ---------------------------------------------------------------------------------------------------------


def test_nothing_in_redis_names_a_person_an_amount_a_policy_or_a_key(
    alliance: LiveAlliance, redis_server: EmbeddedRedis
) -> None:
    subject, key = somebody(), alliance.member(1)["api_key"]
    with redis_server.watched() as seen:
        asked = question(subject, "7654321.00", reference="MARK-7")
        for _ in range(2):
            assert request(alliance, "POST", "/v1/checks", asked, Idempotency_Key="K-CANARY").status == 200
        body = policy(subject, "7654321.00")
        assert request(alliance, "POST", "/v1/policies", body, Idempotency_Key="K-CANARY-2").status == 201
        wait_until_visible(alliance, body["policy_number"])
        text = seen()
    for what in (":idempotency:", ":insurer-01:checks:", ":insurer-01:policies:", "limit:local:deposits:insurer-01"):
        assert what in text
    document = subject["document_number"]
    for mark in (document, "7654321", "765432100", body["policy_number"], "MARK-7", "CANARY", "within", "accident"):
        assert mark not in text
    assert not any(secret in text for secret in (key, key.removeprefix("cover_"), "cover_"))


def asked_until_answered(alliance: LiveAlliance, subject: dict[str, str], amount: str, key: str | None) -> Answer:
    """Ask under a key or none, again if a busy machine was too slow for the check itself."""
    for number in range(5):
        fresh = None if key is None else f"{key}-{number}"
        answer = request(alliance, "POST", "/v1/checks", question(subject, amount), Idempotency_Key=fresh)
        if answer.status != 200 or answer.body["reason"] != "timeout":
            break
    return answer


def amended(alliance: LiveAlliance, number: object, amount: str, key: str | None) -> Answer:
    return request(alliance, "PUT", at(number), {"insured_amount": amount}, Idempotency_Key=key)


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_without_redis_checks_go_on_and_changes_under_a_key_wait(
    alliance: LiveAlliance, redis_server: EmbeddedRedis, fault: str
) -> None:
    subject = somebody()
    body = policy(subject)
    number = body["policy_number"]
    assert request(alliance, "POST", "/v1/policies", body, Idempotency_Key=f"{fault}-P").status == 201
    wait_until_visible(alliance, number)
    with redis_server.killed() if fault == "killed" else redis_server.stopped():
        for _ in range(3):
            answer = asked_until_answered(alliance, subject, "20000000", fault)
            assert (answer.status, answer.body["verdict"]) == (200, "within")
            assert answer.headers["Idempotency-Kept"] == "false"
            plain = asked_until_answered(alliance, subject, "20000000.01", None)
            assert (plain.body["verdict"], plain.headers["Idempotency-Kept"]) == ("exceeds", None)
        waiting = amended(alliance, number, "2.00", f"{fault}-A")
        assert (waiting.status, waiting.body["code"]) == (503, "idempotency-unavailable")
        assert waiting.headers["Retry-After"] == str(waiting.body["retry_after"]) == "1"
        assert amended(alliance, number, "3.00", None).status == 200  # without a key there is nothing to look up
    # What Redis took while it hung is under way for as long as a killed request is, so it is another key now.
    wait_until(lambda: amended(alliance, number, "4.00", f"{fault}-{secrets.token_hex(8)}").status == 200)
    first = amended(alliance, number, "2.00", f"{fault}-B")
    assert amended(alliance, number, "5.00", f"{fault}-C").status == 200
    again = amended(alliance, number, "2.00", f"{fault}-B")  # does not undo what came after it
    assert (again.body, again.headers["Idempotency-Replayed"]) == (first.body, "true")
    (state,) = request(alliance, "GET", at(number)).body["policies"]
    assert state["insured_amount"] == "5.00"


def test_an_api_key_that_asks_too_much_is_told_when_to_ask_again(alliance: LiveAlliance) -> None:
    config = alliance.member_state(LIMITED) / "config.toml"
    before = config.read_text()
    rates = "checks_a_second = 0.01\nchecks_at_once = 3\npolicies_a_second = 0.01\npolicies_at_once = 4\n"
    config.write_text(before.replace("redis_seconds = 0.3", "redis_seconds = 2") + rates + "workers = 2\n")
    alliance.kill(LIMITED)
    alliance.restart(LIMITED)
    try:
        asked = question(somebody(), "1.00")
        answers = [request(alliance, "POST", "/v1/checks", asked, member=LIMITED) for _ in range(8)]
        assert [answer.status for answer in answers] == [200] * 3 + [429] * 5
        refused = answers[-1]
        assert (refused.body["code"], refused.content_type) == ("rate-limited", "application/problem+json")
        assert 0 < refused.body["retry_after"] <= 100
        assert refused.headers["Retry-After"] == str(refused.body["retry_after"])
        assert refused.body["hint"]
        changes = [request(alliance, "GET", at("none"), member=LIMITED).status for _ in range(4)]
        assert changes == [404] * 4
        assert request(alliance, "POST", "/v1/policies", policy(somebody()), member=LIMITED).status == 429
        assert request(alliance, "PUT", at("none"), {"insured_amount": "1"}, member=LIMITED).status == 429
        assert request(alliance, "GET", at("none"), member=LIMITED).status == 429
        assert request(alliance, "GET", "/v1/status", member=LIMITED).status == 200
        other = api_key(alliance, "make", "claims", member=LIMITED).stdout.strip()
        assert request(alliance, "POST", "/v1/checks", asked, member=LIMITED, key=other).status == 200
        assert request(alliance, "POST", "/v1/checks", asked, member=LIMITED, key="cover_none").status == 401
    finally:
        config.write_text(before)
        alliance.kill(LIMITED)
        alliance.restart(LIMITED)


# --- API keys ------------------------------------------------------------------------------------------------------


def api_key(alliance: LiveAlliance, *arguments: str, member: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "insurer_agent.cli", "api-key", *arguments]
    command += ["--role", "underwriter"] if arguments[0] == "make" else []
    command += ["--state", str(alliance.member_state(member))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.long
def test_keys_are_made_listed_and_revoked_while_the_agent_runs(alliance: LiveAlliance) -> None:
    key = api_key(alliance, "make", "core-system").stdout.strip()
    again = api_key(alliance, "make", "core-system")
    assert (again.returncode, again.stdout) == (2, "")
    assert "core-system" in again.stderr
    assert request(alliance, "GET", "/v1/rules", key=key).status == 200
    listed = api_key(alliance, "list").stdout
    assert [line.split("\t")[1] != "never" for line in listed.splitlines() if line.endswith("\tcore-system")] == [True]
    assert key not in listed
    new = api_key(alliance, "make", "core-system", "--replace").stdout.strip()
    wait_until(lambda: request(alliance, "GET", "/v1/rules", key=key).status == 401, 2 * REMEMBERED_SECONDS)
    assert request(alliance, "GET", "/v1/rules", key=new).status == 200
    assert api_key(alliance, "revoke", "core-system").returncode == 0
    wait_until(lambda: request(alliance, "GET", "/v1/rules", key=new).status == 401, 2 * REMEMBERED_SECONDS)
    assert api_key(alliance, "revoke", "core-system").returncode == 2


# --- completeness ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_an_answer_says_how_complete_deposits_are_and_a_rule_may_ask_for_more(alliance: LiveAlliance) -> None:
    asked = question(somebody(), "1.00", rules=["accident-30d", "all-accident-90d"])
    del asked["rule"]

    def told(amount: str) -> dict[str, Any]:
        for _ in range(5):
            answer = request(alliance, "POST", "/v1/checks", asked | {"proposed_amount": amount}, member=4).body
            if "timeout" not in [result["reason"] for result in answer["results"]]:  # a busy machine
                break
        return answer

    def current() -> int:  # asking checks for it would spend the budget
        found: int = request(alliance, "GET", "/v1/status", member=4).body["completeness"]["current"]
        return found

    wait_until(lambda: current() == MEMBERS)
    whole = told("1.00")
    assert [result["verdict"] for result in whole["results"]] == ["within", "within"]
    assert whole["completeness"]["members"] == MEMBERS
    behind = dt.datetime.fromisoformat(whole["checked_at"]) - dt.datetime.fromisoformat(whole["completeness"]["oldest"])
    assert dt.timedelta(seconds=60) <= behind < dt.timedelta(seconds=200)
    floors = {rule["id"]: rule["min_current"] for rule in request(alliance, "GET", "/v1/rules").body["rules"]}
    assert (floors["accident-30d"], floors["all-accident-90d"]) == (0, 5)

    def forgotten() -> bool:
        """Have the agent forget the directory, until it asks for it again."""
        with alliance.database(4) as connection:
            connection.execute("DELETE FROM setting WHERE name = 'directory'")
        return current() == 0

    for amount, expected in (
        ("1.00", [("within", None), ("indeterminate", "incomplete")]),
        ("90000000", [("exceeds", None), ("exceeds", None)]),
    ):
        for _ in range(5):  # in between it may ask for the directory again
            wait_until(forgotten)
            answer = told(amount)
            if answer["completeness"]["current"] == 0:
                break
        assert answer["completeness"] == {"members": MEMBERS, "current": 0, "oldest": None}
        assert [(result["verdict"], result["reason"]) for result in answer["results"]] == expected
    wait_until(lambda: current() == MEMBERS)
    assert [result["verdict"] for result in told("1.00")["results"]] == ["within", "within"]


# --- what is on its way --------------------------------------------------------------------------------------------


def test_what_is_set_aside_is_told_in_numbers_and_by_the_command(alliance: LiveAlliance) -> None:
    command = [sys.executable, "-m", "insurer_agent.cli", "outbox", "--state", str(alliance.member_state(1))]
    healthy = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (healthy.returncode, healthy.stdout.splitlines()[-1]) == (0, "0 of those not made are set aside")
    with alliance.database(1) as connection:
        # As if its storage had failed; it counts for nobody.
        connection.execute(
            "INSERT INTO deposit (deposit_id, person_key, shard, excluded, entry)"
            " VALUES ('\\x00'::bytea, '\\x00'::bytea, 0, 0, '\\x0001020304050607080910111213'::bytea)"
        )
    try:
        wait_until(lambda: request(alliance, "GET", "/v1/status").body["deposits_set_aside"] == 1)
        told = subprocess.run([*command, "--retry"], capture_output=True, text=True, timeout=60, check=False)
        assert told.returncode == 3
        assert told.stdout.splitlines()[-1].split("\t")[-1] == "damaged"
    finally:
        with alliance.database(1) as connection:
            connection.execute("DELETE FROM deposit WHERE deposit_id = '\\x00'::bytea")


# --- the interface's own description -------------------------------------------------------------------------------


def test_the_interface_describes_itself_to_all_and_says_nothing_of_its_state(alliance: LiveAlliance) -> None:
    described = request(alliance, "GET", "/openapi.json", key="").body
    agent = Agent.open(alliance.member_state(1), connections=1)
    try:
        app = make_app(agent)
    finally:
        agent.database.close()
    assert described == document(table(app))
    routes = app.url_map.iter_rules()
    served = {
        (re.sub(r"<(?:path:)?(\w+)>", r"{\1}", route.rule), method) for route in routes for method in route.methods
    }
    paths = described["paths"].items()
    ours = {(path, method.upper()) for path, methods in paths for method in methods if method != "parameters"}
    others = {path for path, method in served - ours if method not in {"HEAD", "OPTIONS"}}
    assert ours <= served
    assert {path.split("/")[1] for path in others} == {"docs", "openapi.json"}


def test_the_page_to_try_it_is_the_agents_own_and_runs_nothing_else(alliance: LiveAlliance) -> None:
    url = alliance.member(1)["url"]
    for path, kind in (("/docs", "text/html"), ("/docs/try.js", "text/javascript"), ("/docs/try.css", "text/css")):
        with urlopen(url + path, timeout=10, context=alliance.context) as response:
            assert response.headers.get_content_type() == kind
            policy = response.headers["Content-Security-Policy"]
            content = response.read().decode()
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "//" not in content.replace("// ", "")  # no address of another host
        assert "innerHTML" not in content
