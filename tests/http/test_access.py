"""Who is asking, decided from a request's scope alone."""

import pytest
import trio

from bloomd.http.access import client_of, guarded, is_off, may_read_metrics
from bloomd.http.limits import Limiter
from bloomd.http.problems import Problem
from bloomd.runtime import keys, tokens
from bloomd.runtime.database import Database
from bloomd.runtime.keyring import KeyRing
from bloomd.runtime.keys import digest
from bloomd.settings.model import Http

KEY = "correct-horse-battery"
NAMED = "bloom_" + "c" * 43
TOKEN = "bloomw_" + "t" * 43
UNKNOWN = KeyRing(Database())


def scope(path="/api/runtime/stats", *, method="GET", client=("127.0.0.1", 4000), **headers):
    encoded = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {
        "type": "http",
        "scheme": "http",
        "method": method,
        "path": path,
        "headers": encoded,
        "client": client,
        "state": {},
        "query_string": b"",
    }


async def nothing(scope, receive, send):
    """Behind the door."""


async def knock(door, asked=None, **kwargs):
    """The status of the answer; 0: let through."""
    statuses = [0]

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await door(asked or scope(**kwargs), None, send)
    return statuses[-1]


class Stored(Database):
    def __init__(self, names, query=keys.HASHES):
        super().__init__()
        self.names = names
        self.query = query

    async def rows(self, struct, query, /, **parameters):
        return (
            []
            if query != self.query
            else [struct(hash=digest(secret.encode()), name=name) for name, secret in self.names.items()]
        )


async def ring(**names):
    """The keys of a node that knows these, by name."""
    known = KeyRing(Stored(names))
    await known.renew()
    return known


@pytest.fixture
async def with_token():
    """The keys of a node that knows one token, and no key."""
    known = KeyRing(Stored({"w1": TOKEN}, tokens.HASHES))
    await known.renew()
    return known


async def ask(settings, keys=None, **kwargs):
    """The same for a first request, and who it was."""
    asked = scope(**kwargs)
    return await knock(guarded(nothing, lambda: settings, keys or await ring()), asked), asked["state"]["caller"]


WITH_KEY = Http(api_key=KEY)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"x_runtime_api_key": KEY}, 0),
        ({"authorization": f"Bearer {KEY}"}, 0),
        ({"authorization": f"bearer   {KEY}"}, 0),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"x_runtime_api_key": KEY + "x"}, 401),
        ({"x_runtime_api_key": "ключ".encode().decode("latin-1")}, 401),
        ({"x_runtime_api_key": ""}, 401),
    ],
)
async def test_the_key(headers, status):
    assert (await ask(WITH_KEY, **headers))[0] == status


@pytest.mark.parametrize(
    "path",
    [
        "/api/runtime/Health",
        "/api//runtime/health",
        "/api/runtime/./health",
        "/api/runtime/health/",
        "/API/runtime/health",
    ],
)
async def test_no_spelling_of_a_path_is_open(path):
    assert (await ask(WITH_KEY, path=path))[0] == 401
    assert (await ask(WITH_KEY, path="/api/runtime/health"))[0] == 0
    assert (await ask(WITH_KEY, path="/api/runtime/health", method="POST"))[0] == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:5000", 0),
        ("127.9.9.9", 0),
        ("localhost:5000", 0),
        ("LOCALHOST", 0),
        ("[::1]:5000", 0),
        ("bloom.example.org", 0),
        ("evil.example.org", 403),
        ("localhost.evil.example.org", 403),
        ("127.0.0.1.evil.example.org", 403),
        ("", 403),
    ],
)
async def test_without_a_key_the_host_must_be_known(host, status):
    settings = Http(allowed_hosts=("bloom.example.org",))
    assert (await ask(settings, host=host))[0] == status
    assert (await ask(Http(allowed_hosts=("*",)), host=host))[0] == 0


@pytest.mark.parametrize(
    ("client", "forwarded", "status"),
    [
        (None, None, 0),
        (("127.0.0.1", 1), None, 0),
        (("::1", 1), None, 0),
        (("::ffff:127.0.0.1", 1), None, 0),
        (None, "127.0.0.1", 0),
        (None, "203.0.113.9", 403),
        (("127.0.0.1", 1), "203.0.113.9", 403),
        (("127.0.0.1", 1), "127.0.0.1, 203.0.113.9", 403),
        (("127.0.0.1", 1), "nonsense", 403),
        (("203.0.113.9", 1), None, 403),
        (("203.0.113.9", 1), "127.0.0.1", 403),
    ],
)
async def test_without_a_key_only_this_machine_is_served(client, forwarded, status):
    """Whatever Host says: the client chooses it."""
    asked = {"host": "localhost", "client": client, **({"x_forwarded_for": forwarded} if forwarded else {})}
    assert (await ask(Http(), **asked))[0] == status
    assert (await ask(Http(allow_unauthenticated=True), **asked))[0] == 0
    assert (await ask(Http(api_key="k" * 32), **asked))[0] == 401


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:5000", 0),
        ("https://localhost:5000", 403),
        ("ftp://localhost:5000", 403),
        ("http://[", 403),
        ("http://localhost:3000", 403),
        ("https://evil.example.org", 403),
        ("null", 403),
    ],
)
async def test_without_a_key_the_origin_must_be_our_own(origin, status):
    assert (await ask(Http(), host="localhost:5000", origin=origin))[0] == status


