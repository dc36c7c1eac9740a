"""The stream of events: nothing missing, nothing twice, whoever reads from wherever."""

import random
from functools import partial

import msgspec
import pytest
import trio
import trio.testing
from event_trail import Trail
from structlog.testing import capture_logs

from bloomd.errors import Unavailable
from bloomd.postgres import Connection, Pool, listen
from bloomd.runtime import audit, tasks, trail, workers
from bloomd.runtime.database import Database
from bloomd.runtime.events import RESET, Feed
from bloomd.runtime.model import NewTask
from bloomd.runtime.pages import Page
from bloomd.runtime.recent import BadPosition, position_of
from bloomd.runtime.trail import PAGE, Entries, Patience
from bloomd.runtime.wakeups import CHANNELS, Wakeups

INSERT = """
INSERT INTO audit_logs (id, timestamp, action, entity_type, entity_id, actor, detail)
SELECT gen_random_uuid(), 1, %s, 'test', %s, 'test', '' FROM generate_series(1, %s)
"""

TRAIL = "SELECT xact || '-' || seq FROM audit_logs WHERE xact IS NOT NULL ORDER BY xact, seq"


@pytest.fixture
def make_feed(db, nursery):
    async def make(database=db, **options):
        wakeups = Wakeups(database)
        database.on_change = wakeups.change
        feed = Feed(database, wakeups, **options)
        await nursery.start(feed.run)
        return feed

    return make


@pytest.fixture
async def feed(make_feed):
    return await make_feed()


@pytest.fixture
def write(sql):
    """Write entries in one transaction, as somebody with psql would: nobody is told."""

    def write(entity="e", action="task.test", *, times=1):
        sql(INSERT, action, entity, times)

    return write


@pytest.fixture
def ids(sql):
    """The ids of all there is in the trail, in order."""
    return lambda: [id for (id,) in sql(TRAIL)]


async def take(subscription, count, *, seconds=20):
    """The next so many events."""
    taken = []
    with trio.fail_after(seconds):
        while len(taken) < count:
            taken.append(await anext(subscription))
    return taken


async def read(subscription, into):
    """Take all that comes, until cancelled or dropped."""
    while events := await subscription.batch():
        into.extend(event.id for event in events if event.id)


async def nothing_comes(subscription, *, seconds=0.2):
    with trio.move_on_after(seconds):
        pytest.fail(f"{await subscription.batch()}")


async def test_an_event_is_an_entry_of_the_trail(db, feed, new_task, ids):
    async with feed.subscribe() as subscription:
        task = await new_task()
        [event] = await take(subscription, 1)
    [entry] = await audit.listing(db, Page())
    assert (event.type, event.entity_id, [event.id]) == ("task", task.id, ids())
    assert msgspec.json.decode(event.data) == msgspec.to_builtins(entry)
    assert msgspec.json.decode(event.data)["action"] == "task.created"


@pytest.mark.parametrize(
    ("action", "type"),
    [
        ("task.created", "task"), ("lease.x", "lease"), ("worker.online", "worker"), ("probe.x", "probe"),
        ("queue.paused", "audit"), ("config.updated", "audit"), ("taskforce.x", "audit"), ("odd", "audit"),
    ],
)  # fmt: skip
async def test_the_type_is_the_first_word_of_the_action(feed, write, action, type):
    async with feed.subscribe() as subscription:
        write(action=action)
        [event] = await take(subscription, 1)
    assert event.type == type


async def test_what_was_before_is_not_told(feed, write):
    write("before")
    async with feed.subscribe() as subscription:
        write("after")
        assert [event.entity_id for event in await take(subscription, 1)] == ["after"]


async def test_only_what_is_wanted_is_told_and_the_rest_is_passed_over(feed, write, ids):
    async with feed.subscribe(types=["worker", "task"], entity_id="w1") as subscription:
        write("w1", "queue.paused")
        write("w1", "worker.online")
        write("w2", "worker.online")
        write("w1", "task.created")
        write("w2", "task.created")
        told = await take(subscription, 2)
        assert [event.type for event in told] == ["worker", "task"]
        with trio.fail_after(5):
            while subscription.last_id != ids()[-1]:
                await nothing_comes(subscription, seconds=0.05)


