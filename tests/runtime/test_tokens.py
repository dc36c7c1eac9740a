"""Workers' tokens and the enrolments that become one, in the database and in the memory of a node."""

import re

import psycopg
import pytest
import trio

from bloomd.redaction import without_named_keys
from bloomd.runtime import keys, tokens
from bloomd.runtime.database import Database
from bloomd.runtime.keyring import KeyRing
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Conflict, NotFound
from bloomd.runtime.tokens import CODE_MS, BadCode, BadWorker

NO_NAMES = ["", "x" * 129, "a/b", "a\nb", "a\x7f"]


def given(made):
    """The secret as a request has it."""
    return made.secret.encode()


@pytest.fixture
async def ring(db):
    ring = KeyRing(db)
    await ring.renew()
    return ring


@pytest.fixture
def told(sql):
    """The trail, the oldest first."""
    return lambda: sql("SELECT action, entity_type, entity_id, actor FROM audit_logs ORDER BY seq")


async def test_a_token_is_shown_once_and_its_hash_is_all_that_is_kept(db, sql):
    made = await tokens.add(db, "w 1'$(x)", actor="alice")
    assert re.fullmatch(r"bloomw_[A-Za-z0-9_-]{43}", made.secret)
    assert tokens.is_token(given(made))
    assert made.secret not in repr(made)
    [row] = sql("SELECT id, worker_id, hash, created_at, created_by, last_used_at FROM worker_tokens")
    assert row == (made.id, "w 1'$(x)", keys.digest(given(made)), made.created_at, "alice", None)
    [[everything]] = sql("SELECT string_agg(row_to_json(audit_logs)::text, '') FROM audit_logs")
    assert made.id in everything
    assert made.secret not in everything
    assert keys.digest(given(made)) not in everything


async def test_an_enrolment_is_shown_once_and_its_hash_is_all_that_is_kept(db, sql):
    made = await tokens.enrol(db, "w1", actor="alice")
    assert re.fullmatch(r"bloome_[A-Za-z0-9_-]{43}", made.code)
    assert made.code not in repr(made)
    [(hash, worker, created_at, created_by, expires_at)] = sql("SELECT * FROM enrolments")
    assert (hash, worker, created_by) == (keys.digest(made.code.encode()), "w1", "alice")
    assert made.expires_at == expires_at == created_at + CODE_MS
    [[everything]] = sql("SELECT string_agg(row_to_json(audit_logs)::text, '') FROM audit_logs")
    assert made.code not in everything
    assert hash not in everything


async def test_what_happens_to_a_token_is_audited_with_it(db, told):
    made = await tokens.add(db, "w1", actor="alice")
    with pytest.raises(NotFound, match="Token not found"):
        await tokens.remove(db, "w2", made.id, actor="mallory")
    await tokens.remove(db, "w1", made.id, actor="bob")
    with pytest.raises(NotFound, match="Token not found"):
        await tokens.remove(db, "w1", made.id, actor="mallory")
    code = (await tokens.enrol(db, "w2", actor="carol")).code
    await tokens.exchange(db, code)
    assert told() == [
        ("worker.token_added", "worker", "w1", "alice"),
        ("worker.token_removed", "worker", "w1", "bob"),
        ("worker.enrolment_made", "worker", "w2", "carol"),
        ("worker.enrolled", "worker", "w2", "worker:w2"),
    ]


@pytest.mark.parametrize("name", NO_NAMES)
async def test_names_that_no_worker_may_have(db, sql, name):
    for make in (tokens.add, tokens.enrol):
        with pytest.raises(BadWorker, match="No worker can have this name"):
            await make(db, name, actor="alice")
    assert sql("SELECT hash FROM worker_tokens UNION SELECT hash FROM enrolments") == []


async def test_of_twenty_who_exchange_a_code_at_once_one_gets_a_token(db, sql):
    code = (await tokens.enrol(db, "w1", actor="alice")).code
    made, refused = [], []

    async def exchange() -> None:
        try:
            made.append(await tokens.exchange(db, code))
        except BadCode as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(exchange)
    assert (len(made), len(refused)) == (1, 19)
    assert sql("SELECT worker_id, hash, created_by FROM worker_tokens") == [
        ("w1", keys.digest(given(made[0])), "alice")
    ]
    assert sql("SELECT * FROM enrolments") == []
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'worker.enrolled'") == [(1,)]


async def test_a_code_is_for_an_hour_and_not_spent_by_a_look(db, shift_clock):
    code = (await tokens.enrol(db, "w1", actor="alice")).code
    shift_clock(CODE_MS - 60_000)
    assert (await tokens.of_code(db, code)).worker == "w1"
    assert (await tokens.of_code(db, code)).worker == "w1"
    shift_clock(CODE_MS + 1)
    for use in (tokens.of_code, tokens.exchange):
        with pytest.raises(BadCode, match="it counts once, for an hour"):
            await use(db, code)


@pytest.mark.parametrize("code", ["", "x", "bloome_" + "x" * 43, "bloomw_" + "x" * 43, "\udcff", "bloome_" + "ї" * 43])
async def test_what_is_no_code_is_refused(db, code):
    for use in (tokens.of_code, tokens.exchange):
        with pytest.raises(BadCode):
            await use(db, code)


