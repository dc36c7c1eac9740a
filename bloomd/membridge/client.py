"""The calls to one Membridge server: the admin key, retries, and what an answer means.

A call is what a caller asks for; it may take several tries. A try that cannot be completed, or that is answered with
5xx, is repeated when the method is a safe one: 0.5, 1 and 2 s later at most. All of a call has to fit into `timeout`,
and a server that does not answer in time, or without end, is not asked again. An answer of 4xx is an answer. A redirect
is an error: the admin key goes to the server it was given for, and to no other.
"""

import json as jsonlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import httpx
import msgspec
import structlog
import trio

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.exchange import MIB, Answer, NotWorthRetrying, exchange
from bloomd.membridge import agents as listed
from bloomd.membridge.agents import Agent
from bloomd.supervisor import Backoff

log = structlog.stdlib.get_logger(__name__)

E = TypeVar("E", Unavailable, Misconfigured)

RETRIES = 3
RETRY = Backoff(first=0.5, cap=2.0, jitter=0.3)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# The largest answers of servers in the field are a few hundred KiB. Ten thousand agents, with labels, take some 5 MiB.
ANSWER_LIMIT = 8 * MIB
AGENTS_LIMIT = 32 * MIB

# Enough for the sync, the page and a few scripts at once; what is more waits within its own deadline.
CALLS_AT_ONCE = 20

KEY_HEADER = "X-MEMBRIDGE-ADMIN"

ODD_HEALTH = "does not answer like Membridge: its /health is not a JSON object with a status"


class Health(msgspec.Struct, frozen=True):
    """How the calls to the server went."""

    consecutive_failures: int = 0
    last_success: int | None = None
    """Epoch milliseconds."""
    last_error: str | None = None
    """Of the latest call, when it failed."""

    @property
    def connected(self) -> bool:
        """Whether the latest call succeeded."""
        return self.consecutive_failures == 0 and self.last_success is not None


class ServerHealth(msgspec.Struct, frozen=True):
    """What the server says of itself."""

    status: str
    service: str | None = None
    version: str | None = None
    projects: int | None = None
    agents: int | None = None


