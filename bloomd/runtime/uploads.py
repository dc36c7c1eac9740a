"""Uploads: artifacts that a worker sends while it is at an attempt, of any content, one for each lease and name.

::

    the body ──▶ a piece at a time ──▶ artifact_pieces ──┐
                        │                                ├──▶ KEEP: the artifact, if the lease is the current one
                        └── a short text ────────────────┘

Nothing of an upload can be seen before KEEP, one small statement that is fenced as a heartbeat is. An upload that fails
takes its pieces away again. What it leaves behind all the same (the process was killed, the database was away), and
what was uploaded in an attempt that came to nothing, is collected by the leader: the table `uploads` names all that
there is to look at.

From there, large content goes on to the object store, if there is one (`objects.py`); the collector takes away what is
in pieces of it.
"""

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated

import msgspec
import trio
from msgspec import Meta
from psycopg.types.json import Jsonb

from bloomd.errors import Unavailable
from bloomd.runtime import tasks
from bloomd.runtime.database import Database
from bloomd.runtime.fencing import decided, refuse_lost
from bloomd.runtime.ids import Id, new_id
from bloomd.runtime.model import Artifact, Label, Name, WorkerName
from bloomd.runtime.refusals import Conflict, Refusal

# So much of one upload is in memory at a time. A text that is no longer stands in the row of its artifact, and in the
# JSON of whoever asks for that.
PIECE_BYTES = 1 << 20

# The name of the artifact that a completion makes.
RESULT = "result"

# Who is cancelled, or whose client has gone, has so long to take his pieces away.
FORGET_SECONDS = 5.0

# What was uploaded in an attempt that came to nothing may still tell somebody why, for a day.
KEEP_LOST_MS = 86_400_000

# One statement decides about so many uploads, and deletes so many pieces: some dozen MiB in some dozen milliseconds.
COLLECT_BATCH = 32

ADD_PIECE = """
WITH upload AS (
    INSERT INTO uploads VALUES (%(id)s, %(lease_id)s) ON CONFLICT DO NOTHING
)
INSERT INTO artifact_pieces VALUES (%(id)s, %(starts_at)s, %(data)b)
"""

FORGET = """
WITH pieces AS (
    DELETE FROM artifact_pieces WHERE artifact_id = %(id)s
)
DELETE FROM uploads WHERE artifact_id = %(id)s
"""

# Makes the artifact of an upload, unless there is one of this name under the lease. What is not kept gives no row.
KEEP = """
WITH task AS (
    SELECT llm_tasks.id, llm_tasks.lease_id
      FROM llm_tasks
      JOIN leases ON leases.task_id = llm_tasks.id
     WHERE leases.id = %(lease_id)s
       AND llm_tasks.lease_id = leases.id
       AND llm_tasks.status || '' IN ('leased', 'running')
       FOR UPDATE OF llm_tasks
), lease AS (
    SELECT leases.id, leases.task_id, leases.worker_id
      FROM leases
      JOIN task ON task.lease_id = leases.id
     WHERE leases.status || '' = 'active'
       AND least(leases.expires_at, leases.deadline_at) > bloom_now_ms()
       AND (%(worker_id)s::varchar IS NULL OR leases.worker_id = %(worker_id)s)
       FOR UPDATE OF leases
), artifact AS (
    INSERT INTO runtime_artifacts (id, task_id, type, created_at, finalized, entity_refs, tags, content,
                                   content_type, lease_id, name, size, sha256)
    SELECT %(id)s, lease.task_id, %(type)s, bloom_now_ms(), true, '[]', %(tags)s, %(text)s,
           %(content_type)s, lease.id, %(name)s, %(size)s, %(sha256)s
      FROM lease
        ON CONFLICT (lease_id, name) DO NOTHING
    RETURNING *
), upload AS (
    INSERT INTO uploads SELECT id, lease_id FROM artifact ON CONFLICT DO NOTHING
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), artifact.created_at, 'artifact.uploaded', 'artifact', artifact.id, %(actor)s,
           format('%%s, %%s bytes, from worker %%s, task %%s, lease %%s',
                  artifact.name, artifact.size, lease.worker_id, lease.task_id, lease.id)
      FROM artifact
      JOIN lease ON lease.id = artifact.lease_id
)
SELECT * FROM artifact
"""

OF_NAME = """
SELECT runtime_artifacts.*
  FROM runtime_artifacts
  JOIN leases ON leases.id = runtime_artifacts.lease_id
 WHERE runtime_artifacts.lease_id = %(lease_id)s
   AND runtime_artifacts.name = %(name)s
   AND (%(worker_id)s::varchar IS NULL OR leases.worker_id = %(worker_id)s)
"""

