"""The files of the configuration go into the archive, each once, with the places that they had."""

import json
import stat
import tarfile
from pathlib import Path

import psycopg
import pytest

from bloomd.cli import main


def test_the_configuration_and_its_secrets_are_in_the_archive(migrated: str, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(migrated)
    (tmp_path / "bloomd.yaml").write_text(f"env_file: {tmp_path}/env\ndatabase:\n  url_file: {tmp_path}/url\n")
    (tmp_path / "env").write_text("LOG_LEVEL=info\n")
    with pytest.raises(SystemExit) as ended:
        main(["backup", "-c", f"{tmp_path}/bloomd.yaml", "-o", f"{tmp_path}/f"])
    assert ended.value.code == 0
    with tarfile.open(tmp_path / "f") as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest
        places = json.load(manifest)["manifest"]["configuration"]
        found = {places[name]: tar.extractfile(name) for name in places}
        contents = {place: file.read() for place, file in found.items() if file}
    assert contents == {str(tmp_path / name): (tmp_path / name).read_bytes() for name in ("bloomd.yaml", "url")} | {
        str(tmp_path / "env"): b"LOG_LEVEL=info\n"
    }


@pytest.fixture
def archive(migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "url").write_text(migrated)
    (tmp_path / "url").write_text("k" * 40)
    (tmp_path / "bloomd.yaml").write_text(f"database:\n  url_file: {tmp_path}/a/url\nhttp:\n  api_key_file: url\n")
    assert run("backup", "-c", tmp_path / "bloomd.yaml", "-o", tmp_path / "f") == 0
    return tmp_path / "f"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_it_comes_back_under_its_own_names_and_for_nobody_else(archive, database, tmp_path, capsys):
    assert run("restore", archive, "--into", database, "--config", tmp_path / "new" / "etc") == 0
    said = capsys.readouterr().out
    found = {file.name: file for file in (tmp_path / "new" / "etc").iterdir()}
    [first, second] = sorted(set(found) - {"bloomd.yaml"})  # two of one name have their numbers
    assert {first.partition("-")[2], second.partition("-")[2]} == {"url"}
    assert found["bloomd.yaml"].read_text() == (tmp_path / "bloomd.yaml").read_text()
    assert {found[first].read_text(), found[second].read_text()} == {(tmp_path / "a" / "url").read_text(), "k" * 40}
    assert {stat.S_IMODE(file.stat().st_mode) for file in found.values()} == {0o600}
    assert f"{found['bloomd.yaml']}  was {tmp_path}/bloomd.yaml" in said


def test_what_cannot_be_put_there_is_refused_before_anything_is_done(archive, database, tmp_path, capsys):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "bloomd.yaml").symlink_to("/nowhere")
    assert run("restore", archive, "--into", database, "--config", tmp_path / "etc") == 78
    assert "is there already" in capsys.readouterr().err
    assert run("restore", archive, "--into", database, "--config", tmp_path / "bloomd.yaml") == 78
    assert "--config names the directory" in capsys.readouterr().err
    (tmp_path / "dump.sql").write_text("--\n-- PostgreSQL database dump\n--\n-- PostgreSQL database dump complete\n")
    assert run("restore", tmp_path / "dump.sql", "--into", database, "--config", tmp_path / "new") == 78
    assert "a plain dump has no configuration" in capsys.readouterr().err
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT FROM pg_tables WHERE schemaname = 'public'").fetchall() == []
