"""Jobs on real agents, in one process: handed in, asked in the background, killed, fetched as a file, removed."""

import csv
import io
import json
import logging
import secrets
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import Answer
from strategies import deterministic
from test_alliance import spellings_of_amount, spellings_of_text
from underwriting import BOTH, House, check, somebody, underwriting_house, yuan
from world import COUNT_RULE, LIMIT, RULE

import insurer_agent.check_jobs
import insurer_agent.rest.jobs
from insurer_agent.background import job_runner
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.intake.rejects import unescape
from insurer_agent.recheck import Pace
from insurer_agent.requester import Answer as Told
from insurer_agent.requester import Lane
from insurer_agent.rest.job_files import ANSWER_COLUMNS, COLUMNS, csv_lines, read_csv
from insurer_agent.rest.schemas import CheckAnswerSchema, ChecksAnswerSchema, JobSchema
from insurer_agent.store import check_jobs
from protocol.check import Void
from protocol.errors import ProtocolError
from transport.problems import Problem

QUICK = Pace(sleep=lambda _seconds: None, pauses=(0.0, 0.0))
PART = 8


class KilledError(Exception):
    """As if the process had ended there."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[House]:
    with underwriting_house(tmp_path_factory.mktemp("jobs"), postgres) as house:
        yield house


@pytest.fixture(autouse=True)
def _small(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have checks of few lanes, so that a job has several, and no job of another test."""
    monkeypatch.setattr(insurer_agent.check_jobs, "BATCH_LANES", PART)
    monkeypatch.setattr(insurer_agent.check_jobs, "AGAIN_LANES", PART // 2)
    house.there.aside.execute("DELETE FROM check_job")


def hand_in(house: House, checks: Sequence[object], **headers: str) -> str:
    made = house.request("POST", "/v1/checks/jobs", {"checks": list(checks)}, **headers)
    assert made.status == 202, made.body
    assert JobSchema().validate(made.body) == {}
    assert made.headers["Location"] == f"/v1/checks/jobs/{made.body['job_id']}"
    return str(made.body["job_id"])


def hand_in_csv(house: House, text: str | bytes) -> Answer:
    data = text if isinstance(text, bytes) else text.encode()
    return house.request("POST", "/v1/checks/jobs", data, Content_Type="text/csv")


def progress(house: House, job_id: str) -> Any:  # noqa: ANN401  JSON
    return house.request("GET", f"/v1/checks/jobs/{job_id}").body


def run(house: House, pace: Pace = QUICK, asks: Any = None) -> None:  # noqa: ANN401  in the requester's place
    runner = job_runner(house.agent, pace)
    runner._requester = asks or house.agent.requester
    runner.run(lambda: True)


def fetch(house: House, job_id: str, form: str = "") -> tuple[str, str]:
    """Return the kind and text of a job's result."""
    url = f"http://127.0.0.1:{house.there.wires['insurer-01'].port}/v1/checks/jobs/{job_id}/result{form}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {house.key}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.headers["Content-Type"], response.read().decode()


def lines(house: House, job_id: str) -> list[dict[str, Any]]:
    kind, text = fetch(house, job_id, "?format=jsonl")
    assert kind.startswith("application/x-ndjson")
    return [json.loads(line) for line in text.splitlines()]


def table(house: House, job_id: str, form: str = "?format=csv") -> list[dict[str, str]]:
    kind, text = fetch(house, job_id, form)
    assert kind.startswith("text/csv")
    assert text.startswith("\ufeff")
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


class Asker:
    """The requester, which looks on and fails as it is told."""

    def __init__(self, house: House, fails: Any = lambda _check: None) -> None:  # noqa: ANN401  a reason, or an error
        self.real = house.agent.requester
        self.fails = fails
        self.asked: list[list[Lane]] = []

    def check_many(self, lanes: Sequence[Lane], seconds: float) -> Told:
        self.asked.append(list(lanes))
        failure = self.fails(len(self.asked))
        if isinstance(failure, Exception):
            raise failure
        return self.real.check_many(lanes, seconds) if failure is None else self.unasked(lanes, failure)

    def unasked(self, lanes: Sequence[Lane], reason: Void) -> Told:
        return self.real.unasked(lanes, reason)

    @property
    def lanes(self) -> Counter[Lane]:
        return Counter(lane for lanes in self.asked for lane in lanes)


# --- what it answers -------------------------------------------------------------------------------------------------


def test_a_job_says_what_single_checks_and_the_plain_sum_say(house: House) -> None:
    people = [somebody() for _ in range(10)]
    policies = [
        (f"insurer-{1 + n % 6:02d}", people[n % 7], [1, LIMIT // 2, LIMIT - 1, LIMIT][n % 4]) for n in range(24)
    ]
    house.deposit(policies)
    asked, plain = [], []
    for place in range(40):
        whom, amount = people[place % 10], [0, 1, LIMIT // 2, LIMIT][place // 10]
        held = [fen for _, who, fen in policies if who == whom]
        told = {RULE.id: sum(held) + amount > LIMIT, COUNT_RULE.id: len(held) + (amount > 0) > COUNT_RULE.limit}
        rules = [[RULE.id], [COUNT_RULE.id, RULE.id]][place % 2]
        named = {"rule": rules[0]} if len(rules) == 1 else {"rules": rules}
        asked.append(check(whom, yuan(amount), reference=f"UW-{place}", **named))
        plain.append([(rule, "exceeds" if told[rule] else "within") for rule in rules])
    job_id = hand_in(house, asked)
    waiting = progress(house, job_id)
    assert (waiting["state"], waiting["total"], waiting["done"], waiting["started_at"]) == ("waiting", 40, 0, None)
    run(house)
    done = progress(house, job_id)
    assert JobSchema().validate(done) == {}
    assert (done["state"], done["done"], done["problems"]) == ("done", 40, 0)
    counts = Counter(verdict for rules in plain for _, verdict in rules)
    assert done["verdicts"] == {"exceeds": counts["exceeds"], "within": counts["within"], "indeterminate": 0}
    found = lines(house, job_id)
    assert [(one["index"], one["reference"]) for one in found] == [(place, f"UW-{place}") for place in range(40)]
    results = [[(one["rule"], one["verdict"]) for one in body.get("results", [body])] for body in found]
    assert results == plain
    for body in found:
        del body["index"]
        assert (ChecksAnswerSchema if "results" in body else CheckAnswerSchema)().validate(body) == {}
    for place in (0, 11, 25, 33):
        single = house.request("POST", "/v1/checks", asked[place]).body
        assert [(one["rule"], one["verdict"]) for one in single.get("results", [single])] == plain[place]
    rows = table(house, job_id)
    assert [(row["index"], row["rule"], row["verdict"]) for row in rows] == [
        (str(place) if place else "'0", f"'{rule}", verdict)
        for place, rules in enumerate(plain)
        for rule, verdict in rules
    ]


def test_items_of_a_shard_and_of_a_person_are_asked_together_and_the_same_lane_once(house: House) -> None:
    people = [somebody() for _ in range(12)]
    job_id = hand_in(house, [check(whom) for whom in [*people, *people]])
    asker = Asker(house)
    run(house, asks=asker)
    assert set(asker.lanes.values()) <= {1, 2}, "twice at most, where a person's items meet the end of a part"
    assert len(asker.lanes) == 12
    assert {len(lanes) <= PART for lanes in asker.asked} == {True}
    assert {one["verdict"] for one in lines(house, job_id)} == {"within"}


def test_a_csv_of_checks_is_answered_as_csv_with_its_bad_rows_told(house: House) -> None:
    whom = somebody()
    text = "\ufeff" + "\r\n".join(
        [
            "reference,rule,proposed_amount,document_type,document_number",
            f"=1+1,{RULE.id},1.00,passport,{whom}",
            "",
            f",{RULE.id},50000000.01, passport ,{whom}",
            f'"a, ""b""",no-such,1.00,passport,{whom}',
            f"short,{RULE.id},1.00",
            f"digits,{RULE.id},1.00,resident_id,110101194903070000",
            f'amount,{RULE.id},"1,000",passport,{whom}',
        ]
    )
    made = hand_in_csv(house, text)
    assert (made.status, made.body["total"], made.body["done"], made.body["problems"]) == (202, 6, 4, 4)
    run(house)
    rows = table(house, made.body["job_id"], "")
    assert tuple(rows[0]) == ANSWER_COLUMNS
    told = [(row["reference"], row["verdict"], row["problem"]) for row in rows]
    assert told == [
        ("'=1+1", "within", ""),
        ("", "exceeds", ""),
        ('a, "b"', "", "unknown-rule"),
        ("", "", "invalid-request"),
        ("digits", "", "number-lost-digits"),
        ("amount", "", "amount-not-plain-decimal"),
    ]
    assert [one.get("code") for one in lines(house, made.body["job_id"])] == [
        *(None, None, "unknown-rule", "invalid-request", "number-lost-digits", "amount-not-plain-decimal")
    ]


def test_a_job_of_bad_items_alone_is_done_at_once(house: House) -> None:
    job_id = hand_in(house, [None, {}, check("?", reference="R")])
    done = progress(house, job_id)
    assert (done["state"], done["done"], done["problems"]) == ("done", 3, 3)
    assert [(one["index"], one["code"]) for one in lines(house, job_id)] == [
        (0, "invalid-request"),
        (1, "invalid-request"),
        (2, "document-number-malformed"),
    ]


# --- what it refuses -------------------------------------------------------------------------------------------------

HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "csv-header"),
        ("a,b\n1,2\n", "csv-header"),
        (f"{HEADER},reference,more\n", "csv-header"),
        (f"{HEADER},rule\n", "csv-header"),
        (HEADER.replace(",", ";") + "\n", "csv-header"),
        (HEADER + "\n", "too-many-checks"),
        (HEADER + '\n"open,', "csv-malformed"),
        ((HEADER + "\nx,").encode("utf-16"), "csv-malformed"),
        ((HEADER + "\npassport,\u8eab\u4efd").encode("gb18030"), "csv-malformed"),
    ],
)
def test_what_is_no_csv_of_checks_is_refused_whole(house: House, text: str | bytes, code: str) -> None:
    refused = hand_in_csv(house, text)
    assert (refused.status, refused.body["code"]) == (422, code)
    assert refused.body["hint"]
    assert house.there.aside.execute("SELECT count(*) FROM check_job").fetchone() == (0,)


def test_a_job_has_so_many_checks_and_bytes_and_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insurer_agent.rest.jobs, "MAX_JOB", 3)
    monkeypatch.setattr(insurer_agent.rest.jobs, "MAX_JOB_BYTES", 2000)
    assert house.request("POST", "/v1/checks/jobs", {"checks": [None] * 3}).status == 202
    refused = house.request("POST", "/v1/checks/jobs", {"checks": [None] * 4})
    assert (refused.status, refused.body["code"]) == (422, "too-many-checks")
    assert hand_in_csv(house, HEADER + "\na,b,c,d" * 4).body["code"] == "too-many-checks"
    for refused in (house.request("POST", "/v1/checks/jobs", b" " * 2001), hand_in_csv(house, HEADER + "\n" * 2001)):
        assert (refused.status, refused.body["code"]) == (413, "request-entity-too-large")


