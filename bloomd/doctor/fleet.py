"""The work: whether workers are there, tasks move, attempts last, and somebody leads; as the database has it."""

from typing import LiteralString

import msgspec

from bloomd.control.layout import count, duration
from bloomd.doctor.case import Case
from bloomd.doctor.finding import Found, Skip, error, ok, warning
from bloomd.runtime import backups
from bloomd.runtime.explain import explain
from bloomd.runtime.refusals import NotFound

# A task that could run and has waited for so long deserves a look.
WAITED_SECONDS = 120.0

# A lease that is rescued now and then is a machine that was switched off; this many within an hour are a pattern.
OFTEN = 10

# So many tasks, each of another kind, are looked at: more kinds than there are, and soon done.
KINDS = 50

# Why a task waits (`runtime/explain.py`) that is no trouble: everybody is at work.
BUSY = frozenset({"workers-full", "context-turn", "conversation"})
# What a person has done on purpose, or is to do, and may have forgotten; and workers that will be back.
BY_HAND = frozenset({"queue-paused", "workers-paused", "workers-cordoned", "workers-draining", "claimable"})

# The latest first. Those that are held back by hand are missed by nobody; one that has paused itself is not silent.
SILENT = """
SELECT id, (bloom_now_ms() - heard_at) / 1000 AS seconds
  FROM workers, LATERAL (SELECT coalesce(greatest(alive_at, membridge_online_at), registered_at, 0)) AS last (heard_at)
 WHERE (status = 'offline' OR heard_at < bloom_now_ms() - %(offline_after_ms)s)
   AND NOT cordoned AND NOT draining
 ORDER BY seconds, id
"""

WORKERS = """
SELECT count(*)::integer AS number FROM workers
"""

NOW = """
SELECT bloom_now_ms() AS number
"""

PUSHED_TO = """
SELECT count(*)::integer AS number FROM workers WHERE url <> ''
"""

# What has waited longest of each kind that waits for workers of its own, as those with the same labels do.
OLDEST = """
SELECT id, (bloom_now_ms() - since) / 1000 AS seconds
  FROM (SELECT DISTINCT ON (pin, kind) id, greatest(created_at, retry_at, not_before) AS since
          FROM llm_tasks, LATERAL (SELECT coalesce(pinned_worker_id, ''), bloom_kind(labels)) AS for_whom (pin, kind)
         WHERE status = 'queued' AND ready
         ORDER BY pin, kind, since) AS oldest
 WHERE since < bloom_now_ms() - %(waited_ms)s
 ORDER BY since
 LIMIT %(limit)s
"""

RESCUED = """
SELECT worker_id, count(*)::integer AS leases, sum(count(*)) OVER ()::integer AS of_all
  FROM leases
 WHERE status = 'expired' AND ended_at > bloom_now_ms() - 3600000
 GROUP BY worker_id
 ORDER BY leases DESC, worker_id
 LIMIT 1
"""

_BADNESS = {"ok": 0, "skipped": 0, "warning": 1, "error": 2}

LEADER = """
SELECT node, epoch FROM leaders WHERE role = 'leader' AND expires_at > bloom_now_ms()
"""


class _Number(msgspec.Struct, frozen=True):
    number: int


class _Silent(msgspec.Struct, frozen=True):
    id: str
    seconds: int


class _Oldest(msgspec.Struct, frozen=True):
    id: str
    seconds: int


class _Rescued(msgspec.Struct, frozen=True):
    worker_id: str
    leases: int
    of_all: int


class _Leader(msgspec.Struct, frozen=True):
    node: str
    epoch: int


async def agents_key(case: Case) -> Found:
    """Who pushes tasks to agents has the key for them."""
    with_url = await _number(case, PUSHED_TO)
    if not with_url:
        raise Skip("no worker has a URL")
    if case.settings.membridge.agent_key is not None:
        return ok("there is a key for the agents")
    have = "1 worker has a URL" if with_url == 1 else f"{with_url} workers have a URL"
    return warning(
        f"{have}, and there is no key for their agents", "set membridge.agent_key (MEMBRIDGE_AGENT_KEY), then reload"
    )


