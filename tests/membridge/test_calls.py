"""A call to an agent: where the key goes, what comes back, and whether anything was sent."""

import ssl

import pytest
import trio
import trio.testing
import trustme
from peers import Peer, Reply, reply, serving

from bloomd.errors import Unavailable
from bloomd.exchange import NotWorthRetrying
from bloomd.membridge import calls as module
from bloomd.membridge.calls import AgentAnswer, NotReached, call

KEY = "the-agent-key-of-the-tests"
LOOPBACK = ("127.0.0.0/8",)


async def ask(url: str, *, timeout: float = 5.0, key: str | None = KEY, limit: int = 1024 * 1024) -> AgentAnswer:
    return await call(
        "POST", url, "/clone", key=key, networks=LOOPBACK, timeout=timeout, body={"repo": "é"}, limit=limit
    )


async def test_what_is_sent_and_what_comes_back() -> None:
    async with serving(Peer(lambda _: reply({"ok": True, "path": "/srv/p"}))) as agent:
        assert await ask(agent.url + "/") == AgentAnswer(200, {"ok": True, "path": "/srv/p"})
    (request,) = agent.requests
    assert (request.method, request.path, request.query) == ("POST", "/clone", "")
    assert request.headers["x-membridge-agent"] == KEY
    assert request.headers["content-type"] == "application/json"
    assert request.json == {"repo": "é"}


async def test_neither_key_nor_body() -> None:
    async with serving(Peer(lambda _: reply({}))) as agent:
        await call("GET", agent.url, "/repos", key=None, networks=LOOPBACK, timeout=5.0)
    (request,) = agent.requests
    assert request.body == b""
    assert "content-type" not in request.headers
    assert not [name for name in request.headers if name.startswith("x-") or name == "authorization"]


@pytest.mark.parametrize("status", [201, 401, 422, 500, 503])
async def test_every_status_is_an_answer(status: int) -> None:
    async with serving(Peer(lambda _: reply({"detail": "so"}, status))) as agent:
        assert await ask(agent.url) == AgentAnswer(status, {"detail": "so"})


@pytest.mark.parametrize("body", [b"", b"[1]", b'"ok"', b"null", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 9999])
async def test_what_is_no_json_object(body: bytes) -> None:
    async with serving(Peer(lambda _: Reply(200, body))) as agent:
        assert await ask(agent.url) == AgentAnswer(200, {})


async def test_a_long_answer() -> None:
    text = "x" * (3 * 1024 * 1024)
    async with serving(Peer(lambda _: reply({"output": text}))) as agent:
        answer = await ask(agent.url, limit=8 * 1024 * 1024)
    assert answer.said == {"output": text}


async def test_a_redirect_is_not_followed() -> None:
    async with serving(Peer(lambda _: reply({"ok": True}))) as thief, serving(Peer(lambda _: reply({}))) as agent:
        agent.mode, agent.redirect_to = "redirect", thief.url
        assert await ask(agent.url) == AgentAnswer(302, {})
    assert thief.connections == 0


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("garbage", "the agent: its answer is not HTTP"),
        ("drop", "the agent: the connection was closed before the answer was complete"),
        ("close", "the agent: the connection was closed before the answer was complete"),
        ("huge", "the agent: its answer is longer than 1 MiB"),
        ("hang", "the agent: no answer within 0.2 s"),
        ("drip", "the agent: no answer within 0.2 s"),
    ],
)
async def test_the_agent_may_have_begun(mode: str, error: str) -> None:
    async with serving(Peer(lambda _: reply({}))) as agent:
        agent.mode = mode
        with pytest.raises(Unavailable) as caught:
            await ask(agent.url, timeout=0.2 if mode in ("hang", "drip") else 5.0)
    assert not isinstance(caught.value, NotReached)
    assert str(caught.value) == error
    assert isinstance(caught.value, NotWorthRetrying) == (mode in ("huge", "hang", "drip"))


async def test_nobody_listens() -> None:
    async with serving(Peer(lambda _: reply({}))) as agent:
        pass
    with pytest.raises(NotReached, match="the agent: connection refused"):
        await ask(agent.url)


async def test_an_address_outside() -> None:
    async with serving(Peer(lambda _: reply({}))) as agent:
        with pytest.raises(NotReached, match=r"127\.0\.0\.1 is outside workers\.allowed_networks"):
            await call("POST", agent.url, "/restart", key=KEY, networks=("10.0.0.0/8",), timeout=5.0)
    assert agent.connections == 0


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://[", "http://a..b", "http://127.0.0.1:99999"])
async def test_a_url_that_leads_nowhere(url: str) -> None:
    with pytest.raises(NotReached):
        await ask(url)


@pytest.mark.parametrize("timeout", [1.0, 3600.0])
async def test_who_takes_no_connection_is_given_up_early(
    timeout: float, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody_answers(host: str, port: int, *, networks: tuple[str, ...]) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(module, "connect", nobody_answers)
    started = trio.current_time()
    with pytest.raises(NotReached, match="within"):
        await ask("http://127.0.0.1:1", timeout=timeout)
    assert trio.current_time() - started == pytest.approx(min(timeout, module.CONNECT_SECONDS))


async def test_a_certificate_that_is_not_trusted_gets_no_key() -> None:
    stranger = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(stranger)
    async with serving(Peer(lambda _: reply({})), tls=stranger) as agent:
        with pytest.raises(NotReached, match="certificate is not trusted"):
            await ask(agent.url)
    assert agent.requests == []


@pytest.mark.parametrize("mode", ["garbage", "drop", "huge", "hang", "close", "away", "foreign"])
async def test_no_error_holds_the_key(mode: str) -> None:
    url = "http://127.0.0.1:1"
    async with serving(Peer(lambda _: reply({}))) as agent:
        if mode == "foreign":
            url = agent.url.replace("127.0.0.1", "192.0.2.1")
        elif mode != "away":
            agent.mode, url = mode, agent.url
        with pytest.raises(Unavailable) as caught:
            await ask(url, timeout=0.2 if mode == "hang" else 5.0)
    assert KEY not in str(caught.value)
    assert KEY not in repr(caught.value)
