"""The service that asks every worker with a URL for its `/health`, every `workers.poll_interval`.

An answer is a sign of life. No answer is not recorded as a sign of death: silence is, by and by, whatever its reason.
A round asks many workers at once, those that answered last time first, and hands over its results as they come, as many
together as have come while the ones before were being written. So dead workers cost the living ones nothing, and a
large fleet costs few statements.

No key is sent; `networks.py` says where a URL may lead.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

import msgspec
import trio

from bloomd.errors import Unavailable, one_line
from bloomd.exchange import MIB, exchange
from bloomd.membridge.agents import LABEL_LIMIT, TEXT_LIMIT, capabilities, text, texts
from bloomd.membridge.networks import connect
from bloomd.settings.model import Workers

CONCURRENCY = 16
TIMEOUT = 5.0
ANSWER_LIMIT = 1 * MIB


class Target(Protocol):
    """A worker that has a URL."""

    @property
    def id(self) -> str: ...
    @property
    def url(self) -> str: ...


class PollResult(msgspec.Struct, frozen=True):
    """What one worker answered. `None` is: not said."""

    id: str
    ok: bool
    version: str | None = None
    os_info: str | None = None
    hostname: str | None = None
    capabilities: dict[str, Any] | None = None
    ip_addrs: list[str] | None = None
    error: str | None = None


class Polls:
    """Asks the workers how they are."""

    def __init__(
        self,
        settings: Callable[[], Workers],
        list_targets: Callable[[], Awaitable[Sequence[Target]]],
        record_many: Callable[[list[PollResult], int], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._list_targets = list_targets
        self._record_many = record_many
        self._silent: set[str] = set()

    async def run(self, epoch: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do a round at once and then one every interval, as the leader of this epoch.

        Raises:
            Unavailable: the workers cannot be listed, or the results not be recorded.
        """
        task_status.started()
        while True:
            due = trio.current_time() + self._settings().poll_interval
            await self._round(epoch)
            await trio.sleep_until(due)

    async def _round(self, epoch: int) -> None:
        targets = sorted(await self._list_targets(), key=lambda target: target.id in self._silent)
        networks = self._settings().allowed_networks
        places = trio.Semaphore(CONCURRENCY)
        send, receive = trio.open_memory_channel[PollResult](len(targets))

        async def ask(target: Target) -> None:
            try:
                result = await poll(target.id, target.url, networks)
            finally:
                places.release()
            send.send_nowait(result)

        async def start_all() -> None:
            for target in targets:
                await places.acquire()
                polling.start_soon(ask, target)

        results: list[PollResult] = []
        async with trio.open_nursery() as recording:
            recording.start_soon(self._record, receive, results, epoch)
            async with send, trio.open_nursery() as polling:
                polling.start_soon(start_all)
        self._silent = {result.id for result in results if not result.ok}

    async def _record(
        self, receive: trio.MemoryReceiveChannel[PollResult], results: list[PollResult], epoch: int
    ) -> None:
        async for first in receive:
            batch = [first]
            while receive.statistics().current_buffer_used:
                batch.append(receive.receive_nowait())
            results += batch
            await self._record_many(batch, epoch)


async def poll(id: str, url: str, networks: tuple[str, ...]) -> PollResult:
    """Ask one worker now."""
    try:
        answer = await exchange(
            "GET",
            url.rstrip("/") + "/health",
            who="the agent",
            timeout=TIMEOUT,
            limit=ANSWER_LIMIT,
            connect=partial(connect, networks=networks),
        )
    except Unavailable as error:
        return PollResult(id, ok=False, error=one_line(error))
    if answer.status != 200:
        return PollResult(id, ok=False, error=f"the agent answered {answer.status} to GET /health")
    try:
        said = json.loads(answer.body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        return PollResult(id, ok=False, error="the agent's /health is not a JSON object")
    fields = cast("dict[str, Any]", said)
    return PollResult(
        id,
        ok=True,
        version=text(fields.get("version"), TEXT_LIMIT),
        os_info=text(fields.get("os_info"), TEXT_LIMIT),
        hostname=text(fields.get("hostname"), TEXT_LIMIT),
        capabilities=capabilities(fields.get("capabilities")),
        ip_addrs=texts(fields.get("ip_addrs"), LABEL_LIMIT),
    )
