"""Claims: a worker asks for whatever there is for it, and waits a while when there is nothing.

The queue, as a claim sees it, is a few ordered lists: the tasks that are *ready* (due, and not leased) stand in one
list for each kind of label set, and for each worker that tasks are pinned to (`llm_tasks_ready`). A claim finds the
first list, the next one, and so on by a probe of the index each, drops those whose labels the worker lacks, and takes
the first tasks of the others. It never reads past tasks that are for somebody else or for another time.

One claim locks the worker first, which nobody waits for while holding what this one wants: tasks that are locked are
passed over. So claims wait for each other only for the turn of a context, and the worker's free capacity cannot change
meanwhile. Of each list it locks as many as it may take of all, and leaves the rest to others; who passed these over in
that moment may find nothing although there is something, so that an empty claim is tried once more.

A worker with `capabilities.sessions` takes a task only when no other of the same context is under way. Among such
workers the database keeps that (`leases_one_serial_per_context`); towards a lease that somebody asks for at the same
moment by the id of a task (`leases.py`), which waits for no context, it is as the claim's snapshot sees it. Whoever of
them completed the latest task of a context has its conversation, and the next task of that context is for nobody else
of them as long as it is there and does not turn the task away (`bloom_holder`).

Who has to wait does so in `waiting_room.py`.
"""

import msgspec
import trio
from psycopg.types.json import Jsonb

from bloomd.runtime import releases
from bloomd.runtime.database import Database
from bloomd.runtime.ids import Id
from bloomd.runtime.model import Lease, Task

# Beyond the time that a task allows an attempt: to start, to stop, and to send the result.
GRACE_SECONDS = 30

# Who asks, or waits, is online. Gives those of them that are known.
SIGN_OF_LIFE = """
WITH worker AS (
    SELECT id, status
      FROM workers
     WHERE id = ANY (%(worker_ids)s)
       AND (status <> 'online' OR least(coalesce(alive_at, 0), coalesce(asked_at, 0)) < bloom_now_ms() - 1000)
     ORDER BY id
       FOR UPDATE
), alive AS (
    UPDATE workers
       SET status = 'online', alive_at = bloom_now_ms(), asked_at = bloom_now_ms(), last_heartbeat = bloom_now_ms()
      FROM worker
     WHERE workers.id = worker.id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.online', 'worker', id, %(actor)s, 'it asked for a task'
      FROM worker
     WHERE status <> 'online'
)
SELECT id FROM workers WHERE id = ANY (%(worker_ids)s)
"""

