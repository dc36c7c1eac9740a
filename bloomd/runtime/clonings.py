"""Projects on their way to the nodes: who is asked, what is under way, and what came of it.

::

    pending ──▶ cloning ──────▶ cloned          propagating ──▶ synced      on every node that was asked
                   │                                 │    └───▶ cloned      on some
                   └──▶ failed ◀─────────────────────┘

The project's row and the row of each node that is asked say so, under the id of the *operation*. It counts as under way
while whoever does it moves `busy_until` on (`renew`). Killed or cut off, nobody does, and whoever looks at a project
next, or wants to clone it, finds it overdue and failed (`end_overdue`). An outcome that comes after that still counts,
unless another operation has begun on the node meanwhile: the id is a fencing token. Several operations may be under way
for one project, on different nodes; what the project's own row says is of the one that began last.

Every statement here locks the project before its nodes.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from bloomd.runtime.database import Database
from bloomd.runtime.ids import Id
from bloomd.runtime.refusals import Conflict, Invalid, NotFound

# So long after the last sign of whoever does it, an operation is under way no more.
BUSY_SECONDS = 30.0

OVERDUE = (
    "it was interrupted: bloomd ended before the node had answered, which may have done it all the same; try again"
)

BUSY = "this project is on its way to this node already; wait for the outcome"

NAMED = """
SELECT id, url FROM workers WHERE %(name)s IN (id, node_id) ORDER BY id = %(name)s DESC LIMIT 1
"""

# The project's primary node, else the online worker that has the most to spare.
BEST = """
SELECT workers.id, workers.url
  FROM managed_projects AS project
  JOIN workers ON workers.url <> ''
 WHERE project.id = %(id)s
   AND (workers.status = 'online' OR project.primary_node_id IN (workers.id, workers.node_id))
 ORDER BY coalesce(project.primary_node_id IN (workers.id, workers.node_id), false) DESC,
          cordoned OR draining, capacity - active_leases DESC, last_heartbeat DESC NULLS LAST, workers.id
 LIMIT 1
"""

# All online workers that can be asked, but the primary node.
OTHERS = """
SELECT workers.id, workers.url
  FROM managed_projects AS project
  JOIN workers ON workers.url <> '' AND workers.status = 'online'
 WHERE project.id = %(id)s
   AND coalesce(project.primary_node_id NOT IN (workers.id, workers.node_id), true)
 ORDER BY workers.id
"""

# A node on which something is under way already is left out.
BEGIN = """
WITH project AS (
    SELECT id FROM managed_projects WHERE id = %(id)s FOR NO KEY UPDATE
), node AS (
    INSERT INTO project_node_status AS known (project_id, node_id, clone_status, operation, busy_until)
    SELECT project.id, asked, %(status)s, %(operation)s, bloom_now_ms() + %(busy_ms)s
      FROM project, unnest(%(nodes)s::varchar[]) AS asked
     ORDER BY asked
        ON CONFLICT (project_id, node_id) DO UPDATE
       SET clone_status = excluded.clone_status, operation = excluded.operation, busy_until = excluded.busy_until,
           error_message = NULL
     WHERE known.busy_until IS NULL OR known.busy_until <= bloom_now_ms()
    RETURNING node_id
), begun AS (
    UPDATE managed_projects
       SET clone_status = %(status)s, operation = %(operation)s, busy_until = bloom_now_ms() + %(busy_ms)s,
           error_message = NULL, updated_at = bloom_now_ms()
      FROM project
     WHERE managed_projects.id = project.id AND EXISTS (SELECT FROM node)
    RETURNING managed_projects.id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'project.' || %(status)s::varchar, 'project', id, %(actor)s,
           coalesce((SELECT left('to ' || string_agg(node_id, ', ' ORDER BY node_id), 1000) FROM node), '')
      FROM begun
)
SELECT node_id AS id FROM node
"""

# No change that anybody would audit.
RENEW = """
WITH project AS (
    UPDATE managed_projects
       SET busy_until = bloom_now_ms() + %(busy_ms)s
     WHERE id = %(id)s AND operation = %(operation)s AND busy_until IS NOT NULL
    RETURNING id
)
UPDATE project_node_status
   SET busy_until = bloom_now_ms() + %(busy_ms)s
 WHERE project_id = %(id)s AND operation = %(operation)s AND busy_until IS NOT NULL
   AND (SELECT count(*) FROM project) >= 0
