"""What the tests of this package share: a value from a query, and waiting for something to become true."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from bloomd.postgres import Connection


async def one(connection: Connection[Any], query: str, *params: object) -> Any:
    row = await (await connection.execute(query.encode(), params or None)).fetchone()
    assert row
    return row[0]


async def eventually(condition: Callable[[], Awaitable[object]], *, seconds: float = 15.0) -> None:
    with trio.fail_after(seconds):
        while not await condition():
            await trio.sleep(0.01)
