"""Who leads: one at any time, replaced when it is gone, and powerless from then on."""

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from bloomd.errors import Unavailable
from bloomd.membridge.agents import Agent
from bloomd.membridge.polls import PollResult
from bloomd.postgres import Pool
from bloomd.runtime import audit, expiry, leases, liveness, tasks, workers
from bloomd.runtime.database import Database
from bloomd.runtime.leader import Leadership, Timing
from bloomd.runtime.model import Retry
from bloomd.runtime.pages import Page

HOUR = 3_600_000
# Short enough to wait for, long enough for a busy machine.
QUICK = Timing(ttl=2.0, margin=0.6, renew=0.3, campaign=0.1, attempt=1.0)
# Nobody waits for the end of such a leader.
PATIENT = Timing(ttl=3600.0, margin=1.0, renew=0.1, campaign=0.05, attempt=5.0)


class Freezable(Database):
    """A database that hears nothing any more, and neither does who asks it."""

    frozen = False
    deaf = False

    async def rows(self, struct, query, /, **parameters):
        if self.frozen:
            await trio.sleep_forever()
        found = await super().rows(struct, query, **parameters)
        if self.deaf:
            await trio.sleep_forever()
        return found


@asynccontextmanager
async def database_of_its_own(conninfo):
    async with Pool(conninfo, size=2) as pool:
        database = Freezable()
        database.open(pool)
        yield database


class Diary:
    """Work of a leader that notes when it is done, in which epoch."""

    def __init__(self):
        self.entries = []
        self.changed = trio.Event()

    def note(self, what, epoch):
        self.entries.append((what, epoch, trio.current_time()))
        self.changed.set()
        self.changed = trio.Event()

    async def work(self, epoch, *, task_status):
        self.note("begin", epoch)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self.note("end", epoch)

    async def has(self, what, epoch):
        """When it was noted."""
        with trio.fail_after(20):
            while True:
                for entry in self.entries:
                    if entry[:2] == (what, epoch):
                        return entry[2]
                await self.changed.wait()


async def eventually(condition, seconds=20):
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


async def ask_for_ever(node):
    """As its supervisor lets it."""
    while True:
        try:
            await node.run()
        except Unavailable:
            await trio.sleep(0.1)


def leads(leadership):
    return leadership.leader is not None and leadership.leader.here


def row(sql):
    [found] = sql("SELECT node, epoch, since, expires_at, bloom_now_ms() FROM leaders")
    return found


async def actions(db):
    return [(entry.action, entry.entity_id, entry.detail) for entry in reversed(await audit.listing(db, Page()))]


async def test_a_node_alone_leads_and_goes_on_in_the_same_epoch(db, sql, nursery):
    told = []
    db.on_change = lambda: told.append(1)
    node = Leadership(db, "a", timing=QUICK)
    await nursery.start(node.run)
    assert (node.epoch(), leads(node), repr(node)) == (1, True, "<Leadership of a: it leads, epoch 1>")
    first = row(sql)
    await eventually(lambda: row(sql)[3] > first[3])
    assert row(sql)[:3] == first[:3]
    assert 0 < row(sql)[3] - row(sql)[4] <= 2000
    assert await actions(db) == [("leader.elected", "a", "epoch 1")]
    assert len(told) == 1


async def test_the_others_follow_and_name_who_leads(db, nursery):
    one, other = Leadership(db, "a", timing=QUICK), Leadership(db, "b", timing=QUICK)
    with pytest.raises(Unavailable, match="no node is known to lead"):
        other.epoch()
    await nursery.start(one.run)
    await nursery.start(other.run)
    assert (other.leader.node, other.leader.epoch, other.leader.here) == ("a", 1, False)
    with pytest.raises(Unavailable, match="the node a;"):
        other.epoch()


async def test_whoever_follows_writes_nothing(db, sql, nursery):
    await nursery.start(Leadership(db, "a", timing=PATIENT).run)
    before = sql("SELECT xmax FROM leaders")
    other = Leadership(db, "b", timing=PATIENT)
    await nursery.start(other.run)
    assert other.leader.node == "a"
    assert sql("SELECT xmax FROM leaders") == before


async def test_of_many_that_want_it_at_once_one_gets_it(db, sql, nursery):
    """Also the very first row, and each time that a leader leaves."""
    nodes = [Leadership(db, f"n{number}", timing=PATIENT) for number in range(20)]
    scopes = {}

    async def take_part(node):
        with trio.CancelScope() as scopes[node]:
            await node.run()

    for node in nodes:
        nursery.start_soon(take_part, node)
    for epoch in range(1, 11):
        await eventually(lambda: any(map(leads, nodes)))
        [leader] = filter(leads, nodes)
        assert (leader.leader.epoch, row(sql)[1]) == (epoch, epoch)
        scopes[leader].cancel()
        await eventually(lambda leader=leader: not leads(leader))
    elected = [detail for action, _, detail in await actions(db) if action == "leader.elected"]
    assert elected[:10] == [f"epoch {epoch}" for epoch in range(1, 11)]
    assert len(set(elected)) == len(elected)


