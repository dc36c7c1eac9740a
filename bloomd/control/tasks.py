"""What bloomd can be asked about tasks over its control socket: all that the API can, by the same rules.

Answers are in the words of the API, times in epoch milliseconds. Of a list the socket gives one page.
"""

import base64
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from bloomd.control.server import Call, ControlError, Method, NoParams
from bloomd.control.work import Of, Subject
from bloomd.errors import one_line
from bloomd.membridge.dispatch import Dispatched, PushFailed
from bloomd.node import Node
from bloomd.runtime import artifacts, bulk, completion, heartbeats, leases, results, tasks
from bloomd.runtime.bulk import BulkRequest
from bloomd.runtime.completion import Completed
from bloomd.runtime.heartbeats import Beat
from bloomd.runtime.leases import Leased, Wanted
from bloomd.runtime.model import Artifact, Completion, Lease, NewTask, Result, Task, TaskStatus
from bloomd.runtime.pages import Page
from bloomd.runtime.tasks import Agent, Attempt

# A line of the protocol has room for a mebibyte, and base64 takes a third more than what it says.
PIECE_BYTES = 512 * 1024


class NewTasks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tasks: Annotated[list[NewTask], Meta(min_length=1, max_length=500)]


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which tasks, newest first; `cursor` is that of the page before."""

    status: TaskStatus | None = None
    context_id: str | None = None
    agent_slug: str | None = None
    worker_id: str | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: str | None = None


class ToLease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Subject
    worker_id: Subject | None = None
    ttl_seconds: Annotated[int, Meta(ge=5, le=86400)] | None = None


class Alive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Subject
    lease_id: Subject | None = None
    worker_id: Subject | None = None
    progress: heartbeats.Progress | None = None


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Subject
    completion: Completion


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of an artifact's content, from this byte on."""

    name: Subject
    offset: Annotated[int, Meta(ge=0)] = 0


class Tasks(msgspec.Struct, frozen=True):
    tasks: Sequence[Task]
    cursor: str | None = None
    """Of the next page; None when this is the last one."""


class TaskWithHistory(msgspec.Struct, frozen=True):
    task: Task
    history: list[Attempt]
    """The latest attempts, latest first."""
    result: Result | None
    """Of the latest attempt that said one. Its output is the content of its artifact, and not here."""


class Agents(msgspec.Struct, frozen=True):
    agents: list[Agent]


class Artifacts(msgspec.Struct, frozen=True):
    artifacts: list[Artifact]


class ContentPiece(msgspec.Struct, frozen=True):
    size: int
    """Of all the content, in bytes."""
    content_type: str
    data: str
    """Bytes in base64; none at the end."""


def methods(node: Node) -> Sequence[Method[Any]]:
    """Every method, for this node."""
    database = node.database

    async def add(params: NewTasks, call: Call) -> Tasks:
        created = await tasks.create(database, params.tasks, actor=call.user)
        return Tasks([each.task for each in created])

    async def listing(params: Filter, call: Call) -> Tasks:
        page = Page.after(params.cursor, params.limit)
        found = await tasks.listing(
            database,
            page,
            status=params.status,
            context_id=params.context_id,
            agent_slug=params.agent_slug,
            worker_id=params.worker_id,
        )
        return Tasks(found, page.next(found, lambda task: (task.created_at, task.id)))

    async def agents(params: NoParams, call: Call) -> Agents:
        return Agents(await tasks.agents(database))

    async def show(params: Of, call: Call) -> TaskWithHistory:
        task = await tasks.one(database, params.name)
        return TaskWithHistory(
            task, await tasks.history(database, params.name), await results.latest(database, node.contents, params.name)
        )

    async def lease(params: ToLease, call: Call) -> Leased:
        return await leases.lease(
            database, params.name, worker_id=params.worker_id, ttl_seconds=params.ttl_seconds, actor=call.user
        )

    async def dispatch(params: ToLease, call: Call) -> Dispatched:
        wanted = Wanted(params.name, params.worker_id, params.ttl_seconds)
        try:
            return await node.dispatcher.dispatch(wanted, actor=call.user)
        except PushFailed as error:
            raise ControlError(one_line(error)) from error

    async def heartbeat(params: Alive, call: Call) -> Lease:
        beat = Beat(lease_id=params.lease_id, worker_id=params.worker_id, progress=params.progress)
        lease = await heartbeats.heartbeat(database, params.name, beat, actor=call.user)
        node.tell_progress(lease, beat)
        return lease

    async def complete(params: Done, call: Call) -> Completed:
        return await completion.complete(database, params.name, params.completion, retry=node.retry, actor=call.user)

    async def cancel(params: Of, call: Call) -> Task:
        return await tasks.cancel(database, params.name, actor=call.user)

    async def requeue(params: Of, call: Call) -> Task:
        return await tasks.requeue(database, params.name, actor=call.user)

    async def cancel_all(params: BulkRequest, call: Call) -> bulk.Outcome:
        return await bulk.carry_out(database, bulk.CANCEL, params, actor=call.user)

    async def requeue_all(params: BulkRequest, call: Call) -> bulk.Outcome:
        return await bulk.carry_out(database, bulk.REQUEUE, params, actor=call.user)

    async def list_artifacts(params: Of, call: Call) -> Artifacts:
        found = await artifacts.listing(database, Page(limit=1000), task_id=params.name)
        return Artifacts([msgspec.structs.replace(each, content=None) for each in found])

    async def read(params: Piece, call: Call) -> ContentPiece:
        content = await artifacts.content(database, node.contents, params.name)
        data = b"" if params.offset >= content.size else await content.piece_at(params.offset)
        return ContentPiece(content.size, content.content_type, base64.b64encode(data[:PIECE_BYTES]).decode())

    return [
        Method("task.add", add, NewTasks, mutating=True, leaves_trace=True),
        Method("task.list", listing, Filter),
        Method("task.agents", agents, NoParams),
        Method("task.show", show, Of),
        Method("task.lease", lease, ToLease, mutating=True, leaves_trace=True),
        Method("task.dispatch", dispatch, ToLease, mutating=True, leaves_trace=True),
        Method("task.heartbeat", heartbeat, Alive, mutating=True, leaves_trace=True),
        Method("task.complete", complete, Done, mutating=True, leaves_trace=True),
        Method("task.cancel", cancel, Of, mutating=True, leaves_trace=True),
        Method("task.requeue", requeue, Of, mutating=True, leaves_trace=True),
        Method("tasks.cancel", cancel_all, BulkRequest, mutating=True, leaves_trace=True),
        Method("tasks.requeue", requeue_all, BulkRequest, mutating=True, leaves_trace=True),
        Method("artifact.list", list_artifacts, Of),
        Method("artifact.read", read, Piece),
    ]
