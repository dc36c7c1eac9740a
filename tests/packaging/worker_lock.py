"""The part of requirements.lock that a worker needs. `make lock` writes it to where it is shipped from.

python tests/packaging/worker_lock.py > bloomd/http/install/requirements.lock
"""

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).parents[2] / "requirements.lock"

# What `bloomd worker` imports: tests/packaging/test_install_script.py fails when that is no longer all.
ROOTS = ("httpx", "msgspec", "psycopg[binary]", "pyyaml", "structlog", "trio")

_ENTRY = re.compile(r"^(?P<name>[a-z0-9][a-z0-9.-]*)==[^\n]*\\\n(?:    --hash=\S+(?: \\)?\n)+", re.MULTILINE)


def needed() -> set[str]:
    """The names of the distributions, by what those that are installed here say of themselves."""
    waiting = [Requirement(root) for root in ROOTS]
    seen: set[tuple[str, str]] = set()
    while waiting:
        asked = waiting.pop()
        for extra in ("", *asked.extras):
            if (one := (canonicalize_name(asked.name), extra)) not in seen:
                seen.add(one)
                further = map(Requirement, requires(asked.name) or ())
                waiting += [each for each in further if not each.marker or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def worker_lock() -> str:
    """The entries of these, as they stand in the lock of all."""
    names = needed()
    return "".join(entry[0] for entry in _ENTRY.finditer(LOCK.read_text()) if entry["name"] in names)


if __name__ == "__main__":
    print(worker_lock(), end="")
