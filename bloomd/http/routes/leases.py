"""Leases: look at them."""

from litestar import Response, get

from bloomd.http.requests import Cursor, Limit, Req, node_of, page_of
from bloomd.runtime import leases
from bloomd.runtime.model import Lease, LeaseStatus
from bloomd.runtime.pages import Page


@get("/api/runtime/leases", summary="Leases, newest first")
async def listing(
    request: Req,
    status: LeaseStatus | None = None,
    worker_id: str | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response[list[Lease]]:
    page = Page.after(cursor, limit)
    rows = await leases.listing(node_of(request).database, page, status=status, worker_id=worker_id)
    return page_of(rows, page, lambda lease: (lease.started_at, lease.id), request)


HANDLERS = [listing]
