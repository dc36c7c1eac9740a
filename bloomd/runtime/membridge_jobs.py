"""What the agents of the control plane were asked to push or pull, and what became of it.

A job is written down before its agent is asked, so that nothing that may have begun is unheard of. One that bloomd was
stopped in the middle of never ends here: once no answer can come any more, it is shown as `lost`.
"""

from typing import Literal

import msgspec

from bloomd.runtime.database import Database
from bloomd.runtime.ids import Id, new_id
from bloomd.runtime.refusals import NotFound

KEEP_DAYS = 90

BEGIN = """
WITH job AS (
    INSERT INTO membridge_jobs (id, action, project, canonical_id, agent, status, detail, created_at)
    VALUES (%(id)s, %(action)s, %(project)s, %(canonical_id)s, %(agent)s, 'running', '', bloom_now_ms())
    RETURNING *
), old AS (
    DELETE FROM membridge_jobs WHERE created_at < bloom_now_ms() - %(keep_ms)s
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), created_at, 'membridge.sync_' || action, 'project', canonical_id, 'membridge',
           'agent ' || agent || ', job ' || id
      FROM job
)
SELECT id FROM job
"""

FINISH = """
UPDATE membridge_jobs
   SET status = %(status)s, detail = %(detail)s, canonical_id = %(canonical_id)s, finished_at = bloom_now_ms()
 WHERE id = %(id)s AND finished_at IS NULL
"""

# Of all jobs the latest, or the one with this id.
LIST = """
SELECT id,
       id AS job_id,
       action,
       project,
       canonical_id,
       agent,
       CASE WHEN finished_at IS NULL AND created_at < bloom_now_ms() - %(lost_after_ms)s THEN 'lost' ELSE status END
           AS status,
       detail,
       created_at / 1000.0::float8 AS created_at,
       finished_at / 1000.0::float8 AS finished_at
  FROM membridge_jobs
 WHERE %(id)s::varchar IS NULL OR id = %(id)s
 ORDER BY membridge_jobs.created_at DESC, id DESC
 LIMIT %(limit)s
"""


class Job(msgspec.Struct, frozen=True):
    id: str
    job_id: str
    """The same, under the name that the answer to a push or pull has for it."""
    action: Literal["push", "pull"]
    project: str
    canonical_id: str
    agent: str
    status: Literal["running", "done", "failed", "lost"]
    detail: str
    created_at: float
    """Epoch seconds, as are all times that a control plane tells."""
    finished_at: float | None


async def begin(database: Database, action: str, *, project: str, canonical_id: str, agent: str) -> str:
    """Write down that the agent is about to be asked; the id of the job."""
    [job] = await database.change(
        Id,
        BEGIN,
        id=new_id(),
        action=action,
        project=project,
        canonical_id=canonical_id,
        agent=agent,
        keep_ms=KEEP_DAYS * 86_400_000,
    )
    return job.id


async def finish(database: Database, id: str, *, done: bool, detail: str, canonical_id: str) -> None:
    """Write down what became of it."""
    status = "done" if done else "failed"
    await database.execute(FINISH, id=id, status=status, detail=detail, canonical_id=canonical_id)


async def listing(database: Database, *, limit: int, lost_after: float) -> list[Job]:
    """The latest jobs, the latest first. One that has not ended after `lost_after` seconds never will."""
    return await database.listing(Job, LIST, id=None, limit=limit, lost_after_ms=int(lost_after * 1000))


async def one(database: Database, id: str, *, lost_after: float) -> Job:
    """One job.

    Raises:
        NotFound: there is none with this id.
    """
    found = await database.listing(Job, LIST, id=id, limit=1, lost_after_ms=int(lost_after * 1000))
    if not found:
        raise NotFound("There is no job with this id")
    return found[0]
