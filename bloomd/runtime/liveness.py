"""Which workers are there: what Membridge says of them, what we hear from them, and who has fallen silent.

A worker is online while something vouches for it: what this runtime sees itself (a registration as online, a claim, a
heartbeat, an answered health poll: `alive_at`), or Membridge saying `online` (`membridge_online_at`). Who has been
silent for `workers.offline_after` goes offline, and at once who does not take the connections of pushes (`pushes.py`):
Membridge cannot vouch for it then. Values that a source does not send never overwrite what is known.

All of this is for the leader to find out (`leader.py`): what it says in an epoch that is over changes nothing. Only who
is asked by hand how it is may be asked by any node.
"""

from collections.abc import Sequence

import msgspec
from psycopg.types.json import Jsonb

from bloomd.errors import Unavailable
from bloomd.runtime.database import Database
from bloomd.runtime.ids import Id

# The connections of pushes in a row that a worker does not take, with which it goes offline.
TOO_OFTEN_UNREACHED = 3

# What a worker can do is merged from all that was ever said of it: as JSON that is so much, and what would make it more
# is not taken over.
CAPABILITIES_LIMIT = 64 * 1024

# One round of mirroring: every agent in one statement, and only rows that differ are written.
MIRROR = """
WITH agent AS (
    SELECT *
      FROM jsonb_to_recordset(%(agents)s) AS agent (
               id varchar, node_id varchar, url varchar, status varchar, capabilities jsonb, last_seen_ms bigint,
               ip_addrs jsonb, obs_count integer, db_sha varchar)
     WHERE bloom_leads(%(epoch)s)
     ORDER BY id
), known AS MATERIALIZED (
    SELECT workers.* FROM workers JOIN agent ON agent.id = workers.id ORDER BY workers.id FOR UPDATE OF workers
), next AS (
    SELECT agent.id,
           known.id IS NULL AS new,
           coalesce(agent.node_id, known.node_id, agent.id) AS node_id,
           coalesce(agent.url, known.url, '') AS url,
           CASE WHEN agent.status IS NULL OR agent.status = 'unknown' THEN coalesce(known.status, 'unknown')
                WHEN agent.status = 'online' AND known.unreached >= %(too_often)s
                     AND coalesce(agent.url, known.url) = known.url THEN known.status
                WHEN agent.status = 'online' THEN 'online'
                WHEN known.alive_at > now_ms - %(offline_after_ms)s THEN known.status
                ELSE agent.status END AS status,
           CASE WHEN octet_length(merged::text) > greatest(%(capabilities_limit)s,
                                                           octet_length(known.capabilities::text))
                THEN known.capabilities ELSE merged END AS capabilities,
           greatest(agent.last_seen_ms, known.last_heartbeat) AS last_heartbeat,
           CASE WHEN agent.status = 'online' THEN now_ms ELSE known.membridge_online_at END AS membridge_online_at,
           coalesce(agent.ip_addrs, known.ip_addrs, '[]') AS ip_addrs,
           coalesce(agent.obs_count, known.obs_count, 0) AS obs_count,
           coalesce(agent.db_sha, known.db_sha, '') AS db_sha,
           now_ms
      FROM agent
      LEFT JOIN known ON known.id = agent.id
     CROSS JOIN bloom_now_ms() AS now_ms
     CROSS JOIN LATERAL (SELECT coalesce(known.capabilities,
                                         '{"claude_cli": true, "max_concurrency": 1, "labels": []}')
                                    || coalesce(agent.capabilities, '{}') AS merged) AS both_say
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
           last_heartbeat = next.last_heartbeat, membridge_online_at = next.membridge_online_at,
           unreached = CASE WHEN workers.url = next.url THEN workers.unreached ELSE 0 END
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
SELECT (SELECT count(*) FROM added) AS added, (SELECT count(*) FROM changed) AS changed, bloom_leads(%(epoch)s) AS led
"""

# The workers of these sources for which nothing vouches any more: those online, and of a list those not on it either.
SILENT = """
WITH quiet AS (
    SELECT id
      FROM workers
     WHERE bloom_leads(%(epoch)s)
       AND source = ANY (%(sources)s)
       AND (status = 'online' OR status <> 'offline' AND id <> ALL (%(listed)s::varchar[]))
       AND coalesce(greatest(alive_at, membridge_online_at), registered_at) < bloom_now_ms() - %(offline_after_ms)s
     ORDER BY id
       FOR UPDATE
), silent AS (
    UPDATE workers SET status = 'offline' FROM quiet WHERE workers.id = quiet.id RETURNING workers.id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.offline', 'worker', id, %(actor)s, 'nothing vouches for it'
      FROM silent
)
SELECT id FROM silent
"""

WITH_URL = """
SELECT id, url FROM workers WHERE url <> '' ORDER BY id
"""

