"""Unix sockets to listen on: made so that two daemons never share one, removed only by the one that made it.

What lies at the path when a daemon starts is one of four things: nothing; the socket of a running daemon; a stale
socket that a killed daemon left behind; or somebody's file. Connecting tells the second from the third. Looking,
removing and making happen under a lock on the directory, so of two daemons that start at once one wins and the other
sees it.
"""

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog

from bloomd.errors import Misconfigured

log = structlog.stdlib.get_logger(__name__)

# Clients that connect while the service is being restarted wait here. Linux caps it at net.core.somaxconn.
BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and the identity of its file."""

    socket: socket.socket
    path: str
    file: tuple[int, int]
    """Device and inode."""


def bind(path: str, *, setting: str, mode: int) -> Listener:
    """Listen at `path`, which becomes a socket of this mode. Errors begin with the name of the setting.

    Raises:
        Misconfigured: another daemon listens there, or the path cannot be used; the text says why.
    """
    with _explained(path, setting), _locked(os.path.dirname(path) or "."):
        _remove_stale(path, setting)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            umask = os.umask(0o777 & ~mode)
            try:
                listening.bind(path)
            finally:
                os.umask(umask)
            listening.listen(BACKLOG)
            return Listener(listening, path, _file_at(path))
        except BaseException:
            listening.close()
            raise


def unbind(listener: Listener) -> None:
    """Close the socket, and remove its file unless another has taken its place."""
    listener.socket.close()
    with suppress(OSError), _locked(os.path.dirname(listener.path) or "."):
        if _file_at(listener.path) == listener.file:
            os.unlink(listener.path)


def _remove_stale(path: str, setting: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Misconfigured(f"{setting}: {path} exists and is not a socket; move it away or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            log.info("removing the stale socket of a daemon that was killed", path=path)
            os.unlink(path)
            return
        except BlockingIOError:
            raise Misconfigured(f"another bloomd, too busy to answer, is running on {path}") from None
        raise Misconfigured(
            f"another bloomd (pid {_process_behind(probe)}) is running on {path}; stop it, or choose another {setting}"
        )


def _process_behind(connected: socket.socket) -> int:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[0]


def _file_at(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


@contextmanager
def _locked(directory: str) -> Generator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # released by closing
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: str, setting: str) -> Generator[None]:
    """Translate what the file system says into what to do about it."""
    directory = os.path.dirname(path) or "."
    try:
        yield
    except FileNotFoundError as error:
        raise Misconfigured(f"{setting}: the directory {directory} does not exist; create it") from error
    except PermissionError as error:
        raise Misconfigured(f"{setting}: bloomd's user may not create {path}") from error
    except OSError as error:
        if "too long" in str(error):
            raise Misconfigured(f"{setting}: {path} is too long: a socket's path has at most 107 bytes") from error
        raise Misconfigured(f"{setting}: cannot listen on {path}: {error.strerror or error}") from error
