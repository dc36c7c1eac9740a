"""Managed projects: create, look, forget, and bring them to the nodes."""

from typing import Any

import msgspec
from litestar import Response, delete, get, post

from bloomd.http.bodies import invalid, read
from bloomd.http.problems import FieldError
from bloomd.http.requests import Cursor, Limit, Req, actor, node_of, page_of
from bloomd.membridge.projects import Cloned, Direction, Projects, Propagated, Synced
from bloomd.runtime import projects
from bloomd.runtime.model import WorkerName
from bloomd.runtime.pages import Page
from bloomd.runtime.projects import NewProject, NodeStatus, Project


class ProjectWithNodes(Project, frozen=True):
    """A project, and what is known of it on each node."""

    nodes: list[NodeStatus]


class RemovedProject(msgspec.Struct, frozen=True):
    removed: bool
    id: str


class CloneRequest(msgspec.Struct, frozen=True):
    node_id: WorkerName | None = None


class SyncRequest(msgspec.Struct, frozen=True):
    direction: Direction
    node_id: WorkerName | None = None


@get("/api/runtime/projects", summary="Projects, the latest created first")
async def listing(request: Req, limit: Limit = 100, cursor: Cursor = None) -> Response[list[Project]]:
    page = Page.after(cursor, limit)
    rows = await projects.listing(node_of(request).database, page)
    return page_of(rows, page, lambda project: (project.created_at, project.id), request)


@post("/api/runtime/projects", summary="Create a project", opt={"body": NewProject})
async def create(request: Req) -> Project:
    """Nothing is cloned by that."""
    new = await read(request, NewProject)
    if flaws := list(projects.flaws(new)):
        raise invalid([FieldError(field, message) for field, message in flaws])
    return await projects.create(node_of(request).database, new, actor=actor(request))


@get("/api/runtime/projects/{project_id:str}", summary="One project, with its nodes")
async def one(request: Req, project_id: str) -> ProjectWithNodes:
    database = node_of(request).database
    project = await projects.one(database, project_id)
    return ProjectWithNodes(**msgspec.structs.asdict(project), nodes=await projects.nodes(database, project_id))


@get("/api/runtime/projects/{project_id:str}/node-status", summary="What is known of a project on each node")
async def node_status(request: Req, project_id: str) -> list[NodeStatus]:
    database = node_of(request).database
    await projects.one(database, project_id)
    return await projects.nodes(database, project_id)


@delete("/api/runtime/projects/{project_id:str}", summary="Forget a project", status_code=200)
async def remove(request: Req, project_id: str) -> RemovedProject:
    """Its clones stay where they are."""
    await projects.remove(node_of(request).database, project_id, actor=actor(request))
    return RemovedProject(removed=True, id=project_id)


@post(
    "/api/runtime/projects/{project_id:str}/clone",
    summary="Have a node clone a project",
    status_code=200,
    opt={"body": CloneRequest, "refuses": (409, 502)},
)
async def clone(request: Req, project_id: str) -> Cloned:
    """The node named, else the primary one, else the best there is. It goes on when the client does not wait for it."""
    body = await read(request, CloneRequest)
    return await _projects(request).clone(project_id, node_id=body.node_id, actor=actor(request))


@post(
    "/api/runtime/projects/{project_id:str}/propagate",
    summary="Have all other nodes clone a project as well",
    status_code=200,
    opt={"body": dict[str, Any], "refuses": (409,)},
)
async def propagate(request: Req, project_id: str) -> Propagated:
    """All workers that are online and have a URL, some at once. It goes on when the client does not wait for it."""
    await read(request, dict[str, Any])
    return await _projects(request).propagate(project_id, actor=actor(request))


@post(
    "/api/runtime/projects/{project_id:str}/sync-memory",
    summary="Have Membridge push or pull a node's memory of a project",
    status_code=200,
    opt={"body": SyncRequest, "refuses": (502,)},
)
async def sync_memory(request: Req, project_id: str) -> Synced:
    """Of the node named, else of the primary one, else of the best there is."""
    body = await read(request, SyncRequest)
    return await _projects(request).sync_memory(project_id, body.direction, node_id=body.node_id, actor=actor(request))


def _projects(request: Req) -> Projects:
    node = node_of(request)
    return Projects(node.database, lambda: node.settings, node.membridge)


HANDLERS = [listing, create, one, node_status, remove, clone, propagate, sync_memory]
