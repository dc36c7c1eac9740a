"""The stream of events in every order in which things may happen, on a trail in memory and the mock clock.

A story is made of transactions that begin, write, and end much later or roll back; of a database that answers late,
from the moment at which it was asked; and of readers that come, go, and come again with their last id. Each seed is
another one, and what happens at the same moment happens in another order each time.
"""

import random

import pytest
import trio
from event_trail import Trail
from trio.testing import MockClock

from bloomd.runtime.events import PAUSE_SECONDS, Feed
from bloomd.runtime.recent import position_of
from bloomd.runtime.wakeups import Wakeups


async def tell(seed):
    """One story. At its end everybody has seen all that came after where they began, in order, once."""
    chance = random.Random(seed)
    database = Trail(chance)
    database.latency = lambda: chance.choice([0, 0.001, 0.01, 0.2])
    wakeups = Wakeups(database)
    feed = Feed(database, wakeups, kept_bytes=chance.choice([5_000, 50_000, 8 << 20]))
    over = trio.Event()
    for _ in range(chance.choice([1, 30])):
        database.write(times=chance.choice([1, 5, 60]))

    async def write():
        for _ in range(20):
            xact, entries = database.begin(), []
            for _ in range(chance.choice([0, 1, 1, 3, 40])):
                entries.append(database.draw(xact))
                await trio.sleep(chance.choice([0, 0, 0.001]))
            await trio.sleep(chance.choice([0, 0, 0.01, 0.5]))
            database.commit(xact, [] if chance.random() < 0.1 else entries)
            if chance.random() < 0.8:
                wakeups.change()
            await trio.sleep(chance.choice([0, 0.01, 0.3]))

    async def follow():
        last_id = chance.choice([None, None, database.ids[0], chance.choice(database.ids)])
        beginning, seen = last_id, []
        while not (over.is_set() and seen == rest(beginning)):
            await trio.sleep(chance.choice([0, 0.05, 1]))
            with trio.move_on_after(chance.choice([0.01, 0.3, 30])):
                async with feed.subscribe(last_id) as subscription:
                    beginning = beginning or subscription.last_id
                    last_id = subscription.last_id
                    while events := await subscription.batch():
                        seen.extend(event.id for event in events)
                        last_id = subscription.last_id
                        await trio.sleep(chance.choice([0, 0, 0, 0.01, 0.5]))
                        if over.is_set() and seen == rest(beginning):
                            break
        return seen

    def rest(beginning):
        return [id for id in database.ids if beginning and position_of(id) > position_of(beginning)]

    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            await nursery.start(feed.run)
            async with trio.open_nursery() as readers:
                for _ in range(4):
                    readers.start_soon(follow)
                async with trio.open_nursery() as writers:
                    for _ in range(4):
                        writers.start_soon(write)
                over.set()
            nursery.cancel_scope.cancel()
    assert feed.subscribers == 0


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_nothing_is_missing_and_nothing_comes_twice(first):
    for seed in range(first, first + 10):
        trio.run(tell, seed, clock=MockClock(autojump_threshold=0))


async def test_who_reads_a_page_while_the_latest_move_on_misses_nothing(autojump_clock, nursery):
    """The page is complete when it is read, and no longer when it arrives."""
    database = Trail()
    wakeups = Wakeups(database)
    feed = Feed(database, wakeups, kept_bytes=1000)
    await nursery.start(feed.run)
    for _ in range(3):
        database.write()
    async with feed.subscribe(), feed.subscribe(database.ids[0]) as late:
        seen = []
        database.latency = lambda: 5 if not seen else 0
        nursery.start_soon(take_all, late, seen)
        await trio.sleep(0.1)
        database.latency = lambda: 0
        for _ in range(10):
            database.write()
            wakeups.change()
            await trio.sleep(0.1)
        await trio.sleep(10)
        assert seen == database.ids[1:]


async def take_all(subscription, into):
    while events := await subscription.batch():
        into.extend(event.id for event in events)


async def test_who_comes_while_the_last_one_leaves_is_not_measured_by_its_events(autojump_clock, nursery):
    """What is still being read for those who have gone is no affair of those who have come."""
    database = Trail()
    wakeups = Wakeups(database)
    feed = Feed(database, wakeups, kept_bytes=1000)
    await nursery.start(feed.run)
    async with feed.subscribe() as first, trio.open_nursery() as reading:
        reading.start_soon(take_all, first, [])
        for _ in range(2):
            database.write(times=20)
            wakeups.change()
            await trio.sleep(0.1)
        database.write(times=20)
        database.latency = lambda: 5
        wakeups.change()
        await trio.sleep(1)
        reading.cancel_scope.cancel()
    database.latency = lambda: 0
    async with feed.subscribe() as newcomer:
        await trio.sleep(10)
        assert not newcomer.dropped.is_set()
        database.write()
        assert [event.id for event in await newcomer.batch()] == database.ids[-1:]


async def test_what_was_held_back_comes_soon_after_without_a_wake_up(autojump_clock, nursery):
    """A program that knows nothing of us commits: nobody tells, and yet it is seen long before the next poll."""
    database = Trail()
    wakeups = Wakeups(database)
    feed = Feed(database, wakeups)
    await nursery.start(feed.run)
    async with feed.subscribe() as subscription:
        xact = database.begin()
        entry = database.draw(xact)
        database.write()
        wakeups.change()
        await trio.sleep(0.1)
        database.commit(xact, [entry])
        began = trio.current_time()
        assert len(await subscription.batch()) == 2
        assert trio.current_time() - began < 0.2


@pytest.mark.parametrize("latency", [0.001, 0.3])
async def test_an_event_arrives_as_fast_as_the_database_answers(autojump_clock, nursery, latency):
    database = Trail()
    database.latency = lambda: latency
    wakeups = Wakeups(database)
    feed = Feed(database, wakeups)
    await nursery.start(feed.run)
    async with feed.subscribe() as subscription:
        await trio.sleep(10)
        slowest = 0.0
        for pause in (3.33, 0.5, 0.001, 7):
            await trio.sleep(pause)
            database.write()
            wakeups.change()
            began = trio.current_time()
            await subscription.batch()
            slowest = max(slowest, trio.current_time() - began)
    assert slowest <= 2 * latency + PAUSE_SECONDS + 0.001  # when a look that came too early is under way
