"""A manifest is changed by a proposal that M admins signed, and by nothing else, however much is sent at once."""

import base64
import errno
import fcntl
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from governing import (
    ADMINS,
    DAY,
    KEYS,
    PINS,
    WORLD,
    Board,
    first_terms,
    following,
    id_of,
    next_version,
    signature_of,
    signed,
    with_limit,
)

from protocol import signing
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import (
    Manifest,
    SignedManifest,
    Terms,
    bytes_to_sign,
    china_day,
    day_of,
    sign_terms,
    verify_manifest,
    verify_signature,
)
from protocol.progress import sign_report
from protocol.watermark import sign_watermark
from service.admin.manifests import pins_json
from service.app import make_app
from service.audit import AuditLog
from service.proposals import MAX_KEPT, MAX_OPEN, OPEN_SECONDS, Proposals, State
from service.published import Published
from transport.problems import Problem


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "service")


def files(state: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted((state / "proposals").iterdir())}


# --- the whole way -------------------------------------------------------------------------------------------------


def test_what_two_of_three_admins_sign_becomes_the_manifest(board: Board) -> None:
    terms = with_limit(board.terms)
    told = board.propose(terms, "higher, as agreed on Tuesday")
    assert (told.status, told.headers["Location"]) == (201, f"/v1/admin/proposals/{id_of(terms)}")
    assert told.body["id"] == id_of(terms)
    assert (told.body["state"], told.body["serial"], told.body["threshold"]) == ("open", terms.serial, 2)
    assert (told.body["comment"], told.body["proposed_by"]) == ("higher, as agreed on Tuesday", "an admin")
    board.sign(terms, "chen", "ann")
    assert board.get("proposals", board.auditor)["proposals"][0]["signed_by"] == ["ann", "chen"]
    answer = board.publish(terms)
    assert (answer.status, answer.body) == (200, {"serial": terms.serial, "hash": Manifest.of(terms).hash.hex()})
    assert board.newest().terms == terms
    assert board.state_of(terms) == "published"
    shown = board.get("manifest", board.auditor)
    assert shown["signed_by"] == ["ann", "chen"]
    assert verify_manifest(base64.b64decode(shown["signed"]), PINS).terms == terms
    assert shown["terms"]["rules"][-1]["version"] == 2
    assert shown["serial"] == terms.serial


def test_a_proposal_shows_what_is_signed_what_it_changes_and_the_difference(board: Board) -> None:
    terms = with_limit(board.terms)
    board.propose(terms)
    shown = board.get(f"proposals/{id_of(terms)}", board.auditor)
    assert base64.b64decode(shown["terms"]) == encode(terms)
    assert base64.b64decode(shown["base"]) == encode(board.terms)
    assert shown["base_hash"] == Manifest.of(board.terms).hash.hex()
    assert verify_manifest(base64.b64decode(shown["base_signed"]), PINS).terms == board.terms
    added = shown["difference"][0]
    assert (added["kind"], added["what"]) == ("rule_added", "accident-30d version 2")
    assert {"field": "limit", "before": "50000000.00", "after": "50000001.00"} in added["fields"]
    assert [change["what"] for change in shown["difference"][1:]] == ["serial", "previous", "issued_at", "valid_until"]


