"""A worker on a real daemon: capacity, limits, outages, and its end."""

import json
import os
from typing import Any

import pytest
import trio
from fake import ends, the_pid
from servers import is_running
from structlog.testing import capture_logs

from bloomd.errors import Misconfigured
from bloomd.settings.model import Worker as Settings
from bloomd.worker import attempt, prompt, worker
from bloomd.worker.api import Server
from bloomd.worker.contexts import Contexts, name_of, take
from bloomd.worker.journal import Journal
from bloomd.worker.worker import Worker


async def until(condition) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


async def test_it_says_what_it_is(start, queue):
    await start(max_concurrency=3, labels=("gpu",))
    await until(lambda: "error" not in queue.worker())
    told = queue.worker()
    capabilities = {name: value for name, value in told["capabilities"].items() if value is not None}
    assert capabilities == {"claude_cli": True, "max_concurrency": 3, "labels": ["gpu"], "sessions": True}
    assert (told["url"], told["status"], told["source"]) == ("", "online", "direct")


async def test_it_works_at_as_much_as_it_has_room_for(start, queue, starts):
    running = await start(max_concurrency=3)
    tasks = [queue.add(f"task {number}\nfake:slow 0.1", context_id=f"c{number % 5}") for number in range(9)]
    most = 0
    with trio.fail_after(30):
        while any(queue.task(id)["status"] != "completed" for id in tasks):
            most = max(most, queue.worker().get("active_leases", 0))
            await trio.sleep(0.01)
    assert most == 3
    assert sorted(start["prompt"][:6] for start in starts()) == [f"task {number}" for number in range(9)]
    await until(lambda: repr(running) == "<Worker claiming, 0 of 3 at work>")


async def test_a_limit_gives_the_task_back_and_pauses_until_it_resets(start, queue, starts, tmp_path):
    running = await start(max_concurrency=2)
    id = queue.add("fake:retry-limit\nfake:say done", context_id="c")
    await until(lambda: running.paused)
    await until(lambda: queue.worker()["status"] == "error")
    told, task = queue.worker(), queue.task(id)
    assert (task["status"], task["attempts"]) == ("queued", 0)
    assert told["capabilities"]["paused_because"] == "Claude AI usage limit reached"
    paused_at, resumes_at = starts()[0]["at"], told["capabilities"]["paused_until"] / 1000
    assert paused_at < resumes_at < paused_at + 4
    assert (await queue.becomes(id, "completed"))["attempts"] == 1
    assert starts()[1]["at"] > int(resumes_at)
    assert queue.worker()["capabilities"]["paused_until"] is None
    assert queue.worker()["status"] == "online"


async def test_without_a_time_the_pauses_grow(start, queue, fake_directory, monkeypatch):
    (fake_directory / "limit").write_text("Invalid API key · Please run /login")
    delays: list[int] = []

    class Pause:
        def delay(self, failures: int) -> float:
            delays.append(failures)
            return 0.3

    monkeypatch.setattr(worker, "PAUSE", Pause())
    await start(max_concurrency=4)
    monkeypatch.setattr(attempt, "PATIENCE", 9)
    tasks = [queue.add(f"task {number}") for number in range(4)]
    await until(lambda: delays[-1:] == [3])
    (fake_directory / "limit").unlink()
    for id in tasks:
        assert (await queue.becomes(id, "completed"))["attempts"] == 1


async def test_a_task_that_always_meets_a_limit_does_not_keep_the_worker_from_others(start, queue, starts, monkeypatch):
    class Pause:
        def delay(self, failures: int) -> float:
            return 0.05

    monkeypatch.setattr(worker, "PAUSE", Pause())
    await start()
    poison = queue.add("fake:limit Invalid API key · Please run /login", priority=9)
    other = queue.add("x")
    task = await queue.becomes(poison, "dead")
    assert task["attempts"] == 1
    assert task["error_message"] == (
        "this worker cannot work now: Invalid API key · Please run /login (said 3 times of this task)"
    )
    await queue.becomes(other, "completed")
    assert [started["prompt"][:5] for started in starts()] == ["fake:", "fake:", "fake:", "x"]