@pytest.mark.parametrize("how", ["dead", "frozen", "cut off"])
async def test_a_leader_that_is_gone_has_stopped_before_the_next_one_begins(conninfo, db, sql, nursery, how):
    """It stops by itself, whatever hangs; at the time at which it stops the row is still its own."""
    diary = Diary()
    async with database_of_its_own(conninfo) as its:
        gone, next = Leadership(its, "gone", timing=QUICK), Leadership(db, "next", timing=QUICK)
        left = 0

        async def work(epoch, *, task_status):
            nonlocal left
            try:
                await diary.work(epoch, task_status=task_status)
            finally:
                left = row(sql)[3] - row(sql)[4]

        nursery.start_soon(ask_for_ever, gone)
        await eventually(lambda: leads(gone))
        nursery.start_soon(gone.only(work))
        await nursery.start(next.run)
        await nursery.start(next.only(diary.work))
        await diary.has("begin", 1)
        since = trio.current_time()
        if how == "dead":
            its.close("dead")
        elif how == "frozen":
            its.frozen = True
        else:
            its.deaf = True
        ended, began = await diary.has("end", 1), await diary.has("begin", 2)
        assert since < ended < began
        assert left > 0
        assert not leads(gone)
        assert row(sql)[:2] == ("next", 2)
        last_heard = QUICK.ttl - QUICK.margin if how == "cut off" else 0.0
        assert began - since < last_heard + QUICK.ttl + QUICK.campaign + 1
        nursery.cancel_scope.cancel()


async def test_one_that_comes_back_follows(conninfo, db, nursery):
    async with database_of_its_own(conninfo) as its:
        one, other = Leadership(its, "a", timing=QUICK), Leadership(db, "b", timing=QUICK)
        diary = Diary()

        nursery.start_soon(ask_for_ever, one)
        await eventually(lambda: leads(one))
        nursery.start_soon(one.only(diary.work))
        await nursery.start(other.run)
        its.frozen = True
        await eventually(lambda: leads(other))
        its.frozen = False
        await eventually(lambda: one.leader is not None)
        assert (one.leader.node, one.leader.here, leads(other)) == ("b", False, True)
        assert [entry[:2] for entry in diary.entries] == [("begin", 1), ("end", 1)]
        nursery.cancel_scope.cancel()


async def test_one_that_stops_in_order_is_replaced_at_once(db, sql, nursery):
    one, other = Leadership(db, "a", timing=PATIENT), Leadership(db, "b", timing=PATIENT)
    diary = Diary()
    await nursery.start(one.only(diary.work))
    async with trio.open_nursery() as its:
        await its.start(one.run)
        await nursery.start(other.run)
        await diary.has("begin", 1)
        its.cancel_scope.cancel()
    await diary.has("end", 1)
    await eventually(lambda: leads(other), seconds=5)
    assert await actions(db) == [
        ("leader.elected", "a", "epoch 1"),
        ("leader.resigned", "a", "epoch 1"),
        ("leader.elected", "b", "epoch 2"),
    ]
    assert sql("SELECT bloom_leads(1), bloom_leads(2)") == [(False, True)]


async def test_one_that_follows_takes_nothing_along_when_it_stops(db, sql, nursery):
    one = Leadership(db, "a", timing=PATIENT)
    await nursery.start(one.run)
    async with trio.open_nursery() as its:
        await its.start(Leadership(db, "b", timing=PATIENT).run)
        its.cancel_scope.cancel()
    assert sql("SELECT bloom_leads(1)") == [(True,)]


async def test_one_that_does_not_hear_the_answers_holds_nobody_up(conninfo, db, sql, nursery):
    """It wins without knowing it, and asks again and again."""
    async with database_of_its_own(conninfo) as its:
        its.deaf = True
        deaf, other = Leadership(its, "deaf", timing=QUICK), Leadership(db, "other", timing=QUICK)
        nursery.start_soon(ask_for_ever, deaf)
        await eventually(lambda: sql("SELECT bloom_leads(1)") == [(True,)])
        await nursery.start(other.run)
        assert other.leader.node == "deaf"
        await eventually(lambda: leads(other), seconds=QUICK.ttl + 1)
        its.deaf = False
        await eventually(lambda: deaf.leader is not None)
        assert deaf.leader.node == "other"
        nursery.cancel_scope.cancel()


