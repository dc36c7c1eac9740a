"""Requeue or cancel all tasks that match a filter."""

from litestar import post

from bloomd.http.bodies import read
from bloomd.http.requests import Req, actor, node_of
from bloomd.runtime import bulk
from bloomd.runtime.bulk import CANCEL, REQUEUE, Action, BulkRequest, Outcome


@post(
    "/api/runtime/llm-tasks/requeue",
    summary="Queue all ended tasks that match a filter again",
    status_code=200,
    opt={"body": BulkRequest},
)
async def requeue(request: Req) -> Outcome:
    """From failed, dead or cancelled, or while they wait for their retry; attempts start at 0."""
    return await _do(request, REQUEUE)


@post(
    "/api/runtime/llm-tasks/cancel",
    summary="Cancel all tasks that match a filter",
    status_code=200,
    opt={"body": BulkRequest},
)
async def cancel(request: Req) -> Outcome:
    """Queued, leased or running ones; a running worker learns it at its next heartbeat."""
    return await _do(request, CANCEL)


async def _do(request: Req, action: Action) -> Outcome:
    body = await read(request, BulkRequest)
    return await bulk.carry_out(node_of(request).database, action, body, actor=actor(request))


HANDLERS = [requeue, cancel]
