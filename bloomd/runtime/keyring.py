"""The valid API keys in the memory of a node: what requests are judged by.

They are read when the service starts, and again when a key has changed on any node: after a notification, every 30 s
without one, and when the database was away. While it is away, what was read last counts. A node that has not read them
yet can tell neither whether a key is valid nor whether one is needed: whoever asks has to refuse (`http/access.py`).

How long it takes to look a secret up tells nothing about the valid ones: compared is the sha256 of what came, and
nobody can choose what comes so that its hash begins as another one does.
"""

from contextlib import suppress

import trio

from bloomd.errors import Unavailable
from bloomd.runtime import keys
from bloomd.runtime.database import Database
from bloomd.runtime.keys import MadeKey

# The last use is for people who wonder whether a key is still needed: one write in this time, not one per request.
USES_SECONDS = 10.0


class KeyRing:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._names: dict[str, str] | None = None
        self._used: dict[str, float] = {}
        self.changed = trio.Event()
        """Fired, and replaced, when keys have come or gone: who was let in by one looks whether it still is one."""
        self._stop = trio.Event()
        # One at a time: what was read before a removal must not be taken over after it.
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"<KeyRing {'not known yet' if self._names is None else sorted(self._names.values())}>"

    @property
    def known(self) -> bool:
        """Whether the keys were ever read."""
        return self._names is not None

    @property
    def empty(self) -> bool:
        """Whether it is known that there is no key."""
        return self._names == {}

    def name_of(self, secret: bytes) -> str | None:
        """The name of the key with this secret, which is hereby used; None when there is none."""
        if not self._names:
            return None
        hash = keys.digest(secret)
        name = self._names.get(hash)
        if name is not None:
            self._used[hash] = trio.current_time()
        return name

    async def add(self, name: str, *, actor: str) -> MadeKey:
        """Make a key that is valid here when this returns.

        Raises:
            BadName: nothing can be called so.
            Conflict: there is a key of this name.
        """
        async with self._lock:
            made = await keys.add(self._database, name, actor=actor)
            if self._names is not None:
                self._names[keys.digest(made.secret.encode())] = name
                self._tell()
            return made

    async def remove(self, name: str, *, actor: str) -> None:
        """Remove a key; it is invalid here when this returns.

        Raises:
            NotFound: there is none of this name.
        """
        async with self._lock:
            hash = await keys.remove(self._database, name, actor=actor)
            if self._names is not None:
                self._names.pop(hash, None)
                self._tell()

    async def renew(self) -> None:
        """Read the keys anew.

        Raises:
            Unavailable: the database is away; what was known stays.
        """
        async with self._lock:
            before, self._names = self._names, await keys.names_by_hash(self._database)
            if self._names != before:
                self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the keys, then write down now and then which were used, until asked to stop, or cancelled.

        Raises:
            Unavailable: the database is away. What could not be written is kept.
        """
        self._stop = trio.Event()
        await self.renew()
        task_status.started()
        while not self._stop.is_set():
            await self._write_uses()
            with trio.move_on_after(USES_SECONDS):
                await self._stop.wait()
        with suppress(Unavailable):  # then the last ten seconds are missing, and nothing else
            await self._write_uses()

    def ask_to_stop(self) -> None:
        """Write down what is still to be written, and return."""
        self._stop.set()

    async def _write_uses(self) -> None:
        written = dict(self._used)
        if not written:
            return
        now = trio.current_time()
        await keys.note_uses(self._database, {hash: now - at for hash, at in written.items()})
        self._used = {hash: at for hash, at in self._used.items() if written.get(hash) != at}
