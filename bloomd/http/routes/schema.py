"""The API's own description, and a reference page made from it that needs nothing from elsewhere."""

from base64 import b64encode
from hashlib import sha256
from html import escape
from typing import Any

import msgspec
from litestar import Response, get

from bloomd.http.requests import Req


@get(
    "/api/schema",
    summary="This description; a page of it for browsers",
    opt={"media": ("application/json", "text/html")},
)
async def schema(request: Req) -> Response[Any]:
    document = request.app.state["openapi"]
    if "text/html" in request.headers.get("accept", ""):
        return Response(_page(document), media_type="text/html", headers={"content-security-policy": _CSP})
    return Response(document, media_type="application/json")


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font: 14px/1.5 ui-monospace, monospace }
h2 { margin-top: 2.5rem } dt { margin-top: 1rem } pre { overflow-x: auto } :root { color-scheme: light dark }
"""

# The one style, by its hash, and nothing else.
_CSP = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


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
