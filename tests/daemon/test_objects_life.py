"""Artifacts in the object store, in a real daemon: whatever becomes of it, no completion waits and nothing is lost."""

import hashlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from bloomd_process import Bloomd
from s3_server import ACCESS, SECRET, Line, S3Server, s3_server
from servers import eventually
from tools import require

TEXT = "щось " * 2000


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    with s3_server(require("rclone"), tmp_path) as server:
        yield server


@pytest.fixture
def line(s3: S3Server) -> Iterator[Line]:
    line = Line(s3.endpoint)
    yield line
    line.close()


def minio(endpoint: str) -> dict[str, object]:
    return {
        "minio__endpoint": endpoint,
        "minio__bucket": "artifacts",
        "minio__access_key": ACCESS,
        "minio__secret_key": SECRET,
    }


@pytest.fixture
def daemon(bloomd, line: Line) -> Bloomd:
    return bloomd(**minio(line.endpoint)).start()


def complete(daemon: Bloomd, output: str) -> dict:
    """A task that is completed; its artifact."""
    worker = {"name": "w1", "capabilities": {"claude_cli": True, "max_concurrency": 32, "labels": []}}
    daemon.http.post("/api/runtime/workers", json=worker)
    task = daemon.http.post("/api/runtime/llm-tasks", json={"prompt": "p"}).json()
    daemon.http.post(f"/api/runtime/llm-tasks/{task['id']}/lease", json={"worker_id": "w1"}).raise_for_status()
    done = daemon.http.post(
        f"/api/runtime/llm-tasks/{task['id']}/complete", json={"status": "success", "output": output}
    )
    assert done.status_code == 200, done.text
    return done.json()["artifact"]


def lease(daemon: Bloomd) -> str:
    """Of a new task."""
    worker = {"name": "w1", "capabilities": {"claude_cli": True, "max_concurrency": 32, "labels": []}}
    daemon.http.post("/api/runtime/workers", json=worker)
    task = daemon.http.post("/api/runtime/llm-tasks", json={"prompt": "p"}).json()
    return daemon.http.post(f"/api/runtime/llm-tasks/{task['id']}/lease", json={"worker_id": "w1"}).json()["lease"][
        "id"
    ]


def is_moved(daemon: Bloomd, id: str) -> bool:
    return daemon.http.get(f"/api/runtime/artifacts/{id}").json()["url"] is not None


def content(daemon: Bloomd, id: str, **headers: str):
    return daemon.http.get(f"/api/runtime/artifacts/{id}/content", headers=headers)


def test_it_moves_and_is_read_from_there(daemon: Bloomd, s3: S3Server) -> None:
    artifact = complete(daemon, TEXT)
    before = content(daemon, artifact["id"])
    eventually(lambda: is_moved(daemon, artifact["id"]))
    [file] = (s3.directory / "artifacts" / "artifacts").glob("*/*")
    assert file.name == artifact["id"]
    after = content(daemon, artifact["id"])
    assert after.content == before.content == TEXT.encode()
    told = ("etag", "content-type", "content-length", "content-disposition", "x-content-type-options", "accept-ranges")
    assert {name: after.headers[name] for name in told} == {name: before.headers[name] for name in told}
    part = content(daemon, artifact["id"], range="bytes=5-9")
    assert (part.status_code, part.content) == (206, TEXT.encode()[5:10])
    assert content(daemon, artifact["id"], **{"if-none-match": after.headers["etag"]}).status_code == 304
    task = daemon.http.get(f"/api/runtime/llm-tasks/{artifact['task_id']}").json()
    assert task["result"]["output"] == TEXT
    told = daemon.ctl("task", "result", artifact["task_id"])
    assert told.stdout.strip() == TEXT.strip()
    assert daemon.status()["objects"] == {"to_move": 0, "to_move_bytes": 0, "to_remove": 0, "damaged": []}
    assert "objects  all moved" in " ".join(daemon.ctl("status").stdout.split("\n")).replace("   ", "  ")