# Order and completeness


async def test_a_transaction_that_commits_late_holds_back_what_came_after_it(db, feed, conninfo, write):
    async with await Connection.connect(conninfo) as late, feed.subscribe() as subscription:
        async with late.transaction():
            await late.execute(INSERT, ["task.test", "early", 1])
            write("later")
            await nothing_comes(subscription)
            assert (await trail.after(db, (0, 0))).held_back
        assert [event.entity_id for event in await take(subscription, 2)] == ["early", "later"]
        assert not (await trail.after(db, (0, 0))).held_back


async def test_a_transaction_that_rolls_back_lets_the_others_through(feed, conninfo, write):
    async with await Connection.connect(conninfo) as late, feed.subscribe() as subscription:
        async with late.transaction(force_rollback=True):
            await late.execute(INSERT, ["task.test", "never", 1])
            write("later")
            await nothing_comes(subscription)
        assert [event.entity_id for event in await take(subscription, 1)] == ["later"]


@pytest.mark.parametrize("seed", range(3))
async def test_all_readers_see_the_whole_trail_in_one_order(db, make_feed, conninfo, write, ids, seed):
    """Writers are cancelled at random, transactions commit late; readers come, go, are slow and come again."""
    chance = random.Random(seed)
    write("first")  # were the very first one rolled back, a reset would be told to who came before it
    feed = await make_feed(kept_bytes=100_000)  # the latest are fewer than what is written while a reader sleeps
    readers = [[] for _ in range(6)]
    beginnings = [None] * len(readers)
    done = trio.Event()

    async def write_many(name):
        for n in range(60):
            with trio.move_on_after(chance.choice([0.0005, 0.002, 10])):
                await audit.add(db, "task.test", entity_type="task", entity_id=f"{name}-{n}", actor="test")
            if n % 10 == 0:
                await tasks.create(db, [NewTask("x")] * chance.randint(1, 30), actor="test")
            await trio.sleep(chance.random() * 0.01)

    async def commit_late():
        async with await Connection.connect(conninfo) as connection:
            for n in range(6):
                async with connection.transaction(force_rollback=n % 3 == 2):
                    await connection.execute(INSERT, ["task.late", f"late-{n}", 3])
                    await trio.sleep(chance.random() * 0.2)

    async def follow(number):
        """Read; go away now and then, and come back with the last id."""
        await trio.sleep(chance.random() * 0.3)
        mine, last_id = readers[number], None
        while not (done.is_set() and mine and mine[-1] == ids()[-1]):
            with trio.move_on_after(chance.random() * 0.3):
                async with feed.subscribe(last_id) as subscription:
                    beginnings[number] = beginnings[number] or subscription.last_id
                    last_id = subscription.last_id
                    while events := await subscription.batch():
                        mine.extend(event.id for event in events)
                        last_id = subscription.last_id
                        if chance.random() < 0.1:
                            await trio.sleep(0.1)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(len(readers)):
                nursery.start_soon(follow, number)
            async with trio.open_nursery() as writers:
                writers.start_soon(commit_late)
                for name in range(8):
                    writers.start_soon(write_many, name)
            done.set()
    everything = ids()
    assert len(everything) > 500
    for beginning, seen in zip(beginnings, readers, strict=True):
        first = next(n for n, id in enumerate(everything) if position_of(id) > position_of(beginning))
        assert seen == everything[first:]


# Resuming


@pytest.fixture
def history(sql, write):
    """More than a page of entries, in transactions of several sizes; with holes where some were rolled back."""
    chance = random.Random(7)
    for n in range(40):
        write(f"e{n}", times=chance.choice([1, 2, 60, 120]))
        if n % 7 == 0:
            sql("SELECT pg_current_xact_id(), nextval('audit_logs_seq')")


