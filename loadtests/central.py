"""The baseline: a check as an insurer would write it without privacy, over a central table of everybody's policies.

Flask under gunicorn, with the worker class and threads of an agent, and a pool of psycopg connections to a PostgreSQL
that is started as an agent's, with synchronous_commit and fsync on. A million policies, indexed by person and day. It
checks an API key, validates the JSON by marshmallow, sums the window, compares with the limit, and commits a row of an
audit before it answers. `central_check` runs it for a block.
"""

import contextlib
import datetime as dt
import hashlib
import hmac
import os
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from book import LIMIT, RULE, WINDOW_DAYS, policies, today
from flask import Flask, Response, json, request
from marshmallow import RAISE, Schema, ValidationError, fields, validate
from processes import command, core_seconds, parent, tree
from psycopg_pool import ConnectionPool
from rest import Door

from insurer_agent.embedded_postgres import EmbeddedPostgres

ROWS = 1_000_000
THREADS = 16
DATABASE, API_KEY = "CENTRAL_DATABASE", "CENTRAL_API_KEY"
START_SECONDS = 60
_CHINA = dt.timezone(dt.timedelta(hours=8))

SCHEMA = """
CREATE TABLE policy (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    insurer text NOT NULL,
    document_type text NOT NULL,
    document_number text NOT NULL,
    product text NOT NULL,
    issued_on date NOT NULL,
    insured_amount bigint NOT NULL
);
CREATE TABLE audit (
    check_id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    client text NOT NULL,
    document_type text NOT NULL,
    document_number text NOT NULL,
    rule text NOT NULL,
    proposed_amount bigint NOT NULL,
    exceeds boolean NOT NULL
);
"""
FILL = """
INSERT INTO policy (insurer, document_type, document_number, product, issued_on, insured_amount)
SELECT 'insurer-' || lpad((1 + n %% 6)::text, 2, '0'), 'passport', 'F' || lpad((n * 2 / 5)::text, 8, '0'), 'accident',
       %s::date - (n * 7919 %% 400)::integer, 100 * (1000 + n %% 997)
FROM generate_series(1, %s::bigint) AS n
"""
SUM = """
SELECT coalesce(sum(insured_amount), 0)::bigint FROM policy
WHERE document_type = %s AND document_number = %s AND product = ANY(%s) AND issued_on >= %s
"""
AUDIT = """
INSERT INTO audit (check_id, client, document_type, document_number, rule, proposed_amount, exceeds)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
RULES = {RULE: (["accident"], WINDOW_DAYS, int(100 * LIMIT))}


class _SubjectSchema(Schema):
    document_type = fields.String(required=True, validate=validate.OneOf(["resident_id", "passport"]))
    document_number = fields.String(required=True, validate=validate.Length(1, 128))


class _CheckSchema(Schema):
    subject = fields.Nested(_SubjectSchema, required=True, unknown=RAISE)
    rule = fields.String(required=True, validate=validate.OneOf(list(RULES)))
    proposed_amount = fields.Decimal(required=True, places=2, validate=validate.Range(Decimal(0)))


def make_app() -> Flask:
    """Return the application, for gunicorn."""
    app, schema = Flask("central"), _CheckSchema(unknown=RAISE)
    pool = ConnectionPool(os.environ[DATABASE], min_size=1, max_size=THREADS // 2, open=True)
    pool.wait()
    app.extensions["pool"] = pool
    clients = {hashlib.sha256(os.environ[API_KEY].encode()).digest(): "bench"}

    def answer(body: dict[str, Any], status: int = 200) -> Response:
        return Response(json.dumps(body), status, content_type="application/json")

    @app.errorhandler(ValidationError)
    def on_invalid(error: ValidationError) -> Response:
        return answer({"errors": error.messages_dict}, 422)

    @app.get("/healthz")
    def healthz() -> Response:
        return answer({"status": "ok"})

    @app.post("/v1/checks")
    def check() -> Response:
        key = hashlib.sha256(request.headers.get("Authorization", "").removeprefix("Bearer ").encode()).digest()
        client = next((name for known, name in clients.items() if hmac.compare_digest(known, key)), None)
        if client is None:
            return answer({"code": "unauthorized"}, 401)
        asked = schema.load(request.get_json())
        person = (asked["subject"]["document_type"], asked["subject"]["document_number"])
        proposed = int(100 * asked["proposed_amount"])
        products, days, limit = RULES[asked["rule"]]
        now, check_id = dt.datetime.now(_CHINA), uuid.uuid4()
        first = now.date() - dt.timedelta(days=days - 1)
        with pool.connection() as connection:  # committed at its end
            row = connection.execute(SUM, (*person, products, first)).fetchone()
            assert row is not None
            exceeds = row[0] + proposed > limit
            connection.execute(AUDIT, (check_id, client, *person, asked["rule"], proposed, exceeds))
        verdict = "exceeds" if exceeds else "within"
        body = {"check_id": check_id.hex, "rule": asked["rule"], "verdict": verdict, "checked_at": now.isoformat()}
        return answer(body | {"window": {"from": first.isoformat(), "to": now.date().isoformat()}})

    return app


@dataclass(frozen=True)
class Central:
    """The baseline at work: where it is asked, and its processes."""

    door: Door
    pids: tuple[int, ...]

    def core_seconds(self) -> float:
        """Return the processor time that server and PostgreSQL have used, in seconds."""
        return core_seconds(pid for root in self.pids for pid in tree(root))


@contextlib.contextmanager
def central_check(root: Path, rows: int = ROWS) -> Iterator[Central]:
    """Run the baseline for the block, with the bench's policies and others up to so many; `root` is a directory."""
    with EmbeddedPostgres(root / "central") as postgres:
        database = postgres.dsn("postgres")
        fill(database, rows)
        data = str(root / "central" / "data")
        (postmaster,) = [pid for pid in tree(os.getpid()) if parent(pid) == os.getpid() and data in command(pid)]
        with _served(root, database) as (door, server):
            yield Central(door, (server, postmaster))