def test_a_flipped_bit_is_noticed_before_the_last_byte(daemon: Bloomd, s3: S3Server) -> None:
    small, large = complete(daemon, TEXT), complete(daemon, "x" * (3 << 20))
    for artifact in (small, large):
        eventually(lambda id=artifact["id"]: is_moved(daemon, id))
        [file] = (s3.directory / "artifacts" / "artifacts").glob(f"*/{artifact['id']}")
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    answer = content(daemon, small["id"])
    assert (answer.status_code, "damaged" in answer.json()["detail"]) == (500, True)
    with pytest.raises(Exception, match="peer closed connection without sending complete message body"):
        content(daemon, large["id"])
    assert content(daemon, large["id"], range="bytes=0-9").content == b"x" * 10
    assert sorted(daemon.status()["objects"]["damaged"]) == sorted([small["id"], large["id"]])
    entries = daemon.http.get("/api/runtime/audit", params={"action": "artifact.damaged"}).json()
    assert {entry["entity_id"] for entry in entries} == {small["id"], large["id"]}


def test_an_object_that_is_cut_off_is_noticed_and_forgotten_when_it_is_mended(daemon: Bloomd, s3: S3Server) -> None:
    held = lease(daemon)
    whole = random.Random(1).randbytes(3 << 20)
    put = daemon.http.put(f"/api/runtime/leases/{held}/artifacts/a", content=whole)
    id = put.json()["id"]
    eventually(lambda: is_moved(daemon, id))
    [file] = (s3.directory / "artifacts").rglob(id)
    file.write_bytes(whole[: 2 << 20])
    s3.kill()  # it remembers sizes
    s3.start()
    with pytest.raises(httpx.RemoteProtocolError):
        content(daemon, id)
    eventually(lambda: daemon.status()["objects"]["damaged"] == [id])
    [entry] = daemon.http.get("/api/runtime/audit", params={"action": "artifact.damaged"}).json()
    assert "nothing of it from byte 2097152 on, of 3145728" in entry["detail"]
    assert "bloomd_objects_damaged 1.0" in daemon.http.get("/metrics").text
    file.write_bytes(whole)
    s3.kill()
    s3.start()
    eventually(lambda: content(daemon, id).content == whole)
    assert daemon.status()["objects"]["damaged"] == []


def test_no_completion_waits_for_a_store_that_is_away(daemon: Bloomd, s3: S3Server) -> None:
    s3.kill()
    started = time.monotonic()
    artifact = complete(daemon, TEXT)
    assert time.monotonic() - started < 5
    eventually(lambda: "objects is waiting: the object store at" in str(daemon.status()["reasons"]))
    assert daemon.status()["objects"]["to_move"] == 1
    assert content(daemon, artifact["id"]).content == TEXT.encode()
    s3.start()
    eventually(lambda: is_moved(daemon, artifact["id"]))
    s3.kill()
    assert content(daemon, artifact["id"]).status_code == 503
    task = daemon.http.get(f"/api/runtime/llm-tasks/{artifact['task_id']}").json()
    assert (task["result"]["output"], task["result"]["output_truncated"]) == (None, True)


@pytest.mark.parametrize("trouble", ["slow", "cut", "full"])
def test_a_store_in_trouble_gets_it_when_it_is_well_again(daemon: Bloomd, line: Line, trouble: str) -> None:
    eventually(lambda: daemon.status()["objects"] is not None)
    line.mode = trouble
    started = time.monotonic()
    artifact = complete(daemon, TEXT)
    assert time.monotonic() - started < 5
    if trouble != "slow":
        eventually(lambda: daemon.status()["verdict"] == "degraded")
        assert not is_moved(daemon, artifact["id"])
    if trouble == "full":
        assert "answered 507" in str(daemon.status()["reasons"])
    line.mode = "ok"
    eventually(lambda: is_moved(daemon, artifact["id"]))
    assert content(daemon, artifact["id"]).content == TEXT.encode()


