"""What clients send, from bytes to checked values: decisions only, no I/O.

What a thing is called must be usable, or it is refused with 422. Of the rest a client may know more than we do, and an
agent in the field cannot be corrected: what is unusable counts as not sent, by the rules that our own client has for
the answers of a server (`bloomd.membridge.agents`).
"""

from typing import Any, cast

import msgspec

from bloomd.membridge.agents import (
    DOTS,
    LABEL_LIMIT,
    NAME_LIMIT,
    capabilities,
    count,
    finite,
    known_status,
    text,
    texts,
    web_url,
)
from bloomd.runtime import projects

PROJECT_LIMIT = 256

# A year; who wants a primary for longer selects it again.
LONGEST_LEASE_SECONDS = 365 * 86400.0
LEASE_SECONDS = 3600.0


class Refused(Exception):
    """The answer is this status, and this sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class NewAgent(msgspec.Struct, frozen=True):
    """An agent as it is registered, by itself or by others. `None` is: not said."""

    name: str
    url: str | None
    said: str | None
    """The status that it gives itself. `unknown` is none."""
    capabilities: dict[str, Any] | None
    ip_addrs: list[str] | None
    obs_count: int | None
    db_sha: str | None


class Heartbeat(msgspec.Struct, frozen=True):
    node_id: str
    canonical_id: str
    project_id: str | None
    obs_count: int | None
    db_sha: str | None
    ip_addrs: list[str] | None
    agent_version: str | None


class Selection(msgspec.Struct, frozen=True):
    primary_node_id: str
    lease_seconds: float


def decode(body: bytes) -> dict[str, Any]:
    """The fields of a body.

    Raises:
        Refused: 400, it is not JSON; 422, it is no object.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "The body is not valid JSON") from error
    if not isinstance(value, dict):
        raise Refused(422, "The body must be a JSON object")
    return cast("dict[str, Any]", value)


def new_agent(body: dict[str, Any]) -> NewAgent:
    """Either generation: `{name, url}`, or `{name, status, capabilities}` and more."""
    url = web_url(body.get("url"))
    if url is None and body.get("url"):
        raise Refused(422, "url: expected a URL such as http://10.0.0.7:8001")
    said = known_status(body.get("status"))
    return NewAgent(
        name=name(body, "name"),
        url=url,
        said=None if said == "unknown" else said,
        capabilities=capabilities(body.get("capabilities")),
        ip_addrs=texts(body.get("ip_addrs"), LABEL_LIMIT),
        obs_count=count(body.get("obs_count")),
        db_sha=text(body.get("db_sha"), NAME_LIMIT),
    )


def new_project(body: dict[str, Any]) -> tuple[str, str]:
    """A name, and the id that goes with it unless another one is sent."""
    called = name(body, "name", PROJECT_LIMIT)
    return called, canonical_id(body) if body.get("canonical_id") else projects.canonical_id(called)


def heartbeat(body: dict[str, Any]) -> Heartbeat:
    """When it was seen is not believed: clocks differ, and it is here now."""
    return Heartbeat(
        node_id=name(body, "node_id"),
        canonical_id=canonical_id(body),
        project_id=text(body.get("project_id"), PROJECT_LIMIT),
        obs_count=count(body.get("obs_count")),
        db_sha=text(body.get("db_sha"), NAME_LIMIT),
        ip_addrs=texts(body.get("ip_addrs"), LABEL_LIMIT),
        agent_version=text(body.get("agent_version"), LABEL_LIMIT),
    )


def selection(body: dict[str, Any]) -> Selection:
    given = body.get("lease_seconds")
    seconds = LEASE_SECONDS if given is None else finite(given)
    if seconds is None or not 1 <= seconds <= LONGEST_LEASE_SECONDS:
        raise Refused(422, f"lease_seconds: expected a number of seconds from 1 to {LONGEST_LEASE_SECONDS:.0f}")
    return Selection(name(body, "primary_node_id"), seconds)


def name(body: dict[str, Any], field: str, limit: int = NAME_LIMIT) -> str:
    """What somebody or something is called.

    Raises:
        Refused: 422, it is missing, cannot be stored, or cannot stand in a path.
    """
    if (found := text(body.get(field), limit)) is None or found in DOTS:
        raise Refused(422, f"{field}: expected text of 1 to {limit} characters, none of them NUL, and not `.` or `..`")
    return found


def canonical_id(body: dict[str, Any]) -> str:
    """The id of a project.

    Raises:
        Refused: 422, it is none.
    """
    value = body.get("canonical_id")
    if not isinstance(value, str) or not projects.is_canonical_id(value):
        raise Refused(422, "canonical_id: expected 16 hexadecimal digits, lower case")
    return value