def test_the_overview_and_the_rules_are_what_the_console_needs(board: Board) -> None:
    report_progress(board, 1)
    shown = board.get("overview", board.auditor)
    assert (shown["role"], shown["name"], shown["threshold"]) == ("auditor", "an auditor", 2)
    assert shown["admins"] == [{"name": name, "public_key": key.hex()} for name, key in sorted(KEYS.items())]
    assert shown["manifest"]["serial"] == board.terms.serial
    first, second = shown["members"][:2]
    assert set(first) == {"id", "group", "url", "current_until", "current"}
    assert first["current"] is True
    assert first["current_until"].endswith("Z")
    assert (second["current_until"], second["current"]) == (None, False)

    today = china_day(time.time())
    coming = next_version(board.terms, valid_from=today + 3)
    terms = following(board.terms, rules=(*board.terms.rules, next_version(board.terms), replace(coming, version=3)))
    board.propose(terms)
    board.sign(terms, "ann", "bo")
    assert board.publish(terms).status == 200
    (rule,) = (one for one in board.get("rules")["rules"] if one["id"] == "accident-30d")
    assert [(one["version"], one["state"]) for one in rule["versions"]] == [(3, "coming"), (2, "in_force"), (1, "past")]
    assert (rule["versions"][2]["limit"], rule["versions"][2]["subject_type"]) == ("50000000.00", "person")
    assert rule["versions"][0]["valid_from"] == day_of(today + 3).isoformat()
    (count,) = (one for one in board.get("rules")["rules"] if one["id"] == "policies-30d")
    assert count["versions"][0]["limit"] == "3"


def report_progress(board: Board, number: int) -> None:
    """Have a member's report stand in the directory."""
    party, now = replace(WORLD.party(number), manifest=Manifest.of(board.terms)), time.time()
    report = sign_report(party, sign_watermark(party, int(now), now), ())
    (board.state / "directory" / party.id).write_bytes(encode(report))


# --- signatures ----------------------------------------------------------------------------------------------------


def test_what_an_external_signer_is_given_is_what_an_admins_key_signs() -> None:
    terms = first_terms()
    data = encode(terms)
    signature = Ed25519PrivateKey.from_private_bytes(ADMINS["ann"].reveal()).sign(bytes_to_sign(data))
    assert signature == sign_terms(terms, "ann", ADMINS["ann"]).signature
    verify_signature(KEYS["ann"], signature, data)


def test_one_signature_is_too_few_and_the_same_again_too(board: Board) -> None:
    terms = with_limit(board.terms)
    board.propose(terms)
    assert board.publish(terms).code == "under-signed"
    board.sign(terms, "ann", "ann")
    told = board.publish(terms)
    assert (told.status, told.code) == (409, "under-signed")
    assert told.body["hint"]
    assert board.newest().terms == board.terms


def test_forged_and_stolen_signatures_are_refused(board: Board) -> None:
    terms, other = with_limit(board.terms), with_limit(board.terms, 200)
    board.propose(terms)
    path = f"/v1/admin/proposals/{id_of(terms)}/signatures"
    stolen = signature_of(terms, "ann") | {"admin": "bo"}
    purpose = {"admin": "ann", "signature": signing.sign(ADMINS["ann"], "check", encode(terms)).hex()}
    for bad in (
        {"admin": "ann", "signature": "00" * 64},
        stolen,
        signature_of(other, "ann"),
        purpose,
    ):
        told = board.ask("POST", path, bad)
        assert (told.status, told.code) == (422, "bad-signature")
    assert board.ask("POST", path, signature_of(terms, "ann") | {"admin": "stranger"}).code == "unknown-admin"
    for malformed in ("", "zz" * 64, "00" * 63, "00" * 65, signature_of(terms, "ann")["signature"].upper(), 7, None):
        assert board.ask("POST", path, {"admin": "ann", "signature": malformed}).code == "invalid-request"
    assert board.get(f"proposals/{id_of(terms)}")["signed_by"] == []


def test_an_admin_with_two_names_signs_once(tmp_path: Path) -> None:
    board = Board(tmp_path / "service", pins=KEYS | {"ann-again": KEYS["ann"]})
    terms = with_limit(board.terms)
    board.propose(terms)
    board.sign(terms, "ann")
    again = {"admin": "ann-again", "signature": sign_terms(terms, "ann-again", ADMINS["ann"]).signature.hex()}
    told = board.ask("POST", f"/v1/admin/proposals/{id_of(terms)}/signatures", again)
    assert (told.status, told.code) == (409, "already-signed")
    # Nor do both count where they stand in the file.
    file = board.state / "proposals" / f"{id_of(terms)}.json"
    record = json.loads(file.read_bytes())
    record["signatures"]["ann-again"] = again["signature"]
    file.write_text(json.dumps(record))
    assert board.publish(terms).code == "under-signed"


