"""Completions: an attempt ends with its result, by the lease that it was made under; one at a time or many at once."""

import hashlib
from collections.abc import Sequence
from typing import Any, LiteralString

import msgspec
from msgspec.structs import replace
from psycopg.types.json import Jsonb

from bloomd.runtime import tasks, uploads
from bloomd.runtime.database import Database
from bloomd.runtime.fencing import decided, is_valid, of_one, refuse_lost, settled
from bloomd.runtime.ids import new_id
from bloomd.runtime.model import Artifact, Completion, Lease, Metrics, Outcome, Result, Retry, Task, TaskStatus
from bloomd.runtime.refusals import Conflict, Refusal

# Ends the attempts: each result and its artifact are kept, and each task goes where its outcome sends it. An artifact
# that was uploaded under the same lease becomes the result's, instead of a new one. The output stands once: as the
# content of the artifact that is made of it. What is not ended has no row in the answer.
COMPLETE = """
WITH asked AS (
    SELECT DISTINCT ON (task_id)
           coalesce(said.task_id, named.task_id) AS task_id, said.lease_id AS asked_lease_id,
           said.worker_id AS asked_worker_id, said.outcome, retryable, output, said.error_message, content, metrics,
           artifact_id, artifact_type, artifact_tags, result_id, uploaded, upload.lease_id AS uploaded_under
      FROM jsonb_to_recordset(%(said)s) AS said (
               place integer, task_id varchar, lease_id varchar, worker_id varchar, outcome varchar, retryable boolean,
               output text, error_message text, content text, metrics jsonb, artifact_id varchar, uploaded boolean,
               artifact_type varchar, artifact_tags jsonb, result_id varchar)
      LEFT JOIN leases AS named ON named.id = said.lease_id
      LEFT JOIN LATERAL (
           SELECT lease_id FROM runtime_artifacts WHERE uploaded AND id = said.artifact_id LIMIT 1) AS upload ON true
     ORDER BY task_id, place
), task AS (
    SELECT llm_tasks.id, llm_tasks.lease_id, llm_tasks.attempts, llm_tasks.max_attempts
      FROM llm_tasks
      JOIN asked ON asked.task_id = llm_tasks.id
     WHERE llm_tasks.status || '' IN ('leased', 'running')
       AND llm_tasks.lease_id = coalesce(asked.asked_lease_id, llm_tasks.lease_id)
     ORDER BY llm_tasks.id
       FOR UPDATE OF llm_tasks
), lease AS (
    UPDATE leases
       SET status = CASE asked.outcome WHEN 'success' THEN 'released' ELSE 'failed' END,
           ended_at = bloom_now_ms(), outcome = asked.outcome,
           reason = CASE asked.outcome WHEN 'error' THEN left(asked.error_message, 1000) END
      FROM task
      JOIN asked ON asked.task_id = task.id
     WHERE leases.id = task.lease_id
       AND leases.status || '' = 'active'
       AND least(leases.expires_at, leases.deadline_at) > bloom_now_ms()
       AND leases.worker_id = coalesce(asked.asked_worker_id, leases.worker_id)
       AND (NOT asked.uploaded OR asked.uploaded_under = leases.id)
    RETURNING leases.id, leases.task_id, leases.worker_id, leases.context_id, leases.serial, leases.started_at,
              leases.ended_at, leases.outcome
), artifact AS (
    INSERT INTO runtime_artifacts (id, task_id, type, created_at, finalized, entity_refs, tags, content,
                                   lease_id, name, size, sha256)
    SELECT artifact_id, lease.task_id, artifact_type, lease.ended_at, true, '[]', artifact_tags, content,
           lease.id, 'result', octet_length(content), encode(sha256(convert_to(content, 'UTF8')), 'hex')
      FROM lease
      JOIN asked ON asked.task_id = lease.task_id
     WHERE NOT asked.uploaded
    RETURNING *
), moved AS (
    UPDATE llm_tasks
       SET status        = next.status,
           retry_at      = next.retry_at,
           ready         = next.retry_at IS NULL,
           lease_id      = CASE WHEN next.status = 'queued' THEN NULL ELSE lease.id END,
           worker_id     = CASE WHEN next.status = 'queued' THEN NULL ELSE lease.worker_id END,
           progress      = CASE WHEN next.status = 'queued' THEN NULL ELSE llm_tasks.progress END,
           progress_at   = CASE WHEN next.status = 'queued' THEN NULL ELSE llm_tasks.progress_at END,
           error_message = CASE lease.outcome WHEN 'error'
                                THEN coalesce(asked.error_message, 'the worker gave no reason') END,
           updated_at    = lease.ended_at
      FROM lease
      JOIN task  ON task.id = lease.task_id
      JOIN asked ON asked.task_id = lease.task_id,
           LATERAL (SELECT CASE WHEN lease.outcome = 'success'         THEN 'completed'
                                WHEN NOT asked.retryable               THEN 'failed'
                                WHEN task.attempts < task.max_attempts THEN 'queued'
                                ELSE 'dead' END AS status) AS goes,
           LATERAL (SELECT goes.status,
                           CASE WHEN goes.status = 'queued' THEN lease.ended_at
                                + bloom_retry_delay_ms(task.attempts, %(retry_ms)s, %(retry_max_ms)s) END AS retry_at
                   ) AS next
     WHERE llm_tasks.id = lease.task_id
    RETURNING llm_tasks.*
), result AS (
    INSERT INTO llm_results (id, task_id, worker_id, artifact_id, status, output, output_shared, error_message, metrics,
                             completed_at, lease_id, task_state)
    SELECT result_id, lease.task_id, lease.worker_id, artifact_id, lease.outcome, CASE WHEN uploaded THEN output END,
           NOT uploaded AND output IS NOT NULL, asked.error_message, metrics, lease.ended_at, lease.id,
           jsonb_build_object('status', moved.status, 'lease_id', moved.lease_id, 'worker_id', moved.worker_id,
                              'attempts', moved.attempts, 'retry_at', moved.retry_at,
                              'error_message', moved.error_message, 'updated_at', moved.updated_at)
      FROM lease
      JOIN moved ON moved.id = lease.task_id
      JOIN asked ON asked.task_id = lease.task_id
    RETURNING *
), conversation AS (
    INSERT INTO conversations (context, worker_id, at)
    SELECT md5(context_id), worker_id, ended_at
      FROM lease
     WHERE serial AND outcome = 'success'
     ORDER BY md5(context_id)
        ON CONFLICT (context) DO UPDATE
       SET worker_id = excluded.worker_id, at = excluded.at
), worker AS (
    SELECT workers.id, workers.status, seen.at
      FROM workers
      JOIN (SELECT worker_id, max(ended_at) AS at FROM lease GROUP BY worker_id) AS seen ON seen.worker_id = workers.id
     ORDER BY workers.id
       FOR UPDATE OF workers
), alive AS (
    UPDATE workers
       SET status = CASE worker.status WHEN 'error' THEN 'error' ELSE 'online' END,  -- only itself says otherwise
           alive_at = worker.at, last_heartbeat = worker.at,
           asked_at = CASE WHEN workers.asked_at IS NOT NULL THEN worker.at END  -- it will, in a moment
      FROM worker
     WHERE workers.id = worker.id
       AND %(sign_of_life)s
       AND (worker.status NOT IN ('online', 'error') OR workers.asked_at < worker.at - 1000
            OR coalesce(workers.alive_at, 0) < worker.at - 1000)
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), lease.ended_at,
           'task.' || CASE moved.status WHEN 'queued' THEN 'retried' ELSE moved.status END, 'task', moved.id, %(actor)s,
           format('%%s from worker %%s, lease %%s, attempt %%s',
                  lease.outcome, lease.worker_id, lease.id, moved.attempts)
      FROM moved
      JOIN lease ON lease.task_id = moved.id
    UNION ALL
    SELECT gen_random_uuid(), at, 'worker.online', 'worker', id, 'bloomd', 'it completed a task'
      FROM worker
     WHERE status NOT IN ('online', 'error') AND %(sign_of_life)s
)
"""

