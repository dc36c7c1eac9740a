"""Leases: a task is handed to one worker for a time, and kept by heartbeats.

How one ends is told elsewhere: by a completion (`completion.py`), or by the clock (`expiry.py`). Who may speak for a
task is `fencing.py`'s subject.
"""

import msgspec

from bloomd.runtime import tasks
from bloomd.runtime.database import Database
from bloomd.runtime.fencing import decided, is_valid, refuse_lost
from bloomd.runtime.model import Lease, LeaseStatus, Worker
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Conflict, NotFound, NoWorker

# Somebody who names a worker that nobody can call speaks for it: such a worker shows life in no other way.
SIGN_OF_LIFE = """
WITH alive AS (
    UPDATE workers
       SET status = 'online', alive_at = bloom_now_ms(), last_heartbeat = bloom_now_ms()
     WHERE id = %(worker_id)s AND url = ''
    RETURNING id, alive_at
)
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
SELECT gen_random_uuid(), alive.alive_at, 'worker.online', 'worker', alive.id, %(actor)s, 'a lease was asked for it'
  FROM alive
  JOIN workers AS before ON before.id = alive.id AND before.status <> 'online'
"""

# The best worker that can take the task now: the one that has the task's context, then the freest, then the liveliest.
LEASE = """
WITH task AS (
    SELECT *
      FROM llm_tasks
     WHERE id = %(task_id)s
       AND status = 'queued'
       AND coalesce(not_before, 0) <= bloom_now_ms()
       AND coalesce(retry_at, 0) <= bloom_now_ms()
       FOR UPDATE
), holder AS (
    SELECT held.worker_id
      FROM leases AS held
      JOIN task ON held.context_id = task.context_id AND task.context_id <> ''
     WHERE held.status = 'active'
), worker AS (
    SELECT workers.*
      FROM workers, task
     WHERE bloom_suits(workers.status, workers.capabilities, workers.active_leases,
                       workers.cordoned OR workers.draining, task.labels)
       AND (%(worker_id)s::varchar IS NULL OR workers.id = %(worker_id)s)
       AND (task.pinned_worker_id IS NULL OR workers.id = task.pinned_worker_id)
     ORDER BY workers.id IN (SELECT worker_id FROM holder) DESC,
              bloom_capacity(workers.capabilities) - workers.active_leases DESC,
              workers.last_heartbeat DESC NULLS LAST,
              workers.id
     LIMIT 1
       FOR UPDATE OF workers
), lease AS (
    INSERT INTO leases (id, task_id, worker_id, started_at, expires_at, ttl_seconds, status, context_id, attempt)
    SELECT gen_random_uuid(), task.id, worker.id, now_ms, now_ms + ttl * 1000, ttl, 'active', task.context_id,
           task.attempts + 1
      FROM task, worker, bloom_now_ms() AS now_ms,
           coalesce(%(ttl_seconds)s::integer, greatest(300, (task.policy ->> 'timeout_sec')::integer + 60)) AS ttl
    RETURNING *
), moved AS (
    UPDATE llm_tasks
       SET status = 'leased', lease_id = lease.id, worker_id = lease.worker_id, attempts = lease.attempt,
           retry_at = NULL, updated_at = lease.started_at
      FROM lease
     WHERE llm_tasks.id = lease.task_id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), started_at, 'task.leased', 'task', task_id, %(actor)s,
           'worker ' || worker_id || ', lease ' || id || ', attempt ' || attempt
      FROM lease
)
SELECT to_jsonb(lease) AS lease,
       to_jsonb(worker) || jsonb_build_object('active_leases', worker.active_leases + 1) AS worker
  FROM lease, worker
"""

