"""A directory to write a configuration into, and how it reads."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bloomd.settings import Loaded, SettingsError, load

# Whom a test turns into when the machine must refuse it something; root is refused nothing.
NOBODY = 65534


class Place:
    """A directory with a bloomd.yaml."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "bloomd.yaml"
        self.path.write_text("")

    def write(self, text: str | bytes, name: str = "bloomd.yaml") -> Path:
        path = self.directory / name
        path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
        path.chmod(0o600)
        return path

    def load(self, text: str | None = None, environ: Mapping[str, str] | None = None, **more: Any) -> Loaded:
        if text is not None:
            self.write(text)
        return load(self.path, environ=environ or {}, **more)

    def errors(self, text: str | bytes, environ: Mapping[str, str] | None = None, **more: Any) -> list[str]:
        """The problems, each without the directory's name."""
        self.write(text)
        with pytest.raises(SettingsError) as caught:
            load(self.path, environ=environ or {}, **more)
        return [str(problem).replace(f"{self.directory}/", "") for problem in caught.value.problems]

    def warnings(self, loaded: Loaded) -> list[str]:
        """The warnings, each without the directory's name, and without the one that a missing key has."""
        texts = [text.replace(f"{self.directory}/", "") for text in loaded.warnings]
        return [text for text in texts if not text.startswith("http.api_key is not set")]

    def where(self, loaded: Loaded, key: str) -> str | None:
        where = loaded.sources[key].where
        return where and where.replace(f"{self.directory}/", "")


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One directory for tests that write thousands of files, one after the other."""
    return Place(tmp_path_factory.mktemp("settings"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def open_place() -> Iterator[Place]:
    """A place that whomever the test becomes can enter."""
    with tempfile.TemporaryDirectory() as directory:
        place = Place(Path(directory))
        place.directory.chmod(0o755)
        place.path.chmod(0o644)
        yield place


@pytest.fixture
def forbid() -> Iterator[Callable[[Path], None]]:
    """Take away the permission to read a file, for the rest of the test."""
    root = os.geteuid() == 0

    def take_away(path: Path) -> None:
        path.chmod(0)
        if root:
            os.seteuid(NOBODY)

    yield take_away
    if root:
        os.seteuid(0)
