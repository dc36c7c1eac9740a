"""Workers: the machines that do the work, how they become known here, and when they count as online.

A worker is online while something vouches for it: what this runtime sees itself (a registration as online, a claim, a
heartbeat, an answered health poll: `alive_at`), or Membridge saying `online` (`membridge_online_at`). Who has been
silent for `workers.offline_after` goes offline. Values that a source does not send never overwrite what is known.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from bloomd.runtime import leases
from bloomd.runtime.database import Database
from bloomd.runtime.leases import Retry
from bloomd.runtime.model import Lease, NewWorker, Worker
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Conflict, NotFound

# A lease that is being heartbeaten or completed at the very moment is passed over, and gone or due at the next try.
FORCE_TRIES = 5

# `xmax = 0` tells an inserted row from an updated one.
REGISTER = """
WITH known AS (
    SELECT status FROM workers WHERE id = %(id)s
), worker AS (
    INSERT INTO workers (id, node_id, url, status, capabilities, last_heartbeat, alive_at, ip_addrs, registered_at,
                         agent_version, os_info, install_method)
    SELECT %(id)s, %(id)s, coalesce(%(url)s, ''), coalesce(%(status)s, 'online'),
           '{"claude_cli": true, "max_concurrency": 1, "labels": []}'::jsonb || coalesce(%(capabilities)s::jsonb, '{}'),
           now_ms, CASE WHEN coalesce(%(status)s, 'online') = 'online' THEN now_ms END,
           coalesce(%(ip_addrs)s::jsonb, '[]'), now_ms, %(agent_version)s, %(os_info)s, %(install_method)s
      FROM bloom_now_ms() AS now_ms
        ON CONFLICT (id) DO UPDATE
       SET url            = coalesce(%(url)s, workers.url),
           status         = coalesce(%(status)s, workers.status),
           capabilities   = workers.capabilities || coalesce(%(capabilities)s::jsonb, '{}'),
           last_heartbeat = excluded.last_heartbeat,
           alive_at       = CASE WHEN coalesce(%(status)s, workers.status) = 'online' THEN excluded.last_heartbeat
                                 ELSE workers.alive_at END,
           ip_addrs       = coalesce(%(ip_addrs)s::jsonb, workers.ip_addrs),
           agent_version  = coalesce(%(agent_version)s, workers.agent_version),
           os_info        = coalesce(%(os_info)s, workers.os_info),
           install_method = coalesce(%(install_method)s, workers.install_method),
           source         = 'direct'
    RETURNING *, xmax = 0 AS new
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), last_heartbeat, CASE WHEN new THEN 'worker.registered' ELSE 'worker.updated' END,
           'worker', id, %(actor)s, 'status ' || status || CASE WHEN url <> '' THEN ', url ' || url ELSE '' END
      FROM worker
)
SELECT to_jsonb(worker) - 'new' AS worker, worker.new FROM worker
"""

ONE = """
SELECT * FROM workers WHERE id = %(id)s
"""

LEASES = """
SELECT * FROM leases WHERE worker_id = %(id)s AND status = 'active' ORDER BY started_at DESC, id DESC
"""

LIST = """
SELECT *
  FROM workers
 WHERE (registered_at, id) < (%(at)s, %(before)s)
   AND (%(status)s::varchar IS NULL OR status = %(status)s)
 ORDER BY registered_at DESC, id DESC
 LIMIT %(limit)s
"""

# The worker goes only when it holds nothing: `active_leases` is checked on the locked row.
REMOVE = """
WITH worker AS (
    DELETE FROM workers WHERE id = %(id)s AND active_leases = 0 RETURNING id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.removed', 'worker', id, %(actor)s, NULL FROM worker
)
SELECT id FROM worker
"""

# No new lease reaches a cordoned worker, and those that it holds are over: expiring them queues their tasks again.
RELEASE_ALL = """
WITH worker AS (
    UPDATE workers SET cordoned = true WHERE id = %(id)s RETURNING id
)
UPDATE leases SET expires_at = least(expires_at, bloom_now_ms()) FROM worker
 WHERE leases.worker_id = worker.id AND leases.status = 'active'
