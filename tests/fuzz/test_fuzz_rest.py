"""Every REST endpoint under schemathesis and under hostile requests: documented answers alone, nothing half done."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import schemathesis
from fuzzing import Tally, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from live import LiveAlliance, pids_of, wait_until
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from insurer_agent.rest.openapi import document

pytestmark = pytest.mark.alliance
pytest_plugins = ("fuzzing",)

OPERATIONS = [
    (method, path) for path, methods in document()["paths"].items() for method in methods if method != "parameters"
]
BATCH, JOBS = "/v1/checks/batch", "/v1/checks/jobs"
JOB_TABLES = {"check_job", "check_job_item"}
KEYS = "/v1/api-keys"
KEPT = {
    ("post", BATCH): {"idempotency"},
    ("post", JOBS): {"idempotency"} | JOB_TABLES,
    ("post", KEYS): {"api_key"},
    ("delete", KEYS + "/{name}"): {"api_key"},
}
"""What answers to bad items alone are answers, too, and kept as such."""
SOON = {"own_answer"}
"""What came of checks that were asked just before is noted up to a second later."""
OPEN = {"/healthz", "/readyz"}
AGENT = (sys.executable, "-m", "insurer_agent.cli")
ADMIN: list[str] = []
"""The key with which the endpoints of API keys are asked."""
REFUSALS = {"400", "401", "403", "404", "405", "409", "413", "415", "422"}
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def alliance(begun: LiveAlliance) -> Iterator[LiveAlliance]:
    alliance = begun
    processes = pids_of(alliance.state)
    admin = ("api-key", "make", "admin", "--role", "admin", "--state", str(alliance.member_state(1)))
    ADMIN.append(subprocess.run([*AGENT, *admin], capture_output=True, text=True, check=True).stdout.strip())
    yield alliance
    try:
        assert pids_of(alliance.state) == processes  # none died and was started again
    finally:
        alliance.stop()  # nobody else needs it


@pytest.fixture(scope="module")
def interface(alliance: LiveAlliance) -> Any:  # noqa: ANN401  schemathesis names no type for it
    return schemathesis.openapi.from_url(alliance.member(1)["url"] + "/openapi.json")


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(autouse=True)
def _jobs_are_done(alliance: LiveAlliance) -> Iterator[None]:
    """Have no job of one test be asked during the next."""
    yield

    def done() -> bool:
        with alliance.database(1) as connection:
            return connection.execute("SELECT FROM check_job WHERE finished_at IS NULL").fetchone() is None

    wait_until(done)


def stored(alliance: LiveAlliance) -> dict[str, int]:
    """Return the number of rows of each of the agent's tables."""
    with alliance.database(1) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in names}  # noqa: S608


def ask(case: Any, alliance: LiveAlliance, session: requests.Session, tally: Tally) -> None:  # noqa: ANN401
    """Send a case of schemathesis and hold its answer against the document."""
    key = ADMIN[-1] if case.operation.path.startswith(KEYS) else alliance.member(1)["api_key"]
    response = case.call(session=session, headers={"Authorization": f"Bearer {key}"})
    counted(tally, response.status_code)
    case.validate_response(response, checks=CHECKS)


