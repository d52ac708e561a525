"""A query at the insurer's own database is read like a file, on a real PostgreSQL."""

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from formats import MAXIMUM, PRODUCTS, Rows, codes

from insurer_agent import sql_rows
from insurer_agent.intake.errors import FileRejected
from insurer_agent.intake.policy import PolicyRow
from insurer_agent.intake.profile import Profile
from insurer_agent.sql_rows import open_query

TABLE = """
CREATE TABLE contracts (no text, kind text, id text, line text, cover numeric(18,4), at timestamptz, was text,
    raw bytea)
"""
QUERY = """
SELECT no AS policy_number, kind AS "证件类型", id AS document_number, line AS product, cover AS insured_amount,
       at AS issued_on, was AS event, raw FROM contracts ORDER BY no;
"""
AT = dt.datetime(2026, 11, 2, 20, tzinfo=dt.UTC)  # of the next day in China
GOOD = ("身份证", "110101194903070014", "意外险", "5000000.5", AT, "承保", b"\xff")


@pytest.fixture
def filled(database: str) -> str:
    rows = [("A-1", *GOOD), ("A-2", *GOOD[:3], "-5", *GOOD[4:]), (None,) * 8, ("A-0", *GOOD)]
    with psycopg.connect(database) as connection:
        connection.execute(TABLE.encode())
        connection.cursor().executemany("INSERT INTO contracts VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", rows)
    return database


def query(tmp_path: Path, dsn: str, text: str = QUERY, profile: Profile | None = None) -> Rows:
    file = tmp_path / "query.sql"
    file.write_text(text, encoding="utf-8")
    return list(open_query(file, profile or Profile(), dsn=dsn).policies(products=PRODUCTS, maximum=MAXIMUM))


@pytest.mark.parametrize("size", [1, 2, 2000])
def test_a_query_is_read_like_a_file(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(sql_rows, "ROWS_A_FETCH", size)
    rows = query(tmp_path, filled)
    assert codes(rows) == {1: "read", 2: "read", 3: "amount-not-positive"}
    first = rows[0]
    assert isinstance(first, PolicyRow)
    assert (first.policy_number, first.amount) == ("A-0", 500_000_050)
    assert first.issued_on == dt.date(2026, 11, 3)


@pytest.mark.parametrize(
    ("column", "expression", "code"),
    [
        ("cover AS", "(0.1::float8 + 0.2::float8) AS", "number-lost-digits"),
        ("cover AS", "16777217::float4 AS", "number-lost-digits"),
        ("cover AS", "'NaN'::numeric AS", "number-out-of-range"),
        ("cover AS", "raw AS", "cell-type"),
        ("cover AS", "true AS", "amount-not-a-number"),
        ("cover AS", "5::bigint AS", "read"),
        ("at AS", "DATE '2026-11-03' AS", "read"),
        ("line AS", "repeat('x', 5000) AS", "cell-too-long"),
    ],
)
def test_values_of_every_type(filled: str, tmp_path: Path, column: str, expression: str, code: str) -> None:
    rows = query(tmp_path, filled, QUERY.replace(column, expression).replace("ORDER BY", "WHERE no = 'A-1' ORDER BY"))
    assert codes(rows) == {1: code}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SELECT 1 / 0 AS policy_number", "query-failed"),
        ("SELECT '110101194903070014'::integer", "query-failed"),
        ("DELETE FROM contracts RETURNING no", "query-failed"),
        ("SELECT pg_sleep(0); DROP TABLE contracts", "query-failed"),
        ("", "query-failed"),
        ("SELECT 1 AS one", "column-missing"),
    ],
)
def test_a_query_that_fails_is_told_without_what_it_quotes(filled: str, tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(FileRejected, match=told) as rejected:
        query(tmp_path, filled, text)
    assert "110101" not in str(rejected.value)
    assert len(query(tmp_path, filled)) == 3


def test_a_query_cannot_write(filled: str, tmp_path: Path) -> None:
    with psycopg.connect(filled) as connection:
        connection.execute(b"CREATE FUNCTION erase() RETURNS text LANGUAGE sql AS 'DELETE FROM contracts RETURNING no'")
    with pytest.raises(FileRejected, match="25006"):  # read_only_sql_transaction
        query(tmp_path, filled, QUERY.replace("no AS", "erase() AS"))
    assert len(query(tmp_path, filled)) == 3


def test_a_database_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileRejected, match="cannot be reached"):
        query(tmp_path, "host=/nonexistent dbname=x")


def test_the_command_takes_the_database_from_the_environment(filled: str, tmp_path: Path) -> None:
    (tmp_path / "query.sql").write_text(QUERY, encoding="utf-8")
    command = [sys.executable, "-m", "insurer_agent.cli", "import", "--dry-run", "--json", "--query-file", "query.sql"]
    root = {"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": os.environ["PATH"]}

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=root | environment, capture_output=True, text=True, check=False
        )

    ended = run(POLICY_DSN=filled)
    assert ended.returncode == 3
    assert json.loads(ended.stdout)["query.sql"]["net_by_policy"] == {"A-0": "5000000.50", "A-1": "5000000.50"}
    without = run()
    assert without.returncode == 2
    assert "POLICY_DSN" in without.stderr
