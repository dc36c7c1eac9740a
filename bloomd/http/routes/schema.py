"""The API's own description: OpenAPI 3.1, and a reference page made from it that needs nothing from elsewhere."""

from html import escape
from typing import Any

import msgspec
from litestar import Litestar, Response, get
from litestar.routes import HTTPRoute

from bloomd.http.problems import FieldError
from bloomd.http.requests import Req


class ProblemDetails(msgspec.Struct, frozen=True):
    """RFC 9457, with `error` for clients of the older runtime."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    errors: list[FieldError] = []


@get("/api/schema", summary="This description; a page of it for browsers")
async def schema(request: Req) -> Response[Any]:
    document = request.app.state["openapi"]
    if "text/html" in request.headers.get("accept", ""):
        return Response(
            _page(document), media_type="text/html; charset=utf-8", headers={"content-security-policy": _CSP}
        )
    return Response(document, media_type="application/json")


def describe(app: Litestar) -> dict[str, Any]:
    """The OpenAPI document: Litestar's, with the bodies that our routes read themselves, and our errors, written in."""
    document = app.openapi_schema.to_schema()
    structs: set[type[msgspec.Struct]] = {ProblemDetails}
    operations: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        for handler in route.route_handlers:
            for method in handler.http_methods:
                operation = document["paths"].get(route.path_format, {}).get(method.lower())
                if operation is not None:
                    operations.append((operation, handler.opt))
                    structs |= {handler.opt["body"]} if "body" in handler.opt else set()
    order = list(structs)
    references, components = msgspec.json.schema_components(order, ref_template="#/components/schemas/{name}")
    reference = dict(zip(order, references, strict=True))
    document.setdefault("components", {}).setdefault("schemas", {}).update(components)
    problem = {"application/problem+json": {"schema": reference[ProblemDetails]}}
    for operation, opt in operations:
        if body := opt.get("body"):
            one = reference[body]
            many = {"type": "array", "items": one, "minItems": 1, "maxItems": 500}
            either = {"anyOf": [one, many]} if opt.get("many") else one
            content = {"schema": many if opt.get("only_many") else either}
            operation["requestBody"] = {"content": {"application/json": content}}
        if opt.get("bytes"):
            content = {"schema": {"type": "string", "format": "binary"}}
            operation["requestBody"] = {"content": {"application/octet-stream": content}}
        for status in [status for status in operation["responses"] if status >= "400"]:
            del operation["responses"][status]
        operation["responses"]["default"] = {"description": "What went wrong", "content": problem}
    document["components"]["securitySchemes"] = {
        "key": {"type": "apiKey", "in": "header", "name": "X-Runtime-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    document["security"] = [{"key": []}, {"bearer": []}]
    return document


_CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font: 14px/1.5 ui-monospace, monospace }
h2 { margin-top: 2.5rem } dt { margin-top: 1rem } pre { overflow-x: auto } :root { color-scheme: light dark }
"""


def _page(document: dict[str, Any]) -> str:
    entries = [
        f"<dt><code>{method.upper()} {escape(path)}</code></dt><dd>{escape(operation.get('summary', ''))}"
        f"{_parameters(operation)}{_body(operation)}</dd>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    objects = [
        f"<h3 id='{escape(name)}'>{escape(name)}</h3><pre><code>"
        f"{escape(msgspec.json.format(msgspec.json.encode(component), indent=2).decode())}</code></pre>"
        for name, component in sorted(document["components"]["schemas"].items())
    ]
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p>The same as JSON: <code>curl .../api/schema</code></p>"
        f"<h2>Routes</h2><dl>{''.join(entries)}</dl><h2>Objects</h2>{''.join(objects)}</html>"
    )


def _parameters(operation: dict[str, Any]) -> str:
    names = [
        f"<code>{escape(each['name'])}</code>" for each in operation.get("parameters", []) if each["in"] == "query"
    ]
    return f"<br>Query: {', '.join(names)}" if names else ""


def _body(operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    one = content.get("anyOf", [content])[0]
    name = one.get("items", one).get("$ref", "").rpartition("/")[2]
    many = "an array of " if "items" in one else ""
    return f"<br>Body: {many}<a href='#{escape(name)}'>{escape(name)}</a>" if name else ""


HANDLERS = [schema]
