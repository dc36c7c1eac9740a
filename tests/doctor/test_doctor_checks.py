"""Each check complains when what it looks at is broken, and no other one does; of a node that is well, none does."""

import grp
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trio
from peers import MembridgePeer, Peer, Reply, Request, serving
from psycopg.conninfo import make_conninfo
from servers import eventually, free_port
from site_to_examine import KEY, MEMBRIDGE_KEY, OTHER_GROUP, Site, complaints, tell

from bloomd.doctor import case as cases
from bloomd.doctor import files, postgres, process, room, sockets
from bloomd.doctor.case import Case
from bloomd.doctor.checks import CHECKS
from bloomd.doctor.finding import Found
from bloomd.doctor.gather import gathered
from bloomd.doctor.users import User
from bloomd.runtime.schema import MIGRATIONS

Change = Callable[[Site], dict[str, Any]]


async def until_well(site: Site) -> None:
    with trio.fail_after(20):
        while await site.complaints():
            await trio.sleep(0.05)


async def test_a_node_that_is_well(site: Site) -> None:
    await until_well(site)  # all of it has started
    found = await site.examine()
    assert complaints(found) == {}
    assert {name: each.found for name, each in found.items() if each.state == "skipped"} == {
        "agents.key": "no worker has a URL",
        "backup.age": "no backup is made by schedule: backup.schedule is not set",
    }
    assert list(found) == [name for checks in CHECKS.values() for name in checks]


# Settings that break one thing each.
SETTINGS: list[tuple[str, str, Change]] = [
    ("socket.directory", "error", lambda site: {"http__bind": [*_binds(site), "unix:/nowhere/at/all/http.sock"]}),
    ("socket.group", "warning", lambda site: {"control__group": "nobody-has-this-group"}),
    ("socket.group", "warning", lambda site: {"http__socket_group": OTHER_GROUP}),
    ("postgres.reachable", "error", lambda site: {"database__url": f"postgresql://b@127.0.0.1:{free_port()}/b"}),
    ("postgres.reachable", "error", lambda site: {"database__url": make_conninfo(site.database, dbname="nowhere")}),
    ("membridge.reachable", "error", lambda site: {"membridge__server_url": f"http://127.0.0.1:{free_port()}"}),
    ("membridge.key", "error", lambda site: _other_membridge(site, "another-key-of-32-characters-0123")),
    ("membridge.key", "error", lambda site: _other_membridge(site, None)),
    ("minio.reachable", "error", lambda site: {"minio__endpoint": f"127.0.0.1:{free_port()}"}),
    ("minio.bucket", "error", lambda site: {"minio__bucket": "nobody-has-this-bucket"}),
    ("minio.bucket", "error", lambda site: {"minio__secret_key": "another-secret-of-32-characters-0"}),
    ("http.port", "error", lambda site: {"http__bind": [f"127.0.0.1:{free_port()}", _binds(site)[1]]}),
    (
        "http.open",
        "error",
        lambda site: {
            "http__api_key": None,
            "http__allow_unauthenticated": True,
            "http__bind": [f"0.0.0.0:{site.bloomd.port}", _binds(site)[1]],
        },
    ),
    ("http.open", "error", lambda site: {"http__api_key": None}),  # nginx lets everybody in
    ("keys.weak", "error", lambda site: {"http__api_key": "ChangeMe"}),
    ("keys.weak", "error", lambda site: {"http__api_key": "<generate-a-strong-key>"}),
    ("keys.weak", "error", lambda site: {"http__api_key": "put-your-API-key-of-32-characters-here"}),
    ("keys.weak", "error", lambda site: {"http__api_key": "change_me_123_change_me_456"}),
    ("keys.weak", "error", lambda site: {"http__api_key": "password-12345678901"}),
    ("keys.weak", "error", lambda site: {"membridge__agent_key": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}),
    ("keys.weak", "error", lambda site: {"database__url": make_conninfo(site.database, password="postgres")}),
    ("keys.weak", "warning", lambda site: {"http__api_key": "vK7pQ2x"}),
    ("nginx.answers", "error", lambda site: {"http__public_url": f"http://localhost:{free_port()}"}),
    ("nginx.answers", "error", lambda site: {"http__public_url": f"https://localhost:{free_port()}"}),
    ("nginx.answers", "error", lambda site: {"http__public_url": site.url("cut_off")}),
    ("nginx.answers", "error", lambda site: {"http__public_url": site.url("another")}),
    ("nginx.client_address", "error", lambda site: {"http__public_url": site.url("credulous")}),
    ("nginx.client_address", "warning", lambda site: {"http__public_url": site.url("appending")}),
    ("nginx.client_address", "error", lambda site: {"http__public_url": site.url("silent")}),
    ("nginx.certificate", "warning", lambda site: {"http__public_url": site.url("ending")}),
    ("nginx.certificate", "error", lambda site: {"http__public_url": site.url("over")}),
    ("nginx.certificate", "error", lambda site: {"http__public_url": site.url("tls", "127.0.0.1")}),
    ("public_url.reachable", "warning", lambda site: {"http__public_url": site.url("cautious", "127.0.0.9")}),
    ("public_url.reachable", "error", lambda site: {"http__public_url": site.url("elsewhere", "127.0.0.9")}),
]


