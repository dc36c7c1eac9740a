"""What bloomd can be asked about the work it hands out: the queue, the workers, why a task waits, who has a key.

Each is the rule of `bloomd.runtime` of that name with the caller as its actor, and answers in the words of the API,
times in epoch milliseconds.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from bloomd.control.server import Call, Method, NoParams
from bloomd.node import Node
from bloomd.runtime import explain, keys, queue, workers
from bloomd.runtime.explain import Explanation
from bloomd.runtime.keys import Key, MadeKey
from bloomd.runtime.model import EpochMs, Worker
from bloomd.runtime.queue import QueueState

# PostgreSQL keeps no NUL.
Subject = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"\A[^\x00]+\Z")]
Text = Annotated[str, Meta(max_length=1000, pattern=r"\A[^\x00]*\Z")]

P = TypeVar("P", bound=msgspec.Struct)


class Of(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The worker, task or key that it is about."""

    name: Subject


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    until: EpochMs | None = None
    reason: Text | None = None


class Keys(msgspec.Struct, frozen=True):
    keys: list[Key]


class RemovedKey(msgspec.Struct, frozen=True):
    removed: bool
    name: str
    authentication: Literal["on", "off"]
    """Off when this was the last key and `http.api_key` is not set either."""


def methods(node: Node) -> Sequence[Method[Any]]:
    """Every method, for this node."""
    database = node.database

    async def pause(params: Pause, call: Call) -> QueueState:
        return await queue.pause(database, until=params.until, reason=params.reason, actor=call.user)

    async def resume(params: NoParams, call: Call) -> QueueState:
        return await queue.resume(database, actor=call.user)

    async def worker(params: Of, call: Call) -> Worker:
        return await workers.one(database, params.name)

    async def cordon(params: Of, call: Call) -> Worker:
        return await workers.cordon(database, params.name, actor=call.user)

    async def uncordon(params: Of, call: Call) -> Worker:
        return await workers.uncordon(database, params.name, actor=call.user)

    async def drain(params: Of, call: Call) -> Worker:
        return await workers.drain(database, params.name, actor=call.user)

    async def why(params: Of, call: Call) -> Explanation:
        return await explain.explain(database, params.name)

    async def add_key(params: Of, call: Call) -> MadeKey:
        return await node.keys.add(params.name, actor=call.user)

    async def list_keys(params: NoParams, call: Call) -> Keys:
        return Keys(await keys.listing(database))

    async def remove_key(params: Of, call: Call) -> RemovedKey:
        await node.keys.remove(params.name, actor=call.user)
        off = node.settings.http.api_key is None and node.keys.empty
        return RemovedKey(removed=True, name=params.name, authentication="off" if off else "on")

    def seen(rule: Callable[[P, Call], Awaitable[object]]) -> Callable[[P, Call], Awaitable[object]]:
        """The same, and the next status shows it."""

        async def run(params: P, call: Call) -> object:
            try:
                return await rule(params, call)
            finally:
                node.stats.forget()

        return run

    return [
        Method("queue.pause", seen(pause), Pause, mutating=True, leaves_trace=True),
        Method("queue.resume", seen(resume), NoParams, mutating=True, leaves_trace=True),
        Method("worker", worker, Of),
        Method("worker.cordon", seen(cordon), Of, mutating=True, leaves_trace=True),
        Method("worker.uncordon", seen(uncordon), Of, mutating=True, leaves_trace=True),
        Method("worker.drain", seen(drain), Of, mutating=True, leaves_trace=True),
        Method("why", why, Of),
        Method("key.add", add_key, Of, mutating=True, leaves_trace=True),
        Method("key.list", list_keys, NoParams),
        Method("key.remove", remove_key, Of, mutating=True, leaves_trace=True),
    ]
