"""The page's sign-ins, as the database knows them: what signs them, and which were ended before their time.

A session is a cookie that says who, by which key, and until when, with a signature (`http/session.py`). So it is judged
without the database, which has only two things to say: the secret for the signatures, made by whichever node needs it
first, and the ids of those who have signed out. Both are in the memory of each node, with the keys (`KeyRing`).
"""

import secrets

import msgspec

from bloomd.runtime import audit
from bloomd.runtime.database import Database

SECRET = """
SELECT secret FROM session_secret
"""

MAKE_SECRET = """
INSERT INTO session_secret (secret) VALUES (%(secret)s) ON CONFLICT DO NOTHING RETURNING secret
"""

# A node whose clock is behind takes a session for one that is not over yet for as long: so for an hour more.
ENDED = """
SELECT id FROM ended_sessions WHERE expires_at > bloom_now_ms() - 3600000
"""

# And forgets those that are over anyway.
END = """
WITH over AS (
    DELETE FROM ended_sessions WHERE expires_at <= bloom_now_ms() - 3600000
), ended AS (
    INSERT INTO ended_sessions (id, expires_at) VALUES (%(id)s, %(expires_at)s)
        ON CONFLICT (id) DO NOTHING
    RETURNING id
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'session.ended', 'session', id, %(actor)s, '' FROM ended
)
SELECT id, pg_notify('bloom_settings', '')::text AS notified FROM ended
"""


class _Secret(msgspec.Struct, frozen=True):
    secret: str


class _Ended(msgspec.Struct, frozen=True):
    id: str


class Sessions:
    """What this node knows of sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.secret: str | None = None
        """What signs them where the configuration has nothing to sign with; None until it was read."""
        self._ended: frozenset[str] | None = None

    def __repr__(self) -> str:
        return f"<Sessions {len(self._ended)} ended>" if self._ended is not None else "<Sessions not known yet>"

    @property
    def known(self) -> bool:
        """Whether all was read at least once."""
        return self._ended is not None

    def is_ended(self, id: str) -> bool:
        """Whether somebody has signed out of this one, or may have: as long as nothing was read, nobody is let in."""
        return self._ended is None or id in self._ended

    async def renew(self) -> bool:
        """Read all anew; whether anything has changed.

        Raises:
            Unavailable: the database is away; what was known stays.
        """
        before = (self.secret, self._ended)
        self.secret = await self._read_secret()
        self._ended = frozenset(row.id for row in await self._database.rows(_Ended, ENDED))
        return before != (self.secret, self._ended)

    async def note_begin(self, id: str, *, actor: str, client: str) -> None:
        """Record that somebody has signed in, from this address.

        Raises:
            Unavailable: the database is away.
        """
        await audit.add(
            self._database, "session.began", entity_type="session", entity_id=id, actor=actor, detail=f"from {client}"
        )

    async def end(self, id: str, expires_at: int, *, actor: str) -> None:
        """End a session for all nodes; here it is over when this returns.

        Raises:
            Unavailable: the database is away, and it goes on.
        """
        await self._database.change(_Ended, END, id=id, expires_at=expires_at, actor=actor)
        if self._ended is not None:  # else it is read with the others
            self._ended |= {id}

    async def _read_secret(self) -> str | None:
        known = await self._database.row(_Secret, SECRET)
        if known is None:
            await self._database.rows(_Secret, MAKE_SECRET, secret=secrets.token_urlsafe(32))
            known = await self._database.row(_Secret, SECRET)
        return known.secret if known else None
