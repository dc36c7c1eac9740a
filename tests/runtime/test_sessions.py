"""What the database knows of the page's sessions: one secret for all nodes, and those that were ended."""

import time
from contextlib import asynccontextmanager
from functools import partial

import trio
import trio.testing
from held_database import Held

from bloomd.runtime import sessions
from bloomd.runtime.keyring import KeyRing
from bloomd.runtime.sessions import Sessions


def in_an_hour():
    return int(time.time() * 1000) + 3_600_000


async def test_all_nodes_sign_with_one_secret(db):
    nodes = [Sessions(db) for _ in range(8)]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.renew)
    assert len({node.secret for node in nodes}) == 1
    assert len(nodes[0].secret) >= 40


async def test_a_secret_that_was_changed_is_taken_over(db, sql):
    node = Sessions(db)
    assert await node.renew()
    assert not await node.renew()
    sql("UPDATE session_secret SET secret = 'another'")
    assert await node.renew()
    assert node.secret == "another"


async def test_an_ended_session_is_ended_for_all_and_told_once(db, sql):
    here, elsewhere = KeyRing(db), KeyRing(db)
    for node in (here, elsewhere):
        await node.renew()
    changed = here.changed
    for _ in range(2):
        await here.end_session("s1", in_an_hour(), actor="olena")
    assert changed.is_set()
    assert here.sessions.is_ended("s1")
    assert not elsewhere.sessions.is_ended("s1")
    await elsewhere.renew()
    assert elsewhere.sessions.is_ended("s1")
    assert sql("SELECT action, entity_id, actor FROM audit_logs") == [("session.ended", "s1", "olena")]


async def test_what_is_over_anyway_is_forgotten_an_hour_later(db, sql, shift_clock):
    node = Sessions(db)
    await node.end("s1", in_an_hour(), actor="olena")
    shift_clock(2 * 3_600_000 - 60_000)
    await node.renew()
    assert node.is_ended("s1")
    shift_clock(2 * 3_600_000 + 60_000)
    await node.renew()
    assert not node.is_ended("s1")
    await node.end("s2", in_an_hour() + 9 * 3_600_000, actor="olena")
    assert sql("SELECT id FROM ended_sessions") == [("s2",)]


@asynccontextmanager
async def reading(db):
    """A node that reads all anew and has not yet seen the ended ones, for as long as a block lasts; and a nursery."""
    held = Held(db, sessions.ENDED)
    node = KeyRing(held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.renew)
        await held.reading.wait()
        yield node, nursery
        held.go_on.set()


async def test_nothing_is_known_before_the_ended_ones_are(db):
    async with reading(db) as (node, _):
        assert not node.known
        assert node.sessions.is_ended("s1")
    assert node.known
    assert not node.sessions.is_ended("s1")


async def test_what_was_read_before_a_sign_out_does_not_bring_the_session_back(db):
    async with reading(db) as (node, nursery):
        nursery.start_soon(partial(node.end_session, "s1", in_an_hour(), actor="olena"))
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert node.sessions.is_ended("s1")
