"""Proves a backup: restores it into a PostgreSQL that is thrown away, and compares."""

import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import trio

from bloomd.backup import restoring
from bloomd.backup.archive import Archive, opened, read
from bloomd.backup.progress import Follow, Quiet
from bloomd.errors import Misconfigured
from bloomd.postgres import binaries
from bloomd.postgres.embedded import serving
from bloomd.settings import Settings
from bloomd.settings.model import Database


async def verify(file: Path, *, follow: Follow = Quiet) -> Archive:
    """Read the archive, restore its database, and compare that with the manifest and with the objects.

    The database is made beside the file, where there is room for it; or with the temporary files, when nothing can be
    written there. (A root's is made in /var/lib, when PostgreSQL's user cannot come there.)

    Raises:
        BadArchive: something is not as it should be; the text says what.
        Misconfigured: it cannot be known: this machine has no server for it, or the file cannot be read.
        Unavailable: that server has failed.
    """
    with opened(file) as archive_file:
        archive = await trio.to_thread.run_sync(whole, archive_file, follow, abandon_on_cancel=True)
        await trio.to_thread.run_sync(_refuse_older, archive)
        with _scratch(file) as place:
            async with serving(place, durable=False) as conninfo:
                settings = Settings(database=Database(url=conninfo))
                await restoring.restore(settings, archive_file, archive, objects=False, replace=False, follow=follow)
    return archive


def whole(file: BinaryIO, follow: Follow) -> Archive:
    """The archive that a file is, read to its end. Blocks.

    Raises:
        BadArchive: it is none, or not whole.
    """
    progress = follow("verifying", os.fstat(file.fileno()).st_size)
    archive = read(file, passed=progress.passed)
    progress.ended()
    return archive


@contextmanager
def _scratch(file: Path) -> Generator[Path]:
    """Where there may be a PostgreSQL for the length of the block."""
    beside = file.absolute().parent
    where = beside if os.access(beside, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".bloomd-verify-", dir=where, ignore_cleanup_errors=True) as scratch:
        os.chmod(scratch, 0o711)  # noqa: S103: the server's user has to pass; what is in it is his alone
        place = Path(scratch) / "postgres"
        try:
            yield place
        finally:
            shutil.rmtree(place.resolve(), ignore_errors=True)  # elsewhere, if its user could not come here


def _refuse_older(archive: Archive) -> None:
    here = binaries.version(binaries.find()) or 0
    found = re.match(r"\d+", archive.head.server)
    if found and int(found[0]) > here:
        raise Misconfigured(
            f"the backup is of PostgreSQL {found[0]}, and this machine's server is {here}: install it"
            f" (Debian: apt install postgresql-{found[0]}; Alpine: apk add postgresql{found[0]})"
        )