@pytest.mark.parametrize("seed", range(10))
async def test_resuming_anywhere_gives_exactly_the_rest(make_feed, history, write, ids, seed):
    """At an entry, between two, or at the very beginning; alone, or with others who follow; while more is written."""
    chance = random.Random(seed)
    feed = await make_feed(kept_bytes=chance.choice([20_000, 8 << 20]))
    before = ids()
    assert len(before) > 2 * PAGE

    async def resume(xact, seq):
        seen = []
        async with feed.subscribe(f"{xact}-{seq}") as subscription, trio.open_nursery() as nursery:
            nursery.start_soon(read, subscription, seen)
            with trio.fail_after(20):
                while not seen or seen[-1] != ids()[-1]:
                    if chance.random() < 0.2:
                        write(times=chance.choice([1, 40]))
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        assert seen == [id for id in ids() if position_of(id) > (xact, seq)]

    async with trio.open_nursery() as nursery:
        if chance.random() < 0.5:
            await nursery.start(hold, feed)
        for _ in range(5):
            xact, seq = position_of(chance.choice(before))
            await resume(xact + chance.choice([0, 0, 0, -1, 1]), seq + chance.choice([0, 0, -1, 1]))
        nursery.cancel_scope.cancel()


async def hold(feed, *, task_status):
    """Follow, so that the latest are kept."""
    async with feed.subscribe() as subscription:
        task_status.started()
        await read(subscription, [])


async def test_who_was_away_for_a_moment_needs_no_database(db, feed, write, nursery):
    await nursery.start(hold, feed)
    async with feed.subscribe() as subscription:
        write("a")
        write("b")
        [first, _] = await take(subscription, 2)
    queries = counted(db)
    async with feed.subscribe(first.id) as subscription:
        assert [event.entity_id for event in await take(subscription, 1)] == ["b"]
    assert queries.count(trail.BEGINNING) == 0


async def test_who_has_seen_more_elsewhere_sees_nothing_twice(db, make_feed, nursery, write, ids):
    """Another node may be ahead of this one, whose reader has not looked yet."""
    here, there = await make_feed(), Feed(db, Wakeups(db))
    await nursery.start(hold, here)
    async with there.subscribe() as subscription, trio.open_nursery() as running:
        await running.start(there.run)
        write("seen")
        there._wakeups.change()
        [seen] = await take(subscription, 1)
        running.cancel_scope.cancel()
    async with here.subscribe(seen.id) as subscription:
        write("new")
        assert [event.entity_id for event in await take(subscription, 1)] == ["new"]
        assert subscription.last_id == ids()[-1]


async def test_an_id_that_is_none_is_refused(feed):
    with pytest.raises(BadPosition):
        async with feed.subscribe("nonsense"):
            pytest.fail("it has no position")
    assert feed.subscribers == 0


@pytest.mark.parametrize("others", [True, False], ids=["with others", "alone"])
async def test_an_id_from_before_a_restore_begins_with_a_reset(feed, write, others, nursery):
    write("old")
    if others:
        await nursery.start(hold, feed)
    async with feed.subscribe(f"{10**12}-5") as subscription:
        [reset] = await take(subscription, 1)
        assert (reset.type, reset.id) == (RESET, subscription.last_id)
        write("new")
        assert [event.entity_id for event in await take(subscription, 1)] == ["new"]
    async with feed.subscribe(reset.id) as subscription:
        assert [event.entity_id for event in await take(subscription, 1)] == ["new"]


async def test_an_id_before_what_was_pruned_begins_with_a_reset(feed, write, sql, ids):
    for entity in "abcd":
        write(entity)
    first, second, *_ = ids()
    sql("DELETE FROM audit_logs WHERE entity_id = 'a'")
    for after, told in ((first, RESET), (second, "task")):
        async with feed.subscribe(after) as subscription:
            write("new")
            assert (await take(subscription, 1))[0].type == told


async def test_a_reset_is_told_whatever_is_wanted(feed):
    async with feed.subscribe(f"{10**12}-5", types=["worker"], entity_id="w") as subscription:
        assert (await take(subscription, 1))[0].type == RESET


async def test_without_history_nothing_is_missing(feed, write):
    """Who came before the first entry, and comes again after it, has missed nothing that cannot be told."""
    async with feed.subscribe() as subscription:
        beginning = subscription.last_id
    for entity in ("a", "b"):
        async with feed.subscribe(beginning) as subscription:
            write(entity)
            assert [event.entity_id for event in await take(subscription, 1)] == ["a"]


