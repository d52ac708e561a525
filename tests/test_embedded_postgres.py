"""The private PostgreSQL: its life and its predecessors' deaths, who reaches it, and what it never writes."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from insurer_agent import embedded_postgres
from insurer_agent.embedded_postgres import EmbeddedPostgres, PostgresError

CANARY = "canary-4405241987"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="concerns running as root")
needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def pid_of(server: EmbeddedPostgres) -> int:
    assert server._process is not None
    return server._process.pid


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def one(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Yield a server of the test's own, not started yet, for tests that are hard on it."""
    server = EmbeddedPostgres(tmp_path / "postgres")
    yield server
    server.stop()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@contextlib.contextmanager
def child(code: str, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    command = [*prefix, sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def starting(directory: Path) -> str:
    """Return a program that starts a server, prints its port and waits to be killed."""
    return (
        "import sys; from pathlib import Path\n"
        "from insurer_agent.embedded_postgres import EmbeddedPostgres\n"
        f"server = EmbeddedPostgres(Path({str(directory)!r})); server.start()\n"
        "print(server._port, flush=True); sys.stdin.read()"
    )


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_settings_are_private_durable_and_silent(database: str) -> None:
    wanted = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
        "dynamic_shared_memory_type": "mmap",
        "server_encoding": "UTF8",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "autovacuum": "on",
        "data_checksums": "on",
        "huge_pages": "off",
        "max_connections": "400",
        "log_statement": "none",
        "log_min_messages": "log",
        "log_min_error_statement": "panic",
        "log_min_duration_statement": "-1",
        "log_parameter_max_length": "0",
        "log_parameter_max_length_on_error": "0",
        "log_error_verbosity": "terse",
        "logging_collector": "off",
    }
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(wanted)]
        ).fetchall()
        assert dict(rows) == wanted
        collation = connection.execute(
            "SELECT datcollate FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    assert collation == ("C",)


@linux_only
def test_it_listens_on_loopback_alone_and_has_no_unix_socket(postgres: EmbeddedPostgres) -> None:
    port = f"{postgres._port:04X}"
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()
        if line.split()[1].endswith(f":{port}") and line.split()[3] == "0A"
    ]
    assert listening == [f"0100007F:{port}"]
    assert f".s.PGSQL.{postgres._port}" not in Path("/proc/net/unix").read_text()


def test_every_way_in_asks_for_the_password(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.dsn()) as connection:
        methods = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
    assert methods == [("scram-sha-256",)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.dsn(), password="wrong")  # noqa: S106 - a wrong one is the point
    assert conninfo_to_dict(postgres.dsn())["require_auth"] == "scram-sha-256"


def test_what_it_keeps_is_for_its_user_alone(postgres: EmbeddedPostgres) -> None:
    directory = postgres._directory
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in directory.iterdir()}
    assert modes == {"data": 0o700, "password": 0o600, "log": 0o600}
    assert (directory / "password").stat().st_uid == os.geteuid()
    assert CANARY not in repr(postgres)


