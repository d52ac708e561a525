"""The part of an agent that an import needs, for tests; as a program, an import that says how far it is.

python importing.py DSN FILE        a line on standard output after every transaction
"""

import io
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from world import IMPORT_NOW, make_world

from insurer_agent.importer import import_files
from insurer_agent.intake.errors import IntakeError
from insurer_agent.store.database import Database
from insurer_agent.store.outbox import Outbox
from insurer_agent.store.register import Applied, PolicyEvent, Register
from insurer_agent.store.vault import Vault
from protocol.party import Party
from protocol.secret import Secret

if TYPE_CHECKING:
    from insurer_agent.agent import Agent

WORLD = make_world()


def clock() -> float:
    return IMPORT_NOW


@dataclass(frozen=True)
class Insurer:
    """The part of an agent that an import needs, and what it was told."""

    party: Party
    database: Database
    register: Register
    outbox: Outbox
    report: io.StringIO = field(default_factory=io.StringIO)

    @classmethod
    def open(cls, dsn: str) -> "Insurer":
        database, party = Database(dsn, size=2), WORLD.party(1)
        database.migrate()
        vault = Vault(Secret(bytes(range(32))), "register", secrets.token_bytes)
        register = Register(database, vault, party, secrets.token_bytes, clock)
        return cls(party, database, register, Outbox(database, vault))

    def import_files(self, *files: Path, rejects: Path | None = None) -> Counter[str]:
        return import_files(cast("Agent", self), list(files), self.report, rejects=rejects)

    def told(self) -> list[str]:
        """Return the lines of the report since the last time."""
        lines = self.report.getvalue().splitlines()
        self.report.seek(0)
        self.report.truncate()
        return lines

    def clear(self) -> None:
        self.database.run(
            "clear", lambda at: at.execute("DELETE FROM policy; DELETE FROM policy_row; DELETE FROM deposit")
        )


class _TellingRegister(Register):
    def apply(self, events: Sequence[PolicyEvent]) -> list[Applied | IntakeError]:
        applied = super().apply(events)
        sys.stdout.write(f"{len(applied)}\n")
        sys.stdout.flush()
        return applied


def main(dsn: str, file: str) -> None:
    opened = Insurer.open(dsn)
    vault = Vault(Secret(bytes(range(32))), "register", secrets.token_bytes)
    telling = _TellingRegister(opened.database, vault, opened.party, secrets.token_bytes, clock)
    Insurer(opened.party, opened.database, telling, opened.outbox).import_files(Path(file))
    opened.database.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
