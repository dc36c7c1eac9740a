"""Dispatch: a task is pushed to a worker's agent, and its outcome waited for."""

from typing import Literal

import msgspec
import trio
from litestar import post

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.http.bodies import read
from bloomd.http.problems import Problem
from bloomd.http.requests import Req, actor, cancel_when_gone, node_of
from bloomd.http.routes.tasks import LeaseRequest
from bloomd.membridge.dispatch import Dispatched, PushFailed
from bloomd.membridge.execution import Execution
from bloomd.runtime.leases import Wanted
from bloomd.runtime.model import TaskStatus
from bloomd.runtime.refusals import Refusal


class DispatchAnswer(msgspec.Struct, frozen=True):
    dispatched: Literal[True]
    task_id: str
    worker_id: str
    lease_id: str
    execution: Execution
    task_status: TaskStatus
    """What became of the task: an agent may report an error, and then it may be queued again."""


@post(
    "/api/runtime/llm-tasks/{task_id:str}/dispatch",
    summary="Push a queued task to a worker's agent",
    status_code=200,
    opt={"body": LeaseRequest, "refuses": (409, 502)},
)
async def dispatch(request: Req, task_id: str) -> DispatchAnswer:
    """To the worker named, or to the best one that has a URL; answers when the attempt has ended.

    A 502 says that the agent did not do it, and has `dispatched: false`, `task_id`, `worker_id` and `lease_id` as well.
    Who goes away before the answer stops nothing.
    """
    body = await read(request, LeaseRequest)
    dispatcher = node_of(request).dispatcher
    outcome: Dispatched | Exception = Unavailable("the client has gone")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_when_gone, request.receive, nursery.cancel_scope)
        try:
            wanted = Wanted(task_id, body.worker_id, body.ttl_seconds)
            outcome = await dispatcher.dispatch(wanted, actor=actor(request))
        except (Refusal, Unavailable, Misconfigured) as error:
            outcome = error
        nursery.cancel_scope.cancel()
    match outcome:
        case PushFailed(lease=lease):
            told = {"dispatched": False, "task_id": task_id, "worker_id": lease.worker_id, "lease_id": lease.id}
            raise Problem(502, one_line(outcome), type="push-failed", extra=told)
        case Exception():
            raise outcome
        case done:
            return DispatchAnswer(True, **msgspec.structs.asdict(done))


HANDLERS = [dispatch]
