"""Who may call what at the service: the table in the document is made from the code, and the code keeps to it."""

import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from governing import WORLD, Board, body_of, id_of, signature_of, with_limit

from service.api_keys import ACTIONS, MAX_DAYS, Action, ApiKeys, Role
from service.app import make_app
from service.roles import Caller, callers_of, open_to
from transport.message_face import MessageFace
from transport.settings import SettingsError

DOCUMENT = Path(__file__).parent.parent / "deploy" / "roles-of-the-service.md"
COLUMNS = (*Caller, *Role)
READING = ("overview", "manifest", "rules", "proposals")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "service")


def table_of(app: Flask) -> list[str]:
    """Return the rows of the table: every endpoint of the application, and of the messages beside it."""
    rows = {}
    for rule in app.url_map.iter_rules():
        whom, action = callers_of(app, rule.endpoint)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
            rows[path, method] = (whom, str(action) if whom & set(Role) else "")
    assert isinstance(app.wsgi_app, MessageFace)
    rows |= {(path, "POST"): (frozenset({Caller.MEMBER}), "") for path in app.wsgi_app._paths}
    return [
        f"| `{method} {path}` | {' | '.join('yes' if one in whom else '' for one in COLUMNS)} | {action} |"
        for (path, method), (whom, action) in sorted(rows.items())
    ]


def test_the_table_in_the_document_is_that_of_the_code(board: Board) -> None:
    written = [
        line
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if re.match("[|] `(GET|POST|PUT|DELETE) ", line)
    ]
    made = table_of(board.app)
    assert written == made, "put this into the document:\n" + "\n".join(made)


def test_every_endpoint_is_open_to_somebody_and_to_no_more_than_it_says(board: Board) -> None:
    for rule in board.app.url_map.iter_rules():
        assert callers_of(board.app, rule.endpoint)[0], rule.rule
    terms = with_limit(board.terms)
    board.propose(terms)
    before = board.get("proposals")
    keys = {Role.ADMIN: board.admin, Role.AUDITOR: board.auditor}
    tried = 0
    for rule in board.app.url_map.iter_rules():
        whom, _ = callers_of(board.app, rule.endpoint)
        if not whom & set(Role):
            continue
        path = rule.rule.replace("<proposal_id>", id_of(terms))
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}:
            assert board.ask(method, path, key="").code == "unauthorized"
            for role in set(Role) - whom:
                tried += 1
                told = board.ask(method, path, {}, key=keys[role])
                assert (told.status, told.code) == (403, "forbidden")
    assert tried == 4  # what an auditor must not do
    assert board.get("proposals") == before


def test_an_auditor_reads_all_and_writes_nothing(board: Board) -> None:
    terms = with_limit(board.terms)
    path = f"/v1/admin/proposals/{id_of(terms)}"
    assert board.ask("POST", "/v1/admin/proposals", body_of(terms), key=board.auditor).code == "forbidden"
    board.propose(terms)
    for name in READING:
        assert board.ask("GET", f"/v1/admin/{name}", key=board.auditor).status == 200
    assert board.ask("GET", path, key=board.auditor).status == 200
    assert board.ask("POST", f"{path}/signatures", signature_of(terms, "ann"), key=board.auditor).code == "forbidden"
    board.sign(terms, "ann", "bo")
    for action in ("publish", "withdraw"):
        assert board.ask("POST", f"{path}/{action}", key=board.auditor).code == "forbidden"
    assert board.state_of(terms) == "open"


def test_an_endpoint_that_declares_nobody_is_open_to_nobody(tmp_path: Path) -> None:
    board = Board(tmp_path / "service")
    served = []

    def forgotten() -> str:
        served.append(True)
        return "secret"

    board.app.add_url_rule("/v1/admin/forgotten", view_func=forgotten)
    board.app.add_url_rule("/forgotten", "elsewhere", forgotten)
    board.app.add_url_rule("/open", "open", open_to(Caller.ANYONE)(lambda: "all may"))
    for path in ("/v1/admin/forgotten", "/forgotten"):
        for key in ("", board.admin, board.auditor):
            told = board.ask("GET", path, key=key)
            assert told.code == ("forbidden" if key else "unauthorized")
    assert served == []
    assert board.ask("GET", "/open", key="").status == 200


def test_what_is_refused_for_its_caller_is_refused_before_its_body_is_read(board: Board) -> None:
    for key, code in (("", "unauthorized"), (board.auditor, "forbidden")):
        told = board.ask("POST", "/v1/admin/proposals", b"x" * (4 << 20), key=key, content_type="application/json")
        assert told.code == code


