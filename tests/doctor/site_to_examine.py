"""A node that is well: PostgreSQL, an S3 server, a Membridge, bloomd, and nginx with TLS before it. All of them real.

Tests examine it by the settings that it has, but for what they change; or change what it is made of, and back.
"""

import grp
import json
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
import trustme
from bloomd_process import Bloomd
from nginx_process import Nginx
from s3_server import ACCESS, SECRET, s3_server
from servers import PostgresServer, free_port

from bloomd import doctor
from bloomd.doctor import Finding
from bloomd.doctor.case import Case
from bloomd.exchange import trust
from bloomd.settings import SECRETS, Loaded, load

KEY = "an-api-key-of-the-tests-0123456789"
MEMBRIDGE_KEY = "a-membridge-key-of-the-tests-0123"

OWN_GROUP = grp.getgrgid(os.getegid()).gr_name
OTHER_GROUP = next(group.gr_name for group in grp.getgrall() if group.gr_gid != os.getegid())

# Other ways in which an nginx may stand before bloomd, each on a port of its own.
SERVERS = """
server {{ listen 127.0.0.1:{tls} ssl; ssl_certificate good.pem; ssl_certificate_key good.pem;
          location / {{ proxy_pass http://bloomd; proxy_set_header X-Forwarded-For $remote_addr; }} }}
server {{ listen 127.0.0.1:{ending} ssl; ssl_certificate ending.pem; ssl_certificate_key ending.pem;
          location / {{ proxy_pass http://bloomd; proxy_set_header X-Forwarded-For $remote_addr; }} }}
server {{ listen 127.0.0.1:{over} ssl; ssl_certificate over.pem; ssl_certificate_key over.pem;
          location / {{ proxy_pass http://bloomd; proxy_set_header X-Forwarded-For $remote_addr; }} }}
server {{ listen 127.0.0.1:{credulous};
          location / {{ proxy_pass http://bloomd; }} }}
server {{ listen 127.0.0.1:{appending};
          location / {{ proxy_pass http://bloomd; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}
server {{ listen 127.0.0.1:{silent};
          location / {{ proxy_pass http://bloomd; proxy_set_header X-Forwarded-For ""; }} }}
server {{ listen 127.0.0.1:{cut_off};
          location / {{ proxy_pass http://unix:/nowhere/bloomd.sock; }} }}
server {{ listen 127.0.0.1:{another};
          location / {{ return 404; }} }}
server {{ listen 127.0.0.1:{elsewhere};
          location / {{ proxy_pass http://bloomd; proxy_set_header X-Forwarded-For $remote_addr; }} }}
server {{ listen 127.0.0.9:{elsewhere};
          location / {{ return 404; }} }}
"""


