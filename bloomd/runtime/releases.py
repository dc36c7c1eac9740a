"""Releases: a worker gives tasks back that it will not finish. They are queued again, and no attempt is counted."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta
from psycopg.types.json import Jsonb

from bloomd.runtime import tasks
from bloomd.runtime.database import Database
from bloomd.runtime.fencing import decided, refuse_lost, settled
from bloomd.runtime.model import Lease, Name, WorkerName
from bloomd.runtime.refusals import Refusal

# What is not given back has no row in the answer.
RELEASE = """
WITH asked AS (
    SELECT leases.task_id, back.lease_id AS asked_lease_id, back.worker_id, back.reason, back.retry_after_seconds
      FROM jsonb_to_recordset(%(back)s) AS back (
               lease_id varchar, worker_id varchar, reason varchar, retry_after_seconds numeric)
      JOIN leases ON leases.id = back.lease_id
), task AS (
    SELECT llm_tasks.id, llm_tasks.lease_id, asked.worker_id, asked.reason, asked.retry_after_seconds
      FROM llm_tasks
      JOIN asked ON asked.task_id = llm_tasks.id
     WHERE llm_tasks.status || '' IN ('leased', 'running')
       AND llm_tasks.lease_id = asked.asked_lease_id
     ORDER BY llm_tasks.id
       FOR UPDATE OF llm_tasks
), lease AS (
    UPDATE leases
       SET status = 'released', outcome = 'released', ended_at = bloom_now_ms(), reason = task.reason
      FROM task
     WHERE leases.id = task.lease_id
       AND leases.status || '' = 'active'
       AND least(leases.expires_at, leases.deadline_at) > bloom_now_ms()
       AND leases.worker_id = coalesce(task.worker_id, leases.worker_id)
    RETURNING leases.*, (task.retry_after_seconds * 1000)::bigint AS retry_after_ms
), moved AS (
    UPDATE llm_tasks
       SET status = 'queued', lease_id = NULL, worker_id = NULL, attempts = greatest(llm_tasks.attempts - 1, 0),
           retry_at = lease.ended_at + nullif(lease.retry_after_ms, 0),
           ready = coalesce(lease.retry_after_ms, 0) = 0,
           progress = NULL, progress_at = NULL, updated_at = lease.ended_at
      FROM lease
     WHERE llm_tasks.id = lease.task_id
), worker AS (
    SELECT id FROM workers WHERE id IN (SELECT worker_id FROM lease) ORDER BY id FOR UPDATE
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), ended_at, 'task.released', 'task', task_id, %(actor)s,
           'by worker ' || worker_id || ', lease ' || id || coalesce(': ' || reason, '')
      FROM lease
     WHERE (SELECT count(*) FROM worker) >= 0
)
SELECT * FROM lease
"""


RELEASED_BEFORE = """
SELECT *
  FROM leases
 WHERE id = %(id)s
   AND outcome = 'released'
   AND (%(worker_id)s::varchar IS NULL OR worker_id = %(worker_id)s)
"""


class Release(msgspec.Struct, frozen=True):
    """One task that a worker gives back."""

    lease_id: Name
    reason: Annotated[str, Meta(max_length=1000)] | None = None
    retry_after_seconds: (
        Annotated[int, Meta(ge=0, le=7 * 86400)] | Annotated[float, Meta(ge=0, le=7 * 86400)] | None
    ) = None
    """Nobody gets the task before that; 0 for at once."""
    worker_id: WorkerName | None = None
    """When named, the lease must be this worker's."""


async def release(database: Database, back: Sequence[Release], *, actor: str) -> list[Lease | Refusal]:
    """Give tasks back to the queue, each named by its lease; for each the ended lease, or why not, in order.

    Giving back the same lease again gives the first answer.
    """
    released = {lease.id: lease for lease in await _give_back(database, back, actor)}
    return await settled(
        back, lambda each: released.get(each.lease_id), lambda each: _release_alone(database, each, actor)
    )


async def _release_alone(database: Database, back: Release, actor: str) -> Lease:
    task_id = await tasks.of_lease(database, back.lease_id)

    async def give_back() -> Lease | None:
        given = await _give_back(database, [back], actor)
        if given:
            return given[0]
        return await database.row(Lease, RELEASED_BEFORE, id=back.lease_id, worker_id=back.worker_id)

    async def refuse() -> None:
        task = await tasks.one(database, task_id)
        await refuse_lost(database, task, back.lease_id, back.worker_id)

    return await decided(give_back, refuse)


async def _give_back(database: Database, back: Sequence[Release], actor: str) -> list[Lease]:
    given = await database.change(Lease, RELEASE, back=Jsonb(msgspec.to_builtins(back)), actor=actor)
    if given:
        database.on_offer()
    for lease in given:
        ran_ms = (lease.ended_at or lease.started_at) - lease.started_at
        database.meters.ended("released", ran_ms / 1000, task_status="queued", attempts=lease.attempt or 0)
    return given
