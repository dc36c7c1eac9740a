"""A real bloomd as a child process, with its configuration, its socket and a client for its API."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import httpx
from servers import eventually, free_port

BIN = Path(sys.executable).parent
KEY = "a-test-key-that-is-long-enough"


class Bloomd:
    """`bloomd run` on a database. `settings` are dotted keys over the defaults that a test wants."""

    def __init__(self, database_url: str, *, environ: dict[str, str] | None = None, **settings: Any) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bloomd-", dir=os.environ.get("TMPDIR", "/tmp")))
        self.port = free_port()
        self.socket = self.directory / "bloomd.sock"
        self.file = self.directory / "bloomd.yaml"
        self.log = self.directory / "log"
        self.environ = {**os.environ, **(environ or {})}
        self.settings: dict[str, Any] = {
            "database.url": database_url,
            "http.bind": [f"127.0.0.1:{self.port}"],
            "http.api_key": KEY,
            "control.socket": str(self.socket),
            "probes.interval": 0.5,
            **{name.replace("__", "."): value for name, value in settings.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self.port}"
        headers = {"X-Runtime-API-Key": KEY} if self.settings["http.api_key"] else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def configure(self, **settings: Any) -> None:
        """Change the file; a running daemon notices at its next reload."""
        self.settings |= {name.replace("__", "."): value for name, value in settings.items()}
        tree: dict[str, dict[str, Any]] = {}
        for key, value in self.settings.items():
            section, _, name = key.partition(".")
            if value is not None:
                tree.setdefault(section, {})[name] = value
        self.file.touch(0o600)
        self.file.write_text(json.dumps(tree, indent=2))  # JSON is YAML

    def start(self, *options: str, ready: bool = True) -> Self:
        self.configure()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "bloomd", "run", "-c", self.file, *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=self.environ, start_new_session=True,
            )  # fmt: skip
        if ready:
            eventually(self.is_ready)
        return self

    def run(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Another command of `bloomd` on the same configuration."""
        self.configure()
        return subprocess.run(
            [BIN / "bloomd", command, "-c", self.file, *arguments],
            capture_output=True, text=True, env=self.environ, check=False, timeout=60,
        )  # fmt: skip

    def migrate(self) -> str:
        done = self.run("migrate")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def is_ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.http.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def ctl(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [BIN / "bloomd-ctl", "-s", self.socket, *arguments], capture_output=True, text=True, timeout=60,
            check=False, **options,
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        return json.loads(self.ctl("-o", "json", "status").stdout)

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM; the exit code."""
        assert self.process
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.http.close()
        if self.process:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
