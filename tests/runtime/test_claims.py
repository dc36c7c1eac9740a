"""Claims: a worker gets what is for it, in order, as much as it has room for; and waits when there is nothing."""

import random

import pytest
import trio

from bloomd.runtime import claims, completion, leases, queue, releases, tasks, workers
from bloomd.runtime.claims import Claim, claim
from bloomd.runtime.heartbeats import Beat, heartbeat, heartbeat_many
from bloomd.runtime.model import Completion, Retry
from bloomd.runtime.refusals import LeaseLost, NotFound, NoWorker, Refusal, TaskCancelled
from bloomd.runtime.releases import Release
from bloomd.runtime.waiting_room import WaitingRoom
from bloomd.runtime.wakeups import Wakeups

RETRY = Retry(0.001, 0.001)


async def take(db, worker="w1", max=100, **fields):
    """The prompts of what a worker gets."""
    return [each.task.prompt for each in await claim(db, Claim(worker, max, **fields), actor="test")]


async def test_by_priority_then_by_age(db, new_task, new_worker):
    await new_worker(max_concurrency=10)
    for prompt, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 9), ("e", 5)):
        await new_task(prompt, priority=priority)
    assert await take(db, max=3) == ["d", "b", "e"]
    assert await take(db) == ["a", "c"]
    assert await take(db) == []


async def test_no_more_than_it_has_room_for(db, new_task, new_worker, sql):
    await new_worker(max_concurrency=3)
    for number in range(5):
        await new_task(str(number))
    assert await take(db, max=2) == ["0", "1"]
    assert await take(db, max=2) == ["2"]
    assert await take(db, max=2) == []
    assert sql("SELECT active_leases FROM workers") == [(3,)]


async def test_what_a_claim_hands_over(db, new_task, new_worker):
    await new_worker()
    created = await new_task("work", context_id="c")
    [got] = await claim(db, Claim("w1"), actor="test")
    assert (got.task.id, got.task.status, got.task.lease_id) == (created.id, "leased", got.lease.id)
    assert (got.lease.worker_id, got.lease.status, got.lease.attempt, got.lease.context_id) == ("w1", "active", 1, "c")
    assert got.lease.ttl_seconds == 300
    assert got.lease.deadline_at == got.lease.started_at + (120 + claims.GRACE_SECONDS) * 1000
    assert await tasks.one(db, created.id) == got.task


async def test_its_own_ttl(db, new_task, new_worker):
    await new_worker()
    await new_task()
    [got] = await claim(db, Claim("w1", ttl_seconds=30), actor="test")
    assert got.lease.expires_at == got.lease.started_at + 30_000


async def test_labels_pins_and_time(db, new_task, new_worker, sql):
    await new_worker("w1", max_concurrency=10, labels=["gpu", "eu"])
    await new_worker("w2", max_concurrency=10)
    await new_task("plain")
    await new_task("gpu", labels=["gpu"])
    await new_task("both", labels=["eu", "gpu"])
    await new_task("us", labels=["us"], priority=9)
    await new_task("pinned", pinned_worker_id="w2")
    await new_task("pinned gpu", pinned_worker_id="w2", labels=["gpu"])
    await new_task("later", not_before=4102444800000, priority=9)
    assert await take(db, "w2") == ["plain", "pinned"]
    assert await take(db, "w1") == ["gpu", "both"]
    assert await take(db, "w1") == []
    assert await take(db, "w1", labels=["us"]) == ["us"]
    assert await take(db, "w2", labels=["gpu"]) == ["pinned gpu"]


