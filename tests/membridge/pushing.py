"""A dispatcher on a database of its own, an agent, and a runtime for the agent to call back."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from agent_peer import AgentPeer
from peers import Peer, Reply, Request, reply

from bloomd.membridge.dispatch import Dispatched, Dispatcher, Rules
from bloomd.postgres import Pool
from bloomd.runtime import tasks, workers
from bloomd.runtime.completion import complete
from bloomd.runtime.database import Database
from bloomd.runtime.heartbeats import Beat, heartbeat
from bloomd.runtime.leases import Wanted
from bloomd.runtime.model import Completion, NewTask, NewWorker, Retry, Task
from bloomd.runtime.refusals import Refusal
from bloomd.runtime.wakeups import Wakeups

AGENT_KEY = "the-agent-key-of-the-tests"
RUNTIME_KEY = "the-runtime-key-of-the-tests"
# Of anything that is waited for.
SECONDS = 10

RETRY = Retry(first_seconds=4.0, max_seconds=20.0)


class Runtime(Peer):
    """The two routes that an agent calls, over the rules themselves."""

    def __init__(self, database: Database) -> None:
        super().__init__(self._answer)
        self._database = database

    async def _answer(self, request: Request) -> Reply:
        _, _, lease_id, _, _, _, task_id, what = request.path.split("/")
        if request.headers.get("x-runtime-api-key") != RUNTIME_KEY:
            return reply({}, 401)
        try:
            if what == "heartbeat":
                await heartbeat(self._database, task_id, Beat(lease_id=lease_id), actor="agent")
            else:
                said = Completion(
                    request.json["status"],
                    request.json["output"],
                    request.json["error_message"],
                    lease_id=lease_id,
                )
                await complete(self._database, task_id, said, retry=RETRY, actor="agent")
        except Refusal as refusal:
            return reply({"error": str(refusal)}, 409)
        return reply({})


class Pushing:
    """The parts of a test."""

    def __init__(
        self, database: Database, pool: Pool, agent: AgentPeer, runtime: Runtime, sql: Callable[..., Any]
    ) -> None:
        self.database = database
        self.pool = pool
        self.agent = agent
        self.runtime = runtime
        self.sql = sql
        self.wakeups = Wakeups(database)
        database.on_change, database.on_offer = self.wakeups.change, self.wakeups.offer
        self.rules = Rules(AGENT_KEY, ("127.0.0.0/8",), runtime.url, ("127.0.0.1:5000",), RETRY)
        self.dispatcher = Dispatcher(database, self.wakeups, lambda: self.rules)

    async def worker(self, name: str = "w1", *, max_concurrency: int = 2, **fields: Any) -> None:
        await workers.register(
            self.database,
            NewWorker(name, **{"url": self.agent.url, **fields}),
            capabilities={"claude_cli": True, "max_concurrency": max_concurrency, "labels": []},
            actor="test",
        )

    async def task(self, **fields: Any) -> str:
        [created] = await tasks.create(self.database, [NewTask(**{"prompt": "Say hello", **fields})], actor="test")
        return created.task.id

    def dispatch(self, task_id: str, **wanted: Any) -> Awaitable[Dispatched]:
        return self.dispatcher.dispatch(Wanted(task_id, **wanted), actor="test")

    async def look(self, task_id: str) -> Task:
        return await tasks.one(self.database, task_id)

    def outcomes(self) -> list[tuple[str, str | None]]:
        """How the leases stand, oldest first."""
        return self.sql("SELECT status, outcome FROM leases ORDER BY started_at")


async def until(condition: Callable[[], Any]) -> None:
    """Return when it is so, which is looked at often."""
    with trio.fail_after(SECONDS):
        while not condition():
            await trio.sleep(0.01)
