from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from servers import PostgresServer, free_port

from bloomd.postgres import Connection, Pool


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection[Any]]:
    connection = await Connection.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with Pool(database, size=4) as pool:
        yield pool


@pytest.fixture(scope="session")
def _mortal() -> Iterator[PostgresServer]:
    with PostgresServer(port=free_port()) as server:
        yield server


@pytest.fixture
def mortal_server(_mortal: PostgresServer) -> Iterator[PostgresServer]:
    """A server that a test may stop, kill or freeze. The next test finds it well again."""
    yield _mortal
    _mortal.sigcont()
    if not _mortal.is_running:
        _mortal.start()
