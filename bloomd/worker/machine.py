"""What a worker says of the machine that it runs on."""

import os
import platform
import socket
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import trio


def os_info() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def install_method(environ: Mapping[str, str] = os.environ) -> str:
    """Who runs this process: an init system says so in the environment of what it starts."""
    if "RC_SVCNAME" in environ:
        return "openrc"
    return "systemd" if "INVOCATION_ID" in environ else "foreground"


async def ip_addrs(server_url: str) -> list[str]:
    """The address that this machine has on its way to the server; none when there is no such way at present."""
    parts = urlsplit(server_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with suppress(OSError):
        [(family, _, _, _, address), *_] = await trio.socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_DGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect(address)  # sends nothing
            return [str(way.getsockname()[0])]
    return []
