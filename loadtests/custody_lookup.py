"""How long a custodian looks up a person's rows, in a database of 10,000 deposits and in one of 10,000,000.

    .venv/bin/python loadtests/custody_lookup.py [--rows 10000 10000000] [--calls 400] [--rounds 5] [--dsn DSN]

Both databases stand on one server, and every call to one is followed by the same to the other. Measured is
`PostgresCustody.view`, warm, for one person at a time, with a rule of 30 days and one of 366: persons with 1 to 5
policies over the last 400 days, kept by `prepare` and `commit`, and persons with none. The other rows are synthetic:
random bytes of the sizes that sealed values have. Prints one JSON object, also to build/custody_lookup.json; `ratio`
is that of the medians, the last database to the first. `core_ms` is the processor time of the server's process a call,
which a busy machine does not blur (on Linux, with a server of its own).
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.store.custody import PostgresCustody
from insurer_agent.store.database import Database
from insurer_agent.store.vault import Vault
from protocol.custody import CustodyRow, Proposed, Reading
from protocol.messages import ISSUE, Commit, RangeProof
from protocol.range_tags import range_tags
from protocol.secret import Secret
from protocol.token import IndexKey

TODAY = dt.datetime.now(tz=dt.UTC).date().toordinal()
DAYS = 400
WINDOWS = (30, 366)
PERSONS = 2000
"""Persons that are looked up; the first database of 10,000 rows has these and some 4,000 rows more."""
BATCH = 500
CHUNK = 200_000
TICK_SECONDS = 60
TICK = 1000
EPOCH = 1
LABELS = 4
"""Shares that a slot holds of a deposit, in a committee of six."""
COPIED = (
    ("depositor", b"insurer-01"),
    ("id_key", 32),
    ("shard", np.dtype(">i4")),
    ("epoch", np.dtype(">i4")),
    ("kind", np.dtype(">i2")),
    ("token", 32),
    ("product", b"accident"),
    ("day", np.dtype(">i4")),
    ("excluded", np.dtype(">i2")),
    ("chain_key", 32),
    ("shares", "shares"),
    ("proof", "proof"),
    ("envelope_hash", 32),
    ("not_before", np.dtype(">i8")),
    ("tick", np.dtype(">i8")),
)
"""The columns of custody_row: a constant text, as many random bytes, a number, or a sealed value of the size it has."""
POSTGRES_EPOCH = dt.date(2000, 1, 1).toordinal()


@dataclass(frozen=True)
class Store:
    """A seeded database, and the server's process that answers its one connection, if it is on this machine."""

    custody: PostgresCustody
    process: Path | None

    def core_seconds(self) -> float | None:
        """Return the processor time that the process has used."""
        if self.process is None:
            return None
        fields = self.process.read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Seed the databases, measure, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 10_000_000], help="one database each")
    parser.add_argument("--calls", type=int, default=400, help="a rule, kind of person and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dsn", help="a PostgreSQL where databases may be made; without, one of its own")
    parser.add_argument("--out", type=Path, default=Path("build/custody_lookup.json"))
    args = parser.parse_args()
    seed = secrets.token_bytes(32)
    with contextlib.ExitStack() as stack:
        server = args.dsn or stack.enter_context(_own_server())
        stores = []
        for rows in args.rows:
            dsn = stack.enter_context(_database(server))
            began = time.monotonic()
            stores.append(stack.enter_context(_seeded(dsn, rows, seed, own=args.dsn is None)))
            _say(f"{rows} rows in {time.monotonic() - began:.0f} s")
        measured = _measure(stores, args.calls, args.rounds)
    result = {"rows": args.rows, "rounds": args.rounds, "calls": args.calls, "lookups": measured}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0


@contextlib.contextmanager
def _own_server() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as root, EmbeddedPostgres(Path(root) / "postgres") as server:
        yield server.dsn()


@contextlib.contextmanager
def _database(server: str) -> Iterator[str]:
    name = f"custody_lookup_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield make_conninfo(server, dbname=name)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


