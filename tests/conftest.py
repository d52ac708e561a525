"""Fixtures that every test may use: one PostgreSQL and one Redis per session, one database per test."""

import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psycopg
import pytest
from embedded_redis import EmbeddedRedis
from psycopg import sql
from strategies import EVERYDAY

from insurer_agent.embedded_postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.hookimpl(tryfirst=True)  # before what is left out is gone
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say in an everyday run what it leaves out."""
    left = [item.path for item in items if item.get_closest_marker("long") or item.get_closest_marker("soak")]
    if EVERYDAY and left:
        config.get_terminal_writer().line(
            f"*** NOT RUN: {len(left)} long tests of {len(set(left))} files, and the greater part of the examples of"
            " properties and fuzz tests. Have all run: make test-all ***"
        )


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """Yield the DSN of an empty database, which is dropped afterwards whoever is still connected."""
    name = f"test_{secrets.token_hex(8)}"
    postgres.create_database(name)
    yield postgres.dsn(name)
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")  # no longer: while it is there, nothing else of this thread may use asyncio
def browser() -> Iterator["Browser"]:
    from consoles import chromium  # noqa: PLC0415  the driver is loaded where a browser is driven
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  as above

    with sync_playwright() as playwright, chromium(playwright) as started:
        yield started
