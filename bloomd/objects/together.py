"""Calls to the store, some at once."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from bloomd.errors import Misconfigured, Unavailable

T = TypeVar("T")


async def for_each(items: Iterable[T], call: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Call it for each item. After a failure no further call begins, and those under way are waited for.

    Raises:
        Unavailable, Misconfigured: the first failure.
    """
    failures: list[Unavailable | Misconfigured] = []
    places = trio.CapacityLimiter(at_once)

    async def run(item: T) -> None:
        async with places:
            try:
                if not failures:
                    await call(item)
            except (Unavailable, Misconfigured) as failure:
                failures.append(failure)

    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(run, item)
    if failures:
        raise failures[0]
