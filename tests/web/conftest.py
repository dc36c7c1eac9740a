"""The page in a real Chromium, against a real daemon.

    def test_something(api, open_page):
        api.post("/api/runtime/llm-tasks", json={"prompt": "Say hello"})
        page = open_page("tasks?status=queued", language="uk", width=360)
        expect(page.get_by_role("row")).to_have_count(2)

`api` is a client for what a test begins with, on tables that it finds empty. `open_page` gives a signed-in page in a
browser context of its own; `agent` and `membridge` are peers that the daemon can talk to.

A message of error or warning in the browser's console, an uncaught exception, or something that the
Content-Security-Policy forbids, fails the test, unless it says before that it expects it: `trouble.expect("409")`. The
console also names each request that the server has refused.

A test never waits for a time, but by `expect` for what shall be seen.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import httpx
import psycopg
import pytest
import trio
from agent_peer import AgentPeer, agent_peer
from bloomd_process import KEY, Bloomd
from holding_proxy import holding_back
from peers import MembridgePeer, membridge_peer
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from servers import PostgresServer
from tools import require

AGENT_KEY = "the-agent-key-of-the-tests"
SESSION_SECRET = "the-session-secret-of-the-tests"

# For what shall be seen: the machine may be busy with other things.
PATIENCE_MS = 20_000

EMPTY = """
UPDATE leases SET status = 'released' WHERE status = 'active';
TRUNCATE llm_tasks, leases, workers, conversations, runtime_artifacts, llm_results, audit_logs, runtime_settings,
         managed_projects, project_node_status
"""

P = TypeVar("P")


class OpenPage(Protocol):
    def __call__(
        self,
        path: str = "",
        *,
        language: str = "en",
        scheme: str = "light",
        width: int = 1280,
        signed_in: bool = True,
        site: Bloomd | None = None,
    ) -> Page:
        """The page at this path of its address, such as `tasks?status=dead`, in a context of its own.

        `signed_in=False` sends no cookie: the form is shown, where there is a key. `site` is another daemon.
        """
        ...


class Trouble:
    """What the browser has complained of."""

    def __init__(self) -> None:
        self._expected: list[str] = []
        self._said: list[str] = []

    def expect(self, *patterns: str) -> None:
        """A complaint that one of these matches somewhere is all right."""
        self._expected += patterns

    def watch(self, context: BrowserContext) -> None:
        context.on("console", self._console)
        context.on("weberror", lambda error: self._said.append(f"exception: {error.error}"))

    @property
    def unexpected(self) -> list[str]:
        return [said for said in self._said if not any(re.search(each, said) for each in self._expected)]

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            place = message.location
            self._said.append(f"{message.type}: {message.text} ({place['url']}:{place['lineNumber']})")


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Debian's, for all tests here. Root may not have its sandbox; what it shows is ours alone."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def start_site(postgres_server: PostgresServer, migrated: str) -> Callable[..., Any]:
    """Start a daemon on a database of its own, with these settings, for as long as a block lasts."""

    @contextmanager
    def started(**settings: Any) -> Iterator[Bloomd]:
        defaults = {"tasks.sweep_interval": 0.2, "tasks.retry_delay": 0.05, "http.drain_seconds": 0.1}
        bloomd = Bloomd(postgres_server.create_database(migrated), **(defaults | settings))
        with bloomd:
            yield bloomd
            bloomd.stop()

    return started


@pytest.fixture(scope="package")
def site(start_site: Callable[..., Any]) -> Iterator[Bloomd]:
    """The daemon of all tests that need none of their own."""
    with start_site(membridge__agent_key=AGENT_KEY, http__session_secret=SESSION_SECRET) as bloomd:
        yield bloomd


def sign_in(site: Bloomd) -> str:
    """A session with the configured key: its cookie's value."""
    with httpx.Client(base_url=site.url, trust_env=False) as client:
        answer = client.post("/api/runtime/session", json={"key": KEY})
        assert answer.status_code == 200, answer.text
        return answer.cookies["bloomd"]


def empty(site: Bloomd) -> None:
    with psycopg.connect(site.settings["database.url"], autocommit=True) as connection:
        # The daemon works meanwhile: its statements lock some of the tables in another order.
        while True:
            with suppress(psycopg.errors.DeadlockDetected):
                connection.execute(EMPTY)
                return


@pytest.fixture(scope="package")
def session(site: Bloomd) -> str:
    """The cookie with which tests are signed in to the common daemon. Sign out only with another one."""
    return sign_in(site)


@pytest.fixture
def api(site: Bloomd) -> httpx.Client:
    """A client with the key, on a database that is empty again."""
    empty(site)
    return site.http


@pytest.fixture
def trouble() -> Iterator[Trouble]:
    watched = Trouble()
    yield watched
    assert not watched.unexpected, "\n".join(watched.unexpected)


@pytest.fixture
def open_page(chromium: Browser, site: Bloomd, session: str, trouble: Trouble) -> Iterator[OpenPage]:
    contexts: list[BrowserContext] = []
    common = site

    def open_page(
        path: str = "",
        *,
        language: str = "en",
        scheme: Any = "light",
        width: int = 1280,
        signed_in: bool = True,
        site: Bloomd | None = None,
    ) -> Page:
        at = site or common
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, locale=language, reduced_motion="reduce"
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        trouble.watch(context)
        if signed_in:
            value = session if at is common else sign_in(at)
            context.add_cookies([{"name": "bloomd", "value": value, "url": at.url, "httpOnly": True}])
        page = context.new_page()
        page.goto(f"{at.url}/#/{path}")
        # From here on, `expect` waits.
        page.wait_for_selector("main h1, main .problem")
        return page

    yield open_page
    for context in contexts:
        context.close()


@contextmanager
def beside(serve: Callable[[], AbstractAsyncContextManager[P]]) -> Iterator[P]:
    """A peer in a thread of its own, for tests that are not asynchronous. What it holds may be read and set from here;
    what belongs to its loop, such as an event, not."""
    ready = threading.Event()
    ended = trio.Event()
    shared: list[Any] = []

    async def run() -> None:
        async with serve() as peer:
            shared[:] = peer, trio.lowlevel.current_trio_token()
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=trio.run, args=(run,), daemon=True)
    thread.start()
    assert ready.wait(30)
    peer, token = shared
    try:
        yield peer
    finally:
        trio.from_thread.run_sync(ended.set, trio_token=token)
        thread.join(30)


@pytest.fixture
def agent() -> Iterator[AgentPeer]:
    """A worker's agent, to be registered by its `url`; it takes tasks and calls back with the API key."""
    with beside(partial(agent_peer, key=AGENT_KEY, runtime_key=KEY)) as peer:
        yield peer


@pytest.fixture
def membridge() -> Iterator[MembridgePeer]:
    """A Membridge, to be set as `membridge.server_url`, that wants the key `mk`."""
    with beside(partial(membridge_peer, key="mk")) as peer:
        yield peer


@pytest.fixture
def held_back(site: Bloomd) -> Iterator[str]:
    """The address of the common daemon behind a proxy that holds its events back."""
    with beside(partial(holding_back, site.port)) as url:
        yield url