def test_a_store_comes_and_goes_with_the_configuration(bloomd, s3: S3Server) -> None:
    daemon = bloomd().start()
    artifact = complete(daemon, TEXT)
    assert daemon.status()["objects"] is None
    daemon.configure(**minio(s3.endpoint))
    assert daemon.ctl("reload").returncode == 0
    eventually(lambda: is_moved(daemon, artifact["id"]))
    daemon.configure(**{**minio(s3.endpoint), "minio__secret_key": "another-one"})
    assert daemon.ctl("reload").returncode == 0
    other = complete(daemon, TEXT)
    eventually(lambda: "refuses the signature: correct minio.secret_key" in str(daemon.status()["reasons"]))
    assert not is_moved(daemon, other["id"])
    daemon.configure(**minio(s3.endpoint))
    assert daemon.ctl("reload").returncode == 0
    eventually(lambda: is_moved(daemon, other["id"]))
    daemon.configure(**dict.fromkeys(minio(s3.endpoint)))
    assert daemon.ctl("reload").returncode == 0
    assert daemon.status()["verdict"] == "ok"
    assert "no object store is configured" in content(daemon, artifact["id"]).json()["detail"]


@pytest.mark.slow
def test_each_reads_back_whoever_is_killed_while_they_move(bloomd, s3: S3Server) -> None:
    """1,000 contents; the daemon and the store are killed, by turns, until all have moved."""
    daemon = bloomd(**minio(s3.endpoint), tasks__sweep_interval=0.2).start()
    random.seed(7)
    outputs = {}
    worker = {"name": "w1", "capabilities": {"claude_cli": True, "max_concurrency": 32, "labels": []}}
    daemon.http.post("/api/runtime/workers", json=worker)
    s3.kill()  # so that all of them wait
    daemon.http.post("/api/runtime/llm-tasks", json=[{"prompt": "p"}] * 500).raise_for_status()
    daemon.http.post("/api/runtime/llm-tasks", json=[{"prompt": "p"}] * 500).raise_for_status()
    while len(outputs) < 1000:
        claim = {"worker_id": "w1", "max": 32}
        got = daemon.http.post("/api/runtime/leases/claim", json=claim).json()["leases"]
        done = []
        for each in got:
            output = random.randbytes(random.randint(2100, 12000)).hex()
            outputs[each["lease"]["task_id"]] = output
            done.append({"lease_id": each["lease"]["id"], "status": "success", "output": output})
        daemon.http.post("/api/runtime/leases/complete", json=done).raise_for_status()
    s3.start()

    def left() -> int:
        return daemon.status()["objects"]["to_move"]

    kills = 0
    while (before := left()) > 0:
        eventually(lambda before=before: left() < before)
        if kills % 2:
            s3.kill()
            s3.start()
        else:
            assert daemon.process
            daemon.process.kill()
            daemon.process.wait()
            daemon.start()
        kills += 1
    assert kills >= 4
    for artifact in daemon.http.get("/api/runtime/artifacts", params={"limit": 1000}).json():
        expected = outputs.pop(artifact["task_id"]).encode()
        assert artifact["url"]
        read = content(daemon, artifact["id"]).content
        assert hashlib.sha256(read).hexdigest() == hashlib.sha256(expected).hexdigest() == artifact["sha256"]
    assert outputs == {}


def test_the_doctor_compares_object_by_object(daemon: Bloomd, s3: S3Server) -> None:
    artifact = complete(daemon, TEXT)
    eventually(lambda: is_moved(daemon, artifact["id"]))
    well = daemon.run("doctor", "--objects")
    assert (well.returncode, well.stderr) == (0, "")
    assert well.stdout == "1 object (17.6 KiB) in the bucket artifacts\n"
    assert daemon.http.get("/api/runtime/artifacts").status_code == 200
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        connection.execute("UPDATE runtime_artifacts SET url = url || 'x'")
    missing = daemon.run("doctor", "--objects", "-o", "json")
    assert missing.returncode == 2
    told = json.loads(missing.stdout)["inventory"]
    assert ([each["id"] for each in told["missing"]], told["orphans"]) == ([artifact["id"]], [])
    assert "1 missing" in daemon.run("doctor", "--objects").stdout
    assert daemon.run("doctor", "--fix").returncode == 64
    daemon.settings["minio.endpoint"] = None
    none = daemon.run("doctor", "--objects")
    assert (none.returncode, "no object store is configured" in none.stderr) == (78, True)