async def test_trust_that_has_ended_does_not_return(conninfo, sql, nursery):
    """What was begun before may still be under way; nobody is told that it may go on."""
    async with database_of_its_own(conninfo) as its:
        node, diary = Leadership(its, "a", timing=QUICK), Diary()
        nursery.start_soon(ask_for_ever, node)
        nursery.start_soon(node.only(diary.work))
        await diary.has("begin", 1)
        its.frozen = True
        await diary.has("end", 1)
        its.frozen = False
        assert row(sql)[3] > row(sql)[4]
        with trio.fail_after(20):
            while not leads(node):
                assert node.leader is None  # certainly not another one of the same name
                await trio.sleep(0.01)
        await diary.has("begin", 2)
        assert [entry[:2] for entry in diary.entries] == [("begin", 1), ("end", 1), ("begin", 2)]
        nursery.cancel_scope.cancel()


async def test_a_row_that_was_won_unknowingly_is_given_back_too(conninfo, db, sql):
    async with database_of_its_own(conninfo) as its:
        its.deaf = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Leadership(its, "a", timing=PATIENT).run)
            await eventually(lambda: sql("SELECT bloom_leads(1)") == [(True,)])
            its.deaf = False
            nursery.cancel_scope.cancel()
        assert sql("SELECT bloom_leads(1)") == [(False,)]