"""

# One round of mirroring: every agent in one statement, and only rows that differ are written.
MIRROR = """
WITH agent AS (
    SELECT *
      FROM jsonb_to_recordset(%(agents)s) AS agent (
               id varchar, node_id varchar, url varchar, status varchar, capabilities jsonb, last_seen_ms bigint,
               ip_addrs jsonb, obs_count integer, db_sha varchar)
     ORDER BY id
), known AS MATERIALIZED (
    SELECT workers.* FROM workers JOIN agent ON agent.id = workers.id ORDER BY workers.id FOR UPDATE OF workers
), next AS (
    SELECT agent.id,
           known.id IS NULL AS new,
           coalesce(agent.node_id, known.node_id, agent.id) AS node_id,
           coalesce(agent.url, known.url, '') AS url,
           CASE WHEN agent.status IS NULL OR agent.status = 'unknown' THEN coalesce(known.status, 'unknown')
                WHEN agent.status = 'online' THEN 'online'
                WHEN known.alive_at > now_ms - %(offline_after_ms)s THEN known.status
                ELSE agent.status END AS status,
           coalesce(known.capabilities, '{"claude_cli": true, "max_concurrency": 1, "labels": []}')
               || coalesce(agent.capabilities, '{}') AS capabilities,
           greatest(agent.last_seen_ms, known.last_heartbeat) AS last_heartbeat,
           CASE WHEN agent.status = 'online' THEN now_ms ELSE known.membridge_online_at END AS membridge_online_at,
           coalesce(agent.ip_addrs, known.ip_addrs, '[]') AS ip_addrs,
           coalesce(agent.obs_count, known.obs_count, 0) AS obs_count,
           coalesce(agent.db_sha, known.db_sha, '') AS db_sha,
           now_ms
      FROM agent
      LEFT JOIN known ON known.id = agent.id
     CROSS JOIN bloom_now_ms() AS now_ms
), added AS (
    INSERT INTO workers (id, node_id, url, status, capabilities, last_heartbeat, membridge_online_at, ip_addrs,
                         obs_count, db_sha, registered_at, source)
    SELECT id, node_id, url, status, capabilities, last_heartbeat, membridge_online_at, ip_addrs, obs_count,
           db_sha, now_ms, 'membridge'
      FROM next
     WHERE new
        ON CONFLICT (id) DO NOTHING
    RETURNING id, status
), changed AS (
    UPDATE workers
       SET node_id = next.node_id, url = next.url, status = next.status, capabilities = next.capabilities,
           ip_addrs = next.ip_addrs, obs_count = next.obs_count, db_sha = next.db_sha,
           last_heartbeat = next.last_heartbeat, membridge_online_at = next.membridge_online_at
      FROM next
     WHERE workers.id = next.id AND NOT next.new
       AND (workers.node_id, workers.url, workers.status, workers.capabilities, workers.ip_addrs, workers.obs_count,
            workers.db_sha)
           IS DISTINCT FROM
           (next.node_id, next.url, next.status, next.capabilities, next.ip_addrs, next.obs_count, next.db_sha)
    RETURNING workers.id, workers.status
), refreshed AS (
    UPDATE workers
       SET last_heartbeat = next.last_heartbeat, membridge_online_at = next.membridge_online_at
      FROM next
     WHERE workers.id = next.id AND NOT next.new
       AND (workers.node_id, workers.url, workers.status, workers.capabilities, workers.ip_addrs, workers.obs_count,
            workers.db_sha)
           IS NOT DISTINCT FROM
           (next.node_id, next.url, next.status, next.capabilities, next.ip_addrs, next.obs_count, next.db_sha)
       AND (workers.last_heartbeat, workers.membridge_online_at)
           IS DISTINCT FROM (next.last_heartbeat, next.membridge_online_at)
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), action, 'worker', id, 'membridge', 'status ' || status
      FROM (SELECT 'worker.registered' AS action, id, status FROM added
            UNION ALL
            SELECT 'worker.updated', id, status FROM changed) AS each
)
SELECT (SELECT count(*) FROM added) AS added, (SELECT count(*) FROM changed) AS changed
"""

# Membridge's own workers that nothing vouches for any more: silent, or gone from its list without other sign of life.
MIRROR_SILENT = """
WITH silent AS (
    UPDATE workers
       SET status = 'offline'
     WHERE source = 'membridge'
       AND (status = 'online' OR status <> 'offline' AND id <> ALL (%(listed)s))
       AND coalesce(greatest(alive_at, membridge_online_at), registered_at) < bloom_now_ms() - %(offline_after_ms)s
    RETURNING id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.offline', 'worker', id, 'membridge', 'nothing vouches for it'
      FROM silent
)
SELECT id FROM silent
"""

# While a Membridge is configured its own workers are the mirror's affair: its outage takes nobody offline.
SILENT = """
WITH silent AS (
    UPDATE workers
       SET status = 'offline'
     WHERE status = 'online'
       AND (source = 'direct' OR NOT %(mirrored)s)
       AND coalesce(greatest(alive_at, membridge_online_at), registered_at) < bloom_now_ms() - %(offline_after_ms)s
    RETURNING id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.offline', 'worker', id, 'bloomd', 'silent for too long'
      FROM silent
)
SELECT id FROM silent
"""

WITH_URL = """
SELECT id, url FROM workers WHERE url <> '' ORDER BY id
"""

POLLED = """
WITH poll AS (
    SELECT *
      FROM jsonb_to_recordset(%(polls)s) AS poll (
               id varchar, ok boolean, version varchar, os_info varchar, capabilities jsonb, ip_addrs jsonb)
     WHERE ok
), known AS MATERIALIZED (
    SELECT workers.id, workers.status
      FROM workers
      JOIN poll ON poll.id = workers.id
     ORDER BY workers.id
       FOR UPDATE OF workers
), alive AS (
    UPDATE workers
       SET status         = 'online',
           alive_at       = bloom_now_ms(),
           last_heartbeat = bloom_now_ms(),
           agent_version  = coalesce(poll.version, workers.agent_version),
           os_info        = coalesce(poll.os_info, workers.os_info),
           capabilities   = workers.capabilities || coalesce(poll.capabilities, '{}'),
           ip_addrs       = coalesce(poll.ip_addrs, workers.ip_addrs)
      FROM poll
      JOIN known ON known.id = poll.id
     WHERE workers.id = poll.id
    RETURNING workers.id, known.status AS before
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.online', 'worker', id, 'bloomd', 'it answered its health poll'
      FROM alive
     WHERE before <> 'online'
)
SELECT id FROM alive
"""


class Registered(msgspec.Struct, frozen=True):
    worker: Worker
    new: bool


class Target(msgspec.Struct, frozen=True):
    id: str
    url: str


class Mirrored(msgspec.Struct, frozen=True):
    """What one round of mirroring changed."""

    added: int
    changed: int
    offline: int = 0


class _Id(msgspec.Struct, frozen=True):
    id: str


async def register(
    database: Database, worker: NewWorker, *, capabilities: dict[str, Any] | None = None, actor: str
) -> Registered:
    """Make a worker known, or bring what is known of it up to date; what is not said stays as it is.

    `capabilities` are all that were sent, keys that bloomd does not read included.
    """
    registered = await database.row(
        Registered,
        REGISTER,
        id=worker.name,
        url=worker.url,
        status=worker.status,
        capabilities=_jsonb(capabilities),
        ip_addrs=_jsonb(worker.ip_addrs),
        agent_version=worker.agent_version,
        os_info=worker.os_info,
        install_method=worker.install_method,
        actor=actor,
    )
    if registered is None:
        raise AssertionError("an upsert gives its row")
    return registered


async def one(database: Database, id: str) -> Worker:
    """One worker.

    Raises:
        NotFound: there is none with this id.
    """
    if worker := await database.row(Worker, ONE, id=id):
        return worker
    raise NotFound("Worker not found")


async def active_leases(database: Database, id: str) -> list[Lease]:
    """What the worker holds now, newest first."""
    return await database.rows(Lease, LEASES, id=id)


async def listing(database: Database, page: Page, *, status: str | None = None) -> list[Worker]:
    """A page of workers, the latest registered first."""
    return await database.listing(Worker, LIST, status=status, at=page.at, before=page.id, limit=page.limit)


async def remove(database: Database, id: str, *, force: Retry | None = None, actor: str) -> None:
    """Forget a worker. With `force` it is cordoned, and its leases expire first, by these rules.

    Raises:
        NotFound: there is none with this id.
        Conflict: it holds leases.
    """
    worker = await one(database, id)
    for _ in range(FORCE_TRIES if force else 1):
        if force:
            await database.execute(RELEASE_ALL, id=id)
            await leases.expire(database, retry=force)
        if await database.row(_Id, REMOVE, id=id, actor=actor):
            return
        worker = await one(database, id)
    raise Conflict(f"Worker holds {worker.active_leases} active leases; wait for them, or remove it with ?force=true")


async def mirror(database: Database, agents: Sequence[msgspec.Struct], *, offline_after: float) -> Mirrored:
    """Take over what Membridge says of its agents (`Agent` structs of `bloomd.membridge.agents`). Leases are untouched.

    Two statements whatever the number of agents, in one transaction with their audit entries. `offline_after` is in
    seconds.
    """
    rows = msgspec.to_builtins(agents)
    milliseconds = int(offline_after * 1000)
    done = await database.row(Mirrored, MIRROR, agents=Jsonb(rows), offline_after_ms=milliseconds)
    gone = await database.rows(_Id, MIRROR_SILENT, listed=[row["id"] for row in rows], offline_after_ms=milliseconds)
    if done is None:
        raise AssertionError("a count gives a row")
    return Mirrored(added=done.added, changed=done.changed, offline=len(gone))


async def mark_silent(database: Database, *, offline_after: float, mirrored: bool) -> list[str]:
    """Take the workers offline for which nothing has vouched for `offline_after` seconds; their ids.

    `mirrored` says that a Membridge is configured, which then decides about its own workers.
    """
    milliseconds = int(offline_after * 1000)
    return [row.id for row in await database.rows(_Id, SILENT, offline_after_ms=milliseconds, mirrored=mirrored)]


async def with_url(database: Database) -> list[Target]:
    """The workers that can be called."""
    return await database.rows(Target, WITH_URL)


async def record_polls(database: Database, polls: Sequence[msgspec.Struct]) -> None:
    """Note which workers answered their health poll (`PollResult` structs), and what they said of themselves."""
    await database.rows(_Id, POLLED, polls=Jsonb(msgspec.to_builtins(polls)))


def _jsonb(value: object) -> Jsonb | None:
    return None if value is None else Jsonb(msgspec.to_builtins(value))
