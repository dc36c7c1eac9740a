"""The client of Membridge against a real server that is well, slow, broken or somebody else."""

import gzip
import random
import socket
import tracemalloc
from itertools import pairwise

import pytest
import trio
import trio.testing
from peers import MembridgePeer, Reply, Request, membridge_peer, new_agent, old_agent, reply

from bloomd.errors import Misconfigured, Unavailable
from bloomd.membridge.client import ANSWER_LIMIT, CALLS_AT_ONCE, KEY_HEADER, Health, MembridgeClient, ServerHealth
from bloomd.supervisor import Backoff

KEY = "the-admin-key-of-the-tests"
IMPATIENT = Backoff(first=0.001, cap=0.002)


async def test_health_is_asked_without_the_key(client: MembridgeClient, peer: MembridgePeer) -> None:
    peer.agents = [old_agent("w1")]
    health = await client.health()
    assert health == ServerHealth("ok", "membridge-control-plane", "0.4.0", projects=0, agents=1)
    assert KEY_HEADER.lower() not in peer.requests[0].headers


async def test_agents_of_both_generations(client: MembridgeClient, peer: MembridgePeer) -> None:
    peer.agents = [old_agent("w1"), new_agent("w2")]
    old, new = await client.agents()
    assert (old.id, old.status, old.capabilities, old.last_seen_ms) == ("w1", "unknown", None, None)
    assert (new.id, new.node_id, new.capabilities) == ("w2", "w2", new_agent("w2")["capabilities"])
    assert peer.requests[0].headers[KEY_HEADER.lower()] == KEY


async def test_cancelled_calls_leave_nothing_behind(peer: MembridgePeer) -> None:
    """Calls that are given up at any moment, many at once; then the server is reached as on the first day."""
    client = MembridgeClient(peer.url, KEY, timeout=2.0)
    moments = random.Random(0)

    async def impatient() -> None:
        for _ in range(20):
            with trio.move_on_after(moments.random() * 0.02):
                await client.agents()

    async with trio.open_nursery() as nursery:
        for _ in range(2 * CALLS_AT_ONCE):
            nursery.start_soon(impatient)
    async with trio.open_nursery() as nursery:
        for _ in range(2 * CALLS_AT_ONCE):
            nursery.start_soon(client.agents)


async def test_who_finds_no_place_waits_no_longer_than_others(peer: MembridgePeer) -> None:
    client = MembridgeClient(peer.url, KEY, timeout=0.3)
    peer.mode = "hang"
    heard: list[str] = []

    async def call() -> None:
        with pytest.raises(Unavailable) as caught:
            await client.agents()
        heard.append(str(caught.value))

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(CALLS_AT_ONCE + 5):
            nursery.start_soon(call)
    assert trio.current_time() - started < 2.0
    assert set(heard) == {f"Membridge at {peer.url}: no answer within 0.3 s"}
    assert len(heard) == CALLS_AT_ONCE + 5
    assert len(peer.requests) == CALLS_AT_ONCE


async def test_a_body_and_a_query_are_passed_on(client: MembridgeClient, peer: MembridgePeer) -> None:
    answer = await client.request("POST", "/projects/0123456789abcdef/leadership/select", json={"primary_node_id": "n"})
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert peer.primary == {"0123456789abcdef": "n"}
    await client.request("GET", "/jobs", query="limit=5&q=a%20b")
    assert peer.requests[-1].query == "limit=5&q=a%20b"


async def test_a_status_under_500_is_an_answer(client: MembridgeClient, peer: MembridgePeer) -> None:
    for status in (401, 404, 422):
        peer.mode = str(status)
        assert (await client.request("GET", "/projects")).status == status
    assert len(peer.requests) == 3
    assert client.calls.connected


async def test_safe_calls_are_tried_four_times(client: MembridgeClient, peer: MembridgePeer) -> None:
    peer.mode = "500"
    with pytest.raises(Unavailable, match=f"Membridge at {peer.url} answered 500 to GET /agents"):
        await client.agents()
    assert len(peer.requests) == 4


async def test_unsafe_calls_are_tried_once(client: MembridgeClient, peer: MembridgePeer) -> None:
    for number, mode in enumerate(("500", "close"), 1):
        peer.mode = mode
        with pytest.raises(Unavailable):
            await client.request("POST", "/sync/push", json={"project": "p", "agent": "a"})
        assert len(peer.requests) == number


