"""Keys: whether one is asked for where it has to be, and whether they are any good."""

import re

import msgspec

from bloomd.doctor.case import Case
from bloomd.doctor.finding import Found, error, ok, warning
from bloomd.settings import SECRETS, Tcp, Unix, parse_bind
from bloomd.settings.check import SHORTEST_KEY
from bloomd.settings.conninfo import passwords
from bloomd.settings.keys import flatten

# What programs come with, guides show, and people type first.
WELL_KNOWN = frozenset(
    {
        "admin", "bloom", "bloom-runtime", "bloom_runtime", "bloomd", "change-me", "change_me", "changeme", "default",
        "dev", "example", "key", "membridge", "minio", "minio123", "minioadmin", "pass", "password", "postgres",
        "qwerty", "root", "secret", "test", "your-api-key", "your-secret-key",
    }
)  # fmt: skip

# What a guide shows in the place of a key has one of these in it, whatever stands around: "put-your-api-key-here".
STAND_INS = ("changeme", "changethis", "replaceme", "yourapikey", "yourkey", "yourpassword", "yoursecret", "yourtoken")
BRACKETS = ("<>", "[]", "{}")

NAMED_KEYS = """
SELECT (SELECT count(*) FROM api_keys) + (SELECT count(*) FROM worker_tokens) AS number
"""


class _Number(msgspec.Struct, frozen=True):
    number: int


async def open_to_all(case: Case) -> Found:
    """Nobody gets in without a key who is not on this machine."""
    http = case.settings.http
    if http.api_key is not None:
        return ok("a key is asked for")
    [named] = await case.database.rows(_Number, NAMED_KEYS)
    if named.number:
        return ok("named keys are asked for")
    fix = "bloomd-ctl key add NAME, or set http.api_key"
    addresses = [parse_bind(bind) for bind in http.bind]
    beyond = [each for each in addresses if isinstance(each, Tcp) and not each.loopback]
    if beyond:
        return error(f"whoever reaches port {beyond[0].port} may do everything: there is no key", fix)
    if http.public_url or any(isinstance(each, Unix) for each in addresses):
        return error("whoever nginx lets in may do everything: there is no key", fix)
    return ok("there is no key, and only this machine can get in")


def weak(case: Case) -> Found:
    """No key is one that somebody would try."""
    values = {key: value for key, value in flatten(case.settings).items() if key in SECRETS and isinstance(value, str)}
    url = values.pop("database.url", "")
    secrets = [*values.items(), *(("the password in database.url", password) for password in passwords(url))]
    known = list(dict.fromkeys(key for key, secret in secrets if _is_known(secret)))
    if known:
        return error(f"{known[0]} is one that everybody knows", _fix(known[0]))
    short = list(dict.fromkeys(key for key, secret in secrets if len(secret) < SHORTEST_KEY))
    if short:
        have = "has" if len(short) == 1 else "have"
        return warning(f"{' and '.join(short)} {have} fewer than {SHORTEST_KEY} characters", _fix(short[0]))
    return ok("no key is short or well known")


def _is_known(secret: str) -> bool:
    if secret.lower() in WELL_KNOWN or len(set(secret)) <= 2 or secret[0] + secret[-1] in BRACKETS:
        return True
    letters = re.sub(r"[^a-z]", "", secret.lower())
    return letters in WELL_KNOWN or any(word in letters for word in STAND_INS)


def _fix(key: str) -> str:
    return f"openssl rand -hex 32 makes a better one: set {key}, and whoever uses it, then bloomd-ctl reload"
