import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bloomd.errors import Misconfigured
from bloomd.postgres import binaries


def fake(directory: Path, version: str) -> Path:
    directory.mkdir(parents=True)
    for name in binaries.NEEDED:
        (directory / name).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        (directory / name).chmod(0o755)
    return directory


def only(monkeypatch: pytest.MonkeyPatch, *directories: Path) -> None:
    monkeypatch.setattr(binaries, "_candidates", lambda program="postgres": iter(directories))


def test_the_command_prints_where_they_are() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "bloomd.postgres.binaries"], capture_output=True, text=True, check=True
    )
    assert (Path(found.stdout.strip()) / "initdb").exists()


def test_without_any_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch)
    assert binaries.main() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "apt install postgresql;" in said.err
    assert "apk add postgresql)" in said.err


@pytest.mark.parametrize("answer", ["17.2 (Debian 17.2-1)", "18beta1", "14.11"])
def test_versions_are_understood(tmp_path: Path, answer: str) -> None:
    assert binaries.version(fake(tmp_path / "bin", answer)) == int(answer[:2])


def test_what_is_too_old_or_broken_or_a_client_only_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = fake(tmp_path / "13/bin", "13.4")
    broken = fake(tmp_path / "broken/bin", "")
    (broken / "postgres").write_text("#!/nonexistent/interpreter\n")
    client = fake(tmp_path / "client/bin", "16.1")
    (client / "initdb").unlink()
    good = fake(tmp_path / "16/bin", "16.1")
    only(monkeypatch, old, broken, client, good)
    assert binaries.find() == good


def test_an_existing_cluster_wants_its_own_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    newer, older = fake(tmp_path / "17/bin", "17.1"), fake(tmp_path / "15/bin", "15.8")
    only(monkeypatch, newer, older)
    assert binaries.find() == newer
    assert binaries.find(15) == older
    with pytest.raises(
        Misconfigured, match=r"PostgreSQL 16 were found.*apt install postgresql-16;.*apk add postgresql16"
    ):
        binaries.find(16)


def test_path_comes_first_then_the_newest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_path = fake(tmp_path / "path", "15.1")
    monkeypatch.setenv("PATH", f"{on_path}:{Path(shutil.which('sh') or '/bin/sh').parent}")
    assert binaries.find() == on_path
    assert binaries._newest_first(iter([Path("/x/9/bin"), Path("/x/16/bin"), Path("/y/postgresql15")])) == [
        Path("/x/16/bin"),
        Path("/y/postgresql15"),
        Path("/x/9/bin"),
    ]