async def test_a_candidate_that_waited_for_the_row_sees_that_it_was_renewed(db, sql):
    """By the time at which it asked, the new end is further away than any can be."""
    now = row_now(sql)
    sql("INSERT INTO leaders VALUES ('leader', 'x', 'a', 3, 0, %s)", now - 1)
    other = Leadership(db, "b", timing=QUICK)
    async with trio.open_nursery() as nursery:
        async with db.transaction() as connection:
            await connection.execute("UPDATE leaders SET expires_at = bloom_now_ms()")
            nursery.start_soon(other.run)
            await eventually(lambda: sql("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
            await trio.sleep(0.05)
            await connection.execute("UPDATE leaders SET expires_at = bloom_now_ms() + 2000")
        await eventually(lambda: other.leader is not None)
        assert (other.leader.node, other.leader.epoch, other.leader.here) == ("a", 3, False)
        nursery.cancel_scope.cancel()


def row_now(sql):
    return sql("SELECT bloom_now_ms()")[0][0]


async def test_the_clock_jumps_forward(db, sql, nursery, shift_clock):
    """The epoch is over at once, and a new one begins at the next campaign of whoever comes first."""
    nodes = [Leadership(db, name, timing=PATIENT) for name in "ab"]
    diary = Diary()
    for node in nodes:
        await nursery.start(node.run)
        nursery.start_soon(node.only(diary.work))
    await diary.has("begin", 1)
    shift_clock(HOUR + 1000)
    await diary.has("begin", 2)
    assert sql("SELECT bloom_leads(1), bloom_leads(2)") == [(False, True)]
    await diary.has("end", 1)
    await eventually(lambda: [node.leader.epoch for node in nodes if node.leader] == [2, 2])
    assert len(list(filter(leads, nodes))) == 1


async def test_the_clock_jumps_back_after_a_leader_has_died(conninfo, db, sql, shift_clock):
    """Its end is an hour away, which no leader's can be."""
    async with database_of_its_own(conninfo) as its, trio.open_nursery() as nursery:
        dead = Leadership(its, "a", timing=QUICK)

        nursery.start_soon(ask_for_ever, dead)
        await eventually(lambda: leads(dead))
        its.close("dead")
        shift_clock(-HOUR)
        other = Leadership(db, "b", timing=QUICK)
        await nursery.start(other.run)
        assert other.epoch() == 2
        assert 0 < row(sql)[3] - row(sql)[4] <= 2000
        nursery.cancel_scope.cancel()


async def test_the_clock_jumps_back_under_a_living_leader(db, sql, nursery, shift_clock):
    one = Leadership(db, "a", timing=QUICK)
    await nursery.start(one.run)
    shift_clock(-HOUR)
    await eventually(lambda: row(sql)[3] - row(sql)[4] <= 2000)
    assert (one.epoch(), row(sql)[1]) == (1, 1)


async def test_an_expired_row_is_a_new_epoch_also_for_who_had_it(db, sql, nursery, shift_clock):
    """What was begun before may still be under way, and nobody knows what it believes."""
    one = Leadership(db, "a", timing=PATIENT)
    await nursery.start(one.run)
    shift_clock(HOUR + 1000)
    await eventually(lambda: row(sql)[1] == 2)
    assert [detail for _, _, detail in await actions(db)] == ["epoch 1", "epoch 2"]


# What only a leader does: a situation in which it would do something, and how that shows.


async def expired_lease(db, sql, new_task, new_worker):
    await new_worker()
    task = await new_task()
    await leases.lease(db, task.id, actor="test")
    sql("UPDATE leases SET expires_at = 1")

    async def done():
        return (await tasks.one(db, task.id)).status == "queued"

    return partial(expiry.expire, db, retry=Retry()), done


async def stranded_task(db, sql, new_task, new_worker):
    task = await new_task()
    sql("UPDATE llm_tasks SET status = 'running', lease_id = 'gone', worker_id = 'w', updated_at = 1")

    async def done():
        return (await tasks.one(db, task.id)).status == "queued"

    return partial(expiry.rescue, db), done


async def waiting_task(db, sql, new_task, new_worker):
    await new_task()
    sql("UPDATE llm_tasks SET ready = false, not_before = 1")

    async def done():
        return sql("SELECT ready FROM llm_tasks") == [(True,)]

    return partial(expiry.promote, db), done


async def silent_worker(db, sql, new_task, new_worker):
    await new_worker("w")
    sql("UPDATE workers SET alive_at = 1")

    async def done():
        return (await workers.one(db, "w")).status == "offline"

    return partial(liveness.mark_silent, db, offline_after=60, mirrored=False), done


async def listed_agent(db, sql, new_task, new_worker):
    async def done():
        return sql("SELECT id FROM workers") == [("w",)]

    async def act(epoch):
        await liveness.mirror(db, [Agent(id="w", status="online")], epoch, offline_after=60)

    return act, done


async def answered_poll(db, sql, new_task, new_worker):
    await new_worker("w", status="offline")

    async def done():
        return (await workers.one(db, "w")).status == "online"

    async def act(epoch):
        await liveness.record_polls(db, [PollResult(id="w", ok=True)], epoch)

    return act, done


@pytest.mark.parametrize(
    "situation", [expired_lease, stranded_task, waiting_task, silent_worker, listed_agent, answered_poll]
)
async def test_an_old_epoch_can_do_nothing(db, sql, new_task, new_worker, situation):
    act, done = await situation(db, sql, new_task, new_worker)
    async with trio.open_nursery() as nursery:
        await nursery.start(Leadership(db, "old", timing=PATIENT).run)
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(Leadership(db, "new", timing=PATIENT).run)
        audited = sql("SELECT count(*) FROM audit_logs")
        for epoch in (1, 3):
            if situation is listed_agent:
                with pytest.raises(Unavailable, match=f"epoch {epoch} is over"):
                    await act(epoch=epoch)
            else:
                await act(epoch=epoch)
            assert not await done()
        assert sql("SELECT count(*) FROM audit_logs") == audited
        await act(epoch=2)
        assert await done()
        nursery.cancel_scope.cancel()


# Time, on a clock of our own and without a database.


class Scripted:
    """Grants the leadership, or not, after some time."""

    def __init__(self):
        self.here = True
        self.epoch = 1
        self.seconds = 0.0
        self.asked = []
        self.doubted = trio.Event()

    def on_change(self):
        pass

    async def rows(self, struct, query, /, **parameters):
        self.asked.append(trio.current_time())
        await trio.sleep(self.seconds)
        return [struct(node="n", epoch=self.epoch, since=0, here=self.here, elected=False)]

    async def change(self, struct, query, /, **parameters):
        return []


@pytest.fixture
def scripted():
    return Scripted()


async def test_trust_ends_by_the_start_of_the_last_attempt_that_was_granted(scripted, autojump_clock, nursery):
    """Granted at 0, 3 and 6 after a second each; nothing is answered any more from then on."""
    scripted.seconds = 1.0
    node, diary = Leadership(scripted, "n"), Diary()
    nursery.start_soon(ask_for_ever, node)
    nursery.start_soon(node.only(diary.work))
    await trio.sleep(7.5)
    assert scripted.asked == [0.0, 3.0, 6.0]
    assert leads(node)
    scripted.seconds = 1000.0
    assert await diary.has("end", 1) == 6.0 + 6.0 - 1.0
    assert not leads(node)
    assert node.leader is None
    assert scripted.doubted.is_set()


async def test_renewals_let_the_work_go_on(scripted, autojump_clock, nursery):
    node, diary = Leadership(scripted, "n"), Diary()
    nursery.start_soon(node.run)
    nursery.start_soon(node.only(diary.work))
    await trio.sleep(59)
    assert [entry[:2] for entry in diary.entries] == [("begin", 1)]
    assert len(scripted.asked) == 30


async def test_one_renewal_that_fails_does_no_harm(scripted, autojump_clock, nursery):
    node, diary = Leadership(scripted, "n"), Diary()
    nursery.start_soon(ask_for_ever, node)
    nursery.start_soon(node.only(diary.work))
    for _ in range(10):
        await trio.sleep(1.9)
        scripted.seconds = 1000.0
        await trio.sleep(1.6)
        scripted.seconds = 0.0
        await trio.sleep(1.0)
    assert [entry[:2] for entry in diary.entries] == [("begin", 1)]


async def test_an_answer_that_was_slept_through_grants_nothing(scripted, autojump_clock, nursery):
    """As for a process that was frozen while the answer waited for it."""
    scripted.seconds = 5.5
    node, diary = Leadership(scripted, "n", timing=Timing(attempt=60.0)), Diary()
    nursery.start_soon(node.run)
    await nursery.start(node.only(diary.work))
    await trio.sleep(5.6)
    assert (node.leader, diary.entries) == (None, [])
    scripted.seconds = 4.0
    assert await diary.has("begin", 1) > 9.5


async def test_who_leads_is_forgotten_when_nobody_says_so_any_more(scripted, autojump_clock, nursery):
    scripted.here = False
    node = Leadership(scripted, "n")
    nursery.start_soon(ask_for_ever, node)
    await trio.sleep(10)
    assert node.leader
    scripted.seconds = 1000.0
    await trio.sleep(4)
    assert node.leader
    await trio.sleep(3)
    assert node.leader is None


class Heard:
    """What the supervisor is to a service: it may hear more than once that it has started."""

    def __init__(self):
        self.at = None

    def started(self, value=None):
        self.at = self.at or trio.current_time()


async def test_a_service_of_the_leader_stands_by_and_has_started(scripted, autojump_clock, nursery):
    scripted.here = False
    node, diary, heard = Leadership(scripted, "n"), Diary(), Heard()
    await trio.sleep(1)
    await nursery.start(node.run)
    nursery.start_soon(partial(node.only(diary.work), task_status=heard))
    await trio.sleep(30)
    assert (heard.at, diary.entries) == (1.0, [])
    scripted.here, scripted.epoch = True, 2
    began = await diary.has("begin", 2)
    scripted.here, scripted.epoch = False, 3
    assert await diary.has("end", 2) == pytest.approx(began + 2.0)
    scripted.here, scripted.epoch = True, 4
    await diary.has("begin", 4)


async def test_another_epoch_ends_the_work_of_the_one_before(scripted, autojump_clock, nursery):
    node, diary = Leadership(scripted, "n"), Diary()
    await nursery.start(node.run)
    nursery.start_soon(node.only(diary.work))
    await diary.has("begin", 1)
    scripted.epoch = 5
    await diary.has("begin", 5)
    assert [entry[:2] for entry in diary.entries] == [("begin", 1), ("end", 1), ("begin", 5)]


async def test_where_it_leads_a_service_has_started_when_its_work_has(scripted, autojump_clock, nursery):
    async def work(epoch, *, task_status):
        await trio.sleep(3)
        task_status.started()
        await trio.sleep_forever()

    node = Leadership(scripted, "n")
    await nursery.start(node.run)
    await nursery.start(node.only(work))
    assert trio.current_time() == 3.0


@pytest.mark.parametrize("error", [Unavailable("away"), ZeroDivisionError("a bug")])
async def test_an_error_of_the_work_is_one_of_the_service(scripted, autojump_clock, nursery, error):
    async def work(epoch, *, task_status):
        raise error

    node = Leadership(scripted, "n")
    await nursery.start(node.run)
    with pytest.raises(type(error)) as caught:
        await node.only(work)()
    assert caught.value is error


async def test_work_that_returns_unasked_ends_the_service(scripted, autojump_clock, nursery):
    async def work(epoch, *, task_status):
        pass

    node = Leadership(scripted, "n")
    await nursery.start(node.run)
    with trio.fail_after(1):
        await node.only(work)()


async def test_what_happens_meanwhile_can_end_a_service_that_stands_by(scripted, autojump_clock, nursery):
    async def meanwhile():
        await trio.sleep(2)
        raise Unavailable("not configured any more")

    scripted.here = False
    node = Leadership(scripted, "n")
    await nursery.start(node.run)
    with pytest.RaisesGroup(pytest.RaisesExc(Unavailable, match="not configured")):
        await node.only(Diary().work, meanwhile=meanwhile)()
