"""The program that machines get from a server: what is in the wheel, and what the wheel needs."""

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_lock import ROOTS, needed, worker_lock

from bloomd import __version__
from bloomd.errors import Misconfigured
from bloomd.http.install import package
from bloomd.http.install.package import REQUIREMENTS, WHEEL, files

SOURCES = Path(__file__).parents[2] / "bloomd"

# Imports what is asked for where nothing else is installed.
IMPORT = """
import importlib.metadata, sys
names = importlib.metadata.packages_distributions()
class Elsewhere:
    def find_spec(self, name, path=None, target=None):
        owners = {{each.lower().replace("_", "-") for each in names.get(name.partition(".")[0], ())}}
        if owners and not owners & {allowed}:
            raise ModuleNotFoundError(f"{{name}} is of {{owners}}", name=name)
sys.meta_path.insert(0, Elsewhere())
import {module}
"""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    files.cache_clear()
    yield
    files.cache_clear()


def wheel() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(files()[WHEEL].content))


def test_the_wheel_is_the_package_and_nothing_else():
    names = set(wheel().namelist())
    info = f"bloomd-{__version__}.dist-info"
    ours = {f"bloomd/{path.relative_to(SOURCES)}" for path in SOURCES.rglob("*.py")}
    assert ours | {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")} <= names
    assert {"bloomd/http/install/install.sh", "bloomd/runtime/migrations/0001_tables.sql"} <= names
    assert {Path(name).suffix for name in names if not name.startswith(info)} == {".py", ".sql", ".sh", ".lock"}


def test_its_record_is_true():
    archive = wheel()
    rows = list(csv.reader(io.StringIO(archive.read(f"bloomd-{__version__}.dist-info/RECORD").decode())))
    assert [name for name, _, _ in rows] == archive.namelist()
    for name, digest, size in rows[:-1]:
        content = archive.read(name)
        hashed = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert (digest, size) == (f"sha256={hashed}", str(len(content)))


def test_the_same_files_make_the_same_wheel():
    first = files()[WHEEL]
    files.cache_clear()
    assert files()[WHEEL] == first
    assert first.sha256 == hashlib.sha256(first.content).hexdigest()


def test_what_lies_beside_the_sources_stays_here(tmp_path, monkeypatch):
    """And a node says so when the files are another version's than it is itself."""
    (tmp_path / "http/install").mkdir(parents=True)
    (tmp_path / "http/install/requirements.lock").write_text("x")
    (tmp_path / "__init__.py").write_text(f'__version__ = "{__version__}"\n')
    for name in ("api.key", "bloomd.yaml", ".env", "x.pyc", "notes.txt", "key.pem"):
        (tmp_path / name).write_text("a secret")
    monkeypatch.setattr(package, "SOURCES", tmp_path)
    assert [name for name in wheel().namelist() if "dist-info" not in name] == [
        "bloomd/__init__.py", "bloomd/http/install/requirements.lock",
    ]  # fmt: skip
    files.cache_clear()
    (tmp_path / "__init__.py").write_text('__version__ = "0.0.0"\n')
    with pytest.raises(Misconfigured, match="restart the daemon"):
        files()


def test_the_requirements_are_a_part_of_the_lock():
    assert files()[REQUIREMENTS].content.decode() == worker_lock(), "make lock"
    assert worker_lock().count("\n    --hash=sha256:") > len(ROOTS)
    names = set(re.findall(r"^([a-z0-9.-]+)==", worker_lock(), re.MULTILINE))
    assert names == needed()
    assert not names & {"litestar", "hypercorn", "minio", "asks"}


@pytest.mark.parametrize("module", ["bloomd.worker.main", "bloomd.cli"])
def test_they_are_all_that_a_worker_imports(module):
    program = IMPORT.format(allowed=needed() | {"bloomd"}, module=module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
