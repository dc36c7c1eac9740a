"""Moves content from PostgreSQL to the object store, and removes objects that nothing refers to; the leader does it.

A completion never waits for the store: its content is committed with it, and comes here afterwards. While the store is
away, that is where it stays. (`bloomd.runtime.objects` has the steps.)
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable
from bloomd.objects.contents import Contents, place
from bloomd.objects.together import for_each
from bloomd.runtime import artifacts, objects
from bloomd.runtime.database import Database
from bloomd.runtime.objects import SCHEME, Moved, ToMove
from bloomd.runtime.refusals import NotFound

if TYPE_CHECKING:
    from bloomd.objects.store import Store

log = structlog.stdlib.get_logger(__name__)

# How long what was completed may stay in PostgreSQL only, while everything works.
ROUND_SECONDS = 1.0

# Contents under way at once: of each, a part is in memory.
AT_ONCE = 4


class Damaged(Exception):
    """A content is not what its sha256 says: it is not stored."""


class Mover:
    def __init__(self, database: Database, contents: Contents) -> None:
        self._database = database
        self._contents = contents
        self._known: Store | None = None
        """Whose bucket is there."""
        self._refused: set[str] = set()
        """Artifacts that could not be stored the last time: now the others come first."""

    async def run(self, epoch: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move and remove for ever, as the leader of this epoch.

        Raises:
            Unavailable: the database or the store is away, or refuses what we ask: also that may pass by itself, when
                its clock is set, or its policy.
        """
        started = False
        while True:
            try:
                await self._make_bucket()
                if not started:
                    task_status.started()
                    started = True
                await self._round(epoch)
            except Misconfigured as error:
                raise Unavailable(str(error)) from error
            await trio.sleep(ROUND_SECONDS)

    async def _make_bucket(self) -> None:
        store = await self._contents.store()
        if store is not self._known and await store.make_bucket():
            log.info("bucket made", bucket=self._contents.settings().bucket)
        self._known = store

    async def _round(self, epoch: int) -> None:
        try:
            await self.move(epoch)
        except (Unavailable, Misconfigured):
            with suppress(Unavailable, Misconfigured):
                await self.remove(epoch)  # a store that is full is to be emptied all the same
            raise
        await self.remove(epoch)

    async def move(self, epoch: int) -> int:
        """Move all that is too large to stay; how many were moved.

        Raises:
            Unavailable, Misconfigured: not all could be moved. One that cannot be stored does not keep the others.
        """
        moved = 0
        last = None
        failure: Unavailable | Misconfigured | None = None
        refused, self._refused = self._refused, set()
        again: list[ToMove] = []
        while found := await objects.to_move(self._database, least=self._contents.settings().inline_below, after=last):
            last = found[-1]
            again += [each for each in found if each.id in refused]
            left_out = refused | self._contents.damaged
            some, failed = await self._move([each for each in found if each.id not in left_out], epoch)
            moved += some
            failure = failure or failed
            if failed and not some:  # the store is away
                self._refused |= refused
                break
        else:
            some, failed = await self._move(again, epoch)
            moved += some
            failure = failure or failed
        if moved:
            log.debug("content moved to the object store", artifacts=moved)
        if failure:
            raise failure
        return moved

    async def remove(self, epoch: int) -> int:
        """Remove all that nothing refers to; how many were removed.

        Raises:
            Unavailable, Misconfigured: not all could be removed. One that cannot be does not keep the others.
        """
        store = await self._contents.store()
        removed = 0
        failure: Unavailable | Misconfigured | None = None
        while True:
            async with objects.removing(self._database, epoch=epoch) as urls:

                async def remove(url: str, urls: list[str] = urls) -> None:
                    nonlocal failure
                    try:
                        bucket, key = place(url)
                        await store.remove(key, bucket=bucket)
                    except NotFound as error:
                        log.warning("this is no object of a store, and is forgotten", url=url, reason=str(error))
                    except Misconfigured as error:  # it is locked, or another bucket's
                        failure = failure or error
                        return
                    urls.remove(url)

                some = len(urls)
                try:
                    await for_each(list(urls), remove, at_once=AT_ONCE)
                except Unavailable as error:
                    failure = failure or error
                gone = some - len(urls)
            removed += gone
            if some < objects.BATCH or not gone:
                break
        if failure:
            raise failure
        return removed

    async def _move(self, found: Sequence[ToMove], epoch: int) -> tuple[int, Unavailable | Misconfigured | None]:
        """Store these, some at once; how many were moved, and what kept others from it."""
        stored: list[Moved] = []

        async def put(artifact: ToMove) -> None:
            try:
                stored.append(await self._put(artifact))
            except NotFound:  # it was deleted meanwhile
                pass
            except (Unavailable, Misconfigured):
                self._refused.add(artifact.id)
                raise
            except Damaged:
                await self._contents.report(
                    self._database,
                    artifact.id,
                    "its content in the database, where it stays, is not as its sha256 says",
                )

        failure = None
        try:
            await for_each(found, put, at_once=AT_ONCE)
        except (Unavailable, Misconfigured) as error:
            failure = error
        moved = await objects.moved(self._database, stored, epoch=epoch) if stored else 0
        return moved, failure

    async def _put(self, artifact: ToMove) -> Moved:
        """Store one content."""
        bucket, prefix = self._contents.settings().bucket, self._contents.settings().prefix
        key = f"{prefix}artifacts/{artifact.task_id}/{artifact.id}"
        content = await artifacts.content(self._database, self._contents, artifact.id)
        if content.size != artifact.size:
            raise Damaged
        digest = hashlib.sha256()

        async def read(at: int) -> bytes:
            piece = await content.piece_at(at)
            digest.update(piece)
            if at + len(piece) == artifact.size and artifact.sha256 not in (None, digest.hexdigest()):
                raise Damaged
            return piece

        store = await self._contents.store()
        await store.put(key, artifact.size, read, content_type=content.content_type, bucket=bucket)
        return Moved(artifact.id, f"{SCHEME}{bucket}/{key}", content.content_type, artifact.in_pieces)
