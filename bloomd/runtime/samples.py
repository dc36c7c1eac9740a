"""The queue in the course of the last day: how full it was, and how much went through.

The leader takes a sample every half minute. How much went through is told by numbers that only grow (0018), so what
happened between two samples is their difference: while nobody led, or no daemon ran, there is no sample, and the next
one tells what happened in all that time. Whoever makes a rate of it divides by the time that lies between the two.
"""

import msgspec
import trio

from bloomd.runtime.database import Database

INTERVAL_SECONDS = 30.0

# A day, and an hour more, so that a day is whole whenever it is looked at.
KEPT_MS = 25 * 3_600_000

# About four hours of samples: some milliseconds' work.
BATCH = 500

# Counts what the queue and the workers are now. The workers that count are those that get a task without labels.
SAMPLE = """
INSERT INTO samples (at, queued, leased, running, free, created, completed, failed, dead, cancelled)
SELECT bloom_now_ms(),
       coalesce(sum(change) FILTER (WHERE name = 'task:queued'), 0),
       coalesce(sum(change) FILTER (WHERE name = 'task:leased'), 0),
       coalesce(sum(change) FILTER (WHERE name = 'task:running'), 0),
       (SELECT coalesce(sum(capacity - active_leases), 0)
          FROM workers
         WHERE bloom_misfit(id, status, capabilities, active_leases, capacity, cordoned, draining, NULL, '[]') IS NULL),
       coalesce(sum(change) FILTER (WHERE name = 'created'), 0),
       coalesce(sum(change) FILTER (WHERE name = 'ended:completed'), 0),
       coalesce(sum(change) FILTER (WHERE name = 'ended:failed'), 0),
       coalesce(sum(change) FILTER (WHERE name = 'ended:dead'), 0),
       coalesce(sum(change) FILTER (WHERE name = 'ended:cancelled'), 0)
  FROM tallies
HAVING bloom_leads(%(epoch)s)
    ON CONFLICT (at) DO NOTHING
RETURNING at
"""

# Those that are too old; and those of a time that has not come yet, since the clock was set back: the next ones would
# come before them, with higher numbers.
PRUNE = """
DELETE FROM samples
 WHERE at = ANY (ARRAY(SELECT at
                         FROM samples
                        WHERE (at < bloom_now_ms() - %(kept_ms)s OR at > bloom_now_ms()) AND bloom_leads(%(epoch)s)
                        LIMIT %(batch)s
                          FOR UPDATE SKIP LOCKED))
RETURNING at
"""

# The one before the first that is asked for is read as well, so that the first, too, can say what happened since.
HISTORY = """
WITH known AS (
    SELECT at, queued, leased, running, free,
           created   - lag(created)   OVER before AS created,
           completed - lag(completed) OVER before AS completed,
           failed    - lag(failed)    OVER before AS failed,
           dead      - lag(dead)      OVER before AS dead,
           cancelled - lag(cancelled) OVER before AS cancelled
      FROM samples
     WHERE at >= coalesce((SELECT max(at) FROM samples WHERE at < %(since)s), 0)
    WINDOW before AS (ORDER BY at)
)
SELECT * FROM known WHERE at >= %(since)s ORDER BY at
"""


class Sample(msgspec.Struct, frozen=True):
    at: int
    """Epoch milliseconds."""
    queued: int
    leased: int
    running: int
    free: int
    """Leases that the workers could take at once."""
    created: int | None
    """This and all below: how many since the sample before; None where there is none before."""
    completed: int | None
    failed: int | None
    dead: int | None
    cancelled: int | None


class _Row(msgspec.Struct, frozen=True):
    at: int


async def history(database: Database, since: int = 0) -> list[Sample]:
    """The samples from this time on (epoch ms), oldest first."""
    return await database.rows(Sample, HISTORY, since=since)


class Sampler:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, epoch: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take samples for ever, as the leader of this epoch.

        Raises:
            Unavailable: the database is away.
        """
        task_status.started()
        while True:
            began = trio.current_time()
            await self.sample(epoch)
            await trio.sleep_until(began + INTERVAL_SECONDS)

    async def sample(self, epoch: int) -> None:
        """One round: forget what is too old, then look."""
        old = {"kept_ms": KEPT_MS, "epoch": epoch, "batch": BATCH}
        while len(await self._database.rows(_Row, PRUNE, **old)) == BATCH:
            pass
        await self._database.rows(_Row, SAMPLE, epoch=epoch)
