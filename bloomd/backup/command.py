"""`bloomd backup` and `bloomd restore`: what they do, in order, and what they say."""

import os
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import trio

from bloomd.backup import configuration, making, restoring
from bloomd.backup.archive import MEMORY, OBJECTS, WARNING, Archive, BadArchive, opened
from bloomd.backup.progress import Progress, human
from bloomd.backup.verifying import verify, whole
from bloomd.control.layout import count
from bloomd.errors import Misconfigured, Unavailable
from bloomd.postgres.embedded import serving
from bloomd.settings import Loaded, Settings, load

OK, BAD, INTERRUPTED = 0, 1, 130

# So many objects that are missing or damaged are named; the manifest has all.
NAMED = 20


def backup(configured: Callable[[], Loaded], config: Path | None, options: Namespace) -> int:
    """Make a backup, or verify one; the exit code.

    Args:
        configured: reads the configuration; not needed to verify.
        config: the configuration file.
    """

    if options.dir and not (options.dir / "postgres").is_dir():
        raise Misconfigured(f"{options.dir} is no directory of bloomd dev: it has no postgres in it")

    async def make() -> int:
        async with _settings(configured, options) as loaded:
            made = await making.back_up(
                loaded.settings,
                options.output,
                configuration=configuration.files_of(loaded, config),
                objects=not options.no_objects,
                memory=options.memory,
                force=options.force,
                follow=Progress,
            )
        tables, rows = count(len(made.rows), "table"), count(sum(made.rows.values()), "row")
        print(f"{options.output}: {human(options.output.stat().st_size)}, {tables}, {rows}. {WARNING}")
        for word, found in (("missing", made.missing), ("damaged", made.damaged)):
            if found:
                print(f"bloomd: {word}: {count(len(found), 'object')}; the backup has everything else", file=sys.stderr)
                _name(found)
        return BAD if made.missing or made.damaged else OK

    async def prove() -> int:
        archive = await verify(options.verify, follow=Progress)
        _describe(archive)
        print(f"{options.verify}: verified: it was restored, and everything in it is as it was")
        return OK

    return _run(options.verify or options.output, lambda: trio.run(prove if options.verify else make))


def restore(configured: Callable[[], Loaded], options: Namespace) -> int:
    """Restore a backup, or only tell what would be done; the exit code."""

    outcome = Outcome()

    def run() -> int:
        with opened(options.file) as file:
            archive = None if restoring.is_plain_dump(file) else whole(file, Progress)
            return trio.run(_restore, configured, options, file, archive, outcome)

    return _run(options.file, run, outcome)


async def _restore(
    configured: Callable[[], Loaded], options: Namespace, file: BinaryIO, archive: Archive | None, outcome: "Outcome"
) -> int:
    if archive:
        _describe(archive)
    else:
        print("a plain dump: it cannot be known to be whole before it is restored")
    if options.memory and not (archive and MEMORY in archive.head.holds):
        raise Misconfigured("the backup does not hold the agents' memory: restore it without --memory")
    async with _settings(configured, options) as loaded:
        settings = loaded.settings
        objects = bool(archive and OBJECTS in archive.head.holds and not options.no_objects)
        copy = objects and options.into is not None and settings.minio.endpoint is not None
        there = await restoring.look(settings, archive, replace=options.replace, memory=options.memory, copy=copy)
        if options.configuration:
            configuration.refuse_to_replace(archive, options.configuration)
        if archive and objects and (number := len(archive.within(OBJECTS))):
            minio = settings.minio
            where = f"the bucket {minio.bucket} at {minio.endpoint}" if minio.endpoint else "the database"
            print(f"content that goes to {where}: {count(number, 'object')}")
        if options.dry_run:
            dropped = f", and {count(len(there), 'table')} dropped before" if there else ""
            print(f"it would be restored{dropped}")
            return OK
        found = await restoring.restore(
            settings,
            file,
            archive,
            replace=options.replace,
            objects=objects,
            memory=options.memory,
            follow=Progress,
            report=lambda line: print(f"  repaired: {line}"),
            committed=outcome.committed,
        )
    _count(found, archive)
    if archive and options.configuration:
        for place, was in configuration.restore(archive, options.configuration).items():
            print(f"{place}  was {was}")
    print("restored; the schema is that of this bloomd")
    return OK


def _describe(archive: Archive) -> None:
    head, manifest = archive.head, archive.manifest
    print(
        f"a backup of {head.host}, made at {head.made_at} by bloomd {head.bloomd}: schema {head.schema},"
        f" PostgreSQL {head.server}, {len(manifest.rows)} tables, {sum(manifest.rows.values())} rows"
    )
    for folder in (OBJECTS, MEMORY):
        names = archive.within(folder)
        held = f"{len(names)}, {human(archive.size_of(names))}" if folder in head.holds else "left out"
        print(f"{folder}: {held}")
    for word, found in (("missing", manifest.missing), ("damaged", manifest.damaged)):
        if found:
            print(f"{word} when it was made: {count(len(found), 'object')}")
            _name(found)


def _name(objects: dict[str, str]) -> None:
    for url, reason in list(objects.items())[:NAMED]:
        print(f"  {url}: {reason}", file=sys.stderr)
    if len(objects) > NAMED:
        print(f"  and {len(objects) - NAMED} more, which the manifest names", file=sys.stderr)


def _count(found: dict[str, int], archive: Archive | None) -> None:
    width = max(map(len, found), default=0)
    for table, rows in found.items():
        same = "  as in the backup" if archive else ""
        print(f"{table:<{width}}  {rows:>10}{same}")


@asynccontextmanager
async def _settings(configured: Callable[[], Loaded], options: Namespace) -> AsyncGenerator[Loaded]:
    """The configuration, with the database that the options name; that of `bloomd dev` runs for the block."""
    into: str | None = getattr(options, "into", None)
    if options.dir is None:
        loaded = configured()
        yield _with_database(loaded, into) if into else loaded
        return
    if into:
        raise Misconfigured("--dir and --into both name a database: say one of them")
    async with serving(options.dir / "postgres") as conninfo:
        yield load(None, environ=os.environ, options={"database.url": conninfo})


def _with_database(loaded: Loaded, url: str) -> Loaded:
    database = msgspec.structs.replace(loaded.settings.database, url=url)
    settings: Settings = msgspec.structs.replace(loaded.settings, database=database)
    return replace(loaded, settings=settings)


class Outcome:
    """What became of a restore that does not come to its end."""

    text = "the database is as it was"
    is_committed = False

    def committed(self) -> None:
        self.is_committed = True
        self.text = (
            "the database is restored, and what comes after that is not done: `bloomd migrate`, and the configuration;"
            " or restore again, with --replace"
        )


def _run(file: Path, call: Callable[[], int], outcome: Outcome | None = None) -> int:
    """SIGTERM does what Ctrl-C does, which trio brings to its tasks; they clean up."""
    outcome = outcome or Outcome()

    def terminated(_number: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        return call()
    except BadArchive as error:
        print(f"bloomd: {file}: {error}; {outcome.text}", file=sys.stderr)
        return BAD
    except (Unavailable, Misconfigured):
        if outcome.is_committed:
            print(f"bloomd: {outcome.text}", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        return _interrupted(outcome)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt):
            return _interrupted(outcome)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(outcome: Outcome) -> int:
    print(f"\nbloomd: interrupted: {outcome.text}", file=sys.stderr)
    return INTERRUPTED
