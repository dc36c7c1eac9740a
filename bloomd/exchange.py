"""One HTTP exchange that ends in time and within bounds, by an answer or by one sentence: the boundary around httpx."""

import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from functools import cache
from typing import cast

import httpx
import msgspec
import trio

from bloomd.errors import Unavailable

KIB, MIB = 1024, 1024 * 1024


class Answer(msgspec.Struct, frozen=True):
    """What a server said, whatever it was."""

    status: int
    content_type: str | None
    body: bytes
    location: str | None = None
    """Where a redirect points."""


@cache
def trust() -> ssl.SSLContext:
    """What certificates are checked against: the machine's own store, so that an operator's own authority counts."""
    return ssl.create_default_context()


async def exchange(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    who: str,
    timeout: float,
    limit: int,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
) -> Answer:
    """Send a request and read all of its answer.

    Args:
        who: the server's name in the error, such as "Membridge at http://127.0.0.1:8000".
        timeout: seconds for all of it, so that a peer which sends a byte now and then ends as well.
        limit: bytes that the body may have.

    Raises:
        Unavailable: there was no answer, or none that can be used.
    """
    # What is decompressed cannot be bounded by what is read, so nothing compressed is asked for or taken.
    fields = {"Accept": "application/json", "Accept-Encoding": "identity"} | dict(headers or {})
    try:
        with trio.fail_after(timeout):
            async with client.stream(method, url, headers=fields, content=content) as response:
                return Answer(
                    response.status_code,
                    response.headers.get("content-type"),
                    await _body(response, who, limit),
                    response.headers.get("location"),
                )
    except trio.TooSlowError as error:
        raise NotWorthRetrying(f"{who}: no answer within {timeout:.3g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"{who}: {why(error)}") from error
    except RuntimeError as error:
        if not client.is_closed:
            raise
        raise Unavailable(f"{who}: the settings have changed meanwhile") from error


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
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
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
