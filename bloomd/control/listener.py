"""The socket file: made so that two daemons never share it, removed only by the one that made it.

What lies at the path when a daemon starts is one of four things: nothing; the socket of a running daemon; a stale
socket that a killed daemon left behind; or somebody's file. Connecting tells the second from the third. Looking,
removing and making happen under a lock on the directory, so of two daemons that start at once one wins and the other
sees it.
"""

import fcntl
import grp
import os
import socket
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog

from bloomd.control.peer import peer_of
from bloomd.errors import Misconfigured

log = structlog.stdlib.get_logger(__name__)

# What only the daemon's user and the control group may open: 0660.
_UMASK = 0o117

# Clients that connect while the service is being restarted wait here. Linux caps it at net.core.somaxconn.
_BACKLOG = 512


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening control socket and the identity of its file."""

    socket: socket.socket
    path: str
    file: tuple[int, int]
    """Device and inode."""


def bind(path: str, group: str) -> Listener:
    """Listen at `path`, which becomes a socket of mode 0660 that belongs to `group`, if there is such a group.

    Raises:
        Misconfigured: another daemon listens there, or the path cannot be used; the text says why.
    """
    with _explained(path), _locked(os.path.dirname(path) or "."):
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            umask = os.umask(_UMASK)
            try:
                listening.bind(path)
            finally:
                os.umask(umask)
            _give_to_group(path, group)
            listening.listen(_BACKLOG)
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


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Misconfigured(f"control.socket: {path} exists and is not a socket; move it away or choose another path")
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
        raise Misconfigured(f"another bloomd (pid {peer_of(probe).pid}) is running on {path}")


def _give_to_group(path: str, group: str) -> None:
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        log.info("no such group: only root and bloomd's own user may use the control socket", group=group, path=path)
    except PermissionError:
        log.warning("bloomd's user is no member of the control group, so the socket is not the group's", group=group)


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
def _explained(path: str) -> Generator[None]:
    """Translate what the file system says into what to do about it."""
    directory = os.path.dirname(path) or "."
    try:
        yield
    except FileNotFoundError as error:
        raise Misconfigured(f"control.socket: the directory {directory} does not exist; create it") from error
    except PermissionError as error:
        raise Misconfigured(f"control.socket: bloomd's user may not create {path}") from error
    except OSError as error:
        if "too long" in str(error):
            raise Misconfigured(f"control.socket: {path} is too long: a socket's path has at most 107 bytes") from error
        raise Misconfigured(f"control.socket: cannot listen on {path}: {error.strerror or error}") from error
