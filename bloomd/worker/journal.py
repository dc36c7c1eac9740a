"""What the worker holds, noted on disk for the one that comes after it was killed.

A note names the lease, and the process group that works on it, once there is one. The next worker in the same directory
ends such a group, so that nobody works twice in one context, and gives the task back, so that it need not wait for the
lease to expire.

A number of a process is given again one day: a group counts as the one that was noted only if its leader started at the
same moment of the same boot. A leader that is gone leaves its group to itself.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

import msgspec

from bloomd.worker.contexts import name_of

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Note(msgspec.Struct, frozen=True):
    """One lease that is held."""

    lease_id: str
    group: int | None = None
    started: str | None = None
    """When its leader did: the boot, and the kernel's ticks since."""


class Journal:
    """The notes in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, lease_id: str, group: int | None = None) -> None:
        """This lease is held, and this group works on it."""
        file = self._file(lease_id)
        note = Note(lease_id, group, _started(group) if group else None)
        new = file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(note))
        new.replace(file)

    def strike(self, lease_id: str) -> None:
        """It is not held any more."""
        self._file(lease_id).unlink(missing_ok=True)

    def left(self) -> list[Note]:
        """What the worker before held. What cannot be read says nothing, and goes."""
        notes: list[Note] = []
        for file in sorted(self._directory.iterdir()):
            try:
                if file.suffix:
                    raise ValueError("it was not finished")
                notes.append(msgspec.json.decode(file.read_bytes(), type=Note))
            except (OSError, ValueError):  # msgspec's errors are of the latter
                with suppress(OSError):
                    file.unlink()
        return notes

    def _file(self, lease_id: str) -> Path:
        return self._directory / name_of(lease_id)


def end(note: Note) -> bool:
    """End the group of a note at once; whether it was still there."""
    if note.group is None or note.started is None or _started(note.group) != note.started:
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(note.group, signal.SIGKILL)
        return True
    return False


def _started(process: int) -> str | None:
    """When a process started; None when there is none, or the system does not say."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
        boot = _BOOT_ID.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return f"{boot} {stat.rpartition(')')[2].split()[19]}"  # field 22; the name in brackets may hold blanks
