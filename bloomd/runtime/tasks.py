"""Tasks: queue them, look at them, cancel them, queue them again."""

from collections.abc import Sequence
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from bloomd.runtime.database import Database
from bloomd.runtime.fencing import decided
from bloomd.runtime.ids import Id, new_id
from bloomd.runtime.model import AttemptOutcome, NewTask, Task, TaskStatus
from bloomd.runtime.pages import END_OF_TIME, Page
from bloomd.runtime.refusals import Conflict, NotFound

# Creates the tasks that are not there yet (by idempotency key), with an audit entry each.
CREATE = """
WITH new AS (
    INSERT INTO llm_tasks (id, context_id, agent_slug, prompt, context_hints, policy, desired_format, status,
                           created_at, updated_at, attempts, max_attempts,
                           priority, labels, pinned_worker_id, not_before, ready, idempotency_key)
    SELECT id, context_id, agent_slug, prompt, context_hints, policy, desired_format, 'queued',
           now_ms, now_ms, 0, max_attempts,
           priority, labels, pinned_worker_id, not_before, coalesce(not_before <= now_ms, true), idempotency_key
      FROM jsonb_to_recordset(%(tasks)s) AS task (
               id varchar, context_id varchar, agent_slug varchar, prompt text, context_hints jsonb, policy jsonb,
               desired_format varchar, max_attempts integer,
               priority smallint, labels jsonb, pinned_worker_id varchar, not_before bigint, idempotency_key varchar),
           bloom_now_ms() AS now_ms
     ORDER BY idempotency_key, id  -- one order of waiting for whoever creates the same ones at the same moment
        ON CONFLICT (idempotency_key) DO NOTHING
    RETURNING *
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), created_at, 'task.created', 'task', id, %(actor)s,
           concat_ws(', ', 'agent ' || nullif(agent_slug, ''), 'context ' || nullif(context_id, ''))
      FROM new
)
SELECT * FROM new
"""

BY_KEY = """
SELECT * FROM llm_tasks WHERE idempotency_key = ANY (%(keys)s)
"""

ONE = """
SELECT * FROM llm_tasks WHERE id = %(id)s
"""

WAITS = """
SELECT id FROM llm_tasks WHERE id = %(id)s AND greatest(not_before, retry_at) > bloom_now_ms()
"""

# With the times of the latest attempt of each that is listed, and of no others. The index has the md5 of what may be
# long; the comparison itself stands where the planner makes no guess of it: it would multiply the two, expect next to
# nothing, and fetch and sort all there is of an agent.
LIST = """
WITH task AS (
    SELECT *
      FROM llm_tasks
     WHERE (created_at, id) < (%(at)s, %(before)s)
       AND created_at >= %(since)s
       AND (%(status)s::varchar IS NULL OR status = %(status)s)
       AND (%(worker_id)s::varchar IS NULL OR worker_id = %(worker_id)s)
       AND (%(context_id)s::varchar IS NULL
            OR md5(context_id) = md5(%(context_id)s) AND context_id <> ''
               AND coalesce(context_id = %(context_id)s, false))
       AND (%(agent_slug)s::varchar IS NULL
            OR md5(agent_slug) = md5(%(agent_slug)s) AND agent_slug <> ''
               AND coalesce(agent_slug = %(agent_slug)s, false))
     ORDER BY created_at DESC, id DESC
     LIMIT %(limit)s
)
SELECT task.*, attempt.started_at, attempt.ended_at
  FROM task
  LEFT JOIN LATERAL (SELECT started_at, ended_at
                       FROM leases
                      WHERE task_id = task.id
                      ORDER BY started_at DESC, id DESC
                      LIMIT 1) AS attempt ON true
 ORDER BY created_at DESC, task.id DESC
"""

# Each agent that tasks are for, with its latest task. The index has them one after the other, so that this takes one
# step for each agent and not for each task; by their hashes, so that of very many these are any.
AGENTS = """
WITH RECURSIVE agent AS (
    (SELECT agent_slug, created_at
       FROM llm_tasks
      WHERE agent_slug <> ''
      ORDER BY md5(agent_slug), created_at DESC, id DESC
      LIMIT 1)
    UNION ALL
    SELECT next.agent_slug, next.created_at
      FROM agent,
           LATERAL (SELECT agent_slug, created_at
                      FROM llm_tasks
                     WHERE agent_slug <> '' AND md5(agent_slug) > md5(agent.agent_slug)
                     ORDER BY md5(agent_slug), created_at DESC, id DESC
                     LIMIT 1) AS next
), first AS (
    SELECT agent_slug, created_at FROM agent LIMIT 200
)
SELECT agent_slug, created_at AS latest_at FROM first ORDER BY agent_slug
"""

