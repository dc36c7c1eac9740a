"""The rules of pushes: to whom, for how long, and what each way to fail costs."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from bloomd.membridge.agents import Agent
from bloomd.membridge.polls import PollResult
from bloomd.runtime import claims, completion, expiry, heartbeats, leases, liveness, pushes, queue, tasks, workers
from bloomd.runtime.completion import complete
from bloomd.runtime.database import Database
from bloomd.runtime.heartbeats import Beat
from bloomd.runtime.leases import Leased, Wanted
from bloomd.runtime.model import Completion, NewPolicy, Retry, Task, Worker
from bloomd.runtime.refusals import Conflict, Invalid, LeaseLost, NotFound, NoWorker, Refusal, TaskCancelled

URL = "http://127.0.0.1:8001"
RETRY = Retry(first_seconds=4.0, max_seconds=20.0)

Make = Callable[..., Awaitable[Any]]


async def push(db: Database, task: Task, **wanted: Any) -> Leased:
    return await pushes.lease(db, Wanted(task.id, **wanted), actor="test")


async def failed(db: Database, leased: Leased) -> Task:
    """The push was not taken; the task as it is then."""
    await pushes.give_back(db, leased.lease, "connection refused", retry=RETRY, actor="test")
    return await tasks.one(db, leased.lease.task_id)


async def test_only_a_worker_with_a_url_gets_a_push(db: Database, new_task: Make, new_worker: Make) -> None:
    await new_worker("free", max_concurrency=9)
    await new_worker("called", url=URL)
    leased = await push(db, await new_task())
    assert leased.worker.id == "called"
    with pytest.raises(NoWorker, match="free capacity and a url"):
        await push(db, await new_task())


async def test_a_push_lasts_as_long_as_an_attempt_may(db: Database, new_task: Make, new_worker: Make) -> None:
    await new_worker("w1", url=URL, max_concurrency=2)
    task = await new_task(policy=NewPolicy(timeout_sec=40))
    lease = (await push(db, task)).lease
    assert lease.deadline_at == lease.started_at + 70_000
    assert lease.expires_at == lease.deadline_at
    short = (await push(db, await new_task(), ttl_seconds=5)).lease
    assert (short.expires_at, short.deadline_at) == (short.started_at + 5000, short.started_at + 150_000)


async def test_a_lease_without_a_push_has_no_deadline(db: Database, new_task: Make, new_worker: Make) -> None:
    await new_worker("w1", url=URL)
    assert (await leases.lease(db, (await new_task()).id, actor="test")).lease.deadline_at is None


@pytest.mark.parametrize(
    ("wanted", "refusal"),
    [
        ({"worker_id": "silent"}, Invalid),
        ({"worker_id": "nobody"}, NotFound),
        ({"worker_id": "away"}, NoWorker),
        ({}, NoWorker),
    ],
)
async def test_who_cannot_be_pushed_to(
    db: Database, new_task: Make, new_worker: Make, wanted: dict[str, Any], refusal: type[Refusal]
) -> None:
    await new_worker("silent")
    await new_worker("away", url=URL, status="offline")
    task = await new_task()
    with pytest.raises(refusal):
        await push(db, task, **wanted)
    assert (await tasks.one(db, task.id)).status == "queued"


async def test_what_cannot_be_pushed(db: Database, new_task: Make, new_worker: Make) -> None:
    await new_worker("w1", url=URL, max_concurrency=5)
    with pytest.raises(NotFound):
        await pushes.lease(db, Wanted("nothing"), actor="test")
    task = await new_task()
    await push(db, task)
    with pytest.raises(Conflict, match="'leased', expected 'queued'"):
        await push(db, task)
    with pytest.raises(Conflict, match="not before"):
        await push(db, await new_task(not_before=253_402_300_000_000))
    await queue.pause(db, until=None, reason="lunch", actor="test")
    with pytest.raises(NoWorker, match="lunch"):
        await push(db, await new_task())


async def test_what_is_given_back_costs_no_attempt_and_waits_longer_each_time(
    db: Database, new_task: Make, new_worker: Make, sql: Callable[..., Any], epoch: int
) -> None:
    await new_worker("w1", url=URL)
    task = await new_task()
    waits: list[int] = []
    for _ in range(4):
        leased = await push(db, task)
        assert leased.lease.attempt == 1
        back = await failed(db, leased)
        assert (back.status, back.attempts, back.lease_id, back.worker_id) == ("queued", 0, None, None)
        assert back.retry_at
        waits.append(back.retry_at - back.updated_at)
        with pytest.raises(Conflict, match="not before its retry"):
            await push(db, task)
        sql("UPDATE llm_tasks SET retry_at = 1")
    for wait, longest in zip(waits, (4000, 8000, 16_000, 20_000), strict=True):
        assert 0.69 * longest <= wait <= longest
    assert [attempt.outcome for attempt in await tasks.history(db, task.id)] == ["released"] * 4
    assert sql("SELECT reason FROM leases LIMIT 1") == [("connection refused",)]


async def test_a_failed_attempt_starts_the_waits_anew(
    db: Database, new_task: Make, new_worker: Make, sql: Callable[..., Any]
) -> None:
    await new_worker("w1", url=URL)
    task = await new_task()
    for _ in range(3):
        await failed(db, await push(db, task))
        sql("UPDATE llm_tasks SET retry_at = 1")
    lease = (await push(db, task)).lease
    await complete(db, task.id, Completion(status="error", lease_id=lease.id), retry=RETRY, actor="test")
    sql("UPDATE llm_tasks SET retry_at = 1")
    back = await failed(db, await push(db, task))
    assert back.attempts == 1
    assert (back.retry_at or 0) - back.updated_at <= 4000


async def test_what_was_completed_meanwhile_is_not_given_back(db: Database, new_task: Make, new_worker: Make) -> None:
    await new_worker("w1", url=URL)
    leased = await push(db, await new_task())
    said = Completion(status="success", output="Hello", lease_id=leased.lease.id)
    await complete(db, leased.lease.task_id, said, retry=RETRY, actor="w1")
    with pytest.raises(LeaseLost):
        await failed(db, leased)
    done = await completion.of_lease(db, leased.lease)
    assert done
    assert (done.task.status, done.result.output) == ("completed", "Hello")


async def test_what_was_cancelled_meanwhile_is_not_given_back(db: Database, new_task: Make, new_worker: Make) -> None:
    await new_worker("w1", url=URL)
    leased = await push(db, await new_task())
    await tasks.cancel(db, leased.lease.task_id, actor="test")
    with pytest.raises(TaskCancelled):
        await failed(db, leased)
    assert await completion.of_lease(db, leased.lease) is None
    standing = await pushes.standing(db, [leased.lease.id, "nothing"])
    assert [(each.status, each.outcome) for each in standing.values()] == [("released", "cancelled")]


async def test_a_callback_and_a_failure_at_one_moment(db: Database, new_task: Make, new_worker: Make) -> None:
    """One of them decides, and the other changes nothing."""
    await new_worker("w1", url=URL, max_concurrency=32)
    leased = [await push(db, await new_task()) for _ in range(12)]
    won: list[str] = []

    async def give_back(each: Leased) -> None:
        try:
            await failed(db, each)
            won.append(each.lease.id)
        except LeaseLost:
            pass

    async def call_back(each: Leased) -> None:
        said = Completion(status="success", lease_id=each.lease.id)
        try:
            await complete(db, each.lease.task_id, said, retry=RETRY, actor="w1")
            won.append(each.lease.id)
        except LeaseLost:
            pass

    async with trio.open_nursery() as nursery:
        for each in leased:
            nursery.start_soon(give_back, each)
            nursery.start_soon(call_back, each)
    assert sorted(won) == sorted(each.lease.id for each in leased)
    for each in leased:
        task = await tasks.one(db, each.lease.task_id)
        result = await completion.of_lease(db, each.lease)
        assert (task.status, task.attempts) == (("completed", 1) if result else ("queued", 0))


async def test_three_connections_in_a_row_take_a_worker_offline(
    db: Database, new_worker: Make, epoch: int, sql: Callable[..., Any]
) -> None:
    async def status() -> str:
        return (await workers.one(db, "w1")).status

    await new_worker("w1", url=URL)
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    db.on_change = tell
    assert not await pushes.not_reached(db, "w1", actor="bloomd")
    assert not await pushes.not_reached(db, "w1", actor="bloomd")
    await pushes.reached(db, "w1")
    assert not await pushes.not_reached(db, "w1", actor="bloomd")
    assert not await pushes.not_reached(db, "w1", actor="bloomd")
    assert (await status(), told) == ("online", 0)
    assert await pushes.not_reached(db, "w1", actor="bloomd")
    assert not await pushes.not_reached(db, "w1", actor="bloomd")
    assert (await status(), told) == ("offline", 1)
    audit = "SELECT detail FROM audit_logs WHERE action = 'worker.offline' AND entity_id = 'w1' AND actor = 'bloomd'"
    assert sql(audit) == [("3 pushes in a row did not reach it",)]

    await liveness.mirror(db, [Agent("w1", status="online")], epoch, offline_after=60.0)
    assert await status() == "offline"
    await liveness.mirror(db, [Agent("w1", status="online", url=URL + "/moved")], epoch, offline_after=60.0)
    assert await status() == "online"
    outcomes = [await pushes.not_reached(db, "w1", actor="bloomd") for _ in range(3)]
    assert outcomes == [False, False, True]  # the new url has an account of its own
    await liveness.record_polls(db, [PollResult("w1", ok=True)], epoch)
    assert await status() == "online"
    assert not await pushes.not_reached(db, "w1", actor="bloomd")
    await liveness.mirror(db, [Agent("w1", status="online")], epoch, offline_after=60.0)
    assert await status() == "online"


async def test_failures_at_one_moment_are_all_counted(db: Database, new_worker: Make) -> None:
    await new_worker("w1", url=URL)
    offline: list[bool] = []

    async def fail() -> None:
        offline.append(await pushes.not_reached(db, "w1", actor="bloomd"))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(fail)
    assert sorted(offline) == [False] * 7 + [True]


async def test_a_worker_that_is_gone_is_not_counted(db: Database) -> None:
    assert not await pushes.not_reached(db, "nobody", actor="bloomd")


async def test_renewing_vouches_for_nobody(
    db: Database, new_task: Make, new_worker: Make, sql: Callable[..., Any]
) -> None:
    await new_worker("w1", url=URL, max_concurrency=3)
    task = await new_task()
    lease = (await push(db, task, ttl_seconds=5)).lease
    over = (await push(db, await new_task(policy=NewPolicy(timeout_sec=1)), ttl_seconds=600)).lease
    sql("UPDATE leases SET expires_at = expires_at - 3000 WHERE id = %s", lease.id)
    sql("UPDATE workers SET status = 'offline', alive_at = 7, last_heartbeat = 7")
    audited = sql("SELECT count(*) FROM audit_logs")
    await pushes.renew(db, [lease.id, over.id, "nothing"])
    [(expires_at,)] = sql("SELECT expires_at FROM leases WHERE id = %s", lease.id)
    assert lease.expires_at <= expires_at <= lease.expires_at + 60_000
    assert sql("SELECT expires_at FROM leases WHERE id = %s", over.id) == [(over.deadline_at,)]
    assert sql("SELECT status, alive_at, last_heartbeat FROM workers") == [("offline", 7, 7)]
    assert (await tasks.one(db, task.id)).status == "leased"
    assert sql("SELECT count(*) FROM audit_logs") == audited


@pytest.mark.parametrize("end", ["expired", "completed", "cancelled"])
async def test_what_has_ended_is_not_renewed(
    db: Database, new_task: Make, new_worker: Make, sql: Callable[..., Any], end: str
) -> None:
    await new_worker("w1", url=URL)
    task = await new_task()
    lease = (await push(db, task, ttl_seconds=5)).lease
    match end:
        case "expired":
            sql("UPDATE leases SET expires_at = started_at")
        case "completed":
            await complete(db, task.id, Completion(status="success"), retry=RETRY, actor="w1")
        case _:
            await tasks.cancel(db, task.id, actor="test")
    before = sql("SELECT * FROM leases")
    await pushes.renew(db, [lease.id])
    assert sql("SELECT * FROM leases") == before


async def test_a_lease_that_is_renewed_can_still_be_heartbeated(db: Database, new_task: Make, new_worker: Make) -> None:
    await new_worker("w1", url=URL)
    task = await new_task()
    lease = (await push(db, task)).lease
    await pushes.renew(db, [lease.id])
    await heartbeats.heartbeat(db, task.id, Beat(lease_id=lease.id), actor="w1")
    assert (await tasks.one(db, task.id)).status == "running"


async def test_a_failure_that_nobody_answered_is_no_sign_of_life(
    db: Database, new_task: Make, new_worker: Make, sql: Callable[..., Any]
) -> None:
    await new_worker("w1", url=URL, max_concurrency=2)
    mute, refused = await push(db, await new_task()), await push(db, await new_task())
    sql("UPDATE workers SET status = 'offline', alive_at = 7")
    said = Completion(status="error", lease_id=mute.lease.id)
    await complete(db, mute.lease.task_id, said, retry=RETRY, actor="bloomd", sign_of_life=False)
    assert sql("SELECT status, alive_at FROM workers") == [("offline", 7)]
    said = Completion(status="error", lease_id=refused.lease.id)
    await complete(db, refused.lease.task_id, said, retry=RETRY, actor="bloomd")
    assert (await workers.one(db, "w1")).status == "online"


async def test_the_deadline_ends_a_push_that_is_renewed(
    db: Database, new_task: Make, new_worker: Make, shift_clock: Callable[[int], None], epoch: int
) -> None:
    await new_worker("w1", url=URL)
    task = await new_task(policy=NewPolicy(timeout_sec=10))
    lease = (await push(db, task)).lease
    shift_clock(40_001)
    await pushes.renew(db, [lease.id])
    [ended] = await expiry.expire(db, retry=RETRY, epoch=epoch)
    assert (ended.lease_id, ended.outcome) == (lease.id, "deadline")


async def found(db: Database, epoch: int) -> list[str]:
    return await pushes.pushable(db, epoch=epoch)


async def test_what_could_be_pushed_comes_by_urgency(
    db: Database, new_task: Make, new_worker: Make, epoch: int
) -> None:
    await new_worker("w1", url=URL, max_concurrency=3, labels=["gpu"])
    later = await new_task()
    urgent = await new_task(priority=9, labels=["gpu"])
    pinned = await new_task(priority=5, pinned_worker_id="w1")
    assert await found(db, epoch) == [urgent.id, pinned.id, later.id]
    for _ in range(3):
        await new_task(priority=1)
    assert len(await found(db, epoch)) == 5  # of each list what all have room for


@pytest.mark.parametrize(
    "why",
    ["no url", "offline", "cordoned", "draining", "full", "no label", "other pin", "paused", "later", "no leader",
     "no claude"],
)  # fmt: skip
async def test_what_could_not_be_pushed_is_not_found(
    db: Database, new_task: Make, new_worker: Make, epoch: int, sql: Callable[..., Any], why: str
) -> None:
    worker: Worker = await new_worker("w1", url="" if why == "no url" else URL)
    await new_worker("claims", max_concurrency=9, labels=["gpu"])
    await new_task(labels=["gpu"] if why == "no label" else [], pinned_worker_id="x" if why == "other pin" else None)
    match why:
        case "offline":
            sql("UPDATE workers SET status = 'offline' WHERE id = 'w1'")
        case "cordoned":
            await workers.cordon(db, worker.id, actor="test")
        case "draining":
            await workers.drain(db, worker.id, actor="test")
        case "full":
            await push(db, await new_task(priority=9))
        case "paused":
            await queue.pause(db, until=None, reason=None, actor="test")
        case "later":
            sql("UPDATE llm_tasks SET not_before = 253402300000000")
        case "no claude":
            sql("""UPDATE workers SET capabilities = '{"claude_cli": false}' WHERE id = 'w1'""")
        case _:
            pass
    assert await found(db, epoch + (why == "no leader")) == []


async def test_what_nobody_can_take_hides_nothing(db: Database, new_task: Make, new_worker: Make, epoch: int) -> None:
    await new_worker("w1", url=URL)
    for _ in range(pushes.ROUND + 1):
        await new_task(priority=9, labels=["gpu"])
    task = await new_task()
    assert await found(db, epoch) == [task.id]


async def test_pushes_and_claims_never_exceed_the_capacity(
    db: Database, new_task: Make, new_worker: Make, epoch: int, sql: Callable[..., Any]
) -> None:
    await new_worker("w1", url=URL, max_concurrency=5)
    queued = [await new_task() for _ in range(30)]
    got: list[str] = []

    async def push_one(task: Task) -> None:
        if leased := await pushes.attempt(db, Wanted(task.id), actor="test"):
            got.append(leased.lease.task_id)

    async def claim() -> None:
        got.extend(each.task.id for each in await claims.claim(db, claims.Claim("w1", 2), actor="w1"))

    async with trio.open_nursery() as nursery:
        for task in queued:
            nursery.start_soon(push_one, task)
        for _ in range(5):
            nursery.start_soon(claim)
    assert len(got) == len(set(got)) == 5
    assert sql("SELECT active_leases FROM workers") == [(5,)]
