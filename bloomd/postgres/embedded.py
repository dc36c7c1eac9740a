"""A PostgreSQL server of our own, as a service: made when missing, started, watched, and stopped with us.

    run:  prepare the cluster ─▶ start the server ─▶ wait until it answers ─▶ make the database ─▶ started()
          ─▶ wait for the server's end ─▶ Unavailable, so that the supervisor starts it again
    cancelled:  fast shutdown; immediate shutdown when that takes too long; at last SIGKILL

The server ends with us even after `kill -9`: the kernel signals it (see `cluster`). PostgreSQL then recovers by itself
at the next start; what was committed is kept, because this server is as durable as any other.
"""

import os
import signal
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psycopg
import structlog
import trio
from psycopg import sql

from bloomd.errors import Misconfigured, Unavailable
from bloomd.postgres.cluster import Cluster
from bloomd.postgres.connection import Connection

log = structlog.stdlib.get_logger(__name__)

DATABASE = "bloomd"
# Recovery after a crash replays what was written since the last checkpoint (5 minutes at most): seconds on any disk.
START_SECONDS = 60.0
POLL_SECONDS = 0.02
# Fast shutdown ends all sessions and writes a checkpoint; immediate shutdown only ends.
# For what is thrown away.
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
STOP_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


class Embedded:
    """The server in `directory`; `conninfo` is right once `run` has started."""

    def __init__(self, directory: Path, *, durable: bool = True, quiet: bool = False) -> None:
        """Nothing is there yet.

        Args:
            durable: false for what is thrown away: a crash of the machine may damage it, and it is faster.
            quiet: the log says nothing of it.
        """
        self.cluster = Cluster(directory)
        self._durable = durable
        self._quiet = quiet

    @property
    def conninfo(self) -> str:
        return self.cluster.conninfo(DATABASE)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
            Unavailable: the server did not start, or has ended.
            Misconfigured: it cannot run here; the text says why and what to do.
        """
        server = None
        try:
            await trio.to_thread.run_sync(partial(self.cluster.prepare, durable=self._durable))
            server = self.cluster.spawn({} if self._durable else NOT_DURABLE)
            await self._wait_until_it_answers(server)
            await self._make_database()
            if not self._quiet:
                log.info("embedded PostgreSQL started", directory=str(self.cluster.directory), process=server.pid)
            task_status.started()
            await _ended(server)
            raise Unavailable(f"the embedded PostgreSQL server has ended: {self.cluster.last_words()}")
        finally:
            if server:
                with trio.CancelScope(shield=True):  # every step has its own time limit
                    await _stop(server)
            self.cluster.clean_up()

    async def _wait_until_it_answers(self, server: "subprocess.Popen[bytes]") -> None:
        with trio.move_on_after(START_SECONDS):
            while server.poll() is None:
                try:
                    connection = await Connection.connect(self.cluster.conninfo("postgres"))
                except psycopg.OperationalError:
                    await trio.sleep(POLL_SECONDS)
                else:
                    await connection.close()
                    return
        raise Unavailable(f"the embedded PostgreSQL server did not start: {self.cluster.last_words()}")

    async def _make_database(self) -> None:
        connection = await Connection.connect(self.cluster.conninfo("postgres"))
        try:
            found = await connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
            if not found.rowcount:
                await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        finally:
            await connection.close()


@asynccontextmanager
async def serving(directory: Path, *, durable: bool = True) -> AsyncGenerator[str]:
    """How to connect to the server of a directory, for the length of the block: one that runs there, or else its own.

    Raises:
        Unavailable, Misconfigured: as `Embedded.run`; also while the block runs.
    """
    embedded = Embedded(directory, durable=durable, quiet=True)
    if running := embedded.cluster.running_conninfo(DATABASE):
        yield running
        return
    failures: list[Exception] = []

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await embedded.run(task_status=task_status)
        except (Unavailable, Misconfigured) as failure:
            failures.append(failure)
            nursery.cancel_scope.cancel()
            task_status.started()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        try:
            await trio.lowlevel.checkpoint()  # goes no further when it did not start
            yield embedded.conninfo
        except Exception as failure:  # as it is, and not in a group
            failures.append(failure)
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def _ended(server: "subprocess.Popen[bytes]") -> None:
    """Wait for a child of ours without a thread: its pidfd becomes readable when it ends."""
    if server.poll() is None:
        descriptor = os.pidfd_open(server.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        server.wait()


async def _stop(server: "subprocess.Popen[bytes]") -> None:
    for step, seconds in STOP_STEPS:
        if server.poll() is not None:
            return
        server.send_signal(step)
        with trio.move_on_after(seconds):
            await _ended(server)
