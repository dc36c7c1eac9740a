"""Leases: a task is handed to one worker for a time, kept by heartbeats, ended by a completion or by the clock.

Every statement here follows the package's page: it locks the task, looks at the lease under that lock, and does the
change with its audit entry, or nothing. One gap is left by PostgreSQL's snapshots: a lease that was made while a
statement waited for the task's lock is invisible to it. The statement then changes nothing although nothing stands in
its way, and is simply run again (`SNAPSHOT_TRIES`).
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from psycopg.types.json import Jsonb

from bloomd.runtime import tasks
from bloomd.runtime.database import Database
from bloomd.runtime.ids import new_id
from bloomd.runtime.model import Artifact, Completion, Lease, LeaseStatus, Metrics, Result, Task, Worker
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Conflict, LeaseLost, NotFound, NoWorker, TaskCancelled

# Each further try needs yet another lease of the same task made within the same millisecond or so.
SNAPSHOT_TRIES = 3

# Leases ended by one statement of the sweeper: it holds the locks of as many tasks for some milliseconds.
SWEEP_BATCH = 500

# Somebody who names a worker that nobody can call speaks for it: such a worker shows life in no other way.
SIGN_OF_LIFE = """
UPDATE workers
   SET status = 'online', alive_at = bloom_now_ms(), last_heartbeat = bloom_now_ms()
 WHERE id = %(worker_id)s AND url = ''
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
), worker AS (
    SELECT workers.*
      FROM workers, task
     WHERE bloom_suits(workers.status, workers.capabilities, workers.active_leases,
                       workers.cordoned OR workers.draining, task.labels)
       AND (%(worker_id)s::varchar IS NULL OR workers.id = %(worker_id)s)
       AND (task.pinned_worker_id IS NULL OR workers.id = task.pinned_worker_id)
     ORDER BY task.context_id <> '' AND EXISTS (
                  SELECT FROM leases AS held
                   WHERE held.context_id = task.context_id AND held.worker_id = workers.id AND held.status = 'active'
              ) DESC,
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
    SELECT id, lease_id
      FROM llm_tasks
     WHERE id = %(task_id)s
       AND status IN ('leased', 'running')
       AND lease_id = coalesce(%(lease_id)s, lease_id)
       FOR UPDATE
), lease AS (
    UPDATE leases
       SET last_heartbeat = bloom_now_ms(), expires_at = bloom_now_ms() + ttl_seconds * 1000::bigint
      FROM task
     WHERE leases.id = task.lease_id
       AND leases.status = 'active'
       AND leases.expires_at > bloom_now_ms()
       AND leases.worker_id = coalesce(%(worker_id)s, leases.worker_id)
    RETURNING leases.*
), moved AS (
    UPDATE llm_tasks
       SET status = 'running', updated_at = lease.last_heartbeat
      FROM lease
     WHERE llm_tasks.id = lease.task_id AND llm_tasks.status = 'leased'
    RETURNING llm_tasks.id, lease.id AS lease_id, lease.last_heartbeat, lease.worker_id
), alive AS (
    UPDATE workers
       SET status = 'online', alive_at = lease.last_heartbeat, last_heartbeat = lease.last_heartbeat
      FROM lease
     WHERE workers.id = lease.worker_id
       AND (workers.status <> 'online' OR coalesce(workers.alive_at, 0) < lease.last_heartbeat - 1000)
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), last_heartbeat, 'task.running', 'task', id, %(actor)s,
           'worker ' || worker_id || ', lease ' || lease_id
      FROM moved
)
SELECT * FROM lease
"""

# Ends the attempt: the result and its artifact are kept, and the task goes where the outcome sends it.
COMPLETE = """
WITH task AS (
    SELECT *
      FROM llm_tasks
     WHERE id = %(task_id)s
       AND status IN ('leased', 'running')
       AND lease_id = coalesce(%(lease_id)s, lease_id)
       FOR UPDATE
), lease AS (
    UPDATE leases
       SET status = CASE %(outcome)s WHEN 'success' THEN 'released' ELSE 'failed' END,
           ended_at = bloom_now_ms(), reason = %(outcome)s
      FROM task
     WHERE leases.id = task.lease_id
       AND leases.status = 'active'
       AND leases.expires_at > bloom_now_ms()
       AND leases.worker_id = coalesce(%(worker_id)s, leases.worker_id)
    RETURNING leases.*
), artifact AS (
    INSERT INTO runtime_artifacts (id, task_id, type, created_at, finalized, entity_refs, tags, content,
                                   lease_id, name, size, sha256)
    SELECT %(artifact_id)s, task_id, %(artifact_type)s, ended_at, true, '[]', %(artifact_tags)s, %(content)s,
           id, 'result', octet_length(%(content)s::text), encode(sha256(convert_to(%(content)s::text, 'UTF8')), 'hex')
      FROM lease
    RETURNING *
), result AS (
    INSERT INTO llm_results (id, task_id, worker_id, artifact_id, status, output, error_message, metrics, completed_at,
                             lease_id)
    SELECT %(result_id)s, lease.task_id, lease.worker_id, artifact.id, %(outcome)s, %(output)s, %(error_message)s,
           %(metrics)s, lease.ended_at, lease.id
      FROM lease, artifact
    RETURNING *
), moved AS (
    UPDATE llm_tasks
       SET status        = next.status,
           retry_at      = CASE WHEN next.status = 'queued' THEN lease.ended_at + next.delay_ms END,
           lease_id      = CASE WHEN next.status = 'queued' THEN NULL ELSE lease.id END,
           worker_id     = CASE WHEN next.status = 'queued' THEN NULL ELSE lease.worker_id END,
           error_message = CASE WHEN %(outcome)s = 'error'
                                THEN coalesce(%(error_message)s, 'the worker gave no reason') END,
           updated_at    = lease.ended_at
      FROM lease, task,
           LATERAL (SELECT CASE WHEN %(outcome)s = 'success'                THEN 'completed'
                                WHEN NOT %(retryable)s                      THEN 'failed'
                                WHEN task.attempts < task.max_attempts      THEN 'queued'
                                ELSE 'dead' END AS status,
                           bloom_retry_delay_ms(task.attempts, %(retry_ms)s, %(retry_max_ms)s) AS delay_ms) AS next
     WHERE llm_tasks.id = lease.task_id
    RETURNING llm_tasks.*
), alive AS (
    UPDATE workers
       SET status = 'online', alive_at = lease.ended_at, last_heartbeat = lease.ended_at
      FROM lease
     WHERE workers.id = lease.worker_id
       AND (workers.status <> 'online' OR coalesce(workers.alive_at, 0) < lease.ended_at - 1000)
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), lease.ended_at,
           'task.' || CASE moved.status WHEN 'queued' THEN 'retried' ELSE moved.status END, 'task', moved.id, %(actor)s,
           %(outcome)s || ' from worker ' || lease.worker_id || ', lease ' || lease.id || ', attempt ' || moved.attempts
      FROM moved, lease
)
SELECT to_jsonb(moved) AS task, to_jsonb(artifact) AS artifact, to_jsonb(result) AS result
  FROM moved, artifact, result
