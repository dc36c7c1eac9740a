"""The Membridge proxy: a few known paths of the control plane, with its admin key added, and no others."""

from typing import Any, cast

from litestar import Response, get, post

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.http.bodies import read_json
from bloomd.http.problems import Problem
from bloomd.http.requests import Req, actor, node_of
from bloomd.runtime import audit
from bloomd.runtime.projects import is_canonical_id

PASSES_ON = {"passes_on": True, "refuses": (502,)}


@get("/api/membridge/health", summary="Membridge: its health", opt=PASSES_ON)
async def health(request: Req) -> Response[bytes]:
    return await _forward(request, "GET", "/health")


@get("/api/membridge/projects", summary="Membridge: projects", opt=PASSES_ON)
async def projects(request: Req) -> Response[bytes]:
    return await _forward(request, "GET", "/projects")


@get("/api/membridge/agents", summary="Membridge: agents", opt=PASSES_ON)
async def agents(request: Req) -> Response[bytes]:
    return await _forward(request, "GET", "/agents")


@get("/api/membridge/jobs", summary="Membridge: sync history", opt=PASSES_ON)
async def jobs(request: Req) -> Response[bytes]:
    return await _forward(request, "GET", "/jobs")


@get("/api/membridge/projects/{canonical_id:str}/leadership", summary="Membridge: who leads a project", opt=PASSES_ON)
async def leadership(request: Req, canonical_id: str) -> Response[bytes]:
    return await _forward(request, "GET", f"/projects/{_checked(canonical_id)}/leadership")


@get("/api/membridge/projects/{canonical_id:str}/nodes", summary="Membridge: the nodes of a project", opt=PASSES_ON)
async def nodes(request: Req, canonical_id: str) -> Response[bytes]:
    return await _forward(request, "GET", f"/projects/{_checked(canonical_id)}/nodes")


@post(
    "/api/membridge/projects/{canonical_id:str}/leadership/select",
    summary="Membridge: promote a node to primary",
    status_code=200,
    opt={**PASSES_ON, "body": Any},
)
async def select(request: Req, canonical_id: str) -> Response[bytes]:
    project = _checked(canonical_id)
    body = await read_json(request)
    answer = await _forward(request, "POST", f"/projects/{project}/leadership/select", body)
    if (answer.status_code or 500) < 300:
        node = str(cast("dict[str, Any]", body).get("primary_node_id")) if isinstance(body, dict) else "?"
        await audit.add(
            node_of(request).database,
            "membridge.promoted",
            entity_type="project",
            entity_id=project,
            actor=actor(request),
            detail=f"primary node {node[:200]}",
        )
    return answer


async def _forward(request: Req, method: str, path: str, body: Any = None) -> Response[bytes]:
    query = request.scope["query_string"].decode("latin-1")
    try:
        answer = await node_of(request).membridge.client().request(method, path, json=body, query=query or None)
    except (Unavailable, Misconfigured) as error:
        raise Problem(502, one_line(error), type="membridge-unavailable") from error
    return Response(
        answer.body,
        status_code=answer.status,
        media_type=answer.content_type or "application/octet-stream",
        # Another server's words: no browser shall run them as ours.
        headers={"content-security-policy": "default-src 'none'; sandbox"},
    )


def _checked(canonical_id: str) -> str:
    if not is_canonical_id(canonical_id):
        raise Problem(
            404, "A project is named by its canonical id: 16 hexadecimal digits, lower case", type="not-found"
        )
    return canonical_id


HANDLERS = [health, projects, agents, jobs, leadership, nodes, select]
