"""One task on a real daemon, from its claim to its end, however it ends."""

import json

import pytest
import trio
from fake import ends, the_pid
from servers import is_running

from bloomd.worker import attempt
from bloomd.worker.claude import CUT_NOTE
from bloomd.worker.contexts import name_of
from bloomd.worker.process import STDOUT_LIMIT


async def test_a_result_with_what_it_cost(start, queue):
    await start()
    id = queue.add("Add 2 and 2.\nfake:say 4")
    task = await queue.becomes(id, "completed")
    assert (task["attempts"], task["worker_id"]) == (1, "w1")
    done = queue.result(id)
    assert (done["status"], done["output"], done["error_message"]) == ("success", "4", None)
    assert done["metrics"]["tokens_used"] == 12
    assert done["metrics"]["cost_usd"] == 0.25
    assert 0 < done["metrics"]["duration_ms"] < 20_000
    assert queue.content(id) == "4"
    assert queue.artifacts(id)[0]["tags"] == []


async def test_the_prompt_is_on_no_command_line_and_no_key_in_the_environment(start, queue):
    await start()
    id = queue.add("a secret prompt\nfake:env", desired_format="json")
    await queue.becomes(id, "completed")
    told = json.loads(queue.result(id)["output"])
    assert told["argv"][1:] == ["--print", "--output-format", "json"]
    assert told["environ"].keys() - {"LC_CTYPE"} == {"PATH", "CLAUDE_FAKE_DIR", "BLOOMD_RUN"}


async def test_what_is_asked_for_reaches_the_program(start, queue, starts, tmp_path):
    await start()
    (tmp_path / "w1" / "notes.md").write_text("what the notes say")
    id = queue.add("Think.", desired_format="json", context_hints=["notes.md", "be brief", "../fake/log"])
    await queue.becomes(id, "completed")
    [started] = starts()
    for words in ("what the notes say", "be brief", "may not contain `..`", "Think.", "one JSON value"):
        assert words in started["prompt"]


async def test_plain_text_is_an_answer(start, queue):
    await start()
    id = queue.add("fake:plain just words")
    await queue.becomes(id, "completed")
    assert queue.result(id)["output"] == "just words\n"
    assert queue.result(id)["metrics"]["tokens_used"] is None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("fake:error no such tool", "no such tool"),
        ("fake:crash out of luck", "exit code 3; out of luck"),
        ("fake:killed", "ended by SIGKILL"),
        ("fake:raw \\n", "it ended without an answer"),
    ],
)
async def test_an_error_ends_the_attempt_and_says_why(start, queue, prompt, message):
    await start()
    id = queue.add(prompt)
    task = await queue.becomes(id, "dead")
    assert task["error_message"] == queue.result(id)["error_message"] == message


async def test_what_cannot_be_stored_is_replaced(start, queue):
    await start()
    id = queue.add("fake:raw a\\0b")
    await queue.becomes(id, "completed")
    assert queue.result(id)["output"] == "a\N{REPLACEMENT CHARACTER}b"


async def test_what_takes_too_long_is_ended(start, queue, tmp_path):
    await start()
    id = queue.add("fake:hang", context_id="c", policy={"timeout_sec": 1})
    task = await queue.becomes(id, "dead")
    assert task["error_message"] == "it did not finish within 1 s (policy.timeout_sec)"
    assert not is_running(await the_pid(tmp_path / "w1" / "contexts" / name_of("c") / "hanging"))


async def test_an_overrun_of_the_budget_is_recorded(start, queue):
    await start()
    over = queue.add("fake:tokens 60 41", policy={"budget": 100})
    within = queue.add("fake:tokens 60 40", policy={"budget": 100})
    for id in (over, within):
        await queue.becomes(id, "completed")
    assert queue.artifacts(over)[0]["tags"] == [attempt.OVER_BUDGET]
    assert queue.artifacts(within)[0]["tags"] == []
    assert queue.result(over)["metrics"]["tokens_used"] == 101


async def test_an_overrun_of_a_failed_attempt_is_recorded_in_its_error(start, queue):
    await start()
    id = queue.add("fake:tokens 1200000 1\nfake:error no", policy={"budget": 1_000_000})
    task = await queue.becomes(id, "dead")
    assert task["error_message"] == "no [bloomd: it used 1200001 tokens, its budget was 1000000 (policy.budget)]"


async def test_a_long_output_is_uploaded(start, queue):
    await start()
    id = queue.add("fake:long 2000\nfake:tokens 1 1", policy={"budget": 1})
    await queue.becomes(id, "completed")
    [artifact] = queue.artifacts(id)
    assert queue.result(id)["output"] is None
    assert queue.result(id)["artifact_id"] == artifact["id"]
    assert (artifact["name"], artifact["type"], artifact["tags"]) == ("output", "LLM_RESULT", [attempt.OVER_BUDGET])
    assert artifact["size"] == 2000 * 1024
    assert queue.content(id) == "0123456789abcde\n" * (2000 * 64)


async def test_an_output_that_the_server_will_not_store_is_shortened(start, queue):
    await start()
    id = queue.add("fake:long 3500")
    await queue.becomes(id, "completed")
    output = queue.result(id)["output"]
    assert output.startswith("0123456789abcde\n" * 65536)
    assert output.endswith("[bloomd: the server takes no more than this]")
    assert queue.artifacts(id)[0]["tags"] == [attempt.TRUNCATED]


