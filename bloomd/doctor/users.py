"""Whom the daemon runs as, and what this user may do with a file."""

import grp
import os
import pwd
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# The user that openrc/ and systemd/ have the daemon run as.
NAME = "bloomd"


@dataclass(frozen=True, slots=True)
class User:
    """A user of this machine."""

    name: str
    uid: int
    groups: Sequence[int]
    """The user's own first."""

    @property
    def group(self) -> str:
        """The user's own, which need not have the user's name."""
        if not self.groups:
            return self.name
        try:
            return grp.getgrgid(self.groups[0]).gr_name
        except KeyError:
            return str(self.groups[0])

    def may_read(self, path: Path) -> bool:
        return self._may(path, stat.S_IRUSR, stat.S_IRGRP, stat.S_IROTH)

    def may_write(self, path: Path) -> bool:
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
        return not read_only and self._may(path, stat.S_IWUSR, stat.S_IWGRP, stat.S_IWOTH)

    def _may(self, path: Path, owner: int, group: int, others: int) -> bool:
        status = path.stat()
        whose = owner if status.st_uid == self.uid else group if status.st_gid in self.groups else others
        return self.uid == 0 or bool(status.st_mode & whose)


def daemon_user(control_socket: str) -> User:
    """Whoever made the control socket; without one, the user that the init systems give the daemon, else we."""
    uid = os.geteuid()
    with suppress(KeyError):
        uid = pwd.getpwnam(NAME).pw_uid
    with suppress(OSError):
        uid = os.stat(control_socket).st_uid
    try:
        found = pwd.getpwuid(uid)
    except KeyError:  # in a container users need no names
        return User(str(uid), uid, ())
    return User(found.pw_name, uid, os.getgrouplist(found.pw_name, found.pw_gid))
