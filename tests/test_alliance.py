"""A local alliance of seven over messy files: right verdicts, closed doors, nothing in clear anywhere."""

import base64
import datetime as dt
import hashlib
import json
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import Request

import pytest
from insiders import end
from live import LiveAlliance, call, china_today, issue, pids_of, wait_for_ticks, wait_until, write_policies
from oracle import plain_totals
from strategies import EVERYDAY
from taps import APPLICATION_DATA, HANDSHAKE, records_of, tapped
from test_alliance_failures import settled

from insurer_agent.keys import AgentKeys
from protocol.encoding import decode, encode
from protocol.identity import DocumentType, Identity
from protocol.messages import CheckCall, CheckCalls, CheckRequest, CommitCall, PrepareCall
from protocol.token import Pseudonym, hash_identity, index_key
from protocol.voprf import blind_evaluate
from service.admin import cli as admin_cli
from service.admin.samples import LIMIT, make_samples
from service.config import load_keys
from transport.internal import CHECK, CHECKS, COMMIT, COMMITTEE_KEY, CONTENT_TYPE, PREPARE

pytestmark = pytest.mark.alliance

MEMBERS = 7
PEOPLE = 120 if EVERYDAY else 300
CANARY = ("passport", "KANARY77421")
CANARY_FEN = 1_928_374_655
CANARY_PROPOSED_FEN = 1_357_924_681


def yuan(fen: int) -> str:
    return f"{fen // 100}.{fen % 100:02d}"


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveAlliance]:
    root = tmp_path_factory.mktemp("alliance")
    make_samples(root / "policies", members=MEMBERS, people=PEOPLE, today=china_today(), seed=20261123)
    canary = write_policies(root, 1, [issue("CANARY-POLICY-1", CANARY, yuan(CANARY_FEN))], name="canary.csv")
    alliance = LiveAlliance(MEMBERS, root / "policies", root / "state", "--capture")
    alliance.start()
    done = alliance.agent(1, "import", str(canary), "--wait", "60")
    assert done.returncode == 0, done.stderr
    wait_for_ticks()
    yield alliance
    if alliance.runs:
        alliance.stop()


def test_ready_is_the_one_line_on_standard_output(alliance: LiveAlliance) -> None:
    assert alliance.output == "ready\n"


def test_local_json_says_where_everything_is(alliance: LiveAlliance) -> None:
    local = alliance.local
    assert local["service_url"].startswith("https://127.0.0.1:")
    assert Path(local["ca_file"]) == alliance.state / "ca" / "ca.pem"
    assert [member["id"] for member in local["members"]] == [f"insurer-{n:02d}" for n in range(1, MEMBERS + 1)]
    assert len({member["api_key"] for member in local["members"]}) == MEMBERS
    assert (alliance.state / "local.json").stat().st_mode & 0o077 == 0


def test_verdicts_over_hundreds_of_messy_people_equal_the_plain_sum(alliance: LiveAlliance) -> None:
    totals = sorted(plain_totals(alliance.policies, china_today()).items())
    assert len(totals) > PEOPLE

    def both_sides(entry: tuple[int, tuple[tuple[str, str], int]]) -> list[tuple[Any, ...]]:
        place, (person, total) = entry
        member, wrong = 1 + place % MEMBERS, []
        for proposed in {max(0, LIMIT - total), max(0, LIMIT - total + 1)}:
            answer = alliance.check(member, person, yuan(proposed))
            day = dt.date.fromisoformat(answer["window"]["to"])
            counted = total if day == china_today() else plain_totals(alliance.policies, day)[person]
            expected = "exceeds" if counted + proposed > LIMIT else "within"
            if answer["verdict"] != expected:
                wrong.append((place, answer["verdict"], expected, answer["reason"]))
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert [item for wrong in pool.map(both_sides, enumerate(totals)) for item in wrong] == []


