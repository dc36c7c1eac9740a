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
def bloomd(database: str) -> Iterator[Callable[..., Bloomd]]:
    """Make a daemon that is ended with the test; not started yet."""
    made: list[Bloomd] = []

    def make(url: str = database, *, migrate: bool = True, **settings: Any) -> Bloomd:
        daemon = Bloomd(url, **settings)
        made.append(daemon)
        if migrate:
            daemon.migrate()
        return daemon

    yield make
    for daemon in made:
        daemon.__exit__()