"""

COMPLETED_BEFORE = """
SELECT to_jsonb(llm_tasks) AS task, to_jsonb(runtime_artifacts) AS artifact, to_jsonb(llm_results) AS result
  FROM llm_results
  JOIN llm_tasks ON llm_tasks.id = llm_results.task_id
  JOIN runtime_artifacts ON runtime_artifacts.id = llm_results.artifact_id
 WHERE llm_results.lease_id = %(lease_id)s AND llm_results.task_id = %(task_id)s
"""

# Ends the leases whose time is over, a batch at a time. A task that somebody holds locked is being dealt with: skip it.
EXPIRE = """
WITH due AS (
    SELECT leases.id
      FROM leases
      JOIN llm_tasks ON llm_tasks.id = leases.task_id
     WHERE leases.status = 'active' AND leases.expires_at <= bloom_now_ms()
     ORDER BY leases.expires_at
     LIMIT %(batch)s
       FOR UPDATE OF llm_tasks SKIP LOCKED
), lease AS (
    UPDATE leases
       SET status = 'expired', ended_at = bloom_now_ms(), reason = 'expired'
      FROM due
     WHERE leases.id = due.id AND leases.status = 'active' AND leases.expires_at <= bloom_now_ms()
    RETURNING leases.*
), moved AS (
    UPDATE llm_tasks
       SET status        = CASE WHEN attempts < max_attempts THEN 'queued' ELSE 'dead' END,
           retry_at      = CASE WHEN attempts < max_attempts THEN lease.ended_at
                                + bloom_retry_delay_ms(attempts, %(retry_ms)s, %(retry_max_ms)s) END,
           error_message = 'the lease of worker ' || lease.worker_id || ' expired',
           lease_id      = CASE WHEN attempts < max_attempts THEN NULL ELSE lease.id END,
           worker_id     = CASE WHEN attempts < max_attempts THEN NULL ELSE lease.worker_id END,
           updated_at    = lease.ended_at
      FROM lease
     WHERE llm_tasks.id = lease.task_id AND llm_tasks.lease_id = lease.id AND llm_tasks.status IN ('leased', 'running')
    RETURNING llm_tasks.id, llm_tasks.status
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), lease.ended_at, 'lease.expired', 'task', lease.task_id, 'bloomd',
           'worker ' || lease.worker_id || ', lease ' || lease.id || coalesce(', task now ' || moved.status, '')
      FROM lease
      LEFT JOIN moved ON moved.id = lease.task_id
)
SELECT lease.id AS lease_id, lease.task_id, lease.worker_id, moved.status AS task_status
  FROM lease
  LEFT JOIN moved ON moved.id = lease.task_id
"""

BY_ID = """
SELECT * FROM leases WHERE id = %(id)s AND task_id = %(task_id)s
"""

STILL_VALID = """
SELECT * FROM leases WHERE id = %(id)s AND status = 'active' AND expires_at > bloom_now_ms()
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