CLAIM = """
WITH RECURSIVE list AS (
    SELECT first.*
      FROM (VALUES (''), (%(worker_id)s)) AS whose (pin),
           LATERAL (SELECT whose.pin, bloom_kind(labels) AS kind, labels
                      FROM llm_tasks
                     WHERE status = 'queued' AND ready AND coalesce(pinned_worker_id, '') = whose.pin
                     ORDER BY bloom_kind(labels)
                     LIMIT 1) AS first
    UNION ALL
    SELECT next.*
      FROM list,
           LATERAL (SELECT list.pin, bloom_kind(labels) AS kind, labels
                      FROM llm_tasks
                     WHERE status = 'queued' AND ready AND coalesce(pinned_worker_id, '') = list.pin
                       AND bloom_kind(labels) > list.kind
                     ORDER BY bloom_kind(labels)
                     LIMIT 1) AS next
), worker AS MATERIALIZED (
    SELECT id, capabilities, capacity - active_leases AS free,
           coalesce(capabilities -> 'sessions' = 'true'::jsonb, false) AS serial
      FROM workers
     WHERE id = %(worker_id)s
       AND bloom_misfit(id, status, capabilities, active_leases, capacity, cordoned, draining, NULL, '[]') IS NULL
       AND bloom_queue_is_open()
       AND EXISTS (SELECT FROM list WHERE coalesce(%(labels)s::jsonb, capabilities -> 'labels', '[]') @> list.labels)
       FOR UPDATE
), fitting AS MATERIALIZED (
    SELECT list.pin, list.kind, worker.free, worker.serial
      FROM list, worker
     WHERE coalesce(%(labels)s::jsonb, worker.capabilities -> 'labels', '[]') @> list.labels
), locked AS MATERIALIZED (
    SELECT task.*, fitting.serial
      FROM fitting,
           LATERAL (SELECT llm_tasks.*
                      FROM llm_tasks
                     WHERE status = 'queued' AND ready
                       AND coalesce(pinned_worker_id, '') = fitting.pin
                       AND bloom_kind(labels) = fitting.kind
                       AND coalesce(not_before, 0) <= bloom_now_ms()
                       AND coalesce(retry_at, 0) <= bloom_now_ms()
                       AND NOT EXISTS (SELECT FROM leases AS held
                                        WHERE held.status = 'active' AND held.task_id = llm_tasks.id)
                       AND NOT (fitting.serial AND context_id <> ''
                                AND EXISTS (SELECT FROM leases AS held
                                             WHERE held.status = 'active' AND held.context_id = llm_tasks.context_id))
                       AND (NOT fitting.serial
                            OR coalesce(bloom_holder(context_id, pinned_worker_id, labels), %(worker_id)s)
                               = %(worker_id)s)
                     ORDER BY priority DESC, created_at, id
                     LIMIT least(fitting.free, %(max)s)
                       FOR UPDATE SKIP LOCKED) AS task
), task AS (
    SELECT *
      FROM (SELECT locked.*,
                   row_number() OVER (PARTITION BY CASE WHEN serial AND context_id <> '' THEN context_id ELSE id END
                                      ORDER BY priority DESC, created_at, id) AS turn
              FROM locked) AS each
     WHERE turn = 1
     ORDER BY priority DESC, created_at, id
     LIMIT (SELECT least(free, %(max)s) FROM worker)
), lease AS (
    INSERT INTO leases (id, task_id, worker_id, started_at, last_heartbeat, expires_at, ttl_seconds, status, context_id,
                        attempt, deadline_at, serial)
    SELECT gen_random_uuid(), task.id, %(worker_id)s, now_ms, now_ms, least(now_ms + ttl * 1000::bigint, deadline), ttl,
           'active', task.context_id, task.attempts + 1, deadline, task.serial AND task.context_id <> ''
      FROM task, bloom_now_ms() AS now_ms,
           LATERAL (SELECT (task.policy ->> 'timeout_sec')::integer AS timeout) AS policy,
           LATERAL (SELECT now_ms + (timeout + %(grace)s) * 1000::bigint AS deadline) AS ends,
           LATERAL (SELECT coalesce(%(ttl_seconds)s::integer, greatest(300, timeout + 60)) AS ttl) AS lasts
     ORDER BY md5(task.context_id), task.id  -- one order of waiting for the turn of a context
        ON CONFLICT DO NOTHING
    RETURNING *
), moved AS (
    UPDATE llm_tasks
       SET status = 'leased', lease_id = lease.id, worker_id = lease.worker_id, attempts = lease.attempt,
           retry_at = NULL, progress = NULL, progress_at = NULL, updated_at = lease.started_at
      FROM lease
     WHERE llm_tasks.id = lease.task_id
    RETURNING llm_tasks.*
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), started_at, 'task.leased', 'task', task_id, %(actor)s,
           'worker ' || worker_id || ', lease ' || id || ', attempt ' || attempt
      FROM lease
)
SELECT to_jsonb(lease) AS lease, to_jsonb(moved) AS task,
       EXISTS (SELECT FROM conversations
                WHERE context = md5(moved.context_id) AND moved.context_id <> ''
                  AND worker_id = lease.worker_id) AS holds_conversation,
       lease.started_at - greatest(task.updated_at, task.not_before, task.retry_at) AS waited_ms,
       (SELECT count(*) FROM locked) > (SELECT count(*) FROM lease) AS more
  FROM lease
  JOIN moved ON moved.id = lease.task_id
  JOIN task  ON task.id = lease.task_id
 ORDER BY moved.priority DESC, moved.created_at, moved.id
"""


class Claim(msgspec.Struct, frozen=True):
    """What a worker asks for."""

    worker_id: str
    max: int = 1
    labels: list[str] | None = None
    """What it can do now, instead of the labels that it registered with."""
    ttl_seconds: int | None = None


class Claimed(msgspec.Struct, frozen=True):
    lease: Lease
    task: Task
    holds_conversation: bool = False
    """Whether this worker has the conversation of the task's context: a session that it keeps of it is up to date."""


class _ClaimedNow(Claimed, frozen=True, kw_only=True):
    waited_ms: int
    more: bool
    """Whether tasks were locked for a moment that this claim then left to others, who passed them over meanwhile."""


async def sign_of_life(database: Database, worker_ids: list[str], *, actor: str) -> set[str]:
    """Note that these workers are there; those of them that are known."""
    return {worker.id for worker in await database.rows(Id, SIGN_OF_LIFE, worker_ids=worker_ids, actor=actor)}


async def claim(database: Database, asked: Claim, *, actor: str) -> list[Claimed]:
    """Lease to a worker what there is for it now and it has room for: the highest priority first, then the oldest.

    A cancellation that comes too late gives the tasks back: nobody would work on them.
    """
    parameters: dict[str, object] = {
        "worker_id": asked.worker_id,
        "max": asked.max,
        "labels": None if asked.labels is None else Jsonb(asked.labels),
        "ttl_seconds": asked.ttl_seconds,
        "grace": GRACE_SECONDS,
        "actor": actor,
    }
    claimed: list[_ClaimedNow] = []
    with trio.CancelScope(shield=True):  # until it is known what was leased; a statement has its time limit
        claimed = await database.change(_ClaimedNow, CLAIM, **parameters)
        if not claimed:
            claimed = await database.change(_ClaimedNow, CLAIM, **parameters)
    if any(each.more for each in claimed):
        database.on_offer()
    database.meters.claimed(each.waited_ms / 1000 for each in claimed)
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
    except trio.Cancelled:
        with trio.CancelScope(shield=True):
            await give_back(database, [each.lease.id for each in claimed], actor=actor)
        raise
    return [Claimed(each.lease, each.task, each.holds_conversation) for each in claimed]


async def give_back(database: Database, lease_ids: list[str], *, actor: str) -> None:
    """Queue again what was claimed for somebody who is not there any more."""
    if lease_ids:
        gone = [releases.Release(id, reason="the claim's client went away") for id in lease_ids]
        await releases.release(database, gone, actor=actor)
