"""What admins do at the service is written down before it is done, and what they are refused, too; auditors read it."""

import json
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from governing import Board, body_of, id_of, signature_of, with_limit

from service import audit
from service.api_keys import Action, Role
from service.audit import MAX_FILES, PAGE, Act, AuditLog
from transport.problems import Problem


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "service")


def told(board: Board, after: int = 0) -> list[dict[str, Any]]:
    page = board.get(f"audit?after={after}", board.auditor)
    assert page["next"] is None
    return list(page["entries"])


def brief(entries: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(one[name] for name in ("number", "key", "act", "proposal", "admin", "code")) for one in entries]


def test_each_act_and_each_refusal_is_a_line_that_auditors_read(board: Board) -> None:
    one, two = with_limit(board.terms), with_limit(board.terms, 300)
    for terms in (one, two):
        board.propose(terms, "a comment that is nobody's business")
    board.sign(one, "ann", "ann")  # again, which changes nothing
    assert board.publish(one).code == "under-signed"
    board.sign(one, "bo")
    assert board.withdraw(two).status == 200
    assert board.publish(one).status == 200
    path = f"/v1/admin/proposals/{id_of(two)}/signatures"
    assert board.ask("POST", path, signature_of(two, "chen"), key=board.auditor).code == "forbidden"
    forged = signature_of(two, "chen") | {"admin": "a name of the caller's choice"}
    assert board.ask("POST", path, forged).code == "proposal-withdrawn"
    assert board.ask("POST", "/v1/admin/proposals/310101199001011234/withdraw").code == "unknown-proposal"
    assert board.ask("POST", "/v1/admin/proposals", {"terms": "!"}).code == "not-base64"
    board.ask("GET", "/v1/admin/rules")
    board.ask("POST", path, forged, key="cover_service_" + "0" * 64)
    entries = told(board)
    assert brief(entries) == [
        (1, "an admin", "propose", id_of(one), None, None),
        (2, "an admin", "propose", id_of(two), None, None),
        (3, "an admin", "sign", id_of(one), "ann", None),
        (4, "an admin", "publish", id_of(one), None, "under-signed"),
        (5, "an admin", "sign", id_of(one), "bo", None),
        (6, "an admin", "withdraw", id_of(two), None, None),
        (7, "an admin", "publish", id_of(one), None, None),
        (8, "an auditor", "sign", id_of(two), None, "forbidden"),
        (9, "an admin", "sign", id_of(two), None, "proposal-withdrawn"),
        (10, "an admin", "withdraw", None, None, "unknown-proposal"),
        (11, "an admin", "propose", None, None, "not-base64"),
    ]
    assert all(one["at"].endswith("Z") for one in entries)
    assert told(board, 9) == entries[9:]
    file = board.state / "admin-audit.log"
    assert file.stat().st_mode & 0o077 == 0
    written = file.read_text(encoding="utf-8")
    for said in (board.admin, board.auditor, "business", "choice", "310101199001011234", forged["signature"]):
        assert said not in written


