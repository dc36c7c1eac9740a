"""The HTTP server in a test's own process, and a client that sends and reads bytes."""

from contextlib import asynccontextmanager, suppress

import trio
import trio.testing
from servers import free_port

from bloomd.http.server import Binds, HttpServer
from bloomd.settings.model import Http

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
MEGABYTE = 1 << 20


class Server:
    """A server on its binds, in a nursery of the test."""

    def __init__(self, bind, http):
        self.bind = bind
        self.http = http
        self.nursery = None
        self.stopped = trio.Event()
        self.clients = []

    async def run(self, *, task_status):
        await self.http.run(task_status=task_status)
        self.stopped.set()

    async def connect(self):
        if self.bind.startswith("unix:"):
            stream = await trio.open_unix_socket(self.bind[5:])
        else:
            stream = await trio.open_tcp_stream("127.0.0.1", int(self.bind.rpartition(":")[2]))
        self.clients.append(Client(stream))
        return self.clients[-1]


@asynccontextmanager
async def serving(app, *, bind=None, drain_seconds=5.0):
    """A server for a test; what hangs fails."""
    binds = Binds()
    bind = bind or f"127.0.0.1:{free_port()}"
    binds.open(Http(bind=(bind,)))
    server = Server(bind, HttpServer(app, binds, drain_seconds=drain_seconds))
    flies = isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock)
    try:
        with trio.fail_after(10_000 if flies else 20):
            async with trio.open_nursery() as nursery:
                server.nursery = nursery
                await nursery.start(server.run)
                yield server
                nursery.cancel_scope.cancel()
    finally:
        for client in server.clients:
            client.stream.socket.close()
        binds.close_all()


class Client:
    """Reads answers one by one, however their bytes come."""

    def __init__(self, stream):
        self.stream = stream
        self.buffer = b""

    async def send(self, data):
        await self.stream.send_all(data)

    async def read(self):
        """What comes next, as it comes; empty at the end."""
        data, self.buffer = self.buffer, b""
        return data or await self.stream.receive_some(MEGABYTE)

    async def until(self, mark):
        while mark not in self.buffer:
            data = await self.stream.receive_some(MEGABYTE)
            assert data, f"the connection ended after {self.buffer!r}"
            self.buffer += data
        found, _, self.buffer = self.buffer.partition(mark)
        return found + mark

    async def exactly(self, count):
        while len(self.buffer) < count:
            data = await self.stream.receive_some(MEGABYTE)
            assert data, f"the connection ended after {len(self.buffer)} bytes"
            self.buffer += data
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    async def head(self):
        """Status and headers."""
        first, *lines = (await self.until(b"\r\n\r\n")).decode().strip().split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines)

    async def answer(self, *, body=True):
        """Status, headers and body of one answer; `body=False` after a HEAD."""
        status, headers = await self.head()
        content = b""
        if not body:
            pass
        elif "content-length" in headers:
            content = await self.exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while chunk := await self.chunk():
                content += chunk
        return status, headers, content

    async def chunk(self):
        content = await self.exactly(int(await self.until(b"\r\n"), 16) + 2)
        return content[:-2]

    async def rest(self):
        """All that still comes."""
        with suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some(MEGABYTE):
                self.buffer += data
        return self.buffer

    async def is_open(self, seconds):
        """Whether the server keeps it open, and says nothing, for this long."""
        with trio.move_on_after(seconds):
            assert await self.stream.receive_some(1) == b""
            return False
        return True


async def respond(send, body=b"ok", *, status=200, headers=()):
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def body_of(receive):
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body + b"(gone)"
        body += message["body"]
        more = message["more_body"]
    return body


async def echo(scope, receive, send):
    """Answers with the method, the path and the body."""
    assert scope["type"] == "http"
    body = await body_of(receive)
    await respond(send, b"%s %s %s" % (scope["method"].encode(), scope["path"].encode(), body))


async def careless(scope, receive, send):
    """Reads nothing."""
    assert scope["type"] == "http"
    await respond(send)