# What is said of a single completion, and of one among many: whoever sends many outputs does not want them back.
COMPLETE_ONE: LiteralString = (
    of_one(COMPLETE)
    + """
SELECT to_jsonb(moved) AS task,
       coalesce(to_jsonb(artifact),
                (SELECT to_jsonb(upload) FROM runtime_artifacts AS upload WHERE id = result.artifact_id)) AS artifact,
       to_jsonb(result) AS result, lease.ended_at - lease.started_at AS ran_ms
  FROM lease
  JOIN moved  ON moved.id = lease.task_id
  JOIN result ON result.task_id = lease.task_id
  LEFT JOIN artifact ON artifact.task_id = lease.task_id
"""
)
COMPLETE_MANY: LiteralString = (
    COMPLETE
    + """
SELECT lease.id AS lease_id, moved.id AS task_id, moved.status AS task_status, moved.attempts, moved.retry_at,
       result.artifact_id, result.id AS result_id, lease.worker_id, lease.outcome,
       lease.ended_at - lease.started_at AS ran_ms
  FROM lease
  JOIN moved  ON moved.id = lease.task_id
  JOIN result ON result.task_id = lease.task_id
"""
)

COMPLETED_BEFORE = """
SELECT to_jsonb(llm_tasks) || llm_results.task_state AS task, to_jsonb(runtime_artifacts) AS artifact,
       to_jsonb(llm_results) AS result, output_shared
  FROM llm_results
  JOIN llm_tasks ON llm_tasks.id = llm_results.task_id
  JOIN runtime_artifacts ON runtime_artifacts.id = llm_results.artifact_id
 WHERE llm_results.lease_id = %(lease_id)s AND llm_results.task_id = %(task_id)s
   AND (%(worker_id)s::varchar IS NULL OR llm_results.worker_id = %(worker_id)s)
"""