async def test_one_try_when_no_retry_is_wanted(client: MembridgeClient, peer: MembridgePeer) -> None:
    peer.mode = "500"
    with pytest.raises(Unavailable):
        await client.health(retry=False)
    assert len(peer.requests) == 1


async def test_a_retry_that_succeeds_is_a_success(client: MembridgeClient, peer: MembridgePeer) -> None:
    answers = iter([Reply(503), Reply(500), reply([old_agent("w1")])])
    peer.answer = lambda _: next(answers)
    assert [agent.id for agent in await client.agents()] == ["w1"]
    assert len(peer.requests) == 3
    assert client.calls.consecutive_failures == 0


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("garbage", "its answer is not HTTP"),
        ("drop", "the connection was closed before the answer was complete"),
        ("close", "the connection was closed before the answer was complete"),
        ("html", "does not answer like Membridge: its /agents is not JSON"),
        ("lie", "does not answer like Membridge: its /agents is not a JSON array"),
        ("404", "answered 404 to GET /agents"),
    ],
)
async def test_an_answer_that_is_none(client: MembridgeClient, peer: MembridgePeer, mode: str, sentence: str) -> None:
    peer.mode = mode
    with pytest.raises(Unavailable, match=sentence) as caught:
        await client.agents()
    assert peer.url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert client.calls.last_error == str(caught.value)


async def test_a_compressed_answer_is_left(client: MembridgeClient, peer: MembridgePeer) -> None:
    peer.answer = lambda _: Reply(200, gzip.compress(b"[]"), headers={"content-encoding": "gzip"})
    with pytest.raises(Unavailable, match="its answer is compressed"):
        await client.agents()
    assert peer.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("mode", ["html", "lie"])
async def test_a_health_that_is_none(client: MembridgeClient, peer: MembridgePeer, mode: str) -> None:
    peer.mode = mode
    with pytest.raises(Unavailable, match="does not answer like Membridge"):
        await client.health()


async def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        client = MembridgeClient(url, KEY, retry=IMPATIENT)
        with pytest.raises(Unavailable, match=f"^Membridge at {url}: connection refused$"):
            await client.agents()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://membridge.invalid:8000", "its name cannot be resolved"),
        ("http://a..b", "its URL is not a valid http or https one"),
        ("http://xn--a", "its URL is not a valid http or https one"),
    ],
)
async def test_a_name_that_does_not_resolve(url: str, sentence: str) -> None:
    client = MembridgeClient(url, KEY, retry=IMPATIENT)
    with pytest.raises(Unavailable, match=sentence):
        await client.health(retry=False)


@pytest.mark.parametrize("mode", ["hang", "drip"])
async def test_a_call_ends_in_time_and_is_not_repeated(peer: MembridgePeer, mode: str) -> None:
    client = MembridgeClient(peer.url, KEY, timeout=0.3)
    peer.mode = mode
    started = trio.current_time()
    with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
        await client.agents()
    assert trio.current_time() - started < 2.0
    assert len(peer.requests) == 1


async def test_a_huge_answer_is_left(client: MembridgeClient, peer: MembridgePeer) -> None:
    peer.mode = "huge"
    tracemalloc.start()
    with pytest.raises(Unavailable, match="its answer is longer than 8 MiB"):
        await client.request("GET", "/projects")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * ANSWER_LIMIT
    assert len(peer.requests) == 1


async def test_a_redirect_is_not_followed_and_the_key_stays(client: MembridgeClient, peer: MembridgePeer) -> None:
    async with membridge_peer(key=None) as elsewhere:
        peer.mode, peer.redirect_to = "redirect", f"{elsewhere.url}/agents?token=secret"
        for call in (client.agents, lambda: client.request("GET", "/projects")):
            with pytest.raises(Misconfigured, match=f"redirects to {elsewhere.url}, which is not followed") as caught:
                await call()
            assert "secret" not in str(caught.value)
        assert elsewhere.requests == []