def test_an_api_key_has_so_many_open_jobs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_jobs, "MAX_OPEN", 2)
    first, _ = (hand_in(house, [check(somebody())]) for _ in range(2))
    refused = house.request("POST", "/v1/checks/jobs", {"checks": [check(somebody())]})
    assert (refused.status, refused.body["code"], refused.body["retry_after"]) == (429, "too-many-jobs", 60)
    other = replace(house, key=house.agent.api_keys.make("claims", secrets.token_bytes, roles=BOTH, replace=True))
    hand_in(other, [check(somebody())])
    run(house)
    assert progress(house, first)["state"] == "done"
    hand_in(house, [check(somebody())])


def test_an_api_key_has_so_many_jobs_done_or_not(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = (hand_in(house, [None]) for _ in range(2))  # done at once: their item is bad
    monkeypatch.setattr(check_jobs, "MAX_KEPT", 2)
    refused = house.request("POST", "/v1/checks/jobs", {"checks": [None]})
    assert (refused.status, refused.body["code"]) == (429, "too-many-jobs")
    assert house.request("DELETE", f"/v1/checks/jobs/{first}").status == 204
    hand_in(house, [None])


def test_a_job_is_the_api_keys_that_handed_it_in(house: House) -> None:
    job_id = hand_in(house, [None])
    other = replace(house, key=house.agent.api_keys.make("claims", secrets.token_bytes, roles=BOTH, replace=True))
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/result")):
        for asking, unknown in ((other, job_id), (house, "0" * 32), (house, job_id.upper()), (house, "x")):
            refused = asking.request(method, f"/v1/checks/jobs/{unknown}{path}")
            assert (refused.status, refused.body["code"]) == (404, "unknown-job")
        assert replace(house, key="cover_none").request(method, f"/v1/checks/jobs/{job_id}{path}").status == 401
    assert progress(house, job_id)["state"] == "done"


def test_a_result_is_there_once_the_job_is_done_and_in_two_forms(house: House) -> None:
    job_id = hand_in(house, [check(somebody())])
    early = house.request("GET", f"/v1/checks/jobs/{job_id}/result")
    assert (early.status, early.body["code"]) == (409, "job-not-done")
    assert early.headers["Retry-After"] == str(early.body["retry_after"])
    run(house)
    other = house.request("GET", f"/v1/checks/jobs/{job_id}/result?format=xml")
    assert (other.status, other.body["code"]) == (422, "unknown-format")
    assert fetch(house, job_id)[0].startswith("application/x-ndjson")


# --- what fails ------------------------------------------------------------------------------------------------------


def test_a_job_whose_process_is_killed_goes_on_where_it_was(house: House) -> None:
    people = [somebody() for _ in range(40)]
    job_id = hand_in(house, [check(whom) for whom in people])
    asker = Asker(house)

    def killed(_seconds: float) -> None:
        if len(asker.asked) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run(house, replace(QUICK, sleep=killed), asker)
    half = progress(house, job_id)
    assert (half["state"], half["done"]) == ("running", sum(asker.lanes.values()))
    assert 0 < half["done"] <= 2 * PART
    assert house.request("GET", f"/v1/checks/jobs/{job_id}/result").body["code"] == "job-not-done"
    again = Asker(house, fails=lambda check: KilledError() if check == 2 else None)
    with pytest.raises(KilledError):  # after it had asked, before anything was kept
        run(house, asks=again)
    last = Asker(house)
    run(house, asks=last)
    assert progress(house, job_id)["state"] == "done"
    assert {one["verdict"] for one in lines(house, job_id)} == {"within"}
    total = asker.lanes + again.lanes + last.lanes
    assert set(total) == set(Counter(asker.lanes + again.lanes + last.lanes))
    assert len(total) == 40
    assert {lane for lane, times in total.items() if times > 1} == set(again.asked[1]), "what was settled is not asked"


@pytest.mark.parametrize("reason", [Void.TIMEOUT, Void.TOO_FEW_CUSTODIANS, Void.DISAGREEMENT])
def test_an_item_without_an_answer_for_now_is_asked_again_in_smaller_checks(house: House, reason: Void) -> None:
    people = [somebody() for _ in range(30)]
    job_id = hand_in(house, [check(whom) for whom in people])
    asker = Asker(house, fails=lambda check: reason if check <= 2 else None)
    run(house, asks=asker)
    assert {one["verdict"] for one in lines(house, job_id)} == {"within"}
    failed = Counter(lane for lanes in asker.asked[:2] for lane in lanes)
    assert asker.lanes == Counter(dict.fromkeys(asker.lanes, 1)) + failed
    retried = [lanes for lanes in asker.asked[2:] if set(lanes) & set(failed)]
    assert {len(lanes) <= PART // 2 for lanes in retried} == {True}


def test_what_is_never_answered_ends_indeterminate_after_three_tries_and_never_within(house: House) -> None:
    whom = somebody()
    job_id = hand_in(house, [check(whom, rules=[RULE.id, COUNT_RULE.id])])
    asker = Asker(house, fails=lambda _: Void.TIMEOUT)
    run(house, asks=asker)
    assert len(asker.asked) == 3
    done = progress(house, job_id)
    assert (done["state"], done["verdicts"]) == ("done", {"exceeds": 0, "within": 0, "indeterminate": 2})
    (body,) = lines(house, job_id)
    assert [(one["verdict"], one["reason"], one["exceeds_limit"]) for one in body["results"]] == [
        ("indeterminate", "timeout", None)
    ] * 2


def test_between_tries_an_item_rests_and_other_jobs_go_on(house: House) -> None:
    first = hand_in(house, [check(somebody())])
    second = hand_in(house, [check(somebody())])
    run(house, replace(QUICK, pauses=(3600.0,)), Asker(house, fails=lambda check: Void.TIMEOUT if check == 1 else None))
    assert [progress(house, job_id)["state"] for job_id in (first, second)] == ["running", "done"]
    house.there.aside.execute("UPDATE check_job_item SET due_at = now() WHERE due_at IS NOT NULL")
    run(house)
    assert progress(house, first)["state"] == "done"


@pytest.mark.parametrize("reason", [Void.BUDGET_EXHAUSTED, Void.REFUSED, Void.INCOMPLETE])
def test_a_reason_that_does_not_pass_is_told_at_once(house: House, reason: Void) -> None:
    job_id = hand_in(house, [check(somebody())])
    asker = Asker(house, fails=lambda _: reason)
    run(house, asks=asker)
    assert len(asker.asked) == 1
    assert [(one["verdict"], one["reason"]) for one in lines(house, job_id)] == [("indeterminate", reason.value)]


@pytest.mark.parametrize(
    "failure", [ProtocolError("busy", "not now"), ProtocolError("rate-limited", "not now"), Void.SERVICE_UNAVAILABLE]
)
def test_while_the_service_takes_nothing_a_job_waits_longer_each_time(house: House, failure: object) -> None:
    job_id, slept = hand_in(house, [check(somebody())]), list[float]()
    asker = Asker(house, fails=lambda check: failure if check <= 8 else None)
    run(house, replace(QUICK, sleep=slept.append, rest=0.0), asker)
    assert slept[:8] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert progress(house, job_id)["verdicts"]["within"] == 1


def test_it_rests_as_long_as_a_check_took_and_stops_when_another_process_may_work(house: House) -> None:
    job_id, slept = hand_in(house, [check(somebody()) for _ in range(30)]), list[float]()
    runner = job_runner(house.agent, replace(QUICK, sleep=slept.append))
    runner.run(lambda: len(slept) < 2)
    assert len(slept) == 2
    assert all(0 < seconds <= 5 for seconds in slept)
    assert progress(house, job_id)["state"] == "running"
    runner.run(lambda: False)
    assert len(slept) == 2


def test_a_job_that_is_removed_while_it_is_asked_is_gone_whole(house: House) -> None:
    job_id = hand_in(house, [check(somebody()) for _ in range(30)])

    def removed(check: int) -> None:
        if check == 2:
            assert house.request("DELETE", f"/v1/checks/jobs/{job_id}").status == 204

    run(house, asks=Asker(house, fails=removed))
    assert house.request("GET", f"/v1/checks/jobs/{job_id}").body["code"] == "unknown-job"
    assert house.request("DELETE", f"/v1/checks/jobs/{job_id}").body["code"] == "unknown-job"
    assert house.there.aside.execute("SELECT count(*) FROM check_job_item").fetchone() == (0,)


def test_a_job_is_removed_after_seven_days_done_or_not(house: House) -> None:
    jobs = [hand_in(house, [None]), hand_in(house, [check(somebody())])]
    house.there.aside.execute("UPDATE check_job SET created_at = now() - interval '7 days'")
    asker = Asker(house)
    run(house, asks=asker)
    assert asker.asked == []
    assert {house.request("GET", f"/v1/checks/jobs/{job_id}").status for job_id in jobs} == {404}
    kept = hand_in(house, [check(somebody())])
    house.agent.jobs.forget_old()
    assert house.there.aside.execute("SELECT encode(job_id, 'hex') FROM check_job").fetchall() == [(kept,)]


def test_a_job_is_open_until_it_is_done(house: House) -> None:
    assert not house.agent.jobs.any_open()
    hand_in(house, [check(somebody())])
    assert house.agent.jobs.any_open()
    run(house)
    assert not house.agent.jobs.any_open()


def test_an_item_whose_row_is_damaged_or_whose_rule_is_gone_is_a_problem_and_the_others_go_on(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = hand_in(house, [check(somebody(), reference=f"R{n}") for n in range(12)])
    house.there.aside.execute("UPDATE check_job_item SET sealed = '\\x00' WHERE place = 5")
    run(house)
    found = lines(house, job_id)
    assert (found[5]["code"], found[5]["index"]) == ("item-damaged", 5)
    assert {one["verdict"] for one in found if one["index"] != 5} == {"within"}
    assert "damaged" in caplog.text
    late = hand_in(house, [check(somebody(), reference="late"), check(somebody(), rule=COUNT_RULE.id)])
    runner = job_runner(house.agent, QUICK)
    runner._known = lambda: {COUNT_RULE.id}
    runner.run(lambda: True)
    assert [(one.get("code"), one.get("verdict")) for one in lines(house, late)] == [
        ("unknown-rule", None),
        (None, "within"),
    ]
    assert progress(house, late)["problems"] == 1


def test_a_result_that_loses_its_job_while_it_is_fetched_is_cut_off(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insurer_agent.rest.jobs, "_ANSWERS_AT_ONCE", 2)
    job_id = hand_in(house, [None] * 5)
    job = house.agent.jobs.find(bytes.fromhex(job_id), house.key)
    assert job is not None
    answers = insurer_agent.rest.jobs._answers(house.agent, job)
    next(answers)
    assert house.request("DELETE", f"/v1/checks/jobs/{job_id}").status == 204
    with pytest.raises(Problem, match="unknown-job"):
        list(answers)


# --- the same job again ----------------------------------------------------------------------------------------------


def test_the_same_job_under_one_key_is_made_once(house: House) -> None:
    asked, key = [check(somebody()), None], secrets.token_hex(8)
    first = hand_in(house, asked, Idempotency_Key=key)
    assert hand_in(house, asked, Idempotency_Key=key) == first
    other = house.request("POST", "/v1/checks/jobs", {"checks": [None]}, Idempotency_Key=key)
    assert (other.status, other.body["code"]) == (422, "idempotency-key-reused")
    text = f"{HEADER}\npassport,{somebody()},{RULE.id},1.00\n"
    key = secrets.token_hex(8)
    answers = [
        house.request("POST", "/v1/checks/jobs", text.encode(), Content_Type="text/csv", Idempotency_Key=key)
        for _ in range(2)
    ]
    assert answers[0].body == answers[1].body
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert house.there.aside.execute("SELECT count(*) FROM check_job").fetchone() == (2,)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_neither_database_nor_log_holds_an_identity_an_amount_or_a_reference(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    whom, fen, reference = "CANARY77Q201", 734_519_273, "MARK-CANARY-9"
    asked = [check(whom, yuan(fen), reference=reference), check(whom, "x", reference=reference), check(somebody())]
    forms = spellings_of_text(whom) | spellings_of_text(reference) | spellings_of_amount(fen)

    def assert_sealed() -> None:
        tables = [
            name for (name,) in house.there.aside.execute("SELECT tablename FROM pg_tables WHERE schemaname='public'")
        ]
        assert {"check_job", "check_job_item"} <= set(tables)
        for name in tables:
            query = f"COPY (SELECT * FROM {name}) TO STDOUT (FORMAT binary)"  # noqa: S608  a table's name
            with house.there.aside.cursor().copy(query) as rows:
                data = b"".join(bytes(row) for row in rows)
            assert [form for form in forms if form in data or form.lower() in data] == [], name
        assert [form for form in forms if form in caplog.text.encode()] == []

    job_id = hand_in(house, asked)
    assert house.batch(asked, Idempotency_Key=secrets.token_hex(8)).status == 200
    assert_sealed()
    run(house, asks=Asker(house, fails=lambda check: Void.TIMEOUT if check == 1 else None))
    assert progress(house, job_id)["state"] == "done"
    assert_sealed()
    sealed = house.there.aside.execute("SELECT count(sealed), count(answer) FROM check_job_item").fetchone()
    assert sealed == (0, 3), "what was asked is erased once it is settled"


def test_a_person_is_found_again_by_nothing_in_another_job(house: House) -> None:
    whom = somebody()
    for _ in range(2):
        hand_in(house, [check(whom), check(whom)])
    rows = house.there.aside.execute("SELECT job_id, person_key FROM check_job_item").fetchall()
    assert len(set(rows)) == 2
    assert len({person for _, person in rows}) == 2


# --- the files -------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)


@deterministic(150)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_no_cell_of_a_result_runs_in_a_spreadsheet_and_each_reads_back(references: list[str]) -> None:
    answers = [
        (place, json.dumps({"code": "invalid-request", "reference": reference}).encode())
        for place, reference in enumerate(references)
    ]
    text = b"".join(csv_lines(iter(answers))).decode().removeprefix("\ufeff")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [unescape(row["reference"]) if row["reference"].startswith("'") else row["reference"] for row in rows] == (
        references
    )
    for row in rows:
        assert row["verdict"] == ""
        for cell in row.values():
            assert not cell.lstrip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))


@deterministic(150)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5), st.permutations([*COLUMNS, "reference"]))
def test_a_csv_is_read_as_it_was_written_whatever_the_order_of_its_columns(
    rows: list[tuple[str, str]], order: list[str]
) -> None:
    text = io.StringIO()
    out = csv.writer(text)
    out.writerow(order)
    for number, reference in rows:
        cells = {"document_type": "passport", "document_number": number, "rule": "r", "proposed_amount": "1"}
        out.writerow([(cells | {"reference": reference})[name] for name in order])
    count, items = read_csv(text.getvalue().encode())
    found = list(items)
    assert count == len(found)
    assert [(one["subject"]["document_number"], one["reference"]) for one in found] == [
        (number.strip(), reference or None) for number, reference in rows
    ]
