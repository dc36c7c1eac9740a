"""A PostgreSQL cluster in a directory of ours: who owns it, where its files and its socket are, how it is started.

Plain and synchronous; `embedded` makes a service of it. Everything is in one private directory (mode 0700), and only
who can enter that directory reaches the socket, so connections over it need no password:

    DIRECTORY/data            made by initdb, with checksums
    DIRECTORY/lock            locked by the process that starts the server, for as long as that lives
    DIRECTORY/postgres.log    what the server says
    DIRECTORY/.s.PGSQL.5432   its socket; in a private directory under /tmp when this path would be too long

PostgreSQL refuses to run as root. A root that starts it hands the directory to an unprivileged user. When that user
could not reach the directory (a parent with mode 0700, such as /root), the directory is made under /var/lib, and
DIRECTORY becomes a symbolic link to it; server binaries that it could not reach are copied there, too.
"""

import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from psycopg.conninfo import make_conninfo

from bloomd.errors import Misconfigured
from bloomd.postgres import binaries

SUPERUSER = "bloomd"
SOCKET_NAME = ".s.PGSQL.5432"
# sun_path has 108 bytes, and ends with a NUL.
LONGEST_SOCKET_PATH = 107
# Started by root: the user that a PostgreSQL package made for this, else the one that owns nothing.
UNPRIVILEGED = ("postgres", "nobody")
REACHABLE_BY_ALL = Path("/var/lib")

# The server that a killed predecessor left behind is on its way out: its fast shutdown writes a checkpoint.
PREDECESSOR_SECONDS = 10.0

PR_SET_PDEATHSIG = 1
# Loaded before any fork: in the forked child, loading a library may deadlock.
_libc = ctypes.CDLL(None)


