"""What each dependency has to do to be up, against real servers."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from peers import MembridgePeer, Peer, Reply, membridge_peer, reply, serving
from s3_server import S3Server
from servers import PostgresServer, free_port

from bloomd.errors import Misconfigured, Unavailable
from bloomd.objects.address import address
from bloomd.objects.store import Store
from bloomd.probes import Probe, membridge, minio, postgresql
from bloomd.settings.model import Database, Membridge, Minio, Probes

# ----- Membridge


@pytest.fixture
async def peer() -> AsyncIterator[MembridgePeer]:
    async with membridge_peer(key="k") as peer:
        yield peer


async def test_membridge_is_up_without_a_key(peer: MembridgePeer) -> None:
    check = membridge.check(Membridge(server_url=peer.url + "/", admin_key="wrong"))
    assert check is not None
    await check
    assert [request.path for request in peer.requests] == ["/health"]
    assert "x-membridge-admin" not in peer.requests[0].headers


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("500", "answered 500 to GET /health"),
        ("404", "answered 404 to GET /health"),
        ("redirect", "answered 302 to GET /health"),
        ("html", "does not answer like Membridge"),
        ("lie", "does not answer like Membridge"),
        ("garbage", "its answer is not HTTP"),
        ("huge", "its answer is longer than 64 KiB"),
    ],
)
async def test_membridge_is_down(peer: MembridgePeer, mode: str, sentence: str) -> None:
    peer.mode = mode
    probe = Probe("membridge", lambda: membridge.check(Membridge(server_url=peer.url)), lambda: Probes(fall=1))
    status = await probe.now()
    assert status.state == "down"
    assert peer.url in (status.error or "")
    assert sentence in (status.error or "")


def test_membridge_is_not_configured() -> None:
    assert membridge.check(Membridge()) is None


# ----- PostgreSQL


async def test_postgresql_is_up(database: str) -> None:
    await postgresql.check(Database(url=database))


async def test_postgresql_uses_no_place_for_long(database: str) -> None:
    for _ in range(150):  # more than the server has places for
        await postgresql.check(Database(url=database))


async def test_postgresql_is_away() -> None:
    with pytest.raises(Unavailable, match="PostgreSQL"):
        await postgresql.check(Database(url=f"postgresql://bloom@127.0.0.1:{free_port()}/bloom"))


async def test_postgresql_refuses(postgres_server: PostgresServer) -> None:
    with pytest.raises(Misconfigured, match="does not exist"):
        await postgresql.check(Database(url=postgres_server.conninfo("no_such_database")))


async def test_postgresql_is_frozen(postgres_server: PostgresServer, database: str) -> None:
    """In time, although a frozen server neither answers nor takes a cancel request."""
    probe = Probe("postgresql", lambda: postgresql.check(Database(url=database)), lambda: Probes(timeout=0.3, fall=1))
    assert (await probe.now()).state == "up"
    postgres_server.sigstop()
    try:
        started = trio.current_time()
        assert (await probe.now()).state == "down"
        assert trio.current_time() - started < 1.0
    finally:
        postgres_server.sigcont()
    assert (await probe.now()).state == "up"


# ----- MinIO


async def check_minio(settings: Minio) -> None:
    check = minio.check(settings)
    assert check is not None
    await check


def test_minio_is_not_configured() -> None:
    assert minio.check(Minio()) is None


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("minio", "minio:9000"),
        ("minio:9100", "minio:9100"),
        ("10.0.0.1", "10.0.0.1:9000"),
        ("[::1]", "[::1]:9000"),
        ("[::1]:9100", "[::1]:9100"),
    ],
)
def test_the_address_of_an_endpoint(endpoint: str, expected: str) -> None:
    assert address(Minio(endpoint=endpoint)) == expected


async def test_minios_health_route_comes_first() -> None:
    """A stand-in for MinIO, of which no installable server is left: its health route, and nothing else."""
    async with serving(Peer(lambda _: Reply(200))) as stand_in:
        await check_minio(Minio(endpoint=stand_in.url.removeprefix("http://")))
        assert [(request.method, request.path) for request in stand_in.requests] == [("GET", "/minio/health/live")]
        stand_in.mode = "503"
        with pytest.raises(Unavailable, match="answered 503 to GET /minio/health/live"):
            await check_minio(Minio(endpoint=stand_in.url.removeprefix("http://")))
        assert len(stand_in.requests) == 2


async def test_another_s3_server_is_asked_for_the_bucket(s3: S3Server) -> None:
    await check_minio(s3.settings())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"secret_key": "geheim-wrong"}, "refuses the signature: correct minio.secret_key"),
        ({"access_key": "geheim-nobody"}, "does not know the access key: correct minio.access_key"),
        ({"bucket": "missing"}, "has no bucket 'missing': create it, or correct minio.bucket"),
        (
            {"bucket": "no/bucket"},
            "correct minio.endpoint, minio.bucket or minio.region: invalid bucket name no/bucket",
        ),
        ({"access_key": None}, "needs keys: set minio.access_key and minio.secret_key"),
    ],
)
async def test_another_s3_server_refuses(s3: S3Server, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        await check_minio(s3.settings(**changes))
    assert sentence in str(caught.value)
    assert s3.endpoint in str(caught.value)
    assert "geheim" not in str(caught.value)


async def test_minio_is_away() -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=f"^http://{endpoint}: connection refused$"):
        await check_minio(Minio(endpoint=endpoint, access_key="a", secret_key="s"))
    with pytest.raises(Unavailable, match=f"^the object store at {endpoint}: connection refused$"):
        await Store(Minio(endpoint=endpoint, access_key="a", secret_key="s")).check_bucket()


async def test_a_store_that_hangs_holds_up_nothing() -> None:
    """The health route answers, the bucket never does: threads hang, as many as there are places, and time goes on."""

    async with serving(Peer(lambda request: Reply(404))) as stand_in:

        def answer(request: Any) -> Reply:
            stand_in.mode = "hang"  # from the next request on, which is the signed one
            return Reply(404)

        stand_in.answer = answer
        settings = Minio(endpoint=stand_in.url.removeprefix("http://"), access_key="a", secret_key="s")
        probe = Probe("minio", lambda: minio.check(settings), lambda: Probes(timeout=0.2, fall=1))
        for _ in range(4):
            stand_in.mode = "ok"
            started = trio.current_time()
            status = await probe.now()
            assert (status.state, status.error) == ("down", "no answer within 0.2 s")
            assert trio.current_time() - started < 1.0
        signed = [request for request in stand_in.requests if request.method == "HEAD"]
        assert len(signed) == 2


@pytest.mark.parametrize(
    ("status", "error"), [(500, Unavailable), (400, Misconfigured), (409, Unavailable), (405, Unavailable)]
)
async def test_other_answers_of_a_store(status: int, error: type[Exception]) -> None:
    async with serving(Peer(lambda _: reply({}, status))) as stand_in:
        settings = Minio(endpoint=stand_in.url.removeprefix("http://"), access_key="a", secret_key="s")
        with pytest.raises(error, match="the object store at"):
            await Store(settings).check_bucket()
        # What a refusal is about, the answer to HEAD cannot say: it has no body.
        asked = [request.method for request in stand_in.requests]
        assert asked == (["HEAD", "GET"] if error is Misconfigured else ["HEAD"])
