"""Addresses to listen on, as `http.bind` writes them."""

import ipaddress
import os
import re
from dataclasses import dataclass

# sun_path has 108 bytes on Linux, the last of them a NUL.
LONGEST_SOCKET_PATH = 107

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Tcp:
    """A TCP port of one address, or of all interfaces."""

    host: str | None
    port: int

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine can reach it. A name counts as such only if it is `localhost`."""
        if self.host is None or self.host.lower() == "localhost":
            return self.host is not None
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def overlaps(self, other: "Tcp") -> bool:
        """Whether the system would refuse one of the two because the other is taken."""
        return self.port == other.port != 0 and (self._covers(other) or other._covers(self))

    def _covers(self, other: "Tcp") -> bool:
        every = "::" if ":" in other._address else "0.0.0.0"  # a name is looked up as IPv4
        return self.host is None or self._address in (other._address, every)

    @property
    def _address(self) -> str:
        return "127.0.0.1" if (self.host or "").lower() == "localhost" else self.host or ""


@dataclass(frozen=True, slots=True)
class Unix:
    """A Unix socket."""

    path: str


def parse_bind(text: str) -> Tcp | Unix:
    """The address that `host:port`, `[ipv6]:port`, `:port` or `unix:/path` means; port 0 is any free one.

    Raises ValueError with a sentence.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        check_socket_path(path)
        return Unix(path)
    host, colon, digits = text.rpartition(":")
    if not colon:
        hint = f" (did you mean `:{text}`?)" if text.isdecimal() else ""
        raise ValueError(f"expected `host:port`, `[ipv6]:port`, `:port` or `unix:/path`{hint}")
    if not re.fullmatch(r"[0-9]{1,5}", digits) or int(digits) > 65535:
        raise ValueError("expected a port number from 0 to 65535 behind the last colon")
    return Tcp(_host(host), int(digits))


def check_socket_path(path: str) -> None:
    """Raises ValueError with a sentence for what cannot be a Unix socket's path."""
    if not path.startswith("/"):
        raise ValueError("expected an absolute path, one that begins with `/`")
    if (length := len(os.fsencode(path))) > LONGEST_SOCKET_PATH:
        raise ValueError(f"a socket's path has at most {LONGEST_SOCKET_PATH} bytes, and this one has {length}")


def _host(host: str) -> str | None:
    if not host:
        return None
    if host == "*":
        raise ValueError("expected an address before the port; `:port` means all interfaces")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError("expected an IPv6 address between the brackets") from None
    if ":" in host:
        raise ValueError("expected an IPv6 address in brackets, as in `[::1]:5000`")
    if not _NAME.fullmatch(host):
        raise ValueError("expected the name or address of a host before the port")
    return host
