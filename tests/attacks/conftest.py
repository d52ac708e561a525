"""One alliance for all that malicious members do live: to start one takes as long as most of that."""

from collections.abc import Iterator

import pytest
from live import LiveAlliance
from malicious_member import PEOPLE, alliance_of_eight

from protocol.identity import DocumentType, Identity


@pytest.fixture(scope="session")
def pool() -> list[Identity]:
    """Persons that no test has asked about or insured yet; who takes one, removes it."""
    return [Identity(DocumentType.PASSPORT, f"E10{n:06d}") for n in range(PEOPLE)]


@pytest.fixture(scope="session")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveAlliance]:
    """An alliance that who needs it starts, and who needs it last ends, so that it takes no time from other tests."""
    alliance = alliance_of_eight(tmp_path_factory.mktemp("eight"))
    yield alliance
    if alliance.runs:
        alliance.stop()
