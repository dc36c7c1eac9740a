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
moment by the id of a task (`leases.py`), which waits for no context, it is as the claim's snapshot sees it.

Who has to wait stands in the waiting room of its node (`WaitingRoom`). When there may be a task (an offer, on whichever
node, or a second has passed) one statement finds out who of all that wait could have one, and only these ask again.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import msgspec
import trio
from psycopg.types.json import Jsonb

from bloomd.errors import Unavailable
from bloomd.runtime import releases
from bloomd.runtime.database import Database
from bloomd.runtime.model import Lease, Task
from bloomd.runtime.refusals import NotFound
from bloomd.runtime.tasks import Id
from bloomd.runtime.wakeups import Wakeups

# Beyond the time that a task allows an attempt: to start, to stop, and to send the result.
GRACE_SECONDS = 30

# Should every notification be lost, somebody who waits gets a new task this late.
POLL_SECONDS = 1.0

# So few that asking who of them could have a task costs more than letting all of them try.
FEW = 4
# More are called for the next offer, which comes at once when one of these got something.
MANY = 64

# Who asks, or waits, is online. Gives those of them that are known.
SIGN_OF_LIFE = """
WITH worker AS (
    SELECT id, status
      FROM workers
     WHERE id = ANY (%(worker_ids)s) AND (status <> 'online' OR coalesce(alive_at, 0) < bloom_now_ms() - 1000)
     ORDER BY id
       FOR UPDATE
), alive AS (
    UPDATE workers
       SET status = 'online', alive_at = bloom_now_ms(), last_heartbeat = bloom_now_ms()
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
    INSERT INTO leases (id, task_id, worker_id, started_at, expires_at, ttl_seconds, status, context_id, attempt,
                        deadline_at, serial)
    SELECT gen_random_uuid(), task.id, %(worker_id)s, now_ms, least(now_ms + ttl * 1000::bigint, deadline), ttl,
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
       lease.started_at - greatest(task.updated_at, task.not_before, task.retry_at) AS waited_ms,
       (SELECT count(*) FROM locked) > (SELECT count(*) FROM lease) AS more
  FROM lease
  JOIN moved ON moved.id = lease.task_id
  JOIN task  ON task.id = lease.task_id
 ORDER BY moved.priority DESC, moved.created_at, moved.id
"""