class Completed(msgspec.Struct, frozen=True):
    task: Task
    artifact: Artifact
    result: Result


class _CompletedNow(Completed, frozen=True):
    ran_ms: int


class _CompletedBefore(Completed, frozen=True):
    output_shared: bool


class Ended(msgspec.Struct, frozen=True):
    """What became of one completion among many."""

    lease_id: str
    task_id: str
    task_status: TaskStatus
    attempts: int
    retry_at: int | None
    artifact_id: str
    result_id: str


class _EndedNow(Ended, frozen=True):
    worker_id: str
    outcome: Outcome
    ran_ms: int


async def complete(
    database: Database, task_id: str, completion: Completion, *, retry: Retry, actor: str, sign_of_life: bool = True
) -> Completed:
    """End the task's current attempt with its result. Saying the same for the same lease again gives the first answer.

    `sign_of_life`: whether it is the worker that says so, and not somebody who has had no answer from it.

    Raises:
        NotFound: no such task.
        Conflict: no lease is named and the task has no valid one, or the artifact was not uploaded under it.
        LeaseLost: the lease named is not the current one, has expired, or is another worker's.
    """

    async def end() -> Completed | None:
        said = Jsonb(_said(0, completion, retry, task_id))
        ended = await database.change(
            _CompletedNow, COMPLETE_ONE, said=said, actor=actor, sign_of_life=sign_of_life, **retry.parameters
        )
        if ended:
            [done] = ended
            _note(database, done.result.status, done.task.status, done.task.attempts, done.ran_ms)
            return Completed(done.task, done.artifact, replace(done.result, output=completion.output))
        if completion.lease_id is None:
            return None
        before = await database.row(
            _CompletedBefore,
            COMPLETED_BEFORE,
            task_id=task_id,
            lease_id=completion.lease_id,
            worker_id=completion.worker_id,
        )
        return before and _whole(before, completion)

    async def refuse() -> None:
        task = await tasks.one(database, task_id)
        await refuse_lost(database, task, completion.lease_id, completion.worker_id)
        if task.status not in ("leased", "running"):
            raise Conflict(f"Task status is '{task.status}', expected 'leased' or 'running'")
        if task.lease_id is None or not await is_valid(database, task.lease_id):
            raise Conflict("The lease of this task has expired")
        if completion.artifact_id is not None:
            await uploads.refuse_stranger(database, completion.artifact_id, task.lease_id)

    return await decided(end, refuse)


