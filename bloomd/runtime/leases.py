"""Leases: a task is handed to one worker for a time.

Here somebody names the task, and the best worker is chosen for it; that a worker asks for whatever there is, is told in
`claims.py`, and that a task is pushed to one, in `pushes.py`. A lease is kept by heartbeats (`heartbeats.py`), and ends
by a completion (`completion.py`), by being given back (`releases.py`), or by the clock (`expiry.py`). Who may speak for
a task is `fencing.py`'s subject.
"""

import msgspec

from bloomd.runtime import queue, tasks
from bloomd.runtime.database import Database
from bloomd.runtime.ids import Id
from bloomd.runtime.model import Lease, LeaseStatus, Worker
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Conflict, NoWorker

# Somebody who names a worker that nobody can call speaks for it: such a worker shows life in no other way.
SIGN_OF_LIFE = """
WITH worker AS (
    SELECT id, status FROM workers WHERE id = %(worker_id)s AND url = '' FOR UPDATE
), alive AS (
    UPDATE workers
       SET status = 'online', alive_at = bloom_now_ms(), last_heartbeat = bloom_now_ms()
      FROM worker
     WHERE workers.id = worker.id
    RETURNING workers.id, workers.alive_at
)
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
SELECT gen_random_uuid(), alive.alive_at, 'worker.online', 'worker', alive.id, %(actor)s, 'a lease was asked for it'
  FROM alive
  JOIN worker ON worker.id = alive.id AND worker.status <> 'online'
RETURNING entity_id AS id
"""

