"""Artifacts: look at them, fetch their content."""

import hashlib
import re

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


@get("/api/runtime/artifacts/{artifact_id:str}/content", summary="The content of an artifact, or a range of it")
async def content(request: Req, artifact_id: str) -> Response[bytes]:
    artifact = await artifacts.one(node_of(request).database, artifact_id)
    if artifact.content is None:
        raise Problem(404, "The content of this artifact is not in the database", type="not-found")
    whole = artifact.content.encode()
    etag = f'"{artifact.sha256 or hashlib.sha256(whole).hexdigest()}"'
    headers = {**_HARMLESS, "etag": etag, "accept-ranges": "bytes"}
    if matches(request.headers.get("if-none-match", ""), etag):
        return Response(b"", status_code=304, headers=headers)
    if request.headers.get("if-range", etag) == etag and (asked := request.headers.get("range")):
        part = range_of(asked, len(whole))
        if part:
            headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{len(whole)}"
            return Response(whole[part.start : part.stop], status_code=206, media_type="text/plain", headers=headers)
    return Response(whole, media_type="text/plain", headers=headers)


def matches(if_none_match: str, etag: str) -> bool:
    """Whether a client has this already (RFC 9110, section 13.1.2: a weak comparison)."""
    known = [each.strip().removeprefix("W/") for each in if_none_match.split(",")]
    return "*" in known or etag in known


def range_of(header: str, size: int) -> range | None:
    """The bytes that a Range header asks for; None for what is to be ignored: other units, or several ranges at once.

    Raises:
        Problem: 416, there is nothing in this range.
    """
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not asked or asked[1] == asked[2] == "":
        return None
    if asked[1] == "":
        start, stop = max(0, size - int(asked[2])), size
    else:
        start, stop = int(asked[1]), min(size, int(asked[2]) + 1 if asked[2] else size)
        if asked[2] and int(asked[2]) < start:
            return None
    if start >= stop:
        raise Problem(416, f"The content has {size} bytes", headers={"content-range": f"bytes */{size}"})
    return range(start, stop)


HANDLERS = [listing, one, content]
