"""logrotate/, by the real logrotate: the files are emptied under a process that goes on writing to them."""

import grp
import gzip
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from servers import eventually
from tools import require

ROOT = Path(__file__).parents[2]
TEXT = {path.name: path.read_text() for path in (ROOT / "logrotate").iterdir()}

# Writes what it is told to where OpenRC's supervise-daemon has put its output: a file that was opened for appending.
WRITER = ["sh", "-c", 'while read -r line; do echo "$line"; done']


class Log:
    def __init__(self, file: Path, writer: "subprocess.Popen[str]") -> None:
        self.file = file
        self._writer = writer

    def write(self, line: str) -> None:
        before = self.file.stat().st_size
        assert self._writer.stdin
        self._writer.stdin.write(f"{line}\n")
        self._writer.stdin.flush()
        eventually(lambda: self.file.stat().st_size == before + len(line) + 1)

    def rotated(self) -> list[str]:
        return sorted(path.name.removeprefix(self.file.name) for path in self.file.parent.glob(f"{self.file.name}.*"))


@pytest.fixture
def machine() -> Iterator[Path]:
    """A directory instead of /var/log and /etc that its user, who is not root, reaches, too."""
    directory = Path(tempfile.mkdtemp(prefix="logrotate-", dir="/tmp"))
    directory.chmod(0o755)
    (directory / "logs").mkdir(mode=0o750)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def user(machine: Path) -> pwd.struct_passwd:
    """In the place of bloomd; root in it would be what the directory must not see."""
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    os.chown(machine / "logs", user.pw_uid, user.pw_gid)
    return user


@pytest.fixture
def log(machine: Path, user: pwd.struct_passwd) -> Iterator[Callable[[str], Log]]:
    with ExitStack() as ends:

        def make(name: str) -> Log:
            file = machine / "logs" / name
            file.touch(mode=0o640)
            os.chown(file, user.pw_uid, user.pw_gid)
            with file.open("ab") as output:
                writer = subprocess.Popen(WRITER, stdin=subprocess.PIPE, stdout=output, text=True)
            return Log(file, ends.enter_context(writer))

        yield make


@pytest.fixture
def rotate(machine: Path, user: pwd.struct_passwd) -> Callable[..., None]:
    tool, su = require("logrotate"), f"su {user.pw_name} {grp.getgrgid(user.pw_gid).gr_name}"

    def run(*options: str, file: str = "bloomd") -> None:
        conf = machine / file
        ours = re.sub("^/var/log/(bloomd/)?", f"{machine}/logs/", TEXT[file], flags=re.MULTILINE)
        conf.write_text(ours.replace("su bloomd bloomd", su))
        conf.chmod(0o644)
        command = [tool, "--state", machine / "state", *options, conf]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    return run


def test_a_file_that_is_held_open_is_emptied_and_written_from_its_beginning(log, rotate, user):
    big, small = log("bloomd.log"), log("bloomd-error.log")
    for each in (big, small):
        each.write("before")
    with big.file.open("r+b") as file:
        file.truncate(51 << 20)
    rotate()
    assert (big.rotated(), small.rotated()) == ([".1"], [])
    assert big.file.stat().st_size == 0
    big.write("after")
    small.write("after")
    assert big.file.read_text() == "after\n"
    assert small.file.read_text() == "before\nafter\n"
    kept = big.file.with_name("bloomd.log.1")
    with kept.open("rb") as file:
        assert file.read(7) == b"before\n"
    assert (stat.S_IMODE(kept.stat().st_mode), kept.stat().st_uid) == (0o640, user.pw_uid)


def test_of_the_rotated_ones_so_many_are_kept_and_the_latest_can_be_read(log, rotate):
    it = log("bloomd.log")
    [most] = map(int, re.findall(r"^\trotate (\d+)$", TEXT["bloomd"], re.MULTILINE))
    for number in range(most + 2):
        it.write(f"line {number}")
        rotate("--force")
    rotate("--force")  # nothing has been written since: nothing to do
    assert it.rotated() == [".1", *(f".{number}.gz" for number in range(2, most + 1))]
    assert it.file.with_name("bloomd.log.1").read_text() == f"line {most + 1}\n"
    with gzip.open(it.file.with_name(f"bloomd.log.{most}.gz"), "rt") as oldest:
        assert oldest.read() == "line 2\n"


def test_the_log_of_a_worker_is_emptied_as_well(log, rotate):
    it = log("bloomd-worker.log")
    it.write("before")
    rotate("--force", file="bloomd-worker")
    it.write("after")
    assert it.file.read_text() == "after\n"
    assert it.file.with_name("bloomd-worker.log.1").read_text() == "before\n"


@pytest.mark.parametrize("file", TEXT)
def test_it_is_no_trouble_that_there_is_no_log(rotate, file):
    rotate(file=file)


@pytest.mark.parametrize(("service", "logs"), [("bloomd", 2), ("bloomd-worker", 1)])
def test_it_finds_the_files_of_the_service(service, logs):
    script = (ROOT / "openrc" / service).read_text()
    files = set(re.findall(r'^(?:output|error)_log="(.*)"$', script, re.MULTILINE))
    assert len(files) == logs
    [pattern] = re.findall(r"^(/\S+) {$", TEXT[service], re.MULTILINE)
    assert all(Path(file).match(pattern) for file in files)