def _binds(site: Site) -> list[str]:
    return site.bloomd.settings["http.bind"]


def _other_membridge(site: Site, key: str | None) -> dict[str, Any]:
    return {"membridge__server_url": site.membridge, "membridge__serve": None, "membridge__admin_key": key}


@pytest.mark.parametrize(("check", "state", "change"), SETTINGS, ids=[name for name, *_ in SETTINGS])
async def test_settings(site: Site, check: str, state: str, change: Change) -> None:
    assert await site.complaints(site.file(**change(site))) == {check: state}


async def test_a_file_that_is_no_settings_file(site: Site) -> None:
    found = await site.examine(site.file(text="http: [\n"))
    assert complaints(found) == {"settings.file": "error"}
    assert f"bloomd check -c {site.file()}" == found["settings.file"].fix
    found = await site.examine(site.file(http__bnd="x", tasks__retry_delay=-1))
    assert "did you mean `bind`?" in found["settings.file"].found
    assert "(and 1 more)" in found["settings.file"].found


@pytest.mark.parametrize(
    ("check", "mode"), [("settings.file", 0o662), ("secrets.mode", 0o644), ("env_file.mode", 0o644)]
)
async def test_the_mode_of_a_file(site: Site, check: str, mode: int) -> None:
    file = site.file()
    path = site.bloomd.directory / "runtime.env" if check == "env_file.mode" else file
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode)
    try:
        found = await site.examine(file)
    finally:
        path.chmod(before)
    assert complaints(found) == {check: "error"}
    assert str(found[check].fix).startswith("chmod o-")


async def test_an_environment_file_of_today_that_nobody_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TODAYS", site.bloomd.directory / "runtime.env")
    file = site.file(env_file=None)
    found = await site.examine(file)
    assert complaints(found) == {"env_file.mode": "warning"}
    assert str(found["env_file.mode"].fix).startswith(f"bloomd doctor -c {file} --env-file {files.TODAYS}, ")


async def test_the_mode_of_a_file_that_holds_one_secret(site: Site) -> None:
    directory = site.bloomd.directory / "secrets"
    secret = directory / "api.key"
    directory.mkdir()
    try:
        secret.write_text(KEY)
        secret.chmod(0o644)
        directory.chmod(0o755)
        file = site.file(http__api_key=None, http__api_key_file=str(secret))
        found = await site.examine(file)
        assert complaints(found) == {"secrets.mode": "error"}
        assert found["secrets.mode"].fix == f"chmod o-rwx {secret}"
        directory.chmod(0o700)
        assert await site.complaints(file) == {}, "nobody else gets to it"
    finally:
        shutil.rmtree(directory)


