"""What each route does. Which method and path it has is said at the end, in `ROUTES`."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from bloomd import __version__
from bloomd.errors import Unavailable, one_line
from bloomd.exchange import MIB
from bloomd.membridge.agents import UNSTORABLE
from bloomd.membridge.calls import call as call_agent
from bloomd.membridge.server import bodies
from bloomd.membridge.server.bodies import PROJECT_LIMIT, Refused
from bloomd.runtime import membridge_agents as agents
from bloomd.runtime import membridge_jobs as jobs
from bloomd.runtime import membridge_leadership as leadership
from bloomd.runtime import membridge_projects as projects
from bloomd.runtime.database import Database
from bloomd.runtime.projects import canonical_id as canonical_id_by_name
from bloomd.runtime.projects import is_canonical_id
from bloomd.settings import Settings

# A push or pull moves a project's memory over the network of the agent. Whoever asked for it may have gone by then.
SYNC_SECONDS = 300.0

# When the agent has not answered in time, its answer has been written down a moment later, or never will be.
LOST_SECONDS = SYNC_SECONDS + 60.0

DETAIL_LIMIT = 2000


class Call(msgspec.Struct, frozen=True):
    """A request that was let in."""

    captured: list[str]
    """What the path has in the places of the route that are open."""
    query: dict[str, str]
    body: dict[str, Any]
    """Empty where the route takes none."""


class Reply(msgspec.Struct, frozen=True):
    content: object
    status: int = 200


class _Outcome(msgspec.Struct, frozen=True):
    """What an agent made of a push or pull."""

    done: bool
    detail: str
    canonical_id: str | None = None


class Plane:
    """The control plane: its routes on a database, by the settings in force.

    Each raises `Unavailable` while there is no database, a `Refusal` of the rules, or `Refused`.
    """

    def __init__(self, database: Database, settings: Callable[[], Settings]) -> None:
        self._database = database
        self._settings = settings

    async def health(self, _: Call) -> Reply:
        counts = await agents.counts(self._database)
        said = {"status": "ok", "service": "membridge-control-plane", "version": __version__}
        return Reply({**said, "projects": counts.projects, "agents": counts.agents})

    async def agents(self, _: Call) -> Reply:
        return Reply(await agents.agents(self._database, offline_after=self._offline_after))

    async def register(self, call: Call) -> Reply:
        """Make an agent known. One that is known already is brought up to date."""
        agent = bodies.new_agent(call.body)
        new = await agents.register(self._database, **msgspec.structs.asdict(agent))
        listed = await agents.agent(self._database, agent.name, offline_after=self._offline_after)
        return Reply(listed, 201 if new else 200)

    async def remove_agent(self, call: Call) -> Reply:
        await agents.remove_agent(self._database, call.captured[0])
        return Reply(None, 204)

    async def projects(self, _: Call) -> Reply:
        return Reply(await projects.projects(self._database))

    async def add_project(self, call: Call) -> Reply:
        return Reply(await projects.add_project(self._database, *bodies.new_project(call.body)), 201)

    async def remove_project(self, call: Call) -> Reply:
        await projects.remove_project(self._database, call.captured[0])
        return Reply(None, 204)

    async def nodes(self, call: Call) -> Reply:
        return Reply(await projects.nodes(self._database, _project(call)))

    async def leadership(self, call: Call) -> Reply:
        """Who leads a project. Without a leadership, or when its time is over, all that there is of one is null."""
        project = _project(call)
        current = await leadership.current(self._database, project)
        nodes = await projects.nodes(self._database, project)
        return Reply(
            {
                "canonical_id": project,
                "preferred_primary": current and current.primary_node_id,
                "primary_node_id": current and current.primary_node_id,
                "epoch": current and current.epoch,
                "issued_at": current and current.issued_at,
                "expires_at": current and current.expires_at,
                "node_count": len(nodes),
                "nodes": nodes,
            }
        )

    async def select(self, call: Call) -> Reply:
        project, wanted = _project(call), bodies.selection(call.body)
        selected = await leadership.select(
            self._database, project, wanted.primary_node_id, seconds=wanted.lease_seconds
        )
        known = any(node.node_id == selected.primary_node_id for node in await projects.nodes(self._database, project))
        return Reply(
            {
                "ok": True,
                "canonical_id": project,
                "lease_seconds": wanted.lease_seconds,
                "detail": "selected" if known else "selected; this node has not been heard of yet",
                **msgspec.structs.asdict(selected),
            }
        )

    async def heartbeat(self, call: Call) -> Reply:
        beat = bodies.heartbeat(call.body)
        role = await projects.heartbeat(self._database, **msgspec.structs.asdict(beat))
        return Reply({"ok": True, "role": role, "canonical_id": beat.canonical_id})

    async def push(self, call: Call) -> Reply:
        return await self._sync("push", call)

    async def pull(self, call: Call) -> Reply:
        return await self._sync("pull", call)

    async def _sync(self, action: Literal["push", "pull"], call: Call) -> Reply:
        """Have an agent push or pull. What the agent cannot do is an answer with `ok: false`: this server is well."""
        project, name = bodies.name(call.body, "project", PROJECT_LIMIT), bodies.name(call.body, "agent")
        agent = await agents.agent(self._database, name, offline_after=self._offline_after)
        if not agent.url:
            raise Refused(400, "The agent has no URL to be asked at: register it with one")
        canonical_id = await projects.canonical_id_of(self._database, project) or (
            project if is_canonical_id(project) else canonical_id_by_name(project)
        )
        told = {"project": project, "canonical_id": canonical_id, "agent": name}
        job = await jobs.begin(self._database, action, **told)
        outcome = await self._ask(agent.url, action, project)
        told["canonical_id"] = outcome.canonical_id or canonical_id
        await jobs.finish(
            self._database, job, done=outcome.done, detail=outcome.detail, canonical_id=told["canonical_id"]
        )
        return Reply({"ok": outcome.done, **told, "detail": outcome.detail, "job_id": job})

    async def _ask(self, url: str, action: str, project: str) -> _Outcome:
        settings = self._settings()
        key = settings.membridge.agent_key
        try:
            answer = await call_agent(
                "POST",
                url,
                f"/sync/{action}",
                key=key,
                networks=settings.workers.allowed_networks,
                timeout=SYNC_SECONDS,
                body={"project": project},
                limit=MIB,
            )
        except Unavailable as error:
            return _Outcome(done=False, detail=one_line(error))
        said = answer.said.get("detail") or answer.said.get("error")
        detail = _words(said, key) if isinstance(said, str) else ""
        if answer.status in (401, 403):
            return _Outcome(
                done=False, detail=f"the agent refuses the key (it answered {answer.status}): see membridge.agent_key"
            )
        if answer.status != 200:
            return _Outcome(done=False, detail=f"the agent answered {answer.status}" + (detail and f": {detail}"))
        theirs = answer.said.get("canonical_id")
        return _Outcome(
            done=answer.said.get("ok") is True,
            detail=detail,
            canonical_id=theirs if isinstance(theirs, str) and is_canonical_id(theirs) else None,
        )

    async def jobs(self, call: Call) -> Reply:
        limit = call.query.get("limit", "100")
        if not (limit.isascii() and limit.isdecimal() and len(limit) <= 4 and 1 <= int(limit) <= 1000):
            raise Refused(422, "limit: expected a number from 1 to 1000")
        return Reply(await jobs.listing(self._database, limit=int(limit), lost_after=LOST_SECONDS))

    async def job(self, call: Call) -> Reply:
        return Reply(await jobs.one(self._database, call.captured[0], lost_after=LOST_SECONDS))

    @property
    def _offline_after(self) -> float:
        return self._settings().workers.offline_after


def _project(call: Call) -> str:
    if not is_canonical_id(call.captured[0]):
        raise Refused(404, "A project is named by its canonical id: 16 hexadecimal digits, lower case")
    return call.captured[0]


def _words(text: str, key: str | None) -> str:
    """What an agent says, as it can be stored and shown: it might repeat the key that it was sent."""
    return UNSTORABLE.sub("", text.replace(key, "****") if key else text)[:DETAIL_LIMIT]


Handler = Callable[[Plane, Call], Awaitable[Reply]]

# `{}` is open: any one part of a path.
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/health", Plane.health),
    ("GET", "/agents", Plane.agents),
    ("POST", "/agents", Plane.register),
    ("DELETE", "/agents/{}", Plane.remove_agent),
    ("GET", "/projects", Plane.projects),
    ("POST", "/projects", Plane.add_project),
    ("DELETE", "/projects/{}", Plane.remove_project),
    ("GET", "/projects/{}/nodes", Plane.nodes),
    ("GET", "/projects/{}/leadership", Plane.leadership),
    ("POST", "/projects/{}/leadership/select", Plane.select),
    ("POST", "/agent/heartbeat", Plane.heartbeat),
    ("POST", "/sync/push", Plane.push),
    ("POST", "/sync/pull", Plane.pull),
    ("GET", "/jobs", Plane.jobs),
    ("GET", "/jobs/{}", Plane.job),
)
