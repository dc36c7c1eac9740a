"""Completions: an attempt ends with its result, by the lease that it was made under."""

import msgspec
from psycopg.types.json import Jsonb

from bloomd.runtime import tasks
from bloomd.runtime.database import Database
from bloomd.runtime.fencing import decided, is_valid, refuse_lost
from bloomd.runtime.ids import new_id
from bloomd.runtime.model import Artifact, Completion, Metrics, Result, Retry, Task
from bloomd.runtime.refusals import Conflict

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
     WHERE leases.id = (SELECT lease_id FROM task)
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
), result AS (
    INSERT INTO llm_results (id, task_id, worker_id, artifact_id, status, output, error_message, metrics, completed_at,
                             lease_id, task_state)
    SELECT %(result_id)s, lease.task_id, lease.worker_id, artifact.id, %(outcome)s, %(output)s, %(error_message)s,
           %(metrics)s, lease.ended_at, lease.id,
           jsonb_build_object('status', moved.status, 'lease_id', moved.lease_id, 'worker_id', moved.worker_id,
                              'attempts', moved.attempts, 'retry_at', moved.retry_at,
                              'error_message', moved.error_message, 'updated_at', moved.updated_at)
      FROM lease, artifact, moved
    RETURNING *
), alive AS (
    UPDATE workers
       SET status = 'online', alive_at = lease.ended_at, last_heartbeat = lease.ended_at
      FROM lease
     WHERE workers.id = lease.worker_id
       AND (workers.status <> 'online' OR coalesce(workers.alive_at, 0) < lease.ended_at - 1000)
    RETURNING workers.id, workers.alive_at
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), lease.ended_at,
           'task.' || CASE moved.status WHEN 'queued' THEN 'retried' ELSE moved.status END, 'task', moved.id, %(actor)s,
           %(outcome)s || ' from worker ' || lease.worker_id || ', lease ' || lease.id || ', attempt ' || moved.attempts
      FROM moved, lease
    UNION ALL
    SELECT gen_random_uuid(), alive.alive_at, 'worker.online', 'worker', alive.id, 'bloomd', 'it completed a task'
      FROM alive
      JOIN workers AS before ON before.id = alive.id AND before.status <> 'online'
)
SELECT to_jsonb(moved) AS task, to_jsonb(artifact) AS artifact, to_jsonb(result) AS result
  FROM moved, artifact, result
"""

COMPLETED_BEFORE = """
SELECT to_jsonb(llm_tasks) || llm_results.task_state AS task, to_jsonb(runtime_artifacts) AS artifact,
       to_jsonb(llm_results) AS result
  FROM llm_results
  JOIN llm_tasks ON llm_tasks.id = llm_results.task_id
  JOIN runtime_artifacts ON runtime_artifacts.id = llm_results.artifact_id
 WHERE llm_results.lease_id = %(lease_id)s AND llm_results.task_id = %(task_id)s
"""


class Completed(msgspec.Struct, frozen=True):
    task: Task
    artifact: Artifact
    result: Result


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
        await refuse_lost(database, task, completion.lease_id, completion.worker_id)
        if task.status not in ("leased", "running"):
            raise Conflict(f"Task status is '{task.status}', expected 'leased' or 'running'")
        if task.lease_id is None or not await is_valid(database, task.lease_id):
            raise Conflict("The lease of this task has expired")

    return await decided(end, refuse)
