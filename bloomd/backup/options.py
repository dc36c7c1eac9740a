"""The options of `bloomd backup` and `bloomd restore`, without what these import: any `bloomd` command reads this."""

from argparse import ArgumentParser
from pathlib import Path

BACKUP = "put the database and the configuration into one file, while bloomd works"
BACKUP_MORE = "It holds secrets. What is in the object store is not in it."
RESTORE = "bring back what bloomd backup, or a plain pg_dump, has put into a file; all of it or nothing"
RESTORE_MORE = "The file is read to its end first. No bloomd may use the database."


def takes_backup(parser: ArgumentParser) -> None:
    """Those of `bloomd backup`."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", required=True, help="the file to make, a tar")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def takes_restore(parser: ArgumentParser) -> None:
    """Those of `bloomd restore`."""
    parser.add_argument("file", type=Path, metavar="BACKUP", help="the file that bloomd backup or pg_dump made")
    parser.add_argument("--into", metavar="URL", help="the database to restore (that of the configuration)")
    parser.add_argument("--dry-run", action="store_true", help="only tell whether the file is whole, and what would be")
    parser.add_argument("--replace", action="store_true", help="drop what is in the database now")