# A task that has ended otherwise than well, or waits for its retry, is as good as new.
REQUEUE = """
WITH task AS (
    UPDATE llm_tasks
       SET status = 'queued', attempts = 0, retry_at = NULL, error_message = NULL, progress = NULL, progress_at = NULL,
           lease_id = NULL, worker_id = NULL, updated_at = bloom_now_ms(),
           ready = coalesce(not_before <= bloom_now_ms(), true)
     WHERE id = %(id)s
       AND (status || '' IN ('failed', 'dead', 'cancelled') OR status || '' = 'queued' AND retry_at > bloom_now_ms())
    RETURNING *
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), updated_at, 'task.requeued', 'task', id, %(actor)s, '' FROM task
)
SELECT * FROM task
"""

# Ends the lease with the task, so that its worker learns at the next heartbeat. A lease that was made while this
# statement waited for the task cannot be seen: then nothing happens, and it is run again (`fencing.py`).
CANCEL = """
WITH task AS (
    SELECT id, status, lease_id FROM llm_tasks
     WHERE id = %(id)s AND status || '' IN ('queued', 'leased', 'running')
       FOR UPDATE
), lease AS (
    UPDATE leases
       SET status = 'released', outcome = 'cancelled', ended_at = bloom_now_ms()
      FROM task
     WHERE leases.id = task.lease_id AND leases.status || '' = 'active'
    RETURNING leases.task_id, leases.ended_at - leases.started_at AS ran_ms
), moved AS (
    UPDATE llm_tasks
       SET status = 'cancelled', retry_at = NULL, updated_at = bloom_now_ms()
      FROM task
     WHERE llm_tasks.id = task.id AND (task.status = 'queued' OR EXISTS (SELECT FROM lease))
    RETURNING llm_tasks.*
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), updated_at, 'task.cancelled', 'task', id, %(actor)s,
           'it was ' || (SELECT status FROM task) || coalesce(' on worker ' || worker_id, '')
      FROM moved
)
SELECT to_jsonb(moved) AS task, lease.ran_ms
  FROM moved
  LEFT JOIN lease ON lease.task_id = moved.id
"""

# The attempts of a task, latest first. Leases from before `outcome` was kept tell it by their status.
HISTORY = """
SELECT attempt, worker_id, id AS lease_id, started_at, last_heartbeat, deadline_at, ended_at, reason AS error,
       coalesce(outcome, CASE status WHEN 'released' THEN 'success'
                                     WHEN 'failed'   THEN 'error'
                                     WHEN 'expired'  THEN 'expired' END) AS outcome
  FROM leases
 WHERE task_id = %(id)s
 ORDER BY started_at DESC, id DESC
 LIMIT 100
"""

OF_LEASE = """
SELECT task_id AS id FROM leases WHERE id = %(lease_id)s
"""


class ListedTask(Task, frozen=True, kw_only=True):
    """A task, and when its latest attempt began and ended."""

    started_at: int | None
    """None when there was no attempt yet."""
    ended_at: int | None
    """None also while the attempt is under way."""


class Agent(msgspec.Struct, frozen=True):
    """An agent that tasks are for."""

    agent_slug: str
    latest_at: int
    """When its latest task was created."""


class Created(msgspec.Struct, frozen=True):
    task: Task
    new: bool
    """False when a task with the same idempotency key was there before."""


class _Cancelled(msgspec.Struct, frozen=True):
    task: Task
    ran_ms: int | None
    """None when it was not under way."""


class Attempt(msgspec.Struct, frozen=True):
    """One lease of a task, and how it ended."""

    attempt: int | None
    worker_id: str
    lease_id: str
    started_at: int
    last_heartbeat: int | None
    deadline_at: int | None
    ended_at: int | None
    outcome: AttemptOutcome | None
    """None while it is under way. A released attempt does not count."""
    error: str | None


