"""Workers' tokens: make one, look which there are, remove one; and enrolments, by which a new machine gets one."""

from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, delete, get, post
from litestar.params import Parameter
from msgspec import Meta

from bloomd.http.access import is_off, unauthorized
from bloomd.http.bodies import invalid, read
from bloomd.http.problems import FieldError
from bloomd.http.requests import Cursor, Limit, Req, actor, node_of, page_of
from bloomd.runtime import tokens
from bloomd.runtime.model import NewWorkerName
from bloomd.runtime.pages import Page
from bloomd.runtime.tokens import BadCode, BadWorker, Enrolment, MadeToken, Token


class NewEnrolment(msgspec.Struct, frozen=True):
    """What a client says to make an enrolment."""

    worker: NewWorkerName


class Exchange(msgspec.Struct, frozen=True):
    """What a new machine says to get its token."""

    code: Annotated[str, Meta(min_length=1, max_length=256)]


class Exchanged(msgspec.Struct, frozen=True):
    """Who the machine is from now on, and with what it proves that."""

    worker: str
    token: str


class RemovedToken(msgspec.Struct, frozen=True):
    removed: bool
    id: str
    worker_id: str
    authentication: Literal["on", "off"]
    """Off when this was the last token and there is no key either: whoever reaches the port may do everything."""


@get("/api/runtime/workers/{worker_id:str}/tokens", summary="A worker's tokens, the latest made first")
async def listing(request: Req, worker_id: str, limit: Limit = 100, cursor: Cursor = None) -> Response[list[Token]]:
    """Never their secrets. A worker that is gone may have some still."""
    page = Page.after(cursor, limit)
    rows = await tokens.listing(node_of(request).database, worker_id, page)
    return page_of(rows, page, lambda token: (token.created_at, token.id), request)


@post(
    "/api/runtime/workers/{worker_id:str}/tokens",
    summary="Make a token for a worker",
    opt={"body": dict[str, Any], "refuses": (409,)},
)
async def add(
    request: Req, worker_id: Annotated[str, Parameter(schema_extra=msgspec.json.schema(NewWorkerName))]
) -> MadeToken:
    """Its secret is in this answer and nowhere else. The worker need not have registered yet."""
    await read(request, dict[str, Any])
    node = node_of(request)
    node.keys.refuse_without_key(node.settings.http.api_key)
    try:
        return await node.keys.add_token(worker_id, actor=actor(request))
    except BadWorker as error:
        raise invalid([FieldError("worker_id", str(error))]) from error


@delete(
    "/api/runtime/workers/{worker_id:str}/tokens/{token_id:str}", summary="Remove a worker's token", status_code=200
)
async def remove(request: Req, worker_id: str, token_id: str) -> RemovedToken:
    """It is invalid at once here, and within moments on every other node. What its worker waits for ends."""
    node = node_of(request)
    await node.keys.remove_token(worker_id, token_id, actor=actor(request))
    off = is_off(node.settings.http, node.keys)
    return RemovedToken(removed=True, id=token_id, worker_id=worker_id, authentication="off" if off else "on")


@post(
    "/api/runtime/enrolments",
    summary="Make a code by which a new machine becomes a worker",
    opt={"body": NewEnrolment, "refuses": (409,)},
)
async def enrol(request: Req) -> Enrolment:
    """It is in this answer and nowhere else, is good for one token, and for an hour."""
    new = await read(request, NewEnrolment)
    node = node_of(request)
    node.keys.refuse_without_key(node.settings.http.api_key)
    return await tokens.enrol(node.database, new.worker, actor=actor(request))


@post(
    "/api/runtime/enrolments/exchange",
    summary="Exchange a code for a worker's token",
    status_code=200,
    opt={"body": Exchange, "refuses": (401,)},
)
async def exchange(request: Req) -> Exchanged:
    """The code is spent by this: of those who come with it one gets a token."""
    asked = await read(request, Exchange)
    try:
        made = await node_of(request).keys.exchange(asked.code)
    except BadCode as error:
        raise unauthorized(str(error)) from error
    return Exchanged(made.worker_id, made.secret)


HANDLERS = [listing, add, remove, enrol, exchange]
