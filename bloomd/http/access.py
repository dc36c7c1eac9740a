"""Who is asking, and may they: decided before a byte of the body is read.

Nothing is open but `OPEN`, by exact path: whatever way of spelling a path there is, it needs a key. Keys are
`http.api_key`, and those with names (`runtime/keyring.py`).

Who has signed in on the page sends a cookie in the place of a key (`session.py`). A browser does so whatever page has
it send a request. So what changes something must then come from the page itself, by its `Origin`; and what follows a
link from elsewhere (`Sec-Fetch-Site`) is a stranger's.

A worker's token, in the place of a key, opens `OF_WORKERS`, and nothing else beside what is open anyway. The routes
behind it do it for that worker's own leases only (`requests.worker_of`).

When there is neither (development) everything is allowed to whoever is on this machine; to others, whom a proxy may
have brought, only with `http.allow_unauthenticated`. And two checks keep web pages elsewhere from reaching it through a
browser: `Host` must be a loopback name or one that is configured (DNS rebinding), and an `Origin`, when there is one,
must be the server's own (cross-site requests). As long as it is not known whether there are keys with names, because
the database has been away since the start, nobody is let in for want of them.
"""

import hmac
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import msgspec
import trio

from bloomd.http.asgi import App, Receive, Scope, Send
from bloomd.http.limits import Limiter
from bloomd.http.problems import RETRY_AFTER_SECONDS, Problem
from bloomd.http.session import COOKIE, KEY_NAME, SECURE_COOKIE, Session, session_in
from bloomd.runtime.keyring import KeyRing
from bloomd.runtime.keys import is_secret
from bloomd.settings.model import Http

# Open to whoever has an enrolment code in the body or, for the other one alone, in the query: the routes judge it.
EXCHANGE = ("POST", "/api/runtime/enrolments/exchange")
BY_CODE = ("GET", "/api/runtime/agent-install-script")

SIGN_IN = ("POST", "/api/runtime/session")

OPEN = frozenset(
    {
        ("GET", "/api/runtime/health"),
        ("GET", "/ready"),
        ("GET", "/api/runtime/ready"),
        ("POST", "/api/runtime/test-connection"),
        EXCHANGE,
        SIGN_IN,
        ("GET", "/api/runtime/session"),
    }
)

# What a worker does, and where its program comes from.
OF_WORKERS = re.compile(
    r"POST /api/runtime/(workers|leases/(claim|heartbeat|complete|release))"
    r"|POST (/l/[^/]+)?/api/runtime/llm-tasks/[^/]+/(heartbeat|complete)"
    r"|PUT /api/runtime/leases/[^/]+/artifacts/[^/]+"
    r"|GET /api/runtime/agent-package/[^/]+"
)

# A change of keys is told; one of the configured key by a reload is noticed after so long.
LOOK_SECONDS = 15.0

# What changes nothing, whoever has a browser ask for it.
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

UNIX = "unix:"
ANONYMOUS = "anonymous"


class Caller(msgspec.Struct, frozen=True):
    """Who made a request."""

    client: str
    """The address, of the client itself where a trusted proxy tells it; `unix:` for a peer on the Unix socket."""
    doubtful: bool
    """Whether somebody who is not trusted, or not understood, claims to forward for somebody else."""
    actor: str
    """The name in the audit log."""
    authenticated: bool
    worker: str | None = None
    """Whose token it was."""
    session: Session | None = None
    """What was signed in on the page, when it was that."""


def is_off(http: Http, keys: KeyRing) -> bool:
    """Whether no key is needed, because there is none, and no worker's token either (`KeyRing.empty` says why)."""
    return http.api_key is None and keys.empty


async def until_refused(scope: Scope, settings: Callable[[], Http], keys: KeyRing) -> None:
    """Return when a request that was let in a while ago would not be let in now: its key or token is one no longer, or
    one is needed from now on."""
    while True:
        changed = keys.changed
        http = settings()
        known = _name_of_key(scope, http.api_key, keys) or _worker_of(scope, keys) or _session_of(scope, http, keys)
        if not (known or is_off(http, keys)):
            return
        with trio.move_on_after(LOOK_SECONDS):
            await changed.wait()


