"""Where this daemon serves a control plane, with which key, and whether its own client talks to it.

The key is `membridge.serve_key`; else the admin key of files and environment, which then is the key of this one; else
one that nobody else knows. What is saved through the API is about the server that the client talks to, and never
changes it. As long as nobody names another server, the client talks to the one that is served.
"""

import secrets
from collections.abc import Callable

import msgspec

from bloomd.settings import Loaded, Tcp, origin, parse_bind
from bloomd.settings.model import Membridge


class Served:
    """The control plane of this daemon, as the settings in force have it."""

    def __init__(self, loaded: Callable[[], Loaded]) -> None:
        self._loaded = loaded
        self.generated = secrets.token_urlsafe(32)
        """Where no key is set."""

    @property
    def binds(self) -> tuple[str, ...]:
        """Where it is served: one address, or none."""
        return binds(self._loaded().settings.membridge)

    @property
    def key(self) -> str:
        """What its clients have to send."""
        loaded = self._loaded()
        return loaded.settings.membridge.serve_key or loaded.own_admin_key or self.generated

    def for_client(self) -> Membridge:
        """The settings by which the client goes: those in force, or the server that is served when none is named."""
        settings = self._loaded().settings.membridge
        if settings.serve is None:
            return settings
        url = url_of(settings.serve)
        if settings.server_url is None:
            return msgspec.structs.replace(settings, server_url=url, admin_key=self.key)
        if settings.admin_key is None and origin(settings.server_url) == origin(url):
            return msgspec.structs.replace(settings, admin_key=self.key)
        return settings


def binds(settings: Membridge) -> tuple[str, ...]:
    return () if settings.serve is None else (settings.serve,)


def url_of(serve: str) -> str:
    """The URL by which this machine reaches what is served there."""
    address = parse_bind(serve)
    if not isinstance(address, Tcp):
        raise AssertionError("membridge.serve is checked when it is read")
    host = {None: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    return f"http://[{host}]:{address.port}" if ":" in str(host) else f"http://{host}:{address.port}"
