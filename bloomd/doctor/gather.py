"""Finding out what the checks look at: once for all of them, at once where one does not need the other, and in time."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from psycopg.errors import InsufficientPrivilege, ProgrammingError

from bloomd.doctor import proxy
from bloomd.doctor.case import Case
from bloomd.doctor.fact import SECONDS
from bloomd.doctor.finding import NOT_PERMITTED, Skip
from bloomd.errors import Misconfigured, one_line
from bloomd.exchange import Answer, exchange
from bloomd.objects.address import address
from bloomd.postgres import Pool
from bloomd.postgres.migrate import SchemaStatus, status
from bloomd.probes import minio
from bloomd.runtime import stored
from bloomd.runtime.schema import MIGRATIONS
from bloomd.settings import Loaded

# For the checks that ask PostgreSQL at the same time.
CONNECTIONS = 4


@asynccontextmanager
async def gathered(read: Callable[[], Loaded], *, config: Path | None = None, option: str = "") -> AsyncGenerator[Case]:
    """The case of the node with these settings, whose database can be asked for as long as the block lasts."""
    case = Case(config, option)
    await case.loaded.find(partial(trio.to_thread.run_sync, read, abandon_on_cancel=True))
    async with AsyncExitStack() as stack:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(case.status.find, case.ask_daemon)
            nursery.start_soon(case.minio.find, partial(_ask_minio, case))
            nursery.start_soon(_look_at_front, case)
            await case.server.find(partial(_connect, case, stack))
            await case.schema.find(partial(_compare, case))
            await case.stored.find(partial(_read_stored, case))
            await case.membridge.find(partial(_ask_membridge, case))  # which one, the database may say
        yield case


async def _connect(case: Case, stack: AsyncExitStack) -> int:
    settings = case.loaded.value.settings.database
    pool = Pool(
        settings.url,
        size=CONNECTIONS,
        connect_timeout=min(SECONDS, settings.connect_timeout),
        statement_timeout=SECONDS,
        application_name="bloomd doctor",
        read_only=True,
    )
    await stack.enter_async_context(pool)
    async with pool.connection() as connection:
        version = connection.info.server_version
    case.connected.open(pool, limit=SECONDS)
    return version


async def _compare(case: Case) -> SchemaStatus:
    async with case.any_database.transaction() as connection:
        try:
            return await status(connection, MIGRATIONS)
        except InsufficientPrivilege:
            raise Skip(NOT_PERMITTED) from None
        except ProgrammingError as error:
            raise Misconfigured(f"{one_line(error)}: these tables are not those of BLOOM Runtime") from error


async def _read_stored(case: Case) -> Mapping[str, str]:
    try:
        return await stored.read(case.database)
    except InsufficientPrivilege:
        raise Skip(NOT_PERMITTED) from None


async def _ask_membridge(case: Case) -> Answer:
    url = str(case.membridge_settings.server_url)
    return await _ask(url, "/health", f"Membridge at {url}")


async def _ask_minio(case: Case) -> Answer:
    settings = case.loaded.value.settings.minio
    if settings.endpoint is None:
        raise Skip("no object store is configured")
    url = f"{'https' if settings.secure else 'http'}://{address(settings)}"
    return await _ask(url, minio.HEALTH, f"the object store at {url}")


async def _ask(url: str, path: str, who: str) -> Answer:
    return await exchange("GET", url + path, who=who, timeout=SECONDS, limit=proxy.ANSWER_LIMIT)


async def _look_at_front(case: Case) -> None:
    await case.certificate.find(lambda: proxy.certificate(case.loaded.value.settings.http))
    await case.front.find(partial(_ask_front, case))


async def _ask_front(case: Case) -> Answer:
    if case.certificate.refused:
        case.certificate.need()  # what is behind it cannot be seen
    return await proxy.health(case.loaded.value.settings.http)
