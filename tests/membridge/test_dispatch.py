"""A push from beginning to end, over a real database, to an agent that follows the contract, with all its failures."""

import re
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
import trio
from outputs import OUTPUT
from pushing import AGENT_KEY, SECONDS, Pushing, until

from bloomd.errors import Misconfigured
from bloomd.membridge import dispatch as module
from bloomd.membridge.dispatch import Dispatched, PushFailed, Rules
from bloomd.membridge.execution import Execution
from bloomd.runtime import tasks, workers
from bloomd.runtime.model import NewPolicy, Retry
from bloomd.runtime.refusals import Conflict, Invalid, NotFound, NoWorker


async def test_a_push_that_succeeds(pushing: Pushing) -> None:
    await pushing.worker()
    id = await pushing.task(
        context_id="c1", agent_slug="coder", context_hints=["a.py"], policy=NewPolicy(timeout_sec=7, budget=5)
    )
    done = await pushing.dispatch(id)
    [(lease_id,)] = pushing.sql("SELECT id FROM leases")
    assert done == Dispatched(
        id,
        "w1",
        lease_id,
        Execution(
            True, task_id=id, context_id="c1", output="Hello", duration_ms=0, returncode=0, session_messages=2,
            detail="",
        ),
        "completed",
    )  # fmt: skip
    assert pushing.agent.executed == [
        {
            "task_id": id, "lease_id": lease_id, "prompt": "Say hello", "context_id": "c1", "agent_slug": "coder",
            "desired_format": "text", "context_hints": ["a.py"], "policy": {"budget": 5, "timeout_sec": 7},
            "runtime_url": f"{pushing.runtime.url}/l/{lease_id}",
        }
    ]  # fmt: skip
    assert pushing.agent.callbacks == [("heartbeat", 200), ("complete", 200)]
    assert [request.path for request in pushing.agent.requests] == ["/execute-task"]
    assert pushing.sql("SELECT count(*) FROM llm_results") == [(1,)]
    assert repr(pushing.dispatcher) == "<Dispatcher 0 pushes open>"


async def test_the_key_goes_to_the_agent_and_nowhere_else(pushing: Pushing, capfd: Any) -> None:
    await pushing.worker()
    await pushing.dispatch(await pushing.task())
    pushing.agent.does = "bad-key"
    with pytest.raises(PushFailed) as failed:
        await pushing.dispatch(await pushing.task())
    assert [request.headers["x-membridge-agent"] for request in pushing.agent.requests] == [AGENT_KEY] * 2
    assert all(AGENT_KEY not in str(request) for request in pushing.runtime.requests)
    stored = pushing.sql(
        "SELECT (SELECT json_agg(t) FROM llm_tasks t)::text || (SELECT json_agg(t) FROM leases t)::text"
        " || (SELECT json_agg(t) FROM audit_logs t)::text || (SELECT json_agg(t) FROM llm_results t)::text"
        " || (SELECT json_agg(t) FROM runtime_artifacts t)::text"
    )
    assert "Hello" in str(stored)
    out, err = capfd.readouterr()
    for text in (str(stored), repr(failed.value), repr(pushing.rules), repr(pushing.dispatcher), out, err):
        assert AGENT_KEY not in text


