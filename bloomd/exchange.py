"""One HTTP exchange that ends in time and within bounds, by an answer or by one sentence: the boundary around httpx.

Each exchange has a connection of its own. A call that is cancelled at the wrong moment, between connecting and sending,
leaves a connection behind in httpcore's pool which is never used nor given back (httpcore 1.0.9): a shared pool is
full of those one day, and then nothing gets through until the daemon is restarted. Our calls are few, and what a
handshake costs every few seconds is nothing beside that.
"""

import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from functools import cache
from typing import Any, Self, cast

import httpcore
import httpx
import msgspec
import trio

from bloomd import __version__
from bloomd.errors import Unavailable

KIB, MIB = 1024, 1024 * 1024
USER_AGENT = f"bloomd/{__version__}"


class Answer(msgspec.Struct, frozen=True):
    """What a server said, whatever it was."""

    status: int
    content_type: str | None
    body: bytes
    location: str | None = None
    """Where a redirect points."""
    date: str | None = None
    """The time at the server, as it says it."""


@cache
def trust() -> ssl.SSLContext:
    """What certificates are checked against: the machine's own store, so that an operator's own authority counts."""
    return ssl.create_default_context()


# Connects to host and port.
Connect = Callable[[str, int], Awaitable[httpcore.AsyncNetworkStream]]


async def connect_anywhere(host: str, port: int, *, local_address: str | None = None) -> httpcore.AsyncNetworkStream:
    # httpcore declares the class twice, once for machines without trio, and pyright believes that one.
    backend: httpcore.AsyncNetworkBackend = httpcore.TrioBackend()  # pyright: ignore[reportAssignmentType]
    return await backend.connect_tcp(host, port, local_address=local_address, socket_options=[])


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, connect: Connect) -> None:
        self.streams: list[httpcore.AsyncNetworkStream] = []
        self._connect = connect

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        stream = await self._connect(host, port)
        self.streams.append(stream)
        return stream

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's own transport, but for who connects, and that it leaves no connection behind.

    One that is cancelled during its TLS handshake httpcore 1.0.9 leaves to the garbage collector.
    """

    def __init__(self, connect: Connect) -> None:
        super().__init__(verify=trust(), trust_env=False)
        self._backend = _Backend(connect)
        # httpx 0.28 has no parameter for this; tests/membridge/test_networks.py would notice a change.
        self._pool = httpcore.AsyncConnectionPool(ssl_context=trust(), network_backend=self._backend)

    async def __aexit__(self, *exc_info: Any) -> None:
        await super().__aexit__(*exc_info)
        with trio.CancelScope(shield=True):  # closing a TCP socket waits for nobody
            for stream in self._backend.streams:
                await stream.aclose()


class _Content(httpx.AsyncByteStream):
    """What is sent, in one piece.

    httpx has a generator for this; of a server that answers before it has heard everything, httpcore 1.0.9 leaves that
    to the garbage collector.
    """

    def __init__(self, content: bytes) -> None:
        self._pieces = iter([content])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


async def exchange(
    method: str,
    url: str,
    *,
    who: str,
    timeout: float,
    limit: int,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
    connect: Connect = connect_anywhere,
) -> Answer:
    """Send a request and read all of its answer. Redirects are answers, and proxies of the environment do not count.

    Args:
        who: the server's name in the error, such as "Membridge at http://127.0.0.1:8000".
        timeout: seconds for all of it, so that a peer which sends a byte now and then ends as well.
        limit: bytes that the body may have.
        connect: makes the TCP connection, and may refuse to.

    Raises:
        Unavailable: there was no answer, or none that can be used.
    """
    # What is decompressed cannot be bounded by what is read, so nothing compressed is asked for or taken.
    fields = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
    try:
        with trio.fail_after(timeout):
            async with httpx.AsyncClient(transport=_Transport(connect), timeout=None, trust_env=False) as client:
                request = client.build_request(method, url, headers=fields | dict(headers or {}), content=content)
                if content:
                    request.stream = _Content(content)
                async with aclosing(await client.send(request, stream=True)) as response:
                    return Answer(
                        response.status_code,
                        response.headers.get("content-type"),
                        await _body(response, who, limit),
                        response.headers.get("location"),
                        response.headers.get("date"),
                    )
    except trio.TooSlowError as error:
        raise NotWorthRetrying(f"{who}: no answer within {timeout:.3g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # a host name that IDNA refuses is the last
        raise Unavailable(f"{who}: {why(error)}") from error


class NotWorthRetrying(Unavailable):
    """The answer took too long or is too long, and would be the next time."""


async def _body(response: httpx.Response, who: str, limit: int) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        limit = 0
    body = bytearray()
    # Leaving the loop early would leave httpx's nested generators to the garbage collector; a cancellation ends them.
    with trio.CancelScope() as enough:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > limit:
                body.clear()
                enough.cancel()
    if enough.cancel_called:
        raise NotWorthRetrying(f"{who}: its answer is " + (f"longer than {size(limit)}" if limit else "compressed"))
    return bytes(body)


def size(limit: int) -> str:
    return f"{limit // MIB} MiB" if limit >= MIB else f"{limit // KIB} KiB"


def why(error: Exception) -> str:
    """Why a request failed, in a few words of ours.

    The texts of the libraries are not passed on: they can quote what was sent, a key included, and what was received.
    """
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return f"its certificate is not trusted: {cause.verify_message}"
            case ssl.SSLError():
                return f"TLS failed: {(cause.reason or 'no reason given').replace('_', ' ').lower()}"
            case socket.gaierror():
                return f"its name cannot be resolved: {cause.strerror}"
            case OSError(errno=int(number)):
                text = os.strerror(number)
                return text[:1].lower() + text[1:]
            case _:
                pass
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL | UnicodeError):
        return "its URL is not a valid http or https one"
    if isinstance(error, httpx.RemoteProtocolError) and "closed" not in str(error) and "disconnect" not in str(error):
        return "its answer is not HTTP"
    if isinstance(error, httpx.LocalProtocolError):
        return "the request cannot be expressed in HTTP"
    return "the connection was closed before the answer was complete"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, a group's first member standing for the group."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            current = cast("BaseExceptionGroup[BaseException]", current).exceptions[0]
        else:
            current = current.__cause__ or current.__context__
