import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trustme
from polling import one
from servers import PostgresServer, free_port

from bloomd.errors import Misconfigured
from bloomd.postgres import Connection, Pool


@dataclass
class Secured:
    server: PostgresServer
    authority: Path
    stranger: Path

    def conninfo(self, host: str = "localhost", authority: Path | None = None) -> str:
        root = authority or self.authority
        where = f"host={host} hostaddr=127.0.0.1 port={self.server.port} user=bloomd dbname=postgres"
        return f"{where} sslmode=verify-full sslrootcert={root}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("tls")
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    stranger.cert_pem.write_to_path(directory / "stranger.pem")
    with PostgresServer(port=free_port()) as server:
        certificate = authority.issue_cert("localhost")
        owner = server.data.stat()
        for name, content in (
            ("server.crt", b"".join(blob.bytes() for blob in certificate.cert_chain_pems)),
            ("server.key", certificate.private_key_pem.bytes()),
        ):
            file = server.data / name
            file.write_bytes(content)
            file.chmod(0o600)
            os.chown(file, owner.st_uid, owner.st_gid)
        (server.data / "pg_hba.conf").write_text("local all all trust\nhostssl all all 127.0.0.1/32 trust\n")
        server.execute("ALTER SYSTEM SET ssl = on")
        server.reload()
        yield Secured(server, directory / "ca.pem", directory / "stranger.pem")


async def test_queries_copies_and_cancellation_over_tls(secured: Secured) -> None:
    async with Pool(secured.conninfo(), size=2) as pool:
        for _ in range(3):
            async with pool.connection() as connection:
                assert await one(connection, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
                text = "x" * 3_000_000
                assert await one(connection, "SELECT %s", text) == text
                with trio.move_on_after(0.05) as scope:
                    await connection.execute("SELECT pg_sleep(600)")
                assert scope.cancelled_caught
                assert await one(connection, "SELECT 1") == 1
        assert pool.stats.idle == 1, "one connection served all of it"


async def test_notifications_over_tls(secured: Secured) -> None:
    async with await Connection.connect(secured.conninfo()) as connection:
        await connection.execute("LISTEN news")
        await connection.execute("SELECT pg_notify('news', 'over TLS')")
        async for notification in connection.notifies(timeout=5, stop_after=1):
            assert notification.payload == "over TLS"


async def test_the_wrong_authority_and_the_wrong_name(secured: Secured) -> None:
    for conninfo in (
        secured.conninfo(authority=secured.stranger),
        secured.conninfo(host="db.example.org"),
        secured.conninfo(authority=Path("/nonexistent/ca.pem")),
    ):
        with pytest.raises(Misconfigured, match="sslrootcert"):
            async with Pool(conninfo, size=1) as pool, pool.connection():
                pytest.fail("it must not be trusted")


async def test_without_tls_the_server_has_no_entry_for_us(secured: Secured) -> None:
    with pytest.raises(Misconfigured, match=r"pg_hba\.conf"):
        conninfo = secured.conninfo().replace("verify-full", "disable")
        async with Pool(conninfo, size=1) as pool, pool.connection():
            pytest.fail("the server wants TLS")
