"""A worker's agent as it is in the field, on loopback: it speaks contract section 6.

    async with agent_peer(key="k") as agent:
        register("w1", url=agent.url)
        agent.does = "silent"                 # from the next task on
        ...
        assert agent.executed[0]["prompt"] == "Say hello"
        assert agent.callbacks == [("heartbeat", 200), ("complete", 200)]

What it does with a task (`does`):

    ok             heartbeat once, complete with success, answer ok
    error          heartbeat once, complete with an error, answer not ok
    not-ok         call nobody back, answer not ok
    silent         call nobody back, answer ok
    callback-only  heartbeat and complete, then close the connection without an answer
    wrong-lease    as ok, but to the URL of a lease that there is not
    hang           take the task and never say anything
    no-claude      503
    bad-key        401, whatever the key
    bad-body       422, whatever the body

It works on a task when its `gate` is set, after the heartbeat: close the gate (`trio.Event()`), and the task takes
until it is opened. That its caller has gone does not stop it. To every other request it answers what section 6 says, or
what `replies` has for the path; and every mode of a `Peer` is one of this as well. Who cannot connect to it is who
calls when the block is over: `agent_peer(port=...)` opens another one there.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio
from peers import Peer, Reply, Request, reply, serving

NEEDED = {
    "/execute-task": ("task_id", "prompt", "context_id", "agent_slug", "desired_format", "context_hints", "policy",
                      "runtime_url"),
    "/self-update": ("repo_url",),
    "/clone": ("repo_url", "project_name"),
    "/sync/push": ("project",),
    "/sync/pull": ("project",),
}  # fmt: skip


class AgentPeer(Peer):
    def __init__(self, key: str | None, runtime_key: str | None) -> None:
        super().__init__(self._answer)
        self.key = key
        self.runtime_key = runtime_key
        """What it sends with its callbacks as `X-Runtime-API-Key`."""
        self.does = "ok"
        self.output: str | None = "Hello"
        self.gate = trio.Event()
        self.gate.set()
        self.replies: dict[str, Reply] = {}
        """What it answers instead, by path."""
        self.executed: list[dict[str, Any]] = []
        """The tasks that it took, as they came."""
        self.callbacks: list[tuple[str, int]] = []
        """What it told the runtime, and the status of the answer; 0 without one."""
        self.cloned: list[str] = []

    @property
    def errands(self) -> list[Request]:
        """What it was asked to do: a health poll may come at any moment."""
        return [each for each in self.requests if each.path != "/health"]

    async def _answer(self, request: Request) -> Reply:
        if (request.method, request.path) == ("GET", "/health"):
            return self.replies.get("/health", reply(self._health()))
        if self.does == "bad-key" or (self.key and request.headers.get("x-membridge-agent") != self.key):
            return reply({"detail": "Invalid or missing agent key"}, 401)
        if request.path in self.replies:
            return self.replies[request.path]
        body = request.json if isinstance(request.json, dict) else {}
        if missing := [name for name in NEEDED.get(request.path, ()) if name not in body]:
            return reply({"detail": [{"loc": ["body", name], "msg": "Field required"} for name in missing]}, 422)
        match request.method, request.path:
            case "POST", "/execute-task":
                return await self._execute(body)
            case "POST", "/self-update":
                return reply({"ok": True, "status": "updated", "detail": body["repo_url"], "version": "1.5.0"})
            case "POST", "/restart":
                return reply({"ok": True, "status": "restarting"})
            case "POST", "/uninstall":
                return reply({"ok": True, "status": "uninstalled"})
            case "POST", "/clone":
                self.cloned.append(body["project_name"])
                path = body.get("target_path") or f"/srv/{body['project_name']}"
                return reply({"ok": True, "path": path, "detail": "cloned"})
            case "POST", "/sync/push" | "/sync/pull":
                return reply(self._synced(request.path.rpartition("/")[2], body["project"]))
            case "GET", "/repos":
                return reply({"repos": [{"name": name, "path": f"/srv/{name}"} for name in self.cloned]})
            case "GET", "/system-info":
                return reply({"hostname": "agent-1", "os": "Alpine 3.20", "cpus": 4})
            case _:
                return reply({"detail": "Not Found"}, 404)

    def _health(self) -> dict[str, Any]:
        return {
            "status": "ok", "version": "1.4.0", "os_info": "Alpine 3.20", "hostname": "agent-1",
            "capabilities": {"claude_cli": True, "max_concurrency": 2, "labels": ["openrc", "x86_64"]},
            "ip_addrs": ["10.0.0.7"],
        }  # fmt: skip

    def _synced(self, action: str, project: str) -> dict[str, Any]:
        return {
            "ok": True, "action": action, "project": project, "hostname": "agent-1", "detail": "done", "returncode": 0,
            "canonical_id": hashlib.sha256(project.encode()).hexdigest()[:16], "stdout": "", "stderr": "",
        }  # fmt: skip

    async def _execute(self, task: dict[str, Any]) -> Reply:
        match self.does:
            case "no-claude":
                await self.gate.wait()
                return reply({"detail": "claude CLI not found"}, 503)
            case "bad-body":
                return reply({"detail": [{"loc": ["body", "prompt"], "msg": "Field required"}]}, 422)
        self.executed.append(task)
        if self.does == "hang":
            await trio.sleep_forever()
        calls_back = self.does in ("ok", "error", "callback-only", "wrong-lease")
        if calls_back:
            await self.call_back(task, "heartbeat", {})
        await self.gate.wait()
        failed = "claude exited with 1" if self.does in ("error", "not-ok") else None
        output = None if failed else self.output
        if calls_back:
            completion: dict[str, Any] = {"status": "error" if failed else "success", "output": output}
            metrics = {"duration_ms": 1200, "tokens_used": None}
            await self.call_back(task, "complete", {**completion, "error_message": failed, "metrics": metrics})
        if self.does == "callback-only":
            raise trio.BrokenResourceError
        said = {"task_id": task["task_id"], "duration_ms": 1200, "context_id": task["context_id"]}
        if failed:
            return reply({"ok": False, "error": failed, "returncode": 1, **said})
        return reply({"ok": True, "output": output, "returncode": 0, "session_messages": 2, "detail": "", **said})

    async def call_back(self, task: dict[str, Any], what: str, body: dict[str, Any]) -> None:
        """Tell the runtime something about a task that it has given."""
        url = task["runtime_url"]
        if self.does == "wrong-lease":
            url = url.rpartition("/")[0] + "/5f0c1d1e-0000-4000-8000-000000000000"
        headers = {"X-Runtime-API-Key": self.runtime_key} if self.runtime_key else {}
        # Without certificates, which take longer to read than all the rest.
        async with httpx.AsyncClient(trust_env=False, timeout=10, verify=False) as client:
            try:
                path = f"{url}/api/runtime/llm-tasks/{task['task_id']}/{what}"
                status = (await client.post(path, json=body, headers=headers)).status_code
            except httpx.TransportError:
                status = 0
        self.callbacks.append((what, status))


@asynccontextmanager
async def agent_peer(
    *, key: str | None = None, runtime_key: str | None = None, port: int = 0
) -> AsyncIterator[AgentPeer]:
    """An agent that wants `key`, and calls back with `runtime_key`."""
    async with serving(AgentPeer(key, runtime_key), port=port) as agent:
        yield agent