def test_signatures_are_verified_again_when_it_is_published(board: Board) -> None:
    terms = with_limit(board.terms)
    board.propose(terms)
    board.sign(terms, "ann")
    file = board.state / "proposals" / f"{id_of(terms)}.json"
    record = json.loads(file.read_bytes())
    record["signatures"] |= {"bo": "00" * 64, "nobody": "00" * 64}
    file.write_text(json.dumps(record))
    assert board.publish(terms).code == "under-signed"
    board.sign(terms, "bo")
    assert board.publish(terms).status == 200


def test_an_admin_who_is_not_pinned_any_more_does_not_count(board: Board) -> None:
    terms = with_limit(board.terms)
    board.propose(terms)
    board.sign(terms, "ann", "chen")
    left = {name: KEYS[name] for name in ("ann", "bo")}
    (board.state / "admins.json").write_text(pins_json(left, 2))
    board.app = make_app(board.state)
    assert board.publish(terms).code == "under-signed"


# --- what is refused -----------------------------------------------------------------------------------------------


def test_terms_that_could_not_follow_are_not_taken(board: Board) -> None:
    rules, now = board.terms.rules, int(time.time())
    today = china_day(now)
    bad = {
        "stale-proposal": replace(board.terms, valid_until=now + DAY),
        "serial-skipped": following(board.terms, serial=board.terms.serial + 2),
        "rule-rewritten": following(board.terms, rules=(replace(rules[0], limit=1), *rules[1:])),
        "rule-back-dated": following(board.terms, rules=(*rules, next_version(board.terms, valid_from=today - 1))),
        "other-epoch": following(board.terms, epoch=2),
        "other-alliance": following(board.terms, alliance="another"),
        "bad-manifest": following(board.terms, rules=(*rules, next_version(board.terms, products=("unknown",)))),
        "issued-ahead": following(board.terms, issued_at=now + 4000),
        "proposal-expired": following(board.terms, valid_until=now - 1, issued_at=board.terms.issued_at),
        "other-connections": following(board.terms, service_signing_key=bytes(32)),
    }
    told = {code: board.propose(terms) for code, terms in bad.items()}
    assert {code: answer.code for code, answer in told.items()} == {code: code for code in bad}
    assert all(400 <= answer.status < 500 for answer in told.values())
    assert board.get("proposals") == {"proposals": []}
    assert [file.name for file in (board.state / "proposals").iterdir()] == [".lock"]


def test_a_rule_that_has_ended_does_not_come_back_under_a_version_that_it_had(board: Board) -> None:
    rule = next_version(board.terms)
    second = following(board.terms, rules=(*board.terms.rules, rule))
    third = following(second, rules=board.terms.rules[1:])
    for terms in (second, third):
        assert board.propose(terms).status == 201
        board.sign(terms, "ann", "bo")
        assert board.publish(terms).status == 200
    codes = {}
    for version in (1, 2, 3):
        again = replace(rule, version=version, limit=7)
        codes[version] = board.propose(following(third, rules=(*third.rules, again)))
    assert [codes[1].code, codes[2].code, codes[3].status] == ["rule-rewritten", "rule-rewritten", 201]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid-request"),
        ({"terms": ""}, "invalid-request"),
        ({"terms": 7}, "invalid-request"),
        ({"terms": "AAAA", "more": 1}, "invalid-request"),
        ({"terms": "AAAA", "comment": "two\nlines"}, "invalid-request"),
        ({"terms": "AAAA", "comment": "\u202egnp.exe"}, "invalid-request"),
        ({"terms": "AAAA", "comment": "x" * 501}, "invalid-request"),
        ({"terms": "no base64!"}, "not-base64"),
        ({"terms": "AAA"}, "not-base64"),
        ({"terms": "AAAA\n"}, "not-base64"),
        ({"terms": "５５５５"}, "not-base64"),
        ({"terms": "AAAA"}, "malformed"),
        ([], "invalid-request"),
        (b"{", "unsupported-media-type"),
    ],
)
def test_a_body_that_is_no_proposal_is_refused(board: Board, body: object, code: str) -> None:
    assert board.ask("POST", "/v1/admin/proposals", body).code == code
    assert board.get("proposals") == {"proposals": []}


