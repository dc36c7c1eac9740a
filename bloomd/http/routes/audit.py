"""What happened, and how much there is of everything."""

from typing import Annotated

import msgspec
from litestar import Response, get
from litestar.params import Parameter

from bloomd.http.requests import Cursor, Limit, Req, node_of, page_of
from bloomd.runtime import audit
from bloomd.runtime.model import AuditEntry
from bloomd.runtime.pages import Page


class TaskCounts(msgspec.Struct, frozen=True):
    total: int
    by_status: dict[str, int]


class LeaseCounts(msgspec.Struct, frozen=True):
    total: int
    active: int


class WorkerCounts(msgspec.Struct, frozen=True):
    total: int
    online: int


class Counts(msgspec.Struct, frozen=True):
    tasks: TaskCounts
    leases: LeaseCounts
    workers: WorkerCounts


@get("/api/runtime/audit", summary="The audit trail, newest first")
async def listing(
    request: Req,
    action: str | None = None,
    entity_id: str | None = None,
    since: Annotated[int, Parameter(ge=0, le=1 << 53, description="Epoch milliseconds.")] = 0,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response[list[AuditEntry]]:
    page = Page.after(cursor, limit)
    rows = await audit.listing(node_of(request).database, page, action=action, entity_id=entity_id, since=since)
    return page_of(rows, page, lambda entry: (entry.timestamp, entry.id), request)


@get("/api/runtime/stats", summary="Counts of tasks, leases and workers, at most a second old")
async def stats(request: Req) -> Counts:
    now = await node_of(request).stats.read()
    return Counts(
        TaskCounts(sum(now.by_status.values()), now.by_status),
        LeaseCounts(now.leases, now.active_leases),
        WorkerCounts(now.workers, now.workers_online),
    )


HANDLERS = [listing, stats]
