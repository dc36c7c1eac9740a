"""Context hints: a hint that names files below the worker's root, by a path or a glob, is replaced by their text.

Tasks come from others, so a hint opens nothing else: no `..`, no path elsewhere, no link that leads out of the root,
and not what the worker keeps there for itself. In the place of such a file stands a sentence, so that whoever reads the
answer sees why it lacks something. What names no file is what it says, in its own words.

Where a file really is, is asked of the file that was opened: a link that is changed meanwhile leads nowhere.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from bloomd.exchange import KIB
from bloomd.worker.prompt import File, Hint, Note

# All files together. It is a fair share of what the model can read at once, beside the task itself.
TOTAL_BYTES = 256 * KIB

# Of one hint. Whoever means more names them better.
MAX_FILES = 50

# What a glob may look at: a `**` over a large tree would hold up the task.
MAX_LOOKED_AT = 20_000

# Names in the root that are the worker's own: the contexts of other tasks, and its notes.
OWN = frozenset({"contexts", "sessions", "tasks", "leases", "lock"})

_GLOB = re.compile(r"[*?\[]")


def read_all(root: Path, hints: Sequence[str]) -> list[Hint]:
    """The hints with the files that they name, as far as there is room. Waits for the disk."""
    reader = _Reader(Path(os.path.realpath(root)))
    return [item for hint in hints for item in reader.read(hint)]


class _Reader:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._room = TOTAL_BYTES
        self._looked_at = 0

    def read(self, hint: str) -> Iterator[Hint]:
        parts = [part for part in hint.removeprefix(f"{self._root}/").split("/") if part not in ("", ".")]
        if ".." in parts:
            yield Note(f"{hint} (not read: a hint may not contain `..`)")
        elif hint.startswith("/") and not hint.startswith(f"{self._root}/"):
            yield Note(f"{hint} (not read: it is outside of this worker's root)")
        elif not parts or "\0" in hint:
            yield Note(hint)
        elif parts[0] in OWN:
            yield Note(f"{hint} (not read: this is the worker's own)")
        elif names := self._names(parts):
            for name in names[:MAX_FILES]:
                yield self._file(name)
            if len(names) > MAX_FILES:
                yield Note(f"{hint} (names more than {MAX_FILES} files: the others were not read)")
        else:
            yield Note(hint)

    def _names(self, parts: list[str]) -> list[str]:
        """The files that it names; none when it names none, and so is a text."""
        if not _GLOB.search("/".join(parts)):
            name = "/".join(parts)
            try:
                return [name] if os.path.lexists(self._root / name) else []
            except (OSError, ValueError):
                return []
        return sorted(set(self._matches("", parts)))

    def _matches(self, below: str, patterns: list[str]) -> Iterator[str]:
        """The paths of files below a directory, itself below the root. It goes through no link."""
        first, rest = patterns[0], patterns[1:]
        if first == "**" and rest:
            yield from self._matches(below, rest)
        for entry in self._entries(below):
            path = f"{below}{entry.name}"
            hidden = entry.name.startswith(".") and not first.startswith(".")
            if hidden or (not below and entry.name in OWN):
                continue
            is_directory = _is_directory(entry)
            if first == "**" and rest:
                if is_directory:
                    yield from self._matches(f"{path}/", patterns)
            elif fnmatchcase(entry.name, "*" if first == "**" else first):
                if not rest and not is_directory:
                    yield path
                elif rest and is_directory:
                    yield from self._matches(f"{path}/", rest)

    def _entries(self, below: str) -> Iterator["os.DirEntry[str]"]:
        try:
            with os.scandir(self._root / below) as entries:
                for entry in entries:
                    self._looked_at += 1
                    if self._looked_at > MAX_LOOKED_AT:
                        return
                    yield entry
        except OSError:
            return

    def _file(self, name: str) -> Hint:
        try:
            # O_NONBLOCK: opening a named pipe that nobody writes to would never return.
            descriptor = os.open(self._root / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return Note(f"{name} (not read: {(error.strerror or 'it cannot be opened').lower()})")
        try:
            if trouble := self._trouble(descriptor, name):
                return Note(f"{name} (not read: {trouble})")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(self._room + 1)
        except OSError as error:
            return Note(f"{name} (not read: {(error.strerror or 'it cannot be read').lower()})")
        finally:
            os.close(descriptor)
        cut = len(content) > self._room
        content = content[: self._room]
        self._room -= len(content)
        with suppress(UnicodeDecodeError):
            if b"\0" not in content:
                # A character that was cut in the middle is no reason to call a text none.
                text = content.decode(errors="ignore" if cut else "strict")
                return File(name, text, cut)
        self._room += len(content)
        return Note(f"{name} (not read: it is not text)")

    def _trouble(self, descriptor: int, name: str) -> str | None:
        """Why an opened file is not to be read, or None."""
        try:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:  # not Linux
            path = os.path.realpath(self._root / name)
        inside = path.removeprefix(f"{self._root}/")
        if inside == path:
            return "it leads out of this worker's root"
        if inside.partition("/")[0] in OWN:
            return "it leads to what is the worker's own"
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return "it is not a file"
        if self._room <= 0:
            return f"the files before it have all of the {TOTAL_BYTES // KIB} KiB"
        return None


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