@pytest.mark.parametrize(
    ("does", "sentence", "attempts"),
    [
        ("no-claude", "it cannot run Claude (it answered 503)", 0),
        ("bad-key", "it refuses the agent key (it answered 401): correct membridge.agent_key", 1),
        ("bad-body", "it does not understand the task (it answered 422)", 1),
        ("mode 500", "it answered 500", 1),
        ("mode redirect", "it redirects (302), which is not followed", 1),
        ("mode html", "its answer is not what an agent says", 1),
        ("mode lie", "its answer is not what an agent says", 1),
        ("mode garbage", "the agent: its answer is not HTTP", 1),
        ("mode drop", "the agent: the connection was closed before the answer was complete", 1),
        ("mode huge", "the agent: its answer is longer than 8 MiB", 1),
        ("hang", "the agent: no answer within", 1),
        ("mode drip", "the agent: no answer within", 1),
        ("unreached", "the agent: connection refused", 0),
        ("foreign", "192.0.2.1 is outside workers.allowed_networks", 0),
        ("nonsense", "its URL is not a valid http or https one", 0),
    ],
)
async def test_what_each_failure_costs(
    pushing: Pushing, does: str, sentence: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "no answer" in sentence:
        monkeypatch.setattr(module, "GRACE_SECONDS", -119.2)
    kind, _, mode = does.partition("mode ")
    url = {"unreached": "http://127.0.0.1:1", "foreign": "http://192.0.2.1", "nonsense": "http://a..b"}.get(does)
    pushing.agent.does, pushing.agent.mode = kind or "ok", mode or "ok"
    await pushing.worker(**({"url": url} if url else {}))
    id = await pushing.task()
    pushing.sql("UPDATE workers SET alive_at = 7")
    with pytest.raises(PushFailed, match=re.escape(sentence)) as failed:
        await pushing.dispatch(id)
    assert failed.value.lease.worker_id == "w1"
    task = await pushing.look(id)
    assert (task.status, task.attempts, task.lease_id) == ("queued", attempts, None)
    assert task.retry_at
    assert pushing.outcomes() == [("failed", "error") if attempts else ("released", "released")]
    answered = bool(attempts) and not sentence.startswith("the agent:")
    assert pushing.sql("SELECT unreached, alive_at > 7 FROM workers") == [(0 if url is None else 1, answered)]
    assert sentence in str(pushing.sql("SELECT reason FROM leases"))
    assert repr(pushing.dispatcher) == "<Dispatcher 0 pushes open>"


async def test_three_pushes_in_a_row_that_do_not_reach_it(pushing: Pushing) -> None:
    await pushing.worker(url="http://127.0.0.1:1")
    for status in ("online", "online", "offline"):
        with pytest.raises(PushFailed):
            await pushing.dispatch(await pushing.task())
        assert (await workers.one(pushing.database, "w1")).status == status
    with pytest.raises(NoWorker):
        await pushing.dispatch(await pushing.task())


async def test_whoever_is_reached_in_between_stays_online(pushing: Pushing) -> None:
    for does in ("ok", "no-claude", "bad-key"):
        await pushing.worker(url="http://127.0.0.1:1")
        for _ in range(2):
            with pytest.raises(PushFailed):
                await pushing.dispatch(await pushing.task())
        assert pushing.sql("SELECT unreached, status FROM workers") == [(2, "online")]
        await pushing.worker(url=pushing.agent.url)
        pushing.agent.does = does
        with nullcontext() if does == "ok" else pytest.raises(PushFailed):
            await pushing.dispatch(await pushing.task())
        assert pushing.sql("SELECT unreached FROM workers") == [(0,)]


async def test_a_certain_answer_without_callbacks_completes_the_task(pushing: Pushing) -> None:
    await pushing.worker()
    pushing.agent.does, pushing.agent.output = "silent", "a\0b\ud800c"
    id = await pushing.task()
    done = await pushing.dispatch(id)
    assert (done.task_status, done.execution.output, done.execution.duration_ms) == (
        "completed",
        "a\ufffdb\ufffdc",
        1200,
    )
    assert pushing.sql(f"SELECT status, {OUTPUT}, metrics ->> 'duration_ms' FROM llm_results") == [
        ("success", "a\ufffdb\ufffdc", "1200")
    ]
    assert pushing.agent.callbacks == []


@pytest.mark.parametrize("does", ["not-ok", "error"])
async def test_an_agent_that_reports_an_error(pushing: Pushing, does: str) -> None:
    await pushing.worker()
    pushing.agent.does = does
    id = await pushing.task(max_attempts=2)
    done = await pushing.dispatch(id)
    assert (done.execution.ok, done.execution.error, done.execution.returncode) == (False, "claude exited with 1", 1)
    assert done.task_status == "queued"
    pushing.sql("UPDATE llm_tasks SET retry_at = 1")
    assert (await pushing.dispatch(id)).task_status == "dead"
    assert (await pushing.look(id)).error_message == "claude exited with 1"
    assert pushing.sql("SELECT count(*) FROM llm_results") == [(2,)]


async def test_errors_are_not_tried_again_when_the_settings_say_so(pushing: Pushing) -> None:
    await pushing.worker()
    pushing.agent.mode = "500"
    pushing.rules = msgspec.structs.replace(pushing.rules, retry=Retry(errors=False))
    id = await pushing.task()
    with pytest.raises(PushFailed):
        await pushing.dispatch(id)
    assert (await pushing.look(id)).status == "failed"


async def test_a_callback_counts_though_the_answer_is_lost(pushing: Pushing) -> None:
    await pushing.worker()
    pushing.agent.does = "callback-only"
    id = await pushing.task()
    done = await pushing.dispatch(id)
    assert (done.execution.ok, done.execution.output, done.task_status) == (True, "Hello", "completed")
    assert pushing.outcomes() == [("released", "success")]


async def test_an_answer_that_never_comes_after_the_callback_is_not_waited_for(
    pushing: Pushing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.05)
    await pushing.worker()
    pushing.agent.does = "hang"
    id = await pushing.task()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_call_back, pushing, id)
            done = await pushing.dispatch(id)
    assert (done.execution.output, done.task_status) == ("Early", "completed")


