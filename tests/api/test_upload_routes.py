"""Uploads over HTTP: any content in, the same content out, within limits, and no more memory for more of it."""

import hashlib
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from servers import eventually

MEBIBYTE = 1 << 20
BINARY = os.urandom(MEBIBYTE) * 3 + b"the end"


@pytest.fixture
def lease(api, create, register):
    """The id of a fresh lease."""

    def lease():
        register(capabilities={"max_concurrency": 8})
        return api.post(f"/api/runtime/llm-tasks/{create()['id']}/lease").json()["lease"]["id"]

    return lease


@pytest.fixture
def database(daemon):
    with psycopg.connect(daemon.settings["database.url"], autocommit=True) as connection:
        yield connection


def put(api, lease_id, content, name="out.bin", **kwargs):
    return api.put(f"/api/runtime/leases/{lease_id}/artifacts/{name}", content=content, **kwargs)


def content(api, artifact, **headers):
    return api.get(f"/api/runtime/artifacts/{artifact['id']}/content", headers=headers)


def in_chunks(size, piece=b"x" * (1 << 16)):
    for _ in range(size // len(piece)):
        yield piece


def peak(daemon):
    """The most memory that the daemon has had since `forget_peak`, in bytes."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak(daemon):
    Path(f"/proc/{daemon.process.pid}/clear_refs").write_text("5")
    return peak(daemon)


def test_what_comes_in_goes_out(api, lease):
    held = lease()
    answer = put(
        api, held, BINARY, params={"type": "ARCHIVE", "tag": ["a", "b"]}, headers={"content-type": "application/x-tar"}
    )
    artifact = answer.json()
    assert answer.status_code == 201, answer.text
    assert (artifact["name"], artifact["lease_id"], artifact["content"]) == ("out.bin", held, None)
    assert (artifact["type"], artifact["tags"], artifact["content_type"]) == (
        "ARCHIVE",
        ["a", "b"],
        "application/x-tar",
    )
    assert (artifact["size"], artifact["sha256"]) == (len(BINARY), hashlib.sha256(BINARY).hexdigest())
    assert api.get(f"/api/runtime/artifacts/{artifact['id']}").json() == artifact
    assert api.get("/api/runtime/artifacts", params={"task_id": artifact["task_id"]}).json() == [artifact]

    whole = content(api, artifact)
    assert (whole.status_code, whole.content == BINARY) == (200, True)
    assert {name: whole.headers[name] for name in (
        "content-type", "content-length", "etag", "accept-ranges", "content-disposition", "x-content-type-options",
        "content-security-policy",
    )} == {
        "content-type": "application/x-tar",
        "content-length": str(len(BINARY)),
        "etag": f'"{artifact["sha256"]}"',
        "accept-ranges": "bytes",
        "content-disposition": "attachment",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox",
    }  # fmt: skip
    head = api.head(f"/api/runtime/artifacts/{artifact['id']}/content")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(BINARY)), b"")


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1048575-1048576", MEBIBYTE - 1, MEBIBYTE + 1),
        ("bytes=1048576-2097151", MEBIBYTE, 2 * MEBIBYTE),
        ("bytes=1000-3000000", 1000, 3_000_001),
        ("bytes=-9", len(BINARY) - 9, len(BINARY)),
        ("bytes=3145728-", 3 * MEBIBYTE, len(BINARY)),
    ],
)
def test_a_range_of_it(api, lease, asked, start, stop):
    artifact = put(api, lease(), BINARY).json()
    part = content(api, artifact, Range=asked)
    assert (part.status_code, part.content == BINARY[start:stop]) == (206, True)
    assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(BINARY)}"
    assert part.headers["content-length"] == str(stop - start)


def test_what_a_client_has_already(api, lease):
    artifact = put(api, lease(), BINARY).json()
    etag = f'"{artifact["sha256"]}"'
    known = content(api, artifact, **{"If-None-Match": etag})
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", etag)
    assert content(api, artifact, **{"If-Range": etag, "Range": "bytes=0-1"}).status_code == 206
    assert content(api, artifact, **{"If-Range": '"other"', "Range": "bytes=0-1"}).content == BINARY
    beyond = content(api, artifact, Range=f"bytes={len(BINARY)}-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(BINARY)}")


@pytest.mark.parametrize(
    ("sent", "said", "shown", "served"),
    [
        (b"text", None, "text", "text/plain; charset=utf-8"),
        ("ї".encode(), "text/html; charset=utf-8", "ї", "text/html; charset=utf-8"),
        (b"\xff", None, None, "application/octet-stream"),
        (b"a\x00b", "text/plain", None, "text/plain"),
        (b"", "image/png", "", "image/png"),
    ],
)
def test_content_of_any_type(api, lease, sent, said, shown, served):
    artifact = put(api, lease(), sent, headers={"content-type": said} if said else {}).json()
    assert (artifact["content"], artifact["content_type"]) == (shown, said)
    got = content(api, artifact)
    assert (got.content, got.headers["content-type"]) == (sent, served)
    assert got.headers["content-security-policy"] == "sandbox"


def test_a_retry_and_a_conflict(api, lease):
    held = lease()
    first = put(api, held, BINARY)
    again = put(api, held, BINARY)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = put(api, held, b"other")
    assert (other.status_code, other.json()["error"]) == (
        409, "This lease has an artifact 'out.bin' with other content; take another name",
    )  # fmt: skip
    assert put(api, held, b"other", name="another").status_code == 201


@pytest.mark.parametrize(
    ("name", "params", "status"),
    [
        ("with%20space.txt", {}, 201),
        ("%D1%97", {}, 201),
        ("n" * 255, {}, 201),
        ("n" * 256, {}, 400),
        ("a%0Ab", {}, 400),
        ("a%00b", {}, 400),
        ("a%2Fb", {}, 404),
        ("", {}, 404),
        ("result", {}, 409),
        ("n", {"type": "t" * 257}, 400),
        ("n", {"tag": [""]}, 400),
        ("n", {"tag": ["t"] * 65}, 400),
    ],
)
def test_names_types_and_tags(api, lease, name, params, status):
    answer = put(api, lease(), b"x", name=name, params=params)
    assert answer.status_code == status, answer.text
    if status != 201:
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_content_type_that_is_none_is_refused(api, lease):
    answer = put(api, lease(), b"x", headers={"content-type": "nonsense"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "content_type")


@pytest.mark.parametrize("sent", [b"x", BINARY])
def test_only_the_current_lease_uploads(api, database, lease, sent):
    assert put(api, "never-was", sent).status_code == 404
    held = lease()
    database.execute("UPDATE leases SET expires_at = 1")
    lost = put(api, held, sent)
    assert (lost.status_code, lost.json()["type"].rpartition(":")[2]) == (409, "lease-lost")
    held = lease()
    task = database.execute("SELECT task_id FROM leases WHERE id = %s", [held]).fetchone()[0]
    assert api.post(f"/api/runtime/llm-tasks/{task}/cancel").status_code == 200
    stopped = put(api, held, sent)
    assert (stopped.status_code, stopped.json()["type"].rpartition(":")[2]) == (409, "cancelled")
    assert api.get("/api/runtime/artifacts").json() == []


def test_the_limit_is_another_than_that_of_other_bodies(api, daemon, lease):
    """And holds for no other route, however it is spelled."""
    size = daemon.settings["http.max_body_bytes"] + 1
    held = lease()
    assert put(api, held, b"x" * size).status_code == 201
    for method, path in (
        ("POST", f"/api/runtime/leases/{held}/artifacts/name"),
        ("PUT", f"/api/runtime/leases/{held}/artifacts"),
        ("PUT", f"/api/runtime/leases/{held}/artifacts/a/b"),
        ("PUT", "/api/runtime/stats"),
    ):
        assert api.request(method, path, content=b"x" * size).status_code == 413, path


def test_too_large_by_its_length_is_refused_unread(api, daemon, lease):
    path = f"/api/runtime/leases/{lease()}/artifacts/big"
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: x\r\nX-Runtime-API-Key: {daemon.settings['http.api_key']}\r\n"
        f"Content-Length: {64 * MEBIBYTE + 1}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=5) as connection:
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read()
    assert b" 413 " in answer.splitlines()[0]
    assert b"The body is larger than 67108864 bytes" in answer


def test_a_stranger_is_refused_unread(daemon, lease):
    head = f"PUT /api/runtime/leases/{lease()}/artifacts/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=5) as connection:
        connection.sendall(head.encode())
        assert b" 401 " in connection.makefile("rb").readline()


def test_a_body_in_chunks(api, lease):
    artifact = put(api, lease(), in_chunks(5 * MEBIBYTE, os.urandom(1000))).json()
    assert artifact["size"] == 5 * MEBIBYTE // 1000 * 1000
    assert hashlib.sha256(content(api, artifact).content).hexdigest() == artifact["sha256"]


def test_too_large_in_chunks_is_refused_and_costs_no_memory(api, daemon, database, lease):
    """It is let in up to the limit, here 64 MiB, before that can be known; nothing of it stays."""
    held = lease()
    put(api, held, in_chunks(4 * MEBIBYTE), name="warm up")
    before = forget_peak(daemon)
    answer = put(api, held, in_chunks(200 * MEBIBYTE), name="big")
    assert (answer.status_code, answer.json()["error"]) == (413, "The body is larger than 67108864 bytes")
    assert peak(daemon) - before < 24 * MEBIBYTE
    assert [each["name"] for each in api.get("/api/runtime/artifacts").json()] == ["warm up"]
    eventually(lambda: database.execute("SELECT count(*) FROM uploads WHERE lease_id = %s", [held]).fetchone() == (1,))


def test_large_content_goes_out_as_it_is_read_and_costs_no_memory(api, daemon, lease):
    piece = os.urandom(1 << 16)
    artifact = put(api, lease(), in_chunks(48 * MEBIBYTE, piece)).json()
    before = forget_peak(daemon)
    digest, first = hashlib.sha256(), True
    with api.stream("GET", f"/api/runtime/artifacts/{artifact['id']}/content") as answer:
        for data in answer.iter_raw():
            if first:
                time.sleep(0.5)  # the client is slow to begin: it is waited for
            first = False
            digest.update(data)
    assert digest.hexdigest() == artifact["sha256"]
    assert peak(daemon) - before < 24 * MEBIBYTE


def test_a_reader_that_goes_leaves_nothing_behind(api, daemon, lease):
    artifact = put(api, lease(), in_chunks(16 * MEBIBYTE)).json()

    def sockets():
        number = 0
        for descriptor in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                number += os.readlink(descriptor).startswith("socket:")
        return number

    before = sockets()
    for _ in range(5):
        with api.stream("GET", f"/api/runtime/artifacts/{artifact['id']}/content") as answer:
            assert next(answer.iter_raw())
    eventually(lambda: sockets() <= before + 1)
    assert len(content(api, artifact).content) == 16 * MEBIBYTE


def test_a_client_that_goes_in_the_middle_leaves_nothing(api, daemon, database, lease):
    held = lease()
    head = (
        f"PUT /api/runtime/leases/{held}/artifacts/a HTTP/1.1\r\nHost: x\r\n"
        f"X-Runtime-API-Key: {daemon.settings['http.api_key']}\r\nContent-Length: {8 * MEBIBYTE}\r\n\r\n"
    )

    def pieces():
        return database.execute(
            "SELECT count(*) FROM artifact_pieces JOIN uploads USING (artifact_id) WHERE lease_id = %s", [held]
        ).fetchone()[0]

    with socket.create_connection(("127.0.0.1", daemon.port), timeout=5) as connection:
        connection.sendall(head.encode() + b"x" * (3 * MEBIBYTE))
        eventually(lambda: pieces() == 2)
    eventually(lambda: pieces() == 0)
    assert api.get("/api/runtime/artifacts").json() == []
    assert put(api, held, b"x" * (8 * MEBIBYTE), name="a").status_code == 201


def test_a_lease_that_is_lost_under_way(api, database, lease):
    """The client learns so although it has more to send."""
    held = lease()

    def body():
        yield b"x" * MEBIBYTE
        database.execute("UPDATE leases SET expires_at = 1 WHERE id = %s", [held])
        yield from in_chunks(20 * MEBIBYTE)

    answer = put(api, held, body())
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (409, "lease-lost")
    assert database.execute("SELECT count(*) FROM uploads WHERE lease_id = %s", [held]).fetchone() == (0,)


def test_an_upload_becomes_the_artifact_of_the_result(api, database, lease):
    one, two, wrong = lease(), lease(), lease()
    first, second = put(api, one, BINARY).json(), put(api, two, b"text").json()
    said = {"status": "success", "lease_id": one, "artifact_id": first["id"], "output": "see the artifact"}
    path = f"/api/runtime/llm-tasks/{first['task_id']}/complete"
    foreign = api.post(path, json={**said, "artifact_id": second["id"]})
    assert foreign.status_code == 409
    assert foreign.json()["error"].startswith(f"There is no artifact {second['id']} of this lease; upload it first")
    done = api.post(path, json=said)
    assert done.status_code == 200
    assert (done.json()["artifact"], done.json()["result"]["artifact_id"]) == (first, first["id"])
    assert done.json()["result"]["output"] == "see the artifact"
    assert api.post(path, json=said).json() == done.json()
    many = [
        {"status": "success", "lease_id": two, "artifact_id": second["id"]},
        {"status": "success", "lease_id": wrong, "artifact_id": second["id"]},
    ]
    good, bad = api.post("/api/runtime/leases/complete", json=many).json()
    assert (good["ok"], good["artifact_id"]) == (True, second["id"])
    assert (bad["ok"], bad["status"]) == (False, 409)
    assert {each["id"] for each in api.get("/api/runtime/artifacts").json()} == {first["id"], second["id"]}


def test_the_audit_names_who_uploaded(api, lease):
    artifact = put(api, lease(), b"x").json()
    [entry] = api.get("/api/runtime/audit", params={"action": "artifact.uploaded"}).json()
    assert (entry["entity_type"], entry["entity_id"], entry["actor"]) == ("artifact", artifact["id"], "api-key")


def test_the_description_says_that_the_body_is_bytes(api):
    described = api.get("/api/schema").json()["paths"]["/api/runtime/leases/{lease_id}/artifacts/{name}"]["put"]
    assert described["requestBody"]["content"] == {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
    }
    assert {each["name"] for each in described["parameters"]} == {"lease_id", "name", "type", "tag"}