async def test_the_first_entry_may_be_of_a_later_transaction(feed, conninfo, write):
    async with await Connection.connect(conninfo) as earlier:
        async with earlier.transaction():
            await earlier.execute("SELECT pg_current_xact_id()")
            write("first")
            await earlier.execute(INSERT, ["task.test", "second", 1])
        async with feed.subscribe("0-0") as subscription:
            assert [event.entity_id for event in await take(subscription, 2)] == ["second", "first"]


async def test_entries_of_a_restored_database_hold_nothing_back(db, feed, sql, write):
    """They bear the numbers of transactions that this server has yet to begin."""
    sql("INSERT INTO audit_logs VALUES ('r', 1, 'task.x', 'task', 'restored', 'x', '', 5, 1000000000000)")
    async with feed.subscribe() as subscription:
        write("new")
        assert [event.entity_id for event in await take(subscription, 1)] == ["new"]
    found = await trail.after(db, (0, 0))
    assert (found.held_back, [entry.entity_id for entry in found.entries]) == (False, ["new"])


async def test_when_the_database_goes_back_everybody_begins_anew():
    """A standby that had not got everything takes the place of its primary."""
    answers = [Entries(horizon=100, held_back=False, entries=[]), Entries(horizon=90, held_back=False, entries=[])]
    database = Scripted(trail.Beginning(horizon=100, newest=(90, 7), kept=True), answers)
    wakeups = Wakeups(database)
    feed = Feed(database, wakeups)
    async with trio.open_nursery() as nursery:
        await nursery.start(feed.run)
        async with feed.subscribe() as one, feed.subscribe() as other:
            with trio.fail_after(5):
                assert await one.batch() == ()
                assert [event async for event in other] == []
            assert one.dropped.is_set()
            assert feed.subscribers == 0
        nursery.cancel_scope.cancel()


async def test_ids_of_transactions_that_are_used_again_after_a_crash(autojump_clock, nursery):
    """What was never flushed is unknown to the server that comes up again, the numbers of its transactions included."""
    database = Trail()
    database.write()
    wakeups = Wakeups(database)
    feed = Feed(database, wakeups)
    await nursery.start(feed.run)
    async with feed.subscribe() as early:
        for _ in range(3):
            database.begin()
        database.running.clear()  # as one that sends a notification ends, without an entry
        await trio.sleep(10)
        async with feed.subscribe() as late:
            database.crash(lost=3)
            database.write()
            for subscription in (early, late):
                assert [event.id for event in await take(subscription, 1)] == [database.ids[-1]]


async def test_with_another_database_everybody_begins_anew(feed, write):
    async with feed.subscribe() as one, feed.subscribe() as other:
        feed.begin_anew()
        for subscription in (one, other):
            assert await subscription.batch() == ()
            assert subscription.dropped.is_set()
    async with feed.subscribe() as subscription:
        write("new")
        assert [event.entity_id for event in await take(subscription, 1)] == ["new"]


class Scripted:
    """In the place of a database: gives these answers."""

    def __init__(self, beginning, answers):
        self.beginning = beginning
        self.answers = answers
        self.away = None

    async def rows(self, struct, query, **parameters):
        await trio.lowlevel.checkpoint()
        return [self.beginning if query == trail.BEGINNING else self.answers.pop(0)]


# Many readers, and slow ones


def counted(database):
    """The statements that are run from now on."""
    queries, original = [], database.rows

    async def rows(struct, query, /, **parameters):
        queries.append(query)
        return await original(struct, query, **parameters)

    database.rows = rows
    return queries


async def test_hundreds_of_readers_cost_one_query(db, feed, write, ids):
    seen = [[] for _ in range(300)]
    queries = counted(db)

    async def follow(into, *, task_status):
        async with feed.subscribe() as subscription:
            task_status.started()
            await read(subscription, into)

    async with trio.open_nursery() as nursery:
        for into in seen:
            await nursery.start(follow, into)
        assert queries.count(trail.BEGINNING) == 1
        await trio.sleep(0.1)
        queries.clear()
        write(times=50)
        db.on_change()
        with trio.fail_after(10):
            while any(len(into) < 50 for into in seen):
                await trio.sleep(0.001)
        assert len(queries) <= 3
        assert all(into == ids() for into in seen)
        nursery.cancel_scope.cancel()
    assert feed.subscribers == 0