async def test_the_proxy_that_speaks_tls_says_so_and_need_not_be_trusted():
    asked = {"host": "sandbox.example", "origin": "https://sandbox.example", "client": ("10.1.1.1", 1)}
    settings = Http(allowed_hosts=("sandbox.example",), allow_unauthenticated=True)
    assert (await ask(settings, **asked))[0] == 403
    assert (await ask(settings, **asked, x_forwarded_proto="https"))[0] == 0
    assert (await ask(settings, **asked, x_forwarded_proto="https, http"))[0] == 0
    assert (await ask(settings, **asked, x_forwarded_proto="http"))[0] == 403


@pytest.mark.parametrize(
    ("client", "forwarded", "expected"),
    [
        (("10.1.1.1", 1), None, ("10.1.1.1", False)),
        (("::ffff:10.1.1.1", 1), None, ("10.1.1.1", False)),
        (("127.0.0.1", 1), "9.9.9.9", ("9.9.9.9", False)),
        (("::ffff:127.0.0.1", 1), "9.9.9.9", ("9.9.9.9", False)),
        (("127.0.0.1", 1), "127.0.0.1", ("127.0.0.1", False)),
        (("127.0.0.1", 1), "6.6.6.6, 9.9.9.9", ("9.9.9.9", False)),
        (("127.0.0.1", 1), "9.9.9.9, 127.0.0.1", ("9.9.9.9", False)),
        (("10.1.1.1", 1), "127.0.0.1", ("10.1.1.1", True)),
        (None, "9.9.9.9", ("9.9.9.9", False)),
        (None, None, ("unix:", False)),
        (("127.0.0.1", 1), "garbage", ("127.0.0.1", True)),
        (("127.0.0.1", 1), "garbage, 127.0.0.1", ("127.0.0.1", True)),
        (("127.0.0.1", 1), "2001:DB8:0:0::0:1", ("2001:db8::1", False)),
    ],
)
def test_the_client_behind_proxies(client, forwarded, expected):
    headers = {"x_forwarded_for": forwarded} if forwarded else {}
    assert client_of(scope(client=client, **headers), Http().trusted_proxies) == expected


@pytest.mark.parametrize(
    ("client", "forwarded", "open"),
    [
        (("127.0.0.1", 1), None, True),
        (("::ffff:127.0.0.1", 1), None, True),
        (("10.1.1.1", 1), None, False),
        (("127.0.0.1", 1), "127.0.0.1", True),
        (("127.0.0.1", 1), "9.9.9.9", False),
        (("127.0.0.1", 1), "garbage", False),
        (("10.1.1.1", 1), "127.0.0.1", False),
        (None, None, False),
        (None, "127.0.0.1", True),
    ],
)
async def test_who_reads_metrics_without_the_key(client, forwarded, open):
    headers = {"x_forwarded_for": forwarded} if forwarded else {}
    status, caller = await ask(WITH_KEY, path="/metrics", client=client, **headers)
    assert (status == 0) is open
    if open:
        assert may_read_metrics(caller, WITH_KEY.metrics_allow)


async def test_the_caller_is_noted():
    _, caller = await ask(WITH_KEY, x_runtime_api_key=KEY)
    assert (caller.client, caller.actor, caller.authenticated) == ("127.0.0.1", "api-key", True)
    _, stranger = await ask(WITH_KEY, path="/api/runtime/health")
    assert (stranger.actor, stranger.authenticated) == ("anonymous", False)


@pytest.mark.parametrize("settings", [Http(), WITH_KEY])
@pytest.mark.parametrize(
    ("headers", "status", "actor"),
    [
        ({}, 401, "anonymous"),
        ({"x_runtime_api_key": NAMED}, 0, "ci"),
        ({"authorization": f"Bearer {NAMED}"}, 0, "ci"),
        ({"x_runtime_api_key": "wrong", "authorization": f"Bearer {NAMED}"}, 0, "ci"),
        ({"x_runtime_api_key": NAMED[:-1]}, 401, "anonymous"),
        ({"x_runtime_api_key": "ci"}, 401, "anonymous"),
        ({"x_runtime_api_key": digest(NAMED.encode())}, 401, "anonymous"),
        ({"x_runtime_api_key": "\xff" + NAMED}, 401, "anonymous"),
        ({"host": "localhost"}, 401, "anonymous"),
    ],
)
async def test_a_named_key_is_as_good_and_says_who_it_is(settings, headers, status, actor):
    got, caller = await ask(settings, await ring(ci=NAMED, other="bloom_" + "o" * 43), **headers)
    assert (got, caller.actor, caller.authenticated) == (status, actor, status == 0)


