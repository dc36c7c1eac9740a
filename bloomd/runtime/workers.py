"""Workers: the machines that do the work. Registering them, looking at them, forgetting them.

What is not said never overwrites what is known. When a worker counts as online is told in `liveness.py`.
"""

from typing import Any

import msgspec
import trio
from psycopg.types.json import Jsonb

from bloomd.runtime import expiry
from bloomd.runtime.database import Database, rows
from bloomd.runtime.ids import Id
from bloomd.runtime.liveness import CAPABILITIES_LIMIT
from bloomd.runtime.model import Lease, NewWorker, Retry, Worker
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Conflict, NotFound

# A task that somebody holds locked is passed over at first: some milliseconds later it is free.
FORCE_TRIES = 5
FORCE_PAUSE = 0.05

# Registering is a sign of life: without a status of its own, a worker that had fallen silent is online again.
# `xmax = 0` tells an inserted row from an updated one. A known worker of which too much would be known then stays as it
# is, and there is no row. Where its agent listens now is tried anew.
REGISTER = """
WITH worker AS (
    INSERT INTO workers (id, node_id, url, status, capabilities, last_heartbeat, alive_at, ip_addrs, registered_at,
                         agent_version, os_info, install_method)
    SELECT %(id)s, %(id)s, coalesce(%(url)s, ''), coalesce(%(status)s, 'online'),
           '{"claude_cli": true, "max_concurrency": 1, "labels": []}'::jsonb || coalesce(%(capabilities)s::jsonb, '{}'),
           now_ms, CASE WHEN coalesce(%(status)s, 'online') = 'online' THEN now_ms END,
           coalesce(%(ip_addrs)s::jsonb, '[]'), now_ms, %(agent_version)s, %(os_info)s, %(install_method)s
      FROM bloom_now_ms() AS now_ms
        ON CONFLICT (id) DO UPDATE
       SET url            = coalesce(%(url)s, workers.url),
           status         = coalesce(%(status)s, CASE WHEN workers.status IN ('offline', 'unknown') THEN 'online'
                                                      ELSE workers.status END),
           capabilities   = workers.capabilities || coalesce(%(capabilities)s::jsonb, '{}'),
           unreached      = CASE WHEN coalesce(%(url)s, workers.url) = workers.url THEN workers.unreached ELSE 0 END,
           last_heartbeat = excluded.last_heartbeat,
           alive_at       = CASE WHEN coalesce(%(status)s, 'online') = 'online' THEN excluded.last_heartbeat
                                 ELSE workers.alive_at END,
           ip_addrs       = coalesce(%(ip_addrs)s::jsonb, workers.ip_addrs),
           agent_version  = coalesce(%(agent_version)s, workers.agent_version),
           os_info        = coalesce(%(os_info)s, workers.os_info),
           install_method = coalesce(%(install_method)s, workers.install_method),
           source         = 'direct'
     WHERE octet_length((workers.capabilities || coalesce(%(capabilities)s::jsonb, '{}'))::text)
               <= greatest(%(capabilities_limit)s, octet_length(workers.capabilities::text))
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

# Whether a worker gets new leases is its operator's decision. Says what is so already: nothing happens.
HOLD_BACK = """
WITH before AS (
    SELECT id, cordoned, draining FROM workers WHERE id = %(id)s FOR UPDATE
), worker AS (
    UPDATE workers
       SET cordoned = next.cordoned, draining = next.draining
      FROM before,
           LATERAL (SELECT coalesce(%(cordoned)s::boolean, before.cordoned) AS cordoned,
                           coalesce(%(draining)s::boolean, before.draining) AS draining) AS next
     WHERE workers.id = before.id
       AND (before.cordoned, before.draining) IS DISTINCT FROM (next.cordoned, next.draining)
    RETURNING workers.*
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), %(action)s, 'worker', id, %(actor)s,
           'it holds ' || active_leases || CASE active_leases WHEN 1 THEN ' lease' ELSE ' leases' END
      FROM worker
)
SELECT * FROM worker
"""

# Its agent has gone from its machine: it is offline, and whatever may vouch for it yet, it gets no leases.
RETIRE = """
WITH worker AS (
    UPDATE workers SET status = 'offline', cordoned = true WHERE id = %(id)s RETURNING id, active_leases
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.agent-uninstalled', 'worker', id, %(actor)s,
           'offline and cordoned, leases it holds: ' || active_leases
      FROM worker
)
SELECT id FROM worker
"""

# The worker goes only when it holds nothing: `active_leases` is checked on the locked row.
REMOVE = """
WITH worker AS (
    DELETE FROM workers WHERE id = %(id)s AND active_leases = 0 RETURNING id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.removed', 'worker', id, %(actor)s, '' FROM worker
)
SELECT id FROM worker
"""


class Registered(msgspec.Struct, frozen=True):
    worker: Worker
    new: bool


async def register(
    database: Database, worker: NewWorker, *, capabilities: dict[str, Any] | None = None, actor: str
) -> Registered:
    """Make a worker known, or bring what is known of it up to date; what is not said stays as it is.

    `capabilities` are all that were sent, keys that bloomd does not read included.

    Raises:
        Conflict: with what is known already, these would be too many.
    """
    registered = await database.change(
        Registered,
        REGISTER,
        id=worker.name,
        url=worker.url,
        status=worker.status,
        capabilities=_jsonb(capabilities),
        capabilities_limit=CAPABILITIES_LIMIT,
        ip_addrs=_jsonb(worker.ip_addrs),
        agent_version=worker.agent_version,
        os_info=worker.os_info,
        install_method=worker.install_method,
        actor=actor,
    )
    if not registered:
        raise Conflict(
            f"With what worker {worker.name} has said before, its capabilities would be over"
            f" {CAPABILITIES_LIMIT // 1024} KiB: say null for those that it has no more, or remove it first"
        )
    if registered[0].worker.status == "online":
        database.on_offer()
    return registered[0]


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


async def cordon(database: Database, id: str, *, actor: str) -> Worker:
    """Give the worker no new leases until `uncordon`; what it holds goes on.

    Raises:
        NotFound: there is none with this id.
    """
    return await _hold_back(database, id, "worker.cordoned", cordoned=True, actor=actor)


async def drain(database: Database, id: str, *, actor: str) -> Worker:
    """The same with the intention to take it away: it is empty when `active_leases` is 0.

    Raises:
        NotFound: there is none with this id.
    """
    return await _hold_back(database, id, "worker.draining", draining=True, actor=actor)


async def uncordon(database: Database, id: str, *, actor: str) -> Worker:
    """Give the worker leases again, whether it was cordoned or draining.

    Raises:
        NotFound: there is none with this id.
    """
    worker = await _hold_back(database, id, "worker.uncordoned", cordoned=False, draining=False, actor=actor)
    database.on_offer()
    return worker


async def retire(database: Database, id: str, *, actor: str) -> None:
    """Expect nothing more of a worker whose agent was uninstalled. Its leases expire, and it may be removed."""
    await database.change(Id, RETIRE, id=id, actor=actor)


async def _hold_back(
    database: Database, id: str, action: str, *, cordoned: bool | None = None, draining: bool | None = None, actor: str
) -> Worker:
    changed = await database.change(
        Worker, HOLD_BACK, id=id, cordoned=cordoned, draining=draining, action=action, actor=actor
    )
    return changed[0] if changed else await one(database, id)


async def remove(database: Database, id: str, *, force: Retry | None = None, actor: str) -> None:
    """Forget a worker. With `force` its leases end first, by these rules; all of it happens, or nothing does.

    Raises:
        NotFound: there is none with this id.
        Conflict: it holds leases.
    """
    for attempt in range(FORCE_TRIES if force else 1):
        await trio.sleep(FORCE_PAUSE * attempt)
        try:
            async with database.transaction() as connection:
                ended = (
                    await expiry.end_all_of(connection, id, retry=force, reason="its worker was removed", actor=actor)
                    if force
                    else []
                )
                if not await rows(connection, Id, REMOVE, {"id": id, "actor": actor}):
                    raise _StillBusy
        except _StillBusy:
            continue
        expiry.note(database, ended)
        database.on_change()
        if ended:
            database.on_offer()
        return
    worker = await one(database, id)
    raise Conflict(f"Worker holds {worker.active_leases} active leases; wait for them, or remove it with ?force=true")


class _StillBusy(Exception):
    """Rolls the transaction of `remove` back."""


def _jsonb(value: object) -> Jsonb | None:
    return None if value is None else Jsonb(msgspec.to_builtins(value))