# --- seed ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _seeded(dsn: str, rows: int, seed: bytes, *, own: bool) -> Iterator[Store]:
    database = Database(dsn, size=1)
    try:
        database.migrate()
        custody = PostgresCustody(database, Vault(Secret(seed), "custody", secrets.token_bytes), TICK_SECONDS, EPOCH)
        custody.forget_old_deposits(TODAY, time.time())
        chance = random.Random(seed)  # noqa: S311  the same persons and days in every database
        real = _keep(custody, chance)
        with psycopg.connect(dsn, autocommit=True) as connection:
            _fill(connection, rows - real)
            connection.execute("VACUUM (ANALYZE) custody_row")
            connection.execute("CHECKPOINT")
        found = database.run("pid", lambda connection: connection.execute("SELECT pg_backend_pid()").fetchone())
        assert found is not None
        process = Path(f"/proc/{found[0]}/stat")
        yield Store(custody, process if own and process.exists() else None)
    finally:
        database.close()


def _keep(custody: PostgresCustody, chance: random.Random) -> int:
    """Keep the policies of the persons that are looked up, as deposits are kept; return how many."""
    items = [
        _proposed(index, chance)
        for index in (_index(number) for number in range(PERSONS))
        for _ in range(chance.randint(1, 5))
    ]
    for at in range(0, len(items), BATCH):
        batch = items[at : at + BATCH]
        custody.prepare(batch, time.time())
        commits = [Commit(item.deposit_id, TICK, _proof(item)) for item in batch]
        kept = custody.commit(batch[0].depositor, 0, commits)
        if any(isinstance(state, Exception) for state in kept):
            raise RuntimeError("a deposit was not kept")
    return len(items)


def _index(number: int) -> IndexKey:
    return IndexKey(random.Random(number).randbytes(32))  # noqa: S311  a name, no secret


def _proposed(index: IndexKey, chance: random.Random) -> Proposed:
    amounts = tuple(chance.getrandbits(48) for _ in range(LABELS))
    row = CustodyRow("accident", TODAY - chance.randrange(DAYS), 0, amounts, (1, 0, 0, 0))
    deposit_id, range_key, envelope_hash = (chance.randbytes(size) for size in (16, 32, 32))
    return Proposed("insurer-01", deposit_id, ISSUE, None, 0, EPOCH, index, row, envelope_hash, 0, range_key)


def _proof(item: Proposed) -> RangeProof:
    header_hash = bytes(32)
    return RangeProof(header_hash, *(good for good, _ in range_tags(item.range_key, header_hash)))


def _fill(connection: psycopg.Connection[tuple[Any, ...]], rows: int) -> None:
    """Copy synthetic rows, of persons with 1 to 5 policies each; the indexes are made afterwards."""
    found = connection.execute("SELECT length(shares), length(proof) FROM custody_row LIMIT 1").fetchone()
    assert found is not None
    sizes = {"shares": found[0], "proof": found[1]}
    connection.execute("ALTER TABLE custody_row DROP CONSTRAINT custody_row_pkey")
    connection.execute("DROP INDEX custody_row_person")
    columns = sql.SQL(", ").join(sql.Identifier(name) for name, _ in COPIED)
    copy_in = sql.SQL("COPY custody_row ({}) FROM STDIN (FORMAT binary)").format(columns)
    numbers = np.random.default_rng()
    for at in range(0, rows, CHUNK):
        with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
            copy.write(b"PGCOPY\n\xff\r\n\x00" + bytes(8))
            copy.write(_synthetic(min(CHUNK, rows - at), sizes, numbers))
            copy.write(b"\xff\xff")
    connection.execute("SET maintenance_work_mem = '512MB'")
    connection.execute("ALTER TABLE custody_row ADD PRIMARY KEY (depositor, id_key, day)")
    connection.execute("CREATE INDEX custody_row_person ON custody_row (token, day)")


