"""The page's own files, from memory: they are few, hold no data, and need no key.

All but the first stand under a name made from their content, `/web/<digest>/...`: a browser keeps them for good, and
another version of bloomd has another name. The first, at `/`, names them all, so that it fetches them at once.
"""

import hashlib
import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

import msgspec

from bloomd.http.asgi import App, Receive, Scope, Send
from bloomd.http.problems import Problem, allow

# Nothing but our own files, no inline script or style, and no other page may frame this one.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

_HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}

_FOR_GOOD = "public, max-age=31536000, immutable"
_ASK_EACH_TIME = "no-cache"


class File(msgspec.Struct, frozen=True):
    content: bytes
    headers: dict[str, str]


def load() -> dict[str, File]:
    """Every file of the page by its path."""
    parts = {name: _lean(name, part.read_bytes()) for name, part in _walk(files("bloomd") / "web", "")}
    first = parts.pop("index.html").decode()
    digest = hashlib.sha256(b"".join(name.encode() + parts[name] for name in sorted(parts))).hexdigest()[:12]
    preloaded = "\n".join(
        f'<link rel="modulepreload" href="/web/{digest}/{name}">' for name in sorted(parts) if name.endswith(".js")
    )
    index = first.replace("{digest}", digest).replace("<!-- modules -->", preloaded).encode()
    return {
        "/": _file("index.html", index, _ASK_EACH_TIME),
        **{f"/web/{digest}/{name}": _file(name, content, _FOR_GOOD) for name, content in parts.items()},
    }


def with_page(app: App, page: dict[str, File]) -> App:
    """Answer for the page's files, and leave all else to the application."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        file = page.get(scope["path"])
        if file is None:
            await app(scope, receive, send)
            return
        scope["path_template"] = "/" if scope["path"] == "/" else "/web/{file}"
        if scope["method"] != "GET":
            raise Problem(405, "The page is only there to be read", headers={"allow": allow({"GET"})})
        unchanged = any(
            name == b"if-none-match" and file.headers["etag"].encode() in value for name, value in scope["headers"]
        )
        content = b"" if unchanged else file.content
        headers = [(name.encode(), value.encode()) for name, value in file.headers.items()]
        if not unchanged:
            headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": 304 if unchanged else 200, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    return serve


def _lean(name: str, content: bytes) -> bytes:
    """Without the lines that are only a comment: whoever reads the source has them. The others keep their numbers."""
    return re.sub(rb"(?m)^\t*//.*$", b"", content) if name.endswith(".js") else content


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for each in folder.iterdir():
        if each.is_dir():
            yield from _walk(each, f"{prefix}{each.name}/")
        elif each.name.rpartition(".")[2] in _TYPES:
            yield prefix + each.name, each


def _file(name: str, content: bytes, caching: str) -> File:
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    kind = _TYPES[name.rpartition(".")[2]]
    return File(content, {"content-type": kind, "etag": etag, "cache-control": caching, **_HEADERS})