async def test_a_program_that_is_gone_costs_no_attempt(start, queue, tmp_path):
    program = tmp_path / "program"
    running = await start(command=(str(program),))
    id = queue.add("x")
    await until(lambda: running.paused)
    await until(lambda: queue.task(id)["status"] == "queued")
    assert queue.task(id)["attempts"] == 0
    await until(lambda: "No such file" in str(queue.worker()["capabilities"]["paused_because"]))


async def test_an_outage_stops_no_work_and_loses_no_result(start, queue, network, tmp_path, starts):
    await start(url=network.url)
    id = queue.add("fake:slow 0.5\nfake:say done", context_id="c")
    await until(starts)
    network.become("closed")
    await until(lambda: network.refused > 2)
    await trio.sleep(0.6)  # the work ends meanwhile
    assert queue.task(id)["status"] == "running"
    network.become("open")
    assert (await queue.becomes(id, "completed"))["attempts"] == 1
    assert queue.result(id)["output"] == "done"
    assert len(starts()) == 1
    await queue.becomes(queue.add("next"), "completed")


async def test_a_completion_whose_answer_is_lost_counts_once(start, queue, network, starts):
    await start(url=network.url)
    id = queue.add("fake:slow 0.3\nfake:say done", context_id="c")
    await until(lambda: queue.task(id)["status"] == "running")
    network.become("deaf")
    await queue.becomes(id, "completed")
    await until(lambda: network.refused > 1)
    network.become("open")
    await queue.becomes(queue.add("next", context_id="c"), "completed")
    assert queue.result(id)["output"] == "done"
    assert starts()[1]["turn"] == 2  # it heard in the end that its result had counted


async def test_a_lease_that_expired_during_an_outage_is_lost(start, queue, network, tmp_path):
    await start(url=network.url)
    id = queue.add("fake:hang", context_id="c")
    pid = await the_pid(tmp_path / "w1" / "contexts" / name_of("c") / "hanging")
    await queue.becomes(id, "running")
    network.become("closed")
    queue.sql("UPDATE leases SET expires_at = 1 WHERE task_id = %s", id)
    await queue.becomes(id, "dead")
    assert is_running(pid)
    network.become("open")
    await ends(pid)


async def test_a_server_that_is_away_at_the_start_is_waited_for(start, queue, network):
    network.become("closed")
    await start(url=network.url)
    id = queue.add("x")
    await until(lambda: network.refused > 1)
    network.become("open")
    await queue.becomes(id, "completed")


async def test_a_worker_that_was_forgotten_registers_again(start, queue, monkeypatch):
    monkeypatch.setattr(worker, "WAIT_SECONDS", 0.2)
    await start(labels=("gpu",))
    await until(lambda: "error" not in queue.worker())
    assert queue.http.delete("/api/runtime/workers/w1").status_code == 200
    await queue.becomes(queue.add("x", labels=["gpu"]), "completed")


async def test_a_wrong_token_is_told(daemon, queue, tmp_path):
    os.close(take(tmp_path))
    refused = Worker(Server(daemon.url, "w1", "a-wrong-token"), Contexts(tmp_path), Settings(), environ={})
    with trio.fail_after(10), pytest.raises(Misconfigured, match=r"refuses this worker: .*; check `worker.token`"):
        await refused.run()


async def test_a_drain_claims_nothing_more_and_lets_what_runs_end(start, queue, starts):
    running = await start(max_concurrency=2)
    id = queue.add("fake:slow 0.5")
    await until(starts)
    running.drain()
    assert repr(running) == "<Worker draining, 1 of 2 at work>"
    await trio.sleep(2 * worker.LAST_CLAIM_SECONDS)  # the server hears that nobody waits any more; nothing tells
    other = queue.add("x")
    await queue.becomes(id, "completed")
    await until(lambda: repr(running) == "<Worker draining, 0 of 2 at work>")
    assert queue.task(other)["status"] == "queued"


async def test_an_answer_that_comes_when_the_worker_ends_is_given_back(start, queue, network):
    running = await start(url=network.url)
    await until(lambda: queue.worker().get("status") == "online")
    network.become("slow")
    id = queue.add("x")
    await until(lambda: queue.task(id)["status"] == "leased")
    running.drain()
    await until(lambda: queue.task(id)["status"] == "queued")
    assert queue.task(id)["attempts"] == 0


