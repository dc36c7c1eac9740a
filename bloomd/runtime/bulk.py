"""Bulk: requeue or cancel all tasks that match a filter, however many they are.

The tasks are found first, a page of ids at a time and without a lock; then they are changed, a batch at a time. Each
batch is one statement: it locks its tasks in order of id, looks once more whether the action still applies, and changes
them together with the action's one audit entry, whose count it raises. Whatever ends the action half-way, the entry
says how many tasks it has changed.

Pages go by id and never back, so a task that fails again after it was requeued is not requeued twice. A task that is
created after the start is left alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, LiteralString

import msgspec
from msgspec import UNSET, Meta, UnsetType
from psycopg.types.json import Jsonb

from bloomd.errors import Unavailable, one_line
from bloomd.runtime.database import Database
from bloomd.runtime.fencing import SNAPSHOT_TRIES
from bloomd.runtime.ids import new_id
from bloomd.runtime.model import EpochMs, TaskStatus
from bloomd.runtime.pages import END_OF_TIME

# Ids that are read at once. Finding the next page may cost a walk past many tasks that do not match.
PAGE = 10_000

# Tasks that one statement changes: it holds their locks for some dozen milliseconds.
BATCH = 500

# No task is younger when the action starts, by whatever clock it was created.
NEWEST = """
SELECT coalesce(max(created_at), 0) AS created_at FROM llm_tasks
"""

# Of those who name a context or an agent, one condition is for the index, which has hashes, and one is for the truth.
MATCHING = """
  FROM llm_tasks
 WHERE status = ANY (%(statuses)s)
   AND (status <> 'queued' OR NOT %(only_waiting)s OR retry_at > bloom_now_ms())
   AND (%(agent_slug)s::varchar IS NULL
        OR md5(agent_slug) = md5(%(agent_slug)s) AND agent_slug = %(agent_slug)s)
   AND (%(context_id)s::varchar IS NULL
        OR md5(context_id) = md5(%(context_id)s) AND context_id = %(context_id)s)
   AND (%(worker_id)s::varchar IS NULL OR worker_id = %(worker_id)s)
   AND created_at < %(before)s
"""

COUNT: LiteralString = f"SELECT count(*) AS tasks {MATCHING}"

FIND: LiteralString = f"""
SELECT coalesce(array_agg(id ORDER BY id), '{{}}') AS ids
  FROM (SELECT id {MATCHING} AND created_at <= %(newest)s AND id > %(after)s ORDER BY id LIMIT %(page)s) AS page
