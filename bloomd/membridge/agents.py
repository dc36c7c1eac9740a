"""What `/agents` answers, in either generation, as `Agent` values: decisions only, no I/O.

Nothing in the answer is trusted, and one malformed agent never spoils the others: it is left out, and said to be. A
field that is absent, null or unusable counts as not sent, and what is not sent never overwrites what is known. What
comes out can be stored: no NUL, no lone surrogate, no infinite number, no integer that the column cannot hold.
"""

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

NAME_LIMIT = 128
LABEL_LIMIT = 64
TEXT_LIMIT = 256
URL_LIMIT = 2048
LIST_LIMIT = 64
# Capabilities that bloomd does not read are kept for others, within reason: all of one agent, as JSON.
EXTRA_LIMIT = 16 * 1024
EXTRA_DEPTH = 16
CONCURRENCY_LIMIT = 32
INTEGER_LIMIT = 2**31 - 1

# No names: clients and proxies take them out of a path, so that nobody could ask for such an agent, or remove it.
DOTS = frozenset({".", ".."})

STATUSES = frozenset({"online", "offline", "syncing", "error", "unknown"})

# NUL and halves of surrogate pairs: JSON can write them, PostgreSQL's text and jsonb cannot hold them.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")

# Membridge did not exist before; such a time is a counter, or zero for "never".
EARLIEST_SEEN = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
# Clocks differ; by more than this, the time is something else, milliseconds for example.
CLOCKS_DIFFER_SECONDS = 86400.0


class Agent(msgspec.Struct, frozen=True):
    """One agent as Membridge describes it. `None` is: not sent."""

    id: str
    node_id: str | None = None
    url: str | None = None
    status: str | None = None
    capabilities: dict[str, Any] | None = None
    last_seen_ms: int | None = None
    ip_addrs: list[str] | None = None
    obs_count: int | None = None
    db_sha: str | None = None


class Decoded(msgspec.Struct, frozen=True):
    agents: list[Agent]
    """One for each name; of several, the last one."""
    skipped: list[str]
    """One sentence for each that was left out."""


def decode(body: bytes, *, now: float) -> Decoded:
    """Read an answer to GET /agents.

    Args:
        now: epoch seconds; nobody was seen later than that.

    Raises:
        ValueError: it is no list of agents at all. The text continues a sentence.
    """
    try:
        # Not msgspec, which refuses a whole answer for one lone surrogate in it.
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("its /agents is not JSON") from error
    if not isinstance(value, list):
        raise ValueError("its /agents is not a JSON array")
    agents: dict[str, Agent] = {}
    skipped: list[str] = []
    for position, item in enumerate(cast("list[Any]", value)):
        agent = _agent(cast("dict[str, Any]", item), now) if isinstance(item, dict) else None
        if agent is None:
            skipped.append(f"agent {position} has no usable name")
        else:
            agents.pop(agent.id, None)
            agents[agent.id] = agent
    return Decoded(list(agents.values()), skipped)


def _agent(item: dict[str, Any], now: float) -> Agent | None:
    node_id = text(item.get("node_id"), NAME_LIMIT)
    # A name that cannot be used is not replaced by an id: the agent would come back as another worker.
    candidates = (item.get("name"), node_id, item.get("id"))
    id = text(next((candidate for candidate in candidates if candidate is not None), None), NAME_LIMIT)
    if id is None or id in DOTS:
        return None
    return Agent(
        id=id,
        node_id=node_id,
        url=web_url(item.get("url")),
        status=known_status(item.get("status")),
        capabilities=capabilities(item.get("capabilities")),
        last_seen_ms=_last_seen(item.get("last_seen"), now),
        ip_addrs=texts(item.get("ip_addrs"), LABEL_LIMIT),
        obs_count=count(item.get("obs_count")),
        db_sha=text(item.get("db_sha"), NAME_LIMIT),
    )


def text(value: Any, limit: int) -> str | None:
    """The value when it is a text that can be stored and is not empty; a whole number counts as its digits."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = str(value)
    return value if isinstance(value, str) and 0 < len(value) <= limit and _storable(value) else None


def texts(value: Any, limit: int) -> list[str] | None:
    """The texts in a list, each of them once; what else it holds is left out."""
    if not isinstance(value, list):
        return None
    found = (text(item, limit) for item in cast("list[Any]", value))
    return list(dict.fromkeys(item for item in found if item is not None))[:LIST_LIMIT]


def capabilities(value: Any) -> dict[str, Any] | None:
    """What a worker says that it can do: the three that bloomd reads, made sound, and others as they are, while there
    is room for them."""
    if not isinstance(value, dict):
        return None
    kept: dict[str, Any] = {}
    room = EXTRA_LIMIT
    for key, content in cast("dict[str, Any]", value).items():
        if text(key, TEXT_LIMIT) is None:
            continue
        if known := _KNOWN_CAPABILITIES.get(key):
            if (sound := known(content)) is not None:
                kept[key] = sound
        elif content is not None and _storable(content) and (size := len(json.dumps({key: content}))) <= room:
            kept[key] = content
            room -= size
    return kept


def _claude_cli(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _max_concurrency(value: Any) -> int | None:
    number = finite(value)
    return None if number is None else int(min(max(number, 1), CONCURRENCY_LIMIT))


def _labels(value: Any) -> list[str] | None:
    return texts(value, LABEL_LIMIT)


_KNOWN_CAPABILITIES: dict[str, Callable[[Any], Any]] = {
    "claude_cli": _claude_cli,
    "max_concurrency": _max_concurrency,
    "labels": _labels,
}


def web_url(value: Any) -> str | None:
    """The value when it is an http or https URL that can be stored."""
    url = text(value, URL_LIMIT)
    if url is None or not url.lower().startswith(("http://", "https://")):
        return None
    return url if url.isprintable() and " " not in url else None


def known_status(value: Any) -> str | None:
    """The value when it is a status that a worker can have."""
    status = value.lower() if isinstance(value, str) else None
    return status if status in STATUSES else None


def _last_seen(value: Any, now: float) -> int | None:
    seconds = _iso(value) if isinstance(value, str) else finite(value)
    if seconds is None or not EARLIEST_SEEN <= seconds <= now + CLOCKS_DIFFER_SECONDS:
        return None
    return int(min(seconds, now) * 1000)


def _iso(value: str) -> float | None:
    """Seconds, from digits or from ISO 8601; a time without a zone is UTC."""
    try:
        return finite(float(value))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def count(value: Any) -> int | None:
    """The value when it is a number that can count something."""
    number = finite(value)
    return int(number) if number is not None and 0 <= number <= INTEGER_LIMIT else None


def finite(value: Any) -> float | None:
    """A number that can be reckoned with. A bool is none, although Python has it so."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def _storable(value: Any, depth: int = 0) -> bool:
    """Whether PostgreSQL can hold the value as JSON, and nobody is hurt by its depth."""
    if depth > EXTRA_DEPTH:
        return False
    match value:
        case str():
            return UNSTORABLE.search(value) is None
        case float():
            return math.isfinite(value)
        case list():
            return all(_storable(item, depth + 1) for item in cast("list[Any]", value))
        case dict():
            items = cast("dict[str, Any]", value).items()
            return all(_storable(key) and _storable(item, depth + 1) for key, item in items)
        case int():
            return abs(value) < 2**63
        case _:
            return True