UNDER_LEASE = """
SELECT id FROM runtime_artifacts WHERE id = %(id)s AND lease_id = %(lease_id)s
"""

# Decides about a batch of uploads. One stays when the result of its attempt is there. It goes when its lease ended long
# ago without one; when it never became an artifact; and when the artifact is gone already. As long as the lease is
# active, nothing is decided. What goes is an upload as long as there are pieces of it, of which a batch is deleted; so
# are those of an upload that stays, when the object store has its content.
# Neighbours are looked up one by one: a join would be planned by what is known of tables that may have grown.
COLLECT = """
WITH decided AS (
    SELECT uploads.artifact_id, fate.stays, fate.stays_here OR piece.starts_at IS NULL AS settled, fate.stays_here
      FROM uploads
      LEFT JOIN LATERAL (SELECT * FROM leases WHERE id = uploads.lease_id LIMIT 1) AS lease ON true
      LEFT JOIN LATERAL (SELECT id FROM llm_results WHERE lease_id = uploads.lease_id LIMIT 1) AS result ON true
      LEFT JOIN LATERAL (
           SELECT id, url FROM runtime_artifacts WHERE id = uploads.artifact_id LIMIT 1) AS artifact ON true
      LEFT JOIN LATERAL (
           SELECT starts_at FROM artifact_pieces WHERE artifact_id = uploads.artifact_id LIMIT 1) AS piece ON true,
           LATERAL (SELECT result.id IS NOT NULL AND artifact.id IS NOT NULL AS stays) AS known,
           LATERAL (SELECT known.stays, known.stays AND artifact.url IS NULL AS stays_here) AS fate
     WHERE (lease.id IS NULL
            OR result.id IS NOT NULL
            OR lease.status <> 'active'
               AND coalesce(lease.ended_at, lease.expires_at) < bloom_now_ms() - %(keep_ms)s)
       AND bloom_leads(%(epoch)s)
     ORDER BY uploads.artifact_id
     LIMIT %(batch)s
       FOR UPDATE OF uploads SKIP LOCKED
), gone AS (
    DELETE FROM runtime_artifacts
     WHERE id = ANY (ARRAY(SELECT artifact_id FROM decided WHERE NOT stays))
    RETURNING id, name, size, lease_id, url
), objects AS (
    INSERT INTO objects_left SELECT url, bloom_now_ms() FROM gone WHERE url IS NOT NULL ON CONFLICT DO NOTHING
), piece AS (
    SELECT artifact_id, starts_at
      FROM artifact_pieces
     WHERE artifact_id = ANY (ARRAY(SELECT artifact_id FROM decided WHERE NOT stays_here))
     LIMIT %(batch)s
), pieces AS (
    DELETE FROM artifact_pieces USING piece
     WHERE artifact_pieces.artifact_id = piece.artifact_id AND artifact_pieces.starts_at = piece.starts_at
), settled AS (
    DELETE FROM uploads WHERE artifact_id = ANY (ARRAY(SELECT artifact_id FROM decided WHERE settled))
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'artifact.collected', 'artifact', id, 'bloomd',
           format('%%s, %%s bytes: lease %%s ended without a result', name, size, lease_id)
      FROM gone
)
SELECT artifact_id AS id, settled FROM decided
"""

Read = Callable[[], Awaitable[bytes]]
"""Gives the next bytes of a body, and none at its end."""


class NewArtifact(msgspec.Struct, frozen=True):
    """What a worker says of an artifact that it uploads."""

    lease_id: str
    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            pattern=r"\A(?!\.{1,2}\Z)[^/\x00-\x1f\x7f-\x9f]+\Z",
            extra={"rule": "must be 1 to 255 characters, no slash or control character, and neither `.` nor `..`"},
        ),
    ]
    type: Name = "UPLOAD"
    tags: Annotated[list[Label], Meta(max_length=64)] = []
    content_type: Annotated[str, Meta(max_length=255, pattern=r"\A[!-~]+/[ -~]+\Z")] | None = None
    worker_id: WorkerName | None = None
    """When named, the lease must be this worker's."""


class Uploaded(msgspec.Struct, frozen=True):
    artifact: Artifact
    new: bool
    """False when the same content was uploaded under this name before."""


class Decided(msgspec.Struct, frozen=True):
    """An upload of which it is known by now whether it stays."""

    id: str
    settled: bool
    """False as long as there is content of it to be deleted."""