"""

# The one entry of the action. With each batch it moves to the end of the events, so whoever follows them sees each.
RECORD = """
audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT %(action_id)s, bloom_now_ms(), %(recorded_as)s, 'task', %(action_id)s, %(actor)s,
           jsonb_build_object('filter', %(filter)s::jsonb, 'changed', %(changed)s::bigint + count(*))::text
      FROM moved
    HAVING count(*) > 0
        ON CONFLICT (id) DO UPDATE SET detail = excluded.detail, xact = excluded.xact, seq = excluded.seq
)
"""

# What may have changed since a task was found is looked at again: its status, and with it the worker. No index shall
# answer that (see `fencing.py`).
REQUEUE_BATCH: LiteralString = f"""
WITH found AS (
    SELECT id
      FROM llm_tasks
     WHERE id = ANY (%(ids)s)
       AND status || '' = ANY (%(statuses)s)
       AND (status <> 'queued' OR retry_at > bloom_now_ms())
       AND (%(worker_id)s::varchar IS NULL OR worker_id || '' = %(worker_id)s)
     ORDER BY id
       FOR UPDATE
), moved AS (
    UPDATE llm_tasks
       SET status = 'queued', attempts = 0, retry_at = NULL, error_message = NULL, lease_id = NULL, worker_id = NULL,
           progress = NULL, progress_at = NULL, ready = coalesce(not_before <= bloom_now_ms(), true),
           updated_at = bloom_now_ms()
      FROM found
     WHERE llm_tasks.id = found.id
    RETURNING llm_tasks.id
), {RECORD}
SELECT id, 0 AS attempts, NULL::bigint AS ran_ms FROM moved
"""

# The lease ends with its task. A lease that was made while this statement waited for the task's lock cannot be seen by
# it, so such a task is passed over: `seen` is the task as it was before that wait. The workers are locked before their
# leases end: a claim that holds one may be about to make a lease that has to wait for such an end.
CANCEL_BATCH: LiteralString = f"""
WITH locked AS (
    SELECT id, lease_id
      FROM llm_tasks
     WHERE id = ANY (%(ids)s)
       AND status || '' = ANY (%(statuses)s)
       AND (%(worker_id)s::varchar IS NULL OR worker_id || '' = %(worker_id)s)
     ORDER BY id
       FOR UPDATE
), found AS (
    SELECT locked.*
      FROM locked
      JOIN llm_tasks AS seen ON seen.id = locked.id AND seen.lease_id IS NOT DISTINCT FROM locked.lease_id
), worker AS MATERIALIZED (
    SELECT id
      FROM workers
     WHERE id IN (SELECT worker_id
                    FROM leases
                    JOIN found ON found.lease_id = leases.id
                   WHERE leases.status || '' = 'active')
     ORDER BY id
       FOR UPDATE
), lease AS (
    UPDATE leases
       SET status = 'released', outcome = 'cancelled', ended_at = bloom_now_ms()
      FROM found
     WHERE leases.id = found.lease_id AND leases.status || '' = 'active' AND (SELECT count(*) FROM worker) >= 0
    RETURNING leases.task_id, leases.ended_at - leases.started_at AS ran_ms
), moved AS (
    UPDATE llm_tasks
       SET status = 'cancelled', retry_at = NULL, updated_at = bloom_now_ms()
      FROM found
     WHERE llm_tasks.id = found.id
    RETURNING llm_tasks.id, llm_tasks.attempts
), {RECORD}
SELECT moved.id, moved.attempts, lease.ran_ms FROM moved LEFT JOIN lease ON lease.task_id = moved.id
"""


@dataclass(frozen=True, slots=True)
class Action:
    """What can be done to many tasks at once."""

    name: str
    done: str
    """Its participle; in the audit trail it is `tasks.` and this."""
    statuses: tuple[TaskStatus, ...]
    """Those it applies to."""
    only_waiting: bool
    """Whether a queued task must wait for its retry."""
    batch: LiteralString
    """The statement that does it to some."""


REQUEUE = Action("requeue", "requeued", ("failed", "dead", "cancelled", "queued"), True, REQUEUE_BATCH)
CANCEL = Action("cancel", "cancelled", ("queued", "leased", "running"), False, CANCEL_BATCH)


class TaskFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which tasks: all conditions that are set must hold. None may be null, lest an empty variable widen the match."""

    status: TaskStatus | Annotated[list[TaskStatus], Meta(min_length=1)] | UnsetType = UNSET
    agent_slug: str | UnsetType = UNSET
    context_id: str | UnsetType = UNSET
    worker_id: str | UnsetType = UNSET
    before: EpochMs | UnsetType = UNSET
    """Created before this time."""


class BulkRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Here an unknown field is an error: a misspelt `dry_run` must not do what was only asked about."""

    filter: TaskFilter
    dry_run: bool = False
    """Count what matches, and change nothing."""


class Outcome(msgspec.Struct, frozen=True):
    matched: int
    """Tasks that match the filter, and to which the action applies."""
    changed: int
    """Those of them that it was done to. The others went on by themselves before it reached them."""


class BadFilter(ValueError):
    """A filter that this action cannot take."""


class _Tasks(msgspec.Struct, frozen=True):
    tasks: int


class _Newest(msgspec.Struct, frozen=True):
    created_at: int


class _Ids(msgspec.Struct, frozen=True):
    ids: list[str]


class _Moved(msgspec.Struct, frozen=True):
    id: str
    attempts: int
    ran_ms: int | None
    """How long the attempt had run that ended with it."""


async def carry_out(database: Database, action: Action, request: BulkRequest, *, actor: str) -> Outcome:
    """Do what is asked for, or only count it.

    Raises:
        BadFilter: no condition at all, or a status that the action does not apply to.
    """
    if request.dry_run:
        return Outcome(matched=await count(database, action, request.filter), changed=0)
    return await run(database, action, request.filter, actor=actor)


async def count(database: Database, action: Action, filter: TaskFilter) -> int:
    """How many tasks the action would be done to now.

    Raises:
        BadFilter: no condition at all, or a status that the action does not apply to.
    """
    [counted] = await database.listing(_Tasks, COUNT, **_conditions(action, filter))
    return counted.tasks


async def run(database: Database, action: Action, filter: TaskFilter, *, actor: str) -> Outcome:
    """Do the action to all tasks that match now, a batch at a time.

    Raises:
        BadFilter: no condition at all, or a status that the action does not apply to.
        Unavailable: the database went away; what was changed until then stays so.
    """
    conditions = _conditions(action, filter)
    entry = {
        "action_id": new_id(),
        "recorded_as": f"tasks.{action.done}",
        "filter": Jsonb(msgspec.to_builtins(filter)),
        "actor": actor,
    }
    [newest] = await database.rows(_Newest, NEWEST)
    matched = changed = 0
    after = ""
    try:
        while True:
            [page] = await database.listing(_Ids, FIND, newest=newest.created_at, after=after, page=PAGE, **conditions)
            matched += len(page.ids)
            for start in range(0, len(page.ids), BATCH):
                ids = page.ids[start : start + BATCH]
                changed = await _change(database, action, ids, changed, {**conditions, **entry})
            if len(page.ids) < PAGE:
                return Outcome(matched, changed)
            after = page.ids[-1]
    except Unavailable as error:
        if changed:
            raise Unavailable(
                f"{one_line(error)}; {changed} tasks were done before, and the same request does the others"
            ) from error
        raise


async def _change(
    database: Database, action: Action, ids: Sequence[str], changed: int, parameters: Mapping[str, object]
) -> int:
    """Do the action to those of a batch that it still applies to; how many tasks it has changed in all until now."""
    left = set(ids)
    for _ in range(SNAPSHOT_TRIES):
        moved = await database.change(_Moved, action.batch, ids=list(left), changed=changed, **parameters)
        if moved:
            database.on_offer()
        if action is CANCEL:
            _note(database, moved)
        changed += len(moved)
        left -= {task.id for task in moved}
        if not left:
            break
    return changed


def _note(database: Database, cancelled: Sequence[_Moved]) -> None:
    """Count the tasks, and the attempts, that have come to their end."""
    for task in cancelled:
        database.meters.cancelled(None if task.ran_ms is None else task.ran_ms / 1000, attempts=task.attempts)


def _conditions(action: Action, filter: TaskFilter) -> dict[str, object]:
    """The parameters of the statements that look for tasks."""
    if filter == TaskFilter():
        known = ", ".join(f"`{name}`" for name in TaskFilter.__struct_fields__)
        raise BadFilter(f"It needs a condition, or it would {action.name} everything: set one or more of {known}")
    return {
        "statuses": list(_statuses(action, filter.status)),
        "only_waiting": action.only_waiting,
        "agent_slug": _given(filter.agent_slug),
        "context_id": _given(filter.context_id),
        "worker_id": _given(filter.worker_id),
        "before": END_OF_TIME if filter.before is UNSET else filter.before,
    }


def _statuses(action: Action, asked: TaskStatus | list[TaskStatus] | UnsetType) -> Sequence[str]:
    if asked is UNSET:
        return action.statuses
    statuses = [asked] if isinstance(asked, str) else asked
    if wrong := [status for status in statuses if status not in action.statuses]:
        *others, last = (f"'{status}'" for status in action.statuses)
        raise BadFilter(f"Tasks with status '{wrong[0]}' cannot be {action.done}, only {', '.join(others)} or {last}")
    return statuses


def _given(text: str | UnsetType) -> str | None:
    return None if text is UNSET else text
