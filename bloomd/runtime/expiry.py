"""Expiry: the clock ends a lease whose worker has fallen silent or takes too long, and its task goes back to the queue.

Two clocks run. A lease *expires* when its worker stays silent for its ttl. An attempt that a worker claimed, or that
was pushed to one, also has a *deadline* (`claims.py`): a worker that heartbeats for ever without finishing loses it.
"""

from collections.abc import Iterable

import msgspec
from psycopg.rows import TupleRow

from bloomd.postgres import Connection
from bloomd.runtime.database import Database, rows
from bloomd.runtime.ids import Id
from bloomd.runtime.model import AttemptOutcome, Retry, TaskStatus

# Leases ended by one statement of the sweeper: it holds the locks of as many tasks for some milliseconds.
SWEEP_BATCH = 500

# Ends the leases whose time is over, or all of one worker, a batch at a time. A task that somebody holds locked is
# being dealt with: skip it.
EXPIRE = """
WITH due AS (
    SELECT leases.id
      FROM leases
      JOIN llm_tasks ON llm_tasks.id = leases.task_id
     WHERE leases.status = 'active'
       AND (leases.worker_id = %(worker_id)s
            OR least(leases.expires_at, leases.deadline_at) <= bloom_now_ms() AND bloom_leads(%(epoch)s))
     LIMIT %(batch)s
       FOR UPDATE OF llm_tasks SKIP LOCKED
), lease AS (
    UPDATE leases
       SET status = 'expired', ended_at = bloom_now_ms(),
           outcome = CASE WHEN leases.deadline_at <= bloom_now_ms() THEN 'deadline' ELSE 'expired' END,
           reason = coalesce(%(reason)s, CASE WHEN leases.deadline_at <= bloom_now_ms()
                                              THEN 'the attempt took longer than it may'
                                              ELSE 'expired, no heartbeat for ' || leases.ttl_seconds || ' s' END)
      FROM due
     WHERE leases.id = due.id
       AND leases.status = 'active'
       AND (leases.worker_id = %(worker_id)s OR least(leases.expires_at, leases.deadline_at) <= bloom_now_ms())
    RETURNING leases.*
), moved AS (
    UPDATE llm_tasks
       SET status        = CASE WHEN attempts < max_attempts THEN 'queued' ELSE 'dead' END,
           retry_at      = CASE WHEN attempts < max_attempts THEN lease.ended_at
                                + bloom_retry_delay_ms(attempts, %(retry_ms)s, %(retry_max_ms)s) END,
           ready         = attempts >= max_attempts,
           progress      = CASE WHEN attempts < max_attempts THEN NULL ELSE progress END,
           progress_at   = CASE WHEN attempts < max_attempts THEN NULL ELSE progress_at END,
           error_message = 'the lease of worker ' || lease.worker_id || ' ended: ' || lease.reason,
           lease_id      = CASE WHEN attempts < max_attempts THEN NULL ELSE lease.id END,
           worker_id     = CASE WHEN attempts < max_attempts THEN NULL ELSE lease.worker_id END,
           updated_at    = lease.ended_at
      FROM lease
     WHERE llm_tasks.id = lease.task_id AND llm_tasks.lease_id = lease.id AND llm_tasks.status IN ('leased', 'running')
    RETURNING llm_tasks.id, llm_tasks.status, llm_tasks.attempts
), worker AS (
    SELECT id FROM workers WHERE id IN (SELECT worker_id FROM lease) ORDER BY id FOR UPDATE
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), lease.ended_at, 'lease.expired', 'task', lease.task_id, %(actor)s,
           lease.reason || ': worker ' || lease.worker_id || ', lease ' || lease.id
               || coalesce(', task now ' || moved.status, '')
      FROM lease
      LEFT JOIN moved ON moved.id = lease.task_id
     WHERE (SELECT count(*) FROM worker) >= 0
)
SELECT lease.id AS lease_id, lease.task_id, lease.worker_id, lease.outcome, lease.reason,
       lease.ended_at - lease.started_at AS ran_ms, moved.status AS task_status, moved.attempts
  FROM lease
  LEFT JOIN moved ON moved.id = lease.task_id
"""


