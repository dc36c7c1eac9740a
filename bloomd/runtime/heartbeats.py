"""Heartbeats: a worker shows that it is still at work, and its leases go on; one at a time or many at once."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta
from psycopg.types.json import Jsonb

from bloomd.runtime import tasks
from bloomd.runtime.database import Database
from bloomd.runtime.fencing import decided, is_valid, of_one, refuse_lost, settled
from bloomd.runtime.model import Lease, Name, WorkerName
from bloomd.runtime.refusals import NotFound, Refusal, TaskCancelled

# How far a worker has come, in its own words: a percentage or a sentence.
Progress = (
    Annotated[int, Meta(ge=0, le=100)] | Annotated[float, Meta(ge=0, le=100)] | Annotated[str, Meta(max_length=1000)]
)

# Prolongs each lease by its ttl from now, but not past the deadline of its attempt; the first one makes its task
# `running`. What is not prolonged has no row in the answer.
HEARTBEAT = """
WITH asked AS (
    SELECT DISTINCT ON (task_id)
           coalesce(beat.task_id, named.task_id) AS task_id, beat.lease_id, beat.worker_id, beat.progress
      FROM jsonb_to_recordset(%(beats)s) AS beat (
               task_id varchar, lease_id varchar, worker_id varchar, progress jsonb)
      LEFT JOIN leases AS named ON named.id = beat.lease_id
     ORDER BY task_id
), task AS (
    SELECT llm_tasks.id, llm_tasks.status, llm_tasks.lease_id, asked.worker_id, asked.progress
      FROM llm_tasks
      JOIN asked ON asked.task_id = llm_tasks.id
     WHERE llm_tasks.status || '' IN ('leased', 'running')
       AND llm_tasks.lease_id = coalesce(asked.lease_id, llm_tasks.lease_id)
     ORDER BY llm_tasks.id
       FOR UPDATE OF llm_tasks
), lease AS (
    UPDATE leases
       SET last_heartbeat = bloom_now_ms(),
           expires_at = least(bloom_now_ms() + ttl_seconds * 1000::bigint, deadline_at)
      FROM task
     WHERE leases.id = task.lease_id
       AND leases.status || '' = 'active'
       AND least(leases.expires_at, leases.deadline_at) > bloom_now_ms()
       AND leases.worker_id = coalesce(task.worker_id, leases.worker_id)
    RETURNING leases.*, task.status AS task_status, task.progress
), moved AS (
    UPDATE llm_tasks
       SET status = 'running', updated_at = lease.last_heartbeat,
           progress = coalesce(lease.progress, llm_tasks.progress),
           progress_at = CASE WHEN lease.progress IS NULL THEN llm_tasks.progress_at ELSE lease.last_heartbeat END
      FROM lease
     WHERE llm_tasks.id = lease.task_id AND (lease.task_status = 'leased' OR lease.progress IS NOT NULL)
), worker AS (
    SELECT workers.id, workers.status, seen.at
      FROM workers
      JOIN (SELECT worker_id, max(last_heartbeat) AS at FROM lease GROUP BY worker_id) AS seen
           ON seen.worker_id = workers.id
     WHERE workers.status NOT IN ('online', 'error') OR coalesce(workers.alive_at, 0) < seen.at - 1000
     ORDER BY workers.id
       FOR UPDATE OF workers
), alive AS (
    UPDATE workers
       SET status = CASE worker.status WHEN 'error' THEN 'error' ELSE 'online' END,  -- only itself says otherwise
           alive_at = worker.at, last_heartbeat = worker.at
      FROM worker
     WHERE workers.id = worker.id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), last_heartbeat, 'task.running', 'task', task_id, %(actor)s,
           'worker ' || worker_id || ', lease ' || id
      FROM lease
     WHERE task_status = 'leased'
    UNION ALL
    SELECT gen_random_uuid(), at, 'worker.online', 'worker', id, 'bloomd', 'its lease had a heartbeat'
      FROM worker
     WHERE status NOT IN ('online', 'error')
)
SELECT * FROM lease
"""
HEARTBEAT_ONE = of_one(HEARTBEAT)


class Beat(msgspec.Struct, frozen=True):
    """One sign of life. What is not named is not checked: without a lease it counts for the task's current one."""

    lease_id: Name | None = None
    worker_id: WorkerName | None = None
    progress: Progress | None = None
    task_id: Name | None = None


async def heartbeat(database: Database, task_id: str, beat: Beat, *, actor: str) -> Lease:
    """Prolong the task's current lease by its ttl from now; the first heartbeat makes the task `running`.

    Raises:
        NotFound: no such task, or no lease is named and none is active.
        TaskCancelled: the task was cancelled.
        LeaseLost: the lease named is not the current one, has expired, or is another worker's.
    """
    named = msgspec.structs.replace(beat, task_id=task_id)

    async def prolong() -> Lease | None:
        prolonged = await _prolong(database, [named], actor)
        return prolonged[0] if prolonged else None

    async def refuse() -> None:
        task = await tasks.one(database, task_id)
        if task.status == "cancelled":
            raise TaskCancelled("The task was cancelled")
        await refuse_lost(database, task, named.lease_id, named.worker_id)
        if task.lease_id is None or not await is_valid(database, task.lease_id):
            raise NotFound("No active lease for this task")

    return await decided(prolong, refuse)


async def heartbeat_many(database: Database, beats: Sequence[Beat], *, actor: str) -> list[Lease | Refusal]:
    """Prolong many leases at once, each named by its id; for each the lease as it is now, or why not, in order."""
    prolonged = {lease.id: lease for lease in await _prolong(database, beats, actor)}

    async def alone(beat: Beat) -> Lease:
        return await heartbeat(database, await tasks.of_lease(database, beat.lease_id), beat, actor=actor)

    return await settled(beats, lambda beat: prolonged.get(beat.lease_id or ""), alone)


async def _prolong(database: Database, beats: Sequence[Beat], actor: str) -> list[Lease]:
    said = msgspec.to_builtins(beats)
    if len(said) == 1:
        return await database.change(Lease, HEARTBEAT_ONE, beats=Jsonb(said[0]), actor=actor)
    return await database.change(Lease, HEARTBEAT, beats=Jsonb(said), actor=actor)