def guarded(app: App, settings: Callable[[], Http], keys: KeyRing) -> App:
    """Let through who may pass, and note who it is."""
    # A person who mistypes a key is never stopped; a guesser gets nowhere.
    failed_logins = Limiter(limit=20, seconds=60)
    # Monitors and load balancers ask every second or so, each from its own address.
    unauthenticated = Limiter(limit=300, seconds=60)
    # Nobody guesses a code; each try asks the database, though. Many machines may come from one address at once.
    with_code = Limiter(limit=60, seconds=60)

    def admit(scope: Scope) -> Caller:
        http = settings()
        client, doubtful = client_of(scope, http.trusted_proxies)
        stranger = Caller(client, doubtful, ANONYMOUS, authenticated=False)
        scope["state"]["caller"] = stranger
        if is_off(http, keys):
            if not http.allow_unauthenticated:
                _check_nearby(stranger)
            _check_host(scope, http.allowed_hosts)
            _check_origin(scope)
            return msgspec.structs.replace(stranger, authenticated=True)
        if name := _name_of_key(scope, http.api_key, keys):
            return msgspec.structs.replace(stranger, actor=name, authenticated=True)
        method, path = scope["method"], scope["path"]
        if session := _session_of(scope, http, keys):
            if scope["method"] not in SAFE:
                _check_origin(scope, required=True)
            return Caller(client, doubtful, session.actor, authenticated=True, session=session)
        worker = _worker_of(scope, keys)
        if worker is not None and OF_WORKERS.fullmatch(f"{method} {path}"):
            return Caller(client, doubtful, f"worker:{worker}", authenticated=True, worker=worker)
        if (method, path) == EXCHANGE or ((method, path) == BY_CODE and b"code=" in scope["query_string"]):
            with_code.spend(client)
            return stranger
        if (method, path) == SIGN_IN:
            _check_origin(scope)
            return stranger  # the route counts the attempts
        if (method, path) in OPEN:
            unauthenticated.spend(client)
            return stranger
        if path == "/metrics" and may_read_metrics(stranger, http.metrics_allow):
            return stranger
        if worker is not None:
            raise Problem(
                403,
                "A worker's token allows its worker to register, claim, heartbeat, complete, release and upload, and "
                "nothing else; use an API key",
                type="not-for-workers",
            )
        secrets = any(map(is_secret, _secrets(scope))) or "bloomd=" in _cookies(scope)
        if not keys.known and (http.api_key is None or secrets):
            raise Problem(
                503,
                "API keys cannot be checked yet: bloomd has not been able to read them from PostgreSQL since it "
                "started; try again, and see `bloomd-ctl status` if it lasts",
                type="unavailable",
                headers={"retry-after": str(RETRY_AFTER_SECONDS)},
            )
        failed_logins.spend(client)
        raise unauthorized("Send the API key in the X-Runtime-API-Key header, or as Authorization: Bearer")

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope["state"]["caller"] = admit(scope)
        except Problem as problem:
            await problem.send(send)
            return
        await app(scope, receive, send)

    return guard


def client_of(scope: Scope, trusted_proxies: tuple[str, ...]) -> tuple[str, bool]:
    """The client's address, and whether that is doubtful: a peer that is not trusted forwards, or forwards nonsense.

    `X-Forwarded-For` is read from the right, for as long as the one who added an entry is trusted.
    """
    address = scope.get("client")
    client = peer = _plain(str(address[0])) if address else UNIX
    chain = [
        entry.strip()
        for name, value in scope["headers"]
        if name == b"x-forwarded-for"
        for entry in value.decode("latin-1").split(",")
    ]
    networks, unix = _networks(trusted_proxies)
    doubtful = False
    while chain and not doubtful:
        trusted = unix if client == UNIX else _within(client, networks)
        if trusted and _parsed(chain[-1]):
            client = _plain(chain.pop())
        else:
            # Behind the first hop, an untrusted one is simply the client; what it claims is its own affair.
            doubtful = trusted or client == peer
            break
    return client, doubtful


def is_secure(scope: Scope, trusted_proxies: tuple[str, ...]) -> bool:
    """Whether the client speaks TLS, with us or with a proxy that is trusted and says so."""
    address = scope.get("client")
    networks, unix = _networks(trusted_proxies)
    trusted = _within(_plain(str(address[0])), networks) if address else unix
    return scope["scheme"] == "https" or (trusted and _header(scope, b"x-forwarded-proto").lower() == "https")