async def create(database: Database, tasks: Sequence[NewTask], *, actor: str) -> list[Created]:
    """Queue these tasks, all or none, and give them back in the same order.

    Of tasks with one idempotency key only the first is created, whoever asked for it and when.
    """
    asked = [(new_id(), task) for task in tasks]
    rows = Jsonb([_row(id, task) for id, task in asked])
    created = {row.id: row for row in await database.change(Task, CREATE, tasks=rows, actor=actor)}
    if created:
        database.on_offer()
        database.meters.created(len(created))
    keys = [task.idempotency_key for id, task in asked if id not in created]
    earlier = {row.idempotency_key: row for row in await database.rows(Task, BY_KEY, keys=keys)} if keys else {}
    return [
        Created(created[id], new=True) if id in created else Created(earlier[task.idempotency_key], new=False)
        for id, task in asked
    ]


async def one(database: Database, id: str) -> Task:
    """One task.

    Raises:
        NotFound: there is none with this id.
    """
    if task := await database.row(Task, ONE, id=id):
        return task
    raise NotFound("Task not found")


async def history(database: Database, id: str) -> list[Attempt]:
    """The latest attempts of a task, latest first."""
    return await database.rows(Attempt, HISTORY, id=id)


async def of_lease(database: Database, lease_id: str | None) -> str:
    """The id of the task that a lease is, or was, of.

    Raises:
        NotFound: there is no such lease.
    """
    if task := await database.row(Id, OF_LEASE, lease_id=lease_id):
        return task.id
    raise NotFound("Lease not found")


async def waits(database: Database, id: str) -> bool:
    """Whether a task may not be leased yet, for its `not_before` or for its retry delay."""
    return await database.row(Id, WAITS, id=id) is not None


async def listing(
    database: Database,
    page: Page,
    *,
    status: TaskStatus | None = None,
    worker_id: str | None = None,
    context_id: str | None = None,
    agent_slug: str | None = None,
    since: int = 0,
    until: int = END_OF_TIME,
) -> list[ListedTask]:
    """A page of tasks, newest first; created at `since` or later and before `until`, in epoch milliseconds."""
    page = page.before(until)
    return await database.listing(
        ListedTask,
        LIST,
        status=status,
        worker_id=worker_id,
        context_id=context_id,
        agent_slug=agent_slug,
        since=since,
        at=page.at,
        before=page.id,
        limit=page.limit,
    )


async def agents(database: Database) -> list[Agent]:
    """The agents that there are tasks for, by name, 200 at the most."""
    return await database.rows(Agent, AGENTS)


async def requeue(database: Database, id: str, *, actor: str) -> Task:
    """Queue an ended task, or one that waits for its retry, as if it were new.

    Raises:
        NotFound: there is none with this id.
        Conflict: it is queued already, under way, or completed.
    """
    if requeued := await database.change(Task, REQUEUE, id=id, actor=actor):
        database.on_offer()
        return requeued[0]
    task = await one(database, id)
    raise Conflict(f"Task status is '{task.status}', expected 'failed', 'dead' or 'cancelled'")


async def cancel(database: Database, id: str, *, actor: str) -> Task:
    """End a task that has not ended yet. Its worker learns that at its next heartbeat; its result is refused.

    Raises:
        NotFound: there is none with this id.
        Conflict: it has ended already.
    """

    async def end() -> _Cancelled | None:
        cancelled = await database.change(_Cancelled, CANCEL, id=id, actor=actor)
        return cancelled[0] if cancelled else None

    async def refuse() -> None:
        task = await one(database, id)
        if task.status not in ("queued", "leased", "running"):
            raise Conflict(f"Task status is '{task.status}', expected 'queued', 'leased' or 'running'")

    done = await decided(end, refuse)
    database.on_offer()
    ran = None if done.ran_ms is None else done.ran_ms / 1000
    database.meters.cancelled(ran, attempts=done.task.attempts)
    return done.task


def _row(id: str, task: NewTask) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(task)
    if isinstance(task.context_hints, dict):
        row["context_hints"] = [f"{key}: {_as_text(value)}" for key, value in task.context_hints.items()]
    return {"id": id, **row}


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