async def complete_many(
    database: Database, completions: Sequence[Completion], *, retry: Retry, actor: str
) -> list[Ended | Refusal]:
    """End many attempts at once, each named by its lease; for each what became of it, or why not, in order."""
    said = Jsonb([_said(place, completion, retry) for place, completion in enumerate(completions)])
    ended = await database.change(
        _EndedNow, COMPLETE_MANY, said=said, actor=actor, sign_of_life=True, **retry.parameters
    )
    for done in ended:
        _note(database, done.outcome, done.task_status, done.attempts, done.ran_ms)
    by_lease = {done.lease_id: done for done in ended}

    def found(completion: Completion) -> Ended | None:
        done = by_lease.get(completion.lease_id or "")
        return _among_many(done) if done and completion.worker_id in (None, done.worker_id) else None

    async def alone(completion: Completion) -> Ended:
        task_id = await tasks.of_lease(database, completion.lease_id)
        done = await complete(database, task_id, completion, retry=retry, actor=actor)
        return _ended(completion.lease_id or "", done)

    return await settled(completions, found, alone)


async def of_lease(database: Database, lease: Lease) -> Completed | None:
    """How the attempt of this lease was completed, if it was; without content that is in the object store by now."""
    before = await database.row(
        _CompletedBefore, COMPLETED_BEFORE, task_id=lease.task_id, lease_id=lease.id, worker_id=lease.worker_id
    )
    return before and _whole(before, None)


def _whole(before: _CompletedBefore, said: Completion | None) -> Completed:
    """What was answered before. Content that is in the object store by now is taken from who says the same again."""
    artifact, result = before.artifact, before.result
    if said and artifact.content is None and said.artifact_id is None:
        content = _content(said)
        if content is not None and artifact.sha256 == hashlib.sha256(content.encode()).hexdigest():
            artifact = replace(artifact, content=content)
    if before.output_shared:
        result = replace(result, output=artifact.content)
    return Completed(before.task, artifact, result)


def _content(completion: Completion) -> str | None:
    """What the artifact holds that a completion makes."""
    if completion.output is None and completion.status == "error":
        return completion.error_message
    return completion.output


def _said(place: int, completion: Completion, retry: Retry, task_id: str | None = None) -> dict[str, Any]:
    """A completion as the statement reads it."""
    return {
        "place": place,
        "task_id": task_id,
        "lease_id": completion.lease_id,
        "worker_id": completion.worker_id,
        "outcome": completion.status,
        "retryable": completion.retryable and retry.errors,
        "output": completion.output,
        "error_message": completion.error_message,
        "content": _content(completion) if completion.artifact_id is None else None,
        "metrics": msgspec.to_builtins(completion.metrics or Metrics()),
        "artifact_id": completion.artifact_id or new_id(),
        "uploaded": completion.artifact_id is not None,
        "artifact_type": completion.artifact_type,
        "artifact_tags": completion.artifact_tags,
        "result_id": new_id(),
    }


def _among_many(done: _EndedNow) -> Ended:
    return Ended(
        done.lease_id, done.task_id, done.task_status, done.attempts, done.retry_at, done.artifact_id, done.result_id
    )


def _ended(lease_id: str, done: Completed) -> Ended:
    task = done.task
    return Ended(lease_id, task.id, task.status, task.attempts, task.retry_at, done.artifact.id, done.result.id)


def _note(database: Database, outcome: Outcome, task_status: TaskStatus, attempts: int, ran_ms: int) -> None:
    """Count an attempt that has just ended; its worker can take another task now."""
    database.meters.ended(outcome, ran_ms / 1000, task_status=task_status, attempts=attempts)
    database.on_offer()
