"""Who is asking, and may they: decided before a byte of the body is read.

Nothing is open but `OPEN`, by exact path: whatever way of spelling a path there is, it needs the key.

Without a key (development) everything is allowed to whoever reaches the port, so two checks keep web pages elsewhere
from reaching it through a browser: `Host` must be a loopback name or one that is configured (DNS rebinding), and an
`Origin`, when there is one, must be the server's own (cross-site requests).
"""

import hmac
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

import msgspec

from bloomd.http.asgi import App, Receive, Scope, Send
from bloomd.http.limits import Limiter
from bloomd.http.problems import Problem
from bloomd.settings.model import Http

OPEN = frozenset(
    {
        ("GET", "/api/runtime/health"),
        ("GET", "/ready"),
        ("GET", "/api/runtime/ready"),
        ("POST", "/api/runtime/test-connection"),
    }
)

UNIX = "unix:"
ANONYMOUS = "anonymous"
KEY_NAME = "api-key"

# A person who mistypes a key is never stopped; a guesser gets nowhere.
FAILED_LOGINS = Limiter(limit=20, seconds=60)
# Monitors and load balancers ask every second or so, each from its own address.
UNAUTHENTICATED = Limiter(limit=300, seconds=60)


class Caller(msgspec.Struct, frozen=True):
    """Who made a request."""

    client: str
    """The address, of the client itself where a trusted proxy tells it; `unix:` for a peer on the Unix socket."""
    forwarded: bool
    """Whether the address was told by a trusted proxy."""
    spoofed: bool
    """Whether a peer that is not trusted claims to forward for somebody."""
    actor: str
    """The name in the audit log."""
    authenticated: bool


def caller_of(scope: Scope) -> Caller:
    """Who made this request."""
    return scope["state"]["caller"]


def guarded(app: App, settings: Callable[[], Http]) -> App:
    """Let through who may pass, and note who it is."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        http = settings()
        try:
            scope["state"]["caller"] = _admit(scope, http)
        except Problem as problem:
            await problem.send(send)
            return
        await app(scope, receive, send)

    return guard


def _admit(scope: Scope, http: Http) -> Caller:
    client, forwarded, spoofed = client_of(scope, http.trusted_proxies)
    if http.api_key is None:
        _check_host(scope, http.allowed_hosts)
        _check_origin(scope)
        return Caller(client, forwarded, spoofed, ANONYMOUS, authenticated=True)
    if _has_key(scope, http.api_key):
        return Caller(client, forwarded, spoofed, KEY_NAME, authenticated=True)
    caller = Caller(client, forwarded, spoofed, ANONYMOUS, authenticated=False)
    method, path = scope["method"], scope["path"]
    if (method, path) in OPEN:
        UNAUTHENTICATED.spend(client)
        return caller
    if path == "/metrics" and may_read_metrics(caller, http.metrics_allow):
        return caller
    FAILED_LOGINS.spend(client)
    raise Problem(
        401,
        "Send the API key in the X-Runtime-API-Key header, or as Authorization: Bearer",
        type="unauthorized",
        headers={"www-authenticate": 'Bearer realm="bloomd"'},
    )


def client_of(scope: Scope, trusted_proxies: tuple[str, ...]) -> tuple[str, bool, bool]:
    """The client's address, whether a trusted proxy told it, and whether somebody else claims to forward.

    `X-Forwarded-For` is read from the right, for as long as the one who added an entry is trusted.
    """
    address = scope.get("client")
    peer = str(address[0]) if address else UNIX
    chain = [
        entry.strip()
        for name, value in scope["headers"]
        if name == b"x-forwarded-for"
        for entry in value.decode("latin-1").split(",")
    ]
    if not chain:
        return peer, False, False
    networks, unix = _networks(trusted_proxies)
    client = peer
    while chain and (unix if client == UNIX else _within(client, networks)):
        entry = chain.pop()
        if not _is_address(entry):
            break
        client = entry
    return client, client != peer, client == peer


def may_read_metrics(caller: Caller, allowed: tuple[str, ...]) -> bool:
    """Whether this client reads /metrics without the key."""
    return not caller.spoofed and _within(caller.client, _networks(allowed)[0])


def _has_key(scope: Scope, key: str) -> bool:
    for name, value in scope["headers"]:
        if name == b"x-runtime-api-key":
            given = value
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            given = value[7:].strip()
        else:
            continue
        if hmac.compare_digest(given, key.encode()):
            return True
    return False


def _check_host(scope: Scope, allowed: tuple[str, ...]) -> None:
    host = _header(scope, b"host")
    name = _host_name(host)
    if name == "localhost" or _is_loopback(name) or "*" in allowed or name in {entry.lower() for entry in allowed}:
        return
    raise Problem(
        403,
        f"No API key is set, so only loopback names may be asked for, not {host[:100]!r}; "
        "set http.api_key, or list the name in http.allowed_hosts (`bloomd dev --allow-host`)",
        type="host-not-allowed",
    )


def _check_origin(scope: Scope) -> None:
    origin = _header(scope, b"origin")
    if origin and urlsplit(origin).netloc.lower() != _header(scope, b"host").lower():
        raise Problem(403, f"A page of {origin[:100]!r} may not use this server", type="origin-not-allowed")


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


def _host_name(host: str) -> str:
    name = host.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ip_address(name).is_loopback


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=16)  # of settings, which are few: each is parsed once
def _networks(entries: tuple[str, ...]) -> tuple[tuple[IPv4Network | IPv6Network, ...], bool]:
    """The networks of a setting, and whether it has the Unix socket."""
    return tuple(ip_network(entry, strict=False) for entry in entries if entry != UNIX), UNIX in entries


def _within(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    if not _is_address(address):
        return False
    parsed = ip_address(address)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return any(parsed in network for network in networks)