async def test_a_directory_in_which_everybody_may_put_a_socket(site: Site) -> None:
    site.bloomd.directory.chmod(0o777)
    try:
        assert await site.complaints() == {"socket.directory": "error"}
    finally:
        site.bloomd.directory.chmod(0o755)


@pytest.mark.parametrize(
    "check", [files.settings_file, files.secrets_mode, files.env_file_mode, sockets.directory, room.logs_writable]
)
async def test_what_the_daemon_may_not_do(
    site: Site, monkeypatch: pytest.MonkeyPatch, check: Callable[[Case], Found]
) -> None:
    """Root may do everything; another user would not get at these files, nor the group, which has another name."""
    others = grp.getgrnam(OTHER_GROUP)
    async with gathered(site.read, config=site.file()) as case:
        assert check(case).state == "ok"
        monkeypatch.setattr(cases, "daemon_user", lambda control_socket: User("stranger", 54321, (others.gr_gid,)))
        found = check(case)
    assert found.state == "error"
    assert "the user stranger may not" in found.text
    assert str(found.fix).startswith((f"chgrp {OTHER_GROUP} ", "chown stranger "))


async def test_what_the_api_has_set_and_the_file_says_otherwise(site: Site) -> None:
    other = site.file(membridge__server_url=site.membridge, membridge__serve=None)
    with site.changed(
        f"INSERT INTO runtime_settings VALUES ('membridge_server_url', '{site.membridge}/')",
        "DELETE FROM runtime_settings",
    ):
        found = await site.examine(other)
        assert complaints(found) == {"settings.hidden": "warning"}
        assert f"membridge.server_url of {other}:" in found["settings.hidden"].found
        assert "/api/runtime/config/membridge_server_url" in str(found["settings.hidden"].fix)


@pytest.mark.parametrize(
    ("free", "state"), [(room.FULL_BYTES - 1, "error"), (room.SCARCE_BYTES - 1, "warning")], ids=["full", "scarce"]
)
@pytest.mark.parametrize("check", ["disk.data", "disk.logs"])
async def test_a_full_disk(site: Site, monkeypatch: pytest.MonkeyPatch, check: str, free: int, state: str) -> None:
    really = os.statvfs
    full = site.server.data if check == "disk.data" else site.bloomd.directory

    def statvfs(path: Any) -> os.statvfs_result:
        values = list(really(path))
        if Path(path) == full:
            values[4] = free // values[1]  # f_bavail, in units of f_frsize
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert await site.complaints() == {check: state}