def may_read_metrics(caller: Caller, allowed: tuple[str, ...]) -> bool:
    """Whether this client reads /metrics without the key."""
    return not caller.doubtful and _within(caller.client, _networks(allowed)[0])


def unauthorized(detail: str) -> Problem:
    """The answer to who has not shown that he may."""
    return Problem(401, detail, type="unauthorized", headers={"www-authenticate": 'Bearer realm="bloomd"'})


def _name_of_key(scope: Scope, key: str | None, keys: KeyRing) -> str | None:
    """The actor to whom a valid key in the headers belongs; None without one."""
    for secret in _secrets(scope):
        if key is not None and hmac.compare_digest(secret, key.encode()):
            return KEY_NAME
        if name := keys.name_of(secret):
            return name
    return None


def _session_of(scope: Scope, http: Http, keys: KeyRing) -> Session | None:
    """What was signed in on the page; None without it."""
    cookies = _cookies(scope)
    if "bloomd" not in cookies or _header(scope, b"sec-fetch-site") in ("cross-site", "same-site"):
        return None
    name = SECURE_COOKIE if is_secure(scope, http.trusted_proxies) else COOKIE
    values = (each.strip().partition("=") for each in cookies.split(";"))
    sessions = (session_in(value, http, keys) for key, _, value in values if key == name)
    return next(filter(None, sessions), None)


def _worker_of(scope: Scope, keys: KeyRing) -> str | None:
    """The worker whose token is in the headers; None without one."""
    return next((worker for secret in _secrets(scope) if (worker := keys.worker_of(secret))), None)


def _secrets(scope: Scope) -> Iterator[bytes]:
    """What the headers hold in the place of a key."""
    for name, value in scope["headers"]:
        if name == b"x-runtime-api-key":
            yield value
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            yield value[7:].strip()


def _check_nearby(caller: Caller) -> None:
    if caller.doubtful or not (caller.client == UNIX or _is_loopback(caller.client)):
        who = "who a proxy asks for that is not in http.trusted_proxies" if caller.doubtful else caller.client
        raise Problem(
            403,
            f"No API key is set, so only this machine is served, not {who}; make a key (`bloomd-ctl key add NAME`), "
            "or say http.allow_unauthenticated",
            type="no-key",
        )


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


def _check_origin(scope: Scope, *, required: bool = False) -> None:
    origin, host = _header(scope, b"origin"), _header(scope, b"host")
    # No page elsewhere can have a browser say this, so here it need not come from a proxy that is trusted.
    forwarded = _header(scope, b"x-forwarded-proto").partition(",")[0].strip()
    scheme = "https" if scope["scheme"] == "https" else forwarded or "http"
    if (origin or required) and not (host and origin.lower() == f"{scheme}://{host}".lower()):
        page = f"A page of {origin[:100]!r}" if origin else "What does not say of which page it comes (Origin)"
        detail = f"{page} may not use this server"
        if host and origin.lower() == f"https://{host}".lower():
            detail += ", which is asked without TLS; the proxy in front of it must send X-Forwarded-Proto"
        raise Problem(403, detail, type="origin-not-allowed")


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


def _cookies(scope: Scope) -> str:
    """All of them: a proxy may have split what a browser sends as one header."""
    return "; ".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"cookie")


def _host_name(host: str) -> str:
    name = host.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


def _is_loopback(name: str) -> bool:
    address = _parsed(name)
    return address is not None and address.is_loopback


@lru_cache(maxsize=1024)  # of clients and proxies, who come again and again
def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An address; None for what is none."""
    try:
        return ip_address(text)
    except ValueError:
        return None


@lru_cache(maxsize=16)  # of settings, which are few: each is parsed once
def _networks(entries: tuple[str, ...]) -> tuple[tuple[IPv4Network | IPv6Network, ...], bool]:
    """The networks of a setting, and whether it has the Unix socket."""
    return tuple(ip_network(entry, strict=False) for entry in entries if entry != UNIX), UNIX in entries


def _within(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in networks)


@lru_cache(maxsize=1024)
def _plain(address: str) -> str:
    """An address as it is usually spelled, an IPv4 address as one, also when it came over a socket for both."""
    parsed = _parsed(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed or address)
