"""Requeue or cancel all tasks that match a filter."""

import msgspec
from litestar import post

from bloomd.http.bodies import read
from bloomd.http.problems import FieldError, Problem
from bloomd.http.requests import Req, actor, node_of
from bloomd.runtime import bulk
from bloomd.runtime.bulk import CANCEL, REQUEUE, Action, BadFilter, Outcome, TaskFilter


class BulkRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Here an unknown field is an error: a misspelt `dry_run` must not do what was only asked about."""

    filter: TaskFilter
    dry_run: bool = False
    """Count what matches, and change nothing."""


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
    database = node_of(request).database
    body = await read(request, BulkRequest)
    try:
        if body.dry_run:
            return Outcome(matched=await bulk.count(database, action, body.filter), changed=0)
        return await bulk.run(database, action, body.filter, actor=actor(request))
    except BadFilter as error:
        raise Problem(400, f"filter: {error}", type="invalid", errors=[FieldError("filter", str(error))]) from error


HANDLERS = [requeue, cancel]
