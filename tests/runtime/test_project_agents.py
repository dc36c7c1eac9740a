"""Projects on their way to real agents, and to a real Membridge: what they are asked, and what is written down."""

from contextlib import AsyncExitStack

import httpx
import pytest
import trio
import trio.testing
from agent_peer import agent_peer
from peers import Reply, membridge_peer, reply
from servers import free_port

from bloomd.membridge import projects as module
from bloomd.membridge.errands import AgentFailed
from bloomd.membridge.link import Link
from bloomd.membridge.projects import PROPAGATE_AT_ONCE, Projects
from bloomd.runtime import audit, projects
from bloomd.runtime.pages import Page
from bloomd.runtime.projects import NewProject
from bloomd.runtime.refusals import Conflict, NotFound
from bloomd.settings import Settings
from bloomd.settings.model import Membridge, Workers

KEY = "the-agent-key-of-the-tests"
ADMIN_KEY = "the-admin-key-of-the-tests"
URL = "https://git.example.org/bloom.git"


@pytest.fixture
async def agent():
    async with agent_peer(key=KEY) as agent:
        yield agent


@pytest.fixture
def managed(db):
    """Projects by these settings, which a test may change."""

    class Managed(Projects):
        settings = Settings(membridge=Membridge(agent_key=KEY, admin_key=ADMIN_KEY, timeout=1.0))

        def __init__(self):
            super().__init__(db, lambda: self.settings, Link(lambda: self.settings.membridge))

    return Managed()


@pytest.fixture
async def project(db):
    return await projects.create(db, NewProject(name="bloom", repo_url=URL, target_path="/srv/b"), actor="test")


async def node(db, project, name="w1"):
    return next(node for node in await projects.nodes(db, project.id) if node.node_id == name)


async def until(look, wanted):
    with trio.fail_after(10):
        while (seen := await look()) != wanted:
            await trio.sleep(0.01)
    return seen


async def test_an_agent_is_asked_with_its_key_and_its_answer_is_kept(db, managed, project, agent, new_worker):
    await new_worker("w1", url=agent.url)
    agent.replies["/clone"] = reply({
        "ok": True, "path": "/srv/b", "detail": f"cloned {URL} with {KEY}", "token": "x", "hostname": 17,
        "returncode": 0, "stdout": "a" * 20_000, "stderr": "remote: https://u:pw-3f@h/x \ud800",
    })  # fmt: skip
    done = await managed.clone(project.id, actor="ann")
    [request] = agent.requests
    assert (request.method, request.path) == ("POST", "/clone")
    assert request.headers["x-membridge-agent"] == KEY
    assert request.json == {"repo_url": URL, "project_name": "bloom", "target_path": "/srv/b"}
    assert (done.status, done.node) == ("cloned", "w1")
    assert (done.result.ok, done.result.path, done.result.returncode) == (True, "/srv/b", 0)
    assert done.result.detail == f"cloned {URL} with ****"
    assert (done.result.hostname, len(done.result.stdout)) == (None, 16_000)
    assert done.result.stderr == "remote: https://****@h/x �"
    assert (await projects.one(db, project.id)).primary_node_id == "w1"
    assert (await node(db, project)).repo_path == "/srv/b"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply({"ok": False, "error": f"no disk; {KEY}"}), "no disk; ****"),
        (reply({"ok": False, "stderr": "fatal: not found"}), "fatal: not found"),
        (reply({"ok": "false"}), "it does not say why"),
        (reply({"detail": "Not Found"}, 404), "it answered 404, Not Found"),
        (reply({"error": "bug"}, 500), "it answered 500, bug"),
        (Reply(302, headers={"location": "http://127.0.0.1:1/"}), "it answered 302"),
        (Reply(200, b"<!doctype html>", "text/html"), "its answer is not a JSON object"),
        (
            reply({"detail": "Invalid or missing agent key"}, 401),
            "it refuses the agent key: correct membridge.agent_key",
        ),
        (reply({"ok": True, "stdout": "x" * 2_000_000}), "the agent: its answer is longer than 1 MiB"),
    ],
)
async def test_a_node_that_fails_is_told_and_kept(db, managed, project, agent, new_worker, answer, error):
    await new_worker("w1", url=agent.url)
    agent.replies["/clone"] = answer
    with pytest.raises(AgentFailed) as caught:
        await managed.clone(project.id, node_id="w1", actor="ann")
    assert str(caught.value) == f"/clone of worker w1: {error}"
    after = await projects.one(db, project.id)
    assert (after.clone_status, after.error_message) == ("failed", f"node w1: {caught.value}")
    assert after.primary_node_id is None
    assert (await node(db, project)).error_message == str(caught.value)


