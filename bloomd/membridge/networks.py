"""Where a worker's URL may lead: `workers.allowed_networks`, checked on the address that is really connected to.

A name can resolve to one address when it is looked at and to another when it is used. So it is resolved here, the
addresses are checked, and the connection is made to one of these very addresses, while `Host` and the name in TLS stay
what the URL says.
"""

import ipaddress
import socket
from functools import lru_cache

import httpcore
import trio

from bloomd.errors import Unavailable
from bloomd.exchange import connect_anywhere, why

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@lru_cache(maxsize=4)
def parsed(networks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text, strict=False) for text in networks)


def allowed(address: str, networks: tuple[str, ...]) -> bool:
    """Whether a worker may have this address. Link-local, multicast and unspecified ones nobody may allow."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return False
    return any(ip in network for network in parsed(networks) if network.version == ip.version)


async def connect(host: str, port: int, *, networks: tuple[str, ...]) -> httpcore.AsyncNetworkStream:
    """Connect to the first address of the host that may be and answers.

    Raises:
        Unavailable: none may be.
    """
    permitted = await _permitted(host, port, networks)
    for address in permitted[:-1]:
        try:
            return await connect_anywhere(address, port)
        except httpcore.ConnectError:
            continue
    return await connect_anywhere(permitted[-1], port)


async def local_address(host: str, port: int, *, networks: tuple[str, ...]) -> str:
    """The address of this machine from which the host is reached. Nothing is sent.

    Raises:
        Unavailable: the host has no address that may be and to which there is a way.
    """
    try:
        permitted = await _permitted(host, port, networks)
        family = socket.AF_INET6 if ":" in permitted[0] else socket.AF_INET
        with trio.socket.socket(family, socket.SOCK_DGRAM) as probe:
            await probe.connect((permitted[0], port))
            return str(probe.getsockname()[0])
    except (httpcore.ConnectError, OSError) as error:
        raise Unavailable(why(error)) from error


async def _permitted(host: str, port: int, networks: tuple[str, ...]) -> list[str]:
    addresses = await _addresses(host, port)
    permitted = [address for address in addresses if allowed(address, networks)]
    if not permitted:
        raise Unavailable(f"{', '.join(addresses)} is outside workers.allowed_networks")
    return permitted


async def _addresses(host: str, port: int) -> list[str]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError("not resolved") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
