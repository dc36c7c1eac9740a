"""What no log line and no bug report may hold: the secrets that are known, and whatever has the form of one.

A known secret is found in each spelling in which it turns up: as it is, as JSON or `repr` quote it, once more when
that text is quoted again, and percent-encoded in a URL. What nobody here knows, such as a worker's token in somebody's
path, the password in a URL or the header of a request, is told by its form or by the name before it. In doubt too much
is blotted out rather than too little.

The client of the control socket uses this, too, so it imports nothing but the standard library.
"""

from __future__ import annotations

import json
import re
from urllib.parse import quote, quote_plus

TYPE_CHECKING = False  # importing typing would cost as much as a call of `bloomd-ctl` takes
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Json = str | int | float | None | list["Json"] | dict[str, "Json"]

MASK = "****"

# A shorter secret would blot out half of every line; such a key protects nothing anyway.
MIN_SECRET = 6

# API keys with names and what workers have (`runtime/keys.py`, `runtime/tokens.py`): one may come in a path, by
# somebody's mistake.
_NAMED_KEY = re.compile(r"bloom[ew]?_[A-Za-z0-9_-]{43}")

# The cookie of the page (`http/session.py`).
_SESSION = re.compile(r"[A-Za-z0-9_-]{22}\.\d{13}\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}")

# Up to the last @: a password that lacks an escape may hold one, or a slash. The bound keeps a hostile text cheap.
_LOGIN = re.compile(r"(?<=://)([^\s/?#@:\"'<>]{0,256}:)[^\s\"'<>]{1,512}(?=@)")

_BEARER = re.compile(r"\b(bearer\s+)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)

# Without the name of its header. A word after "basic" is an ordinary one, unless it has more than small letters.
_BASIC = re.compile(r"\b(basic\s+)(?-i:(?=[a-z]*[A-Z0-9+/=]))[A-Za-z0-9+/=]{8,}", re.IGNORECASE)

# Of the models' providers: what the workers' programs have.
_API_KEY = re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")

_JWT = re.compile(r"(?<![\w-])eyJ[\w-]+\.[\w-]+\.[\w-]+")

# To its last line, or as far as it goes when that was cut off.
_PEM = re.compile(
    r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----)"
    r"(?:[\w+/=\s:,-]|\\[nr])*?(?=-----END |(?![\w+/=\s:,-]|\\[nr])|\Z)"
)

_CURL = re.compile(r"(\bcurl\b[^\n]{0,200}?\s(?:-u|--user)[\s=]*[^\s:]{1,100}:)[^\s\"'\\]+")

# Headers with a value of several words.
_HEADER = re.compile(r"((?:cookie|authorization)\s*[:=]\s*)[^\"'\\\n]+", re.IGNORECASE)

_NAMES = (
    r"(?:passw(?:or)?d|pwd|passphrase|secret|token|cookie|authorization|signature|credential"
    r"|(?:api-?|access|secret|admin|agent)key|[_?&-]key)"
)

# A quoted value, perhaps in a text that was quoted again, and more than once.
_QUOTED = r"""(?P<escape>\\*)(?P<quote>["']).*?(?:(?<!\\)(?P=escape)(?P=quote)|$)"""

# `name=value`, `name: value` and `"name": "value"`; what JSON does not quote is no secret.
_TOLD = re.compile(
    rf"""({_NAMES}(?:\\*["']\s*[:=]\s*(?=\\*["'])|=|:\s*)(?:b(?=["']))?)"""
    rf"""(?:{_QUOTED}|(?:[^\s"'\\]|\\(?!["'n\\]))+)""",
    re.IGNORECASE | re.MULTILINE,
)

# What makes a colon that of a sentence, as in "a password: put one into the URL": the word before the name, and a word
# after it that does not end its line.
_BEFORE = re.compile(r"[\w,] $")
_AFTER = re.compile(r"[a-z`']+[,.]?[ \t]+\S")

