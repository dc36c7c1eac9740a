"""The worker's directory: one working directory for each context, the conversation that goes on in it, and its turn.

::

    ROOT/contexts/SHA256    where the program runs for tasks of a context, again and again; its mtime says when last
    ROOT/sessions/SHA256    the conversation that the last completed task of it left
    ROOT/tasks/...          where tasks without a context run, once
    ROOT/leases/SHA256      what is held now, for the worker that comes after a crash (`journal.py`)
    ROOT/lock               held as long as the worker lives: two in one directory would take each other's turns

SHA256 is that of the context's id, which is anybody's text and therefore no name of a file.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
import trio

from bloomd.errors import Misconfigured
from bloomd.worker.claude import is_session

# A context that nobody has worked in for so long is forgotten, with its files and its conversation.
UNUSED_SECONDS = 30 * 86_400.0

PRUNE_SECONDS = 86_400.0

log = structlog.stdlib.get_logger(__name__)


class Context:
    """A context while it is somebody's turn."""

    def __init__(self, directory: Path, session_file: Path | None, session: str | None) -> None:
        self.directory = directory
        self.session = session
        """The conversation to continue, or None."""
        self._session_file = session_file

    async def remember(self, session: str | None) -> None:
        """The conversation that the next task of this context continues; None: it begins one."""
        if self._session_file is None:
            return
        try:
            await trio.to_thread.run_sync(_write_session, self._session_file, session)
        except OSError as error:
            log.warning("conversation not remembered", error=str(error))


class Contexts:
    """All contexts below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._turns: dict[str, _Turn] = {}

    @asynccontextmanager
    async def turn(self, context_id: str) -> AsyncGenerator[Context]:
        """Wait until no other task of this context runs here; this one does, until the block ends.

        Raises:
            OSError: the directory cannot be made.
        """
        if not context_id:
            directory = Path(await trio.to_thread.run_sync(tempfile.mkdtemp, None, "task-", self.root / "tasks"))
            try:
                yield Context(directory, None, None)
            finally:
                with trio.CancelScope(shield=True):  # nobody would ever remove it
                    await trio.to_thread.run_sync(_remove, directory)
            return
        name = name_of(context_id)
        async with self._turn(name):
            yield await trio.to_thread.run_sync(_open, self.root / "contexts" / name, self.root / "sessions" / name)

    async def keep_pruned(self) -> None:
        """Remove the contexts that have not been used for long, now and every day, until cancelled."""
        while True:
            try:
                await self.prune(time.time() - UNUSED_SECONDS)
            except OSError as error:
                log.warning("old contexts not removed", error=str(error))
            await trio.sleep(PRUNE_SECONDS)

    async def prune(self, before: float) -> None:
        """Remove the contexts that were last used before this moment (epoch seconds), and are not now.

        Raises:
            OSError: the directory cannot be read.
        """
        for name in await trio.to_thread.run_sync(_unused, self.root, before):
            if name in self._turns:
                continue
            async with self._turn(name):
                await trio.to_thread.run_sync(_forget, self.root, name, before)

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncGenerator[None]:
        turn = self._turns.setdefault(name, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[name]


class _Turn:
    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.wanted = 0


def name_of(id: str) -> str:
    """The name of the file or directory of anything with this id."""
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()


def take(root: Path) -> int:
    """Make the directory this process's own; the descriptor that holds it.

    Raises:
        Misconfigured: it cannot be made, or another worker has it.
    """
    try:
        for name in ("contexts", "sessions", "tasks", "leases"):
            (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured(
            f"the worker's directory {root} cannot be used: {error.strerror or error};"
            " name another one with --root or `worker.root`"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise Misconfigured(
            f"another worker runs in {root}: stop it, or give this one a directory of its own with --root"
        ) from error
    for left in (root / "tasks").iterdir():
        _remove(left)
    return descriptor


def _open(directory: Path, session_file: Path) -> Context:
    directory.mkdir(mode=0o700, exist_ok=True)
    os.utime(directory)
    session = None
    with suppress(OSError, UnicodeDecodeError):
        session = session_file.read_text().strip()
    return Context(directory, session_file, session if session and is_session(session) else None)


def _unused(root: Path, before: float) -> list[str]:
    """The names of contexts that were last used before this moment; what is left of half a one counts as one."""
    names = {path.name for directory in ("contexts", "sessions") for path in (root / directory).iterdir()}
    return [name for name in names if _last_used(root, name) < before]


def _last_used(root: Path, name: str) -> float:
    last = 0.0
    for path in (root / "contexts" / name, root / "sessions" / name):
        with suppress(FileNotFoundError):
            last = max(last, path.lstat().st_mtime)
    return last


def _forget(root: Path, name: str, before: float) -> None:
    """Remove it unless it was used meanwhile: the conversation first, which must not go on without its directory."""
    if _last_used(root, name) < before:
        (root / "sessions" / name).unlink(missing_ok=True)
        _remove(root / "contexts" / name)
        log.info("old context removed", context=name)


def _write_session(file: Path, session: str | None) -> None:
    """All of it or nothing: whoever is killed here leaves the old one."""
    if session is None:
        file.unlink(missing_ok=True)
        return
    new = file.with_suffix(".new")
    new.write_text(session)
    new.replace(file)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
