"""The application: the rooms that a request passes, and Litestar with its routes at the end of them."""

from collections.abc import Iterable, Iterator
from typing import cast

from litestar import Litestar, Response
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from bloomd import __version__
from bloomd.http.access import guarded
from bloomd.http.answers import Json
from bloomd.http.asgi import App, Receive, Scope, Send
from bloomd.http.bodies import bounded
from bloomd.http.latency import Latency
from bloomd.http.limits import Limiter
from bloomd.http.observe import observed
from bloomd.http.openapi import describe
from bloomd.http.page import load, with_page
from bloomd.http.problems import allow, answer
from bloomd.http.routes import (
    agents,
    artifacts,
    audit,
    bulk,
    config,
    dispatch,
    events,
    health,
    install,
    keys,
    leases,
    membridge,
    metrics,
    projects,
    queue,
    schema,
    session,
    status,
    tasks,
    tokens,
    workers,
)
from bloomd.node import Node
from bloomd.settings.model import Http

RESOURCES = (
    health,
    config,
    workers,
    agents,
    tokens,
    install,
    tasks,
    dispatch,
    bulk,
    leases,
    artifacts,
    audit,
    events,
    keys,
    queue,
    projects,
    membridge,
    metrics,
    schema,
    session,
    status,
)

# What somebody without a key sends is a key or a code.
STRANGERS_BYTES = 8 * 1024


def create_app(node: Node) -> App:
    """The whole HTTP side of a node. It reads the node's settings anew for every request."""
    latency = Latency()
    routes = cast("App", litestar(node, latency))
    bounded_routes = bounded(routes, lambda scope: max_body_bytes(scope, node.settings.http))
    admitted = guarded(bounded_routes, lambda: node.settings.http, node.keys)
    requests = observed(with_page(admitted, load()), latency, verbose=lambda: node.logs.level == "debug")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await requests(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "there are no websockets here"})

    return app


def max_body_bytes(scope: Scope, http: Http) -> int:
    """What the body of this request may have. Whether a route takes it is decided later, so this judges the path."""
    if not scope["state"]["caller"].authenticated:
        return STRANGERS_BYTES
    return http.max_artifact_bytes if artifacts.is_upload(scope) else http.max_body_bytes


def _options(handlers: Iterable[HTTPRouteHandler]) -> Iterator[HTTPRouteHandler]:
    """A handler of OPTIONS for each path: Litestar's own tells only the method that comes first."""
    methods: dict[str, set[str]] = {}
    for handler in handlers:
        for path in handler.paths:
            methods.setdefault(path, {"OPTIONS"}).update(handler.http_methods)
    for path, taken in methods.items():
        yield _options_of(path, allow(taken))


def _options_of(path: str, allowed: str) -> HTTPRouteHandler:
    async def options() -> Response[None]:
        return Response(None, headers={"allow": allowed})

    return HTTPRouteHandler(path, http_method="OPTIONS", status_code=204, include_in_schema=False)(options)


def litestar(node: Node, latency: Latency) -> Litestar:
    handlers = [handler for resource in RESOURCES for handler in resource.HANDLERS]
    app = Litestar(
        [*_options(handlers), *handlers],
        response_class=Json,
        exception_handlers={Exception: answer},
        openapi_config=OpenAPIConfig(
            title="BLOOM Runtime", version=__version__, path="/api/schema/litestar", render_plugins=[JsonRenderPlugin()]
        ),
        logging_config=None,
        request_max_body_size=None,  # `bounded` knows the limits; Litestar's own would be 10 MB
    )
    # Of those who type a key, nobody errs more often; of those who guess one, nobody gets anywhere.
    sign_ins = Limiter(limit=10, seconds=60)
    app.state.update({"node": node, "latency": latency, "public_test": config.PublicTest(), "sign_ins": sign_ins})
    app.state["openapi"] = describe(app)
    return app
