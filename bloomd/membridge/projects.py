"""Bringing managed projects to the worker machines, and their memory to Membridge: who is asked, what is written down.

What is under way stands in the database (`bloomd.runtime.clonings`) before an agent hears of it, is kept alive there
while the agent works, and is ended by the outcome. Whoever asked for it may go away meanwhile: over HTTP it goes on to
its end. When it is cancelled itself (the daemon stops, or a client of the control socket goes away), it is ended as
interrupted. When the daemon is killed, it is found overdue by whoever looks next.
"""

import json
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, cast

import msgspec
import trio

from bloomd.errors import Misconfigured, Unavailable, one_line
from bloomd.membridge.errands import AgentFailed, Told, ask, known
from bloomd.membridge.link import Link
from bloomd.runtime import clonings, projects
from bloomd.runtime.clonings import BUSY, BUSY_SECONDS, Operation, Outcome, Target
from bloomd.runtime.database import Database
from bloomd.runtime.ids import new_id
from bloomd.runtime.projects import Project
from bloomd.runtime.refusals import Refusal
from bloomd.settings import Settings

# A large repository over a slow line. Who does not even take the connection is given up long before (`calls.py`).
CLONE_SECONDS = 900.0

# Membridge has the agent do it before it answers; ours waits 300 s for that.
SYNC_SECONDS = 310.0

# A server of repositories has to bear so many clones of one of them at once, and bloomd their answers.
PROPAGATE_AT_ONCE = 8

# Three times within the time after which nobody believes in it any more: one may be lost.
RENEW_SECONDS = BUSY_SECONDS / 3

# An outcome is written down as soon as PostgreSQL is there, tried so often and for so long: it may be a restart.
WRITE_AGAIN_SECONDS = 1.0
WRITE_FOR_SECONDS = 60.0

# For the small writes of one that is cancelled; what PostgreSQL has not done by then, somebody finds overdue.
LAST_WORDS_SECONDS = 2.0
INTERRUPTED = "it was interrupted before the node had answered, which may have done it all the same; try again"

Direction = Literal["push", "pull"]


class Cloned(msgspec.Struct, frozen=True):
    status: Literal["cloned"]
    node: str
    result: Told


class NodeResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a propagation on one node."""

    node: str
    ok: bool
    error: str | None = None
    result: Told | None = None


class Propagated(msgspec.Struct, frozen=True):
    status: Literal["synced", "partial", "nothing_to_propagate"]
    """Partial when not all nodes have it, be it that none has."""
    results: list[NodeResult]


class Synced(msgspec.Struct, frozen=True):
    status: Literal["synced"]
    direction: Direction
    node: str
    result: Told


class Projects:
    """What can be done with the projects of a node's database."""

    def __init__(self, database: Database, settings: Callable[[], Settings], membridge: Link) -> None:
        self._database = database
        self._settings = settings
        self._membridge = membridge

    async def clone(self, id: str, *, node_id: str | None = None, actor: str) -> Cloned:
        """Have a node clone a project: this one, or the primary one, or the best there is.

        Raises:
            NotFound: there is no such project.
            Invalid: there is no such node, or none at all.
            Conflict: the project is on its way to this node already.
            AgentFailed: the node could not clone it, or not be asked.
        """
        project = await projects.whole(self._database, id)
        target = await clonings.named(self._database, node_id) if node_id else await clonings.best(self._database, id)
        operation = Operation(new_id(), id, "cloned")
        told = Told()

        async def clone(free: set[str]) -> None:
            nonlocal told
            told = await self._clone(project, operation, target, actor)

        await self._carry_out(operation, [target.id], clone, actor)
        return Cloned("cloned", target.id, told)

    async def propagate(self, id: str, *, actor: str) -> Propagated:
        """Have all other nodes that are there clone a project as well, some of them at once.

        Raises:
            NotFound: there is no such project.
            Conflict: the project is on its way to all of them already.
        """
        project = await projects.whole(self._database, id)
        targets = await clonings.others(self._database, id)
        if not targets:
            return Propagated("nothing_to_propagate", [])
        operation = Operation(new_id(), id, "synced")
        results = {target.id: NodeResult(target.id, ok=False, error=BUSY) for target in targets}
        places = trio.CapacityLimiter(PROPAGATE_AT_ONCE)

        async def clone(target: Target) -> None:
            async with places:
                try:
                    told = await self._clone(project, operation, target, actor)
                    told = msgspec.structs.replace(told, stdout=None, stderr=None)  # of a whole fleet, too much
                    results[target.id] = NodeResult(target.id, ok=True, result=told)
                except (AgentFailed, Refusal, Unavailable) as error:
                    results[target.id] = NodeResult(target.id, ok=False, error=one_line(error))

        async def clone_all(free: set[str]) -> None:
            async with trio.open_nursery() as nursery:
                for target in targets:
                    if target.id in free:
                        nursery.start_soon(clone, target)

        await self._carry_out(operation, [target.id for target in targets], clone_all, actor)
        status = "synced" if all(result.ok for result in results.values()) else "partial"
        return Propagated(status, list(results.values()))

    async def sync_memory(self, id: str, direction: Direction, *, node_id: str | None = None, actor: str) -> Synced:
        """Have Membridge push the memory that a node has of a project, or pull it there.

        Raises:
            NotFound: there is no such project.
            Invalid: there is no such node, or none at all.
            AgentFailed: Membridge could not, or not be asked.
        """
        database = self._database
        project = await projects.one(database, id)
        node = await (clonings.named(database, node_id, with_url=False) if node_id else clonings.best(database, id))
        try:
            told = await self._sync(direction, project.name, node.id)
        except AgentFailed as error:
            await clonings.note_sync(database, id, node.id, direction, one_line(error), actor=actor)
            raise
        await clonings.note_sync(database, id, node.id, direction, None, actor=actor)
        return Synced("synced", direction, node.id, told)

    async def _carry_out(
        self, operation: Operation, nodes: Sequence[str], work: Callable[[set[str]], Awaitable[None]], actor: str
    ) -> None:
        """Do the work on those nodes that are free for it, and say so from its beginning to its end."""
        free = await clonings.begin(self._database, operation, nodes, actor=actor)
        failure: Exception | None = None
        ended = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._renew, operation)
                try:
                    await work(free)
                except (AgentFailed, Refusal, Unavailable) as error:
                    failure = error
                nursery.cancel_scope.cancel()
            await _persistently(partial(clonings.end, self._database, operation, actor=actor))
            ended = True
        finally:
            if not ended:
                with _last_words():
                    await clonings.end(self._database, operation, actor=actor)
        if failure:
            raise failure

    async def _renew(self, operation: Operation) -> None:
        while True:
            await trio.sleep(RENEW_SECONDS)
            with suppress(Unavailable):
                await clonings.renew(self._database, operation)

    async def _clone(self, project: Project, operation: Operation, target: Target, actor: str) -> Told:
        """Ask one node, and write down what came of it."""
        body = {"repo_url": project.repo_url, "project_name": project.name}
        if project.target_path:
            body["target_path"] = project.target_path
        settle = partial(clonings.settle, self._database, operation, target.id, actor=actor)
        try:
            told = await ask(target, "/clone", body, settings=self._settings(), timeout=CLONE_SECONDS)
        except AgentFailed as error:
            await _persistently(partial(settle, Outcome(error=one_line(error))))
            raise
        except trio.Cancelled:
            with _last_words():
                await settle(Outcome(INTERRUPTED))
            raise
        await _persistently(partial(settle, Outcome(path=told.path)))
        return told

    async def _sync(self, direction: Direction, project: str, agent: str) -> Told:
        try:
            client = self._membridge.client()
            body = {"project": project, "agent": agent}
            answer = await client.request("POST", f"/sync/{direction}", json=body, timeout=SYNC_SECONDS)
        except (Unavailable, Misconfigured) as error:
            raise AgentFailed(one_line(error)) from error
        try:
            value = json.loads(answer.body)
        except (ValueError, RecursionError):
            value = None
        said = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        told = known(said, secret=self._membridge.settings.admin_key)
        reason = told.error or told.detail
        if not 200 <= answer.status < 300:
            raise AgentFailed(f"Membridge answered {answer.status} to POST /sync/{direction}{_because(reason)}")
        if said.get("ok") is not True:
            raise AgentFailed(f"Membridge could not {direction}{_because(reason or told.stderr)}")
        return told


async def _persistently(write: Callable[[], Awaitable[None]]) -> None:
    """Write this as soon as it can be written; raises Unavailable after a while."""
    give_up_at = trio.current_time() + WRITE_FOR_SECONDS
    while True:
        try:
            return await write()
        except Unavailable:
            if trio.current_time() >= give_up_at:
                raise
        await trio.sleep(WRITE_AGAIN_SECONDS)


@contextmanager
def _last_words() -> Generator[None]:
    """Write this also when cancelled, if it can be written soon."""
    with (
        trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_WORDS_SECONDS),
        suppress(Unavailable, Refusal),
    ):
        yield


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""
