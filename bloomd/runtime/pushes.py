"""Pushes: a task is leased to a worker that has a URL, and handed to its agent by a call.

::

    lease ──▶ the call is open: `renew` ──▶ the agent calls back, or answers with its result: `completion.py`
                       │
                       ├──▶ it takes no connection   `give_back`      no attempt; the third in a row: worker offline
                       ├──▶ it cannot do it (503)    `give_back`      no attempt
                       └──▶ anything else is wrong   `completion.py`  an attempt that failed

All of it is fenced by the lease: whoever was first has decided, and the others change nothing. While the call is open
it is bloomd that prolongs the lease, and that is no sign of life of the worker. That somebody takes its connections is
counted on the worker's row (`unreached`): a worker that cannot be pushed to gets nothing until its health poll is
answered (`liveness.py`).
"""

from collections.abc import Sequence

import msgspec

from bloomd.runtime import leases, releases, workers
from bloomd.runtime.claims import GRACE_SECONDS
from bloomd.runtime.database import Database
from bloomd.runtime.ids import Id
from bloomd.runtime.leases import Leased, Wanted
from bloomd.runtime.liveness import TOO_OFTEN_UNREACHED
from bloomd.runtime.model import AttemptOutcome, Lease, LeaseStatus, Retry
from bloomd.runtime.refusals import Invalid, NoWorker, Refusal
from bloomd.runtime.releases import Release

# Characters of an error that a lease keeps, as with a completion.
REASON_LIMIT = 1000

# Tasks that one round of automatic pushes finds; when it finds so many, the next round follows at once.
ROUND = 64

# What has become of these leases.
STANDING = """
SELECT id, status, outcome FROM leases WHERE id = ANY (%(ids)s)
"""

# Prolongs leases by their ttl from now, but not past the deadline of their attempt, as a heartbeat does; what a
# heartbeat says of the worker and of the task's progress, this does not.
RENEW = """
WITH task AS (
    SELECT llm_tasks.id, llm_tasks.lease_id
      FROM llm_tasks
      JOIN leases ON leases.task_id = llm_tasks.id AND leases.id = llm_tasks.lease_id
     WHERE leases.id = ANY (%(ids)s) AND llm_tasks.status || '' IN ('leased', 'running')
     ORDER BY llm_tasks.id
       FOR UPDATE OF llm_tasks
)
UPDATE leases
   SET expires_at = least(bloom_now_ms() + ttl_seconds * 1000::bigint, deadline_at)
  FROM task
 WHERE leases.id = task.lease_id
   AND leases.status || '' = 'active'
   AND least(leases.expires_at, leases.deadline_at) > bloom_now_ms()
RETURNING leases.id
"""

# How long a task waits that is given back once more within one attempt. Given back tries share the attempt's number.
DELAY = """
SELECT bloom_retry_delay_ms(count(*)::integer, %(retry_ms)s, %(retry_max_ms)s) AS ms
  FROM leases
  JOIN leases AS this ON this.task_id = leases.task_id AND this.attempt = leases.attempt
 WHERE this.id = %(lease_id)s AND (leases.outcome = 'released' OR leases.id = this.id)
"""

NOT_REACHED = """
WITH known AS (
    SELECT id, status, unreached FROM workers WHERE id = %(worker_id)s FOR UPDATE
), worker AS (
    UPDATE workers
       SET unreached = known.unreached + 1,
           status    = CASE WHEN known.unreached + 1 >= %(too_often)s THEN 'offline' ELSE known.status END
      FROM known
     WHERE workers.id = known.id
    RETURNING workers.id, workers.status, workers.unreached, known.status AS before
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.offline', 'worker', id, %(actor)s,
           unreached || ' pushes in a row did not reach it'
      FROM worker
     WHERE status = 'offline' AND before <> 'offline'
)
SELECT status = 'offline' AND before <> 'offline' AS now_offline FROM worker
"""

REACHED = """
UPDATE workers SET unreached = 0 WHERE id = %(worker_id)s AND unreached > 0 RETURNING id
"""

