"""How much of everything there is: a snapshot, at most a second old, that any number of askers share."""

from typing import Any

import msgspec
import trio

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
       bloom_now_ms()                                                                          AS at
"""

# What a page or a monitor reads every few seconds need not be fresher.
FRESH_SECONDS = 1.0


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
    """Counts at most once a second, and once for all who ask meanwhile."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = trio.Lock()
        self._latest: Stats | None = None
        self._counted_at = -FRESH_SECONDS

    async def read(self) -> Stats:
        """The counts as they were within the last second.

        Raises:
            Unavailable: no database at the moment.
        """
        async with self._lock:
            if self._latest is None or trio.current_time() - self._counted_at >= FRESH_SECONDS:
                began = trio.current_time()
                self._latest = await self._database.row(Stats, COUNT)
                self._counted_at = began
            if self._latest is None:
                raise AssertionError("a count gives a row")
            return self._latest
