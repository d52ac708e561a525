"""A threshold changes in a live alliance, while checks run and deposits are on their way; nobody is restarted."""

import itertools
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

import pytest
from live import LiveAlliance, issue, wait_until, write_policies

from protocol.encoding import encode
from protocol.manifest import Manifest, Rule, Terms, china_day, hash_of
from service.admin.manifests import add_signature, load_admin_key, unsigned
from service.published import Published
from transport.settings import load_pins

pytestmark = [pytest.mark.alliance, pytest.mark.long]

MEMBERS = 6
REQUESTERS = (1, 3, 5)
MILLION = 100_000_000
"""In fen."""
PEOPLE = [("passport", f"E1{number:07d}") for number in range(60)]
"""For each 20 million yuan are deposited, by two insurers."""
DEPOSITED = 20
LATE = ("passport", "E20000001")
LIMITS = {1: 50, 2: 40}
"""In millions of yuan, by the rule's version."""
PROPOSALS = (10, 20, 25, 30, 35)
"""In millions of yuan: 10 and 20 are within both, with 20 exactly at the second; 35 exceeds both."""
FEW = 5
_log = logging.getLogger(__name__)


@dataclass
class Load:
    """Requesters that ask one check after the other, at random, until they are told to stop."""

    alliance: LiveAlliance
    answers: list[tuple[int, dict[str, object], int]] = field(default_factory=list)
    """Requester, answer, and the millions proposed."""
    faults: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, requester: int) -> None:
        chance = random.Random(requester)  # noqa: S311  repeatable, not secret
        try:
            while not self.stop.wait(0.15):
                proposed = chance.choice(PROPOSALS)
                answer = self.alliance.check(requester, chance.choice(PEOPLE), f"{proposed * 1_000_000}.00")
                self.answers.append((requester, answer, proposed))
        except BaseException as fault:  # noqa: BLE001  told where it is waited for
            self.faults.append(fault)

    def versions(self) -> dict[int, Counter[object]]:
        """Return how many answers each requester had under which version."""
        found: dict[int, Counter[object]] = {requester: Counter() for requester in REQUESTERS}
        for requester, answer, _ in tuple(self.answers):
            found[requester][answer["rule_version"]] += 1
        return found

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self.ask, args=(requester,)) for requester in REQUESTERS]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()


def published(alliance: LiveAlliance) -> Published:
    """Return the service's folder, as one of its own processes has it."""
    state = alliance.state / "service"
    return Published(state / "manifests", load_pins(state / "admins.json"), state / "manifest.bin")


def publish(alliance: LiveAlliance, *more: Rule) -> Manifest:
    folder = published(alliance)
    before: Terms = folder.newest()[1].terms
    now = int(time.time())
    following = {"serial": before.serial + 1, "previous": hash_of(before), "issued_at": now}
    terms = replace(before, rules=(*before.rules, *more), **following)
    key = load_admin_key(alliance.state / "admin" / "admin-1.key")
    return folder.publish(encode(add_signature(unsigned(terms), "admin-1", key)), time.time())


def serial_at(alliance: LiveAlliance, number: int) -> int:
    manifest = alliance.request(number, "GET", "/v1/status").body["manifest"]
    assert manifest["state"] == "good"
    serial: int = manifest["serial"]
    return serial


@pytest.fixture(scope="module")
def alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveAlliance]:
    root = tmp_path_factory.mktemp("manifests")
    for member in range(1, MEMBERS + 1):
        rows = [
            issue(f"P-{number}-{member}", subject, f"{DEPOSITED // 2 * 1_000_000}.00")
            for number, subject in enumerate(PEOPLE)
            if number % MEMBERS in (member - 1, member % MEMBERS)
        ]
        write_policies(root / "policies", member, rows)
    live = LiveAlliance(MEMBERS, root / "policies", root / "state", "--shards", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKUP_SERVICE_WORKERS", "2")
        live.start()
    yield live
    assert live.stop() == 0


def test_while_a_threshold_changes_every_verdict_is_right_for_the_version_that_its_answer_names(
    alliance: LiveAlliance,
) -> None:
    (first,) = published(alliance).newest()[1].terms.rules
    assert first.limit == LIMITS[1] * MILLION
    with Load(alliance) as load:
        wait_until(lambda: load.faults or all(had[1] > FEW for had in load.versions().values()))
        new = publish(alliance, replace(first, version=2, limit=LIMITS[2] * MILLION, valid_from=china_day(time.time())))
        began = time.monotonic()
        wait_until(lambda: load.faults or all(had[2] > FEW for had in load.versions().values()))
        took = time.monotonic() - began
    assert load.faults == []
    assert took < 60, "agents take a manifest up within a minute"
    wait_until(lambda: all(serial_at(alliance, member) == new.terms.serial for member in range(1, MEMBERS + 1)))
    verdicts = Counter[object]()
    for _, answer, proposed in load.answers:
        version, verdict = answer["rule_version"], answer["verdict"]
        assert isinstance(version, int)
        right = "exceeds" if DEPOSITED + proposed > LIMITS[version] else "within"
        assert verdict in (right, "indeterminate"), answer
        verdicts[verdict if verdict != "indeterminate" else answer["reason"]] += 1
    _log.info("%s after %.0f s", verdicts, took)
    assert sum(verdicts.values()) - verdicts["within"] - verdicts["exceeds"] <= FEW, verdicts
    for requester in REQUESTERS:  # each acts under one manifest at a time, and never goes back
        versions = [answer["rule_version"] for asked_by, answer, _ in load.answers if asked_by == requester]
        assert [version for version, _ in itertools.groupby(versions)] == [1, 2]


def test_a_deposit_made_under_the_manifest_before_comes_to_all_holders_after_a_change(alliance: LiveAlliance) -> None:
    down, depositor = 6, 2
    alliance.kill(down)
    policy = {
        "policy_number": "LATE-1",
        "subject": {"document_type": LATE[0], "document_number": LATE[1]},
        "product": "accident",
        "insured_amount": "30000000.00",
        "issued_on": time.strftime("%Y-%m-%d", time.gmtime(time.time() + 8 * 3600)),
    }

    def status() -> dict[str, int]:
        body: dict[str, int] = alliance.request(depositor, "GET", "/v1/status").body
        return body

    def lacking() -> int:
        """Return how many deposits count, and lack the holder that is down."""
        now = status()
        return 0 if now["deposits_unmade"] else now["deposits_incomplete"]

    for number in itertools.count():  # the one that is down may be the slot that a deposit excludes
        answer = alliance.request(depositor, "POST", "/v1/policies", policy | {"policy_number": f"LATE-{number}"})
        assert answer.status in (200, 201), answer
        wait_until(lambda: status()["deposits_unmade"] == 0)
        if lacking():
            break
        assert number < 8  # five of six deposits go to each holder
    new = publish(alliance)
    wait_until(lambda: serial_at(alliance, depositor) == new.terms.serial)
    assert lacking()
    alliance.restart(down)
    wait_until(lambda: alliance.is_delivered(depositor), 120)
    assert serial_at(alliance, down) == new.terms.serial
