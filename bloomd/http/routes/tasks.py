"""Tasks: create, look, lease, heartbeat, complete, requeue, cancel."""

from typing import Annotated, Any, cast

import msgspec
from litestar import Response, get, post

from bloomd.http.answers import Json
from bloomd.http.bodies import convert, read, read_json
from bloomd.http.problems import Problem
from bloomd.http.requests import ALWAYS, Cursor, Limit, Req, Since, Until, actor, chosen, node_of, page_of, worker_of
from bloomd.runtime import completion, leases, results, tasks
from bloomd.runtime.completion import Completed
from bloomd.runtime.explain import Explanation, explain
from bloomd.runtime.heartbeats import Beat, Progress
from bloomd.runtime.heartbeats import heartbeat as heartbeat_once
from bloomd.runtime.leases import Leased
from bloomd.runtime.model import Completion, Lease, Name, NewTask, Task, TaskStatus, WorkerName
from bloomd.runtime.pages import Page
from bloomd.runtime.results import LatestResult
from bloomd.runtime.tasks import Agent, Attempt, ListedTask

# One transaction, one answer: enough for a script's loop, small enough to hold no lock for long.
MAX_BULK = 500

# Of a result's output, so much stands in the answer about its task.
OUTPUT_BYTES = 256 * 1024


class LeaseRequest(msgspec.Struct, frozen=True):
    worker_id: WorkerName | None = None
    ttl_seconds: Annotated[int, msgspec.Meta(ge=5, le=86400)] | None = None


class Heartbeat(msgspec.Struct, frozen=True):
    lease_id: Name | None = None
    worker_id: WorkerName | None = None
    progress: Progress | None = None


class TaskWithHistory(ListedTask, frozen=True, kw_only=True):
    """A task and all that there is to tell of it."""

    history: list[Attempt]
    """The latest attempts, latest first."""
    result: LatestResult | None
    """Of the latest attempt that said one; of its output the first 256 KiB."""


class HeartbeatAnswer(msgspec.Struct, frozen=True):
    lease: Lease
    expires_at: int


@post(
    "/api/runtime/llm-tasks",
    summary="Queue a task, or up to 500 at once",
    opt={"body": NewTask, "many": True, "also": (200,)},
)
async def create(request: Req) -> Response[Task | list[Task]]:
    """201 with the task; 200 when the idempotency key is known, with the task that has it. An array gives an array."""
    body = await read_json(request)
    if isinstance(body, list):
        many = convert(cast("list[object]", body), list[NewTask])
        if not 1 <= len(many) <= MAX_BULK:
            raise Problem(400, f"An array of 1 to {MAX_BULK} tasks is expected, not of {len(many)}", type="invalid")
        created = await tasks.create(node_of(request).database, many, actor=actor(request))
        return Json([each.task for each in created], status_code=201 if any(each.new for each in created) else 200)
    [created] = await tasks.create(node_of(request).database, [convert(body, NewTask)], actor=actor(request))
    return Json(created.task, status_code=201 if created.new else 200)