# `(b"name", b"value")`, as Python shows a header.
_PAIR = re.compile(rf"""([(\[]b?\\*["'][\w.-]*{_NAMES}\\*["'],\s*b?){_QUOTED}""", re.IGNORECASE | re.MULTILINE)


def _masked(match: re.Match[str]) -> str:
    quote = (match["escape"] or "") + (match["quote"] or "")
    return f"{match[1]}{quote}{MASK}{quote}"


def _told(match: re.Match[str]) -> str:
    text, start = match.string, match.start()
    sentence = match[1].endswith(": ") and _BEFORE.search(text[max(0, start - 2) : start])
    return match[0] if sentence and _AFTER.match(text, match.end(1)) else _masked(match)


# Each form, what takes its place, and what is in every text that has it: looking for that first takes a tenth of the
# time, and every request writes a line.
_WORDS = ("passw", "passphrase", "secret", "token", "cookie", "authorization", "pwd", "signature", "credential")
_FORMS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str], tuple[str, ...]], ...] = (
    (_NAMED_KEY, MASK, ("bloom",)),
    (_SESSION, MASK, (".",)),
    (_LOGIN, rf"\1{MASK}", ("://",)),
    (_BEARER, rf"\1{MASK}", ("bearer",)),
    (_BASIC, rf"\1{MASK}", ("basic",)),
    (_API_KEY, MASK, ("sk-",)),
    (_JWT, MASK, ("eyj",)),
    (_PEM, rf"\1{MASK}", ("private key-----",)),
    (_CURL, rf"\1{MASK}", ("curl",)),
    (_HEADER, rf"\1{MASK}", ("cookie", "authorization")),
    (_PAIR, _masked, ("('", "(b'", '("', "['", '["', "(\\")),
    (_TOLD, _told, (*_WORDS, "key=", "key:", 'key":', "key':", "key\\")),
)

# How a text is quoted: by JSON in two ways, by Python, and by logfmt.
_QUOTINGS: tuple[Callable[[str], str], ...] = (
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: repr(text)[1:-1],
    lambda text: text.replace('"', '\\"'),
)


class Redaction:
    """Blots out what it has been told, and what has the form of a secret."""

    def __init__(self) -> None:
        self._known: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Redaction of {len(self._known)} texts>"

    def add(self, secrets: Iterable[str]) -> None:
        """Blot out these, too, from now on; one that is replaced later is still no reading matter."""
        known = {*self._known}.union(*(_spellings(secret) for secret in secrets if len(secret) >= MIN_SECRET))
        self._known = tuple(sorted(known, key=len, reverse=True))  # one inside another is not to be left over in part

    def __call__(self, text: str) -> str:
        """The text without them."""
        for secret in self._known:
            text = text.replace(secret, MASK)
        return _without_forms(text)

    def within(self, value: Json, limit: int) -> Any:
        """A JSON value with all its texts redacted, each of them cut after `limit` characters."""
        if isinstance(value, str):
            return cut(self(value), limit)
        if isinstance(value, list):
            return [self.within(item, limit) for item in value]
        if isinstance(value, dict):
            return {key: self.within(item, limit) for key, item in value.items()}
        return value


def without_named_keys(text: str) -> str:
    """The text with whatever has the form of a named API key, a token or an enrolment code blotted out."""
    return _NAMED_KEY.sub(MASK, text)


def cut(text: str, limit: int) -> str:
    """The beginning of a text that is too long, and how much is missing."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more characters)"


def _without_forms(text: str) -> str:
    lowered = text.lower()
    for form, instead, hints in _FORMS:
        if any(hint in lowered for hint in hints):
            text = form.sub(instead, text)
    return text


def _spellings(secret: str) -> set[str]:
    """The secret as it may stand in a text."""
    found = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)}
    for _ in range(2):
        found |= {quoting(text) for text in found for quoting in _QUOTINGS}
    return found
