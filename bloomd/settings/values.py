"""What one value must be beyond its type: each function says why it is not, or None."""

import ipaddress
import re
from collections.abc import Callable, Mapping

from bloomd.settings.binds import Tcp, check_socket_path, parse_bind
from bloomd.settings.conninfo import conninfo_problem
from bloomd.settings.urls import http_url

Complaint = Callable[[str], str | None]


def key_problem(key: str) -> str | None:
    """Why this cannot be a key that is sent in a header, or None."""
    if key.isascii() and key.isprintable() and key == key.strip() and key:
        return None
    return "expected a key of printable ASCII characters, without a blank at its ends"


def url_problem(url: str) -> str | None:
    """Why this cannot be the URL of a server, or None."""
    return _complaint(http_url, url)


def bind_problem(text: str) -> str | None:
    """Why this cannot be listened on, or None."""
    return _complaint(parse_bind, text)


def _serve_problem(text: str) -> str | None:
    try:
        address = parse_bind(text)
    except ValueError as error:
        return str(error)
    if isinstance(address, Tcp) and address.port != 0:
        return None
    return "expected `host:port`, such as 127.0.0.1:8000: its clients are told a TCP port"


def endpoint_problem(text: str) -> str | None:
    """Why this cannot be `host` or `host:port`, or None."""
    if "://" in text:
        return "expected `host` or `host:port`, without a scheme: `minio.secure` says whether to use TLS"
    return None if _is_endpoint(text) else "expected `host` or `host:port`"


def _prefix_problem(text: str) -> str | None:
    if {"", ".", ".."} & set(text.split("/")[:-1]):
        return "expected no empty part, `.` or `..` between slashes, and no slash at the beginning"
    if re.fullmatch(r"[A-Za-z0-9!_.*'()/-]{,200}", text):
        return None
    return "expected letters, digits and !_.*'()/-, 200 of them at the most"


def _socket_path_problem(path: str) -> str | None:
    return _complaint(check_socket_path, path)


def _host_problem(text: str) -> str | None:
    if text == "*" or _is_address(text) or (_is_endpoint(text) and ":" not in text):
        return None
    return "expected a name without scheme and port, or `*`"


def _network_problem(text: str) -> str | None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        try:
            return f"`{text}` has bits beyond its length (did you mean `{ipaddress.ip_network(text, strict=False)}`?)"
        except ValueError:
            return "expected a network such as 10.0.0.0/8, or one address"
    return None


def _proxy_problem(text: str) -> str | None:
    return None if text == "unix:" else _network_problem(text)


def _time_of_day_problem(text: str) -> str | None:
    if re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", text):
        return None
    return 'expected a time of the day, from "00:00" to "23:59"'


def _directory_problem(path: str) -> str | None:
    if path.startswith("/") and path.isprintable():
        return None
    return "expected an absolute path"


def _worker_name_problem(name: str) -> str | None:
    if 1 <= len(name) <= 128 and "/" not in name and name.isprintable():
        return None
    return "expected a name of 1 to 128 characters, without a slash and without control characters"


def _complaint(parse: Callable[[str], object], text: str) -> str | None:
    try:
        parse(text)
    except ValueError as error:
        return str(error)
    return None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_endpoint(text: str) -> bool:
    try:
        address = parse_bind(text if ":" in text else f"{text}:9000")
    except ValueError:
        return False
    return isinstance(address, Tcp) and address.host is not None and address.port != 0


# What the value of a key must be, and each item where it is a list.
COMPLAINTS: Mapping[str, Complaint] = {
    "database.url": conninfo_problem,
    "http.bind": bind_problem,
    "http.api_key": key_problem,
    "http.allowed_hosts": _host_problem,
    "http.trusted_proxies": _proxy_problem,
    "http.metrics_allow": _network_problem,
    "http.public_url": url_problem,
    "control.socket": _socket_path_problem,
    "backup.schedule": _time_of_day_problem,
    "backup.directory": _directory_problem,
    "membridge.server_url": url_problem,
    "membridge.admin_key": key_problem,
    "membridge.agent_key": key_problem,
    "membridge.serve": _serve_problem,
    "membridge.serve_key": key_problem,
    "minio.endpoint": endpoint_problem,
    "minio.prefix": _prefix_problem,
    "workers.allowed_networks": _network_problem,
    "worker.server": url_problem,
    "worker.name": _worker_name_problem,
    "worker.token": key_problem,
}
