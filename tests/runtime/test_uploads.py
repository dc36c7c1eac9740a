"""Uploads: what is kept, under which lease, how it is read, what a completion makes of it, and what is collected."""

import hashlib
import os
import random

import psycopg
import pytest
import trio

from bloomd.errors import Unavailable
from bloomd.objects.contents import Contents
from bloomd.runtime import artifacts, completion, expiry, leases, releases, tasks, uploads
from bloomd.runtime.model import Completion, Retry
from bloomd.runtime.pages import Page
from bloomd.runtime.refusals import Conflict, LeaseLost, NotFound, Refusal, TaskCancelled
from bloomd.runtime.releases import Release
from bloomd.runtime.retention import Keep, Retention
from bloomd.runtime.uploads import NewArtifact
from bloomd.settings.model import Minio

NOWHERE = Contents(Minio)

RETRY = Retry(first_seconds=0.001, max_seconds=0.001)
DAY = 86_400_000


def body(*coming):
    """Reads these pieces; one that is a coroutine function is awaited on the way, an exception raised."""
    left = list(coming)

    async def read():
        while left:
            piece = left.pop(0)
            if isinstance(piece, BaseException):
                raise piece
            if callable(piece):
                await piece()
            elif piece:
                return piece
        return b""

    return read


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(uploads, "PIECE_BYTES", 10)


@pytest.fixture
def lease(db, new_task, new_worker):
    """A fresh lease of a fresh task."""

    async def lease(**fields):
        await new_worker(max_concurrency=30)
        task = await new_task(**fields)
        return (await leases.lease(db, task.id, actor="test")).lease

    return lease


@pytest.fixture
def put(db):
    async def put(lease_id, *coming, name="a.txt", **said):
        new = NewArtifact(lease_id=lease_id, name=name, **said)
        return await uploads.upload(db, new, body(*coming), actor="test")

    return put


async def whole(db, id):
    content = await artifacts.content(db, NOWHERE, id)
    read = b""
    while len(read) < content.size:
        read += await content.piece_at(len(read))
    assert hashlib.sha256(read).hexdigest() == content.sha256
    return read


async def collect_all(db, epoch):
    return (await Retention(db, Keep).prune(epoch)).uploads


async def complete(db, lease, **said):
    done = Completion(status="success", lease_id=lease.id, **said)
    return await completion.complete(db, lease.task_id, done, retry=RETRY, actor="test")


def left_over(sql):
    """How many artifacts, pieces and open uploads there are."""
    return [sql(f"SELECT count(*) FROM {table}")[0][0] for table in ("runtime_artifacts", "artifact_pieces", "uploads")]