@pytest.mark.parametrize(("key", "sentence"), [("wrong", "refuses the admin key"), (None, "wants an admin key")])
async def test_a_key_that_is_not_taken(peer: MembridgePeer, key: str | None, sentence: str) -> None:
    client = MembridgeClient(peer.url, key)
    for call in (client.agents, client.check_key):
        with pytest.raises(Misconfigured, match=sentence) as caught:
            await call()
        assert "membridge.admin_key" in str(caught.value)
        assert "wrong" not in str(caught.value)
    assert len(peer.requests) == 2


async def test_the_health_of_the_calls_is_kept(peer: MembridgePeer) -> None:
    client = MembridgeClient(peer.url, KEY, retry=IMPATIENT, wall_clock=lambda: 1_700_000_000.5)
    assert (client.calls, client.calls.connected) == (Health(), False)
    await client.agents()
    assert client.calls == Health(last_success=1_700_000_000_500)
    assert client.calls.connected
    peer.mode = "500"
    for failures in (1, 2):
        with pytest.raises(Unavailable):
            await client.agents()
        assert client.calls == Health(
            failures, 1_700_000_000_500, f"Membridge at {peer.url} answered 500 to GET /agents"
        )
    assert not client.calls.connected
    peer.mode = "ok"
    await client.health()
    assert client.calls == Health(last_success=1_700_000_000_500)


async def test_lies_are_failures_in_a_row(client: MembridgeClient, peer: MembridgePeer) -> None:
    peer.mode = "lie"
    for failures, call in enumerate((client.agents, client.health, client.agents), 1):
        with pytest.raises(Unavailable):
            await call()
        assert (client.calls.consecutive_failures, client.calls.last_success) == (failures, None)


async def test_a_hanging_call_delays_no_other(client: MembridgeClient, peer: MembridgePeer) -> None:
    peer.mode = "hang"
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(client.request, "GET", "/jobs")
        await peer.received(8)
        peer.mode = "ok"
        with trio.fail_after(0.5):
            await client.agents()
        nursery.cancel_scope.cancel()


async def test_a_path_in_the_url_is_kept(peer: MembridgePeer) -> None:
    client = MembridgeClient(f"{peer.url}/membridge/", KEY)
    await client.request("GET", "/jobs")
    assert peer.requests[0].path == "/membridge/jobs"


@pytest.mark.parametrize(
    "url", ["", "membridge", "ftp://h/", "http://", "http://h:x/", "http://h/?a=1", "http://[::1", "http://h/\ud800"]
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"membridge\.server_url is not an http or https URL"):
        MembridgeClient(url)


def test_no_secret_in_errors() -> None:
    with pytest.raises(Misconfigured) as caught:
        MembridgeClient("http://h", "geheim\nX-Other: 1")
    assert "geheim" not in str(caught.value)
    client = MembridgeClient("http://user:geheim@h:8000/geheim", "geheim")
    assert repr(client).startswith("<Membridge at http://h:8000, ")
    assert "geheim" not in repr(client)


async def test_pauses_between_tries(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []

    async def away(*_: object, **__: object) -> None:
        tries.append(trio.current_time())
        raise Unavailable("away")

    monkeypatch.setattr("bloomd.membridge.client.exchange", away)
    client = MembridgeClient("http://127.0.0.1:1", timeout=10.0)
    with pytest.raises(Unavailable):
        await client.agents()
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert len(pauses) == 3
    for pause, most in zip(pauses, (0.5, 1.0, 2.0), strict=True):
        assert 0.7 * most <= pause <= most
    tries.clear()
    short = MembridgeClient("http://127.0.0.1:1", timeout=1.0)
    started = trio.current_time()
    with pytest.raises(Unavailable, match="away"):
        await short.agents()
    assert trio.current_time() - started < 1.0
    assert len(tries) == 2


async def test_a_call_may_take_longer_than_others(peer: MembridgePeer) -> None:
    client = MembridgeClient(peer.url, KEY, timeout=0.1)
    at_once = peer.answer

    async def late(request: Request) -> Reply:
        await trio.sleep(0.3)
        return at_once(request)

    peer.answer = late
    with pytest.raises(Unavailable, match=r"no answer within 0\.1 s"):
        await client.request("POST", "/sync/push", json={})
    assert (await client.request("POST", "/sync/push", json={}, timeout=20)).status == 200
