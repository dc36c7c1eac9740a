"""A tiny HTTP server on a Unix socket, in the place of bloomd behind nginx, and a client that says what it wants."""

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Self


@dataclass
class Seen:
    """One request as it arrived."""

    connection: int
    """Which connection it came on, counted from 0."""
    method: str
    path: str
    headers: Message
    body: bytes


@dataclass
class Reply:
    """What is answered; with `held`, the rest of an event stream comes only when that is set."""

    content: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    status: int = 200
    held: threading.Event | None = None


class Upstream(ThreadingMixIn, UnixStreamServer):
    """Answers every request with 200, or as `replies` says for its path, and keeps what it saw."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.seen: list[Seen] = []
        self.replies: dict[str, Reply | None] = {}
        """None for a path whose requests are read, and then the connection closed."""
        self.arrived: list[str] = []
        """The paths of requests whose headers are here, and perhaps not yet all of the body."""
        self.connections = 0
        self._open: list[socket.socket] = []
        super().__init__(str(path), _Handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.hang_up()
        self.server_close()

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        self._open.append(connection)
        return connection, address

    def hang_up(self) -> None:
        """Close every connection that is kept alive."""
        for connection in self._open:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def setup(self) -> None:
        super().setup()
        self.connection_number = self.server.connections
        self.server.connections += 1

    def handle(self) -> None:
        with suppress(ConnectionError):  # once it has the status, nginx may leave the rest and ask another node
            super().handle()

    def handle_any(self) -> None:
        self.server.arrived.append(self.path)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append(Seen(self.connection_number, self.command, self.path, self.headers, body))
        reply = self.server.replies.get(self.path, Reply())
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {**reply.headers, "x-content-type-options": "nosniff"}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(reply.content) * (2 if reply.held else 1)))
        self.end_headers()
        self.wfile.write(reply.content)
        if reply.held:
            reply.held.wait(20)
            self.wfile.write(reply.content)

    do_GET = do_POST = do_PUT = handle_any  # noqa: N815 (http.server wants these names)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at `seen`."""


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: Message
    body: bytes


def ask(
    port: int,
    path: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    source: str = "127.0.0.1",
) -> Answer:
    """One request on a connection of its own, from this address of loopback."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10, source_address=(source, 0))
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
