"""Who is woken, by whom and when."""

from functools import partial
from itertools import pairwise

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from bloomd.postgres import listen
from bloomd.runtime import audit, completion, leases, queue, releases, stored, tasks, workers
from bloomd.runtime.model import Completion, Retry
from bloomd.runtime.wakeups import CHANNELS, MESSAGE_BYTES, PAUSE_SECONDS, PAYLOAD_BYTES, Wakeups, chunks

SUCCESS = Completion(status="success")


class Recorded:
    """In the place of a database: what was sent, and when."""

    def __init__(self):
        self.sent = []

    async def execute(self, query, channels, payloads):
        await trio.lowlevel.checkpoint()
        said = [(channel, payload.partition(" ")[2]) for channel, payload in zip(channels, payloads, strict=True)]
        self.sent.append((round(trio.current_time(), 3), said))


@pytest.fixture
def recorded():
    return Recorded()


@pytest.fixture
async def alone(recorded, nursery):
    made = Wakeups(recorded)
    await nursery.start(made.run)
    await trio.sleep(1)
    return made


async def test_the_first_leaves_at_once_the_others_wait_and_leave_as_one(autojump_clock, alone, recorded):
    for _ in range(10):
        alone.change()
    await trio.testing.wait_all_tasks_blocked(0.001)
    assert recorded.sent == [(1.0, [("bloom_changes", "change")])]
    for _ in range(10):
        alone.change()
        alone.offer()
        await trio.sleep(PAUSE_SECONDS / 20)
    await trio.sleep(10)
    assert [said for _, said in recorded.sent[1:]] == [[("bloom_changes", "offer")]]
    assert recorded.sent[1][0] == pytest.approx(1 + PAUSE_SECONDS, abs=0.002)


async def test_however_much_happens_few_are_sent(autojump_clock, alone, recorded):
    for _ in range(1000):
        alone.change()
        await trio.sleep(0.001)
    await trio.sleep(1)
    assert 1 / PAUSE_SECONDS - 1 <= len(recorded.sent) <= 1 / PAUSE_SECONDS + 2


async def test_nothing_is_sent_when_nothing_happens(autojump_clock, alone, recorded):
    await trio.sleep(3600)
    assert recorded.sent == []


async def test_of_messages_with_one_key_only_the_newest_leaves(autojump_clock, alone, recorded):
    alone.tell("a", b'{"n":1}')
    alone.tell("b", b'{"n":2}')
    alone.tell("a", b'{"n":3}')
    await trio.sleep(1)
    assert [said for _, said in recorded.sent] == [[("bloom_live", '[{"n":2},{"n":3}]')]]


async def test_who_waits_here_is_woken_without_the_way_round(recorded):
    here = Wakeups(recorded)
    changes, offers = here.changes, here.offers
    here.change()
    assert (changes.is_set(), offers.is_set()) == (True, False)
    here.offer()
    assert offers.is_set()
    assert not here.changes.is_set()
    assert not here.offers.is_set()


@pytest.mark.parametrize(("said", "offered"), [("change", False), ("offer", True)])
async def test_what_another_node_says_wakes(recorded, said, offered):
    here = Wakeups(recorded)
    changes, offers = here.changes, here.offers
    here.notified("bloom_changes", f"somebody {said}")
    assert (changes.is_set(), offers.is_set()) == (True, offered)


@given(st.lists(st.integers(1, 30)), st.integers(30, 100))
def test_messages_are_packed_in_order_as_few_as_can_be(lengths, limit):
    messages = [b"x" * length for length in lengths]
    packed = [chunk[1:-1].split(b",") for chunk in chunks(messages, limit)]
    assert [message for chunk in packed for message in chunk] == messages
    assert all(len(b",".join(chunk)) <= limit for chunk in packed)
    assert all(len(b",".join([*chunk, following[0]])) > limit for chunk, following in pairwise(packed))


async def node(database, conninfo, nursery):
    """Wake-ups as a daemon has them: sent through the pool, heard by a listening connection."""
    made = Wakeups(database)
    await nursery.start(made.run)
    await nursery.start(partial(listen, conninfo, CHANNELS, made.notified))
    return made


@pytest.fixture
async def two(db, conninfo, nursery):
    return await node(db, conninfo, nursery), await node(db, conninfo, nursery)


async def test_an_offer_on_one_node_wakes_the_other(two):
    one, other = two
    changes, offers = other.changes, other.offers
    one.offer()
    with trio.fail_after(10):
        await offers.wait()
        await changes.wait()


async def test_a_change_is_no_offer(two):
    one, other = two
    changes, offers = other.changes, other.offers
    one.change()
    with trio.fail_after(10):
        await changes.wait()
    assert not offers.is_set()


async def test_what_a_node_says_itself_does_not_wake_it_twice(two):
    one, other = two
    theirs = other.changes
    one.change()
    changes, offers = one.changes, one.offers
    with trio.fail_after(10):
        await theirs.wait()
        other.offer()
        await changes.wait()
    assert offers.is_set()  # so it was the other's that has come first


