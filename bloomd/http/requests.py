"""What the routes share: the node behind a request, who makes it, and lists in pages."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

import trio
from litestar import Request, Response
from litestar.params import Parameter

from bloomd.http.access import Caller
from bloomd.http.answers import Json
from bloomd.http.problems import FieldError, Problem
from bloomd.node import Node
from bloomd.runtime.pages import Page

Row = TypeVar("Row")
Req = Request[Any, Any, Any]

Limit = Annotated[int, Parameter(ge=1, le=1000, description="How many, at the most.")]
Since = Annotated[int, Parameter(ge=0, le=1 << 53, description="Epoch milliseconds: from then on.")]
Until = Annotated[int, Parameter(ge=0, le=1 << 53, description="Epoch milliseconds: what was before that.")]
ALWAYS = 1 << 53
"""As `Until`: no end."""
Cursor = Annotated[
    str | None,
    Parameter(
        description="Of the page to give: from the Link header of the one before.", schema_extra={"format": "cursor"}
    ),
]


def node_of(request: Req) -> Node:
    return request.app.state["node"]


def caller(request: Req) -> Caller:
    return request.scope["state"]["caller"]


def actor(request: Req) -> str:
    """The name for the audit log."""
    return caller(request).actor


def worker_of(request: Req, named: str | None) -> str | None:
    """The worker for whom something is done: the one of the token, or with a key the one that is named, if any.

    Raises:
        Problem: 403, a worker speaks for another one.
    """
    own = caller(request).worker
    if own is not None and named is not None and named != own:
        raise Problem(403, f"This is a token of the worker {own}, which speaks for no other", type="not-your-worker")
    return own or named


def chosen(name: str, value: Row | None, request: Req) -> Row | None:
    """A filter of the query, of one of some words; None without it.

    Raises:
        Problem: 400, it is `null`, which Litestar takes for none.
    """
    if value is None and name in request.query_params:
        raise Problem(
            400, f"{name}: 'null' is none of them", type="invalid", errors=[FieldError(name, "cannot be null")]
        )
    return value


def page_of(
    rows: Sequence[Row], page: Page, key: Callable[[Row], tuple[int, str]], request: Req
) -> Response[list[Row]]:
    """A page of a list: a bare array, and in the Link header where the next one is."""
    return linked(rows, page.next(rows, key), request)


def linked(rows: Sequence[Row], cursor: str | None, request: Req) -> Response[list[Row]]:
    """A page of a list, and in the Link header the one with this cursor."""
    headers: dict[str, str] = {}
    if cursor is not None:
        query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
        headers["link"] = f'<{request.url.path}?{urlencode([*query, ("cursor", cursor)])}>; rel="next"'
    return Json(list(rows), headers=headers)


async def cancel_when_gone(receive: Callable[[], Awaitable[Mapping[str, object]]], scope: trio.CancelScope) -> None:
    """Cancel what is done for a client as soon as that has gone. For when its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
