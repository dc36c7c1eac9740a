"""A change of one task finds its rows by their ids, in tables that a change of a hundred would read from end to end."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, LiteralString

import pytest
from psycopg.types.json import Jsonb

from bloomd.runtime.completion import COMPLETE_ONE
from bloomd.runtime.database import Database
from bloomd.runtime.heartbeats import HEARTBEAT_ONE
from bloomd.runtime.leases import LEASE
from bloomd.runtime.model import Worker

Fill = Callable[..., Awaitable[None]]

BEAT = {"task_id": "t1", "lease_id": "l1"}
RESULT: dict[str, object] = {
    **BEAT,
    "outcome": "success",
    "output": "x",
    "content": "x",
    "metrics": {},
    "uploaded": False,
    "artifact_id": "a1",
    "artifact_type": "LLM_RESULT",
    "artifact_tags": [],
    "result_id": "r1",
}


@pytest.fixture
def fill(new_worker: Callable[..., Awaitable[Worker]], sql: Callable[..., Any]) -> Fill:
    async def make(tasks: int, prompt: str = "x") -> None:
        """The first task is under way, the others have ended, and one is new."""
        await new_worker("w1", max_concurrency=32)
        sql("INSERT INTO llm_tasks (id, prompt) VALUES ('new', %s)", prompt)
        sql(
            "INSERT INTO llm_tasks (id, prompt, status, lease_id, worker_id) "
            "SELECT 't' || n, %s, CASE n WHEN 1 THEN 'running' ELSE 'completed' END, 'l' || n, 'w1' "
            "FROM generate_series(1, %s) AS n",
            prompt,
            tasks,
        )
        sql(
            "INSERT INTO leases (id, task_id, worker_id, status, expires_at, ttl_seconds) "
            "SELECT 'l' || n, 't' || n, 'w1', CASE n WHEN 1 THEN 'active' ELSE 'released' END, "
            "bloom_now_ms() + 300000, 300 FROM generate_series(1, %s) AS n",
            tasks,
        )
        sql("ANALYZE llm_tasks, leases, workers")

    return make


async def scans(db: Database, statement: LiteralString, **parameters: object) -> list[dict[str, Any]]:
    """Where a statement reads tables. It changes one task."""
    async with db.transaction() as connection:
        explain = "EXPLAIN (ANALYZE, FORMAT JSON) " + statement
        cursor = await connection.execute(explain, {**parameters, "actor": "test"})
        [[[explained]]] = await cursor.fetchall()
    assert explained["Plan"]["Actual Rows"] == 1
    nodes = _nodes(explained["Plan"])
    return [node for node in nodes if node["Node Type"].endswith("Scan") and "Relation Name" in node]


def read_whole(scans: list[dict[str, Any]]) -> set[str]:
    """The tables that are read from end to end."""
    return {scan["Relation Name"] for scan in scans if scan["Node Type"] == "Seq Scan"}


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", []):
        yield from _nodes(each)


async def test_a_heartbeat(db: Database, fill: Fill) -> None:
    await fill(3000)
    assert read_whole(await scans(db, HEARTBEAT_ONE, beats=Jsonb(BEAT))) <= {"workers"}


async def test_a_completion(db: Database, fill: Fill) -> None:
    await fill(3000)
    how = {"sign_of_life": True, "retry_ms": 1, "retry_max_ms": 1}
    assert read_whole(await scans(db, COMPLETE_ONE, said=Jsonb(RESULT), **how)) <= {"workers"}


async def test_a_lease(db: Database, fill: Fill) -> None:
    """In a table that is so small that it would be read for two rows, and of a task that shares no context."""
    await fill(45, "x" * 1500)
    asked: dict[str, object] = {"task_id": "new", "worker_id": None, "ttl_seconds": None, "grace": None}
    scanned = await scans(db, LEASE, **asked)
    assert "llm_tasks" not in read_whole(scanned)
    assert [scan["Actual Loops"] for scan in scanned if scan["Relation Name"] == "leases"] == [0]
