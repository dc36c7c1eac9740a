"""Fixtures that every package's tests share."""

import signal
from collections.abc import Iterator

import pytest
from servers import PostgresServer

# A shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C: some press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One real server for the whole session. A test that stops or freezes it has to bring it back."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """The connection string of a fresh, empty database."""
    conninfo = postgres_server.create_database()
    yield conninfo
    postgres_server.drop_database(conninfo)