async def test_those_who_catch_up_leave_the_pool_to_the_work(conninfo, history, ids, nursery):
    """A hundred come back at once, as after a restart; what they ask takes two connections, and the work has one."""
    async with Pool(conninfo, size=4, acquire_timeout=1) as pool:
        database = Database()
        database.open(pool)
        feed = Feed(database, Wakeups(database))
        await nursery.start(feed.run)
        first, waited = ids()[0], []

        async def follow():
            async with feed.subscribe(first) as subscription:
                assert len(await take(subscription, len(ids()) - 1)) == len(ids()) - 1

        async def work():
            while True:
                began = trio.current_time()
                await workers.listing(database, Page())
                waited.append(trio.current_time() - began)
                await trio.sleep(0.01)

        async with trio.open_nursery() as following:
            following.start_soon(work)
            async with trio.open_nursery() as readers:
                for _ in range(100):
                    readers.start_soon(follow)
            following.cancel_scope.cancel()
        assert len(waited) > 3
        assert max(waited) < 0.5


async def test_a_slow_reader_is_dropped_and_the_others_are_not(make_feed, write, ids):
    feed = await make_feed(kept_bytes=300_000)
    seen = []
    async with feed.subscribe() as slow, feed.subscribe() as quick, trio.open_nursery() as nursery:
        nursery.start_soon(read, quick, seen)
        with capture_logs() as logs, trio.fail_after(20):
            while not slow.dropped.is_set():
                write(times=100)
                feed._wakeups.change()
                await trio.sleep(0.001)
        assert await slow.batch() == ()
        assert logs == [
            {"event": "readers of events dropped", "readers": 1, "reason": "they were too slow", "log_level": "warning"}
        ]
        assert (feed.dropped, feed.subscribers) == (1, 1)
        with trio.fail_after(20):
            while len(seen) < len(ids()):
                await trio.sleep(0.01)
        assert seen == ids()
        assert not quick.dropped.is_set()
        nursery.cancel_scope.cancel()


async def test_the_dropped_may_come_again_with_their_last_id(make_feed, write, ids):
    feed = await make_feed(kept_bytes=100_000)
    async with feed.subscribe() as slow:
        write("first")
        [first] = await take(slow, 1)
        with trio.fail_after(20):
            while not slow.dropped.is_set():
                write(times=100)
                feed._wakeups.change()
                await trio.sleep(0.001)
        last_id = slow.last_id
    assert last_id == first.id
    async with feed.subscribe(last_id) as again:
        rest = ids()[1:]
        assert [event.id for event in await take(again, len(rest))] == rest


async def test_without_readers_nothing_is_asked(autojump_clock, nursery):
    nothing = Entries(horizon=100, held_back=False, entries=[])
    database = Scripted(trail.Beginning(horizon=100, newest=(90, 7), kept=True), [nothing] * 100)
    wakeups = Wakeups(database)
    feed = Feed(database, wakeups)
    await nursery.start(feed.run)
    async with feed.subscribe():
        await trio.sleep(10)
    looks = 100 - len(database.answers)
    assert 8 <= looks <= 12
    for _ in range(5):
        wakeups.change()
        await trio.sleep(10)
    assert 100 - len(database.answers) == looks


# The database away


async def test_an_outage_costs_nobody_an_event(db, conninfo, write, ids):
    wakeups = Wakeups(db)
    feed = Feed(db, wakeups)
    async with feed.subscribe() as subscription:
        db.close("PostgreSQL is away")
        with pytest.raises(Unavailable, match="PostgreSQL is away"):
            await feed.run()
        for after in (None, subscription.last_id, "1-1"):
            with pytest.raises(Unavailable):
                async with feed.subscribe(after):
                    pytest.fail("there is nothing to read from")
        write("meanwhile")
        async with Pool(conninfo, size=2) as pool, trio.open_nursery() as nursery:
            db.open(pool)
            await nursery.start(feed.run)
            assert [event.entity_id for event in await take(subscription, 1)] == ["meanwhile"]
            nursery.cancel_scope.cancel()


# Told, and in no trail


