"""Logs: key=value for people, JSON for machines; info to stdout, warnings and errors to stderr; secrets never.

Two streams, because OpenRC's `output_log` and `error_log` make the two files of the deployment guide from them.
"""

import json as jsonlib
import logging
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

# A shorter secret would blot out half of every line; such a key protects nothing anyway.
MIN_SECRET = 6

# API keys with names and what workers have (`runtime/keys.py`, `runtime/tokens.py`) are known by their form only: one
# may come in a path, by somebody's mistake.
_NAMED_KEY = re.compile(r"bloom[ew]?_[A-Za-z0-9_-]{43}")


class Logs:
    """How this process logs; what it redacts and from which level on can change while it runs."""

    def __init__(self, *, json: bool, level: str = "info") -> None:
        self._json = json
        self._secrets: set[str] = set()
        self.level = level
        self.set_level(level)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=_COMMON,
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    *_renderers(json, sys.stderr),
                    self._redact,
                ],
            )
        )
        logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)  # what the libraries say

    def set_level(self, level: str) -> None:
        """Write from this level on."""
        self.level = level
        structlog.configure(
            processors=[*_COMMON, *_renderers(self._json, sys.stdout), self._redact],
            wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
            logger_factory=_TwoStreams,
            cache_logger_on_first_use=False,
        )

    def redact(self, secrets: Iterable[str]) -> None:
        """Never write any of these from now on; one that is replaced later is still no reading matter."""
        for secret in secrets:
            if len(secret) >= MIN_SECRET:
                self._secrets |= {secret, jsonlib.dumps(secret)[1:-1]}

    def _redact(self, logger: Any, method: str, line: Any) -> Any:
        """The last step: in a finished line a secret is found wherever it came from."""
        for secret in self._secrets:
            line = line.replace(secret, "****")
        return without_named_keys(line)


def without_named_keys(text: str) -> str:
    """The text with whatever has the form of a named API key, a token or an enrolment code blotted out."""
    return _NAMED_KEY.sub("****", text)


class _TwoStreams:
    """A logger that writes a finished line to the stream of its level."""

    def __init__(self, *args: object) -> None:
        """structlog passes the arguments of `get_logger`: our module names, which the lines do not need."""

    def debug(self, line: str) -> None:
        _write(sys.stdout, line)

    info = debug

    def warning(self, line: str) -> None:
        _write(sys.stderr, line)

    error = critical = exception = warning


def is_json(format: str, production: bool) -> bool:
    """Whether to write JSON: when asked to, or in production when it is left to us."""
    return format == "json" or (format == "auto" and production)


def _write(stream: TextIO, line: str) -> None:
    with suppress(OSError, ValueError):  # a full disk or a closed pipe costs lines, not the daemon
        stream.write(line + "\n")
        stream.flush()


_COMMON: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def _renderers(json: bool, stream: TextIO) -> list[Any]:
    if json:
        return [structlog.processors.JSONRenderer()]
    if stream.isatty():
        return [structlog.dev.ConsoleRenderer(pad_event_to=28, timestamp_key="timestamp")]
    return [structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)]
