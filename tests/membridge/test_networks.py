"""Where worker URLs may lead, on the address that is really connected to."""

import socket
import ssl
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio
import trustme
from peers import Peer, Reply, Request, reply, serving

from bloomd.errors import Unavailable
from bloomd.exchange import exchange, trust
from bloomd.membridge.networks import allowed, connect
from bloomd.settings.model import Workers

DEFAULT = Workers().allowed_networks
EVERYTHING = ("0.0.0.0/0", "::/0")


@pytest.mark.parametrize(
    ("address", "by_default", "by_everything"),
    [
        ("127.0.0.1", True, True),
        ("10.1.2.3", True, True),
        ("100.64.0.1", True, True),
        ("192.168.1.1", True, True),
        ("::1", True, True),
        ("fd00::1", True, True),
        ("::ffff:10.1.2.3", True, True),
        ("8.8.8.8", False, True),
        ("172.32.0.1", False, True),
        ("2001:db8::1", False, True),
        ("::ffff:8.8.8.8", False, True),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("fe80::1", False, False),
        ("fe80::1%1", False, False),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
    ],
)
def test_addresses(address: str, by_default: bool, by_everything: bool) -> None:
    assert allowed(address, DEFAULT) is by_default
    assert allowed(address, EVERYTHING) is by_everything


def test_no_network_no_address() -> None:
    assert not allowed("127.0.0.1", ())


async def get(url: str, *networks: str) -> tuple[int, bytes]:
    checked = partial(connect, networks=networks)
    answer = await exchange("GET", url, who="the agent", timeout=2.0, limit=1024, connect=checked)
    return answer.status, answer.body


def peer() -> Peer:
    return Peer(lambda request: reply(request.headers["host"]))


async def test_a_permitted_address() -> None:
    async with serving(peer()) as there:
        assert await get(there.url, "127.0.0.0/8") == (200, f'"{there.url[7:]}"'.encode())


async def test_an_address_outside_is_not_connected_to() -> None:
    async with serving(peer()) as there:
        with pytest.raises(Unavailable, match=r"^127\.0\.0\.1 is outside workers\.allowed_networks$"):
            await get(there.url, "10.0.0.0/8")
        assert there.connections == 0


@pytest.mark.parametrize("spelling", ["2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "localhost"])
async def test_no_spelling_gets_round_it(spelling: str) -> None:
    async with serving(peer()) as there:
        with pytest.raises(Unavailable, match="is outside"):
            await get(there.url.replace("127.0.0.1", spelling), "10.0.0.0/8")
        assert there.connections == 0


@pytest.fixture
async def names() -> AsyncIterator[dict[str, list[str]]]:
    """What names resolve to, one answer after the other."""
    answers: dict[str, list[str]] = {}

    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: Any, port: Any, *_: Any) -> Any:
            name = host.decode() if isinstance(host, bytes) else host
            found = answers[name].pop(0).split(",")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

        async def getnameinfo(self, *_: Any) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Resolver())
    yield answers
    trio.socket.set_custom_hostname_resolver(None)


async def test_the_checked_address_is_the_one_connected_to(names: dict[str, list[str]]) -> None:
    names["worker.test"] = ["127.0.0.1", "169.254.169.254"]
    async with serving(peer()) as there:
        port = there.url.rpartition(":")[2]
        assert await get(f"http://worker.test:{port}", "127.0.0.0/8") == (200, f'"worker.test:{port}"'.encode())
        assert names["worker.test"] == ["169.254.169.254"]
        with pytest.raises(Unavailable, match=r"169\.254\.169\.254 is outside"):
            await get(f"http://worker.test:{port}", "127.0.0.0/8")


async def test_of_several_addresses_only_permitted_ones_count(names: dict[str, list[str]]) -> None:
    names["worker.test"] = ["8.8.8.8,127.0.0.2,127.0.0.1"]
    async with serving(peer()) as there:
        port = there.url.rpartition(":")[2]
        assert (await get(f"http://worker.test:{port}", "127.0.0.0/8"))[0] == 200


async def test_tls_checks_the_name_of_the_url(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("worker.test").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    monkeypatch.setattr("bloomd.exchange.trust", lambda: client)

    def answer(_: Request) -> Reply:
        return Reply(204)

    async with serving(Peer(answer), tls=server) as there:
        port = there.url.rpartition(":")[2]
        names |= {"worker.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
        assert (await get(f"https://worker.test:{port}", "127.0.0.0/8"))[0] == 204
        with pytest.raises(Unavailable, match="its certificate is not trusted: Hostname mismatch"):
            await get(f"https://other.test:{port}", "127.0.0.0/8")
        monkeypatch.setattr("bloomd.exchange.trust", trust)
        names["worker.test"] = ["127.0.0.1"]
        with pytest.raises(Unavailable, match="its certificate is not trusted"):
            await get(f"https://worker.test:{port}", "127.0.0.0/8")
