"""Fixtures that every package's tests share."""

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest
import trio
from servers import PostgresServer

from bloomd.postgres import Pool
from bloomd.postgres.migrate import migrate
from bloomd.runtime.database import Database
from bloomd.runtime.schema import MIGRATIONS

# A shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C: some press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One real server for the whole session. A test that stops or freezes it has to bring it back."""
    with PostgresServer() as server:
        yield server


# What the Node.js runtime always writes may be required in its database, which is adopted as it is. (The defaults are
# for rows that a test makes by hand.)
STRICT = """
ALTER TABLE leases ALTER last_heartbeat SET NOT NULL, ALTER last_heartbeat SET DEFAULT 0;
ALTER TABLE audit_logs ALTER detail SET NOT NULL, ALTER detail SET DEFAULT '';
"""


@pytest.fixture(scope="session")
def migrated(postgres_server: PostgresServer) -> str:
    """A database with our schema and nothing in it, to be copied: a template. Faster than to migrate each."""
    conninfo = postgres_server.create_database()

    async def bring_up() -> None:
        async with Pool(conninfo, size=1) as pool, pool.connection() as connection:
            await migrate(connection, MIGRATIONS, report=lambda line: pytest.fail(f"an empty database: {line}"))
            await connection.execute(STRICT)

    trio.run(bring_up)
    return conninfo


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """The connection string of a fresh, empty database."""
    with postgres_server.database() as conninfo:
        yield conninfo


@pytest.fixture
def conninfo(postgres_server: PostgresServer, migrated: str) -> Iterator[str]:
    """A database with our schema, for one test."""
    with postgres_server.database(migrated) as conninfo:
        yield conninfo


@pytest.fixture
async def db(conninfo: str) -> AsyncIterator[Database]:
    async with Pool(conninfo, size=20) as pool:
        database = Database()
        database.open(pool)
        yield database


@pytest.fixture
def sql(conninfo: str) -> Callable[..., list[tuple[Any, ...]]]:
    """Run a statement as somebody with psql would."""

    def run(statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    return run