HEARTBEAT = """
WITH task AS (
    SELECT id, status, lease_id
      FROM llm_tasks
     WHERE id = %(task_id)s
       AND status IN ('leased', 'running')
       AND lease_id = coalesce(%(lease_id)s, lease_id)
       FOR UPDATE
), lease AS (
    UPDATE leases
       SET last_heartbeat = bloom_now_ms(), expires_at = bloom_now_ms() + ttl_seconds * 1000::bigint
     WHERE leases.id = (SELECT lease_id FROM task)
       AND leases.status = 'active'
       AND leases.expires_at > bloom_now_ms()
       AND leases.worker_id = coalesce(%(worker_id)s, leases.worker_id)
    RETURNING leases.*
), moved AS (
    UPDATE llm_tasks
       SET status = 'running', updated_at = lease.last_heartbeat
      FROM lease, task
     WHERE llm_tasks.id = lease.task_id AND task.status = 'leased'
    RETURNING llm_tasks.id, lease.id AS lease_id, lease.last_heartbeat, lease.worker_id
), alive AS (
    UPDATE workers
       SET status = 'online', alive_at = lease.last_heartbeat, last_heartbeat = lease.last_heartbeat
      FROM lease
     WHERE workers.id = lease.worker_id
       AND (workers.status <> 'online' OR coalesce(workers.alive_at, 0) < lease.last_heartbeat - 1000)
    RETURNING workers.id, workers.alive_at
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), last_heartbeat, 'task.running', 'task', id, %(actor)s,
           'worker ' || worker_id || ', lease ' || lease_id
      FROM moved
    UNION ALL
    SELECT gen_random_uuid(), alive.alive_at, 'worker.online', 'worker', alive.id, 'bloomd', 'its lease had a heartbeat'
      FROM alive
      JOIN workers AS before ON before.id = alive.id AND before.status <> 'online'
)
SELECT * FROM lease
"""

LIST = """
SELECT *
  FROM leases
 WHERE (started_at, id) < (%(at)s, %(before)s)
   AND (%(status)s::varchar IS NULL OR status = %(status)s)
   AND (%(worker_id)s::varchar IS NULL OR worker_id = %(worker_id)s)
 ORDER BY started_at DESC, id DESC
 LIMIT %(limit)s
"""


class Leased(msgspec.Struct, frozen=True):
    lease: Lease
    worker: Worker


async def lease(
    database: Database, task_id: str, *, worker_id: str | None = None, ttl_seconds: int | None = None, actor: str
) -> Leased:
    """Hand a queued task to the best worker that can take it now, or to the worker named if that one can.

    Raises:
        NotFound: no such task.
        Conflict: the task is not queued, or not before its time.
        NoWorker: nobody suitable has free capacity.
    """
    if worker_id is not None:
        await database.execute(SIGN_OF_LIFE, worker_id=worker_id, actor=actor)
    if leased := await database.row(
        Leased, LEASE, task_id=task_id, worker_id=worker_id, ttl_seconds=ttl_seconds, actor=actor
    ):
        return leased
    task = await tasks.one(database, task_id)
    if task.status != "queued":
        raise Conflict(f"Task status is '{task.status}', expected 'queued'")
    if await tasks.waits(database, task_id):
        until = "its retry" if task.retry_at and task.retry_at >= (task.not_before or 0) else "its not_before time"
        raise Conflict(f"Task is queued, but not before {until}: {max(task.retry_at or 0, task.not_before or 0)}")
    raise NoWorker("No available worker with free capacity")


async def heartbeat(
    database: Database, task_id: str, *, lease_id: str | None = None, worker_id: str | None = None, actor: str
) -> Lease:
    """Prolong the task's current lease by its ttl from now; the first heartbeat makes the task `running`.

    Raises:
        NotFound: no such task, or no lease is named and none is active.
        LeaseLost: the lease named is not the current one, has expired, or is another worker's.
    """

    async def beat() -> Lease | None:
        return await database.row(
            Lease, HEARTBEAT, task_id=task_id, lease_id=lease_id, worker_id=worker_id, actor=actor
        )

    async def refuse() -> None:
        task = await tasks.one(database, task_id)
        await refuse_lost(database, task, lease_id, worker_id)
        if task.lease_id is None or not await is_valid(database, task.lease_id):
            raise NotFound("No active lease for this task")

    return await decided(beat, refuse)


async def listing(
    database: Database, page: Page, *, status: LeaseStatus | None = None, worker_id: str | None = None
) -> list[Lease]:
    """A page of leases, newest first."""
    return await database.listing(
        Lease, LIST, status=status, worker_id=worker_id, at=page.at, before=page.id, limit=page.limit
    )
