"""Where workers wait for a task: each in the room of the node that it asked.

When there may be a task (an offer, on whichever node, or a second has passed) one statement finds out who of all that
wait could have one, and only these ask again (`claims.py`).
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import trio
from psycopg.types.json import Jsonb

from bloomd.errors import Unavailable
from bloomd.runtime.claims import Claim, Claimed, claim, sign_of_life
from bloomd.runtime.database import Database
from bloomd.runtime.ids import Id
from bloomd.runtime.refusals import NotFound
from bloomd.runtime.wakeups import Wakeups

# Should every notification be lost, somebody who waits gets a new task this late.
POLL_SECONDS = 1.0

# Who waits counts as somebody who asks for tasks for a minute (`bloom_holder`).
REFRESH_SECONDS = 20.0

# So few that asking who of them could have a task costs more than letting all of them try.
FEW = 4
# More are called for the next offer, which comes at once when one of these got something.
MANY = 64

# Of those who wait, longest first, the ones for whom there is a task by its labels, its pin, its context's turn and
# who has its conversation; of each list no more than it has tasks. Who is called in vain all the same stands behind the
# others from then on. Of a longer list than is looked at, a few are called whatever the first of its tasks wait for.
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
                               greatest(count(*) FILTER (WHERE in_turn AND holder IS NULL),
                                        CASE count(*) WHEN %(many)s THEN %(few)s END) AS of_nobody,
                               array_agg(holder) FILTER (WHERE in_turn) AS holders
                          FROM (SELECT bloom_holder(context_id, NULL, labels) AS holder,
                                       context_id = '' OR NOT EXISTS (
                                           SELECT FROM leases AS held
                                            WHERE held.status = 'active'
                                              AND held.context_id = llm_tasks.context_id) AS in_turn
                                  FROM llm_tasks
                                 WHERE status = 'queued' AND ready AND coalesce(pinned_worker_id, '') = ''
                                   AND bloom_kind(labels) = list.kind
                                 ORDER BY priority DESC, created_at, id
                                 LIMIT %(many)s) AS few) AS tasks,
               LATERAL ((SELECT waiting.id FROM waiting WHERE NOT serial AND waiting.labels @> list.labels
                          ORDER BY waiting.place LIMIT tasks.all_of_them)
                        UNION ALL
                        (SELECT waiting.id FROM waiting WHERE serial AND waiting.labels @> list.labels
                          ORDER BY waiting.place LIMIT tasks.of_nobody)
                        UNION ALL
                        (SELECT waiting.id FROM waiting WHERE serial AND waiting.id = ANY (tasks.holders))) AS first
        UNION ALL
        SELECT waiting.id
          FROM waiting
         WHERE EXISTS (SELECT
                         FROM llm_tasks
                        WHERE status = 'queued' AND ready AND coalesce(pinned_worker_id, '') = waiting.id)) AS could
"""


class WaitingRoom:
    """Those who wait for a task at this node, in the order in which they came."""

    def __init__(self, database: Database, wakeups: Wakeups, *, refresh_seconds: Callable[[], float]) -> None:
        """`refresh_seconds`: how often it is noted at the least that who waits is alive, and asks for tasks."""
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
                refresh_at = trio.current_time() + min(self._refresh_seconds(), REFRESH_SECONDS)

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
        could = await self._database.rows(Id, COULD_CLAIM, waiting=Jsonb(waiting), many=MANY, few=FEW)
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