def test_checks_that_many_ask_at_once_leave_together_and_every_verdict_is_right(alliance: LiveAlliance) -> None:
    totals = sorted(plain_totals(alliance.policies, china_today()).items())

    def together() -> int:
        """Return how many messages of several calls custodians have answered."""
        entries = (entry for number in range(1, MEMBERS + 1) for entry in alliance.captured(f"insurer-{number:02d}"))
        return sum((entry["path"], entry["status"]) == (CHECKS, 200) for entry in entries)

    def is_right(entry: tuple[int, tuple[tuple[str, str], int]]) -> bool:
        place, (person, total) = entry
        proposed, right = (LIMIT - total, "within") if place % 2 else (LIMIT - total + 1, "exceeds")
        return settled(alliance, 1 + place % MEMBERS, person, yuan(proposed)) == (right, None)

    asked, before = [entry for entry in totals if entry[1] < LIMIT][:60], together()
    with ThreadPoolExecutor(10) as pool:
        assert all(pool.map(is_right, enumerate(asked)))
    assert together() > before


def test_the_smoke_load_finds_every_check_answered(alliance: LiveAlliance) -> None:
    locustfile = Path(__file__).parent.parent / "loadtests" / "locustfile.py"
    line = [sys.executable, "-m", "locust", "-f", str(locustfile), "--headless", "--only-summary", "--json"]
    line += ["--load", "smoke", "--minutes", "0.03", "--local", str(alliance.state / "local.json")]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    (asked,) = json.loads(ended.stdout)
    assert asked["name"] == "/v1/checks"
    assert asked["num_requests"] > 0
    assert asked["num_failures"] == 0


def test_a_person_is_one_however_written(alliance: LiveAlliance) -> None:
    kind, number = CANARY
    left = LIMIT - CANARY_FEN
    for spelling in (number, number.lower(), f" {number}\t", "ＫＡＮＡＲＹ７７４２１"):
        assert alliance.verdict(2, (kind, spelling), yuan(left)) == ("within", None)
        assert alliance.verdict(3, (kind, spelling), yuan(left + 1)) == ("exceeds", None)


def test_an_answer_has_what_the_interface_says(alliance: LiveAlliance) -> None:
    answer = alliance.check(4, CANARY, "3000000.00")
    today = dt.date.fromisoformat(answer["window"]["to"])
    assert {
        name: answer[name] for name in ("reference", "rule", "rule_version", "verdict", "exceeds_limit", "reason")
    } == {
        "reference": "UW-1",
        "rule": "accident-30d",
        "rule_version": 1,
        "verdict": "within",
        "exceeds_limit": False,
        "reason": None,
    }
    assert dt.date.fromisoformat(answer["window"]["from"]) == today - dt.timedelta(days=29)
    assert re.fullmatch(r"[0-9a-f]{32}", answer["check_id"])
    assert dt.datetime.fromisoformat(answer["checked_at"]).utcoffset() == dt.timedelta(hours=8)


def test_rules_are_listed(alliance: LiveAlliance) -> None:
    (rule,) = alliance.request(1, "GET", "/v1/rules").body["rules"]
    assert (rule["id"], rule["limit"], rule["products"]) == ("accident-30d", "50000000.00", ["accident"])
    assert (rule["window_days"], rule["budget"], rule["budget_days"]) == (30, 50, 30)