# A task that says it is leased while no lease is: no statement of ours makes one, but the Node.js runtime does, or a
# hand in psql, and nobody else would ever look at it again. Only one that has been so for a while: a task that was
# leased while this statement waited has a lease that its snapshot cannot see, but a new `updated_at`, checked anew.
RESCUE = """
WITH stranded AS (
    SELECT llm_tasks.id
      FROM llm_tasks
     WHERE status IN ('leased', 'running')
       AND updated_at < bloom_now_ms() - 10000
       AND NOT EXISTS (SELECT FROM leases WHERE leases.task_id = llm_tasks.id AND leases.status = 'active')
       AND bloom_leads(%(epoch)s)
     LIMIT %(batch)s
       FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE llm_tasks
       SET status        = CASE WHEN attempts < max_attempts THEN 'queued' ELSE 'dead' END,
           error_message = 'it was under way without a lease',
           progress      = NULL,
           progress_at   = NULL,
           ready         = coalesce(greatest(not_before, retry_at) <= bloom_now_ms(), true),
           lease_id      = NULL,
           worker_id     = NULL,
           updated_at    = bloom_now_ms()
      FROM stranded
     WHERE llm_tasks.id = stranded.id
    RETURNING llm_tasks.id, llm_tasks.status
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'task.rescued', 'task', id, 'bloomd',
           'under way without a lease, now ' || status
      FROM moved
)
SELECT id FROM moved
"""

# The time of these has come: from now on a claim finds them. No change of the task that anybody would audit.
PROMOTE = """
WITH due AS (
    SELECT id
      FROM llm_tasks
     WHERE status = 'queued' AND NOT ready
       AND (greatest(not_before, retry_at) <= bloom_now_ms() OR greatest(not_before, retry_at) IS NULL)
       AND bloom_leads(%(epoch)s)
     LIMIT %(batch)s
       FOR UPDATE SKIP LOCKED
)
UPDATE llm_tasks SET ready = true FROM due WHERE llm_tasks.id = due.id RETURNING llm_tasks.id
"""


class Expired(msgspec.Struct, frozen=True):
    lease_id: str
    task_id: str
    worker_id: str
    outcome: AttemptOutcome
    reason: str
    ran_ms: int
    task_status: TaskStatus | None
    """Where the task went; None when it had a newer lease, which an old one never touches."""
    attempts: int | None


async def expire(database: Database, *, retry: Retry, epoch: int) -> list[Expired]:
    """End a batch of the leases whose time is over, as the leader of this epoch; their tasks are queued again, or dead.

    Fewer than `SWEEP_BATCH` means that none is left but those that somebody else is dealing with.
    """
    expired = await database.change(
        Expired, EXPIRE, batch=SWEEP_BATCH, worker_id=None, reason=None, actor="bloomd", epoch=epoch, **retry.parameters
    )
    if expired:
        database.on_offer()
    note(database, expired)
    return expired


async def rescue(database: Database, *, epoch: int) -> list[str]:
    """Free a batch of the tasks that are under way without an active lease; their ids."""
    rescued = await database.change(Id, RESCUE, batch=SWEEP_BATCH, epoch=epoch)
    if rescued:
        database.on_offer()
        database.meters.stranded(len(rescued))
    return [task.id for task in rescued]


async def promote(database: Database, *, epoch: int) -> int:
    """Let claims find a batch of the tasks that have waited for their time; how many."""
    promoted = await database.rows(Id, PROMOTE, batch=SWEEP_BATCH, epoch=epoch)
    if promoted:
        database.on_offer()
    return len(promoted)


async def end_all_of(
    connection: Connection[TupleRow], worker_id: str, *, retry: Retry, reason: str, actor: str
) -> list[Expired]:
    """End a batch of the leases of one worker before their time, in the caller's transaction."""
    parameters: dict[str, object] = {
        "batch": SWEEP_BATCH,
        "worker_id": worker_id,
        "reason": reason,
        "actor": actor,
        "epoch": None,
        **retry.parameters,
    }
    return await rows(connection, Expired, EXPIRE, parameters)


def note(database: Database, ended: Iterable[Expired]) -> None:
    """Count leases that were ended, once that has been committed."""
    for each in ended:
        database.meters.ended(
            each.outcome, each.ran_ms / 1000, task_status=each.task_status, attempts=each.attempts or 0
        )
