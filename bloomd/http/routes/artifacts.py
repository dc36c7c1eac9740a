"""Artifacts: look at them, fetch their content."""

from litestar import Response, get

from bloomd.http.problems import Problem
from bloomd.http.requests import Cursor, Limit, Req, node_of, page_of
from bloomd.runtime import artifacts
from bloomd.runtime.model import Artifact
from bloomd.runtime.pages import Page

# Workers decide what an artifact holds, and it shares the page's origin: a browser must store it, never run it.
_HARMLESS = {
    "content-disposition": "attachment",
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox",
}


@get("/api/runtime/artifacts", summary="Artifacts, newest first")
async def listing(
    request: Req, task_id: str | None = None, limit: Limit = 100, cursor: Cursor = None
) -> Response[list[Artifact]]:
    page = Page.after(cursor, limit)
    rows = await artifacts.listing(node_of(request).database, page, task_id=task_id)
    return page_of(rows, page, lambda artifact: (artifact.created_at, artifact.id), request)


@get("/api/runtime/artifacts/{artifact_id:str}", summary="One artifact")
async def one(request: Req, artifact_id: str) -> Artifact:
    return await artifacts.one(node_of(request).database, artifact_id)


@get("/api/runtime/artifacts/{artifact_id:str}/content", summary="The content of an artifact")
async def content(request: Req, artifact_id: str) -> Response[bytes]:
    artifact = await artifacts.one(node_of(request).database, artifact_id)
    if artifact.content is None:
        raise Problem(404, "The content of this artifact is not in the database", type="not-found")
    headers = {**_HARMLESS, "etag": f'"{artifact.sha256}"'}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(b"", status_code=304, headers=headers)
    return Response(artifact.content.encode(), media_type="text/plain; charset=utf-8", headers=headers)


HANDLERS = [listing, one, content]
