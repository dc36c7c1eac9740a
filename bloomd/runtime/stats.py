"""How much of everything there is: a snapshot, at most a second old, that any number of askers share."""

from typing import Any

import msgspec
import trio

from bloomd.errors import Unavailable
from bloomd.runtime.database import Database

COUNT = """
SELECT (SELECT coalesce(jsonb_object_agg(status, tasks), '{}')
          FROM (SELECT status, count(*) AS tasks FROM llm_tasks GROUP BY status) AS each)      AS by_status,
       (SELECT min(created_at) FROM llm_tasks WHERE status = 'queued')                         AS oldest_queued_at,
       (SELECT count(*) FROM leases)                                                           AS leases,
       (SELECT count(*) FROM leases WHERE status = 'active')                                   AS active_leases,
       (SELECT count(*) FROM leases
         WHERE status = 'expired' AND ended_at > bloom_now_ms() - 3600000)                     AS rescued_last_hour,
       (SELECT count(*) FROM workers)                                                          AS workers,
       (SELECT count(*) FROM workers WHERE status = 'online')                                  AS workers_online,
       (SELECT coalesce(sum(bloom_capacity(capabilities)), 0)
          FROM workers WHERE status = 'online')                                                AS capacity,
       NOT bloom_queue_is_open()                                                               AS paused,
       bloom_now_ms()                                                                          AS at
"""

# What a page or a monitor reads every few seconds need not be fresher; and counting a long history, which takes a
# second for some million tasks, shall not take more than a twentieth of the server's time.
FRESH_SECONDS = 1.0
SHARE = 20


class Stats(msgspec.Struct, frozen=True):
    by_status: dict[str, int]
    oldest_queued_at: int | None
    leases: int
    active_leases: int
    rescued_last_hour: int
    workers: int
    workers_online: int
    capacity: int
    """Leases that the online workers may hold together."""
    paused: bool
    """Whether the queue hands out nothing at the moment."""
    at: int
    """When this was counted, by the database's clock."""

    def as_json(self) -> dict[str, Any]:
        """The answer of `GET /stats`."""
        return {
            "tasks": {"total": sum(self.by_status.values()), "by_status": self.by_status},
            "leases": {"total": self.leases, "active": self.active_leases},
            "workers": {"total": self.workers, "online": self.workers_online},
        }


class Counter:
    """Counts when somebody asks, once for all who ask meanwhile, and not again while the last count is fresh.

    The counting is a task of its own (`run`), so that whoever asks can go away at any moment: cancelling a statement on
    a server that is frozen takes seconds.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked = trio.Event()
        self._answered = trio.Event()
        self._latest: Stats | Unavailable = Unavailable("nothing has been counted yet")
        self._fresh_until = -1.0

    async def run(self) -> None:
        """Count whenever it is asked for, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            began = trio.current_time()
            try:
                [self._latest] = await self._database.rows(Stats, COUNT)
            except Unavailable as error:
                self._latest = error
                self._fresh_until = began
            else:
                took = trio.current_time() - began
                self._fresh_until = began + max(FRESH_SECONDS, SHARE * took)
            self._answered.set()
            self._answered = trio.Event()

    async def read(self) -> Stats:
        """The counts as they were a moment ago.

        Raises:
            Unavailable: no database at the moment.
        """
        if self._database.away:
            raise Unavailable(self._database.away)
        if trio.current_time() >= self._fresh_until:
            self._asked.set()
            await self._answered.wait()
        if isinstance(self._latest, Unavailable):
            raise self._latest
        return self._latest
