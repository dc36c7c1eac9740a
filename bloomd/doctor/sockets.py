"""The Unix sockets: whether they can be made, by nobody else, and belong to those who are to use them."""

import grp
import shlex
import stat
from pathlib import Path

from bloomd.doctor.case import Case
from bloomd.doctor.finding import Found, error, ok, warning
from bloomd.settings import Unix, parse_bind


def directory(case: Case) -> Found:
    """The daemon can make its sockets, and nobody else can put his own in their place."""
    places = list(dict.fromkeys(path.parent for path in _sockets(case)))
    user = case.user
    for place in places:
        name = shlex.quote(str(place))
        if not place.is_dir():
            made = f"install -d -o {user.name} -g {user.group} -m 0711 {name}"
            return error(f"there is no directory {place} for the socket", made)
        mode = place.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return error(f"everybody on this machine may put another socket into {place}", f"chmod o-w {name}")
        if not user.may_write(place):
            return error(f"the user {user.name} may not make a socket in {place}", f"chown {user.name} {name}")
    return ok(f"{' and '.join(map(str, places))} can hold the sockets")


def group(case: Case) -> Found:
    """The sockets belong to the groups that are to use them."""
    settings = case.settings
    groups = {Path(settings.control.socket): ("control.group", settings.control.group)}
    if settings.http.socket_group:
        groups |= dict.fromkeys(_http_sockets(case), ("http.socket_group", settings.http.socket_group))
    for path, (key, name) in groups.items():
        try:
            owner = grp.getgrnam(name)
        except KeyError:
            if case.loaded.value.sources[key].kind == "default":
                continue  # it need not exist
            return warning(f"there is no group {name} ({key})", f"groupadd --system {name}, then restart bloomd")
        if path.is_socket() and path.stat().st_gid != owner.gr_gid:
            return warning(
                f"{path} does not belong to the group {name} ({key})",
                f"usermod -a -G {name} {case.user.name}, then restart bloomd",
            )
    return ok("whoever belongs to the groups of the sockets may use them")


def _sockets(case: Case) -> list[Path]:
    return [Path(case.settings.control.socket), *_http_sockets(case)]


def _http_sockets(case: Case) -> list[Path]:
    addresses = map(parse_bind, case.settings.http.bind)
    return [Path(address.path) for address in addresses if isinstance(address, Unix)]
