"""Content in the object store, as the rules and the front doors read it: by the `url` of its artifact."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable
from bloomd.runtime import audit
from bloomd.runtime.artifacts import Held
from bloomd.runtime.database import Database
from bloomd.runtime.objects import SCHEME
from bloomd.runtime.refusals import NotFound
from bloomd.runtime.uploads import PIECE_BYTES
from bloomd.settings.model import Minio

if TYPE_CHECKING:
    from bloomd.objects.store import Store

log = structlog.stdlib.get_logger(__name__)

# So many pieces are read, or contents written, at once.
THREADS = 8


class Contents:
    """The store of the settings that are in force; they may change at any time."""

    def __init__(self, settings: Callable[[], Minio]) -> None:
        self.settings = settings
        self._opened: tuple[Minio, Store] | None = None
        self.damaged: set[str] = set()
        """Artifacts whose content was seen not to be what it should be, since the start, and not to be good again."""

    async def store(self) -> "Store":
        """The store, opened anew when the settings have changed.

        Raises:
            Misconfigured: none is configured, or not completely.
        """
        settings = self.settings()
        if self._opened is None or self._opened[0] != settings:
            self._opened = settings, await trio.to_thread.run_sync(_open, settings)
        return self._opened[1]

    async def stat(self, url: str) -> Held:
        """What the store holds for this url.

        Raises:
            NotFound: nothing.
            Unavailable: the store cannot be asked.
        """
        bucket, key = place(url)
        try:
            found = await (await self.store()).stat(key, bucket=bucket)
        except Misconfigured as error:
            raise Unavailable(str(error)) from error
        if found is None:
            raise _gone(url)
        return Held(found.size, found.content_type)

    async def read(self, url: str, at: int) -> bytes:
        """Some bytes from this place on, `PIECE_BYTES` at the most.

        Raises:
            NotFound: they are not there.
            Unavailable: the store cannot be asked.
        """
        from bloomd.objects.store import Missing

        bucket, key = place(url)
        try:
            data = await (await self.store()).read(key, at, PIECE_BYTES, bucket=bucket)
        except Misconfigured as error:
            raise Unavailable(str(error)) from error
        except Missing:
            data = b""
        if not data:
            raise _gone(url)
        return data

    async def report(self, database: Database, id: str, what: str) -> None:
        """Note, once, that the content of this artifact is damaged, for the audit trail and the status.

        Raises:
            Unavailable: the database is away; then it is noted the next time.
        """
        if id not in self.damaged:
            log.error("content is damaged", artifact=id, what=what)
            await audit.add(
                database, "artifact.damaged", entity_type="artifact", entity_id=id, actor="bloomd", detail=what
            )
            self.damaged.add(id)


def place(url: str) -> tuple[str, str]:
    """Bucket and key of a url.

    Raises:
        NotFound: it is no url of the object store.
    """
    bucket, slash, key = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not slash or not key:
        raise NotFound(f"The content of this artifact is elsewhere: {url}")
    return bucket, key


def _open(settings: Minio) -> "Store":
    from bloomd.objects.store import Store  # takes its time: in a thread

    return Store(settings, threads=THREADS)


def _gone(url: str) -> NotFound:
    return NotFound(f"The content of this artifact is not in the object store any more ({url})")
