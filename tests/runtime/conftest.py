"""A database with our schema, and what makes tests of the rules short."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import trio

from bloomd.runtime import tasks, workers
from bloomd.runtime.database import Database
from bloomd.runtime.model import NewTask, NewWorker, Task, Worker


@pytest.fixture
def new_task(db: Database) -> Callable[..., Awaitable[Task]]:
    async def create(prompt: str = "Say hello", **fields: Any) -> Task:
        [created] = await tasks.create(db, [NewTask(prompt=prompt, **fields)], actor="test")
        return created.task

    return create


@pytest.fixture
def new_worker(db: Database) -> Callable[..., Awaitable[Worker]]:
    async def register(name: str = "w1", *, max_concurrency: int = 1, **fields: Any) -> Worker:
        labels = fields.pop("labels", [])
        registered = await workers.register(
            db,
            NewWorker(name=name, **fields),
            capabilities={"claude_cli": True, "max_concurrency": max_concurrency, "labels": labels},
            actor="test",
        )
        return registered.worker

    return register


@pytest.fixture
def shift_clock(sql: Callable[..., Any]) -> Callable[[int], None]:
    """Move the database's clock, by milliseconds from the real time."""

    def shift(by_ms: int) -> None:
        sql(
            "CREATE OR REPLACE FUNCTION bloom_now_ms() RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS "
            f"$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint + {by_ms}::bigint $$"
        )

    return shift


@pytest.fixture
def epoch(sql: Callable[..., Any]) -> int:
    """The epoch of a leader whose time does not end, wherever the clock is shifted to."""
    sql("INSERT INTO leaders VALUES ('leader', 'the-test', 'test', 1, 0, 253402300799000)")
    return 1


@pytest.fixture
def held(conninfo: str, sql: Callable[..., list[tuple[Any, ...]]]) -> Callable[..., Any]:
    """Another session holds what a statement locks, until the block ends, which begins when `during` waits for it."""

    @asynccontextmanager
    async def hold(statement: str, during: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        with psycopg.connect(conninfo) as other:
            other.execute(statement.encode())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(during)
                with trio.fail_after(10):
                    while not sql(
                        "SELECT pid FROM pg_stat_activity "
                        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
                    ):
                        await trio.sleep(0.01)
                yield
                other.commit()

    return hold
