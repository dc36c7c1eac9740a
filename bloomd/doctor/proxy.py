"""What stands before bloomd at `http.public_url`: its certificate, and what it answers on this machine."""

import socket
import ssl
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

import trio

from bloomd.doctor.fact import SECONDS
from bloomd.doctor.finding import Skip
from bloomd.errors import Misconfigured, Unavailable
from bloomd.exchange import KIB, Answer, connect_anywhere, exchange, trust, why
from bloomd.settings import Tcp, Unix, parse_bind
from bloomd.settings.model import Http

HEALTH = "/api/runtime/health"

# Of the few kilobytes that it has.
ANSWER_LIMIT = 64 * KIB

# Where nginx is asked on this machine, and from where: an address that nobody but this client has.
LOOPBACK, CLIENT = "127.0.0.1", "127.0.0.2"
# What that client claims to be: an address of the documentation (RFC 5737), which nobody has.
CLAIMED = "203.0.113.7"
# And what is no address: bloomd, which reads from the right, stops before it, at what nginx has appended.
NO_ADDRESS = "unknown"


async def certificate(http: Http) -> float:
    """When the certificate expires, in epoch seconds.

    Raises:
        Skip: there is to be none.
        Unavailable: nobody answers.
        Misconfigured: it is not one for this name that this machine trusts.
    """
    url = _public_url(http)
    if url.scheme != "https":
        raise Skip("http.public_url is not https")
    name, port = str(url.hostname), _port(url)
    where = LOOPBACK if await _is_here(http, name) else name
    try:
        stream = await trio.open_tcp_stream(where, port)
        async with trio.SSLStream(stream, trust(), server_hostname=name, https_compatible=True) as secured:
            await secured.do_handshake()
            return float(ssl.cert_time_to_seconds(secured.getpeercert()["notAfter"]))
    except trio.BrokenResourceError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            refusal = error.__cause__.verify_message
            raise Misconfigured(f"the certificate of {name} is not accepted: {refusal}") from error
        raise Misconfigured(f"what answers at {where}:{port} does not speak TLS") from error
    except OSError as error:
        raise Unavailable(f"{where}:{port}: {why(error)}") from error


async def health(http: Http, claimed: str = CLAIMED) -> Answer:
    """What is answered on this machine to who asks bloomd for its health by the public URL, and claims to be another.

    Raises:
        Skip: nothing says that it is on this machine.
        Unavailable: nobody answers.
    """
    if not await _is_here(http, str(_public_url(http).hostname)):
        raise Skip("nothing says that nginx is on this machine")
    return await exchange(
        "GET",
        f"{http.public_url}{HEALTH}",
        who=f"{http.public_url} on this machine",
        timeout=SECONDS,
        limit=ANSWER_LIMIT,
        headers={"X-Forwarded-For": claimed},
        connect=lambda _, port: connect_anywhere(LOOPBACK, port, local_address=CLIENT),
    )


def _public_url(http: Http) -> SplitResult:
    if http.public_url is None:
        raise Skip("http.public_url is not set")
    return urlsplit(http.public_url)


def _port(url: SplitResult) -> int:
    return url.port or {"http": 80, "https": 443}[url.scheme]


async def _is_here(http: Http, name: str) -> bool:
    """Whether it has to be on this machine: bloomd listens for it on a Unix socket, or the name means this machine."""
    binds = [parse_bind(bind) for bind in http.bind]
    if any(isinstance(bind, Tcp) and bind.port == _port(_public_url(http)) for bind in binds):
        raise Skip("http.public_url is bloomd's own port")
    if any(isinstance(bind, Unix) for bind in binds):
        return True
    with suppress(OSError):
        found = await trio.socket.getaddrinfo(name, 0, type=socket.SOCK_DGRAM)
        return any(_is_own(family, address) for family, _, _, _, address in found)
    return False


def _is_own(family: int, address: object) -> bool:
    """Whether this machine has the address: it can be bound to then."""
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind(address)  # pyright: ignore[reportArgumentType]
        return True
    return False
