"""`bloomd migrate --to N` as an operator meets it: what it tells, when it asks, and when it refuses."""

import io
import os
import pty
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import trio
from bloomd_process import BIN, Bloomd
from servers import PostgresServer, eventually

from bloomd.cli import main
from bloomd.postgres import Pool
from bloomd.postgres.migrate import migrate
from bloomd.runtime.schema import MIGRATIONS

ROOT = Path(__file__).parents[2]
LATEST = MIGRATIONS[-1].version
KEY = "INSERT INTO api_keys (name, hash, created_at, created_by) VALUES ('k', 'h', 1, 't')"


@dataclass
class Done:
    code: int
    lines: list[str]
    errors: str


@pytest.fixture(scope="module")
def migrated(postgres_server: PostgresServer) -> str:
    conninfo = postgres_server.create_database()

    async def bring_up() -> None:
        async with Pool(conninfo, size=1) as pool, pool.connection() as connection:
            await migrate(connection, MIGRATIONS, report=lambda line: None)

    trio.run(bring_up)
    return conninfo


@pytest.fixture
def bloomd(postgres_server: PostgresServer, migrated: str) -> Iterator[Bloomd]:
    copy = postgres_server.create_database(template=migrated)
    daemon = Bloomd(copy)
    daemon.configure()
    yield daemon
    daemon.__exit__()
    postgres_server.drop_database(copy)


@pytest.fixture
def lossy(bloomd: Bloomd) -> Bloomd:
    with psycopg.connect(bloomd.settings["database.url"]) as connection:
        connection.execute(KEY)
    return bloomd


@pytest.fixture
def run(bloomd: Bloomd, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The command, in this process, whose standard input is no terminal."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(["migrate", "-c", str(bloomd.file), *arguments])
        said = capfd.readouterr()
        return Done(int(ended.value.code or 0), said.out.splitlines(), said.err)

    return run


@pytest.mark.usefixtures("lossy")
def test_status_tells_what_would_be_done(run: Callable[..., Done]) -> None:
    done = run("--status", "--to", "9")
    back = [f"to undo: {migration}" for migration in reversed(MIGRATIONS[9:])]
    assert done.lines == [
        f"the schema is at {LATEST}, this bloomd needs {LATEST}",
        *back,
        "to be lost with 0010 keys: named API keys: only the one in the configuration is left (1)",
    ]
    assert done.code == 1
    assert run("--status").code == 0, "nothing has happened"
    assert not any("lost" in line for line in run("--status", "--to", "10").lines)


@pytest.mark.usefixtures("lossy")
def test_what_is_lost_needs_a_yes(run: Callable[..., Done]) -> None:
    refused = run("--to", "9")
    assert (refused.code, refused.errors) == (
        64,
        "bloomd: this needs --yes, because something is lost: nothing was changed\n",
    )
    assert run("--status").code == 0
    done = run("--to", "9", "--yes")
    assert (done.code, done.errors) == (0, "")
    assert done.lines[1:] == [f"undone {m}" for m in reversed(MIGRATIONS[9:])] + ["the schema is at 9"]
    assert run("--to", "9").lines == ["the schema is at 9: nothing to do"]
    assert run("--to", "10").lines == ["applied 0010 keys", "the schema is at 10"]
    assert run("--to", "0").lines[-1] == "the schema is at 0", "nothing is lost, nothing is asked"
    assert run().lines[-1] == f"the schema is at {LATEST}"


@pytest.mark.parametrize(
    ("answer", "code", "last"), [("yes", 0, "the schema is at 9"), ("no", 1, "nothing was changed")]
)
def test_on_a_terminal_it_asks(lossy: Bloomd, answer: str, code: int, last: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [BIN / "bloomd", "migrate", "-c", lossy.file, "--to", "9"], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while b"[yes/no]" not in said:
        said += os.read(ours, 1024)
    assert b"named API keys" in said
    os.write(ours, answer.encode() + b"\n")

    def rest() -> bytes:
        try:
            return os.read(ours, 1024)
        except OSError:  # nobody has the other end any more
            return b""

    while more := rest():
        said += more
    os.close(ours)
    assert process.wait(30) == code
    assert said.decode().splitlines()[-1].endswith(last)


def test_it_is_refused_while_bloomd_runs_and_goes_when_it_has_stopped(bloomd: Bloomd, run: Callable[..., Done]) -> None:
    bloomd.start()
    refused = run("--to", "0", "--yes")
    assert refused.code == 78
    assert "a bloomd is using this database: it is connected from this machine" in refused.errors
    assert "stop it first, on every node" in refused.errors
    assert run().lines == [f"the schema is at {LATEST}: nothing to do"], "forward it may run"
    assert bloomd.stop() == 0
    eventually(lambda: run("--to", "17", "--yes").code == 0)
    bloomd.start(ready=False)
    eventually(lambda: bloomd.socket.exists() and "run `bloomd migrate" in bloomd.ctl("status").stdout)


def test_a_version_that_is_none_is_refused(run: Callable[..., Done]) -> None:
    done = run("--to", str(LATEST + 1))
    assert (done.code, done.errors) == (
        78,
        f"bloomd: there is no schema {LATEST + 1}: this program knows those from 0 to {LATEST}\n",
    )


def test_the_wheel_has_every_migration_and_its_way_back(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".sql")}
    assert names == {str(path.relative_to(ROOT)) for path in (ROOT / "bloomd").rglob("*.sql")}
    assert {f"bloomd/runtime/migrations/back/{m.version:04}_{m.name}.sql" for m in MIGRATIONS} <= names
