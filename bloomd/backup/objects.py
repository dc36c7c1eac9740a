"""The objects that a snapshot of the database refers to: into an archive, and from one to where they belong.

An object that is missing, or is not what its row says, does not keep the rest from being saved: the manifest names it.
A store that is away does.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import trio
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from bloomd.backup.archive import MEMORY, OBJECTS, Archive, BadArchive, Writer, key_of, member_of
from bloomd.backup.progress import Follow, Quiet
from bloomd.errors import Misconfigured, Unavailable
from bloomd.objects.contents import place
from bloomd.objects.store import Missing, Store
from bloomd.objects.together import for_each
from bloomd.postgres import Connection
from bloomd.runtime.objects import SCHEME
from bloomd.runtime.refusals import NotFound
from bloomd.runtime.uploads import PIECE_BYTES, as_text
from bloomd.settings import Settings
from bloomd.supervisor import Backoff

T = TypeVar("T")

# First pieces that are fetched, and objects that are stored, at once.
AT_ONCE = 8

# A store that is away for some seconds does not cost a backup of hours.
TRIES = 6
RETRY = Backoff(first=0.5, cap=8.0)

# By the row as a whole, because the schema of the Node.js runtime has no sizes. (The content of such a row is null.)
REFERRING = """
SELECT id, url, (whole ->> 'size')::bigint AS size, whole ->> 'sha256' AS sha256,
       whole ->> 'content_type' AS content_type
  FROM runtime_artifacts,
       LATERAL (SELECT to_jsonb(runtime_artifacts) AS whole) AS said
 WHERE starts_with(url, %(scheme)s)
 ORDER BY id
"""

# Rows that one statement changes.
MANY = 500

RENAME = """
UPDATE runtime_artifacts
   SET url = said.url
  FROM jsonb_to_recordset(%(said)s) AS said (id varchar, url varchar)
 WHERE runtime_artifacts.id = said.id
"""

FORGET_PIECES = "DELETE FROM artifact_pieces WHERE artifact_id = %(id)s"

ADD_PIECE = "INSERT INTO artifact_pieces VALUES (%(id)s, %(starts_at)s, %(data)b)"

KEEP_HERE = """
UPDATE runtime_artifacts
   SET url = NULL, content = %(text)s, content_type = coalesce(content_type, %(content_type)s),
       size = coalesce(size, %(size)s), sha256 = coalesce(sha256, %(sha256)s)
 WHERE id = %(id)s
