"""Scheduled backups in a real daemon: a night that was missed is made up for at once, and everybody can see it."""

import json
import tarfile
import time
from pathlib import Path

import psycopg
import pytest
from bloomd_process import Bloomd
from servers import eventually


@pytest.fixture
def scheduled(bloomd, tmp_path: Path) -> Bloomd:
    """One that begins to run when the backup of last night was missed."""
    daemon: Bloomd = bloomd(backup__schedule="00:00", backup__directory=str(tmp_path / "backups"))
    with psycopg.connect(daemon.settings["database.url"]) as connection:
        connection.execute("INSERT INTO backup_schedule (at, since) VALUES ('00:00', 0)")
    return daemon


def verified(daemon: Bloomd) -> bool:
    backup = daemon.status()["backup"]
    return backup is not None and backup["verified_age_seconds"] is not None


def test_a_missed_night_is_made_up_for_and_seen_everywhere(scheduled: Bloomd, tmp_path: Path) -> None:
    daemon = scheduled.start()
    eventually(lambda: verified(daemon), seconds=60)
    [file] = (tmp_path / "backups").iterdir()
    with tarfile.open(file) as tar:
        assert "manifest.json" in tar.getnames()
    backup = daemon.status()["backup"]
    assert (backup["file"], backup["bytes"], backup["error"]) == (str(file), file.stat().st_size, None)
    assert backup["verified_age_seconds"] < 60
    assert time.time() < backup["next"] <= time.time() + 25 * 3600
    assert not [notice for notice in daemon.status()["notices"] if "backup" in notice]
    [line] = [line for line in daemon.ctl("status").stdout.splitlines() if line.startswith("backup")]
    assert "verified " in line
    assert "next " in line
    metrics = daemon.http.get("/metrics").text
    assert "bloomd_backup_failed 0.0" in metrics
    assert "bloomd_backup_verified_age_seconds " in metrics
    [entry] = daemon.http.get("/api/runtime/audit", params={"action": "backup.made"}).json()
    assert str(file) in entry["detail"]
    # Old by now: everybody says so.
    with psycopg.connect(daemon.settings["database.url"]) as connection:
        connection.execute("UPDATE backups SET started_at = started_at - 3 * 86400000")
        connection.execute("UPDATE backup_schedule SET since = 0")
    eventually(lambda: any("the last verified backup is 3.0 days old" in each for each in daemon.status()["notices"]))
    done = daemon.run("doctor", "-o", "json")
    [found] = [each for each in json.loads(done.stdout)["checks"] if each["check"] == "backup.age"]
    assert found["state"] == "warning"


def test_it_comes_and_goes_with_the_configuration(bloomd, tmp_path: Path) -> None:
    daemon: Bloomd = bloomd().start()

    def state() -> str | None:
        return next((each["state"] for each in daemon.status()["services"] if each["name"] == "backup"), None)

    assert state() is None
    assert daemon.status()["backup"] is None
    assert "bloomd_backup" not in daemon.http.get("/metrics").text
    daemon.configure(backup__schedule="00:00", backup__directory=str(tmp_path / "backups"))
    assert daemon.ctl("reload").returncode == 0
    eventually(lambda: state() == "running")
    assert daemon.status()["backup"]["verified_age_seconds"] is None  # it waits for its time
    assert not (tmp_path / "backups").exists()
    daemon.configure(backup__schedule=None)
    assert daemon.ctl("reload").returncode == 0
    eventually(lambda: state() is None)
    daemon.configure(backup__schedule="7:00")
    done = daemon.ctl("reload")
    assert done.returncode != 0
    assert "expected a time of the day" in " ".join(done.stdout.split())
    daemon.configure(backup__schedule="07:00", backup__memory=True)
    assert "it needs `minio.endpoint`" in daemon.run("check").stderr
