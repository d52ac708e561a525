"""A custodian that lags is left out of A for as long as it lacks a deposit, and no longer."""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from insiders import Insider, end, service_url
from live import LiveAlliance, issue, wait_for_ticks, wait_until, write_policies
from test_alliance_failures import settled

from insurer_agent.store.locks import Lock
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.progress import Place, SignedReport, sign_report
from protocol.watermark import Directory, sign_watermark
from service.custodians import Trouble
from transport.internal import CHECK, message_of

pytestmark = [pytest.mark.alliance, pytest.mark.long]

MEMBERS = 7
PERSON, LATE = ("passport", "E10000001"), ("passport", "E10000002")
"""For the one 7 x 5 million yuan are deposited; for the other 50 million, while a custodian is down."""
AT_LIMIT, ABOVE = "50000000.00", "50000000.01"
"""Of a person who has no policy."""


@dataclass(frozen=True)
class Scene:
    """An alliance of one shard, which every member but one keeps: a custodian, a depositor and those that ask."""

    alliance: LiveAlliance
    custodian: int
    depositor: int
    requesters: tuple[int, ...]
    slot: int
    strangers: Iterator[int] = field(default_factory=itertools.count)

    def asked(self) -> int:
        """Return how many checks the custodian was asked."""
        return sum(line["path"] == CHECK for line in self.alliance.captured(f"insurer-{self.custodian:02d}"))

    def disagreements(self) -> int:
        """Return how many attempts were voided by what custodians sent, by the service's log."""
        logs = (self.alliance.state / "logs" / "service.log", self.alliance.state.parent / "service-restarted.log")
        return sum(log.read_text(encoding="utf-8").count(" disagrees about: ") for log in logs if log.exists())

    def ask(self) -> None:
        """Ask six checks, each about another person, for the budget's sake; each verdict is right.

        Were all custodians well, this one would be left out of all six once in 15,000 times.
        """
        for requester in self.requesters:
            for proposed, verdict in ((AT_LIMIT, "within"), (ABOVE, "exceeds")):
                person = ("passport", f"E3{next(self.strangers):07d}")
                assert settled(self.alliance, requester, person, proposed) == (verdict, None)

    def is_asked(self) -> bool:
        """Tell whether the custodian is asked in any of six checks."""
        before = self.asked()
        self.ask()
        return self.asked() > before

    def report(self) -> SignedReport | None:
        """Return what the service has of the depositor."""
        file = self.alliance.state / "service" / "directory" / f"insurer-{self.depositor:02d}"
        try:
            return decode(SignedReport, file.read_bytes())
        except (OSError, ProtocolError):
            return None

    def named(self) -> set[int]:
        """Return the slots that the depositor reports as behind."""
        report = self.report()
        return set() if report is None else {place.slot for place in report.report.behind}

    def restart_the_service(self) -> None:
        """Have the service forget what it noticed; it comes back with three processes in place of one."""
        state = self.alliance.state / "service"
        end(state)
        with (self.alliance.state.parent / "service-restarted.log").open("ab") as log:
            command = [sys.executable, "-m", "service.cli", "serve", "--state", str(state)]
            many = os.environ | {"LOOKUP_SERVICE_WORKERS": "3"}
            self.alliance.adopt(subprocess.Popen(command, stdout=log, stderr=log, env=many))
        wait_until(lambda: self.alliance.ready_at(service_url(self.alliance)))

    @contextlib.contextmanager
    def repeats_held_back(self) -> Iterator[None]:
        """Have the depositor send nothing for the block, but report: deposits are the work of whoever holds a lock."""
        self.alliance.kill(self.depositor)
        with self.alliance.database(self.depositor) as connection:
            connection.autocommit = True
            connection.execute("SELECT pg_advisory_lock(%s)", (Lock.DEPOSITS,))
            self.alliance.restart(self.depositor)
            yield


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    root = tmp_path_factory.mktemp("lag")
    for member in range(1, MEMBERS + 1):
        write_policies(root / "policies", member, [issue("A-1", PERSON, "5000000.00")])
    alliance = LiveAlliance(MEMBERS, root / "policies", root / "state", "--plain-http", "--shards", "1", "--capture")
    alliance.start()
    try:
        with Insider(alliance, 1) as insider:
            slots = insider.manifest.committee(0).slots
        custodian, depositor, *others = (int(member[-2:]) for member in slots)
        yield Scene(alliance, custodian, depositor, tuple(others[:3]), slot=0)
    finally:
        alliance.stop()


