"""A control server with methods that do what a test needs, and a client that can also misbehave."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from bloomd.control.listener import Listener, bind, unbind
from bloomd.control.server import Call, ControlError, ControlServer, Method, NoParams
from bloomd.errors import Misconfigured, Unavailable
from bloomd.runtime.refusals import NotFound


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class Count(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: int
    size: int = 10


@dataclass
class Daemon:
    """A control server with methods that do what a test needs, and what it saw."""

    path: str
    listener: Listener
    audited: list[tuple[str, str, Mapping[str, Any], str]] = field(default_factory=list)
    hanging: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)
    finish: trio.Event = field(default_factory=trio.Event)
    subscribed: trio.Event = field(default_factory=trio.Event)
    server: ControlServer = field(init=False)

    def serve_with(self, *, group: str = "no-such-group", own_uid: int | None = None) -> None:
        methods: list[Method[Any]] = [
            Method("ping", self._ping, NoParams, public=True),
            Method("status", self._ping, NoParams),
            Method("restart", self._restart, Named, mutating=True),
            Method("hang", self._hang, NoParams, mutating=True),
            Method("events", self._events, Count),
            Method("large", self._large, Count),
            Method("bug", self._bug, NoParams, mutating=True),
            Method("unencodable", self._unencodable, NoParams),
            Method("away", self._away, NoParams),
            Method("wrong", self._wrong, NoParams),
            Method("refuse", self._refuse, NoParams),
        ]
        self.server = ControlServer(methods, group=group, audit=self._audit, own_uid=own_uid)

    def _audit(self, call: Call, method: Method[Any], params: Mapping[str, Any], outcome: str) -> None:
        self.audited.append((call.user, method.name, params, outcome))

    async def _ping(self, params: NoParams, call: Call) -> object:
        return {"pong": True, "user": call.user}

    async def _restart(self, params: Named, call: Call) -> object:
        if params.name == "nothing":
            raise ControlError("there is no service nothing")
        return [params.name]

    async def _hang(self, params: NoParams, call: Call) -> object:
        self.hanging.set()
        try:
            await self.finish.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return "finished"

    async def _events(self, params: Count, call: Call) -> object:
        self.subscribed.set()
        for number in range(params.count):
            await call.notify("event", {"number": number, "text": "x" * params.size})
        return "end"

    async def _large(self, params: Count, call: Call) -> object:
        return "x" * params.count

    async def _bug(self, params: NoParams, call: Call) -> object:
        raise LookupError("the password is 12345")

    async def _unencodable(self, params: NoParams, call: Call) -> object:
        return object()

    async def _away(self, params: NoParams, call: Call) -> object:
        raise Unavailable("PostgreSQL does not answer")

    async def _wrong(self, params: NoParams, call: Call) -> object:
        raise Misconfigured("the password for bloom is wrong")

    async def _refuse(self, params: NoParams, call: Call) -> object:
        raise NotFound("Task not found")

    async def connect(self) -> "Talker":
        return Talker(await trio.open_unix_socket(self.path))


class Talker:
    """A client that can also misbehave."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._unread = b""

    async def say(self, *lines: bytes) -> None:
        await self.stream.send_all(b"".join(line + b"\n" for line in lines))

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        await self.say(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode())
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        """The next line; an empty value when the server has hung up."""
        while b"\n" not in self._unread:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return {}
            if not data:
                return {}
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    async def __aenter__(self) -> "Talker":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stream.aclose()


@asynccontextmanager
async def serving(path: str, **options: Any) -> AsyncIterator[Daemon]:
    daemon = Daemon(path, bind(path, "no-such-group"))
    daemon.serve_with(**options)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.server.serve, daemon.listener.socket)
            yield daemon
            nursery.cancel_scope.cancel()
    finally:
        unbind(daemon.listener)
