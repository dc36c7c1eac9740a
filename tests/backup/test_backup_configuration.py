"""The files of the configuration go into the archive, each once, with the places that they had."""

import json
import tarfile
from pathlib import Path

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