def exchange(scene: Scene, number: int, behind: set[tuple[int, int]], now: float) -> Directory:
    """Report as a member, in its place."""
    with Insider(scene.alliance, number) as insider:
        report = sign_report(insider.party, sign_watermark(insider.party, int(now), now), behind)
        return message_of(Directory, insider.post("/v1/watermarks", encode(report)))


def test_a_custodian_that_lacks_a_deposit_is_left_out_of_a_until_it_has_caught_up(scene: Scene, tmp_path: Path) -> None:
    alliance = scene.alliance
    wait_until(scene.is_asked)
    assert scene.named() == set()

    alliance.kill(scene.custodian)
    file = write_policies(tmp_path, scene.depositor, [issue("B-1", LATE, "50000000.00")])
    assert alliance.agent(scene.depositor, "import", str(file)).returncode == 0
    wait_until(lambda: alliance.request(scene.depositor, "GET", "/v1/status").body["deposits_unmade"] == 0)
    with scene.repeats_held_back():
        missed = time.monotonic()
        alliance.restart(scene.custodian)
        wait_for_ticks()

        # Without reports, what the service noticed itself would now have been forgotten.
        wait_until(lambda: time.monotonic() > missed + max(trouble.value[1] for trouble in Trouble))
        assert scene.named() == {scene.slot}
        voided = scene.disagreements()
        assert not scene.is_asked()
        assert settled(alliance, scene.requesters[0], LATE, "0.01") == ("exceeds", None)
        assert settled(alliance, scene.requesters[0], PERSON, "15000000.00") == ("within", None)
        assert scene.disagreements() == voided

        # The twin: were it not reported, it would be asked, and an attempt be lost.
        exchange(scene, scene.depositor, set(), time.time() + 5)
        wait_until(scene.is_asked)
        assert scene.disagreements() > voided

        # The depositor's next report, and a service that remembers nothing else.
        wait_until(lambda: scene.named() == {scene.slot})
        scene.restart_the_service()
        voided = scene.disagreements()
        for _ in range(3):
            assert not scene.is_asked()
        assert scene.disagreements() == voided

    wait_until(lambda: alliance.is_delivered(scene.depositor))
    wait_until(scene.is_asked)
    assert scene.named() == set()
    assert scene.disagreements() == voided


def test_a_member_that_names_a_custodian_that_is_well_costs_preference_alone_and_nobody_is_told(scene: Scene) -> None:
    liar, asker, place = scene.requesters[0], scene.requesters[1], (0, scene.slot)
    wait_until(lambda: scene.alliance.is_delivered(scene.depositor) and scene.named() == set())
    wait_until(scene.is_asked)
    told = exchange(scene, liar, {place}, time.time() + 50)
    also = exchange(scene, asker, set(), time.time())
    assert [len(directory.watermarks) for directory in (told, also)] == [MEMBERS, MEMBERS]
    assert encode(Place(shard=place[0], slot=place[1])) not in encode(told) + encode(also)
    wait_until(lambda: not scene.is_asked())
    scene.alliance.kill(scene.requesters[2])  # now the one that is named is needed
    try:
        before = scene.asked()
        for _ in range(2):
            person = ("passport", f"E3{next(scene.strangers):07d}")
            assert settled(scene.alliance, asker, person, AT_LIMIT) == ("within", None)
        assert scene.asked() > before
    finally:
        scene.alliance.restart(scene.requesters[2])
