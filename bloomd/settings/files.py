"""Reading the files that the settings name: here what the system says about a file becomes a sentence."""

import grp
import os
import shlex
import stat
from pathlib import Path

# A configuration has a few kilobytes. A larger file is a mistake, and reading it would hold up the daemon.
LARGEST = 1 << 20


class Unreadable(Exception):
    """The file cannot be read; the text says why, and what to do, without the file's name at its head."""


def read_text(path: Path) -> str:
    """The text of a regular file.

    Raises Unreadable.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unreadable("this is not a regular file")
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except IsADirectoryError:
        raise Unreadable("this is a directory, not a file") from None
    except PermissionError:
        raise Unreadable(_permit(path)) from None
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror or error}") from error
    except ValueError:
        raise Unreadable("this cannot be the name of a file") from None
    if len(content) > LARGEST:
        raise Unreadable(f"it is larger than {LARGEST} bytes, which no such file should be")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"it is not UTF-8 text (line {line}); save it in that encoding") from None


def readable_by_everybody(path: Path) -> bool:
    """Whether its mode lets everybody on this machine read it."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _open(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a named pipe that nobody writes to would never return.
    return os.open(path, flags | os.O_NONBLOCK)


def _permit(path: Path) -> str:
    for directory in reversed(path.absolute().parents):
        if not os.access(directory, os.X_OK, effective_ids=True):
            quoted = shlex.quote(str(directory))
            return f"bloomd may not search {quoted}; to let it, run: chmod a+x {quoted}"
    group = os.getegid()
    try:
        name = grp.getgrgid(group).gr_name
    except KeyError:
        name = str(group)
    quoted = shlex.quote(str(path))
    return f"bloomd may not read it; to let it, run: chgrp {name} {quoted} && chmod 640 {quoted}"
