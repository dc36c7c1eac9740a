"""The page's session: a cookie that is judged from itself, the keys and the clock, without the database.

::

    id . expires . key . signature

`id` is random, and by it a session is ended; `expires` is in epoch milliseconds; `key` is a mark of the API key that
was signed in with, so that the session is over when that key is removed or changed. The mark and the signature are
HMAC-SHA256 under one secret: whoever finds a cookie learns nothing of the key.
"""

import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from bloomd.runtime.keyring import KeyRing
from bloomd.runtime.keys import digest
from bloomd.settings.model import Http

# A working day, and who stays longer signs in again.
LIFE_MS = 12 * 3_600_000

# A browser takes the prefixed one only over TLS, for this very host and all of its paths.
COOKIE = "bloomd"
SECURE_COOKIE = "__Host-bloomd"

# The name of the configured key, which has none of its own.
KEY_NAME = "api-key"


class Session(msgspec.Struct, frozen=True):
    id: str
    actor: str
    """The name of its key."""
    expires_at: int


def begin(secret: str, hash: str, actor: str) -> tuple[Session, str]:
    """A new session with the key of this hash, and the cookie's value."""
    session = Session(secrets.token_urlsafe(16), actor, _now_ms() + LIFE_MS)
    said = f"{session.id}.{session.expires_at}.{_mark(secret, hash)}"
    return session, f"{said}.{_signature(secret, said)}"


def session_in(value: str, http: Http, keys: KeyRing) -> Session | None:
    """The session that a cookie stands for, whose key is hereby used; None when it was never one, or is none now."""
    secret = signing_secret(http, keys)
    said, _, signature = value.rpartition(".")
    if secret is None or not hmac.compare_digest(_signature(secret, said).encode(), signature.encode()):
        return None
    id, expires, mark = said.split(".")
    if int(expires) <= _now_ms() or keys.sessions.is_ended(id):
        return None
    key = next((each for each in _hashes(http, keys) if _mark(secret, each[0]) == mark), None)
    if key is None:
        return None
    hash, actor = key
    keys.note_use(hash)
    return Session(id, actor, int(expires))


def signing_secret(http: Http, keys: KeyRing) -> str | None:
    """What signs: the one that is configured, else the one that the database keeps; None as long as it is unread."""
    return http.session_secret or keys.sessions.secret


def key_of(secret: str, http: Http, keys: KeyRing) -> tuple[str, str] | None:
    """The hash and the name of the API key that this is, if it is one."""
    hash = digest(secret.encode())
    return next(((known, name) for known, name in _hashes(http, keys) if hmac.compare_digest(known, hash)), None)


def set_cookie(value: str, *, seconds: int, secure: bool) -> str:
    """The header by which a browser keeps a session for so long, or with 0 forgets it."""
    name, flag = (SECURE_COOKIE, "; Secure") if secure else (COOKIE, "")
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{flag}"


def _hashes(http: Http, keys: KeyRing) -> Iterable[tuple[str, str]]:
    if http.api_key is not None:
        yield digest(http.api_key.encode()), KEY_NAME
    yield from keys.hashes.items()


def _now_ms() -> int:
    return int(time.time() * 1000)


@lru_cache(maxsize=1024)  # of keys, which are few, for each request of a page
def _mark(secret: str, hash: str) -> str:
    return _signature(secret, f"key {hash}")[:22]


def _signature(secret: str, text: str) -> str:
    return urlsafe_b64encode(hmac.digest(secret.encode(), text.encode(), "sha256")).rstrip(b"=").decode()
