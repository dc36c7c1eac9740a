"""A real S3 server: rclone's, which checks signatures as MinIO's does; and a line to it that can be in trouble."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from servers import eventually, free_port

from bloomd.settings.model import Minio

ACCESS, SECRET = "bloom-access", "bloom-secret-of-the-tests"


class S3Server:
    """It serves a directory, each folder of which is a bucket."""

    def __init__(self, rclone: str, directory: Path) -> None:
        self.directory = directory
        self._port = free_port()
        self.endpoint = f"127.0.0.1:{self._port}"
        self._command = [
            rclone, "serve", "s3", "--auth-key", f"{ACCESS},{SECRET}", "--addr", self.endpoint, str(directory),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def settings(self, **changes: Any) -> Minio:
        values: dict[str, Any] = {"access_key": ACCESS, "secret_key": SECRET, "bucket": "artifacts"}
        return Minio(endpoint=self.endpoint, **(values | changes))

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        environment = {"HOME": str(self.directory), "RCLONE_CONFIG": str(self.directory / "rclone.conf")}
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        eventually(lambda: _accepts(self._port))

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(10)


@contextmanager
def s3_server(rclone: str, directory: Path) -> Iterator[S3Server]:
    """One that runs; there is one bucket, `artifacts`."""
    (directory / "artifacts").mkdir()
    server = S3Server(rclone, directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()


FULL = b"""<?xml version="1.0"?><Error><Code>XMinioStorageFull</Code><Message>no room</Message></Error>"""


class Line:
    """Passes on what it gets, both ways, as long as its mode is `ok`.

    `slow`: each answer comes two seconds later. `cut`: the connection is closed when `bytes_passed` have gone to the
    server. `full`: a stand-in for a server without room answers.
    """

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self._to = (host, int(port))
        self.mode = "ok"
        self.bytes_passed = 4096
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            if self.mode == "full":
                client.recv(65536)
                head = f"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: {len(FULL)}\r\nConnection: close\r\n"
                client.sendall(f"{head}Content-Type: application/xml\r\n\r\n".encode() + FULL)
                return
            with socket.create_connection(self._to) as server:
                back = threading.Thread(target=self._answer, args=(server, client), daemon=True)
                back.start()
                passed = 0
                while data := client.recv(65536):
                    passed += len(data)
                    if self.mode == "cut" and passed > self.bytes_passed:
                        break
                    server.sendall(data)
                for each in (server, client):
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if self.mode == "slow":
                    self._over.wait(2.0)
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)  # the server has gone


def _accepts(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
