"""Orphans and missing objects: found, and the orphans removed, on a real PostgreSQL and a real S3 server."""

from datetime import timedelta

import pytest
from s3_server import s3_server
from tools import require

from bloomd.objects import inventory
from bloomd.objects.contents import Contents
from bloomd.objects.mover import Mover
from bloomd.runtime import completion, leases, objects
from bloomd.runtime.model import Completion, Retry


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory):
    with s3_server(require("rclone"), tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def contents(s3, request) -> Contents:
    settings = s3.settings(prefix=f"{request.node.name}/", inline_below=1)
    return Contents(lambda: settings)


@pytest.fixture
def old(monkeypatch):
    """Every object is old enough."""
    monkeypatch.setattr(inventory, "YOUNG", timedelta(hours=-1))


@pytest.fixture
def stored(db, epoch, contents, new_task, new_worker):
    """Artifacts with these contents, in the store."""

    async def stored(*outputs):
        await new_worker(max_concurrency=8)
        made = []
        for output in outputs:
            held = (await leases.lease(db, (await new_task()).id, actor="test")).lease
            done = Completion("success", output=output)
            made.append((await completion.complete(db, held.task_id, done, retry=Retry(), actor="test")).artifact)
        await Mover(db, contents).move(epoch)
        return made

    return stored


async def put(contents, key):
    async def read(at):
        return b"x" * 5

    await (await contents.store()).put(key, 5, read, content_type="text/plain")


async def test_all_is_well(db, contents, stored, old):
    await stored("one", "other")
    found = await inventory.take(db, contents)
    assert (found.objects, found.bytes, found.orphans, found.missing) == (2, 8, [], [])


async def test_what_the_nodejs_runtime_stored_is_no_orphan(db, sql, contents, new_task, old):
    task, prefix = await new_task(), contents.settings().prefix
    key = f"{prefix}artifacts/{task.id}/1700000000000.json"
    await put(contents, key)
    assert len((await inventory.take(db, contents)).orphans) == 1
    insert = "INSERT INTO runtime_artifacts (id, task_id, type, url) VALUES ('n', %s, 'LLM_RESULT', %s)"
    sql(insert, task.id, f"minio://artifacts/{key}")
    found = await inventory.take(db, contents)
    assert (found.objects, found.orphans, found.missing) == (1, [], [])


async def test_orphans_are_removed_when_somebody_says_so(db, sql, epoch, contents, stored, old):
    await stored("kept")
    key = f"{contents.settings().prefix}artifacts/no-task/no-artifact"
    await put(contents, key)
    found = await inventory.take(db, contents)
    assert [each.url for each in found.orphans] == [f"minio://artifacts/{key}"]
    assert await (await contents.store()).stat(key), "looking removes nothing"
    await inventory.fix(db, found.orphans)
    assert (await inventory.take(db, contents)).orphans == [], "it is to be removed already"
    assert await Mover(db, contents).remove(epoch) == 1
    assert (await inventory.take(db, contents)).objects == 1
    assert sql("SELECT detail FROM audit_logs WHERE action = 'objects.left'") == [
        ("1 objects that no artifact refers to",)
    ]


async def test_a_young_object_is_no_orphan_yet(db, contents):
    await put(contents, f"{contents.settings().prefix}artifacts/no-task/no-artifact")
    found = await inventory.take(db, contents)
    assert (found.objects, found.orphans) == (1, [])


async def test_missing_objects_are_named(db, sql, contents, stored, old, monkeypatch):
    monkeypatch.setattr(objects, "MANY", 1)
    gone, cut, _ = await stored("gone", "cut short", "well")
    store, prefix = await contents.store(), contents.settings().prefix
    await store.remove(f"{prefix}artifacts/{gone.task_id}/{gone.id}")
    await put(contents, f"{prefix}artifacts/{cut.task_id}/{cut.id}")
    found = await inventory.take(db, contents)
    assert [each.id for each in found.missing] == sorted([gone.id, cut.id])
    assert found.orphans == []
