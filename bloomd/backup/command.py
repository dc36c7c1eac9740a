"""`bloomd backup` and `bloomd restore`: what they do, in order, and what they say."""

import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import trio

from bloomd.backup import making, restoring
from bloomd.backup.archive import WARNING, Archive, BadArchive, read
from bloomd.backup.progress import Progress, human
from bloomd.errors import Misconfigured
from bloomd.settings import Loaded

OK, BAD, INTERRUPTED = 0, 1, 130


def backup(loaded: Loaded, config: Path | None, options: Namespace) -> int:
    """Make a backup; the exit code."""
    file: Path = options.output

    async def make() -> None:
        conninfo = loaded.settings.database.url
        await making.back_up(conninfo, file, configuration=_files(loaded, config), force=options.force)

    def run() -> int:
        trio.run(make)
        print(f"{file}: {human(file.stat().st_size)}. {WARNING}")
        return OK

    return _interruptible(run)


def restore(configured: Callable[[], Loaded], options: Namespace) -> int:
    """Restore a backup, or only tell what would be done; the exit code.

    Args:
        configured: reads the configuration; not needed with --into.
    """
    file: Path = options.file
    conninfo: str = options.into or configured().settings.database.url

    def run() -> int:
        try:
            with file.open("rb") as opened:
                return _restore(conninfo, opened, dry_run=options.dry_run, replace=options.replace)
        except BadArchive as error:
            print(f"bloomd: {file}: {error}; nothing was changed", file=sys.stderr)
            return BAD
        except OSError as error:
            raise Misconfigured(f"{file}: {error.strerror}") from error

    return _interruptible(run)


def _restore(conninfo: str, file: BinaryIO, *, dry_run: bool, replace: bool) -> int:
    archive = None if restoring.is_plain_dump(file) else _verified(file)
    if archive:
        head, rows = archive.head, sum(archive.manifest.rows.values())
        print(
            f"a backup of {head.host}, made at {head.made_at} by bloomd {head.bloomd}:"
            f" schema {head.schema}, PostgreSQL {head.server}, {len(archive.manifest.rows)} tables, {rows} rows"
        )
    else:
        print("a plain dump: it cannot be known to be whole before it is restored")
    there = trio.run(lambda: restoring.look(conninfo, archive, replace=replace))
    if dry_run:
        print(f"it would be restored{f', and {len(there)} tables that are there be dropped' if there else ''}")
        return OK
    progress = Progress("restoring")

    async def bring_back() -> dict[str, int]:
        return await restoring.restore(conninfo, file, archive, replace=replace, passed=progress.passed)

    found = trio.run(bring_back)
    progress.ended()
    width = max(map(len, found), default=0)
    for table, count in found.items():
        same = "  as in the backup" if archive else ""
        print(f"{table:<{width}}  {count:>10}{same}")
    print("restored; the schema is that of this bloomd")
    return OK


def _verified(file: BinaryIO) -> Archive:
    file.seek(0, 2)
    progress = Progress("verifying", total=file.tell())
    file.seek(0)
    archive = read(file, passed=progress.passed)
    progress.ended()
    return archive


def _files(loaded: Loaded, config: Path | None) -> list[Path]:
    """The files of the settings, and those of their secrets."""
    found = {file for source in loaded.sources.values() for file in (source.file, source.secret_file) if file}
    if loaded.settings.env_file is not None:  # also one whose values something else overrides
        named_in = loaded.sources["env_file"].file
        found.add(str((Path(named_in).parent if named_in else Path()) / loaded.settings.env_file))
    return sorted({Path(file).absolute() for file in [*found, *([config] if config else [])]})


def _interruptible(run: Callable[[], int]) -> int:
    """SIGTERM does what Ctrl-C does, which trio brings to its tasks; they clean up."""

    def terminated(_number: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        return run()
    except KeyboardInterrupt:
        print("\nbloomd: interrupted: nothing of it was kept", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