"""

# What was still to be removed from a store that this is not.
FORGET_LEFT = "DELETE FROM objects_left WHERE NOT starts_with(url, %(here)s)"


class Referring(msgspec.Struct, frozen=True):
    """An artifact whose content is in the object store."""

    id: str
    url: str
    size: int | None
    sha256: str | None
    content_type: str | None

    @property
    def member(self) -> str:
        """The name of its object in an archive."""
        return _member(self.url)


class Trouble(msgspec.Struct, frozen=True):
    """What could not be saved as it should be, by url; and why."""

    missing: dict[str, str] = {}
    damaged: dict[str, str] = {}


def store_of(settings: Settings) -> Store:
    """The store of the settings.

    Raises:
        Misconfigured: they name none.
    """
    return Store(settings.minio, threads=AT_ONCE)


async def referring(connection: Connection[Any]) -> list[Referring]:
    """Every artifact whose content is in the object store, as this connection's transaction sees them.

    In a database that has no artifacts yet there are none.
    """
    [there] = await (await connection.execute("SELECT to_regclass('runtime_artifacts')")).fetchone() or (None,)
    if not there:
        return []
    cursor = connection.cursor(row_factory=class_row(Referring))
    return await (await cursor.execute(REFERRING, {"scheme": SCHEME})).fetchall()


async def save(store: Store, artifacts: Sequence[Referring], writer: Writer, follow: Follow) -> Trouble:
    """Write the object of each artifact into the archive.

    Raises:
        Unavailable: the store is away, and stays it.
        Misconfigured: it refuses our settings.
    """
    await store.check_bucket()
    progress = follow("objects", sum(each.size or 0 for each in artifacts))
    trouble = Trouble({}, {})
    for start in range(0, len(artifacts), AT_ONCE):
        begun: dict[str, _Begun] = {}

        async def begin(artifact: Referring, begun: dict[str, "_Begun"] = begun) -> None:
            try:
                begun[artifact.id] = await _begin(store, artifact)
            # A bucket that is gone is as bad as an object that is.
            except (NotFound, Missing, Misconfigured) as error:
                trouble.missing[artifact.url] = str(error)

        some = artifacts[start : start + AT_ONCE]
        await for_each(some, begin, at_once=AT_ONCE)
        for artifact in some:
            if artifact.id in begun:
                await _save(store, artifact, begun[artifact.id], writer, trouble, progress)
    progress.ended()
    return trouble


async def save_memory(store: Store, bucket: str, writer: Writer, follow: Follow) -> None:
    """Write every object of this bucket into the archive, each as it is at one moment.

    Raises:
        Unavailable: the store is away, and stays it; or an object changes more quickly than it is read.
        Misconfigured: it refuses our settings, or has no such bucket.
    """
    listed = [stat async for stat in store.listing("", bucket=bucket)]
    progress = follow("memory", sum(stat.size for stat in listed))
    for key in [stat.key for stat in listed]:
        for _ in range(TRIES):
            stat = await _patiently(lambda key=key: store.stat(key, bucket=bucket))
            if stat is None:  # removed meanwhile
                break
            writer.begin(member_of(MEMORY, key))
            try:
                await _copy(store, bucket, key, writer, b"", stat.size, progress)
            except Missing:
                writer.drop()
                break
            if await _patiently(lambda key=key: store.stat(key, bucket=bucket)) == stat:
                writer.end(stat.content_type)
                break
            writer.drop()
        else:
            raise Unavailable(f"{key} in the bucket {bucket} changes more quickly than it is read")
    progress.ended()


async def check(connection: Connection[Any], archive: Archive) -> None:
    """Compare the rows of a restored database with the objects of the archive.

    Raises:
        BadArchive: an object that a row refers to is not there, or another one, and the manifest does not say so.
    """
    known = archive.manifest.missing.keys() | archive.manifest.damaged.keys()
    for artifact in await referring(connection):
        member = archive.manifest.members.get(artifact.member)
        if artifact.url in known:
            continue
        if member is None:
            raise BadArchive(f"the archive lacks {artifact.url}, to which artifact {artifact.id} refers")
        if artifact.size not in (None, member.size) or artifact.sha256 not in (None, member.sha256):
            raise BadArchive(f"{artifact.url} is not what artifact {artifact.id} refers to")


def destinations(archive: Archive, bucket: str) -> dict[str, str]:
    """The key that each object of the archive gets in this bucket: its own, unless two have the same."""
    own: list[str] = []
    others: list[str] = []
    for member in archive.within(OBJECTS):
        (own if key_of(member).startswith(f"{bucket}/") else others).append(member)
    keys: dict[str, str] = {}
    taken: set[str] = set()
    for member in own + others:
        key = key_of(member).partition("/")[2]
        keys[member] = key_of(member) if key in taken else key
        taken.add(key)
    return keys


async def put(store: Store, archive: Archive, keys: dict[str, str], bucket: str, progress: Quiet) -> None:
    """Store members of the archive under these keys. Repeating it is harmless.

    One that was damaged when the backup was made replaces none.

    Raises:
        Unavailable: the store is away, and stays it, or has no room.
        Misconfigured: it refuses our settings.
    """
    await store.make_bucket(bucket)

    damaged = set(map(_member, archive.manifest.damaged))

    async def put(member: str) -> None:
        told = archive.manifest.members[member]
        if member in damaged and await _patiently(lambda: store.stat(keys[member], bucket=bucket)):
            return

        async def read(at: int) -> bytes:
            return archive.piece(member, at)

        content_type = told.content_type or "application/octet-stream"
        await _patiently(lambda: store.put(keys[member], told.size, read, content_type=content_type, bucket=bucket))
        progress.passed(told.size)

    await for_each(keys, put, at_once=AT_ONCE)
    progress.ended()


async def existing(store: Store, keys: Iterable[str], bucket: str) -> list[str]:
    """Those of these keys that the bucket has."""
    return [key for key in keys if await _patiently(lambda key=key: store.stat(key, bucket=bucket))]


async def rename(connection: Connection[Any], keys: dict[str, str], bucket: str) -> None:
    """Have each artifact refer to where its object is now."""
    moved = [each for each in await referring(connection) if each.member in keys]
    said = [{"id": each.id, "url": f"{SCHEME}{bucket}/{keys[each.member]}"} for each in moved]
    for start in range(0, len(said), MANY):
        await connection.execute(RENAME, {"said": Jsonb(said[start : start + MANY])})
    await connection.execute(FORGET_LEFT, {"here": f"{SCHEME}{bucket}/"})


async def keep_here(connection: Connection[Any], archive: Archive, progress: Quiet) -> None:
    """Put the content of each object into the database, as if it had never left."""
    for artifact in await referring(connection):
        if artifact.member in archive.manifest.members:
            await _keep_here(connection, artifact.id, archive, artifact.member, progress)
    await connection.execute("DELETE FROM objects_left")
    progress.ended()


class _Begun(msgspec.Struct, frozen=True):
    size: int
    content_type: str | None
    first: bytes


async def _begin(store: Store, artifact: Referring) -> _Begun:
    bucket, key = place(artifact.url)
    size, content_type = artifact.size, artifact.content_type
    if size is None:
        stat = await _patiently(lambda: store.stat(key, bucket=bucket))
        if stat is None:
            raise Missing("the object store does not have it")
        size, content_type = stat.size, content_type or stat.content_type
    return _Begun(size, content_type, await _piece(store, bucket, key, 0) if size else b"")


async def _save(
    store: Store, artifact: Referring, begun: _Begun, writer: Writer, trouble: Trouble, progress: Quiet
) -> None:
    name = artifact.member
    if name not in writer.members:  # two artifacts may have one object
        bucket, key = place(artifact.url)
        writer.begin(name)
        try:
            await _copy(store, bucket, key, writer, begun.first, begun.size, progress)
        except Missing as error:
            writer.drop()
            trouble.missing[artifact.url] = str(error)
            return
        writer.end(begun.content_type)
    member = writer.members[name]
    if member.size != begun.size or artifact.sha256 not in (None, member.sha256):
        trouble.damaged[artifact.url] = f"artifact {artifact.id}: {member.size} bytes, sha256 {member.sha256}"


async def _copy(store: Store, bucket: str, key: str, writer: Writer, first: bytes, size: int, progress: Quiet) -> None:
    """Write an object of which the first piece may be known; also one that is shorter or longer than it should be."""
    at = 0
    data = first or (await _piece(store, bucket, key, 0) if size else b"")
    while data:
        await trio.to_thread.run_sync(writer.write, data)
        progress.passed(len(data))
        at += len(data)
        whole = len(data) < PIECE_BYTES or at == size
        data = b"" if whole else await _piece(store, bucket, key, at)


async def _piece(store: Store, bucket: str, key: str, at: int) -> bytes:
    return await _patiently(lambda: store.read(key, at, PIECE_BYTES, bucket=bucket))


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    for failures in range(1, TRIES):
        try:
            return await call()
        except Missing:
            raise
        except Unavailable:
            await trio.sleep(RETRY.delay(failures))
    return await call()


def _member(url: str) -> str:
    return member_of(OBJECTS, url.removeprefix(SCHEME))


async def _keep_here(connection: Connection[Any], id: str, archive: Archive, member: str, progress: Quiet) -> None:
    told = archive.manifest.members[member]
    text = as_text(archive.piece(member, 0)) if told.size <= PIECE_BYTES else None
    await connection.execute(FORGET_PIECES, {"id": id})
    at = 0
    for data in archive.chunks(member):
        if text is None:
            await connection.execute(ADD_PIECE, {"id": id, "starts_at": at, "data": data})
        at += len(data)
        progress.passed(len(data))
    said = msgspec.structs.asdict(told) | {"id": id, "text": text}
    await connection.execute(KEEP_HERE, said)
