"""Real HTTP servers for tests, on loopback: a Membridge that speaks contract section 5, and any other peer.

    async with membridge_peer(key="k") as peer:
        peer.agents = [old_agent("w1"), new_agent("w2")]
        ...                      # talk to peer.url
        peer.mode = "hang"       # from the next request on
        assert peer.requests[-1].path == "/agents"

Modes, of every peer:

    ok        answer
    hang      read the request and say nothing
    drip      one byte of an endless answer every 20 ms
    500, 503, 404, ...   answer with that status
    redirect  to `peer.redirect_to`
    garbage   bytes that are not HTTP
    html      a web page with 200
    lie       JSON with 200, but not what was asked for
    huge      100 MB, or as much of it as is taken
    drop      close in the middle of the answer
    close     close without an answer

A worker's agent, which speaks section 6, is `agent_peer.py`'s.
"""

import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import h11
import trio

HUGE = 100_000_000
DRIP_SECONDS = 0.02


@dataclass
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


def reply(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())


class Peer:
    """A server that answers what `answer` says, or behaves as its mode says."""

    def __init__(self, answer: Callable[[Request], Reply | Awaitable[Reply]]) -> None:
        self.answer = answer
        self.mode = "ok"
        self.redirect_to = "http://127.0.0.1:1/"
        self.requests: list[Request] = []
        self.connections = 0
        self.url = ""
        self._arrived = trio.Event()

    async def received(self, count: int) -> None:
        """Return once this many requests have come, since the start."""
        while len(self.requests) < count:
            await self._arrived.wait()

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            async with stream:
                await self._serve(stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            request = await _read(connection, stream)
            if request is None:
                return
            self.requests.append(request)
            self._arrived.set()
            self._arrived = trio.Event()
            if self.mode in _RAW:
                await _RAW[self.mode](stream)
                return
            answer = self._reply(request)
            answer = answer if isinstance(answer, Reply) else await answer
            await _write(connection, stream, answer, head_only=request.method == "HEAD")
            if connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()

    def _reply(self, request: Request) -> Reply | Awaitable[Reply]:
        match self.mode:
            case "ok":
                return self.answer(request)
            case "redirect":
                return Reply(302, headers={"location": self.redirect_to})
            case "html":
                return Reply(200, b"<!doctype html><title>Welcome</title>", "text/html")
            case "lie":
                return reply({"agents": 17, "status": ["?"]})
            case status:
                return reply({"error": f"mode {status}"}, int(status))


async def _read(connection: h11.Connection, stream: trio.abc.Stream) -> Request | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        match connection.next_event():
            case h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            case h11.Request() as head:
                pass
            case h11.Data(data=data):
                body += data
            case h11.EndOfMessage() if head is not None:
                path, _, query = head.target.decode().partition("?")
                headers = {name.decode().lower(): value.decode() for name, value in head.headers}
                return Request(head.method.decode(), path, query, headers, bytes(body))
            case _:
                return None


async def _write(connection: h11.Connection, stream: trio.abc.Stream, answer: Reply, *, head_only: bool) -> None:
    headers = [("content-type", answer.content_type), ("content-length", str(len(answer.body)))]
    encoded = [(name, value.encode("latin-1")) for name, value in [*headers, *answer.headers.items()]]
    parts = [connection.send(h11.Response(status_code=answer.status, headers=encoded))]
    if answer.body and not head_only:
        parts.append(connection.send(h11.Data(data=answer.body)))
    parts.append(connection.send(h11.EndOfMessage()))
    await stream.send_all(b"".join(part for part in parts if part))


async def _hang(stream: trio.abc.Stream) -> None:
    while await stream.receive_some():  # until the other side has given up
        pass


async def _drip(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        await stream.send_all(b" ")
        await trio.sleep(DRIP_SECONDS)


async def _garbage(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"\x16\x03\x01 nobody speaks like this\r\n\r\n" * 3)


async def _huge(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"[" * 65536 + b"\r\n"
    for _ in range(HUGE // 65536):
        await stream.send_all(chunk)
    await stream.send_all(b"0\r\n\r\n")


async def _drop(stream: trio.abc.Stream) -> None:
    await stream.send_all(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n[{"na')


async def _close(stream: trio.abc.Stream) -> None:
    pass


_RAW = {"hang": _hang, "drip": _drip, "garbage": _garbage, "huge": _huge, "drop": _drop, "close": _close}


P = TypeVar("P", bound=Peer)


@asynccontextmanager
async def serving(peer: P, *, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[P]:
    """Serve the peer on 127.0.0.1 for as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        wrapped = [trio.SSLListener(each, tls) for each in listeners] if tls else listeners
        nursery.start_soon(trio.serve_listeners, peer.serve, wrapped)
        peer.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
        yield peer
        nursery.cancel_scope.cancel()


def old_agent(name: str, **fields: Any) -> dict[str, Any]:
    """An agent as servers in the field list it: it registered once and is `unknown` ever after."""
    agent = {"name": name, "url": f"http://127.0.0.1:8001/{name}", "status": "unknown", "registered_at": time.time()}
    return agent | fields


def new_agent(name: str, **fields: Any) -> dict[str, Any]:
    """An agent as newer servers list it."""
    agent: dict[str, Any] = {
        "id": f"id-{name}", "node_id": name, "name": name, "url": f"http://127.0.0.1:8001/{name}", "status": "online",
        "registered_at": time.time() - 60, "last_seen": time.time(), "ip_addrs": ["10.0.0.7"], "obs_count": 12,
        "db_sha": "5f1c", "capabilities": {"claude_cli": True, "max_concurrency": 2, "labels": ["openrc", "x86_64"]},
    }  # fmt: skip
    return agent | fields


class MembridgePeer(Peer):
    """A Membridge control plane with its state in plain sight."""

    def __init__(self, key: str | None) -> None:
        super().__init__(self._answer)
        self.key = key
        self.agents: list[Any] = []
        self.projects: list[dict[str, Any]] = []
        self.nodes: dict[str, list[dict[str, Any]]] = {}
        self.primary: dict[str, str] = {}
        self.jobs: list[dict[str, Any]] = []

    def _answer(self, request: Request) -> Reply:
        method, parts = request.method, request.path.strip("/").split("/")
        if (method, parts) == ("GET", ["health"]):
            counts = {"projects": len(self.projects), "agents": len(self.agents)}
            return reply({"status": "ok", "service": "membridge-control-plane", "version": "0.4.0", **counts})
        if self.key is not None and request.headers.get("x-membridge-admin") != self.key:
            return reply({"detail": "invalid admin key"}, 401)
        match method, parts:
            case "GET", ["agents"]:
                return reply(self.agents)
            case "POST", ["agents"]:
                return self._add(self.agents, old_agent(request.json["name"]) | request.json)
            case "DELETE", ["agents", name]:
                return self._remove(self.agents, name)
            case "GET", ["projects"]:
                return reply(self.projects)
            case "POST", ["projects"]:
                return self._add(self.projects, {"nodes_count": 0, "source": "manual"} | request.json)
            case "DELETE", ["projects", name]:
                return self._remove(self.projects, name)
            case "GET", ["projects", project, "nodes"]:
                return reply(self.nodes.get(project, []))
            case "GET", ["projects", project, "leadership"]:
                return reply(self._leadership(project))
            case "POST", ["projects", project, "leadership", "select"]:
                return self._select(project, request.json)
            case "POST", ["agent", "heartbeat"]:
                return reply({"ok": True, "role": "secondary", "canonical_id": request.json["canonical_id"]})
            case "POST", ["sync", "push" | "pull"]:
                return reply({"ok": True, **request.json, "detail": "", "job_id": f"job-{len(self.jobs) + 1}"})
            case "GET", ["jobs"]:
                return reply(self.jobs)
            case _:
                return reply({"detail": "Not Found"}, 404)

    def _leadership(self, project: str) -> dict[str, Any]:
        nodes = self.nodes.get(project, [])
        leader = {"canonical_id": project, "preferred_primary": self.primary.get(project)}
        return {**leader, "node_count": len(nodes), "nodes": nodes}

    def _select(self, project: str, body: Any) -> Reply:
        if not isinstance(body, dict) or "primary_node_id" not in body:
            return reply({"detail": [{"loc": ["body", "primary_node_id"], "msg": "Field required"}]}, 422)
        self.primary[project] = body["primary_node_id"]
        selected = {"ok": True, "canonical_id": project, "detail": "selected"}
        return reply({**selected, "lease_seconds": 3600, **body})

    def _add(self, items: list[dict[str, Any]], item: dict[str, Any]) -> Reply:
        if any(each["name"] == item["name"] for each in items):
            return reply({"detail": "already exists"}, 409)
        items.append(item)
        return reply(item, 201)

    def _remove(self, items: list[dict[str, Any]], name: str) -> Reply:
        kept = [each for each in items if each["name"] != name]
        if len(kept) == len(items):
            return reply({"detail": "Not Found"}, 404)
        items[:] = kept
        return Reply(204)


@asynccontextmanager
async def membridge_peer(
    *, key: str | None = None, tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[MembridgePeer]:
    async with serving(MembridgePeer(key), tls=tls, port=port) as peer:
        yield peer