async def test_a_claim_does_not_read_past_what_is_for_others(db, new_worker, sql):
    """With 20,000 tasks before it that are for another kind of worker, another worker, or another time."""
    await new_worker()
    sql(
        "INSERT INTO llm_tasks (id, prompt, status, priority, labels, pinned_worker_id, not_before, ready) "
        "SELECT 'other-' || n, 'x', 'queued', 9, CASE mod(n, 3) WHEN 0 THEN '[\"gpu\"]'::jsonb ELSE '[]' END, "
        "CASE mod(n, 3) WHEN 1 THEN 'w2' END, CASE mod(n, 3) WHEN 2 THEN 4102444800000 END, mod(n, 3) <> 2 "
        "FROM generate_series(1, 20000) AS n"
    )
    sql("ANALYZE llm_tasks")
    sql("INSERT INTO llm_tasks (id, prompt, status) VALUES ('mine', 'mine', 'queued')")
    asked = {"worker_id": "w1", "max": 5, "labels": None, "ttl_seconds": None, "grace": 30, "actor": "test"}
    async with db.transaction() as connection:
        cursor = await connection.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + claims.CLAIM, asked)
        [[[plan]]] = await cursor.fetchall()
    assert plan["Plan"]["Actual Rows"] == 1
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 500


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE workers SET cordoned = true",
        "UPDATE workers SET draining = true",
        """UPDATE workers SET capabilities = capabilities || '{"claude_cli": false}'""",
        "UPDATE workers SET status = 'offline'",
        "UPDATE queue_state SET paused = true",
    ],
)
async def test_who_is_held_back_gets_nothing(db, new_task, new_worker, sql, change):
    await new_worker()
    await new_task()
    sql(change)
    assert await take(db) == []
    sql("UPDATE queue_state SET paused = true, until = 1")  # over
    sql("""UPDATE workers SET cordoned = false, draining = false, status = 'online',
           capabilities = '{"claude_cli": true}'""")
    assert await take(db) == ["Say hello"]


async def test_nobody_gets_what_another_has(db, new_worker, sql):
    """30 workers claim 200 tasks in batches at once: each task goes to one of them, and all tasks go."""
    for number in range(30):
        await new_worker(f"w{number}", max_concurrency=8)
    await tasks.create(db, [tasks.NewTask(prompt=str(n), labels=[[], ["a"]][n % 2]) for n in range(200)], actor="test")
    sql("""UPDATE workers SET capabilities = capabilities || '{"labels": ["a"]}'""")
    taken = []

    async def worker(name):
        chance = random.Random(name)
        while got := await take(db, name, max=chance.randint(1, 4)):
            taken.extend(got)

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(worker, f"w{number}")
    assert sorted(taken, key=int) == [str(n) for n in range(200)]
    assert sql("SELECT max(active_leases) <= 8, sum(active_leases) FROM workers") == [(True, 200)]


async def test_claims_of_one_worker_at_once_keep_its_capacity(db, new_task, new_worker, sql):
    await new_worker(max_concurrency=3)
    for number in range(20):
        await new_task(str(number))
    got = []

    async def ask():
        got.extend(await take(db, max=2))

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(ask)
    assert len(got) == 3
    assert sql("SELECT active_leases FROM workers") == [(3,)]


class TestContexts:
    """A worker that keeps sessions takes the tasks of one context one at a time; others do not care."""

    @pytest.fixture
    async def serial(self, db, new_worker, sql):
        for name in ("s1", "s2"):
            await new_worker(name, max_concurrency=8)
        sql("""UPDATE workers SET capabilities = capabilities || '{"sessions": true}'""")

    async def test_one_of_a_context_at_a_time(self, db, new_task, serial):
        for prompt, context in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("free", ""), ("free too", "")):
            await new_task(prompt, context_id=context)
        assert await take(db, "s1") == ["a1", "b1", "free", "free too"]
        assert await take(db, "s2") == []

    async def test_the_next_one_when_the_first_has_ended(self, db, new_task, serial):
        await new_task("a1", context_id="a")
        await new_task("a2", context_id="a")
        [first] = await claim(db, Claim("s1", 8), actor="test")
        await completion.complete(db, first.task.id, Completion(status="success"), retry=RETRY, actor="test")
        assert await take(db, "s1") == ["a2"]

    async def test_also_at_once(self, db, serial, sql):
        await tasks.create(db, [tasks.NewTask(prompt=str(n), context_id=f"c{n % 5}") for n in range(60)], actor="test")

        async def ask(name):
            for _ in range(5):
                await take(db, name, max=3)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(ask, f"s{number % 2 + 1}")
        assert sql("SELECT 1 FROM leases WHERE status = 'active' GROUP BY context_id HAVING count(*) > 1") == []
        assert sql("SELECT count(*) FROM leases WHERE status = 'active'") == [(5,)]

    async def test_others_take_them_as_they_come(self, db, new_task, new_worker, serial):
        await new_worker("w1", max_concurrency=8)
        for prompt in ("a1", "a2", "a3"):
            await new_task(prompt, context_id="a")
        third = await new_task("a4", context_id="a")
        assert await take(db, "w1", max=2) == ["a1", "a2"]
        assert await take(db, "s1") == []
        assert (await leases.lease(db, third.id, worker_id="s1", actor="test")).lease.worker_id == "s1"


