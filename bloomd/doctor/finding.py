"""What a check finds: how it is, in one sentence, and what mends it, in one line."""

from typing import Literal

import msgspec

State = Literal["ok", "skipped", "warning", "error"]

# Why a check is skipped for which PostgreSQL does not let our user look.
NOT_PERMITTED = "our user may not look at it: see postgres.privileges"


class Found(msgspec.Struct, frozen=True):
    """The answer of one check."""

    state: State
    text: str
    fix: str | None = None
    """A command to type where there is one, else what to change."""


class Finding(msgspec.Struct, frozen=True):
    """The answer of a check, under its name."""

    check: str
    subject: str
    """What it is about, as the text groups it."""
    state: State
    found: str
    """One sentence. Holds no secret."""
    fix: str | None = None
    """What mends it: a command to type where there is one. Null when there is nothing to mend."""


class Skip(Exception):
    """There is nothing to look at, or it cannot be seen; the text says why."""


def ok(text: str) -> Found:
    return Found("ok", text)


def warning(text: str, fix: str) -> Found:
    """It works, and may not for long, or not as it should."""
    return Found("warning", text, fix)


def error(text: str, fix: str) -> Found:
    """It does not work, or is dangerous."""
    return Found("error", text, fix)