def fill(database: str, rows: int) -> None:
    """Make the tables and their rows."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(SCHEMA)
        book = list(policies(6))
        with connection.cursor() as cursor, cursor.copy(_copy_in()) as copy:
            for one in book:
                row = (f"insurer-{one.member + 1:02d}", "passport", one.document, "accident", today())
                copy.write_row((*row, int(100 * one.amount)))
        connection.execute(FILL, (today(), rows - len(book)))
        connection.execute("CREATE INDEX policy_person ON policy (document_type, document_number, issued_on)")
        connection.execute("VACUUM (ANALYZE) policy")
        connection.execute("CHECKPOINT")


def _copy_in() -> str:
    return "COPY policy (insurer, document_type, document_number, product, issued_on, insured_amount) FROM STDIN"


@contextlib.contextmanager
def _served(root: Path, database: str) -> Iterator[tuple[Door, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = secrets.token_hex(32)
    line = [sys.executable, "-m", "gunicorn", "central:make_app()", "--chdir", str(Path(__file__).parent)]
    line += ["--bind", f"127.0.0.1:{port}", "--worker-class", "gthread", "--workers", "1", "--threads", str(THREADS)]
    line += ["--keep-alive", "75", "--worker-tmp-dir", str(root), "--log-level", "error", "--no-control-socket"]
    with (root / "central.log").open("wb") as log:
        process = subprocess.Popen(line, stderr=log, env=os.environ | {DATABASE: database, API_KEY: key})
    try:
        door = Door(f"http://127.0.0.1:{port}", key)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(door):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the central check did not start; see {root / 'central.log'}")
            time.sleep(0.1)
        yield door, process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


def _answers(door: Door) -> bool:
    try:
        door.call("GET", "/healthz")
    except OSError:
        return False
    return True