def test_json_that_says_a_name_twice_or_nests_without_end_is_refused(board: Board) -> None:
    for data in (b'{"terms": "AAAA", "terms": "AAAB"}', b"[" * 100_000, b"\xff", b'{"terms": 1'):
        told = board.ask("POST", "/v1/admin/proposals", data, content_type="application/json")
        assert (told.status, told.code) == (400, "not-json")


def test_bytes_after_or_missing_from_good_terms_are_refused(board: Board) -> None:
    data = encode(with_limit(board.terms))
    for bent in (data[:-1], data + b"\0", data[1:], signed(board.terms, "ann")):
        told = board.ask("POST", "/v1/admin/proposals", {"terms": base64.b64encode(bent).decode()})
        assert told.code == "malformed"


def test_huge_bodies_are_not_read(board: Board) -> None:
    huge = json.dumps({"terms": "A" * (3 << 20)}).encode()
    told = board.ask("POST", "/v1/admin/proposals", huge, content_type="application/json")
    assert (told.status, told.code) == (413, "request-entity-too-large")
    terms = with_limit(board.terms)
    board.propose(terms)
    for action in ("signatures", "publish", "withdraw"):
        path = f"/v1/admin/proposals/{id_of(terms)}/{action}"
        told = board.ask("POST", path, b'"' + b"x" * 10_000 + b'"', content_type="application/json")
        assert (told.status, told.code) == (413, "request-entity-too-large")
    assert board.state_of(terms) == "open"


@pytest.mark.parametrize(
    "proposal_id",
    [
        "..",
        "%2e%2e",
        "..%2f..%2fkeys",
        "0" * 15,
        "0" * 17,
        "0" * 16,
        "A" * 16,
        "0" * 15 + "%0a",
        "%00" * 16,
        ".lock",
        "٠" * 16,
    ],
)
def test_no_id_leads_out_of_the_folder(board: Board, proposal_id: str) -> None:
    board.propose(with_limit(board.terms))
    before = files(board.state)
    for method, suffix in (("GET", ""), ("POST", "/publish"), ("POST", "/withdraw"), ("POST", "/signatures")):
        body = {"admin": "ann", "signature": "00" * 64} if suffix == "/signatures" else None
        told = board.ask(method, f"/v1/admin/proposals/{proposal_id}{suffix}", body)
        assert told.status in {404, 405}
        assert told.code in {"unknown-proposal", "not-found", "method-not-allowed"}
    assert files(board.state) == before


# --- stale, conflicting, expired, withdrawn ------------------------------------------------------------------------


def test_of_two_proposals_of_one_base_the_second_is_stale(board: Board) -> None:
    one = with_limit(board.terms)
    two = following(board.terms, valid_until=int(time.time()) + 70 * DAY)
    for terms in (one, two):
        assert board.propose(terms).status == 201
        board.sign(terms, "ann", "bo")
    assert board.publish(one).status == 200
    board.app = make_app(board.state)  # another worker looks at once
    told = board.publish(two)
    assert (told.status, told.code) == (409, "stale-proposal")
    assert "alliance propose" in told.body["hint"]
    assert board.state_of(two) == "stale"
    assert board.newest().terms == one
    for act in (board.withdraw(two), board.propose(two)):
        assert act.code == "stale-proposal"
    told = board.ask("POST", f"/v1/admin/proposals/{id_of(two)}/signatures", signature_of(two, "chen"))
    assert told.code == "stale-proposal"