async def _call_back(pushing: Pushing, id: str) -> None:
    await until(lambda: pushing.agent.requests)
    said = {"status": "success", "output": "Early", "error_message": None}
    await pushing.agent.call_back(pushing.agent.requests[0].json, "complete", said)
    assert pushing.agent.callbacks == [("complete", 200)]
    pushing.agent.gate.set()


async def test_a_callback_counts_though_the_answer_denies_it(pushing: Pushing) -> None:
    await pushing.worker()
    pushing.agent.does, pushing.agent.gate = "no-claude", trio.Event()
    id = await pushing.task()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_call_back, pushing, id)
        done = await pushing.dispatch(id)
    assert (done.execution.output, done.task_status) == ("Early", "completed")
    assert (await pushing.look(id)).attempts == 1


async def test_callbacks_of_another_lease_count_for_nothing(pushing: Pushing) -> None:
    await pushing.worker()
    pushing.agent.does = "wrong-lease"
    done = await pushing.dispatch(await pushing.task())
    assert pushing.agent.callbacks == [("heartbeat", 409), ("complete", 409)]
    assert (done.execution.output, done.task_status) == ("Hello", "completed")


async def test_what_is_refused_at_once(pushing: Pushing) -> None:
    await pushing.worker("mute", url="")
    id = await pushing.task()
    for wanted, refusal in (({"worker_id": "mute"}, Invalid), ({"worker_id": "nobody"}, NotFound), ({}, NoWorker)):
        with pytest.raises(refusal):
            await pushing.dispatch(id, **wanted)
    with pytest.raises(NotFound):
        await pushing.dispatch("nothing")
    await tasks.cancel(pushing.database, id, actor="test")
    with pytest.raises(Conflict, match="'cancelled'"):
        await pushing.dispatch(id)
    pushing.rules = Rules(None, (), None, ("unix:/run/b.sock",), Retry())
    with pytest.raises(Misconfigured, match=r"set http\.public_url"):
        await pushing.dispatch(await pushing.task())


async def test_without_a_public_url_it_is_called_back_where_it_is_called_from(pushing: Pushing) -> None:
    await pushing.worker()
    port = int(pushing.runtime.url.rpartition(":")[2])
    pushing.rules = Rules(AGENT_KEY, ("127.0.0.0/8",), None, ("unix:/x", f":{port}"), Retry())
    done = await pushing.dispatch(await pushing.task())
    assert pushing.agent.executed[0]["runtime_url"] == f"http://127.0.0.1:{port}/l/{done.lease_id}"
    assert pushing.agent.callbacks == [("heartbeat", 200), ("complete", 200)]
