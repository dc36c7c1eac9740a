"""MinIO is well when its health route says so; another S3 server has none, and is asked for the bucket."""

from collections.abc import Awaitable
from functools import lru_cache
from typing import TYPE_CHECKING

import trio

from bloomd.errors import Unavailable
from bloomd.objects.address import address
from bloomd.probes.http import get
from bloomd.settings.model import Minio

if TYPE_CHECKING:
    from bloomd.objects.store import Store

HEALTH = "/minio/health/live"


def check(settings: Minio) -> Awaitable[None] | None:
    return None if settings.endpoint is None else _check(settings)


async def _check(settings: Minio) -> None:
    url = f"{'https' if settings.secure else 'http'}://{address(settings)}"
    status, _ = await get(url + HEALTH)
    if status == 200:
        return
    if not 400 <= status < 500:
        raise Unavailable(f"{url} answered {status} to GET {HEALTH}")
    store = await trio.to_thread.run_sync(_store, settings)
    await store.check_bucket()


@lru_cache(maxsize=1)
def _store(settings: Minio) -> "Store":
    """Kept from check to check, so that the threads that hang in it are counted."""
    from bloomd.objects.store import Store

    return Store(settings)