def test_a_version_that_was_given_another_content_meanwhile_conflicts(board: Board) -> None:
    one, two = with_limit(board.terms), with_limit(board.terms, 777)
    for terms in (one, two):
        board.propose(terms)
        board.sign(terms, "ann", "bo")
    assert board.publish(one).status == 200
    told = board.publish(two)
    assert (told.status, told.code) == (409, "conflicting-proposal")
    assert "accident-30d version 2" in told.body["detail"]
    assert board.newest().terms == one


def test_a_proposal_expires(board: Board) -> None:
    now, (_, proposals) = time.time(), board.store()
    terms = with_limit(board.terms)
    proposal = proposals.propose(encode(terms), "", "an admin", now)
    assert proposal.expires_at == int(now) + OPEN_SECONDS
    for admin in ("ann", "bo"):
        proposals.sign(proposal.id, admin, sign_terms(terms, admin, ADMINS[admin]).signature, "an admin", now)
    late = proposal.expires_at
    assert proposals.state(proposal, late - 1) is State.OPEN
    assert proposals.state(proposal, late) is State.EXPIRED
    for act in (
        lambda: proposals.publish(proposal.id, "an admin", late),
        lambda: proposals.withdraw(proposal.id, "an admin", late),
        lambda: proposals.propose(encode(terms), "", "an admin", late),
        lambda: proposals.sign(
            proposal.id, "chen", sign_terms(terms, "chen", ADMINS["chen"]).signature, "an admin", late
        ),
    ):
        with pytest.raises(Problem) as refused:
            act()
        assert (refused.value.status, refused.value.code) == (409, "proposal-expired")
    assert board.newest().terms == board.terms
    short = following(board.terms, valid_until=int(now) + 100)
    assert proposals.propose(encode(short), "", "an admin", now).expires_at == int(now) + 100


def test_an_expired_manifest_is_renewed_like_any_other(board: Board) -> None:
    published, proposals = board.store()
    later = board.terms.valid_until + DAY
    terms = following(board.terms, issued_at=later, valid_until=later + 30 * DAY)
    proposal = proposals.propose(encode(terms), "", "an admin", later)
    for admin in ("bo", "chen"):
        proposals.sign(proposal.id, admin, sign_terms(terms, admin, ADMINS[admin]).signature, "an admin", later)
    assert proposals.publish(proposal.id, "an admin", later).terms == terms
    assert published.newest()[1].terms == terms


def test_a_service_whose_manifest_has_expired_takes_the_next(tmp_path: Path) -> None:
    now = int(time.time())
    board = Board(tmp_path / "service", first_terms(issued_at=now - 100, valid_until=now - 1))
    assert board.ask("GET", "/readyz").status == 503
    terms = following(board.terms)
    assert board.propose(terms).status == 201
    board.sign(terms, "ann", "bo")
    assert board.publish(terms).status == 200
    assert board.ask("GET", "/readyz").status == 200


def test_a_withdrawn_proposal_is_not_signed_or_published(board: Board) -> None:
    terms = with_limit(board.terms)
    board.propose(terms)
    board.sign(terms, "ann", "bo")
    told = board.withdraw(terms)
    assert (told.status, told.body["state"], told.body["withdrawn_by"]) == (200, "withdrawn", "an admin")
    assert board.withdraw(terms).status == 200
    assert board.publish(terms).code == "proposal-withdrawn"
    assert board.propose(terms).code == "proposal-withdrawn"
    path = f"/v1/admin/proposals/{id_of(terms)}/signatures"
    assert board.ask("POST", path, signature_of(terms, "chen")).code == "proposal-withdrawn"
    assert board.newest().terms == board.terms


