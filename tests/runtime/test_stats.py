"""The counts: exact at every moment, whoever changes the tables, and added up without losing anything."""

import random
from itertools import pairwise

import pytest
import trio

from bloomd.errors import Unavailable
from bloomd.runtime import expiry, leases, stats, tasks
from bloomd.runtime.completion import complete
from bloomd.runtime.model import Completion, NewTask, Retry
from bloomd.runtime.refusals import Refusal
from bloomd.runtime.stats import Counter, add_up

RETRY = Retry(0.001, 0.001)

COUNTED = "SELECT status, count(*) FROM llm_tasks GROUP BY status"


async def counts(db):
    [counted] = await db.rows(stats.Stats, stats.COUNT, least=None)
    return counted


async def test_it_counts_what_is_there(db, sql, new_task, new_worker):
    await new_worker(max_concurrency=3)
    for _ in range(4):
        await new_task()
    first = await new_task()
    await leases.lease(db, first.id, actor="test")
    counted = await counts(db)
    assert counted.by_status == {"queued": 4, "leased": 1}
    assert (counted.leases, counted.active_leases, counted.workers_online, counted.capacity) == (1, 1, 1, 3)
    assert counted.free == 2
    sql("UPDATE workers SET cordoned = true")
    assert (await counts(db)).free == 0
    await complete(db, first.id, Completion("success"), retry=RETRY, actor="test")
    assert (await counts(db)).by_status == {"queued": 4, "completed": 1}
    sql("DELETE FROM llm_tasks WHERE status = 'queued'")
    sql("DELETE FROM leases")
    counted = await counts(db)
    assert (counted.by_status, counted.leases) == ({"completed": 1}, 0)
    sql("TRUNCATE llm_tasks")
    assert (await counts(db)).by_status == {}


async def test_exact_after_a_storm_with_the_leader_adding_up(db, sql, new_worker, epoch, monkeypatch):
    monkeypatch.setattr(stats, "MANY_TALLIES", 0)
    for number in range(4):
        await new_worker(f"w{number}", max_concurrency=4)
    chance = random.Random(5)

    async def work():
        for _ in range(30):
            created = await tasks.create(db, [NewTask(prompt="x")] * chance.randint(1, 3), actor="test")
            for each in created:
                with trio.move_on_after(chance.choice([60, 0.002])):
                    try:
                        await leases.lease(db, each.task.id, actor="test")
                        outcome = chance.choice(["success", "error", None])
                        if outcome:
                            await complete(db, each.task.id, Completion(outcome), retry=RETRY, actor="test")
                    except Refusal:
                        pass

    async def lead():
        while True:
            await add_up(db, epoch=epoch)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as leading:
        leading.start_soon(lead)
        leading.start_soon(lead)
        async with trio.open_nursery() as working:
            for _ in range(6):
                working.start_soon(work)
        leading.cancel_scope.cancel()
    await expiry.expire(db, retry=RETRY, epoch=epoch)
    counted = await counts(db)
    assert counted.by_status == dict(sql(COUNTED))
    assert counted.leases == sql("SELECT count(*) FROM leases")[0][0]
    await add_up(db, epoch=epoch)
    assert sql("SELECT count(*) = count(DISTINCT name) FROM tallies") == [(True,)]
    assert (await counts(db)).by_status == counted.by_status


async def test_only_the_leader_adds_up(db, sql, new_task, epoch, monkeypatch):
    monkeypatch.setattr(stats, "MANY_TALLIES", 0)
    for _ in range(3):
        await new_task()
    await add_up(db, epoch=epoch - 1)
    assert sql("SELECT count(*) FROM tallies") == [(6,)]
    await add_up(db, epoch=epoch)
    assert sql("SELECT name, change FROM tallies ORDER BY name") == [("created", 3), ("task:queued", 3)]


async def test_all_who_ask_share_a_count_that_is_a_second_old_at_the_most(db, nursery, autojump_clock):
    counted = 0

    class Counted:
        away = None

        async def rows(self, struct, query, **parameters):
            nonlocal counted
            counted += 1
            await trio.sleep(0.1)
            return [counted]

    counter = Counter(Counted())
    nursery.start_soon(counter.run)
    seen = []
    for _ in range(40):
        seen.append(await counter.read())
        await trio.sleep(0.1)
    assert counted <= 5
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(seen))
    assert all(seen.count(number) <= 11 for number in seen)


async def test_a_count_that_goes_wrong_is_told_to_who_asked(nursery, autojump_clock):
    class Broken:
        away = None

        async def rows(self, struct, query, **parameters):
            await trio.sleep(0.1)
            raise RuntimeError("no such table")

    counter = Counter(Broken())

    async def count():
        with pytest.raises(RuntimeError):
            await counter.run()

    nursery.start_soon(count)
    with pytest.raises(Unavailable, match="no such table"):
        await counter.read()


async def test_nobody_counts(autojump_clock):
    class Idle:
        away = None

    with pytest.raises(Unavailable, match="nothing has been counted for 10 s"):
        await Counter(Idle()).read()


async def test_what_is_forgotten_while_it_is_counted_is_counted_again(nursery, autojump_clock):
    counted = 0

    class Counted:
        away = None

        async def rows(self, struct, query, **parameters):
            nonlocal counted
            counted += 1
            await trio.sleep(0.1)
            return [counted]

    counter = Counter(Counted())
    nursery.start_soon(counter.run)
    async with trio.open_nursery() as asking:
        asking.start_soon(counter.read)
        await trio.sleep(0.05)
        counter.forget()
    assert await counter.read() == 2
