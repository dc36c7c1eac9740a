"""What the daemon answers for a bug report, and of its log: types only, as in `answers`."""

from typing import Any, TypedDict

from bloomd.control.answers import Status


class RecentLines(TypedDict):
    lines: int
    """How many were told before this answer."""


class RunningVersions(TypedDict):
    python: str
    packages: dict[str, str]
    libpq: str
    postgresql: str | None
    """Null when PostgreSQL is away."""
    schema: int | None


class BugReport(TypedDict):
    """What the daemon tells for a bug report, redacted."""

    node: str
    at: float
    config: str | None
    """The path of its configuration file."""
    env_file: str | None
    """The path that `--env-file` gave it."""
    versions: RunningVersions
    status: Status
    settings: dict[str, Any]
    """As `config` has it, with no part of a secret."""
    limits: list[str]
    """Of the process, as Linux tells them."""
