"""Dispatch over HTTP (contract, section 3), with a real daemon and a real agent."""

from contextlib import suppress
from functools import partial

import httpx
import pytest
import trio
from agent_peer import agent_peer
from bloomd_process import KEY

AGENT_KEY = "the-agent-key-of-the-tests"


def off_loop(function, *args, **kwargs):
    """Run blocking test code in a thread, so that the peers of this loop go on answering."""
    return trio.to_thread.run_sync(partial(function, *args, **kwargs))


async def eventually(condition):
    with trio.fail_after(20):
        while not await off_loop(condition):
            await trio.sleep(0.02)


@pytest.fixture
async def agent():
    async with agent_peer(key=AGENT_KEY, runtime_key=KEY) as agent:
        yield agent


@pytest.fixture
def http(keyed):
    for worker in keyed.http.get("/api/runtime/workers").json():
        keyed.http.delete(f"/api/runtime/workers/{worker['id']}", params={"force": True})
    return keyed.http


@pytest.fixture
def register(http):
    def register(name="w1", **fields):
        answer = http.post("/api/runtime/workers", json={"name": name, **fields})
        assert answer.is_success, answer.text

    return register


@pytest.fixture
def create(http):
    def create(**fields):
        answer = http.post("/api/runtime/llm-tasks", json={"prompt": "Say hello", **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    return create


@pytest.fixture
def dispatch(http):
    def dispatch(id, **options):
        return off_loop(http.post, f"/api/runtime/llm-tasks/{id}/dispatch", **options)

    return dispatch


def task(http, id):
    return http.get(f"/api/runtime/llm-tasks/{id}").json()


async def test_a_task_is_pushed_and_its_outcome_told(http, keyed, agent, register, create, dispatch):
    register("w1", url=agent.url)
    id = create(context_id="c1")
    spoofed = {"Host": "thief.example.org", "X-Forwarded-Host": "thief.example.org", "X-Forwarded-Proto": "https"}
    answer = await dispatch(id, headers=spoofed)
    lease_id = agent.executed[0]["lease_id"]
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "dispatched": True, "task_id": id, "worker_id": "w1", "lease_id": lease_id, "task_status": "completed",
            "execution": {
                "ok": True, "task_id": id, "context_id": "c1", "output": "Hello", "duration_ms": 1200, "returncode": 0,
                "session_messages": 2, "detail": "",
            },
        },
    )  # fmt: skip
    assert agent.executed[0]["runtime_url"] == f"http://127.0.0.1:{keyed.port}/l/{lease_id}"
    assert agent.callbacks == [("heartbeat", 200), ("complete", 200)]
    assert agent.errands[-1].headers["x-membridge-agent"] == AGENT_KEY
    assert KEY not in str(agent.requests)
    entries = (await off_loop(http.get, "/api/runtime/audit", params={"entity_id": id})).json()
    told = [(entry["action"], entry["actor"]) for entry in reversed(entries)]
    assert [action for action, _ in told] == ["task.created", "task.leased", "task.running", "task.completed"]
    assert len({actor for _, actor in told}) == 1


@pytest.mark.parametrize(
    ("does", "attempts", "sentence"),
    [
        ("no-claude", 0, "the push to worker w1 failed: it cannot run Claude (it answered 503)"),
        ("bad-body", 1, "the push to worker w1 failed: it does not understand the task (it answered 422)"),
    ],
)
async def test_a_push_that_fails(http, agent, register, create, dispatch, does, attempts, sentence):
    register("w1", url=agent.url)
    agent.does = does
    id = create()
    answer = await dispatch(id)
    assert (answer.status_code, answer.headers["content-type"]) == (502, "application/problem+json")
    problem = answer.json()
    assert problem["type"] == "urn:problem-type:bloomd:push-failed"
    assert problem["error"] == problem["detail"]
    assert problem["error"].startswith(sentence)
    [attempt] = (await off_loop(task, http, id))["history"]
    assert {name: problem[name] for name in ("dispatched", "task_id", "worker_id", "lease_id")} == {
        "dispatched": False, "task_id": id, "worker_id": "w1", "lease_id": attempt["lease_id"],
    }  # fmt: skip
    back = await off_loop(task, http, id)
    assert (back["status"], back["attempts"], back["retry_at"] > back["updated_at"]) == ("queued", attempts, True)


async def test_what_is_refused(http, agent, register, create, dispatch):
    async def status(id, **body):
        return (await dispatch(id, json=body)).status_code

    register("mute")
    id = create()
    assert await status("nothing") == 404
    assert await status(id) == 503
    assert await status(id, worker_id="mute") == 400
    assert await status(id, worker_id="nobody") == 404
    assert await status(id, ttl_seconds=4) == 400
    register("w1", url=agent.url)
    assert await status(id, worker_id="w1", ttl_seconds=5) == 200
    assert await status(id) == 409
    assert [each["task_id"] for each in agent.executed] == [id]


async def test_who_goes_away_stops_nothing(http, agent, register, create, dispatch):
    register("w1", url=agent.url)
    agent.gate = trio.Event()
    id = create()
    with pytest.raises(httpx.ReadTimeout):
        await dispatch(id, timeout=0.5)
    agent.gate.set()
    await eventually(lambda: task(http, id)["status"] == "completed")
    assert agent.callbacks == [("heartbeat", 200), ("complete", 200)]


async def test_a_task_that_is_cancelled_under_way(http, agent, register, create, dispatch):
    register("w1", url=agent.url)
    agent.gate = trio.Event()
    id = create()
    answers = []

    async def push():
        answers.append(await dispatch(id))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(push)
        await eventually(lambda: task(http, id)["status"] == "running")
        assert (await off_loop(http.post, f"/api/runtime/llm-tasks/{id}/cancel")).status_code == 200
    [answer] = answers
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:problem-type:bloomd:cancelled")
    agent.gate.set()
    with suppress(trio.TooSlowError), trio.fail_after(20):
        while len(agent.callbacks) < 2:
            await trio.sleep(0.02)
    assert agent.callbacks == [("heartbeat", 200), ("complete", 409)]
