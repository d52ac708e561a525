"""One alliance for all that fuzz its endpoints: to start one takes longer than most of them."""

from collections.abc import Iterator

import pytest
from fuzzing import MEMBERS, PERSON
from live import LiveAlliance, issue, wait_until, write_policies


@pytest.fixture(scope="session")
def fuzzed_alliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveAlliance]:
    """An alliance that `begun` starts, and who needs it last ends, so that it takes no time from other tests."""
    root = tmp_path_factory.mktemp("fuzz")
    for member in range(1, MEMBERS + 1):
        write_policies(root / "policies", member, [issue("A-1", PERSON, "5000000.00")])
    alliance = LiveAlliance(MEMBERS, root / "policies", root / "state", "--plain-http", "--capture")
    yield alliance
    if alliance.runs:
        alliance.stop()


@pytest.fixture(scope="module")
def begun(fuzzed_alliance: LiveAlliance) -> LiveAlliance:
    """The alliance, which runs and has delivered its deposits."""
    if not fuzzed_alliance.runs:
        fuzzed_alliance.start()
    wait_until(lambda: all(fuzzed_alliance.is_delivered(member) for member in range(1, MEMBERS + 1)))
    return fuzzed_alliance