@get("/api/runtime/llm-tasks", summary="Tasks, newest first")
async def listing(
    request: Req,
    status: TaskStatus | None = None,
    worker_id: str | None = None,
    context_id: str | None = None,
    agent_slug: str | None = None,
    created_after: Since = 0,
    created_before: Until = ALWAYS,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response[list[ListedTask]]:
    """An empty filter is none."""
    page = Page.after(cursor, limit)
    rows = await tasks.listing(
        node_of(request).database,
        page,
        status=chosen("status", status, request),
        worker_id=worker_id or None,
        context_id=context_id or None,
        agent_slug=agent_slug or None,
        since=created_after,
        until=created_before,
    )
    return page_of(rows, page, lambda task: (task.created_at, task.id), request)


@get("/api/runtime/runs", summary="The last 50 tasks")
async def runs(request: Req) -> list[ListedTask]:
    return await tasks.listing(node_of(request).database, Page(limit=50))


@get("/api/runtime/llm-tasks/agents", summary="The agents that there are tasks for, by name")
async def agents(request: Req) -> list[Agent]:
    """200 at the most."""
    return await tasks.agents(node_of(request).database)


@get("/api/runtime/llm-tasks/{task_id:str}", summary="One task")
async def one(request: Req, task_id: str) -> TaskWithHistory:
    """With its attempts (by whom, when, and how each ended) and its result."""
    database = node_of(request).database
    task = await tasks.one(database, task_id)
    history = await tasks.history(database, task_id)
    return TaskWithHistory(
        **msgspec.structs.asdict(task),
        started_at=history[0].started_at if history else None,
        ended_at=history[0].ended_at if history else None,
        history=history,
        result=await results.latest(database, node_of(request).contents, task_id, output_bytes=OUTPUT_BYTES),
    )


@get("/api/runtime/llm-tasks/{task_id:str}/explain", summary="Why a task does not run")
async def explanation(request: Req, task_id: str) -> Explanation:
    """Every reason there is, each with a code and a sentence."""
    return await explain(node_of(request).database, task_id)


@post(
    "/api/runtime/llm-tasks/{task_id:str}/lease",
    summary="Lease a queued task to a worker",
    opt={"body": LeaseRequest, "refuses": (409,)},
)
async def lease(request: Req, task_id: str) -> Leased:
    """To the worker named, or to the best one there is."""
    body = await read(request, LeaseRequest)
    return await leases.lease(
        node_of(request).database,
        task_id,
        worker_id=body.worker_id,
        ttl_seconds=body.ttl_seconds,
        actor=actor(request),
    )


@post(
    "/api/runtime/llm-tasks/{task_id:str}/heartbeat",
    summary="Prolong the lease of a task",
    status_code=200,
    opt={"body": Heartbeat, "refuses": (409,)},
)
async def heartbeat(request: Req, task_id: str) -> HeartbeatAnswer:
    """Without a `lease_id` or `worker_id` it counts for the task's active lease."""
    return await _heartbeat(request, task_id, await read(request, Heartbeat))


@post(
    "/l/{lease_id:str}/api/runtime/llm-tasks/{task_id:str}/heartbeat",
    summary="Prolong this lease",
    status_code=200,
    opt={"body": Heartbeat, "refuses": (409,)},
)
async def heartbeat_of_lease(request: Req, lease_id: str, task_id: str) -> HeartbeatAnswer:
    """For agents that append the path to the URL they were given."""
    body = await read(request, Heartbeat)
    named = msgspec.structs.replace(body, lease_id=_same(lease_id, body.lease_id))
    return await _heartbeat(request, task_id, named)


@post(
    "/api/runtime/llm-tasks/{task_id:str}/complete",
    summary="End an attempt with its result",
    status_code=200,
    opt={"body": Completion, "refuses": (409,)},
)
async def complete(request: Req, task_id: str) -> Completed:
    """Without a `lease_id` or `worker_id` it counts for the task's active lease."""
    return await _complete(request, task_id, await read(request, Completion))


@post(
    "/l/{lease_id:str}/api/runtime/llm-tasks/{task_id:str}/complete",
    summary="End the attempt of this lease with its result",
    status_code=200,
    opt={"body": Completion, "refuses": (409,)},
)
async def complete_lease(request: Req, lease_id: str, task_id: str) -> Completed:
    """For agents that append the path to the URL they were given."""
    body = await read(request, Completion)
    named = msgspec.structs.replace(body, lease_id=_same(lease_id, body.lease_id))
    return await _complete(request, task_id, named)


@post(
    "/api/runtime/llm-tasks/{task_id:str}/requeue",
    summary="Queue an ended task again",
    status_code=200,
    opt={"body": dict[str, Any], "refuses": (409,)},
)
async def requeue(request: Req, task_id: str) -> Task:
    """From failed, dead or cancelled, or while it waits for its retry; attempts start at 0."""
    await read(request, dict[str, Any])
    return await tasks.requeue(node_of(request).database, task_id, actor=actor(request))


@post(
    "/api/runtime/llm-tasks/{task_id:str}/cancel",
    summary="Cancel a task that has not ended",
    status_code=200,
    opt={"body": dict[str, Any], "refuses": (409,)},
)
async def cancel(request: Req, task_id: str) -> Task:
    """A worker that is at it learns so at its next heartbeat: 409, with a type that ends in `cancelled`."""
    await read(request, dict[str, Any])
    return await tasks.cancel(node_of(request).database, task_id, actor=actor(request))


async def _heartbeat(request: Req, task_id: str, body: Heartbeat) -> HeartbeatAnswer:
    beat = Beat(lease_id=body.lease_id, worker_id=worker_of(request, body.worker_id), progress=body.progress)
    node = node_of(request)
    lease = await heartbeat_once(node.database, task_id, beat, actor=actor(request))
    node.tell_progress(lease, beat)
    return HeartbeatAnswer(lease, lease.expires_at)


async def _complete(request: Req, task_id: str, body: Completion) -> Completed:
    node = node_of(request)
    own = msgspec.structs.replace(body, worker_id=worker_of(request, body.worker_id))
    return await completion.complete(node.database, task_id, own, retry=node.retry, actor=actor(request))


def _same(in_path: str, in_body: str | None) -> str:
    if in_body is not None and in_body != in_path:
        raise Problem(400, "The lease_id in the body is not the one in the path", type="invalid")
    return in_path


HANDLERS = [
    create, listing, runs, agents, one, explanation,
    lease, heartbeat, heartbeat_of_lease, complete, complete_lease, requeue, cancel,
]  # fmt: skip
