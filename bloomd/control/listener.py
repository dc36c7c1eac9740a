"""The control socket's file: of mode 0660, for the daemon's user and the group that may steer it."""

import grp
import os

import structlog

from bloomd import unixsocket
from bloomd.unixsocket import Listener, unbind

__all__ = ["Listener", "bind", "unbind"]

log = structlog.stdlib.get_logger(__name__)


def bind(path: str, group: str) -> Listener:
    """Listen at `path`, which becomes a socket of mode 0660 that belongs to `group`, if there is such a group.

    Raises:
        Misconfigured: another daemon listens there, or the path cannot be used; the text says why.
    """
    listener = unixsocket.bind(path, setting="control.socket", mode=0o660)
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        log.info("no such group: only root and bloomd's own user may use the control socket", group=group, path=path)
    except PermissionError:
        log.warning("bloomd's user is no member of the control group, so the socket is not the group's", group=group)
    return listener
