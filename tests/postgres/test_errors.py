"""Every refusal and absence, from a real server, in one sentence for an operator, without a secret."""

import traceback
from collections.abc import Iterator
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from servers import PostgresServer, free_port

from bloomd.errors import Misconfigured, Unavailable
from bloomd.postgres import Pool, conninfo, translated
from bloomd.postgres.errors import ConnectFailed, Failure, translate

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def strict() -> Iterator[PostgresServer]:
    """A server that wants a password over TCP, and lets nobody named `stranger` in."""
    with PostgresServer(port=free_port(), settings={"password_encryption": "scram-sha-256"}) as server:
        server.execute(f"CREATE ROLE bloom LOGIN PASSWORD '{PASSWORD}'")
        server.execute("CREATE ROLE nologin NOLOGIN PASSWORD 'x'")
        server.execute("CREATE DATABASE closed")
        server.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
        (server.data / "pg_hba.conf").write_text(
            "local all bloomd trust\n"
            "local all nobody_at_all peer\n"
            "host all stranger 127.0.0.1/32 reject\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
        )
        server.reload()
        yield server


async def connect(server_conninfo: str) -> None:
    async with Pool(server_conninfo, size=1, connect_timeout=2) as pool, pool.connection():
        pass


def url(server: PostgresServer, user: str, password: str, dbname: str = "postgres", query: str = "") -> str:
    return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{server.port}/{dbname}{query}"


async def test_the_right_password_works(strict: PostgresServer) -> None:
    await connect(url(strict, "bloom", PASSWORD))


@pytest.mark.parametrize(
    ("user", "password", "dbname", "query", "message"),
    [
        (
            "bloom",
            "hunter2hunter2",
            "postgres",
            "",
            "password authentication failed.*correct the user and the password",
        ),
        ("bloom", "", "postgres", "", "no password supplied.*put one into the database URL"),
        ("nobody", "hunter2hunter2", "postgres", "", "password authentication failed"),
        ("bloom", PASSWORD, "nothere", "", 'database "nothere" does not exist.*create it'),
        ("bloom", PASSWORD, "closed", "", "permission denied for database.*GRANT CONNECT"),
        ("nologin", "x", "postgres", "", "not permitted to log in.*ALTER ROLE"),
        ("stranger", "hunter2hunter2", "postgres", "", "rejects connection.*pg_hba.conf"),
        ("bloom", PASSWORD, "postgres", "?sslmode=require", "server does not support SSL.*sslmode"),
        ("bloom", PASSWORD, "postgres", "?sslmode=nonsense", "invalid sslmode value.*correct the parameters"),
        ("bloom", PASSWORD, "postgres", "?options=-c%20nonsense%3D1", "nonsense.*correct `options`"),
        ("bloom", PASSWORD, "postgres", "?nonsense=1", "cannot be read.*postgresql://user:password@host"),
    ],
)
async def test_a_refusal_says_what_to_do(
    strict: PostgresServer, user: str, password: str, dbname: str, query: str, message: str
) -> None:
    with pytest.raises(Misconfigured, match=message) as refused:
        await connect(url(strict, user, password, dbname, query))
    assert "\n" not in str(refused.value)
    assert PASSWORD not in str(refused.value)
    assert "hunter2" not in str(refused.value)


async def test_an_unknown_role_and_peer_authentication(strict: PostgresServer) -> None:
    with pytest.raises(Misconfigured, match=r"(?i)peer authentication failed.*connect as that system user"):
        await connect(strict.conninfo().replace("user=bloomd", "user=nobody_at_all"))
    with pytest.raises(Misconfigured, match=r"no pg_hba\.conf entry.*add a line"):
        await connect(strict.conninfo().replace("user=bloomd", "user=somebody"))


async def test_one_host_that_is_away_may_yet_be_the_right_one(strict: PostgresServer) -> None:
    away = free_port()
    two = f"postgresql://bloom:hunter2hunter2@127.0.0.1:{strict.port},localhost:{away}/postgres"
    with pytest.raises(Unavailable, match=r"password authentication failed.*Connection refused"):
        await connect(two)


async def test_two_addresses_of_one_host_are_one_host(strict: PostgresServer) -> None:
    # localhost is ::1 as well on most machines, where this server does not listen.
    with pytest.raises(Misconfigured, match="password authentication failed"):
        await connect(f"postgresql://bloom:hunter2hunter2@localhost:{strict.port}/postgres")
    error = ConnectFailed(
        [
            Failure("db", "db:5432", "connection failed: Connection refused"),
            Failure("db", "db:5432", 'FATAL:  database "x" does not exist'),
        ]
    )
    assert isinstance(translate(error), Misconfigured)


