"""API keys in the database, and in the memory of a node."""

import re

import pytest
import trio
import trio.testing
from held_database import Held

from bloomd.errors import Unavailable
from bloomd.runtime import audit, keys
from bloomd.runtime.database import Database
from bloomd.runtime.keyring import USES_SECONDS, KeyRing
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Conflict, NotFound


def given(made):
    """The secret as a request has it."""
    return made.secret.encode()


@pytest.fixture
async def ring(db):
    ring = KeyRing(db)
    await ring.renew()
    return ring


async def test_a_secret_is_shown_once_and_its_hash_is_all_that_is_kept(db, sql):
    made = await keys.add(db, "ci", actor="alice")
    assert re.fullmatch(r"bloom_[A-Za-z0-9_-]{43}", made.secret)
    assert keys.is_secret(given(made))
    assert made.secret not in repr(made)
    [row] = sql("SELECT name, hash, created_at, created_by, last_used_at FROM api_keys")
    assert row == ("ci", keys.digest(given(made)), made.created_at, "alice", None)
    assert (await keys.add(db, "other", actor="alice")).secret != made.secret
    [[everything]] = sql("SELECT string_agg(row_to_json(audit_logs)::text, '') FROM audit_logs")
    assert made.secret not in everything
    assert keys.digest(given(made)) not in everything


async def test_what_happens_to_a_key_is_audited_with_it(db):
    await keys.add(db, "ci", actor="alice")
    with pytest.raises(Conflict, match="There is a key named ci already"):
        await keys.add(db, "ci", actor="mallory")
    await keys.remove(db, "ci", actor="bob")
    with pytest.raises(NotFound, match="Key not found"):
        await keys.remove(db, "ci", actor="mallory")
    removed, added = await audit.listing(db, Page())
    assert (added.action, added.entity_type, added.entity_id, added.actor) == ("key.added", "key", "ci", "alice")
    assert (removed.action, removed.entity_type, removed.entity_id, removed.actor) == (
        "key.removed",
        "key",
        "ci",
        "bob",
    )


async def test_of_many_who_add_the_same_name_one_succeeds(db, sql):
    outcomes: list[str] = []

    async def add(number: int) -> None:
        try:
            await keys.add(db, "ci", actor=f"a{number}")
            outcomes.append("added")
        except Conflict:
            outcomes.append("conflict")

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(add, number)
    assert sorted(outcomes) == ["added"] + ["conflict"] * 19
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'key.added'") == [(1,)]


@pytest.mark.parametrize("name", ["a", "7", "web-1.example_x", "A" * 64, "bloom_web", "sighup2"])
def test_names_that_a_key_may_have(name):
    assert keys.name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    ["", "a" * 65, "-x", "..", "_x", "a b", "/", "a\n", "ключ", "bloom_" + "x" * 43, *sorted(keys.RESERVED), "SIGHUP"],
)
async def test_names_that_no_key_may_have(db, sql, name):
    with pytest.raises(keys.BadName):
        await keys.add(db, name, actor="alice")
    assert sql("SELECT * FROM api_keys") == []


async def test_the_list_is_in_pages_and_tells_no_hash(db, shift_clock):
    for number in range(5):
        shift_clock(number)
        await keys.add(db, f"k{number}", actor="alice")
    page = Page(limit=2)
    first = await keys.listing(db, page)
    cursor = page.next(first, lambda key: (key.created_at, key.name))
    second = await keys.listing(db, Page.after(cursor, 2))
    assert [key.name for key in [*first, *second]] == ["k4", "k3", "k2", "k1"]
    assert len(await keys.listing(db)) == 5
    assert set(first[0].__struct_fields__) == {"name", "created_at", "created_by", "last_used_at"}


async def test_the_ring_knows_what_it_did_itself_at_once(ring):
    assert ring.known
    assert ring.empty
    made = await ring.add("ci", actor="alice")
    assert (ring.name_of(given(made)), ring.empty) == ("ci", False)
    await ring.remove("ci", actor="alice")
    assert (ring.name_of(given(made)), ring.empty) == (None, True)