def test_what_cannot_be_written_down_is_not_done(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    terms, other = with_limit(board.terms), with_limit(board.terms, 300)
    board.propose(terms)
    board.sign(terms, "ann")
    file = board.state / "admin-audit.log"
    kept = file.read_bytes()
    file.unlink()
    file.mkdir()
    path = f"/v1/admin/proposals/{id_of(terms)}"
    tried = {
        "/v1/admin/proposals": body_of(other),
        f"{path}/signatures": signature_of(terms, "bo"),
        f"{path}/withdraw": {},
    }
    for place, body in tried.items():
        answer = board.ask("POST", place, body)
        assert (answer.status, answer.code) == (503, "audit-unwritable")
    assert board.ask("GET", "/v1/admin/audit").code == "audit-unreadable"
    assert board.publish(terms).code == "under-signed"  # a refusal stands, written or not
    shown = board.get("proposals")["proposals"]
    assert [(one["id"], one["state"], one["signed_by"]) for one in shown] == [(id_of(terms), "open", ["ann"])]
    assert "the audit log cannot be written" in caplog.text
    file.rmdir()
    file.write_bytes(kept)
    board.sign(terms, "bo")
    assert [one[0] for one in brief(told(board))] == [1, 2, 3]


@pytest.mark.parametrize("after", ["-1", "x", "", "1.0", "1" * 16, "٣"])
def test_a_number_that_is_none_is_refused(board: Board, after: str) -> None:
    answer = board.ask("GET", "/v1/admin/audit", query_string={"after": after})
    assert (answer.status, answer.code) == (422, "invalid-request")


def test_one_without_the_right_to_read_does_not_read_it(board: Board) -> None:
    writer = board.key("a writer", Role.ADMIN, Action.PUBLISH)
    assert board.ask("GET", "/v1/admin/audit", key=writer).code == "forbidden"
    assert board.ask("GET", "/v1/admin/audit", key="").code == "unauthorized"


def test_pages_go_through_all_files_and_the_oldest_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_FILE", 1000)
    monkeypatch.setattr(audit, "PAGE", 7)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # of two thousand lines
    logs = [AuditLog(tmp_path) for _ in range(2)]  # as two workers
    act = Act(1, "名字 ann", "sign", "0" * 16, "ann")
    most = 2000
    for number in range(1, most + 1):
        logs[number % 2].write(replace(act, at=number))
    files = sorted(tmp_path.glob("admin-audit*.log"))
    assert len(files) == MAX_FILES
    assert all(file.stat().st_size < 1300 for file in files)
    first = logs[0].page(0)[0][0]
    assert 1 < first < most - MAX_FILES
    for start in (0, first - 1):
        seen, after = [], start
        while page := logs[0].page(after):
            assert len(page) <= 7
            seen += page
            after = page[-1][0]
        assert seen == [(number, replace(act, at=number)) for number in range(first, most + 1)]
    assert logs[0].page(most) == []
    assert PAGE == 500


def test_a_line_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    act = Act(1, "ann", "publish")
    log.write(act)
    file = tmp_path / "admin-audit.log"
    whole = file.read_bytes()
    for cut in (b'{"number": 2, "at"', b"\xff", b"[]\n", b'{"number": 9}\n', b"[" * 100_000):
        file.write_bytes(whole + cut)
        log.write(act)
        assert log.page(0) == [(1, act), (2, act)]
    file.write_bytes(b"")
    log.write(act)
    assert log.page(0) == [(1, act)]


def _write_many(state: str, name: str) -> None:
    log = AuditLog(Path(state))
    threads = [
        threading.Thread(target=lambda: [log.write(Act(1, name, "sign")) for _ in range(10)] and None) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_processes_and_threads_leave_whole_lines_with_a_number_each(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        list(pool.map(_write_many, [str(tmp_path)] * 3, ["ann", "bo", "chen"]))
    lines = [json.loads(line) for line in (tmp_path / "admin-audit.log").read_bytes().splitlines()]
    assert [line["number"] for line in lines] == list(range(1, 91))
    assert {name: sum(line["key"] == name for line in lines) for name in ("ann", "bo", "chen")} == dict.fromkeys(
        ("ann", "bo", "chen"), 30
    )


def test_an_act_is_written_down_before_it_is_done(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    _, proposals = board.store()
    terms = with_limit(board.terms)
    board.propose(terms)

    def killed(_proposal: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proposals, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        proposals.sign(
            id_of(terms), "ann", bytes.fromhex(signature_of(terms, "ann")["signature"]), "a key", time.time()
        )
    assert brief(told(board))[-1] == (2, "a key", "sign", id_of(terms), "ann", None)
    with pytest.raises(Problem, match="audit-unwritable"):
        AuditLog(board.state / "nowhere").write(Act(1, "a key", "sign"))