class MembridgeClient:
    """One server, and the key for it.

    Every call raises `Unavailable` when the server does not answer, or not in a usable way, and `Misconfigured` when it
    does not take the key or is not where the URL says.
    """

    def __init__(
        self,
        server_url: str,
        admin_key: str | None = None,
        *,
        timeout: float = 10.0,
        retry: Backoff = RETRY,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._base, self._who = _checked(server_url)
        self._key = admin_key
        if admin_key and not (admin_key.isascii() and admin_key.isprintable()):
            raise Misconfigured("membridge.admin_key holds characters that a header cannot: correct it")
        self._timeout = timeout
        self._retry = retry
        self._wall_clock = wall_clock
        self._places = trio.Semaphore(CALLS_AT_ONCE)
        self._skipped: list[str] = []
        self.calls = Health()

    def __repr__(self) -> str:
        return f"<{self._who}, {self.calls}>"

    async def health(self, *, retry: bool = True) -> ServerHealth:
        """What the server says of itself. Needs no key, and sends none."""
        answer = await self._needed("/health", with_key=False, retries=RETRIES if retry else 0)
        try:
            health = msgspec.json.decode(answer.body, type=ServerHealth, strict=False)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._failed(Unavailable(f"{self._who} {ODD_HEALTH}")) from error
        self._succeeded()
        return health

    async def agents(self) -> list[Agent]:
        """The agents that the server knows; malformed ones are left out, and logged once."""
        answer = await self._needed("/agents", limit=AGENTS_LIMIT)
        try:
            # In a thread: ten thousand agents take a quarter of a second, for which nobody else should have to wait.
            decoded = await trio.to_thread.run_sync(partial(listed.decode, answer.body, now=self._wall_clock()))
        except ValueError as error:
            raise self._failed(Unavailable(f"{self._who} does not answer like Membridge: {error}")) from error
        self._succeeded()
        if decoded.skipped and decoded.skipped != self._skipped:
            log.warning("agents left out", server=self._who, count=len(decoded.skipped), first=decoded.skipped[0])
        self._skipped = decoded.skipped
        return decoded.agents

    async def check_key(self) -> None:
        """Make sure that the server takes the key."""
        await self._needed("/agents", limit=AGENTS_LIMIT)
        self._succeeded()

    async def request(
        self, method: str, path: str, *, json: Any = None, query: str | None = None, timeout: float | None = None
    ) -> Answer:
        """Make any call and hand on its answer, whatever it says; one of 5xx counts as none.

        Args:
            timeout: seconds, for one that may take longer than others.
        """
        content = None if json is None else jsonlib.dumps(json).encode()
        target = f"{path}?{query}" if query else path
        answer = await self._call(method, target, content=content, timeout=timeout)
        self._succeeded()
        return answer

    async def _needed(
        self, path: str, *, with_key: bool = True, limit: int = ANSWER_LIMIT, retries: int = RETRIES
    ) -> Answer:
        answer = await self._call("GET", path, with_key=with_key, limit=limit, retries=retries)
        if answer.status in (401, 403) and with_key:
            raise self._failed(Misconfigured(self._refusal(answer.status)))
        if answer.status != 200:
            raise self._failed(Unavailable(f"{self._who} answered {answer.status} to GET {path}"))
        return answer

    async def _call(
        self,
        method: str,
        target: str,
        *,
        content: bytes | None = None,
        with_key: bool = True,
        limit: int = ANSWER_LIMIT,
        retries: int = RETRIES,
        timeout: float | None = None,
    ) -> Answer:
        timeout = timeout or self._timeout
        tries = 1 + (retries if method in SAFE_METHODS else 0)
        headers = {KEY_HEADER: self._key} if with_key and self._key else {}
        if content is not None:
            headers["Content-Type"] = "application/json"
        deadline = trio.current_time() + timeout
        for failures in range(1, tries + 1):
            try:
                answer = await self._try(method, target, headers, content, deadline, timeout=timeout, limit=limit)
                break
            except Unavailable as error:
                pause = self._retry.delay(failures)
                hopeless = isinstance(error, NotWorthRetrying) or trio.current_time() + pause >= deadline
                if failures == tries or hopeless:
                    self._failed(error)
                    raise
            await trio.sleep(pause)
        else:
            raise AssertionError("the last try returns or raises")
        if 300 <= answer.status < 400 and answer.location:
            raise self._failed(Misconfigured(_redirected(self._who, answer.location)))
        return answer

    async def _try(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        content: bytes | None,
        deadline: float,
        *,
        timeout: float,
        limit: int,
    ) -> Answer:
        with trio.move_on_at(deadline):
            async with self._places:
                answer = await exchange(
                    method,
                    self._base + target,
                    who=self._who,
                    timeout=timeout,
                    limit=limit,
                    headers=headers,
                    content=content,
                )
            if answer.status >= 500:
                raise Unavailable(f"{self._who} answered {answer.status} to {method} {target.partition('?')[0]}")
            return answer
        raise NotWorthRetrying(f"{self._who}: no answer within {timeout:g} s")

    def _refusal(self, status: int) -> str:
        if self._key is None:
            return f"{self._who} wants an admin key (it answered {status}): set membridge.admin_key"
        return f"{self._who} refuses the admin key (it answered {status}): correct membridge.admin_key"

    def _succeeded(self) -> None:
        self.calls = Health(last_success=int(self._wall_clock() * 1000))

    def _failed(self, error: E) -> E:
        self.calls = msgspec.structs.replace(
            self.calls, consecutive_failures=self.calls.consecutive_failures + 1, last_error=one_line(error)
        )
        return error


def _checked(server_url: str) -> tuple[str, str]:
    """The URL without its last slash, and the server's name in sentences: without user, password, path or query."""
    try:
        url = httpx.URL(server_url)
    except (httpx.InvalidURL, UnicodeError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.raw_host or url.query or url.fragment:
        raise Misconfigured("membridge.server_url is not an http or https URL: correct it")
    return server_url.rstrip("/"), f"Membridge at {_origin(url)}"


def _redirected(who: str, location: str) -> str:
    try:
        where = _origin(httpx.URL(location)) or "another path"
    except (httpx.InvalidURL, UnicodeError):
        where = "somewhere"
    return f"{who} redirects to {where}, which is not followed: set membridge.server_url to where it really is"


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}" if url.raw_host else ""