def test_addresses_and_methods_that_there_are_not_are_told_without_a_key(board: Board) -> None:
    assert board.ask("GET", "/v1/admin/nothing", key="").code == "not-found"
    assert board.ask("DELETE", "/v1/admin/rules", key="").code == "method-not-allowed"
    assert board.ask("GET", "/static/anything", key="").code == "not-found"
    assert board.ask("GET", "/healthz", key="").status == 200


def test_a_key_asks_no_faster_than_its_rate(tmp_path: Path) -> None:
    board = Board(tmp_path / "service", admin_requests_a_second=0.1)
    told = [board.ask("GET", "/v1/admin/rules") for _ in range(3)]
    assert [answer.status for answer in told] == [200, 429, 429]
    assert (told[1].code, told[1].headers["Retry-After"]) == ("rate-limited", str(told[1].body["retry_after"]))
    assert board.ask("GET", "/v1/admin/rules", key=board.auditor).status == 200


def test_holders_of_keys_take_half_of_the_threads_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    class Noted(threading.BoundedSemaphore):
        def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002  as it is
            waited.append(blocking)
            return super().acquire(blocking, timeout)

    monkeypatch.setattr("service.app.BoundedSemaphore", Noted)
    entered, leave = threading.Semaphore(0), threading.Event()

    @open_to(Role.AUDITOR)
    def slow_one() -> str:
        entered.release()
        leave.wait(60)
        return "done"

    board = Board(tmp_path / "service", threads=6)
    board.app.add_url_rule("/slow", view_func=slow_one)
    with ThreadPoolExecutor(3) as pool:
        slow = [pool.submit(board.ask, "GET", "/slow", key=board.auditor) for _ in range(3)]
        for _ in slow:
            assert entered.acquire(timeout=60)
        told = board.ask("GET", "/v1/admin/rules")
        assert (told.status, told.code) == (503, "busy")
        assert board.ask("GET", "/healthz", key="").status == 200
        leave.set()
        assert [one.result(60).status for one in slow] == [200] * 3
    for _ in range(9):  # and each is given back, whatever came of it
        assert board.ask("GET", "/v1/admin/rules").status == 200
        assert board.ask("GET", f"/v1/admin/proposals/{'0' * 16}").code == "unknown-proposal"
    assert set(waited) == {False}, "nobody waits for a place"


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer \x00",
        "Bearer 密钥",
        "Bearer " + "x" * 7000,
        "bearer cover_service_",
    ],
)
def test_what_is_no_key_is_refused(board: Board, header: str) -> None:
    told = board.app.test_client().get("/v1/admin/rules", headers={"Authorization": header.encode().decode("latin-1")})
    assert (told.status_code, told.get_json(force=True)["code"]) == (401, "unauthorized")
    assert told.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_key_ends_with_its_time(board: Board) -> None:
    made = time.time() - 2 * 86_400
    key = board.key("of the day before yesterday", Role.ADMIN, clock=lambda: made, days=1)
    good = board.key("of yesterday", Role.ADMIN, clock=lambda: made, days=3)
    told = board.ask("GET", "/v1/admin/rules", key=key)
    assert (told.status, told.code) == (401, "api-key-expired")
    assert board.ask("GET", "/v1/admin/rules", key=good).status == 200
    keys = ApiKeys(board.state, lambda: made + 86_399)
    assert keys.holder(key).role is Role.ADMIN
    # A name whose key has expired may have another.
    assert board.ask("GET", "/v1/admin/rules", key=board.key("of the day before yesterday", Role.ADMIN)).status == 200
    assert board.ask("GET", "/v1/admin/rules", key=key).code == "unauthorized"


def test_a_revoked_key_is_refused_from_the_next_request_on_in_every_worker(board: Board) -> None:
    workers = [board.app, make_app(board.state)]

    def told() -> list[int]:
        headers = {"Authorization": f"Bearer {board.admin}"}
        return [app.test_client().get("/v1/admin/rules", headers=headers).status_code for app in workers]

    assert told() == [200, 200]
    ApiKeys(board.state, time.time).revoke("an admin")
    assert told() == [401, 401]
    assert board.ask("GET", "/v1/admin/rules", key=board.auditor).status == 200


def test_a_keys_scope_may_be_less_than_its_role(board: Board) -> None:
    clerk = board.key("a clerk", Role.ADMIN, Action.READ, Action.PROPOSE)
    terms = with_limit(board.terms)
    assert board.ask("POST", "/v1/admin/proposals", body_of(terms), key=clerk).status == 201
    assert board.ask("GET", "/v1/admin/rules", key=clerk).status == 200
    board.sign(terms, "ann", "bo")
    for action, body in (("publish", {}), ("withdraw", {}), ("signatures", signature_of(terms, "chen"))):
        told = board.ask("POST", f"/v1/admin/proposals/{id_of(terms)}/{action}", body, key=clerk)
        assert (told.status, told.code) == (403, "forbidden")
    writer = board.key("a writer", Role.ADMIN, Action.PUBLISH)
    assert board.ask("GET", "/v1/admin/rules", key=writer).code == "forbidden"
    with pytest.raises(SettingsError, match="may read, and no more"):
        board.key("too much", Role.AUDITOR, Action.PUBLISH)


