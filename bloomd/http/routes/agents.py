"""The agents of workers that have a URL: how one is, and have it update itself, restart, or uninstall itself."""

from typing import Annotated, Any

import msgspec
from litestar import get, post
from msgspec import Meta

from bloomd.http.bodies import invalid, read
from bloomd.http.problems import FieldError
from bloomd.http.requests import Req, actor, node_of
from bloomd.membridge import errands
from bloomd.membridge.errands import AgentHealth, Done
from bloomd.runtime.projects import URL_LIMIT, URL_PATTERN, url_problem


class AgentUpdate(msgspec.Struct, frozen=True):
    repo_url: Annotated[str, Meta(extra_json_schema={"pattern": URL_PATTERN, "maxLength": URL_LIMIT})] | None = None
    """The repository that the agent comes from; agents in the field want to be told."""


@get("/api/runtime/workers/{worker_id:str}/agent-health", summary="Ask a worker's agent how it is")
async def health(request: Req, worker_id: str) -> AgentHealth:
    """The worker is as its agent says afterwards, or offline when it does not answer."""
    node = node_of(request)
    return await errands.health(node.database, node.settings, worker_id, actor=actor(request))


@post(
    "/api/runtime/workers/{worker_id:str}/agent-update",
    summary="Have a worker's agent update itself",
    status_code=200,
    opt={"body": AgentUpdate, "refuses": (502,)},
)
async def update(request: Req, worker_id: str) -> Done:
    body = await read(request, AgentUpdate)
    if body.repo_url is not None and (problem := url_problem(body.repo_url)):
        raise invalid([FieldError("repo_url", problem)])
    node = node_of(request)
    return await errands.update(node.database, node.settings, worker_id, repo_url=body.repo_url, actor=actor(request))


@post(
    "/api/runtime/workers/{worker_id:str}/agent-restart",
    summary="Have a worker's agent restart",
    status_code=200,
    opt={"body": dict[str, Any], "refuses": (502,)},
)
async def restart(request: Req, worker_id: str) -> Done:
    await read(request, dict[str, Any])
    node = node_of(request)
    return await errands.restart(node.database, node.settings, worker_id, actor=actor(request))


@post(
    "/api/runtime/workers/{worker_id:str}/agent-uninstall",
    summary="Have a worker's agent remove itself from its machine",
    status_code=200,
    opt={"body": dict[str, Any], "refuses": (502,)},
)
async def uninstall(request: Req, worker_id: str) -> Done:
    """The worker stays known, offline and cordoned; DELETE forgets it."""
    await read(request, dict[str, Any])
    node = node_of(request)
    return await errands.uninstall(node.database, node.settings, worker_id, actor=actor(request))


HANDLERS = [health, update, restart, uninstall]
