"""Makes a backup each day, verifies it, and removes old ones; the leader does it.

Whether one is due is decided by the table of those that were tried (`bloomd.runtime.backups`), whoever tried them: a
night that was missed, because nobody led then, is made up for as soon as somebody does.

In the directory::

    bloomd-20260225-0330.tar              one of the `keep` latest, or the last one that lacked no object
    bloomd-20260225-0330.tar.part         under way
    bloomd-20260225-0330.tar.unverified   the last one that was found not to be what it should be
"""

import os
import pwd
import shutil
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

import structlog
import trio

from bloomd.backup.archive import BadArchive
from bloomd.backup.configuration import files_of
from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.runtime import backups
from bloomd.runtime.backups import Known, Tried
from bloomd.runtime.database import Database
from bloomd.settings import Loaded

log = structlog.stdlib.get_logger(__name__)

# The clock of the machine may be set, and the settings may change: both are looked at again after this long.
LOOK_SECONDS = 60.0

# After a failure.
RETRY_SECONDS = 3600.0

# Who is cancelled has so long to say so.
LAST_WORD_SECONDS = 2.0

NAME = "bloomd-%Y%m%d-%H%M.tar"

# What a killed verification has left (`verifying.py`). A younger one may be somebody else's.
SCRATCH = ".bloomd-verify-*"
SCRATCH_SECONDS = 86_400.0


class Schedule:
    """The service; its settings may change at any time."""

    def __init__(
        self, database: Database, loaded: Callable[[], Loaded], *, node: str, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock`: the time, in seconds since the epoch."""
        self._database = database
        self._loaded = loaded
        self._node = node
        self._clock = clock

    async def run(self, epoch: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make backups for ever, as the leader of this epoch. One that fails is recorded, and tried again.

        Raises:
            Unavailable, Misconfigured: as the database does.
        """
        if await backups.abandon(self._database, epoch=epoch):
            log.warning("a backup was not finished", retry_seconds=RETRY_SECONDS)
        task_status.started()
        while True:
            at = self._loaded().settings.backup.schedule
            wait = LOOK_SECONDS
            if at is not None:
                await backups.set_schedule(self._database, at, epoch=epoch)
                known = await backups.known(self._database)
                now = self._clock()
                due = next_at(at, now, known)
                if due <= now:
                    await self.make(previous(at, now), epoch)
                else:
                    wait = min(wait, due - now)
            await trio.sleep(wait)

    async def make(self, due: float, epoch: int) -> None:
        """Make one now, verify it, record it, and remove old ones.

        Args:
            due: the time of the schedule that it is for.
        """
        directory = Path(self._loaded().settings.backup.directory)
        file = directory / time.strftime(NAME, time.localtime(self._clock()))
        id = await backups.begin(self._database, node=self._node, file=str(file), due_at=int(due * 1000), epoch=epoch)
        if id is None:  # somebody else leads
            return
        log.info("backup begins", file=str(file))
        try:
            await self._make(id, file)
        except (Unavailable, Misconfigured, BadArchive, OSError) as error:
            log.error("backup failed", file=str(file), error=one_line(error), retry_seconds=RETRY_SECONDS)
            await backups.end(self._database, id, error=one_line(error))
        except trio.Cancelled:
            with trio.move_on_after(LAST_WORD_SECONDS, shield=True):
                await backups.end(self._database, id, error="it was stopped")
            raise

    async def _make(self, id: str, file: Path) -> None:
        loaded = self._loaded()
        settings = loaded.settings.backup
        back_up, verify = await trio.to_thread.run_sync(_tools)
        tried = await backups.files(self._database, but=id)
        await trio.to_thread.run_sync(_prepare, file.parent, tried)
        manifest = await back_up(loaded.settings, file, configuration=files_of(loaded, None), memory=settings.memory)
        unknown = None
        try:
            await verify(file)
        except Misconfigured as error:  # it cannot be known here
            unknown = one_line(error)
        except (BadArchive, Unavailable):
            await trio.to_thread.run_sync(file.rename, f"{file}.unverified")
            raise
        size = (await trio.to_thread.run_sync(file.stat)).st_size
        missing = len(manifest.missing) + len(manifest.damaged)
        said = log.warning if missing or unknown else log.info
        said("backup made", file=str(file), bytes=size, missing=missing, error=unknown)
        await backups.end(self._database, id, bytes=size, missing=missing, verified=unknown is None, error=unknown)
        try:
            this = Tried(str(file), missing, made=True)
            await trio.to_thread.run_sync(_prune, [this, *tried], settings.keep)
        except OSError as error:
            log.warning("old backups cannot be removed", directory=str(file.parent), error=error.strerror)


def previous(at: str, now: float) -> float:
    """The last time that the clock of the machine said this ("03:30"), in seconds since the epoch.

    Once a year it leaves a time out, which is an hour earlier then; and one it has twice, of which the first counts.
    """
    today = _on_day(at, now, 0)
    return today if today <= now else _on_day(at, now, -1)


def following(at: str, now: float) -> float:
    """The next time that it will say so."""
    today = _on_day(at, now, 0)
    return today if today > now else _on_day(at, now, 1)


def next_at(at: str, now: float, known: Known | None) -> float:
    """When the next backup is to be made; not after `now` when it should be under way."""
    if known is None or known.at != at:  # it has just been set
        return following(at, now)
    if known.failed:
        return (known.ended_at or 0) / 1000 + RETRY_SECONDS
    # A due time is never long after the start; one that a wrong clock has told is.
    last = max(known.since, min(known.due_at or 0, (known.started_at or 0) + 1000 * RETRY_SECONDS)) / 1000
    return previous(at, now) if previous(at, now) > last else following(at, now)


def _on_day(at: str, now: float, days: int) -> float:
    day = date(*time.localtime(now)[:3]) + timedelta(days=days)
    hour, minute = map(int, at.split(":"))
    return datetime(day.year, day.month, day.day, hour, minute).astimezone().timestamp()


def _prepare(directory: Path, tried: list[Tried]) -> None:
    """Make sure that there can be a file, and remove what came to nothing."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        for each in tried:
            if not each.made:
                for left in (".part", ".unverified"):
                    Path(each.file + left).unlink(missing_ok=True)
        for scratch in directory.glob(SCRATCH):
            if time.time() - scratch.lstat().st_mtime > SCRATCH_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(13, "it may not write there")
    except OSError as error:
        user = _user()
        raise Misconfigured(
            f"backup.directory {directory}: {error.strerror}: install -d -m 700 -o {user} {directory};"
            " under systemd a drop-in with ReadWritePaths= as well"
        ) from error


def _prune(tried: list[Tried], keep: int) -> None:
    """Remove all but the latest of those that are still there; of those that lack least, the latest is kept as well.

    Only what this database knows of: others may have the same directory.
    """
    there = [each for each in tried if each.made and Path(each.file).is_file()]
    best = min(there, key=lambda each: each.missing)  # of equals the first, which is the latest
    for each in there[keep:]:
        if each is not best:
            Path(each.file).unlink()
            log.info("old backup removed", file=each.file)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _tools():  # type: ignore[no-untyped-def]
    """Imported when it is needed, in a thread: with the SDK of the object store it takes its time."""
    from bloomd.backup.making import back_up
    from bloomd.backup.verifying import verify

    return back_up, verify
