"""Members fail and come back: verdicts are right or indeterminate, never wrong, and nothing is lost."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import LiveAlliance, issue, pids_of, wait_for_ticks, wait_until, write_policies

pytestmark = pytest.mark.alliance

MEMBERS = 7
PERSON = ("passport", "E10000001")
UNTOUCHED = ("passport", "E10000002")
AT_LIMIT, ABOVE = "15000000.00", "15000000.01"
"""Beside 7 x 5 million yuan deposited."""


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveAlliance]:
    root = tmp_path_factory.mktemp("failures")
    for member in range(1, MEMBERS + 1):
        write_policies(root / "policies", member, [issue("A-1", PERSON, "5000000.00")])
    alliance = LiveAlliance(MEMBERS, root / "policies", root / "state")
    alliance.start()
    yield alliance
    alliance.stop()


def settled(alliance: LiveAlliance, member: int, subject: tuple[str, str], proposed: str) -> tuple[str, str | None]:
    """Return a verdict, asked for again where a busy machine let a check time out: that is no wrong verdict."""
    for _ in range(5):
        verdict = alliance.verdict(member, subject, proposed)
        if verdict != ("indeterminate", "timeout"):
            break
    return verdict


def assert_right(alliance: LiveAlliance, members: list[int]) -> None:
    for member in members:
        assert settled(alliance, member, PERSON, AT_LIMIT) == ("within", None)
        assert settled(alliance, member, PERSON, ABOVE) == ("exceeds", None)


@pytest.mark.parametrize("victim", range(1, MEMBERS + 1))
def test_with_any_one_member_killed_every_other_members_checks_go_on(alliance: LiveAlliance, victim: int) -> None:
    alliance.kill(victim)
    try:
        assert_right(alliance, [member for member in range(1, MEMBERS + 1) if member != victim])
    finally:
        alliance.restart(victim)


def test_with_one_member_hanging_every_other_members_checks_go_on(alliance: LiveAlliance) -> None:
    processes = pids_of(alliance.member_state(3))
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert_right(alliance, [1, 2, 4, 5, 6, 7])
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def test_with_more_killed_checks_are_indeterminate_and_right_again_when_they_are_back(alliance: LiveAlliance) -> None:
    victims, others = [2, 3, 4], [1, 5, 6, 7]
    for victim in victims:
        alliance.kill(victim)
    try:
        for member in others:
            for proposed in (AT_LIMIT, ABOVE):
                assert alliance.verdict(member, PERSON, proposed) == ("indeterminate", "too-few-custodians")
    finally:
        for victim in victims:
            alliance.restart(victim)
    assert_right(alliance, list(range(1, MEMBERS + 1)))


def test_without_the_service_checks_are_indeterminate(alliance: LiveAlliance) -> None:
    processes = pids_of(alliance.state / "service")
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        answer = alliance.check(1, PERSON, ABOVE)
        assert (answer["verdict"], answer["exceeds_limit"], answer["reason"]) == ("indeterminate", None, "timeout")
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)
    wait_until(lambda: alliance.verdict(1, PERSON, ABOVE) == ("exceeds", None))


def test_a_deposit_counts_while_a_custodian_is_down_and_reaches_it_when_it_is_back(
    alliance: LiveAlliance, tmp_path: Path
) -> None:
    depositor, victim = 1, 7
    alliance.kill(victim)
    rows = [issue(f"B-{number}", ("passport", f"E2000000{number}"), "50000000.00") for number in range(6)]
    file = write_policies(tmp_path, depositor, rows)
    assert alliance.agent(depositor, "import", str(file)).returncode == 0
    wait_until(lambda: alliance.request(depositor, "GET", "/v1/status").body["deposits_unmade"] == 0)
    wait_for_ticks()
    for number in range(6):
        assert settled(alliance, 2, ("passport", f"E2000000{number}"), "0.01") == ("exceeds", None)
    alliance.restart(victim)

    wait_until(lambda: alliance.is_delivered(depositor), seconds=90)
    alliance.kill(6)  # now the one that came back is needed
    try:
        for number in range(6):
            assert settled(alliance, 2, ("passport", f"E2000000{number}"), "0.01") == ("exceeds", None)
            assert settled(alliance, 2, UNTOUCHED, "50000000.00") == ("within", None)
    finally:
        alliance.restart(6)
