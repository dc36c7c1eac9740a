"""MinIO is well when its health route says so; another S3 server has none, and is asked for the bucket."""

from collections.abc import Awaitable
from functools import lru_cache

from bloomd.errors import Unavailable
from bloomd.objects import Store, address
from bloomd.probes.http import get
from bloomd.settings.model import Minio

HEALTH = "/minio/health/live"

# Kept from check to check, so that the threads that hang in it are counted.
_store = lru_cache(maxsize=1)(Store)


def check(settings: Minio) -> Awaitable[None] | None:
    return None if settings.endpoint is None else _check(settings)


async def _check(settings: Minio) -> None:
    url = f"{'https' if settings.secure else 'http'}://{address(settings)}"
    status, _ = await get(url + HEALTH)
    if status == 200:
        return
    if not 400 <= status < 500:
        raise Unavailable(f"{url} answered {status} to GET {HEALTH}")
    await _store(settings).check_bucket()