async def test_a_data_directory_that_we_do_not_get_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest one above counts."""
    really = os.statvfs

    def statvfs(path: Any) -> os.statvfs_result:
        if Path(path) == site.server.data:
            raise PermissionError
        values = list(really(path))
        if Path(path) == site.server.data.parent:
            values[4] = 0
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", statvfs)
    found = await site.examine()
    assert complaints(found) == {"disk.data": "error"}
    assert found["disk.data"].found == f"0.0 GiB are free for {site.server.data.parent}"


async def test_an_old_server(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "OLDEST_SERVER", 990000)
    found = await site.examine()
    assert complaints(found) == {"postgres.version": "error"}
    assert "and bloomd needs 99 or newer" in found["postgres.version"].found


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_a_server_that_forgets(site: Site, setting: str) -> None:
    def is_(value: str) -> Callable[[], bool]:
        return lambda: site.sql(f"SHOW {setting}") == [(value,)]

    try:
        site.sql(f"ALTER SYSTEM SET {setting} = off")
        site.server.reload()
        eventually(is_("off"))
        found = await site.examine()
        assert complaints(found) == {"postgres.fsync": "error"}
        assert f"ALTER SYSTEM SET {setting} = on" in str(found["postgres.fsync"].fix)
    finally:
        site.sql(f"ALTER SYSTEM RESET {setting}")
        site.server.reload()
        eventually(is_("on"))


@pytest.mark.parametrize(
    ("granted", "state", "says"),
    [
        ("SELECT", "error", "may not read and write api_keys, artifact_pieces, audit_logs and "),
        ("SELECT, INSERT, UPDATE, DELETE", "warning", "does not own api_keys, "),
        ("TRUNCATE", "error", "may not read and write"),
    ],
)
async def test_a_user_without_privileges(site: Site, granted: str, state: str, says: str) -> None:
    site.sql("CREATE ROLE poor LOGIN")
    site.sql(f"GRANT {granted} ON ALL TABLES IN SCHEMA public TO poor")
    try:
        found = await site.examine(site.file(database__url=make_conninfo(site.database, user="poor")))
        assert complaints(found) == {"postgres.privileges": state}
        assert f"the user poor {says}" in found["postgres.privileges"].found
        assert 'TO "poor"' in str(found["postgres.privileges"].fix)
        assert found["disk.data"].found.endswith(
            "; PostgreSQL does not tell where its own is: GRANT pg_read_all_settings TO poor"
        )
    finally:
        site.sql("DROP OWNED BY poor")
        site.sql("DROP ROLE poor")


@pytest.mark.parametrize(
    ("change", "back"),
    [
        (
            "INSERT INTO bloomd_migrations (version, name, checksum) VALUES (9999, 'of_the_future', 'x')",
            "DELETE FROM bloomd_migrations WHERE version = 9999",
        ),
        (
            "UPDATE bloomd_migrations SET checksum = 'x' || checksum WHERE version = 1",
            "UPDATE bloomd_migrations SET checksum = substr(checksum, 2) WHERE version = 1",
        ),
        (
            "UPDATE bloomd_migrations SET version = -version WHERE version = 1",
            "UPDATE bloomd_migrations SET version = -version WHERE version = -1",
        ),
        (
            "ALTER TABLE bloomd_migrations RENAME COLUMN checksum TO sum",
            "ALTER TABLE bloomd_migrations RENAME COLUMN sum TO checksum",
        ),
    ],
    ids=["newer", "changed", "other", "not ours"],
)
async def test_another_schema(site: Site, change: str, back: str) -> None:
    with site.changed(change, back):
        assert await site.complaints() == {"postgres.schema": "error"}


async def test_a_schema_that_is_to_be_migrated(site: Site) -> None:
    [last] = site.sql("DELETE FROM bloomd_migrations WHERE version = %s RETURNING *", MIGRATIONS[-1].version)
    try:
        file = site.file()
        found = await site.examine(file)
        assert complaints(found) == {"postgres.schema": "error"}
        assert str(found["postgres.schema"].fix).startswith(f"bloomd migrate -c {file}, ")
        assert {found[name].state for name in ("queue.stuck", "leader.present", "settings.hidden")} == {"skipped"}
    finally:
        site.sql("INSERT INTO bloomd_migrations VALUES (%s, %s, %s, %s)", *last)


@pytest.mark.parametrize(("seconds", "state"), [(30, "warning"), (-30, "warning"), (3600, "error")])
async def test_the_clock_of_postgresql(site: Site, monkeypatch: pytest.MonkeyPatch, seconds: int, state: str) -> None:
    """Shifting it for all would elect another leader: the doctor's own statement is answered by another clock."""
    monkeypatch.setattr(postgres, "NOW", f"SELECT bloom_now_ms() + {seconds * 1000} AS now_ms")
    found = await site.examine()
    assert complaints(found) == {"postgres.time": state}
    assert f"{abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} ours" in found["postgres.time"].found


