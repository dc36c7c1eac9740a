"""Settings as they may be shown: to an operator, in an answer, in a log. No secret leaves by this door."""

import re
from collections.abc import Iterator
from typing import cast
from urllib.parse import quote

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

from bloomd.settings.keys import SECRETS, flatten
from bloomd.settings.model import Settings
from bloomd.settings.problems import Kind
from bloomd.settings.sources import Loaded

MASK = "****"

# A value as it is shown: as it is, or masked.
Shown = str | int | float | bool | tuple[str, ...] | None

# Passwords as they are written in a connection URL, where they may be percent-encoded in more than one way.
_WRITTEN = re.compile(r"^postgres(?:ql)?://[^:@/]*:([^@/]+)@|[?&](?:ssl)?password=([^&]+)")


class Setting(msgspec.Struct, frozen=True):
    """One key with its effective value and where that was told."""

    key: str
    value: Shown
    source: Kind
    where: str | None
    default: bool


def describe(loaded: Loaded) -> list[Setting]:
    """Every key there is, in the order of the model, secrets masked."""
    values = flatten(loaded.settings)
    return [
        Setting(name, shown(name, values[name]), source.kind, source.where, source.kind == "default")
        for name, source in loaded.sources.items()
    ]


def shown(key: str, value: object) -> Shown:
    """The value of a key as it may be shown."""
    if isinstance(value, str) and key == "database.url":
        return _masked_url(value)
    if isinstance(value, str) and key in SECRETS:
        return masked(value)
    return cast("Shown", value)


def masked(value: str) -> str:
    """Enough of a secret to recognise it: the first and last four characters, or none of a short one."""
    return f"{value[:4]}{MASK}{value[-4:]}" if len(value) > 11 else MASK


def secrets(settings: Settings) -> list[str]:
    """Every text that no log may hold, longest first, so that one inside another is not left over in part.

    A short one is as good as a long one here: who redacts a password of three letters garbles words, and should.
    """
    values = flatten(settings)
    texts = {value for key in SECRETS if key != "database.url" and isinstance(value := values[key], str)}
    texts |= set(_passwords(settings.database.url))
    return sorted(texts, key=lambda text: (-len(text), text))


def _passwords(url: str) -> Iterator[str]:
    for option in _options(url):
        if option.secret:
            yield option.value
            yield quote(option.value, safe="")
    for match in _WRITTEN.finditer(url):
        yield match[1] or match[2]


class _Option(msgspec.Struct, frozen=True):
    name: str
    value: str
    secret: bool


def _options(url: str) -> list[_Option]:
    # libpq itself says which of its options are passwords: they are to be displayed as asterisks.
    try:
        options = Conninfo.parse(url.encode())
    except (psycopg.Error, ValueError):
        return []
    return [
        _Option(option.keyword.decode(), option.val.decode(), option.dispchar == b"*")
        for option in options
        if option.val is not None
    ]


def _masked_url(url: str) -> str:
    """The connection URL or string, put together anew from its parts, so that nothing else can slip through."""
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


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host, safe="")
