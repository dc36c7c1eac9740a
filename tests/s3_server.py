"""A real S3 server: rclone's, which checks signatures as MinIO's does."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import eventually, free_port

from bloomd.settings.model import Minio

ACCESS, SECRET = "bloom-access", "bloom-secret-of-the-tests"


@dataclass
class S3Server:
    endpoint: str
    directory: Path
    """Where it keeps its objects, a folder for each bucket."""

    def settings(self, **changes: Any) -> Minio:
        values: dict[str, Any] = {"access_key": ACCESS, "secret_key": SECRET, "bucket": "artifacts"}
        return Minio(endpoint=self.endpoint, **(values | changes))


@contextmanager
def s3_server(rclone: str, directory: Path) -> Iterator[S3Server]:
    """Serve a directory, each folder of which is a bucket; there is one, `artifacts`."""
    (directory / "artifacts").mkdir()
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [rclone, "serve", "s3", "--auth-key", f"{ACCESS},{SECRET}", "--addr", address, str(directory)]
    environment = {"HOME": str(directory), "RCLONE_CONFIG": str(directory / "rclone.conf")}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        eventually(lambda: _accepts(port))
        yield S3Server(address, directory)
    finally:
        process.kill()
        process.wait(10)


def _accepts(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
