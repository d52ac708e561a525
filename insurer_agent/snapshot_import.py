"""A snapshot of all policies in force into the register: differences become issues, amendments and cancellations."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TextIO

from insurer_agent.agent import Agent
from insurer_agent.importer import ROWS_A_TRANSACTION, Import, Opens
from insurer_agent.intake.errors import FileRejected
from insurer_agent.intake.policy import Event, PolicyRow, RejectedRow
from insurer_agent.intake.policy_file import DEFAULT, PolicyFile
from insurer_agent.intake.profile import Profile
from insurer_agent.store.locks import Lock
from insurer_agent.store.register import PolicyEvent
from insurer_agent.store.snapshots import Snapshot
from transport.problems import Problem

MAX_CANCELLED_PERCENT = 20


def import_snapshot(
    agent: Agent,
    file: Path,
    snapshot: Snapshot,
    report: TextIO = sys.stderr,
    *,
    profile: Profile = DEFAULT,
    rejects: Path | None = None,
    opens: Opens = PolicyFile.open,
    most_percent: int | None = MAX_CANCELLED_PERCENT,
) -> Counter[str]:
    """Import a snapshot, reporting as `Import.file` does; return the counts by outcome, `cancelled` among them.

    Nothing is changed by a snapshot that would cancel more than `most_percent` of its policies (None: any number), or
    that cannot be read to its end: that is a rejected file. Nothing is cancelled where a rejected row does not tell a
    policy number that is known, since that row's policy would look missing. Raises `Problem`, `snapshot-under-way`.
    """
    terms = agent.party.manifest.terms
    products = frozenset(terms.products)
    # Every row says what is in force, whatever a column may call it.
    columns = {column: name for column, name in profile.columns.items() if column != "event"}
    profile = replace(profile, columns=columns, constants={**profile.constants, "event": Event.ISSUE.value})
    unknown = 0

    def seen_first(path: Path, layout: Profile) -> PolicyFile:
        nonlocal unknown
        snapshot.begin()
        unknown = _see(snapshot, opens(path, layout).policies(products=products, maximum=terms.deposit_cap))
        change = snapshot.change()
        if most_percent is not None and not unknown and change.cancels_more_than(most_percent):
            counted = f"{change.missing} of {change.had} policies are missing, more than {most_percent} percent"
            raise FileRejected("snapshot-incomplete", f"{counted}; see --allow-cancellations")
        return opens(path, layout)

    with agent.database.exclusively(Lock.SNAPSHOT) as held:  # two at a time would each miss what the other has
        if not held:
            raise Problem(409, "snapshot-under-way", "another snapshot is being imported")
        run = Import(products=products, maximum=terms.deposit_cap, profile=profile, report=report, opens=seen_first)
        counts, rejection = run.file(file, snapshot, rejects=rejects)
        if rejection is None and unknown and snapshot.change().missing:
            report.write(
                f"{file.name}: nothing is cancelled: {unknown} rejected rows do not tell a known policy number\n"
            )
        elif rejection is None:
            more = True
            while more:
                more, cancelled = snapshot.cancel_missing()
                counts["cancelled"] += cancelled
            report.write(f"{file.name}: {counts['cancelled']} cancelled\n")
    return counts


def _see(snapshot: Snapshot, rows: Iterator[PolicyRow | RejectedRow]) -> int:
    """Have the snapshot seen to its end; return how many rows do not tell which policy they are of."""
    unknown = 0
    while chunk := list(islice(rows, ROWS_A_TRANSACTION)):
        rejected = [row for row in chunk if isinstance(row, RejectedRow)]
        numbers = [row.policy_number for row in rejected if row.policy_number is not None]
        unknown += len(rejected) - len(numbers)
        unknown += snapshot.see([PolicyEvent.of_row(row) for row in chunk if isinstance(row, PolicyRow)], numbers)
    return unknown
