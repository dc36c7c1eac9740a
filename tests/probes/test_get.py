"""The two HTTP backends of the probes: the same tests for both."""

import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import trio
import trustme
from peers import Peer, Reply, reply, serving
from servers import free_port

from bloomd import exchange
from bloomd.errors import Unavailable
from bloomd.probes import http
from bloomd.probes.http import get_by_asks, get_by_httpx

Get = Callable[[str, float], Awaitable[tuple[int, bytes]]]


@pytest.fixture(params=[get_by_asks, get_by_httpx], ids=["asks", "httpx"])
def get(request: pytest.FixtureRequest) -> Get:
    return request.param


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with serving(Peer(lambda _: reply({"status": "ok"}))) as peer:
        yield peer


async def test_status_and_body(get: Get, peer: Peer) -> None:
    assert await get(f"{peer.url}/health?deep=1", 2.0) == (200, b'{"status": "ok"}')
    (request,) = peer.requests
    assert (request.method, request.path, request.query) == ("GET", "/health", "deep=1")
    assert request.headers["host"] == peer.url.removeprefix("http://")


@pytest.mark.parametrize("status", [204, 302, 404, 500, 503])
async def test_any_status_is_an_answer(get: Get, peer: Peer, status: int) -> None:
    peer.answer = lambda _: Reply(status, headers={"location": "http://127.0.0.1:1/"})
    assert await get(peer.url, 2.0) == (status, b"")


async def test_a_fresh_connection_each_time(get: Get, peer: Peer) -> None:
    for _ in range(3):
        await get(peer.url, 2.0)
    assert peer.connections == 3


@pytest.mark.parametrize("mode", ["hang", "drip"])
async def test_a_deadline_for_all_of_it(get: Get, peer: Peer, mode: str) -> None:
    peer.mode = mode
    started = trio.current_time()
    with pytest.raises(Unavailable, match=f"^{peer.url}: no answer within 0.2 s$"):
        await get(peer.url, 0.2)
    assert trio.current_time() - started < 1.0


@pytest.mark.parametrize("mode", ["garbage", "drop", "close"])
async def test_no_answer_that_can_be_used(get: Get, peer: Peer, mode: str) -> None:
    peer.mode = mode
    with pytest.raises(Unavailable, match=f"^{peer.url}: .*(not HTTP|complete)") as caught:
        await get(peer.url, 2.0)
    assert "\n" not in str(caught.value)


async def test_a_huge_answer(get: Get, peer: Peer) -> None:
    peer.mode = "huge"
    with pytest.raises(Unavailable, match="its answer is longer than 64 KiB"):
        await get(peer.url, 5.0)


@pytest.mark.parametrize("headers", [{"content-type": "text/plain; charset=\xe9"}, {"set-cookie": "=;;=;"}])
async def test_odd_headers_are_an_answer_or_a_sentence(get: Get, peer: Peer, headers: dict[str, str]) -> None:
    peer.answer = lambda _: Reply(200, b"x", headers=headers)
    try:
        assert await get(peer.url, 2.0) == (200, b"x")
    except Unavailable as error:
        assert str(error).startswith(peer.url)  # noqa: PT017  # either is right


async def test_nobody_there(get: Get) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=f"^{url}: connection refused$"):
        await get(f"{url}/health", 2.0)


async def test_a_name_that_does_not_resolve(get: Get) -> None:
    with pytest.raises(Unavailable, match=r"^http://nowhere\.invalid: its name cannot be resolved"):
        await get("http://nowhere.invalid/", 5.0)


async def test_no_password_in_errors(get: Get) -> None:
    with pytest.raises(Unavailable) as caught:
        await get(f"http://user:geheim@127.0.0.1:{free_port()}/?token=geheim", 2.0)
    assert "geheim" not in str(caught.value)


async def test_ipv6(get: Get) -> None:
    peer = Peer(lambda request: reply(request.headers["host"]))
    async with trio.open_nursery() as nursery:
        try:
            listeners = await trio.open_tcp_listeners(0, host="::1")
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, peer.serve, listeners)
        assert await get(f"http://[::1]:{port}/", 2.0) == (200, f'"[::1]:{port}"'.encode())
        nursery.cancel_scope.cancel()


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch) -> Iterator[trustme.CA]:
    """An authority that an operator has added to this machine's own."""
    authority = trustme.CA()
    with authority.cert_pem.tempfile() as path:
        monkeypatch.setenv("SSL_CERT_FILE", path)
        exchange.trust.cache_clear()
        yield authority
    exchange.trust.cache_clear()


async def test_tls(get: Get, authority: trustme.CA) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    async with serving(Peer(lambda _: reply("ok")), tls=server) as peer:
        assert await get(peer.url, 2.0) == (200, b'"ok"')
        with pytest.raises(Unavailable, match=r"its certificate is not trusted: .*mismatch"):
            await get(peer.url.replace("localhost", "127.0.0.1"), 2.0)


async def test_tls_of_a_stranger(get: Get) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(server)
    async with serving(Peer(lambda _: reply("ok")), tls=server) as peer:
        with pytest.raises(Unavailable, match=f"^{peer.url}: its certificate is not trusted"):
            await get(peer.url, 2.0)
        assert peer.requests == []


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def test_a_handshake_that_never_ends(get: Get) -> None:
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, silent, [listener])
        port = listener.socket.getsockname()[1]
        with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
            await get(f"https://127.0.0.1:{port}/", 0.2)
        gc.collect()  # a socket that was left open would be complained of here
        nursery.cancel_scope.cancel()


async def test_asks_comes_first_and_httpx_stands_in(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def noting(name: str) -> Get:
        async def get(url: str, timeout: float) -> tuple[int, bytes]:
            used.append(name)
            return 200, b""

        return get

    monkeypatch.setattr(http, "get_by_asks", noting("asks"))
    monkeypatch.setattr(http, "get_by_httpx", noting("httpx"))
    await http.get(peer.url)
    monkeypatch.setattr(http, "asks", None)
    await http.get(peer.url)
    assert used == ["asks", "httpx"]
