"""Where the agent's PostgreSQL is: the one that the settings name, or an embedded one in the state directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from insurer_agent.config import Settings
from insurer_agent.embedded_postgres import EmbeddedPostgres, PostgresError
from transport.settings import SettingsError, write_private

_DATABASE = "insurer_agent"


def find_dsn(settings: Settings) -> str:
    """Return the connection string; raise `SettingsError` while the embedded server is not running."""
    if settings.database is not None:
        return settings.database
    try:
        return (settings.state / "postgres" / "agent-dsn").read_text(encoding="utf-8").strip()
    except OSError:
        raise SettingsError(
            "the embedded PostgreSQL is not running, and the setting `database` names no other"
        ) from None


@contextmanager
def database_server(settings: Settings, *, own: bool = False) -> Iterator[None]:
    """Have a PostgreSQL for the block: start the embedded one unless another is named or it is running already.

    With `own`, refuse (`SettingsError`) one that another command has started: it ends with that command.
    """
    file = settings.state / "postgres" / "agent-dsn"
    running = settings.database is None and _answers(file)
    if running and own:
        raise SettingsError("another command is using the embedded PostgreSQL; start again when it has ended")
    if running or settings.database is not None:
        yield
        return
    try:
        with EmbeddedPostgres(settings.state / "postgres") as server:
            server.create_database(_DATABASE)
            write_private(file, server.dsn(_DATABASE).encode())
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
    except PostgresError as error:
        raise SettingsError(str(error)) from None


def _answers(file: Path) -> bool:
    """Tell whether an embedded server answers; a killed one leaves its file behind."""
    try:
        with psycopg.connect(file.read_text(encoding="utf-8").strip(), connect_timeout=5):
            return True
    except (OSError, psycopg.OperationalError):
        return False