class TestManyAtOnce:
    @pytest.fixture
    async def held(self, db, new_task, new_worker):
        await new_worker(max_concurrency=8)
        for number in range(4):
            await new_task(str(number))
        return await claim(db, Claim("w1", 4), actor="test")

    async def test_heartbeats(self, db, held, sql):
        sql("UPDATE leases SET expires_at = expires_at - 100000")
        beats = [Beat(each.lease.id, progress=50) for each in held]
        await tasks.cancel(db, held[1].task.id, actor="test")
        answers = await heartbeat_many(db, [*beats, Beat("nope"), Beat(held[0].lease.id, worker_id="w9")], actor="test")
        assert [isinstance(answer, Refusal) for answer in answers] == [False, True, False, False, True, True]
        assert isinstance(answers[1], TaskCancelled)
        assert isinstance(answers[4], NotFound)
        assert answers[0].expires_at > held[0].lease.expires_at - 1000
        task = await tasks.one(db, held[0].task.id)
        assert (task.status, task.progress) == ("running", 50)
        assert sql("SELECT count(*) FROM audit_logs WHERE action = 'task.running'") == [(3,)]

    async def test_completions(self, db, held, sql):
        said = [
            Completion("success", output="fine", lease_id=held[0].lease.id),
            Completion("error", error_message="no", lease_id=held[1].lease.id),
            Completion("error", error_message="never", lease_id=held[2].lease.id, retryable=False),
            Completion("success", lease_id="nope"),
            Completion("error", lease_id=held[0].lease.id),
        ]
        answers = await completion.complete_many(db, said, retry=RETRY, actor="test")
        assert [getattr(answer, "task_status", None) for answer in answers] == [
            "completed", "queued", "failed", None, "completed",
        ]  # fmt: skip
        assert answers[4].result_id == answers[0].result_id
        assert isinstance(answers[3], NotFound)
        assert sql("SELECT count(*), count(DISTINCT lease_id) FROM llm_results") == [(3, 3)]
        assert sql("SELECT active_leases FROM workers") == [(1,)]
        again = await completion.complete_many(db, said[:3], retry=RETRY, actor="test")
        assert again == answers[:3]

    async def test_releases_cost_no_attempt(self, db, held, sql):
        await heartbeat(db, held[0].task.id, Beat(progress="half"), actor="test")
        back = [Release(held[0].lease.id, "shutting down"), Release(held[1].lease.id, retry_after_seconds=60)]
        first = await releases.release(db, [*back, Release("nope")], actor="test")
        assert [isinstance(answer, Refusal) for answer in first] == [False, False, True]
        task = await tasks.one(db, held[0].task.id)
        assert (task.status, task.attempts, task.worker_id, task.progress) == ("queued", 0, None, None)
        assert await take(db, max=8) == ["0"]
        [attempt, released] = await tasks.history(db, task.id)
        assert (attempt.attempt, attempt.outcome) == (1, None)
        assert (released.attempt, released.outcome, released.error) == (1, "released", "shutting down")
        assert [lease.id for lease in (await releases.release(db, back, actor="test"))] == [r.lease_id for r in back]
        assert (await tasks.one(db, task.id)).status == "leased"

    async def test_a_lost_lease_gives_nothing_back(self, db, held, sql):
        sql("UPDATE leases SET expires_at = 1")
        [answer] = await releases.release(db, [Release(held[0].lease.id)], actor="test")
        assert isinstance(answer, LeaseLost)
        assert (await tasks.one(db, held[0].task.id)).status == "leased"


