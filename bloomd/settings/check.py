"""What one key must hold beside another, and beyond what its type says: pure rules, one function each.

A rule names the keys that it looks at. It is skipped when one of them could not be read, so that one mistake is
reported once.
"""

import ipaddress
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import conninfo_to_dict

from bloomd.settings.binds import Tcp, check_socket_path, parse_bind
from bloomd.settings.keys import flatten
from bloomd.settings.model import Settings
from bloomd.settings.problems import DEFAULT, Problem, Source
from bloomd.settings.urls import http_url


@dataclass(frozen=True, slots=True)
class _Finding:
    keys: tuple[str, ...]
    """The keys that it is about. The first that somebody told is where it is reported."""
    text: str
    item: int | None = None


_Rule = Callable[[Settings], Iterator[_Finding]]
_rules: list[tuple[tuple[str, ...], _Rule]] = []


def check(settings: Settings, sources: Mapping[str, Source], *, unread: Collection[str] = ()) -> list[Problem]:
    """What is wrong with these settings; rules about a key in `unread` are left out."""
    return [
        _problem(finding, sources) for keys, rule in _rules if not set(keys) & set(unread) for finding in rule(settings)
    ]


def warnings(settings: Settings) -> list[str]:
    """What is allowed and still deserves to be said at every start."""
    if settings.http.api_key is not None:
        return []
    if any(_beyond_loopback(bind) for bind in settings.http.bind):
        return ["http.api_key is not set and http.allow_unauthenticated is: whoever reaches the port may do everything"]
    return ["http.api_key is not set: authentication is off, and every program on this machine may do everything"]


def key_problem(key: str) -> str | None:
    """Why this cannot be a key that is sent in a header, or None."""
    if key.isascii() and key.isprintable() and key == key.strip() and key:
        return None
    return "expected a key of printable ASCII characters, without a blank at its ends"


def url_problem(url: str) -> str | None:
    """Why this cannot be the URL of a server, or None."""
    return _complaint(http_url, url)


def _problem(finding: _Finding, sources: Mapping[str, Source]) -> Problem:
    told = [key for key in finding.keys if sources.get(key, DEFAULT).kind not in ("default", "preset")]
    key = (told or list(finding.keys))[0]
    source = sources.get(key, DEFAULT)
    return Problem(source if finding.item is None else source.item(finding.item), finding.text, key)


