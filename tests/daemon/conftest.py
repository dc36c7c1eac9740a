"""Daemons of a test's own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bloomd_process import Bloomd
from servers import PostgresServer


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test's own, to be killed and frozen. Durable, because that is what is tested."""
    with PostgresServer(settings={"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}) as server:
        yield server


@pytest.fixture
def database(postgres_server: PostgresServer, migrated: str) -> Iterator[str]:
    """The connection string of a database with our schema and nothing in it."""
    with postgres_server.database(migrated) as conninfo:
        yield conninfo


@pytest.fixture
def unmigrated(postgres_server: PostgresServer) -> Iterator[str]:
    """The connection string of an empty database."""
    with postgres_server.database() as conninfo:
        yield conninfo


@pytest.fixture
def bloomd(database: str) -> Iterator[Callable[..., Bloomd]]:
    """Make a daemon, not started yet, that is ended with the test. Another database than the test's is migrated."""
    made: list[Bloomd] = []

    def make(url: str = database, *, migrate: bool = True, **settings: Any) -> Bloomd:
        daemon = Bloomd(url, **settings)
        made.append(daemon)
        daemon.configure()
        if migrate and url != database:
            daemon.migrate()
        return daemon

    yield make
    for daemon in made:
        daemon.__exit__()