def _synthetic(rows: int, sizes: dict[str, int], numbers: np.random.Generator) -> bytes:
    """Return rows as COPY reads them: the number of fields, then each with its length before it."""
    fields: list[tuple[str, Any]] = [("fields", ">i2")]
    for name, what in COPIED:
        fields += [(f"{name} length", ">i4"), (name, _kind(what, sizes))]
    table = np.zeros(rows, dtype=fields)
    table["fields"] = len(COPIED)
    persons = numbers.integers(0, 256, (rows, 32), dtype=np.uint8)
    whose = np.repeat(np.arange(rows), numbers.integers(1, 6, rows))[:rows]
    numbers.shuffle(whose)
    for name, what in COPIED:
        table[f"{name} length"] = table.dtype[name].itemsize
        if isinstance(what, bytes):
            table[name] = what
        elif not isinstance(what, np.dtype):
            size = table.dtype[name].itemsize
            table[name] = numbers.integers(0, 256, (rows, size), dtype=np.uint8).view(f"V{size}")[:, 0]
    table["token"] = persons[whose].view("V32")[:, 0]
    table["epoch"], table["kind"], table["tick"] = EPOCH, ISSUE, TICK
    table["day"] = TODAY - numbers.integers(0, DAYS, rows) - POSTGRES_EPOCH
    return table.tobytes()


def _kind(what: bytes | int | str | np.dtype[Any], sizes: dict[str, int]) -> str | np.dtype[Any]:
    if isinstance(what, np.dtype):
        return what
    if isinstance(what, bytes):
        return f"S{len(what)}"
    return f"V{sizes[what] if isinstance(what, str) else what}"


# --- measure -------------------------------------------------------------------------------------------------------


def _measure(stores: list[Store], calls: int, rounds: int) -> list[dict[str, Any]]:
    found = []
    for window in WINDOWS:
        for present in (True, False):
            _round(stores, window, calls, present=present)  # warm
            used = [store.core_seconds() for store in stores]
            times = [_round(stores, window, calls, present=present) for _ in range(rounds)]
            cores = [
                None if before is None or after is None else round(1000 * (after - before) / calls / rounds, 3)
                for before, after in zip(used, [store.core_seconds() for store in stores], strict=True)
            ]
            each = [[one[place] for one in times] for place in range(len(stores))]
            medians, p95 = ([_milliseconds(of, share) for of in each] for share in (0.5, 0.95))
            found.append(
                {
                    "window_days": window,
                    "person": "present" if present else "absent",
                    "median_ms": medians,
                    "p95_ms": p95,
                    "core_ms": cores,
                    "ratio": round(medians[-1] / medians[0], 2),
                    "p95_ratio": round(p95[-1] / p95[0], 2),
                    "core_ratio": round(cores[-1] / cores[0], 2) if cores[0] and cores[-1] else None,
                    "ratio_by_round": [
                        round(statistics.median(one[-1]) / statistics.median(one[0]), 2) for one in times
                    ],
                }
            )
            _say(json.dumps(found[-1]))
    return found


def _round(stores: list[Store], window: int, calls: int, *, present: bool) -> list[list[float]]:
    """Return seconds a call, for each store."""
    times: list[list[float]] = [[] for _ in stores]
    for _ in range(calls):
        index = _index(secrets.randbelow(PERSONS)) if present else IndexKey(secrets.token_bytes(32))
        reading = Reading(0, EPOCH, TICK, ((index, TODAY - window + 1),))
        for store, had in zip(stores, times, strict=True):
            began = time.perf_counter()
            view = store.custody.view(reading)
            had.append(time.perf_counter() - began)
            if view.persons[0].rows and not present:
                raise RuntimeError("rows of a person who has none")
    return times


def _milliseconds(rounds: list[list[float]], share: float) -> float:
    """Return the median over rounds of a quantile, in ms."""
    of_rounds = [sorted(times)[int(share * (len(times) - 1))] for times in rounds]
    return round(1000 * statistics.median(of_rounds), 3)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
