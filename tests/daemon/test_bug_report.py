"""`bloomd-ctl bugreport` beside a real daemon: what is in the archive, and that no secret, prompt or result is."""

import json
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from bloomd_process import KEY, Bloomd
from psycopg.conninfo import make_conninfo
from servers import eventually, free_port

from bloomd.control.client import Client, Failed

# Each has something that some notation quotes.
PASSWORD = 'p%a/s@s:w"o\\r d'
SECRETS = {
    "http.session_secret": "session-secret/of=32+characters-or-more",
    "membridge.admin_key": 'admin-key-"quoted"-0123456789',
    "membridge.agent_key": "agent-key-with-a-back\\slash",
    "membridge.serve_key": "serve-key-it's-quoted",
    "minio.access_key": "access-key-of-minio",
    "minio.secret_key": "secret/key+of=minio",
    "worker.token": "token-of-a-worker-here",
}
PROMPT, RESULT, REFUSED = "the prompt of the task", "the result of the task", "a prompt that is refused"


def files_of(path: Path) -> dict[str, str]:
    """The content of the archive by the names of its files, without their directory."""
    with tarfile.open(path) as archive:
        directories = {member.name.partition("/")[0] for member in archive}
        assert len(directories) == 1
        return {
            member.name.partition("/")[2]: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive
        }


def spellings(secret: str) -> set[str]:
    """Written here once more: what the archive is searched for is not to depend on the code that cleans it."""
    plain = {secret, quote(secret, safe=""), quote(secret)}
    quoted = plain | {json.dumps(text)[1:-1] for text in plain}
    return quoted | {json.dumps(text)[1:-1] for text in quoted} | {repr(text)[1:-1] for text in quoted}


def assert_none_in(text: str, secrets: Iterable[str]) -> None:
    assert [spelled for secret in secrets for spelled in spellings(secret) if spelled in text] == []


def say_them_everywhere(daemon: Bloomd, secrets: Iterable[str]) -> None:
    """In paths, queries and headers of requests, and in the names that an operator types."""
    with Client(str(daemon.socket)) as client:
        for secret in secrets:
            daemon.http.get(f"/no/{quote(secret, safe='')}/such?password={quote(secret)}")
            daemon.http.get(f"/no/{secret}", headers={"Authorization": f"Bearer {secret}", "Cookie": f"a={secret}"})
            for params in ({"name": secret}, {"name": f"postgresql://bloom:{secret}@db/bloom"}):
                with pytest.raises(Failed):
                    client.call("stop", **params)


def do_a_task(daemon: Bloomd, url: str) -> None:
    """One that completes, and one that PostgreSQL refuses for a reason that nobody has thought of."""
    daemon.ctl("worker", "add", "w1")
    with Client(str(daemon.socket)) as client:
        [task] = client.call("task.add", tasks=[{"prompt": PROMPT}])["tasks"]
        client.call("task.lease", name=task["id"], worker_id="w1")
        client.call("task.complete", name=task["id"], completion={"status": "success", "output": RESULT})
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"ALTER TABLE llm_tasks ADD CHECK (prompt <> '{REFUSED}') NOT VALID")
        with pytest.raises(Failed, match="bug in bloomd"):
            client.call("task.add", tasks=[{"prompt": REFUSED}])


@pytest.fixture
def secretive(bloomd: Callable[..., Bloomd], database: str) -> Bloomd:
    """A daemon that has a secret in every setting that takes one."""
    served, nobody = free_port(), free_port()
    return bloomd(
        make_conninfo(database, password=PASSWORD),
        **{key.replace(".", "__"): value for key, value in SECRETS.items()},
        log__level="debug",
        membridge__server_url=f"http://127.0.0.1:{nobody}",
        membridge__serve=f"127.0.0.1:{served}",
        minio__endpoint=f"127.0.0.1:{nobody}",
    )


