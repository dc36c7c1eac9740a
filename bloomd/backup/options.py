"""The options of `bloomd backup` and `bloomd restore`, without what these import: any `bloomd` command reads this."""

from argparse import ArgumentParser
from pathlib import Path

BACKUP = "put the database, its objects and the configuration into one file, while bloomd works"
BACKUP_MORE = "It holds secrets."
RESTORE = "bring back what bloomd backup, or a plain pg_dump, has put into a file"
RESTORE_MORE = (
    "The file is read to its end first, and the database is restored in one transaction. No bloomd may use it. Objects"
    " go to the object store of the configuration, or into the database when that names none."
)


def takes_backup(parser: ArgumentParser) -> None:
    """Those of `bloomd backup`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file to make, a tar")
    what.add_argument(
        "--verify",
        type=Path,
        metavar="FILE",
        help="prove one that is there: restore it into a PostgreSQL that is thrown away, and compare",
    )
    _takes_directory(parser)
    _takes_parts(parser)
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def takes_restore(parser: ArgumentParser) -> None:
    """Those of `bloomd restore`."""
    parser.add_argument("file", type=Path, metavar="BACKUP", help="the file that bloomd backup or pg_dump made")
    # Not with --config for its long name, as elsewhere: this is the configuration that counts here.
    parser.add_argument("-c", type=Path, metavar="FILE", dest="config", help="the configuration of this machine")
    parser.add_argument("--into", metavar="URL", help="the database to restore (that of the configuration)")
    _takes_directory(parser)
    parser.add_argument("--dry-run", action="store_true", help="only tell whether the file is whole, and what would be")
    parser.add_argument(
        "--replace", action="store_true", help="drop what is in the database now, and replace objects that are there"
    )
    _takes_parts(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="DIR",
        dest="configuration",
        help="also put the backup's files of the configuration into this directory",
    )


def _takes_directory(parser: ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, metavar="DIR", help="the database of bloomd dev in this directory")


def _takes_parts(parser: ArgumentParser) -> None:
    parser.add_argument("--memory", action="store_true", help="with the agents' memory, the bucket minio.memory_bucket")
    parser.add_argument("--no-objects", action="store_true", help="without what is in the object store")