@linux_only
def test_the_child_is_postgres_itself_and_inherits_nothing(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGOPTIONS", "")
    server.start()
    process = Path("/proc", str(pid_of(server)))
    assert (process / "comm").read_text() == "postgres\n"
    environment = (process / "environ").read_bytes().decode().split("\0")
    names = {entry.partition("=")[0] for entry in environment if entry}
    assert {"HOME", "TMPDIR"} <= names <= {"HOME", "TMPDIR", "PATH", "LC_ALL", "PGSYSCONFDIR", "PGLOCALEDIR"}
    assert os.getsid(pid_of(server)) == pid_of(server)


@root_only
@needs_setpriv
def test_as_root_the_server_is_nobody_with_one_capability(postgres: EmbeddedPostgres) -> None:
    lines = Path("/proc", str(pid_of(postgres)), "status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].split() == []
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["CapEff"], 16) in {1 << 1, 1 << 2}  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert status["CapBnd"] == status["CapPrm"] == status["CapEff"]


@root_only
@needs_setpriv
def test_an_ordinary_user_needs_no_more_than_a_directory(tmp_path: Path) -> None:
    setpriv = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    # The interpreter may be below /root: for that alone, this ordinary user keeps a capability.
    pass_through = ("--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override")
    with child(starting(tmp_path / "postgres"), *setpriv, *pass_through) as process:
        assert accepts(int(read_line(process)))


def test_restarting_keeps_the_data(server: EmbeddedPostgres) -> None:
    server.start()
    server.create_database('odd "name"')
    server.create_database('odd "name"')  # the second time is no error
    with psycopg.connect(server.dsn('odd "name"')) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
    server.stop()
    assert not server.running
    server.stop()  # nor is this
    server.start()
    server.start()  # nor this
    assert one(server.dsn('odd "name"'), "SELECT value FROM kept") == 7


def test_committed_data_outlives_a_killed_server(server: EmbeddedPostgres) -> None:
    server.start()
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
    os.kill(pid_of(server), signal.SIGKILL)
    server._process.wait(10)  # type: ignore[union-attr]  # pid_of has looked
    assert not server.running
    assert (server._data / "postmaster.pid").exists()
    server.start()
    assert one(server.dsn(), "SELECT value FROM kept") == 7


def test_stopping_a_server_that_died_is_no_error(server: EmbeddedPostgres) -> None:
    server.start()
    os.kill(pid_of(server), signal.SIGKILL)
    server.stop()
    assert not server.running


def test_a_server_that_obeys_no_order_is_stopped_all_the_same(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_postgres, "_QUIT_SECONDS", 0.1)
    server.start()
    os.kill(pid_of(server), signal.SIGSTOP)
    server.stop(timeout=0.1)
    assert not server.running


@linux_only
@needs_setpriv
def test_a_killed_process_leaves_no_server_behind(tmp_path: Path) -> None:
    directory = tmp_path / "postgres"
    with child(starting(directory)) as process:
        port = int(read_line(process))
        assert accepts(port)
        process.kill()
        # Without waiting: a new start on the directory has to wait for the old server by itself.
        with EmbeddedPostgres(directory) as successor:
            assert one(successor.dsn(), "SELECT 1") == 1
        wait_until(lambda: not accepts(port))
    with child(starting(directory)) as process:
        port = int(read_line(process))
        process.kill()
        wait_until(lambda: not (directory / "data/postmaster.pid").exists())  # removed when shut down in order
        assert not accepts(port)


def test_a_second_server_on_the_directory_is_refused(server: EmbeddedPostgres) -> None:
    server.start()
    with pytest.raises(PostgresError, match=r'(?s)did not start in time.*"postmaster\.pid" already exists'):
        EmbeddedPostgres(server._directory).start(timeout=0.5)
    assert one(server.dsn(), "SELECT 1") == 1


def test_two_processes_do_not_set_up_one_directory(server: EmbeddedPostgres) -> None:
    server._directory.mkdir(mode=0o700)
    descriptor = os.open(server._directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(PostgresError, match="another process is setting up"):
            server.start()
    finally:
        os.close(descriptor)


def test_a_setup_cut_short_is_begun_again(server: EmbeddedPostgres) -> None:
    (server._directory / "data.new").mkdir(parents=True)
    server._directory.chmod(0o700)
    (server._directory / "data.new/PG_VERSION").write_text("18\n")
    (server._directory / "password").write_text("of the first attempt")
    server.start()
    assert one(server.dsn(), "SELECT 1") == 1


def test_setup_is_bounded_in_time_and_leaves_no_password_for_initdb(server: EmbeddedPostgres) -> None:
    with pytest.raises(PostgresError, match="initdb took too long"):
        server.start(timeout=0)
    assert not (server._directory / "initdb-password").exists()
    assert not server._data.exists()


def test_a_taken_port_is_named(tmp_path: Path, taken_port: int) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", port=taken_port)
    with pytest.raises(PostgresError, match=f"port {taken_port} of 127.0.0.1 is taken"):
        server.start()
    assert not server.running


def test_a_free_port_that_is_lost_is_replaced(
    server: EmbeddedPostgres, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([taken_port, embedded_postgres._free_port()])
    monkeypatch.setattr(embedded_postgres, "_free_port", lambda: next(ports))
    server.start()
    assert server._port != taken_port
    assert one(server.dsn(), "SELECT 1") == 1


def test_a_failed_start_shows_the_end_of_the_log(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    (server._data / "global/pg_control").unlink()
    with pytest.raises(PostgresError, match=r"(?s)stopped while starting.*--database.*pg_control"):
        server.start()


def test_a_missing_password_is_named(server: EmbeddedPostgres) -> None:
    with pytest.raises(PostgresError, match="not been started"):
        server.dsn()
    server.start()
    server.stop()
    (server._directory / "password").unlink()
    with pytest.raises(PostgresError, match="password is missing"):
        server.start()


def test_data_of_another_major_version_is_left_alone(server: EmbeddedPostgres) -> None:
    server._data.mkdir(parents=True)
    server._directory.chmod(0o700)
    (server._data / "PG_VERSION").write_text("99\n")
    with pytest.raises(PostgresError, match="found no PostgreSQL 99"):
        server.start()


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(PostgresError, match="writable by nobody else"):
        EmbeddedPostgres(tmp_path).start()
    assert list(tmp_path.iterdir()) == []


@root_only
def test_root_without_setpriv_is_told_what_to_do(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    server._directory.parent.parent.chmod(0o700)  # closed to nobody, as pytest and /root have it
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(PostgresError, match="run this as an ordinary user, or pass --database"):
        server.start()


def test_the_log_never_quotes_values(server: EmbeddedPostgres) -> None:
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE TABLE people (number text PRIMARY KEY)")
        connection.execute("INSERT INTO people VALUES (%s)", [CANARY])
        with pytest.raises(psycopg.errors.UniqueViolation, match=CANARY):
            connection.execute("INSERT INTO people VALUES (%s)", [CANARY])
        with pytest.raises(psycopg.errors.InvalidTextRepresentation, match=CANARY):
            connection.execute("SELECT CAST(%s::text AS integer)", [CANARY])
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute(f"SELECT '{CANARY}' FROM nowhere")  # noqa: S608 - a literal in the statement
        connection.execute(f"DO $$ BEGIN RAISE WARNING '{CANARY}'; END $$")
    # The server reports a crashed backend, with the statement that it ran as the DETAIL of the report.
    seen = b"SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND query LIKE %s"
    with (
        contextlib.closing(psycopg.connect(server.dsn(), autocommit=True)) as victim,
        contextlib.closing(psycopg.connect(server.dsn(), autocommit=True)) as watcher,
    ):
        pid = victim.info.backend_pid
        victim.pgconn.send_query(f"SELECT pg_sleep(60), '{CANARY}'".encode())
        wait_until(lambda: watcher.execute(seen, [pid, f"%{CANARY}%"]).fetchone() == (1,))
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: f"(PID {pid}) was terminated by signal 9" in server._log.read_text())
    wait_until(lambda: server._log.read_text().count("ready to accept connections") == 2)
    server.stop()
    assert CANARY not in server._log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_for_other_processes_runs_until_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    directory = tmp_path / "postgres"
    code = (
        "from pathlib import Path; from insurer_agent.embedded_postgres import run_until_stopped\n"
        f"run_until_stopped(Path({str(directory)!r}), 0, ['first', 'second'])"
    )
    with child(code) as process:
        assert read_line(process) == "ready"
        assert stat.S_IMODE((directory / "dsn").stat().st_mode) == 0o600
        dsn = (directory / "dsn").read_text()
        assert one(dsn, "SELECT count(*) FROM pg_database WHERE datname IN ('first', 'second')") == 2
        process.send_signal(number)
        assert process.wait(30) == 0
    assert not (directory / "dsn").exists()
    assert not (directory / "data/postmaster.pid").exists()


def test_a_server_that_dies_ends_the_process_that_serves_it(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from insurer_agent.embedded_postgres import PostgresError, run_until_stopped\n"
        "try:\n"
        f"    run_until_stopped(Path({str(tmp_path)!r}), 0, [])\n"
        "except PostgresError as error:\n"
        "    print(error, flush=True)"
    )
    with child(code) as process:
        assert read_line(process) == "ready"
        os.kill(int((tmp_path / "data/postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        assert "stopped by itself" in read_line(process)
        assert process.wait(30) == 0
