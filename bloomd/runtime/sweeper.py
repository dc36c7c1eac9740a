"""The sweeper: finds what time has decided (leases that expired, workers that fell silent) and acts on it.

The leader does it. Should another node still sweep as well, a lease that one of them is ending is passed over by the
other, and what it does in an epoch that is over changes nothing.
"""

from collections.abc import Callable

import msgspec
import structlog
import trio

from bloomd.runtime import expiry, liveness, stats
from bloomd.runtime.database import Database
from bloomd.runtime.model import Retry

log = structlog.stdlib.get_logger(__name__)


class Rules(msgspec.Struct, frozen=True):
    """By what the sweeper judges; asked anew for each round. Times in seconds."""

    interval: float
    offline_after: float
    retry: Retry
    mirrored: bool


class Sweeper:
    def __init__(self, database: Database, rules: Callable[[], Rules]) -> None:
        self._database = database
        self._rules = rules

    async def run(self, epoch: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep for ever, as the leader of this epoch.

        Raises:
            Unavailable: the database is away.
        """
        while True:
            await self.sweep(epoch)
            task_status.started()
            await trio.sleep(self._rules().interval)

    async def sweep(self, epoch: int) -> int:
        """One round; how many leases it ended."""
        rules = self._rules()
        ended = 0
        while True:
            batch = await expiry.expire(self._database, retry=rules.retry, epoch=epoch)
            for lost in batch:
                log.warning(
                    "lease expired",
                    task=lost.task_id,
                    lease=lost.lease_id,
                    worker=lost.worker_id,
                    reason=lost.reason,
                    task_status=lost.task_status,
                )
            ended += len(batch)
            if len(batch) < expiry.SWEEP_BATCH:
                break
        while await expiry.promote(self._database, epoch=epoch) == expiry.SWEEP_BATCH:
            pass
        for task in await expiry.rescue(self._database, epoch=epoch):
            log.warning("task rescued", task=task, reason="it was under way without a lease")
        for worker in await liveness.mark_silent(
            self._database, offline_after=rules.offline_after, mirrored=rules.mirrored, epoch=epoch
        ):
            log.warning("worker offline", worker=worker, reason="silent")
        await stats.add_up(self._database, epoch=epoch)
        return ended