async def test_live_events_are_told_between_the_others_and_have_no_id(feed, write):
    feed.live("probe", {"name": "minio", "state": "up"})  # nobody is there
    async with feed.subscribe() as subscription, feed.subscribe(types=["task"]) as other:
        beginning = subscription.last_id
        feed.live("probe", {"name": "minio", "state": "down"})
        [event] = await take(subscription, 1)
        assert (event.id, event.type, event.entity_id) == (None, "probe", "minio")
        assert msgspec.json.decode(event.data) == {"name": "minio", "state": "down"}
        assert subscription.last_id == beginning
        await nothing_comes(other)


@pytest.fixture
async def elsewhere(db, conninfo, nursery):
    """The feed of another node, and how it hears."""
    wakeups = Wakeups(db)
    feed = Feed(db, wakeups)
    await nursery.start(feed.run)
    await nursery.start(partial(listen, conninfo, CHANNELS, wakeups.notified))
    return feed


def progress(task, percent, **more):
    return {"action": "task.progress", "entity_type": "task", "entity_id": task, "progress": percent, **more}


async def test_progress_reaches_other_nodes_the_newest_of_each_task(feed, elsewhere, nursery):
    async with elsewhere.subscribe(entity_id="t1") as subscription, elsewhere.subscribe() as all:
        for percent in range(100):
            feed.live("task", progress("t1", percent))
            feed.live("task", progress("t2", percent))
        await nursery.start(feed._wakeups.run)
        [event] = await take(subscription, 1)
        assert (event.id, event.type) == (None, "task")
        assert msgspec.json.decode(event.data) == progress("t1", 99)
        assert [event.entity_id for event in await take(all, 2)] == ["t1", "t2"]
        await nothing_comes(all)


async def test_progress_too_large_for_a_notification_is_left_out(feed, elsewhere, nursery):
    await nursery.start(feed._wakeups.run)
    async with feed.subscribe() as here, elsewhere.subscribe() as there:
        feed.live("task", progress("t1", "x" * 10_000, timestamp=5))
        for subscription in (here, there):
            [event] = await take(subscription, 1)
            assert msgspec.json.decode(event.data) == progress("t1", None, timestamp=5)


async def test_probes_of_a_node_are_its_own(feed, elsewhere, nursery):
    await nursery.start(feed._wakeups.run)
    async with elsewhere.subscribe() as there:
        feed.live("probe", {"name": "minio", "state": "down"})
        feed.live("task", progress("t1", 1))
        assert [event.type for event in await take(there, 1)] == ["task"]


@pytest.mark.parametrize("said", ['[{"entity_id":\n"t1",\n"progress":1}]', "[1]", "[null]", '["x"]', "[{}]"])
async def test_what_strangers_send_breaks_no_line(feed, sql, elsewhere, said):
    """Data has no line break, which would end it in the stream; what is no object is ignored."""
    async with elsewhere.subscribe() as there:
        sql("SELECT pg_notify('bloom_live', %s)", f"stranger {said}")
        sql("SELECT pg_notify('bloom_live', %s)", 'stranger [{"entity_id":"end"}]')
        told = [await anext(there)]
        while told[-1].entity_id != "end":
            told.append(await anext(there))
    assert all(b"\n" not in bytes(event.data) for event in told)
    assert len(told) == (2 if "{" in said else 1)


# How long to wait for the next look


def found(*entries, held_back):
    return Entries(horizon=10, held_back=held_back, entries=list(entries))


async def test_patience_grows_while_entries_are_held_back_and_none_come(autojump_clock):
    patience = Patience()
    waits = [patience.after(found(held_back=True)) for _ in range(12)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.01, 1.0)
    entry = trail.Entry("i", 1, "a", "t", "e", "x", None, xact=1, seq=1)
    assert patience.after(found(entry, held_back=True)) == 0.005
    assert patience.after(found(held_back=False)) == 1.0


async def test_entries_held_back_for_long_are_told_once_with_how_to_find_the_cause(autojump_clock):
    patience = Patience()
    with capture_logs() as logs:
        for _ in range(30):
            patience.after(found(held_back=True))
            await trio.sleep(1)
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "pg_stat_activity" in logs[0]["event"]
