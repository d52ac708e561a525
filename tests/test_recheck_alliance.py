"""The case that the recheck is for, on a live alliance: each application reads within, and the night finds them."""

import csv
import datetime as dt
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live import LiveAlliance, china_today, issue, pids_of, wait_for_ticks, wait_until, write_policies
from test_alliance import clear_text, spellings_of_amount, spellings_of_text

from insurer_agent.store.locks import Lock

pytestmark = pytest.mark.alliance

MEMBERS = 6
EACH, EACH_FEN = "9100000.37", 910_000_037
SPREAD = ("passport", "SPREAD55127")
"""Who takes out cover at every member on one day, 54.6 million yuan in all."""
QUOTED = f"'{SPREAD[1]}"
RULES = """
products = ["accident", "term_life"]

[[rule]]
id = "accident-30d"
version = 1
products = ["accident"]
window_days = 30
measure = "sum_insured"
limit = 50_000_000
budget = 50
budget_days = 30
valid_from = 2026-01-01

[[rule]]
id = "underwriting-only"
version = 1
products = ["accident"]
window_days = 30
measure = "policy_count"
limit = 1
budget = 50
recheck_budget = 0
budget_days = 30
valid_from = 2026-01-01

[[rule]]
id = "once"
version = 1
products = ["accident"]
window_days = 30
measure = "policy_count"
limit = 5
budget = 50
recheck_budget = 1
budget_days = 30
valid_from = 2026-01-01
"""


def policy_of(member: int) -> str:
    return f"SPREAD-POLICY-{member}"


def own_policies() -> list[tuple[str, ...]]:
    """Return what the first member insures besides: persons at the limit, of other products, cancelled, long ago."""
    old = china_today() - dt.timedelta(days=45)
    rows = [issue(f"FINE-{n}", ("passport", f"FINE{n:07d}"), "1000000.00") for n in range(60)]
    rows.append(issue("AT-LIMIT", ("passport", "ATLIMIT0001"), "50000000.00"))
    rows.append(issue("LONG-AGO", ("passport", "LONGAGO0001"), "60000000.00", day=old))
    life = issue("LIFE", ("passport", "OFLIFE00001"), "60000000.00")
    rows.append((*life[:3], "term_life", *life[4:]))
    gone = issue("GONE", ("passport", "NOTHERE0001"), "1.00")
    return [*rows, gone, (*gone[:6], "cancel")]


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveAlliance]:
    root = tmp_path_factory.mktemp("recheck")
    (root / "rules.toml").write_text(RULES, encoding="utf-8")
    elsewhere = [issue("BIG", ("passport", "OTHERS00001"), "90000000.00")]
    elsewhere.append(issue("NOT-HERE", ("passport", "NOTHERE0001"), "90000000.00"))
    for member in range(1, MEMBERS + 1):
        write_policies(root / "policies", member, {1: own_policies(), 2: elsewhere}.get(member, []))
    alliance = LiveAlliance(
        MEMBERS, root / "policies", root / "state", "--capture", "--shards", "2", "--rules", str(root / "rules.toml")
    )
    alliance.start()
    yield alliance
    if pids_of(alliance.state):
        alliance.stop()


def apply_everywhere(alliance: LiveAlliance) -> list[tuple[str, str | None]]:
    """Have every member ask before it issues, and none issue before all have asked; return what they were told."""
    members = range(1, MEMBERS + 1)
    with ThreadPoolExecutor(3) as pool:
        verdicts = list(pool.map(lambda member: alliance.verdict(member, SPREAD, EACH), members))
    for member in members:
        policy = {"policy_number": policy_of(member), "product": "accident", "insured_amount": EACH}
        policy |= {"issued_on": china_today().isoformat()}
        subject = {"document_type": SPREAD[0], "document_number": SPREAD[1]}
        assert alliance.request(member, "POST", "/v1/policies", policy | {"subject": subject}).status == 201
    wait_until(lambda: all(alliance.is_delivered(member) for member in members))
    wait_for_ticks()
    return verdicts


def recheck(alliance: LiveAlliance, member: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return alliance.agent(member, "recheck", "--rule", "accident-30d", *arguments)


def spent(alliance: LiveAlliance) -> dict[int, int]:
    """Return how many answers custodians have charged by occasion."""
    found: dict[int, int] = {}
    for member in range(1, MEMBERS + 1):
        with alliance.database(member) as connection:
            for occasion, answers in connection.execute("SELECT occasion, sum(answers) FROM budget GROUP BY occasion"):
                found[occasion] = found.get(occasion, 0) + int(answers)
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))


def test_applications_at_every_insurer_on_one_day_read_within_and_the_recheck_lists_the_person_and_nobody_else(
    alliance: LiveAlliance,
) -> None:
    before = recheck(alliance, 1)
    assert before.returncode == 0, before.stderr
    path = alliance.member_state(1) / f"recheck-{china_today().isoformat()}.csv"
    assert rows_of(path) == []
    assert apply_everywhere(alliance) == [("within", None)] * MEMBERS

    done = recheck(alliance, 1, "--force")
    assert done.returncode == 3, done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    (row,) = rows_of(path)
    assert row == {
        "document_type": "passport",
        "document_number": QUOTED,
        "rule": "'accident-30d",
        "rule_version": "1",
        "verdict": "exceeds",
        "reason": "",
        "policy_number": f"'{policy_of(1)}",
        "product": "accident",
        "issued_on": f"'{china_today().isoformat()}",
        "insured_amount": EACH,
    }
    assert done.stdout.splitlines() == [
        f"62 persons as of {china_today().isoformat()}",
        "accident-30d: 1 exceed, 61 within, 0 indeterminate",
        done.stdout.splitlines()[2],
    ]
    assert re.fullmatch(rf"completeness: \d of {MEMBERS} members current at the least", done.stdout.splitlines()[2])


