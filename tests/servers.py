"""Real servers for tests: plain, synchronous, usable from any fixture."""

import atexit
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bloomd.postgres.cluster import Cluster

DEADLINE_SECONDS = 30.0
# What a test gains by a database that need not survive a crash of the machine. What the server has committed does
# survive its own crash: without `synchronous_commit` it would not.
FAST = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}


def eventually(condition: Callable[[], object], *, seconds: float = DEADLINE_SECONDS) -> None:
    """Poll until the condition holds (or does not raise psycopg.Error); for synchronous code."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except psycopg.Error:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is not only waiting to be reaped."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Databases are made and dropped by the hundred, hundreds of files each: ten times faster in memory, if there is room.
MEMORY, ENOUGH_BYTES = Path("/dev/shm"), 4 << 30


def _directory(prefix: str) -> Path:
    """A directory that the server's unprivileged user can reach, unlike pytest's tmp_path."""
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH_BYTES
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if roomy else "/tmp"))
    made.chmod(0o755)
    return made


@functools.cache
def _template() -> Path:
    """The files of a fresh cluster: copied in a fraction of the time that initdb takes."""
    parent = _directory("pgtest-template-")
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    cluster = Cluster(parent / "c")
    cluster.prepare(durable=False)
    cluster.clean_up()
    return cluster.data


def make_cluster(directory: Path) -> None:
    """A fresh cluster in this directory, as `Cluster.prepare` would make it."""
    directory.mkdir(mode=0o700)
    subprocess.run(["cp", "-a", _template(), directory / "data"], check=True)


class PostgresServer:
    """A PostgreSQL server that can be stopped, killed, frozen and started again.

    Listens on a Unix socket, and on 127.0.0.1 when `port` is given. Made by the code that `bloomd dev` uses.
    """

    def __init__(self, *, settings: dict[str, str] | None = None, port: int | None = None) -> None:
        self._parent = _directory("pgtest-")
        make_cluster(self._parent / "c")
        self.cluster = Cluster(self._parent / "c")
        self.port = port
        self._settings = FAST | (settings or {})
        if port:
            self._settings |= {"listen_addresses": "127.0.0.1", "port": str(port)}
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._parent, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def data(self) -> Path:
        return self.cluster.data

    def conninfo(self, dbname: str = "postgres") -> str:
        """Over the Unix socket, as the superuser, without a password."""
        port = {"port": str(self.port)} if self.port else {}
        return make_conninfo(self.cluster.conninfo(dbname), **port)

    def tcp_conninfo(self, dbname: str = "postgres", **params: str) -> str:
        assert self.port
        return make_conninfo("", host="127.0.0.1", port=self.port, user="bloomd", dbname=dbname, **params)

    def start(self) -> None:
        self.cluster.prepare(durable=False)
        self._process = self.cluster.spawn(self._settings)
        eventually(self._answers)

    def stop(self) -> None:
        self._end(signal.SIGINT)
        self.cluster.clean_up()

    def kill(self) -> None:
        """As a crash does: the postmaster is gone at once, its sessions follow; returns when they have."""
        self._end(signal.SIGKILL)
        self.cluster.clean_up()

    def restart(self) -> None:
        self.stop()
        self.start()

    def reload(self) -> None:
        """Read pg_hba.conf and postgresql.conf again."""
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")

    def sigstop(self) -> None:
        """Freeze the server and all its sessions."""
        for process in self._processes():
            _signal(process, signal.SIGSTOP)

    def sigcont(self) -> None:
        if not self.is_running:
            return
        for process in self._processes():
            _signal(process, signal.SIGCONT)

    def execute(self, statement: str, dbname: str = "postgres") -> None:
        with psycopg.connect(self.conninfo(dbname), autocommit=True) as connection:
            connection.execute(statement.encode())

    def create_database(self, template: str | None = None) -> str:
        """A fresh database, empty or a copy of the one with this connection string; its connection string."""
        name = f"test{next(self._numbers)}"
        original = str(conninfo_to_dict(template)["dbname"]) if template else "template1"
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(original)))
        return self.conninfo(name)

    @contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """A fresh database for as long as a block lasts, empty or a copy of that one; its connection string."""
        conninfo = self.create_database(template)
        yield conninfo
        self.drop_database(conninfo)

    def drop_database(self, conninfo: str) -> None:
        name = str(conninfo_to_dict(conninfo)["dbname"])
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self.cluster.last_words()
        psycopg.connect(self.conninfo()).close()
        return True

    def _end(self, how: signal.Signals) -> None:
        if self._process and self.is_running:
            self.sigcont()
            sessions = self._processes()[1:]
            self._process.send_signal(how)
            self._process.wait(DEADLINE_SECONDS)
            eventually(lambda: not any(map(is_running, sessions)))

    def _processes(self) -> list[int]:
        # The postmaster first: frozen, it starts no new session.
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # a session that ended meanwhile
        os.kill(process, number)
