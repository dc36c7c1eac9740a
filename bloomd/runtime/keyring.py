"""The valid API keys, workers' tokens and the page's sessions in the memory of a node: what requests are judged by.

They are read when the service starts, and again when one has changed on any node: after a notification, every 30 s
without one, and when the database was away. While it is away, what was read last counts. A node that has not read them
yet can tell neither whether a key is valid nor whether one is needed: whoever asks has to refuse (`http/access.py`).

How long it takes to look a secret up tells nothing about the valid ones: compared is the sha256 of what came, and
nobody can choose what comes so that its hash begins as another one does.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import trio

from bloomd.errors import Unavailable
from bloomd.runtime import keys, tokens
from bloomd.runtime.database import Database
from bloomd.runtime.keys import MadeKey
from bloomd.runtime.refusals import Conflict
from bloomd.runtime.sessions import Sessions
from bloomd.runtime.tokens import MadeToken

# The last use is for people who wonder whether a key is still needed: one write in this time, not one per request.
USES_SECONDS = 10.0


class KeyRing:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._keys = _Held(database, keys.names_by_hash, keys.note_uses)
        self._tokens = _Held(database, tokens.workers_by_hash, tokens.note_uses)
        self.sessions = Sessions(database)
        self.changed = trio.Event()
        """Fired, and replaced, when keys or tokens have come or gone: who was let in by one looks whether it still is
        one."""
        self.on_change: Callable[[], None] = lambda: None
        """Called then, too; the first time when all has been read."""
        self._stop = trio.Event()
        # One at a time: what was read before a removal must not be taken over after it.
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        if not self.known:
            return "<KeyRing not known yet>"
        return f"<KeyRing {self._keys.names}, tokens of {self._tokens.names}>"

    @property
    def known(self) -> bool:
        """Whether all was read at least once."""
        return self._keys.known and self._tokens.known and self.sessions.known

    @property
    def has_keys(self) -> bool:
        """Whether it is known that there is a key with a name."""
        return self._keys.known and not self._keys.empty

    @property
    def hashes(self) -> Mapping[str, str]:
        """The names of the keys by the hashes of their secrets."""
        return self._keys.holders

    @property
    def empty(self) -> bool:
        """Whether it is known that there is no key, and no token either.

        A token alone lets nobody in but its worker; and yet where there is one, somebody wants callers told apart. If
        the last key goes, by mistake, the doors stay shut: on the control socket a new one can be made all the time.
        """
        return self._keys.empty and self._tokens.empty

    def only_workers(self, configured: str | None) -> bool:
        """Whether it is known that nobody but workers is let in: there are tokens, and neither this configured key nor
        one with a name."""
        return configured is None and self.known and self._keys.empty and not self._tokens.empty

    def refuse_without_key(self, configured: str | None) -> None:
        """Raise while there is neither this configured key nor one with a name: who makes a token would be locked out.

        Raises:
            Conflict: there is none.
        """
        if configured is None and not self.has_keys:
            raise Conflict(
                "No API key is set, so whoever reaches this server may do everything, and with a first token only its "
                "worker could do anything at all: make a key first, by `bloomd-ctl key add NAME` or http.api_key"
            )

    def name_of(self, secret: bytes) -> str | None:
        """The name of the key with this secret, which is hereby used; None when there is none."""
        return self._keys.holder_of(secret)

    def worker_of(self, secret: bytes) -> str | None:
        """The worker with this token, which is hereby used; None when there is none."""
        return self._tokens.holder_of(secret) if tokens.is_token(secret) else None

    def note_use(self, hash: str) -> None:
        """The key with this hash is used, by a session; the configured one is no affair of the database."""
        self._keys.note_use(hash)

    async def add(self, name: str, *, actor: str) -> MadeKey:
        """Make a key that is valid here when this returns.

        Raises:
            BadName: nothing can be called so.
            Conflict: there is a key of this name.
        """
        async with self._lock:
            made = await keys.add(self._database, name, actor=actor)
            self._take(self._keys, made.secret, name)
            return made

    async def remove(self, name: str, *, actor: str) -> None:
        """Remove a key; it is invalid here when this returns.

        Raises:
            NotFound: there is none of this name.
        """
        async with self._lock:
            self._drop(self._keys, await keys.remove(self._database, name, actor=actor))

    async def add_token(self, worker: str, *, actor: str) -> MadeToken:
        """Make a token of a worker that is valid here when this returns.

        Raises:
            BadWorker: no worker can be called so.
        """
        async with self._lock:
            made = await tokens.add(self._database, worker, actor=actor)
            self._take(self._tokens, made.secret, made.worker_id)
            return made

    async def exchange(self, code: str) -> MadeToken:
        """Spend an enrolment for a token that is valid here when this returns.

        Raises:
            BadCode: it is worth nothing, or nothing any more.
        """
        async with self._lock:
            made = await tokens.exchange(self._database, code)
            self._take(self._tokens, made.secret, made.worker_id)
            return made

    async def remove_token(self, worker: str, id: str, *, actor: str) -> None:
        """Remove a worker's token; it is invalid here when this returns.

        Raises:
            NotFound: this worker has none with this id.
        """
        async with self._lock:
            self._drop(self._tokens, await tokens.remove(self._database, worker, id, actor=actor))

    async def end_session(self, id: str, expires_at: int, *, actor: str) -> None:
        """End a session of the page, for all nodes; here it is over when this returns.

        Raises:
            Unavailable: the database is away, and it goes on.
        """
        async with self._lock:
            await self.sessions.end(id, expires_at, actor=actor)
            self._tell()

    async def renew(self) -> None:
        """Read all anew.

        Raises:
            Unavailable: the database is away; what was known stays.
        """
        async with self._lock:
            changed = [await each.renew() for each in (self._keys, self._tokens, self.sessions)]
            if any(changed):
                self._tell()

    def _take(self, held: "_Held", secret: str, holder: str) -> None:
        if held.take(secret, holder):
            self._tell()

    def _drop(self, held: "_Held", hash: str) -> None:
        if held.drop(hash):
            self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
        self.on_change()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read all, then write down now and then what was used, until asked to stop, or cancelled.

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
        await self._keys.write_uses()
        await self._tokens.write_uses()


class _Held:
    """Secrets of one kind: by the hash of each who holds it, and when it was used last."""

    def __init__(
        self,
        database: Database,
        read: Callable[[Database], Awaitable[dict[str, str]]],
        note_uses: Callable[[Database, Mapping[str, float]], Awaitable[None]],
    ) -> None:
        self._database = database
        self._read = read
        self._note_uses = note_uses
        self._holders: dict[str, str] | None = None
        self._used: dict[str, float] = {}

    @property
    def known(self) -> bool:
        return self._holders is not None

    @property
    def empty(self) -> bool:
        return self._holders == {}

    @property
    def holders(self) -> Mapping[str, str]:
        return self._holders or {}

    @property
    def names(self) -> list[str]:
        return sorted((self._holders or {}).values())

    def holder_of(self, secret: bytes) -> str | None:
        if not self._holders:
            return None
        hash = keys.digest(secret)
        holder = self._holders.get(hash)
        if holder is not None:
            self.note_use(hash)
        return holder

    def note_use(self, hash: str) -> None:
        if hash in self.holders:
            self._used[hash] = trio.current_time()

    def take(self, secret: str, holder: str) -> bool:
        """Whether it counts from now on: one that is not known at all yet is read with the others."""
        if self._holders is not None:
            self._holders[keys.digest(secret.encode())] = holder
        return self.known

    def drop(self, hash: str) -> bool:
        return self._holders is not None and self._holders.pop(hash, None) is not None

    async def renew(self) -> bool:
        """Read them anew; whether anything has changed."""
        before, self._holders = self._holders, await self._read(self._database)
        return self._holders != before

    async def write_uses(self) -> None:
        written = dict(self._used)
        if not written:
            return
        now = trio.current_time()
        await self._note_uses(self._database, {hash: now - at for hash, at in written.items()})
        self._used = {hash: at for hash, at in self._used.items() if written.get(hash) != at}
