"""The projects of the control plane that bloomd serves itself, their nodes, and the heartbeats that tell of both.

A node is an agent that works on a project. A heartbeat makes known whatever it speaks of: the agent, the project, and
the agent as a node of it. What it does not say never overwrites what is known. What a node is in its project follows
from the leadership (`membridge_leadership.py`) that is current when it is asked.
"""

from typing import Literal

import msgspec
from psycopg.types.json import Jsonb

from bloomd.runtime.database import Database
from bloomd.runtime.refusals import Conflict, NotFound

Role = Literal["primary", "secondary", "unknown"]

# All projects, or the one with this id.
PROJECTS = """
SELECT name,
       canonical_id,
       source,
       created_at / 1000.0::float8 AS created_at,
       heard.last_seen / 1000.0::float8 AS last_seen,
       heard.nodes AS nodes_count
  FROM membridge_projects
 CROSS JOIN LATERAL (
           SELECT max(last_seen) AS last_seen, count(*) AS nodes
             FROM membridge_nodes
            WHERE membridge_nodes.canonical_id = membridge_projects.canonical_id) AS heard
 WHERE %(canonical_id)s::varchar IS NULL OR canonical_id = %(canonical_id)s
 ORDER BY membridge_projects.created_at, name
"""

# Nothing when its name or its id is taken.
ADD_PROJECT = """
WITH project AS (
    INSERT INTO membridge_projects (canonical_id, name, source, created_at)
    VALUES (%(canonical_id)s, %(name)s, 'manual', bloom_now_ms())
        ON CONFLICT DO NOTHING
    RETURNING canonical_id, name
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'membridge.project_added', 'project', canonical_id, 'membridge', name
      FROM project
)
SELECT name FROM project
"""

# The project, its nodes, and the time of its primary; who leads it next has the next epoch all the same.
REMOVE_PROJECT = """
WITH project AS (
    DELETE FROM membridge_projects WHERE name = %(name)s RETURNING canonical_id, name
), node AS (
    DELETE FROM membridge_nodes USING project WHERE membridge_nodes.canonical_id = project.canonical_id
), leadership AS (
    UPDATE membridge_leaderships
       SET expires_at = least(expires_at, bloom_now_ms())
      FROM project
     WHERE membridge_leaderships.canonical_id = project.canonical_id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'membridge.project_removed', 'project', canonical_id, 'membridge', name
      FROM project
)
SELECT name FROM project
"""

CANONICAL_ID = """
SELECT canonical_id FROM membridge_projects WHERE name = %(name)s
"""

NODES = """
SELECT node_id,
       node.canonical_id,
       project_id,
       CASE WHEN leadership.primary_node_id IS NULL THEN 'unknown'
            WHEN leadership.primary_node_id = node_id THEN 'primary'
            ELSE 'secondary'
       END AS role,
       obs_count,
       db_sha,
       ip_addrs,
       registered_at / 1000.0::float8 AS registered_at,
       last_seen / 1000.0::float8 AS last_seen
  FROM membridge_nodes AS node
  LEFT JOIN membridge_leaderships AS leadership
    ON leadership.canonical_id = node.canonical_id AND leadership.expires_at > bloom_now_ms()
 WHERE node.canonical_id = %(canonical_id)s
 ORDER BY node.registered_at, node_id
"""