def test_every_member_of_the_person_finds_it_and_a_member_that_insures_others_alone_does_not(
    alliance: LiveAlliance, tmp_path: Path
) -> None:
    second = recheck(alliance, 2, "--json", "--out", str(tmp_path / "two.json"))
    assert second.returncode == 3, second.stderr
    found = json.loads((tmp_path / "two.json").read_text("utf-8"))["persons"]
    assert sorted(person["document_number"] for person in found) == ["NOTHERE0001", "OTHERS00001", SPREAD[1]]
    summary: dict[str, Any] = json.loads(second.stdout)
    assert summary["rules"] == {"accident-30d": {"version": 1, "exceeds": 3, "within": 0, "indeterminate": {}}}
    assert (summary["persons"], summary["deposits_unmade"]) == (3, 0)


def test_rules_that_allow_none_are_left_out_and_named_they_are_refused(alliance: LiveAlliance, tmp_path: Path) -> None:
    rules = {rule["id"]: rule["recheck_budget"] for rule in alliance.request(1, "GET", "/v1/rules").body["rules"]}
    assert rules == {"accident-30d": 60, "underwriting-only": 0, "once": 1}
    for name, told in (("underwriting-only", "no budget for rechecks"), ("no-such-rule", "no rule no-such-rule")):
        refused = alliance.agent(1, "recheck", "--rule", name, "--out", str(tmp_path / "list"))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert told in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_is_there_is_kept_and_nobody_is_asked(alliance: LiveAlliance) -> None:
    path = alliance.member_state(1) / f"recheck-{china_today().isoformat()}.csv"
    path.touch(0o600)
    kept, charged = path.read_bytes(), spent(alliance)
    again = recheck(alliance, 1)
    assert (again.returncode, again.stdout) == (2, "")
    assert "--force" in again.stderr
    assert (path.read_bytes(), spent(alliance)) == (kept, charged)


def test_one_recheck_of_an_agent_runs_at_a_time(alliance: LiveAlliance, tmp_path: Path) -> None:
    with alliance.database(1) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (Lock.RECHECK,))
        second = recheck(alliance, 1, "--out", str(tmp_path / "list.csv"))
    assert (second.returncode, second.stdout) == (2, "")
    assert "another recheck" in second.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_recheck_that_is_stopped_leaves_no_list(alliance: LiveAlliance, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "insurer_agent.cli", "recheck", "--state", str(alliance.member_state(1))]
    with alliance.database(1) as connection:
        connection.execute("LOCK TABLE recheck_lane")  # it waits here, with its list begun
        process = subprocess.Popen([*command, "--out", str(tmp_path / "list.csv")], stderr=subprocess.DEVNULL)
        wait_until((tmp_path / "list.csv.partial").exists)
        process.terminate()
        connection.rollback()
    assert process.wait(30) == 1
    assert list(tmp_path.iterdir()) == []


def test_underwriters_are_charged_to_their_own_budget(alliance: LiveAlliance, tmp_path: Path) -> None:
    before = spent(alliance)
    assert recheck(alliance, 3, "--out", str(tmp_path / "list.csv")).returncode == 3
    after = spent(alliance)
    assert after[1] == before[1]
    assert after[2] >= before[2] + 4


def test_all_rules_that_allow_it_are_asked_under_unless_some_are_named(alliance: LiveAlliance, tmp_path: Path) -> None:
    done = alliance.agent(4, "recheck", "--json", "--out", str(tmp_path / "list.json"))
    assert (done.returncode, set(json.loads(done.stdout)["rules"])) == (3, {"accident-30d", "once"})
    found = json.loads((tmp_path / "list.json").read_text("utf-8"))["persons"]
    assert {(person["document_number"], person["rule"]) for person in found} == {
        (SPREAD[1], "accident-30d"),
        (SPREAD[1], "once"),
    }


def test_whose_budget_is_spent_is_indeterminate_and_the_status_says_so(alliance: LiveAlliance, tmp_path: Path) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    assert alliance.agent(3, "recheck", "--rule", "once", "--out", str(first)).returncode == 3
    done = alliance.agent(3, "recheck", "--rule", "once", "--out", str(second))
    assert done.returncode == 4, done.stderr
    (row,) = rows_of(second)
    assert (row["verdict"], row["reason"], row["document_number"]) == ("indeterminate", "budget-exhausted", QUOTED)
    assert "once: 0 exceed, 0 within, 1 indeterminate (1 budget-exhausted)" in done.stdout
    assert alliance.verdict(3, SPREAD, "0.00") == ("exceeds", None), "underwriters have a budget of their own"


def test_no_identity_amount_or_policy_number_stands_anywhere_but_in_the_list(alliance: LiveAlliance) -> None:
    told = recheck(alliance, 1, "--force")
    assert told.returncode == 3, told.stderr
    assert not {SPREAD[1], policy_of(1), EACH} & set(re.split(r"[\s,;:()']", told.stdout + told.stderr))
    lists = sorted(alliance.state.rglob("recheck-*"))
    assert [file.suffix for file in lists] == [".csv"]
    assert SPREAD[1].encode() in lists[0].read_bytes()
    lists[0].unlink()
    alliance.stop()  # the last test, so that all is on the disk
    forms = spellings_of_text(SPREAD[1]) | spellings_of_text(policy_of(1))
    forms |= spellings_of_amount(EACH_FEN)
    assert clear_text(alliance, forms) == set()
