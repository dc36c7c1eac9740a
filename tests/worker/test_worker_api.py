"""The worker's calls: which trouble an answer is, whatever answers."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from peers import Peer, Reply, Request, reply, serving

from bloomd.errors import Unavailable
from bloomd.worker import api
from bloomd.worker.api import LeaseLost, Refused, Server, Unknown, Work

PROBLEM = "urn:problem-type:bloomd:"

LEASE = {"id": "l", "started_at": 1000, "ttl_seconds": 60, "deadline_at": 151_000, "something": "new"}
TASK = {"id": "t", "prompt": "x", "policy": {"timeout_sec": 120, "budget": 0.5, "more": 1}, "priority": 3}

CALLS: dict[str, Callable[[Server], Awaitable[Any]]] = {
    "register": lambda server: server.register(status="online"),
    "claim": lambda server: server.claim(1, wait_seconds=0, ttl_seconds=60),
    "heartbeat": lambda server: server.heartbeat("l", "half of it"),
    "complete": lambda server: server.complete("l", {"status": "success", "output": "4"}),
    "release": lambda server: server.release("l", "because"),
    "upload": lambda server: server.upload("l/1", b"x", type="LLM_RESULT", tags=["a b", "c"]),
}
OF_A_LEASE = ("heartbeat", "complete", "release")


async def trouble(call: str, answer: Reply | str) -> BaseException:
    """What a call comes to when this is answered, or the peer behaves so."""
    peer = Peer(lambda request: answer if isinstance(answer, Reply) else reply({}))
    peer.mode = answer if isinstance(answer, str) else "ok"
    with trio.fail_after(20):
        async with serving(peer):
            try:
                await CALLS[call](Server(peer.url, "w1", "token"))
            except (Unavailable, Refused, LeaseLost, Unknown) as error:
                return error
    raise AssertionError("no trouble")


def problem(status: int, type: str, text: str = "so it is") -> Reply:
    return reply({"type": PROBLEM + type, "error": text}, status)


def outcome(status: int, type: str) -> Reply:
    return reply([{"lease_id": "l", "ok": False, "status": status, "type": PROBLEM + type, "error": "so it is"}])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("mode", ["500", "503", "429", "408", "html", "garbage", "drop", "close", "huge"])
async def test_a_server_with_trouble_of_its_own_is_away(call, mode, monkeypatch):
    if mode == "html" and call == "register":
        return  # of this answer nothing is read
    monkeypatch.setattr(api, "CLAIM_LIMIT", 1 << 20)
    assert isinstance(await trouble(call, mode), Unavailable)


@pytest.mark.parametrize("call", ["claim", "upload"])
async def test_a_server_that_says_nothing_is_away(call, monkeypatch):
    for limit in ("UPLOAD_TIMEOUT", "POLL_MARGIN"):
        monkeypatch.setattr(api, limit, 0.1)
    assert isinstance(await trouble(call, "hang"), Unavailable)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", [problem(401, "unauthorized"), problem(413, "too-large"), Reply(404), Reply(400)])
async def test_a_refusal_is_one_whatever_it_is_about(call, answer):
    refused = await trouble(call, answer)
    assert isinstance(refused, Refused)
    assert refused.status == answer.status
    assert str(refused) == ("so it is" if answer.body else f"it answered {answer.status}")


async def test_a_redirect_says_what_to_set():
    assert "worker.server" in str(await trouble("register", "redirect"))


async def test_a_worker_that_is_not_known():
    assert isinstance(await trouble("claim", problem(404, "not-found")), Unknown)


@pytest.mark.parametrize("call", OF_A_LEASE)
@pytest.mark.parametrize(("status", "type"), [(409, "lease-lost"), (409, "cancelled"), (404, "not-found")])
async def test_a_lease_that_is_lost(call, status, type):
    lost = await trouble(call, outcome(status, type))
    assert isinstance(lost, LeaseLost)
    assert str(lost) == "so it is"
    assert isinstance(await trouble("upload", problem(status, type)), LeaseLost)


@pytest.mark.parametrize("call", OF_A_LEASE)
async def test_an_outcome_that_may_be_another_one_next_time(call):
    assert isinstance(await trouble(call, outcome(409, "conflict")), Unavailable)
    assert isinstance(await trouble(call, outcome(503, "unavailable")), Unavailable)
    assert isinstance(await trouble(call, reply([])), Unavailable)
    assert isinstance(await trouble(call, reply({"ok": True})), Unavailable)
    assert isinstance(await trouble(call, outcome(400, "invalid")), Refused)


async def test_what_is_sent_and_what_is_read():
    answers = {
        "claim": {"leases": [{"lease": LEASE, "task": TASK}]},
        "heartbeat": [{"lease_id": "l", "ok": True}],
        "complete": [{"lease_id": "l", "ok": True, "task_status": "completed"}],
        "release": [{"lease_id": "l", "ok": True}],
        "output": {"id": "a-1"},
        "workers": {},
    }

    def answer(request: Request) -> Reply:
        assert request.headers["x-runtime-api-key"] == "token"
        return reply(answers[request.path.rsplit("/", 1)[1]])

    async with serving(Peer(answer)) as peer:
        server = Server(f"{peer.url}/base", "w1", "token")
        said = {name: await call(server) for name, call in CALLS.items()}
    assert said["claim"] == [
        Work(api.Lease("l", 1000, 60, deadline_at=151_000), api.Task("t", "x", policy=api.Policy(120, 0.5)))
    ]
    assert (said["complete"], said["upload"]) == ("completed", "a-1")
    sent = {request.path: request for request in peer.requests}
    assert sent["/base/api/runtime/workers"].json == {"name": "w1", "status": "online"}
    claim = {"worker_id": "w1", "max": 1, "wait_seconds": 0, "ttl_seconds": 60}
    assert sent["/base/api/runtime/leases/claim"].json == claim
    beat = {"lease_id": "l", "worker_id": "w1", "progress": "half of it"}
    assert sent["/base/api/runtime/leases/heartbeat"].json == [beat]
    assert sent["/base/api/runtime/leases/release"].json == [{"lease_id": "l", "reason": "because"}]
    upload = sent["/base/api/runtime/leases/l%2F1/artifacts/output"]
    assert (upload.method, upload.query, upload.body) == ("PUT", "type=LLM_RESULT&tag=a%20b&tag=c", b"x")


async def test_without_a_token_none_is_sent():
    async with serving(Peer(lambda request: reply({}))) as peer:
        await Server(peer.url, "w1", None).register()
    assert "x-runtime-api-key" not in peer.requests[0].headers


@pytest.mark.parametrize(("said", "holds"), [({}, True), ({"holds_conversation": False}, False)])
async def test_who_is_not_told_of_a_conversation_keeps_it(said, holds):
    peer = Peer(lambda request: reply({"leases": [{"lease": LEASE, "task": TASK, **said}]}))
    async with serving(peer):
        [work] = await Server(peer.url, "w1", "token").claim(1, wait_seconds=0, ttl_seconds=60)
    assert work.holds_conversation is holds
