"""Retention: what ended many days ago is deleted, when the settings say how many. By default everything is kept.

The leader does it, a batch at a time, so that nobody notices: each batch is one statement, reads an index from the
oldest on, and passes over what somebody holds locked. A task goes with its results, artifacts and leases, and with its
idempotency key. A task that has not ended is never touched, however old it is.

Whatever the settings say, uploads that came to nothing are deleted, and so is content in pieces whose task is gone
(`uploads.py`): a few at a time, because that of one artifact can be as much as the rest of many tasks.

What the object store has of an artifact is removed after its row (`objects.py`). An artifact whose content is anywhere
else outlives its task: its row is the only way there.

The statement that deletes counts in the audit trail. One entry for each day tells how much went, and under which
setting: an entry for each round would soon be most of what there is to prune.
"""

from collections.abc import Callable
from typing import LiteralString

import msgspec
import structlog
import trio

from bloomd.runtime import uploads
from bloomd.runtime.database import Database
from bloomd.runtime.model import TaskStatus
from bloomd.runtime.objects import SCHEME
from bloomd.runtime.pages import END_OF_TIME

log = structlog.stdlib.get_logger(__name__)

ENDED: tuple[TaskStatus, ...] = ("completed", "failed", "dead", "cancelled")

# Days are what is promised: nobody waits for the minute.
ROUND_SECONDS = 60.0

# Deleted by one statement, in some dozen milliseconds; then the others have the server for as long.
BATCH = 500
PAUSE_SECONDS = 0.05

DAY_MS = 86_400_000

# The entry of this day, of this kind and under this setting.
TODAY = """
WITH today AS (
    SELECT day,
           md5(concat_ws(' ', 'retention.pruned', %(kind)s::text, day, %(keep_days)s::float8))::uuid::varchar AS entry
      FROM to_char(to_timestamp(bloom_now_ms() / 1000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day
)
"""

RECORD = """
audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT today.entry, bloom_now_ms(), 'retention.pruned', %(kind)s, today.day, 'bloomd',
           jsonb_build_object('keep_days', %(keep_days)s::float8, 'pruned', count(*))::text
      FROM today, gone
     GROUP BY today.entry, today.day
        ON CONFLICT (id) DO UPDATE
       SET detail = jsonb_set(audit_logs.detail::jsonb, '{pruned}', to_jsonb(
               (audit_logs.detail::jsonb -> 'pruned')::bigint + (excluded.detail::jsonb -> 'pruned')::bigint))::text
)
"""

# A task was created before it ended, so the index by status, which has the time of creation, is good for both. Tasks up
# to the cursor (`at`, `after`) were looked at in this round. Ids are handed on as an array, because a join would be
# planned by what is known of tables that have just grown or shrunk, and might read all of them.
PRUNE_TASKS: LiteralString = f"""
{TODAY}, old AS (
    SELECT id
      FROM llm_tasks
     WHERE status = %(status)s
       AND (created_at, id) > (%(at)s, %(after)s)
       AND created_at < bloom_now_ms() - %(keep_ms)s
       AND updated_at < bloom_now_ms() - %(keep_ms)s
       AND bloom_leads(%(epoch)s)
     ORDER BY created_at, id
     LIMIT %(batch)s
       FOR UPDATE SKIP LOCKED
), results AS (
    DELETE FROM llm_results WHERE task_id = ANY (ARRAY(SELECT id FROM old))
), artifacts AS (
    DELETE FROM runtime_artifacts
     WHERE task_id = ANY (ARRAY(SELECT id FROM old)) AND coalesce(url, %(scheme)s) LIKE %(scheme)s || '%%'
    RETURNING id, url, lease_id, content IS NULL AND size IS NOT NULL AS in_pieces
), left_over AS (
    INSERT INTO uploads SELECT id, lease_id FROM artifacts WHERE in_pieces ON CONFLICT DO NOTHING
), objects AS (
    INSERT INTO objects_left SELECT url, bloom_now_ms() FROM artifacts WHERE url IS NOT NULL ON CONFLICT DO NOTHING
), attempts AS (
    DELETE FROM leases WHERE task_id = ANY (ARRAY(SELECT id FROM old))
), gone AS (
    DELETE FROM llm_tasks WHERE id = ANY (ARRAY(SELECT id FROM old)) RETURNING created_at AS at, id
), {RECORD}
SELECT at, id FROM gone ORDER BY at, id
"""