# A node that is an agent of this name. Only what is new is worth an entry in the audit trail.
HEARTBEAT = """
WITH project AS (
    INSERT INTO membridge_projects (canonical_id, name, source, created_at)
    SELECT %(canonical_id)s::varchar,
           CASE WHEN EXISTS (SELECT FROM membridge_projects WHERE name = %(project_id)s::varchar) THEN %(canonical_id)s
                ELSE coalesce(%(project_id)s, %(canonical_id)s)
           END,
           'heartbeat', bloom_now_ms()
     WHERE NOT EXISTS (SELECT FROM membridge_projects WHERE canonical_id = %(canonical_id)s)
        ON CONFLICT DO NOTHING
    RETURNING canonical_id, name
), agent AS (
    INSERT INTO membridge_agents (name, url, said, registered_at, last_seen, ip_addrs, obs_count, db_sha, agent_version)
    SELECT %(node_id)s::varchar, '', 'online', now_ms, now_ms, %(ip_addrs)s::jsonb, %(obs_count)s::integer,
           %(db_sha)s::varchar, %(agent_version)s::varchar
      FROM bloom_now_ms() AS now_ms
        ON CONFLICT (name) DO UPDATE
       SET said          = excluded.said,
           last_seen     = excluded.last_seen,
           ip_addrs      = coalesce(excluded.ip_addrs, membridge_agents.ip_addrs),
           obs_count     = coalesce(excluded.obs_count, membridge_agents.obs_count),
           db_sha        = coalesce(excluded.db_sha, membridge_agents.db_sha),
           agent_version = coalesce(excluded.agent_version, membridge_agents.agent_version)
    RETURNING name, last_seen, xmax = 0 AS new
), node AS (
    INSERT INTO membridge_nodes (canonical_id, node_id, project_id, obs_count, db_sha, ip_addrs, registered_at,
                                 last_seen)
    SELECT %(canonical_id)s::varchar, name, %(project_id)s::varchar, %(obs_count)s::integer, %(db_sha)s::varchar,
           coalesce(%(ip_addrs)s::jsonb, '[]'), last_seen, last_seen
      FROM agent
        ON CONFLICT (canonical_id, node_id) DO UPDATE
       SET project_id = coalesce(excluded.project_id, membridge_nodes.project_id),
           obs_count  = coalesce(excluded.obs_count, membridge_nodes.obs_count),
           db_sha     = coalesce(excluded.db_sha, membridge_nodes.db_sha),
           ip_addrs   = coalesce(%(ip_addrs)s::jsonb, membridge_nodes.ip_addrs),
           last_seen  = excluded.last_seen
    RETURNING canonical_id, node_id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), action, entity_type, entity_id, 'membridge', 'by its first heartbeat'
      FROM (SELECT 'membridge.agent_registered' AS action, 'agent' AS entity_type, name AS entity_id
              FROM agent
             WHERE new
            UNION ALL
            SELECT 'membridge.project_added', 'project', canonical_id FROM project) AS each
)
SELECT CASE WHEN leadership.primary_node_id IS NULL THEN 'unknown'
            WHEN leadership.primary_node_id = node.node_id THEN 'primary'
            ELSE 'secondary'
       END AS role,
       EXISTS (SELECT FROM agent WHERE new) OR EXISTS (SELECT FROM project) AS new
  FROM node
  LEFT JOIN membridge_leaderships AS leadership
    ON leadership.canonical_id = node.canonical_id AND leadership.expires_at > bloom_now_ms()
"""


class Project(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    canonical_id: str
    source: Literal["manual", "heartbeat"]
    nodes_count: int
    created_at: float
    last_seen: float | None = None
    """When one of its nodes was heard last."""


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """An agent that works on a project."""

    node_id: str
    canonical_id: str
    role: Role
    ip_addrs: list[str]
    registered_at: float
    last_seen: float
    project_id: str | None = None
    obs_count: int | None = None
    db_sha: str | None = None


class _Name(msgspec.Struct, frozen=True):
    name: str


class _CanonicalId(msgspec.Struct, frozen=True):
    canonical_id: str


class _Beat(msgspec.Struct, frozen=True):
    role: Role
    new: bool


async def projects(database: Database) -> list[Project]:
    """Every project, the first that came first."""
    return await database.rows(Project, PROJECTS, canonical_id=None)


async def add_project(database: Database, name: str, canonical_id: str) -> Project:
    """Make a project known.

    Raises:
        Conflict: its name or its id is known.
    """
    if await database.change(_Name, ADD_PROJECT, name=name, canonical_id=canonical_id):
        found = await database.row(Project, PROJECTS, canonical_id=canonical_id)
        if found is not None:
            return found
    raise Conflict("There is a project of this name or with this canonical_id already")


async def remove_project(database: Database, name: str) -> None:
    """Forget a project and its nodes. They come back with the next heartbeat of one of them.

    Raises:
        NotFound: there is none of this name.
    """
    if not await database.change(_Name, REMOVE_PROJECT, name=name):
        raise NotFound("There is no project of this name")


async def canonical_id_of(database: Database, project: str) -> str | None:
    """The id of the project of this name; None when it is not known."""
    found = await database.row(_CanonicalId, CANONICAL_ID, name=project)
    return found.canonical_id if found else None


async def nodes(database: Database, canonical_id: str) -> list[Node]:
    """The nodes of a project, the first that came first; none when it is not known."""
    return await database.rows(Node, NODES, canonical_id=canonical_id)


async def heartbeat(
    database: Database,
    *,
    node_id: str,
    canonical_id: str,
    project_id: str | None,
    obs_count: int | None,
    db_sha: str | None,
    ip_addrs: list[str] | None,
    agent_version: str | None,
) -> Role:
    """A node is there, and works on this project. What it is in it now."""
    [beat] = await database.rows(
        _Beat,
        HEARTBEAT,
        node_id=node_id,
        canonical_id=canonical_id,
        project_id=project_id,
        obs_count=obs_count,
        db_sha=db_sha,
        ip_addrs=_jsonb(ip_addrs),
        agent_version=agent_version,
    )
    if beat.new:
        database.on_change()
    return beat.role


def _jsonb(value: object) -> Jsonb | None:
    return None if value is None else Jsonb(value)