async def test_the_key_goes_nowhere_outside_the_allowed_networks(db, managed, project, agent, new_worker):
    await new_worker("w1", url=agent.url)
    managed.settings = Settings(membridge=Membridge(agent_key=KEY), workers=Workers(allowed_networks=("10.0.0.0/8",)))
    with pytest.raises(AgentFailed, match=r"outside workers\.allowed_networks"):
        await managed.clone(project.id, actor="ann")
    assert agent.connections == 0


async def test_without_a_key_it_is_said_what_to_set(managed, project, agent, new_worker):
    await new_worker("w1", url=agent.url)
    managed.settings = Settings()
    with pytest.raises(AgentFailed, match=r"wants one: set membridge\.agent_key"):
        await managed.clone(project.id, actor="ann")
    assert "x-membridge-agent" not in agent.requests[0].headers


async def test_a_cloning_that_is_cancelled_is_over(db, managed, project, agent, new_worker, nursery):
    await new_worker("w1", url=agent.url)
    agent.mode = "hang"
    with trio.CancelScope() as scope:
        nursery.start_soon(cancel_when_asked, agent, scope)
        await managed.clone(project.id, actor="ann")
    assert scope.cancelled_caught
    after = await projects.one(db, project.id)
    assert (after.clone_status, "interrupted" in after.error_message) == ("failed", True)
    assert (await node(db, project)).clone_status == "failed"
    agent.mode = "ok"
    assert (await managed.clone(project.id, actor="ann")).status == "cloned"


async def cancel_when_asked(agent, scope):
    await agent.received(1)
    scope.cancel()


async def test_a_cloning_is_kept_alive_while_the_agent_works(
    db, sql, managed, project, agent, new_worker, nursery, monkeypatch
):
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    await new_worker("w1", url=agent.url)
    gate = hold_back(agent)

    async def busy_until():
        return sql("SELECT busy_until FROM managed_projects UNION ALL SELECT busy_until FROM project_node_status")

    nursery.start_soon(lambda: managed.clone(project.id, actor="ann"))
    await agent.received(1)
    before = await busy_until()
    with trio.fail_after(10):
        while not all(now > then for (now,), (then,) in zip(await busy_until(), before, strict=True)):
            await trio.sleep(0.01)
    with pytest.raises(Conflict, match="already"):
        await managed.clone(project.id, actor="ann")
    assert len(agent.requests) == 1
    gate.set()
    await until(lambda: status(db, project), "cloned")
    assert await busy_until() == [(None,), (None,)]


async def status(db, project):
    return (await projects.one(db, project.id)).clone_status


def hold_back(agent):
    """Let the agent answer only when the gate is open."""
    gate, answer = trio.Event(), agent.answer

    async def answer_later(request):
        await gate.wait()
        return await answer(request)

    agent.answer = answer_later
    return gate


async def test_an_outcome_is_written_down_when_the_database_is_back(
    db, managed, project, agent, new_worker, nursery, monkeypatch
):
    monkeypatch.setattr(module, "WRITE_AGAIN_SECONDS", 0.01)
    await new_worker("w1", url=agent.url)
    gate = hold_back(agent)
    nursery.start_soon(lambda: managed.clone(project.id, actor="ann"))
    await agent.received(1)
    pool = db._pool
    db.close("PostgreSQL restarts")
    gate.set()
    with trio.fail_after(10):
        await db.doubted.wait()
    db.open(pool)
    await until(lambda: status(db, project), "cloned")
    assert (await node(db, project)).repo_path == "/srv/b"


async def test_a_project_that_is_removed_while_it_is_cloned(db, managed, project, agent, new_worker, nursery):
    await new_worker("w1", url=agent.url)
    gate = hold_back(agent)
    caught = []

    async def clone():
        with pytest.raises(NotFound) as error:
            await managed.clone(project.id, actor="ann")
        caught.append(error)

    nursery.start_soon(clone)
    await agent.received(1)
    await projects.remove(db, project.id, actor="ann")
    gate.set()
    with trio.fail_after(10):
        while not caught:
            await trio.sleep(0.01)
    assert await projects.nodes(db, project.id) == []