class Cluster:
    """One cluster. `prepare` makes whatever is missing; then it can be spawned, again and again."""

    def __init__(self, directory: Path) -> None:
        self._asked_for = directory.absolute()
        self.directory = self._asked_for
        self._binaries = Path()
        self._sockets = self.directory
        self._user: pwd.struct_passwd | None = None
        self._lock: IO[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "postgres.log"

    def conninfo(self, dbname: str) -> str:
        return make_conninfo("", host=str(self._sockets), user=SUPERUSER, dbname=dbname)

    def prepare(self, *, durable: bool = True) -> None:
        """Make the directory and the cluster in it, unless they exist.

        Raises:
            Misconfigured: no binaries, the wrong version, another user's directory, or a server runs in it.
        """
        self._user = self._choose_user()
        self._make_directory()
        self._take_lock()
        made_by = self.data / "PG_VERSION"
        self._binaries = self._reachable(binaries.find(int(made_by.read_text()) if made_by.exists() else None))
        self._wait_for_predecessor()
        if not made_by.exists():
            self._initialise(durable)
        if len(os.fsencode(self._sockets / SOCKET_NAME)) > LONGEST_SOCKET_PATH:
            self._sockets = Path(tempfile.mkdtemp(prefix="bloomd-pg-", dir="/tmp"))
            self._hand_over(self._sockets)

    def spawn(self, settings: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start the server in the foreground. It ends with the *thread* that calls this, which must be the main one."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the server dies with the thread that started it: start it from the main thread")
        command = [self._binaries / "postgres", "-D", self.data, "-k", self._sockets, "-h", ""]
        for name, value in (settings or {}).items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            return subprocess.Popen[bytes](
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the daemon, which stops the server last
                preexec_fn=end_with_parent,
                **self._as_user(),
            )

    def clean_up(self) -> None:
        """Give up what a stopped server has no use for."""
        if self._lock:
            self._lock.close()
        if self._sockets != self.directory:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = self.directory

    def last_words(self) -> str:
        """The last complaint in the log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        complaints = [line for line in lines[-50:] if "FATAL" in line or "PANIC" in line]
        return (complaints or lines or ["its log is empty"])[-1].strip()

    def running_postmaster(self) -> int | None:
        """The process that serves this cluster, whoever started it.

        The process id in a left-over lock file may belong to anybody by now; a postmaster works in its data directory.
        """
        try:
            process = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            return process if Path(f"/proc/{process}/cwd").resolve(strict=True) == self.data.resolve() else None
        except (OSError, ValueError):
            return None

    def running_conninfo(self, dbname: str) -> str | None:
        """How to connect to the server that runs in this directory; None when none does."""
        if self.running_postmaster() is None:
            return None
        # The fifth line is the directory of its socket (PostgreSQL, src/include/utils/pidfile.h).
        sockets = (self.data / "postmaster.pid").read_text().splitlines()[4]
        return make_conninfo("", host=sockets, user=SUPERUSER, dbname=dbname)

    def _choose_user(self) -> pwd.struct_passwd | None:
        owner = _owner(self.data)
        if os.geteuid() != 0:
            if owner not in (None, os.geteuid()):
                raise Misconfigured(f"{self.data} belongs to another user ({_name(owner)}): run bloomd as that user")
            return None
        if owner:
            return pwd.getpwuid(owner)
        for name in UNPRIVILEGED:
            try:
                return pwd.getpwnam(name)
            except KeyError:
                continue
        raise Misconfigured(f"PostgreSQL does not run as root, and there is no user {' or '.join(UNPRIVILEGED)}")

    def _make_directory(self) -> None:
        wanted = self._asked_for
        try:
            wanted.parent.mkdir(parents=True, exist_ok=True)
            if wanted.is_symlink() and not wanted.exists():
                wanted.unlink()  # someone has removed what it pointed to
            if not wanted.exists() and self._obstacle(wanted):
                wanted.symlink_to(tempfile.mkdtemp(prefix="bloomd-dev-", dir=REACHABLE_BY_ALL))
            wanted.mkdir(mode=0o700, exist_ok=True)
            self.directory = self._sockets = wanted.resolve()
            if obstacle := self._obstacle(self.directory):
                raise Misconfigured(f"user {self._user and self._user.pw_name} cannot pass {obstacle}: chmod a+x it")
            self._hand_over(self.directory)
        except OSError as error:
            raise Misconfigured(f"{wanted} cannot be made: {error.strerror}") from error

    def _obstacle(self, path: Path) -> Path | None:
        """The first parent directory that keeps the server's user out."""
        return next((parent for parent in _parents(path) if not _passable(parent, self._user)), None)

    def _reachable(self, found: Path) -> Path:
        if not self._obstacle(found / "postgres"):
            return found
        # Only a virtual environment is in so private a place. Its wheel is SITE/package/pginstall*/bin, and the
        # libraries that those programs want are in SITE/package.libs.
        package = found.parent.parent
        copy = self.directory / "programs"
        shutil.rmtree(copy, ignore_errors=True)
        for part in (found.parent, package.with_name(f"{package.name}.libs")):
            if part.is_dir():
                shutil.copytree(part, copy / part.relative_to(package.parent), symlinks=True)
        return copy / found.relative_to(package.parent)

    def _take_lock(self) -> None:
        self._lock = (self.directory / "lock").open("ab")  # held, so open, until `clean_up`
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(
                f"another bloomd runs its PostgreSQL in {self.directory}: stop it, or give this one another directory"
            ) from None

    def _wait_for_predecessor(self) -> None:
        deadline = time.monotonic() + PREDECESSOR_SECONDS
        while process := self.running_postmaster():
            if time.monotonic() > deadline:
                raise Misconfigured(
                    f"a PostgreSQL server that no bloomd started (process {process}) runs in {self.directory}: stop it"
                )
            time.sleep(0.02)
        # Ours to remove: nobody serves this cluster, and PostgreSQL would mistake a stranger with that process id for
        # its server.
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _initialise(self, durable: bool) -> None:
        half = self.directory / "data.new"  # renamed when complete: a kill in between leaves no half cluster
        shutil.rmtree(half, ignore_errors=True)
        command = [self._binaries / "initdb", "-D", half, "-U", SUPERUSER, "--auth=trust"]
        command += ["--encoding=UTF8", "--locale=C", "--data-checksums"]
        made = subprocess.run(
            command if durable else [*command, "--no-sync"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=self.directory,
            env=_environment(),
            **self._as_user(),
        )
        if made.returncode:
            raise Misconfigured(f"initdb failed in {self.directory}: {made.stderr.strip()[-300:]}")
        half.rename(self.data)

    def _hand_over(self, directory: Path) -> None:
        directory.chmod(0o700)
        if self._user:
            os.chown(directory, self._user.pw_uid, self._user.pw_gid)

    def _as_user(self) -> dict[str, Any]:
        if not self._user:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """Ours, without what would change the server or its messages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def end_with_parent() -> None:
    """In the forked child: be told to shut down fast when the thread that forked us ends, however it does."""
    _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0)


def _parents(path: Path) -> Iterator[Path]:
    return (parent for parent in reversed(path.parents) if parent.exists())


def _passable(directory: Path, user: pwd.struct_passwd | None) -> bool:
    if user is None:
        return os.access(directory, os.X_OK)
    state = directory.stat()
    if state.st_uid == user.pw_uid:
        return bool(state.st_mode & 0o100)
    if state.st_gid == user.pw_gid:
        return bool(state.st_mode & 0o010)
    return bool(state.st_mode & 0o001)


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _name(user: int | None) -> str:
    try:
        return pwd.getpwuid(user or 0).pw_name
    except KeyError:
        return str(user)
