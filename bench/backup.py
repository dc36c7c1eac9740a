"""Backup, its proof and its restore: 100,000 tasks and a GiB of artifacts, most of it in the object store."""

import hashlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from bloomd_process import BIN, Bloomd
from s3_server import ACCESS, SECRET, S3Server, s3_server

from bench.history import HISTORY
from bench.measure import Row, cpu_seconds
from bench.rig import rig

TASKS = 100_000

# Those whose content the store has, and its size; the others' is a KiB of text in the database.
OBJECTS, OBJECT_BYTES = 3_720, 256 << 10

CONTENTS = """
SET session_replication_role = replica;
UPDATE runtime_artifacts
   SET content = (SELECT string_agg(md5(id || n), '') FROM generate_series(1, 32) AS n), size = 1024;
UPDATE runtime_artifacts
   SET sha256 = encode(sha256(convert_to(content, 'UTF8')), 'hex');
INSERT INTO llm_results (id, task_id, worker_id, artifact_id, status, output_shared, metrics, completed_at, lease_id)
SELECT 'result' || substr(id, 9), task_id, 'w1', id, 'success', true, '{"duration_ms": 5000}', created_at, lease_id
  FROM runtime_artifacts;
"""

STORED = "UPDATE runtime_artifacts SET content = NULL, url = %s, size = %s, sha256 = %s WHERE id = %s"


def measure() -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        s3_server(str(BIN / "rclone"), Path(directory)) as s3,
        rig(
            minio__endpoint=s3.endpoint,
            minio__bucket="artifacts",
            minio__access_key=ACCESS,
            minio__secret_key=SECRET,
        ) as (server, bloomd),
    ):
        _make(bloomd, s3)
        busy = {"PostgreSQL": server.pid, "store": s3.pid}
        file = bloomd.directory / "backup.tar"
        made = _run(bloomd, busy, "backup", "-o", str(file))
        made["archive MB"] = file.stat().st_size / 1e6
        proven = _run(bloomd, busy, "backup", "--verify", str(file))
        bloomd.configure(minio__bucket="elsewhere")
        restored = _run(bloomd, busy, "restore", "--into", server.create_database(), str(file))
    return [made, proven, restored]


def _make(bloomd: Bloomd, s3: S3Server) -> None:
    with psycopg.connect(bloomd.settings["database.url"], autocommit=True, cursor_factory=psycopg.ClientCursor) as sql:
        sql.execute(HISTORY, {"tasks": TASKS})
        sql.execute(CONTENTS)
        with sql.transaction():
            for number in range(1, OBJECTS + 1):
                content = os.urandom(OBJECT_BYTES)
                key = f"artifacts/task-{number}/artifact-{number}"
                file = s3.directory / "artifacts" / key
                file.parent.mkdir(parents=True)
                file.write_bytes(content)
                sha256 = hashlib.sha256(content).hexdigest()
                sql.execute(STORED, [f"minio://artifacts/{key}", len(content), sha256, f"artifact-{number}"])
        sql.execute("VACUUM ANALYZE")


def _run(bloomd: Bloomd, busy: dict[str, int], command: str, *arguments: str) -> Row:
    """How long it takes, who is busy with it, and the most that it, or a program that it starts, has in memory."""
    began, used = time.monotonic(), {name: cpu_seconds(process) for name, process in busy.items()}
    with (bloomd.directory / "said").open("w+") as said:
        process = subprocess.Popen([BIN / "bloomd", command, "-c", bloomd.file, *arguments], stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        assert process.returncode == 0, said.read()
    content = OBJECTS * OBJECT_BYTES + (TASKS - OBJECTS) * 1024
    return {
        "what": f"bloomd {command} {arguments[0]}",
        "s": seconds,
        "MB/s of content": content / seconds / 1e6,
        "bloomd CPU %": 100 * (usage.ru_utime + usage.ru_stime) / seconds,
        **{f"{name} CPU %": 100 * (cpu_seconds(process) - used[name]) / seconds for name, process in busy.items()},
        "peak RSS MB": usage.ru_maxrss * 1024 / 1e6,
    }
