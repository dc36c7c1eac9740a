"""What a worker proves with who it is: its tokens, and the enrolments by which a new machine gets one.

::

    POST /enrolments ──▶ a code, for one hour ──▶ exchange ──▶ a token ──▶ removed
                                                                 ▲
    POST /workers/{id}/tokens ───────────────────────────────────┘

A token belongs to a worker's name: it may be made before the worker has registered, and outlives its removal. What it
allows is told in `http/access.py`. A code is one that may stand in a URL, so it is worth little: it is spent by the
statement that makes the token, and of those who come with the same one at the same time one gets it.

Secrets are kept as those of keys are (`keys.py`), and count on every node as they do: `KeyRing` (`node.keys`) has
`add_token`, `exchange` and `remove_token`, which count on this node before they return.
"""

import re
from collections.abc import Mapping

import msgspec

from bloomd.runtime import workers
from bloomd.runtime.database import Database
from bloomd.runtime.ids import new_id
from bloomd.runtime.keys import Holder, digest, new_secret
from bloomd.runtime.model import WORKER_NAME_RULE, NewWorkerName
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import NotFound, Refusal

TOKEN_PREFIX = "bloomw_"
CODE_PREFIX = "bloome_"
_TOKEN = re.compile(rb"bloomw_[A-Za-z0-9_-]{43}")
_CODE = re.compile(r"bloome_[A-Za-z0-9_-]{43}")

# Long enough to walk over to the other machine; an install script that is kept for later is not meant to work.
CODE_MS = 3_600_000

ADD = """
WITH token AS (
    INSERT INTO worker_tokens (id, worker_id, hash, created_at, created_by)
    VALUES (%(id)s, %(worker_id)s, %(hash)s, bloom_now_ms(), %(actor)s)
    RETURNING id, worker_id, created_at, created_by
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), created_at, 'worker.token_added', 'worker', worker_id, %(actor)s, 'token ' || id
      FROM token
)
SELECT id, worker_id, created_at, created_by, pg_notify('bloom_settings', '')::text AS notified FROM token
"""

REMOVE = """
WITH token AS (
    DELETE FROM worker_tokens WHERE id = %(id)s AND worker_id = %(worker_id)s RETURNING id, worker_id, hash
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), bloom_now_ms(), 'worker.token_removed', 'worker', worker_id, %(actor)s, 'token ' || id
      FROM token
)
SELECT hash, worker_id AS name, pg_notify('bloom_settings', '')::text AS notified FROM token
"""

LIST = """
SELECT id, worker_id, created_at, created_by, last_used_at
  FROM worker_tokens
 WHERE worker_id = %(worker_id)s
   AND (created_at, id) < (%(at)s, %(before)s)
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s
"""

HASHES = """
SELECT hash, worker_id AS name FROM worker_tokens
"""

# Two nodes lock in the same order.
USED = """
WITH token AS (
    SELECT id, bloom_now_ms() - age_ms AS at
      FROM worker_tokens
      JOIN unnest(%(hashes)s::varchar[], %(ages_ms)s::bigint[]) AS used (hash, age_ms) USING (hash)
     ORDER BY id
       FOR NO KEY UPDATE OF worker_tokens
)
UPDATE worker_tokens
   SET last_used_at = greatest(last_used_at, token.at)
  FROM token
 WHERE worker_tokens.id = token.id
"""

# Makes a code, and deletes those whose hour is over: nobody else has a use for them.
ENROL = """
WITH expired AS (
    DELETE FROM enrolments
     WHERE hash IN (SELECT hash FROM enrolments WHERE expires_at <= bloom_now_ms() FOR UPDATE SKIP LOCKED)
), enrolment AS (
    INSERT INTO enrolments (hash, worker_id, created_at, created_by, expires_at)
    SELECT %(hash)s, %(worker_id)s, now_ms, %(actor)s, now_ms + %(code_ms)s FROM bloom_now_ms() AS now_ms
    RETURNING worker_id, created_at, expires_at
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), created_at, 'worker.enrolment_made', 'worker', worker_id, %(actor)s, '' FROM enrolment
)
SELECT worker_id AS worker, expires_at FROM enrolment
"""

OF_CODE = """
SELECT worker_id AS worker, expires_at FROM enrolments WHERE hash = %(hash)s AND expires_at > bloom_now_ms()
"""

# Who deletes the enrolment has spent it: to all others it is not there.
EXCHANGE = """
WITH enrolment AS (
    DELETE FROM enrolments
     WHERE hash = %(code_hash)s AND expires_at > bloom_now_ms()
    RETURNING worker_id, created_by
), token AS (
    INSERT INTO worker_tokens (id, worker_id, hash, created_at, created_by)
    SELECT %(id)s, worker_id, %(hash)s, bloom_now_ms(), created_by FROM enrolment
    RETURNING id, worker_id, created_at, created_by
), audit AS (
    INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
    SELECT gen_random_uuid(), created_at, 'worker.enrolled', 'worker', worker_id, 'worker:' || worker_id,
           format('token %%s, by an enrolment of %%s', id, created_by)
      FROM token
)
SELECT id, worker_id, created_at, created_by, pg_notify('bloom_settings', '')::text AS notified FROM token
"""


_NOT_VALID = (
    "This enrolment code is not valid: it counts once, for an hour. Have a new one made, by POST "
    "/api/runtime/enrolments or `bloomd-ctl worker enrol NAME`"
)


