"""Where a worker's URL may lead: `workers.allowed_networks`, checked on the address that is really connected to.

A name can resolve to one address when it is looked at and to another when it is used. So it is resolved here, the
addresses are checked, and the connection is made to one of these very addresses, while `Host` and the name in TLS stay
what the URL says.
"""

import ipaddress
import socket
from collections.abc import Callable, Iterable
from functools import lru_cache

import httpcore
import httpx
import trio

from bloomd.errors import Unavailable
from bloomd.exchange import trust

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


class Transport(httpx.AsyncHTTPTransport):
    """httpx's own transport, but for where it connects to. It keeps no idle connections."""

    def __init__(self, networks: Callable[[], tuple[str, ...]], *, connections: int) -> None:
        super().__init__(verify=trust(), trust_env=False)
        # httpx has no parameter for this (httpx 0.28); tests/membridge/test_networks.py would notice a change.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trust(),
            max_connections=connections,
            max_keepalive_connections=0,
            network_backend=_Guarded(networks),
        )


class _Guarded(httpcore.AsyncNetworkBackend):
    def __init__(self, networks: Callable[[], tuple[str, ...]]) -> None:
        self._networks = networks
        # httpcore declares the class twice, once for machines without trio, and pyright believes that one.
        self._backend: httpcore.AsyncNetworkBackend = httpcore.TrioBackend()  # pyright: ignore[reportAttributeAccessIssue]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        networks = self._networks()
        addresses = await _addresses(host, port)
        permitted = [address for address in addresses if allowed(address, networks)]
        if not permitted:
            raise Unavailable(f"{', '.join(addresses)} is outside workers.allowed_networks")
        for address in permitted[:-1]:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        return await self._backend.connect_tcp(permitted[-1], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


async def _addresses(host: str, port: int) -> list[str]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError("not resolved") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
