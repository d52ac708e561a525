"""What each step of a check takes, stores in PostgreSQL included: time alone, of the processor, and on the way.

    .venv/bin/python loadtests/check_steps.py [--checks 200]

All parties are in one process, as in `check_profile.py`, with a database of a real server for each. A step is taken
alone here; in an alliance on one machine the four custodians share its cores. On the way, from question to verdict, a
custodians' step therefore counts with what one of them waits, and with the processor time of as many as a core has:
`alone + core * (4 / cores - 1)`, core being one custodian's. Prints milliseconds.
"""

import argparse
import contextlib
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from book import RULES_FILE
from check_profile import ACCEPT, ADMIT, ASK, CONCLUDE, EVALUATE, GARBLE, MESSAGES, READ, VIEW, Checks, profile
from in_memory import Alliance
from processes import process_clock

from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.roles import Role
from insurer_agent.store.api_keys import ApiKeys
from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.database import Database, Rows
from insurer_agent.store.vault import Vault
from protocol.manifest import Manifest
from protocol.secret import Secret
from protocol.sharing import CHOSEN
from service.admin.rules import read_rules

API_KEY = "1 requester: find the API key"
STEPS = (API_KEY, ASK, EVALUATE, ACCEPT, ADMIT, VIEW, GARBLE, CONCLUDE, READ, MESSAGES)
"""In the order in which they are taken, but for the last, which is between all others."""


class Databases:
    """Databases of one server, a connection each, and the clock of this process with the server's for them."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._open: list[Database] = []
        self._backends: list[int] = []

    def new(self, name: str) -> Database:
        """Return a new database, migrated."""
        self._server.create_database(name)
        database = Database(self._server.dsn(name), size=1)
        self._open.append(database)
        database.migrate()
        self._backends.append(database.run("pid", _backend))
        return database

    def custody(self, name: str, manifest: Manifest) -> PostgresCustody:
        """Return a custody in a database of that name."""
        vault = Vault(Secret(secrets.token_bytes(32)), "custody", secrets.token_bytes)
        return PostgresCustody(self.new(name), vault, manifest.terms.tick_seconds, manifest.terms.epoch)

    def clock(self) -> float:
        """Return the processor time of this process and of its databases' connections, in seconds."""
        return time.process_time() + sum(map(process_clock, self._backends))

    def close(self) -> None:
        """Close all connections."""
        for database in self._open:
            database.close()


def _backend(connection: Rows) -> int:
    return connection.info.backend_pid


def check_steps(root: Path, count: int) -> dict[str, dict[str, float]]:
    """Return of each step the milliseconds that it takes alone (of one custodian, where four take it), those of the
    processor over all parties, and those on the way; medians of so many checks.
    """
    with EmbeddedPostgres(root / "steps") as server, _databases(server) as databases:
        checks = Checks(1, Alliance(read_rules(RULES_FILE), databases.custody))
        keys = ApiKeys(databases.new("keys"))
        key = keys.make("bench", secrets.token_bytes, roles=Role)
        found = {}
        for kind, clock in (("alone", time.perf_counter), ("core", databases.clock)):
            profile(checks, 10)
            found[kind] = profile(checks, count, clock)
            taken = []
            for _ in range(count):
                began = clock()
                keys.holder(key)
                taken.append(1000 * (clock() - began))
            found[kind][API_KEY] = statistics.median(taken)
    return {step: _step(step, found["alone"][step], found["core"][step]) for step in STEPS}


def _step(step: str, alone: float, core: float) -> dict[str, float]:
    shared = CHOSEN / (os.cpu_count() or 1)
    way = alone
    if "custodians" in step:
        alone, one = alone / CHOSEN, core / CHOSEN
        way = alone + one * max(0.0, shared - 1)
    return {"alone": round(alone, 3), "core": round(core, 3), "way": round(way, 3)}


@contextlib.contextmanager
def _databases(server: EmbeddedPostgres) -> Iterator[Databases]:
    databases = Databases(server)
    try:
        yield databases
    finally:
        databases.close()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(check_steps(Path(root), args.checks), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