"""

# What came of it on one node.
SETTLE = """
WITH project AS (
    SELECT id FROM managed_projects WHERE id = %(id)s FOR NO KEY UPDATE
), node AS (
    UPDATE project_node_status
       SET clone_status  = %(status)s,
           error_message = %(error)s,
           repo_path     = coalesce(%(path)s, repo_path),
           last_sync_at  = CASE WHEN %(error)s::text IS NULL THEN bloom_now_ms() ELSE last_sync_at END,
           busy_until    = NULL
      FROM project
     WHERE project_id = project.id AND node_id = %(node)s AND operation = %(operation)s
    RETURNING project_id, node_id, repo_path
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'project.' || %(status)s::varchar, 'project', project_id, %(actor)s,
           'node ' || node_id || coalesce(': ' || %(error)s::text, ', in ' || repo_path, '')
      FROM node
)
SELECT node_id AS id FROM node
"""

# The operation is over: what the nodes say, the project says. The first node to have a clone is the primary one, for as
# long as its worker is there.
END = """
WITH project AS (
    SELECT id, primary_node_id
      FROM managed_projects
     WHERE id = %(id)s AND operation = %(operation)s
       FOR NO KEY UPDATE
), node AS (
    SELECT count(*) FILTER (WHERE clone_status <> %(status)s)       AS failed,
           count(*)                                                 AS asked,
           min(node_id) FILTER (WHERE clone_status = 'cloned')      AS cloned,
           min('node ' || node_id || ': ' || coalesce(error_message, 'nobody knows what came of it'))
               FILTER (WHERE clone_status <> %(status)s)            AS first_error
      FROM project_node_status
     WHERE project_id = %(id)s AND operation = %(operation)s
), ended AS (
    UPDATE managed_projects
       SET clone_status    = CASE WHEN failed = 0 THEN %(status)s
                                  WHEN %(status)s = 'synced'
                                       AND EXISTS (SELECT FROM project_node_status
                                                    WHERE project_id = %(id)s AND clone_status IN ('cloned', 'synced'))
                                  THEN 'cloned' ELSE 'failed' END,
           error_message   = CASE failed WHEN 0 THEN NULL WHEN asked THEN first_error
                                         ELSE failed || ' of ' || asked || ' nodes failed; ' || first_error END,
           primary_node_id = CASE WHEN EXISTS (SELECT FROM workers WHERE project.primary_node_id IN (id, node_id))
                                  THEN project.primary_node_id ELSE coalesce(cloned, project.primary_node_id) END,
           busy_until      = NULL,
           updated_at      = bloom_now_ms()
      FROM project, node
     WHERE managed_projects.id = project.id
    RETURNING managed_projects.id, clone_status, error_message
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'project.ended', 'project', id, %(actor)s,
           'now ' || clone_status || coalesce(': ' || error_message, '')
      FROM ended
)
SELECT id FROM ended
"""

# Whoever did these has not been heard of any more.
END_OVERDUE = """
WITH project AS (
    SELECT id
      FROM managed_projects
     WHERE id IN (SELECT id FROM managed_projects WHERE busy_until <= bloom_now_ms()
                  UNION
                  SELECT project_id FROM project_node_status WHERE busy_until <= bloom_now_ms())
     ORDER BY id
       FOR NO KEY UPDATE SKIP LOCKED
), node AS (
    UPDATE project_node_status
       SET clone_status = 'failed', error_message = %(error)s, busy_until = NULL
      FROM project
     WHERE project_id = project.id AND busy_until <= bloom_now_ms()
    RETURNING project_id, node_id
), ended AS (
    UPDATE managed_projects
       SET clone_status = 'failed', error_message = %(error)s, busy_until = NULL, updated_at = bloom_now_ms()
      FROM project
     WHERE managed_projects.id = project.id AND busy_until <= bloom_now_ms()
    RETURNING managed_projects.id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'project.interrupted', 'project', id, 'bloomd',
           coalesce((SELECT left('on ' || string_agg(node_id, ', ' ORDER BY node_id), 1000)
                       FROM node
                      WHERE project_id = each.id), '')
      FROM (SELECT id FROM ended UNION SELECT project_id FROM node) AS each
)
SELECT id FROM project
"""

# What came of bringing a node's memory of a project up to date, which is no matter of its clone.
NOTE_SYNC = """
WITH project AS (
    SELECT id FROM managed_projects WHERE id = %(id)s FOR NO KEY UPDATE
), node AS (
    INSERT INTO project_node_status AS known (project_id, node_id, last_sync_at, error_message)
    SELECT id, %(node)s, CASE WHEN %(error)s::text IS NULL THEN bloom_now_ms() END, %(error)s FROM project
        ON CONFLICT (project_id, node_id) DO UPDATE
       SET last_sync_at  = coalesce(excluded.last_sync_at, known.last_sync_at),
           error_message = coalesce(excluded.error_message,
                                    CASE known.clone_status WHEN 'failed' THEN known.error_message END)
    RETURNING project_id, node_id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), %(action)s, 'project', project_id, %(actor)s,
           'node ' || node_id || coalesce(': ' || %(error)s::text, '')
      FROM node
)
SELECT node_id AS id FROM node
"""


class Target(msgspec.Struct, frozen=True):
    """A worker that a project goes to."""

    id: str
    url: str


class Operation(msgspec.Struct, frozen=True):
    """Something that is under way for a project."""

    id: str
    project_id: str
    ends_as: Literal["cloned", "synced"]
    """What a node, and the project, is when it went well."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of it on one node."""

    error: str | None = None
    path: str | None = None
    """Where the node has it, as far as it says so."""