class BadWorker(Refusal):
    """No worker can have this name; the text says why."""


class BadCode(Refusal):
    """This is no enrolment code, or it was used, or its hour is over."""


class Token(msgspec.Struct, frozen=True):
    """What there is to know about a worker's token."""

    id: str
    worker_id: str
    created_at: int
    created_by: str
    last_used_at: int | None
    """Up to ten seconds late; None when it was never used."""


class MadeToken(msgspec.Struct, frozen=True):
    """A token that was made just now: the only time that its secret is shown."""

    id: str
    worker_id: str
    secret: str
    created_at: int
    created_by: str

    def __repr__(self) -> str:
        """Without the secret: a traceback or a log may show this."""
        return f"MadeToken(id={self.id!r}, worker_id={self.worker_id!r}, secret='****')"


class Enrolment(msgspec.Struct, frozen=True):
    """A code that is worth one token for this worker, once, until it expires; shown only here."""

    code: str
    worker: str
    expires_at: int

    def __repr__(self) -> str:
        """Without the code: a traceback or a log may show this."""
        return f"Enrolment(code='****', worker={self.worker!r}, expires_at={self.expires_at})"


class Enrolled(msgspec.Struct, frozen=True):
    """For whom a code is."""

    worker: str
    expires_at: int


class _Added(msgspec.Struct, frozen=True):
    id: str
    worker_id: str
    created_at: int
    created_by: str


def is_token(text: bytes) -> bool:
    """Whether this has the form of a worker's token."""
    return _TOKEN.fullmatch(text) is not None


async def add(database: Database, worker: str, *, actor: str) -> MadeToken:
    """Make a token for the worker of this name. Its secret is in the answer, and nowhere else ever.

    Raises:
        BadWorker: no worker can be called so.
    """
    _check_name(worker)
    secret = new_secret(TOKEN_PREFIX)
    hash = digest(secret.encode())
    [made] = await database.change(_Added, ADD, id=new_id(), worker_id=worker, hash=hash, actor=actor)
    return MadeToken(made.id, made.worker_id, secret, made.created_at, made.created_by)


async def remove(database: Database, worker: str, id: str, *, actor: str) -> str:
    """Make a token of this worker invalid for ever; gives the hash that no longer counts.

    Raises:
        NotFound: this worker has none with this id.
    """
    removed = await database.change(Holder, REMOVE, worker_id=worker, id=id, actor=actor)
    if not removed:
        raise NotFound("Token not found")
    return removed[0].hash


async def listing(database: Database, worker: str, page: Page | None = None) -> list[Token]:
    """A page of a worker's tokens, the latest made first; without a page all that an answer has room for.

    Raises:
        NotFound: there is neither a token nor a worker of this name.
    """
    page = page or Page(limit=1000)
    found = await database.listing(Token, LIST, worker_id=worker, at=page.at, before=page.id, limit=page.limit)
    if not found:
        await workers.one(database, worker)
    return found


async def workers_by_hash(database: Database) -> dict[str, str]:
    """All valid tokens."""
    return {row.hash: row.name for row in await database.rows(Holder, HASHES)}


async def note_uses(database: Database, seconds_ago: Mapping[str, float]) -> None:
    """Write down when the tokens with these hashes were used last; what is known to be later stays."""
    ages_ms = [round(seconds * 1000) for seconds in seconds_ago.values()]
    await database.execute(USED, hashes=list(seconds_ago), ages_ms=ages_ms)


async def enrol(database: Database, worker: str, *, actor: str) -> Enrolment:
    """Make a code by which a machine becomes this worker. It is in the answer, and nowhere else ever.

    Raises:
        BadWorker: no worker can be called so.
    """
    _check_name(worker)
    code = new_secret(CODE_PREFIX)
    hash = digest(code.encode())
    [made] = await database.change(Enrolled, ENROL, worker_id=worker, hash=hash, code_ms=CODE_MS, actor=actor)
    return Enrolment(code, made.worker, made.expires_at)


async def of_code(database: Database, code: str) -> Enrolled:
    """For whom a code is; it is not spent by this.

    Raises:
        BadCode: it is worth nothing, or nothing any more.
    """
    if found := await database.row(Enrolled, OF_CODE, hash=_code_hash(code)):
        return found
    raise BadCode(_NOT_VALID)


async def exchange(database: Database, code: str) -> MadeToken:
    """Spend a code, for a token of the worker that it is for.

    Raises:
        BadCode: it is worth nothing, or nothing any more.
    """
    secret = new_secret(TOKEN_PREFIX)
    hash = digest(secret.encode())
    exchanged = await database.change(_Added, EXCHANGE, code_hash=_code_hash(code), id=new_id(), hash=hash)
    if not exchanged:
        raise BadCode(_NOT_VALID)
    [made] = exchanged
    return MadeToken(made.id, made.worker_id, secret, made.created_at, made.created_by)


def _code_hash(code: str) -> str:
    if not _CODE.fullmatch(code):
        raise BadCode(_NOT_VALID)
    return digest(code.encode())


def _check_name(worker: str) -> None:
    try:
        msgspec.convert(worker, NewWorkerName)
    except msgspec.ValidationError as error:
        raise BadWorker(f"No worker can have this name: it {WORKER_NAME_RULE}") from error