def test_a_scope_that_was_written_into_the_file_gives_no_more_than_the_role(board: Board) -> None:
    file = board.state / "api-keys.json"
    data = json.loads(file.read_bytes())
    for entry in data["keys"]:
        entry["scope"] = [*Action]
    file.write_text(json.dumps(data))
    terms = with_limit(board.terms)
    assert board.ask("POST", "/v1/admin/proposals", body_of(terms), key=board.auditor).code == "forbidden"
    assert {one.scope for one in ApiKeys(board.state, time.time).entries() if one.role is Role.AUDITOR} == {
        ACTIONS[Role.AUDITOR]
    }


def test_keys_are_kept_as_hashes_in_a_file_of_their_owners(board: Board) -> None:
    file = board.state / "api-keys.json"
    assert file.stat().st_mode & 0o077 == 0
    assert board.admin.encode() not in file.read_bytes()
    assert len(board.admin.removeprefix("cover_service_")) == 64
    file.chmod(0o644)
    told = board.ask("GET", "/v1/admin/rules")
    assert (told.status, told.code) == (503, "api-keys-unreadable")
    with pytest.raises(SettingsError, match="chmod 600"):
        ApiKeys(board.state, time.time)
    file.chmod(0o600)
    assert board.ask("GET", "/v1/admin/rules").status == 200


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"keys": [1]}', b'{"keys": [{"hash": "x"}]}', b"[" * 100_000])
def test_a_damaged_file_lets_nobody_in(board: Board, data: bytes) -> None:
    file = board.state / "api-keys.json"
    file.write_bytes(data)
    assert board.ask("GET", "/v1/admin/rules").code == "api-keys-unreadable"
    assert board.ask("GET", "/healthz", key="").status == 200
    file.unlink()
    assert board.ask("GET", "/v1/admin/rules").code == "unauthorized"


def test_what_no_key_can_be_is_refused(tmp_path: Path) -> None:
    keys = ApiKeys(tmp_path, time.time)
    for name in ("", " ", "a\nb", "x" * 65, "\u202e"):
        with pytest.raises(SettingsError, match="name"):
            keys.make(name, Role.ADMIN, 1, bytes)
    for days in (0, -1, MAX_DAYS + 1):
        with pytest.raises(SettingsError, match="days"):
            keys.make("name", Role.ADMIN, days, bytes)
    keys.make("name", Role.ADMIN, 1, bytes)
    with pytest.raises(SettingsError, match="there is an API key named name"):
        keys.make("name", Role.ADMIN, 1, bytes)
    with pytest.raises(SettingsError, match="no API key named other"):
        keys.revoke("other")


def test_the_commands_make_list_and_revoke_keys(tmp_path: Path) -> None:
    def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
        line = [sys.executable, "-m", "service.cli", "api-key", *arguments, "--state", str(tmp_path)]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    file = tmp_path / "ann.key"
    assert command("make", "ann", "--role", "admin", "--days", "30", "--file", str(file)).returncode == 0
    assert file.stat().st_mode & 0o077 == 0
    printed = command("make", "eve", "--role", "auditor", "--days", "1", "--only", "read").stdout
    keys = ApiKeys(tmp_path, time.time)
    assert (keys.holder(file.read_text().strip()).name, keys.holder(printed.strip()).role) == ("ann", Role.AUDITOR)
    header, first, second = command("list").stdout.splitlines()
    assert header.split("\t") == ["role", "made", "ends", "may", "name"]
    assert first.split("\t")[0::3] == ["admin", "propose,publish,read,sign,withdraw"]
    assert second.split("\t")[0::3] == ["auditor", "read"]
    assert command("revoke", "ann").returncode == 0
    again = command("revoke", "ann")
    assert (again.returncode, again.stderr) == (2, "lookup-service: there is no API key named ann\n")
    assert len(keys.entries()) == 1


def test_nothing_secret_is_told_to_an_auditor(board: Board) -> None:
    told = json.dumps([board.ask("GET", f"/v1/admin/{name}", key=board.auditor).body for name in READING])
    for secret in (board.admin, board.auditor, WORLD.service.keys.signing.reveal().hex()):
        assert secret not in told