async def named(database: Database, name: str, *, with_url: bool = True) -> Target:
    """The worker of this name, or whose node has it.

    Raises:
        Invalid: there is none, or it has no URL and needs one.
    """
    target = await database.row(Target, NAMED, name=name)
    if target is None:
        raise Invalid(f"node_id: there is no worker {name!r}; GET /api/runtime/workers lists them")
    if with_url and not target.url:
        raise Invalid(f"node_id: the worker {target.id} has no URL, so its agent cannot be asked")
    return target


async def best(database: Database, id: str) -> Target:
    """The worker that is asked when nobody says which: the project's primary node, else the best one online.

    Raises:
        Invalid: there is none.
    """
    if target := await database.row(Target, BEST, id=id):
        return target
    raise Invalid("There is no node to ask: no worker with a URL is online; name one as node_id to try it all the same")


async def others(database: Database, id: str) -> list[Target]:
    """Every worker that a project can be propagated to now."""
    return await database.rows(Target, OTHERS, id=id)


async def begin(database: Database, operation: Operation, nodes: Sequence[str], *, actor: str) -> set[str]:
    """Say that this operation is under way on these nodes; gives those that were free for it.

    Raises:
        NotFound: there is no such project.
        Conflict: none of them was.
    """
    begun = await database.change(
        Id,
        BEGIN,
        id=operation.project_id,
        operation=operation.id,
        status="cloning" if operation.ends_as == "cloned" else "propagating",
        nodes=list(nodes),
        busy_ms=int(BUSY_SECONDS * 1000),
        actor=actor,
    )
    if not begun:
        await _exists(database, operation.project_id)
        raise Conflict(BUSY[:1].upper() + BUSY[1:])
    return {node.id for node in begun}


async def renew(database: Database, operation: Operation) -> None:
    """Say that somebody is still at it."""
    await database.execute(RENEW, id=operation.project_id, operation=operation.id, busy_ms=int(BUSY_SECONDS * 1000))


async def settle(database: Database, operation: Operation, node: str, outcome: Outcome, *, actor: str) -> None:
    """Say what came of it on one node.

    Raises:
        NotFound: the project has been removed meanwhile.
        Conflict: something else has begun on the node, because this took too long to be still believed in.
    """
    settled = await database.change(
        Id,
        SETTLE,
        id=operation.project_id,
        operation=operation.id,
        node=node,
        status="failed" if outcome.error else operation.ends_as,
        error=outcome.error,
        path=outcome.path,
        actor=actor,
    )
    if not settled:
        await _exists(database, operation.project_id)
        raise Conflict(f"Another operation has begun on node {node} meanwhile; its outcome is the one that counts")


async def end(database: Database, operation: Operation, *, actor: str) -> None:
    """Say that it is over, on all its nodes: the project is as they are, unless a later operation has begun."""
    await database.change(
        Id, END, id=operation.project_id, operation=operation.id, status=operation.ends_as, actor=actor
    )


async def end_overdue(database: Database) -> None:
    """End as failed what nobody is at any more."""
    await database.change(Id, END_OVERDUE, error=OVERDUE)


async def note_sync(
    database: Database, id: str, node: str, direction: Literal["push", "pull"], error: str | None, *, actor: str
) -> None:
    """Record that a node's memory of a project was pushed or pulled, or why not.

    Raises:
        NotFound: there is no such project.
    """
    action = f"project.memory-{direction}" + ("-failed" if error else "")
    if not await database.change(Id, NOTE_SYNC, id=id, node=node, error=error, action=action, actor=actor):
        raise NotFound("Project not found")


async def _exists(database: Database, id: str) -> None:
    if not await database.rows(Id, "SELECT id FROM managed_projects WHERE id = %(id)s", id=id):
        raise NotFound("Project not found")