async def test_its_own_token_is_all_that_it_needs(start, queue):
    answer = queue.http.post("/api/runtime/workers/w1/tokens")
    assert answer.status_code == 201, answer.text
    running = await start(token=answer.json()["secret"])
    tasks = [queue.add("fake:long 1100"), queue.add("fake:retry-limit", context_id="c"), queue.add("x", context_id="c")]
    for id in tasks:
        assert (await queue.becomes(id, "completed"))["attempts"] == 1
    running.drain()
    await until(lambda: queue.worker()["status"] == "offline")


@pytest.mark.parametrize("how", ["the grace time is over", "a hurry"])
async def test_what_does_not_end_in_time_is_given_back(start, queue, tmp_path, how):
    running = await start(grace_seconds=60.0 if how == "a hurry" else 0.3)
    id = queue.add("fake:hang", context_id="c", max_attempts=2)
    pid = await the_pid(tmp_path / "w1" / "contexts" / name_of("c") / "hanging")
    running.drain()
    if how == "a hurry":
        running.hurry()
    await ends(pid)
    await until(lambda: queue.task(id)["status"] == "queued")
    assert queue.task(id)["attempts"] == 0
    assert queue.task(id)["error_message"] is None
    await until(lambda: not list((tmp_path / "w1" / "leases").iterdir()))


async def test_what_cannot_be_given_back_is_noted_for_the_next(start, queue, network, tmp_path, monkeypatch):
    monkeypatch.setattr(attempt, "RELEASE_SECONDS", 0.2)
    running = await start(url=network.url)
    id = queue.add("fake:hang\n", context_id="c")
    pid = await the_pid(tmp_path / "w1" / "contexts" / name_of("c") / "hanging")
    await queue.becomes(id, "running")
    network.become("closed")
    with capture_logs() as logged:
        running.hurry()
        await ends(pid)
        await until(lambda: repr(running) == "<Worker draining, 0 of 1 at work>")
    said = [entry["event"] for entry in logged]
    assert "task given back" not in said
    assert "the server is away; the lease expires there" in said
    [note] = (tmp_path / "w1" / "leases").iterdir()
    assert json.loads(note.read_text())["lease_id"] == queue.task(id)["lease_id"]


async def test_a_bug_ends_one_attempt_and_no_other(start, queue, monkeypatch):
    build = prompt.build

    def stumble(text: str, *more: Any) -> str:
        if text == "stumble":
            raise ZeroDivisionError
        return build(text, *more)

    monkeypatch.setattr(prompt, "build", stumble)
    await start(max_concurrency=2)
    other, id = queue.add("fake:slow 0.5"), queue.add("stumble")
    assert (await queue.becomes(id, "dead"))["error_message"] == "the worker has a bug: ZeroDivisionError"
    await queue.becomes(other, "completed")


async def test_it_says_that_it_ends(start, queue):
    running = await start()
    await until(lambda: queue.worker().get("status") == "online")
    running.drain()
    await until(lambda: queue.worker()["status"] == "offline")


async def test_what_a_killed_worker_held_is_given_back(start, queue, tmp_path):
    root = tmp_path / "w1"
    os.close(take(root))
    queue.http.post("/api/runtime/workers", json={"name": "w1", "capabilities": {"max_concurrency": 2}})
    ids = [queue.add("x"), queue.add("y")]
    held = queue.http.post("/api/runtime/leases/claim", json={"worker_id": "w1", "max": 2}).json()["leases"]
    for work in held:
        Journal(root / "leases").note(work["lease"]["id"])
    Journal(root / "leases").note("a lease that is no more")
    await start()
    for id in ids:
        assert (await queue.becomes(id, "completed"))["attempts"] == 1
    await until(lambda: not list((root / "leases").iterdir()))


async def test_what_nobody_has_used_for_long_is_removed_at_the_start(start, queue, tmp_path):
    old = tmp_path / "w1" / "contexts" / name_of("c")
    old.mkdir(parents=True)
    os.utime(old, (1, 1))
    await start()
    await until(lambda: not old.exists())


async def test_no_note_is_left_of_what_has_ended(start, queue, tmp_path):
    await start()
    id = queue.add("fake:slow 0.3")
    await queue.becomes(id, "running")
    [note] = (tmp_path / "w1" / "leases").iterdir()
    assert json.loads(note.read_text())["lease_id"] == queue.task(id)["lease_id"]
    await queue.becomes(id, "completed")
    await until(lambda: not list((tmp_path / "w1" / "leases").iterdir()))