# Tasks that a worker with a URL could take now, the most urgent first: of the lists that a claim knows (`claims.py`),
# those that somebody can work on who has room, and of each as many as all have room for.
PUSHABLE = """
WITH RECURSIVE worker AS MATERIALIZED (
    SELECT id, coalesce(capabilities -> 'labels', '[]') AS labels, capacity - active_leases AS free
      FROM workers
     WHERE url <> ''
       AND bloom_misfit(id, status, capabilities, active_leases, capacity, cordoned, draining, NULL, '[]') IS NULL
       AND bloom_queue_is_open()
       AND bloom_leads(%(epoch)s)
), list AS (
    SELECT first.*
      FROM (SELECT '' AS pin WHERE EXISTS (SELECT FROM worker) UNION ALL SELECT id FROM worker) AS whose,
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
), fitting AS (
    SELECT list.pin, list.kind, sum(worker.free) AS free
      FROM list
      JOIN worker ON worker.labels @> list.labels AND list.pin IN ('', worker.id)
     GROUP BY list.pin, list.kind
)
SELECT task.id
  FROM fitting,
       LATERAL (SELECT id, priority, created_at
                  FROM llm_tasks
                 WHERE status = 'queued' AND ready
                   AND coalesce(pinned_worker_id, '') = fitting.pin
                   AND bloom_kind(labels) = fitting.kind
                   AND coalesce(not_before, 0) <= bloom_now_ms()
                   AND coalesce(retry_at, 0) <= bloom_now_ms()
                 ORDER BY priority DESC, created_at, id
                 LIMIT least(fitting.free, %(round)s)) AS task
 ORDER BY task.priority DESC, task.created_at, task.id
 LIMIT %(round)s
"""


class Standing(msgspec.Struct, frozen=True):
    """What has become of a lease."""

    id: str
    status: LeaseStatus
    outcome: AttemptOutcome | None


class _Delay(msgspec.Struct, frozen=True):
    ms: int


class _NotReached(msgspec.Struct, frozen=True):
    now_offline: bool


async def lease(database: Database, wanted: Wanted, *, actor: str) -> Leased:
    """Hand a queued task to the best worker that has a URL and can take it now, or to the worker named.

    Raises:
        NotFound: no such task.
        Conflict: the task is not queued, or not before its time.
        Invalid: the worker named has no URL.
        NoWorker: nobody suitable has free capacity, or the queue is paused.
    """
    if leased := await attempt(database, wanted, actor=actor):
        return leased
    await leases.refuse(database, wanted.task_id)
    if wanted.worker_id is not None and not (await workers.one(database, wanted.worker_id)).url:
        raise Invalid(
            f"Worker {wanted.worker_id} has no url, so nothing can be pushed to it: it claims its tasks itself"
        )
    raise NoWorker("No available worker with free capacity and a url")


async def attempt(database: Database, wanted: Wanted, *, actor: str) -> Leased | None:
    """Lease the task for a push, if that can be done now."""
    return await leases.attempt(database, msgspec.structs.replace(wanted, grace=GRACE_SECONDS), actor=actor)


async def pushable(database: Database, *, epoch: int) -> list[str]:
    """The ids of tasks that could be pushed now, the most urgent first, as the leader of this epoch sees it.

    At least one of them can be leased, as far as nobody else was quicker.
    """
    return [task.id for task in await database.rows(Id, PUSHABLE, round=ROUND, epoch=epoch)]


async def standing(database: Database, lease_ids: Sequence[str]) -> dict[str, Standing]:
    """What has become of these leases, by id."""
    return {lease.id: lease for lease in await database.rows(Standing, STANDING, ids=list(lease_ids))}


async def renew(database: Database, lease_ids: Sequence[str]) -> None:
    """Prolong those of these leases that are current. No entry of the audit trail says so."""
    await database.rows(Id, RENEW, ids=list(lease_ids))


async def give_back(database: Database, lease: Lease, reason: str, *, retry: Retry, actor: str) -> None:
    """Queue the task again without counting the attempt; the more often in a row, the later it can be leased.

    Raises:
        LeaseLost, TaskCancelled: the lease is not the current one any more, so there is nothing to give back.
    """
    [delay] = await database.rows(_Delay, DELAY, lease_id=lease.id, **retry.parameters)
    back = Release(lease.id, reason[:REASON_LIMIT], retry_after_seconds=delay.ms / 1000)
    [answer] = await releases.release(database, [back], actor=actor)
    if isinstance(answer, Refusal):
        raise answer


async def not_reached(database: Database, worker_id: str, *, actor: str) -> bool:
    """Count a connection that a worker did not take; whether it went offline for that."""
    counted = await database.rows(
        _NotReached, NOT_REACHED, worker_id=worker_id, too_often=TOO_OFTEN_UNREACHED, actor=actor
    )
    offline = any(worker.now_offline for worker in counted)
    if offline:
        database.on_change()
    return offline


async def reached(database: Database, worker_id: str) -> None:
    """Forget the connections that a worker did not take: it has taken one."""
    await database.rows(Id, REACHED, worker_id=worker_id)