class TestDeadline:
    async def test_heartbeats_do_not_move_it(self, db, new_task, new_worker, shift_clock, epoch):
        await new_worker()
        task = await new_task()
        [got] = await claim(db, Claim("w1"), actor="test")
        shift_clock(100_000)
        await heartbeat(db, task.id, Beat(got.lease.id), actor="test")
        shift_clock(149_000)
        await heartbeat(db, task.id, Beat(got.lease.id), actor="test")
        shift_clock(151_000)
        with pytest.raises(LeaseLost):
            await heartbeat(db, task.id, Beat(got.lease.id), actor="test")
        with pytest.raises(LeaseLost):
            said = Completion("success", lease_id=got.lease.id)
            await completion.complete(db, task.id, said, retry=RETRY, actor="test")
        from bloomd.runtime import expiry

        [lost] = await expiry.expire(db, retry=RETRY, epoch=epoch)
        assert (lost.outcome, lost.task_status) == ("deadline", "queued")
        [attempt] = await tasks.history(db, task.id)
        assert (attempt.outcome, attempt.error) == ("deadline", "the attempt took longer than it may")

    async def test_a_single_lease_has_none(self, db, new_task, new_worker, shift_clock, epoch):
        """A client of the single-task routes may go on for as long as it heartbeats."""
        await new_worker()
        task = await new_task()
        leased = await leases.lease(db, task.id, actor="test")
        for minutes in range(4, 60, 4):
            shift_clock(minutes * 60_000)
            await heartbeat(db, task.id, Beat(leased.lease.id), actor="test")
        done = await completion.complete(db, task.id, Completion("success"), retry=RETRY, actor="test")
        assert done.task.status == "completed"


