"""Who is at the other end of a Unix socket, by the word of the kernel, and what that allows.

The kernel notes the client's credentials when it connects; they cannot be forged, and a later change of them does not
count. Users and groups are compared by number; names are looked up for people only.
"""

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import Protocol

# <asm-generic/socket.h>; the socket module knows the first on Linux only, and the second not at all.
SO_PEERCRED = 17
SO_PEERGROUPS = 59

_CREDENTIALS = struct.Struct("iII")  # pid_t, uid_t, gid_t
_GROUP = struct.Struct("I")  # gid_t

# The most that Python's getsockopt takes: 256 groups. The kernel says ERANGE for somebody with more.
_BUFFER = 1024


class HasSocketOptions(Protocol):
    """A socket of the standard library or of trio."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as it was when it connected."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]
    """Supplementary groups."""

    @property
    def user(self) -> str:
        """The user's name, or `uid 1234` for one without."""
        return _name_of(self.uid) or f"uid {self.uid}"


def may_command(peer: Peer, group: str, own_uid: int) -> bool:
    """Whether this peer may do everything: root, the daemon's own user, and the members of `group`."""
    if peer.uid in (0, own_uid):
        return True
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return False
    return gid == peer.gid or gid in peer.groups


def peer_of(connection: HasSocketOptions) -> Peer:
    """The peer of a connected Unix socket."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _BUFFER)
    except OSError:  # ENOPROTOOPT before Linux 4.13, ERANGE with more groups than fit
        return Peer(pid, uid, gid, _groups_by_name(uid, gid))
    return Peer(pid, uid, gid, frozenset(group for (group,) in _GROUP.iter_unpack(groups)))


def _groups_by_name(uid: int, gid: int) -> frozenset[int]:
    """The groups that the user would have after logging in, by the group database."""
    name = _name_of(uid)
    return frozenset(os.getgrouplist(name, gid)) if name else frozenset()


def _name_of(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
