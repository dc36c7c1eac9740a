"""Following what happens, over the control socket.

The answer to `events` never comes: notifications do, each with the `id` to go on after, until the client goes away or
an error says that the daemon stops, or that this client reads too slowly. `event` is something that happened; `alive`
says that nothing did, so that a client can tell quiet from a daemon that is stuck.
"""

from typing import Annotated, NoReturn

import msgspec
import trio
from msgspec import Meta

from bloomd.control.codes import INVALID_PARAMS, UNAVAILABLE
from bloomd.control.server import Call, ControlError, Method
from bloomd.errors import Unavailable
from bloomd.node import Node
from bloomd.runtime.events import TYPES, Subscription
from bloomd.runtime.recent import BadPosition

# A client that waits for three of them has waited long enough.
ALIVE_SECONDS = 5.0


class Subscribe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    types: Annotated[list[str], Meta(max_length=100)] | None = None
    """All when nothing is said."""
    after: str | None = None
    """The id of an event; without it, what comes from now on is told."""


def method(node: Node) -> Method[Subscribe]:
    """`events`, for this node."""

    async def events(params: Subscribe, call: Call) -> NoReturn:
        types = params.types or TYPES
        if unknown := ", ".join(sorted(set(types).difference(TYPES))):
            raise ControlError(f"no events are of type {unknown}; there are {', '.join(TYPES)}", INVALID_PARAMS)
        try:
            async with node.feed.subscribe(params.after, types=types) as subscription:
                end = await _tell(subscription, call, stopping=node.stopping)
        except BadPosition as error:
            raise ControlError(str(error), INVALID_PARAMS) from error
        raise ControlError(end, UNAVAILABLE)

    return Method("events", events, Subscribe)


async def _tell(subscription: Subscription, call: Call, *, stopping: trio.Event) -> str:
    """Send what the subscription gives as long as that is possible; returns why it is no longer."""
    end = "bloomd stops"
    if stopping.is_set():
        return end
    told = subscription.last_id

    async def stop() -> None:
        await stopping.wait()
        nursery.cancel_scope.cancel()

    async def reassure() -> None:
        while True:
            await call.notify("alive", {"id": told})
            await trio.sleep(ALIVE_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        nursery.start_soon(reassure)
        try:
            while events := await subscription.batch():
                for event in events:
                    told = event.id or told
                    await call.notify("event", event)
                told = subscription.last_id
            end = "these events were not read as fast as they came"
        except Unavailable as error:
            end = str(error)
        nursery.cancel_scope.cancel()
    return end
