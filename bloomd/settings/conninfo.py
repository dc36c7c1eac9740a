"""PostgreSQL's connection URLs and strings: why one is refused, what in it is secret, and how it may be shown.

libpq itself takes them apart, and says which of its options are passwords. Its complaints repeat parts of the text,
which may be parts of a password that lacks an escape; so they are recognised by how they begin, and put into words of
ours.
"""

import re
from collections.abc import Iterator
from urllib.parse import quote

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

from bloomd.settings.keys import did_you_mean

MASK = "****"

_UNCLEAR = (
    "PostgreSQL's library does not understand this; expected postgresql://user:password@host:5432/database"
    " or key=value pairs (in a URL, write @ as %40, / as %2F and % as %25 in the password)"
)
_PARAMETER = "PostgreSQL's library does not know one of the parameters in this"
_PORT = "expected a port number from 1 to 65535 in this"

# How libpq's complaints begin, and what they mean.
_REASONS = {
    'invalid connection option "': _PARAMETER,
    'invalid URI query parameter: "': _PARAMETER,
    "invalid percent-encoded token": (
        "a % in this is not followed by two hexadecimal digits (in a URL, % itself is written %25)"
    ),
    'missing key/value separator "=" in URI': "a parameter in this URL has no `=`",
    'extra key/value separator "=" in URI': "a parameter in this URL has more than one `=`",
    "unterminated quoted string": "a quote in this has no end",
    'end of string reached when looking for matching "]"': "an address in brackets in this URL has no end",
}

_KEYWORDS = [option.keyword.decode() for option in Conninfo.parse(b"")]

# Passwords as they are written in a connection URL, where they may be percent-encoded in more than one way.
_WRITTEN = re.compile(r"^postgres(?:ql)?://[^:@/]*:([^@/]+)@|[?&](?:ssl)?password=([^&]+)")


class _Option(msgspec.Struct, frozen=True):
    name: str
    value: str
    secret: bool


def conninfo_problem(url: str) -> str | None:
    """Why nobody can connect by this, in words that hold nothing of it; or None."""
    try:
        options = {option.name: option.value for option in _parse(url)}
    except psycopg.Error as error:
        return _reason(str(error))
    except ValueError:
        return _UNCLEAR
    # libpq would take a password with an unescaped @ or / apart and look for a host or database named like its rest.
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    if scheme in ("postgres", "postgresql") and (authority.count("@") > 1 or "@" in path.partition("?")[0]):
        return _UNCLEAR
    ports = options.get("port", "").split(",")
    return None if all(not port or _is_port(port) for port in ports) else _PORT


def passwords(url: str) -> Iterator[str]:
    """Every password in it, in each spelling in which it may turn up."""
    for option in _options(url):
        if option.secret:
            yield option.value
            yield quote(option.value, safe="")
    for match in _WRITTEN.finditer(url):
        yield match[1] or match[2]


def masked_conninfo(url: str) -> str:
    """It without its passwords, put together anew from its parts, so that nothing else can slip through."""
    options = _options(url)
    if not options:
        return MASK
    shown = {option.name: MASK if option.secret else option.value for option in options}
    if not re.match("postgres(ql)?://", url):
        return make_conninfo("", **shown)
    user, password = shown.pop("user", ""), shown.pop("password", None)
    hosts = shown.pop("host", "").split(",")
    ports = shown.pop("port", "").split(",")
    addresses = [
        _host(host) + (f":{port}" if port else "")
        for host, port in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=False)
    ]
    database = quote(shown.pop("dbname", ""), safe="")
    login = quote(user, safe="") + (f":{password}" if password else "") + ("@" if user or password else "")
    query = "&".join(f"{name}={value if value == MASK else quote(value, safe='')}" for name, value in shown.items())
    return f"postgresql://{login}{','.join(addresses)}" + (f"/{database}" if database else "") + (query and f"?{query}")


def _reason(complaint: str) -> str:
    for beginning, reason in _REASONS.items():
        if complaint.startswith(beginning):
            # The name itself may be a part of a password; a word that is like one of libpq's own tells enough.
            name = complaint.removeprefix(beginning).rstrip('"\n')
            return reason + (did_you_mean(name, _KEYWORDS) if reason == _PARAMETER else "")
    return _UNCLEAR


def _is_port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 1 <= int(text) <= 65535


def _options(url: str) -> list[_Option]:
    try:
        return _parse(url)
    except (psycopg.Error, ValueError):
        return []


def _parse(url: str) -> list[_Option]:
    return [
        _Option(option.keyword.decode(), option.val.decode(), option.dispchar == b"*")
        for option in Conninfo.parse(url.encode())
        if option.val is not None
    ]


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host, safe="")