class TestWaiting:
    @pytest.fixture
    async def room(self, db, nursery):
        wakeups = Wakeups(db)
        db.on_change, db.on_offer = wakeups.change, wakeups.offer
        room = WaitingRoom(db, wakeups, refresh_seconds=lambda: 20)
        await nursery.start(room.run)
        return room

    async def test_it_gets_a_task_as_soon_as_there_is_one(self, db, room, new_task, new_worker, nursery):
        await new_worker()
        got = []

        async def ask():
            got.extend(await room.claim(Claim("w1"), wait_seconds=30, actor="test"))

        began = trio.current_time()
        async with trio.open_nursery() as waiting:
            waiting.start_soon(ask)
            while not len(room):
                await trio.sleep(0.001)
            await new_task("at last")
        assert [each.task.prompt for each in got] == ["at last"]
        assert trio.current_time() - began < 0.9  # by the offer, not by the poll

    async def test_nothing_in_time(self, room, new_worker):
        await new_worker()
        assert await room.claim(Claim("w1"), wait_seconds=0.05, actor="test") == []
        assert await room.claim(Claim("w1"), wait_seconds=0, actor="test") == []
        assert len(room) == 0

    async def test_an_unknown_worker(self, room):
        with pytest.raises(NotFound):
            await room.claim(Claim("nobody"), wait_seconds=30, actor="test")

    async def test_a_task_that_nobody_announced(self, room, new_worker, sql):
        """As a hand in psql leaves it: found by the poll."""
        await new_worker()
        got = []

        async def ask():
            got.extend(await room.claim(Claim("w1"), wait_seconds=30, actor="test"))

        async with trio.open_nursery() as waiting:
            waiting.start_soon(ask)
            while not len(room):
                await trio.sleep(0.001)
            sql("INSERT INTO llm_tasks (id, prompt, status) VALUES ('t', 'found', 'queued')")
        assert [each.task.prompt for each in got] == ["found"]

    async def test_it_counts_as_a_sign_of_life(self, room, new_worker, sql):
        await new_worker()
        sql("UPDATE workers SET status = 'offline', alive_at = 1")
        await room.claim(Claim("w1"), wait_seconds=0, actor="test")
        assert sql("SELECT status FROM workers") == [("online",)]

    async def test_closing_sends_all_away(self, room, new_worker):
        await new_worker()
        answers = []

        async def ask():
            answers.append(await room.claim(Claim("w1"), wait_seconds=60, actor="test"))

        with trio.fail_after(5):
            async with trio.open_nursery() as waiting:
                for _ in range(5):
                    waiting.start_soon(ask)
                while len(room) < 5:
                    await trio.sleep(0.001)
                room.close()
        assert answers == [[]] * 5

    async def test_hundreds_wait_and_each_task_goes_to_one_that_can_take_it(self, db, room, new_task, new_worker, sql):
        for number in range(200):
            await new_worker(f"w{number}", labels=["gpu"] if number % 50 == 0 else [])
        got = {}

        async def ask(name):
            for each in await room.claim(Claim(name), wait_seconds=30, actor="test"):
                got[each.task.prompt] = name

        async with trio.open_nursery() as waiting:
            for number in range(200):
                waiting.start_soon(ask, f"w{number}")
            while len(room) < 200:
                await trio.sleep(0.01)
            for number in range(4):
                await new_task(f"gpu {number}", labels=["gpu"])
            for number in range(10):
                await new_task(str(number))
            with trio.fail_after(20):
                while len(got) < 14:
                    await trio.sleep(0.01)
            waiting.cancel_scope.cancel()
        assert {name for prompt, name in got.items() if prompt.startswith("gpu")} == {"w0", "w50", "w100", "w150"}
        assert sql("SELECT count(*) FROM leases") == [(14,)]

    async def test_nobody_stands_before_a_task_that_another_could_take(self, db, room, new_task, new_worker, sql):
        """Eight that wait for a context's turn, and one task that it is not the turn of, are no reason to wait."""
        for number in range(8):
            await new_worker(f"s{number}", max_concurrency=2)
        sql("""UPDATE workers SET capabilities = capabilities || '{"sessions": true}'""")
        await new_worker("plain")
        await new_task("first of c", context_id="c")
        assert await take(db, "s0") == ["first of c"]
        got = {}

        async def ask(name):
            for each in await room.claim(Claim(name), wait_seconds=30, actor="test"):
                got[each.task.prompt] = name

        async with trio.open_nursery() as waiting:
            for number in range(8):
                waiting.start_soon(ask, f"s{number}")
            while len(room) < 8:
                await trio.sleep(0.01)
            waiting.start_soon(ask, "plain")
            while len(room) < 9:
                await trio.sleep(0.01)
            await new_task("second of c", context_id="c")
            with trio.fail_after(5):
                while not got:
                    await trio.sleep(0.01)
            waiting.cancel_scope.cancel()
        assert got == {"second of c": "plain"}

    async def test_who_comes_after_closing_does_not_wait(self, room, new_worker):
        await new_worker()
        room.close()
        with trio.fail_after(5):
            assert await room.claim(Claim("w1"), wait_seconds=60, actor="test") == []

    async def test_who_goes_away_keeps_nothing(self, db, room, new_worker, sql):
        """Cancelled at any moment: what was leased for it is given back, and costs no attempt."""
        await new_worker("w1", max_concurrency=32)
        chance = random.Random(3)

        async def impatient():
            with trio.move_on_after(chance.random() * 0.02):
                await room.claim(Claim("w1", 2), wait_seconds=30, actor="test")
                return True
            return False

        kept = 0
        for number in range(60):
            await tasks.create(db, [tasks.NewTask(prompt=str(number))], actor="test")
            kept += await impatient()
        held = sql("SELECT count(*) FROM leases WHERE status = 'active'")[0][0]
        asked = sql("SELECT count(DISTINCT id) FROM llm_tasks WHERE status = 'leased'")[0][0]
        assert held == asked
        assert sql("SELECT count(*) FROM llm_tasks WHERE status = 'queued' AND attempts <> 0") == [(0,)]
        assert held <= 2 * kept


