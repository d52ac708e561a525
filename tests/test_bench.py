"""What the bench measures with: a baseline that is right, questions whose verdicts are, and a table that says so."""

import random
from collections import Counter
from decimal import Decimal
from itertools import islice
from xml.etree import ElementTree as ET

import central
import http_servers
import memory
import psycopg
import pytest
from book import LIMIT, policies, questions
from check_picture import REST, bars, picture
from load import Blocks, Run
from targets import TARGETS, beside, table
from verdicts import random_questions

KEY = "a key of the test"
ASKED = 60


def test_the_books_verdicts_are_those_of_the_plain_sum() -> None:
    totals: Counter[str] = Counter()
    for policy in policies(6):
        totals[policy.document] += int(100 * policy.amount)
    found = Counter()
    for question in islice(questions(), 3000):
        total = totals[question.body["subject"]["document_number"]]
        proposed = int(100 * Decimal(question.body["proposed_amount"]))
        assert question.verdict == ("exceeds" if total + proposed > 100 * LIMIT else "within")
        found[question.verdict, total > 0] += 1
    assert set(found) == {("exceeds", True), ("within", True), ("within", False)}
    assert min(found.values()) > 900


def test_the_random_cases_verdicts_are_those_of_the_plain_sum_and_every_other_is_at_the_limit() -> None:
    totals: Counter[str] = Counter()
    for policy in policies(6):
        totals[policy.document] += int(100 * policy.amount)
    near = 0
    found: Counter[tuple[str, bool]] = Counter()
    for question in islice(random_questions(random.Random(1)), 2000):  # noqa: S311  no secret
        total = totals[question.body["subject"]["document_number"]]
        left = int(100 * LIMIT) - total - int(100 * Decimal(question.body["proposed_amount"]))
        assert question.verdict == ("exceeds" if left < 0 else "within")
        near += abs(left) <= 3
        found[question.verdict, total > 0] += 1
    assert near > 800
    assert len(found) == 4
    assert min(found.values()) > 50


def test_the_central_check_answers_by_the_plain_sum_and_commits_an_audit(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    central.fill(database, 5000)
    monkeypatch.setenv(central.DATABASE, database)
    monkeypatch.setenv(central.API_KEY, KEY)
    app = central.make_app()
    caller, headers = app.test_client(), {"Authorization": f"Bearer {KEY}"}
    for question in islice(questions(), ASKED):
        answer = caller.post("/v1/checks", json=question.body, headers=headers)
        assert (answer.status_code, answer.json["verdict"]) == (200, question.verdict)
    body = next(questions()).body
    assert caller.post("/v1/checks", json=body).status_code == 401
    assert caller.post("/v1/checks", json=body | {"rule": "none"}, headers=headers).status_code == 422
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM policy)").fetchone()
    app.extensions["pool"].close()
    assert row == (ASKED, 5000)


def test_percentiles_are_answers_that_were_given() -> None:
    run = Run(latencies=[number / 1000 for number in range(1, 101)])
    assert [run.ms(part) for part in (0.01, 0.5, 0.99, 1)] == pytest.approx([1, 50, 99, 100])
    blocks = Blocks([[1.0, 2.0, 9.0], [3.0, 3.0, 3.0], [4.0, 5.0, 4.0]])
    assert (blocks.p50, blocks.p99) == (3.0, 9.0)
    assert blocks.noise_percent == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.what)
def test_a_figure_is_reached_met_or_short(target: object) -> None:
    assert isinstance(target, type(TARGETS[0]))
    better = 1.01 if target.more_is_better else 0.99
    assert [target.verdict(bound) for bound in (target.reach, target.must)] == ["reached", "met"]
    assert target.verdict(target.reach / better) == "met"
    assert target.verdict(target.must / better) == "short"
    assert target.ratio(target.must) == 1
    assert target.ratio(target.must * better) < 1


def test_the_table_says_what_was_not_measured() -> None:
    lines = table({"check_p50_ms_tls": 9.0, "central_p50_ms": 1.2, "batch_per_s": None}).splitlines()
    assert "| 10 times | 5 | 7.50 | - | 0.75 | met |" in lines[2]
    assert sum("not measured" in line for line in lines) == len(TARGETS) - 1


def test_the_table_is_read_with_the_tail_of_others_and_with_how_memory_is_read() -> None:
    assert beside({"machine": {"cores": 2, "read_ns_by_mb": {}, "read_ns_by_mb_at_the_end": {}}}) == []
    reads = {"1": 9.25, "16": 160.0}
    machine = {"read_ns_by_mb": reads, "read_ns_by_mb_at_the_end": {"1": 13.0, "16": 150.0}}
    busy = {"half_of_cores": 0.72}
    tail, read = beside({"machine": machine, "central_p99_over_p50": 6.61, "central_per_s": 780.6} | busy)
    assert "p99 6.6 times p50" in tail
    assert "781 a second" in tail
    assert "busy for 0.72 of the time as the cores are: 4.5 times (M/D/1)" in tail
    assert read.endswith("9.25 and 13 ns in 1 MB, 160 and 150 ns in 16 MB")


def test_memory_is_read_by_size_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    found = memory.read_ns(reads=100_000, rounds=1)
    assert list(found) == ["0.25", "1", "4", "16"]
    assert min(found.values()) > 0.3  # no processor loads what the load before tells it of in less than a cycle
    monkeypatch.setenv("PATH", "")
    assert memory.read_ns(reads=1000, rounds=1) == {}


def test_the_picture_accounts_for_all_of_a_checks_time() -> None:
    steps = {
        "1 requester: ask": {"way": 1.0, "core": 1.0, "alone": 1.0},
        "3 custodians: <garble>": {"way": 2.5, "core": 4.0, "alone": 1.0},
    }
    figures = {
        "check_steps_ms": steps,
        "check_p50_ms_plain": 9.0,
        "check_core_ms_one_client_plain": 12.0,
        "machine": {"cores": 2},
    }
    whole, found = bars(figures)
    assert (whole, found[-1].label) == (9.0, REST)
    assert sum(bar.way for bar in found) == pytest.approx(9.0)
    assert sum(bar.core for bar in found) == pytest.approx(12.0)
    texts = [element.text for element in ET.fromstring(picture(figures)).iter() if element.text]  # noqa: S314  our own
    assert "custodians: <garble>" in texts


def test_servers_are_compared_by_the_same_requests() -> None:
    found = http_servers.compare(requests=500, rounds=1)
    assert {"gunicorn, worker of threads", "gunicorn, this project's worker"} <= found.keys()
    assert all(one["p50_us"] > 0 and one["core_us"] > 0 for one in found.values())
    assert all(took > 0 for took in http_servers.parsers(requests=5, rounds=1).values())