GOOD = {
    "subject": {"document_type": CANARY[0], "document_number": CANARY[1]},
    "rule": "accident-30d",
    "proposed_amount": "1.00",
}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"rule": "no-such-rule"}, 404, "unknown-rule"),
        ({"proposed_amount": "-1.00"}, 422, "amount-not-positive"),
        ({"proposed_amount": "1e9"}, 422, "amount-not-plain-decimal"),
        ({"proposed_amount": "99999999999.00"}, 422, "amount-too-large"),
        ({"proposed_amount": 5}, 422, "invalid-request"),
        ({"surprise": 1}, 422, "invalid-request"),
        ({"rule": None}, 422, "invalid-request"),
        ({"subject": {"document_type": "passport"}}, 422, "invalid-request"),
        ({"subject": {"document_type": "library_card", "document_number": "1"}}, 422, "invalid-request"),
        (
            {"subject": {"document_type": "resident_id", "document_number": "440305198807141120"}},
            422,
            "check-digit-wrong",
        ),
    ],
)
def test_a_bad_question_is_a_clear_problem(
    alliance: LiveAlliance, change: dict[str, Any], status: int, code: str
) -> None:
    answer = alliance.request(1, "POST", "/v1/checks", GOOD | change)
    assert (answer.status, answer.body["code"], answer.content_type) == (status, code, "application/problem+json")
    assert "440305198807141120" not in json.dumps(answer.body)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/checks", b"{", 400, "not-json"),
        ("POST", "/v1/checks", b"[]", 422, "invalid-request"),
        ("POST", "/v1/checks", b"\xff" * 100, 400, "not-json"),
        ("POST", "/v1/checks", b" " * (1 << 17), 413, "request-entity-too-large"),
        ("GET", "/v1/checks", None, 405, "method-not-allowed"),
        ("GET", "/v1/nothing", None, 404, "not-found"),
    ],
)
def test_a_bad_request_is_a_clear_problem(
    alliance: LiveAlliance, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    answer = alliance.request(1, method, path, body)
    assert (answer.status, answer.body["code"], answer.content_type) == (status, code, "application/problem+json")


@pytest.mark.parametrize("key", ["", "cover_" + "0" * 64, "another"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/checks"), ("GET", "/v1/rules"), ("GET", "/v1/status")])
def test_without_an_api_key_of_this_agent_the_door_is_closed(
    alliance: LiveAlliance, method: str, path: str, key: str
) -> None:
    answer = alliance.request(1, method, path, GOOD if method == "POST" else None, key=key)
    assert (answer.status, answer.body["code"]) == (401, "unauthorized")


def test_another_members_api_key_opens_nothing(alliance: LiveAlliance) -> None:
    assert alliance.request(1, "POST", "/v1/checks", GOOD, key=alliance.member(2)["api_key"]).status == 401


def internal_call(
    alliance: LiveAlliance, number: int, path: str, body: bytes, context: ssl.SSLContext | None
) -> tuple[int, str]:
    url = alliance.member(number)["url"] + path
    answer = call(Request(url, body, {"Content-Type": CONTENT_TYPE}, method="POST"), context)
    return answer.status, answer.body["code"]


def captured_check(alliance: LiveAlliance) -> tuple[int, CheckCall]:
    """Return a custodian and a call that it answered."""
    alliance.check(1, CANARY, "2.00")
    for number in range(2, MEMBERS + 1):
        calls = [entry for entry in alliance.captured(f"insurer-{number:02d}") if entry["path"] == CHECK]
        if calls and calls[-1]["status"] == 200:
            return number, decode(CheckCall, base64.b64decode(calls[-1]["request"]))
    raise AssertionError("no custodian was called")


def test_custodians_take_calls_of_the_service_alone_and_never_twice(alliance: LiveAlliance) -> None:
    number, message = captured_check(alliance)
    body, service = encode(message), alliance.context_of(alliance.state / "service")
    members = [alliance.context_of(alliance.member_state(other)) for other in (1, number)]
    for path in (CHECK, CHECKS, PREPARE, COMMIT, COMMITTEE_KEY):
        for stranger in (alliance.context, *members):
            assert internal_call(alliance, number, path, body, stranger) == (403, "not-the-service")
    assert internal_call(alliance, number, CHECK, body, service) == (409, "replayed")
    assert internal_call(alliance, number, CHECK, body + b"\x00", service) == (422, "malformed")


def test_the_service_takes_a_message_of_the_member_alone_that_sends_it(alliance: LiveAlliance) -> None:
    alliance.check(1, CANARY, "2.00")
    sent = {entry["path"]: base64.b64decode(entry["request"]) for entry in alliance.captured("service")}
    assert sent.keys() >= {"/v1/checks", "/v1/deposits", "/v1/relay", "/v1/watermarks"}
    named = decode(CheckRequest, sent["/v1/checks"]).signed.statement.requester
    url = alliance.local["service_url"]
    assert named == "insurer-01"
    strangers = {
        "not-a-member": (alliance.context, alliance.context_of(alliance.state / "service")),
        "other-member": [alliance.context_of(alliance.member_state(number)) for number in range(1, MEMBERS + 1)],
    }
    for path, body in sent.items():
        refused = []
        for code, contexts in strangers.items():
            for context in contexts:
                answer = call(Request(url + path, body, {"Content-Type": CONTENT_TYPE}, method="POST"), context)
                refused.append(answer.status == 403 and answer.body["code"] == code)
        assert refused.count(False) == 1, "of all, its own sender alone is let in"
    for path in ("/v1/manifest", "/v1/revocations"):
        assert call(Request(url + path), alliance.context).body["code"] == "not-a-member"


def test_nothing_of_a_check_or_deposit_goes_back_to_its_originators_group(alliance: LiveAlliance) -> None:
    for number in range(1, MEMBERS + 1):
        member = f"insurer-{number:02d}"
        for entry in alliance.captured(member):
            if entry["status"] != 200:
                continue
            body = base64.b64decode(entry["request"])
            if entry["path"] == CHECK:
                assert decode(CheckCall, body).signed.statement.requester != member
            elif entry["path"] == CHECKS:
                assert member not in {call.signed.statement.requester for call in decode(CheckCalls, body).calls}
            elif entry["path"] == PREPARE:
                assert decode(PrepareCall, body).depositor != member
            elif entry["path"] == COMMIT:
                assert decode(CommitCall, body).depositor != member


def test_importing_again_changes_nothing(alliance: LiveAlliance) -> None:
    with alliance.database(2) as connection:
        before = connection.execute("SELECT count(*), max(seq) FROM deposit").fetchone()
    again = alliance.agent(2, "import", str(alliance.policies / "insurer-02.csv"))
    assert re.search(r"insurer-02\.csv: [0-9]+ rejected, [0-9]+ repeated\n$", again.stderr)
    with alliance.database(2) as connection:
        assert connection.execute("SELECT count(*), max(seq) FROM deposit").fetchone() == before


def test_a_spent_budget_is_indeterminate_and_names_itself(alliance: LiveAlliance) -> None:
    subject = ("passport", "BUDGET00001")
    verdicts = [alliance.verdict(5, subject, "1.00") for _ in range(90)]
    spent = verdicts.index(("indeterminate", "budget-exhausted"))
    assert verdicts[:spent] == [("within", None)] * spent
    assert set(verdicts[spent:]) == {("indeterminate", "budget-exhausted")}
    assert 50 <= spent <= 6 * 50 // 4, "at most n*b/4 answers"
    assert alliance.verdict(6, subject, "1.00") == ("within", None), "another group has a budget of its own"


def test_on_every_hop_there_is_tls_and_nothing_else(alliance: LiveAlliance) -> None:
    """A member and the service are restarted behind taps, at the addresses that all others call."""
    service, member = alliance.state / "service", alliance.member_state(2)
    with ExitStack() as taps:
        end(service)
        end(member)
        to_service = taps.enter_context(tapped(service, alliance.local["service_url"]))
        to_member = taps.enter_context(tapped(member, alliance.member(2)["url"]))
        command = [sys.executable, "-m", "service.cli", "serve", "--state", str(service)]
        alliance.adopt(subprocess.Popen(command))
        alliance.restart(2)
        wait_until(lambda: alliance.ready_at(alliance.local["service_url"]))
        asked = [alliance.verdict(number, CANARY, yuan(LIMIT - CANARY_FEN)) for number in (1, 2, 3) for _ in range(4)]
        assert ("within", None) in asked
        assert alliance.agent(2, "import", str(alliance.policies / "insurer-02.csv")).returncode in (0, 3)
        wait_until(lambda: alliance.is_delivered(2))
        for tap in (to_service, to_member):
            kinds = [set(records_of(bytes(said))) for said in tap.said if said]
            assert len(kinds) >= 4
            assert set.union(*kinds) >= {HANDSHAKE, APPLICATION_DATA}
            assert all(HANDSHAKE in found for found in kinds)
        end(service)
        end(member)
    alliance.adopt(subprocess.Popen(command))
    alliance.restart(2)
    wait_until(lambda: alliance.ready_at(alliance.local["service_url"]))


def test_a_revoked_member_is_out_and_with_a_new_certificate_in_again_without_a_restart(alliance: LiveAlliance) -> None:
    ca, service, last = alliance.state / "ca", alliance.state / "service", alliance.member_state(MEMBERS)
    out, url = alliance.context_of(last), alliance.local["service_url"] + "/v1/manifest"
    assert admin_cli.main(["ca-revoke", str(ca), "--member", last.name]) == 0
    newest = (ca / "crl.pem").read_bytes()
    (service / "crl.pem").write_bytes(newest)
    wait_until(lambda: call(Request(url), out).status == 403, 10)
    assert alliance.verdict(MEMBERS, CANARY, "1.00") == ("indeterminate", "refused")
    assert alliance.verdict(1, CANARY, "1.00") == ("within", None), "the others go on"
    alliance.kill(2)
    alliance.restart(2)  # an agent asks for the list when it starts, and every minute
    wait_until(lambda: (alliance.member_state(2) / "crl.pem").read_bytes() == newest, 10)

    fresh = ca / "fresh.pem"
    issue_again = ["ca-issue", str(ca), str(last / "tls.csr"), "--member", last.name, "--out", str(fresh)]
    assert admin_cli.main(issue_again) == 0
    assert alliance.agent(MEMBERS, "tls-install", str(fresh)).returncode == 0
    wait_until(lambda: alliance.verdict(MEMBERS, CANARY, "1.00") == ("within", None), 10)


# The tests from here on end the alliance; they run last, in the order of the file. --------------------------------


def test_no_identity_and_no_amount_stands_anywhere_in_clear(alliance: LiveAlliance) -> None:
    alliance.check(3, CANARY, yuan(CANARY_PROPOSED_FEN))
    service = load_keys(alliance.state / "service")
    salt = AgentKeys.load(alliance.member_state(1)).member.salt
    person = hash_identity(salt, Identity(DocumentType.PASSPORT, CANARY[1]))
    pseudonym = blind_evaluate(service.blinding, person)
    alliance.stop()

    forms = spellings_of_text(CANARY[1]) | spellings_of_text("CANARY-POLICY-1")
    forms |= spellings_of_amount(CANARY_FEN) | spellings_of_amount(CANARY_PROPOSED_FEN)
    forms |= {form for point in (person, pseudonym) for form in (point, point.hex().encode())}
    assert clear_text(alliance, forms) == set()

    numbers = {number.encode() for _, number in plain_totals(alliance.policies, china_today())}
    numbers |= {number[:6] + number[8:17] for number in numbers if len(number) == 18}
    assert not any(numbers & set(re.findall(rb"[0-9A-Z]{8,18}", data)) for _, data in everything(alliance))


def test_the_search_for_clear_text_finds_what_it_looks_for(alliance: LiveAlliance) -> None:
    """The canary would sing: every kind of spelling is found when it is there, and a custodian's own index is."""
    for form in spellings_of_text(CANARY[1]) | spellings_of_amount(CANARY_FEN):
        (alliance.state / "planted").write_bytes(b"xx" + form + b"yy")
        assert any(name == "planted" for name, _ in clear_text(alliance, {form}, only="planted"))
    (alliance.state / "planted").unlink()

    keys = [AgentKeys.load(alliance.member_state(number)).member for number in range(1, MEMBERS + 1)]
    person = hash_identity(keys[0].salt, Identity(DocumentType.PASSPORT, CANARY[1]))
    pseudonym = Pseudonym(blind_evaluate(load_keys(alliance.state / "service").blinding, person))
    indexes = {index_key(key.index, pseudonym) for key in keys}
    rows = sum(data.count(index) for _, data in everything(alliance) for index in indexes)
    assert rows >= 5, "the person's rows are in the databases, under indexes that only their custodians can compute"


def everything(alliance: LiveAlliance, only: str = "") -> Iterator[tuple[str, bytes]]:
    """Return every file that the alliance wrote but its key files, and every captured body decoded.

    Of equal files one: a database begins as a copy of another.
    """
    seen = set()
    for file in sorted(alliance.state.rglob(only or "*")):
        if file.is_file() and file.name not in ("keys.json", "tls.key", "ca.key"):
            data = file.read_bytes()
            if (digest := hashlib.sha256(data).digest()) not in seen:
                seen.add(digest)
                yield str(file.relative_to(alliance.state)), data
    if only:
        return
    yield "progress", alliance.progress().encode()
    for file in (alliance.state / "capture").iterdir():
        for entry in alliance.captured(file.stem):
            yield file.stem, base64.b64decode(entry["request"]) + b"|" + base64.b64decode(entry["response"])


def clear_text(alliance: LiveAlliance, forms: set[bytes], only: str = "") -> set[tuple[str, bytes]]:
    """Return which of the forms stands where, in whatever case."""
    found, cased = set(), {form.lower() for form in forms}
    for name, data in everything(alliance, only):
        lower = data.lower()
        found |= {(name, form) for form in cased if form in lower}
    return found


def spellings_of_text(text: str) -> set[bytes]:
    plain = text.encode()
    wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)
    encoded = {base64.b64encode(b"x" * shift + plain)[4 if shift else 0 : -4] for shift in range(3)}
    return {
        plain,
        wide.encode(),
        text.encode("utf-16-le"),
        text.encode("utf-16-be"),
        plain.hex().encode(),
        plain[::-1],
    } | encoded


def spellings_of_amount(fen: int) -> set[bytes]:
    texts = {str(fen), yuan(fen), f"{fen // 100:,}.{fen % 100:02d}", f"{fen:x}"}
    # As a number it stands in whatever is longer than these six bytes, too.
    return {text.encode() for text in texts} | {fen.to_bytes(6, "big"), fen.to_bytes(6, "little")}


def test_it_came_to_an_end_with_all_its_processes_and_wrote_nothing_elsewhere(alliance: LiveAlliance) -> None:
    assert pids_of(alliance.state) == []
    home = alliance.state.parent / "home"
    assert list(home.iterdir()) == []


@pytest.mark.long
def test_it_comes_back_on_the_same_state_and_knows_what_it_knew(alliance: LiveAlliance) -> None:
    alliance.start()
    try:
        left = LIMIT - CANARY_FEN
        assert alliance.verdict(6, CANARY, yuan(left)) == ("within", None)
        assert alliance.verdict(7, CANARY, yuan(left + 1)) == ("exceeds", None)
        with pytest.raises(AssertionError, match="the alliance ended"):
            LiveAlliance(MEMBERS + 1, alliance.policies, alliance.state).start()
    finally:
        assert alliance.stop(signal.SIGINT) == 0
    assert pids_of(alliance.state) == []


def test_the_service_sees_blinded_persons_and_sealed_envelopes_only(alliance: LiveAlliance) -> None:
    # A request that a test above sent again is one.
    checks = {entry["request"] for entry in alliance.captured("service") if entry["path"] == "/v1/checks"}
    blinded = [
        point
        for request in checks
        for point in decode(CheckRequest, base64.b64decode(request)).signed.statement.persons
    ]
    assert len(blinded) == len(set(blinded)) > PEOPLE, "each check blinds anew, also the same person's"
