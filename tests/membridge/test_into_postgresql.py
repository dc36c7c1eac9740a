"""From a real Membridge, through client and mirror, into a real database: what is let through can be stored."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from peers import MembridgePeer, new_agent, old_agent
from servers import PostgresServer

from bloomd.membridge.client import MembridgeClient
from bloomd.membridge.polls import PollResult
from bloomd.membridge.sync import Sync
from bloomd.postgres import Pool
from bloomd.runtime import liveness, workers
from bloomd.runtime.database import Database

EPOCH = 7

DREADFUL: list[Any] = [
    None,
    {"name": "nul\0"},
    {"name": "half", "db_sha": "\ud800", "capabilities": {"a\0": 1, "b": "\udfff", "c": float("nan"), "d": 10**400}},
    {"name": "numbers", "obs_count": 2**40, "last_seen": 1e300, "capabilities": {"max_concurrency": 1e9, "n": 2**62}},
    {"name": "shapes", "url": {}, "status": [], "ip_addrs": {"a": 1}, "capabilities": [1], "last_seen": {}},
    {"name": "n" * 128, "ip_addrs": ["10.0.0.1", None, "\0"], "capabilities": {"deep": [[[[{"x": None}]]]]}},
]


@pytest.fixture
async def database(postgres_server: PostgresServer, migrated: str) -> AsyncIterator[Database]:
    async with Pool(postgres_server.create_database(migrated), size=2) as pool:
        opened = Database()
        opened.open(pool)
        await opened.execute("INSERT INTO leaders VALUES ('leader', 'the-test', 'test', 7, 0, 253402300799000)")
        yield opened


@pytest.fixture
def sync(client: MembridgeClient, database: Database) -> Sync:
    return Sync(lambda: client, lambda: 10.0, partial(liveness.mirror, database, offline_after=60.0))


async def test_both_generations_and_a_second_round(peer: MembridgePeer, sync: Sync, database: Database) -> None:
    peer.agents = [old_agent("old"), new_agent("new", status="online")]
    first = await sync.now(EPOCH)
    assert (first.agents, first.added, first.changed) == (2, 2, 0)
    second = await sync.now(EPOCH)
    assert (second.agents, second.added, second.changed) == (2, 0, 0)
    new = await workers.one(database, "new")
    assert (new.status, new.capabilities) == ("online", new_agent("new")["capabilities"])
    assert (await workers.one(database, "old")).url == old_agent("old")["url"]


async def test_what_is_not_sent_any_more_is_kept(peer: MembridgePeer, sync: Sync, database: Database) -> None:
    peer.agents = [new_agent("w", status="online")]
    await sync.now(EPOCH)
    known = await workers.one(database, "w")
    peer.agents = [{"name": "w", "status": None, "capabilities": None, "ip_addrs": None}]
    assert (await sync.now(EPOCH)).changed == 0
    assert await workers.one(database, "w") == known


async def test_dreadful_agents_spoil_nothing(peer: MembridgePeer, sync: Sync, database: Database) -> None:
    peer.agents = [old_agent("first"), *DREADFUL, new_agent("last")]
    assert (await sync.now(EPOCH)).added == 6
    for name in ("first", "half", "numbers", "shapes", "n" * 128, "last"):
        await workers.one(database, name)
    assert (await workers.one(database, "numbers")).capabilities["max_concurrency"] == 32


async def test_a_poll_is_recorded(peer: MembridgePeer, sync: Sync, database: Database) -> None:
    peer.agents = [old_agent("w")]
    await sync.now(EPOCH)
    said = PollResult("w", ok=True, version="1.4.0", os_info="Alpine", capabilities={"labels": ["gpu"]})
    await liveness.record_polls(database, [said, PollResult("other", ok=False, error="away")], EPOCH)
    worker = await workers.one(database, "w")
    assert (worker.status, worker.agent_version, worker.capabilities["labels"]) == ("online", "1.4.0", ["gpu"])
