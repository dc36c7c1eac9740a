"""The agents of the control plane that bloomd serves itself: who is there, and how it is.

An agent is known by its name. Others may name it, with its URL, and then nobody knows how it is (`unknown`); or it says
itself that it is there, and is what it said for as long as that was recently, `offline` afterwards. What is not said
never overwrites what is known. What agents work on is told in `membridge_projects.py`, with their heartbeats.

The Structs here are rows and JSON at once, so their times are what clients of a control plane get: epoch seconds, as
floats.
"""

from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from bloomd.runtime.database import Database
from bloomd.runtime.liveness import CAPABILITIES_LIMIT
from bloomd.runtime.refusals import NotFound

COUNTS = """
SELECT (SELECT count(*) FROM membridge_projects) AS projects, (SELECT count(*) FROM membridge_agents) AS agents
"""

# All agents, or the one of this name.
AGENTS = """
SELECT name AS id,
       name,
       name AS node_id,
       url,
       CASE WHEN last_seen IS NULL THEN 'unknown'
            WHEN last_seen < bloom_now_ms() - %(offline_after_ms)s THEN 'offline'
            ELSE said
       END AS status,
       registered_at / 1000.0::float8 AS registered_at,
       last_seen / 1000.0::float8 AS last_seen,
       capabilities,
       ip_addrs,
       obs_count,
       db_sha,
       agent_version
  FROM membridge_agents
 WHERE %(name)s::varchar IS NULL OR name = %(name)s
 ORDER BY membridge_agents.registered_at, name
"""

# `said` is null when no status came along: somebody else names the agent. `xmax = 0` tells an inserted row. What it can
# do does not grow without end, as that of a worker does not.
REGISTER = """
WITH agent AS (
    INSERT INTO membridge_agents (name, url, said, registered_at, last_seen, capabilities, ip_addrs, obs_count, db_sha)
    SELECT %(name)s, coalesce(%(url)s, ''), coalesce(%(said)s, 'online'), now_ms,
           CASE WHEN %(said)s::varchar IS NOT NULL THEN now_ms END,
           %(capabilities)s::jsonb, %(ip_addrs)s::jsonb, %(obs_count)s::integer, %(db_sha)s::varchar
      FROM bloom_now_ms() AS now_ms
        ON CONFLICT (name) DO UPDATE
       SET url          = coalesce(%(url)s, membridge_agents.url),
           said         = coalesce(%(said)s, membridge_agents.said),
           last_seen    = coalesce(excluded.last_seen, membridge_agents.last_seen),
           capabilities = (SELECT CASE WHEN octet_length(merged::text)
                                                > greatest(%(capabilities_limit)s,
                                                           octet_length(membridge_agents.capabilities::text))
                                       THEN membridge_agents.capabilities ELSE merged END
                             FROM (SELECT coalesce(membridge_agents.capabilities || excluded.capabilities,
                                                   excluded.capabilities, membridge_agents.capabilities))
                                      AS both_say (merged)),
           ip_addrs     = coalesce(excluded.ip_addrs, membridge_agents.ip_addrs),
           obs_count    = coalesce(excluded.obs_count, membridge_agents.obs_count),
           db_sha       = coalesce(excluded.db_sha, membridge_agents.db_sha)
    RETURNING name, url, xmax = 0 AS new
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(),
           CASE WHEN new THEN 'membridge.agent_registered' ELSE 'membridge.agent_updated' END,
           'agent', name, 'membridge', CASE WHEN url <> '' THEN 'url ' || url ELSE '' END
      FROM agent
)
SELECT new FROM agent
"""

# The agent and what it was of projects. Whom it leads, it leads until its time is over.
REMOVE_AGENT = """
WITH agent AS (
    DELETE FROM membridge_agents WHERE name = %(name)s RETURNING name
), node AS (
    DELETE FROM membridge_nodes USING agent WHERE node_id = agent.name
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'membridge.agent_removed', 'agent', name, 'membridge', '' FROM agent
)
SELECT name FROM agent
"""


class Counts(msgspec.Struct, frozen=True):
    projects: int
    agents: int


class Agent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An agent as it is listed; what is not known is left out."""

    id: str
    name: str
    node_id: str
    url: str
    """Empty when nobody has said it."""
    status: str
    registered_at: float
    last_seen: float | None = None
    capabilities: dict[str, Any] | None = None
    ip_addrs: list[str] | None = None
    obs_count: int | None = None
    db_sha: str | None = None
    agent_version: str | None = None


class _New(msgspec.Struct, frozen=True):
    new: bool


class _Name(msgspec.Struct, frozen=True):
    name: str


async def counts(database: Database) -> Counts:
    [found] = await database.rows(Counts, COUNTS)
    return found


async def agents(database: Database, *, offline_after: float) -> list[Agent]:
    """Every agent, the first that came first. `offline_after` is in seconds."""
    return await database.rows(Agent, AGENTS, name=None, offline_after_ms=int(offline_after * 1000))


async def agent(database: Database, name: str, *, offline_after: float) -> Agent:
    """One agent.

    Raises:
        NotFound: there is none of this name.
    """
    found = await database.row(Agent, AGENTS, name=name, offline_after_ms=int(offline_after * 1000))
    if found is None:
        raise NotFound("There is no agent of this name")
    return found


async def register(
    database: Database,
    name: str,
    *,
    url: str | None,
    said: str | None,
    capabilities: dict[str, Any] | None,
    ip_addrs: list[str] | None,
    obs_count: int | None,
    db_sha: str | None,
) -> bool:
    """Make an agent known, or bring what is known of it up to date; whether it is new. `None` is: not said.

    `said` is the status that it gives itself. Saying one is a sign of life.
    """
    [registered] = await database.change(
        _New,
        REGISTER,
        name=name,
        url=url,
        said=said,
        capabilities=_jsonb(capabilities),
        capabilities_limit=CAPABILITIES_LIMIT,
        ip_addrs=_jsonb(ip_addrs),
        obs_count=obs_count,
        db_sha=db_sha,
    )
    return registered.new


async def remove_agent(database: Database, name: str) -> None:
    """Forget an agent. It comes back with its next heartbeat.

    Raises:
        NotFound: there is none of this name.
    """
    if not await database.change(_Name, REMOVE_AGENT, name=name):
        raise NotFound("There is no agent of this name")


def _jsonb(value: object) -> Jsonb | None:
    return None if value is None else Jsonb(value)
