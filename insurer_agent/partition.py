"""One part of the policies in many files, for an import that several machines share.

A hash of its number says which part a policy belongs to, whatever files its rows are in. Who imports a part goes
through all files, in the order given, and applies the rows of its own policies alone: so all rows of a policy are
applied in their order, by whoever has its part, and what comes of each is the same as on one machine. A part that is
cut off at any point is finished by importing it again, elsewhere too, and even beside a straggler: what was applied
is known by its meaning. Reading is repeated by every part; it takes a small share of the time that applying takes.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, file_digest
from pathlib import Path

from insurer_agent.agent import Agent
from insurer_agent.config import Settings
from insurer_agent.importer import Import, Outcome
from insurer_agent.intake.policy import PolicyRow, RejectedRow
from insurer_agent.intake.profile import Profile
from insurer_agent.store.register import Applied
from transport.problems import Problem, fault
from transport.settings import SettingsError

MAX_TOLD = 10_000
"""Rejected rows of one file and part that are told one by one; all are counted."""


class PartError(Exception):
    """A part could not be imported to its end; its text says why and names no person. Importing it again may help."""


@dataclass(frozen=True)
class Part:
    """Part `number`, from 0, of `count`."""

    number: int
    count: int

    def has(self, row: PolicyRow | RejectedRow) -> bool:
        """Say whether a row is of this part: by its policy's number, else by its place in the file."""
        if row.policy_number is None:
            return row.row % self.count == self.number
        digest = blake2b(row.policy_number.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number


@dataclass(frozen=True)
class NamedFile:
    """A file that all machines must have alike, under the same path; `digest` is its SHA-256."""

    path: Path
    digest: bytes

    @classmethod
    def of(cls, path: Path) -> "NamedFile":
        """Read a file for its digest; raise OSError."""
        with path.open("rb") as file:
            return cls(path, file_digest(file, "sha256").digest())


@dataclass
class FileResult:
    """What came of one file: counts by outcome, rejected rows as (row, code, reason), why it was not read on."""

    counts: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[int, str, str]] = field(default_factory=list)
    rejection: str | None = None

    def tell(self, row: PolicyRow | RejectedRow, outcome: Outcome) -> None:
        """Note what came of a row."""
        if not isinstance(outcome, Applied) and len(self.rejected) < MAX_TOLD:
            self.rejected.append((row.row, outcome.code, outcome.reason))

    def add(self, other: "FileResult") -> None:
        """Add what came of the same file's rows of another part."""
        # All parts find the same fault of a file: it is one file.
        whole = max(self.counts["rejected files"], other.counts["rejected files"])
        self.counts = self.counts + other.counts
        self.counts["rejected files"] = whole
        self.counts = +self.counts
        self.rejected = sorted(self.rejected + other.rejected)
        self.rejection = self.rejection or other.rejection


def import_part(state: Path, files: Sequence[NamedFile], part: Part, profile: Profile) -> list[FileResult]:
    """Import one part of the files into the register of the agent in `state`; return what came of each file.

    The results name nothing of a policy. Raises PartError.
    """
    try:
        agent = _open(state, files)
        try:
            return _import(agent, files, part, profile)
        finally:
            agent.database.close()
    except Problem as problem:
        raise PartError(problem.detail) from None
    except SettingsError as error:
        raise PartError(str(error)) from None
    except OSError as error:
        raise PartError(f"{error.filename or 'a file'}: {error.strerror or 'cannot be read'}") from None
    except Exception as error:  # noqa: BLE001 - its text may hold values, and goes to the engine's logs
        raise PartError(fault(error)) from None


def _open(state: Path, files: Sequence[NamedFile]) -> Agent:
    if Settings.load(state).database is None:
        raise SettingsError(
            "the setting `database` must name the agent's PostgreSQL: an embedded one is of one machine"
        )
    for file in files:
        if NamedFile.of(file.path) != file:
            raise SettingsError(f"{file.path} is not the same file on all machines")
    return Agent.open(state, connections=2)


def _import(agent: Agent, files: Sequence[NamedFile], part: Part, profile: Profile) -> list[FileResult]:
    terms = agent.party.manifest.terms
    results = []
    with Path(os.devnull).open("w", encoding="utf-8") as nobody:
        run = Import(
            products=frozenset(terms.products),
            maximum=terms.deposit_cap,
            profile=profile,
            report=nobody,
            only=part.has,
        )
        for file in files:
            result = FileResult()
            result.counts, result.rejection = run.file(file.path, agent.register, tell=result.tell)
            results.append(result)
    return results
