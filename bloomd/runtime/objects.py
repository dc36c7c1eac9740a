"""What is to be moved to the object store, and what is to be removed from it: the database's side of both.

::

    completion, upload:     content is in PostgreSQL ── TO_MOVE ─▶ in the store, too ── MOVED ─▶ there only: `url`
    retention, collection:  `objects_left` ── LEFT ─▶ not in the store any more ── REMOVED ─▶ forgotten

The key is made of the ids of the task and the artifact, so each step can be repeated: a crash between two of them costs
one more call to the store.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import LiteralString

import msgspec
from psycopg.types.json import Jsonb

from bloomd.runtime.database import Database, rows
from bloomd.runtime.ids import Id

SCHEME = "minio://"

# Arbitrary. Whoever reads objects that a snapshot of the database refers to holds it shared, in a session of his own;
# none is removed meanwhile.
OBJECTS_LOCK = 0x626F626A73  # "bobjs"

TO_MOVE = """
SELECT id, task_id, size, sha256, content IS NULL AS in_pieces
  FROM runtime_artifacts
 WHERE url IS NULL
   AND size >= %(least)s
   AND (size, id) > (%(size)s, %(after)s)
 ORDER BY size, id
 LIMIT %(batch)s
"""

# The pieces are deleted by whoever collects uploads, a few at a time.
MOVED = """
WITH said AS (
    SELECT * FROM jsonb_to_recordset(%(said)s) AS said (
               id varchar, url varchar, content_type varchar, in_pieces boolean)
), found AS (
    SELECT runtime_artifacts.id
      FROM runtime_artifacts
      JOIN said ON said.id = runtime_artifacts.id
     ORDER BY runtime_artifacts.id
       FOR UPDATE OF runtime_artifacts
), moved AS (
    UPDATE runtime_artifacts
       SET url = said.url, content = NULL, content_type = said.content_type
      FROM said
      JOIN found ON found.id = said.id
     WHERE runtime_artifacts.id = said.id AND runtime_artifacts.url IS NULL AND bloom_leads(%(epoch)s)
    RETURNING runtime_artifacts.id, runtime_artifacts.lease_id, said.in_pieces
), pieces AS (
    INSERT INTO uploads SELECT id, lease_id FROM moved WHERE in_pieces ON CONFLICT DO NOTHING
), forgotten AS (
    INSERT INTO objects_left
    SELECT url, bloom_now_ms()
      FROM said
     WHERE id NOT IN (SELECT id FROM found) AND bloom_leads(%(epoch)s)
        ON CONFLICT DO NOTHING
)
SELECT id FROM moved
"""

LEFT = """
SELECT url AS id
  FROM objects_left
 WHERE pg_try_advisory_xact_lock(%(lock)s) AND bloom_leads(%(epoch)s)
 ORDER BY since, url
 LIMIT %(batch)s
   FOR UPDATE SKIP LOCKED
"""

REMOVED = "DELETE FROM objects_left WHERE url = ANY (%(urls)s)"

# What could not be removed comes after what was not tried yet.
PUT_OFF = "UPDATE objects_left SET since = bloom_now_ms() WHERE url = ANY (%(urls)s)"

# What one statement decides about, and what one transaction waits for the store to remove.
BATCH = 32

# What is still to be done; nothing is to be moved where no size (`least`) is too large. A long
# backlog is not counted to its end.
BACKLOG = """
SELECT moving.count AS to_move, moving.bytes AS to_move_bytes, removing.count AS to_remove
  FROM (SELECT count(*), coalesce(sum(size), 0)::bigint AS bytes
          FROM (SELECT size FROM runtime_artifacts WHERE url IS NULL AND size >= %(least)s::bigint LIMIT 10000)
            AS found) AS moving,
       (SELECT count(*) FROM (SELECT FROM objects_left LIMIT 10000) AS found) AS removing