def _late(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """The answers of a peer whose clock is half an hour behind."""

    def late(request: Request) -> Reply:
        reply = answer(request)
        reply.headers["date"] = formatdate(time.time() - 1800, usegmt=True)
        return reply

    return late


async def test_the_clock_of_membridge(site: Site) -> None:
    peer = MembridgePeer(MEMBRIDGE_KEY)
    peer.answer = _late(peer.answer)
    async with serving(peer):
        found = await site.examine(site.file(membridge__server_url=peer.url, membridge__serve=None))
    assert complaints(found) == {"membridge.time": "error"}
    assert "s behind ours" in found["membridge.time"].found


async def test_the_clock_of_the_object_store(site: Site) -> None:
    peer = Peer(_late(lambda request: Reply()))  # a HEAD of the bucket is well answered so, too
    async with serving(peer):
        found = await site.examine(site.file(minio__endpoint=peer.url.removeprefix("http://")))
    assert complaints(found) == {"minio.time": "error"}


def _process(**changes: Any) -> dict[str, Any]:
    return {"process": changes}


# What a daemon could answer, but for what it answers now.
ANSWERS: list[tuple[str, str, dict[str, Any]]] = [
    ("daemon.running", "warning", _process(version="0.0.1")),
    ("loop.lag", "warning", _process(loop_lag_worst_ms=400.0)),
    ("loop.lag", "error", _process(loop_lag_worst_ms=1400.0)),
    ("clock.jumps", "warning", _process(clock_jumps=[{"at": time.time() - 3600, "seconds": -90.0}])),
    ("limits.open_files", "warning", _process(open_files_limit=1024)),
    ("limits.open_files", "error", _process(open_files=16000, open_files_limit=16384)),
    ("logs.writable", "error", _process(log_files=["/var/log/messages (deleted)"])),
    ("logs.writable", "error", _process(log_files=["/nowhere/bloomd.log"])),
    ("reload.last", "error", {"reload": {"at": time.time(), "ok": False, "summary": "bloomd.yaml:1: no"}}),
]


@pytest.mark.parametrize(("check", "state", "changes"), ANSWERS, ids=[name for name, *_ in ANSWERS])
async def test_what_the_daemon_tells(
    site: Site, monkeypatch: pytest.MonkeyPatch, check: str, state: str, changes: dict[str, Any]
) -> None:
    tell(monkeypatch, changes)
    assert await site.complaints() == {check: state}


async def test_a_log_that_nobody_rotates(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "bloomd.log"
    log.touch()
    os.truncate(log, room.LARGEST_LOG + 1)  # holds no block
    tell(monkeypatch, _process(log_files=[str(log)]))
    assert await site.complaints() == {"logs.rotated": "warning"}


async def test_logs_that_nothing_will_rotate(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log, rotation = tmp_path / "bloomd.log", tmp_path / "logrotate"
    log.touch()
    tell(monkeypatch, _process(log_files=[str(log)]))
    monkeypatch.setattr(room, "ROTATION", rotation)
    assert await site.complaints() == {}, "a log elsewhere is rotated by whoever put it there"
    monkeypatch.setattr(room, "LOGS", tmp_path)
    assert await site.complaints() == {"logs.rotated": "warning"}
    rotation.touch()
    assert await site.complaints() == {}


@pytest.mark.parametrize(
    ("service", "check", "state"),
    [
        ("sweeper", "daemon.services", "warning"),
        ("notifications", "notifications", "error"),
        ("leader-election", "leader.present", "error"),
    ],
)
async def test_a_service_that_does_not_run(
    site: Site, monkeypatch: pytest.MonkeyPatch, service: str, check: str, state: str
) -> None:
    monkeypatch.setattr(process, "ARRIVES_SECONDS", 1.0)
    with site.stopped(service):
        assert await site.complaints() == {check: state}
    await until_well(site)


async def test_a_daemon_that_has_lost_its_database_alone(site: Site) -> None:
    """The Membridge that it serves has lost it, too."""
    with site.stopped("database"):
        found = await site.examine()
    assert complaints(found) == {"daemon.services": "warning", "membridge.key": "error"}
    assert found["daemon.services"].fix == "bloomd-ctl start database"
    assert found["notifications"].found == "the service database of the daemon does not run"
    await until_well(site)


async def test_a_reload_that_has_failed(site: Site) -> None:
    site.bloomd.file.write_text("http: [\n")
    try:
        assert site.bloomd.ctl("reload").returncode == 1
        found = await site.examine()
        assert complaints(found) == {"reload.last": "error"}
    finally:
        site.restore()
        assert site.bloomd.ctl("reload").returncode == 0


async def test_a_worker_that_is_silent(site: Site) -> None:
    with site.changed(
        "INSERT INTO workers (id, node_id, url, status, capabilities, ip_addrs, obs_count, db_sha, registered_at)"
        " VALUES ('w2', 'w2', '', 'offline', '{}', '[]', 0, '', 0)",
        "DELETE FROM workers WHERE id = 'w2'",
    ):
        found = await site.examine()
        assert complaints(found) == {"workers.silent": "warning"}
        assert found["workers.silent"].found.startswith("1 of 2 workers silent: w2 for ")
        with site.changed(
            "UPDATE workers SET status = 'offline' WHERE id = 'w1'",
            "UPDATE workers SET status = 'online' WHERE id = 'w1'",
        ):
            assert await site.complaints() == {"workers.silent": "error"}
        site.sql("UPDATE workers SET cordoned = true WHERE id = 'w2'")
        assert await site.complaints() == {}


async def test_workers_with_urls_and_no_key_for_them(site: Site) -> None:
    without = {"membridge__agent_key": None}
    assert await site.complaints(site.file(**without)) == {}
    with site.changed(
        "UPDATE workers SET url = 'http://127.0.0.1:1' WHERE id = 'w1'", "UPDATE workers SET url = '' WHERE id = 'w1'"
    ):
        assert await site.complaints() == {}
        found = await site.examine(site.file(**without))
        assert complaints(found) == {"agents.key": "warning"}
        assert found["agents.key"].found == "1 worker has a URL, and there is no key for their agents"


async def test_a_backup_that_is_old_or_failed(site: Site) -> None:
    assert (await site.examine())["backup.age"].state == "skipped"
    file = site.file(backup__schedule="03:30")
    assert (await site.examine(file))["backup.age"].found == "the first backup is due at 03:30"
    try:
        site.sql("INSERT INTO backup_schedule (at, since) VALUES ('03:30', bloom_now_ms() - 864000000)")
        found = await site.examine(file)
        assert complaints(found) == {"backup.age": "warning"}
        assert found["backup.age"].found == "no backup was verified for 10.0 days"
        site.sql(
            "INSERT INTO backups (id, node, file, due_at, started_at, ended_at, bytes, verified_at)"
            " VALUES ('b', 'n', '/f', 1, bloom_now_ms() - 7200000, 1, 1, 1)"
        )
        found = await site.examine(file)
        assert complaints(found) == {}
        assert found["backup.age"].found == "the last verified backup is 2 h old"
        site.sql("UPDATE backups SET verified_at = NULL, bytes = NULL, error = 'the disk is full'")
        assert await site.complaints(file) == {"backup.age": "warning"}
    finally:
        site.sql("DELETE FROM backups")
        site.sql("DELETE FROM backup_schedule")


async def test_a_task_that_waits_for_what_does_not_come(site: Site) -> None:
    made = site.bloomd.http.post("/api/runtime/llm-tasks", json={"prompt": "p", "labels": ["gpu"]}).json()
    try:
        assert await site.complaints() == {}
        site.sql("UPDATE llm_tasks SET created_at = created_at - 600000 WHERE id = %s", made["id"])
        found = await site.examine()
        assert complaints(found) == {"queue.stuck": "error"}
        assert f"task {made['id']} has waited for 10 min" in found["queue.stuck"].found
        assert "label gpu" in found["queue.stuck"].found
        site.sql("UPDATE llm_tasks SET labels = '[]' WHERE id = %s", made["id"])
        with site.changed("UPDATE queue_state SET paused = true", "UPDATE queue_state SET paused = false"):
            found = await site.examine()
            assert complaints(found) == {"queue.stuck": "warning"}
            assert found["queue.stuck"].fix == "bloomd-ctl resume"
        with site.changed(
            "UPDATE workers SET cordoned = true WHERE id = 'w1'", "UPDATE workers SET cordoned = false WHERE id = 'w1'"
        ):
            assert await site.complaints() == {"queue.stuck": "warning"}
        # It is the oldest. Another kind of task waits as well, and for nobody who will ever come.
        assert await site.complaints() == {"queue.stuck": "warning"}
        other = site.bloomd.http.post("/api/runtime/llm-tasks", json={"prompt": "p", "labels": ["gpu"]}).json()
        site.sql("UPDATE llm_tasks SET created_at = created_at - 300000 WHERE id = %s", other["id"])
        found = await site.examine()
        assert complaints(found) == {"queue.stuck": "error"}
        assert other["id"] in found["queue.stuck"].found
    finally:
        site.sql("DELETE FROM llm_tasks")


async def test_a_task_that_was_made_long_ago_and_is_due_just_now(site: Site) -> None:
    """It hides no other one of its kind that has been due for longer."""
    with site.changed(
        "INSERT INTO llm_tasks (id, context_id, prompt, labels, status, created_at, not_before)"
        " SELECT 't' || made, 'c' || made, 'p', '[\"gpu\"]', 'queued', bloom_now_ms() - made, bloom_now_ms() - due"
        " FROM (VALUES (72000000, 1000), (36000000, 36000000)) AS task (made, due)",
        "DELETE FROM llm_tasks",
    ):
        found = await site.examine()
    assert complaints(found) == {"queue.stuck": "error"}
    assert found["queue.stuck"].found.startswith("task t36000000 has waited for 10 h")


async def test_tasks_that_wait_for_a_worker_that_is_busy(site: Site) -> None:
    """Which is said, and is no trouble; however many kinds do, they hide none that nobody will ever take."""
    before = site.sql("SELECT capabilities::text FROM workers WHERE id = 'w1'")
    try:
        site.sql(
            "UPDATE workers SET capabilities = capabilities || %s::jsonb WHERE id = 'w1'",
            json.dumps({"max_concurrency": 1, "labels": [f"l{n}" for n in range(2, 8)]}),
        )
        site.sql(
            "INSERT INTO leases (id, task_id, worker_id, started_at, expires_at, ttl_seconds, status)"
            " VALUES ('l1', 'x1', 'w1', bloom_now_ms(), bloom_now_ms() + 3600000, 3600, 'active')"
        )
        site.sql(
            "INSERT INTO llm_tasks (id, context_id, prompt, labels, status, created_at)"
            " SELECT 't' || n, 'c' || n, 'p', jsonb_build_array('l' || n), 'queued', bloom_now_ms() - 600000 - 1000 * n"
            " FROM generate_series(1, 7) AS n"
        )
        found = await site.examine()
        assert complaints(found) == {"queue.stuck": "error"}
        assert found["queue.stuck"].found.startswith("task t1 has waited for 10 min: ")
        site.sql("DELETE FROM llm_tasks WHERE id = 't1'")
        found = await site.examine()
        assert complaints(found) == {}
        assert found["queue.stuck"].found.startswith("task t7 has waited for 10 min: ")
    finally:
        site.sql("DELETE FROM llm_tasks")
        site.sql("DELETE FROM leases")
        site.sql("UPDATE workers SET capabilities = %s::jsonb WHERE id = 'w1'", *before[0])


async def test_leases_that_are_rescued_again_and_again(site: Site) -> None:
    with site.changed(
        "INSERT INTO leases (id, task_id, worker_id, started_at, expires_at, ttl_seconds, status, ended_at)"
        " SELECT 'l' || n, 't' || n, CASE WHEN n > 3 THEN 'w1' ELSE 'w3' END, 0, 0, 300, 'expired', bloom_now_ms()"
        " FROM generate_series(1, 12) AS n",
        "DELETE FROM leases",
    ):
        found = await site.examine()
        assert complaints(found) == {"leases.rescued": "warning"}
        assert found["leases.rescued"].found == (
            "12 leases were rescued within the last hour, 9 of them from worker w1"
        )
        site.sql("DELETE FROM leases WHERE id IN ('l1', 'l2', 'l4')")
        assert await site.complaints() == {}