async def test_enrolments_that_are_over_go_when_another_is_made(db, sql, shift_clock):
    for number in range(3):
        await tokens.enrol(db, f"w{number}", actor="alice")
    shift_clock(CODE_MS // 2)
    await tokens.enrol(db, "later", actor="alice")
    assert sql("SELECT count(*) FROM enrolments") == [(4,)]
    shift_clock(CODE_MS + 1000)
    await tokens.enrol(db, "last", actor="alice")
    assert sql("SELECT worker_id FROM enrolments ORDER BY expires_at") == [("later",), ("last",)]


async def test_the_list_is_one_workers_and_in_pages(db, new_worker, shift_clock):
    for number in range(3):
        shift_clock(number)
        await tokens.add(db, "w1", actor=f"a{number}")
    await tokens.add(db, "w2", actor="other")
    page = Page(limit=2)
    first = await tokens.listing(db, "w1", page)
    cursor = page.next(first, lambda token: (token.created_at, token.id))
    second = await tokens.listing(db, "w1", Page.after(cursor, 2))
    assert [each.created_by for each in [*first, *second]] == ["a2", "a1", "a0"]
    assert set(first[0].__struct_fields__) == {"id", "worker_id", "created_at", "created_by", "last_used_at"}
    await new_worker("w3")
    assert await tokens.listing(db, "w3") == []
    with pytest.raises(NotFound, match="Worker not found"):
        await tokens.listing(db, "w4")


async def test_the_ring_knows_what_it_did_itself_at_once(ring):
    made = await ring.add_token("w1", actor="alice")
    assert (ring.worker_of(given(made)), ring.name_of(given(made))) == ("w1", None)
    exchanged = await ring.exchange((await tokens.enrol(ring._database, "w2", actor="alice")).code)
    assert ring.worker_of(given(exchanged)) == "w2"
    changed = ring.changed
    await ring.remove_token("w1", made.id, actor="alice")
    assert changed.is_set()
    assert (ring.worker_of(given(made)), ring.worker_of(given(exchanged))) == (None, "w2")


async def test_the_ring_knows_what_others_did_once_it_is_renewed(db, ring):
    made = await tokens.add(db, "w1", actor="alice")
    assert ring.worker_of(given(made)) is None
    changed = ring.changed
    await ring.renew()
    assert changed.is_set()
    assert ring.worker_of(given(made)) == "w1"
    changed = ring.changed
    await ring.renew()
    assert not changed.is_set()
    await tokens.remove(db, "w1", made.id, actor="alice")
    await ring.renew()
    assert (changed.is_set(), ring.worker_of(given(made))) == (True, None)


async def test_a_change_on_another_node_is_told_to_all(db, sql, conninfo):
    """By the channel on which the settings are told, too."""
    with psycopg.connect(conninfo, autocommit=True) as listener:
        listener.execute("LISTEN bloom_settings")
        made = await tokens.add(db, "w1", actor="alice")
        await tokens.remove(db, "w1", made.id, actor="alice")
        await tokens.exchange(db, (await tokens.enrol(db, "w1", actor="alice")).code)
        assert len(list(listener.notifies(timeout=5, stop_after=3))) == 3


async def test_where_there_is_a_token_it_is_not_so_that_there_is_nothing(ring):
    """Or the loss of the last key would open the doors to everybody."""
    assert ring.empty
    with pytest.raises(Conflict, match="make a key first"):
        ring.refuse_without_key(None)
    ring.refuse_without_key("configured")
    key = await ring.add("ci", actor="alice")
    ring.refuse_without_key(None)
    made = await ring.add_token("w1", actor="alice")
    await ring.remove(key.name, actor="alice")
    assert not ring.empty
    await ring.remove_token("w1", made.id, actor="alice")
    assert ring.empty


async def test_a_ring_that_never_read_knows_nothing(ring):
    made = await ring.add_token("w1", actor="alice")
    new = KeyRing(Database(away="PostgreSQL is away"))
    assert (new.known, new.empty, new.worker_of(given(made))) == (False, False, None)


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: s + b" ", bytes.swapcase, lambda s: b"", bytes.upper])
async def test_nothing_but_the_token_opens(ring, change):
    secret = given(await ring.add_token("w1", actor="alice"))
    assert ring.worker_of(change(secret)) is None
    assert ring.worker_of(keys.digest(secret).encode()) is None
    assert ring.worker_of(secret) == "w1"


async def test_a_key_is_no_token_and_a_code_is_neither(db, ring):
    key = await ring.add("ci", actor="alice")
    code = (await tokens.enrol(db, "w1", actor="alice")).code.encode()
    assert ring.worker_of(given(key)) is None
    assert (ring.worker_of(code), ring.name_of(code)) == (None, None)


async def test_the_last_use_is_written(ring, sql):
    first, second = [await ring.add_token("w1", actor="alice") for _ in range(2)]
    async with trio.open_nursery() as nursery:
        await nursery.start(ring.run)
        ring.worker_of(given(first))
        ring.ask_to_stop()
    used = dict(sql("SELECT id, last_used_at FROM worker_tokens"))
    assert used[first.id] >= first.created_at
    assert used[second.id] is None


async def test_no_key_is_called_like_a_worker_or_a_secret():
    for name in ("worker:w1", "worker:", "bloomw_" + "x" * 43, "bloome_" + "x" * 43):
        assert keys.name_problem(name)


def test_no_log_has_a_token_or_a_code():
    for prefix in (tokens.TOKEN_PREFIX, tokens.CODE_PREFIX, keys.PREFIX):
        assert without_named_keys(f"path=/{prefix}{'x' * 43}/y") == "path=/****/y"
