"""API keys by name: make one, look who has one, remove one."""

from typing import Literal

import msgspec
from litestar import Response, delete, get, post

from bloomd.http.access import is_off
from bloomd.http.bodies import read
from bloomd.http.problems import FieldError, Problem
from bloomd.http.requests import Cursor, Limit, Req, actor, node_of, page_of
from bloomd.runtime import keys
from bloomd.runtime.keys import BadName, Key, MadeKey, NewKey
from bloomd.runtime.pages import Page


class RemovedKey(msgspec.Struct, frozen=True):
    removed: bool
    name: str
    authentication: Literal["on", "off"]
    """Off when this was the last one and `http.api_key` is not set: whoever reaches the port may do everything."""


@get("/api/runtime/keys", summary="API keys, the latest made first; never their secrets")
async def listing(request: Req, limit: Limit = 100, cursor: Cursor = None) -> Response[list[Key]]:
    page = Page.after(cursor, limit)
    rows = await keys.listing(node_of(request).database, page)
    return page_of(rows, page, lambda key: (key.created_at, key.name), request)


@post("/api/runtime/keys", summary="Make an API key", opt={"body": NewKey, "refuses": (409,)})
async def add(request: Req) -> MadeKey:
    """Its secret is in this answer and nowhere else. With the first key, authentication is on."""
    new = await read(request, NewKey)
    try:
        return await node_of(request).keys.add(new.name, actor=actor(request))
    except BadName as error:
        raise Problem(400, str(error), type="invalid", errors=[FieldError("name", str(error))]) from error


@delete("/api/runtime/keys/{name:str}", summary="Remove an API key", status_code=200)
async def remove(request: Req, name: str) -> RemovedKey:
    """It is invalid at once here, and within moments on every other node."""
    node = node_of(request)
    await node.keys.remove(name, actor=actor(request))
    return RemovedKey(removed=True, name=name, authentication="off" if is_off(node.settings.http, node.keys) else "on")


HANDLERS = [listing, add, remove]
