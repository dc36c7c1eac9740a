"""What the checks look at, found out once for all of them: the settings, the database, the daemon, the peers.

Each is a `Fact`: whoever asks for one that there is not is skipped.
"""

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import trio
from psycopg.errors import InsufficientPrivilege, ProgrammingError

from bloomd.control.answers import Status
from bloomd.control.client import CannotReach, Client, ControlFailure
from bloomd.doctor import proxy
from bloomd.doctor.fact import SECONDS, Fact
from bloomd.doctor.finding import Skip
from bloomd.doctor.users import User, daemon_user
from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.exchange import Answer, exchange
from bloomd.membridge.server.served import Served
from bloomd.objects import address
from bloomd.postgres import Pool
from bloomd.postgres.migrate import SchemaStatus
from bloomd.postgres.migrate import status as compare
from bloomd.runtime import stored
from bloomd.runtime.database import Database
from bloomd.runtime.schema import MIGRATIONS
from bloomd.settings import Loaded, Settings, model

# The daemon may be asked by more than one check at a time; PostgreSQL, too.
CONNECTIONS = 4

# The daemon answers from memory; one that does not is told apart from one that is not there.
ASK_SECONDS = 3.0

NOT_PERMITTED = "our user may not look at it: see postgres.privileges"


class Stuck(Unavailable):
    """The daemon is there, and says nothing."""