def counted(tally: Tally, status: int) -> None:
    tally.inputs += 1
    if status < 400:
        tally.accepts(right=True)
    else:
        tally.refuses(str(status), REFUSALS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_one_that_the_document_names(
    alliance: LiveAlliance,
    interface: Any,  # noqa: ANN401  as above
    session: requests.Session,
    method: str,
    path: str,
    mode: GenerationMode,
    tally: Tally,
) -> None:
    operation, before = interface[path][method.upper()], stored(alliance)
    if mode is GenerationMode.NEGATIVE and path in OPEN:
        mode = GenerationMode.POSITIVE  # without parameters there is nothing to get wrong

    @fuzzed(0.7, live=True)
    @given(operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:  # noqa: ANN401
        ask(case, alliance, session, tally)

    run()
    after = stored(alliance)
    assert {name for name in after if after[name] != before[name]} <= KEPT.get((method, path), set()) | SOON


# --- good requests with something wrong ----------------------------------------------------------------------------

SUBJECT = {"document_type": "passport", "document_number": "FUZZ0001"}
NOT_ISSUED = "FUZZ-NEVER-ISSUED"
CHECK = {"subject": SUBJECT, "rule": "accident-30d", "proposed_amount": "1.00", "reference": "F"}
GOOD: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/checks"): CHECK,
    ("post", BATCH): {"checks": [CHECK]},
    ("post", JOBS): {"checks": [CHECK]},
    ("post", "/v1/policies"): {
        "policy_number": "FUZZ-1",
        "subject": SUBJECT,
        "product": "accident",
        "insured_amount": "1000.00",
        "issued_on": "2026-11-23",
    },
    ("put", "/v1/policies/{number}"): {"insured_amount": "1.00", "subject": SUBJECT, "product": "accident"},
    ("post", "/v1/policies/{number}/cancellation"): {"subject": SUBJECT, "product": "accident"},
}
BAD_VALUES = [
    *(None, True, 0, -1, 1.5, 10**30, [], {}, "", " ", "\x00", "\ud800", "x" * 5000, "\u202e", "NaN", "-0.01", "1e3"),
    *(["accident-30d"], {"document_type": "passport"}, "1,000", "9999999999999999999.00", "2026-02-30", "20261123"),
]
GOOD_IN_A_CHECK = {
    "document_number": ["20261123"],
    "proposed_amount": ["20261123"],
    "reference": [None, *(value for value in BAD_VALUES if isinstance(value, str) and len(value) <= 128)],
}
GOOD_AFTER_ALL = {
    ("post", "/v1/checks"): GOOD_IN_A_CHECK,
    ("post", BATCH): GOOD_IN_A_CHECK,
    ("post", JOBS): GOOD_IN_A_CHECK,
    ("post", "/v1/policies"): {
        "policy_number": ["NaN", "-0.01", "1e3", "1,000", "9999999999999999999.00", "2026-02-30", "20261123"],
        "document_number": ["20261123"],
        "insured_amount": ["20261123"],
    },
}
"""Values that are bad elsewhere and good here: a reference may be any text, a policy number what an insurer likes."""
MAY_GROW = {
    "check_request",
    "budget",
    "own_answer",
    "policy",
    "policy_row",
    "deposit",
    "custody_pending",
    "custody_row",
    "custody_stamp",
    "custody_own_stamp",
    "range_attempt",
} | JOB_TABLES
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


def send(
    alliance: LiveAlliance,
    session: requests.Session,
    tally: Tally,
    method: str,
    path: str,
    data: bytes,
    **headers: str,
) -> requests.Response:
    entry = alliance.member(1)
    sent = {"Authorization": f"Bearer {entry['api_key']}", "Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    url = entry["url"] + path.replace("{number}", NOT_ISSUED)
    response = session.request(method, url, data=data, headers=sent, allow_redirects=False, timeout=30)
    counted(tally, response.status_code)
    return response


def assert_clear(response: requests.Response) -> None:
    """Hold a refusal against the promise: a problem with a stable code and a hint."""
    assert 400 <= response.status_code < 500, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    assert body["code"]
    assert body["hint"]


def places_in(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:  # noqa: ANN401  JSON
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, name)
        if isinstance(inner, dict | list):
            yield from places_in(inner, (*at, name))


def changed(body: Any, place: tuple[str | int, ...], value: object) -> Any:  # noqa: ANN401  JSON
    name, *inner = place
    copy = body.copy()
    copy[name] = changed(body[name], tuple(inner), value) if inner else value
    return copy


def is_refused_item(path: str, body: Any) -> bool:  # noqa: ANN401  JSON
    """Tell whether the one item of a batch or job was told to be bad, by a clear problem where it stands."""
    if path == BATCH and "code" in body["results"][0]:
        assert body["results"][0]["hint"]
        return True
    return path == JOBS and body["problems"] == 1


@pytest.mark.parametrize(("method", "path"), list(GOOD))
def test_each_bad_value_in_each_place_is_a_clear_problem_and_stores_nothing(
    alliance: LiveAlliance, session: requests.Session, tally: Tally, method: str, path: str
) -> None:
    good, before, taken = GOOD[method, path], stored(alliance), {}
    for place in places_in(good):
        for value in BAD_VALUES:
            response = send(alliance, session, tally, method, path, json.dumps(changed(good, place, value)).encode())
            if response.status_code < 300:
                if is_refused_item(path, response.json()):
                    continue
                taken.setdefault(place[-1], []).append(value)
            else:
                assert_clear(response)
    assert taken == GOOD_AFTER_ALL.get((method, path), {})
    after = stored(alliance)
    assert {name for name in after if after[name] != before[name]} <= MAY_GROW


@pytest.mark.parametrize(("method", "path"), list(GOOD))
def test_good_requests_with_arbitrary_json_in_a_place_are_answered_as_documented(
    alliance: LiveAlliance,
    interface: Any,  # noqa: ANN401  as above
    session: requests.Session,
    method: str,
    path: str,
    tally: Tally,
) -> None:
    operation, good = interface[path][method.upper()], GOOD[method, path]
    number = {"number": NOT_ISSUED} if "{number}" in path else {}

    @fuzzed(0.7, live=True)
    @given(st.sampled_from(list(places_in(good))), json_values)
    def run(place: tuple[str, ...], value: object) -> None:
        case = operation.Case(body=changed(good, place, value), path_parameters=number, media_type="application/json")
        ask(case, alliance, session, tally)

    run()


BODIES = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a string": b'"subject"',
    "null": b"null",
    "NaN": b"NaN",
    "not UTF-8": b'{"subject": "\xff\xfe"}',
    "UTF-16": '{"subject": 1}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a name twice": b'{"rule": "a", "rule": "b"}',
    "nested too deep": b"[" * 30_000 + b"]" * 30_000,
    "a number of many digits": b"9" * 20_000,
    "trailing bytes": b"{} {}",
    "NUL": b"\x00" * 100,
    "unknown fields": b'{"__proto__": 1, "constructor": {}}',
    "too large": b" " * (64 * 1024 + 1),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize(("method", "path"), list(GOOD))
def test_a_body_that_is_no_request_is_a_clear_problem(
    alliance: LiveAlliance, session: requests.Session, tally: Tally, method: str, path: str, body: bytes
) -> None:
    before = stored(alliance)
    response = send(alliance, session, tally, method, path, body, Idempotency_Key="bad-body")
    assert_clear(response)
    assert response.json()["code"] in {"not-json", "invalid-request", "request-entity-too-large"}
    assert stored(alliance) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": ""},
        {"Content_Encoding": "gzip"},
        {"Authorization": ""},
        {"Authorization": "Basic Y292ZXI6Y292ZXI="},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer cover_" + "0" * 64},
        {"Authorization": "Bearer " + "\u00e9" * 20},
        {"Authorization": "Bearer " + "x" * 4000},
        {"Idempotency_Key": "\u00e9"},
        {"Idempotency_Key": "x" * 300},
    ],
    ids=str,
)
@pytest.mark.parametrize(("method", "path"), list(GOOD))
def test_headers_that_are_not_good_are_a_clear_problem(
    alliance: LiveAlliance, session: requests.Session, tally: Tally, method: str, path: str, headers: dict[str, str]
) -> None:
    before = stored(alliance)
    body = b"\x1f\x8b" if "Content_Encoding" in headers else json.dumps(GOOD[method, path]).encode()
    response = send(alliance, session, tally, method, path, body, **headers)
    assert_clear(response)
    assert stored(alliance) == before


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/v1",
            "/v1/policies/",
            "/v1/policies",
            "/v1/checks/",
            "/v1/checks/../rules",
            "/%00",
            "/v1/policies/%00",
        ),
        *("/v1/policies/%ff%fe", "/v1/policies/" + "x" * 3000, "/v1/policies/%E2%80%AE", "/docs/../../etc/passwd"),
        *("/docs/%2e%2e/app.py", "/v1/rules?" + "x" * 3000, "/v1/rules;a=b", "//v1/rules", "/internal/v1/check"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST"])
def test_addresses_and_methods_that_are_not_there_are_a_clear_problem(
    alliance: LiveAlliance, tally: Tally, method: str, path: str
) -> None:
    before, entry = stored(alliance), alliance.member(1)
    parts = urlsplit(entry["url"])
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:  # as it is: no client tidies
        lines = [f"{method} {path} HTTP/1.1", "Host: agent", f"Authorization: Bearer {entry['api_key']}"]
        lines += ["Content-Length: 0", "Connection: close", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    counted(tally, status)
    if (method, status) == ("GET", 200):
        assert path.startswith(("/v1/rules?", "//v1/rules"))
    elif (method, status) == ("OPTIONS", 200):
        assert b"\r\nAllow: " in head
    else:
        problem = json.loads(body)
        assert (problem["status"], 400 <= status < 500) == (status, True)
        assert problem["code"]
        assert problem["hint"]
    assert stored(alliance) == before


def test_after_all_that_the_agents_run_and_answer_rightly(alliance: LiveAlliance) -> None:
    person = ("passport", "FUZZ0002")
    assert alliance.verdict(1, person, "50000000.00") == ("within", None)
    assert alliance.verdict(1, person, "50000000.01") == ("exceeds", None)
    logs = "".join(file.read_text(encoding="utf-8") for file in (alliance.state / "logs").iterdir())
    assert "Traceback" not in logs
    assert "internal fault" not in logs
