"""What bloomd can be asked over its control socket."""

import os
import platform
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import trio

from bloomd import __version__
from bloomd.control import answers, events, facts, tasks, work, workers
from bloomd.control.codes import INVALID_PARAMS
from bloomd.control.server import Call, ControlError, Method, NoParams
from bloomd.logs import Logs
from bloomd.node import Node
from bloomd.settings import describe
from bloomd.status import probe, services, status
from bloomd.supervisor import State, UnknownService

# Whoever starts a service wants to know how it went; longer than this it is told that it is still starting.
START_SECONDS = 15.0


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class MaybeNamed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str | None = None


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"] | None = None


def methods(node: Node, logs: Logs) -> Sequence[Method[Any]]:
    """Every method, for this node."""

    async def ping(params: NoParams, call: Call) -> dict[str, Any]:
        return {"pong": True, "pid": os.getpid(), "loop_lag_ms": round(node.lag.now * 1000, 1)}

    async def version(params: NoParams, call: Call) -> answers.Version:
        return answers.Version(version=__version__, python=platform.python_version(), schema=node.database.schema)

    async def show(params: NoParams, call: Call) -> answers.Status:
        return await status(node)

    async def config(params: NoParams, call: Call) -> dict[str, Any]:
        return {"settings": describe(node.loaded), "warnings": node.loaded.warnings}

    async def reload(params: NoParams, call: Call) -> Any:
        return await node.reload(f"reload by {call.user}")

    async def stop(params: Named, call: Call) -> answers.Services:
        if params.name == "control":
            raise ControlError("control is how you talk to bloomd; it stops with the daemon")
        return await _steer(node, params.name, lambda: node.root.stop_service(params.name))

    async def start(params: Named, call: Call) -> answers.Services:
        async def begin() -> None:
            node.root.start_service(params.name, f"started by {call.user}")
            with trio.move_on_after(START_SECONDS):
                while node.root.state(params.name) is State.STARTING:
                    await node.root.change()

        return await _steer(node, params.name, begin)

    async def restart(params: Named, call: Call) -> answers.Services:
        if params.name == "control":
            raise ControlError("control is how you talk to bloomd; restart the daemon instead")
        return await _steer(
            node, params.name, lambda: node.root.restart_service(params.name, f"restarted by {call.user}")
        )

    async def probes(params: MaybeNamed, call: Call) -> answers.Probes:
        chosen = [each for each in node.probes if params.name in (None, each.status.name)]
        if not chosen:
            known = ", ".join(each.status.name for each in node.probes)
            raise ControlError(f"there is no probe {params.name!r}; there are {known}", INVALID_PARAMS)
        for each in chosen:
            await each.now()
        return answers.Probes(probes=[probe(each) for each in chosen])

    async def sync(params: NoParams, call: Call) -> answers.SyncRound:
        done = await node.sync.now(node.leadership.epoch())
        return answers.SyncRound(
            agents=done.agents,
            added=done.added,
            changed=done.changed,
            offline=done.offline,
            seconds=round(done.seconds, 3),
        )

    async def log_level(params: Level, call: Call) -> answers.LogLevel:
        if params.level:
            logs.set_level(params.level)
        return answers.LogLevel(level=logs.level)

    return [
        Method("ping", ping, NoParams, public=True),
        Method("version", version, NoParams, public=True),
        Method("status", show, NoParams),
        Method("config", config, NoParams),
        Method("reload", reload, NoParams, mutating=True),
        Method("restart", restart, Named, mutating=True),
        Method("start", start, Named, mutating=True),
        Method("stop", stop, Named, mutating=True),
        Method("probe", probes, MaybeNamed),
        Method("sync", sync, NoParams, mutating=True),
        Method("log.level", log_level, Level, mutating=True),
        *work.methods(node),
        *tasks.methods(node),
        *workers.methods(node),
        events.method(node),
        *facts.methods(node, logs),
    ]


async def _steer(node: Node, path: str, act: Callable[[], Awaitable[None]]) -> answers.Services:
    """Do it, and tell how the service and those below it are then."""
    try:
        await act()
    except UnknownService as error:
        raise ControlError(str(error), INVALID_PARAMS) from error
    return answers.Services(services=services(node, path))
