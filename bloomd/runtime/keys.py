"""API keys by name, as the database has them: making one, listing them, removing one, noting their last use.

Several are valid at once, so that one can take the place of another without a gap; the name is the actor in the audit
trail. A secret is random, shown once, and kept as its sha256 only. That is enough: salt and a slow hash protect secrets
that people think of, and nobody guesses 256 random bits at whatever speed.

Each node judges requests by what it has in memory (`KeyRing`), and learns of every change by a notification on the
channel of the settings. `KeyRing.add` and `KeyRing.remove` (`node.keys`) count on this node before they return. Whoever
calls `add` or `remove` of this module instead has to `await node.take_stored()` afterwards, or wait for the
notification.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from bloomd.runtime.database import Database
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Conflict, NotFound, Refusal

# 32 bytes of chance, as 43 characters; the beginning tells people and scanners of repositories what they look at: a
# key, or with one letter more what a worker has (`tokens.py`).
PREFIX = "bloom_"
RANDOM_BYTES = 32
_SECRET = re.compile(rb"bloom[ew]?_[A-Za-z0-9_-]{43}")

# Begins so that it is neither `..` in a path nor an option on a command line. It has no colon: in the audit trail,
# `worker:NAME` is a worker by its token.
NAME_PATTERN = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"

# Actors of the audit trail that are no keys.
RESERVED = frozenset({"anonymous", "api-key", "bloomd", "membridge", "root", "sighup"})

ADD = """
WITH key AS (
    INSERT INTO api_keys (name, hash, created_at, created_by)
    VALUES (%(name)s, %(hash)s, bloom_now_ms(), %(actor)s)
        ON CONFLICT (name) DO NOTHING
    RETURNING name, created_at, created_by
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), created_at, 'key.added', 'key', name, %(actor)s, '' FROM key
)
SELECT name, created_at, created_by, pg_notify('bloom_settings', '')::text AS notified FROM key
"""

REMOVE = """
WITH key AS (
    DELETE FROM api_keys WHERE name = %(name)s RETURNING name, hash
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'key.removed', 'key', name, %(actor)s, '' FROM key
)
SELECT name, hash, pg_notify('bloom_settings', '')::text AS notified FROM key
"""

LIST = """
SELECT name, created_at, created_by, last_used_at
  FROM api_keys
 WHERE (created_at, name) < (%(at)s, %(before)s)
 ORDER BY created_at DESC, name DESC
 LIMIT %(limit)s
"""

HASHES = """
SELECT hash, name FROM api_keys
"""

# By hash: a key that was removed has nothing to do with a later one of its name. Two nodes lock in the same order.
USED = """
WITH key AS (
    SELECT name, bloom_now_ms() - age_ms AS at
      FROM api_keys
      JOIN unnest(%(hashes)s::varchar[], %(ages_ms)s::bigint[]) AS used (hash, age_ms) USING (hash)
     ORDER BY name
       FOR NO KEY UPDATE OF api_keys
)
UPDATE api_keys
   SET last_used_at = greatest(last_used_at, key.at)
  FROM key
 WHERE api_keys.name = key.name
"""


class BadName(Refusal):
    """This cannot be the name of a key; the text says what one looks like."""


class Key(msgspec.Struct, frozen=True):
    """What there is to know about a key."""

    name: str
    created_at: int
    created_by: str
    last_used_at: int | None
    """Up to ten seconds late; None when it was never used."""


class NewKey(msgspec.Struct, frozen=True):
    """What a client says to make a key."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=NAME_PATTERN)]


class MadeKey(msgspec.Struct, frozen=True):
    """A key that was made just now: the only time that its secret is shown."""

    name: str
    secret: str
    created_at: int
    created_by: str

    def __repr__(self) -> str:
        """Without the secret: a traceback or a log may show this."""
        return f"MadeKey(name={self.name!r}, secret='****')"


class _Added(msgspec.Struct, frozen=True):
    name: str
    created_at: int
    created_by: str


class Holder(msgspec.Struct, frozen=True):
    """The hash of a secret, and the name of who has it."""

    hash: str
    name: str


def digest(secret: bytes) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret).hexdigest()


def new_secret(prefix: str) -> str:
    """One that nobody has ever seen."""
    return prefix + secrets.token_urlsafe(RANDOM_BYTES)


def is_secret(text: bytes) -> bool:
    """Whether this has the form of a secret of ours: of a key, a worker's token or an enrolment."""
    return _SECRET.fullmatch(text) is not None


def name_problem(name: str) -> str | None:
    """What is wrong with a name for a key, as the end of a sentence that begins with the field; None if nothing is."""
    if not re.match(NAME_PATTERN, name):
        return "must be 1 to 64 of the characters A-Z a-z 0-9 . _ - and begin with a letter or digit"
    if name.lower() in RESERVED:
        return f"cannot be {name!r}: that means somebody else in the audit trail"
    if is_secret(name.encode()):
        return "looks like the secret of a key; choose a name by which people know the key's owner"
    return None


async def add(database: Database, name: str, *, actor: str) -> MadeKey:
    """Make a key. Its secret is in the answer, and nowhere else ever.

    Raises:
        BadName: nothing can be called so.
        Conflict: there is a key of this name.
    """
    if problem := name_problem(name):
        raise BadName(f"The name {problem}")
    secret = new_secret(PREFIX)
    added = await database.change(_Added, ADD, name=name, hash=digest(secret.encode()), actor=actor)
    if not added:
        raise Conflict(f"There is a key named {name} already; remove it first, or choose another name")
    [key] = added
    return MadeKey(name=key.name, secret=secret, created_at=key.created_at, created_by=key.created_by)


async def remove(database: Database, name: str, *, actor: str) -> str:
    """Make a key invalid for ever; gives the hash that no longer counts.

    Raises:
        NotFound: there is none of this name.
    """
    removed = await database.change(Holder, REMOVE, name=name, actor=actor)
    if not removed:
        raise NotFound("Key not found")
    return removed[0].hash


async def listing(database: Database, page: Page | None = None) -> list[Key]:
    """A page of keys, the latest made first; without a page all that an answer has room for."""
    page = page or Page(limit=1000)
    return await database.listing(Key, LIST, at=page.at, before=page.id, limit=page.limit)


async def names_by_hash(database: Database) -> dict[str, str]:
    """All valid keys."""
    return {row.hash: row.name for row in await database.rows(Holder, HASHES)}


async def note_uses(database: Database, seconds_ago: Mapping[str, float]) -> None:
    """Write down when the keys with these hashes were used last; what is known to be later stays."""
    ages_ms = [round(seconds * 1000) for seconds in seconds_ago.values()]
    await database.execute(USED, hashes=list(seconds_ago), ages_ms=ages_ms)
