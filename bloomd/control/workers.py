"""What bloomd can be asked about workers over its control socket: all that the API can, by the same rules."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from bloomd.control.codes import INVALID_PARAMS
from bloomd.control.server import Call, ControlError, Method
from bloomd.control.work import Of, Subject
from bloomd.membridge import errands
from bloomd.membridge.errands import AgentHealth, Done
from bloomd.node import Node
from bloomd.runtime import tokens, workers
from bloomd.runtime.model import Lease, NewWorker, Worker, WorkerStatus
from bloomd.runtime.pages import Page
from bloomd.runtime.projects import url_problem
from bloomd.runtime.tokens import Enrolment, MadeToken, Token
from bloomd.runtime.workers import Registered


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which workers, the latest registered first; `cursor` is that of the page before."""

    status: WorkerStatus | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000
    cursor: str | None = None


class ToAdd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    worker: NewWorker


class ToRemove(Of, frozen=True, forbid_unknown_fields=True):
    force: bool = False
    """End its leases first, and queue their tasks again."""


class ToUpdate(Of, frozen=True, forbid_unknown_fields=True):
    repo_url: str | None = None
    """The repository that the agent comes from; agents in the field want to be told."""


class OneToken(Of, frozen=True, forbid_unknown_fields=True):
    id: Subject


class Workers(msgspec.Struct, frozen=True):
    workers: list[Worker]
    cursor: str | None = None
    """Of the next page; None when this is the last one."""


class WorkerWithLeases(msgspec.Struct, frozen=True):
    worker: Worker
    leases: list[Lease]


class Removed(msgspec.Struct, frozen=True):
    removed: bool
    id: str


class EnrolmentHere(Enrolment, frozen=True):
    """A code, and where it can be used."""

    server: str | None
    """The URL by which the new machine reaches this server, if it is known."""


class Tokens(msgspec.Struct, frozen=True):
    tokens: list[Token]


def methods(node: Node) -> Sequence[Method[Any]]:
    """Every method, for this node."""
    database = node.database

    async def listing(params: Filter, call: Call) -> Workers:
        page = Page.after(params.cursor, params.limit)
        found = await workers.listing(database, page, status=params.status)
        return Workers(found, page.next(found, lambda worker: (worker.registered_at, worker.id)))

    async def show(params: Of, call: Call) -> WorkerWithLeases:
        worker = await workers.one(database, params.name)
        return WorkerWithLeases(worker, await workers.active_leases(database, params.name))

    async def add(params: ToAdd, call: Call) -> Registered:
        capabilities = msgspec.to_builtins(params.worker.capabilities)
        return await workers.register(database, params.worker, capabilities=capabilities, actor=call.user)

    async def remove(params: ToRemove, call: Call) -> Removed:
        await workers.remove(database, params.name, force=node.retry if params.force else None, actor=call.user)
        return Removed(removed=True, id=params.name)

    async def agent_health(params: Of, call: Call) -> AgentHealth:
        return await errands.health(database, node.settings, params.name, actor=call.user)

    async def agent_update(params: ToUpdate, call: Call) -> Done:
        if params.repo_url is not None and (problem := url_problem(params.repo_url)):
            raise ControlError(f"repo_url {problem}", INVALID_PARAMS)
        return await errands.update(database, node.settings, params.name, repo_url=params.repo_url, actor=call.user)

    async def agent_restart(params: Of, call: Call) -> Done:
        return await errands.restart(database, node.settings, params.name, actor=call.user)

    async def agent_uninstall(params: Of, call: Call) -> Done:
        return await errands.uninstall(database, node.settings, params.name, actor=call.user)

    async def list_tokens(params: Of, call: Call) -> Tokens:
        return Tokens(await tokens.listing(database, params.name))

    async def add_token(params: Of, call: Call) -> MadeToken:
        node.keys.refuse_without_key(node.settings.http.api_key)
        return await node.keys.add_token(params.name, actor=call.user)

    async def remove_token(params: OneToken, call: Call) -> Removed:
        await node.keys.remove_token(params.name, params.id, actor=call.user)
        return Removed(removed=True, id=params.id)

    async def enrol(params: Of, call: Call) -> EnrolmentHere:
        http = node.settings.http
        node.keys.refuse_without_key(http.api_key)
        made = await tokens.enrol(database, params.name, actor=call.user)
        return EnrolmentHere(**msgspec.structs.asdict(made), server=http.public_url)

    return [
        Method("worker.list", listing, Filter),
        Method("worker.show", show, Of),
        Method("worker.add", add, ToAdd, mutating=True, leaves_trace=True),
        Method("worker.remove", remove, ToRemove, mutating=True, leaves_trace=True),
        Method("worker.agent-health", agent_health, Of, mutating=True, leaves_trace=True),
        Method("worker.agent-update", agent_update, ToUpdate, mutating=True, leaves_trace=True),
        Method("worker.agent-restart", agent_restart, Of, mutating=True, leaves_trace=True),
        Method("worker.agent-uninstall", agent_uninstall, Of, mutating=True, leaves_trace=True),
        Method("worker.tokens", list_tokens, Of),
        Method("worker.token.add", add_token, Of, mutating=True, leaves_trace=True),
        Method("worker.token.remove", remove_token, OneToken, mutating=True, leaves_trace=True),
        Method("worker.enrol", enrol, Of, mutating=True, leaves_trace=True),
    ]
