import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from control_daemon import Daemon, serving


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path that other users may enter, which pytest's own is not."""
    made = Path(tempfile.mkdtemp(prefix="bloomd-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def path(directory: Path) -> str:
    return str(directory / "bloomd.sock")


@pytest.fixture
async def daemon(path: str) -> AsyncIterator[Daemon]:
    async with serving(path) as daemon:
        yield daemon