# Today's entry stays, for it is being written.
PRUNE_AUDIT: LiteralString = f"""
{TODAY}, old AS (
    SELECT id
      FROM audit_logs
     WHERE timestamp < bloom_now_ms() - %(keep_ms)s
       AND id <> (SELECT entry FROM today)
       AND bloom_leads(%(epoch)s)
     ORDER BY timestamp, id
     LIMIT %(batch)s
       FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM audit_logs WHERE id = ANY (ARRAY(SELECT id FROM old)) RETURNING timestamp AS at, id
), {RECORD}
SELECT at, id FROM gone
"""


# Who has a conversation is forgotten with the tasks that it was made of: no decision that anybody would audit.
PRUNE_CONVERSATIONS = """
DELETE FROM conversations
 WHERE context = ANY (ARRAY(SELECT context
                              FROM conversations
                             WHERE at < bloom_now_ms() - %(keep_ms)s AND bloom_leads(%(epoch)s)
                             LIMIT %(batch)s
                               FOR UPDATE SKIP LOCKED))
RETURNING at, context AS id
"""


class Keep(msgspec.Struct, frozen=True):
    """For how many days what has ended is kept; None is for ever. Asked anew for each round."""

    tasks: float | None = None
    audit: float | None = None


class Pruned(msgspec.Struct, frozen=True):
    """What one round has deleted."""

    tasks: int
    entries: int
    uploads: int = 0
    """Those about which it was decided: they stay, or are gone."""


class _Gone(msgspec.Struct, frozen=True):
    at: int
    id: str


class Retention:
    def __init__(self, database: Database, keep: Callable[[], Keep]) -> None:
        self._database = database
        self._keep = keep

    async def run(self, epoch: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Prune for ever, as the leader of this epoch.

        Raises:
            Unavailable: the database is away.
        """
        task_status.started()
        while True:
            await self.prune(epoch)
            await trio.sleep(ROUND_SECONDS)

    async def prune(self, epoch: int) -> Pruned:
        """One round: all that is old enough now."""
        keep = self._keep()
        tasks = entries = 0
        if keep.tasks is not None:
            for status in ENDED:
                tasks += await self._prune_tasks(status, keep.tasks, epoch)
            await self._prune_conversations(keep.tasks, epoch)
        if keep.audit is not None:
            entries = await self._prune_audit(keep.audit, epoch)
        if tasks or entries:
            log.info("pruned", tasks=tasks, audit_entries=entries)
        return Pruned(tasks, entries, await self._collect(epoch))

    async def _prune_tasks(self, status: TaskStatus, days: float, epoch: int) -> int:
        pruned = 0
        last = _Gone(-END_OF_TIME, "")
        while True:
            gone = await self._batch(
                PRUNE_TASKS, "task", days, epoch, status=status, at=last.at, after=last.id, scheme=SCHEME
            )
            pruned += len(gone)
            if len(gone) < BATCH:
                return pruned
            last = gone[-1]
            await trio.sleep(PAUSE_SECONDS)

    async def _prune_audit(self, days: float, epoch: int) -> int:
        pruned = 0
        while gone := await self._batch(PRUNE_AUDIT, "audit", days, epoch):
            pruned += len(gone)
            if len(gone) < BATCH:
                break
            await trio.sleep(PAUSE_SECONDS)
        return pruned

    async def _prune_conversations(self, days: float, epoch: int) -> None:
        old = {"keep_ms": int(days * DAY_MS), "epoch": epoch, "batch": BATCH}
        while gone := await self._database.rows(_Gone, PRUNE_CONVERSATIONS, **old):
            if len(gone) < BATCH:
                return
            await trio.sleep(PAUSE_SECONDS)

    async def _collect(self, epoch: int) -> int:
        decided = 0
        while batch := await uploads.collect(self._database, epoch=epoch):
            decided += sum(each.settled for each in batch)
            await trio.sleep(PAUSE_SECONDS)
        return decided

    async def _batch(
        self, statement: LiteralString, kind: str, days: float, epoch: int, **parameters: object
    ) -> list[_Gone]:
        return await self._database.change(
            _Gone,
            statement,
            kind=kind,
            keep_days=days,
            keep_ms=int(days * DAY_MS),
            epoch=epoch,
            batch=BATCH,
            **parameters,
        )