# Of those who wait, longest first, the ones for whom there is a task by its labels, its pin and its context's turn; of
# each list no more than it has tasks. Who is called in vain all the same stands behind the others from then on.
COULD_CLAIM = """
WITH RECURSIVE list AS (
    (SELECT bloom_kind(labels) AS kind, labels
       FROM llm_tasks
      WHERE status = 'queued' AND ready AND coalesce(pinned_worker_id, '') = ''
      ORDER BY bloom_kind(labels)
      LIMIT 1)
    UNION ALL
    SELECT next.*
      FROM list,
           LATERAL (SELECT bloom_kind(labels) AS kind, labels
                      FROM llm_tasks
                     WHERE status = 'queued' AND ready AND coalesce(pinned_worker_id, '') = ''
                       AND bloom_kind(labels) > list.kind
                     ORDER BY bloom_kind(labels)
                     LIMIT 1) AS next
), waiting AS MATERIALIZED (
    SELECT workers.id, waiting.place, coalesce(waiting.labels, capabilities -> 'labels', '[]') AS labels,
           coalesce(capabilities -> 'sessions' = 'true'::jsonb, false) AS serial
      FROM ROWS FROM (jsonb_to_recordset(%(waiting)s) AS (id varchar, labels jsonb))
           WITH ORDINALITY AS waiting (id, labels, place)
      JOIN workers ON workers.id = waiting.id
     WHERE bloom_misfit(workers.id, status, capabilities, active_leases, capacity, cordoned, draining,
                        NULL, '[]') IS NULL
       AND bloom_queue_is_open()
)
SELECT DISTINCT could.id
  FROM (SELECT first.id
          FROM list,
               LATERAL (SELECT count(*) AS all_of_them,
                               count(*) FILTER (WHERE context_id = '' OR NOT EXISTS (
                                   SELECT FROM leases AS held
                                    WHERE held.status = 'active' AND held.context_id = few.context_id)) AS in_turn
                          FROM (SELECT context_id
                                  FROM llm_tasks
                                 WHERE status = 'queued' AND ready AND coalesce(pinned_worker_id, '') = ''
                                   AND bloom_kind(labels) = list.kind
                                 ORDER BY priority DESC, created_at, id
                                 LIMIT %(many)s) AS few) AS tasks,
               LATERAL ((SELECT waiting.id FROM waiting WHERE NOT serial AND waiting.labels @> list.labels
                          ORDER BY waiting.place LIMIT tasks.all_of_them)
                        UNION ALL
                        (SELECT waiting.id FROM waiting WHERE serial AND waiting.labels @> list.labels
                          ORDER BY waiting.place LIMIT tasks.in_turn)) AS first
        UNION ALL
        SELECT waiting.id
          FROM waiting
         WHERE EXISTS (SELECT
                         FROM llm_tasks
                        WHERE status = 'queued' AND ready AND coalesce(pinned_worker_id, '') = waiting.id)) AS could
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


class _ClaimedNow(Claimed, frozen=True):
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
    return [Claimed(each.lease, each.task) for each in claimed]


async def give_back(database: Database, lease_ids: list[str], *, actor: str) -> None:
    """Queue again what was claimed for somebody who is not there any more."""
    if lease_ids:
        gone = [releases.Release(id, reason="the claim's client went away") for id in lease_ids]
        await releases.release(database, gone, actor=actor)


class WaitingRoom:
    """Those who wait for a task at this node, in the order in which they came."""

    def __init__(self, database: Database, wakeups: Wakeups, *, refresh_seconds: Callable[[], float]) -> None:
        """`refresh_seconds`: how often it is noted that who waits is alive."""
        self._database = database
        self._wakeups = wakeups
        self._refresh_seconds = refresh_seconds
        self._waiting: dict[_Waiting, None] = {}
        self._offered = trio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<WaitingRoom {len(self._waiting)} waiting>"

    def __len__(self) -> int:
        return len(self._waiting)

    async def claim(self, asked: Claim, *, wait_seconds: float, actor: str) -> list[Claimed]:
        """What `claim` gives, as soon as it gives anything; nothing after `wait_seconds`, or when the room is closed.

        Raises:
            NotFound: no such worker.
            Unavailable: the database is away.
        """
        if asked.worker_id not in await sign_of_life(self._database, [asked.worker_id], actor=actor):
            raise NotFound("Worker not found")
        until = trio.current_time() + wait_seconds
        with self._place(asked) as called:
            while True:
                called.reset()
                if claimed := await claim(self._database, asked, actor=actor):
                    self.offer()  # there may be more, for the others
                    return claimed
                self._waiting[called] = self._waiting.pop(called)  # behind the others
                if not self._closed:
                    with trio.move_on_at(until):
                        await called.wait()
                if trio.current_time() >= until or self._closed:
                    return []

    def offer(self) -> None:
        """There may be a task for somebody."""
        self._offered.set()

    def close(self) -> None:
        """The daemon stops: nobody waits any more."""
        self._closed = True
        self._call(self._waiting)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Call those who could have a task, for as long as anybody waits, until cancelled.

        Raises:
            Unavailable: the database is away; who waits is called, asks again, and is told so.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_offers_on)
            task_status.started()
            try:
                await self._call_for_ever()
            except Unavailable:
                self._call(self._waiting)
                raise

    async def _call_for_ever(self) -> None:
        refresh_at = 0.0
        while True:
            with trio.move_on_after(POLL_SECONDS):
                await self._offered.wait()
            self._offered = trio.Event()
            if self._waiting:
                self._call(await self._could_claim())
            if self._waiting and trio.current_time() >= refresh_at:
                workers = [each.asked.worker_id for each in self._waiting]
                await sign_of_life(self._database, workers, actor="bloomd")
                refresh_at = trio.current_time() + self._refresh_seconds()

    async def _pass_offers_on(self) -> None:
        while True:
            await self._wakeups.offers.wait()
            self.offer()

    @contextmanager
    def _place(self, asked: Claim) -> Generator["_Waiting"]:
        waiting = _Waiting(asked)
        self._waiting[waiting] = None
        try:
            yield waiting
        finally:
            del self._waiting[waiting]

    async def _could_claim(self) -> list["_Waiting"]:
        if len(self._waiting) <= FEW:
            return list(self._waiting)
        waiting = [{"id": each.asked.worker_id, "labels": each.asked.labels} for each in self._waiting]
        could = await self._database.rows(Id, COULD_CLAIM, waiting=Jsonb(waiting), many=MANY)
        chosen = {worker.id for worker in could}
        return [each for each in self._waiting if each.asked.worker_id in chosen]

    def _call(self, some: Iterable["_Waiting"]) -> None:
        for each in some:
            each.call()


class _Waiting:
    """One who waits, and whether it was called since it asked last."""

    def __init__(self, asked: Claim) -> None:
        self.asked = asked
        self._called = trio.Event()

    def reset(self) -> None:
        self._called = trio.Event()

    def call(self) -> None:
        self._called.set()

    async def wait(self) -> None:
        await self._called.wait()