def test_doing_it_again_after_a_lost_answer_changes_nothing(board: Board) -> None:
    terms = with_limit(board.terms)
    assert board.propose(terms, "once").body == board.propose(terms, "again").body
    board.sign(terms, "ann", "bo", "ann")
    before = board.get(f"proposals/{id_of(terms)}")
    board.sign(terms, "bo")
    assert board.get(f"proposals/{id_of(terms)}") == before
    assert board.publish(terms).body == board.publish(terms).body
    assert board.propose(terms).code == "already-published"
    assert board.withdraw(terms).code == "already-published"


def test_another_proposal_of_the_same_id_is_refused(board: Board) -> None:
    terms, other = with_limit(board.terms), with_limit(board.terms, 300)
    board.propose(terms)
    folder = board.state / "proposals"
    record = json.loads((folder / f"{id_of(terms)}.json").read_bytes())
    # As if someone had found two terms whose hashes begin alike.
    forged = record | {"id": id_of(other), "hash": id_of(other) + record["hash"][16:]}
    (folder / f"{id_of(other)}.json").write_text(json.dumps(forged))
    (folder / f"{id_of(other)}.terms").write_bytes(encode(terms))
    told = board.propose(other)
    assert told.status >= 409
    assert told.code in {"conflicting-proposal", "proposal-damaged"}


# --- files ---------------------------------------------------------------------------------------------------------


def test_open_proposals_are_bounded_and_old_ones_are_forgotten(board: Board) -> None:
    now, (_, proposals) = time.time(), board.store()
    rivals = [following(board.terms, valid_until=int(now) + DAY + number) for number in range(MAX_OPEN + MAX_KEPT + 10)]
    made = [proposals.propose(encode(rivals[number]), "", "an admin", now + number) for number in range(MAX_OPEN)]
    with pytest.raises(Problem, match="too-many-proposals"):
        proposals.propose(encode(with_limit(board.terms)), "", "an admin", now)
    for number in range(MAX_KEPT + 10):
        proposals.withdraw(made[number].id, "an admin", now)
        at = MAX_OPEN + number
        made.append(proposals.propose(encode(rivals[at]), "", "an admin", now + at))
    states = Counter(proposals.state(one, now) for one in proposals.all())
    assert states == {State.OPEN: MAX_OPEN, State.WITHDRAWN: MAX_KEPT}
    assert len(list((board.state / "proposals").glob("*.terms"))) == MAX_OPEN + MAX_KEPT
    assert board.ask("GET", f"/v1/admin/proposals/{made[0].id}").code == "unknown-proposal"


def test_a_process_that_was_killed_leaves_nothing_that_counts(board: Board) -> None:
    folder, terms = board.state / "proposals", with_limit(board.terms)
    (folder / f"{id_of(terms)}.terms").write_bytes(encode(terms)[:50])
    (folder / f"{id_of(terms)}.json.new").write_bytes(b"{")
    (folder / f"{'0' * 16}.json.new").write_bytes(b"{")
    (folder / f"{'1' * 16}.terms.new").write_bytes(b"half")
    (folder / f"{'0' * 16}.terms").write_bytes(b"half")
    assert board.get("proposals") == {"proposals": []}
    assert board.propose(terms).status == 201
    assert sorted(file.name for file in folder.iterdir()) == [".lock", f"{id_of(terms)}.json", f"{id_of(terms)}.terms"]
    board.sign(terms, "ann", "bo")
    assert board.publish(terms).status == 200


def test_damaged_files_are_told_and_never_published(board: Board) -> None:
    folder, terms = board.state / "proposals", with_limit(board.terms)
    board.propose(terms)
    board.sign(terms, "ann", "bo")
    place = folder / f"{id_of(terms)}.terms"
    for data in (encode(with_limit(board.terms, 9)), b""):
        place.write_bytes(data)
        told = board.publish(terms)
        assert (told.status, told.code) == (500, "proposal-damaged")
    place.unlink()
    assert board.publish(terms).code == "proposal-damaged"
    for data in (b"", b"[]", b"{}", b'{"hash": 1}', b"[" * 100_000):
        (folder / f"{id_of(terms)}.json").write_bytes(data)
        assert board.publish(terms).code == "proposal-unreadable"
        assert board.get("proposals") == {"proposals": []}
    assert board.newest().terms == board.terms