async def test_both_hosts_refuse(strict: PostgresServer) -> None:
    two = f"postgresql://bloom:hunter2hunter2@127.0.0.1:{strict.port},localhost:{strict.port}/postgres"
    with pytest.raises(Misconfigured) as refused:
        await connect(two)
    assert str(refused.value).count("correct the user") == 1


@pytest.mark.parametrize(
    ("conninfo", "message"),
    [
        ("host=127.0.0.1 port=1", "127.0.0.1:1: Connection refused"),
        ("host=/nonexistent", "/nonexistent/.s.PGSQL.5432: No such file or directory"),
        ("host=db.invalid", "db.invalid:5432: the host name 'db.invalid' cannot be resolved"),
    ],
)
async def test_an_absence_is_unavailable(conninfo: str, message: str) -> None:
    with pytest.raises(Unavailable) as away:
        await connect(conninfo)
    assert str(away.value).startswith("PostgreSQL cannot be reached: ")
    assert message in str(away.value)
    assert "\n" not in str(away.value)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("INSERT INTO t VALUES (1)", psycopg.errors.UniqueViolation),
        ("INSERT INTO t VALUES (-1)", psycopg.errors.CheckViolation),
        ("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'BL001'; END $$", psycopg.Error),
        ("DO $$ BEGIN RAISE EXCEPTION 'no'; END $$", psycopg.errors.RaiseException),
        ("SET statement_timeout = 1; SELECT pg_sleep(5)", psycopg.errors.QueryCanceled),
        ("SET lock_timeout = 1; SELECT 1 / 0", psycopg.errors.DivisionByZero),
        ("SELECT nonsense", psycopg.errors.UndefinedColumn),
        ("SELECT * FROM pg_authid", psycopg.errors.InsufficientPrivilege),
    ],
)
async def test_a_statements_own_error_passes_through(pool: Pool, statement: str, error: type[Exception]) -> None:
    async with pool.connection() as connection:
        await connection.execute("CREATE TABLE t (n int PRIMARY KEY CHECK (n > 0))")
        await connection.execute("INSERT INTO t VALUES (1)")
        await connection.execute("CREATE ROLE weak")
    try:
        with pytest.raises(error):
            async with pool.connection() as connection:
                if "pg_authid" in statement:
                    await connection.execute("SET ROLE weak")
                await connection.execute(statement.encode())
    finally:
        await pool.close()
        async with Pool(pool._conninfo, size=1) as other, other.connection() as connection:
            await connection.execute("DROP ROLE weak")


async def test_a_closed_cursor_is_a_bug_and_no_outage(pool: Pool) -> None:
    with pytest.raises(psycopg.InterfaceError):
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT 1")
            await cursor.close()
            await cursor.fetchone()


@pytest.mark.parametrize("state", ["08006", "53100", "53300", "57P01", "57P02", "57P03", "57P05", "25006", "58030"])
def test_states_that_mean_away(state: str) -> None:
    with pytest.raises(Unavailable), translated():
        raise psycopg.errors.lookup(state)("gone")


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "57014", "42501", "3D000", "22P02"])
def test_states_that_belong_to_a_statement(state: str) -> None:
    error = psycopg.errors.lookup(state)
    with pytest.raises(error), translated():
        raise error("yours")


SECRET = "Zq7w"  # whatever is made of it below, no part of it this long may show


@given(
    st.lists(
        st.sampled_from([SECRET, "/", "@", ":", "?", "#", "%", "%2", "&", "=", " ", "'", "[", "]", ","]), min_size=1
    )
)
@example([SECRET, "/", SECRET])
@example([SECRET, "@", SECRET])
@example([SECRET, ":", SECRET])
@example(["/", SECRET])
@example(["@", SECRET, "/"])
@example([SECRET, "?", SECRET, "="])
@example(["[", SECRET])
def test_no_url_is_ever_quoted(parts: list[str]) -> None:
    """A password that somebody forgot to encode: what cannot be read is not repeated, what can has no loose parts."""
    text = f"postgresql://user:{''.join(parts)}@127.0.0.1:5432/name"
    shown: list[str]
    try:
        params = conninfo.parse(text)
        shown = [conninfo.where(params), str(params.get("dbname"))]
    except conninfo.BadConninfo as error:
        shown = traceback.format_exception_only(error)
    assert SECRET not in "".join(shown)


@given(st.text(alphabet=st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1))
def test_an_encoded_password_arrives(password: str) -> None:
    text = f"postgresql://user:{quote(password, safe='')}@127.0.0.1:5432/name"
    assert conninfo.parse(conninfo.complete(text, application_name="a b", statement_timeout=1))["password"] == password
