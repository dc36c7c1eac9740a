"""How much of everything there is: a snapshot, at most a second old, that any number of askers share."""

from collections.abc import Callable
from typing import LiteralString

import msgspec
import trio

from bloomd.errors import Unavailable, one_line
from bloomd.runtime.backups import KNOWN, Known
from bloomd.runtime.database import Database
from bloomd.runtime.objects import BACKLOG

COUNT: LiteralString = f"""
SELECT (SELECT coalesce(jsonb_object_agg(status, tasks), '{{}}')
          FROM (SELECT substr(name, 6) AS status, sum(change) AS tasks
                  FROM tallies
                 WHERE name LIKE 'task:%%'
                 GROUP BY name
                HAVING sum(change) <> 0) AS each)                                              AS by_status,
       (SELECT created_at FROM llm_tasks WHERE status = 'queued' AND ready
         ORDER BY created_at LIMIT 1)                                                          AS oldest_queued_at,
       (SELECT coalesce(sum(change), 0) FROM tallies WHERE name = 'lease')::bigint             AS leases,
       (SELECT count(*) FROM leases WHERE status = 'active')                                   AS active_leases,
       (SELECT count(*) FROM leases
         WHERE status = 'expired' AND ended_at > bloom_now_ms() - 3600000)                     AS rescued_last_hour,
       (SELECT count(*) FROM workers)                                                          AS workers,
       (SELECT count(*) FROM workers WHERE status = 'online')                                  AS workers_online,
       (SELECT coalesce(sum(capacity), 0) FROM workers WHERE status = 'online')                AS capacity,
       (SELECT coalesce(sum(capacity - active_leases), 0)
          FROM workers
         WHERE bloom_misfit(id, status, capabilities, active_leases, capacity, cordoned, draining, NULL, '[]') IS NULL
       )                                                                                       AS free,
       (SELECT count(*) FROM workers WHERE cordoned)                                           AS cordoned,
       (SELECT count(*) FROM workers WHERE draining)                                           AS draining,
       NOT bloom_queue_is_open()                                                               AS paused,
       (SELECT until FROM queue_state)                                                         AS paused_until,
       (SELECT reason FROM queue_state)                                                        AS pause_reason,
       backlog.*,
       (SELECT to_jsonb(known) FROM ({KNOWN}) AS known)                                       AS backup,
       bloom_now_ms()                                                                          AS at
  FROM ({BACKLOG}) AS backlog
"""

# Adds the tallies up, when there are so many that reading them takes a while. What is written meanwhile stays beside.
ADD_UP = """
WITH gone AS (
    DELETE FROM tallies
     WHERE bloom_leads(%(epoch)s) AND (SELECT count(*) FROM tallies) > %(many)s
    RETURNING name, change
)
INSERT INTO tallies
SELECT name, sum(change) FROM gone GROUP BY name HAVING sum(change) <> 0
RETURNING name
"""

# A snapshot that a page or a monitor reads need not be fresher, however many of them read it.
FRESH_SECONDS = 1.0

# Longer than a count ever takes; who asks while nobody counts is told so.
ANSWER_SECONDS = 10.0

# About a millisecond's reading.
MANY_TALLIES = 2000


class Stats(msgspec.Struct, frozen=True):
    by_status: dict[str, int]
    oldest_queued_at: int | None
    """Of those that could be claimed, were there a worker; None when there is none."""
    leases: int
    active_leases: int
    rescued_last_hour: int
    workers: int
    workers_online: int
    capacity: int
    """Leases that the online workers may hold together."""
    free: int
    """Leases that could be had at once, by tasks that need no label."""
    cordoned: int
    draining: int
    paused: bool
    """Whether the queue hands out nothing at the moment."""
    paused_until: int | None
    """When the pause ends, or has ended, by itself."""
    pause_reason: str | None
    to_move: int
    """Contents that the object store does not have yet; this and the next two up to some thousands."""
    to_move_bytes: int
    to_remove: int
    """Objects that nothing refers to any more."""
    backup: Known | None
    """What is known of the backups that are made by schedule."""
    at: int
    """When this was counted, by the database's clock."""


async def add_up(database: Database, *, epoch: int) -> None:
    """Keep the tallies few, as the leader of this epoch."""
    await database.rows(_Name, ADD_UP, epoch=epoch, many=MANY_TALLIES)


class _Name(msgspec.Struct, frozen=True):
    name: str


class Counter:
    """Counts when somebody asks, once for all who ask meanwhile, and not again while the last count is fresh.

    The counting is a task of its own (`run`), so that whoever asks can go away at any moment: cancelling a statement on
    a server that is frozen takes seconds.
    """

    def __init__(self, database: Database, too_large: Callable[[], int | None] = lambda: None) -> None:
        """`too_large`: from how many bytes on a content belongs in the object store; None when there is none."""
        self._database = database
        self._too_large = too_large
        self._asked = trio.Event()
        self._answered = trio.Event()
        self._latest: Stats | Unavailable = Unavailable("nothing has been counted yet")
        self._fresh_until = -1.0
        self._forgotten = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Count whenever it is asked for, until cancelled.

        Raises:
            Unavailable, Misconfigured: as the database does, or anything else that is wrong with the counting; whoever
                asked is answered first.
        """
        task_status.started()
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            self._forgotten = False
            fresh_until = trio.current_time() + FRESH_SECONDS
            try:
                [self._latest] = await self._database.rows(Stats, COUNT, least=self._too_large())
                self._fresh_until = -1.0 if self._forgotten else fresh_until
            except Exception as error:
                self._latest = Unavailable(f"nothing could be counted: {one_line(error)}")
                raise
            finally:
                self._answered.set()
                self._answered = trio.Event()

    def forget(self) -> None:
        """Count anew for the next who asks: somebody has changed something and wants to see it."""
        self._forgotten = True
        self._fresh_until = -1.0

    async def read(self) -> Stats:
        """The counts as they were a moment ago.

        Raises:
            Unavailable: no database at the moment.
        """
        if self._database.away:
            raise Unavailable(self._database.away)
        if trio.current_time() >= self._fresh_until:
            self._asked.set()
            with trio.move_on_after(ANSWER_SECONDS) as patience:
                await self._answered.wait()
            if patience.cancelled_caught:
                raise Unavailable(f"nothing has been counted for {ANSWER_SECONDS:.0f} s")
        if isinstance(self._latest, Unavailable):
            raise self._latest
        return self._latest