async def test_no_claim_is_empty_because_others_looked_at_the_same_moment(db, new_worker, sql):
    """Eight claims of two for sixteen tasks of two kinds: each locks two of each kind for a moment."""
    for number in range(8):
        await new_worker(f"w{number}", max_concurrency=32, labels=["a"])
    sizes = []

    async def ask(name):
        sizes.append(len(await take(db, name, max=2)))

    for _ in range(10):
        asked = [tasks.NewTask(prompt=str(n), labels=[[], ["a"]][n % 2]) for n in range(16)]
        await tasks.create(db, asked, actor="test")

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(ask, f"w{number}")
        sql("UPDATE leases SET status = 'released'")
        sql("UPDATE llm_tasks SET status = 'cancelled'")
    assert sizes.count(0) <= 10, sizes  # of 240; with one try it would be some twenty


async def test_sessions_that_claim_the_same_contexts_never_deadlock(db, new_worker, sql):
    for number in range(6):
        await new_worker(f"s{number}", max_concurrency=32)
    sql("""UPDATE workers SET capabilities = capabilities || '{"sessions": true}'""")
    chance = random.Random(1)
    for _ in range(5):
        contexts = [f"c{number}" for number in range(12)] * 2
        chance.shuffle(contexts)
        await tasks.create(
            db, [tasks.NewTask(prompt="x", context_id=c, priority=chance.randint(0, 9)) for c in contexts], actor="test"
        )
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(take, db, f"s{number}")
        assert sql("SELECT 1 FROM leases WHERE status = 'active' GROUP BY context_id HAVING count(*) > 1") == []
        sql("UPDATE leases SET status = 'released'")
        sql("UPDATE llm_tasks SET status = 'cancelled'")
    assert sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


async def test_a_lease_left_behind_stands_in_nobodys_way(db, new_task, new_worker, sql):
    """As a hand in psql leaves it: queued, and leased all the same."""
    await new_worker("w1", max_concurrency=4)
    left = await new_task("left", priority=9)
    await leases.lease(db, left.id, actor="test")
    sql("UPDATE llm_tasks SET status = 'queued', lease_id = NULL")
    await new_task("good")
    assert await take(db, max=1) == ["good"]
    with pytest.raises(NoWorker):
        await leases.lease(db, left.id, actor="test")
    sql("UPDATE leases SET status = 'expired' WHERE task_id <> (SELECT id FROM llm_tasks WHERE prompt = 'good')")
    assert await take(db, max=1) == ["left"]


async def test_creates_of_the_same_keys_in_other_orders_never_deadlock(db, sql):
    keys = [f"k{number}" for number in range(200)]
    answers = []

    async def create(keys):
        created = await tasks.create(db, [tasks.NewTask(prompt=k, idempotency_key=k) for k in keys], actor="test")
        answers.append({each.task.idempotency_key: each.task.id for each in created})

    async with trio.open_nursery() as nursery:
        for order in (keys, keys[::-1], random.Random(2).sample(keys, len(keys)), keys[100:] + keys[:100]):
            nursery.start_soon(create, order)
    assert all(answer == answers[0] for answer in answers)
    assert sql("SELECT count(*) FROM llm_tasks") == [(200,)]
    assert sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


async def test_pausing_and_holding_back_are_audited_once(db, new_worker, sql):
    await new_worker()
    for _ in range(2):
        await queue.pause(db, until=4102444800000, reason="quota", actor="ann")
        await workers.drain(db, "w1", actor="ann")
    assert (await queue.read(db)).paused
    await queue.resume(db, actor="ann")
    await workers.uncordon(db, "w1", actor="ann")
    assert sql("SELECT action, actor, detail FROM audit_logs WHERE actor = 'ann' ORDER BY seq") == [
        ("queue.paused", "ann", "until 2100-01-01T00:00:00Z: quota"),
        ("worker.draining", "ann", "it holds 0 leases"),
        ("queue.resumed", "ann", ""),
        ("worker.uncordoned", "ann", "it holds 0 leases"),
    ]


async def test_who_names_another_worker_gets_no_answer_of_a_completion_among_many(db, new_task, new_worker):
    await new_worker()
    await new_task()
    [got] = await claim(db, Claim("w1"), actor="test")
    said = [Completion(status="success", lease_id=got.lease.id, worker_id=name) for name in (None, "w2", "w1")]
    first, other, again = await completion.complete_many(db, said, retry=RETRY, actor="test")
    assert first == again
    assert isinstance(other, LeaseLost)
