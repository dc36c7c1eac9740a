"""Workers: register, look, hold back, remove."""

from typing import Any, cast

import msgspec
from litestar import Response, delete, get, post

from bloomd.http.answers import Json
from bloomd.http.bodies import convert, invalid, read, read_json
from bloomd.http.problems import FieldError
from bloomd.http.requests import Cursor, Limit, Req, actor, caller, chosen, node_of, page_of, worker_of
from bloomd.membridge.agents import EXTRA_LIMIT
from bloomd.runtime import workers
from bloomd.runtime.model import Capabilities, Lease, NewWorker, Worker, WorkerStatus
from bloomd.runtime.pages import Page


class WorkerWithLeases(Worker, frozen=True):
    """A worker and what it holds now."""

    leases: list[Lease]


class Removed(msgspec.Struct, frozen=True):
    removed: bool
    id: str


@get("/api/runtime/workers", summary="Workers, the latest registered first")
async def listing(
    request: Req, status: WorkerStatus | None = None, limit: Limit = 1000, cursor: Cursor = None
) -> Response[list[Worker]]:
    page = Page.after(cursor, limit)
    rows = await workers.listing(node_of(request).database, page, status=chosen("status", status, request))
    return page_of(rows, page, lambda worker: (worker.registered_at, worker.id), request)


@get("/api/runtime/workers/{worker_id:str}", summary="One worker, with its active leases")
async def one(request: Req, worker_id: str) -> WorkerWithLeases:
    database = node_of(request).database
    worker = await workers.one(database, worker_id)
    held = await workers.active_leases(database, worker_id)
    return WorkerWithLeases(**msgspec.structs.asdict(worker), leases=held)


@post("/api/runtime/workers", summary="Register a worker", opt={"body": NewWorker, "also": (200,), "refuses": (409,)})
async def register(request: Req) -> Response[Worker]:
    """201 for a new worker, 200 for a known one. What is not sent keeps what is known. With a token, only itself."""
    body = await read_json(request)
    new = convert(body, NewWorker)
    worker_of(request, new.name)
    if caller(request).worker is not None and new.url is not None:
        message = "a worker may not say where it is called: the agent key would be sent there; an administrator may"
        raise invalid([FieldError("url", message)])
    sent = cast("dict[str, Any]", body).get("capabilities")
    _check_size(sent)
    registered = await workers.register(node_of(request).database, new, capabilities=sent, actor=actor(request))
    return Json(registered.worker, status_code=201 if registered.new else 200)


def _check_size(capabilities: dict[str, Any] | None) -> None:
    read_here = Capabilities.__struct_fields__
    extra = {key: value for key, value in (capabilities or {}).items() if key not in read_here}
    if (size := len(msgspec.json.encode(extra))) > EXTRA_LIMIT:
        kib = EXTRA_LIMIT // 1024
        message = f"beside {', '.join(read_here)} there may be {kib} KiB as JSON, not {size:,} bytes"
        raise invalid([FieldError("capabilities", message)])


@delete("/api/runtime/workers/{worker_id:str}", summary="Forget a worker", status_code=200, opt={"refuses": (409,)})
async def remove(request: Req, worker_id: str, force: bool = False) -> Removed:
    """With `force` its leases end first, and their tasks are queued again."""
    node = node_of(request)
    await workers.remove(node.database, worker_id, force=node.retry if force else None, actor=actor(request))
    return Removed(removed=True, id=worker_id)


@post(
    "/api/runtime/workers/{worker_id:str}/cordon",
    summary="Give a worker no new leases",
    status_code=200,
    opt={"body": dict[str, Any]},
)
async def cordon(request: Req, worker_id: str) -> Worker:
    await read(request, dict[str, Any])
    return await workers.cordon(node_of(request).database, worker_id, actor=actor(request))


@post(
    "/api/runtime/workers/{worker_id:str}/uncordon",
    summary="Give a worker leases again",
    status_code=200,
    opt={"body": dict[str, Any]},
)
async def uncordon(request: Req, worker_id: str) -> Worker:
    await read(request, dict[str, Any])
    return await workers.uncordon(node_of(request).database, worker_id, actor=actor(request))


@post(
    "/api/runtime/workers/{worker_id:str}/drain",
    summary="Let a worker finish, to take it away",
    status_code=200,
    opt={"body": dict[str, Any]},
)
async def drain(request: Req, worker_id: str) -> Worker:
    """It gets no new leases, and is empty when `active_leases` is 0."""
    await read(request, dict[str, Any])
    return await workers.drain(node_of(request).database, worker_id, actor=actor(request))


HANDLERS = [listing, one, register, remove, cordon, uncordon, drain]