# The best worker that can take the task now: the one that has the task's context, then the freest, then the liveliest.
# A worker whose row another lease holds at this moment is passed over while another suits as well, so that leases
# which are asked for together do not queue up behind one worker; when no other suits, it is waited for.
# With a `grace` the task is pushed: only to a worker that can be called, and for no longer than an attempt may take.
LEASE = """
WITH task AS (
    SELECT *
      FROM llm_tasks
     WHERE id = %(task_id)s
       AND status || '' = 'queued'
       AND coalesce(not_before, 0) <= bloom_now_ms()
       AND coalesce(retry_at, 0) <= bloom_now_ms()
       AND bloom_queue_is_open()
       FOR UPDATE
), holder AS (
    SELECT held.worker_id
      FROM task,
           LATERAL (SELECT worker_id
                      FROM leases
                     WHERE context_id = task.context_id AND status = 'active'
                    OFFSET 0) AS held  -- looked for after the task, and for each task: it has none without a context
     WHERE task.context_id <> ''
), at_hand AS (
    SELECT workers.*
      FROM workers, task
     WHERE bloom_misfit(workers.id, workers.status, workers.capabilities, workers.active_leases, workers.capacity,
                        workers.cordoned, workers.draining, task.pinned_worker_id, task.labels) IS NULL
       AND (%(worker_id)s::varchar IS NULL OR workers.id = %(worker_id)s)
       AND (%(grace)s::integer IS NULL OR workers.url <> '')
       AND NOT EXISTS (SELECT FROM holder)
     ORDER BY workers.capacity - workers.active_leases DESC,
              workers.last_heartbeat DESC NULLS LAST,
              workers.id
     LIMIT 1
       FOR UPDATE OF workers SKIP LOCKED
), waited_for AS (
    SELECT workers.*
      FROM workers, task
     WHERE bloom_misfit(workers.id, workers.status, workers.capabilities, workers.active_leases, workers.capacity,
                        workers.cordoned, workers.draining, task.pinned_worker_id, task.labels) IS NULL
       AND (%(worker_id)s::varchar IS NULL OR workers.id = %(worker_id)s)
       AND (%(grace)s::integer IS NULL OR workers.url <> '')
       AND NOT EXISTS (SELECT FROM at_hand)
     ORDER BY workers.id IN (SELECT worker_id FROM holder) DESC,
              workers.capacity - workers.active_leases DESC,
              workers.last_heartbeat DESC NULLS LAST,
              workers.id
     LIMIT 1
       FOR UPDATE OF workers
), worker AS (
    SELECT * FROM at_hand UNION ALL SELECT * FROM waited_for LIMIT 1  -- or the planner expects two
), lease AS (
    INSERT INTO leases (id, task_id, worker_id, started_at, last_heartbeat, expires_at, ttl_seconds, status, context_id,
                        attempt, deadline_at)
    SELECT gen_random_uuid(), task.id, worker.id, now_ms, now_ms, least(now_ms + ttl * 1000::bigint, deadline), ttl,
           'active', task.context_id, task.attempts + 1, deadline
      FROM task, worker, bloom_now_ms() AS now_ms,
           LATERAL (SELECT (task.policy ->> 'timeout_sec')::integer AS timeout) AS policy,
           LATERAL (SELECT now_ms + (timeout + %(grace)s::integer) * 1000::bigint AS deadline) AS ends,
           LATERAL (SELECT coalesce(%(ttl_seconds)s::integer, greatest(300, timeout + 60)) AS ttl) AS lasts
        ON CONFLICT DO NOTHING  -- with a lease that somebody left behind: it has to end first
    RETURNING *
), moved AS (
    UPDATE llm_tasks
       SET status = 'leased', lease_id = lease.id, worker_id = lease.worker_id, attempts = lease.attempt,
           retry_at = NULL, progress = NULL, progress_at = NULL, updated_at = lease.started_at
      FROM lease
     WHERE llm_tasks.id = lease.task_id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), started_at, 'task.leased', 'task', task_id, %(actor)s,
           'worker ' || worker_id || ', lease ' || id || ', attempt ' || attempt
      FROM lease
)
SELECT to_jsonb(lease) AS lease,
       to_jsonb(worker) || jsonb_build_object('active_leases', worker.active_leases + 1) AS worker,
       lease.started_at - greatest(task.updated_at, task.not_before, task.retry_at) AS waited_ms
  FROM lease, worker, task
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


class _LeasedNow(Leased, frozen=True):
    waited_ms: int


class Wanted(msgspec.Struct, frozen=True):
    """A task that somebody wants to be leased."""

    task_id: str
    worker_id: str | None = None
    """The only worker that will do."""
    ttl_seconds: int | None = None
    grace: int | None = None
    """Seconds that an attempt may take beyond its `timeout_sec`, for a task that is pushed."""


async def lease(
    database: Database, task_id: str, *, worker_id: str | None = None, ttl_seconds: int | None = None, actor: str
) -> Leased:
    """Hand a queued task to the best worker that can take it now, or to the worker named if that one can.

    Raises:
        NotFound: no such task.
        Conflict: the task is not queued, or not before its time.
        NoWorker: nobody suitable has free capacity, or the queue is paused.
    """
    if worker_id is not None:
        await database.change(Id, SIGN_OF_LIFE, worker_id=worker_id, actor=actor)
    if leased := await attempt(database, Wanted(task_id, worker_id, ttl_seconds), actor=actor):
        return leased
    await refuse(database, task_id)
    raise NoWorker("No available worker with free capacity")


async def attempt(database: Database, wanted: Wanted, *, actor: str) -> Leased | None:
    """Lease the task if that can be done now."""
    leased = await database.change(_LeasedNow, LEASE, actor=actor, **msgspec.structs.asdict(wanted))
    if not leased:
        return None
    database.meters.claimed([leased[0].waited_ms / 1000])
    return Leased(leased[0].lease, leased[0].worker)


async def refuse(database: Database, task_id: str) -> None:
    """Say what is in the way of leasing the task, whoever would get it; return when nothing is.

    Raises:
        NotFound, Conflict, NoWorker: as `lease` does.
    """
    task = await tasks.one(database, task_id)
    if task.status != "queued":
        raise Conflict(f"Task status is '{task.status}', expected 'queued'")
    if await tasks.waits(database, task_id):
        until = "its retry" if task.retry_at and task.retry_at >= (task.not_before or 0) else "its not_before time"
        raise Conflict(f"Task is queued, but not before {until}: {max(task.retry_at or 0, task.not_before or 0)}")
    if (state := await queue.read(database)).paused:
        raise NoWorker("The queue is paused" + (f": {state.reason}" if state.reason else ""))


async def listing(
    database: Database, page: Page, *, status: LeaseStatus | None = None, worker_id: str | None = None
) -> list[Lease]:
    """A page of leases, newest first."""
    return await database.listing(
        Lease, LIST, status=status, worker_id=worker_id, at=page.at, before=page.id, limit=page.limit
    )
