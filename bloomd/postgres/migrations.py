"""Migrations as files: `NNNN_name.sql` leads forward, and `back/NNNN_name.sql` leads back.

A file whose first line says

    -- transaction: none

is for statements that cannot run in one, such as CREATE INDEX CONCURRENTLY. They run one by one: each ends with a
semicolon at the end of its line, and holds no other such line.

A way back says what it discards in comments, each with the rows that are discarded, so that they can be counted while
they are still there:

    -- loses: named API keys
    --  FROM api_keys

`before/NNNN_name.sql` notes what its way back has to know and the migration itself would overwrite: it runs ahead of
it, in the same transaction. Neither of the two is a part of what the migration does, and so of its checksum.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources.abc import Traversable

_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")
_NO_TRANSACTION = "-- transaction: none"
_LOSES = re.compile(r"^-- loses: (.+)\n--  FROM (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str
    back: "Migration | None" = None
    """What undoes it; None when nothing does."""
    before: str = ""
    """What is noted for the way back before it is applied; only for a migration in a transaction."""

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def in_transaction(self) -> bool:
        return self.sql.split("\n", 1)[0].strip().lower() != _NO_TRANSACTION

    @property
    def statements(self) -> list[str]:
        """One by one, for a migration that cannot run in a transaction."""
        code = re.sub(r"^\s*--.*$", "", self.sql, flags=re.MULTILINE)
        return [statement.strip() for statement in re.split(r";[ \t]*$", code, flags=re.MULTILINE) if statement.strip()]

    @property
    def loses(self) -> list[tuple[str, str]]:
        """What is discarded: for people, and as what stands behind FROM."""
        return _LOSES.findall(self.sql)

    def __str__(self) -> str:
        return f"{self.version:04} {self.name}"


def load(directory: Traversable) -> list[Migration]:
    """The migrations in a directory, in order.

    Raises:
        ValueError: a file's name is none, a number occurs twice, or a way back is of no migration.
    """
    found: dict[int, Migration] = {}
    back, before = _read(directory / "back"), _read(directory / "before")
    for file in directory.iterdir():
        if not file.name.endswith(".sql"):
            continue
        match = _FILE_NAME.fullmatch(file.name)
        if not match or int(match[1]) in found:
            raise ValueError(f"{file.name}: a migration is named NNNN_name.sql, each number once")
        version, name = int(match[1]), match[2]
        way_back = Migration(version, name, back.pop(file.name)) if file.name in back else None
        sql = file.read_text(encoding="utf-8")
        found[version] = Migration(version, name, sql, way_back, before.pop(file.name, ""))
    if lonely := [*back, *before]:
        raise ValueError(f"{', '.join(lonely)}: there is no migration of this name")
    return [found[version] for version in sorted(found)]


def _read(directory: Traversable) -> dict[str, str]:
    if not directory.is_dir():
        return {}
    files = (file for file in directory.iterdir() if file.name.endswith(".sql"))
    return {file.name: file.read_text(encoding="utf-8") for file in files}