async def workers_silent(case: Case) -> Found:
    """Every worker gives signs of life, but those that are held back by hand."""
    known = await _number(case, WORKERS)
    if not known:
        raise Skip("no worker is registered")
    offline_after = case.settings.workers.offline_after
    silent = await case.database.rows(_Silent, SILENT, offline_after_ms=int(offline_after * 1000))
    if not silent:
        return ok(f"no worker is silent, of {known}")
    names = ", ".join(f"{worker.id} for {duration(worker.seconds)}" for worker in silent[:3])
    more = " and others" if len(silent) > 3 else ""
    text = f"{len(silent)} of {count(known, 'worker')} silent: {names}{more}"
    fix = f"bloomd-ctl worker show {silent[0].id}; see its log, or forget it: bloomd-ctl worker remove {silent[0].id}"
    return error(text, fix) if len(silent) == known else warning(text, fix)


async def queue_stuck(case: Case) -> Found:
    """A task that could run does run before long."""
    waiting = await case.database.rows(_Oldest, OLDEST, waited_ms=int(WAITED_SECONDS * 1000), limit=KINDS)
    found = [await _explained(case, task) for task in waiting]
    return max(found, key=lambda each: _BADNESS[each.state], default=ok("no task waits for long"))


async def _explained(case: Case, task: _Oldest) -> Found:
    """Whether it has to wait, or nobody will ever take it."""
    try:
        reasons = (await explain(case.database, task.id)).reasons
    except NotFound:
        return ok("it is gone meanwhile")
    codes = {reason.code for reason in reasons}
    why = " ".join(reason.sentence for reason in reasons)
    text = f"task {task.id} has waited for {duration(task.seconds)}: {why}"
    if codes <= BUSY:
        return ok(text)
    if "queue-paused" in codes:
        return warning(text, "bloomd-ctl resume")
    fix = f"bloomd-ctl why {task.id}"
    return warning(text, fix) if codes <= BUSY | BY_HAND else error(text, fix)


async def leases_rescued(case: Case) -> Found:
    """Attempts come to an end, and not their leases."""
    found = await case.database.rows(_Rescued, RESCUED)
    total = found[0].of_all if found else 0
    if total < OFTEN:
        return ok(f"{total} leases were rescued within the last hour")
    [worst] = found
    return warning(
        f"{total} leases were rescued within the last hour, {worst.leases} of them from worker {worst.worker_id}",
        f"bloomd-ctl worker show {worst.worker_id}; bloomd-ctl cordon {worst.worker_id} gives it no more",
    )


async def leader_present(case: Case) -> Found:
    """Some node sweeps for all."""
    found = await case.database.rows(_Leader, LEADER)
    if found:
        return ok(f"the node {found[0].node} leads, epoch {found[0].epoch}")
    case.need_service("database")  # whoever has none cannot lead
    return error("no node leads, so expired leases are not rescued", "bloomd-ctl restart leader-election")


async def backup_age(case: Case) -> Found:
    """There is a backup that would do."""
    settings = case.settings.backup
    if settings.schedule is None:
        raise Skip("no backup is made by schedule: backup.schedule is not set")
    known = await backups.known(case.database)
    if known is None:
        return ok(f"the first backup is due at {settings.schedule}")
    now = await _number(case, NOW)
    if concern := known.concern(now, warn_after_days=settings.warn_after_days):
        return warning(concern, "bloomd-ctl log -n 1000, on the node that leads: what it says of the backup")
    if known.verified_from is None:
        return ok(f"the first backup is {'being made' if known.under_way else f'due at {known.at}'}")
    return ok(f"the last verified backup is {duration(known.age(now))} old")


async def _number(case: Case, query: LiteralString) -> int:
    [found] = await case.database.rows(_Number, query)
    return found.number