class Retry(msgspec.Struct, frozen=True):
    """When a lost or failed attempt is tried again."""

    first_seconds: float = 5.0
    max_seconds: float = 300.0
    errors: bool = True
    """Whether an attempt that a worker reports as an error is tried again at all."""

    @property
    def parameters(self) -> dict[str, int]:
        return {"retry_ms": int(self.first_seconds * 1000), "retry_max_ms": int(self.max_seconds * 1000)}


class Leased(msgspec.Struct, frozen=True):
    lease: Lease
    worker: Worker


class Completed(msgspec.Struct, frozen=True):
    task: Task
    artifact: Artifact
    result: Result


class Expired(msgspec.Struct, frozen=True):
    lease_id: str
    task_id: str
    worker_id: str
    task_status: str | None
    """Where the task went; None when it had a newer lease, which an old one never touches."""


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
        await database.execute(SIGN_OF_LIFE, worker_id=worker_id)
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
        await _refuse_lost(database, task, lease_id, worker_id)
        if task.lease_id is None or not await _valid(database, task.lease_id):
            raise NotFound("No active lease for this task")

    return await _decided(beat, refuse)


async def complete(database: Database, task_id: str, completion: Completion, *, retry: Retry, actor: str) -> Completed:
    """End the task's current attempt with its result. Saying the same for the same lease again gives the first answer.

    Raises:
        NotFound: no such task.
        Conflict: no lease is named and the task has no valid one.
        LeaseLost: the lease named is not the current one, has expired, or is another worker's.
    """
    failed = completion.status == "error"
    content = completion.output
    if content is None and failed:
        content = completion.error_message

    async def end() -> Completed | None:
        ended = await database.row(
            Completed,
            COMPLETE,
            task_id=task_id,
            lease_id=completion.lease_id,
            worker_id=completion.worker_id,
            outcome=completion.status,
            retryable=completion.retryable and retry.errors,
            output=completion.output,
            error_message=completion.error_message,
            metrics=Jsonb(msgspec.to_builtins(completion.metrics or Metrics())),
            artifact_id=new_id(),
            artifact_type=completion.artifact_type,
            artifact_tags=Jsonb(completion.artifact_tags),
            content=content,
            result_id=new_id(),
            actor=actor,
            **retry.parameters,
        )
        if ended is None and completion.lease_id is not None:
            return await database.row(Completed, COMPLETED_BEFORE, task_id=task_id, lease_id=completion.lease_id)
        return ended

    async def refuse() -> None:
        task = await tasks.one(database, task_id)
        await _refuse_lost(database, task, completion.lease_id, completion.worker_id)
        if task.status not in ("leased", "running"):
            raise Conflict(f"Task status is '{task.status}', expected 'leased' or 'running'")
        if task.lease_id is None or not await _valid(database, task.lease_id):
            raise Conflict("The lease of this task has expired")

    return await _decided(end, refuse)


async def expire(database: Database, *, retry: Retry) -> list[Expired]:
    """End a batch of the leases whose time is over; their tasks are queued again, or dead.

    Fewer than `SWEEP_BATCH` means that none is left but those that somebody else is dealing with.
    """
    return await database.rows(Expired, EXPIRE, batch=SWEEP_BATCH, **retry.parameters)


async def listing(
    database: Database, page: Page, *, status: LeaseStatus | None = None, worker_id: str | None = None
) -> list[Lease]:
    """A page of leases, newest first."""
    return await database.listing(
        Lease, LIST, status=status, worker_id=worker_id, at=page.at, before=page.id, limit=page.limit
    )


Answer = TypeVar("Answer")


async def _decided(change: Callable[[], Awaitable[Answer | None]], refuse: Callable[[], Awaitable[None]]) -> Answer:
    """Try the change; when it did nothing, say why by `refuse`, which returns when nothing stands in its way."""
    for _ in range(SNAPSHOT_TRIES):
        if (answer := await change()) is not None:
            return answer
        await refuse()
    raise Conflict("The task is changing hands too quickly; try again")


async def _refuse_lost(database: Database, task: Task, lease_id: str | None, worker_id: str | None) -> None:
    """Raise when a caller that proves who it is by a lease or a worker is not the one that holds the task."""
    if lease_id is None and worker_id is None:
        return
    if task.status == "cancelled":
        raise TaskCancelled("The task was cancelled")
    if lease_id is not None:
        lease = await database.row(Lease, BY_ID, id=lease_id, task_id=task.id)
        if lease is None:
            raise LeaseLost("The task has never had this lease")
        if task.lease_id != lease_id or lease.status != "active":
            raise LeaseLost(f"The lease is {lease.status} and not the current one of the task")
        if not await _valid(database, lease_id):
            raise LeaseLost("The lease has expired")
    if worker_id is not None and task.status in ("leased", "running") and task.worker_id != worker_id:
        raise LeaseLost(f"The task is leased to another worker than {worker_id}")


async def _valid(database: Database, lease_id: str) -> bool:
    return await database.row(Lease, STILL_VALID, id=lease_id) is not None
