"""What a bug report tells of the machine: what runs on it, in which versions. Nothing here needs the daemon."""

from __future__ import annotations

import glob
import os
import platform
import re
import subprocess
import sys
from importlib import metadata

TYPE_CHECKING = False  # as everywhere in the client
if TYPE_CHECKING:
    from typing import Any

# A program that only tells its version takes no time, unless the machine is in trouble.
_SECONDS = 5.0

# Not among what the package requires, and used all the same (`pyproject.toml` says why).
_ASIDE = ("asks",)


def machine() -> dict[str, Any]:
    """The operating system, its parts that matter to a daemon, and what is installed for it."""
    kernel = os.uname()
    return {
        "os": _os(),
        "kernel": f"{kernel.sysname} {kernel.release} {kernel.machine}",
        "libc": _libc(),
        "init": _init(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "installed": packages(),
    }


def packages() -> dict[str, str]:
    """bloomd and what it requires, with their versions; empty when it runs without having been installed."""
    try:
        required = metadata.requires("bloomd") or []
    except metadata.PackageNotFoundError:
        return {}
    names = {match[0] for line in required if "extra ==" not in line and (match := re.match(r"[\w.-]+", line))}
    found: dict[str, str] = {}
    for name in ("bloomd", *sorted({*names, *_ASIDE})):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def output(*command: str, seconds: float = _SECONDS) -> str | None:
    """What a program says, on either stream; None when that is nothing, it cannot be run, or takes its time."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=seconds,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() or None


def _os() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _libc() -> str | None:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):  # musl has a loader that tells its version, and calls that wrong usage
        loader = next(iter(glob.glob("/lib/ld-musl-*.so.1")), None)
        said = output(loader) if loader else None
        return " ".join(said.splitlines()[:2]) if said else None


def _init() -> str | None:
    """The init system that runs, with its version."""
    if os.path.isdir("/run/systemd/system"):
        said = output("systemctl", "--version")
        return said.splitlines()[0] if said else "systemd"
    if os.path.isdir("/run/openrc"):
        return output("openrc", "--version") or "openrc"
    return None