async def test_messages_arrive_whole_however_many_and_long(two):
    """Every one is as long as it may be, in characters of three bytes; PostgreSQL would refuse a payload of 8000."""
    one, other = two
    heard = []
    other.on_message = heard.append
    fill = "€" * ((MESSAGE_BYTES - 20) // 3)
    sent = [msgspec.json.encode({"n": n, "fill": fill}) for n in range(100, 110)]
    assert MESSAGE_BYTES - 5 <= len(sent[0]) <= MESSAGE_BYTES
    for n, message in enumerate(sent):
        one.tell(str(n), message)
    with trio.fail_after(10):
        while len(heard) < len(sent):
            await trio.sleep(0.01)
    assert [bytes(message) for message in heard] == sent


def test_a_message_of_the_full_length_fits():
    [chunk] = chunks([b"x" * MESSAGE_BYTES], MESSAGE_BYTES)
    assert len(Wakeups(None)._name) + 1 + len(chunk) <= PAYLOAD_BYTES


async def test_what_a_stranger_notifies_harms_nobody(two, sql):
    one, other = two
    heard = []
    other.on_message = heard.append
    for channel in CHANNELS:
        for payload in ("", " ", "x", "x [", "x {}", 'x ["\\ud800"]', "x " + "[" * 5000):
            sql("SELECT pg_notify(%s, %s)", channel, payload)
    one.tell("a", b'{"n":1}')
    with trio.fail_after(10):
        while not heard:
            await trio.sleep(0.01)
    assert [bytes(message) for message in heard] == [b'{"n":1}']


async def leased(db, new_task, new_worker):
    await new_worker(max_concurrency=5)
    task = await new_task()
    return task, (await leases.lease(db, task.id, actor="test")).lease


async def create(db, new_task, new_worker):
    yield True
    await new_task()


async def register(db, new_task, new_worker):
    yield True
    await new_worker()


async def register_an_absent_one(db, new_task, new_worker):
    yield False
    await new_worker(status="offline")


async def lease(db, new_task, new_worker):
    await new_worker()
    task = await new_task()
    yield False
    await leases.lease(db, task.id, actor="test")


async def complete(db, new_task, new_worker):
    task, _ = await leased(db, new_task, new_worker)
    yield True
    await completion.complete(db, task.id, SUCCESS, retry=Retry(), actor="test")


async def release(db, new_task, new_worker):
    _, held = await leased(db, new_task, new_worker)
    yield True
    await releases.release(db, [releases.Release(held.id, reason="test")], actor="test")


async def cancel(db, new_task, new_worker):
    task, _ = await leased(db, new_task, new_worker)
    yield True
    await tasks.cancel(db, task.id, actor="test")


async def remove_worker(db, new_task, new_worker):
    await new_worker()
    yield False
    await workers.remove(db, "w1", actor="test")


async def remove_worker_by_force(db, new_task, new_worker):
    await leased(db, new_task, new_worker)
    yield True
    await workers.remove(db, "w1", force=Retry(), actor="test")


async def cordon(db, new_task, new_worker):
    await new_worker()
    yield False
    await workers.cordon(db, "w1", actor="test")


async def uncordon(db, new_task, new_worker):
    await new_worker()
    await workers.cordon(db, "w1", actor="test")
    yield True
    await workers.uncordon(db, "w1", actor="test")


async def set_a_setting(db, new_task, new_worker):
    yield False
    await stored.write(db, {"membridge_server_url": "http://x"}, actor="test", detail="x")


async def unset_a_setting(db, new_task, new_worker):
    await stored.write(db, {"membridge_server_url": "http://x"}, actor="test", detail="x")
    yield False
    await stored.unset(db, ["membridge_server_url"], actor="test")


async def note_in_the_trail(db, new_task, new_worker):
    yield False
    await audit.add(db, "control.reload", entity_type="daemon", entity_id="bloomd", actor="test")


async def pause(db, new_task, new_worker):
    yield False
    await queue.pause(db, actor="test")


async def resume(db, new_task, new_worker):
    await queue.pause(db, actor="test")
    yield True
    await queue.resume(db, actor="test")


CASES = [
    create, register, register_an_absent_one, lease, complete, release, cancel, remove_worker, remove_worker_by_force,
    cordon, uncordon, set_a_setting, unset_a_setting, note_in_the_trail, pause, resume,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_whoever_changes_something_tells(db, new_task, new_worker, case, sql):
    """Each leaves an entry in the trail, so each is a change; an offer is what may let somebody claim."""
    steps = case(db, new_task, new_worker)
    offers = await anext(steps)
    [(before,)] = sql("SELECT count(*) FROM audit_logs")
    told = []
    db.on_change, db.on_offer = partial(told.append, "change"), partial(told.append, "offer")
    with pytest.raises(StopAsyncIteration):
        await anext(steps)
    assert sql("SELECT count(*) > %s FROM audit_logs", before) == [(True,)]
    assert "change" in told
    assert ("offer" in told) is offers


async def test_what_changes_nothing_tells_nobody(db):
    told = []
    db.on_change, db.on_offer = partial(told.append, "change"), partial(told.append, "offer")
    await stored.note(db, {"last_test": "1"})
    await stored.unset(db, ["admin_key"], actor="test")
    assert told == []