"""


# Of objects under these urls, those that no artifact refers to, or is about to: the name of an object of ours is the id
# of its artifact, which was there first. The Node.js runtime's have other names.
UNREFERRED: LiteralString = """
SELECT url AS id
  FROM unnest(%(urls)s::varchar[], %(tasks)s::varchar[], %(names)s::varchar[]) AS said (url, task_id, name)
 WHERE NOT EXISTS (SELECT FROM runtime_artifacts WHERE id = said.name)
   AND NOT EXISTS (SELECT FROM runtime_artifacts WHERE task_id = said.task_id AND url = said.url)
   AND NOT EXISTS (SELECT FROM objects_left WHERE objects_left.url = said.url)
"""

REFERS = "SELECT id FROM runtime_artifacts WHERE id = %(id)s AND url = %(url)s"

REFERRED = """
SELECT id, task_id, url, size
  FROM runtime_artifacts
 WHERE id > %(after)s AND url LIKE %(scheme)s || '%%'
 ORDER BY id
 LIMIT %(many)s
"""

LEAVE: LiteralString = f"INSERT INTO objects_left SELECT id, bloom_now_ms() FROM ({UNREFERRED}) AS unreferred"

# Looked at by one statement.
MANY = 500


class ToMove(msgspec.Struct, frozen=True):
    """An artifact whose content is too large to stay."""

    id: str
    task_id: str
    size: int
    sha256: str | None
    in_pieces: bool


class Moved(msgspec.Struct, frozen=True):
    """One that the store has by now."""

    id: str
    url: str
    content_type: str
    in_pieces: bool


class Referred(msgspec.Struct, frozen=True):
    """An artifact whose content is in the object store."""

    id: str
    task_id: str
    url: str
    size: int | None


async def to_move(database: Database, *, least: int, after: ToMove | None) -> list[ToMove]:
    """Some artifacts of this size (bytes) or more whose content is in PostgreSQL, the smallest first."""
    size, id = (after.size, after.id) if after else (0, "")
    return await database.rows(ToMove, TO_MOVE, least=least, size=size, after=id, batch=BATCH)


async def moved(database: Database, said: Sequence[Moved], *, epoch: int) -> int:
    """Take note, as the leader of this epoch, that the store has these contents; the database forgets its own.

    One whose artifact is gone by now is left for removal.
    """
    done = await database.rows(Id, MOVED, said=Jsonb(msgspec.to_builtins(list(said))), epoch=epoch)
    return len(done)


@asynccontextmanager
async def removing(database: Database, *, epoch: int) -> AsyncGenerator[list[str]]:
    """Some objects that nothing refers to, for the block to remove: those that it takes out of the list are forgotten.

    None while somebody holds `OBJECTS_LOCK`.

    Raises:
        Unavailable: the database is away; or what the block raises: none is forgotten, then.
    """
    async with database.transaction() as connection:
        left = await rows(connection, Id, LEFT, {"lock": OBJECTS_LOCK, "epoch": epoch, "batch": BATCH})
        urls = [each.id for each in left]
        before = set(urls)
        yield urls
        if gone := before.difference(urls):
            await connection.execute(REMOVED, {"urls": list(gone)})
        if urls:
            await connection.execute(PUT_OFF, {"urls": urls})


async def unreferred(database: Database, urls: Sequence[str]) -> list[str]:
    """Those of these objects that no artifact refers to, and that are not to be removed already."""
    return [each.id for each in await database.rows(Id, UNREFERRED, **_said(urls))]


async def still_refers(database: Database, artifact: Referred) -> bool:
    """Whether the artifact is there, and refers to the same object."""
    return await database.row(Id, REFERS, id=artifact.id, url=artifact.url) is not None


async def referred(database: Database, *, after: str) -> list[Referred]:
    """Some artifacts whose content is in the object store, by id, from after this one on."""
    return await database.rows(Referred, REFERRED, after=after, scheme=SCHEME, many=MANY)


async def leave(database: Database, urls: Sequence[str]) -> None:
    """Have the leader remove these objects, unless something refers to them by now."""
    await database.execute(LEAVE, **_said(urls))


def _said(urls: Sequence[str]) -> dict[str, list[str]]:
    ends = [url.rsplit("/", 2)[-2:] for url in urls]
    return {"urls": list(urls), "tasks": [task for task, _ in ends], "names": [name for _, name in ends]}
