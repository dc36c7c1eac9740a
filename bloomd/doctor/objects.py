"""`bloomd doctor --objects`: what the store has against what the artifacts say; with --fix, orphans are removed."""

import json
from collections.abc import Callable

import msgspec
import trio

from bloomd.backup.progress import human
from bloomd.control import terminal
from bloomd.control.layout import count
from bloomd.objects import inventory
from bloomd.objects.contents import Contents
from bloomd.objects.inventory import Inventory
from bloomd.postgres import Pool
from bloomd.runtime.database import Database
from bloomd.settings import Loaded

# Raised when a field changes its meaning or goes away; new fields do not count.
SCHEMA = 1

# So many of each are named in the text; JSON has all.
NAMED = 20


class Report(msgspec.Struct, frozen=True):
    """What `bloomd doctor --objects -o json` prints."""

    schema: int
    inventory: Inventory
    fixed: bool
    """Whether the orphans were left to the leader, which removes them."""


def main(read: Callable[[], Loaded], *, fix: bool, output: str) -> int:
    """The command; its exit code: 0 all is well, 1 there are orphans, 2 objects are missing.

    Raises:
        Unavailable: the database or the store is away.
        Misconfigured: there is no store, or it refuses our settings.
    """
    found = trio.run(_look, read(), fix)
    if output == "json":
        print(json.dumps(msgspec.to_builtins(Report(SCHEMA, found, fix)), indent=2))
    else:
        print(terminal.text(_text(found, fix)))
    return 2 if found.missing else 1 if found.orphans and not fix else 0


async def _look(loaded: Loaded, fix: bool) -> Inventory:
    settings = loaded.settings
    database = Database()
    async with Pool(settings.database.url, size=2, application_name="bloomd doctor") as pool:
        database.open(pool)
        found = await inventory.take(database, Contents(lambda: settings.minio))
        if fix and found.orphans:
            await inventory.fix(database, found.orphans)
    return found


def _text(found: Inventory, fixed: bool) -> list[str]:
    where = f"the bucket {found.bucket}" + (f" under {found.prefix}" if found.prefix else "")
    lines = [f"{count(found.objects, 'object')} ({human(found.bytes)}) in {where}"]
    if found.missing:
        lines += ["", f"{len(found.missing)} missing: artifacts whose object is not there, or has another size"]
        lines += _named([f"{each.id} of task {each.task_id}: {each.url}" for each in found.missing])
        lines += ["  → restore them from a backup; bloomd cannot make them again"]
    if found.orphans:
        size = human(sum(each.size for each in found.orphans))
        lines += ["", f"{count(len(found.orphans), 'orphan')} ({size}): in the store, and no artifact refers to it"]
        lines += _named([each.url for each in found.orphans])
        lines += [
            "  they are left to the leader, which removes them"
            if fixed
            else "  → bloomd doctor --objects --fix, unless another bloomd uses this bucket under the same prefix"
        ]
    return lines


def _named(lines: list[str]) -> list[str]:
    more = [f"  and {len(lines) - NAMED} more (-o json has all)"] if len(lines) > NAMED else []
    return [f"  {line}" for line in lines[:NAMED]] + more