def _rule(*keys: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _rules.append((keys, rule))
        return rule

    return register


def _complaint(parse: Callable[[str], object], text: str) -> str | None:
    try:
        parse(text)
    except ValueError as error:
        return str(error)
    return None


def _beyond_loopback(bind: str) -> bool:
    address = parse_bind(bind)
    return isinstance(address, Tcp) and not address.loopback


@_rule("database.url")
def _database_url(settings: Settings) -> Iterator[_Finding]:
    if not _is_conninfo(settings.database.url):
        text = (
            "PostgreSQL's library does not understand this; expected postgresql://user:password@host:5432/database"
            " or key=value pairs (in a URL, write @ as %40, / as %2F and % as %25 in the password)"
        )
        yield _Finding(("database.url",), text)


@_rule("http.bind")
def _binds(settings: Settings) -> Iterator[_Finding]:
    seen: set[object] = set()
    for index, bind in enumerate(settings.http.bind):
        try:
            address = parse_bind(bind)
        except ValueError as error:
            yield _Finding(("http.bind",), str(error), index)
            continue
        if address in seen:
            yield _Finding(("http.bind",), f"`{bind}` is here twice", index)
        seen.add(address)


@_rule("http.bind", "http.api_key", "http.api_key_file", "http.allow_unauthenticated")
def _nobody_unauthenticated(settings: Settings) -> Iterator[_Finding]:
    http = settings.http
    if http.api_key is not None or http.allow_unauthenticated:
        return
    for index, bind in enumerate(http.bind):
        if _complaint(parse_bind, bind) is None and _beyond_loopback(bind):
            text = (
                f"`{bind}` can be reached from other machines, and no key is set: set `http.api_key`"
                " (or `http.api_key_file`), or say `http.allow_unauthenticated: true` if everybody may do everything"
            )
            yield _Finding(("http.bind",), text, index)


@_rule("http.api_key", "membridge.admin_key", "membridge.agent_key")
def _keys(settings: Settings) -> Iterator[_Finding]:
    values = flatten(settings)
    for name in ("http.api_key", "membridge.admin_key", "membridge.agent_key"):
        key = values[name]
        if isinstance(key, str) and (text := key_problem(key)):
            yield _Finding((name,), text)


@_rule("http.public_url", "membridge.server_url")
def _urls(settings: Settings) -> Iterator[_Finding]:
    for name, url in (
        ("http.public_url", settings.http.public_url),
        ("membridge.server_url", settings.membridge.server_url),
    ):
        if url is not None and (text := url_problem(url)):
            yield _Finding((name,), text)


@_rule("http.allowed_hosts")
def _allowed_hosts(settings: Settings) -> Iterator[_Finding]:
    for index, host in enumerate(settings.http.allowed_hosts):
        if host != "*" and not _is_host(host):
            yield _Finding(("http.allowed_hosts",), "expected a name without scheme and port, or `*`", index)


@_rule("http.trusted_proxies", "http.metrics_allow", "workers.allowed_networks")
def _networks(settings: Settings) -> Iterator[_Finding]:
    for name, networks in (
        ("http.trusted_proxies", [None if text == "unix:" else text for text in settings.http.trusted_proxies]),
        ("http.metrics_allow", settings.http.metrics_allow),
        ("workers.allowed_networks", settings.workers.allowed_networks),
    ):
        for index, network in enumerate(networks):
            if network is not None and (text := _network_problem(network)):
                yield _Finding((name,), text, index)


@_rule("minio.endpoint", "minio.access_key", "minio.secret_key", "minio.secret_key_file")
def _minio(settings: Settings) -> Iterator[_Finding]:
    minio = settings.minio
    if minio.endpoint is None:
        return
    if "://" in minio.endpoint:
        text = "expected `host` or `host:port`, without a scheme: `minio.secure` says whether to use TLS"
        yield _Finding(("minio.endpoint",), text)
    elif not _is_endpoint(minio.endpoint):
        yield _Finding(("minio.endpoint",), "expected `host` or `host:port`")
    missing = [f"`minio.{name}`" for name in ("access_key", "secret_key") if not getattr(minio, name)]
    if missing:
        yield _Finding(("minio.endpoint",), f"an endpoint needs {' and '.join(missing)} as well")


@_rule("tasks.retry_delay", "tasks.retry_delay_max")
def _retry_delay(settings: Settings) -> Iterator[_Finding]:
    tasks = settings.tasks
    if tasks.retry_delay > tasks.retry_delay_max:
        text = f"a first delay of {tasks.retry_delay:g} s exceeds the longest one, {tasks.retry_delay_max:g} s"
        yield _Finding(("tasks.retry_delay", "tasks.retry_delay_max"), text)


@_rule("control.socket")
def _control_socket(settings: Settings) -> Iterator[_Finding]:
    if text := _complaint(check_socket_path, settings.control.socket):
        yield _Finding(("control.socket",), text)


def _is_conninfo(url: str) -> bool:
    try:
        options = conninfo_to_dict(url)
    except (psycopg.Error, ValueError):  # their text repeats parts of the URL, and with them maybe the password
        return False
    # libpq would take a password with an unescaped @ or / apart and look for a host or database named like its rest.
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    misread = scheme in ("postgres", "postgresql") and (authority.count("@") > 1 or "@" in path.partition("?")[0])
    ports = str(options.get("port") or "").split(",")
    return not misread and all(not port or (port.isascii() and port.isdecimal()) for port in ports)


def _network_problem(text: str) -> str | None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        try:
            return f"`{text}` has bits beyond its length (did you mean `{ipaddress.ip_network(text, strict=False)}`?)"
        except ValueError:
            return "expected a network such as 10.0.0.0/8, or one address"
    return None


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _is_endpoint(text) and ":" not in text
    return True


def _is_endpoint(text: str) -> bool:
    """Whether this is `host` or `host:port`."""
    try:
        address = parse_bind(text if ":" in text else f"{text}:9000")
    except ValueError:
        return False
    return isinstance(address, Tcp) and address.host is not None and address.port != 0
