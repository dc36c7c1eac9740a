"""Content moves to the object store and is read from there: on a real PostgreSQL and a real S3 server."""

from pathlib import Path

import psycopg
import pytest
import trio
from s3_server import S3Server, s3_server
from tools import require

from bloomd.errors import Misconfigured, Unavailable
from bloomd.objects.contents import Contents
from bloomd.objects.mover import Mover
from bloomd.runtime import artifacts, completion, leases, objects, results, uploads
from bloomd.runtime.model import Completion, Retry
from bloomd.runtime.refusals import NotFound
from bloomd.runtime.stats import Counter
from bloomd.runtime.uploads import NewArtifact
from bloomd.settings.model import Minio

TEXT = "щось " * 2000
BINARY = bytes(range(256)) * 8192 * 5  # ten pieces, and two parts


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory):
    with s3_server(require("rclone"), tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def contents(s3: S3Server) -> Contents:
    return Contents(lambda: s3.settings(prefix="bloom/"))


@pytest.fixture
def mover(db, contents) -> Mover:
    return Mover(db, contents)


@pytest.fixture
def lease(db, new_task, new_worker):
    async def lease():
        await new_worker(max_concurrency=30)
        return (await leases.lease(db, (await new_task()).id, actor="test")).lease

    return lease


@pytest.fixture
def complete(db, lease):
    """A task that was completed with this output."""

    async def complete(output, status="success", held=None):
        held = held or await lease()
        said = Completion(status=status, output=output, lease_id=held.id)
        return await completion.complete(db, held.task_id, said, retry=Retry(), actor="test")

    return complete


@pytest.fixture
def upload(db):
    async def upload(held, data, name="a.bin"):
        pieces = [data, b""]

        async def read():
            return pieces.pop(0)

        return (await uploads.upload(db, NewArtifact(lease_id=held.id, name=name), read, actor="test")).artifact

    return upload


async def whole(db, contents, id):
    content = await artifacts.content(db, contents, id)
    read = b""
    while len(read) < content.size:
        piece = await content.piece_at(len(read))
        assert len(piece) <= max(uploads.PIECE_BYTES, len(TEXT.encode()))
        read += piece
    return read


def stored(s3: S3Server, key: str) -> Path:
    return s3.directory / "artifacts" / key


async def test_what_is_too_large_to_stay_is_moved_and_read_as_before(db, sql, epoch, s3, contents, mover, complete):
    small, large = await complete("x" * 4095), await complete(TEXT)
    before = await results.latest(db, contents, large.task.id, output_bytes=100)
    assert await mover.move(epoch) == 1
    assert await mover.move(epoch) == 0
    artifact = await artifacts.one(db, large.artifact.id)
    key = f"bloom/artifacts/{large.task.id}/{large.artifact.id}"
    assert (artifact.content, artifact.url) == (None, f"minio://artifacts/{key}")
    assert (artifact.size, artifact.sha256) == (large.artifact.size, large.artifact.sha256)
    assert stored(s3, key).read_text() == TEXT
    assert await whole(db, contents, large.artifact.id) == TEXT.encode()
    assert await whole(db, contents, small.artifact.id) == b"x" * 4095
    assert (await artifacts.one(db, small.artifact.id)).url is None
    content = await artifacts.content(db, contents, large.artifact.id)
    assert content.content_type == "text/plain; charset=utf-8"
    assert await content.piece_at(content.size - 3) == TEXT.encode()[-3:]
    after = await results.latest(db, contents, large.task.id, output_bytes=100)
    assert after == before
    assert after.output == TEXT.encode()[:100].decode(errors="ignore")
    assert after.output_truncated


async def test_an_output_stands_once(db, sql, complete, contents):
    done = await complete("the output")
    assert done.result.output == "the output"
    assert sql(
        "SELECT output, content FROM llm_results JOIN runtime_artifacts ON runtime_artifacts.id = artifact_id"
    ) == [(None, "the output")]
    assert (await results.latest(db, contents, done.task.id, output_bytes=100)).output == "the output"


async def test_saying_the_same_again_gives_the_same_answer_wherever_the_content_is(
    db, epoch, mover, complete, lease, contents
):
    held = await lease()
    first = await complete(TEXT, held=held)
    assert await complete(TEXT, held=held) == first
    await mover.move(epoch)
    again = await complete(TEXT, held=held)
    assert (again.result, again.artifact.content) == (first.result, TEXT)
    other = await complete("another output", held=held)
    assert (other.result.output, other.artifact.content) == (None, None), "what was said first is in the store"


async def test_what_is_in_pieces_is_moved_bit_by_bit(db, sql, epoch, s3, contents, mover, lease, upload, complete):
    held = await lease()
    artifact = await upload(held, BINARY)
    assert await mover.move(epoch) == 1, "also while its attempt goes on"
    await uploads.collect(db, epoch=epoch)
    assert sql("SELECT count(*) > 0 FROM artifact_pieces") == [(True,)], "nothing is decided while the lease is active"
    await complete("done", held=held)
    while await uploads.collect(db, epoch=epoch):
        pass
    assert sql("SELECT (SELECT count(*) FROM artifact_pieces), (SELECT count(*) FROM uploads)") == [(0, 0)]
    assert await whole(db, contents, artifact.id) == BINARY
    assert (await artifacts.content(db, contents, artifact.id)).content_type == "application/octet-stream"


async def test_who_reads_while_it_moves_reads_all_of_it(db, sql, epoch, contents, mover, lease, upload, complete):
    held = await lease()
    artifact = await upload(held, BINARY)
    await complete("done", held=held)
    content = await artifacts.content(db, contents, artifact.id)
    begun = await content.piece_at(0)
    await mover.move(epoch)
    while await uploads.collect(db, epoch=epoch):
        pass
    while len(begun) < content.size:
        begun += await content.piece_at(len(begun))
    assert begun == BINARY


async def test_an_upload_that_came_to_nothing_goes_with_its_object(
    db, sql, epoch, s3, contents, mover, lease, upload, shift_clock
):
    held = await lease()
    artifact = await upload(held, BINARY)
    await mover.move(epoch)
    sql("UPDATE llm_tasks SET status = 'failed', lease_id = NULL")
    sql("UPDATE leases SET status = 'expired', ended_at = 1")
    while await uploads.collect(db, epoch=epoch):
        pass
    assert sql("SELECT count(*) FROM runtime_artifacts") == [(0,)]
    object = stored(s3, f"bloom/artifacts/{artifact.task_id}/{artifact.id}")
    assert object.exists()
    assert await mover.remove(epoch) == 1
    assert not object.exists()
    assert sql("SELECT count(*) FROM objects_left") == [(0,)]


async def test_an_object_that_is_gone_already_is_removed(db, sql, epoch, mover):
    sql("INSERT INTO objects_left VALUES ('minio://artifacts/never/was', 1), ('minio://no-bucket-any-more/a', 2)")
    assert await mover.remove(epoch) == 2
    assert sql("SELECT count(*) FROM objects_left") == [(0,)]


async def test_nothing_is_removed_while_somebody_reads_a_snapshot(db, sql, conninfo, epoch, mover):
    sql("INSERT INTO objects_left VALUES ('minio://artifacts/a', 1)")
    with psycopg.connect(conninfo, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock_shared(%s)", [objects.OBJECTS_LOCK])
        assert await mover.remove(epoch) == 0
        other.execute("SELECT pg_advisory_unlock_shared(%s)", [objects.OBJECTS_LOCK])
        assert await mover.remove(epoch) == 1


async def test_who_does_not_lead_any_more_changes_nothing(db, sql, epoch, mover, complete):
    done = await complete(TEXT)
    sql("INSERT INTO objects_left VALUES ('minio://artifacts/a', 1)")
    assert (await mover.move(epoch + 1), await mover.remove(epoch + 1)) == (0, 0)
    assert (await artifacts.one(db, done.artifact.id)).content == TEXT
    assert sql("SELECT count(*) FROM objects_left") == [(1,)]


async def test_an_artifact_that_goes_while_it_is_stored_leaves_no_object(db, sql, epoch, s3, contents, complete):
    done = await complete(TEXT)
    sql("DELETE FROM runtime_artifacts")
    said = objects.Moved(done.artifact.id, "minio://artifacts/k", "text/plain", False)
    assert await objects.moved(db, [said], epoch=epoch) == 0
    assert sql("SELECT url FROM objects_left") == [("minio://artifacts/k",)]


async def test_while_the_store_is_away_everything_is_where_it_was(db, epoch, complete):
    done = await complete(TEXT)
    away = Contents(lambda: Minio(endpoint="127.0.0.1:1", access_key="a", secret_key="s"))
    with pytest.raises(Unavailable, match="connection refused"):
        await Mover(db, away).move(epoch)
    assert await whole(db, away, done.artifact.id) == TEXT.encode()


async def test_one_that_cannot_be_stored_does_not_keep_the_others(db, sql, epoch, contents, mover, complete):
    """What is stored is taken note of, although another one of the batch failed."""
    good, bad = await complete(TEXT), await complete(TEXT + "x")
    real = await contents.store()

    class HalfAway:
        async def put(self, key, *args, **kwargs):
            if bad.artifact.id in key:
                raise Unavailable("the object store is full")
            await real.put(key, *args, **kwargs)

    contents._opened = contents.settings(), HalfAway()
    with pytest.raises(Unavailable, match="full"):
        await mover.move(epoch)
    assert (await artifacts.one(db, good.artifact.id)).url
    assert (await artifacts.one(db, bad.artifact.id)).content == TEXT + "x"


async def test_one_that_is_never_stored_does_not_keep_the_others_of_later_batches(
    db, epoch, contents, mover, complete, monkeypatch
):
    monkeypatch.setattr(objects, "BATCH", 3)
    bad = await complete(TEXT)  # the smallest is the first
    others = [await complete(TEXT + "x" * (number + 1)) for number in range(7)]
    real = await contents.store()

    class Picky:
        async def put(self, key, *args, **kwargs):
            if bad.artifact.id in key:
                raise Unavailable("the object store does not like it")
            await real.put(key, *args, **kwargs)

    contents._opened = contents.settings(), Picky()
    with pytest.raises(Unavailable, match="like it"):
        await mover.move(epoch)
    for other in others:
        assert (await artifacts.one(db, other.artifact.id)).url
    assert (await artifacts.one(db, bad.artifact.id)).content == TEXT


async def test_those_that_are_refused_come_last_the_next_time(db, sql, epoch, contents, complete, monkeypatch):
    monkeypatch.setattr(objects, "BATCH", 4)
    bad = {(await complete(TEXT + "x" * number)).artifact.id for number in range(5)}
    good = [await complete(TEXT + "y" * (number + 9)) for number in range(3)]
    real = await contents.store()

    class Picky:
        async def put(self, key, *args, **kwargs):
            if any(id in key for id in bad):
                raise Unavailable("the object store does not like it")
            await real.put(key, *args, **kwargs)

    contents._opened = contents.settings(), Picky()
    mover = Mover(db, contents)
    for _ in range(2):
        with pytest.raises(Unavailable, match="like it"):
            await mover.move(epoch)
    for other in good:
        assert (await artifacts.one(db, other.artifact.id)).url


async def test_what_cannot_be_removed_keeps_no_other(db, sql, epoch, contents, monkeypatch):
    monkeypatch.setattr(objects, "BATCH", 2)
    for number, url in enumerate(["no-bucket", "b/locked", "b/locked2", "artifacts/a", "artifacts/b", "artifacts/c"]):
        sql("INSERT INTO objects_left VALUES (%s, %s)", f"minio://{url}", number)

    class Locked:
        async def remove(self, key, *, bucket):
            if bucket == "b":
                raise Misconfigured("refuses")

    contents._opened = contents.settings(), Locked()
    mover = Mover(db, contents)
    for _ in range(3):
        with pytest.raises(Misconfigured, match="refuses"):
            await mover.remove(epoch)
    assert {url for (url,) in sql("SELECT url FROM objects_left")} == {"minio://b/locked", "minio://b/locked2"}


async def test_a_store_that_is_full_is_emptied_all_the_same(db, sql, epoch, contents, complete):
    await complete(TEXT)
    sql("INSERT INTO objects_left VALUES ('minio://artifacts/a', 1)")

    class Full:
        async def make_bucket(self):
            return False

        async def put(self, key, *args, **kwargs):
            raise Unavailable("the object store is full")

        async def remove(self, key, *, bucket):
            pass

    contents._opened = contents.settings(), Full()
    with pytest.raises(Unavailable, match="full"):
        await Mover(db, contents).run(epoch)
    assert sql("SELECT * FROM objects_left") == []


@pytest.mark.parametrize("damaged", ["Щ", "shorter or longer"])
async def test_damaged_content_stays_where_it_is_and_is_told(db, sql, epoch, contents, mover, complete, damaged):
    bad, good = await complete(TEXT), await complete(TEXT)
    damage = "UPDATE runtime_artifacts SET content = overlay(content PLACING %s FROM 7) WHERE id = %s"
    sql(damage, damaged, bad.artifact.id)
    assert await mover.move(epoch) == 1
    assert await mover.move(epoch) == 0
    assert (await artifacts.one(db, good.artifact.id)).url
    assert (await artifacts.one(db, bad.artifact.id)).url is None
    assert contents.damaged == {bad.artifact.id}
    assert sql("SELECT action, entity_id FROM audit_logs WHERE action = 'artifact.damaged'") == [
        ("artifact.damaged", bad.artifact.id)
    ]


async def test_what_the_nodejs_runtime_has_stored_is_read_like_the_rest(db, sql, contents, new_task):
    task = await new_task()
    key = f"artifacts/{task.id}/1700000000000.json"

    async def read(at: int) -> bytes:
        return b'{"a": 1}'

    store = await contents.store()
    await store.put(key, 8, read, content_type="application/json")
    insert = "INSERT INTO runtime_artifacts (id, task_id, type, url) VALUES ('n', %s, 'LLM_RESULT', %s)"
    sql(insert, task.id, f"minio://artifacts/{key}")
    content = await artifacts.content(db, contents, "n")
    assert (content.size, content.sha256, content.content_type) == (8, None, "application/json")
    assert await content.piece_at(2) == b'a": 1}'
    await store.remove(key)
    with pytest.raises(NotFound, match="not in the object store any more"):
        await artifacts.content(db, contents, "n")
    with pytest.raises(NotFound, match="not in the object store any more"):
        await content.piece_at(0)


async def test_the_backlog_is_counted(db, sql, nursery, complete):
    for output in ("small", TEXT, TEXT):
        await complete(output)
    sql("INSERT INTO objects_left VALUES ('minio://artifacts/a', 1)")
    for too_large, expected in ((4096, (2, 2 * len(TEXT.encode()), 1)), (None, (0, 0, 1))):
        counter = Counter(db, lambda value=too_large: value)
        await nursery.start(counter.run)
        stats = await counter.read()
        assert (stats.to_move, stats.to_move_bytes, stats.to_remove) == expected


async def test_it_makes_its_bucket_and_goes_on_with_other_settings(db, epoch, s3, complete):
    settings = s3.settings(bucket="made-by-bloomd")
    contents = Contents(lambda: settings)
    done = await complete(TEXT)
    async with trio.open_nursery() as nursery:
        await nursery.start(Mover(db, contents).run, epoch)
        with trio.fail_after(10):
            while (await artifacts.one(db, done.artifact.id)).url is None:
                await trio.sleep(0.01)
        settings = s3.settings(bucket="another-one")
        other = await complete(TEXT)
        with trio.fail_after(10):
            while (await artifacts.one(db, other.artifact.id)).url is None:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert (
        await artifacts.one(db, other.artifact.id)
    ).url == f"minio://another-one/artifacts/{other.task.id}/{other.artifact.id}"
    assert await whole(db, contents, done.artifact.id) == TEXT.encode()


async def test_a_wrong_key_is_told(db, epoch, s3):
    mover = Mover(db, Contents(lambda: s3.settings(secret_key="wrong-secret")))
    with pytest.raises(Unavailable, match="refuses the signature"):  # and it is tried again: it may pass
        await mover.run(epoch)