async def test_the_configured_key_keeps_its_name_beside_named_ones():
    _, caller = await ask(WITH_KEY, await ring(ci=NAMED), x_runtime_api_key=KEY)
    assert caller.actor == "api-key"


async def test_authentication_is_off_only_when_it_is_known_that_there_is_no_key():
    assert is_off(Http(), await ring())
    assert not is_off(Http(), await ring(ci=NAMED))
    assert not is_off(Http(), UNKNOWN)
    assert not is_off(WITH_KEY, await ring())


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        (Http(), {}, 503),
        (Http(), {"host": "localhost"}, 503),
        (Http(), {"x_runtime_api_key": NAMED}, 503),
        (Http(), {"x_runtime_api_key": "something"}, 503),
        (WITH_KEY, {}, 401),
        (WITH_KEY, {"x_runtime_api_key": "something"}, 401),
        (WITH_KEY, {"x_runtime_api_key": NAMED}, 503),
        (WITH_KEY, {"x_runtime_api_key": KEY}, 0),
    ],
)
async def test_nobody_is_let_in_for_want_of_keys_that_are_not_known_yet(settings, headers, status):
    got, caller = await ask(settings, UNKNOWN, **headers)
    assert (got, caller.authenticated) == (status, status == 0)


@pytest.mark.parametrize("settings", [Http(), WITH_KEY])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/api/runtime/leases/claim", 0),
        ("GET", "/api/runtime/leases", 403),
        ("GET", "/api/runtime/agent-package/x", 0),
        ("GET", "/metrics", 0),
        ("GET", "/ready", 0),
        ("POST", "/api/runtime/leases/claim/", 403),
        ("POST", "/x/api/runtime/leases/claim", 403),
        ("POST", "/api/runtime/leases/claim\n", 403),
    ],
)
async def test_a_token_opens_what_its_worker_does(with_token, settings, method, path, status):
    for headers in ({"x_runtime_api_key": TOKEN}, {"authorization": f"Bearer {TOKEN}"}):
        got, caller = await ask(settings, with_token, method=method, path=path, **headers)
        opened = "leases" in path or "package" in path
        assert (got, caller.worker) == (status, "w1" if status == 0 and opened else None)
        assert caller.actor == ("worker:w1" if caller.worker else "anonymous")


async def test_where_there_is_a_token_a_key_is_needed(with_token):
    assert not is_off(Http(), with_token)
    assert (await ask(Http(), with_token))[0] == 401
    assert (await ask(Http(), UNKNOWN, x_runtime_api_key=TOKEN))[0] == 503


async def test_a_script_is_given_to_who_has_a_code_in_the_query_and_to_no_guesser():
    door = guarded(nothing, lambda: WITH_KEY, await ring())

    def at(path, query):
        return {**scope(path=path, client=("7.7.7.7", 1)), "query_string": query}

    path = "/api/runtime/agent-install-script"
    assert await knock(door, at(path, b"node_id=w1")) == 401
    assert await knock(door, at("/api/runtime/stats", b"code=x")) == 401
    assert await knock(door, at(path, b"code=x")) == 0  # the route looks at it
    assert [await knock(door, at(path, b"code=x")) for _ in range(60)][-1] == 429


async def test_what_is_open_is_open_before_the_keys_are_known():
    for path in ("/api/runtime/health", "/ready"):
        assert (await ask(Http(), UNKNOWN, path=path))[0] == 0
    assert (await ask(Http(), UNKNOWN, path="/metrics"))[0] == 0
    assert (await ask(Http(), UNKNOWN, path="/metrics", client=("9.9.9.9", 1)))[0] == 503


async def test_a_limit_is_per_client_and_ends_with_its_window(autojump_clock):

    limiter = Limiter(limit=2, seconds=60)
    for _ in range(2):
        limiter.spend("a")
    limiter.spend("b")
    with pytest.raises(Problem) as refused:
        limiter.spend("a")
    assert refused.value.status == 429
    assert refused.value.headers["retry-after"] == "60"
    await trio.sleep(60)
    limiter.spend("a")


async def test_a_network_of_ipv6_is_one_client_however_it_is_spelled():
    limiter = Limiter(limit=3, seconds=60)
    for address in ("2001:db8::1", "2001:DB8:0:0:0::2", "2001:db8::ffff:0:0:1"):
        limiter.spend(address)
    with pytest.raises(Problem):
        limiter.spend("2001:db8:0:0:1:2:3:4")
    limiter.forgive("2001:db8::9")
    limiter.spend("2001:db8::1")
    for other in ("2001:db8:0:1::1", "::1", "9.9.9.9", "unix:"):
        limiter.spend(other)


async def test_guessing_is_limited_and_the_right_key_is_not():
    door = guarded(nothing, lambda: WITH_KEY, await ring())
    guesses = [await knock(door, client=("7.7.7.7", 1), x_runtime_api_key="guess") for _ in range(30)]
    assert (guesses[0], guesses[-1]) == (401, 429)
    assert await knock(door, client=("7.7.7.7", 1), x_runtime_api_key=KEY) == 0
    assert await knock(door, client=("8.8.8.8", 1), x_runtime_api_key="guess") == 401