class _Content(msgspec.Struct, frozen=True):
    """What was received, and where it is."""

    size: int
    sha256: str
    text: str | None
    """All of it; None when it is in pieces."""


async def upload(database: Database, said: NewArtifact, read: Read, *, actor: str) -> Uploaded:
    """Make an artifact of what `read` gives, under the current lease of a task. The same once more gives the first one.

    Raises:
        NotFound: no such lease.
        TaskCancelled: the task was cancelled.
        LeaseLost: the lease is not the current one of its task, or has expired.
        Conflict: the lease has another artifact of this name, or the name is taken for its result.
    """
    if said.name == RESULT:
        raise Conflict(f"The name {RESULT!r} is kept for what the completion makes; take another one")
    id = new_id()
    content = await _receive(database, id, said, read)

    async def keep() -> Uploaded | None:
        kept = await database.change(
            Artifact,
            KEEP,
            id=id,
            **msgspec.structs.asdict(said) | {"tags": Jsonb(said.tags)},
            **msgspec.structs.asdict(content),
            actor=actor,
        )
        if kept:
            return Uploaded(kept[0], new=True)
        first = await _of_name(database, said)
        return Uploaded(first, new=False) if first and first.sha256 == content.sha256 else None

    async def refuse() -> None:
        await _refuse_lost(database, said)
        if await _of_name(database, said):
            raise Conflict(f"This lease has an artifact {said.name!r} with other content; take another name")

    try:
        uploaded = await decided(keep, refuse)
    except Refusal:
        await _forget(database, id, content)
        raise
    if not uploaded.new:
        await _forget(database, id, content)
    return uploaded


async def refuse_stranger(database: Database, artifact_id: str, lease_id: str) -> None:
    """Raise when an artifact was not uploaded under this lease.

    Raises:
        Conflict: it was not.
    """
    if await database.row(Id, UNDER_LEASE, id=artifact_id, lease_id=lease_id) is None:
        raise Conflict(
            f"There is no artifact {artifact_id} of this lease; upload it first, by "
            f"PUT /api/runtime/leases/{lease_id}/artifacts/NAME"
        )


async def collect(database: Database, *, epoch: int) -> list[Decided]:
    """Decide about a batch of uploads, as the leader of this epoch. What goes is deleted, large content bit by bit.

    Gives those that were looked at; when there are none, nothing is left of which it is known by now.
    """
    return await database.change(Decided, COLLECT, keep_ms=KEEP_LOST_MS, epoch=epoch, batch=COLLECT_BATCH)


async def _receive(database: Database, id: str, said: NewArtifact, read: Read) -> _Content:
    """Read it all, and store what is no short text. A lease that is lost already is refused before the first piece."""
    digest = hashlib.sha256()
    waiting = bytearray()
    stored = 0
    try:
        while data := await read():
            digest.update(data)
            waiting += data
            while len(waiting) > PIECE_BYTES:
                if stored == 0 and await _of_name(database, said) is None:
                    await _refuse_lost(database, said)
                await _store(database, id, said, stored, bytes(waiting[:PIECE_BYTES]))
                stored += PIECE_BYTES
                del waiting[:PIECE_BYTES]
        text = as_text(waiting) if stored == 0 else None
        if text is None:
            await _store(database, id, said, stored, bytes(waiting))
    except BaseException:
        await _take_away(database, id)
        raise
    return _Content(stored + len(waiting), digest.hexdigest(), text)


async def _store(database: Database, id: str, said: NewArtifact, starts_at: int, data: bytes) -> None:
    await database.execute(ADD_PIECE, id=id, lease_id=said.lease_id, starts_at=starts_at, data=data)


async def _forget(database: Database, id: str, content: _Content) -> None:
    if content.text is None:
        await _take_away(database, id)


async def _take_away(database: Database, id: str) -> None:
    """Delete the pieces of an upload that will not be kept. Shielded: also who is cancelled leaves nothing behind."""
    with trio.move_on_after(FORGET_SECONDS, shield=True), suppress(Unavailable):
        await database.execute(FORGET, id=id)


async def _of_name(database: Database, said: NewArtifact) -> Artifact | None:
    return await database.row(Artifact, OF_NAME, lease_id=said.lease_id, name=said.name, worker_id=said.worker_id)


async def _refuse_lost(database: Database, said: NewArtifact) -> None:
    task = await tasks.one(database, await tasks.of_lease(database, said.lease_id))
    await refuse_lost(database, task, said.lease_id, said.worker_id)


def as_text(data: bytes | bytearray) -> str | None:
    """What PostgreSQL takes as text; None for anything else."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\x00" in text else text