class Case:
    """One node, as it is found."""

    def __init__(self, read: Callable[[], Loaded], config: Path | None, option: str) -> None:
        self.config = config
        self.option = option
        """How a command names the configuration, with a blank before it."""
        self.loaded = Fact[Loaded]("the settings cannot be read")
        self.server = Fact[int]("PostgreSQL cannot be reached")
        """Its version, as libpq has it: 150004 is 15.4."""
        self.schema = Fact[SchemaStatus]("it is not known which schema the database has")
        self.stored = Fact[Mapping[str, str]]("what was set through the API is not known")
        self.status = Fact[Status]("no daemon answers")
        self.membridge = Fact[Answer]("Membridge cannot be reached")
        self.minio = Fact[Answer]("MinIO cannot be reached")
        self.certificate = Fact[float]("its certificate is not accepted")
        """When it expires, in epoch seconds."""
        self.front = Fact[Answer]("nginx does not answer")
        """What bloomd says of its health through the nginx of this machine."""
        self._read = read
        self._database = Database()
        self._pool: Pool | None = None

    @property
    def settings(self) -> Settings:
        """Those in force, as far as a command can know: what was set through the API included."""
        return self._loaded_with_stored().settings

    @property
    def any_database(self) -> Database:
        """Whatever is in it; to be read only."""
        self.server.need()
        return self._database

    @property
    def database(self) -> Database:
        """With our tables in it; to be read only."""
        if self.schema.value.pending:
            raise Skip("the database does not have this version's schema")
        return self._database

    def of_process(self, what: Literal["clock_jumps", "notifications", "log_files"]) -> Any:
        """What a daemon tells of its process since it tells it. Raises Skip for an older one."""
        process = self.status.value["process"]
        if what not in process:
            raise Skip("the daemon that runs is older and does not tell that")
        return process[what]

    @property
    def none_runs(self) -> bool:
        """Whether no daemon runs, as far as its control socket tells: one that is stuck or refuses to answer does."""
        return self.status.troubled and not self.status.refused and not isinstance(self.status.trouble, Stuck)

    def need_service(self, name: str) -> None:
        """Raises Skip unless a daemon runs, and this service of it."""
        if any(each["name"] == name and each["state"] != "running" for each in self.status.value["services"]):
            raise Skip(f"the service {name} of the daemon does not run")

    @property
    def user(self) -> User:
        """Whom the daemon runs as."""
        return daemon_user(self.control_socket)

    @property
    def control_socket(self) -> str:
        """Where the daemon is asked: with settings that cannot be read, at the default, if something is there."""
        usual = model.Control().socket
        return usual if self.loaded.troubled and os.path.exists(usual) else self.settings.control.socket

    @property
    def membridge_settings(self) -> model.Membridge:
        """Of the control plane that counts."""
        served = Served(self._loaded_with_stored)
        settings = served.for_client()
        if settings.server_url is None:
            raise Skip("no Membridge is configured")
        if settings.admin_key == served.generated:
            raise Skip("this bloomd serves its Membridge itself, by a key that nobody else knows")
        return settings

    async def ask_daemon(self) -> Status:
        """What `bloomd-ctl status` would show."""

        def ask() -> Status:
            with Client(self.control_socket, timeout=ASK_SECONDS) as client:
                return client.call("status")

        try:
            return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
        except CannotReach as error:
            stuck = isinstance(error.__cause__, TimeoutError | BlockingIOError)
            raise (Stuck if stuck else Unavailable)(str(error)) from error
        except ControlFailure as error:
            raise Misconfigured(str(error)) from error

    async def gather(self) -> None:
        """Find out all of it."""
        await self.loaded.find(self._load)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.status.find, self.ask_daemon)
            nursery.start_soon(self.minio.find, self._ask_minio)
            nursery.start_soon(self._look_at_front)
            await self.server.find(self._connect)
            await self.schema.find(self._compare)
            await self.stored.find(self._read_stored)
            await self.membridge.find(self._ask_membridge)  # which one, the database may say

    async def close(self) -> None:
        if self._pool:
            await self._pool.close()

    def _loaded_with_stored(self) -> Loaded:
        return self.loaded.value.with_stored(self.stored.value if self.stored.known else {})

    async def _load(self) -> Loaded:
        return await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)

    async def _connect(self) -> int:
        settings = self.loaded.value.settings.database
        self._pool = Pool(
            settings.url,
            size=CONNECTIONS,
            connect_timeout=min(SECONDS, settings.connect_timeout),
            statement_timeout=SECONDS,
            application_name="bloomd doctor",
            read_only=True,
        )
        async with self._pool.connection() as connection:
            version = connection.info.server_version
        self._database.open(self._pool, limit=SECONDS)
        return version

    async def _compare(self) -> SchemaStatus:
        self.server.need()
        async with self._database.transaction() as connection:
            try:
                return await compare(connection, MIGRATIONS)
            except InsufficientPrivilege:
                raise Skip(NOT_PERMITTED) from None
            except ProgrammingError as error:
                raise Misconfigured(f"{one_line(error)}: these tables are not those of BLOOM Runtime") from error

    async def _read_stored(self) -> Mapping[str, str]:
        try:
            return await stored.read(self.database)
        except InsufficientPrivilege:
            raise Skip(NOT_PERMITTED) from None

    async def _ask_membridge(self) -> Answer:
        url = self.membridge_settings.server_url
        return await exchange(
            "GET", f"{url}/health", who=f"Membridge at {url}", timeout=SECONDS, limit=proxy.ANSWER_LIMIT
        )

    async def _ask_minio(self) -> Answer:
        settings = self.loaded.value.settings.minio
        if settings.endpoint is None:
            raise Skip("no object store is configured")
        url = f"{'https' if settings.secure else 'http'}://{address(settings)}/minio/health/live"
        return await exchange("GET", url, who="the object store", timeout=SECONDS, limit=proxy.ANSWER_LIMIT)

    async def _look_at_front(self) -> None:
        await self.certificate.find(lambda: proxy.certificate(self.loaded.value.settings.http))
        await self.front.find(self._ask_front)

    async def _ask_front(self) -> Answer:
        if self.certificate.refused:
            self.certificate.need()  # what is behind it cannot be seen
        return await proxy.health(self.loaded.value.settings.http)


@asynccontextmanager
async def gathered(read: Callable[[], Loaded], *, config: Path | None = None, option: str = "") -> AsyncGenerator[Case]:
    """The case of the node with these settings, for as long as the block lasts."""
    case = Case(read, config, option)
    try:
        await case.gather()
        yield case
    finally:
        await case.close()
