from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import trio
from agent_peer import agent_peer
from peers import MembridgePeer, membridge_peer, serving
from pushing import AGENT_KEY, RUNTIME_KEY, Pushing, Runtime
from servers import PostgresServer

from bloomd.membridge.client import MembridgeClient
from bloomd.postgres import Pool
from bloomd.runtime.database import Database
from bloomd.supervisor import Backoff

KEY = "the-admin-key-of-the-tests"
# The retries of a real server's client are waited for in real time; their true pauses are tested on the mock clock.
IMPATIENT = Backoff(first=0.001, cap=0.002)


@pytest.fixture
async def peer() -> AsyncIterator[MembridgePeer]:
    async with membridge_peer(key=KEY) as peer:
        yield peer


@pytest.fixture
def client(peer: MembridgePeer) -> MembridgeClient:
    return MembridgeClient(peer.url, KEY, timeout=1.0, retry=IMPATIENT)


@pytest.fixture(scope="module")
def pushing_template(postgres_server: PostgresServer, migrated: str) -> str:
    """A database with our schema and a leader whose time does not end."""
    conninfo = postgres_server.create_database(template=migrated)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("INSERT INTO leaders VALUES ('leader', 'the-test', 'test', 1, 0, 253402300799000)")
    return conninfo


@pytest.fixture
async def pushing(
    postgres_server: PostgresServer, pushing_template: str, nursery: trio.Nursery
) -> AsyncIterator[Pushing]:
    """A dispatcher that runs, and all that it needs. Leads in epoch 1."""
    conninfo = postgres_server.create_database(template=pushing_template)

    def sql(statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    async with (
        Pool(conninfo, size=10) as pool,
        agent_peer(key=AGENT_KEY, runtime_key=RUNTIME_KEY) as agent,
        serving(Runtime(database := Database())) as runtime,
    ):
        database.open(pool)
        pushing = Pushing(database, pool, agent, runtime, sql)
        await nursery.start(pushing.dispatcher.run)
        yield pushing
        nursery.cancel_scope.cancel()
    postgres_server.drop_database(conninfo)