class Site:
    """The node. `bloomd`, `nginx` and the database may be reached for."""

    def __init__(self, server: PostgresServer, rclone: str, directory: Path) -> None:
        self.directory = directory
        self.database = server.create_database()
        self.server = server
        self.ports = {name: free_port() for name in _names(SERVERS)}
        self._rclone = rclone
        self._authority = trustme.CA()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            s3 = stack.enter_context(s3_server(self._rclone, self._subdirectory("s3")))
            self.bloomd = Bloomd(self.database)
            self.bloomd.directory.chmod(0o755)
            http = self.bloomd.directory / "http.sock"
            env_file = self.bloomd.directory / "runtime.env"
            env_file.write_text("NODE_ENV=production\n")
            env_file.chmod(0o640)
            self.membridge = f"http://127.0.0.1:{free_port()}"
            self.bloomd.settings |= {
                "http.api_key": KEY,
                "http.bind": [f"127.0.0.1:{self.bloomd.port}", f"unix:{http}"],
                "http.public_url": self.url("tls"),
                "control.group": OWN_GROUP,
                "membridge.serve": self.membridge.removeprefix("http://"),
                "membridge.admin_key": MEMBRIDGE_KEY,
                "membridge.agent_key": MEMBRIDGE_KEY,
                "minio.endpoint": s3.endpoint,
                "minio.bucket": "artifacts",
                "minio.access_key": ACCESS,
                "minio.secret_key": SECRET,
                "workers.offline_after": 86400,
                "workers.poll_interval": 86400,
            }
            self.bloomd.http.headers["X-Runtime-API-Key"] = KEY
            self.bloomd.configure()
            self._tree = json.loads(self.bloomd.file.read_text()) | {"env_file": str(env_file)}
            self.bloomd.migrate()
            self._nginx(http, stack)
            _allow_open_files()
            stack.enter_context(self.bloomd)
            self.restore()
            assert self.bloomd.http.post("/api/runtime/workers", json={"name": "w1"}).status_code == 201
            assert self.bloomd.ctl("reload").returncode == 0
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def be_trusted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process trust the certificates."""
        file = self.directory / "ca.pem"
        self._authority.cert_pem.write_to_path(str(file))
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        trust.cache_clear()

    def url(self, name: str, host: str = "localhost") -> str:
        """One of the servers of nginx; `cautious` is the one of nginx/bloomd.conf."""
        scheme = "https" if name in ("tls", "ending", "over") else "http"
        return f"{scheme}://{host}:{self.ports[name]}"

    def file(self, text: str | None = None, **settings: Any) -> Path:
        """A settings file as the daemon's, but for some settings; None takes one away."""
        path = self.bloomd.directory / "examined.yaml"
        tree = json.loads(json.dumps(self._tree))
        for name, value in settings.items():
            section, _, key = name.partition("__")
            if value is None:
                del (tree[section] if key else tree)[key or name]
            elif key:
                tree.setdefault(section, {})[key] = value
            else:
                tree[name] = value
        path.write_text(json.dumps(tree, indent=2) if text is None else text)
        path.chmod(0o640)
        return path

    def read(self) -> Loaded:
        """The settings, as they are."""
        return load(self.file(), environ={})

    def restore(self) -> None:
        """The daemon's own file."""
        self.bloomd.file.write_text(self.file().read_text())
        self.bloomd.file.chmod(0o640)

    async def examine(self, file: Path | None = None) -> dict[str, Finding]:
        """What the doctor finds, by check."""
        file = file or self.file()
        findings = await doctor.run(partial(load, file, environ={}), config=file, option=f" -c {file}")
        text = repr(findings)
        for secret in _secrets_in(file):
            assert secret not in text
        return {finding.check: finding for finding in findings}

    async def complaints(self, file: Path | None = None) -> dict[str, str]:
        """Every check that complains, with its state."""
        return complaints(await self.examine(file))

    def sql(self, statement: str, *parameters: Any) -> list[Any]:
        with psycopg.connect(self.database, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def changed(self, statement: str, back: str) -> Iterator[None]:
        """What is in the database is another for as long as the block lasts."""
        self.sql(statement)
        try:
            yield
        finally:
            self.sql(back)

    @contextmanager
    def stopped(self, service: str) -> Iterator[None]:
        """A service of the daemon is stopped for as long as the block lasts."""
        assert self.bloomd.ctl("stop", service).returncode == 0
        try:
            yield
        finally:
            assert self.bloomd.ctl("start", service).returncode == 0

    def _nginx(self, http: Path, stack: ExitStack) -> None:
        directory = self._subdirectory("nginx")
        nginx = Nginx(directory, http)
        self.ports["cautious"] = nginx.port
        now = datetime.now(UTC)
        for name, ends in (("good", 90), ("ending", 9), ("over", -1)):
            made = self._authority.issue_cert(
                "localhost", not_before=now - timedelta(days=99), not_after=now + timedelta(days=ends)
            )
            made.private_key_and_cert_chain_pem.write_to_path(str(directory / f"{name}.pem"))
        with (directory / "bloomd.conf").open("a") as configuration:
            configuration.write(SERVERS.format(**self.ports))
        stack.enter_context(nginx)

    def _subdirectory(self, name: str) -> Path:
        made = self.directory / name
        made.mkdir()
        return made


def tell(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """Let the daemon answer what it does, but for this."""
    really = Case.ask_daemon

    async def ask_daemon(case: Case) -> Any:
        told: Any = deepcopy(await really(case))
        for key, value in changes.items():
            told[key] = told[key] | value if key == "process" else value
        return told

    monkeypatch.setattr(Case, "ask_daemon", ask_daemon)


def _allow_open_files() -> None:
    """As many as the init scripts allow: a machine's own limit may be lower, and a daemon has that of its parent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16384 if hard == resource.RLIM_INFINITY else min(16384, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def complaints(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.state for name, finding in findings.items() if finding.state in ("warning", "error")}


def _names(text: str) -> list[str]:
    return [part.partition("}")[0].partition(" ")[0] for part in text.split("127.0.0.1:{")[1:]]


def _secrets_in(file: Path) -> Iterator[str]:
    try:
        tree = json.loads(file.read_text())
    except ValueError:
        return
    for key in SECRETS:
        section, _, name = key.partition(".")
        if key != "database.url" and (secret := tree.get(section, {}).get(name)):
            yield secret