async def test_a_short_text_stands_in_the_artifact(db, sql, lease, put):
    held = await lease()
    done = await put(held.id, "її ".encode(), b"ok", name="log", type="LOG", tags=["a", "b"], content_type="text/x-log")
    artifact = done.artifact
    assert done.new
    assert (artifact.task_id, artifact.lease_id, artifact.name) == (held.task_id, held.id, "log")
    assert (artifact.type, artifact.tags, artifact.content_type) == ("LOG", ["a", "b"], "text/x-log")
    assert (artifact.content, artifact.size) == ("її ok", 7)
    assert artifact == await artifacts.one(db, artifact.id)
    assert await whole(db, artifact.id) == "її ok".encode()
    assert (await artifacts.content(db, NOWHERE, artifact.id)).content_type == "text/x-log"
    assert sql("SELECT entity_type, actor, detail FROM audit_logs WHERE action = 'artifact.uploaded'") == [
        ("artifact", "test", f"log, 7 bytes, from worker w1, task {held.task_id}, lease {held.id}")
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"x" * 10,
        b"x" * 11,
        b"\xff",
        b"a\x00b",
        b"\xd1",
        bytes(range(250, 256)) + bytes(4),
        bytes(range(35)),
        b"y" * 40,
    ],
)
async def test_what_was_uploaded_is_what_is_read(db, sql, lease, put, small_pieces, content):
    """However it is cut on its way, and from wherever it is read."""
    cuts = sorted(random.choices(range(len(content) + 1), k=3))
    coming = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    artifact = (await put((await lease()).id, *coming)).artifact
    assert (artifact.size, artifact.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert await whole(db, artifact.id) == content
    read = await artifacts.content(db, NOWHERE, artifact.id)
    for at in range(len(content)):
        piece = await read.piece_at(at)
        assert content[at:].startswith(piece)
        assert piece
    is_text = len(content) <= 10 and content.isascii() and b"\x00" not in content
    assert (artifact.content is not None) is is_text
    longest = sql("SELECT max(length(data)) FROM artifact_pieces")[0][0]
    assert longest is None if is_text else longest <= 10


async def test_a_list_shows_only_what_is_short(db, lease, put):
    held = await lease()
    short = "s" * artifacts.LISTED_BYTES
    for name, text in (("short", short), ("long", short + "l")):
        await put(held.id, text.encode(), name=name)
    listed = {each.name: each for each in await artifacts.listing(db, Page())}
    assert (listed["short"].content, listed["long"].content) == (short, None)
    assert listed["long"].size == len(short) + 1
    assert (await artifacts.one(db, listed["long"].id)).content == short + "l"


@pytest.mark.parametrize("content", [b"the same", b"\xff" * 25])
async def test_the_same_again_gives_the_first(db, sql, lease, put, small_pieces, content):
    held = await lease()
    first = await put(held.id, content, tags=["first"])
    before = left_over(sql)
    again = await put(held.id, content, tags=["second"], type="OTHER")
    assert (again.new, again.artifact) == (False, first.artifact)
    assert left_over(sql) == before
    await complete(db, held)
    assert (await put(held.id, content)).artifact == first.artifact
    assert await whole(db, first.artifact.id) == content


@pytest.mark.parametrize("content", [b"other", b"\xff" * 25])
async def test_other_content_under_the_same_name_is_refused(db, sql, lease, put, small_pieces, content):
    held = await lease()
    first = (await put(held.id, b"first")).artifact
    before = left_over(sql)
    with pytest.raises(Conflict, match=r"This lease has an artifact 'a.txt' with other content; take another name"):
        await put(held.id, content)
    assert left_over(sql) == before
    assert await artifacts.one(db, first.id) == first
    assert (await put(held.id, content, name="b.txt")).new
    other = await lease()
    assert (await put(other.id, content)).new


async def test_the_name_of_the_result_is_kept_for_it(db, sql, lease, put):
    held = await lease()
    with pytest.raises(Conflict, match="The name 'result' is kept for what the completion makes"):
        await put(held.id, b"x", name="result")
    assert left_over(sql) == [0, 0, 0]


@pytest.mark.parametrize("content", [b"x", b"x" * 25])
async def test_only_the_current_lease_uploads(db, sql, lease, put, small_pieces, epoch, content):
    with pytest.raises(NotFound, match="Lease not found"):
        await put("never-was", content)
    late, back, stopped, done = [await lease() for _ in range(4)]
    sql("UPDATE leases SET expires_at = 1 WHERE id = %s", late.id)
    with pytest.raises(LeaseLost, match="The lease has expired"):
        await put(late.id, content)
    await expiry.expire(db, retry=RETRY, epoch=epoch)
    await releases.release(db, [Release(lease_id=back.id)], actor="test")
    await tasks.cancel(db, stopped.task_id, actor="test")
    await complete(db, done)
    for lost, status in ((late, "expired"), (back, "released"), (done, "released")):
        with pytest.raises(LeaseLost, match=f"The lease is {status} and not the current one of the task"):
            await put(lost.id, content)
    with pytest.raises(TaskCancelled, match="The task was cancelled"):
        await put(stopped.id, content)
    sql("UPDATE llm_tasks SET retry_at = NULL")
    assert (await leases.lease(db, late.task_id, actor="test")).lease.id != late.id
    with pytest.raises(LeaseLost):
        await put(late.id, content)
    assert sql("SELECT name FROM runtime_artifacts") == [("result",)]
    assert left_over(sql)[1:] == [0, 0]


async def test_a_deadline_ends_uploads_too(db, sql, lease, put):
    held = await lease()
    sql("UPDATE leases SET deadline_at = bloom_now_ms()")
    with pytest.raises(LeaseLost, match="The lease has expired"):
        await put(held.id, b"x")


@pytest.mark.parametrize("end", ["expire", "cancel", "release", "complete"])
async def test_a_lease_that_ends_under_way_keeps_nothing(db, sql, lease, put, small_pieces, epoch, end):
    """The lease was good when the upload began, and for its first pieces."""
    held = await lease()

    async def ends():
        assert left_over(sql) == [0, 2, 1]
        if end == "expire":
            sql("UPDATE leases SET expires_at = 1")
            await expiry.expire(db, retry=RETRY, epoch=epoch)
        elif end == "cancel":
            await tasks.cancel(db, held.task_id, actor="test")
        elif end == "release":
            await releases.release(db, [Release(lease_id=held.id)], actor="test")
        else:
            await complete(db, held)

    with pytest.raises(LeaseLost):
        await put(held.id, b"x" * 25, ends, b"x" * 25)
    assert left_over(sql) == [1 if end == "complete" else 0, 0, 0]
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'artifact.uploaded'") == [(0,)]


async def test_a_lost_lease_is_refused_before_the_rest_is_read(db, sql, lease, put, small_pieces):
    held = await lease()
    sql("UPDATE leases SET expires_at = 1")
    with pytest.raises(LeaseLost):
        await put(held.id, b"x" * 11, AssertionError("it read on"))


@pytest.mark.parametrize("end", ["UPDATE leases SET expires_at = 1", "UPDATE leases SET status = 'expired'"])
async def test_a_lease_that_ends_while_an_upload_waits_for_its_task_is_lost(db, sql, held, lease, put, end):
    """As the statement sees it that has the lock, not as it was when it began to wait."""
    mine = await lease()
    refused = []

    async def upload():
        try:
            await put(mine.id, b"x")
        except Refusal as refusal:
            refused.append(refusal)

    lock = f"SELECT FROM llm_tasks WHERE id = '{mine.task_id}' FOR UPDATE"
    async with held(lock, upload):
        sql(end)
    assert [type(each) for each in refused] == [LeaseLost]
    assert left_over(sql) == [0, 0, 0]


async def test_expiries_and_uploads_at_once_agree(db, sql, lease, put, epoch):
    """Each upload is either there and was made under an active lease, or refused; nothing else."""
    held = [await lease() for _ in range(20)]
    kept, refused = [], []

    async def upload(lease_id, number):
        await trio.sleep(random.random() * 0.5)
        try:
            kept.append((await put(lease_id, os.urandom(20), name=f"{number}")).artifact.id)
        except LeaseLost:
            refused.append(lease_id)

    async def end(mine):
        await trio.sleep(random.random() * 0.5)
        await db.execute("UPDATE leases SET expires_at = 1 WHERE id = %(id)s", id=mine.id)
        await expiry.expire(db, retry=RETRY, epoch=epoch)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for mine in held:
                nursery.start_soon(end, mine)
                for number in range(5):
                    nursery.start_soon(upload, mine.id, number)
    assert kept
    assert refused
    assert len(kept) + len(refused) == 100
    assert {id for (id,) in sql("SELECT id FROM runtime_artifacts")} == set(kept)
    assert left_over(sql) == [len(kept)] * 3
    late = (
        "SELECT runtime_artifacts.id FROM runtime_artifacts JOIN leases ON leases.id = lease_id "
        "WHERE created_at > ended_at"
    )
    assert sql(late) == []


async def test_many_at_once_under_one_name_make_one(db, sql, lease, put, small_pieces):
    held = await lease()
    contents = [b"a" * 25, b"b" * 25]
    kept, refused = [], []

    async def upload(content):
        try:
            kept.append((await put(held.id, content)).artifact)
        except Conflict:
            refused.append(content)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(upload, contents[number % 2])
    assert len({artifact.id for artifact in kept}) == 1
    assert (len(kept), len(set(refused)), len(refused)) == (6, 1, 6)
    assert left_over(sql) == [1, 3, 1]
    assert await whole(db, kept[0].id) not in refused


class Broken(Exception):
    pass


async def test_an_upload_that_breaks_off_leaves_nothing(sql, lease, put, small_pieces):
    held = await lease()

    async def some_is_there():
        assert left_over(sql) == [0, 2, 1]

    with pytest.raises(Broken):
        await put(held.id, b"x" * 25, some_is_there, Broken())
    assert left_over(sql) == [0, 0, 0]
    with trio.CancelScope() as scope:

        async def cancel():
            scope.cancel()
            await trio.lowlevel.checkpoint()

        await put(held.id, b"x" * 25, some_is_there, cancel)
    assert scope.cancelled_caught
    assert left_over(sql) == [0, 0, 0]
    assert (await put(held.id, b"x" * 25)).new


async def test_no_artifact_without_its_audit_entry(db, sql, lease, put):
    held = await lease()
    sql("ALTER TABLE audit_logs ADD CONSTRAINT never CHECK (false) NOT VALID")
    with pytest.raises(psycopg.errors.CheckViolation):
        await put(held.id, b"x")
    assert left_over(sql) == [0, 0, 0]


async def test_content_that_is_gone_is_not_found(db, sql, lease, put, small_pieces):
    artifact = (await put((await lease()).id, b"x" * 25)).artifact
    content = await artifacts.content(db, NOWHERE, artifact.id)
    with pytest.raises(NotFound):
        await content.piece_at(25)
    sql("DELETE FROM artifact_pieces WHERE starts_at = 10")
    assert await content.piece_at(3) == b"x" * 7
    with pytest.raises(NotFound):
        await content.piece_at(10)
    sql("UPDATE runtime_artifacts SET url = 'minio://bucket/key'")
    content = await artifacts.content(db, NOWHERE, artifact.id)
    with pytest.raises(Unavailable, match="no object store is configured"):
        await content.piece_at(0)
    sql("UPDATE runtime_artifacts SET url = 'https://example.org/e'")
    content = await artifacts.content(db, NOWHERE, artifact.id)
    with pytest.raises(NotFound, match="The content of this artifact is elsewhere"):
        await content.piece_at(0)
    sql("UPDATE runtime_artifacts SET url = NULL, size = NULL")
    with pytest.raises(NotFound, match="This artifact has no content"):
        await artifacts.content(db, NOWHERE, artifact.id)


@pytest.mark.parametrize("content", [b"a text", b"\xff" * 25])
@pytest.mark.parametrize("status", ["success", "error"])
async def test_an_upload_becomes_the_artifact_of_the_result(db, sql, lease, put, small_pieces, content, status):
    held = await lease(max_attempts=1)
    mine = (await put(held.id, content)).artifact
    beside = (await put(held.id, b"beside", name="b")).artifact
    said = Completion(
        status=status, lease_id=held.id, output="short", error_message="boom", artifact_id=mine.id, artifact_tags=["t"]
    )
    done = await completion.complete(db, held.task_id, said, retry=RETRY, actor="test")
    assert done.task.status == {"success": "completed", "error": "dead"}[status]
    assert (done.artifact, done.result.artifact_id, done.result.output) == (mine, mine.id, "short")
    again = Completion(status="success", lease_id=held.id, output="other")
    assert await completion.complete(db, held.task_id, again, retry=RETRY, actor="test") == done
    assert {id for (id,) in sql("SELECT id FROM runtime_artifacts")} == {mine.id, beside.id}
    assert sql("SELECT artifact_id FROM llm_results") == [(mine.id,)]


async def test_an_artifact_of_another_lease_is_refused(db, sql, lease, put, epoch):
    held, other = await lease(), await lease()
    mine, foreign = (await put(held.id, b"mine")).artifact, (await put(other.id, b"other")).artifact
    for id in (foreign.id, "nothing"):
        for lease_id in (held.id, None):
            with pytest.raises(Conflict, match=f"There is no artifact {id} of this lease; upload it first"):
                said = Completion(status="success", lease_id=lease_id, artifact_id=id)
                await completion.complete(db, held.task_id, said, retry=RETRY, actor="test")
    assert sql("SELECT count(*) FROM llm_results") == [(0,)]
    assert (await tasks.one(db, held.task_id)).status == "leased"
    # Not even of an earlier lease of the same task.
    sql("UPDATE leases SET expires_at = 1 WHERE id = %s", held.id)
    await expiry.expire(db, retry=RETRY, epoch=epoch)
    sql("UPDATE llm_tasks SET retry_at = NULL")
    newer = (await leases.lease(db, held.task_id, actor="test")).lease
    with pytest.raises(Conflict):
        await complete(db, newer, artifact_id=mine.id)
    assert (await complete(db, newer)).artifact.name == "result"


async def test_many_completions_with_and_without_uploads(db, lease, put):
    with_upload, without, wrong = [await lease() for _ in range(3)]
    mine = (await put(with_upload.id, b"\xff")).artifact
    said = [
        Completion(status="success", lease_id=with_upload.id, artifact_id=mine.id),
        Completion(status="success", lease_id=without.id, output="hello"),
        Completion(status="success", lease_id=wrong.id, artifact_id=mine.id),
    ]
    first, second, third = await completion.complete_many(db, said, retry=RETRY, actor="test")
    assert first.artifact_id == mine.id
    assert (await artifacts.one(db, second.artifact_id)).content == "hello"
    assert isinstance(third, Conflict)
    assert (await tasks.one(db, wrong.task_id)).status == "leased"
    assert (await completion.complete_many(db, said[:2], retry=RETRY, actor="test")) == [first, second]


async def test_an_upload_that_ends_while_the_completion_waits_is_found(db, sql, held, lease, put):
    """It is committed after the completion has taken its look at the artifacts: that is run again."""
    mine = await lease()
    done = []

    async def end():
        done.append(await complete(db, mine, artifact_id="a1"))

    upload = (
        f"WITH task AS (SELECT FROM llm_tasks WHERE id = '{mine.task_id}' FOR UPDATE) "
        "INSERT INTO runtime_artifacts (id, task_id, lease_id, name, size, sha256) "
        f"SELECT 'a1', '{mine.task_id}', '{mine.id}', 'n', 1, 'x' FROM task"
    )
    async with held(upload, end):
        pass
    assert done[0].artifact.id == "a1"
    assert sql("SELECT id FROM runtime_artifacts") == [("a1",)]


async def test_what_came_to_nothing_is_collected_after_a_day(db, sql, lease, put, small_pieces, epoch, shift_clock):
    names = ("expired", "released", "cancelled", "completed", "failed", "active")
    held = {name: await lease(max_attempts=1) for name in names}
    contents = {name: [b"text", b"\xff" * 25] for name in names}
    for name in names:
        for number, content in enumerate(contents[name]):
            await put(held[name].id, content, name=f"{name}{number}")
    sql("UPDATE leases SET expires_at = 1 WHERE id = %s", held["expired"].id)
    await expiry.expire(db, retry=RETRY, epoch=epoch)
    await releases.release(db, [Release(lease_id=held["released"].id)], actor="test")
    await tasks.cancel(db, held["cancelled"].task_id, actor="test")
    await complete(db, held["completed"])
    failure = Completion(status="error", lease_id=held["failed"].id)
    await completion.complete(db, held["failed"].task_id, failure, retry=RETRY, actor="test")

    def there():
        return {name[:-1] for (name,) in sql("SELECT name FROM runtime_artifacts WHERE name <> 'result'")}

    sql("UPDATE leases SET expires_at = 1 WHERE status = 'active'")  # it is over, and nobody has ended it yet
    shift_clock(DAY - 60_000)
    assert await collect_all(db, epoch) == 4  # of the completed and the failed one is known that they stay
    assert there() == set(names)
    shift_clock(DAY + 60_000)
    assert await uploads.collect(db, epoch=epoch - 1) == []
    assert await collect_all(db, epoch) == 6
    assert there() == {"completed", "failed", "active"}
    assert await collect_all(db, epoch) == 0
    assert sql("SELECT count(*) FROM artifact_pieces") == [(3 * 3,)]
    assert left_over(sql)[2] == 2
    collected = sql("SELECT actor, detail FROM audit_logs WHERE action = 'artifact.collected' ORDER BY detail")
    assert len(collected) == 6
    assert collected[0] == ("bloomd", f"cancelled0, 4 bytes: lease {held['cancelled'].id} ended without a result")
    for artifact in await artifacts.listing(db, Page()):
        if artifact.name != "result":
            assert await whole(db, artifact.id) in contents[artifact.name[:-1]]


async def test_what_broke_off_is_collected(db, sql, lease, small_pieces, epoch, shift_clock, monkeypatch):
    """As after kill -9: pieces without an artifact. They go once their lease cannot make one of them any more."""

    async def gone(database, id):
        raise Unavailable("the database went away")

    monkeypatch.setattr(uploads, "_take_away", gone)
    completed, expired, active = [await lease() for _ in range(3)]
    for mine in (completed, expired, active):
        with pytest.raises(Unavailable):
            said = NewArtifact(lease_id=mine.id, name="n")
            await uploads.upload(db, said, body(b"x" * 25, Broken()), actor="test")
    await complete(db, completed)
    assert left_over(sql)[1:] == [6, 3]
    assert await collect_all(db, epoch) == 1
    assert left_over(sql)[1:] == [4, 2]
    sql("UPDATE leases SET expires_at = 1 WHERE id = %s", expired.id)
    await expiry.expire(db, retry=RETRY, epoch=epoch)
    shift_clock(2 * DAY)
    assert await collect_all(db, epoch) == 1
    assert sql("SELECT lease_id FROM uploads") == [(active.id,)]
    assert sql("SELECT count(*) FROM artifact_pieces") == [(2,)]


async def test_a_round_goes_on_past_a_batch(db, sql, lease, put, small_pieces, epoch, shift_clock, monkeypatch):
    monkeypatch.setattr(uploads, "COLLECT_BATCH", 2)
    for _ in range(5):
        held = await lease()
        await put(held.id, b"\xff" * 25)
        await tasks.cancel(db, held.task_id, actor="test")
    waiting = await lease()
    await put(waiting.id, b"x")
    shift_clock(2 * DAY)
    assert await collect_all(db, epoch) == 5
    assert left_over(sql) == [1, 0, 1]


async def test_uploads_go_with_their_task(db, sql, lease, put, small_pieces, epoch, shift_clock):
    held = await lease()
    await put(held.id, b"\xff" * 25, name="a")
    await put(held.id, b"text", name="b")
    await complete(db, held)
    retention = Retention(db, lambda: Keep(tasks=7.0))
    assert (await retention.prune(epoch)).uploads == 2
    assert left_over(sql) == [3, 3, 0]
    shift_clock(8 * DAY)
    assert (await retention.prune(epoch)).tasks == 1
    assert left_over(sql) == [0, 0, 0]


async def test_much_content_is_deleted_a_batch_at_a_time(db, sql, lease, put, small_pieces, epoch, shift_clock):
    held = await lease()
    await put(held.id, b"\xff" * 10 * (2 * uploads.COLLECT_BATCH + 1))
    await tasks.cancel(db, held.task_id, actor="test")
    shift_clock(2 * DAY)
    pieces = []
    while left_over(sql)[2]:
        pieces.append(left_over(sql)[1])
        [decided] = await uploads.collect(db, epoch=epoch)
        assert decided.settled is (pieces[-1] == 0)
    assert pieces == [2 * uploads.COLLECT_BATCH + 1, uploads.COLLECT_BATCH + 1, 1, 0]
    assert await uploads.collect(db, epoch=epoch) == []
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'artifact.collected'") == [(1,)]


async def test_who_collects_waits_for_nobody(db, conninfo, sql, lease, put, epoch, shift_clock):
    ids = []
    for _ in range(3):
        mine = await lease()
        ids.append((await put(mine.id, b"\xff")).artifact.id)
        await tasks.cancel(db, mine.task_id, actor="test")
    shift_clock(2 * DAY)
    with psycopg.connect(conninfo) as other, trio.fail_after(10):
        other.execute("SELECT FROM uploads WHERE artifact_id = %s FOR UPDATE", [ids[1]])
        assert {each.id for each in await uploads.collect(db, epoch=epoch)} == {ids[0], ids[2]}


async def test_two_who_collect_do_it_once(db, sql, lease, put, epoch, shift_clock):
    held = [await lease() for _ in range(12)]
    for mine in held:
        await put(mine.id, b"\xff")
        await tasks.cancel(db, mine.task_id, actor="test")
    shift_clock(2 * DAY)
    settled = []

    async def collect():
        settled.extend(each.id for each in await uploads.collect(db, epoch=epoch) if each.settled)

    while left_over(sql)[2]:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(collect)
    assert len(settled) == len(set(settled)) == 12
    assert sql("SELECT count(*) FROM audit_logs WHERE action = 'artifact.collected'") == [(12,)]
    assert left_over(sql) == [0, 0, 0]
