"""Artifacts: upload them, look at them, fetch their content."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, cast

import msgspec
import structlog
import trio
from litestar import Response, get, put
from litestar.params import Parameter
from litestar.types import ASGIApp

from bloomd.errors import Unavailable
from bloomd.http.answers import Json
from bloomd.http.asgi import Receive, Scope, Send
from bloomd.http.bodies import convert, in_pieces
from bloomd.http.problems import Problem
from bloomd.http.requests import Cursor, Limit, Req, actor, cancel_when_gone, node_of, page_of, worker_of
from bloomd.runtime import artifacts, uploads
from bloomd.runtime.artifacts import Content
from bloomd.runtime.model import Artifact
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import NotFound, Refusal
from bloomd.runtime.uploads import NewArtifact

log = structlog.stdlib.get_logger(__name__)

# Who takes nothing of an answer for so long is not reading.
STALL_SECONDS = 30.0

_UPLOAD = re.compile(r"/api/runtime/leases/[^/]+/artifacts/[^/]+")

# What the path and the query of an upload may say.
_SAID = msgspec.json.schema_components([NewArtifact])[1]["NewArtifact"]["properties"]

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


@get(
    "/api/runtime/artifacts/{artifact_id:str}/content",
    summary="The content of an artifact, or a range of it",
    opt={"media": ("*/*",), "also": (206, 304), "refuses": (416,)},
)
async def content(request: Req, artifact_id: str) -> ASGIApp:
    node = node_of(request)
    found = await artifacts.content(node.database, node.contents, artifact_id)
    etag = f'"{found.sha256}"' if found.sha256 else ""
    headers = {**_HARMLESS, "accept-ranges": "bytes"} | ({"etag": etag} if etag else {})
    status, part = 200, range(found.size)

    async def judge(damage: str | None) -> None:
        if damage is None:
            node.contents.damaged.discard(artifact_id)
        else:
            await artifacts.one(node.database, artifact_id)  # or else it was deleted meanwhile
            await node.contents.report(node.database, artifact_id, damage)

    if etag and matches(request.headers.get("if-none-match", ""), etag):
        return cast("ASGIApp", ContentAnswer(304, headers, found, range(0), judge))
    if request.headers.get("if-range", etag) == etag and (asked := request.headers.get("range")):
        wanted = range_of(asked, found.size)
        if wanted:
            status, part = 206, wanted
            headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{found.size}"
    headers |= {"content-type": found.content_type, "content-length": str(len(part))}
    return cast("ASGIApp", ContentAnswer(status, headers, found, part, judge))


@put(
    "/api/runtime/leases/{lease_id:str}/artifacts/{name:str}",
    summary="Upload an artifact under the current lease of a task",
    status_code=201,
    opt={"bytes": True, "also": (200,), "refuses": (409,)},
)
async def upload(
    request: Req,
    lease_id: str,
    name: Annotated[str, Parameter(description="Unique under the lease.", schema_extra=_SAID["name"])],
    type: Annotated[
        str, Parameter(description="What it is, in the worker's words.", schema_extra=_SAID["type"])
    ] = "UPLOAD",
    tag: Annotated[
        list[str] | None, Parameter(description="One of its tags; may be repeated.", schema_extra=_SAID["tags"])
    ] = None,
) -> Response[Artifact]:
    """The body is the content, of any Content-Type. 200 when the same content was uploaded under this name before."""
    content_type = request.headers.get("content-type")
    said = {"lease_id": lease_id, "name": name, "type": type, "tags": tag or [], "content_type": content_type}
    own = said | {"worker_id": worker_of(request, None)}
    body = in_pieces(request)
    try:
        done = await uploads.upload(node_of(request).database, convert(own, NewArtifact), body, actor=actor(request))
    except Refusal:
        while await body():  # who is still sending would not hear why
            pass
        raise
    return Json(done.artifact, status_code=201 if done.new else 200)


def is_upload(scope: Scope) -> bool:
    """Whether a request's body is content of an artifact, for which another limit holds."""
    return scope["method"] == "PUT" and _UPLOAD.fullmatch(scope["path"]) is not None


class ContentAnswer:
    """The answer, as an ASGI application of its own: a piece is read when the one before it is on its way.

    Who asks for all of it gets the last piece only when all of it is what its sha256 says.
    """

    def __init__(
        self,
        status: int,
        headers: dict[str, str],
        content: Content,
        part: range,
        judge: Callable[[str | None], Awaitable[None]],
    ) -> None:
        """`judge`: told how the content turns out to be damaged; None when all of it is good."""
        self._status = status
        self._headers = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._content = content
        self._part = part
        self._judge = judge
        self._digest = hashlib.sha256() if part == range(content.size) and content.sha256 else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the part that was asked for.

        Raises:
            NotFound, Unavailable, Problem: the content cannot be had, or is damaged, and nothing has been sent yet.
        """
        part = range(0) if scope["state"]["head"] else self._part
        first = await self._piece(part.start, part) if part else b""
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        if len(first) == len(part):
            await send({"type": "http.response.body", "body": first, "more_body": False})
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            try:
                await self._send_pieces(first, part, send)
            except (NotFound, Unavailable, Problem) as error:
                log.warning("content broken off", error=str(error))  # its length tells the client
            except trio.TooSlowError:
                log.info("reader of content dropped", reason=f"it took nothing for {STALL_SECONDS:.0f} s")
            nursery.cancel_scope.cancel()

    async def _send_pieces(self, first: bytes, part: range, send: Send) -> None:
        piece, at = first, part.start
        while piece:
            at += len(piece)
            with trio.fail_after(STALL_SECONDS):
                await send({"type": "http.response.body", "body": piece, "more_body": at < part.stop})
            piece = await self._piece(at, part) if at < part.stop else b""

    async def _piece(self, at: int, part: range) -> bytes:
        try:
            piece = (await self._content.piece_at(at))[: part.stop - at]
        except NotFound:
            await self._judge(f"there is nothing of it from byte {at} on, of {self._content.size}")
            raise
        if self._digest:
            self._digest.update(piece)
            if at + len(piece) == part.stop:
                good = self._digest.hexdigest() == self._content.sha256
                await self._judge(None if good else "it is not what its sha256 says")
                if good:
                    return piece
                raise Problem(500, "The content of this artifact is damaged: it is not what its sha256 says")
        return piece


def matches(if_none_match: str, etag: str) -> bool:
    """Whether a client has this already (RFC 9110, section 13.1.2: a weak comparison)."""
    known = [each.strip().removeprefix("W/") for each in if_none_match.split(",")]
    return "*" in known or etag in known


def range_of(header: str, size: int) -> range | None:
    """The bytes that a Range header asks for; None for what is to be ignored: other units, or several ranges at once.

    Raises:
        Problem: 416, there is nothing in this range.
    """
    asked = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
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


HANDLERS = [listing, one, content, upload]