def test_what_cannot_be_read_is_told_once_and_stays(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    newer, looped, terms = (with_limit(board.terms, more) for more in (300, 500, 700))
    for one in (newer, looped):
        board.propose(one)
        board.sign(one, "ann")
    newer_file, looped_file = (board.state / "proposals" / f"{id_of(one)}.json" for one in (newer, looped))
    newer_file.write_text(json.dumps(json.loads(newer_file.read_bytes()) | {"of_a_newer_version": 1}))
    record = looped_file.read_bytes()
    looped_file.unlink()
    looped_file.symlink_to(looped_file.name)  # opening it fails, by the kernel's word and for any user
    before = newer_file.read_bytes()
    for one in (newer, looped):
        for _ in range(2):
            told = board.ask("GET", f"/v1/admin/proposals/{id_of(one)}")
            assert (told.status, told.code) == (500, "proposal-unreadable")
        assert board.propose(one).code == "proposal-unreadable"
        assert sum(id_of(one) in line.message for line in caplog.records) == 1
    assert board.propose(terms).status == 201
    assert [one["id"] for one in board.get("proposals")["proposals"]] == [id_of(terms)]
    assert newer_file.read_bytes() == before
    assert looped_file.is_symlink()
    looped_file.unlink()
    looped_file.write_bytes(record)  # and once it can be read it is as it was, terms and signatures included
    assert board.get(f"proposals/{id_of(looped)}")["signed_by"] == ["ann"]
    newer_file.write_text(json.dumps({k: v for k, v in json.loads(before).items() if k != "of_a_newer_version"}))
    board.sign(newer, "bo")
    assert board.publish(newer).status == 200


def test_a_folder_that_cannot_be_listed_has_nothing_removed(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    first = with_limit(board.terms, 300)
    board.propose(first)
    before = files(board.state)

    def listed(place: str, really: Callable[[str], list[str]] = os.listdir) -> list[str]:
        if Path(place).name == "proposals":
            raise OSError(errno.EMFILE, "Too many open files")
        return really(place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", listed)
        assert board.propose(with_limit(board.terms)).code == "proposal-unreadable"
        assert board.ask("GET", "/v1/admin/proposals").code == "proposal-unreadable"
    assert files(board.state) == before


def test_nobody_has_what_was_published_forgotten(board: Board) -> None:
    terms = with_limit(board.terms)
    board.propose(terms)
    board.sign(terms, "ann", "bo")
    assert board.publish(terms).status == 200
    now, (_, proposals) = time.time(), board.store()
    for number in range(MAX_KEPT + 2):
        rival = following(terms, valid_until=int(now) + DAY + number)
        proposals.withdraw(proposals.propose(encode(rival), "", "an admin", now + 1 + number).id, "an admin", now)
    states = Counter(proposals.state(one, now) for one in proposals.all())
    assert states == {State.PUBLISHED: 1, State.WITHDRAWN: MAX_KEPT + 1}
    assert board.state_of(terms) == "published"


def test_the_files_are_readable_by_their_owner_alone(board: Board) -> None:
    board.propose(with_limit(board.terms))
    folder = board.state / "proposals"
    assert folder.stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in folder.glob("*.*") if file.name != ".lock")


# --- at once -------------------------------------------------------------------------------------------------------


def test_of_many_who_publish_rivals_at_once_one_wins(board: Board) -> None:
    rivals = [with_limit(board.terms, 100 + number) for number in range(6)]
    for terms in rivals:
        board.propose(terms)
        board.sign(terms, "ann", "bo")
    stores = [board.store()[1] for _ in range(4)]  # as many workers
    start = threading.Barrier(12)

    def publish(number: int) -> tuple[str, Terms | None]:
        start.wait()
        try:
            manifest = stores[number % 4].publish(id_of(rivals[number % 6]), f"admin {number}", time.time())
        except Problem as problem:
            return problem.code, None
        return "published", manifest.terms

    with ThreadPoolExecutor(12) as pool:
        told = list(pool.map(publish, range(12)))
    won = {encode(terms) for _, terms in told if terms is not None}
    assert len(won) == 1
    assert {code for code, _ in told} == {"published", "conflicting-proposal"}
    assert encode(board.newest().terms) in won
    assert len(list((board.state / "manifests").glob("*.bin"))) == 2


def test_a_process_that_holds_the_lock_holds_no_other_up_for_good(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = with_limit(board.terms)
    monkeypatch.setattr("service.proposals.ALONE_SECONDS", 0.05)
    with (board.state / "proposals" / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = board.propose(terms)
        assert (told.status, told.code, told.headers["Retry-After"]) == (503, "busy", "1")
        assert board.get("proposals") == {"proposals": []}
    assert board.propose(terms).status == 201


def test_signatures_that_come_at_once_are_all_kept(board: Board) -> None:
    terms = with_limit(board.terms)
    board.propose(terms)
    stores = [board.store()[1] for _ in range(3)]
    start = threading.Barrier(9)

    def sign(number: int) -> None:
        admin = list(ADMINS)[number % 3]
        start.wait()
        stores[number // 3].sign(
            id_of(terms), admin, sign_terms(terms, admin, ADMINS[admin]).signature, admin, time.time()
        )

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(sign, range(9)))
    assert board.get(f"proposals/{id_of(terms)}")["signed_by"] == sorted(ADMINS)


STARTS: list[Barrier] = []


def start_at(barrier: Barrier) -> None:
    STARTS.append(barrier)


def act_in_a_process(state: Path, number: int, data: bytes) -> list[str]:
    """Propose, sign, publish and withdraw as fast as it goes; return with what codes that was refused."""
    published = Published(state / "manifests", PINS, state / "manifest.bin")
    proposals = Proposals(state / "proposals", published, PINS, AuditLog(state))
    terms, told = decode(Terms, data), []
    admin = list(ADMINS)[number % 2]
    signature = sign_terms(terms, admin, ADMINS[admin]).signature
    STARTS[0].wait(60)
    for _ in range(8):
        for act in (
            lambda: proposals.propose(data, "", admin, time.time()),
            lambda: proposals.sign(id_of(terms), admin, signature, admin, time.time()),
            lambda: proposals.publish(id_of(terms), admin, time.time()),
            lambda: [proposals.state(one, time.time()) for one in proposals.all()],
            lambda: proposals.withdraw(id_of(terms), admin, time.time()) if number == 3 else None,
        ):
            try:
                act()
            except (Problem, ProtocolError) as refusal:
                told.append(refusal.code)
    return told


def test_processes_that_do_all_at_once_leave_one_whole_manifest(board: Board) -> None:
    rivals = [encode(with_limit(board.terms, 100 + number // 2)) for number in range(4)]
    spawn = get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=spawn, initializer=start_at, initargs=(spawn.Barrier(4),)) as pool:
        told = list(pool.map(act_in_a_process, [board.state] * 4, range(4), rivals))
    expected = {"under-signed", "proposal-withdrawn", "stale-proposal", "conflicting-proposal", "already-published"}
    expected.add("unknown-proposal")  # where another's was published before one's own was proposed
    assert {code for one in told for code in one} <= expected
    newest = board.newest().terms
    published = [one["hash"] for one in board.get("proposals")["proposals"] if one["state"] == "published"]
    assert published == [] if newest == board.terms else [Manifest.of(newest).hash.hex()]
    for file in (board.state / "manifests").glob("*.bin"):
        verify_manifest(file.read_bytes(), PINS)
        assert len(decode(SignedManifest, file.read_bytes()).signatures) >= 2
    assert not list((board.state / "proposals").glob("*.new"))
