"""The Membridge settings that are made here rather than in a file, and the test of its connection."""

import time
from typing import Any

import msgspec
import trio
from litestar import delete, get, post

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.http.bodies import read
from bloomd.http.problems import FieldError, Problem
from bloomd.http.requests import Req, actor, caller, node_of
from bloomd.node import Node
from bloomd.runtime import stored
from bloomd.settings import Setting, describe, key_problem, masked, origin, url_problem

# Every setting that the API may make, by the name under which it is stored.
KEYS = ("membridge_server_url", "admin_key")

# The last test was of what is no longer in force.
NOT_TESTED = {"connected": "false", "last_test": ""}

# For callers without the key, who could otherwise make us call somebody as often as they like.
CACHE_SECONDS = 1.0


class NewConfig(msgspec.Struct, frozen=True):
    """What is not sent is kept."""

    membridge_server_url: str | None = None
    admin_key: str | None = None
    membridge_admin_key: str | None = None
    """The same as `admin_key`, as the deployment guide spells it."""


class Config(msgspec.Struct, frozen=True):
    membridge_server_url: str
    admin_key_masked: str
    connected: bool
    last_test: int | None
    stored: list[str]
    """What was set here, of `membridge_server_url` and `admin_key`; not all of it need be in force."""


class Effective(msgspec.Struct, frozen=True):
    settings: list[Setting]
    warnings: tuple[str, ...]


class Test(msgspec.Struct, frozen=True, omit_defaults=True):
    connected: bool
    health: Any = None
    error: str | None = None


@get("/api/runtime/config", summary="The Membridge settings in force")
async def show(request: Req) -> Config:
    return await _config(node_of(request))


@get("/api/runtime/settings", summary="Every setting in force, and where it was told")
async def effective(request: Req) -> Effective:
    """Of this node, secrets masked."""
    loaded = node_of(request).loaded
    return Effective(describe(loaded), loaded.warnings)


@post("/api/runtime/config", summary="Set the Membridge URL and key", status_code=200, opt={"body": NewConfig})
async def change(request: Req) -> Config:
    """In force at once, on every node. A URL of another origin needs its key in the same request."""
    node = node_of(request)
    body = await read(request, NewConfig)
    key = body.admin_key if body.admin_key is not None else body.membridge_admin_key
    values: dict[str, str] = {}
    if body.membridge_server_url is not None:
        values["membridge_server_url"] = _checked_url(body.membridge_server_url)
    if key is not None:
        values["admin_key"] = _checked_key(key)
    if not values:
        raise Problem(400, "Nothing to set: send membridge_server_url, admin_key, or both", type="invalid")
    url = values.get("membridge_server_url") or node.settings.membridge.server_url
    if url is None:
        raise _field("membridge_server_url", "is required: no URL is set yet, and a key belongs to one")
    known = node.settings.membridge
    if key is None and known.server_url and origin(known.server_url) != origin(url):
        raise _field(
            "admin_key",
            f"is required with another server: the key that is set was given for {origin(known.server_url)}",
        )
    if key is not None:
        values["admin_key_origin"] = origin(url)
    url_told = f"membridge_server_url {url}" if body.membridge_server_url is not None else ""
    detail = ", ".join(filter(None, [url_told, "a new admin_key" if key is not None else ""]))
    await stored.write(node.database, values | NOT_TESTED, actor=actor(request), detail=detail)
    await node.take_stored()
    return await _config(node)


@delete("/api/runtime/config/{key:str}", summary="Unset a setting made here", status_code=200)
async def unset(request: Req, key: str) -> Config:
    """The environment, the file or the default count again."""
    node = node_of(request)
    name = "admin_key" if key == "membridge_admin_key" else key
    if name not in KEYS:
        raise Problem(404, f"There is no setting {key!r} here; there are {', '.join(KEYS)}", type="not-found")
    keys = [name, "admin_key_origin"] if name == "admin_key" else [name]
    await stored.unset(node.database, keys, actor=actor(request))
    await stored.note(node.database, NOT_TESTED)
    await node.take_stored()
    return await _config(node)


@post(
    "/api/runtime/test-connection",
    summary="Whether Membridge answers, and takes the key",
    status_code=200,
    opt={"body": dict[str, Any]},
)
async def test_connection(request: Req) -> Test:
    """Without the API key: one try, one at a time, an answer up to a second old, and errors in general words."""
    node = node_of(request)
    if not caller(request).authenticated:
        return await request.app.state["public_test"].run(node)
    await read(request, dict[str, Any])
    test = await _test(node, detailed=True)
    if node.database.away is None:
        await stored.note(
            node.database, {"connected": str(test.connected).lower(), "last_test": str(int(time.time() * 1000))}
        )
    return test


class PublicTest:
    """The test for callers without the key."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._answer = Test(connected=False)
        self._answered_at = -CACHE_SECONDS

    async def run(self, node: Node) -> Test:
        async with self._lock:
            if trio.current_time() - self._answered_at >= CACHE_SECONDS:
                self._answer = await _test(node, detailed=False)
                self._answered_at = trio.current_time()
            return self._answer


async def _test(node: Node, *, detailed: bool) -> Test:
    try:
        client = node.membridge.client()
        health = await client.health(retry=detailed)
        if detailed:
            await client.check_key()
    except (Unavailable, Misconfigured) as error:
        return Test(connected=False, error=one_line(error) if detailed else "Membridge cannot be reached")
    return Test(connected=True, health=health)


async def _config(node: Node) -> Config:
    values = await stored.read(node.database)
    membridge = node.membridge.settings
    last_test = values.get("last_test", "")
    return Config(
        membridge_server_url=membridge.server_url or "",
        admin_key_masked=masked(membridge.admin_key) if membridge.admin_key else "",
        connected=values.get("connected") == "true",
        last_test=int(last_test) if last_test.isascii() and last_test.isdigit() else None,
        stored=[key for key in KEYS if key in values],
    )


def _checked_url(url: str) -> str:
    if complaint := url_problem(url):
        raise _field("membridge_server_url", complaint)
    return url.rstrip("/")


def _checked_key(key: str) -> str:
    if complaint := key_problem(key):
        raise _field("admin_key", complaint)
    return key


def _field(field: str, message: str) -> Problem:
    return Problem(400, f"{field}: {message}", type="invalid", errors=[FieldError(field, message)])


HANDLERS = [show, effective, change, unset, test_connection]