async def test_a_propagation_is_parallel_and_bounded_and_nobody_waits_for_the_dead(
    db, managed, project, new_worker, nursery
):
    """More nodes than are asked at once, one that does not answer, one that is not there, one that says no."""
    async with AsyncExitStack() as stack:
        names = [f"w{n:02}" for n in range(PROPAGATE_AT_ONCE + 4)]
        agents = {name: await stack.enter_async_context(agent_peer(key=KEY)) for name in names}
        for name, agent in agents.items():
            await new_worker(name, url=agent.url)
        await new_worker("dead", url=f"http://127.0.0.1:{free_port()}")
        await new_worker("off", url="http://127.0.0.1:1", status="offline")
        await new_worker("no-url")
        agents["w00"].replies["/clone"] = reply({"ok": False, "error": "no disk"})
        gates = {name: hold_back(agent) for name, agent in agents.items()}
        done = []

        async def propagate():
            done.append(await managed.propagate(project.id, actor="ann"))

        def asked():
            return {name for name, agent in agents.items() if agent.requests}

        nursery.start_soon(propagate)
        with trio.fail_after(10):
            while len(asked()) < PROPAGATE_AT_ONCE:
                await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(asked()) == PROPAGATE_AT_ONCE
        hanging = max(asked())
        for name in names:
            if name != hanging:
                gates[name].set()
        expected = dict.fromkeys(names, "synced") | {"dead": "failed", "w00": "failed", hanging: "propagating"}
        await until(lambda: states(db, project), expected)
        assert await status(db, project) == "propagating"
        gates[hanging].set()
        await until(lambda: status(db, project), "cloned")
    [propagated] = done
    assert propagated.status == "partial"
    assert {each.node: each.error for each in propagated.results if not each.ok} == {
        "dead": "/clone of worker dead: the agent: connection refused",
        "w00": "/clone of worker w00: no disk",
    }
    assert [each.node for each in propagated.results] == ["dead", *names]
    after = await projects.one(db, project.id)
    assert after.error_message.startswith(f"2 of {len(names) + 1} nodes failed; node dead: ")


async def states(db, project):
    return {node.node_id: node.clone_status for node in await projects.nodes(db, project.id)}


async def test_a_propagation_leaves_out_the_primary_node(db, managed, project, agent, new_worker):
    await new_worker("w1", url=agent.url)
    await managed.clone(project.id, actor="ann")
    nothing = await managed.propagate(project.id, actor="ann")
    assert (nothing.status, nothing.results) == ("nothing_to_propagate", [])
    assert await status(db, project) == "cloned"
    async with agent_peer(key=KEY) as other:
        await new_worker("w2", url=other.url)
        other.replies["/clone"] = reply({"ok": True, "path": "/srv/b", "stdout": "x" * 9999, "stderr": "y"})
        done = await managed.propagate(project.id, actor="ann")
        assert (done.results[0].result.stdout, done.results[0].result.stderr) == (None, None)
        assert [(each.node, each.ok, each.result.path) for each in done.results] == [("w2", True, "/srv/b")]
    assert (done.status, await status(db, project), len(agent.requests)) == ("synced", "synced", 1)


async def test_a_propagation_that_is_cancelled_is_over(db, managed, project, agent, new_worker, nursery):
    await new_worker("w1", url=agent.url)
    agent.mode = "hang"
    with trio.CancelScope() as scope:
        nursery.start_soon(cancel_when_asked, agent, scope)
        await managed.propagate(project.id, actor="ann")
    after = await projects.one(db, project.id)
    assert (after.clone_status, "interrupted" in after.error_message) == ("failed", True)


async def test_the_memory_of_a_project_goes_through_membridge(db, managed, project, new_worker, monkeypatch):
    async with membridge_peer(key=ADMIN_KEY) as peer:
        managed.settings = Settings(membridge=Membridge(server_url=peer.url, admin_key=ADMIN_KEY, agent_key=KEY))
        await new_worker("w1")
        done = await managed.sync_memory(project.id, "push", node_id="w1", actor="ann")
        assert (done.status, done.direction, done.node, done.result.job_id) == ("synced", "push", "w1", "job-1")
        request = peer.requests[-1]
        assert (request.path, request.json) == ("/sync/push", {"project": "bloom", "agent": "w1"})
        assert "x-membridge-agent" not in request.headers
        assert (await node(db, project)).last_sync_at
        for mode, error in (
            ("404", "Membridge answered 404 to POST /sync/pull: mode 404"),
            ("lie", "Membridge could not pull"),
            ("html", "Membridge could not pull"),
            ("hang", f"Membridge at {httpx.URL(peer.url)}: no answer within 0.5 s"),
        ):
            peer.mode = mode
            monkeypatch.setattr(module, "SYNC_SECONDS", 0.5 if mode == "hang" else 20)
            with pytest.raises(AgentFailed) as caught:
                await managed.sync_memory(project.id, "pull", node_id="w1", actor="ann")
            assert str(caught.value) == error
            assert (await node(db, project)).error_message == error
    actions = [entry.action for entry in await audit.listing(db, Page(), entity_id=project.id)]
    assert (actions.count("project.memory-push"), actions.count("project.memory-pull-failed")) == (1, 4)
    managed.settings = Settings()
    managed._membridge.renew()
    with pytest.raises(AgentFailed, match="no Membridge server is configured"):
        await managed.sync_memory(project.id, "push", node_id="w1", actor="ann")
