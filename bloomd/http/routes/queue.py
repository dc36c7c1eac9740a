"""The queue as a whole: look at it, pause it, resume it."""

from typing import Annotated

import msgspec
from litestar import get, post
from msgspec import Meta

from bloomd.http.bodies import read
from bloomd.http.requests import Req, actor, node_of
from bloomd.runtime import queue
from bloomd.runtime.model import EpochMs
from bloomd.runtime.queue import QueueState


class QueueRequest(msgspec.Struct, frozen=True):
    paused: bool
    until: EpochMs | None = None
    reason: Annotated[str, Meta(max_length=1000)] | None = None


@get("/api/runtime/queue", summary="Whether the queue is paused")
async def state(request: Req) -> QueueState:
    return await queue.read(node_of(request).database)


@post("/api/runtime/queue", summary="Pause or resume the queue", status_code=200, opt={"body": QueueRequest})
async def set_state(request: Req) -> QueueState:
    """Paused, nobody gets a task until the time given, or until somebody resumes it. What is leased goes on."""
    body = await read(request, QueueRequest)
    node = node_of(request)
    if body.paused:
        state = await queue.pause(node.database, until=body.until, reason=body.reason, actor=actor(request))
    else:
        state = await queue.resume(node.database, actor=actor(request))
    node.stats.forget()
    return state


HANDLERS = [state, set_state]