def test_the_archive_has_all_but_what_is_secret(secretive, database, tmp_path):
    daemon = secretive.start()
    named = daemon.ctl("key", "add", "ci").stdout.strip()
    daemon.ctl("worker", "add", "w0")
    made = [json.loads(daemon.ctl("-o", "json", "worker", action, "w0").stdout) for action in ("token", "enrol")]
    token, code = made[0]["secret"], made[1]["code"]
    cookie = daemon.http.post("/api/runtime/session", json={"key": KEY}).cookies["bloomd"]
    secrets = {KEY, PASSWORD, *SECRETS.values(), named, token, code, cookie}
    assert len(secrets) == 13
    say_them_everywhere(daemon, secrets)
    do_a_task(daemon, database)

    path = tmp_path / "report.tar.gz"
    done = daemon.ctl("bugreport", "-o", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert str(path) in done.stdout
    assert "look at it before you send it" in done.stdout
    assert "missing" not in done.stdout
    assert path.stat().st_mode & 0o777 == 0o600

    files = files_of(path)
    assert_none_in(done.stdout + "".join(files.values()), secrets)
    for text in (PROMPT, RESULT, REFUSED):
        assert text not in "".join(files.values())
    told = {name: json.loads(text) for name, text in files.items() if name.endswith(".json")}
    assert {file["name"]: file["bytes"] for file in told["manifest.json"]["files"]} == {
        name: len(text.encode()) for name, text in files.items() if name not in ("README.txt", "manifest.json")
    }
    assert told["manifest.json"]["missing"] == []
    assert told["status.json"]["process"]["pid"] == daemon.process.pid
    settings = {setting["key"]: setting for setting in told["settings.json"]["settings"]}
    assert {key: settings[key]["value"] for key in SECRETS} == dict.fromkeys(SECRETS, "****")
    assert settings["membridge.agent_key"]["where"].startswith(str(daemon.file))
    assert settings["http.bind"]["value"] == [f"127.0.0.1:{daemon.port}"]
    assert "password=****" in settings["database.url"]["value"]
    assert set(told["versions.json"]["packages"]) >= {"bloomd", "trio", "psycopg", "hypercorn", "litestar", "asks"}
    with psycopg.connect(database) as connection:
        assert told["versions.json"]["postgresql"] == connection.info.parameter_status("server_version")
    assert told["machine.json"]["kernel"].startswith(f"Linux {os.uname().release}")
    assert "Max open files" in files["limits.txt"]
    checks = {check["check"]: check for check in told["doctor.json"]["said"]["checks"]}
    assert checks["settings.file"]["state"] == "ok"
    assert "path=/no/****/such" in files["log.txt"]
    assert "Failing row contains ****" in files["log.txt"]
    assert "event=control method=bugreport user=root outcome=ok" in files["log.txt"]
    assert_none_in(daemon.log.read_text(), secrets)

    trail = lambda: daemon.http.get("/api/runtime/audit", params={"action": "control.bugreport"}).json()  # noqa: E731
    eventually(trail)
    assert [(entry["actor"], entry["detail"]) for entry in trail()] == [("root", "ok")]


def test_without_the_daemon_there_is_what_can_be_had(secretive, tmp_path):
    path = tmp_path / "report.tar.gz"
    done = secretive.ctl("-o", "json", "bugreport", "-o", str(path), "-c", str(secretive.file))
    assert done.returncode == 0
    files = files_of(path)
    assert_none_in("".join(files.values()), {KEY, PASSWORD, *SECRETS.values()})
    missing = {each["what"]: each["why"] for each in json.loads(files["manifest.json"])["missing"]}
    assert json.loads(done.stdout)["missing"] == missing
    assert set(missing) >= {"status", "latest lines of the log in the daemon's memory"}
    assert "there is no socket" in missing["status"]
    assert "membridge.admin_key" in files["settings.txt"]
    checks = json.loads(files["doctor.json"])["said"]["checks"]
    assert "postgres.reachable" in {check["check"] for check in checks}


def test_the_doctor_reads_the_env_file_that_the_daemon_was_given(bloomd, database, tmp_path):
    daemon = bloomd()
    daemon.configure(database__url=None)
    env_file = tmp_path / "bloomd.env"
    env_file.write_text(f"DATABASE_URL={database}\n")
    daemon.start("--env-file", str(env_file))
    path = tmp_path / "report.tar.gz"
    assert daemon.ctl("bugreport", "-o", str(path)).returncode == 0
    doctor = json.loads(files_of(path)["doctor.json"])
    assert doctor["command"][-4:] == ["-c", str(daemon.file), "--env-file", str(env_file)]
    checks = {check["check"]: check for check in doctor["said"]["checks"]}
    assert checks["postgres.reachable"]["state"] == "ok"
