"""What happened, and how much there is of everything."""

from typing import Annotated, Literal, cast

import msgspec
from litestar import Response, get
from litestar.di import Provide
from litestar.params import Parameter
from litestar.types import ASGIApp

from bloomd.http.export import FORMATS, ExportAnswer
from bloomd.http.requests import ALWAYS, Cursor, Limit, Req, Since, Until, linked, node_of
from bloomd.runtime import audit
from bloomd.runtime.audit import Wanted
from bloomd.runtime.model import AuditEntry
from bloomd.runtime.pages import Page

Action = Annotated[str | None, Parameter(description="With a `*` at its end, all that begin so: `task.*`.")]


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


async def _wanted(
    action: Action = None,
    entity_id: str | None = None,
    entity_type: str | None = None,
    actor: str | None = None,
    since: Since = 0,
    until: Until = ALWAYS,
) -> Wanted:
    """The filters. An empty one is none."""
    return Wanted(action or None, entity_id or None, entity_type or None, actor or None, since, until)


FILTERS = {"wanted": Provide(_wanted)}


@get("/api/runtime/audit", summary="The audit trail, newest first", dependencies=FILTERS)
async def listing(
    request: Req, wanted: Wanted, limit: Limit = 100, cursor: Cursor = None
) -> Response[list[AuditEntry]]:
    """A page looks at 20,000 entries at the most: it may have fewer of those wanted than `limit`, or none, and be
    followed by another all the same."""
    found = await audit.find(node_of(request).database, Page.after(cursor, limit), wanted)
    return linked(found.entries, found.next and found.next.cursor, request)


@get(
    "/api/runtime/audit/export",
    summary="The audit trail as a file, newest first",
    opt={"media": ("text/csv", "application/jsonl")},
    dependencies=FILTERS,
)
async def export(request: Req, wanted: Wanted, format: Literal["csv", "jsonl"] = "csv") -> ASGIApp:
    """All entries that the same filters find. A file that is not whole ends with a connection that is broken off."""
    return cast("ASGIApp", ExportAnswer(node_of(request).database, FORMATS[format], wanted))


@get("/api/runtime/stats", summary="Counts of tasks, leases and workers, at most a second old")
async def stats(request: Req) -> Counts:
    now = await node_of(request).stats.read()
    return Counts(
        TaskCounts(sum(now.by_status.values()), now.by_status),
        LeaseCounts(now.leases, now.active_leases),
        WorkerCounts(now.workers, now.workers_online),
    )


HANDLERS = [listing, export, stats]
