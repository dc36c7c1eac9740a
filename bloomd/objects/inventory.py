"""Compares what the object store has with what the artifacts say: orphans, and objects that are missing."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import msgspec

from bloomd.objects.contents import Contents, place
from bloomd.objects.store import Stat, Store
from bloomd.objects.together import for_each
from bloomd.runtime import audit, objects
from bloomd.runtime.database import Database
from bloomd.runtime.objects import SCHEME, Referred
from bloomd.runtime.refusals import NotFound

# An object is there before its artifact says so, if only for a moment; and what is restored comes piece by piece.
YOUNG = timedelta(hours=1)

# Objects that are asked for at once.
AT_ONCE = 8


class Orphan(msgspec.Struct, frozen=True):
    """An object that no artifact refers to."""

    url: str
    size: int
    changed_at: datetime


class Inventory(msgspec.Struct, frozen=True):
    bucket: str
    prefix: str
    objects: int
    """How many there are under the prefix."""
    bytes: int
    orphans: list[Orphan]
    missing: list[Referred]
    """Artifacts whose object is not there, in whichever bucket it should be, or has another size."""


async def take(database: Database, contents: Contents) -> Inventory:
    """Look at every object, and at every artifact that refers to one.

    Raises:
        Unavailable: the database or the store is away.
        Misconfigured: there is no store, or it refuses our settings.
    """
    store, settings = await contents.store(), contents.settings()
    count = size = 0
    orphans: list[Orphan] = []
    async for some in _listed(store, f"{settings.prefix}artifacts/"):
        count += len(some)
        size += sum(each.size for each in some)
        old = [each for each in some if each.changed_at < datetime.now(UTC) - YOUNG]
        urls = {f"{SCHEME}{settings.bucket}/{each.key}": each for each in old}
        unreferred = await objects.unreferred(database, list(urls))
        orphans += [Orphan(url, urls[url].size, urls[url].changed_at) for url in unreferred]
    missing = [each async for each in _missing(database, store)]
    return Inventory(settings.bucket, settings.prefix, count, size, orphans, missing)


async def fix(database: Database, orphans: list[Orphan]) -> None:
    """Leave orphans to the leader, which removes them."""
    for start in range(0, len(orphans), objects.MANY):
        await objects.leave(database, [orphan.url for orphan in orphans[start : start + objects.MANY]])
    told = f"{len(orphans)} objects that no artifact refers to"
    await audit.add(database, "objects.left", entity_type="bloomd", entity_id="objects", actor="doctor", detail=told)


async def _listed(store: Store, prefix: str) -> AsyncIterator[list[Stat]]:
    some: list[Stat] = []
    async for stat in store.listing(prefix):
        some.append(stat)
        if len(some) == objects.MANY:
            yield some
            some = []
    if some:
        yield some


async def _missing(database: Database, store: Store) -> AsyncIterator[Referred]:
    after = ""
    while some := await objects.referred(database, after=after):
        after = some[-1].id
        gone: list[Referred] = []

        async def look(artifact: Referred, gone: list[Referred] = gone) -> None:
            try:
                bucket, key = place(artifact.url)
                stat = await store.stat(key, bucket=bucket)
            except NotFound:  # a url that is none
                stat = None
            bad = stat is None or artifact.size not in (None, stat.size)
            if bad and await objects.still_refers(database, artifact):
                gone.append(artifact)

        await for_each(some, look, at_once=AT_ONCE)
        for artifact in sorted(gone, key=lambda each: each.id):
            yield artifact