# Without an epoch somebody has asked by hand, who need not be the leader.
POLLED = """
WITH poll AS (
    SELECT *
      FROM jsonb_to_recordset(%(polls)s) AS poll (
               id varchar, ok boolean, version varchar, os_info varchar, capabilities jsonb, ip_addrs jsonb)
     WHERE ok AND (%(epoch)s::bigint IS NULL OR bloom_leads(%(epoch)s))
), known AS MATERIALIZED (
    SELECT workers.id, workers.status, workers.capabilities,
           workers.capabilities || coalesce(poll.capabilities, '{}') AS merged
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
           capabilities   = CASE WHEN octet_length(merged::text) > greatest(%(capabilities_limit)s,
                                                                            octet_length(known.capabilities::text))
                                 THEN known.capabilities ELSE merged END,
           ip_addrs       = coalesce(poll.ip_addrs, workers.ip_addrs),
           unreached      = 0
      FROM poll
      JOIN known ON known.id = poll.id
     WHERE workers.id = poll.id
    RETURNING workers.id, known.status AS before
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.online', 'worker', id, %(actor)s, 'it answered its health poll'
      FROM alive
     WHERE before <> 'online'
)
SELECT before FROM alive
"""

# Somebody has asked by hand, and the worker did not answer.
UNANSWERED = """
WITH known AS MATERIALIZED (
    SELECT id FROM workers WHERE id = %(id)s AND status <> 'offline' FOR UPDATE
), silent AS (
    UPDATE workers SET status = 'offline' FROM known WHERE workers.id = known.id RETURNING workers.id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.offline', 'worker', id, %(actor)s, %(error)s FROM silent
)
SELECT id FROM silent
"""


class Target(msgspec.Struct, frozen=True):
    id: str
    url: str


class Mirrored(msgspec.Struct, frozen=True):
    """What one round of mirroring changed."""

    added: int
    changed: int
    offline: int = 0


class _Mirrored(msgspec.Struct, frozen=True):
    added: int
    changed: int
    led: bool


class _Polled(msgspec.Struct, frozen=True):
    before: str
    """Its status until now."""


async def mirror(database: Database, agents: Sequence[msgspec.Struct], epoch: int, *, offline_after: float) -> Mirrored:
    """Take over what Membridge says of its agents (`Agent` structs of `bloomd.membridge.agents`). Leases are untouched.

    Two statements whatever the number of agents; each is whole without the other. `offline_after` is in seconds.

    Raises:
        Unavailable: the epoch is over.
    """
    listed = msgspec.to_builtins(agents)
    milliseconds = int(offline_after * 1000)
    [done] = await database.rows(
        _Mirrored,
        MIRROR,
        agents=Jsonb(listed),
        offline_after_ms=milliseconds,
        too_often=TOO_OFTEN_UNREACHED,
        capabilities_limit=CAPABILITIES_LIMIT,
        epoch=epoch,
    )
    if not done.led:
        raise Unavailable(f"this node does not lead any more: epoch {epoch} is over")
    gone = await database.change(
        Id,
        SILENT,
        sources=["membridge"],
        listed=[agent["id"] for agent in listed],
        offline_after_ms=milliseconds,
        actor="membridge",
        epoch=epoch,
    )
    if done.added or done.changed:
        database.on_change()
        database.on_offer()
    return Mirrored(added=done.added, changed=done.changed, offline=len(gone))


async def mark_silent(database: Database, *, offline_after: float, mirrored: bool, epoch: int) -> list[str]:
    """Take the workers offline for which nothing has vouched for `offline_after` seconds; their ids.

    `mirrored` says that a Membridge is configured. It then decides about its own workers, so that its outage takes
    nobody offline.
    """
    silent = await database.change(
        Id,
        SILENT,
        sources=["direct"] if mirrored else ["direct", "membridge"],
        listed=None,
        offline_after_ms=int(offline_after * 1000),
        actor="bloomd",
        epoch=epoch,
    )
    return [worker.id for worker in silent]


async def with_url(database: Database) -> list[Target]:
    """The workers that can be called."""
    return await database.rows(Target, WITH_URL)


async def record_polls(database: Database, polls: Sequence[msgspec.Struct], epoch: int) -> None:
    """Note which workers answered their health poll (`PollResult` structs), and what they said of themselves."""
    await _record(database, polls, epoch, "bloomd")


async def record_answer(database: Database, poll: msgspec.Struct, *, actor: str) -> None:
    """The same of one worker that somebody has asked by hand, whoever leads."""
    await _record(database, [poll], None, actor)


async def record_no_answer(database: Database, id: str, error: str, *, actor: str) -> None:
    """Take a worker offline that has not answered somebody who asked by hand."""
    await database.change(Id, UNANSWERED, id=id, error=error, actor=actor)


async def _record(database: Database, polls: Sequence[msgspec.Struct], epoch: int | None, actor: str) -> None:
    listed = Jsonb(msgspec.to_builtins(polls))
    alive = await database.rows(
        _Polled, POLLED, polls=listed, epoch=epoch, capabilities_limit=CAPABILITIES_LIMIT, actor=actor
    )
    if any(worker.before != "online" for worker in alive):
        database.on_change()
        database.on_offer()
