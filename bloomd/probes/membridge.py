"""Membridge is well when its `/health` says something of itself. That needs no key."""

from collections.abc import Awaitable

import msgspec

from bloomd.errors import Unavailable
from bloomd.probes.http import get, where
from bloomd.settings.model import Membridge


class _Health(msgspec.Struct):
    status: str


def check(settings: Membridge) -> Awaitable[None] | None:
    return None if settings.server_url is None else _check(settings.server_url)


async def _check(url: str) -> None:
    status, body = await get(url.rstrip("/") + "/health")
    if status != 200:
        raise Unavailable(f"{where(url)} answered {status} to GET /health")
    try:
        msgspec.json.decode(body, type=_Health)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable(f"{where(url)} does not answer like Membridge") from error
