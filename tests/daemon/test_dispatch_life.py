"""Pushes and the life of the daemon: it is killed or stopped in the middle of one, or pushes by itself."""

import signal
from functools import partial

import pytest
import trio
from agent_peer import agent_peer
from bloomd_process import KEY


def off_loop(function, *args, **kwargs):
    """Run blocking test code in a thread, so that the peers of this loop go on answering."""
    return trio.to_thread.run_sync(partial(function, *args, **kwargs))


async def eventually(condition, seconds=20):
    with trio.fail_after(seconds):
        while not await off_loop(condition):
            await trio.sleep(0.05)


@pytest.fixture
async def agent():
    async with agent_peer(runtime_key=KEY) as agent:
        yield agent


async def post(daemon, path, body=None):
    return await off_loop(daemon.http.post, f"/api/runtime{path}", json=body or {})


def task(daemon, id):
    return daemon.http.get(f"/api/runtime/llm-tasks/{id}").json()


async def queued(daemon, agent):
    await post(daemon, "/workers", {"name": "w1", "url": agent.url})
    return (await post(daemon, "/llm-tasks", {"prompt": "Say hello"})).json()["id"]


def end(daemon, number):
    daemon.signal(number)
    daemon.process.wait(8)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_callback_counts_after_a_restart_in_the_middle(bloomd, agent, number):
    daemon = bloomd()
    await off_loop(daemon.start)
    id = await queued(daemon, agent)
    agent.gate = trio.Event()
    answers = []

    async def dispatch():
        try:
            answers.append((await post(daemon, f"/llm-tasks/{id}/dispatch")).status_code)
        except Exception as error:
            answers.append(type(error).__name__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dispatch)
        await eventually(lambda: task(daemon, id)["status"] == "running")
        await off_loop(end, daemon, number)
    assert answers == [503 if number == signal.SIGTERM else "RemoteProtocolError"]
    await off_loop(daemon.start)
    kept = await off_loop(task, daemon, id)
    assert (kept["status"], kept["attempts"], kept["worker_id"]) == ("running", 1, "w1")
    agent.gate.set()
    await eventually(lambda: task(daemon, id)["status"] == "completed")
    assert agent.callbacks == [("heartbeat", 200), ("complete", 200)]
    assert [each["outcome"] for each in (await off_loop(task, daemon, id))["history"]] == ["success"]
    assert await off_loop(daemon.stop) == 0


async def test_tasks_are_pushed_for_as_long_as_the_setting_says_so(bloomd, agent):
    def is_there():
        return any(each["name"] == "auto-dispatch" for each in daemon.status()["services"])

    daemon = bloomd()
    await off_loop(daemon.start)
    id = await queued(daemon, agent)
    assert not await off_loop(is_there)
    assert (await off_loop(task, daemon, id))["status"] == "queued"
    daemon.configure(tasks__auto_dispatch=True)
    assert (await off_loop(daemon.ctl, "reload")).returncode == 0
    await eventually(lambda: task(daemon, id)["status"] == "completed")
    assert await off_loop(is_there)
    daemon.configure(tasks__auto_dispatch=False)
    assert (await off_loop(daemon.ctl, "reload")).returncode == 0
    await eventually(lambda: not is_there())
    assert (await off_loop(daemon.status))["verdict"] == "ok"
    assert await off_loop(daemon.stop) == 0