async def test_the_ring_knows_what_others_did_once_it_is_renewed(db, ring):
    made = await keys.add(db, "ci", actor="alice")
    assert ring.name_of(given(made)) is None
    await ring.renew()
    assert ring.name_of(given(made)) == "ci"
    await keys.remove(db, "ci", actor="alice")
    assert ring.name_of(given(made)) == "ci"
    await ring.renew()
    assert ring.name_of(given(made)) is None


@pytest.mark.parametrize(
    "sent", [b"", b"bloom_", "ключ".encode(), b"\xff\x00", "hash", "cut", "longer", "upper"], ids=str
)
async def test_nothing_but_the_secret_opens(ring, sent):
    made = await ring.add("ci", actor="alice")
    secret = given(made)
    wrong = {
        "hash": keys.digest(secret).encode(),
        "cut": secret[:-1],
        "longer": secret + b" ",
        "upper": secret.swapcase(),
    }
    assert ring.name_of(wrong.get(sent, sent)) is None
    assert ring.name_of(secret) == "ci"


async def test_a_ring_that_never_read_knows_nothing_and_one_that_did_keeps_it(db, ring):
    made = await ring.add("ci", actor="alice")
    new = KeyRing(Database(away="PostgreSQL is away"))
    with pytest.raises(Unavailable):
        await new.renew()
    assert (new.known, new.empty, new.name_of(given(made))) == (False, False, None)
    db.close("PostgreSQL is away")
    with pytest.raises(Unavailable):
        await ring.renew()
    assert ring.name_of(given(made)) == "ci"


async def test_a_key_made_before_the_ring_has_read_does_not_stand_for_all(db):
    first = await keys.add(db, "first", actor="alice")
    new = KeyRing(db)
    await new.add("second", actor="alice")
    assert not new.known
    await new.renew()
    assert new.name_of(given(first)) == "first"


async def test_what_was_read_before_a_removal_does_not_bring_the_key_back(db):
    held = Held(db, keys.HASHES)
    held.go_on.set()
    ring = KeyRing(held)
    await ring.renew()
    made = await ring.add("ci", actor="alice")
    held.reading, held.go_on = trio.Event(), trio.Event()
    removed = trio.Event()

    async def remove():
        await ring.remove("ci", actor="alice")
        removed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.renew)
        await held.reading.wait()
        nursery.start_soon(remove)
        await trio.testing.wait_all_tasks_blocked(0.2)
        held.go_on.set()
        await removed.wait()
        assert ring.name_of(given(made)) is None
    assert ring.name_of(given(made)) is None


async def test_the_last_use_is_written_by_age_and_never_goes_back(db, sql, shift_clock):
    made = [await keys.add(db, name, actor="alice") for name in ("a", "b", "c")]
    a, b, _ = (keys.digest(given(each)) for each in made)
    shift_clock(100_000)
    await keys.note_uses(db, {a: 7.0, b: 3.5, "0" * 64: 1.0})
    [[now]] = sql("SELECT bloom_now_ms()")
    used = dict(sql("SELECT name, last_used_at FROM api_keys"))
    assert used["c"] is None
    assert 0 <= now - 7000 - used["a"] < 5000
    assert used["b"] - used["a"] == 3500
    await keys.note_uses(db, {a: 60.0})
    assert dict(sql("SELECT name, last_used_at FROM api_keys")) == used
    assert sql("SELECT count(*) FROM audit_logs WHERE action NOT LIKE 'key.added'") == [(0,)]


async def test_nodes_that_write_the_same_uses_do_not_block_each_other(db, sql):
    hashes = [keys.digest(given(await keys.add(db, f"k{number}", actor="alice"))) for number in range(40)]

    async def write(order):
        for _ in range(20):
            await keys.note_uses(db, dict.fromkeys(order, 0.0))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(write, hashes if number % 2 else hashes[::-1])
    [[deadlocks]] = sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert deadlocks == 0


