"""The service that keeps the database open: connects, checks the schema, notices when PostgreSQL goes and comes back.

Other settings are taken over without a gap: `prepare` makes a pool for them and checks it, `take` puts it in the place
of the one in use, and what runs on the old one finishes there.
"""

from collections.abc import Callable

import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.postgres import Connection, Pool, translated
from bloomd.postgres.migrate import SchemaStatus, migrate, status
from bloomd.runtime.database import Database
from bloomd.runtime.schema import MIGRATIONS, explained
from bloomd.settings import model

log = structlog.stdlib.get_logger(__name__)

# A server that goes is noticed within this time, and at once when somebody's statement fails.
WATCH_INTERVAL = 1.0

# A server that does not answer the simplest question for this long is frozen, or as good as.
WATCH_TIMEOUT = 5.0

# PostgreSQL ends a statement that runs too long by itself; one that has not done so after this long never will.
CLIENT_MARGIN = 5.0

# What the deployment guide promises, and the oldest that is still maintained.
OLDEST_SERVER = 140000

STOPPING = "bloomd is stopping"
STOPPED = "the database service of this bloomd is stopped; `bloomd-ctl start database` starts it"


class Connector:
    def __init__(
        self,
        database: Database,
        settings: Callable[[], model.Database],
        *,
        auto_migrate: bool = False,
        config_option: str = "",
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`stopping`: whether this service ends because all of bloomd does."""
        self._database = database
        self._settings = settings
        self._auto_migrate = auto_migrate
        self._config_option = config_option
        self._stopping = stopping
        self._pool: Pool | None = None
        self._taken = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the database open until cancelled.

        Raises:
            Unavailable: PostgreSQL is away, or has gone.
            Misconfigured: it refuses us, or its schema is not ours; the text has the command that helps.
        """
        reason = None
        try:
            self._open(await self.prepare(self._settings()))
            task_status.started()
            while True:
                self._taken = False
                await self._watch(self._settings())
        except (Unavailable, Misconfigured) as error:
            reason = one_line(error)
            raise
        finally:
            self._database.close(reason or (STOPPING if self._stopping() else STOPPED))
            pool, self._pool = self._pool, None
            if pool:
                with trio.CancelScope(shield=True):  # closes what is idle: nothing to wait for
                    await pool.close()

    async def prepare(self, settings: model.Database) -> Pool:
        """A pool for these settings, to a database that answers and has our schema.

        Raises:
            Unavailable: it does not answer.
            Misconfigured: it refuses us, or its schema is not ours.
        """
        pool = Pool(
            settings.url,
            size=settings.pool_size,
            connect_timeout=settings.connect_timeout,
            statement_timeout=settings.statement_timeout,
        )
        try:
            async with pool.connection() as connection:
                _check_version(connection.info.server_version)
                with explained():
                    if self._auto_migrate:
                        await migrate(connection, MIGRATIONS, report=_report)
                    schema = await status(connection, MIGRATIONS)
            _check(schema, self._config_option)
            self._database.schema = schema.current
        except BaseException:
            with trio.CancelScope(shield=True):
                await pool.close()
            raise
        return pool

    def take(self, pool: Pool) -> Pool | None:
        """Use this pool from now on; the one that was in use until now, for the caller to close, or to take again."""
        before = self._open(pool)
        self._taken = True
        self._database.doubted.set()
        return before

    def _open(self, pool: Pool) -> Pool | None:
        before, self._pool = self._pool, pool
        self._database.open(pool, limit=self._settings().statement_timeout + CLIENT_MARGIN)
        return before

    async def _watch(self, settings: model.Database) -> None:
        """Return when another pool was taken; raise when the server is gone."""
        with translated():
            connection = await Connection.connect(settings.url, connect_timeout=settings.connect_timeout)
            try:
                while not self._taken:
                    with trio.fail_after(WATCH_TIMEOUT):
                        await connection.execute("SELECT 1")
                    with trio.move_on_after(WATCH_INTERVAL):
                        await self._database.doubted.wait()
                    self._database.doubted = trio.Event()
            except trio.TooSlowError:
                raise Unavailable(f"PostgreSQL has not answered for {WATCH_TIMEOUT:.0f} s") from None
            finally:
                with trio.CancelScope(shield=True):
                    await connection.close()


def _check_version(version: int) -> None:
    """`version` as libpq has it: 150004 is 15.4."""
    if version < OLDEST_SERVER:
        raise Misconfigured(
            f"this is PostgreSQL {version // 10000}, and bloomd needs {OLDEST_SERVER // 10000} or newer; upgrade it"
        )


def _check(schema: SchemaStatus, config_option: str) -> None:
    if schema.changed:
        names = ", ".join(map(str, schema.changed))
        raise Misconfigured(f"the database was migrated by another build of this version: migration {names} differs")
    if schema.newer:
        raise Misconfigured(
            f"the database has schema {schema.current}, newer than this bloomd knows ({schema.latest}); "
            "run the bloomd that made it, or a newer one"
        )
    if schema.pending:
        raise Misconfigured(
            f"the database has {f'schema {schema.current}' if schema.current else 'no schema yet'}, and this bloomd "
            f"needs {schema.latest}; run `bloomd migrate{config_option}`, then `bloomd-ctl restart database`"
        )


def _report(line: str) -> None:
    log.warning("database adopted", change=line)
