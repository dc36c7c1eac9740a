"""What happened, and how much there is of everything."""

from typing import Annotated, Any

from litestar import Response, get
from litestar.params import Parameter

from bloomd.http.requests import Cursor, Limit, Req, node_of, page_of
from bloomd.runtime import audit
from bloomd.runtime.model import AuditEntry
from bloomd.runtime.pages import Page


@get("/api/runtime/audit", summary="The audit trail, newest first")
async def listing(
    request: Req,
    action: str | None = None,
    entity_id: str | None = None,
    since: Annotated[int | None, Parameter(ge=0, le=1 << 53, description="Epoch milliseconds.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response[list[AuditEntry]]:
    page = Page.after(cursor, limit)
    rows = await audit.listing(node_of(request).database, page, action=action, entity_id=entity_id, since=since)
    return page_of(rows, page, lambda entry: (entry.timestamp, entry.id), request)


@get("/api/runtime/stats", summary="Counts of tasks, leases and workers, at most a second old")
async def stats(request: Req) -> dict[str, Any]:
    return (await node_of(request).stats.read()).as_json()


HANDLERS = [listing, stats]