async def test_a_flood_is_cut(start, queue, monkeypatch):
    monkeypatch.setattr("bloomd.worker.process.STDOUT_LIMIT", 500_000)
    await start()
    id = queue.add("fake:flood 4")
    await queue.becomes(id, "completed")
    assert len(queue.result(id)["output"]) == 500_000 + len(CUT_NOTE)
    assert queue.result(id)["output"].endswith(CUT_NOTE)
    assert queue.artifacts(id)[0]["tags"] == [attempt.TRUNCATED]
    assert STDOUT_LIMIT == 8 * 1024 * 1024


async def test_a_result_that_the_server_refuses_fails_the_task_with_the_reason(start, queue, monkeypatch):
    monkeypatch.setattr(attempt, "INLINE_BYTES", 1 << 30)
    await start()
    id = queue.add("fake:long 2000", max_attempts=3)
    task = await queue.becomes(id, "failed")
    assert "would not take the result" in task["error_message"]
    assert "larger" in task["error_message"]


async def test_a_conversation_goes_on(start, queue, starts):
    await start()
    for prompt in ("My name is Ada.", "What is my name?"):
        await queue.becomes(queue.add(prompt, context_id="c"), "completed")
    await queue.becomes(queue.add("And mine?", context_id="another"), "completed")
    first, second, other = starts()
    assert "--resume" not in first["argv"]
    assert second["argv"][-2:] == ["--resume", first["session"]]
    assert second["turn"] == 2
    assert first["cwd"] == second["cwd"]
    assert "--resume" not in other["argv"]
    assert other["cwd"] != first["cwd"]


async def test_a_conversation_that_is_gone_begins_anew(start, queue, starts, fake_directory):
    await start()
    await queue.becomes(queue.add("one", context_id="c"), "completed")
    for session in (fake_directory / "sessions").iterdir():
        session.unlink()
    await queue.becomes(queue.add("two", context_id="c"), "completed")
    await queue.becomes(queue.add("three", context_id="c"), "completed")
    _, second, third = starts()  # the try that found no conversation did not get as far as the log
    assert "--resume" not in second["argv"]
    assert third["argv"][-2:] == ["--resume", second["session"]]


async def test_a_failed_task_leaves_the_conversation_as_it_was(start, queue, starts):
    await start()
    await queue.becomes(queue.add("one", context_id="c"), "completed")
    await queue.becomes(queue.add("fake:error no", context_id="c"), "dead")
    await queue.becomes(queue.add("two", context_id="c"), "completed")
    first, _, third = starts()
    assert third["argv"][-2:] == ["--resume", first["session"]]


async def test_a_conversation_that_is_full_begins_anew_in_the_same_attempt(start, queue, starts):
    await start()
    await queue.becomes(queue.add("one", context_id="c"), "completed")
    id = queue.add("fake:full\nfake:say two", context_id="c")
    assert (await queue.becomes(id, "completed"))["attempts"] == 1
    await queue.becomes(queue.add("three", context_id="c"), "completed")
    first, full, second, third = starts()
    assert full["argv"][-2:] == ["--resume", first["session"]]
    assert "--resume" not in second["argv"]
    assert third["argv"][-2:] == ["--resume", second["session"]]


async def test_an_attempt_after_a_failed_one_begins_a_conversation(start, queue, starts):
    await start()
    await queue.becomes(queue.add("one", context_id="c"), "completed")
    id = queue.add("fake:tired\nfake:say two", context_id="c", max_attempts=2)
    assert (await queue.becomes(id, "completed"))["attempts"] == 2
    first, failed, second = starts()
    assert failed["argv"][-2:] == ["--resume", first["session"]]
    assert "--resume" not in second["argv"]


async def test_a_conversation_that_is_another_workers_now_is_forgotten(start, queue, starts):
    await start()
    await queue.becomes(queue.add("one", context_id="c"), "completed")
    queue.sql("DELETE FROM conversations")
    await queue.becomes(queue.add("fake:error no", context_id="c"), "dead")
    await queue.becomes(queue.add("two", context_id="c"), "completed")
    for started in starts():
        assert "--resume" not in started["argv"]


async def test_a_cancelled_task_is_stopped_and_its_result_discarded(start, queue, tmp_path):
    await start()
    id = queue.add("fake:hang", context_id="c")
    pid = await the_pid(tmp_path / "w1" / "contexts" / name_of("c") / "hanging")
    await queue.becomes(id, "running")
    queue.cancel(id)
    await ends(pid)
    assert queue.task(id)["status"] == "cancelled"
    assert queue.artifacts(id) == []
    await queue.becomes(queue.add("next"), "completed")


async def test_a_lost_lease_stops_the_work(start, queue, tmp_path):
    running = await start()
    id = queue.add("fake:hang", context_id="c", max_attempts=2)
    pid = await the_pid(tmp_path / "w1" / "contexts" / name_of("c") / "hanging")
    lease = (await queue.becomes(id, "running"))["lease_id"]
    outcomes = queue.http.post("/api/runtime/leases/release", json=[{"lease_id": lease, "retry_after_seconds": 600}])
    assert outcomes.json()[0]["ok"]
    await ends(pid)
    with trio.fail_after(10):
        while repr(running) != "<Worker claiming, 0 of 1 at work>":
            await trio.sleep(0.01)
    task = queue.task(id)
    assert (task["status"], task["attempts"]) == ("queued", 0)
    assert list((tmp_path / "w1" / "leases").iterdir()) == []


async def test_progress_is_what_the_program_said_last(start, queue):
    await start()
    id = queue.add("fake:slow 1")
    seen: set[str] = set()
    while (task := queue.task(id))["status"] != "completed":
        seen.add(str(task["progress"]))
        await trio.sleep(0.02)
    assert {f"{percent} % done" for percent in range(10, 110, 10)} & seen