async def test_a_later_key_of_the_same_name_was_not_used(db, ring, sql):
    made = await ring.add("ci", actor="alice")
    async with trio.open_nursery() as nursery:
        await nursery.start(ring.run)
        assert ring.name_of(given(made)) == "ci"
        await ring.remove("ci", actor="alice")
        await ring.add("ci", actor="alice")
        ring.ask_to_stop()
    assert sql("SELECT last_used_at FROM api_keys") == [(None,)]


async def test_the_last_use_is_written_at_the_orderly_stop(ring, sql):
    made = await ring.add("ci", actor="alice")
    async with trio.open_nursery() as nursery:
        await nursery.start(ring.run)
        ring.name_of(given(made))
        ring.ask_to_stop()
    [[used_at, age]] = sql("SELECT last_used_at, bloom_now_ms() - last_used_at FROM api_keys")
    assert used_at >= made.created_at
    assert 0 <= age < 5000


class Written(Database):
    """Remembers what was written when, and answers nothing."""

    def __init__(self, *hashes):
        super().__init__()
        self.hashes = hashes
        self.writes: list[tuple[float, dict[str, int]]] = []
        self.seconds = 0.0

    async def rows(self, struct, query, /, **parameters):
        await trio.lowlevel.checkpoint()
        holders = self.hashes if struct is keys.Holder else ()
        return [struct(hash=hash, name=f"key {number}") for number, hash in enumerate(holders)]

    async def execute(self, query, /, **parameters):
        await trio.lowlevel.checkpoint()
        if self.away == "gone":
            raise Unavailable(self.away)
        await trio.sleep(self.seconds)
        self.writes.append((trio.current_time(), dict(zip(parameters["hashes"], parameters["ages_ms"], strict=True))))


async def test_uses_are_written_together_now_and_then_and_only_when_there_are_any(autojump_clock):
    database = Written(keys.digest(b"one"), keys.digest(b"two"))
    ring = KeyRing(database)
    async with trio.open_nursery() as nursery:
        await nursery.start(ring.run)
        began = trio.current_time()
        await trio.sleep(1)
        for _ in range(1000):
            ring.name_of(b"one")
        await trio.sleep(2)
        ring.name_of(b"two")
        await trio.sleep(5 * USES_SECONDS)
        ring.name_of(b"two")
        ring.name_of(b"three")
        await trio.sleep(USES_SECONDS)
        nursery.cancel_scope.cancel()
    first, second = database.writes
    assert first[0] - began == USES_SECONDS
    assert first[1] == {keys.digest(b"one"): 9000, keys.digest(b"two"): 7000}
    assert list(second[1]) == [keys.digest(b"two")]


async def test_uses_that_could_not_be_written_are_kept(autojump_clock):
    database = Written(keys.digest(b"one"))
    ring = KeyRing(database)
    database.close("gone")
    with pytest.RaisesGroup(Unavailable):
        async with trio.open_nursery() as nursery:
            await nursery.start(ring.run)
            ring.name_of(b"one")
    database.close("back")
    async with trio.open_nursery() as nursery:
        await nursery.start(ring.run)
        ring.ask_to_stop()
    [(_, written)] = database.writes
    assert written == {keys.digest(b"one"): USES_SECONDS * 1000}


async def test_a_use_during_the_writing_of_another_is_written_next(autojump_clock):
    database = Written(keys.digest(b"one"))
    ring = KeyRing(database)
    database.seconds = 3.0
    async with trio.open_nursery() as nursery:
        await nursery.start(ring.run)
        ring.name_of(b"one")
        await trio.sleep(USES_SECONDS + 1)
        ring.name_of(b"one")
        await trio.sleep(3 * USES_SECONDS)
        ring.ask_to_stop()
    assert [list(uses.values()) for _, uses in database.writes] == [[10_000], [12_000]]


async def test_a_stop_without_a_database_is_no_trouble(autojump_clock):
    database = Written(keys.digest(b"one"))
    ring = KeyRing(database)
    database.close("gone")
    async with trio.open_nursery() as nursery:
        await nursery.start(ring.run)
        ring.name_of(b"one")
        ring.ask_to_stop()
    assert database.writes == []
